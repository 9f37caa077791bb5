"""``execute()`` and ``run()``: hosts, their order, their number at a time, and the end of a run."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import reemote
from reemote.core.errors import Cancelled, DeploymentError, ExecutionError, InventoryError, NoHostMatched
from reemote.core.events import Event, HostFinished
from reemote.core.host import Host
from reemote.core.operation import Steps
from reemote.core.response import Completed, Response, Responses
from reemote.execute import execute
from reemote.host import Getcontext, Shell
from reemote.inventory import Connection, Inventory, InventoryItem
from reemote.system import Callback, Return
from reemote.testing import Fake
from reemote.testing.fake import Call


def fleet(*hosts: Any) -> Fake:
    fake = Fake(*hosts)
    fake.on("x", stdout="x")
    return fake


def many(number: int) -> Fake:
    """Make that many hosts, in an order that is neither alphabetical nor that of their hashes."""
    return fleet(*(f"host{(7 * index) % number:02}" for index in range(number)))


def names(responses: Sequence[Response[Any]]) -> list[str]:
    return [response.host for response in responses]


class Forever:
    """The answer to a command that never ends; it says when so many have begun."""

    def __init__(self, number: int = 1) -> None:
        self._barrier = asyncio.Barrier(number + 1)

    async def __call__(self, call: Call) -> str:
        await self._barrier.wait()
        await asyncio.Event().wait()
        return ""

    async def begun(self) -> None:
        async with asyncio.timeout(10):
            await self._barrier.wait()


# Order


async def test_responses_come_in_the_order_of_the_inventory() -> None:
    fake = many(40)
    expected = [item.host for item in fake.inventory.hosts]
    turns = {name: asyncio.Event() for name in expected}
    turns[expected[-1]].set()

    async def last_first(call: Call) -> str:
        await turns[call.host].wait()
        before = expected.index(call.host) - 1
        turns[expected[before]].set()
        ended.append(call.host)
        return call.host

    ended: list[str] = []
    fake.on("turn", last_first)
    responses = await execute(lambda: Shell(cmd="turn"), inventory=fake.inventory, pool=fake)
    assert isinstance(responses, Responses)
    assert names(responses) == expected == [response.value.stdout for response in responses]
    assert ended == expected[::-1]


async def test_failures_are_in_their_places() -> None:
    fake = many(9)
    fake.fail("host03", Cancelled("no"))
    responses = await execute(lambda: Shell(cmd="x"), inventory=fake.inventory, pool=fake)
    assert names(responses) == [item.host for item in fake.inventory.hosts]
    assert [response.host for response in responses.failed] == ["host03"]


async def test_the_factory_is_called_once_for_each_host_before_any_is_asked() -> None:
    fake = fleet("a", "b", "c")
    made: list[Any] = []

    class Root:
        def __init__(self) -> None:
            assert fake.calls == []
            made.append(self)

        async def execute(self) -> Steps:
            yield Shell(cmd="x")
            yield Return(value=self)

    responses = await execute(Root, inventory=fake.inventory, pool=fake)
    assert [response.value for response in responses] == made
    assert len(set(map(id, made))) == 3


async def test_one_object_may_be_the_deployment_of_all_hosts() -> None:
    fake = fleet("a", "b")
    operation = Shell(cmd="x")
    responses = await execute(lambda: operation, inventory=fake.inventory, pool=fake)
    assert names(responses) == ["a", "b"]


# How many at a time


class Crowd:
    """Count how many commands run at the same time; all of them end when so many have met."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.now = self.most = 0
        self._full = asyncio.Event()

    async def __call__(self, call: Call) -> str:
        self.now += 1
        self.most = max(self.most, self.now)
        if self.now >= self.size:
            self._full.set()
        async with asyncio.timeout(10):
            await self._full.wait()
        # Let whoever may come in do so before we leave.
        for _ in range(5):
            await asyncio.sleep(0)
        self.now -= 1
        return ""


