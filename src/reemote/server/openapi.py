"""The OpenAPI document: what the catalogue says of each operation, and what holds for all requests."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from ..core import catalogue
from ..core.catalogue import Parameter
from ..core.inventory import Inventory
from ..core.operation import Effect, Operation
from ..core.secrets import NAMES
from . import limits
from .settings import Settings

Schema = dict[str, Any]

REF = "#/components/schemas/"

DESCRIPTION = """
Control remote systems over SSH. Each operation is the Python class of the same name: the same
parameters, the same defaults, the same answers.

A request runs the operation on every host of the inventory that belongs to its `group`, at the same
time, and answers with one response for each host. A host that fails does not disturb the others, nor
the status of the request: its response says what happened.

Parameters go into the query or into a JSON body, which suits long and secret ones: it takes all of
them, those that a query must have included, and counts over the query. Clients that can send a body
with `GET` may do so.
"""

SECURITY = """
The token that `reemote token` prints. On a loopback address, requests of the user who runs the server
need none.
"""

REFUSALS = {
    400: "the request, or its JSON, is malformed",
    401: "it comes from somebody else than the user who runs the server, and bears no valid token",
    403: "a page of another origin sent it, or it names a file outside of the directory for transfers",
    408: "the body did not arrive in time",
    413: "the body is too large",
    415: "the body is not `application/json`",
    421: "it is for a name that the server does not go by",
    429: "there are too many runs at the same time",
}
"""Why requests are refused. A message is always in `value`."""

BREAKDOWNS = {
    500: "the inventory cannot be read, or there is a bug: `value` then has the number of its log entry",
    503: "the server is being stopped, or the audit log cannot be written",
}


OPTIONS: dict[str, type[BaseModel]] = {"connection": limits.HostConnection, "session": limits.SessionOptions}
"""The types of the parameters that bear options."""

_OPTIONS_HELP = {
    "address": "The name or address to connect to, where it is not `host`.",
    "client_keys": "Names of private keys in `~/.ssh` of the user who runs the server.",
    "connect_timeout": "Seconds for an attempt to connect, all of it.",
    "encoding": "The encoding of commands' input and output.",
    "env": "Variables to set for commands.",
    "errors": "What to do with bytes that the encoding does not know.",
    "host": "The host's name; hosts are told apart by it.",
    "host_keys": "`strict`: the host's key must be known. `accept-new`: that of a new host is trusted and remembered.",
    "keepalive_count_max": "How many messages may stay without an answer until the connection counts as lost.",
    "keepalive_interval": "Seconds of silence after which the host is asked for a sign of life.",
    "login_timeout": "Seconds for the login.",
    "max_sessions": "How many commands and file transfers may run at the same time on the host.",
    "passphrase": "The passphrase of the private keys.",
    "password": "The user's password.",
    "port": "The TCP port.",
    "request_pty": "Whether commands run at a terminal.",
    "runner": "Whether commands run in a small program on the host: faster, above all far away.",
    "term_size": "Width and height of that terminal, in characters.",
    "term_type": "The type of that terminal.",
    "username": "The user to log in as.",
}


_OPTIONS_ABOUT = {
    "connection": "Over what the inventory says. Its password is not sent to another place.",
    "session": "How commands run: options of asyncssh's `create_session()`.",
}

_KEYWORDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
"""What pydantic leaves as they are where they hold for several types."""

_FORMATS = {
    "encoding": "encoding",
    "client_keys": "key-name",
    "username": "user-name",
    **dict.fromkeys(NAMES, "password"),
}
"""Which texts an option takes, where a pattern cannot say it."""


def _options(model: Any, title: str, about: str) -> Schema:
    """Describe options that may be given."""
    found: Schema = model.model_json_schema()
    for name, schema in found["properties"].items():
        found["properties"][name] = {**_option(schema, _FORMATS.get(name)), "description": _OPTIONS_HELP[name]}
    return {**found, "title": title, "description": about}


def _option(schema: Schema, text: str | None) -> Schema:
    """Say in the words of JSON Schema what pydantic says of an option; its texts have the format *text*."""
    kept = {_KEYWORDS.get(key, key): value for key, value in schema.items() if key not in ("default", "title")}
    if "items" in kept:
        kept["items"] = _option(kept["items"], text)
    if kept.get("type") == "string" and text:
        kept["format"] = text
        kept.pop("pattern", None)
    if "patternProperties" in kept:
        kept["additionalProperties"] = False
    kinds = [_option(kind, text) for kind in kept.pop("anyOf", ())]
    if {"type": "number"} in kinds:
        kinds = [kind for kind in kinds if kind != {"type": "integer"}]
    if not kinds:
        return kept
    return {**kept, **kinds[0]} if len(kinds) == 1 else {**kept, "anyOf": kinds}


def _described(ref: str, description: str, **more: Any) -> Schema:
    return {"$ref": REF + ref, "description": description, **more}


HOST_ENTRY: Schema = {
    "title": "HostEntry",
    "type": "object",
    "description": "One host of the inventory.",
    "additionalProperties": False,
    "required": ["connection"],
    "properties": {
        "connection": _described("HostConnection", "How to reach it."),
        "session": _described("SessionOptions", "How commands run on it.", default={}),
        "authentication": _described("Authentication", "Who to become on it.", default={}),
        "groups": {
            "type": "array",
            "items": {"type": "string"},
            "default": ["all"],
            "description": "The groups it belongs to, besides `all`.",
        },
    },
}

INVENTORY_ENTRIES: Schema = {
    "title": "InventoryEntries",
    "type": "object",
    "description": "An inventory.",
    "additionalProperties": False,
    "required": ["hosts"],
    "properties": {
        "hosts": {
            "type": "array",
            "items": {"$ref": REF + "HostEntry"},
            "description": "The hosts, in the order in which their responses come.",
        }
    },
}

HOST_EXAMPLE: Schema = {
    "connection": {"host": "server104", "username": "user", "password": "password"},
    "session": {},
    "authentication": {"sudo_password": "password"},
    "groups": ["web"],
}


class Problem(BaseModel):
    """Why a request was not carried out."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    error: bool = Field(json_schema_extra={"const": True})
    """Always true."""
    value: str
    """The message."""


