"""Which options may come over HTTP (R48): nothing that reaches into the machine of the server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from reemote.inventory import Connection
from reemote.server import limits
from reemote.ssh.options import plan
from tests.programs import Fleet
from tests.server.clients import Serving, settings_in


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet("web") as fleet:
        yield fleet


@pytest.fixture(scope="module")
def shared(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server on which nothing may change."""
    directory = tmp_path_factory.mktemp("shared")
    fleet.write(directory)
    with Serving(settings_in(directory)) as serving:
        yield serving


@pytest.fixture
def serving(fleet: Fleet, tmp_path: Path) -> Iterator[Serving]:
    fleet.write(tmp_path)
    with Serving(settings_in(tmp_path)) as serving:
        yield serving


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What a command that ran on this machine would make."""
    return tmp_path / "marker"


@pytest.fixture
def ran(fleet: Fleet) -> Iterator[Path]:
    """What a command that ran on the host would make."""
    file = fleet.home("web") / "ran"
    yield file
    file.unlink(missing_ok=True)


REFUSED: dict[str, Any] = {
    "proxy_command": "touch MARKER",
    "proxyCommand": "touch MARKER",
    "pkcs11_provider": "/lib/evil.so",
    "pkcs11_pin": "1",
    "config": "MARKER",
    "client_host_keysign": "/bin/sh",
    "client_host_keys": ["MARKER"],
    "client_host": "evil",
    "client_certs": ["MARKER"],
    "client_username": "evil",
    "client_version": "evil",
    "agent_path": "MARKER",
    "agent_forwarding": True,
    "agent_identities": [],
    "tunnel": "evil.example",
    "sock": 0,
    "options": {"proxy_command": "touch MARKER"},
    "x11_forwarding": True,
    "x11_display": ":0",
    "x11_auth_path": "MARKER",
    "x11_single_connection": True,
    "known_hosts": None,
    "x509_trusted_certs": None,
    "x509_trusted_cert_paths": ["MARKER"],
    "host_key_alias": "evil",
    "client_factory": "os.system",
    "process_factory": "os.system",
    "command": "touch MARKER",
    "gss_host": "evil",
    "gss_store": "MARKER",
    "ignore_encrypted": True,
    "local_addr": ["0.0.0.0", 1],
    "family": 2,
    "rekey_bytes": 1,
    "send_env": ["SECRET"],
    "unknown": 1,
    "Host": "evil",
    " host": "evil",
    "": 1,
    "__class__": {},
}
WRONG: dict[str, list[Any]] = {
    "client_keys": [
        "/etc/shadow",
        "../id_rsa",
        "..",
        ".",
        "~/x",
        "a/b",
        "a\0",
        "a\n",
        "",
        "%h",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        ["ok", "/etc/shadow"],
        [["a", "b"]],
        {"a": 1},
        7,
        "x" * 200,
    ],
    "username": ["", "a\0", ["a"], {}],
    "login_timeout": ["x", -1, [], 1e12],
    "connect_timeout": ["x", -1, {}],
    "keepalive_interval": [[], "x"],
    "max_sessions": [0, -1, "x", [8]],
    "password": [["x"], {"x": 1}, 7],
    "runner": ["yes", 1, [True]],
}
WRONG_OF_HOSTS: dict[str, list[Any]] = {
    "host_keys": ["off", "OFF", 0, False, ["strict"], "no"],
    "host": ["", "a b", "a,b", "a\0", None, 7],
    "address": ["", "a\0", ["a"]],
    "port": [0, -1, 65536, "ssh", [22]],
}


def filled(value: Any, marker: Path) -> Any:
    return json.loads(json.dumps(value).replace("MARKER", str(marker)))


def refuses(serving: Serving, path: str, body: Any, *, name: str) -> None:
    answer = serving.post(path, body)
    assert answer.status == 422, body
    assert answer.json["error"] is True
    assert name in answer.json["value"]


@pytest.mark.parametrize("name", REFUSED)
def test_operations_refuse_options(shared: Serving, ran: Path, marker: Path, name: str) -> None:
    options = {name: filled(REFUSED[name], marker)}
    for more in ({}, {"username": "user"}):
        refuses(shared, "/reemote/host/shell", {"cmd": "touch ran", "connection": {**more, **options}}, name=name)
        refuses(shared, "/reemote/host/shell?cmd=touch+ran", {"connection": {**options, **more}}, name=name)
    assert not marker.exists()
    assert not ran.exists()
    assert not shared.settings.audit_file.exists()


@pytest.mark.parametrize("name", WRONG_OF_HOSTS)
def test_operations_refuse_wrong_places(shared: Serving, ran: Path, name: str) -> None:
    for value in WRONG_OF_HOSTS[name]:
        if value is not None:
            refuses(shared, "/reemote/host/shell", {"cmd": "touch ran", "connection": {name: value}}, name=name)
    assert not ran.exists()


@pytest.mark.parametrize("place", [{"host": "elsewhere"}, {"address": "192.0.2.1"}, {"port": 2222}])
def test_the_password_of_the_inventory_goes_nowhere_else(place: dict[str, Any]) -> None:
    stored = Connection(host="web", address="127.0.0.1", username="user", password="stored")
    led = plan(stored, limits.connection(place))
    assert "password" not in led.arguments
    assert "stored" not in repr(led.arguments)
    own = plan(stored, limits.connection({**place, "password": "own"}))
    assert own.arguments["password"] == "own"
    assert (own.host, own.port) == (place.get("host") or place.get("address") or "127.0.0.1", place.get("port", 22))
    assert plan(stored, limits.connection({"username": "joe"})).arguments["password"] == "stored"


@pytest.mark.parametrize("name", REFUSED)
def test_the_inventory_refuses_options(shared: Serving, marker: Path, name: str) -> None:
    before = shared.settings.inventory.read_bytes()
    host = {"connection": {"host": "new", name: filled(REFUSED[name], marker)}}
    refuses(shared, "/reemote/inventory/add/", host, name=name)
    refuses(shared, "/reemote/inventory/create/", {"hosts": [host]}, name=name)
    refuses(shared, "/reemote/inventory/create/", {"hosts": [{"connection": {"host": "fine"}}, host]}, name=name)
    assert shared.settings.inventory.read_bytes() == before
    assert not marker.exists()


@pytest.mark.parametrize("name", WRONG)
def test_values_that_are_refused(shared: Serving, ran: Path, name: str) -> None:
    before = shared.settings.inventory.read_bytes()
    for value in WRONG[name]:
        refuses(shared, "/reemote/host/shell", {"cmd": "touch ran", "connection": {name: value}}, name=name)
        refuses(shared, "/reemote/inventory/add/", {"connection": {"host": "new", name: value}}, name=name)
    assert shared.settings.inventory.read_bytes() == before
    assert not ran.exists()


@pytest.mark.parametrize("name", WRONG_OF_HOSTS)
def test_values_that_hosts_may_not_have(shared: Serving, name: str) -> None:
    before = shared.settings.inventory.read_bytes()
    for value in WRONG_OF_HOSTS[name]:
        if value is None and name != "host":
            continue
        refuses(shared, "/reemote/inventory/add/", {"connection": {"host": "new", name: value}}, name=name)
    assert shared.settings.inventory.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("command", "touch ran"),
        ("subsystem", "sftp"),
        ("stdin", "/etc/shadow"),
        ("stdout", "/tmp/x"),
        ("input", "x"),
        ("send_env", ["SECRET"]),
        ("x11_forwarding", True),
        ("agent_forwarding", True),
        ("session_factory", "os.system"),
        ("bufsize", 1),
        ("unknown", 1),
        ("encoding", "no-such"),
        ("encoding", "zlib_codec"),
        ("encoding", "rot13"),
        ("encoding", "a\0"),
        ("env", {"A": [1]}),
        ("env", {"A\0": "x"}),
        ("env", {"A": "x\0"}),
        ("env", {"A=B": "x"}),
        ("env", ["A=B"]),
        ("term_size", [0]),
        ("term_type", "x\0"),
    ],
)
def test_session_options_that_are_refused(shared: Serving, ran: Path, name: str, value: Any) -> None:
    refuses(shared, "/reemote/host/shell", {"cmd": "touch ran", "session": {name: value}}, name=name)
    host = {"connection": {"host": "new"}, "session": {name: value}}
    refuses(shared, "/reemote/inventory/add/", host, name=name)
    assert not ran.exists()


def test_what_may_be_given(serving: Serving, ran: Path) -> None:
    """The control: options that reach no further than the host are taken."""
    body = {
        "cmd": "echo $GREETING; touch ran",
        "connection": {"username": "user", "password": "password", "login_timeout": 20, "max_sessions": 2},
        "session": {"env": {"GREETING": "hello"}, "encoding": "utf-8"},
    }
    answer = serving.post("/reemote/host/shell", body)
    assert answer.status == 200
    assert [each["error"] for each in answer.json] == [False]
    assert ran.exists()
    host = {"connection": {"host": "new", "address": "192.0.2.1", "port": 22, "host_keys": "accept-new"}}
    assert serving.post("/reemote/inventory/add/", host).status == 200


def test_keys_are_named_and_found_in_one_directory(home: Path) -> None:
    (home / ".ssh").mkdir()
    for name in ("id_web", "a", "b.pem"):
        (home / ".ssh" / name).write_bytes(asyncssh.generate_private_key("ssh-ed25519").export_private_key())
    assert limits.connection({"client_keys": "id_web"})["client_keys"] == [str(home / ".ssh" / "id_web")]
    assert limits.connection({"client_keys": ["a", "b.pem"]})["client_keys"] == [
        str(home / ".ssh" / "a"),
        str(home / ".ssh" / "b.pem"),
    ]


def test_keys_are_not_looked_at(home: Path) -> None:
    """An answer must not tell which files there are; and the passphrase may be in the inventory."""
    (home / ".ssh").mkdir()
    (home / ".ssh" / "locked").write_text("no key")
    for name in ("locked", "missing"):
        for more in ({}, {"passphrase": "secret"}, {"passphrase": "wrong"}):
            checked = limits.connection({"client_keys": name, **more})
            assert checked == {"client_keys": [str(home / ".ssh" / name)], **more}


def test_the_lists_hold_nothing_that_reaches_into_this_machine() -> None:
    """A change of the lists has to be made here, too."""
    login = {"client_keys", "passphrase", "password", "username"}
    times = {"connect_timeout", "keepalive_count_max", "keepalive_interval", "login_timeout", "max_sessions"}
    assert {*limits.CONNECTION} == login | times | {"address", "host", "host_keys", "port", "runner"}
    assert {*limits.SESSION} == {"encoding", "env", "errors", "request_pty", "term_size", "term_type"}


@pytest.mark.slow
def test_the_operators_own_inventory_is_not_limited(serving: Serving, marker: Path) -> None:
    """What the operator wrote into the file runs, and comes back in what is sent back unchanged."""
    file = serving.settings.inventory
    data = json.loads(file.read_text())
    data["hosts"][0]["connection"]["proxy_command"] = f"touch {marker}"
    file.write_text(json.dumps(data))
    kept = serving.get("/reemote/inventory/get").json
    assert serving.post("/reemote/inventory/create/", kept).status == 200
    assert json.loads(file.read_text()) == data
    assert not marker.exists()
    serving.post("/reemote/host/shell", {"cmd": "true", "connection": {"login_timeout": 5}})
    assert marker.exists()
