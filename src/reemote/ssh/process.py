"""One command on one connection: its streams, its end, and how it is ended from here."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterable, Callable

import asyncssh

from ..core.errors import ConnectionLost, HostError, PrivilegeDenied
from ..core.events import Lines, Stream
from ..core.response import Completed
from .gate import PATIENCE, Gate
from .request import KEPT, Request

STDERR = asyncssh.EXTENDED_DATA_STDERR

STREAMS: dict[asyncssh.DataType, Stream] = {None: "stdout", STDERR: "stderr"}

GRACE_TERM, GRACE_KILL = 3.0, 2.0
"""Seconds that a process group has to end after SIGTERM, and then after SIGKILL."""

YOUNG = 0.3
"""Seconds of a command's life in which it may not be able to hear a signal yet."""

_REFUSED = re.compile(
    r"sudo(-rs)?: (a password is required|interactive authentication is required|sorry, you are not allowed to .*)"
)
"""What sudo says when it does not run a program, although it had said that it may be run."""

DRAIN_QUIET, DRAIN_MOST = 2.0, 20.0
"""Seconds for output after a command's end: of silence, and at the most. Processes that it left in
the background keep the channel open; what was still on its way must not be lost."""

MOMENT = 4
"""Turns of the event loop after the end of a channel until its place is free. A host that gets the next channel in
the same piece of data as the end of the last one counts both."""

FAREWELL = 0.5
"""Seconds that sudo and su have to end when they get no password; they are left alone then."""

_CHUNK = 64 * 1024


class Capture:
    """What a stream brought: all of it up to so many bytes, the beginning and the end of more."""

    def __init__(self, most: int = KEPT) -> None:
        self._half = (most + 1) // 2
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

    @property
    def left_out(self) -> int:
        """How many bytes were not kept."""
        return max(0, self.total - len(self._head) - min(len(self._tail), self._half))

    def value(self) -> bytes:
        """Give what was kept, with a line in place of what was not."""
        if self.total <= self._half:
            return bytes(self._head)
        gone = self.left_out
        if not gone:
            return bytes(self._head + self._tail)
        return b"\n".join((self._head, b"[... %d bytes are left out here ...]" % gone, self._tail[-self._half :]))


