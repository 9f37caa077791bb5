"""Events that wait for whoever takes them, lines that are made of output, and listeners of all kinds."""

from __future__ import annotations

import asyncio
import threading
import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reemote.core import listening
from reemote.core.events import (
    LONGEST_LINE,
    Event,
    EventsDropped,
    HostFinished,
    HostStarted,
    Lines,
    OutputLine,
    Place,
    RunFinished,
    RunStarted,
    StepFinished,
    StepStarted,
    weight,
)
from reemote.core.listening import MOST_BYTES, MOST_EVENTS, Events, Telling
from reemote.core.response import Completed, Response, Responses
from tests.leaks import eventually


def line(text: str = "x", host: str = "a") -> OutputLine:
    return OutputLine(host=host, step=1, stream="stdout", line=text)


def step(host: str = "a") -> StepStarted:
    return StepStarted(host=host, step=1, parent=None, name="x", operation=None)


def finished(size: int) -> StepFinished:
    """The end of a step that wrote much."""
    value = Completed(command="x", stdout="x" * size)
    response: Response[Any] = Response(host="a", value=value, changed=True, error=False)
    return StepFinished(host="a", step=1, name="x", response=response, seconds=0)


FRAME: list[Event] = [
    RunStarted(hosts=("a",)),
    HostStarted(host="a"),
    HostFinished(host="a", response=None, seconds=0),
    RunFinished(responses=Responses(), seconds=0),
]


# Lines


def lines_of(*pieces: bytes, encoding: str = "utf-8") -> list[tuple[str, bool]]:
    heard: list[Event] = []
    lines = Lines(Place(heard.append, "a", 7), "stderr", encoding)
    for piece in pieces:
        lines.add(piece)
    lines.end()
    assert all(isinstance(event, OutputLine) for event in heard)
    assert {(event.host, event.step, event.stream) for event in heard} <= {("a", 7, "stderr")}  # type: ignore[attr-defined]
    return [(event.line, event.complete) for event in heard]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"a\nb\n", ["a", "b"]),
        (b"a\nno end", ["a", "no end"]),
        (b"a\r\nb\r\n\r\n", ["a", "b", ""]),
        (b"10%\r20%\rdone\n", ["10%\r20%\rdone"]),
        (b"ends in a return\r", ["ends in a return\r"]),
        ("ü漢😀\n".encode(), ["ü漢😀"]),
        (b"\xff\xfe x \xc3\n\xa9\n", ["\\xff\\xfe x \\xc3", "\\xa9"]),
        (b"cut \xe2\x82", ["cut \\xe2\\x82"]),
        (b"a\0b\x1b[31m\n", ["a\0b\x1b[31m"]),
        ("a\u2028b\x85c\x0bd\n".encode(), ["a\u2028b\x85c\x0bd"]),
    ],
)
def test_lines(data: bytes, lines: list[str]) -> None:
    expected = [(each, True) for each in lines]
    assert lines_of(data) == expected
    assert lines_of(*(data[n : n + 1] for n in range(len(data)))) == expected


@given(data=st.binary(max_size=200), cuts=st.sets(st.integers(0, 200), max_size=6))
def test_no_split_of_the_output_matters(data: bytes, cuts: set[int]) -> None:
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    assert lines_of(*(data[a:b] for a, b in pairwise(places))) == lines_of(data)


def test_long_lines_come_in_pieces() -> None:
    long = "".join(chr(ord("a") + n % 26) for n in range(2 * LONGEST_LINE + 5))
    for pieces in ([long.encode() + b"\nnext\n"], [long.encode()[n : n + 1000] for n in range(0, len(long), 1000)]):
        heard = lines_of(*pieces)
        assert [len(text) for text, _ in heard][:3] == [LONGEST_LINE, LONGEST_LINE, 5]
        assert [complete for _, complete in heard][:3] == [False, False, True]
        assert "".join(text for text, _ in heard[:3]) == long
    exactly = b"x" * LONGEST_LINE + b"\n"
    assert lines_of(exactly) == lines_of(exactly[:7], exactly[7:]) == [("x" * LONGEST_LINE, True)]


def test_a_line_that_never_ends_is_not_kept() -> None:
    heard: list[Event] = []
    lines = Lines(Place(heard.append, "a", 1), "stdout")
    start = time.perf_counter()
    for _ in range(200):
        lines.add(b"x" * 32768)
        assert len(lines._begun) <= LONGEST_LINE
    assert len(heard) == 200 * 32768 // LONGEST_LINE - 1
    assert time.perf_counter() - start < 2


