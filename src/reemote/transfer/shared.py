"""Read a file of this machine once, however many hosts it goes to."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ..core.files import Attributes, File, Files, Path

KEPT = 64
"""Blocks that are kept for those who come a little later: 16 MiB."""


class _Blocks:
    """The blocks of one state of one file that were read last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, int], bytes] = OrderedDict()

    async def read(self, file: File, size: int, offset: int) -> bytes:
        data = self._kept.get((offset, size))
        if data is None:
            data = self._kept[offset, size] = await file.read(size, offset)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return data


class _Reader:
    """A file that is open to read, whose blocks others may have read already."""

    def __init__(self, file: File, blocks: _Blocks) -> None:
        self._file = file
        self._blocks = blocks

    async def read(self, size: int, offset: int) -> bytes:
        return await self._blocks.read(self._file, size, offset)

    def data(self, size: int) -> AsyncIterator[tuple[int, int]]:
        return self._file.data(size)

    async def stat(self) -> Attributes:
        return await self._file.stat()


_open: weakref.WeakValueDictionary[tuple[object, ...], _Blocks] = weakref.WeakValueDictionary()


@asynccontextmanager
async def shared(files: Files, path: Path) -> AsyncIterator[File]:
    """Open a file to read; those who read the same file of this machine at the same time share its blocks."""
    async with files.open(path, "read") as file:
        if files.is_remote:
            yield file
            return
        found = await file.stat()
        key = (files, files.absolute(path), found.size, found.mtime_ns)
        blocks = _open.setdefault(key, _Blocks())
        yield _Reader(file, blocks)  # type: ignore[misc]
