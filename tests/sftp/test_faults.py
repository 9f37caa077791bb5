"""Transfers when something goes wrong: what was there is whole, nothing is left behind, and the response says why."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import asyncssh
import pytest

import reemote.ssh.files
from reemote.core.host import Host
from reemote.core.inventory import Connection, Inventory
from reemote.core.operation import Local, Operation
from reemote.core.response import Response
from reemote.core.secrets import reveal
from reemote.execute import Pool, execute
from reemote.host import Shell
from reemote.sftp import Copy, Get, Mget, Mput, Put, Read, Readdir, Sync, Write
from tests.leaks import eventually, nothing_left_behind
from tests.openssh import RootWorld, UserSshd, why_no_world
from tests.openssh_fixtures import MakeUserSshd
from tests.sftp.conftest import SERVERS, Hosted
from tests.sftp.test_transfers import BIG, Tree, grown, held, plant

OLD = b"the old content\n"

TEMPORARY = re.compile(r"\.file\.reemote-[0-9a-f]{8}")

PROGRAM = next((path for path in SERVERS if Path(path).exists()), "sftp-server")

_numbers = itertools.count()


@pytest.fixture(params=["sandbox", pytest.param("internal-sftp", marks=pytest.mark.slow)])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("local")


def check_failure(response: Response[Any], value: str, *, changed: bool, outcome: str = "completed") -> None:
    found = (response["value"], response["error"], response["changed"], response.get("outcome"))
    assert found == (value, True, changed, outcome), response


# A proxy that can hold up what passes


class Proxy:
    """A port that leads to another, until so many bytes of the client have passed."""

    def __init__(self, address: str, port: int) -> None:
        self.port = 0
        self.limit: int | None = None
        """Bytes of clients to pass on."""
        self.cuts = False
        """Whether to cut the connection then, rather than to hold it up."""
        self.reached = asyncio.Event()
        self._where = (address, port)
        self._passed = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cut all connections, and accept no more."""
        if self._server is not None:
            self._server.close()
            self.cut()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._server.wait_closed()
            self._server = None

    def cut(self) -> None:
        """Cut all connections, without a word."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def inventory(self, host: Hosted) -> Inventory:
        """The host behind the proxy."""
        return Inventory.model_validate({"hosts": [{"connection": Connection.model_validate(self.options(host))}]})

    def options(self, host: Hosted) -> dict[str, Any]:
        given = {name: reveal(value) for name, value in host.inventory.hosts[0].connection.options().items()}
        return {**given, "address": "127.0.0.1", "port": self.port, "known_hosts": None}

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ahead_reader, ahead_writer = await asyncio.open_connection(*self._where)
        self._writers |= {writer, ahead_writer}
        for source, target, counts in ((reader, ahead_writer, True), (ahead_reader, writer, False)):
            task = asyncio.create_task(self._pass_on(source, target, counts))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counts: bool) -> None:
        try:
            while data := await reader.read(8192):
                self._passed += len(data) if counts else 0
                if self.limit is not None and counts and self._passed > self.limit:
                    self.reached.set()
                    if self.cuts:
                        self.limit = None  # who comes again, passes
                        self.cut()
                        return
                    await asyncio.get_running_loop().create_future()  # until it is cut
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.transport.abort()


@pytest.fixture
async def proxy(host: Hosted) -> AsyncIterator[Proxy]:
    options = host.inventory.hosts[0].connection.options()
    proxy = Proxy(options.get("address", options["host"]), options["port"])
    yield proxy
    for task in list(proxy._tasks):
        task.cancel()
    await proxy.close()


# A connection that is cut


UPLOADS: dict[str, Callable[[Hosted, Path], Operation[Any]]] = {
    "put": lambda host, local: Put(localpaths=local / "file", remotepath=host.path("folder/file")),
    "put a tree": lambda host, local: Put(localpaths=local, remotepath=host.path("folder/tree"), recurse=True),
    "write": lambda host, local: Write(path=host.path("folder/file"), text=BIG.decode("latin-1")),
    "sync": lambda host, local: Sync(localpath=local, remotepath=host.path("folder")),
    "sync by an archive": lambda host, local: Sync(localpath=local, remotepath=host.path("folder")),
}


def prepare(host: Hosted, local: Path, upload: str) -> None:
    host.folder("folder")
    host.file("folder/file", OLD, 0o640)
    plant(local, {"file": BIG})
    if "tree" in upload or "archive" in upload:
        plant(local, {f"d/{number}": BIG[:100_000] for number in range(10)})


@pytest.mark.parametrize("upload", list(UPLOADS))
async def test_a_connection_that_is_cut(host: Hosted, proxy: Proxy, local: Path, upload: str) -> None:
    """What was there is whole, and what was half there is removed over a new connection."""
    prepare(host, local, upload)
    proxy.limit, proxy.cuts = 700_000, True
    async with proxy, Pool() as pool:
        response = (await execute(lambda: UPLOADS[upload](host, local), proxy.inventory(host), pool=pool))[0]
    assert proxy.reached.is_set()
    check_failure(response, "ConnectionLost", changed=True, outcome="unknown")
    assert "may be left" not in response["detail"]
    found = grown(host.root / "folder")
    assert found.pop("file") == OLD
    assert host.mode("folder/file") == 0o640
    if upload == "put a tree":
        found = {name: content for name, content in found.items() if not name.startswith("tree")}
        tree = grown(host.root / "folder/tree")
        assert {name: content for name, content in tree.items() if content is not None}.items() <= grown(local).items()
        assert not [name for name in tree if "reemote" in name]
    assert found == {}


@pytest.mark.parametrize("upload", ["put", "sync by an archive"])
async def test_a_host_that_is_gone(host: Hosted, proxy: Proxy, local: Path, upload: str) -> None:
    """What cannot be removed, since no new connection can be made, is named."""
    prepare(host, local, upload)
    proxy.limit = 700_000
    async with proxy, Pool() as pool:
        running = asyncio.create_task(execute(lambda: UPLOADS[upload](host, local), proxy.inventory(host), pool=pool))
        async with asyncio.timeout(20):
            await proxy.reached.wait()
            for task in list(proxy._tasks):
                task.cancel()
            await proxy.close()
            response = (await running)[0]
    check_failure(response, "ConnectionLost", changed=True, outcome="unknown")
    left = [name for name in host.names("folder") if name != "file"]
    assert (host.root / "folder/file").read_bytes() == OLD
    for name in left:
        assert host.path(f"folder/{name}") in response["detail"]
        assert "may be left there" in response["detail"]


async def test_a_download_that_is_cut(host: Hosted, proxy: Proxy, local: Path) -> None:
    host.file("file", BIG * 3)
    plant(local, {"file": OLD})
    async with proxy, Pool() as pool:

        def cut(*_: object) -> None:
            proxy.cut()

        for operation in (
            Get(remotepaths=host.path("file"), localpath=local / "file", progress_handler=cut),
            Get(remotepaths=host.path("file"), localpath=local / "new", progress_handler=cut),
        ):
            response = (await execute(lambda operation=operation: operation, proxy.inventory(host), pool=pool))[0]  # type: ignore[misc]
            assert (response["value"], response["outcome"]) == ("ConnectionLost", "unknown")
            assert grown(local) == {"file": OLD}


UPLOADER = """
import asyncio, json, sys
from reemote.execute import execute
from reemote.sftp import Put
given = json.loads(sys.argv[1])
asyncio.run(execute(lambda: Put(localpaths=given["local"], remotepath=given["remote"]), given["inventory"]))
"""


@pytest.mark.slow
async def test_a_process_that_is_killed(host: Hosted, proxy: Proxy, local: Path) -> None:
    """kill -9 of the uploading process leaves the old file, and one under a name that tells whose it is."""
    prepare(host, local, "put")
    proxy.limit = 700_000
    async with proxy:
        given = {
            "local": str(local / "file"),
            "remote": host.path("folder/file"),
            "inventory": {"hosts": [{"connection": proxy.options(host)}]},
        }
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", UPLOADER, json.dumps(given))
        try:
            async with asyncio.timeout(30):
                await proxy.reached.wait()
            await eventually(lambda: len(host.names("folder")) == 2)
        finally:
            process.kill()
            await process.wait()
        assert process.returncode == -signal.SIGKILL
        (host.root / "folder/file").read_bytes()
        assert (host.root / "folder/file").read_bytes() == OLD
        assert [name for name in host.names("folder") if not TEMPORARY.fullmatch(name)] == ["file"]
        for task in list(proxy._tasks):
            task.cancel()
    assert await host.changed(UPLOADS["put"](host, local))
    assert (host.root / "folder/file").read_bytes() == BIG


# Runs that are cancelled


async def test_a_run_that_is_cancelled(host: Hosted, local: Path) -> None:
    """Nothing is left, half or whole."""
    plant(local, {"up/file": BIG, **{f"many/{number}": BIG[:300_000] for number in range(5)}})
    plant(host.root, {"to/file": OLD, "big": BIG}, host.uid)
    before = grown(local), grown(host.root)
    begun = asyncio.Event()

    def handler(*_: object) -> None:
        begun.set()

    for operation in (
        Put(localpaths=local / "up/file", remotepath=host.path("to/file"), progress_handler=handler),
        Get(remotepaths=host.path("big"), localpath=local / "down", progress_handler=handler),
        Sync(localpath=local / "up", remotepath=host.path("to"), progress_handler=handler),
        Sync(localpath=local / "many", remotepath=host.path("to"), progress_handler=handler),
        Sync(localpath=local / "many", remotepath=host.path("to/new"), progress_handler=handler),
    ):
        begun.clear()
        running = asyncio.create_task(host.run(operation))
        await begun.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert (grown(local), grown(host.root)) == before, operation


async def test_a_run_that_takes_too_long(local: Path, tmp_path: Path, nothing_left: None) -> None:
    class Slow(asyncssh.SFTPServer):
        async def write(self, file_obj: object, offset: int, data: bytes) -> int:
            await asyncio.sleep(0.03)
            written = super().write(file_obj, offset, data)
            assert isinstance(written, int)
            return written

        async def read(self, file_obj: object, offset: int, size: int) -> bytes:
            await asyncio.sleep(0.03)
            data = super().read(file_obj, offset, size)
            assert isinstance(data, bytes)
            return data

    plant(local, {"file": BIG * 3})
    plant(tmp_path, {"file": OLD, "big": BIG * 3})
    async with served(Slow) as host:
        for operation in (
            Put(localpaths=local / "file", remotepath=tmp_path / "file", block_size=16_000),
            Get(remotepaths=tmp_path / "big", localpath=local / "down", block_size=16_000),
        ):
            response = await host.run(operation, timeout=0.3)
            assert response["value"] == "Cancelled"
            assert grown(tmp_path) == {"file": OLD, "big": BIG * 3}
            assert grown(local) == {"file": BIG * 3}


# Disks that are full


@pytest.fixture
def small(world: RootWorld) -> Iterator[Path]:
    """A file system of one MiB on a machine of the world, as the tests see it."""
    machine = world["server104"]
    name = f"/small{next(_numbers)}"
    setup = f"mkdir {name} && mount -t tmpfs -o size=1m,mode=1777 tmpfs {name}"
    assert machine.run(["sh", "-c", setup]).returncode == 0
    yield machine.path(name)
    assert machine.run(["sh", "-c", f"umount {name} && rmdir {name}"]).returncode == 0


@pytest.fixture
async def small_host(world: RootWorld, small: Path, nothing_left: None) -> AsyncIterator[Hosted]:
    machine = world["server104"]
    with world.network():
        inventory = Inventory.of({"hosts": [{"connection": {**machine.connection(), "host": machine.address}}]})
        async with Pool() as pool:
            yield Hosted("world", small, f"/{small.name}", 1000, inventory, pool)


@pytest.mark.slow
async def test_a_full_disk(small_host: Hosted, local: Path) -> None:
    host = small_host
    plant(local, {"file": BIG, "deep/file": BIG})
    host.file("file", OLD, 0o640)
    host.file("other", b"x" * 600_000)
    for operation in (
        Put(localpaths=local / "file", remotepath=host.path("file")),
        Put(localpaths=local / "file", remotepath=host.path("new")),
        Mput(localpaths=local / "f*", remotepath=host.path()),
        Write(path=host.path("file"), text=BIG.decode("latin-1")),
        Copy(srcpaths=host.path("other"), dstpath=host.path("file")),
    ):
        response = await host.run(operation)
        check_failure(response, "NoSpaceLeft", changed=False)
        assert "on the host" in response["detail"]
        assert host.path() in response["detail"]
        assert grown(host.root) == {"file": OLD, "other": b"x" * 600_000}, operation
        assert host.mode("file") == 0o640
    response = await host.run(Put(localpaths=local / "deep", remotepath=host.path("deep"), recurse=True))
    check_failure(response, "NoSpaceLeft", changed=True)
    assert grown(host.root / "deep") == {}


@pytest.mark.slow
async def test_a_full_disk_in_place(small_host: Hosted, local: Path) -> None:
    """Who writes in place sees what can happen, and is told."""
    plant(local, {"file": BIG})
    small_host.file("file", OLD)
    response = await small_host.run(Put(localpaths=local / "file", remotepath=small_host.path("file"), in_place=True))
    check_failure(response, "NoSpaceLeft", changed=True)
    assert small_host.names() == ["file"]


@pytest.mark.slow
@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("number", [1, 10])
async def test_a_full_disk_while_synchronizing(small_host: Hosted, local: Path, number: int, is_new: bool) -> None:
    host = small_host
    plant(local, {f"d/{each}": BIG[: 3_000_000 // number] for each in range(number)})
    old: Tree = {} if is_new else {"d": None, "d/0": OLD, "link": "d"}
    if not is_new:
        plant(host.folder("to"), old, host.uid)
    response = await host.run(Sync(localpath=local, remotepath=host.path("to")))
    assert (response["value"], response["error"]) == ("NoSpaceLeft", True)
    assert not [name for name in grown(host.root) if "reemote" in name]
    if is_new and number > 1:
        assert grown(host.root) == {}
    if not is_new:
        assert grown(host.root / "to") == old


@pytest.mark.slow
async def test_no_room_for_another_file(world: RootWorld, small_host: Hosted, local: Path) -> None:
    """A file system can run out of files while it has space."""
    host = small_host
    machine = world["server104"]
    assert machine.run(["mount", "-o", "remount,nr_inodes=4", host.path()]).returncode == 0
    plant(local, {"file": b"new", **{f"many/{number}": b"" for number in range(9)}})
    for name in ("file", "b", "c"):
        host.file(name, OLD)
    for operation in (
        Put(localpaths=local / "file", remotepath=host.path("file")),
        Sync(localpath=local / "many", remotepath=host.path("to")),
    ):
        response = await host.run(operation)
        check_failure(response, "NoSpaceLeft", changed=False)
        assert grown(host.root) == {"file": OLD, "b": OLD, "c": OLD}


@pytest.fixture
def small_here(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB on this machine."""
    if reason := why_no_world():
        pytest.skip(f"OpenSSH: {reason}")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True, timeout=10)
    yield folder
    subprocess.run(["umount", folder], check=True, timeout=10)


