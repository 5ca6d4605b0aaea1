"""Files of questions: what is read, and how a bad line is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from asr.errors import DataError
from asr.eval.routing.questions import questions_of_domains, read_questions

DOMAINS = ("billing", "sql")


def written(folder: Path, text: str, name: str = "q.jsonl") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_prompts_and_conversations(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        '{"domain": "sql", "prompt": "count them", "group": "short"}\n\n'
        '{"domain": "base", "messages": [{"role": "user", "content": "hi"},'
        ' {"role": "assistant", "content": "yes?"}, {"role": "user", "content": "a poem"}]}\n',
    )
    first, second = read_questions(path, DOMAINS)
    assert (first.domain, first.group, first.text) == ("sql", "short", "count them")
    assert (second.domain, second.text, second.source) == ("none", "a poem", f"{path}:3")
    assert len(second.messages) == 3


def test_unknown_prompts_need_no_label(tmp_path: Path) -> None:
    (row,) = read_questions(written(tmp_path, '{"prompt": "a poem"}'), DOMAINS, all_unknown=True)
    assert row.domain == "none"
    text = written(tmp_path, "a poem\n\n{not json}\n", "others.txt")
    assert [q.text for q in read_questions(text, DOMAINS, all_unknown=True)] == [
        "a poem",
        "{not json}",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"domain": "sq", "prompt": "x"}', "{path}:1: unknown domain 'sq' (did you mean 'sql'?);"
         " there are: billing, none, sql"),
        ('{"prompt": "x"}', "{path}:1 has no 'domain'; name one of the model's, or \"none\""),
        ('{"domain": "sql", "prompt": " "}', "{path}:1 has no 'prompt' with text, nor 'messages'"
         " with a user's turn"),
        ('{"domain": "sql", "messages": [{"role": "system", "content": "x"}]}', "{path}:1 has no"
         " 'prompt' with text, nor 'messages' with a user's turn"),
        ("[1]", '{path}:1 is no JSON object; write {{"domain": ..., "prompt": ...}}'),
        ("\n", '{path} has no question; one a line: {{"domain": ..., "prompt": ...}}'),
    ],
)  # fmt: skip
def test_bad_lines(tmp_path: Path, line: str, message: str) -> None:
    path = written(tmp_path, line)
    with pytest.raises(DataError, match=f"^{re.escape(message.format(path=path))}$"):
        read_questions(path, DOMAINS)


def test_other_refusals(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no JSON"):
        read_questions(written(tmp_path, "{"), DOMAINS)
    with pytest.raises(DataError, match="does not exist"):
        read_questions(tmp_path / "nowhere", DOMAINS)
    (tmp_path / "latin").write_bytes(b"\xff")
    with pytest.raises(DataError, match="cannot be read"):
        read_questions(tmp_path / "latin", DOMAINS)
    path = written(tmp_path, '{"domain": "sql", "prompt": "x"}')
    with pytest.raises(DataError, match="belongs to 'sql', in a file of unknown prompts"):
        read_questions(path, DOMAINS, all_unknown=True)


def test_known_prompts_among_the_unknown_are_named(tmp_path: Path) -> None:
    path = written(tmp_path, '{"prompt": "count them"}\n{"prompt": "a poem"}\n')
    found = read_questions(path, DOMAINS, all_unknown=True)
    assert questions_of_domains(found, {"sql": {"count them"}, "billing": {"refund"}}) == [
        f"{path}:1 is labelled none, but is a prompt of 'sql' word for word"
    ]
