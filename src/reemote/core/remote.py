"""Operations that run commands on the host, with other privileges where asked for."""

from __future__ import annotations

from typing import Annotated, Any, Generic, Self

from pydantic import AfterValidator, Field, model_validator
from typing_extensions import TypeVar

from .host import Host
from .inventory import UserName
from .operation import Operation, skipped
from .response import Completed, Response
from .secrets import Options

T = TypeVar("T", default=Any)
C = TypeVar("C", default=Completed)


class Privileged(Operation[T], Generic[T]):
    """An operation that may run with other privileges."""

    sudo: bool = False
    """Run with sudo."""
    su: bool = False
    """Run with su, as the ``su_user`` of the inventory; root by default."""
    sudo_user: UserName | None = None
    """The user to become with sudo, over the inventory's; root by default."""

    @model_validator(mode="after")
    def _check_privileges(self) -> Self:
        if self.sudo and self.su:
            raise ValueError("sudo and su exclude each other")
        if self.sudo_user is not None and not self.sudo:
            raise ValueError("sudo_user needs sudo")
        return self

    def privileges(self) -> dict[str, Any]:
        """Give the options of :meth:`Host.run` and :meth:`Host.sftp` that say whose privileges are meant."""
        user = {} if self.sudo_user is None else {"sudo_user": self.sudo_user}
        return {"sudo": self.sudo, "su": self.su, **user}


class Remote(Privileged[T], Generic[T]):
    """An operation that may run with other privileges, and with connection options of its own."""

    connection: Annotated[dict[str, Any], AfterValidator(Options)] = Field(default_factory=Options)
    """Options of ``asyncssh.connect()`` for this operation only, over the inventory's."""
    session: Annotated[dict[str, Any], AfterValidator(Options)] = Field(default_factory=Options)
    """Options of asyncssh's ``create_session()`` for this operation only, over the inventory's."""

    def run_options(self) -> dict[str, Any]:
        """Give the options of :meth:`Host.run` that every such operation has."""
        return {**self.privileges(), "connection": self.connection, "session": self.session}


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

    async def predict(self, host: Host) -> C | Response[C]:
        """Leave the command out of a dry run; its record then says how it would have been, and no end."""
        is_record = type(self).parse is Command.parse
        return skipped(Completed(command=self.to_shell(), exit_status=None) if is_record else None)
