"""Every operation of the catalogue as a command: ``reemote sftp stat --path /etc/hosts``."""

from __future__ import annotations

import inspect
from typing import Any

import click

from ..core import catalogue
from ..core.errors import CatalogueError
from ..core.operation import Operation
from .hosts import given, options
from .main import Refused
from .parameters import example, made, option, plain, values
from .reporting import carry_out


def group(name: str) -> click.Group:
    """Make the command that has the operations of a module as its subcommands."""
    try:
        found = [operation for operation in catalogue.operations(name) if catalogue.is_writable(operation)]
        summary = catalogue.module_summary(name)
    except CatalogueError as error:
        raise Refused(str(error)) from error
    return _Operations(name, summary, found)


def command_name(operation: type[Operation[Any]]) -> str:
    """Give the name of the command for an operation."""
    return operation.route.strip("/")


def _normal(name: str) -> str:
    return name.replace("_", "-")


class _Operations(click.Group):
    """The operations of one module."""

    def __init__(self, name: str, summary: str, operations: list[type[Operation[Any]]]) -> None:
        # Names of operations and options may be written with hyphens or underscores.
        super().__init__(name, help=plain(summary), context_settings={"token_normalize_func": _normal})
        self._operations = {command_name(operation): operation for operation in operations}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Give the names of the operations, in the order of the module."""
        return list(self._operations)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Make the command for an operation."""
        for name, operation in self._operations.items():
            if _normal(name) == _normal(cmd_name):
                return Command(str(self.name), operation)
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the operations' summaries."""
        with formatter.section("Operations"):
            formatter.write_dl([(name, plain(catalogue.summary(each))) for name, each in self._operations.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Say what there is, where an operation does not exist."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            ctx.fail(f"there is no operation {args[0]!r}: there are {', '.join(self._operations)}")
        return super().resolve_command(ctx, args)


class Command(click.Command):
    """An operation as a command: its parameters are options, besides those of all commands for hosts."""

    def __init__(self, module: str, operation: type[Operation[Any]]) -> None:
        own = [option(parameter) for parameter in catalogue.writable_parameters(operation)]
        taken = {name for each in own for name in (*each.opts, *each.secondary_opts)}
        self.own = own
        self.operation = operation
        words = ["reemote", module, command_name(operation), "-i inventory.json", example(operation)]
        super().__init__(
            command_name(operation),
            params=[*own, *options(taken)],
            help=plain(inspect.getdoc(operation) or ""),
            epilog=f"Example: {' '.join(words).strip()}",
            callback=self.carry_out,
        )

    def carry_out(self, **chosen: Any) -> int:
        """Run the operation on the hosts."""
        shared = given(chosen)
        arguments = values(self.operation, chosen)
        made(self.operation, arguments)
        shared.accept(arguments)
        hosts = shared.load()
        return carry_out(shared, hosts, lambda: self.operation(**arguments), is_command=True)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the parameters before the options that all commands have."""
        for heading, params in (
            ("Parameters", self.own),
            ("Options", [p for p in self.get_params(ctx) if p not in self.own]),
        ):
            if records := [record for param in params if (record := param.get_help_record(ctx)) is not None]:
                with formatter.section(heading):
                    formatter.write_dl(records)
