"""What all commands for hosts share: their options, the run, and its interruption."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import signal
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import FrameType
from typing import Any

import click

from ..core.errors import ExecutionError
from ..core.inventory import HostKeys, Inventory
from ..core.response import Responses
from ..execute import execute
from .messages import log, say
from .output import FORMATS
from .passwords import ask
from .watching import Part, Watch

_SECONDS = click.FloatRange(min=0, min_open=True)

_OPTIONS: Sequence[tuple[str, tuple[str, ...], dict[str, Any]]] = (
    (
        "inventory",
        ("-i", "--inventory"),
        {
            "required": True,
            "envvar": "REEMOTE_INVENTORY",
            "show_envvar": True,
            "metavar": "FILE",
            "help": "The inventory, a JSON file.",
        },
    ),
    ("limit", ("-l", "--limit"), {"metavar": "HOSTS", "help": "Hosts, groups and globs: 'web,&prod,!web03'."}),
    (
        "forks",
        ("-f", "--forks"),
        {"type": click.IntRange(min=1), "metavar": "N", "help": "How many hosts run at a time; all by default."},
    ),
    ("timeout", ("--timeout",), {"type": _SECONDS, "metavar": "SECONDS", "help": "Seconds for the whole run."}),
    (
        "host_timeout",
        ("--host-timeout",),
        {"type": _SECONDS, "metavar": "SECONDS", "help": "Seconds for each host, from its turn on."},
    ),
    ("step_timeout", ("--step-timeout",), {"type": _SECONDS, "metavar": "SECONDS", "help": "Seconds for each step."}),
    (
        "user",
        ("-u", "--user"),
        {"metavar": "NAME", "help": "The user to log in as, for hosts of which the inventory does not say."},
    ),
    (
        "host_keys",
        ("--host-keys",),
        {
            "type": click.Choice(["strict", "accept-new", "off"]),
            "help": "What to do with unknown host keys, for hosts of which the inventory does not say.",
        },
    ),
    (
        "ask_sudo_pass",
        ("-K", "--ask-sudo-pass"),
        {"is_flag": True, "help": "Ask once for sudo's password, for hosts of which the inventory has none."},
    ),
    (
        "ask_su_pass",
        ("--ask-su-pass",),
        {"is_flag": True, "help": "Ask once for su's password, for hosts of which the inventory has none."},
    ),
    (
        "check",
        ("-C", "--check", "--dry-run"),
        {"is_flag": True, "help": "Change nothing; say what would change."},
    ),
    ("diff", ("-D", "--diff"), {"is_flag": True, "help": "With --dry-run: show how texts would change."}),
    (
        "output",
        ("-o", "--output"),
        {"type": click.Choice(FORMATS), "default": "table", "show_default": True, "help": "The output."},
    ),
    (
        "verbose",
        ("-v", "--verbose"),
        {"count": True, "help": "Say what each step did; -vv: and what happens on the connections."},
    ),
)
"""The field of :class:`Given`, the option's names, and the rest of it."""

PRIVILEGES: Sequence[tuple[str, tuple[str, ...], dict[str, Any]]] = (
    ("sudo", ("-b", "--sudo"), {"is_flag": True, "help": "Run with sudo."}),
    ("su", ("--su",), {"is_flag": True, "help": "Run with su, as the inventory's su_user; root by default."}),
    (
        "sudo_user",
        ("-U", "--sudo-user"),
        {"metavar": "NAME", "help": "The user to become with sudo, over the inventory's; root by default."},
    ),
)
"""The options of commands that may run with other privileges."""


