"""A proxy that delays: ``python -m bench.proxy HOST:PORT SECONDS`` holds back for so long what it hears.

It limits no bandwidth. It says the port that it has chosen, and ends with its input.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from typing import cast


class End(asyncio.Protocol):
    """One end of a connection through the proxy: what it hears is said by the other end, later.

    Args:
        delay: By how many seconds.
        hears_from: The time from which it hears anything: the handshake of TCP is not ours, and takes no time.
    """

    def __init__(self, delay: float, hears_from: float) -> None:
        self.other: End | None = None
        self.transport: asyncio.Transport | None = None
        self._delay = delay
        self._hears_from = hears_from
        self._loop = asyncio.get_running_loop()
        self._under_way: deque[tuple[float, bytes | None]] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._send(data)

    def eof_received(self) -> bool:
        self._send(b"")
        return True  # the other way may go on

    def connection_lost(self, _: Exception | None) -> None:
        self._send(None)

    def _send(self, data: bytes | None) -> None:
        self._under_way.append((max(self._loop.time(), self._hears_from) + self._delay, data))
        if len(self._under_way) == 1:
            self._loop.call_at(self._under_way[0][0], self._arrive)

    def _arrive(self) -> None:
        transport = self.other.transport if self.other else None
        now = self._loop.time()
        while transport is not None and self._under_way and self._under_way[0][0] <= now:
            data = self._under_way.popleft()[1]
            if data is None:
                transport.close()
            elif transport.is_closing():
                continue
            elif data:
                transport.write(data)
            else:
                transport.write_eof()
        if self._under_way:
            self._loop.call_at(max(self._under_way[0][0], now + 0.0002), self._arrive)


async def proxy(host: str, port: int, delay: float) -> None:
    """Pass connections on, and say the port first; end with the input."""
    loop = asyncio.get_running_loop()
    tasks = set[asyncio.Task[None]]()

    async def connect(near: End, far: End) -> None:
        await asyncio.sleep(2 * delay)
        await loop.create_connection(lambda: far, host, port)

    def accept() -> End:
        now = loop.time()
        # The client has its answer after a round trip; the server hears of it half a one later.
        near, far = End(delay, now + 2 * delay), End(delay, now + 3 * delay)
        near.other, far.other = far, near
        task = asyncio.create_task(connect(near, far))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return near

    server = await loop.create_server(accept, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    given_host, _, given_port = sys.argv[1].rpartition(":")
    asyncio.run(proxy(given_host, int(given_port), float(sys.argv[2])))
