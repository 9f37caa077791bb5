"""``reemote put``, ``get`` and ``sync``: what is copied, what is said of it, and how it looks on a terminal."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from reemote.cli import main as cli_main
from tests.cli.conftest import Cli, Start, Terminal, plain
from tests.programs import ROOT, Fleet

HOSTS = ("server104", "server105")


@pytest.fixture(autouse=True)
def _empty(fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin with empty hosts, in a directory of this machine that is empty, too."""
    for name in HOSTS:
        for path in fleet.home(name).iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def down(fleet: Fleet, tmp_path: Path, closed_port: int) -> Path:
    """An inventory in which server105 is down."""
    (tmp_path / "down").mkdir()
    return fleet.write(tmp_path / "down", ("server105", closed_port))


@pytest.fixture
def site() -> Path:
    """A directory with names of all sorts."""
    site = Path("site")
    (site / "sub dir").mkdir(parents=True)
    (site / "sub dir" / "new\nline").write_text("one")
    (site / "run me").write_text("two")
    (site / "run me").chmod(0o750)
    os.utime(site / "run me", (10**9, 10**9))
    (site / "link").symlink_to("run me")
    return site


def contents(top: Path) -> dict[str, str]:
    """All files below a directory."""
    return {str(path.relative_to(top)): path.read_text() for path in top.rglob("*") if path.is_file()}


def connections(fleet: Fleet) -> int:
    return sum(fleet.sandbox[name].connections for name in HOSTS)


# put


def test_put_a_file(cli: Cli, fleet: Fleet, inventory: Path) -> None:
    Path("motd").write_text("Welcome")

    assert cli("put", "-i", inventory, "motd", "message") == (0, "", "")
    assert [contents(fleet.home(name)) for name in HOSTS] == 2 * [{"message": "Welcome"}]


def test_put_says_more_if_asked(cli: Cli, inventory: Path) -> None:
    Path("motd").write_text("Welcome")
    put = ("put", "-i", inventory, "motd", ".", "--checksum")

    assert cli(*put, "-v") == (0, "server[104-105] (2 hosts)  changed\n", "")
    assert cli(*put, "-v") == (0, "server[104-105] (2 hosts)  ok\n", "")
    done = cli(*put, "-o", "json")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out) == [{"host": name, "value": None, "changed": False, "error": False} for name in HOSTS]
    assert [json.loads(line)["host"] for line in cli(*put, "-o", "jsonl").out.splitlines()] == list(HOSTS)


def test_put_trees_and_several_files(cli: Cli, fleet: Fleet, inventory: Path, site: Path) -> None:
    Path("-dash").write_text("three")
    home = fleet.home("server104")
    (home / "to").mkdir()

    assert cli("put", "-rp", "-i", inventory, "-l", "web", "--", site, "-dash", "to") == (0, "", "")
    assert contents(home / "to") == {
        "site/sub dir/new\nline": "one",
        "site/run me": "two",
        "site/link": "two",
        "-dash": "three",
    }
    found = (home / "to" / "site" / "run me").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_mtime) == (0o750, 10**9)
    assert (home / "to" / "site" / "link").is_symlink()
    assert not list(fleet.home("server105").iterdir())


def test_put_in_place(cli: Cli, fleet: Fleet, inventory: Path) -> None:
    Path("new").write_text("new")
    file = fleet.home("server104") / "old"
    file.write_text("old one")
    (fleet.home("server104") / "other").hardlink_to(file)

    assert cli("put", "--in-place", "-i", inventory, "-l", "web", "new", "old").code == 0
    assert (fleet.home("server104") / "other").read_text() == "new"


def test_links_that_are_named_are_followed(cli: Cli, fleet: Fleet, inventory: Path, site: Path) -> None:
    options = ("-i", inventory, "-l", "web")
    home = fleet.home("server104")

    assert cli("put", *options, site / "link", "copy").code == 0
    assert not (home / "copy").is_symlink()
    assert cli("put", "-rL", *options, site, "tree").code == 0
    assert not (home / "tree" / "link").is_symlink()
    (home / "absolute").symlink_to(home / "copy")
    assert cli("get", *options, "absolute", "here").code == 0
    assert Path("here").read_text() == "two"
    done = cli("get", "-r", *options, "absolute", "there")
    assert done.code == 3
    assert done.err.endswith(": --follow-symlinks copies what it leads to\n")


