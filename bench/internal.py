"""Ask a host what operations ask for themselves, over a connection that stands, beside ``conn.run`` of asyncssh.

    ./dev bench internal [--commands 300] [--rounds 5] [--json FILE] [--markdown] [--gate]

Questions come one after the other; ``work`` is all of them together.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.beds import addresses, bed
from bench.compare import stopped_cleanly
from bench.report import COLUMNS, Aim, Result, against, arguments, machine, tell
from bench.sidebyside import BASELINE, Client, Job, measure

CLIENTS = (
    Client("reemote, command", "probe-reemote", task="command"),
    Client("reemote, question", "probe-reemote", task="question"),
    Client("reemote, script", "probe-reemote", task="script"),
    Client("reemote, file", "probe-reemote", task="file"),
    Client(BASELINE, "probe-asyncssh", task="command"),
)
AIMS = (
    Aim("time of the work, question", against("work_wall", "reemote, question"), 0.25),
    Aim("processors, work, question", against("work_cpu", "reemote, question"), 0.25),
    Aim("time of the work, script", against("work_wall", "reemote, script"), 0.5),
    Aim("time of the work, file", against("work_wall", "reemote, file"), 0.25),
    Aim("processors, work, file", against("work_cpu", "reemote, file"), 0.25),
)


def main(argv: Sequence[str] | None = None) -> int:
    given = arguments("Measure questions to a host.", {"commands": (300, "questions")}, rounds=5).parse_args(argv)
    facts, job = machine(), Job("command", addresses(1), given.commands)
    with stopped_cleanly(), bed() as where:
        runs = measure(where, CLIENTS, job, given.rounds)
    title = f"Internal: {given.commands} questions, one after the other, over one connection"
    parameters = {"rounds": given.rounds, "commands": given.commands}
    return tell([Result("internal", title, parameters, runs, COLUMNS, AIMS)], given, facts)


if __name__ == "__main__":
    sys.exit(main())
