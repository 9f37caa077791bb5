"""``reemote run``: run a deployment class from a file on the hosts of an inventory."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from ..core.errors import DeploymentError, ExecutionError, InventoryError
from .hosts import Given, host_options, log, say
from .main import FAILED, OK, Refused
from .output import exit_code, show, some, summary, visible

_OURS = str(Path(__file__).resolve().parent.parent)


@click.command()
@click.argument("target", metavar="FILE.py[:CLASS]")
@host_options
@click.option("--strict", is_flag=True, help="Stop a host at its first step that fails.")
@click.option("-v", "--verbose", is_flag=True, help="Say what happens on the connections.")
def run(given: Given, target: str, strict: bool, verbose: bool) -> int:
    """Run a deployment on the hosts of an inventory and show each host's response.

    FILE.py holds a class with an execute method; name it where there are several.
    """
    log(logging.DEBUG if verbose else logging.WARNING)
    hosts = given.load()
    deployment = load(target)
    try:
        responses = given.run(lambda: _make(deployment), hosts, strict=strict)
    except ExecutionError as error:
        show(error.responses, given.output)
        bugs = [(_host_of(bug), bug) for bug in error.exceptions]
        say(*_explained(bugs), *summary(error.responses, raised=[host for host, _ in bugs]))
        return max(FAILED, exit_code(error.responses))
    show(responses, given.output)
    if not responses:
        say("No host had anything to run.")
        return OK
    say(*summary(responses))
    return exit_code(responses)


# The deployment


def load(target: str) -> type[Any]:
    """Give the deployment class that ``FILE.py`` or ``FILE.py:Class`` names."""
    path, separator, name = (target, "", "") if Path(target).is_file() else target.rpartition(":")
    if not separator:
        path = target
    module = _load_module(path)
    if separator:
        found = getattr(module, name, None)
        if not inspect.isclass(found) or not callable(getattr(found, "execute", None)):
            raise Refused(f"{path} has no class {name!r} with an execute method{_offer(module)}")
    else:
        classes = _deployments(module)
        if not classes:
            raise Refused(f"{path} has no class with an execute method (a class inside of a function does not count)")
        if len(classes) > 1:
            raise Refused(f"{path} has several classes: name one, as in {path}:{classes[-1].__name__}{_offer(module)}")
        found = classes[0]
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise Refused(
            f"{found.__name__} needs arguments ({error}): name a class that needs none, such as one that yields "
            f"{found.__name__}(...)"
        ) from None
    return found


def _load_module(path: str) -> ModuleType:
    file = Path(path)
    if not file.is_file():
        raise Refused(f"there is no file {path!r}")
    # As with 'python FILE.py': its neighbours can be imported, and it takes no other module's place.
    name = file.stem if file.stem not in sys.modules else f"{file.stem} of {path}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise Refused(f"{path!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(file.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise Refused(f"{path} cannot be loaded:\n{_trace(error.with_traceback(None))}") from error
    except Exception as error:
        raise Refused(f"{path} cannot be loaded:\n{_trace(error)}") from error
    return module


def _deployments(module: ModuleType) -> list[type[Any]]:
    found = [
        value
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and value.__module__ == module.__name__
        and not name.startswith("_")
        and callable(getattr(value, "execute", None))
    ]
    return list(dict.fromkeys(found))


def _offer(module: ModuleType) -> str:
    names = ", ".join(cls.__name__ for cls in _deployments(module))
    return f" (there are: {names})" if names else ""


def _make(deployment: type[Any]) -> Any:
    try:
        return deployment()
    except Exception as error:
        raise Refused(f"{deployment.__name__}() cannot be made:\n{_trace(error)}") from error


# What went wrong in it


def _explained(bugs: Sequence[tuple[str, Exception]]) -> Iterator[str]:
    """Tell of each bug once, with the hosts on which it came up."""
    hosts: dict[str, list[str]] = {}
    for host, bug in bugs:
        known = isinstance(bug, InventoryError | DeploymentError)
        hosts.setdefault(f"Error: {bug}" if known else _trace(bug), []).append(host)
    for text, names in hosts.items():
        yield f"The deployment raised on {some(names)}:"
        yield visible(text)


def _host_of(bug: Exception) -> str:
    """Take the name of the host from the last note of an exception, where ``execute()`` puts it."""
    return bug.__notes__.pop().removeprefix("on host ")


def _trace(error: BaseException) -> str:
    """Give the traceback from the user's code on: how that was called is of no interest."""
    report = traceback.TracebackException.from_exception(error)
    _shorten(report)
    return "".join(report.format()).rstrip("\n")


def _shorten(report: traceback.TracebackException | None) -> None:
    if report is None:
        return
    users = [n for n, frame in enumerate(report.stack) if not frame.filename.startswith((_OURS, "<frozen importlib"))]
    del report.stack[: users[0] if users else 0]
    for inner in (report.__cause__, report.__context__, *(report.exceptions or ())):
        _shorten(inner)