class Mistake(BaseModel):
    """One thing that is wrong with a request."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: str
    """Its kind, for programs."""
    loc: list[str | int]
    """Where it is: `query`, `path` or `body`, then the parameter."""
    msg: str
    """What is wrong, for people."""


class Invalid(Problem):
    """Why a request's parameters were refused, one by one."""

    detail: list[Mistake]
    """All that is wrong; what was sent is not repeated."""


def operation_id(name: str, operation: type[Operation[Any]]) -> str:
    """Give the unique name of an operation in the document."""
    return f"{name}_{operation.route}".rstrip("/")


def title(name: str, operation: type[Operation[Any]]) -> str:
    """Give what the names of its schemas begin with."""
    return f"{name.title()}{operation.__name__}".replace("_", "")


def described(name: str, operation: type[Operation[Any]], parameters: Sequence[Parameter]) -> Schema:
    """Describe the parameters of an operation: those of its query, and its body."""
    found: Schema = {"parameters": [_in_query(p) for p in parameters if is_plain(p)]}
    if operation.effect is not Effect.READS:  # browsers cannot send a body with GET
        found["requestBody"] = _body(name, operation, parameters)
    return found


def is_plain(parameter: Parameter) -> bool:
    """Whether values can be written in a query: scalars, and lists of them."""
    kinds = _kinds(_inlined(parameter.schema or {}))
    flat = [kind.get("items", {}) if kind.get("type") == "array" else kind for kind in kinds]
    return bool(flat) and all(kind.get("type") in ("string", "integer", "number", "boolean") for kind in flat)


def is_list(parameter: Parameter) -> bool:
    """Whether a parameter takes several values."""
    return any(kind.get("type") == "array" for kind in _kinds(_inlined(parameter.schema or {})))


def _inlined(schema: Any, definitions: Schema | None = None) -> Any:
    """Put enumerations, which pydantic describes apart, where they are referred to."""
    if isinstance(schema, list):
        return [_inlined(each, definitions) for each in schema]
    if not isinstance(schema, dict):
        return schema
    known = schema.get("$defs", {}) if definitions is None else definitions
    target = known.get(str(schema.get("$ref")).removeprefix("#/$defs/"), {})
    if "enum" in target:
        named = {key: value for key, value in target.items() if key not in ("title", "description")}
        return {**named, **{key: value for key, value in schema.items() if key != "$ref"}}
    return {key: _inlined(value, known) for key, value in schema.items()}


def _kinds(schema: Schema) -> list[Schema]:
    return [kind for kind in schema.get("anyOf", [schema]) if kind.get("type") != "null"]


