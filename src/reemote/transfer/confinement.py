"""Confinement: paths that lead out of a directory are refused, whatever changes meanwhile."""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from ..core import files
from ..core.errors import ReemoteError
from .directories import make_directory

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

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


class Confinement:
    """A directory that the paths which requests name do not lead out of.

    Each part of a path is opened in the directory before it, and no symbolic link is followed, not
    even one that stays inside: whoever changes the directories meanwhile leads nobody out. The root
    itself may be a link. Names are taken as they are: ``%2e`` is no dot.

    Args:
        root: The directory; it is made, for its owner alone, when it is first needed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()

    @contextlib.contextmanager
    def at(self, path: files.Path, base: bytes) -> Iterator[tuple[int, bytes]]:
        """Open the directory that *path* is in, and give it with the name in there.

        Args:
            path: What a request names.
            base: The directory that it is relative to, below the root.

        Raises:
            FileRefused: The path leads out, or over something that is no directory.
            OSError: There is no such directory, or it may not be entered.
        """
        parts = self._parts(path, base)
        current = self._open_root()
        try:
            for part in parts[:-1]:
                refuse_unless(stat.S_ISDIR, os.stat(part, dir_fd=current, follow_symlinks=False), path)
                with told(path):
                    below = os.open(part, _DIRECTORY, dir_fd=current)
                os.close(current)
                current = below
            yield current, parts[-1] if parts else b"."
        finally:
            os.close(current)

    def _open_root(self) -> int:
        try:
            return os.open(self.root, _DIRECTORY & ~os.O_NOFOLLOW)
        except FileNotFoundError:
            make_directory(Path(self.root))
            return os.open(self.root, _DIRECTORY & ~os.O_NOFOLLOW)

    def _parts(self, path: files.Path, base: bytes) -> list[bytes]:
        """Split a path below the root into names."""
        name = checked(path)
        if b".." in name.split(b"/"):
            raise FileRefused(f"{files.shown(name)!r} is refused: '..' may not be in a path")
        root, parts = _split(os.fsencode(self.root)), _split(posixpath.join(base, name))
        if parts[: len(root)] != root:
            raise FileRefused(f"{files.shown(name)!r} is outside of the directory for transfers")
        return parts[len(root) :]


def checked(path: files.Path) -> bytes:
    """Give the bytes of a path.

    Raises:
        FileRefused: It is none.
    """
    try:
        name = files.encoded(path)
    except UnicodeEncodeError:
        raise FileRefused(f"{path!r} is no path: it holds half a character") from None
    if b"\0" in name:
        raise FileRefused(f"{files.shown(name)!r} is no path: it holds a NUL character")
    if not name:
        raise FileRefused("'' names no file")
    return name


def refuse_directory(path: files.Path) -> None:
    """Refuse a path that cannot be that of a file, as it ends like that of a directory."""
    name = checked(path)
    if name == b"." or name.endswith((b"/", b"/.")):
        raise FileRefused(f"{files.shown(name)!r} names no file")


def refuse_unless(fits: Callable[[int], bool], status: os.stat_result, path: files.Path) -> None:
    """Refuse what is of another kind than it must be."""
    if not fits(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "a file")
        raise FileRefused(f"{_quoted(path)} is refused: {kind} is in its place or in its way")


@contextlib.contextmanager
def told(path: files.Path) -> Iterator[None]:
    """Refuse what changed after it was looked at."""
    try:
        yield
    except OSError as error:
        if error.errno in _CHANGED:
            raise FileRefused(f"{_quoted(path)} is refused: something else took its place") from None
        raise


def _quoted(path: files.Path) -> str:
    return repr(files.shown(files.encoded(path)))


def _split(path: bytes) -> list[bytes]:
    return [part for part in path.split(b"/") if part not in (b"", b".")]
