"""The layers: imports point down, libraries have one home, and starting loads little."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import reemote

ROOT = Path(reemote.__path__[0])

LEVELS = {
    "core": 1,
    "transfer": 2,
    "ssh": 3,
    "operations": 3,
    "execute": 4,
    "testing": 4,
    "server": 5,
    "cli": 6,
    "web": 6,
}
"""The layers by level. A layer imports from itself and from lower levels only."""

FRONT = {"reemote", "reemote.__main__"}
"""The package itself, which names what is loaded when it is used, and the start of the command line."""

PACKAGES = {"apt", "sftp"}
"""The operation modules that are packages."""

HOMES = {
    "asyncssh": {"ssh"},
    "click": {"cli"},
    "rich": {"cli"},
    "fastapi": {"server"},
    "starlette": {"server"},
    "uvicorn": {"server"},
    "h11": {"server"},
    "prometheus_client": {"server"},
    "platformdirs": {"ssh", "server", "cli"},  # a question to the operating system, which several have
    "pytest": {"testing"},
    "pydantic": set(LEVELS),
    "pydantic_core": set(LEVELS),
    "typing_extensions": set(LEVELS),
}
"""Where each library may be imported; what is not named here may be imported nowhere."""


class Import(NamedTuple):
    """One import of one module."""

    importer: str
    target: str
    line: int
    for_types: bool
    """Whether it is for type checkers only."""

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"


def module_name(path: Path) -> str:
    parts = ["reemote", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def layer(module: str) -> str:
    """Give the layer of one of our modules."""
    parts = module.split(".")
    if len(parts) > 1 and parts[1] in LEVELS:
        return parts[1]
    assert len(parts) == 2 or parts[1] in PACKAGES, f"{module} is in no layer"
    return "operations"


def imports_in(module: str, tree: ast.AST, *, is_package: bool) -> Iterator[Import]:
    """Give all imports, those in functions and for type checkers, too."""
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for statement in block.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, node.lineno, id(node) in for_types)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")
            if node.level:
                up = node.level - (1 if is_package else 0)
                base = base[: len(base) - up] if up else base
                source = ".".join([*base, *([node.module] if node.module else [])])
            else:
                source = node.module or ""
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield Import(module, inner if inner in MODULES else source, node.lineno, id(node) in for_types)


def imports() -> list[Import]:
    """Give all imports of the package."""
    found: list[Import] = []
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += imports_in(module, tree, is_package=path.name == "__init__.py")
    return found


IMPORTS = imports()
OURS = [found for found in IMPORTS if found.target.split(".")[0] == "reemote"]


def is_downward(found: Import) -> bool:
    here, there = layer(found.importer), layer(found.target)
    return here == there or LEVELS[there] < LEVELS[here]


def test_imports_are_found() -> None:
    source = (
        "from __future__ import annotations\n"
        "import os.path, asyncssh\n"
        "from .core import errors\n"
        "from .core.errors import HostError\n"
        "if TYPE_CHECKING:\n    from .ssh.pool import Pool\n"
        "def f():\n    from . import host\n"
    )
    found = {(i.target, i.line, i.for_types) for i in imports_in("reemote.system", ast.parse(source), is_package=False)}
    assert found == {
        ("__future__", 1, False), ("os.path", 2, False), ("asyncssh", 2, False), ("reemote.core.errors", 3, False),
        ("reemote.core.errors", 4, False), ("reemote.ssh.pool", 6, True), ("reemote.host", 8, False),
    }  # fmt: skip
    in_package = imports_in("reemote.ssh", ast.parse("from ..core import host\nfrom .pool import x"), is_package=True)
    assert [i.target for i in in_package] == ["reemote.core.host", "reemote.ssh.pool"]
    assert len(OURS) > 50


@pytest.mark.parametrize(
    ("importer", "target", "downward"),
    [
        ("reemote.core.engine", "reemote.core.errors", True),
        ("reemote.core.engine", "reemote.ssh.pool", False),
        ("reemote.core.engine", "reemote.host", False),
        ("reemote.ssh.pool", "reemote.core.errors", True),
        ("reemote.ssh.pool", "reemote.host", False),
        ("reemote.host", "reemote.ssh.pool", False),
        ("reemote.system", "reemote.host", True),
        ("reemote.sftp.questions", "reemote.transfer.copy", True),
        ("reemote.sftp.questions", "reemote.ssh.files", False),
        ("reemote.ssh.files", "reemote.transfer.tar", True),
        ("reemote.transfer.local", "reemote.core.files", True),
        ("reemote.transfer.copy", "reemote.ssh.files", False),
        ("reemote.testing.fake", "reemote.transfer.local", True),
        ("reemote.execute", "reemote.ssh.pool", True),
        ("reemote.execute", "reemote.testing.fake", False),
        ("reemote.testing.fake", "reemote.execute", False),
        ("reemote.cli.run", "reemote.testing.fleet", True),
        ("reemote.server.app", "reemote.cli.main", False),
        ("reemote.cli.main", "reemote.server.app", True),
    ],
)
def test_the_rule(importer: str, target: str, downward: bool) -> None:
    assert is_downward(Import(importer, target, 1, False)) is downward


def test_imports_point_down() -> None:
    wrong = [str(found) for found in OURS if found.importer not in FRONT and not is_downward(found)]
    assert wrong == []


def test_nothing_imports_the_front() -> None:
    """What imports the package's own names from inside gets what happens to be loaded."""
    wrong = [str(found) for found in OURS if found.target in FRONT]
    assert wrong == []


