"""How ``asr probe`` shows what it found: the ranking, the domains, and what both mean in words.

ASCII only, and 80 columns are enough: there the peers get a table of their own below the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from asr.adapters.probe.generic_text import TRUST
from asr.adapters.probe.result import DomainProbe, ModuleScore, ProbeResult
from asr.cli.output import counted, seconds

_PLOP_TYPES = 3
"""Module types that PLoP's authors usually adapt, of seven; of few types the lower half."""

_UNBOUNDED = 1000
"""Columns that no table needs."""


def show(result: ProbeResult, console: Console, top: int) -> None:
    """Print the ranking, the domains where there are several, and what it comes to."""
    names = short_names(result)
    rows = list(result.modules[:top])
    settings = result.settings
    scaling = "alpha / sqrt(rank)" if settings.use_rslora else "alpha / rank"
    console.print(
        f"{result.base.name} ({result.base.architecture}), {len(result.modules)} modules, "
        f"{counted(len(result.domains), 'domain')}, {settings.samples} samples x "
        f"{counted(settings.seeds, 'seed')}, rank {settings.rank}, {scaling} = "
        f"{_scale(result):g}, loss on the {settings.loss}, per {settings.per}: "
        f"{seconds(result.seconds)}",
        soft_wrap=True,
    )
    console.print()
    wide = _table(result, rows, names, page=True, peers=True)
    anywhere = console.options.update(width=_UNBOUNDED)
    if Measurement.get(console, anywhere, wide).maximum <= console.width:
        console.print(wide)
    else:
        console.print(_table(result, rows, names, page=True, peers=False))
        console.print()
        console.print(_table(result, rows, names, page=False, peers=True))
    _legend(result, names, len(rows), console)
    if len(result.domains) > 1:
        console.print()
        console.print(_domains(result, names))
    console.print()
    for line in findings(result, names):
        style = "yellow" if line.startswith("warning:") else ""
        console.print(Text(line, style=style), soft_wrap=True)


def short_names(result: ProbeResult) -> dict[str, str]:
    """Return each module's name without what all of them begin with (``model.layers.``)."""
    prefix = common_prefix(result)
    return {module.name: module.name.removeprefix(prefix) for module in result.modules}


def common_prefix(result: ProbeResult) -> str:
    """Return what all full names begin with, up to the number of the layer."""
    first = result.modules[0]
    prefix = first.name.partition(f".{first.layer}.")[0] + "."
    return prefix if all(m.name.startswith(prefix) for m in result.modules) else ""


def findings(result: ProbeResult, names: dict[str, str]) -> Iterator[str]:
    """Yield what the tables come to, a sentence or two each."""
    if result.generic_text:
        yield f"warning: {TRUST}"
    yield _winner(result)
    yield from _noise(result, names)
    yield from _same_winner(result, names)
    yield (
        f"concentration: the winner alone has {_percent(result.top1_share)}; the energy spreads as "
        f"over {result.effective_modules:.1f} equal modules (exp of the entropy), of "
        f"{len(result.modules)}"
    )
    yield from _first_token(result, names)
    yield from _passes(result, names)
    yield from _cost(result)
    yield from _peers(result, names)
    for what in result.left_out:
        yield f"left out: {what}"


