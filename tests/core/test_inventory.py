"""The inventory: its forms, its errors, its limits, and that it keeps its secrets."""

from __future__ import annotations

import json
import logging
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr, ValidationError

from reemote.context import Context
from reemote.core.errors import InventoryError, NoHostMatched, ReemoteError
from reemote.core.remote import Remote
from reemote.core.secrets import Options, reveal
from reemote.host import Shell
from reemote.inventory import Authentication, Connection, Inventory, InventoryItem, Session

ONE: dict[str, Any] = {
    "hosts": [
        {
            "connection": {"host": "server104", "username": "user", "password": "password"},
            "session": {},
            "authentication": {"sudo_password": "other"},
            "groups": ["web"],
        }
    ]
}


def hosts(*names: str, **groups: list[str]) -> Inventory:
    """Make an inventory of hosts by name, and of hosts with their groups."""
    items: list[dict[str, Any]] = [{"connection": {"host": name}} for name in names]
    items += [{"connection": {"host": name}, "groups": theirs} for name, theirs in groups.items()]
    return Inventory.of({"hosts": items})


def refused(source: Any) -> str:
    """Give the message with which a source is refused."""
    with pytest.raises(InventoryError) as caught:
        Inventory.of(source)
    return str(caught.value)


def item(**entry: Any) -> dict[str, Any]:
    """Make the dictionary of an inventory with one host, changed by *entry*."""
    return {"hosts": [{"connection": {"host": "web1"}, **entry}]}


# Forms


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


FORMS: dict[str, Callable[[Path], Any]] = {
    "dictionary": lambda _: ONE,
    "JSON text": lambda _: json.dumps(ONE),
    "JSON text with space before it": lambda _: "\n\t " + json.dumps(ONE),
    "JSON text with a byte order mark": lambda _: "\ufeff" + json.dumps(ONE),
    "path": lambda folder: written(folder / "inventory.json", json.dumps(ONE)),
    "name of a file": lambda folder: str(written(folder / "inventory.json", json.dumps(ONE))),
    "file with a byte order mark": lambda folder: written(folder / "bom", "\ufeff" + json.dumps(ONE)),
    "object": lambda _: Inventory(
        hosts=[
            InventoryItem(
                connection=Connection(host="server104", username="user", password="password"),
                session=Session(),
                authentication=Authentication(sudo_password="other"),
                groups=["web"],
            )
        ]
    ),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_of_an_inventory_is_the_same(form: Callable[[Path], Any], tmp_path: Path) -> None:
    inventory = Inventory.of(form(tmp_path))
    [host] = inventory.hosts
    assert host.host == host.connection.host == "server104"
    assert host.connection.username == "user"
    assert reveal(host.connection.password) == "password"
    assert reveal(host.authentication.sudo_password) == "other"
    assert host.groups == ["web"]
    assert inventory == Inventory.of(ONE)


def test_an_object_is_taken_as_it_is() -> None:
    inventory = Inventory.of(ONE)
    assert Inventory.of(inventory) is inventory


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "hosts.json", json.dumps(ONE))
    monkeypatch.chdir(tmp_path)
    assert [host.host for host in Inventory.of("hosts.json").hosts] == ["server104"]


def test_an_inventory_may_be_empty() -> None:
    assert Inventory.of({"hosts": []}).hosts == []


def test_the_defaults_of_a_host() -> None:
    [host] = Inventory.of(item()).hosts
    assert host.groups == ["all"]
    assert host.connection.options() == {"host": "web1"}
    assert (host.connection.host_keys, host.connection.max_sessions) == ("strict", 8)
    assert host.session.options() == {}
    assert host.authentication == Authentication(sudo_password=None, su_user=None, su_password=None)


def test_defaults_are_not_shared() -> None:
    first, second = hosts("a", "b").hosts
    first.groups.append("web")
    assert second.groups == ["all"]


def test_groups_match_exactly_and_all_is_every_host() -> None:
    [host] = Inventory.of(item(groups=["web", "prod"])).hosts
    assert [host.is_in(group) for group in ("web", "prod", "all", None)] == [True] * 4
    assert [host.is_in(group) for group in ("we", "Web", "*", "", "web,prod", "web1")] == [False] * 6


def test_the_context_of_a_host() -> None:
    [host] = Inventory.of(ONE).hosts
    context = Context(inventory_item=host)
    assert (context.host, context.groups) == ("server104", ["web"])
    assert context.inventory_item.connection.username == "user"


