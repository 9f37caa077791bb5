"""What a run shows: the responses, for people and for programs.

Data goes to standard output, everything else to standard error.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from ..core.errors import ConnectFailed, HostError
from ..core.response import Completed, Response, as_json
from .main import FAILED, OK, UNREACHABLE

FORMATS = ("table", "json", "jsonl")


def visible(text: str) -> str:
    """Show *text* so that it cannot drive the terminal: control characters become escapes.

    Newlines and tabs stay.
    """
    return "".join(character if _is_harmless(character) else _escape(character) for character in text)


def _is_harmless(character: str) -> bool:
    # Cc: control characters; Cf: invisible ones, which can turn the direction of writing; Cs: surrogates.
    return character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs")


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def console(stream: TextIO | None = None) -> Console:
    """Give a console that colours on a terminal only, and leaves lines as long as they are."""
    return Console(file=stream or sys.stdout, highlight=False, soft_wrap=True)


def show(responses: Iterable[Response[Any]], form: str) -> None:
    """Write *responses* to standard output in one of :data:`FORMATS`."""
    if form == "json":
        print(as_json(list(responses), indent=4))
    elif form == "jsonl":
        for response in responses:
            print(as_json(response))
    else:
        target = console()
        for response in responses:
            target.print(_block(response))


def exit_code(responses: Iterable[Response[Any]]) -> int:
    """Give the exit code that tells of *responses*."""
    failed = [HostError.named(str(response["value"])) for response in responses if response["error"]]
    if any(issubclass(kind, ConnectFailed) for kind in failed):
        return UNREACHABLE
    return FAILED if failed else OK


def _block(response: Response[Any]) -> Text:
    """Write the response of one host: a headline, and what there is to read, indented."""
    block = Text()
    block.append(visible(response["host"]), style="bold")
    if response["error"]:
        block.append(" failed", style="bold red")
        block.append(f"  {visible(str(response['value']))}: {visible(response.detail)}")
        if response.outcome == "unknown":
            block.append("\n    It may have taken effect on the host.", style="yellow")
        body = _text(response.completed) if response.completed else ""
    else:
        block.append("  changed" if response["changed"] else "  ok", style="yellow" if response["changed"] else "green")
        body = _text(response["value"])
        if isinstance(response["value"], Completed) and response["value"]["returncode"] != 0:
            block.append(f"  {_ending(response['value'])}", style="red")
    for line in body.splitlines():
        block.append(f"\n    {line}")
    return block


def _ending(completed: Completed) -> str:
    if completed["exit_signal"]:
        return f"ended by signal {visible(str(completed['exit_signal'][0]))}"
    return f"exit status {completed['exit_status']}"


def _text(value: Any) -> str:
    """Give a value as text to read."""
    if value is None:
        return ""
    if isinstance(value, Completed):
        return visible(value["stdout"] + value["stderr"])
    if isinstance(value, str):
        return visible(value)
    return visible(as_json(value, indent=2))
