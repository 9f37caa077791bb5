"""Places: how many may do something at a time, a number that changes as limits are learned."""

from __future__ import annotations

import asyncio
from types import TracebackType


class Places:
    """A number of places; who finds none waits for a turn.

    Unlike a semaphore, the number can be lowered while places are taken, and a taker can go first.
    """

    def __init__(self, most: int) -> None:
        self.ceiling = most
        self.most = most
        self.taken = 0
        self._waiting: list[asyncio.Future[None]] = []  # a deque takes more, and each connection has one

    @property
    def is_full(self) -> bool:
        """Whether a taker would have to wait."""
        return self.taken >= self.most

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits for a place."""
        return any(not turn.done() for turn in self._waiting)

    async def take(self, *, first: bool = False) -> None:
        """Wait for a place and take it; before all others that wait, if *first*."""
        while self.is_full:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.insert(0 if first else len(self._waiting), turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._call_next()  # it was our turn: now it is the next one's
                raise
        self.taken += 1

    def give(self) -> None:
        """Give the place back."""
        self.taken -= 1
        self._call_next()

    def _call_next(self) -> None:
        free = self.most - self.taken
        while self._waiting and free > 0:
            turn = self._waiting.pop(0)
            if not turn.done():
                turn.set_result(None)
                free -= 1

    async def __aenter__(self) -> None:
        await self.take()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give()

    def narrow(self, floor: int) -> None:
        """Halve the number, down to *floor*: the limit that was met lies lower."""
        self.most = max(floor, min(self.most, self.taken) // 2)

    def widen(self) -> None:
        """Add a place, up to the number at first."""
        if self.most < self.ceiling:
            self.most += 1
            self._call_next()
