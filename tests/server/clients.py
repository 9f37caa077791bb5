"""A server in a thread, and clients that are as rude as the tests need them to be."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import http.client
import json
import os
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest

from reemote.server.callers import Token
from reemote.server.serve import Server
from reemote.server.settings import Settings

NOBODY = 54321
"""A user id that is neither ours nor root's."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")

JSON = {"Content-Type": "application/json"}


class Answer(NamedTuple):
    """A response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Serving:
    """A server in a thread, with the real protocol, on a free port."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        Token(settings.token_file).value()
        self.unheard: list[dict[str, Any]] = []
        self.server = Server(settings, self._ready)
        self.app = self.server.app
        self.url = ""
        self._is_ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="server")

    def _run(self) -> None:
        async def serve() -> None:
            self.loop = asyncio.get_running_loop()
            self.loop.set_exception_handler(lambda _, context: self.unheard.append(context))
            await self.server.listen()

        try:
            asyncio.run(serve())
        finally:
            self._is_ready.set()

    def _ready(self, url: str) -> None:
        self.url = url
        self._is_ready.set()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._is_ready.wait(20)
        assert self.url, "the server did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.server.handle_exit, 15, None)
        self._thread.join(20)
        assert not self._thread.is_alive()
        assert self.unheard == []

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.host.rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def host(self) -> str:
        """What a Host header says."""
        return self.url.rpartition("//")[2]

    def connect(self, user: int | None = None, timeout: float = 20) -> socket.socket:
        """Open a connection, as another *user* where one is given."""
        with as_user(user):
            client = socket.create_connection(self.address, timeout=timeout)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.settings.certificate is not None:
            context = ssl.create_default_context(cafile=str(self.settings.certificate))
            return context.wrap_socket(client, server_hostname=self.address[0])
        return client

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        user: int | None = None,
    ) -> Answer:
        """Make one request on a connection of its own."""
        with contextlib.closing(Client(self, user)) as client:
            return client.call(method, path, body, headers)

    def get(self, path: str, **headers: str) -> Answer:
        return self.call("GET", path, headers=headers)

    def post(self, path: str, body: Any = None, **headers: str) -> Answer:
        return self.call("POST", path, json.dumps(body or {}).encode(), {**JSON, **headers})

    def raw(self, data: bytes, user: int | None = None) -> bytes:
        """Send bytes as they are, and give all that comes back until the end."""
        with self.connect(user) as client:
            client.sendall(data)
            return received(client)


class Client:
    """A connection that is kept."""

    def __init__(self, serving: Serving, user: int | None = None) -> None:
        self.connection = http.client.HTTPConnection(*serving.address)
        self.connection.sock = serving.connect(user)

    def call(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        given = headers or {}
        self.connection.putrequest(method, path, skip_host="Host" in given, skip_accept_encoding=True)
        for name, value in given.items():
            self.connection.putheader(name, value.encode("latin-1"))
        if body is not None:
            self.connection.putheader("Content-Length", str(len(body)))
        self.connection.endheaders(body)
        response = self.connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, found, response.read())

    def close(self) -> None:
        self.connection.close()


def received(client: socket.socket) -> bytes:
    """Read to the end; what a reset leaves is the end, too."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(65536):
            parts.append(part)
    return b"".join(parts)


def status_of(response: bytes) -> int:
    return int(response.split(b" ", 2)[1])


@contextlib.contextmanager
def as_user(user: int | None) -> Iterator[None]:
    """Let this thread, and no other, make sockets for another user: the kernel notes who makes one."""
    if user is None:
        yield
        return
    libc = ctypes.CDLL(None)
    libc.setfsuid(user)
    try:
        assert libc.setfsuid(-1) == user
        yield
    finally:
        libc.setfsuid(os.geteuid())


def settings_in(directory: Path, **more: Any) -> Settings:
    """Settings whose files are all in one directory; the port is free."""
    given: dict[str, Any] = {
        "inventory": directory / "inventory.json",
        "port": 0,
        "token_file": directory / "token",
        "audit_file": directory / "audit.jsonl",
        "files": directory / "files",
        **more,
    }
    return Settings(**given)


def entries(serving: Serving) -> list[dict[str, Any]]:
    """The audit log."""
    file = serving.settings.audit_file
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
