"""Adapter folders: plain PEFT, equal bytes for equal adapters, strict in both directions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from asr.adapters import (
    LoraSettings,
    adapter_sha256,
    attach_for_training,
    load_adapter,
    resolve_placement,
    save_adapter,
)
from asr.errors import AdapterError
from tests.adapters.making import FINGERPRINT, batch, logits, make_adapter, randomise
from tests.tiny_models import save_tiny_base, tiny_model

TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
A = "base_model.model.model.layers.3.mlp.up_proj.lora_A.weight"


@pytest.fixture
def folder(tmp_path):
    return make_adapter(tmp_path / "legal")


def edit_config(folder: Path, **values):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | values))


def edit_tensors(folder: Path, edit):
    tensors = load_file(folder / TENSORS)
    edit(tensors)
    save_file(tensors, folder / TENSORS, {"asr_base_fingerprint": FINGERPRINT})


def message(folder: Path, **options) -> str:
    with pytest.raises(AdapterError) as caught:
        load_adapter(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(folder), "DIR")


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral", "opt"])
def test_plain_peft_computes_the_same_logits_from_the_files(architecture, tmp_path):
    base = save_tiny_base(tmp_path / "base", architecture)
    model = AutoModelForCausalLM.from_pretrained(base)
    placement = resolve_placement(model, "all", 2)
    peft_model = attach_for_training(model, placement, LoraSettings(3, 7.5), str(base), 0)
    randomise(peft_model, 2)
    ids, mask = batch()
    expected = logits(peft_model.eval(), ids, mask)
    (tmp_path / "a").mkdir()
    save_adapter(peft_model, tmp_path / "a", domain="a", fingerprint=FINGERPRINT, facts={})
    fresh = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "a")
    assert torch.equal(logits(fresh.eval(), ids, mask), expected)
    assert not torch.allclose(
        expected, logits(AutoModelForCausalLM.from_pretrained(base), ids, mask)
    )


def test_a_loaded_adapter_is_what_was_saved(folder):
    stored = load_adapter(folder, base_fingerprint=FINGERPRINT)
    assert stored.rank == 4
    assert stored.base_fingerprint == FINGERPRINT
    assert list(stored.modules) == sorted(resolve_placement(tiny_model(), "deep", 2).names)
    assert stored.sha256 == adapter_sha256(folder)
    raw = load_file(folder / TENSORS)
    assert stored.tensors.keys() == raw.keys()
    assert all(torch.equal(stored.tensors[name], raw[name]) for name in raw)
    assert "rank 4, alpha 8, 14 modules" in (folder / "README.md").read_text()


def test_equal_adapters_are_equal_bytes_also_in_another_process(folder, tmp_path):
    script = (
        "import sys; from pathlib import Path; from tests.adapters.making import make_adapter; "
        "make_adapter(Path(sys.argv[1]) / 'legal')"
    )
    for seed in ("1", "2"):  # sets of strings are ordered by the hash seed
        other = tmp_path / seed
        subprocess.run(
            [sys.executable, "-c", script, str(other)],
            check=True,
            capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for name in (TENSORS, CONFIG, "README.md"):
            assert (other / "legal" / name).read_bytes() == (folder / name).read_bytes()
    assert (
        make_adapter(tmp_path / "b" / "legal", seed=2).joinpath(TENSORS).read_bytes()
        != (folder / TENSORS).read_bytes()
    )


@pytest.mark.parametrize("domain", ["mlp", "down_proj", "self_attn", "layers", "lora_a", "weight"])
def test_no_domain_name_costs_tensors(domain, tmp_path):
    """PEFT takes an adapter called ``mlp`` for a module of that name (peft#3584)."""
    folder = make_adapter(tmp_path / domain, kind="all")
    assert len(load_adapter(folder).tensors) == 2 * 28


# -- refused ---------------------------------------------------------------------------------------


def test_a_missing_tensor(folder):
    edit_tensors(folder, lambda tensors: tensors.pop(A))
    assert message(folder) == (
        f"adapter DIR: 27 of 28 tensors match its configuration, 1 missing, 0 left over; "
        f"first missing: {A}"
    )


def test_a_left_over_tensor(folder):
    edit_tensors(folder, lambda tensors: tensors.update(more=torch.zeros(4, 32)))
    assert message(folder).endswith("0 missing, 1 left over; first left over: more")


def test_a_module_that_the_configuration_does_not_name(folder):
    names = json.loads((folder / CONFIG).read_text())["target_modules"]
    edit_config(folder, target_modules=names[1:])
    assert "0 missing, 2 left over" in message(folder)


def test_fewer_modules_by_short_names_do_not_pass(folder):
    edit_config(folder, target_modules=["q_proj", "v_proj"])
    assert "0 of 4 tensors match its configuration, 4 missing, 28 left over" in message(folder)


def test_another_rank(folder):
    edit_config(folder, r=8)
    assert "has rank 4, its configuration says 8" in message(folder)


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(4), torch.zeros(4, 32, 1), torch.zeros(4, 32, dtype=torch.int32)],
    ids=["1-d", "3-d", "integers"],
)
def test_what_is_no_matrix(folder, tensor):
    edit_tensors(folder, lambda tensors: tensors.update({A: tensor}))
    assert f"{A} is no finite matrix" in message(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_on_disk(folder, value):
    edit_tensors(folder, lambda tensors: tensors[A].view(-1)[-1:].fill_(value))
    assert f"{A} is no finite matrix (torch.float32, shape [4, 32])" in message(folder)


@pytest.mark.parametrize(
    ("dtype", "value", "fits"),
    [(torch.float8_e4m3fn, 1.0, True), (torch.float64, 1.0, True), (torch.float64, 1e300, False)],
    ids=str,
)
def test_other_types_are_read_where_float32_holds_their_values(folder, dtype, value, fits):
    tensor = torch.full((4, 32), value, dtype=torch.float64).to(dtype)
    edit_tensors(folder, lambda tensors: tensors.update({A: tensor}))
    if fits:
        assert load_adapter(folder).tensors[A].dtype == dtype
    else:
        assert f"{A} is no finite matrix (torch.float64, shape [4, 32])" in message(folder)


@pytest.mark.parametrize("claimed", [0, 10**8 + 1, 2**40, 2**63, 2**64 - 1])
def test_a_header_that_claims_another_length(folder, claimed):
    data = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(claimed.to_bytes(8, "little") + data[8:])
    assert "is truncated or corrupt" in message(folder)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_not_finite_is_not_saved(tmp_path, value):
    model = tiny_model()
    placement = resolve_placement(model, "deep", 2)
    peft_model = attach_for_training(model, placement, LoraSettings(4), "tiny", 0)
    next(p for p in peft_model.parameters() if p.requires_grad).data[0, 0] = value
    with pytest.raises(AdapterError, match=r"not finite; training diverged, lower training\.learn"):
        save_adapter(peft_model, tmp_path, domain="x", fingerprint=FINGERPRINT, facts={})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_file(folder, keep):
    data = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(data[:keep])
    assert "is truncated or corrupt" in message(folder)


def test_a_header_of_nonsense(folder):
    data = bytearray((folder / TENSORS).read_bytes())
    data[8:40] = b"\xff" * 32
    (folder / TENSORS).write_bytes(bytes(data))
    assert "is truncated or corrupt" in message(folder)


@pytest.mark.parametrize("name", [TENSORS, CONFIG])
def test_a_missing_file(folder, name):
    (folder / name).unlink()
    assert message(folder) == f"DIR holds no {name}; it is not a PEFT adapter folder"


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"r": 4}', "null", "[" * 100_000])
def test_a_configuration_that_is_none(folder, text):
    (folder / CONFIG).write_text(text)
    assert "adapter_config.json is not a PEFT configuration" in message(folder)


