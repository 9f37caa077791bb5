"""``reemote run``: its output, its exit codes, its messages, and its interruption."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli, Start, eventually, plain
from tests.leaks import alive
from tests.programs import Fleet

Write = Callable[[str, str], Path]

HELLO = """
    from reemote.host import Shell

    class Hello:
        async def execute(self):
            yield Shell(cmd="echo Hello; echo careful >&2")
    """

SLEEP = """
    from reemote.host import Shell

    class Sleep:
        async def execute(self):
            yield Shell(cmd="echo $$ > pid.tmp; mv pid.tmp pid; exec sleep 300")
    """


@pytest.fixture
def hello(write: Write) -> Path:
    return write("hello.py", HELLO)


@pytest.fixture
def down(fleet: Fleet, tmp_path: Path, closed_port: int) -> Path:
    """An inventory in which server105 is down."""
    (tmp_path / "down").mkdir()
    return fleet.write(tmp_path / "down", ("server105", closed_port))


# Output


def test_table(cli: Cli, hello: Path, inventory: Path) -> None:
    done = cli("run", hello, "-i", inventory)

    assert done == (
        0,
        "server[104-105] (2 hosts)  changed\n    Hello\n    careful\n",
        "",
    )


def test_json_is_what_the_python_program_gets(cli: Cli, hello: Path, inventory: Path) -> None:
    done = cli("run", hello, "-i", inventory, "-o", "json")

    assert (done.code, done.err) == (0, "")
    responses = json.loads(done.out)
    assert [list(response) for response in responses] == 2 * [["host", "value", "changed", "error"]]
    assert [response["host"] for response in responses] == ["server104", "server105"]
    assert responses[0]["value"]["stderr"] == "careful\n"


def test_jsonl_has_a_line_for_each_host(cli: Cli, hello: Path, inventory: Path) -> None:
    whole = cli("run", hello, "-i", inventory, "-o", "json")
    lines = cli("run", hello, "-i", inventory, "-o", "jsonl")

    assert [json.loads(line) for line in lines.out.splitlines()] == json.loads(whole.out)


def test_values_of_all_kinds_in_a_table(cli: Cli, write: Write, inventory: Path) -> None:
    file = write(
        "values.py",
        """
        from reemote.host import Shell
        from reemote.system import Return

        class Text:
            async def execute(self):
                yield Return(value="one\\ntwo")

        class Nothing:
            async def execute(self):
                yield Return()

        class Data:
            async def execute(self):
                yield Return(value={"a": [1, None]})

        class Status:
            async def execute(self):
                yield Shell(cmd="printf no-newline; echo problem >&2; exit 3")

        class Signal:
            async def execute(self):
                yield Shell(cmd="kill -KILL $$")
        """,
    )
    blocks = {
        "Text": "server104  ok\n    one\n    two\n",
        "Nothing": "server104  ok\n",
        "Data": 'server104  ok\n    {\n      "a": [\n        1,\n        null\n      ]\n    }\n',
        "Status": "server104  changed  exit status 3\n    no-newline\n    problem\n",
        "Signal": "server104  changed  ended by signal KILL\n",
    }
    for name, block in blocks.items():
        done = cli("run", f"{file}:{name}", "-i", inventory, "-l", "server104")
        assert (done.code, done.out) == (0, block)
        note = "The last command did not succeed on 1 of 1 hosts (a failure with --strict):\n"
        ends = {"Status": "    exit status 3: server104\n", "Signal": "    ended by signal KILL: server104\n"}
        assert done.err == (note + ends[name] if name in ends else "")


HOSTILE = "\x1b[2J\x1b]52;c;ZXZpbA==\x07\r\u202eevil\u2028\x85\nserver999  ok"
SHOWN = "\\x1b[2J\\x1b]52;c;ZXZpbA==\\x07\\r\\u202eevil\\u2028\\x85"


def test_what_a_hostile_host_writes_cannot_drive_the_terminal(cli: Cli, write: Write, inventory: Path) -> None:
    file = write(
        "hostile.py",
        f"""
        from reemote.host import Shell
        from reemote.system import Return

        HOSTILE = {HOSTILE!r}

        class Output:
            async def execute(self):
                yield Shell(cmd="cat; cat >&2 <<END\\n" + HOSTILE + "\\nEND", stdin=HOSTILE)

        class Data:
            async def execute(self):
                response = yield Shell(cmd="cat", stdin=HOSTILE)
                yield Return(value={{response.value.stdout: [response.value.stdout]}})

        class Detail:
            async def execute(self):
                yield Shell(cmd="cat >&2; exit 1", stdin=HOSTILE.replace("\\n", ""), check=True)

        class Bug:
            async def execute(self):
                response = yield Shell(cmd="cat", stdin=HOSTILE)
                raise ValueError(response.value.stdout)
        """,
    )
    options = ("-i", inventory, "-l", "server104")

    output = cli("run", f"{file}:Output", *options)
    assert output.out == "server104  changed\n" + 2 * f"    {SHOWN}\n    server999  ok\n"
    exact = json.loads(cli("run", f"{file}:Output", *options, "-o", "json").out)
    assert exact[0]["value"]["stdout"] == HOSTILE
    for name in ("Data", "Detail", "Bug"):
        done = cli("run", f"{file}:{name}", *options)
        for text in (done.out, done.err):
            assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2028]", text)
            # A host cannot make up the line of another one either.
            assert not re.search("^server999", text, re.MULTILINE) or name == "Bug"


# Choosing hosts, and how the run goes


def test_limit(cli: Cli, hello: Path, inventory: Path) -> None:
    for limit, hosts in {
        "db": ["server105"],
        "*,!server105": ["server104"],
        "server10?,&web": ["server104"],
        "db,web": ["server104", "server105"],
    }.items():
        done = cli("run", hello, "-i", inventory, "--limit", limit, "-o", "json")
        assert [response["host"] for response in json.loads(done.out)] == hosts


@pytest.mark.parametrize("limit", ["nosuch", "x*", "web,!server104", ""])
def test_limit_that_matches_nothing(cli: Cli, hello: Path, inventory: Path, limit: str) -> None:
    done = cli("run", hello, "-i", inventory, "-l", limit)

    assert (done.code, done.out) == (5, "")
    assert done.err.startswith("Error: the limit ")
    assert done.err.count("\n") == 1


def test_forks(cli: Cli, write: Write, inventory: Path) -> None:
    file = write(
        "forks.py",
        """
        from reemote.host import Shell
        from reemote.system import Callback, Return

        running, most = 0, 0

        class Count:
            async def execute(self):
                global running, most
                running += 1
                most = max(most, running)
                yield Shell(cmd="true")
                running -= 1
                yield Return(value=most)
        """,
    )
    done = cli("run", file, "-i", inventory, "--forks", "1", "-o", "json")
    assert [response["value"] for response in json.loads(done.out)] == [1, 1]
    done = cli("run", file, "-i", inventory, "-o", "json")
    assert [response["value"] for response in json.loads(done.out)] == [2, 2]


def test_a_step_that_fails_ends_the_host_with_strict_only(cli: Cli, write: Write, inventory: Path) -> None:
    file = write(
        "strict.py",
        """
        from reemote.host import Shell

        class Two:
            async def execute(self):
                yield Shell(cmd="echo no such thing >&2; exit 4")
                yield Shell(cmd="echo went on")
        """,
    )
    lax = cli("run", file, "-i", inventory, "-l", "web")
    assert lax == (0, "server104  changed\n    went on\n", "")

    strict = cli("run", file, "-i", inventory, "-l", "web", "--strict")
    assert strict.code == 3
    assert strict.out == (
        "server104  failed  CommandFailed\n"
        "    exit status 4 of 'echo no such thing >&2; exit 4': no such thing\n"
        "    no such thing\n"
    )
    assert strict.err == "1 of 1 hosts failed:\n    CommandFailed: server104\n"


def test_timeout_ends_what_runs(cli: Cli, write: Write, fleet: Fleet, inventory: Path) -> None:
    file = write("sleep.py", SLEEP)
    done = cli("run", file, "-i", inventory, "-l", "web", "--timeout", "1")

    assert done.code == 3
    assert done.out.startswith("server104  failed  Cancelled\n")
    assert "It may have taken effect on the host." in done.out
    assert done.err == "1 of 1 hosts failed:\n    Cancelled: server104\n"
    pid = int((fleet.home("server104") / "pid").read_text())
    eventually(lambda: not alive(pid))


def test_no_host_has_anything_to_run(cli: Cli, write: Write, inventory: Path) -> None:
    file = write(
        "skip.py",
        """
        from reemote.host import Shell

        class Skip:
            async def execute(self):
                yield Shell(cmd="true", group="nowhere")
        """,
    )
    assert cli("run", file, "-i", inventory) == (0, "", "No host had anything to run.\n")
    assert cli("run", file, "-i", inventory, "-o", "json").out == "[]\n"


def test_host_keys(cli: Cli, hello: Path, inventory: Path, home: Path) -> None:
    data = json.loads(inventory.read_text())
    for item in data["hosts"]:
        del item["connection"]["known_hosts"]
    inventory.write_text(json.dumps(data))

    strict = cli("run", hello, "-i", inventory)
    assert strict.code == 4
    assert "server104  failed  HostKeyNotVerifiable\n" in strict.out

    assert cli("run", hello, "-i", inventory, "--host-keys", "accept-new").code == 0
    assert [path.name for path in home.rglob("known_hosts")] == ["known_hosts"]
    assert cli("run", hello, "-i", inventory).code == 0

    unchecked = cli("run", hello, "-i", inventory, "--host-keys", "off")
    assert unchecked.code == 0
    assert unchecked.err == "reemote: host keys are not checked on 2 of the hosts: server104, server105\n"

    # What the inventory says goes before the option.
    for item in data["hosts"]:
        item["connection"] |= {"host_keys": "strict", "known_hosts": str(inventory)}
    inventory.write_text(json.dumps(data))
    assert cli("run", hello, "-i", inventory, "--host-keys", "off").code == 4


def test_inventory_from_the_environment(
    cli: Cli, hello: Path, inventory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REEMOTE_INVENTORY", str(inventory))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monkeypatch, "delenv", lambda *_, **__: None)
        assert len(cli("run", hello, "-o", "jsonl").out.splitlines()) == 2


# The file


@pytest.fixture
def several(write: Write) -> Path:
    return write(
        "several.py",
        """
        from reemote import Remote
        from reemote.host import Shell

        class One:
            async def execute(self):
                yield Shell(cmd="echo one")

        class Two(One):
            pass

        class _Base(One):
            pass

        Again = Two

        class Needs(Remote):
            who: str

            async def execute(self):
                yield Shell(cmd=f"echo {self.who}")

        class NeedsToo:
            def __init__(self, x): ...

            async def execute(self):
                yield Needs(who="me")

        class Broken:
            def __init__(self):
                self.y = 1 / 0

            async def execute(self):
                yield

        class Fine(NeedsToo):
            def __init__(self): ...

        class Plain: ...
        """,
    )


def test_class_by_name(cli: Cli, several: Path, inventory: Path) -> None:
    assert "    one\n" in cli("run", f"{several}:Two", "-i", inventory).out
    assert "    me\n" in cli("run", f"{several}:Fine", "-i", inventory).out


def test_arguments_of_the_class(cli: Cli, write: Write, inventory: Path) -> None:
    file = write(
        "release.py",
        """
        from reemote.host import Shell
        from reemote.core.remote import Remote
        from reemote.system import Return

        class Release(Remote):
            version: str
            copies: int = 1

            async def execute(self):
                yield Return(value=[self.version, self.copies])

        class Plain:
            def __init__(self, text="none"):
                self.text = text

            async def execute(self):
                yield Return(value=self.text)
        """,
    )

    def answer(*arguments: str) -> Any:
        done = cli("run", f"{file}:{arguments[0]}", *arguments[1:], "-i", inventory, "-l", "web", "-o", "json")
        return json.loads(done.out)[0]["value"] if done.code == 0 else (done.code, done.err.splitlines()[-1])

    assert answer("Release", "version=1.2=3", "copies=7") == ["1.2=3", 7]
    assert answer("Plain") == "none"
    assert answer("Plain", "text=") == ""
    assert answer("Release", "version=1", "copies=x") == (
        2, "Error: Release: copies: Input should be a valid integer, unable to parse string as an integer",
    )  # fmt: skip
    assert answer("Plain", "txt=x") == (
        2, "Error: Plain: got an unexpected keyword argument 'txt'; give arguments as NAME=VALUE (it takes text)",
    )  # fmt: skip
    assert answer("Plain", "text") == (2, "Error: Invalid value for '[NAME=VALUE]...': 'text': write NAME=VALUE")


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("", "has several classes: name one"),
        ("", "(there are: One, Two, Needs, NeedsToo, Broken, Fine)"),
        (":Three", "has no class 'Three' with an execute method (there are: One, Two"),
        (":Plain", "has no class 'Plain' with an execute method"),
        (":", "has no class ''"),
        (":Needs", "Needs: missing a required argument: 'who'; give arguments as NAME=VALUE (it takes group, name"),
        (":NeedsToo", "NeedsToo: missing a required argument: 'x'; give arguments as NAME=VALUE (it takes x)"),
        (":Broken", "Broken() cannot be made:\nTraceback"),
        (":Broken", "ZeroDivisionError"),
    ],
)
def test_class_that_cannot_be_run(cli: Cli, several: Path, inventory: Path, target: str, says: str) -> None:
    done = cli("run", f"{several}{target}", "-i", inventory)

    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Error: ")
    assert says in done.err


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("nosuch.py", None, "there is no file"),
        ("notes.txt", "hello", "is not a Python file"),
        ("empty.py", "", "has no class with an execute method"),
        ("syntax.py", "x = 1\ndef f(:\n", "syntax.py cannot be loaded:\n  File "),
        ("syntax.py", "x = 1\ndef f(:\n", 'syntax.py", line 2\n'),
        ("imports.py", "import os\nimport nothing_there\n", 'imports.py", line 2, in <module>\n'),
        ("imports.py", "import os\nimport nothing_there\n", "No module named 'nothing_there'"),
        ("crash.py", "def f():\n    raise KeyError('x')\nf()\n", 'crash.py", line 2, in f\n'),
    ],
)
def test_file_that_cannot_be_run(
    cli: Cli, write: Write, tmp_path: Path, inventory: Path, name: str, text: str | None, says: str
) -> None:
    if text is not None:
        write(name, text)
    done = cli("run", tmp_path / name, "-i", inventory)

    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Error: ")
    assert says in done.err
    assert "importlib" not in done.err


def test_file_may_import_its_neighbours_and_be_called_like_a_library(cli: Cli, write: Write, inventory: Path) -> None:
    write("neighbour_of_json.py", "GREETING = 'from next door'")
    file = write(
        "json.py",
        """
        from neighbour_of_json import GREETING
        from reemote.host import Shell

        class Greet:
            async def execute(self):
                yield Shell(cmd=f"echo {GREETING}")
        """,
    )
    done = cli("run", file, "-i", inventory, "-o", "json")

    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out)[0]["value"]["stdout"] == "from next door\n"


def test_path_with_a_colon(cli: Cli, write: Write, tmp_path: Path, inventory: Path) -> None:
    (tmp_path / "a:b").mkdir()
    write("a:b/hello.py", HELLO)

    assert cli("run", tmp_path / "a:b" / "hello.py", "-i", inventory).code == 0
    assert cli("run", f"{tmp_path}/a:b/hello.py:Hello", "-i", inventory).code == 0


# The inventory


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "No such file or directory"),
        ("{'hosts': []}", "not JSON: line 1, column 2"),
        ("[]", "an inventory is an object"),
        ('{"host": []}', "hosts: is missing; host: unknown key"),
        ('{"hosts": [{"connection": {}}]}', "hosts[0].connection.host: is missing"),
        ('{"hosts": [{"connection": {"host": "a"}, "gruops": []}]}', "hosts[0].gruops: unknown key"),
        ('{"hosts": [{"connection": {"host": "a", "port": "x"}}]}', "hosts[0].connection.port: "),
        ('{"hosts": [{"connection": {"host": "a"}}, {"connection": {"host": "a"}}]}', "hosts[1] is 'a', and hosts[0]"),
        ('{"hosts": [{"connection": {"host": "a", "usrename": "x"}}]}', "a: connection: unknown option 'usrename'"),
        ('{"hosts": [{"connection": {"host": "a", "client_keys": "/no/key"}}]}', "a: client_keys: /no/key: No such"),
    ],
)
def test_inventory_that_is_wrong(
    cli: Cli, write: Write, tmp_path: Path, hello: Path, text: str | None, says: str
) -> None:
    file = write("hosts.json", text) if text is not None else tmp_path / "hosts.json"
    done = cli("run", hello, "-i", file)

    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Error: ")
    assert done.err.count("\n") == 1
    assert says in done.err
    if "connection: unknown option" not in says and "client_keys" not in says:
        assert str(file) in done.err


def test_no_inventory(cli: Cli, hello: Path) -> None:
    done = cli("run", hello)

    assert (done.code, done.out) == (2, "")
    assert "Missing option '-i' / '--inventory'" in done.err
    assert "REEMOTE_INVENTORY" in done.err


# Failures


def test_unreachable_host(cli: Cli, hello: Path, down: Path, closed_port: int) -> None:
    done = cli("run", hello, "-i", down)

    assert done.code == 4
    assert done.out == (
        "server104  changed\n    Hello\n    careful\n"
        "server105  failed  ConnectionRefusedError\n"
        f"    nothing listens at server105 (127.0.0.1:{closed_port})\n"
    )
    assert done.err == "1 of 2 hosts failed:\n    ConnectionRefusedError: server105\n"


CHECKED = """
    from reemote.host import Shell

    class Checked:
        async def execute(self):
            yield Shell(cmd="exit 9", check=True)
    """


def test_unreachable_goes_before_failed(cli: Cli, write: Write, inventory: Path, down: Path) -> None:
    file = write("checked.py", CHECKED)

    assert cli("run", file, "-i", inventory).code == 3
    mixed = cli("run", file, "-i", down)
    assert mixed.code == 4
    assert mixed.err == "2 of 2 hosts failed:\n    CommandFailed: server104\n    ConnectionRefusedError: server105\n"


BUG = """\
from reemote.host import Shell

