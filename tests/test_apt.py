"""Apt: packages for real, on machines with an offline repository, and names that are refused."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import shlex
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import pytest
from pydantic import ValidationError

from reemote.apt import GetPackages, Install, Package, Remove, Update, Upgrade, scripts
from reemote.apt.commands import simulated_in
from reemote.apt.names import doubtful
from reemote.apt.packages import changes_in
from reemote.core.catalogue import parameters
from reemote.core.errors import ConnectionLost
from reemote.core.events import Event, OutputLine
from reemote.core.operation import Operation
from reemote.core.response import Completed, Response
from reemote.execute import Pool, execute
from reemote.inventory import Inventory
from reemote.testing import Fake
from reemote.testing.fake import Call
from tests.lab.packages import Package as Built
from tests.lab.packages import Repository, failing, installed, waiting
from tests.leaks import eventually
from tests.openssh import Machine
from tests.openssh_fixtures import MakeWorld

# Names

GOOD = [
    "nginx",
    "g++",
    "libstdc++6",
    "python3.11",
    "0ad",
    "libc6:i386",
    "nginx=1.22.1-9",
    "nginx=1.22.*",
    "vim=2:9.0.1378-2",
    "libc6:amd64=2.36-9+deb12u4",
    "a1=1.0~rc1+dfsg-3*",
    "nginx=*",
    "nginx=*~rc1",
    "nginx=1.*-9",
    "nginx=1",
    "linux-image-6.1.0-18-amd64",
]

BAD = [
    "",
    " ",
    "x",
    "-x",
    "--help",
    "x; touch P",
    "$(touch P)",
    "`touch P`",
    "aa\nbb",
    "aa\n",
    "'",
    '"',
    "\\",
    "aa\0",
    "a" * 1_000_000,
    "aa bb",
    "aa|bb",
    "aa&",
    "aa>b",
    "*",
    "ng*",
    "ng?nx",
    "[a-z]*",
    "^nginx$",
    "?installed",
    "~ilinux",
    "Nginx",
    "nginx_1",
    "nginx/stable",
    "./nginx.deb",
    "/tmp/nginx.deb",
    "desktop^",
    "nginx-",
    "nginx:",
    "nginx:-",
    "nginx:amd64-",
    "nginx:amd64+",
    "nginx=",
    "nginx=-1",
    "nginx=1.0-",
    "nginx=1.0+",
    "nginx=1 ",
    "nginx=1;x",
    "nginx=1=2",
    "nginx=1/x",
    "nginx=[1]",
    "nginx=1?",
    "nginx=1*2*",
    "nginx=**",
    "nginx=*-",
    "nginx=.",
    "nginx,apache2",
    "ñginx",
    "nginx²",
    "nginx\u2028",
]

NAMED = [Install, Remove, Package]


@pytest.mark.parametrize("name", GOOD)
def test_names_that_are_taken(name: str) -> None:
    for operation in (Install, Package):
        made = operation(packages=[name])
        assert made.packages == [name]
        assert re.fullmatch(pattern_of(operation), name)
    if "=" not in name:
        assert Remove(packages=[name]).packages == [name]
        assert re.fullmatch(pattern_of(Remove), name)


@pytest.mark.parametrize("name", BAD, ids=lambda name: repr(name[:20]))
@pytest.mark.parametrize("operation", NAMED)
def test_names_that_are_refused(operation: type[Any], name: str) -> None:
    with pytest.raises(ValidationError) as caught:
        operation(packages=["nginx", name])
    [error] = caught.value.errors()
    assert error["loc"] == ("packages", 1)
    assert len(str(caught.value)) < 1000
    # The schema says the same; $ is the end there, and not before a newline.
    assert len(name) > 128 or not re.fullmatch(pattern_of(operation), name)


def pattern_of(operation: type[Any]) -> str:
    [schema] = [p.schema for p in parameters(cast(Any, operation)) if p.name == "packages"]
    assert schema is not None
    assert (schema["minItems"], schema["items"]["maxLength"]) == (1, 128)
    return str(schema["items"]["pattern"])


@pytest.mark.parametrize("operation", NAMED)
def test_lists_that_are_refused(operation: type[Any]) -> None:
    for packages in ([], ["nginx"] * 401, "nginx", None, [None], [["nginx"]]):
        with pytest.raises(ValidationError):
            operation(packages=packages)
    with pytest.raises(ValidationError, match="Field required"):
        operation()


def test_what_is_removed_has_no_version() -> None:
    with pytest.raises(ValidationError, match="NAME or NAME:ARCHITECTURE"):
        Remove(packages=["nginx=1.0"])
    with pytest.raises(ValidationError, match="whatever their version"):
        Package(packages=["nginx=1.0"], present=False)


@pytest.mark.parametrize("operation", [Install(packages=["nginx"]), Update(), Upgrade(), Package(packages=["nginx"])])
def test_times_that_are_refused(operation: Any) -> None:
    given = operation.kwargs
    for seconds in (-1, 1.5, float("inf"), 86_401):
        with pytest.raises(ValidationError):
            type(operation)(**given, lock_timeout=seconds)


def test_names_that_apt_may_read_as_something_else() -> None:
    assert doubtful(["nginx", "g++", "python3.11:amd64", "vim=2:9.0", "g++=1", "libc6:i386"]) == ["g++", "python3.11"]


def test_the_command() -> None:
    def end(operation: Install | Remove | Update | Upgrade) -> str:
        words = shlex.split(operation.to_shell())
        assert words[0] == "env"
        assert {"DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8", "NEEDRESTART_MODE=l"} <= set(words)
        assert {"Dpkg::Options::=--force-confdef", "Dpkg::Options::=--force-confold"} <= set(words)
        assert words[words.index("apt-get") + 1 :][:2] == ["-q", "-y"]
        last = len(words) - words[::-1].index("-o") + 1
        return shlex.join(words[last:])

    assert end(Install(packages=["nginx", "vim"])) == "install -- nginx vim"
    assert end(Install(packages=["nginx=1.*"])) == "install --allow-downgrades -- 'nginx=1.*'"
    assert end(Install(packages=["vim"], install_recommends=False)) == "install --no-install-recommends -- vim"
    assert end(Install(packages=["vim"], install_recommends=True)) == "install --install-recommends -- vim"
    assert end(Remove(packages=["vim:i386"])) == "remove -- vim:i386"
    assert end(Remove(packages=["vim"], purge=True)) == "purge -- vim"
    assert end(Update()) == "update"
    assert end(Upgrade()) == "upgrade"
    assert end(Upgrade(full=True)) == "dist-upgrade"


def test_the_scripts_suit_every_shell() -> None:
    for script in (scripts.CHANGE, scripts.INSTALLED, scripts.KNOWN, scripts.REFRESH):
        # A C shell takes no newline between quotes, and reads what an exclamation mark precedes.
        assert "\n" not in script
        assert "!" not in script.replace("$! ", "")


# What is read


def line(name: str, version: str, status: str = "installed", architecture: str = "amd64", provides: str = "") -> str:
    return f"{name}\t{architecture}\t{version}\tinstall ok {status}\t{provides}"


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        (None, line("nginx", "1"), ("nginx", None, "1")),
        (line("nginx", "1"), line("nginx", "2"), ("nginx", "1", "2")),
        (line("nginx", "2"), line("nginx", "1"), ("nginx", "2", "1")),
        (line("nginx", "1"), None, ("nginx", "1", None)),
        (line("nginx", "1"), line("nginx", "1", "config-files"), ("nginx", "1", None)),
        (line("nginx", "1", "config-files"), None, ("nginx", None, None)),
        (line("nginx", "1", "config-files"), line("nginx", "2"), ("nginx", None, "2")),
        (line("nginx", "1", "half-configured"), line("nginx", "1"), ("nginx", "1", "1")),
        (line("nginx", "1", architecture="all"), line("nginx", "2"), ("nginx", "1", "2")),
        (None, line("libc6", "1", architecture="i386"), ("libc6:i386", None, "1")),
        # A failed attempt leaves a wish only.
        (None, line("nginx", "", "not-installed"), None),
        (line("nginx", "1"), line("nginx", "1").replace("install ok", "hold ok"), None),
        (None, "Warning: this is no package", None),
        (None, None, None),
    ],
)
def test_changes_between_two_states(before: str | None, after: str | None, change: tuple[Any, ...] | None) -> None:
    lines = ["amd64", *(f"- {before}" for _ in [0] if before), *(f"+ {after}" for _ in [0] if after)]
    found = [tuple(each.values()) for each in changes_in("\n".join(lines))]
    assert found == ([change] if change else [])


def test_no_changes() -> None:
    assert changes_in("") == changes_in("amd64\n") == []


def test_what_apt_would_do() -> None:
    text = """\
