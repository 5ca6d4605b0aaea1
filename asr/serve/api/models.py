"""``GET /v1/models`` and ``/v1/models/{model}``: auto, base, and every domain."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fastapi import APIRouter
from starlette.requests import Request
from typing_extensions import TypedDict

from asr.model.request import AUTO, BASE
from asr.serve.api.documented import ERRORS
from asr.serve.api.errors import model_not_found
from asr.serve.api.settings import Api
from asr.serve.request import ServedModel

router = APIRouter()


class Model(TypedDict):
    """Something that can be named as a request's ``model``.

    ``root`` is the base it runs on, and ``parent`` the one that an adapter was trained on.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["asr"]
    root: str
    parent: str | None


class Models(TypedDict):
    """All of them."""

    object: Literal["list"]
    data: list[Model]


@router.get("/v1/models", responses=ERRORS, operation_id="list_models")
async def list_models(request: Request) -> Models:
    """List what can be asked for."""
    return {"object": "list", "data": _models(Api.of(request).ready_engine().served)}


@router.get("/v1/models/{model}", responses=ERRORS, operation_id="show_model")
async def show_model(model: str, request: Request) -> Model:
    """Show one of them."""
    served = Api.of(request).ready_engine().served
    for known in _models(served):
        if known["id"] == model:
            return known
    raise model_not_found(model, served.domains)


def shown_base(served: ServedModel) -> str:
    """Return the base's name; of a folder its last part, clients need not know where it lies."""
    name = served.base_name
    return Path(name).name if name.startswith(("/", ".", "~")) else name


def _models(served: ServedModel) -> list[Model]:
    base = shown_base(served)
    return [
        {
            "id": name,
            "object": "model",
            "created": served.created.get(name, 0),
            "owned_by": "asr",
            "root": base,
            "parent": None if name in (AUTO, BASE) else base,
        }
        for name in (AUTO, BASE, *served.domains)
    ]
