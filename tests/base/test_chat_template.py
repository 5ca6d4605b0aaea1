"""The chat template: pinned date, built-in fallback, end of turn, errors with their reason."""

from __future__ import annotations

import datetime
import hashlib

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from asr.base.chat_template import BUILTIN_BODY, ChatTemplate, pin_date, special_ids
from asr.errors import BaseModelError, DataError

DAY = datetime.date(2024, 7, 26)
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_tokenizer(
    template: str | dict[str, str] | None = None,
    *,
    eos: str | None = "<eos>",
    bos: bool = False,
    plain_added: tuple[str, ...] = (),
) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer without merges: every byte a token, plus special ones."""
    vocabulary = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<eos>", "<bos>", "<|im_start|>", "<|im_end|>"])
    inner.add_tokens(list(plain_added))
    if bos:
        inner.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", inner.token_to_id("<bos>"))]
        )
    named = {"eos_token": eos} if eos else {}
    if bos:
        named["bos_token"] = "<bos>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **named)
    tokenizer.chat_template = template
    return tokenizer


def test_takes_the_tokenizers_own_template() -> None:
    tokenizer = make_tokenizer(CHATML)
    template = ChatTemplate.from_tokenizer(tokenizer)
    assert template.text == CHATML
    assert not template.is_builtin
    assert template.hash == hashlib.sha256(CHATML.encode()).hexdigest()
    expected = tokenizer.apply_chat_template(TALK, tokenize=False)
    assert template.render(TALK, add_generation_prompt=False) == expected
    assert template.render(TALK[:1], add_generation_prompt=True) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_given_text_replaces_the_tokenizers() -> None:
    text = CHATML.replace("assistant", "ai")
    template = ChatTemplate.from_tokenizer(make_tokenizer(CHATML), text)
    assert template.render(TALK[:1], True).endswith("<|im_start|>ai\n")


def test_named_templates_use_the_default() -> None:
    tokenizer = make_tokenizer({"default": CHATML, "tool_use": "{{ 'tools' }}"})
    assert ChatTemplate.from_tokenizer(tokenizer).text == CHATML


def test_named_templates_without_default_are_refused() -> None:
    tokenizer = make_tokenizer({"rag": CHATML, "tool_use": CHATML})
    with pytest.raises(BaseModelError) as error:
        ChatTemplate.from_tokenizer(tokenizer)
    assert str(error.value) == (
        "the tokenizer has several chat templates (rag, tool_use) and none called default; "
        "give the text of the one to use"
    )


def test_builtin_template() -> None:
    tokenizer = make_tokenizer()
    template = ChatTemplate.from_tokenizer(tokenizer)
    assert template.is_builtin
    assert template.text == BUILTIN_BODY
    talk = [{"role": "system", "content": "Be kind."}, *TALK]
    rendered = template.render(talk, False)
    assert rendered == "### System\nBe kind.\n\n### User\nHi\n\n### Assistant\nYo<eos>"
    prompt = template.render(talk[:2], True)
    assert prompt == "### System\nBe kind.\n\n### User\nHi\n\n### Assistant\n"
    assert template.end_of_turn_ids == (tokenizer.eos_token_id,)
    saved = ChatTemplate.from_tokenizer(tokenizer, template.text)
    assert saved.is_builtin and saved.hash == template.hash


def test_builtin_template_writes_the_bos_that_the_tokenizer_would_add() -> None:
    template = ChatTemplate.from_tokenizer(make_tokenizer(bos=True))
    assert template.is_builtin and template.adds_bos
    assert template.render(TALK[:1], True) == "<bos>### User\nHi\n\n### Assistant\n"
    assert not ChatTemplate.from_tokenizer(make_tokenizer()).adds_bos


def test_builtin_template_refuses_an_unknown_role() -> None:
    template = ChatTemplate.from_tokenizer(make_tokenizer())
    with pytest.raises(DataError, match="refuses a conversation of the roles tool: unknown role"):
        template.render([{"role": "tool", "content": "x"}], True)


def test_no_template_and_no_eos() -> None:
    with pytest.raises(BaseModelError) as error:
        ChatTemplate.from_tokenizer(make_tokenizer(eos=None))
    assert str(error.value) == (
        "the tokenizer has neither a chat template nor an end-of-sequence token, so no answer "
        "could ever end; set eos_token in its tokenizer_config.json, or use another base"
    )


@pytest.mark.parametrize(
    ("source", "pinned"),
    [
        ("{{ strftime_now('%d %b %Y') }}", '{{ "26 Jul 2024" }}'),
        ('{{ strftime_now( "%Y-%m-%d" ) }}', '{{ "2024-07-26" }}'),
        ("{{ strftime_now(format='%Y') }}", '{{ "2024" }}'),
        ('{{ strftime_now("it\'s %Y") }}', '{{ "it\'s 2024" }}'),
        (
            "{% if strftime_now is defined %}{% set d = strftime_now('%Y') %}{% endif %}{{ d }}",
            '{% if strftime_now is defined %}{% set d = "2024" %}{% endif %}{{ d }}',
        ),
        ("{{ messages[0]['content'] }}", "{{ messages[0]['content'] }}"),
    ],
)
def test_pin_date(source: str, pinned: str) -> None:
    assert pin_date(source, DAY) == pinned


def test_the_date_is_pinned_once_and_for_all() -> None:
    dated = "{{ 'Today: ' + strftime_now('%d %b %Y') + '\n' }}" + CHATML
    tokenizer = make_tokenizer(dated)
    first = ChatTemplate.from_tokenizer(tokenizer, date=DAY)
    assert "strftime_now" not in first.text
    assert first.render(TALK, False).startswith("Today: 26 Jul 2024\n<|im_start|>user")
    later = ChatTemplate.from_tokenizer(tokenizer, first.text, datetime.date(2031, 1, 1))
    assert later.hash == first.hash
    assert later.render(TALK, False) == first.render(TALK, False)
    other_day = ChatTemplate.from_tokenizer(tokenizer, date=datetime.date(2031, 1, 1))
    assert other_day.hash != first.hash
    today = ChatTemplate.from_tokenizer(make_tokenizer("{{ strftime_now('%Y') }}" + CHATML))
    assert "strftime_now" not in today.text


def test_a_computed_date_format_is_refused() -> None:
    source = "{% set f = '%Y' %}{{ strftime_now(f) }}{% generation %}{{ 1 }}{% endgeneration %}"
    with pytest.raises(BaseModelError, match="computed format"):
        pin_date(source, DAY)
    with pytest.raises(BaseModelError, match="is not valid jinja"):
        pin_date("{% if strftime_now(f) %}", DAY)


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        (CHATML, {}, ("<|im_end|>", "<eos>")),
        (CHATML, {"eos": "<|im_end|>"}, ("<|im_end|>",)),
        (CHATML, {"eos": None}, ("<|im_end|>",)),
        # text before the end of turn, and a second special token behind it
        ("{% for m in messages %}{{ m['content'] + ' <eos><bos>' }}{% endfor %}", {}, ("<eos>",)),
        # nothing but plain text follows the answer
        ("{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}", {}, ("<eos>",)),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", {}, ("<eos>",)),
        # an added token that nobody marked special
        (
            "{% for m in messages %}{{ m['content'] + '<end>\n' }}{% endfor %}",
            {"plain_added": ("<end>",)},
            ("<end>", "<eos>"),
        ),
    ],
)
def test_end_of_turn(text: str, options: dict, expected: tuple[str, ...]) -> None:
    tokenizer = make_tokenizer(text, **options)
    ids = ChatTemplate.from_tokenizer(tokenizer).end_of_turn_ids
    assert tuple(tokenizer.convert_ids_to_tokens(list(ids))) == expected


def test_special_ids_are_those_marked_special() -> None:
    tokenizer = make_tokenizer(plain_added=("<end>",))
    names = set(tokenizer.convert_ids_to_tokens(sorted(special_ids(tokenizer))))
    assert names == {"<eos>", "<bos>", "<|im_start|>", "<|im_end|>"}


PLAIN = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


@pytest.mark.parametrize(
    ("text", "eos", "message"),
    [
        (PLAIN, None, "no token ends an assistant's turn"),
        ("{{ messages[0]['content'] }}", "<eos>", "leaves the assistant's content out"),
        ("{% for m in %}", "<eos>", "fails on a plain question and answer: Expected an expression"),
        (
            "{{ raise_exception('tools only') }}",
            "<eos>",
            "the chat template fails on a plain question and answer: tools only; "
            "give another template",
        ),
    ],
)
def test_unusable_templates(text: str, eos: str | None, message: str) -> None:
    with pytest.raises(BaseModelError) as error:
        ChatTemplate.from_tokenizer(make_tokenizer(text, eos=eos))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_refused_conversation_gives_the_templates_reason() -> None:
    text = (
        "{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
    )
    template = ChatTemplate.from_tokenizer(make_tokenizer(text))
    with pytest.raises(DataError) as error:
        template.render([{"role": "system", "content": "S"}, *TALK], False)
    assert str(error.value) == (
        "the base's chat template refuses a conversation of the roles system, user, assistant: "
        "System role not supported; change the messages, or use another chat template"
    )


def test_no_messages() -> None:
    template = ChatTemplate.from_tokenizer(make_tokenizer(CHATML))
    with pytest.raises(DataError, match="has no messages; give at least one user message"):
        template.render([], True)


def test_a_template_that_trips_over_content_is_a_data_error() -> None:
    text = "{% for m in messages %}{{ m['role'] + m['content'] + m['name'] }}{% endfor %}"
    template = ChatTemplate.from_tokenizer(
        make_tokenizer(text.replace("m['name']", "(m['name'] or '')")), text=None
    )
    assert template.render(TALK, False) == "userHiassistantYo"
    with pytest.raises(BaseModelError, match="'dict object' has no attribute 'name'"):
        ChatTemplate.from_tokenizer(make_tokenizer(text))


REASONING = CHATML.replace(
    "m['role'] + '\n' + m['content']",
    "m['role'] + '\n' + ('<think>\n\n</think>\n\n' if loop.last and m['role'] == 'assistant' "
    "else '') + m['content']",
)


@pytest.mark.parametrize(
    ("template", "added", "opening"),
    [
        (CHATML, (), ""),
        (None, (), ""),
        (REASONING, (), "<think>\n\n</think>\n\n"),
        (REASONING, ("<think>", "</think>"), "<think>\n\n</think>\n\n"),
        # decoded as an answer is: special tokens leave nothing
        (REASONING.replace("think>", "|im_end|>").replace("</|", "<|"), (), ""),
        # written with the generation prompt already: the prompt's, not the answer's
        (REASONING.replace("assistant\n'", "assistant\n<think>\n\n</think>\n\n'"), (), ""),
        # a space is no opening
        (CHATML.replace("m['content']", "' ' + m['content']"), (), ""),
    ],
)
def test_what_the_template_writes_before_an_answer(
    template: str | None, added: tuple[str, ...], opening: str
) -> None:
    tokenizer = make_tokenizer(template, plain_added=added)
    assert ChatTemplate.from_tokenizer(tokenizer).answer_opening == opening
