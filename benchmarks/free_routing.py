"""How well do questions in people's own words find their domain, and others find none?

    python -m benchmarks.free_routing DATA FREE.jsonl [--layer 4] [--limit 400] [--features F.npz]

DATA holds ``<domain>/train.jsonl``. FREE.jsonl has lines ``{"domain": NAME or "none", "prompt":
...}``. No adapter is trained: each combination of views, background class and abstain level is
fitted on the training prompts (without the dev cut) and judged on

- dev cut, templated and bare: share routed right, abstaining counts as wrong;
- free, forced and as routed: the same on the free questions of the domains, without and with
  abstaining;
- AUROC of the score that decides about abstaining, free questions of domains against ``none``
  (word count alone beside it), and the share of ``none`` sent to the base.

Shares of free questions come with a 95% bootstrap interval. ``--features`` keeps what was embedded:
another call with other levels takes seconds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asr.base.load import load_base
from asr.data.cut import calibration_cut, dev_cut
from asr.data.formats import Example
from asr.data.load import load_examples
from asr.data.prompt import encode_prompt
from asr.data.views import CommonPart, find_common_part, make_views
from asr.model.background import NAME, sample_prompts
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

ALL_VIEWS = ("templated", "bare", "framed", "framed2", "framed3")


@dataclass
class Embedded:
    """Pooled features of everything that is judged: (n, V, d) float32 each, free (n, d)."""

    statistics: dict[str, np.ndarray]
    held_out: dict[str, np.ndarray]
    dev: dict[str, np.ndarray]
    free: np.ndarray

    def save(self, path: Path) -> None:
        """Keep all of it in one file."""
        arrays = {"free": self.free}
        for kind in ("statistics", "held_out", "dev"):
            arrays |= {f"{kind}/{name}": a for name, a in getattr(self, kind).items()}
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
            return cls(**found, free=arrays["free"])


def embed_all(options: argparse.Namespace, questions: Sequence[str]) -> Embedded:
    """Embed data, sampled background and free questions."""
    base = load_base(options.base)
    forward = make_forward(base, options.layer, False)

    def pooled(prompts: Sequence[Sequence[dict[str, str]]]) -> np.ndarray:
        encoded = [
            encode_prompt(list(prompt), base.tokenizer, base.template, 1024, shorten=True)
            for prompt in prompts
        ]
        return embed(encoded, forward, base.tokenizer.pad_token_id, base.device)

    def views(examples: Sequence[Example], common: CommonPart) -> np.ndarray:
        flat = [
            turns
            for example in examples
            for turns in make_views(example.prompt, common, ALL_VIEWS).values()
        ]
        return pooled(flat).reshape(len(examples), len(ALL_VIEWS), -1)

    found = Embedded({}, {}, {}, pooled([[user(text)] for text in questions]))
    sources: dict[str, Sequence[Example]] = {
        NAME: [
            Example((user(text), {"role": "assistant", "content": ""}))
            for text in sample_prompts(base, options.background)
        ]
    }
    for path in sorted(options.data.glob("*/train.jsonl")):
        name = path.parent.name
        cut = dev_cut(load_examples(path, name=name, limit=options.limit).examples)
        common = find_common_part(cut.kept)
        found.dev[name] = views(cut.held_out, common)
        sources[name] = cut.kept
    for name, examples in sources.items():
        common = CommonPart() if name == NAME else find_common_part(examples)
        held = calibration_cut(examples)
        found.statistics[name] = views(held.kept, common)
        found.held_out[name] = views(held.held_out, common)
    return found


def user(text: str) -> dict[str, str]:
    """A user's turn."""
    return {"role": "user", "content": text}


def auroc(known: np.ndarray, unknown: np.ndarray) -> float:
    """Probability that a known score lies above an unknown one; ties count half."""
    above = (known[:, None] > unknown[None, :]).mean()
    return float(above + 0.5 * (known[:, None] == unknown[None, :]).mean())


