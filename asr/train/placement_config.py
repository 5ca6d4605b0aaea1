"""The config of a placement: a name, the modules by name, or how the dominant ones are found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from asr.errors import did_you_mean, unknown

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

AtLeastOne = Annotated[int, Field(ge=1)]

PLACEMENTS = ("deep", "all", "dominant")
"""Placements by name. Beside them, ``{dominant: {...}}`` and ``{modules: [full module names]}``."""


class ModulePlacement(BaseModel):
    """LoRA on exactly these modules."""

    model_config = _STRICT

    modules: tuple[str, ...] = Field(
        min_length=1, description="Full names, e.g. model.layers.11.mlp.down_proj."
    )


class DominantSettings(BaseModel):
    """How the dominant modules are found, and how many of them carry LoRA: one by default."""

    model_config = _STRICT

    anywhere: bool = Field(
        default=False,
        description="Search all layers; a module below the router layer makes two passes.",
    )
    top: AtLeastOne | None = Field(default=None, description="LoRA on the best so many modules.")
    budget: AtLeastOne | None = Field(
        default=None, description="Spread rank over the best: at most so many parameters."
    )
    probe: Path | None = Field(
        default=None, description="Take the energies of this probe.json; null: of the domain."
    )
    samples: AtLeastOne = Field(
        default=32, description="Training rows that the domain's probe sees."
    )


class DominantPlacement(BaseModel):
    """LoRA on the modules that receive the largest gradients, found by a probe."""

    model_config = _STRICT

    dominant: DominantSettings = Field(
        default=DominantSettings(), description="anywhere, top, budget, probe, samples."
    )


def _placement(value: object) -> object:
    """Check by hand: the errors of a union name all sides and help nobody."""
    if isinstance(value, (ModulePlacement, DominantPlacement)):
        return value
    if value == "dominant":
        return DominantPlacement()
    if isinstance(value, str) and value in PLACEMENTS:
        return value
    if isinstance(value, dict) and value.keys() == {"dominant"}:
        return DominantPlacement(dominant=_dominant(value["dominant"]))
    if isinstance(value, dict) and value.keys() == {"modules"}:
        names = value["modules"]
        if (
            isinstance(names, (list, tuple))
            and names
            and all(isinstance(name, str) and name for name in names)
        ):
            if len(set(names)) < len(names):
                raise ValueError("a list of modules without repetitions")
            return ModulePlacement(modules=tuple(names))
    near = did_you_mean(value, PLACEMENTS) if isinstance(value, str) else ""
    known = "'deep', 'all', 'dominant', {dominant: {...}} or {modules: [full module names]}"
    raise ValueError(f"{known}{near}")


def _dominant(value: object) -> DominantSettings:
    """Check one key after the other, as texts that complete "expected ..."."""
    fields = DominantSettings.model_fields
    if not isinstance(value, dict):
        raise ValueError(f"dominant with keys ({', '.join(fields)})")
    settings = {key: given for key, given in value.items() if given is not None}
    for key, given in settings.items():
        if key not in fields:
            raise ValueError(unknown("key of dominant", key, fields))
        if key == "anywhere":
            fits, what = isinstance(given, bool), "true or false"
        elif key == "probe":
            fits, what = isinstance(given, (str, Path)) and str(given) != "", "a path"
        else:
            fits = isinstance(given, int) and not isinstance(given, bool) and given >= 1
            what = "a whole number, at least 1"
        if not fits:
            raise ValueError(f"dominant.{key} to be {what}")
    if "top" in settings and "budget" in settings:
        raise ValueError("either top or budget, not both: remove one")
    if "probe" in settings:
        settings["probe"] = Path(settings["probe"])
    return DominantSettings(**settings)


Placement = Annotated[
    Literal["deep", "all"] | ModulePlacement | DominantPlacement, BeforeValidator(_placement)
]
