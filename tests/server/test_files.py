from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from reemote.server.files import FileRefused, TransferRoot
from reemote.server.settings import Settings, data_directory
from tests.leaks import open_files


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_text("secret")
    return file


@pytest.fixture
def root(tmp_path: Path, outside: Path) -> TransferRoot:
    """A root with a file, a directory, and one of each kind of thing that is no plain file."""
    path = tmp_path / "files"
    (path / "sub").mkdir(parents=True)
    (path / "plain").write_text("plain")
    (path / "sub" / "deep").write_text("deep")
    (path / "link-out").symlink_to(outside)
    (path / "link-in").symlink_to("plain")
    (path / "link-nowhere").symlink_to(tmp_path / "made")
    (path / "dir-out").symlink_to(tmp_path)
    (path / "dir-in").symlink_to("sub")
    os.mkfifo(path / "fifo")
    return TransferRoot(path)


@pytest.mark.parametrize("name", ["plain", "./plain", ".//plain"])
def test_a_file_is_read(root: TransferRoot, name: str) -> None:
    with root.open_to_read(name) as file:
        assert file.read() == b"plain"


def test_a_file_in_a_directory_and_by_its_absolute_path(root: TransferRoot) -> None:
    for name in ("sub/deep", str(root.path / "sub" / "deep")):
        with root.open_to_read(name) as file:
            assert file.read() == b"deep"


def test_a_new_file_is_for_its_owner_and_an_old_one_is_emptied(root: TransferRoot) -> None:
    with root.open_to_write("sub/new") as file:
        file.write(b"longer")
    assert stat.S_IMODE((root.path / "sub" / "new").stat().st_mode) == 0o600
    with root.open_to_write("sub/new") as file:
        file.write(b"short")
    assert (root.path / "sub" / "new").read_bytes() == b"short"


REFUSED = {
    "": "names no file",
    ".": "names no file",
    "./": "names no file",
    "/": "names no file",
    "sub/": "names no file",
    "sub": "a directory is in its place",
    "..": "'..' may not be in a path",
    "../secret": "'..' may not be in a path",
    "sub/../../secret": "'..' may not be in a path",
    "sub/../plain": "'..' may not be in a path",
    "/etc/passwd": "outside of the directory",
    "/proc/self/environ": "outside of the directory",
    "//etc/passwd": "outside of the directory",
    "plain\0": "NUL",
    "\0": "NUL",
    "\udcff\ud800": "half a character",
    "link-out": "a symbolic link",
    "link-in": "a symbolic link",
    "link-nowhere": "a symbolic link",
    "dir-out/secret": "a symbolic link",
    "dir-out/files/plain": "a symbolic link",
    "dir-in/deep": "a symbolic link",
    "fifo": "a named pipe",
    "plain/below": "a file is in its place or in its way",
}


@pytest.mark.parametrize("way", ["open_to_read", "open_to_write"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(root: TransferRoot, outside: Path, name: str, way: str) -> None:
    before = open_files()
    with pytest.raises(FileRefused) as caught:
        getattr(root, way)(name)
    assert REFUSED[name] in str(caught.value)
    assert "\0" not in str(caught.value)
    assert open_files() == before
    assert outside.read_text() == "secret"
    assert (root.path / "plain").read_text() == "plain"
    assert not outside.with_name("made").exists()


def test_an_absolute_path_out_of_the_root_through_its_own_name(root: TransferRoot) -> None:
    for name in (f"{root.path}/../secret", f"{root.path}-beside/file", str(root.path.parent / "secret")):
        with pytest.raises(FileRefused):
            root.open_to_read(name)


def test_percent_signs_are_part_of_a_name(root: TransferRoot) -> None:
    with pytest.raises(FileNotFoundError):
        root.open_to_read("%2e%2e/secret")
    with root.open_to_write("%2e%2e%2fsecret") as file:
        file.write(b"here")
    assert (root.path / "%2e%2e%2fsecret").read_bytes() == b"here"


def test_a_socket_is_refused(root: TransferRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        with pytest.raises(FileRefused, match="a socket"):
            root.open_to_read("socket")


def test_devices_are_refused() -> None:
    for name in ("null", "zero", "tty", "/dev/null"):
        for way in ("open_to_read", "open_to_write"):
            with pytest.raises(FileRefused, match="a device"):
                getattr(TransferRoot(Path("/dev")), way)(name)


def test_magic_links_of_proc_are_refused() -> None:
    with pytest.raises(FileRefused, match="a symbolic link"):
        TransferRoot(Path("/proc")).open_to_read("self/environ")
    with pytest.raises(FileRefused, match="a symbolic link"):
        TransferRoot(Path(f"/proc/{os.getpid()}")).open_to_read("root/etc/passwd")


def test_what_changes_after_the_check_leads_nobody_out(root: TransferRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel refuses, too: every look at a file sees a plain one or a directory here, whatever it is."""
    look, plain = os.stat, (root.path / "plain").stat()

    def deceived(path: str, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> os.stat_result:
        if dir_fd is None:
            return look(path, follow_symlinks=follow_symlinks)
        return look(root.path) if path.startswith("dir") else plain

    monkeypatch.setattr(os, "stat", deceived)
    before = open_files()
    for name in ("link-out", "link-in", "dir-out/secret", "fifo", "sub"):
        for way in ("open_to_read", "open_to_write"):
            with pytest.raises(FileRefused):
                getattr(root, way)(name)
    assert open_files() == before


def test_what_is_not_there_is_told_apart(root: TransferRoot) -> None:
    for name in ("missing", "missing/file"):
        with pytest.raises(FileNotFoundError):
            root.open_to_read(name)
    with pytest.raises(FileNotFoundError):
        root.open_to_write("missing/file")
    assert not (root.path / "missing").exists()


def test_the_root_may_be_a_link_and_is_made_private(root: TransferRoot, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root.path)
    with TransferRoot(tmp_path / "link").open_to_read("plain") as file:
        assert file.read() == b"plain"
    with TransferRoot(tmp_path / "fresh").open_to_write("file") as file:
        file.write(b"x")
    assert stat.S_IMODE((tmp_path / "fresh").stat().st_mode) == 0o700


def test_the_default_is_in_the_data_directory() -> None:
    assert Settings().files == data_directory() / "files"
