"""What asyncssh and the operating system raise, translated into Reemote's errors: one table.

The order of a table's rows matters: the first row that fits is taken.
"""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Callable
from typing import NamedTuple

import asyncssh

from ..core import errors


class Row(NamedTuple):
    """One row: exceptions of these types that pass the test become this failure."""

    types: tuple[type[BaseException], ...]
    becomes: type[errors.HostError]
    test: Callable[[BaseException], bool] = lambda _: True
    attempts: int = 1
    """How many attempts to connect are made when this is what goes wrong."""


def _errnos(error: BaseException) -> set[int]:
    """Give the error numbers of *error*; asyncio folds those of several addresses into one text."""
    number = getattr(error, "errno", None)
    return {number} if number else {int(text) for text in re.findall(r"\[Errno (\d+)\]", str(error))}


def _has(*numbers: int) -> Callable[[BaseException], bool]:
    return lambda error: not _errnos(error).isdisjoint(numbers)


def _says(text: str) -> Callable[[BaseException], bool]:
    return lambda error: text in str(error)


_TRY_AGAIN = _has(getattr(socket, "EAI_AGAIN", -3))

DROPPED = 5
"""Attempts when a server drops a connection before the login, as sshd does beyond ``MaxStartups``."""

CONNECT = (
    Row((ConnectionRefusedError,), errors.ConnectionRefused),
    Row((asyncssh.ConnectionLost,), errors.ConnectTimeout, _says("Login timeout expired")),
    Row((asyncssh.ConnectionLost, ConnectionResetError, BrokenPipeError), errors.ConnectionLost, attempts=DROPPED),
    Row((asyncssh.HostKeyNotVerifiable,), errors.HostKeyRevoked, _says("revoked")),
    Row((asyncssh.HostKeyNotVerifiable,), errors.HostKeyNotVerifiable),
    # sshd has no key of the kinds that are known: its keys are not those.
    Row((asyncssh.KeyExchangeFailed,), errors.HostKeyNotVerifiable, _says("host key")),
    Row((asyncssh.PermissionDenied,), errors.PermissionDenied),
    Row((asyncssh.ProtocolError,), errors.PermissionDenied, _says("Too many authentication failures")),
    Row((asyncssh.DisconnectError, asyncssh.KeyImportError), errors.ProtocolError),
    Row((TimeoutError,), errors.ConnectTimeout),
    Row((socket.gaierror,), errors.HostNotFound, _TRY_AGAIN, attempts=2),
    Row((socket.gaierror, UnicodeError), errors.HostNotFound),
    Row((OSError,), errors.FileDescriptorsExhausted, _has(errno.EMFILE, errno.ENFILE), DROPPED),
    Row((OSError,), errors.ConnectionRefused, _has(errno.ECONNREFUSED)),
    Row((OSError,), errors.ConnectionLost, _has(errno.ECONNRESET, errno.EPIPE), attempts=DROPPED),
    Row((OSError,), errors.ConnectTimeout, _has(errno.ETIMEDOUT)),
    Row((OSError,), errors.HostUnreachable, attempts=2),
)
"""What goes wrong until the login is done. Nothing has run on the host."""

RUN = (
    Row((asyncssh.ChannelOpenError,), errors.ChannelOpenError),
    Row((asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection), errors.ConnectionLost),
    Row((asyncssh.SFTPError,), errors.SFTPError),
    Row((asyncssh.DisconnectError, OSError), errors.ConnectionLost),
)
"""What goes wrong on a connection that stands."""


def _find(table: tuple[Row, ...], error: BaseException) -> Row | None:
    return next((row for row in table if isinstance(error, row.types) and row.test(error)), None)


class ConnectAttempt(NamedTuple):
    """What became of an attempt to connect."""

    failure: errors.HostError
    attempts: int
    """How many attempts there may be, this one included."""


def connect_failure(error: BaseException, where: str, seconds: float) -> ConnectAttempt | None:
    """Translate what an attempt to connect to *where* raised; ``None`` for what is a bug of ours.

    *seconds* is the time limit that applied.
    """
    row = _find(CONNECT, error)
    if row is None:
        return None
    text = str(error) or type(error).__name__
    details = {
        errors.ConnectionRefused: f"nothing listens at {where}",
        errors.ConnectTimeout: f"{where} did not answer within {seconds:g} s",
        errors.HostNotFound: f"the name of {where} cannot be resolved: {text}",
        errors.HostUnreachable: f"no way to {where}: {text}",
        errors.ConnectionLost: f"{where} dropped the connection before the login: {text}",
        errors.PermissionDenied: f"{text} (at {where})",
    }
    detail = details.get(row.becomes, f"{where}: {text}")
    return ConnectAttempt(row.becomes(detail, outcome="not_started"), row.attempts)


_INVALID = "Bad message"
"""What OpenSSH says of an argument that the system calls invalid; asyncssh's own complaints say more."""


def run_failure(error: BaseException, outcome: errors.Outcome | None = None) -> errors.HostError | None:
    """Translate what a command or a file operation raised on a connection that stood."""
    row = _find(RUN, error)
    if row is None:
        return None
    kind = type(error).__name__ if row.becomes is errors.SFTPError else None
    if isinstance(error, asyncssh.SFTPBadMessage) and error.reason != _INVALID:
        outcome = outcome or "unknown"
    return row.becomes(str(error) or type(error).__name__, outcome=outcome, kind=kind)
