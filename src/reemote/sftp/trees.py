"""Directories with what is above and below them: make all that are missing, remove all that is there."""

from __future__ import annotations

import posixpath
from collections.abc import Awaitable, Callable, Sequence

from ..core.errors import HostError, SFTPError
from ..core.files import Files, Path, encoded, is_missing, printable
from ..transfer.place import missing
from ..transfer.pump import at_once, drain
from .attributes import Asked, Progress, kind, settle

_NEEDED = 0o300
"""What the owner of a directory needs to make others in it."""


def without_slash(path: Path) -> bytes:
    """Give a path without slashes at its end, which would have a link followed."""
    name = encoded(path)
    return name.rstrip(b"/") or name[:1]


def is_removable(path: Path) -> bool:
    """Whether a path names something in a directory: the root, ``.`` and ``..`` do not."""
    return posixpath.basename(without_slash(path)) not in (b"", b".", b"..")


async def make_directories(
    files: Files, path: Path, asked: Asked, progress: Progress, *, exist_ok: bool = False
) -> None:
    """Make a directory and those above it that are missing; all of them are made as asked for.

    Raises:
        SFTPError: The host refused; something else is in the way; or the directory is there, unless *exist_ok*.
    """
    name = without_slash(path)
    pending = [*await missing(files, posixpath.dirname(name)), name]
    above = posixpath.dirname(pending[0])
    if above and (found := await files.lookup(above)) is not None and not found.is_directory:
        raise SFTPError(f"{printable(above)} is {kind(found)}, not a directory", kind="SFTPFailure")
    made: list[bytes] = []
    for directory in pending:
        permissions = asked.permissions
        if directory != name and permissions is not None:
            permissions |= _NEEDED
        try:
            await files.mkdir(directory, permissions)
        except HostError as error:
            # Somebody else may have made it meanwhile.
            await _refuse_unless_directory(files, directory, error)
            if directory == name and not exist_ok:
                raise SFTPError(f"{printable(path)} exists already", kind="SFTPFailure") from error
        else:
            progress.changed = True
            made.append(directory)
    if asked:
        for directory in reversed(made):  # what is made in a directory changes its times
            await settle(files, directory, asked, await files.stat(directory), progress)


async def _refuse_unless_directory(files: Files, path: bytes, error: HostError) -> None:
    if not isinstance(error, SFTPError):
        raise error
    if (found := await files.lookup(path)) is not None:
        if not found.is_directory:
            raise SFTPError(f"{printable(path)} is {kind(found)}, not a directory", kind="SFTPFailure") from error
    elif await files.lookup(path, follow=False) is not None:
        raise SFTPError(f"{printable(path)} is a symbolic link that leads nowhere", kind="SFTPFailure") from error
    else:
        raise error


async def remove_tree(files: Files, path: Path, progress: Progress) -> None:
    """Remove a directory with all that is below it; links are removed, not followed.

    It goes by levels, not by recursion: a tree may be deeper than Python's stack.

    Raises:
        HostError: What went wrong first. Nothing further is removed then.
    """
    levels = [[without_slash(path)]]
    while levels[-1]:
        directories: list[bytes] = []
        others: list[bytes] = []

        async def look(directory: bytes, directories: list[bytes] = directories, others: list[bytes] = others) -> None:
            for entry in await files.list(directory):
                found = directories if entry.attributes.is_directory else others
                found.append(posixpath.join(directory, entry.name))

        async def remove(name: bytes) -> None:
            await files.remove(name)
            progress.changed = True

        await _each(files, levels[-1], look, whole=len(levels) == 1)
        await _each(files, others, remove)
        levels.append(directories)

    async def rmdir(name: bytes) -> None:
        await files.rmdir(name)
        progress.changed = True

    for level in reversed(levels):
        await _each(files, level, rmdir)


async def _each(
    files: Files, paths: Sequence[bytes], work: Callable[[bytes], Awaitable[None]], *, whole: bool = False
) -> None:
    """Do *work* for all paths, some at a time; after a failure begin no other, and let those under way end.

    What somebody else removed meanwhile needs no work, unless it is the *whole* tree.
    """
    failures: list[HostError] = []

    async def one(path: bytes) -> None:
        if failures:
            return
        try:
            await work(path)
        except HostError as error:
            if whole or not is_missing(error):
                if printable(path) not in error.detail:
                    error.detail = f"{error.detail}: {printable(path)}"
                failures.append(error)

    await drain(paths, one, at_once(files))
    if failures:
        raise failures[0]
