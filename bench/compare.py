"""The benchmarks in which all clients do the same: cold, warm, rtt and connect differ in what that is."""

from __future__ import annotations

import argparse
import contextlib
import signal
from collections.abc import Iterator, Sequence

from .beds import bed, delayed
from .report import COLUMNS, Aim, Column, Result, Sizes, arguments, machine, tell
from .sidebyside import CLIENTS, Client, Job, Rejected, Run, available, measure

TRIPS = Column("trips", "trips each", 1)


def parser(description: str, sizes: Sizes, *, rounds: int = 5) -> argparse.ArgumentParser:
    """Make the parser of such a benchmark."""
    made = arguments(description, sizes, rounds=rounds)
    names = ", ".join(each.name for each in CLIENTS)
    made.add_argument("--slow", action="store_true", help="measure the slow ones, too")
    made.add_argument("--only", type=clients_named, metavar="CLIENT,...", help=f"of: {names}")
    return made


def clients_named(text: str) -> list[Client]:
    known = {each.name.replace(", ", " "): each for each in CLIENTS}
    names = [name.strip() for name in text.split(",")]
    if unknown := set(names) - set(known):
        raise argparse.ArgumentTypeError(f"there is no client {', '.join(sorted(unknown))}: {', '.join(known)}")
    return [known[name] for name in names]


def clients_for(given: argparse.Namespace, task: str) -> list[Client]:
    wanted = given.only or [each for each in CLIENTS if given.slow or not each.slow]
    return available([each for each in wanted if task in each.tasks])


@contextlib.contextmanager
def stopped_cleanly() -> Iterator[None]:
    """End with a word where a run is rejected; and with SIGTERM as with Ctrl-C, so that nothing is left."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except Rejected as error:
        raise SystemExit(f"bench: {error}") from None
    finally:
        signal.signal(signal.SIGTERM, before)


def with_trips(run: Run, job: Job, delay: float) -> Run:
    """Add how often the client has waited for the host, to and fro, for each answer."""
    return {**run, "trips": run["work_wall"] / job.said / (2 * delay)}


def compare(
    name: str, title: str, job: Job, given: argparse.Namespace, aims: Sequence[Aim], *, delay: float = 0.0
) -> int:
    """Let the clients do it, say what it took, and answer with the exit status."""
    facts = machine()
    clients = clients_for(given, job.task)
    with contextlib.ExitStack() as stack:
        stack.enter_context(stopped_cleanly())
        where = stack.enter_context(bed())
        if delay:
            where = stack.enter_context(delayed(where, delay))
        runs = measure(where, clients, job, given.rounds)
    columns: tuple[Column, ...] = COLUMNS
    if delay:
        runs = {each: [with_trips(run, job, delay) for run in found] for each, found in runs.items()}
        columns = (*COLUMNS[:3], TRIPS, *COLUMNS[3:])
    parameters = {
        "rounds": given.rounds,
        "hosts": len(job.hosts),
        "commands": job.commands,
        "connections": job.repeat,
        "delay": delay,
    }
    return tell([Result(name, title, parameters, runs, columns, aims)], given, facts)
