"""Fragment views: deterministic, never empty, short, made of a sentence of the content."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from asr.data.fragment import fragment
from asr.data.framing import ENDINGS, OPENINGS
from asr.data.views import CommonPart, make_views

CONTENT = (
    "Tom has three boxes with twelve pencils each. He gives nine of them to his sister and loses"
    " four on the way home. How many pencils does he still have?\nA line without an end"
)
texts = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: text.strip() != "")


@given(texts, st.integers(0, 5))
def test_fragments_follow_from_the_content_and_are_never_empty(content: str, variant: int) -> None:
    made = fragment(content, variant)
    assert made == fragment(content, variant)
    assert made.strip() != ""


def longest_frame() -> int:
    return max(len(o.split()) for o in OPENINGS) + max(len(e.split()) for e in ENDINGS)


def test_they_are_short_and_stay_inside_one_sentence() -> None:
    sentences = [s.lower() for s in CONTENT.replace("\n", ". ").replace("?", ".").split(". ")]
    whole = 0
    for variant in range(300):
        made = fragment(CONTENT, variant)
        assert len(made.split()) <= 29 + longest_frame()
        kept = made.lower()
        for part in sorted([*OPENINGS, *ENDINGS], key=len, reverse=True):
            kept = kept.replace(part.lower().strip(), " ") if len(part.strip()) > 3 else kept
        words = kept.replace("?", " ").replace(".", " ").split()
        whole += any(set(words) <= set(s.split()) | {"pls", "so", "hi,", "thx"} for s in sentences)
    assert whole >= 200  # those without slips of the keyboard


def test_all_kinds_of_change_happen() -> None:
    made = {fragment(CONTENT, variant) for variant in range(300)}
    assert len(made) > 150
    assert any(text.islower() for text in made)
    assert any(
        text.startswith(opening) for text in made for opening in OPENINGS if opening != "so "
    )
    vocabulary = {word.strip(".?").lower() for word in CONTENT.split()}
    frames = {w.strip(".?,!:").lower() for part in (*OPENINGS, *ENDINGS) for w in part.split()}
    odd = {w.strip(".?,!:()").lower() for text in made for w in text.split()} - vocabulary - frames
    assert odd  # slips


def test_the_result_is_the_same_everywhere() -> None:
    made = "\n".join(fragment(CONTENT, variant) for variant in range(50))
    assert hashlib.sha256(made.encode()).hexdigest() == (
        "d54e08e8c965cfa1a47a4144c72d8ead639b643c4704180a503c46c1c397756e"
    )


def test_a_view_of_the_last_user_message() -> None:
    turns = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "Solve: " + CONTENT},
    ]
    views = make_views(turns, CommonPart(prefix="Solve: "), ("fragment", "fragment2"))
    assert views["fragment"][-1]["content"] == fragment(CONTENT, 0)
    assert views["fragment2"][-1]["content"] == fragment(CONTENT, 1)
    assert views["fragment"][:2] == turns[:2]
