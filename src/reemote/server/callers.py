"""Who may call: the user who runs the server, and whoever has its token."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import ipaddress
import os
import re
import secrets
import socket
import stat
import struct
import sys
from pathlib import Path

from ..core.errors import ReemoteError
from ..transfer.directories import make_directory

_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{32,4096}")


class TokenError(ReemoteError):
    """The token file cannot be used; the message says why."""


class Token:
    """The token of a server, in a file that only its owner may read.

    The file is read, and its mode looked at, for each request that bears a token: what is changed
    there counts at once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def value(self) -> str:
        """Give the token; make one where there is none.

        Raises:
            TokenError: The file can be read by others, is no file, or holds no token.
        """
        try:
            # Not blocking: a named pipe would hold us up.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return self.rotate()
        except OSError as error:
            reason = "is a symbolic link" if self.path.is_symlink() else f"cannot be read: {error.strerror}"
            raise TokenError(f"{self.path} {reason}") from None
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, descriptor)
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise TokenError(f"{self.path} is not a file")
            if status.st_uid not in (os.geteuid(), 0):
                raise TokenError(f"{self.path} belongs to another user, who knows the token")
            if status.st_mode & 0o077:
                raise TokenError(f"{self.path} can be read by others: chmod 600 it, and rotate the token")
            text = os.read(descriptor, 8192).decode("ascii", "replace").strip()
        if not _TOKEN.fullmatch(text):
            raise TokenError(f"{self.path} holds no token (32 characters at least): rotate it")
        return text

    def rotate(self) -> str:
        """Make a new token, in place of the old one.

        Raises:
            TokenError: The file cannot be written.
        """
        value = secrets.token_urlsafe(32)
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(8)}")
        try:
            make_directory(self.path.parent)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(value + "\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise TokenError(f"{self.path} cannot be written: {error.strerror}") from None
        return value

    def admits(self, header: str) -> str | None:
        """Give the name of the token if an ``Authorization`` header bears it (RFC 6750, section 2.1).

        The name is a digest's beginning: it tells tokens apart in the audit log, and gives none away.
        """
        scheme, _, given = header.partition(" ")
        if scheme.lower() != "bearer":
            return None
        value = self.value()
        if not hmac.compare_digest(given.strip().encode(), value.encode()):
            return None
        return hashlib.sha256(value.encode()).hexdigest()[:8]


# Peers

_ESTABLISHED = 1
_ANY = 0xFFFFFFFF
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST = 4, 20, 1
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBBI")
_ANSWER = struct.Struct("=BBBB48sIIIII")

_diagnosis_works: bool | None = None


def peer_user(client: tuple[str, int], server: tuple[str, int], tables: str | None = None) -> int | None:
    """Give the user id that owns the other end of a loopback connection; ``None`` where it cannot be known.

    Only an established connection counts, and only one that a process still holds: once its owner
    has closed it, the kernel says that it belongs to user 0.

    Args:
        client: Address and port of the other end.
        server: Those of ours.
        tables: Where to read the kernel's tables, instead of asking it for the one connection.
    """
    global _diagnosis_works  # noqa: PLW0603 - whether this kernel answers, found out once
    if not sys.platform.startswith("linux"):
        return None
    try:
        ends = ipaddress.ip_address(client[0]), ipaddress.ip_address(server[0])
    except ValueError:
        return None
    if tables is None and _diagnosis_works is not False:
        try:
            user = _asked((ends[0], client[1]), (ends[1], server[1]))
        except LookupError:
            if _diagnosis_works:
                return None
        except OSError:
            _diagnosis_works = False
        else:
            _diagnosis_works = True
            return _known(user)
    return _known(_looked_up((ends[0], client[1]), (ends[1], server[1]), tables or "/proc/net"))


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_End = tuple[_Address, int]


def _asked(client: _End, server: _End) -> int | None:
    """Ask the kernel for one connection (sock_diag(7)): the tables take milliseconds where they are long.

    Raises:
        LookupError: It knows of none, or does not know how to look.
        OSError: It does not answer.
    """
    family = socket.AF_INET if client[0].version == 4 else socket.AF_INET6
    ports = struct.pack(">HH", client[1], server[1])
    addresses = b"".join(end[0].packed.ljust(16, b"\0") for end in (client, server))
    identity = ports + addresses + struct.pack("=III", 0, _ANY, _ANY)
    body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, _ANY) + identity
    header = _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as asker:
        asker.setblocking(False)  # the kernel answers while we ask
        asker.send(header + body)
        answer = asker.recv(4096)
    if len(answer) < _HEADER.size or _HEADER.unpack_from(answer)[1] != _SOCK_DIAG_BY_FAMILY:
        raise LookupError
    _, state, _, _, found, _, _, _, user, inode = _ANSWER.unpack_from(answer, _HEADER.size)
    # Where there is no such connection, the kernel may answer with the socket that listens.
    if found[:4] != ports or state != _ESTABLISHED or inode == 0:
        return None
    return int(user)


def _looked_up(client: _End, server: _End, tables: str) -> int | None:
    """Look a connection up in ``tcp`` and ``tcp6`` of proc(5)."""
    clients, servers = _written(client), _written(server)
    users: set[int | None] = set()
    for name in ("tcp", "tcp6"):
        try:
            with open(f"{tables}/{name}", encoding="ascii") as table:  # noqa: PTH123 - read at each request
                next(table, "")
                for line in table:
                    fields = line.split()
                    if fields[1] in clients and fields[2] in servers:
                        is_held = int(fields[3], 16) == _ESTABLISHED and fields[9] != "0"
                        users.add(int(fields[7]) if is_held else None)
        except OSError:
            continue
    return users.pop() if len(users) == 1 else None


def _written(end: _End) -> tuple[str, str]:
    """Write an address as the tables do: words of the machine's byte order; an IPv4 one as ``tcp6`` does, too."""
    packed = end[0].packed
    mapped = packed if len(packed) == 16 else bytes(10) + b"\xff\xff" + packed
    return f"{_words(packed)}:{end[1]:04X}", f"{_words(mapped)}:{end[1]:04X}"


def _words(packed: bytes) -> str:
    words = (packed[start : start + 4] for start in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)


def _known(user: int | None) -> int | None:
    """Leave out the id that stands for all users whom a user namespace does not know."""
    return None if user == _overflow_user() else user


@functools.cache
def _overflow_user() -> int:
    try:
        return int(Path("/proc/sys/kernel/overflowuid").read_text())
    except (OSError, ValueError):
        return 65534
