"""Sync makes a directory of a host equal to one of this machine, and tells what that took."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from reemote.core.operation import Operation
from reemote.core.response import Response
from reemote.execute import Pool, execute
from reemote.host import Shell
from reemote.inventory import Inventory
from reemote.sftp import Put, Sync
from tests.openssh import UserSshd, why_no_user_sshd
from tests.sftp.conftest import KINDS, Hosted
from tests.sftp.test_questions import ODD
from tests.sftp.test_transfers import OLD_TIME, TREE, Tree, grown, mode, plant, tree

EVERY = pytest.mark.parametrize("kind", KINDS)
NOTHING: dict[str, list[str]] = {"added": [], "changed": [], "removed": [], "skipped": []}


@dataclass
class Pair:
    """A directory here and one on a host."""

    host: Hosted
    local: Path
    remote: Path
    """As the tests see it; it is not there yet."""

    def operation(self, **options: Any) -> Operation[Any]:
        return Sync(localpath=self.local, remotepath=self.host.path("remote"), **options)

    async def run(self, **options: Any) -> Response[Any]:
        return await self.host.run(self.operation(**options))

    async def sync(self, **options: Any) -> dict[str, list[str]]:
        """Synchronize, and give what is not empty of the report."""
        response = await self.run(**options)
        assert not response["error"], response
        report = response["value"]
        assert set(report) == set(NOTHING)
        told = {name: found for name, found in report.items() if found}
        assert response["changed"] is bool(told.keys() - {"skipped"}), response
        return told

    def plant(self, names: Tree) -> None:
        plant(self.local, names)

    def plant_there(self, names: Tree) -> None:
        self.remote.mkdir(exist_ok=True)
        plant(self.remote, names, self.host.uid)

    def replace(self, name: str, content: bytes | str | None) -> None:
        """Put something else in the place of what is here."""
        path = self.local / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
        self.plant({name: content})

    def check(self) -> None:
        """See that both are equal, but for owners."""
        assert grown(self.remote) == grown(self.local)
        for path in self.local.rglob("*"):
            there = self.remote / path.relative_to(self.local)
            if not path.is_symlink():
                assert oct(mode(there)) == oct(mode(path)), there
            if path.is_file() and not path.is_symlink():
                assert int(there.stat().st_mtime) == int(path.stat().st_mtime), there


@pytest.fixture(params=["fake", "sandbox", pytest.param("internal-sftp", marks=pytest.mark.slow)])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def pair(host: Hosted, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(host, tmp_path_factory.mktemp("local"), host.root / "remote")


def every_name(names: Tree) -> list[str]:
    return sorted(names)


# First and second runs


@EVERY
async def test_the_first_run_and_the_second(pair: Pair) -> None:
    pair.plant(TREE)
    (pair.local / "file").chmod(0o4750)
    (pair.local / "sub").chmod(0o700)
    os.utime(pair.local / "nothing", (OLD_TIME, OLD_TIME))
    assert await pair.sync() == {"added": every_name(tree())}
    pair.check()
    inodes = {path: path.lstat().st_ino for path in pair.remote.rglob("*")}
    assert await pair.sync() == {}
    assert await pair.sync(checksum=True, delete=True, exclude=["no*"]) == {}
    assert {path: path.lstat().st_ino for path in pair.remote.rglob("*")} == inodes
    assert pair.host.names() == ["remote"]


@EVERY
async def test_few_files_and_many(pair: Pair) -> None:
    """Few are sent one by one, many in an archive: it must make no difference."""
    for number in (1, 2, 20):
        for folder in (pair.local, pair.remote):
            shutil.rmtree(folder, ignore_errors=True)
        pair.plant({f"d{each % 3}/{each}": b"x" * each * 100 for each in range(number)})
        await pair.sync()
        pair.check()
        pair.plant({f"d{each % 3}/more/{each}": b"y" * each for each in range(number)})
        for path in pair.local.glob("d?/*"):
            if path.is_file():
                path.write_bytes(b"changed" * 1000)
                path.chmod(0o751)
        report = await pair.sync()
        assert len([name for name in report["added"] if "more/" in name]) == number
        assert len(report["changed"]) == number
        pair.check()
        assert await pair.sync() == {}


@EVERY
async def test_parents_are_made(pair: Pair) -> None:
    pair.plant({"a": b"a"})
    response = await pair.host.run(Sync(localpath=pair.local, remotepath=pair.host.path("remote/x/y")))
    assert (response["changed"], response["value"]["added"]) == (True, ["a"])
    assert grown(pair.remote) == {"x": None, "x/y": None, "x/y/a": b"a"}
    pair.plant({f"{number}": b"" for number in range(10)})
    response = await pair.host.run(Sync(localpath=pair.local, remotepath=pair.host.path("remote/x/z/")))
    assert (response["changed"], len(response["value"]["added"])) == (True, 11)
    assert grown(pair.remote / "x/z") == grown(pair.local)
    assert sorted(path.name for path in (pair.remote / "x").iterdir()) == ["y", "z"]


async def test_an_empty_directory(pair: Pair) -> None:
    response = await pair.run()
    assert (response["error"], response["changed"], response["value"]) == (False, True, NOTHING)
    assert grown(pair.remote) == {}
    assert await pair.sync() == {}


async def test_the_mode_of_a_new_directory_is_that_of_the_one_here(pair: Pair) -> None:
    pair.local.chmod(0o750)
    await pair.run()
    assert mode(pair.remote) == 0o750
    for number in range(5):
        (pair.local / str(number)).touch()
    shutil.rmtree(pair.remote)
    await pair.run()
    assert mode(pair.remote) == 0o750


async def test_links_to_both_directories_are_followed(pair: Pair) -> None:
    pair.plant({"top/a": b"a"})
    (pair.local / "link").symlink_to("top")
    pair.plant_there({"real": None, "link": "real"})
    response = await pair.host.run(Sync(localpath=pair.local / "link", remotepath=pair.host.path("remote/link")))
    assert response["value"]["added"] == ["a"]
    assert grown(pair.remote) == {"real": None, "real/a": b"a", "link": "real"}


async def test_a_report_is_json(pair: Pair) -> None:
    pair.plant({"a": b"a"})
    responses = await execute(lambda: pair.operation(), pair.host.inventory, pool=pair.host.pool)
    assert '"added":["a"]' in responses.to_json()
    assert responses[0].value.added == ["a"]


# What counts as a difference


@EVERY
async def test_files_that_were_only_touched(pair: Pair) -> None:
    pair.plant({"a": b"same", "b": b"same", "sub/c": b"same"})
    await pair.sync()
    for name in ("a", "sub/c"):
        os.utime(pair.local / name, (OLD_TIME, OLD_TIME))
    assert await pair.sync() == {}
    assert await pair.sync() == {}
    os.utime(pair.remote / "b", (OLD_TIME, OLD_TIME))
    (pair.remote / "b").chmod(0o600)
    assert await pair.sync() == {"changed": ["b"]}
    assert mode(pair.remote / "b") == 0o644


@EVERY
async def test_other_content_of_the_same_size(pair: Pair) -> None:
    pair.plant({"a": b"one", "b": b"one"})
    await pair.sync()
    for name in ("a", "b"):
        (pair.local / name).write_bytes(b"two")
    os.utime(pair.local / "a", (OLD_TIME, OLD_TIME))
    os.utime(pair.remote / "b", (OLD_TIME, OLD_TIME))
    assert await pair.sync() == {"changed": ["a", "b"]}
    pair.check()


@EVERY
async def test_other_content_of_the_same_size_and_time(pair: Pair) -> None:
    pair.plant({"a": b"one", "sub/b": b"one"})
    await pair.sync()
    for name in ("a", "sub/b"):
        times = (pair.local / name).stat()
        (pair.local / name).write_bytes(b"two")
        os.utime(pair.local / name, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert await pair.sync() == {}
    assert await pair.sync(checksum=True) == {"changed": ["a", "sub/b"]}
    pair.check()


@EVERY
async def test_modes_alone(pair: Pair) -> None:
    pair.plant({"a": b"a", "sub/b": b"b"})
    await pair.sync()
    inodes = {name: (pair.remote / name).stat().st_ino for name in ("a", "sub", "sub/b")}
    (pair.local / "a").chmod(0o755)
    (pair.local / "sub").chmod(0o2711)
    assert await pair.sync() == {"changed": ["a", "sub"]}
    pair.check()
    assert {name: (pair.remote / name).stat().st_ino for name in inodes} == inodes
    assert await pair.sync() == {}


@pytest.mark.parametrize("kind", ["fake", "sandbox"])
@pytest.mark.parametrize("number", [2, 5])
async def test_owners_stay(pair: Pair, number: int) -> None:
    """A file that is changed keeps the owner that it has on the host, however it gets there."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to give files away")
    pair.plant({str(each): b"x" for each in range(9)})
    await pair.sync()
    for path in pair.remote.iterdir():
        os.chown(path, 1234, 4321)
    assert await pair.sync() == {}
    changed = [str(each) for each in range(number)]
    for name in changed:
        (pair.local / name).write_bytes(b"longer")
    assert await pair.sync() == {"changed": changed}
    assert {(path.stat().st_uid, path.stat().st_gid) for path in pair.remote.iterdir()} == {(1234, 4321)}


