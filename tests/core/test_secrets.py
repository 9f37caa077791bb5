"""Secrets: where they are looked up, that it happens once, and that they do not show."""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from reemote.core import secrets
from reemote.core.errors import SecretNotFound
from reemote.core.inventory import Inventory
from reemote.core.secrets import MASK, LookUp, Options, Scrubber, is_reference, masked, resolve, reveal, scrub


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """No secrets of other tests, and none for other tests."""
    monkeypatch.setattr(secrets, "_known", secrets._Known())


# References


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("", ""),
        (" with blanks ", " with blanks "),
        ("pass:plain", "plain"),
        ("pass:env:NAME", "env:NAME"),
        ("pass:pass:x", "pass:x"),
        ("pass:", ""),
        ("other:thing", "other:thing"),
        ("ENV:NAME", "ENV:NAME"),
        ("environment", "environment"),
        ("a env:NAME", "a env:NAME"),
        ("a\nb", "a\nb"),
    ],
)
def test_what_is_no_reference_is_the_secret(text: str, expected: str) -> None:
    assert resolve(text) == expected


def test_what_a_reference_is() -> None:
    assert [text for text in ("env:X", "file:/x", "cmd:x", "pass:x") if not is_reference(text)] == []
    assert [text for text in ("x", "ENV:X", " env:X", "pas:x", "keyring:x", "") if is_reference(text)] == []


def test_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_SECRET", " s p a c e s: ü ")
    assert resolve("env:THE_SECRET") == " s p a c e s: ü "
    with pytest.raises(SecretNotFound, match=r"the secret env:NONESUCH: there is no such variable"):
        resolve("env:NONESUCH")
    with pytest.raises(SecretNotFound):
        resolve("env:")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"secret", "secret"),
        (b"secret\n", "secret"),
        (b"secret\r\n", "secret"),
        (b" secret \n", " secret "),
        (b"secret\nuser: me\nurl: x\n", "secret"),
        (b"secret\n\n", "secret"),
        ("ü漢\n".encode(), "ü漢"),
        (b"x" * 5000, "x" * 5000),
    ],
)
def test_the_first_line_of_a_file_and_of_a_command(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "a secret: file"
    path.write_bytes(content)
    assert resolve(f"file:{path}") == expected
    assert resolve(f"cmd:cat '{path}'") == expected


def test_a_file_in_the_home(home: Path) -> None:
    (home / "secret").write_text("homely\n")
    assert resolve("file:~/secret") == "homely"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "No such file or directory"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "it is not UTF-8 text"),
        (lambda path: path.symlink_to(path), "symbolic links"),
    ],
    ids=["missing", "directory", "bytes", "loop"],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, make: Callable[[Path], Any], reason: str) -> None:
    make(tmp_path / "file")
    with pytest.raises(SecretNotFound, match=reason) as caught:
        resolve(f"file:{tmp_path}/file")
    assert caught.value.__cause__ is None
    assert caught.value.outcome == "not_started"


def test_a_user_who_does_not_exist() -> None:
    with pytest.raises(SecretNotFound, match="file:~nonesuch"):
        resolve("file:~nonesuch/secret")


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("echo hunter2; echo 'it is locked' >&2; exit 3", "exit status 3: it is locked"),
        ("echo hunter2; exit 1", "exit status 1"),
        ("kill -9 $$", "signal 9"),
        ("nonesuch-program", "exit status 127: .*not found"),
        ("printf '\\377'", "prints no UTF-8 text"),
        ("printf '\\377' >&2; exit 2", r"exit status 2: \\xff"),
    ],
)
def test_a_command_that_fails(command: str, reason: str) -> None:
    with pytest.raises(SecretNotFound, match=reason) as caught:
        resolve(f"cmd:{command}")
    # What it printed before may be the secret. (The text of the command is the operator's.)
    assert "hunter2" not in caught.value.detail.replace(command, "")


def test_a_command_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "PATIENCE", 0.2)
    start = time.monotonic()
    with pytest.raises(SecretNotFound, match=r"did not end within 0\.2 s"):
        resolve("cmd:exec sleep 30")
    assert time.monotonic() - start < 5


