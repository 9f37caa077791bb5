"""No secret shows anywhere: each that the product takes is a word of its own, and is looked for wherever anything goes.

Real hosts, whose users have these words as passwords, are driven with all that can be turned on to see more. A place in
which nothing could be found proves nothing, so each is looked through for a harmless word as well, that must be there.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import os
import pprint
import re
import secrets
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import asyncssh
import pytest
import rich.pretty
import rich.traceback
from pydantic import SecretStr

from reemote.core.response import as_json
from reemote.core.secrets import SHORTEST, LookUp
from reemote.execute import Pool, execute
from reemote.host import Shell
from reemote.inventory import Connection, Inventory
from reemote.server.callers import Token
from tests.lab.hosts import USERS, Host, Lab
from tests.openssh import User
from tests.programs import nothing_listens

pytestmark = pytest.mark.xdist_group("canaries")  # what it shows is made once, and is dear

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = Path(__file__).with_name("canary_program.py")

FIELDS = (
    "password",
    "passphrase",
    "pin",
    "sudo",
    "su",
    "env",
    "file",
    "cmd",
    "asked",
    "asked-su",
    "bad-login",
    "bad-sudo",
    "bad-su",
    "bad-phrase",
    "refused",
    "own-login",
    "own-phrase",
    "sent",
    "bad-token",
)
"""Every secret that the product takes, right and wrong ones."""

PREFIX = "S3CR3T"

CANARIES = {field: f"{PREFIX}-{field}-{secrets.token_hex(4)}" for field in FIELDS}
"""They are short, since what Python shows of tasks leaves out the middle of long texts."""

ALL = "ALL=(ALL:ALL) ALL"

OWNERS = (
    User("by-password", CANARIES["password"], sudo=ALL),
    User("by-override", CANARIES["own-login"], sudo=ALL),
    User("keyholder", CANARIES["sudo"], key=True, sudo=ALL),
    User("target", CANARIES["su"]),
    User("asked-target", CANARIES["asked-su"]),
    *(User(f"by-{kind}", CANARIES[kind], key=True, sudo=ALL) for kind in ("env", "file", "cmd")),
    User("by-question", CANARIES["asked"], key=True, sudo=ALL),
)


# Looking for secrets


def forms(secret: str) -> Iterator[bytes]:
    """Give a secret as it may look: plain, as bytes in hexadecimal, and in base64 at each offset."""
    plain = secret.encode()
    yield plain
    yield plain.hex().encode()
    for offset in range(3):
        text = base64.b64encode(b"\0" * offset + plain)
        yield text[4 if offset else 0 : -4]


LOOKED_FOR = {field: list(forms(secret)) for field, secret in CANARIES.items()}


def found_in(data: bytes, more: Mapping[str, str] | None = None) -> set[str]:
    """Name the secrets that are in some bytes."""
    looked_for = LOOKED_FOR | {name: list(forms(secret)) for name, secret in (more or {}).items()}
    data += undumped(data)
    found = {field for field, texts in looked_for.items() if any(text in data for text in texts)}
    return found or ({"a part of one"} if PREFIX.encode() in data else set())


def undumped(data: bytes) -> bytes:
    """Give the packets in a log as they were: asyncssh writes them in hexadecimal, 16 bytes a line."""
    packets = [b""]
    for line in data.split(b"\n"):
        if match := _DUMPED.match(line):
            packets[-1] += bytes.fromhex(match[1].decode())
        elif packets[-1]:
            packets.append(b"")
    return b"\n".join(packets)


_DUMPED = re.compile(rb"  [0-9a-f]{8}: ((?:[0-9a-f]{2} ){1,16})")


def found_below(*directories: Path, more: Mapping[str, str] | None = None) -> dict[str, set[str]]:
    """Name the secrets in all files below directories, in names of files, too."""
    found = {}
    for directory in directories:
        for path in directory.rglob("*"):
            data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            if names := found_in(os.fsencode(path.name) + b"\n" + data, more):
                found[str(path)] = names
    return found


@pytest.mark.parametrize("field", FIELDS)
def test_secrets_are_found_where_they_are(field: str, tmp_path: Path) -> None:
    secret = CANARIES[field]
    assert len(secret) > SHORTEST
    for text in (secret, f"{secret!r}"[1:-1], secret.encode().hex(), *(_based(secret, n) for n in range(7))):
        assert found_in(f"before{text}after".encode()) == {field}
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file").write_text(f"x{secret}")
    (tmp_path / f"{secret}.txt").touch()
    assert found_below(tmp_path) == {
        str(tmp_path / "sub" / "file"): {field}, str(tmp_path / f"{secret}.txt"): {field}
    }  # fmt: skip
    packet = f"xyz{secret}".encode()
    dump = [f"  {n:08x}: {packet[n : n + 16].hex(' ')}   ...\n" for n in range(0, len(packet), 16)]
    assert found_in("".join(["Sent\n", *dump, "Received\n"]).encode()) == {field}
    assert found_in(f"'{secret[:9]}...{secret[-9:]}'".encode()) == {"a part of one"}
    assert found_in(b"nothing") == set()


def _based(secret: str, offset: int) -> str:
    return base64.b64encode(b"u" * offset + secret.encode() + b"tail").decode()


# The hosts, and who contacts them


class Run(NamedTuple):
    """What a program wrote."""

    code: int
    out: str
    err: str

    @property
    def all(self) -> bytes:
        return (self.out + self.err).encode()


@dataclass
class Site:
    """A host with users who have secrets, and a place for programs that know them."""

    lab: Lab
    directory: Path
    closed_port: int

    @property
    def host(self) -> Host:
        return self.lab.hosts[0]

    @property
    def home(self) -> Path:
        """What is home to the programs; not where their inventories are."""
        return self.directory / "home"

    @property
    def environment(self) -> dict[str, str]:
        override = {"username": "by-override", "password": CANARIES["own-login"], "client_keys": None}
        override["passphrase"] = CANARIES["own-phrase"]
        return {
            "HOME": str(self.home),
            "TMPDIR": str(self.directory / "tmp"),
            "PYTHONPATH": str(ROOT),
            "PYTHONASYNCIODEBUG": "1",
            "PYTHONFAULTHANDLER": "1",
            "CANARY_SUDO": CANARIES["env"],
            "CANARY_OVERRIDE": json.dumps(override),
        }

    def connection(self, name: str, username: str, **more: Any) -> dict[str, Any]:
        known = {"known_hosts": str(self.lab.known_hosts), "client_keys": [str(self.lab.client_key)]}
        return {"host": name, "address": self.host.address, "username": username, **known, **more}

    def hosts(self) -> Iterator[dict[str, Any]]:
        """Give the hosts of an inventory: those that let us in, and those that refuse."""
        key, sudo, su = self.directory / "inventories" / "encrypted", "sudo_password", "su_password"
        good = {"client_keys": [str(key)], "passphrase": CANARIES["passphrase"]}
        target = {"su_user": "target", su: CANARIES["su"]}

        def host(name: str, user: str, more: dict[str, Any], **authentication: str) -> dict[str, Any]:
            return {"connection": self.connection(name, user, **more), "authentication": authentication}

        password = {"password": CANARIES["password"], "client_keys": None}
        yield host("by-password", "by-password", password, sudo_password=CANARIES["password"], **target)
        yield host("by-key", "keyholder", good, sudo_password=CANARIES["sudo"], **target)
        yield host("by-env", "by-env", {}, sudo_password="env:CANARY_SUDO", **target)
        yield host("by-file", "by-file", {}, sudo_password=f"file:{self.directory / 'inventories' / 'secret'}")
        yield host("by-cmd", "by-cmd", {}, sudo_password=f"cmd:cat {self.directory / 'inventories' / 'printed'}")
        wrong = {"password": CANARIES["bad-login"], "client_keys": None}
        yield host("wrong-password", "by-password", wrong, sudo_password=CANARIES["bad-sudo"])
        both = {sudo: CANARIES["bad-sudo"], su: CANARIES["bad-su"], "su_user": "target"}
        yield host("wrong-privileges", "keyholder", good, **both)
        refused = {"password": CANARIES["refused"], "address": "127.0.0.1", "port": self.closed_port}
        yield host("refused", "by-password", refused, **both)
        yield host("text-key", "keyholder", {"client_keys": [self.key_text()], "passphrase": CANARIES["passphrase"]})

    def key_text(self) -> str:
        return (self.directory / "inventories" / "encrypted").read_text()

    def write(self, name: str, hosts: Iterable[dict[str, Any]]) -> Path:
        file = self.directory / "inventories" / f"{name}.json"
        file.write_text(json.dumps({"hosts": list(hosts)}))
        file.chmod(0o600)
        return file

    def inventory(self, *names: str) -> Path:
        """Write the inventory of all hosts, or of some."""
        return self.write(
            "-".join(names) or "all", (h for h in self.hosts() if h["connection"]["host"] in names or not names)
        )

    def run(self, *argv: str | Path, stdin: str | None = None) -> Run:
        """Run Python in the network of the host."""
        done = self.lab.run([sys.executable, *argv], input=stdin, env=self.environment, cwd=self.home, timeout=60)
        return Run(done.returncode, done.stdout, done.stderr)

    def cli(self, *arguments: str | Path, stdin: str | None = None) -> Run:
        """Run ``reemote``."""
        return self.run("-m", "reemote", *arguments, stdin=stdin)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, lab: Lab) -> Iterator[Site]:
    top = tmp_path_factory.mktemp("canaries")
    for name in ("home", "tmp", "inventories", "shown", "dumped"):
        (top / name).mkdir()
    with nothing_listens() as port, Lab(top / "lab", ["server104"], users=[*USERS, *OWNERS]) as own:
        site = Site(own, top, port)
        pam = site.host.path("/etc/pam.d/common-auth")
        pam.write_text(
            pam.read_text().replace("pam_unix.so", "pam_unix.so nodelay")
        )  # wrong passwords cost seconds else
        key = asyncssh.generate_private_key("ssh-ed25519")
        # As few rounds as bcrypt lets pass: each program that reads the key takes a second for the usual number.
        key.write_private_key(top / "inventories" / "encrypted", passphrase=CANARIES["passphrase"], rounds=50)
        allowed = site.host.path("/home/keyholder/.ssh/authorized_keys")
        allowed.write_bytes(allowed.read_bytes() + key.export_public_key())
        (top / "inventories" / "secret").write_text(CANARIES["file"] + "\nnot this\n")
        (top / "inventories" / "printed").write_text(CANARIES["cmd"] + "\n")
        yield site


def assert_hidden(site: Site, *written: bytes, more: Mapping[str, str] | None = None) -> None:
    """Fail if a secret is in what was written, or in any file that the programs or the hosts have made since."""
    assert [found_in(each, more) for each in written] == [set() for _ in written]
    assert found_below(site.home, site.directory / "tmp", more=more) == {}


# Programs


@pytest.fixture(scope="module")
def shown(site: Site) -> Run:
    """What the program shows that shows everything."""
    return site.run("-X", "dev", PROGRAM, site.inventory(), site.directory / "shown", "2")


@pytest.mark.slow
def test_the_program_does_what_it_is_meant_to(shown: Run) -> None:
    """Each secret was used, and the right ones worked; each place to look at has something in it."""
    assert shown.code == 0, shown.err[-3000:]
    responses = json.loads(re.search("^RESPONSES (.*)$", shown.out, re.MULTILINE)[1])  # type: ignore[index]
    assert {each["host"] for each in responses} >= {"by-password", "by-env", "refused", "text-key"}
    for words in (
        "'host': 'by-password', 'value': {'command': 'id -un'",
        "'stdout': 'root\\n'",
        "'stdout': 'target\\n'",
        "'stdout': 'by-override\\n'",
        "PasswordRejected",
        "PermissionDenied",
        "'value': 'ConnectionRefusedError'",
        "StepStarted(",
        "RuntimeError: wrong-privileges is lost",
        "RuntimeError: refused is lost",
        "**********",
    ):
        assert words in shown.out, words
    for words in (
        "Trying password auth",
        "Requesting new SSH session",
        "Thread 0x",
        "Auth for user keyholder succeeded",
    ):
        assert words in shown.err, words


@pytest.mark.slow
def test_what_programs_show(site: Site, shown: Run) -> None:
    """Logs with asyncssh's debug level 2, events, models, responses, tracebacks, stacks of threads."""
    assert found_in(shown.out.encode()) == set()
    assert found_in(shown.err.encode()) == set()
    log = (site.directory / "shown" / "log").read_bytes()
    assert b"by-password" in log
    assert found_in(log) == set()


