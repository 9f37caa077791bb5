"""Commands through the runner and through channels of their own, for the tests of the runner."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import asyncssh

from reemote.core.response import Completed
from reemote.ssh.lean import LeanChannel
from reemote.ssh.process import CommandSession, Process
from reemote.ssh.request import Request
from reemote.ssh.runner import Runner
from reemote.ssh.runner_channel import RunnerChannel
from tests.leaks import eventually
from tests.openssh import UserSshd


@contextlib.asynccontextmanager
async def connected(server: UserSshd) -> AsyncIterator[asyncssh.SSHClientConnection]:
    """A connection to a server."""
    async with asyncssh.connect(**server.connection()) as connection:
        yield connection


@contextlib.asynccontextmanager
async def running(server: UserSshd) -> AsyncIterator[tuple[asyncssh.SSHClientConnection, Runner]]:
    """A connection to a server, and a runner on it."""
    async with connected(server) as connection:
        runner = await Runner.start(connection)
        assert runner is not None
        yield connection, runner
        await runner.close()


def begin(runner: Runner, command: Any, **options: Any) -> Process:
    """Start a command."""
    request = Request(command, **options)
    session = CommandSession(request)
    made, _ = runner.create_session(lambda: session, request.wire(session.gate), has_input=request.has_input)
    return Process(request, session, cast(asyncssh.SSHClientChannel[bytes], made), None)


def channel(process: Process) -> RunnerChannel:
    """The channel of a command that was begun."""
    return cast(RunnerChannel, process.channel)


async def run(runner: Runner, command: Any, **options: Any) -> Completed:
    """Run a command through the runner."""
    return await begin(runner, command, **options).communicate()


async def run_by_exec(connection: asyncssh.SSHClientConnection, command: Any, **options: Any) -> Completed:
    """Run a command in a channel of its own."""
    request = Request(command, **options)
    session = CommandSession(request)
    made = LeanChannel(connection, session, request.wire(session.gate), input_ends=not request.has_input)
    return await Process(request, session, await made.opened(), None).communicate()


async def both(connection: asyncssh.SSHClientConnection, runner: Runner, command: Any, **options: Any) -> Completed:
    """Run a command in both ways, which give the same record."""
    expected = await run_by_exec(connection, command, **options)
    record = await run(runner, command, **options)
    assert described(record) == described(expected), (described(record), described(expected))
    return record


def described(record: Completed) -> dict[str, Any]:
    """All that a record says."""
    bytes_of = {"stdout_bytes": record.stdout_bytes, "stderr_bytes": record.stderr_bytes}
    return {**record, "returncode": record.returncode, **bytes_of}


def commands(server: UserSshd, text: str) -> list[int]:
    """The processes of a server with this text in their command lines, but not the shells that start runners."""
    return [pid for pid, line in _lines(server) if text in line and "printf %s%s" not in line]


async def program(server: UserSshd) -> int:
    """The process of the only runner on a server; those of tests before may still be ending."""
    await eventually(lambda: len(commands(server, "# reemote")) == 1)
    return commands(server, "# reemote")[0]


def programs(server: UserSshd) -> set[str]:
    """The command lines of a server's processes."""
    return {line for _, line in _lines(server)}


def _lines(server: UserSshd) -> Iterator[tuple[int, str]]:
    for pid in server.pids:
        with contextlib.suppress(OSError):  # it may end at any time
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            yield pid, line.strip()
