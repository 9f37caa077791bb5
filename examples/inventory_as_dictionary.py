"""Write the inventory as a plain dictionary, keep it in a JSON file, and run on a part of it.

execute() takes a dictionary, the path of a JSON file, or an Inventory. A limit chooses hosts by
their names, by groups and by globs. The password is read from the environment if it is there.

Prints:

    from a dictionary: server104 server105
    from a file: server104 server105
    only the web group: server104
    all but server104: server105
"""

import asyncio
import json
import os
import tempfile
from pathlib import Path

from reemote.execute import execute
from reemote.host import Shell

PASSWORD = os.environ.get("EXAMPLE_PASSWORD", "password")

INVENTORY = {
    "hosts": [
        {
            "connection": {"host": "server104", "username": "user", "password": PASSWORD},
            "groups": ["web"],
        },
        {
            "connection": {"host": "server105", "username": "user", "password": PASSWORD},
            "session": {"encoding": "utf-8"},
            "authentication": {"sudo_password": PASSWORD},
            "groups": ["databases"],
        },
    ]
}


async def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "inventory.json")
        file.touch(mode=0o600)  # it holds passwords
        file.write_text(json.dumps(INVENTORY))
        for what, responses in (
            ("from a dictionary", await execute(lambda: Shell(cmd="true"), inventory=INVENTORY)),
            ("from a file", await execute(lambda: Shell(cmd="true"), inventory=file)),
            ("only the web group", await execute(lambda: Shell(cmd="true"), inventory=INVENTORY, limit="web")),
            ("all but server104", await execute(lambda: Shell(cmd="true"), inventory=INVENTORY, limit="!server104")),
        ):
            print(f"{what}:", *(response["host"] for response in responses))


if __name__ == "__main__":
    asyncio.run(main())
