"""Trainings on four real domains, each done once: what the comparisons of defaults have in common.

The subset: wikisql, banking77, pubmedqa and arc_easy, of each the first training, dev and test rows
of a seeded shuffle (DATA/<domain>/{train,test}.jsonl). Everything lies in a folder WORK:

```
WORK/
  data/<domain>.<split>.jsonl   the subset
  models/                       directories of trainings under way, or that still lack test scores
  runs.jsonl                    one line per adapter and domain it was scored on; a later line of a
                                key replaces it
```

What was measured for the docs lies in benchmarks/results, a WORK each: ``--report`` reads it, and a
copy of it can be gone on from.

Scores are 0 or 1 per prompt, with the adapter forced, so that they show the adapter and not the
router. Records keep them all: comparisons are paired over prompts.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asr.base.load import LoadedBase
from asr.data.load import load_examples
from asr.data.views import CommonPart
from asr.eval.cache import EvalCache
from asr.eval.evaluate import EvalSet, Evaluator
from asr.eval.intervals import mean_interval
from asr.model.opening import make_forward, open_directory
from asr.model.routed_model import RoutedModel
from asr.train.adapter import TrainingResult
from asr.train.config_file import build_config
from asr.train.events import Watcher
from asr.train.prepare import PreparedDomain
from asr.train.sequence import train_sequence

DOMAINS = {  # scorer, longest answer
    "wikisql": ("sql", 48),
    "banking77": ("label", 24),
    "pubmedqa": ("label", 4),
    "arc_easy": ("label", 24),
}
TUNING_DOMAIN = "wikisql"
"""Its dev set chooses a learning rate where only one domain is trained for the choice."""

JOINT = "joint"
"""The name of a domain that holds the training rows of all four."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """What is compared: its ``adapter`` section, and where the search for its rate begins."""

    name: str
    adapter: Mapping[str, Any]
    rate: float

    def key(self, rate: float, domain: str, seed: int) -> str:
        """The key of a record."""
        return f"{self.name} {rate:.3g} {domain} seed {seed}"


def experiment_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the arguments that every comparison has."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("work", type=Path, help="everything is kept here")
    parser.add_argument("--data", type=Path, help="folder of <domain>/{train,test}.jsonl")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--train", type=int, default=240, help="rows of each domain (240)")
    parser.add_argument("--dev", type=int, default=60)
    parser.add_argument("--test", type=int, default=60)
    parser.add_argument("--report", action="store_true", help="print what is there, train nothing")
    return parser


def parse_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line; training needs data."""
    options = parser.parse_args()
    if not options.report and options.data is None:
        parser.error("--data is needed, the folder of <domain>/{train,test}.jsonl")
    return options


