"""Call a function of one's own in the middle of a deployment.

It is called with the context of each host, and its answer is the value of the response. Use it for
what only this process knows or can do: ask a service, look into a file, wait for somebody.

Prints:

    server104: maintained by Ada, told to user
    server105: maintained by Grace, told to user
"""

import asyncio

from reemote import Context, Steps
from reemote.execute import execute
from reemote.host import Shell
from reemote.inventory import Connection, Inventory, InventoryItem
from reemote.system import Callback

MAINTAINERS = {"server104": "Ada", "server105": "Grace"}


async def maintainer(context: Context) -> str:
    return f"maintained by {MAINTAINERS[context.host]}, told to {context.inventory_item.connection.username}"


class Root:
    async def execute(self) -> Steps:
        answer = yield Callback(callback=maintainer)
        yield Shell(cmd="cat", stdin=answer["value"])


async def main() -> None:
    inventory = Inventory(
        hosts=[
            InventoryItem(connection=Connection(host="server104", username="user", password="password")),
            InventoryItem(connection=Connection(host="server105", username="user", password="password")),
        ]
    )
    for response in await execute(lambda: Root(), inventory=inventory):
        print(f"{response['host']}: {response['value']['stdout']}")


if __name__ == "__main__":
    asyncio.run(main())
