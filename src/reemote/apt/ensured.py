"""The state of packages: installed, or not."""

from __future__ import annotations

from typing import NamedTuple, Self

from pydantic import Field, model_validator

from ..core.errors import HostError
from ..core.host import Host
from ..core.operation import Effect
from ..core.remote import Remote
from ..core.response import Response
from .commands import (
    LockTimeout,
    changed_by,
    install_arguments,
    refreshed_by,
    remove_arguments,
    simulated_by,
)
from .names import VersionedNames, Wanted
from .packages import FORMAT, Change, Changes, Entry, entries
from .running import LOCK_TIMEOUT, Apt


class _State(NamedTuple):
    """What a host has of the packages that are asked for."""

    native: str
    found: list[Entry]

    def has(self, wanted: Wanted) -> bool:
        """Whether it is installed, in a version that was asked for."""
        return any(
            entry.works
            and entry.name == wanted.name
            and wanted.is_architecture(entry.architecture, self.native)
            and wanted.is_version(entry.version)
            for entry in self.found
        )

    def provides(self, wanted: Wanted) -> bool:
        """Whether it is the name of a virtual package, or may be, and another package provides that."""
        plain = wanted.architecture is None and wanted.version is None
        return plain and any(entry.works and wanted.name in entry.provided for entry in self.found)

    def remains(self, wanted: Wanted, *, purge: bool) -> bool:
        """Whether anything is left of it that is to be removed.

        Without an architecture in the name APT may mean any, so it has to say itself whether this one.
        """
        return any(
            (entry.is_there or (purge and entry.status == "config-files"))
            and entry.name == wanted.name
            and (wanted.architecture is None or wanted.is_architecture(entry.architecture, self.native))
            for entry in self.found
        )

    def version(self, wanted: Wanted) -> str | None:
        """Give the version that is installed."""
        return next((e.version for e in self.found if e.name == wanted.name and e.is_there), None)


class Package(Remote[Changes]):
    """Ensure that APT packages are installed, or that they are not.

    Where that is so, nothing is run. A package that is installed is not upgraded, unless a version is asked for,
    as in ``nginx=1.22.*``, and it has another. A virtual package such as ``mail-transport-agent`` is installed
    where a package is that provides it; to remove one, name the package. The value tells what has changed,
    dependencies included.
    """

    effect = Effect.ENSURES

    packages: VersionedNames = Field(examples=[["nginx"]])
    """The packages to manage."""
    present: bool = True
    """Whether they should be installed."""
    update: bool = False
    """Whether to refresh the lists of packages before something is installed, if they are old."""
    cache_valid_time: int = Field(default=3600, ge=0, le=2**31 - 1)
    """Seconds until lists of packages are old, for ``update``."""
    purge: bool = False
    """Whether to remove configuration files, too, where the packages should not be installed."""
    install_recommends: bool | None = None
    """Whether to install what the packages recommend, too; by default as the host is set up."""
    lock_timeout: LockTimeout = LOCK_TIMEOUT
    """Seconds to wait while another program holds a lock of APT or dpkg."""

    @model_validator(mode="after")
    def _check_versions(self) -> Self:
        if not self.present and any("=" in package for package in self.packages):
            raise ValueError("packages are removed whatever their version: name them without one")
        return self

    async def perform(self, host: Host) -> Response[Changes]:
        """Look, and install or remove what differs."""
        apt = Apt(host, self.run_options(), self.lock_timeout)
        differing = list(await self._differing(apt))
        if not differing:
            return _response([])
        is_fresh = False
        if self.present and self.update:
            _, is_fresh = await refreshed_by(apt, self.cache_valid_time)
        try:
            _, changes = await changed_by(apt, self._arguments(differing), differing)
        except HostError as error:
            # The lists are something that changed, too.
            error.changed = True if is_fresh else error.changed
            raise
        return _response(changes, changed=is_fresh or bool(changes))

    async def predict(self, host: Host) -> Response[Changes]:
        """Look, and have APT say what it would install or remove."""
        apt = Apt(host, self.run_options(), self.lock_timeout)
        differing = await self._differing(apt)
        if not differing:
            return _response([])
        try:
            _, changes = await simulated_by(apt, self._arguments(list(differing)), list(differing))
        except HostError as error:
            if error.kind != "CommandFailed" or not (self.present and self.update):
                raise
            # New lists may know more than these do, but nobody can say what.
            changes = [
                Change(name=text.partition("=")[0], before=before, after=None) for text, before in differing.items()
            ]
        return _response(changes)

    def _arguments(self, packages: list[str]) -> list[str]:
        if self.present:
            return install_arguments(packages, self.install_recommends)
        return remove_arguments(packages, purge=self.purge)

    async def _differing(self, apt: Apt) -> dict[str, str | None]:
        """Give the packages that are not as they should be, with the versions that are installed."""
        asked = [Wanted.of(package) for package in dict.fromkeys(self.packages)]
        native, lines = await apt.installed(FORMAT, [wanted.name for wanted in asked])
        state = _State(native, list(entries(lines)))
        if self.present:
            missing = [wanted for wanted in asked if not state.has(wanted)]
            if provided := [wanted.name for wanted in missing if state.provides(wanted)]:
                virtual = set(provided) - await apt.known(provided)
                missing = [wanted for wanted in missing if wanted.name not in virtual or not state.provides(wanted)]
        else:
            missing = [wanted for wanted in asked if state.remains(wanted, purge=self.purge)]
        return {wanted.text: state.version(wanted) for wanted in missing}


def _response(changes: list[Change], *, changed: bool | None = None) -> Response[Changes]:
    return Response(value=Changes(changes=changes), changed=bool(changes) if changed is None else changed)