# Options of asyncssh


def test_options_that_are_not_named_here_pass_through() -> None:
    keys = object()
    connection = Connection.model_validate({"host": "h", "client_keys": keys, "known_hosts": None, "keepalive": 3})
    assert connection.options() == {"host": "h", "client_keys": keys, "known_hosts": None, "keepalive": 3}
    session = Session.model_validate({"term_type": "xterm", "env": {"A": "1"}})
    assert session.options() == {"term_type": "xterm", "env": {"A": "1"}}


def test_options_tell_what_was_set_from_what_was_not() -> None:
    connection = Connection.model_validate({"port": None, "host": "h", "password": "CANARY"})
    assert list(connection.options()) == ["host", "port", "password"]
    assert connection.options()["password"] == SecretStr("CANARY")


def test_options_pass_through_from_a_dictionary_and_from_json() -> None:
    data = item(connection={"host": "h", "login_timeout": 5}, session={"encoding": "latin-1"})
    for source in (data, json.dumps(data)):
        [host] = Inventory.of(source).hosts
        assert host.connection.options()["login_timeout"] == 5
        assert host.session.options() == {"encoding": "latin-1"}


# What is wrong, and where


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.json"
    assert refused(path) == refused(str(path)) == f"{path}: No such file or directory"


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert refused(tmp_path) == f"{tmp_path}: Is a directory"


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")  # root, who may run this test, may read every file

    monkeypatch.setattr(Path, "read_text", refuse)
    assert refused(tmp_path / "inventory.json") == f"{tmp_path}/inventory.json: Permission denied"


def test_a_path_that_cannot_be_one() -> None:
    assert "is no path" in refused("a\0b")
    assert "File name too long" in refused("a" * 5000)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "inventory.json"
    path.write_bytes(b'{"hosts": "\xff"}')
    assert refused(path) == f"{path}: not UTF-8 text (byte 11)"


def test_a_file_that_is_no_json(tmp_path: Path) -> None:
    path = written(tmp_path / "inventory.json", '{\n  "hosts": [\n  ,]\n}')
    assert refused(path) == f"{path}: not JSON: line 3, column 3: Expecting value"
    assert refused('{"hosts": [}') == "inventory: not JSON: line 1, column 12: Expecting value"


def test_an_empty_file(tmp_path: Path) -> None:
    path = written(tmp_path / "inventory.json", "")
    assert refused(path) == f"{path}: not JSON: line 1, column 1: Expecting value"


def test_json_that_is_nested_too_deeply() -> None:
    assert refused("[" * 200_000) == "inventory: not an inventory: nested too deeply"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("[]", "a list"),
        ('["web1"]', "a list"),
        ("null", "null"),
        ("3", "a number"),
        ('"x"', "a string"),
        ("true", "a boolean"),
    ],
)
def test_json_that_is_no_object(text: str, name: str, tmp_path: Path) -> None:
    message = refused(written(tmp_path / "inventory.json", text))
    assert message.endswith(f'an inventory is an object, {{"hosts": [{{"connection": {{"host": ...}}}}]}}, not {name}')


@pytest.mark.parametrize("source", [5, None, b"{}", [ONE], object()], ids=lambda source: type(source).__name__)
def test_an_object_that_is_no_inventory(source: Any) -> None:
    assert refused(source) == (
        f"an inventory is an Inventory, a dictionary, or the path of a JSON file, not {type(source).__name__}"
    )


