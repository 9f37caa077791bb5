"""The runner: commands of one connection by one program on the host, as if each had a channel of its own."""

from __future__ import annotations

import ast
import asyncio
import hashlib
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import asyncssh
import pytest

from reemote.core.errors import ConnectionLost, PasswordRejected
from reemote.core.files import File
from reemote.ssh import process, runner
from reemote.ssh.process import Process
from reemote.ssh.runner import Runner
from reemote.ssh.runner_program import CHUNK, HEADER, PROGRAM, WINDOW
from reemote.ssh.sink import Sink
from reemote.ssh.wire import LONGEST, Become
from reemote.testing import sandbox
from tests.leaks import eventually
from tests.openssh import UserSshd, why_no_user_sshd
from tests.openssh_fixtures import MakeUserSshd
from tests.ssh.machines import started as started_machine
from tests.ssh.runners import begin, both, channel, commands, connected, program, programs, run, run_by_exec, running

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nothing_left")]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a user whose files may be written")

WITHOUT_SPAWN = runner.SOURCE.replace(b'hasattr(posix, "posix_spawn")', b"False")
"""As on Python 3.7, and where the C library is old."""

PYTHON = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable


@pytest.fixture(scope="module")
def bash(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UserSshd]:
    """A server whose user has bash for a login shell, which reads ~/.bashrc for commands."""
    if reason := why_no_user_sshd():
        pytest.skip(f"OpenSSH: {reason}")
    with UserSshd(tmp_path_factory.mktemp("bash") / "sshd", shell="/bin/bash") as server:
        yield server


@pytest.fixture
async def started(user_sshd: UserSshd) -> AsyncIterator[tuple[asyncssh.SSHClientConnection, Runner]]:
    """A runner on a connection to a server of an ordinary user."""
    async with running(user_sshd) as pair:
        yield pair


@pytest.fixture
def marker(user_sshd: UserSshd) -> Iterator[Callable[[str], Path]]:
    """Files that commands make to say how far they are."""
    made: list[Path] = []

    def make(name: str) -> Path:
        made.append(user_sshd.home / f"runner-{name}")
        made[-1].unlink(missing_ok=True)
        return made[-1]

    yield make
    for path in made:
        path.unlink(missing_ok=True)


def write(server: UserSshd, name: str, text: str, mode: int = 0o755) -> Path:
    """Write a file of the user."""
    path = server.home / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


async def lost(process: Process) -> ConnectionLost:
    """Give the failure of a command whose end is not known."""
    with pytest.raises(ConnectionLost) as failure:
        await process.communicate()
    assert failure.value.outcome == "unknown"
    assert failure.value.completed is not None
    assert failure.value.completed.exit_status is None
    assert failure.value.completed.exit_signal is None
    return failure.value


# The program


def test_the_program_is_for_old_pythons_too() -> None:
    assert runner.SOURCE != WITHOUT_SPAWN
    ast.parse(PROGRAM, feature_version=(3, 6))
    assert PROGRAM.isascii()


# It starts, or it does not


@needs_root
async def test_what_the_login_shell_says_is_not_taken_for_the_program(bash: UserSshd) -> None:
    noise = f"printf '%70000s'; printf '%70000s' >&2; printf 'R\\0\\0\\0\\0\\0\\0\\0\\0'; head -c 99999 {PYTHON}\n"
    write(bash, ".bashrc", noise)
    async with running(bash) as (_, runner):
        record = await run(runner, ["echo", "hello"])
        write(bash, ".bashrc", "")
        assert record.stdout_bytes.endswith(b"hello\n")
        assert (await run(runner, "echo again")).stdout == "again\n"


PYTHONS = {
    "none": None,
    "one that fails": "exit 1",
    "Python 2": "echo 'Unknown option: -I' >&2; exit 2",
    "one that is too old": f'{PYTHON} -I -S -c "import sys; sys.version_info = (3, 5); $4" "$5" "$6" "$7"',
    "one that talks": f'echo "Welcome to Python"; exec {PYTHON} "$@"',
    "one that hangs": "exec sleep 4711",
    "one that closes its output": "exec >&- 2>&-; exec sleep 4711",
    "one that is killed": "kill -9 $$",
}