@dataclass(frozen=True)
class Given:
    """What the options that all commands for hosts have say."""

    inventory: str
    limit: str | None
    forks: int | None
    timeout: float | None
    host_timeout: float | None
    step_timeout: float | None
    user: str | None
    host_keys: HostKeys | None
    ask_sudo_pass: bool
    ask_su_pass: bool
    check: bool
    diff: bool
    output: str
    verbose: int

    def load(self) -> Inventory:
        """Read the inventory; say from now on what happens, as far as that was asked for."""
        if self.diff and not self.check:
            raise click.UsageError("--diff shows what --dry-run would change: give both", click.get_current_context())
        log(logging.DEBUG if self.verbose > 1 else logging.WARNING)
        inventory = Inventory.load(self.inventory)
        for item in inventory.hosts:
            if self.host_keys is not None and "host_keys" not in item.connection.model_fields_set:
                item.connection.host_keys = self.host_keys
            if self.user is not None and item.connection.username is None:
                item.connection.username = self.user
        return inventory

    def accept(self, privileges: Mapping[str, Any]) -> None:
        """Refuse to ask for a password that nothing would use."""
        if self.ask_sudo_pass and privileges.get("su"):
            raise click.UsageError("--su has a password of its own: --ask-su-pass", click.get_current_context())

    def ask(self, inventory: Inventory) -> None:
        """Ask for the passwords that are to be asked for, before anything else is on the screen."""
        if self.ask_sudo_pass:
            ask("sudo", inventory.select(self.limit))
        if self.ask_su_pass:
            ask("su", inventory.select(self.limit))

    def run(self, factory: Callable[[], Any], inventory: Inventory, *parts: Part, strict: bool = False) -> Outcome:
        """Run what *factory* makes on the hosts that were asked for, until done or interrupted.

        *parts* are told of what happens.
        """
        watch = Watch(parts)
        coroutine = execute(
            factory,
            inventory,
            concurrency=self.forks,
            timeout=self.timeout,
            host_timeout=self.host_timeout,
            step_timeout=self.step_timeout,
            strict=strict,
            limit=self.limit,
            dry_run=self.check,
            on_event=watch,
        )
        try:
            responses, interrupted = asyncio.run(_until_interrupted(coroutine)), False
        except ExecutionError as error:
            responses, interrupted = error.responses, False
        except asyncio.CancelledError:
            responses, interrupted = watch.responses, True
        return Outcome(responses, watch.raised, watch.missed, watch.fault, is_interrupted=interrupted)


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    responses: Responses
    raised: Sequence[tuple[str, Exception]] = field(default=())
    """The hosts on which the deployment's own code raised, and what."""
    missed: int = 0
    """How many steps nobody was told of, since too much happened at a time."""
    fault: Exception | None = None
    """A bug in those that were told."""
    is_interrupted: bool = False

    def close(self) -> None:
        """End the command where it did not go as it should, once all was told of it."""
        if self.fault is not None:
            raise self.fault
        if self.is_interrupted:
            raise click.Abort


def options(taken: Collection[str] = ()) -> list[click.Option]:
    """Make the options that all commands for hosts have.

    Names that are *taken* stay with the operation's own parameters; what has no other long name then begins
    with ``--run-``.
    """
    return [click.Option([*_free(names, taken), name], **rest) for name, names, rest in _OPTIONS]


def _free(names: Sequence[str], taken: Collection[str]) -> list[str]:
    kept = [name for name in names if name not in taken]
    if not any(name.startswith("--") for name in kept):
        long = next(name for name in names if name.startswith("--"))
        kept.append(f"--run-{long.removeprefix('--')}")
    return kept


def host_options(function: Callable[..., int]) -> Callable[..., int]:
    """Add the options that all commands for hosts have; *function* gets them as its first argument."""

    @functools.wraps(function)
    def command(**values: Any) -> int:
        return function(given(values), **values)

    for name, names, rest in reversed(_OPTIONS):
        click.option(*names, name, **rest)(command)
    return command


def privilege_options(function: Callable[..., int]) -> Callable[..., int]:
    """Add the options that say whose privileges are meant; *function* gets those that were given, as *privileges*."""

    @functools.wraps(function)
    def command(given: Given, **values: Any) -> int:
        chosen = {name: value for name, *_ in PRIVILEGES if (value := values.pop(name))}
        given.accept(chosen)
        return function(given, privileges=chosen, **values)

    for name, names, rest in reversed(PRIVILEGES):
        click.option(*names, name, **rest)(command)
    return command


def given(values: dict[str, Any]) -> Given:
    """Take the options that all commands have out of *values*."""
    return Given(**{each.name: values.pop(each.name) for each in fields(Given)})


async def _until_interrupted(coroutine: Coroutine[Any, Any, Responses]) -> Responses:
    """Run *coroutine*; Ctrl-C and SIGTERM cancel it, so that what it runs on the hosts is ended."""
    loop, task, asked = asyncio.get_running_loop(), asyncio.current_task(), 0
    assert task is not None

    def cancel() -> None:
        if asked > 1:
            loop.call_later(0.1, task.cancel)  # not before the first one has been felt: two at once are one
            return
        task.cancel()
        say("Interrupted: ending what runs on the hosts. Once more, to leave without waiting for it.")

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked += 1
        if asked > 2:
            raise KeyboardInterrupt  # a deployment may keep the event loop from listening
        loop.call_soon_threadsafe(cancel)

    with _handling(interrupt):
        return await coroutine


@contextlib.contextmanager
def _handling(handler: Any) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
