"""Nothing that is handed to a host is read by its shell, except the commands of ``Shell``.

Each thing that gets into a command is given values that a shell, ``env``, ``sudo`` or ``cd`` would read into. Either a
value is refused before any host is asked, or the other side gets it as it is. What each place that makes commands is
tested by is written down in ``SITES``: a new place without a test fails, as does a command that is put together where
nothing quotes.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import fnmatch
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pydantic import ValidationError

import reemote
from reemote.apt import GetPackages, Install, Package, Remove, Update, Upgrade
from reemote.core.errors import ExecutionError, InventoryError
from reemote.core.operation import Operation
from reemote.core.response import Completed, Response
from reemote.execute import Pool, execute
from reemote.host import Command, Shell
from reemote.inventory import Inventory
from reemote.scp import Download, Upload
from reemote.sftp import Get, Put, Sync
from reemote.ssh import wire
from reemote.ssh.gate import Gate
from reemote.ssh.probes import Probes
from reemote.ssh.runner_program import starting
from reemote.ssh.wire import Become, Marks
from tests.command_texts import LOCAL, RUNS, Lint, Module, parsed, sites
from tests.lab.hosts import USERS, Host, Lab
from tests.openssh import User

P = "PWNED"

LONG = "a" * 2**20

VALUES = [
    f"x; touch {P}",
    f"x\ntouch {P}\n",
    f"$(touch {P})",
    f"`touch {P}`",
    f"x || touch {P} #",
    f"x & touch {P} &",
    f"'; touch {P}; '",
    f'"; touch {P}; "',
    f"> {P}",
    f"{{touch,{P}}}",
    f"-Stouch {P} -- ",
    "a\nb",
    "b\n",
    "-",
    "-x",
    "-c",
    "--help",
    "--",
    "'",
    '"',
    "\\",
    "\\n",
    "a\0b",
    "%s",
    "${P}",
    "$HOME",
    "!!",
    "*",
    "[a-z]*",
    "~",
    "~root",
    "  two  blanks  ",
    "A=B",
    "#0",
    "n\u00e4\u00efve \u2603 \U0001f600",
    "\u202e\u0085\u2028",
    "\r",
    "\t",
    "",
    "\udcff\udcfe",
    LONG,
]

NAMES = [value for value in VALUES if 0 < len(value) < 256 and "\0" not in value]
"""Those that can be the name of a file; there is no slash in any."""

SHOW = ("printf", "%s\\0")
"""Prints its further arguments, each with a NUL after it."""


def shown(values: Iterable[str]) -> list[str]:
    """Name values in a way that shows what they are, and that they are long."""
    return [ascii(value) if len(value) < 100 else f"{len(value)} characters" for value in values]


def raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def is_there(directory: Path) -> list[Path]:
    """Find what commands would have made that were read out of a value."""
    return [path for path in directory.rglob(P) if path.name == P]


# On this machine: the texts, read by real shells


SHELLS = [pytest.param(path, id=name) for name in ("bash", "dash") if (path := shutil.which(name))]


class Here:
    """A directory of this machine, and a login shell that runs there what is made for hosts."""

    def __init__(self, directory: Path, shell: str) -> None:
        self.directory = directory
        self.shell = shell

    def run(self, text: str, stdin: bytes | None = None, **environment: str) -> bytes:
        """Run a command as sshd does, and give its standard output."""
        path = f"{self.directory / 'programs'}:/usr/local/bin:/usr/bin:/bin"
        done = subprocess.run(
            [self.shell, "-c", raw(text)],
            cwd=self.directory,
            env={"PATH": path, "SHELL": self.shell, "HOME": str(self.directory), **environment},
            input=stdin or b"",
            capture_output=True,
            timeout=20,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(params=SHELLS)
def here(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Here]:
    directory = tmp_path / "here"
    directory.mkdir()
    yield Here(directory, request.param)
    assert is_there(directory) == []


FRAMES: dict[str, dict[str, Any]] = {
    "alone": {},
    "with a variable": {"env": {"OTHER": "x"}},
    "in a directory": {"directory": "."},
    "watched": {"watched": True},
    "all": {"env": {"OTHER": "x"}, "directory": ".", "watched": True},
}
"""What makes :func:`reemote.ssh.wire.plain` write other frames."""


def plain(command: str | Sequence[str], env: Any = None, directory: str | None = None, *, watched: bool = False) -> str:
    return wire.plain(command, env or {}, directory, watched=watched)


def fits(values: Iterable[str]) -> list[str]:
    """Leave out what operations refuse: what no argument can be."""
    return [value for value in values if "\0" not in value and len(value) < 100_000]


@pytest.mark.parametrize("frame", FRAMES)
def test_arguments(here: Here, frame: str) -> None:
    values = fits(VALUES)
    printed = here.run(plain([*SHOW, *values], **FRAMES[frame]))
    assert printed.split(b"\0")[:-1] == [raw(value) for value in values]


@pytest.mark.parametrize("frame", FRAMES)
def test_programs(here: Here, frame: str) -> None:
    """The first argument is the program, whatever it looks like; what begins with a hyphen is refused before."""
    make_programs(here.directory / "programs")
    wrong = {}
    for name in [name for name in NAMES if not name.startswith("-")]:
        with contextlib.suppress(AssertionError):
            if here.run(plain([name, "x"], **FRAMES[frame])) == raw(name) + b"\0":
                continue
        wrong[ascii(name)] = plain([name, "x"], **FRAMES[frame])
    assert wrong == {}


@pytest.mark.parametrize("command", [["printenv", "-0", "V"], 'printf "%s\\0" "$V"'], ids=["program", "shell"])
@pytest.mark.parametrize("watched", [False, True])
def test_variables(here: Here, command: str | list[str], watched: bool) -> None:
    for value in fits(VALUES):
        assert here.run(plain(command, {"V": value}, watched=watched)) == raw(value) + b"\0", ascii(value)


@pytest.mark.parametrize("watched", [False, True])
def test_directories(here: Here, watched: bool) -> None:
    wrong = {}
    for name in NAMES:
        directory = os.fsencode(here.directory / name)
        (here.directory / name).mkdir()
        with contextlib.suppress(AssertionError):
            if (printed := here.run(plain(["pwd", "-P"], None, name, watched=watched))) == directory + b"\n":
                continue
            wrong[ascii(name)] = printed
    assert wrong == {}


RECORDER = '#!/bin/sh\ncase $2 in "exec sh -c "*) exec /bin/sh "$@" ;; esac\nprintf "%s" "$2"\n'
"""A login shell that does not read the commands of users, but prints them."""


@pytest.mark.parametrize("frame", FRAMES)
def test_shell_commands(here: Here, frame: str) -> None:
    """They reach the login shell as they were written, through whatever frames."""
    recorder = here.directory / "recorder"
    recorder.write_text(RECORDER)
    recorder.chmod(0o755)
    for value in fits(VALUES):
        text = plain(value, **FRAMES[frame])
        if frame == "alone":
            assert text == value
        else:
            assert here.run(text, SHELL=str(recorder)) == raw(value), ascii(value)


@pytest.mark.parametrize("value", [*VALUES, "-1", "0", "1 2", "12; touch PWNED", "\u0661"], ids=ascii)
def test_the_number_of_a_process_group_is_a_number(value: str) -> None:
    """A host tells it, and it is written into a command that ends the group."""
    gate = Gate(Become("sudo", "root"), Marks())
    gate.feed(f"{gate.marks.start}{gate.marks.open}{value}\n".encode("utf-8", "surrogateescape"))
    assert gate.group is None or (type(gate.group) is int and gate.group >= 0)


class Runner:
    """Runs the commands of probes on this machine."""

    def __init__(self, here: Here) -> None:
        self._here = here

    async def __call__(self, command: str, *, stdin: Any = None) -> Completed:
        data = stdin if isinstance(stdin, bytes | None) else b"".join([piece async for piece in stdin])
        return Completed(command=command, stdout=await asyncio.to_thread(self._here.run, command, data))


@pytest.mark.parametrize("frame", FRAMES)
def test_questions(here: Here, frame: str) -> None:
    """Read by the shell that a connection keeps, one after the other: the text of one is not the next one's."""
    mark = "0123456789abcdef" * 2
    each = [plain([*SHOW, value], **FRAMES[frame]) for value in fits(VALUES)]
    given = b"".join(raw(wire.turn(command, mark)) for command in each)
    start, *printed = here.run(wire.kept_shell(mark), given).split(mark.encode())
    assert (start, printed[-1]) == (b"", b"0\n")
    assert printed[0] == raw(fits(VALUES)[0]) + b"\0"
    assert printed[1:-1] == [b"0\n" + raw(value) + b"\0" for value in fits(VALUES)[1:]]
    broken = ["echo 'open", "echo )", "exit 3", f"touch x; {P}=", "cat <<END"]
    given = b"".join(raw(wire.turn(command, mark)) for command in [*broken, "printf well"])
    assert here.run(wire.kept_shell(mark), given).endswith(b"well" + mark.encode() + b"0\n")


