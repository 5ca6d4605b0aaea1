"""A sequence of domains: what one domain's result may and may not depend on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import asr
from asr.base.fingerprint import fingerprint, tensors_hash
from asr.base.load import load_base
from asr.errors import (
    BaseModelError,
    ConfigError,
    DataError,
    DirectoryError,
    LockedError,
    SplitUnsupportedError,
)
from asr.model.directory import ModelDirectory
from asr.model.manifest import Manifest
from asr.train.sequence import train_sequence
from tests.train.conftest import Recorder, Workshop, assert_equal_runs, published, write_domain


def router_tensors(directory: ModelDirectory) -> dict[str, bytes]:
    return {key: value.tobytes() for key, value in load_file(directory.router).items()}


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def test_a_whole_run(shop: Workshop) -> None:
    watcher = Recorder()
    out = shop.train("m", ["red", "sum", "turn"], watcher=watcher)
    manifest = Manifest.load(out.path)
    assert manifest.finished == watcher.started == ["red", "sum", "turn"]
    assert out.verify(manifest) == []
    assert not out.checkpoints.exists()
    matrix = json.loads(out.matrix.read_text())
    assert matrix["domains"] == ["red", "sum", "turn"]
    entry = manifest.domains["sum"]
    assert entry.training["batch_size"] == 4
    assert entry.placement["rank"] == 2
    assert entry.data is not None
    assert (entry.data.examples, entry.data.dropped) == (24, 0)
    assert entry.data.train + entry.data.dev == 24
    assert all(".layers.2." in m or ".layers.3." in m for m in entry.placement["modules"])
    model = asr.RoutedModel.from_pretrained(out.path)
    answers = model.generate(["Say the colour of it.\nred 3 9", "Add the numbers.\nsum 1 2"])
    assert [answer.adapter for answer in answers] == ["red", "sum"]


def test_an_adapter_depends_on_its_own_domain_only(shop: Workshop) -> None:
    one = shop.train("one", ["red", "sum", "turn"])
    other = shop.train("other", ["turn", "red"])
    alone = shop.train("alone", ["red"])
    for name, directories in {"red": [one, other, alone], "turn": [one, other]}.items():
        assert len({d.adapter_weights(name).read_bytes() for d in directories}) == 1
        assert len({d.router_statistics(name).read_bytes() for d in directories}) == 1
    assert alone.adapter_weights("red").read_bytes() != one.adapter_weights("sum").read_bytes()


def test_the_router_does_not_depend_on_the_order(shop: Workshop) -> None:
    one = shop.train("one", ["red", "sum", "turn"])
    other = shop.train("other", ["turn", "sum", "red"])
    assert router_tensors(one) == router_tensors(other)


def test_adding_touches_nothing_and_needs_no_old_data(shop: Workshop) -> None:
    both = shop.train("both", ["red", "sum"])
    added = shop.train("added", ["red"])
    before = snapshot(added.adapters), snapshot(added.router_folder)["red.safetensors"]
    recorded = Manifest.load(added.path).domains["red"]
    shop.data("red").unlink()
    config = shop.raw(["sum"])
    config["domains"] = {
        "red": {"train": str(shop.folder / "red.jsonl")}, **config["domains"]
    }  # fmt: skip
    watcher = Recorder()
    train_sequence(
        asr.TrainConfig.model_validate_json(json.dumps(config)),
        added.path,
        resume=True,
        watcher=watcher,
    )
    assert watcher.started == ["sum"]
    after = snapshot(added.adapters)
    assert {name: after[name] for name in before[0]} == before[0]  # bytes and times
    assert snapshot(added.router_folder)["red.safetensors"] == before[1]
    assert Manifest.load(added.path).domains["red"] == recorded
    assert_equal_runs(both, added)


def test_the_base_is_the_same_before_and_after(shop: Workshop) -> None:
    def hashes() -> tuple[str, str]:
        base = load_base(str(shop.base), device="cpu", dtype="float32")
        return fingerprint(shop.base), tensors_hash(base.model)

    before, files = hashes(), snapshot(shop.base)
    shop.train("m", ["red"])
    assert (hashes(), snapshot(shop.base)) == (before, files)


def test_a_base_that_changes_is_noticed(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    import asr.train.domain as module

    honest = module.train_adapter

    def careless(base: Any, *args: Any, **kwargs: Any) -> Any:
        result = honest(base, *args, **kwargs)
        with torch.no_grad():
            next(iter(base.model.parameters())).view(-1)[0] += 1e-3
        return result

    monkeypatch.setattr(module, "train_adapter", careless)
    with pytest.raises(BaseModelError, match="the base's weights changed while 'red' was trained"):
        shop.train("m", ["red"])


# -- the output folder ---------------------------------------------------------------------------


def test_a_second_writer_is_refused_and_the_first_goes_on(shop: Workshop) -> None:
    refused: list[str] = []

    def second(domain: str, step: int) -> None:
        if step == 2:
            for resume in (True, False):
                with pytest.raises((LockedError, DirectoryError)) as caught:
                    shop.train("m", ["red"], resume=resume)
                refused.append(str(caught.value))
            with pytest.raises(LockedError):
                shop.train("m", ["red"], overwrite=True)

    out = shop.train("m", ["red"], watcher=Recorder(second))
    assert "is being written by this process itself since" in refused[0]
    assert Manifest.load(out.path).finished == ["red"]
    assert_equal_runs(shop.train("quiet", ["red"]), out)


def test_the_lock_is_given_back_after_every_error(shop: Workshop) -> None:
    out = shop.train("m", ["red"])
    sound = out.manifest.read_text()
    tree = json.loads(sound)
    out.manifest.write_text(json.dumps({**tree, "seed": "no number"}))
    for _ in range(2):  # the second would meet the lock of the first
        with pytest.raises(DirectoryError, match=r"manifest\.json: seed"):
            shop.train("m", ["red"], resume=True)
    out.manifest.write_text(sound)
    shop.train("m", ["red"], resume=True)


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}])
def test_a_folder_with_something_else_is_left_alone(shop: Workshop, flags: dict[str, bool]) -> None:
    folder = shop.folder / "m"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(DirectoryError, match="output folder not empty"):
        shop.train("m", ["red"], **flags)
    assert (folder / "thesis.txt").read_text() == "years of work"


def test_a_model_is_not_trained_over(shop: Workshop) -> None:
    out = shop.train("m", ["red"])
    before = snapshot(out.path)
    with pytest.raises(DirectoryError) as caught:
        shop.train("m", ["sum"])
    assert str(caught.value) == (
        f"output folder not empty: '{out.path}' is a routed model directory; add --resume to "
        "continue it, or --overwrite to delete it and start again"
    )
    assert snapshot(out.path) == before


def test_overwrite_is_the_same_as_new(shop: Workshop) -> None:
    out = shop.train("m", ["red", "sum"])
    shop.train("m", ["turn"], overwrite=True, seed=3)
    assert_equal_runs(shop.train("new", ["turn"], seed=3), out)
    shop.train("fresh", ["turn"], overwrite=True, seed=3)  # nothing there to delete
    assert_equal_runs(ModelDirectory(shop.folder / "fresh"), out)


def bad_runs(shop: Workshop) -> dict[str, tuple[type[Exception], dict[str, Any]]]:
    broken = shop.folder / "broken.jsonl"
    broken.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": 3}\n')
    return {
        "missing file": (ConfigError, {"domains": {"red": {"train": "/nowhere.jsonl"}}}),
        "bad rows": (DataError, {"domains": {"red": {"train": str(broken)}}}),
        "no base": (BaseModelError, {"domains": ["red"], "base": str(shop.folder / "nobase")}),
        "layer": (ConfigError, {"domains": ["red"], "router__layer": 9}),
        "module": (
            asr.AsrError,
            {"domains": ["red"], "adapter__placement": {"modules": ["model.layers.3.nope"]}},
        ),
        "length": (ConfigError, {"domains": ["red"], "training__max_length": 100_000}),
        "later domain": (
            DataError,
            {"domains": {"red": {}, "sum": {"train": str(broken)}}},
        ),
        "too short": (DataError, {"domains": ["red"], "training__max_length": 4}),
    }


def test_overwrite_deletes_only_after_everything_else_was_checked(shop: Workshop) -> None:
    out = shop.train("m", ["red"])
    before = snapshot(out.path)
    for name, (kind, changes) in bad_runs(shop).items():
        watcher = Recorder()
        with pytest.raises(kind):
            shop.train("m", overwrite=True, watcher=watcher, **changes)
        assert snapshot(out.path) == before, name
        assert watcher.started == [], name
    both = {"resume": True, "overwrite": True}
    with pytest.raises(ConfigError, match="--resume and --overwrite exclude each other"):
        shop.train("m", ["red"], **both)
    (out.path / "notes.txt").write_text("mine")
    with pytest.raises(DirectoryError, match=r"nothing deleted: .*notes\.txt"):
        shop.train("m", ["red"], overwrite=True)
    (out.path / "notes.txt").unlink()
    assert snapshot(out.path) == before


def test_bad_input_leaves_no_folder_that_blocks_the_next_run(shop: Workshop) -> None:
    for kind, changes in bad_runs(shop).values():
        with pytest.raises(kind):
            shop.train("m", **changes)
    shop.train("m", ["red"])


# -- data ------------------------------------------------------------------------------------------


def texts_under(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_without_keep_eval_no_prompt_is_on_disk(shop: Workshop) -> None:
    write_domain(shop.folder / "red.jsonl", "red")
    marked = (shop.folder / "red.jsonl").read_text().replace("red ", "zebrafish ")
    (shop.folder / "red.jsonl").write_text(marked)
    kept = shop.train("kept", ["red"])
    assert any(b"zebrafish" in text for text in texts_under(kept.path).values())
    out = shop.train("m", ["red"], keep_eval=False)
    assert [name for name, text in texts_under(out.path).items() if b"zebrafish" in text] == []
    assert not out.eval.exists()
    manifest = Manifest.load(out.path)
    assert manifest.finished == ["red"]
    assert manifest.keep_eval is False
    assert out.adapter_weights("red").read_bytes() == kept.adapter_weights("red").read_bytes()


def test_all_labels_masked_is_an_error_before_any_training(shop: Workshop) -> None:
    rows = [{"prompt": f"p {i}", "completion": "long " * 90} for i in range(8)]
    (shop.folder / "red.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    watcher = Recorder()
    with pytest.raises(DataError, match=r"red: all labels masked: none of the .* raise max_length"):
        shop.train("m", ["sum", "red"], watcher=watcher)
    assert watcher.started == []
    assert not (shop.folder / "m" / "manifest.json").exists()


# -- two passes ------------------------------------------------------------------------------------


def test_two_passes_serve_a_base_that_cannot_be_split(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = shop.train("split", ["red", "sum"])
    whole = shop.train("whole", ["red", "sum"], router__two_pass=True)
    for name in ("red", "sum"):
        assert split.adapter_weights(name).read_bytes() == whole.adapter_weights(name).read_bytes()
        assert (
            split.router_statistics(name).read_bytes() == whole.router_statistics(name).read_bytes()
        )
    assert router_tensors(split) == router_tensors(whole)
    one, two = published(split)["manifest"], published(whole)["manifest"]
    assert (one.pop("two_pass"), two.pop("two_pass")) == (False, True)
    assert one == two
    assert split.matrix.read_text() == whole.matrix.read_text()

    import asr.base.split as module

    def refuse(self: Any, *args: Any, **kwargs: Any) -> None:
        raise self._unsupported("its layers are fused")

    monkeypatch.setattr(module.SplitForward, "_check", refuse)
    with pytest.raises(SplitUnsupportedError):
        shop.train("m", ["red", "sum"])
    out = shop.train("m", ["red", "sum"], router__two_pass=True)
    assert_equal_runs(whole, out)


def test_features_are_finite_and_counted(shop: Workshop) -> None:
    out = shop.train("m", ["red"])
    manifest = Manifest.load(out.path)
    entry = manifest.domains["red"]
    assert entry.router is not None and entry.data is not None
    assert entry.router.prompts == entry.data.train - entry.data.calibration
    tensors = load_file(out.router)
    assert all(np.isfinite(t).all() for t in tensors.values() if t.dtype.kind == "f")


def test_a_base_that_is_loaded_already_is_used_and_comes_back(shop: Workshop) -> None:
    loaded = load_base(str(shop.base), device="cpu", dtype="float32")
    frozen = tensors_hash(loaded.model)
    config = shop.config(["red"])
    train_sequence(config, shop.folder / "given", base=loaded)
    train_sequence(config, shop.folder / "own")
    assert tensors_hash(loaded.model) == frozen
    assert_equal_runs(ModelDirectory(shop.folder / "given"), ModelDirectory(shop.folder / "own"))
    other = config.model_copy(update={"base": "elsewhere"})
    with pytest.raises(ConfigError, match=r"the base that is loaded is '.*', the config names 'el"):
        train_sequence(other, shop.folder / "other", base=loaded)
