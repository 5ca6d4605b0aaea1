"""Errors in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``.

What an engine, the framework or a validation says becomes one of these here; what nobody foresaw
becomes one in :mod:`asr.serve.api.boundary`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from typing_extensions import TypedDict

from asr.errors import unknown
from asr.model.request import AUTO, BASE
from asr.serve.interface import ClosingError, QueueFullError
from asr.serve.request import Failed


class ErrorBody(TypedDict):
    """What went wrong: one line, the kind of error, the field it is about, and a code."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(TypedDict):
    """Every error's answer."""

    error: ErrorBody


_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}


class ApiError(HTTPException):
    """A request that gets no answer.

    Args:
        status: HTTP status code.
        message: one line for the client.
        param: the field it is about.
        code: a word for programs.
        headers: further response headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.param = param
        self.code = code

    @property
    def message(self) -> str:
        """What the client is told."""
        return str(self.detail)

    def body(self) -> ErrorAnswer:
        """Return the answer's JSON."""
        kind = _TYPES.get(
            self.status_code,
            "server_error" if self.status_code >= 500 else "invalid_request_error",
        )
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        """Return the answer."""
        return JSONResponse(self.body(), self.status_code, self.headers)


def internal(request_id: str) -> ApiError:
    """Return the error of a failure whose inside is none of the client's business."""
    return ApiError(
        500,
        f"internal error; the server's log has it under {request_id}",
        code="internal_error",
    )


def model_not_found(name: str, domains: Iterable[str]) -> ApiError:
    """Return the error of a model that does not exist."""
    message = unknown("model", name[:200], [AUTO, BASE, *domains])
    return ApiError(404, message, param="model", code="model_not_found")


def refused(error: QueueFullError | ClosingError) -> ApiError:
    """Return the error of an engine that takes no request."""
    if isinstance(error, QueueFullError):
        headers = {"retry-after": str(error.seconds)}
        return ApiError(429, str(error), code="queue_full", headers=headers)
    return ApiError(
        503,
        "the server is shutting down and takes no new requests; send it to another one",
        code="shutting_down",
    )


def failure(failed: Failed, request_id: str) -> ApiError:
    """Return the error of a request that the engine gave up."""
    if failed.kind == "internal":
        return internal(request_id)
    status, param, code = {
        "unknown_model": (404, "model", "model_not_found"),
        "too_long": (400, "messages", "context_length_exceeded"),
        "adapter": (503, "model", "adapter_unavailable"),
        "closing": (503, None, "shutting_down"),
    }[failed.kind]
    return ApiError(status, failed.message, param=param, code=code)


async def http_error(request: Request, error: Exception) -> JSONResponse:
    """Answer an error of ours, or one of the framework (unknown paths, methods, unreadable bodies).

    The framework reads bodies itself and calls whatever is wrong with them 400.
    """
    if isinstance(error, ApiError):
        return error.response()
    if not isinstance(error, HTTPException):
        raise error
    path, headers = request.url.path, error.headers
    methods = request.app.openapi()["paths"].get(path, {})
    if error.status_code == 405 and methods:
        # the framework names the methods of the first endpoint with this path alone
        headers = {"allow": ", ".join(sorted(map(str.upper, methods)))}
    message, code = {
        400: ("the body is no JSON text in UTF-8", "invalid_json"),
        404: (f"there is nothing at {path[:200]}; see /openapi.json", "not_found"),
        405: (f"{request.method} is not possible at {path[:200]}", "method_not_allowed"),
    }.get(error.status_code, (str(error.detail), None))
    return ApiError(error.status_code, message, code=code, headers=headers).response()