def test_the_start_of_the_runner(here: Here) -> None:
    mark, program = "0123456789abcdef" * 2, b"import sys; sys.stdout.write('ran' + sys.stdin.read())"
    assert here.run(starting(mark, len(program)), program + b" on") == mark.encode() + b"ran on"


async def test_paths_of_probes(here: Here) -> None:
    """In directories and with files of these names; what a host answers is read right, too."""
    probes, names = Probes(Runner(here)), [raw(name) for name in NAMES]
    tar = subprocess.run(
        ["tar", "-cf-", "-C", str(make_files(here.directory / "local")), "."], capture_output=True, check=True
    ).stdout

    async def archive() -> AsyncIterator[bytes]:
        yield tar

    for name in names:
        top = os.fsencode(here.directory / os.fsdecode(name))
        Path(os.fsdecode(top)).mkdir()
        assert await probes.unpack(top, archive()) is not None, name
        tree = await probes.tree(top)
        assert tree is not None
        assert sorted(tree) == sorted(names), name
        found = await probes.digests([top + b"/" + each for each in names])
        assert sorted(found) == sorted(top + b"/" + each for each in names), name


def make_files(directory: Path) -> Path:
    """Make a directory with files of all names, each with its name in it."""
    directory.mkdir()
    for name in NAMES:
        (directory / name).write_bytes(raw(name))
    return directory


