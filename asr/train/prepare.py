"""Everything a run needs, resolved and checked before anything expensive starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from asr.adapters import LoraSettings, Placement, resolve_placement
from asr.base.layers import default_router_layer
from asr.base.load import LoadedBase
from asr.data.cut import calibration_cut, dev_cut
from asr.data.encode import EncodedSet, encode_examples
from asr.data.formats import Example
from asr.data.load import LoadedData, data_hash, load_examples
from asr.data.views import CommonPart, find_common_part
from asr.errors import ConfigError
from asr.eval.registry import get_scorer
from asr.model.contract import Expansion, FeatureContract, Truncation
from asr.router import DEFAULT_SEED, FeatureMap, RouterSettings
from asr.train.adapter import TrainingSettings
from asr.train.changes import DomainPlan
from asr.train.config import DomainConfig, ModulePlacement, RouterConfig, TrainConfig
from asr.train.rules import choose_batch_size, choose_learning_rate

DEFAULT_SCORER = "exact"


@dataclass(frozen=True)
class DomainData:
    """A domain's data, cut and encoded.

    Attributes:
        loaded: the file.
        train: examples to train on (calibration prompts are among them; the router holds those out
            of its statistics).
        dev: examples held out for choices, and for the matrix while training.
        encoded: rows of ``train``.
        common: what the prompts share.
        calibration: number of distinct prompts held out from the router's statistics.
        sha256: hash of the examples of both cuts; another dev file changes it, as it changes the
            examples to train on.
    """

    loaded: LoadedData
    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    encoded: EncodedSet
    common: CommonPart
    calibration: int
    sha256: str


@dataclass(frozen=True)
class PreparedDomain:
    """A domain of the run. ``data`` is None where its file is gone and its adapter is there."""

    name: str
    config: DomainConfig
    placement: Placement
    lora: LoraSettings
    settings: TrainingSettings | None
    scorer: str
    max_new_tokens: int
    data: DomainData | None

    @property
    def plan(self) -> DomainPlan:
        """What the ledger compares."""
        return DomainPlan(
            name=self.name,
            data_sha256=None if self.data is None else self.data.sha256,
            settings={"placement": self.placement_record(), **self.training_record()},
        )

    def placement_record(self) -> dict[str, Any]:
        """The manifest's ``placement``."""
        return {
            "kind": self.placement.kind,
            "modules": self.placement.names,
            **self.lora.to_dict(),
        }

    def training_record(self) -> dict[str, Any]:
        """The manifest's ``training``; without data, what a rule makes of it is left out."""
        if self.settings is not None:
            return asdict(self.settings)
        record = asdict(_settings(self.config, self.placement, 0, 1))
        if self.config.training.batch_size is None:
            del record["batch_size"]
        return record


def router_settings(config: RouterConfig) -> RouterSettings:
    """The solver's settings from the config.

    Raises:
        RouterError: a combination that the solver cannot follow.
    """
    return RouterSettings(
        solver=config.solver,
        ridge=config.ridge,
        absolute_ridge=config.absolute_ridge,
        expansion=config.expansion,
        abstain=config.abstain,
    )


def feature_contract(config: TrainConfig, base: LoadedBase) -> FeatureContract:
    """The contract of a run on this base.

    Raises:
        ConfigError: the router layer does not exist.
    """
    layer = config.router.layer or default_router_layer(base.n_layers)
    if layer >= base.n_layers:
        raise ConfigError(
            f"router.layer is {layer}, but '{base.name}' has {base.n_layers} decoder layers; "
            f"use 1 to {base.n_layers - 1}"
        )
    expansion = Expansion()
    if config.router.expansion:
        mapped = FeatureMap(base.hidden_size, config.router.expansion, DEFAULT_SEED)
        expansion = Expansion(
            dimension=config.router.expansion, seed=DEFAULT_SEED, hash=mapped.expansion_hash
        )
    return FeatureContract(
        base_fingerprint=base.fingerprint,
        layer=layer,
        expansion=expansion,
        template_hash=base.template.hash,
        truncation=Truncation(max_length=config.training.max_length),
        views=config.router.views,
    )