def write_subset(data: Path, work: Path, sizes: Mapping[str, int]) -> None:
    """Write WORK/data: the first rows of a seeded shuffle, and the four domains' rows together."""
    (work / "data").mkdir(parents=True, exist_ok=True)
    together: dict[str, list[str]] = {"train": [], "dev": []}
    for domain in DOMAINS:
        rows = {}
        for split in ("train", "test"):
            lines = (data / domain / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
            random.Random(0).shuffle(lines)
            rows[split] = lines
        train, dev = sizes["train"], sizes["dev"]
        parts = {
            "train": rows["train"][:train],
            "dev": rows["train"][train : train + dev],
            "test": rows["test"][: sizes["test"]],
        }
        for split, lines in parts.items():
            _write(work / "data" / f"{domain}.{split}.jsonl", lines)
            if split in together:
                together[split] += lines
    for split, lines in together.items():
        _write(work / "data" / f"{JOINT}.{split}.jsonl", lines)


def _write(path: Path, lines: Sequence[str]) -> None:
    """Write lines; a file that says the same stays, since another run may be reading it."""
    text = "".join(f"{line}\n" for line in lines)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


class Trained(Watcher):
    """Keeps what the trainings of a run measured."""

    def __init__(self) -> None:
        self.results: dict[str, TrainingResult] = {}

    def trained(self, domain: PreparedDomain, result: TrainingResult) -> None:
        """An adapter is published."""
        self.results[domain.name] = result


class Experiment:
    """Trainings and scores in a folder, each done once.

    Args:
        base: the base that is trained on.
        work: the folder.
        epochs: passes over the training rows.
        batch_size: rows per step.
    """

    def __init__(self, base: LoadedBase, work: Path, epochs: int, batch_size: int) -> None:
        self.base, self.work, self.epochs, self.batch_size = base, work, epochs, batch_size
        self.file = work / "runs.jsonl"
        self.runs = {record["key"]: record for record in read_runs(work)}

    def run(self, arm: Arm, rate: float, domain: str, seed: int, test: bool) -> Record:
        """Train (or find) one adapter on one domain; score it on dev, and on test where asked."""
        return self.run_sequence(arm, rate, [domain], seed, test)[domain]

    def run_joint(self, arm: Arm, rate: float, seed: int, test: bool) -> dict[str, Record]:
        """Train (or find) one adapter on the rows of all four domains; score it on each."""
        return self._run(arm, rate, [JOINT], dict.fromkeys(DOMAINS, JOINT), seed, test)

    def run_sequence(
        self, arm: Arm, rate: float, domains: Sequence[str], seed: int, test: bool
    ) -> dict[str, Record]:
        """Train (or find) an adapter for each domain, in their order; score each on its domain."""
        return self._run(arm, rate, domains, {domain: domain for domain in domains}, seed, test)

    def _run(
        self,
        arm: Arm,
        rate: float,
        trained: Sequence[str],
        scored: Mapping[str, str],
        seed: int,
        test: bool,
    ) -> dict[str, Record]:
        """Return a record per scored domain; ``scored`` is domain -> the adapter it is scored with.

        Trainings that have no record yet, or lack the test scores now asked for, are made.
        """
        keys = {domain: arm.key(rate, domain, seed) for domain in scored}
        found = [self.runs.get(key) for key in keys.values()]
        if all(record is not None and (not test or "test" in record) for record in found):
            return {domain: self.runs[key] for domain, key in keys.items()}
        folder = self.work / "models" / arm.key(rate, "+".join(trained), seed).replace(" ", "_")
        config, watcher = self._config(arm, rate, trained, seed), Trained()
        train_sequence(config, folder, resume=True, watcher=watcher, base=self.base)
        if None in found and set(watcher.results) != set(trained):
            # some were finished, but stopped before they were recorded
            train_sequence(config, folder, overwrite=True, watcher=watcher, base=self.base)
        for domain, adapter in scored.items():
            record = self.runs.get(keys[domain])
            if record is None:
                result = watcher.results[adapter]
                record = {
                    "key": keys[domain],
                    "arm": arm.name,
                    "rate": rate,
                    "domain": domain,
                    "seed": seed,
                    "tokens_per_second": result.tokens_per_second,
                    "tokens": result.tokens,
                    "loss": result.loss,
                    "dev": self._score(folder, domain, adapter, "dev"),
                }
                parent = open_directory(folder).manifest.domains[adapter].parent
                if parent is not None:
                    record["parent"] = parent
            if test:
                record["test"] = self._score(folder, domain, adapter, "test")
            self._keep(record)
        if test:
            shutil.rmtree(folder)
        return {domain: self.runs[key] for domain, key in keys.items()}

    def _keep(self, record: Record) -> None:
        self.runs[record["key"]] = record
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(record) + "\n")
        test = f", test {np.mean(record['test']):.3f}" if "test" in record else ""
        print(
            f"{record['key']}: dev {np.mean(record['dev']):.3f}{test}, loss {record['loss']:.3f}, "
            f"{record['tokens_per_second']:.0f} tokens/s",
            flush=True,
        )

    def _config(self, arm: Arm, rate: float, domains: Sequence[str], seed: int) -> Any:
        data = self.work / "data"
        sections = {}
        for domain in domains:
            scorer, longest = DOMAINS.get(domain, ("exact", 48))  # joint is never scored as such
            sections[domain] = {
                "train": str(data / f"{domain}.train.jsonl"),
                "dev": str(data / f"{domain}.dev.jsonl"),
                "scorer": scorer,
                "max_new_tokens": longest,
            }
        return build_config(
            {
                "base": self.base.name,
                "seed": seed,
                "keep_eval": False,
                "router": {"views": ["templated"], "background": 0, "abstain": 0.0},
                "training": {
                    "views": ["templated"],
                    "epochs": self.epochs,
                    "batch_size": self.batch_size,
                    "learning_rate": rate,
                    "max_length": 512,
                },
                "adapter": dict(arm.adapter),
                "domains": sections,
            },
            arm.name,
        )

    def _score(self, folder: Path, domain: str, adapter: str, split: str) -> list[float]:
        """Scores of one adapter on a domain's prompts, in file order."""
        scorer, longest = DOMAINS[domain]
        path = self.work / "data" / f"{domain}.{split}.jsonl"
        examples = load_examples(path, name=domain, minimum=1).examples
        opened = open_directory(folder)
        forward = make_forward(self.base, opened.manifest.contract.layer, opened.manifest.two_pass)
        model = RoutedModel(
            self.base, opened.manifest, opened.directory, opened.router.router, forward
        )
        evaluated = EvalSet(domain, examples, CommonPart(), scorer, longest)
        try:
            with opened.directory.lock(), EvalCache(opened.directory.answers) as cache:
                scores = Evaluator(model, cache, batch_size=30).forced(
                    evaluated, "templated", adapter
                )
        finally:
            model.close()
        return [float(value) for value in scores.values]


def read_runs(work: Path) -> list[Record]:
    """The records of a folder, the last of each key."""
    path = work / "runs.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return list({record["key"]: record for record in map(json.loads, lines)}.values())


def interval_text(values: Any, signed: bool = False) -> str:
    """Mean and 95% bootstrap interval over prompts."""
    interval = mean_interval(values)
    sign = "+" if signed else ""
    return f"{interval.mean:{sign}.2f} [{interval.low:{sign}.2f}, {interval.high:{sign}.2f}]"
