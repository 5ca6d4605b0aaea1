"""The estimator: scikit-learn's own checks, exactness, order, streaming, bad input."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.linear_model import RidgeClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks

from asr.errors import RouterError
from asr.router import AnalyticRouter
from asr.router.analytic import BLOCK_ROWS


def excluded(estimator: AnalyticRouter) -> dict[str, str]:
    if estimator.solver == "rls":
        reason = "recursive least squares counts every row once; class_weight is refused"
        return {"check_class_weight_classifiers": reason}
    return {}


@parametrize_with_checks(
    [AnalyticRouter(), AnalyticRouter(solver="rls", ridge=1.0)],
    expected_failed_checks=excluded,
)
def test_scikit_learns_checks(estimator: AnalyticRouter, check: Any) -> None:
    check(estimator)


def rows(seed: int, count: int, classes: int = 4, width: int = 9) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    y = generator.integers(0, classes, count)
    centres = np.random.default_rng(1).standard_normal((classes, width)) * 1.5
    return centres[y] + generator.standard_normal((count, width)), np.array(list("abcdefgh"))[y]


X, Y = rows(0, 400)
PROBES, ANSWERS = rows(2, 200)


def test_equals_the_normal_equations() -> None:
    router = AnalyticRouter(ridge=1e-2, held_out=0).fit(X, Y)
    features = np.concatenate([X, np.ones((len(X), 1))], axis=1)
    gram = features.T @ features
    targets = features.T @ (Y[:, None] == router.classes_)
    shift = 1e-2 * np.trace(gram) / len(gram)
    expected = np.linalg.solve(gram + shift * np.eye(len(gram)), targets)
    assert np.linalg.norm(router.coef_ - expected) <= 1e-9 * np.linalg.norm(expected)
    peer = RidgeClassifier(alpha=shift).fit(X, Y)
    assert abs(router.score(PROBES, ANSWERS) - peer.score(PROBES, ANSWERS)) <= 0.03
    assert router.score(PROBES, ANSWERS) > 0.85


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"solver": "rls", "ridge": 1.0},
        {"class_weight": "balanced", "prototypes": 3, "normalise": True, "expansion": 40},
    ],
)
@given(cuts=st.lists(st.integers(1, 399), max_size=6), order=st.permutations(range(400)))
@settings(max_examples=15, deadline=None)
def test_any_order_and_batching_is_one_fit(
    options: dict[str, Any], cuts: list[int], order: list[int]
) -> None:
    whole = AnalyticRouter(**options).fit(X, Y)
    parts = AnalyticRouter(**options)
    for part in np.split(np.array(order), sorted(set(cuts))):
        parts.partial_fit(X[part], Y[part])
    np.testing.assert_array_equal(parts.classes_, whole.classes_)
    np.testing.assert_array_equal(parts.owners_, whole.owners_)
    assert np.linalg.norm(parts.coef_ - whole.coef_) <= 1e-9 * np.linalg.norm(whole.coef_)
    assert parts.temperature_ == pytest.approx(whole.temperature_, rel=1e-4)
    assert parts.n_samples_seen_ == 400
    np.testing.assert_array_equal(parts.predict(PROBES), whole.predict(PROBES))


def test_rows_under_two_labels_and_many_held_out_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Order plays no part where a row comes under two labels, or more are held out than kept."""
    monkeypatch.setattr("asr.router.analytic.HELD_OUT_ROWS", 40)
    again = X[Y == "a"]
    data, labels = np.concatenate([X, again]), np.concatenate([Y, np.full(len(again), "b")])
    orders = [np.arange(len(data)), np.arange(len(data))[::-1], np.argsort(data[:, 0])]
    made = [AnalyticRouter(held_out=0.3) for _ in orders]
    for router, order in zip(made, orders, strict=True):
        for part in np.array_split(order, 5):
            router.partial_fit(data[part], labels[part])
    shares = [router.predict_proba(PROBES) for router in made]
    np.testing.assert_allclose(shares[1], shares[0], atol=1e-6)
    np.testing.assert_allclose(shares[2], shares[0], atol=1e-6)
    learned = sum(own.prompts for own in made[0]._state.sums.values())
    held = sum(own.count for own in made[0]._state.kept.values())
    assert (learned + held, len(made[0]._state.kept)) == (len(data), 40)


