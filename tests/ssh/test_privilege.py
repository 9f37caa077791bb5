"""Commands with sudo and su: what reaches them, what they answer, and that nothing else learns the password."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re
import secrets
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import asyncssh
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from reemote.core.errors import (
    PasswordRejected,
    PasswordRequired,
    PrivilegeDenied,
    TerminalRequired,
)
from reemote.core.response import Response, Responses, as_json
from reemote.host import Command, Shell
from reemote.sftp import Read, Write
from reemote.ssh.gate import Gate
from reemote.ssh.pool import loop_pool
from reemote.ssh.wire import Become, Marks
from reemote.system import Return
from tests.openssh import Machine, User
from tests.ssh.machines import ALL, SU, SUDO, SUDOERS, USERS, Site, Steps, started

MARKS = Marks(start="S" * 8, prompt="PROMPT-9", open="O" * 8)

HOW: dict[str, dict[str, Any]] = {"plain": {}, "sudo": {"sudo": True}, "su": {"su": True}}
PRIVILEGED = (HOW["sudo"], HOW["su"])


# R30: the gate by itself, with what is known of many kinds of sudo and su


def passed(gate: Gate, *pieces: bytes) -> bytes:
    return b"".join([*map(gate.feed, pieces), gate.rest()])


def at(method: str, password: str | None = "secret") -> Gate:
    return Gate(Become(method, "root", password), MARKS)  # type: ignore[arg-type]


PROMPTS = {
    "sudo 1.9": ("sudo", b"PROMPT-9"),
    "sudo 1.9 with a lecture": ("sudo", b"\nWe trust you have received the usual lecture ...\n\nPROMPT-9"),
    "sudo-rs": ("sudo", b"[sudo: PROMPT-9] Password: "),
    "sudo-rs 0.2.8": ("sudo", b"[sudo: PROMPT-9] Password:"),
    "su of util-linux": ("su", b"Password: "),
    "su of shadow": ("su", b"Password:"),
    "su of BusyBox": ("su", b"Password: "),
    "su with the name of the user": ("su", b"root's password: "),
}


@pytest.mark.parametrize(("method", "prompt"), PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_each_prompt_is_heard_once(method: str, prompt: bytes, size: int) -> None:
    gate = at(method)
    stream = b"noise of the login\n" + b"S" * 8 + prompt
    before = b"".join(gate.feed(stream[start : start + size]) for start in range(0, len(stream), size))
    assert (before, gate.prompts, gate.is_open) == (b"noise of the login\n", 1, False)
    after = b"\n" + b"O" * 8 + b"4711\nPROMPT-9 Password: " + b"S" * 8 + b"O" * 8 + b"12\nend"
    output = b"".join(gate.feed(after[start : start + size]) for start in range(0, len(after), size)) + gate.rest()
    assert (gate.prompts, gate.is_open, gate.group) == (1, True, 4711)
    assert output == b"PROMPT-9 Password: " + b"S" * 8 + b"O" * 8 + b"12\nend"


def test_a_second_prompt_is_heard() -> None:
    sudo, su = at("sudo"), at("su")
    passed(sudo, b"S" * 8 + b"PROMPT-9", b"\nSorry, try again.\nPROMPT-9")
    su.feed(b"S" * 8 + b"Password: ")
    su.feed(b"\nsu: Authentication failure\nPassword: ")
    assert (sudo.prompts, su.prompts) == (2, 2)
    assert "Sorry, try again." in sudo.said


def test_before_sudo_begins_nothing_is_a_prompt() -> None:
    """What the login prints is not sudo's, whatever it looks like."""
    for method in ("sudo", "su"):
        gate = at(method)
        noise = b"Password: [sudo] password for user: \n[sudo: PROMPT] Password: "
        assert passed(gate, noise) == noise
        assert (gate.prompts, gate.is_open, gate.began) == (0, False, False)


def test_without_a_number_the_group_is_unknown() -> None:
    gate = at("sudo")
    assert passed(gate, b"S" * 8 + b"O" * 8 + b"\nout") == b"out"
    assert (gate.is_open, gate.group) == (True, None)


def test_a_gate_without_an_end_gives_nothing_of_sudo_away() -> None:
    gate = at("sudo")
    assert passed(gate, b"x" + b"S" * 8 + b"sudo: something is wrong\n" + b"O" * 4) == b"x"
    assert gate.said == "sudo: something is wrong\nOOOO"


WORDS = [b"S" * 8, b"PROMPT-9", b"O" * 8, b"123\n", b"Password: ", b"\n", b"S" * 3, b"PROMP", b"\xff", b"O" * 5]


@given(
    words=st.lists(st.sampled_from(WORDS), max_size=14),
    cuts=st.sets(st.integers(0, 100), max_size=8),
    method=st.sampled_from(["sudo", "su"]),
)
@example(words=[b"S" * 8, b"PROMPT-9", b"O" * 8], cuts={16}, method="sudo")
def test_no_split_of_the_stream_matters(words: list[bytes], cuts: set[int], method: str) -> None:
    stream = b"".join(words)
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    whole, pieces = at(method), at(method)
    expected = passed(whole, stream)
    assert passed(pieces, *(stream[a:b] for a, b in pairwise(places))) == expected
    assert (pieces.is_open, pieces.group, pieces.began) == (whole.is_open, whole.group, whole.began)
    if method == "sudo":  # of su there is no knowing: a prompt is what nothing follows
        assert (pieces.prompts, pieces.said) == (whole.prompts, whole.said)


