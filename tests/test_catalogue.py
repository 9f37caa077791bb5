"""The catalogue: every operation is described, and packages may add to it."""

from __future__ import annotations

import re
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from reemote.core import catalogue as module_under_test
from reemote.core.catalogue import (
    catalogue,
    module,
    module_names,
    operations,
    parameters,
    summary,
    value_type,
)
from reemote.core.errors import CatalogueError
from reemote.core.operation import Effect, Operation
from reemote.core.remote import Command, Remote
from reemote.core.response import Completed
from reemote.host import Getcontext, Shell
from reemote.system import Callback

ALL = list(catalogue())
every_operation = pytest.mark.parametrize(
    ("name", "operation"), ALL, ids=[f"{name}.{operation.__name__}" for name, operation in ALL]
)

TRANSFERS = [("sftp", name) for name in ("Copy", "Mcopy", "Get", "Mget", "Put", "Mput")]
TRANSFERS += [("scp", name) for name in ("Upload", "Download", "Copy")]
PYTHON_ONLY = {
    ("system", "Callback", "callback"),
    ("sftp", "Sync", "progress_handler"),
    *((*where, parameter) for where in TRANSFERS for parameter in ("progress_handler", "error_handler")),
}
"""Parameters that have no JSON schema."""


# Every operation


def test_the_operations_that_there_are() -> None:
    found = {(name, operation.__name__) for name, operation in ALL}
    assert {("host", "Shell"), ("host", "Getcontext"), ("system", "Callback"), ("sftp", "Isdir")} <= found
    assert len(found) == len(ALL)


@every_operation
def test_each_operation_has_a_summary_of_one_imperative_sentence(name: str, operation: type[Operation[Any]]) -> None:
    assert operation.__doc__, "its own docstring, not an inherited one"
    text = summary(operation)
    assert text == operation.__doc__.strip().partition("\n")[0]
    assert re.fullmatch(r"[A-Z][^.]+\.", text), "one sentence"
    first = text.split()[0]
    assert not first.endswith(("s", "ing", "ed")), "in the imperative"
    assert first not in ("The", "A", "An", "This", "Whether")
    following = operation.__doc__.strip().split("\n")[1:2]
    assert following in ([], [""]), "a blank line after it"


@every_operation
def test_each_parameter_is_described(name: str, operation: type[Operation[Any]]) -> None:
    found = parameters(operation)
    assert {parameter.name for parameter in found} == set(operation.model_fields)
    for parameter in found:
        assert re.match(r"[A-Z`'].*\S", parameter.help), parameter.name
        assert parameter.help.rstrip().endswith((".", ")")), parameter.name


@every_operation
def test_each_parameter_has_a_schema_or_is_known_to_be_for_python_only(
    name: str, operation: type[Operation[Any]]
) -> None:
    without = {parameter.name for parameter in parameters(operation) if parameter.schema is None}
    assert without == {parameter for *where, parameter in PYTHON_ONLY if where == [name, operation.__name__]}


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (list[str], {"type": "array", "items": {"type": "string"}}),
        (str | int, {"anyOf": [{"type": "string"}, {"type": "integer"}]}),
        (int | str, {"anyOf": [{"type": "integer"}, {"type": "string"}]}),
        (Literal["a", "b"], {"type": "string", "enum": ["a", "b"]}),
        (Literal["b", "a"], {"type": "string", "enum": ["b", "a"]}),
        (Annotated[int, Field(json_schema_extra={"x": []})], {"type": "integer", "x": []}),
        (Callable[[], int], None),
    ],
    ids=str,
)
def test_each_parameter_has_a_schema_of_its_own(annotation: Any, expected: dict[str, Any] | None) -> None:
    """Also where types are equal but for the order in which they are written, or cannot be a key of a dictionary."""
    namespace = {"__module__": __name__, "__annotations__": {"value": annotation}}
    one, other = (types.new_class(name, (Remote,), exec_body=lambda body: body.update(namespace)) for name in "ab")
    [schema] = [each.schema for each in parameters(one) if each.name == "value"]
    assert schema == expected
    if schema is not None:
        schema.clear()
    assert [each.schema for each in parameters(other) if each.name == "value"] == [expected]


@every_operation
def test_each_parameter_that_may_be_left_out_has_a_default(name: str, operation: type[Operation[Any]]) -> None:
    for parameter in parameters(operation):
        if parameter.required:
            assert parameter.default is None
        else:
            field = operation.model_fields[parameter.name]
            assert parameter.default == field.get_default(call_default_factory=True)