WRONG: dict[str, tuple[Any, str]] = {
    "no hosts": ({}, "hosts: is missing"),
    "unknown key": ({"hosts": [], "host": []}, "host: unknown key"),
    "hosts is an object": ({"hosts": {}}, "hosts: Input should be a valid list"),
    "hosts is null": ({"hosts": None}, "hosts: Input should be a valid list"),
    "host is a name": (
        {"hosts": ["web1"]},
        "hosts[0]: Input should be a valid dictionary or instance of InventoryItem",
    ),
    "no connection": ({"hosts": [{}]}, "hosts[0].connection: is missing"),
    "no host": ({"hosts": [{"connection": {}}]}, "hosts[0].connection.host: is missing"),
    "second host": (
        {"hosts": [{"connection": {"host": "a"}}, {"connection": {"port": 22}}]},
        "hosts[1].connection.host: is missing",
    ),
    "host is a number": (
        {"hosts": [{"connection": {"host": 5}}]},
        "hosts[0].connection.host: Input should be a valid string",
    ),
    "host is empty": (
        {"hosts": [{"connection": {"host": ""}}]},
        "hosts[0].connection.host: a host needs a name or an address, without spaces and commas",
    ),
    "host with a comma": (
        {"hosts": [{"connection": {"host": "a,b"}}]},
        "hosts[0].connection.host: a host needs a name or an address, without spaces and commas",
    ),
    "host with a newline": (
        {"hosts": [{"connection": {"host": "a\n"}}]},
        "hosts[0].connection.host: a host needs a name or an address, without spaces and commas",
    ),
    "connection is a list": (
        item(connection=["web1"]),
        "hosts[0].connection: Input should be a valid dictionary or instance of Connection",
    ),
    "port out of range": (
        item(connection={"host": "a", "port": 65536}),
        "hosts[0].connection.port: Input should be less than or equal to 65535",
    ),
    "port is zero": (
        item(connection={"host": "a", "port": 0}),
        "hosts[0].connection.port: Input should be greater than or equal to 1",
    ),
    "policy for keys": (
        item(connection={"host": "a", "host_keys": "no"}),
        "hosts[0].connection.host_keys: Input should be 'strict', 'accept-new' or 'off'",
    ),
    "password is a number": (
        item(connection={"host": "a", "password": 123}),
        "hosts[0].connection.password: Input should be a valid string",
    ),
    "unknown key of a host": (item(group=["web"]), "hosts[0].group: unknown key"),
    "unknown key of authentication": (
        item(authentication={"sudo": "x"}),
        "hosts[0].authentication.sudo: unknown key",
    ),
    "groups is a name": (item(groups="web"), "hosts[0].groups: Input should be a valid list"),
    "group is a number": (item(groups=["web", 5]), "hosts[0].groups[1]: Input should be a valid string"),
    "session is a list": (
        item(session=[]),
        "hosts[0].session: Input should be a valid dictionary or instance of Session",
    ),
}


@pytest.mark.parametrize(("data", "message"), WRONG.values(), ids=WRONG)
def test_the_message_names_the_place(data: Any, message: str, tmp_path: Path) -> None:
    assert refused(data) == f"inventory: {message}"
    path = written(tmp_path / "inventory.json", json.dumps(data))
    assert refused(path) == f"{path}: {message}"


def test_all_that_is_wrong_is_named_at_once() -> None:
    message = refused({"hosts": [{"connection": {}}, {"connection": {"host": "a"}, "x": 1}], "y": 1})
    assert message == "inventory: hosts[0].connection.host: is missing; hosts[1].x: unknown key; y: unknown key"


def test_each_host_once() -> None:
    names = ["a", "b", "a"]
    message = "hosts[2] is 'a', and hosts[0] is, too: each host once"
    assert refused({"hosts": [{"connection": {"host": name}} for name in names]}) == f"inventory: {message}"
    with pytest.raises(ValidationError, match=r"hosts\[2\] is 'a', and hosts\[0\] is, too"):
        Inventory(hosts=[InventoryItem(connection=Connection(host=name)) for name in names])


def test_an_error_of_an_inventory_is_a_value_error_of_ours() -> None:
    with pytest.raises(InventoryError) as caught:
        Inventory.of({})
    assert isinstance(caught.value, ReemoteError)
    assert isinstance(caught.value, ValueError)


# Limits


FLEET = hosts("lonely", web01=["web", "prod"], web02=["web"], web03=["web", "prod"], db01=["db", "prod"], db02=["db"])
ALL = ["lonely", "web01", "web02", "web03", "db01", "db02"]

