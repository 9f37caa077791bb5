"""Runs: carry operations out for requests, within limits, and keep account of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from functools import cache
from typing import Any, get_args

from starlette.exceptions import HTTPException

from ..core import files
from ..core.errors import HostError, InventoryError, LocalFileError
from ..core.inventory import Inventory
from ..core.operation import Operation
from ..core.response import Response, Responses
from ..execute import Pool, execute
from ..transfer.local import FileRefused, LocalFiles, here
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
        self.files = LocalFiles(settings.files)
        """The files of this machine that runs may read and write."""
        self.is_stopping = False
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self._audit = Audit(settings.audit_file, required=settings.audit_required)
        self._running: set[asyncio.Task[Responses]] = set()
        metrics.watch(lambda: len(self._running), lambda: self.pool.open_connections)

    def inventory(self) -> Inventory:
        """Give the inventory.

        Raises:
            InventoryError: It cannot be read.
        """
        return self._store.inventory()

    def places(self, inventory: Inventory) -> int:
        """Give the number of hosts that can run at the same time.

        Raises:
            InventoryError: The options of a host are wrong.
        """
        return self.pool.prepare(inventory.hosts)

    async def run(
        self,
        name: str,
        operation: Operation[Any],
        timeout: float | None,
        gone: Callable[[], Awaitable[None]],
        inventory: Inventory | None = None,
    ) -> Responses:
        """Run an operation; give up, and end it on the hosts, when the client is *gone*.

        Args:
            name: What it is called in the records.
            operation: The operation.
            timeout: Seconds that it has.
            gone: Returns when nobody waits for the answer any more.
            inventory: The hosts; by default all of those that the server knows.

        Raises:
            TooManyRuns: There are as many runs as there may be.
            Stopping: The server is being stopped.
            FileRefused: It names a file that transfers keep away from.
            AuditError: The run cannot be recorded, and must be.
            InventoryError: The inventory cannot be read.
            HTTPException: The client has gone.
        """
        if self.is_stopping:
            raise Stopping
        if len(self._running) >= self._settings.most_runs:
            raise TooManyRuns
        for path in local_paths(operation):
            self.files.check(path)
        inventory = self.inventory() if inventory is None else inventory
        hosts = [item.host for item in inventory.hosts if item.is_in(operation.group)]
        self._audit.begin(name, repr(operation), hosts)
        self._metrics.run(name)
        # Each host gets an instance of its own, as from a factory in Python.
        made = execute(
            lambda: _Served(operation.model_copy(deep=True)),
            inventory,
            pool=self.pool,
            timeout=self._limit(operation, timeout),
        )
        context = copy_context()
        context.run(here.set, self.files)
        run, start = asyncio.create_task(made, context=context), time.perf_counter()
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


class _Served:
    """An operation as requests ask for it: what is wrong with its parameters is no bug, even if it shows only now."""

    def __init__(self, operation: Operation[Any]) -> None:
        self._operation = operation

    async def execute(self) -> Response:
        """Carry it out."""
        try:
            return await self._operation
        except FileRefused as error:  # since it was looked at, or in a directory
            raise LocalFileError(str(error), kind="PermissionError") from error
        except InventoryError as error:  # another host, which is named in the parameters, is not there
            raise HostError(str(error), outcome="not_started", kind="InventoryError") from error


def local_paths(operation: Operation[Any]) -> list[files.Path]:
    """Give the paths of this machine that an operation names; patterns, too, as they are."""
    values = [getattr(operation, name) for name in _local_parameters(type(operation))]
    return [
        path for value in values if value is not None and not isinstance(value, int) for path in files.listed(value)
    ]


@cache
def _local_parameters(operation: type[Operation[Any]]) -> list[str]:
    fields = operation.model_fields.items()
    return [name for name, field in fields if any(map(_is_marked, (field.annotation, *field.metadata)))]


def _is_marked(annotation: Any) -> bool:
    """Whether the mark of local paths is in an annotation, however deep."""
    return isinstance(annotation, files.Local) or any(map(_is_marked, get_args(annotation)))


async def _until(gone: Callable[[], Awaitable[None]]) -> None:
    await gone()