@needs_root
@pytest.mark.parametrize("kind", PYTHONS)
async def test_a_host_without_a_python(bash: UserSshd, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "PATIENCE", 1.0)
    folder = bash.home / "bin"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in ("sh", "sleep"):
        (folder / name).symlink_to(shutil.which(name) or name)
    if text := PYTHONS[kind]:
        write(bash, "bin/python3", f"#!/bin/sh\n{text}\n")
    write(bash, ".bashrc", f"PATH={folder}\n")
    try:
        async with connected(bash) as connection:
            assert await Runner.start(connection) is None
            assert (await run_by_exec(connection, "echo hello")).stdout == "hello\n"
    finally:
        write(bash, ".bashrc", "")
        for pid in commands(bash, "4711"):
            os.kill(pid, signal.SIGKILL)


@needs_root
async def test_a_login_shell_that_goes_away(bash: UserSshd) -> None:
    write(bash, ".bashrc", "exit 3\n")
    try:
        async with connected(bash) as connection:
            assert await Runner.start(connection) is None
    finally:
        write(bash, ".bashrc", "")


async def test_a_server_that_runs_something_else(make_user_sshd: MakeUserSshd) -> None:
    ran = 'echo $# >> "$HOME/forced"; cat > "$HOME/given"'
    server = make_user_sshd(ForceCommand=ran)
    async with connected(server) as connection:
        start = asyncio.create_task(Runner.start(connection))
        await eventually((server.home / "given").exists)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
    assert (server.home / "given").read_bytes() == b""  # the program goes to nothing that has not said the mark


async def test_a_server_without_a_session_to_spare(make_user_sshd: MakeUserSshd) -> None:
    server = make_user_sshd(MaxSessions=0)
    async with connected(server) as connection:
        assert await Runner.start(connection) is None
        connection.close()
        await connection.wait_closed()
        assert await Runner.start(connection) is None


async def test_a_connection_that_is_lost_at_the_start(make_user_sshd: MakeUserSshd) -> None:
    server = make_user_sshd(ForceCommand="touch begun; sleep 4712")
    async with connected(server) as connection:
        start = asyncio.create_task(Runner.start(connection))
        await eventually((server.home / "begun").exists)
        server.kill_sessions()
        assert await start is None


# What a command finds

FINDS = {
    "variables": "env | sort",
    "the shell": 'echo "$0 $- $# $SHLVL $PWD $OLDPWD"; umask; nice; pwd -P',
    "limits": "ulimit -a",
    "files": "for n in 0 1 2 3 4 5 6 7 8 9 10 11 12; do "
    "if [ -p /proc/self/fd/$n ]; then echo $n pipe; elif [ -e /proc/self/fd/$n ]; then echo $n; fi; done",
    "signals": "grep -E 'SigBlk|SigCgt|ShdPnd|SigPnd|Groups|CapEff|NoNewPrivs|Seccomp' /proc/self/status",
    "ignored signals": "for n in 1 2 3 6 10 12 13 14 15 17 20 25 31 34 64; do "
    "printf '%d ' $(( 0x$(sed -n 's/SigIgn:.//p' /proc/self/status) >> (n-1) & 1 )); done",
    "its group": "read pid _ _ _ group session terminal _ < /proc/$$/stat; "
    'echo $((pid == $$)) $((group == $$)) $((session == $$)) "$terminal"',
    "the end of its input": "cat; test -p /dev/stdin; echo $?",
    "arguments": "tr '\\0' '\\n' < /proc/$$/cmdline; :",
}


@pytest.mark.parametrize("what", FINDS)
async def test_a_command_finds_what_it_would_find_without(
    started: tuple[asyncssh.SSHClientConnection, Runner], what: str
) -> None:
    record = await both(*started, FINDS[what])
    assert record.stdout
    assert record.stderr == ""


RC = """export RC=${RC-}:x PYTHONPATH=/nonesuch LC_CTYPE=C
umask 027
cd /usr
trap '' INT HUP
exec 9>~/.lock {x}>~/.lock
"""


@needs_root
@pytest.mark.parametrize("what", FINDS)
async def test_a_command_finds_the_same_after_the_files_of_its_login_shell(bash: UserSshd, what: str) -> None:
    write(bash, ".bashrc", RC)
    write(bash, ".lock", "", 0o666)
    try:
        async with running(bash) as (connection, runner):
            record = await both(connection, runner, FINDS[what])
            await both(connection, runner, FINDS[what], env={"A": "b c", "PYTHONHOME": "x"}, cwd="/tmp")
    finally:
        write(bash, ".bashrc", "")
    if what == "variables":
        assert "RC=:x\n" in record.stdout


