"""Connect to many hosts at once and run one command on each: a program that starts, asks and ends.

    ./dev bench cold [--hosts 100] [--rounds 5] [--slow] [--json FILE] [--markdown] [--gate]

``program`` is the whole of it, with the start of Python and its imports; ``work`` is what comes after
them. Times of processors are the client's, never the server's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


from bench.beds import addresses
from bench.compare import compare, parser
from bench.report import Aim, against, against_fastest
from bench.sidebyside import Job

AIMS = (
    Aim("time of the program", against("wall", "reemote"), 1.0),
    Aim("time of the program, against the fastest of the others", against_fastest("wall", "reemote"), 1.0),
    Aim("time of the work, against the fastest of the others", against_fastest("work_wall", "reemote"), 1.0),
    Aim("processors, program", against("cpu", "reemote"), 0.85),
    Aim("processors, work", against("work_cpu", "reemote"), 0.6),
)


def main(argv: Sequence[str] | None = None) -> int:
    given = parser("Measure one command on many hosts, connecting.", {"hosts": (100, "hosts")}).parse_args(argv)
    title = f"Cold: connect to {given.hosts} hosts at once, one command on each"
    return compare("cold", title, Job("cold", addresses(given.hosts)), given, AIMS)


if __name__ == "__main__":
    sys.exit(main())
