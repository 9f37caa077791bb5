"""See what happens when a host is down, and what a deployment can do about it.

A host's failure becomes its response: error is true, value is the name of the failure, detail says
what a person needs to know, outcome whether the step may have taken effect. The other hosts go on.

With server105 down it prints (the detail names its address and port, too):

    server104 is up
    server105 failed: ConnectionRefusedError
    its step: not_started
    what to do: nothing listens at server105
    with a plan of its own: ['server104 deployed', 'server105 skipped']
    1 of 2 hosts failed
"""

import asyncio

from reemote import ExecutionError, Steps
from reemote.execute import execute
from reemote.host import Shell
from reemote.inventory import Connection, Inventory, InventoryItem
from reemote.system import Return


class Plain:
    """Look at no error: reading into the failed response ends the deployment on that host."""

    async def execute(self) -> Steps:
        response = yield Shell(cmd="echo is up")
        yield Return(value=response["value"]["stdout"].strip())


class Careful:
    """Decide for oneself."""

    async def execute(self) -> Steps:
        response = yield Shell(cmd="true")
        if response["error"]:
            yield Return(value="skipped")
        else:
            yield Return(value="deployed")


async def main() -> None:
    inventory = Inventory(
        hosts=[
            InventoryItem(connection=Connection(host="server104", username="user", password="password")),
            InventoryItem(connection=Connection(host="server105", username="user", password="password")),
        ]
    )
    responses = await execute(lambda: Plain(), inventory=inventory)
    for response in responses:
        if response["error"]:
            print(f"{response['host']} failed: {response['value']}")
            print(f"its step: {response['outcome']}")
            print(f"what to do: {response['detail']}")
        else:
            print(f"{response['host']} {response['value']}")
    plans = await execute(lambda: Careful(), inventory=inventory)
    print("with a plan of its own:", [f"{plan['host']} {plan['value']}" for plan in plans])
    try:
        responses.raise_for_errors()
    except ExecutionError as error:
        print(error.message)


if __name__ == "__main__":
    asyncio.run(main())
