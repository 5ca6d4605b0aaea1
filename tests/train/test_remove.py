"""A removed domain: the model is the one that never saw it, and nothing of its data is left."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

import asr
import asr.train.remove as module
from asr.cli.remove import add_arguments
from asr.errors import ConfigError, DirectoryError, LockedError, RouterError
from asr.model.directory import ModelDirectory
from asr.model.lock import DirectoryLock
from asr.model.manifest import Manifest
from asr.train.remove import remove_domain
from tests.train.conftest import Recorder, Workshop, published, write_domain

MARK = "zebrafish"
"""Stands in every prompt and answer of the domain that is removed."""


@pytest.fixture(scope="module")
def made(
    tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Workshop, ModelDirectory, ModelDirectory]:
    """A model of three domains, and one that never saw the second; no test changes them."""
    shop = Workshop(tiny_base, tmp_path_factory.mktemp("remove"))
    marked = write_domain(shop.folder / "sum.jsonl", "sum")
    text = marked.read_text().replace("sum ", f"{MARK} ")
    marked.write_text(text)
    with_it = shop.train("three", {"red": {}, "sum": {"scorer": "loss"}, "turn": {}})
    return shop, with_it, shop.train("two", ["red", "turn"])


@pytest.fixture
def model(
    made: tuple[Workshop, ModelDirectory, ModelDirectory], tmp_path: Path
) -> Iterator[ModelDirectory]:
    """A copy of the three-domain model with a second version, checkpoint and figures beside."""
    out = ModelDirectory(shutil.copytree(made[1].path, tmp_path / "m"))
    shutil.copytree(out.adapter("sum"), out.adapter("sum", 2))
    (out.checkpoint("sum") / "checkpoint-2").mkdir(parents=True)
    (out.eval / "test").mkdir()
    shutil.copy(out.matrix, out.eval / "test" / "matrix.json")
    for figure in ("matrix.png", "matrix.bare.png", "test/matrix.png"):
        (out.eval / figure).write_bytes(b"figure")
    yield out


def comparable(directory: ModelDirectory) -> dict[str, Any]:
    """What two equal models share; a removed domain leaves a gap in the numbering only."""
    found = published(directory)
    for entry in found["manifest"]["domains"].values():
        del entry["order"]
    return found


def files(directory: ModelDirectory) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory.path)): path.read_bytes()
        for path in sorted(directory.path.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def assert_gone(directory: ModelDirectory, never: ModelDirectory) -> None:
    """Nothing of the domain is left, and the model is the one that never saw it."""
    here, there = files(directory), files(never)
    assert [name for name in here if "sum" in name] == []
    assert [name for name, content in here.items() if MARK.encode() in content] == []
    manifest = Manifest.load(directory.path)
    assert list(manifest.domains) == list(manifest.config["domains"]) == ["red", "turn"]
    assert directory.verify(manifest) == []
    assert '"sum"' not in directory.manifest.read_text()
    for name in here:
        if not name.startswith(("manifest", "eval/answers")):
            assert here[name] == there[name], name
    one, other = (safetensors.torch.load_file(d.router) for d in (directory, never))
    assert one.keys() == other.keys() and "extra/canary_pooled" in one
    assert all(one[key].equal(other[key]) for key in one)
    assert sorted({*there} - {*here}) == [
        "eval/matrix.bare.basis.json",
        "eval/matrix.bare.json",
        "eval/matrix.basis.json",
        "eval/matrix.json",
    ]


def test_the_model_is_the_one_that_never_saw_it(made: Any, model: ModelDirectory) -> None:
    shop, _, never = made
    lines = model.answers.read_text().splitlines()
    theirs = [line for line in lines if '"sum"' in line]
    assert 0 < len(theirs) < len(lines)
    assert remove_domain(model.path, "sum") == [
        f"eval/answers.jsonl: {len(theirs)} of {len(lines)} answers",
        "eval/matrix.bare.png",
        "eval/matrix.png",
        "eval/matrix.bare.basis.json",
        "eval/matrix.basis.json",
        "eval/matrix.bare.json",
        "eval/matrix.json",
        "eval/test/matrix.png",
        "eval/test/matrix.json",
        "eval/sum.jsonl",
        "checkpoints/sum",
        "adapters/sum",
        "adapters/sum.v2",
        "router/sum.safetensors",
        "manifest.json: its entry and settings",
    ]
    assert_gone(model, never)
    assert model.answers.read_text().splitlines() == [li for li in lines if li not in theirs]
    # the next training makes the matrices again, and then nothing at all differs
    watcher = Recorder()
    shop.train(str(model.path), ["red", "turn"], resume=True, watcher=watcher)
    assert watcher.started == []
    assert comparable(model) == comparable(never)


def test_it_can_be_added_again_as_it_was(made: Any, model: ModelDirectory) -> None:
    from asr.cli.add import extended_config

    shop, with_it, _ = made
    before = Manifest.load(model.path)
    arguments = add_arguments(before, "sum")
    assert arguments == [f"sum={shop.data('sum')}", "scorer=loss"]
    remove_domain(model.path, "sum")
    own = extended_config(Manifest.load(model.path), "sum", shop.data("sum"), arguments[1:])
    asr.train_sequence(own, model.path, resume=True)
    again = Manifest.load(model.path)
    assert list(again.domains) == ["red", "turn", "sum"]
    assert again.config["domains"]["sum"] == before.config["domains"]["sum"]
    assert again.domains["sum"].adapter == before.domains["sum"].adapter
    assert again.domains["sum"].router == before.domains["sum"].router
    # the order of training does not show in the router
    assert model.router.read_bytes() == with_it.router.read_bytes()


def test_settings_of_its_own_are_named(made: Any, tmp_path: Path) -> None:
    from asr.cli.add import extended_config

    shop = made[0]
    modules = {"modules": ["model.layers.3.mlp.down_proj"]}
    own = {
        "adapter": {"placement": modules, "rank": 4},
        "training": {"epochs": 3, "batch_size": None},
        "test": str(tmp_path / "with space.jsonl"),
        "limit": 20,
    }
    config = shop.config({"red": {}, "sum": own})
    alone = shop.config(["red"])
    manifest = Manifest.load(made[1].path)
    manifest.config = config.plain()
    data, *overrides = add_arguments(manifest, "sum")
    assert data == f"sum={shop.data('sum')}"
    assert sorted(overrides) == [
        'adapter.placement={"modules": ["model.layers.3.mlp.down_proj"]}',
        "adapter.rank=4",
        "limit=20",
        f"test={tmp_path / 'with space.jsonl'}",
        "training.batch_size=null",
        "training.epochs=3",
    ]
    manifest.config = alone.plain()
    del manifest.domains["sum"]
    again = extended_config(manifest, "sum", shop.data("sum"), overrides)
    assert again.domains["sum"] == config.domains["sum"]
    manifest.config = {}
    assert add_arguments(manifest, "sum") == ["sum=DATA"]


# -- kills -----------------------------------------------------------------------------------------


class Killed(BaseException):
    """What ends a removal in these tests."""


class Killer:
    """Ends the removal before, or right after, its ``at``-th change of the disk."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path, at: int, after: bool) -> None:
        self.folder, self.at, self.after, self.changes = str(folder), at, after, 0
        for name in ("replace", "unlink", "rmdir", "remove"):
            patch.setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, honest: Any) -> Any:
        def changed(path: Any, *args: Any, **kwargs: Any) -> Any:
            # shutil.rmtree gives names relative to an open folder
            ours = os.fspath(path).startswith(self.folder) or "dir_fd" in kwargs
            if not ours:
                return honest(path, *args, **kwargs)
            self.changes += 1
            if self.changes > self.at and not self.after:
                raise Killed
            result = honest(path, *args, **kwargs)
            if self.changes > self.at:
                raise Killed
            return result

        return changed


