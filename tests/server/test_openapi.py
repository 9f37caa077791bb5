"""The OpenAPI document: valid, complete, and derived from the operations alone."""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import BaseModel

from reemote.core import catalogue
from reemote.core.catalogue import parameters
from reemote.core.errors import CatalogueError
from reemote.core.operation import Operation
from reemote.core.response import Record
from reemote.server.app import App
from reemote.server.openapi import OPTIONS, is_plain
from reemote.server.routes import METHODS, accepted
from reemote.system import Callback
from reemote.testing import Fake
from tests.server.inprocess import client, served, settings

Document = dict[str, Any]

SERVED = [(name, operation) for name, operation in catalogue.catalogue() if operation is not Callback]
every_operation = pytest.mark.parametrize(
    ("name", "operation"), SERVED, ids=[f"{name}.{operation.__name__}" for name, operation in SERVED]
)


def document_of(directory: Path, **more: Any) -> Document:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = json.dumps(App(settings(directory, Fake(), **more)).openapi())
    found: Document = json.loads(text)
    return found


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Document:
    return document_of(tmp_path_factory.mktemp("server"))


def described(document: Document, name: str, operation: type[Operation[Any]]) -> Any:
    return document["paths"][f"/reemote/{name}/{operation.route}"][METHODS[operation.effect].lower()]


