"""What PEFT attached is counted: nothing but the adapter is trained, and the base comes back."""

from __future__ import annotations

from typing import Any

import pytest
from peft import PeftModel

from asr.adapters import LoraSettings, attach_for_training, lora, resolve_placement
from asr.base.fingerprint import tensors_hash
from asr.errors import AdapterError
from tests.tiny_models import tiny_model


def test_a_trainable_parameter_outside_the_adapter_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model()
    frozen, before = tensors_hash(model), [id(module) for module in model.modules()]
    placement = resolve_placement(model, "deep", 2)

    def careless(base: Any, *args: Any, **options: Any) -> PeftModel:
        wrapped = PeftModel(base, *args, **options)
        base.get_input_embeddings().weight.requires_grad_(True)
        return wrapped

    monkeypatch.setattr(lora, "PeftModel", careless)
    expected = placement.parameters(4)
    embedding = model.get_input_embeddings().weight.numel()
    with pytest.raises(AdapterError) as caught:
        attach_for_training(model, placement, LoraSettings(4, 8.0), "tiny", 0)
    assert str(caught.value) == (
        f"{expected + embedding} parameters are trainable, {expected} expected"
    )
    assert [id(module) for module in model.modules()] == before
    assert tensors_hash(model) == frozen
