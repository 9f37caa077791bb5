"""``reemote shell``: run one command on the hosts of an inventory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from ..host import Shell
from .hosts import Given, host_options, privilege_options
from .main import Refused
from .parameters import made
from .reporting import carry_out


def _variables(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    for value in values:
        if "=" not in value:
            raise click.BadParameter(f"{value!r} has no '=': write NAME=VALUE")
    return dict(value.split("=", 1) for value in values)


@click.command(context_settings={"allow_interspersed_args": False})
@click.argument("words", metavar="[--] CMD...", nargs=-1, required=True)
@host_options
@privilege_options
@click.option("--cwd", metavar="DIRECTORY", help="The directory of the hosts to run it in.")
@click.option(
    "--env", multiple=True, metavar="NAME=VALUE", callback=_variables, help="A variable to set, as often as needed."
)
@click.option("--stdin", metavar="FILE", help="What it reads on each host: a file, or - for standard input.")
def shell(given: Given, words: tuple[str, ...], privileges: dict[str, Any], stdin: str | None, **how: Any) -> int:
    """Run a shell command on the hosts of an inventory and show what it writes.

    The words of CMD are joined with spaces, as ssh(1) does, and read by the login shell there: quote what
    this machine's shell is to leave alone, as in: reemote shell -i hosts.json 'ps aux | grep nginx'

    The output of a single host is written as it is. If the command ends with a status other than 0 on some
    host, the exit code is 3.
    """
    values = {"cmd": " ".join(words), **privileges, **{name: value for name, value in how.items() if value}}
    if stdin is not None:
        values["stdin"] = b""  # checked first, since standard input can be read once
    made(Shell, values, {"cmd": "CMD"})
    hosts = given.load()
    if stdin is not None:
        values["stdin"] = _read(stdin)
    return carry_out(given, hosts, lambda: Shell(**values), is_command=True, is_plain=True)


def _read(path: str) -> bytes:
    try:
        if path == "-":
            return sys.stdin.buffer.read() if sys.stdin is not None else b""
        return Path(path).read_bytes()
    except OSError as error:
        raise Refused(f"{path!r} on this machine: {error.strerror}") from None
