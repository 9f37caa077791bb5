"""Runs: carry operations out for requests, within limits, and keep account of them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from ..core.operation import Operation
from ..core.response import Responses
from ..execute import Pool, execute
from .audit import Audit
from .metrics import Metrics
from .settings import Settings
from .store import Store


class TooManyRuns(Exception):
    """There are as many runs as there may be at the same time."""


class Stopping(Exception):
    """The server is being stopped."""


class Runner:
    """Carries operations out on the hosts of the inventory, over connections that are kept."""

    def __init__(self, settings: Settings, store: Store, metrics: Metrics) -> None:
        self.pool = Pool()
        self.is_stopping = False
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self._audit = Audit(settings.audit_file, required=settings.audit_required)
        self._running: set[asyncio.Task[Responses]] = set()
        metrics.watch(lambda: len(self._running), lambda: self.pool.open_connections)

    async def run(
        self, name: str, operation: Operation[Any], timeout: float | None, gone: Callable[[], Awaitable[None]]
    ) -> Responses:
        """Run an operation; give up, and end it on the hosts, when the client is *gone*.

        Raises:
            TooManyRuns: There are as many runs as there may be.
            Stopping: The server is being stopped.
            AuditError: The run cannot be recorded, and must be.
            InventoryError: The inventory cannot be read.
        """
        if self.is_stopping:
            raise Stopping
        if len(self._running) >= self._settings.most_runs:
            raise TooManyRuns
        self._audit.check()
        inventory = self._store.inventory()
        self._metrics.run(name)
        limit = self._limit(operation, timeout)
        start, responses = time.perf_counter(), None
        run = asyncio.create_task(execute(lambda: operation, inventory, pool=self.pool, timeout=limit))
        self._running.add(run)
        watch = asyncio.create_task(_until(gone))
        try:
            await asyncio.wait({run, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not run.done():
                run.cancel()
            responses = await run
        except asyncio.CancelledError:
            if self.is_stopping:
                raise Stopping from None
            raise
        else:
            return responses
        finally:
            for task in (run, watch):
                task.cancel()
            await asyncio.wait({run, watch})
            self._running.discard(run)
            self._account(name, operation, responses, time.perf_counter() - start)

    def stop(self) -> None:
        """Cancel all runs: what they run on the hosts is ended."""
        self.is_stopping = True
        for run in self._running:
            run.cancel()

    async def close(self) -> None:
        """Wait for the runs that were stopped, and close all connections."""
        self.stop()
        if self._running:
            await asyncio.wait(self._running)
        await self.pool.close()

    def _limit(self, operation: Operation[Any], timeout: float | None) -> float:
        """Give the time limit of a run, which leaves an operation the time that it has for itself."""
        own = getattr(operation, "timeout", None)
        if timeout is not None:
            return timeout
        return max(self._settings.run_timeout, own + 15) if isinstance(own, int | float) else self._settings.run_timeout

    def _account(self, name: str, operation: Operation[Any], responses: Responses | None, seconds: float) -> None:
        outcomes: Counter[str] = Counter()
        for response in responses or ():
            outcomes[str(response["value"]) if response["error"] else "changed" if response["changed"] else "ok"] += 1
        for outcome, count in outcomes.items():
            for _ in range(count):
                self._metrics.host(outcome)
        if responses is None:
            outcomes["not finished"] += 1
        hosts = [response["host"] for response in responses or ()]
        self._audit.write(name, repr(operation), hosts, dict(outcomes), seconds)


async def _until(gone: Callable[[], Awaitable[None]]) -> None:
    await gone()
