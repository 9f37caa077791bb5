"""Reading and writing texts, on every kind of host."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from reemote.sftp import Read, Write
from tests.sftp.conftest import Hosted

BIG = random.Random(1).randbytes(1_500_000)

HERE = pytest.mark.parametrize("kind", ["sandbox", pytest.param("internal-sftp", marks=pytest.mark.slow)])


# Read


async def test_a_text(host: Hosted) -> None:
    host.file("file", "größe\r\n€\n\0end".encode())
    assert await host.value(Read(path=host.path("file"))) == "größe\r\n€\n\0end"
    assert await host.value(Read(path=host.path("file"), encoding=None)) == "größe\r\n€\n\0end".encode()
    host.file("empty", b"")
    assert await host.value(Read(path=host.path("empty"))) == ""


@HERE
async def test_encodings(host: Hosted) -> None:
    host.file("latin", b"gr\xf6\xdfe")
    path = host.path("latin")
    assert await host.value(Read(path=path, encoding="latin-1")) == "größe"
    assert await host.value(Read(path=path, errors="replace")) == "gr\ufffd\ufffde"
    assert await host.value(Read(path=path, errors="surrogateescape")) == "gr\udcf6\udcdfe"
    response = await host.failure(Read(path=path))
    assert response["value"] == "UnicodeDecodeError"
    assert response["detail"] == (
        f"{path} is not utf-8 at byte 2 (invalid start byte): give its encoding, errors='replace', "
        "or encoding=None for bytes"
    )
    host.file("wide", "größe".encode("utf-16"))
    assert await host.value(Read(path=host.path("wide"), encoding="utf-16")) == "größe"


@pytest.mark.parametrize(
    "options", [{}, {"block_size": 1000, "max_requests": 3}, {"block_size": 10**9}, {"max_requests": 1}]
)
async def test_a_text_of_many_blocks(host: Hosted, options: dict[str, Any]) -> None:
    host.file("file", BIG)
    assert await host.value(Read(path=host.path("file"), encoding=None, **options)) == BIG


@HERE
async def test_a_file_whose_size_is_not_told(host: Hosted) -> None:
    text = await host.value(Read(path="/proc/self/status"))
    assert text.startswith("Name:\t")
    assert text.endswith("\n")
    assert await host.value(Read(path="/proc/cpuinfo")) == Path("/proc/cpuinfo").read_text()


@HERE
async def test_there_is_a_limit(host: Hosted) -> None:
    host.file("file", b"x" * 1000)
    path = host.path("file")
    assert await host.value(Read(path=path, max_bytes=1000)) == "x" * 1000
    for limited in (Read(path=path, max_bytes=999), Read(path="/dev/zero", max_bytes=100_000)):
        response = await host.failure(limited)
        assert response["value"] == "FileTooLarge"
        assert "sftp.Get" in response["detail"]


async def test_what_is_no_file_cannot_be_read(host: Hosted) -> None:
    host.folder("folder")
    os.mkfifo(host.root / "pipe")
    assert (await host.failure(Read(path=host.path("folder"))))["value"] == "SFTPFailure"
    response = await host.failure(Read(path=host.path("pipe")))
    assert response["detail"] == f"{host.path('pipe')} is a named pipe, not a file"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"encoding": "klingon"}, "encoding: unknown encoding: klingon"),
        ({"encoding": "hex"}, "encoding: 'hex' is not a text encoding"),
        ({"encoding": "undefined"}, "encoding: "),
        ({"encoding": "a\0b"}, "encoding: embedded null character"),
        ({"errors": "shrug"}, "errors: unknown error handler name 'shrug'"),
        ({"errors": "xmlcharrefreplace"}, "errors: "),
        ({"max_bytes": -1}, "max_bytes"),
        ({"block_size": -2}, "block_size"),
        ({"max_requests": "many"}, "max_requests"),
    ],
)
def test_what_cannot_be_asked_of_reading(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Read(path="x", **options)
    assert complaint in str(caught.value)


# Write


async def test_a_new_file(host: Hosted) -> None:
    path = host.path("file")
    assert await host.changed(Write(text="größe\r\n€\n", path=path))
    assert (host.root / "file").read_bytes() == "größe\r\n€\n".encode()
    assert host.mode("file") == 0o644
    assert host.names() == ["file"]
    assert not await host.changed(Write(text="größe\r\n€\n", path=path))


@pytest.mark.parametrize("in_place", [False, True])
async def test_a_file_that_is_there(host: Hosted, in_place: bool) -> None:
    path = host.path("file")
    host.file("file", b"12345", 0o600)
    before = (host.root / "file").stat()
    assert await host.changed(Write(text="123456", path=path, in_place=in_place))
    assert (host.root / "file").read_bytes() == b"123456"
    # The number of the first file is free from now on, so a later one may have it.
    assert ((host.root / "file").stat().st_ino == before.st_ino) == in_place
    assert await host.changed(Write(text="54321!", path=path, in_place=in_place))
    assert await host.changed(Write(text="", path=path, in_place=in_place))
    assert not await host.changed(Write(text="", path=path, in_place=in_place))
    after = (host.root / "file").stat()
    assert after.st_size == 0
    assert (after.st_mode, after.st_uid) == (before.st_mode, before.st_uid)
    assert host.names() == ["file"]


async def test_what_is_written_already_is_not_touched(host: Hosted) -> None:
    file = host.file("file", b"content", 0o640)
    os.utime(file, (1_000_000_001, 1_234_567_890))
    before = file.stat()
    for same in (
        Write(text="content", path=host.path("file")),
        Write(text=b"content", path=host.path("file"), encoding=None),
        Write(text="content", path=host.path("file"), permissions=0o640),
        Write(text="content", path=host.path("file"), uid=before.st_uid, gid=before.st_gid),
        Write(text="", path=host.path("file"), mode="a"),
    ):
        assert not await host.changed(same)
    after = file.stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_mode) == (before.st_ino, before.st_mtime_ns, before.st_mode)
    assert not await host.changed(
        Write(text="content", path=host.path("file"), mtime=1_234_567_890, atime=file.stat().st_atime)
    )


async def test_only_what_differs_is_set_of_what_is_written_already(host: Hosted) -> None:
    file = host.file("file")
    before = file.stat()
    assert await host.changed(Write(text="content", path=host.path("file"), permissions=0o600))
    assert await host.changed(Write(text="content", path=host.path("file"), atime=5, mtime=1_234_567_890))
    after = file.stat()
    assert (after.st_ino, host.mode("file"), int(after.st_mtime)) == (before.st_ino, 0o600, 1_234_567_890)


@pytest.mark.parametrize("mode", ["w", "x", "a"])
async def test_attributes_of_a_new_file(host: Hosted, mode: Any) -> None:
    path = host.path("file")
    wanted: dict[str, Any] = {"permissions": 0o777, "atime": 1_000_000_001.9, "mtime": 1_234_567_890}
    assert await host.changed(Write(text="x", path=path, mode=mode, uid=host.uid, **wanted))
    found = (host.root / "file").stat()
    assert (host.mode("file"), int(found.st_atime), found.st_mtime) == (0o777, 1_000_000_001, 1_234_567_890)
    if mode == "w":
        assert not await host.changed(Write(text="x", path=path, permissions=0o777, mtime=1_234_567_890, atime=5)) or (
            found.st_atime != 5
        )


async def test_a_text_of_many_blocks_is_written(host: Hosted) -> None:
    for mode in ("w", "a", "x"):
        path = host.path(mode)
        write = Write(text=BIG, path=path, mode=mode, block_size=100_000, max_requests=4)
        assert await host.changed(write)
        assert (host.root / mode).read_bytes() == BIG
    assert not await host.changed(Write(text=BIG, path=host.path("w")))
    assert await host.changed(Write(text=BIG[:-1] + b"\0", path=host.path("w")))
    assert (host.root / "w").read_bytes() == BIG[:-1] + b"\0"


async def test_append(host: Hosted) -> None:
    path = host.path("file")
    assert await host.changed(Write(text="one\n", path=path, mode="a"))
    assert await host.changed(Write(text="two\n", path=path, mode="ab"))
    assert (host.root / "file").read_text() == "one\ntwo\n"
    assert await host.changed(Write(text="", path=host.path("empty"), mode="a"))
    assert (host.root / "empty").read_bytes() == b""


async def test_only_where_there_is_none(host: Hosted) -> None:
    path = host.path("file")
    host.link("link", "elsewhere")
    assert await host.changed(Write(text="one", path=path, mode="x"))
    # The fake follows the link.
    for there in (path, host.path("link")) if host.kind != "fake" else (path,):
        assert (await host.failure(Write(text="two", path=there, mode="xb")))["value"] == "SFTPFailure"
    assert (host.root / "file").read_text() == "one"
    assert host.names() == ["file", "link"]


@pytest.mark.parametrize("mode", ["w", "a"])
async def test_a_link_leads_to_the_file(host: Hosted, mode: Any) -> None:
    host.folder("folder")
    host.file("folder/file", b"old")
    host.link("link", "folder/file")
    host.link("dangling", "folder/new")
    assert await host.changed(Write(text="new", path=host.path("link"), mode=mode))
    assert await host.changed(Write(text="new", path=host.path("dangling"), mode=mode))
    assert (host.root / "link").is_symlink()
    assert (host.root / "folder/file").read_text() == ("new" if mode == "w" else "oldnew")
    assert (host.root / "folder/new").read_text() == "new"


@pytest.mark.parametrize("mode", ["w", "a", "x"])
async def test_what_is_no_file_cannot_be_written(host: Hosted, mode: Any) -> None:
    host.folder("folder")
    os.mkfifo(host.root / "pipe")
    for name in ("folder", "pipe"):
        response = await host.failure(Write(text="x", path=host.path(name), mode=mode))
        assert response["value"] == "SFTPFailure"
    response = await host.failure(Write(text="x", path=host.path("missing/file"), mode=mode))
    assert response["value"] == "SFTPNoSuchFile"
    assert host.names() == ["folder", "pipe"]


@HERE
async def test_a_device_is_written_to_and_stays(host: Hosted) -> None:
    for mode in ("w", "a"):
        assert await host.changed(Write(text="x", path="/dev/null", mode=mode))
    assert Path("/dev/null").is_char_device()


async def test_what_may_not_be_written(host: Hosted) -> None:
    if host.uid == 0:
        return  # nothing is closed to root
    host.file("file", b"old", 0o444)
    host.folder("closed", 0o555)
    assert (await host.failure(Write(text="x", path=host.path("file"), mode="a")))["value"] == "SFTPPermissionDenied"
    for mode in ("w", "x", "a"):
        response = await host.failure(Write(text="x", path=host.path("closed/new"), mode=mode))
        assert response["value"] == "SFTPPermissionDenied"
    assert host.names("closed") == []
    assert await host.changed(Write(text="x", path=host.path("file"))), "the directory is what counts"


@HERE
async def test_names_and_texts_that_are_not_utf_8(host: Hosted) -> None:
    path = os.fsencode(host.path()) + b"caf\xe9\n"
    assert await host.changed(Write(text="gr\udcf6\udcdfe", path=path, errors="surrogateescape"))
    assert not await host.changed(Write(text="größe", path=os.fsdecode(path), encoding="latin-1"))
    assert [os.fsencode(name) for name in host.names()] == [b"caf\xe9\n"]
    assert (host.root / os.fsdecode(b"caf\xe9\n")).read_bytes() == b"gr\xf6\xdfe"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"text": "größe", "encoding": "ascii"}, "text: ascii cannot encode it: ordinal not in range(128)"),
        ({"text": "\udc80"}, "text: utf-8 cannot encode it: surrogates not allowed"),
        ({"text": "x", "encoding": "klingon"}, "encoding: unknown encoding: klingon"),
        ({"text": "x", "encoding": "undefined"}, "encoding: "),
        ({"text": "x", "encoding": None}, "encoding: a text needs one"),
        ({"text": "x", "errors": "shrug"}, "errors: unknown error handler name 'shrug'"),
        ({"text": "x", "mode": "r"}, "mode"),
        ({"text": "x", "mode": "w+"}, "mode"),
        ({"text": 5}, "text"),
        ({"text": "x", "permissions": "0o888"}, "octal digits"),
        ({"text": "x", "permissions": 0o10000}, "permissions"),
        ({"text": "x", "atime": 5}, "atime and mtime are set together"),
        ({"text": "x", "mtime": 5}, "atime and mtime are set together"),
        ({"text": "x", "uid": -1}, "uid"),
    ],
)
def test_what_cannot_be_asked_of_writing(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Write(path="x", **options)
    assert complaint in str(caught.value)


def test_a_complaint_does_not_repeat_the_text() -> None:
    with pytest.raises(ValidationError) as caught:
        Write(text="S3CR3T\udc80", path="x")
    assert "S3CR3T" not in str(caught.value)
