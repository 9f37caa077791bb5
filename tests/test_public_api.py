"""The public contract: import paths, names and signatures that programs rely on."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import reemote
from reemote.execute import execute, run

TUTORIAL = {
    "reemote.execute": ["execute"],
    "reemote.host": ["Shell", "Getcontext"],
    "reemote.inventory": ["Inventory", "InventoryItem", "Connection", "Session", "Authentication"],
    "reemote.context": ["Context"],
    "reemote.system": ["Return", "Callback"],
    "reemote.core.response": ["Response"],
    "reemote.core.remote": ["Remote"],
}
"""What the tutorial's programs import, and what else it names."""

FRONT = [
    "Authentication", "Command", "Completed", "Connection", "Context", "Effect", "ExecutionError", "HostError",
    "Inventory", "InventoryItem", "Local", "Pool", "ReemoteError", "Remote", "Response", "Responses", "Session",
    "Steps", "run", "step",
    "stream",
]  # fmt: skip


@pytest.mark.parametrize(("module", "name"), [(module, name) for module in TUTORIAL for name in TUTORIAL[module]])
def test_the_tutorials_imports(module: str, name: str) -> None:
    assert getattr(importlib.import_module(module), name).__name__ == name


def test_the_tutorials_programs_import_nothing_else() -> None:
    used: dict[str, set[str]] = {}
    for program in (Path(__file__).parent / "tutorial").glob("*.py"):
        for node in ast.walk(ast.parse(program.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("reemote"):
                used.setdefault(node.module or "", set()).update(alias.name for alias in node.names)
    assert "reemote.execute" in used
    assert {module: names for module, names in used.items() if not names <= set(TUTORIAL[module])} == {}


def test_the_names_of_the_package() -> None:
    assert reemote.__all__ == FRONT == sorted(FRONT, key=lambda name: (name.islower(), name))


@pytest.mark.parametrize("name", FRONT)
def test_each_name_can_be_imported(name: str) -> None:
    found = getattr(reemote, name)
    assert found is not None
    assert getattr(found, "__name__", name) in (name, "AsyncGenerator")


def test_a_name_is_the_same_object_everywhere() -> None:
    assert reemote.run is run
    for module, names in TUTORIAL.items():
        for name in names:
            if name in FRONT:
                assert getattr(reemote, name) is getattr(importlib.import_module(module), name)


def test_dir_shows_the_names_that_are_not_loaded_yet() -> None:
    assert set(FRONT) <= set(dir(reemote))


def test_a_name_that_there_is_not() -> None:
    with pytest.raises(AttributeError, match="module 'reemote' has no attribute 'Runner'"):
        _ = reemote.Runner
    with pytest.raises(ImportError, match="cannot import name 'Runner'"):
        exec("from reemote import Runner")


def test_what_type_checkers_see_is_what_there_is() -> None:
    """The names in the block for type checkers are those that are loaded."""
    tree = ast.parse(Path(inspect.getfile(reemote)).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    declared = {
        str(alias.asname): (node.module, alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(declared) == sorted(FRONT)
    for name, (module, original) in declared.items():
        assert getattr(importlib.import_module(f"reemote.{module}"), original) is getattr(reemote, name)


def test_names_are_loaded_lazily() -> None:
    code = (
        "import sys, reemote\n"
        "before = [name for name in sys.modules if name.startswith('reemote.')]\n"
        "reemote.HostError\n"
        "print(before, 'reemote.core.errors' in sys.modules, 'reemote.ssh' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[] True False\n"


def parameters(function: Any) -> list[tuple[str, str, Any]]:
    return [
        (parameter.name, parameter.kind.name, parameter.default)
        for parameter in inspect.signature(function).parameters.values()
    ]


def test_the_signature_of_execute() -> None:
    assert inspect.iscoroutinefunction(execute)
    required = inspect.Parameter.empty
    assert parameters(execute) == [
        ("factory", "POSITIONAL_OR_KEYWORD", required),
        ("inventory", "POSITIONAL_OR_KEYWORD", required),
        ("pool", "KEYWORD_ONLY", None),
        ("concurrency", "KEYWORD_ONLY", None),
        ("strict", "KEYWORD_ONLY", False),
        ("timeout", "KEYWORD_ONLY", None),
        ("limit", "KEYWORD_ONLY", None),
        ("host_timeout", "KEYWORD_ONLY", None),
        ("step_timeout", "KEYWORD_ONLY", None),
        ("dry_run", "KEYWORD_ONLY", False),
        ("on_event", "KEYWORD_ONLY", None),
    ]


def test_the_signature_of_run() -> None:
    assert not inspect.iscoroutinefunction(run)
    assert parameters(run) == parameters(execute)


@pytest.mark.parametrize("module", ["reemote.inventory", "reemote.context", "reemote.testing", "reemote.execute"])
def test_modules_with_an_all_keep_to_it(module: str) -> None:
    found = importlib.import_module(module)
    assert [name for name in found.__all__ if not hasattr(found, name)] == []


def test_every_public_name_is_documented() -> None:
    undocumented = []
    for name in FRONT:
        found = getattr(reemote, name)
        if name != "Steps" and not inspect.getdoc(found):
            undocumented.append(name)
    assert undocumented == []
    assert inspect.getdoc(reemote)


def test_the_package_is_typed() -> None:
    assert (Path(reemote.__path__[0]) / "py.typed").is_file()
