"""The engine: how a deployment's steps are answered."""

from __future__ import annotations

import asyncio
import gc
import inspect
import re
import traceback
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from reemote.context import Context
from reemote.core.errors import (
    CommandFailed,
    CommandKilled,
    ConnectionLost,
    ConnectionRefused,
    DeploymentError,
    ExecutionError,
    HostError,
)
from reemote.core.host import Host
from reemote.core.operation import Effect, Local, Steps, step
from reemote.core.remote import Remote
from reemote.core.response import Completed, Response, Responses
from reemote.execute import execute
from reemote.host import Getcontext, Shell
from reemote.inventory import Connection, InventoryItem
from reemote.system import Callback, Return
from reemote.testing import Fake
from reemote.testing.fake import Call

KILLED = Completed(command="die", exit_status=None, exit_signal=("KILL", False, "", ""), returncode=-9)


def fleet(*hosts: Any) -> Fake:
    """Make hosts that answer ``echo WORD`` with the word, and fail at some commands."""
    fake = Fake(*(hosts or ("web1",)))
    fake.on(re.compile("echo .*"), lambda call: call.command.removeprefix("echo ") + "\n")
    fake.on("false", exit_status=1, stderr="it is false")
    fake.on("die", lambda call: KILLED)
    fake.on("lost", ConnectionLost("the connection was lost"))
    return fake


def grouped(name: str, *groups: str) -> InventoryItem:
    return InventoryItem(connection=Connection(host=name), groups=list(groups))


async def run(factory: Callable[[], Any], fake: Fake | None = None, **options: Any) -> Responses:
    fake = fake or fleet()
    return await execute(factory, inventory=fake.inventory, pool=fake, **options)


async def only(factory: Callable[[], Any], fake: Fake | None = None, **options: Any) -> Response[Any]:
    """Give the one response of a run on one host."""
    [response] = await run(factory, fake, **options)
    return response


async def bug(factory: Callable[[], Any], fake: Fake | None = None, **options: Any) -> Exception:
    """Give the one exception of a run on one host that ends with one."""
    with pytest.raises(ExecutionError) as caught:
        await run(factory, fake, **options)
    [error] = caught.value.exceptions
    return error


@pytest.fixture
def no_coroutine_is_forgotten() -> Iterator[None]:
    """Fail when a coroutine was never awaited."""
    gc.freeze()  # only what the test makes is looked through at its end: that takes time
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            yield
            gc.collect()
    finally:
        gc.unfreeze()
    assert [str(warning.message) for warning in heard] == []


# Spellings


async def test_yield_answers_with_the_response() -> None:
    class Root:
        async def execute(self) -> Steps:
            first = yield Shell(cmd="echo Hello")
            assert type(first) is Response
            assert first.host == "web1"
            second = yield Shell(cmd="echo World!")
            yield Return(value=first["value"]["stdout"] + second.value.stdout)

    assert await only(Root) == {"host": "web1", "value": "Hello\nWorld!\n", "changed": True, "error": False}


async def test_await_answers_with_the_response() -> None:
    class Root:
        async def execute(self) -> str:
            first = await Shell(cmd="echo Hello")
            assert type(first) is Response
            second = await Shell(cmd="echo World!")
            return first.value.stdout + second.value.stdout

    assert await only(Root) == {"host": "web1", "value": "Hello\nWorld!\n", "changed": True, "error": False}


async def test_both_spellings_in_one_class() -> None:
    class Root:
        async def execute(self) -> Steps:
            first = await Shell(cmd="echo a")
            second = yield Shell(cmd="echo b")
            third = await step(Leaf())
            yield Return(value=[response.value.stdout for response in (first, second, third)])

    class Leaf:
        async def execute(self) -> Steps:
            yield Shell(cmd="echo c")

    assert (await only(Root)).value == ["a\n", "b\n", "c\n"]


async def test_an_operation_alone_is_a_deployment() -> None:
    response = await only(lambda: Shell(cmd="echo x"))
    assert list(response) == ["host", "value", "changed", "error"]
    assert response["value"]["command"] == "echo x"
    assert (response["changed"], response["error"]) == (True, False)


async def test_steps_run_one_after_the_other() -> None:
    class Root:
        async def execute(self) -> Steps:
            for word in "abcdef":
                yield Shell(cmd=f"echo {word}")

    fake = fleet()
    await run(Root, fake)
    assert fake.commands("web1") == [f"echo {word}" for word in "abcdef"]


async def test_a_method_that_is_no_class_of_ours_may_be_inherited() -> None:
    class Base:
        word = "base"

        async def execute(self) -> Steps:
            yield Shell(cmd=f"echo {self.word}")

    class Derived(Base):
        word = "derived"

        async def execute(self) -> Steps:
            async for inner in super().execute():
                yield inner

    assert (await only(Derived)).value.stdout == "derived\n"


async def test_a_coroutine_function_that_answers_with_a_future() -> None:
    class Root:
        def execute(self) -> Awaitable[str]:
            return asyncio.ensure_future(asyncio.sleep(0, "value"))

    assert (await only(Root)).value == "value"


# Classes in classes


async def test_classes_in_classes() -> None:
    class Leaf(Remote):
        word: str

        async def execute(self) -> Steps:
            yield Shell(cmd=f"echo {self.word}")

    class Branch:
        def __init__(self, word: str) -> None:
            self.word = word

        async def execute(self) -> Steps:
            first = yield Leaf(word=self.word)
            second = yield Leaf(word=self.word * 2)
            yield Return(value=first.value.stdout + second.value.stdout)

    class Root:
        async def execute(self) -> str:
            answers = [await step(Branch(word)) for word in "ab"]
            return "".join(answer.value for answer in answers)

    assert (await only(Root)).value == "a\naa\nb\nbb\n"


async def test_many_levels() -> None:
    class Level:
        def __init__(self, depth: int) -> None:
            self.depth = depth

        async def execute(self) -> Steps:
            yield Level(self.depth - 1) if self.depth else Shell(cmd="echo deep")

    assert (await only(lambda: Level(60))).value.stdout == "deep\n"


