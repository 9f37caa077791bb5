"""Connections without waste: what they leave out, that nothing else changes, and that asyncssh is as we know it."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from reemote.core.response import Response
from reemote.execute import Pool, execute
from reemote.host import Shell
from reemote.ssh import lean
from reemote.ssh.link import Link
from reemote.ssh.process import CommandSession
from reemote.ssh.request import Request
from tests.openssh import UserSshd
from tests.openssh_fixtures import MakeUserSshd
from tests.ssh.hosts import inventory, only

pytestmark = pytest.mark.slow

IGNORE, KEXINIT, USERAUTH_REQUEST, EOF, CLOSE = 2, 20, 50, 96, 97


class Watch:
    """What leaves the client: packets by their numbers, and writes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.packets: list[int] = []
        self.writes = 0
        send, flush = asyncssh.SSHClientConnection.send_packet, lean.Batch.flush
        watch = self

        def sent(connection: Any, number: int, *args: bytes, handler: Any = None) -> None:
            watch.packets.append(number)
            send(connection, number, *args, handler=handler)

        def flushed(batch: Any) -> None:
            watch.writes += bool(batch._pieces)
            flush(batch)

        monkeypatch.setattr(asyncssh.SSHClientConnection, "send_packet", sent)
        monkeypatch.setattr(lean.Batch, "flush", flushed)

    def clear(self) -> None:
        self.packets.clear()
        self.writes = 0


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


def key_at(path: Path, kind: str = "ssh-ed25519") -> str:
    asyncssh.generate_private_key(kind).write_private_key(path)
    return str(path)


async def test_one_request_logs_in_and_two_writes_run_a_command(user_sshd: UserSshd, watch: Watch) -> None:
    async with Pool() as pool:
        hosts = inventory(user_sshd.connection())
        response = (await execute(lambda: Shell(cmd="echo one"), hosts, pool=pool))[0]
        assert response.value.stdout == "one\n"
        assert Counter(watch.packets)[USERAUTH_REQUEST] == 1
        assert IGNORE not in watch.packets

        class Many:
            async def execute(self) -> Any:
                for number in range(20):
                    assert (yield Shell(cmd=f"echo {number}")).value.stdout == f"{number}\n"

        watch.clear()
        (await execute(lambda: Many(), hosts, pool=pool)).raise_for_errors()
        counted = Counter(watch.packets)
        assert counted[EOF] == counted[CLOSE] == 20
        assert IGNORE not in counted
        assert 40 <= watch.writes <= 62, "CLOSE does not share a write, or EOF has one of its own"


async def test_ciphers_that_chain_blocks_get_their_empty_packets(make_user_sshd: MakeUserSshd, watch: Watch) -> None:
    server = make_user_sshd(Ciphers="aes128-cbc")
    response = await only(lambda: Shell(cmd="echo one"), **server.connection(encryption_algs=["aes128-cbc"]))
    assert response.value.stdout == "one\n"
    numbers = watch.packets
    first = numbers.index(USERAUTH_REQUEST)
    assert numbers[first + 1] == IGNORE
    assert Counter(numbers)[IGNORE] >= 5


@pytest.mark.parametrize("kind", ["ssh-rsa", "ecdsa-sha2-nistp256", "ssh-ed25519"])
async def test_keys_that_are_wrong_come_before_the_right_one(
    user_sshd: UserSshd, tmp_path: Path, watch: Watch, kind: str
) -> None:
    keys = [key_at(tmp_path / "wrong", kind), str(user_sshd.client_key)]
    failed = user_sshd.failed("publickey")
    response = await only(lambda: Shell(cmd="echo in"), **user_sshd.connection(client_keys=keys))
    assert response.value.stdout == "in\n"
    assert Counter(watch.packets)[USERAUTH_REQUEST] == 2
    assert user_sshd.failed("publickey") <= failed + 1


async def test_every_kind_of_key_logs_in_at_once(make_user_sshd: MakeUserSshd, tmp_path: Path, watch: Watch) -> None:
    server = make_user_sshd()
    kinds = ("ssh-rsa", "ecdsa-sha2-nistp384", "ssh-ed25519")
    keys = [asyncssh.read_private_key(key_at(tmp_path / kind, kind)) for kind in kinds]
    with (server.served / "authorized_keys").open("a") as file:
        file.writelines(key.export_public_key().decode() for key in keys)
    for key in keys:
        watch.clear()
        response = await only(lambda: Shell(cmd="echo in"), **server.connection(client_keys=[key]))
        assert response.value.stdout == "in\n"
        assert Counter(watch.packets)[USERAUTH_REQUEST] == 1


