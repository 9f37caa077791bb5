"""Run a deployment on the hosts of an inventory: the front door of Reemote."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from .core.engine import Deployment, Rules, complaint
from .core.errors import Cancelled, DeploymentError, ExecutionError, Outcome
from .core.events import Emit, Event, HostFinished, HostStarted, Place, RunFinished, RunStarted, place
from .core.host import Host, Scope, Transport, scope
from .core.inventory import Inventory, InventoryItem
from .core.listening import BRIEF, Events, Listener, Telling
from .core.response import Response, Responses
from .ssh.pool import Pool, loop_pool

__all__ = ["Pool", "execute", "run", "stream"]

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
    host_timeout: float | None = None,
    step_timeout: float | None = None,
    dry_run: bool = False,
    on_event: Listener | None = None,
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
        host_timeout: Seconds for each host, from its turn on; then as with *timeout*.
        step_timeout: Seconds for each operation; one that takes longer is ended and fails with
            ``CommandTimeout``, and the deployment goes on.
        dry_run: Whether nothing is to be changed: operations that read are carried out, the others
            answer what they would do, or with ``skipped: true`` where nobody can say.
        on_event: Told of each event of the run (see :mod:`reemote.events`), one after the other: a
            coroutine function in the event loop, a plain function in a thread of its own. The hosts
            do not wait for it; events that it has no time for are dropped, see ``EventsDropped``.

    Returns:
        The responses in inventory order, one for each host; none for a host that ran nothing
        because every step was for other groups.

    Raises:
        InventoryError: The inventory or an option in it is wrong; nothing has run.
        NoHostMatched: The limit selects no host; nothing has run.
        TypeError, ValueError: An argument is wrong; nothing has run.
        DeploymentError: The factory cannot be called, or returns nothing that can run.
        ExecutionError: The deployment's own code raised on some hosts. It is an
            ``ExceptionGroup`` with one exception for each; the other hosts have finished, and
            ``.responses`` has their responses. What *on_event* raised comes in the same way.
    """
    if on_event is not None and not callable(on_event):
        raise TypeError(f"on_event is a function that is told of each event, not {on_event!r}")
    work = _prepare(factory, inventory, limit, concurrency, strict, timeout, host_timeout, step_timeout, dry_run)
    if on_event is None:
        return await work.run(pool, None)
    telling = Telling(on_event)
    try:
        responses = await work.run(pool, telling.events.emit, lines=getattr(on_event, "wants_lines", True))
    except ExecutionError as error:
        await telling.close()
        if telling.error is not None:
            raise ExecutionError(error.message, [*error.exceptions, telling.error], error.responses) from None
        raise
    except BaseException:
        await telling.close(BRIEF)
        raise
    await telling.close()
    if telling.error is not None:
        raise ExecutionError("on_event raised; the hosts are done", [telling.error], responses)
    return responses


async def stream(
    factory: Callable[[], Any],
    inventory: InventorySource,
    *,
    pool: Transport | None = None,
    concurrency: int | None = None,
    strict: bool = False,
    timeout: float | None = None,
    limit: str | Sequence[str] | None = None,
    host_timeout: float | None = None,
    step_timeout: float | None = None,
    dry_run: bool = False,
) -> AsyncGenerator[Event, None]:
    """Run a deployment as :func:`execute` does, and give the events of the run as they happen.

    The last event, ``RunFinished``, has the responses. Who takes the events slowly misses some of them
    (see ``EventsDropped``), and holds no host up. Closing the generator, as leaving ``async with
    aclosing(stream(...))`` does, cancels the run.

    Raises:
        ReemoteError: What :func:`execute` raises: at once where nothing can run, or after the last event.
    """
    work = _prepare(factory, inventory, limit, concurrency, strict, timeout, host_timeout, step_timeout, dry_run)
    events = Events()
    task = asyncio.create_task(work.run(pool, events.emit))
    task.add_done_callback(lambda _: events.end())
    try:
        while batch := await events.next(1):
            yield batch[0]
        await task
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # who leaves at the last event has it from there