Reading package lists...
The following NEW packages will be installed:
  nginx
Remv apache2 [2.4.57-2]
Purg libfoo:i386 [1.0] [libbar:i386 ]
Inst nginx (1.22.1-9 Debian:12.4/stable [amd64])
Inst vim [2:9.0.1-1] (2:9.0.1-2 Debian:12.4/stable, Debian-Security:12/stable-security [amd64]) [vim-tiny:amd64 ]
Conf nginx (1.22.1-9 Debian:12.4/stable [amd64])
Remv both [1]
Inst both (2 Lab:lab [all])
"""
    assert [tuple(change.values()) for change in simulated_in(text)] == [
        ("apache2", "2.4.57-2", None),
        ("both", "1", "2"),
        ("libfoo:i386", "1.0", None),
        ("nginx", None, "1.22.1-9"),
        ("vim", "2:9.0.1-1", "2:9.0.1-2"),
    ]
    assert simulated_in("0 upgraded, 0 newly installed\n") == []


# Without a network


class Debian:
    """Answers for a fake host as our scripts do."""

    def __init__(self, *lines: str, real: tuple[str, ...] = ()) -> None:
        self.lines = lines
        self.real = real
        self.ran: list[list[str]] = []
        """The commands of apt-get, without its options."""
        self.outcomes: list[dict[str, Any]] = []
        """What the next ones come to: arguments of ``Completed``, and ``differences``."""
        self.fake = Fake("server104")
        self.fake.on(re.compile("exec sh -c .*", re.DOTALL), self.reply)

    def reply(self, call: Call) -> Completed:
        script, mark, given = (words := shlex.split(call.command))[3], words[5], words[6:]
        noise = "Welcome to server104!\n"
        if script == scripts.INSTALLED:
            patterns = given[2::2]
            lines = [each for each in self.lines if not patterns or any(name in each for name in patterns)]
            return Completed(stdout="\n".join([noise + mark, "amd64", *lines, mark, ""]))
        if script == scripts.KNOWN:
            return Completed(stdout="\n".join([noise + mark, *(set(given) & set(self.real)), mark, ""]))
        self.ran.append(given[len(given) - given[::-1].index("-o") + 1 :])
        outcome = self.outcomes.pop(0) if self.outcomes else {}
        printed, differences = outcome.pop("stdout", "Reading...\n"), outcome.pop("differences", ["amd64"])
        return Completed(stdout="\n".join([f"{noise}{mark}\n{printed}{mark}", *differences, mark, ""]), **outcome)

    async def run(self, operation: Operation[Any], **options: Any) -> Response[Any]:
        return (await execute(lambda: operation, inventory=self.fake.inventory, pool=self.fake, **options))[0]


async def test_packages_have_their_known_shape() -> None:
    debian = Debian(
        line("nginx", "1.22.1-9", provides="httpd"),
        line("libc6", "2.36", architecture="i386"),
        line("broken", "1", "half-configured"),
        line("removed", "1", "config-files"),
        line("wished", "", "not-installed"),
    )
    response = await debian.run(GetPackages())
    assert json.loads(json.dumps(response)) == {
        "host": "server104",
        "value": {
            "packages": [
                {"name": "nginx", "version": "1.22.1-9", "architecture": "amd64", "status": "installed"},
                {"name": "libc6", "version": "2.36", "architecture": "i386", "status": "installed"},
                {"name": "broken", "version": "1", "architecture": "amd64", "status": "half-configured"},
            ]
        },
        "changed": False,
        "error": False,
    }
    assert response.value.packages[0].version == "1.22.1-9"


async def test_ten_thousand_packages() -> None:
    debian = Debian(*(line(f"package{number}", "1.0", provides="a (= 1), b") for number in range(10_000)))
    start = time.perf_counter()
    response = await debian.run(GetPackages())
    assert len(response.value.packages) == 10_000
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (Package(packages=["nginx"]), None),
        (Package(packages=["nginx", "libc6:i386", "perl:amd64", "perl:all", "perl:native", "libc6:any"]), None),
        (Package(packages=["nginx=1.22.1-9", "nginx=1.22.*", "nginx=*"]), None),
        (Package(packages=["nginx=1.23*"]), ["install", "--allow-downgrades", "--", "nginx=1.23*"]),
        (Package(packages=["nginx", "vim", "vim"]), ["install", "--", "vim"]),
        (Package(packages=["libc6"]), ["install", "--", "libc6"]),
        (Package(packages=["nginx:i386"]), ["install", "--", "nginx:i386"]),
        (Package(packages=["broken"]), ["install", "--", "broken"]),
        (Package(packages=["removed"]), ["install", "--", "removed"]),
        (Package(packages=["waits"]), None),
        (Package(packages=["held"]), None),
        # A part of a name is no name.
        (Package(packages=["ngin"]), ["install", "--", "ngin"]),
        (Package(packages=["httpd"]), None),
        (Package(packages=["httpd=1"]), ["install", "--allow-downgrades", "--", "httpd=1"]),
        (Package(packages=["mail-transport-agent"]), ["install", "--", "mail-transport-agent"]),
        # It is a package itself, which is not installed.
        (Package(packages=["editor", "httpd"]), ["install", "--", "editor"]),
        (Package(packages=["vim"], install_recommends=False), ["install", "--no-install-recommends", "--", "vim"]),
        (Package(packages=["vim", "httpd", "removed"], present=False), None),
        (Package(packages=["nginx", "vim"], present=False), ["remove", "--", "nginx"]),
        (Package(packages=["broken"], present=False), ["remove", "--", "broken"]),
        (Package(packages=["removed", "vim"], present=False, purge=True), ["purge", "--", "removed"]),
        # APT itself knows whether this one is meant.
        (Package(packages=["libc6"], present=False), ["remove", "--", "libc6"]),
        (Package(packages=["libc6:amd64", "nginx:i386"], present=False), None),
        (Package(packages=["perl:amd64"], present=False), ["remove", "--", "perl:amd64"]),
    ],
    ids=str,
)
async def test_what_a_state_needs(operation: Package, expected: list[str] | None, dry_run: bool) -> None:
    debian = Debian(
        line("nginx", "1.22.1-9", provides="httpd, editor, httpd-cgi (= 1)"),
        line("libc6", "2.36", architecture="i386"),
        line("perl", "5", architecture="all"),
        line("broken", "1", "half-configured", provides="mail-transport-agent"),
        line("removed", "1", "config-files", provides="mail-transport-agent"),
        line("waits", "1", "triggers-awaited"),
        line("held", "1").replace("install ok", "hold ok"),
        real=("editor",),
    )
    response = await debian.run(operation, dry_run=dry_run)
    assert not response["error"], response
    assert response.value == {"changes": []}
    assert response.changed is False
    simulated = ["--simulate"] if dry_run else []
    assert debian.ran == ([[*simulated, *expected]] if expected else [])


async def test_what_has_changed_is_told() -> None:
    debian = Debian()
    differences = ["amd64", f"+ {line('libssl3', '3.0')}", f"+ {line('nginx', '1.22')}"]
    debian.outcomes = [{"differences": differences}, {"differences": differences, "stdout": "Setting up nginx\n"}]
    response = await debian.run(Package(packages=["nginx"]))
    assert response.changed is True
    assert [tuple(change.values()) for change in response.value.changes] == [
        ("libssl3", None, "3.0"),
        ("nginx", None, "1.22"),
    ]
    response = await debian.run(Install(packages=["nginx"]))
    assert response.changed is True
    assert response.value.stdout == "Setting up nginx\n"
    assert response.value.command == Install(packages=["nginx"]).to_shell()


async def test_the_lists_are_refreshed_only_before_something_is_installed() -> None:
    debian = Debian(line("nginx", "1"))
    for operation in (
        Package(packages=["nginx"], update=True),
        Package(packages=["vim"], present=False, update=True),
        Package(packages=["nginx"], present=False, update=True),
        Package(packages=["vim"]),
    ):
        await debian.run(operation)
    assert [words[0] for words in debian.ran] == ["remove", "install"]
    debian.ran.clear()
    debian.outcomes = [{"differences": ["+ _Packages 1 1"]}]
    response = await debian.run(Package(packages=["vim"], update=True, cache_valid_time=7))
    assert [words[0] for words in debian.ran] == ["update", "install"]
    assert response.changed is True, "new lists are a change, too"
    [refresh] = [words for c in debian.fake.calls if (words := shlex.split(c.command))[3] == scripts.REFRESH]
    assert refresh[6] == "7"


async def test_lists_that_cannot_be_refreshed() -> None:
    debian = Debian()
    debian.outcomes = [{"exit_status": 100, "stderr": "E: Failed to fetch http://example.org/\n", "differences": []}]
    response = await debian.run(Package(packages=["vim"], update=True))
    assert (response.value, response.changed) == ("CommandFailed", False)
    assert response.detail == "apt-get update: exit status 100: E: Failed to fetch http://example.org/"
    assert debian.ran == [["update"]]


async def test_a_failure_after_the_lists_were_refreshed() -> None:
    debian = Debian()
    debian.outcomes = [{"differences": ["+ _Packages 1 1"]}, {"exit_status": 100, "stderr": "E: no\n"}]
    response = await debian.run(Package(packages=["vim"], update=True))
    assert (response.value, response.changed, response.detail) == (
        "CommandFailed",
        True,
        "apt-get install -- vim: exit status 100: E: no",
    )


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        ("E: Unable to locate package x\n", "E: Unable to locate package x"),
        ("W: old\nE: one\nE: two\n", "E: one"),
        (
            "noise\ndpkg: error processing package x (--configure):\n installed x package postinst failed\nE: Sub\n",
            "dpkg: error processing package x (--configure): installed x package postinst failed",
        ),
        ("dpkg: error processing archive:", "dpkg: error processing archive:"),
        ("something\nelse\n", "else"),
        ("", "Reading..."),
    ],
)
async def test_the_reason_of_a_failure(stderr: str, reason: str) -> None:
    debian = Debian()
    debian.outcomes = [{"exit_status": 100, "stderr": stderr}]
    response = await debian.run(Install(packages=["x1"]))
    assert response.detail == f"apt-get install -- x1: exit status 100: {reason}"
    assert response.completed is not None
    assert response.completed.stderr == stderr


NOTHING = "0 upgraded, 0 newly installed, 0 to remove and 7 not upgraded.\n"


@pytest.mark.parametrize(
    ("stdout", "changed"),
    [
        (NOTHING, False),
        (f"{NOTHING}1 not fully installed or removed.\n", True),
        ("0 upgraded, 0 newly installed, 1 downgraded, 0 to remove and 7 not upgraded.\n", True),
        ("1 upgraded, 0 newly installed, 0 to remove and 7 not upgraded.\n", True),
    ],
)
async def test_what_another_program_changed_while_apt_began(stdout: str, changed: bool) -> None:
    debian = Debian()
    debian.outcomes = [{"stdout": stdout, "differences": ["amd64", f"+ {line('nginx', '1')}"]}]
    assert (await debian.run(Install(packages=["nginx"]))).changed is changed


async def test_a_long_command_is_cut_off_in_the_detail() -> None:
    debian = Debian()
    debian.outcomes = [{"exit_status": 100, "stderr": "E: no\n"}]
    response = await debian.run(Install(packages=[f"package{number}" for number in range(400)]))
    assert response.detail.endswith("...: exit status 100: E: no")
    assert len(response.detail) < 300


async def run_on(fake: Fake, operation: Operation[Any]) -> Response[Any]:
    return (await execute(lambda: operation, inventory=fake.inventory, pool=fake))[0]


def broken(call: Call) -> Completed:
    mark = shlex.split(call.command)[5]
    return Completed(exit_status=137, stdout=f"{mark}\nUnpacking\n")


@pytest.mark.parametrize(
    ("reply", "changed"),
    [
        (lambda call: Completed(exit_status=127, stderr="there is no dpkg-query on this host\n"), False),
        (broken, True),
        (ConnectionLost("gone"), True),
        (ConnectionLost("gone", outcome="not_started"), False),
    ],
    ids=["before", "in the middle", "lost", "not started"],
)
async def test_a_failure_that_says_less(reply: Any, changed: bool) -> None:
    fake = Fake("server104")
    fake.on(re.compile(".*", re.DOTALL), reply)
    for operation in (Install(packages=["nginx"]), Remove(packages=["nginx"]), Upgrade(), Update()):
        response = await run_on(fake, operation)
        assert response.error is True
        assert response.changed is changed
    [response] = await execute(lambda: GetPackages(), inventory=fake.inventory, pool=fake)
    assert (response.error, response.changed) == (True, False)


async def test_a_host_that_is_no_debian() -> None:
    fake = Fake("server104")
    fake.on(re.compile(".*", re.DOTALL), stderr="there is no dpkg-query on this host: it is not ...\n", exit_status=127)
    for operation in (GetPackages(), Package(packages=["nginx"])):
        response = await run_on(fake, operation)
        assert (response.value, response.changed) == ("CommandFailed", response.changed)
        assert "there is no dpkg-query on this host" in response.detail
        assert response.completed is not None
        assert response.completed.command == "dpkg-query -W"


async def test_a_shell_that_does_not_run_what_it_is_given() -> None:
    fake = Fake("server104")
    fake.on(re.compile(".*", re.DOTALL), stdout="Please choose: 1) status 2) log out\n")
    for operation in (GetPackages(), Package(packages=["nginx"]), Install(packages=["nginx"]), Update()):
        response = await run_on(fake, operation)
        assert response.error is True
        assert "did not run our script" in response.detail


async def test_what_was_run_until_the_connection_was_lost() -> None:
    def reply(call: Call) -> Completed:
        mark = shlex.split(call.command)[5]
        record = Completed(command=call.command, exit_status=None, stdout=f"hello\n{mark}\nUnpacking nginx")
        raise ConnectionLost("gone", completed=record)

    fake = Fake("server104")
    fake.on(re.compile(".*", re.DOTALL), reply)
    [response] = await execute(lambda: Install(packages=["nginx"]), inventory=fake.inventory, pool=fake)
    assert (response.value, response.changed, response.outcome) == ("ConnectionLost", True, "unknown")
    assert response.completed is not None
    assert response.completed.stdout == "Unpacking nginx"
    assert response.completed.command == Install(packages=["nginx"]).to_shell()


async def test_privileges_and_options_reach_each_command() -> None:
    debian = Debian(line("nginx", "1", provides="httpd"))
    given: dict[str, Any] = {"sudo": True, "connection": {"username": "joe"}, "session": {"env": {"A": "1"}}}
    await debian.run(Package(packages=["vim", "httpd"], update=True, **given))
    await debian.run(GetPackages(**given))
    assert len(debian.fake.calls) == 5
    for call in debian.fake.calls:
        assert {name: call.options[name] for name in given} == given
        assert call.options["su"] is False


BUSY = "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7 (apt)\nE: Unable to lock directory\n"
OLD_BUSY = "E: Unable to lock the administration directory (/var/lib/dpkg/), is another process using it?\n"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reemote.apt.running._FIRST_PAUSE", 0.01)


@pytest.mark.parametrize("stderr", [BUSY, OLD_BUSY])
@pytest.mark.usefixtures("quick")
async def test_a_lock_is_waited_for(stderr: str) -> None:
    for operation in (Install(packages=["nginx"]), Update()):
        debian = Debian()
        debian.outcomes = [{"exit_status": 100, "stderr": stderr} for _ in range(2)]
        response = await debian.run(operation)
        assert response.error is False
        assert len(debian.ran) == 3


@pytest.mark.usefixtures("quick")
async def test_a_lock_that_is_never_given_up() -> None:
    debian = Debian()
    debian.outcomes = [{"exit_status": 100, "stderr": BUSY} for _ in range(50)]
    response = await debian.run(Update(lock_timeout=1))
    assert (response.value, response.changed) == ("CommandFailed", False)
    assert response.detail == (
        "apt-get update: a lock was not to be had within 1 s: "
        "Could not get lock /var/lib/apt/lists/lock. It is held by process 7 (apt)"
    )
    assert len(debian.ran) > 3


async def test_no_time_for_a_lock() -> None:
    debian = Debian()
    debian.outcomes = [{"exit_status": 100, "stderr": BUSY}]
    response = await debian.run(Update(lock_timeout=0))
    assert response.error is True
    assert len(debian.ran) == 1


async def test_another_failure_is_not_tried_again() -> None:
    debian = Debian()
    debian.outcomes = [{"exit_status": 100, "stderr": "E: Could not open lock file, are you root?\n"}]
    response = await debian.run(Update())
    assert "are you root?" in response.detail
    assert len(debian.ran) == 1


async def test_those_who_watch_see_what_apt_says_and_nothing_else() -> None:
    debian = Debian()
    debian.outcomes = [{"stdout": "Setting up\nDone\n", "stderr": "W: one\n", "differences": ["amd64", "+ x\ty"]}]
    seen: list[Event] = []
    await debian.run(Package(packages=["nginx"]), on_event=seen.append)
    lines = [(event.stream, event.line) for event in seen if isinstance(event, OutputLine)]
    assert lines == [("stdout", "Setting up"), ("stdout", "Done"), ("stderr", "W: one")]


async def test_a_dry_run_tells_what_apt_would_do() -> None:
    simulated = "Inst libssl3 (3.0 Lab [amd64])\nInst nginx (1.22 Lab [amd64])\nConf nginx (1.22 Lab [amd64])\n"
    for operation in (Package(packages=["nginx"]), Install(packages=["nginx"]), Upgrade(), Remove(packages=["nginx"])):
        debian = Debian()
        debian.outcomes = [{"stdout": simulated}]
        response = await debian.run(operation, dry_run=True)
        assert response.changed is True
        assert debian.ran[0][0] == "--simulate"
        if isinstance(operation, Package):
            assert [change.name for change in response.value.changes] == ["libssl3", "nginx"]
        else:
            assert response.value.stdout == simulated
    debian = Debian()
    assert (await debian.run(Upgrade(), dry_run=True)).changed is False
    response = await debian.run(Update(), dry_run=True)
    assert (response.skipped, response.changed, len(debian.ran)) == (True, False, 1)


async def test_a_dry_run_that_cannot_know_the_lists_to_come() -> None:
    debian = Debian(line("vim", "1"))
    unknown = {"exit_status": 100, "stderr": "E: Unable to locate package nginx\n"}
    debian.outcomes = [dict(unknown), dict(unknown)]
    response = await debian.run(Package(packages=["nginx", "vim=2*"], update=True), dry_run=True)
    assert (response.error, response.changed) == (False, True)
    assert [tuple(change.values()) for change in response.value.changes] == [("nginx", None, None), ("vim", "1", None)]
    response = await debian.run(Package(packages=["nginx"]), dry_run=True)
    assert (response.value, response.changed) == ("CommandFailed", False)


# For real


class Real:
    """A machine of its own with a repository, and root's way to it."""

    def __init__(self, machine: Machine, inventory: Inventory, pool: Pool) -> None:
        self.machine = machine
        self.inventory = inventory
        self.pool = pool
        self.repository = Repository(machine)

    def offer(self, *packages: Built) -> None:
        """Put packages into the repository, and let the machine know."""
        self.repository.add(*packages)
        self.machine.run(["apt-get", "update"]).check_returncode()

    async def run(self, operation: Operation[Any], **options: Any) -> Response[Any]:
        return (await execute(lambda: operation, inventory=self.inventory, pool=self.pool, **options))[0]

    async def change(self, operation: Operation[Any]) -> bool:
        """Run an operation that succeeds, and tell whether something changed."""
        response = await self.run(operation)
        assert not response["error"], response
        return bool(response.changed)

    async def fail(self, operation: Operation[Any]) -> Response[Any]:
        response = await self.run(operation)
        assert (response.value, response.outcome) == ("CommandFailed", "completed"), response
        return response

    def versions(self) -> dict[str, str]:
        """The packages of ours that are installed."""
        return {name: version for name, version in installed(self.machine).items() if name.startswith("lab-")}


