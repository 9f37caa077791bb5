"""The files of this machine, all of them or those below one directory."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import socket
import stat
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reemote.core.errors import HostError, LocalFileError, NoSpaceLeft
from reemote.core.files import Files, Mode, is_missing
from reemote.core.response import Response
from reemote.server.settings import Settings, data_directory
from reemote.transfer import calls, opened
from reemote.transfer.local import FileRefused, LocalFiles, here
from tests.leaks import open_files

MODES: tuple[Mode, ...] = ("read", "write", "append", "create", "update")


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    before = open_files()
    yield
    assert open_files() == before


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


async def read(files: Files, path: Any) -> bytes:
    async with files.open(path, "read") as file:
        return await file.read(1000, 0)


async def write(files: Files, path: Any, data: bytes, mode: Mode = "write") -> None:
    async with files.open(path, mode) as file:
        await file.write(data, 0)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# Confined to a directory


class Confined(LocalFiles):
    """What the tests know of the files below a root."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path = path


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_text("secret")
    return file


@pytest.fixture
def root(tmp_path: Path, outside: Path) -> Confined:
    """A root with a file, a directory, and one of each kind of thing that is no plain file."""
    path = tmp_path / "files"
    (path / "sub").mkdir(parents=True)
    (path / "plain").write_text("plain")
    (path / "sub" / "deep").write_text("deep")
    (path / "link-out").symlink_to(outside)
    (path / "link-in").symlink_to("plain")
    (path / "link-nowhere").symlink_to(tmp_path / "made")
    (path / "dir-out").symlink_to(tmp_path)
    (path / "dir-in").symlink_to("sub")
    os.mkfifo(path / "fifo")
    return Confined(path)


@pytest.mark.parametrize("name", ["plain", "./plain", ".//plain", b"plain", Path("plain")])
async def test_a_file_is_read(root: Confined, name: Any) -> None:
    assert await read(root, name) == b"plain"


async def test_a_file_in_a_directory_and_by_its_absolute_path(root: Confined) -> None:
    for name in ("sub/deep", str(root.path / "sub" / "deep"), root.absolute("sub/deep")):
        assert await read(root, name) == b"deep"


async def test_a_new_file_is_for_its_owner_and_an_old_one_is_emptied(root: Confined) -> None:
    await write(root, "sub/new", b"longer")
    assert mode(root.path / "sub" / "new") == 0o600
    await write(root, "sub/new", b"short")
    assert (root.path / "sub" / "new").read_bytes() == b"short"
    await root.mkdir("sub/dir")
    assert mode(root.path / "sub" / "dir") == 0o700


REFUSED = {
    "": "names no file",
    ".": "names no file",
    "./": "names no file",
    "/": "names no file",
    "sub/": "names no file",
    "sub": "a directory is in its place",
    "..": "'..' may not be in a path",
    "../secret": "'..' may not be in a path",
    "sub/../../secret": "'..' may not be in a path",
    "sub/../plain": "'..' may not be in a path",
    "/etc/passwd": "outside of the directory",
    "/proc/self/environ": "outside of the directory",
    "//etc/passwd": "outside of the directory",
    "plain\0": "NUL",
    "\0": "NUL",
    "\udcff\ud800": "half a character",
    "link-out": "a symbolic link",
    "link-in": "a symbolic link",
    "link-nowhere": "a symbolic link",
    "dir-out/secret": "a symbolic link",
    "dir-out/files/plain": "a symbolic link",
    "dir-in/deep": "a symbolic link",
    "fifo": "a named pipe",
    "plain/below": "a file is in its place or in its way",
}


@pytest.mark.parametrize("way", MODES)
@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_refused(root: Confined, outside: Path, name: str, way: Mode) -> None:
    with pytest.raises(FileRefused) as caught:
        await write(root, name, b"x", way)
    assert REFUSED[name] in str(caught.value)
    assert "\0" not in str(caught.value)
    assert outside.read_text() == "secret"
    assert (root.path / "plain").read_text() == "plain"
    assert not outside.with_name("made").exists()


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_refused_is_known_before(root: Confined, name: str) -> None:
    if name in (".", "./", "sub", "sub/"):  # directories are no files, but nothing wrong in themselves
        root.check(name)
        assert (await root.stat(name)).is_directory
        return
    with pytest.raises(FileRefused) as caught:
        root.check(name)
    if name != "/":
        assert REFUSED[name] in str(caught.value)
    if "fifo" not in name:
        for asked in (root.lookup(name), root.list(name), root.realpath(name), root.statvfs(name)):
            with pytest.raises((FileRefused, HostError)):
                await asked
        with pytest.raises(FileRefused):
            await root.set(name, permissions=0o777)


