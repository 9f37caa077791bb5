"""What all tests share."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Generator
from pathlib import Path

import pytest

# Who runs the tests in the background may have had these ignored, and programs that tests start would inherit that.
for _number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number is signal.SIGINT else signal.SIG_DFL)

pytest_plugins = ["tests.openssh_fixtures", "tests.leaks", "tests.lab.fixtures"]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Let nobody look for garbage meanwhile: what is collected stays, and is more and more to look through."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


LONG = ("test_schemathesis", "test_canaries", "test_pages")
"""Modules that run in one piece for more than a minute: begun last, they would run on when all others are done."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest."""
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory of its own for each test: no keys, no known hosts, no agent, no settings."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    for name in [name for name in os.environ if name.startswith(("XDG_", "REEMOTE_", "SSH_"))]:
        monkeypatch.delenv(name)
    return home
