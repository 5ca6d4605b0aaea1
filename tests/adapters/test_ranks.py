"""Adapters whose modules have ranks of their own: attached, saved, loaded, converted, mixed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.other import get_pattern_key

from asr.adapters import (
    AdapterBank,
    LinearModule,
    LoraSettings,
    Placement,
    attach_for_training,
    detach,
    linear_modules,
    load_adapter,
    load_initial,
    save_adapter,
)
from asr.adapters.lora import exact_pattern
from asr.base.fingerprint import tensors_hash
from asr.errors import AdapterError
from tests.adapters.making import FINGERPRINT, ROUTER_LAYER, batch, logits, make_adapter, randomise
from tests.adapters.test_conversion import move
from tests.tiny_models import tiny_model


def ranked(model: Any, ranks: tuple[int, ...] = (2, 6, 4), last: int = 1) -> Placement:
    """The last modules of the model, with these ranks."""
    modules = linear_modules(model)
    chosen = tuple(modules[len(modules) - len(ranks) - last : len(modules) - last])
    return Placement("dominant", chosen, ROUTER_LAYER, ranks)


def attach(model: Any, settings: LoraSettings, placement: Placement | None = None) -> Any:
    return attach_for_training(model, placement or ranked(model), settings, "tiny", 3)


def save(peft_model: Any, folder: Path) -> Path:
    folder.mkdir()
    save_adapter(peft_model, folder, domain="a", fingerprint=FINGERPRINT, facts={})
    return folder


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi3"])
def test_every_module_gets_its_rank_and_the_common_scale(architecture: str, rslora: bool) -> None:
    model = tiny_model(architecture)
    placement = ranked(model)
    peft_model = attach(model, LoraSettings(8, 12.0, use_rslora=rslora))
    for module, rank in zip(placement.modules, (2, 6, 4), strict=True):
        layer = model.get_submodule(module.name)
        assert isinstance(layer, LoraLayer)
        assert layer.r == {"default": rank}
        assert layer.lora_A["default"].weight.shape == (rank, module.in_features)
        # alpha / rank of the settings everywhere; with rsLoRA alpha / root of the module's own
        expected = 12 / math.sqrt(rank) if rslora else 12 / 8
        assert layer.scaling["default"] == pytest.approx(expected, rel=1e-12)
    trainable = sum(p.numel() for p in peft_model.parameters() if p.requires_grad)
    assert trainable == placement.parameters(8) == sum(
        rank * (m.in_features + m.out_features)
        for m, rank in zip(placement.modules, (2, 6, 4), strict=True)
    )  # fmt: skip


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(
    ("architecture", "start"),
    [
        ("llama", True),
        ("llama", "mica"),
        ("llama", "orthogonal"),
        ("llama", "pissa"),
        ("llama", "olora"),
        ("gpt2", "gaussian"),
        ("gpt2", "pissa_niter_2"),
    ],
)
@pytest.mark.filterwarnings("ignore:Using Rank-Stabilized LoRA with rank_pattern")
def test_the_saved_adapter_is_the_trained_one(
    tmp_path: Path, architecture: str, start: Any, rslora: bool
) -> None:
    model = tiny_model(architecture)
    frozen = tensors_hash(model)
    ids, mask = batch()
    settings = LoraSettings(4, 6.0, use_rslora=rslora, init_lora_weights=start)
    placement = ranked(model)
    peft_model = attach(model, settings)
    move(peft_model)
    trained = logits(peft_model, ids, mask)
    folder = save(peft_model, tmp_path / "a")
    detach(peft_model)
    assert tensors_hash(model) == frozen

    stored = load_adapter(folder, base_fingerprint=FINGERPRINT)
    times = settings.saved_times
    assert times == (2 if start in ("pissa", "olora", "pissa_niter_2") else 1)
    assert stored.rank == 6 * times
    assert [stored.rank_of(name) for name in placement.names] == [2 * times, 6 * times, 4 * times]
    scales = [6 / math.sqrt(rank) if rslora else 6 / 4 for rank in (2, 6, 4)]
    assert [stored.scaling(name) for name in placement.names] == pytest.approx(scales)
    assert sum(t.numel() for t in stored.tensors.values()) == placement.parameters(4) * times
    readme = (folder / "README.md").read_text()
    assert f"- ranks {2 * times} to {6 * times}, alpha " in readme

    in_peft = PeftModel.from_pretrained(tiny_model(architecture), str(folder)).eval()
    torch.testing.assert_close(logits(in_peft, ids, mask), trained, rtol=1e-3, atol=1e-3)


def test_an_engine_that_knows_one_scale_computes_the_same(tmp_path: Path) -> None:
    folder = save(attach(tiny_model(), LoraSettings(8, 12.0)), tmp_path / "a")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (6, 9)
    for key, rank in config["rank_pattern"].items():
        assert config["alpha_pattern"][key] / rank == 9 / 6
    assert sorted(config["rank_pattern"].values()) == [2, 4]


def test_adapters_of_different_ranks_share_a_batch(tmp_path: Path) -> None:
    folders = {"deep": make_adapter(tmp_path / "deep")}
    for name, ranks, last in (("few", (3,), 1), ("some", (2, 6, 4), 1), ("more", (1, 5, 5, 2), 0)):
        model = tiny_model()
        peft_model = attach(model, LoraSettings(4, 8.0), ranked(model, ranks, last))
        randomise(peft_model, len(ranks))
        folders[name] = save(peft_model, tmp_path / name)
    ids, mask = batch(rows=5)
    model = tiny_model()
    plain = logits(model, ids, mask)
    rows = ["some", "more", None, "deep", "few"]
    with AdapterBank(model, FINGERPRINT) as bank:
        for name, folder in folders.items():
            bank.load(name, folder)
        with bank.rows(rows):
            mixed = logits(model, ids, mask)
    for row, name in enumerate(rows):
        expected = plain
        if name is not None:
            alone = PeftModel.from_pretrained(tiny_model(), str(folders[name])).eval()
            expected = logits(alone, ids, mask)
            assert (expected[row] - plain[row]).abs().max() > 0.05
        torch.testing.assert_close(mixed[row], expected[row], rtol=1e-5, atol=1e-5)


def test_a_new_adapter_starts_as_a_copy(tmp_path: Path) -> None:
    saved = attach(tiny_model(), LoraSettings(4, 8.0))
    randomise(saved, 1)
    folder = save(saved, tmp_path / "a")
    ids, mask = batch()
    # another scale: the function is the same, module by module
    for settings in (LoraSettings(4, 8.0), LoraSettings(2, 2.0), LoraSettings(4, 8.0, 0.0, True)):
        fresh = attach(tiny_model(), settings).eval()
        load_initial(fresh, folder, base_fingerprint=FINGERPRINT)
        torch.testing.assert_close(
            logits(fresh, ids, mask), logits(saved.eval(), ids, mask), rtol=1e-4, atol=1e-4
        )
    model = tiny_model()
    name = ranked(model).names[0]
    with pytest.raises(AdapterError) as caught:
        load_initial(attach(model, LoraSettings(4), ranked(model, (3, 6, 4))), folder)
    assert str(caught.value) == (
        f"the new adapter has rank 3 on '{name}', the one it would start from ({folder}) rank 2; "
        "give both the same adapter.placement, or start from another"
    )


def test_a_variant_is_checked_at_each_modules_own_rank() -> None:
    model = tiny_model()
    placement = ranked(model, (2, 6, 3))
    with pytest.raises(AdapterError) as caught:
        attach(model, LoraSettings(4, init_lora_weights="orthogonal"), placement)
    assert str(caught.value) == (
        f"init_lora_weights orthogonal: '{placement.names[2]}': it needs an even rank, not 3; use 4"
    )


def test_a_pattern_means_one_module() -> None:
    name = "layers.1.fc"
    pattern = exact_pattern(name)
    for other in ("layers.11.fc", "layers.1.sub.layers.1.fc", "layersx1xfc", "layers.1.fcc"):
        assert get_pattern_key([pattern], other) == other
    assert get_pattern_key([pattern], name) == pattern
    # which a plain name would not be
    assert get_pattern_key([name], "layers.1.sub.layers.1.fc") == name


def test_placements_count_their_own_ranks() -> None:
    modules = (LinearModule("a", 0, 3, 5), LinearModule("b", 4, 3, 7))
    common, own = Placement("deep", modules, 2), Placement("dominant", modules, 2, (1, 4))
    assert (common.ranks_at(2), common.largest_rank(2), common.parameters(2)) == ((2, 2), 2, 36)
    assert (own.ranks_at(2), own.largest_rank(2), own.parameters(2)) == ((1, 4), 4, 48)
    assert common.alike(Placement("modules", modules, 1))
    assert not common.alike(own)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank_pattern": {"up_proj": 2}}, "up_proj.lora_A.weight has rank 4, its configuration "
         "says 2"),
        ({"rank_pattern": [2]}, "rank_pattern must be a mapping of module names"),
        ({"rank_pattern": {"x": 0}}, 'rank_pattern of "x" is 0; it must be a whole number, 1 or '
         "more"),
        ({"rank_pattern": {"x": 1.5}}, 'rank_pattern of "x" is 1.5; it must be a whole number'),
        ({"alpha_pattern": {"x": "8"}}, 'alpha_pattern of "x" is "8"; it must be a number'),
        ({"alpha_pattern": {"(": 8}}, 'alpha_pattern: "(" is no regular expression (missing )'),
    ],
)  # fmt: skip
def test_bad_patterns(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    folder = make_adapter(tmp_path / "a")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(AdapterError) as caught:
        load_adapter(folder)
    assert message in str(caught.value)
