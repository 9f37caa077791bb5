"""An open file on a host, and the attributes of files as SFTP has them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from typing import Any, Protocol, TypeVar

import asyncssh

from ..core.errors import HostError, SFTPError
from ..core.files import Attributes, Times, printable

T = TypeVar("T")

NOT_BELIEVED: Any = {"kind": "SFTPBadMessage", "outcome": "unknown"}
"""What the failures have that a hostile host may have made."""


class Wait(Protocol):
    """Waits for a request, and translates its failure."""

    async def __call__(self, request: Awaitable[T], *paths: bytes, needs: int = 0) -> T:
        """Wait."""


class SftpFile:
    """An open file on a host; see :class:`reemote.core.files.File`."""

    def __init__(self, opened: asyncssh.SFTPClientFile, name: bytes, wait: Wait) -> None:
        self.opened = opened
        self._name = name
        self._wait = wait

    async def ask(self, request: Awaitable[T], *, needs: int = 0) -> T:
        """Wait for a request; *needs* are the bytes of disk that it takes."""
        return await self._wait(request, self._name, needs=needs)

    async def read(self, size: int, offset: int) -> bytes:
        """Read; a host may answer with less than was asked for."""
        data = b""
        while len(data) < size:
            more: bytes = await self.ask(self.opened.read(size - len(data), offset + len(data)))
            if len(more) > size - len(data):
                raise SFTPError(f"the host sent more of {printable(self._name)} than was asked for", **NOT_BELIEVED)
            if not more:
                break
            data = data + more if data else more
        return data

    async def write(self, data: bytes, offset: int) -> None:
        """Write."""
        await self.ask(self.opened.write(data, offset), needs=len(data))

    async def data(self, size: int) -> AsyncIterator[tuple[int, int]]:
        """Give the parts that hold data, where the host can tell."""
        ranges, end = self.opened.request_ranges(0, size), 0
        while (found := await self.ask(anext(ranges, None))) is not None:
            offset, length = found
            if offset < end or length <= 0 or offset + length > size:
                raise SFTPError(f"the host sent a wrong map of {printable(self._name)}", **NOT_BELIEVED)
            end = offset + length
            yield offset, length

    async def stat(self) -> Attributes:
        """Ask for the attributes."""
        return attributes_of(await self.ask(self.opened.stat()))

    async def set(
        self,
        *,
        permissions: int | None = None,
        owner: tuple[int, int] | None = None,
        times: Times | None = None,
        size: int | None = None,
    ) -> None:
        """Set attributes."""
        for each in settings(permissions, owner, times, size):
            await self.ask(self.opened.setstat(each))

    async def sync(self) -> None:
        """Wait for the disk, where the host has the extension ``fsync@openssh.com``."""
        try:
            await self.ask(self.opened.fsync())
        except SFTPError as error:
            if error.kind != "SFTPOpUnsupported":
                raise

    async def close(self, *, quietly: bool = False) -> None:
        """Close; *quietly* where another failure is under way."""
        try:
            await self.ask(self.opened.close())
        except HostError:
            if not quietly:
                raise


def attributes_of(found: asyncssh.SFTPAttrs) -> Attributes:
    """Read what asyncssh gives."""
    return Attributes(
        permissions=found.permissions or 0,
        size=found.size or 0,
        uid=found.uid,
        gid=found.gid,
        atime_ns=_nanoseconds(found.atime, found.atime_ns),
        mtime_ns=_nanoseconds(found.mtime, found.mtime_ns),
        crtime_ns=_nanoseconds(found.crtime, found.crtime_ns),
    )


def _nanoseconds(seconds: float | None, rest: int | None) -> int | None:
    return None if seconds is None else int(seconds) * 10**9 + (rest or 0)


def settings(
    permissions: int | None, owner: tuple[int, int] | None, times: Times | None, size: int | None
) -> list[asyncssh.SFTPAttrs]:
    """Give the requests that set attributes, in the order in which they do not undo each other."""
    found = []
    if size is not None:
        found.append(asyncssh.SFTPAttrs(size=size))
    if owner is not None:
        found.append(asyncssh.SFTPAttrs(uid=owner[0], gid=owner[1]))
    if permissions is not None:
        found.append(asyncssh.SFTPAttrs(permissions=permissions))
    if times is not None:
        (atime, atime_ns), (mtime, mtime_ns) = (divmod(time, 10**9) for time in times)
        found.append(asyncssh.SFTPAttrs(atime=atime, atime_ns=atime_ns, mtime=mtime, mtime_ns=mtime_ns))
    return found
