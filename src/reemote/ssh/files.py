"""A host's files over SFTP, with commands of the host where they save round trips."""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Protocol, Self, TypeVar

import asyncssh

from ..core.errors import ConnectionLost, HostError, NoSpaceLeft, SFTPError
from ..core.files import (
    Attributes,
    ClientInfo,
    Entry,
    FileSystem,
    Mode,
    Node,
    Path,
    Times,
    encoded,
    printable,
)
from ..core.response import Completed
from ..transfer.patterns import glob
from ..transfer.pump import digest
from .errors import run_failure
from .opened import NOT_BELIEVED, SftpFile, attributes_of, settings
from .probes import Probes
from .shared import SftpSession

T = TypeVar("T")

MOST_NAMES = 1_000_000
"""Names that the listings for one operation may have; a host that sends more is not believed."""

LONGEST_PATH = 4096
"""Bytes of a path (PATH_MAX of Linux); a directory that is deeper has no end."""

BLOCK = 255 * 1024
"""Bytes of one request: what OpenSSH takes. Others take more, which is no faster and needs more memory."""

SMALLEST_BLOCK = 16 * 1024
"""Bytes that every server takes in one request, also one that does not tell its limits."""

_MODES = {"read": "rb", "write": "wb", "append": "ab", "create": "xb", "update": "r+b"}

_SMALL = 1
"""Bytes that an empty file or directory takes, at the least."""

_FULL = ("SFTPNoSpaceOnFilesystem", "SFTPQuotaExceeded")


class Session(Protocol):
    """What the files of a host need of it: its connection, and commands."""

    def sftp(self) -> AbstractAsyncContextManager[SftpSession]:
        """Give an SFTP session on a connection that stands."""

    async def run(self, command: str, *, stdin: Any = None) -> Completed:
        """Run a command."""


class Directory:
    """The directory that relative paths are relative to: one for each host and run."""

    path: bytes | None = None
    """Absolute; ``None`` for where logins start."""


