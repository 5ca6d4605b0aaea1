"""Everything a run needs, resolved and checked before anything expensive starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

from asr.adapters import LoraSettings, Placement, check_variant
from asr.base.layers import default_router_layer
from asr.base.load import LoadedBase
from asr.data.cut import calibration_cut
from asr.data.encode import EncodedSet, encode_examples, join_encoded
from asr.data.formats import Example
from asr.data.load import LoadedData
from asr.data.views import VIEWS, CommonPart, find_common_part
from asr.errors import ConfigError, DataError
from asr.eval.registry import get_scorer
from asr.model.contract import Expansion, FeatureContract, Truncation
from asr.model.manifest import DomainEntry
from asr.router import DEFAULT_SEED, FeatureMap, RouterSettings
from asr.train.adapter import TrainingSettings, domain_seed
from asr.train.changes import PUBLISHED, DomainPlan
from asr.train.check_data import DEFAULT_SCORER, TEXT_SCORER, CutData, read_domain
from asr.train.config import DomainConfig, RouterConfig, TrainConfig
from asr.train.placing import Placed, Rows, check_placement, place
from asr.train.rules import BY_RULE, choose_batch_size, choose_learning_rate


@dataclass(frozen=True)
class DomainData:
    """A domain's data, cut and encoded.

    Attributes:
        loaded: the file.
        train: examples to train on (calibration prompts are among them; the router holds those out
            of its statistics).
        dev: examples held out for choices, and for the matrix while training.
        encoded: rows of ``train``, in every view of ``views``, one view after the other.
        views: the training views in which the domain's prompts differ.
        common: what the prompts share.
        calibration: number of distinct prompts held out from the router's statistics.
        sha256: hash of the examples of both cuts; another dev file changes it, as it changes the
            examples to train on.
    """

    loaded: LoadedData
    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    encoded: EncodedSet
    views: tuple[str, ...]
    common: CommonPart
    calibration: int
    sha256: str


@dataclass(frozen=True)
class EarlierData:
    """What is kept of data that a domain was trained on before.

    Attributes:
        common: what its prompts share.
        kept: keys of the prompts that are kept for scoring.
    """

    common: CommonPart
    kept: frozenset[str]


@dataclass(frozen=True)
class PreparedDomain:
    """A domain of the run. ``data`` is None where its file is gone and its adapter is there."""

    name: str
    config: DomainConfig
    placed: Placed
    lora: LoraSettings
    settings: TrainingSettings | None
    scorer: str
    max_new_tokens: int
    data: DomainData | None

    @property
    def placement(self) -> Placement:
        """Where the adapter sits."""
        return self.placed.placement

    @property
    def saved_rank(self) -> int:
        """Largest rank of the saved adapter."""
        return self.lora.saved_times * self.placement.largest_rank(self.lora.rank)

    @property
    def saved_parameters(self) -> int:
        """Parameters of the saved adapter."""
        return self.lora.saved_times * self.placement.parameters(self.lora.rank)

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
        return self.placed.record(self.lora)

    def training_record(self) -> dict[str, Any]:
        """The manifest's ``training``; without data, what rules make of it is left out."""
        if self.settings is not None:
            return {
                **asdict(self.settings),
                "views": list(self.settings.views),
                "init_from": self.config.adapter.init_from,
            }
        record = asdict(_settings(self.config, self.placement, None, 1))
        record["init_from"] = self.config.adapter.init_from
        del record["views"]
        for key in BY_RULE:
            if getattr(self.config.training, key) is None:
                del record[key]
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
    earlier: EarlierData | None = None,
    *,
    read: Mapping[str, CutData] | None = None,
    recorded: Mapping[str, DomainEntry] | None = None,
    on_main: Callable[[Callable[[], Placed]], Placed] = lambda work: work(),
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[PreparedDomain]:
    """Resolve and check every domain of the config, in order.

    What costs little comes first, for all domains: settings, then data. Dominant placements, which
    are found by a probe of the data, are decided last.

    Args:
        config: the validated config.
        base: the loaded base.
        layer: the router layer.
        processes: data-parallel processes.
        published: domains whose adapter is in the model directory already; their training files may
            be gone.
        earlier: what is kept of data that the (one) domain was trained on before.
        read: what :func:`asr.train.check_data.check_data` has read; other domains are read here.
        recorded: entries of the ledger whose placements hold (:func:`asr.train.changes.holding`).
            A published domain also keeps the settings that the config leaves to a rule: the rule
            may have changed with the version of this program, or with the number of processes.
        on_main: see :func:`asr.train.placing.place`.
        say: see there.
        progress: see there.

    Raises:
        ConfigError: lengths beyond the base's context, an unknown scorer.
        AdapterError: a placement, or an initialisation, that does not fit the base, or a probe that
            cannot be made or used.
        DataError: a file or rows of it that cannot be used.
    """
    read, recorded = read or {}, recorded or {}
    loras = {name: _lora(domain) for name, domain in config.domains.items()}
    for name, domain in config.domains.items():
        finished = name in recorded and recorded[name].status in PUBLISHED
        _check_settings(name, domain, loras[name], base, None if finished else layer)
    scorers: dict[str, str] = {}
    data: dict[str, DomainData | None] = dict.fromkeys(config.domains)
    for name, domain in config.domains.items():
        scorers[name] = domain.scorer or DEFAULT_SCORER
        files = [file for file in (domain.train, domain.dev) if file is not None]
        if name not in published or all(file.exists() for file in files):
            cut = read[name] if name in read else read_domain(name, domain, config.seed)
            scorers[name] = cut.scorer
            data[name] = encode_domain(name, domain, cut, base, earlier)
        elif domain.scorer is None and name in recorded and recorded[name].scorer == TEXT_SCORER:
            scorers[name] = TEXT_SCORER  # what its file showed while it was there
    prepared = []
    for name, domain in config.domains.items():
        there = data[name]
        seed = domain_seed(config.seed, name)
        placed = place(
            name,
            base,
            domain.adapter,
            loras[name],
            layer,
            None if there is None else Rows(there.encoded.rows, there.sha256, seed),
            recorded.get(name),
            on_main,
            say,
            progress,
        )
        check_variant(base.model, placed.placement, loras[name])
        prepared.append(
            PreparedDomain(
                name=name,
                config=domain,
                placed=placed,
                lora=loras[name],
                settings=None
                if there is None
                else _settings(
                    domain,
                    placed.placement,
                    there,
                    processes,
                    recorded[name].training if name in published and name in recorded else {},
                ),
                scorer=scorers[name],
                max_new_tokens=domain.max_new_tokens or config.eval.max_new_tokens,
                data=there,
            )
        )
    return prepared


