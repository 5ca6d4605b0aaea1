"""What is kept of a dev cut reads back as it was, whatever the texts hold."""

from __future__ import annotations

import pytest

from asr.data.formats import Example
from asr.errors import DataError
from asr.model.kept_prompts import read_kept, write_kept


def test_examples_come_back(tmp_path):
    texts = [
        "line one\nline two",
        "a\u2028b\u2029c\x85d\x0be\x1cf",
        'quotes " and \\',
        "日本語 🎈",
        "\ttab\r\n",
    ]
    examples = [
        Example(
            (
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": text},
                {"role": "assistant", "content": f"answer to {text}"},
            ),
            {"id": index, "choices": ["a", "b"], "nested": {"k": None}},
            f"file:{index}",
        )
        for index, text in enumerate(texts)
    ]
    path = tmp_path / "eval" / "red.jsonl"
    write_kept(path, examples)
    read = read_kept(path)
    assert [example.messages for example in read] == [example.messages for example in examples]
    assert [example.meta for example in read] == [example.meta for example in examples]
    assert [example.prompt_key for example in read] == [e.prompt_key for e in examples]
    write_kept(path, examples[:1])  # replaces
    assert len(read_kept(path)) == 1


@pytest.mark.parametrize("text", ["{", '{"prompt": "x"}\n', '{"messages": 3}\n'])
def test_a_damaged_file_names_itself(tmp_path, text):
    path = tmp_path / "red.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=r"red\.jsonl"):
        read_kept(path)


def test_a_missing_file_names_itself(tmp_path):
    with pytest.raises(DataError, match=r"red\.jsonl"):
        read_kept(tmp_path / "red.jsonl")
