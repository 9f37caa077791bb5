"""The fake: scripted hosts, as users test their deployments with them."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from reemote.core.errors import CommandFailed, ConnectionRefused, ExecutionError, HostError, SFTPError
from reemote.core.host import Host, Transport
from reemote.core.operation import Local, Steps
from reemote.core.response import Completed, Response, Responses
from reemote.execute import execute
from reemote.host import Getcontext, Shell
from reemote.inventory import Connection, InventoryItem
from reemote.system import Return
from reemote.testing import Fake
from reemote.testing.fake import Call, FakeHost, UnexpectedCommand


async def run(fake: Fake, command: str = "x", **arguments: Any) -> Responses:
    return await execute(lambda: Shell(cmd=command, **arguments), inventory=fake.inventory, pool=fake)


async def only(fake: Fake, command: str = "x", **arguments: Any) -> Response[Any]:
    [response] = await run(fake, command, **arguments)
    return response


async def test_the_example_of_its_documentation() -> None:
    class Restart:
        async def execute(self) -> Steps:
            yield Shell(cmd="uptime")
            yield Shell(cmd="systemctl restart app")

    fake = Fake("web1", "web2")
    fake.on("uptime", stdout="up 3 days")
    fake.on("systemctl restart app")
    fake.on("systemctl restart app", exit_status=1, stderr="no such unit", host="web2")
    responses = await execute(lambda: Restart(), inventory=fake.inventory, pool=fake)
    assert fake.commands("web1") == ["uptime", "systemctl restart app"]
    assert [response.value.exit_status for response in responses] == [0, 1]
    assert responses.by_host["web2"].value.stderr == "no such unit"


def test_its_hosts_are_those_of_the_tutorial_unless_named() -> None:
    assert [item.host for item in Fake().inventory.hosts] == ["server104", "server105"]
    assert [item.host for item in Fake("a", "b").inventory.hosts] == ["a", "b"]


def test_a_host_may_be_an_entry_of_an_inventory() -> None:
    item = InventoryItem(connection=Connection(host="db1", username="joe"), groups=["db"])
    assert Fake("a", item).inventory.hosts[1] is item


def test_each_host_once() -> None:
    with pytest.raises(ValueError, match="each host once"):
        Fake("a", "a")


async def test_a_reply_has_output_and_an_exit_status() -> None:
    fake = Fake("a")
    fake.on("x", stdout="out", stderr=b"\xff", exit_status=3)
    response = await only(fake)
    assert response.value == Completed(command="x", stdout="out", stderr=b"\xff", exit_status=3)
    assert response.value.stderr_bytes == b"\xff"
    assert response.error is False


async def test_a_reply_may_be_for_one_host() -> None:
    fake = Fake("a", "b")
    fake.on("x", stdout="all")
    fake.on("x", stdout="b only", host="b")
    assert [response.value.stdout for response in await run(fake)] == ["all", "b only"]


async def test_the_reply_that_was_scripted_last_counts() -> None:
    fake = Fake("a")
    fake.on("x", stdout="first")
    fake.on("x", stdout="second")
    assert (await only(fake)).value.stdout == "second"
    fake.on("x", stdout="third")
    assert (await only(fake)).value.stdout == "third"


async def test_a_pattern_matches_the_whole_command() -> None:
    fake = Fake("a")
    fake.on(re.compile(r"cat /etc/\w+"), stdout="content")
    assert (await only(fake, "cat /etc/hosts")).value.stdout == "content"
    for other in ("cat /etc/hosts; rm -rf /", "sudo cat /etc/hosts", "cat /etc/a/b"):
        with pytest.raises(ExecutionError):
            await run(fake, other)


async def test_a_command_is_no_pattern() -> None:
    fake = Fake("a")
    fake.on("echo .*", stdout="literal")
    assert (await only(fake, "echo .*")).value.stdout == "literal"
    with pytest.raises(ExecutionError):
        await run(fake, "echo x")


async def asynchronous(call: Call) -> str:
    await asyncio.sleep(0)
    return call.host


REPLIES: dict[str, tuple[Any, Completed]] = {
    "text": (lambda call: f"{call.host}: {call.command}", Completed(command="x", stdout="a: x")),
    "bytes": (lambda call: b"\xff", Completed(command="x", stdout=b"\xff")),
    "nothing": (lambda call: None, Completed(command="x")),
    "record": (lambda call: Completed(command="y", exit_status=2), Completed(command="y", exit_status=2)),
    "asynchronous": (asynchronous, Completed(command="x", stdout="a")),
}


@pytest.mark.parametrize(("reply", "expected"), REPLIES.values(), ids=REPLIES)
async def test_a_reply_may_be_a_function(reply: Any, expected: Completed) -> None:
    fake = Fake("a")
    fake.on("x", reply)
    assert (await only(fake)).value == expected


async def test_a_reply_sees_what_was_asked_for() -> None:
    seen: list[Call] = []
    fake = Fake("a")
    fake.on("x", seen.append)
    await run(fake, stdin="in", sudo=True, env={"A": "1"})
    [call] = seen
    assert (call.host, call.command) == ("a", "x")
    assert (call.options["stdin"], call.options["sudo"], call.options["env"]) == ("in", True, {"A": "1"})
    assert fake.calls == seen


async def test_a_reply_may_be_a_failure() -> None:
    record = Completed(command="x", exit_status=None, stdout="half")
    fake = Fake("a")
    fake.on("x", HostError("it broke", outcome="unknown", completed=record, kind="Broken"))
    for _ in range(2):
        assert await only(fake) == {
            "host": "a", "value": "Broken", "changed": True, "error": True,
            "detail": "it broke", "outcome": "unknown", "completed": record,
        }  # fmt: skip


async def test_a_failure_keeps_its_class_and_its_kind() -> None:
    fake = Fake("a")
    fake.on("x", SFTPError("/etc/x", kind="SFTPNoSuchFile"))
    response = await only(fake)
    assert response["value"] == "SFTPNoSuchFile"
    assert type(response.to_error()) is SFTPError


async def test_one_failure_may_be_the_reply_of_many_hosts() -> None:
    fake = Fake("a", "b")
    fake.on("x", ConnectionRefused("nothing listens"))
    responses = await run(fake)
    assert [response["value"] for response in responses] == ["ConnectionRefusedError"] * 2
    with pytest.raises(ExecutionError) as caught:
        responses.raise_for_errors()
    assert [str(error).partition(":")[0] for error in caught.value.exceptions] == ["a", "b"]


async def test_a_host_that_is_down() -> None:
    fake = Fake("a", "b")
    fake.on(re.compile(".*"), stdout="up")
    fake.fail("b", ConnectionRefused("nothing listens"))
    for command in ("x", "y\nz"):
        fake.on(command, stdout="up", host="a")
        responses = await run(fake, command)
        assert [response.error for response in responses] == [False, True]
        assert responses[1]["outcome"] == "not_started"


async def test_a_command_without_a_reply() -> None:
    fake = Fake("a", "b")
    fake.on("x", host="a")
    with pytest.raises(ExecutionError) as caught:
        await run(fake)
    [error] = caught.value.exceptions
    assert isinstance(error, UnexpectedCommand)
    assert isinstance(error, AssertionError)
    assert str(error) == "b has no reply to 'x': script one with on('x')"
    assert fake.commands("b") == ["x"]  # it was asked, all the same


async def test_calls_are_kept_in_order() -> None:
    class Both:
        async def execute(self) -> Steps:
            yield Shell(cmd="one")
            yield Getcontext()
            yield Shell(cmd="two")

    fake = Fake("a", "b")
    fake.on("one")
    fake.on("two")
    await execute(Both, inventory=fake.inventory, pool=fake, concurrency=1)
    assert [(call.host, call.command) for call in fake.calls] == [
        ("a", "one"), ("a", "two"), ("b", "one"), ("b", "two"),
    ]  # fmt: skip
    assert fake.commands("b") == ["one", "two"]
    assert fake.commands("c") == []


async def test_the_time_limit_of_a_command() -> None:
    fake = Fake("a")
    fake.on("x", lambda call: asyncio.Event().wait())
    response = await only(fake, timeout=0.01)
    assert (response["value"], response["detail"]) == ("CommandTimeout", "'x' did not end within 0.01 s")
    assert (response["error"], response["completed"]["exit_status"]) == (True, None)


async def test_a_timeout_error_of_a_reply_without_a_limit_is_the_replys_own() -> None:
    def reply(call: Call) -> str:
        raise TimeoutError("the reply's own")

    fake = Fake("a")
    fake.on("x", reply)
    with pytest.raises(ExecutionError) as caught:
        await run(fake)
    assert repr(caught.value.exceptions[0]) == 'TimeoutError("the reply\'s own")'


async def test_check() -> None:
    fake = Fake("a")
    fake.on("x", exit_status=3, stderr="bad")
    response = await only(fake, check=True)
    assert (response["value"], response["detail"]) == ("CommandFailed", "exit status 3 of 'x': bad")
    assert type(response.to_error()) is CommandFailed


async def test_a_command_that_is_cut_short_is_known() -> None:
    fake = Fake("a")
    fake.on("x", lambda call: asyncio.Event().wait())
    responses = await execute(lambda: Shell(cmd="x"), inventory=fake.inventory, pool=fake, timeout=0.01)
    assert (responses[0]["outcome"], responses[0]["completed"]["command"]) == ("unknown", "x")


async def test_a_fake_host_has_no_files() -> None:
    class Files(Local[None]):
        async def perform(self, host: Host) -> None:
            async with host.sftp():
                pass

    fake = Fake("a")
    with pytest.raises(ExecutionError) as caught:
        await execute(Files, inventory=fake.inventory, pool=fake)
    assert "use the sandbox for file operations" in str(caught.value.exceptions[0])


async def test_groups_and_strict_are_as_with_real_hosts() -> None:
    class Deploy:
        async def execute(self) -> Steps:
            yield Shell(cmd="migrate", group="db")
            yield Return(value="done")

    fake = Fake("web1", InventoryItem(connection=Connection(host="db1"), groups=["db"]))
    fake.on("migrate", exit_status=1)
    responses = await execute(Deploy, inventory=fake.inventory, pool=fake, strict=True)
    assert [response["value"] for response in responses] == ["done", "CommandFailed"]


def test_it_is_a_transport_of_hosts() -> None:
    fake = Fake("a", "b", "c")
    transport: Transport = fake
    assert transport.prepare(fake.inventory.hosts) == 3
    assert transport.prepare([]) == 1
    for name in ("context", "interrupted", "run", "sftp"):
        assert hasattr(Host, name)
        assert hasattr(FakeHost, name) or name in ("context", "interrupted")