async def test_no_key_of_ours_is_used_where_none_is_to_be(user_sshd: UserSshd, watch: Watch) -> None:
    for options in ({"public_key_auth": False}, {"client_keys": None}):
        watch.clear()
        response = await only(lambda: Shell(cmd="echo in"), **user_sshd.connection(**options))
        assert response.error
        assert response.value == "PermissionDenied"
        assert Counter(watch.packets)[USERAUTH_REQUEST] == 1  # which asks what else there is


async def test_another_method_may_be_preferred(user_sshd: UserSshd, watch: Watch) -> None:
    options = user_sshd.connection(preferred_auth="password,publickey", password="wrong")
    response = await only(lambda: Shell(cmd="echo in"), **options)
    assert response.value.stdout == "in\n"
    assert Counter(watch.packets)[USERAUTH_REQUEST] > 1


async def test_a_certificate_logs_in(make_user_sshd: MakeUserSshd, tmp_path: Path) -> None:
    authority = asyncssh.generate_private_key("ssh-rsa")
    authority.write_public_key(tmp_path / "authority.pub")
    server = make_user_sshd(TrustedUserCAKeys=tmp_path / "authority.pub")
    (server.served / "authorized_keys").write_text("")
    key = asyncssh.read_private_key(key_at(tmp_path / "id_ed25519"))
    certificate = authority.generate_user_certificate(key, "tester", principals=[server.username])
    certificate.write_certificate(tmp_path / "id_ed25519-cert.pub")
    response = await only(lambda: Shell(cmd="echo in"), **server.connection(client_keys=[str(tmp_path / "id_ed25519")]))
    assert response.value.stdout == "in\n"


async def test_through_a_jump_host_and_a_program(user_sshd: UserSshd) -> None:
    options = user_sshd.connection()
    async with asyncssh.connect(**options) as jump:
        through = await only(lambda: Shell(cmd="echo jumped"), **{**options, "tunnel": jump})
        assert through.value.stdout == "jumped\n"
    # One process, which ends with its connection: a child that it left would hold the server's session.
    there = f"-o UserKnownHostsFile={user_sshd.known_hosts} {user_sshd.username}@127.0.0.1"
    program = f"ssh -F none -i {user_sshd.client_key} -p {user_sshd.port} -W 127.0.0.1:{user_sshd.port} {there}"
    piped = await only(lambda: Shell(cmd="echo piped"), **{**options, "proxy_command": program})
    assert piped.value.stdout == "piped\n"
    await asyncio.to_thread(user_sshd.wait_idle)


async def test_packets_are_logged_where_somebody_wants_them(
    user_sshd: UserSshd, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(asyncssh.logging.logger), "_debug_level", 3)
    with caplog.at_level(logging.DEBUG, "asyncssh"):
        await only(lambda: Shell(cmd="echo one"), **user_sshd.connection())
    text = caplog.text
    for seen in ("Sent MSG_KEXINIT", "Received MSG_USERAUTH_SUCCESS", "Sent MSG_CHANNEL_REQUEST", "MSG_CHANNEL_CLOSE"):
        assert seen in text


async def test_keys_are_exchanged_again_when_their_time_has_come(user_sshd: UserSshd, watch: Watch) -> None:
    """What the first exchange needed is forgotten by then."""
    async with Pool() as pool:
        hosts = inventory(user_sshd.connection(rekey_bytes=200_000))
        for _ in range(3):
            [response] = await execute(lambda: Shell(cmd="cat", stdin="x" * 300_000), hosts, pool=pool)
            assert len(response.value.stdout) == 300_000
        assert Counter(watch.packets)[KEXINIT] >= 3
        assert pool.open_connections == 1


