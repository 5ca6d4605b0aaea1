"""The fingerprint tells bases apart and nothing else; the tensors' hash sees every change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from asr.base.fingerprint import fingerprint, tensors_hash
from asr.errors import BaseModelError
from tests.tiny_models import ARCHITECTURES, save_tiny_base, tiny_model


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_tiny_base(tmp_path / "base")


def edit_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_tensor(folder: Path, change: Any) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def test_it_is_64_hexadecimal_digits_and_repeats(base: Path) -> None:
    first = fingerprint(base)
    assert len(first) == 64
    assert int(first, 16) >= 0
    assert fingerprint(base) == first


def test_the_place_and_what_is_not_the_model_do_not_matter(base: Path, tmp_path: Path) -> None:
    before = fingerprint(base)
    edit_config(base, transformers_version="9", _name_or_path="x", dtype="float16", use_cache=False)
    (base / "tokenizer.json").unlink()
    moved = Path(shutil.move(base, tmp_path / "elsewhere"))
    assert fingerprint(moved) == before


def test_shards_do_not_matter(base: Path, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    tiny_model().save_pretrained(sharded, max_shard_size="40KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    tiny_model().save_pretrained(tmp_path / "whole")
    assert fingerprint(sharded) == fingerprint(tmp_path / "whole")


@pytest.mark.parametrize("key", ["rms_norm_eps", "num_attention_heads", "tie_word_embeddings"])
def test_a_config_key_that_changes_the_model_matters(base: Path, key: str) -> None:
    before = fingerprint(base)
    edit_config(base, **{key: 1})
    assert fingerprint(base) != before


def test_nested_noise_is_left_out_too(base: Path) -> None:
    edit_config(base, text_config={"hidden_size": 1})
    before = fingerprint(base)
    edit_config(base, text_config={"hidden_size": 1, "dtype": "float16", "_name_or_path": "y"})
    assert fingerprint(base) == before
    edit_config(base, text_config={"hidden_size": 2})
    assert fingerprint(base) != before


def test_one_element_of_a_small_tensor_matters(base: Path) -> None:
    before = fingerprint(base)
    edit_tensor(base, lambda tensors: tensors["model.norm.weight"][7:8].add_(1))
    assert fingerprint(base) != before


@pytest.mark.parametrize("element", [0, -1])
def test_the_ends_of_a_large_tensor_matter(base: Path, element: int) -> None:
    before = fingerprint(base)
    name = "model.embed_tokens.weight"
    assert load_file(base / "model.safetensors")[name].nbytes > 64 * 256  # sampled, not whole
    edit_tensor(base, lambda tensors: tensors[name].view(-1)[element].add_(1))
    assert fingerprint(base) != before


def test_name_dtype_and_shape_matter(base: Path) -> None:
    seen = {fingerprint(base)}

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        tensors["other"] = tensors.pop("model.norm.weight")

    def reshape(tensors: dict[str, torch.Tensor]) -> None:
        tensors["other"] = tensors["other"].view(4, -1)

    def retype(tensors: dict[str, torch.Tensor]) -> None:
        tensors["other"] = tensors["other"].view(torch.int32)

    for change in (rename, reshape, retype):
        edit_tensor(base, change)
        seen.add(fingerprint(base))
    assert len(seen) == 4


def test_another_seed_is_another_base(base: Path, tmp_path: Path) -> None:
    assert fingerprint(save_tiny_base(tmp_path / "other", seed=1)) != fingerprint(base)


def test_a_cut_off_file_is_named(base: Path) -> None:
    file = base / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(BaseModelError, match=r"model\.safetensors' is cut off"):
        fingerprint(base)


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x04" + b"\x00" * 7 + b"nope"])
def test_a_file_that_is_no_safetensors_is_named(base: Path, content: bytes) -> None:
    (base / "model.safetensors").write_bytes(content)
    with pytest.raises(BaseModelError, match="is not a safetensors file"):
        fingerprint(base)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_a_model_under_lora_hashes_as_the_bare_base(architecture: str) -> None:
    bare = tensors_hash(tiny_model(architecture))
    config = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
    wrapped = get_peft_model(tiny_model(architecture), config)
    assert tensors_hash(wrapped) == bare
    assert tensors_hash(wrapped.unload()) == bare


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(target_modules=["q_proj", "embed_tokens"], use_dora=True, task_type="CAUSAL_LM"),
        LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM"),
        PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    ],
    ids=["dora", "modules_to_save", "prompt"],
)
def test_other_adapters_do_not_count_either(config: Any) -> None:
    bare = tensors_hash(tiny_model())
    wrapped = get_peft_model(tiny_model(), config)
    assert tensors_hash(wrapped) == bare


def test_training_the_adapter_keeps_the_hash_and_touching_the_base_does_not() -> None:
    wrapped = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj"]))
    before = tensors_hash(wrapped)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.add_(1.0)
    assert tensors_hash(wrapped) == before
    weight = wrapped.get_submodule("base_model.model.model.layers.3.mlp.down_proj").weight
    with torch.no_grad():
        weight[5, 5] += 1e-3
    assert tensors_hash(wrapped) != before


def test_merging_into_the_base_is_seen() -> None:
    config = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    wrapped = get_peft_model(tiny_model(), config)
    before = tensors_hash(wrapped)
    wrapped.merge_adapter()
    assert tensors_hash(wrapped) != before


def test_dtype_and_saved_buffers_count_and_recomputed_ones_do_not() -> None:
    model = tiny_model()
    before = tensors_hash(model)
    assert tensors_hash(tiny_model().bfloat16()) != before
    model.register_buffer("scratch", torch.ones(3), persistent=False)
    assert tensors_hash(model) == before
    model.register_buffer("kept", torch.tensor(1.0))
    assert tensors_hash(model) != before


def test_a_tensor_that_is_not_in_memory_is_named() -> None:
    with pytest.raises(BaseModelError, match="'weight' is not in memory"):
        tensors_hash(nn.Linear(2, 2, device="meta", bias=False))
