"""What is read of every domain before the base is loaded, and that it is read once."""

from __future__ import annotations

from typing import Any

import pytest

from asr.errors import DataError
from asr.train import check_data as module
from asr.train.check_data import check_data
from tests.train.conftest import Workshop


def test_cuts_hash_and_scorer(shop: Workshop) -> None:
    config = shop.config({"red": {}, "sum": {"scorer": "label"}})
    read = check_data(config, ["red", "sum"])
    assert list(read) == ["red", "sum"]
    red = read["red"]
    assert len(red.train) + len(red.dev) == len(red.loaded.examples) == 24
    assert not {e.prompt_key for e in red.train} & {e.prompt_key for e in red.dev}
    assert red.sha256 == red.loaded.sha256
    assert (red.scorer, read["sum"].scorer) == ("exact", "label")


def test_a_dev_file_of_its_own_leaves_all_to_train_on_and_enters_the_hash(shop: Workshop) -> None:
    dev = shop.data("dev")
    alone = check_data(shop.config(["red"]), ["red"])["red"]
    red = check_data(shop.config({"red": {"dev": str(dev)}}), ["red"])["red"]
    assert len(red.train) == len(red.dev) == 24
    assert red.loaded.sha256 == alone.loaded.sha256 != red.sha256


def test_errors_of_all_domains_at_once(shop: Workshop) -> None:
    for name in ("red", "sum"):
        (shop.folder / f"{name}.jsonl").write_text('{"prompt": "q"}\n')
    with pytest.raises(DataError) as caught:
        check_data(shop.config(["red", "turn", "sum"]), ["red", "turn", "sum"])
    lines = str(caught.value).splitlines()
    assert lines[0] == "the data of 2 domains cannot be used"
    assert sum("red.jsonl:1:" in line or "sum.jsonl:1:" in line for line in lines) == 2


def test_a_run_reads_each_file_once(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    load = module.load_examples

    def counted(path: Any, **options: Any) -> Any:
        opened.append(path.name)
        return load(path, **options)

    monkeypatch.setattr(module, "load_examples", counted)
    shop.train("m", ["red", "sum"])
    assert opened == ["red.jsonl", "sum.jsonl"]