def make_programs(directory: Path) -> None:
    """Make programs of all names; each prints the last part of its own path, and a NUL."""
    directory.mkdir(exist_ok=True)
    for name in NAMES:
        program = directory / name
        program.write_text("#!/bin/sh\nprintf '%s\\0' \"${0##*/}\"\n")
        program.chmod(0o755)


# Refused before any host is asked


@pytest.mark.parametrize("value", VALUES, ids=shown(VALUES))
@pytest.mark.parametrize("operation", [Install, Remove, Package], ids=lambda each: each.__name__)
def test_packages(operation: type[Any], value: str) -> None:
    with pytest.raises(ValidationError):
        operation(packages=["nginx", value])


OPTIONS: Sequence[tuple[type[Any], str]] = [
    (Install, "install_recommends"),
    (Install, "lock_timeout"),
    (Remove, "purge"),
    (Update, "lock_timeout"),
    (Upgrade, "full"),
    (Package, "present"),
    (Package, "cache_valid_time"),
]


@pytest.mark.parametrize(("operation", "option"), OPTIONS)
def test_options_of_apt(operation: type[Any], option: str) -> None:
    packages = {"packages": ["nginx"]} if "packages" in operation.model_fields else {}
    for value in VALUES:
        with pytest.raises(ValidationError):
            operation(**packages, **{option: value})


@pytest.mark.parametrize("operation", [Command, Shell, GetPackages, Put], ids=lambda each: each.__name__)
def test_users(operation: type[Any]) -> None:
    """A name of a user that is accepted has nothing that ``su`` or ``sudo`` could read as anything else."""
    needed: dict[type[Any], dict[str, Any]] = {
        Command: {"argv": ["id"]},
        Shell: {"cmd": "id"},
        Put: {"localpaths": "x", "remotepath": "x"},
    }
    wrong = []
    for value in VALUES:
        with contextlib.suppress(ValidationError):
            operation(sudo=True, sudo_user=value, **needed.get(operation, {}))
            if value.startswith(("-", "#")) or len(value) > 256 or re.search("[\0-\x20:/]", value):
                wrong.append(shown([value])[0])
    assert wrong == []


# On a host, through everything


ODD = "$(touch${IFS}PWNED)"
"""The name of a user: the host has one who is called so."""

HOST_USERS = (
    *USERS,
    User(ODD, "odd-password"),
    User("dash", key=True, sudo="ALL=(ALL:ALL) NOPASSWD: ALL", shell="/bin/dash"),
    User("recorder", key=True, sudo="ALL=(ALL:ALL) NOPASSWD: ALL", shell="/usr/local/bin/recorder"),
)

ROOT = {"su_password": "root-password"}

WAYS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "login": ("keyed", {}, {}),
    "login with dash": ("dash", {}, {}),
    "watched": ("keyed", {"kill_on_disconnect": True}, {}),
    "sudo": ("keyed", {"sudo": True}, {}),
    "sudo with dash": ("dash", {"sudo": True}, {}),
    "sudo with a password": ("user", {"sudo": True}, {"password": "password", "sudo_password": "password"}),
    "sudo, watched": ("keyed", {"sudo": True, "kill_on_disconnect": True}, {}),
    "sudo as another": ("keyed", {"sudo": True, "sudo_user": ODD}, {}),
    "sudo on a terminal": ("tty", {"sudo": True}, {"sudo_password": "password"}),
    "su": ("keyed", {"su": True}, ROOT),
    "su, watched": ("dash", {"su": True, "kill_on_disconnect": True}, ROOT),
    "su as another": ("keyed", {"su": True}, {"su_user": ODD, "su_password": "odd-password"}),
}
"""How a command may run: the user who logs in, the operation's options, and what the inventory has besides."""


class Outcome(NamedTuple):
    """What became of a value."""

    value: str
    refused: str = ""
    printed: bytes = b""
    failed: str = ""

    def problem(self, expected: bytes, *, among: bool) -> str:
        """Say what is wrong, if anything: a value is refused, or arrives as it is, *among* others if need be."""
        if self.refused or (not self.failed and (self.printed == expected or (among and expected in self.printed))):
            return ""
        return self.failed or f"the host got {self.printed[:200]!r}"


