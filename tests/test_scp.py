"""Scp: between this machine and hosts, and from host to host."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from reemote.core.errors import ConnectionLost, InventoryError
from reemote.core.host import Transport
from reemote.core.inventory import Inventory
from reemote.core.operation import Operation
from reemote.core.response import Response, Responses
from reemote.execute import Pool, execute
from reemote.host import Shell
from reemote.scp import Copy, Download, Upload
from reemote.testing import Fake, sandbox
from tests.openssh import UserSshd, why_no_user_sshd
from tests.sftp.test_questions import ODD
from tests.sftp.test_transfers import BIG, OLD_TIME, TREE, grown, mode, plant, tree

NASTY = [
    "a b",
    "'",
    '"',
    "$(touch P)",
    "`touch P`",
    "; touch P",
    "| touch P",
    "&& touch P",
    "-r",
    "--help",
    "\\",
    "a\nb",
]
"""Names that a shell would make something of."""


@dataclass
class Two:
    """Two hosts of one inventory, each with a folder that the tests see."""

    names: tuple[str, str]
    folders: tuple[Path, Path]
    """As the tests see them."""
    where: tuple[str, str]
    """As the hosts see them."""
    uids: tuple[int, int]
    inventory: Inventory
    pool: Transport

    async def all(self, operation: Operation[Any], **options: Any) -> Responses:
        return await execute(lambda: operation, self.inventory, pool=self.pool, **options)

    async def first(self, operation: Operation[Any]) -> Response[Any]:
        return (await self.all(operation, limit=self.names[0]))[0]

    async def changed(self, operation: Operation[Any]) -> bool:
        """Run an operation on the first host, see that it succeeds, and tell whether something changed."""
        response = await self.first(operation)
        assert not response["error"], response
        assert response["value"] is None
        return bool(response["changed"])

    def plant(self, number: int, names: Mapping[str, bytes | str | None]) -> None:
        plant(self.folders[number], names, self.uids[number])

    def path(self, number: int, name: str = "") -> str:
        return f"{self.where[number]}/{name}" if name else self.where[number]


@pytest.fixture(scope="session")
def two_sshds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[UserSshd, UserSshd]]:
    if reason := why_no_user_sshd():
        pytest.skip(f"OpenSSH: {reason}")
    directory = tmp_path_factory.mktemp("sshd")
    with UserSshd(directory / "one") as one, UserSshd(directory / "two") as two:
        yield one, two


@pytest.fixture(params=["fake", "sandbox", pytest.param("openssh", marks=pytest.mark.slow)])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "openssh":
        request.getfixturevalue("two_sshds")  # before what is open is counted
    return str(request.param)


@pytest.fixture
async def two(kind: str, request: pytest.FixtureRequest, tmp_path: Path, nothing_left: None) -> AsyncIterator[Two]:
    me = os.geteuid()
    names = ("server104", "server105")
    if kind == "fake":
        fake = Fake(*names)
        folders = [fake.files(name) / "folder" for name in names]
        for folder in folders:
            folder.mkdir()
        yield Two(names, (folders[0], folders[1]), ("/folder", "/folder"), (me, me), fake.inventory, fake)
        return
    if kind == "sandbox":
        folders = [tmp_path.resolve() / name for name in names]
        for folder in folders:
            folder.mkdir()
        async with sandbox(*names) as inventory, Pool() as pool:
            where = (str(folders[0]), str(folders[1]))
            yield Two(names, (folders[0], folders[1]), where, (me, me), inventory, pool)
        return
    servers: tuple[UserSshd, UserSshd] = request.getfixturevalue("two_sshds")
    hosts = [
        {"connection": server.connection(host=name, address=server.host)}
        for name, server in zip(names, servers, strict=True)
    ]
    folders = [server.served / "folder" for server in servers]
    for folder, server in zip(folders, servers, strict=True):
        folder.mkdir()
        if me == 0:
            os.chown(folder, server.uid, server.uid)
    async with Pool() as pool:
        where = (str(folders[0]), str(folders[1]))
        uids = (servers[0].uid, servers[1].uid)
        yield Two(names, (folders[0], folders[1]), where, uids, Inventory.of({"hosts": hosts}), pool)
    for folder in folders:
        shutil.rmtree(folder)


@pytest.fixture
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("local")


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


# Upload


async def test_upload(two: Two, local: Path) -> None:
    plant(local, {"a": BIG, "b": b"b"})
    (local / "a").chmod(0o777)
    assert await two.changed(Upload(srcpaths=local / "a", dstpath=two.path(0, "copy")))
    assert (mode(two.folders[0] / "copy"), (two.folders[0] / "copy").read_bytes()) == (0o755, BIG), "as scp(1) does"
    assert await two.changed(Upload(srcpaths=[local / "a", local / "b"], dstpath=two.path(0)))
    assert grown(two.folders[0]) == {"a": BIG, "b": b"b", "copy": BIG}
    (two.folders[0] / "b").chmod(0o600)
    assert await two.changed(Upload(srcpaths=local / "a", dstpath=two.path(0, "b")))
    assert mode(two.folders[0] / "b") == 0o600
    assert grown(two.folders[1]) == {}


async def test_upload_to_every_host(two: Two, local: Path) -> None:
    plant(local, {"a": BIG})
    responses = await two.all(Upload(srcpaths=local / "a", dstpath="reemote-scp-test"))
    assert [response["changed"] for response in responses] == [True, True]
    if isinstance(two.pool, Fake):
        assert (two.pool.files("server105") / "reemote-scp-test").read_bytes() == BIG
        return
    responses = await two.all(Shell(cmd="cksum < reemote-scp-test && rm reemote-scp-test"))
    assert len({response.value.stdout for response in responses if response.value.exit_status == 0}) == 1


async def test_what_is_the_same_is_left_alone(two: Two, local: Path) -> None:
    """Put and Upload skip what is already the same when checksum=True, and then report changed: false."""
    plant(local, {f"top/{name}": content for name, content in TREE.items() if not isinstance(content, str)})
    upload = Upload(srcpaths=local / "top", dstpath=two.path(0), recurse=True, checksum=True)
    assert await two.changed(upload)
    assert not await two.changed(upload)
    (local / "top/file").write_bytes(b"FILE")
    assert await two.changed(upload)
    assert grown(two.folders[0]) == {"top": None, **{f"top/{n}": c for n, c in grown(local / "top").items()}}
    download = Download(srcpaths=two.path(0, "top"), dstpath=local / "back", recurse=True, checksum=True)
    assert await two.changed(download)
    # What is there by now is a directory, which the next copy goes into.
    assert await two.changed(download)
    assert not await two.changed(download)


# Download


async def test_download(two: Two, local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two.plant(0, {"a": BIG, "b": b"b"})
    (two.folders[0] / "a").chmod(0o755)
    assert await two.changed(Download(srcpaths=two.path(0, "a"), dstpath=local / "copy"))
    assert mode(local / "copy") == 0o755
    monkeypatch.chdir(local)
    assert await two.changed(Download(srcpaths=[two.path(0, "a"), two.path(0, "b")]))
    assert grown(local) == {"a": BIG, "b": b"b", "copy": BIG}


async def test_download_from_every_host(two: Two, local: Path) -> None:
    for number in (0, 1):
        two.plant(number, {"a": str(number).encode()})
    operation = Download(srcpaths=two.path(0, "a"), dstpath=local / "copy")
    responses = await two.all(operation)
    found = [(r["value"], r["error"], r["changed"], r["outcome"]) for r in responses]
    assert found == [("FileExistsError", True, False, "not_started")] * 2
    assert "{host}" in responses[0]["detail"]
    assert grown(local) == {}
    if isinstance(two.pool, Fake):
        assert not (await two.all(Download(srcpaths=two.path(0, "a"), dstpath=local / "{host}.txt"))).failed
        assert grown(local) == {"server104.txt": b"0", "server105.txt": b"1"}


# Trees, patterns and links


async def test_trees(two: Two, local: Path) -> None:
    plant(local, {f"top/{name}": content for name, content in TREE.items() if name != "dangling"})
    response = await two.first(Upload(srcpaths=local / "top", dstpath=two.path(0, "new")))
    assert (response["error"], response["changed"]) == (True, False)
    assert "recurse=True" in response["detail"]
    assert await two.changed(Upload(srcpaths=local / "top", dstpath=two.path(0, "new"), recurse=True))
    followed = {name: content for name, content in tree().items() if name != "dangling"}
    followed |= {"sub/link": b"file", "sub/sideways": None, "sub/sideways/er": b"er" * 1000}
    assert grown(two.folders[0] / "new") == followed, "links are followed, as by scp(1)"
    assert await two.changed(Download(srcpaths=two.path(0, "new"), dstpath=local / "back", recurse=True))
    assert grown(local / "back") == followed
    assert await two.changed(
        Copy(srcpaths=two.path(0, "new"), dstpath=two.path(1, "there"), dsthost=two.names[1], recurse=True)
    )
    assert grown(two.folders[1] / "there") == followed


async def test_links_that_lead_back_or_nowhere(two: Two, local: Path) -> None:
    plant(local, {"top/a": b"a", "top/up": "..", "other/b": b"b", "other/no": "where"})
    for name in ("top", "other"):
        response = await two.first(Upload(srcpaths=local / name, dstpath=two.path(0, name), recurse=True))
        assert (response["error"], response["changed"]) == (True, False), name
    errors: list[Exception] = []
    both = [local / "top", local / "other"]
    assert await two.changed(Upload(srcpaths=both, dstpath=two.path(0), recurse=True, error_handler=errors.append))
    assert grown(two.folders[0]) == {"top": None, "top/a": b"a", "other": None, "other/b": b"b"}
    assert len(errors) == 2


async def test_patterns(two: Two, local: Path) -> None:
    plant(local, {"a.c": b"a", "b.c": b"b", "c.h": b"c", "sub/d.c": b"d", "[x].c": b"x"})
    assert await two.changed(Upload(srcpaths=[local / "*.c", local / "c.?"], dstpath=two.path(0)))
    assert sorted(grown(two.folders[0])) == ["[x].c", "a.c", "b.c", "c.h"]
    assert await two.changed(Download(srcpaths=two.path(0, "[ab].c"), dstpath=local / "sub"))
    assert sorted(grown(local / "sub")) == ["a.c", "b.c", "d.c"]
    assert await two.changed(Copy(srcpaths=two.path(0, "?.*"), dstpath=two.path(1), dsthost=two.names[1]))
    assert sorted(grown(two.folders[1])) == ["a.c", "b.c", "c.h"]
    response = await two.first(Upload(srcpaths=local / "*.none", dstpath=two.path(0)))
    assert (response["value"], response["changed"]) == ("FileNotFoundError", False)
    assert await two.changed(Upload(srcpaths=local / "[x].c", dstpath=two.path(0, "literal")))
    assert (two.folders[0] / "literal").read_bytes() == b"x", "a file of that very name comes first"


async def test_preserve(two: Two, local: Path) -> None:
    plant(local, {"top/file": BIG, "top/sub/empty": b""})
    for name, permissions in {"top/file": 0o4711, "top/sub": 0o700, "top": 0o750}.items():
        (local / name).chmod(permissions)
        os.utime(local / name, (OLD_TIME - 5, OLD_TIME))
    await two.changed(Upload(srcpaths=local / "top", dstpath=two.path(0), recurse=True, preserve=True))
    await two.changed(
        Copy(srcpaths=two.path(0, "top"), dstpath=two.path(1), dsthost=two.names[1], recurse=True, preserve=True)
    )
    await two.changed(Download(srcpaths=two.path(0, "top"), dstpath=local / "back", recurse=True, preserve=True))
    for folder in (two.folders[0] / "top", two.folders[1] / "top", local / "back"):
        assert [mode(folder), mode(folder / "file"), mode(folder / "sub")] == [0o750, 0o4711, 0o700]
        assert int((folder / "file").stat().st_mtime) == int((folder / "sub").stat().st_mtime) == OLD_TIME


async def test_in_place(two: Two, local: Path) -> None:
    plant(local, {"a": b"new"})
    two.plant(0, {"b": b"the old content"})
    inode = (two.folders[0] / "b").stat().st_ino
    assert await two.changed(Upload(srcpaths=local / "a", dstpath=two.path(0, "b"), in_place=True))
    assert (two.folders[0] / "b").stat().st_ino == inode
    assert grown(two.folders[0]) == {"b": b"new"}
    assert await two.changed(Upload(srcpaths=local / "a", dstpath=two.path(0, "b")))
    assert (two.folders[0] / "b").stat().st_ino != inode


async def test_progress(two: Two, local: Path) -> None:
    calls: list[tuple[bytes, bytes, int, int]] = []

    def told(*call: Any) -> None:
        calls.append(call)

    plant(local, {"a": BIG})
    await two.changed(Upload(srcpaths=local / "a", dstpath=two.path(0, "a"), progress_handler=told, block_size=50_000))
    await two.changed(
        Copy(srcpaths=two.path(0, "a"), dstpath=two.path(1, "b"), dsthost=two.names[1], progress_handler=told)
    )
    await two.changed(Download(srcpaths=two.path(0, "a"), dstpath=local / "c", progress_handler=told))
    here = str(local)
    ways = [
        (f"{here}/a", two.path(0, "a")),
        (two.path(0, "a"), two.path(1, "b")),
        (two.path(0, "a"), f"{here}/c"),
    ]
    for source, target in ways:
        mine = [call[2:] for call in calls if call[:2] == (os.fsencode(source), os.fsencode(target))]
        assert mine[-1] == (len(BIG), len(BIG))
        assert len(mine) > 1


# Names that a shell would make something of


async def test_names_are_literal(two: Two, local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R35: no part of a path is ever a command."""
    monkeypatch.chdir(local)
    names = [*NASTY, *(os.fsdecode(name) for name in ODD if name != b"*")]  # which would be that very file
    plant(local, {f"up/{name}": name.encode(errors="surrogateescape") for name in names})
    for number in (0, 1):
        two.plant(number, {"up": None, "one": None})
    for name in NASTY:
        assert await two.changed(Upload(srcpaths=f"up/{name}", dstpath=two.path(0, f"one/{name}"))), name
        assert not await two.changed(
            Upload(srcpaths=f"up/{name}", dstpath=two.path(0, f"one/{name}"), checksum=True)
        ), name
    assert await two.changed(Upload(srcpaths="up/*", dstpath=two.path(0, "up")))
    assert grown(two.folders[0] / "up") == grown(local / "up")
    copy = Copy(srcpaths=[two.path(0, f"up/{name}") for name in NASTY], dstpath=two.path(1, "up"), dsthost=two.names[1])
    assert await two.changed(copy)
    assert await two.changed(Copy(srcpaths=two.path(0, "up/*"), dstpath=two.path(0, "one")))
    assert await two.changed(Download(srcpaths=two.path(0, "up"), dstpath="$(touch P)", recurse=True))
    assert grown(local / "$(touch P)") == grown(local / "up")
    assert await two.changed(Download(srcpaths=two.path(0, "one/*"), dstpath="up"))
    places = [local, *two.folders]
    if not isinstance(two.pool, Fake):
        responses = await two.all(Shell(cmd="ls -A P ; true"))
        assert {response.value.stdout for response in responses} == {""}
    assert not [place for place in places if [*place.rglob("P")]]


