"""The inventory over HTTP: create, add, delete, get."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from ..core.errors import InventoryError
from ..core.inventory import Inventory, InventoryItem
from . import limits
from .store import Store


class Answer(BaseModel):
    """How a change of the inventory ended."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    error: bool
    """Whether it failed; nothing has changed then."""
    value: str
    """What happened."""


def router(store: Store) -> APIRouter:
    """Give the routes of the inventory."""
    routes = APIRouter(prefix="/reemote/inventory", tags=["inventory"])
    failures: dict[int | str, dict[str, Any]] = {
        422: {"model": Answer, "description": "It is no inventory, or no host."},
        409: {"model": Answer, "description": "The inventory does not allow it."},
    }

    @routes.post("/create/", response_model=Answer, responses=failures, summary="Replace the inventory")
    async def create(given: Annotated[Any, Body(json_schema_extra=_shape(Inventory))]) -> JSONResponse:
        """Replace the whole inventory. A masked secret keeps the one that is stored."""
        try:
            checked = _checked(given)
        except (InventoryError, limits.OptionRefused) as error:
            return _failed(error, 422)
        return _changed(lambda: store.create(checked), "Inventory created successfully.")

    @routes.post("/add/", response_model=Answer, responses=failures, summary="Add a host")
    async def add(given: Annotated[Any, Body(json_schema_extra=_shape(InventoryItem))]) -> JSONResponse:
        """Add a host to the inventory."""
        try:
            host = _checked({"hosts": [given]})["hosts"][0]
        except (InventoryError, limits.OptionRefused) as error:
            return _failed(error, 422)
        return _changed(lambda: store.add(host), f"Host added successfully: {host['connection']['host']}")

    @routes.delete("/delete/{host}", response_model=Answer, responses=failures, summary="Delete a host")
    async def delete(host: str) -> JSONResponse:
        """Remove a host from the inventory."""
        return _changed(lambda: store.delete(host), f"Host deleted successfully: {host}")

    @routes.get("/get", summary="Get the inventory")
    async def get() -> JSONResponse:
        """Give the inventory, with its secrets masked."""
        return JSONResponse(store.masked())

    return routes


def _checked(given: Any) -> dict[str, Any]:
    """Hold an inventory to the options that may come over HTTP, and to its shape."""
    if isinstance(given, dict) and isinstance(given.get("hosts"), list):
        given = {**given, "hosts": [limits.item(host) for host in given["hosts"]]}
    Inventory.of(given if isinstance(given, dict) else {"hosts": given})
    checked: dict[str, Any] = given
    return checked


def _changed(change: Any, message: str) -> JSONResponse:
    try:
        change()
    except InventoryError as error:
        return _failed(error, 409)
    return JSONResponse({"error": False, "value": message})


def _failed(error: Exception, status: int) -> JSONResponse:
    return JSONResponse({"error": True, "value": str(error)}, status_code=status)


def _shape(model: type[BaseModel]) -> dict[str, Any]:
    return {"title": model.__name__, "type": "object"}
