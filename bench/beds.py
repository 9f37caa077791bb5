"""Where the benchmarks run: a real sshd for which each address 127.x.y.z is a host.

It has a network of its own, which needs root; whatever is to reach it is started in there.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.openssh import Option, UserSshd, why_no_user_sshd, why_no_world

ROOT = Path(__file__).resolve().parent.parent

MANY: Mapping[str, Option] = {"MaxStartups": 100_000, "MaxSessions": 100}
"""Limits that no client meets: what is measured is the client, and not how it gets along with limits."""


@dataclass(frozen=True)
class Bed:
    """An sshd, and the files that a client needs to log in to it."""

    directory: Path
    sshd: UserSshd
    port: int

    def environment(self) -> dict[str, str]:
        """What a client sees: nobody's configuration, and no agent."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "PYTHONPATH") if name in os.environ}
        return {"LANG": "C.UTF-8"} | kept | {"HOME": str(self.directory / "home")}

    def start(self, command: Sequence[str], **more: Any) -> subprocess.Popen[bytes]:
        """Start a program where it can reach the hosts."""
        with self.sshd.network():
            return subprocess.Popen(command, cwd=ROOT, env=self.environment(), **more)

    def known_hosts(self, hosts: Sequence[str]) -> Path:
        """Write the file with a line for each host, as ssh-keyscan does."""
        path = self.directory / f"known_hosts-{self.port}-{len(hosts)}"
        path.write_text("".join(f"[{host}]:{self.port} {self.sshd.host_key}\n" for host in hosts))
        return path


def addresses(count: int) -> list[str]:
    """Give the addresses of so many hosts."""
    return [f"127.{1 + number // 62_500}.{number // 250 % 250}.{1 + number % 250}" for number in range(count)]


def why_no_bed() -> str | None:
    """Say in one line why there can be none here; ``None`` if there can."""
    return why_no_user_sshd() or why_no_world()


@contextlib.contextmanager
def bed() -> Iterator[Bed]:
    """Start an sshd for as long as the context lasts."""
    if why := why_no_bed():
        raise SystemExit(f"bench: no sshd can be started here: {why}")
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="reemote-bench-", dir=memory if memory.is_dir() else None) as name:
        directory = Path(name)
        directory.chmod(0o711)
        (directory / "home").mkdir()
        with UserSshd(directory / "sshd", MANY, listen="0.0.0.0", private_network=True) as sshd:
            yield Bed(directory, sshd, sshd.port)


@contextlib.contextmanager
def delayed(where: Bed, delay: float) -> Iterator[Bed]:
    """Give the same hosts behind a proxy, which holds back for *delay* seconds what it hears."""
    command = [sys.executable, "-m", "bench.proxy", f"{where.sshd.host}:{where.port}", str(delay)]
    with where.start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield Bed(where.directory, where.sshd, int(process.stdout.readline()))
        process.stdin.close()
