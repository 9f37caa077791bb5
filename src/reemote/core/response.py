"""What comes back: process records, one response per host, and the list of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NoReturn, NotRequired, get_type_hints

from pydantic_core import to_json
from typing_extensions import TypedDict, TypeVar

from .errors import CommandFailed, CommandKilled, ExecutionError, HostError

T = TypeVar("T", default=Any)


class Record(dict[str, Any]):
    """A dictionary with a declared shape: ``record["stdout"]`` and ``record.stdout`` are the same.

    It *is* a dict, so ``json.dumps`` takes it.
    """

    _sometimes: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """Keys that are there only when there is something to say, and their types."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Describe the record to pydantic as the dictionary that it is."""
        return handler(_shape(cls))

    if not TYPE_CHECKING:  # a checker is to know the declared keys, and no others

        def __getattr__(self, name: str) -> Any:
            try:
                return self[name]
            except KeyError:
                raise AttributeError(f"{type(self).__name__} has no {name!r}: it has {', '.join(self)}") from None


@cache
def _shape(record: type[Record]) -> Any:
    """Make the type of a record's dictionary: once, since pydantic takes each for another of the same name."""
    keys = {name: hint for name, hint in get_type_hints(record).items() if name != "_sometimes"}
    keys |= {name: NotRequired[hint] for name, hint in record._sometimes.items()}
    return TypedDict(record.__name__, keys)  # type: ignore[operator]


class Completed(Record):
    r"""A command that ran on a host. Its keys are these seven, in this order.

    Only where there is more to say, there are more. ``truncated`` is true where not all output was kept;
    then ``stdout_size`` and ``stderr_size`` are the bytes that the command wrote. ``pty`` is true where sudo
    or su needed a terminal: standard error is part of ``stdout`` then.

    The texts are UTF-8; bytes that are not show as ``\xff`` escapes (``backslashreplace``).
    :attr:`stdout_bytes` and :attr:`stderr_bytes` are the exact bytes.
    """

    command: str | None
    """The command as the deployment wrote it."""
    subsystem: str | None
    exit_status: int | None
    """0 to 255; ``None`` when a signal ended the command, or when its end is unknown."""
    exit_signal: tuple[str, bool, str, str] | None
    """Signal name without ``SIG``, core dumped, message, language (RFC 4254, section 6.10)."""
    returncode: int | None
    """The exit status, or the negative number of the signal, as in ``subprocess``."""
    stdout: str
    stderr: str

    _sometimes = MappingProxyType({"truncated": bool, "stdout_size": int, "stderr_size": int, "pty": bool})

    def __init__(
        self,
        *,
        command: str | None = None,
        subsystem: str | None = None,
        exit_status: int | None = 0,
        exit_signal: tuple[str, bool, str, str] | None = None,
        returncode: int | None = None,
        stdout: str | bytes = "",
        stderr: str | bytes = "",
        encoding: str = "utf-8",
        sizes: tuple[int, int] | None = None,
        pty: bool = False,
    ) -> None:
        super().__init__(
            command=command,
            subsystem=subsystem,
            exit_status=exit_status,
            exit_signal=exit_signal,
            returncode=exit_status if returncode is None else returncode,
            stdout=stdout if isinstance(stdout, str) else stdout.decode(encoding, "backslashreplace"),
            stderr=stderr if isinstance(stderr, str) else stderr.decode(encoding, "backslashreplace"),
        )
        if sizes is not None:
            self.update(truncated=True, stdout_size=sizes[0], stderr_size=sizes[1])
        if pty:
            self["pty"] = True
        self._bytes = {"stdout": stdout, "stderr": stderr}

    def _exact(self, stream: str) -> bytes:
        kept = self._bytes[stream]
        return kept if isinstance(kept, bytes) else kept.encode("utf-8", "surrogateescape")

    @property
    def stdout_bytes(self) -> bytes:
        """What the command wrote to standard output, byte for byte."""
        return self._exact("stdout")

    @property
    def stderr_bytes(self) -> bytes:
        """What the command wrote to standard error, byte for byte."""
        return self._exact("stderr")

    def failure(self) -> HostError | None:
        """What :meth:`raise_for_status` would raise, or ``None`` when the exit status is 0."""
        shown = (self["command"] or "").partition("\n")[0]
        last_line = self["stderr"].rstrip().rpartition("\n")[2]
        because = f": {last_line}" if last_line else ""
        if self["exit_signal"] is not None:
            return CommandKilled(f"signal {self['exit_signal'][0]} ended {shown!r}{because}", completed=self)
        if self["exit_status"] != 0:
            return CommandFailed(f"exit status {self['exit_status']} of {shown!r}{because}", completed=self)
        return None

    def raise_for_status(self) -> None:
        """Raise ``CommandFailed`` or ``CommandKilled`` unless the exit status is 0."""
        if failure := self.failure():
            raise failure


