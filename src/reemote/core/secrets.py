"""Values that never show: which names are secret, and how they are masked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BeforeValidator, SecretStr

NAMES = frozenset({"password", "passphrase", "sudo_password", "su_password"})
"""The options whose values are secret."""

MASK = "**********"


def _conceal(value: Any) -> SecretStr | None:
    if isinstance(value, str):
        return SecretStr(value)
    if value is None or isinstance(value, SecretStr):
        return value
    raise ValueError("Input should be a valid string")


Secret = Annotated[str | SecretStr | None, BeforeValidator(_conceal)]
"""A secret: given as text, kept as a ``SecretStr``, masked wherever it is shown."""


def reveal(value: Any) -> Any:
    """Give the plain value of a secret, for the one place that must send it."""
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def masked(options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Give the *options* as they may be shown."""
    for name, value in options.items():
        hidden = value is not None and (name in NAMES or "PRIVATE KEY" in str(value))
        yield name, MASK if hidden else value


class Options(dict[str, Any]):
    """Options as given, secrets as ``SecretStr``: they do not show."""

    def __init__(self, options: Mapping[str, Any] = MappingProxyType({})) -> None:
        super().__init__(
            {name: SecretStr(v) if name in NAMES and isinstance(v, str) else v for name, v in options.items()}
        )

    def __repr__(self) -> str:
        return repr(dict(masked(self)))

    __str__ = __repr__