@pytest.fixture
def machine(make_world: MakeWorld) -> Machine:
    return make_world("server104", users={"root": "secret"}, PermitRootLogin=True)["server104"]


@pytest.fixture
async def real(machine: Machine, nothing_left: None) -> AsyncIterator[Real]:
    connection = {
        "host": machine.name,
        "address": machine.address,
        "username": "root",
        "password": "secret",
        "known_hosts": machine.connection()["known_hosts"],
    }
    with machine._world.network():
        async with Pool() as pool:
            yield Real(machine, Inventory.of({"hosts": [{"connection": connection}]}), pool)


slow = pytest.mark.slow


def watched() -> tuple[list[Event], Callable[[Event], Awaitable[None]]]:
    """Give a list, and what puts the events of a run into it."""
    seen: list[Event] = []

    async def watch(event: Event) -> None:
        seen.append(event)

    return seen, watch


def lines_of(events: list[Event], stream: str = "") -> str:
    return "\n".join(e.line for e in events if isinstance(e, OutputLine) and stream in e.stream)


@slow
async def test_install_and_remove(real: Real) -> None:
    real.offer(Built("lab-tree"), Built("lab-forest", depends="lab-tree"))
    response = await real.run(Install(packages=["lab-forest"]))
    assert (response.error, response.changed) == (False, True)
    assert "Setting up lab-forest (1.0)" in response.value.stdout
    assert response.value.stdout.startswith("Reading package lists...")
    assert response.value.command == Install(packages=["lab-forest"]).to_shell()
    assert real.versions() == {"lab-tree": "1.0", "lab-forest": "1.0"}
    assert await real.change(Install(packages=["lab-forest"])) is False
    [entry] = [each for each in (await real.run(GetPackages())).value.packages if each.name == "lab-tree"]
    assert entry == {"name": "lab-tree", "version": "1.0", "architecture": "all", "status": "installed"}
    assert await real.change(Remove(packages=["lab-tree"])) is True
    assert real.versions() == {}
    assert await real.change(Remove(packages=["lab-tree"])) is False