# get


def test_get_from_several_hosts(cli: Cli, fleet: Fleet, inventory: Path) -> None:
    for name in HOSTS:
        (fleet.home(name) / "name").write_text(name)
        (fleet.home(name) / "name 2").write_text(name)
    get = ("get", "-i", inventory, "name")

    assert cli(*get, "logs/of/{host}/") == (0, "", "")
    assert contents(Path("logs/of")) == {f"{name}/name": name for name in HOSTS}
    assert cli(*get, "files/{host}.txt") == (0, "", "")
    assert contents(Path("files")) == {f"{name}.txt": name for name in HOSTS}
    assert cli(*get, "name 2", "both/{host}") == (0, "", "")
    assert contents(Path("both")) == {f"{name}/{file}": name for name in HOSTS for file in ("name", "name 2")}
    assert cli(*get, "{host}") == (0, "", "")
    assert Path("server105").read_text() == "server105"
    assert cli(*get, f"{Path.cwd()}/deep/{{host}}/er/x") == (0, "", "")
    assert Path("deep/server104/er/x").read_text() == "server104"


def test_get_trees(cli: Cli, fleet: Fleet, inventory: Path, site: Path) -> None:
    for name in HOSTS:
        shutil.copytree(site, fleet.home(name) / "site", symlinks=True)
    for _ in range(2):  # with the slash it is the same each time
        assert cli("get", "-rp", "-i", inventory, "site", "{host}/") == (0, "", "")
        assert [path.name for path in Path("server104").iterdir()] == ["site"]
    assert contents(Path("server105/site")) == contents(site)
    assert stat.S_IMODE(Path("server105/site/run me").stat().st_mode) == 0o750


def test_get_from_one_host_needs_no_place_for_each(cli: Cli, fleet: Fleet, inventory: Path) -> None:
    (fleet.home("server105") / "name").write_text("x")

    assert cli("get", "-i", inventory, "-l", "db", "name", "copy") == (0, "", "")
    assert Path("copy").read_text() == "x"
    done = cli("get", "-i", inventory, "-l", "db", "name", "nosuch/")  # a mistyped directory is not made
    assert done == (3, "", "server105: SFTPFailure: nosuch/ is not a directory\n")


@pytest.mark.parametrize(
    ("local", "example"), [("out", "out/{host}/"), (".", "./{host}/"), ("out/", "out/{host}/"), ("/x", "/x/{host}/")]
)
def test_get_from_several_hosts_to_one_place(cli: Cli, fleet: Fleet, inventory: Path, local: str, example: str) -> None:
    before = connections(fleet)
    done = cli("get", "-i", inventory, "name", local)

    assert (done.code, done.out) == (2, "")
    assert done.err == (
        f"Error: 2 hosts would write to {local!r}, each over the other's: "
        f"put {{host}} into the path, as in {example!r}\n"
    )
    assert connections(fleet) == before


def test_directories_are_left_only_where_something_came(cli: Cli, fleet: Fleet, inventory: Path) -> None:
    (fleet.home("server104") / "name").write_text("x")

    done = cli("get", "-i", inventory, "name", "a/{host}/")
    assert (done.code, done.out) == (3, "")
    assert done.err.startswith("server105: SFTPNoSuchFile: ")
    assert done.err.count("\n") == 1
    assert contents(Path("a")) == {"server104/name": "x"}
    assert [path.name for path in Path("a").iterdir()] == ["server104"]
    assert cli("get", "-i", inventory, "nosuch", "b/{host}/").code == 3
    assert not Path("b").exists()


def test_directory_that_cannot_be_made(cli: Cli, fleet: Fleet, inventory: Path) -> None:
    (fleet.home("server104") / "name").write_text("x")
    (fleet.home("server105") / "name").write_text("x")
    Path("in").mkdir()
    Path("in/server105").write_text("a file")

    done = cli("get", "-i", inventory, "name", "in/{host}/sub/")
    assert done == (3, "", "server105: NotADirectoryError: in/server105/sub: Not a directory (on this machine)\n")
    assert Path("in/server104/sub/name").read_text() == "x"
    outcome = json.loads(cli("get", "-i", inventory, "name", "in/{host}/sub/", "-o", "json").out)[1]
    assert (outcome["changed"], outcome["outcome"]) == (False, "not_started")


