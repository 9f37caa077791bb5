"""Listening to a run: events are kept for a while for whoever takes them, and nobody waits for a slow one."""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from .events import Event, EventsDropped, HostFinished, HostStarted, OutputLine, RunFinished, RunStarted, weight

MOST_EVENTS, MOST_BYTES = 10_000, 32 * 1024 * 1024
"""What is kept for a listener that is behind: so many events, or so many bytes in them."""

AT_A_TIME = 256
"""Events that a plain function gets before the thread that calls it looks for more."""

_KEPT = (RunStarted, HostStarted, HostFinished, RunFinished)
"""Events that are never dropped: there is a known number of them."""

Listener = Callable[[Event], Awaitable[None] | None]
"""A function that is told of each event, or a coroutine function."""


class Events:
    """The events of a run, in their order, for one who takes them; the oldest are dropped where he is too slow."""

    def __init__(self) -> None:
        self._lines: deque[tuple[int, Event]] = deque()
        self._others: deque[tuple[int, Event]] = deque()
        self._kept: deque[tuple[int, Event]] = deque()
        self._count = 0
        self._bytes = 0
        self._dropped = 0
        self._news = asyncio.Event()
        self._ended = False

    def emit(self, event: Event) -> None:
        """Take an event; it never waits. To be called in the event loop."""
        queue = (
            self._kept if isinstance(event, _KEPT) else self._lines if isinstance(event, OutputLine) else self._others
        )
        self._count += 1
        queue.append((self._count, event))
        if queue is not self._kept:
            self._bytes += weight(event)
            while self._bytes > MOST_BYTES or len(self._lines) + len(self._others) > MOST_EVENTS:
                self._drop()
        self._news.set()

    def _drop(self) -> None:
        _, event = (self._lines or self._others).popleft()
        self._bytes -= weight(event)
        self._dropped += 1

    def end(self) -> None:
        """Say that no event follows."""
        self._ended = True
        self._news.set()

    def take(self, most: int) -> list[Event]:
        """Give the next events, *most* at the most, without waiting."""
        taken: list[Event] = []
        if self._dropped:
            taken.append(EventsDropped(number=self._dropped))
            self._dropped = 0
        while len(taken) < most and (queues := [q for q in (self._lines, self._others, self._kept) if q]):
            queue = min(queues, key=lambda q: q[0][0])
            _, event = queue.popleft()
            if queue is not self._kept:
                self._bytes -= weight(event)
            taken.append(event)
        return taken

    async def next(self, most: int) -> list[Event]:
        """Give the next events, *most* at the most; none once all were given."""
        while not (taken := self.take(most)) and not self._ended:
            self._news.clear()
            await self._news.wait()
        return taken


class Telling:
    """Tells a listener of a run, beside the run.

    A coroutine function is awaited in the event loop; a plain function is called in a thread, so that
    it may block. Either gets one event after the other.
    """

    def __init__(self, listener: Listener) -> None:
        self.events = Events()
        self.error: Exception | None = None
        """What the listener raised; it is not called again then."""
        self._listener: Callable[[Event], Any] = listener
        self._is_async = inspect.iscoroutinefunction(listener) or inspect.iscoroutinefunction(
            getattr(listener, "__call__", None)  # noqa: B004 - an object with an asynchronous __call__
        )
        self._task = asyncio.create_task(self._tell())

    async def close(self) -> None:
        """Wait until the listener was told of all events."""
        self.events.end()
        try:
            await asyncio.shield(self._task)
        except asyncio.CancelledError:
            self._task.cancel()
            raise

    async def _tell(self) -> None:
        try:
            while batch := await self.events.next(1 if self._is_async else AT_A_TIME):
                if self._is_async:
                    await self._listener(batch[0])
                else:
                    await asyncio.to_thread(self._call, batch)
        except Exception as error:
            self.error = error
            while await self.events.next(MOST_EVENTS):
                pass

    def _call(self, batch: list[Event]) -> None:
        for event in batch:
            self._listener(event)
