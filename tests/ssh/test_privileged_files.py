"""Files with sudo and su: those of other users, read and changed as one's own are."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reemote import scp
from reemote.core.response import Response
from reemote.host import Shell
from reemote.sftp import (
    Chmod,
    Chown,
    Copy,
    Directory,
    Get,
    Getcwd,
    Getsize,
    Isfile,
    Listdir,
    Mkdir,
    Mput,
    Put,
    Read,
    Remove,
    Rename,
    Rmtree,
    Stat,
    Symlink,
    Sync,
    Utime,
    Write,
)
from reemote.system import Return
from tests.ssh.machines import SU, SUDO, Site, Steps, started

pytestmark = pytest.mark.slow

BOTH: tuple[dict[str, Any], ...] = ({"sudo": True}, {"su": True})


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with started(tmp_path_factory.mktemp("privileged-files") / "world") as site:
        yield site


@pytest.fixture
def site(shared: Site, nothing_left: None) -> Iterator[Site]:
    with shared.world.network():
        yield shared


@pytest.fixture
def place(site: Site) -> Iterator[Path]:
    """A directory that only root may enter, as the tests see it; on the machine it is /root/place."""
    site.machine.run(["mkdir", "-m", "700", "/root/place"]).check_returncode()
    yield site.machine.path("/root/place")
    site.machine.run(["rm", "-rf", "/root/place"]).check_returncode()


async def done(site: Site, *steps: Any, user: str = "user", **known: Any) -> list[Response[Any]]:
    """Run steps with both passwords known; a failure fails the test."""
    answers: list[Response[Any]] = (await site.run(Steps(*steps), user, **{**SU, **SUDO, **known}))["value"]
    assert [answer for answer in answers if answer["error"]] == []
    return answers


def is_left(place: Path) -> list[str]:
    return sorted(each.name for each in place.iterdir())


@pytest.mark.parametrize("how", BOTH, ids=["sudo", "su"])
async def test_text_is_written_and_read(site: Site, place: Path, how: dict[str, Any]) -> None:
    path = "/root/place/file"
    wrote, again, read, size, isfile = await done(
        site,
        Write(path=path, text="one\nü\n", **how),
        Write(path=path, text="one\nü\n", **how),
        Read(path=path, **how),
        Getsize(path=path, **how),
        Isfile(path=path, **how),
    )
    assert [wrote["changed"], again["changed"]] == [True, False]
    assert (read["value"], size["value"], isfile["value"]) == ("one\nü\n", 7, True)
    assert (place / "file").read_text() == "one\nü\n"
    assert (place / "file").stat().st_uid == 0
    assert is_left(place) == ["file"]


@pytest.mark.parametrize("how", BOTH, ids=["sudo", "su"])
async def test_what_is_replaced_keeps_owner_and_mode(
    site: Site, place: Path, tmp_path: Path, how: dict[str, Any]
) -> None:
    (tmp_path / "new").write_text("new")
    for name in ("written", "put", "uploaded"):
        (place / name).write_text("old")
        os.chown(place / name, 1234, 2345)
        (place / name).chmod(0o4751)
    before = {name: (place / name).stat().st_ino for name in is_left(place)}
    await done(
        site,
        Write(path="/root/place/written", text="new", **how),
        Put(localpaths=tmp_path / "new", remotepath="/root/place/put", **how),
        scp.Upload(srcpaths=tmp_path / "new", dstpath="/root/place/uploaded", **how),
    )
    for name, number in before.items():
        found = (place / name).stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1234, 2345, 0o4751)
        assert found.st_ino != number  # another file took its place, at once
        assert (place / name).read_text() == "new"
    assert is_left(place) == ["put", "uploaded", "written"]


@pytest.mark.parametrize("how", BOTH, ids=["sudo", "su"])
async def test_trees_go_there_and_back(site: Site, place: Path, tmp_path: Path, how: dict[str, Any]) -> None:
    tree = tmp_path / "tree"
    (tree / "below").mkdir(parents=True)
    data = os.urandom(300_000)
    (tree / "below" / "data").write_bytes(data)
    for number in range(40):
        (tree / f"file {number}").write_text(str(number))
    (tree / "link").symlink_to("below/data")
    put, synced, again, _, got, down = await done(
        site,
        Put(localpaths=tree, remotepath="/root/place/put", recurse=True, **how),
        Sync(localpath=tree, remotepath="/root/place/sync", **how),
        Sync(localpath=tree, remotepath="/root/place/sync", **how),
        Copy(srcpaths="/root/place/sync", dstpath="/root/place/copy", recurse=True, **how),
        Get(remotepaths="/root/place/copy", localpath=tmp_path / "got", recurse=True, **how),
        scp.Download(srcpaths="/root/place/put/below/data", dstpath=tmp_path / "down", **how),
    )
    assert [answer["changed"] for answer in (put, synced, again, got, down)] == [True, True, False, True, True]
    for copied in (place / "put", place / "sync", place / "copy", tmp_path / "got"):
        assert is_left(copied) == is_left(tree)
        assert (copied / "below" / "data").read_bytes() == data
        assert (copied / "file 7").read_text() == "7"
        assert (copied / "link").is_symlink()
    assert (tmp_path / "down").read_bytes() == data
    assert {each.stat().st_uid for each in place.rglob("*") if not each.is_symlink()} == {0}


@pytest.mark.parametrize("how", BOTH, ids=["sudo", "su"])
async def test_all_kinds_of_changes(site: Site, place: Path, how: dict[str, Any]) -> None:
    answers = await done(
        site,
        Directory(path="/root/place/made", present=True, permissions=0o750, **how),
        Directory(path="/root/place/made", present=True, permissions=0o750, **how),
        Mkdir(path="/root/place/made/below", **how),
        Write(path="/root/place/made/below/file", text="x", **how),
        Chown(path="/root/place/made/below/file", uid=1000, gid=1001, **how),
        Chown(path="/root/place/made/below/file", uid=1000, gid=1001, **how),
        Chmod(path="/root/place/made/below/file", permissions=0o604, **how),
        Utime(path="/root/place/made/below/file", atime=1, mtime=2, **how),
        Symlink(file_path="file", link_path="/root/place/made/below/link", **how),
        Rename(oldpath="/root/place/made/below/link", newpath="/root/place/made/below/renamed", **how),
        Listdir(path="/root/place/made/below", **how),
        Stat(path="/root/place/made/below/file", **how),
    )
    assert [answer["changed"] for answer in answers[:7]] == [True, False, True, True, True, False, True]
    assert sorted(answers[-2]["value"]) == ["file", "renamed"]
    assert (answers[-1]["value"]["uid"], answers[-1]["value"]["gid"]) == (1000, 1001)
    file = place / "made" / "below" / "file"
    assert (file.stat().st_mtime, stat.S_IMODE(file.stat().st_mode), file.stat().st_uid) == (2, 0o604, 1000)
    assert stat.S_IMODE((place / "made").stat().st_mode) == 0o750
    removed, tree = await done(
        site, Remove(path="/root/place/made/below/renamed", **how), Rmtree(path="/root/place/made", **how)
    )
    assert (removed["changed"], tree["changed"], is_left(place)) == (True, True, [])


@pytest.mark.parametrize("how", BOTH, ids=["sudo", "su"])
async def test_failures_have_their_names(site: Site, place: Path, how: dict[str, Any]) -> None:
    (place / "file").write_text("x")
    missing, above, unlike = (
        await site.run(
            Steps(
                Read(path="/root/place/nonesuch", **how),
                Write(path="/root/place/nonesuch/file", text="x", **how),
                Mkdir(path="/root/place/file", **how),
            ),
            **SU,
            **SUDO,
        )
    )["value"]
    assert (missing["value"], missing["changed"]) == ("SFTPNoSuchFile", False)
    assert (above["value"], above["changed"]) == ("SFTPNoSuchFile", False)
    assert unlike["value"] in ("SFTPFailure", "SFTPFileAlreadyExists")
    assert is_left(place) == ["file"]


async def test_each_step_has_its_own_privileges(site: Site, place: Path) -> None:
    """Those of one step are no other's, before and after it, and at the same time."""
    (place / "file").write_text("root's")
    path = "/root/place/file"

    class Mixed:
        async def execute(self) -> Any:
            before = yield Read(path=path)
            sudo = yield Read(path=path, sudo=True)
            between = yield Read(path=path)
            own = yield Write(path="own", text="x")
            su = yield Read(path=path, su=True)
            other = yield Read(path=path, sudo=True, sudo_user="other")
            at_once = yield [
                Read(path=path),
                Read(path=path, sudo=True),
                Shell(cmd="id -un", sudo=True),
                Shell(cmd="id -un"),
                Read(path=path, su=True),
                Stat(path="own"),
            ]
            yield Return(value=[before, sudo, between, own, su, other, *at_once])

    before = site.machine.accepted()
    answers = (await site.run(Mixed(), **SU, **SUDO))["value"]
    denied = "SFTPPermissionDenied"
    values = [answer["value"] for answer in answers]
    assert values[:6] == [denied, "root's", denied, None, "root's", denied]
    assert values[6:8] == [denied, "root's"]
    assert [value["stdout"] for value in values[8:10]] == ["root\n", "user\n"]
    assert values[10] == "root's"
    assert (values[11]["uid"], values[11]["size"]) == (1000, 1)
    assert site.machine.accepted() == before + 1