@pytest.mark.parametrize("kind", ["sandbox"])
async def test_a_full_disk_on_this_machine(small_here: Path, host: Hosted) -> None:
    host.folder("tree")
    host.file("tree/file", BIG)
    host.file("tree/a", b"a")
    plant(small_here, {"file": OLD})
    path = host.path("tree/file")
    for operation in (
        Get(remotepaths=path, localpath=small_here / "file"),
        Get(remotepaths=path, localpath=small_here / "new"),
        Mget(remotepaths=path, localpath=small_here),
    ):
        response = await host.run(operation)
        check_failure(response, "NoSpaceLeft", changed=False)
        assert "on this machine" in response["detail"]
        assert grown(small_here) == {"file": OLD}
    response = await host.run(Get(remotepaths=host.path("tree"), localpath=small_here, recurse=True))
    check_failure(response, "NoSpaceLeft", changed=True)
    assert {"file": OLD, "tree": None}.items() <= grown(small_here).items()
    assert set(grown(small_here)) <= {"file", "tree", "tree/a"}


@pytest.mark.parametrize("kind", ["sandbox"])
async def test_a_device_that_is_full(host: Hosted) -> None:
    """Devices are written to, not replaced."""
    host.file("file", BIG)
    response = await host.run(Get(remotepaths=host.path("file"), localpath="/dev/full"))
    assert (response["value"], response["error"]) == ("NoSpaceLeft", True)
    assert await host.changed(Get(remotepaths=host.path("file"), localpath="/dev/null"))
    assert Path("/dev/null").is_char_device()


