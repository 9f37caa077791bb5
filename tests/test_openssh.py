"""The real servers of the tests do what they promise."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest

from tests.leaks import living, wait_dead
from tests.openssh import RootWorld, ServerFailed, UserSshd
from tests.openssh_fixtures import MakeUserSshd, MakeWorld

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

LOGIN = textwrap.dedent(
    """
    import asyncio, sys, asyncssh

    async def main():
        for host in sys.argv[2:]:
            options = {"username": "user", "password": "password", "client_keys": None, "agent_path": None}
            async with asyncssh.connect(host, **options) as connection:
                done = await connection.run(sys.argv[1], check=True)
                print(done.stdout, end="")

    asyncio.run(main())
    """
)


@contextlib.contextmanager
def fast(seconds: float = 3.0) -> Iterator[None]:
    """Fail when it takes far longer than it should, even on a busy machine: a start takes 0.1 s."""
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < seconds


async def test_key_login(user_sshd: UserSshd) -> None:
    before = user_sshd.accepted()
    async with asyncssh.connect(**user_sshd.connection()) as connection:
        done = await connection.run("id -un; pwd", check=True)
        assert done.stdout == f"{user_sshd.username}\n{user_sshd.home}\n"
        async with connection.start_sftp_client() as sftp:
            assert await sftp.realpath(".") == str(user_sshd.home)
    assert user_sshd.accepted() == before + 1
    assert user_sshd.accepted("password") == 0


async def test_the_ssh_program_logs_in(user_sshd: UserSshd) -> None:
    options = ["-F", "none", "-o", f'UserKnownHostsFile="{user_sshd.known_hosts}"', "-o", "BatchMode=yes"]
    user = ["-i", str(user_sshd.client_key), "-p", str(user_sshd.port), "-l", user_sshd.username]
    command = ["ssh", *options, *user, user_sshd.host, "echo hello"]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert (await process.communicate())[0] == b"hello\n"


async def test_runs_as_an_ordinary_user(user_sshd: UserSshd) -> None:
    async with asyncssh.connect(**user_sshd.connection()) as connection:
        # The processes of a session are complete when it has served something.
        await connection.run("true", check=True)
        pids = [user_sshd.listener_pid, *user_sshd.session_pids()]
        assert len(pids) == 3
        for pid in pids:
            uids = re.search(r"^Uid:(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
            assert uids is not None
            assert {int(uid) for uid in uids[1].split()} == {user_sshd.uid}
    assert user_sshd.uid != 0


async def test_counts_failures(make_user_sshd: MakeUserSshd) -> None:
    server = make_user_sshd()
    with pytest.raises(asyncssh.PermissionDenied):
        await asyncssh.connect(**server.connection(client_keys=[asyncssh.generate_private_key("ssh-ed25519")]))
    server.wait_idle()
    assert (server.accepted(), server.failed(), server.failed("publickey")) == (0, 1, 1)


async def test_the_host_key_is_checked(user_sshd: UserSshd) -> None:
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    known_hosts = asyncssh.import_known_hosts(f"[{user_sshd.host}]:{user_sshd.port} {other}")
    with pytest.raises(asyncssh.HostKeyNotVerifiable):
        await asyncssh.connect(**user_sshd.connection(known_hosts=known_hosts))


async def test_killed_sessions(make_user_sshd: MakeUserSshd) -> None:
    server = make_user_sshd()
    async with asyncssh.connect(**server.connection()) as connection:
        process = await connection.create_process("echo started; sleep 60", stdin=asyncssh.DEVNULL)
        assert await process.stdout.readline() == "started\n"
        assert len(server.session_pids()) == 2
        with fast():
            killed = server.kill_sessions()
            await connection.wait_closed()
        assert len(killed) == 2
        assert (process.exit_status, process.exit_signal) == (None, None)
    assert server.session_pids() == []
    # The listener still serves.
    async with asyncssh.connect(**server.connection()) as connection:
        await connection.run("true", check=True)
    assert server.accepted() == 2


async def test_frozen_and_thawed(make_user_sshd: MakeUserSshd) -> None:
    server = make_user_sshd()
    async with asyncssh.connect(**server.connection()) as connection:
        server.freeze()
        pending = asyncio.create_task(connection.run("echo thawed"))
        assert (await asyncio.wait({pending}, timeout=0.2))[0] == set()
        server.thaw()
        assert (await asyncio.wait_for(pending, 5)).stdout == "thawed\n"


async def test_a_frozen_server_stops(make_user_sshd: MakeUserSshd) -> None:
    server = make_user_sshd()
    async with asyncssh.connect(**server.connection()):
        server.freeze()
        pids = server.pids
        server.stop()
    assert living(pids) == []


async def test_max_sessions(make_user_sshd: MakeUserSshd) -> None:
    server = make_user_sshd(MaxSessions=1)
    async with asyncssh.connect(**server.connection()) as connection:
        async with connection.create_process("cat") as first:
            with pytest.raises(asyncssh.ChannelOpenError):
                await connection.run("true")
            first.stdin.write_eof()
            await first.wait()
        # The place is free a moment after the client has seen the end.
        for _ in range(100):
            with contextlib.suppress(asyncssh.ChannelOpenError):
                await connection.run("true", check=True)
                return
            await asyncio.sleep(0.01)
    pytest.fail("the only session stays taken")


async def test_max_startups(make_user_sshd: MakeUserSshd) -> None:
    server = make_user_sshd(MaxStartups=1)
    # One connection that never authenticates takes the only place.
    reader, writer = await asyncio.open_connection(server.host, server.port)
    assert (await reader.readline()).startswith(b"SSH-2.0-OpenSSH")
    with pytest.raises((asyncssh.ConnectionLost, ConnectionResetError)):
        await asyncssh.connect(**server.connection())
    assert "beginning MaxStartups throttling" in server.log()
    writer.close()
    await writer.wait_closed()
    server.wait_idle()
    async with asyncssh.connect(**server.connection()):
        pass


async def test_a_banner_and_variables(make_user_sshd: MakeUserSshd, tmp_path: Path) -> None:
    banner = tmp_path / "banner"
    banner.write_text("Hello.\n")
    server = make_user_sshd(Banner=banner, AcceptEnv=["ONE", "TWO"])
    seen = []

    class Client(asyncssh.SSHClient):
        def auth_banner_received(self, msg: str, lang: str) -> None:
            seen.append(msg)

    async with asyncssh.connect(**server.connection(client_factory=Client)) as connection:
        done = await connection.run("echo $ONE $TWO $THREE", env={"ONE": "1", "TWO": "2", "THREE": "3"})
    assert (seen, done.stdout) == (["Hello.\n"], "1 2\n")


async def test_several_addresses(make_user_sshd: MakeUserSshd) -> None:
    server = make_user_sshd(listen=["127.0.0.2", "127.0.0.3"])
    for host in ["127.0.0.2", "127.0.0.3"]:
        async with asyncssh.connect(**server.connection(host=host)):
            pass
    assert server.accepted() == 2
    with pytest.raises(ConnectionRefusedError):
        await asyncssh.connect(**server.connection(host="127.0.0.4"))


@needs_root
async def test_every_address_in_a_private_network(make_user_sshd: MakeUserSshd) -> None:
    server = make_user_sshd(listen="0.0.0.0", private_network=True)
    with server.network():
        for host in ["127.0.0.1", "127.0.7.200"]:
            async with asyncssh.connect(**server.connection(host=host)) as connection:
                await connection.run("true", check=True)
    with pytest.raises(ConnectionRefusedError):
        await asyncssh.connect(**server.connection())


def test_never_listens_to_the_outside(tmp_path: Path) -> None:
    for address in ["0.0.0.0", "::", "192.0.2.1"]:
        with pytest.raises(ValueError, match="loopback"):
            UserSshd(tmp_path / "sshd", listen=address)


async def test_stop_leaves_nothing_and_start_comes_back(make_user_sshd: MakeUserSshd) -> None:
    with fast():
        server = make_user_sshd()
    async with asyncssh.connect(**server.connection()) as connection:
        # The second one survives its session: not even this may stay behind.
        async with connection.create_process("(setsid sleep 61 >/dev/null 2>&1 & echo started); sleep 60") as process:
            assert await process.stdout.readline() == "started\n"
            server.kill_sessions()
        pids = server.pids
        assert len(pids) >= 4
        with fast():
            server.stop()
            server.stop()
        assert living(pids) == []
    assert not server.running
    port = server.port
    with fast():
        server.start()
    assert server.port == port
    async with asyncssh.connect(**server.connection()):
        pass
    assert server.accepted() == 2


def test_a_bad_option_is_reported_at_once(make_user_sshd: MakeUserSshd) -> None:
    with fast(), pytest.raises(ServerFailed, match="Bad configuration option: Nonsense"):
        make_user_sshd(Nonsense=1)


def test_a_taken_port_is_reported(make_user_sshd: MakeUserSshd, user_sshd: UserSshd) -> None:
    with fast(), pytest.raises(ServerFailed, match="Address already in use"):
        make_user_sshd(port=user_sshd.port)


def test_killed_tests_leave_nothing(user_sshd: UserSshd, tmp_path: Path) -> None:
    """After ``kill -9`` of the tests, the pipe that closes ends the servers."""
    script = textwrap.dedent(
        """
        import asyncio, os, pathlib, signal, sys, asyncssh
        from tests.openssh import RootWorld, UserSshd

        async def main():
            directory = pathlib.Path(sys.argv[1])
            server = UserSshd(directory / "sshd")
            server.start()
            connection = await asyncssh.connect(**server.connection())
            process = await connection.create_process("echo started; setsid sleep 62", stdin=asyncssh.DEVNULL)
            await process.stdout.readline()
            pids = server.pids
            if os.geteuid() == 0:
                world = RootWorld(directory / "world")
                world.start()
                world.popen(["sleep", "63"])
                pids += world.pids
            print(*pids, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

        asyncio.run(main())
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path],
        check=False,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
        timeout=30,
    )
    assert done.returncode == -signal.SIGKILL
    pids = [int(each) for each in done.stdout.split()]
    assert len(pids) >= 4
    wait_dead(pids)