# sync


def test_sync(cli: Cli, fleet: Fleet, inventory: Path, site: Path) -> None:
    (site / "cache.tmp").write_text("x")
    options = ("sync", "-i", inventory, site, "www", "--exclude", "*.tmp", "--exclude", ".git/")

    assert cli(*options) == (0, "", "")
    copied = {"sub dir/new\nline": "one", "run me": "two", "link": "two"}
    assert [contents(fleet.home(name) / "www") for name in HOSTS] == 2 * [copied]

    (site / "run me").write_text("three")
    (site / "sub dir" / "new\nline").unlink()
    (fleet.home("server105") / "www" / "extra").write_text("x")
    done = cli(*options, "--delete", "-v")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "server104  added 0, changed 1, removed 1",
        "    changed  run me",
        "    removed  sub dir/new\\nline",
        "server105  added 0, changed 1, removed 2",
        "    changed  run me",
        "    removed  extra",
        "    removed  sub dir/new\\nline",
    ]
    assert cli(*options, "-v").out == "server[104-105] (2 hosts)  added 0, changed 0, removed 0\n"
    done = cli(*options, "-o", "json")
    nothing: dict[str, Any] = {"added": [], "changed": [], "removed": [], "skipped": []}
    assert [response["value"] for response in json.loads(done.out)] == [nothing, nothing]


def test_sync_tells_what_it_leaves_out(cli: Cli, inventory: Path, site: Path) -> None:
    os.mkfifo(site / "pipe")
    done = cli("sync", "-i", inventory, "-l", "web", site, "www", "-v")

    assert done.out.splitlines()[0] == "server104  added 4, changed 0, removed 0, skipped 1"
    assert done.out.endswith("    skipped  pipe\n")


def test_sync_with_checksum(cli: Cli, fleet: Fleet, inventory: Path, site: Path) -> None:
    options = ("sync", "-i", inventory, "-l", "web", site, "www")
    assert cli(*options).code == 0
    file = fleet.home("server104") / "www" / "run me"
    file.write_text("2wo")
    os.utime(file, (10**9, 10**9))

    assert cli(*options, "-v").out == "server104  added 0, changed 0, removed 0\n"
    assert cli(*options, "-v", "--checksum").out.startswith("server104  added 0, changed 1, removed 0\n")


# What goes wrong


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["put", "motd"], "Missing argument 'LOCAL...'"),
        (["get", "motd"], "Missing argument 'REMOTE...'"),
        (["sync", "site"], "Missing argument 'REMOTE'"),
        (["sync", "site", "www", "more"], "unexpected extra argument"),
        (["put", "nosuch", "motd", "x"], "Error: 'nosuch' on this machine: No such file or directory\n"),
        (["put", "site", "x"], "Error: 'site' is a directory: --recurse copies it\n"),
        (["put", "", "x"], "a path cannot be empty"),
        (["put", "motd", ""], "a path cannot be empty"),
        (["get", "motd", "", "{host}"], "a path cannot be empty"),
        (["sync", "nosuch", "www"], "Error: 'nosuch' on this machine: No such file or directory\n"),
        (["sync", "motd", "www"], "Error: 'motd' is not a directory\n"),
        (["sync", "site", "www", "--forks", "0"], "--forks"),
        (["sync", "site", "www", "--nope"], "--nope"),
    ],
)
def test_wrong_usage(cli: Cli, fleet: Fleet, inventory: Path, site: Path, arguments: list[str], says: str) -> None:
    Path("motd").write_text("x")
    before = connections(fleet)
    done = cli(*arguments, "-i", inventory)

    assert (done.code, done.out) == (2, "")
    assert says in done.err
    assert connections(fleet) == before


