"""Changes of files that are not transfers. Each reports ``changed`` where something changed, and only there."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Self

from pydantic import Field, model_validator

from ..core.errors import HostError, SFTPError
from ..core.files import Files, RemotePath, encoded, printable
from ..core.host import Host
from ..core.operation import Effect
from ..core.remote import Privileged
from ..core.response import Response
from ..transfer.rehearsal import rehearse
from .attributes import (
    Asked,
    AttributesAsked,
    OwnerAsked,
    PermissionsAsked,
    Progress,
    TimesAsked,
    kind,
    settle,
)
from .trees import is_removable, make_directories, remove_tree, without_slash


class Change(Privileged[None]):
    """A change of files."""

    async def perform(self, host: Host) -> Response[None]:
        """Make the change, and tell whether there was one."""
        progress = Progress()
        try:
            async with host.sftp(**self.privileges()) as files:
                await self.change(files, progress)
        except HostError as error:
            if progress.changed:
                error.changed = True
            raise
        return Response(value=None, changed=progress.changed)

    async def predict(self, host: Host) -> Response[None]:
        """Tell whether there would be a change."""
        return await rehearse(self.perform, host)

    async def change(self, files: Files, progress: Progress) -> None:
        """Make the change, and note in *progress* as soon as something has changed."""
        raise NotImplementedError(f"{type(self).__name__} does not override change")


class PathChange(Change):
    """A change of one path."""

    path: RemotePath = Field(examples=["/tmp/example"])  # noqa: S108 - an example
    """The path on the host."""


class _LinkChange(PathChange):
    """A change of what is known of a path, which may be a link."""

    follow_symlinks: bool = False
    """Whether a link stands for what it leads to; few hosts can set anything of a link itself."""

    async def settle(self, files: Files, asked: Asked, progress: Progress, *, always: bool = False) -> None:
        """Look, and set what differs; *always* sets the times, too, if they are the same."""
        found = await files.stat(self.path, follow=self.follow_symlinks)
        if always:
            found = replace(found, atime_ns=None, mtime_ns=None)
        follow = self.follow_symlinks or not found.is_link
        await settle(files, self.path, asked, found, progress, follow=follow)


class Mkdir(AttributesAsked, PathChange):
    """Make a directory on the host.

    Permissions that are given are set exactly, whatever the host's umask.
    """

    async def change(self, files: Files, progress: Progress) -> None:
        """Make it, then set what the host did not set by itself."""
        await files.mkdir(self.path, self.permissions)
        progress.changed = True
        if asked := self.asked():
            await settle(files, self.path, asked, await files.stat(self.path), progress)


class Setstat(AttributesAsked, PathChange):
    """Set owner, permissions and times of a file on the host.

    A link stands for what it leads to.
    """

    @model_validator(mode="after")
    def _check_any(self) -> Self:
        if not self.asked():
            raise ValueError("at least one of permissions, uid, gid, atime and mtime is needed")
        return self

    async def change(self, files: Files, progress: Progress) -> None:
        """Look, and set what differs."""
        await settle(files, self.path, self.asked(), await files.stat(self.path), progress)


class Makedirs(AttributesAsked, PathChange):
    """Make a directory on the host, with those above it that are missing.

    Owner, permissions and times are set for each directory that is made, and for no other.
    """

    exist_ok: bool = False
    """Whether the directory may be there already; it then stays as it is."""

    async def change(self, files: Files, progress: Progress) -> None:
        """Make what is missing."""
        await make_directories(files, self.path, self.asked(), progress, exist_ok=self.exist_ok)


class Rmdir(PathChange):
    """Remove an empty directory from the host."""

    async def change(self, files: Files, progress: Progress) -> None:
        """Remove it."""
        await files.rmdir(self.path)
        progress.changed = True


class Rmtree(PathChange):
    """Remove a directory from the host, with all that is in it.

    Links in it are removed, and not followed. When something cannot be removed, the response tells
    what, and the rest stays.
    """

    @model_validator(mode="after")
    def _check_path(self) -> Self:
        if not is_removable(self.path):
            raise ValueError("the root, '.' and '..' cannot be removed")
        return self

    async def change(self, files: Files, progress: Progress) -> None:
        """Remove it from below."""
        found = await files.stat(without_slash(self.path), follow=False)
        if not found.is_directory:
            raise SFTPError(f"{printable(self.path)} is {kind(found)}, not a directory", kind="SFTPFailure")
        await remove_tree(files, self.path, progress)


class Chmod(PermissionsAsked, _LinkChange):
    """Set the permissions of a file on the host."""

    @model_validator(mode="after")
    def _check_any(self) -> Self:
        if self.permissions is None:
            raise ValueError("permissions are needed")
        return self

    async def change(self, files: Files, progress: Progress) -> None:
        """Look, and set what differs."""
        await self.settle(files, Asked(permissions=self.permissions), progress)


class Chown(OwnerAsked, _LinkChange):
    """Set the user and the group that own a file on the host."""

    @model_validator(mode="after")
    def _check_any(self) -> Self:
        if self.uid is None and self.gid is None:
            raise ValueError("at least one of uid and gid is needed")
        return self

    async def change(self, files: Files, progress: Progress) -> None:
        """Look, and set what differs."""
        await self.settle(files, Asked(uid=self.uid, gid=self.gid), progress)


class Utime(TimesAsked, _LinkChange):
    """Set the times of a file on the host, to now where none are given."""

    async def change(self, files: Files, progress: Progress) -> None:
        """Look, and set what differs."""
        times, now = self.times(), time.time_ns()
        await self.settle(files, Asked(times=times or (now, now)), progress, always=times is None)


class Chdir(PathChange):
    """Change the directory that relative remote paths lead from.

    It holds for the later file operations on the same host in the same run. Nothing changes on the host.
    """

    async def change(self, files: Files, progress: Progress) -> None:
        """Go there."""
        await files.chdir(self.path)


class Rename(Change):
    """Rename a file on the host; a new path that exists is an error."""

    oldpath: RemotePath
    """The path on the host."""
    newpath: RemotePath
    """The path that it is to have."""

    async def change(self, files: Files, progress: Progress) -> None:
        """Rename it."""
        await files.rename(self.oldpath, self.newpath)
        progress.changed = True


class Remove(PathChange):
    """Remove a file or a link from the host."""

    async def change(self, files: Files, progress: Progress) -> None:
        """Remove it."""
        await files.remove(self.path)
        progress.changed = True


class Link(Change):
    """Give a file on the host another name: make a hard link."""

    file_path: RemotePath
    """The file."""
    link_path: RemotePath
    """The path that it is to have, too."""

    async def change(self, files: Files, progress: Progress) -> None:
        """Make it."""
        await files.link(self.file_path, self.link_path)
        progress.changed = True


class Symlink(Change):
    """Make a symbolic link on the host, unless that very link is there already."""

    file_path: RemotePath
    """Where it leads, as the link is to say it: relative to the link's directory, unless absolute."""
    link_path: RemotePath
    """The path of the link."""

    async def change(self, files: Files, progress: Progress) -> None:
        """Make it; where the host refuses, look whether it is there."""
        try:
            await files.symlink(self.file_path, self.link_path)
        except SFTPError:
            if not await self._is_there(files):
                raise
        else:
            progress.changed = True

    async def _is_there(self, files: Files) -> bool:
        found = await files.lookup(self.link_path, follow=False)
        return found is not None and found.is_link and await files.readlink(self.link_path) == encoded(self.file_path)


