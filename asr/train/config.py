"""The settings of a training run: one strict model, every field with its meaning.

Unknown keys are refused and nothing is coerced. A domain's ``adapter`` and ``training`` sections
hold overrides in the file; once validated they hold the *effective* settings of that domain, so a
reader never has to merge. Reading files, and errors in the user's words: ``config_file``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from asr.model.manifest import DomainName

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

PLACEMENTS = ("deep", "all")
"""Placements by name. Beside them, ``{modules: [full module names]}``."""

SCORERS = ("exact", "label", "number", "loss")
"""Scorers of the first release; a caller with more passes them to ``load_config``."""

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
AtLeastOne = Annotated[int, Field(ge=1)]


class ModulePlacement(BaseModel):
    """LoRA on exactly these modules."""

    model_config = _STRICT

    modules: tuple[str, ...] = Field(
        min_length=1, description="Full names, e.g. model.layers.11.mlp.down_proj."
    )


def _placement(value: object) -> object:
    """Check by hand: the errors of a union name both sides and help nobody."""
    if isinstance(value, ModulePlacement) or (isinstance(value, str) and value in PLACEMENTS):
        return value
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
    raise ValueError("'deep', 'all' or {modules: [full module names]}")


Placement = Annotated[Literal["deep", "all"] | ModulePlacement, BeforeValidator(_placement)]


class AdapterConfig(BaseModel):
    """The LoRA of a domain."""

    model_config = _STRICT

    placement: Placement = Field(
        default="deep",
        description="Where LoRA sits: deep (all linear modules from the router layer up), "
        "all (all layers; two passes), or {modules: [full names]}.",
    )
    rank: AtLeastOne = Field(default=8, description="Rank of the update.")
    alpha: Positive = Field(default=16, description="Scale: the update is times alpha / rank.")
    dropout: Fraction = Field(default=0.0, description="Dropout on the input of A in training.")


class RouterConfig(BaseModel):
    """The closed-form router."""

    model_config = _STRICT

    layer: AtLeastOne | None = Field(
        default=None, description="Router layer L; null: max(2, round(layers / 7))."
    )
    two_pass: bool = Field(
        default=False, description="Route in a pass of its own, for bases that cannot be split."
    )
    solver: Literal["direct", "rls"] = Field(
        default="direct", description="direct (Cholesky of the sum) or rls (recursive)."
    )
    ridge: Positive | None = Field(
        default=None, description="Ridge relative to trace(G)/E; null: chosen on held-out prompts."
    )
    absolute_ridge: Positive | None = Field(
        default=None, description="Ridge as it is, instead of the relative one."
    )
    expansion: int = Field(
        default=0, ge=0, description="Rows of the random ReLU expansion; 0: none."
    )
    abstain: Fraction = Field(
        default=0.02, description="Share of known prompts that may be sent to the base; 0: never."
    )
    views: tuple[Literal["templated", "bare"], ...] = Field(
        default=("templated", "bare"),
        min_length=1,
        description="Forms in which each training prompt is shown to the router.",
    )

    @model_validator(mode="after")
    def _one_ridge(self) -> Self:
        if self.ridge is not None and self.absolute_ridge is not None:
            raise ValueError("either ridge or absolute_ridge, not both: remove one")
        if self.solver == "rls" and self.ridge is not None:
            raise ValueError(
                "solver rls keeps an absolute ridge: set absolute_ridge instead of ridge, "
                "or use solver direct"
            )
        if len(set(self.views)) < len(self.views):
            raise ValueError(f"views names one twice: [{', '.join(self.views)}]")
        return self


class TrainingConfig(BaseModel):
    """How one adapter is trained. Null means: by a rule, which the run prints and records."""

    model_config = _STRICT

    epochs: AtLeastOne = Field(default=2, description="Passes over the training examples.")
    batch_size: AtLeastOne | None = Field(
        default=None, description="Examples per step; null: by the number of steps it leaves."
    )
    learning_rate: Positive | None = Field(
        default=None, description="Peak rate; null: by placement and rank."
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="Course of the learning rate after the warm-up."
    )
    warmup: Fraction = Field(default=0.03, description="Share of the steps spent warming up.")
    weight_decay: float = Field(default=0.0, ge=0.0, description="AdamW's weight decay.")
    max_length: int = Field(
        default=1024, ge=2, description="Longest example in tokens; longer prompts are cut."
    )
    max_grad_norm: Positive | None = Field(
        default=1.0, description="Gradients are clipped to this norm; null: not clipped."
    )
    save_steps: AtLeastOne | None = Field(
        default=None, description="Steps between checkpoints; null: by the time they take."
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Recompute activations: less memory, more time."
    )
    max_steps: AtLeastOne | None = Field(
        default=None, description="Stop after so many steps; null: after the epochs."
    )


class EvalConfig(BaseModel):
    """How domains are scored after each training. Changing it never touches a finished domain."""

    model_config = _STRICT

    max_examples: AtLeastOne | None = Field(
        default=200, description="Examples scored per domain; null: all."
    )
    max_new_tokens: AtLeastOne = Field(default=256, description="Longest generated answer.")
    batch_size: AtLeastOne = Field(default=16, description="Prompts generated together.")


class DomainConfig(BaseModel):
    """One domain: its files, and overrides of the common settings."""

    model_config = _STRICT

    train: Path = Field(description="Training examples.")
    dev: Path | None = Field(
        default=None, description="Dev examples; null: 15% of train, by hash of the prompt."
    )
    test: Path | None = Field(
        default=None, description="Test examples, read by the reporting command only."
    )
    scorer: str | None = Field(
        default=None, description="exact, label, number or loss; null: by the look of the data."
    )
    format: str | None = Field(default=None, description="Record format; null: detected.")
    limit: AtLeastOne | None = Field(
        default=None, description="Use the first so many training examples; null: all."
    )
    max_new_tokens: AtLeastOne | None = Field(
        default=None, description="Longest answer of this domain; null: eval.max_new_tokens."
    )
    adapter: AdapterConfig = Field(
        default_factory=AdapterConfig, description="Overrides of adapter for this domain."
    )
    training: TrainingConfig = Field(
        default_factory=TrainingConfig, description="Overrides of training for this domain."
    )


class TrainConfig(BaseModel):
    """A whole run. ``domains`` keeps the order of the file, which is the order of training."""

    model_config = _STRICT

    base: str = Field(
        min_length=1, description="Folder, hub id, .gguf file, or built-in: smollm2-135m."
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of every random choice.")
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|(cuda|xpu)(:\d+)?)$")] = Field(
        default="auto", description="auto, cpu, cuda, cuda:N, xpu, xpu:N or mps."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Type of the base's weights; auto: by what the device is good at.",
    )
    keep_eval: bool = Field(
        default=True, description="Keep dev prompts so that old domains can be scored again."
    )
    adapter: AdapterConfig = Field(default_factory=AdapterConfig, description="All domains' LoRA.")
    router: RouterConfig = Field(default_factory=RouterConfig, description="The router.")
    training: TrainingConfig = Field(
        default_factory=TrainingConfig, description="All domains' training."
    )
    eval: EvalConfig = Field(default_factory=EvalConfig, description="Scoring.")
    domains: dict[DomainName, DomainConfig] = Field(
        min_length=1, description="Domains by name, in training order."
    )

    @model_validator(mode="after")
    def _effective(self) -> Self:
        merged = {
            name: domain.model_copy(
                update={
                    "adapter": _overridden(self.adapter, domain.adapter),
                    "training": _overridden(self.training, domain.training),
                }
            )
            for name, domain in self.domains.items()
        }
        self.__dict__["domains"] = merged  # frozen for users, not for its own validation
        return self

    def plain(self) -> dict[str, Any]:
        """Return the effective settings as JSON values; loading them gives an equal config."""
        return self.model_dump(mode="json")


Section = TypeVar("Section", bound=BaseModel)


def _overridden(common: Section, own: Section) -> Section:
    """Return ``common`` with the fields that were written in ``own``, an explicit null too."""
    return common.model_copy(update={field: getattr(own, field) for field in own.model_fields_set})
