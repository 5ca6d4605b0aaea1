"""Where an adapter sits: explicit full module names, each checked against the base.

A placement is resolved once, before anything is trained, into the complete list of modules. PEFT
matches names by suffix and ignores what it cannot find; full names and the checks here leave no
room for either.

Kinds:
    - ``deep``: every linear module of the decoder layers from the router layer ``L`` up (one pass).
    - ``all``: every linear module of all decoder layers (two passes).
    - ``modules``: the full names that the user gives; one pass if all lie in layers >= ``L``.
    - ``dominant``: the modules that receive the largest gradients, found by a probe of data
      (:mod:`asr.adapters.dominant`); alone in that its modules may have ranks of their own.

Left out on purpose: embeddings, the language-model head and the experts of mixture-of-experts
layers. Experts that are 3-D parameters are no linear modules, which plain LoRA files cannot express
for every engine that reads them; experts that are linear modules see tokens that were picked out of
the batch, so that in a mixed batch nobody knows whose they are. So are linear modules that an
adapter would not reach: the ``out_proj`` of state-space mixers, whose fused kernels read the weight
past the module, and the dense or shared MLPs of those mixture-of-experts models in which PEFT takes
such a name for the experts'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from asr.base.layers import decoder_layers
from asr.errors import AdapterError, did_you_mean

PlacementKind = Literal["deep", "all", "modules", "dominant"]
_SHOWN = 8


@dataclass(frozen=True)
class LinearModule:
    """A linear module inside a decoder layer.

    Attributes:
        name: full name in the base model, e.g. ``model.layers.4.mlp.down_proj``.
        layer: index of its decoder layer.
        in_features: input width.
        out_features: output width.
        transposed: the weight is stored (in, out), as in ``Conv1D``.
    """

    name: str
    layer: int
    in_features: int
    out_features: int
    transposed: bool = False

    @property
    def kind(self) -> str:
        """Last part of the name: ``down_proj``, ``c_fc``, ..."""
        return self.name.rpartition(".")[2]

    def lora_parameters(self, rank: int) -> int:
        """Trainable parameters of a rank-``rank`` LoRA on this module."""
        return rank * (self.in_features + self.out_features)


@dataclass(frozen=True)
class Placement:
    """A resolved placement.

    Attributes:
        kind: how it was asked for.
        modules: the modules that carry an adapter, in layer order.
        router_layer: the router layer ``L`` that it was resolved against.
        ranks: rank of each module, in the order of ``modules``; None: all have the common one.
    """

    kind: PlacementKind
    modules: tuple[LinearModule, ...]
    router_layer: int
    ranks: tuple[int, ...] | None = None

    @property
    def names(self) -> list[str]:
        """Full module names in layer order."""
        return [module.name for module in self.modules]

    @property
    def passes(self) -> Literal["one", "two"]:
        """``one`` if every adapted module lies at or above the router layer."""
        return "one" if min(m.layer for m in self.modules) >= self.router_layer else "two"

    def alike(self, other: Placement) -> bool:
        """Whether adapters of the two have tensors of the same names and shapes."""
        return (self.names, self.ranks) == (other.names, other.ranks)

    def ranks_at(self, rank: int) -> tuple[int, ...]:
        """Rank of each module where ``rank`` is the common one."""
        return (rank,) * len(self.modules) if self.ranks is None else self.ranks

    def largest_rank(self, rank: int) -> int:
        """Largest rank of a module where ``rank`` is the common one."""
        return max(self.ranks_at(rank))

    def parameters(self, rank: int) -> int:
        """Trainable parameters where ``rank`` is the common rank."""
        pairs = zip(self.modules, self.ranks_at(rank), strict=True)
        return sum(module.lora_parameters(own) for module, own in pairs)

    def describe(self) -> str:
        """One line for people: kind, number of modules, layers, passes."""
        layers = sorted({module.layer for module in self.modules})
        span = f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]}-{layers[-1]}"
        count = f"{len(self.modules)} module" + ("s" if len(self.modules) != 1 else "")
        return f"{self.kind}: {count} in {span}, {self.passes}-pass"


def linear_modules(model: nn.Module) -> list[LinearModule]:
    """List the linear modules (``nn.Linear`` and its quantised kinds, ``Conv1D``) of every layer.

    Experts, and modules that an adapter would not reach, are left out (see above).

    Raises:
        BaseModelError: if the decoder layers cannot be found.
        AdapterError: if they hold no linear module.
    """
    found = decoder_layers(model)
    modules: list[LinearModule] = []
    for index, layer in enumerate(found.modules):
        for name, module in layer.named_modules():
            if "experts" in name.split(".") or _is_read_past(layer, name):
                continue
            if isinstance(module, Conv1D):
                rows, columns = module.weight.shape
                full = f"{found.path}.{index}.{name}"
                modules.append(LinearModule(full, index, rows, columns, transposed=True))
            elif isinstance(module, nn.Linear):
                modules.append(
                    LinearModule(
                        f"{found.path}.{index}.{name}",
                        index,
                        module.in_features,
                        module.out_features,
                    )
                )
    modules = _meant_alike_by_peft(model, modules)
    if not modules:
        raise AdapterError(
            f"{type(model).__name__} has no linear module in its decoder layers; "
            "LoRA needs nn.Linear or Conv1D modules, choose another base"
        )
    return modules


def _is_read_past(layer: nn.Module, name: str) -> bool:
    """Whether a module is the ``out_proj`` of a state-space mixer (Mamba and its kin)."""
    parent, _, kind = name.rpartition(".")
    if kind != "out_proj":
        return False
    mixer = layer.get_submodule(parent)
    return hasattr(mixer, "A_log") and hasattr(mixer, "D")


def _meant_alike_by_peft(model: nn.Module, modules: list[LinearModule]) -> list[LinearModule]:
    """The modules whose names PEFT does not take for the experts' (gate_proj and the like)."""
    config = LoraConfig(target_modules=[module.name for module in modules])
    convert_peft_config_for_transformers(config, model=model, conversions=None)
    kept = set(config.target_modules or ())
    return [module for module in modules if module.name in kept]