class Bug:
    async def execute(self):
        response = yield Shell(cmd="hostname")
        number = int("x" + response.value.stdout[:0])
"""


def test_bug_in_the_deployment(cli: Cli, write: Write, inventory: Path) -> None:
    file = write("bug.py", BUG)
    done = cli("run", file, "-i", inventory)

    assert (done.code, done.out) == (3, "")
    # How a place in a line is marked depends on the version of Python.
    assert re.sub(r"^ +[~^]+\n", "", done.err, flags=re.MULTILINE) == (
        "The deployment raised on server[104-105]:\n"
        "Traceback (most recent call last):\n"
        f'  File "{file}", line 6, in execute\n'
        '    number = int("x" + response.value.stdout[:0])\n'
        "ValueError: invalid literal for int() with base 10: 'x'\n"
        "2 of 2 hosts failed:\n"
        "    error in the deployment: server[104-105]\n"
    )


def test_bug_on_one_host_and_another_one_down(cli: Cli, write: Write, down: Path) -> None:
    file = write("bug.py", BUG)
    done = cli("run", file, "-i", down, "-o", "json")

    assert done.code == 4
    assert [response["value"] for response in json.loads(done.out)] == ["ConnectionRefusedError"]
    assert "The deployment raised on server104:" in done.err


def test_step_that_is_none(cli: Cli, write: Write, inventory: Path) -> None:
    file = write("wrong.py", "class Wrong:\n    async def execute(self):\n        yield 3\n")
    done = cli("run", file, "-i", inventory)

    assert (done.code, done.out) == (3, "")
    assert "Traceback" not in done.err
    assert "Error: Wrong.execute yielded an object of type int" in done.err
    assert f"{file}, line 3" in done.err


def test_what_we_say_is_folded_on_a_terminal(hello: Path, inventory: Path) -> None:
    data = json.loads(inventory.read_text())
    del data["hosts"][0]["connection"]["known_hosts"]
    inventory.write_text(json.dumps(data))
    written = on_terminal(["run", hello, "-i", inventory, "-l", "server104"], NO_COLOR="1")

    lines = [re.sub("\x1b[^m]*m", "", line) for line in written.splitlines()]
    assert lines[0] == "server104  failed  HostKeyNotVerifiable"
    assert len(lines) > 5
    assert all(len(line) <= 80 or " " not in line.strip() for line in lines)


def test_summary_names_a_few_of_many_hosts() -> None:
    from reemote.cli.output import some

    assert some(["a", "b"]) == "a,b"
    assert some([f"web{n}" for n in range(100)]) == "web[0-99]"
    assert some([f"web{n * n}" for n in range(100)]) == "web0, web1, web4, web9, web16 and 95 more"


def test_no_secret_shows_with_verbose(cli: Cli, write: Write, inventory: Path) -> None:
    secret = "S3CR3T"
    data = json.loads(inventory.read_text())
    for item in data["hosts"]:
        item["connection"]["password"] = secret
    inventory.write_text(json.dumps(data))
    done = cli("run", write("hello.py", HELLO), "-i", inventory, "-vv")

    assert done.code == 4
    assert "PermissionDenied" in done.out
    assert secret not in done.out + done.err


# Interruption


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(start: Start, write: Write, fleet: Fleet, inventory: Path, number: signal.Signals) -> None:
    files = [fleet.home(name) / "pid" for name in ("server104", "server105")]
    for file in files:
        file.unlink(missing_ok=True)
    process = start("run", write("sleep.py", SLEEP), "-i", inventory)
    eventually(lambda: all(file.exists() for file in files))
    pids = [int(file.read_text()) for file in files]
    assert all(map(alive, pids))

    process.send_signal(number)
    out, err = process.communicate(timeout=15)

    assert process.returncode == 130
    assert out == (
        "server[104-105] (2 hosts)  failed  Cancelled\n    the run was cancelled\n"
        "    It may have taken effect on the host.\n"
    )
    assert err == (
        "Interrupted: ending what runs on the hosts. Once more, to leave without waiting for it.\n"
        "2 of 2 hosts failed:\n    Cancelled: server[104-105]\nInterrupted.\n"
    )
    assert not any(map(alive, pids))


@pytest.mark.slow
def test_interrupted_twice_does_not_wait(start: Start, write: Write, fleet: Fleet, inventory: Path) -> None:
    file = fleet.home("server104") / "pid"
    file.unlink(missing_ok=True)
    stubborn = write("stubborn.py", SLEEP.replace("exec sleep", "trap '' TERM; sleep"))
    process = start("run", stubborn, "-i", inventory, "-l", "server104")
    eventually(file.exists)
    assert process.stderr is not None

    process.send_signal(signal.SIGINT)
    assert process.stderr.readline().startswith("Interrupted: ending")
    process.send_signal(signal.SIGINT)
    process.wait(2.9)  # to wait for its end takes 3 seconds

    assert process.returncode == 130
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(file.read_text()), signal.SIGKILL)


@pytest.mark.slow
def test_interrupt_of_a_deployment_that_blocks(start: Start, write: Write, inventory: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    file = write(
        "blocks.py",
        f"""
        import pathlib, time

        class Block:
            async def execute(self):
                pathlib.Path({str(marker)!r}).touch()
                time.sleep(300)
                yield
        """,
    )
    process = start("run", file, "-i", inventory)
    eventually(marker.exists)
    # Two that come at once may count as one, but once it is leaving it must not be disturbed.
    for patience in (0.2, 0.2, 3, 3, 3):
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)

    assert process.returncode == 130


# Where the output goes


def through(shell: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run reemote in bash, with its output led elsewhere, and answer with its own exit code."""
    line = f'"$@" {shell}; exit ${{PIPESTATUS[0]}}'
    command = ["bash", "-c", line, "bash", sys.executable, "-W", "error", "-m", "reemote"]
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60, env=plain()
    )