class Site:
    """A host, and what is asked of it."""

    def __init__(self, lab: Lab, pool: Pool) -> None:
        self.lab = lab
        self.pool = pool

    @property
    def host(self) -> Host:
        return self.lab.hosts[0]

    def inventory(self, user: str, authentication: Mapping[str, Any] | None = None, name: str = "host") -> Inventory:
        rest = dict(authentication or {})
        login = (
            {"password": rest.pop("password")} if "password" in rest else {"client_keys": [str(self.lab.client_key)]}
        )
        connection = {"host": name, "address": self.host.address, "username": user, **login}
        known = {"known_hosts": str(self.lab.known_hosts)}
        return Inventory.of({"hosts": [{"connection": connection | known, "authentication": rest}]})

    async def ask(self, make: Callable[..., Operation[Any]], value: str, way: str = "login") -> Outcome:
        """Make an operation with a value, run it, and tell what became of the value."""
        user, options, authentication = WAYS.get(way, (way, {}, {}))
        try:
            operation = make(value, **options)
        except ValidationError as error:
            return Outcome(value, refused=str(error))
        try:
            response = await self.response(operation, self.inventory(user, authentication))
        except ExecutionError as group:
            raised = group.exceptions[0]
            if isinstance(raised, InventoryError):
                return Outcome(value, refused=str(raised))
            return Outcome(value, failed=f"raised {raised!r}"[:300])
        found = response["value"]
        if response["error"] and (found, response.outcome) == ("CommandTooLong", "not_started"):
            return Outcome(value, refused=response.detail)
        if response["error"]:
            return Outcome(value, failed=f"{found}: {response.detail}"[:300])
        if isinstance(found, Completed) and found.exit_status != 0:
            return Outcome(value, failed=f"exit status {found.exit_status}: {found.stderr}"[:300])
        return Outcome(value, printed=found.stdout_bytes if isinstance(found, Completed) else b"")

    async def response(self, operation: Operation[Any], inventory: Inventory) -> Response[Any]:
        return (await execute(lambda: operation, inventory, pool=self.pool))[0]

    async def each(
        self,
        make: Callable[..., Operation[Any]],
        expected: Callable[[str], bytes],
        values: Sequence[str],
        way: str = "login",
        *,
        among: bool = False,
    ) -> dict[str, str]:
        """Ask with each value, some at a time, and tell what went wrong."""
        places = asyncio.Semaphore(6)

        async def one(value: str) -> Outcome:
            async with places:
                return await self.ask(make, value, way)

        outcomes = await asyncio.gather(*map(one, fits(values)))
        # Those that may end the connection, alone.
        outcomes += [await one(value) for value in values if value not in fits(values)]
        problems = {shown([each.value])[0]: each.problem(expected(each.value), among=among) for each in outcomes}
        return {value: problem for value, problem in problems.items() if problem}

    def made(self) -> list[str]:
        """Give what commands have made on the host that were read out of a value, and remove it."""
        return self.host.run(["find", "/", "-xdev", "-name", P, "-print", "-delete"]).stdout.split()


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory, lab: Lab) -> Iterator[Lab]:
    """A host with programs and directories of all names."""
    with Lab(tmp_path_factory.mktemp("injection") / "lab", ["server104"], users=HOST_USERS) as own:
        host = own.hosts[0]
        make_programs(host.path("/usr/local/bin"))
        recorder = host.path("/usr/local/bin/recorder")
        recorder.write_text(RECORDER.replace("/bin/sh ", "/bin/bash "))
        recorder.chmod(0o755)
        host.run(["sh", "-c", "echo /usr/local/bin/recorder >>/etc/shells"]).check_returncode()
        for user in ("keyed", "dash", "user", "tty"):
            home = host.path(f"/home/{user}")
            home.chmod(0o755)
            for name in NAMES:
                (home / name).mkdir()
                os.chown(home / name, home.stat().st_uid, home.stat().st_gid)
        yield own


@pytest.fixture
async def site(started: Lab) -> AsyncIterator[Site]:
    site = Site(started, Pool())
    with started.network():
        yield site
        await site.pool.close()
    assert site.made() == []


def accepted(make: Callable[..., Operation[Any]]) -> list[str]:
    """Give the values that are not refused."""
    found = []
    for value in VALUES:
        with contextlib.suppress(ValidationError):
            make(value)
            found.append(value)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
class TestOnAHost:
    """Each place of a value, in each way to run a command."""

    async def test_arguments(self, site: Site, way: str) -> None:
        """All of them at once, those aside that are refused by themselves."""
        values = accepted(lambda value: Command(argv=[*SHOW, value]))
        outcome = await site.ask(lambda _, **how: Command(argv=[*SHOW, *values], **how), "", way)
        assert outcome.failed == ""
        assert outcome.printed.split(b"\0")[:-1] == [raw(value) for value in values]

    async def test_variables(self, site: Site, way: str) -> None:
        """All of them at once, too."""
        env = {f"V{number}": value for number, value in enumerate(fits(VALUES)) if value.isprintable() or "\n" in value}
        outcome = await site.ask(lambda _, **how: Command(argv=["printenv", "-0", *env], env=env, **how), "", way)
        assert outcome.failed == ""
        assert outcome.printed.split(b"\0")[:-1] == [raw(value) for value in env.values()]

    async def test_programs(self, site: Site, way: str) -> None:
        """Their names; what is refused by its length or its letters is among the values, too."""
        values = VALUES if way in ("login", "sudo", "su") else ["-c", f"-Stouch {P} -- ", "A=B", "'"]
        problems = await site.each(
            lambda value, **how: Command(argv=[value, "x"], **how), lambda value: raw(value) + b"\0", values, way
        )
        assert problems == {}

    async def test_directories(self, site: Site, way: str) -> None:
        user = WAYS[way][0]
        values = VALUES if way in ("login", "sudo", "su") else ["-x", "~", f"$(touch {P})", "b\n"]
        problems = await site.each(
            lambda value, **how: Command(argv=["pwd", "-P"], cwd=value, **how),
            lambda value: raw(f"/home/{user}/{value}\n"),
            values,
            way,
        )
        assert problems == {}


