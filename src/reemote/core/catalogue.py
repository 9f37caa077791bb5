"""The catalogue: which operations there are, and how each is described.

Every way to call operations from outside Python is derived from what this module answers.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any, TypeVar

from pydantic import PydanticInvalidForJsonSchema, TypeAdapter
from pydantic.fields import FieldInfo
from typing_extensions import NoDefault

from .errors import CatalogueError
from .operation import Operation

ENTRY_POINTS = "reemote.operations"
"""The entry point group under which installed packages register operation modules."""

_OWN = {"host": "reemote.host", "system": "reemote.system"}


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

    A leading underscore or a type parameter of its own marks a base class.
    """
    source = module(name)
    for key, cls in vars(source).items():
        if (
            inspect.isclass(cls)
            and issubclass(cls, Operation)
            and cls.__module__ == source.__name__
            and cls.__name__ == key  # pydantic leaves parametrised generics in the module, too
            and key.isidentifier()
            and not key.startswith("_")
            and not getattr(cls, "__parameters__", ())
        ):
            yield cls


def catalogue() -> Iterator[tuple[str, type[Operation[Any]]]]:
    """Give all operations, each with the name of its module."""
    for name in module_names():
        for operation in operations(name):
            yield name, operation


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

    @classmethod
    def of(cls, name: str, field: FieldInfo) -> Parameter:
        """Read one field of an operation."""
        annotation: Any = field.rebuild_annotation() if field.metadata else field.annotation
        try:
            schema = TypeAdapter(annotation).json_schema()
        except PydanticInvalidForJsonSchema:
            schema = None
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        return cls(name, annotation, field.is_required(), default, field.description or "", schema)


def parameters(operation: type[Operation[Any]]) -> list[Parameter]:
    """Give the parameters of *operation*: its own first, then those that all have."""
    common = set(Operation.model_fields)
    found = [Parameter.of(name, field) for name, field in operation.model_fields.items()]
    return sorted(found, key=lambda parameter: parameter.name in common)


def summary(operation: type[Operation[Any]]) -> str:
    """Give the first line of the operation's description."""
    return (inspect.getdoc(operation) or "").partition("\n")[0]


def value_type(operation: type[Operation[Any]]) -> Any:
    """Give the type of the value that *operation* answers with."""
    for base in operation.__mro__:
        if arguments := getattr(base, "__pydantic_generic_metadata__", {}).get("args"):
            if not isinstance(arguments[0], TypeVar):
                return arguments[0]
            default = getattr(arguments[0], "__default__", NoDefault)
            return Any if default is NoDefault else default
    return Any


def _origin(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value