async def test_where_links_lead(pair: Pair) -> None:
    pair.plant({"a": "one", "b": "one", "c/d": "../one"})
    await pair.sync()
    pair.replace("a", "two")
    pair.replace("c/d", "two")
    assert await pair.sync() == {"changed": ["a", "c/d"]}
    pair.check()


CHANGES: dict[str, tuple[Tree, Tree]] = {
    "file to directory": ({"x": b"file"}, {"x/y": b"y"}),
    "file to empty directory": ({"x": b"file"}, {"x": None}),
    "file to link": ({"x": b"file"}, {"x": "there"}),
    "link to file": ({"x": "precious"}, {"x": b"file"}),
    "link to directory": ({"x": "folder"}, {"x/inside": b"new"}),
    "empty directory to file": ({"x": None}, {"x": b"file"}),
    "empty directory to link": ({"x": None}, {"x": "there"}),
}


@EVERY
async def test_another_kind(pair: Pair) -> None:
    """Links are replaced, never written through."""
    for case, (before, after) in CHANGES.items():
        for many in (False, True):
            rest: Tree = {"precious": b"old", "folder/inside": b"old"}
            more: Tree = {f"new{number}": b"x" for number in range(5 if many else 0)}
            for folder in (pair.local, pair.remote):
                shutil.rmtree(folder, ignore_errors=True)
            pair.plant({**before, **rest})
            await pair.sync()
            pair.replace("x", None)
            pair.replace("x", b"")
            (pair.local / "x").unlink()
            pair.plant({**after, **more})
            report = await pair.sync()
            assert report.get("changed") == ["x"], case
            assert set(report.get("added", [])) == {*after, *more} - {"x"}, case
            pair.check()
            assert await pair.sync() == {}, case


