"""The sandbox server, seen by a plain asyncssh client."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import asyncssh
import pytest

from reemote.ssh.server import SandboxServer
from tests.leaks import alive, eventually

pytestmark = pytest.mark.usefixtures("nothing_left")

TERMINAL = {"term_type": "xterm", "term_size": (120, 30)}


def connect(server: SandboxServer, **options: Any) -> Any:
    """Connect as the server's user, without a look at this machine's keys and configuration."""
    defaults = {
        "username": "user", "password": "password", "client_keys": None, "agent_path": None,
        "known_hosts": None, "config": None, "connect_timeout": 10,
    }  # fmt: skip
    return asyncssh.connect(server.address, server.port, **{**defaults, **options})


@pytest.fixture
async def server() -> AsyncIterator[SandboxServer]:
    async with SandboxServer("alpha") as server:
        yield server


@pytest.fixture
async def client(server: SandboxServer) -> AsyncIterator[asyncssh.SSHClientConnection]:
    async with connect(server) as client:
        yield client


async def run(client: asyncssh.SSHClientConnection, command: Any, **options: Any) -> Any:
    options.setdefault("stdin", asyncssh.DEVNULL)
    return await client.run(command, encoding=None, **options)


async def start(client: asyncssh.SSHClientConnection, command: Any, **options: Any) -> Any:
    return await client.create_process(command, encoding=None, **options)


class Watch(asyncssh.SSHClientSession[bytes]):
    """A client's session that tells when things happen, and in which order."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.output = b""
        self.ended: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes, datatype: int | None) -> None:
        self.output += data
        self.events.append("output")

    def exit_status_received(self, status: int) -> None:
        self.events.append("status")
        self.ended.set_result(status)

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        self.events.append("signal")
        self.ended.set_result((signal, core_dumped))

    def eof_received(self) -> bool:
        self.events.append("eof")
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append("closed")


async def watch_command(client: asyncssh.SSHClientConnection, command: str) -> tuple[Any, Watch]:
    channel, watch = await client.create_session(Watch, command, encoding=None)
    return channel, cast(Watch, watch)


# --- The server ---------------------------------------------------------------------------------------------


async def test_it_listens_on_a_free_port_of_the_loopback_and_has_a_private_home() -> None:
    async with SandboxServer("alpha") as one, SandboxServer("beta") as two:
        assert (one.name, two.name) == ("alpha", "beta")
        assert one.address == "127.0.0.1"
        assert one.port != two.port
        assert one.home != two.home
        assert stat.S_IMODE(one.home.stat().st_mode) == 0o700
        assert one.public_host_key != two.public_host_key
    assert not one.home.exists()


async def test_its_host_key_makes_a_known_hosts_line(server: SandboxServer) -> None:
    line = f"[{server.address}]:{server.port} {server.public_host_key}\n"
    async with connect(server, known_hosts=asyncssh.import_known_hosts(line)) as client:
        assert client.get_server_host_key().export_public_key().decode().strip() == server.public_host_key


async def test_servers_may_share_a_host_key(server: SandboxServer) -> None:
    other = SandboxServer("beta", host_key=server.host_key)
    assert other.public_host_key == server.public_host_key


async def test_it_can_be_stopped_twice_or_unstarted_and_started_again() -> None:
    server = SandboxServer("alpha")
    await server.stop()
    homes = set()
    for _ in range(2):
        await server.start()
        homes.add(server.home)
        with pytest.raises(RuntimeError, match="alpha"):
            await server.start()
        async with connect(server) as client:
            assert (await run(client, "echo hi")).stdout == b"hi\n"
        await server.stop()
        await server.stop()
        with pytest.raises(ConnectionRefusedError):
            await connect(server)
    assert len(homes) == 2
    assert not any(home.exists() for home in homes)


async def test_stop_ends_everything() -> None:
    async with SandboxServer("alpha") as server:
        client = await connect(server)
        (server.home / "read-only").mkdir(mode=0o500)
        running = await start(client, "sleep 300 & echo $$ $!; wait")
        pids = [int(pid) for pid in (await running.stdout.readline()).split()]
        pids.append(int((await run(client, "sleep 300 >/dev/null 2>&1 & echo $!")).stdout))
        terminal = await start(client, "trap '' HUP; echo $$; sleep 300", **TERMINAL)
        pids.append(int(await terminal.stdout.readline()))
        abandoned = await start(client, "echo $$; exec sleep 300")
        pids.append(int(await abandoned.stdout.readline()))
        abandoned.close()
        sftp = await client.start_sftp_client()
        file = await sftp.open("file", "wb")
        assert all(alive(pid) for pid in pids)
    assert not server.home.exists()
    assert server.open_connections == 0
    await client.wait_closed()
    await eventually(lambda: not any(alive(pid) for pid in pids))
    with pytest.raises((asyncssh.SFTPError, OSError)):
        await file.write(b"x")