@slow
async def test_all_that_dpkg_knows(real: Real) -> None:
    response = await real.run(GetPackages())
    found = {each.name: each.version for each in response.value.packages if each.status == "installed"}
    assert found == installed(real.machine)
    assert response.changed is False


@slow
async def test_versions(real: Real) -> None:
    real.offer(*(Built("lab-tree", version) for version in ("1.0", "1.1", "1:0.9", "2.0~rc1")))
    assert await real.change(Install(packages=["lab-tree=1.*"])) is True
    assert real.versions() == {"lab-tree": "1.1"}
    assert await real.change(Package(packages=["lab-tree=1.*"])) is False
    assert await real.change(Package(packages=["lab-tree"])) is False
    response = await real.run(Package(packages=["lab-tree=1.0"]))
    assert (response.changed, response.value.changes) == (
        True,
        [{"name": "lab-tree", "before": "1.1", "after": "1.0"}],
    )
    assert await real.change(Install(packages=["lab-tree=2.*1"])) is True
    assert real.versions() == {"lab-tree": "2.0~rc1"}
    assert await real.change(Upgrade()) is True
    assert real.versions() == {"lab-tree": "1:0.9"}
    assert await real.change(Upgrade()) is False
    response = await real.fail(Package(packages=["lab-tree=3*"]))
    assert "Version '3*' for 'lab-tree' was not found" in response.detail
    assert response.changed is False