def test_another_encoding() -> None:
    assert lines_of("ü\n".encode("latin-1"), encoding="latin-1") == [("ü", True)]
    data = "aü\nb\n".encode("utf-16-le")
    assert lines_of(*(data[n : n + 1] for n in range(len(data))), encoding="utf-16-le") == [("aü", True), ("b", True)]


# Events that wait


async def drained(events: Events, most: int = 100) -> list[Event]:
    """Take all that there is and will be."""
    taken: list[Event] = []
    while batch := await events.next(most):
        assert len(batch) <= most
        taken += batch
    return taken


@pytest.mark.parametrize("most", [1, 3, 1000])
async def test_events_come_in_order(most: int) -> None:
    events, sent = Events(), []
    for number in range(50):
        sent += [step(f"{number}"), line(f"{number}"), HostStarted(host=f"{number}")]
    for event in sent:
        events.emit(event)
    events.end()
    assert await drained(events, most) == sent
    assert await events.next(most) == []


async def test_who_waits_is_woken() -> None:
    events = Events()
    waiting = asyncio.create_task(events.next(5))
    await asyncio.sleep(0)
    events.emit(line("now"))
    assert [event.line for event in await waiting] == ["now"]  # type: ignore[attr-defined]
    waiting = asyncio.create_task(events.next(5))
    await asyncio.sleep(0)
    events.end()
    assert await waiting == []


async def test_of_too_many_lines_the_oldest_go_and_are_counted() -> None:
    events = Events()
    events.emit(FRAME[0])
    events.emit(FRAME[1])
    events.emit(step())
    for number in range(MOST_EVENTS + 500):
        events.emit(line(str(number)))
    events.emit(FRAME[2])
    events.end()
    taken = await drained(events, 7)
    dropped = [event for event in taken if isinstance(event, EventsDropped)]
    assert [event.number for event in dropped] == [501]
    assert taken[0] is dropped[0]
    rest = [event for event in taken if event not in dropped]
    assert [type(event) for event in rest[:3]] == [RunStarted, HostStarted, StepStarted]
    assert [event.line for event in rest[3:-1]] == [str(n) for n in range(501, MOST_EVENTS + 500)]  # type: ignore[attr-defined]
    assert rest[-1] is FRAME[2]


async def test_what_is_told_and_what_is_dropped_add_up() -> None:
    events = Events()
    told = dropped = 0
    for number in range(5 * MOST_EVENTS):
        events.emit(line(str(number)))
        if number % 1000 == 999:  # one who takes a little at a time
            for event in events.take(200):
                if isinstance(event, EventsDropped):
                    dropped += event.number
                else:
                    told += 1
    events.end()
    for event in await drained(events):
        told, dropped = (told, dropped + event.number) if isinstance(event, EventsDropped) else (told + 1, dropped)
    assert told + dropped == 5 * MOST_EVENTS
    assert dropped > 0


async def test_memory_is_bounded_by_bytes_too() -> None:
    events = Events()
    for _ in range(3000):
        events.emit(line("x" * LONGEST_LINE))
        assert events._bytes <= MOST_BYTES
    kept = [event for event in events.take(10_000) if isinstance(event, OutputLine)]
    assert sum(map(weight, kept)) <= MOST_BYTES
    assert len(kept) > 400
    assert events._bytes == 0


async def test_the_frame_of_a_run_is_never_dropped() -> None:
    events = Events()
    for number in range(3 * MOST_EVENTS):
        events.emit(HostStarted(host=str(number)))
        events.emit(step(str(number)))
        events.emit(line())
    events.end()
    taken = await drained(events, 500)
    assert [event.host for event in taken if isinstance(event, HostStarted)] == [str(n) for n in range(3 * MOST_EVENTS)]
    steps = [event for event in taken if isinstance(event, StepStarted)]
    assert len(steps) == MOST_EVENTS  # before them, the lines went
    assert not [event for event in taken if isinstance(event, OutputLine)]


async def test_a_step_with_much_output_is_told_of() -> None:
    """Its output is in memory anyway, for the responses: that is no reason to drop what is there to be told."""
    events = Events()
    sent = [step(), line("one"), finished(20 * 1024 * 1024)]
    for event in sent:
        events.emit(event)
    assert events.take(10) == sent


# Listeners


async def told(listener: Any, events: list[Event]) -> Telling:
    telling = Telling(listener)
    for event in events:
        telling.events.emit(event)
        await asyncio.sleep(0)
    await telling.close()
    return telling


