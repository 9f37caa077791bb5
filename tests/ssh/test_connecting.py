"""What goes wrong before the login is done: each failure by a real fault, with its name and its time."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from reemote.execute import Pool, execute
from reemote.host import Shell
from reemote.ssh import link
from reemote.testing import sandbox
from tests.openssh import RootWorld, UserSshd
from tests.openssh_fixtures import MakeUserSshd
from tests.ssh.hosts import blackhole, closed_port, inventory, only, talker

pytestmark = pytest.mark.usefixtures("nothing_left")


def shell() -> Shell:
    return Shell(cmd="echo ran")


def is_failure(response: Any, value: str, outcome: str = "not_started") -> None:
    """Hold a response to the shape of a failure that left the host alone."""
    assert list(response)[:4] == ["host", "value", "changed", "error"]
    assert (response["value"], response["error"]) == (value, True)
    assert response["outcome"] == outcome
    assert response["changed"] is (outcome != "not_started")
    assert response["detail"]
    assert "completed" not in response or outcome != "not_started"


async def test_refused() -> None:
    with closed_port() as port:
        is_failure(await only(shell, host="127.0.0.1", port=port), "ConnectionRefusedError")


async def test_refused_on_all_addresses_of_a_name() -> None:
    with closed_port() as port:  # localhost may be ::1 and 127.0.0.1: asyncio folds two errors into one
        is_failure(await only(shell, host="localhost", port=port), "ConnectionRefusedError")


async def test_a_name_that_does_not_exist() -> None:
    is_failure(await only(shell, host="no-such-host.invalid", connect_timeout=5), "HostNotFound")


@pytest.mark.parametrize("name", ["a" * 64 + ".invalid", "under..dots", "ü" * 70])
async def test_a_name_that_is_none(name: str) -> None:
    is_failure(await only(shell, host=name), "HostNotFound")


async def test_no_answer_in_time() -> None:
    with blackhole() as port:
        start = time.monotonic()
        response = await only(shell, host="127.0.0.1", port=port, connect_timeout=0.5)
        is_failure(response, "ConnectTimeout")
        assert 0.4 < time.monotonic() - start < 1.5
        assert "0.5 s" in response["detail"]


async def test_an_open_port_that_never_speaks() -> None:
    async with talker(close=False) as (port, calls):
        start = time.monotonic()
        is_failure(await only(shell, host="127.0.0.1", port=port, connect_timeout=0.5), "ConnectTimeout")
        assert time.monotonic() - start < 1.5
        assert len(calls) == 1


async def test_no_route() -> None:
    # Addresses of documentation (RFC 5737) have no route here, or only one that leads nowhere.
    response = await only(shell, host="127.0.0.1", local_addr=("192.0.2.1", 0), port=1)
    is_failure(response, "HostUnreachable")


@pytest.mark.slow
async def test_no_network(world: RootWorld) -> None:
    # The machines' network knows no other: nothing is sent anywhere.
    with world.network():
        response = await only(shell, host="192.0.2.1")
    is_failure(response, "HostUnreachable")
    assert "192.0.2.1" in response["detail"]


async def test_a_login_that_is_never_answered() -> None:
    async with talker(b"SSH-2.0-Silent\r\n", close=False) as (port, _):
        start = time.monotonic()
        is_failure(await only(shell, host="127.0.0.1", port=port, login_timeout=0.4), "ConnectTimeout")
        assert time.monotonic() - start < 2


async def test_a_drop_before_the_login_is_tried_five_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "BACKOFF", 0.01)
    async with talker() as (port, calls):
        is_failure(await only(shell, host="127.0.0.1", port=port), "ConnectionLost")
        assert len(calls) == 5


async def test_something_else_than_ssh() -> None:
    async with talker(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 2000) as (port, calls):
        is_failure(await only(shell, host="127.0.0.1", port=port), "ProtocolError")
        assert len(calls) == 1


async def test_a_server_without_a_common_cipher() -> None:
    async with sandbox("a") as hosts:
        options = hosts.hosts[0].connection.options()
        response = await only(shell, **{**options, "encryption_algs": ["3des-cbc"]})
        is_failure(response, "ProtocolError")


@pytest.mark.slow
async def test_a_wrong_password_is_tried_once(world: RootWorld) -> None:
    machine = world["server104"]
    before = machine.failed()
    with world.network():

        class Twice:
            async def execute(self) -> Any:
                first = yield shell()
                assert first["error"]
                yield shell()

        options = {**machine.connection(), "host": machine.address, "password": "wrong"}
        is_failure(await only(Twice, **options), "PermissionDenied")
    machine.wait_idle()
    assert machine.failed() - before == 1


async def test_a_password_where_none_is_taken(user_sshd: UserSshd) -> None:
    options = user_sshd.connection(password="password")
    del options["client_keys"]
    is_failure(await only(shell, **options), "PermissionDenied")


async def test_a_key_that_is_not_authorised(user_sshd: UserSshd, tmp_path: Path) -> None:
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(tmp_path / "key")
    is_failure(await only(shell, **user_sshd.connection(client_keys=[str(tmp_path / "key")])), "PermissionDenied")


async def test_too_many_keys(user_sshd: UserSshd) -> None:
    keys = [asyncssh.generate_private_key("ssh-ed25519") for _ in range(8)]
    before = user_sshd.accepted()
    is_failure(await only(shell, **user_sshd.connection(client_keys=keys)), "PermissionDenied")
    assert user_sshd.accepted() == before


async def test_a_password_goes_before_the_keys_of_the_user(home: Path) -> None:
    (home / ".ssh").mkdir()
    for name in ("id_ed25519", "id_ecdsa"):
        kind = "ssh-ed25519" if name == "id_ed25519" else "ecdsa-sha2-nistp256"
        asyncssh.generate_private_key(kind).write_private_key(home / ".ssh" / name)
    fleet = sandbox("a")
    async with fleet as hosts, Pool() as pool:
        assert not (await execute(shell, hosts, pool=pool)).failed
        assert [method for _, method, _ in fleet["a"].logins] == ["password"]


async def test_the_users_key_is_found(home: Path) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    (home / ".ssh").mkdir()
    key.write_private_key(home / ".ssh" / "id_ed25519")
    fleet = sandbox("a", authorized_keys=[key.export_public_key().decode()])
    async with fleet as hosts, Pool() as pool:
        hosts.hosts[0].connection.password = None
        assert not (await execute(shell, hosts, pool=pool)).failed


async def test_a_banner_in_no_known_encoding(make_user_sshd: MakeUserSshd, tmp_path: Path) -> None:
    (tmp_path / "banner").write_bytes(b"\xff\xfe welcome \x1b[31m\n" * 100)
    server = make_user_sshd(Banner=tmp_path / "banner")
    assert (await only(shell, **server.connection())).value.stdout == "ran\n"


@pytest.mark.slow
async def test_a_hundred_hosts_some_of_them_broken(make_user_sshd: MakeUserSshd) -> None:
    """R1: one host's trouble never costs another host's result, nor its time."""
    server = make_user_sshd(private_network=True, listen="0.0.0.0")
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    with server.network(), closed_port() as closed, blackhole() as silent:
        options = server.connection(known_hosts=f"* {server.host_key}\n".encode(), connect_timeout=3)
        hosts = [{**options, "host": f"127.0.1.{number}"} for number in range(1, 101)]
        hosts[10].update(host="refused", address="127.0.0.1", port=closed)
        hosts[20].update(host="silent", address="127.0.0.1", port=silent)
        hosts[30].update(host="denied", address="127.0.1.31", username="nobody-here")
        hosts[40].update(host="changed", address="127.0.1.41", known_hosts=f"* {other}\n".encode())
        start = time.monotonic()
        async with Pool() as pool:
            responses = await execute(shell, inventory(*hosts), pool=pool)
        assert time.monotonic() - start < 3 + 3
    assert [response["host"] for response in responses] == [host["host"] for host in hosts]
    assert {r["host"]: r["value"] for r in responses.failed} == {
        "refused": "ConnectionRefusedError",
        "silent": "ConnectTimeout",
        "denied": "PermissionDenied",
        "changed": "HostKeyChanged",
    }
    assert all(r.value.stdout == "ran\n" for r in responses if not r["error"])


async def test_steps_at_the_same_time_share_one_attempt() -> None:
    class Many:
        async def execute(self) -> Any:
            responses = yield [shell() for _ in range(5)]
            assert [response["value"] for response in responses] == ["ConnectTimeout"] * 5

    async with talker(close=False) as (port, calls):
        async with asyncio.timeout(5):
            await only(Many, host="127.0.0.1", port=port, connect_timeout=0.5)
        assert len(calls) == 1
