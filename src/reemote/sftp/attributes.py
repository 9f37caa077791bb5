"""Owner, permissions and times: set what differs from what was asked for, and see that it is so then."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from ..core.errors import HostError, SFTPError
from ..core.files import Attributes, Files, Path, Permissions, Times, printable, whole_seconds
from ..core.remote import Privileged

Number = Annotated[int, Field(ge=0, le=2**32 - 1)]
"""The number of a user or a group."""

Seconds = Annotated[float, Field(ge=0, lt=2**32, allow_inf_nan=False)]
"""A time in seconds since the epoch, as SFTP can tell it: until 2106."""

_SECOND = 10**9
_SET_ID = 0o6000


@dataclass
class Progress:
    """What an operation has done so far, for the response of one that fails, too."""

    changed: bool = False


@dataclass(frozen=True)
class Asked:
    """What a file is to be like; what is ``None`` stays as it is."""

    permissions: int | None = None
    uid: int | None = None
    gid: int | None = None
    times: Times | None = None
    size: int | None = None

    def __bool__(self) -> bool:
        return self != Asked()

    def complaints(self, found: Attributes) -> list[str]:
        """Say what is not as asked for."""
        pairs: list[tuple[str, Any, Any]] = [
            ("permissions", _octal(found.mode), None if self.permissions is None else _octal(self.permissions)),
            ("uid", found.uid, self.uid),
            ("gid", found.gid, self.gid),
            ("size", found.size, self.size),
        ]
        if self.times is not None:
            pairs += [
                ("atime", whole_seconds(found.atime_ns), whole_seconds(self.times[0])),
                ("mtime", whole_seconds(found.mtime_ns), whole_seconds(self.times[1])),
            ]
        return [f"{name} is {now}, not {asked}" for name, now, asked in pairs if asked is not None and now != asked]

    def is_met(self, found: Attributes) -> bool:
        """Whether all is as asked for."""
        return not self.complaints(found)

    def steps(self, found: Attributes, path: Path) -> Iterator[dict[str, Any]]:
        """Give what to set, in the order in which one does not undo the other."""
        if self.size not in (None, found.size):
            yield {"size": self.size}
        owner = self._owner(found, path)
        if owner is not None:
            yield {"owner": owner}
        if self.permissions is not None and (
            self.permissions != found.mode or (owner is not None and self.permissions & _SET_ID)
        ):  # a change of owner clears set-user-ID bits
            yield {"permissions": self.permissions}
        if self.times is not None and not replace(Asked(), times=self.times).is_met(found):
            yield {"times": self.times}

    def _owner(self, found: Attributes, path: Path) -> tuple[int, int] | None:
        uid = found.uid if self.uid is None else self.uid
        gid = found.gid if self.gid is None else self.gid
        if (uid, gid) == (found.uid, found.gid):
            return None
        if uid is None or gid is None:
            raise SFTPError(f"the host does not tell who owns {printable(path)}: give uid and gid", kind="SFTPFailure")
        return uid, gid


async def settle(
    files: Files, path: Path, asked: Asked, found: Attributes, progress: Progress, *, follow: bool = True
) -> None:
    """Set what is not as asked for, and look whether it is then.

    Args:
        files: The file system.
        path: The file.
        asked: What it is to be like.
        found: What it is like.
        progress: Is told whether something changed.
        follow: Whether a link stands for what it leads to.

    Raises:
        SFTPError: The host refused, or did something else than what was asked.
    """
    begun = False
    try:
        for step in asked.steps(found, path):
            await files.set(path, follow=follow, **step)
            begun = True
        if not begun:
            return
        after = await files.stat(path, follow=follow)
    except HostError:
        progress.changed |= begun
        raise
    progress.changed |= after != found
    check(path, asked, after)


def check(path: Path, asked: Asked, found: Attributes) -> None:
    """Refuse to call done what the host did not do, although it said so.

    Raises:
        SFTPError: Something is not as asked for.
    """
    if complaints := asked.complaints(found):
        text = "; ".join(complaints)
        raise SFTPError(f"the host did not do what was asked for {printable(path)}: {text}", kind="SFTPFailure")


class TimesAsked(Privileged[None]):
    """The parameters that set times, both or none."""

    atime: Seconds | None = None
    """When it was last read, in seconds since the epoch; together with ``mtime``."""
    mtime: Seconds | None = None
    """When its content last changed, in seconds since the epoch; together with ``atime``."""

    @model_validator(mode="after")
    def _check_times(self) -> Self:
        if (self.atime is None) != (self.mtime is None):
            raise ValueError("atime and mtime are set together: give both")
        return self

    def times(self) -> Times | None:
        """Give the times in nanoseconds."""
        if self.atime is None or self.mtime is None:
            return None
        return nanoseconds(self.atime), nanoseconds(self.mtime)


class OwnerAsked(Privileged[None]):
    """The parameters that set the owner."""

    uid: Number | None = Field(default=None, examples=[1000])
    """The number of the user who is to own it."""
    gid: Number | None = Field(default=None, examples=[1000])
    """The number of the group that is to own it."""


class PermissionsAsked(Privileged[None]):
    """The parameter that sets permissions."""

    permissions: Permissions | None = Field(default=None, examples=["0644"])
    """The permission bits: a number, or octal digits as text, such as ``0644``; what a query has is text."""


class AttributesAsked(TimesAsked, OwnerAsked, PermissionsAsked):
    """The parameters that set owner, permissions and times."""

    def asked(self) -> Asked:
        """Give what was asked for."""
        return Asked(self.permissions, self.uid, self.gid, self.times())


def nanoseconds(seconds: float) -> int:
    """Give a time in nanoseconds; whole seconds exactly."""
    whole = int(seconds)
    return whole * _SECOND + int((seconds - whole) * _SECOND)


def _octal(mode: int) -> str:
    return f"{mode:04o}"


_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def kind(found: Attributes) -> str:
    """Say what something is."""
    return _KINDS.get(stat.S_IFMT(found.permissions), "something")