async def test_the_response_of_a_class_is_its_last() -> None:
    class Inner:
        async def execute(self) -> Steps:
            yield Shell(cmd="echo first")
            yield Getcontext()
            yield Shell(cmd="echo last")

    class Root:
        async def execute(self) -> Steps:
            answer = yield Inner()
            assert answer.value.stdout == "last\n"

    response = await only(Root)
    assert response.value.stdout == "last\n"


async def test_the_last_response_may_be_a_failure() -> None:
    class Root:
        async def execute(self) -> Steps:
            yield Shell(cmd="echo x")
            yield Shell(cmd="lost")

    response = await only(Root)
    assert response == {
        "host": "web1", "value": "ConnectionLost", "changed": True, "error": True,
        "detail": "the connection was lost", "outcome": "unknown",
    }  # fmt: skip


async def test_a_coroutine_without_a_value_has_its_last_response() -> None:
    class Root:
        async def execute(self) -> None:
            await Shell(cmd="echo first")
            await Shell(cmd="echo last")

    assert (await only(Root)).value.stdout == "last\n"


async def test_a_coroutine_may_answer_with_a_response() -> None:
    class Root:
        async def execute(self) -> Response[Completed]:
            response = await Shell(cmd="echo first")
            await Shell(cmd="echo last")
            return response

    assert (await only(Root)).value.stdout == "first\n"


async def test_a_coroutine_has_its_own_last_response_after_a_child_has_run() -> None:
    class Child:
        async def execute(self) -> None:
            await Shell(cmd="echo child")

    class Root:
        async def execute(self) -> None:
            await step(Child())
            await Shell(cmd="echo last")

    assert (await only(Root)).value.stdout == "last\n"


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (Response(value=1), {"value": 1, "changed": True, "error": False}),
        (Response(value=1, changed=False), {"value": 1, "changed": False, "error": False}),
        (
            Response(host="other", value=1, changed=False, error=False),
            {"value": 1, "changed": False, "error": False},
        ),
        (
            Response.of_failure(ConnectionRefused("d"), "other"),
            {
                "value": "ConnectionRefusedError", "changed": False, "error": True, "detail": "d",
                "outcome": "not_started",
            },
        ),
    ],
    ids=["value", "changed", "whole", "failure"],
)  # fmt: skip
async def test_a_coroutine_may_answer_with_a_response_of_its_own(
    returned: Response[Any], expected: dict[str, Any]
) -> None:
    class Root:
        async def execute(self) -> Response[Any]:
            await Shell(cmd="echo x")
            return returned

    response = await only(Root)
    assert response == {"host": "web1", **expected}
    assert list(response) == ["host", *expected]


async def test_a_coroutine_that_answers_with_a_skipped_response_has_run_all_the_same() -> None:
    class Root:
        async def execute(self) -> Response[Completed]:
            await Shell(cmd="echo x")
            return await Shell(cmd="echo y", group="databases")

    assert (await only(Root)).value.stdout == "x\n"


@pytest.mark.parametrize("value", [0, "", False, [], {}, (1,), {"a": 1}, [Shell], b"x", 1.5], ids=repr)
async def test_a_coroutine_may_answer_with_any_value(value: Any) -> None:
    class Root:
        async def execute(self) -> Any:
            return value

    response = await only(Root)
    assert response == {"host": "web1", "value": value, "changed": False, "error": False}
    assert response.value is value


async def test_the_value_of_a_coroutine_has_changed_what_its_steps_have() -> None:
    class Reads:
        async def execute(self) -> str:
            await Getcontext()
            return "read"

    class Changes:
        async def execute(self) -> str:
            await Shell(cmd="echo x")
            await Getcontext()
            return "changed"

    assert [(r.value, r.changed) for r in [await only(Reads), await only(Changes)]] == [
        ("read", False),
        ("changed", True),
    ]


# Return


async def test_return_gives_the_object_itself() -> None:
    value = object()

    class Root:
        async def execute(self) -> Steps:
            answer = yield Return(value=value)
            assert answer.value is value

    assert (await only(Root)).value is value
    assert (await only(lambda: Return(value=value))).value is value


@pytest.mark.parametrize("value", [None, 0, "", [], Completed(), Response()], ids=repr)
async def test_return_of_nothing_is_a_response(value: Any) -> None:
    assert (await only(lambda: Return(value=value))) == {
        "host": "web1", "value": value, "changed": False, "error": False
    }  # fmt: skip
    assert (await only(Return)).value is None


async def test_return_has_changed_what_a_step_before_it_has() -> None:
    class Root:
        async def execute(self) -> Steps:
            seen = [(yield Return()).changed]
            yield Getcontext()
            seen.append((yield Return()).changed)
            yield Shell(cmd="echo x")
            seen.append((yield Return()).changed)
            yield Getcontext()
            seen.append((yield Return()).changed)
            yield Return(value=seen)

    response = await only(Root)
    assert response.value == [False, False, True, True]
    assert response.changed is True


async def test_return_knows_of_changes_in_classes_and_lists_before_it() -> None:
    class Quiet:
        async def execute(self) -> Steps:
            yield Shell(cmd="echo x")
            yield Return(value=1, changed=False)

    class Root:
        async def execute(self) -> Steps:
            yield Quiet()  # says of itself that nothing changed, but a step in it did
            yield Return()

    class Listed:
        async def execute(self) -> Steps:
            yield [Getcontext(), [Shell(cmd="echo x")]]
            yield Return()

    assert (await only(Root)).changed is True
    assert (await only(Listed)).changed is True


async def test_changes_of_a_parent_are_not_those_of_a_child() -> None:
    class Child:
        async def execute(self) -> Steps:
            yield Return()

    class Root:
        async def execute(self) -> Steps:
            yield Shell(cmd="echo x")
            yield Return(value=(yield Child()).changed)

    assert (await only(Root)).value is False


@pytest.mark.parametrize("changed", [True, False])
async def test_return_may_say_whether_something_changed(changed: bool) -> None:
    class Root:
        async def execute(self) -> Steps:
            yield Shell(cmd="echo x") if not changed else Getcontext()
            yield Return(value=1, changed=changed)

    assert (await only(Root)).changed is changed


