"""Hosts of the lab: Debian machines with networks of their own, of users of all kinds, and with faults.

A ``Lab`` is a ``RootWorld``, and a ``Host`` is a ``Machine``: what these can do holds here, too. What differs:
the file system is that of a small Debian of its own (``image.py``), and each host has its own network namespace,
joined to the others' and the tests' by a bridge, so that faults of the network hit one host only. ::

    with Lab(directory, ["server104", "server105"]) as lab:
        host = lab["server104"]
        host.run(["apt-get", "install", "-y", "tree"])  # as root, not through SSH
        with lab.network():
            connection = await asyncssh.connect(**host.login("keyed"))
        host.drop()
        host.restore()
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shlex
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.lab.image import Recipe, why_no_image
from tests.openssh import (
    Machine,
    Option,
    RootWorld,
    User,
    _end,
    _environment,
    _missing,
    _network_of,
    _numbers,
    _probe,
    why_no_world,
)

USERS = (
    User("user", "password", sudo="ALL=(ALL:ALL) ALL"),
    User("keyed", key=True, sudo="ALL=(ALL:ALL) NOPASSWD: ALL"),
    User("tty", "password", key=True, sudo="ALL=(ALL:ALL) ALL", defaults="requiretty"),
    User("single", "password", key=True, sudo="ALL=(ALL:ALL) /usr/bin/id"),
    User("single_free", key=True, sudo="ALL=(ALL:ALL) NOPASSWD: /usr/bin/id"),
    User("nosudo", "password", key=True),
    User("other", "other-password", key=True),
    User("root", "root-password", key=True),
)
"""The users of every host, unless told: by password, by key, by both; ``sudo`` with and without a password, with a
terminal only, for one program only, not at all; and two for ``su``. OpenSSH lets root in by key only."""

SUDO_LOG = "/var/log/sudo.log"
"""Where sudo on the hosts writes what it did and refused."""

_GATEWAY = "10.0.255.254"
_GATEWAY_HARDWARE = "02:00:0a:00:ff:fe"
_ACCOUNTABLE = 254 * 256
_DEVICE = "eth0"
_BRIDGE = "lab"

# Linux, if_tun.h
_TUNSETIFF = 0x400454CA
_IFF_TAP_NO_PI = 0x0002 | 0x1000

_FAULTS = """
table inet faults {{
    chain incoming {{ type filter hook input priority -300; {incoming} }}
    chain outgoing {{ type filter hook output priority -300; {outgoing} }}
}}
"""

# Most hosts have this one; a network begins with the one of this machine, which may be any. It must not matter.
_CONGESTION = """
for each in cubic reno; do
    if echo $each >/proc/sys/net/ipv4/tcp_congestion_control 2>/dev/null; then break; fi
