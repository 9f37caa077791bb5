"""Values that never show: which names are secret, where they come from, and how they are masked.

A secret may be a reference to where it is kept: ``env:NAME`` is a variable of the environment,
``file:PATH`` the first line of a file, and ``cmd:COMMAND`` the first line that a command of this machine
prints. It is looked up when it is first needed. A secret that begins like one of these itself
is written as ``pass:SECRET``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shlex
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BeforeValidator, SecretStr

from .errors import SecretNotFound

NAMES = frozenset({"password", "passphrase", "sudo_password", "su_password", "pkcs11_pin"})
"""The options whose values are secret."""

MASK = "**********"

SHORTEST = 4
"""Characters of a secret that is looked for in log entries; a shorter one would be found everywhere."""

PATIENCE = 60.0
"""Seconds that a command has to print a secret."""


def _conceal(value: Any) -> SecretStr | None:
    if isinstance(value, str):
        return SecretStr(value)
    if value is None or isinstance(value, SecretStr):
        return value
    raise ValueError("Input should be a valid string")


Secret = Annotated[str | SecretStr | None, BeforeValidator(_conceal)]
"""A secret: given as text, kept as a ``SecretStr``, masked wherever it is shown."""


class Plain(str):
    """A secret in the clear, on its way to where it is sent: a traceback that shows values shows a mask."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(MASK)