@pytest.mark.slow
def test_what_asyncio_shows_of_tasks(site: Site, shown: Run) -> None:
    """As in its debug mode, when something takes long, or a task is lost."""
    tasks = (site.directory / "shown" / "tasks").read_bytes()
    assert b"<Task " in tasks
    assert b"by-password" in tasks or b"reemote" in tasks
    assert found_in(tasks) == set()


async def test_tasks_that_look_secrets_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What asyncio shows of a task has its result in it."""
    (tmp_path / "file").write_text(CANARIES["file"])
    monkeypatch.setenv("CANARY", CANARIES["env"])
    tasks: list[asyncio.Task[Any]] = []

    def make(loop: asyncio.AbstractEventLoop, coroutine: Any, **how: Any) -> asyncio.Task[Any]:
        tasks.append(asyncio.Task(coroutine, loop=loop, **how))
        return tasks[-1]

    loop, look_up = asyncio.get_running_loop(), LookUp()
    loop.set_task_factory(make)
    try:
        references = ["env:CANARY", f"file:{tmp_path / 'file'}", f"cmd:printf {CANARIES['cmd']}"]
        found = [await look_up.get(SecretStr(text)) for text in references]
        control = asyncio.create_task(asyncio.sleep(0, CANARIES["sent"]))
        await control
    finally:
        loop.set_task_factory(None)
    assert found == [CANARIES["env"], CANARIES["file"], CANARIES["cmd"]]
    assert found_in("\n".join(map(repr, tasks)).encode()) == {"sent"}, "that of the task that is there to be found"


@pytest.mark.slow
def test_what_frames_hold(site: Site, shown: Run) -> None:
    """Tracebacks with the variables of their frames, as rich and services for errors show them."""
    frames = (site.directory / "shown" / "locals").read_bytes()
    assert b"host.context.host" in frames
    assert b"by-password" in frames
    assert found_in(frames) == set()


@pytest.mark.slow
def test_private_keys_that_are_text_do_not_show(site: Site, shown: Run) -> None:
    """They are secrets, too, even with a passphrase; for what models show of them, see below."""
    line = site.key_text().splitlines()[3]
    for data in (shown.err, *((site.directory / "shown" / name).read_text() for name in ("log", "locals"))):
        assert "keyholder" in data
        assert line not in data


KEY = asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode()

MODELS: dict[str, Any] = {
    "an inventory": Inventory.of({"hosts": [{"connection": {"host": "harmless", "client_keys": [KEY]}}]}),
    "a connection": Connection(host="harmless", client_keys=KEY),
    "an operation": Shell(cmd="harmless", connection={"client_keys": [KEY]}),
}

WAYS: dict[str, Callable[[Any], str]] = {
    "repr": repr,
    "str": str,
    "pprint": pprint.pformat,
    "rich": lambda model: rich.pretty.pretty_repr(model),
    "dump": lambda model: repr(model.model_dump()),
    "dump for JSON": lambda model: repr(model.model_dump(mode="json")),
    "JSON": lambda model: model.model_dump_json(),
    "our JSON": as_json,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS)
def test_models_do_not_show_private_keys_that_are_text(model: str, way: str) -> None:
    text = WAYS[way](MODELS[model])
    assert "harmless" in text
    assert KEY.splitlines()[3] not in text


@pytest.mark.slow
def test_dumps_of_packets(site: Site) -> None:
    """asyncssh's level 3 logs all packets; what it logs of those with passwords must not be those."""
    run = site.run(PROGRAM, site.inventory("by-password", "wrong-privileges"), site.directory / "dumped", "3")
    assert run.code == 0
    assert "MSG_USERAUTH_REQUEST" in run.err
    assert found_in(run.all) == set()


