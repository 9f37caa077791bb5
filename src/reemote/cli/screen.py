"""What a terminal shows while hosts are at work: a line for each, as many as there is room for."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..core.events import Event, HostConnected, HostFinished, HostStarted
from ..core.response import Response
from .blocks import STYLES, state_of
from .output import ending, is_terminal, one_line

A_SECOND = 10
"""How often the screen is drawn in a second."""

LOOKS = {"waiting": "dim", **STYLES, "cancelled": "yellow", "interrupted": "yellow"}
"""The states of a host that is not at work, and how each looks."""

AT_WORK = ("connecting", "running")

FIRST = {"running": 0, "connecting": 1, "failed": 2, "cancelled": 2}
"""Which hosts are shown where there is no room for all, before the others."""

NARROW = 60
"""Columns below which a terminal has room for the most important only."""


class Row:
    """What is known of one host."""

    def __init__(self, host: str) -> None:
        self.name = one_line(host)
        self.state = "waiting"
        self.failure = ""
        """What to know of how it ended."""
        self._began = 0.0
        self._seconds = 0.0

    def begin(self) -> None:
        """Take note that the host has its turn."""
        self.state = "connecting"
        self._began = time.monotonic()

    def tell(self, event: Event) -> None:
        """Take note of what happens on the host while it is at work."""
        if isinstance(event, HostConnected) and self.is_at_work:
            self.state = "running"

    def end(self, state: str, failure: str = "") -> None:
        """Take note of how it ended."""
        self._seconds = self.seconds
        self.state, self.failure = state, one_line(failure)

    @property
    def is_at_work(self) -> bool:
        """Whether something is under way there."""
        return self.state in AT_WORK

    @property
    def seconds(self) -> float:
        """For how long it has been at work, or was."""
        return time.monotonic() - self._began if self.is_at_work else self._seconds


R = TypeVar("R", bound=Row)


class Screen(Generic[R]):
    """The lines of all hosts on a terminal, for as long as the context lasts."""

    def __init__(
        self, hosts: Iterable[str], console: Console, row: Callable[[str], R], *, dry_run: bool = False
    ) -> None:
        self.rows = {host: row(host) for host in hosts}
        self.is_over = False
        self.console = console
        self._began = time.monotonic()
        self._dry_run = dry_run
        self._live = Live(
            console=console,
            get_renderable=self.drawn,
            refresh_per_second=A_SECOND,
            redirect_stdout=is_terminal(sys.stdout),  # what a deployment prints goes above the lines
        )

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.is_over = True
        for row in self.rows.values():
            if row.state == "waiting" or row.is_at_work:
                row.end("interrupted")
        self._live.stop()

    def tell(self, event: Event) -> None:
        """Take note of an event."""
        row = self.rows.get(getattr(event, "host", ""))
        if row is None:
            return
        if isinstance(event, HostStarted):
            row.begin()
        elif isinstance(event, HostFinished):
            row.end(*self._ending(event.response, event.error))
        else:
            row.tell(event)

    def _ending(self, response: Response[Any] | None, error: Exception | None) -> tuple[str, str]:
        if response is None:  # it raised, or had nothing to run
            return ("failed", type(error).__name__) if error else ("skipped", "")
        state = state_of(response, dry_run=self._dry_run)
        if state != "failed":
            return state, ending(response["value"])
        kind = str(response["value"])
        return ("cancelled", "") if kind == "Cancelled" else (state, kind)

    # What is drawn

    def drawn(self) -> RenderableType:
        """Draw the lines; where there is no room for all, those that move, and one for all hosts."""
        rows = list(self.rows.values())
        room = self.console.height - 2  # the line for all hosts, and the one on which the cursor rests
        if self.is_over:
            return self.last(rows, fits=len(rows) <= room)
        if len(rows) == 1 and room > 0:
            return self._table(rows)
        order = sorted(range(len(rows)), key=lambda number: (FIRST.get(rows[number].state, len(FIRST)), number))
        shown = [rows[number] for number in sorted(order[: max(room, 0)])]
        return Group(self._table(shown), self.overall(rows)) if shown else self.overall(rows)

    def last(self, rows: Sequence[R], *, fits: bool) -> RenderableType:
        """Draw what stays when all is over: one line for all hosts."""
        return self.overall(rows)

    def numbers(self, rows: Sequence[R]) -> str:
        """Say how many hosts there are in each state."""
        found = Counter(row.state for row in rows)
        states = ", ".join(f"{found[state]} {state}" for state in (*AT_WORK[::-1], *LOOKS) if found[state])
        return f"{len(rows)} host{'' if len(rows) == 1 else 's'}: {states}"

    @property
    def elapsed(self) -> str:
        """Give the time since the beginning."""
        return clock(time.monotonic() - self._began)

    def overall(self, rows: Sequence[R]) -> Text:
        """Draw one line for all hosts."""
        return self.line(self.numbers(rows), self.elapsed)

    def line(self, *parts: str) -> Text:
        """Make a line that is no longer than the terminal is wide."""
        line = Text("   ".join(part for part in parts if part), style="bold", no_wrap=True)
        line.truncate(self.width, overflow="ellipsis")
        return line

    @property
    def width(self) -> int:
        """Columns to draw on: the terminal shows Ctrl-C as ^C, which must not move the cursor to the next line."""
        return max(self.console.width - 3, 1)

    def _table(self, rows: Sequence[R]) -> Table:
        table = Table.grid(padding=(0, 1), expand=True)
        table.width = self.width
        is_wide = self.console.width >= NARROW
        most = max(self.console.width // (4 if is_wide else 3), 8)
        table.add_column(no_wrap=True, width=min(max((cell_len(row.name) for row in rows), default=0), most))
        self.fill(table, rows, is_wide=is_wide)
        return table

    def fill(self, table: Table, rows: Sequence[R], *, is_wide: bool) -> None:
        """Add the other columns, and a row for each host."""
        raise NotImplementedError


def clock(seconds: float) -> str:
    """Write a time to be read at a glance."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
