"""Programs that are wrong: mypy must say so, on these lines and with these codes, and on no other."""

from __future__ import annotations

import asyncio

from reemote import Command, Completed, Remote, Response, Responses, run
from reemote.core.host import Host
from reemote.execute import execute
from reemote.host import Getcontext, Shell
from reemote.inventory import Authentication, Inventory, InventoryItem
from reemote.system import Callback, Return


class Question(Remote[int]):
    path: str

    async def perform(self, host: Host) -> str:  # E: override
        return ""


class Packages(Command[list[str]]):
    def to_shell(self) -> int:  # E: override
        return 5


async def arguments(inventory: Inventory) -> None:
    Shell()  # E: call-arg
    Shell("uptime", cmd="x")  # E: call-arg
    Shell(command="uptime", cmd="x")  # E: call-arg
    Shell(cmd=5)  # E: arg-type
    Shell(cmd="x", timeout="soon")  # E: arg-type
    Shell(cmd="x", sudo=None)  # E: arg-type
    Shell(cmd="x", env=["A=1"])  # E: arg-type
    Question()  # E: call-arg
    Question(path=5)  # E: arg-type
    Question(path="x", follow=True)  # E: call-arg
    Getcontext(cmd="x")  # E: call-arg
    Return(values=3)  # E: call-arg
    Return(value=3, changed="yes")  # E: arg-type
    Callback(callback=5)  # E: arg-type
    Callback()  # E: call-arg


async def values() -> None:
    response = await Shell(cmd="x")
    response.value.exit_status + 1  # E: operator
    number: int = response.value.stdout  # E: assignment
    text: str = (await Return(value=3)).value  # E: assignment
    other: Response[int] = response  # E: assignment
    first, second = await asyncio.gather(Shell(cmd="a"), Getcontext())
    second.value.stdout  # E: attr-defined
    print(number, text, other, first)


async def runs(inventory: Inventory) -> None:
    await execute(Shell(cmd="x"), inventory)  # E: arg-type
    await execute(lambda: Shell(cmd="x"))  # E: call-arg
    await execute(lambda: Shell(cmd="x"), inventory, forks=3)  # E: call-arg
    await execute(lambda: Shell(cmd="x"), inventory, strict="yes")  # E: arg-type
    await execute(lambda: Shell(cmd="x"), 5)  # E: arg-type
    run(lambda: Shell(cmd="x"), inventory, forks=3)  # E: call-arg
    responses = await execute(lambda: Shell(cmd="x"), inventory)
    responses.failing  # E: attr-defined
    responses.by_host[0]  # E: index


def inventories(responses: Responses[Completed]) -> None:
    InventoryItem()  # E: call-arg
    InventoryItem(connection="web1")  # E: arg-type
    Inventory(hosts=["web1"])  # E: list-item
    Authentication(sudo_password=5)  # E: arg-type
    Authentication(password="x")  # E: call-arg
    responses[0].value.command.upper()  # E: union-attr
    responses[0].stdout  # E: attr-defined
    responses[0].value.stdin  # E: attr-defined
