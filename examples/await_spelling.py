"""Write a deployment with await instead of yield.

It does the same. A type checker knows each response's type, asyncio's own tools (gather, TaskGroup,
timeout) work, and what the method returns is the value of the class's response.

Prints:

    server104: kernel Linux, 2 answers at the same time
    server105: kernel Linux, 2 answers at the same time
    types: Completed
"""

import asyncio

from reemote import Completed, Response
from reemote.execute import execute
from reemote.host import Shell
from reemote.inventory import Connection, Inventory, InventoryItem


class Survey:
    async def execute(self) -> str:
        kernel: Response[Completed] = await Shell(cmd="uname -s")
        answers = await asyncio.gather(Shell(cmd="echo one"), Shell(cmd="echo two"))
        return f"kernel {kernel.value.stdout.strip()}, {len(answers)} answers at the same time"


class Kind:
    async def execute(self) -> str:
        async with asyncio.timeout(10):
            response = await Shell(cmd="true")
        return type(response.value).__name__


async def main() -> None:
    inventory = Inventory(
        hosts=[
            InventoryItem(connection=Connection(host="server104", username="user", password="password")),
            InventoryItem(connection=Connection(host="server105", username="user", password="password")),
        ]
    )
    for response in await execute(lambda: Survey(), inventory=inventory):
        print(f"{response['host']}: {response['value']}")
    types = {response["value"] for response in await execute(lambda: Kind(), inventory=inventory)}
    print("types:", *types)


if __name__ == "__main__":
    asyncio.run(main())