@pytest.mark.slow
@pytest.mark.parametrize("dies", [False, True])
async def test_a_limit_of_the_servers_process(make_user_sshd: MakeUserSshd, local: Path, dies: bool) -> None:
    """The server may write no file of more than 32 KiB; one that tries is killed, unless it ignores that."""
    ignoring = "" if dies else "env --ignore-signal=XFSZ "
    server = make_user_sshd(Subsystem=f"sftp ulimit -f 64; exec {ignoring}{PROGRAM}")
    plant(local, {"file": BIG})
    folder = server.served / "folder"
    plant(folder, {"file": OLD}, server.uid)
    inventory = Inventory.of({"hosts": [{"connection": server.connection()}]})
    async with Pool() as pool:
        response = (
            await execute(lambda: Put(localpaths=local / "file", remotepath=folder / "file"), inventory, pool=pool)
        )[0]
    # The first write beyond the limit is cut short, which is a failure; the next one kills.
    assert response["value"] in ("SFTPFailure", "ConnectionLost" if dies else "")
    assert response["changed"] is (response["value"] == "ConnectionLost"), "what is unknown may have changed"
    assert grown(folder) == {"file": OLD}


# Servers that can do less


@pytest.mark.slow
async def test_start_up_files_that_spoil_the_session(tmp_path_factory: pytest.TempPathFactory, local: Path) -> None:
    """What they print before the server program starts is no SFTP; scp(1) and sftp(1) fail on it, too."""
    if reason := why_no_world():
        pytest.skip(f"OpenSSH: {reason}")
    plant(local, {"file": b"x"})
    options: dict[str, Any] = {"Subsystem": f"sftp {PROGRAM}"}
    with UserSshd(tmp_path_factory.mktemp("sshd") / "noisy", options, shell="/bin/bash") as server:
        (server.home / ".bashrc").write_text("echo Welcome to this machine\n")
        inventory = Inventory.of({"hosts": [{"connection": server.connection()}]})
        async with nothing_left_behind(), Pool() as pool, asyncio.timeout(15):
            response = (await execute(lambda: Put(localpaths=local / "file"), inventory, pool=pool))[0]
            assert (response["error"], response["changed"]) == (True, False), response
            assert response["outcome"] == "not_started"
            shell = (await execute(lambda: Shell(cmd="echo well"), inventory, pool=pool))[0]
            assert shell.value.stdout == "Welcome to this machine\nwell\n"


