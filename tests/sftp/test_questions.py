"""Questions about files, asked of every kind of host."""

from __future__ import annotations

import os
import stat
from typing import Any

import pytest
from pydantic import ValidationError

from reemote import sftp
from reemote.execute import execute
from reemote.sftp import (
    Chdir,
    Client,
    Exists,
    Getatime,
    GetatimeNs,
    Getcrtime,
    GetcrtimeNs,
    Getcwd,
    Getmtime,
    GetmtimeNs,
    Getsize,
    Glob,
    GlobSftpName,
    Isdir,
    Isfile,
    Islink,
    Lexists,
    Listdir,
    Lstat,
    Read,
    Readdir,
    Readlink,
    Realpath,
    Stat,
    StatVfs,
)
from reemote.system import Return
from tests.sftp.conftest import Hosted

ODD = [
    b"plain",
    b"two words",
    b"new\nline",
    b"tab\t",
    b"'single'",
    b'"double"',
    b"$HOME `id`",
    b"-rf",
    b"~",
    b"~root",
    b"back\\slash",
    b"*",
    b"[x]?",
    "größe €".encode(),
    b"caf\xe9",
    b"\xff\xfe",
    b"#",
    b";",
    b"..x",
    b"x" * 255,
]
"""Names that are hard on those who are careless."""

QUESTIONS = [
    Islink, Isfile, Isdir, Getsize, Getatime, GetatimeNs, Getmtime, GetmtimeNs, Getcrtime, GetcrtimeNs, Stat, Read,
    Listdir, Readdir, Exists, Lexists, Lstat, Readlink, StatVfs, Realpath, Glob, GlobSftpName,
]  # fmt: skip


# What is there


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("file", "isfile exists lexists"),
        ("folder", "isdir exists lexists"),
        ("folder/", "isdir exists lexists"),
        ("folder/..", "isdir exists lexists"),
        ("to file", "islink isfile exists lexists"),
        ("to folder", "islink isdir exists lexists"),
        ("dangling", "islink lexists"),
        ("pipe", "exists lexists"),
        ("missing", ""),
        ("missing/missing", ""),
    ],
)
async def test_what_a_path_is(host: Hosted, name: str, expected: str) -> None:
    host.file("file")
    host.folder("folder")
    host.link("to file", "file")
    host.link("to folder", host.path("folder"))
    host.link("dangling", "nowhere")
    os.mkfifo(host.root / "pipe")
    questions = (Islink, Isfile, Isdir, Exists, Lexists)
    found = {question.route: await host.value(question(path=host.path(name))) for question in questions}
    assert found == {question.route: question.route in expected.split() for question in questions}


async def test_links_that_lead_in_a_circle(host: Hosted) -> None:
    host.link("one", "two")
    host.link("two", "one")
    assert await host.value(Islink(path=host.path("one"))) is True
    assert await host.value(Lexists(path=host.path("one"))) is True
    if host.kind in ("fake", "sandbox"):  # they say only "Failure", where OpenSSH says that there is no such file
        assert (await host.failure(Exists(path=host.path("one"))))["value"] == "SFTPFailure"
    else:
        assert await host.value(Exists(path=host.path("one"))) is False


@pytest.mark.parametrize("question", [q for q in QUESTIONS if q not in (Islink, Isfile, Isdir, Exists, Lexists)])
async def test_what_is_missing(host: Hosted, question: Any) -> None:
    response = await host.run(question(path=host.path("missing")))
    if question is Realpath:  # the last name may be missing
        assert response["value"] == host.path("missing")
        return
    assert (response["value"], response["error"], response["outcome"]) == ("SFTPNoSuchFile", True, "completed")
    assert response["changed"] is False
    assert host.path("missing") in response["detail"]


async def test_what_may_not_be_seen_is_an_error_and_not_absent(host: Hosted) -> None:
    if host.uid == 0:
        return  # nothing is closed to root
    host.file("file", mode=0)
    closed = host.folder("closed")
    (closed / "inner").touch()
    closed.chmod(0)
    try:
        for operation in (
            Exists(path=host.path("closed/inner")),
            Isdir(path=host.path("closed/inner")),
            Listdir(path=host.path("closed")),
            Read(path=host.path("file")),
        ):
            assert (await host.failure(operation))["value"] == "SFTPPermissionDenied"
    finally:
        closed.chmod(0o755)


