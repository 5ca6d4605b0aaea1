"""A base loads whole and frozen, or not at all."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from asr.base.chat_template import ChatTemplate
from asr.base.fingerprint import fingerprint, tensors_hash
from asr.base.load import load_base
from asr.errors import BaseModelError
from tests.tiny_models import ARCHITECTURES, HIDDEN, LAYERS, save_tiny_base, tiny_model

WEIGHTS = "model.safetensors"
DOWN = "model.layers.2.mlp.down_proj.weight"


@pytest.fixture
def folder(tmp_path):
    return save_tiny_base(tmp_path / "base")


def load(folder, **options):
    return load_base(str(folder), **{"device": "cpu", "dtype": "float32", **options})


def edit_tensors(folder, edit):
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def refusal(folder, **options):
    with pytest.raises(BaseModelError) as caught:
        load(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_loads_frozen_and_unchanged(architecture, tmp_path):
    said: list[str] = []
    base = load(save_tiny_base(tmp_path, architecture), say=said.append)
    assert tensors_hash(base.model) == tensors_hash(tiny_model(architecture))
    assert not any(p.requires_grad for p in base.model.parameters())
    assert not base.model.training
    assert (base.n_layers, base.hidden_size, base.context_length) == (LAYERS, HIDDEN, 512)
    assert (base.dtype, base.dtype_name, base.quantisation) == (torch.float32, "float32", None)
    assert base.fingerprint == fingerprint(tmp_path)
    assert base.architecture == type(tiny_model(architecture)).__name__
    assert base.name == str(tmp_path) and base.name in said[0] and "float32" in said[0]
    assert base.tokenizer.padding_side == "left"


def test_dtype_is_what_was_asked_for_and_the_fingerprint_does_not_depend_on_it(folder):
    base = load(folder, dtype="bfloat16")
    assert {p.dtype for p in base.model.parameters()} == {torch.bfloat16}
    assert base.fingerprint == load(folder).fingerprint


def test_the_head_gets_the_last_position_in_one_piece(folder):
    """A slice of the positions would make PyTorch copy the head's weight once per prompt."""
    model = load(folder).model
    met = []
    model.get_output_embeddings().register_forward_pre_hook(
        lambda module, args: met.append((args[0].shape, args[0].is_contiguous()))
    )
    ids = torch.arange(5, 35).reshape(3, 10)
    with torch.no_grad():
        everything = model(ids).logits
        last = model(ids, logits_to_keep=1).logits
    assert met == [((3, 10, 32), True), ((3, 1, 32), True)]
    torch.testing.assert_close(last, everything[:, -1:])


def test_a_stored_template_is_used_instead_of_the_tokenizers(folder):
    own = load(folder).template
    other = load(folder, template_text=own.text.replace("im_start", "im_begin")).template
    assert isinstance(other, ChatTemplate) and other.hash != own.hash
    assert "im_begin" in other.render([{"role": "user", "content": "x"}], True)


def test_a_tokenizer_without_padding_pads_with_its_end(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("pad_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load(folder).tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


def test_no_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert "has no tokenizer that transformers can load" in refusal(folder)


# -- weights that do not fill the model ------------------------------------------------------------


def test_a_missing_tensor_is_not_drawn_at_random(folder):
    edit_tensors(folder, lambda tensors: tensors.pop(DOWN))
    assert refusal(folder) == (
        f"the weights of base '{folder}' lack 1 tensors of its config (first: {DOWN}); copy or "
        f"download {folder} again"
    )


def test_a_config_with_more_layers_than_weights(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    assert "lack 9 tensors of its config (first: model.layers.4." in refusal(folder)


def test_a_tensor_of_another_shape(folder):
    edit_tensors(folder, lambda tensors: tensors.update({DOWN: torch.zeros(3, 3)}))
    assert "cannot be loaded as a causal language model" in refusal(folder)


@pytest.mark.parametrize("share", [0.5, 0.0, 0.999])
def test_truncated_weights(folder, share):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: int(len(data) * share)])
    assert "is truncated or damaged" in refusal(folder)


def test_what_is_no_causal_language_model(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "clip_text_model"}))
    assert "cannot be loaded as a causal language model" in refusal(folder)


def test_settings_that_do_not_exist(folder):
    assert "float8" in refusal(folder, dtype="float8")
    assert "tpu" in refusal(folder, device="tpu")
