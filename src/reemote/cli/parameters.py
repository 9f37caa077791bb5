"""The parameters of operations as options, derived from the catalogue."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import click
from pydantic import ValidationError

from ..core import catalogue
from ..core.catalogue import Parameter
from ..core.operation import Operation
from .output import visible

Made = TypeVar("Made", bound=Operation[Any])

Schema = dict[str, Any]

SHORT = {"sudo": "-b", "sudo_user": "-U"}
"""Parameters that have a letter of their own, the same as in other commands."""

_SCALARS = {"string": "TEXT", "integer": "INTEGER", "number": "NUMBER", "boolean": "BOOLEAN"}

_TYPES: dict[str, click.ParamType[Any]] = {"integer": click.INT, "number": click.FLOAT}
"""What texts are made into here; anything else the operation's own fields do."""

_PREFIX = "parameter_"


class _Json(click.ParamType):  # type: ignore[type-arg]  # it is generic in the latest click only
    """Any value, written as JSON."""

    name = "JSON"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read the text."""
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            self.fail(f"it is not JSON: line {error.lineno}, column {error.colno}: {error.msg}", param, ctx)
        except RecursionError:
            self.fail("it is nested too deeply", param, ctx)


def option(parameter: Parameter) -> click.Option:
    """Make the option for a parameter."""
    long = option_name(parameter.name)
    names = [f"{_PREFIX}{parameter.name}", *([SHORT[parameter.name]] if parameter.name in SHORT else []), long]
    rest: dict[str, Any] = {"required": parameter.required, "help": _help(parameter)}
    if not parameter.required:
        rest["default"] = None  # what was not given is left to the operation
    kinds = _kinds(parameter)
    scalars = [kind.get("type") for kind in kinds]
    if scalars == ["boolean"]:
        names[-1] = f"{long}/--no-{long.removeprefix('--')}"
    elif (item := _item(kinds)) is not None:
        rest |= {"multiple": True, "type": _type([item]), "metavar": _metavar([item])}
    else:
        rest |= {"type": _type(kinds), "metavar": _metavar(kinds)}
    return click.Option(names, **rest)


def option_name(parameter: str) -> str:
    """Give the name of the option for a parameter."""
    return f"--{parameter.replace('_', '-')}"


def values(operation: type[Operation[Any]], options: Mapping[str, Any]) -> dict[str, Any]:
    """Give the arguments that *options* stand for; what was not given is left to the operation."""
    found: dict[str, Any] = {}
    for parameter in catalogue.writable_parameters(operation):
        value = options[f"{_PREFIX}{parameter.name}"]
        kinds = _kinds(parameter)
        if _item(kinds) is None:
            if value is not None:
                found[parameter.name] = value
        elif value:
            # What takes one or several gets a single one as such, as a Python program would give it.
            is_one = len(value) == 1 and any(kind.get("type") == "string" for kind in kinds)
            found[parameter.name] = value[0] if is_one else list(value)
    return found


def made(operation: type[Made], given: Mapping[str, Any], names: Mapping[str, str] | None = None) -> Made:
    """Make the operation; what it does not accept is wrong usage, told with the options' names.

    *names* are those of parameters that are called otherwise here.
    """
    try:
        return operation(**given)
    except ValidationError as error:
        options = {name: option_name(name) for name in operation.model_fields} | dict(names or {})
        raise click.UsageError(
            "\n".join(_complaints(error, options)), ctx=click.get_current_context(silent=True)
        ) from None


def example(operation: type[Operation[Any]]) -> str:
    """Write options with which the operation could be called."""
    words: list[str] = []
    for parameter in catalogue.writable_parameters(operation):
        if parameter.required:
            shown = parameter.examples[0] if parameter.examples else None
            words += _example(parameter, shown)
    return " ".join(words)


def plain(text: str) -> str:
    """Take the marks of docstrings out of *text*."""
    return re.sub(r":\w+:`~?([^`]*)`", r"\1", text).replace("``", "")


def _help(parameter: Parameter) -> str:
    text, default = plain(parameter.help), parameter.default
    if default is True:
        return f"{text}  [default: {parameter.name.replace('_', '-')}]"
    is_worth_it = default not in (None, False, "") and isinstance(default, str | int | float)
    return f"{text}  [default: {default}]" if is_worth_it else text


def _kinds(parameter: Parameter) -> list[Schema]:
    """Give what a parameter may be, besides nothing."""
    schema = parameter.schema or {}
    known = schema.get("$defs", {})
    kinds = [known.get(str(kind.get("$ref")).rpartition("/")[2], kind) for kind in schema.get("anyOf", [schema])]
    return [kind for kind in kinds if kind.get("type") != "null"]


def _item(kinds: list[Schema]) -> Schema | None:
    """Give what the items of a list may be; ``None`` for what is no list."""
    return next((kind.get("items", {}) for kind in kinds if kind.get("type") == "array"), None)


def _type(kinds: list[Schema]) -> click.ParamType[Any]:
    if len(kinds) == 1 and (choices := kinds[0].get("enum")) and all(isinstance(each, str) for each in choices):
        return click.Choice(choices)
    if not all(kind.get("type") in _SCALARS for kind in kinds) or not kinds:
        return _Json()
    return _TYPES.get(kinds[0]["type"], click.STRING) if len(kinds) == 1 else click.STRING


def _metavar(kinds: list[Schema]) -> str | None:
    if isinstance(_type(kinds), click.Choice):
        return None
    return "|".join(dict.fromkeys(_SCALARS.get(kind.get("type", ""), "JSON") for kind in kinds)) or "JSON"


def _example(parameter: Parameter, shown: Any) -> Iterator[str]:
    name, kinds = option_name(parameter.name), _kinds(parameter)
    if [kind.get("type") for kind in kinds] == ["boolean"]:
        yield name if shown is not False else f"--no-{name.removeprefix('--')}"
    elif isinstance(shown, list):
        for each in shown:
            yield from (name, shlex.quote(str(each)))
    elif shown is None:
        item = _item(kinds)
        yield from (name, _metavar([item] if item is not None else kinds) or "TEXT")
    else:
        yield from (name, shlex.quote(shown if isinstance(shown, str) else json.dumps(shown)))


def _complaints(error: ValidationError, options: Mapping[str, str]) -> Iterator[str]:
    """Say what is wrong with which option, without the values, which may be secret."""
    found: dict[str, dict[str, None]] = {}
    for each in error.errors(include_url=False, include_context=False, include_input=False):
        name = str(each["loc"][0]) if each["loc"] else ""
        found.setdefault(name, {})[visible(each["msg"].removeprefix("Value error, "))] = None
    # Of a whole operation messages speak in words, some of which are names of parameters, too, such as "exclude".
    names = [name for name in options if "_" in name or name in ("sudo", "su")]
    known = re.compile(rf"\b({'|'.join(sorted(map(re.escape, names), key=len, reverse=True)) or '(?!)'})\b")
    for name, messages in found.items():
        text = "; or ".join(messages)
        if name:
            yield f"Invalid value for '{options.get(name, name)}': {text}"
        else:
            yield known.sub(lambda match: options[match[0]], text)
