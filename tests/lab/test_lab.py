"""The hosts of the lab are machines of their own, with the users that they promise."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import asyncssh
import pytest

from tests.lab import image
from tests.lab.fixtures import MakeLab
from tests.lab.hosts import USERS, Host, Lab
from tests.lab.packages import Package, Repository, installed
from tests.leaks import living, wait_dead
from tests.openssh import User

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


async def ask(host: Host, user: str, command: str, text: str = "", *, tty: bool = False) -> tuple[int | None, str]:
    """Run a command as a user; return its exit status and all that it said."""
    async with asyncssh.connect(**host.login(user)) as connection:
        terminal = "xterm" if tty else None
        done = await connection.run(command, input=text, stderr=asyncssh.STDOUT, term_type=terminal)
    return done.exit_status, str(done.stdout).replace("\r\n", "\n").strip()


async def test_ten_hosts_start_in_seconds(make_lab: MakeLab) -> None:
    names = [f"server{number}" for number in range(101, 111)]
    begin = time.monotonic()
    lab = make_lab(*names)
    took = time.monotonic() - begin
    print(f"ten hosts: {took:.2f} s")
    assert took < 15
    with lab.network():
        answers = await asyncio.gather(*(ask(host, "keyed", "hostname; echo $SSH_CONNECTION") for host in lab.hosts))
    seen = [(status, *said.split()) for status, said in answers]
    assert [(status, name, address, port) for status, name, _, _, address, port in seen] == [
        (0, name, f"10.0.0.{number}", "22") for number, name in enumerate(names, 101)
    ]


async def test_they_know_each_other_by_name(lab: Lab) -> None:
    command = "exec 3<>/dev/tcp/server105/22 && head -c 8 <&3; cat /etc/hostname; . /etc/os-release; echo $ID"
    with lab.network():
        status, said = await ask(lab["server104"], "keyed", command)
    assert (status, said) == (0, "SSH-2.0-server104\ndebian")
    assert lab.run(["getent", "hosts", "server104"]).stdout.split() == ["10.0.0.104", "server104"]


def test_files_and_processes_are_separate(make_lab: MakeLab) -> None:
    first, second = make_lab().hosts
    paths = ["/etc/only-here", "/home/user/only-here", "/usr/bin/only-here", "/dev/shm/only-here", "/run/only-here"]
    for path in paths:
        first.path(path).write_text("here\n")
    first.path("/etc/debian_version").write_text("changed\n")
    assert first.run(["cat", *paths]).stdout == "here\n" * len(paths)
    assert not [path for path in paths if second.path(path).exists() or Path(path).exists()]
    assert second.path("/etc/debian_version").read_text() != "changed\n"
    assert (first.lab.root / "etc/debian_version").read_text() != "changed\n"
    first.run(["useradd", "-m", "another"]).check_returncode()
    assert second.run(["id", "another"]).returncode == 1

    first.run(["sh", "-c", "sleep 60 >/dev/null 2>&1 &"])
    assert first.run(["pgrep", "-xc", "sleep"]).stdout == "1\n"
    assert second.run(["pgrep", "-xc", "sleep"]).stdout == "0\n"
    assert "sleep" not in second.run(["ps", "-e"]).stdout
    # Not even the kernel shows them the network of the other.
    for host in (first, second):
        assert {each.name for each in host.path("/sys/class/net").iterdir()} == {"eth0", "lo"}


def test_packages_are_separate(make_lab: MakeLab) -> None:
    first, second = make_lab().hosts
    Repository(first, second).add(Package("lab-tree"))
    for command in (["update"], ["install", "-y", "lab-tree"]):
        done = first.run(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", *command])
        assert (done.returncode, done.stderr) == (0, "")
    assert installed(first).get("lab-tree") == "1.0"
    assert "lab-tree" not in installed(second)
    assert second.run(["dpkg", "-s", "lab-tree"]).returncode == 1
    assert not second.path("/usr/share/lab-tree").exists()


def test_apt_has_no_network_and_no_complaint(lab: Lab) -> None:
    host = lab["server104"]
    for command in (["apt-get", "update"], ["apt-get", "-y", "upgrade"], ["apt-get", "check"], ["dpkg", "--audit"]):
        done = host.run(command)
        assert (done.returncode, done.stderr) == (0, "")
    assert {"openssh-server", "sudo", "apt", "procps"} <= installed(host).keys()


@pytest.mark.parametrize(
    ("user", "command", "text", "status", "said"),
    [
        ("user", "sudo -S -p '' id -un", "password\n", 0, "root"),
        ("user", "sudo -n id -un", "", 1, "sudo: a password is required"),
        ("user", "sudo -S -p '' id -un", "wrong\n", 1, "1 incorrect password attempt"),
        ("keyed", "sudo -n id -un", "", 0, "root"),
        ("keyed", "sudo -n -u other id -un", "", 0, "other"),
        ("tty", "sudo -S -p '' id -un", "password\n", 1, "sudo: sorry, you must have a tty to run sudo"),
        ("single", "sudo -S -p '' /usr/bin/id -un", "password\n", 0, "root"),
        ("single", "sudo -S -p '' /usr/bin/true", "password\n", 1, "not allowed to execute '/usr/bin/true' as root"),
        ("single_free", "sudo -n /usr/bin/id -un", "", 0, "root"),
        ("single_free", "sudo -n /usr/bin/true", "", 1, "sudo: a password is required"),
        ("nosudo", "sudo -S -p '' id -un", "password\n", 1, "nosudo is not in the sudoers file"),
        ("user", "su -c 'id -un' other", "other-password\n", 0, "other"),
        ("user", "su -c 'id -un'", "root-password\n", 0, "root"),
        ("user", "su -c 'id -un' other", "password\n", 1, "su: Authentication failure"),
        ("other", "id -un", "", 0, "other"),
        ("root", "id -un", "", 0, "root"),
    ],
)
async def test_users(lab: Lab, user: str, command: str, text: str, status: int, said: str) -> None:
    with lab.network():
        found, answer = await ask(lab["server104"], user, command, text)
    assert found == status, answer
    assert said in answer


async def test_requiretty_is_content_with_a_terminal(lab: Lab) -> None:
    host = lab["server104"]
    before = len(host.sudo_log())
    with lab.network():
        status, said = await ask(host, "tty", "sudo -S -p 'PROMPT' id -un", "password\n", tty=True)
        assert (status, said.splitlines()[-1]) == (0, "root")
        status, said = await ask(host, "tty", "tty", tty=True)
        assert (status, said) == (0, "/dev/pts/0")
    new = host.sudo_log()[before:]
    assert len(new) == 1
    assert "COMMAND=/usr/bin/id" in new[0]


@pytest.mark.parametrize(
    ("user", "more", "allowed"),
    [
        ("user", {"password": "password"}, True),
        ("user", {"client_keys": "the key"}, False),
        ("keyed", {"client_keys": "the key"}, True),
        ("keyed", {"password": "password", "client_keys": None}, False),
        ("other", {"password": "other-password", "client_keys": None}, True),
        ("root", {"password": "root-password", "client_keys": None}, False),
    ],
)
async def test_logins(lab: Lab, user: str, more: dict[str, object], allowed: bool) -> None:
    if more.get("client_keys"):
        more = {"client_keys": [str(lab.client_key)], "password": None}
    with lab.network():
        options = lab["server104"].login(user, **more)
        if allowed:
            async with asyncssh.connect(**options) as connection:
                assert (await connection.run("id -un", check=True)).stdout == f"{user}\n"
        else:
            with pytest.raises(asyncssh.PermissionDenied):
                await asyncssh.connect(**options)


async def test_users_and_options_of_a_test(make_lab: MakeLab) -> None:
    password = "-a'b\"c\\d$HOME`id`!e f;#&|%é "
    users = [*USERS, User("odd", password, sudo="ALL=(ALL) ALL", shell="/bin/sh")]
    host = make_lab("alpha", users=users, sudoers="nosudo ALL=(ALL) NOPASSWD: ALL", disk="64m", MaxSessions=1)["alpha"]
    with host.lab.network():
        status, said = await ask(host, "odd", "sudo -S -p '' id -un; echo $0", f"{password}\n")
        assert (status, said.splitlines()[-2:]) == (0, ["root", "sh"])
        assert await ask(host, "nosudo", "sudo -n id -un") == (0, "root")
        async with asyncssh.connect(**host.login()) as connection, connection.create_process("cat"):
            with pytest.raises(asyncssh.ChannelOpenError):
                await connection.run("true")
    assert host.run(["df", "--output=size", "-m", "/"]).stdout.split()[-1] == "64"


async def test_sftp_as_debian_serves_it(lab: Lab) -> None:
    host = lab["server105"]
    with lab.network():
        async with asyncssh.connect(**host.login("user")) as connection, connection.start_sftp_client() as sftp:
            assert await sftp.realpath(".") == "/home/user"
            assert list(host.run(["pgrep", "-x", "sftp-server"]).stdout.split()) != []


async def test_a_host_comes_back_fresh(make_lab: MakeLab) -> None:
    lab = make_lab()
    host, other = lab.hosts
    host.path("/etc/only-before").touch()
    pids = host.pids
    with lab.network():
        assert (await ask(host, "keyed", "hostname"))[0] == 0
        host.stop()
        assert living(pids) == []
        with pytest.raises(OSError):
            await asyncssh.connect(**host.login(), connect_timeout=1)
        assert (await ask(other, "keyed", "hostname")) == (0, "server105")
        host.start()
        assert (await ask(host, "keyed", "hostname")) == (0, "server104")
    assert not host.path("/etc/only-before").exists()


async def test_stopping_a_lab_leaves_nothing(make_lab: MakeLab) -> None:
    lab = make_lab()
    mounts = Path("/proc/self/mountinfo").read_text()
    host = lab["server104"]
    host.slow(latency=0.001)
    with lab.network():
        connection = await asyncssh.connect(**host.login())
        process = await connection.create_process("setsid sleep 61 & echo started", stdin=asyncssh.DEVNULL)
        assert await process.stdout.readline() == "started\n"
    pids = lab.pids
    assert len(pids) > 10
    lab.stop()
    lab.stop()
    assert living(pids) == []
    connection.abort()
    await connection.wait_closed()
    assert Path("/proc/self/mountinfo").read_text() == mounts
    lab.start()
    with lab.network():
        assert (await ask(host, "keyed", "hostname")) == (0, "server104")


def test_killed_tests_leave_nothing(lab: Lab, tmp_path: Path) -> None:
    """After ``kill -9`` of the tests, the pipe that closes ends the hosts and their cables."""
    script = textwrap.dedent(
        """
        import asyncio, os, pathlib, signal, sys, asyncssh
        from tests.lab.hosts import Lab

        async def main():
            lab = Lab(pathlib.Path(sys.argv[1]))
            lab.start()
            host = lab["server104"]
            host.slow(rate="100mbit", latency=0.001)
            host.drop(incoming=False)
            host.restore()
            host.slow(latency=0.001)
            with lab.network():
                connection = await asyncssh.connect(**host.login())
                process = await connection.create_process("echo started; setsid sleep 62", stdin=asyncssh.DEVNULL)
                await process.stdout.readline()
            lab.popen(["sleep", "63"])
            print(*lab.pids, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

        asyncio.run(main())
        """
    )
    own = {"REEMOTE_LAB_CACHE": str(image.CACHE), "REEMOTE_LAB_SUITE": image.SUITE}
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "lab"],
        check=False,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | own,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL
    pids = [int(each) for each in done.stdout.split()]
    assert len(pids) > 10
    wait_dead(pids)


def test_without_root_there_is_one_line(tmp_path: Path) -> None:
    """Whoever is not root sees one line for all tests of the lab."""
    folder = Path(__file__).parent.relative_to(ROOT)
    plugins = ["-p", "no:cacheprovider", "-p", "tests.lab.fixtures"]
    pytest_command = [sys.executable, "-m", "pytest", "-q", *plugins, f"--basetemp={tmp_path}/base"]
    command = shlex.join([*pytest_command, str(folder), "-k", "test_users or test_packages_are_separate"])
    # In a user namespace root is nobody, and keeps the files.
    other = ["unshare", "-U"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*other, "sh", "-c", f"exec {command}"],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "CI"},
        timeout=80,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    skipped = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    assert len(skipped) == 1, done.stdout
    assert "the lab: needs root, for namespaces" in skipped[0]
