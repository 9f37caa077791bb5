"""Ask for the context: the host's own entry in the inventory.

Prints:

    server104: user in ['web']
    server105: user in ['databases']
"""

import asyncio

from reemote import Steps
from reemote.execute import execute
from reemote.host import Getcontext, Shell
from reemote.inventory import Connection, Inventory, InventoryItem


class Root:
    async def execute(self) -> Steps:
        response = yield Getcontext()
        item = response["value"].inventory_item
        yield Shell(cmd=f'echo "{item.connection.username} in {item.groups}"')


async def main() -> None:
    inventory = Inventory(
        hosts=[
            InventoryItem(
                connection=Connection(host="server104", username="user", password="password"), groups=["web"]
            ),
            InventoryItem(
                connection=Connection(host="server105", username="user", password="password"), groups=["databases"]
            ),
        ]
    )
    for response in await execute(lambda: Root(), inventory=inventory):
        print(f"{response['host']}: {response['value']['stdout']}", end="")


if __name__ == "__main__":
    asyncio.run(main())
