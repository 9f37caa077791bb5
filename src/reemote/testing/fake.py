"""The fake: scripted hosts without a network, which record what they are asked."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from ..core.context import Context
from ..core.errors import CommandTimeout, HostError
from ..core.inventory import Connection, Inventory, InventoryItem
from ..core.response import Completed

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
    :class:`UnexpectedCommand` in the deployment.
    """

    def __init__(self, *hosts: str | InventoryItem) -> None:
        items = [
            host if isinstance(host, InventoryItem) else InventoryItem(connection=Connection(host=host))
            for host in hosts or ("server104", "server105")
        ]
        self.inventory = Inventory(hosts=items)
        self.calls: list[Call] = []
        """Every command that was run, in order."""
        self._replies: list[tuple[str | re.Pattern[str], str | None, Reply]] = []

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

        def failing(_: Call) -> Completed:
            assert isinstance(reply, HostError)
            raise type(reply)(reply.detail, outcome=reply.outcome, completed=reply.completed, kind=reply.kind)

        chosen = failing if isinstance(reply, HostError) else reply
        self._replies.insert(0, (command, host, chosen or scripted))

    def fail(self, host: str, failure: HostError) -> None:
        """Let every command on *host* fail with *failure*, as when it is down."""
        self.on(re.compile(".*", re.DOTALL), failure, host=host)

    def commands(self, host: str) -> list[str]:
        """Give the commands that *host* was asked to run, in order."""
        return [call.command for call in self.calls if call.host == host]

    # What execute() asks of a transport

    def prepare(self, items: Sequence[InventoryItem]) -> int:
        """Let any number of hosts run at the same time."""
        return max(1, len(items))

    @asynccontextmanager
    async def host(self, item: InventoryItem, *, limit: int | None = None) -> AsyncIterator[FakeHost]:
        """Give one host."""
        yield FakeHost(self, Context(inventory_item=item))

    async def answer(self, call: Call) -> Completed:
        """Record *call* and give its scripted reply."""
        self.calls.append(call)
        for command, host, reply in self._replies:
            fits = command.fullmatch(call.command) if isinstance(command, re.Pattern) else command == call.command
            if fits and host in (None, call.host):
                answer = reply(call)
                answer = await answer if inspect.isawaitable(answer) else answer
                if isinstance(answer, Completed):
                    return answer
                return Completed(command=call.command, stdout="" if answer is None else answer)
        raise UnexpectedCommand(f"{call.host} has no reply to {call.command!r}: script one with on({call.command!r})")


class FakeHost:
    """One scripted host, as operations see it."""

    def __init__(self, fleet: Fake, context: Context) -> None:
        self.context = context
        self.interrupted: Completed | None = None
        self._fleet = fleet

    async def run(self, command: str, **options: Any) -> Completed:
        """Give the scripted reply; keep to ``timeout`` and ``check`` as a real host does."""
        unfinished = Completed(command=command, exit_status=None)
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
        if options.get("check"):
            completed.raise_for_status()
        return completed

    def sftp(self) -> AbstractAsyncContextManager[Any]:
        """Refuse: a fake host has no files; the sandbox has."""
        raise NotImplementedError("a fake host has no files: use the sandbox for file operations")
