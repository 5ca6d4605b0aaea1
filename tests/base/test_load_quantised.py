"""Bases in 8 and 4 bits load frozen, and what cannot be is said before anything is read."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from asr.adapters import LoraSettings, attach_for_training, detach, resolve_placement
from asr.base.fingerprint import fingerprint, tensors_hash
from asr.base.load import LoadedBase, load_base
from asr.base.quantisation import arriving_quantisation
from asr.errors import AdapterError, BaseModelError
from tests.adapters.making import batch, logits
from tests.tiny_models import save_tiny_base
from tests.wide_models import WIDTH, save_wide_base

HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None
needs_bitsandbytes = pytest.mark.skipif(not HAS_BITSANDBYTES, reason="needs bitsandbytes")
KINDS = ("int8", "nf4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_wide_base(tmp_path_factory.mktemp("base"))


def load(folder: Path, **options: Any) -> LoadedBase:
    return load_base(str(folder), **{"device": "cpu", "dtype": "float32", **options})


@pytest.fixture
def without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    found = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> Any:
        return None if name == "bitsandbytes" else found(name, package)

    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", find)
        yield


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_base_is_near_the_whole_one_and_frozen(
    folder: Path, kind: str, dtype: str
) -> None:
    said: list[str] = []
    base = load(folder, quantisation=kind, dtype=dtype, say=said.append)
    assert (base.quantisation, base.dtype_name) == (kind, dtype)
    assert said[0].endswith(f", {kind}")
    assert base.fingerprint == fingerprint(folder)
    stored = {"int8": torch.int8, "nf4": torch.uint8}[kind]
    module = base.model.get_submodule("model.layers.2.mlp.up_proj")
    assert module.weight.dtype is stored
    assert not any(p.requires_grad for p in base.model.parameters())
    ids, mask = batch()
    frozen = tensors_hash(base.model)
    first = logits(base.model, ids, mask)
    inputs = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(1))
    whole = load(folder).model.get_submodule("model.layers.2.mlp.up_proj")(inputs)
    found = module(inputs.to(base.dtype)).float()
    error = (found - whole).norm() / whole.norm()
    assert 1e-4 < error < {"int8": 0.03, "nf4": 0.15}[kind]
    assert torch.equal(logits(base.model, ids, mask), first)
    # nothing was packed or rounded on the way: bitsandbytes would, on CPUs with AVX512-BF16
    assert tensors_hash(base.model) == frozen


@needs_bitsandbytes
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "gpt_neox", "phi3", "gemma3"])
@pytest.mark.parametrize("kind", KINDS)
def test_lora_trains_on_it_and_the_base_stays(tmp_path: Path, architecture: str, kind: str) -> None:
    base = load(save_wide_base(tmp_path, architecture), quantisation=kind)
    ids, mask = batch()
    frozen, plain = tensors_hash(base.model), logits(base.model, ids, mask)
    placement = resolve_placement(base.model, "deep", 2)
    model = attach_for_training(base.model, placement, LoraSettings(4), "tiny", 0)
    assert torch.equal(logits(model, ids, mask), plain)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(input_ids=ids, attention_mask=mask, labels=ids).loss
        losses.append(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert losses[-1] < losses[0]
    assert not torch.equal(logits(model, ids, mask), plain)
    assert model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=2).shape == (4, 14)
    detach(model)
    assert tensors_hash(base.model) == frozen
    assert torch.equal(logits(base.model, ids, mask), plain)


@needs_bitsandbytes
@pytest.mark.parametrize("kind", KINDS)
def test_a_base_that_arrives_quantised_is_taken_as_it_is(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    made = load(folder, quantisation=kind)
    made.model.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    ids, mask = batch()
    for asked in (None, kind):
        base = load(tmp_path, quantisation=asked)
        assert base.quantisation == kind
        assert torch.equal(logits(base.model, ids, mask), logits(made.model, ids, mask))
    other = KINDS[1 - KINDS.index(kind)]
    with pytest.raises(BaseModelError) as caught:
        load(tmp_path, quantisation=other)
    assert str(caught.value) == (
        f"base '{tmp_path}' arrives quantised as {kind}, and quantisation {other} was asked for; "
        "leave quantisation out, or take the base's original checkpoint"
    )


@needs_bitsandbytes
@pytest.mark.parametrize("start", ["pissa", "olora", "orthogonal", "mica"])
def test_initialisations_that_read_the_weights_are_refused_on_it(folder: Path, start: str) -> None:
    base = load(folder, quantisation="nf4")
    frozen = tensors_hash(base.model)
    placement = resolve_placement(base.model, "deep", 2)
    settings = LoraSettings(4, init_lora_weights=start)
    with pytest.raises(AdapterError) as caught:
        attach_for_training(base.model, placement, settings, "tiny", 0)
    assert str(caught.value) == (
        f"init_lora_weights {start}: 'model.layers.2.self_attn.q_proj': it reads the base's "
        "weights, which are quantised; use true or gaussian"
    )
    assert tensors_hash(base.model) == frozen


@needs_bitsandbytes
def test_a_device_without_code_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bitsandbytes

    monkeypatch.setattr(bitsandbytes, "supported_torch_devices", {"cuda", "xpu"})
    with pytest.raises(BaseModelError) as caught:
        load(folder, quantisation="int8")
    assert str(caught.value) == (
        f"bitsandbytes {bitsandbytes.__version__} has no quantisation int8 for cpu; it has code "
        "for cuda, xpu"
    )


@needs_bitsandbytes
def test_rows_of_broken_blocks_are_refused_in_4_bits_on_the_cpu(tmp_path: Path) -> None:
    folder = save_tiny_base(tmp_path)
    with pytest.raises(BaseModelError) as caught:
        load(folder, quantisation="nf4")
    assert str(caught.value) == (
        f"base '{folder}' cannot run in 4 bits on the CPU: 'model.layers.0.self_attn.q_proj' has "
        "rows of 32 values, and bitsandbytes unpacks blocks of 64 there; use quantisation int8, "
        "or a GPU"
    )
    assert load(folder, quantisation="int8").quantisation == "int8"


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_bitsandbytes_is_said_before_the_base_is_looked_for(
    without_bitsandbytes: None, kind: str
) -> None:
    with pytest.raises(BaseModelError) as caught:
        load(Path("/no/such/base"), quantisation=kind)
    assert str(caught.value) == (
        f"quantisation {kind} needs bitsandbytes; pip install 'analytic-subspace-routing[quant]'"
    )


def test_a_base_that_arrives_quantised_needs_it_too(
    without_bitsandbytes: None, tmp_path: Path
) -> None:
    folder = save_tiny_base(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BaseModelError, match=r"^quantisation int8 needs bitsandbytes; pip install"):
        load(folder)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({}, None),
        ({"quantization_config": None}, None),
        ({"quantization_config": {"load_in_8bit": True}}, "int8"),
        ({"quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}, "nf4"),
        ({"quantization_config": {"load_in_4bit": True}}, "fp4"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
    ],
)
def test_what_a_checkpoint_brings(tmp_path: Path, config: Any, kind: str | None) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert arriving_quantisation(tmp_path, "x") == kind


def test_a_quantisation_without_a_method_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"bits": 4}}))
    with pytest.raises(BaseModelError) as caught:
        arriving_quantisation(tmp_path, "x")
    assert str(caught.value) == (
        "the config.json of base 'x' has a quantization_config that names no quant_method; take "
        "the base's original checkpoint and ask for quantisation int8 or nf4"
    )
