"""``reemote demo``: start two hosts in this process, show a program, and run it on them."""

from __future__ import annotations

import asyncio
import inspect
import time

import click
from rich.syntax import Syntax

from ..core.response import Responses
from ..execute import Pool, execute
from ..testing.fleet import sandbox
from . import demo_program
from .blocks import show
from .output import console, exit_code


@click.command()
def demo() -> int:
    """Run a program on two hosts that live in this process, and show what each answered."""
    return asyncio.run(_demo())


async def _demo() -> int:
    out = console()
    fleet = sandbox("server104", "server105")
    async with fleet as inventory:
        out.print("Two SSH hosts are up in this process:", style="bold")
        for server in fleet.servers.values():
            out.print(f"    {server.name} at {server.address}:{server.port}")
        out.print("\nThis program runs on both of them at the same time:\n", style="bold")
        source = inspect.getsource(demo_program).strip()
        if out.is_terminal:
            out.print(Syntax(source, "python", theme="ansi_dark", background_color="default"))
        else:
            print(source)
        out.print("\nresponses = await execute(lambda: Survey(), inventory=inventory)", style="bold")
        start = time.perf_counter()
        async with Pool() as pool:
            responses: Responses = await execute(demo_program.Survey, inventory=inventory, pool=pool)
        seconds = time.perf_counter() - start
        out.print("\nWhat each host answered:\n", style="bold")
        show(responses, "table")
        commands = sum(len(server.commands) for server in fleet.servers.values())
        connections = sum(server.connections for server in fleet.servers.values())
        out.print(f"\n{commands} commands on {connections} connections in {seconds:.2f} s.", style="bold")
        out.print("Next: reemote sandbox, which keeps such hosts up; reemote --help.")
    return exit_code(responses)
