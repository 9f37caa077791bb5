"""Every operation as a command: its options are its parameters, and what is given there reaches it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from reemote.cli import main as cli_main
from reemote.cli import operations as module_under_test
from reemote.cli.operations import Command, command_name, group
from reemote.core import catalogue
from reemote.core.catalogue import Parameter, module_names, module_summary, parameters
from reemote.core.operation import Operation
from tests.cli.conftest import Cli
from tests.programs import Fleet

ALL = [(name, operation) for name, operation in catalogue.catalogue() if catalogue.is_writable(operation)]
every_operation = pytest.mark.parametrize(
    ("name", "operation"), ALL, ids=[f"{name}.{command_name(operation)}" for name, operation in ALL]
)


# The catalogue


def test_the_index_is_that_of_the_catalogue() -> None:
    assert cli_main.OPERATIONS == {name: module_summary(name) for name in module_names()}
    assert not set(cli_main.OPERATIONS) & set(cli_main.COMMANDS)


def test_only_what_needs_a_python_function_is_no_command() -> None:
    assert {o.__name__ for _, o in catalogue.catalogue()} - {o.__name__ for _, o in ALL} == {"Callback"}


@every_operation
def test_each_operation_has_a_command_and_each_parameter_an_option(name: str, operation: type[Operation[Any]]) -> None:
    group_ = group(name)
    command = group_.get_command(click.Context(group_), command_name(operation))
    assert isinstance(command, Command)
    assert command.operation is operation

    expected = {f"--{p.name.replace('_', '-')}": p.required for p in parameters(operation) if p.schema is not None}
    assert {option.opts[-1]: option.required for option in command.own} == expected
    assert all(option.help for option in command.own)
    names = [name for param in command.params for name in (*param.opts, *param.secondary_opts)]
    assert len(names) == len(set(names))
    assert {"-i", "-l", "-o", "-C", "-K"} <= set(names)


SAMPLES: dict[tuple[str, str], Any] = {
    ("sftp.read", "encoding"): "latin-1",
    ("sftp.write", "encoding"): "latin-1",
    ("sftp.write", "mode"): "a",
    ("*", "sudo_user"): "www-data",
    ("*", "permissions"): "0640",
    ("host.shell", "output"): "out/{host}",
    ("host.command", "output"): "out/{host}",
}
"""Values that not every text or number is."""

TIMES, OWNER = {"atime": 1.5, "mtime": 1.5}, {"uid": 7, "gid": 7}
NEEDS: dict[str, dict[str, Any]] = {
    "sudo_user": {"sudo": True},
    **dict.fromkeys(TIMES, TIMES),
    **dict.fromkeys(OWNER, OWNER),
}
"""What a parameter is given together with."""

ALWAYS: dict[str, dict[str, Any]] = {
    "sftp.setstat": OWNER,
    "sftp.chown": OWNER,
    "sftp.chmod": {"permissions": "0640"},
    "sftp.utime": TIMES,
}
"""What an operation needs one of."""


def sample(where: str, parameter: Parameter) -> Any:
    """Give a value other than the default."""
    known = SAMPLES.get((where, parameter.name), SAMPLES.get(("*", parameter.name)))
    if known is not None:
        return known
    schema = parameter.schema or {}
    kinds = [kind for kind in schema.get("anyOf", [schema]) if kind.get("type") != "null"]
    types = [kind.get("type") for kind in kinds]
    if schema.get("enum"):
        return next(choice for choice in schema["enum"] if choice != parameter.default)
    if "array" in types:
        return ["one", "two"]
    values = {"boolean": not parameter.default, "integer": 7, "number": 1.5, "string": "te xt", "object": {"A": "b c"}}
    return values[types[0]] if types[0] else {"a": [1, None, "x"]}


def words(parameter: Parameter, value: Any) -> list[str]:
    """Write a value on the command line."""
    option = f"--{parameter.name.replace('_', '-')}"
    kinds = [kind.get("type") for kind in (parameter.schema or {}).get("anyOf", [parameter.schema])]
    if isinstance(value, bool):
        return [option if value else f"--no-{option.removeprefix('--')}"]
    if isinstance(value, list) and "array" in kinds:
        return [word for each in value for word in (option, each)]
    return [option, json.dumps(value) if isinstance(value, dict | list) else str(value)]


@pytest.fixture
def created(cli: Cli, inventory: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Operation[Any]]:
    """Call a command, and give the operation that it would run."""
    made: list[Operation[Any]] = []

    def instead(given: Any, hosts: Any, factory: Callable[[], Operation[Any]], **_: Any) -> int:
        made.append(factory())
        return 0

    monkeypatch.setattr(module_under_test, "carry_out", instead)

    def create(*arguments: str) -> Operation[Any]:
        made.clear()
        done = cli(*arguments, "-i", inventory)
        assert (done.code, done.err) == (0, "")
        return made[0]

    return create


@every_operation
def test_what_is_given_reaches_the_operation(
    name: str, operation: type[Operation[Any]], created: Callable[..., Operation[Any]]
) -> None:
    where = f"{name}.{command_name(operation)}"
    known = {p.name: p for p in parameters(operation) if p.schema is not None}
    needed = {p.name: sample(where, p) for p in known.values() if p.required}
    for parameter in known.values():
        given = {
            **needed,
            **ALWAYS.get(where, {}),
            **NEEDS.get(parameter.name, {}),
            parameter.name: sample(where, parameter),
        }
        arguments = [word for each, value in given.items() for word in words(known[each], value)]
        ours, theirs = created(name, command_name(operation), *arguments), operation(**given)

        assert type(ours) is operation
        assert ours.model_fields_set == theirs.model_fields_set
        assert ours.model_dump() == theirs.model_dump()


# Names


def test_hyphens_and_underscores_mean_the_same(created: Callable[..., Operation[Any]]) -> None:
    for words in (["link", "--file-path", "a", "--link-path", "b"], ["link", "--file_path", "a", "--link_path", "b"]):
        assert created("sftp", *words).model_dump(include={"file_path", "link_path"}) == {
            "file_path": "a", "link_path": "b",
        }  # fmt: skip
    assert type(created("apt", "get-packages")) is type(created("apt", "get_packages"))


def test_a_single_value_is_given_as_such_and_several_as_a_list(created: Callable[..., Operation[Any]]) -> None:
    assert created("host", "command", "--argv", "id").model_dump()["argv"] == ["id"]
    assert created("sftp", "glob", "--path", "*.x", "--path", "*.y").model_dump()["path"] == ["*.x", "*.y"]


def test_what_the_operation_calls_its_own_stays_with_it(cli: Cli, inventory: Path) -> None:
    arguments = ("host", "shell", "-i", inventory, "-l", "server104")

    done = cli(*arguments, "--cmd", "sleep 300", "--timeout", "0.2", "--run-timeout", "30", "-o", "json")
    assert json.loads(done.out)[0]["value"] == "CommandTimeout"
    done = cli(*arguments, "--cmd", "sleep 300", "--run-timeout", "0.2", "-o", "json")
    assert json.loads(done.out)[0]["value"] == "Cancelled"
    done = cli(*arguments, "--cmd", "exit 3", "--check")
    assert (done.code, done.out.splitlines()[0]) == (3, "server104  failed  CommandFailed")
    assert cli(*arguments, "--cmd", "exit 3", "--dry-run").out == "server104  skipped\n"


# What they do


def test_a_question(cli: Cli, fleet: Fleet, inventory: Path) -> None:
    for name in ("server104", "server105"):
        (fleet.home(name) / "motd").write_text("Welcome")

    assert cli("sftp", "getsize", "--path", "motd", "-i", inventory) == (
        0, "server[104-105] (2 hosts)  ok\n    7\n", "",
    )  # fmt: skip
    done = cli("sftp", "stat", "--path", "motd", "-i", inventory, "-o", "json", "-l", "web")
    assert (done.code, json.loads(done.out)[0]["value"]["size"]) == (0, 7)
    assert cli("sftp", "stat", "--path", "nosuch", "-i", inventory).code == 3


def test_a_change(cli: Cli, fleet: Fleet, inventory: Path) -> None:
    done = cli("sftp", "write", "--path", "note", "--text", "one\n", "--permissions", "0600", "-i", inventory)

    assert done == (0, "server[104-105] (2 hosts)  changed\n", "")
    note = fleet.home("server105") / "note"
    assert (note.read_text(), note.stat().st_mode & 0o777) == ("one\n", 0o600)


def test_a_status_other_than_0_is_a_failure(cli: Cli, inventory: Path) -> None:
    done = cli("host", "shell", "--cmd", "exit 3", "-i", inventory)

    assert (done.code, done.out) == (3, "server[104-105] (2 hosts)  changed  exit status 3\n")


def test_a_group_that_no_host_is_in(cli: Cli, inventory: Path) -> None:
    done = cli("sftp", "getcwd", "--group", "nosuch", "-i", inventory)

    assert done == (0, "", "No host had anything to run.\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sftp", "nope"], "Error: there is no operation 'nope': there are islink, isfile, "),
        (["system", "callback"], "Error: there is no operation 'callback': there are return\n"),
        (["sftp", "stat"], "Error: Missing option '--path'."),
        (["sftp", "directory", "--path", "x"], "Error: Missing option '--present'."),
        (["sftp", "stat", "--path", ""], "Error: Invalid value for '--path': a path cannot be empty\n"),
        (["sftp", "stat", "--path", "x", "--sudo", "--su"], "Error: --sudo and --su exclude each other\n"),
        (
            ["sftp", "write", "--path", "x", "--text", "x", "--mode", "q"],
            "Error: Invalid value for '--mode': 'q' is not",
        ),
        (["sftp", "truncate", "--path", "x", "--size", "big"], "'--size': 'big' is not a valid integer"),
        (["sftp", "truncate", "--path", "x", "--size", "-1"], "'--size': Input should be greater than or equal to 0\n"),
        (["sftp", "chmod", "--path", "x", "--permissions", "99"], "'--permissions': permissions as text are octal"),
        (["host", "shell", "--cmd", "x", "--env", "{"], "'--env': it is not JSON: line 1, column 2: "),
        (["host", "shell", "--cmd", "x", "--env", "[" * 100_000], "'--env': it is nested too deeply"),
        (
            ["host", "shell", "--cmd", "x", "--env", '{"A": 1}'],
            "Invalid value for '--env': Input should be a valid str",
        ),
        (["host", "shell", "--cmd", "x", "--connection", "3"], "'--connection': Input should be a valid dictionary"),
    ],
)
def test_wrong_usage(cli: Cli, inventory: Path, arguments: list[str], says: str) -> None:
    done = cli(*arguments, "-i", inventory)

    assert (done.code, done.out) == (2, "")
    assert says in done.err


def test_a_wrong_password_option_does_not_show(cli: Cli, inventory: Path) -> None:
    options = '{"password": "S3CR3T", "port": "S3CR3T"}'
    done = cli("host", "getcontext", "--connection", options, "-i", inventory, "-l", "web", "-o", "json")

    assert "S3CR3T" not in done.out + done.err


# Help


def test_help_of_a_module_lists_its_operations(cli: Cli) -> None:
    done = cli("sftp", "--help")

    assert (done.code, done.err) == (0, "")
    assert "Ask for, change and transfer files over SFTP." in done.out
    for _, operation in [pair for pair in ALL if pair[0] == "sftp"]:
        assert f"\n  {command_name(operation)} " in done.out


@every_operation
def test_help_of_an_operation(cli: Cli, name: str, operation: type[Operation[Any]]) -> None:
    done = cli(name, command_name(operation), "--help")

    assert (done.code, done.err) == (0, "")
    assert catalogue.summary(operation).split()[0] in done.out
    assert "``" not in done.out
    parameters_, options = done.out.index("\nParameters:"), done.out.index("\nOptions:")
    assert parameters_ < done.out.index("--group") < options < done.out.index("--limit")
    assert f"Example: reemote {name} {command_name(operation)} -i inventory.json" in " ".join(done.out.split())


def test_an_example_is_complete(cli: Cli) -> None:
    done = cli("sftp", "chmod", "-h")
    assert "Example: reemote sftp chmod -i inventory.json --path /tmp/example\n" in done.out
    assert "[default: all]" in done.out
    done = cli("host", "command", "-h")
    assert "Example: reemote host command -i inventory.json --argv /usr/bin/id --argv -u\n" in done.out


# Other packages


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Install a distribution that registers operations, for the time of a test."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)

    def forget() -> None:
        catalogue.module_names.cache_clear()
        catalogue.module.cache_clear()

    def install(point: str, source: str) -> None:
        info = tmp_path / "reemote_snap-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: reemote-snap\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[reemote.operations]\n{point} = snap_operations\n")
        (tmp_path / "snap_operations.py").write_text(source)
        forget()

    yield install
    forget()
    for added in set(sys.modules) - before:
        if added == "snap_operations":
            del sys.modules[added]


SNAP = '''
"""Snap: packages of another kind."""

from reemote.core.operation import Effect
from reemote.core.remote import Remote


class Echo(Remote[str]):
    """Answer with what was given."""

    effect = Effect.READS
    inventory: str
    """A name that a shared option has, too."""
    retries: list[int] = []
    """Numbers."""

    async def perform(self, host):
        return f"{self.inventory} {self.retries}"
'''


def test_operations_of_other_packages(cli: Cli, install: Callable[..., None], inventory: Path) -> None:
    install("snap", SNAP)

    assert "  snap    Operations of reemote-snap.\n" in cli("--help").out
    assert "Packages of another kind." in cli("snap", "--help").out
    done = cli("snap", "echo", "--inventory", "x", "--retries", "1", "--retries", "2", "-i", inventory, "-l", "web")
    assert done == (0, "server104  ok\n    x [1, 2]\n", "")
    assert "-i, --run-inventory FILE" in cli("snap", "echo", "--help").out


def test_a_package_that_is_broken_breaks_itself_only(cli: Cli, install: Callable[..., None], inventory: Path) -> None:
    install("snap", "1 / 0")

    assert cli("--help").code == 0
    assert cli("sftp", "getcwd", "-i", inventory).code == 0
    done = cli("snap", "--help")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Error: the operations 'snap' (snap_operations) cannot be imported: ZeroDivisionError")


def test_a_package_cannot_take_the_place_of_a_command(cli: Cli, install: Callable[..., None]) -> None:
    install("shell", SNAP)

    assert "reemote-snap" not in cli("--help").out
    assert "Run a shell command on the hosts of an inventory" in cli("shell", "--help").out


def test_help_loads_no_operations() -> None:
    program = (
        "import sys\n"
        "from reemote.cli.main import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "except SystemExit:\n"
        "    print(sorted({'asyncssh', 'pydantic', 'rich', 'reemote.core', 'reemote.sftp'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, "--help"], capture_output=True, text=True, check=True)

    assert "Ask for, change and transfer files over SFTP." in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
