"""The programs of the tutorial, unchanged, against two real machines."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.openssh import RootWorld

pytestmark = pytest.mark.slow

PROGRAMS = Path(__file__).parent / "tutorial"

RECORD = {
    "command": "echo Hello World!",
    "subsystem": None,
    "exit_status": 0,
    "exit_signal": None,
    "returncode": 0,
    "stdout": "Hello World!\n",
    "stderr": "",
}
RESPONSES = [{"host": host, "value": RECORD, "changed": True, "error": False} for host in ("server104", "server105")]

PRINTED = {
    ("hello_world.py",): "Hello World!\n\n" * 2,
    ("hello_world_response.py",): json.dumps(RESPONSES, indent=4) + "\n",
    ("composition.py",): "Hello\nWorld!\n\n",
    ("composition_parameters.py",): "Hello no one\n\n",
    ("composition_parameters.py", "Joe"): "Hello Joe\n\n",
    ("concurrency.py",): "Ready?\n" * 2 + "Hello\nWorld!\n" * 2 + "overlap\n",
}


@pytest.mark.parametrize("arguments", PRINTED, ids=" ".join)
def test_the_program_prints_what_the_tutorial_says(world: RootWorld, arguments: tuple[str, ...]) -> None:
    before = [machine.accepted() for machine in world.machines.values()]
    done = world.run([sys.executable, "-W", "error", PROGRAMS / arguments[0], *arguments[1:]])
    assert done.stderr == ""
    assert done.stdout == PRINTED[arguments]
    # One connection for a whole program, however often it calls execute().
    for machine, count in zip(world.machines.values(), before, strict=True):
        machine.wait_idle()
        assert machine.accepted() - count <= 1


def test_a_host_that_is_down_is_told_apart(world: RootWorld, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    text = (PROGRAMS / "hello_world_response.py").read_text()
    shutil.copy(PROGRAMS / "hello_world_response.py", program)
    program.write_text(text.replace("server105", "server106"))
    done = world.run([sys.executable, program], check=True)
    first, second = json.loads(done.stdout)
    assert first == RESPONSES[0]
    assert (second["host"], second["value"], second["error"]) == ("server106", "HostNotFound", True)