@pytest.mark.slow
class TestSingleWays:
    """What needs a way of its own."""

    @pytest.mark.parametrize("options", [{}, {"cwd": "/"}, {"sudo": True}, {"env": {"A": "b"}}], ids=str)
    async def test_shell_commands(self, site: Site, options: dict[str, Any]) -> None:
        """They come to the login shell as they are; this one prints them."""
        problems = await site.each(lambda value: Shell(cmd=value, **options), raw, VALUES, "recorder")
        assert problems == {}

    async def test_the_user_of_sudo_and_su(self, site: Site) -> None:
        for way in ("sudo as another", "su as another"):
            outcome = await site.ask(lambda _, **how: Command(argv=["id", "-un"], **how), "", way)
            assert outcome == Outcome("", printed=f"{ODD}\n".encode()), way

    @pytest.mark.parametrize("way", ["login", "sudo", "sudo, watched", "su"])
    async def test_a_program_with_a_variable_beside_it(self, site: Site, way: str) -> None:
        problems = await site.each(
            lambda value, **how: Command(argv=[value, "x"], env={"OTHER": "x"}, **how),
            lambda value: raw(value) + b"\0",
            VALUES,
            way,
        )
        assert problems == {}

    async def test_variables(self, site: Site) -> None:
        """One by one, with those that may be refused."""
        problems = await site.each(
            lambda value: Command(argv=["printenv", "-0", "V"], env={"V": value}),
            lambda value: raw(value) + b"\0",
            [*VALUES, "a" * 131_000, "a" * 131_072, "a" * 200_000],
        )
        assert problems == {}

    @pytest.mark.parametrize("way", ["login", "sudo", "su"])
    async def test_names_of_variables(self, site: Site, way: str) -> None:
        """No name is accepted but a plain one."""
        problems = await site.each(
            lambda value, **how: Command(argv=["id"], env={value: "x"}, **how), lambda _: b"", VALUES, way
        )
        assert problems == {}

    @pytest.mark.parametrize("way", ["login", "sudo", "su"])
    async def test_names_of_variables_of_the_session(self, site: Site, way: str) -> None:
        """asyncssh's option of the session has names, too, in an operation as in an inventory."""
        problems = await site.each(
            lambda value, **how: Command(argv=["printenv", "-0"], session={"env": {value: "x"}}, **how),
            lambda value: raw(f"{value}=x\0"),
            VALUES,
            way,
            among=True,
        )
        assert problems == {}

    async def test_variables_of_the_session(self, site: Site) -> None:
        problems = await site.each(
            lambda value: Command(argv=["printenv", "-0", "V"], session={"env": {"V": value}}),
            lambda value: raw(value) + b"\0",
            VALUES,
        )
        assert problems == {}

    @pytest.mark.parametrize("form", [["A"], ["=x"], "A=b", {"A": None}, [None], 5], ids=str)
    async def test_forms_of_variables_of_the_session(self, site: Site, form: Any) -> None:
        """What asyncssh would not take is refused, and not an error in the deployment."""
        outcome = await site.ask(lambda _: Command(argv=["id"], session={"env": form}), "")
        assert outcome.failed == ""

    @pytest.mark.parametrize("options", [{}, {"cwd": "/"}, {"env": {"A": "b"}}, {"sudo": True}, {"su": True}], ids=str)
    @pytest.mark.parametrize("character", ["x", "'"])
    async def test_the_longest_command(self, site: Site, options: dict[str, Any], character: str) -> None:
        """What is not refused can be run, whatever there is around it: the longest, and what is a little longer."""
        inventory = site.inventory("keyed", ROOT if "su" in options else {})

        async def ask(length: int) -> Response[Any] | None:
            try:
                operation = Command(argv=["printf", "%s", character * length], **options)
            except ValidationError:
                return None
            response = await site.response(operation, inventory)
            return None if (response["value"], response["error"]) == ("CommandTooLong", True) else response

        longest, step = 0, 2**17
        while step := step // 2:
            if (response := await ask(longest + step)) is not None:
                assert response["error"] is False, response.detail[:300]
                assert (response["value"].stderr, len(response["value"].stdout)) == ("", longest + step)
                longest += step
        assert longest * len(shlex.quote(character)) > 20_000

    async def test_one_long_value_does_not_end_what_else_runs(self, site: Site) -> None:
        """The connection is shared, and sshd drops it when it gets a packet that is too long."""
        answers: list[Response[Any]] = []

        class Both:
            async def execute(self) -> AsyncIterator[Any]:
                long = Command(argv=["printenv", "V"], env={"V": LONG})
                responses: Any = yield [Command(argv=["sleep", "0.5"]), long]
                answers.extend(responses)

        await execute(Both, site.inventory("keyed"), pool=site.pool)
        assert [each["error"] for each in answers] == [False, True]
        assert (str(answers[1]["value"]), answers[1].outcome) == ("CommandTooLong", "not_started")