def test_a_command_cannot_ask_here() -> None:
    """Its input is empty: it must not take what is meant for somebody else."""
    assert resolve("cmd:cat; echo asked nobody") == "asked nobody"


@pytest.mark.parametrize("reference", ["env:EMPTY", "file:empty", "cmd:true", "cmd:echo"])
def test_what_is_empty_is_no_secret(reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is locked, say. Sent to all hosts it would be a failed login on each."""
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(SecretNotFound, match="empty"):
        resolve(reference)


# Looking up in a run


@pytest.fixture
def counted(tmp_path: Path) -> tuple[str, Path]:
    """A reference to a secret, and the file with a line for each time that it was looked up."""
    log = tmp_path / "log"
    return f"cmd:echo x >>{log}; sleep 0.1; echo secret", log


@pytest.mark.usefixtures("nothing_left")
async def test_each_reference_is_looked_up_once(counted: tuple[str, Path]) -> None:
    reference, log = counted
    look_up = LookUp()
    assert await asyncio.gather(*(look_up.get(SecretStr(reference)) for _ in range(50))) == ["secret"] * 50
    assert await look_up.get(reference) == "secret"
    assert log.read_text() == "x\n"
    assert await LookUp().get(reference) == "secret"  # the next run asks again
    assert log.read_text() == "x\nx\n"


@pytest.mark.usefixtures("nothing_left")
async def test_what_is_plain_needs_no_look_up() -> None:
    look_up = LookUp()
    assert await look_up.get(None) is None
    assert await look_up.get("") == ""
    assert await look_up.get(SecretStr("plain")) == "plain"
    assert await look_up.get("pass:cmd:false") == "cmd:false"


@pytest.mark.usefixtures("nothing_left")
async def test_a_slow_command_holds_nobody_up() -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    ticking = asyncio.create_task(tick())
    assert await LookUp().get("cmd:sleep 0.3; echo x") == "x"
    ticking.cancel()
    assert ticks > 20


@pytest.mark.usefixtures("nothing_left")
async def test_each_who_asks_has_a_failure_of_his_own(tmp_path: Path) -> None:
    log = tmp_path / "log"
    look_up = LookUp()
    reference = f"cmd:echo x >>{log}; false"
    found = await asyncio.gather(*(look_up.get(reference) for _ in range(10)), return_exceptions=True)
    assert {type(each) for each in found} == {SecretNotFound}
    assert len({id(each) for each in found}) == 10
    assert log.read_text() == "x\n"


@pytest.mark.usefixtures("nothing_left")
async def test_one_who_goes_does_not_cost_the_others_the_secret(counted: tuple[str, Path]) -> None:
    reference, log = counted
    look_up = LookUp()
    first, second = (asyncio.create_task(look_up.get(reference)) for _ in range(2))
    await asyncio.sleep(0.02)
    first.cancel()
    assert await second == "secret"
    with pytest.raises(asyncio.CancelledError):
        await first
    assert log.read_text() == "x\n"


@pytest.mark.usefixtures("nothing_left")
async def test_nobody_is_left_to_hear_of_a_failure() -> None:
    """The run was cancelled meanwhile: that is no reason for a message at its end."""
    look_up = LookUp()
    asking = asyncio.create_task(look_up.get("cmd:sleep 0.1; exit 1"))
    await asyncio.sleep(0.03)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    del look_up, asking


# Masks


def test_secrets_that_were_used_are_masked() -> None:
    for secret in ("hunter22", "hunter", "a.b*c"):
        resolve(secret)
    assert scrub("hunter22, hunter and hunter2; a.b*c, aXbc") == f"{MASK}, {MASK} and {MASK}2; {MASK}, aXbc"
    assert scrub("nothing") == "nothing"


def test_secrets_of_later_are_masked_and_those_that_are_spelled_like_others() -> None:
    resolve("a b!")
    assert scrub("a b! 'a b!'") == f"{MASK} {MASK}"
    resolve("'a b!'")  # as the first one is quoted; this one has a quoted form, too
    quoted = shlex.quote("'a b!'")
    assert scrub(f"a b! {quoted} later") == f"{MASK} {MASK} later"
    resolve("'a b!'")
    resolve("later")
    assert scrub(f"a b! {quoted} later") == f"{MASK} {MASK} {MASK}"


def test_short_secrets_would_be_found_everywhere() -> None:
    resolve("abc")
    resolve("")
    assert scrub("abc in the alphabet") == "abc in the alphabet"


def test_a_reference_is_not_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAME", "canary")
    assert reveal(SecretStr("env:NAME")) == "env:NAME"
    assert scrub("env:NAME") == "env:NAME"
    assert scrub("canary") == "canary"  # not known yet
    resolve("env:NAME")
    assert scrub("canary") == MASK
    assert reveal(SecretStr("plainly")) == "plainly"
    assert scrub("plainly") == MASK
    assert reveal(22) == 22


class Kept(logging.Handler):
    """Keeps what would be written."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(message)s"))
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))


