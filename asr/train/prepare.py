"""Everything a run needs, resolved and checked before anything expensive starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from asr.adapters import LoraSettings, Placement, check_variant
from asr.base.layers import default_router_layer
from asr.base.load import LoadedBase
from asr.errors import ConfigError
from asr.eval.registry import get_scorer
from asr.model.contract import Expansion, FeatureContract, Truncation
from asr.model.manifest import DomainEntry
from asr.router import DEFAULT_SEED, FeatureMap, RouterSettings
from asr.train.adapter import TrainingSettings, domain_seed
from asr.train.changes import PUBLISHED, DomainPlan
from asr.train.check_data import DEFAULT_SCORER, TEXT_SCORER, CutData, read_domain
from asr.train.config import DomainConfig, RouterConfig, TrainConfig
from asr.train.domain_data import (
    DomainData,
    EarlierData,
    FinishedData,
    encode_domain,
    read_finished,
    require_room,
)
from asr.train.placing import Placed, Rows, check_placement, place
from asr.train.rules import BY_RULE, choose_batch_size, choose_learning_rate


@dataclass(frozen=True)
class PreparedDomain:
    """A domain of the run.

    ``data`` is None where adapter and statistics are there: nothing is made of it any more.
    ``finished`` then holds what its files are, where they are there and were to be looked at.
    """

    name: str
    config: DomainConfig
    placed: Placed
    lora: LoraSettings
    settings: TrainingSettings | None
    scorer: str
    max_new_tokens: int
    data: DomainData | None
    finished: FinishedData | None = None

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
        there = self.data or self.finished
        return DomainPlan(
            name=self.name,
            data_sha256=None if there is None else there.sha256,
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
        if self.finished is not None:
            record["views"] = list(self.finished.views)
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
    compare_finished: bool = True,
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
        published: domains whose adapter and statistics are in the model directory already; their
            training files may be gone, and are compared with the ledger at most. A setting that
            the config leaves to a rule is then not settled: the rule may have changed with the
            version of this program, or with the number of processes.
        earlier: what is kept of data that the (one) domain was trained on before.
        read: what :func:`asr.train.check_data.check_data` has read; other domains are read here.
        recorded: entries of the ledger whose placements hold (:func:`asr.train.changes.holding`).
        compare_finished: read the files of published domains, where they are there, to compare them
            with the ledger.
        on_main: see :func:`asr.train.placing.place`.
        say: see there.
        progress: see there.

    Raises:
        ConfigError: lengths beyond the base's context, an unknown scorer, a file of a published
            domain that cannot be read to be compared.
        AdapterError: a placement, or an initialisation, that does not fit the base, or a probe that
            cannot be made or used.
        DataError: a file or rows of it that cannot be used.
    """
    read, recorded = read or {}, recorded or {}
    loras = {name: _lora(domain) for name, domain in config.domains.items()}
    for name, domain in config.domains.items():
        placed_already = name in recorded and recorded[name].status in PUBLISHED
        _check_settings(name, domain, loras[name], base, None if placed_already else layer)
    scorers: dict[str, str] = {}
    data: dict[str, DomainData] = {}
    finished: dict[str, FinishedData] = {}
    for name, domain in config.domains.items():
        scorers[name] = domain.scorer or DEFAULT_SCORER
        files = [file for file in (domain.train, domain.dev) if file is not None]
        if name not in published:
            cut = read[name] if name in read else read_domain(name, domain, config.seed)
            scorers[name] = cut.scorer
            if config.keep_eval and get_scorer(cut.scorer).needs == "text":
                longest = domain.max_new_tokens or config.eval.max_new_tokens
                require_room(name, cut.dev[: config.eval.max_examples], base, longest)
            data[name] = encode_domain(name, domain, cut, base, earlier)
        elif compare_finished and all(file.exists() for file in files):
            finished[name], scorers[name] = read_finished(name, domain, config.seed)
        elif domain.scorer is None and name in recorded and recorded[name].scorer == TEXT_SCORER:
            scorers[name] = TEXT_SCORER  # what its file showed while it was there
    prepared = []
    for name, domain in config.domains.items():
        there = data.get(name)
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
                else _settings(domain, placed.placement, there, processes),
                scorer=scorers[name],
                max_new_tokens=domain.max_new_tokens or config.eval.max_new_tokens,
                data=there,
                finished=finished.get(name),
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


def _settings(
    domain: DomainConfig, placement: Placement, data: DomainData | None, processes: int
) -> TrainingSettings:
    """Settle what the config leaves open."""
    chosen = domain.training
    views = ("templated",) if data is None else data.views
    rows = 0 if data is None else len(data.encoded.rows) // len(views)
    batch_size = chosen.batch_size or choose_batch_size(rows, chosen.epochs, processes)
    return TrainingSettings(
        epochs=chosen.epochs,
        batch_size=batch_size,
        learning_rate=chosen.learning_rate
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
