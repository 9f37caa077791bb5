"""One SSH connection to a host: how it is made, and the sessions that share it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import asyncssh

from ..core.errors import (
    ChannelOpenError,
    CommandTimeout,
    ConnectionLost,
    FileDescriptorsExhausted,
    HostError,
    HostKeyNotVerifiable,
    HostKeyRevoked,
    NoSpaceLeft,
)
from ..core.response import Completed
from .errors import connect_failure, run_failure
from .hostkeys import HostKeyClient
from .options import Plan
from .places import Places
from .process import CommandSession, Process, Request

log = logging.getLogger("reemote")

T = TypeVar("T")

BACKOFF, BACKOFF_CAP = 0.25, 4.0
"""Seconds before the second attempt to connect, doubled for each further one up to the cap."""

REFUSED_SESSION = 2
"""The reason code with which sshd refuses a session beyond ``MaxSessions`` (RFC 4254, section 5.1)."""

ABANDON = 6.0
"""Seconds to end a command whose start was cut short, before the connection is dropped."""

SESSION_PATIENCE = 3.0
"""Seconds to try on for a session that is refused while none of ours is open: a session that has
just ended may still count for a moment."""


async def connect(
    plan: Plan, gate: Callable[[], AbstractAsyncContextManager[Any]], dropped: Callable[[], None]
) -> Link:
    """Connect to a host and log in; try again where the host never came to see the login.

    Args:
        plan: The host and the options.
        gate: Gives a context in which one attempt may be made.
        dropped: Is told when the server drops an attempt, as it does when there are too many.

    Raises:
        HostError: One of the failures of a connection; nothing has run on the host.
    """
    spent, attempt = 0.0, 0
    clock = asyncio.get_running_loop().time
    while True:
        attempt += 1
        async with gate():
            start = clock()
            try:
                return await _attempt(plan)
            except HostError as error:
                failure = error
            spent += clock() - start
        if isinstance(failure, ConnectionLost | FileDescriptorsExhausted):
            dropped()
        if attempt >= getattr(failure, "attempts", 1) or (plan.timeout and spent >= plan.timeout):
            raise failure
        pause = min(BACKOFF * 2 ** (attempt - 1), BACKOFF_CAP) * random.uniform(0.5, 1.5)
        log.debug("%s: %s; next attempt in %.2f s", plan.where, failure, pause)
        await asyncio.sleep(pause)


async def _attempt(plan: Plan) -> Link:
    client: HostKeyClient | None = None

    def factory() -> asyncssh.SSHClient:
        nonlocal client
        client = plan.trust.client()
        return client

    arguments = {"client_factory": factory, **plan.arguments, "known_hosts": plan.trust.known_hosts()}
    try:
        # The option bounds what asyncssh does; the timeout here bounds name resolution, too.
        async with asyncio.timeout(plan.timeout or None):
            connection = await asyncssh.connect(plan.host, plan.port, **arguments)
    except (asyncssh.Error, OSError, UnicodeError, ValueError) as error:
        found = connect_failure(error, plan.where, plan.timeout)
        if found is None:
            raise
        failure, attempts = found
        if isinstance(failure, HostKeyNotVerifiable | HostKeyRevoked):
            failure = plan.trust.explain(failure, client, plan.name, plan.host, plan.port)
        failure.attempts = attempts
        raise failure from error
    if client is not None and client.is_new and (key := connection.get_server_host_key()):
        try:
            plan.trust.remember(plan.host, plan.port, key)
        except OSError as error:
            log.warning("the new host key of %s could not be remembered: %s", plan.where, error)
    return Link(plan, connection)


class Link:
    """One connection that stands, shared by the commands and file transfers of its host."""

    def __init__(self, plan: Plan, connection: asyncssh.SSHClientConnection) -> None:
        self.plan = plan
        self.users = 0
        """How many runs hold the connection at the moment."""
        self._connection = connection
        self._sessions = Sessions(plan.max_sessions)
        self._sftp: asyncssh.SFTPClient | None = None
        self._sftp_stack = AsyncExitStack()
        self._sftp_users = 0
        self._sftp_lock = asyncio.Lock()

    @property
    def is_closed(self) -> bool:
        """Whether the connection has ended."""
        return self._connection.is_closed()

    async def close(self) -> None:
        """Close the connection, and wait until its socket is closed."""
        self._connection.close()
        try:
            async with asyncio.timeout(2):
                await self._connection.wait_closed()
        except TimeoutError:
            self.abort()

    def abort(self) -> None:
        """Cut the connection, without a word to the host."""
        self._connection.abort()

    # Commands

    async def run(self, request: Request, interrupted: Callable[[Completed], None]) -> Completed:
        """Run a command and give its record.

        Cancelled, it ends the command on the host before it lets go, and reports the record so far
        to *interrupted*.

        Raises:
            HostError: Its outcome tells whether the command may have run.
        """
        session = CommandSession()

        async def start() -> Process:
            nonlocal session
            session = CommandSession()
            return await self._start(session, request, interrupted)

        try:
            async with self._sessions.open(start, lambda: self.is_closed, self._spare_sftp) as process:
                return await self._finish(process, interrupted)
        except (asyncssh.Error, OSError) as error:
            raise self._start_failure(error, session, request) from error

    async def _finish(self, process: Process, interrupted: Callable[[Completed], None]) -> Completed:
        try:
            return await process.communicate()
        except CommandTimeout as error:
            if await self._end(process):
                error.outcome = "completed"
            error.completed = process.record()
            raise
        except asyncio.CancelledError:
            interrupted(process.record())
            await self._end(process)
            interrupted(process.record())
            raise

    async def _start(
        self, session: CommandSession, request: Request, interrupted: Callable[[Completed], None]
    ) -> Process:
        """Open a session and start the command in it."""
        now = asyncio.get_running_loop().time()
        deadline = None if request.timeout is None else now + request.timeout

        async def create() -> Process:
            channel, _ = await self._connection.create_session(
                lambda: session, request.wire(), **{**request.session, "encoding": None}
            )
            return Process(request, session, channel, deadline)

        opening = asyncio.ensure_future(create())
        nothing = Completed(command=request.command, exit_status=None)
        try:
            async with asyncio.timeout_at(deadline) as limit:
                return await asyncio.shield(opening)
        except (asyncio.CancelledError, TimeoutError) as error:
            # The command may be about to start: it must not run on with nobody to end it.
            if isinstance(error, TimeoutError) and not limit.expired():
                raise
            interrupted(nothing)
            await self._abandon(opening)
            if limit.expired():
                raise request.late(nothing) from None
            raise

    def _start_failure(self, error: Exception, session: CommandSession, request: Request) -> HostError:
        if self.is_closed or not isinstance(error, asyncssh.ChannelOpenError):
            if session.channel is None:
                return ConnectionLost("the connection was lost before the command was sent", outcome="not_started")
            return ConnectionLost(
                "the connection was lost as the command was sent",
                completed=Completed(command=request.command, exit_status=None),
            )
        return ChannelOpenError(f"the host opened no session: {error.reason}")

    async def _abandon(self, opening: asyncio.Future[Process]) -> None:
        try:
            async with asyncio.timeout(ABANDON):
                await self._end(await opening)
        except (TimeoutError, asyncssh.Error, OSError):
            if not opening.done():
                self.abort()

    async def _end(self, process: Process) -> bool:
        """End a command on the host; where that fails, or is interrupted, drop the connection."""
        ending = asyncio.ensure_future(process.end())
        try:
            ended = await asyncio.shield(ending)
        except asyncio.CancelledError:
            ending.cancel()
            self.abort()
            raise
        if not process.has_ended():
            self.abort()
        return ended

    # Files

    @asynccontextmanager
    async def sftp(self, path: str | bytes | None = None) -> AsyncIterator[asyncssh.SFTPClient]:
        """Give the connection's SFTP client, which all users share.

        Args:
            path: The path that is worked on. SFTP has no word for a full disk; with it, one is
                told from other failures.

        Raises:
            HostError: In place of what asyncssh raises.
        """
        client = await self._open_sftp()
        self._sftp_users += 1
        try:
            yield client
        except (asyncssh.SFTPError, asyncssh.ConnectionLost) as error:
            failure = run_failure(error)
            assert failure is not None
            if isinstance(failure, ConnectionLost):
                self._sftp = None  # the session is dead, the connection may not be: open another next time
                await self._sftp_stack.aclose()
            if isinstance(error, asyncssh.SFTPFailure) and path is not None and await _is_full(client, path):
                failure = NoSpaceLeft(f"no space is left on the host for {path!r}")
            raise failure from error
        finally:
            self._sftp_users -= 1
            if not self._sftp_users and self._sessions.places.is_wanted:
                await self._spare_sftp()

    async def _open_sftp(self) -> asyncssh.SFTPClient:
        async with self._sftp_lock:
            if self._sftp is None:
                start = self._connection.start_sftp_client
                place = self._sessions.open(start, lambda: self.is_closed, self._spare_sftp)
                try:
                    client = await self._sftp_stack.enter_async_context(place)
                except (asyncssh.Error, OSError) as error:
                    if self.is_closed:
                        raise ConnectionLost("the connection was lost", outcome="not_started") from error
                    raise run_failure(error, "not_started") or error from error
                self._sftp = await self._sftp_stack.enter_async_context(client)
            return self._sftp

    async def _spare_sftp(self) -> None:
        """Close the SFTP session while nobody uses it: a command needs its place."""
        if self._sftp is not None and not self._sftp_users:
            self._sftp = None
            await self._sftp_stack.aclose()


class Sessions:
    """The sessions of one connection: how many there are, and how many the host allows."""

    def __init__(self, most: int) -> None:
        self.places = Places(most)

    @asynccontextmanager
    async def open(
        self, attempt: Callable[[], Awaitable[T]], gone: Callable[[], bool], spare: Callable[[], Awaitable[None]]
    ) -> AsyncIterator[T]:
        """Open a session by *attempt* and hold its place until the end of the context.

        Where the host refuses a session, its limit is lower than ours: we learn it, and wait for one
        of ours to end. *gone* tells whether the connection is closed, *spare* gives up what can be.
        """
        places, tries = self.places, 0
        patience = asyncio.get_running_loop().time() + SESSION_PATIENCE
        while True:
            if places.is_full:
                await spare()
            await places.take(first=tries > 0)
            try:
                opened = await attempt()
                break
            except BaseException as error:
                places.give()
                refused = isinstance(error, asyncssh.ChannelOpenError) and error.code == REFUSED_SESSION
                if not refused or gone():
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
            places.give()


async def _is_full(client: asyncssh.SFTPClient, path: str | bytes) -> bool:
    try:
        return (await client.statvfs(path)).bavail == 0
    except asyncssh.SFTPError:
        return False
