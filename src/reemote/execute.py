"""Run a deployment on the hosts of an inventory: the front door of Reemote."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from .core.engine import Deployment, complaint
from .core.errors import Cancelled, DeploymentError, ExecutionError, Outcome
from .core.host import Host, Scope, Transport, scope
from .core.inventory import Inventory, InventoryItem
from .core.response import Response, Responses
from .ssh.pool import Pool, loop_pool

__all__ = ["Pool", "execute", "run"]

InventorySource = Inventory | Mapping[str, Any] | str | os.PathLike[str]


async def execute(
    factory: Callable[[], Any],
    inventory: InventorySource,
    *,
    pool: Transport | None = None,
    concurrency: int | None = None,
    strict: bool = False,
    timeout: float | None = None,
    limit: str | Sequence[str] | None = None,
) -> Responses:
    """Run a deployment on all hosts of an inventory at the same time.

    Args:
        factory: Called once for each host, before any is contacted; it returns what to run there:
            an operation (``lambda: Shell(cmd="uptime")``) or an object with an ``execute`` method.
        inventory: The hosts: an ``Inventory``, a dictionary of that shape, JSON text, or the path
            of a JSON file.
        pool: Where connections come from and stay; by default a pool that is kept with the event
            loop, so that later calls find their connections open.
        concurrency: How many hosts run at a time; all, by default.
        strict: Whether each step that fails, a non-zero exit status included, raises a
            ``HostError`` at its ``yield`` or ``await``.
        timeout: Seconds for the whole run. A host that is not done by then is cancelled: what it
            runs is ended, and its response is ``Cancelled``.
        limit: Which hosts: names of hosts and groups and globs over both, separated by commas.
            ``web,db`` are the hosts of both, ``&prod`` keeps those that are in ``prod`` too, and
            ``!web03`` leaves hosts out; see :meth:`Inventory.select` for the exact rules.

    Returns:
        The responses in inventory order, one for each host; none for a host that ran nothing
        because every step was for other groups.

    Raises:
        InventoryError: The inventory or an option in it is wrong; nothing has run.
        NoHostMatched: The limit selects no host; nothing has run.
        DeploymentError: The factory cannot be called, or returns nothing that can run.
        ExecutionError: The deployment's own code raised on some hosts. It is an
            ``ExceptionGroup`` with one exception for each; the other hosts have finished, and
            ``.responses`` has their responses.
    """
    whole = Inventory.of(inventory)
    items = whole.select(limit)
    if concurrency is not None and not (type(concurrency) is int and concurrency > 0):
        raise ValueError(f"concurrency is a number of hosts, 1 or more, not {concurrency!r}")
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout must be more than 0 seconds, not {timeout!r}")
    deployments = _make(factory, len(items))
    transport = pool if pool is not None else cast(Transport, await loop_pool())
    most = min(concurrency or len(items), transport.prepare(items)) if items else 1
    places = asyncio.Semaphore(most)
    runs = [_Run(item, step, strict=strict) for item, step in zip(items, deployments, strict=True)]
    what = Scope(whole, items)
    tasks = [asyncio.create_task(run.run(transport, what, places, concurrency)) for run in runs]
    await _wait_for(tasks, timeout)
    return _collect(runs, tasks, timeout)


def run(
    factory: Callable[[], Any],
    inventory: InventorySource,
    *,
    pool: Transport | None = None,
    concurrency: int | None = None,
    strict: bool = False,
    timeout: float | None = None,
    limit: str | Sequence[str] | None = None,
) -> Responses:
    """Run a deployment from a program that has no event loop: ``execute()``, with its arguments.

    Raises:
        RuntimeError: An event loop is running here already: ``await execute(...)`` instead.
    """
    if _loop_is_running():
        raise RuntimeError("an event loop is running here: use 'await execute(...)' instead of 'run(...)'")
    return asyncio.run(
        execute(factory, inventory, pool=pool, concurrency=concurrency, strict=strict, timeout=timeout, limit=limit)
    )


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _make(factory: Callable[[], Any], number: int) -> list[Any]:
    """Call the factory once for each host."""
    if not callable(factory):
        raise DeploymentError(
            f"the factory must be callable, to make a deployment for each host: write "
            f"'lambda: {type(factory).__name__}(...)'"
        )
    deployments = []
    for _ in range(number):
        made = factory()
        if isinstance(made, list | tuple):
            raise DeploymentError("the factory returned a list: yield it in the execute method of a class")
        if problem := complaint(made):
            raise DeploymentError(f"the factory returned {problem}")
        deployments.append(made)
    return deployments


class _Run:
    """A deployment on one host, from its turn to its response."""

    def __init__(self, item: InventoryItem, step: Any, *, strict: bool) -> None:
        self.item = item
        self.step = step
        self.strict = strict
        self.host: Host | None = None
        self.deployment: Deployment | None = None

    async def run(self, transport: Transport, what: Scope, places: asyncio.Semaphore, limit: int | None) -> Response:
        """Wait for a place and run; what the deployment's code raises names the host."""
        scope.set(what)  # the task's own context: it ends with the run
        try:
            async with places, transport.host(self.item, limit=limit) as self.host:
                self.deployment = Deployment(self.host, strict=self.strict)
                return await self.deployment.run(self.step)
        except Exception as error:
            error.add_note(f"on host {self.item.host}")
            raise

    def cancelled(self, seconds: float | None) -> Response:
        """Make the response of a host that was not done in time."""
        record = self.host.interrupted if self.host is not None else None
        state = "was not done" if self.host is not None else "had not begun"
        detail = f"the host {state} when the run's {seconds:g} s had passed" if seconds else "the run was cancelled"
        changed = self.deployment is not None and self.deployment.changed
        outcome: Outcome = "unknown" if changed or record is not None else "not_started"
        return Response.of_failure(Cancelled(detail, outcome=outcome, completed=record), self.item.host)


async def _wait_for(tasks: list[asyncio.Task[Response]], timeout: float | None) -> None:
    """Wait until all tasks are done; at a timeout, and when cancelled, end them first."""
    if not tasks:
        return
    try:
        _, pending = await asyncio.wait(tasks, timeout=timeout)
    except asyncio.CancelledError:
        await _cancel(tasks)
        raise
    await _cancel(list(pending))


async def _cancel(tasks: list[asyncio.Task[Response]]) -> None:
    """Cancel tasks and wait until they have cleaned up; a second cancellation cuts that short."""
    for task in tasks:
        task.cancel()
    try:
        if tasks:
            await asyncio.wait(tasks)
    except asyncio.CancelledError:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        raise


def _collect(runs: list[_Run], tasks: list[asyncio.Task[Response]], timeout: float | None) -> Responses:
    responses, errors = Responses(), []
    for run, task in zip(runs, tasks, strict=True):
        if task.cancelled():
            responses.append(run.cancelled(timeout))
        elif (error := task.exception()) is not None:
            if not isinstance(error, Exception):
                raise error
            errors.append(error)
        elif response := task.result():
            responses.append(response)
    if errors:
        raise ExecutionError(f"the deployment raised on {len(errors)} of {len(runs)} hosts", errors, responses)
    return responses
