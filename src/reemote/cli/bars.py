"""The progress of transfers on a terminal: a bar for each host."""

from __future__ import annotations

import posixpath
import time
from collections import deque
from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.filesize import decimal, pick_unit_and_suffix
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..core.files import shown
from .output import one_line
from .screen import A_SECOND, LOOKS, Row, Screen

REMEMBERED = 1024
"""Files of one host whose progress is known one by one; far more than are under way at a time."""


class _Rate:
    """Bytes a second, over the last five seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque(maxlen=5 * A_SECOND)

    def at(self, done: int) -> float:
        now = time.monotonic()
        self._samples.append((now, done))
        before, had = self._samples[0]
        return (done - had) / (now - before) if now > before else 0.0


class Bar(Row):
    """What is known of the transfer of one host."""

    def __init__(self, host: str) -> None:
        super().__init__(host)
        self.file = b""
        """The file that moved last."""
        self.done = self.total = 0
        self._files: dict[tuple[bytes, bytes], tuple[int, int]] = {}
        self._rate = _Rate()

    def progress(self, source: bytes, target: bytes, done: int, total: int) -> None:
        """Add up the progress of the single files; how many will follow is not known."""
        done_before, total_before = self._files.pop((source, target), (0, 0))
        self._files[source, target] = done, total
        if len(self._files) > REMEMBERED:
            del self._files[next(iter(self._files))]
        self.done += done - done_before
        self.total += total - total_before
        self.file = source

    @property
    def label(self) -> str:
        """What to read at the end of the line."""
        if self.is_at_work:
            return one_line(shown(posixpath.basename(self.file))) or self.state
        return f"{self.state} {self.failure}".rstrip()

    def bar(self) -> ProgressBar:
        """Give the bar, full where nothing had to be copied."""
        completed = self.done if self.total else 1 if self.state in ("changed", "ok") else 0
        bar = ProgressBar(total=self.total or 1, completed=completed, finished_style="green")
        if self.state in ("failed", "cancelled", "interrupted"):
            bar.complete_style = bar.finished_style = LOOKS[self.state]
        return bar

    def speed(self) -> str:
        """Give the bytes a second: of late, or at the end on the whole."""
        if self.is_at_work:
            return per_second(self._rate.at(self.done)) if self.done else ""
        return per_second(self.done / self.seconds) if self.seconds and self.done else ""


class Bars(Screen[Bar]):
    """The transfers of all hosts."""

    def __init__(self, hosts: Iterable[str], console: Console, *, dry_run: bool = False) -> None:
        self._rate = _Rate()
        super().__init__(hosts, console, Bar, dry_run=dry_run)

    def last(self, rows: Sequence[Bar], *, fits: bool) -> RenderableType:
        """Leave the bars, if there is room for all."""
        return self._table(rows) if fits else self.overall(rows)

    def overall(self, rows: Sequence[Bar]) -> Text:
        """Draw one line for all hosts: how much has been copied, and how fast it goes."""
        done = sum(row.done for row in rows)
        speed = "" if self.is_over else per_second(self._rate.at(done))
        return self.line(self.numbers(rows), sizes(done, sum(row.total for row in rows)), speed)

    def fill(self, table: Table, rows: Sequence[Bar], *, is_wide: bool) -> None:
        """Show the bar, bytes, speed, and the file; where there is little room, bytes and the file."""
        quarter = max(self.console.width // 4, 8)
        ended = [cell_len(row.label) for row in rows if not row.is_at_work]
        label = min(max([quarter, *ended]), 2 * quarter)  # a file's name does not make the bars move
        if is_wide:
            table.add_column(ratio=1)
        table.add_column(no_wrap=True, justify="right", min_width=15)
        if is_wide:
            table.add_column(no_wrap=True, justify="right", min_width=10)
        table.add_column(no_wrap=True, width=label)
        for row in rows:
            size, note = Text(sizes(row.done, row.total)), Text(row.label, LOOKS.get(row.state, "dim"))
            cells = [row.bar(), size, Text(row.speed()), note] if is_wide else [size, note]
            table.add_row(Text(row.name), *cells)


def sizes(done: int, total: int) -> str:
    """Write how much has been copied, in the unit of the whole."""
    if not total:
        return ""
    unit, suffix = pick_unit_and_suffix(total, ["bytes", "kB", "MB", "GB", "TB", "PB"], 1000)
    digits = 0 if unit == 1 else 1
    return f"{done / unit:.{digits}f}/{total / unit:.{digits}f} {suffix}"


def per_second(speed: float) -> str:
    """Write a speed."""
    return f"{decimal(int(speed))}/s"
