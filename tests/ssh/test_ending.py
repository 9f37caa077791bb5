"""Commands that are ended: out of time, cancelled, or left alone by a client that is gone (R21 to R23)."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from reemote.core.response import Response, Responses
from reemote.events import Event, HostFinished, OutputLine, RunFinished
from reemote.execute import execute
from reemote.host import Command, Shell
from reemote.inventory import Inventory
from reemote.sftp import Read
from reemote.ssh import process
from reemote.ssh.pool import loop_pool
from reemote.system import Callback, Return
from tests.leaks import eventually
from tests.ssh.machines import SU, SUDO, Site, started

pytestmark = pytest.mark.slow

TREE = "sh -c 'sleep 900 & sleep 901 & echo begun; wait' & wait"
DEAF = "trap '' TERM; sh -c 'sleep 902 & echo begun; while :; do sleep 0.1; done' & while :; do sleep 0.1; done"
LEFT = "sleep 903 & (sleep 904 & sleep 905) & echo begun; exec sleep 906"
DEAF_PROGRAM = ["sh", "-c", DEAF]

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain_a_tree": ("user", {"cmd": TREE}),
    "plain_deaf_to_TERM": ("user", {"cmd": DEAF}),
    "plain_children_in_the_background": ("user", {"cmd": LEFT}),
    "plain_with_a_watcher": ("user", {"cmd": DEAF, "kill_on_disconnect": True}),
    "plain_a_program": ("user", {"argv": DEAF_PROGRAM}),
    "sudo_a_tree": ("user", {"cmd": TREE, "sudo": True}),
    "sudo_deaf_to_TERM": ("user", {"cmd": DEAF, "sudo": True}),
    "sudo_children_in_the_background": ("user", {"cmd": LEFT, "sudo": True}),
    "sudo_with_a_watcher": ("user", {"cmd": DEAF, "sudo": True, "kill_on_disconnect": True}),
    "sudo_with_input": ("user", {"cmd": TREE, "sudo": True, "stdin": "x" * 5_000_000}),
    "sudo_no_password": ("free", {"cmd": DEAF, "sudo": True}),
    "sudo_a_program": ("user", {"argv": ["sh", "-c", TREE], "sudo": True}),
    "sudo_a_program_deaf_to_TERM": ("user", {"argv": DEAF_PROGRAM, "sudo": True}),
    "sudo_no_password_a_program_deaf_to_TERM": ("free", {"argv": DEAF_PROGRAM, "sudo": True}),
    "sudo_another_user": ("user", {"cmd": DEAF, "sudo": True, "sudo_user": "other"}),
    "sudo_on_a_terminal_a_tree": ("tty", {"cmd": TREE, "sudo": True}),
    "sudo_on_a_terminal_deaf_to_TERM": ("tty", {"cmd": DEAF, "sudo": True}),
    "sudo_on_a_terminal_a_program_deaf_to_TERM": ("tty", {"argv": DEAF_PROGRAM, "sudo": True}),
    "su_a_tree": ("user", {"cmd": TREE, "su": True}),
    "su_deaf_to_TERM": ("user", {"cmd": DEAF, "su": True}),
    "su_children_in_the_background": ("user", {"cmd": LEFT, "su": True}),
    "su_with_a_watcher": ("user", {"cmd": DEAF, "su": True, "kill_on_disconnect": True}),
    "su_a_program": ("user", {"argv": DEAF_PROGRAM, "su": True}),
    "a_login_shell_that_is_no_bash": ("dash", {"cmd": DEAF, "sudo": True}),
}


def step(name: str, **more: Any) -> Shell | Command:
    """The step of a variant; by the seconds of its sleeps one knows whose they are."""
    what = VARIANTS[name][1] | more
    number = f"sleep {10 + list(VARIANTS).index(name)}9"
    if "argv" in what:
        return Command(**what | {"argv": [word.replace("sleep 9", number) for word in what["argv"]]})
    return Shell(**what | {"cmd": what["cmd"].replace("sleep 9", number)})


def whose(lines: list[str]) -> set[str]:
    """Which variants these command lines are of."""
    numbers = {int(number) - 10 for line in lines for number in re.findall(r"sleep (\d\d)9\d\d\b", line)}
    return {list(VARIANTS)[number] for number in numbers}


def host(site: Site, name: str) -> Any:
    """A host, and so a connection, for each variant."""
    user = VARIANTS[name][0]
    known = {**SU, **({} if user == "free" else SUDO)}
    return site.host(user, connection={"host": name}, **known)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, tuple[Site, list[str]]]]:
    """A machine that allows a session at a time, and one with the usual number; with what runs there at first."""
    folder = tmp_path_factory.mktemp("ending")
    with (
        started(folder / "one", MaxSessions=1, MaxStartups="100") as one,
        started(folder / "ten", MaxStartups="100") as ten,
    ):
        yield {each: (site, others(site)) for each, site in {1: one, 10: ten}.items()}


@pytest.fixture
def one(worlds: dict[int, tuple[Site, list[str]]], nothing_left: None) -> Iterator[Site]:
    """The machine with one session at a time; at the end nothing runs on it that did not before."""
    site, before = worlds[1]
    with site.world.network():
        yield site
    assert others(site) == before


@pytest.fixture
def site(worlds: dict[int, tuple[Site, list[str]]], nothing_left: None) -> Iterator[Site]:
    """The machine with as many sessions as usual."""
    site, before = worlds[10]
    with site.world.network():
        yield site
    assert others(site) == before


def others(site: Site) -> list[str]:
    """What runs on the machine besides sshd."""
    return sorted(line for line in site.commands("") if line.strip() and not line.startswith("sshd: "))


async def gone(site: Site, seconds: float = 4.0) -> None:
    """Wait until nothing that a test has started runs on the machine."""
    start = time.monotonic()
    while left := [line for line in others(site) if "sleep" in line or "sudo" in line or line.startswith("su ")]:
        if time.monotonic() - start > seconds:
            kill(site)
            pytest.fail(f"{whose(left)}: {left}")
        await asyncio.sleep(0.02)


def kill(site: Site) -> None:
    """End what a test has left on the machine, for the sake of the others."""
    for text in ("sleep", "sftp-server"):
        site.signal(text, signal.SIGKILL)


class Late:
    """A step with a time limit, and what the host can do afterwards."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def execute(self) -> Any:
        start = time.monotonic()
        late = yield step(self.name, timeout=1)
        seconds = time.monotonic() - start
        then = yield Shell(cmd="echo then")
        privileged = {key: value for key, value in VARIANTS[self.name][1].items() if key in ("sudo", "su")}
        again = yield Shell(cmd="echo again", **privileged)
        yield Return(value=[late, seconds, then, again])


