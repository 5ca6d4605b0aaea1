"""Prompts: the same tokens as training, and a mask on the user's own words only."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from asr.base.chat_template import ChatTemplate
from asr.data.formats import Message
from asr.data.prompt import EncodedPrompt, content_spans, encode_prompt
from asr.errors import DataError

Tok = PreTrainedTokenizerFast


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def pooled(prompt: EncodedPrompt, tokenizer: Tok) -> str:
    pairs = zip(prompt.input_ids, prompt.pool_mask, strict=True)
    return str(tokenizer.decode([token for token, on in pairs if on]))


@pytest.mark.parametrize(
    "content",
    [
        "How do I top up my card?",
        "user",  # also a word of the template
        "e",  # also a letter of the default system message
        "system\nYou are a helpful assistant",
        "several\n\nlines\n",
        "naïve 😀 日本語",
        "assistant",
    ],
)
def test_pools_the_content_of_a_string(tokenizer: Tok, chatml: ChatTemplate, content: str) -> None:
    prompt = encode_prompt(content, tokenizer, chatml)
    assert pooled(prompt, tokenizer) == content
    assert prompt == encode_prompt([user(content)], tokenizer, chatml)
    assert tokenizer.decode(prompt.input_ids) == chatml.render([user(content)], True)
    assert not prompt.shortened
    place = prompt.pool_mask.index(True)
    before = tokenizer.decode(prompt.input_ids[:place])
    assert before == (
        "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\n"
    )


def test_pools_all_user_messages_and_nothing_else(tokenizer: Tok, chatml: ChatTemplate) -> None:
    turns = [
        {"role": "system", "content": "yes"},
        user("yes"),
        {"role": "assistant", "content": "yes"},
        user("no"),
    ]
    prompt = encode_prompt(turns, tokenizer, chatml)
    assert pooled(prompt, tokenizer) == "yesno"
    texts = tokenizer.convert_ids_to_tokens(prompt.input_ids)
    assert texts.count("<|im_start|>") == 5
    first = prompt.pool_mask.index(True)
    assert tokenizer.decode(prompt.input_ids[:first]).endswith("yes<|im_end|>\n<|im_start|>user\n")


def test_trimming_templates(bos_tokenizer: Tok, llama3: ChatTemplate) -> None:
    prompt = encode_prompt("  top up \n", bos_tokenizer, llama3)
    assert pooled(prompt, bos_tokenizer) == "top up"
    assert prompt.input_ids.count(bos_tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("trim", ["strip", "lstrip", "rstrip"])
def test_a_trimmed_content_is_not_mistaken_for_the_templates_words(
    tokenizer: Tok, chatml: ChatTemplate, trim: str
) -> None:
    text = chatml.text.replace("message['content']", f"message['content'].{trim}()")
    template = ChatTemplate.from_tokenizer(tokenizer, text)
    prompt = encode_prompt(" user ", tokenizer, template)
    assert pooled(prompt, tokenizer) == getattr(" user ", trim)()
    before = tokenizer.decode(prompt.input_ids[: prompt.pool_mask.index(True)])
    assert before.endswith("<|im_start|>user\n")


def test_bos_in_front_moves_the_mask(
    bos_tokenizer: Tok, tokenizer: Tok, chatml: ChatTemplate
) -> None:
    with_bos = ChatTemplate.from_tokenizer(bos_tokenizer, chatml.text)
    prompt = encode_prompt("top up", bos_tokenizer, with_bos)
    plain = encode_prompt("top up", tokenizer, chatml)
    assert prompt.input_ids == [bos_tokenizer.bos_token_id, *plain.input_ids]
    assert prompt.pool_mask == [False, *plain.pool_mask]


def test_special_tokens_that_a_user_typed_are_text_and_pooled(
    tokenizer: Tok, chatml: ChatTemplate
) -> None:
    prompt = encode_prompt("one<|im_end|>two", tokenizer, chatml)
    assert pooled(prompt, tokenizer) == "one<|im_end|>two"


BARE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def test_position_0_is_never_pooled(tokenizer: Tok) -> None:
    template = ChatTemplate.from_tokenizer(tokenizer, BARE)
    prompt = encode_prompt("xyz", tokenizer, template)
    assert len(prompt.input_ids) > 1
    assert prompt.pool_mask == [False] + [True] * (len(prompt.input_ids) - 1)


def test_a_token_across_the_border_counts_for_its_visible_content(tokenizer: Tok) -> None:
    template = ChatTemplate.from_tokenizer(
        tokenizer, "{% for m in messages %}{{ 'x: ' + m['content'] + '\n' }}{% endfor %}"
    )
    # " maybe" is one token, whose space is the template's; the last "\n\n" shows nothing
    prompt = encode_prompt("maybe\n", tokenizer, template)
    assert tokenizer.convert_ids_to_tokens(prompt.input_ids)[2:] == ["Ġmaybe", "ĊĊ"]
    assert pooled(prompt, tokenizer) == " maybe"


@pytest.mark.parametrize("kind", ["chatml", "llama3", "qwen3"])
@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=3))
def test_spans_are_the_contents(
    request: pytest.FixtureRequest, kind: str, contents: list[str]
) -> None:
    template = request.getfixturevalue(kind)
    turns = [
        turn
        for content in contents
        for turn in (user(content), {"role": "assistant", "content": content})
    ][:-1]
    rendered = template.render(turns, True)
    spans = content_spans(turns, template, rendered)
    found = [rendered[begin:end] for begin, end in spans]
    assert [text.strip() for text in found] == [content.strip() for content in contents]
    for begin, _ in spans:
        header = rendered[:begin].rstrip()
        assert header.endswith(("user", "<|end_header_id|>"))


def test_contents_are_searched_where_the_template_looks_into_them(tokenizer: Tok) -> None:
    text = (
        "{% for m in messages %}{{ 'S ' if m['content'].startswith('one') else 'T ' }}"
        "{{ m['content'] + '<|im_end|>' }}{% endfor %}"
    )
    template = ChatTemplate.from_tokenizer(tokenizer, text)
    turns = [user("one two"), {"role": "assistant", "content": "yes"}, user("maybe")]
    assert pooled(encode_prompt(turns, tokenizer, template), tokenizer) == "one two maybe"


def test_a_content_that_is_changed(tokenizer: Tok, chatml: ChatTemplate) -> None:
    text = chatml.text.replace("message['content']", "message['content'].replace('one', '1')")
    template = ChatTemplate.from_tokenizer(tokenizer, text)
    with pytest.raises(DataError) as error:
        encode_prompt("one", tokenizer, template)
    assert str(error.value) == (
        "the content of message 1 (user) is not found in the rendered prompt: the chat template "
        "changes it, so its tokens cannot be told from the template's; use another chat template"
    )


@pytest.mark.parametrize("content", ["", " \n\t"])
def test_nothing_to_pool(tokenizer: Tok, chatml: ChatTemplate, content: str) -> None:
    with pytest.raises(DataError) as error:
        encode_prompt(content, tokenizer, chatml)
    assert str(error.value) == ("the prompt has no text to route on (only white space); write one")


def test_half_a_character(tokenizer: Tok, chatml: ChatTemplate) -> None:
    with pytest.raises(DataError) as error:
        encode_prompt("top up \ud83d", tokenizer, chatml)
    assert str(error.value) == "the text holds \\ud83d, half of a character; send valid text"


def test_no_user_message(tokenizer: Tok, chatml: ChatTemplate) -> None:
    for turns in ([], [{"role": "system", "content": "S"}]):
        with pytest.raises(DataError, match="a prompt has no user message; give at least one"):
            encode_prompt(turns, tokenizer, chatml)


LONG = " ".join(f"word{index}" for index in range(60))


def test_too_long(tokenizer: Tok, chatml: ChatTemplate) -> None:
    count = len(encode_prompt(LONG, tokenizer, chatml).input_ids)
    assert len(encode_prompt(LONG, tokenizer, chatml, count).input_ids) == count
    with pytest.raises(DataError) as error:
        encode_prompt(LONG, tokenizer, chatml, count - 1)
    assert str(error.value) == (
        f"prompt has {count} tokens, the base's context holds {count - 1}; shorten the prompt"
    )


def test_shortened_inside_the_content(tokenizer: Tok, chatml: ChatTemplate) -> None:
    prompt = encode_prompt(LONG, tokenizer, chatml, 100, shorten=True)
    assert prompt.shortened and 96 <= len(prompt.input_ids) <= 100
    text = tokenizer.decode(prompt.input_ids)
    assert text.endswith("word59<|im_end|>\n<|im_start|>assistant\n")
    words = pooled(prompt, tokenizer)
    assert words.startswith("word0 word1 ") and words.endswith(" word58 word59")
    assert f"<|im_start|>user\n{words}<|im_end|>" in text


def test_cannot_be_shortened_enough(tokenizer: Tok, chatml: ChatTemplate) -> None:
    with pytest.raises(DataError) as error:
        encode_prompt(LONG, tokenizer, chatml, 10, shorten=True)
    assert str(error.value).endswith(
        "even with its user messages cut to 8 tokens; 10 are allowed; shorten the prompt"
    )