@pytest.mark.slow
def test_files_that_are_left(site: Site, shown: Run) -> None:
    """Below the home, in the directory for temporary files, and where this test is."""
    (site.home / "harmless").write_text(CANARIES["sent"])
    assert found_below(site.home, site.directory / "tmp") == {str(site.home / "harmless"): {"sent"}}
    (site.home / "harmless").unlink()


HOST_LOGS = ("/var/log", "/tmp", "/home", "/root", "/run", "/var/tmp")


@pytest.mark.slow
def test_what_hosts_keep(site: Site, shown: Run) -> None:
    """sshd's and sudo's logs, histories, files that were left: the host has no secret but in its shadow file."""
    told = site.host.log().encode() + "\n".join(site.host.sudo_log()).encode()
    assert b"by-password" in told
    assert b"COMMAND=" in told
    assert found_in(told) == set()
    pattern = b"\n".join(text for texts in LOOKED_FOR.values() for text in texts)
    site.host.path("/run/patterns").write_bytes(pattern)
    site.host.path("/run/harmless").write_text(CANARIES["sent"])
    found = site.host.run(["grep", "-rlaFs", "--exclude=patterns", "-f", "/run/patterns", *HOST_LOGS])
    site.host.path("/run/patterns").unlink()
    site.host.path("/run/harmless").unlink()
    assert found.stdout.split() == ["/run/harmless"]


