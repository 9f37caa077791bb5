"""An SSH server inside this process.

It behaves like OpenSSH where a client can tell the difference, but needs no privileges, no configuration and
no `sshd`: commands run as the current user, files are real, and nothing is written outside a home directory
that is removed when the server stops. It is made for tests and demonstrations, not for untrusted clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import io
import math
import os
import posixpath
import pty
import re
import signal
import socket
import struct
import subprocess
import tempfile
import termios
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

import asyncssh
from asyncssh.constants import MSG_CHANNEL_CLOSE
from asyncssh.packet import Boolean, String, UInt32
from asyncssh.stream import SSHServerStreamSession

if TYPE_CHECKING:
    from asyncssh.channel import SSHChannel
    from asyncssh.packet import SSHPacket

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CHUNK = 64 * 1024
_WINDOW = 2 * 1024 * 1024
_PACKET = 32 * 1024
_STOP_TIMEOUT = 5.0

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

_SCP = re.compile(r"scp( +-[a-zA-Z]+)* +-[a-zA-Z]*[tf]( |$)")


class SandboxServer:
    """Serve one SSH host inside this process: a real shell, real files, a home directory that goes away.

    `authorized_keys` holds public keys in OpenSSH's one-line format, or paths of files with such lines.
    `max_sessions` limits the simultaneous sessions of one connection, as MaxSessions does for OpenSSH;
    `None` means no limit. `host_key` is an Ed25519 key generated in memory unless it is given.
    """

    address = "127.0.0.1"
    port: int
    """The TCP port, chosen by the operating system; known once the server has started."""
    home: Path
    """The home directory, where commands start and relative paths lead; it exists while the server runs."""
    public_host_key: str
    """The host key in OpenSSH's one-line format: after a host name, it makes a line of known_hosts."""
    connections: int
    """How many connections have logged in so far."""
    peak_sessions: int
    """The highest number of simultaneous sessions, over all connections."""
    commands: list[str]
    """The commands received, in order; bytes that are not UTF-8 appear as surrogate escapes."""
    logins: list[tuple[str, str, bool]]
    """The logins tried, in order: user, `"password"` or `"publickey"`, and whether it was accepted."""

    def __init__(
        self,
        name: str,
        *,
        username: str = "user",
        password: str = "password",  # noqa: S107 - it guards a directory that goes away
        authorized_keys: Sequence[str | Path] = (),
        host_key: asyncssh.SSHKey | None = None,
        max_sessions: int | None = None,
    ) -> None:
        self.name = name
        self.username = username
        self.password = password
        self.max_sessions = max_sessions
        self.host_key = host_key or asyncssh.generate_private_key("ssh-ed25519")
        self.public_host_key = self.host_key.export_public_key("openssh").decode().strip()
        self.connections = 0
        self.peak_sessions = 0
        self.commands = []
        self.logins = []
        self._keys = {key.public_data for entry in authorized_keys for key in _public_keys(entry)}
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._acceptor: asyncssh.SSHAcceptor | None = None
        self._running = False
        self._clients: set[_Client] = set()
        self._commands: set[_Command] = set()
        self._survivors: set[int] = set()
        self._transfers: set[asyncio.Task[Any]] = set()

    @property
    def open_connections(self) -> int:
        """Return the number of connections that are logged in now."""
        return sum(client.logged_in for client in self._clients)

    async def start(self) -> None:
        """Create the home directory and listen on a free port."""
        if self._running:
            raise RuntimeError(f"the server {self.name!r} runs already")
        self._running = True
        self._make_home()
        try:
            self._acceptor = await asyncssh.listen(
                self.address,
                0,
                server_factory=lambda: _Client(self),
                server_host_keys=[self.host_key],
                host_based_auth=False,
                kbdint_auth=False,
                gss_host=None,  # the default looks up this machine's name, which may take seconds
                agent_forwarding=False,
            )
        except BaseException:
            await self.stop()
            raise
        self.port = self._acceptor.get_port()

    def _make_home(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="reemote-", ignore_cleanup_errors=True)
        self.home = Path(self._directory.name).resolve()  # as `pwd` and SFTP's realpath will show it

    async def stop(self) -> None:
        """Close every connection, end every process that was started here, and remove the home directory.

        A process that made a process group of its own, as `setsid` does, is not found and lives on.
        """
        self._running = False
        acceptor, self._acceptor = self._acceptor, None
        try:
            if acceptor:
                acceptor.close()
            closing = [client.connection for client in self._clients]
            for connection in closing:
                connection.close()
            for connection in closing:
                await connection.wait_closed()
            await self._end_processes()
            if self._transfers:
                await asyncio.wait(self._transfers, timeout=_STOP_TIMEOUT)
            if acceptor:
                await acceptor.wait_closed()
        finally:
            directory, self._directory = self._directory, None
            if directory:
                directory.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    def drop_connections(self) -> None:
        """Reset every TCP connection at once, as when a cable is cut: nothing more is sent."""
        for client in self._clients:
            sock = client.connection.get_extra_info("socket")
            if sock is not None:
                # Lingering for no time turns the close into a reset.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.connection.abort()

    async def _end_processes(self) -> None:
        for group in self._survivors | {command.pid for command in self._commands}:
            _signal_group(group, signal.SIGKILL)
        self._survivors.clear()
        if self._commands:
            await asyncio.wait([command.ended for command in self._commands], timeout=_STOP_TIMEOUT)

    def _command_started(self, command: _Command) -> None:
        self._survivors = {group for group in self._survivors if _signal_group(group, 0)}
        self._commands.add(command)

    def _command_ended(self, command: _Command) -> None:
        self._commands.discard(command)
        # What the command left in the background keeps its process group, and so this number, taken.
        if _signal_group(command.pid, 0):
            self._survivors.add(command.pid)

    async def _open_files(self, channel: SSHChannel[bytes]) -> asyncssh.SFTPServer:
        # This runs in the task that serves one transfer, which stop() must not leave behind.
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._transfers.add(task)
        task.add_done_callback(self._transfers.discard)
        return _Files(cast("asyncssh.SSHServerChannel[bytes]", channel), os.fsencode(self.home))


