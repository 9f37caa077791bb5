"""What ``bench/scale.py`` measures, in a process of its own: many connections, and many hosts in waves."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import time
from collections.abc import AsyncIterator

import asyncssh

from reemote import Inventory, Pool, Steps
from reemote.execute import execute
from reemote.host import Shell
from reemote.ssh import pool as pools

from .clients import Clock, Heard, Spec, Task, inventory_of, status

TICK = 0.01
"""Seconds between two looks whether the event loop is late."""

LOOK_EVERY = 500
"""Hosts between two looks at the memory."""

FEW_FILES = 256

PATIENT = {"connect_timeout": 120, "login_timeout": 120}
"""One server for all hosts takes long with many handshakes: here nobody is to give up."""


class Commands:
    """A deployment that keeps what its host says."""

    def __init__(self, spec: Spec, heard: Heard) -> None:
        self.spec = spec
        self.heard = heard

    async def execute(self) -> Steps:
        for text in self.spec.texts:
            response = yield Shell(cmd=text)
            self.heard.setdefault(response.host, []).append(response.value.stdout)


@contextlib.asynccontextmanager
async def lateness(figures: dict[str, float]) -> AsyncIterator[None]:
    """Measure by how many milliseconds the event loop is late when it was to wake somebody up.

    That is also late which the processors did for others meanwhile: ``busy_max`` is the most time of
    processors that this process had between two looks.
    """
    loop, late, busy = asyncio.get_running_loop(), list[float](), list[float]()

    async def tick() -> None:
        while True:
            due, cpu = loop.time() + TICK, time.process_time()
            await asyncio.sleep(TICK)
            late.append((loop.time() - due) * 1000)
            busy.append((time.process_time() - cpu) * 1000)

    ticking = asyncio.create_task(tick())
    try:
        yield
    finally:
        ticking.cancel()
    late.sort()
    figures |= {"late_max": late[-1], "late_p99": late[len(late) * 99 // 100], "busy_max": max(busy)}


def patient(spec: Spec) -> Inventory:
    return inventory_of(spec._replace(options=PATIENT | spec.options))


def memory() -> float:
    """Give the memory in MiB, without what nobody holds any more."""
    gc.collect()
    return status("VmRSS")


# Many connections at a time


def reemote_tasks() -> dict[str, Task]:
    return {
        "hold": lambda spec, clock: asyncio.run(hold(spec, clock)),
        "waves": lambda spec, clock: asyncio.run(waves(spec, clock)),
        "few-files": few_files,
    }


async def hold(spec: Spec, clock: Clock) -> Heard:
    """Connect to all hosts, and see what the connections take when they stand and nobody uses them."""
    pools.HANDSHAKES = spec.limit
    inventory, heard = patient(spec), Heard()
    async with Pool(idle=3600) as pool:
        before = memory()
        async with lateness(clock.figures):
            with clock:
                responses = await execute(lambda: Commands(spec, heard), inventory, pool=pool)
        responses.raise_for_errors()
        if pool.open_connections != len(spec.hosts):
            raise RuntimeError(f"{pool.open_connections} connections stand")
        del responses
        clock.figures["each"] = (memory() - before) * 1024 / len(spec.hosts)
    return heard


def asyncssh_tasks() -> dict[str, Task]:
    return {"hold": lambda spec, clock: asyncio.run(hold_asyncssh(spec, clock))}


async def hold_asyncssh(spec: Spec, clock: Clock) -> Heard:
    # A file that names many hosts takes asyncssh long to read, for each of them.
    login = {
        "username": spec.username,
        "known_hosts": asyncssh.read_known_hosts(spec.known_hosts),
        "client_keys": [asyncssh.read_private_key(spec.key)],
        **PATIENT,
    }
    places, heard = asyncio.Semaphore(spec.limit), Heard()

    async def connect(host: str) -> asyncssh.SSHClientConnection:
        async with places:
            connection = await asyncssh.connect(host, spec.port, **login)
        heard[host] = [str((await connection.run(text, check=True)).stdout) for text in spec.texts]
        return connection

    before = memory()
    async with lateness(clock.figures):
        with clock:
            connections = await asyncio.gather(*(connect(host) for host in spec.hosts))
    clock.figures["each"] = (memory() - before) * 1024 / len(spec.hosts)
    for connection in connections:
        connection.close()
    await asyncio.gather(*(connection.wait_closed() for connection in connections))
    return heard


# Many hosts, not all at a time


class Looking(Commands):
    """A deployment that looks at the memory after every so many hosts."""

    def __init__(self, spec: Spec, heard: Heard, seen: dict[int, float]) -> None:
        super().__init__(spec, heard)
        self.seen = seen

    async def execute(self) -> Steps:
        for text in self.spec.texts:
            response = yield Shell(cmd=text)
            self.heard.setdefault(response.host, []).append(response.value.stdout)
        if len(self.heard) % LOOK_EVERY == 0:
            self.seen[len(self.heard)] = memory()


async def waves(spec: Spec, clock: Clock) -> Heard:
    """Run on all hosts, so many at a time; connections are closed for those whose turn it is."""
    inventory, heard, seen = patient(spec), Heard(), dict[int, float]()
    async with Pool() as pool:
        seen[0] = memory()
        async with lateness(clock.figures):
            with clock:
                responses = await execute(
                    lambda: Looking(spec, heard, seen), inventory, pool=pool, concurrency=spec.limit
                )
        responses.raise_for_errors()
        clock.figures["open"] = pool.open_connections
    clock.figures |= {f"at_{hosts}": mib for hosts, mib in seen.items()}
    first, last = min(looks := set(seen) - {0} or {0}), max(looks)
    clock.figures["growth"] = (seen[last] - seen[first]) * 1024 / (last - first) if last > first else 0.0
    return heard


def few_files(spec: Spec, clock: Clock) -> Heard:
    """Run on more hosts than this process may have files."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW_FILES, FEW_FILES))
    heard: Heard = {}

    async def work() -> None:
        async with lateness(clock.figures):
            with clock:
                (await execute(lambda: Commands(spec, heard), patient(spec))).raise_for_errors()

    asyncio.run(work())
    return heard