@pytest.mark.parametrize(("concurrency", "most"), [(None, 12), (1, 1), (2, 2), (5, 5), (12, 12), (100, 12)])
async def test_no_more_hosts_at_a_time_than_asked_for(concurrency: int | None, most: int) -> None:
    fake, crowd = many(12), Crowd(most)
    fake.on("meet", crowd)
    responses = await execute(lambda: Shell(cmd="meet"), inventory=fake.inventory, pool=fake, concurrency=concurrency)
    assert crowd.most == most
    assert len(responses) == 12


class Limited(Fake):
    """A transport that can have few hosts at a time, and keeps what it was told."""

    def __init__(self, *hosts: str) -> None:
        super().__init__(*hosts)
        self.prepared: list[list[str]] = []
        self.limits: list[int | None] = []

    def prepare(self, items: Sequence[InventoryItem]) -> int:
        assert self.calls == []
        self.prepared.append([item.host for item in items])
        return 3

    def host(self, item: InventoryItem, *, limit: int | None = None) -> Any:
        self.limits.append(limit)
        return super().host(item, limit=limit)


async def test_no_more_hosts_at_a_time_than_the_transport_can_have() -> None:
    fake, crowd = Limited(*"abcdefgh"), Crowd(3)
    fake.on("meet", crowd)
    await execute(lambda: Shell(cmd="meet"), inventory=fake.inventory, pool=fake, concurrency=5, limit="!h")
    assert crowd.most == 3
    assert fake.prepared == [list("abcdefg")]
    assert fake.limits == [5] * 7


async def test_wrong_options_of_a_host_are_found_before_any_is_asked() -> None:
    class Refusing(Fake):
        def prepare(self, items: Sequence[InventoryItem]) -> int:
            raise InventoryError("b: connection: unknown option 'x'")

    fake = Refusing("a", "b")
    with pytest.raises(InventoryError, match="unknown option"):
        await execute(lambda: Shell(cmd="x"), inventory=fake.inventory, pool=fake)
    assert fake.calls == []


async def test_a_host_that_fails_leaves_its_place_to_another() -> None:
    class Root:
        async def execute(self) -> Steps:
            yield Getcontext()
            raise ValueError

    fake = many(6)
    with pytest.raises(ExecutionError) as caught:
        await execute(Root, inventory=fake.inventory, pool=fake, concurrency=1)
    assert len(caught.value.exceptions) == 6


# Timeout


async def test_a_timeout_cancels_the_hosts_that_are_not_done() -> None:
    fake = fleet("done", "running")
    fake.on("x", lambda call: asyncio.Event().wait(), host="running")
    responses = await execute(lambda: Shell(cmd="x"), inventory=fake.inventory, pool=fake, timeout=0.05)
    assert [(r.host, r.error) for r in responses] == [("done", False), ("running", True)]
    assert responses[1] == {
        "host": "running", "value": "Cancelled", "changed": True, "error": True,
        "detail": "the host was not done when the run's 0.05 s had passed",
        "outcome": "unknown", "completed": Completed(command="x", exit_status=None),
    }  # fmt: skip


async def test_a_host_that_had_no_turn_has_not_started() -> None:
    fake = fleet("first", "second")
    fake.on("x", lambda call: asyncio.Event().wait())
    responses = await execute(lambda: Shell(cmd="x"), inventory=fake.inventory, pool=fake, concurrency=1, timeout=0.05)
    assert responses[1] == {
        "host": "second", "value": "Cancelled", "changed": False, "error": True,
        "detail": "the host had not begun when the run's 0.05 s had passed", "outcome": "not_started",
    }  # fmt: skip
    assert fake.commands("second") == []


@pytest.mark.parametrize(("limit", "expected"), [("timeout", "the run's 0.05 s"), ("host_timeout", "its 0.05 s")])
async def test_events_have_the_response_of_the_result(limit: str, expected: str) -> None:
    fake = fleet("a", "b")
    fake.on("x", lambda call: asyncio.Event().wait(), host="a")
    events: list[Event] = []
    options: Any = {limit: 0.05, "on_event": events.append}
    responses = await execute(lambda: Shell(cmd="x"), fake.inventory, pool=fake, **options)
    told = {event.host: event.response for event in events if isinstance(event, HostFinished)}
    assert told["a"] is responses[0]
    assert told["b"] is responses[1]
    assert responses[0].detail == f"the host was not done when {expected} had passed"