class _Client(asyncssh.SSHServer):
    """One connection: who may log in, and how many sessions it may have."""

    connection: asyncssh.SSHServerConnection

    def __init__(self, server: SandboxServer) -> None:
        self.logged_in = False
        self.sessions: set[_Session] = set()
        self._server = server
        self._accepted = ("", "")

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self.connection = conn
        self._server._clients.add(self)
        if not self._server._running:  # accepted in the very moment in which the server stops
            conn.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server._clients.discard(self)
        # asyncssh has told the sessions already, except those whose channel was never confirmed.
        for session in list(self.sessions):
            session.connection_lost(exc)

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        known = key.public_data in self._server._keys
        return self._judge(username, "publickey", known)

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return self._judge(username, "password", password == self._server.password)

    def _judge(self, username: str, method: str, correct: bool) -> bool:
        accepted = correct and username == self._server.username
        if accepted:
            # Not a login yet: a client first asks whether a key would do, and signs with it afterwards.
            self._accepted = (username, method)
        else:
            self._server.logins.append((username, method, False))
        return accepted

    def auth_completed(self) -> None:
        self.logged_in = True
        self._server.connections += 1
        self._server.logins.append((*self._accepted, True))

    def session_requested(self) -> tuple[_Channel, _Session]:
        server = self._server
        if server.max_sessions is not None and len(self.sessions) >= server.max_sessions:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "open failed")
        channel = _Channel(self.connection)
        session = _Session(server, self, channel)
        self.sessions.add(session)
        server.peak_sessions = max(server.peak_sessions, sum(len(c.sessions) for c in server._clients))
        return channel, session


class _Channel(asyncssh.SSHServerChannel[bytes]):
    """A channel that can do three things as OpenSSH does them, and asyncssh's public interface cannot.

    It takes commands that are not UTF-8, reports how a process ended and stays open, and leaves the client's
    request to close it unanswered while the process runs. All use of asyncssh's private parts is here.
    """

    command: _Command | None = None
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


