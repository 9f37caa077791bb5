"""Transfers to hosts, from them and on them: whole or not at all, and nothing left behind."""

from __future__ import annotations

import inspect
import os
import random
import re
import shutil
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from reemote.core.errors import HostError
from reemote.core.inventory import InventoryItem
from reemote.core.operation import Operation
from reemote.execute import Pool, execute
from reemote.inventory import Inventory
from reemote.sftp import Chdir, Copy, Get, Mcopy, Mget, Mput, Put, Remove
from reemote.testing import Fake, sandbox
from tests.openssh import RootWorld
from tests.sftp.conftest import KINDS, Hosted
from tests.sftp.test_questions import ODD

BIG = random.Random(2).randbytes(1_500_000)
OLD_TIME = 1_234_567_890

Tree = Mapping[str, bytes | str | None]
"""Paths and what is there: the content of a file, the target of a link, or nothing for a directory."""

EVERY = pytest.mark.parametrize("kind", KINDS)
"""Also the external server, which is the same program as the internal one, started otherwise."""


def plant(folder: Path, tree: Tree, uid: int | None = None) -> None:
    """Make a tree in a folder, for a user."""
    for name, content in tree.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir(exist_ok=True)
        elif isinstance(content, str):
            path.symlink_to(content)
        else:
            path.write_bytes(content)
    if uid is not None and os.geteuid() == 0:
        for path in [folder, *folder.rglob("*")]:
            os.lchown(path, uid, uid)


def grown(folder: Path) -> dict[str, bytes | str | None]:
    """Give the tree that is in a folder."""
    found: dict[str, bytes | str | None] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_dir():
            found[name] = None
        else:
            found[name] = path.read_bytes() if path.is_file() else b"special"
    return found


def mode(path: Path) -> int:
    return path.lstat().st_mode & 0o7777


def held(path: Path) -> int:
    """Bytes that a file takes on the disk."""
    return path.stat().st_blocks * 512


@dataclass
class Way:
    """One of the three directions: from a folder that the tests see to another."""

    name: str
    host: Hosted
    source: Path
    target: Path
    uid: int
    """Whom the target is for."""
    source_uid: int
    source_where: str
    target_where: str

    def plant(self, tree: Tree) -> None:
        plant(self.source, tree, self.source_uid)

    def plant_at_target(self, tree: Tree) -> None:
        plant(self.target, tree, self.uid)

    def from_(self, name: str = "") -> str:
        return f"{self.source_where}/{name}" if name else self.source_where

    def to(self, name: str = "") -> str:
        return f"{self.target_where}/{name}" if name else self.target_where

    def operation(self, names: str | list[str], to: str, *, expand: bool = False, **options: Any) -> Operation[Any]:
        paths = self.from_(names) if isinstance(names, str) else [self.from_(name) for name in names]
        path = self.to(to)
        if self.name == "put":
            return (Mput if expand else Put)(localpaths=paths, remotepath=path, **options)
        if self.name == "get":
            return (Mget if expand else Get)(remotepaths=paths, localpath=path, **options)
        return (Mcopy if expand else Copy)(srcpaths=paths, dstpath=path, **options)

    async def copy(self, names: str | list[str], to: str = "", **options: Any) -> bool:
        return await self.host.changed(self.operation(names, to, **options))

    async def fail(self, names: str | list[str], to: str = "", *, changed: bool = False, **options: Any) -> Any:
        return await self.host.failure(self.operation(names, to, **options), changed=changed)

    def missing(self, *, at_source: bool) -> str:
        """What a file that is not there is called."""
        is_local = self.name == ("put" if at_source else "get")
        return "FileNotFoundError" if is_local else "SFTPNoSuchFile"


@pytest.fixture(params=["fake", "sandbox", pytest.param("internal-sftp", marks=pytest.mark.slow)])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def make_way(name: str, host: Hosted, local: Path) -> Way:
    """Make the two folders of a direction."""
    ends = [(host.folder(f"{name}-{end}"), host.path(f"{name}-{end}"), host.uid) for end in ("from", "to")]
    me = os.geteuid()
    if name == "put":
        ends[0] = (local, str(local), me)
    elif name == "get":
        ends[1] = (local, str(local), me)
    (source, source_where, source_uid), (target, target_where, uid) = ends
    return Way(name, host, source, target, uid, source_uid, source_where, target_where)


@pytest.fixture
def way(direction: str, host: Hosted, tmp_path_factory: pytest.TempPathFactory) -> Way:
    return make_way(direction, host, tmp_path_factory.mktemp("local"))