@EVERY
async def test_a_directory_that_is_not_empty_gives_way_only_where_that_was_asked_for(pair: Pair) -> None:
    pair.plant({"a": b"a", "x/y/z": b"z", "x/w": b"w"})
    await pair.sync()
    pair.replace("x", b"file")
    pair.replace("a", b"new")
    response = await pair.run()
    assert (response["value"], response["outcome"], response["changed"]) == ("SFTPFailure", "not_started", False)
    assert "delete=True" in response["detail"]
    assert grown(pair.remote) == {"a": b"a", "x": None, "x/y": None, "x/y/z": b"z", "x/w": b"w"}
    response = await pair.run(delete=True, exclude=["z"])
    assert (response["error"], response["changed"]) == (True, False)
    assert await pair.sync(delete=True) == {"changed": ["a", "x"], "removed": ["x/w", "x/y", "x/y/z"]}
    pair.check()


async def test_links_there_that_lead_elsewhere_are_not_followed(pair: Pair) -> None:
    plant(pair.host.root / "elsewhere", {"precious": b"old", "d/precious": b"old"}, pair.host.uid)
    pair.plant({"d/precious": b"new", "d/new": b"new"})
    pair.plant_there({"d": "../elsewhere", "e": "../elsewhere/d"})
    assert await pair.sync(delete=True) == {"added": ["d/new", "d/precious"], "changed": ["d"], "removed": ["e"]}
    pair.check()
    assert grown(pair.host.root / "elsewhere") == {"precious": b"old", "d": None, "d/precious": b"old"}


