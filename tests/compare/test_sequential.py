"""One LoRA through a sequence: same training as private adapters, other starting point."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from asr.adapters import load_adapter
from asr.base.fingerprint import tensors_hash
from asr.base.load import LoadedBase, load_base
from asr.compare import SequentialLora, load_test_sets, train_sequential
from asr.compare.ledger import LEDGER_FILE, Ledger
from asr.errors import AdapterError, ConfigError, DataError, DirectoryError, LockedError
from asr.eval.cache import EvalCache
from asr.eval.evaluate import Evaluator
from asr.eval.history import complete_matrix
from asr.eval.matrix import EvalMatrix
from asr.model.directory import ModelDirectory
from asr.model.lock import DirectoryLock
from asr.model.routed_model import RoutedModel
from asr.router import RouterSettings
from asr.train.config import TrainConfig
from asr.train.prepare import prepare_domains
from asr.train.sequence import train_sequence
from tests.train.conftest import Recorder, Workshop, write_domain


class Stop(Exception):
    """What kills a run in these tests."""


@pytest.fixture
def base(tiny_base: Path) -> LoadedBase:
    return load_base(str(tiny_base), device="cpu", dtype="float32")


def config(shop: Workshop, names: list[str], own: Any = None, **changes: Any) -> TrainConfig:
    domains = {}
    for name in names:
        test = shop.folder / f"{name}.test.jsonl"
        if not test.exists():
            write_domain(test, name, 5)
        domains[name] = {
            "train": str(shop.data(name)),
            "test": str(test),
            **(own or {}).get(name, {}),
        }
    return shop.config(domains, **{"training__learning_rate": 0.02, **changes})


def sequential(
    shop: Workshop, base: LoadedBase, names: list[str], out: str = "one", **changes: Any
) -> SequentialLora:
    settings = config(shop, names, **changes)
    domains = prepare_domains(settings, base, 2, 1)
    return SequentialLora(settings, base, domains, shop.folder / out)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_adapter(folder).tensors


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_with_one_domain_it_equals_private_training(shop: Workshop, base: LoadedBase) -> None:
    private = shop.train("m", ["red"], training__learning_rate=0.02)
    run = sequential(shop, base, ["red"])
    run.train("red")
    assert equal(tensors(private.adapter("red")), tensors(run.directory.adapter("red")))
    weights = (private.adapter_weights("red"), run.directory.adapter_weights("red"))
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_each_domain_starts_from_where_the_one_before_ended(
    shop: Workshop, base: LoadedBase
) -> None:
    run = sequential(shop, base, ["red", "sum"])
    before = tensors_hash(base.model)
    run.train("red")
    end_of_red = tensors(run.directory.adapter("red"))
    run.train("sum")
    assert tensors_hash(base.model) == before
    assert [step.parent_sha256 for step in run.ledger.steps] == [
        None,
        run.ledger.steps[0].adapter_sha256,
    ]
    # With a rate of nearly nothing it ends where it started: at the tensors of the domain before.
    still = sequential(
        shop,
        base,
        ["red", "sum"],
        "still",
        own={"sum": {"training": {"learning_rate": 1e-30}}},
    )
    still.train("red")
    still.train("sum")
    assert equal(tensors(still.directory.adapter("sum")), end_of_red)
    # and with the real rate elsewhere than a private adapter, which starts anew
    private = shop.train("m", ["red", "sum"], training__learning_rate=0.02)
    assert not equal(tensors(private.adapter("sum")), tensors(run.directory.adapter("sum")))
    assert not equal(tensors(run.directory.adapter("sum")), end_of_red)


def test_a_killed_domain_goes_on_and_ends_the_same(shop: Workshop, base: LoadedBase) -> None:
    whole = sequential(shop, base, ["red", "sum"], "whole")
    whole.train("red")
    whole.train("sum")

    def stop(domain: str, step: int) -> None:
        if step == 3:
            raise Stop

    cut = sequential(shop, base, ["red", "sum"], "cut")
    cut.train("red")
    cut.watcher = Recorder(stop)
    with pytest.raises(Stop):
        cut.train("sum")
    assert cut.directory.checkpoint("sum").is_dir()

    again = sequential(shop, base, ["red", "sum"], "cut")
    assert again.finished == ["red"]
    again.watcher = recorder = Recorder()
    again.train("sum")
    assert recorder.steps[0] == ("", 3)  # from the checkpoint of step 2
    assert equal(tensors(again.directory.adapter("sum")), tensors(whole.directory.adapter("sum")))
    assert not again.directory.checkpoints.exists()


def test_checkpoints_of_other_settings_are_not_continued(shop: Workshop, base: LoadedBase) -> None:
    def stop(domain: str, step: int) -> None:
        if step == 3:
            raise Stop

    cut = sequential(shop, base, ["red"])
    cut.watcher = Recorder(stop)
    with pytest.raises(Stop):
        cut.train("red")
    other = sequential(shop, base, ["red"], training__learning_rate=0.01)
    other.watcher = recorder = Recorder()
    other.train("red")
    assert recorder.steps[0] == ("", 1)
    fresh = sequential(shop, base, ["red"], "fresh", training__learning_rate=0.01)
    fresh.train("red")
    assert equal(tensors(other.directory.adapter("red")), tensors(fresh.directory.adapter("red")))


def test_an_adapter_that_was_published_but_not_recorded_is_made_again(
    shop: Workshop, base: LoadedBase
) -> None:
    run = sequential(shop, base, ["red"])
    run.train("red")
    made = tensors(run.directory.adapter("red"))
    Ledger(
        base_fingerprint=base.fingerprint,
        contract_hash=run.ledger.contract_hash,
        seed=0,
    ).save(run.directory.path)
    again = sequential(shop, base, ["red"])
    assert again.finished == []
    again.train("red")
    assert equal(tensors(again.directory.adapter("red")), made)


def test_the_first_domain_is_adopted_from_the_same_private_training(
    shop: Workshop, base: LoadedBase
) -> None:
    settings = config(shop, ["red", "sum"])
    train_sequence(settings, shop.folder / "m")
    private = ModelDirectory(shop.folder / "m")
    adopting = sequential(shop, base, ["red", "sum"], "adopting")
    assert adopting.adopt(private)
    assert adopting.finished == ["red"]
    assert adopting.ledger.steps[0].adopted
    training = sequential(shop, base, ["red", "sum"], "training")
    training.train("red")
    for run in (adopting, training):
        run.train("sum")
    for name in ("red", "sum"):
        assert equal(
            tensors(adopting.directory.adapter(name)), tensors(training.directory.adapter(name))
        )
    assert adopting.ledger.steps[1].parent_sha256 == training.ledger.steps[0].adapter_sha256


@pytest.mark.parametrize(
    "changes",
    [{"seed": 4}, {"training__learning_rate": 0.01}, {"adapter__rank": 4}],
    ids=["seed", "rate", "rank"],
)
def test_nothing_is_adopted_from_another_training(
    shop: Workshop, base: LoadedBase, changes: dict[str, Any]
) -> None:
    private = shop.train("m", ["red"], **{"training__learning_rate": 0.02, **changes})
    run = sequential(shop, base, ["red"])
    assert not run.adopt(private)
    assert run.finished == []


def test_a_changed_adapter_is_not_adopted(shop: Workshop, base: LoadedBase) -> None:
    private = shop.train("m", ["red"], training__learning_rate=0.02)
    weights = private.adapter_weights("red")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(AdapterError, match="was changed since training"):
        sequential(shop, base, ["red"]).adopt(private)


def test_the_matrix_holds_the_scores_of_each_stage(shop: Workshop, base: LoadedBase) -> None:
    settings = config(shop, ["red", "sum"], own={n: {"scorer": "loss"} for n in ("red", "sum")})
    recorder = Recorder()
    matrix = train_sequential(settings, shop.folder / "one", watcher=recorder)
    assert matrix.domains == ["red", "sum"] == recorder.started
    assert matrix.n == [5, 5]
    assert np.isnan(matrix.routed[0, 1])
    assert np.isnan(matrix.base).all() and np.isnan(matrix.routing_accuracy).all()
    assert matrix.routed[0, 0] != matrix.routed[1, 0]  # the LoRA of red is another after sum
    # The diagonal's first cell is the private adapter's score: the same training.
    domains = prepare_domains(settings, base, 2, 1)
    other = SequentialLora(settings, base, domains[:1], shop.folder / "alone")
    other.train("red")
    alone = other.score(load_test_sets(domains[:1]))
    assert alone.routed[0, 0] == matrix.routed[0, 0]
    # Again: nothing is trained, nothing generated, the same matrix.
    ledger = (shop.folder / "one" / LEDGER_FILE).read_bytes()
    answers = (shop.folder / "one" / "answers.jsonl").read_bytes()
    again = Recorder()
    assert train_sequential(settings, shop.folder / "one", watcher=again).to_json() == (
        matrix.to_json()
    )
    assert again.started == [] and again.steps == []
    assert (shop.folder / "one" / LEDGER_FILE).read_bytes() == ledger
    assert (shop.folder / "one" / "answers.jsonl").read_bytes() == answers


def test_scores_of_text_are_those_of_the_stage_alone(shop: Workshop, base: LoadedBase) -> None:
    settings = config(shop, ["red", "sum"])
    domains = prepare_domains(settings, base, 2, 1)
    sets = load_test_sets(domains)
    run = SequentialLora(settings, base, domains, shop.folder / "one")
    assert run.score(sets).domains == []
    run.train("red")
    run.score(sets)
    answers = shop.folder / "one" / "answers.jsonl"
    texts = [json.loads(line)["text"] for line in answers.read_text().splitlines()]
    said = [text for text in texts if text.strip()]
    assert len(texts) == 5 and said
    known = [  # whose right answers are what the first stage says
        replace(s, examples=[replace(e, meta={"references": said}) for e in s.examples])
        for s in sets
    ]
    assert run.score(known).routed[0, 0] == len(said) / 5
    run.train("sum")
    answers.unlink()  # generated anew: by the stage, not from memory
    assert run.score(known).routed[0, 0] == len(said) / 5
    assert not any("lora" in name for name in base.model.state_dict())


def test_forced_scores_are_those_of_the_oracle(shop: Workshop) -> None:
    settings = config(shop, ["red", "sum"], own={n: {"scorer": "loss"} for n in ("red", "sum")})
    train_sequence(settings, shop.folder / "m")
    model = RoutedModel.from_pretrained(shop.folder / "m")
    sets = load_test_sets(prepare_domains(settings, model.base, 2, 1))
    matrix = EvalMatrix("templated")
    with EvalCache(shop.folder / "answers.jsonl") as cache:
        evaluator = Evaluator(model, cache)
        routing = RouterSettings.from_dict(model.manifest.router)
        complete_matrix(evaluator, matrix, sets, routing)
        for j, evaluated in enumerate(sets):
            own = evaluator.forced(evaluated, "templated", evaluated.domain)
            alone = evaluator.forced(evaluated, "templated", "base")
            assert own.interval().mean == matrix.oracle[-1, j]
            assert alone.interval().mean == matrix.base[j] != matrix.oracle[-1, j]


def test_domains_are_learned_in_order(shop: Workshop, base: LoadedBase) -> None:
    run = sequential(shop, base, ["red", "sum"])
    with pytest.raises(ConfigError, match="in order: 'red' comes next, not 'sum'"):
        run.train("sum")
    with pytest.raises(ConfigError, match="unknown domain 'rad' \\(did you mean 'red'\\?\\)"):
        run.train("rad")
    run.train("red")
    with pytest.raises(ConfigError, match="'sum' comes next, not 'red'"):
        run.train("red")


def test_a_changed_comparison_is_refused(shop: Workshop, base: LoadedBase) -> None:
    sequential(shop, base, ["red", "sum"]).train("red")
    cases: list[tuple[list[str], dict[str, Any], str]] = [
        (["red", "sum"], {"training__epochs": 2}, "data or settings of 'red' changed"),
        (["sum", "red"], {}, r"the order of the domains \(red are finished\) changed"),
        (["red", "sum"], {"seed": 5}, r"the seed \(0 -> 5\) changed"),
    ]
    for names, changes, message in cases:
        with pytest.raises(ConfigError, match=message):
            sequential(shop, base, names, **changes)
    sequential(shop, base, ["red", "sum", "turn"])  # more domains at the end are welcome


@pytest.mark.parametrize("other", [{"adapter": {"rank": 4}}, {"adapter": {"placement": "all"}}])
def test_one_lora_has_one_shape(shop: Workshop, base: LoadedBase, other: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="but 'sum' and 'red' differ in them"):
        sequential(shop, base, ["red", "sum"], own={"sum": other})


def test_an_adapter_that_was_changed_is_no_start(shop: Workshop, base: LoadedBase) -> None:
    run = sequential(shop, base, ["red", "sum"])
    run.train("red")
    weights = run.directory.adapter_weights("red")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(AdapterError, match="was changed since training"):
        run.train("sum")


def test_a_foreign_folder_and_a_damaged_ledger_are_refused(
    shop: Workshop, base: LoadedBase
) -> None:
    foreign = shop.folder / "one"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(DirectoryError, match=r"is not empty and holds no sequential\.json"):
        sequential(shop, base, ["red"])
    (foreign / LEDGER_FILE).write_text(json.dumps({"schema_version": 9}))
    with pytest.raises(DirectoryError, match=r"sequential\.json is damaged"):
        sequential(shop, base, ["red"])
    assert (foreign / "thesis.txt").read_text() == "mine"


def test_two_writers_do_not_meet(shop: Workshop, base: LoadedBase) -> None:
    run = sequential(shop, base, ["red"])
    run.directory.path.mkdir()
    with DirectoryLock(run.directory.path), pytest.raises(LockedError):
        run.train("red")


def test_a_domain_without_a_test_file_is_named(shop: Workshop, base: LoadedBase) -> None:
    settings = shop.config(["red"])
    with pytest.raises(DataError, match=r"'red' has no test file; set domains\.red\.test"):
        load_test_sets(prepare_domains(settings, base, 2, 1))


def test_a_test_file_that_cannot_be_scored_is_refused_before_training(
    shop: Workshop, base: LoadedBase
) -> None:
    (shop.folder / "red.test.jsonl").write_text('{"prompt": "q", "completion": "none"}\n')
    settings = config(shop, ["red"], own={"red": {"scorer": "number"}})
    with pytest.raises(DataError, match=r"red: scorer 'number' cannot score 1 of 1 example; "):
        train_sequential(settings, shop.folder / "one")
    assert not (shop.folder / "one").exists()
