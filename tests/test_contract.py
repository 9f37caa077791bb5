"""The contract, kept by every kind of host: the fake, the sandbox, and real OpenSSH."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from reemote.core.errors import CommandFailed
from reemote.core.host import Transport
from reemote.core.response import Completed, Responses
from reemote.execute import Pool, execute
from reemote.host import Getcontext, Shell
from reemote.inventory import Connection, Inventory, InventoryItem
from reemote.system import Callback, Return
from reemote.testing import Fake, sandbox
from tests.openssh import RootWorld, UserSshd

pytestmark = pytest.mark.usefixtures("servers", "nothing_left")

KINDS = ["fake", "sandbox", pytest.param("sshd", marks=pytest.mark.slow), pytest.param("world", marks=pytest.mark.slow)]


@dataclass
class Fleet:
    """Two hosts of one kind."""

    kind: str
    inventory: Inventory
    pool: Transport

    def script(self, command: str, stdout: str = "", stderr: str = "", exit_status: int = 0, **how: Any) -> None:
        """Tell the fake what real hosts do by themselves."""
        if isinstance(self.pool, Fake):
            self.pool.on(command, stdout=stdout, stderr=stderr, exit_status=exit_status, **how)

    async def execute(self, factory: Any, **options: Any) -> Responses:
        return await execute(factory, inventory=self.inventory, pool=self.pool, **options)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def servers(request: pytest.FixtureRequest, kind: str) -> Any:
    """The servers that all tests of a kind share, started before the test's leaks are counted."""
    shared = {"sshd": "user_sshd", "world": "world"}
    return request.getfixturevalue(shared[kind]) if kind in shared else None


@pytest.fixture
async def fleet(kind: str, servers: Any) -> AsyncIterator[Fleet]:
    if kind == "fake":
        fake = Fake("server104", "server105")
        yield Fleet(kind, fake.inventory, fake)
        return
    if kind == "sandbox":
        async with sandbox("server104", "server105") as inventory, Pool() as pool:
            yield Fleet(kind, inventory, pool)
        return
    if kind == "sshd":
        server: UserSshd = servers
        options = server.connection()
        address = options.pop("host")
        hosts = [{"connection": {**options, "host": name, "address": address}} for name in ("server104", "server105")]
        async with Pool() as pool:
            yield Fleet(kind, Inventory.of({"hosts": hosts}), pool)
        return
    world: RootWorld = servers
    items = [
        InventoryItem(
            connection=Connection.model_validate(
                {
                    "host": machine.name,
                    "address": machine.address,
                    "username": "user",
                    "password": "password",
                    "known_hosts": str(world.known_hosts),
                }
            )
        )
        for machine in world.machines.values()
    ]
    with world.network():
        async with Pool() as pool:
            yield Fleet(kind, Inventory(hosts=items), pool)


async def test_the_response_is_the_one_of_the_tutorial(fleet: Fleet) -> None:
    fleet.script("echo Hello World!", "Hello World!\n")
    responses = await fleet.execute(lambda: Shell(cmd="echo Hello World!"))
    record = {
        "command": "echo Hello World!",
        "subsystem": None,
        "exit_status": 0,
        "exit_signal": None,
        "returncode": 0,
        "stdout": "Hello World!\n",
        "stderr": "",
    }
    expected = [{"host": host, "value": record, "changed": True, "error": False} for host in ("server104", "server105")]
    assert json.dumps(responses) == json.dumps(expected)


async def test_an_exit_status_is_no_error(fleet: Fleet) -> None:
    fleet.script("echo no >&2; exit 7", stderr="no\n", exit_status=7)
    for response in await fleet.execute(lambda: Shell(cmd="echo no >&2; exit 7")):
        assert response["error"] is False
        assert response["value"]["exit_status"] == response["value"]["returncode"] == 7
        assert response["value"]["stderr"] == "no\n"


