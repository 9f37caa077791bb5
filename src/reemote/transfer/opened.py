"""Open files of this machine."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager

from ..core.files import Attributes, Times
from .calls import attributes, to_the_end

_MOVED = 64 * 1024 * 1024
"""The most that is copied at a time without moving it; a copy is cancelled only in between."""

_UNSUPPORTED = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EBADF})
"""What the kernel says where it cannot copy by itself; the last of files that are opened to append."""


class OpenFile:
    """An open file of this machine.

    Reads and writes go to the page cache, so they do not leave the event loop for a thread.

    Args:
        descriptor: The open file; whoever opened it closes it.
        appends: Whether it was opened to append.
        translated: A context in which OSError becomes the failure that is to be raised.
    """

    def __init__(
        self, descriptor: int, *, appends: bool, translated: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._descriptor = descriptor
        self._translated = translated
        # The kernel writes at the end by itself, and pwrite() would be told a place that does not count.
        self._seeks = not appends

    async def read(self, size: int, offset: int) -> bytes:
        """Read up to *size* bytes; fewer only at the end of the file."""
        parts: list[bytes] = []
        with self._translated():
            while size > 0 and (part := self._read(size, offset)):
                parts.append(part)
                size -= len(part)
                offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read(self, size: int, offset: int) -> bytes:
        try:
            return os.pread(self._descriptor, size, offset)
        except OSError as error:
            if error.errno != errno.ESPIPE:
                raise
            return os.read(self._descriptor, size)

    async def write(self, data: bytes, offset: int) -> None:
        """Write all of *data*; at the end, where the file was opened to append."""
        rest = memoryview(data)
        with self._translated():
            while rest:
                written = self._write(rest, offset)
                rest = rest[written:]
                offset += written

    def _write(self, data: memoryview, offset: int) -> int:
        if self._seeks:
            try:
                return os.pwrite(self._descriptor, data, offset)
            except OSError as error:
                if error.errno != errno.ESPIPE:
                    raise
            self._seeks = False
        return os.write(self._descriptor, data)

    async def data(self, size: int) -> AsyncIterator[tuple[int, int]]:
        """Give offset and length of the parts that hold data, of the first *size* bytes; the rest are holes."""
        offset = 0
        while offset < size:
            try:
                start = os.lseek(self._descriptor, offset, os.SEEK_DATA)
                end = min(os.lseek(self._descriptor, start, os.SEEK_HOLE), size)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return  # a hole up to the end
                start, end = offset, size  # this file system does not know
            if start < end:
                yield start, end - start
            offset = max(end, start)

    async def stat(self) -> Attributes:
        """Ask for the file's attributes."""
        with self._translated():
            return attributes(os.fstat(self._descriptor))

    async def set(
        self,
        *,
        permissions: int | None = None,
        owner: tuple[int, int] | None = None,
        times: Times | None = None,
        size: int | None = None,
    ) -> None:
        """Set attributes; *owner* is user and group."""
        with self._translated():
            if size is not None:
                os.ftruncate(self._descriptor, size)
            if owner is not None:
                os.fchown(self._descriptor, *owner)
            if permissions is not None:  # after the owner, with whom the set-user-ID bit goes
                os.fchmod(self._descriptor, permissions)
            if times is not None:
                os.utime(self._descriptor, ns=times)

    async def sync(self) -> None:
        """Wait until the content is on the disk, where the file system can tell."""
        with self._translated():
            try:
                await to_the_end(os.fsync, self._descriptor)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise

    async def copy_to(self, target: OpenFile, size: int, start: int = 0) -> bool:
        """Copy *size* bytes from *start* on without moving the data; false where the system cannot."""
        if not hasattr(os, "copy_file_range"):
            return False
        offset, end = start, start + size
        with target._translated():
            while offset < end:
                try:
                    copied = await to_the_end(self._copy, target, min(end - offset, _MOVED), offset)
                except OSError as error:
                    if offset == start and error.errno in _UNSUPPORTED:
                        return False
                    raise
                if copied == 0:  # the end, or a file such as those of /proc, which only reading can tell
                    return offset > start
                offset += copied
        return True

    def _copy(self, target: OpenFile, count: int, offset: int) -> int:
        return os.copy_file_range(self._descriptor, target._descriptor, count, offset, offset)
