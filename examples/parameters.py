"""Give a deployment parameters, with descriptions, defaults and limits.

The arguments are checked when the object is made, before any host is contacted.
Takes the number of times to count to as its one argument; it prints, without any:

    1 2 3

With 5 it prints "1 2 3 4 5". With 0 it contacts no host, and prints:

    times: Input should be greater than or equal to 1
"""

import asyncio
import sys
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from reemote import Steps
from reemote.core.remote import Remote
from reemote.execute import execute
from reemote.host import Shell
from reemote.inventory import Connection, Inventory, InventoryItem


class CountRequest(BaseModel):
    times: int = Field(default=3, ge=1, description="How far to count.")


class Count(Remote):
    Model = CountRequest

    async def execute(self) -> Steps:
        model = self.Model.model_validate(self.kwargs)
        yield Shell(cmd=f"echo $(seq {model.times})")


async def main() -> None:
    inventory = Inventory(
        hosts=[InventoryItem(connection=Connection(host="server104", username="user", password="password"))]
    )
    kwargs: dict[str, Any] = {"times": sys.argv[1]} if len(sys.argv) > 1 else {}
    try:
        responses = await execute(lambda: Count(**kwargs), inventory=inventory)
    except ValidationError as error:
        for mistake in error.errors():
            print(f"{mistake['loc'][0]}: {mistake['msg']}")
        return
    for response in responses:
        print(response["value"]["stdout"], end="")


if __name__ == "__main__":
    asyncio.run(main())
