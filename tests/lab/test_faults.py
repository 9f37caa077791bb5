"""Each fault of the lab does what it says, to one host only, and ends."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from collections.abc import AsyncIterator
from typing import Any

import asyncssh
import pytest

from tests.lab.fixtures import MakeLab
from tests.lab.hosts import Host

pytestmark = pytest.mark.slow

LIVELY = {"keepalive_interval": 0.2, "keepalive_count_max": 2}


@pytest.fixture
def hosts(make_lab: MakeLab) -> tuple[Host, Host]:
    first, second = make_lab().hosts
    return first, second


@contextlib.asynccontextmanager
async def connected(host: Host, **more: Any) -> AsyncIterator[asyncssh.SSHClientConnection]:
    with host.lab.network():
        connection = await asyncssh.connect(**host.login(**more))
    # A connection that is dead already does not say goodbye.
    try:
        yield connection
    finally:
        connection.abort()
        await connection.wait_closed()


async def answers(host: Host) -> bool:
    async with connected(host, connect_timeout=5) as connection:
        return (await connection.run("echo yes")).stdout == "yes\n"


async def knock(host: Host, seconds: float) -> str:
    """What becomes of a TCP connection: open, silence, or the name of an error."""
    with host.lab.network():
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(host.address, 22), seconds)
        except TimeoutError:
            return "silence"
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, "?")
    writer.close()
    await writer.wait_closed()
    return "open"


async def eventually(host: Host, path: str) -> None:
    async with asyncio.timeout(10):
        while not host.path(path).exists():
            await asyncio.sleep(0.01)


async def test_drop_is_silent(hosts: tuple[Host, Host]) -> None:
    host, other = hosts
    async with connected(host, **LIVELY) as connection:
        process = await connection.create_process("touch /tmp/marker; sleep 60")
        await eventually(host, "/tmp/marker")
        host.drop()
        begin = time.monotonic()
        done = await asyncio.wait_for(process.wait(), 10)
        assert time.monotonic() - begin > 0.3
        assert (done.exit_status, done.exit_signal) == (None, None)
    assert await knock(host, 0.5) == "silence"
    assert await knock(other, 5) == "open"
    # The host hears nothing of it: its processes go on.
    assert host.run(["pgrep", "-xc", "sleep"]).stdout == "1\n"
    host.restore()
    assert await answers(host)


async def test_a_connection_survives_a_short_drop(hosts: tuple[Host, Host]) -> None:
    host, _ = hosts
    async with connected(host) as connection:
        host.drop()
        pending = asyncio.create_task(connection.run("echo yes"))
        assert (await asyncio.wait({pending}, timeout=0.3))[0] == set()
        host.restore()
        assert (await asyncio.wait_for(pending, 20)).stdout == "yes\n"


async def test_drop_in_one_direction(hosts: tuple[Host, Host]) -> None:
    host, _ = hosts
    async with connected(host) as connection:
        process = await connection.create_process("read line; touch /tmp/$line; echo $line", stdin=asyncssh.PIPE)
        host.drop(incoming=False)
        process.stdin.write("heard\n")
        await eventually(host, "/tmp/heard")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(process.stdout.readline(), 0.3)
        host.drop(outgoing=False)
        assert await knock(host, 0.3) == "silence"
        host.restore()
        assert await asyncio.wait_for(process.stdout.readline(), 20) == "heard\n"


async def test_reset(hosts: tuple[Host, Host]) -> None:
    host, other = hosts
    async with connected(host) as connection:
        host.reset()
        with pytest.raises(asyncssh.ChannelOpenError, match="SSH connection closed"):
            await asyncio.wait_for(connection.create_process("sleep 60"), 5)
    assert await knock(host, 5) == "ECONNREFUSED"
    assert await knock(other, 5) == "open"
    host.restore()
    assert await answers(host)


async def test_cut(hosts: tuple[Host, Host]) -> None:
    host, other = hosts
    async with connected(host, **LIVELY) as connection:
        host.cut()
        await asyncio.wait_for(connection.wait_closed(), 5)
        # Nobody answers for the address: after some seconds the client's kernel knows.
        assert await knock(host, 15) == "EHOSTUNREACH"
        assert await knock(other, 5) == "open"
    host.restore()
    assert await answers(host)


async def test_killed_sessions(hosts: tuple[Host, Host]) -> None:
    host, _ = hosts
    async with connected(host, user="user") as connection:
        process = await connection.create_process("echo started; sleep 60")
        assert await process.stdout.readline() == "started\n"
        assert len(host.kill_sessions()) == 2
        done = await asyncio.wait_for(process.wait(), 5)
        assert (done.exit_status, done.exit_signal) == (None, None)
    assert await answers(host)


async def test_a_full_disk(hosts: tuple[Host, Host]) -> None:
    host, other = hosts
    write = "head -c 100000 /dev/zero >/home/keyed/new"
    async with connected(host) as connection:
        host.fill_disk()
        done = await connection.run(write)
        assert done.exit_status != 0
        assert "No space left on device" in str(done.stderr)
        async with connection.start_sftp_client() as sftp:
            assert (await sftp.statvfs("/home/keyed")).bavail == 0
        host.restore()
        assert (await connection.run(write)).exit_status == 0
    async with connected(other) as connection:
        assert (await connection.run(write)).exit_status == 0


async def test_a_small_disk(hosts: tuple[Host, Host]) -> None:
    host, _ = hosts
    host.small_disk("/srv/small", "1m")
    async with connected(host) as connection:
        done = await connection.run("cd /srv/small && head -c 500k /dev/zero >one && head -c 2M /dev/zero >two")
        assert done.exit_status != 0
        assert "No space left on device" in str(done.stderr)
        assert (await connection.run("head -c 2M /dev/zero >two", check=True)).exit_status == 0
    host.fill_disk("/srv/small")
    assert host.path("/srv/small/one").stat().st_size == 500 * 1024
    assert host.run(["cp", "/etc/passwd", "/srv/small/three"]).returncode == 1


async def fetch(connection: asyncssh.SSHClientConnection, size: int) -> float:
    begin = time.monotonic()
    done = await asyncio.wait_for(connection.run(f"head -c {size} /dev/zero", encoding=None), 60)
    assert len(done.stdout or b"") == size
    return time.monotonic() - begin


async def test_a_slow_link(hosts: tuple[Host, Host]) -> None:
    host, other = hosts
    async with connected(host) as connection, connected(other) as neighbour:
        assert await fetch(connection, 2**19) < 1
        host.slow("4mbit")
        # 64 KiB go at full speed: 448 KiB take 0.9 s.
        assert await fetch(connection, 2**19) > 0.7
        assert await fetch(neighbour, 2**19) < 0.7
        begin = time.monotonic()
        await connection.run("cat >/dev/null", input=bytes(2**19), encoding=None, check=True)
        assert time.monotonic() - begin > 0.7
        host.restore()
        assert await fetch(connection, 2**19) < 0.7


async def round_trip(host: Host) -> float:
    """How long it takes to open a TCP connection, when this machine has nothing else to do."""
    tries = []
    for _ in range(3):
        begin = time.monotonic()
        assert await knock(host, 10) == "open"
        tries.append(time.monotonic() - begin)
    return min(tries)


async def test_a_long_cable(hosts: tuple[Host, Host]) -> None:
    host, other = hosts
    async with connected(host) as connection:
        host.slow(latency=0.1)
        # Connections stay, and all bytes arrive.
        assert (await connection.run("echo yes")).stdout == "yes\n"
        assert await fetch(connection, 2**21) > 0.2
        assert 0.2 <= await round_trip(host) < 1
        assert await round_trip(other) < 0.15
        host.slow("4mbit", latency=0.05)
        assert 0.1 <= await round_trip(host) < 1
        assert await fetch(connection, 2**19) > 0.7
        host.drop()
        assert await knock(host, 0.5) == "silence"
        host.restore()
        assert await round_trip(host) < 0.15
        assert (await connection.run("echo yes")).stdout == "yes\n"


async def test_a_long_cable_can_be_cut(hosts: tuple[Host, Host]) -> None:
    host, _ = hosts
    host.slow(latency=0.01)
    assert await knock(host, 5) == "open"
    host.cut()
    assert await knock(host, 0.5) == "silence"
    host.restore()
    assert await answers(host)