@slow
async def test_a_dependency_is_not_downgraded_unasked(real: Real) -> None:
    real.offer(Built("lab-tree", "1.0"), Built("lab-tree", "2.0"), Built("lab-old", depends="lab-tree (= 1.0)"))
    assert await real.change(Install(packages=["lab-tree"])) is True
    response = await real.fail(Install(packages=["lab-old"]))
    assert response.changed is False
    assert real.versions() == {"lab-tree": "2.0"}


@slow
async def test_a_state(real: Real) -> None:
    real.offer(Built("lab-tree"), Built("lab-forest", depends="lab-tree"))
    present, absent = Package(packages=["lab-forest"]), Package(packages=["lab-tree"], present=False)
    predicted = await real.run(present, dry_run=True)
    assert real.versions() == {}
    response = await real.run(present)
    assert predicted == response
    assert response.value == {
        "changes": [
            {"name": "lab-forest", "before": None, "after": "1.0"},
            {"name": "lab-tree", "before": None, "after": "1.0"},
        ]
    }
    assert (await real.run(present)).value == {"changes": []}
    assert await real.change(present) is False
    predicted = await real.run(absent, dry_run=True)
    assert real.versions() == {"lab-tree": "1.0", "lab-forest": "1.0"}
    response = await real.run(absent)
    assert predicted == response
    assert [(change.name, change.after) for change in response.value.changes] == [
        ("lab-forest", None),
        ("lab-tree", None),
    ]
    assert await real.change(absent) is False
    assert await real.change(Package(packages=["lab-nothing"], present=False)) is False


@slow
async def test_configuration_files_that_were_changed_are_kept(real: Real) -> None:
    def built(version: str, text: str) -> Built:
        return Built("lab-conf", version, conffiles={"/etc/lab.conf": text})

    real.offer(built("1.0", "one\n"))
    assert await real.change(Install(packages=["lab-conf"])) is True
    file = real.machine.path("/etc/lab.conf")
    file.write_text("mine\n")
    real.offer(built("2.0", "two\n"))
    response = await real.run(Upgrade())
    assert (response.error, response.changed) == (False, True)
    assert file.read_text() == "mine\n"
    assert await real.change(Package(packages=["lab-conf"], present=False)) is True
    assert file.exists()
    assert await real.change(Package(packages=["lab-conf"], present=False)) is False
    purge = Package(packages=["lab-conf"], present=False, purge=True)
    assert (await real.run(purge, dry_run=True)).changed is True
    response = await real.run(purge)
    assert (response.changed, response.value.changes) == (True, [{"name": "lab-conf", "before": None, "after": None}])
    assert not file.exists()
    assert await real.change(purge) is False
    assert await real.change(Remove(packages=["lab-conf"], purge=True)) is False


