"""Real OpenSSH servers for the tests: one in user mode, or a world of machines that needs root.

``UserSshd`` is one sshd on a high port that serves one ordinary user. ``RootWorld`` is a private network
in which several machines listen on port 22, each with its own file system, users, processes and host name.
``tests/lab`` makes worlds of Debian hosts out of it, with networks of their own and faults.

Nothing outlives the tests, not even after ``kill -9``: every server hangs on a pipe from the test process,
and under root a process namespace makes the kernel end whatever the server started.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import grp
import ipaddress
import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

Option = str | int | Path | Sequence[str]
"""A value in sshd_config: a bool is yes or no, a sequence repeats the keyword, the file at a Path is copied."""

# sbin is not always on the path of an ordinary user.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_DEADLINE = 10.0
_CLONE_NEWNET = 0x40000000


# What every process here ends with. The server runs as a child; `cat` stays as the first process of the
# namespace and ends with its input, which is the pipe from the test process. With SIGCHLD ignored the kernel
# buries the orphans that come to it; sh itself cannot always ignore it.
_HOLD = """
( "$@" </dev/null || true; echo "sshd exited" >&2 ) &
exec env --ignore-signal=CHLD cat >/dev/null
"""

# Arguments: directory, its closed ancestor or nothing, network or nothing, then the command.
# The server's user must reach the directory at its usual path, but pytest's directories are closed to other
# users: in this mount namespace alone an empty file system replaces the closed ancestor.
_USER_SSHD = """
directory=$1 closed=$2 network=$3
shift 3
if [ -n "$network" ]; then ip link set lo up; fi
mount --bind "$directory/passwd" /etc/passwd
mount --bind "$directory/group" /etc/group
if [ -n "$closed" ]; then
    stage=$directory/stage
    mkdir -p "$stage"
    mount -t tmpfs -o mode=755 tmpfs "$stage"
    mkdir -p "$stage/${directory#"$closed"/}"
    mount --bind "$directory" "$stage/${directory#"$closed"/}"
    mount --move "$stage" "$closed"
fi
"""

# Argument: directory.
_WORLD = """
directory=$1
ip link set lo up
mount --bind "$directory/hosts" /etc/hosts
if [ -e /etc/nsswitch.conf ]; then mount --bind "$directory/nsswitch.conf" /etc/nsswitch.conf; fi
"""

_READY = """
echo ready
exec env --ignore-signal=CHLD cat >/dev/null
"""

# Arguments: directory, name, lower root, size of the disk, then the command. The machine sees the lower root, such
# as this machine's, through an overlay, so that it may write everywhere.
_MACHINE = """
directory=$1 name=$2 root=$3 size=$4
shift 4
echo "$name" >/proc/sys/kernel/hostname
cd "$directory"
mkdir -p disk
mount -t tmpfs -o "mode=755,size=$size" tmpfs disk
cd disk
mkdir upper work new
mount -t overlay overlay -o "lowerdir=$root,upperdir=upper,workdir=work" new
mount -t tmpfs -o mode=755 tmpfs new/dev
cd new/dev
for each in full null random tty urandom zero; do
    touch "$each"
    mount --bind "/dev/$each" "$each"
done
mkdir pts shm
mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts pts
mount -t tmpfs -o mode=1777 tmpfs shm
ln -s pts/ptmx ptmx
ln -s /proc/self/fd fd
ln -s fd/0 stdin
ln -s fd/1 stdout
ln -s fd/2 stderr
cd ../..
mount -t sysfs -o ro sysfs new/sys
mount -t proc proc new/proc
mount -t tmpfs -o mode=755 tmpfs new/run
"""

# What is personal on this machine is replaced by empty directories.
_IMPERSONAL = """
mount -t tmpfs -o mode=755 tmpfs new/home
mount -t tmpfs -o mode=700 tmpfs new/root
for each in tmp var/tmp; do mount -t tmpfs -o mode=1777 tmpfs "new/$each"; done
rm -rf new/etc/ssh new/etc/sudoers.d
mkdir new/etc/sudoers.d
"""

_ENTER = """
mkdir new/run/sshd
cp -a ../files/. new/
mkdir new/.old
pivot_root new new/.old
cd /
umount -l /.old
rmdir /.old
"""

# For an ordinary user, who has no namespaces: orphans come to this process, and it ends them all.
_KEEPER = """
import contextlib, ctypes, glob, os, signal, sys

def bury(*_):
    with contextlib.suppress(ChildProcessError):
        while (pid := os.waitpid(-1, os.WNOHANG)[0]):
            if pid == server:
                os.write(2, b"sshd exited\\n")

