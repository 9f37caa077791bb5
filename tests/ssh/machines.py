"""A machine with users of many kinds, for the tests of privileges and of how commands end."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from reemote.core.response import Response, Responses
from reemote.execute import execute
from reemote.inventory import Inventory
from reemote.system import Return
from tests.openssh import Machine, Option, RootWorld, User, why_no_world

ALL = "ALL=(ALL:ALL) ALL"
SOME = "/usr/bin/printf, /usr/bin/id, /usr/bin/cat, /usr/bin/sleep"

USERS = (
    User("user", "password", key=True, sudo=ALL),
    User("free", key=True, sudo="ALL=(ALL:ALL) NOPASSWD: ALL"),
    User("tty", "password", key=True, sudo=ALL, defaults="requiretty"),
    User("single", "password", key=True, sudo=f"ALL=(ALL:ALL) {SOME}"),
    User("single_free", "password", key=True, sudo=f"ALL=(ALL:ALL) NOPASSWD: {SOME}"),
    User("nosudo", "password", key=True),
    User("dash", "password", key=True, sudo=ALL, shell="/bin/dash"),
    User("other", "other-password", key=True),
    User("root", "root-password", key=True),
)
"""Who asks sudo for what: with a password, without, on a terminal only, for some programs only, not at all."""

SUDO_LOG = "/var/log/sudo.log"

SUDOERS = f"Defaults logfile={SUDO_LOG}, loglinelen=0\n"

SU: dict[str, Any] = {"su_password": "root-password"}
SUDO: dict[str, Any] = {"sudo_password": "password"}


class Site:
    """A machine in a world of its own, and what the tests do there."""

    def __init__(self, world: RootWorld) -> None:
        self.world = world

    @property
    def machine(self) -> Machine:
        """The machine; there is one."""
        return next(iter(self.world.machines.values()))

    def host(self, user: str = "user", *, connection: dict[str, Any] | None = None, **authentication: Any) -> Any:
        """A host of an inventory: the machine, for one of its users."""
        options = {
            "host": user,
            "address": self.machine.address,
            "username": user,
            "client_keys": [str(self.world.client_key)],
            "known_hosts": f"* {self.machine.host_key}\n".encode(),
        }
        return {"connection": options | (connection or {}), "authentication": authentication}

    async def every(self, factory: Any, *hosts: Any, **options: Any) -> Responses:
        """Run a deployment on hosts."""
        return await execute(factory, Inventory.of({"hosts": list(hosts)}), **options)

    async def run(self, step: Any, user: str = "user", **authentication: Any) -> Response[Any]:
        """Run one step as one of the users."""
        return (await self.every(lambda: step, self.host(user, **authentication)))[0]

    def sudo_log(self) -> list[str]:
        """What sudo has done and refused, one line each."""
        path = self.machine.path(SUDO_LOG)
        return path.read_text().splitlines() if path.exists() else []

    def commands(self, text: str) -> list[str]:
        """The command lines on the machine with this text in them."""
        return [line for _, line in self._processes(text)]

    def signal(self, text: str, number: signal.Signals) -> None:
        """Send a signal to all processes on the machine with this text in their command lines."""
        for pid, _ in self._processes(text):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _processes(self, text: str) -> list[tuple[int, str]]:
        found = []
        for pid in self.machine.pids:
            with contextlib.suppress(OSError):  # it may end at any time
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if text in line:
                    found.append((pid, line))
        return found

    @contextlib.contextmanager
    def file(self, path: str, text: str, mode: int = 0o644) -> Iterator[Path]:
        """A file on the machine, for a while; what was there comes back."""
        there = self.machine.path(path)
        before = (there.read_bytes(), there.stat().st_mode) if there.exists() else None
        there.write_text(text)
        there.chmod(mode)
        try:
            yield there
        finally:
            if before is None:
                there.unlink()
            else:
                there.write_bytes(before[0])
                there.chmod(before[1] & 0o7777)


class Steps:
    """Steps one after the other; the value is their responses."""

    def __init__(self, *steps: Any) -> None:
        self.steps = steps

    async def execute(self) -> Any:
        answers = []
        for step in self.steps:
            answers.append((yield step))
        yield Return(value=answers)


@contextlib.contextmanager
def started(
    directory: Path, *, users: Sequence[User] = USERS, sudoers: str = SUDOERS, **options: Option
) -> Iterator[Site]:
    """Start a machine; who connects to it does so within ``site.world.network()``."""
    if reason := why_no_world():
        pytest.skip(f"OpenSSH: {reason}")
    with RootWorld(directory, ["server104"], options, users=users, sudoers=sudoers) as world:
        yield Site(world)
