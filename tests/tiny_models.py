"""Tiny random causal LMs of several architectures, built from a config, and a tiny tokenizer.

All have ``LAYERS`` decoder layers, ``HIDDEN`` channels and ``VOCAB`` tokens, so that tests can be
parametrised over ``ARCHITECTURES``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

LAYERS = 4
HIDDEN = 32
VOCAB = 320

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _without(*names: str) -> dict[str, int]:
    return {key: value for key, value in _COMMON.items() if key not in names}


ARCHITECTURES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_COMMON),
    "mistral": lambda: MistralConfig(**_COMMON, sliding_window=8),
    "qwen3": lambda: Qwen3Config(**_COMMON, head_dim=8),
    "gemma3": lambda: Gemma3TextConfig(
        **_COMMON, head_dim=8, sliding_window=8, sliding_window_pattern=2
    ),
    "phi3": lambda: Phi3Config(**_COMMON),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCAB,
        n_embd=HIDDEN,
        n_layer=LAYERS,
        n_head=4,
        n_positions=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    ),
    "gpt_neox": lambda: GPTNeoXConfig(**_without("num_key_value_heads")),
    "mixtral": lambda: MixtralConfig(
        **_COMMON, num_local_experts=4, num_experts_per_tok=2, sliding_window=None
    ),
    "opt": lambda: OPTConfig(
        **_without("num_key_value_heads", "intermediate_size"),
        ffn_dim=48,
        word_embed_proj_dim=HIDDEN,
    ),
}


def tiny_model(architecture: str = "llama", seed: int = 0) -> PreTrainedModel:
    """A random float32 model in evaluation mode; weights depend on ``seed`` only."""
    return _random(ARCHITECTURES[architecture](), seed)


def hybrid_model(seed: int = 0) -> PreTrainedModel:
    """A random model whose layers keep recurrent states beside keys and values."""
    config = FalconH1Config(
        **_COMMON,
        head_dim=8,
        mamba_d_ssm=64,
        mamba_n_heads=4,
        mamba_d_head=16,
        mamba_n_groups=1,
        mamba_d_state=4,
        mamba_chunk_size=8,
    )
    return _random(config, seed)


def _random(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    # Default initialisation is so flat that wrong masks and wrong layers would go unnoticed.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.35 if "embed" not in name else 1.0)
    return model.float().eval()


_SENTENCES = [
    "Classify the intent of this message. Reply with the label only.",
    "Write a SQL query that answers the question. Table columns: name, year, city",
    "user assistant system what is the date of the meeting on the third of March?",
    "one two three four five six seven eight nine ten",
]


@functools.cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a ChatML template and at most ``VOCAB`` tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        _SENTENCES,
        trainers.BpeTrainer(
            vocab_size=VOCAB,
            special_tokens=["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
    )


def save_tiny_base(folder: Path, architecture: str = "llama", seed: int = 0) -> Path:
    """Write a tiny model and its tokenizer as an ordinary checkpoint folder."""
    model = tiny_model(architecture, seed)
    model.generation_config.eos_token_id = tiny_tokenizer().eos_token_id
    model.generation_config.pad_token_id = tiny_tokenizer().pad_token_id
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
