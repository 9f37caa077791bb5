"""A process that the sandbox's server runs for a client, and the channel that it speaks through."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import io
import math
import os
import pty
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import asyncssh
from asyncssh.constants import MSG_CHANNEL_CLOSE
from asyncssh.packet import Boolean, String, UInt32

if TYPE_CHECKING:
    from asyncssh.packet import SSHPacket

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CHUNK = 64 * 1024
_WINDOW = 2 * 1024 * 1024
_PACKET = 32 * 1024

# The signals that RFC 4254, section 6.10, knows by name; OpenSSH neither takes nor reports others.
_NAMES = "ABRT ALRM FPE HUP ILL INT KILL PIPE QUIT SEGV TERM USR1 USR2"
_SIGNALS = {name: signal.Signals[f"SIG{name}"] for name in _NAMES.split()}
_SIGNAL_NAMES = {int(number): name for name, number in _SIGNALS.items()}

# The terminal modes that programs ask for, by their place in what termios.tcgetattr() returns.
_TERMINAL_MODES = {
    asyncssh.PTY_ICRNL: (0, termios.ICRNL),
    asyncssh.PTY_OPOST: (1, termios.OPOST),
    asyncssh.PTY_ONLCR: (1, termios.ONLCR),
    asyncssh.PTY_ISIG: (3, termios.ISIG),
    asyncssh.PTY_ICANON: (3, termios.ICANON),
    asyncssh.PTY_ECHO: (3, termios.ECHO),
}

# A session leader gets as controlling terminal the first one that it opens. The shell can do that by itself,
# whereas code run between fork and exec is not safe in a process with threads.
_TAKE_TERMINAL = 'exec <>"$1" >&0 2>&0; shift; exec "$@"'


class Owner(Protocol):
    """The server that runs the processes."""

    home: Path

    def command_started(self, command: ServedCommand) -> None:
        """Take note of a process."""

    def command_ended(self, command: ServedCommand) -> None:
        """Take note of its end."""


class ServedChannel(asyncssh.SSHServerChannel[bytes]):
    """A channel that can do three things as OpenSSH does them, and asyncssh's public interface cannot.

    It takes commands that are not UTF-8, reports how a process ended and stays open, and leaves the client's
    request to close it unanswered while the process runs. All use of asyncssh's private parts is here.
    """

    command: ServedCommand | None = None
    _unanswered: tuple[int, int, SSHPacket] | None = None

    def __init__(self, connection: asyncssh.SSHServerConnection) -> None:
        # No line editor: it is for programs that live in the server. The terminal's own does the work.
        loop = asyncio.get_running_loop()
        super().__init__(connection, loop, True, False, False, 0, 0, None, "strict", _WINDOW, _PACKET)

    def report_end(self, status: int) -> None:
        """Send the exit status, or the signal, that a wait status stands for."""
        if os.WIFSIGNALED(status):
            name = _SIGNAL_NAMES.get(os.WTERMSIG(status), "SIG@openssh.com")
            core = Boolean(os.WCOREDUMP(status))
            self._send_request(b"exit-signal", String(name), core, String(""), String(""))
        else:
            self._send_request(b"exit-status", UInt32(os.WEXITSTATUS(status)))

    def answer_close(self) -> None:
        """Close the channel now, if the client has asked for it and still waits."""
        if self._unanswered:
            request, self._unanswered = self._unanswered, None
            super()._process_close(*request)

    def _process_exec_request(self, packet: SSHPacket) -> bool:
        command = packet.get_string().decode("utf-8", "surrogateescape")
        packet.check_end()
        return self._start_session(command=command)

    def _process_close(self, pkttype: int, pktid: int, packet: SSHPacket) -> None:
        if self.command and self.command.detach():
            self._unanswered = (pkttype, pktid, packet)
        else:
            super()._process_close(pkttype, pktid, packet)

    _packet_handlers = asyncssh.SSHServerChannel._packet_handlers | {MSG_CHANNEL_CLOSE: _process_close}


@dataclass(eq=False)
class _Output:
    """A stream that a process writes to."""

    stream: io.FileIO
    datatype: int | None
    owed: float = 0
    """Once the process has ended: how many of its bytes must still be read before its end may be reported."""


class ServedCommand:
    """A process of a client, and the flow of bytes between it and the channel.

    All but the wait for the process's end happens in callbacks of the event loop, so there are no tasks to
    lose. What is read goes to the channel at once, and nothing more is read while the client is behind.
    """

    def __init__(self, server: Owner, channel: ServedChannel, argv: Sequence[bytes]) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._server = server
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self._terminal = channel.get_terminal_type() is not None
        self._pending = bytearray()
        self._input_ended = False
        self._attached = True
        self._status: int | None = None
        self._reported = False
        start = _start_on_terminal if self._terminal else _start_with_pipes
        self._process, self._input, self._outputs = start(argv, channel, server.home)
        self.pid = self._process.pid
        channel.command = self
        # With a limit of nothing, "paused" means exactly that bytes wait for the client's window.
        channel.set_write_buffer_limits(0)
        for stream in {self._input, *(output.stream for output in self._outputs)}:
            os.set_blocking(cast(io.FileIO, stream).fileno(), False)
        server.command_started(self)
        threading.Thread(target=self._wait, name=f"reemote wait {self.pid}", daemon=True).start()
        self.resume()

    def feed(self, data: bytes) -> None:
        """Hand the client's bytes to the process, which may have stopped listening."""
        if self._input:
            self._pending += data
            self._write()

    def feed_eof(self) -> None:
        """Close the process's standard input after what is pending; a terminal has no such end."""
        self._input_ended = not self._terminal
        if not self._pending and self._input_ended:
            self._close_input()

    def pause(self) -> None:
        """Stop reading from the process until the client has caught up."""
        for output in self._outputs:
            self._loop.remove_reader(output.stream)

    def resume(self) -> None:
        """Read from the process."""
        for output in self._outputs:
            self._loop.add_reader(output.stream, self._read, output)
        # Not at once: asyncssh, which calls this, has an end of file of its own to send first.
        self._loop.call_soon(self._progress)

    def send_signal(self, name: str) -> None:
        """Send a signal to the process group, as long as its leader lives."""
        if self._status is None and name in _SIGNALS:
            signal_group(self.pid, _SIGNALS[name])

    def resize(self, width: int, height: int) -> None:
        """Tell the terminal, if there is one, and with it the process, its new size."""
        if self._terminal and self._outputs:
            termios.tcsetwinsize(self._outputs[0].stream, (height, width))

    def detach(self) -> bool:
        """Let go of the process, and return whether it still runs.

        It may go on, as with OpenSSH, but its pipes are broken; a terminal hangs up.
        """
        self._close_input()
        self._attached = False
        for output in list(self._outputs):
            self._close_output(output)
        return self._status is None

    def _wait(self) -> None:
        # A thread, because the ways to hear of it in the event loop lose the core dump flag or need Linux.
        try:
            status = os.waitpid(self.pid, 0)[1]
        except ChildProcessError:  # somebody else in this process collects the children of all
            status = 255 << 8
        self._process.returncode = os.waitstatus_to_exitcode(status)
        with contextlib.suppress(RuntimeError):  # the loop was closed before the server was stopped
            self._loop.call_soon_threadsafe(self._end, status)

    def _end(self, status: int) -> None:
        self._status = status
        self._close_input()
        for output in self._outputs:
            # A terminal reaches its end with the session's leader. A pipe may be held open by what was left
            # in the background, so count what is in it now: the process itself cannot have written more.
            output.owed = math.inf if self._terminal else _readable(output.stream)
        self._progress()
        self._server.command_ended(self)
        self.ended.set_result(None)

    def _read(self, output: _Output) -> None:
        try:
            data = output.stream.read(_CHUNK)
        except OSError:  # how Linux says that nobody has the terminal open any more
            data = b""
        if data is None:
            return
        if data:
            output.owed -= len(data)
            self._channel.write(data, output.datatype)
        else:
            self._close_output(output)
        self._progress()

    def _write(self) -> None:
        stream = cast(io.FileIO, self._input)
        try:
            while self._pending and (count := stream.write(self._pending)) is not None:
                del self._pending[:count]
        except OSError:  # the process has closed its input
            self._close_input()
        if self._pending:
            self._loop.add_writer(stream, self._write)
            self._channel.pause_reading()
        elif self._input:
            self._loop.remove_writer(stream)
            if self._input_ended:
                self._close_input()
            self._channel.resume_reading()

    def _progress(self) -> None:
        """Report what has come to its end, in OpenSSH's order: the output, the process, the channel."""
        if self._attached and not self._outputs:
            self._channel.write_eof()
        if self._status is None:
            return
        unsent = self._channel.get_write_buffer_size() or any(output.owed > 0 for output in self._outputs)
        if not self._reported and not (self._attached and unsent):
            self._reported = True
            self._channel.report_end(self._status)
        if self._reported and not self._outputs:
            self._channel.close()
            self._channel.answer_close()

    def _close_input(self) -> None:
        stream, self._input = self._input, None
        if stream:
            self._loop.remove_writer(stream)
            self._pending.clear()
            if not self._terminal:
                stream.close()
            if self._attached:  # what the client still sends has to be read to be thrown away
                self._channel.resume_reading()

    def _close_output(self, output: _Output) -> None:
        self._loop.remove_reader(output.stream)
        self._outputs.remove(output)
        if self._terminal:
            self._close_input()
        output.stream.close()