done
"""

_NETWORK_PROBE = (
    "ip link add lab type bridge && ip link add one type veth peer name two && test -c /dev/net/tun &&"
    " tc qdisc add dev one root tbf rate 1mbit burst 64k latency 100ms && nft add table inet faults"
)


def why_no_lab(recipe: Recipe | None = None) -> str | None:
    """Say in one line why ``Lab`` cannot run here; ``None`` if it can."""
    if os.geteuid() != 0:
        return "needs root, for namespaces, the network and the files of all users"
    return (
        why_no_world()
        or _missing(["nft", "tc", "mount"])
        or why_no_image(recipe)
        or _probe(f"unshare -n sh -c {shlex.quote(_NETWORK_PROBE)}")
    )


class Host(Machine):
    """One host of a ``Lab``: a Debian machine with an address, a name, users, packages and faults of its own."""

    _namespaces = ("-n", *Machine._namespaces)

    def __init__(self, lab: Lab, directory: Path, name: str, address: str) -> None:
        super().__init__(lab, directory, name, address)
        self.lab = lab
        octets = [int(each) for each in address.split(".")]
        # The same after each start: nobody knows a host by an address that it had before.
        self._hardware = "02:00:" + ":".join(f"{each:02x}" for each in octets)
        self._link = f"host{octets[2] * 256 + octets[3]}"
        self._cable: subprocess.Popen[bytes] | None = None
        self._fillings: list[Path] = []

    @property
    def pids(self) -> list[int]:
        """Every process of the host, and the one that is its cable."""
        return super().pids + ([] if self._cable is None else [self._cable.pid])

    def stop(self) -> None:
        """End the host with everything on it; its changed files are lost."""
        self._end_cable()
        self._fillings.clear()
        super().stop()

    def login(self, user: str = "keyed", **more: Any) -> dict[str, Any]:
        """Options for ``asyncssh.connect()`` as one of the users, within ``network()``; by key if it is let in."""
        account = self.lab.account(user)
        options: dict[str, Any] = {
            "host": self.address,
            "username": user,
            "known_hosts": str(self.lab.known_hosts),
            "client_keys": [str(self.lab.client_key)] if account.key else None,
            "agent_path": None,
            "config": None,
        }
        if not account.key:
            options["password"] = account.password
        return options | more

    def drop(self, *, incoming: bool = True, outgoing: bool = True) -> None:
        """Lose every packet that comes in or goes out, without a word to anybody; ``restore`` ends it."""
        self._filter("drop" if incoming else "", "drop" if outgoing else "")

    def reset(self) -> None:
        """Answer every TCP packet that comes in with a reset, as a firewall that forgot its connections."""
        self._filter("meta l4proto tcp reject with tcp reset", "")

    def cut(self) -> None:
        """Pull the cable: silence for who is connected; for who is not, the host is unreachable in seconds."""
        self.lab._do(["ip", "link", "set", self._link, "down"])
        # The kernel would believe for a minute that it knows where the host is.
        self.lab._do(["ip", "neighbour", "flush", "to", self.address, "dev", _BRIDGE])

    def slow(self, rate: str = "", latency: float = 0.0) -> None:
        """Make the link slow: at most ``rate`` (such as ``20mbit``), each way taking ``latency`` seconds more.

        After 64 KiB at full speed the rate holds, for up to about 100mbit. Packets wait 0.4 s at most, then they
        are lost. Connections stay.
        """
        self._lay_cable(latency)
        if rate:
            limit = ["root", "tbf", "rate", rate, "burst", "64k", "latency", "400ms"]
            self.lab._do(["tc", "qdisc", "replace", "dev", self._link, *limit])
            self._do(["tc", "qdisc", "replace", "dev", _DEVICE, *limit])

    def fill_disk(self, path: str = "/") -> None:
        """Take all the space of the file system that a directory is on; ``restore`` gives it back."""
        filling = self.path(path) / ".filling-of-the-lab"
        self._fillings.append(filling)
        with filling.open("ab", buffering=0) as file:
            space = os.fstatvfs(file.fileno())
            with _until_full():
                os.posix_fallocate(file.fileno(), 0, max(1, space.f_bavail * space.f_frsize))
            # There may be a little more, or even a little less.
            with _until_full():
                while True:
                    file.write(bytes(4096))

    def small_disk(self, path: str, size: str = "1m") -> None:
        """Put a new, empty file system of a size on a directory, which is made if need be; anyone may write."""
        self.run(["mkdir", "-p", path]).check_returncode()
        self.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=1777", "tmpfs", path]).check_returncode()

    def restore(self) -> None:
        """End all faults of the network, and the filling of disks."""
        self._do(["nft", "-f", "-"], "table inet faults\ndelete table inet faults\n")
        for tool, device in ((self.lab._do, self._link), (self._do, _DEVICE)):
            if "tbf" in tool(["tc", "qdisc", "show", "dev", device]):
                tool(["tc", "qdisc", "delete", "dev", device, "root"])
        self._lay_cable(0.0)
        self.lab._do(["ip", "link", "set", self._link, "up"])
        while self._fillings:
            self._fillings.pop().unlink(missing_ok=True)

    def sudo_log(self) -> list[str]:
        """What sudo on the host has done and refused, one line each."""
        path = self.path(SUDO_LOG)
        return path.read_text().splitlines() if path.exists() else []

    def _filter(self, incoming: str, outgoing: str) -> None:
        rules = _FAULTS.format(
            incoming=f'iifname "{_DEVICE}" {incoming};' if incoming else "",
            outgoing=f'oifname "{_DEVICE}" {outgoing};' if outgoing else "",
        )
        # In one transaction: at no time is only one direction lost, unless that is asked for.
        self._do(["nft", "-f", "-"], f"table inet faults\ndelete table inet faults\n{rules}")

    def _do(self, command: Sequence[str], text: str = "") -> str:
        """Run a program of the tests' machine in the network of the host."""
        return _in_network(self._first, command, text)

    def _lay_cable(self, latency: float) -> None:
        """Replace the cable by one with this latency, unless it has none and shall have none."""
        if self._cable is None and not latency:
            return
        self._end_cable()
        with contextlib.suppress(subprocess.CalledProcessError):
            self.lab._do(["ip", "link", "delete", self._link])
        if latency:
            ends = [_tap(self.lab.pid, self._link), _tap(self._first, _DEVICE)]
            program = [sys.executable, "-I", "-S", str(Path(__file__).with_name("cable.py")), str(latency)]
            try:
                self._cable = subprocess.Popen(
                    [*program, *map(str, ends)],
                    stdin=subprocess.PIPE,
                    pass_fds=ends,
                    env=_environment(),
                    cwd="/",
                    start_new_session=True,
                )
            finally:
                for end in ends:
                    os.close(end)
            self.lab._do(["ip", "link", "set", self._link, "master", _BRIDGE, "up"])
            self._do(["sh", "-euc", self._address()])
        else:
            self._do(["sh", "-euc", self._network()])

    def _end_cable(self) -> None:
        if self._cable is not None:
            cable, self._cable = self._cable, None
            _end(cable)

    def _network(self) -> str:
        # The devices of a network that has just ended may be there for a moment.
        lab = (
            f"ip link delete {self._link} 2>/dev/null || true\n"
            f"ip link add {self._link} type veth peer name {_DEVICE} netns /proc/self/fd/9\n"
            f"ip link set {self._link} master {_BRIDGE} up\n"
        )
        enter = f"exec 9</proc/self/ns/net\nnsenter --net=/proc/{self.lab.pid}/ns/net sh -euc {shlex.quote(lab)}\n"
        return f"{enter}exec 9<&-\n{self._address()}{_CONGESTION}"

    def _address(self) -> str:
        return (
            "ip link set lo up\n"
            f"ip link set {_DEVICE} address {self._hardware}\n"
            f"ip address add {self.address}/16 dev {_DEVICE}\n"
            f"ip link set {_DEVICE} up\n"
        )

    def _cleaning(self) -> str:
        return ""

    def _sshd(self) -> str:
        return "/usr/sbin/sshd"

    def _defaults(self) -> dict[str, Option]:
        """As Debian has it, but for the log."""
        return super()._defaults() | {
            "ListenAddress": "0.0.0.0",
            "UsePAM": True,
            "KbdInteractiveAuthentication": False,
            "PrintMotd": False,
            "AcceptEnv": "LANG LC_*",
            "Subsystem": "sftp /usr/lib/openssh/sftp-server",
        }