async def test_a_deployment_that_cancels_itself_in_time() -> None:
    class Root:
        async def execute(self) -> Steps:
            yield Getcontext()
            raise asyncio.CancelledError

    fake = fleet("a")
    [response] = await execute(Root, inventory=fake.inventory, pool=fake, timeout=30)
    assert (response["value"], response["detail"]) == ("Cancelled", "the run was cancelled")


async def test_a_host_that_was_cancelled_before_its_first_command_has_not_started() -> None:
    async def wait(context: Any) -> None:
        await asyncio.Event().wait()

    fake = fleet("a")
    [response] = await execute(lambda: Callback(callback=wait), inventory=fake.inventory, pool=fake, timeout=0.02)
    assert (response["value"], response["outcome"], response["changed"]) == ("Cancelled", "not_started", False)


async def test_a_host_that_was_cancelled_after_a_command_may_be_changed() -> None:
    class Root:
        async def execute(self) -> Steps:
            yield Shell(cmd="x")
            await asyncio.Event().wait()

    fake = fleet("a")
    [response] = await execute(Root, inventory=fake.inventory, pool=fake, timeout=0.02)
    assert fake.commands("a") == ["x"]
    assert response["value"] == "Cancelled"
    assert response["outcome"] != "not_started"
    assert response["changed"] is True


async def test_a_timeout_runs_finally_blocks() -> None:
    class Root:
        async def execute(self) -> Steps:
            try:
                yield Shell(cmd="hang")
            finally:
                yield Shell(cmd="x")

    fake = fleet("a", "b")
    fake.on("hang", lambda call: asyncio.Event().wait())
    responses = await execute(Root, inventory=fake.inventory, pool=fake, timeout=0.02)
    assert [response["value"] for response in responses] == ["Cancelled", "Cancelled"]
    assert fake.commands("a") == fake.commands("b") == ["hang", "x"]


async def test_what_a_finally_block_raises_is_not_lost() -> None:
    class Root:
        async def execute(self) -> Steps:
            try:
                yield Shell(cmd="hang")
            finally:
                raise ValueError("in finally")

    fake = fleet("a", "b")
    fake.on("hang", lambda call: asyncio.Event().wait())
    with pytest.raises(ExecutionError) as caught:
        await execute(Root, inventory=fake.inventory, pool=fake, timeout=0.02)
    assert [(str(error), error.__notes__) for error in caught.value.exceptions] == [
        ("in finally", ["on host a"]),
        ("in finally", ["on host b"]),
    ]


async def test_a_run_that_is_done_in_time() -> None:
    fake = fleet("a", "b")
    responses = await execute(lambda: Shell(cmd="x"), inventory=fake.inventory, pool=fake, timeout=30)
    assert not responses.failed


async def test_a_deployment_that_cancels_itself() -> None:
    class Root:
        async def execute(self) -> Steps:
            yield Getcontext()
            raise asyncio.CancelledError

    fake = fleet("a")
    [response] = await execute(Root, inventory=fake.inventory, pool=fake)
    assert (response["value"], response["detail"]) == ("Cancelled", "the run was cancelled")


# Cancellation from outside