SAYINGS = [
    ("sudo", "sudo: a password is required", PasswordRequired),
    ("sudo", "sudo: no password was provided\nsudo: a password is required", PasswordRequired),
    ("sudo", "sudo: interactive authentication is required", PasswordRequired),
    ("sudo", "Sorry, try again.\nsudo: no password was provided\nsudo: 1 incorrect password attempt", PasswordRequired),
    ("sudo", "sudo: 3 incorrect password attempts", PasswordRejected),
    (
        "sudo",
        "sudo: Authentication failed, try again.\nsudo: maximum 3 incorrect authentication attempts",
        PasswordRejected,
    ),
    (
        "sudo",
        "user is not in the sudoers file.\nThis incident has been reported to the administrator.",
        PrivilegeDenied,
    ),
    ("sudo", "user is not in the sudoers file.  This incident will be reported.", PrivilegeDenied),
    ("sudo", "Sorry, user u is not allowed to execute '/bin/sh -c x' as root on h.", PrivilegeDenied),
    ("sudo", "sudo: I'm sorry user. I'm afraid I can't do that", PrivilegeDenied),
    ("sudo", "sudo: unknown user nonesuch\nsudo: error initializing audit plugin sudoers_audit", PrivilegeDenied),
    ("sudo", "sudo: user 'nonesuch' not found", PrivilegeDenied),
    ("sudo", "sudo: sorry, you must have a tty to run sudo", TerminalRequired),
    ("sudo", "sudo: no tty present and no askpass program specified", TerminalRequired),
    (
        "sudo",
        "sudo: account validation failure, is your account locked?\nsudo: a password is required",
        PrivilegeDenied,
    ),
    (
        "su",
        "Your account has expired; please contact your system administrator.\nsu: Authentication failure",
        PrivilegeDenied,
    ),
    ("su", "su: Authentication failure", PasswordRejected),
    ("su", "su: incorrect password", PasswordRejected),
    ("su", "su: must be run from a terminal", TerminalRequired),
    (
        "su",
        "su: user nonesuch does not exist or the user entry does not contain all the required fields",
        PrivilegeDenied,
    ),
    ("su", "su: Permission denied", PrivilegeDenied),
    ("su", "This account is currently not available.", PrivilegeDenied),
]


@pytest.mark.parametrize(("method", "said", "kind"), SAYINGS, ids=[said[:40] for _, said, _ in SAYINGS])
def test_what_sudo_and_su_say_is_understood(method: str, said: str, kind: type[PrivilegeDenied]) -> None:
    gate = at(method)
    passed(gate, b"S" * 8 + said.encode() + b"\n")
    failure = gate.failure(1)
    assert type(failure) is kind
    assert failure.outcome == "not_started"


def test_a_missing_program_is_named() -> None:
    for method in ("sudo", "su"):
        gate = at(method)
        passed(gate, b"S" * 8 + f"sh: 4: exec: {method}: not found\n".encode())
        assert str(gate.failure(127)) == f"PrivilegeDenied: the host has no {method}"


def test_the_prompt_of_su_is_not_shown_as_what_it_says() -> None:
    gate = at("su")
    passed(gate, b"S" * 8 + b"Password: ", b"\nsu: Permission denied\n")
    assert gate.said == "su: Permission denied"


# From here on with a real machine

