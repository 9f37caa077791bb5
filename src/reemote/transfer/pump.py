"""Pump content between open files: many blocks under way at a time, and bounded memory."""

from __future__ import annotations

import asyncio
import hashlib
import time
import weakref
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from itertools import chain, islice
from typing import Any, TypeVar

from ..core.errors import SFTPError
from ..core.files import File, Files

T = TypeVar("T")

RATE = 320 * 1024 * 1024
"""Bytes a second that should be possible over any round-trip time: how many requests are under way
follows from it. More would only fill buffers."""

FEWEST, MOST = 12, 64
"""Requests for blocks that are under way for one file."""

EXTRA = 64
"""Blocks under way in all, besides the one that each transfer may always have: 16 MiB."""


AT_ONCE = 64
"""Requests for something other than blocks that are under way at a time, and files of a copy: a small file
is some seven round trips."""


class _Reserve:
    """The blocks that all transfers of an event loop share."""

    def __init__(self) -> None:
        self.free = EXTRA


_reserves: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Reserve] = weakref.WeakKeyDictionary()


class Flow:
    """The blocks that one transfer has under way: one of its own, more while all transfers together have few.

    Args:
        requested: How many requests may be under way; decided by the round-trip time if not positive.
    """

    def __init__(self, requested: int = -1) -> None:
        self._reserve = _reserves.setdefault(asyncio.get_running_loop(), _Reserve())
        self._own = asyncio.Lock()
        self.requested = requested

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold the place of one block."""
        if self._reserve.free > 0:
            self._reserve.free -= 1
            try:
                yield
            finally:
                self._reserve.free += 1
        else:
            async with self._own:
                yield

    def depth(self, round_trip: float, block: int) -> int:
        """Answer how many requests should be under way."""
        if self.requested > 0:
            return self.requested
        return max(FEWEST, min(MOST, int(round_trip * RATE / block) + 1))


async def pump(
    source: File,
    target: File,
    size: int,
    block: int,
    *,
    flow: Flow,
    sparse: bool = True,
    progress: Callable[[int], Any] = lambda _: None,
) -> None:
    """Copy *size* bytes from one open file to another.

    Args:
        source: Read from.
        target: Written to; it is empty.
        size: How many bytes, from the beginning; where it is 0, all that can be read.
        block: Bytes of one request.
        flow: The blocks that may be under way.
        sparse: Whether holes, and blocks of zeros, need not be written.
        progress: Called with the number of bytes after each block.
    """
    if size == 0:  # also what the files of /proc say
        await _pump_unknown(source, target, block, progress)
        return
    zeros = bytes(block) if sparse else b""
    written = moved = 0

    async def move(offset: int, length: int) -> None:
        nonlocal written, moved
        async with flow.place():
            data = await source.read(length, offset)
            if len(data) < length:
                raise SFTPError("the file became shorter while it was copied", kind="SFTPFailure")
            if not (zeros and data == (zeros if length == block else bytes(length))):
                await target.write(data, offset)
                written = max(written, offset + length)
        moved += length
        progress(length)

    if size <= block:
        await move(0, size)
    else:
        start = time.perf_counter()
        await asyncio.gather(source.stat(), target.stat())
        depth = flow.depth(time.perf_counter() - start, block)
        parts = [part async for part in source.data(size)] if sparse else [(0, size)]
        blocks = (
            (offset, min(block, begin + length - offset))
            for begin, length in parts
            for offset in range(begin, begin + length, block)
        )
        await drain(blocks, lambda each: move(*each), depth)
    if written < size:
        await target.set(size=size)  # what is left at the end is a hole
    if moved < size:
        progress(size - moved)  # the holes


async def _pump_unknown(source: File, target: File, block: int, progress: Callable[[int], Any]) -> None:
    offset = 0
    while data := await source.read(block, offset):
        await target.write(data, offset)
        offset += len(data)
        progress(len(data))


def at_once(*files: Files) -> int:
    """Answer how many small requests should be under way at a time: many where they travel."""
    return AT_ONCE if any(each.is_remote for each in files) else 1


async def drain(items: Iterable[T], work: Callable[[T], Coroutine[Any, Any, None]], most: int) -> None:
    """Do *work* for all *items*, up to *most* at a time; the first failure ends the others.

    The items are taken as there is room, so that their source may still grow meanwhile.
    """
    source = iter(items)
    failure: BaseException | None = None

    async def serve(first: T) -> None:
        nonlocal failure
        try:
            for item in chain((first,), source):
                if failure is not None:
                    return
                await work(item)
        except BaseException as error:
            failure = failure or error
            raise

    workers = [asyncio.create_task(serve(first)) for first in islice(source, most)]
    if not workers:
        return
    try:
        await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    if failure is not None:
        raise failure


async def in_order(file: File, size: int, block: int, requests: int = -1) -> AsyncGenerator[bytes, None]:
    """Read a file from its beginning, block by block, some blocks ahead; all of it where *size* is 0."""
    if size == 0:
        offset = 0
        while data := await file.read(block, offset):
            yield data
            offset += len(data)
        return
    flow = Flow(requests)

    async def fetch(offset: int) -> bytes:
        async with flow.place():
            return await file.read(min(block, size - offset), offset)

    ahead: deque[asyncio.Task[bytes]] = deque()
    try:
        for offset in range(0, size, block):
            ahead.append(asyncio.create_task(fetch(offset)))
            if len(ahead) >= flow.depth(0, block):
                yield await ahead.popleft()
        while ahead:
            yield await ahead.popleft()
    finally:
        for task in ahead:
            task.cancel()
        await asyncio.gather(*ahead, return_exceptions=True)


async def digest(file: File, block: int, size: int) -> bytes:
    """Give the SHA-256 digest of a file's content."""
    found = hashlib.sha256()
    async for data in in_order(file, size, block):
        found.update(data)
    return found.digest()
