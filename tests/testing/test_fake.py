"""The fake: scripted hosts, as users test their deployments with them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from reemote.core.context import Context
from reemote.core.errors import CommandFailed, ConnectionRefused, ConnectTimeout, ExecutionError, HostError, SFTPError
from reemote.core.files import Files
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


async def test_a_host_that_is_down_has_no_files_either() -> None:
    fake = Fake("a", "b")
    fake.fail("b", ConnectionRefused("nothing listens"))
    async with on(fake, "a") as files:
        assert await files.list("/") == []
    host = FakeHost(fake, Context(inventory_item=fake.inventory.hosts[1]))
    for asked in (host.sftp().__aenter__(), host.run("x")):
        with pytest.raises(ConnectionRefused, match="nothing listens"):
            await asked
    fake.fail("b", ConnectTimeout("no answer"))
    fake.on("x", host="b")
    assert (await host.run("x")).exit_status == 0
    with pytest.raises(ConnectTimeout):
        await host.sftp().__aenter__()


@contextlib.asynccontextmanager
async def on(fake: Fake, name: str = "a") -> AsyncIterator[Files]:
    """Give the files of a host, as one run sees them."""
    async with fake.host(InventoryItem(connection=Connection(host=name))) as host, host.sftp() as files:
        yield files


async def read(files: Files, path: Any) -> bytes:
    async with files.open(path, "read") as file:
        return await file.read(1000, 0)


async def write(files: Files, path: Any, data: bytes) -> None:
    async with files.open(path, "write") as file:
        await file.write(data, 0)


async def test_a_host_has_files_of_its_own() -> None:
    fake = Fake("a", "b")
    (fake.files("a") / "etc").mkdir()
    (fake.files("a") / "etc" / "motd").write_text("Welcome")
    async with on(fake) as files:
        for path in ("/etc/motd", "etc/motd", b"../../etc/./motd", Path("/etc/../etc/motd"), "//etc//motd"):
            assert await read(files, path) == b"Welcome"
        await write(files, "etc/\udcff\n", b"new")
        assert files.is_remote
        assert (await files.info()).version == 3
    assert (fake.files("a") / "etc" / "\udcff\n").read_text() == "new"
    assert list(fake.files("b").iterdir()) == []


async def test_files_are_there_in_a_run() -> None:
    class Greeting(Local[str]):
        async def perform(self, host: Host) -> str:
            async with host.sftp() as files:
                await files.chdir("/etc")
            async with host.sftp() as files:  # the same run is still there
                return (await read(files, "motd")).decode()

    fake = Fake("a", "b")
    for name in ("a", "b"):
        (fake.files(name) / "etc").mkdir()
        (fake.files(name) / "etc" / "motd").write_text(name)
    for _ in range(2):
        responses = await execute(Greeting, inventory=fake.inventory, pool=fake)
        assert [response.value for response in responses] == ["a", "b"]
    async with on(fake) as files:
        assert files.absolute("x") == b"/x"


async def test_one_host_reaches_another_of_the_inventory() -> None:
    class Fetch(Local[bytes]):
        async def perform(self, host: Host) -> bytes:
            async with host.other("b") as other, other.sftp() as files:
                return await read(files, "/file")

    class Lost(Local[None]):
        async def perform(self, host: Host) -> None:
            async with host.other("c"):
                pass

    fake = Fake("a", "b")
    (fake.files("b") / "file").write_text("of b")
    [response] = await execute(Fetch, inventory=fake.inventory, pool=fake, limit="a")
    assert response.value == b"of b"
    with pytest.raises(ExecutionError) as caught:
        await execute(Lost, inventory=fake.inventory, pool=fake, limit="a")
    assert "the inventory has no host 'c'" in str(caught.value.exceptions[0])


async def test_links_lead_where_they_lead_on_the_host(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of this machine")
    fake = Fake("a")
    top = fake.files("a")
    (top / "real" / "below").mkdir(parents=True)
    (top / "real" / "file").write_text("inside")
    (top / "file").write_text("at the top")
    async with on(fake) as files:
        await files.symlink("/real", "absolute")
        await files.symlink("real/below", "relative")
        await files.symlink("../../../../file", "real/up")
        await files.symlink(str(tmp_path / "secret"), "out")
        await files.symlink("/made", "dangling")
        for path in ("absolute/file", "relative/../file", "/absolute/below/../../real/file", "absolute/below/../file"):
            assert await read(files, path) == b"inside"
        assert await read(files, "real/up") == b"at the top"
        assert await files.readlink("absolute") == b"/real"
        assert await files.realpath("absolute/up") == b"/file"
        assert await files.realpath("relative/..") == b"/real"
        assert await files.realpath(".") == b"/"
        assert await files.lookup("out") is None
        assert await files.lookup("out", follow=False) is not None
        assert (await files.stat("absolute/", follow=False)).is_directory
        await write(files, "dangling", b"made")
        await files.set("dangling", permissions=0o600)
        await files.chdir("absolute")
        assert await read(files, "file") == b"inside"
        assert await files.realpath("below") == b"/real/below"
        await files.remove("/absolute")
        assert await files.digests(["/out"]) == [None]
        with pytest.raises(SFTPError):
            await files.set("/out", follow=False, permissions=0o600)
    assert (top / "made").read_text() == "made"
    assert (top / "real" / "file").exists()
    assert not (top / "absolute").is_symlink()


async def test_paths_are_those_of_the_host() -> None:
    fake = Fake("a")
    (fake.files("a") / "etc" / "b").mkdir(parents=True)
    (fake.files("a") / "etc" / "a.conf").touch()
    (fake.files("a") / "etc" / "b" / "b.conf").touch()
    (fake.files("a") / "link").symlink_to("/etc")
    async with on(fake) as files:
        assert await files.glob(["/etc/*.conf", "etc/b*"]) == [b"/etc/a.conf", b"etc/b"]
        assert await files.glob(["**/b.conf", "/link/a*"]) == [b"/link/a.conf", b"etc/b/b.conf"]
        tree = await files.tree("/")
        assert sorted(tree or {}) == [b"etc", b"etc/a.conf", b"etc/b", b"etc/b/b.conf", b"link"]
        assert (await files.statvfs("/etc")).bsize > 0
        await files.chdir("/etc/b")
        assert files.absolute("b.conf") == b"/etc/b/b.conf"
        assert await files.glob(["*"]) == [b"b.conf"]
        await files.rename("b.conf", "/etc/c.conf")
        await files.link("/etc/c.conf", "/etc/d.conf")
        await files.replace("/etc/d.conf", "/etc/a.conf")
        await files.mkdir("new/")
        await files.rmdir("/etc/b/new")
    assert sorted(path.name for path in (fake.files("a") / "etc").iterdir()) == ["a.conf", "b", "c.conf"]


FAILURES: dict[str, tuple[Callable[[Files], Awaitable[Any]], str]] = {
    "missing": (lambda files: files.stat("missing"), "SFTPNoSuchFile: missing: No such file or directory"),
    "missing in between": (lambda files: files.mkdir("missing/x"), "SFTPNoSuchFile: missing/x: No such"),
    "not a directory": (lambda files: files.stat("file/below"), "SFTPNoSuchFile: file/below: Not a directory"),
    "not a directory, a slash": (lambda files: files.stat("file/"), "SFTPNoSuchFile: file/: Not a directory"),
    "no match": (lambda files: files.glob(["*.md"]), "SFTPNoSuchFile: nothing matches *.md"),
    "there already": (lambda files: files.mkdir("file"), "SFTPFailure: file: File exists"),
    "in the way": (lambda files: files.rename("file", "dir"), "SFTPFailure: file -> dir: File exists"),
    "a directory": (lambda files: files.remove("dir"), "SFTPFailure: dir: Is a directory"),
    "the root": (lambda files: files.rmdir("/"), "SFTPFailure: /: "),
    "a loop": (lambda files: files.stat("loop"), "SFTPFailure: loop: Too many levels of symbolic links"),
    "nothing": (lambda files: files.stat(""), "SFTPNoSuchFile: : No such file"),
    "NUL": (lambda files: files.stat("\0"), "SFTPFailure: \0: Invalid argument"),
    "a full disk": (lambda files: write(files, "full", b"x"), "NoSpaceLeft: no space is left on the host for full"),
}


@pytest.mark.parametrize(("act", "failure"), FAILURES.values(), ids=FAILURES)
async def test_files_fail_as_those_of_hosts(act: Any, failure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    fake = Fake("a")
    (fake.files("a") / "file").touch()
    (fake.files("a") / "dir").mkdir()
    (fake.files("a") / "loop").symlink_to("loop")
    monkeypatch.setattr(os, "pwrite", full)
    async with on(fake) as files:
        with pytest.raises(HostError) as caught:
            await act(files)
    assert str(caught.value).startswith(failure)
    assert fake.files("a").is_dir()


async def test_what_may_not_be_is_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    fake = Fake("a")
    async with on(fake) as files:
        monkeypatch.setattr(os, "mkdir", denied)
        with pytest.raises(SFTPError) as caught:
            await files.mkdir("x")
    assert caught.value.kind == "SFTPPermissionDenied"


def test_files_go_with_the_fake() -> None:
    fake = Fake("a", "b")
    directories = [fake.files("a"), fake.files("b")]
    (directories[0] / "file").touch()
    assert fake.files("a") == directories[0] != directories[1]
    del fake
    gc.collect()
    assert not any(directory.exists() for directory in directories)


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
    for name in ("context", "interrupted", "run", "sftp", "other"):
        assert hasattr(Host, name)
        assert hasattr(FakeHost, name) or name in ("context", "interrupted")
