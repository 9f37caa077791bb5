"""Import what a program needs, in a Python that has loaded nothing: its time, its modules, its memory.

./dev bench import [--rounds 20] [--json FILE] [--markdown] [--gate]
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.report import Aim, Column, Result, against, arguments, machine, tell
from bench.sidebyside import Rejected, Run, Runs, installed, wait

PROGRAM = "reemote, with all for a deployment"
LIBRARIES = "asyncssh, pydantic"
STATEMENTS = {
    "nothing": ("", "pass"),
    "reemote": ("", "import reemote"),
    PROGRAM: ("", "from reemote.execute import execute; from reemote.host import Shell"),
    LIBRARIES: ("", "import asyncssh, pydantic"),
    "parallel-ssh": ("parallel-ssh", "from pssh.clients import ParallelSSHClient"),
    "Fabric": ("fabric", "from fabric import ThreadingGroup"),
    "pyinfra": ("pyinfra", "import pyinfra.api.connect, pyinfra.api.operations, pyinfra.operations.server"),
}
"""What is imported, and the distribution that it needs."""

LOOK = """
import sys
print(len(sys.modules))
with open("/proc/self/status") as lines:
    print(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
"""
COLUMNS = (
    Column("wall", "s", ratio=True),
    Column("cpu", "cpu s", ratio=True),
    Column("modules", "modules", 0),
    Column("peak", "MiB", 1),
)
AIMS = (
    Aim("processors, import reemote", against("cpu", "reemote", LIBRARIES), 1.1),
    Aim("processors, with all for a deployment", against("cpu", PROGRAM, LIBRARIES), 1.1),
)


def run(statement: str) -> Run:
    """Run it in a Python of its own.

    Raises:
        Rejected: It failed.
    """
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", statement + LOOK], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.read().split()
        state, cpu = wait(process)
    if state or len(said) != 2:
        raise Rejected(f"{statement}: ended with {state}")
    return {"wall": time.perf_counter() - start, "cpu": cpu, "modules": int(said[0]), "peak": int(said[1]) / 1024}


def measure(statements: Mapping[str, str], rounds: int) -> Runs:
    """Let them take turns; the first round, in which files are read from the disk, does not count."""
    found = [{name: run(statement) for name, statement in statements.items()} for _ in range(rounds + 1)]
    return {name: [each[name] for each in found[1:]] for name in statements}


def main(argv: Sequence[str] | None = None) -> int:
    given = arguments("Measure imports.", {}, rounds=20).parse_args(argv)
    facts = machine()
    statements = {name: text for name, (needs, text) in STATEMENTS.items() if not needs or installed(needs)}
    for name in set(STATEMENTS) - set(statements):
        print(f"{name} is not installed, so it has no row.")
    runs = measure(statements, given.rounds)
    return tell([Result("import", "Imports", {"rounds": given.rounds}, runs, COLUMNS, AIMS, LIBRARIES)], given, facts)


if __name__ == "__main__":
    sys.exit(main())
