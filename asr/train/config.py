"""The settings of a training run: one strict model, every field with its meaning.

Unknown keys are refused and nothing is coerced. A domain's ``adapter`` and ``training`` sections
hold overrides in the file; once validated they hold the *effective* settings of that domain, so a
reader never has to merge. Reading files, and errors in the user's words: ``config_file``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from asr.data.views import VIEWS
from asr.errors import unknown
from asr.eval import scorer_names
from asr.model.manifest import DomainName
from asr.train.placement_config import Placement
from asr.train.reporting import TRACKERS

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

INITIALISATIONS = ("none", "nearest")
"""What an adapter may start from, beside an earlier domain by its name."""

SCORERS = tuple(scorer_names())
"""Registered scorers; a caller with more passes them to ``load_config``."""

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
AtLeastOne = Annotated[int, Field(ge=1)]


def _views(value: object) -> object:
    """Check by hand: a list of known views, none twice."""
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, str) for v in value):
        for name in value:
            if name not in VIEWS:
                raise ValueError(unknown("view", name, VIEWS))
        if len(set(value)) < len(value):
            raise ValueError("a list of views without repetitions")
        return tuple(value)
    raise ValueError(f"a list of views ({', '.join(VIEWS)})")


Views = Annotated[tuple[str, ...], BeforeValidator(_views)]


def _initialisation(value: object) -> object:
    """Check by hand: the names are PEFT's, and some are refused with a reason."""
    if value is True:
        return value
    from asr.adapters.variants import initialisation_problem  # heavy, and seldom needed

    if not isinstance(value, (bool, str)):
        raise ValueError("true or a name: gaussian, orthogonal, mica, pissa, pissa_niter_N, olora")
    problem = initialisation_problem(value)
    if problem is not None:
        raise ValueError(problem)
    return value


Initialisation = Annotated[bool | str, BeforeValidator(_initialisation)]


