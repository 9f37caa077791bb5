"""Output without end: what is kept of it, where it goes, and that it takes neither memory nor time of others (R10)."""

from __future__ import annotations

import asyncio
import hashlib
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reemote.core.errors import HostError
from reemote.core.response import Completed
from reemote.execute import Pool, execute
from reemote.host import Command, Shell
from reemote.ssh import process, sink
from reemote.ssh.process import Capture
from reemote.ssh.request import KEPT
from reemote.ssh.sink import Sink
from reemote.system import Return
from reemote.testing import sandbox
from tests.measured import answer_of
from tests.openssh import UserSshd
from tests.ssh.hosts import inventory, only

pytestmark = pytest.mark.usefixtures("nothing_left")


# What is kept


@pytest.mark.parametrize("most", [1, 2, 3, 7, 100, 101])
@pytest.mark.parametrize("size", [0, 1, 2, 3, 6, 7, 8, 99, 100, 101, 102, 1000])
@pytest.mark.parametrize("piece", [1, 3, 64])
def test_the_beginning_and_the_end_are_kept(most: int, size: int, piece: int) -> None:
    data = bytes(n % 251 for n in range(size))
    capture = Capture(most)
    for start in range(0, size, piece):
        capture.add(data[start : start + piece])
    assert capture.total == size
    head, note, tail = value_parts(capture.value())
    if not note:
        assert head == data
        assert capture.left_out == 0
    else:
        assert data.startswith(head)
        assert data.endswith(tail)
        assert len(head) + len(tail) + capture.left_out == size
        assert note == b"[... %d bytes are left out here ...]" % capture.left_out
        assert len(head) + len(tail) <= most + 1
    assert size > most or not note


def value_parts(value: bytes) -> tuple[bytes, bytes, bytes]:
    """Split what was kept at the note, where there is one."""
    head, mark, rest = value.partition(b"\n[... ")
    note, _, tail = rest.partition(b"]\n")
    return head, b"[... " + note + b"]" if mark else b"", tail


def test_of_a_flood_no_more_than_twice_as_much_is_in_memory() -> None:
    capture = Capture(100_000)
    for _ in range(2000):
        capture.add(bytes(32768))
        assert len(capture._head) + len(capture._tail) <= 150_000 + 32768
    assert capture.total == 2000 * 32768
    assert KEPT == 64 * 1024 * 1024


BIG = """
import asyncio, json
from reemote.execute import execute
from reemote.host import Shell
from tests.measured import asked, measuring

hosts, command, arguments = asked()

async def main():
    await execute(lambda: Shell(cmd="true"), hosts)
    async with measuring() as found:
        [response] = await execute(lambda: Shell(cmd=command, **arguments), hosts)
    record = response["value"]
    extra = {name: record.get(name) for name in ("truncated", "stdout_size", "stderr_size")}
    print(json.dumps([response["error"], record["exit_status"], extra, found["growth"], found["lag"],
                      record["stdout"][:50], record["stdout"][-50:], len(record["stdout"])]))

asyncio.run(main())
"""


def big(server: UserSshd, command: str, **arguments: Any) -> tuple[dict[str, Any], float, float, str, str, int]:
    """Run a command in a process of its own; give the sizes, MiB of memory that it took, and the worst lag."""
    error, status, sizes, growth, lag, head, tail, length = answer_of(BIG, server.connection(), command, arguments)
    assert (error, status) == (False, 0)
    return sizes, growth, lag, head, tail, length


LINES = "seq 1 12000000"  # about 100 MB
SIZE = sum(9 * 10 ** (digits - 1) * (digits + 1) for digits in range(1, 8)) + 2_000_001 * 9


@pytest.mark.slow
def test_much_output_of_which_little_is_kept(user_sshd: UserSshd) -> None:
    sizes, growth, lag, head, tail, length = big(user_sshd, LINES, output=4 * 1024 * 1024)
    assert sizes == {"truncated": True, "stdout_size": SIZE, "stderr_size": 0}
    assert head.startswith("1\n2\n3\n")
    assert tail.endswith("11999999\n12000000\n")
    assert 4 * 1024 * 1024 <= length < 4 * 1024 * 1024 + 100
    assert growth < 80
    assert lag < 0.25