ODD_PASSWORDS = (
    "a'b\"c\\d$HOME`id`!e f;#&|%",
    "-n --help",
    "ends with blanks  ",
    " begins with one",
    "ü-ß-漢-😀",
    "x" * 200,
    "#comment",
    "pass:word\\n\\0%s",
    "*?[a]~{1..3}",
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    users = (*USERS, *(User(f"odd{number}", odd, sudo=ALL) for number, odd in enumerate(ODD_PASSWORDS)))
    folder = tmp_path_factory.mktemp("privilege")
    with started(folder / "world", users=users, ListenAddress="0.0.0.0") as site:
        yield site


@pytest.fixture
def site(shared: Site, nothing_left: None) -> Iterator[Site]:
    with shared.world.network():
        yield shared


def streams(response: Response[Any]) -> tuple[Any, ...]:
    """What a command wrote and how it ended; a failure fails the test."""
    assert not response["error"], response
    record = response.value
    end = record.exit_status if record.exit_signal is None else record.exit_signal[0]
    return record.stdout_bytes, record.stderr_bytes, end


def failure(response: Response[Any]) -> tuple[str, str, bool]:
    return str(response["value"]) if response["error"] else "", response.outcome, response["changed"]


@pytest.mark.slow
class TestOnAMachine:
    """One machine serves all of these."""

    # R28: the same, byte for byte, whoever runs it. {home} and {user} are those of whoever does.

    COMMANDS = (
        ("echo 'a b'", b"a b\n", b"", 0),
        ('echo "$HOME"', b"{home}\n", b"", 0),
        ("id -un", b"{user}\n", b"", 0),
        ("printf '%s' '$HOME'", b"$HOME", b"", 0),
        ("printf %s \"'\"'\"'", b"'\"", b"", 0),
        (r"printf '%s' 'a\b\\c'", rb"a\b\\c", b"", 0),
        ("printf '%s|' `echo b` $(echo c) \\$d '`e`' '!' '#' # comment", b"b|c|$d|`e`|!|#|", b"", 0),
        ("echo one\necho two\n\necho three\n", b"one\ntwo\nthree\n", b"", 0),
        ("echo a | tr a b; echo x >&2", b"b\n", b"x\n", 0),
        ("{ echo out; echo err >&2; } 2>&1 >/dev/null", b"err\n", b"", 0),
        ("cat <<'EOF'\n$HOME `x` \\\nEOF\ncat <<EOF\n$((1+1))\nEOF", b"$HOME `x` \\\n2\n", b"", 0),
        ("printf 'no newline'; printf 'neither' >&2", b"no newline", b"neither", 0),
        (r"printf 'a\0b\377\376c\r\n\r'; printf '\0\377' >&2", b"a\0b\xff\xfec\r\n\r", b"\0\xff", 0),
        ("exit 7", b"", b"", 7),
        ("echo x; exit 255", b"x\n", b"", 255),
        ("false", b"", b"", 1),
        (":", b"", b"", 0),
        ("true # ends with a comment", b"", b"", 0),
        (
            "for i in 1 2; do echo $i; done; f() { echo in $1; }; f 3; set -- 4 5; echo $# $2",
            b"1\n2\nin 3\n2 5\n",
            b"",
            0,
        ),
        ("echo ${1-none} $#", b"none 0\n", b"", 0),
        ("cat; echo end", b"end\n", b"", 0),
        ("echo é ü 漢", "é ü 漢\n".encode(), b"", 0),
        (
            "echo ${LC_ALL-unset} ${REEMOTE_SHELL-unset} ${was-unset} ${group-unset} ${mark-unset}",
            b"unset " * 4 + b"unset\n",
            b"",
            0,
        ),
    )

    @pytest.mark.parametrize(("command", "out", "err", "end"), COMMANDS, ids=[row[0][:24] for row in COMMANDS])
    async def test_a_command_is_the_same_with_privileges(
        self, site: Site, command: str, out: bytes, err: bytes, end: int
    ) -> None:
        class Each:
            async def execute(self) -> Any:
                yield Return(value=(yield [Shell(cmd=command, **how) for how in HOW.values()]))

        hosts = [site.host(user, **SU, **SUDO) for user in ("user", "dash")]
        responses = await site.every(Each, *hosts)
        for user, response in zip(("user", "dash"), responses, strict=True):
            for how, answer in zip(HOW, response["value"], strict=True):
                who, home = (user, f"/home/{user}") if how == "plain" else ("root", "/root")
                expected = out.replace(b"{home}", home.encode()).replace(b"{user}", who.encode())
                assert (how, *streams(answer)) == (how, expected, err, end)

    async def test_signals(self, site: Site) -> None:
        """su itself tells of a signal, as a shell does; sudo ends by it."""

        class Each:
            async def execute(self) -> Any:
                commands = [f"echo x; kill -{name} $$" for name in ("KILL", "TERM")]
                yield Return(value=(yield [Shell(cmd=cmd, **how) for cmd in commands for how in HOW.values()]))

        answers = (await site.run(Each(), **SU, **SUDO))["value"]
        assert [streams(answer) for answer in answers] == [
            (b"x\n", b"", "KILL"),
            (b"x\n", b"", "KILL"),
            (b"x\n", b"Killed\n", 137),
            (b"x\n", b"", "TERM"),
            (b"x\n", b"", "TERM"),
            (b"x\n", b"Terminated\n", 143),
        ]

    async def test_large_output_and_input(self, site: Site) -> None:
        data = bytes(range(256)) * 20_000

        class Each:
            async def execute(self) -> Any:
                out = "head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2"
                steps = [Shell(cmd=out, **how) for how in HOW.values()]
                steps += [Shell(cmd="sha256sum", stdin=data, **how) for how in HOW.values()]
                yield Return(value=(yield steps))

        answers = (await site.run(Each(), **SU, **SUDO))["value"]
        assert {streams(answer) for answer in answers[:3]} == {(bytes(1_000_000), bytes(1_000_000), 0)}
        digest = hashlib.sha256(data).hexdigest().encode()
        assert [streams(answer) for answer in answers[3:]] == [(digest + b"  -\n", b"", 0)] * 3

    async def test_a_command_that_leaves_its_input(self, site: Site) -> None:
        for how in PRIVILEGED:
            response = await site.run(Shell(cmd="exit 4", stdin=bytes(5_000_000), **how), **SU, **SUDO)
            assert streams(response) == (b"", b"", 4)

    async def test_variables_and_directory(self, site: Site) -> None:
        value = "a 'b' \"c\" $d `e` \\ \n ü"
        for how in HOW.values():
            step = Shell(
                cmd='printf "%s|" "$ONE" "$PWD"', env={"ONE": value, "LC_ALL": "C.UTF-8"}, cwd="/usr/lib", **how
            )
            assert streams(await site.run(step, **SU, **SUDO))[0].decode() == f"{value}|/usr/lib|"
            missing = await site.run(Shell(cmd="echo ran", cwd="/nonesuch", **how), **SU, **SUDO)
            assert missing.value.stdout == ""
            assert missing.value.exit_status != 0
            assert "/nonesuch" in missing.value.stderr

    async def test_a_directory_that_only_root_may_enter(self, site: Site) -> None:
        for how in PRIVILEGED:
            assert streams(await site.run(Shell(cmd="pwd", cwd="/root", **how), **SU, **SUDO)) == (b"/root\n", b"", 0)

    # Who is become

    async def test_other_users(self, site: Site) -> None:
        class Each:
            async def execute(self) -> Any:
                steps = [
                    Shell(cmd="id -un; echo $HOME", su=True),
                    Shell(cmd="id -un; echo $HOME", sudo=True),
                    Shell(cmd="id -un", sudo=True, sudo_user="nobody"),
                    Command(argv=["id", "-un"], su=True),
                    Command(argv=["id", "-un"], sudo=True),
                    Command(argv=["id", "-un"], sudo=True, sudo_user="nobody"),
                ]
                yield Return(value=(yield steps))

        known = {"su_user": "other", "su_password": "other-password", "sudo_user": "dash", **SUDO}
        answers = (await site.run(Each(), **known))["value"]
        assert [streams(answer)[0].split() for answer in answers] == [
            [b"other", b"/home/other"],
            [b"dash", b"/home/dash"],
            [b"nobody"],
            [b"other"],
            [b"dash"],
            [b"nobody"],
        ]

    async def test_users_who_cannot_be_become(self, site: Site) -> None:
        unknown = await site.run(Shell(cmd="id", sudo=True, sudo_user="nonesuch"), **SUDO)
        assert failure(unknown) == ("PrivilegeDenied", "not_started", False)
        assert "unknown user" in unknown.detail
        bare = await site.run(Command(argv=["id"], sudo=True, sudo_user="nonesuch"), **SUDO)
        assert failure(bare) == ("PrivilegeDenied", "not_started", False)
        unknown = await site.run(Shell(cmd="id", su=True), su_user="nonesuch", su_password="x")
        assert failure(unknown) == ("PrivilegeDenied", "not_started", False)
        assert "does not exist" in unknown.detail
        closed = await site.run(Shell(cmd="id", su=True), "root", su_user="daemon")
        assert failure(closed) == ("PrivilegeDenied", "not_started", False)
        assert "not available" in closed.detail
        # sudo does not ask which shell its target has.
        assert streams(await site.run(Shell(cmd="id -un", sudo=True, sudo_user="daemon"), "free"))[0] == b"daemon\n"

    async def test_root_needs_no_password(self, site: Site) -> None:
        class Each:
            async def execute(self) -> Any:
                steps = [Shell(cmd="id -un; cat", stdin="in", **how) for how in HOW.values()]
                yield Return(value=(yield steps))

        answers = (await site.run(Each(), "root"))["value"]
        assert [streams(answer) for answer in answers] == [(b"root\nin", b"", 0)] * 3

    async def test_a_host_without_sudo(self, site: Site) -> None:
        with site.file("/home/nosudo/.bashrc", "PATH=/tmp/path\n"):
            site.machine.run(["mkdir", "-p", "/tmp/path"])
            site.machine.run(["ln", "-s", "/bin/sh", "/bin/id", "/tmp/path/"])
            for step in (Shell(cmd="id", sudo=True), Command(argv=["id"], sudo=True)):
                response = await site.run(step, "nosudo", **SUDO)
                assert failure(response) == ("PrivilegeDenied", "not_started", False)
                assert response.detail == "the host has no sudo"
            response = await site.run(Shell(cmd="id", su=True), "nosudo", **SU)
            assert response.detail == "the host has no su"

    async def test_a_login_that_finds_no_shell(self, site: Site) -> None:
        with site.file("/home/nosudo/.bashrc", "PATH=/nonesuch\n"):
            for step in (Shell(cmd="id", sudo=True), Shell(cmd="id", su=True), Command(argv=["id"], sudo=True)):
                response = await site.run(step, "nosudo", **SU, **SUDO)
                assert failure(response) == ("PrivilegeDenied", "not_started", False)
                assert "sh: not found" in response.detail

    async def test_a_shell_that_is_gone(self, site: Site) -> None:
        machine = site.machine
        machine.run(["chmod", "-x", "/bin/bash"])
        try:
            assert streams(await site.run(Shell(cmd="echo $0", sudo=True), "dash", **SUDO)) == (b"/bin/dash\n", b"", 0)
            response = await site.run(Shell(cmd="id", su=True), "dash", **SU)
            assert failure(response) == ("PrivilegeDenied", "not_started", False)
            assert response.detail.endswith("by su: su: failed to execute /bin/bash: Permission denied")
        finally:
            machine.run(["chmod", "+x", "/bin/bash"])

    # R26: passwords that are wrong, missing or of no use, and how often sudo was asked

    async def attempts(self, site: Site, *asked: tuple[Any, dict[str, Any]]) -> tuple[Responses, int, float]:
        """Run steps at the same time, each on a connection of its own, with what is known of their hosts.

        Gives the responses, the failed attempts that sudo counted, and the seconds.
        """
        before, start = len(site.sudo_log()), time.monotonic()
        hosts = []
        for number, (_, known) in enumerate(asked):
            user = known.get("user", "user")
            known = {name: value for name, value in known.items() if name != "user"}
            hosts.append(site.host(user, connection={"host": f"host{number}"}, **known))
        responses = await site.every(iter([step for step, _ in asked]).__next__, *hosts)
        seconds = time.monotonic() - start
        async with asyncio.timeout(10):  # sudo may still be on its way out
            while site.commands("sudo -S"):
                await asyncio.sleep(0.02)
        lines = site.sudo_log()[before:]
        return (
            responses,
            sum(int(found[1]) for line in lines if (found := re.search(r"(\d+) incorrect", line))),
            seconds,
        )

    async def test_a_wrong_password_is_one_failed_attempt(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ODD", "odd\udcff\udcfe")
        lines = "one\ntwo\nthree\n"
        steps = [
            Shell(cmd="id", sudo=True),
            Shell(cmd="cat", stdin=lines, sudo=True),
            Command(argv=["id"], sudo=True),
            Command(argv=["cat"], stdin=lines, sudo=True),
            Read(path="/etc/shadow", sudo=True),
        ]
        asked: list[tuple[Any, dict[str, Any]]] = [(step, {"sudo_password": "wrong"}) for step in steps]
        asked += [(step, {"sudo_password": "wrong", "user": "tty"}) for step in steps[:4]]
        asked += [(step, {"sudo_password": "env:ODD"}) for step in (steps[0], steps[4])]
        asked += [(steps[0], {"sudo_password": ""})]
        asked += [(Shell(cmd="cat", stdin=lines, su=True), {"su_password": "wrong"})]
        asked += [(Command(argv=["id"], su=True), {"su_password": "wrong"})]
        asked += [(Read(path="/etc/shadow", su=True), {"su_password": "wrong"})]
        responses, attempts, seconds = await self.attempts(site, *asked)
        for (step, _), response in zip(asked, responses, strict=True):
            assert failure(response) == ("PasswordRejected", "not_started", False)
            assert ("su_password" if step.su else "sudo_password") in response.detail
        assert attempts == len([step for step, _ in asked if step.sudo])
        assert seconds < 8  # one after the other would be 30

    async def test_no_password(self, site: Site) -> None:
        steps = [
            Shell(cmd="id", sudo=True),
            Command(argv=["id"], sudo=True),
            Command(argv=["cat"], stdin="in\n", sudo=True),
            Read(path="/etc/shadow", sudo=True),
        ]
        asked: list[tuple[Any, dict[str, Any]]] = [(step, {}) for step in steps]
        asked += [(step, {"user": "tty"}) for step in steps[:2]]
        responses, attempts, seconds = await self.attempts(site, *asked)
        for response in responses:
            assert failure(response) == ("PasswordRequired", "not_started", False)
            assert "authentication.sudo_password" in response.detail
        assert attempts == 0
        assert seconds < 2
        response = await site.run(Shell(cmd="id", su=True))
        assert failure(response) == ("PasswordRequired", "not_started", False)
        assert "authentication.su_password" in response.detail

    async def test_no_right(self, site: Site) -> None:
        for step in (Shell(cmd="id", sudo=True), Command(argv=["id"], sudo=True), Read(path="/etc/shadow", sudo=True)):
            response = await site.run(step, "nosudo", **SUDO)
            assert failure(response) == ("PrivilegeDenied", "not_started", False)
            assert re.search("not in the sudoers file|may not run sudo", response.detail)

    async def test_an_account_that_has_ended(self, site: Site) -> None:
        site.machine.run(["chage", "-E", "1", "other"]).check_returncode()
        try:
            response = await site.run(Shell(cmd="id", su=True), su_user="other", su_password="other-password")
            assert failure(response) == ("PrivilegeDenied", "not_started", False)
            assert "expired" in response.detail
        finally:
            site.machine.run(["chage", "-E", "-1", "other"]).check_returncode()

    async def test_one_wrong_password_does_not_cost_the_connection(self, site: Site) -> None:
        class Each:
            async def execute(self) -> Any:
                failed = yield Shell(cmd="id", sudo=True)
                plain = yield Shell(cmd="id -un")
                become = yield Shell(cmd="id -un", su=True)
                yield Return(value=[failed["value"], plain.value.stdout, become.value.stdout])

        before = site.machine.accepted()
        response = await site.run(Each(), sudo_password="wrong", **SU)
        assert response["value"] == ["PasswordRejected", "user\n", "root\n"]
        assert site.machine.accepted() == before + 1

    # R25: whose prompt it is

    @pytest.mark.parametrize("user", ["free", "root"])
    async def test_where_nobody_asks_the_input_is_all_that_arrives(self, site: Site, user: str) -> None:
        for step in (
            Shell(cmd="cat", stdin="in", sudo=True),
            Command(argv=["cat"], stdin="in", sudo=True),
            Command(argv=["cat"], stdin=b"", sudo=True),
        ):
            response = await site.run(step, user, sudo_password="canary-never-sent")
            assert streams(response) == (b"in" if step.stdin else b"", b"", 0)

    async def test_a_program_that_asks_like_sudo_gets_nothing(self, site: Site) -> None:
        asks = "printf '[sudo] password for user: ' >&2; printf 'Password: ' >&2; IFS= read -r x; echo \"got:$x\""
        for user in ("user", "free"):
            for how in PRIVILEGED:
                response = await site.run(Shell(cmd=asks, **how), user, **SU, **SUDO)
                assert streams(response) == (b"got:\n", b"[sudo] password for user: Password: ", 0)
            bare = await site.run(Command(argv=["sh", "-c", asks], sudo=True), user, **SUDO)
            assert streams(bare) == (b"got:\n", b"[sudo] password for user: Password: ", 0)

    @pytest.mark.parametrize("user", ["user", "free"])
    @pytest.mark.parametrize("stdin", [None, "in\n"])
    async def test_a_program_that_has_found_the_prompt_gets_nothing(
        self, site: Site, user: str, stdin: str | None
    ) -> None:
        """Who may run programs on the host may read there how sudo was called."""
        asks = (
            "for each in $(tr '\\0' '\\n' </proc/$PPID/cmdline | grep -xE '[0-9a-f]{32}');"
            ' do printf %s $each >&2; done; IFS= read -r x; echo "got:$x"'
        )
        for step in (
            Shell(cmd=asks, sudo=True, stdin=stdin),
            Command(argv=["sh", "-c", asks], sudo=True, sudo_user="other", stdin=stdin),
        ):
            response = await site.run(step, user, sudo_password="password")
            assert "got:password" not in as_json(response)
            if not response["error"]:  # to refuse to go on is as good
                assert response.value.stdout == f"got:{(stdin or '').strip()}\n"

    NOISE = (
        "echo noise; echo 'noise on stderr' >&2; printf 'Password: ' >&2; echo '[sudo] password for user: ' >&2;"
        " printf 'Password: '; printf '\\377' >&2\n"
        'if IFS= read -r -t 0.3 x; then echo "got:$x"; fi\n'
    )

    @pytest.mark.parametrize("user", ["user", "free"])
    async def test_noise_of_the_login_gets_no_password(self, site: Site, user: str) -> None:
        with site.file(f"/home/{user}/.bashrc", self.NOISE):
            plain = await site.run(Shell(cmd="true"), user)
            for step in (
                Shell(cmd="id -un; cat", stdin="in", sudo=True),
                Shell(cmd="id -un; cat", stdin="in", su=True),
                Command(argv=["sh", "-c", "id -un; cat"], stdin="in", sudo=True),
                Command(argv=["sh", "-c", "id -un; cat"], stdin="in", su=True),
            ):
                out, err, end = streams(await site.run(step, user, **SU, **SUDO))
                assert (out, end) == (plain.value.stdout_bytes + b"root\nin", 0)
                assert err == plain.value.stderr_bytes

    @pytest.mark.parametrize("option", ["x", "v"])
    async def test_a_login_that_shows_what_it_runs(self, site: Site, option: str) -> None:
        """Our words are in what it shows, and are not yet sudo's."""
        with site.file("/home/user/.bashrc", f"set -{option}\n"):
            for step in (
                Shell(cmd="id -un; cat", stdin="in", sudo=True),
                Shell(cmd="id -un; cat", stdin="in", su=True),
                Command(argv=["sh", "-c", "id -un; cat"], stdin="in", sudo=True),
            ):
                [response], attempts, _ = await self.attempts(site, (step, SU | SUDO))
                assert (streams(response)[::2], attempts) == ((b"root\nin", 0), 0)
            refused = await site.run(Shell(cmd="id", sudo=True), "nosudo", **SUDO)
            assert failure(refused) == ("PrivilegeDenied", "not_started", False)

    async def test_noise_of_the_target_is_no_second_prompt(self, site: Site) -> None:
        with site.file("/root/.bashrc", "printf 'Password: ' >&2\n"):
            for step in (Shell(cmd="id -un", su=True), Shell(cmd="id -un", sudo=True)):
                assert streams(await site.run(step, **SU, **SUDO))[::2] == (b"root\n", 0)

    async def test_the_lecture_of_sudo(self, site: Site) -> None:
        with site.file("/etc/sudoers.d/lecture", "Defaults lecture=always\n", 0o440):
            for step in (
                Shell(cmd="id -un; cat", stdin="in", sudo=True),
                Command(argv=["sh", "-c", "id -un; cat"], stdin="in", sudo=True),
            ):
                out, _, end = streams(await site.run(step, **SUDO))
                assert (out, end) == (b"root\nin", 0)
            refused = await site.run(Command(argv=["/usr/bin/head"], sudo=True), "single", **SUDO)
            assert failure(refused) == ("PrivilegeDenied", "not_started", False)

    async def test_a_sudo_that_keeps_no_tickets(self, site: Site) -> None:
        """It asks each time: a program without a shell cannot run so, and the response says what to do."""
        with site.file("/etc/sudoers.d/ticket", "Defaults timestamp_timeout=0\n", 0o440):
            for _ in range(2):
                response = await site.run(Shell(cmd="cat", stdin="in", sudo=True), **SUDO)
                assert streams(response) == (b"in", b"", 0)
            for stdin in (None, "in\n"):
                step = Command(argv=["cat"], stdin=stdin, sudo=True)
                [response], attempts, _ = await self.attempts(site, (step, SUDO))
                assert failure(response) == ("PasswordRequired", "not_started", False)
                assert "timestamp_timeout" in response.detail
                assert attempts == 0

    async def test_a_ticket_of_sudo(self, site: Site) -> None:
        """Where sudo remembers the last password, it does not ask again."""
        with site.file("/etc/sudoers.d/ticket", "Defaults timestamp_type=global\n", 0o440):
            for step in (
                Shell(cmd="cat", stdin="in", sudo=True),
                Shell(cmd="cat", stdin="in", sudo=True),
                Command(argv=["cat"], stdin="in", sudo=True),
            ):
                assert streams(await site.run(step, **SUDO)) == (b"in", b"", 0)

    async def test_a_prompt_that_the_host_insists_on(self, site: Site) -> None:
        """An overridden prompt cannot be told from anything else; waiting for ever is no answer."""
        with site.file("/etc/sudoers.d/prompt", 'Defaults passprompt_override, passprompt="Your word? "\n', 0o440):
            response = await site.run(Shell(cmd="id -un", sudo=True), **SUDO)
        assert streams(response)[0] == b"root\n"

    async def test_a_password_of_several_lines_is_not_fed_to_the_command(self, site: Site) -> None:
        for how, known in (
            (HOW["sudo"], {"sudo_password": "password\nrest"}),
            (HOW["su"], {"su_password": "root-password\nrest\n"}),
        ):
            [response], attempts, _ = await self.attempts(site, (Shell(cmd="cat", **how), known))
            assert "rest" not in as_json(response)
            assert attempts <= 1
            if not response["error"]:
                assert streams(response) == (b"", b"", 0)

    # R29: terminals

    async def test_sudo_on_a_terminal_only(self, site: Site) -> None:
        class Each:
            async def execute(self) -> Any:
                first = yield Shell(cmd="id -un; echo err >&2; exit 7", sudo=True)
                again = yield Shell(cmd="cat", stdin=bytes(range(256)) * 2, sudo=True)
                plain = yield Shell(cmd="tty; true")
                bare = yield Command(argv=["id", "-un"], sudo=True)
                yield Return(value=[first, again, plain, bare])

        before = len(site.sudo_log())
        first, again, plain, bare = (await site.run(Each(), "tty", **SUDO))["value"]
        assert streams(first) == (b"root\nerr\n", b"", 7)
        assert streams(again) == (bytes(range(256)) * 2, b"", 0)
        assert streams(plain) == (b"not a tty\n", b"", 0)
        assert streams(bare) == (b"root\n", b"", 0)
        assert [response.value.get("pty") for response in (first, again, plain, bare)] == [True, True, None, True]
        # Only the first was tried without.
        log = site.sudo_log()[before:]
        assert len([line for line in log if "no tty" in line or "tty required" in line or "sorry" in line]) <= 1
        assert len([line for line in log if "COMMAND=" in line and "TTY=pts" in line]) == 3

    @pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 1_000_000])
    async def test_input_on_a_terminal_is_exact(self, site: Site, size: int) -> None:
        data = (bytes(range(256)) * (size // 256 + 1))[:size]
        response = await site.run(Shell(cmd="sha256sum", stdin=data, sudo=True), "tty", **SUDO)
        assert streams(response) == (hashlib.sha256(data).hexdigest().encode() + b"  -\n", b"", 0)

    async def test_output_on_a_terminal_is_exact(self, site: Site) -> None:
        response = await site.run(Shell(cmd="head -c 1000000 /dev/urandom | tee /tmp/sent", sudo=True), "tty", **SUDO)
        assert streams(response) == (site.machine.path("/tmp/sent").read_bytes(), b"", 0)

    async def test_a_command_on_a_terminal_that_leaves_its_input(self, site: Site) -> None:
        step = Shell(cmd="head -c 2; exit 3", stdin=b"x" * 1_000_000, sudo=True)
        assert streams(await site.run(step, "tty", **SUDO)) == (b"xx", b"", 3)

    async def test_what_cannot_run_on_a_terminal_says_what_to_do(self, site: Site) -> None:
        response = await site.run(Read(path="/etc/shadow", sudo=True), "tty", **SUDO)
        assert failure(response) == ("TerminalRequired", "not_started", False)
        assert "requiretty" in response.detail

    async def test_input_without_a_known_end_cannot_go_to_a_terminal(self, site: Site) -> None:
        async def pieces() -> Any:
            yield b"one"
            yield b"two"

        class Streamed(Shell):
            async def perform(self, host: Any) -> Any:
                return await host.run("cat", stdin=pieces(), sudo=True)

        response = await site.run(Streamed(cmd="cat"), "tty", **SUDO)
        assert failure(response) == ("TerminalRequired", "not_started", False)
        assert "cannot run on one" in response.detail
        assert "requiretty" in response.detail
        assert streams(await site.run(Streamed(cmd="cat"), "user", **SUDO)) == (b"onetwo", b"", 0)

    async def test_a_sudo_that_has_a_terminal_of_its_own(self, site: Site) -> None:
        data = bytes(range(256))
        with site.file("/etc/sudoers.d/pty", "Defaults use_pty\n", 0o440):
            for user in ("user", "tty"):
                response = await site.run(Shell(cmd="cat; exit 5", stdin=data, sudo=True), user, **SUDO)
                assert streams(response) == (data, b"", 5)

    @pytest.fixture
    def strict_su(self, site: Site) -> Iterator[None]:
        """A su that works on a terminal only, as that of other systems and times."""
        run = site.machine.run
        real = site.machine.path("/bin/su").resolve()
        assert real.exists()
        run(["mv", "/bin/su", "/bin/su.real"]).check_returncode()
        script = (
            '#!/bin/sh\n[ -t 0 ] || { echo "su: must be run from a terminal" >&2; exit 1; }\nexec /bin/su.real "$@"\n'
        )
        with site.file("/bin/su", script, 0o755):
            yield
        run(["mv", "/bin/su.real", "/bin/su"]).check_returncode()

    @pytest.mark.usefixtures("strict_su")
    async def test_su_on_a_terminal_only(self, site: Site) -> None:
        data = bytes(range(256))
        response = await site.run(Shell(cmd="id -un; cat; echo err >&2; exit 9", stdin=data, su=True), **SU)
        assert streams(response) == (b"root\n" + data + b"err\n", b"", 9)
        assert response.value["pty"] is True
        response = await site.run(Command(argv=["id", "-un"], su=True), **SU)
        assert streams(response) == (b"root\n", b"", 0)
        response = await site.run(Shell(cmd="id", su=True))
        assert failure(response) == ("PasswordRequired", "not_started", False)

    # host.Command: sudo has to allow the program, and no shell

    ARGUMENTS = (
        "",
        " ",
        "a b",
        "'",
        '"',
        "$HOME",
        "`id`",
        "$(id)",
        "\\",
        "\\n",
        "a\nb",
        "-n",
        "--",
        "*",
        "~",
        "#",
        "!",
        ";",
        "&",
        "|",
        "%s",
        "A=B",
        "ü",
        "\x7f\x01\t",
    )

    async def test_arguments_arrive_as_they_are(self, site: Site) -> None:
        argv = ["/usr/bin/printf", "<%s>", *self.ARGUMENTS]
        expected = "".join(f"<{each}>" for each in self.ARGUMENTS).encode()

        class Each:
            async def execute(self) -> Any:
                yield Return(value=(yield [Command(argv=argv, **how) for how in HOW.values()]))

        for user in ("user", "dash"):
            answers = (await site.run(Each(), user, **SU, **SUDO))["value"]
            assert [streams(answer) for answer in answers] == [(expected, b"", 0)] * 3
        for user in ("single", "single_free"):
            response = await site.run(Command(argv=argv, sudo=True), user, **SUDO)
            assert streams(response) == (expected, b"", 0)

    @pytest.mark.parametrize("user", ["single", "single_free"])
    async def test_only_what_sudo_allows(self, site: Site, user: str) -> None:
        assert streams(await site.run(Command(argv=["id", "-un"], sudo=True), user, **SUDO)) == (b"root\n", b"", 0)
        step = Command(argv=["/usr/bin/cat"], stdin="in", sudo=True)
        assert streams(await site.run(step, user, **SUDO)) == (b"in", b"", 0)
        for step in (Command(argv=["/usr/bin/head"], sudo=True), Command(argv=["sh", "-c", "id"], sudo=True)):
            response = await site.run(step, user, **SUDO)
            assert failure(response) == ("PrivilegeDenied", "not_started", False)
            assert "allow" in response.detail
        response = await site.run(Shell(cmd="id", sudo=True), user, **SUDO)
        assert failure(response) == ("PrivilegeDenied", "not_started", False)

    async def test_the_end_of_a_program_is_its_own(self, site: Site) -> None:
        missing = await site.run(Command(argv=["cat", "/nonesuch"], sudo=True), "single_free")
        assert streams(missing) == (b"", b"/usr/bin/cat: /nonesuch: No such file or directory\n", 1) or streams(
            missing
        ) == (b"", b"cat: /nonesuch: No such file or directory\n", 1)
        unknown = await site.run(Command(argv=["nonesuch"], sudo=True), "free")
        assert unknown["error"] or unknown.value.exit_status == 1
        assert "nonesuch: command not found" in (unknown.detail or unknown.value.stderr)

    async def test_a_program_that_speaks_like_sudo_is_still_itself(self, site: Site) -> None:
        """It ran: a response that says that it never did would have it run again."""
        argv = ["sh", "-c", "echo 'sudo: I did something' >&2; exit 1"]
        response = await site.run(Command(argv=argv, sudo=True), "free")
        assert streams(response) == (b"", b"sudo: I did something\n", 1)

    async def test_variables_and_directory_of_a_program(self, site: Site) -> None:
        value = "a 'b' $c \n ü"
        for user in ("user", "free"):
            step = Command(
                argv=["sh", "-c", 'printf "%s|" "$ONE" "$PWD"'], env={"ONE": value}, cwd="/usr/lib", sudo=True
            )
            assert streams(await site.run(step, user, **SUDO))[0].decode() == f"{value}|/usr/lib|"
            missing = await site.run(Command(argv=["id"], cwd="/nonesuch", sudo=True), user, **SUDO)
            assert missing["error"] or missing.value.exit_status != 0
            assert "/nonesuch" in (missing.detail or missing.value.stderr)

    @pytest.mark.parametrize("user", ["single", "single_free"])
    async def test_the_input_of_a_program_is_exact(self, site: Site, user: str) -> None:
        data = bytes(range(256)) * 4000
        response = await site.run(Command(argv=["/usr/bin/cat"], stdin=data, sudo=True), user, **SUDO)
        assert streams(response) == (data, b"", 0)

    # Many at a time

    async def test_ten_at_the_same_time_on_one_connection(self, site: Site) -> None:
        class Ten:
            async def execute(self) -> Any:
                steps = [Shell(cmd=f"sleep 0.1; echo {n}; cat", stdin=str(n), sudo=True) for n in range(10)]
                yield Return(value=[response.value.stdout for response in (yield steps)])

        before = site.machine.accepted()
        response = await site.run(Ten(), **SUDO)
        assert response["value"] == [f"{n}\n{n}" for n in range(10)]
        assert site.machine.accepted() == before + 1

    async def test_both_kinds_and_none_at_the_same_time(self, site: Site) -> None:
        class Mixed:
            async def execute(self) -> Any:
                steps = [Shell(cmd=f"id -un; echo {n}", **how) for n in range(4) for how in HOW.values()]
                yield Return(value=[response.value.stdout for response in (yield steps)])

        response = await site.run(Mixed(), **SUDO, **SU)
        users = ("user", "root", "root")
        assert response["value"] == [f"{user}\n{n}\n" for n in range(4) for user in users]

    async def test_many_hosts_at_once(self, site: Site) -> None:
        hosts = [
            site.host("user", connection={"host": f"host{n}", "address": f"127.0.200.{n}"}, **SUDO)
            for n in range(1, 21)
        ]
        responses = await site.every(lambda: Shell(cmd="id -un; cat", stdin="in", sudo=True), *hosts)
        assert [streams(response) for response in responses] == [(b"root\nin", b"", 0)] * 20

    # R27: passwords with all that shells, terminals and programs may take for something else

    @pytest.mark.parametrize("number", range(len(ODD_PASSWORDS)))
    async def test_odd_passwords(self, site: Site, number: int) -> None:
        user, password = f"odd{number}", ODD_PASSWORDS[number]

        class Each:
            async def execute(self) -> Any:
                steps: list[Any] = [Shell(cmd="id -un", sudo=True), Shell(cmd="id -un; cat", stdin="in", su=True)]
                steps += [Command(argv=["id", "-un"], sudo=True), Read(path="/etc/hostname", sudo=True)]
                yield Return(value=(yield steps))

        kept = f"pass:{password}" if password.startswith("pass:") else password
        login = {"client_keys": None, "password": kept}
        known: dict[str, Any] = {"sudo_password": kept, "su_password": kept, "su_user": user}
        before = site.machine.accepted("password")
        [response] = await site.every(Each, site.host(user, connection=login, **known))
        assert not response["error"], response
        sudo, su, bare, read = response["value"]
        assert [streams(each) for each in (sudo, su, bare)] == [
            (b"root\n", b"", 0),
            (f"{user}\nin".encode(), b"", 0),
            (b"root\n", b"", 0),
        ]
        assert read["value"] == "server104\n"
        assert site.machine.accepted("password") == before + 1


# R24: nobody sees the password


class Watcher:
    """Reads what the processes of a machine show to everybody, all the time, and keeps where it saw a word."""

    def __init__(self, machine: Machine, *words: bytes) -> None:
        self._machine = machine
        self._words = words
        self._others = {int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit()}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.seen: dict[bytes, set[str]] = {word: set() for word in words}
        self.rounds = 0

    def __enter__(self) -> Self:
        self._others -= set(self._machine.pids)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.003):
            for process in Path("/proc").iterdir():
                if process.name.isdigit() and int(process.name) not in self._others:
                    self._look(process)
            self.rounds += 1

    def _look(self, process: Path) -> None:
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):  # it may end at any time
                shown = (process / name).read_bytes()
                for word in self._words:
                    if word in shown:
                        self.seen[word].add(f"{name}: {shown!r}")