@every_operation
def test_each_operation_has_a_route_and_an_effect(name: str, operation: type[Operation[Any]]) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*/?", operation.route)
    assert operation.effect in Effect


@every_operation
def test_each_operation_overrides_perform_or_execute(name: str, operation: type[Operation[Any]]) -> None:
    overridden = [getattr(operation, method) is not getattr(Operation, method) for method in ("perform", "execute")]
    assert sum(overridden) == 1


@every_operation
def test_each_operation_is_in_the_module_that_it_is_named_for(name: str, operation: type[Operation[Any]]) -> None:
    assert f"{operation.__module__}.".startswith(f"{module_names()[name]}.")
    assert getattr(module(name), operation.__name__) is operation


def test_routes_are_unique_in_their_module() -> None:
    assert {route: count for route, count in Counter((n, o.route) for n, o in ALL).items() if count > 1} == {}


def test_every_operation_module_of_ours_is_in_the_catalogue() -> None:
    folder = Path(sys.modules["reemote"].__path__[0])
    found = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    layers = {"cli", "core", "server", "ssh", "testing", "transfer", "web"}
    no_operations = {"__init__", "__main__", "execute", "events", "inventory", "context", *layers}
    assert found - no_operations == set(module_under_test._OWN)
    assert all(where == f"reemote.{name}" for name, where in module_under_test._OWN.items())


# What is said of an operation


def test_the_parameters_of_shell() -> None:
    found = {parameter.name: parameter for parameter in parameters(Shell)}
    assert set(found) == {
        "cmd", "env", "cwd", "stdin", "timeout", "check", "sudo", "su", "sudo_user", "connection", "session",
        "group", "name", "output", "kill_on_disconnect",
    }  # fmt: skip
    cmd, timeout, env = found["cmd"], found["timeout"], found["env"]
    limits = {"minLength": 1, "maxLength": 131071, "pattern": r"^[^\u0000]*$"}
    assert (cmd.required, cmd.schema, cmd.examples) == (True, {"type": "string", **limits}, ("uname -a",))
    assert (timeout.required, timeout.default) == (False, None)
    assert timeout.schema == {"anyOf": [{"exclusiveMinimum": 0, "type": "number"}, {"type": "null"}]}
    assert (env.required, env.default) == (False, {})
    assert found["sudo"].help == "Run with sudo."
    assert [parameter.name for parameter in parameters(Shell)][-2:] == ["group", "name"]


def test_a_parameter_that_exists_in_python_only() -> None:
    [callback] = [parameter for parameter in parameters(Callback) if parameter.name == "callback"]
    assert callback.schema is None
    assert callback.required


def test_the_summary_is_the_first_line() -> None:
    class Documented(Remote):
        """Do something.

        And more of it.
        """

    class Undocumented(BaseModel):
        pass

    assert summary(Documented) == "Do something."
    assert summary(Shell) == "Run a shell command on the host."


def test_the_type_of_the_value() -> None:
    class Ask(Remote[list[str]]):
        """Ask."""

    class AskAgain(Ask):
        """Ask again."""

    class Untyped(Remote):
        """Do."""

    assert value_type(Shell) is Completed
    assert value_type(Getcontext).__name__ == "Context"
    assert value_type(Ask) == value_type(AskAgain) == list[str]

    class Line(Command):
        """Do."""

    assert value_type(Untyped) is Any
    assert value_type(Line) is Completed


# Modules of other packages


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Install a distribution with modules and entry points for the time of a test."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)

    def forget() -> None:
        module_names.cache_clear()
        module.cache_clear()

    def install(name: str, entry_points: dict[str, str], **modules: str) -> None:
        info = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{point} = {where}" for point, where in entry_points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[reemote.operations]", *lines, ""]))
        for module_name, source in modules.items():
            (tmp_path / f"{module_name}.py").write_text(source)
        forget()

    yield install
    forget()
    for added in set(sys.modules) - before:
        del sys.modules[added]


SNAP = '''
"""Snap: packages."""

from reemote.core.operation import Effect, Steps
from reemote.core.remote import Command, Remote, T
from reemote.host import Shell  # imported, so not ours
from typing import Generic


class _Base(Command):
    """Be a base."""


class Question(Remote[T], Generic[T]):
    """Be a base with a type of its own."""


class ListSnaps(Question[list[str]]):
    """List the snaps."""

    effect = Effect.READS

    async def execute(self) -> Steps:
        yield Shell(cmd="snap list")


class Install(_Base):
    """Install a snap."""

    snap: str
    """The snap."""

    def to_shell(self):
        return "snap install"


Alias = Install
typed = Question[int]
'''


