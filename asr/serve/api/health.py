"""``/health``, ``/ready``, ``/metrics``, ``/v1/status``: how the server is, for machines."""

from __future__ import annotations

import time
from typing import Any, Literal

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from typing_extensions import TypedDict

from asr.serve.api.documented import ERRORS
from asr.serve.api.errors import ApiError
from asr.serve.api.metrics import CONTENT_TYPE
from asr.serve.api.models import shown_base
from asr.serve.api.settings import Api

router = APIRouter()

_STARTED = time.monotonic()


class Health(TypedDict):
    """The process lives."""

    status: Literal["ok"]


class Ready(TypedDict):
    """Requests are taken."""

    status: Literal["ready"]


class Status(TypedDict):
    """The server at one moment; see :class:`asr.serve.request.EngineStatus`.

    ``requests`` and ``completion_tokens`` count by adapter since the start.
    """

    ready: bool
    uptime: float
    base: str
    domains: list[str]
    generation: int
    running: int
    waiting: int
    batch_size_mean: float
    resident: list[str]
    resident_bytes: int
    budget_bytes: int
    evictions: int
    loads: int
    cache_bytes: int
    cache_hits: int
    requests: dict[str, float]
    completion_tokens: dict[str, float]


_METRICS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Metrics in Prometheus' text format.",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    },
    **ERRORS,
}


@router.get("/health", responses=ERRORS, operation_id="health")
async def health() -> Health:
    """Say that the process lives."""
    return {"status": "ok"}


@router.get("/ready", responses=ERRORS, operation_id="ready")
async def ready(request: Request) -> Ready:
    """Say whether requests are taken: not while the model loads, nor in a shutdown."""
    if not Api.of(request).ready_engine().status().ready:
        raise ApiError(503, "the server takes no requests now", code="not_ready")
    return {"status": "ready"}


@router.get(
    "/metrics", responses=_METRICS, response_class=PlainTextResponse, operation_id="metrics"
)
async def metrics(request: Request) -> Response:
    """Return what was counted, for Prometheus."""
    return Response(Api.of(request).metrics.text(), media_type=CONTENT_TYPE)


@router.get("/v1/status", responses=ERRORS, operation_id="status")
async def status(request: Request) -> Status:
    """Return the figures that the page shows."""
    api = Api.of(request)
    engine = api.ready_engine()
    now, served, totals = engine.status(), engine.served, api.metrics.totals()
    return {
        "ready": now.ready,
        "uptime": time.monotonic() - _STARTED,
        "base": shown_base(served),
        "domains": list(served.domains),
        "generation": served.generation,
        "running": now.running,
        "waiting": now.waiting,
        "batch_size_mean": now.step_rows / now.steps if now.steps else 0.0,
        "resident": list(now.resident),
        "resident_bytes": now.resident_bytes,
        "budget_bytes": now.budget_bytes,
        "evictions": now.evictions,
        "loads": now.loads,
        "cache_bytes": now.cache_bytes,
        "cache_hits": now.cache_hits,
        **totals,  # type: ignore[typeddict-item]  # its keys are the two that are left
    }