def test_another_base(folder):
    assert message(folder, base_fingerprint="cd" * 32) == (
        "adapter DIR belongs to another base (fingerprint abababababab, this base is cdcdcdcdcdcd, "
        "'tiny' by name); load it with the base it was trained on"
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"use_dora": True}, "DoRA cannot run in a mixed batch"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save cannot run in a mixed batch"),
        ({"peft_type": "IA3"}, "IA3 cannot run in a mixed batch"),
        ({"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING cannot run in a mixed batch"),
        ({"target_modules": "all-linear"}, "target_modules must be a list of full module names"),
        ({"target_modules": None}, "target_modules must be a list of full module names"),
        ({"target_modules": [1]}, "target_modules must be a list of full module names"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' rewrites the base"),
        ({"init_lora_weights": "olora"}, "init_lora_weights 'olora' rewrites the base"),
        (
            {"layer_replication": [[0, 2], [1, 3]]},
            "layer_replication=[[0, 2], [1, 3]] is not plain",
        ),
        ({"alora_invocation_tokens": [7]}, "alora_invocation_tokens=[7] is not plain LoRA"),
        ({"bias": "all"}, 'bias="all" is not plain LoRA'),
        ({"use_marvel": 3}, "use_marvel=3 is not plain LoRA, or of a PEFT newer than"),
        ({"r": 0}, "r=0, lora_alpha=8; both must be numbers, r a whole one, 1 or more"),
        ({"r": 4.0}, "r=4.0, lora_alpha=8; both must be numbers, r a whole one, 1 or more"),
        ({"r": 4.5}, "r=4.5, lora_alpha=8; both must be numbers, r a whole one, 1 or more"),
        ({"rank_pattern": {"up_proj": 4.0}}, 'rank_pattern of "up_proj" is 4.0; it must be a whol'),
        ({"use_rslora": "no"}, 'use_rslora="no"; it must be true or false'),
        ({"lora_alpha": "8"}, "both must be numbers"),
    ],
)
def test_what_is_no_plain_lora(folder, values, expected):
    edit_config(folder, **values)
    assert expected in message(folder)