def test_what_would_do_is_not_refused_before(root: Confined) -> None:
    for name in ("plain", "sub", ".", "missing", "missing/file", "sub/*.txt", str(root.path), str(root.path / "sub")):
        root.check(name)
    for name in ("/etc/passwd", "fifo/../../x", "\0"):
        LocalFiles().check(name)


PARENTS = ("../x", "dir-out/x", "/tmp/x", "dir-in/x")


@pytest.mark.parametrize("name", PARENTS)
async def test_no_way_leads_out(root: Confined, outside: Path, name: str) -> None:
    (root.path / "other").write_text("other")
    for asked in (
        root.mkdir(name), root.remove(name), root.rmdir(name), root.readlink(name), root.chdir(name),
        root.stat(name), root.stat(name, follow=False), root.tree(name), root.glob([f"{name}/*"]), root.glob([name]),
        root.rename("other", name), root.replace("other", name), root.rename(name, "y"), root.replace(name, "y"),
        root.set(name, follow=False, permissions=0), root.set(name, owner=(0, 0)), root.set(name, size=0),
        root.set(name, times=(0, 0)), root.statvfs(name), root.realpath(name),
    ):  # fmt: skip
        with pytest.raises(FileRefused):
            await asked
    assert await root.digests([name]) == [None]
    assert outside.read_text() == "secret"


async def test_no_links_are_made(root: Confined) -> None:
    with pytest.raises(FileRefused, match="'new' is refused: no links are made"):
        await root.symlink("plain", "new")
    with pytest.raises(FileRefused, match="'new' is refused: no links are made"):
        await root.link("plain", "new")
    assert not os.path.lexists(root.path / "new")


async def test_a_link_itself_may_be_looked_at_and_removed(root: Confined, outside: Path) -> None:
    assert (await root.stat("link-out", follow=False)).is_link
    assert await root.readlink("link-in") == b"plain"
    with pytest.raises(FileRefused, match="a symbolic link"):
        await root.stat("link-out")
    await root.set("link-out", follow=False, times=(1, 2), owner=(os.getuid(), os.getgid()))
    assert (await root.stat("link-out", follow=False)).mtime_ns == 2
    with pytest.raises(LocalFileError):
        await root.set("link-out", follow=False, permissions=0o600)
    assert outside.stat().st_mtime_ns > 2
    await root.rename("link-out", "renamed")
    await root.remove("renamed")
    assert outside.read_text() == "secret"


async def test_what_is_allowed_below_a_root(root: Confined) -> None:
    await root.mkdir("new", 0o750)
    await write(root, "new/a", b"12345")
    await root.set("new/a", permissions=0o640, times=(5, 6), size=3)
    found = await root.stat("new/a")
    assert (found.mode, found.size, found.atime_ns, found.mtime_ns) == (0o640, 3, 5, 6)
    await root.rename("new/a", "new/b")
    await root.replace("new/b", "plain")
    assert await read(root, "plain") == b"123"
    await root.rmdir("new")
    assert sorted(entry.name for entry in await root.list("."))[-2:] == [b"plain", b"sub"]
    assert await root.glob(["su?/*", str(root.path / "pl*")]) == [os.fsencode(root.path / "plain"), b"sub/deep"]
    assert (await root.statvfs("sub")).bsize > 0
    assert (await root.statvfs("plain")).bsize > 0
    assert await root.realpath("./sub//deep") == os.fsencode(root.path / "sub" / "deep")
    assert await root.digests(["sub/deep", "link-in", "fifo"]) == [hashlib.sha256(b"deep").digest(), None, None]


async def test_another_directory_below_a_root(root: Confined) -> None:
    await root.chdir("sub")
    assert await read(root, "deep") == b"deep"
    assert root.absolute("deep") == os.fsencode(root.path / "sub" / "deep")
    with pytest.raises(FileRefused, match="may not be in a path"):
        await read(root, "../plain")
    with pytest.raises(LocalFileError, match="NotADirectoryError: deep: Not a directory"):
        await root.chdir("deep")
    await root.chdir(root.path)
    assert await read(root, "plain") == b"plain"


