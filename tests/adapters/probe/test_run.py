"""The probe as a whole, on tiny bases: what it measures, what it leaves alone, what it refuses."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import asr
from asr.adapters import LoraSettings, linear_modules, page_energies
from asr.adapters.probe.alignment import alignment_scores
from asr.adapters.probe.generic_text import generic_examples
from asr.adapters.probe.page import PageSettings
from asr.adapters.probe.result import ProbeResult
from asr.adapters.probe.rows import draw_rows
from asr.adapters.probe.run import probe_placement
from asr.base.fingerprint import tensors_hash
from asr.base.load import LoadedBase, load_base
from asr.data.formats import Example
from asr.data.turns import turn
from asr.errors import AdapterError, AsrError, BaseModelError, ConfigError, DataError
from tests.routed import tiny_base
from tests.wide_models import save_wide_base


@pytest.fixture(scope="module")
def base() -> LoadedBase:
    return tiny_base()[1]


def examples(name: str, count: int = 12) -> list[Example]:
    return [
        Example(
            (turn("user", f"{name} item {i} of {count}"), turn("assistant", f"{name} {i % 3}")),
            source=f"{name}.jsonl:{i + 1}",
        )
        for i in range(count)
    ]


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_figures_are_those_of_the_measurements(base: LoadedBase) -> None:
    lora = LoraSettings(rank=4, alpha=32.0, use_rslora=True)
    result = probe_placement(
        base, {"red": examples("red")}, samples=5, seeds=2, seed=3, lora=lora, batch_size=4
    )
    drawn = draw_rows(
        *("red", "examples given", examples("red"), base.tokenizer, base.template),
        **{"samples": 5, "seeds": 2, "seed": 3, "max_length": 512},
    )
    modules = linear_modules(base.model)
    page = page_energies(
        base.model, drawn.rows, modules, PageSettings(lora=lora), pad_token_id=0, batch_size=1
    )
    mean = np.mean([page.energy[list(draw)].mean(axis=0) for draw in drawn.draws], axis=0)
    scores = alignment_scores(base.model, drawn.rows, modules, pad_token_id=0)
    found = {module.name: module for module in result.modules}
    ordered = [found[module.name] for module in modules]
    np.testing.assert_allclose([m.energy for m in ordered], mean, rtol=1e-4)
    np.testing.assert_allclose([m.alignment for m in ordered], scores, rtol=1e-4)
    assert sorted(m.kappa_rank for m in ordered if m.kappa_rank) == list(range(1, 29))
    assert [m.energy for m in result.modules] == sorted(m.energy for m in ordered)[::-1]
    assert result.settings.model_dump() == {
        **{"rank": 4, "alpha": 32.0, "use_rslora": True, "init": True, "per": "sample"},
        **{"loss": "answer", "samples": 5, "seeds": 2, "max_length": 512, "batch_size": 4},
        **{"seed": 3, "dtype": "float32", "quantisation": None},
    }
    assert result.base.fingerprint == base.fingerprint
    assert (result.base.n_layers, result.base.router_layer) == (4, 2)
    assert not result.generic_text
    assert ProbeResult.model_validate_json(result.to_json()) == result


def test_per_batch_each_seed_has_batches_of_its_own(base: LoadedBase) -> None:
    result = probe_placement(
        base, {"red": examples("red")}, samples=6, seeds=2, per="batch", batch_size=3, kappa=False
    )
    drawn = draw_rows(
        *("red", "", examples("red"), base.tokenizer, base.template), **{"samples": 6, "seeds": 2}
    )
    modules = linear_modules(base.model)
    settings = PageSettings(per="batch")
    parts = [
        page_energies(
            base.model,
            [drawn.rows[place] for place in draw],
            modules,
            settings,
            pad_token_id=0,
            batch_size=3,
        ).energy
        for draw in drawn.draws
    ]
    assert [len(part) for part in parts] == [2, 2]
    mean = np.mean([part.mean(axis=0) for part in parts], axis=0)
    found = {module.name: module.energy for module in result.modules}
    np.testing.assert_allclose([found[m.name] for m in modules], mean, rtol=1e-4)
    assert result.domains[0].samples == 4
    assert {module.kappa_rank for module in result.modules} == {None}
    assert "KappaTune's rank: not asked for" in result.left_out


def test_the_base_is_as_it_was_and_a_repetition_is_equal(base: LoadedBase) -> None:
    before = tensors_hash(base.model)
    data = {"red": examples("red"), "sum": examples("sum")}
    first = probe_placement(base, data, samples=4, seeds=2)
    again = probe_placement(base, data, samples=4, seeds=2)
    assert first.model_copy(update={"seconds": 0.0}) == again.model_copy(update={"seconds": 0.0})
    assert tensors_hash(base.model) == before
    assert not any(p.requires_grad for p in base.model.parameters())
    alone = probe_placement(base, {"sum": examples("sum")}, samples=4, seeds=2)
    assert alone.domains[0] == first.domains[1]  # a domain's draws do not depend on the others


def test_files_and_names_of_bases(tmp_path: Path) -> None:
    folder, base = tiny_base()
    rows = [{"prompt": e.messages[0]["content"], "completion": e.completion} for e in examples("a")]
    path = write(tmp_path / "a.jsonl", rows)
    said: list[str] = []
    result = asr.probe_placement(
        str(folder), {"a": path}, samples=50, device="cpu", dtype="float32", say=said.append
    )
    assert result.base.fingerprint == base.fingerprint
    (domain,) = result.domains
    assert (domain.source, domain.examples, domain.samples, domain.whole) == (
        *("a.jsonl", 12, 12),
        True,
    )
    assert domain.spread_seeds is None
    assert said[-1] == "a: all 12 rows are taken, so that there is no spread over seeds"


def test_without_data_a_generic_text_is_probed(base: LoadedBase) -> None:
    seen: list[tuple[str, int, int]] = []
    result = probe_placement(
        base, samples=4, seeds=1, progress=lambda *what: seen.append(what), batch_size=4
    )
    assert result.generic_text
    assert [domain.name for domain in result.domains] == ["generic"]
    assert result.domains[0].examples == len(generic_examples())
    assert seen == [
        ("gradients of generic", 4, 4),
        ("alignment of generic", 4, 4),
        ("condition numbers", 0, 1),
        ("condition numbers", 1, 1),
    ]


def test_the_generic_text_is_varied_and_whole() -> None:
    found = generic_examples()
    assert len(found) >= 40
    assert len({example.prompt_key for example in found}) == len(found)
    assert all(example.completion.strip() for example in found)
    assert found[0].source == "generic_text.json:1"
    scripts = "".join(example.messages[0]["content"] for example in found)
    assert sum(not character.isascii() for character in scripts) > 20


def test_experts_and_unranked_modules_are_said_to_be_left_out() -> None:
    for architecture, expected in (
        ("mixtral", "experts: 3-D parameters"),
        ("gpt2", "KappaTune's rank of 16 modules: PEFT does not rank them"),
    ):
        loaded = tiny_base(architecture)[1]
        result = probe_placement(loaded, {"red": examples("red")}, samples=3, seeds=1)
        assert [what for what in result.left_out if what.startswith(expected)]
        assert not any("experts" in module.name for module in result.modules)


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
@pytest.mark.parametrize("quantisation", ["int8", "nf4"])
def test_quantised_bases_are_probed_and_come_back(tmp_path: Path, quantisation: Any) -> None:
    folder = str(save_wide_base(tmp_path))
    packed = load_base(folder, device="cpu", dtype="float32", quantisation=quantisation)
    ids = torch.arange(5, 25).unsqueeze(0)
    data = {"red": examples("red"), "sum": examples("sum")}
    with torch.no_grad():
        before = packed.model(input_ids=ids).logits
        result = probe_placement(packed, data, samples=4, seeds=2)
        assert torch.equal(packed.model(input_ids=ids).logits, before)
    whole = probe_placement(folder, data, samples=4, seeds=2, device="cpu", dtype="float32")
    expected = {module.name: module for module in whole.modules}
    for module in result.modules:
        assert module.share == pytest.approx(expected[module.name].share, rel=0.5, abs=0.005)
        assert module.alignment == pytest.approx(expected[module.name].alignment, rel=0.1)
    assert result.settings.quantisation == quantisation
    ranked = {module.kappa_rank is not None for module in result.modules}
    assert ranked == {quantisation == "nf4"}
    assert result.left_out == (
        ()
        if quantisation == "nf4"
        else ("KappaTune's rank: PEFT reads 8-bit weights without their scales",)
    )


BAD: list[tuple[dict[str, Any], type[AsrError], str]] = [
    (
        {"samples": 1},
        ConfigError,
        "samples is 1; a probe needs at least 2 to say how sure its result is",
    ),
    ({"seeds": 0}, ConfigError, "seeds is 0; it must be at least 1"),
    ({"seed": -1}, ConfigError, "seed is -1; it must be at least 0"),
    ({"batch_size": 0}, ConfigError, "batch_size is 0; it must be at least 1"),
    ({"max_length": 1}, ConfigError, "max_length is 1; it must be at least 2"),
    ({"lora": LoraSettings(rank=0)}, ConfigError, "rank is 0; it must be at least 1"),
    ({"lora": LoraSettings(alpha=0.0)}, ConfigError, "alpha is 0; it must be above 0"),
    (
        {"lora": LoraSettings(rank=4, alpha=1e200, use_rslora=True)},
        ConfigError,
        "alpha is 1e+200, so that the update is scaled by 1e+200 / sqrt(4) = 5e+199; the probe "
        "takes 1e-30 to 1e+30",
    ),
    ({"per": "row"}, ConfigError, "unknown per 'row'; there are: batch, sample"),
    (
        {"loss": "answers"},
        ConfigError,
        "unknown loss 'answers' (did you mean 'answer'?); there are: answer, full",
    ),
    (
        {"quantisation": "int4"},
        ConfigError,
        "unknown quantisation 'int4' (did you mean 'int8'?); there are: int8, nf4",
    ),
    (
        {"lora": LoraSettings(init_lora_weights="pisa")},
        ConfigError,
        "no init_lora_weights 'pisa' (did you mean 'pissa'?); there are: true, gaussian, "
        "orthogonal, mica, pissa, pissa_niter_N, olora",
    ),
    (
        {"data": {}},
        DataError,
        "there is no data to probe with; give a domain, or None for a generic text",
    ),
    (
        {"data": {"red": []}},
        DataError,
        "red: there are no examples to probe with; give at least 2",
    ),
    (
        {"max_length": 4096},
        ConfigError,
        "max_length 4096 is longer than the context of '{base}', 512; lower it",
    ),
    (
        {"max_length": 3},
        DataError,
        "red: all labels masked: none of the 12 examples fits into max_length 3 with the answer "
        "whole (the shortest needs {needed} tokens); raise max_length to at least {needed}, or "
        "give shorter answers",
    ),
    (
        {"lora": LoraSettings(rank=40, init_lora_weights="pissa")},
        AdapterError,
        "init_lora_weights pissa: 'model.layers.0.self_attn.q_proj': it takes at most rank 32 "
        "here, not 40; lower adapter.rank",
    ),
]


@pytest.mark.parametrize(("options", "kind", "message"), BAD, ids=lambda value: str(value)[:30])
def test_bad_input(
    base: LoadedBase, options: dict[str, Any], kind: type[AsrError], message: str
) -> None:
    with pytest.raises(kind) as caught:
        probe_placement(base, **{"data": {"red": examples("red")}, **options})
    text = str(caught.value)
    needed = text.partition("needs ")[2].partition(" ")[0]
    assert text == message.replace("{base}", base.name).replace("{needed}", needed)


def test_data_is_read_before_the_base_is_loaded(tmp_path: Path) -> None:
    bad = write(tmp_path / "bad.jsonl", [{"prompt": "a", "completion": ""}])
    with pytest.raises(DataError, match=r"bad\.jsonl:1: "):
        probe_placement("no such base", {"bad": bad})
    with pytest.raises(DataError, match="empty: there are no examples to probe with"):
        probe_placement("no such base", {"empty": write(tmp_path / "empty.jsonl", [])})
    with pytest.raises(BaseModelError):
        probe_placement("no such base", {"red": examples("red")})
