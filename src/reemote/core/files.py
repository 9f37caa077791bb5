"""What operations see of a file system: a host's, or that of this machine.

Paths are bytes here, as file systems have them; :func:`encoded` makes them of what users write.
"""

from __future__ import annotations

import re
import stat
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import PurePath
from typing import Annotated, Any, Literal, Protocol

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema

from .errors import HostError
from .response import Record

Path = str | bytes | PurePath
"""A path as users write it. Names that are not UTF-8 are bytes, or text with surrogate escapes (PEP 383)."""

Mode = Literal["read", "write", "append", "create", "update"]
"""How a file is opened: to read, to write from empty, to add to its end, to write where there is none
yet, or to write into what is there."""

Times = tuple[int, int]
"""Times of access and modification, in nanoseconds since the epoch."""


def encoded(path: Path) -> bytes:
    """Give a path's bytes: UTF-8, and surrogate escapes for what is not."""
    return path if isinstance(path, bytes) else str(path).encode("utf-8", "surrogateescape")


def shown(path: bytes) -> str:
    """Give a path as text that comes back by :func:`encoded`."""
    return path.decode("utf-8", "surrogateescape")


def printable(path: Path) -> str:
    """Give a path for a message."""
    return encoded(path).decode("utf-8", "backslashreplace")


def whole_seconds(nanoseconds: int | None) -> int | None:
    """Give a time in seconds, which is all that SFTP tells; servers cut off the rest."""
    return None if nanoseconds is None else nanoseconds // 10**9


@dataclass(frozen=True, slots=True)
class Attributes:
    """What a file system knows of a file."""

    permissions: int
    """The mode: type and permission bits, as ``st_mode`` of stat(2)."""
    size: int
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    crtime_ns: int | None = None

    @property
    def mode(self) -> int:
        """The permission bits alone."""
        return stat.S_IMODE(self.permissions)

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.permissions)

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.permissions)

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(self.permissions)


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a directory."""

    name: bytes
    attributes: Attributes
    longname: str = ""
    """The line that ``ls -l`` would show."""


@dataclass(frozen=True, slots=True)
class Node:
    """One thing in a tree."""

    attributes: Attributes
    target: bytes = b""
    """Where a symbolic link leads."""


class FileSystem(Record):
    """The file system that a path is on: the fields of statvfs(3), sizes in units of ``frsize`` bytes."""

    bsize: int
    frsize: int
    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    favail: int
    fsid: int
    flag: int
    namemax: int


class ClientInfo(Record):
    """What both sides of an SFTP session agreed on; lengths in bytes, 0 for handles without a known limit."""

    version: int
    """The version of the protocol."""
    max_packet_len: int
    max_read_len: int
    max_write_len: int
    max_open_handles: int
    supports_remote_copy: bool
    """Whether the host copies files by itself."""


class File(Protocol):
    """An open file. Reads and writes may run at the same time."""

    async def read(self, size: int, offset: int) -> bytes:
        """Read up to *size* bytes; fewer only at the end of the file."""

    async def write(self, data: bytes, offset: int) -> None:
        """Write all of *data*; at the end, where the file was opened to append."""

    def data(self, size: int) -> AsyncIterator[tuple[int, int]]:
        """Give offset and length of the parts that hold data, of the first *size* bytes; the rest are holes."""

    async def stat(self) -> Attributes:
        """Ask for the file's attributes."""

    async def set(
        self,
        *,
        permissions: int | None = None,
        owner: tuple[int, int] | None = None,
        times: Times | None = None,
        size: int | None = None,
    ) -> None:
        """Set attributes; *owner* is user and group."""

    async def sync(self) -> None:
        """Wait until the content is on the disk, where the file system can tell."""