async def test_files_of_other_users(site: Site) -> None:
    other = {"su_user": "other", "su_password": "other-password", "sudo_user": "dash"}
    await done(
        site,
        Write(path="/tmp/by-sudo-user", text="x", sudo=True, sudo_user="other"),
        Write(path="/tmp/by-inventory", text="x", sudo=True),
        Write(path="/tmp/by-su", text="x", su=True),
        **other,
    )
    uids = [site.machine.path(f"/tmp/{name}").stat().st_uid for name in ("by-sudo-user", "by-inventory", "by-su")]
    owner = {line.split(":")[0]: int(line.split(":")[2]) for line in passwd(site)}
    assert uids == [owner["other"], owner["dash"], owner["other"]]


def passwd(site: Site) -> list[str]:
    return site.machine.path("/etc/passwd").read_text().splitlines()


async def test_where_relative_paths_lead(site: Site) -> None:
    """From where logins start: it is the same for all users of the files, so that steps agree."""
    for how in ({}, *BOTH):
        [here] = await done(site, Getcwd(**how))
        assert here["value"] == "/home/user"
        await done(site, Write(path="relative", text=str(how), **how))
        assert site.machine.path("/home/user/relative").read_text() == str(how)


@pytest.mark.parametrize("how", BOTH, ids=["sudo", "su"])
async def test_noise_of_the_login_is_no_sftp(site: Site, place: Path, tmp_path: Path, how: dict[str, Any]) -> None:
    (tmp_path / "new").write_bytes(bytes(range(256)) * 2000)
    noise = "echo noise; printf 'no newline'; echo 'Password: ' >&2; head -c 100000 /dev/zero\n"
    with site.file("/home/user/.bashrc", noise), site.file("/root/.bashrc", noise):
        _, read, put = await done(
            site,
            Write(path="/root/place/file", text="text", **how),
            Read(path="/root/place/file", **how),
            Put(localpaths=tmp_path / "new", remotepath="/root/place/put", checksum=True, **how),
        )
        assert read["value"] == "text"
        assert put["changed"]
    assert (place / "put").read_bytes() == (tmp_path / "new").read_bytes()