@slow
async def test_nothing_asks(real: Real) -> None:
    """debconf, with a question of high priority, and a script that reads its input."""
    templates = "Template: lab-ask/what\nType: string\nDefault: nothing\nDescription: What is it to be?\n"
    config = "#!/bin/sh\n. /usr/share/debconf/confmodule\ndb_input high lab-ask/what || true\ndb_go || true\n"
    # debconf takes the place of standard input; it is the second script that reads its own.
    ask = Built(
        "lab-ask",
        control={"templates": templates, "config": config},
        scripts={"postinst": '. /usr/share/debconf/confmodule\ndb_get lab-ask/what\necho "got $RET" >/run/asked'},
    )
    real.offer(ask, Built("lab-read", scripts={"postinst": 'read line || line=end; echo "$line" >/run/read'}))
    assert await real.change(Install(packages=["lab-ask", "lab-read"])) is True
    assert real.machine.path("/run/asked").read_text() == "got nothing\n"
    assert real.machine.path("/run/read").read_text() == "end\n"


@slow
async def test_what_scripts_of_packages_see(real: Real) -> None:
    """No marks of the login's umask, and the directories that dpkg needs."""
    real.machine.path("/root/.bashrc").write_text("umask 077\nexport LC_ALL=de_DE LANGUAGE=de PATH=/usr/bin:/bin\n")
    told = 'umask; echo "$LC_ALL" "$LANGUAGE" "$DEBIAN_FRONTEND"; command -v ldconfig'
    real.offer(Built("lab-env", scripts={"postinst": f"({told}) >/run/env"}))
    assert await real.change(Install(packages=["lab-env"])) is True
    umask, words, ldconfig = real.machine.path("/run/env").read_text().splitlines()
    assert (umask, words.split()) == ("0022", ["C.UTF-8", "noninteractive"])
    assert ldconfig.endswith("sbin/ldconfig")


@slow
async def test_a_login_that_prints(real: Real) -> None:
    real.machine.path("/root/.bashrc").write_text("echo Welcome; echo -n 'no end'; echo warning >&2\n")
    real.offer(Built("lab-tree"))
    response = await real.run(Package(packages=["lab-tree"]))
    assert response.value.changes == [{"name": "lab-tree", "before": None, "after": "1.0"}]
    response = await real.run(Install(packages=["lab-tree"]))
    assert response.value.stdout.startswith("Reading package lists")
    found = (await real.run(GetPackages())).value.packages
    assert {each.name: each.version for each in found if each.status == "installed"} == installed(real.machine)


@slow
async def test_a_package_that_fails(real: Real) -> None:
    real.offer(Built("lab-good"), Built("lab-bad", scripts={"postinst": failing(3, "no such luck")}))
    response = await real.fail(Install(packages=["lab-good", "lab-bad"]))
    assert response.changed is True, "one of them is installed, the other half"
    assert response.detail == (
        "apt-get install -- lab-good lab-bad: exit status 100: dpkg: error processing package lab-bad (--configure): "
        "installed lab-bad package post-installation script subprocess returned error exit status 3"
    )
    assert response.completed is not None
    assert response.completed.exit_status == 100
    assert "no such luck" in response.completed.stderr
    assert "Setting up lab-good" in response.completed.stdout
    assert real.versions() == {"lab-good": "1.0"}
    [entry] = [each for each in (await real.run(GetPackages())).value.packages if each.name == "lab-bad"]
    assert entry.status == "half-configured"
    assert (await real.fail(Package(packages=["lab-bad"]))).changed is False, "it is as it was"
    real.offer(Built("lab-bad", "1.1"))
    assert await real.change(Package(packages=["lab-bad"])) is True
    assert real.versions() == {"lab-good": "1.0", "lab-bad": "1.1"}


@slow
async def test_a_package_that_fails_before_anything_has_changed(real: Real) -> None:
    gone = Built("lab-gone")
    real.offer(Built("lab-bad", scripts={"preinst": failing(3)}), gone)
    assert (await real.fail(Install(packages=["lab-bad"]))).changed is False
    real.repository.file(real.machine, gone).unlink()
    response = await real.fail(Install(packages=["lab-gone"]))
    assert response.changed is False
    assert "Failed to fetch" in response.detail or "File not found" in response.detail


@slow
async def test_names_are_taken_word_for_word(real: Real) -> None:
    real.offer(*(Built(name) for name in ("lab-a1.2", "lab-a1x2", "lab-b", "lab-b+", "lab-c++")))
    assert await real.change(Install(packages=["lab-b", "lab-b+", "lab-c++"])) is True
    for packages in (["lab-a1."], ["lab-a1..2"], ["lab-b++"], ["lab-c+"], ["lab-c+++"]):
        for operation in (Install(packages=packages), Remove(packages=packages), Package(packages=packages)):
            response = await real.fail(operation)
            assert response.detail.endswith(f"E: Unable to locate package {packages[0]}")
            assert response.changed is False
        assert await real.change(Package(packages=packages, present=False)) is False
    assert set(real.versions()) == {"lab-b", "lab-b+", "lab-c++"}
    assert await real.change(Remove(packages=["lab-b+"])) is True
    assert set(real.versions()) == {"lab-b", "lab-c++"}
    assert await real.change(Install(packages=["lab-a1.2=1.0"])) is True
    assert set(real.versions()) == {"lab-b", "lab-c++", "lab-a1.2"}


@slow
async def test_virtual_packages(real: Real) -> None:
    real.offer(
        Built("lab-one", provides="lab-agent, lab-real"),
        Built("lab-two", provides="lab-agent (= 3)"),
        Built("lab-only", provides="lab-sole"),
        Built("lab-real"),
    )
    response = await real.fail(Package(packages=["lab-agent"]))
    assert "Package 'lab-agent' has no installation candidate" in response.detail
    assert await real.change(Package(packages=["lab-sole"])) is True
    assert await real.change(Package(packages=["lab-sole"])) is False
    assert await real.change(Package(packages=["lab-one"])) is True
    assert await real.change(Package(packages=["lab-agent"])) is False
    assert await real.change(Package(packages=["lab-agent"], present=False)) is False
    assert await real.change(Remove(packages=["lab-agent"])) is False
    assert await real.change(Package(packages=["lab-real"])) is True, "a package has this very name"
    assert set(real.versions()) == {"lab-one", "lab-only", "lab-real"}