class PlainBytes(bytes):
    """The same in bytes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(MASK.encode())


def reveal(value: Any) -> Any:
    """Give the plain value of a secret, or of those in a list, for the one place that must send it."""
    if isinstance(value, list | tuple):
        return type(value)(map(reveal, value))
    if not isinstance(value, SecretStr):
        return value
    plain = value.get_secret_value()
    if not is_reference(plain):
        _known.add(plain)
    return Plain(plain)


def concealed(name: str, value: Any) -> Any:
    """Give the value of an option, a ``SecretStr`` where it is secret: by its name, or as the text of a private key."""
    if isinstance(value, list | tuple):
        return type(value)(concealed(name, each) for each in value)
    is_secret = isinstance(value, str) and (name in NAMES or "PRIVATE KEY-----" in value)
    return SecretStr(value) if is_secret else value


def is_reference(text: str) -> bool:
    """Whether a secret is a reference, or marked as none."""
    return text.startswith((*_SOURCES, "pass:"))


def resolve(text: str) -> Plain:
    """Give the secret that *text* is or refers to; it may block while a command runs.

    Raises:
        SecretNotFound: It is not where the reference says.
    """
    kind, colon, rest = text.partition(":")
    if colon and f"{kind}:" in _SOURCES:
        text = _SOURCES[f"{kind}:"](rest)
        if not text:
            raise SecretNotFound(f"the secret {kind}:{rest}: it is empty")
    elif colon and kind == "pass":
        text = rest
    _known.add(text)
    return Plain(text)


class LookUp:
    """Looks secrets up, each reference once."""

    def __init__(self) -> None:
        self._found: dict[str, asyncio.Task[SecretStr]] = {}  # asyncio shows what tasks return

    async def get(self, secret: SecretStr | str | None) -> str | None:
        """Give the plain secret, wherever it is kept; a command that prints it does not hold up other tasks.

        Raises:
            SecretNotFound: It is not where the reference says.
        """
        if secret is None:
            return None
        text = secret.get_secret_value() if isinstance(secret, SecretStr) else secret
        if not is_reference(text):
            return resolve(text)
        if text not in self._found:
            self._found[text] = asyncio.create_task(asyncio.to_thread(_looked_up, text))
            self._found[text].add_done_callback(_heard)
        try:
            return Plain((await asyncio.shield(self._found[text])).get_secret_value())
        except SecretNotFound as error:
            raise SecretNotFound(error.detail) from None  # each host has an exception of its own


def _looked_up(text: str) -> SecretStr:
    return SecretStr(resolve(text))


def _heard(task: asyncio.Task[SecretStr]) -> None:
    """Take note of a failure, of which those were to hear who have been cancelled meanwhile."""
    if not task.cancelled():
        task.exception()


def _from_environment(name: str) -> str:
    if name not in os.environ:
        raise SecretNotFound(f"the secret env:{name}: there is no such variable in the environment")
    return os.environ[name]


def _from_file(path: str) -> str:
    try:
        return _first_line(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise SecretNotFound(f"the secret file:{path}: {reason}") from None


def _from_command(command: str) -> str:
    try:
        done = subprocess.run(  # noqa: S602 - the operator's own command, as in the inventory
            command, shell=True, check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE
        )
        return _first_line(done.stdout.decode())
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="backslashreplace").rstrip().rpartition("\n")[2]
        ending = f"exit status {error.returncode}" if error.returncode >= 0 else f"signal {-error.returncode}"
        raise SecretNotFound(f"the secret cmd:{command}: {ending}" + (f": {said}" if said else "")) from None
    except subprocess.TimeoutExpired:
        raise SecretNotFound(f"the secret cmd:{command}: it did not end within {PATIENCE:g} s") from None
    except (OSError, ValueError):
        raise SecretNotFound(f"the secret cmd:{command}: it cannot be run, or prints no UTF-8 text") from None


def _first_line(text: str) -> str:
    return text.partition("\n")[0].removesuffix("\r")


_SOURCES: Mapping[str, Callable[[str], str]] = {
    "env:": _from_environment,
    "file:": _from_file,
    "cmd:": _from_command,
}


class _Known:
    """The secrets that were used, so that they can be masked where they should not have got to."""

    def __init__(self) -> None:
        self._secrets: set[str] = set()
        self._spellings: set[str] = set()
        self._longest_first: list[str] = []

    def add(self, secret: str) -> None:
        """Remember a secret, in all the ways in which it may be written."""
        if len(secret) >= SHORTEST and secret not in self._secrets:
            self._spellings.update((secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], shlex.quote(secret)))
            self._secrets.add(secret)

    def spellings(self) -> list[str]:
        """Give all that is to be masked, the longest first: one secret may be part of another."""
        # Other threads look secrets up meanwhile. None is ever forgotten: as many as there are is all of them.
        found = self._longest_first
        if len(found) != len(self._spellings):
            found = self._longest_first = sorted(self._spellings, key=len, reverse=True)
        return found


_known = _Known()


def scrub(text: str) -> str:
    """Mask the secrets in *text* that were used in this process."""
    for secret in _known.spellings():
        if secret in text:
            text = text.replace(secret, MASK)
    return text


class Scrubber(logging.Filter):
    """Masks in log entries the secrets that were used in this process."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let the entry pass, without secrets."""
        packet = getattr(record, "packet", None)  # asyncssh dumps packets at its debug level 3
        if isinstance(packet, bytes) and any(
            secret.encode("utf-8", "replace") in packet for secret in _known.spellings()
        ):
            record.packet = b""
            record.msg, record.args = f"{str(record.msg).partition(chr(10))[0]} {MASK}", None
        try:
            text = record.getMessage()
        except Exception:  # whatever the arguments do: logging is to go on, without them
            record.msg, record.args = scrub(f"{record.msg} {record.args}"), None
            return True
        if (clean := scrub(text)) != text:
            record.msg, record.args = clean, None
        if record.exc_info and not record.exc_text:
            trace = logging.Formatter().formatException(record.exc_info)
            if (clean := scrub(trace)) != trace:
                record.exc_text = clean
        return True


def masked(options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Give the *options* as they may be shown."""
    for name, value in options.items():
        hidden = value is not None and (name in NAMES or "PRIVATE KEY" in str(value))
        yield name, MASK if hidden else value


class Options(dict[str, Any]):
    """Options as given, secrets as ``SecretStr``: they do not show."""

    def __init__(self, options: Mapping[str, Any] = MappingProxyType({})) -> None:
        super().__init__({name: concealed(name, value) for name, value in options.items()})

    def __repr__(self) -> str:
        return repr(dict(masked(self)))

    __str__ = __repr__
