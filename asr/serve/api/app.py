"""The HTTP API as an ASGI application: an OpenAI-compatible server over a serving engine."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

import asr
from asr.serve.api import (
    adapters,
    chat,
    completions,
    health,
    models,
    page,
    responses,
    route,
)
from asr.serve.api.boundary import Boundary
from asr.serve.api.errors import http_error
from asr.serve.api.metrics import Metrics
from asr.serve.api.security import LimitBody, RequireKey
from asr.serve.api.settings import Api, ApiSettings
from asr.serve.api.validation import invalid_request
from asr.serve.interface import ServingEngine
from asr.serve.request import EngineStatus


def make_app(engine: ServingEngine | None, settings: ApiSettings | None = None) -> FastAPI:
    """Return the application.

    There is no CORS: other sites' pages cannot read answers. Bodies that are not sent as JSON are
    refused, so they cannot ask either.

    Args:
        engine: who answers. Where it is None, its model is still loading: put it into
            ``app.state.api.engine`` when it is there, until which requests get 503.
        settings: of the API.
    """
    settings = settings or ApiSettings()

    def status() -> EngineStatus | None:
        return api.engine.status() if api.engine else None

    api = Api(settings, Metrics(status), engine)
    handlers: dict[Any, Any] = {
        HTTPException: http_error,
        RequestValidationError: invalid_request,
    }
    app = FastAPI(
        title="Analytic Subspace Routing",
        summary="One base model, many adapters, and a router that picks one for each request.",
        version=asr.__version__,
        docs_url=None,  # they load their scripts from a CDN
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers=handlers,
    )
    app.state.api = api
    for part in (chat, completions, responses, models, route, adapters, health, page):
        app.include_router(part.router)
    # the last one added is the outermost
    app.add_middleware(LimitBody, most=settings.max_body)
    if settings.api_key is not None:
        app.add_middleware(RequireKey, key=settings.api_key)
    app.add_middleware(Boundary, metrics=api.metrics)
    return app
