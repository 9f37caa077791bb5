"""How other libraries and programs do what ``bench.clients`` asks of them, each as its documentation shows.

Libraries do it in this process. Programs are started by it, and are measured without it.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .clients import CONNECTED, Clock, Heard, Spec, Task

PARALLEL = 25
"""How many ssh programs run at a time where each connects: 16 to 32 are quickest on two processors."""


# Libraries. Those that have types have them only where they are installed.


def parallel_ssh_tasks() -> dict[str, Task]:
    clients = importlib.import_module("pssh.clients")

    def client(spec: Spec) -> Any:
        login = {"user": spec.username, "port": spec.port, "pkey": spec.key}
        return clients.ParallelSSHClient(spec.hosts, allow_agent=False, identity_auth=False, **login)

    def run(client: Any, texts: list[str], heard: Heard) -> None:
        for text in texts:
            for output in client.run_command(text):
                heard.setdefault(output.host, []).extend(output.stdout)
            client.join()

    return tasks_of(client, run, lambda _: None)


def fabric_tasks() -> dict[str, Task]:
    fabric = importlib.import_module("fabric")

    def group(spec: Spec) -> Any:
        login = {"key_filename": spec.key, "allow_agent": False, "look_for_keys": False}
        return fabric.ThreadingGroup(*spec.hosts, user=spec.username, port=spec.port, connect_kwargs=login)

    def run(group: Any, texts: list[str], heard: Heard) -> None:
        for text in texts:
            for connection, result in group.run(text, hide=True, in_stream=False).items():
                heard.setdefault(connection.host, []).append(result.stdout)

    return tasks_of(group, run, lambda group: group.close())


def tasks_of(
    make: Callable[[Spec], Any],
    run: Callable[[Any, list[str], Heard], None],
    close: Callable[[Any], None],
    ready: Sequence[str] = (f"echo {CONNECTED}",),
) -> dict[str, Task]:
    """Make the tasks of a client; *ready* is what it runs to be connected."""

    def cold(spec: Spec, clock: Clock) -> Heard:
        heard: Heard = {}
        with clock:
            client = make(spec)
            run(client, spec.texts, heard)
            close(client)
        return heard

    def warm(spec: Spec, clock: Clock) -> Heard:
        heard: Heard = {}
        client = make(spec)
        run(client, list(ready), {})
        with clock:
            run(client, spec.texts, heard)
        close(client)
        return heard

    def connect(spec: Spec, clock: Clock) -> Heard:
        heard: Heard = {}
        with clock:
            for _ in range(spec.repeat):
                client = make(spec)
                run(client, spec.texts, heard)
                close(client)
        return heard

    return {"cold": cold, "warm": warm, "connect": connect}


def pyinfra_tasks() -> dict[str, Task]:
    importlib.import_module("gevent.monkey").patch_all()
    api = importlib.import_module("pyinfra.api")
    connect = importlib.import_module("pyinfra.api.connect")
    operation = importlib.import_module("pyinfra.api.operation")
    operations = importlib.import_module("pyinfra.api.operations")
    server = importlib.import_module("pyinfra.operations.server")

    def connected(spec: Spec) -> Any:
        login = {
            "ssh_user": spec.username,
            "ssh_port": spec.port,
            "ssh_key": spec.key,
            "ssh_known_hosts_file": spec.known_hosts,
            "ssh_strict_host_key_checking": "yes",
            "ssh_allow_agent": False,
            "ssh_look_for_keys": False,
        }
        state = api.State(api.Inventory((spec.hosts, login)), api.Config())
        connect.connect_all(state)
        return state

    def run(state: Any, texts: list[str], heard: Heard) -> None:
        if not texts:
            return
        done = [operation.add_op(state, server.shell, commands=[text]) for text in texts]
        operations.run_ops(state, no_wait=True)
        for each in done:
            for host, result in each.items():
                heard.setdefault(host.name, []).append(result.stdout)

    # It is connected when it is made; and a state does again what it has done.
    return tasks_of(connected, run, connect.disconnect_all, ready=())


# Programs


def openssh_tasks(*options: str) -> dict[str, Task]:
    """Use ssh, side by side with xargs; over connections that stand, with masters."""

    def ssh(spec: Spec, *more: str) -> str:
        return shlex.join(["ssh", "-F", configuration(spec), *options, *more])

    def run(spec: Spec, parallel: int, script: str) -> Heard:
        """Run a script for each host, which is its ``$0``; each line that it says begins with that."""
        command = ["xargs", "-P", str(parallel), "-n", "1", "sh", "-e", "-c", script]
        done = subprocess.run(command, input="\n".join(spec.hosts), stdout=subprocess.PIPE, text=True, check=True)
        heard: Heard = {}
        for line in done.stdout.splitlines():
            host, _, said = line.partition(" ")
            heard.setdefault(host, []).append(said)
        return heard

    def script(spec: Spec, *more: str) -> str:
        """Many write to one pipe, a line at a time: each line must say whose it is."""
        lines = [f'{ssh(spec, *more)} "$0" "echo $0 {text.removeprefix("echo ")}"' for text in spec.texts]
        return "\n".join([*lines[:-1], f"exec {lines[-1]}"])

    def cold(spec: Spec, clock: Clock) -> Heard:
        with programs(spec), clock:
            return run(spec, PARALLEL, script(spec))

    def warm(spec: Spec, clock: Clock) -> Heard:
        socket = ["-S", f"{spec.directory}/%h"]
        with programs(spec) as used:
            master = f'exec {ssh(spec, *socket, "-M", "-f", "-N", "-o", "ControlPersist=yes")} "$0" >/dev/null'
            run(spec, PARALLEL, master)
            with clock:
                before = used()
                heard = run(spec, len(spec.hosts), script(spec, *socket))
                clock.cpu += used() - before
        return heard

    def connect(spec: Spec, clock: Clock) -> Heard:
        with programs(spec), clock:
            loop = f"for each in $(seq {spec.repeat}); do\n{script(spec).replace('exec ', '')}\ndone"
            return run(spec, 1, loop)

    return {"cold": cold, "warm": warm, "connect": connect}


def configuration(spec: Spec) -> str:
    """Write the configuration of OpenSSH."""
    path = Path(spec.directory, "ssh_config")
    lines = {
        "Port": spec.port,
        "User": spec.username,
        "IdentityFile": spec.key,
        "UserKnownHostsFile": spec.known_hosts,
        "GlobalKnownHostsFile": "/dev/null",
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "BatchMode": "yes",
        "LogLevel": "ERROR",
    }
    path.write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
    return str(path)


def ansible_tasks() -> dict[str, Task]:
    """Use the module raw of Ansible, which needs nothing on the hosts; ssh keeps its connections."""

    def run(spec: Spec, texts: list[str]) -> Heard:
        directory = Path(spec.directory)
        (directory / "hosts").write_text("".join(f"{host}\n" for host in spec.hosts))
        play = {"hosts": "all", "gather_facts": False, "tasks": [{"raw": text} for text in texts]}
        (directory / "play.yml").write_text(json.dumps([play]))
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        command = [program, "-v", "-f", str(len(spec.hosts)), "-i", "hosts", "play.yml"]
        settings = {
            "ANSIBLE_SSH_COMMON_ARGS": f"-F {configuration(spec)}",
            "ANSIBLE_SSH_CONTROL_PATH_DIR": spec.directory,
            "ANSIBLE_SSH_USETTY": "no",
            "ANSIBLE_LOCAL_TEMP": spec.directory,
            "ANSIBLE_NOCOLOR": "yes",
        }
        environment = {**os.environ, **settings}
        done = subprocess.run(
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stdout)
        heard: Heard = {}
        for host, result in re.findall(r"^changed: \[(.*?)\] => (\{.*\})$", done.stdout, re.MULTILINE):
            heard.setdefault(host, []).append(json.loads(result)["stdout"])
        return heard

    def cold(spec: Spec, clock: Clock) -> Heard:
        with clock, programs(spec):
            return run(spec, spec.texts)

    def warm(spec: Spec, clock: Clock) -> Heard:
        with programs(spec) as used:
            run(spec, [f"echo {CONNECTED}"])
            with clock:
                before = used()
                heard = run(spec, spec.texts)
                clock.cpu += used() - before
        return heard

    return {"cold": cold, "warm": warm}


@contextlib.contextmanager
def programs(spec: Spec) -> Iterator[Callable[[], float]]:
    """Let programs run, and end those that go on in the background, so that their time counts.

    Gives a function for the seconds of processors that those have had which still run.
    """
    # What loses its parent comes to this process (PR_SET_CHILD_SUBREAPER).
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    sampling = Sampling() if spec.sample else contextlib.nullcontext()
    with sampling:
        try:
            yield lambda: sum(running_time(pid) for pid in descendants())
        finally:
            for pid in children(os.getpid()):
                os.kill(pid, signal.SIGTERM)
            with contextlib.suppress(ChildProcessError):
                while True:
                    os.wait()


def children(pid: int) -> list[int]:
    """Give the processes that a process has started; none where it has gone meanwhile."""
    with contextlib.suppress(OSError):
        return [int(each) for file in Path(f"/proc/{pid}/task").glob("*/children") for each in file.read_text().split()]
    return []


def descendants() -> list[int]:
    found = children(os.getpid())
    for pid in found:
        found += children(pid)
    return found


def running_time(pid: int) -> float:
    """Give the seconds of processors that a process has had (schedstat, which is finer than proc(5)'s stat)."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    return 0.0


class Sampling(contextlib.AbstractContextManager[None]):
    """Look again and again how much memory all the programs have together; shared memory counts once.

    This takes time of processors: it is done in runs that are not counted.
    """

    most = 0.0

    def __init__(self) -> None:
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(0.02):
            Sampling.most = max(Sampling.most, sum(proportional_size(pid) for pid in descendants()))


def proportional_size(pid: int) -> float:
    """Give the memory of a process in MiB, its share of what it shares."""
    with contextlib.suppress(OSError):
        found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
        return int(found[1]) / 1024 if found else 0.0
    return 0.0