class Unlink(Remove):
    """Remove a file or a link from the host: another name of Remove."""


class Truncate(PathChange):
    """Set the size of a file on the host: cut off its end, or add zeros."""

    size: int = Field(ge=0, le=2**63 - 1, examples=[0])
    """Bytes that it is to have."""

    async def change(self, files: Files, progress: Progress) -> None:
        """Look, and set the size if it differs."""
        await settle(files, self.path, Asked(size=self.size), await files.stat(self.path), progress)


class _Presence(PathChange):
    """Whether something is to be on the host."""

    present: bool
    """Whether it should be there."""


class Directory(AttributesAsked, _Presence):
    """Ensure that a directory is on the host, or that it is not.

    Directories above it that are missing are made like it. Of a directory that is there, what is
    asked for and differs is set. Anything else in its place is an error, and stays.
    """

    effect = Effect.ENSURES

    recurse: bool = False
    """Whether to remove all that is in it, where it should not be there."""

    @model_validator(mode="after")
    def _check_path(self) -> Self:
        if not self.present and not is_removable(self.path):
            raise ValueError("the root, '.' and '..' cannot be removed")
        return self

    async def change(self, files: Files, progress: Progress) -> None:
        """Look, then make, set or remove."""
        if not self.present:
            await self._remove(files, progress)
            return
        found = await files.lookup(self.path)
        if found is None:
            await make_directories(files, self.path, self.asked(), progress, exist_ok=True)
        elif not found.is_directory:
            raise SFTPError(f"{printable(self.path)} is {kind(found)}, not a directory", kind="SFTPFailure")
        else:
            await settle(files, self.path, self.asked(), found, progress)

    async def _remove(self, files: Files, progress: Progress) -> None:
        name = without_slash(self.path)
        found = await files.lookup(name, follow=False)
        if found is None:
            return
        if not found.is_directory:
            raise SFTPError(f"{printable(name)} is {kind(found)}, not a directory: it stays", kind="SFTPFailure")
        if self.recurse:
            await remove_tree(files, name, progress)
            return
        try:
            await files.rmdir(name)
        except SFTPError as error:
            if await files.list(name):
                error.detail = f"{printable(name)} is not empty: give recurse=True to remove all that is in it, too"
            raise
        progress.changed = True