@contextlib.contextmanager
def without_server(site: Site) -> Iterator[None]:
    path = "/usr/lib/openssh/sftp-server"
    site.machine.run(["chmod", "-x", path]).check_returncode()
    try:
        yield
    finally:
        site.machine.run(["chmod", "+x", path]).check_returncode()


async def test_a_host_without_a_program_for_it(site: Site) -> None:
    """sshd serves the files of the login user by itself; for others it needs the program."""
    with without_server(site):
        for how in BOTH:
            response = await site.run(Read(path="/root/x", **how), **SU, **SUDO)
            assert (response["value"], response.outcome, response["changed"]) == (
                "PrivilegeDenied",
                "not_started",
                False,
            )
            assert "sftp-server" in response.detail
        await done(site, Write(path="plain", text="x"))


async def test_refusals(site: Site) -> None:
    for step, user, kind in (
        (Write(path="/root/x", text="x", sudo=True), "nosudo", "PrivilegeDenied"),
        (Write(path="/root/x", text="x", sudo=True), "single", "PrivilegeDenied"),
        (Write(path="/root/x", text="x", sudo=True), "tty", "TerminalRequired"),
        (Write(path="/root/x", text="x", sudo=True, sudo_user="nonesuch"), "user", "PrivilegeDenied"),
    ):
        response = await site.run(step, user, **SUDO)
        assert (response["value"], response.outcome, response["changed"]) == (kind, "not_started", False)
    assert not site.machine.path("/root/x").exists()


