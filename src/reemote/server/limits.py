"""Which options may come over HTTP: what reaches a host, and nothing that reaches into this machine.

Options such as ``proxy_command`` or ``pkcs11_provider`` run programs and load libraries here. The
operator's own inventory file and the Python API may use them; a request may not. Nor may it lead
the passwords of the inventory to another place than the one they were stored for.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, ValidationError

from ..core.errors import InventoryError, ReemoteError
from ..core.inventory import Connection, complaints
from ..core.secrets import MASK, NAMES, is_reference
from ..ssh.options import PLACE, plan

_Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9_@][A-Za-z0-9_.@-]{0,100}$")]
_Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
_Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]
_Name = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]+$")]
# Without what a shell, or a program's command line, could take for more than a name.
_Host = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\[:][A-Za-z0-9_.:%\[\]-]{0,254}$")]
_User = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.@\\][A-Za-z0-9_.@\\$+-]{0,254}$")]


def _number(value: Any) -> Any:
    """Refuse what pydantic would make a number of."""
    if isinstance(value, bool | str | bytes):
        raise ValueError("this has to be a number")  # noqa: TRY004 - what pydantic expects
    return value


_Cells = Annotated[int, Field(ge=1, le=65535), BeforeValidator(_number)]
_Count = Annotated[int, Field(ge=1, le=1000), BeforeValidator(_number)]
_Seconds = Annotated[int | float, Field(ge=0, le=86400), BeforeValidator(_number)]


def _known_encoding(name: str) -> str:
    try:
        "x".encode(name)  # there are codecs between bytes, too, which unpack what a host sends
        return codecs.lookup(name).name
    except (LookupError, ValueError):
        raise ValueError("there is no such encoding") from None


def _plain(text: str) -> str:
    """Refuse a reference: it would read files of this machine, or run commands on it."""
    if is_reference(text) and not text.startswith("pass:"):
        raise ValueError("a reference (env:, file:, cmd:) may not be given over HTTP; a password like one is pass:...")
    return text


_Secret = Annotated[str, AfterValidator(_plain)]


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class HostConnection(_Options):
    """The connection options of a host, or of one operation over those of its hosts."""

    address: _Host | None = None
    host: _Host | None = None
    host_keys: Literal["strict", "accept-new"] | None = None
    port: _Cells | None = None

    client_keys: list[_Key] | _Key | None = None
    connect_timeout: _Seconds | None = None
    keepalive_count_max: _Count | None = None
    keepalive_interval: _Seconds | None = None
    login_timeout: _Seconds | None = None
    max_sessions: _Count | None = None
    passphrase: _Secret | None = None
    password: _Secret | None = None
    runner: StrictBool | None = None
    username: _User | None = None


class Passwords(_Options):
    """Who to become on a host."""

    sudo_password: _Secret | None = None
    sudo_user: str | None = None
    su_user: str | None = None
    su_password: _Secret | None = None


class SessionOptions(_Options):
    """The options of the sessions in which commands run."""

    encoding: Annotated[str, AfterValidator(_known_encoding)] | None = None
    env: dict[_Variable, _Text] | None = None
    errors: _Name | None = None
    request_pty: StrictBool | Literal["force", "auto"] | None = None
    term_size: tuple[_Cells, _Cells] | None = None
    term_type: _Name | None = None


CONNECTION = frozenset(HostConnection.model_fields)
SESSION = frozenset(SessionOptions.model_fields)

_HARMLESS = CONNECTION - PLACE - {"host_keys"}
"""The options that do not decide where a connection leads, nor whom it trusts."""


_MESSAGES = {
    "client_keys": "give names of keys in ~/.ssh, not paths",
    "host_keys": "'strict' or 'accept-new'; 'off' may not be given over HTTP",
}


class OptionRefused(ReemoteError):
    """An option may not be given over HTTP; the message names it."""


def connection(options: Mapping[str, Any]) -> dict[str, Any]:
    """Check the connection options of an operation, and give them with the paths of the keys that they name.

    Where they lead to another place than the inventory does, its password is not sent there.

    Raises:
        OptionRefused: An option is not among those that may be given, or its value is wrong.
    """
    checked = _connection(options)
    given = {name: value for name, value in checked.items() if value is not None or name not in PLACE | {"host_keys"}}
    return {"password": None, **given} if PLACE & given.keys() else given


def session(options: Mapping[str, Any]) -> dict[str, Any]:
    """Check session options.

    Raises:
        OptionRefused: An option is not among those that may be given, or its value is wrong.
    """
    return _checked(SessionOptions, options, "session")


def item(given: Any, stored: Mapping[str, Any] | None = None) -> Any:
    """Check the connection and session options of an inventory's host; its shape is checked elsewhere.

    What the operator has *stored* for the host may be sent back as it was.

    Raises:
        OptionRefused: An option is not among those that may be given, or its value is wrong.
    """
    if not isinstance(given, dict):
        return given
    checked, before = dict(given), stored or {}
    is_same_place = _leads_to(given) == _leads_to(before)
    for part, check in (("connection", _connection), ("session", session), ("authentication", _authentication)):
        options, old = given.get(part), before.get(part) or {}
        if isinstance(options, dict):
            may_keep = part == "session" or is_same_place  # a password is for the place that it was stored for
            known = {name: value for name, value in options.items() if may_keep and name in old}
            kept = {name: value for name, value in known.items() if value in (old[name], MASK)}
            new = check({name: value for name, value in options.items() if name not in kept})
            checked[part] = {name: {**kept, **new}[name] for name in options}
    return checked


def _leads_to(item: Mapping[str, Any]) -> dict[str, Any]:
    options = item.get("connection")
    return leads_to(options) if isinstance(options, dict) else {}


def _authentication(options: Mapping[str, Any]) -> dict[str, Any]:
    """Check that no password is a reference; the shape is checked elsewhere."""
    named = {name: value for name, value in options.items() if name in NAMES and isinstance(value, str)}
    _checked(Passwords, named, "authentication")
    return dict(options)


def leads_to(options: Mapping[str, Any]) -> dict[str, Any]:
    """Give those of a host's connection options that decide where its secrets go, and whom they are shown."""
    return {name: value for name, value in options.items() if name not in _HARMLESS and value is not None}


