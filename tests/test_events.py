"""What a run tells: its events, their order, and who listens to them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from reemote.core.errors import ConnectionRefused, ExecutionError, HostError, InventoryError
from reemote.events import (
    Event,
    EventsDropped,
    HostConnected,
    HostFinished,
    HostStarted,
    OutputLine,
    RunFinished,
    RunStarted,
    StepFinished,
    StepStarted,
)
from reemote.execute import Pool, execute, run, stream
from reemote.host import Getcontext, Shell
from reemote.sftp import Isfile, Read, Write
from reemote.system import Callback, Return
from reemote.testing import Fake, sandbox
from tests.leaks import eventually
from tests.measured import answer_of
from tests.openssh import UserSshd
from tests.ssh.hosts import inventory

pytestmark = pytest.mark.usefixtures("nothing_left")


async def collect(events: list[Event], reading: AsyncIterator[Event]) -> None:
    async for event in reading:
        events.append(event)


async def heard(factory: Any, hosts: Any, **options: Any) -> list[Event]:
    """Run, and give all events."""
    return [event async for event in stream(factory, hosts, **options)]


def told(events: list[Event], host: str | None = None) -> list[tuple[Any, ...]]:
    """The events of a host in short."""
    short: list[tuple[Any, ...]] = []
    for event in events:
        if host is not None and getattr(event, "host", host) != host:
            continue
        match event:
            case StepStarted():
                short.append(("step", event.step, event.parent, event.name))
            case StepFinished():
                short.append(("done", event.step, event.response["value"] if event.response else None))
            case OutputLine():
                short.append((event.stream, event.step, event.line))
            case _:
                short.append((type(event).__name__,))
    return short


# Order and content


async def test_the_events_of_a_step() -> None:
    fake = Fake("a")
    fake.on("uptime", stdout="up\n3 days\n", stderr="hm")
    events = await heard(lambda: Shell(cmd="uptime"), fake.inventory, pool=fake)
    record = events[-1].responses[0]["value"]  # type: ignore[attr-defined]
    assert told(events) == [
        ("RunStarted",),
        ("HostStarted",),
        ("step", 1, None, "Shell"),
        ("HostConnected",),
        ("stdout", 1, "up"),
        ("stdout", 1, "3 days"),
        ("stderr", 1, "hm"),
        ("done", 1, record),
        ("HostFinished",),
        ("RunFinished",),
    ]
    first, *_, finished, last = events
    assert isinstance(first, RunStarted)
    assert first.hosts == ("a",)
    assert isinstance(finished, HostFinished)
    assert (finished.host, finished.error, finished.response) == ("a", None, last.responses[0])  # type: ignore[attr-defined]
    assert isinstance(last, RunFinished)
    assert last.cancelled is False
    times = [event.time for event in events]
    assert times == sorted(times)
    assert abs(times[0] - time.time()) < 10
    assert 0 <= finished.seconds <= last.seconds < 10


class Outer:
    """A deployment in a deployment."""

    def __init__(self, *steps: Any) -> None:
        self.steps = steps

    async def execute(self) -> Any:
        for each in self.steps:
            yield each


async def test_parents() -> None:
    fake = Fake("a")
    for name in "abc":
        fake.on(name, stdout=name)
    inner = Outer(Shell(cmd="b", name="labelled"))
    events = await heard(lambda: Outer(Shell(cmd="a"), inner, Shell(cmd="c")), fake.inventory, pool=fake)
    assert [entry for entry in told(events) if entry[0] in ("step", "stdout")] == [
        ("step", 1, None, "Outer"),
        ("step", 2, 1, "Shell"),
        ("stdout", 2, "a"),
        ("step", 3, 1, "Outer"),
        ("step", 4, 3, "labelled"),
        ("stdout", 4, "b"),
        ("step", 5, 1, "Shell"),
        ("stdout", 5, "c"),
    ]
    started = [event for event in events if isinstance(event, StepStarted)]
    assert started[2].operation is inner
    ended = [event.step for event in events if isinstance(event, StepFinished)]
    assert ended == [2, 4, 3, 5, 1]


async def test_steps_at_the_same_time() -> None:
    fake = Fake("a")
    arrived = asyncio.Event()

    async def first(_: Any) -> str:
        await arrived.wait()
        return "first"

    def second(_: Any) -> str:
        arrived.set()
        return "second"

    fake.on("first", first)
    fake.on("second", second)

    class Awaits:
        async def execute(self) -> Any:
            async with asyncio.TaskGroup() as group:
                one = group.create_task(self.each("first"))
                group.create_task(self.each("second"))
            return one.result()

        async def each(self, command: str) -> Any:
            return (await Shell(cmd=command)).value.stdout

    for root in (lambda: Outer([Shell(cmd="first"), Shell(cmd="second")]), Awaits):
        arrived.clear()
        events = await heard(root, fake.inventory, pool=fake)
        steps = {event.step: event for event in events if isinstance(event, StepStarted)}
        assert {step.parent for number, step in steps.items() if number > 1} == {1}
        assert sorted(steps) == [1, 2, 3]
        lines = {event.line: event.step for event in events if isinstance(event, OutputLine)}
        assert [steps[lines[each]].operation.cmd for each in ("first", "second")] == ["first", "second"]
        ended = [event.step for event in events if isinstance(event, StepFinished)]
        assert ended == [lines["second"], lines["first"], 1]
        assert [entry for entry in told(events) if entry[0] == "HostConnected"] == [("HostConnected",)]


async def test_hosts_have_numbers_of_their_own() -> None:
    fake = Fake("a", "b")
    fake.on("x", stdout="out")
    events = await heard(lambda: Outer(Shell(cmd="x")), fake.inventory, pool=fake)
    for host in ("a", "b"):
        assert [entry for entry in told(events, host) if entry[0] in ("step", "stdout")] == [
            ("step", 1, None, "Outer"),
            ("step", 2, 1, "Shell"),
            ("stdout", 2, "out"),
        ]
    assert Counter(type(event).__name__ for event in events) == {
        "RunStarted": 1, "HostStarted": 2, "HostConnected": 2, "StepStarted": 4, "OutputLine": 2,
        "StepFinished": 4, "HostFinished": 2, "RunFinished": 1,
    }  # fmt: skip


async def test_steps_of_other_groups_are_not_told_of() -> None:
    fake = Fake("a")
    fake.on("x", stdout="out")
    events = await heard(lambda: Outer(Shell(cmd="no", group="db"), Shell(cmd="x")), fake.inventory, pool=fake)
    assert [event.step for event in events if isinstance(event, StepStarted)] == [1, 2]
    events = await heard(lambda: Shell(cmd="no", group="db"), fake.inventory, pool=fake)
    assert told(events) == [("RunStarted",), ("HostStarted",), ("HostFinished",), ("RunFinished",)]
    assert isinstance(events[2], HostFinished)
    assert events[2].response is None


async def test_a_failure_and_what_a_deployment_makes_of_it() -> None:
    fake = Fake("a", "b")
    fake.on("x", stdout="out")
    fake.fail("b", ConnectionRefused("nobody is there"))

    class Reads:
        async def execute(self) -> Any:
            response = yield Shell(cmd="x")
            yield Return(value=response.value.stdout)

    events = await heard(Reads, fake.inventory, pool=fake)
    assert told(events, "b")[2:-2] == [
        ("step", 1, None, "Reads"),
        ("step", 2, 1, "Shell"),
        ("done", 2, "ConnectionRefusedError"),
        ("done", 1, "ConnectionRefusedError"),
    ]
    assert told(events, "a")[-4:-2] == [("done", 3, "out"), ("done", 1, "out")]
    last = events[-1]
    assert isinstance(last, RunFinished)
    assert [response["error"] for response in last.responses] == [False, True]


async def test_a_bug_in_a_deployment() -> None:
    fake = Fake("a", "b")
    fake.on("x", stdout="out")

    class Wrong:
        async def execute(self) -> Any:
            response = yield Getcontext()
            if response["host"] == "b":
                raise KeyError("mine")
            yield Shell(cmd="x")

    events: list[Event] = []
    with pytest.raises(ExecutionError) as caught:
        await collect(events, stream(Wrong, fake.inventory, pool=fake))
    assert [type(each) for each in caught.value.exceptions] == [KeyError]
    [finished] = [event for event in events if isinstance(event, HostFinished) and event.host == "b"]
    assert finished.response is None
    assert finished.error is caught.value.exceptions[0]
    assert told(events, "b")[-3] == ("done", 1, None)
    last = events[-1]
    assert isinstance(last, RunFinished)
    assert [response["host"] for response in last.responses] == ["a"]
    assert last.responses == caught.value.responses


async def test_strict_failures() -> None:
    fake = Fake("a")
    fake.on("x", exit_status=3)
    events = await heard(lambda: Outer(Shell(cmd="x"), Shell(cmd="y")), fake.inventory, pool=fake, strict=True)
    assert [entry[:3] for entry in told(events) if entry[0] == "done"] == [
        ("done", 2, "CommandFailed"),
        ("done", 1, "CommandFailed"),
    ]
    assert fake.commands("a") == ["x"]


async def test_nothing_to_do() -> None:
    assert told(await heard(lambda: Shell(cmd="x"), {"hosts": []})) == [("RunStarted",), ("RunFinished",)]


async def test_what_cannot_start_is_said_at_once() -> None:
    events: list[Event] = []
    with pytest.raises(InventoryError):
        await execute(lambda: Shell(cmd="x"), {"hosts": [{"connection": {}}]}, on_event=events.append)
    wrong = {"hosts": [{"connection": {"host": "a", "nonesuch": 1}}]}
    with pytest.raises(InventoryError):
        await collect(events, stream(lambda: Shell(cmd="x"), wrong))
    with pytest.raises(ValueError, match="step_timeout"):
        await collect(events, stream(lambda: Shell(cmd="x"), {"hosts": []}, step_timeout=0))
    assert events == []


async def test_events_do_not_change_the_responses() -> None:
    fleet = sandbox("a", "b")
    async with fleet as hosts, Pool() as pool:
        root = lambda: Outer(Shell(cmd="echo x; echo y >&2; exit 3"), [Shell(cmd="echo z")])
        plain = await execute(root, hosts, pool=pool)
        events: list[Event] = []
        assert await execute(root, hosts, pool=pool, on_event=events.append) == plain
        assert events[-1].responses == plain  # type: ignore[attr-defined]


# dry_run


async def test_a_dry_run_reads_and_changes_nothing() -> None:
    fleet = sandbox("a")

    class Root:
        async def execute(self) -> Any:
            context = yield Getcontext()
            shell = yield Shell(cmd="touch made; echo ran")
            wrote = yield Write(path="file", text="new\n")
            there = yield Isfile(path="file")
            read = yield Read(path="nonesuch")
            called = yield Callback(callback=lambda _: (fleet["a"].home / "called").touch())
            yield Return(value=[context, shell, wrote, there, read, called])

    async with fleet as hosts, Pool() as pool:
        for strict in (False, True):
            events = await heard(Root, hosts, pool=pool, dry_run=True, strict=strict)
            if strict:  # what cannot be read fails, as in a run that is meant
                assert events[-1].responses[0]["value"] == "SFTPNoSuchFile"  # type: ignore[attr-defined]
                continue
            [response] = events[-1].responses  # type: ignore[attr-defined]
            context, shell, wrote, there, read, called = response["value"]
            assert context["value"].inventory_item.host == "a"
            assert (shell.skipped, shell["changed"], shell["error"]) == (True, False, False)
            assert shell["value"]["stdout"] == ""
            assert shell["value"]["command"] == "touch made; echo ran"
            assert (wrote["changed"], there["value"], read["value"]) == (True, False, "SFTPNoSuchFile")
            assert "+new" in wrote.diff
            assert not called.skipped  # it is a part of the deployment
        assert [path.name for path in fleet["a"].home.iterdir() if not path.name.startswith(".")] == ["called"]
        steps = [event for event in events if isinstance(event, StepFinished) and event.name == "Shell"]
        assert [step.response is not None and step.response.skipped for step in steps] == [True]
        assert not (await execute(Root, hosts, pool=pool)).failed
        assert (fleet["a"].home / "file").read_text() == "new\n"
        again = await heard(Root, hosts, pool=pool, dry_run=True)
        assert again[-1].responses[0]["value"][2]["changed"] is False  # type: ignore[attr-defined]


# Live output


@pytest.mark.slow
async def test_a_line_arrives_when_it_is_written(user_sshd: UserSshd) -> None:
    """Host and listener have the same clock here."""
    delays: list[float] = []
    told_after: list[float] = []

    async def listen(event: Event) -> None:
        if isinstance(event, OutputLine):
            delays.append(event.time - float(event.line))
            told_after.append(time.time() - float(event.line))

    command = "for n in 1 2 3 4 5 6 7 8; do date +%s.%N; date +%s.%N >&2; sleep 0.05; done"
    await execute(lambda: Shell(cmd=command), inventory(user_sshd.connection()), on_event=listen)
    assert len(delays) == 16
    assert max(delays) < 0.2
    assert max(told_after) < 0.2
    plain: list[float] = []

    def listen_in_a_thread(event: Event) -> None:
        if isinstance(event, OutputLine):
            plain.append(time.time() - float(event.line))

    await execute(lambda: Shell(cmd=command), inventory(user_sshd.connection()), on_event=listen_in_a_thread)
    assert len(plain) == 16
    assert max(plain) < 0.2


@pytest.mark.slow
async def test_the_connection_is_told_once_however_many_ask(user_sshd: UserSshd) -> None:
    async with Pool() as pool:
        hosts = inventory(user_sshd.connection())
        root = lambda: Outer([Shell(cmd="true") for _ in range(5)], Shell(cmd="true"))
        for _ in range(2):  # new, and kept from before
            events = await heard(root, hosts, pool=pool)
            assert len([event for event in events if isinstance(event, HostConnected)]) == 1


@pytest.mark.slow
async def test_odd_output(user_sshd: UserSshd) -> None:
    command = r"printf 'a\r\n\377\n\303'; sleep 0.1; printf '\274\nno end'; head -c 70000 /dev/zero | tr '\0' x >&2"
    events = await heard(lambda: Shell(cmd=command), inventory(user_sshd.connection()))
    out = [event.line for event in events if isinstance(event, OutputLine) and event.stream == "stdout"]
    err = [event for event in events if isinstance(event, OutputLine) and event.stream == "stderr"]
    assert out == ["a", "\\xff", "ü", "no end"]
    assert [(len(event.line), event.complete) for event in err] == [(65536, False), (4464, True)]


async def test_what_reemote_runs_for_itself_is_not_told() -> None:
    """Such as what it runs to compare and unpack files."""
    fleet = sandbox("a")
    async with fleet as hosts, Pool() as pool:
        await execute(lambda: Write(path="file", text="x"), hosts, pool=pool)
        events = await heard(lambda: Outer(Write(path="file", text="y"), Read(path="file")), hosts, pool=pool)
    assert not [event for event in events if isinstance(event, OutputLine)]


# Listeners


SLOW = """
import asyncio, json, time
from reemote.events import EventsDropped, HostFinished, OutputLine, RunFinished
from reemote.execute import execute
from reemote.host import Shell
from reemote.system import Return
from tests.measured import asked, measuring