LIMITS: dict[Any, list[str]] = {
    None: ALL,
    "all": ALL,
    "*": ALL,
    "web": ["web01", "web02", "web03"],
    "web01": ["web01"],
    "lonely": ["lonely"],
    "web01,db02": ["web01", "db02"],
    "db02,web01": ["web01", "db02"],  # in the order of the inventory
    "web,web01,web": ["web01", "web02", "web03"],  # each once
    "web,db": ALL[1:],
    " web , db ": ALL[1:],
    ",web,,db,": ALL[1:],
    "web0*": ["web01", "web02", "web03"],
    "web0?": ["web01", "web02", "web03"],
    "web0[12]": ["web01", "web02"],
    "web0[!12]": ["web03"],
    "*01": ["web01", "db01"],
    "pro?": ["web01", "web03", "db01"],  # a glob over groups
    "d*": ["db01", "db02"],
    "?eb": ["web01", "web02", "web03"],
    "a*": ALL,  # 'all' is a group, too
    "&prod": ["web01", "web03", "db01"],
    "web,&prod": ["web01", "web03"],
    "&prod,web": ["web01", "web03"],
    "&prod,&web": ["web01", "web03"],
    "web,&*3": ["web03"],
    "!web": ["lonely", "db01", "db02"],
    "!web,!db": ["lonely"],
    "web,!web03": ["web01", "web02"],
    "!web03,web": ["web01", "web02"],
    "! web03 , web": ["web01", "web02"],
    "web,db,&prod,!*03": ["web01", "db01"],
    "!*03,&prod,db,web": ["web01", "db01"],
    "lonely,&all": ["lonely"],
    "web,!prod,lonely": ["lonely", "web02"],
    ("web01", "db"): ["web01", "db01", "db02"],
    ("web,db", "!web02"): ["web01", "web03", "db01", "db02"],
}


@pytest.mark.parametrize(("limit", "names"), LIMITS.items(), ids=[str(limit) for limit in LIMITS])
def test_a_limit_selects(limit: Any, names: list[str]) -> None:
    assert [host.host for host in FLEET.select(limit)] == names


@pytest.mark.parametrize(
    ("limit", "names"),
    {
        "web[08-10]": ["web08", "web09", "web10"],
        "web[08,10-11],db1.example.com": ["web08", "web10", "web11", "db1.example.com"],
        "db[1-2].example.com": ["db1.example.com", "db2.example.com"],
        "db[1-3].*": ["db1.example.com", "db2.example.com"],
        "10.0.[0-1].[1-2]": ["10.0.0.1", "10.0.1.2"],
        "web0[8-9]*": ["web08", "web09"],
        "web[01-99],!web[09-10]": ["web08", "web11"],
        "web[08-5000]": ["web08", "web09", "web10", "web11"],
    }.items(),
)
def test_ranges_of_numbers(limit: str, names: list[str]) -> None:
    hosts = ["web08", "web09", "web10", "web11", "db1.example.com", "db2.example.com", "10.0.0.1", "10.0.1.2"]
    fleet = Inventory.of({"hosts": [{"connection": {"host": host}} for host in hosts]})
    assert [host.host for host in fleet.select(limit)] == names


def test_ranges_that_name_nothing() -> None:
    fleet = Inventory.of(item(connection={"host": "web8"}))
    for limit in ("web[08-10]", "web[10-8]", "web[1-200000]"):
        with pytest.raises(NoHostMatched):
            fleet.select(limit)


@pytest.mark.parametrize("limit", ["nowhere", "web,nowhere", "&nowhere", "!nowhere", "WEB", "web0", "!", "&", "-web"])
def test_a_name_that_is_neither_a_host_nor_a_group(limit: str) -> None:
    name = limit.removeprefix("web,").lstrip("&!")
    message = f"the limit names {name!r}, which is neither a host nor a group of the inventory"
    with pytest.raises(NoHostMatched) as caught:
        FLEET.select(limit)
    assert str(caught.value) == message


@pytest.mark.parametrize("limit", ["x*", "web,&lonely", "!all", "web,!*", "&web,&db", "lonely,&x?"])
def test_a_limit_that_matches_no_host(limit: str) -> None:
    with pytest.raises(NoHostMatched) as caught:
        FLEET.select(limit)
    assert str(caught.value) == f"the limit {limit!r} matches none of the 6 hosts"


@pytest.mark.parametrize("limit", ["", " ", ",", " , ,", [], [""]], ids=repr)
def test_an_empty_limit_is_not_all_hosts(limit: Any) -> None:
    with pytest.raises(NoHostMatched, match="the limit is empty"):
        FLEET.select(limit)


def test_a_name_with_the_signs_of_a_glob_is_a_name_first() -> None:
    fleet = hosts("a[1]", "a1", x=["w*"], wide=["w"])
    assert [host.host for host in fleet.select("a[1]")] == ["a[1]"]
    assert [host.host for host in fleet.select("w*")] == ["x"]
    assert [host.host for host in fleet.select("a[1-1]")] == ["a1"]


def test_a_name_may_be_of_a_host_and_of_a_group() -> None:
    assert [host.host for host in hosts("web", web01=["web"], db01=["db"]).select("web")] == ["web", "web01"]


