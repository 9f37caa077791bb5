"""Patterns of paths, as asyncssh's SFTP client has them: ``*``, ``?``, ``[...]``, and ``**`` for directories."""

from __future__ import annotations

import posixpath
from collections.abc import AsyncIterator, Sequence
from fnmatch import fnmatchcase

from ..core.errors import LocalFileError, SFTPError
from ..core.files import Entry, Files, Path, encoded, printable

_MAGIC = frozenset(b"*?[]")


def is_pattern(path: bytes) -> bool:
    """Whether it has a character with a meaning."""
    return not _MAGIC.isdisjoint(path)


async def glob(files: Files, patterns: Sequence[Path]) -> list[bytes]:
    """Give the paths that match one of the patterns, sorted.

    As in asyncssh, a leading dot is a character like others, and no link is followed where the
    pattern has a meaning; names in front of it may be links.

    Raises:
        HostError: A pattern matches nothing.
    """
    found: set[bytes] = set()
    for pattern in map(encoded, patterns):
        names = [name for name in pattern.split(b"/") if name]
        if pattern.endswith(b"/") and names:
            names.append(b"")  # directories only
        start = b"/" if pattern.startswith(b"/") else b""
        matches = {path async for path in _below(files, start, names)}
        if not matches:
            detail = f"{'nothing matches' if is_pattern(pattern) else 'there is no'} {printable(pattern)}"
            if files.is_remote:
                raise SFTPError(detail, kind="SFTPNoSuchFile")
            raise LocalFileError(f"{detail} (on this machine)", kind="FileNotFoundError")
        found |= matches
    return sorted(found)


async def _below(files: Files, path: bytes, names: Sequence[bytes]) -> AsyncIterator[bytes]:
    """Give what matches below a path; some more than once where there is ``**`` twice."""
    if not names:
        if path:
            yield path
    elif is_pattern(names[0]):
        async for each in _matching(files, path, names):
            yield each
    else:
        exact = posixpath.join(path, names[0])
        if len(names) > 1:
            async for each in _below(files, exact, names[1:]):
                yield each
        elif (found := await files.lookup(exact, follow=False)) is not None and (names[0] or found.is_directory):
            yield exact


async def _matching(files: Files, path: bytes, names: Sequence[bytes]) -> AsyncIterator[bytes]:
    name, rest = names[0], names[1:]
    entries = await _entries(files, path or b".")
    if name == b"**" and (entries is not None or await _is_directory(files, path)):
        async for each in _below(files, path, rest):
            yield each
    for entry in entries or ():
        if not fnmatchcase(entry.name, name):
            continue
        below = posixpath.join(path, entry.name)
        if entry.attributes.is_directory and (rest or name == b"**"):
            async for each in _below(files, below, names if name == b"**" else rest):
                yield each
        elif not rest:
            yield below


async def _entries(files: Files, path: bytes) -> Sequence[Entry] | None:
    """List a directory; ``None`` for what cannot be listed."""
    try:
        return await files.list(path)
    except LocalFileError:
        return None
    except SFTPError as error:
        if error.kind == "SFTPBadMessage":
            raise
        return None


async def _is_directory(files: Files, path: bytes) -> bool:
    found = await files.lookup(path, follow=False) if path else None
    return found is not None and found.is_directory
