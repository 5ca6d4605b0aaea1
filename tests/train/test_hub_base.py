"""A model made on a base of the hub goes on with the commit that it was made on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from asr.model.manifest import Manifest
from asr.model.routed_model import RoutedModel
from tests.base.hub_server import serving
from tests.tiny_models import save_tiny_base
from tests.train.conftest import Workshop


def test_the_hub_moving_on_does_not_stop_a_model(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as hub:
        hub.replace_the_real_one(monkeypatch, tmp_path / "hub-cache")
        first = hub.push("org/base", shop.base)
        made = shop.train("m", ["red"], base="org/base")
        recorded = Manifest.load(made.path).base
        assert (recorded.source, recorded.revision) == ("hub", first)
        hub.push("org/base", save_tiny_base(tmp_path / "newer", seed=1))
        shutil.rmtree(tmp_path / "hub-cache")  # another machine
        RoutedModel.from_pretrained(made.path, device="cpu", dtype="float32")
        shop.train("m", ["red", "sum"], base="org/base", resume=True)
        assert list(Manifest.load(made.path).domains) == ["red", "sum"]
        assert Manifest.load(made.path).base == recorded
