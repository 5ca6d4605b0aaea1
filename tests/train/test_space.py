"""A run that the disk has no room for is refused before it begins."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from asr.base.load import load_base
from asr.errors import StorageError
from asr.train.prepare import prepare_domains
from asr.train.space import RESERVE, needed_bytes, require_space
from tests.train.conftest import Workshop

Usage = namedtuple("Usage", "total used free")


def test_what_is_needed(shop: Workshop, tiny_base: Path) -> None:
    base = load_base(str(tiny_base), device="cpu", dtype="float32")
    config = shop.config({"red": {}, "sum": {"adapter": {"init_lora_weights": "pissa"}}})
    red, summed = prepare_domains(config, base, 2, 1)
    trained = red.placement.parameters(2)
    one = trained * 4 + trained * 24 + 33**2 * 8 + RESERVE  # adapter, checkpoints, statistics
    assert needed_bytes([red], features=33) == one
    # converted on saving: its rank doubles; checkpoints are of one domain at a time
    assert needed_bytes([red, summed], 33) == one + 2 * trained * 4 + 33**2 * 8
    assert needed_bytes([], 33) == 0


def test_a_full_disk_is_named_before_anything_is_written(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(10**9, 10**9, 12_000_000))
    with pytest.raises(StorageError) as caught:
        shop.train("deeper/m", ["red"])
    assert str(caught.value) == (
        "the run needs about 67 MB for adapters, checkpoints and statistics, and the disk of "
        f"{shop.folder / 'deeper' / 'm'} has 12 MB free; free space, or choose another --out"
    )
    assert not (shop.folder / "deeper" / "m" / "manifest.json").exists()


def test_room_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(10, 0, 10))
    require_space(tmp_path / "not" / "there", 10)
    with pytest.raises(StorageError):
        require_space(tmp_path / "not" / "there", 11)