def resolve_placement(
    model: nn.Module, kind: str | dict[str, Sequence[str]], router_layer: int
) -> Placement:
    """Resolve what the config asks for into explicit modules.

    Args:
        model: the plain base model.
        kind: ``"deep"``, ``"all"`` or ``{"modules": [full names]}``.
        router_layer: the router layer ``L``.

    Raises:
        AdapterError: if a name matches no linear module (nearest name shown), a name stands twice,
            the list is empty, or the kind is unknown.
    """
    candidates = linear_modules(model)
    if kind == "all":
        return Placement("all", tuple(candidates), router_layer)
    if kind == "deep":
        deep = tuple(module for module in candidates if module.layer >= router_layer)
        if not deep:
            raise AdapterError(
                f"placement 'deep' finds no linear module from layer {router_layer} up; "
                "lower router.layer or name the modules"
            )
        return Placement("deep", deep, router_layer)
    if isinstance(kind, dict) and set(kind) == {"modules"}:
        return Placement("modules", _named(candidates, list(kind["modules"])), router_layer)
    raise AdapterError(f"placement {kind!r} is unknown; use deep, all or modules: [full names]")


def _named(candidates: list[LinearModule], names: list[str]) -> tuple[LinearModule, ...]:
    by_name = {module.name: module for module in candidates}
    if not names:
        raise AdapterError("placement.modules is empty; name at least one module")
    for name in names:
        if name not in by_name:
            raise AdapterError(_no_such_module(name, by_name))
        if names.count(name) > 1:
            raise AdapterError(f"placement.modules names '{name}' twice")
    chosen = set(names)
    return tuple(module for module in candidates if module.name in chosen)


def _no_such_module(name: str, by_name: dict[str, LinearModule]) -> str:
    endings = [known for known in by_name if known.endswith(f".{name}")]
    if endings:
        example = endings[-1]
        return (
            f"placement.modules: '{name}' is not a full name; {len(endings)} modules end in it, "
            f"e.g. '{example}'"
        )
    kinds = sorted({module.kind for module in by_name.values()})
    listing = ", ".join(kinds[:_SHOWN]) + (", ..." if len(kinds) > _SHOWN else "")
    return (
        f"placement.modules: no linear module '{name}'{did_you_mean(name, by_name)}; "
        f"full names look like '{next(reversed(by_name))}', module kinds are {listing}"
    )
