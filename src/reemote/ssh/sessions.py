"""The sessions of one connection: how many the host allows, and who waits for a place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import asyncssh

from .places import Places

T = TypeVar("T")

REFUSED = 2
"""The reason code with which sshd refuses a session beyond ``MaxSessions`` (RFC 4254, section 5.1)."""

PATIENCE = 3.0
"""Seconds to try on for a session that is refused while none of ours is open: a session that has
just ended may still count for a moment."""

CLOSING = 2.0
"""Seconds that a session's place is kept for it while the host does not say that it is closed."""


class Unavailable(Exception):
    """The host does not have what was to be started; nothing has run there."""


def abort_opened(opening: asyncio.Task[tuple[asyncssh.SSHClientChannel[Any], asyncssh.SSHClientSession[Any]]]) -> None:
    """Close the channel of a session that nobody wants any more, if it was opened after all."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result()[0].abort()


class Sessions:
    """The places for sessions on one connection.

    Args:
        most: How many there are, until the host shows that it allows fewer.
        gone: Tells whether the connection is closed.
    """

    def __init__(self, most: int, gone: Callable[[], bool]) -> None:
        self.places = Places(most)
        self._gone = gone

    @asynccontextmanager
    async def open(
        self,
        attempt: Callable[[], Awaitable[T]],
        spare: Callable[[], Awaitable[None]],
        closed: Callable[[T, Callable[[], None]], None] = lambda _, give: give(),
    ) -> AsyncIterator[T]:
        """Open a session by *attempt* and hold its place until the end of the context.

        A session that may not be closed by then keeps its place, if places are scarce, until *closed* calls what it
        is given, but not for longer than :data:`CLOSING`.

        Where the host refuses a session, its limit is lower than ours: we learn it, and wait for one
        of ours to end. *spare* gives up what can be.
        """
        places, tries = self.places, 0
        patience = asyncio.get_running_loop().time() + PATIENCE
        while True:
            if places.is_full:
                await spare()
            await places.take(first=tries > 0)
            try:
                opened = await attempt()
                break
            except BaseException as error:
                places.give()
                refused = isinstance(error, asyncssh.ChannelOpenError) and error.code == REFUSED
                if not refused or self._gone():
                    raise
                tries += 1
                if tries > 1 and places.taken:
                    places.most = places.taken
                elif asyncio.get_running_loop().time() > patience:
                    raise
            await spare()
            if not places.is_full:
                await asyncio.sleep(0.02)
        try:
            yield opened
        finally:
            # While half of the places are free, those that are closing may count twice.
            if 2 * places.taken <= places.most:
                places.give()
            else:
                closed(opened, self._giver())

    def _giver(self) -> Callable[[], None]:
        """Make a function that gives a place back: when it is called, or else after a while, and once only."""
        timer: asyncio.TimerHandle | None = None

        def give() -> None:
            nonlocal timer
            if timer is not None:
                timer.cancel()
                timer = None
                self.places.give()

        timer = asyncio.get_running_loop().call_later(CLOSING, give)
        return give