class FailureName(str):
    """The value of a failed response: the name of the failure.

    It is a string to compare, print and store. Reading into it as if it were the value of a step
    that succeeded raises the :class:`HostError` of its response.
    """

    response: Response[Any]

    def _refuse(self, *_: object) -> NoReturn:
        raise self.response.to_error()

    __getitem__ = __iter__ = __len__ = __bool__ = __int__ = __float__ = _refuse

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__") or name == "response":
            raise AttributeError(name)
        self._refuse()

    def __reduce__(self) -> tuple[type[str], tuple[str], dict[str, Any]]:
        return type(self), (str(self),), vars(self)


_SKIPPED = "the step did not run here, its group does not include this host"


class Response(Record, Generic[T]):
    """The outcome of one step on one host.

    Its keys are ``host``, ``value``, ``changed`` and ``error``; when ``error`` is true also
    ``detail``, ``outcome`` and, where a command had started, ``completed``. In a dry run there may be
    ``skipped``, true for a step of which nobody can say what it would do, and ``diff``.
    A response without any key is false: the step is not for this host and did not run.
    """

    host: str
    value: T
    changed: bool
    error: bool

    def __missing__(self, key: str) -> NoReturn:
        if not self:
            raise KeyError(f"{key}: {_SKIPPED}")
        raise KeyError(key)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if not self:
                raise AttributeError(f"{name}: {_SKIPPED}")
            return super().__getattr__(name)

    @property
    def detail(self) -> str:
        """What a person needs to know of a failure; empty for a success."""
        return str(self.get("detail", ""))

    @property
    def outcome(self) -> str:
        """Whether the step may have taken effect: ``not_started``, ``completed`` or ``unknown``."""
        return str(self.get("outcome", "completed" if self else "not_started"))

    @property
    def skipped(self) -> bool:
        """Whether a dry run left the step out."""
        return bool(self.get("skipped", False))

    @property
    def diff(self) -> str:
        """What a dry run would change in a file, as a unified diff; empty where that is not known."""
        return str(self.get("diff", ""))

    @property
    def completed(self) -> Completed | None:
        """The process record of a failed step, where a command had started."""
        return self.get("completed")

    @classmethod
    def of_failure(cls, error: HostError, host: str, *, reads: bool = False) -> Response[Any]:
        """Make the response that tells of *error*; a step that only *reads* has changed nothing."""
        name = FailureName(error.kind)
        may_have = error.outcome == "unknown" or (error.outcome == "completed" and error.changed is not False)
        changed = not reads and may_have
        response: Response[Any] = Response(host=host, value=name, changed=changed, error=True)
        response.update(detail=error.detail, outcome=error.outcome)
        if error.completed is not None:
            response["completed"] = error.completed
        name.response = response
        return response

    def to_error(self) -> HostError:
        """Make the :class:`HostError` that tells of this failed response."""
        kind = str(self["value"])
        return HostError.named(kind)(
            self.detail, outcome=self["outcome"], completed=self.completed, response=self, kind=kind
        )

    def raise_for_error(self) -> None:
        """Raise the :class:`HostError` of this response if it failed."""
        if self and self["error"]:
            raise self.to_error()


class Responses(list[Response[T]]):
    """The responses of a run, in the order of the inventory."""

    @property
    def failed(self) -> list[Response[T]]:
        """The responses with ``error: true``."""
        return [response for response in self if response["error"]]

    @property
    def changed(self) -> list[Response[T]]:
        """The responses with ``changed: true``."""
        return [response for response in self if response["changed"]]

    @property
    def by_host(self) -> Mapping[str, Response[T]]:
        """Look a response up by its host's name."""
        return MappingProxyType({response["host"]: response for response in self})

    def raise_for_errors(self) -> None:
        """Raise an :class:`ExecutionError` with one :class:`HostError` for each failed host, if any."""
        if failed := self.failed:
            errors = [response.to_error() for response in failed]
            raise ExecutionError(f"{len(failed)} of {len(self)} hosts failed", errors, self)

    def to_json(self, indent: int | None = None) -> str:
        """Write the responses as JSON, values that JSON does not know as their text, secrets masked."""
        return as_json(self, indent)


def as_json(value: Any, indent: int | None = None) -> str:
    """Write *value* as JSON: bytes as text, objects that JSON does not know by ``str``, secrets masked."""
    return to_json(_plain(value), indent=indent, fallback=str, bytes_mode="utf8", inf_nan_mode="null").decode()


def _plain(value: Any) -> Any:
    """Replace bytes and our own string type, which the encoder would refuse or read into."""
    if isinstance(value, dict):
        return {_plain(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return str(value).encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Give the single exceptions of *error*, a group or not."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error
