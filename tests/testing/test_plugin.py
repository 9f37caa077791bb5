"""The pytest plugin: its fixtures, and that loading it costs next to nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from reemote.execute import execute
from reemote.host import Shell
from reemote.testing import Fake, Sandbox, sandbox

LOADED = "[name for name in ('pydantic', 'asyncssh') if name in sys.modules]"


def run_pytest(folder: Path, test: str) -> str:
    """Run pytest on one test file in a process of its own, with our plugin only, and give what it prints."""
    (folder / "test_it.py").write_text(test)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "reemote.testing.plugin", "-p", "no:cacheprovider", "-q", "-s", "."],
        cwd=folder, capture_output=True, text=True, check=False, timeout=60,
        env={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "HOME": str(folder), "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_plugin_is_registered() -> None:
    [point] = [point for point in entry_points(group="pytest11") if point.name == "reemote"]
    assert point.value == "reemote.testing.plugin"


def test_the_fixtures_exist(reemote_fake: Any, reemote_sandbox: Any) -> None:
    assert reemote_fake is Fake
    assert reemote_sandbox is sandbox


async def test_the_fake_fixture_makes_fleets(reemote_fake: Callable[..., Fake]) -> None:
    fake = reemote_fake("web1")
    fake.on("uptime", stdout="up")
    [response] = await execute(lambda: Shell(cmd="uptime"), inventory=fake.inventory, pool=fake)
    assert (response.host, response.value.stdout) == ("web1", "up")


async def test_the_sandbox_fixture_makes_hosts(reemote_sandbox: Callable[..., Sandbox]) -> None:
    async with reemote_sandbox("web1") as inventory:
        [response] = await execute(lambda: Shell(cmd="echo $((6 * 7))"), inventory=inventory)
    assert response.value.stdout == "42\n"


@pytest.mark.slow
def test_loading_the_plugin_loads_neither_pydantic_nor_asyncssh(tmp_path: Path) -> None:
    test = f"import sys\ndef test_it():\n    print('loaded:', {LOADED})\n"
    assert "loaded: []" in run_pytest(tmp_path, test)


@pytest.mark.slow
def test_a_fixture_loads_what_it_needs(tmp_path: Path) -> None:
    test = f"import sys\ndef test_it(reemote_fake):\n    reemote_fake('a')\n    print('loaded:', {LOADED})\n"
    assert "loaded: ['pydantic'" in run_pytest(tmp_path, test)


@pytest.mark.slow
def test_the_fixtures_are_documented(tmp_path: Path) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "reemote.testing.plugin", "-p", "no:cacheprovider", "--fixtures", "."],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
        env={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "HOME": str(tmp_path), "PATH": ""},
    ).stdout  # fmt: skip
    assert "Give the class of scripted fleets" in shown
    assert "Give the function that makes sandboxes" in shown