class _Session(SSHServerStreamSession[bytes]):
    """One session: asyncssh serves SFTP and SCP on it, a command takes what comes and goes itself."""

    def __init__(self, server: SandboxServer, client: _Client, channel: _Channel) -> None:
        super().__init__(None, server._open_files, sftp_version=3, allow_scp=True)
        self._server = server
        self._client = client
        self._channel = channel
        self._command: _Command | None = None

    def shell_requested(self) -> bool:
        return True

    def exec_requested(self, command: str) -> bool:
        self._server.commands.append(command)
        return True

    def session_started(self) -> None:
        channel = self._channel
        command = channel.get_command()
        if channel.get_subsystem() or (command and _SCP.match(command)):
            super().session_started()
            return
        argv = [b"/bin/sh", b"-l"]
        if command is not None:
            text, _, _ = command.partition("\0")  # where the command ends for OpenSSH, too
            argv = [b"/bin/sh", b"-c", text.encode("utf-8", "surrogateescape")]
        try:
            self._command = _Command(self._server, channel, argv)
        except OSError as error:  # too long a command, most of all
            channel.write_stderr(f"/bin/sh: {error.strerror}\n".encode())
            channel.exit(1)

    def data_received(self, data: bytes, datatype: int | None) -> None:
        if self._command:
            self._command.feed(data)
        else:
            super().data_received(data, datatype)

    def eof_received(self) -> bool:
        if self._command:
            self._command.feed_eof()
            return True
        return super().eof_received()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._command:
            self._command.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._command:
            self._command.resume()

    def signal_received(self, signal: str) -> None:
        if self._command:
            self._command.send_signal(signal)

    def terminal_size_changed(self, width: int, height: int, pixwidth: int, pixheight: int) -> None:
        if self._command:
            self._command.resize(width, height)

    def connection_lost(self, exc: Exception | None) -> None:
        self._client.sessions.discard(self)
        if self._command:
            self._command.detach()
        else:
            super().connection_lost(exc)


@dataclass(eq=False)
class _Output:
    """A stream that a process writes to."""

    stream: io.FileIO
    datatype: int | None
    owed: float = 0
    """Once the process has ended: how many of its bytes must still be read before its end may be reported."""


class _Command:
    """A process of a client, and the flow of bytes between it and the channel.

    All but the wait for the process's end happens in callbacks of the event loop, so there are no tasks to
    lose. What is read goes to the channel at once, and nothing more is read while the client is behind.
    """

    def __init__(self, server: SandboxServer, channel: _Channel, argv: Sequence[bytes]) -> None:
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
        server._command_started(self)
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
            _signal_group(self.pid, _SIGNALS[name])

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
        self._server._command_ended(self)
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


class _Files(asyncssh.SFTPServer):
    """The real file system, in which relative paths start at the home directory."""

    def __init__(self, channel: asyncssh.SSHServerChannel[bytes], home: bytes) -> None:
        super().__init__(channel)
        self._home = home

    def map_path(self, path: bytes) -> bytes:
        return posixpath.join(self._home, path)


_Started = tuple["subprocess.Popen[bytes]", io.FileIO | None, list[_Output]]


def _start_with_pipes(argv: Sequence[bytes], channel: _Channel, home: Path) -> _Started:
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        argv, bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe,
        cwd=home, env=_environment(channel, home), start_new_session=True,
    )  # fmt: skip
    stdin, stdout, stderr = (cast(io.FileIO, s) for s in (process.stdin, process.stdout, process.stderr))
    return process, stdin, [_Output(stdout, None), _Output(stderr, asyncssh.EXTENDED_DATA_STDERR)]


def _start_on_terminal(argv: Sequence[bytes], channel: _Channel, home: Path) -> _Started:
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


def _set_up_terminal(slave: int, channel: _Channel) -> None:
    attributes = termios.tcgetattr(slave)
    for mode, value in channel.get_terminal_modes().items():
        if mode in _TERMINAL_MODES:
            place, flag = _TERMINAL_MODES[mode]
            attributes[place] = attributes[place] | flag if value else attributes[place] & ~flag
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    width, height, *_ = channel.get_terminal_size()
    termios.tcsetwinsize(slave, (height, width))


def _environment(channel: _Channel, home: Path) -> Mapping[bytes, bytes]:
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


def _signal_group(group: int, number: int) -> bool:
    """Signal a process group, and return whether there is one; signal 0 only asks."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # a command that has become another user
        pass
    return True


def _public_keys(entry: str | Path) -> Sequence[asyncssh.SSHKey]:
    if isinstance(entry, Path):
        return asyncssh.read_public_key_list(entry)
    return [asyncssh.import_public_key(line) for line in entry.splitlines() if line.strip()]
