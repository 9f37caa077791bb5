"""Connect to one host and run one command, again and again, each time over a new connection.

    ./dev bench connect [--connections 50] [--delay 0] [--rounds 5] [--slow] [--json FILE] [--markdown] [--gate]

The figures are for all connections of a run, one after the other; ``work`` is without imports. With a
delay in milliseconds, for each direction, they show how often a client waits for the host.
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
    Aim("time of the work", against("work_wall", "reemote"), 0.45),
    Aim("processors, work", against("work_cpu", "reemote"), 0.45),
)


def main(argv: Sequence[str] | None = None) -> int:
    sizes = {
        "connections": (50, "new connections, one after the other"),
        "delay": (0, "milliseconds in each direction"),
    }
    given = parser("Measure connecting, and the first command.", sizes).parse_args(argv)
    title = f"Connect: {given.connections} connections to one host, one after the other, one command on each"
    job = Job("connect", ["127.0.0.1"], repeat=given.connections)
    return compare("connect", title, job, given, AIMS, delay=given.delay / 1000)


if __name__ == "__main__":
    sys.exit(main())