async def test_cancelling_waits_for_finally_blocks() -> None:
    entered, leave = asyncio.Barrier(3), asyncio.Event()

    async def clean(call: Call) -> str:
        await entered.wait()
        await leave.wait()
        cleaned.append(call.host)
        return ""

    class Root:
        async def execute(self) -> Steps:
            try:
                yield Shell(cmd="hang")
            finally:
                yield Shell(cmd="clean")

    cleaned: list[str] = []
    fake, forever = fleet("a", "b"), Forever(2)
    fake.on("hang", forever)
    fake.on("clean", clean)
    task = asyncio.create_task(execute(Root, inventory=fake.inventory, pool=fake))
    await forever.begun()
    task.cancel()
    await entered.wait()
    assert not task.done()
    leave.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(cleaned) == ["a", "b"]
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_cancelling_again_cuts_finally_blocks_short() -> None:
    class Root:
        async def execute(self) -> Steps:
            try:
                yield Shell(cmd="hang")
            finally:
                yield Shell(cmd="hang longer")

    fake, first, second = fleet("a", "b"), Forever(2), Forever(2)
    fake.on("hang", first)
    fake.on("hang longer", second)
    task = asyncio.create_task(execute(Root, inventory=fake.inventory, pool=fake))
    await first.begun()
    task.cancel()
    await second.begun()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_cancelling_starts_no_further_host() -> None:
    fake, forever = many(5), Forever(2)
    fake.on("hang", forever)
    run = execute(lambda: Shell(cmd="hang"), inventory=fake.inventory, pool=fake, concurrency=2)
    task = asyncio.create_task(run)
    await forever.begun()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(fake.calls) == 2


async def test_a_timeout_around_execute() -> None:
    fake = fleet("a")
    fake.on("hang", lambda call: asyncio.Event().wait())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await execute(lambda: Shell(cmd="hang"), inventory=fake.inventory, pool=fake)
    assert asyncio.all_tasks() == {asyncio.current_task()}


# The factory


FACTORIES: dict[str, tuple[Any, str]] = {
    "an operation": (Shell(cmd="x"), "the factory must be callable, to make a deployment for each host"),
    "None": (None, "the factory must be callable"),
    "a list": ([Shell(cmd="x")], "the factory must be callable"),
    "returns None": (lambda: None, "the factory returned None, which is no step"),
    "returns a class": (lambda: Shell, r"the factory returned the class Shell .*: write Shell\(...\)"),
    "returns a list": (lambda: [Shell(cmd="x")], "the factory returned a list: yield it in the execute method"),
    "returns a tuple": (lambda: (Shell(cmd="x"),), "the factory returned a list: yield it in the execute method"),
    "returns a number": (lambda: 5, "the factory returned an object of type int"),
    "returns a function": (lambda: print, "the factory returned an object of type builtin_function_or_method"),
}


@pytest.mark.parametrize(("factory", "message"), FACTORIES.values(), ids=FACTORIES)
async def test_a_factory_that_makes_nothing_to_run(factory: Any, message: str) -> None:
    fake = fleet("a", "b")
    with pytest.raises(DeploymentError, match=message) as caught:
        await execute(factory, inventory=fake.inventory, pool=fake)
    assert isinstance(caught.value, TypeError)
    assert fake.calls == []


async def test_a_factory_that_is_asynchronous() -> None:
    async def factory() -> Any:
        return Shell(cmd="x")

    fake = fleet("a", "b")
    with pytest.raises(DeploymentError, match="the factory returned an object of type coroutine"):
        await execute(factory, inventory=fake.inventory, pool=fake)
    assert fake.calls == []


async def test_what_a_factory_raises_comes_out_as_it_is() -> None:
    calls: list[int] = []

    def factory() -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise ZeroDivisionError("in the factory")
        return Shell(cmd="x")

    fake = fleet("a", "b", "c")
    with pytest.raises(ZeroDivisionError, match="in the factory"):
        await execute(factory, inventory=fake.inventory, pool=fake)
    assert fake.calls == []
    assert len(calls) == 2


async def test_a_factory_may_be_a_class_a_method_or_a_partial() -> None:
    class Root:
        async def execute(self) -> Steps:
            yield Shell(cmd="x")

        def make(self) -> Root:
            return self

    fake = fleet("a")
    for factory in (Root, Root().make, partial(Shell, cmd="x")):
        [response] = await execute(factory, inventory=fake.inventory, pool=fake)
        assert response.value.stdout == "x"


# Which hosts