def _table(
    result: ProbeResult,
    rows: Sequence[ModuleScore],
    names: dict[str, str],
    *,
    page: bool,
    peers: bool,
) -> Table:
    """Return the ranking with our columns, those of the peers, or both."""
    several = len(result.domains) > 1
    columns: list[tuple[str, bool]] = [("", True), ("module", False)]
    if page:
        columns += [("energy", True), ("share", True), ("+-\nseeds", True)]
        if several:
            columns.append(("+-\ndomains", True))
        columns += [("without\n1st token", True), ("parameters", True)]
    if peers:
        columns += [("PLoP\nalignment", True), ("gradient\n/ parameter", True)]
        columns += [("KappaTune\nrank", True)]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for title, numeric in columns:
        table.add_column(title, justify="right" if numeric else "left", no_wrap=numeric)
    rest = sum(module.energy_without_first for module in result.modules)
    for place, module in enumerate(rows, start=1):
        cells = [str(place), names[module.name]]
        if page:
            cells += [
                f"{module.energy:.3g}",
                _percent(module.share),
                _percent(module.spread_seeds),
                *([_percent(module.spread_domains)] if several else []),
                _percent(module.energy_without_first / rest if rest else None),
                f"{result.parameters(module):,}",
            ]
        if peers:
            cells += [
                "-" if module.alignment is None else f"{module.alignment:.2f}",
                f"{module.gradient_norm:.2e}",
                "-" if module.kappa_rank is None else str(module.kappa_rank),
            ]
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _legend(result: ProbeResult, names: dict[str, str], rows: int, console: Console) -> None:
    parts = []
    prefix = common_prefix(result)
    if prefix:
        parts.append(f"full names begin with {prefix}")
    parts.append(
        f"energy: expected squared gradient of the adapter before its first step; parameters at "
        f"rank {result.settings.rank}"
    )
    hidden = len(result.modules) - rows
    if hidden > 0:
        parts.append(f"{hidden} more rows: --top {len(result.modules)}")
    console.print(Text("; ".join(parts), style="dim"), soft_wrap=True)


