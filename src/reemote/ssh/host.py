"""A host behind SSH, as operations see it for the time of one run."""

from __future__ import annotations

import codecs
import hashlib
import re
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Protocol

from pydantic import SecretStr

from ..core.context import Context
from ..core.errors import (
    ConnectionLost,
    HostError,
    HostKeyChanged,
    HostKeyNotVerifiable,
    HostKeyRevoked,
    InventoryError,
    PermissionDenied,
    TerminalRequired,
)
from ..core.events import HostConnected, place
from ..core.files import Path
from ..core.host import looked_up, scope
from ..core.inventory import InventoryItem
from ..core.response import Completed
from ..core.secrets import reveal
from ..transfer.local import here
from .files import Directory, SftpFiles
from .link import Link
from .options import PLACE, SESSION_OPTIONS, check_names
from .proofs import Proofs
from .request import Request
from .shared import SftpSession
from .sink import Sink
from .wire import Become

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
        self._proofs = Proofs()
        self._needs_terminal: set[str] = set()
        """Which of sudo and su work on a terminal only."""

    def release(self) -> None:
        """Let go of the connections."""
        held, self._held = self._held, {}
        for link in held.values():
            self._links.release(link)

    async def link(self, overrides: Mapping[str, Any] | None = None) -> Link:
        """Give the connection, kept for the whole run; a new one where the old one has died."""
        # By the secrets themselves: they all look the same.
        key = tuple(sorted((name, _told_apart(value)) for name, value in overrides.items())) if overrides else ()
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
        old = self._held.pop(key, None)
        if old is not None:
            self._links.release(old)
        self._held[key] = fresh
        if not key and old is not fresh and (where := place.get()) is not None:
            where.emit(HostConnected(host=self.context.host))
        return fresh

    async def run(
        self,
        command: str | Sequence[str],
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
        sudo_user: str | None = None,
        output: int | Path | None = None,
        kill_on_disconnect: bool = False,
        question: bool = False,
    ) -> Completed:
        """Run a command; see :class:`reemote.core.host.Host`."""
        options = {**self.context.inventory_item.session.options(), **(session or {})}
        check_names(options, SESSION_OPTIONS, f"{self.context.host}: session")
        encoding = _known_encoding(options.pop("encoding", None) or "utf-8")
        options.pop("errors", None)
        request = Request(
            command=command,
            env={**_text_variables(options.pop("env", None), self.context.host), **(env or {})},
            cwd=cwd,
            stdin=stdin.encode(encoding, "surrogateescape") if isinstance(stdin, str) else stdin,
            timeout=timeout,
            session=options,
            encoding=encoding,
            who=await self.become(sudo, su, sudo_user, connection),
            watched=kill_on_disconnect,
            is_question=question,
            where=place.get(),
        )
        if output is None:
            completed = await self.run_as(request, connection)
        else:
            async with self._kept(request, output):
                completed = await self.run_as(request, connection)
        if check:
            completed.raise_for_status()
        return completed

    async def become(
        self, sudo: bool, su: bool, sudo_user: str | None = None, overrides: Mapping[str, Any] | None = None
    ) -> Become | None:
        """Say who is to run something, and with which password; ``None`` for the user who logs in.

        Raises:
            SecretNotFound: The password is not where the inventory says.
        """
        if not (sudo or su):
            return None
        known = self.context.inventory_item.authentication
        # The inventory's passwords are for its host, not for another place that an operation names.
        is_elsewhere = bool(overrides) and not PLACE.isdisjoint(overrides or ())
        secret = None if is_elsewhere else known.sudo_password if sudo else known.su_password
        password = await looked_up(secret)
        if sudo:
            return Become("sudo", sudo_user or known.sudo_user or "root", password)
        return Become("su", known.su_user or "root", password)

    @asynccontextmanager
    async def _kept(self, request: Request, output: int | Path) -> AsyncIterator[None]:
        """Say what is to be kept of a command's output, or which file it goes to."""
        if isinstance(output, int):
            request.kept = output
            yield
            return
        async with AsyncExitStack() as stack:
            try:
                file = await stack.enter_async_context(here.get().open(output, "write"))
            except HostError as error:
                error.outcome = "not_started"
                raise
            request.sink = Sink(file)
            stack.push_async_callback(request.sink.close)
            yield

    async def run_as(self, request: Request, overrides: Mapping[str, Any] | None) -> Completed:
        """Run a command; on a terminal, where sudo or su works on one only."""
        if request.who is None:
            return await self._run(request, overrides)
        async with self._proofs.trial(request.who) as request.passed:
            return await self._run_where_it_can(request, overrides)

    async def _run_where_it_can(self, request: Request, overrides: Mapping[str, Any] | None) -> Completed:
        assert request.who is not None
        request.terminal = request.who.method in self._needs_terminal
        try:
            return await self._run(request, overrides)
        except TerminalRequired as error:
            if request.terminal:
                raise
            if not isinstance(request.stdin, bytes | None):
                error.detail += "; its input is not known to its end, so it cannot run on one"
                raise
        self._needs_terminal.add(request.who.method)
        request.terminal = True
        return await self._run(request, overrides)

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
    async def sftp(
        self, *, sudo: bool = False, su: bool = False, sudo_user: str | None = None
    ) -> AsyncIterator[SftpFiles]:
        """Give the host's files; see :class:`reemote.ssh.files.SftpFiles`."""
        who = await self.become(sudo, su, sudo_user)
        async with SftpFiles(_Access(self, who), self._directory) as files:
            yield files

    @asynccontextmanager
    async def privileged_sftp(self, who: Become | None) -> AsyncIterator[SftpSession]:
        """Give an SFTP session for the files of a user, on a connection that stands."""
        link = await self.link()
        async with AsyncExitStack() as stack:
            async with self._proofs.trial(who) as passed:
                session = await stack.enter_async_context(link.sftp(who))
                passed()
            yield session

    @asynccontextmanager
    async def other(self, name: str) -> AsyncIterator[SshHost]:
        """Give another host of the inventory, over a connection of the same pool."""
        item = next((item for item in scope.get().inventory.hosts if item.host == name), None)
        if item is None:
            raise InventoryError(f"the inventory has no host {name!r}")
        async with self._links.host(item, limit=self._limit) as host:
            yield host


