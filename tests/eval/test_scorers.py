"""Scorers and their registry."""

from __future__ import annotations

import pytest

from asr.errors import ConfigError, DataError
from asr.eval.registry import get_scorer, register, scorer_names
from asr.eval.scorers.exact import ExactScorer
from asr.eval.scorers.number import last_number


def score(name: str, prediction: str, reference: str) -> float:
    scorer = get_scorer(name)
    assert scorer.needs == "text"
    return scorer.score(prediction, reference, {})


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("2024-03-03", "2024-03-03", 1.0),
        ("  SELECT  a\nFROM t ", "SELECT a FROM t", 1.0),
        ("select a FROM t", "SELECT a FROM t", 0.0),
        ("ab", "a b", 0.0),
        ("", "a", 0.0),
    ],
)
def test_exact(prediction: str, reference: str, expected: float) -> None:
    assert score("exact", prediction, reference) == expected


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ('"Yes."', "yes", 1.0),
        ("\n YES!\nbecause of the study", "yes", 1.0),
        ("\u201cCard  arrival\u201d", "card arrival", 1.0),
        ("yes, it does", "yes", 0.0),
        ("not yes", "yes", 0.0),
        ("C#", "C++", 0.0),
        ("?", "!", 0.0),
        ("", "yes", 0.0),
        ("because\nyes", "yes", 0.0),
    ],
)
def test_label(prediction: str, reference: str, expected: float) -> None:
    assert score("label", prediction, reference) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the answer is 5.", 5.0),
        ("1,234,567 people", 1234567.0),
        ("a total of -3.25", -3.25),
        ("\u22127", -7.0),
        ("-$5", -5.0),
        ("$1,050.50", 1050.5),
        ("7-5", 5.0),
        ("from 2019-2020", 2020.0),
        ("1,2,3", 3.0),
        (".5", 0.5),
        ("2e3", 2000.0),
        ("version 1.2.3", 3.0),
        ("no number here", None),
        ("", None),
    ],
)
def test_last_number(text: str, expected: float | None) -> None:
    assert last_number(text) == expected


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("so 3 + 4\n#### 7", "work 12\n#### 7", 1.0),
        ("#### 7\nas 3 + 4 = 8 - 1", "#### 7", 0.0),  # last number after the last marker is 1
        ("I get 7", "#### 7", 1.0),
        ("#### 1,000", "#### 1000", 1.0),
        ("1000000.5", "1000001", 1.0),
        ("100.1", "100", 0.0),
        ("0", "0.0", 1.0),
        ("none", "3", 0.0),
    ],
)
def test_number(prediction: str, reference: str, expected: float) -> None:
    assert score("number", prediction, reference) == expected


def test_number_refuses_a_reference_without_a_number() -> None:
    with pytest.raises(DataError) as caught:
        score("number", "3", "yes")
    assert str(caught.value) == (
        "scorer 'number' finds no number in the reference 'yes'; "
        "choose another scorer (label, exact) for this domain"
    )


def test_loss_is_mean_per_token_and_lower_is_better() -> None:
    scorer = get_scorer("loss")
    assert scorer.needs == "loss"
    assert not scorer.higher_is_better
    assert scorer.score_loss(12.0, 8) == 1.5


@pytest.mark.parametrize(
    ("sum_nll", "tokens", "message"),
    [
        (1.0, 0, "loss needs at least 1 supervised token, got 0"),
        (float("nan"), 3, "loss needs a finite sum of NLL, got nan"),
    ],
)
def test_loss_refuses(sum_nll: float, tokens: int, message: str) -> None:
    scorer = get_scorer("loss")
    assert scorer.needs == "loss"
    with pytest.raises(ValueError, match=message):
        scorer.score_loss(sum_nll, tokens)


def test_unknown_scorer_is_named_with_a_suggestion() -> None:
    with pytest.raises(ConfigError) as caught:
        get_scorer("exakt")
    assert str(caught.value).startswith(
        "unknown scorer 'exakt' (did you mean 'exact'?); there are: exact"
    )


def test_builtin_scorers_are_registered() -> None:
    assert {"exact", "label", "loss", "number"} <= set(scorer_names())


def test_a_name_cannot_be_registered_twice() -> None:
    with pytest.raises(ValueError, match="scorer 'exact' is registered twice"):
        register(ExactScorer)
    assert score("exact", "a", "a") == 1.0