# Files


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A directory of this machine with files of all names."""
    return make_files(tmp_path / "local")


def contents(directory: Path) -> dict[bytes, bytes]:
    """Give what is in a directory: names and contents."""
    return {raw(path.name): path.read_bytes() for path in directory.iterdir() if path.is_file()}


ALL = {raw(name): raw(name) for name in NAMES}


@pytest.mark.slow
class TestFiles:
    """Paths of both sides; the host's ``find``, ``tar`` and ``sha256sum`` are used for some of this."""

    @pytest.mark.parametrize("way", ["keyed", "sudo", "su"])
    async def test_sync(self, site: Site, local: Path, way: str) -> None:
        """Into directories of all names; and once more, with all contents compared."""
        name = f"/srv/{way}"
        top = site.host.path(name)
        top.mkdir()
        top.chmod(0o777)
        for step, changed in enumerate((True, False)):

            def make(value: str, **how: Any) -> Operation[Any]:
                path = f"{name}/{value}" if value in NAMES else value
                return Sync(localpath=local, remotepath=path, checksum=step > 0, **how)

            user, options, authentication = WAYS.get(way, ("keyed", {}, {}))
            for value in VALUES:
                try:
                    operation = make(value, **options)
                except ValidationError:
                    assert value not in NAMES
                    continue
                response = await site.response(operation, site.inventory(user, authentication))
                if value in NAMES:
                    assert (response["error"], response["changed"]) == (False, changed), (value, response)
                else:
                    assert response["error"] is True, ascii(value)[:100]
        for each in NAMES:
            assert contents(top / each) == ALL

    @pytest.mark.parametrize("make", [Put, Upload], ids=["put", "scp upload"])
    async def test_to_the_host(self, site: Site, local: Path, make: Any) -> None:
        """Paths of this machine, which may be patterns for scp; there is a file of that very name."""
        top = site.host.path(f"/srv/{make.__name__}")
        top.mkdir()
        top.chmod(0o777)
        for name in NAMES:
            fields = ("localpaths", "remotepath") if make is Put else ("srcpaths", "dstpath")
            operation = make(**dict(zip(fields, (f"{local}/{name}", f"/srv/{make.__name__}/{name}"), strict=True)))
            response = await site.response(operation, site.inventory("keyed"))
            assert response["error"] is False, (name, response.detail)
        assert contents(top) == ALL

    @pytest.mark.parametrize("make", [Get, Download], ids=["get", "scp download"])
    async def test_from_the_host(self, site: Site, tmp_path: Path, make: Any) -> None:
        top = make_files(site.host.path(f"/srv/{make.__name__}"))
        target = tmp_path / "target"
        target.mkdir()
        for name in NAMES:
            fields = ("remotepaths", "localpath") if make is Get else ("srcpaths", "dstpath")
            operation = make(**dict(zip(fields, (f"/srv/{top.name}/{name}", target / name), strict=True)))
            response = await site.response(operation, site.inventory("keyed"))
            assert response["error"] is False, (name, response.detail)
        assert contents(target) == ALL
        assert is_there(tmp_path) == []

    async def test_excludes(self, site: Site, local: Path) -> None:
        """Patterns are matched here; the host does not get them."""
        for number, pattern in enumerate(value for value in VALUES if value != "\udcff\udcfe"):
            top = f"/srv/excludes{number}"
            with contextlib.suppress(ValidationError):
                operation = Sync(localpath=local, remotepath=f"/tmp/{number}", exclude=[pattern])
                response = await site.response(operation, site.inventory("keyed"))
                assert response["error"] is False, (pattern, response.detail)
                left = {name for name in NAMES if not fnmatch.fnmatchcase(name, pattern)}
                assert set(contents(site.host.path(f"/tmp/{number}"))) == {raw(name) for name in left}, ascii(pattern)
            assert not site.host.path(top).exists()

    async def test_names_of_hosts_in_paths_of_this_machine(self, site: Site, tmp_path: Path) -> None:
        """Whatever a host is called: what it sends stays in the directory that was named."""
        site.host.path("/srv/one").write_text("content")
        wrong = {}
        for value in [*VALUES, "..", ".", "../../x", "/x", "a/../../b", "{host}", "$(id)"]:
            target = tmp_path / "target"
            shutil.rmtree(target, ignore_errors=True)
            (target / "in").mkdir(parents=True)
            try:
                inventory = site.inventory("keyed", name=value)
            except InventoryError:
                continue
            for path in ("in/{host}", "in/{host}/x"):
                try:
                    await site.response(Get(remotepaths="/srv/one", localpath=f"{target}/{path}"), inventory)
                except ExecutionError as group:
                    wrong[ascii(value)[:80]] = repr(group.exceptions[0])
            if found := [path for path in target.iterdir() if path.name != "in"]:
                wrong[ascii(value)[:80]] = str(found)
        assert wrong == {}