_Started = tuple["subprocess.Popen[bytes]", io.FileIO | None, list[_Output]]


def _start_with_pipes(argv: Sequence[bytes], channel: ServedChannel, home: Path) -> _Started:
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        argv, bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe,
        cwd=home, env=_environment(channel, home), start_new_session=True,
    )  # fmt: skip
    stdin, stdout, stderr = (cast(io.FileIO, s) for s in (process.stdin, process.stdout, process.stderr))
    return process, stdin, [_Output(stdout, None), _Output(stderr, asyncssh.EXTENDED_DATA_STDERR)]


def _start_on_terminal(argv: Sequence[bytes], channel: ServedChannel, home: Path) -> _Started:
    master, slave = pty.openpty()
    stream = io.FileIO(master, "r+")
    try:
        _set_up_terminal(slave, channel)
        name = os.fsencode(os.ttyname(slave))
        process = subprocess.Popen(
            [b"/bin/sh", b"-c", _TAKE_TERMINAL.encode(), b"sh", name, *argv],
            stdin=slave, stdout=slave, stderr=slave,
            cwd=home, env={**_environment(channel, home), b"SSH_TTY": name}, start_new_session=True,
        )  # fmt: skip
    except BaseException:
        stream.close()
        raise
    finally:
        os.close(slave)
    return process, stream, [_Output(stream, None)]


