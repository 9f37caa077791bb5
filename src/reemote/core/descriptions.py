"""What is written under the fields of a class, read when somebody asks.

pydantic can read it as it makes the class (``use_attribute_docstrings``), which takes longer than all else that it
does then, in each program that imports the class.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any

from pydantic import BaseModel, GetJsonSchemaHandler
from pydantic_core import CoreSchema


class Described(BaseModel):
    """A model whose fields are described by the strings under them."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Put the descriptions into the JSON schema."""
        found = handler(schema)
        properties = handler.resolve_ref_schema(found).get("properties", {})
        for name, field in cls.model_fields.items():
            key = field.alias or name
            if key in properties and (text := describe(cls, name)):
                properties[key].setdefault("description", text)
        return found


def describe(model: type[BaseModel], name: str) -> str:
    """Give the description of a field: the one that it was given, or the string under it; else nothing."""
    if (given := model.model_fields[name].description) is not None:
        return given
    return next((texts[name] for cls in model.__mro__ if name in (texts := _texts(cls))), "")


@cache
def _texts(cls: type) -> dict[str, str]:
    """Give the strings under the annotated names of a class."""
    if not getattr(cls, "__annotations__", None):
        return {}
    module = sys.modules.get(cls.__module__)
    found = _classes_in(module).get(cls.__qualname__) if module is not None else None
    return dict(_described(found)) if found is not None else {}


def _described(body: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        ):
            yield statement.target.id, inspect.cleandoc(following.value.value)


@cache
def _classes_in(module: ModuleType) -> dict[str, ast.ClassDef]:
    """Give the classes of a module by their qualified names, as far as its source is there."""
    try:
        tree = ast.parse(inspect.getsource(module))
    except (OSError, TypeError, SyntaxError):
        return {}
    return dict(_classes_below(tree, ""))


def _classes_below(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.ClassDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield prefix + child.name, child
            yield from _classes_below(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _classes_below(child, f"{prefix}{child.name}.<locals>.")
        else:
            yield from _classes_below(child, prefix)
