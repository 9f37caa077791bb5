"""Which options may come over HTTP: what reaches a host, and nothing that reaches into this machine.

Options such as ``proxy_command`` or ``pkcs11_provider`` run programs and load libraries here. The
operator's own inventory file and the Python API may use them; a request may not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.errors import ReemoteError

CONNECTION = frozenset(
    {
        "address",
        "client_keys",
        "connect_timeout",
        "host",
        "host_keys",
        "keepalive_count_max",
        "keepalive_interval",
        "login_timeout",
        "max_sessions",
        "passphrase",
        "password",
        "port",
        "username",
    }
)
SESSION = frozenset({"encoding", "env", "errors", "request_pty", "term_size", "term_type"})

_KEY_NAME = re.compile(r"[A-Za-z0-9_@][A-Za-z0-9_.@-]{0,100}")


class OptionRefused(ReemoteError):
    """An option may not be given over HTTP; the message names it."""


def connection(options: Mapping[str, Any]) -> dict[str, Any]:
    """Check connection options, and give them with the paths of the keys that they name.

    Raises:
        OptionRefused: An option is not among those that may be given.
    """
    checked = _only(options, CONNECTION, "connection")
    if checked.get("host_keys") == "off":
        raise OptionRefused("connection.host_keys: 'off' may not be given over HTTP")
    if "client_keys" in checked and checked["client_keys"] is not None:
        names = checked["client_keys"]
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list) or not all(isinstance(n, str) and _KEY_NAME.fullmatch(n) for n in names):
            raise OptionRefused("connection.client_keys: give names of keys in ~/.ssh, not paths")
        checked["client_keys"] = [str(Path("~/.ssh", name).expanduser()) for name in names]
    return checked


def session(options: Mapping[str, Any]) -> dict[str, Any]:
    """Check session options.

    Raises:
        OptionRefused: An option is not among those that may be given.
    """
    return _only(options, SESSION, "session")


def item(given: Any) -> Any:
    """Check the connection and session options of an inventory's host; its shape is checked elsewhere.

    Raises:
        OptionRefused: An option is not among those that may be given.
    """
    if not isinstance(given, dict):
        return given
    checked = dict(given)
    if isinstance(given.get("connection"), dict):
        checked["connection"] = connection(given["connection"])
    if isinstance(given.get("session"), dict):
        checked["session"] = session(given["session"])
    return checked


def _only(options: Mapping[str, Any], allowed: frozenset[str], where: str) -> dict[str, Any]:
    for name in options:
        if name not in allowed:
            raise OptionRefused(f"{where}.{name} may not be given over HTTP; allowed are {', '.join(sorted(allowed))}")
    return dict(options)
