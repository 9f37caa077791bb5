"""Any command has the same record through the runner as in a channel of its own; any frames of a host are survived."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import asyncssh
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reemote.core.errors import ConnectionLost
from reemote.ssh.runner import READY, Runner
from reemote.ssh.runner_program import HEADER
from tests.openssh_fixtures import MakeUserSshd
from tests.ssh.runners import begin, both, running

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nothing_left")]

same_always = settings(
    max_examples=70, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


# Commands


class Given(NamedTuple):
    """What a command is made of."""

    command: str | list[str]
    env: Mapping[str, str]
    cwd: str | None
    stdin: bytes | None


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
hostile = st.sampled_from(
    ["'", '"', "\\", "$HOME", "`id`", "$(id)", "!!", "*", "~", "-n", "--", "\n", "a b", "%s", "ä€"]
)
words = hostile | texts | st.sampled_from(["\udcff", "a\udc80b"])
octal = st.binary(max_size=20).map(lambda data: "".join(f"\\{byte:03o}" for byte in data))

PIECES = [
    "exec >&-", "exec 2>&-", "exec <&-", "exec 2>&1", "exec >&2", "exec 3>&1 >&2", "set -e", "set -u; : \"$NONESUCH\"",
    "false", "true", "cd /", "cd /nonesuch", "umask 077; umask", "cat", "wc -c", "head -c 3; echo", "env | sort",
    "(exit 3)", "sh -c 'kill -9 $$'", "trap 'echo bye' EXIT", "trap '' TERM PIPE", "wait", "nonesuch", "ulimit -c 0",
    "yes | head -n 9999", "sleep 0.03", "echo $0 $# $SHLVL $-", "pwd", "read x; echo \"$x\"", "test -t 0; echo $?",
    "(sleep 0.05; echo late) &", "(sleep 0.05; echo late >&2) & disown 2>/dev/null",
    "sleep 0.05 &", "f() { return 5; }; f",
    "cat <<'E'\n$x `y` \\z\nE", "cat <<E\n$HOME\nE", "if true", "fi", "echo 'open", "# a remark", "\n", "printf '\\0'",
]  # fmt: skip
ENDS = ["", "exit", "exit 7", "exit 300", "kill -9 $$", "kill -TERM $$", "kill -USR1 $$", "kill -ALRM $$", "exec true"]

pieces = (
    st.sampled_from(PIECES)
    | st.builds(lambda word: f"printf %s {shlex.quote(word)}", words)
    | st.builds(lambda data: f"printf '{data}' >&2", octal)
)
scripts = st.builds(lambda parts, end: "\n".join([*parts, end]), st.lists(pieces, max_size=5), st.sampled_from(ENDS))
programs = st.lists(words, max_size=4).map(lambda args: ["printf", "[%s]", *args])
variables = st.dictionaries(st.sampled_from(["A", "B_1", "PATH_", "LC_ALL", "PYTHONHOME"]), words, max_size=3)
commands = st.builds(
    Given,
    scripts | programs,
    st.just({}) | variables,
    st.sampled_from([None, None, "/", "/tmp", "/nonesuch", "-", "."]),
    st.none() | st.binary(max_size=40),
)


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
async def test_a_command_has_the_same_record(make_user_sshd: MakeUserSshd, shell: str) -> None:
    server = make_user_sshd(shell=shell, AcceptEnv="*")
    loop = asyncio.get_running_loop()
    async with running(server) as pair:

        @same_always
        @given(st.lists(commands, min_size=1, max_size=4))
        def same(several: list[Given]) -> None:
            async def run_them() -> None:
                await asyncio.gather(
                    *(both(*pair, each.command, env=each.env, cwd=each.cwd, stdin=each.stdin) for each in several)
                )

            asyncio.run_coroutine_threadsafe(run_them(), loop).result(30)

        await asyncio.to_thread(same)


# Frames

frames = st.builds(
    lambda kind, number, data: HEADER.pack(kind, number, len(data)) + data,
    st.sampled_from([b"O", b"E", b"X", b"C", b"W", b"F", b"R", b"S", b"\0"]),
    st.integers(0, 4) | st.integers(0, 2**32 - 1),
    st.binary(max_size=40)
    | st.sampled_from([b"s\0\0\0\0", b"k\0KILL", b"k\1\xff", b"\0\0\0\0", b"\xff" * 4, b"x" * 65536]),
)
streams = st.lists(frames | st.binary(max_size=30), max_size=12).map(b"".join)


class Channel:
    """The channel of a runner, without a host."""

    def __init__(self) -> None:
        self.sent = 0

    def write(self, data: bytes) -> None:
        self.sent += len(data)

    def abort(self) -> None:
        pass


@contextlib.contextmanager
def made() -> Iterator[tuple[Runner, Any]]:
    """A runner whose host says what the test says."""
    runner = Runner()
    stream = runner._stream
    stream.connection_made(Channel())  # type: ignore[arg-type]
    stream.data_received(stream.mark.encode() + READY, None)
    assert stream.is_ready
    yield runner, stream


async def test_nothing_waits_for_a_host_that_says_no_more() -> None:
    with made() as (runner, stream):
        begun = begin(runner, "echo")
        stream.data_received(HEADER.pack(b"O", 1, 5) + b"begun", None)
        stream.eof_received()
        with pytest.raises(ConnectionLost) as failure:
            await begun.communicate()
        assert failure.value.completed is not None
        assert failure.value.completed.stdout == "begun"
        assert runner.is_closed


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(streams, st.data())
def test_any_frames_are_survived(stream: bytes, data: st.DataObject) -> None:
    """Nothing raises, nothing waits, and each command ends as told or as unknown."""

    async def survive() -> None:
        with made() as (runner, session):
            begun = [begin(runner, f"echo {number}", stdin=b"x" * 100) for number in range(4)]
            tasks = [asyncio.create_task(each.communicate()) for each in begun]
            await asyncio.sleep(0)
            rest = stream
            while rest and not runner.is_closed:
                size = data.draw(st.integers(1, len(rest)))
                session.data_received(rest[:size], None)
                rest = rest[size:]
                assert len(runner._rest) <= 65536 + HEADER.size
            session.connection_lost(None)
            for task, each in zip(tasks, begun, strict=True):
                (answer,) = await asyncio.gather(task, return_exceptions=True)
                assert each.has_ended() or isinstance(answer, ConnectionLost)
                assert each.session.closed.is_set()
            assert runner.is_closed
            assert not runner._channels
            with pytest.raises(asyncssh.ChannelOpenError):
                begin(runner, "echo")

    asyncio.run(asyncio.wait_for(survive(), 20))