@slow
async def test_packages_of_another_architecture(real: Real) -> None:
    native = real.machine.run(["dpkg", "--print-architecture"]).stdout.strip()
    foreign = "i386" if native != "i386" else "amd64"
    real.machine.run(["dpkg", "--add-architecture", foreign]).check_returncode()
    # The repository lists its packages for the host's own architecture; APT takes them all the same.
    same: dict[str, Any] = {"fields": {"Multi-Arch": "same"}, "files": {}}
    real.offer(
        Built("lab-both", architecture=native, **same),
        Built("lab-both", architecture=foreign, **same),
        Built("lab-foreign", architecture=foreign),
    )
    for packages in (["lab-both"], [f"lab-both:{foreign}"], ["lab-foreign"], [f"lab-foreign:{foreign}"]):
        assert await real.change(Package(packages=packages)) is (packages != [f"lab-foreign:{foreign}"]), packages
        assert await real.change(Package(packages=packages)) is False
    found = {(each.name, each.architecture) for each in (await real.run(GetPackages())).value.packages}
    assert {("lab-both", native), ("lab-both", foreign), ("lab-foreign", foreign)} <= found
    assert await real.change(Package(packages=[f"lab-both:{native}"])) is False
    response = await real.run(Package(packages=[f"lab-both:{foreign}"], present=False))
    assert response.value.changes == [{"name": f"lab-both:{foreign}", "before": "1.0", "after": None}]
    assert await real.change(Package(packages=["lab-both"], present=False)) is True
    assert await real.change(Package(packages=["lab-foreign"], present=False)) is True
    assert real.versions() == {}


@slow
async def test_recommended_packages(real: Real) -> None:
    real.offer(Built("lab-extra"), Built("lab-tree", recommends="lab-extra"))
    assert await real.change(Install(packages=["lab-tree"], install_recommends=False)) is True
    assert set(real.versions()) == {"lab-tree"}
    assert await real.change(Remove(packages=["lab-tree"])) is True
    assert await real.change(Package(packages=["lab-tree"], install_recommends=True)) is True
    assert set(real.versions()) == {"lab-tree", "lab-extra"}


@slow
async def test_upgrade_and_full_upgrade(real: Real) -> None:
    real.offer(Built("lab-tree"), Built("lab-other"))
    assert await real.change(Install(packages=["lab-tree", "lab-other"])) is True
    real.offer(Built("lab-tree", "2.0", depends="lab-new"), Built("lab-new"), Built("lab-other", "2.0"))
    predicted = await real.run(Upgrade(), dry_run=True)
    assert predicted.changed is True
    assert "Inst lab-other [1.0] (2.0" in predicted.value.stdout
    assert await real.change(Upgrade()) is True
    assert real.versions() == {"lab-tree": "1.0", "lab-other": "2.0"}
    assert (await real.run(Upgrade(), dry_run=True)).changed is False
    assert await real.change(Upgrade()) is False
    assert await real.change(Upgrade(full=True)) is True
    assert real.versions() == {"lab-tree": "2.0", "lab-other": "2.0", "lab-new": "1.0"}


@slow
async def test_a_package_on_hold_stays(real: Real) -> None:
    real.offer(Built("lab-tree"))
    assert await real.change(Install(packages=["lab-tree"])) is True
    real.machine.run(["apt-mark", "hold", "lab-tree"]).check_returncode()
    real.offer(Built("lab-tree", "2.0"))
    assert await real.change(Package(packages=["lab-tree"])) is False
    assert await real.change(Upgrade()) is False
    response = await real.fail(Package(packages=["lab-tree"], present=False))
    assert "Held packages were changed" in response.detail
    assert real.versions() == {"lab-tree": "1.0"}


@slow
@pytest.mark.parametrize("missing", ["dpkg-query", "apt-get"])
async def test_a_host_without_apt(real: Real, missing: str) -> None:
    real.offer(Built("lab-tree"))
    real.machine.path(f"/usr/bin/{missing}").unlink()
    response = await real.fail(Install(packages=["lab-tree"]))
    assert f"there is no {missing} on this host: it is not of the Debian family" in response.detail
    assert response.changed is False
    assert (await real.run(GetPackages())).error is (missing == "dpkg-query")


@slow
async def test_a_host_without_a_place_for_temporary_files(real: Real) -> None:
    real.machine.path("/root/.bashrc").write_text("export TMPDIR=/nowhere\n")
    for operation in (Install(packages=["hello"]), Update()):
        response = await real.fail(operation)
        assert "/nowhere" in response.detail
        assert response.changed is False


# A lost connection, and daemons


def go_and_say(*words: str) -> str:
    """A script of a package that waits for the test, and then has something to say."""
    return "\n".join([waiting("/run/go"), *(f"echo {word}; echo {word} >&2" for word in words)])


@slow
@pytest.mark.parametrize("noise", ["", "echo Welcome"])
async def test_a_lost_connection_does_not_break_off_dpkg(real: Real, noise: str) -> None:
    real.machine.path("/root/.bashrc").write_text(f"{noise}\n")
    slow_one = Built("lab-slow", scripts={"postinst": go_and_say("one", "two", "three")})
    real.offer(slow_one, Built("lab-after", depends="lab-slow"))
    seen, watch = watched()
    response_to_come = asyncio.create_task(real.run(Install(packages=["lab-after"]), on_event=watch))
    await eventually(lambda: "Setting up lab-slow" in lines_of(seen), 30)
    await eventually(real.machine.path("/run/go.started").exists, 30)
    assert real.machine.run(["pkill", "-KILL", "-f", "sshd: root"]).returncode == 0
    response = await response_to_come
    assert (response.value, response.outcome, response.changed) == ("ConnectionLost", "unknown", True)
    assert response.completed is not None
    assert response.completed.command == Install(packages=["lab-after"]).to_shell()
    assert "Setting up lab-slow" in response.completed.stdout
    real.machine.path("/run/go").touch()
    await eventually(lambda: len(real.versions()) == 2, 30)
    assert await real.change(Package(packages=["lab-after"])) is False
    assert list(real.machine.path("/tmp").iterdir()) == []


@slow
async def test_those_who_watch_a_package_see_it_at_once(real: Real) -> None:
    real.offer(Built("lab-slow", scripts={"postinst": f"echo before\n{go_and_say('after')}"}))
    seen, watch = watched()
    response_to_come = asyncio.create_task(real.run(Install(packages=["lab-slow"]), on_event=watch))
    await eventually(lambda: "before" in lines_of(seen), 30)
    assert "after" not in lines_of(seen)
    real.machine.path("/run/go").touch()
    response = await response_to_come
    assert lines_of(seen).splitlines().count("after") == 2, "on both streams"
    assert response.value.stdout.splitlines() == lines_of(seen, "stdout").splitlines()


@slow
async def test_a_daemon_does_not_hold_the_answer_up(real: Real) -> None:
    real.offer(Built("lab-daemon", scripts={"postinst": "setsid sleep 1000 &"}))
    start = time.monotonic()
    assert await real.change(Install(packages=["lab-daemon"])) is True
    assert time.monotonic() - start < 20


# Lists of packages

LISTS = "/var/lib/apt/lists"