hosts, kind, size = asked()
command = f"yes 'a line of a flood that nobody can read as it comes' | head -n {size}; echo the end"
heard = {"lines": 0, "dropped": 0, "last": ""}

class Root:
    async def execute(self):
        response = yield Shell(cmd=command, output=1_000_000)
        heard["seconds"] = time.perf_counter() - start
        free.set()
        yield Return(value=response["value"]["stdout_size"])

def note(event):
    if isinstance(event, OutputLine):
        heard["lines"] += 1
        heard["last"] = event.line
    elif isinstance(event, EventsDropped):
        heard["dropped"] += event.number

def blocking(event):
    while not free.is_set():
        time.sleep(0.01)
    note(event)

async def stuck(event):
    await free.wait()
    note(event)

async def main():
    global free, start
    free = asyncio.Event()
    await execute(lambda: Shell(cmd="true"), hosts)
    listener = {"blocking": blocking, "stuck": stuck}[kind]
    async with measuring() as found:
        start = time.perf_counter()
        [response] = await execute(Root, hosts, on_event=listener)
    print(json.dumps({**heard, **found, "size": response["value"]}))

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["blocking", "stuck"])
def test_a_slow_listener_holds_no_host_up(user_sshd: UserSshd, kind: str) -> None:
    """It misses much of the output, is told how much, and costs neither time nor memory."""
    lines = 500_000
    found = answer_of(SLOW, user_sshd.connection(), kind, lines)
    assert 0 <= found["lines"] + found["dropped"] - lines - 1 <= 4  # the events that are no lines may be dropped, too
    assert found["last"] == "the end"
    assert found["dropped"] > 400_000
    assert found["size"] == lines * len("a line of a flood that nobody can read as it comes\n") + len("the end\n")
    assert found["growth"] < 100
    assert found["lag"] < 0.25
    assert found["seconds"] < 10


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
async def test_a_listener_that_raises_is_told_of_at_the_end(kind: str) -> None:
    fake = Fake("a", "b")
    fake.on("x", stdout="out")
    calls = 0

    def plain(_: Event) -> None:
        nonlocal calls
        calls += 1
        raise ValueError("mine")

    async def coroutine(event: Event) -> None:
        plain(event)

    listener: Any = plain if kind == "plain" else coroutine
    with pytest.raises(ExecutionError, match="on_event") as caught:
        await execute(lambda: Outer(Shell(cmd="x"), Shell(cmd="x")), fake.inventory, pool=fake, on_event=listener)
    assert calls == 1
    assert [repr(error) for error in caught.value.exceptions] == ["ValueError('mine')"]
    assert [response["value"]["stdout"] for response in caught.value.responses] == ["out", "out"]
    assert len(fake.calls) == 4


