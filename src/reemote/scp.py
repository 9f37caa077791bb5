"""Scp: copy files between this machine and hosts, and from host to host."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace

from pydantic import Field

from .core.files import Files, LocalPath, LocalPaths, Path, RemotePath, RemotePaths, encoded, listed
from .core.host import Host
from .core.response import Response
from .sftp.transfers import Transfer
from .transfer.copy import Options
from .transfer.local import here
from .transfer.patterns import is_pattern
from .transfer.target import one_for_each


class _Transfer(Transfer):
    """What all of these have. As scp(1) does today, they use the SFTP protocol."""

    block_size: int = Field(default=16384, ge=1)
    """Bytes of one request, at the least: more are asked for where the host allows it."""

    def options(self) -> Options:
        """Follow links, and ask for as much as the host allows."""
        return replace(super().options(), follow_symlinks=True, block_size=-1)

    async def copied(
        self, source: Files, paths: Sequence[Path] | Path, target: Files, path: Path | None
    ) -> Response[None]:
        """Copy what patterns match, too."""
        named = [each for pattern in listed(paths) for each in await _expanded(source, pattern)]
        return await super().copied(source, named, target, path)


async def _expanded(source: Files, pattern: Path) -> Sequence[Path]:
    """Read a path as a pattern, unless there is a file of that very name."""
    if not is_pattern(encoded(pattern)):
        return [pattern]
    if await source.lookup(pattern, follow=False) is not None:
        return [pattern]
    return await source.glob([pattern])


class Upload(_Transfer):
    """Copy files or directories from this machine to the host.

    A file is written beside its place under a temporary name, and renamed when it is whole. It keeps
    the owner and the mode of what it replaces; a new one gets the mode of the file here, less the umask.
    """

    srcpaths: LocalPaths
    """What to copy: a path on this machine, or several; ``*``, ``?`` and ``[]`` match names."""
    dstpath: RemotePath
    """The copy's path on the host, or the directory for the copies."""

    async def perform(self, host: Host) -> Response[None]:
        """Copy."""
        async with host.sftp(**self.privileges()) as files:
            return await self.copied(here.get(), self.srcpaths, files, self.dstpath)


class Download(_Transfer):
    """Copy files or directories from the host to this machine.

    Where the run has several hosts, ``{host}`` must be in the local path: it stands for the host's name.
    """

    srcpaths: RemotePaths
    """What to copy: a path on the host, or several; ``*``, ``?`` and ``[]`` match names."""
    dstpath: LocalPath | None = None
    """The copy's path here, or the directory for the copies; by default the current directory."""

    async def perform(self, host: Host) -> Response[None]:
        """Copy."""
        local = one_for_each(self.dstpath, host.context.host, self.group)
        async with host.sftp(**self.privileges()) as files:
            return await self.copied(files, self.srcpaths, here.get(), local)


class Copy(_Transfer):
    """Copy files or directories from the host to another host of the inventory.

    The data passes through this process and is not stored here. Where the run has several hosts,
    ``{host}`` must be in the path: it stands for the name of the host that is copied from.
    """

    srcpaths: RemotePaths
    """What to copy: a path on the host, or several; ``*``, ``?`` and ``[]`` match names."""
    dstpath: RemotePath | None = None
    """The copy's path on the other host, or the directory for the copies; by default where logins start."""
    dsthost: str | None = None
    """The host to copy to, as the inventory calls it; by default the host itself."""

    async def perform(self, host: Host) -> Response[None]:
        """Copy."""
        path = self.dstpath if self.dsthost is None else one_for_each(self.dstpath, host.context.host, self.group)
        async with AsyncExitStack() as stack:
            source = target = await stack.enter_async_context(host.sftp(**self.privileges()))
            if self.dsthost not in (None, host.context.host):
                other = await stack.enter_async_context(host.other(str(self.dsthost)))
                target = await stack.enter_async_context(other.sftp(**self.privileges()))
            return await self.copied(source, self.srcpaths, target, path)
