"""One command on one connection: its streams, its end, and how it is ended from here."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from collections.abc import AsyncGenerator, AsyncIterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import asyncssh

from ..core.errors import CommandTimeout, ConnectionLost
from ..core.response import Completed

KEPT = 64 * 1024 * 1024
"""Bytes that are kept of each output stream: the first half and the last half of what is longer."""

GRACE_TERM, GRACE_KILL = 3.0, 2.0
"""Seconds that a process group has to end after SIGTERM, and then after SIGKILL."""

YOUNG = 0.3
"""Seconds of a command's life in which it may not be able to hear a signal yet."""

DRAIN_QUIET, DRAIN_MOST = 2.0, 20.0
"""Seconds for output after a command's end: of silence, and at the most. Processes that it left in
the background keep the channel open; what was still on its way must not be lost."""

_CHUNK = 64 * 1024


@dataclass
class Request:
    """A command, and how to run it."""

    command: str
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    stdin: bytes | AsyncIterable[bytes] | None = None
    timeout: float | None = None
    """Seconds for all of it, from the opening of the session to the command's end."""
    session: Mapping[str, Any] = field(default_factory=dict)
    encoding: str = "utf-8"

    def wire(self) -> str:
        """Write the command as it is sent: as the user wrote it, unless it needs a frame.

        Variables are set on the way, since sshd drops those that ``AcceptEnv`` does not list. The
        frame is read by the login shell, whichever it is, and runs the command in that same shell.
        """
        if not self.env and self.cwd is None:
            return self.command
        shell = 'exec "${SHELL:-/bin/sh}" -c "$1"'
        script = f'cd -- "$2" || exit; {shell}' if self.cwd is not None else shell
        variables = [f"{name}={value}" for name, value in self.env.items()]
        where = [self.cwd] if self.cwd is not None else []
        return shlex.join(["exec", "env", *variables, "sh", "-c", script, "sh", self.command, *where])

    def late(self, record: Completed) -> CommandTimeout:
        """Make the error that tells that the command did not end in time."""
        shown = self.command.partition("\n")[0]
        return CommandTimeout(f"{shown!r} did not end within {self.timeout:g} s", completed=record)


class Capture:
    """What a stream brought: all of it up to :data:`KEPT` bytes, the beginning and the end of more."""

    def __init__(self, most: int = KEPT) -> None:
        self._half = most // 2
        self._head = bytearray()
        self._tail = bytearray()
        self.total = 0

    def add(self, data: bytes) -> None:
        """Take the next bytes."""
        self.total += len(data)
        if room := self._half - len(self._head):
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        if len(self._tail) > 2 * self._half:
            del self._tail[: len(self._tail) - self._half]

    def value(self) -> bytes:
        """Give what was kept, with a line in place of what was not."""
        gone = self.total - len(self._head) - min(len(self._tail), self._half)
        if gone <= 0:
            return bytes(self._head + self._tail)
        return b"\n".join((self._head, b"[... %d bytes are left out here ...]" % gone, self._tail[-self._half :]))


class CommandSession(asyncssh.SSHClientSession[bytes]):
    """The client's end of a command's channel: what asyncssh calls as things happen."""

    def __init__(self) -> None:
        self.channel: asyncssh.SSHClientChannel[bytes] | None = None
        self.streams = {None: Capture(), asyncssh.EXTENDED_DATA_STDERR: Capture()}
        self.ended = asyncio.Event()
        """The command has ended, or the channel has."""
        self.closed = asyncio.Event()
        self.writable = asyncio.Event()
        self.writable.set()
        self.received = 0.0
        """When the last output came, by the loop's clock."""
        self._clock = asyncio.get_running_loop().time

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        """The channel is open; from here on the command may start."""
        self.channel = chan

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        """Output came."""
        self.received = self._clock()
        self.streams[datatype].add(data)

    def eof_received(self) -> bool:
        """The command's output has ended; its input may go on."""
        return True

    def exit_status_received(self, status: int) -> None:
        """The command has ended."""
        self._end()

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        """A signal has ended the command."""
        self._end()

    def pause_writing(self) -> None:
        """The host reads its input more slowly than we send it."""
        self.writable.clear()

    def resume_writing(self) -> None:
        """The host has read on."""
        self.writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """The channel has closed, or the connection has."""
        self._end()
        self.closed.set()

    def _end(self) -> None:
        self.ended.set()
        self.writable.set()