# R21


async def test_what_is_out_of_time_is_ended(one: Site) -> None:
    responses = await one.every(iter([Late(name) for name in VARIANTS]).__next__, *(host(one, n) for n in VARIANTS))
    await gone(one)
    for name, response in zip(VARIANTS, responses, strict=True):
        assert not response["error"], (name, response)
        late, seconds, then, again = response["value"]
        assert (name, late["value"], late["completed"]["stdout"]) == (name, "CommandTimeout", "begun\n")
        assert (name, late["outcome"], late["changed"]) == (name, "completed", True)
        # Where there is one session only, what has no privileges is tried before.
        assert (name, seconds < 1 + 2 * process.GRACE_TERM + process.GRACE_KILL + 2) == (name, True)
        assert (name, then["value"]["stdout"], again["value"]["stdout"]) == (name, "then\n", "again\n")


async def test_a_program_that_is_all_that_sudo_allows_is_ended(site: Site) -> None:
    """No other program, such as kill, can be had for it."""
    for user, known in (("single", SUDO), ("single_free", {})):
        response = await site.run(Command(argv=["/usr/bin/sleep", "910"], sudo=True, timeout=0.7), user, **known)
        assert (response["value"], response["outcome"]) == ("CommandTimeout", "completed")
        await gone(site)