@slow
async def test_an_update_tells_whether_anything_is_new(real: Real) -> None:
    real.repository.add(Built("lab-tree"))
    assert await real.change(Update()) is True, "there was no list before"
    assert await real.change(Update()) is False
    real.repository.add(Built("lab-tree", "2.0"))
    response = await real.run(Update())
    assert (response.error, response.changed) == (False, True)
    assert "Reading package lists" in response.value.stdout
    assert await real.change(Update()) is False
    real.machine.path("/etc/apt/sources.list").write_text("")
    assert await real.change(Update()) is True, "lists are gone"


@slow
async def test_a_source_that_cannot_be_read(real: Real) -> None:
    real.offer(Built("lab-tree"))
    lists = real.machine.path(LISTS)
    os.utime(lists, (1_000_000_000, 1_000_000_000))
    with real.machine.path("/etc/apt/sources.list").open("a") as file:
        file.write("deb [trusted=yes] file:/srv/nothing lab main\n")
    response = await real.fail(Update())
    assert response.changed is False
    assert "/srv/nothing" in response.detail
    real.repository.add(Built("lab-tree", "2.0"))
    assert (await real.fail(Update())).changed is True, "the other source could"
    assert lists.stat().st_mtime == 1_000_000_000, "they are not fresh for that"
    assert (await real.fail(Package(packages=["lab-tree"], update=True))).changed is False
    assert real.versions() == {}


@slow
async def test_lists_are_refreshed_when_they_are_old(real: Real) -> None:
    lists = real.machine.path(LISTS)
    ensure = Package(packages=["lab-tree"], update=True)
    real.repository.add(Built("lab-tree"))
    assert await real.change(ensure) is True, "there were none"
    assert real.versions() == {"lab-tree": "1.0"}
    await real.change(Package(packages=["lab-tree"], present=False))
    real.repository.add(Built("lab-tree", "2.0"))
    assert await real.change(ensure) is True
    assert real.versions() == {"lab-tree": "1.0"}, "the lists were fresh"
    await real.change(Package(packages=["lab-tree"], present=False))
    os.utime(lists, (time.time() - 4000,) * 2)
    assert await real.change(ensure) is True
    assert real.versions() == {"lab-tree": "2.0"}
    assert time.time() - lists.stat().st_mtime < 60, "now they are fresh"


@slow
@pytest.mark.parametrize(
    ("age", "stamp_age", "valid", "refreshes"),
    [
        (0, None, 0, True),
        (100, None, 50, True),
        (100, None, 500, False),
        (-5000, None, 3600, True),
        (5000, 100, 3600, False),
        (5000, 5000, 3600, True),
    ],
    ids=["always", "old", "young", "of the future", "Ubuntu's stamp", "an old stamp"],
)
async def test_how_old_lists_are(real: Real, age: int, stamp_age: int | None, valid: int, refreshes: bool) -> None:
    real.offer(Built("lab-tree", "1.0"))
    real.repository.add(Built("lab-tree", "2.0"))
    os.utime(real.machine.path(LISTS), (time.time() - age,) * 2)
    if stamp_age is not None:
        stamp = real.machine.path("/var/lib/apt/periodic/update-success-stamp")
        stamp.parent.mkdir(exist_ok=True)
        stamp.touch()
        os.utime(stamp, (time.time() - stamp_age,) * 2)
    assert await real.change(Package(packages=["lab-tree"], update=True, cache_valid_time=valid)) is True
    assert real.versions() == {"lab-tree": "2.0" if refreshes else "1.0"}


@slow
async def test_a_dry_run_before_the_lists_are_refreshed(real: Real) -> None:
    real.repository.add(Built("lab-tree"))
    response = await real.run(Package(packages=["lab-tree"], update=True), dry_run=True)
    assert (response.changed, response.value.changes) == (
        True,
        [{"name": "lab-tree", "before": None, "after": None}],
    )
    assert not list(real.machine.path(LISTS).glob("*Packages*"))


# Locks


@slow
async def test_the_lock_of_dpkg_is_waited_for(real: Real) -> None:
    real.offer(Built("lab-slow", scripts={"postinst": waiting("/run/go")}), Built("lab-tree"))
    first = asyncio.create_task(real.run(Install(packages=["lab-slow"])))
    await eventually(real.machine.path("/run/go.started").exists, 30)
    for operation in (Install(packages=["lab-tree"], lock_timeout=1), Package(packages=["lab-tree"], lock_timeout=0)):
        start = time.monotonic()
        response = await real.fail(operation)
        assert time.monotonic() - start < 20
        assert response.changed is False
        assert re.search(
            r"a lock was not to be had within [01] s: Could not get lock \S+ It is held by process \d+ ",
            response.detail,
        )
    seen, watch = watched()
    second = asyncio.create_task(real.run(Install(packages=["lab-slow", "lab-tree"])))
    third = asyncio.create_task(real.run(Install(packages=["lab-slow"]), on_event=watch))
    await eventually(lambda: "Could not get lock" in lines_of(seen), 30)
    assert not first.done()
    real.machine.path("/run/go").touch()
    responses = await asyncio.gather(first, second, third)
    assert [response.error for response in responses] == [False] * 3
    # What another one did while it waited is not its own change.
    assert [response.changed for response in responses] == [True, True, False]
    assert real.versions() == {"lab-slow": "1.0", "lab-tree": "1.0"}


@slow
@pytest.mark.parametrize(
    ("lock", "operation"),
    [
        ("/var/lib/apt/lists/lock", Update(lock_timeout=1)),
        ("/var/cache/apt/archives/lock", Install(packages=["lab-tree"], lock_timeout=1)),
        ("/var/lib/dpkg/lock", Remove(packages=["lab-tree"], lock_timeout=1)),
    ],
    ids=["lists", "archives", "dpkg"],
)
async def test_locks_that_apt_itself_does_not_wait_for(real: Real, lock: str, operation: Operation[Any]) -> None:
    real.offer(Built("lab-tree"))
    with real.machine.path(lock).open("a") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        response = await real.fail(operation)
        assert f"a lock was not to be had within 1 s: Could not get lock {lock}" in response.detail
        patient = type(operation)(**{**operation.kwargs, "lock_timeout": 60})
        seen, watch = watched()
        waits = asyncio.create_task(real.run(patient, on_event=watch))
        await eventually(lambda: "Could not get lock" in lines_of(seen), 30)
        assert not waits.done()
    assert (await waits).error is False


@slow
async def test_a_user_who_may_not(make_world: MakeWorld) -> None:
    machine = make_world("server104")["server104"]
    options = {**machine.connection(), "address": machine.address}
    inventory = Inventory.of({"hosts": [{"connection": options}]})
    with machine._world.network():
        async with Pool() as pool:
            [response] = await execute(lambda: Install(packages=["hello"]), inventory=inventory, pool=pool)
            assert response.completed is not None
            assert "are you root?" in response.completed.stderr
            assert "Permission denied" in response.detail
            assert response.changed is False
            [response] = await execute(lambda: GetPackages(), inventory=inventory, pool=pool)
            assert response.value.packages