async def test_a_limit_chooses_hosts() -> None:
    fake = Fake(
        *(InventoryItem(connection=Connection(host=name), groups=[name[:2]]) for name in ("web1", "db1", "web2"))
    )
    fake.on("x")

    async def chosen(limit: Any) -> list[str]:
        return names(await execute(lambda: Shell(cmd="x"), inventory=fake.inventory, pool=fake, limit=limit))

    assert await chosen("we") == ["web1", "web2"]
    assert await chosen(["web2", "db"]) == ["db1", "web2"]
    assert await chosen("!web1") == ["db1", "web2"]
    assert await chosen(None) == ["web1", "db1", "web2"]


@pytest.mark.parametrize("limit", ["nowhere", "", "a,!a", []], ids=repr)
async def test_a_limit_without_a_host(limit: Any) -> None:
    fake, made = fleet("a", "b"), []

    with pytest.raises(NoHostMatched):
        await execute(lambda: made.append(1), inventory=fake.inventory, pool=fake, limit=limit)
    assert made == []
    assert fake.calls == []


async def test_the_factory_is_called_for_the_chosen_hosts_only() -> None:
    fake, made = fleet("a", "b", "c"), []

    def factory() -> Any:
        made.append(1)
        return Shell(cmd="x")

    await execute(factory, inventory=fake.inventory, pool=fake, limit="a,c")
    assert len(made) == 2


async def test_an_empty_inventory_has_no_responses() -> None:
    responses = await execute(lambda: Shell(cmd="x"), inventory=Inventory(hosts=[]), pool=fleet("a"))
    assert isinstance(responses, Responses)
    assert responses == []
    assert await execute(lambda: Shell(cmd="x"), inventory={"hosts": []}, timeout=1, concurrency=1) == []


@pytest.mark.parametrize("number", [0, -1, float("nan")])
@pytest.mark.parametrize("option", ["concurrency", "timeout"])
async def test_numbers_must_be_positive(option: str, number: float) -> None:
    fake = fleet("a")
    with pytest.raises(ValueError, match=f"{option} .*, not {number}"):
        await execute(lambda: Shell(cmd="x"), inventory=fake.inventory, pool=fake, **{option: number})  # type: ignore[arg-type]
    assert fake.calls == []


async def test_concurrency_is_a_whole_number() -> None:
    fake = many(4)
    with pytest.raises((ValueError, TypeError)):
        await execute(lambda: Shell(cmd="x"), inventory=fake.inventory, pool=fake, concurrency=1.5)  # type: ignore[arg-type]


# Forms of the inventory

PLAIN: dict[str, Any] = {"hosts": [{"connection": {"host": "a"}}, {"connection": {"host": "b"}, "groups": ["db"]}]}


@pytest.mark.parametrize("form", ["object", "dictionary", "text", "path", "name"])
async def test_every_form_of_an_inventory(form: str, tmp_path: Path) -> None:
    path = tmp_path / "inventory.json"
    path.write_text(json.dumps(PLAIN))
    forms: dict[str, Any] = {
        "object": Inventory.of(PLAIN), "dictionary": PLAIN, "text": json.dumps(PLAIN), "path": path, "name": str(path),
    }  # fmt: skip
    responses = await execute(lambda: Shell(cmd="x"), inventory=forms[form], pool=fleet())
    assert names(responses) == ["a", "b"]


@pytest.mark.parametrize("wrong", [{}, {"hosts": [{}]}, "nowhere.json", "{", 5], ids=repr)
async def test_a_wrong_inventory(wrong: Any) -> None:
    made: list[int] = []
    with pytest.raises(InventoryError):
        await execute(lambda: made.append(1), inventory=wrong, pool=fleet())
    assert made == []


# Wrong arguments


@pytest.mark.parametrize("listener", [5, "print", [print], {}, False])
async def test_a_listener_that_cannot_be_called(listener: Any) -> None:
    fake = fleet("a")
    with pytest.raises(TypeError, match="on_event is a function that is told of each event, not "):
        await execute(lambda: Shell(cmd="x"), fake.inventory, pool=fake, on_event=listener)
    with pytest.raises(TypeError, match="on_event is a function"):
        await asyncio.to_thread(reemote.run, lambda: Shell(cmd="x"), fake.inventory, pool=fake, on_event=listener)
    assert fake.commands("a") == []


