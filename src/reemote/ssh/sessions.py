"""The sessions of one connection: how many the host allows, and those that all share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Generic, TypeVar

import asyncssh

from .places import Places

log = logging.getLogger("reemote")

T = TypeVar("T")

REFUSED = 2
"""The reason code with which sshd refuses a session beyond ``MaxSessions`` (RFC 4254, section 5.1)."""

PATIENCE = 3.0
"""Seconds to try on for a session that is refused while none of ours is open: a session that has
just ended may still count for a moment."""

CLOSING = 2.0
"""Seconds that a session's place is kept for it while the host does not say that it is closed."""

GOODBYE = 1.0
"""Seconds that a host's SFTP server has to end when it is told to."""


class Unavailable(Exception):
    """The host does not have what was to be started; nothing has run there."""


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

        A session that may not be closed by then keeps its place until *closed* calls what it is given, but not for
        longer than :data:`CLOSING`.

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


class Shared(Generic[T]):
    """A session that all of a connection share: opened when first needed, and replaced when it has died.

    Args:
        start: Starts it.
        end: Ends it.
        sessions: Has a place for it.
        spare: Gives up what else can be, for its place.
    """

    def __init__(
        self,
        start: Callable[[], Awaitable[T]],
        end: Callable[[T], Awaitable[None]],
        sessions: Sessions,
        spare: Callable[[], Awaitable[None]],
    ) -> None:
        self._start = start
        self._end = end
        self._sessions = sessions
        self._spare = spare
        self._current: Lease[T] | None = None
        self._opening = asyncio.Lock()

    async def join(self) -> Lease[T]:
        """Give the session to one more user, who has to leave it."""
        async with self._opening:
            if self._current is None:
                async with AsyncExitStack() as stack:
                    place = self._sessions.open(self._start, self._spare)
                    client = await stack.enter_async_context(place)
                    stack.push_async_callback(self._end, client)
                    self._current = Lease(self, client, stack.pop_all())
            self._current.users += 1
            return self._current

    def is_current(self, lease: Lease[T]) -> bool:
        """Whether others will join *lease*."""
        return lease is self._current

    def retire(self, lease: Lease[T]) -> None:
        """Let nobody else join *lease*."""
        if lease is self._current:
            self._current = None

    async def spare(self) -> None:
        """Close the session while nobody uses it: a command needs its place."""
        lease = self._current
        if lease is not None and not lease.users:
            self.retire(lease)
            await lease.close()

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits for the session's place."""
        return self._sessions.places.is_wanted


class Lease(Generic[T]):
    """One shared session with its users."""

    def __init__(self, shared: Shared[T], client: T, stack: AsyncExitStack) -> None:
        self.client = client
        self.users = 0
        self._shared = shared
        self._stack = stack

    def retire(self) -> None:
        """Let nobody else join: the session is dead, or may be stuck. The last who leaves closes it."""
        self._shared.retire(self)

    async def leave(self) -> None:
        """Give the session back."""
        self.users -= 1
        if self.users:
            return
        if not self._shared.is_current(self):
            await self.close()
        elif self._shared.is_wanted:
            await self._shared.spare()

    async def close(self) -> None:
        """End the session and give up its place."""
        await self._stack.aclose()


SftpSession = Lease[asyncssh.SFTPClient]
"""The SFTP session of a connection, for the files of one user."""


async def end_sftp(client: asyncssh.SFTPClient) -> None:
    """Tell an SFTP server to end, and wait for it, but not for long."""
    client.exit()
    try:
        async with asyncio.timeout(GOODBYE):
            await client.wait_closed()
    except TimeoutError:
        log.warning("an SFTP server did not end within %g s of being told to; it is left alone", GOODBYE)
