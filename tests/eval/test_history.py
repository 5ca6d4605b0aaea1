"""Matrices of a run: routers of the past are solved again, stored rows stand while they hold."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import asr
from asr.eval.cache import EvalCache
from asr.eval.evaluate import Evaluator
from asr.eval.history import extend_matrices, load_matrices, matrix_path
from asr.eval.matrix import KINDS, EvalMatrix
from asr.model.background import read_background
from asr.model.entries import CommonPartEntry
from asr.model.routing import fit_router, read_domains
from asr.router import RouterSettings, load_router
from tests.routed import trained

ORDER = ["red", "sum", "rev"]
SETTINGS = RouterSettings()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("history") / "model"
    shutil.copytree(trained() / "model", folder)
    found = asr.RoutedModel.from_pretrained(folder, device="cpu", dtype="float32")
    yield found
    found.close()


@pytest.fixture
def model(shared):
    """The trained model with its ``eval`` folder as training left it."""
    shutil.rmtree(shared.directory.eval)
    shutil.copytree(trained() / "model" / "eval", shared.directory.eval)
    return shared


class Extending:
    """Runs ``extend_matrices`` as training does, and counts rows made and prompts generated."""

    def __init__(self, model, monkeypatch):
        self.model, self.rows, self.generated = model, [], 0
        extend, generate = Evaluator.extend, model.generate

        def counted(evaluator, matrix, sets, router):
            self.rows.append((matrix.kind, sets[-1].domain))
            extend(evaluator, matrix, sets, router)

        def counted_generate(prompts, **options):
            self.generated += len(prompts)
            return generate(prompts, **options)

        monkeypatch.setattr(Evaluator, "extend", counted)
        monkeypatch.setattr(model, "generate", counted_generate)

    def __call__(self, settings=SETTINGS, max_examples=5, max_new_tokens=6):
        self.rows, self.generated = [], 0
        with EvalCache(self.model.directory.eval / "answers.jsonl") as cache:
            evaluator = Evaluator(self.model, cache)
            return extend_matrices(evaluator, settings, max_examples, max_new_tokens)


ALL = [(kind, domain) for kind in KINDS for domain in ORDER]


def test_routers_of_earlier_steps_are_those_of_that_time(model):
    contract = model.manifest.contract
    domains = read_domains(model.directory, ORDER, contract)
    background = read_background(model.directory, model.manifest)
    assert [other.name for other in background] == ["_background"]
    for count, name in enumerate(ORDER, start=1):
        then = load_router(trained() / f"router-{name}.safetensors", contract.hash).router
        again = fit_router([*domains[:count], *background], SETTINGS, contract, 32)
        assert again.names == then.names
        assert np.array_equal(again.weights, then.weights)
        assert (again.threshold, again.temperature) == (then.threshold, then.temperature)


def test_rows_written_while_training_are_the_rows_made_afterwards(model, monkeypatch):
    extend = Extending(model, monkeypatch)
    final = {kind: matrix.to_json() for kind, matrix in load_matrices(model.directory).items()}
    for kind in KINDS:
        matrix_path(model.directory, kind).unlink()
    made = extend()
    assert {kind: matrix.to_json() for kind, matrix in made.items()} == final
    assert extend.rows == ALL
    assert extend.generated == 0  # every answer was kept
    for kind in KINDS:
        for count, name in enumerate(ORDER, start=1):
            then = EvalMatrix.from_json((trained() / f"{kind}-{name}.json").read_text())
            part = (slice(count), slice(count))
            assert then.domains == ORDER[:count]
            np.testing.assert_array_equal(then.routed, made[kind].routed[part])
            np.testing.assert_array_equal(then.oracle, made[kind].oracle[part])
            np.testing.assert_array_equal(then.base, made[kind].base[:count])


def test_rows_that_stand_are_not_made_again(model, monkeypatch):
    extend = Extending(model, monkeypatch)
    before = {kind: matrix_path(model.directory, kind).read_bytes() for kind in KINDS}
    extend()
    assert extend.rows == []
    assert before == {kind: matrix_path(model.directory, kind).read_bytes() for kind in KINDS}


def edit_kept(model, domain, edit):
    path = model.directory.eval_prompts(domain)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    edit(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def other_reference(rows):
    rows[0]["messages"][-1]["content"] = "something else"


def other_prompt(rows):
    rows[0]["messages"][0]["content"] += " indeed"


@pytest.mark.parametrize("edit", [other_reference, other_prompt, list.pop])
def test_a_changed_set_is_scored_again_even_if_it_is_as_long_as_before(model, monkeypatch, edit):
    extend = Extending(model, monkeypatch)
    edit_kept(model, "red", edit)
    extend()
    assert extend.rows == ALL
    assert (extend.generated > 0) == (edit is other_prompt)
    extend()
    assert extend.rows == []


@pytest.mark.parametrize(
    ("options", "again"),
    [
        ({"settings": RouterSettings(ridge=0.5)}, True),
        ({"max_examples": 2}, True),
        ({"max_examples": None}, False),  # there are no more than five
        ({"max_new_tokens": 9}, False),  # the domains' own stand in the manifest
    ],
)
def test_changed_settings_make_the_rows_they_shape_again(model, monkeypatch, options, again):
    extend = Extending(model, monkeypatch)
    extend(**options)
    assert extend.rows == (ALL if again else [])


def other_hash(entry):
    return entry.model_copy(update={"sha256": "0" * 64})


CHANGES = {
    "scorer": lambda entry: "label",
    "max_new_tokens": lambda entry: 3,
    "common_part": lambda entry: CommonPartEntry(prefix="Say it.\n"),
    "adapter": lambda entry: other_hash(entry.adapter),
    "router": lambda entry: other_hash(entry.router),
}


@pytest.mark.parametrize("field", [None, "background", *CHANGES])
def test_rows_stand_as_long_as_all_that_they_were_made_from(model, monkeypatch, field):
    manifest = model.manifest.model_copy(deep=True)
    if field in CHANGES:
        manifest.update("sum", **{field: CHANGES[field](manifest.domains["sum"])})
    elif field is not None:
        manifest.background = other_hash(manifest.background)
    monkeypatch.setattr(model, "manifest", manifest)
    standing = []
    monkeypatch.setattr(
        "asr.eval.history.complete_matrix",
        lambda evaluator, matrix, sets, routing: standing.append(list(matrix.domains)),
    )
    with EvalCache(model.directory.eval / "answers.jsonl") as cache:
        extend_matrices(Evaluator(model, cache), SETTINGS, 5, 6)
    assert standing == [ORDER if field is None else []] * len(KINDS)


@pytest.mark.parametrize("damage", ["matrix", "basis"])
@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_a_damaged_file_is_made_again(model, monkeypatch, damage, text):
    extend = Extending(model, monkeypatch)
    path = matrix_path(model.directory, "bare")
    good = path.read_bytes()
    (path if damage == "matrix" else path.with_name("matrix.bare.basis.json")).write_text(text)
    extend()
    assert extend.rows == [("bare", domain) for domain in ORDER]
    assert extend.generated == 0
    assert path.read_bytes() == good
