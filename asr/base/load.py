"""Load a frozen base: weights, tokenizer, chat template, and what identifies them.

Everything that training, routing and serving share about a base is gathered once in
:class:`LoadedBase`. Nothing here falls back silently: device, dtype and quantisation are chosen by
capability or by the user, and said aloud.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from asr.base.chat_template import ChatTemplate
from asr.base.device import choose_device, choose_dtype, describe
from asr.base.fingerprint import fingerprint
from asr.base.layers import DecoderLayers, decoder_layers
from asr.base.quantisation import (
    QUANTISATIONS,
    Quantisation,
    arriving_quantisation,
    bitsandbytes_config,
    keep_as_stored,
    require_bitsandbytes,
    require_device,
    require_whole_blocks,
)
from asr.base.quiet import quiet_libraries
from asr.base.resolve import ResolvedBase, resolve_base
from asr.base.tokenizer import context_length, load_tokenizer, make_template, raise_untrusted
from asr.errors import BaseModelError, first_line

Say = Callable[[str], None]


def _silent(message: str) -> None:
    """Say nothing."""


@dataclass
class LoadedBase:
    """A base in memory.

    Attributes:
        resolved: name, folder, source and revision of the checkpoint.
        model: the causal LM, frozen and in evaluation mode.
        tokenizer: its tokenizer.
        template: renderer shared by training, routing and serving.
        fingerprint: sha256 of the checkpoint's identity (:func:`asr.base.fingerprint.fingerprint`).
        device: where the model runs.
        dtype: floating-point type of its weights.
        quantisation: ``int8``, ``nf4``, what the checkpoint arrived in, or None.
        decoder: path and modules of the decoder layers.
        hidden_size: width of the hidden states.
        context_length: longest sequence in tokens that the base was made for.
        note: device, dtype and the reason for them in one line.
    """

    resolved: ResolvedBase
    model: PreTrainedModel
    tokenizer: Any
    template: ChatTemplate
    fingerprint: str
    device: torch.device
    dtype: torch.dtype
    quantisation: str | None
    decoder: DecoderLayers
    hidden_size: int
    context_length: int
    note: str

    @property
    def name(self) -> str:
        """The name that the user gave."""
        return self.resolved.name

    @property
    def architecture(self) -> str:
        """Class name of the model."""
        return type(self.model).__name__

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.decoder.modules)

    @property
    def dtype_name(self) -> str:
        """``float32``, ``bfloat16`` or ``float16``."""
        return str(self.dtype).removeprefix("torch.")


def load_base(
    name: str,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    quantisation: Quantisation | None = None,
    template_text: str | None = None,
    template_date: datetime.date | None = None,
    trust_remote_code: bool = False,
    say: Say = _silent,
) -> LoadedBase:
    """Resolve and load a base model.

    Args:
        name: folder, hub id, ``.gguf`` file or built-in name.
        revision: the one that a model directory recorded for this name: of a hub id that commit is
            taken, of a built-in that origin, whatever is current now.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: ``auto``, ``float32``, ``bfloat16``, ``float16``.
        quantisation: load the linear layers in 8 or 4 bits through bitsandbytes. None: as the
            checkpoint is, which may be quantised already.
        template_text: chat template to render with instead of the tokenizer's own (the one that a
            model directory stores).
        template_date: date to pin in a template that asks for today's; default today.
        trust_remote_code: run code that comes with the checkpoint; only ever from the command line.
        say: receives progress and choices, one line each.

    Raises:
        BaseModelError: if the base cannot be found, is no causal LM, stores pickled weights, has
            damaged or missing tensors, has no usable tokenizer, or does not fit the device; if
            bitsandbytes is missing or has no code for the device; if the checkpoint is quantised
            in another way than asked for.
    """
    if quantisation is not None:
        require_bitsandbytes(quantisation)
    resolved = resolve_base(name, say, revision=revision, code=trust_remote_code)
    chosen_device = choose_device(device)
    chosen_dtype, reason = choose_dtype(chosen_device, dtype)
    note = describe(chosen_device, chosen_dtype, reason)
    kind = _quantisation(resolved, quantisation, chosen_device)
    say(f"base: {name} on {note}" + (f", {kind}" if kind else ""))
    tokenizer = load_tokenizer(resolved.name, resolved.path, trust_remote_code)
    own = arriving_quantisation(resolved.path, name) is not None
    model = _load_model(resolved, chosen_device, chosen_dtype, kind, own, trust_remote_code)
    template = make_template(tokenizer, template_text, template_date, say)
    text_config = model.config.get_text_config(decoder=True)
    return LoadedBase(
        resolved=resolved,
        model=model,
        tokenizer=tokenizer,
        template=template,
        fingerprint=fingerprint(resolved.path),
        device=chosen_device,
        dtype=chosen_dtype,
        quantisation=kind,
        decoder=decoder_layers(model),
        hidden_size=int(text_config.hidden_size),
        context_length=context_length(text_config, tokenizer),
        note=note,
    )


def _quantisation(
    resolved: ResolvedBase, asked: Quantisation | None, device: torch.device
) -> str | None:
    """Decide how the base is quantised, and refuse what cannot run here."""
    arriving = arriving_quantisation(resolved.path, resolved.name)
    if arriving is not None and asked not in (None, arriving):
        raise BaseModelError(
            f"base '{resolved.name}' arrives quantised as {arriving}, and quantisation {asked} was "
            f"asked for; leave quantisation out, or take the base's original checkpoint"
        )
    kind = arriving or asked
    if kind is not None:
        require_bitsandbytes(kind)
        require_device(kind, device)
    return kind


def _load_model(
    resolved: ResolvedBase,
    device: torch.device,
    dtype: torch.dtype,
    quantisation: str | None,
    own: bool,
    trust_remote_code: bool,
) -> PreTrainedModel:
    """Load the weights; ``own``: they are stored quantised, and know how."""
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True}
    if quantisation is not None:
        options["device_map"] = {"": device}
    if quantisation in QUANTISATIONS and not own:
        options["quantization_config"] = bitsandbytes_config(quantisation, dtype)
    transformers.logging.disable_progress_bar()
    try:
        with quiet_libraries():
            found: Any = AutoModelForCausalLM.from_pretrained(
                resolved.path,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                **options,
            )
        model, loading = found
        if quantisation is None:
            model = model.to(device)
    except torch.OutOfMemoryError as error:
        raise BaseModelError(
            f"base '{resolved.name}' does not fit on {device} in {dtype}; "
            "load it with quantisation nf4, or on another device"
        ) from error
    except SafetensorError as error:
        raise BaseModelError(
            f"a weights file of base '{resolved.name}' is truncated or damaged "
            f"({first_line(error)}); copy or download {resolved.path} again"
        ) from error
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise_untrusted(resolved.name, error)
        raise BaseModelError(
            f"base '{resolved.name}' cannot be loaded as a causal language model: "
            f"{first_line(error)}"
        ) from error
    _require_complete(resolved, loading)
    model.requires_grad_(False)
    model.eval()
    keep_as_stored(model)
    require_whole_blocks(model, resolved.name)
    _feed_head_contiguously(model)
    loaded: PreTrainedModel = model
    return loaded


def _feed_head_contiguously(model: PreTrainedModel) -> None:
    """Copy what enters the language-model head where it is a slice of the positions.

    For b rows of a slice PyTorch's linear copies the weight b times: on a prefill of 64 prompts of
    smollm2-135m, which asks for the last position's logits only, 3.6 GB and three seconds.
    """
    head: nn.Module | None = model.get_output_embeddings()
    if head is not None:
        head.register_forward_pre_hook(lambda module, args: tuple(x.contiguous() for x in args))


def _require_complete(resolved: ResolvedBase, loading: dict[str, Any]) -> None:
    """Refuse weights that do not fill the model: transformers draws what is missing at random."""
    missing = sorted(loading.get("missing_keys") or ())
    mismatched = sorted(str(entry) for entry in loading.get("mismatched_keys") or ())
    if not missing and not mismatched:
        return
    what = "lack" if missing else "have another shape for"
    names = missing or mismatched
    raise BaseModelError(
        f"the weights of base '{resolved.name}' {what} {len(names)} tensors of its config (first: "
        f"{names[0]}); copy or download {resolved.path} again"
    )
