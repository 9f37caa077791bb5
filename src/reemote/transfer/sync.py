"""Make a directory of a host equal to one of this machine."""

from __future__ import annotations

import posixpath
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from ..core.errors import HostError, SFTPError
from ..core.files import Attributes, Files, Node, Path, ProgressHandler, encoded, printable, shown, whole_seconds
from ..core.response import Record
from .copy import Copying, Options, Piece, Plan, same_content
from .place import missing, temporary, tidy
from .pump import at_once, drain
from .tar import Member, archive

Tree = Mapping[bytes, Node]

FEWEST = 3
"""Things that are worth an archive; fewer are sent one by one."""


class Report(Record):
    """What a synchronization did: paths relative to the directory, sorted."""

    added: list[str]
    """What was not there."""
    changed: list[str]
    """What was there, and had another content, kind, target or mode."""
    removed: list[str]
    """What was there, and is not any more."""
    skipped: list[str]
    """What is no file, directory or symbolic link here, and was left out."""


@dataclass
class Differences:
    """What has to be done: relative paths, directories before what is in them."""

    send: list[bytes] = field(default_factory=list)
    """What has to be made, or made anew."""
    modes: list[bytes] = field(default_factory=list)
    """What has the wrong mode only."""
    obstacles: list[bytes] = field(default_factory=list)
    """What has to go first, since something of another kind takes its place."""
    remove: list[bytes] = field(default_factory=list)
    """What has to go last."""
    doubtful: list[bytes] = field(default_factory=list)
    """Files of equal size whose content has to be compared."""


def compare(here: Tree, there: Tree, *, delete: bool, checksum: bool) -> Differences:
    """Compare two trees.

    Args:
        here: What the tree is to be like.
        there: What it is like.
        delete: Whether what is only *there* has to go.
        checksum: Whether equal times of modification do not prove equal content.
    """
    found = Differences()
    for name in sorted(here):
        ours, theirs = here[name], there.get(name)
        if theirs is None:
            found.send.append(name)
        elif _kind(ours.attributes) != _kind(theirs.attributes):
            found.obstacles.append(name)
            found.send.append(name)
        elif ours.attributes.is_link:
            if ours.target != theirs.target:
                found.send.append(name)
        elif ours.attributes.is_file and ours.attributes.size != theirs.attributes.size:
            found.send.append(name)
        elif ours.attributes.is_file and (checksum or _mtime(ours) != _mtime(theirs)):
            found.doubtful.append(name)
        elif ours.attributes.mode != theirs.attributes.mode:
            found.modes.append(name)
    if delete:
        found.remove = [name for name in sorted(there) if name not in here]
    return found


def excluded(name: bytes, patterns: Sequence[str], *, is_directory: bool) -> bool:
    """Whether a path, or a directory that it is in, matches one of the patterns.

    A pattern without a slash matches names, one with a slash the path from the top, and one that
    ends with a slash directories only. ``*`` matches slashes, too.
    """
    parts = shown(name).split("/")
    for number in range(1, len(parts) + 1):
        path, folder = "/".join(parts[:number]), is_directory or number < len(parts)
        for pattern in patterns:
            wanted = pattern.rstrip("/")
            if pattern.endswith("/") and not folder:
                continue
            if fnmatchcase(path if "/" in wanted else parts[number - 1], wanted.removeprefix("/")):
                return True
    return False


def without(tree: Tree, patterns: Sequence[str]) -> dict[bytes, Node]:
    """Leave out of a tree what is excluded."""
    return {
        name: node
        for name, node in tree.items()
        if not excluded(name, patterns, is_directory=node.attributes.is_directory)
    }


