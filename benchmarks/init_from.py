"""Does a new adapter gain from starting as a copy of the nearest domain's?

    python -m benchmarks.init_from MODEL DATA --domains wikisql arc_easy [--extra 150]

Each named domain of MODEL is taken out of a copy of MODEL and added again with
``adapter.init_from=nearest``: the same data, steps, batch, rate and seed. The adapter in MODEL,
made from scratch, and the new one are scored with their adapter forced on rows of the training file
that neither has seen (DATA/<domain>/train.jsonl beyond the config's limit), templated and bare.
Prints both scores and the paired difference with a 95% bootstrap interval over prompts. ``--work``
keeps the copies; a domain that is finished there is not trained again.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import asr
from asr.data.formats import Example
from asr.data.load import load_examples
from asr.eval.cache import EvalCache
from asr.eval.evaluate import EvalSet, Evaluator
from asr.eval.history import recorded_common_part
from asr.model.manifest import Manifest

SETTINGS = ("limit", "scorer", "max_new_tokens", "format")


def run(*words: object) -> None:
    """Run an asr command; a failure ends the benchmark."""
    subprocess.run([sys.executable, "-m", "asr", *map(str, words)], check=True)


def add_again(model: Path, name: str, work: Path) -> Path:
    """Return a copy of ``model`` in which ``name`` started from its nearest domain."""
    copy = work / f"{name}-nearest"
    done = copy.is_dir() and name in Manifest.load(copy).finished
    if not done:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(model, copy)
        config = Manifest.load(model).config["domains"][name]
        own = [f"{key}={config[key]}" for key in SETTINGS if config[key] is not None]
        run("remove", copy, name)
        run("add", copy, f"{name}={config['train']}", *own, "adapter.init_from=nearest")
    return copy


def unseen(model: Path, data: Path, name: str, count: int) -> list[Example]:
    """Rows of the training file beyond the config's limit."""
    config = Manifest.load(model).config
    limit = config["domains"][name]["limit"]
    if limit is None:
        raise SystemExit(f"'{name}' was trained on the whole file: no rows are left to score on")
    path = data / name / "train.jsonl"
    seen = load_examples(path, name=name, limit=limit, seed=config["seed"]).examples
    keys = {example.prompt_key for example in seen}
    rest = [e for e in load_examples(path, name=name).examples if e.prompt_key not in keys]
    return rest[:count]


def forced_scores(model: Path, name: str, examples: list[Example], kind: str) -> np.ndarray:
    """Score ``examples`` with the domain's own adapter."""
    opened = asr.RoutedModel.from_pretrained(model)
    entry = opened.manifest.domains[name]
    evaluated = EvalSet(
        domain=name,
        examples=examples,
        common=recorded_common_part(opened.manifest, name),
        scorer=entry.scorer or "exact",
        max_new_tokens=entry.max_new_tokens or 256,
    )
    with EvalCache(model / "eval" / "init_from.jsonl") as cache:
        scores = Evaluator(opened, cache, batch_size=32).forced(evaluated, kind, name)
    opened.close()
    return np.asarray(scores.values, dtype=float)


def main() -> None:
    """Train, score, print."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path, help="folder of <domain>/train.jsonl")
    parser.add_argument("--domains", nargs="+", required=True)
    parser.add_argument("--extra", type=int, default=150, help="unseen rows to score on")
    parser.add_argument("--work", type=Path, help="keep the copies here")
    options = parser.parse_args()
    generator = np.random.Generator(np.random.PCG64(0))
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for name in options.domains:
            copy = add_again(options.model, name, work)
            parent = Manifest.load(copy).domains[name].parent
            examples = unseen(options.model, options.data, name, options.extra)
            for kind in ("templated", "bare"):
                scratch = forced_scores(options.model, name, examples, kind)
                nearest = forced_scores(copy, name, examples, kind)
                gain = nearest - scratch
                draws = generator.choice(gain, (2000, len(gain))).mean(axis=1)
                low, high = np.quantile(draws, (0.025, 0.975))
                print(
                    f"{name:<12}{kind:<11}n {len(gain):<5}from scratch {scratch.mean():.3f}  "
                    f"from {parent} {nearest.mean():.3f}  gain {gain.mean():+.3f} "
                    f"[{low:+.2f}, {high:+.2f}]",
                    flush=True,
                )


if __name__ == "__main__":
    main()
