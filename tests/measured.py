"""Programs that measure themselves: the memory that they take, and how long their event loops are held up.

They are processes of their own, since memory that a process once took counts for all of its life.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def answer_of(program: str, *asked: object) -> Any:
    """Run the text of a program, which finds what is *asked* by :func:`asked`, and give what it prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, json.dumps(asked)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=80,
        check=False,
    )
    assert done.stderr == ""
    return json.loads(done.stdout)


def asked() -> tuple[dict[str, Any], Any, Any]:
    """Give what the program was asked for: an inventory of the host with the options, and two things more."""
    options, *more = json.loads(sys.argv[1])
    known_hosts = Path(options["known_hosts"]).read_bytes()
    first, second = more
    return {"hosts": [{"connection": {**options, "known_hosts": known_hosts}}]}, first, second


@contextlib.asynccontextmanager
async def measuring() -> AsyncIterator[dict[str, float]]:
    """Measure ``growth``, the MiB of memory that the context took, and ``lag``, the seconds that the loop was late."""
    found = {"lag": 0.0}

    async def watch() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.01)
            found["lag"] = max(found["lag"], time.perf_counter() - before - 0.01)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    watching = asyncio.create_task(watch())
    try:
        yield found
    finally:
        watching.cancel()
        found["growth"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
