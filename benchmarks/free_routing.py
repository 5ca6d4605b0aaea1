"""How well do questions in people's own words find their domain, and others find none?

    python -m benchmarks.free_routing DATA FREE.jsonl [--layer 8] [--limit 400] [--features F.npz]

DATA holds ``<domain>/train.jsonl``. FREE.jsonl has lines ``{"domain": NAME or "none", "prompt":
..., "group": ...}``. No adapter is trained: each router of the table is fitted on the training
prompts (without the dev cut) with one thing more than the one above it, and judged on

- templated / bare: the data's own prompts, dev cut, share whose best domain is the right one;
- right: the same for the free questions of the domains;
- routed: the same with abstaining, at the level asked for;
- strangers to the base: share of the questions of no domain;
- AUROC of the score that decides about abstaining, domains against none; near: none in groups
  called near-... only; same length: among prompts of similar word count;
- routed at 90%: right and above the score that sends 90% of strangers to the base;
- ECE: expected calibration error of the probability that the route is right.

Shares of free questions come with a 95% bootstrap interval. ``--features`` keeps what was embedded:
another call, with other levels or other questions, takes seconds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asr.base.load import load_base
from asr.data.cut import background_cut, calibration_cut, dev_cut
from asr.data.formats import Example
from asr.data.load import load_examples
from asr.data.prompt import encode_prompt
from asr.data.views import CommonPart, find_common_part, make_views
from asr.eval.routing.measures import auroc, balanced_weights, calibration_error, matched_auroc
from asr.model.background_prompts import own_messages, sampled_prompts
from asr.model.features import embed
from asr.model.routed_model import make_forward
from asr.router import (
    CalibrationBlock,
    DomainStatistics,
    FeatureMap,
    Router,
    RouterSettings,
    RoutingDomain,
)
from asr.router.settings import DEFAULT_ABSTAIN
from benchmarks.interleaved import machine

ALL_VIEWS = ("templated", "bare", "framed", "framed2", "framed3", "fragment", "fragment2")
MESSAGES, SAMPLED = "_messages", "_sampled"
TERMS = ("evidence", "typicality", "closeness")


@dataclass
class Embedded:
    """Pooled features of data and background, by domain: (n, V, d) float32 each."""

    statistics: dict[str, np.ndarray]
    held_out: dict[str, np.ndarray]
    dev: dict[str, np.ndarray]

    def save(self, path: Path) -> None:
        """Keep all of it in one file."""
        arrays = {
            f"{kind}/{name}": array
            for kind in ("statistics", "held_out", "dev")
            for name, array in getattr(self, kind).items()
        }
        np.savez(path, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> Embedded:
        """Read what :meth:`save` wrote."""
        found: dict[str, dict[str, np.ndarray]] = {"statistics": {}, "held_out": {}, "dev": {}}
        with np.load(path, allow_pickle=False) as arrays:
            for key in arrays.files:
                kind, _, name = key.partition("/")
                if name:
                    found[kind][name] = arrays[key]
        return cls(**found)


class Embedder:
    """Prompts to pooled features at one layer."""

    def __init__(self, name: str, layer: int) -> None:
        self.base = load_base(name)
        self.forward = make_forward(self.base, layer, False)

    def __call__(self, prompts: Sequence[Sequence[dict[str, str]]]) -> np.ndarray:
        """Return (n, d) float32."""
        base = self.base
        encoded = [
            encode_prompt(list(prompt), base.tokenizer, base.template, 1024, shorten=True)
            for prompt in prompts
        ]
        return embed(encoded, self.forward, base.tokenizer.pad_token_id, base.device)

    def views(self, examples: Sequence[Example], common: CommonPart) -> np.ndarray:
        """Return (n, V, d)."""
        flat = [
            turns
            for example in examples
            for turns in make_views(example.prompt, common, ALL_VIEWS).values()
        ]
        return self(flat).reshape(len(examples), len(ALL_VIEWS), -1)


def embed_data(embedder: Embedder, data: Path, limit: int, background: int) -> Embedded:
    """Embed training data and background."""
    found = Embedded({}, {}, {})
    sources: dict[str, Sequence[Example]] = {
        name: [Example((user(text), {"role": "assistant", "content": ""})) for text in texts]
        for name, texts in (
            (MESSAGES, own_messages()),
            (SAMPLED, sampled_prompts(embedder.base, background)),
        )
    }
    for path in sorted(data.glob("*/train.jsonl")):
        name = path.parent.name
        cut = dev_cut(load_examples(path, name=name, limit=limit).examples)
        found.dev[name] = embedder.views(cut.held_out, find_common_part(cut.kept))
        sources[name] = cut.kept
    for name, examples in sources.items():
        is_background = name in (MESSAGES, SAMPLED)
        common = CommonPart() if is_background else find_common_part(examples)
        held = background_cut(examples) if is_background else calibration_cut(examples)
        found.statistics[name] = embedder.views(held.kept, common)
        found.held_out[name] = embedder.views(held.held_out, common)
    return found


def user(text: str) -> dict[str, str]:
    """A user's turn."""
    return {"role": "user", "content": text}