async def test_a_tree_has_links_and_follows_none(root: Confined) -> None:
    tree = await root.tree(".")
    assert tree is not None
    assert sorted(tree) == [
        b"dir-in", b"dir-out", b"fifo", b"link-in", b"link-nowhere", b"link-out", b"plain", b"sub", b"sub/deep",
    ]  # fmt: skip
    assert tree[b"link-in"].target == b"plain"
    assert tree[b"sub/deep"].attributes.size == 4
    assert tree[b"plain"].target == b""


async def test_a_pattern_leads_over_no_link(root: Confined) -> None:
    assert await root.glob(["**/deep"]) == [b"sub/deep"]
    with pytest.raises(LocalFileError) as caught:
        await root.glob(["plain/*"])
    assert is_missing(caught.value)
    with pytest.raises(LocalFileError):
        await root.glob(["dir-*/secret"])
    with pytest.raises(FileRefused):
        await root.glob(["dir-out/*"])


async def test_an_absolute_path_out_of_the_root_through_its_own_name(root: Confined) -> None:
    for name in (f"{root.path}/../secret", f"{root.path}-beside/file", str(root.path.parent / "secret")):
        with pytest.raises(FileRefused):
            await read(root, name)


async def test_percent_signs_are_part_of_a_name(root: Confined) -> None:
    with pytest.raises(LocalFileError, match="FileNotFoundError"):
        await read(root, "%2e%2e/secret")
    await write(root, "%2e%2e%2fsecret", b"here")
    assert (root.path / "%2e%2e%2fsecret").read_bytes() == b"here"


