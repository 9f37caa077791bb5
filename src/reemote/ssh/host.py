"""A host behind SSH, as operations see it for the time of one run."""

from __future__ import annotations

import codecs
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

from ..core.context import Context
from ..core.errors import (
    ConnectionLost,
    HostError,
    HostKeyChanged,
    HostKeyNotVerifiable,
    HostKeyRevoked,
    InventoryError,
    PermissionDenied,
    PrivilegeDenied,
)
from ..core.host import scope
from ..core.inventory import InventoryItem
from ..core.response import Completed
from .files import Directory, SftpFiles
from .link import Link
from .options import SESSION_OPTIONS, check_names
from .process import Request

FINAL = (PermissionDenied, HostKeyNotVerifiable, HostKeyChanged, HostKeyRevoked)
"""Failures that are not tried again in the same run: each further attempt could lock the user out."""


class Links(Protocol):
    """Where a host gets its connections from."""

    async def acquire(self, item: InventoryItem, overrides: Mapping[str, Any] | None, limit: int) -> Link:
        """Give a connection that stands."""

    def release(self, link: Link) -> None:
        """Take it back."""

    def host(self, item: InventoryItem, *, limit: int | None = None) -> AbstractAsyncContextManager[SshHost]:
        """Give a host."""


class SshHost:
    """One host for the time of one run."""

    def __init__(self, context: Context, links: Links, limit: int) -> None:
        self.context = context
        self._directory = Directory()
        self.interrupted: Completed | None = None
        self._links = links
        self._limit = limit
        self._held: dict[tuple[Any, ...], Link] = {}
        self._refused: dict[tuple[Any, ...], HostError] = {}

    def release(self) -> None:
        """Let go of the connections."""
        held, self._held = self._held, {}
        for link in held.values():
            self._links.release(link)

    async def link(self, overrides: Mapping[str, Any] | None = None) -> Link:
        """Give the connection, kept for the whole run; a new one where the old one has died."""
        key = tuple(sorted((name, repr(value)) for name, value in overrides.items())) if overrides else ()
        link = self._held.get(key)
        if link is not None and not link.is_closed:
            return link
        if (refused := self._refused.get(key)) is not None:
            raise type(refused)(refused.detail)
        try:
            fresh = await self._links.acquire(self.context.inventory_item, overrides, self._limit)
        except FINAL as error:
            self._refused[key] = error
            raise
        # Another step may have done the same meanwhile; one hold on each connection is enough.
        if (old := self._held.pop(key, None)) is not None:
            self._links.release(old)
        self._held[key] = fresh
        return fresh

    async def run(
        self,
        command: str,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        stdin: str | bytes | AsyncIterable[bytes] | None = None,
        timeout: float | None = None,
        check: bool = False,
        sudo: bool = False,
        su: bool = False,
        connection: Mapping[str, Any] | None = None,
        session: Mapping[str, Any] | None = None,
    ) -> Completed:
        """Run a command; see :class:`reemote.core.host.Host`."""
        if sudo or su:
            raise PrivilegeDenied("running commands with sudo or su is not supported yet; nothing was run")
        options = {**self.context.inventory_item.session.options(), **(session or {})}
        check_names(options, SESSION_OPTIONS, f"{self.context.host}: session")
        encoding = _known_encoding(options.pop("encoding", None) or "utf-8")
        options.pop("errors", None)
        request = Request(
            command=command,
            env={**_text_variables(options.pop("env", None)), **(env or {})},
            cwd=cwd,
            stdin=stdin.encode(encoding, "surrogateescape") if isinstance(stdin, str) else stdin,
            timeout=timeout,
            session=options,
            encoding=encoding,
        )
        completed = await self._run(request, connection)
        if check:
            completed.raise_for_status()
        return completed

    async def _run(self, request: Request, overrides: Mapping[str, Any] | None) -> Completed:
        link = await self.link(overrides)
        try:
            return await link.run(request, self._interrupt)
        except ConnectionLost as error:
            # The kept connection had died unnoticed; the command was not sent.
            if error.outcome != "not_started":
                raise
        link = await self.link(overrides)
        return await link.run(request, self._interrupt)

    def _interrupt(self, record: Completed) -> None:
        self.interrupted = record

    @asynccontextmanager
    async def sftp(self) -> AsyncIterator[SftpFiles]:
        """Give the host's files; see :class:`reemote.ssh.files.SftpFiles`."""
        async with SftpFiles(self, self._directory) as files:
            yield files

    @asynccontextmanager
    async def other(self, name: str) -> AsyncIterator[SshHost]:
        """Give another host of the inventory, over a connection of the same pool."""
        item = next((item for item in scope.get().inventory.hosts if item.host == name), None)
        if item is None:
            raise InventoryError(f"the inventory has no host {name!r}")
        async with self._links.host(item, limit=self._limit) as host:
            yield host


def _known_encoding(name: str) -> str:
    try:
        return codecs.lookup(name).name
    except LookupError:
        raise InventoryError(f"session: there is no encoding {name!r}") from None


def _text_variables(given: Any) -> dict[str, str]:
    """Read asyncssh's ``env`` option: a dictionary, or a list of ``NAME=value``."""
    pairs = given.items() if isinstance(given, Mapping) else (str(pair).split("=", 1) for pair in given or ())
    return {str(name): str(value) for name, value in pairs}