async def test_a_listener_and_a_deployment_that_raise() -> None:
    """Neither may hide the other."""
    fake = Fake("a")

    def listener(_: Event) -> None:
        raise ValueError("of the listener")

    class Wrong:
        async def execute(self) -> Any:
            yield Getcontext()
            raise KeyError("of the deployment")

    with pytest.raises(ExecutionError) as caught:
        await execute(Wrong, fake.inventory, pool=fake, on_event=listener)
    text = (
        repr(caught.value.exceptions) + repr(caught.value.__context__) + "".join(getattr(caught.value, "__notes__", ()))
    )
    assert "of the deployment" in text
    assert "of the listener" in text


def test_run_tells_too() -> None:
    fake = Fake("a")
    fake.on("x", stdout="out")
    events: list[Event] = []
    run(lambda: Shell(cmd="x"), fake.inventory, pool=fake, on_event=events.append)
    assert [type(events[0]), type(events[-1])] == [RunStarted, RunFinished]


# Cancellation


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
async def test_the_end_of_a_cancelled_run_is_told(kind: str) -> None:
    fake = Fake("a", "b")
    begun = asyncio.Event()

    async def wait(call: Any) -> str:
        if call.host == "a":
            return "done"
        begun.set()
        await asyncio.Event().wait()
        return ""

    fake.on("x", wait)
    events: list[Event] = []

    async def coroutine(event: Event) -> None:
        await asyncio.sleep(0)
        events.append(event)

    listener: Any = events.append if kind == "plain" else coroutine
    running = asyncio.create_task(execute(lambda: Shell(cmd="x"), fake.inventory, pool=fake, on_event=listener))
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    last = events[-1]
    assert isinstance(last, RunFinished)
    assert last.cancelled is True
    assert [response["error"] for response in last.responses] == [False, True]
    assert last.responses[1]["value"] == "Cancelled"
    assert [event.host for event in events if isinstance(event, HostFinished)] == ["a", "b"]
    assert told(events, "b")[-3:-1] == [("done", 1, None), ("HostFinished",)]