class Files(Protocol):
    """A file system, relative paths being relative to one of its directories.

    Every method raises :class:`HostError` where it fails; what asks for something that is not there
    raises one whose :func:`is_missing` is true.
    """

    @property
    def block(self) -> int:
        """The most bytes of one read or write."""

    @property
    def is_remote(self) -> bool:
        """Whether requests travel, so that many should be under way at a time."""

    async def info(self) -> ClientInfo:
        """Tell what this end and the file system's agreed on."""

    def absolute(self, path: Path) -> bytes:
        """Give the path with the directory before it that it is relative to, as far as that is known."""

    async def chdir(self, path: Path) -> None:
        """Let relative paths be relative to another directory from now on."""

    async def lookup(self, path: Path, *, follow: bool = True) -> Attributes | None:
        """Ask for attributes; ``None`` where nothing is there."""

    async def stat(self, path: Path, *, follow: bool = True) -> Attributes:
        """Ask for attributes."""

    async def list(self, path: Path) -> list[Entry]:
        """List a directory, without ``.`` and ``..``; no name has a slash in it."""

    async def tree(self, path: Path) -> dict[bytes, Node] | None:
        """List all that is below a directory, by relative path; ``None`` where that takes a listing for each."""

    async def digests(self, paths: Sequence[Path]) -> Sequence[bytes | None]:
        """Give the SHA-256 digest of each file's content; ``None`` for what cannot be read."""

    async def readlink(self, path: Path) -> bytes:
        """Tell where a symbolic link leads."""

    async def realpath(self, path: Path) -> bytes:
        """Give the absolute path, symbolic links resolved."""

    async def glob(self, patterns: Sequence[Path]) -> Sequence[bytes]:
        """Give the paths that match; a pattern that matches nothing is an error."""

    async def statvfs(self, path: Path) -> FileSystem:
        """Ask for the file system that a path is on."""

    async def mkdir(self, path: Path, permissions: int | None = None) -> None:
        """Make a directory; the host's umask applies."""

    async def symlink(self, target: Path, path: Path) -> None:
        """Make a symbolic link at *path* that leads to *target*."""

    async def link(self, old: Path, new: Path) -> None:
        """Make *new* another name of the file *old*."""

    async def rename(self, old: Path, new: Path) -> None:
        """Rename; fails where *new* exists."""

    async def replace(self, old: Path, new: Path) -> None:
        """Rename; what *new* was is gone in the same instant, where the host can do that."""

    async def remove(self, path: Path) -> None:
        """Remove a file or a link."""

    async def rmdir(self, path: Path) -> None:
        """Remove an empty directory."""

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
        """Set attributes; *owner* is user and group."""

    def open(self, path: Path, mode: Mode, permissions: int | None = None) -> AbstractAsyncContextManager[File]:
        """Open a file; a new one gets *permissions*, to which the umask applies."""

    async def copy_within(self, source: File, target: File, size: int, offset: int = 0) -> bool:
        """Copy between two open files of this file system without moving the data; false where it cannot.

        It copies *size* bytes from *offset* on, to the same place in the other file.
        """

    async def unpack(self, path: Path, archive: Callable[[], AsyncIterator[bytes]]) -> bool:
        """Unpack the tar archive that *archive* gives into a directory; false where there is no way to."""


ProgressHandler = Callable[[bytes, bytes, int, int], Any]
"""Called with source path, target path, bytes copied so far and bytes in all, as asyncssh calls it."""

ErrorHandler = Callable[[Exception], Any]
"""Called with what went wrong with one file; the others follow unless it raises."""


def is_missing(error: HostError) -> bool:
    """Whether *error* says that nothing is there."""
    return error.kind in ("SFTPNoSuchFile", "SFTPNoSuchPath", "FileNotFoundError")


# The types of parameters


def _path(value: Any) -> Path:
    if isinstance(value, PurePath):
        value = str(value)
    if not isinstance(value, str | bytes):
        raise ValueError("a path is text, bytes or a PurePath")  # noqa: TRY004 - pydantic's kind of error
    if not value:
        raise ValueError("a path cannot be empty")
    try:
        name = encoded(value)
    except UnicodeEncodeError:
        raise ValueError("a path cannot contain half a character") from None
    if b"\0" in name:
        raise ValueError("a path cannot contain a NUL character")
    return value


def _paths(value: Any) -> Any:
    if isinstance(value, str | bytes | PurePath):
        value = [value]
    if not isinstance(value, list | tuple):
        raise ValueError("paths are a path or a list of them")  # noqa: TRY004 - pydantic's kind of error
    if not value:
        raise ValueError("at least one path is needed")
    return [_path(each) for each in value]


_PATH = {"type": "string", "minLength": 1, "pattern": r"^[^\u0000]*$"}
_PATHS = {"anyOf": [{"type": "array", "items": _PATH, "minItems": 1}, _PATH]}

RemotePath = Annotated[Path, PlainValidator(_path), WithJsonSchema(_PATH)]
"""A path on the host."""

RemotePaths = Annotated[Sequence[Path] | Path, PlainValidator(_paths), WithJsonSchema(_PATHS)]
"""One path on the host, or several."""


class Local:
    """Marks a parameter as a path of this machine, which those who call from elsewhere may not choose freely."""


LocalPath = Annotated[Path, PlainValidator(_path), WithJsonSchema(_PATH), Local()]
"""A path on this machine."""

LocalPaths = Annotated[Sequence[Path] | Path, PlainValidator(_paths), WithJsonSchema(_PATHS), Local()]
"""One path on this machine, or several."""


def listed(paths: Sequence[Path] | Path) -> list[Path]:
    """Give one path or several as a list."""
    return [paths] if isinstance(paths, str | bytes | PurePath) else list(paths)


def _permissions(value: Any) -> Any:
    if isinstance(value, str):
        if not re.fullmatch("(0o)?[0-7]{1,4}", value):
            raise ValueError("permissions as text are octal digits, such as '0644'")
        return int(value, 8)
    return value


Permissions = Annotated[
    int,
    BeforeValidator(_permissions),
    Field(ge=0, le=0o7777),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0, "maximum": 0o7777},
                {"type": "string", "pattern": "^(0o)?[0-7]{1,4}$"},
            ]
        }
    ),
]
"""Permission bits: a number, or octal digits as text."""
