"""Write a tar archive as a stream: many small files in one go."""

from __future__ import annotations

import tarfile
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from ..core.errors import SFTPError
from ..core.files import Files, Node, printable, shown, whole_seconds
from .pump import in_order
from .shared import shared

PIECE = 128 * 1024
"""Bytes that are given at a time."""


@dataclass(frozen=True)
class Member:
    """One thing to put into an archive."""

    name: bytes
    """Its path in the archive."""
    source: bytes
    """Its path here."""
    node: Node


async def archive(
    files: Files, members: Iterable[Member], progress: Callable[[Member, int], Any] = lambda *_: None
) -> AsyncGenerator[bytes, None]:
    """Give the bytes of an archive in the format of GNU tar, which all of today's read.

    Args:
        files: Where the members are.
        members: What to put into it, directories before what is in them.
        progress: Called with a member and a number of bytes after each part of it.

    Raises:
        HostError: A member cannot be read, or became shorter meanwhile.
    """
    kept = bytearray()
    for member in members:
        kept += _header(member)
        size = member.node.attributes.size if member.node.attributes.is_file else 0
        if size:
            async with aclosing(_content(files, member, size)) as content:
                async for data in content:
                    kept += data
                    progress(member, len(data))
                    if len(kept) >= PIECE:
                        yield bytes(kept)
                        kept.clear()
            kept += bytes(-size % tarfile.BLOCKSIZE)
        else:
            progress(member, 0)
    yield bytes(kept) + bytes(2 * tarfile.BLOCKSIZE)


async def _content(files: Files, member: Member, size: int) -> AsyncGenerator[bytes, None]:
    left = size
    async with shared(files, member.source) as file, aclosing(in_order(file, size, files.block)) as parts:
        async for data in parts:
            left -= len(data)
            yield data
    if left:
        raise SFTPError(f"{printable(member.source)} became shorter while it was sent", kind="SFTPFailure")


def _header(member: Member) -> bytes:
    attributes = member.node.attributes
    info = tarfile.TarInfo(shown(member.name))
    info.mode, info.mtime = attributes.mode, whole_seconds(attributes.mtime_ns) or 0
    if attributes.is_directory:
        info.type = tarfile.DIRTYPE
    elif attributes.is_link:
        info.type, info.linkname = tarfile.SYMTYPE, shown(member.node.target)
    else:
        info.size = attributes.size
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
