"""Cells of the matrix against scores computed by hand; no answer is generated twice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import asr
from asr.data.encode import encode_example
from asr.data.formats import Example
from asr.data.views import make_views
from asr.errors import DataError
from asr.eval.cache import EvalCache
from asr.eval.evaluate import EvalSet, Evaluator
from asr.eval.history import eval_set
from asr.eval.matrix import EvalMatrix
from asr.model.background import read_background
from asr.model.kept_prompts import read_kept
from asr.model.routing import fit_router, read_domains
from asr.router import RouterSettings
from tests.routed import trained

NEW = 6
ORDER = ("red", "sum", "rev")


@pytest.fixture(scope="module")
def model():
    found = asr.RoutedModel.from_pretrained(trained() / "model", device="cpu", dtype="float32")
    yield found
    found.close()


@pytest.fixture(scope="module")
def routers(model):
    contract = model.manifest.contract
    domains = read_domains(model.directory, ORDER, contract)
    others = read_background(model.directory, model.manifest)
    return [
        fit_router([*domains[: k + 1], *others], RouterSettings(), contract, 32) for k in range(3)
    ]


@pytest.fixture(scope="module")
def sets(model):
    """``red`` and ``rev`` by text, with references that some answers match, ``sum`` by loss."""
    made = []
    for name in ORDER:
        kept = read_kept(model.directory.eval_prompts(name))
        kept = [*kept, *(variant(example) for example in kept)]
        found = eval_set(model.manifest, name, kept, NEW)
        if name != "sum":
            answers = model.generate(
                [list(e.prompt) for e in kept], adapter=name, max_new_tokens=NEW
            )
            references = [a.text if i % 3 else "no" for i, a in enumerate(answers)]
            kept = [
                replaced(example, reference)
                for example, reference in zip(kept, references, strict=True)
            ]
        made.append(replace(found, examples=kept))
    return made


def variant(example):
    first = {**example.messages[0], "content": example.messages[0]["content"] + " more words"}
    return Example((first, *example.messages[1:]), example.meta, example.source)


def replaced(example, reference):
    last = {"role": "assistant", "content": reference or "no"}
    return Example((*example.messages[:-1], last), example.meta, example.source)


def by_hand(model, evaluated, kind, adapters):
    """(values, weights) of a set, one forward or generation per example."""
    values, weights = [], []
    for example, adapter in zip(evaluated.examples, adapters, strict=True):
        prompt = make_views(example.prompt, evaluated.common, [kind])[kind]
        if evaluated.scorer == "exact":
            [answer] = model.generate([prompt], adapter=adapter, max_new_tokens=NEW)
            values.append(float(answer.text.split() == example.completion.split()))
            weights.append(1.0)
            continue
        turns = (*prompt, {"role": "assistant", "content": example.completion})
        base = model.base
        row = encode_example(Example(turns, {}, "x"), base.tokenizer, base.template, 512)[-1]
        ids = torch.tensor([row.input_ids])
        with model.applied([adapter]), torch.no_grad():
            scores = base.model(input_ids=ids).logits[0].double().log_softmax(-1)
        told = [
            -float(scores[place - 1, label])
            for place, label in enumerate(row.labels)
            if label != -100
        ]
        values.append(sum(told) / len(told))
        weights.append(float(len(told)))
    return np.array(values), np.array(weights)


@pytest.mark.parametrize("kind", ["templated", "bare"])
def test_cells_equal_scores_computed_by_hand(model, routers, sets, tmp_path, kind):
    matrix = EvalMatrix(kind)
    with EvalCache(tmp_path / "answers.jsonl") as cache:
        evaluator = Evaluator(model, cache, batch_size=4)
        for k, router in enumerate(routers):
            evaluator.extend(matrix, sets[: k + 1], router)
    assert matrix.domains == list(ORDER)
    for k, router in enumerate(routers):
        for j in range(k + 1):
            evaluated = sets[j]
            prompts = [
                make_views(e.prompt, evaluated.common, [kind])[kind] for e in evaluated.examples
            ]
            routes = [d.route for d in router.decide(model.embed(model.encode(prompts)))]
            values, weights = by_hand(model, evaluated, kind, routes)
            assert matrix.routed[k, j] == pytest.approx(
                np.average(values, weights=weights), rel=1e-5
            )
            own = [evaluated.domain] * len(routes)
            values, weights = by_hand(model, evaluated, kind, own)
            assert matrix.oracle[k, j] == pytest.approx(
                np.average(values, weights=weights), rel=1e-5
            )
            accuracy = np.mean([route == evaluated.domain for route in routes])
            assert matrix.routing_accuracy[k, j] == pytest.approx(accuracy)
        values, weights = by_hand(model, sets[k], kind, ["base"] * len(sets[k].examples))
        assert matrix.base[k] == pytest.approx(np.average(values, weights=weights), rel=1e-5)
    assert np.isnan(matrix.routed[0, 1:]).all() and np.isnan(matrix.routed[1, 2])
    if kind == "templated":  # neither all right nor all wrong: the numbers above mean something
        assert 0 < matrix.oracle[0, 0] < 1 and 0 < matrix.oracle[2, 2] < 1
        assert matrix.oracle[2, 1] < matrix.base[1]  # a loss: training lowered it


class Counting:
    """Counts what a model really runs: prompts generated, rows of loss forwards."""

    def __init__(self, model, monkeypatch, fail_after=None):
        self.generated = 0
        generate = model.generate

        def counted(prompts, **options):
            if fail_after is not None and self.generated >= fail_after:
                raise KeyboardInterrupt
            self.generated += len(prompts)
            return generate(prompts, **options)

        monkeypatch.setattr(model, "generate", counted)
        self.forwards = 0
        forward = Evaluator._forward

        def counted_forward(evaluator, rows, adapter):
            self.forwards += len(rows)
            return forward(evaluator, rows, adapter)

        monkeypatch.setattr(Evaluator, "_forward", counted_forward)


def run(model, sets, routers, path, **options):
    matrix = EvalMatrix("templated")
    with EvalCache(path) as cache:
        for k, router in enumerate(routers):
            Evaluator(model, cache, batch_size=4, **options).extend(matrix, sets[: k + 1], router)
    return matrix.to_json()


def test_a_second_evaluation_runs_nothing(model, routers, sets, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        first = Counting(model, patch)
        expected = run(model, sets, routers, tmp_path / "a.jsonl")
    assert first.generated > 0 and first.forwards > 0
    counted = Counting(model, monkeypatch)
    assert run(model, sets, routers, tmp_path / "a.jsonl") == expected
    assert (counted.generated, counted.forwards) == (0, 0)
    # another length is another answer
    longer = [replace(sets[0], max_new_tokens=NEW + 1), *sets[1:]]
    run(model, longer, routers[:1], tmp_path / "a.jsonl")
    assert counted.generated == 2 * len(sets[0].examples)  # the adapter's and the base's


def test_an_interrupted_evaluation_goes_on_from_its_answers(
    model, routers, sets, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        whole = Counting(model, patch)
        expected = run(model, sets, routers, tmp_path / "whole.jsonl")
    with monkeypatch.context() as patch:
        before = Counting(model, patch, fail_after=8)
        with pytest.raises(KeyboardInterrupt):
            run(model, sets, routers, tmp_path / "a.jsonl")
    assert 8 <= before.generated < whole.generated
    after = Counting(model, monkeypatch)
    assert run(model, sets, routers, tmp_path / "a.jsonl") == expected
    assert before.generated + after.generated == whole.generated


def test_progress_counts_up_to_its_total(model, routers, sets, tmp_path):
    told = []
    run(model, sets, routers, tmp_path / "a.jsonl", progress=lambda *args: told.append(args))
    last = {}
    for what, done, total in told:
        assert last.get(what, (0, 0))[0] < done or last[what][0] == last[what][1]
        assert done <= total
        last[what] = (done, total)
    losses = {what: counts for what, counts in last.items() if what.startswith("sum with")}
    assert losses and all(done == total for done, total in losses.values())


def test_nothing_to_score_is_an_error(model, routers, tmp_path):
    empty = EvalSet("red", [], eval_set(model.manifest, "red", [], 4).common, "exact", 4)
    with pytest.raises(DataError, match="red: no examples to evaluate on"):
        Evaluator(model, EvalCache(tmp_path / "a")).extend(EvalMatrix("bare"), [empty], routers[0])


def with_choices(example, k):
    """The example with three choices, one of them its answer; the shortest is not the answer."""
    choices = [f"{example.completion} and more of it", example.completion, "zu"]
    choices = choices[k % 3 :] + choices[: k % 3]
    return Example(example.messages, {"choices": choices}, example.source)


@pytest.fixture
def choosing(sets):
    examples = [with_choices(example, k) for k, example in enumerate(sets[0].examples)]
    return replace(sets[0], examples=examples, scorer="choice")


def chosen_by_hand(model, prompt, choices, adapter):
    """Log-likelihood per byte of each choice, one forward per choice, its end left out."""
    base, values = model.base, []
    for choice in choices:
        turns = (*prompt, {"role": "assistant", "content": choice})
        row = encode_example(Example(turns, {}, "x"), base.tokenizer, base.template, 512)[-1]
        with model.applied([adapter]), torch.no_grad():
            scores = base.model(input_ids=torch.tensor([row.input_ids])).logits[0].double()
        scores = scores.log_softmax(-1)
        places = [place for place, label in enumerate(row.labels) if label != -100][:-1]
        total = sum(float(scores[place - 1, row.labels[place]]) for place in places)
        values.append(total / len(choice.encode()))
    return values


@pytest.mark.parametrize("kind", ["templated", "bare"])
@pytest.mark.parametrize("adapter", ["red", "base"])
def test_choices_are_compared_as_by_hand(model, choosing, tmp_path, kind, adapter):
    expected = []
    for example in choosing.examples:
        prompt = make_views(example.prompt, choosing.common, [kind])[kind]
        choices = example.meta["choices"]
        values = chosen_by_hand(model, prompt, choices, adapter)
        expected.append(float(choices[int(np.argmax(values))] == example.completion))
    with EvalCache(tmp_path / "a.jsonl") as cache:
        found = Evaluator(model, cache, batch_size=4).forced(choosing, kind, adapter)
    assert list(found.values) == expected
    assert found.weights is None


def test_likelihoods_of_choices_are_summed_over_the_answer_alone(model, choosing, tmp_path):
    example = choosing.examples[0]
    prompt = list(example.prompt)
    choices = example.meta["choices"]
    with EvalCache(tmp_path / "a.jsonl") as cache:
        evaluator = Evaluator(model, cache)
        one = replace(choosing, examples=[example])
        found = evaluator._choices(one, [prompt], [choices], [("red", 0)])
    by_hand = chosen_by_hand(model, prompt, choices, "red")
    assert found[("red", 0)] == pytest.approx(
        [-value * len(choice.encode()) for value, choice in zip(by_hand, choices, strict=True)],
        rel=1e-4,
    )


def test_choices_are_remembered(model, choosing, routers, tmp_path, monkeypatch):
    counted = Counting(model, monkeypatch)
    first = run(model, [choosing], routers[:1], tmp_path / "a.jsonl")
    # three choices of each prompt; under its adapter, the base, and at most one more where routed
    rows = {(e.prompt_key, choice) for e in choosing.examples for choice in e.meta["choices"]}
    assert counted.generated == 0
    assert counted.forwards == 2 * len(rows)
    assert run(model, [choosing], routers[:1], tmp_path / "a.jsonl") == first
    assert counted.forwards == 2 * len(rows)


@pytest.mark.parametrize("place", [0, 1])
def test_a_prompt_that_stands_twice_is_answered_once(model, sets, tmp_path, monkeypatch, place):
    once = replace(sets[place], examples=sets[place].examples[:3])
    twice = replace(once, examples=[*once.examples, *once.examples])
    counted = Counting(model, monkeypatch)
    with EvalCache(tmp_path / "a.jsonl") as cache:
        found = Evaluator(model, cache).forced(twice, "templated", "red")
    assert counted.generated + counted.forwards == 3
    assert len(found.values) == 6 and list(found.values[:3]) == list(found.values[3:])


def test_what_a_scorer_needs_is_missed_before_anything_runs(
    model, routers, sets, choosing, tmp_path, monkeypatch
):
    counted = Counting(model, monkeypatch)
    bad = replace(sets[1], scorer="choice")
    with (
        EvalCache(tmp_path / "a") as cache,
        pytest.raises(DataError, match=r"scorer 'choice' found no 'choices' in meta"),
    ):
        Evaluator(model, cache).extend(EvalMatrix("bare"), [choosing, bad], routers[1])
    assert (counted.generated, counted.forwards) == (0, 0)