def interval(right: np.ndarray) -> str:
    """A share with its 95% percentile bootstrap interval."""
    generator = np.random.Generator(np.random.PCG64(0))
    draws = generator.choice(right.astype(float), (2000, len(right))).mean(axis=1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return f"{right.mean():.3f} [{low:.2f},{high:.2f}]"


@dataclass(frozen=True)
class Arm:
    """What a router of the comparison is made of."""

    name: str
    views: tuple[str, ...]
    background: tuple[str, ...]
    terms: tuple[str, ...]


FORMER = ("templated", "bare", "framed", "framed2", "framed3")
DEFAULT = ("templated", "bare", "fragment", "fragment2")
BOTH = (MESSAGES, SAMPLED)
ARMS = (
    Arm("templated", FORMER[:1], (), TERMS[:1]),
    Arm("bare", FORMER[:2], (), TERMS[:1]),
    Arm("framed", FORMER, (), TERMS[:1]),
    Arm("sampled background", FORMER, (SAMPLED,), TERMS[:1]),
    Arm("typicality", FORMER, (SAMPLED,), TERMS[:2]),
    Arm("closeness", FORMER, (SAMPLED,), TERMS),
    Arm("fragments for framed", DEFAULT, (SAMPLED,), TERMS),
    Arm("messages", DEFAULT, BOTH, TERMS),
    Arm("default, framed too", ALL_VIEWS, BOTH, TERMS),
    Arm("default, messages alone", DEFAULT, (MESSAGES,), TERMS),
    Arm("default, no background", DEFAULT, (), TERMS),
    Arm("default, evidence alone", DEFAULT, BOTH, TERMS[:1]),
    Arm("default, no closeness", DEFAULT, BOTH, TERMS[:2]),
)
"""From nothing to the defaults (``messages``), one thing after another; then single changes."""


def fit(embedded: Embedded, arm: Arm, abstain: float) -> Router:
    """Fit one arm's router."""
    places = [ALL_VIEWS.index(view) for view in arm.views]
    width = embedded.statistics[SAMPLED].shape[-1]
    mapped = FeatureMap(width)
    domains = []
    for name, states in embedded.statistics.items():
        is_background = name in BOTH
        if is_background and name not in arm.background:
            continue
        chosen = states[:, places]
        features = mapped(chosen.reshape(-1, width)).reshape(len(chosen), len(places), -1)
        statistics = DomainStatistics(
            mapped.dimension, kind="background" if is_background else "domain"
        ).update(features)
        block = CalibrationBlock(embedded.held_out[name][:, places], arm.views)
        domains.append(RoutingDomain(name, statistics, block))
    domains = _joined(domains)
    return Router.fit(domains, RouterSettings(abstain=abstain, terms=arm.terms), mapped)


def _joined(domains: list[RoutingDomain]) -> list[RoutingDomain]:
    """The background as the one class that it is in a model."""
    others = [domain for domain in domains if domain.statistics.kind == "background"]
    if len(others) < 2:
        return domains
    first, second = others
    assert first.calibration is not None and second.calibration is not None
    whole = RoutingDomain(
        "_background", first.statistics + second.statistics, first.calibration + second.calibration
    )
    return [*(domain for domain in domains if domain not in others), whole]


@dataclass(frozen=True)
class Free:
    """Free questions: (m, d) pooled, (m,) label, in a near group or not, number of words."""

    pooled: np.ndarray
    labels: np.ndarray
    near: np.ndarray
    words: np.ndarray


def line(router: Router, embedded: Embedded, free: Free, name: str) -> str:
    """One row of the table."""
    labels, near, words = free.labels, free.near, free.words
    dev = [
        np.mean(
            [
                decision.domain == name
                for name, block in embedded.dev.items()
                for decision in router.decide(block[:, view])
            ]
        )
        for view in (0, 1)
    ]
    known = labels != "none"
    batch = router.decide_batch(free.pooled)
    names = np.array(router.names)
    forced = names[batch.indices] == labels
    routed = forced & ~batch.abstained
    right = np.where(known, routed, batch.abstained)
    score = batch.score
    at_90 = forced & (score > np.quantile(score[~known], 0.9))
    nearby = f"{auroc(score[known], score[near]):.3f}" if near.any() else "-"
    return (
        f"| {name} | {dev[0]:.3f} / {dev[1]:.3f} | {interval(forced[known])} "
        f"| {interval(routed[known])} | {interval(batch.abstained[~known])} "
        f"| {auroc(score[known], score[~known]):.3f} | {nearby} "
        f"| {matched_auroc(score, known, words):.3f} | {at_90[known].mean():.3f} "
        f"| {calibration_error(batch.probability, right, balanced_weights(known)):.3f} |"
    )


def main() -> None:
    """Run the comparison and print its table."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("data", type=Path, help="folder of <domain>/train.jsonl")
    parser.add_argument("free", type=Path, help="free questions, JSON lines")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--layer", type=int, default=8)
    parser.add_argument("--limit", type=int, default=400, help="training examples per domain")
    parser.add_argument("--background", type=int, default=128, help="prompts sampled from the base")
    parser.add_argument("--abstain", type=float, nargs="*", default=[DEFAULT_ABSTAIN])
    parser.add_argument("--arms", nargs="*", help="only these, by name")
    parser.add_argument("--features", type=Path, help="keep the embedded data in this .npz")
    options = parser.parse_args()
    rows = [json.loads(text) for text in options.free.read_text("utf-8").splitlines()]
    embedder = Embedder(options.base, options.layer)
    if options.features is not None and options.features.is_file():
        embedded = Embedded.load(options.features)
    else:
        embedded = embed_data(embedder, options.data, options.limit, options.background)
        if options.features is not None:
            embedded.save(options.features)
    prompts = [row["prompt"] for row in rows]
    free = Free(
        embedder([[user(text)] for text in prompts]),
        np.array([row["domain"] for row in rows]),
        np.array([row.get("group", "").startswith("near") for row in rows]),
        np.array([len(prompt.split()) for prompt in prompts]),
    )
    known = free.labels != "none"
    words = free.words.astype(float)
    print(
        f"layer {options.layer}: {known.sum()} free questions of {len(embedded.dev)} domains and "
        f"{(~known).sum()} of none; AUROC of word count {auroc(words[known], words[~known]):.3f}; "
        f"{machine()}\n"
    )
    print(
        "| router | templated / bare | right | routed | strangers to the base | AUROC | near "
        "| same length | routed at 90% | ECE |"
    )
    print("|---" * 10 + "|")
    for arm in ARMS:
        if options.arms and arm.name not in options.arms:
            continue
        for abstain in options.abstain:
            print(line(fit(embedded, arm, abstain), embedded, free, arm.name), flush=True)


if __name__ == "__main__":
    main()
