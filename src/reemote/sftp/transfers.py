"""Transfers: copy files to a host, from it, and on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from ..core.files import (
    ErrorHandler,
    Files,
    LocalPath,
    LocalPaths,
    Path,
    ProgressHandler,
    RemotePath,
    RemotePaths,
    listed,
)
from ..core.host import Host
from ..core.remote import Privileged
from ..core.response import Response
from ..transfer.copy import Options, copy
from ..transfer.local import here
from ..transfer.rehearsal import rehearse
from ..transfer.target import one_for_each


class Transfer(Privileged[None]):
    """What all transfers have: files are copied whole or not at all."""

    expands: ClassVar[bool] = False
    """Whether what is to be copied is named by patterns."""

    preserve: bool = False
    """Give the copies exactly the mode, and the times, of what they are copies of. Otherwise what is new
    gets the mode less the umask, and what is there keeps its own."""
    recurse: bool = False
    """Copy directories with all that is in them."""
    checksum: bool = False
    """Leave files alone whose content (by SHA-256) is the same, and report ``changed: false`` if all are."""
    in_place: bool = False
    """Write into files that are there, instead of replacing each as a whole."""
    progress_handler: ProgressHandler | None = None
    """Called with source path, target path, bytes copied and bytes in all after each block of a file."""
    error_handler: ErrorHandler | None = None
    """Called with what went wrong with one file, instead of ending the transfer there."""

    def options(self) -> Options:
        """Give what the engine of transfers asks for."""
        names = Options.__dataclass_fields__.keys() & type(self).model_fields.keys()
        return Options(**{name: getattr(self, name) for name in names})

    async def predict(self, host: Host) -> Response[None]:
        """Tell whether something would be copied."""
        quiet = self.model_copy(update={"error_handler": None})  # the first change looks like a failure
        return await rehearse(quiet.perform, host)

    async def copied(
        self, source: Files, paths: Sequence[Path] | Path, target: Files, path: Path | None
    ) -> Response[None]:
        """Copy between two file systems, and answer."""
        changed = await copy(source, listed(paths), target, path, self.options(), expand=self.expands)
        return Response(value=None, changed=changed)


class _SftpTransfer(Transfer):
    """What the transfers of this module have, besides."""

    follow_symlinks: bool = False
    """Copy what symbolic links lead to, instead of the links."""
    sparse: bool = True
    """Leave holes in files as holes; OpenSSH does not tell where they are when it copies on the host."""
    block_size: int = Field(default=-1, ge=-1)
    """Bytes of one request; -1 for as many as the host takes."""
    max_requests: int = Field(default=-1, ge=-1)
    """Requests that are under way for one file; -1 for as many as the round-trip time asks for."""


class Copy(_SftpTransfer):
    """Copy files or directories on the host to another place on it."""

    srcpaths: RemotePaths
    """What to copy: a path, or several."""
    dstpath: RemotePath
    """The copy's path, or the directory for the copies."""
    remote_only: bool = False
    """Fail where the host cannot copy by itself, rather than move the data through this process."""

    async def perform(self, host: Host) -> Response[None]:
        """Copy."""
        async with host.sftp(**self.privileges()) as files:
            return await self.copied(files, self.srcpaths, files, self.dstpath)


class Mcopy(Copy):
    """Copy the files on the host that match patterns to another place on it."""

    expands = True

    srcpaths: RemotePaths = Field(examples=[["/etc/*.conf"]])
    """What to copy: a pattern, or several."""


class Get(_SftpTransfer):
    """Copy files or directories from the host to this machine.

    Where the run has several hosts, ``{host}`` must be in the local path: it stands for the host's name.
    """

    remotepaths: RemotePaths
    """What to copy: a path on the host, or several."""
    localpath: LocalPath | None = None
    """The copy's path, or the directory for the copies; by default the current directory."""

    async def perform(self, host: Host) -> Response[None]:
        """Copy."""
        local = one_for_each(self.localpath, host.context.host, self.group)
        async with host.sftp(**self.privileges()) as files:
            return await self.copied(files, self.remotepaths, here.get(), local)


class Mget(Get):
    """Copy the host's files that match patterns to this machine.

    Where the run has several hosts, ``{host}`` must be in the local path: it stands for the host's name.
    """

    expands = True

    remotepaths: RemotePaths = Field(examples=[["/var/log/*.log"]])
    """What to copy: a pattern, or several."""


class Put(_SftpTransfer):
    """Copy files or directories from this machine to the host.

    A file is written beside its place under a temporary name, and renamed when it is whole. It keeps
    the owner and the mode of what it replaces.
    """

    route = "put/"

    localpaths: LocalPaths
    """What to copy: a path on this machine, or several."""
    remotepath: RemotePath | None = None
    """The copy's path, or the directory for the copies; by default where logins start."""

    async def perform(self, host: Host) -> Response[None]:
        """Copy."""
        async with host.sftp(**self.privileges()) as files:
            return await self.copied(here.get(), self.localpaths, files, self.remotepath)


class Mput(Put):
    """Copy this machine's files that match patterns to the host."""

    route = "mput"
    expands = True

    localpaths: LocalPaths = Field(examples=[["*.conf"]])
    """What to copy: a pattern, or several."""
