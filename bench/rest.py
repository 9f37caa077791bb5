"""What HTTP adds: ``host.shell`` with ``true`` on one warm host, over the REST API and in process.

Both do the same work on the same host, a real sshd where there is one, else a sandbox host, in any
case in another process; so does the server. Runs take turns, so that a busy moment of the machine
strikes all alike, and the figures are medians of them. Each client waits for its answer before it
asks again, as a script does. CPU time is for each request: that of the process that makes the SSH
sessions (the server, or this one), and that of the clients.

    ./dev bench rest [--requests 200] [--rounds 5]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from reemote.execute import Pool, execute
from reemote.host import Shell

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

AIM = 3.0
"""Milliseconds by which the median over HTTP may be above the one in process."""

Call = Callable[[], Awaitable[None]]


class Figures(NamedTuple):
    """One run: rate, milliseconds, and milliseconds of CPU time for each request."""

    rate: float
    p50: float
    p99: float
    worker: float
    client: float


@contextlib.contextmanager
def one_host(directory: Path) -> Iterator[str]:
    """Start a host in another process, write its inventory, and say what it is."""
    from tests.openssh import UserSshd, why_no_user_sshd

    if why_no_user_sshd() is None:
        with UserSshd(directory / "sshd") as sshd:
            text = json.dumps({"hosts": [{"connection": sshd.connection()}]}, default=str)
            (directory / "inventory.json").write_text(text)
            yield "a real sshd"
        return
    command = [sys.executable, "-m", "reemote", "sandbox", "--hosts", "1", "--inventory", "inventory.json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=directory) as hosts:
        assert hosts.stdout is not None
        next(line for line in hosts.stdout if line.startswith("Stop"))
        yield "a sandbox host"
        hosts.terminate()


@contextlib.contextmanager
def server(directory: Path) -> Iterator[tuple[int, int]]:
    """Start the server, and give its process id and its port."""
    options = [f"--inventory={directory / 'inventory.json'}", f"--audit={directory / 'audit'}"]
    command = [sys.executable, "-m", "reemote", "--port=0", f"--token-file={directory / 'token'}", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("Stop"):
                break
        yield process.pid, int(lines[0].rpartition(":")[2])
        process.terminate()


def cpu(pid: int) -> float:
    """Give the seconds of CPU time that a process has had (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.asynccontextmanager
async def http_client(port: int) -> AsyncIterator[Call]:
    """Open a connection; its requests cost the client as little as can be, so that the server's time shows."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = (
        f"POST /reemote/host/shell?cmd=true HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        "Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    ).encode()

    async def call() -> None:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        body = await reader.readexactly(int(length.partition(b":")[2]))
        assert head.startswith(b"HTTP/1.1 200 "), head + body
        assert b'"returncode":0' in body.replace(b" ", b""), body

    try:
        yield call
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def in_process(inventory: Path, pool: Pool) -> AsyncIterator[Call]:
    async def call() -> None:
        [response] = await execute(lambda: Shell(cmd="true"), str(inventory), pool=pool)
        assert response.value["returncode"] == 0, response

    yield call


async def run(calls: list[Call], requests: int, worker_pid: int) -> Figures:
    """Let each client make its share of the requests."""
    times: list[float] = []

    async def client(call: Call, number: int) -> None:
        for _ in range(number):
            start = time.perf_counter()
            await call()
            times.append((time.perf_counter() - start) * 1000)

    begun = time.perf_counter(), cpu(worker_pid), time.process_time()
    await asyncio.gather(*(client(call, requests // len(calls)) for call in calls))
    wall, worker, own = time.perf_counter() - begun[0], cpu(worker_pid) - begun[1], time.process_time() - begun[2]
    if worker_pid == os.getpid():
        worker, own = own, 0.0
    times.sort()
    p99 = times[min(len(times) - 1, len(times) * 99 // 100)]
    count = len(times)
    return Figures(count / wall, statistics.median(times), p99, worker / count * 1000, own / count * 1000)


async def measure(directory: Path, requests: int, rounds: int) -> dict[tuple[str, int], Figures]:
    seen: dict[tuple[str, int], list[Figures]] = {}
    async with contextlib.AsyncExitStack() as stack:
        pid, port = stack.enter_context(server(directory))
        pool = await stack.enter_async_context(Pool())
        http = [await stack.enter_async_context(http_client(port)) for _ in range(32)]
        own = [await stack.enter_async_context(in_process(directory / "inventory.json", pool)) for _ in range(32)]
        for number in range(rounds + 1):
            for clients in (1, 32):
                for name, calls, worker in (("execute()", own, os.getpid()), ("HTTP", http, pid)):
                    figures = await run(calls[:clients], requests, worker)
                    if number:  # the first round warms up
                        seen.setdefault((name, clients), []).append(figures)
    return {
        case: Figures(*(statistics.median(values) for values in zip(*each, strict=True))) for case, each in seen.items()
    }


def report(results: dict[tuple[str, int], Figures]) -> None:
    print(f"{'':24}{'req/s':>9}{'p50 ms':>9}{'p99 ms':>9}{'cpu ms':>9}{'client cpu ms':>15}")
    for clients in (1, 32):
        for name in ("execute()", "HTTP"):
            each = results[name, clients]
            label = f"{name}, {clients} client{'s' if clients > 1 else ''}"
            numbers = f"{each.rate:9.0f}{each.p50:9.2f}{each.p99:9.2f}{each.worker:9.2f}{each.client:15.2f}"
            print(f"{label:24}{numbers}")
        own, http = results["execute()", clients], results["HTTP", clients]
        ratios = f"{http.rate / own.rate:9.2f}{http.p50 / own.p50:9.2f}{http.p99 / own.p99:9.2f}"
        print(f"{'  HTTP / execute()':24}{ratios}{http.worker / own.worker:9.2f}")
    more = results["HTTP", 1].p50 - results["execute()", 1].p50
    print(f"\nAim of {AIM:g} ms more than execute() at the median, 1 client: {more:.2f} ms more: ", end="")
    print("met" if more <= AIM else "missed")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what HTTP adds to a command on a host.")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, one_host(Path(name)) as host:
        print(f"'true' on {host}, {arguments.requests} requests a run, medians of {arguments.rounds} runs\n")
        report(asyncio.run(measure(Path(name), arguments.requests, arguments.rounds)))


if __name__ == "__main__":
    main()
