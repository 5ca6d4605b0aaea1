"""A small real tokenizer and three chat templates, made here: no download, no model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from asr.base.chat_template import ChatTemplate

CORPUS = [
    "Classify the intent of this bank customer message. Reply with the label only.",
    "Message: How do I top up my card? Where is my money? The transfer was declined.",
    "Write a SQL query that answers the question. Table columns: name, date, city",
    "user assistant system you are a helpful assistant, the answer is yes or no or maybe",
    "one two three four five six seven eight nine ten\n\n\tindented text\r\nlines",
]
SPECIAL = [
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' and not loop.first and loop.previtem['role'] == 'user' %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN3 = (  # reasoning tags in the last turn only
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}"
    "{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_tokenizer(
    *, bos: bool = False, eos: str | None = "<|im_end|>", prefix_space: bool = False
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on a few lines; ``bos``: it adds ``<|begin_of_text|>`` by itself."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(CORPUS, trainer)
    if bos:
        inner.post_processor = processors.TemplateProcessing(
            single="<|begin_of_text|> $A",
            special_tokens=[("<|begin_of_text|>", inner.token_to_id("<|begin_of_text|>"))],
        )
    named = {"bos_token": "<|begin_of_text|>"} if bos else {}
    if eos is not None:
        named["eos_token"] = eos
    others = [token for token in SPECIAL if token not in named.values()]
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, additional_special_tokens=others, **named
    )


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    return build_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Ends with ``<|im_end|>``, adds nothing by itself."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def bos_tokenizer() -> PreTrainedTokenizerFast:
    """Adds ``<|begin_of_text|>`` before plain text."""
    return build_tokenizer(bos=True, eos="<|eot_id|>")


@pytest.fixture(scope="session")
def chatml(tokenizer: PreTrainedTokenizerFast) -> ChatTemplate:
    return ChatTemplate.from_tokenizer(tokenizer, CHATML)


@pytest.fixture(scope="session")
def llama3(bos_tokenizer: PreTrainedTokenizerFast) -> ChatTemplate:
    return ChatTemplate.from_tokenizer(bos_tokenizer, LLAMA3)


@pytest.fixture(scope="session")
def qwen3(tokenizer: PreTrainedTokenizerFast) -> ChatTemplate:
    return ChatTemplate.from_tokenizer(tokenizer, QWEN3)
