"""Where should the adapter sit? Placements trained alike, scored alike, each at its own best rate.

    python -m benchmarks.placement WORK --data DATA [--probe probe/probe.json] [--seeds 1]
    python -m benchmarks.placement WORK --report [--against deep]

Four real domains (DATA/<domain>/{train,test}.jsonl), 240 training, 60 dev and 60 test examples of
each, the first of a seeded shuffle. Every placement is trained on every domain with the same rows,
order, epochs and batch. Its learning rate is chosen on the dev examples of one domain (wikisql)
with the first seed, from a grid of factor 3 around the rule's rate that is extended until the best
rate is not at its edge. The other domains and seeds take that rate. Test examples are scored once,
with the chosen rate. Seeds are the outermost loop: stopped at any time, what is there is a fair
table.

Everything lies in WORK: ``runs.jsonl`` has one line per finished training, and the same command
goes on where it was stopped. ``--report`` prints the table of what is there: test scores with 95%
intervals, and paired differences from ``deep``, or from another placement, over the same prompts
(bootstrap).

PAGE's and PLoP's choices come from ``probe.json`` (``asr probe`` on the training rows); placements
that need it are left out without it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asr.adapters import linear_modules
from asr.adapters.probe.result import ProbeResult
from asr.base.layers import default_router_layer
from asr.base.load import LoadedBase, load_base
from benchmarks.four_domains import (
    DOMAINS,
    TUNING_DOMAIN,
    Arm,
    Experiment,
    Record,
    experiment_parser,
    interval_text,
    parse_options,
    read_runs,
    write_subset,
)
from benchmarks.interleaved import machine

STEP = 3.0
"""Factor between neighbouring learning rates of the grid."""

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
PLOP_TYPES = 3


def arms(base: LoadedBase, probe: Path | None, rank: int) -> list[Arm]:
    """Return the placements; those that need a probe only with one.

    ``deep r1`` and ``dominant r125`` have about as many parameters as each other.
    """
    layer = default_router_layer(base.n_layers)
    candidates = [m for m in linear_modules(base.model) if m.layer >= layer]
    attention = [m.name for m in candidates if m.kind in ATTENTION]

    def one(name: str, rank: int = rank) -> dict[str, Any]:
        return {"placement": {"modules": [name]}, "rank": rank, "alpha": 2 * rank}

    chosen = [
        Arm("deep", {"rank": 8}, 3e-3),
        Arm("attention", {"placement": {"modules": attention}, "rank": 8}, 3e-3),
        Arm("deep r1", {"rank": 1, "alpha": 2}, 9e-3),
    ]
    if probe is not None:
        result = ProbeResult.load(probe)
        ranked = result.ranking(layer)
        best, second = ranked[0], ranked[1]
        equal = round(_deep_parameters(candidates) / best.parameters(1))
        stranger = random.Random(0).choice(ranked[2:])
        kinds: dict[str, list[float]] = {}
        for score in result.modules:
            kinds.setdefault(score.kind, []).append(score.alignment)
        lowest = sorted(kinds, key=lambda kind: float(np.mean(kinds[kind])))[:PLOP_TYPES]
        plop = [m.name for m in candidates if m.kind in lowest]
        chosen[1:1] = [
            Arm("dominant", one(best.name), 3e-2),
            Arm("runner-up", one(second.name), 3e-2),
            Arm("random module", one(stranger.name), 3e-2),
            Arm("PLoP", {"placement": {"modules": plop}, "rank": 8}, 3e-3),
            Arm(f"dominant r{equal}", one(best.name, equal), 1e-2),
        ]
    return chosen


def _deep_parameters(candidates: Iterable[Any]) -> int:
    return sum(module.lora_parameters(1) for module in candidates)


def best_rate(experiment: Experiment, arm: Arm, seed: int) -> float:
    """Search the grid on dev until the best rate has a neighbour on both sides."""
    scores: dict[int, float] = {}

    def score(place: int) -> None:
        rate = arm.rate * STEP**place
        record = experiment.run(arm, rate, TUNING_DOMAIN, seed, test=False)
        scores[place] = float(np.mean(record["dev"]))

    for place in (0, -1, 1):
        score(place)
    while True:
        best = max(scores, key=lambda place: (scores[place], -abs(place)))
        if best == min(scores):
            score(best - 1)
        elif best == max(scores):
            score(best + 1)
        else:
            return arm.rate * STEP**best


def report(runs: Sequence[Record], against: str = "deep") -> None:
    """Print test scores and paired differences from one placement; only rates that were chosen."""
    chosen = [run for run in runs if "test" in run]
    seeds = sorted({run["seed"] for run in chosen})
    names = list(dict.fromkeys(run["arm"] for run in chosen))
    cells = {(r["arm"], r["domain"], r["seed"]): r for r in chosen}
    print(f"seeds {seeds}; test exact match, 95% intervals over prompts\n")
    print("| placement | rate | " + " | ".join(DOMAINS) + f" | mean | minus {against} | tokens/s |")
    print("|---" * (len(DOMAINS) + 5) + "|")
    for name in names:
        own = [run for run in chosen if run["arm"] == name]
        row = []
        for domain in DOMAINS:
            values = [v for s in seeds for v in cells.get((name, domain, s), {}).get("test", [])]
            row.append(interval_text(values) if values else "")
        both = [
            (cells[name, d, s]["test"], cells[against, d, s]["test"])
            for d in DOMAINS
            for s in seeds
            if (name, d, s) in cells and (against, d, s) in cells
        ]
        ours = np.array([v for pair in both for v in pair[0]])
        gain = ours - np.array([v for pair in both for v in pair[1]])
        difference = "" if name == against or not both else interval_text(gain, signed=True)
        speed = np.median([run["tokens_per_second"] for run in own])
        mean = f"{ours.mean():.3f}" if both else ""
        print(
            f"| {name} | {own[0]['rate']:.2g} | {' | '.join(row)} | {mean} | {difference} "
            f"| {speed:.0f} |"
        )


def main() -> None:
    """Search rates, train, score, report."""
    parser = experiment_parser(str(__doc__))
    parser.add_argument("--probe", type=Path, help="probe.json of asr probe on the same domains")
    parser.add_argument("--rank", type=int, default=16, help="of the single modules")
    parser.add_argument("--arms", nargs="+", help="only these placements")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--against", default="deep", help="differences from this placement")
    options = parse_options(parser)
    if options.report:
        report(read_runs(options.work), options.against)
        return
    base = load_base(options.base)
    print(f"{options.base}, {base.note}; {machine()}", flush=True)
    chosen = arms(base, options.probe, options.rank)
    if options.arms:
        chosen = [arm for arm in chosen if arm.name in options.arms]
    sizes = {split: getattr(options, split) for split in ("train", "dev", "test")}
    write_subset(options.data, options.work, sizes)
    experiment = Experiment(base, options.work, options.epochs, options.batch_size)
    rates = {arm.name: best_rate(experiment, arm, seed=0) for arm in chosen}
    for seed in range(options.seeds):
        for arm in chosen:
            for domain in DOMAINS:
                experiment.run(arm, rates[arm.name], domain, seed, test=True)
    report(list(experiment.runs.values()))


if __name__ == "__main__":
    main()
