"""Commands whose end is in doubt: lost connections, time limits, cancellation, children, noise."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from reemote.core.response import Completed
from reemote.execute import Pool, execute
from reemote.host import Shell
from reemote.ssh import link, process
from reemote.ssh.process import Capture
from reemote.ssh.server import SandboxServer
from reemote.system import Callback, Return
from reemote.testing import sandbox
from tests.leaks import eventually
from tests.openssh import UserSshd
from tests.openssh_fixtures import MakeUserSshd
from tests.ssh.hosts import inventory, only


@pytest.fixture
def sshd(user_sshd: UserSshd) -> UserSshd:
    return user_sshd


pytestmark = [pytest.mark.usefixtures("sshd", "nothing_left")]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


async def end(server: UserSshd, *pids: str) -> None:
    """Wait for the end of processes, whose numbers mean something only on the server."""
    assert pids
    command = f"for pid in {' '.join(pids)}; do while kill -0 $pid 2>&-; do sleep 0.02; done; done"
    record = (await only(lambda: Shell(cmd=command, timeout=3), **server.connection())).value
    assert record.returncode == 0


def marker(server: UserSshd, name: str) -> Path:
    """A file that a command on the server makes to say how far it is."""
    path = server.home / name
    path.unlink(missing_ok=True)
    return path


# R3, R4, R19: connections that end


@pytest.mark.slow
async def test_a_killed_connection_is_lost_and_its_output_kept(sshd: UserSshd) -> None:
    begun = marker(sshd, "r3")

    class Root:
        cut = 0.0

        async def execute(self) -> Any:
            lost = yield Shell(cmd="echo partial; touch r3; sleep 300")
            self.seconds = time.monotonic() - self.cut
            again = yield Shell(cmd="echo again")
            yield Return(value=[lost, again])

    root = Root()
    async with Pool() as pool:
        running = asyncio.create_task(execute(lambda: root, inventory(sshd.connection()), pool=pool))
        await eventually(begun.exists)
        root.cut = time.monotonic()
        sshd.kill_sessions()
        lost, again = (await running)[0]["value"]
    assert (lost["value"], lost["error"], lost["outcome"], lost["changed"]) == ("ConnectionLost", True, "unknown", True)
    assert lost["completed"]["stdout"] == "partial\n"
    assert lost["completed"]["exit_status"] is lost["completed"]["exit_signal"] is None
    assert root.seconds < 1
    assert again["value"]["stdout"] == "again\n"


async def test_a_connection_that_is_reset_is_lost(sshd: UserSshd) -> None:
    fleet = sandbox("a")
    async with fleet as hosts, Pool() as pool:
        running = asyncio.create_task(execute(lambda: Shell(cmd="echo x; touch begun; sleep 300"), hosts, pool=pool))
        await eventually((fleet["a"].home / "begun").exists)
        fleet["a"].drop_connections()
        response = (await running)[0]
    assert (response["value"], response["outcome"]) == ("ConnectionLost", "unknown")
    assert response["completed"]["stdout"] == "x\n"


@pytest.mark.slow
async def test_a_host_that_falls_silent_is_noticed(make_user_sshd: MakeUserSshd) -> None:
    server = make_user_sshd()
    begun = marker(server, "r4")
    options = server.connection(keepalive_interval=0.3, keepalive_count_max=2)
    async with Pool() as pool:
        running = asyncio.create_task(execute(lambda: Shell(cmd="touch r4; sleep 300"), inventory(options), pool=pool))
        await eventually(begun.exists)
        server.freeze()
        start = time.monotonic()
        try:
            response = (await running)[0]
        finally:
            server.thaw()
        assert (response["value"], response["outcome"]) == ("ConnectionLost", "unknown")
        assert time.monotonic() - start < 0.3 * 3 + 2


async def test_a_kept_connection_that_died_is_replaced_unnoticed() -> None:
    fleet = sandbox("a")
    async with fleet as hosts, Pool() as pool:
        for count in (1, 2, 3):
            assert not (await execute(lambda: Shell(cmd="true"), hosts, pool=pool)).failed
            assert fleet["a"].connections == count
            fleet["a"].drop_connections()
            await eventually(lambda: pool.open_connections == 0)


async def test_a_connection_that_dies_between_steps_is_replaced_once() -> None:
    fleet = sandbox("a")

    class Root:
        async def execute(self) -> Any:
            yield Shell(cmd="true")
            yield Callback(callback=lambda _: fleet["a"].drop_connections())
            yield Shell(cmd="echo x >> log; cat log")

    async with fleet as hosts, Pool() as pool:
        response = (await execute(Root, hosts, pool=pool))[0]
        # Whether the death was noticed before the command was sent or after, it ran once at the most.
        if response["error"]:
            assert (response["value"], response["outcome"]) == ("ConnectionLost", "unknown")
        else:
            assert response["value"]["stdout"] == "x\n"
        assert fleet["a"].connections <= 2


# R7, R9, R11, R12: ends and streams


async def test_a_signal(sshd: UserSshd) -> None:
    record = (await only(lambda: Shell(cmd="kill -9 $$"), **sshd.connection())).value
    assert record.exit_signal[0] == "KILL"
    assert (record.exit_status, record.returncode) == (None, -9)
    checked = await only(lambda: Shell(cmd="kill -9 $$", check=True), **sshd.connection())
    assert (checked["value"], checked["outcome"]) == ("CommandKilled", "completed")
    assert checked["completed"]["returncode"] == -9


async def test_odd_bytes_cost_nobody_the_connection(sshd: UserSshd) -> None:
    class Root:
        async def execute(self) -> Any:
            responses = yield [
                Shell(cmd=r"printf 'x\377y\0z'; printf '\376' >&2"),
                *[Shell(cmd=f"sleep 0.1; echo {number}") for number in range(5)],
            ]
            yield Return(value=[(r.value.stdout_bytes, r.value.stderr_bytes) for r in responses])

    before = sshd.accepted()
    value = (await only(Root, **sshd.connection()))["value"]
    assert value == [(b"x\xffy\0z", b"\xfe"), *((b"%d\n" % number, b"") for number in range(5))]
    assert sshd.accepted() == before + 1


async def test_another_encoding(sshd: UserSshd) -> None:
    hosts = inventory(sshd.connection())
    hosts.hosts[0].session = type(hosts.hosts[0].session).model_validate({"encoding": "latin-1"})
    async with Pool() as pool:
        response = (await execute(lambda: Shell(cmd=r"printf '\374'; cat", stdin="ü"), hosts, pool=pool))[0]
    assert response["value"]["stdout"] == "üü"


@pytest.mark.parametrize("size", [0, 1, 100_000, 5_000_000])
async def test_input_reaches_the_command_exactly(sshd: UserSshd, size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    record = (await only(lambda: Shell(cmd="cat", stdin=data[:size]), **sshd.connection())).value
    assert record.stdout_bytes == data[:size]


async def test_a_command_that_does_not_read_its_input_is_no_failure(sshd: UserSshd) -> None:
    response = await only(lambda: Shell(cmd="exit 4", stdin=b"x" * 5_000_000), **sshd.connection())
    assert (response["error"], response["value"]["exit_status"]) == (False, 4)


async def test_large_output_comes_whole(sshd: UserSshd) -> None:
    record = (await only(lambda: Shell(cmd="head -c 20000000 /dev/zero"), **sshd.connection())).value
    assert len(record.stdout_bytes) == 20_000_000


@pytest.mark.slow
async def test_a_child_in_the_background_does_not_hold_the_answer_up(sshd: UserSshd) -> None:
    start = time.monotonic()
    response = await only(lambda: Shell(cmd="sleep 30 & echo $!; echo hi"), **sshd.connection())
    assert time.monotonic() - start < process.DRAIN_QUIET + 2
    child, word = response.value.stdout.split()
    assert word == "hi"
    await only(lambda: Shell(cmd=f"kill {child}"), **sshd.connection())


@pytest.mark.slow
async def test_output_after_the_end_is_waited_for(sshd: UserSshd) -> None:
    command = "(for n in 1 2 3; do sleep 0.5; echo $n; done) & echo 0"
    assert (await only(lambda: Shell(cmd=command), **sshd.connection())).value.stdout == "0\n1\n2\n3\n"


def test_of_more_output_than_is_kept_the_ends_are_kept() -> None:
    capture = Capture(most=100)
    for number in range(1000):
        capture.add(b"%03d " % number)
    value = capture.value()
    assert capture.total == 4000
    assert value.startswith(b"000 001 ")
    assert value.endswith(b"998 999 ")
    assert b"[... 3900 bytes are left out here ...]" in value
    assert len(value) < 200
    small = Capture(most=100)
    small.add(b"x" * 100)
    assert small.value() == b"x" * 100


# R21: time limits. The session is free again, and nothing runs on.

TREES = {
    "a tree": "echo begun; sh -c 'echo $$ > pids; sleep 301 & echo $! >> pids; wait'",
    "deaf to TERM": "trap '' TERM; echo begun; echo $$ > pids; while :; do sleep 0.1; done",
}


@pytest.mark.slow
@pytest.mark.parametrize("command", TREES.values(), ids=TREES)
async def test_a_command_out_of_time_is_ended_with_all_its_children(make_user_sshd: MakeUserSshd, command: str) -> None:
    server = make_user_sshd(MaxSessions=1)
    pids = marker(server, "pids")

    class Root:
        async def execute(self) -> Any:
            start = time.monotonic()
            late = yield Shell(cmd=command, timeout=1)
            seconds = time.monotonic() - start
            then = yield Shell(cmd="echo then")
            yield Return(value=[late, seconds, then])

    late, seconds, then = (await only(Root, **server.connection()))["value"]
    assert (late["value"], late["outcome"]) == ("CommandTimeout", "completed")
    assert late["completed"]["stdout"] == "begun\n"
    assert late["completed"]["exit_signal"][0] in ("TERM", "KILL")
    assert seconds < 1 + process.GRACE_TERM + 2
    assert then["value"]["stdout"] == "then\n"
    assert server.accepted() == 1
    await end(server, *pids.read_text().split())


async def test_a_server_that_ignores_signals_costs_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last resort: nobody knows what became of the command."""
    monkeypatch.setattr(process, "GRACE_TERM", 0.1)
    monkeypatch.setattr(process, "GRACE_KILL", 0.1)
    fleet = sandbox("a")
    async with fleet as hosts, Pool() as pool:
        deaf = "setsid -w sh -c 'trap \"\" TERM; echo $$ > pid; exec sleep 300'"
        monkeypatch.setattr("asyncssh.SSHClientChannel.send_signal", lambda *_: None)
        response = (await execute(lambda: Shell(cmd=deaf, timeout=1), hosts, pool=pool))[0]
        assert (response["value"], response["outcome"], response["changed"]) == ("CommandTimeout", "unknown", True)
        assert not (await execute(lambda: Shell(cmd="true"), hosts, pool=pool)).failed
        assert fleet["a"].connections == 2
        pid = int((fleet["a"].home / "pid").read_text())
        assert alive(pid)
        os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
