"""Failures of file operations: their names, and whether the step may have taken effect."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from reemote.core.files import Files
from reemote.core.host import Host
from reemote.core.operation import Local
from reemote.core.response import Response
from reemote.execute import Pool, execute
from reemote.host import Shell
from reemote.sftp import Get
from reemote.testing import sandbox
from tests.leaks import eventually
from tests.openssh import RootWorld, UserSshd
from tests.ssh.hosts import only


@pytest.fixture
def sshd(user_sshd: UserSshd) -> UserSshd:
    return user_sshd


pytestmark = pytest.mark.usefixtures("sshd", "nothing_left")


class Work(Local[Any]):
    """Do something with the host's files."""

    work: Callable[[Files], Awaitable[Any]]

    async def perform(self, host: Host) -> Any:
        async with host.sftp() as files:
            return await self.work(files)


async def failure(sshd: UserSshd, work: Callable[[Files], Awaitable[Any]]) -> Response[Any]:
    return await only(lambda: Work(work=work), **sshd.connection())


async def test_a_file_that_is_not_there(sshd: UserSshd) -> None:
    response = await failure(sshd, lambda files: files.stat("/no/such/file"))
    assert (response["value"], response["error"], response["outcome"]) == ("SFTPNoSuchFile", True, "completed")
    assert response["detail"] == "No such file: /no/such/file"
    assert not response["changed"]


async def test_a_file_that_may_not_be_read(sshd: UserSshd) -> None:
    if (await only(lambda: Shell(cmd="id -u"), **sshd.connection())).value.stdout == "0\n":
        raise AssertionError("the test needs an ordinary user")

    async def read(files: Files) -> None:
        async with files.open("/etc/shadow", "read"):
            raise AssertionError("an ordinary user may not read it")

    response = await failure(sshd, read)
    assert response["value"] == "SFTPPermissionDenied"


async def test_any_other_failure(sshd: UserSshd) -> None:
    response = await failure(sshd, lambda files: files.mkdir("/"))
    assert (response["value"], response["outcome"]) == ("SFTPFailure", "completed")


@pytest.mark.slow
async def test_a_full_disk_is_named(world: RootWorld) -> None:
    machine = world["server104"]
    setup = "mkdir -p /small && mount -t tmpfs -o size=64k,mode=1777 tmpfs /small"
    assert machine.run(["sh", "-c", setup]).returncode == 0

    async def fill(files: Files) -> None:
        async with files.open("/small/file", "write") as file:
            await file.write(b"x" * 200_000, 0)

    with world.network():
        options = {**machine.connection(), "host": machine.address}
        response = await only(lambda: Work(work=fill), **options)
    assert response["value"] == "NoSpaceLeft"
    assert "/small" in response["detail"]
    assert machine.run(["umount", "/small"]).returncode == 0


async def test_a_hostile_name_in_a_listing(sshd: UserSshd, tmp_path: Path) -> None:
    """A server that names a file outside of what was asked for is not believed."""

    class Hostile(asyncssh.SFTPServer):
        async def scandir(self, path: bytes) -> Any:
            del path
            yield asyncssh.SFTPName(b"../../evil", attrs=asyncssh.SFTPAttrs(permissions=0o100644, size=1, type=1))

    class Server(asyncssh.SSHServer):
        def begin_auth(self, username: str) -> bool:
            return False

    key = asyncssh.generate_private_key("ssh-ed25519")
    listener = await asyncssh.listen(
        "127.0.0.1", 0, server_host_keys=[key], server_factory=Server, sftp_factory=Hostile, gss_host=None
    )
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)

    async with listener:
        response = await only(
            lambda: Get(remotepaths="/etc", localpath=inside, recurse=True),
            host="127.0.0.1",
            port=listener.get_port(),
            username="u",
            known_hosts=None,
        )
    assert (response["value"], response["outcome"]) == ("SFTPBadMessage", "unknown")
    assert not (tmp_path / "evil").exists()


async def test_a_connection_that_is_lost() -> None:
    asked, closed = asyncio.Event(), asyncio.Event()

    class Silent(asyncssh.SFTPServer):
        async def stat(self, path: bytes) -> Any:
            del path
            asked.set()
            await closed.wait()

    class Server(asyncssh.SSHServer):
        def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
            connections.append(conn)

        def begin_auth(self, username: str) -> bool:
            return False

    connections: list[asyncssh.SSHServerConnection] = []
    key = asyncssh.generate_private_key("ssh-ed25519")
    listener = await asyncssh.listen(
        "127.0.0.1", 0, server_host_keys=[key], server_factory=Server, sftp_factory=Silent, gss_host=None
    )
    async with listener:
        running = asyncio.create_task(
            only(
                lambda: Work(work=lambda files: files.stat("/x")),
                host="127.0.0.1",
                port=listener.get_port(),
                username="u",
                known_hosts=None,
            )
        )
        await asked.wait()
        connections[0].abort()
        lost = await running
        closed.set()
    assert (lost["value"], lost["outcome"], lost["changed"]) == ("ConnectionLost", "unknown", True)
    assert "/x" in lost["detail"]


async def test_a_session_that_died_while_nothing_was_asked_is_opened_anew() -> None:
    fleet = sandbox("a")

    async def cut(files: Files) -> bytes:
        await files.stat(".")
        fleet["a"].drop_connections()
        await eventually(lambda: fleet["a"].open_connections == 0)
        return await files.realpath(".")

    async with fleet as hosts, Pool() as pool:
        response = (await execute(lambda: Work(work=cut), hosts, pool=pool))[0]
        assert response["value"].decode() == str(fleet["a"].home)
    assert fleet["a"].connections == 2


async def test_one_session_for_all_file_operations_of_a_run() -> None:
    fleet = sandbox("a")

    class Root:
        async def execute(self) -> Any:
            for _ in range(5):
                yield Work(work=lambda files: files.stat("."))
            yield [Work(work=lambda files: files.stat(".")) for _ in range(5)]

    async with fleet as hosts, Pool() as pool:
        assert not (await execute(Root, hosts, pool=pool)).failed
    assert (fleet["a"].connections, fleet["a"].peak_sessions) == (1, 1)


async def test_a_server_without_sftp() -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")

    class Server(asyncssh.SSHServer):
        def begin_auth(self, username: str) -> bool:
            return False

    listener = await asyncssh.listen("127.0.0.1", 0, server_host_keys=[key], server_factory=Server, gss_host=None)
    async with listener, asyncio.timeout(8):
        response = await only(
            lambda: Work(work=lambda files: files.stat(".")),
            host="127.0.0.1",
            port=listener.get_port(),
            username="u",
            known_hosts=None,
        )
        assert (response["value"], response["outcome"]) == ("ChannelOpenError", "not_started")
        shell = await only(
            lambda: Shell(cmd="true"), host="127.0.0.1", port=listener.get_port(), username="u", known_hosts=None
        )
        assert (shell["value"], shell["outcome"], shell["changed"]) == ("ChannelOpenError", "not_started", False)
