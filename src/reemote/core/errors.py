"""The errors of Reemote: one tree, and the name that each failure of a host has in a response."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .response import Completed, Response, Responses

Outcome = Literal["not_started", "completed", "unknown"]
"""May the step have taken effect on the host? Not started: surely not. Unknown: it may."""


class ReemoteError(Exception):
    """The root of every error that Reemote raises."""


class InventoryError(ReemoteError, ValueError):
    """An inventory cannot be read or is wrong; the message names the place."""


class NoHostMatched(InventoryError):
    """A limit selects no host of the inventory."""


class DeploymentError(ReemoteError, TypeError):
    """A deployment is not written as the engine expects; the message says where."""


class CatalogueError(ReemoteError):
    """An operation module cannot be loaded."""


class ExecutionError(ReemoteError, ExceptionGroup[Exception]):
    """What went wrong on several hosts: one exception for each, its note names the host.

    ``responses`` holds the responses of all hosts that have one.
    """

    responses: Responses

    def __new__(cls, message: str, errors: Sequence[Exception], responses: Responses) -> Self:
        """Group *errors*; the hosts' *responses* go along."""
        group = super().__new__(cls, message, errors)
        group.responses = responses
        return group

    def __init__(self, message: str, errors: Sequence[Exception], responses: Responses) -> None:
        super().__init__(message, errors)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.exceptions, self.responses), vars(self)

    def derive(self, errors: Sequence[Exception]) -> ExecutionError:  # type: ignore[override]
        """Keep the responses when ``except*`` splits the group."""
        return ExecutionError(self.message, errors, self.responses)


class HostError(ReemoteError):
    """Something failed on a host.

    Args:
        detail: What a person needs to know.
        outcome: Whether the step may have taken effect.
        completed: The process record so far, where a command had started.
        response: The host's response that this error was made of, if there is one.
        kind: The name of the failure in a response; by default that of the class.
    """

    kind: str
    outcome: Outcome = "completed"
    changed: bool | None = None
    """Whether something changed on the host, where that is known."""
    attempts: int = 1
    """How many attempts to connect are made when this is what goes wrong."""
    _kinds: ClassVar[dict[str, type[HostError]]] = {}

    def __init_subclass__(cls, kind: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.kind = kind or cls.__name__
        HostError._kinds[cls.kind] = cls

    def __init__(
        self,
        detail: str = "",
        *,
        outcome: Outcome | None = None,
        completed: Completed | None = None,
        response: Response | None = None,
        kind: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.completed = completed
        self.response = response
        if outcome is not None:
            self.outcome = outcome
        if kind is not None:
            self.kind = kind

    def __str__(self) -> str:
        where = f"{self.response['host']}: " if self.response else ""
        return f"{where}{self.kind}: {self.detail}" if self.detail else f"{where}{self.kind}"

    @staticmethod
    def named(kind: str) -> type[HostError]:
        """The class whose failures a response calls *kind*; ``HostError`` when there is none."""
        return HostError._kinds.get(kind, SFTPError if kind.startswith("SFTP") else HostError)


HostError.kind = "HostError"


class ConnectFailed(HostError):
    """No connection could be made: nothing ran."""

    outcome: Outcome = "not_started"


class ConnectionRefused(ConnectFailed, kind="ConnectionRefusedError"):
    """Nothing listens at the host's address and port."""


class ConnectTimeout(ConnectFailed):
    """The host did not answer, or did not finish the handshake, in ``connect_timeout`` seconds."""


class HostNotFound(ConnectFailed):
    """The host's name cannot be resolved."""


class HostUnreachable(ConnectFailed):
    """There is no route to the host."""


class HostKeyNotVerifiable(ConnectFailed):
    """The host's key is unknown, and the policy does not allow to trust it unseen."""


class HostKeyChanged(ConnectFailed):
    """The host's key is not the one that is known: an attack, or a host that was set up anew."""


class HostKeyRevoked(ConnectFailed):
    """The host's key is marked as revoked."""


class PermissionDenied(ConnectFailed):
    """The host refused the login."""


class ProtocolError(ConnectFailed):
    """The other side does not speak SSH as expected."""


class ConnectionLost(HostError):
    """The connection ended before the result was known."""

    outcome: Outcome = "unknown"


class ChannelOpenError(HostError):
    """The host opened no further session on the connection."""

    outcome: Outcome = "not_started"


class CommandFailed(HostError):
    """A checked command ended with a non-zero exit status."""


class CommandKilled(HostError):
    """A checked command was ended by a signal."""


class CommandTimeout(HostError):
    """A command did not end in time and was killed."""

    outcome: Outcome = "unknown"


class PrivilegeDenied(HostError):
    """The privileges that were asked for are not to be had."""

    outcome: Outcome = "not_started"


class PasswordRequired(PrivilegeDenied):
    """sudo or su asks for a password, and none is known."""


class PasswordRejected(PrivilegeDenied):
    """sudo or su does not accept the password."""


class TerminalRequired(PrivilegeDenied):
    """sudo or su works on a terminal only, and the command cannot run on one."""


class SecretNotFound(HostError):
    """A password is not where the inventory says."""

    outcome: Outcome = "not_started"


class Cancelled(HostError):
    """The run was cancelled before the host was done."""

    outcome: Outcome = "not_started"


class NoSpaceLeft(HostError):
    """The file system on the host is full, or that of this machine; the message says which."""

    changed = False


class SFTPError(HostError):
    """A file operation failed; ``kind`` is asyncssh's name (``SFTPNoSuchFile``, ...)."""

    changed = False


class LocalFileError(HostError, kind="OSError"):
    """A file of this machine could not be read or written.

    ``kind`` is the name of Python's error (``FileNotFoundError``, ...), ``OSError`` where it has none in ``KINDS``.
    """

    changed = False
    KINDS: ClassVar[tuple[str, ...]] = (
        "FileNotFoundError",
        "FileExistsError",
        "PermissionError",
        "IsADirectoryError",
        "NotADirectoryError",
    )


HostError._kinds.update(dict.fromkeys(LocalFileError.KINDS, LocalFileError))


class FileDescriptorsExhausted(ConnectFailed):
    """This process has no file descriptor left for another connection."""
