"""What a placement probe found, and its file ``probe.json``.

Shares are shares of the gradient energy of all candidate modules together. Every domain weighs the
same: its energies are divided by their sum before domains are averaged, or the domain with the
largest gradients would decide alone. ``energy`` of several domains is the share times the mean
total of a domain, so that ranking by energy and by share is the same thing; for one domain it is
the energy as measured.

Knows no model: reading, writing and looking things up.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from asr.adapters.placement import LinearModule
from asr.atomic import write_text
from asr.errors import AdapterError, StorageError

SCHEMA_VERSION: Final = 1
PROBE_FILE = "probe.json"

NOISE_Z = 2.0
"""Below this many standard errors a lead is within noise."""

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0.0)]


class ProbedBase(BaseModel):
    """The base that was probed."""

    model_config = _STRICT

    name: str
    fingerprint: str
    architecture: str
    n_layers: Count
    router_layer: int | None = Field(
        default=None, ge=0, description="Default router layer; null: too shallow to route in."
    )


class ProbeSettings(BaseModel):
    """What the energies depend on, beside base and data."""

    model_config = _STRICT

    rank: Count
    alpha: Annotated[float, Field(gt=0.0)]
    use_rslora: bool
    init: bool | str
    per: Literal["sample", "batch"]
    loss: Literal["answer", "full"]
    samples: Count
    seeds: Count
    max_length: Count
    batch_size: Count
    seed: Annotated[int, Field(ge=0)]
    dtype: str
    quantisation: str | None = None


class ModuleScore(BaseModel):
    """One candidate module.

    ``energy_without_first`` leaves the first token out, on the scale of ``energy``.
    ``spread_seeds`` and ``spread_domains`` are standard deviations of the share; null where there
    is one seed (or every seed draws the same rows), or one domain. ``gradient_norm`` is the root
    mean square over the weight's entries of its gradient. ``kappa_rank`` counts from 1, the lowest
    condition number.
    """

    model_config = _STRICT

    name: str
    layer: Annotated[int, Field(ge=0)]
    kind: str
    in_features: Count
    out_features: Count
    transposed: bool = False
    energy: NotNegative
    energy_without_first: NotNegative
    share: Annotated[float, Field(ge=0.0, le=1.0)]
    spread_seeds: NotNegative | None = None
    spread_domains: NotNegative | None = None
    gradient_norm: NotNegative
    alignment: NotNegative | None = None
    kappa_rank: Count | None = None

    def parameters(self, rank: int) -> int:
        """Trainable parameters of a rank-``rank`` LoRA on this module."""
        return rank * (self.in_features + self.out_features)

    def module(self) -> LinearModule:
        """The module as placements know it."""
        return LinearModule(
            self.name, self.layer, self.in_features, self.out_features, self.transposed
        )


class DomainProbe(BaseModel):
    """One domain by itself.

    ``margin`` is the winner's energy over the runner-up's, ``z`` the mean of their paired
    differences over its standard error; null where they cannot be told (one module, an energy of
    zero, fewer than two different samples).
    """

    model_config = _STRICT

    name: str
    source: str
    examples: Count
    samples: Count = Field(description="Different rows (per batch: batches) behind the figures.")
    whole: bool = Field(description="The data has no more rows than a seed asks for.")
    winner: str
    runner_up: str | None
    share: Annotated[float, Field(ge=0.0, le=1.0)]
    spread_seeds: NotNegative | None
    margin: NotNegative | None
    z: float | None
    winner_without_first: str
    winners_by_seed: tuple[str, ...]

    @property
    def within_noise(self) -> bool:
        """Whether winner and runner-up of this domain may change places."""
        return is_noise(self.z, self.winners_by_seed) and self.runner_up is not None


class ProbeResult(BaseModel):
    """A probe; ``modules`` are ranked by energy, the largest first."""

    model_config = _STRICT

    schema_version: Literal[1] = SCHEMA_VERSION
    base: ProbedBase
    settings: ProbeSettings
    modules: tuple[ModuleScore, ...] = Field(min_length=1)
    domains: tuple[DomainProbe, ...] = Field(min_length=1)
    margin: NotNegative | None
    z: float | None
    winners_by_seed: tuple[str, ...]
    top1_share: Annotated[float, Field(ge=0.0, le=1.0)]
    effective_modules: NotNegative
    same_winner: bool
    within_noise: bool
    generic_text: bool
    left_out: tuple[str, ...] = ()
    seconds: NotNegative = 0.0

    @property
    def winner(self) -> ModuleScore:
        """The module of most energy."""
        return self.modules[0]

    def parameters(self, module: ModuleScore) -> int:
        """Trainable parameters of the adapter that was probed for, on one module.

        MiCA trains ``A`` alone; what a start out of the base adds when it is saved is not trained.
        """
        rank = self.settings.rank
        if self.settings.init == "mica":
            return rank * module.in_features
        return module.parameters(rank)

    @property
    def runner_up(self) -> ModuleScore | None:
        """The one after it; None where there is one module only."""
        return self.modules[1] if len(self.modules) > 1 else None

    def ranking(self, min_layer: int = 0) -> list[ModuleScore]:
        """Return the modules of layers >= ``min_layer``, the largest energy first.

        Raises:
            AdapterError: there is none.
        """
        found = [module for module in self.modules if module.layer >= min_layer]
        if not found:
            raise AdapterError(
                f"the probe of '{self.base.name}' has no module in layers >= {min_layer}; its "
                f"{self.base.n_layers} layers are 0 to {self.base.n_layers - 1}"
            )
        return found

    def position(self, name: str) -> int:
        """Return the place of a module in the ranking, from 1.

        Raises:
            KeyError: no such module.
        """
        for place, module in enumerate(self.modules, start=1):
            if module.name == name:
                return place
        raise KeyError(name)

    def type_alignments(self) -> dict[str, float]:
        """PLoP's mean alignment of each module type, the lowest (its choice) first."""
        scores: dict[str, list[float]] = {}
        for module in self.modules:
            if module.alignment is not None:
                scores.setdefault(module.kind, []).append(module.alignment)
        means = {kind: math.fsum(values) / len(values) for kind, values in scores.items()}
        return dict(sorted(means.items(), key=lambda item: item[1]))

    def require_base(self, fingerprint: str, name: str) -> None:
        """Refuse another base than the one that was probed.

        Raises:
            AdapterError: names both.
        """
        if fingerprint != self.base.fingerprint:
            raise AdapterError(
                f"the probe is of base '{self.base.name}' (fingerprint "
                f"{self.base.fingerprint[:12]}), not of '{name}' ({fingerprint[:12]}); run asr "
                f"probe {name} again"
            )

    def to_json(self) -> str:
        """Return the text of ``probe.json``."""
        return json.dumps(self.model_dump(), ensure_ascii=False, indent=1, allow_nan=False) + "\n"

    def save(self, path: Path | str) -> None:
        """Replace the file at ``path``, or leave it as it was. Its folder must exist.

        Raises:
            StorageError: there is no such folder, or the file system refuses.
        """
        path = Path(path)
        if not path.parent.is_dir():
            raise StorageError(f"cannot write {path}: there is no folder {path.parent}; make it")
        write_text(path, self.to_json())

    @classmethod
    def load(cls, path: Path | str) -> ProbeResult:
        """Read the file at ``path``.

        Raises:
            AdapterError: no such file, not JSON, not a probe, of another schema version, or
                changed by hand; names the file, and the first field at fault.
        """
        path = Path(path)
        tree = _read_object(path)
        schema = tree.get("schema_version")
        if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
            raise AdapterError(
                f"{path}: not a result of asr probe (schema_version is {schema!r}); make one with "
                f"asr probe BASE --out DIR"
            )
        if schema != SCHEMA_VERSION:
            raise AdapterError(
                f"{path}: a probe of schema {schema}, and this asr reads {SCHEMA_VERSION}; "
                + (
                    "upgrade with pip install -U analytic-subspace-routing"
                    if schema > SCHEMA_VERSION
                    else "run asr probe again"
                )
            )
        try:
            return cls.model_validate_json(json.dumps(tree))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "probe"
            raise AdapterError(
                f"{path}: {where}: {first['msg']}; it was edited or damaged, run asr probe again"
            ) from error


def is_noise(z: float | None, winners_by_seed: tuple[str, ...]) -> bool:
    """Whether a lead is within noise: by ``z``, which may not be known, or because it changes."""
    return z is None or abs(z) < NOISE_Z or len(set(winners_by_seed)) > 1


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _read_object(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes()
    except FileNotFoundError as error:
        raise AdapterError(f"there is no file {path}; make one with asr probe --out DIR") from error
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {error.strerror}") from error
    try:
        tree = json.loads(text.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # a decoding error is a ValueError too
        reason = str(error).partition("\n")[0]
        raise AdapterError(
            f"{path}: not JSON ({reason}); it is damaged, run asr probe again"
        ) from error
    if not isinstance(tree, dict):
        raise AdapterError(f"{path}: not a result of asr probe (no JSON object)")
    return tree
