"""The demo domains: right answers, split kept, the same everywhere."""

from __future__ import annotations

import hashlib
import json
import random
import re
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from asr.errors import ConfigError
from asr.eval import get_scorer
from demo import dates, triage
from demo.domains import DOMAINS, make_domain, split_of, write
from demo.questions import QUESTIONS, questions_for
from demo.task import Split

ROOT = Path(dates.__file__).parents[1]

LONGEST = {"dates": 10, "triage": 40, "sql": 80, "arithmetic": 40}
"""Characters of an answer: at two to a token none is longer than 40 tokens."""


def prompts(name: str, split: Split, count: int, seed: int = 0) -> list[str]:
    return [e["messages"][0]["content"] for e in make_domain(name, split, count, seed)]


@pytest.mark.parametrize("name", DOMAINS)
def test_thousands_of_distinct_prompts_and_no_test_prompt_in_train(name: str) -> None:
    train, test = prompts(name, "train", 3000, seed=1), prompts(name, "test", 1000, seed=2)
    assert len(set(train)) == 3000
    assert len(set(test)) == 1000
    assert not {" ".join(p.lower().split()) for p in train} & {
        " ".join(p.lower().split()) for p in test
    }


@pytest.mark.parametrize("name", DOMAINS)
def test_shape_and_length(name: str) -> None:
    for example in make_domain(name, "train", 500):
        user, assistant = example["messages"]
        first, second = user["content"].split("\n")
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        assert first == DOMAINS[name].instruction
        assert second.startswith(DOMAINS[name].lead)
        assert "{" not in second
        assert len(assistant["content"]) <= LONGEST[name]
        assert get_scorer(example["meta"]["scorer"]).higher_is_better
        json.dumps(example)


@pytest.mark.parametrize("name", DOMAINS)
def test_the_scorer_accepts_the_reference_and_refuses_other_answers(name: str) -> None:
    examples = make_domain(name, "test", 200)
    answers = [example["messages"][1]["content"] for example in examples]
    scorer: Any = get_scorer(DOMAINS[name].scorer)
    for example, answer, other in zip(examples, answers, [*answers[1:], answers[0]], strict=True):
        assert scorer.score(answer, answer, example["meta"]) == 1.0
        assert scorer.score("", answer, example["meta"]) == 0.0
        same_result = name == "arithmetic" and answer.split("#")[-1] == other.split("#")[-1]
        if other != answer and not same_result:
            assert scorer.score(other, answer, example["meta"]) == 0.0
        damaged = f"{answer}1" if answer[-1].isdigit() else answer[:-2]
        assert scorer.score(damaged, answer, example["meta"]) == 0.0


@pytest.mark.parametrize("name", DOMAINS)
def test_a_larger_count_begins_with_the_smaller_and_seeds_differ(name: str) -> None:
    assert prompts(name, "train", 50) == prompts(name, "train", 80)[:50]
    assert prompts(name, "train", 50) != prompts(name, "train", 50, seed=1)


