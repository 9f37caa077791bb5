"""Runs: carry operations out for requests, within limits, and keep account of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.exceptions import HTTPException

from ..core.operation import Operation
from ..core.response import Responses
from ..execute import Pool, execute
from .audit import Audit
from .metrics import Metrics
from .settings import Settings
from .store import Store

_GONE = 499
"""The status, for the log and the metrics, of a request whose client did not wait for the answer."""


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
            HTTPException: The client has gone.
        """
        if self.is_stopping:
            raise Stopping
        if len(self._running) >= self._settings.most_runs:
            raise TooManyRuns
        inventory = self._store.inventory()
        hosts = [item.host for item in inventory.hosts if item.is_in(operation.group)]
        self._audit.begin(name, repr(operation), hosts)
        self._metrics.run(name)
        # Each host gets an instance of its own, as from a factory in Python.
        made = execute(
            lambda: operation.model_copy(deep=True),
            inventory,
            pool=self.pool,
            timeout=self._limit(operation, timeout),
        )
        run, start = asyncio.create_task(made), time.perf_counter()
        self._running.add(run)
        try:
            return await self._wait(run, gone)
        finally:
            self._running.discard(run)
            self._account(name, run, time.perf_counter() - start)

    async def _wait(self, run: asyncio.Task[Responses], gone: Callable[[], Awaitable[None]]) -> Responses:
        """Wait for a run; cancelled, or when the client is *gone*, end it first."""
        watch = asyncio.create_task(_until(gone))
        try:
            await asyncio.wait({run, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not run.done():
                run.cancel()
                await asyncio.wait({run})
            return run.result()
        except asyncio.CancelledError:
            if self.is_stopping:
                raise Stopping from None
            if run.cancelled():
                raise HTTPException(_GONE, "the client has gone") from None
            raise
        finally:
            for task in (run, watch):
                task.cancel()
            await asyncio.wait({run, watch})

    def stop(self) -> None:
        """Cancel all runs: what they run on the hosts is ended."""
        self.is_stopping = True
        for run in self._running:
            run.cancel()

    async def close(self, seconds: float = 1) -> None:
        """Give the runs that were stopped some *seconds* to end, and close all connections."""
        self.stop()
        if self._running:
            await asyncio.wait(self._running, timeout=seconds)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.pool.close()

    def _limit(self, operation: Operation[Any], timeout: float | None) -> float:
        """Give the time limit of a run, which leaves an operation the time that it has for itself."""
        own = getattr(operation, "timeout", None)
        if timeout is not None:
            return timeout
        return max(self._settings.run_timeout, own + 15) if isinstance(own, int | float) else self._settings.run_timeout

    def _account(self, name: str, run: asyncio.Task[Responses], seconds: float) -> None:
        outcomes: Counter[str] = Counter()
        if not run.done() or run.cancelled():
            outcomes["cancelled"] = 1
        elif run.exception() is not None:
            outcomes["not finished"] = 1
        else:
            for response in run.result():
                failure = str(response["value"]) if response["error"] else None
                outcomes[failure or ("changed" if response["changed"] else "ok")] += 1
            self._metrics.hosts(outcomes)
        self._audit.end(name, dict(outcomes), seconds)


async def _until(gone: Callable[[], Awaitable[None]]) -> None:
    await gone()
