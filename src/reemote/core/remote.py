"""Operations that run commands on the host, with other privileges where asked for."""

from __future__ import annotations

from typing import Annotated, Any, Generic

from pydantic import AfterValidator, Field
from typing_extensions import TypeVar

from .host import Host
from .operation import Operation
from .response import Completed, Response
from .secrets import Options

T = TypeVar("T", default=Any)
C = TypeVar("C", default=Completed)


class Remote(Operation[T], Generic[T]):
    """An operation that may run with other privileges, and with connection options of its own."""

    sudo: bool = False
    """Run with sudo."""
    su: bool = False
    """Run with su."""
    connection: Annotated[dict[str, Any], AfterValidator(Options)] = Field(default_factory=Options)
    """Options of ``asyncssh.connect()`` for this operation only, over the inventory's."""
    session: Annotated[dict[str, Any], AfterValidator(Options)] = Field(default_factory=Options)
    """Options of asyncssh's ``create_session()`` for this operation only, over the inventory's."""

    def run_options(self) -> dict[str, Any]:
        """Give the options of :meth:`Host.run` that every such operation has."""
        return {"sudo": self.sudo, "su": self.su, "connection": self.connection, "session": self.session}


class Command(Remote[C], Generic[C]):
    """An operation that is one shell command."""

    def to_shell(self) -> str:
        """Write the command line."""
        raise NotImplementedError(f"{type(self).__name__} does not override to_shell")

    def parse(self, completed: Completed) -> C:
        """Make the operation's value of a command that succeeded; by default its record."""
        return completed  # type: ignore[return-value]

    async def perform(self, host: Host) -> C | Response[C]:
        """Run the command; an exit status other than 0 is a failure."""
        return self.parse(await host.run(self.to_shell(), check=True, **self.run_options()))
