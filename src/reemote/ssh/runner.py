"""The client's end of the runner: a program on the host that gives each command its own process group and pipes.

A channel of SSH for each command costs two round trips, and a process of sshd. The runner is one channel for all of
them: a command costs one round trip. To :class:`~reemote.ssh.process.Process` it looks like a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from itertools import count
from typing import cast

import asyncssh

from .process import STDERR, CommandSession
from .runner_channel import RunnerChannel
from .runner_program import CHUNK, HEADER, PROGRAM, starting
from .sessions import abort_opened
from .wire import nonce

log = logging.getLogger("reemote")

PATIENCE = 10.0
"""Seconds for the host to start the program."""

GOODBYE = 2.0
"""Seconds for the program to end when it is told to."""

MOST_SAID = 4096
"""Bytes of what the host writes on standard error that are kept."""

SOURCE = PROGRAM.encode()

READY = HEADER.pack(b"R", 0, 0)


class Runner:
    """One runner on one connection."""

    def __init__(self) -> None:
        self._stream = _Stream(self._receive, self._lose)
        self._channels: dict[int, RunnerChannel] = {}
        self._numbers = count(1)
        self._frames: list[bytes | bytearray] = []
        self._rest = b""
        self._is_closing = False
        self._call_soon = asyncio.get_running_loop().call_soon

    @classmethod
    async def start(cls, connection: asyncssh.SSHClientConnection) -> Runner | None:
        """Start the program; ``None`` where it cannot be, and then nothing of the user's has run."""
        runner = cls()
        stream = runner._stream
        opening = asyncio.ensure_future(
            connection.create_session(
                lambda: stream, starting(stream.mark, len(SOURCE)), encoding=None, request_pty=False
            )
        )
        is_there = False
        try:
            async with asyncio.timeout(PATIENCE):
                await asyncio.shield(opening)
                await stream.news.wait()
            is_there = stream.is_ready and not stream.is_over
        except (asyncssh.Error, OSError) as error:  # a TimeoutError, too
            log.debug("no runner: %s", str(error) or type(error).__name__)
        finally:
            if not is_there:
                log.debug("no runner; the host says %r", stream.said)
                opening.add_done_callback(abort_opened)
        return runner if is_there else None

    def create_session(
        self, factory: Callable[[], CommandSession], command: str, *, has_input: bool = True
    ) -> tuple[RunnerChannel, CommandSession]:
        """Start a command without waiting for anything; *has_input* false gives it an empty input at once.

        Raises:
            asyncssh.ChannelOpenError: The runner has ended; nothing was sent.
        """
        if self.is_closed:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "the runner has ended")
        text = command.encode("utf-8", "surrogateescape")
        number, session = next(self._numbers), factory()
        channel = self._channels[number] = RunnerChannel(self._send, number, session, has_input)
        session.connection_made(cast(asyncssh.SSHClientChannel[bytes], channel))
        self._send(b"S", number, (b"\1" if has_input else b"\0") + text)
        session.session_started()
        return channel, session

    @property
    def is_closed(self) -> bool:
        """Whether it takes no more commands."""
        return self._is_closing or self._stream.is_over

    async def close(self) -> None:
        """End it, and wait until it has ended; what it runs goes on, as when a connection is closed."""
        if self.is_closed or self._stream.channel is None:
            return
        self._is_closing = True
        self._stream.channel.write_eof()
        try:
            async with asyncio.timeout(GOODBYE):
                await self._stream.closed.wait()
        except TimeoutError:
            log.warning("a runner did not end within %g s of being told to; it is cut off", GOODBYE)
            self.abort()

    def abort(self) -> None:
        """Cut it off."""
        self._stream.abort(None)

    def _send(self, kind: bytes, number: int, data: bytes | bytearray) -> None:
        """Send a frame, together with those that are sent in the same turn of the loop."""
        if not self._frames:
            self._call_soon(self._flush)
        self._frames += (HEADER.pack(kind, number, len(data)), data)

    def _flush(self) -> None:
        data = b"".join(self._frames)
        self._frames.clear()
        if self._stream.channel is not None and not self._stream.is_over:
            with contextlib.suppress(OSError):  # it is closing: the sessions are told when it has closed
                self._stream.channel.write(data)

    def _receive(self, data: bytes) -> None:
        """Take frames apart.

        Raises:
            asyncssh.ProtocolError: No program of ours would send that.
        """
        if self._rest:
            data = self._rest + data
        start, size = 0, len(data)
        while size - start >= HEADER.size:
            kind, number, length = HEADER.unpack_from(data, start)
            if length > CHUNK:
                raise asyncssh.ProtocolError(f"a frame of {length} bytes")
            end = start + HEADER.size + length
            if end > size:
                break
            self._obey(kind, number, data[start + HEADER.size : end])
            start = end
        self._rest = data[start:]

    def _obey(self, kind: bytes, number: int, data: bytes) -> None:
        channel = self._channels.get(number)
        if channel is None:
            raise asyncssh.ProtocolError(f"a frame {kind!r} for no command")
        if kind == b"O":
            channel.take(data, None)
        elif kind == b"E":
            channel.take(data, STDERR)
        elif kind == b"X":
            channel.ended(data)
        elif kind == b"C":
            del self._channels[number]
            channel.finish()
        elif kind == b"W":
            channel.more(int.from_bytes(data, "big"))
        elif kind == b"F":
            del self._channels[number]
            channel.refuse(data.decode("utf-8", "backslashreplace"))
        else:
            raise asyncssh.ProtocolError(f"a frame {kind!r}")

    def _lose(self, error: Exception | None) -> None:
        """Tell all sessions that nothing follows."""
        channels = list(self._channels.values())
        self._channels.clear()
        if channels and (error or self._stream.said):
            why = error or "it said"
            log.warning("a runner ended while %d commands ran: %s %r", len(channels), why, self._stream.said)
        for channel in channels:
            channel.lose(error)


