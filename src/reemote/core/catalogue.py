"""The catalogue: which operations there are, and how each is described.

Every way to call operations from outside Python is derived from what this module answers.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from inspect import get_annotations
from types import ModuleType
from typing import Any, TypeVar

from pydantic import PydanticInvalidForJsonSchema, TypeAdapter
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaWarningKind
from typing_extensions import NoDefault

from .descriptions import describe
from .errors import CatalogueError
from .operation import Operation

ENTRY_POINTS = "reemote.operations"
"""The entry point group under which installed packages register operation modules."""

_OWN = {name: f"reemote.{name}" for name in ("host", "sftp", "scp", "apt", "system")}


@cache
def module_names() -> dict[str, str]:
    """Give the operation modules: the name that routes and commands use, and the import path.

    Raises:
        CatalogueError: Two packages claim one name, or one claims a name of ours.
    """
    names = dict(_OWN)
    for point in entry_points(group=ENTRY_POINTS):
        if names.setdefault(point.name, point.value) != point.value:
            raise CatalogueError(
                f"{_origin(point)} registers the operations {point.name!r}, which {names[point.name]} has"
            )
    return names


@cache
def module(name: str) -> ModuleType:
    """Import the operation module that is called *name*.

    Raises:
        CatalogueError: There is none, or it cannot be imported.
    """
    names = module_names()
    if name not in names:
        raise CatalogueError(f"there are no operations {name!r}: there are {', '.join(names)}")
    try:
        return importlib.import_module(names[name])
    except Exception as error:
        raise CatalogueError(f"the operations {name!r} ({names[name]}) cannot be imported: {error!r}") from error


def operations(name: str) -> Iterator[type[Operation[Any]]]:
    """Give the operations of the module *name*, in the order in which they stand there.

    The operations of a package are those that it imports from its own modules.

    A leading underscore marks a base class; so does a type parameter that is for subclasses to fill
    in, one that none of its fields has.
    """
    source = module(name)
    for key, cls in vars(source).items():
        if (
            inspect.isclass(cls)
            and issubclass(cls, Operation)
            and f"{cls.__module__}.".startswith(f"{source.__name__}.")
            and cls.__name__ == key  # pydantic leaves parametrised generics in the module, too
            and key.isidentifier()
            and not key.startswith("_")
            and _is_complete(cls)
        ):
            yield cls


def _is_complete(operation: type[Operation[Any]]) -> bool:
    kinds = [field.annotation for field in operation.model_fields.values()]
    return all(parameter in kinds for parameter in getattr(operation, "__parameters__", ()))


def catalogue() -> Iterator[tuple[str, type[Operation[Any]]]]:
    """Give all operations, each with the name of its module."""
    for name in module_names():
        for operation in operations(name):
            yield name, operation


class _Schema(GenerateJsonSchema):
    """Describes types; one that allows something that JSON does not know has no description."""

    def emit_warning(self, kind: JsonSchemaWarningKind, detail: str) -> None:
        """Refuse what would be left out of the description, such as the function in "a function or none"."""
        if kind == "skipped-choice":
            raise PydanticInvalidForJsonSchema(detail)
        super().emit_warning(kind, detail)


def _schema(annotation: Any) -> dict[str, Any] | None:
    """Give the JSON schema of a type, or nothing where it exists in Python only."""
    try:
        return deepcopy(_made_schema(annotation, repr(annotation)))
    except TypeError:  # what cannot be a key is described each time
        return _made_schema.__wrapped__(annotation, "")


@cache
def _made_schema(annotation: Any, _: str) -> dict[str, Any] | None:
    """Make it, once for each type; of those that are equal, each way to write it has an order of its own."""
    try:
        return TypeAdapter(annotation).json_schema(schema_generator=_Schema)
    except PydanticInvalidForJsonSchema:
        return None


@dataclass(frozen=True)
class Parameter:
    """One parameter of an operation, as a person or a machine has to know it."""

    name: str
    annotation: Any
    required: bool
    default: Any
    help: str
    schema: dict[str, Any] | None
    """Its JSON schema; ``None`` for what exists in Python only."""
    examples: tuple[Any, ...] = ()

    @classmethod
    def of(cls, name: str, field: FieldInfo, text: str | None = None) -> Parameter:
        """Read one field; *text* says what it is, if the field does not."""
        annotation: Any = field.rebuild_annotation() if field.metadata else field.annotation
        schema = _schema(annotation)
        if schema is not None and isinstance(field.json_schema_extra, dict):
            schema |= field.json_schema_extra
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        help_text, examples = text or field.description or "", tuple(field.examples or ())
        return cls(name, annotation, field.is_required(), default, help_text, schema, examples)


@cache
def parameters(operation: type[Operation[Any]]) -> tuple[Parameter, ...]:
    """Give the parameters of *operation*: its own first, then those of its kind, then those that all have.

    Among its own, what is required goes before the rest.
    """
    general = set(Operation.model_fields)
    shared = {name for base in operation.__mro__ if base.__module__.startswith(_CORE) for name in get_annotations(base)}
    found = [Parameter.of(name, field, describe(operation, name)) for name, field in operation.model_fields.items()]

    def rank(parameter: Parameter) -> tuple[int, bool]:
        return (parameter.name in shared) + (parameter.name in general), not parameter.required

    return tuple(sorted(found, key=rank))


@cache
def writable_parameters(operation: type[Operation[Any]]) -> tuple[Parameter, ...]:
    """Give the parameters of *operation* that can be written: those that need no Python object."""
    return tuple(parameter for parameter in parameters(operation) if parameter.schema is not None)


@cache
def is_writable(operation: type[Operation[Any]]) -> bool:
    """Whether no parameter that is needed exists in Python only, as a function does."""
    return not any(parameter.required and parameter.schema is None for parameter in parameters(operation))


def summary(operation: type[Operation[Any]]) -> str:
    """Give the first line of the operation's description."""
    return (inspect.getdoc(operation) or "").partition("\n")[0]


def description(operation: type[Operation[Any]]) -> str:
    """Give what follows that line."""
    return (inspect.getdoc(operation) or "").partition("\n")[2].strip()


def module_summary(name: str) -> str:
    """Give the first line of a module's description, which may begin with the module's name."""
    line = (inspect.getdoc(module(name)) or "").partition("\n")[0]
    own, colon, rest = line.partition(": ")
    text = rest if colon and own.lower() == name.lower() else line
    return text[:1].upper() + text[1:]


def value_type(operation: type[Operation[Any]]) -> Any:
    """Give the type of the value that *operation* answers with."""
    for base in operation.__mro__:
        if arguments := getattr(base, "__pydantic_generic_metadata__", {}).get("args"):
            if not isinstance(arguments[0], TypeVar):
                return arguments[0]
            default = getattr(arguments[0], "__default__", NoDefault)
            return Any if default is NoDefault else default
    return Any


_CORE = __name__.rpartition(".")[0]


def _origin(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value