async def test_stop_during_a_handshake(server: SandboxServer) -> None:
    raw_reader, raw_writer = await asyncio.open_connection(server.address, server.port)
    await raw_reader.readline()
    waiting = [asyncio.ensure_future(connect(server)) for _ in range(3)]
    await asyncio.sleep(0)
    await server.stop()
    for result in await asyncio.gather(*waiting, return_exceptions=True):
        if isinstance(result, asyncssh.SSHClientConnection):
            await result.wait_closed()
        else:
            assert isinstance(result, (OSError, asyncssh.Error))
    raw_writer.close()


# --- Logging in ---------------------------------------------------------------------------------------------


async def test_passwords(server: SandboxServer) -> None:
    async with connect(server):
        assert (server.connections, server.open_connections) == (1, 1)
    for wrong in ({"password": "wrong"}, {"username": "other"}, {"password": ""}):
        with pytest.raises(asyncssh.PermissionDenied):
            await connect(server, **wrong)
    assert server.logins[:3] == [
        ("user", "password", True),
        ("user", "password", False),
        ("other", "password", False),
    ]
    await eventually(lambda: server.open_connections == 0)
    assert server.connections == 1


async def test_public_keys(tmp_path: Path) -> None:
    right, filed, wrong = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(3))
    filed.write_public_key(tmp_path / "key.pub")
    line = right.export_public_key().decode()
    async with SandboxServer("alpha", authorized_keys=[line, tmp_path / "key.pub"]) as server:
        for key in (right, filed):
            async with connect(server, client_keys=[key], password=None) as client:
                assert (await run(client, "echo hi")).stdout == b"hi\n"
        with pytest.raises(asyncssh.PermissionDenied):
            await connect(server, client_keys=[wrong], password=None)
        async with connect(server, client_keys=[wrong]):
            pass
        assert server.logins == [
            ("user", "publickey", True),
            ("user", "publickey", True),
            ("user", "publickey", False),
            ("user", "publickey", False),
            ("user", "password", True),
        ]


async def test_keyboard_interactive_is_off(server: SandboxServer) -> None:
    with pytest.raises(asyncssh.PermissionDenied):
        await connect(server, password_auth=False, public_key_auth=False, kbdint_auth=True)
    assert server.logins == []


async def test_nothing_is_forwarded(server: SandboxServer, client: asyncssh.SSHClientConnection) -> None:
    with pytest.raises(asyncssh.ChannelOpenError):
        await client.open_connection(server.address, server.port)
    with pytest.raises(asyncssh.ChannelListenError):
        await client.forward_remote_port("127.0.0.1", 0, server.address, server.port)
    with pytest.raises(asyncssh.ChannelOpenError):
        await run(client, "true", x11_forwarding=True, x11_display="localhost:0")
    assert (await run(client, "echo $SSH_AUTH_SOCK$DISPLAY")).stdout == b"\n"


# --- Commands -----------------------------------------------------------------------------------------------