class SftpFiles:
    """The files of a host, for one user of them; see :class:`reemote.core.files.Files`."""

    is_remote = True

    def __init__(self, session: Session, directory: Directory) -> None:
        self._session = session
        self._directory = directory
        self._stack = AsyncExitStack()
        self._sftp: SftpSession | None = None
        self._probes = Probes(session.run)
        self._names = 0
        self._limits: tuple[int, int] = (SMALLEST_BLOCK, SMALLEST_BLOCK)

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.release()

    async def _open(self) -> asyncssh.SFTPClient:
        if self._sftp is None:
            self._sftp = await self._stack.enter_async_context(self._session.sftp())
            limits = self._sftp.client.limits
            self._limits = (limits.max_read_len or SMALLEST_BLOCK, limits.max_write_len or SMALLEST_BLOCK)
        return self._sftp.client

    async def release(self) -> None:
        """Let go of the session, so that a command may have its place; it is taken again when needed."""
        self._sftp = None
        await self._stack.aclose()

    async def _ask(self, request: Callable[[asyncssh.SFTPClient], Awaitable[T]], *paths: bytes, needs: int = 0) -> T:
        """Make a request; once more where the session turns out to have died before.

        Args:
            request: Makes it.
            paths: What it is about, for messages; the last is what it changes.
            needs: Bytes of disk that it takes.
        """
        client = await self._open()
        try:
            return await self.wait(request(client), *paths, needs=needs)
        except ConnectionLost as error:
            if error.outcome != "not_started":
                raise
        await self._forget()
        client = await self._open()
        return await self.wait(request(client), *paths, needs=needs)

    async def wait(self, request: Awaitable[T], *paths: bytes, needs: int = 0) -> T:
        """Wait for a request, and translate its failure."""
        try:
            return await request
        except asyncio.CancelledError:
            if self._sftp is not None:
                self._sftp.retire()  # who does not wait for an answer does not know what the host still does
            raise
        except (asyncssh.Error, OSError) as error:
            raise await self.failure(error, *paths, needs=needs) from error

    async def _forget(self) -> None:
        """Have the next request open a session of its own."""
        if self._sftp is not None:
            self._sftp.retire()
        await self.release()

    async def failure(self, error: Exception, *paths: bytes, needs: int = 0) -> HostError:
        """Translate what a request raised, and name the paths."""
        failure = run_failure(error)
        if failure is None:
            raise error
        if isinstance(error, asyncssh.SFTPNoConnection):
            return ConnectionLost("the connection was lost, nothing was sent", outcome="not_started")
        if isinstance(failure, ConnectionLost):
            await self._forget()
            failure.detail = f"the connection was lost while the host was working on {_names(paths)}"
            return failure
        if failure.kind in _FULL or (failure.kind == "SFTPFailure" and needs and await self._is_full(paths[-1], needs)):
            return NoSpaceLeft(f"no space is left on the host for {printable(paths[-1])}")
        failure.detail = f"{failure.detail}: {_names(paths)}"
        return failure

    async def _is_full(self, path: bytes, needs: int) -> bool:
        """Whether the file system is full: SFTP has no word for that (draft-ietf-secsh-filexfer-02, section 7)."""
        if self._sftp is None:
            return False
        try:
            system = await self._sftp.client.statvfs(posixpath.dirname(path) or b".")
        except (asyncssh.Error, OSError):
            return False
        no_blocks = system.bavail * (system.frsize or system.bsize) < needs
        return no_blocks or (system.files > 0 and system.favail == 0)

    # Paths

    @property
    def block(self) -> int:
        """The most bytes of one read or write that the host takes, and that are worth it."""
        return min(*self._limits, BLOCK)

    def absolute(self, path: Path) -> bytes:
        """Put the directory of the run before a relative path."""
        name = encoded(path)
        return name if self._directory.path is None else posixpath.join(self._directory.path, name)

    async def chdir(self, path: Path) -> None:
        """Let relative paths of the run be relative to another directory."""
        place = await self.realpath(path)
        if not (await self.stat(place)).is_directory:
            raise SFTPError(f"{printable(path)} is not a directory", kind="SFTPFailure")
        self._directory.path = place

    async def realpath(self, path: Path) -> bytes:
        """Give the absolute path, links resolved."""
        name = self.absolute(path)
        return bytes(await self._ask(lambda client: client.realpath(name), name))

    async def glob(self, patterns: Sequence[Path]) -> Sequence[bytes]:
        """Give the paths that match, sorted."""
        return await glob(self, patterns)

    # Questions

    async def lookup(self, path: Path, *, follow: bool = True) -> Attributes | None:
        """Ask for attributes; ``None`` where nothing is there."""
        name = self.absolute(path)

        async def ask(client: asyncssh.SFTPClient) -> asyncssh.SFTPAttrs | None:
            try:
                return await client.stat(name) if follow else await client.lstat(name)
            except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath):
                return None

        found = await self._ask(ask, name)
        return None if found is None else attributes_of(found)

    async def stat(self, path: Path, *, follow: bool = True) -> Attributes:
        """Ask for attributes."""
        name = self.absolute(path)
        ask: Callable[[asyncssh.SFTPClient], Awaitable[asyncssh.SFTPAttrs]]
        ask = (lambda client: client.stat(name)) if follow else (lambda client: client.lstat(name))
        return attributes_of(await self._ask(ask, name))

    async def list(self, path: Path) -> list[Entry]:
        """List a directory."""
        name = self.absolute(path)
        if len(name) > LONGEST_PATH:
            raise SFTPError(f"a path of {len(name)} bytes is too long", **NOT_BELIEVED)

        async def scan(client: asyncssh.SFTPClient) -> list[Entry]:
            found: list[Entry] = []
            async for each in client.scandir(name):
                entry = encoded(each.filename)
                if entry in (b".", b".."):
                    continue
                if not entry or b"/" in entry or b"\0" in entry:
                    raise asyncssh.SFTPBadMessage(f"the host sent a name that no file can have: {printable(entry)!r}")
                self._names += 1
                if self._names > MOST_NAMES:
                    raise asyncssh.SFTPBadMessage(f"the host has sent {MOST_NAMES} names, and there are more")
                found.append(Entry(entry, attributes_of(each.attrs), printable(each.longname or b"")))
            return found

        return await self._ask(scan, name)

    async def readlink(self, path: Path) -> bytes:
        """Tell where a link leads."""
        name = self.absolute(path)
        leads_to = encoded(await self._ask(lambda client: client.readlink(name), name))
        if not leads_to or b"\0" in leads_to:
            raise SFTPError(f"the host says that {printable(path)} leads nowhere", **NOT_BELIEVED)
        return leads_to

    async def statvfs(self, path: Path) -> FileSystem:
        """Ask for the file system that a path is on."""
        name = self.absolute(path)
        found = await self._ask(lambda client: client.statvfs(name), name)
        names = {"flag": "flags"}  # asyncssh's name for it
        return FileSystem({key: getattr(found, names.get(key, key)) for key in FileSystem.__annotations__})

    async def info(self) -> ClientInfo:
        """Tell what the server says of itself."""
        client = await self._open()
        numbers = {key: getattr(client.limits, key) for key in ("max_packet_len", "max_read_len", "max_write_len")}
        return ClientInfo(
            version=client.version,
            **numbers,
            max_open_handles=client.limits.max_open_handles,
            supports_remote_copy=client.supports_remote_copy,
        )

    # Changes

    async def mkdir(self, path: Path, permissions: int | None = None) -> None:
        """Make a directory."""
        name, attributes = self.absolute(path), asyncssh.SFTPAttrs(permissions=permissions)
        await self._ask(lambda client: client.mkdir(name, attributes), name, needs=_SMALL)

    async def symlink(self, target: Path, path: Path) -> None:
        """Make a link."""
        leads_to, name = encoded(target), self.absolute(path)
        await self._ask(lambda client: client.symlink(leads_to, name), name, needs=_SMALL)

    async def link(self, old: Path, new: Path) -> None:
        """Make another name of a file."""
        source, name = self.absolute(old), self.absolute(new)
        await self._ask(lambda client: client.link(source, name), source, name)

    async def rename(self, old: Path, new: Path) -> None:
        """Rename to a name that is free."""
        source, name = self.absolute(old), self.absolute(new)
        await self._ask(lambda client: client.rename(source, name), source, name)

    async def replace(self, old: Path, new: Path) -> None:
        """Rename in place of what is there; on a host without that (it is an extension) it makes way first."""
        source, name = self.absolute(old), self.absolute(new)
        try:
            await self._ask(lambda client: client.posix_rename(source, name), source, name)
        except SFTPError as error:
            if error.kind != "SFTPOpUnsupported":
                raise
            await self._make_way(source, name)

    async def _make_way(self, source: bytes, name: bytes) -> None:
        """Rename what is there, then the new file, and only then remove the old one: it must not be lost."""
        if await self.lookup(name, follow=False) is None:
            await self.rename(source, name)
            return
        old = source + b".old"
        await self.rename(name, old)
        try:
            await self.rename(source, name)
        except BaseException:
            await self.rename(old, name)
            raise
        await self.remove(old)

    async def remove(self, path: Path) -> None:
        """Remove a file or a link."""
        name = self.absolute(path)
        await self._ask(lambda client: client.remove(name), name)

    async def rmdir(self, path: Path) -> None:
        """Remove an empty directory."""
        name = self.absolute(path)
        await self._ask(lambda client: client.rmdir(name), name)

    async def set(
        self,
        path: Path,
        *,
        follow: bool = True,
        permissions: int | None = None,
        owner: tuple[int, int] | None = None,
        times: Times | None = None,
        size: int | None = None,
    ) -> None:
        """Set attributes, the owner first: a change of owner clears set-user-id bits."""
        name = self.absolute(path)
        if not follow and not (await self.stat(name, follow=False)).is_link:
            follow = True  # most servers can set attributes only so
        for attributes in settings(permissions, owner, times, size):
            await self._ask(
                lambda client, attributes=attributes: client.setstat(  # type: ignore[misc]
                    name, attributes, follow_symlinks=follow
                ),
                name,
            )

    # Content

    @asynccontextmanager
    async def open(self, path: Path, mode: Mode, permissions: int | None = None) -> AsyncIterator[SftpFile]:
        """Open a file."""
        name, attributes = self.absolute(path), asyncssh.SFTPAttrs(permissions=permissions)
        opened = await self._ask(
            lambda client: client.open(name, _MODES[mode], attributes, encoding=None, block_size=0),
            name,
            needs=0 if mode == "read" else _SMALL,
        )
        file = SftpFile(opened, name, self.wait)
        try:
            yield file
        except asyncio.CancelledError:
            if self._sftp is not None:
                self._sftp.retire()  # its end closes the file; there may be nobody left who would hear an answer
            raise
        except BaseException:
            await file.close(quietly=True)
            raise
        await file.close()

    async def copy_within(self, source: Any, target: Any, size: int, offset: int = 0) -> bool:
        """Have the host copy, where it has the extension ``copy-data``."""
        client = await self._open()
        if not client.supports_remote_copy:
            return False
        copying = client.remote_copy(source.opened, target.opened, offset, size, offset)
        await target.ask(copying, needs=size)
        return True

    # What commands of the host do in one round trip

    async def tree(self, path: Path) -> dict[bytes, Node] | None:
        """List all that is below a directory, where the host can by itself."""
        place = await self.realpath(path)
        await self.release()
        return await self._probes.tree(place)

    async def digests(self, paths: Sequence[Path]) -> Sequence[bytes | None]:
        """Give SHA-256 digests, of what is read where the host cannot give them by itself."""
        start = await self.realpath(b".")
        names = [posixpath.join(start, self.absolute(path)) for path in paths]
        await self.release()
        found = await self._probes.digests(names)
        return [found.get(name) or await self._read_digest(name) for name in names]

    async def _read_digest(self, name: bytes) -> bytes | None:
        try:
            async with self.open(name, "read") as file:
                return await digest(file, self.block, (await file.stat()).size)
        except SFTPError:
            return None

    async def unpack(self, path: Path, archive: Callable[[], AsyncIterator[bytes]]) -> bool:
        """Unpack an archive by the host's ``tar``."""
        place = await self.realpath(path)
        await self.release()
        completed = await self._probes.unpack(place, archive())
        if completed is None:
            return False
        if failure := completed.failure():
            await self._open()
            if await self._is_full(posixpath.join(place, b"."), _SMALL):
                raise NoSpaceLeft(f"no space is left on the host for {printable(path)}", completed=completed)
            raise failure
        return True


def _names(paths: Sequence[bytes]) -> str:
    return " and ".join(map(printable, paths)) or "its files"