def _connection(options: Mapping[str, Any]) -> dict[str, Any]:
    checked = _checked(HostConnection, options, "connection")
    if names := checked.get("client_keys"):
        names = [names] if isinstance(names, str) else names
        checked["client_keys"] = [str(Path("~/.ssh", name).expanduser()) for name in names]
    # Whether a key is there and opens shows on the hosts: its passphrase may be in the inventory.
    looked_at = checked.keys() - NAMES - {"client_keys"}
    values = {name: checked[name] for name in checked if name in looked_at and checked[name] is not None}
    try:
        plan(Connection.model_validate({"host": "-", **values}))
    except InventoryError as error:
        raise OptionRefused(f"connection.{str(error).removeprefix('-: ').removeprefix('connection: ')}") from None
    except ValidationError as error:
        raise OptionRefused(f"connection.{next(complaints(error))}") from None
    return checked


def _checked(model: type[BaseModel], options: Mapping[str, Any], where: str) -> dict[str, Any]:
    for name in options:
        if name not in model.model_fields:
            allowed = ", ".join(sorted(model.model_fields))
            raise OptionRefused(f"{where}.{name} may not be given over HTTP; allowed here are {allowed}")
    try:
        values = model.model_validate(dict(options)).model_dump(mode="json")
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = str(first["loc"][0])
        message = _MESSAGES.get(name) or first["msg"].removeprefix("Value error, ")
        raise OptionRefused(f"{where}.{name}: {message}") from None
    return {name: values[name] for name in options}
