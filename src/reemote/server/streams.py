"""Streams: content on its way between a client and hosts, a few blocks at a time."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import posixpath
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import Response
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send
from typing_extensions import TypedDict

from ..core.files import Path, encoded
from ..core.response import Responses
from .settings import Settings

BLOCK = 255 * 1024
"""Bytes that are passed on at a time: what OpenSSH takes in one request."""

AHEAD = 8
"""Blocks that one end may be ahead of the other."""


class Stored(TypedDict):
    """What was written on a host."""

    size: Annotated[int, Field(description="How many bytes.")]
    sha256: Annotated[str, Field(description="Their SHA-256 digest, in hexadecimal digits.")]


class Pipe:
    """Blocks on their way from one task to others, a few at a time; each has its place in the file."""

    def __init__(self) -> None:
        self._blocks: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(AHEAD)
        self._is_wanted = True

    async def put(self, block: tuple[int, bytes]) -> None:
        """Add a block when there is room."""
        await self._room.acquire()
        if self._is_wanted:
            self._blocks.put_nowait(block)
        else:
            self._room.release()

    async def get(self) -> tuple[int, bytes] | None:
        """Take the next block; ``None`` where there are no more."""
        block = await self._blocks.get()
        if block is None:
            self._blocks.put_nowait(None)  # for the other readers, too
        else:
            self._room.release()
        return block

    def end(self) -> None:
        """Say that there are no more."""
        self._blocks.put_nowait(None)

    def abandon(self) -> None:
        """Take no more blocks: whoever adds some does not wait any longer."""
        self._is_wanted = False
        self._blocks = asyncio.Queue()
        self._room.release()


class Outlet(Pipe):
    """The content of one host's file, on its way to the client."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0
        """How many bytes there are; 0 where that is not known."""
        self.has_begun = asyncio.Event()

    def __deepcopy__(self, _: Any) -> Outlet:
        """Stay one, whichever host's operation has it."""
        return self

    def begin(self, size: int) -> None:
        """Say that the content follows."""
        self.size = size
        self.has_begun.set()


class Body:
    """The body of a request, on its way to several hosts.

    Args:
        request: The request.
        settings: How much it may be, and how long the client may send nothing.
    """

    def __init__(self, request: Request, settings: Settings) -> None:
        self.shares: dict[str, Pipe] = {}
        self.refusal: HTTPException | None = None
        """Why it was not taken."""
        self._receive = request.receive
        self._is_awaited = request.headers.get("expect", "").lower() == "100-continue"
        self._limit = settings.content_limit
        self._patience = settings.body_timeout
        self._absent: set[str] = set()
        self._takers: set[str] = set()
        self._is_everybody_here = asyncio.Event()
        self._size = 0
        self._digest = hashlib.sha256()
        self._is_whole = False

    def __deepcopy__(self, _: Any) -> Body:
        """Stay one, for all hosts."""
        return self

    def expect(self, hosts: list[str]) -> None:
        """Name the hosts that it goes to."""
        self.shares = {host: Pipe() for host in hosts}
        self._absent = set(hosts)

    def join(self, host: str) -> None:
        """Say that a host can take it now; it starts when all can, or have failed."""
        self._takers.add(host)
        self._settle(host)

    def leave(self, host: str) -> None:
        """Let the others go on without a host."""
        self.shares[host].abandon()
        self._takers.discard(host)
        self._settle(host)

    def _settle(self, host: str) -> None:
        self._absent.discard(host)
        if self._takers and not self._absent:
            self._is_everybody_here.set()

    def stored(self) -> Stored:
        """Tell what there was."""
        return Stored(size=self._size, sha256=self._digest.hexdigest())

    async def feed(self) -> None:
        """Give the body to the hosts as it arrives; return when it is refused, or the client has gone."""
        await self._is_everybody_here.wait()
        offset, rest = 0, bytearray()
        try:
            while not self._is_whole:
                rest += await self._next()
                while len(rest) >= BLOCK or (rest and self._is_whole):
                    data = bytes(rest[:BLOCK])
                    del rest[:BLOCK]
                    self._digest.update(data)
                    for share in self.shares.values():
                        await share.put((offset, data))
                    offset += len(data)
            for share in self.shares.values():
                share.end()
            while True:
                await self._message()
        except HTTPException as refusal:
            self.refusal = refusal
        except ClientDisconnect:
            pass

    async def _next(self) -> bytes:
        """Give what arrives next.

        Raises:
            HTTPException: Nothing does for too long, or it is too much.
            ClientDisconnect: The client has gone.
        """
        self._is_awaited = False
        try:
            async with asyncio.timeout(self._patience):
                message = await self._message()
        except TimeoutError:
            raise HTTPException(408, "the body did not go on in time") from None
        data: bytes = message.get("body", b"")
        self._size += len(data)
        if self._size > self._limit:
            raise HTTPException(413, f"the body may have {self._limit} bytes at most")
        self._is_whole = not message.get("more_body", False)
        return data

    async def _message(self) -> Any:
        message = await self._receive()
        if message["type"] != "http.request":
            raise ClientDisconnect
        return message

    async def discard(self) -> None:
        """Read what is left, for a while: many clients hear an answer only when they have sent all.

        One that asked whether to send has no need of that.
        """
        if self._is_awaited:
            return
        with contextlib.suppress(TimeoutError, HTTPException, ClientDisconnect):
            async with asyncio.timeout(self._patience):
                while not self._is_whole:
                    await self._next()


