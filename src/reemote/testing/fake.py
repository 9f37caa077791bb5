"""The fake: scripted hosts without a network, which record what they are asked."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import re
import shlex
import shutil
import tempfile
import weakref
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ..core.context import Context
from ..core.errors import CommandTimeout, HostError, InventoryError
from ..core.events import HostConnected, Lines, Place, Stream, place
from ..core.files import Files
from ..core.host import scope
from ..core.inventory import Connection, Inventory, InventoryItem
from ..core.response import Completed
from .fake_files import FakeFiles

Reply = Callable[["Call"], Any]


class UnexpectedCommand(AssertionError):
    """A fake host was asked to run a command for which no reply is scripted."""


@dataclass(frozen=True)
class Call:
    """A command that a fake host was asked to run, with all that was asked for it."""

    host: str
    command: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """The other arguments of :meth:`reemote.core.host.Host.run`, as they were given."""


class Fake:
    """A fleet of scripted hosts. Pass it to ``execute()`` as its ``pool``.

    ::

        fake = Fake("web1", "web2")
        fake.on("uptime", stdout="up 3 days")
        fake.on("systemctl restart app", exit_status=1, stderr="no such unit", host="web2")
        responses = await execute(lambda: Restart(), inventory=fake.inventory, pool=fake)
        assert fake.commands("web1") == ["uptime", "systemctl restart app"]

    The reply that was scripted last counts. A command without a reply raises
    :class:`UnexpectedCommand` in the deployment. Each host has real files, see :meth:`files`.
    """

    def __init__(self, *hosts: str | InventoryItem) -> None:
        items = [
            host if isinstance(host, InventoryItem) else InventoryItem(connection=Connection(host=host))
            for host in hosts or ("server104", "server105")
        ]
        self.inventory = Inventory(hosts=items)
        self.calls: list[Call] = []
        """Every command that was run, in order."""
        # The command of a host that is down is None: that is all commands, and files, too.
        self._replies: list[tuple[str | re.Pattern[str] | None, str | None, Reply]] = []
        self._files: dict[str, Path] = {}

    def on(
        self,
        command: str | re.Pattern[str],
        reply: Reply | HostError | None = None,
        *,
        stdout: str | bytes = "",
        stderr: str | bytes = "",
        exit_status: int = 0,
        host: str | None = None,
    ) -> None:
        """Script the reply to a command.

        Args:
            command: The command, word for word, or a pattern that matches the whole of it.
            reply: Instead of the arguments after it: a failure to raise, or a function that takes
                the :class:`Call` and returns the text for standard output, a ``Completed``, or
                nothing; it may be asynchronous.
            stdout: What the command writes to standard output.
            stderr: What it writes to standard error.
            exit_status: How it ends.
            host: The one host that replies so; all by default.
        """

        def scripted(call: Call) -> Completed:
            return Completed(command=call.command, exit_status=exit_status, stdout=stdout, stderr=stderr)

        chosen = _failing(reply) if isinstance(reply, HostError) else reply
        self._replies.insert(0, (command, host, chosen or scripted))

    def fail(self, host: str, failure: HostError) -> None:
        """Let every command on *host*, and every access to its files, fail with *failure*, as when it is down."""
        self._replies.insert(0, (None, host, _failing(failure)))

    def commands(self, host: str) -> list[str]:
        """Give the commands that *host* was asked to run, in order."""
        return [call.command for call in self.calls if call.host == host]

    def files(self, host: str) -> Path:
        """Give the directory that is ``/`` on *host*; it is empty at first, and goes when the fake does.

        ::

            (fake.files("web1") / "etc").mkdir()
            (fake.files("web1") / "etc" / "motd").write_text("Welcome")
        """
        if host not in self._files:
            path = tempfile.mkdtemp(prefix="reemote-fake-")
            weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)
            self._files[host] = Path(path).resolve()
        return self._files[host]

    # What execute() asks of a transport

    def prepare(self, items: Sequence[InventoryItem]) -> int:
        """Let any number of hosts run at the same time."""
        return max(1, len(items))

    @asynccontextmanager
    async def host(self, item: InventoryItem, *, limit: int | None = None) -> AsyncIterator[FakeHost]:
        """Give one host."""
        yield FakeHost(self, Context(inventory_item=item))

    def check(self, host: str) -> None:
        """Raise the failure that is scripted for *host* as a whole, if there is one."""
        for command, where, reply in self._replies:
            if command is None and where == host:
                reply(Call(host, ""))

    async def answer(self, call: Call) -> Completed:
        """Record *call* and give its scripted reply."""
        self.calls.append(call)
        for command, host, reply in self._replies:
            fits = (
                command.fullmatch(call.command) if isinstance(command, re.Pattern) else command in (None, call.command)
            )
            if fits and host in (None, call.host):
                answer = reply(call)
                answer = await answer if inspect.isawaitable(answer) else answer
                if isinstance(answer, Completed):
                    return answer
                return Completed(command=call.command, stdout="" if answer is None else answer)
        raise UnexpectedCommand(f"{call.host} has no reply to {call.command!r}: script one with on({call.command!r})")


def _failing(failure: HostError) -> Reply:
    def reply(_: Call) -> Completed:
        raise type(failure)(failure.detail, outcome=failure.outcome, completed=failure.completed, kind=failure.kind)

    return reply


class FakeHost:
    """One scripted host, as operations see it."""

    def __init__(self, fleet: Fake, context: Context) -> None:
        self.context = context
        self.interrupted: Completed | None = None
        self._fleet = fleet
        self._files: FakeFiles | None = None
        self._is_connected = False

    async def run(self, command: str | Sequence[str], **options: Any) -> Completed:
        """Give the scripted reply; keep to ``timeout`` and ``check`` as a real host does."""
        command = command if isinstance(command, str) else shlex.join(command)
        unfinished = Completed(command=command, exit_status=None)
        where = place.get()
        self._connect(where)
        try:
            async with asyncio.timeout(options.get("timeout")) as limit:
                completed = await self._fleet.answer(Call(self.context.host, command, options))
        except TimeoutError:
            if not limit.expired():
                raise  # the reply's own
            detail = f"{command!r} did not end within {options['timeout']:g} s"
            raise CommandTimeout(detail, outcome="completed", completed=unfinished) from None
        except asyncio.CancelledError:
            self.interrupted = unfinished
            raise
        if where is not None and where.lines:
            for stream, data in (("stdout", completed.stdout_bytes), ("stderr", completed.stderr_bytes)):
                lines = Lines(where, cast(Stream, stream))
                lines.add(data)
                lines.end()
        if options.get("check"):
            completed.raise_for_status()
        return completed

    def _connect(self, where: Place | None) -> None:
        """Tell of the connection, once, unless the host is down."""
        if where is None or self._is_connected:
            return
        with contextlib.suppress(HostError):
            self._fleet.check(self.context.host)
            self._is_connected = True
            where.emit(HostConnected(host=self.context.host))

    @asynccontextmanager
    async def sftp(self, **_privileges: Any) -> AsyncIterator[Files]:
        """Give the host's files, whatever the privileges; ``chdir`` holds for this run."""
        self._fleet.check(self.context.host)
        self._connect(place.get())
        if self._files is None:
            self._files = FakeFiles(self._fleet.files(self.context.host))
        yield self._files

    @asynccontextmanager
    async def other(self, name: str) -> AsyncIterator[FakeHost]:
        """Give another host of the inventory, scripted as well."""
        item = next((item for item in scope.get().inventory.hosts if item.host == name), None)
        if item is None:
            raise InventoryError(f"the inventory has no host {name!r}")
        async with self._fleet.host(item) as host:
            yield host
