"""Rows of one batch with adapters of their own; outside of it, the base bit for bit."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from peft.tuners import lora
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import StoppingCriteria, StoppingCriteriaList

from asr.adapters import AdapterBank, load_adapter
from asr.base.fingerprint import tensors_hash
from asr.errors import AdapterError
from tests.adapters.making import FINGERPRINT, batch, logits, make_adapter
from tests.tiny_models import ARCHITECTURES, tiny_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Per architecture three adapters that differ in placement, rank and alpha."""
    made = {}

    def get(architecture):
        if architecture not in made:
            root = tmp_path_factory.mktemp(architecture)
            one = ["model.layers.3.mlp.down_proj"] if architecture == "llama" else None
            made[architecture] = {
                "deep": make_adapter(root / "deep", architecture, "deep", 4, 8.0, 1),
                "all": make_adapter(root / "all", architecture, "all", 2, 3.0, 2),
                "mlp": make_adapter(
                    root / "mlp", architecture, {"modules": one} if one else "deep", 8, 40.0, 3
                ),
            }
        return made[architecture]

    return get


def alone(architecture, folder, ids, mask):
    """PEFT's own forward of a fresh base with this adapter and no other."""
    peft_model = PeftModel.from_pretrained(tiny_model(architecture), folder).eval()
    return logits(peft_model, ids, mask)


def pre_hooks(model) -> int:
    return sum(len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_mixed_rows_equal_each_adapter_alone(architecture, folders):
    ids, mask = batch(rows=5)
    model = tiny_model(architecture)
    plain, frozen = logits(model, ids, mask), tensors_hash(model)
    before = dict(model.named_modules())
    bank = AdapterBank(model, FINGERPRINT)
    for name, folder in folders(architecture).items():
        bank.load(name, folder)
        assert torch.equal(logits(model, ids, mask), plain)
    rows = ["deep", None, "all", "mlp", "deep"]
    with bank.rows(rows):
        mixed = logits(model, ids, mask)
    for row, name in enumerate(rows):
        if name is None:
            assert torch.equal(mixed[row], plain[row])
        else:
            expected = alone(architecture, folders(architecture)[name], ids, mask)[row]
            size = expected.abs().max()
            assert (mixed[row] - expected).abs().max() <= 1e-6 * size
            assert (mixed[row] - plain[row]).abs().max() > 1e-2 * size
    assert torch.equal(logits(model, ids, mask), plain)
    assert pre_hooks(model) == 0
    bank.close()
    after = dict(model.named_modules())
    assert after.keys() == before.keys() and all(after[n] is m for n, m in before.items())
    assert tensors_hash(model) == frozen
    assert torch.equal(logits(model, ids, mask), plain)


def test_one_batch_of_one_token_rows_and_flattened_rows(folders):
    """OPT's feed-forward sees (rows * tokens, features): two rows of two tokens are four."""
    ids, mask = torch.tensor([[7, 8], [9, 10]]), torch.ones(2, 2, dtype=torch.long)
    for architecture in ("opt", "llama"):
        model = tiny_model(architecture)
        bank = AdapterBank(model)
        bank.load("a", folders(architecture)["deep"])
        for width in (1, 2):
            part, ones = ids[:, :width], mask[:, :width]
            with bank.rows([None, "a"]):
                mixed = logits(model, part, ones)
            assert torch.equal(mixed[0], logits(model, part, ones)[0])
            expected = alone(architecture, folders(architecture)["deep"], part, ones)[1]
            torch.testing.assert_close(mixed[1], expected, rtol=1e-5, atol=1e-5)


def test_a_batch_of_another_size_is_an_error_and_not_another_adapter(folders):
    model = tiny_model()
    bank = AdapterBank(model)
    bank.load("a", folders("llama")["deep"])
    ids, mask = batch(rows=4)
    with pytest.raises(ValueError, match="adapter_names"), bank.rows(["a", None]):
        logits(model, ids, mask)
    assert pre_hooks(model) == 0


# -- after an exception ----------------------------------------------------------------------------


class Raising(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        raise RuntimeError("stop")


def test_a_generation_that_raises_leaves_the_base(folders):
    """peft#3475: PEFT leaves its hooks, and the next call answers with the adapters before."""
    ids, mask = batch()
    model = tiny_model()
    plain = logits(model, ids, mask)
    bank = AdapterBank(model)
    bank.load("a", folders("llama")["deep"])
    bank.load("b", folders("llama")["all"])
    with pytest.raises(RuntimeError, match="stop"), bank.rows(["a", "b", None, "a"]):
        model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=2,
            stopping_criteria=StoppingCriteriaList([Raising()]),
        )
    assert pre_hooks(model) == 0 and not bank.in_use
    assert torch.equal(logits(model, ids, mask), plain)
    with bank.rows(["b"] * 4):
        after = logits(model, ids, mask)
    expected = alone("llama", folders("llama")["all"], ids, mask)
    torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-5)


