"""What all commands for hosts share: passwords, users, privileges, the dry run, and what ``-v`` says."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from reemote.cli.watching import Output, Prediction, Steps, Watch
from reemote.core.events import EventsDropped, OutputLine, RunFinished, StepFinished, StepStarted
from reemote.core.response import Completed, Response, Responses
from tests.cli.conftest import Cli, Start, Terminal
from tests.programs import Fleet

Write = Callable[[str, str], Path]

KNOWN = """
    from reemote.system import Callback


    def known(context):
        item = context.inventory_item
        found = {name: getattr(item.authentication, name) for name in ("sudo_password", "su_password")}
        shown = {name: value and value.get_secret_value() for name, value in found.items()}
        return shown | {"user": item.connection.username}


    class Known:
        async def execute(self):
            yield Callback(callback=known)
    """
"""A deployment that answers with what the inventory has in the end."""


@pytest.fixture
def known(write: Write) -> Path:
    return write("known.py", KNOWN)


def change(inventory: Path, host: int, **keys: dict[str, str | None]) -> None:
    """Change what an inventory says of a host."""
    data = json.loads(inventory.read_text())
    for key, values in keys.items():
        data["hosts"][host].setdefault(key, {}).update(values)
    inventory.write_text(json.dumps(data))


# Passwords


@pytest.mark.slow
@pytest.mark.parametrize("typed", ["s3cr3t", " a'b\"c$ü ", "env:HOME"])
def test_a_password_is_asked_for_once(known: Path, inventory: Path, typed: str) -> None:
    change(inventory, 1, authentication={"sudo_password": "ours"})
    terminal = Terminal("run", known, "-i", inventory, "-K", "-o", "json")
    terminal.read(until="Password for sudo on 1 host: ")
    terminal.type(f"{typed}\n")
    written = terminal.read()
    terminal.end()

    answers = json.loads(written.partition("host: ")[2])
    assert [answer["value"]["sudo_password"] for answer in answers] == [f"pass:{typed}", "ours"]
    assert [answer["value"]["su_password"] for answer in answers] == [None, None]
    assert written.count("Password") == 1
    assert typed not in written.partition("[")[0]  # the terminal did not show it


@pytest.mark.slow
def test_both_passwords(known: Path, inventory: Path) -> None:
    terminal = Terminal("run", known, "-i", inventory, "-K", "--ask-su-pass", "-l", "server104")
    terminal.read(until="Password for sudo on 1 host: ")
    terminal.type("one\n")
    terminal.read(until="Password for su on 1 host: ")
    terminal.type("\n")
    written = terminal.read()
    terminal.end()

    assert '"sudo_password": "pass:one"' in written
    assert '"su_password": null' in written


@pytest.mark.slow
def test_nothing_runs_without_an_answer(known: Path, fleet: Fleet, inventory: Path) -> None:
    before = fleet.sandbox["server104"].connections
    for key, code, says in (("\x04", 2, "Error: no password was given"), ("\x03", 130, "Interrupted.")):
        terminal = Terminal("run", known, "-i", inventory, "-K", start_new_session=True)
        terminal.read(until="2 hosts: ")
        if code == 130:
            terminal.process.send_signal(signal.SIGINT)  # it is not the terminal's own process, which ^C is for
        else:
            terminal.type(key)
        assert terminal.end()[-1] == says
        assert terminal.process.returncode == code
    assert fleet.sandbox["server104"].connections == before


@pytest.mark.slow
def test_without_a_terminal_it_is_read_from_standard_input(start: Start, known: Path, inventory: Path) -> None:
    for text, code in (("from the pipe\n", 0), ("", 2)):
        process = start("run", known, "-i", inventory, "-K", "-o", "jsonl", stdin=-1, start_new_session=True)
        out, err = process.communicate(text, timeout=30)
        assert process.returncode == code
        assert out.count('"sudo_password":"pass:from the pipe"') == (2 if text else 0)
        assert err == ("" if text else "\nError: no password was given\n")


def test_nothing_is_asked_for_where_the_inventory_knows(cli: Cli, known: Path, inventory: Path) -> None:
    for host in (0, 1):
        change(inventory, host, authentication={"sudo_password": "ours"})
    done = cli("run", known, "-i", inventory, "-K")

    assert done.code == 0
    assert done.err == "The inventory has a sudo password for each host: none is asked for.\n"


# Users and privileges


def test_user_for_hosts_of_which_the_inventory_names_none(cli: Cli, known: Path, inventory: Path) -> None:
    change(inventory, 1, connection={"username": None})
    done = cli("run", known, "-i", inventory, "-u", "user", "-o", "json")
    assert [response["value"]["user"] for response in json.loads(done.out)] == ["user", "user"]
    done = cli("shell", "-i", inventory, "-u", "nobody", "-o", "json", "true")
    assert [response["value"] for response in json.loads(done.out)][1] == "PermissionDenied"
    assert done.code == 4


@pytest.mark.parametrize("command", ["shell", "put", "get", "sync", "sftp stat --path x", "host shell --cmd x"])
def test_privileges(cli: Cli, inventory: Path, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "motd").write_text("x")
    rest = {"shell": ["true"], "put": ["motd", "x"], "get": ["motd", "{host}"], "sync": [".", "x"]}.get(command, [])
    for options, says in (
        (["-b", "--su"], "--sudo and --su exclude each other"),
        (["-U", "x"], "--sudo-user needs --sudo"),
        (["--su", "-K"], "--su has a password of its own: --ask-su-pass"),
        (["--sudo", "--sudo-user=a b"], "Invalid value for '--sudo-user': a user's name has no spaces"),
    ):
        done = cli(*command.split(), *options, "-i", inventory, *rest)
        assert (done.code, done.out) == (2, "")
        assert says in done.err


# The dry run

CHANGE = """
    from reemote.core.operation import Effect
    from reemote.core.remote import Remote
    from reemote.core.response import Response
    from reemote.host import Shell

    DIFF = "--- motd\\n+++ motd\\n@@ -1 +1 @@\\n-old\\x1b[2J\\n+new\\n"


    class Motd(Remote):
        effect = Effect.ENSURES

        async def perform(self, host):
            return Response(value=None, changed=True)

        async def predict(self, host):
            return Response(value=None, changed=True, diff=DIFF)


    class Wrapped:
        async def execute(self):
            yield Motd(name="the motd")


    class Change:
        async def execute(self):
            yield Shell(cmd="true", name="restart")
            yield Wrapped()
    """


def test_a_dry_run_says_what_would_change(cli: Cli, write: Write, inventory: Path) -> None:
    file = write("change.py", CHANGE)
    left_out = "Left out, since only a real run can tell what they do:\n    restart: server[104-105]\n"

    for option in ("-C", "--check", "--dry-run"):
        done = cli("run", f"{file}:Change", "-i", inventory, option)
        assert done == (0, "server[104-105] (2 hosts)  would change\n", left_out)
    done = cli("run", f"{file}:Change", "-i", inventory, "-CD")
    assert done == (
        0,
        (
            "server[104-105] (2 hosts)  would change\n    the motd:\n"
            "    --- motd\n    +++ motd\n    @@ -1 +1 @@\n    -old\\x1b[2J\n    +new\n"
        ),
        left_out,
    )
    done = cli("run", f"{file}:Change", "-i", inventory, "-CD", "-o", "json")
    assert [response["changed"] for response in json.loads(done.out)] == [True, True]
    assert "\\u001b[2J" in done.out
    assert cli("run", f"{file}:Change", "-i", inventory).out == "server[104-105] (2 hosts)  changed\n"
    assert cli("run", f"{file}:Change", "-i", inventory, "-D").code == 2


def test_a_dry_run_of_a_transfer(
    cli: Cli, inventory: Path, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "motd").write_text("x")
    for name in ("server104", "server105"):
        (fleet.home(name) / "motd").write_text("old\n")
    check = ("-i", inventory, "-C")

    assert cli("put", *check, "site/motd", "dry").out == "server[104-105] (2 hosts)  would change\n"
    assert cli("sync", *check, "site", "www").out == (
        "server[104-105] (2 hosts)  dry run: added 1, changed 0, removed 0\n"
    )
    assert cli("get", *check, "motd", "made/{host}/").out == "server[104-105] (2 hosts)  would change\n"
    assert not (tmp_path / "made").exists()
    for name in ("dry", "www"):
        assert not (fleet.home("server104") / name).exists()


# What -v says

STEPS = """
    from reemote.host import Shell

    class Part:
        async def execute(self):
            yield Shell(cmd="true")
            yield Shell(cmd="false", name="fails")

    class Steps:
        async def execute(self):
            yield Shell(cmd="echo '\\x1b[2J'\\nexit 3")
            yield Part()
            yield Shell(cmd="exit 1", check=True, name="bad\\x1bname")
    """


def test_steps(cli: Cli, write: Write, inventory: Path) -> None:
    file = write("steps.py", STEPS)
    done = cli("run", f"{file}:Steps", "-i", inventory, "-l", "server104", "-v")

    assert done.code == 3
    assert re.sub(r"\d+\.\d\d s", "0.00 s", done.err).splitlines()[:6] == [
        "server104  Shell  changed, exit status 3  0.00 s  echo '\\x1b[2J'…",
        "server104  Part > Shell  changed  0.00 s  true",
        "server104  Part > fails  changed, exit status 1  0.00 s  false",
        "server104  Part  changed, exit status 1  0.00 s",
        "server104  bad\\x1bname  failed CommandFailed  0.00 s  exit 1",
        "server104  Steps  failed CommandFailed  0.00 s",
    ]
    assert "server104  Shell  changed  " in cli("shell", "-i", inventory, "-l", "web", "-v", "true").err


def test_a_long_command_is_cut(cli: Cli, inventory: Path) -> None:
    line = cli("shell", "-i", inventory, "-l", "web", "-v", f"true {'x' * 500}").err

    assert line.endswith(f"  true {'x' * 54}…\n")


def test_steps_that_nobody_was_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    watch, done = Watch([Steps(dry_run=False)]), Response({"host": "a", "value": 1, "changed": False, "error": False})
    for event in (
        StepStarted(host="a", step=1, parent=None, name="Deploy", operation=None),
        EventsDropped(number=3),
        StepStarted(host="a", step=3, parent=1, name="Late", operation=None),
        StepFinished(host="a", step=3, name="Late", response=done, seconds=1),
        StepFinished(host="a", step=2, name="Lost", response=None, seconds=1),
    ):
        watch(event)
    assert watch.missed == 1
    watch(StepFinished(host="a", step=1, name="Deploy", response=done, seconds=2))
    watch(RunFinished(responses=Responses([done]), seconds=2))

    assert (watch.missed, watch.responses, watch.fault) == (0, [done], None)
    assert capsys.readouterr().err.splitlines() == [
        "a  Late  ok  1.00 s", "a  Lost  not done  1.00 s", "a  Deploy  ok  2.00 s",
    ]  # fmt: skip


def test_a_bug_in_what_shows_events_costs_no_response() -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError

    watch, told = Watch([broken, Prediction()]), Responses([Response(host="a", value=1, changed=False, error=False)])
    watch(OutputLine(host="a", step=1, stream="stdout", line="x"))
    watch(RunFinished(responses=told, seconds=1))

    assert isinstance(watch.fault, ZeroDivisionError)
    assert watch.responses is told


def test_a_diff_is_kept_once() -> None:
    prediction, response = Prediction(), Response({"host": "a", "changed": True, "error": False, "diff": "+x\n"})
    for name in ("Write", "Deploy"):
        prediction(StepFinished(host="a", step=1, name=name, response=response, seconds=1))

    assert prediction.diffs == {"a": [("Write", "+x\n")]}
    assert list(prediction.notes()) == []


# The output of a single host


def test_an_output_that_was_cut_is_not_taken_for_whole(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    output, record = Output(), Completed(command="x", stdout=b"begin\xff ... end", stderr=b"problem")
    assert output.finish(record)
    assert tuple(capfdbinary.readouterr()) == (b"begin\xff ... end", b"problem")
    record.update(truncated=True, stdout_size=10**9, stderr_size=7)

    assert not output.finish(record)
    out, err = capfdbinary.readouterr()
    assert out == b"begin\xff ... end"
    assert err.startswith(b"problemOf 1,000,000,007 bytes of output the middle is left out: ")


def test_lines_that_a_terminal_cannot_take_are_counted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    output = Output()
    for line, complete in (("a\x1b", False), ("b", True), ("c", True)):
        output(OutputLine(host="a", step=1, stream="stdout", line=line, complete=complete))
    output(OutputLine(host="a", step=1, stream="stderr", line="comes at the end"))
    output(EventsDropped(number=1234))

    assert output.is_live
    out, err = capsys.readouterr()
    assert out == "a\\x1bb\nc\n"
    assert err == "(about 1,234 lines came too fast to be shown here; a pipe or a file gets them all)\n"