async def test_the_time_is_over_while_sudo_thinks(site: Site) -> None:
    """A wrong password takes sudo two seconds."""
    steps = [
        Shell(cmd="echo ran; sleep 911", sudo=True, timeout=0.5),
        Command(argv=["sleep", "911"], sudo=True, timeout=0.5),
    ]
    hosts = [site.host(connection={"host": name}, sudo_password="wrong") for name in ("shell", "program")]
    for response in await site.every(iter(steps).__next__, *hosts):
        assert response["value"] == "CommandTimeout"
        assert response["completed"]["stdout"] == ""
    await gone(site)


async def test_the_time_for_a_step(site: Site) -> None:
    names = ["plain_a_tree", "sudo_a_tree", "su_a_tree", "sudo_on_a_terminal_a_tree"]
    start = time.monotonic()
    responses = await site.every(
        iter([step(name) for name in names]).__next__, *(host(site, name) for name in names), step_timeout=1
    )
    assert time.monotonic() - start < 8
    await gone(site)
    for response in responses:
        assert (response["value"], response["changed"]) == ("CommandTimeout", True)
        assert response["completed"]["stdout"] == "begun\n"


@pytest.mark.parametrize("limit", ["timeout", "host_timeout"])
async def test_the_time_for_a_run_and_for_a_host(site: Site, limit: str) -> None:
    names = ["plain_a_tree", "sudo_a_tree", "su_a_tree", "sudo_on_a_terminal_a_tree"]
    events: list[Event] = []

    async def note(event: Event) -> None:
        events.append(event)

    start = time.monotonic()
    responses = await site.every(
        iter([step(name) for name in names]).__next__,
        *(host(site, name) for name in names),
        on_event=note,
        **{limit: 1},
    )
    assert time.monotonic() - start < 8
    await gone(site)
    for response in responses:
        assert (response["value"], response["outcome"], response["changed"]) == ("Cancelled", "unknown", True)
        assert response["completed"]["stdout"] == "begun\n"
        assert "1 s had passed" in response.detail
    end = events[-1]
    assert isinstance(end, RunFinished)
    assert end.responses == responses
    assert end.cancelled is (limit == "timeout")


async def test_a_host_that_is_done_in_time_is_not_cancelled(site: Site) -> None:
    hosts = [host(site, name) for name in ("plain_a_tree", "sudo_a_tree")]
    steps = [Shell(cmd="echo done", sudo=True), step("sudo_a_tree")]
    responses = await site.every(iter(steps).__next__, *hosts, timeout=1.5)
    assert responses[0]["value"]["stdout"] == "done\n"
    assert responses[1]["value"] == "Cancelled"
    await gone(site)


async def test_files_of_others_that_do_not_come(site: Site) -> None:
    """The server of files hangs; a step that waits for it in vain costs no other."""
    site.machine.path("/root/file").write_text("text")

    def stop(_: Any) -> None:
        site.signal("/usr/lib/openssh/sftp-server ", signal.SIGSTOP)

    class Hangs:
        async def execute(self) -> Any:
            first = yield Read(path="/root/file", sudo=True)
            yield Callback(callback=stop)
            start = time.monotonic()
            late = yield Read(path="/root/file", sudo=True)
            seconds = time.monotonic() - start
            again = yield Read(path="/root/file", sudo=True)
            yield Return(value=[first["value"], late["value"], again["value"], seconds])

    [response] = await site.every(Hangs, host(site, "sudo_a_tree"), step_timeout=1)
    assert response["value"][:3] == ["text", "CommandTimeout", "text"]
    assert response["value"][3] < 3
    site.signal("", signal.SIGCONT)  # sudo stops with what it runs
    await (await loop_pool()).close()
    await gone(site)
    await eventually(lambda: not site.commands("sftp-server"))


