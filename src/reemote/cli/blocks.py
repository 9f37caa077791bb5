"""The table: a block of text for all hosts that answered the same, the largest first, outliers as a difference."""

from __future__ import annotations

import re
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

from ..core.response import Completed, Response, as_json
from .folding import fold
from .output import console, ending, is_plain, visible, write_json, writing

if TYPE_CHECKING:
    from rich.text import Text

Line = tuple[str, str]
"""A line to read, and its style."""

StepDiffs = Mapping[str, Sequence[tuple[str, str]]]
"""For each host the steps of a dry run that would change a text: the step's name, and the unified diff."""

STYLES = {
    "failed": "bold red",
    "changed": "yellow",
    "would change": "yellow",
    "ok": "green",
    "skipped": "cyan",
}
"""The states of a response, and how each looks."""

COMPARED = 2000
"""Lines of the longest text that is shown as a difference."""

OUTLIERS = 200
"""How many texts are compared with that of most hosts; what differs everywhere has no outliers."""


def show(
    responses: Iterable[Response[Any]], form: str, *, dry_run: bool = False, diffs: StepDiffs | None = None
) -> None:
    """Write *responses* to standard output in one of :data:`~reemote.cli.output.FORMATS`."""
    with writing():
        if form != "table":
            write_json(responses, form)
            return
        found = groups(responses, dry_run=dry_run, diffs=diffs or {})
        if is_plain(sys.stdout):
            for block in _blocks(found, None):
                sys.stdout.write("\n    ".join("".join(text for text, _ in parts) for parts in block) + "\n")
        else:
            target = console()
            for block in _blocks(found, target.width):
                target.print(_text(block))


def state_of(response: Response[Any] | None, *, dry_run: bool = False) -> str:
    """Say in a word or two how a step or a host ended."""
    if response is None:
        return "interrupted"
    if response["error"]:
        return "failed"
    if response.skipped:
        return "skipped"
    if response["changed"]:
        return "would change" if dry_run else "changed"
    return "ok"


# Who answered the same


@dataclass
class Group:
    """Hosts that answered the same."""

    response: Response[Any]
    """The response of the first of them."""
    state: str
    diffs: Sequence[tuple[str, str]]
    hosts: list[str] = field(default_factory=list)

    @property
    def detail(self) -> str:
        """What went wrong; where it is about several hosts, with ``{host}`` for the name of each."""
        one = len(self.hosts) == 1
        return self.response.detail if one else _for_any(self.response.detail, self.response["host"])


def groups(responses: Iterable[Response[Any]], *, dry_run: bool = False, diffs: StepDiffs | None = None) -> list[Group]:
    """Put hosts together that answered the same: the largest group first, then in the order of the responses."""
    found: dict[Any, Group] = {}
    for response in responses:
        state, steps = state_of(response, dry_run=dry_run), tuple((diffs or {}).get(response["host"], ()))
        key = (state, steps, _key(response))
        found.setdefault(key, Group(response, state, steps)).hosts.append(response["host"])
    return sorted(found.values(), key=lambda group: -len(group.hosts))


def _key(response: Response[Any]) -> Any:
    """Give what makes the response of one host another one than that of the next."""
    if response["error"]:
        detail = _for_any(response.detail, response["host"])
        return str(response["value"]), detail, response.outcome, _content(response.completed, ends=False)
    return _content(response["value"])


def _content(value: Any, *, ends: bool = True) -> Any:
    """Give what is shown of a value; of a failure, how its command ended is not."""
    if isinstance(value, Completed):
        # A command may name its host, and is not shown.
        size, how = (value.get("stdout_size"), value.get("stderr_size")), ending(value) if ends else ""
        return value["stdout"].removesuffix("\n"), value["stderr"].removesuffix("\n"), how, size
    return value if value is None or isinstance(value, str) else ("JSON", as_json(value))


def _for_any(detail: str, host: str) -> str:
    """Leave the name of the host out of a message, and the address that may follow in brackets."""
    return re.sub(rf"(?<![\w.-]){re.escape(host)}(?![\w-]|\.\w)(?: \([^()\s]*\))?", "{host}", detail)


# What is written of them


