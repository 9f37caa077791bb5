"""The pool: connections that are kept and shared, within the limits of hosts and of this process."""

from __future__ import annotations

import asyncio
import logging
import resource
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

from ..core.context import Context
from ..core.inventory import InventoryItem
from .host import SshHost
from .link import Link, connect
from .options import SESSION_OPTIONS, Plan, Plans, check_names
from .places import Places

log = logging.getLogger("reemote")

HANDSHAKES_PER_HOST, HANDSHAKES, FEWEST_HANDSHAKES = 8, 64, 4
"""How many attempts to connect are under way at a time, to one endpoint and in all.

A server's own limit (``MaxStartups``) cannot be seen from here, and many addresses may be one
server. So the number in all is halved when an attempt is dropped, down to the fewest, and grows by
one with each success.
"""

IDLE = 60.0
"""Seconds after which a connection that nobody uses is closed."""

SPARE_FILES, FILES_PER_CONNECTION = 64, 3
"""File descriptors that are left to the program, and those that a connection may take at its start."""


class Pool:
    """Connections to hosts: opened when first needed, shared, kept until idle.

    A pool belongs to one event loop. ``async with Pool() as pool`` closes its connections at the
    end; ``execute()`` without a pool uses one that is kept with the event loop.

    Args:
        idle: Seconds after which a connection that nobody uses is closed.
    """

    def __init__(self, *, idle: float = IDLE) -> None:
        self._idle = idle
        self._entries: dict[tuple[Any, ...], _Entry] = {}
        self._planning = Plans()
        self._plans: dict[str, tuple[Any, Plan]] = {}
        self._gates: weakref.WeakValueDictionary[tuple[str, str], Places] = weakref.WeakValueDictionary()
        self._gate = Places(HANDSHAKES)
        self._closing: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        entries, self._entries = list(self._entries.values()), {}
        for entry in entries:
            entry.cancel_timer()
            if entry.opening is not None:
                entry.opening.cancel()
        await asyncio.gather(*(entry.link.close() for entry in entries if entry.link), *self._closing)

    @property
    def open_connections(self) -> int:
        """How many connections stand at the moment."""
        return sum(1 for entry in self._entries.values() if entry.link and not entry.link.is_closed)

    # What execute() asks for

    def prepare(self, items: Sequence[InventoryItem]) -> int:
        """Check the options of all hosts; answer how many hosts may run at the same time.

        Raises:
            InventoryError: An option is unknown or wrong, or a key cannot be read.
        """
        unchecked = [item.host for item in items if self._plan(item).trust.policy == "off"]
        if unchecked:
            shown = ", ".join(unchecked[:5]) + (", ..." if len(unchecked) > 5 else "")
            log.warning("host keys are not checked on %d of the hosts: %s", len(unchecked), shown)
        for item in items:
            session_options(item.session.options(), item.host)
        return _connections_allowed(len(items))

    def _plan(self, item: InventoryItem) -> Plan:
        """Give the host's plan, made once for each state of its options."""
        options = item.connection.options()
        found = self._plans.get(item.host)
        if found is None or found[0] != options:
            found = self._plans[item.host] = (options, self._planning.plan(item.connection))
        return found[1]

    @asynccontextmanager
    async def host(self, item: InventoryItem, *, limit: int | None = None) -> AsyncIterator[SshHost]:
        """Give one host for the time of a run; its connection is opened when first needed."""
        allowed = _connections_allowed(len(self._entries) + 1)
        host = SshHost(Context(inventory_item=item), self, min(limit or allowed, allowed))
        try:
            yield host
        finally:
            host.release()

    # What a host asks for

    async def acquire(self, item: InventoryItem, overrides: Mapping[str, Any] | None, limit: int) -> Link:
        """Give a connection that stands, opening one where there is none; release it after use.

        Raises:
            HostError: No connection can be made.
        """
        wanted = self._plan(item)
        if overrides:
            wanted = self._planning.plan(item.connection, overrides)
        entry = self._entries.get(wanted.key)
        if entry is None or (entry.link is not None and entry.link.is_closed):
            if entry is not None:
                entry.cancel_timer()
            entry = self._entries[wanted.key] = _Entry()
        entry.cancel_timer()
        if entry.link is None:
            await self._open(entry, wanted, limit)
        assert entry.link is not None
        entry.link.users += 1
        return entry.link

    async def _open(self, entry: _Entry, wanted: Plan, limit: int) -> None:
        """Connect, once for all who ask at the same time; given up when all of them are cancelled."""
        if entry.opening is None:
            entry.opening = asyncio.create_task(self._connect(entry, wanted, limit))
        entry.askers += 1
        try:
            await asyncio.shield(entry.opening)
        except asyncio.CancelledError:
            if entry.askers == 1 and not entry.opening.done():
                entry.opening.cancel()
                await asyncio.wait([entry.opening])
            raise
        finally:
            entry.askers -= 1

    def release(self, link: Link) -> None:
        """Let go of a connection; it is closed when nobody has used it for a while."""
        link.users -= 1
        entry = self._entries.get(link.plan.key)
        if entry is None or entry.link is not link or link.users:
            return
        if link.is_closed:
            del self._entries[link.plan.key]
        else:
            entry.timer = asyncio.get_running_loop().call_later(self._idle, self._close_idle, link.plan.key)
            # To the end: the entries stand in the order in which they fell idle.
            self._entries[link.plan.key] = self._entries.pop(link.plan.key)

    def _close_idle(self, key: tuple[Any, ...]) -> asyncio.Task[None] | None:
        entry = self._entries.get(key)
        if entry is None or entry.link is None or entry.link.users or entry.askers:
            return None
        del self._entries[key]
        entry.cancel_timer()
        task = asyncio.get_running_loop().create_task(entry.link.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return task

    async def _make_room(self, limit: int) -> None:
        """Close idle connections, the longest idle first, until there are no more than *limit*."""
        for key, entry in list(self._entries.items()):
            if len(self._entries) <= limit:
                return
            if entry.link is not None and (closing := self._close_idle(key)):
                await closing

    async def _connect(self, entry: _Entry, wanted: Plan, limit: int) -> None:
        try:
            await self._make_room(limit)
            endpoint = (wanted.host, str(wanted.arguments.get("tunnel", wanted.port)))
            gate = self._gates.get(endpoint)
            if gate is None:
                gate = self._gates[endpoint] = Places(HANDSHAKES_PER_HOST)

            @asynccontextmanager
            async def gates() -> AsyncIterator[None]:
                async with gate, self._gate:
                    yield

            entry.link = await connect(wanted, gates, lambda: self._gate.narrow(FEWEST_HANDSHAKES))
            self._gate.widen()
        finally:
            entry.opening = None
            if entry.link is None and self._entries.get(wanted.key) is entry:
                del self._entries[wanted.key]


class _Entry:
    """The place of one connection in the pool."""

    def __init__(self) -> None:
        self.link: Link | None = None
        self.opening: asyncio.Task[None] | None = None
        self.askers = 0
        """How many wait for it to open."""
        self.timer: asyncio.TimerHandle | None = None

    def cancel_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


def session_options(options: Mapping[str, Any], host: str) -> dict[str, Any]:
    """Check the options of a session.

    Raises:
        InventoryError: One is unknown.
    """
    check_names(options, SESSION_OPTIONS, f"{host}: session")
    return dict(options)


def _connections_allowed(wanted: int) -> int:
    """Answer how many connections this process can hold; raise its soft limit where that helps."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted * FILES_PER_CONNECTION + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return max(wanted, 1)
    return max(1, (soft - SPARE_FILES) // FILES_PER_CONNECTION)


_kept: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[Pool, AsyncGenerator[None, None]]] = (
    weakref.WeakKeyDictionary()
)


async def loop_pool() -> Pool:
    """Give the pool that is kept with the running event loop, and closed when that shuts down."""
    loop = asyncio.get_running_loop()
    kept = _kept.get(loop)
    if kept is None:
        pool = Pool()
        # An event loop that shuts down closes its asynchronous generators, as asyncio.run() does:
        # the one place where it lets us close connections before it goes.
        keeper = _close_with_loop(pool)
        kept = _kept[loop] = (pool, keeper)
        await anext(keeper)
    return kept[0]


async def _close_with_loop(pool: Pool) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        _kept.pop(asyncio.get_running_loop(), None)
        await pool.close()
