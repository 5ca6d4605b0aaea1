"""What does it cost an adapter to begin higher up? The same trainings, from layer L up.

    python -m benchmarks.router_layer WORK --data DATA [--layers 2 6 8 12] [--rate 3e-3]
    python -m benchmarks.router_layer WORK --report

A router that reads deeper layers is better, and adapters sit above it. Four real domains, trained
and scored as in :mod:`benchmarks.placement` (its ``deep`` arm is the router layer of the base's
default, 4 of 30), so a WORK of that benchmark serves as the beginning of this one: its ``deep`` is
not trained again. All arms run at one rate, the best of ``deep`` (a choice in favour of ``deep``).
Dev scores are for choosing; ``--report`` prints dev and test, paired differences over prompts.
"""

from __future__ import annotations

import numpy as np

from asr.adapters import linear_modules
from asr.base.load import LoadedBase, load_base
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


def from_layer(base: LoadedBase, layer: int, rate: float) -> Arm:
    """Rank 8 on every linear module of the layers from ``layer`` up."""
    names = [module.name for module in linear_modules(base.model) if module.layer >= layer]
    return Arm(f"from {layer}", {"placement": {"modules": names}, "rank": 8}, rate)


def report(runs: list[Record], rate: float) -> None:
    """Print dev and test scores of every arm at a rate, and differences from ``deep``."""
    cells = {(run["arm"], run["domain"]): run for run in runs if run["rate"] == rate}
    names = [name for name in dict.fromkeys(arm for arm, _ in cells) if name.startswith("from ")]
    print("| adapters | split | " + " | ".join(DOMAINS) + " | mean | minus deep |")
    print("|---" * (len(DOMAINS) + 4) + "|")
    for split in ("dev", "test"):
        for name in ["deep", *sorted(names, key=lambda name: int(name.split()[1]))]:
            found = [
                domain
                for domain in DOMAINS
                if split in cells.get((name, domain), {})
                and split in cells.get(("deep", domain), {})
            ]
            row = [
                interval_text(cells[name, domain][split]) if domain in found else ""
                for domain in DOMAINS
            ]
            if not found:
                continue
            own = np.concatenate([cells[name, domain][split] for domain in found])
            deep = np.concatenate([cells["deep", domain][split] for domain in found])
            difference = "" if name == "deep" else interval_text(own - deep, signed=True)
            print(f"| {name} | {split} | {' | '.join(row)} | {own.mean():.3f} | {difference} |")


def main() -> None:
    """Train, score, report."""
    parser = experiment_parser(str(__doc__))
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 12])
    parser.add_argument("--rate", type=float, default=3e-3)
    options = parse_options(parser)
    if options.report:
        report(read_runs(options.work), options.rate)
        return
    base = load_base(options.base)
    print(f"{options.base}, {base.note}; {machine()}", flush=True)
    sizes = {split: getattr(options, split) for split in ("train", "dev", "test")}
    write_subset(options.data, options.work, sizes)
    experiment = Experiment(base, options.work, epochs=2, batch_size=2)
    arms = [Arm("deep", {"rank": 8}, options.rate)]
    arms += [from_layer(base, layer, options.rate) for layer in options.layers]
    for domain in DOMAINS:  # outermost: stopped at any time, every arm has seen the same domains
        for arm in arms:
            experiment.run(arm, options.rate, domain, 0, test=True)
    report(list(experiment.runs.values()), options.rate)


if __name__ == "__main__":
    main()
