"""What all commands for hosts share: their options, the run, and its interruption."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, fields
from types import FrameType
from typing import Any

import click

from ..core.inventory import HostKeys, Inventory
from ..core.response import Responses
from ..execute import execute
from .output import FORMATS, visible

_OPTIONS = [
    click.option(
        "-i",
        "--inventory",
        required=True,
        envvar="REEMOTE_INVENTORY",
        show_envvar=True,
        metavar="FILE",
        help="The inventory, a JSON file.",
    ),
    click.option("-l", "--limit", metavar="HOSTS", help="Hosts, groups and globs: 'web,&prod,!web03'."),
    click.option("-f", "--forks", type=click.IntRange(min=1), help="How many hosts run at a time; all by default."),
    click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds for the whole run."),
    click.option(
        "--host-keys",
        type=click.Choice(["strict", "accept-new", "off"]),
        help="What to do with unknown host keys, for hosts of which the inventory does not say.",
    ),
    click.option("-o", "--output", type=click.Choice(FORMATS), default="table", show_default=True, help="The output."),
]


@dataclass(frozen=True)
class Given:
    """What the options that all commands for hosts have say."""

    inventory: str
    limit: str | None
    forks: int | None
    timeout: float | None
    host_keys: HostKeys | None
    output: str

    def load(self) -> Inventory:
        """Read the inventory."""
        inventory = Inventory.load(self.inventory)
        if self.host_keys is not None:
            for item in inventory.hosts:
                if "host_keys" not in item.connection.model_fields_set:
                    item.connection.host_keys = self.host_keys
        return inventory

    def run(self, factory: Callable[[], Any], inventory: Inventory, *, strict: bool = False) -> Responses:
        """Run what *factory* makes on the hosts that were asked for, until done or interrupted."""
        coroutine = execute(
            factory, inventory, concurrency=self.forks, timeout=self.timeout, strict=strict, limit=self.limit
        )
        try:
            return asyncio.run(_until_interrupted(coroutine))
        except asyncio.CancelledError:
            raise click.Abort from None


def host_options(function: Callable[..., int]) -> Callable[..., int]:
    """Add the options that all commands for hosts have; *function* gets them as its first argument."""

    @functools.wraps(function)
    def command(**options: Any) -> int:
        given = Given(**{field.name: options.pop(field.name) for field in fields(Given)})
        return function(given, **options)

    for option in reversed(_OPTIONS):
        option(command)
    return command


def say(*lines: str) -> None:
    """Write messages, above the progress that may be shown."""
    if sys.stderr is not None:
        for line in lines:
            print(line, file=sys.stderr)  # click.echo() would write past the one who shows progress


class _Messages(logging.Handler):
    """Log entries as messages, which standard error takes at the time of the entry."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            say(visible(self.format(record)))
        except Exception:
            self.handleError(record)


def log(level: int) -> None:
    """Say what is logged from *level* on."""
    handler = _Messages()
    handler.setFormatter(logging.Formatter("reemote: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    logging.getLogger("asyncssh").setLevel(logging.WARNING)  # it would log commands and what is in them


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
