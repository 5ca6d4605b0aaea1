"""How endpoints stand in the OpenAPI schema: errors, streams, headers."""

from __future__ import annotations

from typing import Any

from asr.serve.api.errors import ErrorAnswer

ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "The request cannot be answered as it is."},
    "5XX": {"model": ErrorAnswer, "description": "The server cannot answer it."},
}

_HEADERS = {
    "x-asr-adapter": ("The domain that answers, or base.", "string"),
    "x-asr-route": ("auto, named or abstained.", "string"),
    "x-asr-score": ("The best domain's score, where the router decided.", "number"),
    "x-asr-margin": ("Its distance to the second best.", "number"),
}


def answering(model: Any) -> dict[int | str, dict[str, Any]]:
    """Return the responses of an endpoint that answers whole, as ``model``, or as a stream."""
    return {
        200: {
            "model": model,
            "description": "The answer; with stream, server-sent events.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
            "headers": {
                name: {"description": text, "schema": {"type": kind}}
                for name, (text, kind) in _HEADERS.items()
            },
        },
        **ERRORS,
    }