class AdapterConfig(BaseModel):
    """The LoRA of a domain."""

    model_config = _STRICT

    placement: Placement = Field(
        default="deep",
        description="Where LoRA sits: deep (all from the router layer up), all (two passes), "
        "dominant (where a probe finds most), or {modules: [full names]}.",
    )
    rank: AtLeastOne = Field(default=8, description="Rank of the update.")
    alpha: Positive = Field(default=16, description="Scale: the update is times alpha / rank.")
    dropout: Fraction = Field(default=0.0, description="Dropout on the input of A in training.")
    use_rslora: bool = Field(
        default=False, description="Scale by alpha / sqrt(rank) instead: for high ranks (rsLoRA)."
    )
    init_lora_weights: Initialisation = Field(
        default=True,
        description="How A and B start, in PEFT's names: true, gaussian, orthogonal, mica, pissa, "
        "pissa_niter_N or olora. The last three double the saved rank.",
    )
    init_from: str = Field(
        default="none",
        min_length=1,
        description="What it starts from: none, nearest (a copy of the adapter of the domain that "
        "the router finds nearest), or an earlier domain.",
    )

    @model_validator(mode="before")
    @classmethod
    def _plain_lora(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.keys() - cls.model_fields.keys():
            from asr.adapters.variants import refused_key  # heavy, and seldom needed

            reasons = (refused_key(key) for key in values)
            reason = next((text for text in reasons if text is not None), None)
            if reason is not None:
                raise ValueError(reason)
        return values


class RouterConfig(BaseModel):
    """The closed-form router."""

    model_config = _STRICT

    layer: AtLeastOne | None = Field(
        default=None, description="Router layer L; null: max(2, round(layers / 4))."
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
        default=None, description="Ridge as it is, for solver rls (which knows no relative one)."
    )
    expansion: int = Field(
        default=0, ge=0, description="Rows of the random ReLU expansion; 0: none."
    )
    abstain: Fraction = Field(
        default=0.07,
        description="Share of known prompts, in the view nearest to people's words, that may be "
        "sent to the base; 0: never.",
    )
    views: Views = Field(
        default=("templated", "bare", "fragment", "fragment2"),
        description="Forms in which each training prompt is shown to the router.",
    )
    background: int = Field(
        default=128,
        ge=0,
        description="Prompts that the base writes itself (beside messages of our own), as a class "
        "of its own for abstaining; 0: no such class.",
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
        return self


def _trackers(value: object) -> object:
    """Check by hand: a list of known trackers, none twice."""
    if isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value):
        for name in value:
            if name not in TRACKERS:
                raise ValueError(unknown("tracker", name, TRACKERS))
        if len(set(value)) < len(value):
            raise ValueError(f"trackers without repetitions, not [{', '.join(value)}]")
        return tuple(value)
    raise ValueError("expected a list of trackers, e.g. [tensorboard]")


Trackers = Annotated[tuple[str, ...], BeforeValidator(_trackers)]


class TrainingConfig(BaseModel):
    """How one adapter is trained. Null means: by a rule, which the run prints and records."""

    model_config = _STRICT

    epochs: AtLeastOne = Field(default=2, description="Passes over the training examples.")
    batch_size: AtLeastOne | None = Field(
        default=None, description="Examples per step; null: by the number of steps it leaves."
    )
    learning_rate: Positive | None = Field(
        default=None, description="Peak rate; null: by placement and batch size."
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="Course of the learning rate after the warm-up."
    )
    views: Views = Field(
        default=("templated", "bare"),
        description="Forms in which examples are trained on; they share the epochs.",
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
        default=None, description="Steps between checkpoints; null: a twentieth of all, 10 or more."
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Recompute activations: less memory, more time."
    )
    group_by_length: bool = Field(
        default=False,
        description="Batches of examples of about equal length: less padding, less random order.",
    )
    report_to: Trackers = Field(
        default=(), description="Experiment trackers, e.g. [tensorboard, wandb]; []: none."
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
        default=None, description=f"{', '.join(SCORERS)}; null: exact, for plain texts loss."
    )
    format: str | None = Field(
        default=None,
        description="messages, prompt-completion, alpaca, sharegpt, trace or text; null: by the "
        "keys of the rows.",
    )
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
    quantisation: Literal["int8", "nf4"] | None = Field(
        default=None,
        description="Base in 8 or 4 bits, through bitsandbytes: int8 or nf4; null: as it is.",
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
        names = list(merged)
        for position, name in enumerate(names):
            _check_source(name, merged[name].adapter, names, position)
        return self

    def plain(self) -> dict[str, Any]:
        """Return the effective settings as JSON values; loading them gives an equal config."""
        return self.model_dump(mode="json")


def _check_source(name: str, adapter: AdapterConfig, names: list[str], position: int) -> None:
    """Refuse a domain's ``init_from`` that is no rule and no earlier domain, or a second start."""
    source = adapter.init_from
    if source != "none" and adapter.init_lora_weights is not True:
        raise ValueError(
            f"domains.{name}.adapter: a copy (init_from {source}) has no start of its own "
            f"(init_lora_weights {adapter.init_lora_weights}); set one of them"
        )
    if source in INITIALISATIONS:
        if source in names:  # 'none' is no domain name
            raise ValueError(
                f"domains.{name}.adapter.init_from: '{source}' is a rule and a domain's name too; "
                "rename the domain"
            )
        return
    where = f"domains.{name}.adapter.init_from"
    if source not in names:
        known = [*INITIALISATIONS, *names[:position]]
        raise ValueError(f"{where}: {unknown('domain', source, known)}")
    if source == name:
        raise ValueError(f"{where}: '{name}' cannot start from itself; use none or nearest")
    if names.index(source) > position:
        raise ValueError(
            f"{where}: '{source}' is trained after '{name}'; start from an earlier domain, or move "
            f"'{source}' before it"
        )


Section = TypeVar("Section", bound=BaseModel)


def _overridden(common: Section, own: Section) -> Section:
    """Return ``common`` with the fields that were written in ``own``, an explicit null too."""
    return common.model_copy(update={field: getattr(own, field) for field in own.model_fields_set})