def test_password_login_to_both_machines(world: RootWorld) -> None:
    before = {name: machine.accepted("password") for name, machine in world.machines.items()}
    command = "hostname; id -un; pwd; ls; echo $HOSTNAME >mine"
    done = world.run([sys.executable, "-c", LOGIN, command, "server104", "server105"])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "server104\nuser\n/home/user\nserver105\nuser\n/home/user\n"
    for name, machine in world.machines.items():
        assert machine.path("/home/user/mine").read_text() == f"{name}\n"
        assert machine.accepted("password") == before[name] + 1
        machine.path("/home/user/mine").unlink()


def test_key_login_to_a_machine_by_the_ssh_program(world: RootWorld) -> None:
    options = [
        "-o",
        "BatchMode=yes",
        "-o",
        "StrictHostKeyChecking=yes",
        "-o",
        f'UserKnownHostsFile="{world.known_hosts}"',
    ]
    done = world.run(["ssh", *options, "-i", world.client_key, "user@server105", "hostname"])
    assert (done.stdout, done.returncode) == ("server105\n", 0)


async def test_a_machine_within_the_network(world: RootWorld) -> None:
    machine = world["server104"]
    with world.network():
        options = machine.connection(host=machine.address, client_keys=None)
        async with asyncssh.connect(**options) as connection:
            done = await connection.run("tty", term_type="xterm", check=True)
            assert str(done.stdout).startswith("/dev/pts/")
    with pytest.raises(ConnectionRefusedError):
        await asyncssh.connect(**options)