class Download(Response):
    """The content of a file; it breaks off where the run fails, which a client can tell from an end.

    Args:
        outlet: What gives the content.
        run: The run that reads it.
        path: The file.
        patience: Seconds in which the client has to take some more.
    """

    def __init__(self, outlet: Outlet, run: asyncio.Task[Responses], path: Path, patience: float) -> None:
        # Not initialised as other responses are: the length of the body may be unknown.
        self.status_code = 200
        self.background = None
        self.media_type = "application/octet-stream"
        headers = {"content-disposition": disposition(path)}
        if outlet.size:
            headers["content-length"] = str(outlet.size)
        self.init_headers(headers)
        self._outlet = outlet
        self._run = run
        self._patience = patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, as long as the run goes well."""
        sending = asyncio.create_task(self._send(send))
        try:
            await asyncio.wait({sending, self._run}, return_when=asyncio.FIRST_COMPLETED)
            if not has_failed(self._run):
                await sending
        finally:
            await end(sending, self._run)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        with contextlib.suppress(TimeoutError):  # nobody takes it
            while (block := await self._outlet.get()) is not None:
                async with asyncio.timeout(self._patience):
                    await send({"type": "http.response.body", "body": block[1], "more_body": True})
            await asyncio.wait({self._run})
            if not has_failed(self._run):
                await send({"type": "http.response.body", "body": b"", "more_body": False})


def has_failed(run: asyncio.Task[Responses]) -> bool:
    """Whether a run has ended, and not well."""
    if not run.done():
        return False
    return run.cancelled() or run.exception() is not None or bool(run.result().failed)


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks, wait until they have ended, and hear what they raised."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


_PLAIN = "!#$&+-.^_`|~"
"""What may stand in the extended form of a parameter, besides letters and digits (RFC 8187, section 3.2.1)."""


def disposition(path: Path) -> str:
    """Write the header that names the file for a browser that stores it (RFC 6266)."""
    name = posixpath.basename(encoded(path)).decode("utf-8", "replace") or "content"
    plain = "".join(each if each.isascii() and (each.isalnum() or each in " -._~+,=@") else "_" for each in name)
    extended = f"; filename*=UTF-8''{quote(name, safe=_PLAIN)}" if plain != name else ""
    return f'attachment; filename="{plain}"{extended}'
