"""Dry runs of file operations: what they answer is what would happen, and nothing changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reemote import Steps
from reemote.scp import Upload
from reemote.sftp import (
    Chdir,
    Chmod,
    Copy,
    Directory,
    Get,
    Link,
    Makedirs,
    Mkdir,
    Put,
    Read,
    Remove,
    Rename,
    Rmdir,
    Rmtree,
    Symlink,
    Sync,
    Truncate,
    Write,
)  # fmt: skip
from tests.sftp.conftest import Hosted


async def predicted(host: Hosted, operation: Any) -> Any:
    """Run an operation dry, and check that nothing has changed on the host."""
    before = snapshot(host)
    response = await host.run(operation, dry_run=True)
    assert snapshot(host) == before
    return response


def snapshot(host: Hosted) -> dict[str, Any]:
    found = {}
    for path in sorted(host.root.rglob("*")):
        status = path.lstat()
        found[str(path)] = (status.st_mode, status.st_size, status.st_mtime_ns, status.st_ino)
    return found


CHANGES: list[Callable[[Callable[[str], Any], Path], Any]] = [
    lambda path, _: Mkdir(path=path("new")),
    lambda path, _: Makedirs(path=path("new/deep")),
    lambda path, _: Directory(path=path("new/deep"), present=True),
    lambda path, _: Directory(path=path("full"), present=False, recurse=True),
    lambda path, _: Rmdir(path=path("empty")),
    lambda path, _: Rmtree(path=path("full")),
    lambda path, _: Remove(path=path("file")),
    lambda path, _: Rename(oldpath=path("file"), newpath=path("other")),
    lambda path, _: Symlink(file_path="file", link_path=path("link")),
    lambda path, _: Link(file_path=path("file"), link_path=path("link")),
    lambda path, _: Truncate(path=path("file"), size=1),
    lambda path, _: Chmod(path=path("file"), permissions=0o600),
    lambda path, _: Write(path=path("file"), text="other\n"),
    lambda path, _: Write(path=path("new"), text="text\n"),
    lambda path, _: Write(path=path("file"), text="more\n", mode="a"),
    lambda path, here: Put(localpaths=here / "differs", remotepath=path("file")),
    lambda path, here: Put(localpaths=here / "differs", remotepath=path("file"), checksum=True),
    lambda path, here: Put(localpaths=here, remotepath=path("tree"), recurse=True),
    lambda path, here: Upload(srcpaths=here / "differs", dstpath=path("new")),
    lambda path, _: Copy(srcpaths=path("file"), dstpath=path("copy")),
]

NO_CHANGES: list[Callable[[Callable[[str], Any], Path], Any]] = [
    lambda path, _: Directory(path=path("empty"), present=True),
    lambda path, _: Directory(path=path("missing"), present=False),
    lambda path, _: Chmod(path=path("file"), permissions=0o644),
    lambda path, _: Write(path=path("file"), text="content\n"),
    lambda path, here: Put(localpaths=here / "same", remotepath=path("file"), checksum=True),
    lambda path, _: Chdir(path=path("empty")),
]


@pytest.fixture
def prepared(host: Hosted, tmp_path: Path) -> Path:
    """Plant the files that the operations are about; give the directory on this machine."""
    host.file("file", b"content\n")
    host.folder("empty")
    host.folder("full")
    host.file("full/x")
    here = tmp_path / "here"
    here.mkdir()
    (here / "same").write_text("content\n")
    (here / "differs").write_text("other\n")
    return here


@pytest.mark.parametrize("make", CHANGES)
async def test_what_would_change(host: Hosted, prepared: Path, make: Callable[..., Any]) -> None:
    response = await predicted(host, make(host.path, prepared))
    assert (response["error"], response["changed"], response.skipped) == (False, True, False), response


@pytest.mark.parametrize("make", NO_CHANGES)
async def test_what_would_not_change(host: Hosted, prepared: Path, make: Callable[..., Any]) -> None:
    response = await predicted(host, make(host.path, prepared))
    assert (response["error"], response["changed"], response.skipped) == (False, False, False), response


async def test_what_would_fail_fails(host: Hosted, prepared: Path) -> None:
    for operation, kind in {
        Write(path=host.path("empty"), text="x"): "SFTPFailure",
        Directory(path=host.path("file"), present=True): "SFTPFailure",
        Put(localpaths=prepared / "missing", remotepath=host.path("x")): "FileNotFoundError",
        Chmod(path=host.path("missing"), permissions=0o600): "SFTPNoSuchFile",
    }.items():
        response = await predicted(host, operation)
        assert (response["error"], str(response["value"]), response["changed"]) == (True, kind, False)


async def test_the_change_of_a_text_is_shown(host: Hosted, prepared: Path) -> None:
    path = host.path("file")
    response = await predicted(host, Write(path=path, text="content\nmore\n"))
    assert response.diff.splitlines()[2:] == ["@@ -1 +1,2 @@", " content", "+more"]
    assert path in response.diff.splitlines()[0]
    assert (await predicted(host, Write(path=path, text="more", mode="a"))).diff.splitlines()[-1] == "+more"
    new = await predicted(host, Write(path=host.path("new"), text="a\n"))
    assert new.diff.splitlines()[2:] == ["@@ -0,0 +1 @@", "+a"]
    assert (await predicted(host, Write(path=path, text=b"\xff\x00"))).diff == ""
    assert (await predicted(host, Write(path=path, text="content\n"))).diff == ""


async def test_a_synchronization_tells_what_it_would_do(host: Hosted, prepared: Path) -> None:
    host.file("full/gone")
    response = await predicted(host, Sync(localpath=prepared, remotepath=host.path("full"), delete=True))
    assert response["changed"]
    assert response["value"] == {"added": ["differs", "same"], "changed": [], "removed": ["gone", "x"], "skipped": []}
    done = await host.run(Sync(localpath=prepared, remotepath=host.path("full"), delete=True))
    assert done["value"] == response["value"]
    again = await predicted(host, Sync(localpath=prepared, remotepath=host.path("full"), delete=True))
    assert (again["changed"], again["value"]["added"]) == (False, [])
    assert (await predicted(host, Sync(localpath=prepared, remotepath=host.path("new"))))["changed"]


async def test_downloads_change_nothing_here(host: Hosted, prepared: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    response = await predicted(host, Get(remotepaths=host.path("file"), localpath=target))
    assert (response["error"], response["changed"]) == (False, True)
    assert not target.exists()


async def test_a_deployment_reads_what_is_there(host: Hosted, prepared: Path) -> None:
    class Root:
        async def execute(self) -> Steps:
            yield Write(path=host.path("file"), text="new\n")
            found = yield Read(path=host.path("file"))
            assert found["value"] == "content\n"

    response = await predicted(host, Root())
    assert (response["value"], response["changed"]) == ("content\n", False)