async def test_return_need_not_be_the_last() -> None:
    class Root:
        async def execute(self) -> Steps:
            yield Return(value=1)
            yield Return(value=2)

    assert (await only(Root)).value == 2


async def test_a_failed_step_has_changed_something_where_it_may_have() -> None:
    class Root:
        def __init__(self, command: str) -> None:
            self.command = command

        async def execute(self) -> Steps:
            yield Shell(cmd=self.command)
            yield Return()

    fake = fleet()
    fake.on("refused", ConnectionRefused("nothing listens"))
    assert (await only(lambda: Root("lost"), fake)).changed is True
    assert (await only(lambda: Root("refused"), fake)).changed is False


# At the same time


def meeting(fake: Fake, *commands: str) -> None:
    """Let commands end only when all of them have begun."""
    begun = asyncio.Barrier(len(commands))

    async def meet(call: Call) -> str:
        async with asyncio.timeout(5):
            await begun.wait()
        return call.command

    for command in commands:
        fake.on(command, meet)


async def test_a_list_runs_at_the_same_time_and_answers_in_its_order() -> None:
    class Root:
        async def execute(self) -> Steps:
            answers = yield [Shell(cmd="one"), Shell(cmd="two"), Shell(cmd="three")]
            assert type(answers) is list
            yield Return(value=[answer.value.stdout for answer in answers])

    fake = fleet()
    meeting(fake, "one", "two", "three")
    assert (await only(Root, fake)).value == ["one", "two", "three"]


async def test_a_tuple_is_as_good_as_a_list() -> None:
    class Root:
        async def execute(self) -> Steps:
            first, second = yield Shell(cmd="echo 1"), Shell(cmd="echo 2")
            yield Return(value=first.value.stdout + second.value.stdout)

    assert (await only(Root)).value == "1\n2\n"


async def test_lists_of_lists() -> None:
    class Leaf:
        async def execute(self) -> Steps:
            yield [Shell(cmd="three"), Shell(cmd="four")]

    class Root:
        async def execute(self) -> Steps:
            first, (second, third), none = yield [Shell(cmd="one"), [Shell(cmd="two"), Leaf()], []]
            assert none == []
            yield Return(value=[first.value.stdout, second.value.stdout, third.value.stdout])

    fake = fleet()
    meeting(fake, "one", "two", "three", "four")
    assert (await only(Root, fake)).value == ["one", "two", "four"]


@pytest.mark.parametrize(
    "steps",
    [
        lambda: [Return(value=1), Return(value=2)],
        lambda: [Return(value=1), [Return(value=3), Return(value=2)]],
        lambda: [[[Return(value=1)], [Return(value=2)]], []],
        lambda: [Return(value=2), Return(value=1, group="db")],
        lambda: [[Return(value=2)], [Return(value=1, group="db")]],
    ],
    ids=["flat", "nested", "deep", "last is skipped", "last list is skipped"],
)
async def test_the_response_of_a_list_is_that_of_its_last(steps: Callable[[], Any]) -> None:
    class Root:
        async def execute(self) -> Steps:
            yield steps()

    assert (await only(Root)).value == 2


async def test_the_last_of_a_list_is_not_the_last_to_end() -> None:
    ended = asyncio.Event()

    class Root:
        async def execute(self) -> Steps:
            yield [Shell(cmd="slow"), Shell(cmd="quick")]

    async def slow(call: Call) -> str:
        await ended.wait()
        return "slow"

    fake = fleet()
    fake.on("slow", slow)
    fake.on("quick", lambda call: (ended.set(), "quick")[1])  # type: ignore[func-returns-value]
    assert (await only(Root, fake)).value.stdout == "quick"


async def test_an_empty_list_runs_nothing() -> None:
    class Root:
        async def execute(self) -> Steps:
            answers = yield []
            assert answers == []

    assert await run(Root) == []


async def test_gather_task_group_and_step() -> None:
    class Leaf:
        async def execute(self) -> Steps:
            yield Shell(cmd="six")

    class Root:
        async def execute(self) -> list[str]:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(step(what)) for what in (Shell(cmd="one"), [Shell(cmd="two")], Leaf())]
                gathered = await asyncio.gather(Shell(cmd="three"), step(Shell(cmd="four")), Shell(cmd="five"))
            first, second, third = (task.result() for task in tasks)
            return [answer.value.stdout for answer in [first, *second, third, *gathered]]

    fake = fleet()
    meeting(fake, "one", "two", "three", "four", "five", "six")
    response = await only(Root, fake)
    assert response.value == ["one", "two", "six", "three", "four", "five"]
    assert response.changed is True


async def test_gather_runs_equal_operations_each() -> None:
    class Root:
        async def execute(self) -> int:
            return len(await asyncio.gather(Shell(cmd="echo x"), Shell(cmd="echo x")))

    fake = fleet()
    assert (await only(Root, fake)).value == 2
    assert fake.commands("web1") == ["echo x", "echo x"]


async def test_a_timeout_inside_a_deployment() -> None:
    class Awaiting:
        async def execute(self) -> Any:
            try:
                async with asyncio.timeout(0.01):
                    await Shell(cmd="hang")
            except TimeoutError:
                return (await Shell(cmd="echo later")).value.stdout

    class Yielding:
        async def execute(self) -> Steps:
            try:
                async with asyncio.timeout(0.01):
                    yield [Shell(cmd="hang"), Shell(cmd="hang")]
            except TimeoutError:
                yield Return(value=(yield Shell(cmd="echo later")).value.stdout)

    fake = fleet()
    fake.on("hang", lambda call: asyncio.Event().wait())
    assert (await only(Awaiting, fake)).value == "later\n"
    assert (await only(Yielding, fake)).value == "later\n"


async def test_all_steps_of_a_list_end_though_one_raises() -> None:
    go = asyncio.Event()

    class Root:
        async def execute(self) -> Steps:
            try:
                yield [Broken(), Shell(cmd="slow"), Shell(cmd="echo x")]
            except ZeroDivisionError as error:
                yield Return(value=error)

    class Broken:
        async def execute(self) -> Steps:
            yield Shell(cmd="echo before")
            go.set()
            yield 1 / 0

    async def slow(call: Call) -> str:
        await go.wait()
        await asyncio.sleep(0)
        ended.append(call.command)
        return ""

    ended: list[str] = []
    fake = fleet()
    fake.on("slow", slow)
    assert isinstance((await only(Root, fake)).value, ZeroDivisionError)
    assert ended == ["slow"]


