"""Changes of files, on every kind of host: what is done, and whether ``changed`` is the truth."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from reemote.execute import execute
from reemote.sftp import (
    Chdir,
    Chmod,
    Chown,
    Directory,
    Link,
    Makedirs,
    Mkdir,
    Remove,
    Rename,
    Rmdir,
    Rmtree,
    Setstat,
    Symlink,
    Truncate,
    Unlink,
    Utime,
    Write,
)
from tests.sftp.conftest import Hosted
from tests.sftp.test_questions import ODD

HERE = pytest.mark.parametrize("kind", ["sandbox", pytest.param("internal-sftp", marks=pytest.mark.slow)])
ATIME, MTIME = 1_000_000_001, 1_234_567_890


def times(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return int(found.st_atime), int(found.st_mtime)


# Directories


async def test_mkdir(host: Hosted) -> None:
    assert await host.changed(Mkdir(path=host.path("plain")))
    assert host.mode("plain") == 0o755
    response = await host.failure(Mkdir(path=host.path("plain")))
    assert response["value"] == "SFTPFailure"
    assert (await host.failure(Mkdir(path=host.path("no/where"))))["value"] == "SFTPNoSuchFile"


@pytest.mark.parametrize("permissions", [0o777, 0o1777, 0o2775, 0o700, 0, "0750", "750", "0o750"])
async def test_permissions_are_exact_whatever_the_umask(host: Hosted, permissions: Any) -> None:
    expected = int(permissions, 8) if isinstance(permissions, str) else permissions
    for number, operation in enumerate((Mkdir, Makedirs, lambda **more: Directory(present=True, **more))):
        path = host.path(str(number))
        assert await host.changed(operation(path=path, permissions=permissions))  # type: ignore[operator]
        assert host.mode(str(number)) == expected
        assert not await host.changed(Directory(path=path, present=True, permissions=permissions))


async def test_owner_and_times_of_a_new_directory(host: Hosted) -> None:
    more: dict[str, Any] = {"atime": ATIME, "mtime": MTIME, "uid": host.uid}
    for name, operation in {
        "1": Mkdir(path=host.path("1"), **more),
        "2/3": Makedirs(path=host.path("2/3"), **more),
    }.items():
        assert await host.changed(operation)
        assert times(host.root / name) == (ATIME, MTIME)
    assert times(host.root / "2") == (ATIME, MTIME)


async def test_what_is_done_counts_as_changed_though_the_rest_fails(host: Hosted) -> None:
    if host.uid == 0:
        return  # nothing is refused to root
    response = await host.failure(Mkdir(path=host.path("new"), uid=host.uid + 1), changed=True)
    assert response["value"] == "SFTPPermissionDenied"
    assert host.names() == ["new"]
    response = await host.failure(Setstat(path=host.path("new"), permissions=0o700, uid=host.uid + 1))
    assert host.mode("new") == 0o755


async def test_makedirs(host: Hosted) -> None:
    path = host.path("a/b/c")
    assert await host.changed(Makedirs(path=path + "//"))
    response = await host.failure(Makedirs(path=path))
    assert (response["value"], response["detail"]) == ("SFTPFailure", f"{path} exists already")
    assert not await host.changed(Makedirs(path=path, exist_ok=True, permissions=0o700))
    assert host.mode("a/b/c") == 0o755, "what is there stays as it is"
    assert await host.changed(Makedirs(path=host.path("a/b/d/e"), exist_ok=True, permissions=0o500))
    assert [host.mode(name) for name in ("a/b", "a/b/d", "a/b/d/e")] == [0o755, 0o500, 0o500]
    assert await host.changed(Makedirs(path=host.path("x/../y/./z")))
    assert (host.root / "y/z").is_dir()


@pytest.mark.parametrize("operation", [Makedirs, lambda path: Directory(path=path, present=True)])
async def test_what_is_in_the_way_of_a_directory(host: Hosted, operation: Callable[..., Any]) -> None:
    host.file("file")
    host.link("to file", "file")
    host.link("dangling", "nowhere")
    for name, complaint in {
        "file": "file is a file, not a directory",
        "to file": "to file is a file, not a directory",
        "file/sub": "file is a file, not a directory",
        "file/sub/sub": "file is a file, not a directory",
        "dangling": "dangling is a symbolic link that leads nowhere",
        "dangling/sub": "dangling is a symbolic link that leads nowhere",
    }.items():
        response = await host.failure(operation(path=host.path(name)))
        assert response["value"] == "SFTPFailure"
        assert response["detail"].startswith(host.path(complaint)), response
    assert host.names() == ["dangling", "file", "to file"]


async def test_relative_directories(host: Hosted) -> None:
    class Root:
        async def execute(self) -> Any:
            yield Chdir(path=host.path())
            for step in (
                Makedirs(path="a/b"), Directory(path="c", present=True), Mkdir(path="-d"), Makedirs(path="~/e"),
                Directory(path="c", present=False), Rmtree(path="a"), Write(path="f", text="x"),
            ):  # fmt: skip
                response = yield step
                assert response["changed"] is True
                response.raise_for_error()

    await execute(lambda: Root(), inventory=host.inventory, pool=host.pool)
    assert host.names() == ["-d", "f", "~"]


@pytest.mark.slow
@HERE
async def test_a_directory_of_many_levels(host: Hosted) -> None:
    deep = "/".join(["d"] * 1000)
    assert await host.changed(Makedirs(path=host.path(deep)))
    assert await host.changed(Write(path=host.path(f"{deep}/file"), text="x"))
    assert await host.changed(Rmtree(path=host.path("d")))
    assert host.names() == []


async def test_rmdir(host: Hosted) -> None:
    host.folder("empty")
    host.folder("full")
    host.file("full/file")
    host.file("file")
    host.link("link", "empty")
    assert await host.changed(Rmdir(path=host.path("empty")))
    for name in ("full", "file", "link"):
        assert (await host.failure(Rmdir(path=host.path(name))))["value"] in ("SFTPFailure", "SFTPNoSuchFile")
    assert (await host.failure(Rmdir(path=host.path("missing"))))["value"] == "SFTPNoSuchFile"
    assert host.names() == ["file", "full", "link"]


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("operation", [Rmtree, lambda path: Directory(path=path, present=False, recurse=True)])
async def test_a_tree_is_removed_and_links_are_not_followed(
    host: Hosted, operation: Callable[..., Any], slash: str
) -> None:
    outside = host.folder("outside")
    host.file("outside/file")
    tree = host.folder("tree")
    for name in ODD:
        folder = host.folder(b"tree/" + name)
        host.file(b"tree/" + name + b"/" + name)
        host.link(b"tree/" + name + b"/link", outside.as_posix())
        folder.joinpath("empty").mkdir()
        os.chown(folder / "empty", host.uid, -1)
    host.link("tree/to file", "../outside/file")
    host.link("tree/dangling", "nowhere")
    os.mkfifo(tree / "pipe")
    assert await host.changed(operation(path=host.path("tree") + slash))
    assert host.names() == ["outside"]
    assert host.names("outside") == ["file"]


@pytest.mark.parametrize("slash", ["", "/", "//"])
async def test_what_is_no_tree_stays(host: Hosted, slash: str) -> None:
    host.folder("folder")
    host.file("folder/file")
    host.link("link", "folder")
    response = await host.failure(Rmtree(path=host.path("link") + slash))
    assert response["value"] == "SFTPFailure"
    assert response["detail"].endswith(" is a symbolic link, not a directory")
    assert (await host.failure(Rmtree(path=host.path("folder/file"))))["value"] == "SFTPFailure"
    assert (await host.failure(Rmtree(path=host.path("missing"))))["value"] == "SFTPNoSuchFile"
    assert (host.names(), host.names("folder")) == (["folder", "link"], ["file"])


async def test_a_tree_that_cannot_be_removed(host: Hosted) -> None:
    if host.uid == 0:
        return  # nothing is refused to root
    host.folder("tree")
    host.folder("tree/closed")
    for number in range(40):
        host.file(f"tree/closed/{number}")
    (host.root / "tree/closed").chmod(0o555)
    response = await host.failure(Rmtree(path=host.path("tree")))
    assert response["value"] == "SFTPPermissionDenied"
    assert host.path("tree/closed/") in response["detail"]
    host.file("tree/file")
    response = await host.failure(Rmtree(path=host.path("tree")), changed=True)
    assert len(host.names("tree/closed")) == 40
    (host.root / "tree/closed").chmod(0o755)


@pytest.mark.slow
async def test_a_tree_of_many_files(host: Hosted) -> None:
    host.folder("tree")
    for number in range(2000):
        (host.root / f"tree/{number}").touch()
    assert await host.changed(Rmtree(path=host.path("tree")))
    assert host.names() == []


@pytest.mark.parametrize("path", ["/", "//", ".", "..", "./", "/tmp/..", "a/.", b"../"])
def test_what_is_never_removed(path: Any) -> None:
    for operation in (Rmtree, lambda path: Directory(path=path, present=False)):
        with pytest.raises(ValidationError, match=r"the root, '\.' and '\.\.' cannot be removed"):
            operation(path=path)
    Directory(path=path, present=True)


# A directory that is to be there, or not


async def test_a_directory_that_is_to_be_there(host: Hosted) -> None:
    path = host.path("a/b")
    assert await host.changed(Directory(path=path, present=True, permissions=0o750))
    assert (host.mode("a"), host.mode("a/b")) == (0o750, 0o750)
    assert not await host.changed(Directory(path=path, present=True))
    assert not await host.changed(Directory(path=path + "/", present=True, permissions=0o750, uid=host.uid))
    assert await host.changed(Directory(path=path, present=True, permissions=0o700))
    assert (host.mode("a"), host.mode("a/b")) == (0o750, 0o700), "those above it stay as they are"
    assert await host.changed(Directory(path=path, present=True, atime=ATIME, mtime=MTIME))
    assert not await host.changed(Directory(path=path, present=True, atime=ATIME, mtime=MTIME))
    assert times(host.root / "a/b") == (ATIME, MTIME)


async def test_a_link_to_a_directory_is_one(host: Hosted) -> None:
    host.folder("folder")
    host.link("link", "folder")
    assert not await host.changed(Directory(path=host.path("link"), present=True))
    assert await host.changed(Directory(path=host.path("link"), present=True, permissions=0o700))
    assert (host.mode("folder"), (host.root / "link").is_symlink()) == (0o700, True)


async def test_a_directory_that_is_not_to_be_there(host: Hosted) -> None:
    path = host.path("folder")
    assert not await host.changed(Directory(path=path, present=False))
    assert not await host.changed(Directory(path=path + "/sub", present=False))
    host.folder("folder")
    assert await host.changed(Directory(path=path, present=False))
    host.folder("folder")
    host.file("folder/file")
    response = await host.failure(Directory(path=path, present=False))
    assert response["value"] == "SFTPFailure"
    assert response["detail"] == f"{path} is not empty: give recurse=True to remove all that is in it, too"
    assert await host.changed(Directory(path=path, present=False, recurse=True))
    assert not await host.changed(Directory(path=path, present=False, recurse=True))
    assert host.names() == []


@pytest.mark.parametrize("recurse", [False, True])
async def test_what_is_no_directory_is_an_error_and_stays(host: Hosted, recurse: bool) -> None:
    host.folder("folder")
    host.file("file")
    host.link("link", "folder")
    host.link("dangling", "nowhere")
    for name, what in {"file": "a file", "link": "a symbolic link", "dangling": "a symbolic link"}.items():
        response = await host.failure(Directory(path=host.path(name), present=False, recurse=recurse))
        assert response["detail"] == f"{host.path(name)} is {what}, not a directory: it stays"
    assert host.names() == ["dangling", "file", "folder", "link"]


def test_whether_it_should_be_there_must_be_said() -> None:
    with pytest.raises(ValidationError, match="present"):
        Directory(path="x")  # type: ignore[call-arg]


# Owner, permissions and times


async def test_chmod(host: Hosted) -> None:
    path = host.path("file")
    host.file("file", mode=0o644)
    assert not await host.changed(Chmod(path=path, permissions=0o644))
    before = (host.root / "file").stat().st_ctime_ns
    assert not await host.changed(Chmod(path=path, permissions=0o644))
    assert (host.root / "file").stat().st_ctime_ns == before, "nothing was sent"
    for permissions in (0o600, 0o4755, 0, 0o777):
        assert await host.changed(Chmod(path=path, permissions=permissions))
        assert host.mode("file") == permissions
    assert (await host.failure(Chmod(path=host.path("no"), permissions=0)))["value"] == "SFTPNoSuchFile"


async def test_links_are_followed_when_asked_for(host: Hosted) -> None:
    host.file("file", mode=0o644)
    host.link("link", "file")
    link = host.path("link")
    assert await host.changed(Chmod(path=link, permissions=0o600, follow_symlinks=True))
    assert host.mode("file") == 0o600
    assert not await host.changed(Chmod(path=link, permissions=0o777)), "a link has these on Linux"
    assert await host.changed(Utime(path=link, atime=ATIME, mtime=MTIME, follow_symlinks=True))
    assert times(host.root / "file") == (ATIME, MTIME)
    assert await host.changed(Setstat(path=link, permissions=0o640))
    assert host.mode("file") == 0o640


async def test_a_link_itself(host: Hosted) -> None:
    host.file("file", mode=0o644)
    before = times(host.root / "file")
    host.link("link", "file")
    link = host.path("link")
    refused = await host.failure(Chmod(path=link, permissions=0o600))
    assert refused["value"] in ("SFTPFailure", "SFTPOpUnsupported")
    response = await host.run(Utime(path=link, atime=ATIME, mtime=MTIME))
    if response["error"]:
        assert response["value"] == "SFTPOpUnsupported"
        assert response["changed"] is False
    else:
        assert response["changed"] is True
        assert times(host.root / "link") == (ATIME, MTIME)
    assert (host.mode("file"), times(host.root / "file")) == (0o644, before)


async def test_chown(host: Hosted) -> None:
    file = host.file("file", mode=0o755)
    path, gid = host.path("file"), file.stat().st_gid
    assert not await host.changed(Chown(path=path, uid=host.uid))
    assert not await host.changed(Chown(path=path, uid=host.uid, gid=gid))
    if host.uid != 0:
        assert (await host.failure(Chown(path=path, uid=0)))["value"] == "SFTPPermissionDenied"
        return
    assert await host.changed(Chown(path=path, uid=77))
    assert (file.stat().st_uid, file.stat().st_gid) == (77, gid)
    assert await host.changed(Chown(path=path, gid=88))
    assert (file.stat().st_uid, file.stat().st_gid) == (77, 88)
    assert await host.changed(Setstat(path=path, uid=99, permissions=0o4755))
    assert (file.stat().st_uid, host.mode("file")) == (99, 0o4755), "a change of owner clears set-user-ID bits"
    assert await host.changed(Setstat(path=path, uid=100, permissions=0o4755))
    assert (file.stat().st_uid, host.mode("file")) == (100, 0o4755)


async def test_utime(host: Hosted) -> None:
    file = host.file("file")
    path = host.path("file")
    assert await host.changed(Utime(path=path, atime=ATIME, mtime=MTIME))
    assert times(file) == (ATIME, MTIME)
    assert not await host.changed(Utime(path=path, atime=ATIME, mtime=MTIME))
    assert not await host.changed(Utime(path=path, atime=ATIME + 0.9, mtime=MTIME + 0.5)), "SFTP has whole seconds"
    assert await host.changed(Utime(path=path, atime=0, mtime=2**32 - 1))
    assert times(file) == (0, 2**32 - 1)


async def test_utime_without_times_is_now(host: Hosted) -> None:
    file = host.file("file")
    for _ in range(2):
        assert await host.changed(Utime(path=host.path("file")))
        assert all(abs(found - time.time()) < 30 for found in times(file))


async def test_setstat(host: Hosted) -> None:
    file = host.file("file", mode=0o644)
    wanted: dict[str, Any] = {"permissions": "600", "uid": host.uid, "atime": ATIME, "mtime": MTIME}
    assert await host.changed(Setstat(path=host.path("file"), **wanted))
    assert (host.mode("file"), times(file)) == (0o600, (ATIME, MTIME))
    before = file.stat().st_ctime_ns
    assert not await host.changed(Setstat(path=host.path("file"), **wanted))
    assert file.stat().st_ctime_ns == before
    assert (await host.failure(Setstat(path=host.path("no"), permissions=0)))["value"] == "SFTPNoSuchFile"


async def test_truncate(host: Hosted) -> None:
    file = host.file("file", b"12345")
    assert not await host.changed(Truncate(path=host.path("file"), size=5))
    assert await host.changed(Truncate(path=host.path("file"), size=2))
    assert file.read_bytes() == b"12"
    assert await host.changed(Truncate(path=host.path("file"), size=5 * 2**30))
    assert file.stat().st_size == 5 * 2**30
    assert await host.changed(Truncate(path=host.path("file"), size=0))
    host.folder("folder")
    assert (await host.failure(Truncate(path=host.path("folder"), size=5)))["error"]
    assert (await host.failure(Truncate(path=host.path("no"), size=5)))["value"] == "SFTPNoSuchFile"


async def test_a_host_that_only_says_that_it_did(host: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    if host.kind != "sandbox":
        return  # only there it can be made to
    host.file("file", mode=0o644)
    monkeypatch.setattr(os, "chown", lambda *_, **__: None)
    response = await host.failure(Chown(path=host.path("file"), uid=77))
    assert response["value"] == "SFTPFailure"
    assert response["detail"] == f"the host did not do what was asked for {host.path('file')}: uid is 0, not 77"
    monkeypatch.setattr(os, "chmod", lambda path, mode, **_: _chmod(path, mode & 0o777))
    response = await host.failure(Chmod(path=host.path("file"), permissions=0o2755), changed=True)
    assert "permissions is 0755, not 2755" in response["detail"]
    response = await host.failure(Mkdir(path=host.path("new"), permissions=0o1777), changed=True)
    assert host.names() == ["file", "new"]


_chmod = os.chmod


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Setstat(path="x"), "at least one of permissions, uid, gid, atime and mtime is needed"),
        (lambda: Chown(path="x"), "at least one of uid and gid is needed"),
        (lambda: Chmod(path="x"), "permissions are needed"),
        (lambda: Chmod.model_validate({"path": "x", "permissions": "rw"}), "octal digits"),
        (lambda: Chmod.model_validate({"path": "x", "permissions": "0o10000"}), "permissions"),
        (lambda: Chmod(path="x", permissions=-1), "permissions"),
        (lambda: Utime(path="x", atime=5), "atime and mtime are set together: give both"),
        (lambda: Setstat(path="x", mtime=5), "atime and mtime are set together: give both"),
        (lambda: Utime(path="x", atime=-1, mtime=5), "atime"),
        (lambda: Utime(path="x", atime=2**32, mtime=5), "atime"),
        (lambda: Utime(path="x", atime=float("nan"), mtime=5), "atime"),
        (lambda: Utime(path="x", atime=5, mtime=float("inf")), "mtime"),
        (lambda: Chown(path="x", uid=-1), "uid"),
        (lambda: Chown(path="x", gid=2**32), "gid"),
        (lambda: Truncate(path="x", size=-1), "size"),
        (lambda: Truncate(path="x", size=2**63), "size"),
        (lambda: Rename(oldpath="x", newpath=""), "newpath"),
        (lambda: Symlink(file_path="a\0b", link_path="x"), "file_path"),
    ],
)
def test_what_cannot_be_asked_for(make: Callable[[], Any], complaint: str) -> None:
    with pytest.raises(ValidationError) as caught:
        make()
    assert complaint in str(caught.value)


# Names and links


async def test_rename(host: Hosted) -> None:
    host.file("file", b"old")
    host.file("other", b"other")
    host.folder("folder")
    assert await host.changed(Rename(oldpath=host.path("file"), newpath=host.path("folder/new")))
    assert (host.root / "folder/new").read_bytes() == b"old"
    response = await host.failure(Rename(oldpath=host.path("folder/new"), newpath=host.path("other")))
    assert response["value"] == "SFTPFailure"
    assert host.path("folder/new") in response["detail"]
    assert (host.root / "other").read_bytes() == b"other"
    response = await host.failure(Rename(oldpath=host.path("missing"), newpath=host.path("new")))
    assert response["value"] == "SFTPNoSuchFile"


@pytest.mark.parametrize("operation", [Remove, Unlink])
async def test_remove(host: Hosted, operation: type[Remove]) -> None:
    host.file("file")
    host.folder("folder")
    host.link("link", "folder")
    assert await host.changed(operation(path=host.path("file")))
    assert await host.changed(operation(path=host.path("link")))
    assert (await host.failure(operation(path=host.path("file"))))["value"] == "SFTPNoSuchFile"
    assert (await host.failure(operation(path=host.path("folder"))))["value"] in ("SFTPFailure", "SFTPPermissionDenied")
    assert host.names() == ["folder"]


async def test_another_name(host: Hosted) -> None:
    file = host.file("file")
    host.file("other")
    assert await host.changed(Link(file_path=host.path("file"), link_path=host.path("link")))
    assert file.stat().st_ino == (host.root / "link").stat().st_ino
    for name in ("link", "other"):
        response = await host.failure(Link(file_path=host.path("file"), link_path=host.path(name)))
        assert response["value"] == "SFTPFailure"
    response = await host.failure(Link(file_path=host.path("no"), link_path=host.path("new")))
    assert response["value"] == "SFTPNoSuchFile"


@pytest.mark.parametrize("target", ["file", "/no where/at all", "../a/./b//", b"caf\xe9\n", "-x", "~"])
async def test_symbolic_links(host: Hosted, target: Any) -> None:
    link = host.path("link")
    assert await host.changed(Symlink(file_path=target, link_path=link))
    assert os.readlink(os.fsencode(host.root / "link")) == os.fsencode(target)  # noqa: PTH115 - a Path would tidy it
    assert not await host.changed(Symlink(file_path=target, link_path=link))
    assert not await host.changed(Symlink(file_path=os.fsdecode(target), link_path=os.fsencode(link)))


async def test_what_is_in_the_place_of_a_symbolic_link_stays(host: Hosted) -> None:
    host.file("file")
    host.folder("folder")
    host.link("link", "file")
    for name in ("file", "folder", "link"):
        response = await host.failure(Symlink(file_path="elsewhere", link_path=host.path(name)))
        assert response["value"] == "SFTPFailure"
    assert (host.root / "link").readlink() == Path("file")
    response = await host.failure(Symlink(file_path="x", link_path=host.path("no/where")))
    assert response["value"] == "SFTPNoSuchFile"
    assert stat.S_ISREG((host.root / "file").lstat().st_mode)


@HERE
async def test_names_of_all_kinds(host: Hosted) -> None:
    for name in ODD:
        path, other = (os.fsencode(host.path()) + each for each in (name, b"2" + name[1:]))
        assert await host.changed(Write(path=path, text="x"))
        assert await host.changed(Chmod(path=os.fsdecode(path), permissions=0o600))
        assert await host.changed(Rename(oldpath=path, newpath=other))
        assert await host.changed(Link(file_path=other, link_path=path))
        assert await host.changed(Remove(path=path))
        assert await host.changed(Symlink(file_path=name, link_path=path))
        assert await host.changed(Remove(path=path))
        assert await host.changed(Mkdir(path=path))
        assert await host.changed(Directory(path=path, present=False))
        assert [os.fsencode(each) for each in host.names()] == [other.rpartition(b"/")[2]]
        assert await host.changed(Remove(path=os.fsdecode(other)))
