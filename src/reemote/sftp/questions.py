"""Questions about files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, cast

from pydantic import Field
from typing_extensions import TypeVar

from ..core.errors import SFTPError
from ..core.files import (
    Attributes,
    ClientInfo,
    Files,
    FileSystem,
    Path,
    RemotePath,
    RemotePaths,
    listed,
    printable,
    shown,
    whole_seconds,
)
from ..core.host import Host
from ..core.operation import Effect
from ..core.remote import Privileged
from ..core.response import Record
from ..transfer.pump import at_once, drain
from .attributes import kind

T = TypeVar("T")


class FileStatus(Record):
    """What a host tells of a file."""

    uid: int | None
    gid: int | None
    permissions: int
    """The nine bits for reading, writing and executing."""
    atime: int | None
    """When it was last read, in seconds since the epoch."""
    mtime: int | None
    """When its content last changed, in seconds since the epoch."""
    size: int


class NamedFile(Record):
    """What a host tells of a file with a name."""

    uid: int | None
    gid: int | None
    permissions: int
    """All bits of the mode, those of the file's type included."""
    atime: int | None
    mtime: int | None
    size: int
    filename: str
    longname: str
    """The line of ``ls -l``, where the host gives it."""


class Question(Privileged[T], Generic[T]):
    """A question about files."""

    effect = Effect.READS

    async def perform(self, host: Host) -> T:
        """Ask."""
        async with host.sftp(**self.privileges()) as files:
            return await self.ask(files)

    async def ask(self, files: Files) -> T:
        """Ask, and give the answer."""
        raise NotImplementedError(f"{type(self).__name__} does not override ask")


class PathQuestion(Question[T], Generic[T]):
    """A question about one path."""

    path: RemotePath = Field(examples=["/etc/hostname"])
    """The path on the host."""


class Islink(PathQuestion[bool]):
    """Return whether the remote path is a symbolic link."""

    async def ask(self, files: Files) -> bool:
        """Look at the path itself."""
        found = await files.lookup(self.path, follow=False)
        return found is not None and found.is_link


class Isfile(PathQuestion[bool]):
    """Return whether the remote path is a regular file, or a link to one."""

    async def ask(self, files: Files) -> bool:
        """Look."""
        found = await files.lookup(self.path)
        return found is not None and found.is_file


class Isdir(PathQuestion[bool]):
    """Return whether the remote path is a directory, or a link to one."""

    async def ask(self, files: Files) -> bool:
        """Look."""
        found = await files.lookup(self.path)
        return found is not None and found.is_directory


class Getsize(PathQuestion[int]):
    """Return the size of the remote file, in bytes."""

    async def ask(self, files: Files) -> int:
        """Look."""
        return (await files.stat(self.path)).size


class Getatime(PathQuestion[float | None]):
    """Return when the remote file was last read, in seconds since the epoch."""

    async def ask(self, files: Files) -> float | None:
        """Look."""
        return _seconds((await files.stat(self.path)).atime_ns)


class GetatimeNs(PathQuestion[int | None]):
    """Return when the remote file was last read, in nanoseconds since the epoch.

    Most hosts tell whole seconds only.
    """

    route = "getatimens"

    async def ask(self, files: Files) -> int | None:
        """Look."""
        return (await files.stat(self.path)).atime_ns


class Getmtime(PathQuestion[float | None]):
    """Return when the content of the remote file last changed, in seconds since the epoch."""

    async def ask(self, files: Files) -> float | None:
        """Look."""
        return _seconds((await files.stat(self.path)).mtime_ns)


class GetmtimeNs(PathQuestion[int | None]):
    """Return when the content of the remote file last changed, in nanoseconds since the epoch.

    Most hosts tell whole seconds only.
    """

    route = "getmtimens"

    async def ask(self, files: Files) -> int | None:
        """Look."""
        return (await files.stat(self.path)).mtime_ns


class Getcrtime(PathQuestion[float | None]):
    """Return when the remote file was created, in seconds since the epoch.

    The value is null where the host does not tell: OpenSSH does not.
    """

    async def ask(self, files: Files) -> float | None:
        """Look."""
        return _seconds((await files.stat(self.path)).crtime_ns)


class GetcrtimeNs(PathQuestion[int | None]):
    """Return when the remote file was created, in nanoseconds since the epoch.

    The value is null where the host does not tell: OpenSSH does not.
    """

    route = "getcrtimens"

    async def ask(self, files: Files) -> int | None:
        """Look."""
        return (await files.stat(self.path)).crtime_ns


class Getcwd(Question[str]):
    """Return the directory that relative remote paths lead from."""

    async def ask(self, files: Files) -> str:
        """Ask where that is."""
        return shown(await files.realpath("."))


class Stat(PathQuestion[FileStatus]):
    """Get owner, permissions, times and size of the remote file."""

    follow_symlinks: bool = True
    """Whether a link stands for what it leads to."""

    async def ask(self, files: Files) -> FileStatus:
        """Look."""
        return _status(await files.stat(self.path, follow=self.follow_symlinks))


