"""From energies of samples to a ranking, and how sure it is.

Notation: n samples (or batches) of a domain, m modules, S seeds, D domains.

A domain's energy is the mean over the samples of a seed, then over seeds. Its share of each module
is that energy over the sum of all modules'; the shares of several domains are averaged, so that
each weighs the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from asr.adapters.placement import LinearModule
from asr.adapters.probe.result import (
    DomainProbe,
    ModuleScore,
    ProbedBase,
    ProbeResult,
    ProbeSettings,
    is_noise,
)
from asr.errors import DataError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MeasuredDomain:
    """What was measured on one domain.

    Attributes:
        name: the domain.
        source: where its examples came from.
        examples: how many it has.
        whole: every row of it was taken.
        energy: (n, m) gradient energy of each sample.
        without_first: (n, m) the same without the first token.
        gradient: (n, m) squared norm of the weight's gradient.
        draws: of each seed, its samples as rows of the arrays above.
        alignment: (m,) PLoP's score; None where there is none, or all of them left out.
    """

    name: str
    source: str
    examples: int
    whole: bool
    energy: Floats
    without_first: Floats
    gradient: Floats
    draws: tuple[tuple[int, ...], ...]
    alignment: Sequence[float | None] | None = None


def summarise(
    modules: Sequence[LinearModule],
    domains: Sequence[MeasuredDomain],
    kappa_ranks: Sequence[int | None] | None,
    *,
    base: ProbedBase,
    settings: ProbeSettings,
    generic_text: bool,
    left_out: Sequence[str] = (),
    seconds: float = 0.0,
) -> ProbeResult:
    """Return the result of a probe.

    Raises:
        DataError: a domain whose gradients are all zero.
    """
    means = [_seed_means(domain.energy, domain.draws) for domain in domains]  # D x (S, m)
    totals = [_total(domain, mean) for domain, mean in zip(domains, means, strict=True)]
    by_domain = np.stack(
        [mean.mean(axis=0) / total for mean, total in zip(means, totals, strict=True)]
    )  # (D, m) shares
    share = by_domain.mean(axis=0)  # (m,)
    scale = float(np.mean(totals))  # energies of all domains are brought to this total
    seed_shares = [mean / mean.sum(axis=1, keepdims=True) for mean in means]  # D x (S, m)

    def weighted(arrays: list[Floats]) -> Floats:
        """Mean over the domains, (m,), each on the scale of ``energy``."""
        pairs = zip(domains, arrays, totals, strict=True)
        means = [
            _seed_means(array, d.draws).mean(axis=0) * scale / total for d, array, total in pairs
        ]
        return np.asarray(np.stack(means).mean(axis=0))

    without_first = weighted([domain.without_first for domain in domains])  # (m,)
    gradient = weighted([domain.gradient for domain in domains])  # (m,)
    spreads = [_spread(shares) for shares in seed_shares]
    known = [spread for spread in spreads if spread is not None]
    spread_seeds = np.sqrt(np.mean(np.square(known), axis=0)) if known else None
    spread_domains = _spread(by_domain)
    alignment = _alignments(domains, len(modules))
    kinds = module_kinds(modules)
    order = [int(index) for index in np.argsort(-share, kind="stable")]
    ranked = tuple(
        ModuleScore(
            name=modules[i].name,
            layer=modules[i].layer,
            kind=kinds[i],
            in_features=modules[i].in_features,
            out_features=modules[i].out_features,
            transposed=modules[i].transposed,
            energy=float(share[i] * scale),
            energy_without_first=float(without_first[i]),
            share=min(1.0, float(share[i])),
            spread_seeds=None if spread_seeds is None else float(spread_seeds[i]),
            spread_domains=None if spread_domains is None else float(spread_domains[i]),
            gradient_norm=math.sqrt(
                gradient[i] / (modules[i].in_features * modules[i].out_features)
            ),
            alignment=alignment[i],
            kappa_rank=None if kappa_ranks is None else kappa_ranks[i],
        )
        for i in order
    )
    probes = tuple(
        _domain_probe(modules, domain, shares, spread)
        for domain, shares, spread in zip(domains, by_domain, spreads, strict=True)
    )
    longest = max(len(shares) for shares in seed_shares)
    winners = tuple(
        modules[int(np.mean([s[min(k, len(s) - 1)] for s in seed_shares], axis=0).argmax())].name
        for k in range(longest)
    )
    z = _joint_z(domains, totals, order)
    positive = share[share > 0]
    return ProbeResult(
        base=base,
        settings=settings,
        modules=ranked,
        domains=probes,
        margin=_ratio(share, order),
        z=z,
        winners_by_seed=winners,
        top1_share=ranked[0].share,
        effective_modules=float(np.exp(-np.sum(positive * np.log(positive)))),
        same_winner=len({probe.winner for probe in probes}) == 1,
        within_noise=len(modules) > 1 and is_noise(z, winners),
        generic_text=generic_text,
        left_out=tuple(left_out),
        seconds=seconds,
    )


def module_kinds(modules: Sequence[LinearModule]) -> list[str]:
    """Return the type of each module: its last name, or more where a layer has two such names.

    ``down_proj``; but ``attn.c_proj`` and ``mlp.c_proj``.
    """
    seen: set[tuple[int, str]] = set()
    twice: set[str] = set()
    for module in modules:
        if (module.layer, module.kind) in seen:
            twice.add(module.kind)
        seen.add((module.layer, module.kind))
    kinds = []
    for module in modules:
        inside = module.name.partition(f".{module.layer}.")[2] or module.name
        kinds.append(inside if module.kind in twice else module.kind)
    return kinds


def _seed_means(values: Floats, draws: Sequence[Sequence[int]]) -> Floats:
    """(S, m) means over each seed's samples."""
    return np.stack([values[list(draw)].mean(axis=0) for draw in draws])


