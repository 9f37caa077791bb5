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
"""Who makes it: ``user`` and the user id, or ``token`` and the beginning of the token's digest."""
address: ContextVar[str] = ContextVar("reemote_address", default="-")
"""The other end of its connection; what headers say of that is not believed."""

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
_FORWARDED = frozenset({b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip"})
"""Headers that proxies add: the connection is theirs then, and says nothing of the caller."""
_UNAUTHORISED = 4401
"""The code that closes a websocket whose caller is not known."""
_GONE = 499
"""The status, for the log and the metrics, of a request whose client did not wait for the answer."""

STREAMED = frozenset({("PUT", "/reemote/sftp/content")})
"""Requests whose bodies are files. The application reads them bit by bit, and limits them itself."""


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
        self._own = _LOOPBACK | _literal(settings.host)
        self._hosts = self._own | {host.lower() for host in settings.allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = [(name.lower(), value) for name, value in scope["headers"]]
        identity = _given_id(headers) or secrets.token_hex(8)
        request_id.set(identity)
        actor.set("-")
        address.set(str((scope.get("client") or "-")[0]))
        start, status = time.perf_counter(), 500
        body = _Body(receive)

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = dict(message)
                own = {**HEADERS, b"connection": b"close"} if body.is_unread else HEADERS
                present = {name.lower() for name, _ in message["headers"]}
                added = [(name, value) for name, value in own.items() if name not in present]
                message["headers"] = [*message["headers"], *added, (b"x-request-id", identity.encode())]
            await send(message)

        try:
            self._check(scope, headers)
            given = await self._given(scope, headers, body) if scope["type"] == "http" else receive
            if given is None:
                status = _GONE
            else:
                await self._app(scope, given, answer)
        except Refusal as refusal:
            status = refusal.status
            await _refuse(scope, refusal, receive, answer)
        finally:
            self._account(scope, status, time.perf_counter() - start)

    def _account(self, scope: Scope, status: int, seconds: float) -> None:
        method = scope.get("method", "WEBSOCKET")
        route = getattr(scope.get("route"), "path", "unknown")
        self._metrics.request(method, route, status, seconds)
        # The path without its query, which may bear secrets; quoted, so that it stays one line.
        path = json.dumps(scope["path"])
        milliseconds = seconds * 1000
        log.info("%s %s %d %.1f ms, %s from %s", method, path, status, milliseconds, actor.get(), address.get())

    def _check(self, scope: Scope, headers: list[tuple[bytes, bytes]]) -> None:
        host, is_own = self._check_host(headers)
        self._check_origin(scope, headers, host, is_own=is_own)
        # A name that was added leads here from elsewhere, and so does a proxy.
        is_direct = is_own and not any(name in _FORWARDED for name, _ in headers)
        self._check_caller(scope, headers, is_direct=is_direct)

    def _check_host(self, headers: list[tuple[bytes, bytes]]) -> tuple[str, bool]:
        """Refuse names that are not ours: a page of another site could have made them point here."""
        given = [value for name, value in headers if name == b"host"]
        match = _HOST.fullmatch(given[0]) if len(given) == 1 else None
        if match is None or (match[2] and int(match[2]) > 65535):
            raise Refusal(400, "the request needs one well-formed Host header")
        name = match[1].decode().lower()
        if name not in self._hosts:
            raise Refusal(421, "this server does not go by that name; --allowed-host adds one")
        return given[0].decode().lower(), name in self._own

    def _check_origin(self, scope: Scope, headers: list[tuple[bytes, bytes]], host: str, *, is_own: bool) -> None:
        """Refuse what a browser sends for a page that is not ours, whatever its method and type."""
        secure = scope["scheme"] in ("https", "wss")
        own = {f"{'https' if secure else 'http'}://{host}".encode()}
        if not is_own:
            own.add(f"https://{host}".encode())  # a proxy may end TLS before us
        for name, value in headers:
            if name == b"origin" and value.lower() not in own:
                raise Refusal(403, "requests from pages of other origins are refused")
            if name == b"sec-fetch-site" and value not in (b"same-origin", b"none"):
                raise Refusal(403, "requests from other sites are refused")

    def _check_caller(self, scope: Scope, headers: list[tuple[bytes, bytes]], *, is_direct: bool) -> None:
        """Let in who has the token, or is the user who runs the server (or root) and talks to us directly."""
        if not self._settings.authenticate:
            actor.set("anyone")
            return
        given = [value.decode("latin-1") for name, value in headers if name == b"authorization"]
        try:
            if len(given) == 1 and (name := self._token.admits(given[0])):
                actor.set(f"token {name}")
                return
        except TokenError as error:
            log.error("%s", error)
        if not given and is_direct and self._settings.is_loopback:
            user = self._peer(scope)
            if user is not None and user in (os.geteuid(), 0):
                actor.set(f"user {user}")
                return
        raise Refusal(401, "this needs the header 'Authorization: Bearer TOKEN'; 'reemote token' prints the token")

    def _peer(self, scope: Scope) -> int | None:
        client, server = scope.get("client"), scope.get("server")
        if not client or not server or server[1] is None or not _is_loopback(client[0]):
            return None
        return peer_user((client[0], client[1]), (server[0], server[1]))

    async def _given(self, scope: Scope, headers: list[tuple[bytes, bytes]], body: _Body) -> Receive | None:
        """Give what the application is to read the body from; ``None`` where the client has gone before its end."""
        is_file = (scope["method"], scope["path"]) in STREAMED
        limit = self._settings.content_limit if is_file else self._settings.body_limit
        names = {name for name, _ in headers}
        if {b"content-length", b"transfer-encoding"} <= names:
            # A proxy in front might believe the other one (RFC 9112, section 6.1).
            raise Refusal(400, "the request says twice how long its body is")
        lengths = [value for name, value in headers if name == b"content-length"]
        if any(not value.isdigit() or len(value) > 18 or int(value) > limit for value in lengths):
            raise Refusal(413, f"the body may have {limit} bytes at most")
        if is_file:
            body.is_unread = True
            return body.receive
        return await self._whole(body.receive, limit)

    async def _whole(self, receive: Receive, limit: int) -> Receive | None:
        """Take the whole body, as far as it keeps to the limits, and give it to the application again."""
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(self._settings.body_timeout):
                while more:
                    message = await receive()
                    if message["type"] != "http.request":
                        return None
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > limit:
                        raise Refusal(413, f"the body may have {limit} bytes at most")
        except TimeoutError:
            raise Refusal(408, "the body did not arrive in time") from None
        return _replay(bytes(body), receive)


class _Body:
    """The body of a request."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.is_unread = False
        """Whether the application has it to read, and has not come to its end: the connection cannot be kept then."""

    async def receive(self) -> Message:
        """Give the next part."""
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self.is_unread = False
        return message


def _replay(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

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
    if refusal.status in (400, 408, 413):
        # What is left of the body would be taken for the next request.
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _given_id(headers: list[tuple[bytes, bytes]]) -> str | None:
    given = next((value.decode("latin-1") for name, value in headers if name == b"x-request-id"), "")
    return given if _ID.fullmatch(given) else None


def _literal(host: str) -> frozenset[str]:
    """Give the address that the server listens at as a Host header has it; nothing for a name or for all addresses."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return frozenset()
    if ip.is_unspecified:
        return frozenset()
    return frozenset({f"[{ip}]" if ip.version == 6 else str(ip)})


def _is_loopback(ip: str) -> bool:
    try:
        return ipaddress.ip_address(ip).is_loopback
    except ValueError:
        return False
