"""Canaries: no shift where nothing moved, a report where something did, a warning if it matters."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import asr
from asr.model.canaries import (
    PROMPTS,
    TENSOR,
    CanaryReport,
    canary_features,
    compare_canaries,
    settled_canaries,
)
from asr.model.contract import NumericContract
from asr.model.directory import ModelDirectory
from asr.model.manifest import Manifest
from asr.router import load_router
from tests.routed import trained


@pytest.fixture(scope="module")
def stored():
    found = load_router(ModelDirectory(trained() / "model").router)
    return found.extra_tensors[TENSOR]


def load(dtype, say=lambda message: None):
    return asr.RoutedModel.from_pretrained(trained() / "model", device="cpu", dtype=dtype, say=say)


def test_the_same_arithmetic_gives_the_same_features(stored):
    said: list[str] = []
    model = load("float32", said.append)
    assert stored.shape == (len(PROMPTS), 32)
    report = model.canaries(stored)
    assert (report.relative_shift, report.score_shift, report.matters) == (0.0, 0.0, False)
    assert report.typical_margin > 0
    assert not any("warning" in message for message in said)


def test_another_dtype_is_measured(stored):
    report = load("bfloat16").canaries(stored)
    assert 1e-4 < report.relative_shift < 0.1
    assert report.score_shift > 1e-5


def test_a_shift_that_matters_is_said_and_what_to_do(monkeypatch):
    def moved(base, forward):
        return canary_features(base, forward)[::-1].copy()

    monkeypatch.setattr("asr.model.routed_model.canary_features", moved)
    said: list[str] = []
    load("float32", said.append)
    [warning] = [message for message in said if message.startswith("warning")]
    assert "features moved by" in warning and "typical margin" in warning
    assert warning.endswith(
        "; dtype, quantisation and device are those of training: use its versions of torch and "
        "transformers (asr info shows them) to get its decisions"
    )


def _shifted(base, forward):
    return canary_features(base, forward)[::-1].copy()


def test_the_warning_says_what_is_another_than_at_training(monkeypatch):
    monkeypatch.setattr("asr.model.routed_model.canary_features", _shifted)
    said: list[str] = []
    load("bfloat16", said.append)
    [warning] = [message for message in said if message.startswith("warning")]
    assert warning.endswith(
        ": dtype was float32 and is bfloat16; load with dtype=float32 to get the training's "
        "decisions"
    )


def test_a_later_run_keeps_the_first_features_and_is_compared_with_them(monkeypatch, stored):
    """A run that adds a domain under another dtype must not pass for the first one."""
    directory = ModelDirectory(trained() / "model")
    manifest = Manifest.load(directory.path)
    model = load("bfloat16")
    now = canary_features(model.base, model.forward)
    assert not np.array_equal(now, stored)
    said: list[str] = []
    kept = settled_canaries(directory, manifest, model.base, model.forward, said.append)
    assert np.array_equal(kept, stored) and said == []
    monkeypatch.setattr("asr.model.canaries.canary_features", _shifted)
    kept = settled_canaries(directory, manifest, model.base, model.forward, said.append)
    assert np.array_equal(kept, stored)
    [warning] = said
    assert "dtype was float32 and is bfloat16; load with dtype=float32" in warning


def test_canaries_are_made_where_there_are_none(stored, tmp_path):
    model = load("float32")
    manifest = Manifest.load(trained() / "model")
    said: list[str] = []
    made = settled_canaries(
        ModelDirectory(tmp_path), manifest, model.base, model.forward, said.append
    )
    assert np.array_equal(made, stored) and said == []
    manifest.domains.clear()
    empty = settled_canaries(
        ModelDirectory(trained() / "model"), manifest, model.base, model.forward, said.append
    )
    assert np.array_equal(empty, stored)


def test_shifts_are_counted_in_margins():
    """Scores are the features themselves here, so everything can be seen."""
    router = SimpleNamespace(scores=lambda features: features.astype(np.float64))
    stored = np.array([[1.0, 0.0], [0.0, 0.8], [0.9, 0.3]], dtype=np.float32)
    report = compare_canaries(
        stored, stored + np.float32([[0.0, 0.0], [0.0, 0.1], [0.0, 0.0]]), router
    )
    assert report.relative_shift == pytest.approx(0.1 / 0.8)
    assert report.score_shift == pytest.approx(0.1)
    assert report.typical_margin == pytest.approx(0.8)  # of 1.0, 0.8, 0.6
    assert not report.matters  # 0.1 is less than a quarter of 0.8
    assert compare_canaries(stored, stored + np.float32(0.21), router).matters
    single = SimpleNamespace(scores=lambda features: features[:, :1].astype(np.float64))
    alone = compare_canaries(stored, stored + np.float32(0.2), single)
    assert alone.typical_margin is None and alone.matters
    then = NumericContract(dtype="bfloat16", quantisation=None, device="cuda")
    here = NumericContract(dtype="bfloat16", quantisation="nf4", device="cpu")
    assert "typical margin" not in alone.warning(then, here)
    assert CanaryReport(0.1234, 0.5, 0.25, True).warning(then, here) == (
        "warning: features moved by 12.3% since training, scores by up to 0.500 (typical margin "
        "0.250): quantisation was none and is nf4, device was cuda and is cpu; load with "
        "quantisation=none and device=cuda to get the training's decisions"
    )


def test_a_changed_base_shows(stored):
    model = load("float32")
    with torch.no_grad():
        model.base.model.get_input_embeddings().weight.mul_(1.0).add_(0.3)
    assert model.canaries(stored).relative_shift > 0.01
