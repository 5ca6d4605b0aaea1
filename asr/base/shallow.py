"""The base up to the router layer: what deciding needs, read from its files and nothing else.

A router that stands beside another engine needs the embedding and the first ``L`` decoder layers.
The model is built whole on the meta device, by the architecture's own code. Then everything that
the prefix does not run is emptied: its parameters and buffers are taken out, its modules stay, so
that the code between the layers finds what it looks at. transformers' loader, which reads tensors
one by one from (sharded) safetensors and knows how each architecture's are converted, then meets a
checkpoint that holds more than the model, and leaves the rest unread. Emptied are the layers from
``L`` up and all that lies outside the decoder (head, other towers), but for what is tied to a
tensor that is kept.

The prefix runs the architecture's own code on the same tensors as the whole model's
(:mod:`asr.base.split`), so in the same dtype its features are the same bit for bit.

What this module does not know: routing. It does not load what must be run whole to be routed
(``router.two_pass``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from asr.base.layers import decoder_layers
from asr.base.load import LoadedBase, Say, load_base
from asr.base.split import SplitForward


@dataclass(frozen=True)
class ShallowBase:
    """A base of which only the prefix can run.

    Attributes:
        base: as loaded by :func:`asr.base.load.load_base`; its model is emptied from ``L`` up.
        forward: the split forward, of which ``prefix`` works.
        nbytes: of the tensors in memory, each once.
    """

    base: LoadedBase
    forward: SplitForward
    nbytes: int


def load_shallow_base(
    name: str,
    layer: int,
    *,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    template_text: str | None = None,
    say: Say = lambda message: None,
) -> ShallowBase:
    """Load the embedding and the first ``layer`` decoder layers of a base, unquantised.

    Args:
        name: see :func:`asr.base.load.load_base`, as for the others.
        layer: the router layer ``L``.
        revision: the one that a model directory recorded.
        device: where it runs.
        dtype: ``auto`` is what the device is fastest in.
        template_text: the chat template that a model directory stores.
        say: receives progress and choices, one line each.

    Raises:
        SplitUnsupportedError: ``layer`` is outside the model, or the architecture cannot be split.
        BaseModelError: see :func:`asr.base.load.load_base`.
    """
    base = load_base(
        name,
        revision=revision,
        device=device,
        dtype=dtype,
        template_text=template_text,
        say=say,
        loader=_ShallowLoader(layer),
    )
    forward = SplitForward(base.model, layer, check=False)
    forward.check_prefix()
    tensors = {id(tensor): tensor for tensor in base.model.state_dict(keep_vars=True).values()}
    return ShallowBase(base, forward, sum(int(tensor.nbytes) for tensor in tensors.values()))


class _ShallowLoader:
    """Loads like ``AutoModelForCausalLM``, the prefix alone."""

    def __init__(self, layer: int) -> None:
        self._layer = layer

    def from_pretrained(self, path: Path, **options: Any) -> Any:
        config = AutoConfig.from_pretrained(
            path, trust_remote_code=options.get("trust_remote_code", False)
        )
        with torch.device("meta"):
            whole: Any = type(AutoModelForCausalLM.from_config(config))
        layer = self._layer

        def emptied(model: Any, *arguments: Any, **settings: Any) -> None:
            whole.__init__(model, *arguments, **settings)
            _empty(model, layer)

        # of the same name, by which the loader looks up how tensors are converted
        members = {"__init__": emptied, "__module__": whole.__module__}
        return type(whole.__name__, (whole,), members).from_pretrained(path, **options)


def _empty(model: Any, layer: int) -> None:
    """Take all parameters and buffers out that no layer below ``layer`` is reached with."""
    found = decoder_layers(model)
    decoder = found.path.rpartition(".")[0]
    kept = {
        f"{decoder}.{name}".lstrip(".")
        for name, _ in model.get_submodule(decoder).named_parameters(remove_duplicate=False)
    }
    deep = tuple(f"{found.path}.{index}." for index in range(layer, len(found.modules)))
    kept = {name for name in kept if not name.startswith(deep)}
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", {})
    tied = {to: source for to, source in tied.items() if to in kept or source in kept}
    model.all_tied_weights_keys = tied
    kept |= {*tied, *tied.values()}
    inside = f"{decoder}." if decoder else ""
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        runs = path == decoder or (prefix.startswith(inside) and not prefix.startswith(deep))
        if not runs:
            for name in module._buffers:
                module._buffers[name] = None
        dropped = [name for name in module._parameters if f"{prefix}{name}" not in kept]
        for name in dropped:
            module._parameters[name] = None
        if dropped:
            _say_initialised(module)


def _say_initialised(module: nn.Module) -> None:
    """Keep the loader from drawing weights for a module that has none."""
    setattr(module, "_is_hf_initialized", True)  # noqa: B010  # no attribute of nn.Module's
