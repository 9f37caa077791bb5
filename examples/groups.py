"""Run a step on the hosts of one group only.

On the other hosts the yield answers with something false. A host that ran nothing has no response.

Prints:

    server104: web and nothing else
    server105: web and dump
    databases only: server105
"""

import asyncio

from reemote import Steps
from reemote.execute import execute
from reemote.host import Shell
from reemote.inventory import Connection, Inventory, InventoryItem
from reemote.system import Return


class Root:
    async def execute(self) -> Steps:
        web = yield Shell(cmd="echo web", group="web")
        dump = yield Shell(cmd="echo dump", group="databases")
        what = dump["value"]["stdout"].strip() if dump else "nothing else"
        yield Return(value=f"{web['value']['stdout'].strip()} and {what}")


async def main() -> None:
    inventory = Inventory(
        hosts=[
            InventoryItem(
                connection=Connection(host="server104", username="user", password="password"), groups=["web"]
            ),
            InventoryItem(
                connection=Connection(host="server105", username="user", password="password"),
                groups=["web", "databases"],
            ),
        ]
    )
    for response in await execute(lambda: Root(), inventory=inventory):
        print(f"{response['host']}: {response['value']}")
    responses = await execute(lambda: Shell(cmd="echo dump", group="databases"), inventory=inventory)
    print("databases only:", *(response["host"] for response in responses))


if __name__ == "__main__":
    asyncio.run(main())
