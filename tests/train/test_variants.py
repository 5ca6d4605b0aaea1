"""LoRA variants and quantised bases from a config to a routed model."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

import asr
from asr.adapters import load_adapter
from asr.base.fingerprint import tensors_hash
from asr.base.load import load_base
from asr.base.quantisation import Quantisation
from asr.errors import AdapterError, BaseModelError, ConfigError
from asr.model.manifest import Manifest
from asr.train.config_file import build_config
from tests.adapters.making import batch, logits
from tests.train.conftest import Recorder, Workshop, assert_equal_runs
from tests.wide_models import save_wide_base

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes"
)
PROMPTS = ["Say the colour of it.\nred 3 9", "Add the numbers.\nsum 1 2"]


def stop_at(domain: str, step: int) -> Any:
    def at(now: str, count: int) -> None:
        if (now, count) == (domain, step):
            raise KeyboardInterrupt

    return at


def test_domains_of_different_variants_share_a_base_and_a_batch(shop: Workshop) -> None:
    domains: dict[str, dict[str, Any]] = {
        "red": {"adapter": {"init_lora_weights": "pissa"}},
        "sum": {"adapter": {"use_rslora": True, "init_lora_weights": "olora"}},
        "turn": {"adapter": {"init_lora_weights": "gaussian"}},
    }
    watcher = Recorder()
    out = shop.train("m", domains, watcher=watcher)
    manifest = Manifest.load(out.path)
    assert out.verify(manifest) == []
    ranks = {name: entry.adapter.rank for name, entry in manifest.domains.items() if entry.adapter}
    assert ranks == {"red": 4, "sum": 4, "turn": 2}
    for name, entry in manifest.domains.items():
        stored = load_adapter(out.adapter(name))
        assert entry.adapter is not None
        assert entry.adapter.parameters == sum(t.numel() for t in stored.tensors.values())
    placement = manifest.domains["sum"].placement
    assert (placement["rank"], placement["use_rslora"], placement["init_lora_weights"]) == (
        2, True, "olora",
    )  # fmt: skip
    assert "use_rslora" not in manifest.domains["red"].placement
    assert [line for line in watcher.said if "twice" in line] == [
        f"{name}: trains over a rewritten base, which is given back; the adapter is saved as plain "
        "LoRA of rank 4, twice 2"
        for name in ("pissa", "olora")
    ]

    model = asr.RoutedModel.from_pretrained(out.path, device="cpu", dtype="float32")
    assert [a.adapter for a in model.generate(PROMPTS)] == ["red", "sum"]
    ids, mask = batch(rows=3)
    for name in manifest.domains:
        model.bank.load(name, out.adapter(name)) if name not in model.bank.loaded else None
    with model.bank.rows(["turn", "red", "sum"]):
        mixed = logits(model.base.model, ids, mask)
    for row, name in enumerate(["turn", "red", "sum"]):
        plain = load_base(str(shop.base), device="cpu", dtype="float32").model
        alone = logits(PeftModel.from_pretrained(plain, str(out.adapter(name))), ids, mask)
        torch.testing.assert_close(mixed[row], alone[row], rtol=1e-4, atol=1e-4)


def test_a_run_stopped_over_a_rewritten_base_ends_the_same(shop: Workshop) -> None:
    settings = {"adapter__init_lora_weights": "pissa", "adapter__dropout": 0.1}
    whole = shop.train("whole", ["red", "sum"], **settings)
    with pytest.raises(KeyboardInterrupt):
        shop.train("cut", ["red", "sum"], watcher=Recorder(stop_at("sum", 3)), **settings)
    cut = shop.train("cut", ["red", "sum"], resume=True, **settings)
    assert_equal_runs(whole, cut)


def test_a_finished_domain_keeps_its_variant(shop: Workshop) -> None:
    shop.train("m", ["red"])
    with pytest.raises(ConfigError) as caught:
        shop.train("m", ["red"], resume=True, adapter__init_lora_weights="pissa")
    assert str(caught.value) == (
        "cannot resume: domain 'red' is finished and placement.init_lora_weights changed: not set "
        "-> pissa; undo the change, or train into a new folder"
    )


def test_what_a_module_rules_out_is_said_before_anything_is_trained(shop: Workshop) -> None:
    watcher = Recorder()
    with pytest.raises(AdapterError, match=r"^init_lora_weights orthogonal: .* needs an even rank"):
        shop.train("m", ["red"], adapter__init_lora_weights="orthogonal", adapter__rank=3,
                   watcher=watcher)  # fmt: skip
    assert watcher.steps == []


def test_a_copy_and_an_initialisation_exclude_each_other(shop: Workshop) -> None:
    domains = {"red": {}, "sum": {"adapter": {"init_from": "red", "init_lora_weights": "pissa"}}}
    with pytest.raises(ConfigError) as caught:
        shop.train("m", domains)
    assert str(caught.value) == (
        "config: domains.sum.adapter: a copy (init_from red) has no start of its own "
        "(init_lora_weights pissa); set one of them"
    )


@pytest.mark.parametrize(
    ("adapter", "text"),
    [
        ({"use_dora": True}, "config: adapter: use_dora is not offered: DoRA rescales "),
        ({"lora_alpha": 8}, "config: adapter: lora_alpha is called alpha here"),
        ({"init_lora_weights": "corda"},
         "config: adapter.init_lora_weights: init_lora_weights corda is refused: it decomposes "),
        ({"init_lora_weights": 3}, "config: adapter.init_lora_weights: true or a name: gaussian, "),
        ({"use_rslora": 1}, "config: adapter.use_rslora: got 1, expected true or false"),
    ],
)  # fmt: skip
def test_the_config_refuses_by_name(adapter: dict[str, Any], text: str) -> None:
    raw = {"base": "b", "adapter": adapter, "domains": {"red": {"train": "/x"}}}
    with pytest.raises(ConfigError) as caught:
        build_config(raw)
    assert str(caught.value).startswith(text)


def test_the_variant_survives_the_manifest(shop: Workshop) -> None:
    config = shop.config(["red"], adapter__init_lora_weights="pissa_niter_4")
    again = build_config(json.loads(json.dumps(config.plain())))
    assert again.domains["red"].adapter.init_lora_weights == "pissa_niter_4"
    assert build_config(config.plain() | {"adapter": {}}).adapter.init_lora_weights is True


# -- quantised bases -------------------------------------------------------------------------------


@pytest.fixture
def wide(tmp_path: Path) -> Workshop:
    return Workshop(save_wide_base(tmp_path / "base"), tmp_path)


@needs_bitsandbytes
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantised_base_is_trained_on_resumed_routed_and_generated_with(
    wide: Workshop, kind: Quantisation
) -> None:
    whole = wide.train("whole", ["red", "sum"], quantisation=kind)
    with pytest.raises(KeyboardInterrupt):
        wide.train("m", ["red", "sum"], quantisation=kind, watcher=Recorder(stop_at("sum", 3)))
    out = wide.train("m", ["red", "sum"], resume=True, quantisation=kind)
    assert_equal_runs(whole, out)
    manifest = Manifest.load(out.path)
    assert manifest.numeric.quantisation == kind

    said: list[str] = []
    model = asr.RoutedModel.from_pretrained(
        out.path, device="cpu", dtype="float32", say=said.append
    )
    assert said[0].endswith(f", {kind}") and len(said) == 1  # canaries agree: the base is the same
    frozen = tensors_hash(model.base.model)
    answers = model.generate(PROMPTS)
    assert [answer.adapter for answer in answers] == ["red", "sum"]
    assert [decision.domain for decision in model.route(PROMPTS)] == ["red", "sum"]
    model.close()
    assert tensors_hash(model.base.model) == frozen

    said.clear()
    plain = asr.RoutedModel.from_pretrained(
        out.path, device="cpu", dtype="float32", quantisation="none", say=said.append
    )
    assert all(kind in line for line in said[1:])  # a shift that matters says what to load with
    assert plain.base.quantisation is None
    assert next(plain.base.model.parameters()).dtype is torch.float32


@needs_bitsandbytes
def test_another_quantisation_is_no_resume(wide: Workshop) -> None:
    wide.train("m", ["red"], quantisation="int8")
    with pytest.raises(ConfigError) as caught:
        wide.train("m", ["red", "sum"], resume=True)
    assert str(caught.value) == (
        "cannot resume: quantisation changed: int8 -> null, and domain 'red' is finished with it; "
        "undo the change, or train into a new folder"
    )


@needs_bitsandbytes
def test_a_base_that_arrives_quantised_is_recorded(wide: Workshop) -> None:
    made = load_base(str(wide.base), device="cpu", dtype="float32", quantisation="nf4")
    folder = wide.folder / "small"
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    out = wide.train("m", ["red"], base=str(folder))
    assert Manifest.load(out.path).numeric.quantisation == "nf4"
    model = asr.RoutedModel.from_pretrained(out.path, device="cpu", dtype="float32")
    assert model.base.quantisation == "nf4"


@needs_bitsandbytes
def test_a_base_that_cannot_run_quantised_is_refused_before_training(shop: Workshop) -> None:
    watcher = Recorder()
    with pytest.raises(BaseModelError, match="cannot run in 4 bits on the CPU"):
        shop.train("m", ["red"], quantisation="nf4", watcher=watcher)
    assert watcher.steps == []
