"""The page at ``/``: three files of the package, by fixed names, that load nothing from outside."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).resolve().parents[1] / "page"

HEADERS = {
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


@router.get("/")
async def index() -> FileResponse:
    """Return the page."""
    return FileResponse(FOLDER / "index.html", media_type="text/html", headers=HEADERS)


@router.get("/style.css")
async def style() -> FileResponse:
    """Return its looks."""
    return FileResponse(FOLDER / "style.css", media_type="text/css", headers=HEADERS)


@router.get("/app.js")
async def script() -> FileResponse:
    """Return its script."""
    return FileResponse(FOLDER / "app.js", media_type="text/javascript", headers=HEADERS)