@pytest.mark.slow
async def test_one_session_at_a_time(make_user_sshd: MakeUserSshd, local: Path) -> None:
    server = make_user_sshd(MaxSessions=1)
    plant(local, {"file": BIG, **{f"tree/{number}": b"x" for number in range(9)}})
    folder = server.served / "folder"
    plant(folder, {}) if folder.exists() else folder.mkdir()
    if os.geteuid() == 0:
        os.chown(folder, server.uid, server.uid)
    inventory = Inventory.of({"hosts": [{"connection": server.connection()}]})

    class Root:
        async def execute(self) -> Any:
            for _ in range(2):
                yield Put(localpaths=local / "file", remotepath=folder / "file")
                yield Shell(cmd="true")
                yield Put(localpaths=local / "file", remotepath=folder / "file", checksum=True)
                yield Sync(localpath=local / "tree", remotepath=folder / "tree", checksum=True)
                yield [Shell(cmd="true"), Get(remotepaths=folder / "file", localpath=local / "down"), Shell(cmd="true")]
                yield Copy(srcpaths=folder / "file", dstpath=folder / "copy", checksum=True)

    async with nothing_left_behind(), Pool() as pool, asyncio.timeout(30):
        responses = await execute(Root, inventory, pool=pool, strict=True)
    assert not responses.failed
    assert grown(folder / "tree") == grown(local / "tree")
    assert (folder / "copy").read_bytes() == (local / "down").read_bytes() == BIG
    assert server.accepted() == 1


async def whole_story(host: Hosted, local: Path) -> None:
    """Each kind of transfer, twice."""
    plant(local, {"a": BIG, "tree/b": b"b", "tree/link": "b", "tree/sub/c": b"", "tree/sub/d": b"d"})
    steps: list[tuple[Operation[Any], bool]] = [
        (Put(localpaths=local / "a", remotepath=host.path("a")), True),
        (Put(localpaths=local / "a", remotepath=host.path("a"), checksum=True), False),
        (Copy(srcpaths=host.path("a"), dstpath=host.path("b")), True),
        (Get(remotepaths=host.path("a"), localpath=local / "back"), True),
        (Mget(remotepaths=host.path("[ab]"), localpath=local), True),
        (Write(path=host.path("text"), text="new"), False),
    ]
    for operation, second in steps:
        for attempt in (1, 2):
            response = await host.run(operation)
            assert not response["error"], response
            if attempt == 2:
                assert response["changed"] is second, operation
    for attempt in (1, 2):
        response = await host.run(Sync(localpath=local / "tree", remotepath=host.path("tree"), delete=True))
        assert (response["error"], response["changed"]) == (False, attempt == 1), response
    assert grown(host.root) == {"a": BIG, "b": BIG, "text": b"new", "tree": None, **prefixed("tree", local / "tree")}
    assert (local / "back").read_bytes() == BIG


def prefixed(prefix: str, folder: Path) -> dict[str, bytes | str | None]:
    return {f"{prefix}/{name}": content for name, content in grown(folder).items()}


EXTENSIONS = "posix-rename,fsync,statvfs,fstatvfs,limits,hardlink,lsetstat,copy-data,expand-path"


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"Subsystem": f"sftp {PROGRAM} -P {EXTENSIONS}"},
        {"Subsystem": f"sftp {PROGRAM} -P posix-rename"},
        {"Subsystem": f"sftp {PROGRAM} -P limits"},
        {"ForceCommand": "internal-sftp"},
    ],
    ids=["no extensions", "no posix-rename", "no limits", "files only"],
)
async def test_servers_that_can_do_less(make_user_sshd: MakeUserSshd, local: Path, options: dict[str, Any]) -> None:
    server = make_user_sshd(**options)
    folder = server.served / "folder"
    folder.mkdir()
    if os.geteuid() == 0:
        os.chown(folder, server.uid, server.uid)
    inventory = Inventory.of({"hosts": [{"connection": server.connection()}]})
    async with nothing_left_behind(), Pool() as pool, asyncio.timeout(40):
        await whole_story(Hosted("less", folder, str(folder), server.uid, inventory, pool), local)


