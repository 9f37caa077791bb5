"""Build a deployment out of other deployments.

Each yield answers with the response of what was yielded: an operation, or a class of one's own.
The response of a class is its last step's; Return makes one of any value.

Prints:

    server104: user.txt has 1 line
    server105: user.txt has 1 line
"""

import asyncio

from reemote import Steps
from reemote.execute import execute
from reemote.host import Shell
from reemote.inventory import Connection, Inventory, InventoryItem
from reemote.system import Return


class WriteUser:
    async def execute(self) -> Steps:
        yield Shell(cmd="id -un > user.txt")


class CountLines:
    async def execute(self) -> Steps:
        yield Shell(cmd="wc -l < user.txt")


class Root:
    async def execute(self) -> Steps:
        yield WriteUser()
        lines = yield CountLines()
        yield Return(value=int(lines["value"]["stdout"]))


async def main() -> None:
    inventory = Inventory(
        hosts=[
            InventoryItem(connection=Connection(host="server104", username="user", password="password")),
            InventoryItem(connection=Connection(host="server105", username="user", password="password")),
        ]
    )
    responses = await execute(lambda: Root(), inventory=inventory)
    for response in responses:
        print(f"{response['host']}: user.txt has {response['value']} line")


if __name__ == "__main__":
    asyncio.run(main())