class _Stream(asyncssh.SSHClientSession[bytes]):
    """The stream of frames from and to the host, once the program is there.

    Args:
        receive: Is called with what comes.
        lose: Is called when nothing follows.
    """

    def __init__(self, receive: Callable[[bytes], None], lose: Callable[[Exception | None], None]) -> None:
        self.channel: asyncssh.SSHClientChannel[bytes] | None = None
        self.news = asyncio.Event()
        """The program is ready, or it will not be."""
        self.closed = asyncio.Event()
        self.is_ready = False
        self.is_over = False
        """Nothing follows."""
        self._receive = receive
        self._lose = lose
        self.mark = nonce()
        self._before = b""
        self._is_found = False
        self._said = b""

    @property
    def said(self) -> str:
        """What the host has written on standard error: its end."""
        return self._said.decode("utf-8", "backslashreplace")

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        """The channel is open."""
        self.channel = chan

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        """Something came from the host."""
        try:
            if datatype is not None:
                self._said = (self._said + data)[-MOST_SAID:]
            elif self.is_ready:
                self._receive(data)
            else:
                self._begin(data)
        except asyncssh.ProtocolError as error:
            self.abort(error)

    def _begin(self, data: bytes) -> None:
        """Look for the mark, and send the program; then for its word that it is ready."""
        self._before += data
        if not self._is_found:
            _, found, after = self._before.partition(self.mark.encode())
            if not found:
                self._before = self._before[-len(self.mark) :]
                return
            assert self.channel is not None
            self._is_found, self._before = True, after
            self.channel.write(SOURCE)
        if len(self._before) >= len(READY):
            if not self._before.startswith(READY):
                raise asyncssh.ProtocolError("the program did not start")
            self.is_ready, self._said = True, b""
            self.news.set()
            self._receive(self._before[len(READY) :])

    def eof_received(self) -> bool:
        """Nothing follows, even if the host leaves the channel open."""
        self._end(None)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The channel has closed, or the connection has."""
        self._end(exc)
        self.closed.set()

    def abort(self, error: Exception | None) -> None:
        """Close the channel without waiting for the host."""
        if self.channel is not None:
            self.channel.abort()
        self._end(error)

    def _end(self, error: Exception | None) -> None:
        if not self.is_over:
            self.is_over = True
            self.news.set()
            self._lose(error)