def test_revisited_classes_are_gacls_decomposition() -> None:
    """GACL (arXiv 2403.15706): weights of exposed classes move by the new rows, new ones appear."""
    features = np.concatenate([X, np.ones((len(X), 1))], axis=1)
    old, new = Y < "c", Y >= "b"  # "b" is revisited
    first, second = features[old], features[new]
    ridge = 0.5
    inverse = np.linalg.inv(first.T @ first + ridge * np.eye(10))
    weights = inverse @ first.T @ (Y[old][:, None] == np.array(["a", "b"]))
    inverse = np.linalg.inv(np.linalg.inv(inverse) + second.T @ second)
    exposed = Y[new][:, None] == np.array(["a", "b"])
    unexposed = Y[new][:, None] == np.array(["c", "d"])
    moved = weights - inverse @ second.T @ second @ weights + inverse @ second.T @ exposed
    expected = np.concatenate([moved, inverse @ second.T @ unexposed], axis=1)
    router = AnalyticRouter(solver="rls", ridge=ridge, held_out=0)
    router.partial_fit(X[old], Y[old]).partial_fit(X[new], Y[new])
    assert np.linalg.norm(router.coef_ - expected) <= 1e-9 * np.linalg.norm(expected)


def test_recursion_equals_the_direct_solve_at_an_absolute_ridge() -> None:
    recursive = AnalyticRouter(solver="rls", ridge=2.0, held_out=0).fit(X, Y)
    features = np.concatenate([X, np.ones((len(X), 1))], axis=1)
    gram = features.T @ features + 2.0 * np.eye(10)
    expected = np.linalg.solve(gram, features.T @ (Y[:, None] == recursive.classes_))
    assert np.linalg.norm(recursive.coef_ - expected) <= 1e-9 * np.linalg.norm(expected)


def test_aggregating_clients_is_adding_sums() -> None:
    """AFL's absolute aggregation law (arXiv 2405.16240), once the per-client ridge is taken out."""
    halves = [(X[Y < "c"], Y[Y < "c"]), (X[Y >= "b"], Y[Y >= "b"])]
    client = 0.7
    weights, grams = [], []
    for part, labels in halves:
        features = np.concatenate([part, np.ones((len(part), 1))], axis=1)
        gram = features.T @ features + client * np.eye(10)
        weights.append(np.linalg.solve(gram, features.T @ (labels[:, None] == np.unique(Y))))
        grams.append(gram)
    # the law joins W_u, C_u pairwise; what is left is 2 client ridges too many
    joined = np.linalg.solve(grams[0] + grams[1], grams[0] @ weights[0] + grams[1] @ weights[1])
    total = grams[0] + grams[1]
    restored = np.linalg.solve(total - 2 * client * np.eye(10), total @ joined)
    both = AnalyticRouter(ridge=1e-12, held_out=0)
    for part, labels in halves:
        both.partial_fit(part, labels)
    assert np.linalg.norm(both.coef_ - restored) <= 1e-8 * np.linalg.norm(restored)


def test_balanced_weights_come_from_all_counts() -> None:
    rare = np.concatenate([np.flatnonzero(Y == "a")[:6], np.flatnonzero(Y != "a")])
    plain = AnalyticRouter(held_out=0).fit(X[rare], Y[rare])
    balanced = AnalyticRouter(held_out=0, class_weight="balanced").fit(X[rare], Y[rare])
    assert (balanced.predict(PROBES) == "a").sum() > (plain.predict(PROBES) == "a").sum()
    counts = {label: float((Y[rare] == label).sum()) for label in "abcd"}
    named = {label: len(rare) / (4 * count) for label, count in counts.items()}
    same = AnalyticRouter(held_out=0, class_weight=named).fit(X[rare], Y[rare])
    np.testing.assert_allclose(same.coef_, balanced.coef_, rtol=1e-12)


def test_prototypes_hold_classes_of_two_clouds() -> None:
    """Two clouds on opposite sides for each class: no straight line tells them apart."""
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 200)
    sides = generator.choice([-3.0, 3.0], 400)
    data = generator.standard_normal((400, 4)) * 0.3
    data[np.arange(400), labels] += sides
    one = AnalyticRouter().fit(data, labels).score(data, labels)
    four = AnalyticRouter(prototypes=4).fit(data, labels).score(data, labels)
    assert one < 0.7 < 0.95 < four


