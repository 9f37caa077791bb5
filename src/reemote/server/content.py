"""Content: files of hosts, sent and fetched over HTTP without a copy on this machine's disk."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import Field, InstanceOf
from starlette.exceptions import HTTPException

from ..core import catalogue
from ..core.errors import SFTPError
from ..core.files import File, Files, Permissions, RemotePath, printable
from ..core.host import Host
from ..core.inventory import Inventory
from ..core.operation import Effect
from ..core.remote import Privileged
from ..core.response import Response as HostResponse
from ..core.response import as_json
from ..sftp.attributes import Number, kind
from ..transfer.place import Wanted, placed
from ..transfer.pump import Flow, drain, in_order
from . import openapi
from .openapi import Invalid, Problem, Schema
from .routes import METHODS, Failed, accepted, answer, disconnected, query_reader
from .runner import Runner
from .settings import Settings
from .streams import AHEAD, BLOCK, Body, Download, Outlet, Pipe, Stored, end, has_failed

NAME = "sftp.content"
"""What a run is called in the records."""


# The operations

_HOST: Any = Field(default=None, json_schema_extra={"format": "host-name"})


class PutContent(Privileged[Stored]):
    """Write the body of the request to a file on the host.

    The body may be of any type, and is not stored on the server's machine: all hosts get it at the same
    time, as fast as the slowest of them takes it. It is written beside the file under a temporary name,
    and renamed when it is whole. The file keeps its owner and its mode. When a host fails, the others go
    on; when the client goes away or sends too much, nothing is left on any.
    """

    effect = Effect.ENSURES
    route = "content"

    path: RemotePath = Field(examples=["/tmp/example"])  # noqa: S108 - an example
    """The file on the host."""
    host: str | None = _HOST
    """The one host to write to; by default all hosts of the group."""
    permissions: Permissions | None = None
    """The permission bits: a number, or octal digits as text, such as ``0644``."""
    uid: Number | None = None
    """The number of the user who is to own it."""
    gid: Number | None = None
    """The number of the group that is to own it."""
    in_place: bool = False
    """Whether to write into the file itself, where no other can be made beside it."""
    body: InstanceOf[Body] = Field(repr=False)
    """The body."""

    async def perform(self, host: Host) -> HostResponse[Stored]:
        """Write it."""
        share = self.body.shares[host.context.host]
        wanted = Wanted(self.permissions, owner=(self.uid, self.gid))
        try:
            async with host.sftp(**self.privileges()) as files:
                found = await files.lookup(self.path)
                if found is not None and not found.is_file:
                    raise SFTPError(f"{printable(self.path)} is {kind(found)}, not a file", kind="SFTPFailure")
                async with placed(files, self.path, wanted, in_place=self.in_place) as file:
                    self.body.join(host.context.host)
                    flow = Flow()
                    await drain(range(AHEAD), lambda _: _fill(file, files, share, flow), AHEAD)
        finally:
            self.body.leave(host.context.host)
        return HostResponse(value=self.body.stored(), changed=True)


async def _fill(file: File, files: Files, share: Pipe, flow: Flow) -> None:
    """Write blocks until there are no more; several of these are at work on one file."""
    while (block := await share.get()) is not None:
        offset, data = block
        for start in range(0, len(data), files.block):
            async with flow.place():
                await file.write(data[start : start + files.block], offset + start)


class GetContent(Privileged[None]):
    """Give the content of a file on the host.

    It is one host's, so `host` is needed where the group has several. The answer breaks off where the
    host fails after its beginning; before that the status tells why: 404 where there is no such file,
    403 where it may not be read, 422 where it is none, 502 for other failures of the host, and 504
    where it did not answer in time.
    """

    effect = Effect.READS
    route = "content"

    path: RemotePath = Field(examples=["/tmp/example"])  # noqa: S108 - an example
    """The file on the host."""
    host: str | None = _HOST
    """The host; needed where the group has several."""
    outlet: InstanceOf[Outlet] = Field(repr=False)
    """Where the content goes."""

    async def perform(self, host: Host) -> HostResponse[None]:
        """Read it."""
        try:
            async with host.sftp(**self.privileges()) as files:
                found = await files.stat(self.path)
                if not found.is_file:
                    name = "SFTPFileIsADirectory" if found.is_directory else "SFTPInvalidParameter"
                    raise SFTPError(f"{printable(self.path)} is {kind(found)}, not a file", kind=name)
                async with files.open(self.path, "read") as file:
                    await self._read(file, min(files.block, BLOCK))
        finally:
            self.outlet.end()
        return HostResponse(value=None, changed=False)

    async def _read(self, file: File, block: int) -> None:
        size, offset = (await file.stat()).size, 0
        async with aclosing(in_order(file, size, block)) as parts:
            async for data in parts:
                if size and len(data) < min(block, size - offset):
                    raise SFTPError(f"{printable(self.path)} became shorter while it was read", kind="SFTPFailure")
                self.outlet.begin(size)
                await self.outlet.put((offset, data))
                offset += len(data)
        self.outlet.begin(size)


# The routes

_STATUS = {
    "SFTPNoSuchFile": 404,
    "SFTPNoSuchPath": 404,
    "SFTPPermissionDenied": 403,
    "SFTPFileIsADirectory": 422,
    "SFTPInvalidParameter": 422,
    "ConnectTimeout": 504,
    "Cancelled": 504,
}
"""The statuses of failures; 502 is that of all others."""


def router(runner: Runner, settings: Settings) -> APIRouter:
    """Give the two routes of content."""
    routes = APIRouter(prefix="/reemote/sftp", tags=["sftp"])
    for operation, endpoint in ((PutContent, _put(runner, settings)), (GetContent, _get(runner, settings))):
        routes.add_api_route(
            "/content",
            endpoint,
            methods=[METHODS[operation.effect]],
            operation_id=f"sftp_{endpoint.__name__}",
            summary=catalogue.summary(operation).rstrip("."),
            description=catalogue.description(operation),
            openapi_extra=_described(operation),
            **_answers(operation),
        )
    others = ["DELETE", "HEAD", "OPTIONS", "PATCH", "POST", "TRACE"]
    routes.add_api_route("/content", _refuse_method, methods=others, include_in_schema=False)
    return routes


async def _refuse_method() -> Response:
    """Name both methods: left alone, the router would name that of one route."""
    raise HTTPException(405, "Method Not Allowed", {"Allow": "GET, PUT"})


def _put(runner: Runner, settings: Settings) -> Callable[[Request], Awaitable[Response]]:
    read = query_reader("sftp", PutContent)

    async def put_content(request: Request) -> Response:
        body = Body(request, settings)
        operation, seconds = read(request, body=body)
        chosen = _chosen(runner, operation)
        places = runner.places(chosen)
        if len(chosen.hosts) > places:
            raise _wrong_host(f"{len(chosen.hosts)} hosts are too many at the same time: {places} at most")
        body.expect([item.host for item in chosen.hosts])
        try:
            responses = await runner.run(NAME, operation, seconds, body.feed, chosen)
        except HTTPException as error:
            raise body.refusal or error from None
        await body.discard()
        return Response(as_json(responses), media_type="application/json")

    return put_content


def _get(runner: Runner, settings: Settings) -> Callable[[Request], Awaitable[Response]]:
    read = query_reader("sftp", GetContent)

    async def get_content(request: Request) -> Response:
        outlet = Outlet()
        operation, seconds = read(request, outlet=outlet)
        chosen = _chosen(runner, operation)
        if len(chosen.hosts) != 1:
            number = len(chosen.hosts) or "no"
            raise _wrong_host(f"the group has {number} hosts: name the one to read from with 'host'")
        run = asyncio.create_task(runner.run(NAME, operation, seconds, disconnected(request), chosen))
        begun = asyncio.create_task(outlet.has_begun.wait())
        try:
            await asyncio.wait({run, begun}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await end(run)
            raise
        finally:
            await end(begun)
        if outlet.has_begun.is_set() and not has_failed(run):
            return Download(outlet, run, operation.path, settings.body_timeout)
        [response] = await run
        status = _STATUS.get(str(response["value"]), 502)
        return Response(as_json(response), status, media_type="application/json")

    return get_content


def _chosen(runner: Runner, operation: PutContent | GetContent) -> Inventory:
    """Give the inventory with those hosts alone that a request is for."""
    inventory = runner.inventory()
    hosts = [item for item in inventory.hosts if item.is_in(operation.group)]
    if operation.host is not None:
        hosts = [item for item in hosts if item.host == operation.host]
        if not hosts:
            raise _wrong_host(f"there is no host {operation.host!r} in the group {operation.group!r}")
    return inventory.model_copy(update={"hosts": hosts})


def _wrong_host(message: str) -> RequestValidationError:
    return RequestValidationError([{"type": "wrong_host", "loc": ("query", "host"), "msg": message}])


# How they are described

_BYTES: Schema = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


def _described(operation: type[PutContent | GetContent]) -> Schema:
    """Describe the parameters, and the body."""
    found: Schema = {"parameters": openapi.described("sftp", operation, accepted(operation))["parameters"]}
    if operation is PutContent:
        about = "The content. It may be of any type."
        found["requestBody"] = {"description": about, "content": _BYTES}
    return found


def _answers(operation: type[PutContent | GetContent]) -> dict[str, Any]:
    """Describe the answers."""
    if operation is PutContent:
        about = "One response for each host, in the order of the inventory."
        return {"response_model": answer("sftp", operation), "response_description": about}
    failed: dict[int | str, dict[str, Any]] = {
        200: {"description": "The content.", "content": _BYTES},
        403: {"model": Failed | Problem, "description": "The file may not be read, or the request is refused."},
        404: {"model": Failed, "description": "There is no such file."},
        422: {"model": Failed | Invalid, "description": "It is no file, or a parameter is wrong."},
        502: {"model": Failed, "description": "The host failed."},
        504: {"model": Failed, "description": "The host did not answer in time."},
    }
    return {"response_class": Response, "responses": failed}