# What it is like


async def test_size_and_times(host: Hosted) -> None:
    os.utime(host.file("file", b"12345"), (1_000_000_001, 1_234_567_890))
    path = host.path("file")
    assert await host.value(Getsize(path=path)) == 5
    assert await host.value(Getatime(path=path)) == 1_000_000_001
    assert isinstance(await host.value(Getatime(path=path)), float)
    assert await host.value(GetatimeNs(path=path)) == 1_000_000_001 * 10**9
    assert await host.value(Getmtime(path=path)) == 1_234_567_890
    assert await host.value(GetmtimeNs(path=path)) == 1_234_567_890 * 10**9
    assert await host.value(Getcrtime(path=path)) is None
    assert await host.value(GetcrtimeNs(path=path)) is None


async def test_the_size_of_a_file_beyond_4_gib(host: Hosted) -> None:
    os.truncate(host.file("file"), 5 * 2**30)
    assert await host.value(Getsize(path=host.path("file"))) == 5 * 2**30


async def test_stat(host: Hosted) -> None:
    os.utime(host.file("file", b"12345", 0o4640), (1_000_000_001, 1_234_567_890))
    link = host.link("link", "file")
    expected = {
        "uid": host.uid,
        "gid": (host.root / "file").stat().st_gid,
        "permissions": 0o640,
        "atime": 1_000_000_001,
        "mtime": 1_234_567_890,
        "size": 5,
    }
    for operation in (Stat(path=host.path("file")), Stat(path=host.path("link")), Lstat(path=host.path("file"))):
        found = await host.value(operation)
        assert found == expected
        assert list(found) == list(expected)
        assert found.permissions == 0o640
    of_link = await host.value(Lstat(path=host.path("link")))
    assert (of_link.permissions, of_link.size) == (link.lstat().st_mode & 0o777, 4)
    assert await host.value(Stat(path=host.path("link"), follow_symlinks=False)) == of_link


async def test_the_file_system(host: Hosted) -> None:
    found, expected = await host.value(StatVfs(path=host.path())), os.statvfs(host.root)
    assert list(found) == [
        "bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail", "fsid", "flag", "namemax",
    ]  # fmt: skip
    assert (found.frsize, found.blocks, found.namemax) == (expected.f_frsize, expected.f_blocks, expected.f_namemax)
    assert all(type(value) is int for value in found.values())


async def test_the_session(host: Hosted) -> None:
    found = await host.value(Client())
    assert list(found) == [
        "version", "max_packet_len", "max_read_len", "max_write_len", "max_open_handles", "supports_remote_copy",
    ]  # fmt: skip
    assert found.version == 3
    assert found.max_read_len >= 32 * 1024 or host.kind == "fake"
    assert isinstance(found.supports_remote_copy, bool)


# Directories


@pytest.mark.parametrize("kind", ["sandbox", pytest.param("internal-sftp", marks=pytest.mark.slow)])
async def test_names_of_all_kinds(host: Hosted) -> None:
    for name in ODD:
        host.file(name, name)
    assert await host.value(Listdir(path=os.fsencode(host.where))) == sorted(ODD)
    names = await host.value(Listdir(path=host.path()))
    assert names == [os.fsdecode(name) for name in sorted(ODD)]
    for name in ODD:
        text = host.path(os.fsdecode(name))
        assert await host.value(Read(path=text, encoding=None)) == name
        assert await host.value(Isfile(path=os.fsencode(text))) is True
        assert await host.value(Realpath(path=text)) == text
    named = await host.value(Readdir(path=os.fsencode(host.where)))
    assert [each["filename"] for each in named] == sorted(ODD)