async def test_what_several_steps_of_a_list_raise_is_a_group() -> None:
    class Broken:
        def __init__(self, error: Exception) -> None:
            self.error = error

        async def execute(self) -> Steps:
            yield Shell(cmd="echo before")
            raise self.error

    class Root:
        async def execute(self) -> Steps:
            try:
                yield [Broken(ValueError("one")), Shell(cmd="echo x"), Broken(KeyError("two"))]
            except* ValueError as group:
                heard.extend(map(repr, group.exceptions))
            except* KeyError as group:
                heard.extend(map(repr, group.exceptions))
            yield Return(value=len(heard))

    heard: list[str] = []
    assert (await only(Root)).value == 2
    assert heard == ["ValueError('one')", "KeyError('two')"]


async def test_failures_of_several_steps_at_the_same_time_are_one_response() -> None:
    class Root:
        async def execute(self) -> Steps:
            yield [Shell(cmd="echo x"), Shell(cmd="false"), Shell(cmd="die")]

    response = await only(Root, strict=True)
    assert (response["value"], response["detail"]) == ("CommandFailed", "exit status 1 of 'false': it is false")


async def test_a_failure_beside_a_bug_is_a_bug() -> None:
    class Broken:
        async def execute(self) -> Steps:
            yield Shell(cmd="echo x")
            raise ValueError("a bug")

    class Root:
        async def execute(self) -> Steps:
            yield [Shell(cmd="false"), Broken()]

    error = await bug(Root, strict=True)
    assert isinstance(error, ExceptionGroup)
    assert {type(inner) for inner in error.exceptions} == {CommandFailed, ValueError}


async def test_failures_in_a_task_group_are_one_response() -> None:
    class Root:
        async def execute(self) -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.read())

        async def read(self) -> Any:
            return (await Shell(cmd="lost")).value.stdout

    assert (await only(Root))["value"] == "ConnectionLost"


# Groups


WEB_AND_DB = [grouped("web1", "web"), grouped("db1", "databases"), grouped("both", "web", "databases"), grouped("none")]


async def test_an_operation_runs_on_the_hosts_of_its_group() -> None:
    class Root:
        async def execute(self) -> Steps:
            answer = yield Shell(cmd="echo x", group="databases")
            assert bool(answer) is (context_of[-1] in ("db1", "both"))
            if not answer:
                assert answer == {}
                with pytest.raises(KeyError, match="its group does not include this host"):
                    _ = answer["value"]

    class Knowing:
        async def execute(self) -> Steps:
            context_of.append((yield Getcontext()).value.host)
            yield Root()

    context_of: list[str] = []
    fake = fleet(*WEB_AND_DB)
    responses = await run(Knowing, fake, concurrency=1)
    assert [call.host for call in fake.calls] == ["db1", "both"]
    # The others' last response is that of Getcontext.
    assert [type(response.value) for response in responses] == [Context, Completed, Completed, Context]


async def test_a_host_that_ran_nothing_has_no_response() -> None:
    fake = fleet(*WEB_AND_DB)
    responses = await run(lambda: Shell(cmd="echo x", group="databases"), fake)
    assert [response.host for response in responses] == ["db1", "both"]
    assert await run(lambda: Shell(cmd="echo x", group="nobody"), fake) == []


@pytest.mark.parametrize("group", ["all", None])
async def test_all_is_every_host(group: str | None) -> None:
    responses = await run(lambda: Shell(cmd="echo x", group=group), fleet(*WEB_AND_DB))
    assert [response.host for response in responses] == ["web1", "db1", "both", "none"]


async def test_a_class_with_a_group_is_skipped_whole() -> None:
    class Backup(Remote):
        async def execute(self) -> Steps:
            began.append(1)
            yield Shell(cmd="echo backup")

    class Root:
        async def execute(self) -> Steps:
            answer = yield Backup(group="databases")
            yield Return(value=bool(answer))

    began: list[int] = []
    fake = fleet(*WEB_AND_DB)
    assert [response.value for response in await run(Root, fake)] == [False, True, True, False]
    assert len(began) == 2
    assert [response.host for response in await run(lambda: Backup(group="web"), fake)] == ["web1", "both"]


@pytest.mark.parametrize("spelling", ["yield", "await", "nested", "empty", "nothing"])
async def test_a_class_whose_steps_are_all_skipped_has_no_response(spelling: str) -> None:
    class Yielding:
        async def execute(self) -> Steps:
            yield Shell(cmd="echo x", group="databases")
            yield [Shell(cmd="echo y", group="databases")]

    class Awaiting:
        async def execute(self) -> None:
            await Shell(cmd="echo x", group="databases")

    class Nested:
        async def execute(self) -> Steps:
            answer = yield Yielding()
            assert not answer
            assert not (yield Awaiting())

    class Empty:
        async def execute(self) -> Steps:
            for number in range(0):
                yield number

    class Nothing:
        async def execute(self) -> None:
            return

    classes = {"yield": Yielding, "await": Awaiting, "nested": Nested, "empty": Empty, "nothing": Nothing}
    assert await run(classes[spelling]) == []


async def test_a_skipped_step_is_not_the_last_response() -> None:
    class Root:
        async def execute(self) -> Steps:
            yield Shell(cmd="echo x")
            yield Shell(cmd="echo y", group="databases")

    assert (await only(Root)).value.stdout == "x\n"


async def test_reading_a_skipped_step_is_a_bug_that_says_so() -> None:
    class Root:
        async def execute(self) -> Steps:
            answer = yield Shell(cmd="echo x", group="databases")
            yield Return(value=answer["value"]["stdout"])

    assert "its group does not include this host" in str(await bug(Root))


# Exceptions


class Boom(Exception):
    """What the deployments of these tests raise."""


class Broken:
    """A deployment that raises after a step."""

    async def execute(self) -> Steps:
        yield Shell(cmd="echo before")
        raise Boom("broken")


