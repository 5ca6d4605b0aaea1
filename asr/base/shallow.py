"""The layers below the router layer, and nothing else of the base: what a router alone needs.

A router in front of another engine reads the hidden states that enter layer ``L``. So the base is
loaded with ``L`` layers and without its language-model head: the checkpoint's other tensors are
never read. A stand-in takes the place of layer ``L``, at which the split forward's prefix ends, so
that features are those of the whole model, bit for bit in the same dtype.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel

from asr.base.chat_template import ChatTemplate
from asr.base.device import choose_device, choose_dtype, describe
from asr.base.fingerprint import fingerprint
from asr.base.layers import decoder_layers
from asr.base.load import Say
from asr.base.quiet import quiet_libraries
from asr.base.resolve import resolve_base
from asr.base.split import SplitForward
from asr.base.tokenizer import context_length, load_tokenizer, make_template
from asr.errors import BaseModelError, first_line


@dataclass(frozen=True)
class ShallowBase:
    """The part of a base that routing needs.

    Attributes:
        name: the base as the user named it.
        tokenizer: its tokenizer.
        template: renderer of prompts.
        context_length: longest sequence in tokens.
        fingerprint: of the whole checkpoint.
        forward: its split forward, of which only the prefix can run.
        device: where it runs.
        parameters: how many parameters were read.
        note: device and dtype in one line.
    """

    name: str
    tokenizer: Any
    template: ChatTemplate
    context_length: int
    fingerprint: str
    forward: SplitForward
    device: torch.device
    parameters: int
    note: str


def load_shallow_base(
    name: str,
    layer: int,
    *,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    template_text: str | None = None,
    trust_remote_code: bool = False,
    say: Say = lambda message: None,
) -> ShallowBase:
    """Load the embedding and the layers below ``layer``.

    Args:
        name: folder, hub id, ``.gguf`` file or built-in name.
        layer: the router layer ``L``, 1 or more.
        revision: see :func:`asr.base.load.load_base`.
        device: ``cpu``, ``cuda``, ...; the engine in front of which the router stands has the GPU.
        dtype: ``auto``, ``float32``, ``bfloat16``, ``float16``.
        template_text: chat template to render with.
        trust_remote_code: run code that comes with the checkpoint.
        say: receives choices, one line each.

    Raises:
        BaseModelError: the base cannot be found or read, has fewer layers, or its layers cannot be
            told.
        SplitUnsupportedError: its forward cannot run on a view.
    """
    resolved = resolve_base(name, say, revision=revision, code=trust_remote_code)
    where = choose_device(device)
    kind, reason = choose_dtype(where, dtype)
    tokenizer = load_tokenizer(name, resolved.path, trust_remote_code)
    config = _cut(resolved.path, layer, name, trust_remote_code)
    transformers.logging.disable_progress_bar()
    try:
        with quiet_libraries():
            auto: Any = AutoModel
            model, loading = auto.from_pretrained(
                resolved.path,
                config=config,
                dtype=kind,
                use_safetensors=True,
                output_loading_info=True,
                trust_remote_code=trust_remote_code,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise BaseModelError(
            f"the layers below {layer} of base '{name}' cannot be loaded: {first_line(error)}"
        ) from error
    missing = sorted(loading.get("missing_keys") or ())
    if missing:
        raise BaseModelError(
            f"the weights of base '{name}' lack {len(missing)} tensors below layer {layer} (first: "
            f"{missing[0]}); copy or download {resolved.path} again"
        )
    model = model.to(where).requires_grad_(False).eval()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    _put_stand_in(model, layer)
    note = describe(where, kind, reason)
    say(f"router: {layer} layers of {name} on {note}, {parameters / 1e6:.0f}M parameters")
    return ShallowBase(
        name=name,
        tokenizer=tokenizer,
        template=make_template(tokenizer, template_text, say=say),
        context_length=context_length(config.get_text_config(decoder=True), tokenizer),
        fingerprint=fingerprint(resolved.path),
        forward=SplitForward(model, layer, check=False),
        device=where,
        parameters=parameters,
        note=note,
    )


def _cut(folder: Any, layer: int, name: str, trust_remote_code: bool) -> Any:
    """The base's config with ``layer`` layers; lists of one entry per layer are cut with it."""
    try:
        config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelError(
            f"base '{name}' has no config that transformers can read ({first_line(error)})"
        ) from error
    text = config.get_text_config(decoder=True)
    layers = int(text.num_hidden_layers)
    if not 1 <= layer < layers:
        raise BaseModelError(f"router layer {layer} is outside '{name}', which has {layers} layers")
    _resize(text, layers, layer)
    return config


def _resize(text: Any, before: int, layers: int) -> None:
    for key, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == before:
            filled = value[:layers] + value[-1:] * (layers - before)
            setattr(text, key, filled)
    text.num_hidden_layers = layers


def _put_stand_in(model: Any, layer: int) -> None:
    """Add a layer ``L`` that only looks like one: the prefix ends at its door."""
    layers = decoder_layers(model).modules
    layers.append(copy.copy(layers[-1]))
    _resize(model.config.get_text_config(decoder=True), layer, layer + 1)
