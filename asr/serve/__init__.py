"""Serving: a worker that owns the model, an HTTP API, and the router alone for other engines."""

from __future__ import annotations

from typing import Any

__all__ = ["RouteAuto"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # vLLM's --middleware takes asr.serve.RouteAuto
        from asr.serve.middleware import RouteAuto

        return RouteAuto
    raise AttributeError(f"module 'asr.serve' has no attribute '{name}'")