@pytest.mark.slow
async def test_a_server_that_only_reads(make_user_sshd: MakeUserSshd, local: Path) -> None:
    server = make_user_sshd(Subsystem=f"sftp {PROGRAM} -R")
    plant(local, {"file": BIG})
    folder = server.served / "folder"
    plant(folder, {"file": OLD}, server.uid)
    inventory = Inventory.of({"hosts": [{"connection": server.connection()}]})
    async with nothing_left_behind(), Pool() as pool:
        for operation in (
            Put(localpaths=local / "file", remotepath=folder / "file"),
            Put(localpaths=local / "file", remotepath=folder / "file", in_place=True),
            Put(localpaths=local, remotepath=folder / "new", recurse=True),
        ):
            response = (await execute(lambda operation=operation: operation, inventory, pool=pool))[0]  # type: ignore[misc]
            assert (response["value"], response["changed"]) == ("SFTPPermissionDenied", False), response
    assert grown(folder) == {"file": OLD}


async def test_a_server_that_knows_files_only(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_left: None
) -> None:
    """It runs no command at all, and has no extensions."""
    monkeypatch.setattr("asyncssh.sftp.SFTPServerHandler._extensions", [])
    async with served(asyncssh.SFTPServer) as host, asyncio.timeout(20):
        await whole_story(Hosted("files only", tmp_path, str(tmp_path), os.geteuid(), host.inventory, host.pool), local)


# Servers that lie


@contextlib.asynccontextmanager
async def served(factory: type[asyncssh.SFTPServer]) -> AsyncIterator[Hosted]:
    """A host in this process whose files are what *factory* says."""

    class Server(asyncssh.SSHServer):
        def begin_auth(self, username: str) -> bool:
            return False

    key = asyncssh.generate_private_key("ssh-ed25519")
    listener = await asyncssh.listen(
        "127.0.0.1", 0, server_host_keys=[key], server_factory=Server, sftp_factory=factory, gss_host=None
    )
    async with listener, Pool() as pool:
        known = f"[127.0.0.1]:{listener.get_port()} {key.export_public_key().decode()}".encode()
        options = {"host": "127.0.0.1", "port": listener.get_port(), "username": "u", "known_hosts": known}
        inventory = Inventory.of({"hosts": [{"connection": options}]})
        yield Hosted("served", Path("/nowhere"), "/nowhere", os.geteuid(), inventory, pool)


FOLDER, FILE, LINK = (
    asyncssh.SFTPAttrs(permissions=0o040755, size=0, type=2),
    asyncssh.SFTPAttrs(permissions=0o100644, size=4, type=1),
    asyncssh.SFTPAttrs(permissions=0o120777, size=4, type=3),
)


class Opened:
    """An open file without holes."""

    def seek(self, offset: int, whence: int) -> int:
        return offset if whence == os.SEEK_DATA else 2**64


