"""Pieces of text from a generation in a thread: complete, abandonable, honest about errors."""

from __future__ import annotations

import threading

import pytest
import torch

from asr.model.streaming import stream_pieces
from tests.tiny_models import tiny_tokenizer

TEXTS = [
    "one two three",
    " leading and trailing \n\n lines \n",
    "no-space-at-all",
    "naïve café — 日本語 🎈🎈 end",
    "",
]


def emit(streamer, ids):
    streamer.put(torch.tensor([[9, 9, 9]]))  # transformers sends the prompt first
    for token in ids:
        streamer.put(torch.tensor([token]))
    streamer.end()


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_make_the_text_and_no_piece_is_half_a_character(text):
    tokenizer = tiny_tokenizer()
    ids = tokenizer(text, add_special_tokens=False).input_ids
    ids = [*ids, tokenizer.eos_token_id]
    pieces = list(stream_pieces(tokenizer, lambda streamer: emit(streamer, ids)))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert "" not in pieces


def test_bytes_that_are_no_text_come_as_they_are_decoded():
    tokenizer = tiny_tokenizer()
    ids = tokenizer("é é", add_special_tokens=False).input_ids
    broken = [ids[0], *tokenizer("a", add_special_tokens=False).input_ids, ids[0]]
    pieces = list(stream_pieces(tokenizer, lambda streamer: emit(streamer, broken)))
    assert "".join(pieces) == tokenizer.decode(broken) == "\ufffda\ufffd"


def test_text_comes_while_the_generation_runs():
    tokenizer = tiny_tokenizer()
    ids = tokenizer("one two", add_special_tokens=False).input_ids
    go_on = threading.Event()

    def generate(streamer):
        streamer.put(torch.tensor([1]))
        streamer.put(torch.tensor([ids[0]]))
        assert go_on.wait(10)
        for token in ids[1:]:
            streamer.put(torch.tensor([token]))
        streamer.end()

    pieces = stream_pieces(tokenizer, generate)
    first = next(pieces)
    go_on.set()  # only now may the rest come
    assert first + "".join(pieces) == "one two"


def test_an_exception_reaches_the_reader_after_what_came_before_it():
    tokenizer = tiny_tokenizer()
    token = tokenizer("one", add_special_tokens=False).input_ids[0]

    def generate(streamer):
        streamer.put(torch.tensor([1]))
        streamer.put(torch.tensor([token]))
        raise ValueError("out of cheese")

    pieces = stream_pieces(tokenizer, generate)
    assert next(pieces) != ""
    with pytest.raises(ValueError, match="out of cheese"):
        next(pieces)


def test_closing_early_ends_the_generation_and_waits_for_it():
    tokenizer = tiny_tokenizer()
    token = tokenizer("one", add_special_tokens=False).input_ids[0]
    released = []

    def generate(streamer):
        try:
            while True:
                streamer.put(torch.tensor([token]))
        finally:
            released.append(threading.active_count())

    before = threading.active_count()
    pieces = stream_pieces(tokenizer, generate)
    next(pieces)
    pieces.close()
    assert len(released) == 1
    assert threading.active_count() == before
    assert list(pieces) == []


def test_nothing_runs_before_the_first_piece_is_asked_for():
    ran = []
    pieces = stream_pieces(tiny_tokenizer(), ran.append)
    pieces.close()
    assert ran == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<t>\n\n</t>\n\nyes it is", "yes it is"),
        ("<t>\n\n</t>\n\n", ""),
        ("<t>\n\nlet me see</t>\n\nyes", "<t>\n\nlet me see</t>\n\nyes"),
        ("<t>", "<t>"),
        ("yes", "yes"),
        (" <t>\n\n</t>\n\nyes", " <t>\n\n</t>\n\nyes"),
    ],
)
def test_what_the_template_writes_before_an_answer_is_not_sent(text, expected):
    tokenizer = tiny_tokenizer()
    ids = tokenizer(text, add_special_tokens=False).input_ids
    opening = "<t>\n\n</t>\n\n"
    pieces = list(stream_pieces(tokenizer, lambda streamer: emit(streamer, ids), opening))
    assert "".join(pieces) == expected
    assert "" not in pieces