class BrokenCoroutine:
    """The same, as a coroutine."""

    async def execute(self) -> None:
        await Shell(cmd="echo before")
        raise Boom("broken")


@pytest.mark.parametrize("child", [Broken, BrokenCoroutine])
async def test_what_a_child_raises_is_raised_at_its_parents_step(child: type[Any]) -> None:
    class Yielding:
        async def execute(self) -> Steps:
            try:
                yield child()
            except Boom as error:
                caught.append(error)
            answer = yield Shell(cmd="echo after")
            yield Return(value=answer.value.stdout)

    class Awaiting:
        async def execute(self) -> str:
            with pytest.raises(Boom):
                await step(child())
            return (await Shell(cmd="echo after")).value.stdout

    caught: list[Boom] = []
    assert (await only(Yielding)).value == "after\n"
    assert [str(error) for error in caught] == ["broken"]
    assert (await only(Awaiting)).value == "after\n"


async def test_exceptions_travel_through_levels_and_finally_blocks() -> None:
    class Level:
        def __init__(self, depth: int) -> None:
            self.depth = depth

        async def execute(self) -> Steps:
            try:
                yield Level(self.depth - 1) if self.depth else Broken()
            finally:
                passed.append(self.depth)

    passed: list[int] = []
    assert isinstance(await bug(lambda: Level(3)), Boom)
    assert passed == [0, 1, 2, 3]


async def test_an_exception_may_become_another() -> None:
    class Root:
        async def execute(self) -> Steps:
            try:
                yield Broken()
            except Boom as error:
                raise ValueError("other") from error

    error = await bug(Root)
    assert isinstance(error, ValueError)
    assert isinstance(error.__cause__, Boom)


async def test_finally_runs_and_may_yield() -> None:
    class Root:
        async def execute(self) -> Steps:
            try:
                yield Broken()
            finally:
                answer = yield Shell(cmd="echo cleaned")
                cleaned.append(answer.value.stdout)

    cleaned: list[str] = []
    fake = fleet()
    assert isinstance(await bug(Root, fake), Boom)
    assert cleaned == ["cleaned\n"]
    assert fake.commands("web1") == ["echo before", "echo cleaned"]


async def test_finally_may_await() -> None:
    class Root:
        async def execute(self) -> None:
            try:
                await step(Broken())
            finally:
                await Shell(cmd="echo cleaned")

    fake = fleet()
    assert isinstance(await bug(Root, fake), Boom)
    assert fake.commands("web1") == ["echo before", "echo cleaned"]


async def test_a_context_manager_around_a_step() -> None:
    class Lock:
        async def __aenter__(self) -> None:
            await Shell(cmd="echo lock")

        async def __aexit__(self, *_: object) -> None:
            await Shell(cmd="echo unlock")

    class Root:
        async def execute(self) -> Steps:
            async with Lock():
                yield Broken()

    fake = fleet()
    assert isinstance(await bug(Root, fake), Boom)
    assert fake.commands("web1") == ["echo lock", "echo before", "echo unlock"]


async def test_stop_async_iteration_of_a_child_does_not_end_its_parent() -> None:
    class Child:
        async def execute(self) -> None:
            raise StopAsyncIteration("odd")

    class Root:
        async def execute(self) -> Steps:
            try:
                yield Child()
            except Exception as error:
                yield Return(value=repr(error))

    assert (await only(Root)).value == "StopAsyncIteration('odd')"


async def test_a_host_whose_steps_came_to_nothing_has_run_something() -> None:
    class Root:
        async def execute(self) -> Steps:
            try:
                yield Broken()
            except Boom:
                return

    assert await only(Root) == {"host": "web1", "value": None, "changed": True, "error": False}


# Cancellation


async def test_cancellation_runs_finally_blocks_that_may_yield() -> None:
    class Child:
        async def execute(self) -> Steps:
            try:
                yield Shell(cmd="hang")
            finally:
                yield Shell(cmd="echo child")

    class Root:
        async def execute(self) -> Steps:
            try:
                yield Child()
            except asyncio.CancelledError:
                yield Shell(cmd="echo caught")
                raise
            finally:
                yield [Shell(cmd="echo root"), Shell(cmd="echo root")]

    fake, hanging = fleet(), asyncio.Event()
    fake.on("hang", lambda call: hang(hanging))
    task = asyncio.create_task(run(Root, fake))
    await hanging.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert fake.commands("web1") == ["hang", "echo child", "echo caught", "echo root", "echo root"]


async def hang(hanging: asyncio.Event) -> None:
    """Say that we have begun, and never end."""
    hanging.set()
    await asyncio.Event().wait()


async def test_cancellation_reaches_all_steps_of_a_list() -> None:
    class Child:
        def __init__(self, name: str) -> None:
            self.name = name

        async def execute(self) -> Steps:
            try:
                yield Shell(cmd="hang")
            finally:
                yield Shell(cmd=f"echo {self.name}")

    class Root:
        async def execute(self) -> Steps:
            yield [Child("a"), [Child("b"), Child("c")]]

    fake, begun = fleet(), asyncio.Barrier(4)
    fake.on("hang", lambda call: barrier_and_hang(begun))
    task = asyncio.create_task(run(Root, fake))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(fake.commands("web1")[3:]) == ["echo a", "echo b", "echo c"]


async def barrier_and_hang(barrier: asyncio.Barrier) -> None:
    await barrier.wait()
    await asyncio.Event().wait()


async def test_code_between_steps_is_cancelled_too() -> None:
    class Root:
        async def execute(self) -> Steps:
            yield Shell(cmd="echo x")
            try:
                between.set()
                await asyncio.Event().wait()
            finally:
                yield Shell(cmd="echo cleaned")

    fake, between = fleet(), asyncio.Event()
    task = asyncio.create_task(run(Root, fake))
    await between.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert fake.commands("web1") == ["echo x", "echo cleaned"]


# Failures of hosts


async def test_a_failed_step_is_a_response_and_the_deployment_goes_on() -> None:
    class Root:
        async def execute(self) -> Steps:
            answer = yield Shell(cmd="lost")
            assert answer.error
            assert answer.value == "ConnectionLost"
            yield Return(value=answer.outcome)

    assert (await only(Root)).value == "unknown"