async def test_relative_names_are_not_expanded(host: Hosted) -> None:
    for name in ("~", "-x", "$HOME"):
        host.file(name, name.encode())
    for name in ("~", "-x", "$HOME"):

        class Root:
            async def execute(self, name: str = name) -> Any:
                yield Chdir(path=host.path())
                yield Read(path=name)

        [response] = await execute(Root, inventory=host.inventory, pool=host.pool)
        assert response["value"] == name


async def test_an_empty_directory_and_what_is_none(host: Hosted) -> None:
    host.folder("empty")
    host.file("file")
    assert await host.value(Listdir(path=host.path("empty"))) == []
    assert await host.value(Readdir(path=host.path("empty"))) == []
    assert (await host.failure(Listdir(path=host.path("file"))))["value"] in ("SFTPFailure", "SFTPNoSuchFile")


async def test_readdir(host: Hosted) -> None:
    os.utime(host.file("file", b"12345", 0o640), (1_000_000_001, 1_234_567_890))
    host.folder("folder", 0o750)
    host.link("link", "nowhere")
    found = await host.value(Readdir(path=host.path()))
    assert [each.filename for each in found] == ["file", "folder", "link"]
    file, folder, link = found
    assert list(file) == ["uid", "gid", "permissions", "atime", "mtime", "size", "filename", "longname"]
    assert (file.permissions, folder.permissions) == (stat.S_IFREG | 0o640, stat.S_IFDIR | 0o750)
    assert stat.S_ISLNK(link.permissions)
    assert (file.uid, file.atime, file.mtime, file.size) == (host.uid, 1_000_000_001, 1_234_567_890, 5)
    assert file.longname.startswith("-rw-r-----")
    assert file.longname.endswith("file")


@pytest.mark.slow
async def test_a_directory_of_10_000_names(host: Hosted) -> None:
    for number in range(10_000):
        (host.root / f"{number:05}").touch()
    expected = [f"{number:05}" for number in range(10_000)]
    assert await host.value(Listdir(path=host.path())) == expected
    assert [each["filename"] for each in await host.value(Readdir(path=host.path()))] == expected


async def test_where_a_link_leads(host: Hosted) -> None:
    host.file("file")
    for name, target in {"a": b"file", "b": b"/no where/\n", "c": b"caf\xe9", "d": b"./a/../b//"}.items():
        host.link(name, target)
        assert await host.value(Readlink(path=host.path(name))) == os.fsdecode(target)
        assert await host.value(Readlink(path=os.fsencode(host.path(name)))) == target
    response = await host.failure(Readlink(path=host.path("file")))
    assert (response["value"], response["detail"]) == (
        "SFTPFailure",
        f"{host.path('file')} is a file, not a symbolic link",
    )


async def test_real_paths(host: Hosted) -> None:
    host.folder("folder")
    host.link("link", "folder")
    assert await host.value(Realpath(path=host.path("link/../link/./"))) == host.path("folder")
    assert await host.value(Realpath(path=os.fsencode(host.path("link")))) == os.fsencode(host.path("folder"))
    assert await host.value(Realpath(path="/")) == "/"


async def test_the_working_directory(host: Hosted) -> None:
    host.folder("folder")
    host.file("folder/file", b"x")
    host.link("link", "folder")
    start = await host.value(Getcwd())
    assert start.startswith("/")
    found: list[Any] = []

    class Root:
        async def execute(self) -> Any:
            for step in (
                Chdir(path=host.path("link")), Getcwd(), Read(path="file"), Listdir(path="."), Realpath(path="file"),
                Chdir(path=".."), Getcwd(), Isdir(path="folder"),
                Chdir(path="missing"), Getcwd(), Chdir(path="folder/file"), Getcwd(),
            ):  # fmt: skip
                response = yield step
                found.append(response["value"])
                assert response["changed"] is False
            yield Return(value=None)

    [response] = await execute(lambda: Root(), inventory=host.inventory, pool=host.pool)
    assert response["changed"] is False
    root, folder = host.where, host.path("folder")
    assert found.pop(-2) in ("SFTPFailure", "SFTPNoSuchFile"), "a file is no directory"
    assert found == [
        None, folder, "x", ["file"], f"{folder}/file", None, root, True, "SFTPNoSuchFile", root, root,
    ]  # fmt: skip
    assert await host.value(Getcwd()) == start, "another run begins anew"


