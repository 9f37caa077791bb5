"""What is told of errors in a deployment: where they are in the user's own code."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..core.errors import DeploymentError, InventoryError
from .output import some, visible

_OURS = str(Path(__file__).resolve().parent.parent)


def explained(raised: Sequence[tuple[str, Exception]]) -> Iterator[str]:
    """Tell of each error once, with the hosts on which it came up."""
    hosts: dict[str, list[str]] = {}
    for host, error in raised:
        known = isinstance(error, InventoryError | DeploymentError)
        hosts.setdefault(f"Error: {error}" if known else trace(error, host), []).append(host)
    for text, names in hosts.items():
        yield f"The deployment raised on {some(names)}:"
        yield visible(text)


def trace(error: BaseException, host: str = "") -> str:
    """Give the traceback from the user's code on: how that was called is of no interest."""
    report = traceback.TracebackException.from_exception(error)
    if report.__notes__:  # the name of the host is told apart
        report.__notes__ = [note for note in report.__notes__ if note != f"on host {host}"]
    _shorten(report)
    return "".join(report.format()).rstrip("\n")


def _shorten(report: traceback.TracebackException | None) -> None:
    if report is None:
        return
    users = [n for n, frame in enumerate(report.stack) if not frame.filename.startswith((_OURS, "<frozen importlib"))]
    del report.stack[: users[0] if users else 0]
    for inner in (report.__cause__, report.__context__, *(report.exceptions or ())):
        _shorten(inner)
