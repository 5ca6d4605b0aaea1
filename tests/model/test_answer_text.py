"""Text that comes in pieces is the decoded answer, cut at the first stop text, for any split."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from asr.model.answer_text import AnswerText
from tests.tiny_models import VOCAB, tiny_tokenizer


@functools.cache
def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 2's: "▁" for spaces, characters it does not know as bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "▁a", "b", "▁b", "▁▁", ".", "'", "▁'", "t", "▁n", "é", "▁end", "s"]
    inner = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True)
    )
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")


@functools.cache
def wordpiece_tokenizer() -> PreTrainedTokenizerFast:
    """As BERT's: a space before every word, taken out again before punctuation."""
    pieces = ["[UNK]", "[SEP]", "do", "not", "n", "'", "t", "s", "ve", ".", ",", "?", "##ing", "re"]
    inner = Tokenizer(
        models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]")
    )
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="[SEP]",
        unk_token="[UNK]",
        clean_up_tokenization_spaces=True,
    )


@functools.cache
def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    pieces = ["<unk>", "</s>", "▁", "▁a", "b", "▁▁b", "."]
    inner = Tokenizer(models.WordLevel({p: i for i, p in enumerate(pieces)}, unk_token="<unk>"))
    inner.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")


@functools.cache
def suffix_tokenizer() -> PreTrainedTokenizerFast:
    """A word's last token carries its space, which the answer's last word does not have."""
    pieces = ["<unk>", "a</w>", "b", "c</w>", ".</w>"]
    inner = Tokenizer(models.WordLevel({p: i for i, p in enumerate(pieces)}, unk_token="<unk>"))
    inner.decoder = decoders.BPEDecoder()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")


@functools.cache
def cleaning_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE that is told to clean up all the same."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer().backend_tokenizer,
        eos_token="<|im_end|>",
        clean_up_tokenization_spaces=True,
        clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output=True,
    )


TOKENIZERS = {
    "byte-level": tiny_tokenizer,
    "sentencepiece": sentencepiece_tokenizer,
    "wordpiece": wordpiece_tokenizer,
    "metaspace": metaspace_tokenizer,
    "suffix": suffix_tokenizer,
    "cleaning": cleaning_tokenizer,
}


def cut(text: str, stop: tuple[str, ...]) -> tuple[str, str | None]:
    """The answer before the stop text that is complete first, character by character."""
    for end in range(1, len(text) + 1):
        complete = [one for one in stop if text[:end].endswith(one)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


def pieces_of(answer: AnswerText, ids: list[int], sizes: list[int]) -> list[str]:
    pieces, place = [], 0
    for size in [*sizes, *[1] * len(ids)]:
        pieces.append(answer.push(ids[place : place + size]))
        place += size
        if place >= len(ids):
            break
    return [*pieces, answer.finish()]


def ids_of(text: str) -> list[int]:
    return list(tiny_tokenizer()(text, add_special_tokens=False).input_ids)


def streamed(text: str, opening: str = "", stop: tuple[str, ...] = ()) -> tuple[str, str | None]:
    answer = AnswerText(tiny_tokenizer(), opening, stop)
    return "".join(pieces_of(answer, ids_of(text), [])), answer.stopped


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_the_pieces_are_the_decoded_answer_for_any_tokens_and_any_split(name, data):
    tokenizer = TOKENIZERS[name]()
    token = st.integers(0, len(tokenizer) - 1)
    if name == "sentencepiece":  # as many whole characters as bytes of none
        token |= st.integers(259, len(tokenizer) - 1) | st.sampled_from([3 + 0xC3, 3 + 0xA9])
    ids = data.draw(st.lists(token, max_size=40))
    sizes = data.draw(st.lists(st.integers(1, 4), max_size=40))
    answer = AnswerText(tokenizer)
    pieces = pieces_of(answer, ids, sizes)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)
    assert answer.finish() == ""


@settings(max_examples=300, deadline=None)
@given(
    text=st.text("abc é日\n", max_size=40),
    stop=st.lists(st.text("abc é日\n", min_size=1, max_size=4), max_size=4),
    opening=st.text("ab \n", max_size=3),
    sizes=st.lists(st.integers(1, 4), max_size=40),
)
def test_stop_texts_cut_the_answer_for_any_split(text, stop, opening, sizes):
    answer = AnswerText(tiny_tokenizer(), opening, tuple(stop))
    pieces = pieces_of(answer, ids_of(text), sizes)
    expected, stopped = cut(text.removeprefix(opening), tuple(stop))
    assert "".join(pieces) == expected
    assert answer.stopped == stopped


@settings(max_examples=300, deadline=None)
@given(text=st.text("n'tsvre .,?!x", max_size=40), sizes=st.lists(st.integers(1, 4), max_size=40))
def test_spaces_that_a_tokenizer_cleans_up_are_never_shown(text, sizes):
    tokenizer = cleaning_tokenizer()
    ids = ids_of(text)
    pieces = pieces_of(AnswerText(tokenizer), ids, sizes)
    assert "".join(pieces) == tokenizer.clean_up_tokenization(text) == tokenizer.decode(ids)


def test_byte_level_tokenizers_are_not_cleaned_up_unless_forced():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer().backend_tokenizer, clean_up_tokenization_spaces=True
    )
    assert "".join(pieces_of(AnswerText(tokenizer), ids_of("a . b"), [])) == "a . b"


def test_no_piece_ends_in_half_a_character():
    tokenizer = tiny_tokenizer()
    answer = AnswerText(tokenizer)
    pieces = [answer.push([token]) for token in ids_of("é日🎈")]
    assert [piece for piece in pieces if piece] == ["é", "日", "🎈"]