def _in_query(parameter: Parameter) -> Schema:
    """Describe a parameter of a query, where there is no null: what is absent has its default."""
    found: Schema = {"name": parameter.name, "in": "query", "required": parameter.required}
    found["description"] = parameter.help
    schema = _inlined(parameter.schema or {})
    as_text = any(kind.get("type") == "string" for kind in _kinds(schema))  # where a text is taken, it is one
    others = ("integer", "number", "boolean") if as_text else ()
    plain = _without(schema, "null", *others, *(("string",) if is_list(parameter) else ()))
    plain.pop("$defs", None)
    found["schema"] = _with_default(parameter, plain)
    if len(parameter.examples) == 1:
        found["example"] = parameter.examples[0]
    elif parameter.examples:
        found["examples"] = {str(value): {"value": value} for value in parameter.examples}
    return found


def _without(schema: Schema, *types: str) -> Schema:
    """Leave types out of a schema, and bytes, which JSON does not have."""
    if "anyOf" not in schema:
        return dict(schema)
    kinds = [k for k in schema["anyOf"] if k.get("type") not in types and k.get("format") != "binary"]
    rest = {key: value for key, value in schema.items() if key != "anyOf"}
    return {**kinds[0], **rest} if len(kinds) == 1 else {"anyOf": kinds, **rest}


def _with_default(parameter: Parameter, schema: Schema) -> Schema:
    if not parameter.required and parameter.default is not None:
        return {**schema, "default": TypeAdapter(Any).dump_python(parameter.default, mode="json")}
    return schema


def _body(name: str, operation: type[Operation[Any]], parameters: Sequence[Parameter]) -> Schema:
    """Describe the body: all parameters, none of which is needed there."""
    schema: Schema = {
        "title": f"{title(name, operation)}Request",
        "description": "Parameters that are not in the query, or that count over those.",
        "type": "object",
        "additionalProperties": False,
        "properties": {p.name: _in_body(p) for p in parameters},
    }
    examples: Schema = {}
    if any(p.name in OPTIONS for p in parameters):
        examples["options"] = {
            "summary": "Options of the connection and the session; parameters in the query",
            "value": {p.name: {} for p in parameters if p.name in OPTIONS},
        }
    needed = {p.name: p.examples[0] for p in parameters if p.required and p.examples}
    if needed:
        examples["all"] = {"summary": "All parameters in the body", "value": needed}
    media: Schema = {"schema": schema}
    if examples:
        media["examples"] = examples
    return {"content": {"application/json": media}}


def _in_body(parameter: Parameter) -> Schema:
    if parameter.name in OPTIONS:
        return {"$ref": f"{REF}{parameter.name.title()}Options", "description": parameter.help, "default": {}}
    schema = _with_default(parameter, _without(parameter.schema or {}))
    found = {**schema, "description": parameter.help}
    return {**found, "examples": list(parameter.examples)} if parameter.examples else found


def polish(document: Schema, settings: Settings) -> Schema:
    """Add what holds for all requests, and put all schemas where documents have them."""
    components = document.setdefault("components", {})
    document["tags"] = _tags()
    document["security"] = [{"token": []}] if settings.authenticate else []
    if settings.authenticate and settings.is_loopback:
        document["security"].insert(0, {})
    if settings.authenticate:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer", "description": SECURITY.strip()}}
    components["responses"] = {
        "Invalid": _response("The parameters are not valid; nothing has run.", Invalid),
        "Refused": _response("The request is refused; nothing has run." + _list(REFUSALS), Problem),
        "Broken": _response("The server cannot do it." + _list(BREAKDOWNS), Problem),
    }
    for methods in document["paths"].values():
        for method in methods.values():
            _add_failures(method)
    examples = {"create": ("InventoryEntries", {"hosts": [HOST_EXAMPLE]}), "add": ("HostEntry", HOST_EXAMPLE)}
    for action, (schema, example) in examples.items():
        body = document["paths"][f"/reemote/inventory/{action}/"]["post"]["requestBody"]
        body["content"] = {"application/json": {"schema": {"$ref": REF + schema}, "example": example}}
    found = document["paths"]["/reemote/inventory/get"]["get"]["responses"]["200"]
    found["content"]["application/json"]["schema"] = {"$ref": REF + "Inventory"}
    _add_schemas(components.setdefault("schemas", {}))
    _tidy(document)
    _gather(document, components["schemas"])
    return document


