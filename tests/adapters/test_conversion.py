"""Initialisations that rewrite the base: the base comes back, the adapter becomes plain LoRA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from asr.adapters import (
    AdapterBank,
    LoraSettings,
    attach_for_training,
    detach,
    load_adapter,
    resolve_placement,
    save_adapter,
)
from asr.base.fingerprint import tensors_hash
from asr.errors import AdapterError
from tests.adapters.making import FINGERPRINT, ROUTER_LAYER, batch, logits
from tests.tiny_models import tiny_model

DOWN = "model.layers.3.mlp.down_proj"


def attach(model: Any, settings: LoraSettings, kind: Any = "deep", seed: int = 3) -> Any:
    placement = resolve_placement(model, kind, ROUTER_LAYER)
    return attach_for_training(model, placement, settings, "tiny", seed)


def move(peft_model: Any, steps: int = 3) -> None:
    """Train a little: every trainable tensor moves."""
    ids, mask = batch()
    optimizer = torch.optim.SGD([p for p in peft_model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        peft_model(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(peft_model.parameters(), 1.0)
        optimizer.step()


def save(peft_model: Any, folder: Path) -> Path:
    folder.mkdir()
    save_adapter(peft_model, folder, domain="a", fingerprint=FINGERPRINT, facts={})
    return folder


VARIANTS = [
    ("llama", "pissa", False, 8),
    ("llama", "pissa", True, 8),
    ("llama", "olora", False, 8),
    ("llama", "olora", True, 8),
    ("llama", "pissa_niter_4", False, 8),
    ("gpt2", "pissa", False, 8),
    ("gpt2", "pissa_niter_2", True, 8),
    ("qwen3", "olora", False, 8),
    ("opt", "pissa", True, 8),
    ("phi3", "olora", True, 8),
    ("gemma3", "pissa", False, 8),
    ("gpt_neox", "olora", False, 8),
    ("mixtral", "pissa", False, 8),
    ("llama", "gaussian", False, 4),
    ("llama", "gaussian", True, 4),
    ("gpt2", "gaussian", True, 4),
    ("llama", "orthogonal", True, 4),
    ("gpt2", "orthogonal", False, 4),
    ("llama", "mica", False, 4),
    ("gpt2", "mica", True, 4),
    ("llama", True, True, 4),
]


@pytest.mark.parametrize(("architecture", "start", "rslora", "rank"), VARIANTS)
def test_the_saved_adapter_on_the_plain_base_is_the_trained_model(
    tmp_path: Path, architecture: str, start: Any, rslora: bool, rank: int
) -> None:
    model = tiny_model(architecture)
    frozen = tensors_hash(model)
    ids, mask = batch()
    plain = logits(model, ids, mask)
    settings = LoraSettings(4, 6.0, use_rslora=rslora, init_lora_weights=start)
    peft_model = attach(model, settings)
    assert (tensors_hash(model) != frozen) == (rank == 8)
    if start != "orthogonal":  # there B A is small, not zero
        torch.testing.assert_close(logits(model, ids, mask), plain, rtol=1e-3, atol=1e-3)
    move(peft_model)
    trained = logits(peft_model, ids, mask)
    assert (trained - plain).abs().max() > 0.05
    folder = save(peft_model, tmp_path / "a")
    assert torch.equal(logits(peft_model, ids, mask), trained)  # saving changes nothing

    assert detach(peft_model) is model
    assert tensors_hash(model) == frozen
    assert torch.equal(logits(model, ids, mask), plain)

    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["init_lora_weights"], config["use_rslora"]) == (rank, True, rslora)
    stored = load_adapter(folder)
    assert stored.rank == settings.saved_rank == rank

    in_peft = PeftModel.from_pretrained(tiny_model(architecture), str(folder)).eval()
    served = logits(in_peft, ids, mask)
    torch.testing.assert_close(served, trained, rtol=1e-3, atol=1e-3)

    with AdapterBank(model, FINGERPRINT) as bank:
        bank.load("a", folder)
        with bank.rows(["a", None, "a", None]):
            mixed = logits(model, ids, mask)
    expected = torch.where(torch.tensor([1, 0, 1, 0]).bool()[:, None, None], served, plain)
    torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_the_conversion_is_that_of_peft(tmp_path: Path, start: str, rslora: bool) -> None:
    ours = attach(tiny_model(), LoraSettings(4, 6.0, use_rslora=rslora, init_lora_weights=start))
    move(ours)
    folder = save(ours, tmp_path / "ours")

    torch.manual_seed(3)
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=rslora,
        init_lora_weights=start,
        target_modules=resolve_placement(tiny_model(), "deep", ROUTER_LAYER).names,
        task_type="CAUSAL_LM",
    )
    theirs = get_peft_model(tiny_model(), config)
    theirs.peft_config["default"].init_lora_weights = True
    theirs.save_pretrained(str(tmp_path / "start"))
    move(theirs)
    theirs.save_pretrained(
        str(tmp_path / "theirs"), path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    one = load_file(folder / "adapter_model.safetensors")
    other = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    mine = json.loads((folder / "adapter_config.json").read_text())
    known = json.loads((tmp_path / "theirs" / "adapter_config.json").read_text())
    for key in ("r", "lora_alpha", "use_rslora", "init_lora_weights"):
        assert mine[key] == known[key]


def test_a_failure_half_way_gives_the_base_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from peft.tuners.lora import LoraLayer

    model = tiny_model()
    frozen, names = tensors_hash(model), list(model.state_dict())
    done = 0
    original = LoraLayer.pissa_init

    def fail(self: Any, *args: Any) -> None:
        nonlocal done
        done += 1
        if done == 4:
            raise KeyboardInterrupt
        original(self, *args)

    monkeypatch.setattr(LoraLayer, "pissa_init", fail)
    with pytest.raises(KeyboardInterrupt):
        attach(model, LoraSettings(2, init_lora_weights="pissa"))
    assert tensors_hash(model) == frozen
    assert list(model.state_dict()) == names
    assert not hasattr(model, "peft_config")
    monkeypatch.undo()
    detach(attach(model, LoraSettings(2, init_lora_weights="pissa")))
    assert tensors_hash(model) == frozen


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_base_comes_back_bit_for_bit_in_half_precision(dtype: torch.dtype) -> None:
    model = tiny_model().to(dtype)
    frozen = tensors_hash(model)
    peft_model = attach(model, LoraSettings(4, init_lora_weights="pissa"))
    assert tensors_hash(model) != frozen
    detach(peft_model)
    assert tensors_hash(model) == frozen


def test_mica_trains_a_only() -> None:
    peft_model = attach(tiny_model(), LoraSettings(4, init_lora_weights="mica"))
    trainable = [name for name, p in peft_model.named_parameters() if p.requires_grad]
    assert trainable and all(".lora_A." in name for name in trainable)


@pytest.mark.parametrize(
    ("architecture", "settings", "text"),
    [
        ("llama", LoraSettings(3, init_lora_weights="orthogonal"),
         "init_lora_weights orthogonal: 'model.layers.2.self_attn.q_proj': it needs an even rank, "
         "not 3; use 4"),
        ("llama", LoraSettings(24, init_lora_weights="pissa"),
         "init_lora_weights pissa: 'model.layers.2.self_attn.k_proj': it takes at most rank 16 "
         "here, not 24; lower adapter.rank"),
        ("gpt2", LoraSettings(4, init_lora_weights="olora"),
         "init_lora_weights olora: 'transformer.h.2.attn.c_attn': it cannot decompose Conv1D "
         "modules; use pissa"),
        ("llama", LoraSettings(4, init_lora_weights="loftq"),
         "init_lora_weights loftq is refused: it quantises the base anew for each adapter, and no "
         "LoRA over the one frozen base equals that; use quantisation: nf4 with "
         "init_lora_weights: true"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_the_base_is_touched(
    architecture: str, settings: LoraSettings, text: str
) -> None:
    model = tiny_model(architecture)
    frozen, names = tensors_hash(model), list(model.state_dict())
    with pytest.raises(AdapterError) as caught:
        attach(model, settings)
    assert str(caught.value) == text
    assert tensors_hash(model) == frozen
    assert list(model.state_dict()) == names