def test_equal_in_another_process_with_another_hash_seed(tmp_path: Path) -> None:
    write(tmp_path / "here", train=40, test=20, seed=3)
    command = [sys.executable, "-m", "demo.domains", str(tmp_path / "there")]
    command += ["--train", "40", "--test", "20", "--seed", "3"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={"PYTHONHASHSEED": "12345", "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    )
    names = [f"{name}.{split}.jsonl" for name in DOMAINS for split in ("train", "test")]
    assert done.stdout.split() == [str(tmp_path / "there" / name) for name in names]
    for name in names:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()
        lines = (tmp_path / "here" / name).read_text(encoding="utf-8").splitlines()
        assert len(lines) == (40 if ".train." in name else 20)


def test_split_is_a_function_of_the_prompt() -> None:
    assert split_of("x") == ("test" if hashlib.sha256(b"x").digest()[0] < 64 else "train")
    assert all(split_of(p) == "test" for p in prompts("dates", "test", 50))


@pytest.mark.parametrize(
    ("name", "split", "count", "message"),
    [
        ("date", "train", 1, "unknown demo domain 'date' (did you mean 'dates'?); there are: "),
        ("dates", "dev", 1, "unknown split 'dev'; there are: test, train"),
        ("dates", "train", -1, "count must not be negative, got -1"),
    ],
)
def test_bad_requests(name: str, split: Split, count: int, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_domain(name, split, count)
    assert str(caught.value).startswith(message)


def test_an_exhausted_domain_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("demo.domains._PATIENCE", 1)  # one repeat is already too many
    with pytest.raises(ConfigError, match=r"demo domain 'triage' has only about .* train prompts"):
        make_domain("triage", "train", 20_000)


def test_dates_are_read_back_from_their_messages() -> None:
    months = {name.lower()[:3]: i for i, name in enumerate(dates.MONTHS, 1)}
    checked = 0
    for example in make_domain("dates", "train", 1000):
        rule, answer = example["meta"]["rule"], example["messages"][1]["content"]
        message = example["messages"][0]["content"].split("Message: ")[1]
        if not rule.startswith("date"):
            continue
        value = date.fromisoformat(answer)
        assert str(value.year) in message
        if rule in ("date, ordinal", "date, day month", "date, month day", "date, short month"):
            words = re.findall(r"[a-z]+|\d+", message.lower())
            month = [
                months[w[:3]]
                for w in words
                if w in map(str.lower, dates.MONTHS)
                or (w in months and rule == "date, short month")
            ]
            assert month == [value.month]
            assert str(value.day) in words
            checked += 1
        elif rule == "date, ordinal word":
            assert f"the {dates.ordinal_word(value.day)}" in re.split(" of |,", message)[0]
            assert dates.MONTHS[value.month - 1] in message
            checked += 1
        elif rule == "date, numeric":
            numbers = [int(n) for n in re.findall(r"\d+", message)]
            assert sorted(numbers[:2]) == sorted([value.day, value.month])
            assert value.day > 12  # only one reading
            checked += 1
    assert checked > 200


def test_times_and_durations_have_iso_form() -> None:
    forms = {
        "date": r"\d{4}-\d\d-\d\d",
        "time": r"([01]\d|2[0-3]):[0-5]\d",
        "duration": r"P(T(?=\d)(\d+H)?(\d+M)?|\d+D|\d+W)",
    }
    seen = set()
    for example in make_domain("dates", "test", 1000):
        kind = example["meta"]["rule"].split(",")[0]
        assert re.fullmatch(forms[kind], example["messages"][1]["content"])
        seen.add(kind)
    assert seen == set(forms)


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        ("twenty past three in the afternoon", "15:20"),
        ("quarter to eight in the evening", "19:45"),
        ("half past nine in the morning", "09:30"),
        ("twenty-five to four in the afternoon", "15:35"),
        ("two and a half hours", "PT2H30M"),
        ("an hour and a half", "PT1H30M"),
        ("12:30 am", "00:30"),
        ("midnight", "00:00"),
        ("noon", "12:00"),
    ],
)
def test_known_phrases(message: str, answer: str) -> None:
    """Every message of the generator that has the phrase has this answer, and there is one."""
    rng = random.Random(0)
    draw = dates.draw_time if ":" in answer else dates.draw_duration
    pattern = re.compile(rf"(?<![\w-]){re.escape(message)}(?![\w-])")
    draws = (draw(rng, "train") for _ in range(50_000))
    found = next(d for d in draws if pattern.search(d.message))
    assert found.answer == answer


@pytest.mark.parametrize(
    ("n", "word", "digits"),
    [
        (1, "first", "1st"),
        (2, "second", "2nd"),
        (3, "third", "3rd"),
        (11, "eleventh", "11th"),
        (12, "twelfth", "12th"),
        (20, "twentieth", "20th"),
        (21, "twenty-first", "21st"),
        (30, "thirtieth", "30th"),
        (31, "thirty-first", "31st"),
    ],
)
def test_ordinals(n: int, word: str, digits: str) -> None:
    assert dates.ordinal_word(n) == word
    assert dates.ordinal_digits(n) == digits


def test_triage_answers_are_json_and_balanced() -> None:
    urgent = 0
    queues = set()
    for example in make_domain("triage", "train", 1000):
        answer = json.loads(example["messages"][1]["content"])
        assert set(answer) == {"queue", "urgent"}
        queues.add(answer["queue"])
        urgent += answer["urgent"]
        message = example["messages"][0]["content"].split("Message: ")[1].lower()
        hurried = any(h.lower().rstrip(".") in message for h in triage.HURRIES.train)
        if hurried:
            assert answer["urgent"]
    assert queues == set(triage.QUEUES)
    assert 400 < urgent < 650


def test_wordings_of_the_splits_are_disjoint() -> None:
    for frames in (dates.ON_A_DAY, dates.AT_A_TIME, dates.FOR_A_WHILE):
        assert not set(frames.train) & set(frames.test)
    problems = [*triage.PROBLEMS.values(), *triage.DANGERS.values()]
    for pool in (triage.PRODUCTS, triage.HURRIES, triage.CALM, *problems):
        assert not set(pool.train) & set(pool.test)


def test_questions_cover_each_domain_and_one_outside() -> None:
    assert {q.domain for q in QUESTIONS} == {*DOMAINS, None}
    assert {q.domain for q in questions_for(("dates", "sql"))} == {"dates", "sql", None}
    made = {p for name in DOMAINS for p in prompts(name, "train", 500)}
    assert not any(q.text in p for q in QUESTIONS for p in made)
