"""Host: run commands on a host, and ask what is known of it."""

from __future__ import annotations

import re
import shlex
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.config import JsonDict

from .core import remote
from .core.context import Context
from .core.files import LocalPath
from .core.host import Host
from .core.operation import Effect
from .core.response import Completed
from .transfer.target import one_for_each

# What the functions below refuse, for those who read the schema.
_NO_NUL: JsonDict = {"pattern": r"^[^\u0000]*$"}
_VARIABLES: JsonDict = {
    "propertyNames": {"pattern": r"^[A-Za-z_][A-Za-z0-9_]*$"},
    "additionalProperties": {"type": "string", **_NO_NUL},
}

# Linux passes one argument of at most 128 KiB (MAX_ARG_STRLEN, execve(2)), and a command is one.
_LONGEST = 128 * 1024 - 1

_MOST = 2**40
"""Bytes of an output that one may ask to keep."""


def _command(value: str) -> str:
    if "\0" in value:
        raise ValueError("a command cannot contain a NUL character")
    if len(value.encode()) > _LONGEST:
        raise ValueError("a command can have 131,071 bytes at most: give a longer script on stdin, to 'sh -s'")
    return value


def _argument(value: str) -> str:
    if "\0" in value:
        raise ValueError("an argument cannot contain a NUL character")
    return value


def _arguments(value: list[str]) -> list[str]:
    if not value[0]:
        raise ValueError("the first argument names the program")
    if value[0].startswith("-"):
        raise ValueError("a program's name cannot begin with '-': give a path, such as ./-name")
    _command(shlex.join(value))
    return value


def _directory(value: str) -> str:
    if "\0" in value:
        raise ValueError("a directory cannot contain a NUL character")
    return value


def _variables(value: dict[str, str]) -> dict[str, str]:
    for name, text in value.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"{name!r} is no name for an environment variable")
        if "\0" in text:
            raise ValueError(f"the variable {name} cannot contain a NUL character")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"the variable {name} is not valid Unicode") from None
    return value


def _bytes_or_path(value: Any) -> Any:
    """Read digits as a number of bytes: what a query has is text."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and int(value) <= _MOST:
        return int(value)
    return value


_Kept = Annotated[int, Field(ge=0, le=_MOST)]


class _Process(remote.Command[Completed]):
    """What all operations have that run one process."""

    env: Annotated[dict[str, str], AfterValidator(_variables)] = Field(
        default_factory=dict, json_schema_extra=_VARIABLES, examples=[{"LANG": "C.UTF-8"}]
    )
    """Variables to set for the command; the host sees them in its process list for a moment."""
    cwd: Annotated[str, Field(min_length=1, json_schema_extra=_NO_NUL), AfterValidator(_directory)] | None = None
    """The directory to run the command in; a relative one starts where logins start."""
    stdin: str | bytes | None = None
    """What the command reads from standard input."""
    timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Seconds until the command and its process group are killed."""
    check: bool = False
    """Whether an exit status other than 0 is an error."""
    output: Annotated[_Kept | LocalPath | None, BeforeValidator(_bytes_or_path)] = None
    """Bytes that are kept of each output stream, the beginning and the end, 64 MiB by default; or the path
    of a file of this machine that gets standard output as it comes, with ``{host}`` for the host's name."""
    kill_on_disconnect: bool = False
    """Whether the host itself ends the command when the connection is lost; by default it runs on."""

    def _command(self) -> str | list[str]:
        return self.to_shell()

    async def perform(self, host: Host) -> Completed:
        """Run the command."""
        more: dict[str, Any] = {"kill_on_disconnect": True} if self.kill_on_disconnect else {}
        if self.output is not None:
            kept = self.output
            more["output"] = kept if isinstance(kept, int) else one_for_each(kept, host.context.host, self.group)
        return await host.run(
            self._command(),
            env=self.env,
            cwd=self.cwd,
            stdin=self.stdin,
            timeout=self.timeout,
            check=self.check,
            **more,
            **self.run_options(),
        )


class Shell(_Process):
    """Run a shell command on the host.

    The value is its record. An exit status other than 0 is no error unless ``check`` is set; the
    command's standard input is empty unless ``stdin`` is given. A process that it leaves in the
    background does not hold up the answer for longer than two seconds of silence.
    """

    cmd: Annotated[str, AfterValidator(_command)] = Field(
        min_length=1, json_schema_extra={**_NO_NUL, "maxLength": _LONGEST}, examples=["uname -a"]
    )
    """The command, as the login shell of the user is to read it."""

    def to_shell(self) -> str:
        """Give the command as it was written."""
        return self.cmd


_Argument = Annotated[str, AfterValidator(_argument), Field(json_schema_extra=_NO_NUL)]

_PROGRAM: JsonDict = {"prefixItems": [{"type": "string", "pattern": r"^[^-\u0000][^\u0000]*$"}]}


class Command(_Process):
    """Run a program on the host without a shell.

    The value is its record. Each argument reaches the program as it is. With ``sudo``, it is this
    program that sudo has to allow, and no shell.
    """

    argv: Annotated[list[_Argument], AfterValidator(_arguments)] = Field(
        min_length=1, json_schema_extra=_PROGRAM, examples=[["/usr/bin/id", "-u"]]
    )
    """The program and its arguments."""

    def to_shell(self) -> str:
        """Write the program and its arguments as a shell would have to read them."""
        return shlex.join(self.argv)

    def _command(self) -> list[str]:
        return self.argv


class Getcontext(remote.Remote[Context]):
    """Get the context of the host: its entry in the inventory."""

    effect = Effect.READS

    async def perform(self, host: Host) -> Context:
        """Answer from what is known here; the host is not asked."""
        return host.context