async def test_a_frozen_host_does_not_outlast_the_timeout(
    make_user_sshd: MakeUserSshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host is frozen before the command is sent: there is no answer even to that."""
    monkeypatch.setattr(link, "ABANDON", 0.3)
    server = make_user_sshd()
    async with Pool() as pool:
        hosts = inventory(server.connection())
        assert not (await execute(lambda: Shell(cmd="true"), hosts, pool=pool)).failed
        server.freeze()
        start = time.monotonic()
        try:
            response = (await execute(lambda: Shell(cmd="true", timeout=0.5), hosts, pool=pool))[0]
        finally:
            server.thaw()
        assert (response["value"], response["outcome"]) == ("CommandTimeout", "unknown")
        assert time.monotonic() - start < 0.5 + 0.3 + 1
        assert not (await execute(lambda: Shell(cmd="true"), hosts, pool=pool)).failed


# Cancellation


@pytest.mark.slow
async def test_a_cancelled_run_ends_its_commands(sshd: UserSshd) -> None:
    pids = marker(sshd, "cancelled")
    cleaned = marker(sshd, "cleaned")

    class Root:
        async def execute(self) -> Any:
            try:
                yield Shell(cmd="echo $$ > cancelled; sleep 300")
            finally:
                yield Shell(cmd="touch cleaned")

    async with Pool() as pool:
        running = asyncio.create_task(execute(Root, inventory(sshd.connection()), pool=pool))
        await eventually(lambda: pids.exists() and pids.read_text())
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert cleaned.exists()
    await end(sshd, pids.read_text().strip())


async def test_asyncio_timeout_in_a_deployment_ends_the_command(sshd: UserSshd) -> None:
    pid = marker(sshd, "pid")

    class Root:
        async def execute(self) -> Any:
            try:
                async with asyncio.timeout(0.5):
                    await Shell(cmd="echo $$ > pid; exec sleep 300")
            except TimeoutError:
                return (await Shell(cmd="cat pid")).value.stdout
            return "not cancelled"

    value = (await only(Root, **sshd.connection()))["value"]
    assert value.strip().isdigit()
    await end(sshd, value.strip())
    assert pid.exists()


async def test_cancelling_while_the_command_starts_leaves_nothing_running(tmp_path: Path) -> None:
    """Cancelled at any moment, a command has not started, or is ended."""
    fleet = sandbox("a")
    async with fleet as hosts, Pool() as pool:
        await execute(lambda: Shell(cmd="true"), hosts, pool=pool)
        for turns in range(12):
            log = tmp_path / f"{turns}"
            running = asyncio.create_task(
                execute(lambda log=log: Shell(cmd=f"echo $$ >> {log}; exec sleep 300"), hosts, pool=pool)  # type: ignore[misc]
            )
            for _ in range(turns):
                await asyncio.sleep(0)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            started = log.read_text().split() if log.exists() else []
            assert not any(alive(int(pid)) for pid in started)
        assert not (await execute(lambda: Shell(cmd="true"), hosts, pool=pool)).failed


# The property behind R3


async def test_what_has_no_end_is_never_a_success() -> None:
    """A channel that closes without a word of how the command ended: the connection was lost."""

    async def close_silently(server: SandboxServer) -> None:
        await eventually((server.home / "begun").exists)
        server.drop_connections()

    fleet = sandbox("a")
    async with fleet as hosts, Pool() as pool:
        running = asyncio.create_task(execute(lambda: Shell(cmd="touch begun; sleep 300"), hosts, pool=pool))
        await close_silently(fleet["a"])
        response = (await running)[0]
    assert response["error"] is True
    assert isinstance(response["completed"], Completed)
    assert response["completed"].failure() is not None
