"""The decoder layers of any Hugging Face causal language model, and the default router layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from asr.errors import BaseModelError

_MIXING = ("attention", "attn", "mixer", "mamba", "recurrent", "conv")


@dataclass(frozen=True)
class DecoderLayers:
    """The list of decoder layers of a model.

    Attributes:
        path: where it lies in the model as given, e.g. ``model.layers``, or
            ``base_model.model.model.layers`` under PEFT.
        modules: the layers, first to last.
    """

    path: str
    modules: nn.ModuleList


def decoder_layers(model: nn.Module) -> DecoderLayers:
    """Find the decoder layers: by what they are, not by a table of names.

    They are the one ``nn.ModuleList`` with as many entries as the text config has layers and whose
    entries mix tokens (attention, or a state-space or convolution mixer in hybrid models). Where a
    vision tower happens to have as many, the list inside the text decoder is meant. Models wrapped
    by PEFT are looked into.

    Raises:
        BaseModelError: an encoder-decoder; a model without a config that states its layers; no such
            list, or several.
    """
    name = type(model).__name__
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        raise BaseModelError(f"{name} has no Hugging Face config; pass a causal language model")
    if getattr(config, "is_encoder_decoder", False):
        raise BaseModelError(
            f"architecture '{config.model_type}' ({name}) is an encoder-decoder; ASR routes inside "
            f"decoder-only models, pass one of those"
        )
    text = config.get_text_config(decoder=True)
    count = getattr(text, "num_hidden_layers", None)
    if not isinstance(count, int):
        raise BaseModelError(
            f"the config of architecture '{config.model_type}' ({name}) does not state "
            f"num_hidden_layers; pass a causal language model"
        )
    found = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and _all_mix(module)
    }
    # An inner list (heads, experts) can be as long as the outer one that holds it.
    found = {
        path: module
        for path, module in found.items()
        if not any(path.startswith(f"{outer}.") for outer in found)
    }
    if len(found) > 1:
        decoder = _decoder_of(model)
        inside = {} if decoder is None else {id(module) for module in decoder.modules()}
        found = {path: module for path, module in found.items() if id(module) in inside}
    if len(found) != 1:
        listing = ", ".join(sorted(found)) or "none"
        raise BaseModelError(
            f"cannot tell the {count} decoder layers of architecture '{config.model_type}' "
            f"({name}): candidates: {listing}; pass a decoder-only causal language model"
        )
    path, modules = next(iter(found.items()))
    return DecoderLayers(path, modules)


def _all_mix(layers: nn.ModuleList) -> bool:
    return all(
        any(word in type(module).__name__.lower() for module in layer.modules() for word in _MIXING)
        for layer in layers
    )


def _decoder_of(model: nn.Module) -> nn.Module | None:
    """Return the text decoder inside a model with several towers, where transformers names it."""
    get_decoder = getattr(model, "get_decoder", None)  # PEFT hands the call through
    decoder = get_decoder() if callable(get_decoder) else None
    return decoder if isinstance(decoder, nn.Module) else None


def default_router_layer(layers: int) -> int:
    """Return the layer whose input the router reads when the user names none.

    ``max(2, round(layers / 4))``: 8 of 30 or 32. A rule on the base alone, so that it holds before
    the first domain is seen. Layers are counted from 0; layer L's input is what layers 0 ... L-1
    made of the embeddings. A quarter, because routing is much better there than at a seventh while
    adapters lose nothing, and from 12 of 30 up they do (docs/routing.md).

    Raises:
        BaseModelError: fewer than 3 layers, so that no layer would be left at or above L.
    """
    if layers < 3:
        raise BaseModelError(
            f"a base with {layers} layers is too shallow to route in: it needs at least 3"
        )
    return max(2, round(layers / 4))