async def test_hosts_that_had_no_turn_are_told_of() -> None:
    fake = Fake("a", "b", "c")
    begun = asyncio.Event()

    async def wait(_: Any) -> str:
        begun.set()
        await asyncio.Event().wait()
        return ""

    fake.on("x", wait)
    events: list[Event] = []
    running = asyncio.create_task(
        execute(lambda: Shell(cmd="x"), fake.inventory, pool=fake, on_event=events.append, concurrency=1)
    )
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [event.host for event in events if isinstance(event, HostStarted)] == ["a"]
    last = events[-1]
    assert isinstance(last, RunFinished)
    assert [(response["host"], response["value"], response["outcome"]) for response in last.responses] == [
        ("a", "Cancelled", "unknown"),
        ("b", "Cancelled", "not_started"),
        ("c", "Cancelled", "not_started"),
    ]


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
async def test_a_listener_that_hangs_does_not_keep_a_cancelled_run(kind: str) -> None:
    """A terminal that was stopped with Ctrl-S, say: then comes Ctrl-C."""
    fake = Fake("a")
    begun, free = asyncio.Event(), threading.Event()

    async def wait(_: Any) -> str:
        begun.set()
        await asyncio.Event().wait()
        return ""

    async def stuck(_: Event) -> None:
        await asyncio.Event().wait()

    fake.on("x", wait)
    listener: Any = stuck if kind == "coroutine" else lambda _: free.wait()
    running = asyncio.create_task(execute(lambda: Shell(cmd="x"), fake.inventory, pool=fake, on_event=listener))
    try:
        await begun.wait()
        running.cancel()
        done, _ = await asyncio.wait([running], timeout=4)
        assert done
    finally:
        free.set()
        running.cancel()
        await asyncio.wait([running])


