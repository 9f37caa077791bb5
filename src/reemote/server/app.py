"""The application: guard, operations, inventory, documentation, and what an operator watches."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from ..core.errors import InventoryError
from ..transfer.local import FileRefused
from . import content, inventory, openapi, pages, routes
from .audit import AuditError
from .guard import Guard, request_id
from .limits import OptionRefused
from .metrics import CONTENT_TYPE, Metrics
from .runner import Runner, Stopping, TooManyRuns
from .settings import Settings
from .store import Store

log = logging.getLogger("reemote")


class Health(BaseModel):
    """How the server is doing."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    status: Literal["ok"] = "ok"
    """Always so: a server that is not well does not answer, or says what is wrong."""


class Readiness(Health):
    """That the server can run operations, and on how many hosts."""

    hosts: int
    """How many hosts the inventory has."""


class App(FastAPI):
    """The API, behind its guard."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.store = Store(settings.inventory)
        super().__init__(
            title="Reemote",
            version=version("reemote"),
            description=openapi.DESCRIPTION,
            license_info={"name": "MIT", "identifier": "MIT"},
            generate_unique_id_function=_identify,
            docs_url=None,
            redoc_url=None,
            lifespan=self._live,
        )
        self.runner: Runner | None = None
        for kind, status in _STATUS.items():
            self.add_exception_handler(kind, _answer_with(status))
        self.add_exception_handler(RequestValidationError, _invalid)
        self.add_exception_handler(HTTPException, _refused)
        self.add_exception_handler(Exception, _unexpected)
        self._late_runner = _LateRunner(self)
        runner: Any = self._late_runner
        for router in (routes.router(runner), content.router(runner, settings), inventory.router(self.store)):
            self.router.routes.extend(router.routes)  # to include a router makes, and matches, each route anew
        self.router.routes.extend(pages.router().routes)
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
                title=self.title,
                version=self.version,
                description=self.description,
                license_info=self.license_info,
                routes=self.routes,
            )
            self.openapi_schema = openapi.polish(document, self.settings)
        return self.openapi_schema

    def _add_operations_pages(self) -> None:
        broken: Any = {503: {"model": openapi.Problem, "description": "The inventory cannot be read."}}

        @self.get("/healthz", tags=["server"], summary="Tell whether the server lives")
        async def healthz() -> Health:
            return Health()

        @self.get("/readyz", tags=["server"], summary="Tell whether the server can run operations", responses=broken)
        async def readyz() -> Readiness:
            try:
                return Readiness(hosts=len(self.store.inventory().hosts))
            except InventoryError as error:
                raise HTTPException(503, str(error)) from None

        @self.get("/metrics", tags=["server"], summary="Give the server's counters", response_class=PlainTextResponse)
        async def metrics() -> Response:
            return Response(self.metrics.text(), media_type=CONTENT_TYPE)


class _LateRunner:
    """The runner, which lives only while the event loop does."""

    def __init__(self, app: App) -> None:
        self._app = app

    def __getattr__(self, name: str) -> Any:
        if self._app.runner is None:
            raise Stopping
        return getattr(self._app.runner, name)


def create_app(settings: Settings | None = None) -> Guard:
    """Make the application for an ASGI server, behind its guard."""
    app = App(settings or Settings())
    return Guard(app, app.settings, app.metrics)


_STATUS: dict[type[Exception], int] = {
    InventoryError: 500,
    AuditError: 503,
    OptionRefused: 422,
    FileRefused: 403,
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
    message = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in found)
    content = {"error": True, "value": message, "detail": json.loads(json.dumps(found, default=str))}
    return JSONResponse(content, status_code=422)


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse(
        {"error": True, "value": str(error.detail)}, status_code=error.status_code, headers=error.headers
    )


async def _unexpected(_: Request, error: Exception) -> JSONResponse:
    """Keep the details of a bug in the log, under an id that the client gets."""
    identity = request_id.get() if request_id.get() != "-" else secrets.token_hex(8)
    log.error("%s: unexpected error", identity, exc_info=error)
    return JSONResponse({"error": True, "value": f"internal error {identity}"}, status_code=500)


def _identify(route: APIRoute) -> str:
    """Give the unique name of one of our own endpoints."""
    return f"{route.tags[0]}_{route.name}" if route.tags else route.name
