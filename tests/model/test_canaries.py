"""Canaries: no shift where nothing moved, a report where something did, a warning if it matters."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import asr
from asr.model.canaries import PROMPTS, TENSOR, CanaryReport, canary_features, compare_canaries
from asr.model.directory import ModelDirectory
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
    assert warning.endswith("load with dtype=float32 to get the training's decisions")


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
    assert "typical margin" not in alone.warning("float32")
    assert CanaryReport(0.1234, 0.5, 0.25, True).warning("bfloat16") == (
        "warning: features moved by 12.3% since training, scores by up to 0.500 (typical margin "
        "0.250); load with dtype=bfloat16 to get the training's decisions"
    )


def test_a_changed_base_shows(stored):
    model = load("float32")
    with torch.no_grad():
        model.base.model.get_input_embeddings().weight.mul_(1.0).add_(0.3)
    assert model.canaries(stored).relative_shift > 0.01