def _set_up_terminal(slave: int, channel: ServedChannel) -> None:
    attributes = termios.tcgetattr(slave)
    for mode, value in channel.get_terminal_modes().items():
        if mode in _TERMINAL_MODES:
            place, flag = _TERMINAL_MODES[mode]
            attributes[place] = attributes[place] | flag if value else attributes[place] & ~flag
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    width, height, *_ = channel.get_terminal_size()
    termios.tcsetwinsize(slave, (height, width))


def _environment(channel: ServedChannel, home: Path) -> Mapping[bytes, bytes]:
    """Return what OpenSSH would set, plus those of the client's variables that Debian's AcceptEnv lets in."""
    connection = channel.get_connection()
    username = str(connection.get_extra_info("username")).encode()
    peer, local = connection.get_extra_info("peername"), connection.get_extra_info("sockname")
    environment = {
        name: value
        for name, value in channel.get_environment_bytes().items()
        if (name == b"LANG" or name.startswith(b"LC_")) and b"=" not in name and b"\0" not in name + value
    }
    environment |= {b"USER": username, b"LOGNAME": username, b"HOME": os.fsencode(home)}
    environment |= {b"SHELL": b"/bin/sh", b"PATH": _PATH.encode()}
    environment[b"SSH_CONNECTION"] = f"{peer[0]} {peer[1]} {local[0]} {local[1]}".encode()
    terminal = channel.get_terminal_type()
    if terminal:
        environment[b"TERM"] = terminal.encode()
    return environment


def _readable(stream: io.FileIO) -> int:
    size = fcntl.ioctl(stream, termios.FIONREAD, b"\0\0\0\0")
    return int(struct.unpack("i", size)[0])


def signal_group(group: int, number: int) -> bool:
    """Signal a process group, and return whether there is one; signal 0 only asks."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # a command that has become another user
        pass
    return True