class CommandSession(asyncssh.SSHClientSession[bytes]):
    """The client's end of a command's channel: what asyncssh calls as things happen."""

    def __init__(self, request: Request) -> None:
        self.channel: asyncssh.SSHClientChannel[bytes] | None = None
        self.streams = {None: Capture(request.kept), STDERR: Capture(request.kept)}
        self.gate = request.gate()
        self._guarded = None if request.terminal else STDERR
        self._sink = request.sink
        self._lines: dict[asyncssh.DataType, Lines] = {}
        if request.where is not None and request.where.lines:
            for kind, stream in STREAMS.items():
                self._lines[kind] = Lines(request.where, stream, request.encoding)
        self.ended = asyncio.Event()
        """The command has ended, or the channel has."""
        self.over = asyncio.Event()
        """Nothing follows: it has ended, and so has its output; or the channel is closed."""
        self.closed = asyncio.Event()
        self._when_closed: Callable[[], None] | None = None
        self._is_output_over = False
        self.writable = asyncio.Event()
        self.writable.set()
        self.received = 0.0
        """When the last output came, by the loop's clock."""
        self._clock = asyncio.get_running_loop().time

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        """The channel is open; from here on the command may start."""
        self.channel = chan
        if self._sink is not None:
            self._sink.throttle(chan)

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        """Output came."""
        self.received = self._clock()
        if self.gate is not None and datatype == self._guarded:
            data = self.gate.feed(data)
        if data:
            self._take(data, datatype)

    def _take(self, data: bytes, datatype: asyncssh.DataType) -> None:
        if self._sink is not None and datatype is None:
            self.streams[None].total += len(data)
            self._sink.take(data)
        else:
            self.streams[datatype].add(data)
        if datatype in self._lines:
            self._lines[datatype].add(data)

    def finish(self) -> None:
        """Hand on what was waiting for its continuation; nothing follows."""
        if self.gate is not None and (rest := self.gate.rest()):
            self._take(rest, self._guarded)
        for lines in self._lines.values():
            lines.end()

    def eof_received(self) -> bool:
        """The command's output has ended; its input may go on."""
        self._is_output_over = True
        if self.ended.is_set():
            self.over.set()
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
        self._is_output_over = True
        self._end()
        self.closed.set()
        if self._when_closed is not None:
            _turns_later(self._when_closed)

    def when_closed(self, callback: Callable[[], None]) -> None:
        """Have *callback* called when the channel is closed, and the host has had a moment to see that it is."""
        if self.closed.is_set():
            _turns_later(callback)
        else:
            self._when_closed = callback

    def _end(self) -> None:
        self.ended.set()
        if self._is_output_over:
            self.over.set()
        self.writable.set()
        if self.gate is not None:
            self.gate.news.set()


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
        self.was_killed = False
        """Whether it had to be ended by SIGKILL."""
        self._deadline = deadline
        self._started = asyncio.get_running_loop().time()

    def record(self) -> Completed:
        """Give the process record so far."""
        out, err = self.session.streams[None], self.session.streams[STDERR]
        is_partial = self.request.sink is not None or out.left_out or err.left_out
        return Completed(
            command=self.request.text,
            exit_status=_status(self.channel.get_exit_status()),
            exit_signal=self.channel.get_exit_signal(),
            returncode=self.channel.get_returncode(),
            stdout=b"" if self.request.sink else out.value(),
            stderr=err.value(),
            encoding=self.request.encoding,
            sizes=(out.total, err.total) if is_partial else None,
            pty=self.request.terminal,
        )

    async def communicate(self) -> Completed:
        """Send the input, wait for the end, and give the record.

        Raises:
            CommandTimeout: The command did not end in time; it may still be running.
            ConnectionLost: The channel closed, and nothing said how the command ended.
            PrivilegeDenied: sudo or su did not run the command.
        """
        try:
            if self._deadline is None:
                await self._talk()
            else:
                async with asyncio.timeout_at(self._deadline):
                    await self._talk()
        except TimeoutError:
            if not self.has_ended():
                raise self.request.late(self.record()) from None
        await self._drain()
        self.session.finish()
        record = self.record()
        await self._finish_sink(record)
        if not self.has_ended():
            raise ConnectionLost(
                "the connection was lost before the command's end was known", outcome="unknown", completed=record
            )
        self._check_gate(record)
        return record

    async def _talk(self) -> None:
        """Say what is to be said, until the command ends."""
        if self.session.gate is not None:
            await self._pass_gate(self.session.gate)
        if self.request.has_input:
            await self._feed()
        await self.session.ended.wait()

    async def _finish_sink(self, record: Completed) -> None:
        """Wait until standard output is written to its file.

        Raises:
            HostError: It could not be; the command has run all the same.
        """
        if self.request.sink is None:
            return
        try:
            await self.request.sink.finish()
        except HostError as error:
            error.completed, error.changed, error.outcome = record, None, "completed"
            raise

    async def _pass_gate(self, gate: Gate) -> None:
        """Give the password when sudo or su asks, and wait until the command begins.

        Raises:
            PrivilegeDenied: There is no password to give, or it is wrong.
        """
        clock = asyncio.get_running_loop().time
        until = clock() + PATIENCE
        while not gate.is_open and not self.session.ended.is_set():
            try:
                answer = gate.answer()
            except PrivilegeDenied:
                await self._give_up()
                raise
            if answer is not None:
                self._write(answer)
            gate.news.clear()
            if not await _happens(gate.news, until - clock()):
                await self._give_up()
                raise gate.late()
        if gate.is_open and self.request.passed is not None:
            self.request.passed()

    async def _give_up(self) -> None:
        """Have sudo or su end, without another try."""
        with contextlib.suppress(OSError):
            self.channel.write_eof()
        await _happens(self.session.ended, FAREWELL)
        self.channel.close()

    def _check_gate(self, record: Completed) -> None:
        """Refuse to call it the command's end where the command never began.

        Raises:
            PrivilegeDenied: sudo or su did not run it.
        """
        gate = self.session.gate
        if gate is None:
            return
        status, out, err = record["exit_status"], record.stdout_bytes, record.stderr_bytes
        if self.request.terminal:
            out, err = b"", out
        if not gate.is_open:
            raise gate.failure(status, record["stdout"] or record["stderr"])
        after = err[gate.before :].decode("utf-8", "backslashreplace").strip()
        if self.request.is_bare and status == 1 and not out and _REFUSED.fullmatch(after):
            # It may have been the program, and not sudo, that said so.
            failure = gate.failure(status, after)
            failure.outcome, failure.completed = "unknown", record
            raise failure

    @property
    def group(self) -> int | None:
        """The process group of a command that another user runs."""
        return self.session.gate.group if self.session.gate else None

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
        if not self.session.over.is_set():
            clock = asyncio.get_running_loop().time
            until = clock() + DRAIN_MOST
            self.session.received = clock()
            while not self.session.over.is_set():
                wait = min(self.session.received + DRAIN_QUIET, until) - clock()
                if wait <= 0:
                    break
                await _happens(self.session.over, wait)
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
            self.was_killed = name == "KILL"
            try:
                self.channel.send_signal(name)
            except (OSError, asyncssh.Error):
                break  # the channel is closed
            await _happens(self.session.ended, grace)
        return await self.gone()

    async def gone(self) -> bool:
        """Close the channel; answer whether all that the command started is known to have ended."""
        # What it started holds the channel open until it has ended, too.
        gone = await _happens(self.session.ended, GRACE_KILL) and self.has_ended()
        gone = gone and await _happens(self.session.closed, GRACE_KILL)
        self.channel.abort()  # not close(): that would wait until input has gone that nobody reads
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


def _turns_later(callback: Callable[[], None], turns: int = MOMENT) -> None:
    if turns:
        asyncio.get_running_loop().call_soon(_turns_later, callback, turns - 1)
    else:
        callback()


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
