"""Connection options: from an inventory's entry to what asyncssh is given, built once."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import asyncssh
from pydantic import ValidationError

from ..core.errors import InventoryError, SecretNotFound
from ..core.inventory import Connection, complaints
from ..core.secrets import resolve, reveal
from .hostkeys import PORT, Trust

DEFAULTS: dict[str, Any] = {
    "connect_timeout": 10,
    "login_timeout": 30,
    "keepalive_interval": 15,
    "keepalive_count_max": 3,
    "tcp_keepalive": True,
    "config": None,
    "compression_algs": None,
    "encryption_algs": "^aes128-gcm@openssh.com,aes256-gcm@openssh.com",
    "agent_forwarding": False,
    "x11_forwarding": False,
    "utf8_decode_errors": "replace",
    "encoding": None,
}
"""Options of asyncssh that differ from its own defaults, or that must not follow them if they change.

Seconds for the times. ``config``: no ``ssh_config`` is read unless it is named, since it can run
programs (``ProxyCommand``, ``Match exec``). ``encryption_algs``: those of asyncssh, AES-GCM first:
ChaCha20 takes twice the time where processors have instructions for AES.
"""

_OURS = frozenset({"address", "host_keys", "max_sessions", "runner"})
_OF_CONNECT = frozenset({"flags", "sock"})
_ALSO = frozenset({"family", "local_addr", "tunnel", "options"})

PLACE = frozenset({"host", "address", "port"})
"""Connection options that lead to another place than the inventory does."""

MOST_COMMON = 256
"""How many different sets of options are kept."""

_KEY_FILES = ("id_ed25519_sk", "id_ecdsa_sk", "id_ed25519", "id_ecdsa", "id_rsa")


def _accepted(function: Any) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters) - {"self", "loop", "last_config", "kwargs"}


CONNECTION_OPTIONS = _accepted(asyncssh.SSHClientConnectionOptions.prepare) | _OF_CONNECT | _ALSO
SESSION_OPTIONS = _accepted(asyncssh.SSHClientConnection.create_session) - {"session_factory", "command", "subsystem"}


_OF_SESSIONS = (SESSION_OPTIONS - {"encoding", "errors"}) | {"agent_forwarding", "config", "options"}
"""Options of a connection that sessions go by."""


@dataclass
class Plan:
    """All that is needed to connect to one host."""

    name: str
    """What the inventory calls it."""
    host: str
    """What is connected to: a name or an address."""
    port: int
    trust: Trust
    max_sessions: int
    runner: bool
    """Whether commands run in a runner on the host, where it can have one."""
    timeout: float
    """Seconds for an attempt to connect, all of it."""
    arguments: Mapping[str, Any] = field(repr=False)
    """Arguments of ``asyncssh.connect()``, secrets in the clear."""
    options: asyncssh.SSHClientConnectionOptions = field(repr=False)
    """What asyncssh makes of them; the same object for hosts that share them, unless it depends on the host."""
    has_plain_sessions: bool
    """Whether sessions have no options that hold for all of the connection."""
    key: tuple[Any, ...] = field(repr=False)
    """Equal for equal options: connections are shared by it."""

    @property
    def where(self) -> str:
        """The host for messages."""
        place = f"{self.host}:{self.port}" if self.port != PORT else self.host
        return place if self.name == self.host else f"{self.name} ({place})"


@dataclass(frozen=True)
class _Common:
    """What hosts with the same options share, whatever their names and addresses are."""

    trust: Trust
    arguments: Mapping[str, Any]
    made: asyncssh.SSHClientConnectionOptions | None
    """What asyncssh makes of them, unless that depends on the host."""


class Plans:
    """Works out how to connect; what hosts have in common is worked out once."""

    def __init__(self) -> None:
        self._common: dict[Any, _Common] = {}

    def plan(self, connection: Connection, overrides: Mapping[str, Any] | None = None) -> Plan:
        """Work out how to connect to a host; *overrides* go over the inventory's options.

        Raises:
            InventoryError: An option is unknown or wrong, or a key cannot be read.
        """
        connection = _overridden(connection, overrides) if overrides else connection
        name = connection.host
        options = {name: reveal(value) for name, value in connection.options().items()}
        key = tuple(sorted((name, _hashable(value)) for name, value in options.items()))
        shared = tuple(pair for pair in key if pair[0] not in PLACE)
        common = self._common.get(shared)
        if common is None:
            common = _worked_out(connection, options)
            if len(self._common) >= MOST_COMMON:
                self._common.clear()
            self._common[shared] = common
        host, port = connection.address or name, connection.port or PORT
        made = common.made
        if made is None:
            made = _checked({**common.arguments, "host": host, "port": port}, f"{name}: connection")
        return Plan(
            name=name,
            host=host,
            port=port,
            trust=common.trust,
            max_sessions=connection.max_sessions,
            runner=connection.runner,
            timeout=float(cast(Any, made).connect_timeout or 0),
            arguments=common.arguments,
            options=made,
            has_plain_sessions=_has_plain_sessions(common.arguments),
            key=(host, port, *key),
        )


def plan(connection: Connection, overrides: Mapping[str, Any] | None = None) -> Plan:
    """Work out how to connect to one host; see :meth:`Plans.plan`."""
    return Plans().plan(connection, overrides)


def _has_plain_sessions(arguments: Mapping[str, Any]) -> bool:
    given = {name for name, value in arguments.items() if value != DEFAULTS.get(name, ())}
    return given.isdisjoint(_OF_SESSIONS)


def _overridden(connection: Connection, overrides: Mapping[str, Any]) -> Connection:
    try:
        inventory = connection.options()
        if "host" in overrides:
            inventory.pop("address", None)  # that is the place of the inventory's host
        return Connection.model_validate({**inventory, **overrides})
    except ValidationError as error:
        problems = "; ".join(complaints(error))
        raise InventoryError(f"{connection.host}: connection: {problems}") from None


def _worked_out(connection: Connection, options: dict[str, Any]) -> _Common:
    host = connection.host
    check_names(options, CONNECTION_OPTIONS | _OURS, f"{host}: connection")
    if options.get("passphrase") is not None:
        options = {**options, "passphrase": _passphrase(options["passphrase"], host)}
    given = {name: value for name, value in options.items() if name not in _OURS | PLACE and value is not None}
    for name in ("known_hosts", "client_keys", "agent_path", "config"):
        if name in options:  # None means something for these
            given[name] = options[name]
    trust = Trust(connection.host_keys, given.pop("known_hosts", ()))
    arguments = {**DEFAULTS, **_keys(given, host), **_without_keys(given)}
    if not arguments["config"]:
        return _Common(trust, arguments, _checked({**arguments, "host": ""}, f"{host}: connection"))
    if "encryption_algs" not in given:
        del arguments["encryption_algs"]  # a named ssh_config may have a choice of its own
    return _Common(trust, arguments, None)


def check_names(options: Mapping[str, Any], accepted: frozenset[str], where: str) -> None:
    """Refuse an option that asyncssh does not know.

    Raises:
        InventoryError: Names the option, and the one that may have been meant.
    """
    for name in options:
        if name not in accepted:
            near = difflib.get_close_matches(name, accepted, 1)
            hint = f": did you mean {near[0]!r}?" if near else ""
            raise InventoryError(f"{where}: unknown option {name!r}{hint}")


def _checked(arguments: Mapping[str, Any], where: str) -> asyncssh.SSHClientConnectionOptions:
    """Let asyncssh check the values now, rather than when the first hosts are running.

    Raises:
        InventoryError: Names the option.
    """
    values = {name: value for name, value in arguments.items() if name not in _OF_CONNECT}
    made = _made(values)
    if isinstance(made, Exception):
        culprit = next((name for name, value in values.items() if isinstance(_made({name: value}), Exception)), None)
        raise InventoryError(f"{where}: {culprit}: {made}" if culprit else f"{where}: {made}")
    return made


def _made(values: Mapping[str, Any]) -> asyncssh.SSHClientConnectionOptions | Exception:
    try:
        return asyncssh.SSHClientConnectionOptions(**{"config": None, "client_keys": None, **values})
    except (ValueError, TypeError, OSError, asyncssh.Error) as error:
        return error


def _without_keys(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name not in ("client_keys", "agent_path", "passphrase")}


def _keys(given: dict[str, Any], host: str) -> dict[str, Any]:
    """Decide which keys are offered: those that are named, else none beside a password, else the user's.

    Each key that is offered in vain counts against the server's ``MaxAuthTries``, so that agent and
    default keys could use up the tries before the password's turn.
    """
    passphrase = given.get("passphrase")
    if "client_keys" in given:
        named = given["client_keys"]
        if not named:
            keys: Any = None
        elif isinstance(named, list | tuple) and not _is_pair(named):
            keys = [_key(key, passphrase, host) for key in named]
        else:
            keys = [_key(named, passphrase, host)]
        return {"client_keys": keys, "agent_path": given.get("agent_path"), "passphrase": passphrase}
    if given.get("password") is not None:
        return {"client_keys": None, "agent_path": given.get("agent_path")}
    folder = Path("~/.ssh").expanduser()
    files = [folder / name for name in _KEY_FILES if (folder / name).is_file()]
    keys = [key for key in (_default_key(file, passphrase) for file in files) if key is not None]
    agent = given.get("agent_path", os.environ.get("SSH_AUTH_SOCK"))
    # An empty list would make asyncssh read the default files again for each connection; None keeps
    # it from asking the agent.
    return {"client_keys": keys or ([] if agent else None), "agent_path": agent}


def _passphrase(text: str, host: str) -> str:
    """Look a passphrase up, wherever it is kept: keys are read before anything runs."""
    try:
        return _known_passphrase(text)
    except SecretNotFound as error:
        raise InventoryError(f"{host}: passphrase: {error.detail}") from None


_known_passphrase = lru_cache(maxsize=256)(resolve)


def _is_pair(named: Any) -> bool:
    """Whether asyncssh would read *named* as one key with its certificate."""
    return isinstance(named, tuple) and len(named) == 2


def _key(key: Any, passphrase: str | None, host: str) -> Any:
    if isinstance(key, str) and "PRIVATE KEY-----" in key:
        return _import_key(key, passphrase, host)
    if not isinstance(key, str | os.PathLike):
        return key
    path = Path(key).expanduser()
    try:
        return _read_key(path, path.stat().st_mtime_ns, passphrase)
    except OSError as error:
        raise InventoryError(f"{host}: client_keys: {path}: {error.strerror}") from None
    except (asyncssh.KeyEncryptionError, asyncssh.KeyImportError) as error:
        raise _unreadable(f"{host}: client_keys: {path}", error, passphrase) from None


def _import_key(text: str, passphrase: str | None, host: str) -> Any:
    try:
        return asyncssh.import_private_key(text, passphrase)
    except (asyncssh.KeyEncryptionError, asyncssh.KeyImportError) as error:
        raise _unreadable(f"{host}: client_keys: a key that is given as text", error, passphrase) from None


def _unreadable(where: str, error: Exception, passphrase: str | None) -> InventoryError:
    if "assphrase" in str(error):
        return InventoryError(
            f"{where}: {'its passphrase is wrong' if passphrase else 'it is encrypted: give its passphrase'}"
        )
    return InventoryError(f"{where}: {error}")


def _default_key(path: Path, passphrase: str | None) -> Any:
    try:
        return _read_key(path, path.stat().st_mtime_ns, passphrase)
    except (OSError, asyncssh.KeyEncryptionError, asyncssh.KeyImportError):
        return None  # as ssh(1) does: a default key that cannot be used is not offered


@lru_cache(maxsize=256)
def _read_key(path: Path, _changed: int, passphrase: str | None) -> Any:
    """Read a private key and its certificate, once for each state of the file."""
    key = asyncssh.read_private_key(path, passphrase)
    certificate = path.with_name(path.name + "-cert.pub")
    return (key, asyncssh.read_certificate(certificate)) if certificate.is_file() else key


def _hashable(value: Any) -> Any:
    try:
        hash(value)
    except TypeError:
        return repr(value) if isinstance(value, list | dict | set) else id(value)
    return (type(value).__name__, value)
