"""A command and how to run it, and what is sent for it."""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import CommandTimeout, HostError
from ..core.events import Place
from ..core.response import Completed
from . import wire
from .gate import Gate
from .sink import Sink
from .wire import Become, Marks

KEPT = 64 * 1024 * 1024
"""Bytes that are kept of each output stream: the first half and the last half of what is longer."""


@dataclass
class Request:
    """A command, and how to run it."""

    command: str | Sequence[str]
    """A command for the login shell, or a program with its arguments."""
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    stdin: bytes | AsyncIterable[bytes] | None = None
    timeout: float | None = None
    """Seconds for all of it, from the opening of the session to the command's end."""
    session: Mapping[str, Any] = field(default_factory=dict)
    encoding: str = "utf-8"
    who: Become | None = None
    """Who is to run it, if not the user who logs in."""
    terminal: bool = False
    """Whether it runs on a terminal, as sudo or su may ask for."""
    watched: bool = False
    """Whether the host ends it when the connection is lost."""
    kept: int = KEPT
    """Bytes that are kept of each output stream."""
    sink: Sink | None = None
    """What takes standard output, instead of the record."""
    where: Place | None = None
    """Who is told of the lines that it writes."""
    is_question: bool = False
    """Whether it is one of ours that only looks and leaves nothing behind, and may share a shell with others."""
    passed: Callable[[], None] | None = None
    """Called when sudo or su has let it pass."""

    @property
    def text(self) -> str:
        """The command for people, and for the record."""
        return self.command if isinstance(self.command, str) else shlex.join(self.command)

    def gate(self) -> Gate | None:
        """Make the gate that a command with other privileges has to pass."""
        return None if self.who is None else Gate(self.who, Marks())

    @property
    def has_input(self) -> bool:
        """Whether something is to be sent to it: input, or a password."""
        return self.stdin is not None or self.who is not None

    @property
    def is_plain(self) -> bool:
        """Whether its session has no options."""
        return not self.session and not self.terminal

    @property
    def is_simple(self) -> bool:
        """Whether it needs no session of its own: no input, no terminal, no privileges, no watcher, no file."""
        return self.is_plain and not self.has_input and not self.watched and self.sink is None

    @property
    def is_bare(self) -> bool:
        """Whether sudo runs the program itself: it may be all that it allows."""
        is_sudo = self.who is not None and self.who.method == "sudo"
        return is_sudo and not isinstance(self.command, str) and not self.watched

    def wire(self, gate: Gate | None) -> str:
        """Write the command as it is sent.

        Raises:
            HostError: It is longer than a host takes; nothing was sent.
        """
        if not isinstance(self.command, str) and self.command[0].startswith("-"):
            raise HostError("a program's name cannot begin with '-'", kind="CommandFailed", outcome="not_started")
        text = self._wire(gate)
        # A longer one would make the host end the connection, or not run the command.
        if (size := len(text.encode("utf-8", "surrogateescape"))) > wire.LONGEST:
            raise HostError(
                f"the command, with all that is around it, has {size:,} bytes, and hosts take {wire.LONGEST:,}: give "
                "a longer script or text on stdin",
                kind="CommandTooLong",
                outcome="not_started",
            )
        return text

    def _wire(self, gate: Gate | None) -> str:
        command, env, cwd = self.command, self.env, self.cwd
        if gate is None:
            return wire.plain(command, env, cwd, watched=self.watched)
        size = len(self.stdin) if isinstance(self.stdin, bytes) else 0
        terminal = size if self.terminal else None
        if self.is_bare:
            return wire.bare(gate.who, gate.marks, command, env, cwd, terminal=terminal)
        return wire.become(gate.who, gate.marks, command, env, cwd, watched=self.watched, terminal=terminal)

    def options(self) -> dict[str, Any]:
        """Give the options of the session that it runs in."""
        terminal = {"request_pty": "force", "term_type": "dumb"} if self.terminal else {}
        return {**self.session, **terminal, "encoding": None}

    def nothing(self) -> Completed:
        """Make the record of a command of which nothing is known."""
        return Completed(command=self.text, exit_status=None)

    def late(self, record: Completed) -> CommandTimeout:
        """Make the error that tells that the command did not end in time."""
        shown = self.text.partition("\n")[0]
        return CommandTimeout(f"{shown!r} did not end within {self.timeout:g} s", completed=record)
