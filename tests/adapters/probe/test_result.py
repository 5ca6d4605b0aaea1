"""A probe's result: written whole or not at all, read strictly, and looked up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from asr.adapters.probe.result import ProbeResult
from asr.errors import AdapterError, StorageError
from tests.adapters.probe.probed import FINGERPRINT, measured, modules_of, result_of


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    result = result_of(kappa=[*range(1, 12), None], left_out=["something"], init="gaussian")
    path = tmp_path / "probe.json"
    path.write_text("an earlier one")
    result.save(path)
    assert ProbeResult.load(path) == result
    assert [found.name for found in tmp_path.iterdir()] == ["probe.json"]
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    assert path.stat().st_mode == ordinary.stat().st_mode


def test_ranking_by_layer() -> None:
    result = result_of()
    assert result.winner.name == "model.layers.2.mlp.down_proj"
    assert [m.energy for m in result.ranking()] == sorted(
        (m.energy for m in result.modules), reverse=True
    )
    deep = result.ranking(3)
    assert {module.layer for module in deep} == {3}
    assert deep[0].name == "model.layers.3.mlp.down_proj"
    assert result.position(deep[0].name) == 2
    assert [m.module() for m in sorted(deep, key=lambda m: m.energy)] == modules_of()[9:]
    with pytest.raises(AdapterError) as caught:
        result.ranking(4)
    assert str(caught.value) == (
        "the probe of 'tiny' has no module in layers >= 4; its 4 layers are 0 to 3"
    )
    with pytest.raises(KeyError):
        result.position("model.layers.9.mlp.down_proj")


def test_parameters_are_those_of_a_lora() -> None:
    best = result_of().winner
    assert best.parameters(8) == 8 * (48 + 32) == best.module().lora_parameters(8)


def test_module_types_by_mean_alignment() -> None:
    scores = [1.0, 2.0, 0.5] * 3 + [3.0, None, 0.7]
    result = result_of([measured(means=range(1, 13), alignment=scores)])
    types = result.type_alignments()
    assert list(types) == ["down_proj", "q_proj", "up_proj"]
    assert list(types.values()) == pytest.approx([2.2 / 4, 6 / 4, 2.0])


def test_another_base_is_refused_with_both_names() -> None:
    result = result_of()
    result.require_base(FINGERPRINT, "the same under another name")
    with pytest.raises(AdapterError) as caught:
        result.require_base("cd" * 32, "other")
    assert str(caught.value) == (
        "the probe is of base 'tiny' (fingerprint abababababab), not of 'other' (cdcdcdcdcdcd); "
        "run asr probe other again"
    )


def changed(change: Callable[[dict[str, Any]], Any]) -> str:
    tree = json.loads(result_of().to_json())
    change(tree)
    return json.dumps(tree)


BAD = {
    "[]": "not a result of asr probe (no JSON object)",
    "{": "not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)); "
    "it is damaged, run asr probe again",
    '{"schema_version": NaN}': "not JSON (NaN is not JSON); it is damaged, run asr probe again",
    '{"base": "x"}': "not a result of asr probe (schema_version is None); make one with asr probe "
    "BASE --out DIR",
    '{"schema_version": true}': "not a result of asr probe (schema_version is True); make one with "
    "asr probe BASE --out DIR",
    changed(lambda t: t.update(schema_version=2)): "a probe of schema 2, and this asr reads 1; "
    "upgrade with pip install -U analytic-subspace-routing",
    changed(lambda t: t.pop("modules")): "modules: Field required; it was edited or damaged, run "
    "asr probe again",
    changed(lambda t: t["modules"][3].update(energy=-1.0)): "modules.3.energy: Input should be "
    "greater than or equal to 0; it was edited or damaged, run asr probe again",
    changed(lambda t: t["base"].update(colour="red")): "base.colour: Extra inputs are not "
    "permitted; it was edited or damaged, run asr probe again",
}


@pytest.mark.parametrize("text", BAD, ids=lambda text: text[:20])
def test_files_that_are_no_probe(tmp_path: Path, text: str) -> None:
    path = tmp_path / "probe.json"
    path.write_text(text)
    with pytest.raises(AdapterError) as caught:
        ProbeResult.load(path)
    assert str(caught.value) == f"{path}: {BAD[text]}"


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(AdapterError) as caught:
        ProbeResult.load(tmp_path / "none.json")
    assert str(caught.value) == (
        f"there is no file {tmp_path / 'none.json'}; make one with asr probe --out DIR"
    )
    with pytest.raises(AdapterError) as caught:
        ProbeResult.load(tmp_path)
    assert str(caught.value) == f"{tmp_path} cannot be read: Is a directory"
    with pytest.raises(StorageError) as refused:
        result_of().save(tmp_path / "none" / "probe.json")
    assert str(refused.value) == (
        f"cannot write {tmp_path / 'none' / 'probe.json'}: there is no folder {tmp_path / 'none'}; "
        "make it"
    )
    assert not list(tmp_path.iterdir())


def test_a_value_that_json_cannot_hold_is_refused_when_made() -> None:
    with pytest.raises(ValidationError, match="finite"):
        result_of([measured(means=range(1, 13), gradient=np.full((8, 12), np.inf))])
