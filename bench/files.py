"""What transfers cost: ours, OpenSSH's, rsync's and others', side by side against one sshd.

The sshd is a real one on this machine, and so are the clients: the figures hold protocol and
processors, and no network. Files are random bytes, on /dev/shm where there is one, so that no disk
counts. Runs take turns, so that a busy moment of the machine strikes all alike, and the figures are
medians of them; the first round warms up, and is where the copies are compared. CPU time is that of
the client: this process, or the programs that it started. Ours has its connection open before the
clock starts, except in the rows that say "connecting"; asyncssh has, too. The programs connect each
time, as they do; so the rows with "connecting" are those to compare with them. Only the start of
Python is in no row of ours.

    ./dev bench files [--rounds 5] [--size 256] [--only big,small,delay,fleet]

big: one file up and down. small: many small files up. delay: both, smaller, through a proxy that
delays each direction by 25 ms and limits no bandwidth. fleet: one file to 20 hosts at once, each run
in a process of its own; the memory is that before the first connection, and the most that there was.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import filecmp
import functools
import gc
import importlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

if TYPE_CHECKING:
    import asyncssh

    from reemote import Inventory, Pool

# What takes memory is imported where it is used: the programs of the fleet need not all of it.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.clients import cpu_time, status

ROOT = Path(__file__).resolve().parent.parent

PARTS = ("big", "small", "delay", "fleet")
MIB = 1024 * 1024
AES, CHACHA = "aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com"
SMALL_SIZE, SMALL_DIRECTORIES = 4096, 10
DELAYED_SIZE = 32
FLEET_HOSTS, FLEET_SIZE = 20, 16
ADDRESSES = [f"127.0.0.{number}" for number in range(1, 11)]
"""Where the sshd listens; it can at 16 addresses at the most, so two hosts of the fleet share one."""

PSSH = "parallel-ssh copy_file"

DELAY = 0.025
"""Seconds that the proxy holds back what it hears; the round-trip time is twice that."""

SLOW = 15.0
"""Seconds from which a run is not repeated."""

WIDTH = 50
"""Columns of the names in the tables."""

Work = Callable[[], Coroutine[Any, Any, None]]


# Measuring


@dataclass(frozen=True)
class Case:
    """One row of a table."""

    name: str
    work: Work
    before: Work
    """Done before the clock starts."""
    check: Callable[[], bool]
    """Whether it did what it should."""


class Figures(NamedTuple):
    wall: float
    least: float
    cpu: float
    runs: int


async def measure(cases: Sequence[Case], rounds: int) -> dict[str, Figures]:
    """Let the cases take turns, each round from another one on: who was before may matter."""
    seen: dict[str, list[tuple[float, float]]] = {case.name: [] for case in cases}
    slow = set[str]()
    for number in range(rounds + 1):
        first = number % len(cases)
        for case in (*cases[first:], *cases[:first]):
            if case.name in slow:
                continue
            await case.before()
            gc.collect()
            wall, cpu = time.perf_counter(), cpu_time()
            await case.work()
            times = time.perf_counter() - wall, cpu_time() - cpu
            if number == 0:
                if not case.check():
                    raise SystemExit(f"bench: {case.name}: the copy is not like what was copied")
                if times[0] > SLOW:
                    slow.add(case.name)
            if number or case.name in slow:
                seen[case.name].append(times)
    return {name: figures(times) for name, times in seen.items()}


def figures(times: Sequence[tuple[float, float]]) -> Figures:
    walls, cpus = zip(*times, strict=True)
    return Figures(statistics.median(walls), min(walls), statistics.median(cpus), len(times))


def report(title: str, results: dict[str, Figures], baseline: str, size: int | None = None) -> None:
    """Print a table; *size* is in MiB."""
    rate = f"{'MiB/s':>9}" if size else ""
    print(f"\n{title:{WIDTH}}{'s':>9}{'least':>9}{rate}{'cpu s':>9}   x {baseline}")
    for name, each in results.items():
        rate = f"{size / each.wall:9.0f}" if size else ""
        once = "  (one run)" if each.runs < max(other.runs for other in results.values()) else ""
        ratio = each.wall / results[baseline].wall
        print(f"  {name:{WIDTH - 2}}{each.wall:9.3f}{each.least:9.3f}{rate}{each.cpu:9.3f}{ratio:9.2f}{once}")
    sys.stdout.flush()


# The host and what is to be copied


class Place:
    """A way to the sshd, straight or through the proxy, and the tools that take it."""

    def __init__(self, directory: Path, connection: dict[str, Any]) -> None:
        self.connection = connection
        self.config = directory / f"ssh_config-{connection['port']}"
        lines = {
            "HostName": connection["host"],
            "Port": connection["port"],
            "User": connection["username"],
            "IdentityFile": connection["client_keys"][0],
            "UserKnownHostsFile": connection["known_hosts"],
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "BatchMode": "yes",
            "LogLevel": "ERROR",
        }
        self.config.write_text("Host host\n" + "".join(f"  {name} {value}\n" for name, value in lines.items()))

    def inventory(self, cipher: str | None = None) -> Inventory:
        from reemote import Inventory

        more = {"encryption_algs": [cipher]} if cipher else {}
        return Inventory.of({"hosts": [{"connection": self.connection | more}]})

    def connect(self, cipher: str) -> Any:
        import asyncssh

        return asyncssh.connect(**self.connection, encryption_algs=[cipher], config=None)

    def options(self, cipher: str | None = None) -> list[str]:
        return ["-F", str(self.config), *(["-c", cipher] if cipher else [])]


@contextlib.contextmanager
def hosts() -> Iterator[tuple[Path, Any]]:
    """Start an sshd; give a directory, and the server."""
    from tests.openssh import UserSshd, why_no_user_sshd

    if why := why_no_user_sshd():
        raise SystemExit(f"bench: no sshd can be started here: {why}")
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="reemote-bench-", dir=memory if memory.is_dir() else None) as name:
        directory = Path(name)
        directory.chmod(0o711)
        with UserSshd(directory / "sshd", {"MaxStartups": 100}, listen=ADDRESSES) as sshd:
            (directory / "known_hosts").write_text(f"* {sshd.host_key}\n")
            (directory / "remote").mkdir(mode=0o700)
            os.chown(directory / "remote", sshd.uid, -1)
            (directory / "local").mkdir()
            yield directory, sshd


def connection_of(directory: Path, sshd: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", sshd.connection(known_hosts=str(directory / "known_hosts")))


def make_file(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        for _ in range(size):
            file.write(os.urandom(MIB))
    return path


def make_tree(path: Path, count: int) -> Path:
    for number in range(count):
        folder = path / f"directory-{number % SMALL_DIRECTORIES}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file-{number}").write_bytes(os.urandom(SMALL_SIZE))
    return path


def same_file(one: Path, other: Path) -> bool:
    return filecmp.cmp(one, other, shallow=False)


def same_tree(one: Path, other: Path) -> bool:
    names = sorted(path.relative_to(one) for path in one.rglob("*"))
    return names == sorted(path.relative_to(other) for path in other.rglob("*")) and all(
        same_file(one / name, other / name) for name in names if (one / name).is_file()
    )


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


# What does it


def warm(pool: Pool, inventory: Inventory, step: Callable[[], Any]) -> Work:
    """Run a step of ours over a pool."""
    from reemote.execute import execute

    async def work() -> None:
        (await execute(step, inventory, pool=pool)).raise_for_errors()

    return work


def cold(inventory: Inventory, step: Callable[[], Any]) -> Work:
    """Run a step of ours, and connect for it."""
    from reemote import Pool

    async def work() -> None:
        async with Pool() as pool:
            await warm(pool, inventory, step)()

    return work


def program(*command: str | Path, text: str | None = None) -> Work:
    """Run a program."""

    async def work() -> None:
        # In a thread, so that the connections of the others are kept meanwhile.
        run = functools.partial(subprocess.run, input=text, capture_output=True, text=True, check=False)
        done = await asyncio.to_thread(run, list(map(str, command)))
        if done.returncode:
            raise SystemExit(f"bench: {shlex.join(done.args)} ended with {done.returncode}:\n{done.stderr}")

    return work


def before(target: Path | None, pool: Pool | None = None, inventory: Inventory | None = None) -> Work:
    """Remove the target, and see that a connection of ours stands, with its SFTP session."""
    from reemote import sftp

    async def work() -> None:
        if target is not None:
            remove(target)
        if pool is not None and inventory is not None:
            await warm(pool, inventory, lambda: sftp.Exists(path="."))()

    return work


# Parts


async def big(place: Place, directory: Path, size: int, rounds: int, ciphers: Sequence[str], where: str) -> None:
    """Copy one file up and down."""
    from reemote import Pool

    source = make_file(directory / "file", size)
    async with contextlib.AsyncExitStack() as stack:
        for cipher in ciphers:
            pool = await stack.enter_async_context(Pool(idle=3600))
            client = await stack.enter_async_context(await clients(stack, place, cipher))
            for way in ("up", "down"):
                target = directory / ("remote" if way == "up" else "local") / "file"
                cases = big_cases(place, cipher, pool, client, source, target, upwards=way == "up")
                title = f"{size} MiB {way}, {cipher.partition('@')[0]}{where}"
                report(title, await measure(cases, rounds), "OpenSSH scp", size)
    source.unlink()


async def clients(stack: contextlib.AsyncExitStack, place: Place, cipher: str) -> asyncssh.SFTPClient:
    connection = await stack.enter_async_context(place.connect(cipher))
    return cast("asyncssh.SFTPClient", await connection.start_sftp_client())


def big_cases(
    place: Place,
    cipher: str,
    pool: Pool,
    client: asyncssh.SFTPClient,
    source: Path,
    target: Path,
    *,
    upwards: bool,
) -> list[Case]:
    from reemote import scp, sftp

    inventory, options = place.inventory(cipher), place.options(cipher)
    one, other = str(source), str(target)
    step: dict[str, Callable[[], Any]] = {
        "sftp.Put": lambda: sftp.Put(localpaths=one, remotepath=other),
        "scp.Upload": lambda: scp.Upload(srcpaths=one, dstpath=other),
    }
    named, batch = [one, f"host:{other}"], f"put {one} {other}\n"
    if not upwards:
        step = {
            "sftp.Get": lambda: sftp.Get(remotepaths=one, localpath=other),
            "scp.Download": lambda: scp.Download(srcpaths=one, dstpath=other),
        }
        named, batch = [f"host:{one}", other], f"get {one} {other}\n"
    first = next(iter(step))
    ours = {name: warm(pool, inventory, each) for name, each in step.items()}
    others = {
        f"{first}, connecting": cold(inventory, step[first]),
        "OpenSSH scp": program("scp", "-q", *options, *named),
        "OpenSSH sftp": program("sftp", "-q", *options, "-b", "-", "host", text=batch),
        "asyncssh": lambda: (client.put if upwards else client.get)(one, other),
    }
    check = functools.partial(same_file, source, target)
    return [
        *(Case(name, work, before(target, pool, inventory), check) for name, work in ours.items()),
        *(Case(name, work, before(target), check) for name, work in others.items()),
    ]


async def small(place: Place, directory: Path, count: int, rounds: int, where: str) -> None:
    """Copy many small files up; then see what it costs to find that there is nothing to do."""
    from reemote import Pool

    source = make_tree(directory / "tree", count)
    fresh, kept = directory / "remote" / "tree", directory / "remote" / "kept"
    baseline = "rsync -a" if shutil.which("rsync") else "tar | ssh tar"
    title = f"{count} files of {SMALL_SIZE // 1024} KiB in {SMALL_DIRECTORIES} directories"
    async with Pool(idle=3600) as pool:
        results = await measure(small_cases(place, pool, source, fresh), rounds)
        report(f"{title} up{where}", results, baseline)
        results = await measure(again_cases(place, pool, source, kept), rounds)
        report(f"{count} files, nothing to do{where}", results, baseline if baseline in results else "sftp.Sync")
    for path in (source, fresh, *kept.parent.glob("kept*")):
        remove(path)


def synchronizing(source: Path, target: Path) -> Callable[[], Any]:
    from reemote import sftp

    return lambda: sftp.Sync(localpath=str(source), remotepath=str(target))


def rsync(place: Place, source: Path, target: Path) -> dict[str, Work]:
    if not shutil.which("rsync"):
        return {}
    shell = shlex.join(["ssh", *place.options()])
    return {"rsync -a": program("rsync", "-a", "-e", shell, f"{source}/", f"host:{target}")}


def small_cases(place: Place, pool: Pool, source: Path, target: Path) -> list[Case]:
    from reemote import sftp

    inventory = place.inventory()
    sync = synchronizing(source, target)
    put: Callable[[], Any] = lambda: sftp.Put(localpaths=str(source), remotepath=str(target), recurse=True)  # noqa: E731
    ours = {"sftp.Sync": sync, "sftp.Put(recurse=True)": put}
    unpack = shlex.join(["sh", "-c", f"mkdir {target} && tar -C {target} -xpf -"])
    pipe = f"tar -C {source} -cf - . | {shlex.join(['ssh', *place.options(), 'host', unpack])}"
    others = {
        **{f"{name}, connecting": cold(inventory, step) for name, step in ours.items()},
        "OpenSSH scp -r": program("scp", "-q", *place.options(), "-r", source, f"host:{target}"),
        **rsync(place, source, target),
        "tar | ssh tar": program("sh", "-c", pipe),
    }
    check = functools.partial(same_tree, source, target)
    return [
        *(Case(name, warm(pool, inventory, s), before(target, pool, inventory), check) for name, s in ours.items()),
        *(Case(name, work, before(target), check) for name, work in others.items()),
    ]


def again_cases(place: Place, pool: Pool, source: Path, target: Path) -> list[Case]:
    """Those that compare, each with a copy of its own that is there already."""
    inventory = place.inventory()
    copies = {name: target.with_name(f"kept-{number}") for number, name in enumerate(("sync", "cold", "rsync"))}
    works = {
        "sftp.Sync": warm(pool, inventory, synchronizing(source, copies["sync"])),
        "sftp.Sync, connecting": cold(inventory, synchronizing(source, copies["cold"])),
        **rsync(place, source, copies["rsync"]),
    }

    def case(name: str, work: Work, copy: Path) -> Case:
        async def ready() -> None:
            if not copy.exists():
                await work()
            await before(None, pool, inventory)()

        return Case(name, work, ready, functools.partial(same_tree, source, copy))

    return [case(name, work, copy) for (name, work), copy in zip(works.items(), copies.values(), strict=False)]


# The fleet: each run in a process of its own, for the memory


async def fleet(directory: Path, sshd: Any, rounds: int) -> None:
    """Copy one file to many hosts at the same time."""
    source = make_file(directory / "file", FLEET_SIZE)
    folder = directory / "remote" / "fleet"
    spec = {"connection": connection_of(directory, sshd), "source": str(source), "folder": str(folder)}
    runs = {
        f"sftp.Put, {AES.partition('@')[0]}": ("ours", AES),
        f"sftp.Put, {CHACHA.partition('@')[0]}": ("ours", CHACHA),
        PSSH: ("pssh", ""),
    }
    if importlib.util.find_spec("pssh") is None:
        del runs[PSSH]
        print(
            "\nparallel-ssh is not installed, so it has no row; ./dev bench installs it where it can (the group peers)."
        )
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, (kind, cipher) in runs.items():
            remove(folder)
            folder.mkdir()
            os.chown(folder, sshd.uid, -1)
            command = [sys.executable, __file__, "--child", kind, json.dumps(spec | {"cipher": cipher})]
            done = await asyncio.to_thread(subprocess.run, command, stdout=subprocess.PIPE, check=True)
            copies = list(folder.iterdir())
            if len(copies) != FLEET_HOSTS or not all(same_file(source, copy) for copy in copies):
                raise SystemExit(f"bench: {name}: not every host has the file")
            if number:
                seen[name].append(json.loads(done.stdout))
    source.unlink()
    report_fleet(seen)


def report_fleet(seen: dict[str, list[dict[str, float]]]) -> None:
    title = f"{FLEET_SIZE} MiB to {FLEET_HOSTS} hosts at once, connecting"
    columns = f"{'s':>9}{'least':>9}{'MiB/s':>9}{'cpu s':>9}{'before MiB':>12}{'peak MiB':>10}"
    print(f"\n{title:{WIDTH}}{columns}   x {PSSH}")
    for name, runs in seen.items():
        wall, cpu, start, most = (statistics.median(r[key] for r in runs) for key in ("wall", "cpu", "start", "peak"))
        least, rate = min(each["wall"] for each in runs), FLEET_HOSTS * FLEET_SIZE / wall
        ratio = f"{wall / statistics.median(r['wall'] for r in seen[PSSH]):9.2f}" if PSSH in seen else ""
        print(f"  {name:{WIDTH - 2}}{wall:9.3f}{least:9.3f}{rate:9.0f}{cpu:9.3f}{start:12.1f}{most:10.1f}{ratio}")


def child(kind: str, spec: dict[str, Any]) -> None:
    """Copy in this process, and print what it took."""
    work = {"ours": fleet_ours, "pssh": fleet_pssh}[kind](spec)
    start, wall, cpu = status("VmHWM"), time.perf_counter(), time.process_time()
    work()
    times = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    print(json.dumps(times | {"start": start, "peak": status("VmHWM")}))


def fleet_addresses() -> list[str]:
    return list(itertools.islice(itertools.cycle(ADDRESSES), FLEET_HOSTS))


def fleet_ours(spec: dict[str, Any]) -> Callable[[], None]:
    from reemote import Inventory, sftp

    options = spec["connection"] | {"encryption_algs": [spec["cipher"]]}
    names = {f"host{number}": address for number, address in enumerate(fleet_addresses())}
    hosts = [{"connection": options | {"host": name, "address": address}} for name, address in names.items()]
    inventory = Inventory.of({"hosts": hosts})

    def work() -> None:
        numbers = itertools.count()  # the hosts share their files
        step: Callable[[], Any] = lambda: sftp.Put(  # noqa: E731
            localpaths=spec["source"], remotepath=f"{spec['folder']}/copy-{next(numbers)}"
        )
        asyncio.run(cold(inventory, step)())

    return work


def fleet_pssh(spec: dict[str, Any]) -> Callable[[], None]:
    clients, gevent = importlib.import_module("pssh.clients"), importlib.import_module("gevent")
    options = spec["connection"]

    def work() -> None:
        client = clients.ParallelSSHClient(
            fleet_addresses(),
            user=options["username"],
            port=options["port"],
            pkey=options["client_keys"][0],
            allow_agent=False,
            identity_auth=False,
        )
        names = [{"remote_file": f"{spec['folder']}/copy-{number}"} for number in range(FLEET_HOSTS)]
        started = client.copy_file(spec["source"], "%(remote_file)s", copy_args=names)
        gevent.joinall(started, raise_error=True)

    return work


# Far away


@contextlib.asynccontextmanager
async def delayed(directory: Path, connection: dict[str, Any]) -> AsyncIterator[Place]:
    """Give the host behind a proxy, in a process of its own."""
    command = [sys.executable, "-m", "bench.proxy", f"{connection['host']}:{connection['port']}", str(DELAY)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield Place(directory, connection | {"port": int(process.stdout.readline())})
        process.stdin.close()


# All of it


def header(directory: Path, rounds: int) -> str:
    said = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=True).stderr
    versions = {
        platform.python_implementation(): platform.python_version(),
        "OpenSSH": said.partition("_")[2].split()[0].rstrip(","),
        "asyncssh": importlib.metadata.version("asyncssh"),
        "cryptography": importlib.metadata.version("cryptography"),
    }
    if shutil.which("rsync"):
        said = subprocess.run(["rsync", "--version"], capture_output=True, text=True, check=True).stdout
        versions["rsync"] = said.split()[2]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        versions["parallel-ssh"] = importlib.metadata.version("parallel-ssh")
    kind = "tmpfs" if directory.is_relative_to("/dev/shm") else "a disk, for which only ours wait"
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    lines = [
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        f"{os.cpu_count()} cores, for client and server together; load {load} at the start; files on {kind}",
        f"Medians of {rounds} runs that take turns, and the least; cpu is the client's.",
        "Ours and asyncssh are connected before the clock starts, except where it says connecting;",
        "the programs connect each time.",
    ]
    return "\n".join(lines)


async def run(parts: Sequence[str], rounds: int, size: int) -> None:
    this = asyncio.current_task()
    assert this is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)  # as Ctrl-C: what lies in memory goes
    with hosts() as (directory, sshd):
        print(header(directory, rounds))
        place = Place(directory, connection_of(directory, sshd))
        if not shutil.which("rsync"):
            print("There is no rsync, so it has no rows.")
        if "big" in parts:
            await big(place, directory, size, rounds, (AES, CHACHA), "")
        if "small" in parts:
            await small(place, directory, 1000, rounds, "")
        if "delay" in parts:
            async with delayed(directory, connection_of(directory, sshd)) as far:
                where = f", {2000 * DELAY:g} ms"
                await big(far, directory, min(size, DELAYED_SIZE), rounds, (AES,), where)
                for count in (100, 1000):
                    await small(far, directory, count, rounds, where)
        if "fleet" in parts:
            await fleet(directory, sshd, rounds)


def some_parts(text: str) -> list[str]:
    found = text.split(",")
    if unknown := set(found) - set(PARTS):
        raise argparse.ArgumentTypeError(f"there is no part {', '.join(sorted(unknown))}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure transfers beside those of other programs.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=256, help="MiB of the one file")
    parser.add_argument("--only", type=some_parts, default=list(PARTS), metavar="PART,...", help=", ".join(PARTS))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child[0], json.loads(arguments.child[1]))
    else:
        asyncio.run(run(arguments.only, arguments.rounds, arguments.size))


if __name__ == "__main__":
    main()
