"""Parity: a request and the Python constructor take the same parameters and refuse the same values."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.exceptions import RequestValidationError
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from starlette.requests import Request

from reemote.core import catalogue
from reemote.core.catalogue import Parameter, parameters
from reemote.core.errors import ConnectionRefused
from reemote.core.operation import Operation
from reemote.core.response import Completed, Responses
from reemote.execute import execute
from reemote.host import Getcontext, Shell
from reemote.server.openapi import OPTIONS, is_list, is_plain
from reemote.server.routes import METHODS, accepted, query_reader
from reemote.system import Callback, Return
from tests.server.inprocess import Served, client, served

SERVED = [(name, operation) for name, operation in catalogue.catalogue() if operation is not Callback]
every_operation = pytest.mark.parametrize(
    ("name", "operation"), SERVED, ids=[f"{name}.{operation.__name__}" for name, operation in SERVED]
)
EXAMPLES, TOGETHER = 150, 25
"""Requests for each operation, and how many are made up at a time: that takes longer than to send them."""

generated = settings(
    max_examples=EXAMPLES // TOGETHER,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


# What values there are

numbers = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | numbers | st.text()
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
texts = st.text() | st.sampled_from(
    ["true", "false", "on", "1", "0", "-1", "2.5", "1e400", "nan", "inf", "null", "", " ", "\0", "[]", "{}", "all"]
)


def of_schema(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values of about the right kind, some of them wrong."""
    if "anyOf" in schema:
        return st.one_of([of_schema(each) for each in schema["anyOf"]])
    kinds: dict[str | None, st.SearchStrategy[Any]] = {
        "null": st.none(),
        "boolean": st.booleans(),
        "integer": st.integers() | st.integers(schema.get("minimum"), schema.get("maximum")),
        "number": numbers | st.integers(-3, 3),
        "string": texts | st.text("abc/.*", min_size=schema.get("minLength", 0)),
        "array": st.lists(texts, max_size=3) | st.lists(st.text("abc/.*", min_size=1), min_size=1, max_size=3),
        "object": st.dictionaries(st.sampled_from(["A", "b_1", "1", "", "a-b"]) | st.text(), texts, max_size=3),
    }
    return kinds.get(schema.get("type"), anything)


def json_value(parameter: Parameter) -> st.SearchStrategy[Any]:
    if parameter.name in OPTIONS:
        return st.just({})  # what may be in there is for the limits to say
    right = of_schema(parameter.schema or {})
    if not parameter.required:
        right |= st.just(parameter.default)
    return right | right | right | anything