@pytest.mark.slow
def test_passwords_that_look_alike_are_not_the_same(site: Site) -> None:
    """All secrets look alike; a connection that one has opened is not for another."""
    options = {"username": "by-override", "client_keys": None}
    right = Shell(cmd="id -un", connection=options | {"password": CANARIES["own-login"]})
    wrong = Shell(cmd="id -un", connection=options | {"password": CANARIES["bad-login"]})

    class Both:
        def __init__(self, *steps: Shell) -> None:
            self.steps = steps

        async def execute(self) -> Any:
            for step in self.steps:
                response = yield step
                answers.append(str(response["value"]) if response["error"] else response["value"].stdout)

    async def run(*steps: Shell) -> None:
        async with Pool() as pool:
            await execute(lambda: Both(*steps), Inventory.load(site.inventory("by-env")), pool=pool)

    answers: list[str] = []
    with site.lab.network():
        asyncio.run(run(wrong, right))
        asyncio.run(run(right, wrong))
    assert answers == ["PermissionDenied", "by-override\n", "by-override\n", "PermissionDenied"]


# Processes


def processes(pids: Iterable[int]) -> bytes:
    """Give what is to be seen of processes: their arguments and environments."""
    data = []
    for pid in pids:
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                data.append(Path(f"/proc/{pid}/{name}").read_bytes())
    return b"\n".join(data)


