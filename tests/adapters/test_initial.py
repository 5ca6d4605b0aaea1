"""A new adapter starts as an exact copy of a saved one, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor

from asr.adapters import (
    LoraSettings,
    adapter_sha256,
    attach_for_training,
    load_adapter,
    load_initial,
    resolve_placement,
)
from asr.errors import AdapterError
from tests.adapters.making import FINGERPRINT, ROUTER_LAYER, batch, logits, make_adapter
from tests.tiny_models import tiny_model

DOWN = "model.layers.3.mlp.down_proj"
UP = "model.layers.3.mlp.up_proj"


def fresh(kind: Any = "deep", rank: int = 4, alpha: float = 8.0, name: str = "llama") -> Any:
    model = tiny_model(name)
    placement = resolve_placement(model, kind, ROUTER_LAYER)
    return attach_for_training(model, placement, LoraSettings(rank, alpha), "tiny", 7)


def tensors(model: Any) -> dict[str, Tensor]:
    state: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return state


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_every_tensor_is_taken_over_and_the_saved_one_stays(
    tmp_path: Path, architecture: str
) -> None:
    folder = make_adapter(tmp_path / "a", architecture)
    before = adapter_sha256(folder)
    model = fresh(name=architecture)
    stored = load_initial(model, folder, base_fingerprint=FINGERPRINT)
    state = tensors(model)
    assert state.keys() == load_adapter(folder).tensors.keys() == stored.tensors.keys()
    assert all(torch.equal(state[name], stored.tensors[name]) for name in state)
    assert adapter_sha256(folder) == before
    # trainable still, and computing what PEFT computes with the saved one
    assert all(p.requires_grad for n, p in model.named_parameters() if ".lora_" in n)
    saved = PeftModel.from_pretrained(tiny_model(architecture), str(folder)).eval()
    ids, mask = batch()
    assert torch.equal(logits(model.eval(), ids, mask), logits(saved, ids, mask))


def test_another_alpha_keeps_the_function(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "a", alpha=8.0)
    model = fresh(alpha=32.0).eval()
    load_initial(model, folder)
    saved = PeftModel.from_pretrained(tiny_model(), str(folder)).eval()
    ids, mask = batch()
    torch.testing.assert_close(logits(model, ids, mask), logits(saved, ids, mask))
    key = f"base_model.model.{DOWN}.lora_B.weight"
    state = tensors(model)
    assert torch.equal(state[key], load_adapter(folder).tensors[key] / 4)


def test_another_rank_is_refused(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "a", rank=4)
    with pytest.raises(AdapterError) as caught:
        load_initial(fresh(rank=2), folder)
    assert str(caught.value) == (
        f"the new adapter has rank 2, the one it would start from ({folder}) rank 4; set "
        "adapter.rank to 4, or start from another"
    )


@pytest.mark.parametrize(
    ("saved", "asked", "text"),
    [
        ([DOWN], [DOWN, UP], f"on 2 modules, the one it would start from (FOLDER) on 1; '{UP}' "
         "carries the new one only"),
        ([DOWN, UP], [DOWN], f"on 1 modules, the one it would start from (FOLDER) on 2; '{UP}' "
         "carries the saved one only"),
        ([DOWN], [UP], f"on 1 modules, the one it would start from (FOLDER) on 1; '{DOWN}' "
         "carries the saved one only"),
    ],
)  # fmt: skip
def test_another_placement_is_refused(
    tmp_path: Path, saved: list[str], asked: list[str], text: str
) -> None:
    folder = make_adapter(tmp_path / "a", kind={"modules": saved})
    model = fresh({"modules": asked})
    before = {n: p.clone() for n, p in tensors(model).items()}
    with pytest.raises(AdapterError) as caught:
        load_initial(model, folder)
    assert str(caught.value) == (
        f"the new adapter sits {text.replace('FOLDER', str(folder))}; give both the same "
        "adapter.placement, or start from another"
    )
    after = tensors(model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_another_base_is_refused(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "a")
    with pytest.raises(AdapterError, match="belongs to another base"):
        load_initial(fresh(), folder, base_fingerprint="cd" * 32)