def test_an_installed_package_adds_operations(install: Callable[..., None]) -> None:
    install("reemote-snap", {"snap": "snap_operations"}, snap_operations=SNAP)
    assert list(module_names())[:5] == ["host", "sftp", "scp", "apt", "system"]
    assert module_names()["snap"] == "snap_operations"
    assert [operation.__name__ for operation in operations("snap")] == ["ListSnaps", "Install"]
    assert [operation.route for name, operation in catalogue() if name == "snap"] == ["list_snaps", "install"]
    [install_] = [operation for operation in operations("snap") if operation.__name__ == "Install"]
    assert [(p.name, p.help) for p in parameters(install_) if p.required] == [("snap", "The snap.")]
    assert value_type(next(operations("snap"))) == list[str]


def test_a_package_gives_the_operations_of_its_own_modules_in_its_own_order(
    install: Callable[..., None], tmp_path: Path
) -> None:
    (tmp_path / "snap").mkdir()
    (tmp_path / "snap" / "__init__.py").write_text(
        '"""Snap: packages."""\n'
        "from .all import Install, ListSnaps, Question, _Base\n"
        "from reemote.host import Getcontext\n"
        "from snap_elsewhere import Install as Elsewhere\n"
    )
    (tmp_path / "snap" / "all.py").write_text(SNAP)
    install("reemote-snap", {"snap": "snap"}, snap_elsewhere=SNAP)
    assert [operation.__name__ for operation in operations("snap")] == ["Install", "ListSnaps"]
    assert {operation.__module__ for operation in operations("snap")} == {"snap.all"}


def test_naming_modules_imports_none(install: Callable[..., None]) -> None:
    install("reemote-snap", {"snap": "snap_operations"}, snap_operations=SNAP)
    assert "snap" in module_names()
    assert "snap_operations" not in sys.modules
    module("snap")
    assert "snap_operations" in sys.modules


def test_a_module_that_does_not_exist() -> None:
    with pytest.raises(CatalogueError, match=r"no operations 'nowhere': there are host, sftp, scp, apt, system"):
        module("nowhere")
    with pytest.raises(CatalogueError, match="there are no operations 'nowhere'"):
        list(operations("nowhere"))


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("1 / 0", "ZeroDivisionError('division by zero')"),
        ("import nowhere_at_all", "ModuleNotFoundError"),
        ("def", "SyntaxError"),
        (None, "ModuleNotFoundError(\"No module named 'broken_operations'\")"),
        ("from reemote import Nothing", "ImportError"),
    ],
    ids=["raises", "imports what is missing", "no Python", "missing", "imports a wrong name"],
)
def test_a_module_that_cannot_be_imported(install: Callable[..., None], source: str | None, complaint: str) -> None:
    install("reemote-broken", {"broken": "broken_operations"}, **({"broken_operations": source} if source else {}))
    with pytest.raises(CatalogueError) as caught:
        list(operations("broken"))
    assert str(caught.value).startswith("the operations 'broken' (broken_operations) cannot be imported: ")
    assert complaint in str(caught.value)
    assert caught.value.__cause__ is not None
    assert next(operations("host")) is Shell  # the others still work


def test_a_package_cannot_take_a_name_of_ours(install: Callable[..., None]) -> None:
    install("reemote-host", {"host": "snap_operations"}, snap_operations=SNAP)
    with pytest.raises(CatalogueError) as caught:
        module_names()
    assert str(caught.value) == "reemote-host registers the operations 'host', which reemote.host has"


def test_two_packages_cannot_have_the_same_name(install: Callable[..., None]) -> None:
    install("reemote-one", {"snap": "one_operations"}, one_operations=SNAP)
    install("reemote-two", {"snap": "two_operations"}, two_operations=SNAP)
    with pytest.raises(CatalogueError, match=r"registers the operations 'snap', which (one|two)_operations has"):
        module_names()


def test_two_packages_may_mean_the_same_module(install: Callable[..., None]) -> None:
    install("reemote-one", {"snap": "snap_operations"}, snap_operations=SNAP)
    install("reemote-again", {"snap": "snap_operations"})
    assert module_names()["snap"] == "snap_operations"