PR_SET_CHILD_SUBREAPER = 36
ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
null = os.open(os.devnull, os.O_RDWR)
server = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, null, 0)])
signal.signal(signal.SIGCHLD, bury)
sys.stdin.read()
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
with contextlib.suppress(ChildProcessError):
    while True:
        for name in glob.glob("/proc/self/task/*/children"):
            for pid in open(name).read().split():
                with contextlib.suppress(OSError):
                    os.kill(int(pid), signal.SIGKILL)
        os.waitpid(-1, 0)
"""


class ServerFailed(RuntimeError):
    """The server did not start; the message holds its log."""


def why_no_user_sshd() -> str | None:
    """Say in one line why ``UserSshd`` cannot run here; ``None`` if it can."""
    if not sys.platform.startswith("linux"):
        return "needs Linux, for /proc"
    needed = ["sshd", "ssh-keygen"]
    if os.geteuid() == 0:
        needed += ["unshare", "setpriv", "mount", "sh", "env", "cat"]
    return _missing(needed) or (
        _probe("unshare -m -p --fork env --ignore-signal=CHLD true") if os.geteuid() == 0 else None
    )


def why_no_world() -> str | None:
    """Say in one line why ``RootWorld`` cannot run here; ``None`` if it can."""
    if os.geteuid() != 0:
        return "needs root, for namespaces and port 22"
    needed = ["nsenter", "ip", "pivot_root", "openssl"]
    overlay = (
        "mount -t tmpfs tmpfs /tmp && cd /tmp && mkdir upper work new && ip link set lo up &&"
        " mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work new"
    )
    return why_no_user_sshd() or _missing(needed) or _probe(f"unshare -n -m -u -p --fork sh -c {shlex.quote(overlay)}")


@functools.cache
def _tool(name: str) -> str | None:
    return shutil.which(name, path=_PATH) or shutil.which(name)


def _missing(names: Iterable[str]) -> str | None:
    missing = [name for name in names if _tool(name) is None]
    return f"needs {', '.join(missing)}" if missing else None


@functools.cache
def _probe(command: str) -> str | None:
    shell = ["sh", "-c", command]
    done = subprocess.run(shell, check=False, capture_output=True, text=True, env=_environment(), timeout=30, cwd="/")
    return None if done.returncode == 0 else f"needs namespaces and overlays: {done.stderr.strip()}"


def _environment() -> dict[str, str]:
    return {"PATH": _PATH, "LANG": "C.UTF-8"}


class _Process(NamedTuple):
    pid: int
    parent: int
    name: str
    state: str


def _processes() -> dict[int, _Process]:
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            # A process may end at any time.
            with contextlib.suppress(OSError):
                head, _, tail = (entry / "stat").read_text(errors="replace").rpartition(")")
                state, parent = tail.split()[:2]
                pid = int(entry.name)
                found[pid] = _Process(pid, int(parent), head.partition("(")[2], state)
    return found


def _below(root: int) -> list[_Process]:
    """The living descendants of a process, parents first."""
    children: dict[int, list[_Process]] = {}
    for process in _processes().values():
        children.setdefault(process.parent, []).append(process)
    found = list(children.get(root, []))
    for process in found:
        found += children.get(process.pid, [])
    return [process for process in found if process.state not in "ZX"]


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _wait(condition: Callable[[], bool], what: str, timeout: float = _DEADLINE) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout} s")
        time.sleep(0.003)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Close the pipe that the process hangs on, and wait until it and all that it holds are gone."""
    if process.stdin is not None:
        process.stdin.close()
    if process.stdout is not None:
        process.stdout.close()
    try:
        process.wait(_DEADLINE)
    except subprocess.TimeoutExpired:
        _signal([each.pid for each in _below(process.pid)], signal.SIGKILL)
        process.kill()
        process.wait()


@contextlib.contextmanager
def _network_of(pid: int) -> Iterator[None]:
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(file: IO[bytes]) -> None:
        # os.setns() is new in Python 3.12.
        if libc.setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")

    here = Path("/proc/thread-self/ns/net")
    with here.open("rb") as before, Path(f"/proc/{pid}/ns/net").open("rb") as there:
        enter(there)
        try:
            yield
        finally:
            enter(before)


