"""``reemote shell``: what it runs, what it writes, and how it ends."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest

from reemote.cli import main as cli_main
from tests.cli.conftest import Cli, Start, Terminal, eventually, plain
from tests.leaks import alive
from tests.programs import ROOT, Fleet

ONE = ("-l", "server104")


def test_hosts_that_write_the_same_are_one_group(cli: Cli, inventory: Path) -> None:
    assert cli("shell", "-i", inventory, "--", "echo", "hello;", "echo problem >&2") == (
        0,
        "server[104-105] (2 hosts)  changed\n    hello\n    problem\n",
        "",
    )


def test_words_are_joined_as_by_ssh(cli: Cli, inventory: Path) -> None:
    assert cli("shell", "-i", inventory, *ONE, "--", "printf 'a b\\nc d\\n' | wc -l").out == "2\n"
    # What follows the command's first word is the command's, options and all.
    assert cli("shell", "-i", inventory, *ONE, "printf", "%s,", "-l", "--limit", "'x", "y'").out == "-l,--limit,x y,"
    assert cli("shell", "-i", inventory, *ONE, "--", "--nope").code == 3


def test_output_of_one_host_is_exact(start: Start, inventory: Path) -> None:
    command = r"printf 'a\377\r\nb\033[2J'; printf 'problem\000' >&2"
    process: subprocess.Popen[Any] = start("shell", "-i", inventory, *ONE, "--", command, text=False)
    out, err = process.communicate(timeout=30)

    assert (out, err) == (b"a\xff\r\nb\x1b[2J", b"problem\0")
    assert process.returncode == 0


def test_a_status_other_than_0_is_a_failure(cli: Cli, inventory: Path) -> None:
    assert cli("shell", "-i", inventory, *ONE, "--", "echo x; exit 4") == (3, "x\n", "server104: exit status 4\n")
    done = cli("shell", "-i", inventory, "--", "kill -KILL $$")
    assert done == (
        3,
        "server[104-105] (2 hosts)  changed  ended by signal KILL\n",
        "The command did not succeed on 2 of 2 hosts:\n    ended by signal KILL: server[104-105]\n",
    )
    done = cli("shell", "-i", inventory, "-o", "json", "--", "exit 1")
    assert done.code == 3
    assert [response["error"] for response in json.loads(done.out)] == [False, False]


def test_a_host_that_is_down(cli: Cli, fleet: Fleet, tmp_path: Path, closed_port: int) -> None:
    (tmp_path / "down").mkdir()
    down = fleet.write(tmp_path / "down", ("server105", closed_port))
    where = f"nothing listens at server105 (127.0.0.1:{closed_port})"

    assert cli("shell", "-i", down, "-l", "server105", "true") == (
        4, "", f"server105: ConnectionRefusedError: {where}\n",
    )  # fmt: skip
    done = cli("shell", "-i", down, "false")
    assert done.code == 4
    assert done.out.splitlines()[0] == "server104  changed  exit status 1"


def test_cwd_and_env(cli: Cli, inventory: Path) -> None:
    options = ("--cwd", "/", "--env", "A=b c", "--env", "B=x=y")

    assert cli("shell", "-i", inventory, *ONE, *options, "--", "pwd; echo $A $B").out == "/\nb c x=y\n"


def test_stdin(cli: Cli, start: Start, inventory: Path, tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(b"a\0\xff")

    assert cli("shell", "-i", inventory, *ONE, "cat") == (0, "", "")  # nothing by default
    assert cli("shell", "-i", inventory, "--stdin", tmp_path / "input", "wc", "-c").out.endswith("    3\n")
    process = start("shell", "-i", inventory, "--stdin", "-", "--", "cat", stdin=subprocess.PIPE)
    out, _ = process.communicate("from here\n", timeout=30)
    assert out == "server[104-105] (2 hosts)  changed\n    from here\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Missing argument '[--] CMD...'"),
        ([""], "Invalid value for 'CMD': String should have at least 1 character"),
        (["--env", "A", "true"], "Invalid value for '--env': 'A' has no '=': write NAME=VALUE"),
        (["--env", "1A=x", "true"], "Invalid value for '--env': '1A' is no name for an environment variable"),
        (["--cwd", "", "true"], None),
        (["--sudo", "--su", "true"], "Error: --sudo and --su exclude each other"),
        (["-U", "www", "true"], "Error: --sudo-user needs --sudo"),
        (["-b", "-U", "-www", "true"], "Invalid value for '--sudo-user': a user's name has no spaces"),
        (["--stdin", "/no/such/file", "true"], "Error: '/no/such/file' on this machine: No such file or directory"),
        (["-D", "true"], "Error: --diff shows what --dry-run would change: give both"),
        (["-f", "0", "true"], "'-f' / '--forks'"),
    ],
)
def test_wrong_usage(cli: Cli, inventory: Path, arguments: list[str], says: str | None) -> None:
    done = cli("shell", "-i", inventory, *arguments)

    assert done.code == (2 if says else 0)
    assert (says or "") in done.err


def test_privileges_reach_the_host(cli: Cli, inventory: Path) -> None:
    """There is no sudo for the user of these hosts, or it does not ask; either way it is sudo that answers."""
    done = cli("shell", "-i", inventory, *ONE, "-C", "-b", "-U", "nobody", "-o", "json", "true")

    assert (done.code, json.loads(done.out)[0]["skipped"]) == (0, True)


def test_time_limits(cli: Cli, inventory: Path) -> None:
    for option, kind in (
        ("--timeout", "Cancelled"),
        ("--host-timeout", "Cancelled"),
        ("--step-timeout", "CommandTimeout"),
    ):
        done = cli("shell", "-i", inventory, option, "0.3", "-o", "json", "sleep 300")
        assert done.code == 3
        assert [response["value"] for response in json.loads(done.out)] == [kind, kind]


def test_dry_run(cli: Cli, inventory: Path, fleet: Fleet) -> None:
    (fleet.home("server104") / "new").unlink(missing_ok=True)

    assert cli("shell", "-i", inventory, "--dry-run", "touch new") == (
        0,
        "server[104-105] (2 hosts)  skipped\n",
        "Left out, since only a real run can tell what they do:\n    Shell: server[104-105]\n",
    )
    assert not (fleet.home("server104") / "new").exists()


# On a terminal


@pytest.mark.slow
def test_output_of_one_host_shows_as_it_comes(inventory: Path, fleet: Fleet) -> None:
    go = fleet.home("server104") / "go"
    go.unlink(missing_ok=True)
    command = r"printf 'one\033[2J\n'; until [ -e go ]; do sleep 0.05; done; printf 'two\n' >&2; printf three; exit 5"
    terminal = Terminal("shell", "-i", inventory, *ONE, "--", command)
    assert terminal.read(until="one").strip() == "one\\x1b[2J"
    go.touch()

    assert terminal.end() == ["one\\x1b[2J", "two", "three", "server104: exit status 5"]
    assert terminal.process.returncode == 3
    assert "\x1b" not in terminal.written


@pytest.mark.slow
def test_output_of_one_host_into_a_pipe_with_progress_on_the_terminal(inventory: Path) -> None:
    terminal = Terminal("shell", "-i", inventory, *ONE, "--", "printf 'a\\377'; echo b >&2", stdout=subprocess.PIPE)
    assert terminal.process.stdout is not None
    with terminal.process.stdout as stdout:
        assert stdout.read() == b"a\xff"

    assert terminal.end() == []
    assert "b\r\n" in terminal.written
    assert "server104 " in terminal.written


@pytest.mark.slow
@pytest.mark.parametrize("columns", [30, 80, 200])
def test_live_table(inventory: Path, fleet: Fleet, columns: int) -> None:
    go = fleet.home("server104") / "go"
    go.unlink(missing_ok=True)
    command = "echo waiting for it; [ $(basename $PWD) = server104 ] || exit 0; until [ -e go ]; do sleep 0.05; done"
    terminal = Terminal("shell", "-i", inventory, "--", f"cd; {command}", columns=columns)
    terminal.read(until="2 hosts: ")
    go.touch()
    lines = terminal.end()

    assert lines[0].startswith("2 hosts: 2 changed")
    assert lines[1:] == ["server[104-105] (2 hosts)  changed", "    waiting for it"]
    assert terminal.process.returncode == 0


# Interruption


SLEEP = "echo $$ > pid.tmp; mv pid.tmp pid; echo begun; exec sleep 300"


@pytest.mark.slow
def test_interrupted_on_a_terminal(fleet: Fleet, inventory: Path) -> None:
    files = [fleet.home(name) / "pid" for name in ("server104", "server105")]
    for file in files:
        file.unlink(missing_ok=True)
    terminal = Terminal("shell", "-i", inventory, "--", SLEEP)
    eventually(lambda: all(file.exists() for file in files))
    pids = [int(file.read_text()) for file in files]
    terminal.process.send_signal(signal.SIGINT)
    lines = terminal.end()

    assert terminal.process.returncode == 130
    assert not any(map(alive, pids))
    assert lines[0].startswith("2 hosts: 2 cancelled")
    assert lines[1].endswith("(2 hosts)  failed  Cancelled")
    assert lines[-1] == "Interrupted."


@pytest.mark.slow
def test_interrupted_with_json_still_answers(fleet: Fleet, start: Start, inventory: Path) -> None:
    file = fleet.home("server104") / "pid"
    file.unlink(missing_ok=True)
    process = start("shell", "-i", inventory, *ONE, "-o", "json", "--", SLEEP, env=plain())
    eventually(file.exists)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=15)

    assert process.returncode == 130
    [response] = json.loads(out)
    assert (response["value"], response["outcome"]) == ("Cancelled", "unknown")
    assert response["completed"]["stdout"] == "begun\n"


# The documentation


def test_table_of_options() -> None:
    sections = re.split(r"^## ", (ROOT / "docs" / "command-line.md").read_text(), flags=re.MULTILINE)
    [section] = [text for text in sections if text.startswith("reemote shell\n")]
    rows = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    ours, shared = (
        {option for each in command.params for option in each.opts if option.startswith("-")}
        for name in ("shell", "run")
        if (command := cli_main.reemote.get_command(click.Context(cli_main.reemote), name))
    )

    assert {option for row in rows for option in re.findall(r"(?<!\w)--?[a-zA-Z-]+", row)} == ours - shared
    assert shared - ours == {"--strict"}
