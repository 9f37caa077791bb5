r"""Look at a whole response, and read it by key or by attribute.

A response is a dictionary, so json.dumps() takes it. Its keys can be read as attributes, too.
A command that ends with a status other than 0 is no error: its record says how it ended.

Prints:

    {
        "host": "server104",
        "value": {
            "command": "echo to the log >&2; exit 7",
            "subsystem": null,
            "exit_status": 7,
            "exit_signal": null,
            "returncode": 7,
            "stdout": "",
            "stderr": "to the log\n"
        },
        "changed": true,
        "error": false
    }
    server105 ended with 7 and wrote 'to the log'
"""

import asyncio
import json

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
    responses = await execute(lambda: Shell(cmd="echo to the log >&2; exit 7"), inventory=inventory)
    print(json.dumps(responses[0], indent=4))
    second = responses.by_host["server105"]
    print(f"{second.host} ended with {second.value.returncode} and wrote {second.value.stderr.strip()!r}")


if __name__ == "__main__":
    asyncio.run(main())
