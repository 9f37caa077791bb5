"""Run commands in sequence on one host that is far away: what counts is how often one waits for it.

    ./dev bench rtt [--commands 20] [--delay 25] [--rounds 5] [--slow] [--json FILE] [--markdown] [--gate]

The host is behind a proxy that holds back what it hears, in each direction, and limits no bandwidth.
The connections stand when the clock of the work starts.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


from bench.compare import compare, parser
from bench.report import Aim, against
from bench.sidebyside import Job

AIMS = (
    Aim("time of the work", against("work_wall", "reemote"), 1.02),
    Aim("time of the work, through the runner", against("work_wall", "reemote, runner"), 0.5),
)


def main(argv: Sequence[str] | None = None) -> int:
    sizes = {"commands": (20, "commands"), "delay": (25, "milliseconds in each direction")}
    given = parser("Measure commands on a host that is far away.", sizes, rounds=3).parse_args(argv)
    title = f"Far away: {given.commands} commands in sequence on one host, {2 * given.delay} ms there and back"
    # The proxy listens at one address.
    return compare("rtt", title, Job("warm", ["127.0.0.1"], given.commands), given, AIMS, delay=given.delay / 1000)


if __name__ == "__main__":
    sys.exit(main())
