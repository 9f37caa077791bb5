"""Deployments that lay out a tree: the second run finds all as it should be, and says so."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from reemote.core.operation import Effect, Operation
from reemote.core.response import Response
from reemote.execute import execute
from reemote.scp import Upload
from reemote.sftp import Chmod, Copy, Directory, Put, Setstat, Symlink, Sync, Write
from tests.sftp.conftest import KINDS, Hosted
from tests.sftp.test_transfers import BIG, OLD_TIME, TREE, grown, mode, plant, tree

pytestmark = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    local = tmp_path_factory.mktemp("local")
    plant(
        local, {"app.conf": b"port = 80\n", "big": BIG, **{f"site/{name}": content for name, content in TREE.items()}}
    )
    (local / "site/file").chmod(0o755)
    return local


class Site(Operation[None]):
    """Lay out the files of a site: an operation that is made of others."""

    effect = Effect.ENSURES

    local: str
    """Where its files are here."""
    path: str
    """The directory on the host."""

    async def execute(self) -> Response[None]:
        """Make what is missing."""
        await Directory(path=self.path, present=True, permissions=0o750)
        await Sync(localpath=f"{self.local}/site", remotepath=f"{self.path}/site", delete=True, exclude=["*.log"])
        await Symlink(file_path="site", link_path=f"{self.path}/current")
        return Response(value=None)


@dataclass
class Layout:
    """The deployment: every kind of step that brings about a state."""

    local: Path
    path: Callable[[str], str]
    responses: list[Response[Any]] = field(default_factory=list)

    async def execute(self) -> Response[None]:
        local, path = self.local, self.path
        steps: list[Operation[Any]] = [
            Directory(path=path("etc/app/conf.d"), present=True, permissions=0o755),
            Directory(path=path("var"), present=True, permissions=0o1777),
            Directory(path=path("old"), present=False, recurse=True),
            Put(localpaths=local / "app.conf", remotepath=path("etc/app/app.conf"), checksum=True),
            Put(localpaths=local / "big", remotepath=path("var/big"), checksum=True, preserve=True),
            Put(localpaths=local / "site", remotepath=path("var"), recurse=True, checksum=True),
            Upload(srcpaths=[local / "app.conf", local / "big"], dstpath=path("etc/app/conf.d"), checksum=True),
            Write(path=path("etc/motd"), text="Welcome\n", permissions=0o644),
            Write(path=path("etc/secret"), text="secret", permissions=0o600),
            Chmod(path=path("etc/app/app.conf"), permissions=0o640),
            # Reading sets the time of access, unless that is later than now.
            Setstat(path=path("etc/motd"), permissions=0o644, mtime=OLD_TIME, atime=4_000_000_000),
            Symlink(file_path="app/app.conf", link_path=path("etc/app.conf")),
            Symlink(file_path="/nowhere", link_path=path("var/dangling")),
            Copy(srcpaths=path("etc/motd"), dstpath=path("etc/issue"), checksum=True),
            Sync(localpath=local / "site", remotepath=path("srv/site")),
            Site(local=str(local), path=path("srv/www")),
        ]
        for step in steps:
            self.responses.append(await step)
        return Response(value=None)


async def lay_out(host: Hosted, local: Path) -> tuple[Response[Any], dict[str, Any]]:
    """Run the deployment, and give its response and those of its steps."""
    layouts: list[Layout] = []

    def make() -> Layout:
        layouts.append(Layout(local, host.path))
        return layouts[-1]

    whole = (await execute(make, host.inventory, pool=host.pool))[0]
    assert not whole["error"], whole
    return whole, {f"{number}": response for number, response in enumerate(layouts[0].responses)}


async def test_the_second_run_changes_nothing(host: Hosted, local: Path) -> None:
    host.folder("old")
    host.file("old/file")
    whole, steps = await lay_out(host, local)
    assert whole["changed"] is True
    unchanged = [number for number, response in steps.items() if not response["changed"]]
    assert unchanged == []
    check(host, local)
    before = {path: (path.lstat().st_ino, path.lstat().st_ctime_ns) for path in host.root.rglob("*")}

    whole, steps = await lay_out(host, local)
    assert [number for number, response in steps.items() if response["changed"]] == []
    assert whole["changed"] is False
    after = {path: (path.lstat().st_ino, path.lstat().st_ctime_ns) for path in host.root.rglob("*")}
    assert after == before, "nothing was touched, either"


def check(host: Hosted, local: Path) -> None:
    """See that all is as the deployment says."""
    found = grown(host.root)
    assert "old" not in found
    modes = {
        "etc/app/conf.d": 0o755,
        "var": 0o1777,
        "etc/app/app.conf": 0o640,
        "etc/app/conf.d/big": 0o644,
        "etc/motd": 0o644,
        "etc/secret": 0o600,
        "srv/site/file": 0o755,
        "srv/www": 0o750,
    }
    assert {name: oct(mode(host.root / name)) for name in modes} == {name: oct(bits) for name, bits in modes.items()}
    assert found["etc/app.conf"] == "app/app.conf"
    assert found["etc/issue"] == b"Welcome\n"
    assert found["srv/www/current"] == "site"
    for top in ("var/site", "srv/site", "srv/www/site"):
        assert grown(host.root / top) == tree()
    assert found["var/big"] == BIG
    assert not [name for name in found if "reemote" in name]


async def test_a_run_mends_what_somebody_changed(host: Hosted, local: Path) -> None:
    await lay_out(host, local)
    (host.root / "etc/motd").write_bytes(b"defaced\n")
    (host.root / "srv/www/site/file").unlink()
    (host.root / "srv/www").chmod(0o777)
    (host.root / "etc/app.conf").unlink()
    host.link("etc/app.conf", "app/app.conf")
    shutil.rmtree(host.root / "var/site/sub")
    (host.root / "srv/www/site/more.log").write_bytes(b"a log")
    whole, steps = await lay_out(host, local)
    assert whole["changed"] is True
    # The site, the text, and what sets the text's times again; the text's copy has gone nowhere.
    assert [number for number, response in steps.items() if response["changed"]] == ["5", "7", "10", "15"]
    check_log = host.root / "srv/www/site/more.log"
    assert check_log.read_bytes() == b"a log"
    check_log.unlink()
    check(host, local)
    whole, _ = await lay_out(host, local)
    assert whole["changed"] is False


async def test_a_new_version_is_put_in_place(host: Hosted, local: Path) -> None:
    await lay_out(host, local)
    (local / "app.conf").write_bytes(b"port = 81\n")  # of the same size
    (local / "site/sub/link").unlink()
    (local / "site/sub/link").write_bytes(b"now a file")
    os.utime(local / "site/nothing", (OLD_TIME, OLD_TIME))
    whole, steps = await lay_out(host, local)
    assert whole["changed"] is True
    changed = [number for number, response in steps.items() if response["changed"]]
    assert changed == ["3", "5", "6", "14", "15"]
    assert (host.root / "etc/app/app.conf").read_bytes() == b"port = 81\n"
    assert mode(host.root / "etc/app/app.conf") == 0o640
    assert steps["14"]["value"] == {"added": [], "changed": ["sub/link"], "removed": [], "skipped": []}
    whole, _ = await lay_out(host, local)
    assert whole["changed"] is False
