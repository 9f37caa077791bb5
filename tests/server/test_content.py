"""Content over HTTP: whole on every host or not there at all, however client and hosts behave."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import json
import os
import random
import re
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Self

import click
import httpx2
import pytest

from reemote.cli.serve import serve
from reemote.core.errors import ConnectionRefused, ConnectTimeout, HostUnreachable, SFTPError
from reemote.server.app import App
from reemote.server.guard import STREAMED
from reemote.server.settings import GIB, Settings
from reemote.server.streams import AHEAD, BLOCK, disposition
from reemote.ssh.opened import SftpFile
from reemote.testing import Sandbox
from tests.leaks import eventually
from tests.openssh_fixtures import MakeUserSshd
from tests.server.inprocess import FakePool, client
from tests.server.inprocess import served as served_by_fake
from tests.server.serving import Served, serving, write_inventory

HOSTS = ("server104", "server105")
URL = "/reemote/sftp/content"
LEFT = ".reemote-"
"""What the names of temporary files have in them."""


def some(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.fixture
async def fleet() -> AsyncIterator[Sandbox]:
    hosts = Sandbox(*HOSTS)
    async with hosts:
        yield hosts


@contextlib.asynccontextmanager
async def serving_fleet(fleet: Sandbox, directory: Path, **options: Any) -> AsyncIterator[Served]:
    async with serving(directory, inventory=write_inventory(fleet, directory), **options) as one:
        yield one


@pytest.fixture
async def served(fleet: Sandbox, tmp_path: Path) -> AsyncIterator[Served]:
    async with serving_fleet(fleet, tmp_path) as one:
        yield one


def names(fleet: Sandbox) -> list[list[str]]:
    """What is in the homes of the hosts."""
    return [sorted(each.name for each in fleet[name].home.iterdir()) for name in HOSTS]


class Sending:
    """A body that is sent as the test says."""

    def __init__(self) -> None:
        self._parts: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.taken = 0

    def send(self, *parts: bytes) -> None:
        for part in parts:
            self._parts.put_nowait(part)

    def end(self) -> None:
        self._parts.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (part := await self._parts.get()) is not None:
            yield part
            self.taken += len(part)


def put(served: Served, body: Any, **query: Any) -> asyncio.Task[httpx2.Response]:
    return asyncio.create_task(served.client.put(URL, params={"path": "file", **query}, content=body))


class Raw:
    """A client that sends as the test says, and hears an answer at any time."""

    def __init__(self, served: Served, *headers: str, path: str = "file") -> None:
        self._url = served.client.base_url
        lines = [f"PUT {URL}?path={path} HTTP/1.1", "Host: localhost", *(headers or ["Transfer-Encoding: chunked"])]
        self._head = "".join(f"{line}\r\n" for line in [*lines, ""]).encode()

    async def __aenter__(self) -> Self:
        self._reader, self.writer = await asyncio.open_connection(self._url.host, self._url.port)
        self.writer.write(self._head)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    def chunk(self, data: bytes) -> None:
        self.writer.write(b"%x\r\n%b\r\n" % (len(data), data))

    async def answer(self) -> bytes:
        """Give all that comes until the connection ends."""
        return await self._reader.read()


async def begun(fleet: Sandbox, *hosts: str) -> None:
    """Wait until all hosts have a temporary file with something in it."""
    homes = [fleet[name].home for name in hosts or HOSTS]
    await eventually(lambda: all(any(LEFT in f.name and f.stat().st_size for f in home.iterdir()) for home in homes))


# To hosts


async def test_what_is_sent_arrives_on_all_hosts(served: Served, fleet: Sandbox) -> None:
    for size in (0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 20 * BLOCK + 7):
        data = some(size)
        done = await put(served, data)

        value = {"size": size, "sha256": hashlib.sha256(data).hexdigest()}
        assert done.status_code == 200
        assert done.json() == [{"host": name, "value": value, "changed": True, "error": False} for name in HOSTS]
        assert [(fleet[name].home / "file").read_bytes() == data for name in HOSTS] == [True, True]
        assert names(fleet) == [["file"], ["file"]]


async def test_to_one_host(served: Served, fleet: Sandbox) -> None:
    done = await put(served, b"x", host="server105")
    assert [each["host"] for each in done.json()] == ["server105"]
    assert names(fleet) == [[], ["file"]]


async def test_the_type_of_the_body_does_not_matter(served: Served, fleet: Sandbox) -> None:
    kinds = ["text/plain", "application/json", "multipart/form-data; boundary=x", "nonsense", None]
    for number, kind in enumerate(kinds):
        headers = {"content-type": kind} if kind else {}
        content = b'{"path": "other", "number": %d' % number
        done = await served.client.put(URL, params={"path": "file"}, content=content, headers=headers)
        assert done.status_code == 200
        assert (fleet["server104"].home / "file").read_bytes() == content


async def test_the_file_keeps_its_mode_or_gets_the_one_that_is_given(served: Served, fleet: Sandbox) -> None:
    file = fleet["server104"].home / "file"
    file.write_bytes(b"old")
    file.chmod(0o640)
    await put(served, b"new", host="server104")
    assert (file.read_bytes(), stat.S_IMODE(file.stat().st_mode)) == (b"new", 0o640)
    await put(served, b"newer", host="server104", permissions="0600")
    assert (file.read_bytes(), stat.S_IMODE(file.stat().st_mode)) == (b"newer", 0o600)
    if os.geteuid() == 0:
        await put(served, b"newest", host="server104", uid=1, gid=2)
        assert (file.stat().st_uid, file.stat().st_gid) == (1, 2)


async def test_a_file_is_replaced_or_written_into(served: Served, fleet: Sandbox) -> None:
    file, other = fleet["server104"].home / "file", fleet["server104"].home / "other"
    file.write_bytes(b"old and longer")
    other.hardlink_to(file)
    await put(served, b"new", host="server104", in_place="true")
    assert other.read_bytes() == b"new"
    await put(served, b"newer", host="server104")
    assert (file.read_bytes(), other.read_bytes()) == (b"newer", b"new")


async def test_what_is_no_file_is_left_alone(served: Served, fleet: Sandbox) -> None:
    home = fleet["server104"].home
    (home / "dir").mkdir()
    os.mkfifo(home / "fifo")
    (home / "link").symlink_to("fifo")
    for path, what in (("dir", "a directory"), ("fifo", "a named pipe"), ("link", "a named pipe"), (".", "a dir")):
        done = await put(served, b"x", path=path, host="server104")
        assert done.status_code == 200
        assert (done.json()[0]["value"], done.json()[0]["changed"]) == ("SFTPFailure", False)
        assert what in done.json()[0]["detail"]


WRONG: list[dict[str, Any]] = [
    {},
    {"path": ""},
    {"path": "\0"},
    {"path": "x", "host": "nobody"},
    {"path": "x", "host": "server104", "group": "none"},
    {"path": "x", "permissions": "9"},
    {"path": "x", "uid": "-1"},
    {"path": "x", "timeout": "0"},
    {"path": "x", "nonsense": "1"},
    {"path": "x", "body": "1"},
    {"path": ["x", "y"]},
]


async def test_wrong_parameters_are_refused(served: Served, fleet: Sandbox) -> None:
    for query in WRONG:
        done = await served.client.put(URL, params=query, content=b"x")
        assert done.status_code == 422, query
        assert done.json()["error"] is True
        assert done.headers["connection"] == "close", "nobody has read the body"
    assert names(fleet) == [[], []]
    assert not served.settings.audit_file.exists()


async def test_a_group_without_hosts(served: Served) -> None:
    done = await put(served, some(3 * BLOCK), group="none")
    assert (done.status_code, done.json()) == (200, [])


async def test_it_is_a_run_like_others(served: Served, fleet: Sandbox) -> None:
    await put(served, b"one")
    await put(served, b"two", path="/nowhere/file")

    begin, end, other_begin, other_end = served.audit()
    assert [each["event"] for each in (begin, end)] == ["begin", "end"]
    assert {each["operation"] for each in served.audit()} == {"sftp.content"}
    assert begin["hosts"] == list(HOSTS)
    assert begin["arguments"] != other_begin["arguments"], "the path is among them"
    assert (end["outcomes"], other_end["outcomes"]) == ({"changed": 2}, {"SFTPNoSuchFile": 2})
    assert await served.metric('reemote_runs_total{operation="sftp.content"}') == 2
    assert await served.metric("reemote_runs_active") == 0
    assert await served.metric(f'reemote_requests_total{{method="PUT",route="{URL}",status="200"}}') == 2
    assert [fleet[name].connections for name in HOSTS] == [1, 1]


# Hosts that fail


async def test_a_host_that_fails_at_once_does_not_disturb_the_others(served: Served, fleet: Sandbox) -> None:
    (fleet["server105"].home / "sub").mkdir()
    data = some(40 * BLOCK)
    one, two = (await put(served, data, path="sub/file")).json()
    assert (one["value"], one["changed"], two["error"]) == ("SFTPNoSuchFile", False, False)
    assert (fleet["server105"].home / "sub" / "file").read_bytes() == data


async def test_a_host_that_fails_in_between_does_not_disturb_the_others(served: Served, fleet: Sandbox) -> None:
    data, body = some(40 * BLOCK), Sending()
    done = put(served, body)
    body.send(data[: 4 * BLOCK])
    await begun(fleet)
    fleet["server104"].drop_connections()
    body.send(data[4 * BLOCK :])
    body.end()

    one, two = (await done).json()
    assert (one["value"], two["error"]) == ("ConnectionLost", False)
    assert (fleet["server105"].home / "file").read_bytes() == data
    assert not (fleet["server104"].home / "file").exists()


async def test_when_all_hosts_have_failed_the_client_may_finish(served: Served, fleet: Sandbox) -> None:
    done = await put(served, some(100 * BLOCK), path="/nowhere/file")
    assert [each["value"] for each in done.json()] == ["SFTPNoSuchFile"] * 2
    assert "connection" not in done.headers


async def test_a_client_that_asks_first_need_not_send_what_no_host_takes(served: Served) -> None:
    async with Raw(served, "Expect: 100-continue", "Content-Length: 9", path="/nowhere/file") as raw:
        answer = await raw.answer()
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"connection: close" in answer
    assert b"SFTPNoSuchFile" in answer


async def test_hosts_that_are_down(tmp_path: Path) -> None:
    with served_by_fake(tmp_path, *HOSTS) as api:
        api.fake.fail("server105", ConnectionRefused("nobody is there"))
        async with client(api) as http:
            done = await http.put(URL, params={"path": "/file"}, content=some(3 * BLOCK))
    assert [(each["error"], each["value"]) for each in done.json()][1] == (True, "ConnectionRefusedError")
    assert (api.fake.files("server104") / "file").read_bytes() == some(3 * BLOCK)


class Gate:
    """Holds up what is written to one host."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = asyncio.Event()
        self.waiting = 0
        original = SftpFile.write

        async def write(file: SftpFile, data: bytes, offset: int) -> None:
            files: Any = file._wait.__self__  # type: ignore[attr-defined]  # a method of the host's files
            if bytes(home) in await files.realpath(b"."):
                self.waiting += 1
                await self.opened.wait()
            await original(file, data, offset)

        monkeypatch.setattr(SftpFile, "write", write)


