"""The root file system of the lab's hosts: made by debootstrap once, and kept in a cache.

The cache has, for each recipe, a tarball (``NAME.tar.gz``) and the directory that was unpacked from it
(``NAME``), which is the lower layer of every host and is never written to. The directory is
``REEMOTE_LAB_CACHE`` or ``reemote-lab`` in the user's cache directory. The hosts are of the Debian that this machine
is, or of the one that ``REEMOTE_LAB_SUITE`` names, such as ``trixie``.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.openssh import ServerFailed, _environment, _missing


def _cache_directory() -> Path:
    own = os.environ.get("REEMOTE_LAB_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reemote-lab"


# Resolved when the tests are collected: each test has a home of its own.
CACHE = _cache_directory().absolute()
"""Where the images are kept."""

SUITE = os.environ.get("REEMOTE_LAB_SUITE", "")
"""The suite of Debian that the hosts are of, if not this machine's."""

PACKAGES = (
    "apt-utils",  # without it debconf complains at each installation
    "openssh-server",
    "procps",  # ps and pgrep, to see what runs
    "sudo",
)
"""What a host has, besides the packages that are essential or that APT needs."""

BUILD_DEADLINE = 1200.0

# Arguments: directory, suite, mirror, packages, new tarball. The tree grows in memory: what dpkg writes need not
# reach a disk, and when the build is killed nothing is left, as the mounts end with the namespace.
_BUILD = """
directory=$1 suite=$2 mirror=$3 packages=$4 tarball=$5
mount -t tmpfs -o mode=755,size=2g tmpfs "$directory"
root=$directory/root
if ! debootstrap --variant=minbase --include="$packages" "$suite" "$root" "$mirror" >"$directory/log"; then
    said=$(grep '^E:' "$directory/log" | tail -n 1)
    more=$(tail -n 1 "$root/debootstrap/debootstrap.log" 2>/dev/null || true)
    echo "debootstrap: ${said#E: }${more:+; }$more" >&2
    exit 1
fi
"""

# What is of this build, not of a Debian host: its keys and names, and what it downloaded. There is no network,
# hence no sources; and no service manager, hence no services that packages start.
_FINISH = """
rm -rf "$root"/etc/ssh/ssh_host_* "$root"/var/cache/apt/archives/*.deb "$root"/var/cache/apt/*.bin
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/log/bootstrap.log "$root"/var/log/apt/*
: >"$root/etc/apt/sources.list"
: >"$root/etc/machine-id"
: >"$root/etc/hostname"
rm -f "$root/etc/resolv.conf"
printf '#!/bin/sh\\nexit 101\\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
tar -C "$root" --numeric-owner --one-file-system -I 'gzip -1' -cf "$tarball" .
sync "$tarball"
"""


class BuildFailed(ServerFailed):
    """The image could not be built; the message says why."""