async def test_a_checked_exit_status_is_an_error_with_the_record(fleet: Fleet) -> None:
    fleet.script("exit 7", exit_status=7)
    for response in await fleet.execute(lambda: Shell(cmd="exit 7", check=True)):
        assert list(response) == ["host", "value", "changed", "error", "detail", "outcome", "completed"]
        assert (response["value"], response["error"], response["changed"]) == ("CommandFailed", True, True)
        assert response["outcome"] == "completed"
        assert response["completed"]["exit_status"] == 7


async def test_composition_values_and_return(fleet: Fleet) -> None:
    for word in ("Hello", "World!"):
        fleet.script(f"echo {word}", f"{word}\n")

    class Child:
        async def execute(self) -> Any:
            yield Shell(cmd="echo Hello")

    class Root:
        async def execute(self) -> Any:
            hello = yield Child()
            world = yield Shell(cmd="echo World!")
            yield Return(value=hello["value"]["stdout"] + world.value.stdout)

    responses = await fleet.execute(lambda: Root())
    assert [(r["host"], r["value"]) for r in responses] == [(h, "Hello\nWorld!\n") for h in ("server104", "server105")]


async def test_awaiting_is_the_same_as_yielding(fleet: Fleet) -> None:
    for word in ("one", "two", "three"):
        fleet.script(f"echo {word}", f"{word}\n")

    class Root:
        async def execute(self) -> str:
            first = await Shell(cmd="echo one")
            rest = await asyncio.gather(Shell(cmd="echo two"), Shell(cmd="echo three"))
            return first.value.stdout + "".join(r.value.stdout for r in rest)

    assert [r["value"] for r in await fleet.execute(lambda: Root())] == ["one\ntwo\nthree\n"] * 2


async def test_a_list_runs_at_the_same_time(fleet: Fleet) -> None:
    arrived: dict[str, asyncio.Barrier] = {}

    async def meet(call: Any) -> str:
        await arrived.setdefault(call.host, asyncio.Barrier(2)).wait()
        return "met\n"

    class Root:
        async def execute(self) -> Any:
            directory = (yield Shell(cmd="mktemp -d")).value.stdout.strip()
            fifo = f"{directory}/fifo"
            yield Shell(cmd=f"mkfifo {fifo}")
            # Each waits for the other: neither ends unless both run.
            both = yield [Shell(cmd=f"echo met > {fifo}; echo met"), Shell(cmd=f"cat {fifo}")]
            yield Shell(cmd=f"rm -r {directory}")
            yield Return(value=[r.value.stdout for r in both])

    fleet.script("mktemp -d", "/fifo\n")
    fleet.script("mkfifo /fifo/fifo")
    fleet.script("rm -r /fifo")
    fleet.script("echo met > /fifo/fifo; echo met", reply=meet)
    fleet.script("cat /fifo/fifo", reply=meet)
    async with asyncio.timeout(20):
        assert [r["value"] for r in await fleet.execute(lambda: Root())] == [["met\n", "met\n"]] * 2


async def test_the_context_is_the_hosts(fleet: Fleet) -> None:
    class Root:
        async def execute(self) -> Any:
            context = yield Getcontext()
            called = yield Callback(callback=lambda context: context.inventory_item.connection.host)
            yield Return(value=[context["value"].inventory_item.connection.host, called["value"]])

    responses = await fleet.execute(lambda: Root())
    assert [r["value"] for r in responses] == [["server104"] * 2, ["server105"] * 2]
    assert [r["changed"] for r in responses] == [False, False]


async def test_a_group_leaves_hosts_out(fleet: Fleet) -> None:
    fleet.script("echo db", "db\n")
    fleet.inventory.hosts[1].groups = ["db"]

    class Root:
        async def execute(self) -> Any:
            response = yield Shell(cmd="echo db", group="db")
            if response:
                yield Return(value="ran")

    assert [(r["host"], r["value"]) for r in await fleet.execute(lambda: Root())] == [("server105", "ran")]
    fleet.inventory.hosts[1].groups = []