# Delete and exclude


@EVERY
async def test_delete(pair: Pair) -> None:
    pair.plant({"keep": b"1", "sub/keep": b"2"})
    pair.plant_there({"keep": b"1", "old": b"x", "sub/old": "x", "gone/a/b/c": b"x", "gone/d": None})
    os.mkfifo(pair.remote / "pipe")
    assert "removed" not in await pair.sync()
    assert {"old", "sub/old", "gone/a/b/c"} <= grown(pair.remote).keys()
    removed = ["gone", "gone/a", "gone/a/b", "gone/a/b/c", "gone/d", "old", "pipe", "sub/old"]
    assert await pair.sync(delete=True) == {"removed": removed}
    pair.check()


EXCLUDED: list[tuple[list[str], set[str]]] = [
    (["*.pyc"], {"a.pyc", "sub/b.pyc"}),
    (["sub/*.pyc"], {"sub/b.pyc"}),
    (["/a.pyc"], {"a.pyc"}),
    (["cache"], {"cache", "sub/cache", "sub/cache/x"}),
    (["cache/"], {"sub/cache", "sub/cache/x"}),
    (["sub/cache/"], {"sub/cache", "sub/cache/x"}),
    (["/sub"], {"sub", "sub/b.pyc", "sub/cache", "sub/cache/x", "sub/keep"}),
    (["[ab].*", "k??p"], {"a.pyc", "sub/b.pyc", "sub/keep"}),
    (["*"], {"a.pyc", "cache", "sub", "sub/b.pyc", "sub/cache", "sub/cache/x", "sub/keep"}),
    (["nothing", "a.pyc/", "x/"], set()),
]


async def test_exclude(pair: Pair) -> None:
    whole: Tree = {"a.pyc": b"", "cache": b"file", "sub/b.pyc": b"", "sub/cache/x": b"", "sub/keep": b""}
    names = {*whole, "sub", "sub/cache"}
    for patterns, left_out in EXCLUDED:
        pair.plant(whole)
        pair.plant_there({})
        assert set((await pair.sync(exclude=patterns)).get("added", [])) == names - left_out, patterns
        assert grown(pair.remote).keys() == names - left_out
        # What is excluded is left alone on the host, too, whatever happened to it here.
        shutil.rmtree(pair.remote)
        pair.plant_there(whole)
        shutil.rmtree(pair.local)
        pair.local.mkdir()
        await pair.sync(delete=True, exclude=patterns)
        kept = {name for name in ("sub", "sub/cache") if any(each.startswith(name + "/") for each in left_out)}
        assert grown(pair.remote).keys() == left_out | kept, patterns
        shutil.rmtree(pair.remote)