async def test_a_socket_is_refused(root: Confined, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        with pytest.raises(FileRefused, match="a socket"):
            await read(root, "socket")


async def test_devices_are_refused() -> None:
    for name in ("null", "zero", "tty", "/dev/null"):
        for way in MODES:
            with pytest.raises(FileRefused, match="a device"):
                await write(LocalFiles(Path("/dev")), name, b"x", way)
        with pytest.raises(FileRefused, match="a device"):
            LocalFiles(Path("/dev")).check(name)


async def test_magic_links_of_proc_are_refused() -> None:
    with pytest.raises(FileRefused, match="a symbolic link"):
        await read(LocalFiles(Path("/proc")), "self/environ")
    with pytest.raises(FileRefused, match="a symbolic link"):
        await read(LocalFiles(Path(f"/proc/{os.getpid()}")), "root/etc/passwd")


async def test_what_changes_after_the_check_leads_nobody_out(root: Confined, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel refuses, too: every look at a file sees a plain one or a directory here, whatever it is."""
    look, plain = os.stat, (root.path / "plain").stat()

    def deceived(path: Any, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> os.stat_result:
        if dir_fd is None:
            return look(path, follow_symlinks=follow_symlinks)
        return look(root.path) if path.startswith(b"dir") else plain

    monkeypatch.setattr(os, "stat", deceived)
    for name in ("link-out", "link-in", "dir-out/secret", "fifo", "sub"):
        for way in ("read", "write", "append", "update"):
            with pytest.raises(FileRefused):
                await write(root, name, b"", way)
    with pytest.raises(LocalFileError):
        await root.list("dir-out")
    with pytest.raises(LocalFileError):
        await root.set("link-out", permissions=0o777)
    assert mode(root.path.parent / "secret") != 0o777


async def test_what_is_not_there_is_told_apart(root: Confined) -> None:
    for name in ("missing", "missing/file"):
        with pytest.raises(LocalFileError) as caught:
            await read(root, name)
        assert is_missing(caught.value)
        assert await root.lookup(name) is None
    with pytest.raises(LocalFileError) as caught:
        await write(root, "missing/file", b"")
    assert is_missing(caught.value)
    assert not (root.path / "missing").exists()


async def test_the_root_may_be_a_link_and_is_made_private(root: Confined, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root.path)
    assert await read(LocalFiles(tmp_path / "link"), "plain") == b"plain"
    await write(LocalFiles(tmp_path / "fresh"), "file", b"x")
    assert mode(tmp_path / "fresh") == 0o700


def test_the_default_is_in_the_data_directory() -> None:
    assert Settings().files == data_directory() / "files"


# All files


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the process."""
    path = tmp_path / "work"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


@pytest.fixture
def files(work: Path) -> Files:
    return LocalFiles()


NAMES = [b"plain", b"\xff\xfe", b"two\nlines", "\N{SNOWMAN}".encode(), b" -rf *", b"~"]


@pytest.mark.parametrize("name", NAMES, ids=repr)
async def test_any_name(files: Files, work: Path, name: bytes) -> None:
    await write(files, name, b"content")
    assert [os.fsencode(path.name) for path in work.iterdir()] == [name]
    assert [entry.name for entry in await files.list(".")] == [name]
    assert await read(files, name.decode("utf-8", "surrogateescape")) == b"content"
    assert list(await files.tree(".") or {}) == [name]
    assert await files.glob([b"*"]) == [name]
    await files.rename(name, name + b"2")
    await files.remove(work / os.fsdecode(name + b"2"))
    with pytest.raises(LocalFileError) as caught:
        await read(files, name)
    response = Response.of_failure(caught.value, "web1")
    assert response["value"] == "FileNotFoundError"
    str(response["detail"]).encode()  # it can be shown


async def test_relative_paths(files: Files, work: Path, tmp_path: Path) -> None:
    await files.mkdir("sub")
    await write(files, "sub/file", b"1")
    assert files.absolute("sub") == os.fsencode(work / "sub")
    await files.chdir("sub")
    assert files.absolute("file") == os.fsencode(work / "sub" / "file")
    assert await read(files, "file") == b"1"
    await files.chdir("..")
    assert await read(files, "sub/file") == b"1"
    assert await read(files, work / "sub/file") == b"1"
    assert await files.realpath("sub/../sub") == os.fsencode(work / "sub")
    with pytest.raises(LocalFileError):
        await files.chdir("missing")
    assert await read(LocalFiles(), "sub/file") == b"1"  # the directory of others stayed


FAILURES: dict[str, tuple[Callable[[Files], Awaitable[Any]], str]] = {
    "FileNotFoundError": (lambda files: files.stat("missing"), "missing: No such file or directory"),
    "FileExistsError": (lambda files: files.mkdir("directory"), "directory: File exists"),
    "IsADirectoryError": (lambda files: files.remove("directory"), "directory: Is a directory"),
    "NotADirectoryError": (lambda files: files.list("file"), "file: Not a directory"),
    "OSError": (lambda files: files.stat("loop"), "loop: Too many levels of symbolic links"),
}


@pytest.mark.parametrize("kind", FAILURES)
async def test_failures_are_those_of_this_machine(files: Files, work: Path, kind: str) -> None:
    (work / "directory").mkdir()
    (work / "file").touch()
    (work / "loop").symlink_to("loop")
    act, detail = FAILURES[kind]
    with pytest.raises(LocalFileError) as caught:
        await act(files)
    assert (caught.value.kind, caught.value.detail) == (kind, f"{detail} (on this machine)")
    assert HostError.named(kind) is LocalFileError
    error = Response.of_failure(caught.value, "web1").to_error()
    assert isinstance(error, LocalFileError)
    assert error.kind == kind


def test_permission_is_told_and_other_names_are_others(files: Files) -> None:
    local = LocalFiles()
    assert local._failure(PermissionError(errno.EACCES, "Permission denied"), "x").kind == "PermissionError"
    assert local._failure(BlockingIOError(errno.EAGAIN, "again"), "x").kind == "OSError"
    assert isinstance(local._failure(OSError(errno.EDQUOT, "quota"), "x"), NoSpaceLeft)
    assert HostError.named("PermissionError") is LocalFileError
    assert HostError.named("ConnectionRefusedError") is not LocalFileError


async def test_what_cannot_be_a_path(files: Files) -> None:
    for path in ("a\0b", "", "x" * 300):
        with pytest.raises(LocalFileError):
            await files.stat(path)


async def test_lookup(files: Files, work: Path) -> None:
    (work / "file").write_text("12")
    (work / "dangling").symlink_to("missing")
    assert await files.lookup("missing") is None
    assert await files.lookup("file/below") is None
    assert await files.lookup("dangling") is None
    found = await files.lookup("dangling", follow=False)
    assert found is not None
    assert found.is_link
    file, status = await files.lookup("file"), (work / "file").stat()
    assert file is not None
    assert (file.permissions, file.size, file.uid, file.gid) == (status.st_mode, 2, status.st_uid, status.st_gid)
    assert (file.atime_ns, file.mtime_ns, file.crtime_ns) == (status.st_atime_ns, status.st_mtime_ns, None)


async def test_a_listing(files: Files, work: Path) -> None:
    (work / "file").write_text("12")
    (work / "file").chmod(0o640)
    (work / "link").symlink_to("file")
    entries = {entry.name: entry for entry in await files.list(".")}
    assert sorted(entries) == [b"file", b"link"]
    assert entries[b"file"].longname.startswith("-rw-r----- ")
    assert entries[b"file"].longname.endswith(" file")
    assert entries[b"link"].attributes.is_link


async def test_what_vanishes_from_a_listing_is_left_out(files: Files, work: Path, monkeypatch: Any) -> None:
    (work / "file").touch()
    (work / "gone").touch()
    scan = os.scandir

    class Scan:
        def __init__(self, directory: int) -> None:
            self.found = scan(directory)

        def __enter__(self) -> Iterator[Any]:
            entries = list(self.found)
            (work / "gone").unlink(missing_ok=True)
            return iter(entries)

        def __exit__(self, *_: object) -> None:
            self.found.close()

    monkeypatch.setattr(os, "scandir", Scan)
    assert [entry.name for entry in await files.list(".")] == [b"file"]


async def test_a_tree(files: Files, work: Path) -> None:
    (work / "top" / "a" / "b").mkdir(parents=True)
    (work / "top" / "a" / "file").write_text("1")
    (work / "top" / "loop").symlink_to(".")
    (work / "link").symlink_to("top")
    for top in ("top", work / "top", "link", "top/"):
        tree = await files.tree(top)
        assert tree is not None
        assert sorted(tree) == [b"a", b"a/b", b"a/file", b"loop"]
        assert tree[b"loop"].target == b"."
    assert await files.tree("top/a/b") == {}
    for top, kind in (("missing", "FileNotFoundError"), ("top/a/file", "NotADirectoryError")):
        with pytest.raises(LocalFileError) as caught:
            await files.tree(top)
        assert caught.value.kind == kind


async def test_digests(files: Files, work: Path) -> None:
    (work / "file").write_bytes(b"x" * 300_000)
    (work / "link").symlink_to("file")
    os.mkfifo(work / "fifo")
    digest = hashlib.sha256(b"x" * 300_000).digest()
    paths = ["file", "missing", "link", "fifo", ".", "/dev/zero"]
    assert await files.digests(paths) == [digest, None, digest, None, None, None]
    assert await files.digests([]) == []


PATTERNS = {
    "*.txt": [b"a.txt", b"b.txt"],
    "[!a].txt": [b"b.txt"],
    "?.txt": [b"a.txt", b"b.txt"],
    "a.txt": [b"a.txt"],
    "dangling": [b"dangling"],
    "sub/*": [b"sub/.hidden", b"sub/c.txt", b"sub/deep"],
    "sub*/": [b"sub/"],
    "link/c.txt": [b"link/c.txt"],
    "link/*.txt": [b"link/c.txt"],
    "**/*.txt": [b"a.txt", b"b.txt", b"sub/c.txt", b"sub/deep/d.txt"],
    "sub/**": [b"sub", b"sub/.hidden", b"sub/c.txt", b"sub/deep", b"sub/deep/d.txt"],
    "**/**/d.txt": [b"sub/deep/d.txt"],
    "*/deep/*": [b"sub/deep/d.txt"],
    "sub//./c.txt": [b"sub/./c.txt"],
    "s[u]b": [b"sub"],
    ".": [b"."],
}


@pytest.fixture
def many(work: Path) -> Path:
    (work / "sub" / "deep").mkdir(parents=True)
    for name in ("a.txt", "b.txt", "sub/c.txt", "sub/.hidden", "sub/deep/d.txt"):
        (work / name).touch()
    (work / "link").symlink_to("sub")
    (work / "dangling").symlink_to("missing")
    return work


@pytest.mark.parametrize("pattern", PATTERNS)
async def test_patterns(files: Files, many: Path, pattern: str) -> None:
    assert await files.glob([pattern]) == PATTERNS[pattern]
    absolute = [os.fsencode(many) + b"/" + path for path in PATTERNS[pattern]]
    if pattern not in ("sub//./c.txt", "."):
        assert await files.glob([f"{many}/{pattern}"]) == absolute


@pytest.mark.parametrize("pattern", ["missing", "*.md", "a.txt/*", "a.txt/", "missing/*", "missing/**", "a*/x"])
async def test_a_pattern_that_matches_nothing(files: Files, many: Path, pattern: str) -> None:
    with pytest.raises(LocalFileError) as caught:
        await files.glob(["a.txt", pattern])
    assert is_missing(caught.value)
    assert caught.value.detail in (f"{said} {pattern} (on this machine)" for said in ("nothing matches", "there is no"))


async def test_several_patterns_give_each_path_once(files: Files, many: Path) -> None:
    assert await files.glob(["b*", "*.txt", b"a.txt"]) == [b"a.txt", b"b.txt"]
    assert b"/" in await files.glob(["/"])


async def test_the_file_system(files: Files, work: Path) -> None:
    found = await files.statvfs(".")
    assert set(found) == {
        "bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail", "fsid", "flag", "namemax",
    }  # fmt: skip
    assert found.namemax == os.statvfs(work).f_namemax


async def test_links(files: Files, work: Path) -> None:
    (work / "file").write_text("1")
    await files.symlink(b"file\xff", "dangling")
    await files.symlink("file", "link")
    assert await files.readlink("dangling") == b"file\xff"
    assert (await files.stat("link")).is_file
    await files.link("file", "hard")
    await files.link("link", "other")
    assert (work / "hard").stat().st_nlink == 2
    assert (work / "other").is_symlink()
    assert await files.realpath("link") == os.fsencode(work / "file")
    for act in (files.symlink("x", "file"), files.link("file", "hard")):
        with pytest.raises(LocalFileError) as caught:
            await act
        assert caught.value.kind == "FileExistsError"
    with pytest.raises(LocalFileError):
        await files.readlink("file")


async def test_a_directory_and_the_umask(files: Files, work: Path, umask: None) -> None:
    await files.mkdir("a")
    await files.mkdir("b", 0o770)
    await write(files, "file", b"")
    async with files.open("other", "write", 0o660):
        pass
    assert [mode(work / name) for name in ("a", "b", "file", "other")] == [0o755, 0o750, 0o644, 0o640]


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
@pytest.mark.parametrize("target", ["file", "directory", "dangling link"])
async def test_nothing_is_renamed_over_another(files: Files, work: Path, kind: str, target: str) -> None:
    make: dict[str, Callable[[Path], None]] = {
        "file": Path.touch, "directory": Path.mkdir,
        "link": lambda path: path.symlink_to("x"), "dangling link": lambda path: path.symlink_to("missing"),
    }  # fmt: skip
    make[kind](work / "old")
    await files.rename("old", "moved")
    await files.rename("moved", "old")
    make[target](work / "new")
    before = (work / "new").lstat().st_ino
    with pytest.raises(LocalFileError) as caught:
        await files.rename("old", "new")
    assert caught.value.detail == "old -> new: File exists (on this machine)"
    assert (caught.value.kind, (work / "new").lstat().st_ino) == ("FileExistsError", before)
    assert sorted(path.name for path in work.iterdir()) == ["new", "old"]


async def test_a_file_that_can_have_one_name_only_is_renamed(files: Files, work: Path, monkeypatch: Any) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    (work / "old").write_text("1")
    (work / "other").touch()
    with pytest.raises(LocalFileError, match="FileExistsError"):
        await files.rename("old", "other")
    await files.rename("old", "new")
    assert (work / "new").read_text() == "1"


async def test_replacing(files: Files, work: Path) -> None:
    (work / "old").write_text("1")
    (work / "new").write_text("2")
    await files.replace("old", "new")
    assert [(path.name, path.read_text()) for path in work.iterdir()] == [("new", "1")]
    with pytest.raises(LocalFileError) as caught:
        await files.replace("old", "new")
    assert is_missing(caught.value)


async def test_setting(files: Files, work: Path) -> None:
    (work / "file").write_text("12345")
    for follow in (True, False):
        await files.set("file", follow=follow, permissions=0o4711, owner=(os.getuid(), os.getgid()), times=(1, 2))
        found = await files.stat("file")
        assert (found.mode, found.atime_ns, found.mtime_ns) == (0o4711, 1, 2)
    await files.set("file", size=2)
    assert (work / "file").read_text() == "12"
    await files.set("file", size=2_000, times=(3, 4))
    assert (work / "file").stat().st_mtime_ns == 4
    await files.set("file")


async def test_setting_through_a_link_and_on_it(files: Files, work: Path) -> None:
    (work / "file").write_text("12345")
    (work / "file").chmod(0o600)
    (work / "link").symlink_to("file")
    await files.set("link", permissions=0o640, times=(1, 2))
    assert (mode(work / "file"), (work / "file").stat().st_mtime_ns) == (0o640, 2)
    await files.set("link", follow=False, times=(3, 4), owner=(os.getuid(), os.getgid()))
    assert ((work / "link").lstat().st_mtime_ns, (work / "file").stat().st_mtime_ns) == (4, 2)
    for change in ({"permissions": 0o777}, {"size": 0}):
        with pytest.raises(LocalFileError) as caught:
            await files.set("link", follow=False, **change)  # type: ignore[arg-type]
        assert caught.value.kind == "OSError"
    assert (mode(work / "file"), (work / "file").read_text()) == (0o640, "12345")


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
async def test_the_owner_of_a_link_is_its_own(files: Files, work: Path) -> None:
    (work / "file").touch()
    (work / "link").symlink_to("file")
    await files.set("link", follow=False, owner=(1234, 4321))
    await files.set("file", owner=(1, 2), permissions=0o4755)
    assert ((work / "link").lstat().st_uid, (work / "file").stat().st_uid) == (1234, 1)
    assert mode(work / "file") == 0o4755
    async with files.open("file", "update") as file:
        await file.set(owner=(3, 4), permissions=0o6755)
    assert (mode(work / "file"), (work / "file").stat().st_gid) == (0o6755, 4)


async def test_the_ways_to_open(files: Files, work: Path) -> None:
    for way in ("read", "update"):
        with pytest.raises(LocalFileError) as caught:
            await write(files, "file", b"", way)
        assert is_missing(caught.value)
    await write(files, "file", b"12345", "create")
    with pytest.raises(LocalFileError) as caught:
        await write(files, "file", b"", "create")
    assert caught.value.kind == "FileExistsError"
    await write(files, "file", b"ab", "update")
    assert await read(files, "file") == b"ab345"
    await write(files, "file", b"678", "append")
    assert await read(files, "file") == b"ab345678"
    await write(files, "file", b"x", "write")
    assert await read(files, "file") == b"x"
    await write(files, "new", b"y", "append")
    assert await read(files, "new") == b"y"


async def test_a_directory_is_no_file(files: Files, work: Path) -> None:
    (work / "directory").mkdir()
    for way in MODES:
        with pytest.raises(LocalFileError) as caught:
            await write(files, "directory", b"", way)
        assert caught.value.kind == ("FileExistsError" if way == "create" else "IsADirectoryError")


async def test_what_would_wait_is_not_opened(files: Files, work: Path) -> None:
    os.mkfifo(work / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        for name, kind in (("fifo", "a named pipe"), ("socket", "a socket")):
            for way in ("read", "write", "append", "update"):
                with pytest.raises(LocalFileError, match=f"it is {kind}, which cannot be opened as a file"):
                    await write(files, name, b"", way)


async def test_devices(files: Files) -> None:
    for way in ("write", "append", "update"):
        await write(files, "/dev/null", b"12345", way)
    assert await read(files, "/dev/null") == b""
    assert await read(files, "/dev/zero") == bytes(1000)
    with pytest.raises(NoSpaceLeft, match="no space is left on this machine for /dev/full"):
        await write(files, "/dev/full", b"x")
    async with files.open("/dev/null", "write") as file:
        await file.sync()


async def test_a_device_that_has_no_places(files: Files) -> None:
    """A terminal is a device that pread() and pwrite() do not take."""
    leader, follower = os.openpty()
    try:
        await write(files, os.ttyname(follower), b"hello")
        assert os.read(leader, 100) == b"hello"
        os.write(leader, b"line\n")
        async with files.open(os.ttyname(follower), "read") as file:
            assert await file.read(5, 0) == b"line\n"
    finally:
        os.close(leader)
        os.close(follower)


async def test_reading_and_writing_at_places(files: Files, work: Path) -> None:
    async with files.open("file", "write") as file:
        await file.write(b"world", 6)
        await file.write(b"hello ", 0)
        await file.write(b"", 100)
        assert (await file.stat()).size == 11
    async with files.open("file", "read") as file:
        assert await file.read(5, 6) == b"world"
        assert await file.read(100, 8) == b"rld"
        assert await file.read(100, 11) == b""
        assert await file.read(0, 0) == b""
        with pytest.raises(LocalFileError):
            await file.write(b"x", 0)


async def test_short_reads_and_writes_go_on(files: Files, work: Path, monkeypatch: Any) -> None:
    pread, pwrite = os.pread, os.pwrite
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: pread(fd, min(size, 3), offset))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:3], offset))
    await write(files, "file", b"1234567890")
    assert await read(files, "file") == b"1234567890"


