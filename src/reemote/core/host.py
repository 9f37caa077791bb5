"""What operations see of a host, and what the engine asks of a transport."""

from __future__ import annotations

from collections.abc import AsyncIterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import SecretStr

from .context import Context
from .files import Files, Path
from .inventory import Inventory, InventoryItem
from .response import Completed
from .secrets import LookUp


@dataclass(frozen=True)
class Scope:
    """What a run is about."""

    inventory: Inventory
    """The whole inventory, with hosts that this run leaves out."""
    items: Sequence[InventoryItem]
    """The hosts of this run."""
    secrets: LookUp = field(default_factory=LookUp, repr=False, compare=False)
    """The secrets that its hosts have needed so far."""


scope: ContextVar[Scope] = ContextVar("reemote_scope")
"""What the run is about that this task belongs to."""


async def looked_up(text: SecretStr | str | None) -> str | None:
    """Give a secret of the inventory in the clear: what the run has looked up already, it does not look up again.

    Raises:
        SecretNotFound: It is not where the inventory says.
    """
    run = scope.get(None)
    return await (run.secrets if run else LookUp()).get(text)


class Host(Protocol):
    """A host, as operations see it."""

    @property
    def context(self) -> Context:
        """What is known of the host."""

    @property
    def interrupted(self) -> Completed | None:
        """The record of a command that was cut short when the run was cancelled."""

    async def run(
        self,
        command: str | Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        stdin: str | bytes | AsyncIterable[bytes] | None = None,
        timeout: float | None = None,
        check: bool = False,
        sudo: bool = False,
        su: bool = False,
        connection: Mapping[str, Any] | None = None,
        session: Mapping[str, Any] | None = None,
        sudo_user: str | None = None,
        output: int | Path | None = None,
        kill_on_disconnect: bool = False,
        question: bool = False,
    ) -> Completed:
        """Run a command on the host and wait for its end.

        Args:
            command: The command, for the login shell of the user; or a program and its arguments, which no
                shell is to read.
            env: Variables to set for it.
            cwd: The directory to run it in.
            stdin: What it reads from standard input, whole or piece by piece; nothing by default.
            timeout: Seconds until its process group is killed.
            check: Whether a non-zero exit status raises.
            sudo: Whether to run it with sudo.
            su: Whether to run it with su, as the inventory's ``su_user``.
            connection: Connection options for this command only, over the inventory's.
            session: Session options for this command only, over the inventory's.
            sudo_user: The user to become with sudo, over the inventory's.
            output: Bytes that are kept of each stream (64 MiB by default), or the file of this machine
                that takes standard output as it comes.
            kill_on_disconnect: Whether the host ends the command when the connection is lost.
            question: Whether it is a command of ours, not of a user, that only looks and leaves nothing running:
                it may run in a shell that is kept for such, which saves time. A signal that ends it shows as
                exit status 128 and more there.

        Raises:
            HostError: No connection, a connection lost, privileges not to be had, a command not ended
                in time, or, with *check*, one that failed.
        """

    def sftp(
        self, *, sudo: bool = False, su: bool = False, sudo_user: str | None = None
    ) -> AbstractAsyncContextManager[Files]:
        """Give the host's files, with the same privileges as in :meth:`run`.

        Relative paths lead from where logins start, or from where ``chdir`` went.
        """

    def other(self, name: str) -> AbstractAsyncContextManager[Host]:
        """Give another host of the same inventory.

        Raises:
            InventoryError: The inventory has no host of that name.
        """


class Transport(Protocol):
    """What brings hosts within reach: a pool of SSH connections, or a fake for tests."""

    def prepare(self, items: Sequence[InventoryItem]) -> int:
        """Check the options of all hosts before anything runs; answer how many may run at once.

        Raises:
            InventoryError: A host's options are wrong.
        """

    def host(self, item: InventoryItem, *, limit: int | None = None) -> AbstractAsyncContextManager[Host]:
        """Give one host for the time of a run; keep to *limit* open connections, if given."""