async def test_sessions_with_options_go_the_long_way(user_sshd: UserSshd, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    channel = lean.LeanChannel.__init__

    def noted(self: Any, connection: Any, session: Any, command: str, *, input_ends: bool) -> None:
        made.append(command)
        channel(self, connection, session, command, input_ends=input_ends)

    monkeypatch.setattr(lean.LeanChannel, "__init__", noted)

    async def run(cmd: str, session: dict[str, Any], **more: Any) -> Response[Any]:
        return await only(lambda: Shell(cmd=cmd, session=session), **user_sshd.connection(**more))

    assert (await run("echo plain", {})).value.stdout == "plain\n"
    assert made == ["echo plain"]
    assert (await run("echo wide", {"window": 1024 * 1024})).value.stdout == "wide\n"
    assert (await run("echo far", {}, send_env=["LANG"])).value.stdout == "far\n"
    assert made == ["echo plain"]


async def test_who_gives_up_the_opening_may_ask_again(user_sshd: UserSshd) -> None:
    """What a cancellation in the middle of the opening needs: the command is to be ended."""
    async with Pool() as pool:
        item = inventory(user_sshd.connection()).hosts[0]
        link: Link = await pool.acquire(item, None, 1)
        request = Request(command="echo begun")
        session = CommandSession(request)
        channel = lean.LeanChannel(link._connection, session, request.wire(None), input_ends=True)
        first = channel.opened()
        first.cancel()
        assert await channel.opened() is channel
        await session.closed.wait()
        assert channel.get_exit_status() == 0
        assert session.streams[None].value() == b"begun\n"
        assert await channel.opened() is channel  # also when it is long done
        pool.release(link)


async def test_the_channel_fails_with_its_connection(user_sshd: UserSshd) -> None:
    async with Pool() as pool:
        link: Link = await pool.acquire(inventory(user_sshd.connection()).hosts[0], None, 1)
        request = Request(command="echo never")
        channel = lean.LeanChannel(link._connection, CommandSession(request), "echo never", input_ends=True)
        waiting = channel.opened()
        link.abort()
        with pytest.raises(asyncssh.ChannelOpenError):
            await waiting
        with pytest.raises(asyncssh.ChannelOpenError):
            lean.LeanChannel(link._connection, CommandSession(request), "echo never", input_ends=True)
        pool.release(link)


async def test_options_of_one_host_stay_with_it(user_sshd: UserSshd) -> None:
    """Hosts share what is worked out of the same options; names, ports and what servers want are their own."""
    async with Pool() as pool:
        options = user_sshd.connection(address="127.0.0.1")
        hosts = inventory(
            {**options, "host": "one"}, {**options, "host": "two"}, {**options, "host": "three", "port": 1}
        )
        pool.prepare(hosts.hosts)
        plans = [pool._plan(item) for item in hosts.hosts]
        assert len({id(plan.options) for plan in plans}) == 1
        before = dict(vars(plans[0].options))
        responses = await execute(lambda: Shell(cmd="echo in"), hosts, pool=pool)
        assert [response.error for response in responses] == [False, False, True]
        assert responses[2].value == "ConnectionRefusedError"
        assert vars(plans[0].options) == before


async def test_a_name_that_asyncssh_completes_keeps_our_trust(
    user_sshd: UserSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It works out all options again then, from what it was given at first."""

    async def completed(*_: Any) -> str:
        return "127.0.0.1"

    monkeypatch.setattr(asyncssh.connection, "_canonicalize_host", completed)
    options = user_sshd.connection(host="far", canonicalize_hostname=True, canonical_domains=["example"])
    known = await only(lambda: Shell(cmd="echo in"), **options)
    assert known.value.stdout == "in\n"
    (tmp_path / "none").touch()
    unknown = await only(lambda: Shell(cmd="echo in"), **{**options, "known_hosts": str(tmp_path / "none")})
    assert unknown.value == "HostKeyNotVerifiable"


async def test_what_is_written_leaves_in_order_and_before_the_end() -> None:
    written: list[bytes] = []
    ended: list[str] = []

    class Transport(asyncio.Transport):
        def write(self, data: Any) -> None:
            written.append(bytes(data))

        def close(self) -> None:
            ended.append("close")

        def abort(self) -> None:
            ended.append("abort")

    batch = lean.Batch(Transport({"peername": "there"}))
    batch.write(b"one ")
    batch.write(b"two")
    assert written == []
    await asyncio.sleep(0)
    assert written == [b"one two"]
    batch.write(b"x" * 70_000)
    assert written[1:] == [b"x" * 70_000]
    batch.write(b"last")
    batch.abort()
    batch.close()
    assert written[2:] == [b"last"]
    assert ended == ["abort", "close"]
    assert batch.get_extra_info("peername") == "there"
