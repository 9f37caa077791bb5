"""What the benchmarks of speed say: tables, aims that are met or missed, and the same as JSON."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .sidebyside import BASELINE, Figures, Runs, medians

WIDTH = 28
"""Columns of the names in the tables."""

LIBRARIES = ("asyncssh", "cryptography", "pydantic", "parallel-ssh", "fabric", "paramiko", "pyinfra", "ansible-core")


class Column(NamedTuple):
    """A figure in a table."""

    key: str
    title: str
    digits: int = 3
    ratio: bool = False
    """Whether it is shown in those of the baseline, too."""


COLUMNS = (
    Column("wall", "program s", ratio=True),
    Column("cpu", "cpu s", ratio=True),
    Column("work_wall", "work s", ratio=True),
    Column("work_cpu", "cpu s", ratio=True),
    Column("peak", "MiB", 1),
)


class Aim(NamedTuple):
    """What we want to reach."""

    name: str
    figure: Callable[[Figures], float | None]
    """The figure, or ``None`` where what it needs was not measured."""
    most: float
    unit: str = ""

    def verdict(self, figures: Figures) -> dict[str, Any]:
        figure = self.figure(figures)
        met = None if figure is None else figure <= self.most
        return {"aim": self.name, "most": self.most, "unit": self.unit, "figure": figure, "met": met}


class Result(NamedTuple):
    """What a benchmark has found, with what is needed to say it."""

    name: str
    title: str
    parameters: dict[str, Any]
    runs: Runs
    columns: Sequence[Column]
    aims: Sequence[Aim]
    baseline: str = BASELINE

    @property
    def figures(self) -> Figures:
        return medians(self.runs)

    @property
    def verdicts(self) -> list[dict[str, Any]]:
        figures = self.figures
        return [aim.verdict(figures) for aim in self.aims]


# Aims


def against(key: str, client: str, other: str = BASELINE) -> Callable[[Figures], float | None]:
    """Make the figure of a client in those of another."""

    def figure(figures: Figures) -> float | None:
        if client not in figures or other not in figures:
            return None
        return figures[client][key] / figures[other][key]

    return figure


def against_fastest(key: str, client: str) -> Callable[[Figures], float | None]:
    """Make the figure of a client in those of the best of all that are not ours."""

    def figure(figures: Figures) -> float | None:
        others = [each[key] for name, each in figures.items() if not name.startswith("reemote")]
        return figures[client][key] / min(others) if client in figures and others else None

    return figure


def figure_of(key: str, client: str) -> Callable[[Figures], float | None]:
    """Make the figure of a client."""
    return lambda figures: figures[client][key] if client in figures else None


# Tables


def cells(result: Result) -> list[list[str]]:
    """Give the table, its head first."""
    figures = result.figures
    base = figures.get(result.baseline)
    rows = [["", *(title for each in result.columns for title in [each.title, *["x"] * each.ratio])]]
    for name, figure in figures.items():
        row = [name]
        for column in result.columns:
            row.append(f"{figure[column.key]:.{column.digits}f}")
            if column.ratio:
                row.append(f"{figure[column.key] / base[column.key]:.2f}" if base and base[column.key] else "-")
        rows.append(row)
    return rows


def plain_table(result: Result) -> str:
    head, *rows = cells(result)
    widths = [max(map(len, column)) + 2 for column in zip(head, *rows, strict=True)]
    lines = [
        "".join(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)) for row in (head, *rows)
    ]
    width = max(WIDTH, widths[0])
    return "\n".join(row[0].ljust(width) + line for row, line in zip((head, *rows), lines, strict=True))


def markdown_table(result: Result) -> str:
    head, *rows = cells(result)
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def verdict_lines(result: Result) -> list[str]:
    words = {True: "met", False: "missed", None: "not measured"}
    lines = []
    for each in result.verdicts:
        figure = "" if each["figure"] is None else f"{each['figure']:.2f}, "
        unit = f" {each['unit']}" if each["unit"] else ""
        lines.append(f"{words[each['met']]}: {each['aim']}: {figure}aim {each['most']:g}{unit}")
    return lines


# All of it


def machine() -> dict[str, Any]:
    """Describe this machine, without what tells who it is."""
    return {
        "system": platform.system(),
        "release": platform.release().partition("-")[0],
        "architecture": platform.machine(),
        "processors": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "load": [round(each, 1) for each in os.getloadavg()],
    }


def versions() -> dict[str, str]:
    said = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=True).stderr
    found = {
        "reemote": importlib.metadata.version("reemote"),
        platform.python_implementation(): platform.python_version(),
        "OpenSSH": said.partition("_")[2].split()[0].rstrip(","),
    }
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def document(results: Sequence[Result], facts: dict[str, Any]) -> dict[str, Any]:
    """Give all of it for JSON."""
    return {
        "machine": facts,
        "versions": versions(),
        "benchmarks": [
            {
                "name": each.name,
                "title": each.title,
                "parameters": each.parameters,
                "medians": each.figures,
                "runs": each.runs,
                "aims": each.verdicts,
            }
            for each in results
        ],
    }


Sizes = Mapping[str, tuple[int, str]]
"""Options that are numbers: the default of each, and what it is."""


def arguments(description: str, sizes: Sizes, *, rounds: int) -> argparse.ArgumentParser:
    """Make the parser of a benchmark."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=positive, default=rounds, help=f"runs of each, {rounds} unless told")
    for name, (default, meaning) in sizes.items():
        parser.add_argument(f"--{name}", type=positive, default=default, help=f"{meaning}, {default} unless told")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to a file")
    parser.add_argument("--page", type=Path, metavar="FILE", help="put the tables into a page that has places for them")
    parser.add_argument("--gate", action="store_true", help="end with 1 where an aim is missed")
    return parser


def positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def header(facts: dict[str, Any]) -> str:
    lines = [
        ", ".join(f"{name} {version}" for name, version in versions().items()) + ";",
        f"{facts['system']} {facts['release']}, {facts['architecture']},",
        f"{facts['processors']} processors for clients and server together.",
    ]
    return textwrap.fill(" ".join(lines), 119, break_on_hyphens=False)


def heading(result: Result, facts: dict[str, Any]) -> str:
    rounds = result.parameters["rounds"]
    runs = f"medians of {rounds} runs" if rounds > 1 else "one run"
    return f"{result.title}; {runs}, load {facts['load'][0]:g} before"


def section(result: Result, *, markdown: bool) -> str:
    """Give the table, and below it which aims are met."""
    table = markdown_table(result) if markdown else plain_table(result)
    lines = [f"- {line}" if markdown else line for line in verdict_lines(result)]
    return "\n".join([table, "", *lines]) if lines else table


def put(page: str, name: str, text: str) -> str:
    """Put a text into a page, between the comments that name it.

    Raises:
        ValueError: The page has no such place.
    """
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, found, rest = page.partition(start)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise ValueError(f"the page has no place {start}")
    return f"{before}{start}\n\n{text}\n\n{end}{after}"


def tell(results: Sequence[Result], given: argparse.Namespace, facts: dict[str, Any]) -> int:
    """Print and write what was found; answer with the exit status."""
    print(header(facts))
    for result in results:
        print(f"\n{heading(result, facts)}\n\n{section(result, markdown=given.markdown)}")
    sys.stdout.flush()
    if given.json is not None:
        given.json.write_text(json.dumps(document(results, facts), indent=2) + "\n")
    if given.page is not None:
        page = put(given.page.read_text(), "machine", header(facts))
        for result in results:
            page = put(page, result.name, f"{heading(result, facts)}:\n\n{section(result, markdown=True)}")
        given.page.write_text(page)
    missed = any(each["met"] is False for result in results for each in result.verdicts)
    return 1 if missed and given.gate else 0