@pytest.mark.slow
def test_one_line_without_end(user_sshd: UserSshd) -> None:
    command = "head -c 100000000 /dev/zero | tr '\\0' x; head -c 1000 /dev/zero >&2"
    sizes, growth, lag, head, tail, _ = big(user_sshd, command, output=1_000_000)
    assert sizes == {"truncated": True, "stdout_size": 100_000_000, "stderr_size": 1000}
    assert set(head) == set(tail) == {"x"}
    assert growth < 80
    assert lag < 0.25


@pytest.mark.slow
def test_much_output_to_a_file(user_sshd: UserSshd, tmp_path: Path) -> None:
    sizes, growth, lag, head, _, length = big(user_sshd, LINES, output=str(tmp_path / "out"))
    assert sizes == {"truncated": True, "stdout_size": SIZE, "stderr_size": 0}
    assert (head, length) == ("", 0)
    expected = hashlib.sha256(subprocess.run(LINES.split(), capture_output=True, check=True).stdout).hexdigest()
    assert hashlib.sha256((tmp_path / "out").read_bytes()).hexdigest() == expected
    assert growth < 80
    assert lag < 0.25


async def test_each_stream_has_its_own_room(user_sshd: UserSshd) -> None:
    command = "head -c 5000 /dev/zero | tr '\\0' a; head -c 5000 /dev/zero | tr '\\0' b >&2; echo end >&2; exit 3"
    record = (await only(lambda: Shell(cmd=command, output=1000), **user_sshd.connection())).value
    assert (record["truncated"], record["stdout_size"], record["stderr_size"]) == (True, 5000, 5004)
    assert record["exit_status"] == 3
    assert record["stdout"].count("a") == 1000 + "[... 4000 bytes are left out here ...]".count("a")
    assert record["stderr"].startswith("bbb")
    assert record["stderr"].endswith("bend\n")


async def test_what_is_short_enough_is_whole_and_says_nothing_of_it(user_sshd: UserSshd) -> None:
    record = (await only(lambda: Shell(cmd="printf 12345", output=5), **user_sshd.connection())).value
    assert record == Completed(command="printf 12345", stdout="12345")
    assert "truncated" not in record


async def test_a_failure_shows_the_end_of_what_was_said(user_sshd: UserSshd) -> None:
    command = "head -c 100000 /dev/zero | tr '\\0' x >&2; echo 'the reason' >&2; exit 2"
    response = await only(lambda: Shell(cmd=command, output=100, check=True), **user_sshd.connection())
    assert response["value"] == "CommandFailed"
    assert "the reason" in response.detail
    assert response["completed"]["stderr_size"] == 100_011


# Output to a file


async def test_a_file_gets_the_bytes_as_they_are(user_sshd: UserSshd, tmp_path: Path) -> None:
    command = r"printf 'a\r\n\0\377no end'; echo err >&2; exit 4"
    path = tmp_path / "a name with spaces"
    for step in (Shell(cmd=command, output=path), Command(argv=["sh", "-c", command], output=str(path))):
        record = (await only(iter([step]).__next__, **user_sshd.connection())).value
        assert path.read_bytes() == b"a\r\n\0\xffno end"
        assert (record["stdout"], record["stderr"], record["exit_status"]) == ("", "err\n", 4)
        assert (record["truncated"], record["stdout_size"], record["stderr_size"]) == (True, 11, 4)


