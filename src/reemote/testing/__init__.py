"""Test deployments without a machine to spare.

:func:`sandbox` gives real SSH hosts inside this process; :class:`Fake` gives scripted ones without
any network. Each is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .fake import Fake as Fake
    from .fleet import Sandbox as Sandbox
    from .fleet import sandbox as sandbox

_WHERE = {"Fake": "fake", "Sandbox": "fleet", "sandbox": "fleet"}

__all__ = ["Fake", "Sandbox", "sandbox"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