def _domains(result: ProbeResult, names: dict[str, str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for title in ("domain", "winner", "share", "+- seeds", "margin", "z", "samples"):
        side = "left" if title in ("domain", "winner") else "right"
        table.add_column(title, justify=side, no_wrap=side == "right")  # type: ignore[arg-type]
    for domain in result.domains:
        cells = [
            domain.name,
            names[domain.winner],
            _percent(domain.share),
            _percent(domain.spread_seeds),
            "-" if domain.margin is None else f"{domain.margin:.2f}x",
            "-" if domain.z is None else f"{domain.z:.1f}",
            f"{domain.samples}{' (all)' if domain.whole else ''}",
        ]
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _winner(result: ProbeResult) -> str:
    best, second = result.winner, result.runner_up
    line = f"winner: {best.name} (layer {best.layer}), {_percent(best.share)} of the energy"
    if second is None:
        return f"{line}; it is the only candidate"
    if result.margin is None:
        return f"{line}; no other module has any"
    paired = "" if result.z is None else f" (paired over samples: z = {result.z:.1f})"
    return f"{line}, {result.margin:.2f} times the runner-up {second.name}{paired}"


def _noise(result: ProbeResult, names: dict[str, str]) -> Iterator[str]:
    if not result.within_noise:
        return
    winners = list(dict.fromkeys(result.winners_by_seed))
    if len(winners) > 1:
        listed = ", ".join(names[name] for name in winners)
        reason = f"the winner changes between seeds ({listed})"
    elif result.z is None and min(domain.samples for domain in result.domains) < 2:
        what = "batches" if result.settings.per == "batch" else "samples"
        reason = f"there are too few {what} to tell"
    elif result.z is None:
        reason = "the samples are all alike, so that there is nothing to judge it by"
    else:
        reason = f"|z| = {abs(result.z):.1f} is below 2"
    whole = all(domain.whole for domain in result.domains)
    remedy = "give more examples" if whole else "raise --samples or --seeds"
    yield f"warning: the top two are within noise: {reason}; {remedy}, or take either"


def _same_winner(result: ProbeResult, names: dict[str, str]) -> Iterator[str]:
    if len(result.domains) < 2:
        return
    if result.same_winner:
        yield f"the winner is the same in all {len(result.domains)} domains"
        return
    by_winner: dict[str, list[DomainProbe]] = {}
    for domain in result.domains:
        by_winner.setdefault(domain.winner, []).append(domain)
    ranked = sorted(by_winner.items(), key=lambda item: -len(item[1]))
    listed = "; ".join(
        f"{names[name]} in {', '.join(domain.name for domain in domains)}"
        for name, domains in ranked
    )
    unsure = [domain.name for domain in result.domains if domain.within_noise]
    noise = f"; within noise in {', '.join(unsure)}" if unsure else ""
    yield f"the winner is not the same in every domain: {listed}{noise}"


def _first_token(result: ProbeResult, names: dict[str, str]) -> Iterator[str]:
    best = max(result.modules, key=lambda module: module.energy_without_first)
    if not best.energy_without_first:
        return
    part = 1 - result.winner.energy_without_first / result.winner.energy
    if best.name == result.winner.name:
        yield "without the first token the winner is the same"
    else:
        yield (
            f"without the first token (massive activations live there) {names[best.name]} leads: "
            f"{_percent(max(0.0, part))} of the winner's energy comes from that token"
        )


def _passes(result: ProbeResult, names: dict[str, str]) -> Iterator[str]:
    layer = result.base.router_layer
    if layer is None:
        yield "the base is too shallow to route in: a router needs at least 3 layers"
        return
    best = result.ranking(layer)[0]
    if best.name == result.winner.name:
        yield (
            f"one pass: {names[best.name]} lies at or above the default router layer {layer}, so "
            "that routing takes one pass with it; unrestricted it is the winner too"
        )
        return
    others = result.ranking(layer)[1:]
    ahead = ""
    if others and others[0].energy > 0:
        ratio = best.energy / others[0].energy
        ahead = f", {ratio:.2f} times {names[others[0].name]}"
    yield (
        f"one pass: of layers >= {layer} (the default router layer) {names[best.name]} leads with "
        f"{_percent(best.share)}{ahead}; unrestricted {names[result.winner.name]} wins with "
        f"{_percent(result.winner.share)}, which would take two passes"
    )


def _cost(result: ProbeResult) -> Iterator[str]:
    rank, layer = result.settings.rank, result.base.router_layer or 0
    best = result.ranking(layer)[0]
    deep = sum(result.parameters(module) for module in result.ranking(layer))
    own = result.parameters(best)
    yield (
        f"parameters: {own:,} on that module at rank {rank}, {own / deep:.1%} of the {deep:,} of "
        f"all modules of layers >= {layer}"
    )


def _peers(result: ProbeResult, names: dict[str, str]) -> Iterator[str]:
    """Say where each peer would go instead, and what PAGE thinks of it."""
    best = result.winner
    types = result.type_alignments()
    if types:
        chosen = dict(list(types.items())[: min(_PLOP_TYPES, (len(types) + 1) // 2)])
        listed = ", ".join(f"{kind} {score:.2f}" for kind, score in chosen.items())
        own = types.get(best.kind)
        verdict = "agrees with" if best.kind in chosen else "disagrees with"
        mean = "" if own is None or best.kind in chosen else f" ({best.kind}: {own:.2f})"
        yield (
            f"PLoP would adapt the module types of the lowest mean alignment in every layer: "
            f"{listed}; that {verdict} PAGE on the type{mean}"
        )
    steepest = max(result.modules, key=lambda module: module.gradient_norm)
    yield (
        f"gradient norm per parameter would take the highest, {names[steepest.name]}: "
        f"{_placed(result, steepest)}"
    )
    ranked = [module for module in result.modules if module.kappa_rank is not None]
    if ranked:
        first = min(ranked, key=lambda module: module.kappa_rank or 0)
        yield (
            f"KappaTune would begin at the lowest condition number, {names[first.name]}: "
            f"{_placed(result, first)}"
        )


def _placed(result: ProbeResult, module: ModuleScore) -> str:
    place = result.position(module.name)
    if place == 1:
        return "PAGE agrees"
    return f"PAGE ranks it {place} of {len(result.modules)} ({_percent(module.share)})"


def _scale(result: ProbeResult) -> float:
    settings = result.settings
    root = settings.rank**0.5 if settings.use_rslora else settings.rank
    return float(settings.alpha / root)


def _percent(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f}%" if value >= 0.0005 or value == 0 else "<0.1%"
