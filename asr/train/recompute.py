"""Activation checkpointing: recompute activations in the backward pass, for memory.

``use_reentrant=False`` needs no input that requires a gradient. transformers makes the embeddings
require one all the same, which would send the backward pass through every frozen layer below the
adapters; here it ends where the adapters begin, as without checkpointing.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


def recompute_arguments(wanted: bool) -> dict[str, Any]:
    """Trainer arguments for it; their names changed within transformers 5."""
    if not wanted:
        return {}
    known = {field.name for field in fields(TrainingArguments)}
    name = "activation" if "activation_checkpointing" in known else "gradient"
    return {
        f"{name}_checkpointing": True,
        f"{name}_checkpointing_kwargs": {"use_reentrant": False},
    }


class FrozenInputs(TrainerCallback):
    """Takes back what transformers does to the embeddings when checkpointing starts."""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Let embeddings come without a gradient again."""
        _base(model).disable_input_require_grads()


def stop_recomputing(model: Any) -> None:
    """Leave the base as it was before training: it is shared by all domains, and generates."""
    base = _base(model)
    disable = getattr(base, "activation_checkpointing_disable", None)
    (disable or base.gradient_checkpointing_disable)()
    base.disable_input_require_grads()


def _base(model: Any) -> Any:
    unwrapped = getattr(model, "module", model)  # of DistributedDataParallel
    return unwrapped.get_base_model()