async def sync(
    source: Files,
    local: Path,
    target: Files,
    remote: Path,
    *,
    delete: bool = False,
    exclude: Sequence[str] = (),
    checksum: bool = False,
    progress_handler: ProgressHandler | None = None,
    dry_run: bool = False,
) -> tuple[bool, Report]:
    """Make the directory *remote* equal to the directory *local*; only look, in a dry run.

    Kinds, contents, links and modes become equal, owners do not; what is sent gets its time, too.

    Returns:
        Whether something changed, and what.

    Raises:
        HostError: Something could not be done; its ``changed`` tells whether something was.
    """
    return await _Sync(source, local, target, remote, progress_handler).run(delete, exclude, checksum, dry_run=dry_run)


class _Sync:
    def __init__(
        self, source: Files, local: Path, target: Files, remote: Path, progress_handler: ProgressHandler | None
    ) -> None:
        self.source, self.local = source, encoded(local)
        self.target, self.remote = target, encoded(remote).rstrip(b"/") or b"/"
        self.progress_handler = progress_handler
        self._most = at_once(target)
        self.changed = False
        self.here: Tree = {}
        self.there: Tree = {}

    async def run(self, delete: bool, exclude: Sequence[str], checksum: bool, *, dry_run: bool) -> tuple[bool, Report]:
        top = await self.source.stat(self.local)
        if not top.is_directory:
            raise SFTPError(f"{printable(self.local)} is not a directory", kind="SFTPFailure", outcome="not_started")
        found = without(await tree_of(self.source, self.local), exclude)
        self.here = {name: node for name, node in found.items() if _kind(node.attributes)}
        skipped = sorted(found.keys() - self.here.keys())
        is_new = await self._is_new()
        everything = {} if is_new else await tree_of(self.target, self.remote)
        there = self.there = without(everything, exclude)
        todo = compare(self.here, there, delete=delete, checksum=checksum)
        await self._settle(todo, there)
        first = self._in_the_way(todo, everything, there, delete=delete)
        todo.remove = _removable(todo.remove, everything, there)
        try:
            if dry_run:
                self.changed = is_new or any((todo.send, todo.modes, todo.remove, first))
            else:
                await self._carry_out(todo, first, everything, top, is_new=is_new)
        except HostError as error:
            if self.changed:
                error.changed = True
            raise
        gone = [name for name in first if name not in self.here]
        return self.changed, Report(
            added=[shown(name) for name in todo.send if name not in there],
            changed=[shown(name) for name in sorted({*todo.send, *todo.modes} & there.keys())],
            removed=[shown(name) for name in sorted({*todo.remove, *gone})],
            skipped=[shown(name) for name in skipped],
        )

    async def _is_new(self) -> bool:
        found = await self.target.lookup(self.remote)
        if found is not None and not found.is_directory:
            raise SFTPError(f"{printable(self.remote)} is not a directory", kind="SFTPFailure", outcome="not_started")
        return found is None

    async def _settle(self, todo: Differences, there: Tree) -> None:
        """Compare the contents of which the times say nothing."""
        pairs = [(self._here(name), self._there(name)) for name in todo.doubtful]
        same = await same_content(self.source, self.target, pairs)
        for name, is_same in zip(todo.doubtful, same, strict=True):
            if not is_same:
                todo.send.append(name)
            elif self.here[name].attributes.mode != there[name].attributes.mode:
                todo.modes.append(name)
        todo.send.sort()

    def _in_the_way(self, todo: Differences, everything: Tree, there: Tree, *, delete: bool) -> list[bytes]:
        """Find all that has to go first; refuse where something is in it that nobody said may go.

        Raises:
            SFTPError: A directory that is not empty is in the way.
        """
        tops = frozenset(todo.obstacles)
        found = [name for name in everything if _is_below(name, tops)]
        for name in found:
            if name not in tops and not (delete and name in there):
                top = next(each for each in _upward(name) if each in tops)
                raise SFTPError(
                    f"{printable(self._there(top))} is a directory that is not empty, where something else is to "
                    "be: delete=True removes it, unless an exclude pattern keeps something in it",
                    kind="SFTPFailure",
                    outcome="not_started",
                )
        return found

    # Doing it

    async def _carry_out(
        self, todo: Differences, first: Sequence[bytes], everything: Tree, top: Attributes, *, is_new: bool
    ) -> None:
        await self._remove(self.remote, first, everything)
        if is_new:
            await self._make_parents()
        if not (len(todo.send) >= FEWEST and await self._send_archive(todo.send, top, is_new=is_new)):
            await self._send_each(todo.send, top, is_new=is_new)
        await drain(todo.modes, self._set_mode, self._most)
        gone = frozenset(first)
        await self._remove(self.remote, [name for name in todo.remove if name not in gone], everything)

    async def _make_parents(self) -> None:
        for name in await missing(self.target, posixpath.dirname(self.remote)):
            await self.target.mkdir(name)
            self.changed = True

    async def _send_archive(self, names: Sequence[bytes], top: Attributes, *, is_new: bool) -> bool:
        """Send all in one stream to a directory beside its place, and then into its place; false if that cannot be."""
        place = temporary(self.remote) if is_new else posixpath.join(self.remote, temporary(b"sync"))
        sent = frozenset(names)
        units = [b""] if is_new else [name for name in names if not _is_below(posixpath.dirname(name), sent)]
        numbers = {name: str(number).encode() for number, name in enumerate(units)}

        def inside(name: bytes) -> bytes:
            if is_new:
                return name
            unit = next(each for each in _upward(name) if each in numbers)
            return numbers[unit] + name[len(unit) :]

        moved = frozenset(units)
        members = [
            Member(inside(name), self._here(name), _movable(self.here[name]) if name in moved else self.here[name])
            for name in names
        ]
        await self.target.mkdir(place, 0o700)
        try:
            if not await self.target.unpack(place, lambda: self._archive(members)):
                await self.target.rmdir(place)
                return False
            if is_new:
                await self.target.set(place, permissions=top.mode)
                await self.target.rename(place, self.remote)
                self.changed = True
            else:
                await drain(units, lambda name: self._move(posixpath.join(place, numbers[name]), name), self._most)
                await self.target.rmdir(place)
        except BaseException as error:
            if isinstance(error, HostError):
                error.changed = self.changed
            await tidy(place, self._discard(place), error)
            raise
        return True

    async def _move(self, staged: bytes, name: bytes) -> None:
        """Put what has arrived in its place; a file keeps the owner of the one that it replaces."""
        old, new = self.there.get(name), self.here[name]
        if old is not None and old.attributes.is_file and new.attributes.is_file:
            now, owner = await self.target.stat(staged), (old.attributes.uid, old.attributes.gid)
            if owner != (now.uid, now.gid) and owner[0] is not None and owner[1] is not None:
                await self.target.set(staged, owner=(owner[0], owner[1]), permissions=new.attributes.mode)
        await self.target.replace(staged, self._there(name))
        self.changed = True
        if _movable(new) != new:
            await self.target.set(self._there(name), permissions=new.attributes.mode)

    def _archive(self, members: Sequence[Member]) -> AsyncIterator[bytes]:
        done: dict[Member, int] = {}

        def progress(member: Member, number: int) -> None:
            done[member] = done.get(member, 0) + number
            if self.progress_handler is not None and member.node.attributes.is_file:
                place = posixpath.join(self.remote, member.source[len(self.local) :].lstrip(b"/"))
                self.progress_handler(member.source, place, done[member], member.node.attributes.size)

        return archive(self.source, members, progress)

    async def _send_each(self, names: Sequence[bytes], top: Attributes, *, is_new: bool) -> None:
        """Send everything by itself."""
        pieces = [Piece(self._here(name), self._there(name), self.here[name].attributes, depth=1) for name in names]
        if is_new:
            pieces.insert(0, Piece(self.local, self.remote, top))
        plan = Plan(
            directories=[piece for piece in pieces if piece.attributes.is_directory],
            others=[piece for piece in pieces if not piece.attributes.is_directory],
        )
        copying = Copying(self.source, self.target, Options(preserve=True, progress_handler=self.progress_handler))
        try:
            await copying.carry_out(plan)
        finally:
            self.changed = self.changed or copying.changed

    async def _set_mode(self, name: bytes) -> None:
        await self.target.set(self._there(name), permissions=self.here[name].attributes.mode)
        self.changed = True

    async def _discard(self, place: bytes) -> None:
        if await self.target.lookup(place, follow=False) is not None:
            tree = await tree_of(self.target, place)
            for name in sorted(tree):
                if _movable(tree[name]) != tree[name]:
                    await self.target.set(posixpath.join(place, name), permissions=0o700)
            await self._remove(place, tree, tree)
            await self.target.rmdir(place)

    async def _remove(self, top: bytes, names: Iterable[bytes], tree: Tree) -> None:
        """Remove files, and then directories from the innermost outward."""
        folders: dict[int, list[bytes]] = {}
        files = []
        for name in names:
            if tree[name].attributes.is_directory:
                folders.setdefault(name.count(b"/"), []).append(name)
            else:
                files.append(name)

        async def remove(name: bytes) -> None:
            await self.target.remove(posixpath.join(top, name))
            self.changed = self.changed or top == self.remote

        async def rmdir(name: bytes) -> None:
            await self.target.rmdir(posixpath.join(top, name))
            self.changed = self.changed or top == self.remote

        await drain(files, remove, self._most)
        for depth in sorted(folders, reverse=True):
            await drain(folders[depth], rmdir, self._most)

    def _here(self, name: bytes) -> bytes:
        return posixpath.join(self.local, name)

    def _there(self, name: bytes) -> bytes:
        return posixpath.join(self.remote, name)