# No place without a test


NOT_OF_A_HOST = {
    "reemote.cli.files:_carry_out run",
    "reemote.cli.reporting:carry_out run",
    "reemote.execute:_Run._within_time run",
    "reemote.execute:_Work.run run",
    "reemote.execute:execute run",
    "reemote.execute:stream run",
    "reemote.server.runner:Runner.run run",
    "reemote.transfer.sync:sync run",
}
"""These run deployments and transfers, or count them."""

FOR_PEOPLE = {
    "reemote.apt.running:Apt._explained shlex.join",
    "reemote.apt.running:_Ran.shown_as shlex.join",
    "reemote.cli.parameters:_example shlex.quote",
    "reemote.cli.sandbox:_keep_up shlex.quote",
    "reemote.core.secrets:_Known.add shlex.quote",
    "reemote.ssh.hostkeys:Trust.explain shlex.quote",
    "reemote.ssh.request:Request.text shlex.join",
    "reemote.testing.fake:FakeHost.run shlex.join",
}
"""These write commands that are shown or looked for, and run by nobody."""

COMMANDS = [test_arguments, TestOnAHost.test_arguments, TestSingleWays.test_shell_commands]

SITES: dict[str, Sequence[Callable[..., Any]]] = {
    "reemote.apt.commands:_AptGet.to_shell returns": [test_packages, test_options_of_apt],
    "reemote.apt.commands:_AptGet.to_shell shlex.join": [test_packages, test_options_of_apt],
    "reemote.apt.running:Apt._once run": [test_packages, test_options_of_apt],
    "reemote.apt.running:Apt._once shlex.join": [test_packages, test_options_of_apt],
    "reemote.core.remote:Command.perform run": [test_packages],
    "reemote.core.remote:Command.to_shell returns": [test_packages],
    "reemote.host:Command.to_shell returns": [TestOnAHost.test_arguments],
    "reemote.host:Command.to_shell shlex.join": [TestOnAHost.test_arguments],
    "reemote.host:Shell.to_shell returns": [TestSingleWays.test_shell_commands],
    "reemote.host:_Process.perform run": COMMANDS,
    "reemote.host:_arguments shlex.join": [TestSingleWays.test_the_longest_command],
    "reemote.ssh.host:SshHost._run run": COMMANDS,
    "reemote.ssh.host:SshHost.run Request": [TestSingleWays.test_names_of_variables_of_the_session, *COMMANDS],
    "reemote.ssh.host:_Access.run Request": [TestFiles.test_sync],
    "reemote.ssh.link:Link._end_privileged Request": [test_the_number_of_a_process_group_is_a_number],
    "reemote.ssh.link:Link._end_privileged shlex.join": [test_the_number_of_a_process_group_is_a_number],
    "reemote.ssh.link:Link._ask run": [test_questions],
    "reemote.ssh.link:Link._create create_session": [TestSingleWays.test_names_of_variables_of_the_session],
    "reemote.ssh.link:Link._open LeanChannel": COMMANDS,
    "reemote.ssh.request:Request.wire _wire": COMMANDS,
    "reemote.ssh.probes:Probes._probe framed": [test_paths_of_probes],
    "reemote.ssh.probes:Probes.digests _probe": [test_paths_of_probes],
    "reemote.ssh.probes:Probes.tree _probe": [test_paths_of_probes],
    "reemote.ssh.probes:Probes.unpack _probe": [test_paths_of_probes],
    "reemote.ssh.probes:Probes.unpack framed": [test_paths_of_probes],
    "reemote.ssh.runner:Runner.start create_session": [test_the_start_of_the_runner],
    "reemote.ssh.runner_program:starting shlex.join": [test_the_start_of_the_runner],
    "reemote.ssh.sftp:_privileged open_session": [TestFiles.test_sync, TestSingleWays.test_the_user_of_sudo_and_su],
    "reemote.ssh.sftp:start open_session": [TestFiles.test_sync],
    "reemote.ssh.shell:KeptShell.start create_session": [test_questions],
    "reemote.ssh.wire:framed shlex.join": [test_arguments, test_variables, test_directories, test_shell_commands],
    "reemote.ssh.wire:bare framed": [TestOnAHost.test_arguments, TestOnAHost.test_directories],
    "reemote.ssh.wire:become framed": [TestOnAHost.test_arguments, TestOnAHost.test_directories],
    "reemote.ssh.wire:kept_shell framed": [test_questions],
    "reemote.ssh.wire:turn shlex.quote": [test_questions],
    "reemote.ssh.wire:plain framed": [test_arguments, test_variables, test_directories],
    "reemote.ssh.wire:plain shlex.join": [test_arguments, test_programs],
}
"""What tests each place that makes a command, or hands one on."""

MODULES = parsed(Path(reemote.__path__[0]), "reemote")

QUOTING = frozenset({"reemote.ssh.wire", "reemote.ssh.probes"})
"""The modules in which texts for shells are made."""


