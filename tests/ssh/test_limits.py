"""The limits of hosts and of this process: sessions, start-ups, connections, files."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest

from reemote.execute import Pool, execute, run
from reemote.host import Shell
from reemote.sftp import Write
from reemote.ssh.pool import loop_pool
from reemote.system import Callback, Return
from reemote.testing import sandbox
from tests.openssh import UserSshd
from tests.openssh_fixtures import MakeUserSshd
from tests.ssh.hosts import inventory, only


@pytest.fixture
def sshd(user_sshd: UserSshd) -> UserSshd:
    return user_sshd


pytestmark = pytest.mark.usefixtures("sshd", "nothing_left")


class Echoes:
    """Commands at the same time, each with an answer of its own."""

    def __init__(self, number: int) -> None:
        self.number = number

    async def execute(self) -> Any:
        responses = yield [Shell(cmd=f"sleep 0.1; echo {number}") for number in range(self.number)]
        yield Return(value=[int(response.value.stdout) for response in responses])


# R14: sessions


async def test_one_connection_for_a_deployment_and_for_calls_in_a_row(sshd: UserSshd) -> None:
    class Twenty:
        async def execute(self) -> Any:
            for number in range(20):
                response = yield Shell(cmd=f"echo {number}")
                assert response.value.stdout == f"{number}\n"

    before = sshd.accepted()
    for _ in range(3):
        assert not (await execute(Twenty, inventory(sshd.connection()))).failed
    assert sshd.accepted() - before == 1
    assert (await loop_pool()).open_connections == 1


def test_each_event_loop_closes_its_connections(sshd: UserSshd) -> None:
    before = sshd.accepted()
    for _ in range(2):
        assert not run(lambda: Shell(cmd="true"), inventory(sshd.connection())).failed
    assert sshd.accepted() - before == 2
    sshd.wait_idle()


@pytest.mark.slow
@pytest.mark.parametrize("allowed", [10, 3, 1])
async def test_fifteen_commands_at_the_same_time(make_user_sshd: MakeUserSshd, allowed: int) -> None:
    server = make_user_sshd(MaxSessions=allowed)
    response = await only(lambda: Echoes(15), **server.connection())
    assert response["value"] == list(range(15))
    assert server.accepted() == 1


async def test_no_more_sessions_than_told() -> None:
    fleet = sandbox("a")
    async with fleet as hosts, Pool() as pool:
        hosts.hosts[0].connection.max_sessions = 4
        assert (await execute(lambda: Echoes(12), hosts, pool=pool))[0]["value"] == list(range(12))
    assert fleet["a"].peak_sessions == 4
    fleet = sandbox("b")
    async with fleet as hosts, Pool() as pool:
        assert (await execute(lambda: Echoes(20), hosts, pool=pool))[0]["value"] == list(range(20))
    assert fleet["b"].peak_sessions == 8


@pytest.mark.slow
async def test_files_and_commands_take_turns_with_one_session(make_user_sshd: MakeUserSshd) -> None:
    server = make_user_sshd(MaxSessions=1)

    class PutRunPut:
        async def execute(self) -> Any:
            yield Write(path="uploaded", text="one")
            first = yield Shell(cmd="cat uploaded")
            yield Write(path="uploaded", text="two")
            second = yield Shell(cmd="cat uploaded")
            third = yield [
                Write(path="uploaded", text="three"),
                Shell(cmd="echo at the same time"),
                Write(path="uploaded", text="three"),
            ]
            yield Return(value=[first.value.stdout, second.value.stdout, [r["error"] for r in third]])

    response = await only(PutRunPut, **server.connection())
    assert response["value"] == ["one", "two", [False] * 3]
    assert server.accepted() == 1


@pytest.mark.slow
async def test_a_host_that_allows_no_session(make_user_sshd: MakeUserSshd) -> None:
    server = make_user_sshd(MaxSessions=0)
    async with asyncio.timeout(10):
        response = await only(lambda: Shell(cmd="true"), **server.connection())
    assert (response["value"], response["outcome"], response["changed"]) == ("ChannelOpenError", "not_started", False)


# R15, R17, R18: connections


@pytest.mark.slow
async def test_two_hundred_hosts_behind_one_sshd(make_user_sshd: MakeUserSshd) -> None:
    server = make_user_sshd(private_network=True, listen="0.0.0.0", MaxStartups="10:30:100")
    with server.network():
        options = server.connection(known_hosts=f"* {server.host_key}\n".encode())
        hosts = [{**options, "host": f"127.0.2.{number}"} for number in range(1, 201)]
        async with Pool() as pool:
            responses = await execute(lambda: Shell(cmd="echo here"), inventory(*hosts), pool=pool)
            assert [r["detail"] for r in responses.failed] == []
            assert len(responses) == 200
            assert pool.open_connections == 200
    assert server.accepted() == 200


FEW_FILES = """
import asyncio, json, resource, sys
from pathlib import Path
hard = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
from reemote.execute import execute
from reemote.host import Shell
from reemote.sftp import Write
options = json.loads(sys.argv[1])
options["known_hosts"] = options["known_hosts"].encode()
hosts = [{"connection": {**options, "host": f"127.0.3.{number % 250 + 1}", "port": options["port"],
          "username": options["username"], "max_sessions": 1 + number // 250}} for number in range(250)]
responses = asyncio.run(execute(lambda: Shell(cmd="echo here"), {"hosts": hosts}))
print(json.dumps([len(responses), [r["detail"] for r in responses.failed]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("hard", [256, 4096])
def test_more_hosts_than_files_may_be_open(make_user_sshd: MakeUserSshd, hard: int) -> None:
    server = make_user_sshd(private_network=True, listen="0.0.0.0", MaxStartups="200")
    options = server.connection(known_hosts=f"* {server.host_key}\n")
    with server.network():
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", FEW_FILES, json.dumps(options), str(hard)],
            capture_output=True,
            text=True,
            timeout=80,
            check=False,
        )
    assert done.stderr == ""
    assert json.loads(done.stdout) == [250, []]


NO_FILES = """
import asyncio, json, os, resource, sys
from reemote.execute import Pool, execute
from reemote.host import Shell
from reemote.sftp import Write
from reemote.inventory import Inventory
from reemote.ssh import link

options = json.loads(sys.argv[1])
with open(options["known_hosts"], "rb") as file:
    options["known_hosts"] = file.read()
hosts = Inventory.of({"hosts": [{"connection": options}]})

async def main(release):
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
    async with Pool() as pool:
        pool.prepare(hosts.hosts)  # the keys are read now
        held = []
        try:
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        if release:
            wait = link.asyncio.sleep
            async def free(seconds):
                while held:
                    os.close(held.pop())
                await wait(0)
            link.asyncio.sleep = free  # the pause before the next attempt
        else:
            link.BACKOFF = 0.01
        [response] = await execute(lambda: Shell(cmd="echo here"), hosts, pool=pool)
        for number in held:
            os.close(number)
        return response

response = asyncio.run(main(sys.argv[2] == "release"))
print(json.dumps([response["value"] if response["error"] else response["value"]["stdout"], response.outcome]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "expected"),
    [("release", ["here\n", "completed"]), ("hold", ["FileDescriptorsExhausted", "not_started"])],
)
def test_no_file_can_be_opened(sshd: UserSshd, what: str, expected: list[str]) -> None:
    """Another part of the program uses them all: waited for, for a while, and then said."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", NO_FILES, json.dumps(sshd.connection()), what],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert json.loads(done.stdout) == expected


@pytest.mark.slow
async def test_no_more_connections_than_hosts_that_may_run() -> None:
    fleet = sandbox(*(f"host{number}" for number in range(20)))
    peak = 0

    def sample(_: Any) -> None:
        nonlocal peak
        peak = max(peak, sum(server.open_connections for server in fleet.servers.values()))

    class Sampled:
        async def execute(self) -> Any:
            for _ in range(3):
                yield Shell(cmd="true")
                yield Callback(callback=sample)

    async with fleet as hosts, Pool() as pool:
        responses = await execute(Sampled, hosts, pool=pool, concurrency=4)
        assert not responses.failed
        assert 1 < peak <= 4
        assert pool.open_connections <= 4


async def test_an_idle_connection_is_closed() -> None:
    fleet = sandbox("a")
    async with fleet as hosts, Pool(idle=0.05) as pool:
        for count in (1, 2):
            assert not (await execute(lambda: Shell(cmd="true"), hosts, pool=pool)).failed
            assert fleet["a"].connections == count
            async with asyncio.timeout(5):
                while fleet["a"].open_connections or pool.open_connections:
                    await asyncio.sleep(0.01)


async def test_options_of_one_operation_have_a_connection_of_their_own() -> None:
    fleet = sandbox("a")

    class Root:
        async def execute(self) -> Any:
            yield Shell(cmd="true")
            denied = yield Shell(cmd="true", connection={"password": "wrong"})
            for _ in range(2):
                yield Shell(cmd="true", connection={"keepalive_interval": 3})
            pty = yield Shell(cmd="tty", session={"request_pty": True, "term_type": "xterm"})
            yield Return(value=[denied["value"], pty.value.stdout])

    async with fleet as hosts, Pool() as pool:
        response = (await execute(Root, hosts, pool=pool))[0]
        assert response["value"][0] == "PermissionDenied"
        assert response["value"][1].startswith("/dev/pts/")
        assert fleet["a"].connections == 2
