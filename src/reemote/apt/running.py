"""APT and dpkg on one host: the scripts that are run there, and what comes back of them."""

from __future__ import annotations

import asyncio
import re
import secrets
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..core.errors import CommandFailed, HostError
from ..core.events import Event, OutputLine, place
from ..core.host import Host
from ..core.response import Completed
from .scripts import CHANGE, INSTALLED, KNOWN, REFRESH

LOCK_TIMEOUT = 60
"""Seconds to wait for a lock, unless told otherwise; as in Ansible."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 5.0
"""Seconds between two looks at a lock; the pause grows."""

# sudo does not hand on variables, so they are part of the command. needrestart asks nothing in the mode "l", and
# restarts nothing either. With C alone as locale, PostgreSQL would set up its databases without an encoding.
_ENVIRONMENT = (
    "env",
    "DEBIAN_FRONTEND=noninteractive",
    "LC_ALL=C.UTF-8",
    "LANGUAGE=",
    "APT_LISTCHANGES_FRONTEND=none",
    "APT_LISTBUGS_FRONTEND=none",
    "NEEDRESTART_MODE=l",
    "UCF_FORCE_CONFFOLD=1",
)
# We wait for locks ourselves: APT knows no waiting for some of them, older APT for none. What was installed before
# is then looked up after the wait. Pattern-Only: names are no regular expressions.
_OPTIONS = (
    "DPkg::Lock::Timeout=0",
    "Dpkg::Options::=--force-confdef",
    "Dpkg::Options::=--force-confold",
    "Dpkg::Use-Pty=0",
    "APT::Cmd::Pattern-Only=true",
    "APT::Get::Show-User-Simulation-Note=no",
    "APT::Update::Error-Mode=any",
)
_LOCKED = re.compile(r"^E: (Could not get lock .*|.*, is another process using it\?)$", re.MULTILINE)
_LONGEST_SHOWN = 200


def apt_get(*arguments: str) -> list[str]:
    """Write a command of apt-get(8) that asks nothing."""
    options = [word for option in _OPTIONS for word in ("-o", option)]
    return [*_ENVIRONMENT, "apt-get", "-q", "-y", *options, *arguments]


@dataclass
class _Ran:
    """A script that was run on a host: its record, and what it printed between its marks."""

    record: Completed
    parts: list[bytes]

    def part(self, number: int) -> str | None:
        """Give one part; ``None`` where it is missing, or was cut off."""
        return self.parts[number].decode("utf-8", "backslashreplace") if number < len(self.parts) - 1 else None

    def shown_as(self, command: Sequence[str]) -> Completed:
        """Give the record as that of the command that the script was for."""
        record = self.record
        shown = Completed(
            command=shlex.join(command),
            exit_status=record["exit_status"],
            exit_signal=record["exit_signal"],
            returncode=record["returncode"],
            stdout=self.parts[1] if len(self.parts) > 1 else b"",
            stderr=record.stderr_bytes,
        )
        shown.update((key, value) for key, value in record.items() if key not in shown)
        return shown


class Outcome(NamedTuple):
    """What came of a command of apt-get."""

    record: Completed
    failure: HostError | None
    differences: str | None
    """What is other than before, a line for each; ``None`` where nobody knows."""


class Apt:
    """APT on one host.

    Args:
        host: The host.
        options: The options of :meth:`Host.run` that the operation has.
        lock_timeout: Seconds to wait while another program holds a lock.
    """

    def __init__(self, host: Host, options: Mapping[str, Any], lock_timeout: float = LOCK_TIMEOUT) -> None:
        self._host = host
        self._options = options
        self._lock_timeout = lock_timeout

    async def installed(self, form: str, names: Sequence[str] = ()) -> tuple[str, list[str]]:
        """Give the host's own architecture, and a line for each package.

        With *names*, only lines in which one of them is, wherever that may be.
        """
        patterns = [word for name in names for word in ("-e", name)]
        text = await self._ask(INSTALLED, ["dpkg-query", "-W"], form, *patterns)
        native, *lines = text.splitlines()
        return native, lines

    async def known(self, names: Sequence[str]) -> set[str]:
        """Give those of the names that are packages, installed or not, and no virtual ones."""
        text = await self._ask(KNOWN, ["apt-cache", "pkgnames"], *names)
        return set(text.splitlines())

    async def change(self, arguments: Sequence[str], names: Sequence[str], form: str) -> Outcome:
        """Run ``apt-get`` with *arguments*, once all of *names* are known, and compare the packages."""
        return await self._run(CHANGE, arguments, form, " ".join(names))

    async def refresh(self, valid: int) -> Outcome:
        """Run ``apt-get update``, unless the lists are younger than *valid* seconds, and compare the lists."""
        return await self._run(REFRESH, ["update"], str(valid))

    async def _ask(self, script: str, shown: Sequence[str], *given: str) -> str:
        ran = await self._once(script, shown, given, is_question=True)
        ran.shown_as(shown).raise_for_status()
        if (text := ran.part(1)) is None:
            raise _not_run()
        return text

    async def _run(self, script: str, arguments: Sequence[str], *given: str) -> Outcome:
        command = apt_get(*arguments)
        clock = asyncio.get_running_loop().time
        deadline, pause = clock() + self._lock_timeout, _FIRST_PAUSE
        while True:
            ran = await self._once(script, command, (*given, *command), is_question=False)
            record = ran.shown_as(command)
            if record["exit_status"] == 0 and ran.part(2) is None:
                raise _not_run()
            locked = _LOCKED.search(_told(record)) if record["exit_status"] == 100 else None
            left = deadline - clock()
            if not locked or left <= 0:
                break
            await asyncio.sleep(min(pause, left))
            pause = min(pause * 1.5, _LONGEST_PAUSE)
        failure = record.failure()
        if isinstance(failure, CommandFailed):
            failure.detail = self._explained(record, arguments, locked and locked[1])
        # Without any mark the script ended before it came to apt-get.
        has_run = not locked and len(ran.parts) > 1
        return Outcome(record, failure, ran.part(2) if has_run else "")

    async def _once(self, script: str, shown: Sequence[str], given: Sequence[str], *, is_question: bool) -> _Ran:
        mark = secrets.token_hex(16)
        command = shlex.join(["exec", "sh", "-c", script, "sh", mark, *given])

        def made(record: Completed) -> _Ran:
            return _Ran(record, re.split(mark.encode() + rb"\r?\n?", record.stdout_bytes))

        with _without_marks(mark, shows_output=not is_question):
            try:
                return made(await self._host.run(command, question=is_question, **self._options))
            except HostError as error:
                if error.completed is not None:
                    error.completed = made(error.completed).shown_as(shown)
                raise

    def _explained(self, record: Completed, arguments: Sequence[str], lock: str | None) -> str:
        """Say why ``apt-get`` failed."""
        words = shlex.join(["apt-get", *arguments])
        shown = words if len(words) <= _LONGEST_SHOWN else words[:_LONGEST_SHOWN] + "..."
        if lock:
            return f"{shown}: a lock was not to be had within {self._lock_timeout:g} s: {lock}"
        return f"{shown}: exit status {record.exit_status}: {_reason(_told(record))}"


def _not_run() -> HostError:
    return HostError("the host did not run our script: the login shell of the user reads commands in a way of its own")


def _told(record: Completed) -> str:
    """Give what a command says of its troubles: on a terminal, that is part of its output."""
    return record.stderr or record.stdout


def _reason(told: str) -> str:
    """Find the line that tells most: what dpkg says, or APT's first error, or else the last line."""
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("dpkg: error "):
            return f"{line} {following}".strip() if line.endswith(":") else line
    return next((line for line in lines if line.startswith("E: ")), lines[-1] if lines else "it said nothing")


@contextmanager
def _without_marks(mark: str, *, shows_output: bool) -> Iterator[None]:
    """Keep from those who watch what the script prints for us."""
    where = place.get()
    if where is None:
        yield
        return
    emit, marks = where.emit, 0

    def chosen(event: Event) -> None:
        nonlocal marks
        if isinstance(event, OutputLine) and event.stream == "stdout":
            marks += mark in event.line
            if marks != 1 or mark in event.line:
                return
        if shows_output or not isinstance(event, OutputLine):
            emit(event)

    token = place.set(replace(where, emit=chosen))
    try:
        yield
    finally:
        place.reset(token)
