"""Copy files and trees from one file system to another."""

from __future__ import annotations

import posixpath
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import ConnectionLost, HostError, SFTPError
from ..core.files import (
    Attributes,
    Entry,
    ErrorHandler,
    File,
    Files,
    Path,
    ProgressHandler,
    Times,
    encoded,
    printable,
    whole_seconds,
)
from .place import Wanted, place_link, placed
from .pump import Flow, at_once, drain, pump
from .shared import shared


@dataclass(frozen=True)
class Options:
    """How to copy; the names are those of asyncssh's transfers where it has them."""

    preserve: bool = False
    """Give the copies exactly the mode, and the times, of what they are copies of. Otherwise what is new
    gets the mode less the umask, as with scp(1), and what is there keeps its own."""
    recurse: bool = False
    """Copy directories with all that is in them."""
    follow_symlinks: bool = False
    """Copy what symbolic links lead to, instead of the links."""
    sparse: bool = True
    """Leave holes as holes."""
    block_size: int = -1
    """Bytes of one request; by default what both sides take."""
    max_requests: int = -1
    """Requests under way for one file; by default as the round-trip time asks for."""
    remote_only: bool = False
    """Fail rather than move the data through this process."""
    checksum: bool = False
    """Leave files alone whose content is the same."""
    in_place: bool = False
    """Write into the files that are there, instead of replacing them as a whole."""
    progress_handler: ProgressHandler | None = None
    error_handler: ErrorHandler | None = None


@dataclass(frozen=True)
class Piece:
    """One thing to copy."""

    source: bytes
    target: bytes
    attributes: Attributes
    depth: int = 0
    """How many directories below what was named; 0 for that itself."""
    real: bytes | None = None
    """A directory's path without symbolic links, where those are followed."""


@dataclass
class Plan:
    """What is to be copied, found before anything is."""

    directories: list[Piece] = field(default_factory=list)
    """Each before those that are in it."""
    others: list[Piece] = field(default_factory=list)

    def levels(self) -> list[list[Piece]]:
        """Give the directories by the number of directories that they are in."""
        found: dict[int, list[Piece]] = {}
        for piece in self.directories:
            found.setdefault(piece.target.count(b"/"), []).append(piece)
        return [found[level] for level in sorted(found)]


async def copy(
    source: Files, paths: Sequence[Path], target: Files, path: Path | None, options: Options, *, expand: bool = False
) -> bool:
    """Copy files, and answer whether something changed at the target.

    Args:
        source: The file system to copy from.
        paths: What to copy.
        target: The file system to copy to.
        path: The copy's path, or the directory for the copies; by default the current directory.
        options: How.
        expand: Whether *paths* are patterns.

    Raises:
        HostError: Something could not be copied. Files are whole, old or new.
    """
    copying = Copying(source, target, options)
    return await copying.carry_out(await copying.plan(await source.glob(paths) if expand else paths, path))


async def same_content(source: Files, target: Files, paths: Sequence[tuple[bytes, bytes]]) -> Sequence[bool]:
    """Tell for pairs of files whether both have the same content; what cannot be read has not."""
    if not paths:
        return []
    ours = await source.digests([one for one, _ in paths])
    theirs = await target.digests([other for _, other in paths])
    return [one is not None and one == other for one, other in zip(ours, theirs, strict=True)]