def test_a_forward_that_raises_halfway_leaves_the_base(folders):
    ids, mask = batch()
    model = tiny_model()
    plain = logits(model, ids, mask)
    bank = AdapterBank(model)
    bank.load("a", folders("llama")["all"])

    def fail(module, args):
        raise KeyboardInterrupt

    handle = model.model.layers[3].mlp.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt), bank.rows(["a"] * 4):
        logits(model, ids, mask)
    handle.remove()
    assert pre_hooks(model) == 0
    assert torch.equal(logits(model, ids, mask), plain)


# -- one batch at a time ---------------------------------------------------------------------------


@pytest.mark.parametrize("outer", [["a"], [None]])
@pytest.mark.parametrize("inner", [["b"], [None]])
def test_nested_rows_are_refused_even_for_the_base(folders, outer, inner):
    """An inner block of base rows would have run with the outer block's adapters."""
    bank = AdapterBank(tiny_model())
    bank.load("a", folders("llama")["deep"])
    bank.load("b", folders("llama")["all"])
    with bank.rows(outer):
        refused = pytest.raises(AdapterError, match=r"^rows\(\) cannot be nested: a batch is run")
        with refused, bank.rows(inner):
            pass
        assert bank.in_use
    assert not bank.in_use


def test_nothing_changes_under_a_running_batch(folders):
    """Loading switches every adapter off: the running rows would go on as the base."""
    ids, mask = batch()
    model = tiny_model()
    bank = AdapterBank(model)
    bank.load("a", folders("llama")["deep"])
    with bank.rows(["a"] * 4):
        before = logits(model, ids, mask)
        with pytest.raises(AdapterError, match="'b' cannot be loaded: a batch is running"):
            bank.load("b", folders("llama")["all"])
        with pytest.raises(AdapterError, match="'a' cannot be unloaded: a batch is running"):
            bank.unload("a")
        with pytest.raises(AdapterError, match="cannot be taken off: a batch is running"):
            bank.close()
        assert torch.equal(logits(model, ids, mask), before)


# -- loading and unloading -------------------------------------------------------------------------


def test_unknown_names(folders):
    bank = AdapterBank(tiny_model())
    with (
        pytest.raises(AdapterError, match="unknown adapter 'legal'; there are: none"),
        bank.rows(["legal"]),
    ):
        pass
    bank.load("legal", folders("llama")["deep"])
    expected = r"unknown adapter 'lagal' \(did you mean 'legal'\?\); there are: legal"
    with pytest.raises(AdapterError, match=expected), bank.rows([None, "lagal"]):
        pass
    with pytest.raises(AdapterError, match=expected):
        bank.unload("lagal")
    with pytest.raises(AdapterError, match="'legal' is loaded already; unload it first"):
        bank.load("legal", folders("llama")["all"])


def test_unloading_leaves_the_others_and_the_last_gives_the_base_back(folders):
    ids, mask = batch()
    model = tiny_model()
    plain = logits(model, ids, mask)
    before = dict(model.named_modules())
    bank = AdapterBank(model)
    for name in ("deep", "all", "mlp"):
        bank.load(name, folders("llama")[name])
    assert bank.loaded == ("deep", "all", "mlp")
    assert bank.sha256("all") == load_adapter(folders("llama")["all"]).sha256
    bank.unload("deep")
    assert torch.equal(logits(model, ids, mask), plain)
    with bank.rows(["mlp", None, "all", "mlp"]):
        mixed = logits(model, ids, mask)
    expected = alone("llama", folders("llama")["mlp"], ids, mask)
    torch.testing.assert_close(mixed[[0, 3]], expected[[0, 3]], rtol=1e-5, atol=1e-5)
    bank.load("deep", folders("llama")["deep"])  # again, under its old name
    with bank.rows(["deep"] * 4):
        again = logits(model, ids, mask)
    expected = alone("llama", folders("llama")["deep"], ids, mask)
    torch.testing.assert_close(again, expected, rtol=1e-5, atol=1e-5)
    for name in ("deep", "all", "mlp"):
        bank.unload(name)
    assert bank.loaded == ()
    assert all(module is before[name] for name, module in model.named_modules())


@pytest.mark.parametrize("name", ["mlp", "down_proj", "self_attn", "layers", "model", "lora_a"])
def test_names_of_modules_are_names_of_adapters_too(folders, name):
    ids, mask = batch()
    model = tiny_model()
    bank = AdapterBank(model)
    bank.load("other", folders("llama")["all"])
    bank.load(name, folders("llama")["deep"])
    with bank.rows([name, "other", None, name]):
        mixed = logits(model, ids, mask)
    expected = alone("llama", folders("llama")["deep"], ids, mask)
    torch.testing.assert_close(mixed[[0, 3]], expected[[0, 3]], rtol=1e-5, atol=1e-5)