def _make_key(path: Path, comment: str) -> str:
    """Make a key without a passphrase; answer with the public line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    keygen = [_tool("ssh-keygen") or "ssh-keygen", "-q", "-t", "ed25519", "-N", ""]
    command = [*keygen, "-C", comment, "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, env=_environment(), timeout=30)
    return path.with_name(path.name + ".pub").read_text().strip()


def _config(options: Mapping[str, Option], defaults: Mapping[str, Option]) -> str:
    """The text of sshd_config; its first value counts, so what was asked for goes before the defaults."""
    lines = []
    given = {keyword.lower() for keyword in options}
    rest = {keyword: value for keyword, value in defaults.items() if keyword.lower() not in given}
    for keyword, value in [*options.items(), *rest.items()]:
        if isinstance(value, bool):
            lines.append(f"{keyword} {'yes' if value else 'no'}")
        elif isinstance(value, Path):
            lines.append(f'{keyword} "{value}"')
        elif isinstance(value, str | int):
            lines.append(f"{keyword} {value}")
        else:
            lines += [f"{keyword} {each}" for each in value]
    return "\n".join(lines) + "\n"


def _script(folder: Path, text: str) -> list[str]:
    """The command that runs a script with its folder as first argument.

    The script is a file, as the processes of a machine are seen by the tests: ``pgrep -f`` shall not find it.
    """
    path = folder / "start.sh"
    path.write_text(text)
    return ["sh", "-eu", str(path), str(folder)]


def _copied(options: Mapping[str, Option] | None, folder: Path, seen_at: Path) -> dict[str, Option]:
    """Copy the files that options name to where the server can read them."""
    copied = dict(options or {})
    folder.mkdir(parents=True, exist_ok=True)
    for keyword, value in copied.items():
        if isinstance(value, Path):
            shutil.copyfile(value, folder / keyword)
            (folder / keyword).chmod(0o644)
            copied[keyword] = seen_at / keyword
    return copied


class _Server:
    """An sshd, its processes and its log."""

    def __init__(self, log: Path, addresses: int) -> None:
        self._log = log
        self._addresses = addresses
        self._process: subprocess.Popen[bytes] | None = None
        self._first = 0
        self._listener = 0
        self._log_start = 0
        log.touch()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """Whether the server was started and not stopped."""
        return self._process is not None

    @property
    def listener_pid(self) -> int:
        """The process that accepts connections, as seen from the tests."""
        return self._listener

    @property
    def pids(self) -> list[int]:
        """Every process of the server: what holds it, the listener, the sessions and their commands."""
        if self._process is None:
            return []
        return [self._process.pid, *(each.pid for each in _below(self._process.pid))]

    def start(self) -> None:
        """Start the server and return when it listens; nothing happens if it runs already."""
        if self._process is None:
            self._launch()
            self._await_ready()

    def stop(self) -> None:
        """End the server with all its sessions and their commands; nothing happens if it was stopped."""
        if self._process is not None:
            process, self._process = self._process, None
            _end(process)

    def log(self) -> str:
        """What sshd has logged since the object was made, over all its starts."""
        return self._log.read_text(errors="replace").replace("\r\n", "\n")

    def accepted(self, method: str = "") -> int:
        """How many authentications were accepted, by any method or the one named (``password``, ...)."""
        return len(re.findall(rf"^Accepted {method or '[^ ]+'} for ", self.log(), re.MULTILINE))

    def failed(self, method: str = "") -> int:
        """How many authentications failed; see ``wait_idle``. A key that is only offered counts, too."""
        return len(re.findall(rf"^Failed {method or '(?!none )[^ ]+'} for ", self.log(), re.MULTILINE))

    def wait_idle(self, timeout: float = _DEADLINE) -> None:
        """Wait until there are no sessions: sshd may answer a client before it logs, so count afterwards.

        This blocks the event loop, so the clients must have closed, not only begun to.
        """
        _wait(lambda: not self.session_pids(), "the end of all sessions", timeout)

    def session_pids(self) -> list[int]:
        """The sshd processes that serve connections, privileged and unprivileged ones, parents first."""
        if self._process is None:
            return []
        return [each.pid for each in _below(self._first) if each.name.startswith("sshd") and each.pid != self._listener]

    def kill_sessions(self) -> list[int]:
        """Kill the processes of all present connections with SIGKILL; return their pids once they are gone."""
        killed: list[int] = []

        def gone() -> bool:
            pids = self.session_pids()
            _signal(pids, signal.SIGKILL)
            killed.extend(pid for pid in pids if pid not in killed)
            return not pids

        # Meanwhile a client that comes back waits. A session may be starting its next process.
        frozen = self._stopped(self._listener)
        _signal([self._listener], signal.SIGSTOP)
        try:
            _wait(gone, "the death of the sessions")
        finally:
            if not frozen:
                _signal([self._listener], signal.SIGCONT)
        return killed

    def freeze(self) -> None:
        """Stop the listener and its sessions with SIGSTOP: connections stay open and nobody answers."""

        def frozen() -> bool:
            running = [pid for pid in [self._listener, *self.session_pids()] if not self._stopped(pid)]
            _signal(running, signal.SIGSTOP)
            return not running

        # One of them may have started another before it was stopped.
        _wait(frozen, "the server stops")

    def thaw(self) -> None:
        """Let a frozen server go on."""
        _signal([*self.session_pids(), self._listener], signal.SIGCONT)

    def _stopped(self, pid: int) -> bool:
        process = _processes().get(pid)
        return process is None or process.state in "TZX"

    def _launch(self) -> None:
        self._log_start = len(self.log())
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=_environment(),
                cwd="/",
                start_new_session=True,  # Ctrl-C is for the tests
                umask=0o022,
            )

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _first_pid(self, process: subprocess.Popen[bytes]) -> int:
        """The process that holds the server: the first one of its process namespace."""
        for each in _below(process.pid):
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{each.pid}/status").read_text()
                if re.search(r"^NSpid:.*\t1$", status, re.MULTILINE):
                    return each.pid
        return 0

    def _await_ready(self) -> None:
        process = self._process
        assert process is not None
        try:
            _wait(self._settled, "sshd listens")
        except TimeoutError as error:
            self.stop()
            raise ServerFailed(f"{error}\n{self.log()}") from None
        if self._news().count("Server listening on ") < self._addresses:
            self.stop()
            raise ServerFailed(f"sshd did not start:\n{self._news()}")
        self._first = self._first_pid(process)
        # No connection can be older than the listener.
        self._listener = next(p.pid for p in _below(self._first) if p.name.startswith("sshd"))

    def _news(self) -> str:
        return self.log()[self._log_start :]

    def _settled(self) -> bool:
        # sshd logs the line after listen() succeeded. A connection would say the same, but would be counted.
        news = self._news()
        return (
            news.count("Server listening on ") >= self._addresses
            or "sshd exited\n" in news
            or "Bind to port" in news
            or self._process is None
            or self._process.poll() is not None
        )


class UserSshd(_Server):
    """An sshd that an ordinary user runs on a high port, and that lets in this user only, by key only.

    If the tests run as root, the user is one that exists for this server alone (in a mount namespace), with
    its own home. Otherwise it is the user who runs the tests, with the true home. There are no terminals.

    ``directory`` is a new or empty folder for the server's files. ``options`` go to sshd_config: a bool is yes
    or no, a list repeats the keyword, a file given as ``Path`` is copied to where the server may read it.
    ``listen`` takes loopback addresses. With ``private_network`` (root only) it may be anything, even
    ``0.0.0.0``, which serves all of 127.0.0.0/8 on one port: the server is reached within ``network()`` only.
    """

    def __init__(
        self,
        directory: Path,
        options: Mapping[str, Option] | None = None,
        *,
        listen: str | Sequence[str] = "127.0.0.1",
        port: int | None = None,
        private_network: bool = False,
        shell: str = "/bin/sh",
    ) -> None:
        addresses = [listen] if isinstance(listen, str) else list(listen)
        wild = any(ipaddress.ip_address(each).is_unspecified for each in addresses)
        if not private_network and not all(ipaddress.ip_address(each).is_loopback for each in addresses):
            raise ValueError("without a private network, a test server listens on loopback addresses only")
        if private_network and os.geteuid() != 0:
            raise ValueError("a private network needs root")

        self.directory = directory.resolve()
        self.served = self.directory / "server"
        self.served.mkdir(parents=True)
        super().__init__(self.directory / "sshd.log", len(addresses))
        self.host = "127.0.0.1" if wild else addresses[0]
        self._listen = addresses
        self._private_network = private_network
        self._given_port = 2222 if private_network and port is None else port
        self.port = self._given_port or 0
        self._options = _copied(options, self.served / "files", self.served / "files")
        self._wild = wild

        if os.geteuid() == 0:
            self.username, self.uid = "tester", _free_id()
            self.home = self.served / "home"
            self.home.mkdir()
            self._write_users(shell)
        else:
            entry = pwd.getpwuid(os.geteuid())
            self.username, self.uid, self.home = entry.pw_name, entry.pw_uid, Path(entry.pw_dir)

        self.client_key = self.directory / "client" / "id_ed25519"
        self.known_hosts = self.directory / "client" / "known_hosts"
        allowed = _make_key(self.client_key, "client")
        self.client_key.parent.chmod(0o700)
        (self.served / "authorized_keys").write_text(allowed + "\n")
        self.host_key = _make_key(self.served / "host_key", "host")
        if os.geteuid() == 0:
            for path in [self.served, *self.served.rglob("*")]:
                os.chown(path, self.uid, self.uid)
            self.directory.chmod(0o755)
            self.served.chmod(0o755)

    def start(self) -> None:
        """Start the server and return when it listens; nothing happens if it runs already."""
        while self._process is None:
            chosen = self.port == 0
            if chosen:
                self.port = self._free_port()
            self._write_files()
            try:
                super().start()
            except ServerFailed as error:
                # Another process was quicker to take the port.
                if not chosen or "Address already in use" not in str(error):
                    raise
                self.port = 0

    def connection(self, **more: Any) -> dict[str, Any]:
        """Options for ``asyncssh.connect()`` that log in; ``more`` adds to them or replaces them."""
        options: dict[str, Any] = {
            "host": self.host,
            "port": self.port,
            "username": self.username,
            "client_keys": [str(self.client_key)],
            "known_hosts": str(self.known_hosts),
        }
        return options | more

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """Let the calling thread make its sockets in the private network of the server."""
        with _network_of(self._first) if self._private_network else contextlib.nullcontext():
            yield

    def _free_port(self) -> int:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.bind((self.host, 0))
            return int(probe.getsockname()[1])

    def _write_users(self, shell: str) -> None:
        for kind, line in {
            "passwd": f"{self.username}:x:{self.uid}:{self.uid}::{self.home}:{shell}\n",
            "group": f"{self.username}:x:{self.uid}:\n",
        }.items():
            others = Path("/etc", kind).read_text().splitlines(keepends=True)
            text = "".join(each for each in others if not each.startswith(f"{self.username}:")) + line
            (self.directory / kind).write_text(text)
            (self.directory / kind).chmod(0o644)

    def _write_files(self) -> None:
        defaults: dict[str, Option] = {
            "Port": self.port,
            "ListenAddress": self._listen,
            "HostKey": self.served / "host_key",
            "AuthorizedKeysFile": self.served / "authorized_keys",
            "PidFile": "none",
            "UsePAM": False,
            "StrictModes": False,
            "PasswordAuthentication": False,
            "KbdInteractiveAuthentication": False,
            "LogLevel": "VERBOSE",
            "Subsystem": "sftp internal-sftp",
        }
        config = self.served / "sshd_config"
        config.write_text(_config(self._options, defaults))
        config.chmod(0o644)
        names = [f"[{each}]:{self.port}" for each in self._listen]
        if self.host == "127.0.0.1":
            names.append(f"[localhost]:{self.port}")
        self.known_hosts.write_text(f"{'*' if self._wild else ','.join(names)} {self.host_key}\n")

    def _command(self) -> list[str]:
        sshd = [_tool("sshd") or "sshd", "-D", "-e", "-f", str(self.served / "sshd_config")]
        if os.geteuid() != 0:
            return [sys.executable, "-I", "-S", "-c", _KEEPER, *sshd]
        user = ["setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups"]
        network = ["-n"] if self._private_network else []
        unshare = ["unshare", "-m", "-p", *network, "--fork", "--kill-child", "--mount-proc"]
        script = _script(self.directory, _USER_SSHD + _HOLD)
        return [*unshare, *script, self._closed_ancestor(), "".join(network), *user, *sshd]

    def _closed_ancestor(self) -> str:
        """The topmost folder above the server's own that other users may not enter, or nothing."""
        for path in reversed(self.directory.parents):
            if not path.stat().st_mode & 0o001:
                return str(path)
        return ""

    def _first_pid(self, process: subprocess.Popen[bytes]) -> int:
        return super()._first_pid(process) if os.geteuid() == 0 else process.pid