@pytest.mark.parametrize("arguments", [["put", "site", "x", "-r"], ["get", "x", "y"], ["sync", "site", "x"]])
def test_hosts_and_inventory(cli: Cli, inventory: Path, site: Path, arguments: list[str]) -> None:
    done = cli(*arguments, "-i", inventory, "-l", "nosuch")
    assert (done.code, done.out) == (5, "")
    assert done.err.startswith("Error: the limit ")
    assert cli(*arguments, "-i", "nosuch.json").code == 2
    assert "Missing option '-i'" in cli(*arguments).err
    Path("empty.json").write_text('{"hosts": []}')
    assert cli(*arguments, "-i", "empty.json") == (0, "", "No host had anything to run.\n")


def test_one_line_for_each_host_that_failed(cli: Cli, inventory: Path, down: Path, closed_port: int) -> None:
    Path("motd").write_text("x")

    done = cli("put", "-i", inventory, "motd", "no/such/place", "-v")
    assert (done.code, done.out) == (3, "")
    assert re.fullmatch(r"server\[104-105\]: SFTPNoSuchFile: .*\n", done.err)
    unreachable = f"server105: ConnectionRefusedError: nothing listens at server105 (127.0.0.1:{closed_port})\n"
    assert cli("put", "-i", down, "motd", ".", "-v") == (4, "server104  changed\n", unreachable)
    done = cli("put", "-i", down, "motd", ".", "-o", "json")
    assert (done.code, done.err) == (4, unreachable)
    assert [response["error"] for response in json.loads(done.out)] == [False, True]


def test_messages_name_the_options_of_the_command_line(cli: Cli, fleet: Fleet, inventory: Path) -> None:
    (fleet.home("server104") / "tree").mkdir()
    done = cli("get", "-i", inventory, "-l", "web", "tree", "x")

    assert done == (3, "", "server104: SFTPFailure: tree is a directory: --recurse copies it\n")


def test_a_name_cannot_drive_the_terminal(cli: Cli, fleet: Fleet, inventory: Path, site: Path) -> None:
    evil = "\x1b]0;evil\x07\nserver999: \u202e"
    shown = "\\x1b]0;evil\\x07\\nserver999: \\u202e"
    (site / evil).write_text("x")
    os.mkfifo(fleet.home("server104") / evil)

    done = cli("sync", "-i", inventory, "-l", "web", site, "www", "-v")
    assert f"    added    {shown}\n" in done.out
    done = cli("get", "-i", inventory, "-l", "web", evil, "x")
    assert done == (3, "", f"server104: SFTPFailure: {shown} is no file, directory or symbolic link\n")


