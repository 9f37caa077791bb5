"""The command ``reemote``: its subcommands, loaded when they are called, and its exit codes."""

from __future__ import annotations

import importlib
import io
import os
import sys
import traceback
from typing import Any, NoReturn

import click

OK, INTERNAL, USAGE, FAILED, UNREACHABLE, NO_HOST, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130
"""Exit codes: some host failed is 3, some host could not be reached is 4 and goes before it."""

COMMANDS = {
    "demo": ("reemote.cli.demo", "Run a program on two hosts that live in this process."),
    "run": ("reemote.cli.run", "Run a deployment on the hosts of an inventory."),
    "shell": ("reemote.cli.shell", "Run a shell command on the hosts of an inventory."),
    "sandbox": ("reemote.cli.sandbox", "Keep SSH hosts up in this process, to try things on."),
    "put": ("reemote.cli.files", "Copy files and directories of this machine to hosts."),
    "get": ("reemote.cli.files", "Copy files and directories of hosts to this machine."),
    "sync": ("reemote.cli.files", "Make a directory on hosts equal to one of this machine."),
    "serve": ("reemote.cli.serve", "Serve every operation over HTTP, with its documentation."),
    "token": ("reemote.cli.token", "Print or change the token of the HTTP server."),
}
"""Each subcommand's module, where it has the same name, and its summary. Listing them loads none."""

OPERATIONS = {
    "host": "Run commands on a host, and ask what is known of it.",
    "sftp": "Ask for, change and transfer files over SFTP.",
    "scp": "Copy files between this machine and hosts, and from host to host.",
    "apt": "Install and remove Debian packages.",
    "system": "Steps that run in this process, not on the host.",
}
"""Our modules of operations, and what each is about, as the catalogue says; listing them loads none, too."""

_OWN_OPTIONS = ("-h", "--help", "--version")
"""The options of the command itself; others, without a subcommand, are those of ``serve``."""


class Refused(click.ClickException):
    """What was asked for cannot be done as it was asked for; nothing has run."""

    exit_code = USAGE


def operations() -> dict[str, str]:
    """Give the modules of operations, ours and those of other installed packages, without loading any."""
    from importlib.metadata import entry_points  # takes a while, which other commands do without

    points = entry_points(group="reemote.operations")
    others = {point.name: f"Operations of {point.dist.name if point.dist else point.value}." for point in points}
    return OPERATIONS | {name: text for name, text in others.items() if name not in (*COMMANDS, *OPERATIONS)}


class Commands(click.Group):
    """A group that imports a subcommand when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Give the names of the subcommands."""
        return [*COMMANDS, *operations()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a subcommand."""
        command: click.Command | None = None
        if cmd_name in COMMANDS:
            command = getattr(importlib.import_module(COMMANDS[cmd_name][0]), cmd_name)
        elif cmd_name in operations():
            command = importlib.import_module("reemote.cli.operations").group(cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the subcommands' summaries."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])
        with formatter.section("Operations (reemote MODULE --help lists them)"):
            formatter.write_dl(list(operations().items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Say what there is, where a subcommand does not exist."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS and args[0] not in operations():
            ctx.fail(f"there is no command {args[0]!r}: there are {', '.join(self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand; a reader that leaves early, as ``head`` does, is no failure."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            write_no_more()
            return OK


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="reemote", message="%(prog)s %(version)s")
def reemote() -> None:
    """Control remote systems over SSH.

    Exit codes: 0 all went well, 1 an error in Reemote, 2 wrong usage, 3 some host failed, 4 some
    host could not be reached, 5 no host matched, 130 interrupted.
    """


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line, and exit."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # hosts write what they like, terminals show what they can
    given = sys.argv[1:] if arguments is None else arguments
    if given and given[0].startswith("-") and given[0] not in _OWN_OPTIONS:
        given = ["serve", *given]  # 'reemote --port=8001 --inventory=FILE' starts the server
    try:
        code = reemote.main(given, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        sys.exit(INTERRUPTED)
    except Exception as error:
        sys.exit(_explain(error))
    sys.exit(code if isinstance(code, int) else OK)


def write_no_more() -> None:
    """Let standard output lead nowhere: what is still to be written would fail, too."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _explain(error: Exception) -> int:
    """Say what went wrong, in one line where it is the user's affair, and give the exit code."""
    known = _known(error)
    if known is None:
        traceback.print_exception(error)
        click.echo("This is an error in Reemote. Please report it, with the lines above.", err=True)
        return INTERNAL
    click.echo(f"Error: {error}", err=True)
    return known


def _known(error: Exception) -> int | None:
    """Give the exit code of an error that is explained by its message."""
    errors: Any = sys.modules.get("reemote.core.errors")
    if errors is None:
        return None
    if isinstance(error, errors.NoHostMatched):
        return NO_HOST
    return USAGE if isinstance(error, errors.InventoryError | errors.DeploymentError) else None