def eventually(condition: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["--sudo", "--su"])
def test_processes_while_a_command_runs(site: Site, how: str) -> None:
    """Those of the host, and our own; what we were given in the environment is there, and nothing else."""
    ready, go = site.host.path("/tmp/ready"), site.host.path("/tmp/go")
    text = "touch /tmp/ready; until [ -e /tmp/go ]; do sleep 0.02; done"
    client = site.lab.popen(
        [
            sys.executable,
            "-m",
            "reemote",
            "shell",
            "-vv",
            "-i",
            site.inventory("by-key", "by-cmd"),
            how,
            "-l",
            "by-key",
            text,
        ],
        env={k: v for k, v in site.environment.items() if not k.startswith("CANARY")},
        cwd=site.home,
    )
    eventually(ready.exists)
    there, here = processes(site.host.pids), processes([client.pid])
    go.touch()
    out, err = client.communicate(timeout=30)
    ready.unlink()
    go.unlink()
    assert client.returncode == 0, err
    assert b"until [ -e /tmp/go ]" in there
    assert b"reemote" in here
    assert (found_in(there), found_in(here)) == (set(), set())
    assert found_in((out + err).encode()) == set()


# The command line


DEPLOYMENT = """
from reemote.host import Command, Getcontext, Shell
from reemote.sftp import Write

class Deployment:
    async def execute(self):
        yield Getcontext()
        yield Shell(cmd="id -un", sudo=True)
        yield Command(argv=["id", "-un"], sudo=True)
        yield Shell(cmd="id -un", su=True)
        yield Write(text="x", path="/tmp/by-cli", sudo=True)

class Raising:
    async def execute(self):
        response = await Shell(cmd="id -un", sudo=True)
        context = await Getcontext()
        raise ValueError(f"{context} {response}")
"""

FAILED, UNREACHABLE = 3, 4


@pytest.fixture
def program(site: Site) -> Path:
    file = site.home / "deployment.py"
    file.write_text(DEPLOYMENT)
    return file


@pytest.mark.slow
@pytest.mark.parametrize(("form", "limit"), [("table", "all"), ("json", "by-*,refused"), ("jsonl", "by-env,wrong-*")])
def test_run(site: Site, program: Path, form: str, limit: str) -> None:
    run = site.cli("run", "-vv", "-o", form, "-l", limit, "-i", site.inventory(), f"{program}:Deployment")
    assert run.code in (FAILED, UNREACHABLE), run.err
    assert "by-env" in run.out
    assert "Shell" in run.err
    assert_hidden(site, run.out.encode(), run.err.encode())


@pytest.mark.slow
def test_run_with_an_error_in_the_deployment(site: Site, program: Path) -> None:
    run = site.cli("run", "-vv", "-i", site.inventory("by-password", "by-env"), f"{program}:Raising")
    assert run.code == FAILED
    assert "ValueError" in run.err
    assert "by-env" in run.err
    assert_hidden(site, run.out.encode(), run.err.encode())