# R22


class Listener:
    """Counts the hosts whose commands have begun, and keeps the end."""

    def __init__(self) -> None:
        self.begun: set[str] = set()
        self.finished: list[HostFinished] = []
        self.end: RunFinished | None = None

    async def __call__(self, event: Event) -> None:
        if isinstance(event, OutputLine) and event.line == "begun":
            self.begun.add(event.host)
        elif isinstance(event, HostFinished):
            self.finished.append(event)
        elif isinstance(event, RunFinished):
            self.end = event


def start(site: Site, listener: Listener, names: Iterable[str]) -> asyncio.Task[Responses]:
    hosts = {"hosts": [host(site, name) for name in names]}
    steps = iter([step(name) for name in names])
    return asyncio.create_task(execute(steps.__next__, Inventory.of(hosts), on_event=listener))


async def test_a_cancelled_run_ends_all(site: Site) -> None:
    listener = Listener()
    running = start(site, listener, VARIANTS)
    await eventually(lambda: len(listener.begun) == len(VARIANTS), 20)
    begun = time.monotonic()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert time.monotonic() - begun < 9
    await gone(site)
    assert listener.end is not None
    assert listener.end.cancelled is True
    assert [response["host"] for response in listener.end.responses] == list(VARIANTS)
    for response in listener.end.responses:
        assert (response["value"], response["outcome"], response["changed"]) == ("Cancelled", "unknown", True)
        assert response["completed"]["stdout"] == "begun\n"
    by_host: dict[str, Response[Any] | None] = {event.host: event.response for event in listener.finished}
    assert by_host == {response["host"]: response for response in listener.end.responses}


async def test_a_second_cancel_does_not_wait(site: Site) -> None:
    listener = Listener()
    names = [name for name in VARIANTS if "deaf" in name]
    running = start(site, listener, names)
    await eventually(lambda: len(listener.begun) == len(names), 20)
    running.cancel()
    await asyncio.sleep(0.3)
    assert not running.done()
    again = time.monotonic()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert time.monotonic() - again < 1
    kill(site)
    await gone(site)


async def test_cancelled_while_sudo_asks(site: Site) -> None:
    """At any moment from the connection to the command's beginning; what was started is ended."""
    for turn in range(8):
        listener = Listener()
        running = start(site, listener, ("sudo_a_tree", "su_a_tree"))
        await asyncio.sleep(0.015 * turn)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await gone(site)


# R23

CLIENT = """
import asyncio, json, sys
from reemote.execute import execute
from reemote.host import Shell
hosts, steps = json.loads(sys.argv[1])
for host in hosts:
    host["connection"]["known_hosts"] = host["connection"]["known_hosts"].encode()
async def say(event):
    if type(event).__name__ == "OutputLine" and event.line == "begun":
        print(event.host, flush=True)
asyncio.run(execute(iter([Shell(**step) for step in steps]).__next__, {"hosts": hosts}, on_event=say))
"""

WATCHED: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("user", {}),
    "sudo": ("user", {"sudo": True}),
    "sudo_without_password": ("free", {"sudo": True}),
    "sudo_on_a_terminal": ("tty", {"sudo": True}),
    "su": ("user", {"su": True}),
    "dash": ("dash", {"sudo": True}),
}


