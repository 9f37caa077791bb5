"""What commands write: escapes, forms for programs, the summary of failures, and exit codes.

Data goes to standard output, everything else to standard error.
"""

from __future__ import annotations

import contextlib
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

import click

from ..core.errors import ConnectFailed, ConnectionLost, HostError
from ..core.response import Completed, Response, as_json
from .folding import fold
from .main import FAILED, OK, UNREACHABLE, write_no_more

if TYPE_CHECKING:  # it takes a tenth of a second, and programs that read JSON do not need it
    from rich.console import Console

FORMATS = ("table", "json", "jsonl")

NAMED = 5
"""How many hosts a summary names for each kind of failure, where their names do not fold."""

SHORT = 80
"""Characters of folded names that a summary shows."""


def visible(text: str) -> str:
    """Show *text* so that it cannot drive the terminal: control characters become escapes.

    Newlines and tabs stay.
    """
    if text.isprintable():
        return text
    return "\n".join(line if line.replace("\t", "").isprintable() else _escaped(line) for line in text.split("\n"))


def one_line(text: str) -> str:
    """Show *text* as :func:`visible` does, newlines and tabs as escapes, too."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def _escaped(line: str) -> str:
    return "".join(character if _is_harmless(character) else _escape(character) for character in line)


def _is_harmless(character: str) -> bool:
    # Cc: control characters; Cf: invisible ones, which can turn the direction of writing; Cs: surrogates;
    # Zl, Zp: separators that some programs take for the end of a line.
    return character == "\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person reads what is written to *stream*."""
    return stream is not None and stream.isatty()


def console(stream: TextIO | None = None) -> Console:
    """Give a console that colours on a terminal only, and leaves lines as long as they are."""
    from rich.console import Console

    class OnPipe(Console):
        def on_broken_pipe(self) -> None:
            """Let the error go on: rich would exit, with a code that means something else here."""
            raise  # noqa: PLE0704 - it is called while the error is handled

    return OnPipe(file=stream or sys.stdout, highlight=False, soft_wrap=True)


def is_plain(stream: TextIO | None) -> bool:
    """Whether *stream* takes neither colours nor folded lines, so that no console is needed to write there."""
    return not is_terminal(stream) and not os.environ.get("FORCE_COLOR")


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Write to standard output inside of this context, once the hosts are done."""
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        write_no_more()  # the reader has seen enough; the exit code still tells how the hosts did
    except OSError as error:
        write_no_more()
        raise click.ClickException(f"the hosts are done, but the output cannot be written: {error.strerror}") from None


def write_json(responses: Iterable[Response[Any]], form: str) -> None:
    """Write *responses* for programs: as one array, or a line for each."""
    if form == "json":
        print(as_json(list(responses), indent=4))
    else:
        for response in responses:
            print(as_json(response))


# How it went


def ending(value: Any) -> str:
    """Say how a command ended that did not succeed; nothing for all else."""
    if not isinstance(value, Completed):
        return ""
    if value["exit_signal"]:
        return f"ended by signal {visible(str(value['exit_signal'][0]))}"
    return f"exit status {value['exit_status']}" if value["exit_status"] else ""  # None is that of a dry run


def summary(responses: Sequence[Response[Any]], raised: Sequence[str] = (), hint: str = "") -> Iterator[str]:
    """Say which hosts failed, and how; nothing where all went well.

    *raised* are the hosts without a response, since the deployment raised there. *hint* is what to know of
    commands that ended with a status other than 0.
    """
    kinds = {"error in the deployment": list(raised)} if raised else {}
    for response in responses:
        if response["error"]:
            kinds.setdefault(visible(str(response["value"])), []).append(response["host"])
    if kinds:
        yield f"{_number(kinds)} of {len(responses) + len(raised)} hosts failed:"
        yield from _by_size(kinds)
    endings: dict[str, list[str]] = {}
    for response in responses:
        if not response["error"] and (how := ending(response["value"])):
            endings.setdefault(how, []).append(response["host"])
    if endings:
        number = f"{_number(endings)} of {len(responses) + len(raised)}"
        yield f"The {'last ' if hint else ''}command did not succeed on {number} hosts{hint}:"
        yield from _by_size(endings)


def _number(kinds: Mapping[str, Sequence[str]]) -> int:
    return sum(map(len, kinds.values()))


def _by_size(kinds: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for kind, hosts in sorted(kinds.items(), key=lambda pair: -len(pair[1])):
        yield f"    {kind}: {some(hosts)}"


def some(hosts: Sequence[str]) -> str:
    """Name *hosts*: folded, or where that is long the first few, and how many more there are."""
    if len(whole := fold(hosts)) <= SHORT:
        return visible(whole)
    more = f" and {len(hosts) - NAMED} more" if len(hosts) > NAMED else ""
    return visible(", ".join(hosts[:NAMED])) + more


def exit_code(responses: Iterable[Response[Any]]) -> int:
    """Give the exit code that tells of *responses*."""
    failed = [response for response in responses if response["error"]]
    if any(map(_is_unreachable, failed)):
        return UNREACHABLE
    return FAILED if failed else OK


def _is_unreachable(response: Response[Any]) -> bool:
    """Whether the host could not be reached, or dropped us before anything had begun."""
    kind = HostError.named(str(response["value"]))
    return issubclass(kind, ConnectFailed) or (kind is ConnectionLost and response.outcome == "not_started")
