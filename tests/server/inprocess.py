"""The API on a fake fleet, in the test's own process, without a socket."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import httpx2

from reemote.core.inventory import InventoryItem
from reemote.server.app import App
from reemote.server.guard import Guard
from reemote.server.runner import Runner
from reemote.server.settings import Settings
from reemote.testing import Fake

TOKEN = "t" * 43


class FakePool(Fake):
    """A fake fleet in place of the server's pool of connections."""

    open_connections = 0

    async def close(self) -> None:
        """Do nothing: there are none."""


class Served(NamedTuple):
    app: App
    guard: Guard
    fake: FakePool


def settings(directory: Path, fake: Fake, **more: Any) -> Settings:
    """Give the settings of a server for the hosts of *fake*, with an inventory and a token in *directory*."""
    inventory, token = directory / "inventory.json", directory / "token"
    hosts = [item.model_dump(mode="json", exclude_unset=True) for item in fake.inventory.hosts]
    inventory.write_text(json.dumps({"hosts": hosts}))
    token.write_text(TOKEN + "\n")
    for file in (inventory, token):
        file.chmod(0o600)
    return Settings(inventory=inventory, token_file=token, audit_file=directory / "audit.jsonl", **more)


@contextlib.contextmanager
def served(directory: Path, *hosts: str | InventoryItem, **more: Any) -> Iterator[Served]:
    """Make the application; what it runs, it runs on a fake fleet."""
    fake = FakePool(*hosts)
    with mock.patch("reemote.server.runner.Pool", return_value=fake):
        app = App(settings(directory, fake, **more))
        yield Served(app, Guard(app, app.settings, app.metrics), fake)


@contextlib.asynccontextmanager
async def client(api: Served) -> AsyncIterator[httpx2.AsyncClient]:
    """Give a client that has the token."""
    api.app.runner = Runner(api.app.settings, api.app.store, api.app.metrics)
    transport = httpx2.ASGITransport(app=api.guard)
    headers = {"authorization": f"Bearer {TOKEN}"}
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as made:
        yield made
    await api.app.runner.close()