def test_each_place_that_makes_a_command_is_tested() -> None:
    found = {str(site) for site in sites(MODULES)}
    assert found - NOT_OF_A_HOST - FOR_PEOPLE - set(SITES) == set(), "a new place needs a test, and a line in SITES"
    assert (NOT_OF_A_HOST | FOR_PEOPLE | set(SITES)) - found == set(), "there is no such place any more"


def test_a_new_place_is_found() -> None:
    source = (
        "async def f(host, name):\n    await host.run(['id', name])\n"
        "class A:\n    def to_shell(self):\n        return shlex.join(self.argv)\n"
        "    async def g(self):\n        await self.c.create_session(x, self.text)\n"
        "asyncio.run(f())\n"
    )
    assert {str(site) for site in sites([Module("new", ast.parse(source))])} == {
        "new:f run", "new:A.to_shell returns", "new:A.to_shell shlex.join", "new:A.g create_session",
    }  # fmt: skip
    assert {"run", "Request", "create_session", "open_session"} <= set(RUNS)
    assert "host" not in LOCAL


# No command is put together where nothing quotes


def test_commands_are_put_together_by_what_quotes() -> None:
    assert list(map(str, Lint(MODULES, QUOTING).faults())) == []


BAD = [
    "await host.run(f'ls {path}')",
    "await host.run('ls ' + path)",
    "await host.run('ls %s' % path)",
    "await host.run('ls {}'.format(path))",
    "await host.run('ls {path}'.format_map(vars()))",
    "await host.run(' '.join(argv))",
    "await host.run(Template('ls $x').substitute(x=path))",
    "await host.run(TEXT.replace('PATH', path))",
    "await host.run(command=f'ls {path}')",
    "await host.run(f'ls {path}' if path else 'ls')",
    "await host.run(path or f'ls {path}')",
    "await host.run(('ls ' + path))",
    "await host.run(text := f'ls {path}')",
    "text = f'ls {path}'\n    await host.run(text)",
    "text: str = 'ls ' + path\n    more = text\n    await host.run(more)",
    "text = 'ls'\n    text += path\n    await host.run(text)",
    "await host.run(['sh', '-c', f'ls {path}'])",
    "argv = ['sh', '-c', 'ls ' + path]\n    await host.run(argv)",
    "await host.run(shlex.join(['sh', '-c', f'ls {path}']))",
    "await connection.create_session(factory, f'ls {path}')",
    "await connection.open_session(f'ls {path}')",
    "await connection.create_process('ls ' + path)",
    "return Request(command=f'ls {path}')",
    "return Request(f'ls {path}')",
    "await helper(host, f'ls {path}')",
    "await outer(host, 'ls ' + path)",
    "await named(host, script='ls ' + path)",
    "await host.run(written(path))",
    "await host.run(await awaited(path))",
    "await host.run(self.text)",
]

GOOD = [
    "await host.run('ls')",
    "await host.run(TEXT)",
    "await host.run(f'{TEXT} -l')",
    "await host.run(TEXT + ' -l')",
    "await host.run(['ls', f'{path}/x'])",
    "await host.run(['ls', *paths] + ['-l'])",
    "await host.run(shlex.join(['ls', f'{path}/x', 'a' + path]))",
    "await host.run(self.cmd)",
    "await host.run('cat', stdin=f'{path}')",
    "await host.run('ls', cwd='/srv/' + path, env={'A': f'{path}'})",
    "text = 'ls'\n    note = f'in {path}'\n    await host.run(text)",
    "asyncio.run(main(f'{path}'))",
    "await helper(host, TEXT)",
    "await host.run(['sh', '-c', 'cat \"$1\"', 'sh', path])",
    "raise HostError(f'{path} is missing')",
]

FRAME = """
TEXT = 'ls -a'

class Operation:
    {fields}

    @property
    def text(self):
        return f'ls {{self.path}}'

    async def perform(self, host, path, argv, connection):
        {code}

async def helper(host, script):
    await host.run(script)

async def named(host, *, script):
    await host.run(script)

async def outer(host, words):
    await helper(host, words)

def written(path):
    text = 'ls ' + path
    return text

async def awaited(path):
    return f'ls {{path}}'
"""


def faults_in(code: str, fields: str = "path: str") -> list[str]:
    source = FRAME.format(code=code.replace("\n    ", "\n        "), fields=fields)
    return [each.text for each in Lint([Module("snippet", ast.parse(source))]).faults()]


@pytest.mark.parametrize("code", BAD)
def test_the_lint_finds(code: str) -> None:
    assert len(faults_in(code)) == 1


@pytest.mark.parametrize("code", GOOD)
def test_the_lint_lets_pass(code: str) -> None:
    assert faults_in(code) == []


@pytest.mark.parametrize("value", ["f'ls {self.path}'", "'ls ' + self.path", "'ls %s' % self.path", "self.text"])
def test_the_lint_looks_at_what_operations_return(value: str) -> None:
    assert len(faults_in("pass", f"def to_shell(self):\n        return {value}")) == 1


def test_only_the_quoting_modules_are_left_out() -> None:
    """They do put texts together, which the lint would find: so it does look, and they are tested above."""
    assert {fault.module for fault in Lint(MODULES).faults()} == QUOTING