CANARY = f"S3CR3T{secrets.token_hex(8)}"
"""A word that nobody else on this machine uses."""


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_left")
async def test_nobody_sees_a_password(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    users = (
        User("user", f"{CANARY}-user", key=True, sudo=ALL),
        User("tty", f"{CANARY}-tty", key=True, sudo=ALL, defaults="requiretty"),
        User("root", f"{CANARY}-root"),
    )
    known = {"sudo_password": f"{CANARY}-user", "su_password": f"{CANARY}-root"}
    wrong = {"sudo_password": f"{CANARY}-wrong", "su_password": f"{CANARY}-wrong"}
    shown = f"SHOWN-{CANARY[::-1]}"
    visible = Shell(cmd=f"sleep 0.2; echo {shown}-argument | cat", env={"SHOWN": f"{shown}-variable"}, sudo=True)
    steps: list[Any] = [
        visible,
        Shell(cmd="id; env; cat /proc/self/environ", sudo=True, stdin="in"),
        Shell(cmd="id; env", su=True),
        Command(argv=["id"], sudo=True),
        Command(argv=["cat"], su=True, stdin="in"),
        Write(path="/root/file", text="text", sudo=True),
        Read(path="/root/file", su=True),
        Shell(cmd="sleep 30", sudo=True, timeout=0.3),
        Shell(cmd="sleep 30", su=True, timeout=0.3),
    ]

    caplog.set_level(logging.DEBUG)
    asyncssh.set_debug_level(2)
    try:
        with started(tmp_path / "world", users=users, sudoers=SUDOERS, LogLevel="DEBUG3") as site:
            with (
                site.world.network(),
                Watcher(site.machine, CANARY.encode(), shown.encode()) as watcher,
            ):
                login = {"client_keys": None, "password": f"{CANARY}-user"}
                hosts = {
                    "good": site.host("user", connection={"host": "good"}, **known),
                    "bad": site.host("user", connection={"host": "bad"}, **wrong),
                    "tty": site.host("tty", sudo_password=f"{CANARY}-tty"),
                    "login": site.host("user", connection={"host": "login", **login}),
                }
                each = [
                    Steps(*steps),
                    Steps([steps[1], steps[2], steps[5]]),
                    Steps(steps[1], steps[7]),
                    Steps(Shell(cmd="true")),
                ]
                responses = await site.every(iter(each).__next__, *hosts.values())
            await (await loop_pool()).close()
            site.machine.wait_idle()
            sshd = site.machine.log()
            search = (
                "grep -rlaF {CANARY} /etc /home /root /run /tmp /var/log /var/tmp /var/lib /dev/shm 2>/dev/null; true"
            )
            files = site.machine.run(["sh", "-c", search]).stdout
            sudo = "\n".join(site.sudo_log())
    finally:
        asyncssh.set_debug_level(1)
    good, bad, tty, _ = [response["value"] for response in responses]
    assert [answer["error"] for answer in good] == [False] * 7 + [True] * 2
    assert [str(answer["value"]) for answer in bad[0]] == ["PasswordRejected"] * 3
    assert [answer["error"] for answer in tty] == [False, True]
    assert not responses.failed
    seen = "".join(watcher.seen[shown.encode()])
    assert "cmdline: " in seen
    assert "environ: " in seen
    assert watcher.rounds > 100
    assert watcher.seen[CANARY.encode()] == set()
    assert CANARY not in responses.to_json() + repr(responses)
    for record in caplog.records:
        assert CANARY not in record.getMessage()
        assert CANARY not in caplog.handler.format(record)
    assert "debug3" in sshd
    assert CANARY not in sshd
    assert CANARY not in sudo
    assert files == ""