def test_wrong_passwords_are_counted(world: RootWorld) -> None:
    machine = world["server104"]
    before = machine.failed("password")
    wrong = LOGIN.replace('"password": "password"', '"password": "wrong"')
    done = world.run([sys.executable, "-c", wrong, "true", "server104"])
    assert "PermissionDenied" in done.stderr
    machine.wait_idle()
    assert machine.failed("password") == before + 1


def test_sudo_and_su_on_a_machine(make_world: MakeWorld) -> None:
    world = make_world(
        "server104",
        users={"root": "secret", "free": "password", "guest": "password"},
        sudoers="%user ALL=(ALL) ALL",
    )
    sudo = "echo password | sudo -S -p '' touch /everywhere && stat -c %U /everywhere"
    done = world.run([sys.executable, "-c", LOGIN, sudo, "server104"])
    assert (done.stdout, done.stderr) == ("root\n", "")
    assert world["server104"].path("/everywhere").exists()
    assert not Path("/everywhere").exists()
    wrong = LOGIN.replace('"username": "user"', '"username": "guest"')
    done = world.run([sys.executable, "-c", wrong, "echo password | sudo -S -p '' id", "server104"])
    assert done.returncode != 0
    su = LOGIN.replace("check=True", 'input="secret\\n"')
    done = world.run([sys.executable, "-c", su, "su -c 'id -un'", "server104"])
    assert done.stdout == "root\n"