def _blocks(found: Sequence[Group], width: int | None) -> Iterator[list[list[Line]]]:
    """Give the lines of each group's block, each in parts.

    What Reemote says is folded to *width*, where one is given; what a host wrote is left as it is.
    """
    usual: list[Line] = []
    """What most hosts answered; nothing where each answered something else."""
    for number, group in enumerate(found):
        lines = _lines(group, width)
        if number == 0 and len(group.hosts) > 1 and group.state != "failed":
            usual = lines
        elif number <= OUTLIERS and group.state != "failed" and (differing := difference(usual, lines)):
            lines = [(f"differs from {visible(fold(found[0].hosts))}:", "italic"), *differing]
        yield [_headline(group), *([line] for line in [*lines, *_step_diffs(group)])]


def _headline(group: Group) -> list[Line]:
    number = len(group.hosts)
    line = [(visible(fold(group.hosts)), "bold")]
    if number > 1:
        line.append((f" ({number} hosts)", ""))
    line.append((f"  {group.state}", STYLES[group.state]))
    if group.state == "failed":
        line.append((f"  {visible(str(group.response['value']))}", ""))
    elif how := ending(group.response["value"]):
        line.append((f"  {how}", "red"))
    return line


def _lines(group: Group, width: int | None) -> list[Line]:
    """Give what there is to read of the hosts' answer."""
    response = group.response
    if not response["error"]:
        return list(_of_value(response["value"]))
    lines = [(line, "") for line in _wrapped(visible(group.detail), width)]
    if response.outcome == "unknown":
        lines.append(("It may have taken effect on the host.", "yellow"))
    return [*lines, *_of_value(response.completed)]


def _wrapped(text: str, width: int | None) -> Iterator[str]:
    for line in text.split("\n"):
        if width is None:
            yield line
        else:
            # A name or a path is left whole, to be copied.
            yield from textwrap.wrap(line, max(width - 4, 20), break_long_words=False, break_on_hyphens=False) or [""]


def _of_value(value: Any) -> Iterator[Line]:
    """Give a value as lines; standard error comes after standard output."""
    if isinstance(value, Completed):
        for stream, style in (("stdout", ""), ("stderr", "red")):
            yield from ((line, style) for line in _split(value[stream]))
            if value.get("truncated") and (size := value.get(f"{stream}_size")):
                yield f"({stream} had {size:,} bytes: the middle is left out)", "yellow"
    elif value is not None:
        yield from ((line, "") for line in _split(value if isinstance(value, str) else as_json(value, indent=2)))


def _split(text: str) -> list[str]:
    return visible(text).removesuffix("\n").split("\n") if text else []


def _step_diffs(group: Group) -> Iterator[Line]:
    for name, diff in group.diffs:
        yield f"{visible(name)}:", "italic"
        yield from _of_diff(diff)


def _of_diff(diff: str) -> Iterator[Line]:
    looks = {"-": "red", "+": "green", "@": "cyan"}
    return ((line, looks.get(line[:1], "")) for line in _split(diff))


def _text(block: Sequence[Sequence[Line]]) -> Text:
    from rich.text import Text

    whole = Text()
    for number, parts in enumerate(block):
        whole.append("\n    " if number else "")
        for text, style in parts:
            whole.append(text, style=style)
    return whole


# Outliers


def difference(usual: Sequence[Line], other: Sequence[Line]) -> list[Line]:
    """Give *other* as a unified diff against *usual*; nothing where that is no shorter, or tells less."""
    if not (0 < len(other) <= COMPARED and 0 < len(usual) <= COMPARED):
        return []
    if (Counter(other) - Counter(usual)).total() * 2 >= len(other):
        return []  # a quick look: most of it is new
    found = list(_hunks(usual, other))
    return found if len(found) < len(other) else []


def _hunks(usual: Sequence[Line], other: Sequence[Line]) -> Iterator[Line]:
    for hunk in SequenceMatcher(None, usual, other).get_grouped_opcodes(1):
        (_, first, _, start, _), (_, _, last, _, end) = hunk[0], hunk[-1]
        yield f"@@ -{_span(first, last)} +{_span(start, end)} @@", "cyan"
        for kind, before, until, begin, finish in hunk:
            if kind == "equal":
                yield from ((f" {text}", style) for text, style in usual[before:until])
            else:
                yield from ((f"-{text}", "red") for text, _ in usual[before:until])
                yield from ((f"+{text}", "green") for text, _ in other[begin:finish])


def _span(start: int, stop: int) -> str:
    """Give lines as a unified diff does: the first one, and how many there are."""
    number = stop - start
    return f"{start + 1 if number else start}" if number == 1 else f"{start + 1 if number else start},{number}"