async def test_a_command_without_output_makes_an_empty_file(user_sshd: UserSshd, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("old and longer")
    await only(lambda: Shell(cmd="true", output=tmp_path / "out"), **user_sshd.connection())
    assert (tmp_path / "out").read_bytes() == b""


async def test_the_lines_are_told_all_the_same(user_sshd: UserSshd, tmp_path: Path) -> None:
    lines: list[str] = []

    async def note(event: Any) -> None:
        if type(event).__name__ == "OutputLine":
            lines.append(event.line)

    step = Shell(cmd="echo one; echo two", output=tmp_path / "out")
    async with Pool() as pool:
        await execute(lambda: step, inventory(user_sshd.connection()), pool=pool, on_event=note)
    assert lines == ["one", "two"]
    assert (tmp_path / "out").read_text() == "one\ntwo\n"


async def test_each_host_has_a_file_of_its_own(tmp_path: Path) -> None:
    fleet = sandbox("alpha", "beta")
    async with fleet as hosts, Pool() as pool:
        step = Shell(cmd="echo $PWD", output=tmp_path / "{host}.out")
        assert not (await execute(lambda: step, hosts, pool=pool)).failed
        for name in ("alpha", "beta"):
            assert (tmp_path / f"{name}.out").read_text() == f"{fleet[name].home}\n"
        refused = await execute(lambda: Shell(cmd="touch ran", output=tmp_path / "one"), hosts, pool=pool)
        for response in refused:
            assert (response["value"], response["outcome"], response["changed"]) == (
                "FileExistsError",
                "not_started",
                False,
            )
            assert "{host}" in response.detail
        assert not (fleet["alpha"].home / "ran").exists()
        assert not (tmp_path / "one").exists()
        alone = await execute(lambda: Shell(cmd="echo x", output=tmp_path / "one"), hosts, pool=pool, limit="beta")
        assert not alone.failed
        assert (tmp_path / "one").read_text() == "x\n"


async def test_only_the_hosts_of_the_step_count(tmp_path: Path) -> None:
    fleet = sandbox("alpha", "beta")
    async with fleet as hosts, Pool() as pool:
        hosts.hosts[0].groups.append("web")
        step = Shell(cmd="echo x", output=tmp_path / "one", group="web")
        [response] = await execute(lambda: step, hosts, pool=pool)
        assert not response["error"], response
        assert (tmp_path / "one").read_text() == "x\n"


@pytest.mark.parametrize(("name", "kind"), [("nonesuch/out", "FileNotFoundError"), (".", "IsADirectoryError")])
async def test_a_file_that_cannot_be_opened(user_sshd: UserSshd, tmp_path: Path, name: str, kind: str) -> None:
    response = await only(lambda: Shell(cmd="echo ran > ran", output=tmp_path / name), **user_sshd.connection())
    assert (response["value"], response["outcome"], response["changed"]) == (kind, "not_started", False)
    assert not (user_sshd.home / "ran").exists()


async def test_a_device_that_is_full(user_sshd: UserSshd) -> None:
    response = await only(lambda: Shell(cmd="echo x; exit 6", output="/dev/full"), **user_sshd.connection())
    assert (response["value"], response["outcome"], response["changed"]) == ("NoSpaceLeft", "completed", True)
    assert response["completed"]["exit_status"] == 6


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may have more than a million bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


async def test_the_disk_here_is_full(user_sshd: UserSshd, tmp_path: Path, small_files: None) -> None:
    """The command is not held up; the response says that it ran, and that its output is not all there."""
    command = "head -c 30000000 /dev/zero; echo done > finished; exit 5"
    async with Pool() as pool:

        class Root:
            async def execute(self) -> Any:
                full = yield Shell(cmd=command, output=tmp_path / "out")
                after = yield Shell(cmd="cat finished; rm finished")
                yield Return(value=[full, after])

        [response] = await execute(Root, inventory(user_sshd.connection()), pool=pool)
    full, after = response["value"]
    assert after["value"]["stdout"] == "done\n"
    assert (full["error"], full["outcome"], full["changed"]) == (True, "completed", True)
    assert full["completed"]["exit_status"] == 5
    assert full["completed"]["stdout_size"] == 30_000_000
    assert (tmp_path / "out").stat().st_size == 1_000_000
    assert str(tmp_path / "out") in full["detail"]


async def test_a_slow_disk_slows_the_host_and_takes_no_memory(
    user_sshd: UserSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: list[int] = []
    take = Sink.take

    def noted(self: Sink, data: bytes) -> None:
        take(self, data)
        waiting.append(self._bytes)

    write = Sink._write

    async def slowly(self: Sink) -> None:
        file: Any = self._file
        quick = file.write

        async def crawl(data: bytes, offset: int) -> None:
            await asyncio.sleep(0.0003)
            await quick(data, offset)

        file.write = crawl
        await write(self)

    monkeypatch.setattr(Sink, "take", noted)
    monkeypatch.setattr(Sink, "_write", slowly)
    size = 40_000_000
    record = (
        await only(lambda: Shell(cmd=f"head -c {size} /dev/zero", output=tmp_path / "out"), **user_sshd.connection())
    ).value
    assert record["stdout_size"] == (tmp_path / "out").stat().st_size == size
    # A window of the channel may be on its way when the host is asked to pause.
    assert sink.HIGH <= max(waiting) <= sink.HIGH + 2 * 1024 * 1024 + 65536


async def test_the_file_of_a_command_that_is_ended_has_what_came(user_sshd: UserSshd, tmp_path: Path) -> None:
    step = Shell(cmd="echo begun; exec sleep 300", output=tmp_path / "out", timeout=0.5)
    response = await only(lambda: step, **user_sshd.connection())
    assert (response["value"], response["completed"]["stdout_size"]) == ("CommandTimeout", 6)
    assert (tmp_path / "out").read_text() == "begun\n"


async def test_the_file_of_a_cancelled_run_has_what_came(
    user_sshd: UserSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "GRACE_TERM", 0.2)
    begun = asyncio.Event()

    async def note(event: Any) -> None:
        if type(event).__name__ == "OutputLine":
            begun.set()

    step = Shell(cmd="echo begun; exec sleep 300", output=tmp_path / "out")
    async with Pool() as pool:
        running = asyncio.create_task(
            execute(lambda: step, inventory(user_sshd.connection()), pool=pool, on_event=note)
        )
        await begun.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert (tmp_path / "out").read_text() == "begun\n"


async def test_a_connection_that_is_lost_keeps_what_came(tmp_path: Path) -> None:
    fleet = sandbox("a")

    async def note(event: Any) -> None:
        if type(event).__name__ == "OutputLine":
            fleet["a"].drop_connections()

    async with fleet as hosts, Pool() as pool:
        step = Shell(cmd="echo begun; sleep 300", output=tmp_path / "out")
        [response] = await execute(lambda: step, hosts, pool=pool, on_event=note)
    assert (response["value"], response["outcome"]) == ("ConnectionLost", "unknown")
    assert (tmp_path / "out").read_text() == "begun\n"


# The sink by itself


class Slow:
    """A file whose writes wait to be let through."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.data = bytearray()
        self.failure: Exception | None = None

    async def write(self, data: bytes, offset: int) -> None:
        await self.go.wait()
        if self.failure is not None:
            raise self.failure
        assert offset == len(self.data)
        self.data += data


class Channel:
    """Counts what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def pause_reading(self) -> None:
        self.asked.append("pause")

    def resume_reading(self) -> None:
        self.asked.append("resume")


async def test_the_channel_pauses_and_goes_on() -> None:
    file, channel = Slow(), Channel()
    taking = Sink(file)  # type: ignore[arg-type]
    taking.throttle(channel)
    piece = bytes(range(256)) * 128
    pieces = 2 * sink.HIGH // len(piece)
    for _ in range(pieces):
        taking.take(piece)
    assert channel.asked == ["pause"]
    file.go.set()
    await taking.finish()
    assert channel.asked == ["pause", "resume"]
    assert bytes(file.data) == piece * pieces
    await taking.close()


async def test_after_a_failure_nobody_waits() -> None:
    file, channel = Slow(), Channel()
    taking = Sink(file)  # type: ignore[arg-type]
    taking.throttle(channel)
    for _ in range(100):
        taking.take(bytes(100_000))
    file.failure = HostError("full")
    file.go.set()
    with pytest.raises(HostError, match="full"):
        await taking.finish()
    assert channel.asked == ["pause", "resume"]
    taking.take(b"more")
    assert taking._bytes == 0
    await taking.close()
