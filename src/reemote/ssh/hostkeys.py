"""Host keys: which are trusted, and what is remembered of hosts met for the first time.

Files are in the format of OpenSSH (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT").
"""

from __future__ import annotations

import fcntl
import logging
import os
import shlex
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import asyncssh
import platformdirs

from ..core.errors import HostError, HostKeyChanged, HostKeyNotVerifiable, HostKeyRevoked, InventoryError, ProtocolError
from ..core.inventory import HostKeys
from ..transfer.directories import make_directory

log = logging.getLogger("reemote")

PORT = 22
"""The port of SSH (RFC 4253, section 4); known_hosts files leave it out."""


def own_file() -> Path:
    """Give the path of the file in which Reemote remembers hosts; it may not exist."""
    return platformdirs.user_data_path("reemote") / "known_hosts"


class Trust:
    """The host keys that are trusted for one set of connection options.

    Args:
        policy: What to do with a key that is not known.
        known_hosts: The option of asyncssh of that name; without it, the user's file and ours.
    """

    def __init__(self, policy: HostKeys, known_hosts: Any = ()) -> None:
        self.policy: HostKeys = "off" if known_hosts is None else policy
        self._given = known_hosts
        self._files: tuple[Path, ...] = ()
        if known_hosts == ():
            self._files = (Path("~/.ssh/known_hosts").expanduser(), own_file())
        elif isinstance(known_hosts, str | os.PathLike):
            self._files = (_existing(known_hosts),)
        elif isinstance(known_hosts, list) and known_hosts and isinstance(known_hosts[0], str | os.PathLike):
            self._files = tuple(_existing(path) for path in known_hosts)
        if self._files and policy == "accept-new" and own_file() not in self._files:
            self._files += (own_file(),)

    def known_hosts(self) -> Any:
        """Give the value of asyncssh's option ``known_hosts``."""
        if self.policy == "off":
            return None
        if isinstance(self._given, bytes):
            return _read(self._given.decode("utf-8", "replace"))
        if not self._files:
            return self._given
        return _parse(_states(self._files))

    def _known(self, host: str, address: str, port: int) -> Sequence[Any]:
        known = self.known_hosts()
        given = port if port != PORT else None
        return asyncssh.match_known_hosts(known, host, address, given) if known is not None else ((), (), ())

    def client(self) -> HostKeyClient:
        """Make the client of one connection: it notes the key that the host shows."""
        return HostKeyClient(self)

    def accepts(self, host: str, address: str, port: int) -> bool:
        """Whether a key that is not known is trusted: only that of a host of which none is known."""
        return self.policy == "accept-new" and not any(self._known(host, address, port)[:2])

    def remember(self, host: str, port: int, key: asyncssh.SSHKey) -> None:
        """Add the key of a new host to our file, which only its owner may read."""
        path = own_file()
        make_directory(path.parent)
        name = host if port == PORT else f"[{host}]:{port}"
        line = f"{name} {key.export_public_key().decode().strip()}\n"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "a+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            if line not in file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        log.info("remembered the host key of %s: %s", name, key.get_fingerprint())

    def explain(
        self, failure: HostError, client: HostKeyClient | None, inventory_name: str, host: str, port: int
    ) -> HostError:
        """Tell a changed or revoked key from an unknown one, and say what to do."""
        entry = host if port == PORT else f"[{host}]:{port}"
        name = entry if inventory_name == host else f"{inventory_name}, {entry},"
        shown = f" ({client.key.get_algorithm()} {client.key.get_fingerprint()})" if client and client.key else ""
        address = client.address if client else ""
        if self.policy == "off":
            return ProtocolError(failure.detail)
        if isinstance(failure, HostKeyRevoked):
            return HostKeyRevoked(f"the key of {name}{shown} is marked as revoked{self._where()}")
        if self._known(host, address, port)[0]:
            given = port if port != PORT else None
            files = [path for path in self._files if _parse(_states([path])).match(host, address, given)[0]]
            remedies = " and ".join(f"ssh-keygen -f {shlex.quote(str(path))} -R {shlex.quote(entry)}" for path in files)
            return HostKeyChanged(
                f"the key of {name}{shown} is not the one that is known{self._where()}: somebody may be posing as "
                f"the host. If it was set up anew, remove the old key{': ' if remedies else ''}{remedies}"
            )
        return HostKeyNotVerifiable(
            f"the key of {name}{shown} is not known{self._where()}: check it and add it there, for example with "
            f"ssh-keyscan, or set host_keys to accept-new in the host's connection to trust new hosts"
        )

    def _where(self) -> str:
        return f" in {' or '.join(map(str, self._files))}" if self._files else ""


class KnownHosts(asyncssh.SSHKnownHosts):
    """Known hosts that never lose sight of a revoked key.

    Where no key is known for a host and its port, asyncssh looks the host up without the port, and
    forgets the keys that it has just found revoked.
    """

    def match(self, host: str, addr: str, port: int | None) -> Any:
        """Find the keys of a host: those that are trusted, of authorities, revoked, and the same of X.509."""
        found = super().match(host, addr, port)
        if port is None:
            return found
        # Looked up by these texts it cannot fall back; they are how the file writes them.
        lookup = super().match
        exact = [lookup(f"[{name}]:{port}", "", None) for name in (host, addr) if name]
        revoked = {2, 4, 6}
        return tuple(
            [*keys, *(key for each in exact for key in each[index])] if index in revoked else keys
            for index, keys in enumerate(found)
        )


class HostKeyClient(asyncssh.SSHClient):
    """The client side of one connection: answers whether an unknown host key is trusted."""

    def __init__(self, trust: Trust) -> None:
        self.trust = trust
        self.key: asyncssh.SSHKey | None = None
        self.address = ""
        self.is_new = False

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """Decide on a key that is not known; asyncssh asks for unknown and changed keys alike."""
        self.key, self.address = key, addr
        self.is_new = self.trust.accepts(host, addr, port)
        return self.is_new


def _existing(path: str | os.PathLike[str]) -> Path:
    file = Path(path).expanduser()
    if not file.is_file():
        raise InventoryError(f"known_hosts: there is no file {file}")
    return file


def _states(files: Iterable[Path]) -> tuple[tuple[Path, int, int], ...]:
    return tuple((path, *_state(path)) for path in files)


def _state(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return (0, -1)
    return (status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=32)
def _parse(files: tuple[tuple[Path, int, int], ...]) -> asyncssh.SSHKnownHosts:
    """Parse known_hosts files, once for each state of them: it is slow for long files."""
    return _read("\n".join(_text(path) for path, _, size in files if size >= 0))


@lru_cache(maxsize=32)
def _read(text: str) -> asyncssh.SSHKnownHosts:
    try:
        return KnownHosts(text)
    except ValueError:
        return KnownHosts("\n".join(filter(_readable, text.splitlines())))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InventoryError(f"known_hosts: {path}: {error.strerror}") from None


def _readable(line: str) -> bool:
    """Whether asyncssh can read the line; one bad line must not cost all the others."""
    try:
        asyncssh.import_known_hosts(line)
    except ValueError as error:
        log.warning("known_hosts: a line is left out, it cannot be read: %s", error)
        return False
    return True