async def test_what_is_excluded_may_differ(pair: Pair) -> None:
    pair.plant({"a": b"here", "config": b"here"})
    pair.plant_there({"config": b"there"})
    assert await pair.sync(delete=True, exclude=["config"]) == {"added": ["a"]}
    assert grown(pair.remote) == {"a": b"here", "config": b"there"}
    pair.replace("config", None)
    assert await pair.sync(delete=True, exclude=["config"]) == {}


# What is no file


@EVERY
async def test_pipes_and_sockets_are_skipped(pair: Pair) -> None:
    pair.plant({"a": b"a", "sub/b": b"b"})
    os.mkfifo(pair.local / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(pair.local / "sub/socket"))
        assert await pair.sync() == {"added": ["a", "sub", "sub/b"], "skipped": ["pipe", "sub/socket"]}
        assert await pair.sync(delete=True) == {"skipped": ["pipe", "sub/socket"]}
    assert grown(pair.remote) == {"a": b"a", "sub": None, "sub/b": b"b"}


async def test_a_pipe_on_the_host_gives_way(pair: Pair) -> None:
    pair.plant({"a": b"a", "b": b"b"})
    pair.plant_there({})
    os.mkfifo(pair.remote / "a")
    assert await pair.sync() == {"added": ["b"], "changed": ["a"]}
    pair.check()


# Names


@EVERY
async def test_odd_names(pair: Pair) -> None:
    names = [os.fsdecode(name) for name in ODD]
    pair.plant({f"files/{name}": os.fsencode(name) for name in names})
    pair.plant({f"folders/{name}/{name}": b"x" for name in names})
    pair.plant({f"links/{number}": name for number, name in enumerate(names)})
    report = await pair.sync()
    assert report == {"added": every_name(grown(pair.local))}
    pair.check()
    assert await pair.sync() == {}
    for name in names:
        (pair.local / "files" / name).write_bytes(b"new" * 10)
        os.utime(pair.local / "folders" / name / name, (OLD_TIME, OLD_TIME))
    assert await pair.sync() == {"changed": every_name({f"files/{name}": b"" for name in names})}
    shutil.rmtree(pair.local)
    pair.local.mkdir()
    assert sorted((await pair.sync(delete=True))["removed"]) == every_name(
        {
            **dict.fromkeys(("files", "folders", "links")),
            **{f"files/{name}": None for name in names},
            **{f"folders/{name}": None for name in names},
            **{f"folders/{name}/{name}": None for name in names},
            **{f"links/{number}": None for number in range(len(names))},
        }
    )
    assert grown(pair.remote) == {}


@EVERY
async def test_long_paths(pair: Pair) -> None:
    """Paths and targets longer than the 100 bytes that a header of an archive has for them."""
    pair.plant({f"{'d' * 200}/{'e' * 120}/{number}{'f' * 200}": b"x" for number in range(4)})
    pair.plant({"link": "t" * 200, f"{'d' * 200}/link": "u" * 101, "100": "v" * 100})
    await pair.sync()
    pair.check()
    assert await pair.sync() == {}


@EVERY
async def test_the_directory_has_an_odd_name_itself(host: Hosted, tmp_path_factory: pytest.TempPathFactory) -> None:
    local = tmp_path_factory.mktemp("local")
    for number, name in enumerate(os.fsdecode(name) for name in ODD):
        if number % 3 == 0 or "\n" in name:
            plant(local, {name: None, **{f"{name}/{each}": b"x" for each in range(number % 6)}})
            response = await host.run(Sync(localpath=local / name, remotepath=host.path(name)))
            assert not response["error"], response
            assert grown(host.root / name) == grown(local / name)


# Content


async def test_large_files_and_holes(pair: Pair) -> None:
    content = random.Random(3).randbytes(3_000_000)
    pair.plant({f"{number}/big": content for number in range(4)})
    with (pair.local / "sparse").open("wb") as file:
        file.truncate(2**20)
    await pair.sync()
    pair.check()