@needs_root
@pytest.mark.parametrize("shell", ["/bin/bash", "/bin/dash"])
async def test_without_proc_the_variables_are_those_of_the_program(
    make_user_sshd: MakeUserSshd, shell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = runner.SOURCE.replace(b"/proc/%s/environ", b"/nonesuch/%s")
    assert source != runner.SOURCE
    monkeypatch.setattr(runner, "SOURCE", source)
    async with running(make_user_sshd(shell=shell, SetEnv="LANG=C")) as (connection, made):
        await both(connection, made, FINDS["variables"])


@needs_root
async def test_a_home_that_is_gone(make_user_sshd: MakeUserSshd) -> None:
    server = make_user_sshd()
    async with running(server) as (connection, runner):
        server.home.rename(server.home.with_name("away"))
        record = await both(connection, runner, "pwd")
        assert "Could not chdir to home directory" in record.stderr
        server.home.with_name("away").rename(server.home)
        assert (await both(connection, runner, "pwd")).stdout.strip() == str(server.home)


@needs_root
@pytest.mark.parametrize("can_spawn", [True, False])
async def test_a_login_shell_that_is_gone(
    tmp_path_factory: pytest.TempPathFactory, can_spawn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_spawn:
        monkeypatch.setattr(runner, "SOURCE", WITHOUT_SPAWN)
    directory = tmp_path_factory.mktemp("shell") / "sshd"
    shell = directory / "server" / "shell"
    server = UserSshd(directory, shell=str(shell))
    shutil.copy("/bin/sh", shell)
    with server:
        await shell_is_gone(server, shell)


async def shell_is_gone(server: UserSshd, shell: Path) -> None:
    async with running(server) as (connection, runner):
        shell.unlink()
        record = await both(connection, runner, "echo hello")
        assert record.stderr == f"{shell}: No such file or directory\n"
        assert record.exit_status == 1


ENDS = [
    "exit 0", "exit 3", "exit 255", "exit 256", "false", "kill -KILL $$", "kill -TERM $$", "kill -PIPE $$",
    "kill -USR1 $$", "kill -STKFLT $$", "kill -WINCH $$", "kill -s 34 $$", "nonesuch", "(exit 7)",
    "set -e; false; echo",
    "exec >&- 2>&-; exit 4", "exec 2>&1; echo x >&2", "exec <&- >&- 2>&-; kill -9 $$", "echo x; sleep 0.01; echo y",
    "printf 'a\\000b\\377\\012'", "ulimit -c 0; kill -QUIT $$", "sh -c 'kill -9 $$'", "trap 'exit 9' EXIT",
    "cat <<E\n$HOME\nE\n", "", " ", "#", "yes | head -n 1",
]  # fmt: skip


async def test_ends_are_told_as_sshd_tells_them(started: tuple[asyncssh.SSHClientConnection, Runner]) -> None:
    for command in ENDS:
        await both(*started, command)


@pytest.mark.parametrize("size", [100_000, LONGEST])
async def test_long_commands(started: tuple[asyncssh.SSHClientConnection, Runner], size: int) -> None:
    command = "printf %s " + "x" * (size - 10)
    record = await run(started[1], command)
    assert len(record.stdout) == size - 10
    assert record.exit_status == 0


async def test_texts_that_are_not_unicode(started: tuple[asyncssh.SSHClientConnection, Runner]) -> None:
    record = await both(*started, ["printf", "%s", "\udcff\udc80ä€"])
    assert record.stdout_bytes == b"\xff\x80" + "ä€".encode()


async def test_a_command_that_cannot_be_started(started: tuple[asyncssh.SSHClientConnection, Runner]) -> None:
    refused = begin(started[1], "echo a\0b")
    await lost(refused)
    assert "null byte" in (channel(refused).refused or "")
    assert (await run(started[1], "echo after")).stdout == "after\n"


@needs_root
async def test_a_host_without_files_to_spare(bash: UserSshd) -> None:
    write(bash, ".bashrc", "ulimit -n 24\n")
    try:
        async with running(bash) as (_, runner):
            begun = [begin(runner, f"read x; echo {number}", stdin=gate(on := asyncio.Event())) for number in range(4)]
            more = [begin(runner, f"read x; echo {number}") for number in range(4, 12)]
            answers = await asyncio.gather(*(each.communicate() for each in more), return_exceptions=True)
            refused = [each for each in more if channel(each).refused]
            assert refused
            for each, answer in zip(more, answers, strict=True):
                assert isinstance(answer, ConnectionLost) == (each in refused)
            on.set()
            assert [(await each.communicate()).exit_status for each in begun[3:]] == [0]
            for each in begun[:3]:
                await each.end()
            assert (await run(runner, "echo after")).stdout == "after\n"
    finally:
        write(bash, ".bashrc", "")


async def gate(on: asyncio.Event) -> AsyncIterator[bytes]:
    """Input that comes when it is let through."""
    await on.wait()
    yield b"x\n"


# Output


async def test_a_hundred_commands_at_the_same_time(started: tuple[asyncssh.SSHClientConnection, Runner]) -> None:
    records = await asyncio.gather(
        *(run(started[1], f"echo {number}; echo -{number} >&2; exit {number}") for number in range(100))
    )
    expected = [(f"{number}\n", f"-{number}\n", number) for number in range(100)]
    assert [(each.stdout, each.stderr, each.exit_status) for each in records] == expected


async def test_much_on_both_streams_at_once(started: tuple[asyncssh.SSHClientConnection, Runner]) -> None:
    size = 64 * 1024 * 1024
    record = await run(started[1], f"yes | head -c {size} & yes n | head -c {size} >&2; wait")
    for stream, line in ((record.stdout_bytes, b"y\n"), (record.stderr_bytes, b"n\n")):
        assert len(stream) == size
        assert stream.count(line) == size // 2


async def test_one_that_writes_without_end_does_not_starve_others(
    started: tuple[asyncssh.SSHClientConnection, Runner],
) -> None:
    noisy = [begin(started[1], "exec yes", kept=1000) for _ in range(8)]
    await eventually(lambda: all(each.record().get("stdout_size", 0) > 4 * WINDOW for each in noisy))
    for number in range(10):
        start = time.monotonic()
        assert (await run(started[1], f"echo {number}")).stdout == f"{number}\n"
        assert time.monotonic() - start < 5
    before = [each.record()["stdout_size"] for each in noisy]
    await eventually(
        lambda: all(each.record()["stdout_size"] > size + WINDOW for each, size in zip(noisy, before, strict=True))
    )
    assert all(await asyncio.gather(*(each.end() for each in noisy)))


async def test_output_waits_where_it_is_not_taken(
    started: tuple[asyncssh.SSHClientConnection, Runner], user_sshd: UserSshd
) -> None:
    held = begin(started[1], "yes | head -c 9000000; sleep 0.1; exit 5")
    channel(held).pause_reading()
    assert (await run(started[1], "yes | head -c 5000000")).stdout_bytes.count(b"y") == 2500000
    assert held.record().stdout == ""
    channel(held).resume_reading()
    record = await held.communicate()
    assert (len(record.stdout), record.exit_status) == (9000000, 5)


class Slow:
    """A file that is written slowly, and notes what it was given."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()

    async def write(self, data: bytes, offset: int) -> None:
        await asyncio.sleep(0)
        self.digest.update(data)


async def test_output_goes_to_files(started: tuple[asyncssh.SSHClientConnection, Runner]) -> None:
    file = Slow()
    sink = Sink(cast(File, file))
    record = await run(started[1], "yes | head -c 20000000", sink=sink)
    await sink.close()
    assert record["stdout_size"] == 20000000
    assert file.digest.hexdigest() == hashlib.sha256(b"y\n" * 10000000).hexdigest()


def is_asleep(pid: int) -> bool:
    """Whether a process waits for something."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


async def test_the_program_takes_no_more_memory_than_it_may(
    started: tuple[asyncssh.SSHClientConnection, Runner], user_sshd: UserSshd
) -> None:
    made = started[1]
    there = await program(user_sshd)

    def memory() -> int:
        (line,) = (each for each in Path(f"/proc/{there}/status").read_text().splitlines() if "VmRSS" in each)
        return int(line.split()[1])

    before = memory()
    stream = made._stream.channel
    assert stream is not None
    stream.pause_reading()
    noisy = [begin(made, "exec yes 777", kept=100) for _ in range(8)]
    dead = begin(made, "exec sleep 4713")
    await eventually(lambda: len(commands(user_sshd, "sleep 4713")) == 1)
    channel(dead).send_signal("KILL")
    await eventually(lambda: not commands(user_sshd, "sleep 4713"))  # it still listens
    await eventually(lambda: len(stuck := commands(user_sshd, "yes 777")) == 8 and all(map(is_asleep, stuck)))
    assert memory() - before < 4096
    stream.resume_reading()
    assert (await dead.communicate()).exit_signal == ("KILL", False, "", "")
    await asyncio.gather(*(each.end() for each in noisy))
    assert memory() - before < 8192


async def test_nothing_is_left_of_commands_that_have_ended(
    started: tuple[asyncssh.SSHClientConnection, Runner], user_sshd: UserSshd
) -> None:
    there = await program(user_sshd)
    folder = Path(f"/proc/{there}/fd")
    before = sorted(folder.iterdir())
    never = asyncio.Event()
    begun = [begin(started[1], f"exit {number}", stdin=gate(never)) for number in range(30)]
    begun += [begin(started[1], "exec <&- >&- 2>&-; exit 3") for _ in range(10)]
    begun += [begin(started[1], "a\0b") for _ in range(5)]
    await eventually(lambda: all(each.session.closed.is_set() for each in begun))
    assert sorted(folder.iterdir()) == before
    assert started[1]._channels == {}


# Ends and those in the background


async def test_the_end_is_known_while_others_write(
    started: tuple[asyncssh.SSHClientConnection, Runner], marker: Callable[[str], Path]
) -> None:
    go = marker("go")
    first = begin(
        started[1], f"(while [ ! -e {go} ]; do sleep 0.02; done; echo late; echo late >&2) & echo early; exit 6"
    )
    await asyncio.wait_for(first.session.ended.wait(), 5)
    assert (first.record().stdout, first.record().exit_status) == ("early\n", 6)
    assert not first.session.closed.is_set()
    assert (await run(started[1], "echo second")).stdout == "second\n"
    taking = asyncio.create_task(first.communicate())
    go.touch()
    record = await taking
    assert (record.stdout, record.stderr) == ("early\nlate\n", "late\n")


async def test_who_writes_on_is_told_by_SIGPIPE(
    started: tuple[asyncssh.SSHClientConnection, Runner],
    marker: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "DRAIN_MOST", 0.3)
    told = marker("told")
    script = f"(trap 'touch {told}; exit' PIPE; while :; do echo x; sleep 0.02; done) & echo early"
    record = await run(started[1], ["sh", "-c", script])
    assert record.stdout.startswith("early\n") or record.stdout.startswith("x\n")
    assert not told.exists()
    await eventually(told.exists)
    assert started[1]._channels == {}


# Signals


TREES = {
    "a tree": "sh -c 'sleep 4721 & sleep 4722 & touch {begun}; wait' & wait",
    "deaf": "trap '' TERM; sh -c 'sleep 4723 & touch {begun}; while :; do sleep 0.1; done' & "
    "while :; do sleep 0.1; done",
    "a program": "touch {begun}; exec sleep 4724",
}


@pytest.mark.parametrize("kind", TREES)
async def test_a_command_is_ended_with_all_that_it_started(
    started: tuple[asyncssh.SSHClientConnection, Runner],
    user_sshd: UserSshd,
    marker: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    monkeypatch.setattr(process, "GRACE_TERM", 0.5)
    begun, other = marker("begun"), begin(started[1], "exec sleep 4729")
    ending = begin(started[1], TREES[kind].format(begun=begun))
    await eventually(begun.exists)
    assert await ending.end()
    assert ending.was_killed == (kind == "deaf")
    assert [pid for number in range(4721, 4725) for pid in commands(user_sshd, f"sleep {number}")] == []
    assert len(commands(user_sshd, "sleep 4729")) == 1
    assert await other.end()


@pytest.mark.parametrize("can_spawn", [True, False])
async def test_no_signal_is_lost_on_young_commands(
    user_sshd: UserSshd, can_spawn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_spawn:
        monkeypatch.setattr(runner, "SOURCE", WITHOUT_SPAWN)
    async with running(user_sshd) as (_, made):
        for name in ("TERM", "KILL", "HUP", "USR1"):
            young = [begin(made, "sleep 4731") for _ in range(10)]
            for each in young:
                channel(each).send_signal(name)
            records = await asyncio.gather(*(each.communicate() for each in young))
            assert {each.exit_signal for each in records} == {(name, False, "", "")}


async def test_a_python_without_posix_spawn(user_sshd: UserSshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "SOURCE", WITHOUT_SPAWN)
    async with running(user_sshd) as pair:
        for command in [*FINDS.values(), *ENDS]:
            await both(*pair, command)
        ignored = (await both(*pair, "grep SigIgn /proc/self/status")).stdout.split()[1]
        assert not int(ignored, 16) & 1 << signal.SIGPIPE - 1, "Python ignores it, and what it starts is not to"


async def test_the_group_of_a_leader_that_has_ended(
    started: tuple[asyncssh.SSHClientConnection, Runner], user_sshd: UserSshd
) -> None:
    left = begin(started[1], "sleep 4741 & exit 0")
    await left.session.ended.wait()
    assert len(commands(user_sshd, "sleep 4741")) == 1
    channel(left).send_signal("TERM")
    await asyncio.wait_for(left.session.closed.wait(), 5)
    assert commands(user_sshd, "sleep 4741") == []
    assert (await left.communicate()).exit_status == 0


async def test_signals_without_a_meaning_are_not_sent(started: tuple[asyncssh.SSHClientConnection, Runner]) -> None:
    asleep = begin(started[1], "sleep 4751")
    for name in ("NONESUCH", "", "_DFL", "_UNBLOCK", "é"):
        channel(asleep).send_signal(name)
    assert (await run(started[1], "echo after")).stdout == "after\n"
    assert not asleep.session.ended.is_set()
    assert await asleep.end()
    with pytest.raises(OSError, match="closed"):
        channel(asleep).send_signal("TERM")
    with pytest.raises(BrokenPipeError):
        channel(asleep).write(b"x")


# Input


async def test_input(started: tuple[asyncssh.SSHClientConnection, Runner]) -> None:
    data = bytes(range(256)) * 12_000
    record = await run(started[1], "tee /dev/stderr | sha256sum", stdin=data)
    assert record.stdout.split()[0] == hashlib.sha256(data).hexdigest()
    assert hashlib.sha256(record.stderr_bytes).digest() == hashlib.sha256(data).digest()


@pytest.mark.parametrize("command", ["head -c 10", "exit 3", "exec <&-; sleep 0.1; echo x", "sleep 0.2; wc -c"])
async def test_input_that_is_not_read(started: tuple[asyncssh.SSHClientConnection, Runner], command: str) -> None:
    await both(*started, command, stdin=b"x" * 5_000_000)


async def test_input_waits_where_it_is_not_read(started: tuple[asyncssh.SSHClientConnection, Runner]) -> None:
    given = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal given
        for _ in range(200):
            given += CHUNK
            yield b"x" * CHUNK

    stopped = begin(started[1], "sleep 4761", stdin=pieces())
    task = asyncio.create_task(stopped.communicate())
    await eventually(lambda: not stopped.session.writable.is_set())
    assert (await run(started[1], "cat", stdin=b"y" * 3_000_000)).stdout == "y" * 3_000_000
    assert given < 2 * WINDOW
    assert await stopped.end()
    assert (await task).exit_signal == ("TERM", False, "", "")


async def test_a_talk(started: tuple[asyncssh.SSHClientConnection, Runner]) -> None:
    said: asyncio.Queue[bytes] = asyncio.Queue()

    async def answers() -> AsyncIterator[bytes]:
        while answer := await said.get():
            yield answer

    talk = begin(started[1], 'while read x; do echo "got $x"; done', stdin=answers())
    task = asyncio.create_task(talk.communicate())
    for number in range(3):
        said.put_nowait(b"%d\n" % number)
        await eventually(lambda number=number: talk.record().stdout.endswith(f"got {number}\n"))  # type: ignore[misc]
    said.put_nowait(b"")
    assert (await task).stdout == "got 0\ngot 1\ngot 2\n"


@pytest.mark.parametrize("who", ["sudo", "su"])
async def test_a_password(tmp_path_factory: pytest.TempPathFactory, who: Literal["sudo", "su"]) -> None:
    password = "password" if who == "sudo" else "root-password"
    with started_machine(tmp_path_factory.mktemp("machine")) as site, site.world.network():
        host = site.host()["connection"]
        options: dict[str, Any] = {name: host[name] for name in ("username", "client_keys", "known_hosts")}
        async with asyncssh.connect(host["address"], **options) as connection:
            made = await Runner.start(connection)
            assert made is not None
            asked = begin(made, "id -u; cat", who=Become(who, "root", password), stdin=b"input\n", cwd="/")
            assert (await asked.communicate()).stdout == "0\ninput\n"
            wrong = begin(made, "id -u", who=Become(who, "root", "no"))
            with pytest.raises(PasswordRejected):
                await wrong.communicate()
            await made.close()


# Losses


async def test_a_connection_that_is_lost(make_user_sshd: MakeUserSshd) -> None:
    server = make_user_sshd()
    script = "echo partial; echo x >> runs; trap 'touch told; exit' PIPE; while sleep 0.02; do echo x; done"
    async with connected(server) as connection:
        made = await Runner.start(connection)
        assert made is not None
        begun = [begin(made, ["sh", "-c", script]), begin(made, "exec sleep 4771")]
        await eventually(lambda: begun[0].record().stdout and len(commands(server, "sleep 4771")) == 1)
        server.kill_sessions()
        for each in begun:
            await lost(each)
        assert made.is_closed
        with pytest.raises(asyncssh.ChannelOpenError):
            begin(made, "echo x >> runs")
        await made.close()
        made.abort()
    await eventually((server.home / "told").exists)
    await eventually(lambda: not commands(server, "# reemote"))
    assert len(commands(server, "sleep 4771")) == 1
    assert (server.home / "runs").read_text() == "x\n"


@pytest.mark.parametrize("how", ["connection", "program"])
async def test_a_command_that_is_watched_ends_with_its_connection(make_user_sshd: MakeUserSshd, how: str) -> None:
    server = make_user_sshd()
    async with connected(server) as connection:
        made = await Runner.start(connection)
        assert made is not None
        asleep = begin(made, "sleep 4791 & exec sleep 4792", watched=True)
        await eventually(lambda: {"sleep 4791", "sleep 4792"} <= programs(server))
        if how == "connection":
            server.kill_sessions()
        else:
            there = await program(server)
            os.kill(there, signal.SIGKILL)
        await lost(asleep)
        await eventually(lambda: not {"sleep 4791", "sleep 4792"} & programs(server))


async def test_the_hosts_of_the_sandbox() -> None:
    fleet = sandbox("a")
    async with fleet:
        options: dict[str, Any] = {"port": fleet["a"].port, "username": "user", "password": fleet["a"].password}
        async with asyncssh.connect("127.0.0.1", known_hosts=None, **options) as connection:
            made = await Runner.start(connection)
            assert made is not None
            for command in ["env | sort", "pwd -P", "kill -9 $$", "exit 7", "cat"]:
                await both(connection, made, command, stdin=b"x")
            await made.close()


async def test_a_program_that_is_killed(
    started: tuple[asyncssh.SSHClientConnection, Runner], marker: Callable[[str], Path]
) -> None:
    runs = marker("runs")
    asleep = begin(started[1], "echo partial; exec sleep 0.5")
    await eventually(lambda: asleep.record().stdout)
    killer = begin(started[1], f"echo x >> {runs}; kill -9 $PPID; sleep 0.2; echo y >> {runs}")
    failures = [await lost(asleep), await lost(killer)]
    assert failures[0].completed is not None
    assert failures[0].completed.stdout == "partial\n"
    assert started[1].is_closed
    with pytest.raises(asyncssh.ChannelOpenError):
        begin(started[1], f"echo x >> {runs}")
    assert (await run_by_exec(started[0], "echo hello")).stdout == "hello\n"
    again = await Runner.start(started[0])
    assert again is not None
    assert (await run(again, "echo again")).stdout == "again\n"
    await again.close()
    await eventually(lambda: runs.read_text() == "x\ny\n")


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_a_runner_is_ended(user_sshd: UserSshd, how: str) -> None:
    async with connected(user_sshd) as connection:
        made = await Runner.start(connection)
        assert made is not None
        asleep = begin(made, "exec sleep 4781", stdin=b"x" * 3 * WINDOW)
        await eventually(lambda: len(commands(user_sshd, "sleep 4781")) == 1)
        if how == "close":
            await made.close()
        else:
            made.abort()
        assert made.is_closed
        await lost(asleep)
        await eventually(lambda: not commands(user_sshd, "# reemote"))
        for pid in commands(user_sshd, "sleep 4781"):
            os.kill(pid, signal.SIGKILL)


async def test_a_program_that_hangs_is_cut_off(user_sshd: UserSshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "GOODBYE", 0.1)
    async with running(user_sshd) as (_, made):
        there = await program(user_sshd)
        os.kill(there, signal.SIGSTOP)
        asleep = begin(made, "echo x")
        await made.close()
        await lost(asleep)
        os.kill(there, signal.SIGKILL)


async def test_a_start_that_is_cancelled(user_sshd: UserSshd) -> None:
    async with connected(user_sshd) as connection:
        for turns in range(0, 40, 3):
            start = asyncio.create_task(Runner.start(connection))
            for _ in range(turns):
                await asyncio.sleep(0)
            if start.cancel():
                with pytest.raises(asyncio.CancelledError):
                    await start
            elif (made := start.result()) is not None:  # this machine was that fast, or that slow
                await made.close()
        await eventually(lambda: not commands(user_sshd, "# reemote"))
        async with asyncio.timeout(5):
            while not all(await asyncio.gather(*(is_served(connection) for _ in range(10)))):
                pass  # a place that has just become free may still be counted


async def test_a_start_that_is_cancelled_as_it_ends(user_sshd: UserSshd, monkeypatch: pytest.MonkeyPatch) -> None:
    begin_ = runner._Stream._begin

    def begin_and_cancel(stream: runner._Stream, data: bytes) -> None:
        begin_(stream, data)
        if stream.is_ready:
            start.cancel()

    monkeypatch.setattr(runner._Stream, "_begin", begin_and_cancel)
    async with connected(user_sshd) as connection:
        start = asyncio.create_task(Runner.start(connection))
        with pytest.raises(asyncio.CancelledError):
            await start
        await eventually(lambda: not commands(user_sshd, "# reemote"))


async def is_served(connection: asyncssh.SSHClientConnection) -> bool:
    """Whether the host has a session for a command that needs one until others have theirs, too."""
    try:
        return (await run_by_exec(connection, "sleep 0.1; echo hello")).stdout == "hello\n"
    except asyncssh.ChannelOpenError:
        return False


# Hosts that lie

FALSE: dict[str, Sequence[tuple[bytes, int, bytes]]] = {
    "a frame for no command": [(b"O", 99, b"x")],
    "a frame of no kind": [(b"?", 1, b"x")],
    "a second word that it is ready": [(b"R", 0, b"")],
    "two ends": [(b"X", 1, b"s\0\0\0\0"), (b"X", 1, b"s\0\0\0\1")],
    "an end of no kind": [(b"X", 1, b"?")],
    "an end without a status": [(b"X", 1, b"s")],
    "an end without a signal": [(b"X", 1, b"k\0")],
    "an end after all": [(b"C", 1, b""), (b"X", 1, b"s\0\0\0\0")],
    "more than was asked for": [(b"O", 1, b"x" * CHUNK)] * (WINDOW // CHUNK * 2 + 1),
    "input that was not sent": [(b"W", 1, b"\0\0\0\1")],
}


LIES = {
    name: b"".join(HEADER.pack(kind, number, len(data)) + data for kind, number, data in FALSE[name]) for name in FALSE
}
LIES |= {
    "a frame that is too long": HEADER.pack(b"O", 1, CHUNK + 1) + b"x" * 10,
    "half a frame": HEADER.pack(b"O", 1, 100) + b"x" * 10,
    "half a header": b"O\0",
    "nothing more": b"",
}
LIAR = """#!/bin/sh
head -c "$5" >/dev/null; printf 'R\\0\\0\\0\\0\\0\\0\\0\\0'
head -c 9 >/dev/null; cat ~/lie
"""


@needs_root
@pytest.mark.parametrize("lie", LIES)
async def test_a_host_that_lies(bash: UserSshd, lie: str) -> None:
    """Whatever it sends, its commands end, and nothing waits for it."""
    (bash.home / "lie").write_bytes(LIES[lie])
    hangs = "exec sleep 4791\n" if lie in FALSE or "long" in lie else ""
    write(bash, "bin/python3", LIAR + hangs)
    write(bash, ".bashrc", "PATH=$HOME/bin:$PATH\n")
    try:
        async with running(bash) as (connection, made):
            begun = [begin(made, f"touch ran-{number}") for number in range(3)]
            if lie == "more than was asked for":
                channel(begun[0]).pause_reading()
            answers = await asyncio.gather(*(each.communicate() for each in begun), return_exceptions=True)
            assert {type(answer) for answer in answers[1:]} == {ConnectionLost}
            assert made.is_closed
            assert (await run_by_exec(connection, "echo hello")).stdout == "hello\n"
    finally:
        write(bash, ".bashrc", "")
        shutil.rmtree(bash.home / "bin")
        for pid in commands(bash, "sleep 4791"):
            os.kill(pid, signal.SIGKILL)
