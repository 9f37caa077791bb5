"""Servers for tests: in the test's own event loop, or in a process of their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2

from reemote.core.secrets import reveal
from reemote.server.serve import Server
from reemote.server.settings import Settings
from reemote.testing import Sandbox


class Served(NamedTuple):
    """A server, and a client of it."""

    server: Server
    client: httpx2.AsyncClient
    settings: Settings

    async def metric(self, line: str) -> float:
        """Give the value of a counter: the line of ``/metrics`` that begins so."""
        text = (await self.client.get("/metrics")).text
        return float(next((each.split()[-1] for each in text.splitlines() if each.startswith(line)), "0"))

    def audit(self) -> list[dict[str, Any]]:
        """Give the entries of the audit log."""
        return [json.loads(line) for line in self.settings.audit_file.read_text().splitlines()]


def write_inventory(fleet: Sandbox, directory: Path) -> Path:
    """Write the inventory of a sandbox, in a way that the server can read."""
    known_hosts = directory / "known_hosts"
    known_hosts.write_text(fleet.known_hosts)
    hosts = [
        {"connection": {name: reveal(value) for name, value in item.connection.options().items()}}
        for item in fleet.inventory(known_hosts).hosts
    ]
    file = directory / "inventory.json"
    file.write_text(json.dumps({"hosts": hosts}))
    file.chmod(0o600)
    return file


@contextlib.asynccontextmanager
async def serving(directory: Path, **options: Any) -> AsyncIterator[Served]:
    """Serve over HTTP on a free port, in this event loop."""
    defaults = {"audit_file": directory / "audit.jsonl", "token_file": directory / "token", "port": 0}
    settings = Settings(**{"inventory": directory / "inventory.json", **defaults, **options})
    url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    server = Server(settings, url.set_result)
    task = asyncio.create_task(server.listen())
    either: set[asyncio.Future[Any]] = {task, url}
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    try:
        # Nothing is encrypted, and to read all certificate authorities would take longer than many a test.
        options = {"timeout": 30, "trust_env": False, "verify": False}
        async with httpx2.AsyncClient(base_url=url.result(), **options) as client:
            yield Served(server, client, settings)
    finally:
        server.stop()
        await task
