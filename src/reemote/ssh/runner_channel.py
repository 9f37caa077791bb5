"""What a command of a runner has for a channel."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable

import asyncssh

from .process import CommandSession
from .runner_program import CHUNK, WINDOW

HIGH, LOW = 64 * 1024, 16 * 1024
"""Bytes of input that wait when the writer is asked to pause, and when to go on."""

TAKEN = WINDOW // 2
"""Bytes of output that are taken before the host is told."""

_NUMBERS = {each.name.removeprefix("SIG"): each.value for each in signal.Signals}

Send = Callable[[bytes, int, bytes | bytearray], None]


class RunnerChannel:
    """What :class:`~reemote.ssh.process.Process` uses of a channel, for one command of a runner."""

    def __init__(self, send: Send, number: int, session: CommandSession, has_input: bool) -> None:
        self.refused: str | None = None
        """Why the host could not start the command, where it could not; nothing has run then."""
        self._send = send
        self._number = number
        self._session = session
        self._status: int | None = None
        self._signal: tuple[str, bool, str, str] | None = None
        self._is_open = True
        self._is_closing = False
        self._is_paused = False
        self._received: deque[tuple[bytes, asyncssh.DataType]] = deque()
        self._on_way = 0
        self._taken = 0
        self._can_write = has_input
        self._is_throttled = False
        self._input = bytearray()
        self._window = WINDOW
        self._end_input = False

    # How it ended

    def get_exit_status(self) -> int | None:
        """Give the exit status; -1 where a signal ended the command, ``None`` where nothing is known."""
        return -1 if self._status is None and self._signal else self._status

    def get_exit_signal(self) -> tuple[str, bool, str, str] | None:
        """Give the signal that ended the command, whether it dumped its memory, and two empty words."""
        return self._signal

    def get_returncode(self) -> int | None:
        """Give the exit status, or the negative number of the signal."""
        # 99 is what asyncssh gives where it does not know the signal.
        return -_NUMBERS.get(self._signal[0], 99) if self._signal else self._status

    # Input

    def write(self, data: bytes) -> None:
        """Send input.

        Raises:
            BrokenPipeError: The channel or the input has ended.
        """
        if not (self._is_open and self._can_write):
            raise BrokenPipeError("the input of the command is closed")
        self._input += data
        self._feed()

    def write_eof(self) -> None:
        """End the input."""
        if self._is_open and self._can_write:
            self._can_write, self._end_input = False, True
            self._feed()

    def _feed(self) -> None:
        while self._input and self._window:
            size = min(len(self._input), self._window, CHUNK)
            self._send(b"I", self._number, self._input[:size])
            del self._input[:size]
            self._window -= size
        if self._is_throttled and len(self._input) <= LOW:
            self._is_throttled = False
            self._session.resume_writing()
        elif not self._is_throttled and len(self._input) > HIGH:
            self._is_throttled = True
            self._session.pause_writing()
        if self._end_input and not self._input:
            self._end_input = False
            self._send(b"E", self._number, b"")

    def more(self, size: int) -> None:
        """The host has taken input."""
        self._window += size
        if self._window > WINDOW:
            raise asyncssh.ProtocolError("more input was taken than was sent")
        if self._is_open:
            self._feed()

    # Its process group

    def send_signal(self, signal: str) -> None:
        """Send a signal to the process group of the command.

        Raises:
            OSError: The channel is closed.
        """
        if not self._is_open:
            raise OSError("the channel is closed")
        self._send(b"K", self._number, signal.encode())

    # Output

    def take(self, data: bytes, kind: asyncssh.DataType) -> None:
        """Output came."""
        self._on_way += len(data)
        if self._on_way > WINDOW or self._is_closing:
            raise asyncssh.ProtocolError("more output came than was asked for")
        if self._is_paused:
            self._received.append((data, kind))
        elif self._is_open:
            self._deliver(data, kind)

    def _deliver(self, data: bytes, kind: asyncssh.DataType) -> None:
        self._taken += len(data)
        if self._taken >= TAKEN:
            self._send(b"W", self._number, self._taken.to_bytes(4, "big"))
            self._on_way -= self._taken
            self._taken = 0
        self._session.data_received(data, kind)

    def pause_reading(self) -> None:
        """Take no more output for now."""
        self._is_paused = True

    def resume_reading(self) -> None:
        """Take output again."""
        self._is_paused = False
        while self._received and not self._is_paused:
            self._deliver(*self._received.popleft())
        if self._is_closing and not self._received:
            self._finish()

    # Its end

    def ended(self, how: bytes) -> None:
        """The host tells how the command ended."""
        if self._status is not None or self._signal is not None:
            raise asyncssh.ProtocolError("a command ended twice")
        kind, rest = how[:1], how[1:]
        if kind == b"s" and len(rest) == 4:
            self._status = int.from_bytes(rest, "big")
            self._session.exit_status_received(self._status)
        elif kind == b"k" and len(rest) > 1:
            self._signal = (rest[1:].decode("ascii", "backslashreplace"), rest[:1] == b"\1", "", "")
            self._session.exit_signal_received(*self._signal)
        else:
            raise asyncssh.ProtocolError("a command ended in no known way")

    def refuse(self, why: str) -> None:
        """The host could not start the command."""
        self.refused = why
        self.lose(asyncssh.ChannelOpenError(asyncssh.OPEN_RESOURCE_SHORTAGE, why))

    def finish(self) -> None:
        """The host has closed the command's pipes; nothing follows."""
        self._is_closing = True
        if not self._received:
            self._finish()

    def _finish(self) -> None:
        if self._is_open:
            self._session.eof_received()
        self.lose(None)

    def lose(self, error: Exception | None) -> None:
        """Tell the session that nothing follows."""
        self._is_open = self._is_closing = False
        self._received.clear()
        self._session.connection_lost(error)

    def close(self) -> None:
        """Close the pipes of the command, and take no more of its output."""
        if self._is_open:
            self._is_open = self._is_paused = False
            self._received.clear()
            self._input.clear()
            if self._is_closing:
                self._finish()
            else:
                self._send(b"C", self._number, b"")

    abort = close
