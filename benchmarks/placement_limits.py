"""What does one module lack: rank, steps, or other modules?

    python -m benchmarks.placement_limits WORK --data DATA --probe probe/probe.json
    python -m benchmarks.placement_limits WORK --report

From the single dominant module at rank 16 and 2 epochs, one thing is raised at a time: its rank, up
to its width; the epochs, and with them the steps; the number of modules, the strongest of the probe
from the router layer up, rank 16 each. Every setting is trained with each of ``--rates`` on one
domain of benchmarks.four_domains, and scored on dev and test; the table shows the rate that dev
chose. `deep` stands beside it, at the same epochs. ``alpha`` is twice the rank throughout. WORK
keeps what is done; the same command goes on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from asr.adapters.probe.result import ProbeResult
from asr.base.layers import default_router_layer
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

EPOCHS = 2
RANK = 16
DEEP = Arm("deep", {"rank": 8}, 3e-3)
"""Beside it at the same epochs, at its best rate of benchmarks.placement."""


def settings(
    modules: list[str], ranks: list[int], epochs: list[int], counts: list[int]
) -> list[tuple[Arm, int]]:
    """Return every setting with its epochs; the first is the one that the others start from.

    An arm with a rate of its own (`deep`) is trained with that one alone.
    """

    def arm(count: int, rank: int) -> Arm:
        adapter: dict[str, Any] = {"placement": {"modules": modules[:count]}}
        name = f"{count} module{'s' if count > 1 else ''} r{rank}"
        return Arm(name, {**adapter, "rank": rank, "alpha": 2 * rank}, 0.0)

    return [
        (arm(1, RANK), EPOCHS),
        *((arm(1, rank), EPOCHS) for rank in ranks),
        *((arm(1, RANK), more) for more in epochs),
        *((arm(count, RANK), EPOCHS) for count in counts),
        *((DEEP, passes) for passes in (EPOCHS, *epochs)),
    ]


def report(runs: dict[int, list[Record]]) -> None:
    """Print each setting at the rate with the best dev score."""
    print("| setting | epochs | rate | dev | test |\n|---|---|---|---|---|")
    for epochs, records in sorted(runs.items()):
        for name in dict.fromkeys(record["arm"] for record in records):
            own = sorted((r for r in records if r["arm"] == name), key=lambda r: r["rate"])
            best = max(own, key=lambda record: float(np.mean(record["dev"])))
            print(
                f"| {name} | {epochs} | {best['rate']:.2g} | {np.mean(best['dev']):.3f} "
                f"| {interval_text(best['test'])} |"
            )


def main() -> None:
    """Train, score, report."""
    parser = experiment_parser(str(__doc__))
    parser.add_argument("--probe", type=Path, help="probe.json of asr probe on the same domains")
    parser.add_argument("--domain", choices=DOMAINS, default="banking77")
    parser.add_argument("--ranks", nargs="*", type=int, default=[125, 576])
    parser.add_argument("--epochs", nargs="*", type=int, default=[6])
    parser.add_argument("--modules", nargs="*", type=int, default=[4, 16])
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-2, 3e-2])
    parser.add_argument("--batch-size", type=int, default=2)
    options = parse_options(parser)
    folders = {epochs: options.work / f"epochs-{epochs}" for epochs in (EPOCHS, *options.epochs)}
    if not options.report:
        if options.probe is None:
            parser.error("--probe is needed to know which modules are the strongest")
        base = load_base(options.base)
        print(f"{options.base}, {base.note}; {machine()}", flush=True)
        sizes = {split: getattr(options, split) for split in ("train", "dev", "test")}
        experiments = {}
        for epochs, folder in folders.items():
            write_subset(options.data, folder, sizes)
            experiments[epochs] = Experiment(base, folder, epochs, options.batch_size)
        layer = default_router_layer(base.n_layers)
        modules = [score.name for score in ProbeResult.load(options.probe).ranking(layer)]
        for arm, epochs in settings(modules, options.ranks, options.epochs, options.modules):
            for rate in [arm.rate] if arm.rate else options.rates:
                experiments[epochs].run(arm, rate, options.domain, seed=0, test=True)
    report({epochs: read_runs(folder) for epochs, folder in folders.items()})


if __name__ == "__main__":
    main()
