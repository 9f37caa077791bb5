"""The application: guard, operations, inventory, documentation, and what an operator watches."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from ..core import catalogue
from ..core.errors import InventoryError
from . import inventory, pages, routes
from .audit import AuditError
from .guard import Guard, request_id
from .limits import OptionRefused
from .metrics import CONTENT_TYPE, Metrics
from .runner import Runner, Stopping, TooManyRuns
from .settings import Settings
from .store import Store

log = logging.getLogger("reemote")

DESCRIPTION = """
Control remote systems over SSH. Each operation is the Python class of the same name: the same
parameters, the same defaults, the same answers.

A request runs the operation on every host of the inventory that belongs to its `group`, at the same
time, and answers with one response for each host. A host that fails does not disturb the others, nor
the status of the request: its response says what happened.

Parameters go into the query, or all of them into a JSON body, which suits long and secret ones.
"""


class App(FastAPI):
    """The API, behind its guard."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.store = Store(settings.inventory)
        super().__init__(
            title="Reemote",
            version=version("reemote"),
            description=DESCRIPTION,
            docs_url=None,
            redoc_url=None,
            lifespan=self._live,
        )
        self.runner: Runner | None = None
        for kind, status in _STATUS.items():
            self.add_exception_handler(kind, _answer_with(status))
        self.add_exception_handler(RequestValidationError, _invalid)
        self.add_exception_handler(HTTPException, _not_found)
        self.add_exception_handler(Exception, _unexpected)
        self._late_runner = _LateRunner(self)
        self.include_router(routes.router(self._late_runner))  # type: ignore[arg-type]
        self.include_router(inventory.router(self.store))
        self.include_router(pages.router())
        self._add_operations_pages()

    @asynccontextmanager
    async def _live(self, _: FastAPI) -> AsyncIterator[None]:
        self.runner = Runner(self.settings, self.store, self.metrics)
        try:
            yield
        finally:
            await self.runner.close()

    def stop(self) -> None:
        """Cancel all runs and take no more; the event loop's thread calls this."""
        if self.runner is not None:
            self.runner.stop()

    def openapi(self) -> dict[str, Any]:
        """Give the OpenAPI document."""
        if self.openapi_schema is None:
            document = get_openapi(
                title=self.title, version=self.version, description=self.description, routes=self.routes
            )
            self.openapi_schema = _polish(document)
        return self.openapi_schema

    def _add_operations_pages(self) -> None:
        @self.get("/healthz", tags=["server"], summary="Tell whether the server lives")
        async def healthz() -> dict[str, str]:
            return {"status": "ok"}

        @self.get("/readyz", tags=["server"], summary="Tell whether the server can run operations")
        async def readyz() -> JSONResponse:
            try:
                hosts = len(self.store.inventory().hosts)
            except InventoryError as error:
                return JSONResponse({"error": True, "value": str(error)}, status_code=503)
            return JSONResponse({"status": "ok", "hosts": hosts})

        @self.get("/metrics", tags=["server"], summary="Give the server's counters", response_class=PlainTextResponse)
        async def metrics() -> Response:
            return Response(self.metrics.text(), media_type=CONTENT_TYPE)


class _LateRunner:
    """The runner, which lives only while the event loop does."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def run(self, *arguments: Any) -> Any:
        if self._app.runner is None:
            raise Stopping
        return await self._app.runner.run(*arguments)


def create_app(settings: Settings | None = None) -> Guard:
    """Make the application for an ASGI server, behind its guard."""
    app = App(settings or Settings())
    return Guard(app, app.settings, app.metrics)


_STATUS: dict[type[Exception], int] = {
    InventoryError: 500,
    AuditError: 503,
    OptionRefused: 422,
    TooManyRuns: 429,
    Stopping: 503,
}
_MESSAGES: dict[type[Exception], str] = {
    TooManyRuns: "there are too many runs at the same time: try again later",
    Stopping: "the server is being stopped",
}


def _answer_with(status: int) -> Any:
    async def answer(_: Request, error: Exception) -> JSONResponse:
        message = _MESSAGES.get(type(error)) or str(error)
        headers = {"retry-after": "1"} if status in (429, 503) else None
        return JSONResponse({"error": True, "value": message}, status_code=status, headers=headers)

    return answer


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    """Say what is wrong with a request, without its input: that may be secret."""
    assert isinstance(error, RequestValidationError)
    kept = ("type", "loc", "msg")
    found = [{name: each[name] for name in kept if name in each} for each in error.errors()]
    return JSONResponse({"detail": json.loads(json.dumps(found, default=str))}, status_code=422)


async def _not_found(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse(
        {"error": True, "value": str(error.detail)}, status_code=error.status_code, headers=error.headers
    )


async def _unexpected(_: Request, error: Exception) -> JSONResponse:
    """Keep the details of a bug in the log, under an id that the client gets."""
    identity = request_id.get() if request_id.get() != "-" else secrets.token_hex(8)
    log.error("%s: unexpected error", identity, exc_info=error)
    return JSONResponse({"error": True, "value": f"internal error {identity}"}, status_code=500)


def _polish(document: dict[str, Any]) -> dict[str, Any]:
    """Mark as required what a query must have unless the body has it; FastAPI sees it as optional."""
    for name, operation in catalogue.catalogue():
        path = document["paths"].get(f"/reemote/{name}/{operation.route}", {})
        required = routes.required_in_query(operation)
        for method in path.values():
            for parameter in method.get("parameters", ()):
                if parameter["name"] in required:
                    parameter["required"] = True
    return document
