"""What happens during a run, as typed events: the one source of progress, logs and live output."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

from .response import Completed, Response, Responses

Stream = Literal["stdout", "stderr"]

LONGEST_LINE = 64 * 1024
"""Characters of a line that are handed on in one piece."""

MOST_LINES = 10_000
"""Lines of one piece of output that are told of: as many as wait for a listener at the most."""

HEAVIEST = 1024 * 1024
"""Bytes that a response counts for, at the most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that happened during a run."""

    time: float = field(default_factory=time.time)
    """When, in seconds since the epoch (UTC)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStarted(Event):
    """A run has begun; it is the first event."""

    hosts: tuple[str, ...]
    """The hosts that it is for, in inventory order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HostStarted(Event):
    """A host has its turn: its deployment begins."""

    host: str


@dataclass(frozen=True, kw_only=True, slots=True)
class HostConnected(Event):
    """A connection to the host stands, new or kept from an earlier run."""

    host: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StepStarted(Event):
    """A step of a host's deployment has begun."""

    host: str
    step: int
    """The number of the step: 1 is the deployment itself, each further step has the next one."""
    parent: int | None
    """The step that it is part of."""
    name: str
    """The label that it was given, or the name of its class."""
    operation: Any = field(repr=False)
    """The operation, or the object with an ``execute`` method."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputLine(Event):
    """A command of a step has written a line."""

    host: str
    step: int
    stream: Stream
    line: str
    """The text, without the newline; bytes that are not UTF-8 show as escapes."""
    complete: bool = True
    """Whether the line has ended: one of more than 65,536 characters comes in pieces."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFinished(Event):
    """A step has ended, well or not."""

    host: str
    step: int
    name: str
    response: Response[Any] | None
    """Its response; ``None`` where it raised or was cancelled."""
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class HostFinished(Event):
    """A host is done."""

    host: str
    response: Response[Any] | None
    """Its response; ``None`` where it ran nothing, or its deployment raised."""
    error: Exception | None = None
    """What the deployment's own code raised."""
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFinished(Event):
    """All hosts are done; it is the last event."""

    responses: Responses[Any]
    """The responses, in inventory order, also those of a run that was cancelled."""
    cancelled: bool = False
    """Whether the run was ended before it was done."""
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class EventsDropped(Event):
    """Whoever listens is too slow: events before this one were left out, the oldest first."""

    number: int


Emit = Callable[[Event], None]
"""Takes an event; it never waits."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an event comes from: the step that is running in this task."""

    emit: Emit
    host: str
    step: int
    lines: bool = True
    """Whether the lines that commands write are wanted."""


place: ContextVar[Place | None] = ContextVar("reemote_place", default=None)
"""The step that is running in this task, if anybody listens."""


def weight(event: Event) -> int:
    """Give the bytes, roughly, that an event keeps in memory."""
    if isinstance(event, OutputLine):
        return 256 + len(event.line)
    if isinstance(event, StepFinished | HostFinished) and event.response:
        value = event.response.get("completed") or event.response["value"]
        if isinstance(value, Completed):
            # A response with much output is kept by others, too: it is not to crowd out all else.
            return 1024 + min(2 * (len(value["stdout"]) + len(value["stderr"])), HEAVIEST)
    return 1024


class Lines:
    """Makes events of what a command writes to one of its streams."""

    def __init__(self, where: Place, stream: Stream, encoding: str = "utf-8") -> None:
        self._where = where
        self._stream: Stream = stream
        self._decode = codecs.getincrementaldecoder(encoding)("backslashreplace").decode
        self._begun = ""

    def add(self, data: bytes) -> None:
        """Take the next bytes."""
        *lines, self._begun = (self._begun + self._decode(data)).split("\n")
        if (missed := len(lines) - MOST_LINES) > 0:  # nobody can be told of so many at a time
            self._where.emit(EventsDropped(number=missed))
            del lines[:missed]
        for line in lines:
            self._tell(self._without_beginning(line).removesuffix("\r"))
        self._begun = self._without_beginning(self._begun)

    def end(self) -> None:
        """Hand on what is left: a last line without a newline."""
        rest, self._begun = self._begun + self._decode(b"", True), ""
        if rest:
            self._tell(rest)

    def _without_beginning(self, line: str) -> str:
        """Hand on the beginning of a line that is too long, and give the rest."""
        while len(line) > LONGEST_LINE:
            self._tell(line[:LONGEST_LINE], complete=False)
            line = line[LONGEST_LINE:]
        return line

    def _tell(self, line: str, *, complete: bool = True) -> None:
        where = self._where
        where.emit(OutputLine(host=where.host, step=where.step, stream=self._stream, line=line, complete=complete))