async def tree_of(files: Files, path: Path) -> dict[bytes, Node]:
    """List all that is below a directory, by relative path; links are not followed."""
    found = await files.tree(path)
    if found is not None:
        return found
    tree: dict[bytes, Node] = {}
    top = encoded(path)
    level = [b""]

    async def look(folder: bytes) -> None:
        for entry in await files.list(posixpath.join(top, folder)):
            name = posixpath.join(folder, entry.name)
            leads_to = await files.readlink(posixpath.join(top, name)) if entry.attributes.is_link else b""
            tree[name] = Node(entry.attributes, leads_to)
            if entry.attributes.is_directory:
                following.append(name)

    while level:
        following: list[bytes] = []
        await drain(level, look, at_once(files))
        level = following
    return tree


def _kind(attributes: Attributes) -> str:
    """Tell the kinds that are synchronized apart; empty for all others."""
    if attributes.is_directory:
        return "directory"
    return "file" if attributes.is_file else "link" if attributes.is_link else ""


def _mtime(node: Node) -> int | None:
    return whole_seconds(node.attributes.mtime_ns)


def _movable(node: Node) -> Node:
    """Let its owner write in a directory: only then it can be moved to another one, or emptied."""
    attributes = node.attributes
    if not attributes.is_directory or attributes.mode & 0o700 == 0o700:
        return node
    return Node(replace(attributes, permissions=attributes.permissions | 0o700))


def _upward(name: bytes) -> list[bytes]:
    """Give a path, and the directories that it is in."""
    parts = name.split(b"/")
    return [b"/".join(parts[:number]) for number in range(len(parts), 0, -1)]


def _is_below(name: bytes, tops: AbstractSet[bytes]) -> bool:
    """Whether a path is one of *tops*, or in one of them."""
    return any(each in tops for each in _upward(name))


def _removable(names: Sequence[bytes], everything: Tree, there: Tree) -> list[bytes]:
    """Leave out the directories that something excluded is in."""
    kept = {folder for name in everything if name not in there for folder in _upward(name)[1:]}
    return [name for name in names if name not in kept]
