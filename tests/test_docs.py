"""All that the documentation shows works as it stands.

- A ``python`` block is a program of its own. It is run in a directory that holds ``inventory.json``, the
  inventory of the hosts web1, web2 and db1; hosts that it names itself lead to sandbox hosts of these names.
  A ``text`` block after it is what it prints.
- A block that begins with ``# NAME.py`` is kept as a file of this name for the blocks after it on the page;
  one whose name begins with ``test_`` is run by pytest instead.
- A ``console`` block holds commands after ``$``, and what they print. A ``curl`` command calls a server that
  has the inventory, and that is not at the port that it names.
- The commands of an ``sh`` block are looked up, with their options, and not run; the requests of ``curl`` must
  be ones that the API knows.
- A ``json`` block is an inventory.

The hosts of the page on privileges are machines with sudo and su, instead of the sandbox: they need root here.

A comment before a block may say more, separated by commas: ``continues`` (it goes on where the block before it
ended), ``down: HOST`` (this host is down), ``file: NAME.py`` (the name of the file, without showing it).
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest

import reemote.core.errors
from reemote import HostError, Inventory
from reemote.cli import main as cli
from reemote.server.app import App
from reemote.server.settings import Settings
from tests.openssh import RootWorld
from tests.openssh_fixtures import MakeWorld
from tests.programs import ROOT, Fleet, elsewhere, nothing_listens, options_of

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
GROUPS = {"web1": ["web", "prod"], "web2": ["web"], "db1": ["db", "prod"]}
TUTORIAL_HOSTS = ("server104", "server105")
OTHER_PROGRAMS = {"pip", "ssh-keyscan"}
API = "http://127.0.0.1:8001"

SLOW = {"testing.md", "rest-api.md", "running.md"}
"""Pages with blocks that need a process of their own, pytest or a server, or that wait for times to pass."""

WITH_SUDO = ROOT / "docs" / "privileges.md"
"""The page whose hosts are machines with sudo and su."""

SUITE_PLUGINS = ("anyio", "hypothesispytest", "schemathesis", "xdist", "xdist.looponfail")

BLOCK = re.compile(r"^(?:<!-- (?P<notes>[^>]*) -->\n)?```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A block of code, and what its page says of it."""

    kind: str
    text: str
    notes: dict[str, str]
    line: int
    prints: str | None


def blocks(page: Path) -> list[Block]:
    source = page.read_text()
    matches = list(BLOCK.finditer(source))
    found = []
    for number, match in enumerate(matches):
        after = matches[number + 1] if number + 1 < len(matches) else None
        # The output is the next block, perhaps after a few words such as "It prints:", but before any heading.
        between = source[match.end() : after.start()] if after else ""
        prints = after["text"] if after and after["kind"] == "text" and len(between.split("\n\n")) <= 3 else None
        notes = dict((*note.strip().split(": "), "")[:2] for note in (match["notes"] or "").split(",") if note)
        found.append(Block(match["kind"], match["text"], notes, source.count("\n", 0, match.start()) + 1, prints))
    return found


def comparable(text: str) -> str:
    """Leave out the addresses and ports of the sandbox."""
    return re.sub(r" \(127\.0\.0\.1:\d+\)", "", text)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(*GROUPS, *TUTORIAL_HOSTS) as hosts:
        yield hosts


@pytest.fixture
def closed_port() -> Iterator[int]:
    with nothing_listens() as port:
        yield port


class Machines:
    """Machines with sudo and su, in the place of sandbox hosts."""

    def __init__(self, world: RootWorld) -> None:
        self.world = world

    def write(self, directory: Path, *_: tuple[str, int], groups: dict[str, list[str]]) -> Path:
        """Write their inventory to a file in *directory*."""
        login = {"username": "user", "password": "password", "known_hosts": str(self.world.known_hosts)}
        known = {"sudo_password": "password", "su_password": "root-password"}
        hosts = [
            {
                "connection": {"host": name, "address": machine.address, **login},
                "authentication": known,
                "groups": groups[name],
            }
            for name, machine in self.world.machines.items()
        ]
        file = directory / "inventory.json"
        file.write_text(json.dumps({"hosts": hosts}))
        return file


