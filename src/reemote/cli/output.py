"""What a run shows: the responses, for people and for programs.

Data goes to standard output, everything else to standard error.
"""

from __future__ import annotations

import contextlib
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

import click

from ..core.errors import ConnectFailed, ConnectionLost, HostError
from ..core.response import Completed, Response, as_json
from .main import FAILED, OK, UNREACHABLE, write_no_more

if TYPE_CHECKING:  # it takes a tenth of a second, and programs that read JSON do not need it
    from rich.console import Console
    from rich.text import Text

FORMATS = ("table", "json", "jsonl")

NAMED = 5
"""How many hosts a summary names for each kind of failure."""


def visible(text: str) -> str:
    """Show *text* so that it cannot drive the terminal: control characters become escapes.

    Newlines and tabs stay.
    """
    return "".join(character if _is_harmless(character) else _escape(character) for character in text)


def one_line(text: str) -> str:
    """Show *text* as :func:`visible` does, newlines and tabs as escapes, too."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def _is_harmless(character: str) -> bool:
    # Cc: control characters; Cf: invisible ones, which can turn the direction of writing; Cs: surrogates;
    # Zl, Zp: separators that some programs take for the end of a line.
    return character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def console(stream: TextIO | None = None) -> Console:
    """Give a console that colours on a terminal only, and leaves lines as long as they are."""
    from rich.console import Console

    class OnPipe(Console):
        def on_broken_pipe(self) -> None:
            """Let the error go on: rich would exit, with a code that means something else here."""
            raise  # noqa: PLE0704 - it is called while the error is handled

    return OnPipe(file=stream or sys.stdout, highlight=False, soft_wrap=True)


def show(responses: Iterable[Response[Any]], form: str) -> None:
    """Write *responses* to standard output in one of :data:`FORMATS`."""
    with writing():
        _write(responses, form)


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


def _write(responses: Iterable[Response[Any]], form: str) -> None:
    if form == "json":
        print(as_json(list(responses), indent=4))
    elif form == "jsonl":
        for response in responses:
            print(as_json(response))
    else:
        target = console()
        for response in responses:
            target.print(_block(response, target.width if target.is_terminal else None))


def summary(responses: Sequence[Response[Any]], raised: Sequence[str] = ()) -> Iterator[str]:
    """Say which hosts failed, and how; nothing where all went well.

    *raised* are the hosts without a response, since the deployment raised there.
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
        if not response["error"] and (ending := _ending(response["value"])):
            endings.setdefault(ending, []).append(response["host"])
    if endings:
        number = f"{_number(endings)} of {len(responses) + len(raised)}"
        yield f"The last command did not succeed on {number} hosts (a failure with --strict):"
        yield from _by_size(endings)


def _number(kinds: Mapping[str, Sequence[str]]) -> int:
    return sum(map(len, kinds.values()))


def _by_size(kinds: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for kind, hosts in sorted(kinds.items(), key=lambda pair: -len(pair[1])):
        yield f"    {kind}: {some(hosts)}"


def some(hosts: Sequence[str]) -> str:
    """Name *hosts*: the first few, and how many more there are."""
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


def _block(response: Response[Any], width: int | None) -> Text:
    """Write the response of one host: a headline, and what there is to read, indented.

    What Reemote says is folded to *width*, where one is given; what a host wrote is left as it is.
    """
    from rich.text import Text

    block = Text()
    block.append(visible(response["host"]), style="bold")
    if response["error"]:
        block.append("  failed", style="bold red")
        block.append(f"  {visible(str(response['value']))}")
        lines = [(line, "") for line in _folded(visible(response.detail), width)]
        if response.outcome == "unknown":
            lines.append(("It may have taken effect on the host.", "yellow"))
        lines += _lines(response.completed)
    else:
        block.append("  changed" if response["changed"] else "  ok", style="yellow" if response["changed"] else "green")
        if ending := _ending(response["value"]):
            block.append(f"  {ending}", style="red")
        lines = list(_lines(response["value"]))
    for line, style in lines:
        block.append("\n    ").append(line, style=style)
    return block


def _folded(text: str, width: int | None) -> Iterator[str]:
    for line in text.split("\n"):
        if width is None:
            yield line
        else:
            # A name or a path is left whole, to be copied.
            yield from textwrap.wrap(line, max(width - 4, 20), break_long_words=False, break_on_hyphens=False) or [""]


def _ending(value: Any) -> str:
    """Say how a command ended that did not succeed; nothing for all else."""
    if not isinstance(value, Completed) or value["returncode"] == 0:
        return ""
    if value["exit_signal"]:
        return f"ended by signal {visible(str(value['exit_signal'][0]))}"
    return f"exit status {value['exit_status']}"


def _lines(value: Any) -> Iterator[tuple[str, str]]:
    """Give a value as lines to read, each with its style; standard error comes after standard output."""
    if isinstance(value, Completed):
        parts = [(value["stdout"], ""), (value["stderr"], "red")]
    elif value is None:
        parts = []
    else:
        parts = [(value if isinstance(value, str) else as_json(value, indent=2), "")]
    for text, style in parts:
        if text:
            yield from ((line, style) for line in visible(text).removesuffix("\n").split("\n"))
