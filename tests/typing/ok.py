"""Programs that are right, as type checkers must see them; read by mypy, never run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any, assert_type

from pydantic import BaseModel, Field, SecretStr

import reemote
from reemote import Command, Completed, Effect, Remote, Response, Responses, Steps, step
from reemote.context import Context
from reemote.core.errors import HostError
from reemote.core.host import Host
from reemote.execute import execute, run
from reemote.host import Getcontext, Shell
from reemote.inventory import Authentication, Connection, Inventory, InventoryItem, Session
from reemote.system import Callback, Return
from reemote.testing import Fake, sandbox


async def responses_of_steps() -> None:
    """Awaiting an operation answers with a response of its value."""
    response = await Shell(cmd="uptime")
    assert_type(response, Response[Completed])
    assert_type(response.value, Completed)
    assert_type(response.value.stdout, str)
    assert_type(response.value.exit_status, int | None)
    assert_type(response.value.stdout_bytes, bytes)
    assert_type(response.host, str)
    assert_type(response.changed, bool)
    assert_type(response.error, bool)
    assert_type(response.detail, str)
    assert_type(response.outcome, str)
    assert_type(response.completed, Completed | None)
    assert_type(response["value"]["stdout"], Any)
    response.raise_for_error()
    assert_type(await Getcontext(), Response[Context])
    assert_type((await Getcontext()).value.host, str)


async def responses_of_values() -> None:
    """Return and Callback answer with what they are given."""
    assert_type(await Return(value=3), Response[int])
    assert_type((await Return(value=["a"])).value, list[str])
    assert_type((await Return[str](value="a")).value, str)
    assert_type((await Callback(callback=len)).value, Any)


class Question(Remote[int]):
    """A primitive with a value of its own."""

    effect = Effect.READS
    path: str
    """The path."""
    follow: bool = Field(default=True)
    """Whether to follow links."""

    async def perform(self, host: Host) -> int:
        """Ask."""
        completed = await host.run(f"stat {self.path}", sudo=self.sudo)
        assert_type(completed, Completed)
        return len(completed.stdout)


class Packages(Command[list[str]]):
    """A command with a value of its own."""

    def to_shell(self) -> str:
        """Write the command."""
        return "dpkg --list"

    def parse(self, completed: Completed) -> list[str]:
        """Read the output."""
        return completed.stdout.split()


class Line(Command):
    """A command whose value is its record."""

    def to_shell(self) -> str:
        """Write the command."""
        return "true"


async def own_operations() -> None:
    """The fields of a class are its arguments."""
    assert_type(await Question(path="/etc", follow=False, sudo=True, group="web"), Response[int])
    assert_type(await Packages(), Response[list[str]])
    assert_type((await Line()).value, Completed)


async def at_the_same_time() -> None:
    """Asyncio's own tools keep the types."""
    first, second = await asyncio.gather(Shell(cmd="a"), Question(path="b"))
    assert_type(first, Response[Completed])
    assert_type(second, Response[int])
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        task = group.create_task(step(Shell(cmd="c")))
    task.result()


class GreetRequest(BaseModel):
    """As in the tutorial."""

    name: str = Field(default="no one", description="The name")


class Greet(Remote):
    """As in the tutorial: the arguments come from a model."""

    Model = GreetRequest

    async def execute(self) -> AsyncGenerator[Any, Any]:
        """Greet."""
        model_instance = self.Model.model_validate(self.kwargs)
        yield Shell(cmd=f"echo {model_instance}", **self.common_kwargs)


class Plain:
    """A deployment that is no subclass of anything."""

    async def execute(self) -> Steps:
        """Run."""
        response = yield Shell(cmd="a")
        answers = yield [Shell(cmd="b"), Plain()]
        yield Return(value=[response.value, *answers], changed=True)


class Coroutine:
    """A deployment in the typed spelling."""

    async def execute(self) -> str:
        """Run."""
        response = await Shell(cmd="a", env={"A": "1"}, cwd="/", stdin=b"x", timeout=3, check=True, sudo=True)
        return response.value.stdout


async def runs(inventory: Inventory, path: Path) -> None:
    """The front door, with every form of an inventory."""
    responses = await execute(lambda: Shell(cmd="uptime"), inventory=inventory)
    for response in responses:
        assert_type(response["host"], Any)
        assert_type(response.host, str)
    assert_type(responses.by_host["web1"].host, str)
    responses.raise_for_errors()
    assert_type(responses.to_json(indent=4), str)
    assert isinstance(responses, Responses)
    await execute(Plain, {"hosts": []}, concurrency=3, strict=True, timeout=2.5, limit="web,!web3")
    await execute(Coroutine, path, limit=["web"])
    await execute(lambda: Greet(), str(path))
    fake = Fake("web1")
    await execute(Coroutine, fake.inventory, pool=fake)
    async with reemote.Pool() as pool:
        await execute(Plain, inventory, pool=pool)
    async with sandbox("web1") as hosts:
        assert_type(hosts, Inventory)


def typed_responses(responses: Responses[Completed], mapping: Mapping[str, Any]) -> None:
    """Responses are generic in their value, too."""
    assert_type(responses[0], Response[Completed])
    assert_type(responses.failed, list[Response[Completed]])
    assert_type(responses.changed, list[Response[Completed]])
    assert_type(responses.by_host, Mapping[str, Response[Completed]])
    assert_type(responses[0].value.stderr, str)
    Inventory.of(mapping)


def without_a_loop(inventory: Inventory) -> None:
    """The same, for programs that have no event loop."""
    responses = run(Plain, inventory, concurrency=3, limit="web")
    assert_type(responses[0].host, str)
    reemote.run(lambda: Shell(cmd="x"), inventory=inventory, strict=True)


def inventories() -> None:
    """Hosts, with options of asyncssh and secrets of both kinds."""
    item = InventoryItem(
        connection=Connection(host="h", username="u", password="p", passphrase=SecretStr("p"), login_timeout=3),
        session=Session(term_type="xterm"),
        authentication=Authentication(sudo_password="p", su_password=SecretStr("p")),
        groups=["web"],
    )
    assert_type(Inventory(hosts=[item]).select("web"), list[InventoryItem])
    assert_type(item.host, str)


def failures(error: HostError) -> None:
    """What a failure knows."""
    assert_type(error.detail, str)
    assert_type(error.completed, Completed | None)
    if error.response is not None:
        assert_type(error.response.host, str)


async def callback(context: Context) -> str:
    """A function for Callback."""
    return context.inventory_item.connection.username or context.host


CALLBACK = Callback(callback=callback)
