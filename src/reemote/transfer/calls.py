"""What files of this machine are made of: calls of the operating system, and threads for what takes long."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from ..core.files import Attributes, printable

T = TypeVar("T")


class Place(NamedTuple):
    """What the system is told of where something is."""

    directory: int | None
    """The open directory that it is in; ``None`` where the name is a whole path."""
    name: bytes
    follow: bool
    """Whether to follow a link there."""


async def in_thread(function: Callable[[threading.Event], T]) -> T:
    """Run what takes long in a thread; the event is set when nobody waits for it any more."""
    stopped = threading.Event()
    try:
        return await asyncio.to_thread(function, stopped)
    finally:
        stopped.set()


def link(source: Place, target: Place) -> None:
    """Make *target* another name of *source*, a link being itself."""
    os.link(
        source.name, target.name,
        src_dir_fd=source.directory, dst_dir_fd=target.directory, follow_symlinks=False,
    )  # fmt: skip


def chmod(at: Place, permissions: int) -> None:
    """Set permissions; a link that is not to be followed has none."""
    if at.follow:
        os.chmod(at.name, permissions, dir_fd=at.directory)
        return
    try:
        os.chmod(at.name, permissions, dir_fd=at.directory, follow_symlinks=False)
    except (NotImplementedError, ValueError):  # what Python makes of it that a link has no permissions
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP)) from None


def longname(name: bytes, status: os.stat_result) -> str:
    """Give the line that ``ls -ln`` would show."""
    date = time.strftime("%b %d %Y %H:%M", time.localtime(status.st_mtime))
    owner = f"{status.st_uid:<8} {status.st_gid:<8}"
    return f"{stat.filemode(status.st_mode)} {status.st_nlink:>4} {owner} {status.st_size:>8} {date} {printable(name)}"


async def to_the_end(function: Callable[..., T], *arguments: object) -> T:
    """Run in a thread, and see it end even when cancelled: its file is closed after that, not before."""
    future = asyncio.get_running_loop().run_in_executor(None, function, *arguments)
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        with contextlib.suppress(Exception):
            future.result()  # heard: nobody is told that it was not
        raise cancelled
    return future.result()


def attributes(status: os.stat_result) -> Attributes:
    """Give the attributes that the system tells."""
    born: float | None = getattr(status, "st_birthtime", None)
    return Attributes(
        permissions=status.st_mode,
        size=status.st_size,
        uid=status.st_uid,
        gid=status.st_gid,
        atime_ns=status.st_atime_ns,
        mtime_ns=status.st_mtime_ns,
        crtime_ns=None if born is None else int(born * 1_000_000_000),
    )