def test_there_are_no_cycles() -> None:
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for found in OURS:
        if not found.for_types and found.importer != "reemote" and found.target != found.importer:
            graph[found.importer].add(found.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_libraries_are_imported_where_they_belong() -> None:
    wrong = []
    for found in IMPORTS:
        library = found.target.split(".")[0]
        if library in sys.stdlib_module_names or library == "reemote":
            continue
        if found.importer in FRONT or layer(found.importer) not in HOMES.get(library, set()):
            wrong.append(str(found))
    assert wrong == []


def test_asyncssh_is_imported_somewhere() -> None:
    assert {layer(found.importer) for found in IMPORTS if found.target.split(".")[0] == "asyncssh"} == {"ssh"}


def test_core_needs_pydantic_only() -> None:
    libraries = {found.target.split(".")[0] for found in IMPORTS if found.importer.startswith("reemote.core")}
    assert libraries - set(sys.stdlib_module_names) == {"reemote", "pydantic", "pydantic_core", "typing_extensions"}


def test_every_module_is_in_a_layer() -> None:
    assert {layer(module) for module in MODULES if module not in FRONT} <= set(LEVELS)


@pytest.mark.parametrize("name", ["utils", "util", "helpers", "common", "misc"])
def test_no_module_is_named_for_nothing(name: str) -> None:
    assert [module for module in MODULES if name in module.split(".")] == []


# What is loaded, and what is left behind


def python(*arguments: str, home: Path) -> str:
    """Run Python in a process of its own, with an empty home, and give what it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    for name in ("CONFIG", "DATA", "STATE", "CACHE"):
        environment[f"XDG_{name}_HOME"] = str(home / f".{name.lower()}")
    environment["HOME"] = str(home)
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", *arguments],
        env=environment, cwd=home, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


LIBRARIES = "('asyncssh', 'pydantic', 'pydantic_core', 'fastapi', 'click', 'rich', 'asyncio', 'cryptography')"
SHOW = f"import sys; print([name for name in {LIBRARIES} if name in sys.modules])"
MAIN = """
import sys
from reemote.cli.main import main
try:
    main([{arguments}])
except SystemExit as end:
    assert not end.code, end.code
print([name for name in ('asyncssh', 'pydantic', 'fastapi', 'rich') if name in sys.modules])
"""


def test_importing_the_package_loads_nothing(home: Path) -> None:
    assert python("-c", f"import reemote; {SHOW}", home=home) == "[]\n"
    assert list(home.iterdir()) == []


def test_a_name_loads_what_it_needs(home: Path) -> None:
    shown = python("-c", f"from reemote import Remote, Inventory, HostError; {SHOW}", home=home)
    assert "pydantic" in shown
    assert "asyncssh" not in shown
    assert "click" not in shown


@pytest.mark.slow
def test_the_tutorials_imports_load_no_more_than_asyncssh_and_pydantic(home: Path) -> None:
    code = "from reemote.execute import execute; from reemote.host import Shell; from reemote.system import Return"
    shown = python("-c", f"{code}; {SHOW}", home=home)
    assert "asyncssh" in shown
    assert "pydantic" in shown
    assert not any(name in shown for name in ("fastapi", "click", "rich"))
    assert list(home.iterdir()) == []


def test_operations_and_the_catalogue_do_without_asyncssh(home: Path) -> None:
    code = "from reemote.core.catalogue import catalogue; assert list(catalogue())"
    assert "asyncssh" not in python("-c", f"{code}; {SHOW}", home=home)


@pytest.mark.parametrize("arguments", ["'--help'", "'--version'", "'-h'"])
def test_help_loads_neither_asyncssh_nor_pydantic(arguments: str, home: Path) -> None:
    shown = python("-c", MAIN.format(arguments=arguments), home=home)
    assert shown.splitlines()[-1] == "[]"
    assert list(home.iterdir()) == []


def test_help_as_a_module(home: Path) -> None:
    assert python("-m", "reemote", "--help", home=home).startswith("Usage: ")
    assert list(home.iterdir()) == []
