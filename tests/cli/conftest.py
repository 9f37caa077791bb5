"""What the tests of the command line share: hosts, their inventory, and ways to run commands."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest

from reemote.cli.main import main
from tests.programs import Fleet, nothing_listens


class Result(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str


class Cli(Protocol):
    """The type of the fixture ``cli``."""

    def __call__(self, *arguments: str | Path) -> Result:
        """Run ``reemote`` with these arguments."""
        ...


class Start(Protocol):
    """The type of the fixture ``start``."""

    def __call__(self, *arguments: str | Path, **options: object) -> subprocess.Popen[str]:
        """Start ``reemote`` with these arguments."""
        ...


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """Two hosts, shared by the tests of a module: leave nothing running there."""
    with Fleet("server104", "server105") as hosts:
        yield hosts


@pytest.fixture
def inventory(fleet: Fleet, tmp_path: Path) -> Path:
    """The inventory of the two hosts; each is in a group of its own."""
    return fleet.write(tmp_path, groups={"server104": ["web"], "server105": ["db"]})


@pytest.fixture
def closed_port() -> Iterator[int]:
    with nothing_listens() as port:
        yield port


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Write a file into the test's directory."""

    def write_file(name: str, text: str) -> Path:
        file = tmp_path / name
        file.write_text(textwrap.dedent(text))
        return file

    return write_file


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """Run ``reemote`` in this process."""
    for name in ("REEMOTE_INVENTORY", "FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str | Path) -> Result:
        path, modules, handlers = list(sys.path), set(sys.modules), list(logging.root.handlers)
        capfd.readouterr()
        logging.root.handlers.clear()  # those of pytest, which would keep ours from being set
        try:
            with pytest.raises(SystemExit) as caught:
                main([str(argument) for argument in arguments])
        finally:
            sys.path[:] = path
            logging.root.handlers[:] = handlers
            for name in set(sys.modules) - modules:
                if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
                    del sys.modules[name]
        code = caught.value.code
        assert isinstance(code, int)
        return Result(code, *capfd.readouterr())

    return run


@pytest.fixture
def start() -> Iterator[Start]:
    """Start ``reemote`` in a process of its own; it is killed at the end if it still runs."""
    with contextlib.ExitStack() as stack:

        def run(*arguments: str | Path, **options: object) -> subprocess.Popen[str]:
            command = [sys.executable, "-W", "error", "-m", "reemote", *map(str, arguments)]
            settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
            process: subprocess.Popen[str] = stack.enter_context(subprocess.Popen(command, **settings))  # type: ignore[call-overload]
            stack.callback(_kill, process)
            return process

        yield run


def _kill(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()


def eventually(condition: Callable[[], object], seconds: float = 15) -> None:
    """Wait for what nothing announces."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def plain(**more: str) -> dict[str, str]:
    """The environment, without what decides on colours."""
    return {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")} | more


class Terminal:
    """A terminal, and reemote on it."""

    def __init__(self, *arguments: object, columns: int = 80, lines: int = 24, **options: Any) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        command = [sys.executable, "-W", "error", "-m", "reemote", *map(str, arguments)]
        streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "env": plain(TERM="xterm")}
        self.process = subprocess.Popen(command, **{**streams, **options})
        os.close(theirs)
        self.written = ""

    def type(self, text: str) -> None:
        """Type something."""
        os.write(self._ours, text.encode())

    def read(self, until: str | None = None) -> str:
        """Read what is written, to the end, or until *until* is there."""
        with contextlib.suppress(OSError):  # so the end of a terminal is told on Linux
            while until is None or until not in self.written:
                data = os.read(self._ours, 65536)
                if not data:
                    break
                self.written += data.decode()
        assert until is None or until in self.written
        return self.written

    def end(self) -> list[str]:
        """Read the rest, and give the lines of the last picture and those below it."""
        self.read()
        os.close(self._ours)
        self.process.wait(30)
        last = self.written.replace("\r\n", "\n").rpartition("\x1b[2K")[2]
        return [line.rstrip() for line in re.sub("\x1b\\[[?0-9;]*[a-zA-Z]|\r", "", last).splitlines()]