# From host to host


async def test_copy_on_the_host_itself(two: Two) -> None:
    two.plant(0, {"a": BIG})
    assert await two.changed(Copy(srcpaths=two.path(0, "a"), dstpath=two.path(0, "b")))
    assert await two.changed(Copy(srcpaths=two.path(0, "a"), dstpath=two.path(0, "c"), dsthost=two.names[0]))
    assert not await two.changed(Copy(srcpaths=two.path(0, "a"), dstpath=two.path(0, "c"), checksum=True))
    assert grown(two.folders[0]) == {"a": BIG, "b": BIG, "c": BIG}
    assert grown(two.folders[1]) == {}


async def test_copy_to_another_host(two: Two) -> None:
    two.plant(0, {"a": BIG, "b": b"b"})
    two.plant(1, {"a": b"old", "into": None})
    (two.folders[1] / "a").chmod(0o640)
    copy = Copy(srcpaths=two.path(0, "a"), dstpath=two.path(1, "a"), dsthost=two.names[1], checksum=True)
    assert await two.changed(copy)
    assert not await two.changed(copy)
    assert mode(two.folders[1] / "a") == 0o640
    several = Copy(srcpaths=[two.path(0, "a"), two.path(0, "b")], dstpath=two.path(1, "into"), dsthost=two.names[1])
    assert await two.changed(several)
    assert grown(two.folders[1]) == {"a": BIG, "into": None, "into/a": BIG, "into/b": b"b"}
    assert grown(two.folders[0]) == {"a": BIG, "b": b"b"}
    assert (two.folders[1] / "into/a").stat().st_uid == two.uids[1]


