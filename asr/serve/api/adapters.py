"""``/v1/adapters``: which adapters are in memory; loading and unloading them, where allowed.

Adapters come and go with requests anyway. Clients name domains that are served, never paths.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Literal

from fastapi import APIRouter
from starlette.requests import Request
from typing_extensions import TypedDict

from asr.errors import AdapterError, unknown
from asr.serve.api.documented import ERRORS
from asr.serve.api.errors import ApiError, refused
from asr.serve.api.fields import Name, Strict
from asr.serve.api.settings import Api
from asr.serve.interface import ClosingError, QueueFullError, ServingEngine

router = APIRouter()
_log = logging.getLogger("asr.serve")


class LoadRequest(Strict):
    """An adapter to load."""

    name: Name


class AdapterState(TypedDict):
    """Whether an adapter is in memory."""

    id: str
    object: Literal["adapter"]
    resident: bool


class AdapterStates(TypedDict):
    """The adapters in memory."""

    object: Literal["list"]
    data: list[AdapterState]
    resident_bytes: int
    budget_bytes: int


@router.get("/v1/adapters", responses=ERRORS, operation_id="list_adapters")
async def list_adapters(request: Request) -> AdapterStates:
    """List the adapters in memory."""
    status = Api.of(request).ready_engine().status()
    return {
        "object": "list",
        "data": [_state(name, True) for name in status.resident],
        "resident_bytes": status.resident_bytes,
        "budget_bytes": status.budget_bytes,
    }


@router.post("/v1/adapters", responses=ERRORS, operation_id="load_adapter")
async def load_adapter(body: LoadRequest, request: Request) -> AdapterState:
    """Make a domain's adapter resident before a request asks for it."""
    engine = _changeable(request, body.name)
    try:
        await asyncio.wrap_future(engine.load_adapter(body.name))
    except (QueueFullError, ClosingError) as error:
        raise refused(error) from error
    except AdapterError as error:
        _log.warning("%s: adapter '%s': %s", request.state.request_id, body.name, error)
        raise ApiError(
            503,
            f"adapter '{body.name}' cannot be loaded; the server's log says why, under "
            f"{request.state.request_id}",
            param="name",
            code="adapter_unavailable",
        ) from error
    return _state(body.name, True)


@router.delete("/v1/adapters/{name}", responses=ERRORS, operation_id="unload_adapter")
async def unload_adapter(name: str, request: Request) -> AdapterState:
    """Drop a domain's adapter once no answer uses it; it is read again when asked for."""
    engine = _changeable(request, name)
    try:
        await asyncio.wrap_future(engine.unload_adapter(name))
    except (QueueFullError, ClosingError) as error:
        raise refused(error) from error
    return _state(name, False)


def _changeable(request: Request, name: str) -> ServingEngine:
    api = Api.of(request)
    if not api.settings.allow_adapter_changes:
        raise ApiError(
            403,
            "adapters cannot be loaded or unloaded: this server was started without "
            "--allow-adapter-changes",
            code="adapter_changes_not_allowed",
        )
    engine = api.ready_engine()
    domains = engine.served.domains
    if name not in domains:
        message = unknown("adapter", name[:200], domains)
        raise ApiError(404, message, param="name", code="adapter_not_found")
    return engine


def _state(name: str, resident: bool) -> AdapterState:
    return {"id": name, "object": "adapter", "resident": resident}
