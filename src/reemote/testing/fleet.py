"""The sandbox: a fleet of real SSH hosts inside this process, for tests, demonstrations and trials."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType

from ..core.inventory import Connection, Inventory, InventoryItem
from ..ssh.server import SandboxServer

USERNAME = "user"
PASSWORD = "password"  # noqa: S105 - of hosts that listen on loopback addresses only


class Sandbox:
    """SSH hosts in this process, for as long as the context lasts.

    ``async with sandbox("server104", "server105") as inventory`` is the whole of its use. Each host
    has a real shell, real files, and a home directory of its own that is removed at the end. They
    listen on loopback addresses and free ports, and are the machine itself: a command that is run
    there runs here, as the user who started the sandbox.

    Look a host up by its name (``fleet["server104"]``) to see what it was asked, or to cut its
    connections.
    """

    def __init__(
        self,
        *names: str,
        username: str = USERNAME,
        password: str = PASSWORD,
        authorized_keys: Iterable[str] = (),
        max_sessions: int | None = None,
    ) -> None:
        self.username = username
        self.password = password
        self.servers = {
            name: SandboxServer(
                name,
                username=username,
                password=password,
                authorized_keys=tuple(authorized_keys),
                max_sessions=max_sessions,
            )
            for name in names
        }
        if len(self.servers) != len(names):
            raise ValueError(f"each host of a sandbox needs a name of its own: {', '.join(names)}")
        self._stack = AsyncExitStack()

    def __getitem__(self, name: str) -> SandboxServer:
        return self.servers[name]

    @property
    def known_hosts(self) -> str:
        """The hosts' keys, as lines of a known_hosts file."""
        lines = (f"[{s.address}]:{s.port} {s.public_host_key.strip()}\n" for s in self.servers.values())
        return "".join(lines)

    def inventory(self, known_hosts: Path | None = None) -> Inventory:
        """Give the inventory of the hosts that run.

        Args:
            known_hosts: A file that holds their keys; without it, the keys are in the inventory.
        """
        keys = self.known_hosts.encode() if known_hosts is None else str(known_hosts)
        return Inventory(
            hosts=[
                InventoryItem(
                    connection=Connection.model_validate(
                        {
                            "host": name,
                            "address": server.address,
                            "port": server.port,
                            "username": self.username,
                            "password": self.password,
                            "known_hosts": keys,
                        }
                    )
                )
                for name, server in self.servers.items()
            ]
        )

    async def __aenter__(self) -> Inventory:
        async with AsyncExitStack() as stack:
            for server in self.servers.values():
                await stack.enter_async_context(server)
            self._stack = stack.pop_all()
        return self.inventory()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()


def sandbox(
    *names: str,
    username: str = USERNAME,
    password: str = PASSWORD,
    authorized_keys: Iterable[str] = (),
    max_sessions: int | None = None,
) -> Sandbox:
    """Make a sandbox of hosts with these names; enter it with ``async with`` to start them.

    Args:
        names: The hosts' names; two of them by default, as in the tutorial.
        username: The user who may log in.
        password: The user's password.
        authorized_keys: Public keys, as lines of an authorized_keys file, that may log in, too.
        max_sessions: How many sessions a connection may have at a time, as sshd's ``MaxSessions``.
    """
    return Sandbox(
        *(names or ("server104", "server105")),
        username=username,
        password=password,
        authorized_keys=authorized_keys,
        max_sessions=max_sessions,
    )
