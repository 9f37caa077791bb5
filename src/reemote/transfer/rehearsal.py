"""What file operations would do: they run as ever, up to the first change, which is not made."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from ..core.errors import HostError, Outcome
from ..core.files import File, Files, Mode, Path
from ..core.host import Host
from ..core.response import Response, leaves
from .local import here

_CHANGES = frozenset(
    {"mkdir", "symlink", "link", "rename", "replace", "remove", "rmdir", "set", "copy_within", "unpack"}
)


_NEED_IT = frozenset({"link", "rename", "replace", "remove", "rmdir", "set"})
"""Changes of something that has to be there."""


class _WouldChange(HostError):
    """The first change of an operation, which the host would have to make."""

    outcome: Outcome = "not_started"


class _Files:
    """Files that can be looked at, and not be changed."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._is_over = False

    def __getattr__(self, name: str) -> Any:
        return partial(self._change, name) if name in _CHANGES else getattr(self._files, name)

    async def _change(self, name: str, *arguments: Any, **_: Any) -> None:
        if self._is_over:
            return  # it tidies up what was not made
        if name in _NEED_IT:
            await self._files.stat(arguments[0], follow=False)
        self._is_over = True
        raise _WouldChange

    @asynccontextmanager
    async def open(self, path: Path, mode: Mode, permissions: int | None = None) -> AsyncIterator[File]:
        """Open a file to read it."""
        if mode != "read":
            await self._change("open")
        async with self._files.open(path, mode, permissions) as file:
            yield file


class _Host:
    """A host whose files are not changed."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)

    @asynccontextmanager
    async def sftp(self, **privileges: Any) -> AsyncIterator[Any]:
        """Give the files."""
        async with self._host.sftp(**privileges) as files:
            yield _Files(files)

    @asynccontextmanager
    async def other(self, name: str) -> AsyncIterator[Any]:
        """Give another host of the inventory, whose files are not changed, either."""
        async with self._host.other(name) as host:
            yield _Host(host)


async def rehearse(perform: Callable[[Host], Awaitable[Any]], host: Host) -> Response[Any]:
    """Carry out a file operation up to its first change, and answer whether there is one."""
    local: Any = _Files(here.get())
    token = here.set(local)
    try:
        await perform(_Host(host))
    except Exception as error:
        if not any(isinstance(each, _WouldChange) for each in leaves(error)):
            raise
        return Response(value=None, changed=True)
    finally:
        here.reset(token)
    return Response(value=None, changed=False)