def resolve(document: Document, part: Any) -> Any:
    """Follow a reference, as long as there is one."""
    while "$ref" in part:
        found: Any = document
        for step in part["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        part = found
    return part


def parts(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict):
        yield part
    for each in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from parts(each)


def all_requests(document: Document) -> list[tuple[str, str, Any]]:
    return [
        (path, method, details) for path, methods in document["paths"].items() for method, details in methods.items()
    ]


# The document


def test_it_is_valid(document: Document) -> None:
    assert [str(error) for error in OpenAPIV31SpecValidator(document).iter_errors()] == []


def test_each_reference_leads_somewhere(document: Document) -> None:
    for part in parts(document):
        if isinstance(part.get("$ref"), str):
            assert part["$ref"].startswith("#/components/")
            assert resolve(document, part)


def test_each_schema_is_used(document: Document) -> None:
    used = {part["$ref"].rpartition("/")[2] for part in parts(document) if isinstance(part.get("$ref"), str)}
    assert set(document["components"]["schemas"]) <= used


def test_the_ids_of_operations_are_unique(document: Document) -> None:
    ids = Counter(details["operationId"] for *_, details in all_requests(document))
    assert set(ids.values()) == {1}
    assert {"host_shell", "inventory_create", "server_healthz"} <= set(ids)


def test_everything_is_described(document: Document) -> None:
    tags = {tag["name"]: tag["description"] for tag in document["tags"]}
    assert tags["host"] == "Run commands on a host, and ask what is known of it."
    for path, _, details in all_requests(document):
        assert re.fullmatch(r"[A-Z][^\n]+[^.\n]", details["summary"]), path
        assert all(tag in tags for tag in details["tags"]), path
        for parameter in details.get("parameters", ()):
            assert parameter["description"], path
    records = {record.__name__ for record in Record.__subclasses__()}
    for title, schema in document["components"]["schemas"].items():
        for name, each in schema.get("properties", {}).items():
            assert each.get("description") or title in records, f"{title}.{name}"


def test_refusals_are_described(document: Document) -> None:
    for path, _, details in all_requests(document):
        refused = resolve(document, details["responses"]["4XX"])
        assert {"400", "401", "403", "413", "421", "429"} <= set(re.findall(r"`(4\d\d)`", refused["description"])), path
        schema = resolve(document, refused["content"]["application/json"]["schema"])
        assert schema["required"] == ["error", "value"]
        assert any(status.startswith("5") for status in details["responses"])
        assert ("422" in details["responses"]) == ("parameters" in details or "requestBody" in details), path


def test_a_token_is_needed_only_where_others_may_call(document: Document, tmp_path: Path) -> None:
    [(name, scheme)] = document["components"]["securitySchemes"].items()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    assert document["security"] == [{}, {name: []}]
    assert document_of(tmp_path, host="192.0.2.1")["security"] == [{name: []}]
    assert document_of(tmp_path, authenticate=False)["security"] == []


def test_queries_have_no_null_and_no_bytes(document: Document) -> None:
    for path, _, details in all_requests(document):
        for parameter in details.get("parameters", ()):
            for part in parts(parameter["schema"]):
                assert part.get("type") != "null", path
                assert part.get("format") != "binary", path


# Each operation


@every_operation
def test_each_operation_has_its_route(document: Document, name: str, operation: type[Operation[Any]]) -> None:
    methods = document["paths"][f"/reemote/{name}/{operation.route}"]
    assert list(methods) == [METHODS[operation.effect].lower()]
    details = described(document, name, operation)
    assert details["tags"] == [name]
    assert f"{details['summary']}." == catalogue.summary(operation)
    assert details.get("description", "") == catalogue.description(operation)
    assert ("requestBody" in details) == (METHODS[operation.effect] != "GET")


@every_operation
def test_each_parameter_is_in_the_query(document: Document, name: str, operation: type[Operation[Any]]) -> None:
    found = {parameter["name"]: parameter for parameter in described(document, name, operation)["parameters"]}
    assert set(found) == {p.name for p in accepted(operation) if is_plain(p)}
    for parameter in parameters(operation):
        if parameter.name in found:
            described_as = found[parameter.name]
            assert described_as["description"] == parameter.help
            assert described_as["required"] == parameter.required
            assert described_as["schema"].get("default") == parameter.default
            assert bool(parameter.examples) == ("example" in described_as or "examples" in described_as)


@every_operation
def test_each_parameter_is_in_the_body(document: Document, name: str, operation: type[Operation[Any]]) -> None:
    details = described(document, name, operation)
    if "requestBody" not in details:
        return
    body = resolve(document, details["requestBody"]["content"]["application/json"]["schema"])
    assert set(body["properties"]) == {p.name for p in accepted(operation)}
    assert body["additionalProperties"] is False
    assert "required" not in body, "what a query has, a body need not have"
    for parameter in accepted(operation):
        assert body["properties"][parameter.name]["description"] == parameter.help


@every_operation
def test_the_answer_is_typed(document: Document, name: str, operation: type[Operation[Any]]) -> None:
    answer = described(document, name, operation)["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer["type"] == "array"
    done, failed = (resolve(document, each) for each in answer["items"]["anyOf"])
    assert done["required"] == ["host", "value", "changed", "error"]
    assert done["properties"]["error"]["const"] is False
    assert failed["properties"]["error"]["const"] is True
    assert failed["properties"]["value"]["type"] == "string"
    value = catalogue.value_type(operation)
    if isinstance(value, type) and issubclass(value, dict | BaseModel):
        assert done["properties"]["value"]["$ref"] == f"#/components/schemas/{value.__name__}"


def test_how_shell_is_shown(document: Document) -> None:
    details = document["paths"]["/reemote/host/shell"]["post"]
    parameters = {parameter["name"]: parameter for parameter in details["parameters"]}
    assert next(iter(parameters)) == "cmd"
    assert parameters["cmd"]["example"]
    assert parameters["group"]["schema"]["default"] == "all"
    assert parameters["timeout"]["schema"]["type"] == "number"
    media = details["requestBody"]["content"]["application/json"]
    assert next(iter(media["examples"].values()))["value"] == {"connection": {}, "session": {}}
    value = document["components"]["schemas"]["HostShellResponse"]["properties"]["value"]
    assert list(resolve(document, value)["properties"]) == [
        "command", "subsystem", "exit_status", "exit_signal", "returncode", "stdout", "stderr",
        "truncated", "stdout_size", "stderr_size", "pty",
    ]  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_the_options_that_a_request_may_have_are_described(document: Document, name: str) -> None:
    body = document["components"]["schemas"]["HostShellRequest"]["properties"][name]
    options = resolve(document, body)
    assert set(options["properties"]) == set(OPTIONS[name].model_fields)
    assert options["additionalProperties"] is False
    assert all(option["description"] for option in options["properties"].values())


def test_a_callback_exists_in_python_only(document: Document) -> None:
    assert "/reemote/system/callback" not in document["paths"]


async def test_return_answers_with_the_value(tmp_path: Path) -> None:
    with served(tmp_path, "one") as api:
        async with client(api) as http:
            response = await http.post("/reemote/system/return", json={"value": {"a": [1, None]}, "changed": True})
    assert response.json() == [{"host": "one", "value": {"a": [1, None]}, "changed": True, "error": False}]


# Operations of others

ADDED = '''
"""Weather: what it is like outside."""

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel

from reemote.core.operation import Effect, Local


class Scale(StrEnum):
    """A scale."""

    CELSIUS = "c"
    KELVIN = "k"


class Place(BaseModel):
    """A place."""

    name: str
    scale: Scale = Scale.KELVIN


class Forecast(Local[list[str]]):
    """Tell the weather of days to come.

    As far as it is known.
    """

    effect = Effect.{effect}

    days: list[str]
    """The days."""
    rain: bool = True
    """Whether rain counts."""
    scale: Scale | None = None
    """The scale."""
    scales: list[Scale] = []
    """Further scales."""
    sky: Literal["blue", "grey"] = "blue"
    """Its colour."""
    place: Place | None = None
    """The place."""

    async def perform(self, host):
        return [f"{{day}}: {{'rain' if self.rain else 'sun'}}" for day in self.days]
'''


@pytest.fixture
def add_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Register a module of operations, as an installed package does."""

    def add(name: str, source: str) -> None:
        (tmp_path / "weather_operations.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        names = {"host": "reemote.host", name: "weather_operations"}
        monkeypatch.setattr(catalogue, "module_names", lambda: names)
        catalogue.module.cache_clear()

    yield add
    catalogue.module.cache_clear()
    sys.modules.pop("weather_operations", None)


@pytest.mark.parametrize(("effect", "method"), [("READS", "get"), ("CHANGES", "post"), ("ENSURES", "put")])
async def test_an_operation_that_is_added_is_served(add_module: Any, tmp_path: Path, effect: str, method: str) -> None:
    add_module("weather", ADDED.format(effect=effect))
    with served(tmp_path, "one", "two") as api:
        async with client(api) as http:
            document = (await http.get("/openapi.json")).json()
            query = {"days": ["Monday", "Tuesday"], "rain": "false", "scale": "c", "scales": ["c", "k"]}
            response = await http.request(method, "/reemote/weather/forecast", params=query)
    assert [str(error) for error in OpenAPIV31SpecValidator(document).iter_errors()] == []
    assert {"name": "weather", "description": "What it is like outside."} in document["tags"]
    details = document["paths"]["/reemote/weather/forecast"][method]
    assert details["summary"] == "Tell the weather of days to come"
    assert details["description"] == "As far as it is known."
    days = details["parameters"][0]
    assert (days["name"], days["required"], days["description"]) == ("days", True, "The days.")
    assert days["schema"] == {"type": "array", "items": {"type": "string"}}
    found = {parameter["name"]: parameter["schema"] for parameter in details["parameters"]}
    assert "place" not in found, "a query cannot have it"
    assert (found["scale"]["enum"], found["scale"]["type"]) == (["c", "k"], "string")
    assert found["scales"]["items"]["enum"] == ["c", "k"]
    assert (found["sky"]["enum"], found["sky"]["default"]) == (["blue", "grey"], "blue")
    value = document["components"]["schemas"]["WeatherForecastResponse"]["properties"]["value"]
    assert (value["type"], value["items"]) == ("array", {"type": "string"})
    assert response.status_code == 200
    assert [(each["host"], each["value"]) for each in response.json()] == [
        ("one", ["Monday: sun", "Tuesday: sun"]),
        ("two", ["Monday: sun", "Tuesday: sun"]),
    ]


def test_operations_cannot_take_the_place_of_the_inventory(add_module: Any, tmp_path: Path) -> None:
    add_module("inventory", ADDED.format(effect="READS"))
    with pytest.raises(CatalogueError, match="the operations 'inventory' cannot be served"):
        App(settings(tmp_path, Fake()))