async def test_old_and_new_times(pair: Pair) -> None:
    """Times before the epoch and far in the future are not always to be had; the second run changes nothing."""
    pair.plant({f"{number}": b"x" for number in range(5)})
    for number, seconds in enumerate((0, 1, 2**31 - 1, 2**31 + 10, OLD_TIME)):
        os.utime(pair.local / str(number), (seconds, seconds))
    await pair.sync()
    pair.check()
    assert await pair.sync() == {}


@EVERY
async def test_directories_that_may_not_be_written_to(pair: Pair) -> None:
    for number in (1, 10):
        pair.plant({f"closed{number}/{each}": b"x" for each in range(number)})
        (pair.local / f"closed{number}").chmod(0o555)
        await pair.sync()
        pair.check()
        assert await pair.sync() == {}


async def test_progress(pair: Pair) -> None:
    calls: list[tuple[bytes, bytes, int, int]] = []

    def told(*call: Any) -> None:
        calls.append(call)

    for number in (1, 8):
        calls.clear()
        pair.plant({f"{number}-{each}": b"x" * 300_000 for each in range(number)})
        pair.plant({f"{number}-empty": b""})
        await pair.sync(progress_handler=told)
        top = os.fsencode(pair.host.path("remote"))
        for each in [*range(number), "empty"]:
            name = f"{number}-{each}".encode()
            mine = [call for call in calls if call[0] == os.fsencode(pair.local) + b"/" + name]
            assert {call[1] for call in mine} == {top + b"/" + name}
            size = 0 if each == "empty" else 300_000
            assert mine[-1][2:] == (size, size)


@pytest.mark.parametrize("kind", ["sandbox", "internal-sftp"])
@pytest.mark.slow
async def test_thousands_of_small_files(pair: Pair) -> None:
    """One by one they would take a minute."""
    pair.plant({f"d{number % 30}/{number}": str(number).encode() for number in range(3000)})
    start = time.process_time()
    async with asyncio.timeout(30):
        assert len((await pair.sync())["added"]) == 3030
        assert await pair.sync() == {}
        assert len(await pair.sync(delete=True, exclude=["d1/", "d2/*"])) == 0
    assert time.process_time() - start < 15
    pair.check()


# Errors


async def test_what_is_no_directory_here(pair: Pair) -> None:
    for path, value in {"no": "FileNotFoundError", "file": "SFTPFailure", "link": "FileNotFoundError"}.items():
        pair.plant({"file": b"x"} if path == "file" else {"link": "nowhere"} if path == "link" else {})
        response = await pair.host.run(Sync(localpath=pair.local / path, remotepath=pair.host.path("remote/a/b")))
        assert (response["value"], response["error"], response["changed"]) == (value, True, False), path
        assert str(pair.local / path) in response["detail"]
        assert not pair.remote.exists()


@EVERY
async def test_what_is_no_directory_there(pair: Pair) -> None:
    pair.plant({"a": b"a"})
    pair.remote.write_bytes(b"old")
    response = await pair.run(delete=True)
    assert (response["error"], response["changed"], response["outcome"]) == (True, False, "not_started")
    assert response["detail"] == f"{pair.host.path('remote')} is not a directory"
    response = await pair.host.run(Sync(localpath=pair.local, remotepath=pair.host.path("remote/below")))
    assert (response["error"], response["changed"]) == (True, False)
    assert pair.remote.read_bytes() == b"old"
    pair.remote.unlink()
    pair.remote.symlink_to("nowhere")
    response = await pair.run()
    assert (response["error"], response["changed"]) == (True, False)
    assert pair.host.names() == ["remote"]


