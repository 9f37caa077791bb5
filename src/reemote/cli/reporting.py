"""Carry a command for hosts out, show what happens, and tell what it came to."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..core.inventory import Inventory
from ..core.response import Completed, Response
from .blocks import show
from .hosts import Given, Outcome
from .main import FAILED, OK
from .messages import say
from .output import ending, exit_code, is_terminal, one_line, summary, writing
from .traces import explained
from .watching import Output, Part, Prediction, Steps

if TYPE_CHECKING:
    from rich.console import Console

STRICT = " (a failure with --strict)"


def carry_out(
    given: Given,
    hosts: Inventory,
    factory: Callable[[], Any],
    *,
    strict: bool = False,
    is_command: bool = False,
    is_plain: bool = False,
) -> int:
    """Run what *factory* makes on the hosts, and give the exit code.

    With *is_command*, a non-zero exit status is a failure. With *is_plain*, the output of a single host is
    written as it is.
    """
    given.ask(hosts)
    names = [item.host for item in hosts.select(given.limit)]
    output = Output() if is_plain and len(names) == 1 and given.output == "table" and not given.check else None
    prediction = Prediction()
    parts: list[Part] = [prediction] if given.check else []
    parts += [Steps(dry_run=given.check)] if given.verbose else []
    parts += [output] if output else []
    quiet = given.output != "table" or (output is not None and output.is_live)
    with contextlib.nullcontext() if quiet else live(names, dry_run=given.check) as screen:
        outcome = given.run(factory, hosts, *parts, *([screen] if screen else []), strict=strict)
    is_whole = True
    if output and outcome.responses:
        with writing():
            is_whole = _finish(output, outcome.responses[0])
    else:
        show(outcome.responses, given.output, dry_run=given.check, diffs=prediction.diffs if given.diff else None)
        _tell(outcome, prediction, "" if is_command else STRICT)
    if outcome.missed and (given.verbose or given.check):
        say(f"Too much happened at a time to tell of all steps: {outcome.missed} are left out above.")
    outcome.close()
    return max(_code(outcome, is_command=is_command), OK if is_whole else FAILED)


def _code(outcome: Outcome, *, is_command: bool) -> int:
    """Give the exit code; for a single command, one that tells of its exit status, too."""
    code = exit_code(outcome.responses)
    ended_badly = is_command and any(ending(response["value"]) for response in outcome.responses)
    return max(FAILED, code) if outcome.raised or ended_badly else code


def _finish(output: Output, response: Response[Any]) -> bool:
    """Write what a single host has answered, and on standard error how it ended; answer whether that is all of it."""
    if response["error"]:
        is_whole = output.finish(response.completed)
        say(one_line(str(response.to_error())))
        return is_whole
    is_whole = output.finish(response["value"] if isinstance(response["value"], Completed) else None)
    if how := ending(response["value"]):
        say(f"{one_line(response['host'])}: {how}")
    return is_whole


def _tell(outcome: Outcome, prediction: Prediction, hint: str) -> None:
    """Tell what went wrong, and what a dry run left out."""
    say(*prediction.notes())
    if not outcome.responses and not outcome.raised:
        say("No host had anything to run.")
    say(*explained(outcome.raised))
    say(*summary(outcome.responses, raised=[host for host, _ in outcome.raised], hint=hint))


@contextlib.contextmanager
def live(hosts: list[str], *, dry_run: bool) -> Iterator[Part | None]:
    """Show on standard error what the hosts are doing, if that is a terminal that can."""
    if (console := interactive()) is None or not hosts:
        yield None
        return
    from .live import Works

    with Works(hosts, console, dry_run=dry_run) as screen:
        yield screen.tell


def interactive() -> Console | None:
    """Give the terminal that standard error leads to, if it can move its cursor."""
    if not is_terminal(sys.stderr):
        return None
    from rich.console import Console

    console = Console(file=sys.stderr, highlight=False)
    return console if console.is_interactive else None
