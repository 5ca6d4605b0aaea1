"""What a domain's prompts share, and the views made with it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.data.formats import Example
from asr.data.views import VIEWS, CommonPart, find_common_part, make_views
from asr.errors import DataError


def example(content: str, system: str | None = None) -> Example:
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "A"}]
    if system is not None:
        turns.insert(0, {"role": "system", "content": system})
    return Example(tuple(turns), {}, "x.jsonl:1")


def common(*contents: str) -> CommonPart:
    return find_common_part([example(content) for content in contents])


WORDS = ["apples are red", "bread is warm", "cats sleep long", "dogs bark at night"]
LINE = "Classify this message.\n"


@pytest.mark.parametrize(
    ("contents", "prefix", "suffix"),
    [
        # a line boundary, although "Text: " is shared too
        ([f"{LINE}Text: {w}" for w in WORDS], LINE, ""),
        # several whole lines
        ([f"{LINE}Options: a, b\n\nText: {w}" for w in WORDS], f"{LINE}Options: a, b\n\n", ""),
        # no line: a word boundary, not "...: un"
        (
            [f"Translate to French: un{w}" for w in WORDS],
            "Translate to French: ",
            "",
        ),
        # never inside a word
        (["Internationally", "Internationals", "Internationale", "Internationalx"], "", ""),
        # the end
        ([f"{w}\nAnswer with one word only." for w in WORDS], "", "\nAnswer with one word only."),
        ([f"{w} Answer with one word." for w in WORDS], "", " Answer with one word."),
        ([f"{w}able. Answer in one word" for w in WORDS], "", " Answer in one word"),
        # both
        ([f"{LINE}{w}\nReply briefly, please." for w in WORDS], LINE, "\nReply briefly, please."),
        # one prompt has nothing between the two
        (
            [f"{LINE}{w}\nReply briefly, please." for w in ["", *WORDS]],
            LINE,
            "",
        ),
        # too short to be an instruction
        ([f"Text: {w}" for w in WORDS], "", ""),
        ([f"{w}\nOK?" for w in WORDS], "", ""),
        # nothing in common
        (WORDS, "", ""),
        # one prompt is nothing but the instruction
        ([LINE, *[f"{LINE}{w}" for w in WORDS]], "", ""),
        # fewer than two distinct prompts
        ([f"{LINE}x", f"{LINE}x"], "", ""),
        ([], "", ""),
    ],
)
def test_common_part(contents: list[str], prefix: str, suffix: str) -> None:
    assert common(*contents) == CommonPart(prefix, suffix)


def test_prefix_and_suffix_do_not_overlap() -> None:
    body = "Say something nice to me now\n"
    found = common(*[f"{body}{w}\n{body}" for w in WORDS])
    assert found.prefix == body
    assert found.strip(f"{body}cats\n{body}") == "cats"


@pytest.mark.parametrize(("odd", "found"), [(1, True), (2, False)])
def test_a_few_odd_prompts_do_not_matter(odd: int, found: bool) -> None:
    regular = [f"{LINE}question number {index}" for index in range(20 - odd)]
    contents = [*regular, *[f"{index} odd one" for index in range(odd)]]
    assert bool(common(*contents).prefix) == found


def test_repeated_rows_count_once() -> None:
    assert common(*[f"{LINE}same"] * 50, *WORDS).prefix == ""


def test_an_instruction_alone_among_many_stays_whole() -> None:
    found = common(LINE, *[f"{LINE}question {index} of them" for index in range(40)])
    assert found.prefix == LINE
    assert found.strip(LINE) == "Classify this message."


def test_the_last_user_message_is_what_counts() -> None:
    examples = []
    for word in WORDS:
        turns = (
            {"role": "user", "content": f"hello {word}"},
            {"role": "assistant", "content": "hi"},
            {"role": "user", "content": f"{LINE}{word}"},
            {"role": "assistant", "content": "A"},
        )
        examples.append(Example(turns, {}, "x"))
    found = find_common_part(examples)
    assert found == CommonPart(LINE)
    bare = found.bare(examples[0].prompt)
    assert [turn["content"] for turn in bare] == ["hello apples are red", "hi", "apples are red"]


def test_a_system_prompt_that_all_share_is_common() -> None:
    found = find_common_part([example(word, "You are a bank.") for word in WORDS])
    assert found == CommonPart(system="You are a bank.")
    assert found.bare(example("cats", "You are a bank.").prompt) == [
        {"role": "user", "content": "cats"}
    ]
    other = example("cats", "You are a zoo.").prompt
    assert found.bare(other) == list(other)
    mixed = [example(word, f"You are {index}") for index, word in enumerate(WORDS)]
    assert find_common_part(mixed).system == ""
    assert find_common_part([example(WORDS[0], "S"), *map(example, WORDS[1:])]).system == ""


@pytest.mark.parametrize(
    ("content", "stripped"),
    [
        (f"{LINE}  cats \n", "cats"),
        ("cats\n", "cats"),
        (f"{LINE}cats END", "cats"),
        ("cats END", "cats"),
        (LINE, LINE.strip()),
        (f"see {LINE}cats", f"see {LINE}cats"),
    ],
)
def test_strip(content: str, stripped: str) -> None:
    assert CommonPart(LINE, " END").strip(content) == stripped


def test_views() -> None:
    part = CommonPart(LINE, "", "S")
    turns = example(f"{LINE}cats\n", "S").prompt
    views = make_views(turns, part, ["bare", "templated"])
    assert list(views) == ["bare", "templated"]
    assert views["templated"] == list(turns)
    assert views["bare"] == [{"role": "user", "content": "cats"}]
    views["templated"][1]["content"] = "changed"
    assert turns[1]["content"] == f"{LINE}cats\n"


def test_another_view_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VIEWS, "loud", lambda turns, part: [{**t, "role": "X"} for t in turns])
    views = make_views(example("cats").prompt, CommonPart(), ["loud"])
    assert views == {"loud": [{"role": "X", "content": "cats"}]}


def test_unknown_view() -> None:
    with pytest.raises(DataError) as error:
        make_views(example("cats").prompt, CommonPart(), ["bear"])
    assert str(error.value) == (
        "unknown view 'bear' (did you mean 'bare'?); there are: bare, fragment, fragment2, "
        "framed, framed2, framed3, "
        "templated"
    )


def test_bare_without_a_user_message() -> None:
    assert CommonPart(system="S").bare([{"role": "system", "content": "S"}]) == []
    assert CommonPart().bare([]) == []


def test_dict_round_trip() -> None:
    part = CommonPart("a", "b", "c")
    assert part.to_dict() == {"prefix": "a", "suffix": "b", "system": "c"}
    assert CommonPart.from_dict(part.to_dict()) == part


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"prefx": "a"},
            "unknown key of a common part 'prefx' (did you mean 'prefix'?); there are: prefix, "
            "suffix, system",
        ),
        ({"prefix": 1}, "common part: 'prefix' is 1; a string is expected"),
    ],
)
def test_from_dict_refuses(values: dict[str, object], message: str) -> None:
    with pytest.raises(DataError) as error:
        CommonPart.from_dict(values)
    assert str(error.value) == message


@given(st.lists(st.text("ab \n", max_size=30).filter(str.strip), max_size=8))
def test_whatever_is_found_is_shared_and_leaves_something(contents: list[str]) -> None:
    part = common(*contents)
    for content in contents:  # fewer than 20 prompts: all of them share it
        assert content.startswith(part.prefix)
        assert content.removeprefix(part.prefix).endswith(part.suffix)
        rest = content.removeprefix(part.prefix).removesuffix(part.suffix)
        assert rest.strip() and part.strip(content) == rest.strip()
    assert not part.prefix or part.prefix[-1].isspace()
    assert not part.suffix or part.suffix[0].isspace()
