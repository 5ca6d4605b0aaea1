"""Load a frozen base: weights, tokenizer, chat template, and what identifies them.

Everything that training, routing and serving share about a base is gathered once in
:class:`LoadedBase`. Nothing here falls back silently: device, dtype and quantisation are chosen by
capability or by the user, and said aloud.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from asr.base.chat_template import ChatTemplate
from asr.base.device import choose_device, choose_dtype, describe
from asr.base.fingerprint import fingerprint
from asr.base.layers import DecoderLayers, decoder_layers
from asr.base.quiet import quiet_libraries
from asr.base.resolve import ResolvedBase, resolve_base
from asr.errors import BaseModelError

Quantisation = Literal["int8", "nf4"]
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
        quantisation: ``int8``, ``nf4`` or None.
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
    quantisation: Quantisation | None
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
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: ``auto``, ``float32``, ``bfloat16``, ``float16``.
        quantisation: load the linear layers in 8 or 4 bits through bitsandbytes.
        template_text: chat template to render with instead of the tokenizer's own (the one that a
            model directory stores).
        template_date: date to pin in a template that asks for today's; default today.
        trust_remote_code: run code that comes with the checkpoint; only ever from the command line.
        say: receives progress and choices, one line each.

    Raises:
        BaseModelError: if the base cannot be found, is no causal LM, stores pickled weights, has
            damaged or missing tensors, has no usable tokenizer, or does not fit the device; if
            bitsandbytes is missing.
    """
    resolved = resolve_base(name, progress=say)
    chosen_device = choose_device(device)
    chosen_dtype, reason = choose_dtype(chosen_device, dtype)
    note = describe(chosen_device, chosen_dtype, reason)
    say(f"base: {name} on {note}" + (f", {quantisation}" if quantisation else ""))
    tokenizer = _load_tokenizer(resolved, trust_remote_code)
    model = _load_model(resolved, chosen_device, chosen_dtype, quantisation, trust_remote_code)
    template = ChatTemplate.from_tokenizer(tokenizer, text=template_text, date=template_date)
    text_config = model.config.get_text_config(decoder=True)
    return LoadedBase(
        resolved=resolved,
        model=model,
        tokenizer=tokenizer,
        template=template,
        fingerprint=fingerprint(resolved.path),
        device=chosen_device,
        dtype=chosen_dtype,
        quantisation=quantisation,
        decoder=decoder_layers(model),
        hidden_size=int(text_config.hidden_size),
        context_length=_context_length(text_config, tokenizer),
        note=note,
    )


def _load_tokenizer(resolved: ResolvedBase, trust_remote_code: bool) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            resolved.path, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BaseModelError(
            f"base '{resolved.name}' has no tokenizer that transformers can load "
            f"({_first_line(error)}); put its tokenizer files into {resolved.path}"
        ) from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise BaseModelError(
                f"the tokenizer of '{resolved.name}' has neither a padding nor an end-of-sequence "
                "token; set one in its tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def _load_model(
    resolved: ResolvedBase,
    device: torch.device,
    dtype: torch.dtype,
    quantisation: Quantisation | None,
    trust_remote_code: bool,
) -> PreTrainedModel:
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True}
    if quantisation is not None:
        options["quantization_config"] = _quantisation_config(quantisation, dtype)
        options["device_map"] = {"": device}
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
            f"({_first_line(error)}); copy or download {resolved.path} again"
        ) from error
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise BaseModelError(
            f"base '{resolved.name}' cannot be loaded as a causal language model: "
            f"{_first_line(error)}"
        ) from error
    _require_complete(resolved, loading)
    model.requires_grad_(False)
    model.eval()
    loaded: PreTrainedModel = model
    return loaded


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


def _quantisation_config(quantisation: Quantisation, dtype: torch.dtype) -> Any:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise BaseModelError(
            f"quantisation {quantisation} needs bitsandbytes; "
            "pip install 'analytic-subspace-routing[quant]'"
        ) from error
    if quantisation == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _context_length(text_config: Any, tokenizer: Any) -> int:
    for key in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"):
        value = getattr(text_config, key, None)
        if isinstance(value, int) and value > 0:
            return value
    return int(min(tokenizer.model_max_length, 1 << 20))


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
