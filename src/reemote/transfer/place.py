"""Put new content in a file's place: whole or not at all, and nothing left behind."""

from __future__ import annotations

import asyncio
import posixpath
import secrets
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from ..core.errors import HostError, LocalFileError, SFTPError
from ..core.files import Attributes, File, Files, Path, Times, printable

MOST_LINKS = 40
"""Symbolic links that may lead to one file, as in Linux (path_resolution(7))."""

TIDY = 5.0
"""Seconds to remove what a failed transfer has left, over a new connection if need be."""

LATE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.5)
"""Seconds to wait between looks for a file that a host may still be about to make."""

LONGEST = 255
"""Bytes that a name may have on most file systems (NAME_MAX)."""


@dataclass(frozen=True)
class Wanted:
    """What a file is to be like, besides its content; what is ``None`` stays as it is."""

    permissions: int | None = None
    """Permission bits."""
    masked: bool = False
    """Whether the permissions are for a file that is new, and the host's umask applies to them."""
    owner: tuple[int | None, int | None] = (None, None)
    """User and group."""
    times: Times | None = None
    """Times of access and modification, in nanoseconds."""


NOTHING = Wanted()


def temporary(path: bytes) -> bytes:
    """Give a hidden name beside *path*, which nobody else has."""
    folder, name = posixpath.split(path)
    mark = b".reemote-" + secrets.token_hex(4).encode()
    return posixpath.join(folder, b"." + name[: LONGEST - 1 - len(mark)] + mark)


async def missing(files: Files, directory: bytes) -> list[bytes]:
    """Give the directories that have to be made for *directory* to be there, each before those in it."""
    found: list[bytes] = []
    while directory and await files.lookup(directory) is None:
        found.insert(0, directory)
        directory = posixpath.dirname(directory)
    return found


async def destination(files: Files, path: Path) -> tuple[bytes, Attributes | None]:
    """Follow symbolic links to the file that writing to *path* would write to.

    Returns:
        Its path, and its attributes; ``None`` where there is no such file yet.
    """
    name = files.absolute(path)
    for _ in range(MOST_LINKS):
        found = await files.lookup(name, follow=False)
        if found is None or not found.is_link:
            return name, found
        name = posixpath.join(posixpath.dirname(name), await files.readlink(name))
    raise SFTPError(f"{printable(path)} leads through more than {MOST_LINKS} symbolic links", kind="SFTPFailure")


@asynccontextmanager
async def placed(
    files: Files,
    path: Path,
    wanted: Wanted = NOTHING,
    *,
    in_place: bool = False,
    follow: bool = True,
    left: list[bytes] | None = None,
) -> AsyncIterator[File]:
    """Give a file to fill; at the end of the context it takes the place of what *path* was.

    Until then it has a temporary name in the same directory. It gets the owner and the mode of what
    it replaces. When the context fails, the file at *path* is what it was.

    Args:
        files: The file system.
        path: The file; symbolic links lead to it, if *follow*, and are replaced else.
        wanted: What it is to be like.
        in_place: Whether to write into the file itself, so that others may see half of it; a link that is
            not followed is replaced all the same.
        follow: See *path*.
        left: Gets the temporary name where the file can neither be removed nor named in a failure.
    """
    name = files.absolute(path)
    if follow:
        name, old = await destination(files, path)
    else:
        old = await files.lookup(name, follow=False)
    if old is not None and old.is_link:
        in_place, old = False, None  # it is not to be followed, so that there is nothing to write into
    if in_place or (old is not None and not old.is_file):
        async with _opened_in_place(files, name, wanted) as file:
            yield file
            if old is None or old.is_file:  # a device has nothing to wait for
                await file.sync()
        return
    temporary_name, is_made = temporary(name), False
    try:
        async with _created(files, temporary_name, name, old, wanted) as file:
            is_made = True
            await _keep_owner(file, old, wanted, name)
            yield file
            await _finish(file, old, wanted)
            await file.sync()
        await files.replace(temporary_name, name)
    except BaseException as error:
        is_refused = isinstance(error, HostError) and error.outcome != "unknown"
        if isinstance(error, HostError):
            error.changed = not is_refused
        if is_made or not is_refused:
            await tidy(temporary_name, _discard(files, temporary_name, is_made=is_made), error, left)
        raise


@asynccontextmanager
async def _opened_in_place(files: Files, name: bytes, wanted: Wanted) -> AsyncIterator[File]:
    async with files.open(name, "write", wanted.permissions) as file:
        try:
            await _keep_owner(file, None, wanted, name)
            yield file
            await _finish(file, None, wanted)
        except HostError as error:
            error.changed = True
            raise


