"""Validation errors as one line: the field, what is wrong with it, what it may be."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse

from asr.serve.api.errors import ApiError

_WORDS = (
    ("must ", r"^(Input|String|List|Dictionary|Value) should "),
    ("an array", "a valid list"),
    ("text", "a valid string"),
    ("a number", "a valid number"),
    ("a whole number", "a valid integer"),
    ("true or false", "a valid boolean"),
    ("", r" after validation, not \d+$"),
)
"""Our words for pydantic's."""

_OWN = ("unsupported_field", "unsupported_part", "unknown_field", "unknown_role", "own")


async def invalid_request(request: Request, error: Exception) -> JSONResponse:
    """Answer a request that does not fit its schema: 400 with the first thing that is wrong."""
    if not isinstance(error, RequestValidationError):
        raise error
    return explained(error.errors(), error.body).response()


def explained(errors: Sequence[Mapping[str, Any]], body: Any) -> ApiError:
    """Return the error to answer with.

    A field that may be of several types is reported once per type. The type that was meant is the
    one whose own rules alone are broken, or else the one that fits the most of what was sent.
    """
    first = errors[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "")
        return ApiError(
            400,
            f"the body is no JSON: {reason} at character {first['loc'][-1]}",
            code="invalid_json",
        )
    if not isinstance(body, Mapping):
        return ApiError(
            400,
            "the body must be a JSON object, sent with the header content-type: application/json",
            code="invalid_json",
        )
    root = _path(first, body)[:1]
    types: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for one in errors:
        if _path(one, body)[:1] == root:
            types.setdefault(_types_tried(one, body), []).append(one)
    fits = [(_fit(tried, body), tried[0]) for tried in types.values()]
    same = [one for fit, one in fits if fit == max(fits, key=lambda pair: pair[0])[0]]
    path = _path(same[0], body)
    if path and same[0]["type"] in ("unsupported_field", "unknown_field"):
        where = f"{_written(path)}: "
        param = f"{_written(path)}.{same[0]['ctx']['name']}"
    elif same[0]["type"] in ("unsupported_field", "unknown_field"):
        where, param = "", same[0]["ctx"]["name"]
    else:
        param = _written(path)
        where = f"{param}: " if param else ""
    said = " or ".join(dict.fromkeys(_said(error) for error in same))
    code = "unsupported_value" if same[0]["type"].startswith("unsupported") else "invalid_value"
    said = said.replace(" or must be ", " or ")
    return ApiError(400, f"{where}{said}", param=param or None, code=code)


def _fit(tried: Sequence[Mapping[str, Any]], body: Any) -> tuple[bool, bool, list[int]]:
    """Return how well a type fits, from what is wrong with it: the greater, the better."""
    own = tried[0]["type"] in _OWN
    rules = not any(error["type"].endswith("_type") for error in tried)
    path = _path(tried[0], body)
    return own, rules, [len(path), *(step for step in path if isinstance(step, int))]


def _types_tried(error: Mapping[str, Any], body: Any) -> tuple[Any, ...]:
    path = _path(error, body)
    return tuple(step for step in error["loc"] if step not in path)


def _path(error: Mapping[str, Any], body: Any) -> list[str | int]:
    """Keep what leads into the body; the rest names types among which there was a choice."""
    path: list[str | int] = []
    value = body
    missing = error["type"] == "missing"
    steps = list(error["loc"])
    if steps[:1] == ["body"]:
        steps = steps[1:]
    for step in steps:
        in_list = isinstance(value, list) and isinstance(step, int) and step < len(value)
        if in_list or (isinstance(value, Mapping) and step in value):
            value = value[step]
        elif missing and step == steps[-1]:
            value = None
        else:
            continue
        path.append(step)
    return path


def _written(path: Sequence[str | int]) -> str:
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text[:200]


def _said(error: Mapping[str, Any]) -> str:
    kind = error["type"]
    if kind in _OWN:
        return str(error["msg"])
    if kind == "missing":
        return "is missing; give it"
    if kind in ("model_attributes_type", "model_type", "dict_type"):
        return "must be an object"
    if kind == "union_tag_not_found":
        return "must be an object with a role"
    text = str(error["msg"])
    for ours, theirs in _WORDS:
        text = re.sub(theirs, ours, text)
    return text