@pytest.mark.slow
def test_reader_that_leaves_early(hello: Path, inventory: Path, down: Path, write: Write) -> None:
    done = through("| head -n 1", "run", hello, "-i", inventory)
    assert (done.returncode, done.stdout, done.stderr) == (0, "server[104-105] (2 hosts)  changed\n", "")

    for form in ("table", "json"):
        done = through("| true", "run", hello, "-i", down, "-o", form)
        assert done.returncode == 4
        assert done.stderr == "1 of 2 hosts failed:\n    ConnectionRefusedError: server105\n"

    # More than a pipe holds, so that the reader has left while it is written.
    big = write("big.py", HELLO.replace("echo Hello;", "seq 100000;"))
    done = through("| head -n 2", "run", big, "-i", inventory)
    assert (done.returncode, done.stdout, done.stderr) == (0, "server[104-105] (2 hosts)  changed\n    1\n", "")


@pytest.mark.slow
def test_output_that_cannot_be_written(hello: Path, inventory: Path) -> None:
    done = through("> /dev/full", "run", hello, "-i", inventory)

    assert done.returncode == 1
    assert done.stderr == "Error: the hosts are done, but the output cannot be written: No space left on device\n"


def on_terminal(arguments: list[Any], **environment: str) -> str:
    """Run reemote on a terminal of 80 columns, and give what it writes there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 25, 80, 0, 0))
    command = [sys.executable, "-m", "reemote", *map(str, arguments)]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=plain(TERM="xterm", **environment)
    )
    os.close(theirs)
    written = b""
    try:
        while data := os.read(ours, 65536):
            written += data
    except OSError:
        pass  # so the end of a terminal is told on Linux
    finally:
        os.close(ours)
        process.wait(30)
    return written.decode()


@pytest.mark.slow
def test_what_a_deployment_prints_goes_above_the_live_table(write: Write, inventory: Path) -> None:
    file = write(
        "prints.py",
        """
        from reemote.host import Shell

        class Prints:
            async def execute(self):
                yield Shell(cmd="true")
                print("half way")
                yield Shell(cmd="true")
        """,
    )
    text = re.sub("\x1b\\[[^a-zA-Z]*[a-zA-Z]|\r", "", on_terminal(["run", file, "-i", inventory]))

    assert text.count("half way\n") == 2
    assert text.endswith("server[104-105] (2 hosts)  changed\n")


COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-7]|9[0-7])m")


@pytest.mark.slow
def test_colours_on_a_terminal_unless_unwanted(hello: Path, inventory: Path) -> None:
    arguments = ["run", hello, "-i", inventory]

    assert COLOUR.search(on_terminal(arguments))
    assert not COLOUR.search(on_terminal(arguments, NO_COLOR="1"))
    assert "\x1b" not in on_terminal([*arguments, "-o", "json"])
    assert "\x1b" not in through("| cat", *arguments).stdout
