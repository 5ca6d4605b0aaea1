"""Framed views: deterministic, never empty, made of the content and of nothing on any topic."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.data.formats import Message
from asr.data.framing import ENDINGS, OPENINGS, frame
from asr.data.views import CommonPart, make_views

CONTENT = "My card was charged twice on the 3rd of May and nobody answers the phone, what now?"
LINES = "Columns: City, Year\nQuestion: how many people\nTable: cities of the north"
texts = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: text.strip() != "")


@given(texts, st.integers(0, 5))
def test_framing_follows_from_the_content_and_never_empties_it(content: str, variant: int) -> None:
    framed = frame(content, variant)
    assert framed == frame(content, variant)
    assert framed.strip() != ""


def strip_frame(text: str) -> str:
    """Take openings and endings off again, in lower case."""
    text = text.lower()
    for opening in sorted((o.lower() for o in OPENINGS), key=len, reverse=True):
        if text.startswith(opening):
            text = text[len(opening) :]
            break
    for ending in sorted((e.lower() for e in ENDINGS), key=len, reverse=True):
        if text.endswith(ending):
            return text[: -len(ending)]
    return text


def test_one_line_stays_a_run_of_the_contents_own_words() -> None:
    for variant in range(200):
        kept = strip_frame(frame(CONTENT, variant)).split()
        assert len(kept) >= len(CONTENT.split()) // 2
        assert " ".join(kept) in CONTENT.lower()


def test_several_lines_are_kept_whole_and_turned_round() -> None:
    lines = LINES.lower().split("\n")
    orders = set()
    for variant in range(200):
        kept = strip_frame(frame(LINES, variant)).split("\n")
        assert set(kept) <= set(lines)
        assert len(kept) >= 2
        orders.add(tuple(kept))
    assert tuple(lines) in orders
    assert len(orders) > 3


def test_the_shares_are_the_documented_ones() -> None:
    framed = [frame(f"{CONTENT} {i}") for i in range(2000)]
    lowered = sum("May" not in text and "may" in text for text in framed) / 2000
    cropped = sum(len(strip_frame(text).split()) < len(CONTENT.split()) + 1 for text in framed)
    opened = sum(any(text.startswith(o.strip()) for o in OPENINGS) for text in framed) / 2000
    assert 0.35 < lowered < 0.55
    assert 0.4 < cropped / 2000 < 0.55
    assert 0.65 < opened < 0.75


def test_framed_views_leave_the_common_part_out_and_differ_among_themselves() -> None:
    common = CommonPart(prefix="Classify the intent.\n", system="You are a bank.")
    messages: list[Message] = [
        {"role": "system", "content": "You are a bank."},
        {"role": "user", "content": "Classify the intent.\n" + CONTENT},
    ]
    views = make_views(messages, common, ["bare", "framed", "framed2", "framed3"])
    contents = {name: turns[-1]["content"] for name, turns in views.items()}
    assert [turns[0]["role"] for turns in views.values()] == ["user"] * 4
    assert not any("Classify" in content for content in contents.values())
    assert contents["framed"] == frame(CONTENT, 0)
    assert len(set(contents.values())) == 4
    assert messages[1]["content"].startswith("Classify")  # the given turns are not touched


@pytest.mark.parametrize("content", ["hi", "?", "今日は", "a\n\nb", "x " * 400])
def test_odd_contents(content: str) -> None:
    for variant in range(20):
        assert frame(content, variant).strip()


def test_what_is_drawn_never_changes() -> None:
    """Statistics of stored models were made with these texts; their contract names the view."""
    assert [frame(CONTENT, variant) for variant in range(3)] == [
        "Please help me with the following:\nmy card was charged twice on the 3rd of may and "
        "nobody answers the phone, what now?",
        "please My card was charged twice on the 3rd of May and nobody answers the phone, what "
        "(sorry for the typos)",
        "so of may and nobody answers the phone, what now?",
    ]
    texts = "\n\n".join(frame(text, variant) for text in (CONTENT, LINES) for variant in range(100))
    assert hashlib.sha256(texts.encode()).hexdigest() == (
        "27f26d9c40a5c2810dee4dc2817ad14eb254e6fe368adfa04511ee90d5f026ff"
    )


def test_fewer_than_eight_words_are_all_kept() -> None:
    seven = "one Two three four five six seven"
    assert all(seven.lower() in frame(seven, variant).lower() for variant in range(100))
    eight = f"{seven} eight"
    assert any(eight.lower() not in frame(eight, variant).lower() for variant in range(100))


def test_no_white_space_is_left_around_it() -> None:
    framed = [frame("  indented text  ", variant) for variant in range(50)]
    assert framed == [text.strip() for text in framed]