def test_probabilities_are_calibrated() -> None:
    data, labels = rows(5, 6000)
    fresh, answers = rows(6, 4000)
    router = AnalyticRouter().fit(data, labels)
    shares = router.predict_proba(fresh)
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)
    best, right = shares.max(axis=1), router.predict(fresh) == answers
    bins = np.clip((best * 10).astype(int), 0, 9)
    error = sum(abs(best[bins == b].sum() - right[bins == b].sum()) for b in set(bins.tolist()))
    assert error / len(fresh) <= 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensors_stream_in_blocks(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asr.router.analytic.BLOCK_ROWS", 64)
    assert BLOCK_ROWS >= 1024
    tensor = torch.tensor(X).to(dtype)
    streamed = AnalyticRouter(held_out=0).fit(tensor, Y)
    exact = AnalyticRouter(held_out=0).fit(tensor.double().numpy(), Y)
    np.testing.assert_array_equal(streamed.coef_, exact.coef_)
    np.testing.assert_array_equal(streamed.predict(tensor), exact.predict(tensor.double().numpy()))


def test_new_classes_and_announced_ones() -> None:
    router = AnalyticRouter().partial_fit(X[Y < "c"], Y[Y < "c"], classes=["a", "b", "z"])
    assert router.classes_.tolist() == ["a", "b", "z"]
    assert "z" not in router.predict(PROBES)
    router.partial_fit(X[Y == "d"], Y[Y == "d"])
    assert router.classes_.tolist() == ["a", "b", "d", "z"]
    assert router.predict(X[Y == "d"][:1]).tolist() == ["d"]


def test_one_row_for_each_class() -> None:
    for seed in range(20):  # whether or not a row's hash would hold it out
        data, _ = rows(seed, 2)
        assert AnalyticRouter(held_out=0.5).fit(data, [0, 1]).predict(data).tolist() == [0, 1]


def test_same_data_in_two_classes_cannot_be_told_apart() -> None:
    router = AnalyticRouter(held_out=0).fit(np.concatenate([X, X]), np.repeat([0, 1], len(X)))
    with pytest.warns(UserWarning, match="have the same rows: they cannot be told apart"):
        router.decision_function(PROBES)
    np.testing.assert_allclose(router.decision_function(PROBES), 0.0, atol=1e-9)
    np.testing.assert_allclose(router.predict_proba(PROBES), 0.5, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "sgd"}, "solver is 'sgd'; it is 'direct' or 'rls'"),
        ({"ridge": 0.0}, "ridge is 0.0; it must be above 0"),
        ({"prototypes": 0}, "prototypes is 0; it must be 1 or more"),
        ({"held_out": 1.0}, "held_out is 1.0; it must be in 0 ... 1"),
        ({"class_weight": "equal"}, "class_weight is 'equal'; it is None, 'balanced' or a mapping"),
        (
            {"solver": "rls", "class_weight": "balanced"},
            "solver 'rls' counts every row once; class_weight needs 'direct'",
        ),
    ],
)
def test_bad_parameters(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        AnalyticRouter(**options).fit(X, Y)


def test_bad_rows() -> None:
    router = AnalyticRouter().fit(X, Y)
    broken = X.copy()
    broken[3, 2] = np.inf
    for wrong, message in (
        (broken, "Input X contains NaN or infinity"),
        (X[:, :4], "X has 4 features, but AnalyticRouter is expecting 9 features as input"),
        (X[:0], r"Found array with 0 sample\(s\)"),
        (X[0], "give one row per sample"),
    ):
        with pytest.raises(ValueError, match=message):
            router.partial_fit(wrong, Y[: len(wrong)])
    assert router.n_samples_seen_ == 400  # nothing was lost or added
    with pytest.raises(ValueError, match="y has one class"):
        AnalyticRouter().fit(X, np.zeros(len(X)))
    with pytest.raises(RouterError, match="too small for these features"):
        AnalyticRouter(ridge=1e-300, held_out=0).fit(np.ones((30, 9)), [0, 1] * 15).predict(X)


def test_it_is_cloned_and_pickled() -> None:
    router = AnalyticRouter(prototypes=2).fit(X, Y)
    again = pickle.loads(pickle.dumps(router))
    np.testing.assert_array_equal(again.predict_proba(PROBES), router.predict_proba(PROBES))
    assert clone(router).get_params() == router.get_params()


def test_it_works_without_scikit_learn() -> None:
    code = (
        "import sys, importlib.util\n"
        "found = importlib.util.find_spec\n"
        "gone = lambda name, *a: None if name == 'sklearn' else found(name, *a)\n"
        "importlib.util.find_spec = gone\n"
        "import numpy as np\n"
        "from asr.router import AnalyticRouter\n"
        "X = np.random.default_rng(0).standard_normal((60, 5)); y = (X[:, 0] > 0).astype(int)\n"
        "router = AnalyticRouter().set_params(ridge=1e-2).fit(X, y)\n"
        "assert router.score(X, y) > 0.8 and router.get_params()['ridge'] == 1e-2\n"
        "try:\n    AnalyticRouter().predict(X)\n"
        "except ValueError as error:\n    assert 'not fitted yet' in str(error)\n"
        "else:\n    raise SystemExit('no error')\n"
        "assert 'sklearn' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
