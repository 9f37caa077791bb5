"""Those who are told of what happens during a run: for the steps of ``-v``, a dry run, the output of a single host."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TextIO

from ..core.events import Event, EventsDropped, HostFinished, OutputLine, RunFinished, StepFinished, StepStarted
from ..core.response import Completed, Response, Responses
from ..core.secrets import scrub
from .blocks import state_of
from .messages import say
from .output import ending, is_terminal, one_line, some, visible

Part = Callable[[Event], None]
"""One who is told of each event, in a thread of its own."""

SHOWN = 60
"""Characters of a command that a line about it shows, if it does not go to a terminal."""


class Watch:
    """Takes note of how a run ends, and hands its events on."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.responses: Responses[Any] = Responses()
        self.raised: list[tuple[str, Exception]] = []
        self.fault: Exception | None = None
        self._parts = parts
        self.wants_lines = any(getattr(part, "wants_lines", True) for part in parts)
        self._steps: dict[str, list[int]] = {}
        """For each host: the highest number of a step, and how many steps have ended, as far as was told."""

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
        if isinstance(event, RunFinished):
            self.responses = event.responses
        elif isinstance(event, HostFinished) and event.error is not None:
            self.raised.append((event.host, event.error))
        elif isinstance(event, StepStarted | StepFinished):
            known = self._steps.setdefault(event.host, [0, 0])
            known[0] = max(known[0], event.step)
            known[1] += isinstance(event, StepFinished)
        if self.fault is None:
            try:
                for part in self._parts:
                    part(event)
            except Exception as error:
                self.fault = error  # raised once the hosts are done, and what they answered is shown

    @property
    def missed(self) -> int:
        """How many steps nobody was told of, since too much happened at a time."""
        return sum(highest - ended for highest, ended in self._steps.values())


class Steps:
    """Says what each step did, in a line."""

    wants_lines = False

    def __init__(self, *, dry_run: bool) -> None:
        self._dry_run = dry_run
        self._names: dict[tuple[str, int], str] = {}
        """For each step that runs: its name, after those of the steps that it is part of."""
        self._made_of_others: set[tuple[str, int | None]] = set()

    def __call__(self, event: Event) -> None:
        """Take note of steps that begin, and tell of those that end."""
        if isinstance(event, StepStarted):
            above = self._names.get((event.host, event.parent), "") if event.parent not in (None, 1) else ""
            self._names[event.host, event.step] = f"{above} > {event.name}" if above else event.name
            self._made_of_others.add((event.host, event.parent))
        elif isinstance(event, StepFinished):
            step = event.host, event.step
            say(self._line(event, self._names.pop(step, event.name), is_single=step not in self._made_of_others))
            self._made_of_others.discard(step)

    def _line(self, event: StepFinished, name: str, *, is_single: bool) -> str:
        response = event.response
        state = state_of(response, dry_run=self._dry_run) if response is not None else "not done"
        value = response["value"] if response is not None else None
        if response is not None and response["error"]:
            state, value = f"failed {one_line(str(value))}", response.completed
        elif how := ending(value):
            state = f"{state}, {how}"
        line = f"{one_line(event.host)}  {one_line(name)}  {state}  {event.seconds:.2f} s"
        if is_single and isinstance(value, Completed) and value["command"]:
            line += f"  {_first_line(value['command'])}"
        return line


def _first_line(command: str) -> str:
    line, _, rest = scrub(command).strip().partition("\n")
    shown = one_line(line)
    most = max(shutil.get_terminal_size().columns // 2, SHOWN) if is_terminal(sys.stderr) else SHOWN
    return f"{shown[: most - 1]}…" if rest or len(shown) > most else shown


class Prediction:
    """Keeps what a dry run tells of its steps: how they would change texts, and which it left out."""

    wants_lines = False

    def __init__(self) -> None:
        self.diffs: dict[str, list[tuple[str, str]]] = {}
        """For each host the steps that would change a text, with the diff."""
        self.skipped: dict[str, dict[str, None]] = {}
        """For each step that was left out, the hosts."""
        self._last: dict[str, Response[Any]] = {}

    def __call__(self, event: Event) -> None:
        """Keep what a step says, once: one that is made of others may answer with the response of the last."""
        if not isinstance(event, StepFinished) or (response := event.response) is None:
            return
        if self._last.get(event.host) is not response:
            if response.diff:
                self.diffs.setdefault(event.host, []).append((event.name, response.diff))
            if response.skipped:
                self.skipped.setdefault(event.name, {})[event.host] = None
        self._last[event.host] = response

    def notes(self) -> Iterator[str]:
        """Say which steps were left out."""
        if self.skipped:
            yield "Left out, since only a real run can tell what they do:"
            yield from (f"    {one_line(name)}: {some(list(hosts))}" for name, hosts in self.skipped.items())


class Output:
    """The output of the command of a single host, as ssh(1) gives it.

    On a terminal, lines show as they come, so that they cannot drive it. Anything else gets exactly the bytes
    that the command wrote, once it has ended.
    """

    def __init__(self) -> None:
        self._streams: dict[str, TextIO | None] = {"stdout": sys.stdout, "stderr": sys.stderr}
        self._live = {name for name, stream in self._streams.items() if is_terminal(stream)}

    @property
    def is_live(self) -> bool:
        """Whether what the command writes to standard output shows as it comes."""
        return "stdout" in self._live

    def __call__(self, event: Event) -> None:
        """Show a line."""
        if isinstance(event, EventsDropped) and self._live:
            say(f"(about {event.number:,} lines came too fast to be shown here; a pipe or a file gets them all)")
        elif isinstance(event, OutputLine) and event.stream in self._live:
            stream = sys.stderr if event.stream == "stderr" else sys.stdout  # where progress shows, it is above
            with suppress(OSError):  # the terminal has gone; the exit code still tells
                stream.write(visible(event.line) + ("\n" if event.complete else ""))
                stream.flush()

    def finish(self, record: Completed | None) -> bool:
        """Write what has not been shown; answer whether that is all of it."""
        if record is None:
            return True
        for name, data in (("stdout", record.stdout_bytes), ("stderr", record.stderr_bytes)):
            stream = self._streams[name]
            if stream is None or name in self._live:
                continue
            if (buffer := getattr(stream, "buffer", None)) is None:
                stream.write(record[name])
            else:
                stream.flush()
                buffer.write(data)
                buffer.flush()
        if not record.get("truncated") or len(self._live) == len(self._streams):
            return True
        number = sum(record.get(f"{name}_size", 0) for name in self._streams)
        say(f"Of {number:,} bytes of output the middle is left out: reemote host shell --output FILE keeps all of it.")
        return False