class Hostile(asyncssh.SFTPServer):
    """A server whose directory ``/top`` holds what a test wants."""

    names: Sequence[tuple[bytes, asyncssh.SFTPAttrs]] = ()
    leads_to = b"file"
    content = b"evil"
    real = b""
    size: int | None = None
    sends: Callable[[bytes, int, int], bytes] = staticmethod(lambda content, offset, size: content[offset:][:size])

    def _attributes(self, path: bytes) -> asyncssh.SFTPAttrs:
        kind = next((each for name, each in self.names if path.endswith(b"/" + name)), None)
        if path.strip(b"/").count(b"/") == 0 and path != b"/file":
            kind = FOLDER
        elif kind is None or path == b"/file":
            kind = FILE
        size = len(self.content) if self.size is None else self.size
        return asyncssh.SFTPAttrs(permissions=kind.permissions, type=kind.type, size=size, mtime=1, atime=1)

    def stat(self, path: bytes) -> asyncssh.SFTPAttrs:
        found = self._attributes(path)
        return FILE if found.type == 3 else found

    def lstat(self, path: bytes) -> asyncssh.SFTPAttrs:
        return self._attributes(path)

    def fstat(self, file_obj: object) -> asyncssh.SFTPAttrs:
        return self._attributes(b"/file")

    def realpath(self, path: bytes) -> bytes:
        return self.real or path

    def readlink(self, path: bytes) -> bytes:
        return self.leads_to

    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        for name, attributes in self.names if path.rstrip(b"/") == b"/top" else [(b"inside", FILE)]:
            yield asyncssh.SFTPName(name, attrs=attributes)

    def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> Any:
        return Opened()

    def close(self, file_obj: object) -> None:
        pass

    def read(self, file_obj: object, offset: int, size: int) -> bytes:
        return self.sends(self.content, offset, size)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory to copy to, and something beside it that must stay as it is."""
    plant(tmp_path, {"around/place": None, "around/precious": OLD, "outside/precious": OLD})
    return tmp_path / "around/place"


def check_around(place: Path) -> None:
    around = {name for name in grown(place.parent.parent) if not name.startswith("around/place/")}
    assert around == {"around", "around/place", "around/precious", "outside", "outside/precious"}
    for name in ("around/precious", "outside/precious"):
        assert (place.parent.parent / name).read_bytes() == OLD


async def test_names_that_no_file_can_have(place: Path, nothing_left: None) -> None:
    class Server(Hostile):
        pass

    async with served(Server) as host:
        for name in (b"../../evil", b"a/b", b"/etc/evil", b"../precious", b"", b"x\0y", b"sub/..", b"..\0", b"../"):
            Server.names = [(b"fine", FILE), (name, FILE)]
            response = await host.run(Get(remotepaths="/top", localpath=place, recurse=True))
            check_failure(response, "SFTPBadMessage", changed=True, outcome="unknown")
            assert grown(place) == {}, "nothing is copied before all is known"
            response = await host.run(Readdir(path="/top"))
            assert response["value"] == "SFTPBadMessage", name
            response = await host.run(Mget(remotepaths="/top/*", localpath=place))
            assert response["error"], name
            assert grown(place) == {}
            check_around(place)


async def test_dots_are_no_names(place: Path, nothing_left: None) -> None:
    class Server(Hostile):
        names = ((b".", FOLDER), (b"..", FOLDER), (b"fine", FILE))

    async with served(Server) as host:
        assert await host.changed(Get(remotepaths="/top", localpath=place, recurse=True))
        assert await host.changed(Mget(remotepaths="/top/*", localpath=place))
    assert grown(place) == {"top": None, "top/fine": b"evil", "fine": b"evil"}
    check_around(place)


async def test_a_directory_whose_real_name_is_none(place: Path, nothing_left: None) -> None:
    """What the copy of "/top/." is called is for the host to say."""

    class Server(Hostile):
        names = ((b"precious", FILE), (b"new", FILE))

    async with served(Server) as host:
        for real in (b"/x/..", b"/", b"/x/.", b"..", b"../..", b"/x/y\0", b"/../../outside"):
            Server.real = real
            for path in ("/top/.", "/top/..", "/"):
                await host.run(Get(remotepaths=path, localpath=place, recurse=True))
                check_around(place)


async def test_links_that_no_one_asked_for(place: Path, nothing_left: None) -> None:
    class Server(Hostile):
        names = ((b"a", LINK), (b"fine", FILE))

    async with served(Server) as host:
        for leads_to in (b"/etc", b"..", b"../../outside", b"a\0b", b"", b"x/../../precious"):
            Server.leads_to = leads_to
            response = await host.run(Get(remotepaths="/top", localpath=place, recurse=True))
            assert response["error"], leads_to
            assert not os.path.lexists(place / "top/a")
            check_around(place)


async def test_one_name_for_two_things(place: Path, nothing_left: None) -> None:
    """First a link, then what is written through it: neither in one transfer nor in two."""

    class Server(Hostile):
        pass

    async with served(Server) as host:
        for leads_to in (b"../../../outside", b"../../precious", b"fine"):
            Server.leads_to = leads_to
            for kinds in ((LINK, FOLDER), (FOLDER, LINK), (LINK, FILE), (FILE, LINK)):
                Server.names = [(b"fine", FOLDER), *((b"a", kind) for kind in kinds)]
                for operation in (Get(remotepaths="/top", **twice(place)), Mget(remotepaths="/top/*", **twice(place))):
                    await host.run(operation)
                    await host.run(operation)
                for kind in kinds:
                    Server.names = [(b"a", kind)]
                    await host.run(Get(remotepaths="/top", localpath=place, recurse=True))
                    await host.run(Get(remotepaths=["/top/a"], localpath=place, recurse=True))
                check_around(place)
                assert not [name for name in grown(place) if "reemote" in name]
                shutil.rmtree(place)
                place.mkdir()


def twice(place: Path) -> dict[str, Any]:
    return {"localpath": place, "recurse": True, "error_handler": lambda error: None}


async def test_a_listing_without_an_end(place: Path, monkeypatch: pytest.MonkeyPatch, nothing_left: None) -> None:
    monkeypatch.setattr(reemote.ssh.files, "MOST_NAMES", 1000)

    class Server(Hostile):
        async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
            for number in itertools.count():
                yield asyncssh.SFTPName(str(number).encode(), attrs=FILE)

    async with served(Server) as host, asyncio.timeout(5):
        for operation in (
            Get(remotepaths="/top", localpath=place, recurse=True),
            Readdir(path="/top"),
            Mget(remotepaths="/top/*", localpath=place),
        ):
            response = await host.run(operation)
            assert (response["value"], response["error"]) == ("SFTPBadMessage", True), operation
    assert grown(place) == {}


@pytest.mark.parametrize("number", [1, 2])
async def test_a_tree_without_an_end(
    place: Path, number: int, monkeypatch: pytest.MonkeyPatch, nothing_left: None
) -> None:
    """Each directory has another one in it."""
    monkeypatch.setattr(reemote.ssh.files, "MOST_NAMES", 1000)

    class Server(Hostile):
        async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
            for each in range(number):
                yield asyncssh.SFTPName(str(each).encode() * 20, attrs=FOLDER)

        def stat(self, path: bytes) -> asyncssh.SFTPAttrs:
            return FOLDER

    async with served(Server) as host, asyncio.timeout(5):
        response = await host.run(Get(remotepaths="/top", localpath=place, recurse=True))
        assert response["error"]
    assert grown(place) == {}


async def test_sizes_that_are_lies(place: Path, nothing_left: None) -> None:
    class Server(Hostile):
        content = b"0123456789"
        names = ((b"file", FILE),)

    async with served(Server) as host, asyncio.timeout(10):
        operation = Get(remotepaths="/file", localpath=place / "file")
        for size in (11, 10 * 2**30, 2**63 - 1, 2**64 - 1):
            Server.size = size
            response = await host.run(operation)
            assert response["error"], "it sends less than it says"
            assert grown(place) == {}
        Server.size = 4
        assert await host.changed(operation)
        assert grown(place) in ({"file": b"0123"}, {"file": b"0123456789"}), "it has grown meanwhile"
        Server.size = 0
        assert await host.changed(operation)
        assert grown(place) == {"file": b"0123456789"}, "what has no size is read to its end"
        response = await host.run(Read(path="/file"))
        assert response["value"] == "0123456789"
    check_around(place)


async def test_ranges_that_are_lies(place: Path, monkeypatch: pytest.MonkeyPatch, nothing_left: None) -> None:
    """A server may tell where the holes are."""

    class Server(Hostile):
        content = BIG[:600_000]

    size = len(Server.content)
    lies: list[tuple[list[tuple[int, int]], bool]] = [
        ([(0, 2**40)], True),
        ([(2**40, 10)], True),
        ([(0, size), (0, size)], True),
        ([(size - 10, 10), (0, size - 10)], True),
        ([(0, 0)], False),
        ([(0, size)], False),
        ([(0, size), (size, 1)], True),
        ([(size, 2**63)], True),
    ]

    async def answer(handler: object, packet: Any) -> asyncssh.sftp.SFTPRanges:
        packet.get_string(), packet.get_uint64(), packet.get_uint64()
        return asyncssh.sftp.SFTPRanges(*lie)

    async def fail(handler: object, packet: Any) -> asyncssh.sftp.SFTPRanges:
        raise asyncssh.SFTPFailure("no idea")

    name = b"ranges@asyncssh.com"
    handlers = asyncssh.sftp.SFTPServerHandler._packet_handlers
    monkeypatch.setitem(handlers, name, answer)
    async with served(Server) as host, asyncio.timeout(10):
        for lie in lies:
            for sends in (Hostile.sends, lambda content, offset, size: content[offset:][:size].ljust(size, b"x")):
                monkeypatch.setattr(Server, "sends", staticmethod(sends))
                response = await host.run(Get(remotepaths="/file", localpath=place / "file"))
                if not response["error"]:
                    assert (place / "file").stat().st_size == size, lie
                    assert (place / "file").read_bytes() == Server.content, lie
                assert set(grown(place)) <= {"file"}
                (place / "file").unlink(missing_ok=True)
        monkeypatch.setitem(handlers, name, fail)
        response = await host.run(Get(remotepaths="/file", localpath=place / "file"))
        assert response["error"] or grown(place) == {"file": Server.content}


async def test_a_file_that_never_ends(place: Path, nothing_left: None) -> None:
    """A size of 0 has the file read to its end; a run that bounds its time is bounded in what it keeps."""

    class Server(Hostile):
        size = 0
        sends = staticmethod(lambda content, offset, size: bytes(size))

    async with served(Server) as host:
        response = await host.run(Get(remotepaths="/file", localpath=place / "file"), timeout=0.5)
        assert response["value"] == "Cancelled"
    assert grown(place) == {}


async def test_answers_that_are_shorter_than_asked_for(place: Path, nothing_left: None) -> None:
    class Server(Hostile):
        content = BIG[:200_000]
        sends = staticmethod(lambda content, offset, size: content[offset:][: min(size, 1 + offset % 7000)])

    async with served(Server) as host:
        assert await host.changed(Get(remotepaths="/file", localpath=place / "file"))
        assert grown(place) == {"file": BIG[:200_000]}
        assert not await host.changed(Get(remotepaths="/file", localpath=place / "file", checksum=True))
        Server.size = 0
        assert await host.changed(Get(remotepaths="/file", localpath=place / "file"))
        assert grown(place) == {"file": BIG[:200_000]}


async def test_answers_that_are_longer_than_asked_for(place: Path, nothing_left: None) -> None:
    """They must not be written over what other answers said, nor past the end."""

    class Server(Hostile):
        content = BIG[:200_000]
        sends = staticmethod(lambda content, offset, size: content[offset:][:size] + b"and more")

    async with served(Server) as host:
        choices: list[dict[str, Any]] = [{}, {"block_size": 1000}]
        for options in choices:
            response = await host.run(Get(remotepaths="/file", localpath=place / "file", **options))
            assert response["error"] or grown(place) == {"file": BIG[:200_000]}
            response = await host.run(Get(remotepaths="/file", localpath=place / "file", in_place=True, **options))
            assert response["error"] or grown(place) == {"file": BIG[:200_000]}
            (place / "file").unlink(missing_ok=True)


async def test_a_server_that_fails_in_the_middle(place: Path, nothing_left: None) -> None:
    class Server(Hostile):
        content = BIG

        def read(self, file_obj: object, offset: int, size: int) -> bytes:
            if offset > 500_000:
                raise asyncssh.SFTPFailure("bad sector")
            return super().read(file_obj, offset, size)

    plant(place, {"file": OLD})
    async with served(Server) as host:
        response = await host.run(Get(remotepaths="/file", localpath=place / "file"))
        check_failure(response, "SFTPFailure", changed=False)
        assert "bad sector" in response["detail"]
        assert "/file" in response["detail"]
    assert grown(place) == {"file": OLD}


async def test_a_server_that_tells_nothing_of_its_files(place: Path, nothing_left: None) -> None:
    class Server(Hostile):
        def stat(self, path: bytes) -> asyncssh.SFTPAttrs:
            return asyncssh.SFTPAttrs()

        lstat = fstat = stat  # type: ignore[assignment]

    async with served(Server) as host:
        response = await host.run(Get(remotepaths="/file", localpath=place / "file"))
        assert response["error"]
    assert grown(place) == {}


async def test_a_server_that_breaks_off_its_session(place: Path, nothing_left: None) -> None:
    """The session ends, the connection stays."""

    class Server(Hostile):
        content = BIG

        def read(self, file_obj: object, offset: int, size: int) -> bytes:
            self.channel.exit(1)
            return super().read(file_obj, offset, size)

    async with served(Server) as host, asyncio.timeout(10):
        response = await host.run(Get(remotepaths="/file", localpath=place / "file"))
        check_failure(response, "ConnectionLost", changed=True, outcome="unknown")
    assert grown(place) == {}


# Much and many


class Block(Local[int]):
    """Tell how much is asked of the host at a time."""

    async def perform(self, host: Host) -> int:
        async with host.sftp() as files:
            return files.block


async def test_what_a_server_takes_at_a_time_is_not_all_it_is_given(host: Hosted) -> None:
    """Memory is bounded by a number of blocks, so their size must be, too: servers may say any."""
    response = await host.run(Block())
    assert 2**14 <= response["value"] <= 2**18


MEASURED = """
import asyncio, json, sys
from pathlib import Path
from reemote.execute import Pool, execute
from reemote.sftp import Get, Put

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024