@pytest.mark.parametrize("read", [lambda r: r["value"]["stdout"], lambda r: r.value.stdout, lambda r: [*r.value]])
async def test_reading_into_a_failure_ends_the_deployment_with_it(read: Callable[[Any], Any]) -> None:
    class Root:
        async def execute(self) -> Steps:
            answer = yield Shell(cmd="lost")
            read(answer)
            yield Shell(cmd="echo never")

    class Parent:
        async def execute(self) -> Steps:
            try:
                yield Root()
            finally:
                yield Shell(cmd="echo finally")

    fake = fleet()
    response = await only(Parent, fake)
    assert (response["value"], response["error"], response["outcome"]) == ("ConnectionLost", True, "unknown")
    assert fake.commands("web1") == ["lost", "echo finally"]


async def test_a_failure_can_be_caught_where_it_is_read() -> None:
    class Root:
        async def execute(self) -> Steps:
            answer = yield Shell(cmd="lost")
            try:
                _ = answer.value.stdout
            except ConnectionLost as error:
                yield Return(value=error.response is answer)

    assert (await only(Root)).value is True


async def test_a_failure_in_a_child_is_raised_at_its_parents_step() -> None:
    class Child:
        async def execute(self) -> str:
            return (await Shell(cmd="lost")).value.stdout

    class Catching:
        async def execute(self) -> Steps:
            with pytest.raises(ConnectionLost, match="web1: ConnectionLost: the connection was lost"):
                yield Child()
            yield Shell(cmd="echo on")

    class Ending:
        async def execute(self) -> Steps:
            try:
                yield Child()
            except ConnectionLost:
                return

    assert (await only(Catching)).value.stdout == "on\n"
    # Nothing came after the failure: it is the class's last response.
    assert (await only(Ending))["value"] == "ConnectionLost"


async def test_a_host_error_of_the_deployments_own_is_the_hosts_response() -> None:
    class Root:
        async def execute(self) -> Steps:
            yield Shell(cmd="echo x")
            raise HostError("the disk is too small", kind="TooSmall")

    assert await only(Root) == {
        "host": "web1", "value": "TooSmall", "changed": True, "error": True,
        "detail": "the disk is too small", "outcome": "completed",
    }  # fmt: skip


async def test_a_host_error_of_a_childs_own_is_its_parents_last_response() -> None:
    class Child:
        async def execute(self) -> Steps:
            yield Shell(cmd="echo child")
            raise HostError("the disk is too small", kind="TooSmall")

    class Root:
        async def execute(self) -> Steps:
            yield Shell(cmd="echo first")
            try:
                yield Child()
            except HostError:
                return

    response = await only(Root)
    assert (response["host"], response["value"], response["error"]) == ("web1", "TooSmall", True)


async def test_raise_for_error_and_raise_for_status_end_a_deployment() -> None:
    class Lost:
        async def execute(self) -> Steps:
            (yield Shell(cmd="lost")).raise_for_error()

    class False_:
        async def execute(self) -> Steps:
            answer = yield Shell(cmd="false")
            assert answer.error is False
            answer.value.raise_for_status()

    assert (await only(Lost))["value"] == "ConnectionLost"
    response = await only(False_)
    assert response["value"] == "CommandFailed"
    assert response["completed"]["stderr"] == "it is false"


async def test_check_makes_an_exit_status_a_failure_of_the_step() -> None:
    class Root:
        async def execute(self) -> Steps:
            answer = yield Shell(cmd="false", check=True)
            yield Return(value=(answer.error, answer.value, answer.completed.exit_status))

    assert (await only(Root)).value == (True, "CommandFailed", 1)


async def test_a_failed_question_has_changed_nothing() -> None:
    class Ask(Remote[str]):
        effect = Effect.READS

        async def perform(self, host: Host) -> str:
            return (await host.run("lost")).stdout

    response = await only(Ask)
    assert (response["error"], response["outcome"], response["changed"]) == (True, "unknown", False)


# Strict


FAILING: dict[str, tuple[str, dict[str, Any], type[HostError]]] = {
    "connection": ("lost", {}, ConnectionLost),
    "exit status": ("false", {}, CommandFailed),
    "checked exit status": ("false", {"check": True}, CommandFailed),
    "signal": ("die", {}, CommandKilled),
}
failing = pytest.mark.parametrize(("command", "options", "error"), FAILING.values(), ids=FAILING)


@failing
@pytest.mark.parametrize("spelling", ["yield", "await", "list", "nested", "alone"])
async def test_strict_ends_a_host_at_its_first_failure(
    command: str, options: dict[str, Any], error: type[HostError], spelling: str
) -> None:
    class Yielding:
        async def execute(self) -> Steps:
            yield Shell(cmd=command, **options)
            yield Shell(cmd="echo never")

    class Awaiting:
        async def execute(self) -> None:
            await Shell(cmd=command, **options)
            await Shell(cmd="echo never")

    class Listing:
        async def execute(self) -> Steps:
            yield [Shell(cmd=command, **options)]
            yield Shell(cmd="echo never")

    class Nested:
        async def execute(self) -> Steps:
            yield Yielding()
            yield Shell(cmd="echo never")

    fake = fleet()
    factories: dict[str, Callable[[], Any]] = {
        "yield": Yielding, "await": Awaiting, "list": Listing, "nested": Nested,
        "alone": lambda: Shell(cmd=command, **options),
    }  # fmt: skip
    response = await only(factories[spelling], fake, strict=True)
    assert (response["error"], response["value"]) == (True, error.__name__)
    assert response["changed"] is True
    assert fake.commands("web1") == [command]


def response_of(error: HostError) -> Response[Any]:
    assert error.response is not None
    return error.response


