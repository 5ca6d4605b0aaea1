"""The layers below the router layer alone give the whole model's features, bit for bit."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from asr.base.layers import decoder_layers
from asr.base.load import load_base
from asr.base.shallow import load_shallow_base
from asr.base.split import SplitForward
from asr.errors import BaseModelError
from tests.adapters.making import batch
from tests.tiny_models import ARCHITECTURES, LAYERS, save_tiny_base

LAYER = 2


def without_the_rest(folder, architecture):
    """Take every tensor that routing does not need out of the checkpoint; return their number."""
    base = load_base(str(folder), device="cpu", dtype="float32")
    path = decoder_layers(base.model).path
    deep = tuple(f"{path}.{index}." for index in range(LAYER, LAYERS))
    tensors = load_file(folder / "model.safetensors")
    kept = {
        name: tensor
        for name, tensor in tensors.items()
        # GPT-2's and others' checkpoints may leave the model's own name out
        if not any(d in name or d.split(".", 1)[1] in f"{name}." for d in deep)
        and not name.startswith(("lm_head", "embed_out"))
    }
    assert len(kept) < len(tensors)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return len(tensors) - len(kept)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_features_are_those_of_the_whole_model(architecture, dtype, tmp_path):
    """The other tensors are not even there, so they cannot have been read."""
    save_tiny_base(tmp_path, architecture)
    ids, mask = batch(rows=4, length=20)
    whole = load_base(str(tmp_path), device="cpu", dtype=dtype)
    expected = SplitForward(whole.model, LAYER).prefix(ids, mask).hidden
    without_the_rest(tmp_path, architecture)
    shallow = load_shallow_base(str(tmp_path), LAYER, dtype=dtype)
    found = shallow.forward.prefix(ids, mask).hidden
    real = mask.bool()
    assert found.dtype is expected.dtype and torch.equal(found[real], expected[real])
    assert shallow.parameters < sum(p.numel() for p in whole.model.parameters())
    assert shallow.context_length == whole.context_length
    assert shallow.template.hash == whole.template.hash


def test_checkpoints_in_several_files(tmp_path):
    save_tiny_base(tmp_path)
    ids, mask = batch()
    whole = load_base(str(tmp_path), device="cpu", dtype="float32")
    expected = SplitForward(whole.model, LAYER).prefix(ids, mask).hidden
    whole.model.save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / "model.safetensors").unlink(missing_ok=True)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    shallow = load_shallow_base(str(tmp_path), LAYER, dtype="float32")
    assert torch.equal(shallow.forward.prefix(ids, mask).hidden, expected)


def test_a_missing_tensor_and_a_layer_outside_are_named(tmp_path):
    save_tiny_base(tmp_path)
    with pytest.raises(BaseModelError, match=r"router layer 4 is outside .* which has 4 layers"):
        load_shallow_base(str(tmp_path), LAYERS)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match=r"lack 1 tensors below layer 2 .*up_proj"):
        load_shallow_base(str(tmp_path), LAYER, dtype="float32")
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "no such thing"}))
    with pytest.raises(BaseModelError):
        load_shallow_base(str(tmp_path), LAYER)
