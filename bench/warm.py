"""Run commands in sequence on many hosts at once, over connections that stand: a deployment at work.

    ./dev bench warm [--hosts 50] [--commands 20] [--rounds 5] [--slow] [--json FILE] [--markdown] [--gate]

``work`` is the commands alone; ``program`` is all of it, with the start of Python, its imports, and
connecting. Times of processors are the client's, never the server's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


from bench.beds import addresses
from bench.compare import compare, parser
from bench.report import Aim, against
from bench.sidebyside import Job

AIMS = (
    Aim("time of the work", against("work_wall", "reemote"), 0.95),
    Aim("time of the work, against pyinfra", against("work_wall", "reemote", "pyinfra"), 0.5),
    Aim("processors, work", against("work_cpu", "reemote"), 0.65),
    Aim("time of the work, through the runner", against("work_wall", "reemote, runner"), 0.8),
    Aim("processors, work, through the runner", against("work_cpu", "reemote, runner"), 0.45),
)


def main(argv: Sequence[str] | None = None) -> int:
    sizes = {"hosts": (50, "hosts"), "commands": (20, "commands for each")}
    given = parser("Measure commands over connections that stand.", sizes).parse_args(argv)
    title = f"Warm: {given.commands} commands in sequence on each of {given.hosts} hosts at once"
    return compare("warm", title, Job("warm", addresses(given.hosts), given.commands), given, AIMS)


if __name__ == "__main__":
    sys.exit(main())