async def test_links_of_one_host_are_not_made_on_another(two: Two) -> None:
    two.plant(0, {"top/a": b"a", "top/link": "a", "top/out": "../secret", "secret": b"s"})
    copy = Copy(srcpaths=two.path(0, "top"), dstpath=two.path(1), dsthost=two.names[1], recurse=True)
    assert await two.changed(copy)
    assert grown(two.folders[1]) == {"top": None, "top/a": b"a", "top/link": b"a", "top/out": b"s"}


async def test_copy_from_every_host_to_one(two: Two) -> None:
    """The destination is one of them, too: it copies to itself."""
    for number in (0, 1):
        two.plant(number, {"a": str(number).encode(), "to": None})
    if two.where[0] == two.where[1]:
        source, target = two.path(0, "a"), two.path(1, "to/{host}")
    else:
        source, target = "scp-test-source", two.path(1, "to/{host}")
        assert not (await two.all(Shell(cmd="hostname > scp-test-source"))).failed
    responses = await two.all(Copy(srcpaths=source, dstpath=target, dsthost=two.names[1]))
    assert not responses.failed, responses
    assert sorted(path.name for path in (two.folders[1] / "to").iterdir()) == ["server104", "server105"]
    responses = await two.all(Copy(srcpaths=source, dstpath=two.path(1, "to/same"), dsthost=two.names[1]))
    failed = {response["host"]: response for response in responses if response["error"]}
    assert failed.keys() == {*two.names}, "both would write to one file"
    assert {r["outcome"] for r in failed.values()} == {"not_started"}
    assert "{host}" in failed[two.names[0]]["detail"]
    assert not (two.folders[1] / "to/same").exists()
    if source == "scp-test-source":
        assert not (await two.all(Shell(cmd="rm scp-test-source"))).failed