async def test_setting_an_open_file(files: Files, work: Path) -> None:
    async with files.open("file", "write") as file:
        await file.write(b"12345", 0)
        await file.set(size=3, permissions=0o640, owner=(os.getuid(), os.getgid()), times=(1, 2))
        found = await file.stat()
        await file.sync()
    assert (found.size, found.mode, found.atime_ns, found.mtime_ns) == (3, 0o640, 1, 2)


async def test_the_data_of_a_file_with_holes(files: Files, work: Path, monkeypatch: Any) -> None:
    page = 65536
    async with files.open("file", "write") as file:
        await file.write(b"x" * page, 2 * page)
        await file.set(size=8 * page)
    async with files.open("file", "read") as file:
        assert [part async for part in file.data(8 * page)] == [(2 * page, page)]
        assert [part async for part in file.data(2 * page + 5)] == [(2 * page, 5)]
        assert [part async for part in file.data(page)] == []
        assert [part async for part in file.data(0)] == []

        def unable(*_: Any) -> int:
            raise OSError(errno.EINVAL, "no")

        monkeypatch.setattr(os, "lseek", unable)
        assert [part async for part in file.data(8 * page)] == [(0, 8 * page)]


async def test_copying_within_a_file_system(files: Files, work: Path, monkeypatch: Any) -> None:
    data = os.urandom(100_000)
    (work / "old").write_bytes(data)
    monkeypatch.setattr(opened, "_MOVED", 30_000)
    async with files.open("old", "read") as old, files.open("new", "write") as new:
        if await files.copy_within(old, new, len(data)):
            assert (work / "new").read_bytes() == data

    def unable(number: int) -> Any:
        def copy(*_: Any) -> int:
            raise OSError(number, "no")

        return copy

    async with files.open("old", "read") as old, files.open("new", "write") as new:
        for number in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            monkeypatch.setattr(os, "copy_file_range", unable(number))
            assert await files.copy_within(old, new, len(data)) is False
        assert await files.copy_within(old, object(), 1) is False  # type: ignore[arg-type]
        monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)
        assert await files.copy_within(old, new, len(data)) is False
        monkeypatch.setattr(os, "copy_file_range", unable(errno.ENOSPC))
        with pytest.raises(NoSpaceLeft, match="for new"):
            await files.copy_within(old, new, len(data))