async def test_a_command_starts_in_the_home_with_an_environment_of_its_own(
    server: SandboxServer, client: asyncssh.SSHClientConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEAK", "from the parent")
    given = {"LANG": "C.UTF-8", "LC_TIME": "C", "FOO": "bar", "LC_A=B": "x", "LC_ALL": "\0", "LANGUAGE": "de"}
    result = await run(client, "pwd; env", env=given)
    pwd, *lines = result.stdout.decode().splitlines()
    environment = dict(line.split("=", 1) for line in lines)
    for own in ("PWD", "OLDPWD", "SHLVL", "_"):  # set by one shell or another
        environment.pop(own, None)
    peer = client.get_extra_info("sockname")
    assert pwd == str(server.home)
    assert environment.pop("PATH").split(":")[-1] == "/bin"
    assert environment == {
        "HOME": str(server.home),
        "SHELL": "/bin/sh",
        "USER": "user",
        "LOGNAME": "user",
        "SSH_CONNECTION": f"127.0.0.1 {peer[1]} 127.0.0.1 {server.port}",
        "LANG": "C.UTF-8",
        "LC_TIME": "C",
    }


async def test_commands_are_recorded(server: SandboxServer, client: asyncssh.SSHClientConnection) -> None:
    commands = ["echo 'a  b'", "printf '%s' ü", b"printf '%s' 'x\xff'", "echo a\necho b"]
    outputs = [(await run(client, command)).stdout for command in commands]
    assert outputs == [b"a  b\n", "ü".encode(), b"x\xff", b"a\nb\n"]
    assert server.commands == ["echo 'a  b'", "printf '%s' ü", "printf '%s' 'x\udcff'", "echo a\necho b"]


async def test_commands_that_no_process_can_have(client: asyncssh.SSHClientConnection) -> None:
    assert (await run(client, "echo a\0; echo b")).stdout == b"a\n"
    if sys.platform == "linux":  # where one argument has at most 128 KiB; a packet has at most 256 KiB
        result = await run(client, "true " + 200_000 * "x")
        assert (result.exit_status, result.stderr) == (1, b"/bin/sh: Argument list too long\n")
    assert (await run(client, "echo still here")).stdout == b"still here\n"


async def test_a_shell_reads_its_standard_input(client: asyncssh.SSHClientConnection) -> None:
    result = await run(client, None, stdin=asyncssh.PIPE, input=b'echo "$HOME"; pwd; exit 4\n')
    home, pwd = result.stdout.split()
    assert (home, result.exit_status) == (pwd, 4)


async def test_unknown_subsystems_are_refused(client: asyncssh.SSHClientConnection) -> None:
    with pytest.raises(asyncssh.ChannelOpenError):
        await start(client, None, subsystem="netconf")


async def test_exit_status_and_streams(client: asyncssh.SSHClientConnection) -> None:
    result = await run(client, "echo out; echo err >&2; exit 7")
    assert (result.stdout, result.stderr, result.exit_status) == (b"out\n", b"err\n", 7)


@pytest.mark.parametrize("name", ["KILL", "TERM", "HUP", "USR1"])
async def test_exit_signal(client: asyncssh.SSHClientConnection, name: str) -> None:
    result = await run(client, f"echo before; kill -{name} $$")
    assert result.stdout == b"before\n"
    assert result.exit_signal[:2] == (name, False)
    assert result.returncode == -signal.Signals[f"SIG{name}"]


async def test_a_signal_without_an_ssh_name(client: asyncssh.SSHClientConnection) -> None:
    result = await run(client, "kill -VTALRM $$")
    assert result.exit_signal[0] == "SIG@openssh.com"


async def test_a_core_dump_is_told(client: asyncssh.SSHClientConnection, tmp_path: Path) -> None:
    command = "ulimit -c unlimited; kill -QUIT $$"
    # Whether a core is dumped depends on this machine, so ask it.
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", f"cd '{tmp_path}'; {command}"], os.environ)
    _, status = os.waitpid(pid, 0)
    result = await run(client, command)
    assert result.exit_signal[:2] == ("QUIT", os.WCOREDUMP(status))


async def test_bytes_pass_exactly_in_both_directions(client: asyncssh.SSHClientConnection) -> None:
    data = bytes(range(256)) + random.Random(1).randbytes(5_000_000)
    result = await run(client, "cat; printf 'x\\377y\\0z' >&2", stdin=asyncssh.PIPE, input=data)
    assert hashlib.sha256(result.stdout).digest() == hashlib.sha256(data).digest()
    assert result.stderr == b"x\xffy\0z"


async def test_standard_input_is_streamed_until_its_end(client: asyncssh.SSHClientConnection) -> None:
    process = await start(client, "read line; echo got $line; cat; echo done")
    process.stdin.write(b"one\n")
    assert await process.stdout.readline() == b"got one\n"
    process.stdin.write(b"two\n")
    assert await process.stdout.readline() == b"two\n"
    process.stdin.write_eof()
    assert await process.stdout.read() == b"done\n"
    assert (await process.wait()).exit_status == 0


async def test_a_program_need_not_read_its_input(client: asyncssh.SSHClientConnection) -> None:
    data = bytes(5_000_000)
    for command in ("head -c 3", "exec <&-; head -c 3 /dev/zero"):
        process = await start(client, command)
        process.stdin.write(data)
        process.stdin.write_eof()
        result = await process.wait()
        assert (result.stdout, result.exit_status) == (b"\0\0\0", 0)


async def test_output_waits_for_a_client_that_does_not_read(
    server: SandboxServer, client: asyncssh.SSHClientConnection
) -> None:
    size = 16 * 1024 * 1024
    process = await start(client, f"head -c {size} /dev/zero; touch written")
    for _ in range(10):  # time in which a server without back-pressure would take it all
        assert (await run(client, "echo hi; seq 1 20000 | tail -n 1")).stdout == b"hi\n20000\n"
    assert not (server.home / "written").exists()
    total = 0
    while data := await process.stdout.read(1 << 20):
        total += len(data)
    assert total == size
    assert (await process.wait()).exit_status == 0
    assert (server.home / "written").exists()


async def test_the_end_is_reported_after_all_output(client: asyncssh.SSHClientConnection) -> None:
    size = 3 * 1024 * 1024  # more than the client's window
    channel, watch = await watch_command(client, f"head -c {size} /dev/zero; exit 5")
    assert await watch.ended == 5
    assert len(watch.output) == size
    await channel.wait_closed()
    assert [event for event in watch.events if event != "output"] in (
        ["eof", "status", "closed"],
        ["status", "eof", "closed"],
    )


async def test_a_background_child_does_not_delay_the_end(
    server: SandboxServer, client: asyncssh.SSHClientConnection
) -> None:
    channel, watch = await watch_command(client, "yes & echo $! >pid; exit 3")
    assert await watch.ended == 3
    assert "eof" not in watch.events
    assert "closed" not in watch.events
    os.kill(int((server.home / "pid").read_text()), signal.SIGKILL)
    await channel.wait_closed()
    assert watch.events[-2:] == ["eof", "closed"]


async def test_a_client_need_not_wait_for_a_background_child(client: asyncssh.SSHClientConnection) -> None:
    channel, watch = await watch_command(client, "sleep 300 & echo $!")
    assert await watch.ended == 0
    await eventually(lambda: watch.output)  # it may have come in the same packet, and be delivered next
    pid = int(watch.output)
    channel.close()
    await channel.wait_closed()
    assert alive(pid)


async def test_output_may_be_closed_before_the_end(client: asyncssh.SSHClientConnection) -> None:
    command = "exec >&- 2>&-; read line; exit 6"
    channel, watch = await watch_command(client, command)
    await eventually(lambda: watch.events)
    channel.write(b"go\n")
    assert await watch.ended == 6
    await channel.wait_closed()
    assert watch.events == ["eof", "status", "closed"]


async def test_many_commands_at_once(server: SandboxServer, client: asyncssh.SSHClientConnection) -> None:
    results = await asyncio.gather(*(run(client, f"echo {n}; exit {n}") for n in range(20)))
    assert [(int(result.stdout), result.exit_status) for result in results] == [(n, n) for n in range(20)]
    assert 1 < server.peak_sessions <= 20


# --- Signals, and clients that leave ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "USR1"])
async def test_a_signal_reaches_the_process(client: asyncssh.SSHClientConnection, name: str) -> None:
    command = f"trap 'echo caught; exit 3' {name}; echo ready; while :; do sleep 0.01; done"
    process = await start(client, command)
    assert await process.stdout.readline() == b"ready\n"
    process.send_signal(name)
    result = await process.wait()
    assert (result.stdout, result.exit_status) == (b"caught\n", 3)


async def test_a_signal_reaches_the_whole_group(client: asyncssh.SSHClientConnection) -> None:
    process = await start(client, "sleep 300 & echo $$ $!; wait")
    pids = [int(pid) for pid in (await process.stdout.readline()).split()]
    process.channel.send_signal("NONSENSE")
    process.kill()
    assert (await process.wait()).exit_signal[0] == "KILL"
    await eventually(lambda: not any(alive(pid) for pid in pids))


async def test_the_process_goes_on_when_the_client_closes_the_channel(
    server: SandboxServer, client: asyncssh.SSHClientConnection
) -> None:
    command = "echo ready; while ! test -e go; do sleep 0.01; done; touch done"
    process = await start(client, command)
    assert await process.stdout.readline() == b"ready\n"
    process.close()
    # As OpenSSH does, the server answers when the process has ended.
    assert (await run(client, "echo hi")).stdout == b"hi\n"
    closed = asyncio.ensure_future(process.wait_closed())
    assert not closed.done()
    (server.home / "go").touch()
    await closed
    assert (server.home / "done").exists()


async def test_a_client_may_close_while_its_input_is_stuck(
    server: SandboxServer, client: asyncssh.SSHClientConnection
) -> None:
    process = await start(client, "echo ready; while ! test -e go; do sleep 0.01; done")
    assert await process.stdout.readline() == b"ready\n"
    process.stdin.write(bytes(1_500_000))
    await run(client, "true")
    process.close()
    await run(client, "touch go")
    await process.wait_closed()


@pytest.mark.parametrize("leave", ["close", "abort"])
async def test_the_process_goes_on_when_the_connection_ends(server: SandboxServer, leave: str) -> None:
    client = await connect(server)
    command = "echo ready; while ! test -e go; do sleep 0.01; done; touch done"
    process = await start(client, command)
    assert await process.stdout.readline() == b"ready\n"
    getattr(client, leave)()
    await client.wait_closed()
    await eventually(lambda: server.open_connections == 0)
    (server.home / "go").touch()
    await eventually((server.home / "done").exists)


async def test_dropped_connections_are_reset(server: SandboxServer) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket() as raw:
        raw.setblocking(False)
        await loop.sock_connect(raw, (server.address, server.port))
        assert (await loop.sock_recv(raw, 100)).startswith(b"SSH-2.0-")
        async with connect(server) as client:
            channel, watch = await watch_command(client, "echo ready; exec sleep 300")
            await eventually(lambda: watch.output)
            server.drop_connections()
            await channel.wait_closed()
            assert channel.get_exit_status() is None
            assert "closed" in watch.events
        with pytest.raises(ConnectionResetError):
            await loop.sock_recv(raw, 100)
    await eventually(lambda: server.open_connections == 0)
    async with connect(server) as client:
        assert (await run(client, "echo back")).stdout == b"back\n"
    assert server.connections == 2


# --- MaxSessions --------------------------------------------------------------------------------------------


async def test_more_sessions_than_allowed_are_refused() -> None:
    async with SandboxServer("alpha", max_sessions=2) as server, connect(server) as client:
        sftp = await client.start_sftp_client()
        cat = await start(client, "cat")
        with pytest.raises(asyncssh.ChannelOpenError) as refused:
            await run(client, "true")
        assert (refused.value.code, refused.value.reason) == (asyncssh.OPEN_CONNECT_FAILED, "open failed")
        async with connect(server) as other:
            await run(other, "true")
        assert server.peak_sessions == 3
        cat.stdin.write_eof()
        await cat.wait()
        await run(client, "true")
        sftp.exit()


async def test_a_process_keeps_its_session_when_the_client_has_closed_it() -> None:
    async with SandboxServer("alpha", max_sessions=1) as server, connect(server) as client:
        command = "echo ready; while ! test -e go; do sleep 0.01; done"
        process = await start(client, command)
        assert await process.stdout.readline() == b"ready\n"
        process.close()
        with pytest.raises(asyncssh.ChannelOpenError, match="open failed"):
            await run(client, "true")
        (server.home / "go").touch()
        await process.wait_closed()
        await run(client, "true")


# --- Terminals ----------------------------------------------------------------------------------------------


async def test_a_terminal(client: asyncssh.SSHClientConnection) -> None:
    command = "stty size; echo $TERM; tty; echo $SSH_TTY; echo err >&2; echo own >/dev/tty; exit 5"
    result = await run(client, command, **TERMINAL)
    size, term, tty, ssh_tty, error, own = result.stdout.split(b"\r\n")[:-1]
    assert (size, term, error, own) == (b"30 120", b"xterm", b"err", b"own")
    assert tty == ssh_tty
    assert (result.stderr, result.exit_status) == (b"", 5)


async def test_a_terminal_echoes_unless_told_otherwise(client: asyncssh.SSHClientConnection) -> None:
    for modes, echo in (({}, b"in\r\n"), ({asyncssh.PTY_ECHO: 0}, b"")):
        command = "echo ready; read line; echo got $line"
        process = await start(client, command, term_modes=modes, **TERMINAL)
        assert await process.stdout.readline() == b"ready\r\n"
        process.stdin.write(b"in\n")
        result = await process.wait()
        assert result.stdout == echo + b"got in\r\n"


async def test_a_terminal_passes_interrupts_and_size_changes(client: asyncssh.SSHClientConnection) -> None:
    command = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.01; done"
    process = await start(client, command, **TERMINAL)
    assert await process.stdout.readline() == b"ready\r\n"
    process.change_terminal_size(100, 20)
    assert await process.stdout.readline() == b"20 100\r\n"
    process.stdin.write(b"\x03")
    assert (await process.wait()).exit_signal[0] == "INT"


async def test_a_terminal_hands_over_all_output(client: asyncssh.SSHClientConnection) -> None:
    result = await run(client, "sleep 300 & stty -opost; seq 1 100000", **TERMINAL)
    assert result.stdout == b"".join(b"%d\n" % n for n in range(1, 100_001))
    assert result.exit_status == 0


@pytest.mark.parametrize("leave", ["channel", "connection"])
async def test_a_terminal_hangs_up_when_the_client_leaves(server: SandboxServer, leave: str) -> None:
    async with connect(server) as client:
        command = "trap 'touch hup; exit' HUP; echo ready; while :; do sleep 0.01; done"
        process = await start(client, command, **TERMINAL)
        assert await process.stdout.readline() == b"ready\r\n"
        if leave == "channel":
            process.close()
            await process.wait_closed()
        else:
            client.abort()
        await eventually((server.home / "hup").exists)


async def test_a_login_shell_on_a_terminal(client: asyncssh.SSHClientConnection) -> None:
    process = await start(client, None, **TERMINAL)
    process.stdin.write(b"test -t 0 && echo is''-tty; exit 4\n")
    result = await process.wait()
    assert b"is-tty" in result.stdout
    assert result.exit_status == 4


# --- Files --------------------------------------------------------------------------------------------------


async def test_sftp(server: SandboxServer, client: asyncssh.SSHClientConnection, tmp_path: Path) -> None:
    data = random.Random(2).randbytes(1_000_000)
    (tmp_path / "local").write_bytes(data)
    async with client.start_sftp_client() as sftp:
        assert await sftp.realpath(".") == str(server.home)
        await sftp.mkdir("sub")
        await sftp.put(tmp_path / "local", "sub/remote")
        assert (server.home / "sub/remote").read_bytes() == data
        await sftp.symlink("remote", "sub/link")
        assert (server.home / "sub/link").readlink() == Path("remote")
        await sftp.posix_rename("sub/remote", "moved")
        assert sorted(await sftp.listdir()) == [".", "..", "moved", "sub"]
        assert sorted(await sftp.listdir(tmp_path)) == [".", "..", "local"]
        await sftp.get("moved", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == data
        with pytest.raises(asyncssh.SFTPNoSuchFile):
            await sftp.stat("none")
        async with sftp.open(b"odd \xff name", "wb") as file:
            await file.write(b"x")
        assert os.path.lexists(os.fsencode(server.home) + b"/odd \xff name")
    assert server.commands == []


async def test_scp(server: SandboxServer, client: asyncssh.SSHClientConnection, tmp_path: Path) -> None:
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/sub/file").write_bytes(b"\xff\0data")
    # The remote path is shell text: asyncssh does not quote it, and a host's own scp is started by a shell.
    await asyncssh.scp(tmp_path / "tree", (client, "'copy of it'"), recurse=True)
    assert (server.home / "copy of it/sub/file").read_bytes() == b"\xff\0data"
    await asyncssh.scp((client, "'copy of it'/sub/file"), tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"\xff\0data"
    with pytest.raises(asyncssh.SFTPError):
        await asyncssh.scp((client, "none"), tmp_path)
    assert len(server.commands) == 3
    assert all(command.startswith("scp ") for command in server.commands)


async def test_a_command_named_scp_is_a_command(client: asyncssh.SSHClientConnection) -> None:
    result = await run(client, "scp() { echo own $*; }; scp one two")
    assert result.stdout == b"own one two\n"
    result = await run(client, "scp --no-such-option one two 2>/dev/null || echo failed")
    assert result.stdout == b"failed\n"


async def test_nothing_is_written_outside_the_home(
    client: asyncssh.SSHClientConnection, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    await run(client, "echo x >file")
    async with client.start_sftp_client() as sftp, sftp.open("other", "wb") as file:
        await file.write(b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_uses_it_ends_without_a_word() -> None:
    program = """
import asyncio, asyncssh
from reemote.ssh.server import SandboxServer
from tests.leaks import eventually, open_files

async def main():
    async with SandboxServer("alpha") as server:
        options = dict(username="user", password="password", known_hosts=None, config=None)
        client = await asyncssh.connect(server.address, server.port, **options)
        for command in ("sleep 300 & echo hi", "sleep 300"):
            process = await client.create_process(command)
        async with client.start_sftp_client() as sftp:
            print(await sftp.realpath(".") == str(server.home))

asyncio.run(main())
"""
    command = [sys.executable, "-W", "error", "-c", program]
    result = subprocess.run(command, capture_output=True, timeout=30, check=True)
    assert (result.stdout, result.stderr) == (b"True\n", b"")