def test_an_empty_inventory_without_a_limit() -> None:
    assert hosts().select() == []
    with pytest.raises(NoHostMatched, match="matches none of the 0 hosts"):
        hosts().select("all")


def test_what_is_selected_can_be_changed_without_harm() -> None:
    FLEET.select().clear()
    assert len(FLEET.hosts) == 6


terms = st.sampled_from(["web", "db", "prod", "all", "lonely", "web0*", "*01", "db02"])


@given(st.lists(terms), st.lists(terms), st.lists(terms), st.randoms())
def test_the_order_of_the_terms_does_not_matter(
    plain: list[str], keep: list[str], drop: list[str], random: Any
) -> None:
    written_terms = [*plain, *("&" + term for term in keep), *("!" + term for term in drop)]
    shuffled = random.sample(written_terms, len(written_terms))

    def selected(limit: list[str]) -> list[str] | None:
        try:
            return [host.host for host in FLEET.select(limit)]
        except NoHostMatched:
            return None

    assert selected(written_terms) == selected(shuffled) == selected([",".join(shuffled)])
    if written_terms:
        of = {term: {host.host for host in FLEET.select(term)} for term in {*plain, *keep, *drop}}
        expected = set().union(*(of[term] for term in plain)) if plain else set(ALL)
        expected = expected.intersection(*(of[term] for term in keep)).difference(*(of[term] for term in drop))
        assert selected(written_terms) == ([name for name in ALL if name in expected] or None)


# Secrets

CANARY = "CANARY-3f9a"
PEM = f"-----BEGIN OPENSSH PRIVATE KEY-----\n{CANARY}\n-----END OPENSSH PRIVATE KEY-----"


class Greet(Remote):
    """Hand the options on."""

    async def execute(self) -> Any:
        yield Shell(cmd="x", **self.common_kwargs)


SECRETIVE: dict[str, Callable[[], Any]] = {
    "connection": lambda: Connection(host="h", password=CANARY, passphrase=CANARY),
    "connection of SecretStr": lambda: Connection(host="h", password=SecretStr(CANARY)),
    "authentication": lambda: Authentication(sudo_password=CANARY, su_password=CANARY),
    "item": lambda: InventoryItem(
        connection=Connection(host="h", password=CANARY), authentication=Authentication(sudo_password=CANARY)
    ),
    "inventory": lambda: Inventory.of(item(connection={"host": "h", "password": CANARY, "passphrase": CANARY})),
    "context": lambda: Context(inventory_item=InventoryItem(connection=Connection(host="h", password=CANARY))),
    "operation": lambda: Shell(cmd="x", connection={"password": CANARY, "passphrase": CANARY}),
    "operation of options": lambda: Shell(cmd="x", connection=Options({"password": CANARY})),
    "operation that hands on": lambda: Shell(cmd="x", **Greet(connection={"password": CANARY}).common_kwargs),
}


@pytest.mark.parametrize("make", SECRETIVE.values(), ids=SECRETIVE)
def test_no_secret_shows(make: Callable[[], Any]) -> None:
    secretive: BaseModel = make()
    shown = [
        repr(secretive), str(secretive), f"{secretive}", f"{secretive!s:>5}", f"{secretive!r}",
        secretive.model_dump_json(), repr(secretive.model_dump()), str(secretive.model_dump()),
        repr(secretive.model_dump(mode="json")), repr(vars(secretive)), repr(secretive.model_copy(deep=True)),
        repr(pickle.loads(pickle.dumps(secretive))), repr(list(secretive)),
    ]  # fmt: skip
    assert [text for text in shown if CANARY in text] == []
    assert "**********" in shown[0]


def test_a_private_key_does_not_show() -> None:
    connection = Connection.model_validate({"host": "h", "client_keys": PEM})
    assert CANARY not in repr(connection) + str(connection)
    operation = Shell(cmd="x", connection={"client_keys": [PEM.encode()]})
    assert CANARY not in repr(operation) + str(operation) + repr(operation.connection)


def test_a_private_key_does_not_show_in_json() -> None:
    assert CANARY not in Connection.model_validate({"host": "h", "client_keys": PEM}).model_dump_json()


def test_an_operation_keeps_the_password_for_its_connection() -> None:
    first = Shell(cmd="x", connection={"password": CANARY, "port": 5})
    again = Shell(cmd="x", connection=first.connection)
    for operation in (first, again):
        assert {name: reveal(value) for name, value in operation.connection.items()} == {"password": CANARY, "port": 5}