class Copying:
    """One copy from one file system to another."""

    def __init__(self, source: Files, target: Files, options: Options) -> None:
        self.source = source
        self.target = target
        self.options = options
        self.changed = False
        self._left: list[bytes] = []
        self._flow = Flow(options.max_requests)
        self._most = at_once(source, target)
        most = min(source.block, target.block)
        self._block = min(options.block_size, most) if options.block_size > 0 else most

    async def carry_out(self, plan: Plan) -> bool:
        """Copy, and answer whether something changed at the target.

        Raises:
            HostError: Something could not be copied; its ``changed`` tells whether something was.
        """
        try:
            for level in plan.levels():
                await drain(level, lambda piece: self._try(piece, self._directory), self._most)
            same = await self._same(plan.others) if self.options.checksum else frozenset()
            await drain(plan.others, lambda piece: self._try(piece, self._other, piece in same), self._most)
            if self.options.preserve:
                for level in reversed(plan.levels()):
                    await drain(level, lambda piece: self._try(piece, self._preserve), self._most)
        except HostError as error:
            if self._left:
                error.detail += f"; {', '.join(map(printable, self._left))} may be left there, too"
            error.changed = self.changed or bool(self._left) or error.changed
            raise
        return self.changed

    # What to copy

    async def plan(self, paths: Sequence[Path], path: Path | None) -> Plan:
        """Find all that is to be copied, and where each is to go."""
        tops = await self._tops(paths, path)
        plan = Plan()
        level = tops
        while level:
            found: dict[int, list[Piece]] = {}

            async def look(numbered: tuple[int, Piece], found: dict[int, list[Piece]] = found) -> None:
                number, piece = numbered
                found[number] = await self._below(piece)

            directories = [piece for piece in level if piece.attributes.is_directory]
            plan.others += [piece for piece in level if not piece.attributes.is_directory]
            plan.directories += directories
            await drain(enumerate(directories), look, self._most)
            level = [piece for number in sorted(found) for piece in found[number]]
        return plan

    async def _tops(self, paths: Sequence[Path], path: Path | None) -> list[Piece]:
        """Find what is named, and where each is to go."""
        into = path is None
        if path is not None:
            there = await self.target.lookup(path)
            into = there is not None and there.is_directory
            if not into and len(paths) > 1:
                raise SFTPError(f"{printable(path)} must be a directory, for several files", kind="SFTPFailure")
            if not into and encoded(path).endswith(b"/") and (there is not None or not self.options.recurse):
                raise SFTPError(f"{printable(path)} is not a directory", kind="SFTPFailure")
        folder = b"" if path is None else encoded(path)
        tops = []
        for each in paths:
            try:
                attributes = await self.source.stat(each, follow=self.options.follow_symlinks)
                name = posixpath.basename(encoded(each).rstrip(b"/"))
                if into and name in (b"", b".", b".."):
                    name = posixpath.basename(await self.source.realpath(each))
                    if name in (b"", b".", b"..") or b"\0" in name:  # a host may say anything
                        raise SFTPError(f"{printable(each)} has no name that its copy could have", kind="SFTPFailure")
                real = await self._real(encoded(each), attributes)
                tops.append(
                    Piece(encoded(each), posixpath.join(folder, name) if into else folder, attributes, real=real)
                )
            except HostError as error:
                self._handle(error, encoded(each), folder)
        return tops

    async def _below(self, directory: Piece) -> list[Piece]:
        if not self.options.recurse:
            error = SFTPError(
                f"{printable(directory.source)} is a directory: recurse=True copies it", kind="SFTPFailure"
            )
            self._handle(error, directory.source, directory.target)
            return []
        try:
            entries = await self.source.list(directory.source)
        except HostError as error:
            self._handle(error, directory.source, directory.target)
            return []
        pieces = []
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = posixpath.join(directory.source, entry.name)
            target = posixpath.join(directory.target, entry.name)
            try:
                attributes, real = await self._followed(path, entry, directory)
                pieces.append(Piece(path, target, attributes, directory.depth + 1, real))
            except HostError as error:
                self._handle(error, path, target)
        return pieces

    async def _followed(self, path: bytes, entry: Entry, directory: Piece) -> tuple[Attributes, bytes | None]:
        """Give what a name in a directory stands for, links followed if they are to be."""
        attributes = entry.attributes
        if directory.real is None:
            return attributes, None
        if not attributes.is_link:
            return attributes, posixpath.join(directory.real, entry.name)
        attributes = await self.source.stat(path)
        real = await self._real(path, attributes)
        if real is not None and (directory.real + b"/").startswith(real.rstrip(b"/") + b"/"):
            raise SFTPError(
                f"the symbolic link {printable(path)} leads back to a directory it is in", kind="SFTPFailure"
            )
        return attributes, real

    async def _real(self, path: bytes, attributes: Attributes) -> bytes | None:
        """Give the path of a directory without links, which tells links that lead back."""
        if self.options.follow_symlinks and attributes.is_directory:
            return await self.source.realpath(path)
        return None

    async def _same(self, pieces: Sequence[Piece]) -> frozenset[Piece]:
        """Find the files whose content is at the target already."""
        alike: list[Piece] = []

        async def look(piece: Piece) -> None:
            there = await self.target.lookup(piece.target) if piece.attributes.is_file else None
            if there is not None and there.is_file and there.size == piece.attributes.size:
                alike.append(piece)

        await drain(pieces, look, self._most)
        same = await same_content(self.source, self.target, [(piece.source, piece.target) for piece in alike])
        return frozenset(piece for piece, is_same in zip(alike, same, strict=True) if is_same)

    # Copying

    def _handle(self, error: HostError, source: bytes, target: bytes) -> None:
        """Tell the error handler, which may let the rest go on; a lost connection ends it all."""
        handler = self.options.error_handler
        if handler is None or isinstance(error, ConnectionLost):
            raise error
        error.srcpath, error.dstpath = source, target  # type: ignore[attr-defined]
        handler(error)

    async def _try(self, piece: Piece, work: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        try:
            await work(piece, *arguments)
        except HostError as error:
            self._handle(error, piece.source, piece.target)

    async def _directory(self, piece: Piece) -> None:
        there = await self.target.lookup(piece.target, follow=piece.depth == 0)
        if there is None:
            await self.target.mkdir(piece.target, piece.attributes.mode & 0o777 | 0o300)  # to make others in it
            self.changed = True
        elif not there.is_directory:
            kind = "symbolic link" if there.is_link else "file"
            raise SFTPError(f"{printable(piece.target)} is a {kind}, where a directory is to be", kind="SFTPFailure")

    async def _other(self, piece: Piece, same: bool) -> None:
        if piece.attributes.is_link:
            await self._link(piece)
        elif not piece.attributes.is_file:
            raise SFTPError(f"{printable(piece.source)} is no file, directory or symbolic link", kind="SFTPFailure")
        elif not same:
            await self._file(piece)
        elif self.options.preserve:
            await self._preserve(piece)

    async def _link(self, piece: Piece) -> None:
        leads_to = await self.source.readlink(piece.source)
        if self.source.is_remote and not self.target.is_remote:
            _refuse_outside(piece, leads_to)
        self.changed = await place_link(self.target, leads_to, piece.target) or self.changed

    async def _file(self, piece: Piece) -> None:
        options, attributes = self.options, piece.attributes
        done = 0

        def progress(number: int) -> None:
            nonlocal done
            done += number
            if options.progress_handler is not None:
                options.progress_handler(piece.source, piece.target, done, max(done, attributes.size))

        wanted = Wanted(attributes.mode & 0o777, masked=True)
        if options.preserve:
            wanted = Wanted(attributes.mode, times=_times(attributes))
        async with (
            shared(self.source, piece.source) as source,
            placed(
                self.target,
                piece.target,
                wanted,
                in_place=options.in_place,
                follow=piece.depth == 0,
                left=self._left,
            ) as target,
        ):
            if await self._copy_within(source, target, attributes.size):
                progress(attributes.size)
            elif options.remote_only and attributes.size:
                raise SFTPError("the host cannot copy by itself", kind="SFTPOpUnsupported")
            else:
                await pump(
                    source,
                    target,
                    attributes.size,
                    self._block,
                    sparse=options.sparse,
                    flow=self._flow,
                    progress=progress,
                )
            if done == 0:
                progress(0)
        self.changed = True

    async def _copy_within(self, source: File, target: File, size: int) -> bool:
        """Have the host copy by itself, without the holes that it tells of; false where it cannot."""
        if self.source is not self.target or size == 0:
            return False
        parts = [part async for part in source.data(size)] if self.options.sparse else [(0, size)]
        for number, (offset, length) in enumerate(parts):
            if not await self.target.copy_within(source, target, length, offset):
                if number == 0:
                    return False
                raise SFTPError("the host copied a part of the file only", kind="SFTPFailure")
        if not parts or sum(parts[-1]) < size:
            await target.set(size=size)
        return True

    async def _preserve(self, piece: Piece) -> None:
        """Give the target the mode and the times of its source."""
        there = await self.target.stat(piece.target)
        times = _times(piece.attributes)
        mode = piece.attributes.mode if there.mode != piece.attributes.mode else None
        if times is not None and whole_seconds(there.mtime_ns) == whole_seconds(times[1]):
            times = None
        if mode is not None or times is not None:
            await self.target.set(piece.target, permissions=mode, times=times)
            self.changed = True


def _times(attributes: Attributes) -> Times | None:
    if attributes.mtime_ns is None:
        return None
    return (attributes.mtime_ns if attributes.atime_ns is None else attributes.atime_ns, attributes.mtime_ns)


def _refuse_outside(piece: Piece, leads_to: bytes) -> None:
    """Refuse a link of a host that would lead out of the directory that is copied to here.

    Raises:
        SFTPError: It does; a later copy might write through it.
    """
    parts = [part for part in leads_to.split(b"/") if part not in (b"", b".")]
    upward = parts.count(b"..")
    # A ".." after a name may lead out, since the name may be a link that leads elsewhere.
    if leads_to.startswith(b"/") or upward > max(piece.depth - 1, 0) or b".." in parts[upward:]:
        raise SFTPError(
            f"the symbolic link {printable(piece.source)} leads out of the directory, to {printable(leads_to)}: "
            "follow_symlinks=True copies what it leads to",
            kind="SFTPBadMessage",
            outcome="unknown",
        )
