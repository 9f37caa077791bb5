"""The files of a fake host: real ones, below a directory of this machine."""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import stat
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from ..core import files
from ..core.errors import HostError, NoSpaceLeft, SFTPError
from ..core.files import ClientInfo
from ..transfer.calls import Place
from ..transfer.local import LocalFiles

_KINDS = {
    errno.ENOENT: "SFTPNoSuchFile",
    errno.ENOTDIR: "SFTPNoSuchFile",
    errno.EACCES: "SFTPPermissionDenied",
    errno.EPERM: "SFTPPermissionDenied",
}
"""What OpenSSH's server makes of errors; of all others, a failure."""

_LINKS = 40
"""Links that a path may lead over, as in Linux."""


class FakeFiles(LocalFiles):
    """The files of a fake host, which sees a directory of this machine as ``/``.

    Paths and links lead where they lead on the host: nowhere out of that directory. This keeps tests
    apart; it is no defence.

    Args:
        top: The directory; no part of its path is a link.
    """

    is_remote = True  # what differs between a host and this machine is to differ here, too

    def __init__(self, top: Path) -> None:
        super().__init__()
        self._top = os.fsencode(top)
        self._directory = b"/"

    @contextlib.contextmanager
    def _at(self, path: files.Path, *, follow: bool = False) -> Iterator[Place]:
        yield Place(None, self._top + self._resolved(path, follow=follow), follow=False)

    def _resolved(self, path: files.Path, *, follow: bool) -> bytes:
        """Give the path on the host with all links in it resolved, the last one if *follow*."""
        name = files.encoded(path)
        if b"\0" in name or not name:
            number = errno.EINVAL if name else errno.ENOENT
            raise OSError(number, os.strerror(number))
        ending = b"/" if name.endswith(b"/") else b""  # only a directory may have it
        rest, found, links = deque(_names(posixpath.join(self._base(), name))), b"", 0
        while rest:
            part = rest.popleft()
            below = found.rpartition(b"/")[0] if part == b".." else found + b"/" + part
            target = self._target(below, is_last=not rest) if rest or follow or ending else None
            if target is None:
                found = below
                continue
            links += 1
            if links > _LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            rest.extendleft(reversed(_names(target)))
            if target.startswith(b"/"):
                found = b""
        return found + ending if found else b"/."  # which cannot be removed

    def _target(self, path: bytes, *, is_last: bool) -> bytes | None:
        """Give where a link leads; ``None`` for what is none and may be there."""
        try:
            status = os.lstat(self._top + path)
        except FileNotFoundError:
            if is_last:
                return None
            raise
        if stat.S_ISLNK(status.st_mode):
            return os.readlink(self._top + path)  # noqa: PTH115 - bytes
        if not is_last and not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return None

    def _failure(self, error: OSError, path: files.Path) -> HostError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return NoSpaceLeft(f"no space is left on the host for {files.printable(path)}")
        detail = f"{files.printable(path)}: {error.strerror or error}"
        return SFTPError(detail, kind=_KINDS.get(error.errno or 0, "SFTPFailure"))

    async def info(self) -> ClientInfo:
        """Tell what a common server tells of itself."""
        return ClientInfo({**await super().info(), "version": 3})

    async def realpath(self, path: files.Path) -> bytes:
        """Give the absolute path, symbolic links resolved."""
        with self._translated(path):
            return posixpath.normpath(self._resolved(path, follow=True))


def _names(path: bytes) -> list[bytes]:
    return [name for name in path.split(b"/") if name not in (b"", b".")]