async def test_a_session_that_dies_is_replaced(site: Site, place: Path) -> None:
    (place / "file").write_text("text")

    class Dies:
        async def execute(self) -> Any:
            first = yield Read(path="/root/place/file", sudo=True)
            yield Shell(cmd="pkill -x sftp-server; while pgrep -x sftp-server; do sleep 0.02; done", sudo=True)
            second = yield Read(path="/root/place/file", sudo=True)
            third = yield Read(path="/root/place/file", sudo=True)
            yield Return(value=[first, second, third])

    first, second, third = (await site.run(Dies(), **SUDO))["value"]
    assert first["value"] == third["value"] == "text"
    assert second["value"] in ("text", "ConnectionLost")
    assert second["changed"] is False


@pytest.mark.parametrize("how", [{}, *BOTH], ids=["plain", "sudo", "su"])
async def test_large_files_both_ways(site: Site, place: Path, tmp_path: Path, how: dict[str, Any]) -> None:
    folder = "/root/place" if how else "/tmp"
    (tmp_path / "large").write_bytes(os.urandom(1 << 20) * 24)
    await done(
        site,
        Put(localpaths=tmp_path / "large", remotepath=f"{folder}/large", **how),
        Get(remotepaths=f"{folder}/large", localpath=tmp_path / "back", **how),
    )
    digests = {hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("large", "back")}
    assert len(digests) == 1


async def test_a_full_disk_leaves_what_was(site: Site, place: Path, tmp_path: Path) -> None:
    site.machine.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", "/root/place"]).check_returncode()
    try:
        (place / "file").write_text("old")
        (tmp_path / "large").write_bytes(bytes(300_000))
        response = await site.run(
            Put(localpaths=tmp_path / "large", remotepath="/root/place/file", sparse=False, sudo=True), **SUDO
        )
        assert (response["value"], response["changed"]) == ("NoSpaceLeft", False)
        assert (place / "file").read_text() == "old"
        assert is_left(place) == ["file"]
    finally:
        site.machine.run(["umount", "/root/place"]).check_returncode()


async def test_a_host_that_allows_one_session(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    for number in range(30):
        (tmp_path / "tree" / str(number)).write_text(str(number))
    how: dict[str, Any] = {"sudo": True}

    class Mixed:
        async def execute(self) -> Any:
            answers = []
            for step in (
                Write(path="/root/file", text="root's", **how),
                Shell(cmd="cat /root/file", **how),
                Write(path="own", text="user's"),
                Read(path="/root/file", su=True),
                Sync(localpath=tmp_path / "tree", remotepath="/root/tree", **how),
                Shell(cmd="cat own"),
            ):
                answers.append((yield step))
            answers += yield [
                Read(path="/root/file", **how),
                Read(path="own"),
                Shell(cmd="id -un", **how),
                Read(path="/root/file", su=True),
                Shell(cmd="id -un"),
                Write(path="/root/file", text="root's", **how),
            ]
            yield Return(value=answers)

    with started(tmp_path_factory.mktemp("one") / "world", MaxSessions=1) as site, site.world.network():
        answers = (await site.run(Mixed(), **SU, **SUDO))["value"]
        assert [answer for answer in answers if answer["error"]] == []
        assert answers[1]["value"]["stdout"] == answers[3]["value"] == answers[6]["value"] == "root's"
        assert answers[5]["value"]["stdout"] == answers[7]["value"] == "user's"
        assert [answers[number]["value"]["stdout"] for number in (8, 10)] == ["root\n", "user\n"]
        assert len(list(site.machine.path("/root/tree").iterdir())) == 30
        assert site.machine.accepted() == 1


async def test_patterns_are_those_of_the_other_user(site: Site, place: Path, tmp_path: Path) -> None:
    for name in ("a.conf", "b.conf", "c.txt"):
        (tmp_path / name).write_text(name)
    await done(site, Mput(localpaths=str(tmp_path / "*.conf"), remotepath="/root/place", sudo=True))
    assert is_left(place) == ["a.conf", "b.conf"]
    (tmp_path / "down").mkdir()
    await done(site, scp.Download(srcpaths="/root/place/*.conf", dstpath=tmp_path / "down", sudo=True))
    assert is_left(tmp_path / "down") == ["a.conf", "b.conf"]
    denied = await site.run(scp.Download(srcpaths="/root/place/*.conf", dstpath=tmp_path / "down"))
    assert denied["error"]