def _total(domain: MeasuredDomain, means: Floats) -> float:
    if not means.sum(axis=1).all():
        raise DataError(
            f"{domain.name}: every gradient is zero, so that no module can be told from another; "
            "the base answers these examples with certainty, or does not read them"
        )
    return float(means.mean(axis=0).sum())


def _spread(shares: Floats) -> Floats | None:
    """(m,) standard deviation over the rows; None of a single one."""
    return None if len(shares) < 2 else np.asarray(shares.std(axis=0, ddof=1), dtype=np.float64)


def _alignments(domains: Sequence[MeasuredDomain], count: int) -> list[float | None]:
    """Mean over the domains that have a score."""
    result: list[float | None] = []
    for place in range(count):
        found = [d.alignment[place] for d in domains if d.alignment is not None]
        scores = [score for score in found if score is not None]
        result.append(math.fsum(scores) / len(scores) if scores else None)
    return result


def _ratio(values: Floats, order: Sequence[int]) -> float | None:
    if len(order) < 2 or not values[order[1]] > 0:
        return None
    return float(values[order[0]] / values[order[1]])


def _domain_probe(
    modules: Sequence[LinearModule],
    domain: MeasuredDomain,
    shares: Floats,
    spread: Floats | None,
) -> DomainProbe:
    order = [int(index) for index in np.argsort(-shares, kind="stable")]
    best = order[0]
    first_out = _seed_means(domain.without_first, domain.draws).mean(axis=0)
    by_seed = _seed_means(domain.energy, domain.draws).argmax(axis=1)
    return DomainProbe(
        name=domain.name,
        source=domain.source,
        examples=domain.examples,
        samples=len(domain.energy),
        whole=domain.whole,
        winner=modules[best].name,
        runner_up=modules[order[1]].name if len(order) > 1 else None,
        share=min(1.0, float(shares[best])),
        spread_seeds=None if spread is None else float(spread[best]),
        margin=_ratio(shares, order),
        z=_joint_z([domain], [1.0], order),
        winner_without_first=modules[int(first_out.argmax())].name,
        winners_by_seed=tuple(modules[int(index)].name for index in by_seed),
    )


def _joint_z(
    domains: Sequence[MeasuredDomain], totals: Sequence[float], order: Sequence[int]
) -> float | None:
    """Mean paired difference of the first two modules over its standard error.

    Every domain weighs the same, and counts each of its different samples once. None where a
    domain has fewer than two, or nothing varies.
    """
    if len(order) < 2:
        return None
    mean, variance = 0.0, 0.0
    for domain, total in zip(domains, totals, strict=True):
        lead = (domain.energy[:, order[0]] - domain.energy[:, order[1]]) / total  # (n,)
        if len(lead) < 2:
            return None
        mean += float(lead.mean())
        variance += float(lead.var(ddof=1)) / len(lead)
    return mean / math.sqrt(variance) if variance > 0 else None
