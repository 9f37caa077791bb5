"""What is installed: read what dpkg says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..core.host import Host
from ..core.operation import Effect
from ..core.remote import Remote
from ..core.response import Record
from .running import Apt

FORMAT = r"${Package}\t${Architecture}\t${Version}\t${Status}\t${Provides}\n"
"""The lines that dpkg-query(1) writes for us; :class:`Entry` has the same fields."""

_GONE = ("not-installed", "config-files")
_WORKS = ("installed", "triggers-awaited", "triggers-pending")


class InstalledPackage(Record):
    """A package that is installed."""

    name: str
    version: str
    architecture: str
    status: str
    """``installed``, or what dpkg(1) says of one whose installation did not come to its end."""


class InstalledPackages(Record):
    """The packages of a host."""

    packages: list[InstalledPackage]


class Change(Record):
    """A package that was installed, upgraded, downgraded, removed or repaired."""

    name: str
    """Its name, with ``:ARCHITECTURE`` where that is not the host's own."""
    before: str | None
    """The version before; ``None`` where it was not installed."""
    after: str | None
    """The version now; ``None`` where it is not installed."""


class Changes(Record):
    """What has changed on a host, or would."""

    changes: list[Change]


class Entry(NamedTuple):
    """What dpkg knows of one package."""

    name: str
    architecture: str
    version: str
    status: str
    provides: str

    @classmethod
    def of(cls, line: str) -> Entry:
        """Read one line."""
        name, architecture, version, status, provides = line.split("\t")
        return cls(name, architecture, version, status.rpartition(" ")[2], provides)

    @property
    def is_there(self) -> bool:
        """Whether files of it are there, other than configuration files."""
        return self.status not in _GONE

    @property
    def works(self) -> bool:
        """Whether it is installed and configured."""
        return self.status in _WORKS

    @property
    def provided(self) -> list[str]:
        """The virtual packages that it provides."""
        return re.findall(r"(?:^|, )([^\s,:(]+)", self.provides)

    def called(self, native: str) -> str:
        """Give its name, with the architecture if it is not the host's own."""
        return self.name if self.architecture in (native, "all") else f"{self.name}:{self.architecture}"


def entries(lines: Iterable[str]) -> Iterator[Entry]:
    """Read lines in our format, and pass over others."""
    return (Entry.of(line) for line in lines if line.count("\t") == 4)


def changes_in(text: str) -> list[Change]:
    """Read the host's own architecture, and lines that were there before (``-``) or are there now (``+``)."""
    native, *lines = text.splitlines() or [""]
    found: dict[str, dict[str, Entry]] = {}
    for sign in "-+":
        for entry in entries(line[2:] for line in lines if line.startswith(sign)):
            if entry.status != "not-installed":
                found.setdefault(entry.called(native), {})[sign] = entry
    changes = []
    for name, states in sorted(found.items()):
        before, after = states.get("-"), states.get("+")
        # What is to happen with it later, such as a hold, may have changed, too.
        if before is None or after is None or (before.version, before.status) != (after.version, after.status):
            versions = [entry.version if entry and entry.is_there else None for entry in (before, after)]
            changes.append(Change(name=name, before=versions[0], after=versions[1]))
    return changes


class GetPackages(Remote[InstalledPackages]):
    """Get the packages that are installed on the host.

    Those of which only configuration files are left are not among them.
    """

    effect = Effect.READS

    async def perform(self, host: Host) -> InstalledPackages:
        """Ask dpkg."""
        _, lines = await Apt(host, self.run_options()).installed(FORMAT)
        return InstalledPackages(
            packages=[
                InstalledPackage(
                    name=entry.name, version=entry.version, architecture=entry.architecture, status=entry.status
                )
                for entry in entries(lines)
                if entry.is_there
            ]
        )
