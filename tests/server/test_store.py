"""The inventory file: changed atomically, by one at a time, and never lost."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reemote.core.errors import InventoryError
from reemote.core.secrets import MASK
from reemote.server.settings import default_inventory
from reemote.server.store import Store

ADDER = """
    import sys
    from pathlib import Path
    from reemote.server.store import Store

    path, prefix, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    store = Store(path, patience=60)
    print("ready", flush=True)
    sys.stdin.readline()
    for index in range(number):
        store.add({"connection": {"host": f"{prefix}{index}", "password": "x" * 200}})
        print(index, flush=True)
"""


def host(name: str, **more: Any) -> dict[str, Any]:
    return {"connection": {"host": name, **more}}


def names(path: Path) -> list[str]:
    return [each["connection"]["host"] for each in json.loads(path.read_text())["hosts"]]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "inventory.json"


@pytest.fixture
def store(path: Path) -> Store:
    return Store(path)


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def start_adder(path: Path, prefix: str, number: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(ADDER), str(path), prefix, str(number)]
    adder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert adder.stdout is not None
    assert adder.stdout.readline() == "ready\n"
    return adder


def begin(adder: subprocess.Popen[str]) -> None:
    assert adder.stdin is not None
    adder.stdin.write("\n")
    adder.stdin.flush()


# First use, modes


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o277])
def test_files_are_for_their_owner_whatever_the_umask(path: Path, umask: Callable[[int], int], mask: int) -> None:
    umask(mask)
    store = Store(path)
    store.add(host("web1", password="secret"))
    store.add(host("web2"))

    assert {each.name: mode(each) for each in path.parent.iterdir() if not each.name.endswith(".lock")} == {
        "inventory.json": 0o600,
        "inventory.json.bak": 0o600,
    }
    assert all(mode(each) & 0o077 == 0 for each in path.parent.iterdir())


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_first_use_without_a_configuration_directory(home: Path, umask: Callable[[int], int], mask: int) -> None:
    umask(mask)
    path = default_inventory()
    assert not (home / ".config").exists()

    store = Store(path)
    assert store.inventory().hosts == []
    assert store.masked() == {"hosts": []}
    store.add(host("web1"))

    assert path.is_relative_to(home / ".config")
    assert names(path) == ["web1"]
    for directory in (path.parent, home / ".config"):
        assert mode(directory) & 0o022 == 0, directory
    assert mode(path.parent) == 0o700


def test_an_open_file_with_secrets_is_told_of_and_closed_with_the_next_change(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text(json.dumps({"hosts": [host("web1", password="secret")]}))
    path.chmod(0o644)
    store = Store(path)

    store.inventory()
    assert [message for message in caplog.messages if "chmod 600" in message]
    store.add(host("web2"))
    assert mode(path) == 0o600
    assert mode(path.with_name("inventory.json.bak")) == 0o600


def test_an_open_file_without_secrets_is_no_matter(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_text(json.dumps({"hosts": [host("web1")]}))
    path.chmod(0o644)
    Store(path).inventory()
    assert not caplog.messages


# Changes


def test_changes_are_seen(store: Store, path: Path) -> None:
    store.create({"hosts": [host("web1"), host("web2")]})
    assert store.add(host("web3")) == "web3"
    store.delete("web1")

    assert [item.host for item in store.inventory().hosts] == ["web2", "web3"] == names(path)


def test_changes_of_others_are_seen_at_once(store: Store, path: Path) -> None:
    other = Store(path)
    for number in range(50):  # quicker than a file system's clock may tick
        other.add(host(f"web{number}"))
        assert len(store.inventory().hosts) == number + 1


def test_edits_by_hand_are_seen(store: Store, path: Path) -> None:
    store.add(host("web1"))
    path.write_text("\ufeff" + json.dumps({"hosts": [host("edited")]}))
    assert [item.host for item in store.inventory().hosts] == ["edited"]
    store.add(host("web2"))
    assert names(path) == ["edited", "web2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda store: store.add(host("web1")), "there is a host 'web1' already: delete it first"),
        (lambda store: store.delete("web2"), "there is no host 'web2'"),
        (lambda store: store.create({"hosts": [host("a"), host("a")]}), r"hosts\[1\] is 'a', and hosts\[0\] is, too"),
        (lambda store: store.create({"hosts": "x"}), "hosts"),
        (lambda store: store.add({"connection": {}}), r"connection\.host: is missing"),
        (lambda store: store.add(host("web2", password=MASK)), r"web2: connection\.password is masked"),
        (lambda store: store.add(host("web2", port=float("nan"))), "port"),
        (lambda store: store.add(host("web2", username="\ud800")), "cannot be written|username"),
    ],
)
def test_what_is_refused_changes_nothing(
    store: Store, path: Path, change: Callable[[Store], None], message: str
) -> None:
    store.add(host("web1"))
    before = path.read_bytes()
    with pytest.raises(InventoryError, match=message):
        change(store)
    assert path.read_bytes() == before
    store.add(host("web9"))  # the lock is free


def test_the_version_before_stays(store: Store, path: Path) -> None:
    backup = path.with_name("inventory.json.bak")
    store.add(host("web1"))
    assert not backup.exists()
    store.add(host("web2"))
    assert names(backup) == ["web1"]
    store.add(host("web3"))
    assert names(backup) == ["web1", "web2"]


def test_a_link_stays_a_link(path: Path, tmp_path: Path) -> None:
    real = tmp_path / "elsewhere" / "hosts.json"
    real.parent.mkdir()
    real.write_text(json.dumps({"hosts": [host("web1")]}))
    path.symlink_to(real)
    Store(path).add(host("web2"))

    assert path.is_symlink()
    assert names(real) == ["web1", "web2"]


# Broken files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"hosts": [\n  {"connection": {"host": "web1"}},\n  }\n', "line 3"),
        (b"", "line 1"),
        (b'{"hosts": [{"connection": {}}]}', r"hosts\[0\]\.connection\.host: is missing"),
        (b"[]", "an inventory is an object"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_broken_file_is_named_and_left_alone(store: Store, path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    changes: list[Callable[[], object]] = [
        store.inventory,
        store.masked,
        lambda: store.create({"hosts": []}),
        lambda: store.add(host("web1")),
        lambda: store.delete("web1"),
    ]
    for change in changes:
        with pytest.raises(InventoryError, match=message) as caught:
            change()
        assert str(path) in str(caught.value)
    assert path.read_bytes() == content
    assert not path.with_name("inventory.json.bak").exists()


def test_what_cannot_be_used_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "directory", tmp_path / "file" / "inventory.json"):
        with pytest.raises(InventoryError) as caught:
            Store(path).add(host("web1"))
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_lock_that_stays_taken_is_an_error(path: Path) -> None:
    import fcntl

    store = Store(path, patience=0.05)
    store.add(host("web1"))
    with path.with_name(".inventory.json.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InventoryError, match="another process"):
            store.add(host("web2"))
        assert len(store.inventory().hosts) == 1  # readers do not wait
    store.add(host("web2"))


# Secrets


def test_secrets_are_masked_and_kept_when_sent_back(store: Store, path: Path) -> None:
    first = host("web1", username="u", password="one", passphrase="two")
    first["authentication"] = {"sudo_password": "three", "su_user": "root", "su_password": "four"}
    store.create({"hosts": [first, host("web2", password="five")]})
    stored = json.loads(path.read_text())

    shown = store.masked()
    assert not [word for word in ("one", "two", "three", "four", "five") if f'"{word}"' in json.dumps(shown)]
    assert shown["hosts"][0]["connection"] == {"host": "web1", "username": "u", "password": MASK, "passphrase": MASK}
    assert shown["hosts"][0]["authentication"] == {"sudo_password": MASK, "su_user": "root", "su_password": MASK}
    store.create(shown)
    assert json.loads(path.read_text()) == stored

    shown["hosts"][0]["connection"]["password"] = "new"
    store.create(shown)
    first["connection"]["password"] = "new"
    assert json.loads(path.read_text()) == stored | {"hosts": [first, stored["hosts"][1]]}


def test_a_masked_secret_does_not_go_elsewhere(store: Store, path: Path) -> None:
    store.create({"hosts": [host("web1", password="one")]})
    before = path.read_bytes()
    with pytest.raises(InventoryError, match="web1"):
        store.create({"hosts": [host("web1", password=MASK, address="attacker.example")]})
    with pytest.raises(InventoryError, match="web2"):
        store.create({"hosts": [host("web2", password=MASK)]})
    assert path.read_bytes() == before


def test_private_keys_in_the_file_are_masked(store: Store, path: Path) -> None:
    key = "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n"
    path.write_text(json.dumps({"hosts": [host("web1", client_keys=[key])]}))
    shown = store.masked()
    assert "AAAA" not in json.dumps(shown)
    store.create(shown)
    assert json.loads(path.read_text())["hosts"][0]["connection"]["client_keys"] == [key]


# Several processes


@pytest.mark.slow
def test_two_processes_lose_nothing_and_readers_never_see_a_part(path: Path) -> None:
    adders = [start_adder(path, prefix, 250) for prefix in ("a", "b")]
    failures: list[Exception] = []
    counts = [0]
    done = threading.Event()

    def read() -> None:
        reader = Store(path)
        while not done.is_set():
            try:
                counts.append(len(json.loads(path.read_text())["hosts"]) if path.exists() else 0)
                reader.inventory()
            except Exception as error:  # each is a failure of the test
                failures.append(error)
                return

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for adder in adders:
            begin(adder)
        for adder in adders:
            out, _ = adder.communicate(timeout=80)
            assert (adder.returncode, len(out.split())) == (0, 250)
    finally:
        done.set()
        thread.join()
        for adder in adders:
            adder.kill()

    assert failures == []
    assert counts == sorted(counts)
    assert sorted(names(path)) == sorted(f"{prefix}{number}" for prefix in "ab" for number in range(250))
    assert sorted(each.name for each in path.parent.iterdir()) == [
        ".inventory.json.lock",
        "inventory.json",
        "inventory.json.bak",
    ]


KILLED = """
    import os, sys, threading
    from pathlib import Path
    from reemote.server.store import Store

    # A child for each round: what is imported stays, and the kill comes at another moment each time.
    path, rounds = Path(sys.argv[1]), int(sys.argv[2])
    for round in range(rounds):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            store = Store(path)
            number = 0
            while True:
                store.add({"connection": {"host": f"r{round}n{number}", "password": "x" * 2000}})
                os.write(writing, b".")
                number += 1
        os.close(writing)
        os.read(reading, 1)
        threading.Event().wait(0.0005 * (round % 13))
        os.kill(child, 9)
        os.waitpid(child, 0)
        done = 1
        while part := os.read(reading, 4096):
            done += len(part)
        os.close(reading)
        print(round, done, flush=True)
"""


@pytest.mark.slow
def test_a_writer_that_is_killed_corrupts_nothing(path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(path), "50"]
    killer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    backup = path.with_name("inventory.json.bak")
    rounds = 0
    assert killer.stdout is not None
    with killer:
        for line in killer.stdout:
            number, done = map(int, line.split())
            # Whoever said that it had added a host has added it; the next one may have been under way.
            added = [name for name in names(path) if name.startswith(f"r{number}n")]
            assert added[:done] == [f"r{number}n{index}" for index in range(done)]
            if backup.exists():
                names(backup)
            rounds += 1

    assert (rounds, killer.returncode) == (50, 0)
    Store(path).add(host("after"))
    assert sorted(each.name for each in path.parent.iterdir() if ".lock" not in each.name) == [
        "inventory.json",
        "inventory.json.bak",
    ]