async def main():
    given = json.loads(sys.argv[1])
    async with Pool() as pool:
        async def run(operation):
            (await execute(lambda: operation, given["inventory"], pool=pool)).raise_for_errors()
        await run(Put(localpaths=given["small"], remotepath=given["remote"]))
        before = status("VmRSS")
        await run(Put(localpaths=given["local"], remotepath=given["remote"]))
        if given["back"]:
            await run(Get(remotepaths=given["remote"], localpath=given["back"]))
        print(json.dumps(status("VmHWM") - before))

asyncio.run(main())
"""


@pytest.fixture
def roomy(user_sshd: UserSshd) -> Iterator[Path]:
    """A directory that is in memory where possible, for the user of the server."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else user_sshd.served) as name:
        if os.geteuid() == 0:
            os.chown(name, user_sshd.uid, user_sshd.uid)
        yield Path(name)


async def measure(given: dict[str, Any]) -> float:
    """Run a program that copies, and give by how many MiB it has grown."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", MEASURED, json.dumps(given), stdout=subprocess.PIPE
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), 60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    assert process.returncode == 0
    return float(json.loads(out))


@pytest.mark.slow
async def test_the_memory_of_a_large_transfer(user_sshd: UserSshd, roomy: Path) -> None:
    (roomy / "small").write_bytes(b"x")
    chunk = random.Random(4).randbytes(2**20)
    with (roomy / "local").open("wb") as file:
        for _ in range(256):
            file.write(chunk)
    given = {
        "inventory": {"hosts": [{"connection": user_sshd.connection()}]},
        "small": str(roomy / "small"),
        "local": str(roomy / "local"),
        "remote": str(roomy / "remote"),
        "back": str(roomy / "back"),
    }
    growth = await measure(given)
    assert growth < 100
    for name in ("remote", "back"):
        assert (roomy / name).stat().st_size == 256 * 2**20
        subprocess.run(["cmp", roomy / "local", roomy / name], check=True, timeout=30)


@pytest.mark.slow
async def test_the_memory_of_many_transfers(user_sshd: UserSshd, roomy: Path) -> None:
    (roomy / "small").write_bytes(b"x")
    (roomy / "local").write_bytes(random.Random(5).randbytes(8 * 2**20))
    hosts = [{"connection": user_sshd.connection(host=f"h{each}", address="127.0.0.1")} for each in range(20)]
    given = {
        "inventory": {"hosts": hosts},
        "small": str(roomy / "small"),
        "local": str(roomy / "local"),
        "remote": str(roomy / "remote"),
        "back": None,
    }
    growth = await measure(given)
    assert growth < 120
    assert (roomy / "remote").read_bytes() == (roomy / "local").read_bytes()
    assert sorted(path.name for path in roomy.iterdir()) == ["local", "remote", "small"]


def sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.write(b"start")
        file.seek(size // 2)
        file.write(b"middle")
        file.truncate(size)


def check_sparse(path: Path, size: int) -> None:
    assert path.stat().st_size == size
    assert held(path) < 8 * 2**20
    with path.open("rb") as file:
        assert file.read(6) == b"start\0"
        file.seek(size // 2 - 1)
        assert file.read(8) == b"\0middle\0"


@pytest.mark.slow
async def test_a_large_file_of_holes(host: Hosted, local: Path) -> None:
    size = 2**31 + 12345
    sparse(local / "up", size)
    async with asyncio.timeout(10):
        assert await host.changed(Put(localpaths=local / "up", remotepath=host.path("file")))
    check_sparse(host.root / "file", size)
    if host.kind != "sandbox":  # OpenSSH cannot tell where the holes are, so all of it is sent
        size = 2**27
        (host.root / "file").unlink()
        sparse(host.file("file"), size)
    async with asyncio.timeout(20):
        assert await host.changed(Get(remotepaths=host.path("file"), localpath=local / "down"))
    check_sparse(local / "down", size)


@pytest.mark.slow
async def test_a_directory_of_ten_thousand(
    user_sshd: UserSshd, roomy: Path, monkeypatch: pytest.MonkeyPatch, nothing_left: None
) -> None:
    names = [f"{number:05}" for number in range(10_000)]
    plant(roomy / "from", {name: name.encode() if number < 1000 else "00000" for number, name in enumerate(names)})
    inventory = Inventory.of({"hosts": [{"connection": user_sshd.connection()}]})
    if os.geteuid() == 0:
        os.chown(roomy / "from", user_sshd.uid, user_sshd.uid)
    async with Pool() as pool, asyncio.timeout(40):
        listed = (await execute(lambda: Readdir(path=roomy / "from"), inventory, pool=pool))[0]
        assert sorted(entry["filename"] for entry in listed["value"] if entry["filename"] not in (".", "..")) == names
        get = Get(remotepaths=roomy / "from", localpath=roomy / "to", recurse=True)
        response = (await execute(lambda: get, inventory, pool=pool))[0]
        assert not response["error"], response
    assert sorted(path.name for path in (roomy / "to").iterdir()) == names
    assert (roomy / "to/00999").read_bytes() == b"00999"
    shutil.rmtree(roomy / "to")