def _add_schemas(schemas: dict[str, Schema]) -> None:
    """Add the schemas that are not of operations, and leave out those of FastAPI that nothing uses."""
    host = _options(limits.HostConnection, "HostConnection", "How to reach a host: options of `asyncssh.connect()`.")
    for name in ("host", "host_keys", "max_sessions", "runner"):
        host["properties"][name] = _without(host["properties"][name], "null")
    schemas["HostConnection"] = {**host, "required": ["host"]}
    for name, model in OPTIONS.items():
        schemas[f"{name.title()}Options"] = _options(model, f"{name.title()}Options", _OPTIONS_ABOUT[name])
    schemas |= {"HostEntry": copy.deepcopy(HOST_ENTRY), "InventoryEntries": copy.deepcopy(INVENTORY_ENTRIES)}
    # What is sent of an inventory has the shape of what it is read from, with the secrets masked.
    known = Inventory.model_json_schema(ref_template=REF + "{model}")
    schemas.update(known.pop("$defs"))
    schemas["Inventory"] = known
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)


def _tags() -> list[Schema]:
    tags = {name: catalogue.module_summary(name) for name in catalogue.module_names()}
    tags["inventory"] = "The hosts that the server knows."
    tags["server"] = "How the server is doing."
    return [{"name": name, "description": text} for name, text in tags.items()]


def _list(reasons: dict[int, str]) -> str:
    return "\n\n" + "\n".join(f"- `{status}`: {text}" for status, text in reasons.items())


def _response(description: str, model: type[BaseModel]) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": model.model_json_schema()}}}


def _add_failures(method: Schema) -> None:
    responses = method["responses"]
    takes = "parameters" in method or "requestBody" in method
    if takes and responses.get("422", {}).get("description") in (None, "Validation Error"):
        responses["422"] = {"$ref": "#/components/responses/Invalid"}
    responses["4XX"] = {"$ref": "#/components/responses/Refused"}
    if "503" not in responses:
        responses["5XX"] = {"$ref": "#/components/responses/Broken"}
    for parameter in method.get("parameters", ()):
        parameter.setdefault("description", _OPTIONS_HELP.get(parameter["name"], ""))


def _gather(part: Any, schemas: Schema) -> None:
    """Move the schemas that others refer to, and those of bodies, to the one place for all of them."""
    for each in part if isinstance(part, list) else list(part.values()) if isinstance(part, dict) else ():
        _gather(each, schemas)
    if not isinstance(part, dict):
        return
    if "$defs" in part:
        definitions = part.pop("$defs")
        names = {name: _free(name, schema, schemas) for name, schema in definitions.items()}
        for name, schema in definitions.items():
            schemas[names[name]] = schema
        _refer([part, *definitions.values()], names)
    schema = part.get("schema")
    if isinstance(schema, dict) and schema.get("title", "").isidentifier() and schema.get("type") == "object":
        schemas[schema["title"]] = schema
        part["schema"] = {"$ref": REF + schema["title"]}


def _free(name: str, schema: Schema, schemas: Schema) -> str:
    """Give the name, or a longer one where another schema has it."""
    while schemas.get(name, schema) != schema:
        name += "_"
    return name


def _refer(part: Any, names: dict[str, str]) -> None:
    for each in part if isinstance(part, list) else part.values() if isinstance(part, dict) else ():
        _refer(each, names)
    if isinstance(part, dict) and str(part.get("$ref")).startswith("#/$defs/"):
        part["$ref"] = REF + names[part["$ref"].removeprefix("#/$defs/")]


def _tidy(part: Any) -> None:
    """Leave out what says nothing: titles that repeat a name, defaults of null, a secret's second type."""
    for each in part if isinstance(part, list) else part.values() if isinstance(part, dict) else ():
        _tidy(each)
    if not isinstance(part, dict) or not isinstance(part.get("properties"), dict):
        return
    for name, schema in part["properties"].items():
        if schema.get("title", "").replace(" ", "_").lower() == name.lower():
            del schema["title"]
        if schema.get("default", ...) is None:
            del schema["default"]
        if any(kind.get("writeOnly") for kind in schema.get("anyOf", ())):  # SecretStr beside str
            schema["anyOf"] = [kind for kind in schema["anyOf"] if not kind.get("writeOnly")]
            schema["format"] = "password"