def run(
    factory: Callable[[], Any],
    inventory: InventorySource,
    *,
    pool: Transport | None = None,
    concurrency: int | None = None,
    strict: bool = False,
    timeout: float | None = None,
    limit: str | Sequence[str] | None = None,
    host_timeout: float | None = None,
    step_timeout: float | None = None,
    dry_run: bool = False,
    on_event: Listener | None = None,
) -> Responses:
    """Run a deployment from a program that has no event loop: ``execute()``, with its arguments.

    Raises:
        RuntimeError: An event loop is running here already: ``await execute(...)`` instead.
    """
    if _loop_is_running():
        raise RuntimeError("an event loop is running here: use 'await execute(...)' instead of 'run(...)'")
    return asyncio.run(
        execute(
            factory,
            inventory,
            pool=pool,
            concurrency=concurrency,
            strict=strict,
            timeout=timeout,
            limit=limit,
            host_timeout=host_timeout,
            step_timeout=step_timeout,
            dry_run=dry_run,
            on_event=on_event,
        )
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


@dataclass(frozen=True)
class _Work:
    """What a run is to do."""

    scope: Scope
    deployments: Sequence[Any]
    rules: Rules
    concurrency: int | None
    timeout: float | None
    host_timeout: float | None

    async def run(self, pool: Transport | None, emit: Emit | None, *, lines: bool = True) -> Responses:
        """Do it; a cancellation ends what runs, and goes on when the responses have been told."""
        items, start = self.scope.items, time.perf_counter()
        transport = pool if pool is not None else cast(Transport, await loop_pool())
        most = min(self.concurrency or len(items), transport.prepare(items)) if items else 1
        tell = emit or _nobody
        rules = replace(self.rules, emit=emit, lines=lines)
        runs = [
            _Run(item, step, rules, self.host_timeout, tell) for item, step in zip(items, self.deployments, strict=True)
        ]
        tell(RunStarted(hosts=tuple(item.host for item in items)))
        places = asyncio.Semaphore(most)
        tasks = {asyncio.create_task(run.run(transport, self.scope, places, self.concurrency)): run for run in runs}
        cancelled = True
        try:
            cancelled = await _wait_for(tasks, self.timeout)
        finally:
            responses, errors = _collect(tasks)
            seconds = time.perf_counter() - start
            tell(RunFinished(responses=responses, cancelled=cancelled, seconds=seconds))
        if errors:
            raise ExecutionError(f"the deployment raised on {len(errors)} of {len(runs)} hosts", errors, responses)
        return responses


def _nobody(_: Event) -> None:
    """Listen to nothing."""


def _prepare(
    factory: Callable[[], Any],
    inventory: InventorySource,
    limit: str | Sequence[str] | None,
    concurrency: int | None,
    strict: bool,
    timeout: float | None,
    host_timeout: float | None,
    step_timeout: float | None,
    dry_run: bool,
) -> _Work:
    """Check what was asked for, and make a deployment for each host."""
    whole = Inventory.of(inventory)
    items = whole.select(limit)
    if concurrency is not None and not (type(concurrency) is int and concurrency > 0):
        raise ValueError(f"concurrency is a number of hosts, 1 or more, not {concurrency!r}")
    for name, seconds in (("timeout", timeout), ("host_timeout", host_timeout), ("step_timeout", step_timeout)):
        if seconds is not None and not seconds > 0:
            raise ValueError(f"{name} must be more than 0 seconds, not {seconds!r}")
    return _Work(
        scope=Scope(whole, items),
        deployments=_make(factory, len(items)),
        rules=Rules(strict=strict, dry_run=dry_run, step_timeout=step_timeout),
        concurrency=concurrency,
        timeout=timeout,
        host_timeout=host_timeout,
    )


class _Run:
    """A deployment on one host, from its turn to its response."""

    def __init__(self, item: InventoryItem, step: Any, rules: Rules, timeout: float | None, tell: Emit) -> None:
        self.item = item
        self.step = step
        self.rules = rules
        self.timeout = timeout
        self.tell = tell
        self.host: Host | None = None
        self.deployment: Deployment | None = None
        self.overdue = ""
        """What had passed when it was ended, if that is why."""
        self.cut_short: Response | None = None
        """Its response, once it was ended before it was done."""

    async def run(self, transport: Transport, what: Scope, places: asyncio.Semaphore, limit: int | None) -> Response:
        """Wait for a place and run; what the deployment's code raises names the host."""
        scope.set(what)  # the task's own context: it ends with the run
        place.set(Place(self.rules.emit, self.item.host, 0, self.rules.lines) if self.rules.emit else None)
        start, response, failure = time.perf_counter(), None, None
        try:
            async with places:
                start = time.perf_counter()
                self.tell(HostStarted(host=self.item.host))
                response = await self._within_time(transport, limit)
        except asyncio.CancelledError:
            response = self.cancelled()
            raise
        except Exception as error:
            failure = error
            error.add_note(f"on host {self.item.host}")
            raise
        finally:
            seconds = time.perf_counter() - start
            host = self.item.host
            self.tell(HostFinished(host=host, response=response or None, error=failure, seconds=seconds))
        return response

    async def _within_time(self, transport: Transport, limit: int | None) -> Response:
        try:
            async with asyncio.timeout(self.timeout) as clock, transport.host(self.item, limit=limit) as self.host:
                self.deployment = Deployment(self.host, self.rules)
                return await self.deployment.run(self.step)
        except TimeoutError:
            if not clock.expired():
                raise
            self.overdue = f"its {self.timeout:g} s had passed"
            return self.cancelled()

    def cancelled(self) -> Response:
        """Give the response of a host that was not done when it was ended; it is made once."""
        if self.cut_short is None:
            self.cut_short = self._made_of_what_ran()
        return self.cut_short

    def _made_of_what_ran(self) -> Response:
        record = self.host.interrupted if self.host is not None else None
        state = "was not done" if self.host is not None else "had not begun"
        detail = f"the host {state} when {self.overdue}" if self.overdue else "the run was cancelled"
        changed = self.deployment is not None and self.deployment.changed
        outcome: Outcome = "unknown" if changed or record is not None else "not_started"
        return Response.of_failure(Cancelled(detail, outcome=outcome, completed=record), self.item.host)


async def _wait_for(tasks: Mapping[asyncio.Task[Response], _Run], timeout: float | None) -> bool:
    """Wait until all tasks are done; at a timeout, and when cancelled, end them first.

    Answers whether some had to be ended.
    """
    if not tasks:
        return False
    try:
        _, pending = await asyncio.wait(tasks, timeout=timeout)
    except asyncio.CancelledError:
        await _cancel(tasks)
        raise
    for task in pending:
        tasks[task].overdue = f"the run's {timeout:g} s had passed"
    await _cancel(pending)
    return bool(pending)


async def _cancel(tasks: Collection[asyncio.Task[Response]]) -> None:
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


def _collect(tasks: Mapping[asyncio.Task[Response], _Run]) -> tuple[Responses, list[Exception]]:
    """Give the responses of the hosts, and what deployments raised."""
    responses, errors = Responses(), []
    for task, run in tasks.items():
        if task.cancelled():
            responses.append(run.cancelled())
        elif (error := task.exception()) is not None:
            if not isinstance(error, Exception):
                raise error
            errors.append(error)
        elif response := task.result():
            responses.append(response)
    return responses, errors
