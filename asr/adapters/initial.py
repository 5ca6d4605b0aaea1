"""Start a new adapter as a copy of a saved one, which stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer

from asr.adapters.lora import TRAINING_NAME
from asr.adapters.storage import StoredAdapter, load_adapter, rank_of
from asr.errors import AdapterError


def load_initial(
    peft_model: PeftModel, folder: Path, *, base_fingerprint: str | None = None
) -> StoredAdapter:
    """Overwrite the fresh adapter of ``peft_model`` with the tensors saved in ``folder``.

    The model then computes what it computes with the saved adapter: where the two have another
    scaling (alpha / rank), ``B`` is multiplied by their ratio. Strict in both directions: every
    tensor of the fresh adapter is overwritten, and every saved one is used.

    Args:
        peft_model: model with the one adapter that training attached.
        folder: folder of a saved adapter; only read.
        base_fingerprint: fingerprint of the base; None skips the comparison.

    Returns:
        The adapter that was read.

    Raises:
        AdapterError: for any reason of :func:`asr.adapters.storage.load_adapter`; if the saved
            adapter has another rank (of any module) or sits on other modules than the fresh one.
    """
    stored = load_adapter(folder, base_fingerprint=base_fingerprint)
    config: Any = peft_model.peft_config[TRAINING_NAME]
    if stored.rank != config.r:
        raise AdapterError(
            f"the new adapter has rank {config.r}, the one it would start from ({folder}) rank "
            f"{stored.rank}; set adapter.rank to {stored.rank}, or start from another"
        )
    wanted = set(config.target_modules)
    different = sorted(wanted ^ set(stored.modules))
    if different:
        side = "new one" if different[0] in wanted else "saved one"
        raise AdapterError(
            f"the new adapter sits on {len(wanted)} modules, the one it would start from "
            f"({folder}) on {len(stored.modules)}; '{different[0]}' carries the {side} only; give "
            "both the same adapter.placement, or start from another"
        )
    for module in sorted(wanted):
        ours, theirs = rank_of(config, module), stored.rank_of(module)
        if ours != theirs:
            raise AdapterError(
                f"the new adapter has rank {ours} on '{module}', the one it would start from "
                f"({folder}) rank {theirs}; give both the same adapter.placement, or start from "
                "another"
            )
    state = get_peft_model_state_dict(
        peft_model, adapter_name=TRAINING_NAME, save_embedding_layers=False
    )
    scaling = {
        name.removeprefix("base_model.model."): module.scaling[TRAINING_NAME]
        for name, module in peft_model.named_modules()
        if isinstance(module, LoraLayer)
    }
    with torch.no_grad():
        for name, tensor in state.items():
            saved = stored.tensors[name]
            if saved.shape != tensor.shape:
                raise AdapterError(
                    f"adapter {folder}: {name} has shape {list(saved.shape)}, the base needs "
                    f"{list(tensor.shape)}; it was trained on another architecture"
                )
            module, _, part = name.removeprefix("base_model.model.").partition(".lora_")
            ratio = stored.scaling(module) / scaling[module] if part.startswith("B") else 1.0
            tensor.copy_(saved if ratio == 1.0 else saved * ratio)
    return stored