def _lora(domain: DomainConfig) -> LoraSettings:
    return LoraSettings(
        domain.adapter.rank,
        float(domain.adapter.alpha),
        domain.adapter.dropout,
        domain.adapter.use_rslora,
        domain.adapter.init_lora_weights,
    )


def _check_settings(
    name: str, domain: DomainConfig, lora: LoraSettings, base: LoadedBase, layer: int | None
) -> None:
    """Refuse settings without reading data. ``layer`` is None where the placement is recorded."""
    if domain.training.max_length > base.context_length:
        raise ConfigError(
            f"training.max_length {domain.training.max_length} of '{name}' is longer than the "
            f"context of '{base.name}', {base.context_length}; lower it"
        )
    if layer is not None:
        check_placement(base, domain.adapter, lora, layer)
    if lora.init_lora_weights is not True and domain.adapter.init_from != "none":
        raise ConfigError(
            f"domain '{name}' starts by init_lora_weights {lora.init_lora_weights} or from "
            f"another adapter (init_from: {domain.adapter.init_from}), not both; leave one out"
        )
    if domain.scorer is not None:
        get_scorer(domain.scorer)


def encode_domain(
    name: str,
    domain: DomainConfig,
    read: CutData,
    base: LoadedBase,
    earlier: EarlierData | None = None,
) -> DomainData:
    """Encode the data of a domain in its training views.

    With ``earlier``, prompts that are kept for scoring are not trained on, and the bare view is
    made with the common part of that data.

    Raises:
        DataError: rows that cannot be encoded; nothing is left to train on.
    """
    train = read.train
    common = find_common_part(train)
    if earlier is not None:
        common = earlier.common
        train = tuple(e for e in train if e.prompt_key not in earlier.kept)
        if not train:
            raise DataError(
                f"{read.loaded.path}: every prompt of it is kept for scoring '{name}' already, and "
                "none is left to train on; give data with other prompts"
            )
    views = _distinct_views(train, common, domain.training.views)
    encoded = join_encoded(
        [
            encode_examples(
                [_shown(example, view, common) for example in train],
                base.tokenizer,
                base.template,
                domain.training.max_length,
                name=name,
            )
            for view in views
        ]
    )
    distinct = list({example.prompt_key: example for example in train}.values())
    return DomainData(
        loaded=read.loaded,
        train=train,
        dev=read.dev,
        encoded=encoded,
        views=views,
        common=common,
        calibration=len(calibration_cut(distinct).held_out),
        sha256=read.sha256,
    )


def _shown(example: Example, view: str, common: CommonPart) -> Example:
    return replace(example, messages=tuple(VIEWS[view](example.messages, common)))


def _distinct_views(
    examples: Sequence[Example], common: CommonPart, names: Sequence[str]
) -> tuple[str, ...]:
    """Leave out views that show every example as an earlier one does (no common part: no bare)."""
    kept: dict[str, list[Example]] = {}
    for name in names:
        shown = [_shown(example, name, common) for example in examples]
        if shown not in kept.values():
            kept[name] = shown
    return tuple(kept)


def _settings(
    domain: DomainConfig,
    placement: Placement,
    data: DomainData | None,
    processes: int,
    kept: Mapping[str, Any] = MappingProxyType({}),
) -> TrainingSettings:
    """Settle what the config leaves open; ``kept``: the training that a published adapter had."""
    chosen = domain.training
    views = ("templated",) if data is None else data.views
    rows = 0 if data is None else len(data.encoded.rows) // len(views)
    batch_size = (
        chosen.batch_size
        or kept.get("batch_size")
        or choose_batch_size(rows, chosen.epochs, processes)
    )
    return TrainingSettings(
        epochs=chosen.epochs,
        batch_size=batch_size,
        learning_rate=chosen.learning_rate
        or kept.get("learning_rate")
        or choose_learning_rate(len(placement.modules), batch_size),
        schedule=chosen.schedule,
        warmup=chosen.warmup,
        weight_decay=chosen.weight_decay,
        max_length=chosen.max_length,
        max_grad_norm=chosen.max_grad_norm,
        gradient_checkpointing=chosen.gradient_checkpointing,
        max_steps=chosen.max_steps,
        views=views,
        group_by_length=chosen.group_by_length,
    )