# Patterns


async def test_glob(host: Hosted) -> None:
    for folder in ("a", "b", "b/c"):
        host.folder(folder)
    for name in ("a/1.conf", "a/2.txt", "b/3.conf", "b/c/4.conf", "b/.hidden", "b/c/[5]"):
        host.file(name)
    host.link("a/link.conf", "nowhere")
    root = host.path()

    async def glob(*patterns: str) -> list[str]:
        found = await host.value(Glob(path=[root + pattern for pattern in patterns]))
        return [path.removeprefix(root) for path in found]

    assert await glob("a/*.conf") == ["a/1.conf", "a/link.conf"]
    assert await glob("?/[0-9].conf") == ["a/1.conf", "b/3.conf"]
    assert sorted(await glob("**/*.conf")) == ["a/1.conf", "a/link.conf", "b/3.conf", "b/c/4.conf"]
    assert await glob("b/*.conf", "a/2.txt", "b/3*") == ["a/2.txt", "b/3.conf"]
    assert await glob("a") == ["a"]
    assert await host.value(Glob(path=os.fsencode(f"{root}a/*.txt"))) == [os.fsencode(f"{root}a/2.txt")]
    assert await host.value(Glob(path=f"{root}a/*.txt")) == [f"{root}a/2.txt"]
    assert (await host.failure(Glob(path=[f"{root}a/*", f"{root}*.nothing"])))["value"] == "SFTPNoSuchFile"


async def test_glob_with_what_is_told_of_each_file(host: Hosted) -> None:
    os.utime(host.file("1.conf", b"12345", 0o640), (1_000_000_001, 1_234_567_890))
    host.link("2.conf", "1.conf")
    host.link("3.conf", "nowhere")
    found = await host.value(GlobSftpName(path=host.path("*.conf")))
    assert [each.filename for each in found] == [host.path(f"{number}.conf") for number in (1, 2, 3)]
    assert list(found[0]) == ["uid", "gid", "permissions", "atime", "mtime", "size", "filename", "longname"]
    assert (found[0].permissions, found[0].size, found[0].mtime) == (stat.S_IFREG | 0o640, 5, 1_234_567_890)
    assert [stat.S_ISLNK(each.permissions) for each in found] == [False, True, True]


async def test_a_relative_pattern_gives_relative_paths(host: Hosted) -> None:
    host.folder("folder")
    host.file("folder/a.txt")

    class Root:
        async def execute(self) -> Any:
            yield Chdir(path=host.path())
            plain = yield Glob(path="*/*.txt")
            named = yield GlobSftpName(path="folder/*")
            yield Return(value=[plain["value"], [each["filename"] for each in named["value"]]])

    [response] = await execute(lambda: Root(), inventory=host.inventory, pool=host.pool)
    assert response["value"] == [["folder/a.txt"], ["folder/a.txt"]]


# Arguments


@pytest.mark.parametrize("question", [*QUESTIONS, sftp.Remove, sftp.Chdir])
@pytest.mark.parametrize("path", ["", b"", "a\0b", b"a\0b", None, 5, "\ud800"])
def test_paths_that_no_file_can_have(question: Any, path: Any) -> None:
    with pytest.raises(ValidationError, match="path"):
        question(path=path)


def test_patterns_are_checked_one_by_one() -> None:
    wrong: list[Any] = [[], ["a", ""], ["a\0"], [5], {"a": 1}]
    for patterns in wrong:
        with pytest.raises(ValidationError, match="path"):
            Glob(path=patterns)


async def test_a_group_leaves_the_host_out(host: Hosted) -> None:
    class Root:
        async def execute(self) -> Any:
            response = yield Isdir(path="/", group="nobody")
            yield Return(value=bool(response))

    [response] = await execute(lambda: Root(), inventory=host.inventory, pool=host.pool)
    assert response["value"] is False