def test_options_that_are_dropped_one_by_one_stay_hidden() -> None:
    options = Options({"password": CANARY, "username": "joe"})
    assert CANARY not in repr(options) + str(options) + repr(options.copy()) + repr({**options}) + repr(options.items())
    assert options["username"] == "joe"


INPUTS: list[Any] = [[CANARY], {"a": CANARY}, (CANARY,), CANARY.encode(), {CANARY}]
PLACES: dict[str, Callable[[Any], Any]] = {
    "connection.password": lambda value: Connection(host="h", password=value),
    "connection.passphrase": lambda value: Connection(host="h", passphrase=value),
    "connection.port": lambda value: Connection(host="h", port=value),
    "authentication.sudo_password": lambda value: Authentication(sudo_password=value),
    "authentication.su_password": lambda value: Authentication(su_password=value),
    "authentication": lambda value: InventoryItem(connection=Connection(host="h"), authentication=value),
    "inventory.connection.password": lambda value: Inventory.of(item(connection={"host": "h", "password": value})),
    "inventory.connection.host": lambda value: Inventory.of(item(connection={"host": [value]})),
    "inventory.authentication": lambda value: Inventory.of(item(authentication=[value])),
    "inventory.authentication.sudo_password": lambda value: Inventory.of(item(authentication={"sudo_password": value})),
    "inventory.sudo_password": lambda value: Inventory.of(item(sudo_password=value)),
    "inventory.password": lambda value: Inventory.of({"hosts": [value], "password": value}),
    "inventory beside its error": lambda value: Inventory.of(item(connection={"password": value})),
    "operation.connection": lambda value: Shell.model_validate({"cmd": "x", "connection": [value]}),
    "operation.password": lambda value: Shell.model_validate({"cmd": "x", "password": value}),
    "operation beside its error": lambda value: Shell.model_validate({"connection": {"password": value}}),
    "operation.cmd": lambda value: Shell(cmd=[value]),  # type: ignore[arg-type]
    "context": lambda value: Context(inventory_item=value),
}


@pytest.mark.parametrize("value", INPUTS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_no_secret_in_an_error(place: Callable[[Any], Any], value: Any) -> None:
    with pytest.raises(ValueError) as caught:
        place(value)
    error = caught.value
    assert CANARY not in str(error) + repr(error) + "".join(traceback.format_exception(error))


def test_a_password_of_the_wrong_type_does_not_show() -> None:
    with pytest.raises(ValidationError) as caught:
        Connection(host="h", password=730295118)  # type: ignore[arg-type]
    text = "".join(traceback.format_exception(caught.value))
    # The traceback shows this test's own line of source: only what the error itself says counts.
    assert "730295118" not in str(caught.value) + repr(caught.value) + text.rpartition("ValidationError")[2]
    assert "password" in str(caught.value)


BROKEN: dict[str, str] = {
    "not JSON": f'{{"hosts": [{{"connection": {{"host": "h", "password": "{CANARY}" }},}}]}}',
    "YAML": f"hosts:\n  - connection:\n      password: {CANARY}\n",
    "after a byte order mark": f'\ufeff{{"hosts": [{{"connection": {{"password": "{CANARY}"}}}}]}}',
    "a list": f'[{{"connection": {{"host": "h", "password": "{CANARY}"}}}}]',
    "twice": json.dumps({"hosts": [{"connection": {"host": "h", "password": CANARY}}] * 2}),
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_no_secret_in_the_error_of_a_broken_inventory(text: str, tmp_path: Path) -> None:
    for source in (text, written(tmp_path / "inventory.json", text)):
        with pytest.raises(InventoryError) as caught:
            Inventory.of(source)
        error = caught.value
        assert CANARY not in str(error) + repr(error) + "".join(traceback.format_exception(error))


def test_no_secret_in_logs_of_objects(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for make in SECRETIVE.values():
        logging.getLogger("reemote").info("%s %r", make(), make())
    assert CANARY not in caplog.text
    assert caplog.text.count("**********") >= len(SECRETIVE)


def test_a_connection_is_always_shown_in_the_same_order() -> None:
    names = ["host", "address", "port", "username", "host_keys", "max_sessions"]
    values = ["h", "a", 1, "u", "off", 3]
    connection = Connection.model_validate(dict(reversed(list(zip(names, values, strict=True)))))
    assert list(connection.options()) == names
    assert repr(connection) == (
        "Connection(host='h', address='a', port=1, username='u', host_keys='off', max_sessions=3)"
    )
