"""The shell that a connection keeps for questions of ours: what it answers, what it survives, how it dies."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import asyncssh
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reemote.core.errors import CommandTimeout, ConnectionLost
from reemote.core.response import Completed
from reemote.execute import Pool, execute
from reemote.host import Shell
from reemote.sftp import Sync
from reemote.ssh import shell as kept
from reemote.ssh import wire
from reemote.ssh.host import SshHost
from reemote.ssh.process import STDERR, CommandSession
from reemote.ssh.request import Request
from reemote.ssh.shell import KeptShell
from tests.leaks import eventually
from tests.openssh import UserSshd
from tests.openssh_fixtures import MakeUserSshd
from tests.ssh.hosts import inventory

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("user_sshd", "nothing_left")]


@contextlib.asynccontextmanager
async def host_of(server: UserSshd, **options: Any) -> AsyncIterator[SshHost]:
    async with Pool() as pool, pool.host(inventory(server.connection(**options)).hosts[0]) as host:
        yield host


async def ask(host: SshHost, command: str, **options: Any) -> Completed:
    return await host.run(command, question=True, **options)


async def sessions_of(host: SshHost) -> int:
    """How many sessions the connection holds at the moment."""
    link = await host.link()
    return link._sessions.places.taken


async def shell_of(host: SshHost) -> KeptShell:
    lease = (await host.link())._shared._known[KeptShell]._current
    assert lease is not None
    return cast(KeptShell, lease.client)


ODD: dict[str, tuple[str, bytes, bytes, int]] = {
    "no newline at the end": ("printf x", b"x", b"", 0),
    "nothing": (":", b"", b"", 0),
    "an empty command": ("", b"", b"", 0),
    "both streams": ("echo out; echo err >&2; exit 3", b"out\n", b"err\n", 3),
    "any bytes": (r"printf 'a\377\000b'; printf '\000\376' >&2", b"a\xff\0b", b"\0\xfe", 0),
    "exit": ("exit 7", b"", b"", 7),
    "exec": ("exec printf gone", b"gone", b"", 0),
    "set -e": ("set -e; false; echo never", b"", b"", 1),
    "closed descriptors": ("exec >&- 2>&-; exit 4", b"", b"", 4),
    "one stream into the other": ("exec 2>&1; echo a; echo b >&2", b"a\nb\n", b"", 0),
    "its input is empty": ("cat; echo read", b"read\n", b"", 0),
    "several lines": ("echo one\necho two\n", b"one\ntwo\n", b"", 0),
    "a comment at the end": ("echo x # and so on", b"x\n", b"", 0),
    "a document": ("cat <<END\nwithin\nEND", b"within\n", b"", 0),
    "quotes": ("printf %s \"it's\" '\"'", b"it's\"", b"", 0),
    "a long one": (f"printf %s {'x' * 100_000} | wc -c", b"100000\n", b"", 0),
}


@pytest.mark.parametrize("case", ODD)
async def test_odd_commands(user_sshd: UserSshd, case: str) -> None:
    command, out, err, status = ODD[case]
    async with host_of(user_sshd) as host:
        for _ in range(2):  # the second one finds the shell as the first did
            record = await ask(host, command)
            assert (record.stdout_bytes, record.stderr_bytes, record.exit_status) == (out, err, status)
            assert record["command"] == command
        assert (await shell_of(host)).is_free
        assert await sessions_of(host) == 1


async def test_a_signal_shows_as_the_shell_has_it(user_sshd: UserSshd) -> None:
    async with host_of(user_sshd) as host:
        record = await ask(host, "exec sh -c 'kill -9 $$'")
        assert (record.exit_status, record.returncode) == (137, 137)


@pytest.mark.parametrize("command", ["echo 'open", 'echo "open', "echo )", "if true", "(", "echo `", "<<END"])
async def test_what_is_no_command_is_an_error_of_that_command(user_sshd: UserSshd, command: str) -> None:
    async with host_of(user_sshd) as host:
        record = await ask(host, command)
        assert record.exit_status != 0 or command == "<<END"
        assert (await ask(host, "echo well")).stdout_bytes == b"well\n"


async def test_nothing_leaks_from_one_to_the_next(user_sshd: UserSshd) -> None:
    async with host_of(user_sshd) as host:
        before = await ask(host, "pwd; umask; echo ${LEAK-none}; set -o")
        await ask(host, "cd /; umask 0777; LEAK=1; export LEAK; set -f; alias pwd=false; trap 'echo trapped' EXIT")
        await ask(host, "f() { :; }; exec 5>&1; unset PATH HOME")
        assert (await ask(host, "pwd; umask; echo ${LEAK-none}; set -o")).stdout_bytes == before.stdout_bytes
        record = await ask(host, 'echo "$A" "$(pwd)"', env={"A": "one two"}, cwd="/")
        assert record.stdout_bytes == b"one two /\n"


async def test_it_answers_as_an_own_session_does(user_sshd: UserSshd) -> None:
    texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
    script = st.builds(
        lambda out, err, status: wire.plain(
            ["sh", "-c", 'printf %s "$1"; printf %s "$2" >&2; exit "$3"', "sh", out, err, str(status)], {}, None
        ),
        texts,
        texts,
        st.integers(0, 255),
    )
    async with host_of(user_sshd) as host:
        loop = asyncio.get_running_loop()

        @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(script)
        def same(command: str) -> None:
            async def both() -> tuple[Completed, Completed]:
                return await ask(host, command), await host.run(command)

            one, other = asyncio.run_coroutine_threadsafe(both(), loop).result(30)
            assert one == other
            assert one.stdout_bytes == other.stdout_bytes
            assert one.stderr_bytes == other.stderr_bytes

        await asyncio.to_thread(same)


async def test_much_output_on_both_streams(user_sshd: UserSshd) -> None:
    command = "head -c 5000000 /dev/zero & head -c 5000000 /dev/zero >&2; wait"
    async with host_of(user_sshd) as host:
        record = await ask(host, command)
        assert len(record.stdout_bytes) == len(record.stderr_bytes) == 5_000_000
        assert (await ask(host, "echo well")).stdout_bytes == b"well\n"


async def test_one_session_for_many(user_sshd: UserSshd) -> None:
    async with host_of(user_sshd) as host:
        first = await ask(host, "echo $$")
        for _ in range(5):
            assert (await ask(host, "echo $$")).stdout_bytes == first.stdout_bytes
        assert await sessions_of(host) == 1
        assert (await host.run("echo $$")).stdout_bytes != first.stdout_bytes


async def test_several_at_once_do_not_wait_for_each_other(user_sshd: UserSshd) -> None:
    marker = user_sshd.home / "go-on"
    marker.unlink(missing_ok=True)
    async with host_of(user_sshd) as host:
        await ask(host, ":")
        slow = asyncio.create_task(ask(host, f"while [ ! -e {marker} ]; do sleep 0.02; done; echo slow"))
        await eventually(lambda: not slow.done())
        quick = await asyncio.gather(*(ask(host, f"echo {number}") for number in range(5)))
        assert [record.stdout_bytes for record in quick] == [b"%d\n" % number for number in range(5)]
        marker.touch()
        assert (await slow).stdout_bytes == b"slow\n"
    marker.unlink()


async def test_noise_of_the_login(make_user_sshd: MakeUserSshd) -> None:
    server = make_user_sshd(shell="/bin/bash")
    (server.home / ".bashrc").write_text("echo noise; echo noise >&2; printf 'no end'\n")
    async with host_of(server) as host:
        own = await host.run("echo x")
        assert b"noise" in own.stdout_bytes, "the login makes no noise: the test tells nothing"
        record = await ask(host, "echo x; echo y >&2")
        assert (record.stdout_bytes, record.stderr_bytes) == (b"x\n", b"y\n")


@pytest.mark.parametrize("forced", ["cat", "exit 3", "echo no shell"])
async def test_a_host_without_a_shell(
    make_user_sshd: MakeUserSshd, monkeypatch: pytest.MonkeyPatch, forced: str
) -> None:
    """What is not our shell gets no command; each runs in a session of its own, as ever."""
    monkeypatch.setattr(kept, "PATIENCE", 0.5)
    server = make_user_sshd(ForceCommand=forced)
    async with host_of(server) as host:
        expected = await host.run("echo asked")
        for _ in range(2):
            record = await ask(host, "echo asked")
            assert (record.stdout_bytes, record.exit_status) == (expected.stdout_bytes, expected.exit_status)
        assert (await host.link())._shared._absent == {KeptShell}


async def test_a_host_that_does_not_start_it_in_time(
    make_user_sshd: MakeUserSshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "PATIENCE", 0.3)
    server = make_user_sshd(
        ForceCommand="case $SSH_ORIGINAL_COMMAND in *exec\\ sh*) exec sleep 60;; *) echo own;; esac"
    )
    async with host_of(server) as host:
        assert (await ask(host, "echo asked")).stdout_bytes == b"own\n"
        await eventually(lambda: not server_sleeps(server))


def server_sleeps(server: UserSshd) -> list[int]:
    return [pid for pid in server.session_pids() if b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes()]


async def test_the_shell_dies_while_it_runs_something(user_sshd: UserSshd) -> None:
    """Nobody knows what became of it, and it does not run again."""
    ran = user_sshd.home / "ran"
    ran.unlink(missing_ok=True)
    async with host_of(user_sshd) as host:
        link = await host.link()
        with pytest.raises(ConnectionLost) as caught:
            await ask(host, f"echo once >>{ran}; kill -9 $$")
        assert caught.value.outcome == "unknown"
        assert "the shell that asks for us has ended" in caught.value.detail
        assert ran.read_text() == "once\n"
        assert (await ask(host, "echo well")).stdout_bytes == b"well\n"
        assert await host.link() is link
    ran.unlink()


async def test_the_shell_dies_while_nobody_looks(user_sshd: UserSshd) -> None:
    async with host_of(user_sshd) as host:
        number = int((await ask(host, "echo $$")).stdout)
        shell = await shell_of(host)
        await host.run(f"kill -9 {number}")
        await eventually(lambda: shell.is_closed)
        for _ in range(2):
            assert (await ask(host, "echo well")).stdout_bytes == b"well\n"
        assert await shell_of(host) is not shell


async def test_a_time_limit_ends_all_that_it_runs(user_sshd: UserSshd) -> None:
    pids = user_sshd.home / "pids"
    async with host_of(user_sshd) as host:
        with pytest.raises(CommandTimeout) as caught:
            await ask(host, f"sleep 900 & echo begun; echo $! >{pids}; sleep 901", timeout=0.7)
        assert caught.value.completed is not None
        assert caught.value.completed.stdout_bytes == b"begun\n"
        assert (caught.value.outcome, caught.value.completed.returncode) == ("completed", -15)
        assert (await host.run(f"kill -0 $(cat {pids})")).exit_status != 0
        assert not (await host.link()).is_closed
        assert (await ask(host, "echo well")).stdout_bytes == b"well\n"
    pids.unlink()


async def test_cancellation_ends_what_it_runs(user_sshd: UserSshd) -> None:
    pids = user_sshd.home / "pids"
    pids.unlink(missing_ok=True)
    async with host_of(user_sshd) as host:
        asked = asyncio.create_task(ask(host, f"sleep 900 & echo $! >{pids}.new; mv {pids}.new {pids}; sleep 901"))
        await eventually(pids.exists)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert (await host.run(f"kill -0 $(cat {pids})")).exit_status != 0
        assert host.interrupted is not None
        assert (await ask(host, "echo well")).stdout_bytes == b"well\n"
    pids.unlink()


async def test_the_connection_is_lost(make_user_sshd: MakeUserSshd) -> None:
    server = make_user_sshd()
    begun = server.home / "begun"
    async with host_of(server) as host:
        asked = asyncio.create_task(ask(host, f"echo part; touch {begun}; sleep 60"))
        await eventually(begun.exists)
        server.kill_sessions()
        with pytest.raises(ConnectionLost) as caught:
            await asked
        assert caught.value.outcome == "unknown"
        assert caught.value.completed is not None
        assert caught.value.completed.stdout_bytes == b"part\n"
        assert (await ask(host, "echo well")).stdout_bytes == b"well\n"


async def test_it_makes_room_where_there_is_one_session(make_user_sshd: MakeUserSshd, tmp_path: Path) -> None:
    server = make_user_sshd(MaxSessions=1)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_text("x")
    async with Pool() as pool:

        class Mixed:
            async def execute(self) -> Any:
                async with pool.host(inventory(server.connection()).hosts[0]) as host:
                    for _ in range(2):
                        assert (await ask(host, "echo asked")).stdout_bytes == b"asked\n"
                        assert (yield Shell(cmd="echo own")).value.stdout == "own\n"
                        yield Sync(localpath=str(tmp_path / "tree"), remotepath=str(server.home / "tree"))
                        assert (yield Shell(cmd="cat tree/file")).value.stdout == "x"

        responses = await execute(lambda: Mixed(), inventory(server.connection()), pool=pool)
        responses.raise_for_errors()


async def test_what_needs_a_session_of_its_own_gets_one(user_sshd: UserSshd) -> None:
    async with host_of(user_sshd) as host:
        shells: list[Callable[[], Any]] = [
            lambda: ask(host, "cat", stdin="input"),
            lambda: ask(host, "echo input", session={"window": 1024 * 1024}),
            lambda: ask(host, "echo input", kill_on_disconnect=True),
        ]
        for question in shells:
            assert (await question()).stdout.strip() == "input"
        assert KeptShell not in (await host.link())._shared._known


async def test_a_host_that_lies() -> None:
    """Marks that are cut anywhere, a status that is none, and output where nobody has asked."""
    for size in (1, 7, 4096):
        record, shell = await played(lambda mark: (b"out" + mark + b"3\n", b"err" + mark), size)
        assert record == (b"out", b"err", 3)
        assert shell.is_free
    for status in (b"three\n", b"-1\n", b"\n", b"123456789", b""):
        record, shell = await played(_with(status), 5)
        assert record == (b"out", b"", None)
        assert shell.is_closed


def _with(status: bytes) -> Callable[[bytes], tuple[bytes, bytes]]:
    return lambda mark: (b"out" + mark + status, mark)


async def played(answer: Callable[[bytes], tuple[bytes, bytes]], size: int) -> tuple[Any, KeptShell]:
    """Play the host to a kept shell, in pieces of so many bytes."""
    shell, session, written = KeptShell(), CommandSession(Request(command="x")), []

    class Channel:
        def write(self, data: bytes) -> None:
            written.append(data)

        def abort(self) -> None:
            shell.connection_lost(None)

        def get_exit_signal(self) -> None:
            return None

    shell.connection_made(Channel())  # type: ignore[arg-type]
    mark = shell._mark.encode()

    def say(data: bytes, kind: asyncssh.DataType) -> None:
        for start in range(0, len(data), size):
            shell.data_received(data[start : start + size], kind)

    say(b"noise" + mark, None)
    say(mark, STDERR)
    turn = shell.run(session, "x")
    halves = re.findall(rb"[0-9a-f]{16}", written[0])
    out, err = answer(halves[0] + halves[1])
    say(out, None)
    say(err, STDERR)
    if not session.closed.is_set():
        shell.connection_lost(None)
    say(b"late", None)
    status = turn.get_exit_status()
    return (session.streams[None].value(), session.streams[STDERR].value(), status), shell


async def test_operations_ask_through_it(user_sshd: UserSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    run = KeptShell.run

    def noted(self: KeptShell, session: Any, command: str) -> Any:
        asked.append(command)
        return run(self, session, command)

    monkeypatch.setattr(KeptShell, "run", noted)
    (tmp_path / "file").write_text("x")

    class Look:
        async def execute(self) -> Any:
            for _ in range(2):
                yield Sync(localpath=str(tmp_path), remotepath=str(user_sshd.home / "looked-at"))

    async with Pool() as pool:
        (await execute(lambda: Look(), inventory(user_sshd.connection()), pool=pool)).raise_for_errors()
    assert any("find ." in command for command in asked)