def test_text_is_shown_as_soon_as_it_is_final():
    answer = AnswerText(tiny_tokenizer(), stop=("four",))
    shown = ""
    for token in ids_of("one two three"):
        shown += answer.push([token])
    assert shown == "one two three"


def test_bytes_of_a_sentencepiece_run_wait_for_its_end():
    tokenizer = sentencepiece_tokenizer()
    e_acute, a = [3 + 0xC3, 3 + 0xA9], tokenizer.convert_tokens_to_ids("▁a")
    answer = AnswerText(tokenizer)
    assert answer.push(e_acute) == ""  # one more stray byte would make it "���"
    assert answer.push([a]) == "é a"


def test_a_special_token_does_not_end_a_run_of_bytes():
    tokenizer = sentencepiece_tokenizer()
    ids = [3 + 0xC3, 3 + 0xA9, tokenizer.eos_token_id, 3 + 0xC3]
    assert "".join(pieces_of(AnswerText(tokenizer), ids, [])) == "\ufffd" * 3
    assert tokenizer.decode(ids, skip_special_tokens=True) == "\ufffd" * 3


def test_special_tokens_have_no_text():
    tokenizer = tiny_tokenizer()
    ids = [tokenizer.eos_token_id, *ids_of("one"), tokenizer.pad_token_id, *ids_of(" two")]
    assert "".join(pieces_of(AnswerText(tokenizer), ids, [])) == "one two"


# Stop texts


def test_a_stop_text_over_several_tokens_is_not_shown():
    answer = AnswerText(tiny_tokenizer(), stop=("STOP",))
    pieces = [answer.push([token]) for token in ids_of("one STOP two")]
    assert "".join(pieces) == "one "
    assert answer.stopped == "STOP"
    assert answer.finish() == ""


def test_what_only_looked_like_a_stop_text_is_shown_once_it_is_none():
    answer = AnswerText(tiny_tokenizer(), stop=("STOP",))
    assert answer.push(ids_of("STO")) == ""
    assert answer.push(ids_of("RE")) == "STORE"
    assert answer.push(ids_of(" S")) == " "
    assert answer.finish() == "S"
    assert answer.stopped is None


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("a b c", ("b", "c"), ("a ", "b")),
        ("a b c", ("c", "b"), ("a ", "b")),
        ("xabc", ("ab", "abc"), ("x", "ab")),  # complete first
        ("xabc", ("bc", "abc", "c"), ("x", "abc")),  # complete together: the longest
        ("xabcde", ("abcde", "bc"), ("xa", "bc")),  # complete first, though it begins later
        ("aaab", ("aab",), ("a", "aab")),
        ("a", ("a",), ("", "a")),
        ("ab", ("abc",), ("ab", None)),
        ("日é", ("é",), ("日", "é")),
    ],
)
def test_which_stop_text_ends_the_answer(text, stop, expected):
    assert streamed(text, stop=stop) == expected


def test_nothing_behind_a_stop_text_is_shown_or_taken():
    answer = AnswerText(tiny_tokenizer(), stop=(".",))
    assert answer.push(ids_of("one. two. three")) == "one"
    assert answer.push(ids_of(" four")) == ""
    assert answer.finish() == ""


def test_a_stop_text_that_comes_with_the_held_back_end():
    answer = AnswerText(tiny_tokenizer(), stop=("\ufffd",))
    half = ids_of("é")[:1]
    assert answer.push([*ids_of("a"), *half]) == ""
    assert answer.finish() == "a"
    assert answer.stopped == "\ufffd"


def test_an_empty_stop_text_is_refused():
    with pytest.raises(ValueError, match="a stop text is empty"):
        AnswerText(tiny_tokenizer(), stop=("a", ""))


# The template's opening


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<t>\n\n</t>\n\nyes", ("yes", None)),
        ("<t>\n\n</t>\n\n", ("", None)),
        ("<t>\n", ("<t>\n", None)),
        ("<t>\n\n</t> yes", ("<t>\n\n</t> yes", None)),
        ("yes", ("yes", None)),
        ("<t>\n\n</t>\n\n<t>", ("", "<t>")),  # only what is behind the opening is looked at
        ("x<t>", ("x", "<t>")),
    ],
)
def test_the_opening_is_taken_off_the_front(text, expected):
    assert streamed(
        text, opening="<t>\n\n</t>\n\n", stop=("<t>",) if "<t>" in text[1:] else ()
    ) == (expected)


# Cost


class Counting:
    """A tokenizer that counts the tokens it decodes."""

    def __init__(self, tokenizer):
        self.tokenizer, self.decoded = tokenizer, 0

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def decode(self, ids, **options):
        self.decoded += len(ids)
        return self.tokenizer.decode(ids, **options)


@pytest.mark.parametrize(
    "ids", [ids_of("one two three four. ") * 200, ids_of("é")[:1] * 2000, [3 + 0xC3] * 2000]
)
@pytest.mark.parametrize("tokenizer", [tiny_tokenizer, sentencepiece_tokenizer])
def test_the_cost_grows_with_the_answer_and_not_with_its_square(tokenizer, ids):
    ids = [token % min(VOCAB, len(tokenizer())) for token in ids]
    counting = Counting(tokenizer())
    answer = AnswerText(counting)
    pieces = pieces_of(answer, ids, [])
    assert "".join(pieces) == tokenizer().decode(ids, skip_special_tokens=True)
    assert counting.decoded < 25 * len(ids)
