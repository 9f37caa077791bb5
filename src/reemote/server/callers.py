"""Who may call: the user who runs the server, and whoever has its token."""

from __future__ import annotations

import hmac
import ipaddress
import os
import secrets
import stat
import sys
from pathlib import Path

from ..core.errors import ReemoteError

_ESTABLISHED = "01"


class TokenError(ReemoteError):
    """The token file cannot be used; the message says why."""


class Token:
    """The token of a server, in a file that only its owner may read.

    Read again whenever the file changes, so that a new token counts at once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._state: tuple[int, int, int] | None = None
        self._value = ""

    def value(self) -> str:
        """Give the token; make one where there is none.

        Raises:
            TokenError: The file can be read by others, is no file, or is empty.
        """
        try:
            status = self.path.lstat()
        except FileNotFoundError:
            return self.rotate()
        except OSError as error:
            raise TokenError(f"{self.path}: {error.strerror}") from None
        state = (status.st_mtime_ns, status.st_ino, status.st_size)
        if state != self._state:
            self._value, self._state = self._read(), state
        return self._value

    def _read(self) -> str:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise TokenError(f"{self.path}: {error.strerror}") from None
        with os.fdopen(descriptor, encoding="ascii", errors="replace") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise TokenError(f"{self.path} is not a file")
            if status.st_mode & 0o077:
                raise TokenError(f"{self.path} can be read by others: chmod 600 it, and rotate the token")
            text = file.read(4096).strip()
        if len(text) < 32:
            raise TokenError(f"{self.path} holds no token: remove it, or rotate the token")
        return text

    def rotate(self) -> str:
        """Make a new token, in place of the old one.

        Raises:
            TokenError: The file cannot be written.
        """
        value = secrets.token_urlsafe(32)
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(8)}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(value + "\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise TokenError(f"{self.path} cannot be written: {error.strerror}") from None
        return value

    def admits(self, header: str) -> bool:
        """Whether an ``Authorization`` header bears the token (RFC 6750, section 2.1)."""
        scheme, _, given = header.partition(" ")
        if scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(given.strip().encode(), self.value().encode())


def peer_user(client: tuple[str, int], server: tuple[str, int], tables: str = "/proc/net") -> int | None:
    """Give the user id that owns the other end of a loopback connection; ``None`` where it cannot be known.

    Linux lists its sockets in ``/proc/net/tcp`` and ``tcp6`` (proc(5)). Only an established one
    counts: once a process has closed its socket, the kernel lists it as that of user 0.
    """
    try:
        addresses = {_hex(client), _mapped(client)}, {_hex(server), _mapped(server)}
    except ValueError:
        return None
    users = set()
    for name in ("tcp", "tcp6"):
        try:
            with open(f"{tables}/{name}", encoding="ascii") as table:  # noqa: PTH123 - read at each request
                next(table, "")
                for line in table:
                    fields = line.split()
                    if fields[1] in addresses[0] and fields[2] in addresses[1] and fields[3] == _ESTABLISHED:
                        users.add(int(fields[7]))
        except OSError:
            continue
    return users.pop() if len(users) == 1 else None


def _hex(address: tuple[str, int]) -> str:
    """Write an address as the tables do: words of the machine's byte order, in hexadecimal."""
    packed = ipaddress.ip_address(address[0]).packed
    return _words(packed) + f":{address[1]:04X}"


def _mapped(address: tuple[str, int]) -> str:
    """Write an IPv4 address as the IPv6 table does."""
    ip = ipaddress.ip_address(address[0])
    packed = ip.packed if ip.version == 6 else bytes(10) + b"\xff\xff" + ip.packed
    return _words(packed) + f":{address[1]:04X}"


def _words(packed: bytes) -> str:
    words = (packed[start : start + 4] for start in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)
