"""An offline APT repository on machines of the tests, and the small packages that are in it.

``Package`` says what is in a ``.deb``; ``Repository`` puts packages on machines as a ``file:`` source, the only
one they then have, so that ``apt-get update``, ``install``, ``upgrade``, ``remove`` work for real and offline::

    repository = Repository(machine)
    repository.add(Package("tree"), Package("forest", depends="tree (>= 1.0)"))
    machine.run(["apt-get", "update"]).check_returncode()
    machine.run(["apt-get", "install", "-y", "forest"]).check_returncode()
    repository.add(Package("tree", "2.0"))  # an upgrade, after the next update

It works on every ``Machine``, be it one of a ``RootWorld`` or of a ``Lab``.
"""

from __future__ import annotations

import contextlib
import email.utils
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.openssh import Machine

REPOSITORY = "/srv/repository"
"""Where the repository is on the machines."""

SOURCE = f"deb [trusted=yes] file:{REPOSITORY} lab main\n"
"""The line of the source."""

SOURCE_FILE = "/etc/apt/sources.list"
"""Where that line is; ``sources.list.d`` is empty."""


@dataclass(frozen=True)
class Package:
    """A small Debian package: what its control file says, and what is in it.

    ``depends`` and the like are texts as in a control file, such as ``"tree (>= 1.0), sudo"``; ``fields`` takes
    the others (``{"Essential": "yes"}``). ``files`` and ``conffiles`` map absolute paths to texts; unless told,
    there is one file, ``/usr/share/NAME/version``, with the version in it. ``scripts`` maps ``preinst``,
    ``postinst``, ``prerm``, ``postrm`` to shell commands; see ``failing`` and ``waiting``. ``control`` adds other
    files as they are (``config``, ``templates``, ``triggers``).
    """

    name: str
    version: str = "1.0"
    architecture: str = "all"
    depends: str = ""
    recommends: str = ""
    conflicts: str = ""
    provides: str = ""
    section: str = "misc"
    summary: str = "a package of the tests"
    fields: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    conffiles: Mapping[str, str] = field(default_factory=dict)
    scripts: Mapping[str, str] = field(default_factory=dict)
    control: Mapping[str, str] = field(default_factory=dict)

    @property
    def file_name(self) -> str:
        """The name of the package file; an epoch is not part of it."""
        return f"{self.name}_{self.version.rpartition(':')[2]}_{self.architecture}.deb"

    @property
    def paragraph(self) -> str:
        """The text of the control file."""
        values = {
            "Package": self.name,
            "Version": self.version,
            "Architecture": self.architecture,
            "Maintainer": "The tests <tests@example.org>",
            "Depends": self.depends,
            "Recommends": self.recommends,
            "Conflicts": self.conflicts,
            "Provides": self.provides,
            "Section": self.section,
            "Priority": "optional",
            **self.fields,
            "Description": self.summary,
        }
        return "".join(f"{name}: {value}\n" for name, value in values.items() if value)

    def build(self) -> bytes:
        """Make the package file."""
        return _built(self.paragraph, _frozen(self._contents()))

    def _contents(self) -> dict[str, tuple[str, int]]:
        """Every file of the tree that ``dpkg-deb`` packs, with its mode."""
        files = {**self.files, **self.conffiles} or {f"/usr/share/{self.name}/version": f"{self.version}\n"}
        contents = {path.lstrip("/"): (text, 0o644) for path, text in files.items()}
        for name, text in self.scripts.items():
            contents[f"DEBIAN/{name}"] = (f"#!/bin/sh\nset -e\n{text}\n", 0o755)
        for name, text in self.control.items():
            contents[f"DEBIAN/{name}"] = (text, 0o755 if text.startswith("#!") else 0o644)
        if self.conffiles:
            contents["DEBIAN/conffiles"] = ("".join(f"{path}\n" for path in self.conffiles), 0o644)
        return contents


def failing(status: int = 1, message: str = "this script fails") -> str:
    """A script of a package that fails, for ``Package(scripts={"postinst": failing()})``."""
    return f"echo {shlex.quote(message)} >&2\nexit {status}"


def waiting(path: str) -> str:
    """A script of a package that makes the file ``PATH.started`` and waits until ``PATH`` exists.

    Meanwhile APT and dpkg hold their locks. The test waits for the one file and makes the other::

        machine.path("/run/go").touch()
    """
    path = shlex.quote(path)
    return f"touch {path}.started\nwhile [ ! -e {path} ]; do sleep 0.02; done"