def cut_columns(tensors):
    for name in list(tensors):
        if name.endswith("lora_A.weight") and "up_proj" in name:
            tensors[name] = tensors[name][:, :16].contiguous()


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize(
    ("why", "expected"),
    [
        ("architecture", "the base has no linear module 'transformer.h.2.attn.c_attn'"),
        ("layers", r"the base has no linear module 'model.layers.3"),
        ("width", "'model.layers.2.mlp.up_proj' maps 16 to 48 features, the base's maps 32 to 48"),
        ("base", "belongs to another base"),
        ("late", "disk on fire"),
    ],
)
def test_a_load_that_fails_leaves_the_bank_as_it_was(
    folders, tmp_path, monkeypatch, resident, why, expected
):
    ids, mask = batch()
    model = tiny_model()
    plain = logits(model, ids, mask)
    bank = AdapterBank(model, FINGERPRINT)
    if resident:
        bank.load("a", folders("llama")["deep"])
    folder = make_adapter(tmp_path / "x", "gpt2" if why == "architecture" else "llama")
    if why == "layers":
        bank.model.model.layers = bank.model.model.layers[:3]
        bank.model.config.num_hidden_layers = 3
        plain = logits(model, ids, mask)
    if why == "width":
        tensors = load_file(folder / "adapter_model.safetensors")
        cut_columns(tensors)
        save_file(tensors, folder / "adapter_model.safetensors")
    if why == "base":
        folder = make_adapter(tmp_path / "y", fingerprint="cd" * 32)
    with monkeypatch.context() as patch:
        if why == "late":  # after PEFT has wrapped the modules

            def fail(*args, **kwargs):
                raise AdapterError("disk on fire")

            patch.setattr("asr.adapters.bank.set_peft_model_state_dict", fail)
        with pytest.raises(AdapterError, match=expected):
            bank.load("x", folder)
    assert bank.loaded == (("a",) if resident else ())
    assert torch.equal(logits(model, ids, mask), plain)
    if not resident:
        assert not any(isinstance(module, LoraLayer) for module in model.modules())
    elif why != "layers":
        with bank.rows(["a", None, None, "a"]):
            mixed = logits(model, ids, mask)
        expected_logits = alone("llama", folders("llama")["deep"], ids, mask)
        torch.testing.assert_close(mixed[[0, 3]], expected_logits[[0, 3]], rtol=1e-5, atol=1e-5)
        bank.load("x", folders("llama")["all"])  # the name is free
        assert bank.loaded == ("a", "x")


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("resident", [True, False])
def test_a_load_that_fails_between_two_modules_leaves_none_of_them(
    folders, monkeypatch, resident, error
):
    """PEFT would keep what it has attached so far, and a later adapter of the name inherit it."""
    ids, mask = batch()
    model = tiny_model()
    plain = logits(model, ids, mask)
    bank = AdapterBank(model, FINGERPRINT)
    if resident:
        bank.load("a", folders("llama")["mlp"])
    attached = []

    def update_layer(layer, *args, **kwargs):
        attached.append(layer)
        if len(attached) == 5:
            raise error
        return whole(layer, *args, **kwargs)

    with monkeypatch.context() as patch:
        whole = LoraLayer.update_layer
        for kind in (LoraLayer, lora.Linear):
            patch.setattr(kind, "update_layer", update_layer)
        with pytest.raises(error):
            bank.load("x", folders("llama")["all"])
    assert len(attached) == 5
    assert bank.loaded == (("a",) if resident else ())
    assert not any("domain__x" in name for name, _ in model.named_parameters())
    assert any(isinstance(module, LoraLayer) for module in model.modules()) == resident
    assert torch.equal(logits(model, ids, mask), plain)
    bank.load("x", folders("llama")["mlp"])
    with bank.rows(["x"] * 4):
        found = logits(model, ids, mask)
    expected = alone("llama", folders("llama")["mlp"], ids, mask)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("values", [{"lora_dropout": "x"}, {"exclude_modules": "("}])
def test_what_peft_cannot_read_is_an_error_of_ours(folders, tmp_path, values):
    folder = make_adapter(tmp_path / "x")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    model = tiny_model()
    with pytest.raises(AdapterError, match=r"x cannot be attached to the base: '?[>m].*"):
        AdapterBank(model).load("x", folder)
    assert not any(isinstance(module, LoraLayer) for module in model.modules())


def test_leaving_the_bank_closes_it(folders):
    model = tiny_model()
    with AdapterBank(model) as bank:
        bank.load("a", folders("llama")["deep"])
        assert any(isinstance(module, LoraLayer) for module in model.modules())
    assert not any(isinstance(module, LoraLayer) for module in model.modules())