def test_pissa_would_have_changed_the_base(folder):
    """Why initialisations are looked at: PEFT applies them to the base while it loads."""
    edit_config(folder, init_lora_weights="pissa", inference_mode=False)
    model = tiny_model()
    name = "layers.3.mlp.up_proj"
    before = model.model.get_submodule(name).weight.clone()
    PeftModel.from_pretrained(model, folder)
    assert not torch.equal(model.model.get_submodule(name).base_layer.weight, before)


def test_switches_of_a_newer_peft_that_are_off_do_no_harm(folder):
    edit_config(folder, use_marvel=False, marvel_config=None, marvels=[])
    assert load_adapter(folder).rank == 4


def test_a_plain_peft_adapter_with_full_names_loads(tmp_path):
    names = resolve_placement(tiny_model(), "deep", 2).names
    foreign = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=names, use_rslora=True))
    foreign.save_pretrained(tmp_path)
    stored = load_adapter(tmp_path, base_fingerprint=FINGERPRINT)
    assert (stored.base_fingerprint, stored.rank, stored.config.use_rslora) == (None, 2, True)


def test_the_fingerprint_stands_in_the_header(folder):
    with safe_open(folder / TENSORS, framework="pt") as file:
        assert file.metadata() == {"asr_base_fingerprint": FINGERPRINT}


def test_saving_asks_nobody_for_the_base(folder, tmp_path, monkeypatch):
    """PEFT would look the base's name up on the hub, to see whether its vocabulary was changed."""

    def ask(*args, **kwargs):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", ask)
    again = make_adapter(tmp_path / "again" / "legal", kind="deep")
    assert adapter_sha256(again) == adapter_sha256(folder)
