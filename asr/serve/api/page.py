"""The page at ``/``: a few files of the package, by fixed names, that load nothing from outside."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse

FOLDER = Path(__file__).resolve().parents[1] / "page"

HEADERS = {
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}

_SCRIPTS = ("answer", "app", "client", "dom", "figures", "lock", "route")

FILES = {
    "/": ("index.html", "text/html"),
    "/style.css": ("style.css", "text/css"),
    **{f"/{name}.js": (f"{name}.js", "text/javascript") for name in _SCRIPTS},
}
"""Name and media type of the file at each path."""

router = APIRouter(include_in_schema=False)


def _sends(name: str, media_type: str) -> Callable[[], Awaitable[FileResponse]]:
    async def send() -> FileResponse:
        return FileResponse(FOLDER / name, media_type=media_type, headers=HEADERS)

    return send


for _path, _file in FILES.items():
    router.add_api_route(_path, _sends(*_file), methods=["GET"])