def client(site: Site, command: str, **more: Any) -> subprocess.Popen[str]:
    """Start a client in a process of its own, and wait until its commands have begun."""
    hosts, steps = [], []
    for name, (user, how) in WATCHED.items():
        item = site.host(user, connection={"host": name}, **SU, **SUDO)
        item["connection"]["known_hosts"] = item["connection"]["known_hosts"].decode()
        hosts.append(item)
        steps.append({"cmd": command, **how, **more})
    # Like the fixtures, it is in the network of the world.
    running = subprocess.Popen(
        [sys.executable, "-c", CLIENT, json.dumps([hosts, steps])],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert running.stdout is not None
    if (begun := {running.stdout.readline().strip() for _ in WATCHED}) != set(WATCHED):
        end(running)
        pytest.fail(f"only these have begun: {begun}")
    return running


def end(running: subprocess.Popen[str]) -> None:
    running.kill()
    running.communicate()


async def test_what_is_watched_ends_with_the_connection(one: Site, site: Site) -> None:
    """At the same time on two machines: here the client is killed, there what serves the connections."""
    with site.world.network():
        killed = client(site, DEAF, kill_on_disconnect=True)
    try:
        with one.world.network():
            cut = client(one, TREE, kill_on_disconnect=True)
        try:
            assert min(len(each.commands("sleep 90")) for each in (site, one)) >= len(WATCHED)
            killed.kill()
            one.machine.kill_sessions()
            for each in (site, one):
                await gone(each, seconds=6)
        finally:
            end(cut)
    finally:
        end(killed)


async def test_what_is_not_watched_runs_on(site: Site) -> None:
    running = client(site, "trap '' HUP PIPE; echo begun; sleep 1; touch /tmp/done-$$ 2>/dev/null")
    end(running)
    # On a terminal the kernel ends it; no other user's command is.
    wanted = len(WATCHED) - 1
    folder = site.machine.path("/tmp")
    try:
        await eventually(lambda: len(list(folder.glob("done-*"))) >= wanted, 5)
    finally:
        site.machine.run(["sh", "-c", "rm -f /tmp/done-*"])
    await gone(site)


async def test_a_watcher_changes_nothing_else(site: Site) -> None:
    data = bytes(range(256)) * 100

    class Each:
        def __init__(self, how: dict[str, Any]) -> None:
            self.how = how

        async def execute(self) -> Any:
            start = time.monotonic()
            answers = yield [
                Shell(cmd="cat; echo err >&2; exit 7", stdin=data, kill_on_disconnect=True, **self.how),
                Shell(cmd="wait; echo $?; jobs", kill_on_disconnect=True, **self.how),
                Shell(cmd="pwd; echo $X", cwd="/usr", env={"X": "a b"}, kill_on_disconnect=True, **self.how),
                Command(argv=["printf", "<%s>", "a 'b", ""], kill_on_disconnect=True, **self.how),
            ]
            yield Return(value=[answers, time.monotonic() - start])

    hosts = [site.host(user, connection={"host": name}, **SU, **SUDO) for name, (user, _) in WATCHED.items()]
    steps = iter([Each(how) for _, how in WATCHED.values()])
    for name, response in zip(WATCHED, await site.every(steps.__next__, *hosts), strict=True):
        answers, seconds = response["value"]
        outputs = [(answer.value.stdout_bytes, answer.value.exit_status) for answer in answers]
        err = b"err\n" if name == "sudo_on_a_terminal" else b""
        assert (name, outputs) == (name, [(data + err, 7), (b"0\n", 0), (b"/usr\na b\n", 0), (b"<a 'b><>", 0)])
        assert seconds < 2  # the watcher holds nobody up
    await gone(site)


async def test_a_host_that_cannot_watch_runs_nothing(site: Site) -> None:
    """Where the processes of others are hidden, nobody could tell the end of the connection."""
    site.machine.run(["mount", "-o", "remount,hidepid=2", "/proc"]).check_returncode()
    try:
        response = await site.run(
            Shell(cmd="echo ran", su=True, kill_on_disconnect=True), su_user="other", su_password="other-password"
        )
    finally:
        site.machine.run(["mount", "-o", "remount,hidepid=0", "/proc"]).check_returncode()
    record = response["completed"] if response["error"] else response["value"]
    assert (record["stdout"], record["exit_status"]) == ("", 126)
    assert "cannot be watched" in record["stderr"]