def prepare_domains(
    config: TrainConfig,
    base: LoadedBase,
    layer: int,
    processes: int,
    published: Sequence[str] = (),
) -> list[PreparedDomain]:
    """Resolve and check every domain of the config, in order.

    Args:
        config: the validated config.
        base: the loaded base.
        layer: the router layer.
        processes: data-parallel processes.
        published: domains whose adapter is in the model directory already; their training files may
            be gone.

    Raises:
        ConfigError: lengths beyond the base's context, an unknown scorer.
        AdapterError: a placement that does not fit the base.
        DataError: a file or rows of it that cannot be used.
    """
    prepared = []
    for name, domain in config.domains.items():
        if domain.training.max_length > base.context_length:
            raise ConfigError(
                f"training.max_length {domain.training.max_length} of '{name}' is longer than the "
                f"context of '{base.name}', {base.context_length}; lower it"
            )
        kind = domain.adapter.placement
        asked: str | dict[str, Sequence[str]] = (
            {"modules": list(kind.modules)} if isinstance(kind, ModulePlacement) else kind
        )
        placement = resolve_placement(base.model, asked, layer)
        scorer = domain.scorer or DEFAULT_SCORER
        get_scorer(scorer)
        data = None
        files = [file for file in (domain.train, domain.dev) if file is not None]
        if name not in published or all(file.exists() for file in files):
            data = load_domain_data(config, name, domain, base)
        prepared.append(
            PreparedDomain(
                name=name,
                config=domain,
                placement=placement,
                lora=LoraSettings(
                    domain.adapter.rank, float(domain.adapter.alpha), domain.adapter.dropout
                ),
                settings=None
                if data is None
                else _settings(domain, placement, len(data.encoded.rows), processes),
                scorer=scorer,
                max_new_tokens=domain.max_new_tokens or config.eval.max_new_tokens,
                data=data,
            )
        )
    return prepared


def load_domain_data(
    config: TrainConfig, name: str, domain: DomainConfig, base: LoadedBase
) -> DomainData:
    """Read, cut and encode a domain's training file.

    Raises:
        DataError: the file or rows of it cannot be used.
    """
    loaded = load_examples(
        domain.train, name=name, fmt=domain.format, limit=domain.limit, seed=config.seed
    )
    if domain.dev is None:
        cut = dev_cut(loaded.examples)
        train, dev = cut.kept, cut.held_out
        sha256 = loaded.sha256
    else:
        train = loaded.examples
        dev = load_examples(domain.dev, name=name, fmt=domain.format, minimum=1).examples
        sha256 = data_hash([*train, *dev])
    encoded = encode_examples(
        train, base.tokenizer, base.template, domain.training.max_length, name=name
    )
    distinct = list({example.prompt_key: example for example in train}.values())
    return DomainData(
        loaded=loaded,
        train=train,
        dev=dev,
        encoded=encoded,
        common=find_common_part(train),
        calibration=len(calibration_cut(distinct).held_out),
        sha256=sha256,
    )


def _settings(
    domain: DomainConfig, placement: Placement, rows: int, processes: int
) -> TrainingSettings:
    chosen = domain.training
    return TrainingSettings(
        epochs=chosen.epochs,
        batch_size=chosen.batch_size or choose_batch_size(rows, chosen.epochs, processes),
        learning_rate=chosen.learning_rate or choose_learning_rate(len(placement.modules)),
        schedule=chosen.schedule,
        warmup=chosen.warmup,
        weight_decay=chosen.weight_decay,
        max_length=chosen.max_length,
        max_grad_norm=chosen.max_grad_norm,
        gradient_checkpointing=chosen.gradient_checkpointing,
        max_steps=chosen.max_steps,
    )
