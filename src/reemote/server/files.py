"""The transfer root: the one directory whose files may be read and written for requests.

Nothing uses it yet: it is for operations that transfer files.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ..core.errors import ReemoteError

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A named pipe that came after the check would hold us up, and a terminal would become ours.
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

_CHANGED = frozenset({errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.ENOTDIR, errno.EISDIR})
"""What the kernel says of a link, a pipe or socket, and of what is no directory, or is one."""

_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class FileRefused(ReemoteError):
    """A path leads out of the transfer root, or to something that is no plain file; the message says which."""


class TransferRoot:
    """A directory whose plain files may be opened by paths that requests name.

    Each part of a path is opened in the directory before it, and no symbolic link is followed, not
    even one that stays inside: whoever changes the directories meanwhile leads nobody out. The root
    itself may be a link. Names are taken as they are: ``%2e`` is no dot.

    Args:
        path: The directory; it is made, for its owner alone, when a file is first opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()

    def open_to_read(self, name: str) -> BinaryIO:
        """Open a file of the root.

        Raises:
            FileRefused: The path leads out, or to something that is no plain file.
            OSError: There is no such file, or it cannot be read.
        """
        return os.fdopen(self._open(name, os.O_RDONLY), "rb")

    def open_to_write(self, name: str) -> BinaryIO:
        """Open a file of the root, empty; make it, for its owner alone, where there is none.

        Raises:
            FileRefused: The path leads out, or to something that is no plain file.
            OSError: There is no such directory, or the file cannot be written.
        """
        file = os.fdopen(self._open(name, os.O_WRONLY | os.O_CREAT), "wb")
        try:
            file.truncate(0)  # only now that it is known to be a plain file
        except BaseException:
            file.close()
            raise
        return file

    def _open(self, name: str, flags: int) -> int:
        *parents, last = self._parts(name)
        with self._directory(parents, name) as directory:
            with contextlib.suppress(FileNotFoundError):
                # Opening a device can do something already, so it is looked at first.
                _refuse_unless(stat.S_ISREG, os.stat(last, dir_fd=directory, follow_symlinks=False), name)
            with _told(name):
                descriptor = os.open(last, flags | _FILE, 0o600, dir_fd=directory)
        try:
            _refuse_unless(stat.S_ISREG, os.fstat(descriptor), name)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    @contextlib.contextmanager
    def _directory(self, parents: list[str], name: str) -> Iterator[int]:
        """Open a directory of the root, one part after the other."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        current = os.open(self.path, _DIRECTORY & ~os.O_NOFOLLOW)
        try:
            for part in parents:
                _refuse_unless(stat.S_ISDIR, os.stat(part, dir_fd=current, follow_symlinks=False), name)
                with _told(name):
                    below = os.open(part, _DIRECTORY, dir_fd=current)
                os.close(current)
                current = below
            yield current
        finally:
            os.close(current)

    def _parts(self, name: str) -> list[str]:
        """Split a path below the root into the names of directories and that of the file."""
        try:
            os.fsencode(name)
        except UnicodeEncodeError:
            raise FileRefused(f"{name!r} is no path: it holds half a character") from None
        if "\0" in name:
            raise FileRefused(f"{name!r} is no path: it holds a NUL character")
        if not name or name.endswith(("/", "/.")) or name == ".":
            raise FileRefused(f"{name!r} names no file")
        path = PurePosixPath(name)
        if ".." in path.parts:
            raise FileRefused(f"{name!r} is refused: '..' may not be in a path")
        if path.is_absolute():
            try:
                path = path.relative_to(self.path)
            except ValueError:
                raise FileRefused(f"{name!r} is outside of the directory for transfers") from None
        if not path.parts:
            raise FileRefused(f"{name!r} names no file")
        return list(path.parts)


def _refuse_unless(fits: Callable[[int], bool], status: os.stat_result, name: str) -> None:
    if not fits(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "a file")
        raise FileRefused(f"{name!r} is refused: {kind} is in its place or in its way")


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """Refuse what changed after it was looked at."""
    try:
        yield
    except OSError as error:
        if error.errno in _CHANGED:
            raise FileRefused(f"{name!r} is refused: something else took its place") from None
        raise