# stream()


class Forever:
    """Commands that a stream has to end when it is closed."""

    async def execute(self) -> Any:
        try:
            yield Shell(cmd="echo $$ > pid; echo begun; exec sleep 300")
        finally:
            yield Shell(cmd="touch cleaned")


@pytest.mark.parametrize("way", ["break", "raise", "cancel", "close"])
async def test_a_stream_that_is_left_ends_the_run(way: str) -> None:
    fleet = sandbox("a", "b")
    begun: set[str] = set()

    async def read(hosts: Any, pool: Pool) -> None:
        async with aclosing(stream(Forever, hosts, pool=pool)) as events:
            async for event in events:
                if isinstance(event, OutputLine):
                    begun.add(event.host)
                if len(begun) < 2:
                    continue
                if way == "raise":
                    raise KeyError("mine")
                if way == "cancel":
                    await asyncio.Event().wait()
                if way == "close":
                    await events.aclose()
                break

    async with fleet as hosts, Pool() as pool:
        reading = asyncio.create_task(read(hosts, pool))
        await eventually(lambda: len(begun) == 2)
        if way == "cancel":
            reading.cancel()
        [result] = await asyncio.gather(reading, return_exceptions=True)
        assert type(result) is {"raise": KeyError, "cancel": asyncio.CancelledError}.get(way, type(None))
        for name in ("a", "b"):
            assert (fleet[name].home / "cleaned").exists()
            pid = int((fleet[name].home / "pid").read_text())
            ended = Path(f"/proc/{pid}")
            await eventually(lambda ended=ended: not ended.exists())  # type: ignore[misc]


