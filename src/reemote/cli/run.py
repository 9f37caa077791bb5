"""``reemote run``: run a deployment class from a file on the hosts of an inventory."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import click
from pydantic import ValidationError

from ..core.errors import ExecutionError, InventoryError
from ..core.inventory import HostKeys, Inventory
from ..core.response import Responses
from ..execute import run as run_deployment
from .main import FAILED, OK
from .output import FORMATS, exit_code, show


@click.command()
@click.argument("target", metavar="FILE.py[:CLASS]")
@click.option(
    "-i", "--inventory", required=True, envvar="REEMOTE_INVENTORY", metavar="FILE", help="The inventory, a JSON file."
)
@click.option("-l", "--limit", metavar="HOSTS", help="Hosts, groups and globs: 'web,&prod,!web03'.")
@click.option("-f", "--forks", type=click.IntRange(min=1), help="How many hosts run at a time; all by default.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds for the whole run.")
@click.option("--strict", is_flag=True, help="Stop a host at its first step that fails.")
@click.option(
    "--host-keys",
    type=click.Choice(["strict", "accept-new", "off"]),
    help="What to do with unknown host keys, for hosts of which the inventory does not say.",
)
@click.option("-o", "--output", type=click.Choice(FORMATS), default="table", show_default=True, help="The output.")
@click.option("-v", "--verbose", is_flag=True, help="Say what happens on the connections.")
def run(  # noqa: PLR0917
    target: str,
    inventory: str,
    limit: str | None,
    forks: int | None,
    timeout: float | None,
    strict: bool,
    host_keys: HostKeys | None,
    output: str,
    verbose: bool,
) -> int:
    """Run a deployment on the hosts of an inventory and show each host's response.

    FILE.py holds a class with an execute method; name it where there are several.
    """
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, format="reemote: %(message)s")
    logging.getLogger("asyncssh").setLevel(logging.WARNING)  # it would log commands and what is in them
    hosts = Inventory.load(inventory)
    if host_keys is not None:
        _set_policy(hosts, host_keys)
    deployment = load(target)
    try:
        responses = run_deployment(
            lambda: _make(deployment), hosts, concurrency=forks, timeout=timeout, strict=strict, limit=limit
        )
    except ExecutionError as error:
        show(error.responses, output)
        _tell_of_bugs(error)
        return max(FAILED, exit_code(error.responses))
    if not responses:
        click.echo("No host had anything to run.", err=True)
        return OK
    show(responses, output)
    _summarise(responses)
    return exit_code(responses)


def load(target: str) -> type[Any]:
    """Give the deployment class that ``FILE.py`` or ``FILE.py:Class`` names."""
    path, separator, name = target.partition(":")
    module = _load_module(path)
    if separator:
        found = getattr(module, name, None)
        if not inspect.isclass(found) or not callable(getattr(found, "execute", None)):
            raise click.UsageError(f"{path} has no class {name!r} with an execute method{_offer(module)}")
        return found
    classes = _deployments(module)
    if len(classes) != 1:
        say = "has no class with an execute method" if not classes else "has several deployments: name one"
        raise click.UsageError(f"{path} {say}{_offer(module)}")
    return classes[0]


def _load_module(path: str) -> ModuleType:
    file = Path(path)
    if not file.is_file():
        raise click.UsageError(f"there is no file {path!r}")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise click.UsageError(f"{path!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    sys.path.insert(0, str(file.parent.resolve()))  # its neighbours can be imported, as with 'python FILE.py'
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        # From the user's file on: how it was loaded is of no interest.
        trace = error.__traceback__
        while trace and trace.tb_frame.f_code.co_filename != str(file):
            trace = trace.tb_next
        text = "".join(traceback.format_exception(error.with_traceback(trace)))
        raise click.ClickException(f"{path} cannot be loaded:\n{text}") from error
    return module


def _deployments(module: ModuleType) -> list[type[Any]]:
    return [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and value.__module__ == module.__name__ and callable(getattr(value, "execute", None))
    ]


def _offer(module: ModuleType) -> str:
    names = ", ".join(cls.__name__ for cls in _deployments(module))
    return f" (there are: {names})" if names else ""


def _make(deployment: type[Any]) -> Any:
    try:
        return deployment()
    except (TypeError, ValidationError) as error:
        raise click.UsageError(f"{deployment.__name__}() cannot be made without arguments: {error}") from error


def _set_policy(inventory: Inventory, policy: HostKeys) -> None:
    for item in inventory.hosts:
        if "host_keys" not in item.connection.model_fields_set:
            item.connection.host_keys = policy


def _tell_of_bugs(error: ExecutionError) -> None:
    click.echo(f"{error.message}:", err=True)
    for bug in error.exceptions:
        if isinstance(bug, InventoryError):
            click.echo(f"Error: {bug} ({', '.join(bug.__notes__)})", err=True)
        else:
            traceback.print_exception(bug)


def _summarise(responses: Responses) -> None:
    if failed := responses.failed:
        click.echo(f"{len(failed)} of {len(responses)} hosts failed.", err=True)
