"""Commands and deployments on a terminal: what each host is doing, and the last line that it wrote."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..core.events import Event, OutputLine, StepStarted
from .output import one_line
from .screen import LOOKS, Row, Screen, clock

KEPT = 400
"""Characters of a line that are kept to be shown."""


class Work(Row):
    """What is known of the work of one host."""

    def __init__(self, host: str) -> None:
        super().__init__(host)
        self.step = ""
        """The step that began last, if there are several."""
        self._line = ""

    def tell(self, event: Event) -> None:
        """Take note of the step, and of what it writes."""
        super().tell(event)
        if isinstance(event, StepStarted) and event.parent is not None:
            self.step = event.name
        elif isinstance(event, OutputLine):
            # A carriage return begins the line anew: what a terminal would show is what comes last.
            last = event.line.rstrip("\r").rpartition("\r")[2][:KEPT].strip()
            self._line = last or self._line

    @property
    def note(self) -> str:
        """What to read at the end of the line."""
        return one_line(self.failure or self._line)


class Works(Screen[Work]):
    """The work of all hosts."""

    def __init__(self, hosts: Iterable[str], console: Console, *, dry_run: bool = False) -> None:
        super().__init__(hosts, console, Work, dry_run=dry_run)

    def last(self, rows: Sequence[Work], *, fits: bool) -> RenderableType:
        """Leave one line for all hosts; what a single one answers follows at once."""
        return self.overall(rows) if len(rows) > 1 else Group()

    def fill(self, table: Table, rows: Sequence[Work], *, is_wide: bool) -> None:
        """Show state, step, time and the last line; where there is little room, the state and the time."""
        steps = [Text(one_line(row.step)) for row in rows]
        longest = max((step.cell_len for step in steps), default=0)
        table.add_column(no_wrap=True, width=max((cell_len(row.state) for row in rows), default=0))
        if is_wide and longest:
            table.add_column(no_wrap=True, width=min(longest, self.console.width // 5))
        table.add_column(no_wrap=True, justify="right")
        table.add_column(no_wrap=True, ratio=1)
        for row, step in zip(rows, steps, strict=True):
            time = Text(clock(row.seconds) if row.state != "waiting" else "")
            cells = [Text(row.state, LOOKS.get(row.state, "")), time, Text(row.note if is_wide else "", "dim")]
            if is_wide and longest:
                cells.insert(1, step)
            table.add_row(Text(row.name), *cells)
