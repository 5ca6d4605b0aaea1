"""Rows of one batch with adapters of their own; outside of it, the base bit for bit."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import StoppingCriteria, StoppingCriteriaList

from asr.adapters import AdapterBank, adapter_sha256, load_adapter
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


def left_over(model) -> int:
    """What a block may have left in the base's modules."""
    return sum(
        len(module._forward_pre_hooks) + len(module._forward_hooks) + ("forward" in vars(module))
        for module in model.modules()
    )


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
            assert (mixed[row] - expected).abs().max() <= 1e-5 * size
            assert (mixed[row] - plain[row]).abs().max() > 1e-2 * size
    assert torch.equal(logits(model, ids, mask), plain)
    assert left_over(model) == 0
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
    refused = pytest.raises(ValueError, match="a batch of 4 rows runs with adapters for 2")
    with refused, bank.rows(["a", None]):
        logits(model, ids, mask)
    assert left_over(model) == 0


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
    assert left_over(model) == 0 and not bank.in_use
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
    assert left_over(model) == 0
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


def test_what_rows_use_stays_and_others_come_and_go_beside_it(folders):
    ids, mask = batch()
    model = tiny_model()
    bank = AdapterBank(model)
    bank.load("a", folders("llama")["deep"])
    with bank.rows(["a", "a", None, "a"]):
        before = logits(model, ids, mask)
        with pytest.raises(AdapterError, match="'a' cannot be unloaded: a batch is running"):
            bank.unload("a")
        with pytest.raises(AdapterError, match="cannot be taken off: a batch is running"):
            bank.close()
        bank.load("b", folders("llama")["all"])
        assert torch.equal(logits(model, ids, mask), before)
        bank.unload("b")
        assert torch.equal(logits(model, ids, mask), before)
    bank.unload("a")


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
    ],
)
def test_a_load_that_fails_leaves_the_bank_as_it_was(folders, tmp_path, resident, why, expected):
    ids, mask = batch()
    model = tiny_model()
    plain = logits(model, ids, mask)
    bank = AdapterBank(model, FINGERPRINT)
    if resident:
        bank.load("a", folders("llama")["deep"])
    folder = make_adapter(tmp_path / "x", "gpt2" if why == "architecture" else "llama")
    if why == "layers":
        model.model.layers = model.model.layers[:3]
        model.config.num_hidden_layers = 3
        plain = logits(model, ids, mask)
        bank, resident = AdapterBank(model, FINGERPRINT), False
    if why == "width":
        tensors = load_file(folder / "adapter_model.safetensors")
        cut_columns(tensors)
        save_file(tensors, folder / "adapter_model.safetensors")
    if why == "base":
        folder = make_adapter(tmp_path / "y", fingerprint="cd" * 32)
    with pytest.raises(AdapterError, match=expected):
        bank.load("x", folder)
    assert bank.loaded == (("a",) if resident else ())
    assert torch.equal(logits(model, ids, mask), plain)
    if resident:
        with bank.rows(["a", None, None, "a"]):
            mixed = logits(model, ids, mask)
        expected_logits = alone("llama", folders("llama")["deep"], ids, mask)
        torch.testing.assert_close(mixed[[0, 3]], expected_logits[[0, 3]], rtol=1e-5, atol=1e-5)
        bank.load("x", folders("llama")["all"])  # the name is free
        assert bank.loaded == ("a", "x")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"lora_dropout": "x"}, 'lora_dropout="x"; it must be from 0 to 1'),
        ({"exclude_modules": "("}, r'exclude_modules "\(" is no regular expression'),
        (
            {"exclude_modules": ["up_proj"]},
            "exclude_modules leaves out 'model.layers.2.mlp.up_proj', which target_modules names",
        ),
    ],
)
def test_what_peft_would_read_otherwise_is_an_error_of_ours(folders, tmp_path, values, expected):
    folder = make_adapter(tmp_path / "x")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(AdapterError, match=expected):
        AdapterBank(tiny_model()).load("x", folder)


def test_leaving_the_bank_closes_it(folders):
    with AdapterBank(tiny_model()) as bank:
        bank.load("a", folders("llama")["deep"])
        assert bank.loaded == ("a",)
    assert bank.loaded == ()


# -- the budget ------------------------------------------------------------------------------------


def test_beyond_the_budget_the_least_recently_used_leaves(folders, tmp_path):
    places = {name: make_adapter(tmp_path / name, seed=i) for i, name in enumerate("abcd", 1)}
    bank = AdapterBank(tiny_model())
    bank.load("a", places["a"])
    size = bank.nbytes
    bank.budget = 2 * size
    bank.load("b", places["b"])
    with bank.rows(["a"]):
        pass  # a is the most recently used now
    bank.load("c", places["c"])
    assert bank.loaded == ("a", "c") and bank.nbytes == 2 * size
    assert (bank.loads, bank.evictions) == (3, 1)
    bank.pin("a")
    bank.pin("c")
    assert not bank.has_room(size)
    bank.load("d", places["d"])  # a batch that needs more than the budget gets it
    assert bank.loaded == ("a", "c", "d") and bank.nbytes == 3 * size
    bank.unpin("a")
    assert bank.has_room(size)
    bank.load("b", places["b"])
    assert bank.loaded == ("c", "b")
    with pytest.raises(ValueError, match="adapter 'b' is not pinned"):
        bank.unpin("b")


def test_an_adapter_that_comes_back_from_disk_answers_as_before(folders, tmp_path):
    ids, mask = batch()
    places = {name: make_adapter(tmp_path / name, seed=i) for i, name in enumerate("abc", 1)}
    bank = AdapterBank(tiny_model(), budget=1)
    found = {}
    for name in "abcabc":
        if name not in bank.loaded:
            bank.load(name, places[name], adapter_sha256(places[name]))
        with bank.rows([name, None, name, None]):
            answer = logits(bank.model, ids, mask)
        assert torch.equal(found.setdefault(name, answer), answer)
        assert bank.loaded == (name,)
    assert not torch.equal(found["a"], found["b"])


def test_a_file_that_was_changed_is_refused(folders, tmp_path):
    folder = make_adapter(tmp_path / "x")
    with pytest.raises(AdapterError, match="adapter 'x' was changed since training"):
        AdapterBank(tiny_model()).load("x", folder, "0" * 64)