class Listdir(PathQuestion[list[str]]):
    """List the names in the remote directory, sorted."""

    async def ask(self, files: Files) -> list[str]:
        """List."""
        names = sorted(entry.name for entry in await files.list(self.path))
        return [spelled(name, self.path) for name in names]


class Readdir(PathQuestion[list[NamedFile]]):
    """List the remote directory with what the host tells of each file, sorted by name."""

    async def ask(self, files: Files) -> list[NamedFile]:
        """List."""
        entries = sorted(await files.list(self.path), key=lambda entry: entry.name)
        return [_named(spelled(each.name, self.path), each.attributes, each.longname) for each in entries]


class Exists(PathQuestion[bool]):
    """Return whether the remote path exists; a link that leads nowhere does not."""

    async def ask(self, files: Files) -> bool:
        """Look."""
        return await files.lookup(self.path) is not None


class Lexists(PathQuestion[bool]):
    """Return whether the remote path exists, be it a link that leads nowhere."""

    async def ask(self, files: Files) -> bool:
        """Look at the path itself."""
        return await files.lookup(self.path, follow=False) is not None


class Lstat(PathQuestion[FileStatus]):
    """Get owner, permissions, times and size of the remote file, or of the link that it is."""

    async def ask(self, files: Files) -> FileStatus:
        """Look at the path itself."""
        return _status(await files.stat(self.path, follow=False))


class Readlink(PathQuestion[str]):
    """Return where the remote symbolic link leads."""

    async def ask(self, files: Files) -> str:
        """Ask; where there is no answer, look why."""
        try:
            return spelled(await files.readlink(self.path), self.path)
        except SFTPError as error:
            found = await files.lookup(self.path, follow=False)
            if found is None or found.is_link:
                raise
            detail = f"{printable(self.path)} is {kind(found)}, not a symbolic link"
            raise SFTPError(detail, kind="SFTPFailure") from error


class _Pattern(Question[T], Generic[T]):
    """A question for paths that match patterns."""

    path: RemotePaths = Field(examples=[["/etc/*.conf"]])
    """The pattern, or several: ``*``, ``?`` and ``[...]`` match in one name, ``**`` any directories."""

    async def paths(self, files: Files) -> Sequence[bytes]:
        """Ask for the paths; they are sorted."""
        return await files.glob(listed(self.path))

    def spelled(self, path: bytes) -> str:
        """Give a path as the patterns were given."""
        return spelled(path, listed(self.path)[0])


class Glob(_Pattern[list[str]]):
    """List the remote paths that match a pattern, sorted; none is an error."""

    async def ask(self, files: Files) -> list[str]:
        """Ask."""
        return [self.spelled(path) for path in await self.paths(files)]


class GlobSftpName(_Pattern[list[NamedFile]]):
    """List the remote paths that match a pattern with what the host tells of each, sorted; none is an error.

    A link is told of itself. ``longname`` is empty.
    """

    route = "globsftpname"

    async def ask(self, files: Files) -> list[NamedFile]:
        """Ask, then look at each."""
        paths = await self.paths(files)
        found: dict[bytes, Attributes] = {}

        async def look(path: bytes) -> None:
            attributes = await files.lookup(path, follow=False)
            if attributes is not None:  # it may be gone meanwhile
                found[path] = attributes

        await drain(paths, look, at_once(files))
        return [_named(self.spelled(path), found[path], "") for path in paths if path in found]


class StatVfs(PathQuestion[FileSystem]):
    """Get size and free space of the file system that the remote path is on."""

    route = "statvfs"

    async def ask(self, files: Files) -> FileSystem:
        """Ask."""
        return await files.statvfs(self.path)


class Realpath(PathQuestion[str]):
    """Return the absolute remote path, symbolic links resolved."""

    async def ask(self, files: Files) -> str:
        """Ask."""
        return spelled(await files.realpath(self.path), self.path)


class Client(Question[ClientInfo]):
    """Get version and limits of the SFTP session."""

    async def ask(self, files: Files) -> ClientInfo:
        """Tell what was agreed on."""
        return await files.info()


def spelled(path: bytes, like: Path) -> str:
    """Give a path as text, or as the bytes that it is where *like*, what was asked for, is bytes."""
    return cast(str, path) if isinstance(like, bytes) else shown(path)


def _seconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 10**9


def _status(found: Attributes) -> FileStatus:
    return FileStatus(
        uid=found.uid,
        gid=found.gid,
        permissions=found.permissions & 0o777,
        atime=whole_seconds(found.atime_ns),
        mtime=whole_seconds(found.mtime_ns),
        size=found.size,
    )


def _named(name: str, found: Attributes, longname: str) -> NamedFile:
    return NamedFile({**_status(found), "permissions": found.permissions, "filename": name, "longname": longname})