async def test_without_a_path_the_copy_goes_where_logins_start(two: Two) -> None:
    two.plant(0, {"scp-test-copy": b"x"})
    assert await two.changed(Copy(srcpaths=two.path(0, "scp-test-copy"), dsthost=two.names[1]))
    if isinstance(two.pool, Fake):
        assert (two.pool.files(two.names[1]) / "scp-test-copy").read_bytes() == b"x"
        return
    response = (await two.all(Shell(cmd="cat scp-test-copy && rm scp-test-copy"), limit=two.names[1]))[0]
    assert response.value.stdout == "x"


async def test_a_host_that_the_inventory_does_not_have(two: Two) -> None:
    two.plant(0, {"a": b"a"})
    copy = Copy(srcpaths=two.path(0, "a"), dstpath="x", dsthost="server999")
    with pytest.raises(ExceptionGroup) as caught:
        await two.first(copy)
    assert caught.group_contains(InventoryError, match="the inventory has no host 'server999'")


async def test_a_host_that_is_left_out_of_the_run(two: Two) -> None:
    """The destination need not be selected: it has only to be in the inventory."""
    two.plant(0, {"a": b"a"})
    copy = Copy(srcpaths=two.path(0, "a"), dstpath=two.path(1, "a"), dsthost=two.names[1])
    assert (await two.all(copy, limit=two.names[0])).changed
    assert grown(two.folders[1]) == {"a": b"a"}


