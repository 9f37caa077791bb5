"""Run programs that name their hosts, on other hosts of the same names.

The programs of the tutorial and the examples are run unchanged. What changes is the inventory on its way to
``execute()``: of each host the connection options are replaced by those of the host of the same name in an
inventory file. Started as a program itself, this module runs another one so::

    python tests/programs.py INVENTORY.json PROGRAM.py [ARGUMENT...]
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import runpy
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import reemote.execute
from reemote.core.inventory import Connection, Inventory, InventoryItem
from reemote.core.response import as_json
from reemote.core.secrets import reveal
from reemote.testing import Sandbox

ROOT = Path(__file__).resolve().parent.parent


def run_program(
    path: str | Path, *arguments: str, inventory_file: Path, timeout: float = 30, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, on the hosts of *inventory_file*.

    Warnings are errors: what is not closed or awaited shows on standard error. Not in development
    mode, in which asyncio also tells of each moment that a busy machine was slow.
    """
    command = [sys.executable, "-W", "error", __file__, str(inventory_file), str(path), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, check=False, env={**os.environ, **environment}
    )


def options_of(hosts: Inventory) -> dict[str, dict[str, Any]]:
    """Give the connection options of each host."""
    return {item.host: item.connection.options() for item in hosts.hosts}


@contextlib.contextmanager
def elsewhere(options: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """Let each ``execute()`` in this process contact its hosts with these *options*."""
    original = reemote.execute.execute

    def move(item: InventoryItem) -> InventoryItem:
        # A name that is not there is a mistake in the test: KeyError.
        connection = Connection.model_validate({**item.connection.options(), **options[item.host]})
        return item.model_copy(update={"connection": connection})

    async def execute(factory: Callable[[], Any], inventory: Any, **keywords: Any) -> Any:
        moved = Inventory(hosts=[move(item) for item in Inventory.of(inventory).hosts])
        return await original(factory, moved, **keywords)

    reemote.execute.execute = execute
    try:
        yield
    finally:
        reemote.execute.execute = original


@contextlib.contextmanager
def nothing_listens() -> Iterator[int]:
    """Give a port where nothing listens, and that nobody else can take meanwhile."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


class Fleet:
    """Sandbox hosts in a thread, for tests that run programs and wait for them."""

    def __init__(self, *names: str) -> None:
        self.sandbox = Sandbox(*names)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fleet")

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self.sandbox.__aenter__(), self._loop).result(10)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            asyncio.run_coroutine_threadsafe(self.sandbox.__aexit__(None, None, None), self._loop).result(20)
        finally:
            self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def home(self, name: str) -> Path:
        """Where the commands of a host start."""
        return self.sandbox[name].home

    def write(self, directory: Path, *down: tuple[str, int], groups: dict[str, list[str]] | None = None) -> Path:
        """Write the inventory to a file in *directory*.

        Args:
            directory: Where the file and its known_hosts go.
            down: Hosts and ports where nothing listens; a host of the fleet goes there instead.
            groups: The groups of the hosts that are in any.
        """
        known_hosts = directory / "known_hosts"
        known_hosts.write_text(self.sandbox.known_hosts)
        hosts = {
            item.host: {name: reveal(value) for name, value in item.connection.options().items()}
            for item in self.sandbox.inventory(known_hosts).hosts
        }
        for name, port in down:
            default = {"host": name, "username": "user", "password": "password", "known_hosts": str(known_hosts)}
            hosts[name] = {**default, "address": "127.0.0.1", "port": port}
        file = directory / "inventory.json"
        data = [{"connection": options, "groups": (groups or {}).get(name, [])} for name, options in hosts.items()]
        file.write_text(as_json({"hosts": data}, indent=4))
        return file


def main() -> None:
    """Run the program that the command line names."""
    _, inventory, program, *arguments = sys.argv
    sys.argv = [program, *arguments]
    sys.path[0] = str(Path(program).parent)
    with elsewhere(options_of(Inventory.load(inventory))):
        runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main()
