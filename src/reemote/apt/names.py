"""What packages are called, and which names are refused before any host is asked.

``apt-get`` reads more into a name than is good: ``nginx-`` given to ``install`` removes nginx, ``nginx=1.0-`` as
well, ``nginx+`` given to ``remove`` installs it, and a name with a dot that no package has is a regular
expression. So names end in neither, and the host looks up whether one with a dot or a plus exists.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Annotated, NamedTuple, Self

from pydantic import AfterValidator, Field

_LONGEST = 128
_NAME = "[a-z0-9][a-z0-9+.-]*[a-z0-9+.](:[a-z0-9][a-z0-9-]*[a-z0-9])?"
# APT takes no more than one asterisk for what it is.
_END = "([A-Za-z0-9.+~:-]*[A-Za-z0-9.~])?"
_VERSION = "([A-Za-z0-9]" + _END + r"|([A-Za-z0-9][A-Za-z0-9.+~:-]*)?\*" + _END + ")"

_PLAIN = re.compile(_NAME)
_VERSIONED = re.compile("(" + _NAME + ")(=" + _VERSION + ")?")


def _plain(value: str) -> str:
    if not _PLAIN.fullmatch(value):
        raise ValueError("a package is NAME or NAME:ARCHITECTURE, in small letters")
    return value


def _versioned(value: str) -> str:
    if not _VERSIONED.fullmatch(value):
        raise ValueError(
            "a package is NAME, NAME:ARCHITECTURE or NAME=VERSION, in small letters; "
            "one * in the version stands for anything"
        )
    return value


_plain_schema = Field(max_length=_LONGEST, json_schema_extra={"pattern": "^" + _NAME + "$"})
_versioned_schema = Field(max_length=_LONGEST, json_schema_extra={"pattern": "^" + _NAME + "(=" + _VERSION + ")?$"})
# All names together, twice, have to fit into one argument of 128 KiB: a command is one.
_several = Field(min_length=1, max_length=400)

Names = Annotated[list[Annotated[str, _plain_schema, AfterValidator(_plain)]], _several]
"""Packages as ``NAME`` or ``NAME:ARCHITECTURE``."""

VersionedNames = Annotated[list[Annotated[str, _versioned_schema, AfterValidator(_versioned)]], _several]
"""Packages as ``NAME``, ``NAME:ARCHITECTURE``, or either with ``=VERSION``, in which one ``*`` stands for anything."""


class Wanted(NamedTuple):
    """A package as it is asked for."""

    text: str
    name: str
    architecture: str | None
    version: str | None

    @classmethod
    def of(cls, text: str) -> Self:
        """Read a name that was checked."""
        full, _, version = text.partition("=")
        name, _, architecture = full.partition(":")
        return cls(text, name, None if architecture in ("", "native") else architecture, version or None)

    def is_architecture(self, architecture: str, native: str) -> bool:
        """Whether a package for *architecture* is meant; without one in the name, it is the host's own."""
        if self.architecture == "any":
            return True
        asked = self.architecture or native
        return architecture == asked or (architecture == "all" and asked == native)

    def is_version(self, version: str) -> bool:
        """Whether *version* is one that was asked for; any will do where none was."""
        return self.version is None or fnmatchcase(version, self.version)


def doubtful(names: Iterable[str]) -> list[str]:
    """Give the names, without anything behind them, that APT may read as something else if it does not know them."""
    plain = dict.fromkeys(Wanted.of(name).name for name in names)
    return [name for name in plain if "." in name or "+" in name]
