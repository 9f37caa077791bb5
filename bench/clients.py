"""The clients that are measured side by side, each run in a process of its own.

``python -m bench.clients NAME`` reads what is to be done from its input (see ``Spec``), does it with
that client, and writes what it took and what it heard to a file. What a client needs is imported
where it is used, so that no client pays for another; and nothing else is, beyond what Python has
loaded by then anyway.

A task is a function that is given what is to be done and a clock: what it does within ``with clock``
is the work. It answers with what each host has said, command by command.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Self

if TYPE_CHECKING:
    import asyncssh

    from reemote import Inventory, Responses, Steps

Heard = dict[str, list[str]]
"""What each host said to each command."""

CONNECTED = "connected"
"""What a command says that is run before the clock starts."""


class Spec(NamedTuple):
    """What a client is to do."""

    task: str
    """``cold``: connect to each host for its commands. ``warm``: the clock starts when connections stand."""
    hosts: list[str]
    port: int
    username: str
    key: str
    known_hosts: str
    word: str
    """What the hosts shall say, with the number of the command: nobody else knows it."""
    commands: int
    """For each host, one after the other; all hosts at the same time."""
    repeat: int
    """How often the connection is made, one after the other (``connect``)."""
    options: dict[str, Any]
    """More connection options, for Reemote only."""
    directory: str
    """An empty one, for what the client needs to write."""
    result: str
    """The file to write."""
    limit: int
    """How many hosts at a time, where there is a limit."""
    sample: bool
    """Whether to look how much memory programs have, in a run that is not counted."""

    @property
    def texts(self) -> list[str]:
        return [f"echo {self.word}-{number}" for number in range(self.commands)]


class Clock:
    """The time and the processors' time that the work takes; its parts are added up."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self.figures: dict[str, float] = {}
        """What else was measured."""
        self._since = 0.0, 0.0

    def __enter__(self) -> Self:
        gc.collect()
        self._since = time.perf_counter(), cpu_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall += time.perf_counter() - self._since[0]
        self.cpu += cpu_time() - self._since[1]


