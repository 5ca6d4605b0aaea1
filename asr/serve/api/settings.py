"""What the HTTP API is set up with, and what its endpoints share."""

from __future__ import annotations

from dataclasses import dataclass, field

from starlette.requests import Request

from asr.serve.api.errors import ApiError
from asr.serve.api.metrics import Metrics
from asr.serve.interface import ServingEngine


@dataclass(frozen=True)
class ApiSettings:
    """Settings of the API.

    Attributes:
        api_key: what clients must send as ``Authorization: Bearer KEY``; None asks for none.
        max_body: most bytes of a request's body.
        allow_adapter_changes: whether clients may load and unload adapters.
        default_max_tokens: longest answer where a request names no length and its context has room.
        write_timeout: seconds that a client may leave a piece of a stream unread; then it counts as
            gone.
    """

    api_key: str | None = None
    max_body: int = 8 << 20
    allow_adapter_changes: bool = False
    default_max_tokens: int = 1024
    write_timeout: float = 60.0


@dataclass
class Api:
    """What every endpoint needs.

    Attributes:
        settings: of the API.
        metrics: what is counted.
        engine: who answers; None while its model is loading.
    """

    settings: ApiSettings
    metrics: Metrics
    engine: ServingEngine | None = field(default=None)

    @staticmethod
    def of(request: Request) -> Api:
        """Return that of the application a request came to."""
        api: Api = request.app.state.api
        return api

    def ready_engine(self) -> ServingEngine:
        """Return the engine.

        Raises:
            ApiError: 503, its model is loading.
        """
        if self.engine is None:
            raise ApiError(503, "the model is still loading; try again later", code="loading")
        return self.engine
