"""Serve: one process, one event loop, all connections; stopped within seconds."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from ..core.errors import ReemoteError
from .app import App
from .callers import Token, TokenError
from .guard import Guard
from .settings import Settings

GRACE = 4
"""Seconds that requests have to end once the server is told to stop."""


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
    if settings.authenticate:
        try:
            Token(settings.token_file).value()  # made now, so that its user finds it
        except TokenError as error:
            raise ServeError(str(error)) from None
    app = App(settings)
    config = uvicorn.Config(
        Guard(app, settings, app.metrics),
        host=settings.host,
        port=settings.port,
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.key,
        access_log=False,  # it would log queries; the guard has a log of its own
        log_config=None,
        server_header=False,
        proxy_headers=False,
        forwarded_allow_ips=[],
        http="h11",
        timeout_keep_alive=15,
        timeout_graceful_shutdown=GRACE,
        h11_max_incomplete_event_size=64 * 1024,
        limit_concurrency=1000,
        lifespan="on",
    )
    # What it has to say of bugs, the application says itself; what it says of a forced stop is noise.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    asyncio.run(_Server(config, app, ready).run_on(settings))


class _Server(uvicorn.Server):
    """A server that ends its runs as soon as it is told to stop."""

    def __init__(self, config: uvicorn.Config, app: App, ready: Callable[[str], None]) -> None:
        super().__init__(config)
        self._app = app
        self._ready = ready
        self._url = ""

    async def run_on(self, settings: Settings) -> None:
        """Bind first, so that a taken port is an error with a name, then serve."""
        try:
            sock = _bound(settings)
        except OSError as error:
            raise ServeError(f"cannot listen at {settings.host}:{settings.port}: {error.strerror}") from None
        scheme = "https" if settings.certificate else "http"
        name = f"[{settings.host}]" if ":" in settings.host else settings.host
        self._url = f"{scheme}://{name}:{sock.getsockname()[1]}"
        try:
            await self.serve(sockets=[sock])
        finally:
            if self._app.runner is not None:  # a second signal skips the application's own shutdown
                await self._app.runner.close()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and tell of it."""
        await super().startup(sockets=sockets)
        if self.started:
            self._ready(self._url)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals through the event loop, and do not raise them again at the end, as uvicorn would."""
        loop = asyncio.get_running_loop()
        taken = (signal.SIGINT, signal.SIGTERM)
        for number in taken:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in taken:
                loop.remove_signal_handler(number)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End the runs, then do what uvicorn does."""
        self._app.stop()
        super().handle_exit(sig, frame)


def _bound(settings: Settings) -> socket.socket:
    """Give a socket that is bound to the address, with no other process beside us on it."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    sock = socket.socket(family)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((settings.host, settings.port))
        sock.set_inheritable(False)
    except BaseException:
        sock.close()
        raise
    return sock