def cpu_time() -> float:
    """Give the seconds that this process and its children have had of the processors."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def status(name: str) -> float:
    """Give a size from proc(5) in MiB: VmHWM is the most memory since exec, VmRSS what is there now."""
    with open("/proc/self/status") as lines:  # noqa: PTH123 - pathlib takes memory and time to import
        line = next(each for each in lines if each.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024


Task = Callable[[Spec, Clock], Heard]


# Reemote


def inventory_of(spec: Spec) -> Inventory:
    from reemote import Inventory

    options = {
        "port": spec.port,
        "username": spec.username,
        "client_keys": [spec.key],
        "known_hosts": spec.known_hosts,
        **spec.options,
    }
    return Inventory.of({"hosts": [{"connection": {"host": host, **options}} for host in spec.hosts]})


def reemote_tasks() -> dict[str, Task]:
    import asyncio

    from reemote import Pool
    from reemote.execute import execute
    from reemote.host import Shell

    class Commands:
        """A deployment that keeps what its host says."""

        def __init__(self, texts: list[str], heard: Heard) -> None:
            self.texts = texts
            self.heard = heard

        async def execute(self) -> Steps:
            for text in self.texts:
                response = yield Shell(cmd=text)
                self.heard.setdefault(response.host, []).append(response.value.stdout)

    async def run(inventory: Inventory, texts: list[str], heard: Heard, pool: Pool | None = None) -> Responses:
        responses = await execute(lambda: Commands(texts, heard), inventory, pool=pool)
        responses.raise_for_errors()
        return responses

    def cold(spec: Spec, clock: Clock) -> Heard:
        heard: Heard = {}
        with clock:
            asyncio.run(run(inventory_of(spec), spec.texts, heard))
        return heard

    def warm(spec: Spec, clock: Clock) -> Heard:
        async def work() -> Heard:
            inventory, heard = inventory_of(spec), Heard()
            await run(inventory, [f"echo {CONNECTED}"], {})
            with clock:
                await run(inventory, spec.texts, heard)
            return heard

        return asyncio.run(work())

    def connect(spec: Spec, clock: Clock) -> Heard:
        async def work() -> Heard:
            inventory, heard = inventory_of(spec), Heard()
            with clock:
                for _ in range(spec.repeat):
                    async with Pool() as pool:
                        await run(inventory, spec.texts, heard, pool)
            return heard

        return asyncio.run(work())

    return {"cold": cold, "warm": warm, "connect": connect}


# asyncssh


def asyncssh_tasks() -> dict[str, Task]:
    """Use asyncssh as its documentation shows: it reads the files for each connection."""
    return tasks_with_asyncssh(lambda spec: {"known_hosts": spec.known_hosts, "client_keys": [spec.key]})


def asyncssh_once_tasks() -> dict[str, Task]:
    """Use asyncssh as who has measured it does: the files are read once."""
    import asyncssh

    return tasks_with_asyncssh(
        lambda spec: {
            "known_hosts": asyncssh.read_known_hosts(spec.known_hosts),
            "client_keys": [asyncssh.read_private_key(spec.key)],
        }
    )


def tasks_with_asyncssh(files: Callable[[Spec], dict[str, Any]]) -> dict[str, Task]:
    import asyncio

    import asyncssh

    async def run(connection: asyncssh.SSHClientConnection, texts: list[str]) -> list[str]:
        return [str((await connection.run(text, check=True)).stdout) for text in texts]

    async def connect_and_run(host: str, spec: Spec, options: dict[str, Any]) -> list[str]:
        async with asyncssh.connect(host, spec.port, username=spec.username, **options) as connection:
            return await run(connection, spec.texts)

    def cold(spec: Spec, clock: Clock) -> Heard:
        async def work() -> list[list[str]]:
            options = files(spec)
            return await asyncio.gather(*(connect_and_run(host, spec, options) for host in spec.hosts))

        with clock:
            heard = asyncio.run(work())
        return dict(zip(spec.hosts, heard, strict=True))

    def warm(spec: Spec, clock: Clock) -> Heard:
        async def work() -> Heard:
            options = {"port": spec.port, "username": spec.username, **files(spec)}
            connections = await asyncio.gather(*(asyncssh.connect(host, **options) for host in spec.hosts))
            await asyncio.gather(*(run(connection, [f"echo {CONNECTED}"]) for connection in connections))
            with clock:
                heard = await asyncio.gather(*(run(connection, spec.texts) for connection in connections))
            for connection in connections:
                connection.close()
            await asyncio.gather(*(connection.wait_closed() for connection in connections))
            return dict(zip(spec.hosts, heard, strict=True))

        return asyncio.run(work())

    def connect(spec: Spec, clock: Clock) -> Heard:
        async def work() -> list[str]:
            options, heard = files(spec), list[str]()
            with clock:
                for _ in range(spec.repeat):
                    heard += await connect_and_run(spec.hosts[0], spec, options)
            return heard

        return {spec.hosts[0]: asyncio.run(work())}

    return {"cold": cold, "warm": warm, "connect": connect}


# All of them


def of(module: str) -> Any:
    """Load one of the modules that need more of Python."""
    import importlib

    return importlib.import_module(f"bench.{module}")


CLIENTS: dict[str, Callable[[], dict[str, Task]]] = {
    "reemote": reemote_tasks,
    "asyncssh": asyncssh_tasks,
    "asyncssh-once": asyncssh_once_tasks,
    "parallel-ssh": lambda: of("peers").parallel_ssh_tasks(),
    "fabric": lambda: of("peers").fabric_tasks(),
    "pyinfra": lambda: of("peers").pyinfra_tasks(),
    "ssh": lambda: of("peers").openssh_tasks(),
    "ssh-curve25519": lambda: of("peers").openssh_tasks("-o", "KexAlgorithms=curve25519-sha256"),
    "ansible": lambda: of("peers").ansible_tasks(),
    "hold-reemote": lambda: of("holding").reemote_tasks(),
    "hold-asyncssh": lambda: of("holding").asyncssh_tasks(),
    "probe-reemote": lambda: of("probing").reemote_tasks(),
    "probe-asyncssh": lambda: of("probing").asyncssh_tasks(),
}
PROGRAMS = {"ssh", "ssh-curve25519", "ansible"}
"""Those that are not measured in this process, which only starts them."""


def main(name: str) -> None:
    spec = Spec(**json.load(sys.stdin))
    tasks, clock = CLIENTS[name](), Clock()
    heard = tasks[spec.task](spec, clock)
    programs = name in PROGRAMS
    peak = of("peers").Sampling.most if programs else status("VmHWM")
    measured = {"wall": clock.wall, "cpu": clock.cpu, "peak": peak, "programs": programs}
    with open(spec.result, "w") as file:  # noqa: PTH123
        json.dump({**measured, "figures": clock.figures, "heard": heard}, file)


if __name__ == "__main__":
    main(sys.argv[1])
