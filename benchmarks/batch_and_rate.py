"""Batch size, learning rate and start of LoRA adapters, and one joint LoRA beside them.

    python -m benchmarks.batch_and_rate WORK --data DATA [--batches 2 8] [--rates 1e-3 3e-3]
    python -m benchmarks.batch_and_rate WORK --report

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

from collections.abc import Mapping, Sequence

import numpy as np

from asr.base.load import load_base
from benchmarks.four_domains import (
    DOMAINS,
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


def records(
    runs: Runs, kind: str, rate: float, seed: int, split: str = "dev"
) -> list[Record] | None:
    """The records of the four domains, or None where one lacks, or its scores do."""
    found = [runs.get(KINDS[kind].key(rate, domain, seed), {}) for domain in DOMAINS]
    return found if all(split in record for record in found) else None


def dev_mean(found: Sequence[Record]) -> float:
    """Mean over domains of the mean dev score."""
    return float(np.mean([np.mean(record["dev"]) for record in found]))


def best_rate(runs: Runs, kind: str, rates: Sequence[float], seed: int) -> float | None:
    """The rate with the best dev mean; the smaller of equals. None where nothing is complete."""
    scored = {rate: found for rate in rates if (found := records(runs, kind, rate, seed))}
    return max(sorted(scored), key=lambda rate: dev_mean(scored[rate]), default=None)


def report(folders: Mapping[int, Runs], rates: Sequence[float], seeds: Sequence[int]) -> None:
    """Print dev scores of every combination, and test scores at the rates that dev chose.

    Differences are paired over prompts, from private adapters of the first batch size at the rate
    that dev chose.
    """
    first = next(iter(folders))
    chosen = best_rate(folders[first], "private", rates, 0)
    if chosen is None:
        raise SystemExit("no private adapters yet, from which the others could differ")
    print(f"minus: from private, batch {first}, rate {chosen:.2g}; 95% intervals over prompts\n")
    for split in ("dev", "test"):
        print(f"| {split} | batch | rate | seeds | " + " | ".join(DOMAINS) + " | mean | minus |")
        print("|---" * (6 + len(DOMAINS)) + "|")
        for kind in KINDS:
            for batch, runs in folders.items():
                best = best_rate(runs, kind, rates, 0)
                for rate in rates if split == "dev" else [rate for rate in rates if rate == best]:
                    pairs = [
                        (ours, reference)
                        for seed in seeds
                        if (ours := records(runs, kind, rate, seed, split))
                        and (reference := records(folders[first], "private", chosen, seed, split))
                    ]
                    if pairs:
                        itself = (kind, batch, rate) == ("private", first, chosen)
                        print(f"| {kind} | {batch} | {rate:.2g} {_row(pairs, split, itself)}")
        print()


def _row(pairs: Sequence[tuple[list[Record], list[Record]]], split: str, itself: bool) -> str:
    by_domain: dict[str, list[float]] = {domain: [] for domain in DOMAINS}
    gains: list[float] = []
    for ours, reference in pairs:
        for one, other in zip(ours, reference, strict=True):
            by_domain[one["domain"]] += one[split]
            gains += [a - b for a, b in zip(one[split], other[split], strict=True)]
    cells = " | ".join(interval_text(values) for values in by_domain.values())
    mean = np.mean([np.mean(values) for values in by_domain.values()])
    gain = "" if itself else interval_text(gains, signed=True)
    return f"| {len(pairs)} | {cells} | {mean:.3f} | {gain} |"


def main() -> None:
    """Train, score, report."""
    parser = experiment_parser(str(__doc__))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--batches", nargs="+", type=int, default=[2, 8])
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-3, 3e-3])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    options = parse_options(parser)
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