@pytest.mark.parametrize("kind", [pytest.param("internal-sftp", marks=pytest.mark.slow)])
async def test_a_directory_that_may_not_be_written_to_there(pair: Pair) -> None:
    if pair.host.uid == 0:
        pytest.skip("needs a host that is used as an ordinary user")
    for number in (1, 10):
        pair.plant({str(each): b"newer" for each in range(number)})
        pair.plant_there({"0": b"old"})
        pair.remote.chmod(0o555)
        response = await pair.run()
        assert (response["value"], response["changed"]) == ("SFTPPermissionDenied", False), number
        assert grown(pair.remote) == {"0": b"old"}
        pair.remote.chmod(0o755)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"localpath": ""}, "cannot be empty"),
        ({"remotepath": "a\0b"}, "NUL"),
        ({"exclude": "x"}, "exclude"),
        ({"exclude": [3]}, "exclude"),
        ({"delete": "perhaps"}, "delete"),
    ],
)
def test_what_cannot_be_asked_for(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Sync(**{"localpath": "a", "remotepath": "b", **options})
    assert complaint in str(caught.value)


# Hosts that lack something

TOOLS = ["sh", "env", "xargs", "find", "sha256sum", "tar"]

GREETING = "echo welcome; echo problem >&2\n"


@dataclass
class Machine:
    """A server whose commands are only those that a test chooses."""

    server: UserSshd
    tools: Path

    def choose(self, *names: str, **scripts: str) -> None:
        """Let the host have these tools of this machine, and these scripts."""
        shutil.rmtree(self.tools, ignore_errors=True)
        self.tools.mkdir()
        self.tools.chmod(0o755)
        for name in names:
            (self.tools / name).symlink_to(str(shutil.which(name)))
        for name, text in scripts.items():
            (self.tools / name).write_text(f"#!/bin/sh\n{text}\n")
            (self.tools / name).chmod(0o755)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A server whose PATH is one directory."""
    if reason := why_no_user_sshd():
        pytest.skip(f"OpenSSH: {reason}")
    directory = tmp_path_factory.mktemp("sshd") / "bare"
    tools = directory / "server" / "tools"
    with UserSshd(directory, {"SetEnv": f"PATH={tools}"}) as server:
        yield Machine(server, tools)


@pytest.fixture
async def bare_host(bare: Machine, nothing_left: None) -> AsyncIterator[Hosted]:
    root = bare.server.served / "folder"
    root.mkdir()
    if os.geteuid() == 0:
        os.chown(root, bare.server.uid, bare.server.uid)
    bare.choose(*TOOLS)
    inventory = Inventory.of({"hosts": [{"connection": bare.server.connection()}]})
    async with Pool() as pool:
        yield Hosted("bare", root, str(root), bare.server.uid, inventory, pool)
    shutil.rmtree(root)


@pytest.fixture
def bare_pair(bare_host: Hosted, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(bare_host, tmp_path_factory.mktemp("local"), bare_host.root / "remote")


async def whole_story(pair: Pair) -> None:
    """All that synchronizing can be asked for, in short."""
    names = [os.fsdecode(name) for name in ODD]
    pair.plant({**TREE, **{f"odd/{name}": os.fsencode(name) for name in names}})
    assert "added" in await pair.sync()
    pair.check()
    assert await pair.sync() == {}
    os.utime(pair.local / "file", (OLD_TIME, OLD_TIME))
    assert await pair.sync() == {}
    assert await pair.sync(checksum=True) == {}
    (pair.local / "odd" / names[2]).write_bytes(b"other")
    (pair.local / "file").write_bytes(b"longer")
    (pair.local / "nothing").chmod(0o600)
    pair.replace("sub", b"file")
    report = await pair.sync(delete=True)
    assert set(report["changed"]) == {f"odd/{names[2]}", "file", "nothing", "sub"}
    pair.check()
    await pair.host.run(Put(localpaths=pair.local / "file", remotepath=pair.host.path("remote/file"), checksum=True))
    assert await pair.sync(checksum=True, delete=True) == {}
    assert pair.host.names() == ["remote"]


LACKING: dict[str, Callable[[Machine], None]] = {
    "nothing": lambda machine: machine.choose(*TOOLS),
    "tar": lambda machine: machine.choose(*TOOLS[:-1]),
    "find": lambda machine: machine.choose("sh", "env", "xargs", "sha256sum", "tar"),
    "sha256sum": lambda machine: machine.choose("sh", "env", "xargs", "find", "tar"),
    "xargs": lambda machine: machine.choose("sh", "env", "find", "sha256sum", "tar"),
    "everything": lambda machine: machine.choose("sh", "env"),
    "even a shell": lambda machine: machine.choose(),
    "the printf of GNU find": lambda machine: machine.choose(
        "sh", "env", "xargs", "sha256sum", "tar", find='echo "find: unrecognized: -printf" >&2; exit 1'
    ),
    "the formats of GNU find": lambda machine: machine.choose(
        "sh", "env", "xargs", "sha256sum", "tar", find="printf './file\\n'"
    ),
    "the -0 of xargs": lambda machine: machine.choose(
        "sh", "env", "find", "sha256sum", "tar", xargs='echo "xargs: unrecognized option: 0" >&2; exit 1'
    ),
    "the -b of sha256sum": lambda machine: machine.choose(
        "sh", "env", "find", "xargs", "tar", sha256sum='echo "sha256sum: unrecognized option: b" >&2; exit 1'
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("lacking", list(LACKING))
async def test_a_host_without(bare_pair: Pair, bare: Machine, lacking: str) -> None:
    LACKING[lacking](bare)
    await whole_story(bare_pair)


@pytest.mark.slow
@pytest.mark.parametrize("is_new", [True, False])
async def test_a_tar_that_fails(bare_pair: Pair, bare: Machine, is_new: bool) -> None:
    pair = bare_pair
    bare.choose("sh", "env", "find", "xargs", "sha256sum", tar='head -c 3 >/dev/null; echo "tar: so sad" >&2; exit 2')
    (bare.tools / "head").symlink_to(str(shutil.which("head")))
    if not is_new:
        pair.plant_there({"0": b"old"})
    pair.plant({str(number): b"newer" for number in range(10)})
    response = await pair.run()
    assert (response["value"], response["error"]) == ("CommandFailed", True)
    assert "so sad" in response["detail"] + response["completed"]["stderr"]
    assert pair.host.names() == ([] if is_new else ["remote"])
    assert is_new or grown(pair.remote) == {"0": b"old"}


@pytest.mark.slow
async def test_a_remote_umask_changes_nothing(bare_pair: Pair, bare: Machine) -> None:
    bare.choose("env", "find", "xargs", "sha256sum", "tar", sh='umask 077; exec /bin/sh "$@"')
    await whole_story(bare_pair)


@pytest.mark.slow
async def test_what_start_up_files_print_is_no_answer(
    tmp_path_factory: pytest.TempPathFactory, nothing_left: None
) -> None:
    """R13: bash reads ~/.bashrc for commands over SSH, too."""
    if reason := why_no_user_sshd():
        pytest.skip(f"OpenSSH: {reason}")
    if os.geteuid() != 0:
        pytest.skip("needs root, for a user whose start-up files the test may write")
    directory = tmp_path_factory.mktemp("sshd")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(UserSshd(directory / "noisy", shell="/bin/bash"))
        for name in (".bashrc", ".profile", ".bash_profile"):
            (server.home / name).write_text(GREETING)
        root = server.served / "folder"
        root.mkdir()
        os.chown(root, server.uid, server.uid)
        inventory = Inventory.of({"hosts": [{"connection": server.connection()}]})
        async with Pool() as pool:
            host = Hosted("noisy", root, str(root), server.uid, inventory, pool)
            response = await host.run(Shell(cmd="true"))
            assert response.value.stdout == "welcome\n", "the noise is there"
            await whole_story(Pair(host, tmp_path_factory.mktemp("local"), root / "remote"))
