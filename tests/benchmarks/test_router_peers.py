"""The comparison with other routers judges alike, and remembers what it embedded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.kept_rows import KeptRows
from benchmarks.router_peers import Questions, Source, best_head, dev_accuracy, judge, line, measure
from benchmarks.routing_methods import (
    Centroids,
    EmbeddingRidge,
    Method,
    Neighbours,
    OurRouter,
    Scored,
    SequentialHead,
    TfidfRidge,
    over_background,
)
from benchmarks.routing_prompts import BACKGROUND, VIEWS, Prompt, Prompts, user

DOMAINS = ("cooking", "law", "trains")
SIZES = {"statistics": 12, "held_out": 6, "dev": 5}


def make_source(apart: float) -> Source:
    """Gaussian classes whose centres lie ``apart`` from each other, in units of their spread."""
    generator = np.random.default_rng(0)
    centres = {name: apart * generator.normal(size=16) for name in (*BACKGROUND, *DOMAINS)}

    def around(name: str, count: int) -> np.ndarray:
        made = centres[name] + generator.normal(size=(count, len(VIEWS), 16))
        return made.astype(np.float32)

    rows = {name: {side: around(name, count) for side, count in SIZES.items()} for name in centres}
    free = np.concatenate([around(name, 4)[:, 0] for name in (*DOMAINS, BACKGROUND[0])])
    return Source(rows, free, lambda prompts: free[: len(prompts)])


@pytest.fixture
def source() -> Source:
    return make_source(4.0)


@pytest.fixture
def questions() -> Questions:
    labels = np.repeat([*DOMAINS, "none"], 4)
    near = labels == "none"
    return Questions(labels, near, np.arange(16) % 4 + 8, [f"question {n}" for n in range(16)])


@pytest.mark.parametrize(
    "method",
    [
        OurRouter(16, VIEWS),
        Centroids(),
        Centroids(background=False),
        Neighbours(),
        EmbeddingRidge(),
        SequentialHead(16),
    ],
    ids=lambda method: type(method).__name__,
)
def test_a_method_is_measured(method: Method, source: Source, questions: Questions) -> None:
    found = measure(method, source, DOMAINS, questions)
    forgets = isinstance(method, SequentialHead)
    assert forgets or found["forced"] == found["templated"] == found["bare"] == 1.0
    assert forgets or found["forgetting"] == 0.0
    assert 0.0 <= found["auroc"] <= 1.0
    assert found["forced_interval"][0] <= found["forced"] <= found["forced_interval"][1]
    times = {"features_ms": 1.0, "scores_ms": 1.0, "features_s": 1.0}
    assert line("name", found | times).count("|") == 12


def test_a_head_forgets_what_it_is_not_shown(questions: Questions) -> None:
    source = make_source(0.7)
    head = measure(SequentialHead(16, rate=0.1, epochs=20), source, DOMAINS, questions)
    ridge = measure(EmbeddingRidge(), source, DOMAINS, questions)
    assert head["forgetting"] > 0.0
    assert head["forced"] < ridge["forced"]
    assert best_head(source, DOMAINS, 16) in (1e-4, 1e-3, 1e-2)


def test_text_is_told_apart_by_its_words() -> None:
    words = {"cooking": "stir the soup", "law": "sue the tenant", "_messages": "hello my friend"}
    method = TfidfRidge()
    for name, text in words.items():
        method.add(name, [[text, text + " now"]] * 3, [[text, text]])
    method.solve()
    scored = method.scores(["the soup", "my tenant sue", "hello friend"])
    assert scored.best[:2].tolist() == ["cooking", "law"]
    assert scored.known[2] < min(scored.known[:2])
    texts = {name: {"dev": [[text, text]]} for name, text in words.items()}
    own = Source(texts, [], lambda prompts: [])
    assert dev_accuracy(method, own, ["cooking", "law"], 0) == 1.0


def test_measures_of_scores_that_are_known() -> None:
    names = np.array(["a", "a", "b", "none", "none"])
    questions = Questions(names, np.array([0, 0, 0, 1, 0], bool), np.full(5, 9), [""] * 5)
    domains = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    found = judge(Scored(("a", "b"), domains, np.array([0.9, 0.8, 0.3, 0.5, 0.1])), questions)
    assert found["forced"] == pytest.approx(2 / 3)
    assert found["auroc"] == pytest.approx(5 / 6)
    assert found["near"] == pytest.approx(2 / 3)
    assert found["at_90"] == pytest.approx(1 / 3)


def test_known_is_the_best_domain_over_the_background() -> None:
    scored = over_background(["_x", "b", "_y", "a"], np.array([[0.1, 0.9, 0.4, 0.2]]))
    assert scored.names == ("b", "a")
    assert scored.known.tolist() == pytest.approx([0.5])


class TestKeptRows:
    @staticmethod
    def prompt(text: str) -> Prompt:
        return [user(text)]

    def test_what_is_kept_is_not_made_again(self, tmp_path: Path) -> None:
        asked: list[int] = []

        def make(prompts: list[Prompt]) -> np.ndarray:
            asked.append(len(prompts))
            return np.array([[len(p[0]["content"])] for p in prompts], dtype=np.float32)

        path = tmp_path / "rows.npz"
        first = KeptRows(make, "lengths", path)([self.prompt(t) for t in ("a", "bb", "a")])
        assert first.tolist() == [[1], [2], [1]]
        again = KeptRows(make, "lengths", path)
        assert again([self.prompt(t) for t in ("bb", "ccc")]).tolist() == [[2], [3]]
        assert asked == [2, 1]

    def test_another_maker_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.npz"
        KeptRows(lambda p: np.zeros((len(p), 1)), "layer 4", path)([self.prompt("a")])
        with pytest.raises(ValueError, match="holds features of 'layer 4', not 'layer 8'"):
            KeptRows(lambda p: np.zeros((len(p), 1)), "layer 8", path)

    def test_sides_keep_their_shapes(self) -> None:
        rows = KeptRows(lambda p: np.ones((len(p), 3, 2)), "ones")
        views = [[self.prompt("a"), self.prompt("b")]]
        made = rows.classes({"x": Prompts(views * 4, views, [])})["x"]
        assert [made[side].shape for side in ("statistics", "held_out", "dev")] == [
            (4, 2, 3, 2),
            (1, 2, 3, 2),
            (0, 1, 3, 2),
        ]