@failing
@pytest.mark.parametrize("spelling", ["yield", "await", "nested"])
async def test_strict_failures_can_be_caught(
    command: str, options: dict[str, Any], error: type[HostError], spelling: str
) -> None:
    class Yielding:
        async def execute(self) -> Steps:
            try:
                yield Shell(cmd=command, **options)
            except error as caught:
                yield Return(value=response_of(caught)["value"])

    class Awaiting:
        async def execute(self) -> Any:
            try:
                await Shell(cmd=command, **options)
            except error as caught:
                return response_of(caught)["value"]

    class Child:
        async def execute(self) -> Steps:
            yield Shell(cmd=command, **options)

    class Nested:
        async def execute(self) -> Steps:
            try:
                yield Child()
            except error as caught:
                yield Return(value=caught.kind)

    factories: dict[str, Callable[[], Any]] = {"yield": Yielding, "await": Awaiting, "nested": Nested}
    response = await only(factories[spelling], strict=True)
    assert response == {"host": "web1", "value": error.__name__, "changed": True, "error": False}


async def test_a_strict_failure_has_the_record() -> None:
    response = await only(lambda: Shell(cmd="false"), strict=True)
    assert response["completed"]["stderr"] == "it is false"
    assert response["detail"] == "exit status 1 of 'false': it is false"
    assert response["outcome"] == "completed"


async def test_strict_leaves_successes_alone() -> None:
    class Root:
        async def execute(self) -> Steps:
            answer = yield Shell(cmd="echo x")
            yield Return(value=answer.value.stdout)

    assert (await only(Root, strict=True)).value == "x\n"


async def test_strict_on_one_host_does_not_end_another() -> None:
    fake = fleet("a", "b")
    fake.on("echo x", exit_status=3, host="a")
    responses = await run(lambda: Shell(cmd="echo x"), fake, strict=True)
    assert [(response.host, response.error) for response in responses] == [("a", True), ("b", False)]


@failing
async def test_without_strict_nothing_raises(command: str, options: dict[str, Any], error: type[HostError]) -> None:
    class Root:
        async def execute(self) -> Steps:
            yield Shell(cmd=command, **options)
            yield Return(value="on")

    assert (await only(Root)).value == "on"


async def test_strict_raises_for_the_failed_response_of_a_primitive() -> None:
    class Odd(Local[Any]):
        async def perform(self, host: Host) -> Response[Any]:
            return Response.of_failure(ConnectionRefused("elsewhere"), "other")

    class Root:
        async def execute(self) -> Steps:
            with pytest.raises(ConnectionRefused):
                yield Odd()
            yield Return(value="caught")

    assert (await only(Root, strict=True)).value == "caught"


# Bugs in deployments


async def test_a_bug_stops_its_host_only() -> None:
    class Root:
        async def execute(self) -> Steps:
            host = (yield Getcontext()).value.host
            if host in ("b", "d"):
                raise Boom(f"not on {host}")
            yield Shell(cmd="echo x")

    fake = fleet("a", "b", "c", "d")
    with pytest.raises(ExecutionError) as caught:
        await run(Root, fake)
    group = caught.value
    assert group.message == "the deployment raised on 2 of 4 hosts"
    assert [(str(error), error.__notes__) for error in group.exceptions] == [
        ("not on b", ["on host b"]),
        ("not on d", ["on host d"]),
    ]
    assert [response.host for response in group.responses] == ["a", "c"]
    assert isinstance(group.responses, Responses)
    assert fake.commands("a") == fake.commands("c") == ["echo x"]


async def test_the_traceback_names_the_users_file_and_line() -> None:
    error = await bug(Broken)
    lines, first = inspect.getsourcelines(Broken)
    line = first + next(number for number, text in enumerate(lines) if "raise Boom" in text)
    text = "".join(traceback.format_exception(error))
    assert f'File "{__file__}", line {line}, in execute' in text
    assert text.endswith("Boom: broken\non host web1\n")


async def test_the_traceback_of_a_failed_assertion_in_a_child_names_its_line() -> None:
    class Root:
        async def execute(self) -> Steps:
            yield BrokenCoroutine()

    frames = traceback.extract_tb((await bug(Root)).__traceback__)
    ours = [frame.name for frame in frames if frame.filename == __file__]
    assert ours == ["execute", "execute"]
    assert "raise Boom" in (frames[-1].line or "")


async def test_a_bug_in_a_primitive() -> None:
    class Odd(Local[int]):
        async def perform(self, host: Host) -> int:
            return 1 // 0

    error = await bug(Odd)
    assert isinstance(error, ZeroDivisionError)
    assert error.__notes__ == ["on host web1"]


async def test_a_command_that_the_fake_does_not_know_is_a_bug() -> None:
    assert "has no reply to 'unheard'" in str(await bug(lambda: Shell(cmd="unheard")))


# What is no step


async def coroutine() -> None:
    """Never run."""


async def asynchronous_generator() -> AsyncIterator[int]:
    yield 1


class NoExecute:
    """A class without a method ``execute``."""


NO_STEPS: dict[str, tuple[Callable[[], Any], str]] = {
    "number": (lambda: 5, "an object of type int, which is no step"),
    "None": (lambda: None, "None, which is no step"),
    "text": (lambda: "ls", "an object of type str, which is no step"),
    "dictionary": (dict, "an object of type dict, which is no step"),
    "response": (Response, "an object of type Response, which is no step"),
    "operation class": (lambda: Shell, "the class Shell instead of an object of it: write Shell(...)"),
    "deployment class": (lambda: Broken, "the class Broken instead of an object of it: write Broken(...)"),
    "object without execute": (NoExecute, "an object of type NoExecute, which is no step"),
    "function": (lambda: coroutine, "an object of type function, which is no step"),
    "coroutine": (coroutine, "an object of type coroutine, which is no step"),
    "async generator": (asynchronous_generator, "an object of type async_generator, which is no step"),
    "step": (lambda: step(Shell(cmd="echo x")), "an object of type coroutine, which is no step"),
    "list with None": (lambda: [Shell(cmd="echo x"), None], "a list with None, which is no step"),
    "list in list": (lambda: [[5]], "a list with a list with an object of type int, which is no step"),
    "list of a class": (lambda: [Shell], "a list with the class Shell instead of an object of it"),
    "coroutines": (lambda: [coroutine(), [coroutine()]], "a list with an object of type coroutine, which is no step"),
}
no_steps = pytest.mark.parametrize(("make", "complaint"), NO_STEPS.values(), ids=NO_STEPS)


