"""Host keys: strict, accept-new, off; changed, revoked, unreadable."""

from __future__ import annotations

import logging
import stat
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from reemote.core.errors import InventoryError
from reemote.core.response import Response
from reemote.execute import Pool, execute
from reemote.host import Shell
from reemote.ssh.hostkeys import own_file
from reemote.ssh.server import SandboxServer
from tests.ssh.hosts import inventory, only

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
async def server() -> AsyncIterator[SandboxServer]:
    async with SandboxServer("alpha") as server:
        yield server


async def call(server: SandboxServer, **more: Any) -> Response[Any]:
    options = {"host": server.address, "port": server.port, "username": "user", "password": "password"}
    return await only(lambda: Shell(cmd="echo ran"), **{**options, **more})


def line(server: SandboxServer, key: str | None = None, mark: str = "") -> str:
    return f"{mark}[{server.address}]:{server.port} {key or server.public_host_key}\n"


def other_key() -> str:
    return asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().strip()


async def test_strict_is_the_default_and_creates_no_file(server: SandboxServer, home: Path) -> None:
    response = await call(server)
    assert (response["value"], response["outcome"]) == ("HostKeyNotVerifiable", "not_started")
    fingerprint = asyncssh.import_public_key(server.public_host_key).get_fingerprint()
    for word in (fingerprint, str(home / ".ssh" / "known_hosts"), str(own_file()), "accept-new"):
        assert word in response["detail"]
    assert server.logins == []
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("where", ["user", "own", "option", "list", "bytes"])
async def test_a_known_key_is_taken_from_any_place(server: SandboxServer, home: Path, where: str) -> None:
    file = {"user": home / ".ssh" / "known_hosts", "own": own_file()}.get(where, home / "named")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("# a comment\n\n" + line(server))
    options: dict[str, Any] = {"option": str(file), "list": [str(file)], "bytes": file.read_bytes()}
    given = {"known_hosts": options[where]} if where in options else {}
    assert (await call(server, **given)).value.stdout == "ran\n"


async def test_a_hashed_name_is_read(server: SandboxServer, home: Path) -> None:
    file = home / "known"
    file.write_text(line(server))
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(file)], check=True, capture_output=True)
    assert server.address not in file.read_text()
    assert not (await call(server, known_hosts=str(file)))["error"]


@pytest.mark.parametrize("policy", ["strict", "accept-new"])
async def test_a_changed_key_is_refused(server: SandboxServer, home: Path, policy: str) -> None:
    (home / ".ssh").mkdir()
    (home / ".ssh" / "known_hosts").write_text(line(server, other_key()))
    response = await call(server, host_keys=policy)
    assert response["value"] == "HostKeyChanged"
    remedy = response["detail"].rpartition("remove the old key: ")[2]
    subprocess.run(remedy, shell=True, check=True, capture_output=True)
    assert server.address not in (home / ".ssh" / "known_hosts").read_text()
    assert server.logins == []


@pytest.mark.parametrize("policy", ["strict", "accept-new"])
async def test_a_key_of_another_kind_than_is_known_is_refused(server: SandboxServer, home: Path, policy: str) -> None:
    known = asyncssh.generate_private_key("ecdsa-sha2-nistp256").export_public_key().decode()
    (home / ".ssh").mkdir()
    (home / ".ssh" / "known_hosts").write_text(line(server, known))
    assert (await call(server, host_keys=policy))["value"] == "HostKeyChanged"
    assert server.logins == []


@pytest.mark.parametrize("policy", ["strict", "accept-new"])
async def test_a_revoked_key_is_refused(server: SandboxServer, home: Path, policy: str) -> None:
    (home / ".ssh").mkdir()
    (home / ".ssh" / "known_hosts").write_text(line(server, mark="@revoked "))
    assert (await call(server, host_keys=policy))["value"] == "HostKeyRevoked"


async def test_accept_new_remembers_and_then_insists(server: SandboxServer) -> None:
    assert not (await call(server, host_keys="accept-new"))["error"]
    assert own_file().read_text() == line(server)
    assert stat.S_IMODE(own_file().stat().st_mode) == 0o600
    assert stat.S_IMODE(own_file().parent.stat().st_mode) == 0o700
    assert not (await call(server))["error"]  # known now: strict is content
    assert not (await call(server, host_keys="accept-new"))["error"]
    assert own_file().read_text() == line(server)
    port = server.port
    async with SandboxServer("impostor") as impostor:
        own_file().write_text(line(impostor, server.public_host_key))
        assert (await call(impostor, host_keys="accept-new"))["value"] == "HostKeyChanged"
        assert port != impostor.port


async def test_many_new_hosts_at_the_same_time_are_all_remembered() -> None:
    servers = [SandboxServer(f"host{number}") for number in range(12)]
    for server in servers:
        await server.start()
    try:
        hosts = inventory(
            *(
                {
                    "host": server.name,
                    "address": server.address,
                    "port": server.port,
                    "username": "user",
                    "password": "password",
                    "host_keys": "accept-new",
                }
                for server in servers
            )
        )
        async with Pool() as pool:
            responses = await execute(lambda: Shell(cmd="true"), hosts, pool=pool)
        assert not responses.failed
        assert sorted(own_file().read_text().splitlines(keepends=True)) == sorted(map(line, servers))
    finally:
        for server in servers:
            await server.stop()


@pytest.mark.parametrize("options", [{"host_keys": "off"}, {"known_hosts": None}])
async def test_off_takes_any_key_and_warns_once_a_run(
    server: SandboxServer, caplog: pytest.LogCaptureFixture, options: dict[str, Any]
) -> None:
    with caplog.at_level(logging.WARNING, "reemote"):
        assert not (await call(server, **options))["error"]
    assert [record.getMessage() for record in caplog.records] == [
        f"host keys are not checked on 1 of the hosts: {server.address}"
    ]


async def test_a_broken_line_costs_only_itself(
    server: SandboxServer, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (home / ".ssh").mkdir()
    broken = "@nonsense * ssh-ed25519 AAAA\nhost ssh-ed25519 !!!not-base64\n"
    (home / ".ssh" / "known_hosts").write_text(broken + line(server))
    assert not (await call(server))["error"]


async def test_a_file_that_is_not_there(server: SandboxServer, home: Path) -> None:
    with pytest.raises(InventoryError, match=r"known_hosts: there is no file .*nowhere"):
        await call(server, known_hosts=str(home / "nowhere"))


async def test_a_certificate_authority_is_trusted(server: SandboxServer, home: Path) -> None:
    """An entry for an authority says nothing of plain keys: such a host is unknown, and not new."""
    authority = other_key()
    (home / ".ssh").mkdir()
    (home / ".ssh" / "known_hosts").write_text(f"@cert-authority * {authority}\n")
    assert (await call(server))["value"] == "HostKeyNotVerifiable"
    assert (await call(server, host_keys="accept-new"))["value"] == "HostKeyNotVerifiable"
    assert not own_file().exists()
