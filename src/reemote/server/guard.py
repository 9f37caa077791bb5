"""The guard: what every request must pass before anything else sees it.

In this order: the Host header, the origin, the caller, the size of the body. The guard works on the
ASGI scope alone, never on an URL that was put together from headers.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from .callers import Token, TokenError, peer_user
from .metrics import Metrics
from .settings import Settings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("reemote.access")

request_id: ContextVar[str] = ContextVar("reemote_request_id", default="-")
"""The id of the request that is being answered."""
actor: ContextVar[str] = ContextVar("reemote_actor", default="-")
"""Who makes it: ``user`` and the user id, or ``token``."""

HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"x-frame-options": b"DENY",
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
}
"""Headers of every response, unless it has its own."""

_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::([0-9]{1,5}))?")
_LOOPBACK = frozenset({"127.0.0.1", "[::1]", "localhost"})
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_UNAUTHORISED = 4401
"""The code that closes a websocket whose caller is not known."""


@dataclass
class Refusal(Exception):
    """A request that goes no further."""

    status: int
    message: str


class Guard:
    """The outermost layer of the application."""

    def __init__(self, app: App, settings: Settings, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._token = Token(settings.token_file)
        self._hosts = _LOOPBACK | {host.lower() for host in settings.allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = [(name.lower(), value) for name, value in scope["headers"]]
        identity = _given_id(headers) or secrets.token_hex(8)
        request_id.set(identity)
        actor.set("-")
        start, status = time.perf_counter(), 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                present = {name.lower() for name, _ in message["headers"]}
                added = [(name, value) for name, value in HEADERS.items() if name not in present]
                message["headers"] = [*message["headers"], *added, (b"x-request-id", identity.encode())]
            await send(message)

        try:
            self._check(scope, headers)
            body = await self._body(headers, receive) if scope["type"] == "http" else receive
            await self._app(scope, body, answer)
        except Refusal as refusal:
            await _refuse(scope, refusal, receive, answer)
        finally:
            seconds = time.perf_counter() - start
            if scope["type"] == "http":
                route = getattr(scope.get("route"), "path", "unknown")
                self._metrics.request(scope["method"], route, status, seconds)
                # The path without its query, which may bear secrets; quoted, so that it stays one line.
                path = json.dumps(scope["path"])
                log.info("%s %s %s %d %.1f ms %s", identity, scope["method"], path, status, seconds * 1000, actor.get())

    def _check(self, scope: Scope, headers: list[tuple[bytes, bytes]]) -> None:
        host = self._check_host(headers)
        self._check_origin(scope, headers, host)
        self._check_caller(scope, headers)

    def _check_host(self, headers: list[tuple[bytes, bytes]]) -> str:
        """Refuse names that are not ours: a page of another site could have made them point here."""
        given = [value for name, value in headers if name == b"host"]
        match = _HOST.fullmatch(given[0]) if len(given) == 1 else None
        if match is None or (match[2] and int(match[2]) > 65535):
            raise Refusal(400, "the request needs one well-formed Host header")
        if match[1].decode().lower() not in self._hosts:
            raise Refusal(421, "this server does not go by that name; --allowed-host adds one")
        return given[0].decode().lower()

    def _check_origin(self, scope: Scope, headers: list[tuple[bytes, bytes]], host: str) -> None:
        """Refuse what a browser sends for a page that is not ours, whatever its method and type."""
        secure = scope["scheme"] in ("https", "wss")
        own = f"{'https' if secure else 'http'}://{host}".encode()
        for name, value in headers:
            if name == b"origin" and value.lower() != own:
                raise Refusal(403, "requests from pages of other origins are refused")
            if name == b"sec-fetch-site" and value not in (b"same-origin", b"none"):
                raise Refusal(403, "requests from other sites are refused")

    def _check_caller(self, scope: Scope, headers: list[tuple[bytes, bytes]]) -> None:
        """Let in who has the token, or is the user who runs the server (or root)."""
        if not self._settings.authenticate:
            actor.set("anyone")
            return
        given = [value.decode("latin-1") for name, value in headers if name == b"authorization"]
        try:
            if len(given) == 1 and self._token.admits(given[0]):
                actor.set("token")
                return
        except TokenError as error:
            log.error("%s", error)
        if not given and self._settings.is_loopback and (user := self._peer(scope)) in (os.getuid(), 0):
            actor.set(f"user {user}")
            return
        raise Refusal(401, "this needs the header 'Authorization: Bearer TOKEN'; 'reemote token' prints the token")

    def _peer(self, scope: Scope) -> int | None:
        client, server = scope.get("client"), scope.get("server")
        if not client or not server or server[1] is None or not _is_loopback(client[0]):
            return None
        return peer_user((client[0], client[1]), (server[0], server[1]))

    async def _body(self, headers: list[tuple[bytes, bytes]], receive: Receive) -> Receive:
        """Take the whole body, as far as it keeps to the limits, and give it to the application again."""
        limit = self._settings.body_limit
        lengths = [value for name, value in headers if name == b"content-length"]
        if any(not value.isdigit() or int(value) > limit for value in lengths):
            raise Refusal(413, f"the body may have {limit} bytes at most")
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(self._settings.body_timeout):
                while more:
                    message = await receive()
                    if message["type"] != "http.request":
                        return _replay(bytes(body), receive, gone=True)
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > limit:
                        raise Refusal(413, f"the body may have {limit} bytes at most")
        except TimeoutError:
            raise Refusal(408, "the body did not arrive in time") from None
        return _replay(bytes(body), receive)


def _replay(body: bytes, receive: Receive, *, gone: bool = False) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    if gone:
        messages = [{"type": "http.disconnect"}]

    async def again() -> Message:
        return messages.pop() if messages else await receive()

    return again


async def _refuse(scope: Scope, refusal: Refusal, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        code = _UNAUTHORISED if refusal.status == 401 else 1008
        await send({"type": "websocket.close", "code": code, "reason": refusal.message})
        return
    body = json.dumps({"error": True, "value": refusal.message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refusal.status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="reemote"'))
    if refusal.status in (408, 413):
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _given_id(headers: list[tuple[bytes, bytes]]) -> str | None:
    given = next((value.decode("latin-1") for name, value in headers if name == b"x-request-id"), "")
    return given if _ID.fullmatch(given) else None


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
