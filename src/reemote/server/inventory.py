"""The inventory over HTTP: create, add, delete, get."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from ..core.errors import InventoryError
from ..core.inventory import Inventory
from . import limits
from .audit import Audit
from .store import NoSuchHost, Store, StoreError


class Answer(BaseModel):
    """How a change of the inventory ended."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    error: bool
    """Whether it failed; nothing has changed then."""
    value: str
    """What happened."""


def _failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    meanings = {
        404: "There is no such host.",
        409: "There is such a host already, or a masked secret stands for none.",
        422: "It is no inventory, or no host, or has options that may not come over HTTP.",
        500: "The inventory file cannot be used.",
        503: "The change cannot be recorded in the audit log, and must be.",
    }
    return {status: {"model": Answer, "description": meanings[status]} for status in statuses}


def router(store: Store) -> APIRouter:
    """Give the routes of the inventory."""
    routes = APIRouter(
        prefix="/reemote/inventory",
        tags=["inventory"],
        generate_unique_id_function=lambda route: f"inventory_{route.name}",
    )

    # Plain functions: they run in a thread each, and may wait there for the lock of the file.

    @routes.post(
        "/create/", response_model=Answer, responses=_failures(409, 422, 500, 503), summary="Replace the inventory"
    )
    def create(request: Request, given: Annotated[Any, Body()]) -> JSONResponse:
        """Replace the whole inventory. A masked secret keeps the one that is stored."""
        try:
            checked = _checked(given, store.hosts())
        except (InventoryError, limits.OptionRefused) as error:
            return _failed(error)
        names = [host["connection"]["host"] for host in checked["hosts"]]
        return _change(request, "create", names, lambda: store.create(checked), "Inventory created successfully.")

    @routes.post("/add/", response_model=Answer, responses=_failures(409, 422, 500, 503), summary="Add a host")
    def add(request: Request, given: Annotated[Any, Body()]) -> JSONResponse:
        """Add a host to the inventory."""
        try:
            host = _checked({"hosts": [given]}, [])["hosts"][0]
        except (InventoryError, limits.OptionRefused) as error:
            return _failed(error)
        name = host["connection"]["host"]
        return _change(request, "add", [name], lambda: store.add(host), f"Host added successfully: {name}")

    @routes.delete(
        "/delete/{host:path}", response_model=Answer, responses=_failures(404, 500, 503), summary="Delete a host"
    )
    def delete(request: Request, host: str) -> JSONResponse:
        """Remove a host from the inventory."""
        return _change(request, "delete", [host], lambda: store.delete(host), f"Host deleted successfully: {host}")

    @routes.get("/get", responses=_failures(500), summary="Get the inventory")
    def get() -> JSONResponse:
        """Give the inventory, with its secrets masked."""
        return JSONResponse(store.masked())

    return routes


def _checked(given: Any, stored: list[dict[str, Any]]) -> dict[str, Any]:
    """Hold an inventory to the options that may come over HTTP, and to its shape."""
    if isinstance(given, dict) and isinstance(given.get("hosts"), list):
        known = {host["connection"]["host"]: host for host in stored}
        given = {**given, "hosts": [limits.item(host, known.get(_name(host))) for host in given["hosts"]]}
    try:
        json.dumps(given, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError):  # a body that is not declared as JSON comes as bytes
        raise _Malformed("inventory: it is not JSON, or has a value that cannot be written as JSON in UTF-8") from None
    if not isinstance(given, dict):
        raise _Malformed('inventory: an inventory is an object, {"hosts": [...]}')
    try:
        Inventory.of(given)
    except InventoryError as error:
        raise _Malformed(str(error)) from None
    checked: dict[str, Any] = given
    return checked


def _name(host: Any) -> str | None:
    options = host.get("connection") if isinstance(host, dict) else None
    name = options.get("host") if isinstance(options, dict) else None
    return name if isinstance(name, str) else None


class _Malformed(InventoryError):
    """What was sent is no inventory."""


def _change(
    request: Request, name: str, hosts: Iterable[str], change: Callable[[], object], message: str
) -> JSONResponse:
    """Change the inventory, and keep account of it."""
    settings = request.app.settings
    audit = Audit(settings.audit_file, required=settings.audit_required)
    audit.begin(f"inventory.{name}", "", hosts)
    start, outcome = time.perf_counter(), "failed"
    try:
        change()
        outcome = "changed"
    except InventoryError as error:
        return _failed(error)
    finally:
        audit.end(f"inventory.{name}", {outcome: 1}, time.perf_counter() - start)
    return JSONResponse({"error": False, "value": message})


def _failed(error: Exception) -> JSONResponse:
    statuses: dict[type[Exception], int] = {
        NoSuchHost: 404,
        StoreError: 500,
        _Malformed: 422,
        limits.OptionRefused: 422,
    }
    return JSONResponse({"error": True, "value": str(error)}, status_code=statuses.get(type(error), 409))
