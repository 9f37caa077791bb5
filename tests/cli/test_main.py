"""The command itself: help, version, what it loads, and how it speaks of mistakes."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

from reemote.cli import main as cli_main
from tests.cli.conftest import Cli, Start


def test_help_lists_the_commands_and_exit_codes(cli: Cli) -> None:
    done = cli("--help")

    assert (done.code, done.err) == (0, "")
    for word in ("demo", "run", "sandbox", "3 some", "130"):
        assert word in done.out


@pytest.mark.parametrize("command", cli_main.COMMANDS)
def test_each_command_has_help(cli: Cli, command: str) -> None:
    done = cli(command, "-h")

    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("Usage: ")
    assert "-h, --help" in done.out


def test_no_command_shows_the_help(cli: Cli) -> None:
    done = cli()

    assert done.code == 2
    assert "Commands:" in done.err


def test_version(cli: Cli) -> None:
    done = cli("--version")

    assert (done.code, done.err) == (0, "")
    assert done.out.split()[-1] == importlib.metadata.version("reemote")


def test_unknown_command_names_those_that_there_are(cli: Cli) -> None:
    done = cli("rnu")

    assert (done.code, done.out) == (2, "")
    assert "there is no command 'rnu': there are demo, run, shell, sandbox" in done.err


def test_unknown_option(cli: Cli) -> None:
    done = cli("run", "--nope")

    assert (done.code, done.out) == (2, "")
    assert "--nope" in done.err


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["nope"]])
def test_what_is_not_needed_is_not_loaded(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from reemote.cli.main import main\n"
        "try:\n"
        f"    main({arguments})\n"
        "except SystemExit:\n"
        "    print(sorted({'asyncssh', 'pydantic', 'rich', 'reemote.core'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "[]"


def test_an_error_of_ours_is_told_with_its_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(cli_main.reemote, "main", broken)
    done = cli("demo")

    assert (done.code, done.out) == (1, "")
    assert "ZeroDivisionError: oops" in done.err
    assert "Please report it" in done.err


def test_module_is_the_command(start: Start) -> None:
    out, err = start("--version").communicate(timeout=30)

    assert out.split()[-1] == importlib.metadata.version("reemote")
    assert err == ""
