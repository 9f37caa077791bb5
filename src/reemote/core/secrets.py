"""Values that never show: which names are secret, and how they are masked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, SecretStr

NAMES = frozenset({"password", "passphrase", "sudo_password", "su_password"})
"""The options whose values are secret."""

MASK = "**********"


def _conceal(value: str | SecretStr | None) -> SecretStr | None:
    return SecretStr(value) if isinstance(value, str) else value


Secret = Annotated[str | SecretStr | None, AfterValidator(_conceal)]
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
    """Options as given, whose secrets do not show in ``repr``."""

    def __repr__(self) -> str:
        return repr(dict(masked(self)))

    __str__ = __repr__
