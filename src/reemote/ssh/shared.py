"""The sessions of one connection that all share: SFTP for the files of a user, the shell for questions, the runner."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Generic, TypeVar

import asyncssh

from ..core.errors import ConnectionLost
from .errors import run_failure
from .runner import Runner
from .sessions import Sessions, Unavailable
from .sftp import start
from .shell import KeptShell
from .wire import Become

log = logging.getLogger("reemote")

T = TypeVar("T")
S = TypeVar("S", KeptShell, Runner)

GOODBYE = 1.0
"""Seconds that a host's SFTP server has to end when it is told to."""


class SharedSessions:
    """What stands on one connection, each begun when first needed, and given up where its place is.

    Args:
        connection: The connection.
        sessions: Has the places.
    """

    def __init__(self, connection: asyncssh.SSHClientConnection, sessions: Sessions) -> None:
        self._connection = connection
        self._sessions = sessions
        self._known: dict[Any, Shared[Any]] = {}
        self._absent: set[Any] = set()
        """What the host does not have."""

    @asynccontextmanager
    async def sftp(self, who: Become | None) -> AsyncIterator[SftpSession]:
        """Give the SFTP session for the files of a user.

        Raises:
            HostError: The session cannot be opened. What its client raises comes as it is.
        """
        try:
            session = await self._at(who, partial(start, self._connection, who), end_sftp).join()
        except (asyncssh.Error, OSError) as error:
            if self._connection.is_closed():
                raise ConnectionLost("the connection was lost", outcome="not_started") from error
            raise run_failure(error, "not_started") or error from error
        try:
            yield session
        finally:
            await session.leave()

    @asynccontextmanager
    async def shell(self) -> AsyncIterator[KeptShell | None]:
        """Give the shell for questions, if the host has one that is free now."""
        async with self._lent(KeptShell) as shell:
            yield shell if shell is not None and shell.is_free else None

    @asynccontextmanager
    async def runner(self) -> AsyncIterator[Runner | None]:
        """Give the runner, if the host has one."""
        async with self._lent(Runner) as runner:
            yield runner if runner is not None and not runner.is_closed else None

    @asynccontextmanager
    async def _lent(self, kind: type[S]) -> AsyncIterator[S | None]:
        lease = None
        if kind not in self._absent:
            try:
                lease = await self._at(kind, partial(self._started, kind), kind.close).join()
            except Unavailable as error:
                log.debug("%s", error)
                self._absent.add(kind)
            except (asyncssh.Error, OSError) as error:
                log.debug("%s", error)  # what is wrong shows with the command's own session
        if lease is None:
            yield None
            return
        try:
            yield lease.client
        finally:
            if lease.client.is_closed:
                lease.retire()
            await lease.leave()

    async def _started(self, kind: type[S]) -> S:
        if (started := await kind.start(self._connection)) is None:
            raise Unavailable(f"the host has no {kind.__name__}")
        return started

    def _at(self, key: Any, begin: Callable[[], Awaitable[T]], end: Callable[[T], Awaitable[None]]) -> Shared[T]:
        if key not in self._known:
            self._known[key] = Shared(begin, end, self._sessions, self.spare)
        return self._known[key]

    async def spare(self) -> None:
        """Give up what nobody uses: its place is needed."""
        for shared in list(self._known.values()):
            await shared.spare()


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
