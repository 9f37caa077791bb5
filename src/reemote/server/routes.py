"""Routes: one for each operation of the catalogue, derived from its fields."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from typing import Any, Literal, TypeVar

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_core import from_json, to_json
from starlette.exceptions import HTTPException
from typing_extensions import TypeVar as TypeVariable

from ..core import catalogue
from ..core.catalogue import Parameter
from ..core.errors import CatalogueError
from ..core.operation import Effect, Operation
from ..core.response import Completed, as_json
from . import limits, openapi
from .openapi import OPTIONS, is_list, is_plain
from .runner import Runner

Asked = TypeVar("Asked", bound=Operation[Any])

METHODS = {Effect.READS: "GET", Effect.CHANGES: "POST", Effect.ENSURES: "PUT"}

RESERVED = frozenset({"inventory"})
"""Modules whose paths the API itself has."""


class Done(BaseModel):
    """The response of a host on which the operation succeeded."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    host: str = Field(examples=["server104"])
    """The host, as the inventory calls it."""
    value: Any
    """What the operation answered."""
    changed: bool
    """Whether something changed on the host, or may have."""
    error: Literal[False]
    """False: the operation was carried out."""


class Failed(BaseModel):
    """The response of a host on which the operation failed."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    host: str = Field(examples=["server105"])
    """The host, as the inventory calls it."""
    value: str = Field(examples=["ConnectionRefusedError"])
    """The name of the failure."""
    changed: bool
    """Whether something changed on the host, or may have."""
    error: Literal[True]
    """True: the operation failed, or could not be tried."""
    detail: str
    """What a person needs to know."""
    outcome: Literal["not_started", "completed", "unknown"]
    """Whether the operation may have taken effect."""
    completed: Completed = Field(default=None)  # type: ignore[assignment]
    """Where a command had started: its record so far."""


class _Limit(BaseModel):
    """The parameter of all requests whose operation has no such parameter itself."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Seconds for the whole request; hosts that are not done by then are cancelled."""


def router(runner: Runner) -> APIRouter:
    """Give the routes of all operations that can be called over HTTP.

    Raises:
        CatalogueError: A module has a name that the API itself uses.
    """
    routes = APIRouter(prefix="/reemote")
    for name, operation in catalogue.catalogue():
        if name in RESERVED:
            raise CatalogueError(f"the operations {name!r} cannot be served: the API itself has that path")
        if not catalogue.is_writable(operation):
            continue
        parameters = accepted(operation)
        routes.add_api_route(
            f"/{name}/{operation.route}",
            _endpoint(name, operation, runner),
            methods=[METHODS[operation.effect]],
            operation_id=openapi.operation_id(name, operation),
            tags=[name],
            summary=catalogue.summary(operation).rstrip("."),
            description=catalogue.description(operation),
            response_model=answer(name, operation),
            response_description="One response for each host, in the order of the inventory.",
            openapi_extra=openapi.described(name, operation, parameters),
        )
    return routes


@cache
def answer(name: str, operation: type[Operation[Any]]) -> Any:
    """Give the type of what a request for *operation* is answered with."""
    value: Any = (catalogue.value_type(operation), Field(description=Done.model_fields["value"].description))
    done = create_model(f"{openapi.title(name, operation)}Response", __base__=Done, __doc__=Done.__doc__, value=value)
    return list[done | Failed]


@cache
def accepted(operation: type[Operation[Any]]) -> tuple[Parameter, ...]:
    """Give the parameters that a request for *operation* may have."""
    found = list(catalogue.writable_parameters(operation))
    if not any(p.name == "timeout" for p in found):
        found.append(Parameter.of("timeout", _Limit.model_fields["timeout"]))
    return tuple(found)


@cache
def _in_query(operation: type[Operation[Any]]) -> dict[str, bool]:
    """Give the parameters that can be written in a query, and whether each takes several values."""
    return {p.name: is_list(p) for p in accepted(operation) if is_plain(p)}


def _endpoint(name: str, operation: type[Operation[Any]], runner: Runner) -> Callable[..., Awaitable[Response]]:
    """Make the function that answers requests for an operation; its models are made when they are first needed."""

    async def call(request: Request) -> Response:
        query = _from_query(request, _in_query(operation), _query_model(name, operation))
        body = await _from_body(request, _body_model(name, operation))
        given = {**query, **body}
        seconds = None if "timeout" in operation.model_fields else _limit(given, body)
        made = _make(operation, given, body)
        responses = await runner.run(f"{name}.{operation.route}", made, seconds, disconnected(request))
        return Response(as_json(responses), media_type="application/json")

    call.__name__ = openapi.operation_id(name, operation)
    return call