@dataclass(frozen=True)
class Recipe:
    """What an image is made of: a suite of Debian (default: ``SUITE``) and packages of it."""

    suite: str = ""
    packages: tuple[str, ...] = PACKAGES

    @property
    def codename(self) -> str:
        """The suite by name."""
        return self.suite or SUITE or _this_suite()

    @property
    def name(self) -> str:
        """The name of the image in the cache: it differs when anything else does."""
        parts = [self.codename, _architecture(), *sorted(self.packages), _BUILD, _FINISH]
        return f"{self.codename}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}"

    @property
    def tarball(self) -> Path:
        """The image as one file."""
        return CACHE / f"{self.name}.tar.gz"

    @property
    def root(self) -> Path:
        """The image unpacked."""
        return CACHE / self.name

    def ensure(self) -> Path:
        """Build and unpack the image unless that was done; return its root directory.

        Several processes may ask at the same time: one builds, the others wait for it.
        """
        if not self.root.is_dir():
            with self._lock():
                if not self.tarball.exists():
                    self._build()
                if not self.root.is_dir():
                    self._unpack()
        return self.root

    def remove(self) -> None:
        """Forget the image. Hosts that run keep what they have of it only until they read more of it."""
        with self._lock():
            self.tarball.unlink(missing_ok=True)
            if self.root.is_dir():
                # The name goes at once, the files in their time.
                with _scratch(self.name) as scratch:
                    self.root.rename(scratch / "old")

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        CACHE.mkdir(parents=True, exist_ok=True)
        with (CACHE / f"{self.name}.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _build(self) -> None:
        mirror = _mirror(self.codename)
        with _scratch(self.name) as scratch:
            script, made = scratch / "build.sh", scratch / "image.tar.gz"
            script.write_text(_BUILD + _FINISH)
            tree = scratch / "tree"
            tree.mkdir()
            own = ["setpriv", "--pdeathsig=KILL", "unshare", "-m", "-p", "--fork", "--kill-child", "--mount-proc"]
            what = [str(tree), self.codename, mirror, ",".join(self.packages), str(made)]
            _run([*own, "sh", "-eu", str(script), *what], _proxies())
            made.replace(self.tarball)

    def _unpack(self) -> None:
        with _scratch(self.name) as scratch:
            tree = scratch / "tree"
            tree.mkdir(mode=0o755)
            _run(["tar", "-C", str(tree), "--numeric-owner", "-xpzf", str(self.tarball)])
            tree.rename(self.root)


def why_no_image(recipe: Recipe | None = None) -> str | None:
    """Say in one line why the image can neither be used nor built here; ``None`` if it can."""
    recipe = recipe or Recipe()
    if os.geteuid() != 0:
        return "needs root, for the files of all users"
    # Without dpkg not even the name is known.
    needed = _missing(["dpkg", "gzip", "tar"])
    if needed is None and not (recipe.root.is_dir() or recipe.tarball.exists()):
        needed = _missing(["apt-get", "debootstrap", "gpgv", "setpriv", "unshare"])
    return needed


def main(arguments: list[str]) -> int:
    """Build the image unless it is there, and say where it is."""
    if set(arguments) - {"--again"}:
        print("usage: python -m tests.lab [--again]\n\nBuild the root file system of the lab's hosts, if need be.")
        return 2
    if (reason := why_no_image()) is not None:
        print(f"lab: {reason}", file=sys.stderr)
        return 1
    recipe = Recipe()
    if "--again" in arguments:
        recipe.remove()
    begin = time.monotonic()
    try:
        root = recipe.ensure()
    except BuildFailed as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    size = recipe.tarball.stat().st_size / 2**20 if recipe.tarball.exists() else 0
    print(f"{root} (tarball of {size:.0f} MiB; {time.monotonic() - begin:.1f} s)")
    return 0


@functools.cache
def _this_suite() -> str:
    text = Path("/etc/os-release").read_text()
    found = re.search(r"^VERSION_CODENAME=(\S+)$", text, re.MULTILINE)
    if found is None:
        raise BuildFailed("this machine is no release of Debian: name a suite")
    return found[1]


@functools.cache
def _architecture() -> str:
    return _output(["dpkg", "--print-architecture"]).strip()


def _mirror(suite: str) -> str:
    """Where this machine has Debian from: the mirror of the suite, or of the machine's own one."""
    for each in (suite, _this_suite()):
        # What the lists say comes first: other repositories use Debian's names of suites, too.
        fields = ["Created-By: Packages", "Origin: Debian", f"Codename: {each}"]
        known = _output(["apt-get", "indextargets", "--format", "$(REPO_URI)", *fields]).split()
        if not known:
            uris = _output(["apt-get", "update", "--print-uris"])
            known = re.findall(rf"^'(\S+)/dists/{re.escape(each)}/InRelease'", uris, re.MULTILINE)
        if known:
            return known[0].rstrip("/")
    raise BuildFailed("the sources of APT on this machine name no mirror of Debian")


def _proxies() -> dict[str, str]:
    """The proxy that APT uses on this machine, and what the environment says."""
    found = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    asked = ["http_proxy", "Acquire::http::Proxy", "https_proxy", "Acquire::https::Proxy"]
    said = _output(["apt-config", "shell", *asked])
    for line in shlex.split(said):
        name, _, value = line.partition("=")
        if value and value != "DIRECT":
            found[name] = value
    return found


@contextlib.contextmanager
def _scratch(name: str) -> Iterator[Path]:
    """A directory in the cache for what is not finished; what killed builds have left goes, too."""
    for old in CACHE.glob(f"{name}.new-*"):
        shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{name}.new-", dir=CACHE) as directory:
        yield Path(directory)


def _output(command: list[str]) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=_environment(), timeout=60)
    if done.returncode != 0:
        raise BuildFailed(f"{shlex.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _run(command: list[str], more: Mapping[str, str] | None = None) -> None:
    try:
        done = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=_environment() | {"LC_ALL": "C"} | dict(more or {}),
            cwd="/",
            umask=0o022,
            timeout=BUILD_DEADLINE,
        )
    except subprocess.TimeoutExpired:
        raise BuildFailed(f"{shlex.join(command)}: not within {BUILD_DEADLINE:.0f} s") from None
    if done.returncode != 0:
        raise BuildFailed(done.stderr.strip()[-2000:] or f"{shlex.join(command)}: status {done.returncode}")
