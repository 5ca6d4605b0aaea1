"""A domain's share of the router, made from its prompts and kept in one file.

``router/<domain>.safetensors`` holds additive statistics and a calibration block; the router itself
is derived from the files of the domains that are kept, without text and without a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from asr.base.load import LoadedBase
from asr.data.cut import background_cut, calibration_cut
from asr.data.formats import Example
from asr.data.prompt import EncodedPrompt, encode_prompt
from asr.data.views import CommonPart, make_views
from asr.errors import DataError
from asr.model.canaries import TENSOR
from asr.model.contract import FeatureContract
from asr.model.directory import ModelDirectory
from asr.model.features import Forward, embed
from asr.model.stored import contract_metadata, read_domain
from asr.router import (
    CalibrationBlock,
    DomainStatistics,
    FeatureMap,
    Router,
    RouterSettings,
    RoutingDomain,
    save_domain,
    save_router,
)


def feature_map(contract: FeatureContract, hidden_size: int) -> FeatureMap:
    """The contract's feature map."""
    return FeatureMap(hidden_size, contract.expansion.dimension, contract.expansion.seed)


def encode_views(
    examples: Sequence[Example], common: CommonPart, base: LoadedBase, contract: FeatureContract
) -> list[EncodedPrompt]:
    """Encode every view of every distinct prompt: V consecutive entries per prompt.

    Raises:
        DataError: a prompt cannot be encoded; names the example's source.
    """
    encoded: list[EncodedPrompt] = []
    for example in examples:
        views = make_views(example.prompt, common, contract.views)
        for name in contract.views:
            try:
                encoded.append(
                    encode_prompt(
                        views[name],
                        base.tokenizer,
                        base.template,
                        contract.truncation.max_length,
                        shorten=True,
                    )
                )
            except DataError as error:
                raise DataError(f"{example.source} ({name} view): {error}") from error
    return encoded


def fit_domain(
    name: str,
    examples: Sequence[Example],
    common: CommonPart,
    base: LoadedBase,
    forward: Forward,
    contract: FeatureContract,
    progress: Callable[[int], None] | None = None,
    kind: Literal["domain", "background"] = "domain",
) -> RoutingDomain:
    """Embed a domain's training prompts and sum them up.

    Prompts are counted once each, however often they stand in the data. About a fifth of them
    (:func:`asr.data.cut.calibration_cut`) are held out from the statistics for calibration, and
    half of a background's.

    Args:
        name: the domain.
        examples: its training examples (the dev cut is not among them).
        common: what its prompts share.
        base: the loaded base, without active adapters.
        forward: its split forward.
        contract: the feature contract.
        progress: called with the number of prompt views done.
        kind: ``background`` for a class that is never a route.

    Raises:
        DataError: a prompt cannot be encoded.
        RouterError: a feature is not finite.
    """
    distinct = list({example.prompt_key: example for example in examples}.values())
    cut = calibration_cut(distinct) if kind == "domain" else background_cut(distinct)

    def pooled(chosen: Sequence[Example]) -> NDArray[np.float32]:
        prompts = encode_views(chosen, common, base, contract)
        flat = embed(prompts, forward, base.tokenizer.pad_token_id, base.device, progress)
        return flat.reshape(len(chosen), len(contract.views), -1)

    mapped = feature_map(contract, base.hidden_size)
    states = pooled(cut.kept)
    count, views, width = states.shape
    features = mapped(states.reshape(count * views, width)).reshape(count, views, -1)
    statistics = DomainStatistics(mapped.dimension, kind=kind).update(features)
    return RoutingDomain(name, statistics, CalibrationBlock(pooled(cut.held_out), contract.views))


def store_domain(
    directory: ModelDirectory,
    domain: RoutingDomain,
    contract: FeatureContract,
    path: Path | None = None,
) -> None:
    """Write the domain's file atomically, to ``path`` if given.

    Raises:
        StorageError: the file system refused.
    """
    save_domain(
        path or directory.router_statistics(domain.name),
        domain.name,
        domain.statistics,
        domain.calibration,
        contract.hash,
        contract_metadata(contract),
    )


def read_domains(
    directory: ModelDirectory, names: Sequence[str], contract: FeatureContract
) -> list[RoutingDomain]:
    """Read the files of the named domains.

    Raises:
        RouterError: a file is missing or damaged.
        ContractError: it was made under another feature contract.
    """
    domains = []
    for name in names:
        stored = read_domain(directory.router_statistics(name), contract)
        domains.append(RoutingDomain(name, stored.statistics, stored.calibration))
    return domains


def fit_router(
    domains: Sequence[RoutingDomain],
    settings: RouterSettings,
    contract: FeatureContract,
    hidden_size: int,
) -> Router:
    """Solve the router for these domains.

    Raises:
        RouterError: see :meth:`asr.router.Router.fit`.
    """
    return Router.fit(domains, settings, feature_map(contract, hidden_size))


def store_router(
    directory: ModelDirectory,
    router: Router,
    contract: FeatureContract,
    canaries: NDArray[np.float32],
    path: Path | None = None,
) -> None:
    """Write the derived router with the canaries' features atomically, to ``path`` if given.

    Raises:
        StorageError: the file system refused.
    """
    save_router(
        path or directory.router,
        router,
        contract.hash,
        extra_tensors={TENSOR: canaries},
        metadata=contract_metadata(contract),
    )
