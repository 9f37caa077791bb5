"""What a step costs: the engine's own time, without a network.

Prints microseconds for each no-op step on one fake host, of wall time and of CPU time: medians of
several runs that take turns, so that a busy moment of the machine strikes all alike. The first two
rows are for comparison: a loop over a bare asynchronous generator, and the construction of the
operation that each step is.

    ./dev bench engine [--steps 10000] [--rounds 7]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from reemote import Effect, Local, Steps
from reemote.core.host import Host
from reemote.execute import execute
from reemote.testing import Fake

AIM = 10.0
"""Microseconds for each step."""


class Nothing(Local[None]):
    """Do nothing: what remains is the engine."""

    effect = Effect.READS

    async def perform(self, host: Host) -> None:
        return None


class Yielding:
    def __init__(self, steps: int) -> None:
        self.steps = steps

    async def execute(self) -> Steps:
        for _ in range(self.steps):
            yield Nothing()


class Awaiting(Yielding):
    async def execute(self) -> None:  # type: ignore[override]
        for _ in range(self.steps):
            await Nothing()


class Listing(Yielding):
    async def execute(self) -> Steps:
        yield [Nothing() for _ in range(self.steps)]


async def bare_generator(steps: int) -> None:
    async def numbers() -> AsyncGenerator[int, Any]:
        for number in range(steps):
            yield number

    generator = numbers()
    await anext(generator)
    try:
        while True:
            await generator.asend(None)
    except StopAsyncIteration:
        pass


async def construction(steps: int) -> None:
    for _ in range(steps):
        Nothing()


def deployment(kind: type[Yielding]) -> Callable[[int], Awaitable[Any]]:
    fake = Fake("host")

    async def run(steps: int) -> None:
        await execute(lambda: kind(steps), inventory=fake.inventory, pool=fake)

    return run


CASES: dict[str, Callable[[int], Awaitable[Any]]] = {
    "bare async generator": bare_generator,
    "pydantic construction": construction,
    "yield": deployment(Yielding),
    "await": deployment(Awaiting),
    "one list of all": deployment(Listing),
}


async def measure(steps: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Give the median microseconds a step, of wall time and of CPU time."""
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    for number in range(rounds + 1):
        for name, case in CASES.items():
            gc.collect()
            wall, processor = time.perf_counter(), time.process_time()
            await case(steps)
            times = (time.perf_counter() - wall, time.process_time() - processor)
            if number:  # the first round warms up
                seen[name].append((times[0] / steps * 1e6, times[1] / steps * 1e6))
    return {
        name: (statistics.median(wall for wall, _ in times), statistics.median(cpu for _, cpu in times))
        for name, times in seen.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what a step costs in the engine.")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    results = asyncio.run(measure(arguments.steps, arguments.rounds))
    generator, construct = results["bare async generator"][1], results["pydantic construction"][1]
    print(f"{arguments.steps} steps on one host, median of {arguments.rounds} rounds, microseconds a step\n")
    print(f"{'':24}{'wall':>8}{'cpu':>8}{'x generator':>14}{'x pydantic':>13}")
    for name, (wall, cpu) in results.items():
        print(f"{name:24}{wall:8.2f}{cpu:8.2f}{cpu / generator:14.1f}{cpu / construct:13.1f}")
    print()
    for name in ("yield", "await", "one list of all"):
        verdict = "met" if results[name][1] <= AIM else "missed"
        print(f"Aim of {AIM:g} microseconds of CPU time, {name}: {verdict}")


if __name__ == "__main__":
    main()
