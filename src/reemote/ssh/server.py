"""An SSH server inside this process.

It behaves like OpenSSH where a client can tell the difference, but needs no privileges, no configuration and
no `sshd`: commands run as the current user, files are real, and nothing is written outside a home directory
that is removed when the server stops. It is made for tests and demonstrations, not for untrusted clients.
"""

from __future__ import annotations

import asyncio
import os
import posixpath
import re
import signal
import socket
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

import asyncssh
from asyncssh.stream import SSHServerStreamSession

from .server_command import ServedChannel, ServedCommand, signal_group

if TYPE_CHECKING:
    from asyncssh.channel import SSHChannel

_STOP_TIMEOUT = 5.0

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
        self._commands: set[ServedCommand] = set()
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
            signal_group(group, signal.SIGKILL)
        self._survivors.clear()
        if self._commands:
            await asyncio.wait([command.ended for command in self._commands], timeout=_STOP_TIMEOUT)

    def command_started(self, command: ServedCommand) -> None:
        """Take note of a process, to end it when the server stops."""
        self._survivors = {group for group in self._survivors if signal_group(group, 0)}
        self._commands.add(command)

    def command_ended(self, command: ServedCommand) -> None:
        """Take note of its end; what it left behind is ended when the server stops."""
        self._commands.discard(command)
        # What the command left in the background keeps its process group, and so this number, taken.
        if signal_group(command.pid, 0):
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

    def session_requested(self) -> tuple[ServedChannel, _Session]:
        server = self._server
        if server.max_sessions is not None and len(self.sessions) >= server.max_sessions:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "open failed")
        channel = ServedChannel(self.connection)
        session = _Session(server, self, channel)
        self.sessions.add(session)
        server.peak_sessions = max(server.peak_sessions, sum(len(c.sessions) for c in server._clients))
        return channel, session


class _Session(SSHServerStreamSession[bytes]):
    """One session: asyncssh serves SFTP and SCP on it, a command takes what comes and goes itself."""

    def __init__(self, server: SandboxServer, client: _Client, channel: ServedChannel) -> None:
        super().__init__(None, server._open_files, sftp_version=3, allow_scp=True)
        self._server = server
        self._client = client
        self._channel = channel
        self._command: ServedCommand | None = None

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
            self._command = ServedCommand(self._server, channel, argv)
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


class _Files(asyncssh.SFTPServer):
    """The real file system, in which relative paths start at the home directory."""

    def __init__(self, channel: asyncssh.SSHServerChannel[bytes], home: bytes) -> None:
        super().__init__(channel)
        self._home = home

    def map_path(self, path: bytes) -> bytes:
        return posixpath.join(self._home, path)


def _public_keys(entry: str | Path) -> Sequence[asyncssh.SSHKey]:
    if isinstance(entry, Path):
        return asyncssh.read_public_key_list(entry)
    return [asyncssh.import_public_key(line) for line in entry.splitlines() if line.strip()]