@pytest.mark.slow
@pytest.mark.parametrize("how", ["--sudo", "--su -o json", "--sudo --dry-run", "--sudo -o jsonl -l by-env"])
def test_shell(site: Site, how: str) -> None:
    run = site.cli("shell", "-vv", "-i", site.inventory(), *how.split(), "id -un")
    assert run.code in (0, FAILED, UNREACHABLE), run.err
    assert "by-env" in run.out + run.err
    assert_hidden(site, run.out.encode(), run.err.encode())


@pytest.mark.slow
def test_files(site: Site) -> None:
    inventory = site.inventory()
    local = site.home / "local"
    local.mkdir(exist_ok=True)
    (local / "file").write_text("content")
    common = ("-vv", "-i", inventory, "--sudo", "-l", "by-env")
    for arguments in (
        ("put", *common, "-r", local, "/tmp/put"),
        ("get", *common, "/tmp/put/file", "got/{host}"),
        ("sync", *common, "--delete", local, "/tmp/synchronized"),
        ("sync", *common, "--dry-run", "-o", "json", local, "/tmp/other"),
        ("get", *common, "/tmp/missing", "got/{host}"),
    ):
        run = site.cli(*arguments)
        assert (run.code == 0) is ("/tmp/missing" not in arguments), (arguments, run.err)
        assert "by-env" in run.out + run.err, arguments
        assert_hidden(site, run.out.encode(), run.err.encode())
    assert sorted(path.name for path in (site.home / "got").iterdir()) == ["by-env"]


@pytest.mark.slow
@pytest.mark.parametrize(("option", "how", "field"), [("-K", "--sudo", "asked"), ("--ask-su-pass", "--su", "asked-su")])
@pytest.mark.parametrize("answer", ["right", "wrong"])
def test_passwords_that_are_asked_for(site: Site, option: str, how: str, field: str, answer: str) -> None:
    host = {
        "connection": site.connection("by-question", "by-question"),
        "authentication": {"su_user": "asked-target"},
    }
    typed = CANARIES[field if answer == "right" else "bad-sudo"]
    run = site.cli("shell", "-vv", "-i", site.write("asked", [host]), option, how, "id -un", stdin=f"{typed}\n")
    assert (run.code == 0) is (answer == "right"), run.err
    assert "by-question" in run.err
    assert_hidden(site, run.out.encode(), run.err.encode())


WRONG: dict[str, dict[str, Any]] = {
    "the wrong passphrase": {"passphrase": CANARIES["bad-phrase"]},
    "no module for a PIN": {"pkcs11_provider": "/nowhere.so", "pkcs11_pin": CANARIES["pin"]},
    "a number for a password": {"password": [CANARIES["password"]]},
    "an object for a password": {"password": {"x": CANARIES["password"]}},
    "a port that is none": {"password": CANARIES["password"], "port": "x"},
    "an unknown option": {"password": CANARIES["password"], "passwort": CANARIES["password"]},
    "a reference that leads nowhere": {"password": "file:/nowhere"},
    "a command that fails": {"password": f"cmd:echo {CANARIES['cmd']}; exit 3"},
    "an option with a wrong value": {"password": CANARIES["password"], "keepalive_interval": "soon"},
}


@pytest.mark.slow
@pytest.mark.parametrize("wrong", WRONG)
def test_inventories_that_are_wrong(site: Site, program: Path, wrong: str) -> None:
    key = str(site.directory / "inventories" / "encrypted")
    host = {"connection": site.connection("wrong", "keyholder", client_keys=[key]) | WRONG[wrong]}
    run = site.cli("run", "-vv", "-i", site.write("wrong", [host]), f"{program}:Deployment")
    assert run.code != 0
    assert "wrong" in run.err or "hosts[0]" in run.err
    allowed = {"cmd"} if "command" in wrong else set()  # the command is the operator's own text
    assert found_in(run.all) <= allowed
    assert_hidden(site)


# The server