class Process:
    """A command that was started, or that may have been."""

    def __init__(
        self,
        request: Request,
        session: CommandSession,
        channel: asyncssh.SSHClientChannel[bytes],
        deadline: float | None,
    ) -> None:
        self.request = request
        self.session = session
        self.channel = channel
        self._deadline = deadline
        self._started = asyncio.get_running_loop().time()

    def record(self) -> Completed:
        """Give the process record so far."""
        return Completed(
            command=self.request.command,
            exit_status=_status(self.channel.get_exit_status()),
            exit_signal=self.channel.get_exit_signal(),
            returncode=self.channel.get_returncode(),
            stdout=self.session.streams[None].value(),
            stderr=self.session.streams[asyncssh.EXTENDED_DATA_STDERR].value(),
            encoding=self.request.encoding,
        )

    async def communicate(self) -> Completed:
        """Send the input, wait for the end, and give the record.

        Raises:
            CommandTimeout: The command did not end in time; it may still be running.
            ConnectionLost: The channel closed, and nothing said how the command ended.
        """
        try:
            async with asyncio.timeout_at(self._deadline):
                await self._feed()
                await self.session.ended.wait()
        except TimeoutError:
            if not self.has_ended():
                raise self.request.late(self.record()) from None
        await self._drain()
        record = self.record()
        if not self.has_ended():
            raise ConnectionLost(
                "the connection was lost before the command's end was known", outcome="unknown", completed=record
            )
        return record

    def has_ended(self) -> bool:
        """Whether the host has said how the command ended."""
        return _status(self.channel.get_exit_status()) is not None or self.channel.get_exit_signal() is not None

    async def _feed(self) -> None:
        """Write the input; a command that ends without reading it is no failure."""
        async with contextlib.aclosing(_pieces(self.request.stdin)) as pieces:
            async for piece in pieces:
                await self.session.writable.wait()
                if self.session.ended.is_set() or not self._write(piece):
                    return  # what became of the command is known at its end
        with contextlib.suppress(OSError):
            self.channel.write_eof()

    def _write(self, piece: bytes) -> bool:
        try:
            self.channel.write(piece)
        except OSError:  # the channel is closed
            return False
        return True

    async def _drain(self) -> None:
        """Take the output that is still on its way once the command has ended."""
        clock = asyncio.get_running_loop().time
        until = clock() + DRAIN_MOST
        self.session.received = clock()
        while not self.session.closed.is_set():
            wait = min(self.session.received + DRAIN_QUIET, until) - clock()
            if wait <= 0:
                break
            await _happens(self.session.closed, wait)
        self.channel.close()

    async def end(self) -> bool:
        """End the command's process group, and answer whether all of it is known to have ended.

        SIGTERM, time to clean up, SIGKILL. What a command has put into a session of its own
        (``setsid``, daemons) lives on.
        """
        age = asyncio.get_running_loop().time() - self._started
        # sshd loses a signal that comes before the command's process leads its group.
        first = [("TERM", YOUNG), ("TERM", GRACE_TERM - YOUNG)] if age < YOUNG else [("TERM", GRACE_TERM)]
        for name, grace in (*first, ("KILL", GRACE_KILL)):
            if self.session.ended.is_set():
                break
            try:
                self.channel.send_signal(name)
            except (OSError, asyncssh.Error):
                break  # the channel is closed
            await _happens(self.session.ended, grace)
        # What it started holds the channel open until it has ended, too.
        gone = self.has_ended() and await _happens(self.session.closed, GRACE_KILL)
        self.channel.close()
        return gone


async def _pieces(data: bytes | AsyncIterable[bytes] | None) -> AsyncGenerator[bytes, None]:
    if isinstance(data, AsyncGenerator):
        async with contextlib.aclosing(data):  # it may hold files
            async for piece in data:
                yield piece
    elif isinstance(data, AsyncIterable):
        async for piece in data:
            yield piece
    elif data:
        view = memoryview(data)
        for start in range(0, len(view), _CHUNK):
            yield bytes(view[start : start + _CHUNK])


async def _happens(event: asyncio.Event, seconds: float) -> bool:
    """Wait for *event*, but no longer than *seconds*."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


def _status(status: int | None) -> int | None:
    """Read asyncssh's exit status, which is -1 where a signal ended the command."""
    return None if status == -1 else status