def each_way(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Let a test of one direction be one of all three, which is quicker than three tests."""

    async def tested(host: Hosted, tmp_path_factory: pytest.TempPathFactory, **arguments: Any) -> None:
        for name in ("put", "get", "copy"):
            try:
                await test(way=make_way(name, host, tmp_path_factory.mktemp("local")), **arguments)
            except BaseException as error:
                error.add_note(f"the direction is {name}")
                raise

    given = [parameter for name, parameter in inspect.signature(test).parameters.items() if name != "way"]
    names = ("host", "tmp_path_factory")
    own = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    tested.__name__, tested.__doc__ = test.__name__, test.__doc__
    tested.__signature__ = inspect.Signature([*own, *given])  # type: ignore[attr-defined]
    tested.pytestmark = getattr(test, "pytestmark", [])  # type: ignore[attr-defined]
    return tested


# Files


@EVERY
@each_way
async def test_a_new_file(way: Way) -> None:
    for name, content in {"a": b"", "b": b"x", "c": b"content\n", "d": BIG}.items():
        way.plant({name: content})
        assert await way.copy(name, name * 2)
        assert (way.target / (name * 2)).read_bytes() == content
        assert mode(way.target / (name * 2)) == 0o644
        assert (way.target / (name * 2)).stat().st_uid == way.uid
    assert sorted(grown(way.target)) == ["aa", "bb", "cc", "dd"]


@EVERY
@each_way
async def test_a_file_that_is_replaced_keeps_its_mode(way: Way) -> None:
    way.plant({"a": BIG})
    way.plant_at_target({"b": b"old"})
    (way.target / "b").chmod(0o640)
    before = (way.target / "b").stat()
    assert await way.copy("a", "b")
    after = (way.target / "b").stat()
    assert grown(way.target) == {"b": BIG}
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert after.st_ino != before.st_ino


@each_way
async def test_who_has_the_old_file_open_goes_on_reading_it(way: Way) -> None:
    way.plant({"a": b"new"})
    way.plant_at_target({"b": b"old content"})
    with (way.target / "b").open("rb", buffering=0) as reader:
        assert reader.read(3) == b"old"
        assert await way.copy("a", "b")
        assert reader.read() == b" content"


@each_way
async def test_set_user_id_stays(way: Way) -> None:
    way.plant({"a": b"new"})
    way.plant_at_target({"b": b"old"})
    (way.target / "b").chmod(0o6711)
    await way.copy("a", "b")
    assert mode(way.target / "b") == 0o6711


@EVERY
@each_way
async def test_in_place(way: Way) -> None:
    way.plant({"a": b"shorter"})
    way.plant_at_target({"b": b"the old content"})
    (way.target / "b").chmod(0o640)
    os.link(way.target / "b", way.target / "other")
    before = (way.target / "b").stat()
    assert await way.copy("a", "b", in_place=True)
    assert (way.target / "b").stat().st_ino == before.st_ino
    assert grown(way.target) == {"b": b"shorter", "other": b"shorter"}
    assert mode(way.target / "b") == 0o640
    assert await way.copy("a", "new", in_place=True)
    assert (way.target / "new").read_bytes() == b"shorter"


@each_way
async def test_a_link_is_written_through(way: Way) -> None:
    way.plant({"a": b"new"})
    way.plant_at_target({"real/file": b"", "link": "real/hop", "real/hop": "../real/file"})
    for in_place in (False, True):
        (way.target / "real/file").write_bytes(b"old")
        (way.target / "real/file").chmod(0o600)
        assert await way.copy("a", "link", in_place=in_place)
        expected = {"real": None, "real/file": b"new", "link": "real/hop", "real/hop": "../real/file"}
        assert grown(way.target) == expected
        assert mode(way.target / "real/file") == 0o600


@each_way
async def test_a_link_that_leads_nowhere_yet(way: Way) -> None:
    way.plant({"a": b"new"})
    way.plant_at_target({"link": "file"})
    assert await way.copy("a", "link")
    assert grown(way.target) == {"link": "file", "file": b"new"}


@each_way
async def test_links_in_a_circle_are_no_place(way: Way) -> None:
    way.plant({"a": b"new"})
    way.plant_at_target({"x": "y", "y": "x"})
    await way.fail("a", "x")
    assert grown(way.target) == {"x": "y", "y": "x"}


@each_way
async def test_into_a_directory(way: Way) -> None:
    way.plant({"a": b"1", "b": b"2", "sub/c": b"3"})
    way.plant_at_target({"into": None, "to-into": "into"})
    assert await way.copy("a", "into")
    assert await way.copy(["b", "sub/c"], "to-into/")
    assert grown(way.target) == {"into": None, "into/a": b"1", "into/b": b"2", "into/c": b"3", "to-into": "into"}


@each_way
async def test_several_files_need_a_directory(way: Way) -> None:
    way.plant({"a": b"1", "b": b"2"})
    response = await way.fail(["a", "b"], "c")
    assert response["detail"] == f"{way.to('c')} must be a directory, for several files"
    way.plant_at_target({"c": b"old"})
    await way.fail(["a", "b"], "c")
    response = await way.fail("a", "c/")
    assert response["detail"] == f"{way.to('c/')} is not a directory"
    await way.fail("a", "d/")
    assert grown(way.target) == {"c": b"old"}


@each_way
async def test_what_is_not_there(way: Way) -> None:
    way.plant({"a": b"1"})
    response = await way.fail("no")
    assert response["value"] == way.missing(at_source=True)
    assert way.from_("no") in response["detail"]
    response = await way.fail("a", "no/where")
    assert response["value"] == way.missing(at_source=False)
    assert way.to("no/where") in response["detail"]
    await way.fail(["a", "no"])
    assert grown(way.target) == {}, "what is missing is found before anything is copied"


@each_way
async def test_a_file_is_no_directory(way: Way) -> None:
    way.plant({"a": b"1"})
    way.plant_at_target({"file": b"old"})
    await way.fail("a", "file/b")
    assert grown(way.target) == {"file": b"old"}


@each_way
async def test_what_is_no_file(way: Way) -> None:
    way.plant({"folder": None})
    os.mkfifo(way.source / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(way.source / "socket"))
        response = await way.fail("socket", "x")
    assert response["detail"] == f"{way.from_('socket')} is no file, directory or symbolic link"
    await way.fail("pipe", "x")
    response = await way.fail("folder", "x")
    assert response["detail"] == f"{way.from_('folder')} is a directory: recurse=True copies it"
    assert grown(way.target) == {}


@each_way
async def test_a_directory_is_not_replaced_by_a_file(way: Way) -> None:
    way.plant({"a": b"1"})
    way.plant_at_target({"into/a/b": b"old"})
    await way.fail("a", "into")
    assert grown(way.target) == {"into": None, "into/a": None, "into/a/b": b"old"}


@each_way
async def test_odd_names(way: Way) -> None:
    names = [os.fsdecode(name) for name in ODD]
    way.plant({f"top/{name}": os.fsencode(name) for name in names})
    way.plant({f"links/{number}": name for number, name in enumerate(names)})
    way.plant_at_target({"one": None})
    assert await way.copy([f"top/{name}" for name in names], "one")
    assert grown(way.target / "one") == grown(way.source / "top")
    assert await way.copy("top", "tree", recurse=True)
    assert grown(way.target / "tree") == grown(way.source / "top")
    assert await way.copy("links", "links", recurse=True)
    assert grown(way.target / "links") == grown(way.source / "links")


@each_way
async def test_names_as_long_as_they_may_be(way: Way) -> None:
    name = "n" * 255
    way.plant({name: b"new"})
    assert await way.copy(name)
    assert await way.copy(name, name)
    assert grown(way.target) == {name: b"new"}


# Directories


TREE: Tree = {
    "empty": None,
    "file": b"file",
    "nothing": b"",
    "sub/deep/er": b"er" * 1000,
    "sub/link": "../file",
    "sub/sideways": "deep",
    "dangling": "nowhere",
}


def tree(prefix: str = "") -> dict[str, bytes | str | None]:
    whole = {"sub": None, "sub/deep": None, **TREE}
    return {f"{prefix}/{name}" if prefix else name: content for name, content in whole.items()}


@EVERY
@each_way
async def test_a_directory_with_all_that_is_in_it(way: Way) -> None:
    way.plant({f"top/{name}": content for name, content in TREE.items()})
    assert await way.copy("top", "new", recurse=True)
    assert grown(way.target / "new") == tree()
    assert await way.copy("top", "new", recurse=True)
    assert grown(way.target / "new") == {**tree(), "top": None, **tree("top")}
    assert await way.copy("top/", "slash/", recurse=True)
    assert grown(way.target / "slash") == tree()


@each_way
async def test_a_directory_into_one_that_has_some_of_it(way: Way) -> None:
    way.plant({f"top/{name}": content for name, content in TREE.items()})
    way.plant_at_target({"top/file": b"old", "top/other": b"other", "top/sub/link": "elsewhere", "top/sub/x": b"x"})
    assert await way.copy("top", recurse=True)
    more = {"top": None, "top/other": b"other", "top/sub/x": b"x"}
    assert grown(way.target) == {**tree("top"), **more}


@each_way
async def test_what_is_named_by_dots(way: Way) -> None:
    way.plant({"top/a": b"1"})
    way.plant_at_target({"into": None})
    assert await way.copy("top/.", "into", recurse=True)
    assert await way.copy("top/../top", "into/there", recurse=True)
    assert grown(way.target / "into") == {"top": None, "top/a": b"1", "there": None, "there/a": b"1"}


@each_way
@pytest.mark.parametrize("in_place", [False, True])
async def test_links_in_the_way_inside_a_directory_are_not_followed(way: Way, in_place: bool) -> None:
    """Whoever can make links in the target leads nobody to write elsewhere."""
    way.plant({"top/file": b"new", "top/sub/x": b"new"})
    way.plant_at_target({"top/file": "../precious", "precious": b"old", "far": None})
    assert await way.copy("top/file", "top") is True
    assert grown(way.target)["precious"] == b"new", "a link that is named itself is written through"
    (way.target / "precious").write_bytes(b"old")
    (way.target / "top/sub").symlink_to("../far")
    response = await way.fail("top", recurse=True, in_place=in_place, changed=False)
    assert response["detail"] == f"{way.to('top/sub')} is a symbolic link, where a directory is to be"
    (way.target / "top/sub").unlink()
    assert await way.copy("top", recurse=True, in_place=in_place)
    found = {"top": None, "top/file": b"new", "top/sub": None, "top/sub/x": b"new", "precious": b"old", "far": None}
    assert grown(way.target) == found


@EVERY
@each_way
async def test_what_is_new_gets_the_mode_less_the_umask(way: Way) -> None:
    """As with scp(1) and cp(1): programs stay programs, what nobody else may read stays so."""
    modes = {"top/program": 0o4777, "top/secret": 0o600, "top/plain": 0o664, "top/closed": 0o500, "top/wide": 0o2777}
    way.plant({"top/program": b"p", "top/secret": b"s", "top/plain": b"", "top/closed/x": b"x", "top/wide/y": b"y"})
    for name, permissions in modes.items():
        (way.source / name).chmod(permissions)
        os.utime(way.source / name, (OLD_TIME, OLD_TIME))
    await way.copy("top", recurse=True)
    expected = {"top/program": 0o755, "top/secret": 0o600, "top/plain": 0o644, "top/wide": 0o755}
    assert {name: oct(mode(way.target / name)) for name in expected} == {n: oct(m) for n, m in expected.items()}
    assert mode(way.target / "top/closed") & 0o077 == 0, "no one else may more than before"
    assert (way.target / "top/closed/x").read_bytes() == b"x"
    assert (way.target / "top/program").stat().st_mtime > OLD_TIME + 1000


@each_way
async def test_what_is_there_keeps_its_mode(way: Way) -> None:
    way.plant({"top/a": b"new", "top/sub/b": b"new"})
    for name in ("top/a", "top/sub"):
        (way.source / name).chmod(0o777)
    way.plant_at_target({"top/a": b"old", "top/sub/b": b"old"})
    for name, permissions in {"top/a": 0o600, "top/sub": 0o711, "top/sub/b": 0o640}.items():
        (way.target / name).chmod(permissions)
    await way.copy("top", recurse=True)
    assert mode(way.target / "top/a") == 0o600
    assert mode(way.target / "top/sub") == 0o711
    assert mode(way.target / "top/sub/b") == 0o640


@EVERY
@each_way
async def test_preserve(way: Way) -> None:
    way.plant({"top/file": BIG, "top/sub/empty": b"", "top/sub/link": "empty"})
    for name, permissions in {"top/file": 0o4751, "top/sub/empty": 0o600, "top/sub": 0o2750, "top": 0o711}.items():
        (way.source / name).chmod(permissions)
        os.utime(way.source / name, (OLD_TIME - 10, OLD_TIME))
    way.plant_at_target({"top/file": b"old"})
    assert await way.copy("top", recurse=True, preserve=True)
    for name in ("top", "top/file", "top/sub", "top/sub/empty"):
        assert mode(way.target / name) == mode(way.source / name), name
        assert int((way.target / name).stat().st_mtime) == OLD_TIME, name
    assert int((way.target / "top/file").stat().st_atime) == OLD_TIME - 10


@each_way
async def test_preserve_a_directory_that_may_not_be_written_to(way: Way) -> None:
    way.plant({"top/sub/file": b"x"})
    (way.source / "top/sub").chmod(0o555)
    assert await way.copy("top", recurse=True, preserve=True)
    assert mode(way.target / "top/sub") == 0o555
    assert (way.target / "top/sub/file").read_bytes() == b"x"


@each_way
async def test_follow_symlinks(way: Way) -> None:
    way.plant(
        {"top/sub/real": b"real", "top/file": "sub/real", "top/folder": "../else", "else/x": b"x", "to-top": "top"}
    )
    assert await way.copy("to-top", "new", recurse=True, follow_symlinks=True)
    found = {"sub": None, "sub/real": b"real", "file": b"real", "folder": None, "folder/x": b"x"}
    assert grown(way.target / "new") == found
    assert await way.copy("top/file", "one", follow_symlinks=True)
    assert (way.target / "one").read_bytes() == b"real"
    assert not (way.target / "one").is_symlink()


@each_way
async def test_links_that_lead_back_are_no_endless_tree(way: Way) -> None:
    every: list[Tree] = [{"up": "."}, {"a/up": ".."}, {"x": "y", "y": "x"}, {"a/b/up": "../../../3"}]
    for number, links in enumerate(every):
        top = str(number)
        way.plant({f"{top}/a/b/file": b"x", **{f"{top}/{name}": target for name, target in links.items()}})
        await way.fail(top, "new", recurse=True, follow_symlinks=True)
        assert grown(way.target) == {}
        errors: list[Exception] = []
        assert await way.copy(top, "new", recurse=True, follow_symlinks=True, error_handler=errors.append)
        assert len(errors) == len(links)
        assert grown(way.target / "new") == {"a": None, "a/b": None, "a/b/file": b"x"}
        shutil.rmtree(way.target / "new")


@each_way
async def test_a_directory_that_two_links_lead_to_is_copied_twice(way: Way) -> None:
    way.plant({"top/one": "../real", "top/two": "../real", "real/x": b"x"})
    assert await way.copy("top", "new", recurse=True, follow_symlinks=True)
    assert grown(way.target / "new") == {"one": None, "one/x": b"x", "two": None, "two/x": b"x"}


@each_way
async def test_a_link_that_is_there_already(way: Way) -> None:
    way.plant({"link": "a"})
    assert await way.copy("link", "new")
    assert not await way.copy("link", "new")
    (way.source / "link").unlink()
    way.plant({"link": "b"})
    assert await way.copy("link", "new")
    assert grown(way.target) == {"new": "b"}


# Patterns


@EVERY
@each_way
async def test_patterns(way: Way) -> None:
    way.plant({"a.conf": b"a", "b.conf": b"b", "c.txt": b"c", "d/e.conf": b"e", "d/f[1].conf": b"f"})
    way.plant_at_target({"one": None, "two": None, "three": None})
    assert await way.copy("*.conf", "one", expand=True)
    assert sorted(grown(way.target / "one")) == ["a.conf", "b.conf"]
    assert await way.copy(["?.txt", "*/e.*", "[ab].conf"], "two", expand=True)
    assert sorted(grown(way.target / "two")) == ["a.conf", "b.conf", "c.txt", "e.conf"]
    assert await way.copy("*", "three", expand=True, recurse=True, checksum=True)
    assert "d/e.conf" in grown(way.target / "three")


@each_way
async def test_patterns_and_odd_names(way: Way) -> None:
    way.plant({f"top/{os.fsdecode(name)}": name for name in ODD})
    way.plant_at_target({"into": None})
    assert await way.copy(["top/*"], "into", expand=True)
    assert grown(way.target / "into") == grown(way.source / "top")


@each_way
async def test_patterns_that_match_nothing(way: Way) -> None:
    way.plant({"a": b"a"})
    response = await way.fail(["a", "*.conf"], expand=True)
    assert response["value"] == way.missing(at_source=True)
    assert way.from_("*.conf") in response["detail"]
    assert grown(way.target) == {}


@each_way
async def test_without_patterns_names_are_names(way: Way) -> None:
    way.plant({"*": b"star", "other": b"other"})
    assert await way.copy("*", "star")
    assert grown(way.target) == {"star": b"star"}


# Content


@each_way
async def test_blocks_and_requests(way: Way) -> None:
    content = BIG[:150_001]
    way.plant({"a": content})
    for number, options in enumerate(
        [{"block_size": 1000, "max_requests": 3}, {"block_size": 2**30}, {"max_requests": 1}, {"block_size": 0}]
    ):
        assert await way.copy("a", str(number), **options)
        assert (way.target / str(number)).read_bytes() == content


@EVERY
@each_way
async def test_holes_stay_holes(way: Way) -> None:
    with (way.source / "a").open("wb") as file:
        file.write(b"start")
        file.seek(20 * 2**20)
        file.write(b"middle")
        file.truncate(40 * 2**20)
    way.plant({})
    assert await way.copy("a", "b")
    with (way.target / "b").open("rb") as file:
        assert file.read(6) == b"start\0"
        file.seek(20 * 2**20 - 1)
        assert file.read(8) == b"\0middle\0"
    assert (way.target / "b").stat().st_size == 40 * 2**20
    if way.name != "copy" or way.host.kind not in ("internal-sftp", "sftp-server"):
        # OpenSSH does not tell where holes are when it copies on the host.
        assert held(way.target / "b") < 4 * 2**20


@each_way
async def test_holes_are_filled_if_asked_for(way: Way) -> None:
    with (way.source / "a").open("wb") as file:
        file.truncate(4 * 2**20)
    way.plant({})
    assert await way.copy("a", "b", sparse=False)
    assert (way.target / "b").read_bytes() == bytes(4 * 2**20)
    assert held(way.target / "b") >= 4 * 2**20


@pytest.mark.parametrize("kind", ["sandbox", pytest.param("internal-sftp", marks=pytest.mark.slow)])
@pytest.mark.parametrize("direction", ["get", "copy"])
async def test_files_whose_size_is_not_told(way: Way, host: Hosted) -> None:
    path = way.to("version")
    operation = Get(remotepaths="/proc/version", localpath=path) if way.name == "get" else None
    assert await host.changed(operation or Copy(srcpaths="/proc/version", dstpath=path))
    assert (way.target / "version").read_bytes() == Path("/proc/version").read_bytes()


async def test_a_copy_of_a_file_onto_itself_keeps_it(host: Hosted) -> None:
    host.file("a", BIG)
    await host.run(Copy(srcpaths=host.path("a"), dstpath=host.path("a")))
    assert host.names() == ["a"]
    assert (host.root / "a").read_bytes() == BIG


# Progress and errors


@each_way
async def test_progress(way: Way) -> None:
    calls: list[tuple[bytes, bytes, int, int]] = []
    way.plant({"top/big": BIG, "top/empty": b""})
    await way.copy("top", "new", recurse=True, progress_handler=lambda *call: calls.append(call))
    names = {(way.from_(f"top/{name}").encode(), way.to(f"new/{name}").encode()) for name in ("big", "empty")}
    assert {call[:2] for call in calls} == names
    big = [call[2:] for call in calls if call[0].endswith(b"big")]
    done = [number for number, _ in big]
    assert done == sorted({*done})
    assert done[-1] == len(BIG)
    assert {size for _, size in big} == {len(BIG)}
    assert [call[2:] for call in calls if call[0].endswith(b"empty")] == [(0, 0)]


@each_way
async def test_progress_of_holes_ends_with_the_size(way: Way) -> None:
    calls: list[tuple[bytes, bytes, int, int]] = []
    size = 3 * 2**20
    way.plant({"a": bytes(size)})
    with (way.source / "b").open("wb") as file:
        file.truncate(size)
    way.plant({})
    await way.copy(["a", "b"], progress_handler=lambda *call: calls.append(call))
    for name in (b"/a", b"/b"):
        assert [call for call in calls if call[0].endswith(name)][-1][2:] == (size, size)


@each_way
async def test_what_a_progress_handler_raises_is_the_programmers(way: Way) -> None:
    way.plant({"a": BIG})
    way.plant_at_target({"b": b"old"})

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as caught:
        await way.copy("a", "b", progress_handler=fail)
    assert caught.group_contains(ZeroDivisionError)
    assert grown(way.target) == {"b": b"old"}


@each_way
async def test_an_error_handler_lets_the_others_follow(way: Way) -> None:
    errors: list[Any] = []
    way.plant({"top/a": b"a", "top/z": b"z", "top/m/x": b"x"})
    os.mkfifo(way.source / "top/pipe")
    way.plant({})
    way.plant_at_target({"top/m": b"a file is in the way"})
    assert await way.copy(["no", "top"], recurse=True, error_handler=errors.append)
    assert {"top/a": b"a", "top/z": b"z", "top/m": b"a file is in the way"}.items() <= grown(way.target).items()
    assert all(isinstance(error, HostError) for error in errors)
    told = {(error.srcpath, error.dstpath) for error in errors}
    assert (way.from_("top/pipe").encode(), way.to("top/pipe").encode()) in told
    assert (way.from_("top/m").encode(), way.to("top/m").encode()) in told
    assert way.from_("no").encode() in {source for source, _ in told}


@each_way
async def test_an_error_handler_may_end_it(way: Way) -> None:
    class MyError(Exception):
        pass

    def stop(error: Exception) -> None:
        raise MyError from error

    with pytest.raises(ExceptionGroup) as caught:
        await way.copy("no", error_handler=stop)
    assert caught.group_contains(MyError)


@each_way
async def test_after_a_failure_the_response_tells_what_changed(way: Way) -> None:
    way.plant({"top/a": b"a", "top/sub/b": b"b"})
    os.mkfifo(way.source / "top/sub/pipe")
    way.plant({})
    await way.fail("top", recurse=True, changed=True)
    assert not [name for name in grown(way.target) if "reemote" in name]


# Checksum


@EVERY
@each_way
async def test_what_is_the_same_is_left_alone(way: Way) -> None:
    way.plant({f"top/{name}": content for name, content in TREE.items()})
    assert await way.copy("top", recurse=True, checksum=True)
    inodes = {path: path.lstat().st_ino for path in way.target.rglob("*")}
    assert not await way.copy("top", recurse=True, checksum=True)
    assert {path: path.lstat().st_ino for path in way.target.rglob("*")} == inodes
    (way.source / "top/file").write_bytes(b"FILE")  # of the same size
    assert await way.copy("top", recurse=True, checksum=True)
    assert (way.target / "top/file").read_bytes() == b"FILE"
    changed = {path for path, inode in inodes.items() if path.lstat().st_ino != inode}
    assert changed == {way.target / "top/file"}


@each_way
async def test_the_same_content_through_a_link(way: Way) -> None:
    way.plant({"a": b"same"})
    way.plant_at_target({"real": b"same", "link": "real"})
    assert not await way.copy("a", "link", checksum=True)
    assert grown(way.target) == {"real": b"same", "link": "real"}


@each_way
async def test_checksums_of_odd_names(way: Way) -> None:
    names = [os.fsdecode(name) for name in ODD]
    way.plant({f"top/{name}": b"one" for name in names})
    assert await way.copy("top", recurse=True, checksum=True)
    assert not await way.copy("top", recurse=True, checksum=True)
    for name in names[::2]:
        (way.source / "top" / name).write_bytes(b"two")
    assert await way.copy("top", recurse=True, checksum=True)
    assert grown(way.target / "top") == grown(way.source / "top")
    assert not await way.copy("top", recurse=True, checksum=True)


@each_way
async def test_checksum_and_preserve(way: Way) -> None:
    way.plant({"top/a": b"same", "top/sub/b": b"same"})
    options: dict[str, Any] = {"recurse": True, "preserve": True, "checksum": True}
    assert await way.copy("top", **options)
    assert not await way.copy("top", **options)
    (way.source / "top/a").chmod(0o755)
    assert await way.copy("top", **options)
    assert mode(way.target / "top/a") == 0o755
    os.utime(way.source / "top/sub/b", (OLD_TIME, OLD_TIME))
    assert await way.copy("top", **options)
    assert int((way.target / "top/sub/b").stat().st_mtime) == OLD_TIME
    assert not await way.copy("top", **options)


# Each direction by itself


async def test_put_goes_where_logins_start(host: Hosted, tmp_path_factory: pytest.TempPathFactory) -> None:
    local = tmp_path_factory.mktemp("local")
    plant(local, {"reemote-test-file": b"x", "reemote-test-other": b"y"})
    paths = sorted(local.iterdir())
    try:
        assert await host.changed(Put(localpaths=paths))
        names = ["reemote-test-file", "reemote-test-other"]
        assert await host.changed(Get(remotepaths=names, localpath=tmp_path_factory.mktemp("back")))
    finally:
        for path in paths:
            assert await host.changed(Remove(path=path.name))


async def test_get_goes_to_the_current_directory(
    host: Hosted, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = tmp_path_factory.mktemp("local")
    monkeypatch.chdir(local)
    host.file("file", b"x")
    assert await host.changed(Get(remotepaths=host.path("file")))
    assert await host.changed(Get(remotepaths=host.path("file"), localpath="relative"))
    assert grown(local) == {"file": b"x", "relative": b"x"}


async def test_relative_paths_follow_chdir(host: Hosted, tmp_path_factory: pytest.TempPathFactory) -> None:
    local = tmp_path_factory.mktemp("local")
    plant(local, {"a": b"a"})
    host.folder("folder")

    class Root:
        async def execute(self) -> Any:
            yield Chdir(path=host.path("folder"))
            yield Put(localpaths=local / "a", remotepath="b")
            yield Copy(srcpaths="b", dstpath="c")
            yield Mcopy(srcpaths="?", dstpath=host.path())
            yield Get(remotepaths="c", localpath=local)

    assert not (await execute(Root, host.inventory, pool=host.pool)).failed
    assert grown(local) == {"a": b"a", "c": b"a"}
    assert host.names() == ["b", "c", "folder"]


@pytest.mark.parametrize("direction", ["get"])
async def test_the_umask_of_this_machine_holds(way: Way) -> None:
    os.umask(0o077)
    way.plant({"top/a": b"a"})
    assert await way.copy("top", "new", recurse=True)
    assert (mode(way.target / "new"), mode(way.target / "new/a")) == (0o700, 0o600)


@pytest.mark.parametrize("direction", ["get"])
async def test_links_out_of_the_directory_are_refused(way: Way) -> None:
    links = {
        "a/link": "/etc/passwd",
        "b/link": "..",
        "c/link": "../other",
        "d/link": "sub/../../other",
        "e/link": "./../other",
        "f/sub/link": "../../other",
        "g/sub/link": "/",
    }
    for name, target in links.items():
        top, _, rest = name.partition("/")
        way.plant({f"{top}/sub": None, name: target})
        response = await way.host.run(way.operation(top, "", recurse=True))
        assert (response["value"], response["error"]) == ("SFTPBadMessage", True), name
        assert way.from_(name) in response["detail"]
        assert "follow_symlinks=True" in response["detail"]
        assert rest not in grown(way.target / top)


@pytest.mark.parametrize("direction", ["get"])
async def test_links_that_lead_out_only_together_are_refused(way: Way) -> None:
    for top, links in {
        "1": {"a/b/s": "../..", "t": "a/b/s/.."},
        "2": {"s": ".", "t": "s/x/..", "u": "s/s/../.."},
    }.items():
        planted = {f"{top}/{name}": target for name, target in links.items()}
        way.plant({f"{top}/a/b": None, f"{top}/x": None, **planted})
        await way.host.run(way.operation(top, "", recurse=True, error_handler=lambda error: None))
        copied = (way.target / top).resolve()
        for path in copied.rglob("*"):
            assert path.resolve().is_relative_to(copied), f"{path} leads to {path.resolve()}"


@pytest.mark.parametrize("direction", ["put", "copy"])
async def test_links_out_of_the_directory_are_copied_to_hosts(way: Way) -> None:
    way.plant({"top/sub/a": "/etc/passwd", "top/b": "../../else"})
    assert await way.copy("top", recurse=True)
    assert grown(way.target / "top") == {"sub": None, "sub/a": "/etc/passwd", "b": "../../else"}


@pytest.mark.parametrize("direction", ["copy"])
async def test_the_host_copies_by_itself(way: Way) -> None:
    way.plant({"top/a": BIG, "top/empty": b""})
    assert await way.copy("top", recurse=True, remote_only=True)
    assert grown(way.target / "top") == {"a": BIG, "empty": b""}


# Several hosts


def fleet() -> Fake:
    fake = Fake("web1", "web2", InventoryItem.model_validate({"connection": {"host": "db/1"}, "groups": ["db"]}))
    for number, name in enumerate(("web1", "web2", "db/1")):
        plant(fake.files(name), {"etc/motd": str(number).encode(), "etc/issue": b"x"})
    return fake


@pytest.mark.parametrize("operation", [Get, Mget])
@pytest.mark.parametrize("path", ["copy", None, "{HOST}"])
async def test_hosts_do_not_overwrite_each_others_files(
    operation: type[Get], path: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fake = fleet()
    responses = await execute(lambda: operation(remotepaths="/etc/motd", localpath=path), fake.inventory, pool=fake)
    found = [(r["value"], r["error"], r["outcome"], r["changed"]) for r in responses]
    assert found == [("FileExistsError", True, "not_started", False)] * 3
    assert "{host}" in responses[0]["detail"]
    assert grown(tmp_path) == {}


async def test_a_place_for_each_host(tmp_path: Path) -> None:
    fake = fleet()
    responses = await execute(
        lambda: Get(remotepaths="/etc/motd", localpath=tmp_path / "{host}.motd"), fake.inventory, pool=fake
    )
    assert not responses.failed
    assert grown(tmp_path) == {"web1.motd": b"0", "web2.motd": b"1", "db_1.motd": b"2"}


async def test_directories_for_each_host(tmp_path: Path) -> None:
    fake = fleet()
    responses = await execute(
        lambda: Get(remotepaths="/etc", localpath=str(tmp_path / "{host}"), recurse=True), fake.inventory, pool=fake
    )
    assert not responses.failed
    assert grown(tmp_path / "web2") == {"motd": b"1", "issue": b"x"}
    responses = await execute(
        lambda: Mget(remotepaths="/etc/*", localpath=os.fsencode(tmp_path) + b"/{host}"), fake.inventory, pool=fake
    )
    assert not responses.failed


async def test_one_host_of_many_needs_no_place_of_its_own(tmp_path: Path) -> None:
    fake = fleet()
    for choice in ({"limit": "web2"}, {"group": "db"}):
        limit = choice.pop("limit", None)
        responses = await execute(
            lambda choice=choice: Get(remotepaths="/etc/motd", localpath=tmp_path / "copy", **choice),  # type: ignore[misc]
            fake.inventory,
            pool=fake,
            limit=limit,
        )
        assert not responses.failed
    assert grown(tmp_path) == {"copy": b"2"}


async def test_one_file_to_many_hosts(tmp_path: Path, nothing_left: None) -> None:
    plant(tmp_path, {"a": BIG})
    async with sandbox("a", "b", "c") as hosts, Pool() as pool:
        responses = await execute(lambda: Put(localpaths=tmp_path / "a", remotepath="copy"), hosts, pool=pool)
        assert len(responses.changed) == 3
        for _ in range(2):
            local = tmp_path / "{host}"
            responses = await execute(lambda: Get(remotepaths="copy", localpath=local), hosts, pool=pool)
            assert not responses.failed
    assert grown(tmp_path) == dict.fromkeys("abc", BIG) | {"a": BIG}


# What needs another user


@pytest.mark.slow
async def test_root_keeps_owners(world: RootWorld, tmp_path: Path) -> None:
    """A file of another user stays the file of that user."""
    machine = world["server104"]
    plant(tmp_path, {"a": b"new"})
    folder = machine.path("/tmp/owners")
    plant(folder, {"file": b"old", "in-place": b"old"})
    for path in folder.iterdir():
        os.chown(path, 1000, 12)
        path.chmod(0o4750)
    options = {**machine.connection(), "host": machine.address}
    folder.chmod(0o777)
    try:
        with world.network():
            hosts = Inventory.of({"hosts": [{"connection": options}]})
            async with Pool() as pool:
                # The user may not give a file to a group that it is not in.
                response = (
                    await execute(
                        lambda: Put(localpaths=tmp_path / "a", remotepath="/tmp/owners/file"), hosts, pool=pool
                    )
                )[0]
                assert (response["value"], response["changed"]) == ("SFTPPermissionDenied", False)
                assert "in_place=True" in response["detail"]
                assert sorted(path.name for path in folder.iterdir()) == ["file", "in-place"]
                assert (folder / "file").read_bytes() == b"old"
                response = (
                    await execute(
                        lambda: Put(localpaths=tmp_path / "a", remotepath="/tmp/owners/in-place", in_place=True),
                        hosts,
                        pool=pool,
                    )
                )[0]
                assert not response["error"], response
        found = (folder / "in-place").stat()
        assert (found.st_uid, found.st_gid, (folder / "in-place").read_bytes()) == (1000, 12, b"new")
    finally:
        assert machine.run(["rm", "-rf", "/tmp/owners"]).returncode == 0


@pytest.mark.slow
async def test_owners_are_kept_where_the_user_may_give_files_away(make_world: Any, tmp_path: Path) -> None:
    world: RootWorld = make_world("server104", users={"root": "secret"}, PermitRootLogin=True)
    machine = world["server104"]
    plant(tmp_path, {"a": b"new", "top/a": b"new"})
    folder = machine.path("/tmp/owners")
    plant(folder, {"file": b"old", "top/a": b"old", "top/b": b"old"})
    for path in folder.rglob("*"):
        os.chown(path, 1000, 12)
    (folder / "file").chmod(0o4750)
    options = {**machine.connection(), "host": machine.address, "username": "root", "password": "secret"}
    with world.network():
        hosts = Inventory.of({"hosts": [{"connection": options}]})
        async with Pool() as pool:
            for operation in (
                Put(localpaths=tmp_path / "a", remotepath="/tmp/owners/file"),
                Put(localpaths=tmp_path / "top", remotepath="/tmp/owners", recurse=True),
                Copy(srcpaths="/tmp/owners/file", dstpath="/tmp/owners/top/b"),
            ):
                response = (await execute(lambda operation=operation: operation, hosts, pool=pool))[0]  # type: ignore[misc]
                assert not response["error"], response
    for name in ("file", "top/a", "top/b"):
        found = (folder / name).stat()
        assert (found.st_uid, found.st_gid, (folder / name).read_bytes()) == (1000, 12, b"new"), name
    assert mode(folder / "file") == 0o4750


async def test_a_local_file_of_another_user_keeps_it(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to give files to other users")
    fake = Fake("a")
    plant(fake.files("a"), {"file": b"new"})
    plant(tmp_path, {"file": b"old"})
    os.chown(tmp_path / "file", 1234, 4321)
    (tmp_path / "file").chmod(0o2640)
    response = (
        await execute(lambda: Get(remotepaths="/file", localpath=tmp_path / "file"), fake.inventory, pool=fake)
    )[0]
    assert not response["error"], response
    found = (tmp_path / "file").stat()
    assert (found.st_uid, found.st_gid, mode(tmp_path / "file")) == (1234, 4321, 0o2640)
    assert (tmp_path / "file").read_bytes() == b"new"


# What cannot be asked for


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Put(localpaths=[]), "at least one path"),
        (lambda: Put(localpaths=""), "cannot be empty"),
        (lambda: Put(localpaths="a\0b"), "NUL"),
        (lambda: Put(localpaths="\ud800"), "half a character"),
        (lambda: Put(localpaths=3), "path"),  # type: ignore[arg-type]
        (lambda: Get(remotepaths=["a", ""]), "cannot be empty"),
        (lambda: Get(remotepaths="a", localpath=""), "cannot be empty"),
        (lambda: Copy(srcpaths="a", dstpath=b"\0"), "NUL"),
        (lambda: Put(localpaths="a", block_size=-2), "block_size"),
        (lambda: Put(localpaths="a", max_requests=-2), "max_requests"),
        (lambda: Put(localpaths="a", nonsense=True), "nonsense"),  # type: ignore[call-arg]
        (lambda: Put(localpaths="a", progress_handler=3), "progress_handler"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_asked_for(make: Callable[[], Operation[Any]], complaint: str) -> None:
    with pytest.raises(ValidationError) as caught:
        make()
    assert re.search(complaint, str(caught.value))