class Repository:
    """An APT repository on one or more machines: their only source of packages.

    ``add`` and ``remove`` change what it offers, on all its machines; these know after ``apt-get update``.
    Several versions of a package may be there. The suite is ``lab``, the component ``main``, the origin ``Lab``.
    """

    def __init__(self, *machines: Machine) -> None:
        self.packages: list[Package] = []
        self._machines = machines
        self._architecture = _architecture()
        for machine in machines:
            etc = machine.path("/etc/apt")
            _empty(etc / "sources.list.d")
            _empty(machine.path("/var/lib/apt/lists"))
            machine.path(SOURCE_FILE).write_text(SOURCE)
            # What a machine of the world has from this one: packages, downloaded or being installed.
            for each in machine.path("/var/cache/apt/archives").glob("*.deb"):
                each.unlink()
            for cache in machine.path("/var/cache/apt").glob("*.bin"):
                cache.unlink()
        self._publish()

    def add(self, *packages: Package) -> None:
        """Offer packages, too."""
        for package in packages:
            content = package.build()
            for machine in self._machines:
                path = self.file(machine, package)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        self.packages += packages
        self._publish()

    def remove(self, *names: str) -> None:
        """Offer all versions of these packages no longer."""
        gone = [each for each in self.packages if each.name in names]
        self.packages = [each for each in self.packages if each not in gone]
        for package in gone:
            for machine in self._machines:
                self.file(machine, package).unlink(missing_ok=True)
        self._publish()

    def file(self, machine: Machine, package: Package) -> Path:
        """Where the tests find a package file of the repository, to spoil it: without it a download fails."""
        return machine.path(f"{REPOSITORY}/pool/{package.file_name}")

    def _publish(self) -> None:
        """Write the index. It is replaced at once, so that a running update sees the old or the new one."""
        index = "\n".join(self._entry(package) for package in self.packages).encode()
        name = f"main/binary-{self._architecture}/Packages"
        release = (
            "Origin: Lab\nLabel: Lab\nSuite: lab\nCodename: lab\nComponents: main\n"
            f"Date: {email.utils.formatdate(usegmt=True)}\n"
            f"Architectures: all {self._architecture}\nSHA256:\n {_digest(index)} {len(index)} {name}\n"
        )
        for machine in self._machines:
            suite = machine.path(f"{REPOSITORY}/dists/lab")
            _write(suite / name, index)
            _write(suite / "Release", release.encode())

    def _entry(self, package: Package) -> str:
        content = package.build()
        return (
            f"{package.paragraph}Filename: pool/{package.file_name}\nSize: {len(content)}\nSHA256: {_digest(content)}\n"
        )


def installed(machine: Machine) -> dict[str, str]:
    """The packages that are installed on a machine, with their versions, as dpkg has them."""
    query = ["dpkg-query", "-W", "-f", "${db:Status-Status} ${Package} ${Version}\n"]
    done = machine.run(query)
    done.check_returncode()
    lines = (line.split() for line in done.stdout.splitlines())
    return {name: version for status, name, version in lines if status == "installed"}


def _frozen(contents: Mapping[str, tuple[str, int]]) -> tuple[tuple[str, str, int], ...]:
    return tuple((path, *each) for path, each in contents.items())


@functools.lru_cache(maxsize=256)
def _built(paragraph: str, contents: tuple[tuple[str, str, int], ...]) -> bytes:
    with _directory() as directory:
        tree, package = directory / "tree", directory / "package.deb"
        for name, text, mode in (("DEBIAN/control", paragraph, 0o644), *contents):
            path = tree / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(mode)
        for each in [tree, *(each for each in tree.rglob("*") if each.is_dir())]:
            each.chmod(0o755)
        subprocess.run(
            # Nothing is to be gained by compression. Equal trees shall be equal packages.
            ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(package)],
            check=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=os.environ | {"SOURCE_DATE_EPOCH": "1700000000"},
            timeout=30,
        )
        return package.read_bytes()


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="package-") as name:
        yield Path(name)


@functools.cache
def _architecture() -> str:
    command = ["dpkg", "--print-architecture"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(content)
    temporary.chmod(0o644)
    temporary.replace(path)


def _empty(directory: Path) -> None:
    for each in directory.iterdir() if directory.is_dir() else ():
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        else:
            each.unlink()
    directory.mkdir(parents=True, exist_ok=True)