class Server:
    """``reemote serve`` in the network of the host, with logs of all kinds."""

    def __init__(self, site: Site, inventory: Path, *options: str) -> None:
        self.site, self.inventory, self.files = site, inventory, site.home / "served"
        self.files.mkdir(exist_ok=True)
        self.log, self.audit, self.token = (self.files / name for name in ("log", "audit", "token"))
        files: list[str | Path] = [
            "--logging",
            self.log,
            "--audit",
            self.audit,
            "--token-file",
            self.token,
            "--files",
            self.files / "data",
        ]
        argv: list[str | Path] = [
            sys.executable,
            "-m",
            "reemote",
            "serve",
            "--port",
            "0",
            "--inventory",
            inventory,
            *files,
            *options,
        ]
        self.process = site.lab.popen(argv, env=site.environment, cwd=site.home)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("Listening at http://127.0.0.1:"), line
        self.port = int(line.split()[2].rpartition(":")[2])

    def call(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, bytes]:
        """Make a request; give the status, and headers and body in one."""
        given = {"Content-Type": "application/json"} | {name.replace("_", "-"): text for name, text in headers.items()}
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        with self.site.lab.network():
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            with contextlib.closing(connection):
                connection.request(method, path, data, given)
                answer = connection.getresponse()
                return answer.status, str(answer.getheaders()).encode() + b"\n" + answer.read()

    def stop(self) -> bytes:
        """Stop it, and give what it wrote to the terminal."""
        self.process.terminate()
        out, err = self.process.communicate(timeout=30)
        return (out + err).encode()


SENT = CANARIES["sent"]

REQUESTS: list[tuple[str, str, object, tuple[int, ...]]] = [
    ("GET", "openapi.json", None, (200,)),
    ("GET", "docs", None, (200,)),
    ("GET", "metrics", None, (200,)),
    ("GET", "readyz", None, (200, 503)),
    ("GET", "reemote/inventory/get", None, (200,)),
    ("GET", "reemote/host/getcontext", None, (200,)),
    ("POST", "reemote/host/shell", {"cmd": "id -un", "sudo": True}, (200,)),
    ("POST", "reemote/host/shell", {"cmd": "id -un", "su": True}, (200,)),
    ("POST", "reemote/host/command", {"argv": ["id", "-un"], "sudo": True}, (200,)),
    ("POST", "reemote/host/shell", {"cmd": "id", "connection": {"password": SENT, "username": "by-password"}}, (200,)),
    ("POST", "reemote/host/shell", {"cmd": "id", "connection": {"passphrase": SENT}}, (200, 422, 500)),
    ("POST", "reemote/host/shell", {"cmd": "id", "connection": {"password": f"cmd:echo {SENT}"}}, (422,)),
    ("POST", "reemote/host/shell", {"cmd": "id", "connection": {"pkcs11_pin": SENT}}, (422,)),
    ("POST", "reemote/host/shell", {"cmd": "id", "connection": {"password": [SENT]}}, (422,)),
    ("POST", "reemote/host/shell", {"cmd": "id", "session": {"env": SENT}}, (422,)),
    ("POST", "reemote/sftp/write", {"text": "x", "path": "/tmp/by-rest", "sudo": True}, (200,)),
    (
        "POST",
        "reemote/apt/get_packages",
        {"connection": {"password": SENT, "username": "by-password"}},
        (200, 404, 405),
    ),
    ("POST", "reemote/inventory/add/", {"connection": {"host": "n", "port": "x", "password": SENT}}, (422,)),
    ("POST", "reemote/inventory/add/", {"connection": {"host": "by-env", "password": SENT}}, (409, 422)),
    ("POST", "reemote/inventory/create/", {"hosts": [{"connection": {"host": "n", "password": 5, "x": SENT}}]}, (422,)),
    ("POST", "reemote/host/shell", json.dumps({"cmd": SENT}).encode()[:-1], (400, 422)),
    ("GET", f"reemote/x?password={SENT}", None, (404,)),
    ("POST", f"reemote/host/shell?cmd=true&password={SENT}", {}, (200, 422)),
]


@pytest.mark.slow
def test_the_server(site: Site) -> None:
    inventory = site.inventory("by-password", "by-env", "wrong-privileges", "wrong-password")
    server = Server(site, inventory)
    token = Token(server.token).value()
    seen = []
    for method, path, body, expected in REQUESTS:
        status, answer = server.call(method, f"/{path}", body)
        assert status in expected, (path, body, status, answer)
        seen.append(answer)
    assert b'"root\\n"' in b"".join(seen).replace(b" ", b"")
    assert b"by-env" in b"".join(seen)
    assert server.call("GET", "/metrics", Authorization=f"Bearer {token}", Via="1.1 x")[0] == 200
    status, answer = server.call("GET", "/metrics", Authorization=f"Bearer {CANARIES['bad-token']}", Via="1.1 x")
    assert status == 401
    seen.append(answer)
    text = inventory.read_text()
    inventory.write_text(text[:-2])  # what cannot be read is an error of the server
    for path in ("reemote/inventory/get", "reemote/host/getcontext"):
        status, answer = server.call("GET", f"/{path}")
        assert status == 500
        seen.append(answer)
    inventory.write_text(text)
    seen.append(
        processes([server.process.pid])
        .replace(CANARIES["env"].encode(), b"")
        .replace(site.environment["CANARY_OVERRIDE"].encode(), b"")
    )
    seen.append(server.stop())
    logged, audited = server.log.read_bytes(), server.audit.read_bytes()
    assert b"host.shell" in audited
    assert b"/reemote/host/shell" in logged
    server.token.unlink()
    assert_hidden(site, *seen, logged, audited, more={"the token": token})