def usable(directory: ModelDirectory) -> list[str]:
    """The ledger promises nothing that is not there; return where the router sends prompts."""
    from asr.model.opening import open_directory

    return list(open_directory(directory.path).router.router.names)


def test_a_kill_at_any_write_is_mended_by_the_same_command(
    made: Any, model: ModelDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = made[2]
    with monkeypatch.context() as patch:
        whole = ModelDirectory(shutil.copytree(model.path, tmp_path / "whole"))
        count = Killer(patch, whole.path, 10_000, False)
        remove_domain(whole.path, "sum")
    assert_gone(whole, never)
    assert count.changes > 20
    seen = set()
    for at in range(count.changes):
        for after in (False, True):
            out = ModelDirectory(shutil.copytree(model.path, tmp_path / f"cut{at}{after}"))
            with monkeypatch.context() as patch:
                Killer(patch, out.path, at, after)
                with pytest.raises(Killed):
                    remove_domain(out.path, "sum")
            seen.add((tuple(usable(out)), Manifest.load(out.path).domains.get("sum") is None))
            if not seen & {(("red", "turn"), True)}:
                remove_domain(out.path, "sum")
            else:  # the very last change was made: there is nothing left to repeat
                assert (at, after) == (count.changes - 1, True)
            assert_gone(out, never)
            shutil.rmtree(out.path)
    assert seen == {
        (("red", "sum", "turn"), False),
        (("red", "turn"), False),
        (("red", "turn"), True),
    }


def test_a_run_in_between_does_not_hide_what_is_left(
    made: Any, model: ModelDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, _, never = made

    def killed(*args: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(module, "forget_domain", killed)
        with pytest.raises(Killed):
            remove_domain(model.path, "sum")
    shop.train(str(model.path), ["red", "turn"], resume=True)  # drops what has not begun
    assert "sum" not in Manifest.load(model.path).domains
    deleted = remove_domain(model.path, "sum")
    assert "router/sum.safetensors" in deleted and "eval/sum.jsonl" in deleted
    assert any(item.startswith("eval/answers.jsonl: ") for item in deleted)
    assert comparable(model) == comparable(never)  # its matrices do not show it, and stay
    with pytest.raises(DirectoryError, match="unknown domain 'sum'"):
        remove_domain(model.path, "sum")


# -- what is refused, and what is not --------------------------------------------------------------


def test_refusals_delete_nothing(model: ModelDirectory) -> None:
    before = files(model)
    for name, message in {
        "summ": "unknown domain 'summ' (did you mean 'sum'?); there are: red, sum, turn",
        "../m": "unknown domain '../m'; there are: red, sum, turn",
        "base": "unknown domain 'base'; there are: red, sum, turn",
    }.items():
        with pytest.raises(DirectoryError) as caught:
            remove_domain(model.path, name)
        assert str(caught.value) == message
    with DirectoryLock(model.path), pytest.raises(LockedError):
        remove_domain(model.path, "sum")
    assert files(model) == before
    model.router_statistics("red").write_bytes(b"damaged")
    with pytest.raises(RouterError, match=r"red\.safetensors is damaged"):
        remove_domain(model.path, "sum")
    assert {**files(model), "router/red.safetensors": b""} == {
        **before,
        "router/red.safetensors": b"",
    }
    assert remove_domain(model.path, "red")[-2] == "router/red.safetensors"  # itself: it may go


def test_the_last_domain_stays(made: Any, model: ModelDirectory) -> None:
    remove_domain(model.path, "sum")
    remove_domain(model.path, "red")
    before = files(model)
    with pytest.raises(DirectoryError) as caught:
        remove_domain(model.path, "turn")
    assert str(caught.value) == (
        f"'turn' is the only domain of '{model.path}', and a routed model needs one; nothing was "
        "removed: add another one first, or delete the folder"
    )
    assert files(model) == before


def test_unfinished_domains_may_go_and_may_be_all_that_stays(shop: Workshop) -> None:
    def stop(domain: str, step: int) -> None:
        if (domain, step) == ("turn", 4):
            raise Killed

    with pytest.raises(Killed):
        shop.train("m", ["red", "turn"], watcher=Recorder(stop))
    for name in ("m", "n"):
        out = ModelDirectory(shop.folder / name)
        if name == "m":
            shutil.copytree(out.path, shop.folder / "n")
            matrix = out.matrix.read_bytes()
            assert remove_domain(out.path, "turn") == [
                "checkpoints/turn",
                "manifest.json: its entry and settings",
            ]
            assert out.matrix.read_bytes() == matrix  # it was not in it
            shop.train("m", ["red"], resume=True)
            assert published(out) == published(shop.train("red", ["red"]))
        else:
            assert "router/router.safetensors" in remove_domain(out.path, "red")
            shop.train("n", ["turn"], resume=True)
            assert comparable(out) == comparable(shop.train("turn", ["turn"]))


def test_answers_that_do_not_say_whose_they_are_go_too(model: ModelDirectory) -> None:
    lines = [json.loads(line) for line in model.answers.read_text().splitlines()]
    for line in lines[::2]:
        del line["adapter"]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    model.answers.write_text(text + '{"key": "torn')
    remove_domain(model.path, "sum")
    left = [json.loads(line) for line in model.answers.read_text().splitlines()]
    assert left == [line for line in lines[1::2] if "sum" not in (line["adapter"], line["domain"])]


def test_a_domain_called_answers_does_not_meet_the_cache(shop: Workshop) -> None:
    write_domain(shop.folder / "answers.jsonl", "answers")
    out = shop.train("m", ["red", "answers"])
    assert out.eval_prompts("answers") != out.answers
    remove_domain(out.path, "answers")
    assert not out.eval_prompts("answers").exists() and out.answers.stat().st_size > 0
    shop.train("m", ["red"], resume=True)
    assert comparable(out) == comparable(shop.train("red", ["red"]))


def test_weights_of_the_removed_domain_go(model: ModelDirectory) -> None:
    manifest = Manifest.load(model.path)
    manifest.router = {**manifest.router, "domain_weights": {"red": 2.0, "sum": 3.0}}
    manifest.save(model.path)
    remove_domain(model.path, "sum")
    assert Manifest.load(model.path).router["domain_weights"] == {"red": 2.0}


# -- a router file that is gone --------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_resume_derives_a_lost_router_again(made: Any, model: ModelDirectory, damage: str) -> None:
    """What the error says: run asr train CONFIG --out MODEL --resume."""
    shop = made[0]
    good = model.router.read_bytes()
    if damage == "missing":
        model.router.unlink()
    else:
        model.router.write_bytes(good[: len(good) // 2])
    advice = "run asr train CONFIG --out MODEL --resume to derive it again"
    for use in (asr.RoutedModel.from_pretrained, lambda path: remove_domain(path, "sum")):
        with pytest.raises(RouterError, match=f"{advice}$"):
            use(model.path)
    config = shop.config({"red": {}, "sum": {"scorer": "loss"}, "turn": {}})
    watcher = Recorder()
    asr.train_sequence(config, model.path, resume=True, watcher=watcher)
    assert watcher.started == []
    assert model.router.read_bytes() == good
    asr.RoutedModel.from_pretrained(model.path).close()


def test_names_are_checked_before_paths_are_made(model: ModelDirectory) -> None:
    with pytest.raises(ConfigError):
        model.router_statistics("../m")
    assert module._leftovers(model, "../m") == []
