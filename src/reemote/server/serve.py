"""Serve: one process, one event loop, all connections; stopped within seconds."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import os
import resource
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..core.errors import InventoryError, ReemoteError
from .app import App
from .audit import Audit, AuditError
from .callers import Token, TokenError
from .guard import HEADERS, Guard
from .settings import Settings
from .store import Store

GRACE = 3.5
"""Seconds that requests have to end once the server is told to stop: a command that does not heed
SIGTERM is killed after 3."""

MOST_CONNECTIONS = 1000
"""How many HTTP connections there may be at the same time."""

LEFT_AT_ONCE = 130
"""The exit code after a second signal."""


class ServeError(ReemoteError):
    """The server cannot be started as it was asked to; the message says why."""


def check(settings: Settings) -> None:
    """Refuse what would open the server to more people than its owner means to.

    Raises:
        ServeError: The address is open to others, and nothing protects it.
    """
    if bool(settings.certificate) != bool(settings.key):
        raise ServeError("TLS needs both a certificate and its key")
    for path in (settings.certificate, settings.key):
        if path is not None and not path.is_file():
            raise ServeError(f"there is no file {path}")
    if settings.is_loopback:
        return
    if not settings.authenticate:
        raise ServeError(f"--no-auth is for loopback addresses only, and {settings.host} is none")
    if settings.certificate is None:
        raise ServeError(
            f"{settings.host} can be reached from other machines: that needs TLS (--certificate and --key); "
            "callers need the token, then"
        )


def serve(settings: Settings, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; call *ready* with the URL once requests are taken.

    Raises:
        ServeError: The address cannot be had, or the settings are not safe.
    """
    check(settings)
    _check_files(settings)
    # What it has to say of bugs, the application says itself; what it says of a forced stop is noise.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    _allow_open_files()
    try:
        server = Server(settings, ready)
    except (OSError, ssl.SSLError) as error:
        raise ServeError(f"the certificate or its key cannot be used: {error.strerror or error}") from None
    asyncio.run(server.listen())


def _check_files(settings: Settings) -> None:
    """Find out now what would be in the way of each request.

    Raises:
        ServeError: The token, the inventory or the audit log cannot be used.
    """
    try:
        if settings.authenticate:
            Token(settings.token_file).value()  # made now, so that its user finds it
        Store(settings.inventory).inventory()
        Audit(settings.audit_file, required=settings.audit_required).check()
    except (TokenError, InventoryError, AuditError) as error:
        raise ServeError(str(error)) from None


def _allow_open_files() -> None:
    """Raise this process's own limit: requests and hosts take a file descriptor each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * MOST_CONNECTIONS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class Protocol(H11Protocol):
    """HTTP, with limited time for the head of a request, and our own answer to what is no HTTP."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request; turn away who is one too many."""
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Take bytes; those of a head have to come within its time, however they drip."""
        super().data_received(data)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the wait."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        if not self._is_waiting():
            self._stop_waiting()
        elif self._patience is None:
            self._patience = self.loop.call_later(self.timeout_keep_alive, self._give_up)

    def _is_waiting(self) -> bool:
        is_ours = self.transport.get_protocol() is self  # else it has become a websocket
        cycle: Any = self.cycle  # there is none before the first request
        return is_ours and not self.transport.is_closing() and (cycle is None or cycle.response_complete)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        self._patience = None
        if self._is_waiting():
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP as all else is answered."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps({"error": True, "value": "this is no well-formed HTTP request"}).encode()
            length = str(len(body)).encode()
            own = [(b"content-type", b"application/json"), (b"content-length", length), (b"connection", b"close")]
            response = h11.Response(status_code=400, headers=[*own, *HEADERS.items()], reason=b"Bad Request")
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        self.transport.close()


class Server(uvicorn.Server):
    """A server that ends its runs as soon as it is told to stop.

    Args:
        settings: What to serve, and to whom.
        ready: Called with the URL once requests are taken.
    """

    def __init__(self, settings: Settings, ready: Callable[[str], None]) -> None:
        self.app = App(settings)
        self._settings = settings
        self._ready = ready
        self._url = ""
        self._is_told_to_stop = asyncio.Event()
        config = uvicorn.Config(
            Guard(self.app, settings, self.app.metrics),
            host=settings.host,
            port=settings.port,
            ssl_certfile=settings.certificate,
            ssl_keyfile=settings.key,
            ssl_keyfile_password="-",  # noqa: S106 - else OpenSSL asks at the terminal for that of an encrypted key
            access_log=False,  # it would log queries; the guard has a log of its own
            log_config=None,
            server_header=False,
            proxy_headers=False,
            forwarded_allow_ips=[],
            http=Protocol,
            ws="websockets-sansio",
            ws_max_size=settings.body_limit,
            workers=1,
            timeout_keep_alive=settings.header_timeout,  # type: ignore[arg-type] # annotated as an int
            h11_max_incomplete_event_size=64 * 1024,
            timeout_graceful_shutdown=GRACE,  # type: ignore[arg-type] # annotated as an int
            lifespan="on",
        )
        config.load()
        super().__init__(config)

    async def listen(self) -> None:
        """Bind first, so that a taken port is an error with a name, then serve.

        Raises:
            ServeError: The address cannot be had.
        """
        settings = self._settings
        try:
            sock = _bound(settings)
        except OSError as error:
            raise ServeError(f"cannot listen at {settings.host}:{settings.port}: {error.strerror}") from None
        scheme = "https" if settings.certificate else "http"
        self._url = f"{scheme}://{_name(settings)}:{sock.getsockname()[1]}"
        await self.serve(sockets=[sock])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and tell of it."""
        await super().startup(sockets=sockets)
        if self.started:
            self._ready(self._url)

    async def main_loop(self) -> None:
        """Serve until told to stop, and stop at once; uvicorn itself looks ten times a second whether it is."""
        while not await self.on_tick(0):  # it renews the date of answers
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_told_to_stop.wait(), 1)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals through the event loop, and do not raise them again at the end, as uvicorn would."""
        loop = asyncio.get_running_loop()
        is_main = threading.current_thread() is threading.main_thread()
        taken = (signal.SIGINT, signal.SIGTERM) if is_main else ()
        for number in taken:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in taken:
                loop.remove_signal_handler(number)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; the second time, leave at once."""
        if self.should_exit:
            logging.shutdown()
            os._exit(LEFT_AT_ONCE)
        self.stop()

    def stop(self) -> None:
        """End the runs, and serve no more; the event loop's thread calls this."""
        self.app.stop()
        self.should_exit = True
        self._is_told_to_stop.set()


def _name(settings: Settings) -> str:
    """Give a name under which the server goes, to put into its URL."""
    if not settings.is_loopback and settings.allowed_hosts:
        return settings.allowed_hosts[0]
    if settings.host in ("", "0.0.0.0", "::"):  # noqa: S104 - all addresses are none to connect to
        return "localhost"
    return f"[{settings.host}]" if ":" in settings.host else settings.host


def _bound(settings: Settings) -> socket.socket:
    """Give a socket that is bound to the address, with no other process beside us on it."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # With the protocol named, asyncio sends small answers at once: else each waits for 40 ms.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((settings.host, settings.port))
        ip = ipaddress.ip_address(sock.getsockname()[0])
        if settings.is_loopback and not ip.is_loopback:
            raise OSError(None, f"that is {ip} here, and no loopback address")
        sock.listen(2048)  # until one of them listens, several processes may be bound to a port
    except BaseException:
        sock.close()
        raise
    return sock
