"""The progress of transfers on a terminal: a bar for each host, as many as there is room for."""

from __future__ import annotations

import posixpath
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.filesize import decimal, pick_unit_and_suffix
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..core.files import shown
from ..core.response import Response
from .output import one_line

A_SECOND = 10
"""How often the screen is drawn in a second."""

STYLES = {"waiting": "dim", "done": "green", "unchanged": "", "failed": "bold red", "interrupted": "yellow"}
"""The states of a host besides running, and how each looks."""

FIRST = {"running": 0, "failed": 1}
"""Which hosts are shown where there is no room for all, before the others."""

NARROW = 60
"""Columns below which a terminal has room for names and sizes only."""

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


class Row:
    """What is known of the transfer of one host."""

    def __init__(self, host: str) -> None:
        self.name = one_line(host)
        self.state = "waiting"
        self.failure = ""
        self.file = b""
        """The file that moved last."""
        self.done = self.total = 0
        self.seconds = 0.0
        self._files: dict[tuple[bytes, bytes], tuple[int, int]] = {}
        self._rate = _Rate()
        self._began = 0.0

    def begin(self) -> None:
        """Take note that the host has its turn."""
        self.state = "running"
        self._began = time.monotonic()

    def progress(self, source: bytes, target: bytes, done: int, total: int) -> None:
        """Add up the progress of the single files; how many will follow is not known."""
        done_before, total_before = self._files.pop((source, target), (0, 0))
        self._files[source, target] = done, total
        if len(self._files) > REMEMBERED:
            del self._files[next(iter(self._files))]
        self.done += done - done_before
        self.total += total - total_before
        self.file = source

    def end(self, response: Response[Any]) -> None:
        """Take note of how it ended."""
        if self.is_running:
            self.seconds = time.monotonic() - self._began
        self.state = "done" if response["changed"] else "unchanged"
        if response["error"]:
            self.state, self.failure = "failed", one_line(str(response["value"]))

    @property
    def is_running(self) -> bool:
        """Whether the transfer is under way."""
        return self.state == "running"

    @property
    def label(self) -> str:
        """What to read at the end of the line."""
        if self.is_running:
            return one_line(shown(posixpath.basename(self.file))) or "working"
        return f"{self.state} {self.failure}".rstrip()

    def bar(self) -> ProgressBar:
        """Give the bar, full where nothing had to be copied."""
        completed = self.done if self.total else 1 if self.state in ("done", "unchanged") else 0
        bar = ProgressBar(total=self.total or 1, completed=completed, finished_style=STYLES["done"])
        if self.state in ("failed", "interrupted"):
            bar.complete_style = bar.finished_style = STYLES[self.state]
        return bar

    def speed(self) -> str:
        """Give the bytes a second: of late, or at the end on the whole."""
        if self.is_running:
            return _per_second(self._rate.at(self.done)) if self.done else ""
        return _per_second(self.done / self.seconds) if self.seconds and self.done else ""


class Screen:
    """The lines of all hosts on a terminal, for as long as the context lasts."""

    def __init__(self, hosts: Iterable[str], console: Console) -> None:
        self.rows = {host: Row(host) for host in hosts}
        self._console = console
        self._rate = _Rate()
        self._is_over = False
        self._live = Live(
            console=console,
            get_renderable=self.drawn,
            refresh_per_second=A_SECOND,
            redirect_stdout=False,  # nothing is written there meanwhile
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over = True
        for row in self.rows.values():
            if row.state in ("waiting", "running"):
                row.state = "interrupted"
        self._live.stop()

    def finish(self, responses: Iterable[Response[Any]]) -> None:
        """Take note of how the hosts ended of which nothing is known so far."""
        for response in responses:
            row = self.rows[response["host"]]
            if row.state in ("waiting", "running"):
                row.end(response)

    def drawn(self) -> RenderableType:
        """Draw the lines; where there is no room for all, those that move, and one for all hosts."""
        rows = list(self.rows.values())
        room = self._console.height - 2  # the line for all hosts, and the one on which the cursor rests
        if len(rows) <= room:
            return self._table(rows)
        if self._is_over:
            return self._overall(rows)
        order = sorted(range(len(rows)), key=lambda number: (FIRST.get(rows[number].state, len(FIRST)), number))
        return Group(self._table([rows[number] for number in sorted(order[: max(room, 0)])]), self._overall(rows))

    def _table(self, rows: Sequence[Row]) -> Table:
        # The terminal shows Ctrl-C as ^C, which must not move the cursor to the next line.
        table = Table.grid(padding=(0, 1), expand=True)
        table.width = max(self._console.width - 3, 1)
        quarter = max(self._console.width // 4, 8)
        name = min(max(cell_len(row.name) for row in rows), quarter) if rows else 0
        ended = [cell_len(row.label) for row in rows if not row.is_running]
        label = min(max([quarter, *ended]), 2 * quarter)  # a file's name does not make the bars move
        is_wide = self._console.width >= NARROW
        table.add_column(no_wrap=True, width=name)
        if is_wide:
            table.add_column(ratio=1)
        table.add_column(no_wrap=True, justify="right", min_width=15)
        if is_wide:
            table.add_column(no_wrap=True, justify="right", min_width=10)
        table.add_column(no_wrap=True, width=label)
        for row in rows:
            sizes, note = Text(_sizes(row.done, row.total)), Text(row.label, STYLES.get(row.state, "dim"))
            cells = [row.bar(), sizes, Text(row.speed()), note] if is_wide else [sizes, note]
            table.add_row(Text(row.name), *cells)
        return table

    def _overall(self, rows: Sequence[Row]) -> Text:
        numbers = Counter(row.state for row in rows)
        states = ", ".join(f"{numbers[state]} {state}" for state in ("running", *STYLES) if numbers[state])
        done = sum(row.done for row in rows)
        parts = [f"{len(rows)} hosts: {states}", _sizes(done, sum(row.total for row in rows))]
        if not self._is_over:
            parts.append(_per_second(self._rate.at(done)))
        line = Text("   ".join(part for part in parts if part), style="bold", no_wrap=True)
        line.truncate(max(self._console.width - 3, 1), overflow="ellipsis")
        return line


def _sizes(done: int, total: int) -> str:
    if not total:
        return ""
    unit, suffix = pick_unit_and_suffix(total, ["bytes", "kB", "MB", "GB", "TB", "PB"], 1000)
    digits = 0 if unit == 1 else 1
    return f"{done / unit:.{digits}f}/{total / unit:.{digits}f} {suffix}"


def _per_second(speed: float) -> str:
    return f"{decimal(int(speed))}/s"