class Runner:
    """Run the blocks of one page, in order, in one directory."""

    def __init__(self, fleet: Fleet | Machines, directory: Path, closed_port: int) -> None:
        self.fleet = fleet
        self.directory = directory
        self.closed_port = closed_port
        self.options: dict[str, dict[str, Any]] = {}
        self.globals: dict[str, Any] = {}
        self.server: subprocess.Popen[str] | None = None
        self.url = ""

    def run(self, block: Block) -> None:
        down = [(block.notes["down"], self.closed_port)] if "down" in block.notes else []
        everything = Inventory.load(self.fleet.write(self.directory, *down, groups=GROUPS))
        file = self.directory / "inventory.json"
        file.write_text(
            json.dumps({"hosts": [i for i in json.loads(file.read_text())["hosts"] if i["groups"]]}, indent=4)
        )
        if block.kind == "python":
            self.options.update(options_of(everything))
            with elsewhere(self.options):
                self.python(block)
        else:
            getattr(self, block.kind)(block)

    def python(self, block: Block) -> None:
        named = re.match(r"# (\w+\.py)\n", block.text)
        if name := block.notes.get("file") or (named and named[1]):
            (self.directory / name).write_text(block.text)
            if name.startswith("test_"):
                self.pytest(name)
                return
        if "continues" not in block.notes:
            self.globals = {"__name__": "__main__"}
        code = compile(block.text, f"block at line {block.line}", "exec")
        output = io.StringIO()
        with redirect_stdout(output):
            exec(code, self.globals)
        assert comparable(output.getvalue()) == (block.prints or "")

    def pytest(self, name: str) -> None:
        # The plugins of the test suite itself take longer to import than all else; users need not have them.
        without = [option for plugin in ("cacheprovider", *SUITE_PLUGINS) for option in ("-p", f"no:{plugin}")]
        command = [sys.executable, "-m", "pytest", "-q", *without, "--rootdir", ".", name]
        done = subprocess.run(command, cwd=self.directory, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr

    def console(self, block: Block) -> None:
        for example in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            command, _, expected = example.partition("\n")
            program, *arguments = shlex.split(command)
            if program == "curl":
                check_request(*arguments)
                assert self.curl(*arguments) == expected
                continue
            assert program == "reemote"
            output = io.StringIO()
            with redirect_stdout(output), redirect_stderr(output), pytest.raises(SystemExit):
                cli.main(arguments)
            assert comparable(output.getvalue()) == expected

    def curl(self, *arguments: str) -> str:
        if self.server is None:
            command = [sys.executable, "-m", "reemote", "--port=0", "--inventory=inventory.json"]
            self.server = subprocess.Popen(command, cwd=self.directory, stdout=subprocess.PIPE, text=True)
            assert self.server.stdout is not None
            self.url = self.server.stdout.readline().split()[-1]
        words = [word.replace(API, self.url) for word in arguments]
        done = subprocess.run(
            ["curl", "--noproxy", "*", *words], capture_output=True, text=True, check=True, timeout=30
        )
        return comparable(done.stdout) + "\n"

    def close(self) -> None:
        if self.server is not None:
            with self.server:
                self.server.terminate()

    def sh(self, block: Block) -> None:
        for line in block.text.splitlines():
            words = shlex.split(line, comments=True)
            if words:
                check_command(*words)

    def json(self, block: Block) -> None:
        Inventory.of(block.text)

    def text(self, block: Block) -> None:
        """It is what the block before it prints."""


def check_command(program: str, *arguments: str) -> None:
    """Look a command up: it must exist, and its options, too."""
    if program == "./dev":
        tasks = re.findall(r"^    (\w+)\)$", (ROOT / "dev").read_text(), re.MULTILINE)
        assert arguments[0] in tasks
        if arguments[0] == "bench":
            assert (ROOT / "bench" / f"{arguments[1]}.py").exists()
    elif program == "curl":
        check_request(*arguments)
    elif program == "reemote":
        if arguments[0].startswith("-"):
            arguments = ("serve", *arguments)
        command = cli.reemote.get_command(click.Context(cli.reemote), arguments[0])
        assert command is not None
        command.make_context(arguments[0], list(arguments[1:]))
    else:
        assert program in OTHER_PROGRAMS


@cache
def described() -> dict[str, Any]:
    """The paths of the API, as its document describes them."""
    paths: dict[str, Any] = App(Settings()).openapi()["paths"]
    return paths


def check_request(*arguments: str) -> None:
    """Look a request up: the API must know its path and its method."""
    [url] = [word for word in arguments if word.startswith("http")]
    methods = [after for word, after in itertools.pairwise(arguments) if re.fullmatch(r"-s?X", word)]
    method = methods[0] if methods else "POST" if "-d" in arguments else "GET"
    path = url.removeprefix(API).partition("?")[0]
    found = [
        known
        for template, known in described().items()
        if re.fullmatch(re.sub(r"\\?\{\w+\\?\}", "[^/]+", re.escape(template)), path)
    ]
    assert any(method.lower() in known for known in found), (method, path)


def run_page(page: Path, fleet: Fleet | Machines, directory: Path, closed_port: int) -> None:
    with contextlib.closing(Runner(fleet, directory, closed_port)) as runner:
        for block in blocks(page):
            try:
                runner.run(block)
            except BaseException as error:
                error.add_note(f"{page.name}, line {block.line}")
                raise
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(directory)):
            del sys.modules[name]


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the blocks of a page run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] if page.name in SLOW else []) for page in PAGES if page != WITH_SUDO],
    ids=lambda page: page.name,
)
def test_page(page: Path, fleet: Fleet, directory: Path, closed_port: int) -> None:
    for name in (*GROUPS, *TUTORIAL_HOSTS):  # what other pages have left there
        subprocess.run(["find", str(fleet.home(name)), "-mindepth", "1", "-delete"], check=True)
    run_page(page, fleet, directory, closed_port)