async def test_a_destination_that_is_down(tmp_path: Path) -> None:
    fake = Fake("up", "down")
    fake.fail("down", ConnectionLost("it is down", outcome="not_started"))
    plant(fake.files("up"), {"a": b"a"})
    copy = Copy(srcpaths="/a", dstpath="/a", dsthost="down")
    response = (await execute(lambda: copy, fake.inventory, pool=fake, limit="up"))[0]
    assert (response["host"], response["value"], response["error"]) == ("up", "ConnectionLost", True)
    assert (response["outcome"], response["changed"]) == ("not_started", False)


async def test_a_destination_that_cannot_be_written(tmp_path: Path) -> None:
    fake = Fake("a", "b")
    plant(fake.files("a"), {"big": BIG})
    plant(fake.files("b"), {"place": "/nowhere/else"})
    copy = Copy(srcpaths="/big", dstpath="/place", dsthost="b")
    response = (await execute(lambda: copy, fake.inventory, pool=fake, limit="a"))[0]
    assert (response["value"], response["changed"]) == ("SFTPNoSuchFile", False)
    assert grown(fake.files("b")) == {"place": "/nowhere/else"}


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Upload(srcpaths=[], dstpath="x"), "at least one path"),
        (lambda: Upload(srcpaths="a", dstpath=""), "cannot be empty"),
        (lambda: Download(srcpaths="a\0"), "NUL"),
        (lambda: Download(srcpaths=["a", ""]), "cannot be empty"),
        (lambda: Copy(srcpaths="a", dstpath="\0"), "NUL"),
        (lambda: Copy(srcpaths="a", block_size=0), "block_size"),
        (lambda: Upload(srcpaths="a"), "dstpath"),  # type: ignore[call-arg]
        (lambda: Upload(srcpaths="a", dstpath="b", sparse=True), "sparse"),  # type: ignore[call-arg]
    ],
)
def test_what_cannot_be_asked_for(make: Callable[[], Operation[Any]], complaint: str) -> None:
    with pytest.raises(ValidationError) as caught:
        make()
    assert complaint in str(caught.value)
