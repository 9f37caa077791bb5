"""Run one command on two hosts at the same time.

Prints the standard output of the command, once for each host:

    Hello World!
    Hello World!
"""

import asyncio

from reemote.execute import execute
from reemote.host import Shell
from reemote.inventory import Connection, Inventory, InventoryItem


async def main() -> None:
    inventory = Inventory(
        hosts=[
            InventoryItem(connection=Connection(host="server104", username="user", password="password")),
            InventoryItem(connection=Connection(host="server105", username="user", password="password")),
        ]
    )
    responses = await execute(lambda: Shell(cmd="echo Hello World!"), inventory=inventory)
    for response in responses:
        print(response["value"]["stdout"], end="")


if __name__ == "__main__":
    asyncio.run(main())
