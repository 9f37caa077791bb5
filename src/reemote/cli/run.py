"""``reemote run``: run a deployment class from a file on the hosts of an inventory."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import click
from pydantic import ValidationError

from ..core.inventory import complaints
from .hosts import Given, host_options
from .main import Refused
from .output import visible
from .reporting import carry_out
from .traces import trace

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _assignments(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    for value in values:
        if not value.partition("=")[0].isidentifier() or "=" not in value:
            raise click.BadParameter(f"{value!r}: write NAME=VALUE")
    return dict(value.split("=", 1) for value in values)


@click.command()
@click.argument("target", metavar="FILE.py[:CLASS]")
@click.argument("arguments", metavar="[NAME=VALUE]...", nargs=-1, callback=_assignments)
@host_options
@click.option("--strict", is_flag=True, help="Stop a host at its first step that fails.")
def run(given: Given, target: str, arguments: dict[str, str], strict: bool) -> int:
    """Run a deployment on the hosts of an inventory and show what each answered.

    FILE.py holds a class with an execute method; name it where there are several. It is made with the
    arguments that NAME=VALUE give, as text.
    """
    hosts = given.load()
    deployment = load(target, arguments)
    return carry_out(given, hosts, lambda: _make(deployment, arguments), strict=strict)


# The deployment


def load(target: str, arguments: Mapping[str, str]) -> type[Any]:
    """Give the deployment class that ``FILE.py`` or ``FILE.py:Class`` names, and that takes *arguments*."""
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
        inspect.signature(found).bind(**arguments)
    except TypeError as error:
        names = [name for name, each in inspect.signature(found).parameters.items() if each.kind in _BY_NAME]
        takes = ", ".join(names) if names else "none"
        raise Refused(f"{found.__name__}: {error}; give arguments as NAME=VALUE (it takes {takes})") from None
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
        raise Refused(f"{path} cannot be loaded:\n{trace(error.with_traceback(None))}") from error
    except Exception as error:
        raise Refused(f"{path} cannot be loaded:\n{trace(error)}") from error
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


def _make(deployment: type[Any], arguments: Mapping[str, str]) -> Any:
    try:
        return deployment(**arguments)
    except ValidationError as error:
        raise Refused(f"{deployment.__name__}: {visible('; '.join(complaints(error)))}") from error
    except Exception as error:
        raise Refused(f"{deployment.__name__}() cannot be made:\n{trace(error)}") from error
