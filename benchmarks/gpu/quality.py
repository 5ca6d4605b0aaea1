"""Private adapters and the router beside one joint LoRA, at equal tokens, on all domains.

For every seed and learning rate two trainings: ``private``, the sequence of domains as ``asr
train`` makes it (an adapter each, rank 8 on every module behind the router layer, and the router
after the last), and ``joint``, one adapter of the same shape on the same training rows of all
domains in one shuffle. Rows, epochs, batch size, schedule and views are the same, so the tokens
are. Test prompts are answered as they are trained on: routed, with the domain's own adapter, and
with the joint one. Domains, scorers and the lengths of answers are those of
configs/eight_domains.yaml. Nothing is chosen on these scores: every rate is reported.

Trainings run side by side on the one GPU (:mod:`benchmarks.gpu.queue`), seeds outermost, so that a
stop leaves a table whose columns have the same seeds. ``--limit auto`` first measures a few steps
with all processes at work and takes the most examples per domain with which the trainings of all
seeds should fit the time; the file says which.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from asr.base.load import LoadedBase, load_base
from asr.base.resolve import resolve_base
from asr.data.load import load_examples
from asr.data.views import CommonPart
from asr.eval.cache import EvalCache
from asr.eval.evaluate import EvalSet, Evaluator
from asr.eval.matrix import EvalMatrix
from asr.model.opening import make_forward, open_directory
from asr.model.routed_model import RoutedModel
from asr.train.adapter import TrainingResult
from asr.train.check_data import check_data
from asr.train.config import TrainConfig
from asr.train.config_file import build_config
from asr.train.events import Watcher
from asr.train.prepare import PreparedDomain
from asr.train.sequence import train_sequence
from benchmarks.gpu.parts import Part
from benchmarks.gpu.queue import Done, Workers

CONFIG = Path(__file__).parents[2] / "configs" / "eight_domains.yaml"
RATES = (1e-3, 3e-3)
METHODS = ("private", "joint")
JOINT = "joint"

LIMITS = (1000, 800, 600, 400, 300, 200, 120, 60)
"""Examples per domain that ``auto`` chooses from; the first is all there are."""

PILOT_LIMIT, PILOT_STEPS, PILOT_SKIPPED = 200, 40, 15
OVERHEAD = 30.0
"""Seconds of a training that are no steps: reading, router statistics, scoring. A guess."""

MARGIN = 0.8
"""Share of the time that ``auto`` plans with."""

EVALUATION_BATCH = 128


@dataclass(frozen=True)
class Job:
    """One training with its scores."""

    seed: int
    rate: float
    method: str
    limit: int


@dataclass(frozen=True)
class Settings:
    """What every process is told. ``sections``: a domain's files, scorer and longest answer."""

    base: str
    work: str
    sections: dict[str, dict[str, Any]]
    epochs: int
    batch: int
    background: int
    two_pass: bool
    pilot: bool


def add_options(parser: argparse.ArgumentParser) -> None:
    """The part's own options."""
    group = parser.add_argument_group("quality")
    group.add_argument("--seeds", type=int, default=3, help="how many (3)")
    group.add_argument("--rates", type=float, nargs="+", help="learning rates (1e-3 3e-3)")
    group.add_argument("--limit", default="auto", help="examples per domain, or auto (auto)")
    group.add_argument("--tests", type=int, help="test prompts per domain; default: all")
    group.add_argument("--epochs", type=int, default=2)
    group.add_argument("--batch", type=int, default=8)
    group.add_argument("--workers", type=int, default=8, help="trainings side by side (8)")
    group.add_argument(
        "--background", type=int, default=384, help="prompts of the background class (384)"
    )
    group.add_argument(
        "--two-pass", action="store_true", help="for a base that cannot be split on the device"
    )
    group.add_argument("--domains", nargs="+", help="of the config; default: all")


