"""Options: the defaults that ship, what is let through, and what is refused before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import asyncssh
import pytest

from reemote.core.errors import InventoryError
from reemote.execute import Pool, execute
from reemote.host import Shell
from reemote.inventory import Connection
from reemote.ssh import link, options, pool, process, request
from reemote.testing import sandbox
from tests.ssh.hosts import inventory, only

CANARY = "S3CR3T-canary"


def effective(**given: Any) -> asyncssh.SSHClientConnectionOptions:
    """The options as asyncssh understands them."""
    return asyncssh.SSHClientConnectionOptions(**options.plan(Connection(host="h", **given)).arguments)


def test_the_defaults_that_ship() -> None:
    """Section J of the requirements, read from what asyncssh would use."""
    chosen: Any = effective()
    assert chosen.connect_timeout == 10
    assert (chosen.keepalive_interval, chosen.keepalive_count_max) == (15, 3)
    assert chosen.tcp_keepalive
    assert chosen.agent_forward_path is None
    assert chosen.x11_forwarding is False
    assert chosen.encoding is None
    assert chosen.compression_algs in (None, (), [b"none"])
    assert [bytes(name) for name in chosen.encryption_algs[:3]] == [
        b"aes128-gcm@openssh.com",
        b"aes256-gcm@openssh.com",
        b"chacha20-poly1305@openssh.com",
    ]
    assert b"aes256-ctr" in chosen.encryption_algs
    assert chosen.utf8_decode_errors == "replace"
    plan = options.plan(Connection(host="h"))
    assert plan.trust.policy == "strict"
    assert plan.max_sessions == 8
    assert plan.port == 22
    assert (pool.HANDSHAKES_PER_HOST, pool.HANDSHAKES) == (8, 64)
    assert request.KEPT == 64 * 1024 * 1024
    assert (process.GRACE_TERM, process.GRACE_KILL) == (3, 2)
    assert (link.BACKOFF, link.BACKOFF_CAP) == (0.25, 4)


def test_no_configuration_of_ssh_is_read_unless_named(home: Path) -> None:
    (home / ".ssh").mkdir()
    (home / ".ssh" / "config").write_text("Host *\n  User somebody\n  ProxyCommand touch /tmp/never\n")
    chosen: Any = effective()
    assert chosen.username != "somebody"
    assert chosen.proxy_command is None
    named: Any = effective(config=[str(home / ".ssh" / "config")])
    assert named.proxy_command is not None


def test_what_is_given_goes_over_the_defaults() -> None:
    chosen: Any = effective(keepalive_interval=3, connect_timeout=7, username="me")
    assert (chosen.keepalive_interval, chosen.connect_timeout, chosen.username) == (3, 7, "me")
    assert options.plan(Connection.model_validate({"host": "h", "connect_timeout": 7})).timeout == 7


@pytest.mark.parametrize(
    ("where", "given", "message"),
    [
        ("connection", {"usernme": "x"}, "h: connection: unknown option 'usernme': did you mean 'username'?"),
        ("connection", {"zzz": "x"}, "h: connection: unknown option 'zzz'"),
        ("connection", {"client_keys": ["/no/such/key"]}, "h: client_keys: /no/such/key: No such file or directory"),
        ("session", {"terminal": 1}, "h: session: unknown option 'terminal'"),
    ],
)
async def test_wrong_options_are_refused_before_anything_runs(where: str, given: dict[str, Any], message: str) -> None:
    hosts: Any = [
        {"connection": {"host": "first", "port": 1}},
        {"connection": {"host": "h", **given} if where == "connection" else {"host": "h"}, "session": {}},
    ]
    hosts[1]["session"] = given if where == "session" else {}
    with pytest.raises(InventoryError) as caught:
        await execute(lambda: Shell(cmd="true"), {"hosts": hosts})
    assert str(caught.value).startswith(message)


async def test_a_value_that_asyncssh_refuses_names_the_host() -> None:
    with pytest.raises(InventoryError, match=r"h: connection: .*keepalive"):
        await only(lambda: Shell(cmd="true"), host="h", keepalive_interval="often")


def test_an_encrypted_key(tmp_path: Path) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(tmp_path / "key", passphrase=CANARY, rounds=50)
    for passphrase, problem in ((None, "give its passphrase"), ("wrong", "passphrase is wrong")):
        with pytest.raises(InventoryError, match=problem) as caught:
            options.plan(Connection(host="h", passphrase=passphrase, client_keys=[str(tmp_path / "key")]))
        assert CANARY not in str(caught.value)
    plan = options.plan(Connection(host="h", passphrase=CANARY, client_keys=str(tmp_path / "key")))
    assert [read.get_fingerprint() for read in plan.arguments["client_keys"]] == [key.get_fingerprint()]
    assert CANARY not in repr(plan)


async def test_an_encrypted_key_logs_in(tmp_path: Path) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(tmp_path / "key", passphrase="open", rounds=50)
    async with sandbox("a", authorized_keys=[key.export_public_key().decode()]) as hosts, Pool() as pool:
        given = {**hosts.hosts[0].connection.options(), "password": None}
        given |= {"passphrase": "open", "client_keys": [str(tmp_path / "key")]}
        assert not (await execute(lambda: Shell(cmd="true"), inventory(given), pool=pool)).failed


def test_a_key_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(tmp_path / "key")
    reads = []
    read = asyncssh.read_private_key

    def counted(*given: Any) -> Any:
        reads.append(given)
        return read(*given)

    monkeypatch.setattr(asyncssh, "read_private_key", counted)
    for number in range(50):
        options.plan(Connection(host=f"h{number}", client_keys=[str(tmp_path / "key")]))
    assert len(reads) == 1


def test_equal_options_share_a_connection_and_others_do_not() -> None:
    def key(**given: Any) -> Any:
        return options.plan(Connection(host="h", **given)).key

    assert key(password="a") == key(password="a")
    assert key(password="a") != key(password="b")
    assert key(port=22) != key(port=23)
    assert key(known_hosts=None) != key()