async def test_a_stream_that_is_forgotten_ends_the_run() -> None:
    """Left without closing it, as many will write: Python closes it."""
    fleet = sandbox("a")
    async with fleet as hosts, Pool() as pool:
        async for event in stream(Forever, hosts, pool=pool):
            if isinstance(event, OutputLine):
                break
        await eventually((fleet["a"].home / "cleaned").exists)


async def test_a_stream_that_is_never_read_runs_nothing() -> None:
    fake = Fake("a")
    events = stream(lambda: Shell(cmd="x"), fake.inventory, pool=fake)
    await events.aclose()
    assert fake.calls == []


@pytest.mark.parametrize("ending", [RunFinished, HostFinished])
async def test_a_stream_that_is_left_at_the_end_of_a_run_with_bugs(ending: type[Event]) -> None:
    """The reader has seen all that it wanted; what was raised is nobody's concern any more."""
    fake = Fake("a")

    class Wrong:
        async def execute(self) -> Any:
            yield Getcontext()
            raise KeyError("mine")

    async with aclosing(stream(Wrong, fake.inventory, pool=fake)) as events:
        async for event in events:
            if isinstance(event, ending):
                await asyncio.sleep(0.01)
                break


async def test_a_slow_reader_of_a_stream_misses_lines_and_holds_nobody_up() -> None:
    fake = Fake("a")
    fake.on("x", stdout="".join(f"{number}\n" for number in range(30_000)))
    events: list[Event] = []
    async with aclosing(stream(lambda: Shell(cmd="x"), fake.inventory, pool=fake)) as reading:
        async for event in reading:
            events.append(event)
            if len(events) == 1:
                await eventually(lambda: fake.calls)
    dropped = sum(event.number for event in events if isinstance(event, EventsDropped))
    lines = [event.line for event in events if isinstance(event, OutputLine)]
    assert lines[-1] == "29999"
    assert 0 <= len(lines) + dropped - 30_000 <= 4
    assert [type(event) for event in events[:2]] == [RunStarted, EventsDropped] or dropped == 0
    assert isinstance(events[-1], RunFinished)
    assert len(events[-1].responses[0]["value"]["stdout"].splitlines()) == 30_000


