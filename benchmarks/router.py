"""What does another domain cost the router? Ours, the recursion of the paper, and scikit-learn.

    python -m benchmarks.router DATA [--features F] [--sizes 577 2048 10000] [--rows 256]

Domains arrive one after another with ``--rows`` rows each (prompts of ``<domain>/train.jsonl`` in
two views, templated and bare), and after each the weights must be current. Timed is the whole of
it, features given: update and solve. Every method learns a domain before the next one comes
(interleaved). The first domain warms up; figures are medians over the others, ratios are of those.

- *rls*: our recursive solver, block updates in float64;
- *direct*: our default solver, statistics of the new domain, sum over all, one Cholesky;
- *recursion*: sample by sample in float32, with the parentheses that make it E^2 a sample,
  ``R - (R @ x^T) @ s @ (x @ R)``; the headline is against this one. *in place*: the same as one
  rank-1 update in R's own memory, the best that can be done sample by sample;
- *as released*: ``R - R @ x^T @ s @ x @ R`` from left to right, as the code of Any-SSR (arXiv
  2503.13575) has it: E^3 a sample. Timed on ``--released`` samples and multiplied; it is the
  recursion but for rounding, so no accuracy of its own;
- scikit-learn's ``RidgeClassifier`` on all rows so far, and ``SGDClassifier.partial_fit``.

E = 577 is the base's hidden size with the constant; larger ones are the random ReLU expansion.
Accuracy after the last domain: on the dev cut, bare, and on free questions of the domains. The
ridge is 1e-2 of the mean eigenvalue at the end; recursions are given it as an absolute number.

Notation: m rows of a domain, E features, K domains.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from sklearn.linear_model import RidgeClassifier, SGDClassifier

from asr.atomic import write_json
from asr.base.layers import default_router_layer
from asr.base.load import load_base
from asr.router import (
    DomainStatistics,
    FeatureMap,
    RecursiveLeastSquares,
    Router,
    RouterSettings,
    RoutingDomain,
    views_as_rows,
)
from benchmarks.interleaved import machine
from benchmarks.kept_rows import KeptRows
from benchmarks.layer_features import embed_layers
from benchmarks.router_peers import FREE, Questions
from benchmarks.routing_prompts import DEV_VIEWS, VIEWS, domain_prompts, flat, read_examples, user

RIDGE = 1e-2

FORMS = ("parenthesised", "in place", "as released")
"""How one sample is folded in: x (1, E), y (1, K), R (E, E), W (E, K)."""


class Learner(Protocol):
    """Takes in domain after domain and is current after each."""

    def learn(self, features: np.ndarray, label: int) -> None:
        """Take in a domain's features (n, V, E)."""
        ...

    def predict(self, pooled: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Return (m,) labels for (m, E) features; ``pooled`` is what they were mapped from."""
        ...


class Recursive:
    """Our recursive solver."""

    def __init__(self, size: int, ridge: float) -> None:
        self._model = RecursiveLeastSquares(size, ridge)

    def learn(self, features: np.ndarray, label: int) -> None:
        """Fold a domain in."""
        self._model.partial_fit(views_as_rows(features), label)

    def predict(self, pooled: np.ndarray, features: np.ndarray) -> np.ndarray:
        """The best column."""
        best: np.ndarray = np.argmax(features @ self._model.coef_, axis=1)
        return best


class Direct:
    """Our default solver: sums kept by domain, one solve over all of them."""

    def __init__(self, feature_map: FeatureMap) -> None:
        self._map = feature_map
        self._domains: list[RoutingDomain] = []
        self._settings = RouterSettings(
            ridge=RIDGE, expansion=feature_map.expansion, terms=("evidence",), abstain=0.0
        )
        self._router: Router | None = None

    def learn(self, features: np.ndarray, label: int) -> None:
        """Sum the domain up, and solve."""
        own = DomainStatistics(self._map.dimension).update(features)
        self._domains.append(RoutingDomain(f"d{label:04}", own))
        self._router = Router.fit(self._domains, self._settings, self._map)

    def predict(self, pooled: np.ndarray, features: np.ndarray) -> np.ndarray:
        """The best domain."""
        assert self._router is not None
        return self._router.decide_batch(pooled).indices


class SampleRecursion:
    """The paper's recursion in float32, one sample at a time, in one of :data:`FORMS`."""

    def __init__(self, size: int, columns: int, ridge: float, form: str = FORMS[0]) -> None:
        self._inverse = torch.eye(size) / ridge
        self._weights = torch.zeros((size, columns))
        self._fold = {
            "parenthesised": self._parenthesised,
            "in place": self._in_place,
            "as released": self._as_released,
        }[form]

    def learn(self, features: np.ndarray, label: int) -> None:
        """Fold in every row."""
        target = torch.zeros((1, self._weights.shape[1]))
        target[0, label] = 1.0
        for row in torch.from_numpy(views_as_rows(features)).float():
            self._fold(row[None], target)

    def _parenthesised(self, x: torch.Tensor, y: torch.Tensor) -> None:
        inverse = self._inverse
        inner = torch.pinverse(torch.eye(1) + x @ inverse @ x.t())
        self._inverse = inverse - ((inverse @ x.t()) @ inner) @ (x @ inverse)
        self._weights = self._weights + (self._inverse @ x.t()) @ (y - x @ self._weights)

    def _in_place(self, x: torch.Tensor, y: torch.Tensor) -> None:
        moved = self._inverse @ x[0]
        scale = 1.0 / (1.0 + float(x[0] @ moved))
        self._inverse.addr_(moved, moved, alpha=-scale)
        error = y[0] - x[0] @ self._weights
        self._weights.addr_(moved, error, alpha=scale)  # the new R x is moved * scale

    def _as_released(self, x: torch.Tensor, y: torch.Tensor) -> None:
        inverse = self._inverse
        inner = torch.pinverse(torch.eye(1) + x @ inverse @ x.t())
        self._inverse = inverse - inverse @ x.t() @ inner @ x @ inverse
        self._weights = self._weights + self._inverse @ x.t() @ (y - x @ self._weights)

    def predict(self, pooled: np.ndarray, features: np.ndarray) -> np.ndarray:
        """The best column."""
        return (torch.from_numpy(features).float() @ self._weights).argmax(dim=1).numpy()


class RidgeRefit:
    """scikit-learn's ridge classifier, fitted anew on all rows so far."""

    def __init__(self, ridge: float) -> None:
        self._rows: list[np.ndarray] = []
        self._labels: list[int] = []
        self._model = RidgeClassifier(alpha=ridge)

    def learn(self, features: np.ndarray, label: int) -> None:
        """Keep the rows, and fit where there are two classes."""
        self._rows.append(views_as_rows(features))
        self._labels += [label] * len(self._rows[-1])
        if len(self._rows) > 1:
            self._model.fit(np.concatenate(self._rows), self._labels)

    def predict(self, pooled: np.ndarray, features: np.ndarray) -> np.ndarray:
        """The predicted class."""
        return np.asarray(self._model.predict(features))


class GradientSteps:
    """scikit-learn's linear classifier by stochastic gradients, one pass over each domain."""

    def __init__(self, columns: int) -> None:
        self._classes = np.arange(columns)
        self._model = SGDClassifier(random_state=0)

    def learn(self, features: np.ndarray, label: int) -> None:
        """One pass over the domain."""
        rows = views_as_rows(features)
        self._model.partial_fit(rows, np.full(len(rows), label), classes=self._classes)

    def predict(self, pooled: np.ndarray, features: np.ndarray) -> np.ndarray:
        """The predicted class."""
        return np.asarray(self._model.predict(features))


def learners(feature_map: FeatureMap, columns: int, ridge: float) -> dict[str, Learner]:
    """Everything that learns all domains; ``ridge`` is absolute."""
    size = feature_map.dimension
    return {
        "rls": Recursive(size, ridge),
        "direct": Direct(feature_map),
        "recursion": SampleRecursion(size, columns, ridge),
        "recursion, in place": SampleRecursion(size, columns, ridge, "in place"),
        "RidgeClassifier": RidgeRefit(ridge),
        "SGDClassifier": GradientSteps(columns),
    }


def measure(
    domains: Sequence[np.ndarray],
    judged: Mapping[str, tuple[np.ndarray, np.ndarray]],
    expansion: int,
    released: int,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, dict[str, Any]]:
    """Let every method learn all domains; return seconds per domain and accuracies.

    Args:
        domains: pooled states of each domain, (n, V, d).
        judged: by name, pooled states (m, d) and labels (m,).
        expansion: E of the expansion, 0 for none.
        released: samples of the first domain that *as released* is timed on.
        note: told what was done.
    """
    width, views = domains[0].shape[-1], domains[0].shape[1]
    feature_map = FeatureMap(width, expansion)
    first = feature_map(domains[0])
    rows = sum(len(states) for states in domains) * views
    ridge = RIDGE * rows * float(np.mean(np.square(first)))
    methods = learners(feature_map, len(domains), ridge)
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for label, states in enumerate(domains):
        features = feature_map(states)
        for name, method in methods.items():
            began = time.perf_counter()
            method.learn(features, label)
            seconds[name].append(time.perf_counter() - began)
        note(f"E = {feature_map.dimension}: domain {label + 1} of {len(domains)}")
    found: dict[str, dict[str, Any]] = {
        name: {"seconds": seconds[name], "median": statistics.median(seconds[name][1:])}
        for name in methods
    }
    for kind, (pooled, labels) in judged.items():
        features = feature_map(pooled)
        for name, method in methods.items():
            found[name][kind] = float(np.mean(method.predict(pooled, features) == labels))
    del methods
    slow = SampleRecursion(feature_map.dimension, len(domains), ridge, "as released")
    per_sample = []
    for row in first.reshape(-1, feature_map.dimension)[:released]:
        began = time.perf_counter()
        slow.learn(row[None, None], 0)
        per_sample.append(time.perf_counter() - began)
    count = statistics.median(len(states) for states in domains) * views
    found["as released"] = {"median": statistics.median(per_sample) * count, "samples": released}
    return found


def table(size: int, found: Mapping[str, Mapping[str, Any]], kinds: Sequence[str]) -> list[str]:
    """Rows of the table for one E."""
    lines = []
    for name, figures in found.items():
        median = figures["median"]
        ratios = [median / found[own]["median"] for own in ("rls", "direct")]
        accuracy = [f"{figures[kind]:.3f}" if kind in figures else "-" for kind in kinds]
        extrapolated = f" (from {figures['samples']} samples)" if "samples" in figures else ""
        lines.append(
            f"| {size} | {name} | {median:.4g}{extrapolated} | {ratios[0]:.3g} | {ratios[1]:.3g} "
            f"| {' | '.join(accuracy)} |"
        )
    return lines


def main() -> None:
    """Embed, measure every E, print."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("data", type=Path, help="folder of <domain>/train.jsonl")
    parser.add_argument("free", type=Path, nargs="?", default=FREE, help="free questions")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument(
        "--layers", type=int, nargs="+", help="others that the features' file holds"
    )
    parser.add_argument("--limit", type=int, default=200, help="training examples per domain")
    parser.add_argument("--rows", type=int, default=256, help="rows per domain, two a prompt")
    parser.add_argument("--sizes", type=int, nargs="+", default=[577, 2048, 10_000], help="E")
    parser.add_argument("--released", type=int, default=2, help="samples of 'as released'")
    parser.add_argument("--features", type=Path, help="keep what is embedded in this .npz")
    parser.add_argument("--out", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    base = load_base(options.base)
    router_layer = default_router_layer(len(base.decoder.modules))
    layers = sorted({*(options.layers or []), router_layer})
    at = layers.index(router_layer)
    kept = KeptRows(
        lambda given: embed_layers(base, layers, given),
        f"{base.fingerprint} layers {layers}",
        options.features,
    )
    questions = Questions.read(options.free)
    two = [VIEWS.index("templated"), VIEWS.index("bare")]
    names, domains, dev = [], [], []
    for name, examples in read_examples(options.data, options.limit).items():
        prompts = domain_prompts(examples)
        chosen = [[p[i] for i in two] for p in prompts.statistics + prompts.held_out]
        chosen = chosen[: options.rows // 2]
        names.append(name)
        domains.append(kept(flat(chosen))[:, at].reshape(len(chosen), 2, -1))
        dev.append(kept([views[DEV_VIEWS.index("bare")] for views in prompts.dev])[:, at])
    ours = np.isin(questions.labels, names)
    free = kept([[user(text)] for text in questions.texts])[ours, at]
    judged = {
        "dev, bare": (np.concatenate(dev), np.repeat(range(len(dev)), [len(own) for own in dev])),
        "free": (free, np.array([names.index(label) for label in questions.labels[ours]])),
    }
    sizes = [len(states) * 2 for states in domains]
    print(
        f"{options.base}, {base.note}; {machine()}\n{len(domains)} domains of {min(sizes)} to"
        f" {max(sizes)} rows, layer {router_layer}\n"
    )
    kinds = list(judged)
    print("| E | method | s per domain | over rls | over direct | " + " | ".join(kinds) + " |")
    print("|---" * (5 + len(kinds)) + "|")
    figures = {}
    for size in options.sizes:
        expansion = 0 if size == base.hidden_size + 1 else size
        found = measure(domains, judged, expansion, options.released)
        figures[str(size)] = found
        print("\n".join(table(size, found, kinds)), flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.out, {"machine": machine(), "rows": sizes, "sizes": figures})


if __name__ == "__main__":
    main()