class Lab(RootWorld):
    """A network of Debian hosts, and a place for client programs; for root only.

    ``names`` are those of the hosts: ``server104`` has the address 10.0.0.104. ``options`` go to each sshd_config,
    see ``UserSshd``. ``users`` replace ``USERS``, ``sudoers`` are further rules. ``recipe`` says what the hosts are
    made of, and ``disk`` how much each of them may write (in memory).
    """

    def __init__(
        self,
        directory: Path,
        names: Sequence[str] = ("server104", "server105"),
        options: Mapping[str, Option] | None = None,
        *,
        users: Sequence[User] = USERS,
        sudoers: str = "",
        recipe: Recipe | None = None,
        disk: str = "256m",
    ) -> None:
        self.root = (recipe or Recipe()).ensure()
        self.disk = disk
        rules = f"Defaults logfile={SUDO_LOG}, loglinelen=0\n{sudoers}"
        super().__init__(directory, names, options, users=users, sudoers=rules)

    def __getitem__(self, name: str) -> Host:
        host = self.machines[name]
        assert isinstance(host, Host)
        return host

    @property
    def hosts(self) -> list[Host]:
        """All hosts, in the order of their names."""
        return [self[name] for name in self.machines]

    def account(self, name: str) -> User:
        """The user with this name."""
        return next(each for each in self.accounts if each.name == name)

    def _machine(self, name: str, address: str) -> Host:
        return Host(self, self.directory / name, name, address)

    def _addresses(self, names: Sequence[str]) -> dict[str, str]:
        return {name: f"10.0.{number // 256}.{number % 256}" for name, number in _numbers(names, _ACCOUNTABLE).items()}

    def _network(self) -> str:
        # Left to itself a bridge has the address of one of its ports, and another one when that host has ended.
        return (
            f"ip link add {_BRIDGE} address {_GATEWAY_HARDWARE} type bridge\n"
            f"ip address add {_GATEWAY}/16 dev {_BRIDGE}\nip link set {_BRIDGE} up\n"
        )

    def _do(self, command: Sequence[str], text: str = "") -> str:
        """Run a program of the tests' machine in the network of the lab."""
        return _in_network(self.pid, command, text)


@contextlib.contextmanager
def _until_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def _in_network(pid: int, command: Sequence[str], text: str) -> str:
    inside = ["nsenter", "-t", str(pid), "-n", "--", *command]
    done = subprocess.run(
        inside, check=False, input=text, capture_output=True, text=True, env=_environment(), timeout=30
    )
    if done.returncode != 0:
        raise subprocess.CalledProcessError(done.returncode, shlex.join(inside), done.stdout, done.stderr)
    return done.stdout


def _tap(pid: int, name: str) -> int:
    """Make a device in the network of a process; it is there as long as its descriptor."""
    with _network_of(pid):
        end = os.open("/dev/net/tun", os.O_RDWR)
    try:
        fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP_NO_PI))
    except BaseException:
        os.close(end)
        raise
    return end
