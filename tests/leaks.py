"""What a test must not leave behind: tasks, open files, children, exceptions that nobody heard."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from reemote.ssh.pool import loop_pool


async def eventually(condition: Callable[[], object], seconds: float = 10) -> None:
    """Wait until a condition holds that nothing announces."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except FileNotFoundError:  # it went in between, or there is no /proc on this system
        return not Path("/proc/self").exists()
    return state not in "ZX"


def living(pids: Iterable[int]) -> list[int]:
    """Give those of some processes that run."""
    return [pid for pid in pids if alive(pid)]


def wait_dead(pids: Sequence[int], seconds: float = 10) -> None:
    """Wait for the end of processes."""
    deadline = time.monotonic() + seconds
    while living(pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert living(pids) == []


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


@contextlib.asynccontextmanager
async def nothing_left_behind() -> AsyncIterator[None]:
    """Fail if the context leaves tasks, open files, children or unheard exceptions behind."""
    loop = asyncio.get_running_loop()
    unheard: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: unheard.append(context))
    tasks, files = asyncio.all_tasks(), open_files()
    gc.freeze()  # only what the test makes is looked through at its end: that takes time
    try:
        yield
        own = {*tasks, asyncio.current_task()}
        try:
            await eventually(lambda: not asyncio.all_tasks() - own and open_files() <= files)
        except TimeoutError:
            pytest.fail(f"left behind: tasks {asyncio.all_tasks() - own}, {open_files() - files} open files")
        gc.collect()
    finally:
        gc.unfreeze()
    assert unheard == []
    with contextlib.suppress(ChildProcessError):
        assert os.waitpid(-1, os.WNOHANG) == (0, 0)


@pytest.fixture
async def nothing_left() -> AsyncIterator[None]:
    """Fail a test that leaves something behind, the pool of its event loop aside."""
    await loop_pool()
    async with nothing_left_behind():
        yield
        await (await loop_pool()).close()
