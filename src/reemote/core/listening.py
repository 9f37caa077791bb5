"""Listening to a run: events are kept for a while for whoever takes them, and nobody waits for a slow one."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import queue
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from .events import Event, EventsDropped, HostFinished, HostStarted, OutputLine, RunFinished, RunStarted, weight

MOST_EVENTS, MOST_BYTES = 10_000, 32 * 1024 * 1024
"""What is kept for a listener that is behind: so many events, or so many bytes in them."""

AT_A_TIME = 64
"""Events that are taken out at a time."""

BRIEF = 1.0
"""Seconds that it has when the run was cancelled."""

PATIENCE = 5.0
"""Seconds that a slow listener has at the end of a run for what it has not heard, before it is told of the end only."""

_KEPT = (RunStarted, HostStarted, HostFinished, RunFinished)
"""Events that are never dropped: there is a known number of them."""

Listener = Callable[[Event], Awaitable[None] | None]
"""A function that is told of each event, or a coroutine function.

One that has an attribute ``wants_lines`` which is false gets no ``OutputLine``: making an event of each line takes
time where there are many.
"""


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
        if isinstance(event, EventsDropped):
            self._dropped += event.number
            return
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

    def drop(self) -> None:
        """Drop what may be dropped."""
        while self._lines or self._others:
            self._drop()

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
        call: Any = listener
        is_async = inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(type(call).__call__)
        self._caller = None if is_async else _Caller(call)
        self._task = asyncio.create_task(self._tell(self._caller or _Awaiter(call)))

    async def close(self, patience: float = PATIENCE) -> None:
        """Wait until the listener was told of all events, or of the last ones where it is slow.

        A listener that does not return is left alone, and :attr:`error` says so.
        """
        self.events.end()
        try:
            await asyncio.wait([self._task], timeout=patience)
            self.events.drop()
            _, late = await asyncio.wait([self._task], timeout=patience)
        except asyncio.CancelledError:
            self._task.cancel()
            raise
        finally:
            if self._caller is not None:
                self._caller.end()
        if late:
            self._task.cancel()
            await asyncio.wait(late)
            self.error = TimeoutError(f"on_event did not return within {patience:g} s after the end of the run")

    async def _tell(self, call: Callable[[list[Event]], Awaitable[None]]) -> None:
        try:
            while batch := await self.events.next(AT_A_TIME):
                await call(batch)
        except Exception as error:
            self.error = error
            while await self.events.next(MOST_EVENTS):
                pass


class _Awaiter:
    """Calls a coroutine function."""

    def __init__(self, listener: Callable[[Event], Awaitable[None]]) -> None:
        self._listener = listener

    async def __call__(self, batch: list[Event]) -> None:
        for event in batch:
            await self._listener(event)


class _Caller:
    """Calls a plain function in a thread of its own, which holds up neither the loop nor the end of the program."""

    def __init__(self, listener: Callable[[Event], object]) -> None:
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._batches: queue.SimpleQueue[tuple[list[Event], asyncio.Future[None]] | None] = queue.SimpleQueue()
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(self._run,), name="reemote on_event", daemon=True).start()

    async def __call__(self, batch: list[Event]) -> None:
        done: asyncio.Future[None] = self._loop.create_future()
        self._batches.put((batch, done))
        await done

    def end(self) -> None:
        """Let the thread end."""
        self._batches.put(None)

    def _run(self) -> None:
        while (work := self._batches.get()) is not None:
            batch, done = work
            error: Exception | None = None
            try:
                for event in batch:
                    answer = self._listener(event)
                    if inspect.isawaitable(answer):  # a lambda that calls a coroutine function, say
                        asyncio.run_coroutine_threadsafe(_wait_for(answer), self._loop).result()
            except Exception as caught:
                error = caught
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(_settle, done, error)


async def _wait_for(answer: Awaitable[object]) -> None:
    await answer


def _settle(done: asyncio.Future[None], error: Exception | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
