"""Reemote: control remote systems over SSH, in plain asynchronous Python.

Importing the package loads nothing else; its names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core.context import Context as Context
    from .core.errors import ExecutionError as ExecutionError
    from .core.errors import HostError as HostError
    from .core.errors import ReemoteError as ReemoteError
    from .core.inventory import Authentication as Authentication
    from .core.inventory import Connection as Connection
    from .core.inventory import Inventory as Inventory
    from .core.inventory import InventoryItem as InventoryItem
    from .core.inventory import Session as Session
    from .core.operation import Effect as Effect
    from .core.operation import Local as Local
    from .core.operation import Steps as Steps
    from .core.operation import step as step
    from .core.remote import Command as Command
    from .core.remote import Remote as Remote
    from .core.response import Completed as Completed
    from .core.response import Response as Response
    from .core.response import Responses as Responses
    from .execute import run as run
    from .execute import stream as stream
    from .ssh.pool import Pool as Pool

_HOME = {
    "core.context": ("Context",),
    "core.errors": ("ExecutionError", "HostError", "ReemoteError"),
    "core.inventory": ("Authentication", "Connection", "Inventory", "InventoryItem", "Session"),
    "core.operation": ("Effect", "Local", "Steps", "step"),
    "core.remote": ("Command", "Remote"),
    "core.response": ("Completed", "Response", "Responses"),
    "execute": ("run", "stream"),
    "ssh.pool": ("Pool",),
}
_WHERE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Authentication",
    "Command",
    "Completed",
    "Connection",
    "Context",
    "Effect",
    "ExecutionError",
    "HostError",
    "Inventory",
    "InventoryItem",
    "Local",
    "Pool",
    "ReemoteError",
    "Remote",
    "Response",
    "Responses",
    "Session",
    "Steps",
    "run",
    "step",
    "stream",
]

logging.getLogger("reemote").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
