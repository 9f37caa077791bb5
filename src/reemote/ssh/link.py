"""One SSH connection to a host: how it is made, and the sessions that share it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, cast

import asyncssh

from ..core.errors import (
    ChannelOpenError,
    CommandTimeout,
    ConnectionLost,
    FileDescriptorsExhausted,
    HostError,
    HostKeyNotVerifiable,
    HostKeyRevoked,
    PrivilegeDenied,
    TerminalRequired,
)
from ..core.host import looked_up
from ..core.response import Completed
from ..core.secrets import Scrubber
from . import lean
from .errors import connect_failure
from .hostkeys import HostKeyClient
from .lean import LeanChannel
from .options import Plan
from .places import Places
from .process import CommandSession, Process
from .request import Request
from .sessions import PATIENCE, Sessions
from .shared import SftpSession, SharedSessions
from .wire import KILL, Become

log = logging.getLogger("reemote")

# asyncssh logs commands, and what goes wrong may name what was sent.
for _name in ("reemote", "asyncssh", "asyncssh.sftp"):
    logging.getLogger(_name).addFilter(Scrubber())

BACKOFF, BACKOFF_CAP = 0.25, 4.0
"""Seconds before the second attempt to connect, doubled for each further one up to the cap."""

END_GROUP = 8.0
"""Seconds to end what runs as another user."""

ABANDON = 6.0
"""Seconds to end a command whose start was cut short, before the connection is dropped."""


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

    password = await looked_up(plan.arguments.get("password"))
    try:
        # All of it, name resolution too.
        async with asyncio.timeout(plan.timeout or None):
            connection = await lean.connect(
                plan.options,
                plan.host,
                plan.port,
                client_factory=factory,
                known_hosts=plan.trust.known_hosts(),
                password=password,
                flags=plan.arguments.get("flags", 0),
                sock=plan.arguments.get("sock"),
            )
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
        self._sessions = Sessions(plan.max_sessions, connection.is_closed)
        self._shared = SharedSessions(connection, self._sessions)
        self._running = Places(plan.max_sessions)

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
        if request.is_simple and (answer := await self._run_in_shared(request, interrupted)) is not None:
            return answer
        session: CommandSession | None = None

        async def start() -> Process:
            nonlocal session
            session = CommandSession(request)
            return await self._start(session, request, interrupted)

        try:
            async with self._sessions.open(start, self._shared.spare, _when_closed) as process:
                return await self._finish(process, interrupted)
        except (asyncssh.Error, OSError) as error:
            raise self._start_failure(error, session, request) from error

    async def _run_in_shared(self, request: Request, interrupted: Callable[[Completed], None]) -> Completed | None:
        """Run a command where it needs no session of its own; ``None`` where there is no such place for it."""
        if request.is_question:
            return await self._ask(request, interrupted)
        if not self.plan.runner:
            return None
        async with self._running:
            return await self._run_in_runner(request, interrupted)

    async def _ask(self, request: Request, interrupted: Callable[[Completed], None]) -> Completed | None:
        """Run a command in the shell that the connection keeps; ``None`` where there is none, or it is busy."""
        async with self._shared.shell() as shell:
            if shell is None:
                return None
            session = CommandSession(request)
            process = Process(request, session, shell.run(session, request.wire(None)), _deadline(request))
            with self._said_of("the shell that asks for us"):
                return await self._finish(process, interrupted)

    async def _run_in_runner(self, request: Request, interrupted: Callable[[Completed], None]) -> Completed | None:
        """Run a command in the runner; ``None`` where there is none, or it cannot start it."""
        async with self._shared.runner() as runner:
            if runner is None:
                return None
            session = CommandSession(request)
            channel, _ = runner.create_session(lambda: session, request.wire(None), has_input=False)
            process = Process(request, session, cast(Any, channel), _deadline(request))
            try:
                with self._said_of("the runner"):
                    return await self._finish(process, interrupted)
            except ConnectionLost:
                if channel.refused is None:
                    raise
                log.debug("%s: the runner started no command: %s", self.plan.where, channel.refused)
                return None

    @contextlib.contextmanager
    def _said_of(self, what: str) -> Iterator[None]:
        """Say of a lost connection what it is that was lost, where the connection itself stands."""
        try:
            yield
        except ConnectionLost as error:
            if not self.is_closed:
                error.detail = f"{what} has ended on the host, and nobody knows what became of the command"
            raise

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
        except (ConnectionLost, PrivilegeDenied):
            raise  # it has ended, or never began
        except Exception:  # its input could not be had to the end
            await self._end(process)
            raise

    async def _start(
        self, session: CommandSession, request: Request, interrupted: Callable[[Completed], None]
    ) -> Process:
        """Open a session and start the command in it."""
        deadline = _deadline(request)
        opened = self._open(session, request)
        try:
            async with asyncio.timeout_at(deadline) as limit:
                return Process(request, session, await opened(), deadline)
        except (asyncio.CancelledError, TimeoutError) as error:
            # The command may be about to start: it must not run on with nobody to end it.
            if isinstance(error, TimeoutError) and not limit.expired():
                raise
            nothing = request.nothing()
            interrupted(nothing)
            await self._abandon(request, session, opened())
            if limit.expired():
                raise request.late(nothing) from None
            raise

    def _start_failure(self, error: Exception, session: CommandSession | None, request: Request) -> HostError:
        if self.is_closed or not isinstance(error, asyncssh.ChannelOpenError):
            if session is None or session.channel is None:
                return ConnectionLost("the connection was lost before the command was sent", outcome="not_started")
            return ConnectionLost(
                "the connection was lost as the command was sent",
                completed=request.nothing(),
            )
        if request.terminal and "PTY" in str(error):
            return TerminalRequired("sudo or su works on a terminal only, and the host gives none")
        return ChannelOpenError(f"the host opened no session: {error.reason}")

    def _open(
        self, session: CommandSession, request: Request
    ) -> Callable[[], asyncio.Future[asyncssh.SSHClientChannel[bytes]]]:
        """Begin to open a session for a command; what is given makes futures of its channel, which may be cancelled."""
        command = request.wire(session.gate)
        if self.plan.has_plain_sessions and request.is_plain:
            return LeanChannel(self._connection, session, command, input_ends=not request.has_input).opened
        creating = asyncio.ensure_future(self._create(session, command, request.options(), not request.has_input))
        return lambda: asyncio.shield(creating)

    async def _create(
        self, session: CommandSession, command: str, options: Mapping[str, Any], input_ends: bool
    ) -> asyncssh.SSHClientChannel[bytes]:
        channel, _ = await self._connection.create_session(lambda: session, command, **options)
        if input_ends:
            with contextlib.suppress(OSError):
                channel.write_eof()
        return cast(asyncssh.SSHClientChannel[bytes], channel)

    async def _abandon(
        self,
        request: Request,
        session: CommandSession,
        opening: asyncio.Future[asyncssh.SSHClientChannel[bytes]],
    ) -> None:
        try:
            async with asyncio.timeout(ABANDON):
                await self._end(Process(request, session, await opening, None))
        except (TimeoutError, asyncssh.Error, OSError):
            if not opening.done():
                self.abort()

    async def _end(self, process: Process) -> bool:
        """End a command on the host; where that fails, or is interrupted, drop the connection."""
        ending = asyncio.ensure_future(self._end_privileged(process) if process.group else process.end())
        try:
            ended = await asyncio.shield(ending)
        except asyncio.CancelledError:
            ending.cancel()
            self.abort()
            raise
        if not process.has_ended():
            self.abort()
        return ended

    async def _end_privileged(self, process: Process) -> bool:
        """End a command of another user with that user's privileges: signals of the login user do not reach it."""
        gate = process.session.gate
        assert gate is not None
        request = Request(
            command=shlex.join(["sh", "-c", KILL, "sh", str(process.group)]),
            who=gate.who,
            terminal=process.request.terminal,
            timeout=END_GROUP,
        )
        try:
            if await self._run_beside(request):
                return await process.gone()
            return await process.end() and not process.was_killed  # SIGKILL reaches sudo, and not what it runs
        except asyncssh.ChannelOpenError:
            # The host allows no session besides the command's own, which has to go first.
            await process.end()
            return await self._run_beside(request, PATIENCE) and process.has_ended()

    async def _run_beside(self, request: Request, patience: float = 0.0) -> bool:
        """Run a command in a session for which no place is kept, and answer whether it could be run."""
        clock = asyncio.get_running_loop().time
        until = clock() + patience
        while True:
            try:
                process = await self._start(CommandSession(request), request, lambda _: None)
                break
            except asyncssh.ChannelOpenError:
                if clock() > until:
                    raise
            await asyncio.sleep(0.05)
        try:
            await process.communicate()
        except HostError as error:
            log.warning("%s: what was started with privileges may be running on: %s", self.plan.where, error)
            process.channel.abort()
            return False
        return True

    # Files

    def sftp(self, who: Become | None = None) -> AbstractAsyncContextManager[SftpSession]:
        """Give the connection's SFTP session for the files of a user; see :meth:`SharedSessions.sftp`."""
        return self._shared.sftp(who)


def _when_closed(process: Process, callback: Callable[[], None]) -> None:
    process.session.when_closed(callback)


def _deadline(request: Request) -> float | None:
    return None if request.timeout is None else asyncio.get_running_loop().time() + request.timeout
