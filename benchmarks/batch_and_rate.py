"""Batch size, learning rate and start of LoRA adapters, and one joint LoRA beside them.

    python -m benchmarks.batch_and_rate DATA WORK [--batches 2 8] [--rates 1e-3 3e-3] [--seeds 1]
    python -m benchmarks.batch_and_rate DATA WORK --report

On the four domains of benchmarks.four_domains, adapters of rank 8 on every module behind the router
layer (`deep`), the same rows and epochs, so the same tokens, for all of:

private   an adapter for each domain, from scratch
nearest   the same, but each starts as a copy of the one that the router finds nearest among the
          domains before it (``init_from: nearest``); the first starts from scratch
joint     one adapter for the shuffled rows of all four

Every combination of what, batch and rate is scored on dev. The test sets are scored once per kind
and batch, at the rate with the best mean over the dev sets of the first seed. Seeds are the
outermost loop; everything is kept in WORK/batch-N (see benchmarks.four_domains), and the same
command goes on where it was stopped. ``--report`` prints what is there.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from asr.base.load import load_base
from benchmarks.four_domains import (
    DOMAINS,
    Arm,
    Experiment,
    Record,
    interval_text,
    read_runs,
    write_subset,
)
from benchmarks.interleaved import machine

PRIVATE = Arm("deep", {"rank": 8}, 1e-3)  # named as in benchmarks.placement: the same trainings
NEAREST = Arm("nearest", {"rank": 8, "init_from": "nearest"}, 1e-3)
JOINT = Arm("joint", {"rank": 8}, 1e-3)
KINDS = {"private": PRIVATE, "nearest": NEAREST, "joint": JOINT}

Runs = Mapping[str, Record]


def train(experiment: Experiment, kind: str, rate: float, seed: int, test: bool) -> None:
    """Train and score one combination; what has been done is found, not done again."""
    arm = KINDS[kind]
    if kind == "private":
        for domain in DOMAINS:
            experiment.run(arm, rate, domain, seed, test)
    elif kind == "nearest":
        experiment.run_sequence(arm, rate, list(DOMAINS), seed, test)
    else:
        experiment.run_joint(arm, rate, seed, test)


def records(runs: Runs, kind: str, rate: float, seed: int) -> list[Record] | None:
    """The records of the four domains, or None where one lacks."""
    found = [runs.get(KINDS[kind].key(rate, domain, seed)) for domain in DOMAINS]
    return None if None in found else [record for record in found if record is not None]


def dev_mean(found: Sequence[Record]) -> float:
    """Mean over domains of the mean dev score."""
    return float(np.mean([np.mean(record["dev"]) for record in found]))


def best_rate(runs: Runs, kind: str, rates: Sequence[float], seed: int) -> float | None:
    """The rate with the best dev mean; the smaller of equals. None where nothing is complete."""
    scored = {rate: found for rate in rates if (found := records(runs, kind, rate, seed))}
    return max(sorted(scored), key=lambda rate: dev_mean(scored[rate]), default=None)


def report(folders: Mapping[int, Runs], rates: Sequence[float], seeds: Sequence[int]) -> None:
    """Print dev means of all combinations, then test scores of the chosen rates."""
    print(f"mean dev score of {', '.join(DOMAINS)}\n")
    print("| what | batch | seed | " + " | ".join(f"{rate:.2g}" for rate in rates) + " |")
    print("|---" * (3 + len(rates)) + "|")
    for kind in KINDS:
        for batch, runs in folders.items():
            for seed in seeds:
                cells = [records(runs, kind, rate, seed) for rate in rates]
                if any(cells):
                    row = " | ".join(f"{dev_mean(cell):.3f}" if cell else "" for cell in cells)
                    print(f"| {kind} | {batch} | {seed} | {row} |")
    print("\ntest score at the rate that dev chose, 95% intervals over prompts, all seeds\n")
    print("| what | batch | rate | seeds | " + " | ".join(DOMAINS) + " | mean | minus private |")
    print("|---" * (6 + len(DOMAINS)) + "|")
    for batch, runs in folders.items():
        reference = best_rate(runs, "private", rates, 0)
        for kind in KINDS:
            rate = best_rate(runs, kind, rates, 0)
            if rate is not None and reference is not None:
                _test_row(runs, kind, batch, rate, reference, seeds)


def _test_row(
    runs: Runs, kind: str, batch: int, rate: float, reference: float, seeds: Sequence[int]
) -> None:
    by_domain: dict[str, list[float]] = {domain: [] for domain in DOMAINS}
    gains: list[float] = []
    done = []
    for seed in seeds:
        ours, private = records(runs, kind, rate, seed), records(runs, "private", reference, seed)
        if not ours or not private or not all("test" in r for r in (*ours, *private)):
            continue
        done.append(seed)
        for one, other in zip(ours, private, strict=True):
            by_domain[one["domain"]] += one["test"]
            gains += [a - b for a, b in zip(one["test"], other["test"], strict=True)]
    if done:
        cells = " | ".join(interval_text(values) for values in by_domain.values())
        mean = np.mean([np.mean(values) for values in by_domain.values()])
        gain = "" if kind == "private" else interval_text(gains, signed=True)
        print(f"| {kind} | {batch} | {rate:.2g} | {len(done)} | {cells} | {mean:.3f} | {gain} |")


def main() -> None:
    """Train, score, report."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("data", type=Path, help="folder of <domain>/{train,test}.jsonl")
    parser.add_argument("work", type=Path, help="everything is kept here")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--batches", nargs="+", type=int, default=[2, 8])
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-3, 3e-3])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--train", type=int, default=240)
    parser.add_argument("--dev", type=int, default=60)
    parser.add_argument("--test", type=int, default=60)
    parser.add_argument("--report", action="store_true", help="print what is there, train nothing")
    options = parser.parse_args()
    folders = {batch: options.work / f"batch-{batch}" for batch in options.batches}
    seeds = range(options.seeds)
    if not options.report:
        base = load_base(options.base)
        print(f"{options.base}, {base.note}; {machine()}", flush=True)
        sizes = {split: getattr(options, split) for split in ("train", "dev", "test")}
        for folder in folders.values():
            write_subset(options.data, folder, sizes)
        experiments = {b: Experiment(base, f, options.epochs, b) for b, f in folders.items()}
        for seed in seeds:
            for batch, experiment in experiments.items():
                for kind in options.kinds:
                    for rate in options.rates if seed == 0 else ():
                        train(experiment, kind, rate, seed, test=False)
                    chosen = best_rate(experiment.runs, kind, options.rates, 0)
                    assert chosen is not None, (kind, batch)
                    train(experiment, kind, chosen, seed, test=True)
    report(
        {b: {r["key"]: r for r in read_runs(f)} for b, f in folders.items()}, options.rates, seeds
    )


if __name__ == "__main__":
    main()