def interval(right: np.ndarray) -> str:
    """A share with its 95% percentile bootstrap interval."""
    generator = np.random.Generator(np.random.PCG64(0))
    draws = generator.choice(right.astype(float), (2000, len(right))).mean(axis=1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return f"{right.mean():.3f} [{low:.2f},{high:.2f}]"


def fit(embedded: Embedded, views: Sequence[str], background: bool, abstain: float) -> Router:
    """Fit a router on some of the views, with or without the background class."""
    count, width = len(views), embedded.free.shape[-1]
    mapped = FeatureMap(width)
    domains = []
    for name, states in embedded.statistics.items():
        if name == NAME and not background:
            continue
        chosen = states[:, :count]
        features = mapped(chosen.reshape(-1, width)).reshape(len(chosen), count, -1)
        kind = "background" if name == NAME else "domain"
        domains.append(
            RoutingDomain(
                name,
                DomainStatistics(mapped.dimension, kind=kind).update(features),  # type: ignore[arg-type]
                CalibrationBlock(embedded.held_out[name][:, :count], tuple(views)),
            )
        )
    return Router.fit(domains, RouterSettings(abstain=abstain), mapped)


def line(
    embedded: Embedded, labels: np.ndarray, views: int, background: bool, abstain: float
) -> str:
    """One row of the table."""
    router = fit(embedded, ALL_VIEWS[:views], background, abstain)
    dev = [
        np.mean(
            [
                decision.route == name
                for name, block in embedded.dev.items()
                for decision in router.decide(block[:, view])
            ]
        )
        for view in (0, 1)
    ]
    known = labels != "none"
    decided = router.decide(embedded.free)
    forced = np.array([d.domain for d in decided]) == labels
    routed = np.array([d.route for d in decided]) == labels
    score = np.array([d.score for d in decided])
    to_base = np.array([d.abstained for d in decided])
    return (
        f"{'+'.join(ALL_VIEWS[:views][-2:]) if views > 1 else 'templated':<18}"
        f"{'yes' if background else 'no':>11}{abstain:>9}{router.report.ridge:>8.0e}"
        f"{dev[0]:>11.3f}{dev[1]:>7.3f}{interval(forced[known]):>20}{interval(routed[known]):>20}"
        f"{auroc(score[known], score[~known]):>8.3f}{interval(to_base[~known]):>20}"
    )


def main() -> None:
    """Run the comparison and print its table."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("data", type=Path, help="folder of <domain>/train.jsonl")
    parser.add_argument("free", type=Path, help="free questions, JSON lines")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--layer", type=int, default=4)
    parser.add_argument("--limit", type=int, default=400, help="training examples per domain")
    parser.add_argument("--background", type=int, default=384, help="prompts sampled from the base")
    parser.add_argument("--abstain", type=float, nargs="*", default=[0.02])
    parser.add_argument("--features", type=Path, help="keep the embedded prompts in this .npz")
    options = parser.parse_args()
    rows = [json.loads(text) for text in options.free.read_text("utf-8").splitlines()]
    labels = np.array([row["domain"] for row in rows])
    if options.features is not None and options.features.is_file():
        embedded = Embedded.load(options.features)
    else:
        embedded = embed_all(options, [row["prompt"] for row in rows])
        if options.features is not None:
            embedded.save(options.features)
    known = labels != "none"
    words = np.array([len(row["prompt"].split()) for row in rows], dtype=float)
    print(
        f"layer {options.layer}: {known.sum()} free questions of {len(embedded.dev)} domains and "
        f"{(~known).sum()} of none; AUROC of word count {auroc(words[known], words[~known]):.3f}"
    )
    print(
        f"{'views up to':<18}{'background':>11}{'abstain':>9}{'ridge':>8}"
        f"{'templated':>11}{'bare':>7}{'free, forced':>20}{'free, as routed':>20}"
        f"{'AUROC':>8}{'none to the base':>20}"
    )
    for views in range(1, len(ALL_VIEWS) + 1):
        for background in (False, True):
            for abstain in options.abstain:
                print(line(embedded, labels, views, background, abstain), flush=True)


if __name__ == "__main__":
    main()
