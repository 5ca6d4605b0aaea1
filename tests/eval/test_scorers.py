"""Scorers and their registry."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.data.formats import Example
from asr.errors import ConfigError, DataError
from asr.eval.registry import check_examples, get_scorer, register, scorer_names
from asr.eval.scorers.choice import ChoiceScorer
from asr.eval.scorers.exact import ExactScorer
from asr.eval.scorers.f1 import squad_tokens
from asr.eval.scorers.number import last_number
from asr.eval.scorers.rouge_l import lcs_length
from asr.eval.scorers.sql import normalise_sql
from asr.train.config import SCORERS, DomainConfig


def score(name: str, prediction: str, reference: str, **meta: Any) -> float:
    scorer = get_scorer(name)
    assert scorer.needs == "text"
    return scorer.score(prediction, reference, meta)


def example(completion: str = "yes", **meta: Any) -> Example:
    turns = ({"role": "user", "content": "?"}, {"role": "assistant", "content": completion})
    return Example(turns, meta, "d.jsonl:3")


def refusal(name: str, bad: Example) -> str:
    """The line about one example that a scorer refuses."""
    with pytest.raises(DataError) as caught:
        check_examples(name, [bad], "d")
    summary, line = str(caught.value).splitlines()
    assert summary == (
        f"d: scorer '{name}' cannot score 1 of 1 example; mend them, or choose another scorer:"
    )
    return line


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
        ("7 - 5", 5.0),
        ("the answer:\n- 5", 5.0),  # a bullet
        ("---\n5", 5.0),
        ("from 2019-2020", 2020.0),
        ("1,2,3", 3.0),
        (".5", 0.5),
        ("2e3", 2000.0),
        ("version 1.2.3", 3.0),
        ("no number here", None),
        ("5 or " + "9" * 400, None),
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
        ("I get 7 ####", "#### 7", 0.0),  # nothing after the marker
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
        "unknown scorer 'exakt' (did you mean 'exact'?); there are: choice, exact, f1, label"
    )


def test_builtin_scorers_are_registered() -> None:
    names = ["choice", "exact", "f1", "label", "loss", "number", "python", "rouge_l", "sql"]
    assert scorer_names() == names


def test_a_config_knows_the_registered_scorers() -> None:
    assert list(SCORERS) == scorer_names()
    description = DomainConfig.model_fields["scorer"].description or ""
    assert description.startswith(", ".join(scorer_names()))


def test_a_name_cannot_be_registered_twice() -> None:
    with pytest.raises(ValueError, match="scorer 'exact' is registered twice"):
        register(ExactScorer)
    assert score("exact", "a", "a") == 1.0


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [("exact", "b c", "C"), ("label", "B C.", "c"), ("sql", "B  C;", "c")],
)
def test_references_are_right_answers_too(name: str, right: str, wrong: str) -> None:
    assert score(name, right, "a", references=["b c"]) == 1.0
    assert score(name, "a", "a", references=["b c"]) == 1.0
    assert score(name, wrong, "a", references=["b c"]) == 0.0
    assert score(name, right, "a", references=None) == 0.0


@pytest.mark.parametrize("name", ["exact", "label", "f1", "rouge_l", "sql"])
def test_references_must_be_texts(name: str) -> None:
    check_examples(name, [example(), example(references=["a", "b"]), example(references=None)], "d")
    tail = 'write e.g. "meta": {"references": ["Paris", "the city of Paris"]}'
    assert refusal(name, example(references="a")) == (
        f"d.jsonl:3: scorer '{name}' found a string in meta.references, expected an array of at "
        f"least 1 non-empty string; {tail}"
    )
    assert refusal(name, example(references=["a", 3])) == (
        f"d.jsonl:3: scorer '{name}' found the number 3 in meta.references[1], expected a "
        f"non-empty string; {tail}"
    )


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("the cat sat", "A cat sat.", 1.0),
        ("the cat sat on the mat", "cat mat", 2 * 2 / (4 + 2)),  # cat sat on mat
        ("to be or not to be", "to be", 2 * 2 / (6 + 2)),
        ("be be", "to be", 2 * 1 / 4),  # a multiset: 'be' is shared once
        ("to be to be", "to be to be", 1.0),  # here twice
        ("U.S.", "US", 1.0),
        ("dog", "cat", 0.0),
        ("", "cat", 0.0),
        ("the", "an", 1.0),  # no tokens on either side
        ("the", "cat", 0.0),
    ],
)
def test_f1(prediction: str, reference: str, expected: float) -> None:
    assert score("f1", prediction, reference) == pytest.approx(expected)


def test_f1_takes_the_best_reference() -> None:
    assert score("f1", "a red car", "bike", references=["red", "red car", "blue"]) == 1.0
    assert squad_tokens("The cat's, an  Apple") == ["cats", "apple"]


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        # the examples of Lin (2004), section 3: LCS 3 of 4, and 2 of 4
        ("police kill the gunman", "police killed the gunman", 0.75),
        ("the gunman kill police", "police killed the gunman", 0.5),
        ("the gunman police killed", "police killed the gunman", 0.5),
        ("a b c d e", "a c e", 2 * 3 / 8),
        ("A-B_c!", "a b c", 1.0),
        ("l'été", "L’ÉTÉ", 1.0),
        ("...", "a", 0.0),
        ("", "", 0.0),
    ],
)
def test_rouge_l(prediction: str, reference: str, expected: float) -> None:
    assert score("rouge_l", prediction, reference) == pytest.approx(expected)


def test_rouge_l_takes_the_best_reference() -> None:
    assert score("rouge_l", "a b", "c", references=["a x b", "b a"]) == pytest.approx(0.8)


@given(st.lists(st.sampled_from("abc"), max_size=80), st.lists(st.sampled_from("abcd")))
def test_lcs_equals_the_table(a: list[str], b: list[str]) -> None:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, left in enumerate(a):
        for j, right in enumerate(b):
            longest = max(table[i][j + 1], table[i + 1][j])
            table[i + 1][j + 1] = table[i][j] + 1 if left == right else longest
    assert lcs_length(a, b) == table[-1][-1]


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("select  a\nfrom t;", "SELECT a FROM t", 1.0),
        ("SELECT a,b FROM t WHERE x>=3", "SELECT a , b FROM t WHERE x >= 3", 1.0),
        ('SELECT "Points" FROM t', "select points from t", 1.0),
        ("SELECT `Race Name` FROM t", 'SELECT "race name" FROM t', 1.0),
        ("SELECT [Race Name] FROM t", 'SELECT "Race Name" FROM t', 1.0),
        ("SELECT t.a FROM t -- the column", "SELECT t . a /* all */ FROM t", 1.0),
        ("SELECT a FROM t WHERE b = 'B5244 T2'", "SELECT a FROM t WHERE b='b5244 t2'", 1.0),
        ("a <> 1", "a != 1", 1.0),
        ("```sql\nSELECT a FROM t;\n```", "SELECT a FROM t", 1.0),
        ("Here it is:\n```\nSELECT a\n", "SELECT a", 1.0),
        ("select a", "```sql\nSELECT a;\n```", 1.0),
        ("```sql\nSELECT b\n```", "```sql\nSELECT a\n```", 0.0),
        ("SELECT a FROM t WHERE b = 'x'", 'SELECT a FROM t WHERE b = "x"', 0.0),
        ("SELECT a FROM t WHERE b = 'x y'", "SELECT a FROM t WHERE b = 'xy'", 0.0),
        ("SELECT a FROM t WHERE b = '1'", "SELECT a FROM t WHERE b = 1", 0.0),
        ("SELECT a, b FROM t", "SELECT b, a FROM t", 0.0),
        ("SELECT 'it''s'", "SELECT 'it' 's'", 0.0),
        ("SELECT a FROM t WHERE b = '--x'", "SELECT a FROM t WHERE b = '", 0.0),
        ("SELECT ab", "SELECT a b", 0.0),
        ("", "SELECT a", 0.0),
    ],
)
def test_sql(prediction: str, reference: str, expected: float) -> None:
    assert score("sql", prediction, reference) == expected


@given(st.text(alphabet="aB1_ .'\"`[]();,-/*<>=!|:e+\n\tÄ", max_size=40))
def test_sql_normalisation_is_idempotent(text: str) -> None:
    once = normalise_sql(text)
    assert normalise_sql(once) == once
    assert normalise_sql(f" {text}\n".upper().lower()) == normalise_sql(text.upper().lower())


_SQL_TOKENS = st.sampled_from(
    [
        "SELECT",
        "FROM",
        "t",
        ".",
        ",",
        "(",
        ")",
        "=",
        "<=",
        "<>",
        "'A  b'",
        '"Race Name"',
        "3.5",
        "x1",
    ]
)


@given(st.lists(_SQL_TOKENS), st.data())
def test_sql_ignores_white_space_and_case(tokens: list[str], data: st.DataObject) -> None:
    spaces = st.sampled_from([" ", "\n", "\t ", "   ", " /* x */ "])
    cases = st.sampled_from([str.upper, str.lower, str.swapcase])
    written = "".join(data.draw(spaces) + data.draw(cases)(token) for token in tokens)
    assert normalise_sql(written) == normalise_sql(" ".join(tokens))


def test_choice_takes_the_likeliest_per_byte() -> None:
    scorer = get_scorer("choice")
    assert isinstance(scorer, ChoiceScorer)
    # 6 nats over 6 bytes beat 4 nats over 3, though the sum is larger
    assert scorer.score_choices([4.0, 6.0], example(choices=["oil", "carbon"], gold=1)) == 1.0
    assert scorer.score_choices([4.0, 6.0], example(choices=["oil", "carbon"], gold=0)) == 0.0
    # bytes, not letters: 5 letters of 2 bytes each
    # 10 bytes in 5 letters: .4 against .5 per byte, though .8 per letter
    assert scorer.score_choices([4.0, 3.0], example(choices=["ааааа", "carbon"], gold=0)) == 1.0
    assert scorer.score_choices([3.0, 3.0], example(choices=["abc", "abd"], gold=0)) == 1.0


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        ({"gold": 2}, 2),
        ({"gold": "b b"}, 1),
        ({}, 2),  # the completion
        ({"gold": None}, 2),
    ],
)
def test_choice_finds_the_right_one(meta: dict[str, Any], expected: int) -> None:
    scorer = ChoiceScorer()
    assert scorer.gold(example(" c  c", choices=["a", "b b", "c c"], **meta)) == expected


@pytest.mark.parametrize(
    ("meta", "found", "expected"),
    [
        ({}, "no 'choices' in meta", "meta.choices"),
        (
            {"choises": ["a", "b"], "id": 1},
            "no 'choices' in meta (it has: choises, id) (did you mean 'choices'?)",
            "meta.choices",
        ),
        (
            {"choices": "a"},
            "a string in meta.choices",
            "an array of at least 2 non-empty strings",
        ),
        (
            {"choices": ["yes"]},
            "1 string in meta.choices",
            "an array of at least 2 non-empty strings",
        ),
        ({"choices": ["a", ""]}, "an empty string in meta.choices[1]", "a non-empty string"),
        ({"choices": ["a", "a"]}, "the choice 'a' twice in meta.choices", "different choices"),
        (
            {"choices": ["a", "b"], "gold": 2},
            "2 in meta.gold",
            "a place from 0 to 1 or one of the choices in meta.gold",
        ),
        (
            {"choices": ["a", "b"], "gold": -1},
            "-1 in meta.gold",
            "a place from 0 to 1 or one of the choices in meta.gold",
        ),
        (
            {"choices": ["a", "b"], "gold": True},
            "true in meta.gold",
            "a place from 0 to 1 or one of the choices in meta.gold",
        ),
        (
            {"choices": ["a", "b"], "gold": "c"},
            "'c' in meta.gold",
            "a place from 0 to 1 or one of the choices in meta.gold",
        ),
        (
            {"choices": ["a", "b"]},
            "'yes' as the answer, which is none of meta.choices,",
            "a place from 0 to 1 or one of the choices in meta.gold",
        ),
    ],
)
def test_choice_refuses(meta: dict[str, Any], found: str, expected: str) -> None:
    assert refusal("choice", example(**meta)) == (
        f"d.jsonl:3: scorer 'choice' found {found}, expected {expected}; "
        'write e.g. "meta": {"choices": ["oil", "coal", "wood"], "gold": 1}'
    )


def test_python_runs_the_asserts() -> None:
    code, tests = "def add(a, b):\n    return a + b", ["assert add(1, 2) == 3"]
    assert score("python", code, "", tests=tests) == 1.0
    assert score("python", f"Sure:\n```python\n{code}\n```\nDone.", "", tests=tests) == 1.0
    assert score("python", f"```python\n{code}", "", tests=tests) == 1.0
    assert score("python", "Sure: add", "", tests=tests) == 0.0
    assert score("python", code, "", tests=[*tests, "assert add(1, 1) == 3"]) == 0.0
    assert score("python", code, "", setup="n = 2", tests=["assert add(1, n) == 3"]) == 1.0


def test_python_tests_the_builtin_that_the_reference_defines() -> None:
    tests = ["assert max([1, 2]) == 1"]
    code = "def max(x):\n    return x[0]"
    assert score("python", code, "def max(values):\n    return values[0]", tests=tests) == 1.0
    assert score("python", code, "def first(x):\n    return x[0]", tests=tests) == 0.0


@pytest.mark.parametrize(
    ("meta", "found", "expected"),
    [
        ({}, "no 'tests' in meta", "meta.tests"),
        ({"tests": []}, "0 strings in meta.tests", "an array of at least 1 non-empty string"),
        ({"tests": ["f(1) == 2"]}, "no assert in meta.tests", "at least one"),
        ({"tests": ["assert x"], "setup": 3}, "the number 3 in meta.setup", "a string"),
        (
            {"tests": ["assert f(1) = 2"]},
            "no Python in meta.tests[0] (invalid syntax",
            "Python that parses",
        ),
    ],
)
def test_python_refuses(meta: dict[str, Any], found: str, expected: str) -> None:
    line = refusal("python", example(**meta))
    assert line.startswith(f"d.jsonl:3: scorer 'python' found {found}")
    assert line.endswith(
        f', expected {expected}; write e.g. "meta": {{"tests": ["assert add(1, 2) == 3"]}}'
    )


def test_a_number_is_missed_before_anything_is_scored() -> None:
    assert refusal("number", example("yes")) == (
        "d.jsonl:3: scorer 'number' finds no number in the reference 'yes'; "
        "choose another scorer (label, exact) for this domain"
    )
    check_examples("number", [example("#### 3")], "d")


def test_a_plain_text_has_only_a_loss() -> None:
    text = Example(({"role": "text", "content": "once"},), {}, "d.txt:1")
    check_examples("loss", [text], "d")
    assert refusal("exact", text) == (
        "d.txt:1: scorer 'exact' found a plain text, expected a prompt and an answer; "
        "a plain text can be scored by 'loss'"
    )


def test_many_bad_examples_are_counted_and_the_first_are_listed() -> None:
    with pytest.raises(DataError) as caught:
        check_examples("number", [example("1"), *[example("x")] * 5], "d", limit_errors=2)
    summary, *lines = str(caught.value).splitlines()
    assert summary == (
        "d: scorer 'number' cannot score 5 of 6 examples; mend them, or choose another scorer "
        "(the first 2):"
    )
    assert len(lines) == 2