@pytest.mark.usefixtures("nothing_left")
class TestListeners:
    async def test_a_coroutine_function_is_awaited_in_the_loop(self) -> None:
        heard: list[Event] = []

        async def listen(event: Event) -> None:
            assert threading.current_thread() is threading.main_thread()
            await asyncio.sleep(0)
            heard.append(event)

        assert (await told(listen, FRAME)).error is None
        assert heard == FRAME

    async def test_an_object_with_an_asynchronous_call(self) -> None:
        heard: list[Event] = []

        class Listener:
            async def __call__(self, event: Event) -> None:
                heard.append(event)

            async def method(self, event: Event) -> None:
                heard.append(event)

        await told(Listener(), FRAME)
        await told(Listener().method, FRAME)
        assert heard == FRAME * 2

    async def test_a_plain_function_is_called_in_a_thread_one_event_after_the_other(self) -> None:
        heard: list[Event] = []
        inside = 0

        def listen(event: Event) -> None:
            nonlocal inside
            inside += 1
            assert inside == 1
            assert threading.current_thread() is not threading.main_thread()
            time.sleep(0.001)
            heard.append(event)
            inside -= 1

        assert (await told(listen, FRAME * 20)).error is None
        assert heard == FRAME * 20

    async def test_a_lambda_and_a_method_of_a_list(self) -> None:
        heard: list[Event] = []
        await told(heard.append, FRAME)
        await told(lambda event: heard.append(event), FRAME)
        assert heard == FRAME * 2

    async def test_a_function_that_answers_with_a_coroutine(self) -> None:
        """A lambda around a coroutine function, or functools.partial of one."""
        heard: list[Event] = []

        async def listen(event: Event) -> None:
            heard.append(event)

        assert (await told(lambda event: listen(event), FRAME)).error is None
        assert heard == FRAME

    @pytest.mark.parametrize("kind", ["plain", "coroutine"])
    async def test_one_that_raises_is_called_no_more(self, kind: str) -> None:
        heard: list[Event] = []

        def plain(event: Event) -> None:
            heard.append(event)
            if len(heard) == 3:
                raise ValueError("enough")

        async def coroutine(event: Event) -> None:
            plain(event)

        telling = await told(plain if kind == "plain" else coroutine, FRAME * 50)
        assert repr(telling.error) == "ValueError('enough')"
        assert heard == FRAME[:3]
        assert telling.events._bytes == 0

    async def test_the_loop_does_not_wait_for_a_blocking_one(self) -> None:
        free = threading.Event()

        def listen(_: Event) -> None:
            free.wait()

        telling = Telling(listen)
        lag = await self.lag(telling)
        assert lag < 0.25
        free.set()
        await telling.close()

    async def test_the_loop_does_not_wait_for_one_that_never_returns(self) -> None:
        async def listen(event: Event) -> None:
            await asyncio.Event().wait()

        telling = Telling(listen)
        assert await self.lag(telling) < 0.25
        closing = asyncio.create_task(telling.close())
        await asyncio.sleep(0.01)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing

    async def lag(self, telling: Telling) -> float:
        """Send many events, and measure the longest time that the loop was away."""
        worst, last = 0.0, time.perf_counter()
        for number in range(40_000):
            telling.events.emit(line(str(number)))
            if number % 500 == 0:
                await asyncio.sleep(0)
                now = time.perf_counter()
                worst, last = max(worst, now - last), now
        assert telling.events._count == 40_000
        assert len(telling.events._lines) <= MOST_EVENTS
        return worst

    async def test_all_is_told_before_the_end(self) -> None:
        heard: list[Event] = []

        def slow(event: Event) -> None:
            time.sleep(0.0005)
            heard.append(event)

        telling = Telling(slow)
        for event in FRAME * 200:
            telling.events.emit(event)
        await telling.close()
        assert heard == FRAME * 200

    async def test_a_slow_one_hears_how_much_it_missed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(listening, "MOST_EVENTS", 100)
        heard: list[Event] = []
        free = asyncio.Event()

        async def listen(event: Event) -> None:
            heard.append(event)
            await free.wait()

        telling = Telling(listen)
        for number in range(1000):
            telling.events.emit(line(str(number)))
            if number == 0:
                await eventually(lambda: heard)
        free.set()
        await telling.close()
        assert [event.number for event in heard if isinstance(event, EventsDropped)] == [899]
        assert len([event for event in heard if isinstance(event, OutputLine)]) == 101
