"""Loading says when the features have moved since training, and is silent when they have not."""

from __future__ import annotations

import pytest

import asr
from asr.model import routed_model
from tests.routed import trained


def load(lines: list[str]) -> None:
    path = trained() / "model"
    asr.RoutedModel.from_pretrained(path, device="cpu", dtype="float32", say=lines.append).close()


def test_a_shift_of_the_features_is_said_at_load(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    load(lines)
    assert not any("features moved" in line for line in lines)
    measured = routed_model.canary_features
    monkeypatch.setattr(
        routed_model, "canary_features", lambda base, forward: -measured(base, forward)
    )
    load(lines)
    [said] = [line for line in lines if "features moved" in line]
    assert said.startswith("warning: features moved by 200.0% since training, scores by up to ")
