"""What the benchmarks of speed share: runs that take turns, in processes of their own, and that are checked.

What a run heard is checked: each host must have said, for each command, the word that only this run
knows. A run that did less, or something else, is no figure, and ends the benchmark.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reemote import Connection

from .beds import Bed
from .clients import Spec

LONGEST = 900.0
"""Seconds until a run that does not end is rejected."""

BASELINE = "asyncssh"

Run = Mapping[str, float]
"""What one run took. ``wall`` and ``cpu``: seconds, of the clock and of the processors that the client
had, for the whole program with its start; ``work_wall`` and ``work_cpu``: those of the work alone;
``peak``: the most memory, in MiB."""

Runs = dict[str, list[Run]]
"""By client."""

Figures = dict[str, dict[str, float]]
"""The medians of the runs, by client."""


class Rejected(Exception):
    """A run did not do what it should."""


@dataclass(frozen=True)
class Client:
    """One row of a table."""

    name: str
    kind: str
    """Its name in ``bench.clients``."""
    needs: str = ""
    """The distribution or the program that must be there for it."""
    task: str = ""
    """What it does, where that is not what the others do."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Connection options that Reemote is given."""
    tasks: frozenset[str] = frozenset({"cold", "warm", "connect"})
    """Those that it can do."""
    slow: bool = False
    """Measured only when it is asked for."""


CLIENTS = (
    Client("reemote", "reemote"),
    Client("reemote, runner", "reemote", options={"runner": True}, tasks=frozenset({"warm"})),
    Client(BASELINE, "asyncssh"),
    Client("asyncssh, files read once", "asyncssh-once"),
    Client("parallel-ssh", "parallel-ssh", needs="parallel-ssh"),
    Client("Fabric", "fabric", needs="fabric"),
    Client("pyinfra", "pyinfra", needs="pyinfra"),
    Client("OpenSSH ssh", "ssh", needs="xargs"),
    Client("OpenSSH ssh, curve25519", "ssh-curve25519", needs="xargs"),
    Client("Ansible raw", "ansible", needs="ansible-core", tasks=frozenset({"cold", "warm"}), slow=True),
)


@dataclass(frozen=True)
class Job:
    """What all clients do."""

    task: str
    hosts: Sequence[str]
    commands: int = 1
    repeat: int = 1
    limit: int = 0

    @property
    def said(self) -> int:
        """How many answers each host gives."""
        return self.commands * self.repeat


def available(clients: Sequence[Client]) -> list[Client]:
    """Leave out what is not there, and say so."""
    found = []
    for client in clients:
        if client.needs and not installed(client.needs):
            print(f"{client.name}: {client.needs} is not installed, so it has no row.")
        elif unknown := set(client.options) - set(Connection.model_fields):
            print(f"{client.name}: there is no connection option {', '.join(sorted(unknown))}, so it has no row.")
        else:
            found.append(client)
    return found


def installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return shutil.which(name) is not None
    return True


def measure(bed: Bed, clients: Sequence[Client], job: Job, rounds: int) -> Runs:
    """Let the clients take turns, each round from another one on: who was before may matter."""
    seen: Runs = {client.name: [] for client in clients}
    peaks: dict[str, float] = {}
    for number in range(rounds + 1):
        first = number % len(clients)
        for client in (*clients[first:], *clients[:first]):
            run = run_client(bed, client, job, sample=number == 0)
            if number == 0:  # the first round warms up
                peaks[client.name] = run["peak"]
            else:
                seen[client.name].append({**run, "peak": run["peak"] or peaks[client.name]})
    return seen


def run_client(bed: Bed, client: Client, job: Job, *, sample: bool = False) -> Run:
    """Let a client do it in a process of its own.

    Raises:
        Rejected: It failed, or did not do all of it.
    """
    word = f"word-{secrets.token_hex(8)}"
    with tempfile.TemporaryDirectory(dir=bed.directory) as directory:
        spec = specify(bed, client, job, word, directory, sample)
        wall, cpu = run_process(bed, client, spec)
        measured = json.loads(Path(spec.result).read_text())
    check(client.name, measured["heard"], job, word)
    try:
        bed.sshd.wait_idle(60)  # so that no run pays for the one before
    except TimeoutError as error:
        raise Rejected(f"{client.name}: {error}") from None
    if measured["programs"]:  # Python is not the client, and only starts it
        wall, cpu = measured["wall"], measured["cpu"]
    work = {"work_wall": measured["wall"], "work_cpu": measured["cpu"]}
    return {"wall": wall, "cpu": cpu, **work, "peak": measured["peak"], **measured["figures"]}


def specify(bed: Bed, client: Client, job: Job, word: str, directory: str, sample: bool) -> Spec:
    return Spec(
        task=client.task or job.task,
        hosts=list(job.hosts),
        port=bed.port,
        username=bed.sshd.username,
        key=str(bed.sshd.client_key),
        known_hosts=str(bed.known_hosts(job.hosts)),
        word=word,
        commands=job.commands,
        repeat=job.repeat,
        options=dict(client.options),
        directory=directory,
        result=str(Path(directory, "result.json")),
        limit=job.limit,
        sample=sample,
    )


def run_process(bed: Bed, client: Client, spec: Spec) -> tuple[float, float]:
    """Give the seconds that the process takes, and those of processors, its children's with them.

    Raises:
        Rejected: It failed.
    """
    command = [sys.executable, "-m", "bench.clients", client.kind]
    with tempfile.TemporaryFile(dir=bed.directory) as given, tempfile.TemporaryFile(dir=bed.directory) as output:
        given.write(json.dumps(spec._asdict()).encode())
        given.seek(0)
        start = time.perf_counter()
        process = bed.start(command, stdin=given, stdout=output, stderr=output)
        late = threading.Timer(LONGEST, process.kill)
        late.start()
        try:
            state, cpu = wait(process)
        finally:
            late.cancel()
            process.kill()  # where the wait was interrupted
            process.wait()
        wall = time.perf_counter() - start
        if state:
            output.seek(0)
            raise Rejected(f"{client.name} ended with {state}:\n{output.read().decode(errors='replace')}")
    return wall, cpu


def wait(process: subprocess.Popen[Any]) -> tuple[int, float]:
    """Wait for a process; give its return code, and the seconds of processors that it and its children had."""
    _, state, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(state)
    return process.returncode, usage.ru_utime + usage.ru_stime


def check(name: str, heard: Mapping[str, Sequence[str]], job: Job, word: str) -> None:
    """See that each host said all it should.

    Raises:
        Rejected: It did not.
    """
    if not job.hosts or not job.said:
        raise Rejected(f"{name}: there was nothing to do")
    if sorted(heard) != sorted(job.hosts):
        raise Rejected(f"{name}: {len(heard)} hosts answered, and not the {len(job.hosts)} that were asked")
    expected = [f"{word}-{number}" for number in range(job.commands)] * job.repeat
    for host, lines in heard.items():
        if [line.strip() for line in lines] != expected:
            raise Rejected(f"{name}: {host} said {lines!r}, not {expected!r}")


def medians(runs: Runs) -> Figures:
    """Give the median of each figure."""
    return {name: {key: statistics.median(run[key] for run in each) for key in each[0]} for name, each in runs.items()}