@pytest.mark.slow
def test_page_with_sudo(make_world: MakeWorld, directory: Path, closed_port: int) -> None:
    world = make_world(*GROUPS, users={"root": "root-password"})
    with world.network():
        run_page(WITH_SUDO, Machines(world), directory, closed_port)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_text_block_is_the_output_of_a_program(page: Path) -> None:
    found = blocks(page)

    assert sum(block.kind == "text" for block in found) == sum(block.prints is not None for block in found)
    assert {block.kind for block in found} <= {"python", "text", "console", "sh", "json"}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target


def table(page: str, heading: str) -> list[list[str]]:
    """The rows of the tables below a heading of a page."""
    section = re.split(r"^## ", (ROOT / "docs" / page).read_text(), flags=re.MULTILINE)
    [text] = [text for text in section if text.startswith(f"{heading}\n")]
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows]


def test_table_of_failures_is_complete() -> None:
    named = [row[0].strip("`") for row in table("responses.md", "The failures") if row[0] != "value"]
    kinds = [
        cls.kind for cls in vars(reemote.core.errors).values() if isinstance(cls, type) and issubclass(cls, HostError)
    ]

    # The root of those without a connection is no failure of its own.
    assert sorted(named) == sorted(set(kinds) - {"ConnectFailed"})


def test_table_of_failures_tells_which_exit_code() -> None:
    unreachable, _, failed = (ROOT / "docs" / "responses.md").read_text().partition("With a connection (exit code 3)")
    for cls in reemote.core.errors.ConnectFailed.__subclasses__():
        assert f"| `{cls.kind}` |" in unreachable
    assert "| `ConnectionLost` |" in failed


def test_table_of_exit_codes() -> None:
    codes = {int(row[0]) for row in table("command-line.md", "Exit codes") if row[0] != "code"}

    assert codes == {cli.OK, cli.INTERNAL, cli.USAGE, cli.FAILED, cli.UNREACHABLE, cli.NO_HOST, cli.INTERRUPTED}


@pytest.mark.parametrize(
    ("page", "heading", "name"), [("command-line.md", "reemote run", "run"), ("rest-api.md", "Options", "serve")]
)
def test_table_of_options(page: str, heading: str, name: str) -> None:
    documented = {word for row in table(page, heading) for word in re.findall(r"(?<!\w)--?[A-Za-z-]+", row[0])}
    command = cli.reemote.get_command(click.Context(cli.reemote), name)
    assert command is not None
    shown = [option for option in command.params if not getattr(option, "hidden", False)]
    options = {name for option in shown for name in option.opts if name.startswith("-")}

    assert documented - {"-h", "--help"} == options


def test_table_of_arguments() -> None:
    import inspect

    from reemote.execute import execute

    text = (ROOT / "docs" / "running.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(inspect.signature(execute).parameters)
