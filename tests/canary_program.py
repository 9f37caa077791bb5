"""A program that shows all there is to show of its runs: ``python canary_program.py INVENTORY OUTPUT_DIRECTORY LEVEL``.

It is run by ``test_canaries.py``, which looks for secrets in what it writes. What frames of functions hold, and what
asyncio shows of tasks, goes to files of its own, since that is shown on demand only.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import faulthandler
import io
import json
import logging
import os
import pprint
import sys
import traceback
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncssh
import rich.pretty
import rich.traceback
from rich.console import Console

from reemote.core.errors import ExecutionError, HostError
from reemote.core.events import Event, HostFinished, StepFinished, StepStarted
from reemote.core.host import Host
from reemote.core.operation import Operation
from reemote.core.remote import Remote
from reemote.core.response import as_json
from reemote.execute import Pool, execute
from reemote.host import Command, Getcontext, Shell
from reemote.inventory import Inventory
from reemote.sftp import Put, Write

OVERRIDE: dict[str, Any] = json.loads(os.environ.get("CANARY_OVERRIDE", "{}"))
"""Connection options with secrets, for single operations."""


def operations() -> Iterator[Operation[Any]]:
    """Give steps that need each kind of secret, and some that take secrets themselves."""
    yield Getcontext()
    yield Shell(cmd="id -un")
    yield Shell(cmd="id -un", sudo=True)
    yield Command(argv=["id", "-un"], sudo=True)
    yield Shell(cmd="id -un", su=True)
    yield Write(text="content", path="/tmp/written", sudo=True)
    yield Put(localpaths=__file__, remotepath="/tmp/", sudo=True)
    yield Shell(cmd="exit 3", check=True, sudo=True)
    yield Shell(cmd="id -un", connection=OVERRIDE, session={"env": {"LANG": "C"}})


class Steps:
    """A deployment that goes on whatever fails, and shows what it got."""

    async def execute(self) -> AsyncIterator[Any]:
        for operation in operations():
            with contextlib.suppress(HostError):
                response = yield operation
                show(response)


class Raising(Remote[None]):
    """An operation with a bug: it makes an error of its own of a failure."""

    async def perform(self, host: Host) -> None:
        try:
            await host.run("id", sudo=True)
            await host.run("id", su=True)
            async with host.sftp(sudo=True) as files:
                await files.stat("/")
            await host.run("id", **self.run_options())
        except HostError as error:
            raise RuntimeError(f"{host.context.host} is lost") from error
        raise RuntimeError("nothing failed")


def show(*values: Any) -> None:
    """Write values in every way that programs do."""
    console = Console(width=200)
    for value in values:
        print(value, repr(value), f"{value}", "%s %r" % (value, value))  # noqa: UP031 - that is a way, too
        pprint.pprint(value)
        console.print(rich.pretty.Pretty(value))
        if hasattr(value, "model_dump_json"):
            print(value.model_dump(), value.model_dump(mode="json"), value.model_dump_json())
            print(copy.deepcopy(value), value.model_copy(deep=True), list(value))
        if hasattr(value, "__dict__"):
            print(vars(value))
        if isinstance(value, dict | list):
            print(as_json(value))


tasks = io.StringIO()
"""What asyncio shows of what runs."""


async def listen(event: Event) -> None:
    """Show an event, and at some of them everything that runs."""
    print(event, repr(event))
    if isinstance(event, StepStarted):
        show(event.operation)
    if isinstance(event, StepFinished | HostFinished):
        for task in asyncio.all_tasks():
            print(task, task.get_name(), task.get_coro(), file=tasks)
            task.print_stack(file=tasks)
        faulthandler.dump_traceback(all_threads=True)


def tell(error: BaseException, locals_file: Path) -> None:
    """Write a traceback as programs do by themselves, and as they do when asked for more."""
    print(error, repr(error))
    traceback.print_exception(error, file=sys.stdout)
    logging.getLogger("program").error("it failed", exc_info=error)
    logging.getLogger("reemote").error("it failed", exc_info=error)
    Console(width=200).print(rich.traceback.Traceback.from_exception(type(error), error, error.__traceback__))
    frames = io.StringIO()
    frames.writelines(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    rich_text = rich.traceback.Traceback.from_exception(
        type(error),
        error,
        error.__traceback__,
        show_locals=True,
        locals_max_string=None,  # type: ignore[arg-type]  # all of each text
        locals_max_length=None,  # type: ignore[arg-type]
    )
    Console(file=frames, width=200).print(rich_text)
    with locals_file.open("a") as file:
        file.write(frames.getvalue())


async def run(inventory: Inventory, directory: Path) -> None:
    async with Pool() as pool:
        responses = await execute(Steps, inventory, pool=pool, on_event=listen)
        show(responses)
        print("RESPONSES", responses.to_json())
        try:
            responses.raise_for_errors()
        except ExecutionError as error:
            tell(error, directory / "locals")
        try:
            await execute(lambda: Raising(connection=OVERRIDE), inventory, pool=pool, on_event=listen)
        except ExecutionError as error:
            tell(error, directory / "locals")
            show(error.responses)


def main() -> None:
    _, source, directory, level = sys.argv
    faulthandler.enable()
    # There are no colours to be seen, and to find out where they go, all of each module would be read.
    rich.traceback.Traceback._guess_lexer = classmethod(lambda *_: "text")  # type: ignore[method-assign,assignment]
    handlers: list[logging.Handler] = [logging.StreamHandler(), logging.FileHandler(Path(directory) / "log")]
    logging.basicConfig(level=logging.DEBUG, handlers=handlers, format="%(asctime)s %(name)s %(message)s %(args)s")
    asyncssh.set_log_level(logging.DEBUG)
    asyncssh.set_sftp_log_level(logging.DEBUG)
    asyncssh.set_debug_level(int(level))
    inventory = Inventory.load(source)
    for item in inventory.hosts:
        show(item, item.connection, item.session, item.authentication)
    show(inventory, *operations())
    print(Inventory.model_json_schema())
    asyncio.run(run(inventory, Path(directory)))
    show(inventory)
    (Path(directory) / "tasks").write_text(tasks.getvalue())


if __name__ == "__main__":
    main()