def test_the_machines_are_apart(world: RootWorld) -> None:
    first, second = world["server104"], world["server105"]
    first.path("/etc/only-here").touch()
    first.path("/tmp/only-here").touch()
    first.path("/dev/shm/only-here").touch()
    first.run(["useradd", "-m", "another"]).check_returncode()
    assert first.path("/home/another").is_dir()
    for file in ["/etc/only-here", "/tmp/only-here", "/dev/shm/only-here", "/home/another"]:
        assert not second.path(file).exists()
        assert not Path(file).exists()
    assert second.run(["hostname"]).stdout == "server105\n"
    assert "another" not in second.run(["cat", "/etc/passwd"]).stdout
    assert second.run(["pgrep", "-c", "cat"]).stdout == "1\n"
    first.run(["userdel", "-r", "another"]).check_returncode()


def test_a_machine_goes_down_and_comes_back(make_world: MakeWorld) -> None:
    world = make_world("alpha", "beta")
    pids = world["alpha"].pids
    world["alpha"].stop()
    assert living(pids) == []
    command = [sys.executable, "-c", LOGIN, "hostname"]
    assert "ConnectionRefusedError" in world.run([*command, "alpha"]).stderr
    assert world.run([*command, "beta"]).stdout == "beta\n"
    with fast():
        world["alpha"].start()
    assert world.run([*command, "alpha"]).stdout == "alpha\n"


def test_client_programs(world: RootWorld) -> None:
    world.write("notes/one", "text\n")
    done = world.run(["sh", "-c", "cat; pwd; echo $HOME $MORE; cat notes/one"], input="in\n", env={"MORE": "more"})
    assert done.stdout == f"in\n{world.home}\n{world.home} more\ntext\n"
    with fast(), pytest.raises(subprocess.TimeoutExpired):
        world.run(["sh", "-c", "sleep 64 & wait"], timeout=0.2)
    client = world.popen([sys.executable, "-c", "import signal; print('on', flush=True); signal.pause()"])
    assert client.stdout is not None
    assert client.stdout.readline() == "on\n"
    client.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in client.communicate(timeout=10)[1]
    assert world.run(["getent", "hosts", "server105"]).stdout.split() == ["127.0.105.1", "server105"]
    assert world.run(["getent", "hosts", "nowhere"]).returncode == 2


def test_stopping_a_world_leaves_nothing(make_world: MakeWorld) -> None:
    with fast():
        world = make_world("server1", "server2")
    ssh = ["ssh", "-o", f'UserKnownHostsFile="{world.known_hosts}"', "-i", str(world.client_key)]
    client = world.popen([*ssh, "user@server1", "echo started; setsid sleep 65"])
    assert client.stdout is not None
    assert client.stdout.readline() == "started\n"
    pids = world.pids
    assert len(pids) > 10
    with fast():
        world.stop()
        world.stop()
    assert living(pids) == []
    with fast():
        world.start()
    assert world.run([sys.executable, "-c", LOGIN, "hostname", "server2"]).stdout == "server2\n"


@pytest.mark.parametrize(("ci", "outcome"), [("", "3 skipped, 1 xfailed"), ("true", "1 failed, 1 xfailed, 2 errors")])
def test_nothing_is_skipped_in_ci(ci: str, outcome: str, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        textwrap.dedent(
            """
            import pytest

            @pytest.fixture
            def missing():
                pytest.skip("no sshd")

            def test_one(missing): pass

            def test_two(): pytest.skip("no root")

            @pytest.mark.xfail
            def test_three(): assert False
            """
        )
    )
    (tmp_path / "test_module.py").write_text("import pytest; pytest.importorskip('no_such_module')")
    plugins = ["-p", "tests.openssh_fixtures", "-p", "no:cacheprovider", "-p", "no:asyncio"]
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "--continue-on-collection-errors"]
    done = subprocess.run(
        [*command, *plugins, "-c", os.devnull, f"--rootdir={tmp_path}", str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env=os.environ | {"CI": ci},
        timeout=60,
    )
    assert outcome in done.stdout, done.stdout + done.stderr
    for reason in ["no sshd", "no root", "could not import 'no_such_module'"]:
        assert reason in done.stdout
