"""Cuts by hash of the prompt: disjoint, complete, stable, never an empty side."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.data.cut import calibration_cut, dev_cut, hash_cut, prompt_position
from asr.data.formats import Example


def example(prompt: str, answer: str = "A") -> Example:
    turns = ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})
    return Example(turns, {}, "x.jsonl:1")


def prompts(examples: tuple[Example, ...]) -> set[str]:
    return {e.prompt_key for e in examples}


MANY = [example(f"question {index}") for index in range(2000)]

data = st.lists(st.builds(example, st.integers(0, 30).map(str), st.sampled_from("AB")), max_size=40)
fractions = st.floats(0.01, 0.99)


@given(data, fractions)
def test_disjoint_and_complete(examples: list[Example], fraction: float) -> None:
    cut = hash_cut(examples, fraction, "salt")
    assert prompts(cut.kept).isdisjoint(prompts(cut.held_out))
    held = prompts(cut.held_out)
    assert list(cut.held_out) == [e for e in examples if e.prompt_key in held]
    assert list(cut.kept) == [e for e in examples if e.prompt_key not in held]
    distinct = len(prompts(tuple(examples)))
    assert bool(cut.held_out) == (distinct >= 2)
    assert bool(cut.kept) == (distinct >= 1)


@given(data, data, fractions)
def test_stable_under_growth(old: list[Example], new: list[Example], fraction: float) -> None:
    before, after = hash_cut(old, fraction, "s"), hash_cut([*old, *new], fraction, "s")
    if before.forced or after.forced or len(prompts(tuple(old))) < 2:
        return  # a side would have been empty: the documented exception
    assert prompts(before.held_out) <= prompts(after.held_out)
    assert prompts(before.kept) <= prompts(after.kept)


@given(data.flatmap(lambda d: st.tuples(st.just(d), st.permutations(d))), fractions)
def test_stable_under_reorder(pair: tuple[list[Example], list[Example]], fraction: float) -> None:
    first, second = (hash_cut(order, fraction, "s") for order in pair)
    assert prompts(first.held_out) == prompts(second.held_out)
    assert first.forced == second.forced


@settings(max_examples=30)
@given(data, fractions, st.integers(1, 5))
def test_cap_keeps_the_lowest_hashes(examples: list[Example], fraction: float, cap: int) -> None:
    capped = hash_cut(examples, fraction, "s", max_prompts=cap)
    full = hash_cut(examples, fraction, "s")
    positions = {e.prompt_key: prompt_position(e, "s") for e in full.held_out}
    lowest = sorted(positions, key=lambda key: positions[key])[:cap]
    assert prompts(capped.held_out) == set(lowest)
    assert len(capped.kept) + len(capped.held_out) == len(examples)


def test_position_is_the_hash_of_salt_and_canonical_prompt() -> None:
    digest = hashlib.sha256('s[["user","é"]]'.encode()).hexdigest()
    assert prompt_position(example("é"), "s") == pytest.approx(int(digest[:14], 16) / 16**14)


def test_the_answer_does_not_matter_and_the_salt_does() -> None:
    assert prompt_position(example("q", "A"), "s") == prompt_position(example("q", "B"), "s")
    assert prompt_position(example("q"), "s") != prompt_position(example("q"), "t")


@pytest.mark.parametrize(("fraction", "side"), [(1e-9, "held_out"), (1 - 1e-9, "kept")])
def test_no_side_is_left_empty(fraction: float, side: str) -> None:
    examples = [example(str(i)) for i in range(10)]
    cut = hash_cut(examples, fraction, "s")
    assert cut.forced
    (only,) = getattr(cut, side)
    pick = min if side == "held_out" else max
    assert only == pick(examples, key=lambda e: prompt_position(e, "s"))


def test_one_distinct_prompt_is_kept() -> None:
    cut = hash_cut([example("q", "A"), example("q", "B")], 0.999999, "s")
    assert len(cut.kept) == 2 and not cut.held_out and not cut.forced
    assert hash_cut([], 0.5, "s").kept == ()


def test_dev_cut_holds_out_15_percent() -> None:
    cut = dev_cut(MANY)
    assert 250 <= len(cut.held_out) <= 350  # 300 expected, standard deviation 16


def test_calibration_cut_holds_out_20_percent_up_to_256() -> None:
    assert 60 <= len(calibration_cut(MANY[:500]).held_out) <= 140  # 100 expected
    assert len(calibration_cut(MANY).held_out) == 256


def test_dev_and_calibration_are_independent() -> None:
    dev, calibration = dev_cut(MANY[:500]), calibration_cut(MANY[:500])
    both = prompts(dev.held_out) & prompts(calibration.held_out)
    assert 0 < len(both) < min(len(dev.held_out), len(calibration.held_out)) / 2


@pytest.mark.parametrize(
    ("fraction", "cap", "message"),
    [
        (0.0, None, "fraction must lie between 0 and 1, not 0.0"),
        (1.0, None, "fraction must lie between 0 and 1, not 1.0"),
        (float("nan"), None, "fraction must lie between 0 and 1, not nan"),
        (0.5, 0, "max_prompts must be at least 1, not 0"),
    ],
)
def test_bad_arguments(fraction: float, cap: int | None, message: str) -> None:
    with pytest.raises(ValueError) as error:
        hash_cut(MANY[:3], fraction, "s", cap)
    assert str(error.value) == message