async def test_streams_at_the_same_time_have_their_own_events() -> None:
    fake = Fake("a")
    for name in "xyz":
        fake.on(name, stdout=name)
    all_events = await asyncio.gather(*(heard(lambda n=n: Shell(cmd=n), fake.inventory, pool=fake) for n in "xyz"))
    for name, events in zip("xyz", all_events, strict=True):
        assert [event.line for event in events if isinstance(event, OutputLine)] == [name]


async def test_a_run_in_a_run_has_its_own_events() -> None:
    """A listener of the outer run is not told of what the deployment runs by itself."""
    fake = Fake("a")
    fake.on("outer", stdout="outer")
    fake.on("inner", stdout="inner")

    class Both:
        async def execute(self) -> Any:
            yield Shell(cmd="outer")
            await execute(lambda: Shell(cmd="inner"), fake.inventory, pool=fake)

    events = await heard(Both, fake.inventory, pool=fake)
    assert [event.line for event in events if isinstance(event, OutputLine)] == ["outer"]


async def test_times_of_a_step_that_is_out_of_time() -> None:
    fake = Fake("a")

    async def wait(_: Any) -> str:
        await asyncio.Event().wait()
        return ""

    fake.on("x", wait)
    fake.on("y", stdout="after")
    events = await heard(lambda: Outer(Shell(cmd="x"), Shell(cmd="y")), fake.inventory, pool=fake, step_timeout=0.2)
    [late] = [event for event in events if isinstance(event, StepFinished) and event.step == 2]
    assert late.response is not None
    assert late.response["value"] == "CommandTimeout"
    assert 0.2 <= late.seconds < 1
    assert events[-1].responses[0]["value"]["stdout"] == "after"  # type: ignore[attr-defined]
    with pytest.raises(HostError):
        late.response.raise_for_error()