def _free_id() -> int:
    taken = {each.pw_uid for each in pwd.getpwall()} | {each.gr_gid for each in grp.getgrall()}
    return next(each for each in range(58000, 59000) if each not in taken)


@dataclass(frozen=True)
class User:
    """Someone who may log in to machines.

    ``password`` is for all purposes, sudo and su included; ``key`` says whether ``client_key`` is let in, too.
    ``sudo`` is a rule such as ``ALL=(ALL:ALL) ALL``, or nothing; ``defaults`` are settings of sudo for this user.
    """

    name: str
    password: str | None = None
    key: bool = False
    sudo: str = ""
    defaults: str = ""
    shell: str = "/bin/bash"


class Machine(_Server):
    """One machine of a ``RootWorld``: a root sshd on port 22 of its own address.

    Its file system starts as this machine's, without the homes, users, SSH files and sudo rules; it may be
    changed freely and is lost with ``stop()``. Host name, users and processes are its own.
    """

    _namespaces: tuple[str, ...] = ("-m", "-u", "-p")

    def __init__(self, world: RootWorld, directory: Path, name: str, address: str) -> None:
        directory.mkdir(parents=True)
        super().__init__(directory / "sshd.log", 1)
        self.name = name
        self.address = address
        self.port = 22
        self.host_key = ""
        self._world = world
        self._directory = directory

    def path(self, remote: str | Path) -> Path:
        """Where the tests, which are root, find a file of the machine."""
        return Path(f"/proc/{self._first}/root") / str(remote).lstrip("/")

    def run(self, argv: Sequence[str | Path], *, timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
        """Run a program on the machine as root, without SSH: to prepare it, or to see what happened to it."""
        command = ["nsenter", "-t", str(self._first), "-n", "-m", "-u", "-p", "--", *map(str, argv)]
        return subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=_environment() | {"HOME": "/root"},
            timeout=timeout,
        )

    def connection(self, **more: Any) -> dict[str, Any]:
        """Options for ``asyncssh.connect()`` with the password; ``more`` adds to them or replaces them.

        The name is known to programs inside the world; within ``network()`` give ``host=machine.address``.
        """
        user, password = next(iter(self._world.users.items()))
        options = {
            "host": self.name,
            "username": user,
            "password": password,
            "known_hosts": str(self._world.known_hosts),
        }
        return options | more

    def _command(self) -> list[str]:
        inside = ["nsenter", "-t", str(self._world.pid), "-n", "-m", "-p", "--"]
        own = ["unshare", *self._namespaces, "--fork", "--kill-child"]
        script = _script(self._directory, self._network() + _MACHINE + self._cleaning() + _ENTER + _HOLD)
        return [*inside, *own, *script, self.name, str(self._world.root), self._world.disk, self._sshd(), "-D", "-e"]

    def _network(self) -> str:
        """What the start does first, in the machine's namespaces."""
        return ""

    def _cleaning(self) -> str:
        """What the start does with the new file system."""
        return _IMPERSONAL

    def _sshd(self) -> str:
        return _tool("sshd") or "sshd"

    def _defaults(self) -> dict[str, Option]:
        """What is in sshd_config unless the test says otherwise."""
        return {
            "Port": self.port,
            "ListenAddress": self.address,
            "HostKey": "/etc/ssh/ssh_host_ed25519_key",
            "UsePAM": False,
            "PasswordAuthentication": True,
            "LogLevel": "VERBOSE",
            "PidFile": "/run/sshd.pid",
            "Subsystem": "sftp internal-sftp",
        }