@pytest.fixture
def log() -> tuple[logging.Logger, Kept]:
    logger, kept = logging.Logger("of this test"), Kept()
    logger.addFilter(Scrubber())
    logger.addHandler(kept)
    return logger, kept


def test_log_entries_are_scrubbed(log: tuple[logging.Logger, Kept]) -> None:
    logger, kept = log
    resolve("canary")
    logger.info("plain %s %d%%", "text", 5)
    logger.info("my canary")
    logger.info("my %s", "canary")
    logger.info({"password": "canary"})
    logger.info("my %r", {"password": ["canary"]})
    logger.info("100% canary")
    try:
        raise ValueError("a canary died")
    except ValueError:
        logger.exception("it %s", "failed")
    assert kept.texts[:6] == [
        "plain text 5%",
        f"my {MASK}",
        f"my {MASK}",
        f"{{'password': '{MASK}'}}",
        f"my {{'password': ['{MASK}']}}",
        f"100% {MASK}",
    ]
    assert "canary" not in "".join(kept.texts)
    assert kept.texts[6].startswith("it failed\nTraceback")
    assert f"ValueError: a {MASK} died" in kept.texts[6]


def test_a_trace_without_secrets_stays_as_it_is(log: tuple[logging.Logger, Kept]) -> None:
    logger, kept = log
    resolve("canary")
    records: list[logging.LogRecord] = []

    def note(record: logging.LogRecord) -> bool:
        records.append(record)
        return True

    kept.addFilter(note)
    try:
        raise ValueError("nothing")
    except ValueError:
        logger.exception("plain")
    assert "ValueError: nothing" in kept.texts[0]
    assert records[0].exc_info is not None


def test_an_entry_that_is_wrong_raises_nothing_and_shows_nothing(
    log: tuple[logging.Logger, Kept], capsys: pytest.CaptureFixture[str]
) -> None:
    """As without the filter: who logs, even badly, goes on."""
    logger, kept = log
    resolve("canary")
    arguments = ("canary",)
    logger.info("%s %s", *arguments)
    assert "canary" not in "".join(kept.texts) + capsys.readouterr().err


def test_options_show_no_secrets() -> None:
    options = Options({"password": "canary", "port": 22, "passphrase": None, "client_keys": "-----BEGIN PRIVATE KEY"})
    assert repr(options) == str(options) == f"{options}"
    assert "canary" not in repr(options)
    assert "PRIVATE" not in repr(options)
    assert dict(masked(options)) == {"password": MASK, "port": 22, "passphrase": None, "client_keys": MASK}
    assert reveal(options["password"]) == "canary"


def test_an_inventory_shows_no_secrets() -> None:
    hosts = Inventory.of(
        {
            "hosts": [
                {
                    "connection": {"host": "a", "password": "canary-1", "passphrase": "cmd:canary-2"},
                    "authentication": {"sudo_password": "canary-3", "su_password": "env:canary-4"},
                }
            ]
        }
    )
    for text in (repr(hosts), str(hosts), json.dumps(hosts.model_dump(mode="json")), hosts.model_dump_json()):
        assert "canary" not in text
