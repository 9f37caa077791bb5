"""Hosts that misbehave before they speak SSH, and inventories for all kinds."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from reemote.core.response import Response
from reemote.execute import Pool, execute
from reemote.inventory import Inventory


def inventory(*connections: Mapping[str, Any]) -> Inventory:
    """An inventory of hosts with these connection options."""
    return Inventory.of({"hosts": [{"connection": dict(options)} for options in connections]})


async def first(factory: Any, *connections: Mapping[str, Any], **options: Any) -> Response[Any]:
    """Run a deployment and give the first host's response."""
    return (await execute(factory, inventory(*connections), **options))[0]


async def only(factory: Any, **connection: Any) -> Response[Any]:
    """Run a deployment on one host in a pool of its own, and give the response."""
    async with Pool() as pool:
        return await first(factory, connection, pool=pool)


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """A port that nothing listens at, and that nobody else gets."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@contextlib.contextmanager
def blackhole() -> Iterator[int]:
    """A port that does not answer: its backlog is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(2):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(listener.getsockname())
        yield listener.getsockname()[1]


@contextlib.asynccontextmanager
async def talker(*answers: bytes, close: bool = True) -> AsyncIterator[tuple[int, list[float]]]:
    """A server that says something and closes, or stays silent; gives its port and the times of its calls."""
    calls: list[float] = []
    writers: list[asyncio.StreamWriter] = []

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        calls.append(asyncio.get_running_loop().time())
        writers.append(writer)
        for answer in answers:
            writer.write(answer)
        if close:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], calls
    finally:
        server.close()
        for writer in writers:
            writer.close()
        await server.wait_closed()
