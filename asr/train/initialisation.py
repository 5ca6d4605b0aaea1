"""What a new adapter starts from: nothing, an earlier domain's adapter, or the nearest one's.

Nearest is the domain whose column of the router scores highest on the new domain's training
prompts, in the mean over a sample of them. The adapter that is copied is only read.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from asr.base.load import LoadedBase
from asr.data.formats import Example
from asr.data.views import CommonPart
from asr.errors import ConfigError, DirectoryError
from asr.model.background import read_background
from asr.model.contract import FeatureContract
from asr.model.directory import ModelDirectory, file_sha256
from asr.model.features import Forward, embed
from asr.model.manifest import DomainEntry, Manifest
from asr.model.routing import encode_views, fit_router, read_domains
from asr.router import Router, RouterSettings
from asr.train.adapter import domain_seed
from asr.train.config import INITIALISATIONS
from asr.train.prepare import PreparedDomain

SAMPLE = 64
"""Prompts that decide which domain is nearest: a second of work, and means barely move beyond."""


@dataclass(frozen=True)
class Source:
    """The adapter that a new one starts as a copy of.

    Attributes:
        domain: whose adapter it is.
        sha256: its hash.
        folder: where it lies; a later version does not change it.
    """

    domain: str
    sha256: str
    folder: Path


def check_sources(domains: Sequence[PreparedDomain]) -> None:
    """Check every ``init_from: NAME`` of a run before anything is trained.

    Raises:
        ConfigError: the two differ in placement or rank.
    """
    by_name = {domain.name: domain for domain in domains}
    for domain in domains:
        source = domain.config.adapter.init_from
        if source not in INITIALISATIONS:
            there = by_name[source]
            _require_alike(domain, source, there.placement_record(), there.saved_rank)


def choose_source(
    domain: PreparedDomain,
    base: LoadedBase,
    forward: Forward,
    directory: ModelDirectory,
    manifest: Manifest,
    say: Callable[[str], None],
) -> Source | None:
    """Return what a domain's adapter starts from; None: from scratch. Main process only.

    A training that goes on keeps the source that it began with.

    Args:
        domain: the domain about to be trained.
        base: the loaded base, without active adapters.
        forward: its split forward.
        directory: the model directory.
        manifest: its ledger.
        say: told what was chosen by a rule.

    Raises:
        ConfigError: the source has another placement or rank.
        DirectoryError: the source's file is missing or was changed.
        RouterError: statistics of a domain are missing or damaged.
    """
    entry = manifest.domains[domain.name]
    if entry.status == "training":
        if entry.parent is None or entry.parent_sha256 is None:
            return None
        return adapter_source(directory, manifest, entry.parent, entry.parent_sha256)
    asked = domain.config.adapter.init_from
    if asked == "none":
        return None
    if asked == "nearest":
        if not manifest.routed:
            say(f"{domain.name}: starts from scratch; no domain is there yet to be the nearest")
            return None
        asked = _nearest(domain, base, forward, directory, manifest, say)
    adapter = manifest.domains[asked].adapter
    assert adapter is not None  # an earlier domain is finished, a routed one too
    _require_alike(domain, asked, manifest.domains[asked].placement, adapter.rank)
    return adapter_source(directory, manifest, asked, adapter.sha256)


def mean_scores(
    router: Router,
    examples: Sequence[Example],
    common: CommonPart,
    base: LoadedBase,
    forward: Forward,
    contract: FeatureContract,
    seed: int,
) -> dict[str, float]:
    """Return the mean ridge score of every domain over a seeded sample of distinct prompts.

    All views of a prompt count alike.

    Raises:
        DataError: a prompt cannot be encoded.
    """
    distinct = list({example.prompt_key: example for example in examples}.values())
    sample = random.Random(seed).sample(distinct, min(SAMPLE, len(distinct)))
    prompts = encode_views(sample, common, base, contract)
    pooled = embed(prompts, forward, base.tokenizer.pad_token_id, base.device)
    means = router.scores(pooled).mean(axis=0)  # (K,) from (sample * V, K)
    return {name: float(mean) for name, mean in zip(router.names, means, strict=True)}


def _nearest(
    domain: PreparedDomain,
    base: LoadedBase,
    forward: Forward,
    directory: ModelDirectory,
    manifest: Manifest,
    say: Callable[[str], None],
) -> str:
    assert domain.data is not None
    # Not the stored router: that of a stopped run may lack the settings, or a domain, of this one.
    domains = read_domains(directory, manifest.routed, manifest.contract)
    router = fit_router(
        [*domains, *read_background(directory, manifest)],
        RouterSettings.from_dict(manifest.router),
        manifest.contract,
        base.hidden_size,
    )
    scores = mean_scores(
        router,
        domain.data.train,
        domain.data.common,
        base,
        forward,
        manifest.contract,
        domain_seed(manifest.seed, domain.name),
    )
    ranked = sorted(scores, key=lambda name: (-scores[name], name))
    listing = ", ".join(f"{name} {scores[name]:.2f}" for name in ranked[:3])
    say(f"{domain.name}: starts from '{ranked[0]}', the nearest domain (mean scores: {listing})")
    return ranked[0]


def _require_alike(
    domain: PreparedDomain, source: str, recorded: Mapping[str, object], rank: int
) -> None:
    """``rank`` is the largest of the source's saved adapter, which some variants double."""
    here = domain.placement_record()
    advice = f"give both the same, or set domains.{domain.name}.adapter.init_from to none"
    own = domain.placement.largest_rank(domain.lora.rank)
    if own != rank:
        raise ConfigError(
            f"'{domain.name}' has rank {own} and cannot start from '{source}', whose "
            f"adapter has rank {rank}; {advice}"
        )
    if list(here["modules"]) != recorded.get("modules"):
        raise ConfigError(
            f"'{domain.name}' ({_placed(here)}) cannot start from '{source}' ({_placed(recorded)}):"
            f" their adapters sit on other modules; {advice}"
        )
    ranks = recorded.get("ranks")
    saved = [rank * one // max(ranks) for one in ranks] if isinstance(ranks, list) else None
    if list(domain.placement.ranks_at(own)) != (saved or [rank] * len(domain.placement.modules)):
        raise ConfigError(
            f"'{domain.name}' cannot start from '{source}': their adapters have other ranks on the "
            f"same modules; {advice}"
        )


def _placed(record: Mapping[str, object]) -> str:
    modules = record.get("modules")
    count = len(modules) if isinstance(modules, list) else 0
    return f"placement {record.get('kind')}, {count} module{'' if count == 1 else 's'}"


def adapter_source(directory: ModelDirectory, manifest: Manifest, name: str, sha256: str) -> Source:
    """Return the version of a domain's adapter that has this hash, checked.

    Raises:
        DirectoryError: its files are missing or were changed.
    """
    entry: DomainEntry = manifest.domains[name]
    version = next((made.version for made in entry.versions if made.sha256 == sha256), None)
    weights = None if version is None else directory.adapter_weights(name, version)
    if version is None or weights is None or not weights.is_file():
        raise DirectoryError(
            f"the adapter of '{name}' with sha256 {sha256[:12]}... is gone, and a training started "
            "from it; restore it from a copy"
        )
    if file_sha256(weights) != sha256:
        raise DirectoryError(
            f"{weights} was changed (recorded sha256 {sha256[:12]}...); restore it from a copy"
        )
    return Source(name, sha256, directory.adapter(name, version))
