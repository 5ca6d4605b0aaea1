"""What router features mean, and under which arithmetic they were made.

Statistics of two domains may be added, and a prompt may be scored against them, only if every
feature was made the same way. The *semantic* part says which way: it is hashed, and another hash is
refused by name of the field. The *numeric* part (dtype, quantisation, device) shifts features
slightly without changing what they mean: it is recorded and reported, not refused.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from asr.errors import ContractError

if TYPE_CHECKING:
    from asr.base.load import LoadedBase

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""A sha256 as 64 lower-case hexadecimal digits."""

_STRICT = ConfigDict(extra="forbid", strict=True, frozen=True)

_ADVICE = {
    "base_fingerprint": "load the base that this model was trained on",
    "layer": "the router layer is fixed before the first domain: keep it, or train a new model",
    "template_hash": "use the chat_template.jinja that lies in the model directory",
    "expansion": "use the same router.expansion and seed, or train a new model",
    "truncation": "use the max_length of the first training, or train a new model",
    "views": "use the router.views of the first training, or train a new model",
}
_OTHER_ADVICE = "make the features again with this model's settings, or train a new model"


class Expansion(BaseModel):
    """The fixed random map ``relu(P x)`` after normalisation; dimension 0 is none."""

    model_config = _STRICT

    dimension: int = Field(default=0, ge=0, description="Rows of P; 0: no expansion.")
    seed: int = Field(default=0, ge=0, description="Seed of the Philox generator that drew P.")
    hash: Sha256 | None = Field(default=None, description="sha256 of P's float64 bytes.")


class Truncation(BaseModel):
    """How a prompt that is too long is cut."""

    model_config = _STRICT

    max_length: int = Field(ge=1, description="Longest prompt in tokens.")
    rule: Literal["middle of the longest user message"] = Field(
        default="middle of the longest user message", description="What is cut."
    )


class FeatureContract(BaseModel):
    """The semantic part: two features may meet only if all of this is equal.

    The order of ``views`` counts: it is the order of the view axis in calibration blocks.
    """

    model_config = _STRICT

    base_fingerprint: Sha256 = Field(description="Fingerprint of the base's checkpoint.")
    layer: int = Field(ge=0, description="Router layer L: features are the states entering it.")
    pooling: Literal["user_content"] = Field(
        default="user_content", description="Which tokens are averaged."
    )
    normalisation: Literal["layernorm"] = Field(
        default="layernorm", description="Applied to the mean, without parameters."
    )
    expansion: Expansion = Field(default_factory=Expansion, description="Random feature map.")
    template_hash: Sha256 = Field(description="sha256 of the chat template's text.")
    truncation: Truncation = Field(description="How prompts that are too long are cut.")
    views: tuple[str, ...] = Field(
        min_length=1, description="Names of the views of a prompt, in the order of storage."
    )

    @property
    def hash(self) -> str:
        """sha256 (hex) of the canonical JSON: sorted keys, no spaces, UTF-8."""
        canonical = json.dumps(
            self.model_dump(mode="json"),
            sort_keys=True,
            separators=(",", ":"),
            ensure_ascii=False,
            allow_nan=False,
        )
        return hashlib.sha256(canonical.encode("utf-8")).hexdigest()

    def difference(self, other: FeatureContract) -> tuple[str, Any, Any] | None:
        """Return the first field that differs as (dotted name, value here, value there), or None.

        Fields are compared in the order in which they stand above.
        """
        here, there = _leaves(self.model_dump()), _leaves(other.model_dump())
        for field, value in here.items():
            if there[field] != value:
                return field, value, there[field]
        return None

    def check(self, other: FeatureContract) -> None:
        """Refuse features of ``other`` where this contract is the model's.

        Raises:
            ContractError: the contracts differ; names the first differing field, both values and
                what to do.
        """
        found = self.difference(other)
        if found is None:
            return
        field, here, there = found
        advice = _ADVICE.get(field.split(".")[0], _OTHER_ADVICE)
        raise ContractError(
            f"features made under another contract: {field} is {_shown(here)} in this model and "
            f"{_shown(there)} there; {advice}"
        )


class NumericContract(BaseModel):
    """The numeric part: recorded at training, compared at load, never a reason to refuse."""

    model_config = _STRICT

    dtype: str = Field(description="Floating-point type of the base, e.g. float32.")
    quantisation: str | None = Field(default=None, description="int8, nf4, ... or none.")
    device: str = Field(description="Device class, e.g. cpu, cuda.")

    def differences(self, other: NumericContract) -> dict[str, tuple[str, str]]:
        """Return the fields in which ``other`` differs: (this one's value, the other's) each."""
        return {
            field: (_shown(getattr(self, field)), _shown(getattr(other, field)))
            for field in type(self).model_fields
            if getattr(self, field) != getattr(other, field)
        }


def numeric_contract(base: LoadedBase) -> NumericContract:
    """Return the arithmetic of a loaded base."""
    return NumericContract(
        dtype=base.dtype_name, quantisation=base.quantisation, device=base.device.type
    )


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= _leaves(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return "[" + ", ".join(str(item) for item in value) + "]"
    text = str(value)
    is_hash = len(text) == 64 and all(c in "0123456789abcdef" for c in text)
    return f"{text[:12]}..." if is_hash else text
