"""The documentation pages, served with assets of our own: they work without a network."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, JSONResponse, Response

_TYPES = {"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8"}

CONTENT_SECURITY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self' data:; connect-src 'self'; worker-src blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)

_SWAGGER = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"><title>Reemote: API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="assets/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="assets/swagger-ui-bundle.js"></script>
<script src="assets/swagger-start.js"></script>
</body>
</html>
"""

_REDOC = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"><title>Reemote: API</title>
<link rel="icon" href="data:,">
</head>
<body>
<div id="redoc"></div>
<script src="assets/redoc.standalone.js"></script>
<script src="assets/redoc-start.js"></script>
</body>
</html>
"""


def router() -> APIRouter:
    """Give the routes of the pages."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/docs")
    async def docs() -> HTMLResponse:
        return HTMLResponse(_SWAGGER, headers={"content-security-policy": CONTENT_SECURITY})

    @routes.get("/redoc")
    async def redoc() -> HTMLResponse:
        return HTMLResponse(_REDOC, headers={"content-security-policy": CONTENT_SECURITY})

    @routes.get("/assets/{name}")
    async def asset(name: str) -> Response:
        folder = files("reemote.server").joinpath("assets")
        kind = _TYPES.get(name.rpartition(".")[2])
        if kind is None or "/" in name or not (file := folder.joinpath(name)).is_file():
            return JSONResponse({"error": True, "value": "there is no such asset"}, status_code=404)
        return Response(file.read_bytes(), media_type=kind, headers={"cache-control": "max-age=86400"})

    return routes