def run(part: Part) -> None:
    """Train and score every combination, within the time."""
    options = part.options
    resolve_base(options.base, part.say)  # converted once, before the processes ask for it
    settings = Settings(
        base=options.base,
        work=str(part.work),
        sections=domain_sections(options),
        epochs=options.epochs,
        batch=options.batch,
        background=options.background,
        two_pass=options.two_pass,
        pilot=options.limit == "auto",
    )
    combinations = [
        (seed, rate, method)
        for seed in range(options.seeds)
        for rate in options.rates
        for method in METHODS
    ]
    workers = Workers(min(options.workers, len(combinations)), start, work, settings)
    until = part.began + part.seconds
    facts: dict[str, Any] = {
        "settings": {**asdict(settings), "workers": len(workers.processes), "views": ["templated"]},
        "combinations": len(combinations),
    }
    try:
        pilot = [seconds for seconds in workers.started(until) if seconds is not None]
        if settings.pilot:
            if not pilot:
                part.save(False, **facts, runs=[])
                return
            step = statistics.median(pilot)
            rows = {
                name: rows_of(Path(section["train"])) for name, section in settings.sections.items()
            }
            limit = choose_limit(
                step, rows, settings, len(combinations), len(workers.processes), part.left * MARGIN
            )
            part.say(f"{step:.3f} s a step with all processes at work: limit {limit}")
            facts["pilot_seconds_per_step"] = round(step, 4)
        else:
            limit = int(options.limit)
        facts["limit"] = limit
        part.save(False, **facts, runs=[])
        jobs = [Job(*combination, limit) for combination in combinations]
        runs: list[dict[str, Any]] = []
        for done in workers.run(jobs, until):
            runs.append(record_of(done))
            part.say(line_of(runs[-1]))
            part.save(len(runs) == len(jobs), **facts, runs=runs, table=table(runs, options.rates))
        for line in table_lines(table(runs, options.rates)):
            part.say(line)
    finally:
        workers.close()


# -- the data ------------------------------------------------------------------------------------