@no_steps
@pytest.mark.usefixtures("no_coroutine_is_forgotten")
async def test_what_is_no_step_cannot_be_yielded(make: Callable[[], Any], complaint: str) -> None:
    class Root:
        async def execute(self) -> Steps:
            yield Shell(cmd="echo before")
            yield make()

    error = await bug(Root, fake := fleet())
    assert isinstance(error, DeploymentError)
    lines, first = inspect.getsourcelines(Root)
    line = first + next(number for number, text in enumerate(lines) if "make()" in text)
    assert str(error).startswith(f"Root.execute yielded {complaint}")
    assert str(error).endswith(f"({__file__}, line {line})")
    assert fake.commands("web1") == ["echo before"]


@no_steps
@pytest.mark.usefixtures("no_coroutine_is_forgotten")
async def test_what_is_no_step_cannot_be_awaited(make: Callable[[], Any], complaint: str) -> None:
    class Root:
        async def execute(self) -> None:
            await step(make())

    error = await bug(Root)
    errors = error.exceptions if isinstance(error, ExceptionGroup) else [error]
    assert {type(inner) for inner in errors} == {DeploymentError}
    assert complaint.removeprefix("a list with ").removeprefix("a list with ") in str(errors[0])


async def test_the_complaint_is_raised_at_the_yield() -> None:
    class Root:
        async def execute(self) -> Steps:
            try:
                yield 5
            except DeploymentError:
                yield Return(value="caught")

    assert (await only(Root)).value == "caught"


@pytest.mark.parametrize("nested", [False, True])
async def test_a_class_with_a_synchronous_generator(nested: bool) -> None:
    class Plain:
        def execute(self) -> Iterator[Any]:
            yield Shell(cmd="echo x")

    class Parent:
        async def execute(self) -> Steps:
            yield Plain()

    error = await bug(Parent if nested else Plain)
    assert isinstance(error, DeploymentError)
    assert str(error) == "Plain.execute is no 'async def': it answered with an object of type generator"


async def test_a_class_with_a_plain_method() -> None:
    class Plain:
        def execute(self) -> Any:
            return Shell

    assert "Plain.execute is no 'async def'" in str(await bug(Plain))


# Callback and Getcontext


async def test_callback_calls_a_function_with_the_context() -> None:
    async def asynchronous(context: Context) -> str:
        await asyncio.sleep(0)
        return f"{context.host} {context.inventory_item.connection.username}"

    def plain(context: Context) -> str:
        return context.host

    class Root:
        async def execute(self) -> Steps:
            first = yield Callback(callback=asynchronous)
            second = yield Callback(callback=plain)
            third = yield Callback(callback=lambda context: context.groups)
            yield Return(value=[first.value, second.value, third.value])

    item = InventoryItem(connection=Connection(host="web1", username="joe"), groups=["web"])
    response = await only(Root, Fake(item))
    assert response.value == ["web1 joe", "web1", ["web"]]
    assert response.changed is False


@pytest.mark.parametrize("value", [None, 0, "x", [1], {"a": 1}], ids=repr)
async def test_callback_answers_with_what_the_function_returns(value: Any) -> None:
    response = await only(lambda: Callback(callback=lambda context: value))
    assert response == {"host": "web1", "value": value, "changed": False, "error": False}


RETURNED: dict[str, tuple[Response[Any], dict[str, Any]]] = {
    "changed": (Response(value=1, changed=True), {"value": 1, "changed": True, "error": False}),
    "whole": (
        Response(host="other", value=1, changed=False, error=False),
        {"value": 1, "changed": False, "error": False},
    ),
    "value only": (Response(value=1), {"value": 1, "changed": False, "error": False}),
    "nothing": (Response(), {"value": None, "changed": False, "error": False}),
    "failure": (
        Response.of_failure(ConnectionRefused("nothing listens"), "other"),
        {
            "value": "ConnectionRefusedError", "changed": False, "error": True,
            "detail": "nothing listens", "outcome": "not_started",
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize(("returned", "expected"), RETURNED.values(), ids=RETURNED)
async def test_callback_may_return_a_response(returned: Response[Any], expected: dict[str, Any]) -> None:
    before = dict(returned)
    response = await only(lambda: Callback(callback=lambda context: returned))
    assert response == {"host": "web1", **expected}
    assert list(response) == ["host", *expected]
    assert returned == before


async def test_callback_may_run_a_deployment_elsewhere() -> None:
    async def ask_db(context: Context) -> Any:
        [response] = await run(lambda: Shell(cmd="lost"), fleet("db1"))
        return response

    response = await only(lambda: Callback(callback=ask_db))
    assert (response["host"], response["value"], response["outcome"]) == ("web1", "ConnectionLost", "unknown")


async def test_what_a_callback_raises_is_raised_at_the_yield() -> None:
    async def asynchronous(context: Context) -> None:
        raise Boom("asynchronous")

    def plain(context: Context) -> None:
        raise Boom("plain")

    class Root:
        async def execute(self) -> Steps:
            with pytest.raises(Boom, match="asynchronous"):
                yield Callback(callback=asynchronous)
            yield Callback(callback=plain)

    assert str(await bug(Root)) == "plain"


async def test_callback_needs_a_function() -> None:
    with pytest.raises(ValueError, match="callable"):
        Callback(callback=5)  # type: ignore[arg-type]


async def test_callback_on_the_hosts_of_a_group() -> None:
    responses = await run(lambda: Callback(callback=lambda context: context.host, group="web"), fleet(*WEB_AND_DB))
    assert [response.value for response in responses] == ["web1", "both"]


async def test_getcontext_answers_with_the_hosts_entry() -> None:
    class Root:
        async def execute(self) -> Steps:
            response = yield Getcontext()
            yield Return(value=response["value"].inventory_item.connection.username)

    item = InventoryItem(connection=Connection(host="web1", username="joe"))
    fake = Fake(item)
    assert (await only(Root, fake)).value == "joe"
    response = await only(Getcontext, fake)
    assert response["value"] == Context(inventory_item=item)
    assert response["changed"] is False
    assert fake.calls == []
