"""``reemote sandbox``: keep SSH hosts up in this process, to try things on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import click

from ..core.response import as_json
from ..core.secrets import reveal
from ..testing.fleet import Sandbox
from ..testing.fleet import sandbox as fleet_of
from .main import Refused


@click.command()
@click.option("--hosts", type=click.IntRange(1, 250), default=3, show_default=True, help="How many hosts.")
@click.option(
    "--inventory",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("sandbox.json"),
    show_default=True,
    help="The inventory file to write; its neighbour .known_hosts has the hosts' keys.",
)
def sandbox(hosts: int, inventory: Path) -> int:
    """Keep SSH hosts up in this process, until Ctrl-C.

    Commands that are run there run on this machine, as you, in a home directory of their own.
    """
    names = [f"sandbox{number:0{len(str(hosts))}}" for number in range(1, hosts + 1)]
    asyncio.run(_keep_up(fleet_of(*names), inventory))
    return 0


async def _keep_up(fleet: Sandbox, inventory: Path) -> None:
    known_hosts = inventory.with_suffix(".known_hosts")
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with fleet:
        with _file(inventory, inventory_text(fleet, known_hosts.resolve())), _file(known_hosts, fleet.known_hosts):
            names = list(fleet.servers)
            click.echo(f"{len(names)} host{'s' if len(names) > 1 else ''}: {', '.join(names)}")
            click.echo(f"Inventory: {inventory}")
            click.echo(f"Use it from another terminal:  reemote run FILE.py -i {shlex.quote(str(inventory))}")
            click.echo("Stop with Ctrl-C; the files and the hosts' home directories are removed then.")
            await stop.wait()
    click.echo("Stopped.")


def inventory_text(fleet: Sandbox, known_hosts: Path) -> str:
    """Write the inventory of a sandbox as JSON, with the password of its user in the clear."""
    items = []
    for item in fleet.inventory(known_hosts).hosts:
        options = {name: reveal(value) for name, value in item.connection.options().items()}
        items.append({"connection": options, "groups": item.groups})
    return as_json({"hosts": items}, indent=4) + "\n"


@contextlib.contextmanager
def _file(path: Path, text: str) -> Iterator[None]:
    """Hold a file that only its owner may read, for the time of the context; never replace one."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise Refused(
            f"{path} exists: another sandbox may be using it. Remove it, or name another with --inventory"
        ) from None
    except OSError as error:
        raise Refused(f"{path} cannot be written: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        yield
    finally:
        path.unlink(missing_ok=True)
