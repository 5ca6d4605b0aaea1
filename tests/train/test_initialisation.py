"""What a new adapter starts from: the nearest domain's adapter, a named one's, or nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from asr.base.load import load_base
from asr.data.load import load_examples
from asr.data.views import CommonPart
from asr.errors import ConfigError, DirectoryError
from asr.model.directory import ModelDirectory, file_sha256
from asr.model.manifest import Manifest
from asr.model.routed_model import make_forward
from asr.router import load_router
from asr.train.config_file import build_config
from asr.train.extend import extend_domain
from asr.train.extension_config import extension_config
from asr.train.initialisation import mean_scores
from asr.train.remove import remove_domain
from tests.train.conftest import INSTRUCTIONS, Recorder, Workshop, assert_equal_runs, write_domain

STILL = {"training": {"learning_rate": 1e-12}}
"""Next to no learning: an adapter ends as what it started from."""


class Stop(Exception):
    """What ends a run in these tests."""


def kin(path: Path, domain: str, rows: int = 24) -> Path:
    """Prompts like those of ``domain``, under another name."""
    write_domain(path, domain, rows)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for i, line in enumerate(lines):
        line["prompt"] = f"{INSTRUCTIONS[domain]}\n{domain} {900 + i} {i}"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def made(
    tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Workshop, ModelDirectory]:
    """A model of two domains, and data like those of the second; no test changes them."""
    shop = Workshop(tiny_base, tmp_path_factory.mktemp("init"))
    shop.settings["router__background"] = 0
    kin(shop.folder / "kin.jsonl", "sum")
    return shop, shop.train("two", ["red", "sum"])


@pytest.fixture
def model(made: Any, tmp_path: Path) -> ModelDirectory:
    return ModelDirectory(shutil.copytree(made[1].path, tmp_path / "m"))


def domains(init_from: str, **own: Any) -> dict[str, dict[str, Any]]:
    return {"red": {}, "sum": {}, "kin": {"adapter": {"init_from": init_from}, **STILL, **own}}


def gap(directory: ModelDirectory, one: str, other: str) -> float:
    left, right = (load_file(directory.adapter_weights(name)) for name in (one, other))
    return max(float(np.abs(left[name] - right[name]).max()) for name in left)


@pytest.mark.parametrize("init_from", ["nearest", "sum", "red", "none"])
def test_a_new_adapter_starts_as_a_copy(made: Any, model: ModelDirectory, init_from: str) -> None:
    shop = made[0]
    before = {name: file_sha256(model.adapter_weights(name)) for name in ("red", "sum")}
    watcher = Recorder()
    shop.train(str(model.path), domains(init_from), resume=True, watcher=watcher)
    entry = Manifest.load(model.path).domains["kin"]
    source = {"nearest": "sum", "none": None}.get(init_from, init_from)
    assert entry.parent == source
    assert entry.parent_sha256 == (None if source is None else before[source])
    assert entry.training["init_from"] == init_from
    close = {name: gap(model, "kin", name) < 1e-8 for name in ("red", "sum")}
    assert close == {name: name == source for name in ("red", "sum")}
    assert {name: file_sha256(model.adapter_weights(name)) for name in before} == before
    said = [line for line in watcher.said if "starts from" in line]
    assert len(said) == (init_from == "nearest")
    if said:
        assert said[0].startswith("kin: starts from 'sum', the nearest domain (mean scores: sum ")


def test_it_learns_from_there(made: Any, model: ModelDirectory) -> None:
    shop = made[0]
    wanted = {"red": {}, "sum": {}, "kin": {"adapter": {"init_from": "sum"}}}
    shop.train(str(model.path), wanted, resume=True)
    assert gap(model, "kin", "sum") > 1e-4
    assert model.verify(Manifest.load(model.path)) == []


def test_the_first_domain_has_no_nearest(shop: Workshop) -> None:
    watcher = Recorder()
    one = shop.train("one", ["red"], watcher=watcher, adapter__init_from="nearest")
    assert "red: starts from scratch; no domain is there yet to be the nearest" in watcher.said
    assert Manifest.load(one.path).domains["red"].parent is None
    other = shop.train("other", ["red"])
    assert one.adapter_weights("red").read_bytes() == other.adapter_weights("red").read_bytes()


def test_mean_scores_are_those_of_the_prompts(made: Any) -> None:
    """Few prompts: the sample is all of them, whatever the seed; the nearest scores highest."""
    shop, out = made
    manifest = Manifest.load(out.path)
    base = load_base(str(shop.base), device="cpu", dtype="float32")
    forward = make_forward(base, manifest.contract.layer, False)
    router = load_router(out.router, manifest.contract.hash).router
    examples = load_examples(shop.folder / "kin.jsonl", name="kin").examples

    def scores(seed: int, count: int) -> dict[str, float]:
        return mean_scores(
            router, examples[:count], CommonPart(), base, forward, manifest.contract, seed
        )

    assert scores(1, 24)["sum"] > scores(1, 24)["red"]
    one, other = scores(1, 24), scores(2, 24)
    assert all(abs(one[name] - other[name]) < 1e-5 for name in ("red", "sum"))
    twice = mean_scores(
        router, [*examples, *examples], CommonPart(), base, forward, manifest.contract, 1
    )
    assert twice == one  # a prompt counts once


# -- resume ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("init_from", ["nearest", "sum"])
def test_a_stopped_training_keeps_its_parent(
    made: Any, model: ModelDirectory, tmp_path: Path, init_from: str
) -> None:
    shop = made[0]
    wanted = {"red": {}, "sum": {}, "kin": {"adapter": {"init_from": init_from}}}
    whole = ModelDirectory(shutil.copytree(model.path, tmp_path / "whole"))
    shop.train(str(whole.path), wanted, resume=True)
    for step in (1, 4):  # before the first checkpoint, and after one
        cut = ModelDirectory(shutil.copytree(model.path, tmp_path / f"cut{step}"))

        def stop(domain: str, now: int, at: int = step) -> None:
            if (domain, now) == ("kin", at):
                raise Stop

        with pytest.raises(Stop):
            shop.train(str(cut.path), wanted, resume=True, watcher=Recorder(stop))
        begun = Manifest.load(cut.path).domains["kin"]
        assert (begun.status, begun.parent) == ("training", "sum")
        watcher = Recorder()
        shop.train(str(cut.path), wanted, resume=True, watcher=watcher)
        assert not any("nearest domain" in line for line in watcher.said)  # not chosen again
        assert_equal_runs(whole, cut)


def test_a_parent_that_was_extended_meanwhile_stays_the_parent(
    made: Any, model: ModelDirectory, tmp_path: Path
) -> None:
    shop = made[0]

    def stop(domain: str, now: int) -> None:
        if (domain, now) == ("kin", 1):
            raise Stop

    with pytest.raises(Stop):
        shop.train(str(model.path), domains("sum"), resume=True, watcher=Recorder(stop))
    first = Manifest.load(model.path).domains["sum"].adapter
    more = kin(tmp_path / "more.jsonl", "sum", 30)
    extend_domain(extension_config(Manifest.load(model.path), "sum", more), model.path)
    shop.train(str(model.path), domains("sum"), resume=True)
    manifest = Manifest.load(model.path)
    assert first is not None and manifest.domains["kin"].parent_sha256 == first.sha256
    assert manifest.domains["sum"].adapter != first
    assert gap(model, "kin", "sum") < 1e-8  # version 1


def test_a_changed_start_restarts_what_is_unfinished_and_is_refused_later(
    made: Any, model: ModelDirectory
) -> None:
    shop = made[0]

    def stop(domain: str, now: int) -> None:
        if (domain, now) == ("kin", 4):
            raise Stop

    with pytest.raises(Stop):
        shop.train(str(model.path), domains("sum"), resume=True, watcher=Recorder(stop))
    watcher = Recorder()
    shop.train(str(model.path), domains("red"), resume=True, watcher=watcher)
    assert watcher.steps[0] == ("kin", 1)
    assert gap(model, "kin", "red") < 1e-8
    with pytest.raises(ConfigError) as caught:
        shop.train(str(model.path), domains("nearest"), resume=True)
    assert str(caught.value) == (
        "cannot resume: domain 'kin' is finished and init_from changed: red -> nearest; undo the "
        "change, or train into a new folder"
    )


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("init_from", "message"),
    [
        (
            "summ",
            "config: domains.kin.adapter.init_from: unknown domain 'summ' (did you mean 'sum'?); "
            "there are: nearest, none, red, sum",
        ),
        (
            "kin",
            "config: domains.kin.adapter.init_from: 'kin' cannot start from itself; use none or "
            "nearest",
        ),
        (
            "last",
            "config: domains.kin.adapter.init_from: 'last' is trained after 'kin'; start from an "
            "earlier domain, or move 'last' before it",
        ),
    ],
)
def test_a_start_that_cannot_be(init_from: str, message: str) -> None:
    raw = {
        "base": "b",
        "domains": {
            "red": {"train": "r"},
            "sum": {"train": "s"},
            "kin": {"train": "k", "adapter": {"init_from": init_from}},
            "last": {"train": "l"},
        },
    }
    with pytest.raises(ConfigError) as caught:
        build_config(raw)
    assert str(caught.value) == message


def test_a_copy_has_no_other_start() -> None:
    own = {"init_from": "red", "init_lora_weights": "orthogonal"}
    train = {"train": "t"}
    with pytest.raises(ConfigError) as caught:
        build_config({"base": "b", "domains": {"red": train, "kin": {**train, "adapter": own}}})
    assert str(caught.value) == (
        "config: domains.kin.adapter: a copy (init_from red) has no start of its own "
        "(init_lora_weights orthogonal); set one of them"
    )


def test_a_source_of_a_doubled_rank(shop: Workshop) -> None:
    """PiSSA is saved with twice its rank, and that is the rank to match."""
    wanted = {"red": {"adapter": {"init_lora_weights": "pissa"}}, "sum": {}}
    out = shop.train("m", {"red": wanted["red"]}, router__background=0)
    wanted["sum"] = {"adapter": {"init_from": "red"}, **STILL}
    with pytest.raises(ConfigError, match=r"'sum' has rank 2 .* whose adapter has rank 4"):
        shop.train("m", wanted, resume=True, router__background=0)
    wanted["sum"]["adapter"]["rank"] = 4
    shop.train("m", wanted, resume=True, router__background=0)
    assert Manifest.load(out.path).domains["sum"].parent == "red"
    with pytest.raises(ConfigError, match="saved with rank 4 and is trained with 2; add --from-s"):
        more = kin(shop.folder / "more.jsonl", "red")
        extend_domain(extension_config(Manifest.load(out.path), "red", more), out.path)


def test_a_domain_called_like_the_rule() -> None:
    train = {"train": "t"}
    assert build_config({"base": "b", "domains": {"nearest": train}}).domains
    with pytest.raises(ConfigError, match="'nearest' is a rule and a domain's name too; rename"):
        build_config(
            {
                "base": "b",
                "domains": {"nearest": train, "x": {**train, "adapter": {"init_from": "nearest"}}},
            }
        )


@pytest.mark.parametrize("init_from", ["sum", "nearest"])
def test_other_shapes_are_refused_by_name(made: Any, model: ModelDirectory, init_from: str) -> None:
    shop = made[0]
    module = "model.layers.3.mlp.down_proj"
    watcher = Recorder()
    for adapter, message in (
        (
            {"rank": 4},
            "'kin' has rank 4 and cannot start from 'sum', whose adapter has rank 2; give both the "
            "same, or set domains.kin.adapter.init_from to none",
        ),
        (
            {"placement": {"modules": [module]}},
            "'kin' (placement modules, 1 module) cannot start from 'sum' (placement deep, 14 "
            "modules): their adapters sit on other modules; give both the same, or set "
            "domains.kin.adapter.init_from to none",
        ),
    ):
        wanted = domains(init_from)
        wanted["kin"]["adapter"] |= adapter
        with pytest.raises(ConfigError) as caught:
            shop.train(str(model.path), wanted, resume=True, watcher=watcher)
        assert str(caught.value) == message
    assert watcher.steps == []


def test_a_parent_cannot_be_removed(made: Any, model: ModelDirectory) -> None:
    """What was learned from its data is in the adapter that started from it."""
    made[0].train(str(model.path), domains("nearest"), resume=True)
    with pytest.raises(DirectoryError) as caught:
        remove_domain(model.path, "sum")
    assert str(caught.value) == (
        "kin started from 'sum' (init_from), so what was learned from its data is in there too; "
        "nothing was removed: remove kin first, and add it again with adapter.init_from=none "
        "afterwards"
    )
    remove_domain(model.path, "kin")
    remove_domain(model.path, "sum")
    assert list(Manifest.load(model.path).domains) == ["red"]


def test_a_source_that_was_changed(made: Any, model: ModelDirectory) -> None:
    path = model.adapter_weights("sum")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DirectoryError, match=r"adapter_model\.safetensors was changed"):
        made[0].train(str(model.path), domains("sum"), resume=True)
