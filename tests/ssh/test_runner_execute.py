"""Deployments on hosts whose commands run in a runner: ``connection: {runner: true}``."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from reemote.execute import Pool, execute
from reemote.host import Command, Shell
from reemote.sftp import Isfile
from reemote.system import Return
from reemote.testing import sandbox
from tests.leaks import eventually
from tests.openssh import UserSshd
from tests.openssh_fixtures import MakeUserSshd
from tests.ssh.hosts import inventory
from tests.ssh.runners import commands, program

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nothing_left")]

PARENT = "tr '\\0' ' ' </proc/$PPID/cmdline"
"""Who has started the shell."""


class Several:
    """Some steps that run as they do without a runner."""

    async def execute(self) -> Any:
        answers = []
        for step in (
            Shell(cmd=f"{PARENT}; exit 3"),
            Shell(cmd="cat; echo $A; pwd; kill -9 $$", env={"A": "b c"}, cwd="/"),
            Shell(cmd="cat; echo $A", stdin="input\n"),
            Command(argv=["printf", "%s", "it's $HOME"]),
            Isfile(path="/etc/passwd"),
        ):
            answers.append((yield step))
        more = yield [Shell(cmd=f"sleep 0.05; echo {number}; echo x{number} >&2") for number in range(20)]
        yield Return(value=[*answers, *more])


async def answers(**connection: Any) -> list[Any]:
    """Run the steps, and give what they answer."""
    async with Pool() as pool:
        response = (await execute(Several, inventory(connection), pool=pool))[0]
    assert not response["error"], response
    return list(response["value"])


async def test_steps_answer_as_without(user_sshd: UserSshd) -> None:
    first, *rest = await answers(**user_sshd.connection(runner=True))
    other, *others = await answers(**user_sshd.connection())
    assert "# reemote" in first.value.stdout
    assert "# reemote" not in other.value.stdout
    assert first.value.exit_status == other.value.exit_status == 3
    assert [each.value for each in rest] == [each.value for each in others]


WITHOUT = {
    "no python": 'case $SSH_ORIGINAL_COMMAND in *python3*) exit 79;; esac; exec sh -c "$SSH_ORIGINAL_COMMAND"',
    "a command for all": 'PATH=/usr/bin:/bin; eval "$SSH_ORIGINAL_COMMAND"',
}


@pytest.mark.parametrize("why", WITHOUT)
async def test_a_host_without_a_runner_is_served_as_ever(make_user_sshd: MakeUserSshd, why: str) -> None:
    server = make_user_sshd(SetEnv="PATH=/usr/bin:/bin:/nonesuch", ForceCommand=WITHOUT[why])
    first, *found = await answers(**server.connection(runner=True))
    assert "# reemote" not in first.value.stdout
    assert [each.value for each in found] == [each.value for each in (await answers(**server.connection()))[1:]]


async def test_in_the_sandbox() -> None:
    async with sandbox("a") as hosts:
        hosts.hosts[0].connection.runner = True
        response = (await execute(lambda: Shell(cmd=f"{PARENT}; pwd -P; echo $HOME"), hosts))[0]
        *_, folder, home = response.value.stdout.split()
    assert "# reemote" in response.value.stdout
    assert folder == home


async def test_a_command_that_is_out_of_time(user_sshd: UserSshd) -> None:
    class Root:
        async def execute(self) -> Any:
            late = yield Shell(cmd="echo begun; sleep 4801 & sleep 4802", timeout=0.5)
            after = yield Shell(cmd=PARENT)
            yield Return(value=[late, after])

    async with Pool() as pool:
        late, after = (await execute(Root, inventory(user_sshd.connection(runner=True)), pool=pool))[0]["value"]
    assert (late["value"], late["outcome"], late["completed"]["stdout"]) == ("CommandTimeout", "completed", "begun\n")
    assert "# reemote" in after.value.stdout
    assert commands(user_sshd, "sleep 480") == []


async def test_a_run_that_is_cancelled(user_sshd: UserSshd) -> None:
    async with Pool() as pool:
        steps = inventory(user_sshd.connection(runner=True))
        running = asyncio.create_task(execute(lambda: Shell(cmd="exec sleep 4811"), steps, pool=pool))
        await eventually(lambda: commands(user_sshd, "sleep 4811"))
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert commands(user_sshd, "sleep 4811") == []


async def test_a_program_that_is_killed_is_replaced(user_sshd: UserSshd) -> None:
    class Root:
        async def execute(self) -> Any:
            lost = yield Shell(cmd="echo partial; echo x >> runner-runs; exec sleep 4821")
            again = yield Shell(cmd=f"{PARENT}; cat runner-runs; rm runner-runs")
            yield Return(value=[lost, again])

    async with Pool() as pool:
        running = asyncio.create_task(execute(Root, inventory(user_sshd.connection(runner=True)), pool=pool))
        await eventually(lambda: commands(user_sshd, "sleep 4821"))
        there = await program(user_sshd)
        os.kill(there, signal.SIGKILL)
        lost, again = (await running)[0]["value"]
    for pid in commands(user_sshd, "sleep 4821"):
        os.kill(pid, signal.SIGKILL)
    assert (lost["value"], lost["outcome"], lost["completed"]["stdout"]) == ("ConnectionLost", "unknown", "partial\n")
    assert "# reemote" in again.value.stdout
    assert again.value.stdout.endswith("x\n")
    assert not Path(user_sshd.home / "runner-runs").exists()
