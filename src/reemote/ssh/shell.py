"""The shell that a connection keeps for questions of ours: one round trip each, and no new process of sshd.

It is a ``sh`` that reads from its standard input what it is to run, one command after the other, each in a
subshell without input, between two marks that nobody can know. It is for commands that we wrote: a process that
one of them left in the background could write into the output of the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import cast

import asyncssh

from . import wire
from .gate import without_part
from .process import STDERR, CommandSession
from .sessions import Unavailable, abort_opened

log = logging.getLogger("reemote")

PATIENCE = 10.0
"""Seconds for the shell to start."""

GOODBYE = 1.0
"""Seconds for the host to close the session."""

LONGEST_STATUS = 8
"""Bytes of an exit status; a host that sends more is not believed."""


class KeptShell(asyncssh.SSHClientSession[bytes]):
    """A shell on the host, ready for one command at a time."""

    def __init__(self) -> None:
        self._channel: asyncssh.SSHClientChannel[bytes] | None = None
        self._mark = wire.nonce()
        self._missing: set[asyncssh.DataType] = {None, STDERR}
        self._before: dict[asyncssh.DataType, bytes] = {None: b"", STDERR: b""}
        self._news = asyncio.Event()
        self._closed = asyncio.Event()
        self._turn: Turn | None = None

    @classmethod
    async def start(cls, connection: asyncssh.SSHClientConnection) -> KeptShell:
        """Start one.

        Raises:
            Unavailable: The host runs something else, or nothing in time.
            asyncssh.ChannelOpenError: The host opens no session.
        """
        shell = cls()
        command = wire.kept_shell(shell._mark)
        opening = asyncio.ensure_future(
            connection.create_session(lambda: shell, command, encoding=None, request_pty=False)
        )
        try:
            async with asyncio.timeout(PATIENCE):
                await asyncio.shield(opening)
                await shell._news.wait()
        except TimeoutError:
            raise Unavailable(f"no shell within {PATIENCE:g} s") from None
        finally:
            if shell._missing:
                opening.add_done_callback(abort_opened)
        if shell._missing:
            raise Unavailable("the host did not start a shell")
        return shell

    @property
    def is_closed(self) -> bool:
        """Whether it has ended."""
        return self._channel is None

    @property
    def is_free(self) -> bool:
        """Whether it waits for a command."""
        return self._turn is None and not self.is_closed

    def run(self, session: CommandSession, command: str) -> asyncssh.SSHClientChannel[bytes]:
        """Run a command, where it is free, and give what :class:`~reemote.ssh.process.Process` needs of a channel."""
        assert self._channel is not None
        self._turn = Turn(self, session)
        session.connection_made(cast(asyncssh.SSHClientChannel[bytes], self._turn))
        self._channel.write(wire.turn(command, self._turn.mark).encode("utf-8", "surrogateescape"))
        return cast(asyncssh.SSHClientChannel[bytes], self._turn)

    def end_turn(self, turn: Turn) -> None:
        """Be free again."""
        if self._turn is turn:
            self._turn = None

    def send_signal(self, name: str) -> None:
        """Send a signal to the shell and what it runs."""
        if self._channel is None:
            raise OSError("the shell has ended")
        self._channel.send_signal(name)

    def abort(self) -> None:
        """End it without waiting for the host."""
        if self._channel is not None:
            self._channel.abort()

    async def close(self) -> None:
        """End it, and wait until the host has closed its session, but not for long."""
        if self._channel is not None:
            self._channel.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GOODBYE):
                    await self._closed.wait()

    # What asyncssh calls

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        """The channel is open."""
        self._channel = chan

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        """Output came: noise of the login, or a command's."""
        if datatype in self._missing:
            noise, found, data = (self._before[datatype] + data).partition(self._mark.encode())
            if not found:
                self._before[datatype] = noise[-len(self._mark) :]
                return
            self._missing.discard(datatype)
            self._before[datatype] = b""
            if not self._missing:
                self._news.set()
        if data and self._turn is not None:
            self._turn.take(data, datatype)

    def connection_lost(self, exc: Exception | None) -> None:
        """The shell has ended, or the connection has."""
        channel, self._channel = self._channel, None
        self._news.set()
        self._closed.set()
        if self._turn is not None and channel is not None:
            self._turn.lose(exc, channel)


class Turn:
    """One command of a kept shell, as :class:`~reemote.ssh.process.Process` sees a channel."""

    def __init__(self, shell: KeptShell, session: CommandSession) -> None:
        self.mark = wire.nonce()
        self._shell = shell
        self._session = session
        self._word = self.mark.encode()
        self._held: dict[asyncssh.DataType, bytes] = {None: b"", STDERR: b""}
        self._running: set[asyncssh.DataType] = {None, STDERR}
        self._was_signalled = False
        self._status: int | None = None
        self._signal: tuple[str, bool, str, str] | None = None
        self._returncode: int | None = None

    def take(self, data: bytes, datatype: asyncssh.DataType) -> None:
        """Take output: what is before the mark is the command's."""
        if datatype not in self._running:
            return  # of something that an earlier command has left behind
        data, found, after = (self._held[datatype] + data).partition(self._word)
        if not found:
            data, self._held[datatype] = without_part(data, self._word)
        if data:
            self._session.data_received(data, datatype)
        if not found:
            return
        if datatype is None:
            status, newline, _ = after.partition(b"\n")
            if not newline and len(after) <= LONGEST_STATUS:
                self._held[None] = self._word + after
                return
            self._status = int(status) & 0xFF if status.isdigit() and newline else None
        self._running.discard(datatype)
        if not self._running:
            self._end()

    def _end(self) -> None:
        if self._status is None:
            self._shell.abort()  # it is not our shell that wrote this
            return
        self._shell.end_turn(self)
        self._session.eof_received()
        self._session.exit_status_received(self._status)
        self._session.connection_lost(None)

    def lose(self, error: Exception | None, channel: asyncssh.SSHClientChannel[bytes]) -> None:
        """End with the shell: what became of the command is unknown, unless it was we who ended it."""
        self._shell.end_turn(self)
        for datatype in self._running:
            if self._held[datatype] and not self._held[datatype].startswith(self._word):
                self._session.data_received(self._held[datatype], datatype)
        if self._was_signalled and (signal := channel.get_exit_signal()):
            self._signal, self._returncode = signal, channel.get_returncode()
            self._session.exit_signal_received(*signal)
        self._session.connection_lost(error)

    # What a process needs of a channel

    def get_exit_status(self) -> int | None:
        """Give the exit status, if it is known; 128 and the number of the signal where one ended the command."""
        return -1 if self._signal else self._status

    def get_exit_signal(self) -> tuple[str, bool, str, str] | None:
        """Give the signal by which we ended it."""
        return self._signal

    def get_returncode(self) -> int | None:
        """Give the exit status, or the negative number of the signal."""
        return self._returncode if self._signal else self._status

    def write_eof(self) -> None:
        """There is no input anyway."""

    def send_signal(self, name: str) -> None:
        """Send a signal to the command, and to the shell."""
        self._was_signalled = True
        self._shell.send_signal(name)

    def close(self) -> None:
        """Let go of it."""
        if self._running:
            self._shell.abort()

    abort = close
