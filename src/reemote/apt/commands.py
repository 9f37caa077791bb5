"""The commands of APT: install, remove, update, upgrade."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from ..core.host import Host
from ..core.remote import Command
from ..core.response import Completed, Response
from .names import Names, VersionedNames, doubtful
from .packages import FORMAT, Change, changes_in
from .running import LOCK_TIMEOUT, Apt, apt_get

LockTimeout = Annotated[int, Field(ge=0, le=86_400)]
"""Seconds."""

_SIMULATED = re.compile(
    r"^(?:Inst|Remv|Purg) (?P<name>\S+)(?: \[(?P<before>[^\]]+)\])?(?: \((?P<after>\S+)[^)]*\))?", re.MULTILINE
)

# An installation that is to be mended is not counted there, but in the next line.
_NOTHING = re.compile(r"^0 upgraded, 0 newly installed, 0 to remove and \d+ not upgraded\.\n(?!\d)", re.MULTILINE)


class _AptGet(Command[Completed]):
    """A command of apt-get(8)."""

    lock_timeout: LockTimeout = LOCK_TIMEOUT
    """Seconds to wait while another program holds a lock of APT or dpkg."""

    def arguments(self) -> list[str]:
        """Give the arguments of apt-get."""
        raise NotImplementedError(f"{type(self).__name__} does not override arguments")

    def names(self) -> list[str]:
        """Give the packages that are named."""
        return []

    def to_shell(self) -> str:
        """Write the command line."""
        return shlex.join(apt_get(*self.arguments()))

    async def perform(self, host: Host) -> Response[Completed]:
        """Run it, and compare the packages before and after."""
        apt = Apt(host, self.run_options(), self.lock_timeout)
        record, changes = await changed_by(apt, self.arguments(), self.names())
        return Response(value=record, changed=bool(changes))

    async def predict(self, host: Host) -> Response[Completed]:
        """Have APT say what it would do; that changes nothing, and needs no privileges."""
        apt = Apt(host, self.run_options(), self.lock_timeout)
        record, changes = await simulated_by(apt, self.arguments(), self.names())
        return Response(value=record, changed=bool(changes))


async def changed_by(apt: Apt, arguments: Sequence[str], names: Sequence[str]) -> tuple[Completed, list[Change]]:
    """Run apt-get, and give its record and what it changed.

    Raises:
        HostError: It failed; ``changed`` tells whether that was before it changed anything.
    """
    done = await apt.change(arguments, doubtful(names), FORMAT)
    if _NOTHING.search(done.record.stdout):
        changes: list[Change] | None = []  # what there is came from another, who had the lock before
    else:
        changes = None if done.differences is None else changes_in(done.differences)
    if done.failure is not None:
        done.failure.changed = None if changes is None else bool(changes)
        raise done.failure
    return done.record, changes or []


async def simulated_by(apt: Apt, arguments: Sequence[str], names: Sequence[str]) -> tuple[Completed, list[Change]]:
    """Have apt-get simulate what it would do; otherwise as :func:`changed_by`."""
    record, _ = await changed_by(apt, ["--simulate", *arguments], names)
    return record, simulated_in(record["stdout"])


def simulated_in(text: str) -> list[Change]:
    """Read what ``apt-get --simulate`` would install and remove."""
    found: dict[str, Change] = {}
    for line in _SIMULATED.finditer(text):
        name, before, after = line.group("name", "before", "after")
        # A package may be removed first and then installed in another version.
        first = found.get(name)
        found[name] = Change(name=name, before=first.before if first else before, after=after)
    return [found[name] for name in sorted(found)]


def install_arguments(packages: Sequence[str], recommends: bool | None) -> list[str]:
    """Give the arguments of apt-get that install packages."""
    options = []
    if recommends is not None:
        options.append("--install-recommends" if recommends else "--no-install-recommends")
    if any("=" in package for package in packages):
        options.append("--allow-downgrades")
    return ["install", *options, "--", *packages]


def remove_arguments(packages: Sequence[str], *, purge: bool) -> list[str]:
    """Give the arguments of apt-get that remove packages."""
    return ["purge" if purge else "remove", "--", *packages]


class Install(_AptGet):
    """Install APT packages.

    One that is installed is upgraded, if APT knows of a newer version. A version is asked for as in
    ``nginx=1.22.1-9`` or ``nginx=1.22.*``; only then may a package be downgraded.
    """

    packages: VersionedNames = Field(examples=[["nginx"]])
    """The packages to install."""
    install_recommends: bool | None = None
    """Whether to install what the packages recommend, too; by default as the host is set up."""

    def arguments(self) -> list[str]:
        """Give the arguments of apt-get."""
        return install_arguments(self.packages, self.install_recommends)

    def names(self) -> list[str]:
        """Give the packages that are named."""
        return self.packages


class Remove(_AptGet):
    """Remove APT packages.

    Packages that depend on them are removed, too; what they depend on themselves stays.
    """

    packages: Names = Field(examples=[["nginx"]])
    """The packages to remove."""
    purge: bool = False
    """Whether to remove their configuration files, too."""

    def arguments(self) -> list[str]:
        """Give the arguments of apt-get."""
        return remove_arguments(self.packages, purge=self.purge)

    def names(self) -> list[str]:
        """Give the packages that are named."""
        return self.packages


class Update(_AptGet):
    """Refresh the lists of the packages that there are.

    It fails if a source cannot be read. ``changed`` tells whether any list is another than before.
    """

    def arguments(self) -> list[str]:
        """Give the arguments of apt-get."""
        return ["update"]

    async def perform(self, host: Host) -> Response[Completed]:
        """Run it, and compare the lists before and after."""
        record, changed = await refreshed_by(Apt(host, self.run_options(), self.lock_timeout), 0)
        return Response(value=record, changed=changed)

    async def predict(self, host: Host) -> Any:
        """Leave it out of a dry run: nobody knows what is new without asking for it."""
        return await Command.predict(self, host)


async def refreshed_by(apt: Apt, valid: int) -> tuple[Completed, bool]:
    """Refresh the lists that are older than *valid* seconds; give the record, and whether any list changed.

    Raises:
        HostError: A source cannot be read; ``changed`` tells whether other lists changed.
    """
    done = await apt.refresh(valid)
    if done.failure is not None:
        done.failure.changed = None if done.differences is None else bool(done.differences)
        raise done.failure
    return done.record, bool(done.differences)


class Upgrade(_AptGet):
    """Upgrade the packages that are installed, as far as their lists know of newer versions.

    Nothing is removed, and nothing is installed that was not, unless ``full`` is set.
    """

    full: bool = False
    """Whether packages may be installed and removed for it, as a new kernel needs it (``dist-upgrade``)."""

    def arguments(self) -> list[str]:
        """Give the arguments of apt-get."""
        return ["dist-upgrade" if self.full else "upgrade"]
