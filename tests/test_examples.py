"""The programs of the tutorial and the examples print what they promise, on hosts of the same names."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.programs import ROOT, Fleet, nothing_listens, run_program

EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))
TUTORIAL = Path(__file__).parent / "tutorial"


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet("server104", "server105") as hosts:
        yield hosts


@pytest.fixture
def closed_port() -> Iterator[int]:
    with nothing_listens() as port:
        yield port


@pytest.fixture
def run(fleet: Fleet, tmp_path: Path) -> Any:
    def start(path: Path, *arguments: str, down: tuple[tuple[str, int], ...] = ()) -> str:
        done = run_program(path, *arguments, inventory_file=fleet.write(tmp_path, *down))
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return start


def promised(name: str) -> str:
    """The indented lines at the top of an example: what it prints."""
    source = (ROOT / "examples" / f"{name}.py").read_text()
    found = re.match(r'r?"""(.*?)"""', source, re.DOTALL)
    assert found is not None
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", found[1], re.MULTILINE)
    return textwrap.dedent(blocks[0]).lstrip("\n")


def test_every_section_of_the_tutorial_has_an_example() -> None:
    assert EXAMPLES == sorted(
        [
            "await_spelling",
            "callback",
            "composition",
            "concurrency",
            "context",
            "failure",
            "groups",
            "hello_world",
            "inventory_as_dictionary",
            "parameters",
            "response",
        ]
    )


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "failure"])
def test_example(run: Any, name: str) -> None:
    assert run(ROOT / "examples" / f"{name}.py") == promised(name)


def test_example_failure(run: Any, closed_port: int) -> None:
    output = run(ROOT / "examples" / "failure.py", down=(("server105", closed_port),))

    where = f"what to do: nothing listens at server105 (127.0.0.1:{closed_port})"
    assert output == promised("failure").replace("what to do: nothing listens at server105", where)


@pytest.mark.parametrize(
    ("argument", "output"),
    [("5", "1 2 3 4 5\n"), ("0", "times: Input should be greater than or equal to 1\n")],
)
def test_example_parameters_with_an_argument(run: Any, fleet: Fleet, argument: str, output: str) -> None:
    commands = len(fleet.sandbox["server104"].commands)

    assert run(ROOT / "examples" / "parameters.py", argument) == output

    ran = fleet.sandbox["server104"].commands[commands:]
    assert ran == (["echo $(seq 5)"] if argument == "5" else [])


# The tutorial: the public contract


def test_tutorial_hello_world(run: Any) -> None:
    assert run(TUTORIAL / "hello_world.py") == "Hello World!\n\nHello World!\n\n"


def test_tutorial_hello_world_response(run: Any) -> None:
    value = {
        "command": "echo Hello World!",
        "subsystem": None,
        "exit_status": 0,
        "exit_signal": None,
        "returncode": 0,
        "stdout": "Hello World!\n",
        "stderr": "",
    }
    expected = [{"host": host, "value": value, "changed": True, "error": False} for host in ("server104", "server105")]
    # Text, not data: the order of the keys is part of the promise.
    assert run(TUTORIAL / "hello_world_response.py") == json.dumps(expected, indent=4) + "\n"


def test_tutorial_composition(run: Any) -> None:
    assert run(TUTORIAL / "composition.py") == "Hello\nWorld!\n\n"


@pytest.mark.parametrize(("arguments", "greeted"), [([], "no one"), (["Joe"], "Joe")])
def test_tutorial_composition_parameters(run: Any, arguments: list[str], greeted: str) -> None:
    assert run(TUTORIAL / "composition_parameters.py", *arguments) == f"Hello {greeted}\n\n"


@pytest.mark.slow
def test_tutorial_concurrency(run: Any) -> None:
    assert run(TUTORIAL / "concurrency.py") == "Ready?\nReady?\n" + 2 * "Hello\nWorld!\n" + "overlap\n"
