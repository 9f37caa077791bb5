"""The files of this machine, all of them or those below one directory."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import pathlib
import posixpath
import stat
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextvars import ContextVar

from ..core.errors import HostError, LocalFileError, NoSpaceLeft
from ..core.files import Attributes, ClientInfo, Entry, File, FileSystem, Mode, Node, Path, Times, encoded, printable
from .calls import Place, attributes, chmod, in_thread, link, longname
from .confinement import Confinement, FileRefused, checked, refuse_directory, refuse_unless, told
from .opened import OpenFile
from .patterns import glob

__all__ = ["FileRefused", "LocalFiles", "here"]

# A named pipe would hold us up, and a terminal would become ours.
_FILE = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

_MODES: dict[Mode, int] = {
    "read": os.O_RDONLY,
    "write": os.O_WRONLY | os.O_CREAT,
    "append": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
    "create": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
    "update": os.O_WRONLY,
}

_NOT_LINKABLE = frozenset({errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV})
"""What the kernel says where a file cannot have a second name."""


class LocalFiles:
    """The files of this machine, as :class:`reemote.core.files.Files`.

    Args:
        root: The directory that no path may lead out of, see :class:`Confinement`: relative paths
            are relative to it, no link is followed or made, and only plain files are opened.
            Without it all files are within reach, and relative paths are relative to the working
            directory of the process.
    """

    block = 256 * 1024 - 1024
    is_remote = False

    def __init__(self, root: pathlib.Path | None = None) -> None:
        self._confinement = None if root is None else Confinement(root)
        self._directory = None if self._confinement is None else os.fsencode(self._confinement.root)

    # What all methods are made of

    @contextlib.contextmanager
    def _at(self, path: Path, *, follow: bool = False) -> Iterator[Place]:
        """Give the place of a path; every access is to such a one.

        Args:
            path: What the caller named.
            follow: Whether what a link leads to is meant.
        """
        if self._confinement is None:
            name = encoded(path)
            if b"\0" in name:
                raise OSError(errno.EINVAL, "a path cannot contain a NUL character")
            yield Place(None, posixpath.join(self._directory, name) if self._directory and name else name, follow)
            return
        with self._confinement.at(path, self._base()) as (directory, name):
            if follow:
                with contextlib.suppress(FileNotFoundError):
                    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
                    refuse_unless(lambda mode: not stat.S_ISLNK(mode), status, path)
            yield Place(directory, name, follow=False)

    def _base(self) -> bytes:
        return os.fsencode(pathlib.Path.cwd()) if self._directory is None else self._directory

    def _failure(self, error: OSError, path: Path) -> HostError:
        """Make the failure that *error* is."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return NoSpaceLeft(f"no space is left on this machine for {printable(path)}")
        detail = f"{printable(path)}: {error.strerror or error} (on this machine)"
        name = type(error).__name__
        return LocalFileError(detail, kind=name if name in LocalFileError.KINDS else None)

    @contextlib.contextmanager
    def _translated(self, *paths: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._failure(error, b" -> ".join(encoded(path) for path in paths)) from error

    def _status(self, path: Path, *, follow: bool) -> os.stat_result:
        with self._at(path, follow=follow) as at:
            return os.stat(at.name, dir_fd=at.directory, follow_symlinks=at.follow)

    def _entries(self, path: Path, *, follow: bool = True) -> list[Entry]:
        entries = []
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        with self._descriptor(path, flags, follow=follow) as directory, os.scandir(directory) as found:
            for each in found:
                with contextlib.suppress(FileNotFoundError):  # it is gone meanwhile
                    status = each.stat(follow_symlinks=False)
                    name = os.fsencode(each.name)
                    entries.append(Entry(name, attributes(status), longname(name, status)))
        return entries

    @contextlib.contextmanager
    def _descriptor(self, path: Path, flags: int, permissions: int = 0, *, follow: bool = True) -> Iterator[int]:
        with self._at(path, follow=follow) as at:
            if not at.follow:
                flags |= os.O_NOFOLLOW
            descriptor = os.open(at.name, flags, permissions, dir_fd=at.directory)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _file(self, path: Path, flags: int, permissions: int = 0, *, follow: bool = True) -> Iterator[int]:
        """Open what is a file."""
        if self._confinement is not None:
            refuse_directory(path)
        if self._confinement is not None or not flags & os.O_EXCL:
            with contextlib.suppress(FileNotFoundError):
                # Opening a device can do something already, so it is looked at first.
                self._examine(self._status(path, follow=follow), path)
        with contextlib.ExitStack() as stack:
            with contextlib.nullcontext() if self._confinement is None else told(path):
                opened = self._descriptor(path, flags | _FILE, permissions, follow=follow)
                descriptor = stack.enter_context(opened)
            self._examine(os.fstat(descriptor), path)
            yield descriptor

    def _examine(self, status: os.stat_result, path: Path) -> None:
        if self._confinement is not None:
            refuse_unless(stat.S_ISREG, status, path)
        elif stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        elif stat.S_ISFIFO(status.st_mode) or stat.S_ISSOCK(status.st_mode):
            kind = "a named pipe" if stat.S_ISFIFO(status.st_mode) else "a socket"
            raise OSError(errno.EOPNOTSUPP, f"it is {kind}, which cannot be opened as a file")

    def check(self, path: Path) -> None:
        """Refuse now what would be refused later; the path may be of a directory, or of what is not there yet.

        Raises:
            FileRefused: It leads out, or to something that is neither a plain file nor a directory.
        """
        if self._confinement is not None:
            with contextlib.suppress(OSError):
                status = self._status(path, follow=True)
                refuse_unless(lambda mode: stat.S_ISREG(mode) or stat.S_ISDIR(mode), status, path)

    # What there is

    async def info(self) -> ClientInfo:
        """Tell that there is no protocol in between, and no limit."""
        copies = hasattr(os, "copy_file_range")
        return ClientInfo(
            version=0,
            max_packet_len=0,
            max_read_len=0,
            max_write_len=0,
            max_open_handles=0,
            supports_remote_copy=copies,
        )

    def absolute(self, path: Path) -> bytes:
        """Give the path with the directory before it that it is relative to."""
        with self._translated(path):
            return posixpath.join(self._base(), encoded(path))

    async def chdir(self, path: Path) -> None:
        """Let relative paths be relative to another directory from now on."""
        with self._translated(path):
            if not stat.S_ISDIR(self._status(path, follow=True).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        self._directory = self.absolute(path)

    async def lookup(self, path: Path, *, follow: bool = True) -> Attributes | None:
        """Ask for attributes; ``None`` where nothing is there."""
        with self._translated(path):
            return self._lookup(path, follow=follow)

    def _lookup(self, path: Path, *, follow: bool = False) -> Attributes | None:
        try:
            return attributes(self._status(path, follow=follow))
        except (FileNotFoundError, NotADirectoryError):
            return None

    async def stat(self, path: Path, *, follow: bool = True) -> Attributes:
        """Ask for attributes."""
        with self._translated(path):
            return attributes(self._status(path, follow=follow))

    async def list(self, path: Path) -> list[Entry]:
        """List a directory, without ``.`` and ``..``."""
        with self._translated(path):
            return self._entries(path)

    async def tree(self, path: Path) -> dict[bytes, Node] | None:
        """List all that is below a directory, by relative path; no link is followed."""

        def walk(stopped: threading.Event) -> dict[bytes, Node]:
            found: dict[bytes, Node] = {}
            below = deque[bytes]()
            self._add_nodes(path, b"", found, below)
            while below and not stopped.is_set():
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # it is gone meanwhile
                    self._add_nodes(path, below.pop(), found, below)
            return found

        with self._translated(path):
            return await in_thread(walk)

    def _add_nodes(self, top: Path, path: bytes, found: dict[bytes, Node], below: deque[bytes]) -> None:
        directory = posixpath.join(encoded(top), path) if path else encoded(top)
        for entry in self._entries(directory, follow=not path):
            name, target = posixpath.join(path, entry.name), b""
            if entry.attributes.is_directory:
                below.append(name)
            elif entry.attributes.is_link:
                try:
                    target = self._readlink(posixpath.join(directory, entry.name))
                except FileNotFoundError:
                    continue
            found[name] = Node(entry.attributes, target)

    async def digests(self, paths: Sequence[Path]) -> Sequence[bytes | None]:
        """Give the SHA-256 digest of each file's content; ``None`` for what cannot be read."""

        def digests(stopped: threading.Event) -> Sequence[bytes | None]:
            return [None if stopped.is_set() else self._digest(path) for path in paths]

        return await in_thread(digests)

    def _digest(self, path: Path) -> bytes | None:
        try:
            with self._file(path, os.O_RDONLY) as descriptor:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    return None
                with open(descriptor, "rb", buffering=0, closefd=False) as file:
                    return hashlib.file_digest(file, "sha256").digest()
        except (OSError, FileRefused):
            return None

    async def readlink(self, path: Path) -> bytes:
        """Tell where a symbolic link leads."""
        with self._translated(path):
            return self._readlink(path)

    def _readlink(self, path: Path) -> bytes:
        with self._at(path) as at:
            return os.readlink(at.name, dir_fd=at.directory)

    async def realpath(self, path: Path) -> bytes:
        """Give the absolute path, symbolic links resolved; the root stays the one that was named."""
        with self._translated(path):
            if self._confinement is None:
                with self._at(path) as at:
                    return posixpath.realpath(at.name)
            self._lookup(path, follow=True)  # refuses links
        return posixpath.normpath(self.absolute(path))

    async def glob(self, patterns: Sequence[Path]) -> Sequence[bytes]:
        """Give the paths that match, sorted; a pattern that matches nothing is an error."""
        return await glob(self, patterns)

    async def statvfs(self, path: Path) -> FileSystem:
        """Ask for the file system that a path is on."""
        with self._translated(path), self._at(path, follow=True) as at:
            if at.directory is None:
                answer = os.statvfs(at.name)
            else:
                self.check(path)  # opening a device can do something already
                with self._descriptor(path, os.O_RDONLY | _FILE) as descriptor:
                    answer = os.statvfs(descriptor)
        return FileSystem({name: getattr(answer, f"f_{name}") for name in FileSystem.__annotations__})

    # What changes something

    async def mkdir(self, path: Path, permissions: int | None = None) -> None:
        """Make a directory; the umask applies. Below a root it is for the owner alone by default."""
        with self._translated(path), self._at(path) as at:
            os.mkdir(at.name, self._permissions(permissions, 0o777), dir_fd=at.directory)

    def _permissions(self, permissions: int | None, default: int) -> int:
        if permissions is not None:
            return permissions
        return default if self._confinement is None else default & 0o700

    def _refuse_links(self, path: Path) -> None:
        if self._confinement is not None:
            name = checked(path)
            raise FileRefused(f"{os.fsdecode(name)!r} is refused: no links are made in the directory for transfers")

    async def symlink(self, target: Path, path: Path) -> None:
        """Make a symbolic link at *path* that leads to *target*."""
        self._refuse_links(path)
        with self._translated(path), self._at(path) as at:
            os.symlink(encoded(target), at.name, dir_fd=at.directory)

    async def link(self, old: Path, new: Path) -> None:
        """Make *new* another name of the file *old*."""
        self._refuse_links(new)
        with self._translated(old, new), self._at(old) as source, self._at(new) as target:
            link(source, target)

    async def rename(self, old: Path, new: Path) -> None:
        """Rename; fails where *new* exists."""
        with self._translated(old, new), self._at(old) as source, self._at(new) as target:
            status = os.stat(source.name, dir_fd=source.directory, follow_symlinks=False)
            if stat.S_ISREG(status.st_mode):
                try:
                    link(source, target)  # the one way that never replaces what appears there meanwhile
                except OSError as error:
                    if error.errno not in _NOT_LINKABLE:
                        raise
                else:
                    os.unlink(source.name, dir_fd=source.directory)
                    return
            if posixpath.lexists(target.name) if target.directory is None else self._lookup(new) is not None:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            os.rename(source.name, target.name, src_dir_fd=source.directory, dst_dir_fd=target.directory)

    async def replace(self, old: Path, new: Path) -> None:
        """Rename; what *new* was is gone in the same instant."""
        with self._translated(old, new), self._at(old) as source, self._at(new) as target:
            os.replace(source.name, target.name, src_dir_fd=source.directory, dst_dir_fd=target.directory)

    async def remove(self, path: Path) -> None:
        """Remove a file or a link."""
        with self._translated(path), self._at(path) as at:
            os.unlink(at.name, dir_fd=at.directory)

    async def rmdir(self, path: Path) -> None:
        """Remove an empty directory."""
        with self._translated(path), self._at(path) as at:
            os.rmdir(at.name, dir_fd=at.directory)

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
        with self._translated(path):
            if size is not None:
                with self._file(path, os.O_WRONLY, follow=follow) as descriptor:
                    os.ftruncate(descriptor, size)
            with self._at(path, follow=follow) as at:
                if owner is not None:
                    os.chown(at.name, *owner, dir_fd=at.directory, follow_symlinks=at.follow)
                if permissions is not None:  # after the owner, with whom the set-user-ID bit goes
                    chmod(at, permissions)
                if times is not None:
                    os.utime(at.name, ns=times, dir_fd=at.directory, follow_symlinks=at.follow)

    # What is in a file

    @contextlib.asynccontextmanager
    async def open(self, path: Path, mode: Mode, permissions: int | None = None) -> AsyncIterator[File]:
        """Open a file; a new one gets *permissions*, to which the umask applies.

        Below a root it is for the owner alone by default.
        """
        with contextlib.ExitStack() as stack:
            with self._translated(path):
                opened = self._file(path, _MODES[mode], self._permissions(permissions, 0o666))
                descriptor = stack.enter_context(opened)
                if mode == "write" and stat.S_ISREG(os.fstat(descriptor).st_mode):
                    os.ftruncate(descriptor, 0)  # only now that it is known to be a plain file
            yield OpenFile(descriptor, appends=mode == "append", translated=lambda: self._translated(path))

    async def copy_within(self, source: File, target: File, size: int, offset: int = 0) -> bool:
        """Copy between two open files without moving the data; false where the system cannot."""
        if not isinstance(source, OpenFile) or not isinstance(target, OpenFile):
            return False
        return await source.copy_to(target, size, offset)

    async def unpack(self, path: Path, archive: Callable[[], AsyncIterator[bytes]]) -> bool:
        """Unpack nothing: files are written here as quickly one by one."""
        return False


here: ContextVar[LocalFiles] = ContextVar("here", default=LocalFiles())  # noqa: B039 - nobody changes its directory
"""The file system that this machine's paths of operations are on."""