def either(one: st.SearchStrategy[Any], other: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Values of one strategy as often as of another, however many that is made of."""
    return st.booleans().flatmap(lambda first: one if first else other)


def some_of(values: dict[str, st.SearchStrategy[Any]], needed: set[str]) -> st.SearchStrategy[dict[str, Any]]:
    """A few of the parameters, mostly with those that are needed."""
    return st.sets(st.sampled_from(sorted(values)), max_size=4).flatmap(
        lambda names: st.booleans().flatmap(
            lambda all_needed: st.fixed_dictionaries(
                {name: values[name] for name in sorted(names | (needed if all_needed else set()))}
            )
        )
    )


def several(one: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    """Values of a strategy, no two of them alike."""
    return st.lists(one, min_size=TOGETHER, max_size=TOGETHER, unique_by=repr)


def is_converted(operation: Operation[Any], given: dict[str, Any]) -> bool:
    """Whether a constructor took something for what it is not in JSON, such as 1 for true."""
    kinds = {name: getattr(operation, name) for name in given}
    return any(
        isinstance(kinds[name], bool | int | float | str)
        and type(kinds[name]) is not type(value)
        and not (type(kinds[name]) is float and type(value) is int)
        for name, value in given.items()
    )


# How both sides are asked


class Sent:
    """The API, with what its requests would run."""

    def __init__(self, loop: asyncio.AbstractEventLoop, http: httpx2.AsyncClient) -> None:
        self._loop = loop
        self._http = http
        self.ran: list[Operation[Any]] = []

    def request(self, name: str, operation: type[Operation[Any]], **arguments: Any) -> Operation[Any] | None:
        """Give the operation that a request runs; ``None`` where it is refused for its parameters."""
        self.ran.clear()
        method, path = METHODS[operation.effect], f"/reemote/{name}/{operation.route}"
        response = self._loop.run_until_complete(self._http.request(method, path, **arguments))
        assert response.status_code in (200, 422), response.text
        assert (response.status_code == 200) == bool(self.ran)
        return self.ran[0] if self.ran else None


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sent]:
    loop = asyncio.new_event_loop()
    loop.set_debug(False)  # it would note where each task of thousands of requests was made
    with served(tmp_path_factory.mktemp("server"), "one") as api:
        context = client(api)
        http = loop.run_until_complete(context.__aenter__())
        sent = Sent(loop, http)

        async def run(_: str, operation: Operation[Any], *__: Any) -> Responses[Any]:
            sent.ran.append(operation)
            return Responses()

        assert api.app.runner is not None
        api.app.runner.run = run  # type: ignore[method-assign,assignment]
        yield sent
        loop.run_until_complete(context.__aexit__(None, None, None))
    loop.close()


def constructed(operation: type[Operation[Any]], given: dict[str, Any]) -> Operation[Any] | None:
    try:
        return operation(**given)
    except ValidationError:
        return None


def values_of(operation: Operation[Any]) -> dict[str, Any]:
    return {name: getattr(operation, name) for name in type(operation).model_fields}


# Parameters

ALSO: dict[tuple[str, str], dict[str, Any]] = {
    ("sftp", "Setstat"): {"permissions": "0644"},
    ("sftp", "Chmod"): {"permissions": "0644"},
    ("sftp", "Chown"): {"uid": 1},
    ("apt", "Install"): {"packages": ["nginx"]},
    ("apt", "Remove"): {"packages": ["nginx"]},
    ("apt", "Package"): {"packages": ["nginx"]},
}
"""Parameters that have defaults, of which one has to be given."""


def enough(name: str, operation: type[Operation[Any]]) -> dict[str, Any]:
    """Give the arguments that an operation cannot do without."""
    values = {"integer": 1, "boolean": True, "array": ["x"]}
    needed = {p.name: values.get((p.schema or {}).get("type", ""), "x") for p in parameters(operation) if p.required}
    return needed | ALSO.get((name, operation.__name__), {})


@every_operation
def test_the_parameters_and_their_defaults_are_the_same(name: str, operation: type[Operation[Any]], sent: Sent) -> None:
    of_python = {parameter.name: parameter for parameter in parameters(operation)}
    of_requests = {parameter.name: parameter for parameter in accepted(operation)}
    assert of_requests.keys() - of_python.keys() <= {"timeout"}
    assert {n for n, p in of_python.items() if n not in of_requests} == {
        n for n, p in of_python.items() if p.schema is None
    }
    needed = enough(name, operation)
    made = constructed(operation, needed)
    assert made is not None
    for arguments in ({"params": needed}, {"json": needed}):
        asked = sent.request(name, operation, **arguments)
        assert asked is not None
        assert values_of(asked) == values_of(made)
        assert asked.model_fields_set == made.model_fields_set


@every_operation
def test_a_parameter_that_does_not_exist(name: str, operation: type[Operation[Any]], sent: Sent) -> None:
    needed = enough(name, operation)
    assert constructed(operation, {**needed, "nonsense": "x"}) is None
    assert sent.request(name, operation, params={**needed, "nonsense": "x"}) is None
    assert sent.request(name, operation, json={**needed, "nonsense": "x"}) is None


@pytest.mark.slow
@every_operation
def test_a_body_and_the_constructor_agree(name: str, operation: type[Operation[Any]], sent: Sent) -> None:
    found = parameters(operation)
    values = {p.name: json_value(p) for p in found if p.schema is not None}
    for key, value in ALSO.get((name, operation.__name__), {}).items():
        values[key] = either(st.just(value), values[key])
    taken = refused = 0

    def agree(given: dict[str, Any]) -> None:
        nonlocal taken, refused
        note(f"{given}")
        made = constructed(operation, given)
        asked = sent.request(name, operation, json=given)
        if asked is not None:
            assert made is not None, "the constructor refuses it"
            assert values_of(asked) == values_of(made)
            assert asked.model_fields_set == made.model_fields_set
            taken += 1
        elif made is not None:
            # JSON has types of its own, so nothing is converted there; in Python a type checker says so.
            assert is_converted(made, given), "the request refuses it"
        refused += made is None

    @generated
    @given(several(some_of(values, set(enough(name, operation)))))
    def all_agree(several: list[dict[str, Any]]) -> None:
        for each in several:
            agree(each)

    all_agree()
    assert taken > 10
    assert refused > 10


@pytest.mark.slow
@every_operation
def test_a_query_and_the_constructor_agree(name: str, operation: type[Operation[Any]], sent: Sent) -> None:
    found = [p for p in parameters(operation) if p.schema is not None and is_plain(p)]
    values: dict[str, st.SearchStrategy[Any]] = {
        p.name: st.lists(texts, min_size=1, max_size=3) if is_list(p) else texts for p in found
    }

    def agree(given: dict[str, Any]) -> None:
        note(f"{given}")
        made = constructed(operation, given)
        asked = sent.request(name, operation, params=given)
        assert (asked is None) == (made is None)
        if asked is not None and made is not None:
            assert values_of(asked) == values_of(made)
            assert asked.model_fields_set == made.model_fields_set

    @generated
    @given(several(some_of(values, {p.name for p in found if p.required})))
    def all_agree(several: list[dict[str, Any]]) -> None:
        for each in several:
            agree(each)

    all_agree()


@pytest.mark.parametrize(("length", "is_taken"), [(131_071, True), (131_072, False)])
def test_the_longest_command_and_one_that_is_longer(length: int, is_taken: bool, sent: Sent) -> None:
    """In a query and in a body: schemathesis is not told how long a command may be."""
    text = "x" * length
    assert (constructed(Shell, {"cmd": text}) is not None) == is_taken
    assert (sent.request("host", Shell, json={"cmd": text}) is not None) == is_taken
    request = Request({"type": "http", "query_string": f"cmd={text}".encode(), "headers": []})
    with contextlib.nullcontext() if is_taken else pytest.raises(RequestValidationError, match="131,071 bytes"):
        assert query_reader("host", Shell)(request)[0].cmd == text


def test_the_body_counts_over_the_query(sent: Sent) -> None:
    made = sent.request("host", Shell, params={"cmd": "true", "check": "true"}, json={"cmd": "false"})
    assert isinstance(made, Shell)
    assert (made.cmd, made.check) == ("false", True)
    assert sent.request("host", Shell, params={"cmd": "true", "check": "what"}, json={"check": True}) is None


def test_a_reading_request_may_have_a_body(sent: Sent) -> None:
    made = sent.request("host", Getcontext, json={"connection": {"username": "joe"}, "session": {}})
    assert isinstance(made, Getcontext)
    assert made.connection == {"username": "joe"}


def test_nothing_is_given_twice_in_a_query(sent: Sent) -> None:
    assert sent.request("host", Shell, params=[("cmd", "true"), ("cmd", "false")]) is None


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_the_time_for_a_request_is_checked(seconds: str, sent: Sent) -> None:
    assert sent.request("host", Getcontext, params={"timeout": seconds}) is None
    assert sent.request("system", Return, json={"timeout": seconds}) is None
    assert sent.request("system", Return, json={"timeout": 1.5}) is not None


# Bodies


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b" ", "application/json", 400),
        (b'{"cmd": "\\ud800"}', "application/json", 400),
        (b"[" * 5000, "application/json", 400),
        (b"null", "application/json", 422),
        (b"[]", "application/json", 422),
        (b'{"cmd": "x", "timeout": NaN}', "application/json", 422),
        (b'{"cmd": "x", "timeout": 1' + b"0" * 5000 + b"}", "application/json", 400),
        (b'{"cmd": "x"}', "text/plain", 415),
        (b'{"cmd": "x"}', "", 415),
        (b"cmd=x", "application/x-www-form-urlencoded", 415),
        (b'{"cmd": "x"}', "application/json; charset=utf-8", 200),
        (b'{"cmd": "x"}', "application/vnd.example+json", 200),
        (b"", "", 200),
        (b"", "text/plain", 200),
    ],
)
async def test_bodies_of_all_kinds(api: Served, http: httpx2.AsyncClient, body: bytes, kind: str, status: int) -> None:
    params = {"cmd": "x"} if not body else {}
    headers = {"content-type": kind} if kind else {}
    response = await http.post("/reemote/host/shell", params=params, content=body, headers=headers)
    assert response.status_code == status, response.text
    if status != 200:
        assert response.json()["error"] is True
        assert response.json()["value"]


async def test_a_mistake_is_told_without_what_was_sent(http: httpx2.AsyncClient) -> None:
    canary = "S3CR3T"
    response = await http.post("/reemote/host/shell", params={"check": canary}, json={"cmd": "x"})
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["query", "check"]
    body = {"cmd": 1, "env": {canary: 2}, "connection": {"password": 3}}
    told = await http.post("/reemote/host/shell", json=body)
    assert [each["loc"][:2] for each in told.json()["detail"]] == [["body", "cmd"], ["body", "env"]]
    missing = await http.post("/reemote/host/shell")
    assert missing.json() == {
        "error": True,
        "value": "query.cmd: Field required",
        "detail": [{"type": "missing", "loc": ["query", "cmd"], "msg": "Field required"}],
    }
    assert canary not in response.text
    assert '"input":' not in json.dumps([response.json(), told.json()])


# Answers


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path, "server104", "server105") as api:
        api.fake.on("echo Hello World!", stdout="Hello World!\n")
        api.fake.on("x", stdout="")
        api.fake.on("false", exit_status=1, stderr="no\n")
        api.fake.on(
            "kill", lambda call: Completed(command=call.command, exit_status=None, exit_signal=("TERM", False, "", ""))
        )
        api.fake.on("bytes", stdout=b"\xff\x00")
        yield api


@pytest.fixture
async def http(api: Served) -> AsyncIterator[httpx2.AsyncClient]:
    async with client(api) as http:
        yield http


@pytest.mark.parametrize("down", [(), ("server105",), ("server104", "server105")], ids=["none", "one", "both"])
@pytest.mark.parametrize(
    "operation",
    [
        Shell(cmd="echo Hello World!", name="print hello"),
        Shell(cmd="false"),
        Shell(cmd="false", check=True),
        Shell(cmd="kill"),
        Shell(cmd="bytes"),
        Shell(cmd="x", group="nobody"),
        Return(value={"a": [1, 2.5, None, "ü"]}),
        Return(value=None, changed=True),
    ],
    ids=["succeeds", "fails", "fails, checked", "is killed", "is no text", "is for nobody", "returns", "changed"],
)
async def test_the_answer_is_that_of_python(
    api: Served, http: httpx2.AsyncClient, operation: Operation[Any], down: tuple[str, ...]
) -> None:
    for host in down:
        api.fake.fail(host, ConnectionRefused("nobody listens there"))
    given = {name: getattr(operation, name) for name in operation.model_fields_set}
    module = type(operation).__module__.rpartition(".")[2]
    responses = await execute(lambda: operation, inventory=api.fake.inventory, pool=api.fake)
    answer = await http.post(f"/reemote/{module}/{operation.route}", json=given)
    assert answer.status_code == 200
    assert answer.json() == json.loads(json.dumps(responses))
    assert [list(each) for each in answer.json()] == [list(each) for each in responses]
    if isinstance(operation, Shell) and operation.group == "all":
        assert [each["error"] for each in answer.json()] == [
            operation.check or host in down for host in ("server104", "server105")
        ]


async def test_the_context_is_that_of_python_with_its_secrets_masked(tmp_path: Path) -> None:
    with served(tmp_path) as api:
        async with client(api) as http:
            answer = await http.get("/reemote/host/getcontext")
    responses = await execute(lambda: Getcontext(), inventory=api.fake.inventory, pool=api.fake)
    assert answer.json() == json.loads(responses.to_json())


def test_numbers_that_json_does_not_have_are_no_limits() -> None:
    """Nor are they in Python: a query could name them."""
    for seconds in (math.inf, math.nan):
        with pytest.raises(ValidationError):
            Shell(cmd="x", timeout=seconds)
