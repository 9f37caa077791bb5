"""What many hosts take: memory, time, and an event loop that is late.

    ./dev bench scale [--parts hold,waves,files] [--connections 1000] [--hosts 5000] [--rounds 1]
        [--json FILE] [--markdown] [--gate]

hold: connections that stand at the same time in one process, made with so many handshakes at a time.
``late`` is the event loop when it was to wake somebody up, be it that the processors were with others;
``busy`` is the most time of processors that it took in one go.
waves: hosts of which so many are connected at a time; the memory after the first 500, and how it grows.
files: more hosts than the process may have files open (``ulimit -n 256``).

A connection takes the server 5 MiB, of which 1,000 need 5 GiB.
"""

from __future__ import annotations

import argparse
import re
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.beds import Bed, addresses, bed
from bench.compare import stopped_cleanly
from bench.report import Aim, Column, Result, arguments, figure_of, machine, tell
from bench.sidebyside import Client, Job, Rejected, Runs, run_client

PARTS = ("hold", "waves", "files")
LIMITS = (25, 64, 100, 200, 1000)
USUAL = 64
"""The limit that Reemote ships with."""

OURS = Client("reemote", "hold-reemote")
THEIRS = Client("asyncssh, files read once", "hold-asyncssh")

LATE = (Column("late_p99", "late p99 ms", 0), Column("late_max", "max ms", 0), Column("busy_max", "busy ms", 0))
HOLD = (Column("work_wall", "s"), Column("work_cpu", "cpu s"), Column("each", "KiB each", 1), *LATE)
WAVES = (
    Column("work_wall", "s"),
    Column("work_cpu", "cpu s"),
    Column("at_500", "MiB at 500", 1),
    Column("growth", "KiB a host", 2),
    Column("peak", "MiB at most", 1),
    *LATE,
)
FILES = (Column("work_wall", "s"), Column("work_cpu", "cpu s"), Column("peak", "MiB", 1))


def named(client: Client, limit: int) -> str:
    return f"{client.name}, {limit} at a time"


HOLD_AIMS = (
    Aim("memory of a connection", figure_of("each", named(OURS, USUAL)), 40, "KiB"),
    Aim("the event loop is busy in one go, at most", figure_of("busy_max", named(OURS, USUAL)), 500, "ms"),
)


def hold(where: Bed, count: int, limits: Sequence[int], rounds: int) -> Result:
    """Hold connections, made with so many handshakes at a time."""
    runs: Runs = {named(client, limit): [] for limit in limits for client in (OURS, THEIRS)}
    for number in range(rounds):
        for limit in limits:
            for client in (OURS, THEIRS) if number % 2 == 0 else (THEIRS, OURS):
                job = Job("hold", addresses(count), limit=limit)
                collect(runs[named(client, limit)], where, client, job)
    parameters = {"rounds": rounds, "connections": count, "limits": list(limits)}
    title = f"{count} connections in one process, by handshakes at a time"
    return Result("scale hold", title, parameters, present(runs), HOLD, HOLD_AIMS, "")


def waves(where: Bed, count: int, limit: int, rounds: int) -> Result:
    """Run on many hosts, so many at a time."""
    runs: Runs = {named(OURS, limit): []}
    for _ in range(rounds):
        collect(runs[named(OURS, limit)], where, OURS, Job("waves", addresses(count), limit=limit))
    parameters = {"rounds": rounds, "hosts": count, "concurrency": limit}
    title = f"{count} hosts, connected in waves"
    return Result("scale waves", title, parameters, present(runs), WAVES if count > 500 else FILES, (), "")


def files(where: Bed, count: int, rounds: int) -> Result:
    """Run on more hosts than there may be files."""
    runs: Runs = {OURS.name: []}
    for _ in range(rounds):
        collect(runs[OURS.name], where, OURS, Job("few-files", addresses(count)))
    title = f"{count} hosts, with 256 files open at most"
    return Result("scale files", title, {"rounds": rounds, "hosts": count, "files": 256}, present(runs), FILES, (), "")


def collect(runs: list[Any], where: Bed, client: Client, job: Job) -> None:
    """Add a run; one that cannot be done at this size is told of."""
    try:
        runs.append(run_client(where, client, job))
    except Rejected as error:
        print(f"{client.name}, {len(job.hosts)} hosts, {job.limit or 'all'} at a time: rejected: {shortened(error)}")
    sys.stdout.flush()


def shortened(error: Exception) -> str:
    """Shorten what a program said when it failed, which may be something on each host."""
    first, *lines = str(error).splitlines()
    causes = [line.strip(" |") for line in lines if re.match(r"[ |]*[\w.]*(Error|Timeout|Lost)\b", line)]
    return "\n    ".join([first, *causes[:3]])


def present(runs: Runs) -> Runs:
    """Leave out what was rejected each time.

    Raises:
        SystemExit: That is all.
    """
    found = {name: each for name, each in runs.items() if each}
    if not found:
        raise SystemExit("bench: every run was rejected")
    return found


def some_parts(text: str) -> list[str]:
    found = text.split(",")
    if unknown := set(found) - set(PARTS):
        raise argparse.ArgumentTypeError(f"there is no part {', '.join(sorted(unknown))}")
    return found


def numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


def main(argv: Sequence[str] | None = None) -> int:
    sizes = {
        "connections": (1000, "connections at the same time"),
        "hosts": (5000, "hosts in waves"),
        "at-a-time": (100, "of these hosts at a time"),
        "few": (300, "hosts with few files"),
    }
    parser = arguments("Measure what many hosts take.", sizes, rounds=1)
    parser.add_argument("--limits", type=numbers, default=list(LIMITS), metavar="NUMBER,...", help="handshakes")
    parser.add_argument("--parts", type=some_parts, default=list(PARTS), metavar="PART,...", help=", ".join(PARTS))
    given = parser.parse_args(argv)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # for the server, too
    facts, results = machine(), list[Result]()
    with stopped_cleanly(), bed() as where:
        if "hold" in given.parts:
            results.append(hold(where, given.connections, given.limits, given.rounds))
        if "waves" in given.parts:
            results.append(waves(where, given.hosts, given.at_a_time, given.rounds))
        if "files" in given.parts:
            results.append(files(where, given.few, given.rounds))
    return tell(results, given, facts)


if __name__ == "__main__":
    sys.exit(main())
