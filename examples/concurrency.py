"""See what runs at the same time, and what in order.

On one host the steps of a deployment run in order; a list of steps runs at the same time.
The hosts run at the same time, and execute() returns when all of them are done.

Each host waits for the other one: were they run one after the other, neither
would ever be done. Prints:

    server104 met server105
    server105 met server104
    server104: ['first', 'second'] then third
    server105: ['first', 'second'] then third
"""

import asyncio

from reemote import Steps
from reemote.execute import execute
from reemote.host import Shell
from reemote.inventory import Connection, Inventory, InventoryItem
from reemote.system import Callback, Return

OTHER = {"server104": "server105", "server105": "server104"}


class Meet:
    """Meet the other host: each waits until both have arrived."""

    def __init__(self, arrived: dict[str, asyncio.Event]) -> None:
        self.arrived = arrived

    async def wait_for_the_other(self, host: str) -> str:
        self.arrived[host].set()
        await self.arrived[OTHER[host]].wait()
        return OTHER[host]

    async def execute(self) -> Steps:
        yield Callback(callback=lambda context: self.wait_for_the_other(context.host))


class Order:
    async def execute(self) -> Steps:
        # Either of the two would wait for ever if the other did not run at the same time.
        both = yield [
            Shell(cmd="mkfifo -m 600 pipe 2>/dev/null; echo second > pipe; echo first"),
            Shell(cmd="until [ -p pipe ]; do :; done; cat pipe"),
        ]
        third = yield Shell(cmd="rm pipe; echo third")
        yield Return(value=([r.value.stdout.strip() for r in both], third.value.stdout.strip()))


async def main() -> None:
    inventory = Inventory(
        hosts=[
            InventoryItem(connection=Connection(host=host, username="user", password="password"))
            for host in ("server104", "server105")
        ]
    )
    arrived = {host: asyncio.Event() for host in OTHER}
    for response in await execute(lambda: Meet(arrived), inventory=inventory):
        print(f"{response['host']} met {response['value']}")
    for response in await execute(lambda: Order(), inventory=inventory):
        both, third = response["value"]
        print(f"{response['host']}: {both} then {third}")


if __name__ == "__main__":
    asyncio.run(main())