class RootWorld:
    """A private network with machines in it, and a place for client programs; for root only.

    ``machines`` maps names to ``Machine``. ``users`` (name: password) log in by password or by ``client_key``;
    the first is the default one, and ``root`` sets the password of root. Instead of names and passwords they may be
    ``User``s, who replace the default one, too. ``sudoers`` are the rules for sudo.
    ``options`` go to each sshd_config, see ``UserSshd``. ``home`` is the HOME of the client programs, with
    ``.ssh/known_hosts``; the key lies elsewhere, so that a password is needed unless the key is named.
    """

    root = Path("/")
    """What the file systems of the machines start as."""

    disk = "50%"
    """How much the machines may write, for the size of a tmpfs."""

    def __init__(
        self,
        directory: Path,
        names: Sequence[str] = ("server104", "server105"),
        options: Mapping[str, Option] | None = None,
        *,
        users: Mapping[str, str] | Sequence[User] | None = None,
        sudoers: str = "user ALL=(ALL:ALL) ALL",
        shell: str = "/bin/bash",
    ) -> None:
        self.directory = directory.resolve()
        self.accounts = (
            [User(*each, key=True, shell=shell) for each in ({"user": "password"} | dict(users or {})).items()]
            if users is None or isinstance(users, Mapping)
            else list(users)
        )
        self.users = {each.name: each.password for each in self.accounts if each.password is not None}
        self.home = self.directory / "home"
        self.known_hosts = self.home / ".ssh" / "known_hosts"
        self.client_key = self.directory / "client_key"
        self._options = dict(options or {})
        self._sudoers = sudoers
        self._process: subprocess.Popen[bytes] | None = None
        self._clients: list[subprocess.Popen[str]] = []
        self.pid = 0
        self.machines = {name: self._machine(name, address) for name, address in self._addresses(names).items()}
        self._write_files()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __getitem__(self, name: str) -> Machine:
        return self.machines[name]

    @property
    def pids(self) -> list[int]:
        """Every process of the world: its holder, its machines and its clients."""
        clients = [each.pid for each in self._clients if each.poll() is None]
        holder = [] if self._process is None else [self._process.pid]
        below = [each.pid for pid in holder + clients for each in _below(pid)]
        return holder + clients + below + [pid for each in self.machines.values() for pid in each.pids]

    def start(self) -> None:
        """Make the network and start all machines; nothing happens if it runs already."""
        if self._process is not None:
            return
        script = _script(self.directory, _WORLD + self._network() + _READY)
        with (self.directory / "world.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["unshare", "-n", "-m", "-p", "--fork", "--kill-child", *script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=_environment(),
                cwd="/",
                start_new_session=True,
                umask=0o022,
            )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            self.stop()
            raise ServerFailed((self.directory / "world.log").read_text())
        self.pid = _below(self._process.pid)[0].pid
        try:
            # They start side by side.
            for machine in self.machines.values():
                machine._launch()
            for machine in self.machines.values():
                machine._await_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the clients, the machines and the network; nothing happens if it was stopped."""
        for client in self._clients:
            _end_group(client)
            for pipe in (client.stdin, client.stdout, client.stderr):
                if pipe is not None:
                    # What the program has not read is lost with it.
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
        self._clients.clear()
        for machine in self.machines.values():
            machine.stop()
        if self._process is not None:
            process, self._process = self._process, None
            _end(process)

    def popen(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: int | None = subprocess.DEVNULL,
        stdout: int | IO[str] | None = subprocess.PIPE,
        stderr: int | IO[str] | None = subprocess.PIPE,
    ) -> subprocess.Popen[str]:
        """Start a client program inside the world; its pid is that of the program, so signals reach it.

        It is the leader of a process group, and it ends at the latest with the world or with the tests.
        ``env`` adds to the environment of the tests; the default ``cwd`` is the home.
        """
        # These would lead the client out of the world.
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SSH_", "XDG_"))}
        inside = ["nsenter", "-t", str(self.pid), "-n", "-m", "--", "setpriv", "--pdeathsig=KILL"]
        client = subprocess.Popen(
            # Another mount namespace means another working directory, so it is entered there.
            [*inside, "env", "-C", str(cwd or self.home), *map(str, argv)],
            env=kept | {"HOME": str(self.home)} | dict(env or {}),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
        self._clients.append(client)
        return client

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        input: str | None = None,  # noqa: A002 - as in subprocess.run()
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 30.0,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a client program inside the world; after ``timeout`` seconds kill it with its process group."""
        stdin = subprocess.DEVNULL if input is None else subprocess.PIPE
        with self.popen(argv, env=env, cwd=cwd, stdin=stdin) as client:
            try:
                out, err = client.communicate(input, timeout)
            except BaseException:
                _end_group(client)
                raise
        done = subprocess.CompletedProcess(list(argv), client.returncode, out, err)
        if check:
            done.check_returncode()
        return done

    def write(self, name: str, text: str, mode: int = 0o600) -> Path:
        """Write a file for the client programs, relative to their home; return its path."""
        path = self.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """Let the calling thread make its sockets in the world; names are not known there, addresses are."""
        with _network_of(self.pid):
            yield

    def _machine(self, name: str, address: str) -> Machine:
        return Machine(self, self.directory / name, name, address)

    def _addresses(self, names: Sequence[str]) -> dict[str, str]:
        """One loopback address for each name; ``server104`` gets 127.0.104.1."""
        return {name: f"127.0.{number}.1" for name, number in _numbers(names, 254).items()}

    def _network(self) -> str:
        """What the start does in the world's namespaces."""
        return ""

    def _rules(self) -> str:
        """The text of /etc/sudoers."""
        own = [f"{each.name} {each.sudo}\n" for each in self.accounts if each.sudo]
        own += [f"Defaults:{each.name} {each.defaults}\n" for each in self.accounts if each.defaults]
        rules = f"Defaults env_reset\nDefaults secure_path={_PATH}\nroot ALL=(ALL:ALL) ALL\n"
        return f"{rules}{''.join(own)}{self._sudoers}\n@includedir /etc/sudoers.d\n"

    def _write_files(self) -> None:
        allowed = _make_key(self.client_key, "client")
        hosts = "127.0.0.1 localhost\n::1 localhost\n" + "".join(
            f"{machine.address} {machine.name}\n" for machine in self.machines.values()
        )
        # Without DNS an unknown name is unknown at once.
        nsswitch = "passwd: files\ngroup: files\nshadow: files\nhosts: files\n"
        (self.directory / "hosts").write_text(hosts)
        (self.directory / "nsswitch.conf").write_text(nsswitch)
        known = []
        passwd, shadow, group = self._user_files()
        for machine in self.machines.values():
            files = machine._directory / "files"
            ssh = files / "etc" / "ssh"
            machine.host_key = _make_key(ssh / "ssh_host_ed25519_key", machine.name)
            known.append(f"{machine.name},{machine.address} {machine.host_key}\n")
            options = _copied(self._options, ssh / "files", Path("/etc/ssh/files"))
            for name, text, mode in [
                ("ssh/sshd_config", _config(options, machine._defaults()), 0o644),
                ("hostname", machine.name + "\n", 0o644),
                ("hosts", hosts, 0o644),
                ("nsswitch.conf", nsswitch, 0o644),
                ("passwd", passwd, 0o644),
                ("group", group, 0o644),
                ("shadow", shadow, 0o600),
                ("sudoers", self._rules(), 0o440),
            ]:
                (files / "etc" / name).write_text(text)
                (files / "etc" / name).chmod(mode)
            self._write_homes(files, passwd, allowed)
        self.write(".ssh/known_hosts", "".join(known))
        (self.home / ".ssh").chmod(0o700)

    def _user_files(self) -> tuple[str, str, str]:
        """passwd, shadow and group: the system users of the root, and the users of the world."""
        names = {each.name for each in self.accounts}
        system = [each for each in self._system("passwd") if each[0] == "root" or each[0] not in names]
        passwd = [f"{name}:x:{uid}:{gid}::{home}:{shell}\n" for name, _, uid, gid, _, home, shell in system]
        group = [f"{name}:x:{gid}:\n" for name, _, gid, _ in self._system("group") if name not in names - {"root"}]
        for number, user in enumerate((user for user in self.accounts if user.name != "root"), 1000):
            passwd.append(f"{user.name}:x:{number}:{number}::/home/{user.name}:{user.shell}\n")
            group.append(f"{user.name}:x:{number}:\n")
        hashes = {name: _hashed(password) for name, password in self.users.items()}
        every = [line.partition(":")[0] for line in passwd]
        shadow = "".join(f"{name}:{hashes.get(name, '*')}:19000:0:99999:7:::\n" for name in every)
        return "".join(passwd), shadow, "".join(group)

    def _system(self, kind: str) -> list[list[str]]:
        """The lines of passwd or group that belong to the system."""
        lines = [line.split(":") for line in (self.root / "etc" / kind).read_text().splitlines()]
        return [line for line in lines if int(line[2]) < 1000 or int(line[2]) == 65534]

    def _write_homes(self, files: Path, passwd: str, allowed: str) -> None:
        for path in [files, *(each for each in files.rglob("*") if each.is_dir())]:
            path.chmod(0o755)
        entries = {line.partition(":")[0]: line.split(":") for line in passwd.splitlines()}
        for user in self.accounts:
            _, _, uid, gid, _, home, _ = entries[user.name]
            ssh = files / home.lstrip("/") / ".ssh"
            ssh.mkdir(parents=True)
            (ssh / "authorized_keys").write_text(f"{allowed}\n" if user.key else "")
            for path, mode in [(ssh.parent, 0o700), (ssh, 0o700), (ssh / "authorized_keys", 0o600)]:
                os.chown(path, int(uid), int(gid))
                path.chmod(mode)


def _end_group(client: subprocess.Popen[str]) -> None:
    if client.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(client.pid, signal.SIGKILL)
        client.wait()


def _numbers(names: Sequence[str], most: int) -> dict[str, int]:
    """A number for each name: the one at its end, if all have their own; else they are counted."""
    wanted = [int(found[1]) if (found := re.search(r"(\d+)$", name)) else 0 for name in names]
    if len({*wanted}) < len(wanted) or not all(0 < each <= most for each in wanted):
        wanted = list(range(1, len(names) + 1))
    return dict(zip(names, wanted, strict=True))


@functools.cache
def _hashed(password: str) -> str:
    """The hash for /etc/shadow; Python has lost its own function for it."""
    command = [_tool("openssl") or "openssl", "passwd", "-6", "-stdin"]
    done = subprocess.run(command, input=password + "\n", capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.strip()
