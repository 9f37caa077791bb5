"""Hosts of several kinds, each with a folder that the tests see, too."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from reemote.core.host import Transport
from reemote.core.operation import Operation
from reemote.core.response import Response
from reemote.execute import Pool, execute
from reemote.inventory import Inventory
from reemote.testing import Fake, sandbox
from tests.openssh import UserSshd, why_no_user_sshd

KINDS = [
    "fake",
    "sandbox",
    pytest.param("internal-sftp", marks=pytest.mark.slow),
    pytest.param("sftp-server", marks=pytest.mark.slow),
]

SERVERS = ["/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/libexec/sftp-server"]

_numbers = itertools.count()


@dataclass
class Hosted:
    """A host with a folder of its own for a test."""

    kind: str
    root: Path
    """The folder, as the tests see it."""
    where: str
    """The folder, as the host sees it."""
    uid: int
    """The user whom the host's operations are done as."""
    inventory: Inventory
    pool: Transport

    async def run(self, operation: Operation[Any], **options: Any) -> Response[Any]:
        """Run one operation, and give its response."""
        return (await execute(lambda: operation, inventory=self.inventory, pool=self.pool, **options))[0]

    async def value(self, operation: Operation[Any]) -> Any:
        """Run an operation that succeeds and changes nothing, and give its value."""
        response = await self.run(operation)
        assert not response["error"], response
        assert response["changed"] is False
        return response["value"]

    async def changed(self, operation: Operation[Any]) -> bool:
        """Run an operation that succeeds, and tell whether something changed."""
        response = await self.run(operation)
        assert not response["error"], response
        assert response["value"] is None
        return bool(response["changed"])

    async def failure(self, operation: Operation[Any], *, changed: bool = False) -> Response[Any]:
        """Run an operation that fails, and give its response."""
        response = await self.run(operation)
        assert response["error"], response
        assert response["changed"] is changed, response
        assert response["outcome"] == "completed"
        return response

    def path(self, name: str = "") -> str:
        """Give the path of a name in the folder."""
        return f"{self.where}/{name}"

    def file(self, name: str | bytes, content: bytes = b"content", mode: int = 0o644) -> Path:
        """Make a file."""
        path = self.root / os.fsdecode(name)
        path.write_bytes(content)
        path.chmod(mode)
        return self._owned(path)

    def folder(self, name: str | bytes, mode: int = 0o755) -> Path:
        """Make a folder."""
        path = self.root / os.fsdecode(name)
        path.mkdir()
        path.chmod(mode)
        return self._owned(path)

    def link(self, name: str | bytes, target: str | bytes) -> Path:
        """Make a symbolic link."""
        path = self.root / os.fsdecode(name)
        path.symlink_to(os.fsdecode(target))
        return self._owned(path)

    def names(self, folder: str = "") -> list[str]:
        """List a folder."""
        return sorted(path.name for path in (self.root / folder).iterdir())

    def mode(self, name: str) -> int:
        """Give the permissions of a file."""
        return (self.root / name).lstat().st_mode & 0o7777

    def _owned(self, path: Path) -> Path:
        if os.geteuid() == 0:
            os.lchown(path, self.uid, self.uid)
        return path


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def external_sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UserSshd]:
    """A server whose files are served by a program of its own."""
    program = next((path for path in SERVERS if Path(path).exists()), None)
    if reason := why_no_user_sshd() or (None if program else "needs sftp-server"):
        pytest.skip(f"OpenSSH: {reason}")
    directory = tmp_path_factory.mktemp("sshd") / "external"
    with UserSshd(directory, {"Subsystem": f"sftp {program}"}) as server:
        yield server


@pytest.fixture
def server(request: pytest.FixtureRequest, kind: str) -> UserSshd | None:
    """The server that all tests of a kind share, started before the test's leaks are counted."""
    shared = {"internal-sftp": "user_sshd", "sftp-server": "external_sshd"}
    return request.getfixturevalue(shared[kind]) if kind in shared else None


@pytest.fixture
async def host(kind: str, server: UserSshd | None, tmp_path: Path, nothing_left: None) -> AsyncIterator[Hosted]:
    if kind == "fake":
        fake = Fake("server104")
        root = fake.files("server104") / "folder"
        root.mkdir()
        yield Hosted(kind, root, "/folder", os.geteuid(), fake.inventory, fake)
        return
    if server is None:
        async with sandbox("server104") as inventory, Pool() as pool:
            yield Hosted(kind, tmp_path.resolve(), str(tmp_path.resolve()), os.geteuid(), inventory, pool)
        return
    root = server.served / f"folder-{next(_numbers)}"
    root.mkdir()
    if os.geteuid() == 0:
        os.chown(root, server.uid, server.uid)
    inventory = Inventory.of({"hosts": [{"connection": server.connection()}]})
    async with Pool() as pool:
        yield Hosted(kind, root, str(root), server.uid, inventory, pool)