# run()


class Root:
    """What the tests of ``run()`` run; no connection is made."""

    async def execute(self) -> Steps:
        """Give the name of the host."""
        response = yield Getcontext()
        yield Return(value=response.value.host)


def test_run_needs_no_event_loop() -> None:
    fake = fleet("a", "b")
    responses = reemote.run(Root, fake.inventory, pool=fake)
    assert isinstance(responses, Responses)
    assert [response.value for response in responses] == ["a", "b"]
    assert [response.value for response in reemote.run(Root, inventory=PLAIN, limit="db")] == ["b"]


def test_run_takes_the_options_of_execute() -> None:
    fake = fleet("a")
    fake.on("false", exit_status=1)
    [response] = reemote.run(lambda: Shell(cmd="false"), fake.inventory, pool=fake, strict=True, timeout=5)
    assert response["value"] == "CommandFailed"
    with pytest.raises(TypeError, match="unexpected keyword argument 'forks'"):
        reemote.run(Root, fake.inventory, forks=3)  # type: ignore[call-arg]


def test_run_can_be_used_again() -> None:
    assert [names(reemote.run(Root, PLAIN)) for _ in range(3)] == [["a", "b"]] * 3


async def test_run_inside_a_running_loop() -> None:
    with pytest.raises(RuntimeError, match=r"use 'await execute\(...\)' instead of 'run\(...\)'"):
        reemote.run(Root, PLAIN)


async def test_several_runs_at_the_same_time() -> None:
    fake, crowd = fleet("a", "b"), Crowd(6)
    fake.on("meet", crowd)
    runs = (execute(lambda: Shell(cmd="meet"), inventory=fake.inventory, pool=fake) for _ in range(3))
    assert [names(responses) for responses in await asyncio.gather(*runs)] == [["a", "b"]] * 3
    assert crowd.most == 6


async def test_a_run_inside_a_deployment() -> None:
    inner = fleet("inner")

    class Outer:
        async def execute(self) -> Steps:
            before = yield Getcontext()
            [response] = await execute(lambda: Shell(cmd="x"), inventory=inner.inventory, pool=inner)
            after = await Getcontext()  # this deployment's host again
            yield Return(value=[before.value.host, response.host, after.value.host])

    [response] = await execute(Outer, inventory=PLAIN, pool=fleet(), limit="a")
    assert response.value == ["a", "inner", "a"]


async def test_a_transport_that_fails_to_give_a_host() -> None:
    class Failing(Fake):
        def host(self, item: InventoryItem, *, limit: int | None = None) -> Any:
            if item.host == "b":
                raise OSError("no such host here")
            return super().host(item, limit=limit)

    fake = Failing("a", "b")
    fake.on("x")
    with pytest.raises(ExecutionError) as caught:
        await execute(lambda: Shell(cmd="x"), inventory=fake.inventory, pool=fake)
    assert [(repr(error), error.__notes__) for error in caught.value.exceptions] == [
        ("OSError('no such host here')", ["on host b"])
    ]
    assert names(caught.value.responses) == ["a"]


def test_a_keyboard_interrupt_ends_the_run() -> None:
    def interrupt(call: Call) -> str:
        raise KeyboardInterrupt

    fake = fleet("a", "b")
    fake.on("stop", interrupt, host="b")
    fake.on("stop", lambda call: asyncio.Event().wait(), host="a")
    with pytest.raises(KeyboardInterrupt):
        reemote.run(lambda: Shell(cmd="stop"), fake.inventory, pool=fake)


def test_the_host_protocol_has_what_operations_are_told_of() -> None:
    assert list(inspect.signature(Host.run).parameters) == [
        "self", "command", "env", "cwd", "stdin", "timeout", "check", "sudo", "su", "connection", "session",
        "sudo_user", "output", "kill_on_disconnect", "question",
    ]  # fmt: skip