async def test_a_file_is_closed_only_after_its_thread(files: Files, work: Path, monkeypatch: Any) -> None:
    going, seen, go = asyncio.Event(), [], threading.Event()
    loop = asyncio.get_running_loop()

    def slow(descriptor: int) -> None:
        loop.call_soon_threadsafe(going.set)
        go.wait(10)
        seen.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fsync", slow)

    async def synced() -> None:
        async with files.open("file", "write") as file:
            await file.write(b"1", 0)
            await file.sync()

    task = asyncio.create_task(synced())
    await going.wait()
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == [1]


async def test_a_file_that_cannot_be_synced(files: Files, monkeypatch: Any) -> None:
    async with files.open("file", "write") as file:
        for number, works in ((errno.EINVAL, True), (errno.EIO, False)):

            def broken(_: int, number: int = number) -> None:
                raise OSError(number, os.strerror(number))

            monkeypatch.setattr(os, "fsync", broken)
            if works:
                await file.sync()
            else:
                with pytest.raises(LocalFileError, match="Input/output error"):
                    await file.sync()


async def test_nothing_is_unpacked(files: Files) -> None:
    def archive() -> Any:
        raise AssertionError("it is not read")

    assert await files.unpack("x", archive) is False


async def test_long_looks_end_when_nobody_waits(files: Files, many: Path, monkeypatch: Any) -> None:
    stopped: list[threading.Event] = []

    async def at_once(function: Any) -> Any:
        event = threading.Event()
        event.set()
        stopped.append(event)
        return function(event)

    monkeypatch.setattr("reemote.transfer.local.in_thread", at_once)
    tree = await files.tree(".")
    assert tree is not None
    assert b"sub/c.txt" not in tree
    assert await files.digests(["a.txt"]) == [None]
    assert len(stopped) == 2


async def test_what_operations_see() -> None:
    local = here.get()
    assert (await local.info()).max_open_handles == 0
    assert (local.block, local.is_remote) == (261120, False)
    local.check("/etc/passwd")


def test_when_a_file_was_made_is_told_where_the_system_knows() -> None:
    class Status:
        st_mode, st_size, st_uid, st_gid, st_atime_ns, st_mtime_ns, st_birthtime = 0o100644, 1, 2, 3, 4, 5, 1.5

    assert calls.attributes(Status()).crtime_ns == 1_500_000_000  # type: ignore[arg-type]