def _from_query(request: Request, takes_list: Mapping[str, bool], model: type[BaseModel]) -> dict[str, Any]:
    """Read the query: texts, which the operation's own fields make values of.

    They are checked here, too, since the body may have others that count over them.
    """
    values: dict[str, Any] = {}
    wrong = []
    for key in dict.fromkeys(request.query_params):
        texts = request.query_params.getlist(key)
        if key not in takes_list:
            wrong.append(_mistake("extra_forbidden", ("query", key), "unknown parameter"))
        elif takes_list[key]:
            values[key] = texts
        elif len(texts) > 1:
            wrong.append(_mistake("too_many", ("query", key), "given more than once"))
        else:
            values[key] = texts[0]
    if wrong:
        raise RequestValidationError(wrong)
    try:
        model.model_validate(values)
    except ValidationError as error:
        raise _invalid(error, lambda _: "query") from None
    return values


async def _from_body(request: Request, model: type[BaseModel]) -> dict[str, Any]:
    """Read the body: JSON, whose values have types of their own, so that nothing is converted."""
    raw = await request.body()
    if not raw:
        return {}
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise HTTPException(415, "the body must be JSON, with the header 'Content-Type: application/json'")
    try:
        body = _parsed(model, raw)
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":
            raise HTTPException(400, "the body is not well-formed JSON") from None
        raise _invalid(error, lambda _: "body") from None
    given = {key: getattr(body, key) for key in body.model_fields_set}
    for key, check in (("connection", limits.connection), ("session", limits.session)):
        if given.get(key):
            try:
                given[key] = check(given[key])
            except limits.OptionRefused as error:
                raise RequestValidationError([_mistake("option_refused", ("body", key), str(error))]) from None
    return given


def _parsed(model: type[BaseModel], raw: bytes) -> BaseModel:
    """Parse a body. In JSON 5.0 is an integer, too (JSON Schema Validation, section 6.1.1)."""
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        if not any(each["type"] == "int_type" for each in error.errors()):
            raise
    return model.model_validate_json(to_json(_whole(from_json(raw)), inf_nan_mode="constants"))


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _whole(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_whole(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _limit(given: dict[str, Any], body: dict[str, Any]) -> float | None:
    """Take the time limit of the request out of what was given."""
    try:
        return _Limit.model_validate({"timeout": given.pop("timeout", None)}).timeout
    except ValidationError as error:
        raise _invalid(error, lambda key: "body" if key in body else "query") from None


def _make(operation: type[Asked], given: dict[str, Any], body: dict[str, Any]) -> Asked:
    try:
        return operation(**given)
    except ValidationError as error:
        in_query = _in_query(operation)
        raise _invalid(error, lambda key: "body" if key in body or key not in in_query else "query") from None


def _invalid(error: ValidationError, where: Callable[[Any], str]) -> RequestValidationError:
    """Make the error that tells a client what is wrong, and where."""
    return RequestValidationError(
        [{**each, "loc": (where(each["loc"][0] if each["loc"] else None), *each["loc"])} for each in error.errors()]
    )


def _mistake(kind: str, loc: tuple[str, ...], message: str) -> dict[str, Any]:
    return {"type": kind, "loc": loc, "msg": message}


def query_reader(name: str, operation: type[Asked]) -> Callable[..., tuple[Asked, float | None]]:
    """Make the function that reads a request whose parameters are all in its query.

    It takes the request, and what the operation has besides them; it gives the operation and the time limit.
    """

    def read(request: Request, **more: Any) -> tuple[Asked, float | None]:
        given = _from_query(request, _in_query(operation), _query_model(name, operation))
        seconds = _limit(given, {})
        return _make(operation, {**given, **more}, {}), seconds

    return read


def disconnected(request: Request) -> Callable[[], Any]:
    """Make the function that returns when the client of a request has gone."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    return gone


@cache
def _query_model(name: str, operation: type[Operation[Any]]) -> type[BaseModel]:
    """Make the model of the query: the parameters that can be written there, none of them needed."""
    fields: dict[str, Any] = {p.name: (_type(p), None) for p in accepted(operation) if is_plain(p)}
    config = ConfigDict(arbitrary_types_allowed=True, hide_input_in_errors=True)
    return create_model(f"{openapi.title(name, operation)}Query", __config__=config, **fields)


@cache
def _body_model(name: str, operation: type[Operation[Any]]) -> type[BaseModel]:
    """Make the model of the JSON body: all parameters, none of them needed there."""
    fields: dict[str, Any] = {p.name: (_type(p), None) for p in accepted(operation)}
    config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True, hide_input_in_errors=True)
    return create_model(f"{openapi.title(name, operation)}Body", __config__=config, **fields)


def _type(parameter: Parameter) -> Any:
    if parameter.name in OPTIONS:
        return dict[str, Any]  # the limits look into it
    return Any if isinstance(parameter.annotation, TypeVar | TypeVariable) else parameter.annotation