@asynccontextmanager
async def _created(
    files: Files, temporary_name: bytes, name: bytes, old: Attributes | None, wanted: Wanted
) -> AsyncIterator[File]:
    """Make the temporary file; nobody else may read it where its final mode is known only at the end."""
    known = old is not None or (wanted.permissions is not None and not wanted.masked)
    permissions = 0o600 if known else wanted.permissions
    async with AsyncExitStack() as stack:
        try:
            file = await stack.enter_async_context(files.open(temporary_name, "create", permissions))
        except (SFTPError, LocalFileError) as error:
            error.detail = error.detail.replace(printable(temporary_name), printable(name))
            if error.kind in ("SFTPPermissionDenied", "PermissionError") and old is not None:
                error.detail += ": in_place=True writes into the file itself"
            raise
        yield file


async def _keep_owner(file: File, old: Attributes | None, wanted: Wanted, name: bytes) -> None:
    """Give the file its owner before it has content: a host that refuses does so at no cost."""
    if old is None and wanted.owner == (None, None):
        return
    now = await file.stat()
    kept = (now.uid, now.gid) if old is None else (old.uid, old.gid)
    uid, gid = (before if asked is None else asked for asked, before in zip(wanted.owner, kept, strict=True))
    if (uid, gid) != (now.uid, now.gid) and uid is not None and gid is not None:
        try:
            await file.set(owner=(uid, gid))
        except (SFTPError, LocalFileError) as error:
            if old is not None and wanted.owner == (None, None):
                error.detail = (
                    f"{printable(name)} belongs to user {uid} and group {gid}, and a new file cannot be given to them: "
                    "in_place=True writes into the file itself"
                )
            raise


async def _finish(file: File, old: Attributes | None, wanted: Wanted) -> None:
    """Set the mode and the times, once nothing is written any more."""
    if old is not None and (wanted.permissions is None or wanted.masked):
        await file.set(permissions=old.mode)
    elif wanted.permissions is not None and not wanted.masked:
        await file.set(permissions=wanted.permissions)
    if wanted.times is not None:
        await file.set(times=wanted.times)


async def tidy(
    path: bytes, discard: Coroutine[Any, Any, None], error: BaseException, left: list[bytes] | None = None
) -> None:
    """Remove what a failed transfer has left at *path*; where that fails too, *left* gets to tell of it, or *error*."""
    task = asyncio.current_task()
    removing = asyncio.create_task(discard)
    deadline = asyncio.get_running_loop().time() + TIDY
    while not removing.done():
        # Who is cancelled meanwhile, since another file has failed, tidies up all the same. Who was cancelled twice
        # is to leave at once: nobody may be left who would hear the host's answer.
        try:
            async with asyncio.timeout_at(deadline if task is None or task.cancelling() < 2 else 0):
                await asyncio.wait([removing])
        except TimeoutError:
            break
        except asyncio.CancelledError:
            if task is None or task.cancelling() > 1:
                break
    removing.cancel()
    [failure] = await asyncio.gather(removing, return_exceptions=True)
    if failure is None:
        return
    if not isinstance(failure, HostError | asyncio.CancelledError):
        raise failure
    if isinstance(error, HostError):
        error.changed = True
    if left is not None:
        left.append(path)
    elif isinstance(error, HostError):
        error.detail += f"; {printable(path)} may be left there"


async def _discard(files: Files, name: bytes, *, is_made: bool = True) -> None:
    """Remove a file; one that nobody knows to be made may still come, from a session that was cut."""
    for pause in (0.0,) if is_made else (0.0, *LATE):
        await asyncio.sleep(pause)
        if await files.lookup(name, follow=False) is not None:
            await files.remove(name)
            return


async def place_link(files: Files, target: bytes, path: bytes) -> bool:
    """Put a symbolic link in a file's or link's place, unless it is there already; answer whether it was not."""
    found = await files.lookup(path, follow=False)
    if found is None:
        await files.symlink(target, path)
        return True
    if found.is_link and await files.readlink(path) == target:
        return False
    if found.is_directory:
        raise SFTPError(f"{printable(path)} is a directory, where a symbolic link is to be", kind="SFTPFailure")
    temporary_name = temporary(path)
    await files.symlink(target, temporary_name)
    try:
        await files.replace(temporary_name, path)
    except BaseException as error:
        await tidy(temporary_name, _discard(files, temporary_name), error)
        raise
    return True