def domain_sections(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Files, scorer and longest answer of the domains: of the config, or of the rehearsal."""
    data = Path(options.data).resolve()
    if options.rehearse:
        found = {
            folder.name: {"scorer": "exact", "max_new_tokens": 4}
            for folder in sorted(data.iterdir())
        }
    else:
        config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
        found = {
            name: {key: section[key] for key in ("scorer", "max_new_tokens")}
            for name, section in config["domains"].items()
        }
    return {
        name: {
            **section,
            "train": str(data / name / "train.jsonl"),
            "test": str(data / name / "test.jsonl"),
            "tests": options.tests,
        }
        for name, section in found.items()
        if options.domains is None or name in options.domains
    }


def rows_of(path: Path) -> int:
    """Lines of a file of examples."""
    return len(path.read_text(encoding="utf-8").splitlines())


def choose_limit(
    step: float,
    rows: Mapping[str, int],
    settings: Settings,
    jobs: int,
    workers: int,
    seconds: float,
) -> int:
    """The most examples per domain with which all jobs should end in ``seconds``.

    A step of decoding is a forward pass, about a third of a training step. Jobs go in waves of
    ``workers``. Where nothing fits, the least of ``LIMITS``.

    Args:
        step: seconds of a training step while all processes work.
        rows: training rows of each domain.
        settings: of the part.
        jobs: trainings in all.
        workers: processes.
        seconds: that are left.
    """
    decoding = 2 * sum(section["max_new_tokens"] for section in settings.sections.values())
    waves = -(-jobs // workers)
    for limit in LIMITS:
        kept = sum(min(limit, count) * 0.85 for count in rows.values())  # without the dev cut
        steps = kept * settings.epochs / settings.batch
        if waves * (OVERHEAD + step * (steps + decoding / 3)) <= seconds:
            return limit
    return LIMITS[-1]


# -- one process ---------------------------------------------------------------------------------


class Measured(Watcher):
    """Keeps what trainings measured, and when their steps ended."""

    def __init__(self) -> None:
        self.results: dict[str, TrainingResult] = {}
        self.steps: list[float] = []

    def step(self, step: int, steps: int, loss: float | None) -> None:
        """A step ended."""
        self.steps.append(time.perf_counter())

    def trained(self, domain: PreparedDomain, result: TrainingResult) -> None:
        """An adapter is published."""
        self.results[domain.name] = result


def start(settings: Settings, wait: Callable[[], None]) -> tuple[Any, float | None]:
    """Load the base; with ``pilot``, also seconds per training step while all processes train."""
    base = load_base(settings.base)
    if not settings.pilot:
        return (settings, base), None
    name = next(iter(settings.sections))
    config = make_config(settings, Job(0, 1e-3, "private", PILOT_LIMIT), [name], PILOT_STEPS)
    folder = Path(settings.work) / f"pilot-{os.getpid()}"
    watcher = Measured()
    wait()
    train_sequence(config, folder, watcher=watcher, base=base)
    shutil.rmtree(folder)
    counted = watcher.steps[min(PILOT_SKIPPED, len(watcher.steps) // 2) :]
    return (settings, base), (counted[-1] - counted[0]) / max(1, len(counted) - 1)


def work(kept: tuple[Settings, LoadedBase], job: Job) -> dict[str, Any]:
    """Train one combination and score it on every domain's test prompts."""
    settings, base = kept
    folder = Path(settings.work) / f"{job.method}-{job.rate:g}-{job.seed}"
    shutil.rmtree(folder, ignore_errors=True)
    watcher, began = Measured(), time.perf_counter()
    names = list(settings.sections)
    config = make_config(settings, job, names)
    if job.method == JOINT:
        config = joint_config(settings, job, config, folder.with_suffix(".data"))
    train_sequence(config, folder, watcher=watcher, base=base)
    trained = time.perf_counter()
    scores = score(settings, base, folder, job.method)
    results = watcher.results.values()
    shutil.rmtree(folder)
    return {
        "train_seconds": round(trained - began, 1),
        "test_seconds": round(time.perf_counter() - trained, 1),
        "steps": sum(result.steps for result in results),
        "tokens": sum(result.tokens for result in results),
        "loss": {name: round(result.loss, 4) for name, result in watcher.results.items()},
        "tokens_per_second": round(statistics.mean(r.tokens_per_second for r in results)),
        "scores": scores,
    }


def make_config(
    settings: Settings, job: Job, names: Sequence[str], steps: int | None = None
) -> TrainConfig:
    """The config of private adapters; ``steps`` ends each early, with next to no router."""
    router: dict[str, Any] = {"background": settings.background, "two_pass": settings.two_pass}
    if steps is not None:
        router |= {"background": 0, "views": ["templated"]}
    return build_config(
        {
            "base": settings.base,
            "seed": job.seed,
            "keep_eval": False,
            "router": router,
            "training": {
                "views": ["templated"],
                "epochs": settings.epochs,
                "batch_size": settings.batch,
                "learning_rate": job.rate,
                "max_length": 512,
                "max_steps": steps,
                "save_steps": 1_000_000,  # nobody goes on from a checkpoint here
            },
            "domains": {
                name: {
                    "train": settings.sections[name]["train"],
                    "scorer": settings.sections[name]["scorer"],
                    "max_new_tokens": settings.sections[name]["max_new_tokens"],
                    "limit": job.limit,
                }
                for name in names
            },
        },
        job.method,
    )


def joint_config(settings: Settings, job: Job, config: TrainConfig, folder: Path) -> TrainConfig:
    """The config of one adapter on the rows that the private ones train on, written to files."""
    folder.mkdir(parents=True, exist_ok=True)
    cut = check_data(config, config.domains)
    files = {}
    for split in ("train", "dev"):
        examples = [each for domain in cut.values() for each in getattr(domain, split)]
        files[split] = folder / f"{split}.jsonl"
        lines = [json.dumps({"messages": list(example.messages)}) for example in examples]
        files[split].write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    raw = config.plain()
    raw["router"] = {"views": ["templated"], "background": 0, "abstain": 0.0}
    raw["router"]["two_pass"] = settings.two_pass
    raw["domains"] = {
        JOINT: {"train": str(files["train"]), "dev": str(files["dev"]), "scorer": "exact"}
    }
    return build_config(raw, job.method)


def score(
    settings: Settings, base: LoadedBase, folder: Path, method: str
) -> dict[str, dict[str, Any]]:
    """Test scores by domain: routed and own, or joint, with 95% intervals over prompts."""
    opened = open_directory(folder)
    manifest = opened.manifest
    forward = make_forward(base, manifest.contract.layer, manifest.two_pass)
    model = RoutedModel(base, manifest, opened.directory, opened.router.router, forward)
    sets = [
        EvalSet(
            name,
            load_examples(section["test"], name=name, limit=section["tests"], minimum=1).examples,
            CommonPart(),
            section["scorer"],
            section["max_new_tokens"],
        )
        for name, section in settings.sections.items()
    ]
    found: dict[str, dict[str, Any]] = {}
    try:
        with opened.directory.lock(), EvalCache(opened.directory.answers) as cache:
            evaluator = Evaluator(model, cache, batch_size=EVALUATION_BATCH)
            if method == JOINT:
                for each in sets:
                    interval = evaluator.forced(each, "templated", JOINT).interval()
                    found[each.domain] = {
                        "n": interval.n,
                        "joint": [interval.mean, interval.low, interval.high],
                    }
                return found
            matrix = EvalMatrix("templated")
            for each in sets[:-1]:
                matrix.add_domain(each.domain, each.scorer)
            evaluator.extend(matrix, sets, opened.router.router)
    finally:
        model.close()
    for place, each in enumerate(sets):
        found[each.domain] = {
            "n": matrix.n[place],
            "routing_accuracy": float(matrix.routing_accuracy[-1, place]),
            "abstained": int(matrix.confusion[place, -1]),
        }
        for which in ("routed", "oracle"):
            mean = float(getattr(matrix, which)[-1, place])
            low, high = getattr(matrix, f"{which}_interval")[-1, place].tolist()
            found[each.domain]["own" if which == "oracle" else which] = [mean, low, high]
    return found


# -- what came of it -----------------------------------------------------------------------------


def record_of(done: Done) -> dict[str, Any]:
    """A job and its result, or its error, as JSON values."""
    found = asdict(done.job)
    return found | (done.result if done.error is None else {"error": done.error})


def line_of(record: Mapping[str, Any]) -> str:
    """One run, for people."""
    name = f"{record['method']} seed {record['seed']} rate {record['rate']:g}"
    if "error" in record:
        return f"{name} FAILED: {record['error'].strip().splitlines()[-1]}"
    means = [
        f"{which} {statistics.mean(s[which][0] for s in record['scores'].values()):.3f}"
        for which in ("routed", "own", "joint")
        if which in next(iter(record["scores"].values()))
    ]
    return (
        f"{name}: {', '.join(means)}; {record['steps']} steps, {record['tokens']} tokens, "
        f"{record['train_seconds']} s, tests {record['test_seconds']} s"
    )


def table(runs: Sequence[Mapping[str, Any]], rates: Sequence[float]) -> list[dict[str, Any]]:
    """Means over seeds for each rate and domain, of the seeds that have both trainings."""
    ended = {(r["rate"], r["seed"], r["method"]): r["scores"] for r in runs if "scores" in r}
    rows = []
    for rate in rates:
        seeds = sorted(
            {
                seed
                for _, seed, _ in ended
                if all((rate, seed, method) in ended for method in METHODS)
            }
        )
        if not seeds:
            continue
        domains = list(ended[rate, seeds[0], "private"])
        for domain in [*domains, "mean"]:
            row: dict[str, Any] = {"rate": rate, "seeds": seeds, "domain": domain}
            for which in ("routed", "own", "joint"):
                method = JOINT if which == JOINT else "private"
                counted = domains if domain == "mean" else [domain]
                by_seed = [
                    statistics.mean(ended[rate, seed, method][each][which][0] for each in counted)
                    for seed in seeds
                ]
                row[which] = round(statistics.mean(by_seed), 4)
                row[f"{which}_by_seed"] = [round(value, 4) for value in by_seed]
            rows.append(row)
    return rows


def table_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table, for people."""
    lines = []
    for row in rows:
        values = "  ".join(f"{which} {row[which]:.3f}" for which in ("routed", "own", "joint"))
        lines.append(
            f"rate {row['rate']:g}  {row['domain']:10}  {values}  ({len(row['seeds'])} seeds)"
        )
    return lines
