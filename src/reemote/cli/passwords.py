"""Passwords that the operator types, once for the whole run."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import SecretStr

from ..core.inventory import InventoryItem
from .main import Refused
from .messages import say

Program = Literal["sudo", "su"]

_TERMINAL = Path("/dev/tty")


def ask(program: Program, items: Sequence[InventoryItem]) -> None:
    """Ask for the password of *program*, for those of the hosts of which the inventory has none.

    Nothing typed is no password: for hosts that ask for none.
    """
    name = f"{program}_password"
    without = [item for item in items if getattr(item.authentication, name) is None]
    if not without:
        say(f"The inventory has a {program} password for each host: none is asked for.")
        return
    number = f"{len(without)} host" + ("s" if len(without) > 1 else "")
    if typed := _typed(f"Password for {program} on {number}: "):
        for item in without:
            setattr(item.authentication, name, SecretStr(f"pass:{typed}"))  # it may begin like a reference


def _typed(prompt: str) -> str:
    """Read a line without showing it: from the terminal, or where there is none, from standard input."""
    try:
        if _has_terminal():
            return getpass.getpass(prompt)
        if sys.stdin is None or not (line := sys.stdin.readline()):
            raise EOFError
    except EOFError:
        say("")  # the prompt has the line
        raise Refused("no password was given") from None
    return line.removesuffix("\n")


def _has_terminal() -> bool:
    try:
        with _TERMINAL.open("rb", buffering=0):
            return True
    except OSError:
        return sys.stdin is not None and sys.stdin.isatty()