class _Access:
    """What the files of one user need of their host."""

    def __init__(self, host: SshHost, who: Become | None) -> None:
        self._host = host
        self._who = who

    def sftp(self) -> AbstractAsyncContextManager[SftpSession]:
        """Give an SFTP session on a connection that stands."""
        return self._host.privileged_sftp(self._who)

    async def run(self, command: str, *, stdin: Any = None) -> Completed:
        """Run a command of ours, of which nobody is told."""
        return await self._host.run_as(Request(command=command, stdin=stdin, who=self._who, is_question=True), None)


def _told_apart(value: Any) -> str:
    """Give a text that differs where values do: secrets, which all look the same, by a digest."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_told_apart, value))}]"
    if isinstance(value, SecretStr):
        return hashlib.sha256(reveal(value).encode("utf-8", "surrogateescape")).hexdigest()
    return repr(value)


def _known_encoding(name: str) -> str:
    try:
        return codecs.lookup(name).name
    except LookupError:
        raise InventoryError(f"session: there is no encoding {name!r}") from None


def _text_variables(given: Any, host: str) -> dict[str, str]:
    """Read asyncssh's ``env`` option: a dictionary, or a list of ``NAME=value``.

    Raises:
        InventoryError: It is something else, or a name is none.
    """
    if given is None:
        return {}
    if isinstance(given, Mapping):
        pairs = [(str(name), str(value)) for name, value in given.items()]
    elif isinstance(given, list | tuple) and all(isinstance(pair, str) and "=" in pair for pair in given):
        pairs = [(name, value) for name, _, value in (pair.partition("=") for pair in given)]
    else:
        raise InventoryError(f"{host}: session: env: give a dictionary, or a list of NAME=value")
    for name, value in pairs:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise InventoryError(f"{host}: session: env: {name!r} is no name for a variable")
        if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            raise InventoryError(f"{host}: session: env: {name} has a NUL character or is not valid Unicode")
    return dict(pairs)
