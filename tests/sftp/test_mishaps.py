"""What goes wrong in the middle, and what others do meanwhile: the response tells the truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from reemote.core.errors import ConnectionLost, SFTPError
from reemote.core.files import Attributes
from reemote.sftp import Directory, GlobSftpName, Makedirs, Mkdir, Rmtree, Setstat, Write
from reemote.sftp.attributes import Asked
from reemote.testing.fake_files import FakeFiles
from reemote.transfer.opened import OpenFile
from tests.sftp.conftest import Hosted

pytestmark = pytest.mark.parametrize("kind", ["fake"])


@pytest.fixture
def instead(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have a method of the host's files do something else; that gets the method, and its arguments."""

    def instead(name: str, work: Any, of: type = FakeFiles) -> None:
        original = getattr(of, name)

        async def method(self: Any, *arguments: Any, **options: Any) -> Any:
            async def go_on(*others: Any) -> Any:
                return await original(self, *(others or arguments), **options)

            return await work(go_on, *arguments, **options)

        monkeypatch.setattr(of, name, method)

    return instead


async def twice(go_on: Any, *_: Any, **__: Any) -> Any:
    """Somebody else does the same a moment before."""
    await go_on()
    return await go_on()


async def test_somebody_else_makes_the_directory_meanwhile(host: Hosted, instead: Callable[..., None]) -> None:
    instead("mkdir", twice)
    assert not await host.changed(Makedirs(path=host.path("a/b"), exist_ok=True))
    assert not await host.changed(Directory(path=host.path("c/d"), present=True))
    response = await host.failure(Makedirs(path=host.path("e/f")))
    assert response["detail"] == f"{host.path('e/f')} exists already"
    assert host.names() == ["a", "c", "e"]


async def test_somebody_else_removes_the_tree_meanwhile(host: Hosted, instead: Callable[..., None]) -> None:
    host.folder("tree")
    host.folder("tree/folder")
    for number in range(5):
        host.file(f"tree/folder/{number}")
    instead("remove", twice)
    assert await host.changed(Rmtree(path=host.path("tree")))
    assert host.names() == []


async def test_the_first_failure_ends_the_removal_of_a_tree(host: Hosted, instead: Callable[..., None]) -> None:
    host.folder("tree")
    for number in range(5):
        host.file(f"tree/{number}")

    async def remove(go_on: Any, path: bytes) -> None:
        if path.endswith(b"2"):
            raise SFTPError("it is stuck", kind="SFTPFailure")
        await go_on()

    instead("remove", remove)
    response = await host.run(Rmtree(path=host.path("tree")))
    assert (response["value"], response["detail"]) == ("SFTPFailure", f"it is stuck: {host.path('tree/2')}")
    assert response["changed"] == (len(host.names("tree")) < 5)
    assert "2" in host.names("tree")


async def test_a_connection_that_is_lost_in_the_middle(host: Hosted, instead: Callable[..., None]) -> None:
    async def lose(*_: Any, **__: Any) -> None:
        raise ConnectionLost("gone")

    instead("set", lose)
    response = await host.run(Mkdir(path=host.path("new"), permissions=0o777))
    assert (response["value"], response["changed"], response["outcome"]) == ("ConnectionLost", True, "unknown")
    instead("lookup", lose)
    response = await host.run(Directory(path=host.path("new"), present=True))
    assert (response["value"], response["outcome"]) == ("ConnectionLost", "unknown")


async def test_what_was_set_before_a_failure_has_changed(host: Hosted, instead: Callable[..., None]) -> None:
    host.file("file", mode=0o644)

    async def set_all_but_times(go_on: Any, *_: Any, **options: Any) -> None:
        if options.get("times"):
            raise SFTPError("no", kind="SFTPFailure")
        await go_on()

    instead("set", set_all_but_times)
    await host.failure(Setstat(path=host.path("file"), permissions=0o600, atime=1, mtime=1), changed=True)
    assert host.mode("file") == 0o600
    await host.failure(Setstat(path=host.path("file"), permissions=0o600, atime=1, mtime=1), changed=False)


async def test_half_a_new_file_is_removed(host: Hosted, instead: Callable[..., None]) -> None:
    async def fail(*_: Any) -> None:
        raise SFTPError("the disk is full", kind="SFTPFailure")

    instead("write", fail, of=OpenFile)
    for mode in ("x", "w"):
        write = Write(text="text", path=host.path("file"), mode=mode)
        assert (await host.failure(write))["detail"].startswith("the disk is full")
        assert host.names() == []
    host.file("file", b"old")
    await host.failure(Write(text="text", path=host.path("file")))
    assert (host.root / "file").read_bytes() == b"old"
    await host.failure(Write(text="text", path=host.path("file"), mode="a"), changed=True)


async def test_a_file_that_vanishes_while_it_is_asked_for(host: Hosted, instead: Callable[..., None]) -> None:
    for name in "abc":
        host.file(name)

    async def lookup(go_on: Any, path: bytes, **_: Any) -> Any:
        return None if path.endswith(b"/b") else await go_on()

    instead("lookup", lookup)
    found = await host.value(GlobSftpName(path=host.path("*")))
    assert [each["filename"] for each in found] == [host.path("a"), host.path("c")]


def test_an_owner_that_is_not_told(kind: str) -> None:
    found = Attributes(permissions=0o100644, size=1)
    assert list(Asked(uid=1, gid=2).steps(found, "x")) == [{"owner": (1, 2)}]
    with pytest.raises(SFTPError, match="the host does not tell who owns x: give uid and gid"):
        list(Asked(uid=1).steps(found, "x"))
    assert list(Asked(times=(5, 6)).steps(found, "x")) == [{"times": (5, 6)}]
    assert not Asked()
    assert Asked().is_met(found)