@pytest.mark.slow
def test_a_host_that_is_added_over_http(site: Site) -> None:
    """Its secrets are in the inventory file, its copy, and nowhere else; no answer has them."""
    directory = site.directory / "kept"
    directory.mkdir()
    inventory = directory / "inventory.json"
    server = Server(site, inventory)
    item = {
        "connection": site.connection("new", "by-password", client_keys=None, password=CANARIES["password"]),
        "authentication": {"sudo_password": CANARIES["password"]},
    }
    item["connection"].pop("known_hosts")
    item["connection"]["host_keys"] = "accept-new"
    seen = [server.call("POST", "/reemote/inventory/add/", item)]
    seen.append(server.call("POST", "/reemote/host/shell", {"cmd": "id -un", "sudo": True}))
    seen.append(server.call("GET", "/reemote/inventory/get"))
    assert [status for status, _ in seen] == [200, 200, 200], seen
    assert b"root" in seen[1][1]
    assert b"**********" in seen[2][1]
    told = server.stop()
    assert_hidden(site, *(answer for _, answer in seen), told)
    assert set(found_below(directory)) <= {str(inventory), str(inventory) + ".bak"}
    assert str(inventory) in found_below(directory)


# What is written is for its owner only


@pytest.mark.slow
@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_files_are_for_their_owner(tmp_path: Path, mask: int, home: Path) -> None:
    """All that a server, a sandbox and a client write where nobody says where, in a new home."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "REEMOTE_"))}
    environment |= {"HOME": str(home), "PYTHONPATH": str(ROOT)}

    def start(*arguments: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "reemote", *map(str, arguments)],
            env=environment,
            cwd=home,
            umask=mask,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    with contextlib.ExitStack() as stack:
        sandbox = stack.enter_context(start("sandbox", "--hosts", "1"))
        stack.callback(sandbox.terminate)
        assert sandbox.stdout is not None
        assert "1 host" in sandbox.stdout.readline()
        hosts = json.loads((home / "sandbox.json").read_text())["hosts"]
        connection = hosts[0]["connection"] | {"host_keys": "accept-new"}
        connection.pop("known_hosts")
        server = stack.enter_context(start("serve", "--port", "0", "--logging", home / "log"))
        stack.callback(server.terminate)
        assert server.stdout is not None
        port = int(server.stdout.readline().split()[2].rpartition(":")[2])
        for path, body in (
            ("inventory/add/", {"connection": connection}),
            ("inventory/add/", {"connection": connection | {"host": "again"}}),
            ("host/shell", {"cmd": "true"}),
            ("host/shell", {"cmd": "echo x", "output": "printed-{host}"}),
            ("sftp/get", {"remotepaths": "/etc/hostname", "localpath": "got-{host}"}),
        ):
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            with contextlib.closing(client):
                client.request("POST", f"/reemote/{path}", json.dumps(body), {"Content-Type": "application/json"})
                answer = client.getresponse()
                assert answer.status == 200, answer.read()
                answer.read()
        modes = {
            str(path.relative_to(home)): stat.S_IMODE(path.stat().st_mode)
            for path in home.rglob("*")
            if not path.is_symlink() and not str(path.relative_to(home)).startswith((".ssh", ".cache"))
        }
    names = {name.rpartition("/")[2] for name in modes}
    assert names >= {
        "inventory.json",
        "inventory.json.bak",
        "token",
        "audit.jsonl",
        "known_hosts",
        "log",
        "sandbox.json",
    }
    fetched = {name for name in modes if name.startswith(".local/share/reemote/files/")}
    assert sorted(name.rpartition("/")[2].partition("-")[0] for name in fetched) == ["got", "got", "printed", "printed"]
    # What was fetched has the modes of the hosts, in a directory that nobody else can enter.
    assert {name: oct(mode) for name, mode in modes.items() if mode & 0o077 and name not in fetched} == {}
    assert all(mode & 0o600 == 0o600 for mode in modes.values())