def test_name_that_is_no_text(cli: Cli, fleet: Fleet, inventory: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    Path(name).write_text("x")

    assert cli("put", "-i", inventory, name, ".") == (0, "", "")
    assert (fleet.home("server104") / name).read_text() == "x"
    assert cli("get", "-i", inventory, name, "{host}/") == (0, "", "")
    assert Path("server105", name).read_text() == "x"
    Path(name + "d").mkdir()
    assert cli("put", "-i", inventory, name + "d", ".").err.startswith("Error: 'caf\\udce9d' is a directory")


def test_timeout(cli: Cli, stalled: Path) -> None:
    Path("motd").write_text("x")
    done = cli("put", "-i", stalled, "-l", "server105", "motd", ".", "--timeout", "0.2")

    assert (done.code, done.out) == (3, "")
    assert done.err.startswith("server105: Cancelled: ")


@pytest.fixture
def stalled(fleet: Fleet, tmp_path: Path) -> Iterator[Path]:
    """An inventory in which server105 accepts connections, and then says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        (tmp_path / "stalled").mkdir()
        yield fleet.write(tmp_path / "stalled", ("server105", server.getsockname()[1]))


# In a pipe, and on a terminal


@pytest.mark.slow
def test_in_a_pipe_no_library_for_terminals_is_loaded(inventory: Path, site: Path) -> None:
    program = (
        "import sys\n"
        "from reemote.cli.main import main\n"
        "try:\n"
        f"    main(['sync', '-i', {str(inventory)!r}, 'site', 'www', '-v'])\n"
        "except SystemExit as end:\n"
        "    print(end.code, 'rich' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=plain())

    assert done.stdout.splitlines()[0] == "server[104-105] (2 hosts)  added 4, changed 0, removed 0"
    assert done.stdout.splitlines()[-1] == "0 False"
    assert done.stderr == ""


@pytest.mark.slow
def test_reader_that_leaves_early(start: Start, inventory: Path, site: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = start("sync", "-i", inventory, site, "www", "-v", stdout=writer, env=plain())
    os.close(writer)

    assert process.communicate(timeout=30)[1] == ""
    assert process.returncode == 0


@pytest.mark.slow
def test_bars_on_a_terminal(fleet: Fleet, inventory: Path) -> None:
    Path("data").write_bytes(bytes(range(256)) * 8000)
    (fleet.home("server105") / "here" / "data").mkdir(parents=True)
    (fleet.home("server104") / "here").mkdir()
    terminal = Terminal("put", "-i", inventory, "data", "here")
    lines = terminal.end()

    assert terminal.process.returncode == 3
    assert re.fullmatch(r"server104 ━+ +2\.0/2\.0 MB +[\d.]+ [kM]B/s changed", lines[0])
    assert re.fullmatch(r"server105 .* failed SFTP\w+", lines[1])
    assert re.match(r"server105: SFTP\w+: ", lines[2])
    assert all(len(line) <= 77 for line in lines[:2])
    assert terminal.written.count("\x1b[?25l") == terminal.written.count("\x1b[?25h") == 1


@pytest.mark.slow
def test_a_second_time_nothing_changes(inventory: Path, site: Path) -> None:
    arguments = ("sync", "-i", inventory, site, "www")
    for state in ("changed", "ok"):
        number = 4 if state == "changed" else 0
        first, second, *below = Terminal(*arguments).end()
        assert first.startswith("server104 ━")
        assert first.endswith(f" {state}")
        assert second.endswith(f" {state}")
        assert below == [f"server[104-105] (2 hosts)  added {number}, changed 0, removed 0"]


@pytest.mark.slow
def test_progress_and_data_go_apart(inventory: Path, site: Path) -> None:
    terminal = Terminal("sync", "-i", inventory, site, "www", "-o", "json", stdout=subprocess.PIPE, text=True)
    assert terminal.process.stdout is not None
    with terminal.process.stdout as stdout:
        responses = json.loads(stdout.read())

    assert [len(response["value"]["added"]) for response in responses] == [4, 4]
    assert [line.split()[-1] for line in terminal.end()] == ["changed", "changed"]


@pytest.mark.slow
def test_terminal_that_can_do_nothing(inventory: Path, site: Path) -> None:
    terminal = Terminal("sync", "-i", inventory, site, "www", env=plain(TERM="dumb"))

    assert terminal.read() == "server[104-105] (2 hosts)  added 4, changed 0, removed 0\r\n"
    terminal.end()


@pytest.mark.slow
def test_interrupted_on_a_terminal(stalled: Path, site: Path) -> None:
    terminal = Terminal("sync", "-i", stalled, site, "www")
    terminal.read(until="changed")
    terminal.read(until="connecting")
    terminal.process.send_signal(signal.SIGINT)
    lines = terminal.end()

    assert terminal.process.returncode == 130
    assert "Interrupted: ending what runs on the hosts." in terminal.written
    assert [line.split()[-1] for line in lines[:2]] == ["changed", "cancelled"]
    assert lines[2:] == [
        "server104  added 4, changed 0, removed 0",
        "server105: Cancelled: the run was cancelled",
        "Interrupted.",
    ]


# The documentation


@pytest.mark.parametrize("name", ["put", "get", "sync"])
def test_table_of_options(name: str) -> None:
    [section] = [
        text
        for text in re.split(r"^## ", (ROOT / "docs" / "command-line.md").read_text(), flags=re.MULTILINE)
        if text.startswith("reemote put, get, sync\n")
    ]
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    ours = [options for options, commands, _ in rows if name in commands]
    documented = {option for options in ours for option in re.findall(r"(?<!\w)--?[a-zA-Z-]+", options)}
    command = cli_main.reemote.get_command(click.Context(cli_main.reemote), name)
    assert command is not None
    shared = cli_main.reemote.get_command(click.Context(cli_main.reemote), "run")
    assert shared is not None
    known = {option for each in shared.params for option in each.opts}
    options = {option for each in command.params for option in each.opts if option.startswith("-")}

    assert documented == options - known
    assert {"-i", "-l", "-f", "--timeout", "--host-keys", "-o"} <= options
