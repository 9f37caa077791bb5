"""Routes: one for each operation of the catalogue, derived from its fields."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Annotated, Any, Generic, Literal, Union, get_args, get_origin

from fastapi import APIRouter, Body, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from typing_extensions import TypeVar

from ..core import catalogue
from ..core.catalogue import Parameter
from ..core.operation import Effect, Operation
from ..core.response import Completed, as_json
from . import limits
from .runner import Runner

METHODS = {Effect.READS: "GET", Effect.CHANGES: "POST", Effect.ENSURES: "PUT"}

T = TypeVar("T", default=Any)

_SCALARS = frozenset({"string", "integer", "number", "boolean"})


class Reply(BaseModel, Generic[T]):
    """The response of one host."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    host: str
    """The host, as the inventory calls it."""
    value: T | str | None
    """The value of the operation; the name of the failure where `error` is true."""
    changed: bool
    """Whether something changed on the host, or may have."""
    error: bool
    """Whether the operation failed on the host."""
    detail: str | None = None
    """Where `error` is true: the message."""
    outcome: Literal["not_started", "completed", "unknown"] | None = None
    """Where `error` is true: whether the operation may have taken effect."""
    completed: Completed | None = None
    """Where `error` is true and a command had started: its record so far."""


def router(runner: Runner) -> APIRouter:
    """Give the routes of all operations that can be called over HTTP."""
    routes = APIRouter(prefix="/reemote")
    for name, operation in catalogue.catalogue():
        if not _is_callable_over_http(operation):
            continue
        routes.add_api_route(
            f"/{name}/{operation.route}",
            _endpoint(name, operation, runner),
            methods=[METHODS[operation.effect]],
            operation_id=f"{name}_{operation.route}",
            tags=[name],
            summary=catalogue.summary(operation).rstrip("."),
            description=inspect.cleandoc(operation.__doc__ or ""),
            response_model=list[Reply[catalogue.value_type(operation)]],  # type: ignore[misc]
            response_description="One response for each host, in the order of the inventory.",
            responses={429: {"description": "There are too many runs at the same time."}},
        )
    return routes


def _is_callable_over_http(operation: type[Operation[Any]]) -> bool:
    """Whether no parameter that is needed exists in Python only, as a function does."""
    return not any(p.required and p.schema is None for p in catalogue.parameters(operation))


def required_in_query(operation: type[Operation[Any]]) -> set[str]:
    """Give the parameters that the query must have, unless the body has them."""
    return {p.name for p in catalogue.parameters(operation) if p.required and _is_plain(p)}


def _endpoint(name: str, operation: type[Operation[Any]], runner: Runner) -> Callable[..., Any]:
    """Make a function with the signature that FastAPI has to see."""
    parameters = [p for p in catalogue.parameters(operation) if p.schema is not None]
    plain = [p for p in parameters if _is_plain(p)]
    signature = [_parameter("request", Request), *map(_query, plain)]
    has_timeout = any(p.name == "timeout" for p in parameters)
    if not has_timeout:
        help_text = "Seconds for the whole request; hosts that are not done by then are cancelled."
        signature.append(_parameter("timeout", Annotated[float, Query(gt=0, description=help_text)], None))
    if operation.effect is not Effect.READS:
        signature.append(_parameter("body", Annotated[_body(name, operation, parameters), Body()], None))
    known = {each.name for each in signature}

    async def call(request: Request, **values: Any) -> Response:
        body = values.pop("body", None)
        timeout = None if has_timeout else values.pop("timeout", None)
        _refuse_unknown(request, known)
        given = {key: value for key, value in values.items() if value is not None}
        given |= {key: getattr(body, key) for key in body.model_fields_set} if body is not None else {}
        made = _make(operation, given)
        responses = await runner.run(f"{name}.{operation.route}", made, timeout, _disconnected(request))
        return Response(as_json(responses), media_type="application/json")

    call.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    call.__name__ = f"{name}_{operation.route}"
    return call


def _make(operation: type[Operation[Any]], given: dict[str, Any]) -> Operation[Any]:
    for key, check in (("connection", limits.connection), ("session", limits.session)):
        if given.get(key):
            given[key] = check(given[key])
    try:
        return operation(**given)
    except ValidationError as error:
        found = [{**each, "loc": ("query", *each["loc"])} for each in error.errors()]
        raise RequestValidationError(found) from None


def _refuse_unknown(request: Request, known: set[str]) -> None:
    unknown = [key for key in request.query_params if key not in known - {"request", "body"}]
    if unknown:
        found = [{"type": "extra_forbidden", "loc": ("query", key), "msg": "unknown parameter"} for key in unknown]
        raise RequestValidationError(found)


def _disconnected(request: Request) -> Callable[[], Any]:
    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    return gone


def _parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _query(parameter: Parameter) -> inspect.Parameter:
    """Make a query parameter: absent means not given, so that the operation's own default holds."""
    kind: Any = _without_none(parameter.annotation)
    return _parameter(parameter.name, Annotated[kind, Query(description=parameter.help)], None)


def _body(name: str, operation: type[Operation[Any]], parameters: list[Parameter]) -> Any:
    """Make the model of the JSON body: all parameters, none of them needed there."""
    fields: dict[str, Any] = {
        p.name: (p.annotation, Field(default=None, description=p.help, validate_default=False)) for p in parameters
    }
    title = f"{name.capitalize()}{operation.__name__}Body"
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True, title=title)
    return create_model(title, __config__=config, **fields) | None


def _is_plain(parameter: Parameter) -> bool:
    """Whether values can be written in a query: scalars, and lists of them."""
    schema = parameter.schema or {}
    kinds = [option for option in schema.get("anyOf", [schema]) if option.get("type") != "null"]
    flat = [option.get("items", {}) if option.get("type") == "array" else option for option in kinds]
    return bool(flat) and all(option.get("type") in _SCALARS for option in flat)


def _without_none(annotation: Any) -> Any:
    """Leave ``None`` and bytes out of a type: a query has neither."""
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        return Annotated[_without_none(inner), *metadata]
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(annotation) if kind not in (type(None), bytes)]
        return Union[tuple(kinds)]  # noqa: UP007 - of a list that is made here
    return annotation
