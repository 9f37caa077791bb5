"""Commands of a host that save round trips: ``find``, ``sha256sum`` and ``tar``."""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from ..core.errors import ChannelOpenError, ConnectionLost
from ..core.files import Attributes, Node
from ..core.response import Completed
from .wire import framed

_NO_TAR = 79
_UNPACK = f'command -v tar >/dev/null || exit {_NO_TAR}; cd "$a1" || exit {_NO_TAR}; exec tar -xpof -'
_FIND = r"""cd "$a1" && LC_ALL=C find . -mindepth 1 -printf '%y %m %s %U %G %T@ %l\0%P\0' 2>/dev/null"""
_SUMS = "xargs -0 sha256sum -- 2>/dev/null; :"

_TYPES = {b"f": 0o100000, b"d": 0o040000, b"l": 0o120000}
_SPECIAL = 0o020000


class Run(Protocol):
    """Runs a command."""

    async def __call__(self, command: str, *, stdin: Any = None) -> Completed:
        """Run it."""


class Probes:
    """Runs scripts of ours on a host, which may lack what they need.

    Args:
        run: Runs a command.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._can_run: bool | None = None
        """Whether the host runs commands at all: some have SFTP only."""

    async def tree(self, path: bytes) -> dict[bytes, Node] | None:
        """List all that is below a directory; ``None`` where the host has no GNU ``find``."""
        printed = await self._probe(_FIND, path)
        if printed is None or printed[-1:] not in (b"", b"\0"):
            return None
        fields = printed.split(b"\0")[:-1]
        try:
            return {name: _node(line) for line, name in zip(fields[::2], fields[1::2], strict=True)}
        except ValueError:
            return None

    async def digests(self, paths: Sequence[bytes]) -> dict[bytes, bytes]:
        """Give the SHA-256 digests of files, as far as the host can."""
        printed = await self._probe(_SUMS, stdin=b"".join(path + b"\0" for path in paths))
        return _digests_in(printed or b"")

    async def unpack(self, path: bytes, archive: AsyncIterator[bytes]) -> Completed | None:
        """Unpack an archive into a directory, and give the record of ``tar``; ``None`` where the host has none.

        The files belong to the user who unpacks them.
        """
        if self._can_run is None:
            await self._probe(":")
        if not self._can_run:
            return None
        completed = await self._run(framed(f"{_assigned('a1', path)}; {_UNPACK}"), stdin=archive)
        return None if completed.exit_status == _NO_TAR else completed

    async def _probe(self, script: str, *arguments: bytes, stdin: Any = None) -> bytes | None:
        """Run a script and give what it printed; ``None`` where the host cannot run it to its end.

        What the user's start-up files print is told apart by a mark that they cannot know.
        """
        mark = secrets.token_hex(8)
        given = "".join(f"{_assigned(f'a{number}', value)}; " for number, value in enumerate(arguments, 1))
        whole = f"{given}printf %s {mark}; {script}; s=$?; printf %s {mark}; exit $s"
        try:
            completed = await self._run(framed(whole), stdin=stdin)
        except (ChannelOpenError, ConnectionLost):
            return None  # what is wrong else, the next request will tell
        parts = completed.stdout_bytes.split(mark.encode())
        self._can_run = len(parts) == 3
        return parts[1] if self._can_run and completed.exit_status == 0 else None


def _assigned(name: str, value: bytes) -> str:
    """Write a shell assignment of any bytes, in ASCII."""
    octal = "".join(f"\\{byte:03o}" for byte in value)
    return f"{name}=$(printf '{octal}.'); {name}=${{{name}%.}}"  # the dot saves a newline at the end


def _node(line: bytes) -> Node:
    kind, mode, size, uid, gid, time, target = line.split(b" ", 6)
    seconds, _, fraction = time.partition(b".")
    return Node(
        Attributes(
            permissions=_TYPES.get(kind, _SPECIAL) | int(mode, 8),
            size=int(size),
            uid=int(uid),
            gid=int(gid),
            mtime_ns=int(seconds) * 10**9 + int(fraction[:9].ljust(9, b"0") or 0),
        ),
        target,
    )


def _digests_in(printed: bytes) -> dict[bytes, bytes]:
    """Read the lines of ``sha256sum``, which escapes names with a backslash or a newline."""
    found = {}
    for line in printed.split(b"\n"):
        match = re.fullmatch(rb"(\\?)([0-9a-f]{64}) [ *](.*)", line, re.DOTALL)
        if match is None:
            continue
        escaped, digest, name = match.groups()
        if escaped:
            name = re.sub(rb"\\(.)", lambda each: {b"n": b"\n", b"r": b"\r"}.get(each[1], each[1]), name)
        found[name] = bytes.fromhex(digest.decode())
    return found