async def test_bytes_come_exactly(fleet: Fleet) -> None:
    command = r"printf 'x\377y\0z'"
    fleet.script(command, reply=lambda call: Completed(command=call.command, stdout=b"x\xffy\0z"))
    for response in await fleet.execute(lambda: Shell(cmd=command)):
        assert response.value.stdout == "x\\xffy\0z"
        assert response.value.stdout_bytes == b"x\xffy\0z"


async def test_standard_input_is_empty_unless_given(fleet: Fleet) -> None:
    fleet.script("cat; echo done", reply=lambda call: (call.options["stdin"] or "") + "done\n")
    async with asyncio.timeout(20):
        assert {r.value.stdout for r in await fleet.execute(lambda: Shell(cmd="cat; echo done"))} == {"done\n"}
        given = await fleet.execute(lambda: Shell(cmd="cat; echo done", stdin="a\nü\n"))
    assert {r.value.stdout for r in given} == {"a\nü\ndone\n"}


async def test_variables_and_directory_are_set_and_the_record_says_what_was_written(fleet: Fleet) -> None:
    command = 'echo "$FIRST|$SECOND|$(pwd)"; # the end'
    fleet.script(command, reply=lambda call: "|".join(call.options["env"].values()) + f"|{call.options['cwd']}\n")
    variables = {"FIRST": 'it\'s "$HOME" `id`', "SECOND": "two\nlines"}
    for response in await fleet.execute(lambda: Shell(cmd=command, env=variables, cwd="/usr/bin")):
        assert response.value.stdout == f"{variables['FIRST']}|{variables['SECOND']}|/usr/bin\n"
        assert response.value.command == command


async def test_a_timeout_ends_the_command(fleet: Fleet) -> None:
    async def hang(_: Any) -> str:
        await asyncio.Event().wait()
        return ""

    fleet.script("sleep 300", reply=hang)
    for response in await fleet.execute(lambda: Shell(cmd="sleep 300", timeout=0.2)):
        assert (response["value"], response["error"], response["outcome"]) == ("CommandTimeout", True, "completed")
        assert response["completed"]["command"] == "sleep 300"
        assert "0.2 s" in response["detail"]


async def test_strict_raises_at_the_yield(fleet: Fleet) -> None:
    fleet.script("exit 3", exit_status=3)
    fleet.script("echo caught", "caught\n")

    class Root:
        async def execute(self) -> Any:
            with pytest.raises(CommandFailed) as caught:
                yield Shell(cmd="exit 3")
            assert caught.value.completed is not None
            assert caught.value.completed.exit_status == 3
            yield Shell(cmd="echo caught")

    assert [r["value"]["stdout"] for r in await fleet.execute(lambda: Root(), strict=True)] == ["caught\n"] * 2
    bare = await fleet.execute(lambda: Shell(cmd="exit 3"), strict=True)
    assert [(r["error"], r["value"]) for r in bare] == [(True, "CommandFailed")] * 2


async def test_privileges_that_cannot_be_had_are_an_error(fleet: Fleet) -> None:
    if fleet.kind in ("fake", "sandbox"):
        fleet.script("id", "uid=0\n")
        return  # there is nobody to refuse them, or it is the user of the tests who has them
    for response in await fleet.execute(lambda: Shell(cmd="id", sudo=True)):
        assert response["value"] in ("PasswordRequired", "PrivilegeDenied")
        assert (response["outcome"], response["changed"]) == ("not_started", False)


async def test_a_run_that_is_out_of_time_tells_of_each_host(fleet: Fleet) -> None:
    async def hang(_: Any) -> str:
        await asyncio.Event().wait()
        return ""

    fleet.script("echo begun; sleep 300", reply=hang)
    responses = await fleet.execute(lambda: Shell(cmd="echo begun; sleep 300"), timeout=2.5)
    assert [(r["host"], r["value"], r["outcome"]) for r in responses] == [
        (host, "Cancelled", "unknown") for host in ("server104", "server105")
    ]
    if fleet.kind != "fake":
        assert {r["completed"]["stdout"] for r in responses} == {"begun\n"}