async def test_a_slow_host_holds_the_others_back_within_a_small_buffer(
    served: Served, fleet: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(fleet["server104"].home, monkeypatch)
    data, body = some(100 * BLOCK), Sending()
    done = put(served, body)
    body.send(*(data[start : start + BLOCK] for start in range(0, len(data), BLOCK)))
    body.end()

    def size() -> int:
        return max((f.stat().st_size for f in fleet["server105"].home.iterdir()), default=0)

    # One of the slow host's blocks is with each writer, the others wait; one more is on its way to it.
    await eventually(lambda: gate.waiting == AHEAD and size() == 2 * AHEAD * BLOCK)
    assert not done.done()
    assert body.taken < 80 * BLOCK
    gate.opened.set()

    assert [each["error"] for each in (await done).json()] == [False, False]
    assert [(fleet[name].home / "file").read_bytes() == data for name in HOSTS] == [True, True]


async def test_a_host_that_hangs_is_given_up_when_the_time_is_over(
    served: Served, fleet: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(fleet["server104"].home, monkeypatch)
    done = await put(served, some(60 * BLOCK), timeout=1)
    assert done.status_code == 200
    assert {each["value"] for each in done.json()} == {"Cancelled"}
    assert gate.waiting
    assert names(fleet) == [[], []]


async def test_more_hosts_than_can_run_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakePool, "prepare", lambda self, items: 1)
    with served_by_fake(tmp_path, *HOSTS) as api:
        async with client(api) as http:
            done = await http.put(URL, params={"path": "/file"}, content=b"x")
            assert (done.status_code, "1 at most" in done.text) == (422, True)
            done = await http.put(URL, params={"path": "/file", "host": "server105"}, content=b"x")
            assert done.json()[0]["error"] is False


# Clients that fail


@pytest.fixture
def old(fleet: Sandbox) -> None:
    for name in HOSTS:
        (fleet[name].home / "file").write_bytes(b"old")


async def nothing_came_of_it(served: Served, fleet: Sandbox) -> None:
    await eventually(lambda: names(fleet) == [["file"], ["file"]])
    assert [(fleet[name].home / "file").read_bytes() for name in HOSTS] == [b"old", b"old"]
    await eventually(lambda: served.audit()[-1]["event"] == "end")
    assert served.audit()[-1]["outcomes"] == {"cancelled": 1}
    assert await served.metric("reemote_runs_active") == 0


async def test_a_client_that_goes_away_leaves_nothing(served: Served, fleet: Sandbox, old: None) -> None:
    body = Sending()
    done = put(served, body)
    body.send(some(5 * BLOCK))
    await begun(fleet)
    assert await served.metric("reemote_runs_active") == 1
    assert (fleet["server104"].home / "file").read_bytes() == b"old"

    done.cancel()  # which closes the connection

    await nothing_came_of_it(served, fleet)
    assert await served.metric(f'reemote_requests_total{{method="PUT",route="{URL}",status="499"}}') == 1
    assert [each["error"] for each in (await put(served, b"new")).json()] == [False, False]


async def test_a_body_that_ends_before_its_length_leaves_nothing(served: Served, fleet: Sandbox, old: None) -> None:
    async with Raw(served, "Content-Length: 1000000") as raw:
        raw.writer.write(some(999_999))
        await begun(fleet)
        raw.writer.write_eof()
        await nothing_came_of_it(served, fleet)


async def test_too_long_a_body_is_refused_at_once(fleet: Sandbox, tmp_path: Path, old: None) -> None:
    async with serving_fleet(fleet, tmp_path, content_limit=3 * BLOCK) as served:
        async with Raw(served, f"Content-Length: {3 * BLOCK + 1}") as raw:
            answer = await raw.answer()
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close" in answer
        assert str(3 * BLOCK).encode() in answer
        assert not served.settings.audit_file.exists()
        assert (await put(served, some(3 * BLOCK))).status_code == 200


async def test_too_long_a_body_that_does_not_say_so(fleet: Sandbox, tmp_path: Path, old: None) -> None:
    async with serving_fleet(fleet, tmp_path, content_limit=3 * BLOCK) as served, Raw(served) as raw:
        raw.chunk(some(2 * BLOCK))
        await begun(fleet)
        raw.chunk(some(BLOCK))
        raw.chunk(b"x")
        answer = await raw.answer()
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close" in answer
        assert b'"error":true' in answer
        await nothing_came_of_it(served, fleet)


async def test_the_limits_of_other_bodies_do_not_hold(fleet: Sandbox, tmp_path: Path) -> None:
    async with serving_fleet(fleet, tmp_path, body_limit=10, body_timeout=1) as served:
        data, body = some(4 * BLOCK), Sending()
        done = put(served, body)
        loop = asyncio.get_running_loop()
        start, sent = loop.time(), 0
        while sent < len(data):  # in all it takes longer than another body may
            body.send(data[sent : sent + BLOCK // 2])
            sent += BLOCK // 2
            until = start + 1.5 * sent / len(data)
            await eventually(lambda until=until: loop.time() > until)  # type: ignore[misc]
        body.end()
        assert [each["error"] for each in (await done).json()] == [False, False]
        assert loop.time() - start > 1.4
        refused = await served.client.post("/reemote/host/shell", json={"cmd": "true"})
        assert refused.status_code == 413


async def test_a_client_that_falls_silent(fleet: Sandbox, tmp_path: Path, old: None) -> None:
    async with serving_fleet(fleet, tmp_path, body_timeout=0.3) as served, Raw(served) as raw:
        raw.chunk(some(2 * BLOCK))
        answer = await raw.answer()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close" in answer
        await nothing_came_of_it(served, fleet)


async def test_a_server_that_is_stopped(served: Served, fleet: Sandbox, old: None) -> None:
    async with Raw(served) as raw:
        raw.chunk(some(2 * BLOCK))
        await begun(fleet)
        served.server.app.stop()
        assert (await raw.answer()).startswith(b"HTTP/1.1 503 ")
    assert names(fleet) == [["file"], ["file"]]
    assert (fleet["server104"].home / "file").read_bytes() == b"old"


async def test_the_number_of_runs_is_limited(fleet: Sandbox, tmp_path: Path) -> None:
    async with serving_fleet(fleet, tmp_path, most_runs=1) as served:
        body = Sending()
        done = put(served, body)
        body.send(some(2 * BLOCK))
        await begun(fleet)
        assert (await put(served, b"x")).status_code == 429
        assert (await served.client.get(URL, params={"path": "x", "host": "server104"})).status_code == 429
        body.end()
        assert (await done).status_code == 200


async def test_nothing_is_left_of_it(fleet: Sandbox, tmp_path: Path, nothing_left: None) -> None:
    async with serving_fleet(fleet, tmp_path) as served:
        assert (await put(served, some(9 * BLOCK))).status_code == 200
        done = await served.client.get(URL, params={"path": "file", "host": "server104"})
        assert done.content == some(9 * BLOCK)
        body = Sending()
        gone = put(served, body)
        body.send(some(2 * BLOCK))
        await begun(fleet)
        gone.cancel()
        await eventually(lambda: served.audit()[-1].get("outcomes") == {"cancelled": 1})


# From a host


async def get(served: Served, path: str = "file", **query: Any) -> httpx2.Response:
    return await served.client.get(URL, params={"path": path, "host": "server104", **query})


async def test_what_a_host_has_is_given(served: Served, fleet: Sandbox) -> None:
    for size in (1, BLOCK, 20 * BLOCK + 7):
        data = some(size)
        (fleet["server104"].home / "file").write_bytes(data)
        done = await get(served)
        assert done.status_code == 200
        assert done.content == data
        assert done.headers["content-type"] == "application/octet-stream"
        assert done.headers["content-length"] == str(size)
        assert done.headers["content-disposition"] == 'attachment; filename="file"'
        assert done.headers["x-content-type-options"] == "nosniff"
        await eventually(lambda: served.audit()[-1]["event"] == "end")
        assert (served.audit()[-1]["operation"], served.audit()[-1]["outcomes"]) == ("sftp.content", {"ok": 1})


async def test_files_of_unknown_size(served: Served, fleet: Sandbox) -> None:
    (fleet["server104"].home / "file").touch()
    for path, content in (("file", b""), ("/proc/version", Path("/proc/version").read_bytes())):
        done = await get(served, path)
        assert (done.status_code, done.content) == (200, content)
        assert "content-length" not in done.headers


async def test_the_host_must_be_named_among_several(served: Served, fleet: Sandbox) -> None:
    (fleet["server105"].home / "file").write_bytes(b"content")
    for query in ({}, {"group": "all"}, {"group": "none"}, {"host": "nobody"}, {"host": ""}):
        refused = await served.client.get(URL, params={"path": "file", **query})
        assert refused.status_code == 422
        assert "host" in refused.json()["value"]
    assert (await get(served, host="server105")).content == b"content"
    assert not any(each["hosts"] != ["server105"] for each in served.audit() if each["event"] == "begin")


async def test_one_host_alone_need_not_be_named(tmp_path: Path) -> None:
    with served_by_fake(tmp_path, "only") as api:
        (api.fake.files("only") / "file").write_bytes(b"content")
        async with client(api) as http:
            assert (await http.get(URL, params={"path": "/file"})).content == b"content"


async def test_what_cannot_be_given(served: Served, fleet: Sandbox) -> None:
    home = fleet["server104"].home
    os.mkfifo(home / "fifo")
    expected = {
        "nowhere": (404, "SFTPNoSuchFile"),
        "nowhere/file": (404, "SFTPNoSuchFile"),
        ".": (422, "SFTPFileIsADirectory"),
        "fifo": (422, "SFTPInvalidParameter"),
        "/dev/zero": (422, "SFTPInvalidParameter"),
    }
    for path, (status, name) in expected.items():
        done = await get(served, path)
        assert (done.status_code, done.json()["error"], done.json()["value"]) == (status, True, name)
        assert done.json()["detail"]
        assert done.headers["content-type"] == "application/json"
        assert "content-disposition" not in done.headers


FAILURES = {
    ConnectionRefused("nobody is there"): 502,
    HostUnreachable("no way"): 502,
    ConnectTimeout("too late"): 504,
    SFTPError("no", kind="SFTPPermissionDenied"): 403,
    SFTPError("no", kind="SFTPFailure"): 502,
}


async def test_the_status_tells_why(tmp_path: Path) -> None:
    with served_by_fake(tmp_path, "one") as api:
        async with client(api) as http:
            for failure, status in FAILURES.items():
                api.fake.fail("one", failure)
                done = await http.get(URL, params={"path": "/file"})
                assert (done.status_code, done.json()["value"]) == (status, failure.kind)


async def test_a_host_that_does_not_answer(served: Served, fleet: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    async def read(*_: Any) -> bytes:
        return await asyncio.Future()

    (fleet["server104"].home / "file").write_bytes(b"content")
    monkeypatch.setattr(SftpFile, "read", read)
    done = await get(served, timeout=0.3)
    assert (done.status_code, done.json()["value"]) == (504, "Cancelled")


@contextlib.asynccontextmanager
async def downloading(served: Served, path: str = "file") -> AsyncIterator[AsyncIterator[bytes]]:
    """Begin to download, and have the first bytes."""
    async with served.client.stream("GET", URL, params={"path": path, "host": "server104"}) as response:
        assert response.status_code == 200
        parts = response.aiter_raw(1000)
        assert await anext(parts)
        yield parts


async def rest(parts: AsyncIterator[bytes]) -> None:
    async for _ in parts:
        pass


@pytest.mark.parametrize("size", ["known", "unknown"])
async def test_a_failure_after_the_beginning_breaks_the_answer_off(
    served: Served, fleet: Sandbox, monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    (fleet["server104"].home / "file").write_bytes(some(40 * BLOCK))
    if size == "unknown":
        original = SftpFile.stat

        async def of_size_0(file: SftpFile) -> Any:
            found = await original(file)
            return type(found)(found.permissions, 0)

        monkeypatch.setattr(SftpFile, "stat", of_size_0)
    async with downloading(served) as parts:
        fleet["server104"].drop_connections()
        with pytest.raises(httpx2.RemoteProtocolError):
            await rest(parts)
    await eventually(lambda: served.audit()[-1]["event"] == "end")
    assert served.audit()[-1]["outcomes"] == {"ConnectionLost": 1}


async def test_a_file_that_becomes_shorter(served: Served, fleet: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    file = fleet["server104"].home / "file"
    file.write_bytes(some(60 * BLOCK))
    original = SftpFile.read

    async def read(each: SftpFile, size: int, offset: int) -> bytes:
        if offset == 50 * BLOCK:
            os.truncate(file, 50 * BLOCK + 1)
        return await original(each, size, offset)

    monkeypatch.setattr(SftpFile, "read", read)
    async with downloading(served) as parts:
        with pytest.raises(httpx2.RemoteProtocolError):
            await rest(parts)


async def test_a_file_that_grows_is_given_as_it_was(
    served: Served, fleet: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = fleet["server104"].home / "file"
    file.write_bytes(some(2 * BLOCK))
    original = SftpFile.read

    async def read(each: SftpFile, size: int, offset: int) -> bytes:
        file.write_bytes(some(2 * BLOCK) + b"more")
        return await original(each, size, offset)

    monkeypatch.setattr(SftpFile, "read", read)
    assert (await get(served)).content == some(2 * BLOCK)


async def test_a_client_that_goes_away_ends_the_run(served: Served, fleet: Sandbox) -> None:
    (fleet["server104"].home / "file").write_bytes(some(400 * BLOCK))
    async with downloading(served):
        assert await served.metric("reemote_runs_active") == 1
    await eventually(lambda: served.audit()[-1]["event"] == "end")
    assert served.audit()[-1]["outcomes"] == {"cancelled": 1}
    assert await served.metric("reemote_runs_active") == 0


async def test_a_client_that_takes_nothing_is_given_up(fleet: Sandbox, tmp_path: Path) -> None:
    (fleet["server104"].home / "file").write_bytes(some(400 * BLOCK))
    async with serving_fleet(fleet, tmp_path, body_timeout=0.3) as served, downloading(served):
        await eventually(lambda: served.audit()[-1]["event"] == "end")
        assert served.audit()[-1]["outcomes"] == {"cancelled": 1}


async def test_a_server_that_is_stopped_breaks_downloads_off(served: Served, fleet: Sandbox) -> None:
    (fleet["server104"].home / "file").write_bytes(some(400 * BLOCK))
    async with downloading(served) as parts:
        served.server.app.stop()
        with pytest.raises(httpx2.RemoteProtocolError):
            await rest(parts)


@pytest.mark.parametrize(
    ("path", "header"),
    [
        ("/etc/motd", 'filename="motd"'),
        ("a b.txt", 'filename="a b.txt"'),
        ('q"\\', "filename=\"q__\"; filename*=UTF-8''q%22%5C"),
        ("a\r\nSet-Cookie: x", "filename=\"a__Set-Cookie_ x\"; filename*=UTF-8''a%0D%0ASet-Cookie%3A%20x"),
        ("Grüße", "filename=\"Gr__e\"; filename*=UTF-8''Gr%C3%BC%C3%9Fe"),
        ("100%;*'", "filename=\"100____\"; filename*=UTF-8''100%25%3B%2A%27"),
        (b"\xff", "filename=\"_\"; filename*=UTF-8''%EF%BF%BD"),
        ("/", 'filename="content"'),
    ],
)
def test_the_name_that_a_browser_stores_it_under(path: str | bytes, header: str) -> None:
    assert disposition(path) == f"attachment; {header}"


async def test_odd_names_both_ways(served: Served, fleet: Sandbox) -> None:
    for name in ('q"\\', "a\r\nSet-Cookie: x=y", "Grüße", "-x", "~", "%2e", "a b+c&d", "{host}"):
        assert (await put(served, name.encode(), path=name)).status_code == 200
        done = await get(served, name)
        assert (done.status_code, done.content) == (200, name.encode())
        assert "set-cookie" not in done.headers
        assert (fleet["server105"].home / name).read_bytes() == name.encode()


# With what else there is


def test_the_guard_and_the_routes_know_the_same_paths() -> None:
    found = {
        (method.upper(), path) for path, methods in App(Settings()).openapi()["paths"].items() for method in methods
    }
    assert STREAMED <= found
    assert STREAMED == {("PUT", URL)}


async def test_pages_of_others_send_and_fetch_nothing(served: Served, fleet: Sandbox) -> None:
    (fleet["server104"].home / "file").write_bytes(b"old")
    for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Host": "evil.example"}):
        sent = await served.client.put(URL, params={"path": "file"}, content=b"new", headers=headers)
        fetched = await served.client.get(URL, params={"path": "file", "host": "server104"}, headers=headers)
        assert {sent.status_code, fetched.status_code} <= {403, 421}
    stranger = {"Authorization": "Bearer wrong"}
    assert (await served.client.put(URL, params={"path": "file"}, content=b"new", headers=stranger)).status_code == 401
    assert (fleet["server104"].home / "file").read_bytes() == b"old"


@pytest.mark.parametrize("given", ["1", "1000", "2k", "3M", "0005G"])
def test_the_limit_on_the_command_line(given: str) -> None:
    units = {"k": 1024, "M": 1024**2, "G": 1024**3}
    expected = int(given.rstrip("kMG")) * units.get(given[-1], 1)
    assert serve.make_context("serve", ["--content-limit", given]).params["content_limit"] == expected


def test_the_limit_by_default() -> None:
    assert serve.make_context("serve", []).params["content_limit"] == Settings().content_limit == GIB


@pytest.mark.parametrize("given", ["", "0", "-1", "1.5G", "1T", "G", "1 G", "1GB", "٣", "9" * 30])
def test_what_is_no_limit(given: str) -> None:
    with pytest.raises(click.BadParameter, match="no size"):
        serve.make_context("serve", ["--content-limit", given])


# Memory


class Process:
    """``reemote serve`` for two names of one real sshd."""

    def __init__(self, directory: Path, connection: dict[str, Any]) -> None:
        inventory = directory / "inventory.json"
        hosts = [{"connection": {**connection, "host": name, "address": connection["host"]}} for name in HOSTS]
        inventory.write_text(json.dumps({"hosts": hosts}))
        inventory.chmod(0o600)
        options = {"--inventory": inventory, "--token-file": directory / "token", "--audit": directory / "audit"}
        words = [str(word) for option in options.items() for word in option]
        command = [sys.executable, "-m", "reemote", "serve", "--port", "0", *words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().split()[2].rpartition(":")[2])

    def close(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=20)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def memory(self) -> int:
        """Give the most memory that it ever had, in MiB."""
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found is not None
        return int(found[1]) // 1024


@pytest.fixture
def process(make_user_sshd: MakeUserSshd, tmp_path: Path) -> Iterator[Process]:
    with contextlib.closing(Process(tmp_path, make_user_sshd().connection())) as process:
        yield process


@pytest.mark.slow
def test_large_files_take_no_memory(process: Process) -> None:
    block, number, digest = some(1024 * 1024), 384, hashlib.sha256()
    with contextlib.closing(process.connect()) as connection:
        connection.request("PUT", f"{URL}?path=warm", block)
        assert connection.getresponse().status == 200
    before = process.memory()
    with contextlib.closing(process.connect()) as connection:
        connection.putrequest("PUT", f"{URL}?path=large")
        connection.putheader("Content-Length", str(number * len(block)))
        connection.endheaders()
        for _ in range(number):
            connection.send(block)
            digest.update(block)
        answer = json.loads(connection.getresponse().read())
    assert [each["value"]["sha256"] for each in answer] == [digest.hexdigest()] * 2
    assert process.memory() - before < 50

    with contextlib.closing(process.connect()) as connection:
        connection.request("GET", f"{URL}?path=large&host=server104")
        response, found = connection.getresponse(), hashlib.sha256()
        while part := response.read(1024 * 1024):
            found.update(part)
    assert found.digest() == digest.digest()
    assert process.memory() - before < 50
