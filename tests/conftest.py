"""What all tests share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# Who runs the tests in the background may have had these ignored, and programs that tests start would inherit that.
for _number, _handler in {
    signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler, signal.SIGQUIT: signal.SIG_DFL
}.items():  # fmt: skip
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

pytest_plugins = ["tests.openssh_fixtures", "tests.leaks", "tests.lab.fixtures"]


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory of its own for each test: no keys, no known hosts, no agent, no settings."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    for name in [name for name in os.environ if name.startswith(("XDG_", "REEMOTE_", "SSH_"))]:
        monkeypatch.delenv(name)
    return home
