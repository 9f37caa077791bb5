"""Patterns of paths, as asyncssh's SFTP client has them: ``*``, ``?``, ``[...]``, and ``**`` for directories."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase

from ..core.files import Attributes, Entry

_MAGIC = frozenset(b"*?[]")


def is_pattern(path: bytes) -> bool:
    """Whether it has a character with a meaning."""
    return not _MAGIC.isdisjoint(path)


class Matcher:
    """What finds the paths that match.

    As in asyncssh, a leading dot is a character like others, and no link is followed where the
    pattern has a meaning; names in front of it may be links.

    Args:
        entries: Lists a directory; ``None`` for what cannot be listed.
        lookup: Gives what is at a path, a link being itself; ``None`` where nothing is.
    """

    def __init__(
        self, entries: Callable[[bytes], Sequence[Entry] | None], lookup: Callable[[bytes], Attributes | None]
    ) -> None:
        self._entries = entries
        self._lookup = lookup

    def matches(self, pattern: bytes) -> Iterator[bytes]:
        """Give the paths that match a pattern; some more than once where it has ``**`` twice."""
        names = [name for name in pattern.split(b"/") if name]
        if pattern.endswith(b"/") and names:
            names.append(b"")  # directories only
        return self._below(b"/" if pattern.startswith(b"/") else b"", names)

    def _below(self, path: bytes, names: Sequence[bytes]) -> Iterator[bytes]:
        if not names:
            if path:
                yield path
        elif is_pattern(names[0]):
            yield from self._matching(path, names)
        else:
            exact = posixpath.join(path, names[0])
            if len(names) > 1:
                yield from self._below(exact, names[1:])
            elif (found := self._lookup(exact)) is not None and (names[0] or found.is_directory):
                yield exact

    def _matching(self, path: bytes, names: Sequence[bytes]) -> Iterator[bytes]:
        name, rest = names[0], names[1:]
        entries = self._entries(path or b".")
        if name == b"**" and (entries is not None or self._is_directory(path)):
            yield from self._below(path, rest)
        for entry in entries or ():
            if not fnmatchcase(entry.name, name):
                continue
            below = posixpath.join(path, entry.name)
            if entry.attributes.is_directory and (rest or name == b"**"):
                yield from self._below(below, names if name == b"**" else rest)
            elif not rest:
                yield below

    def _is_directory(self, path: bytes) -> bool:
        found = self._lookup(path) if path else None
        return found is not None and found.is_directory
