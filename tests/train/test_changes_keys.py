"""Every setting that an adapter was trained with is compared on resume: all of them, by the code.

The keys are taken from the settings' own classes, so that a new one cannot be forgotten here.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from asr.adapters import LoraSettings, resolve_placement
from asr.errors import ConfigError
from asr.model.contract import FeatureContract, NumericContract, Truncation
from asr.model.manifest import (
    AdapterEntry,
    BaseEntry,
    DataEntry,
    Manifest,
    RouterEntry,
    Versions,
)
from asr.train.adapter import TrainingSettings
from asr.train.changes import RunPlan, check_resume
from asr.train.config import AdapterConfig, DomainConfig
from asr.train.placing import Placed
from asr.train.prepare import PreparedDomain
from tests.tiny_models import tiny_model

A = "a" * 64
CONTRACT = FeatureContract(
    base_fingerprint=A, layer=2, template_hash=A, truncation=Truncation(max_length=64), views=("x",)
)
SETTINGS = TrainingSettings(
    epochs=2,
    batch_size=4,
    learning_rate=1e-3,
    schedule="cosine",
    warmup=0.03,
    weight_decay=0.0,
    max_length=64,
    max_grad_norm=1.0,
    gradient_checkpointing=False,
    max_steps=None,
)
TRAINING: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 8,
    "learning_rate": 2e-3,
    "schedule": "linear",
    "warmup": 0.1,
    "weight_decay": 0.01,
    "max_length": 32,
    "max_grad_norm": None,
    "gradient_checkpointing": True,
    "max_steps": 7,
    "views": ("templated", "bare"),
    "group_by_length": True,
}
LORA: dict[str, Any] = {
    "rank": 16,
    "alpha": 32.0,
    "dropout": 0.1,
    "use_rslora": True,
    "init_lora_weights": "pissa",
}


@pytest.fixture(scope="module")
def domain() -> PreparedDomain:
    return PreparedDomain(
        name="sql",
        config=DomainConfig.model_construct(adapter=AdapterConfig()),
        placed=Placed(resolve_placement(tiny_model(), "deep", 2)),
        lora=LoraSettings(),
        settings=SETTINGS,
        scorer="exact",
        max_new_tokens=8,
        data=None,
    )


def ledger(domain: PreparedDomain) -> Manifest:
    """A manifest, as it is read back from disk, in which the domain is done."""
    manifest = Manifest(
        versions=Versions(asr="0", torch="0", transformers="0", peft="0", numpy="0"),
        base=BaseEntry(
            name="x",
            source="folder",
            fingerprint=A,
            n_layers=4,
            hidden_size=8,
            architecture="Llama",
        ),
        contract=CONTRACT,
        numeric=NumericContract(dtype="float32", device="cpu"),
    )
    manifest.add(
        domain.name,
        status="done",
        data=DataEntry(path="/d/sql", sha256=A),
        placement=domain.placement_record(),
        training=domain.training_record(),
        adapter=AdapterEntry(sha256=A, parameters=1, bytes=4, rank=8),
        router=RouterEntry(sha256=A, prompts=1),
    )
    return Manifest.model_validate_json(manifest.model_dump_json())


def refusal(before: PreparedDomain, now: PreparedDomain) -> str:
    with pytest.raises(ConfigError) as caught:
        check_resume(ledger(before), RunPlan(A, CONTRACT, 0, [now.plan]))
    return str(caught.value)


def test_the_same_settings_go_on(domain: PreparedDomain) -> None:
    assert check_resume(ledger(domain), RunPlan(A, CONTRACT, 0, [domain.plan])).todo == ()


def test_no_setting_is_left_out_below() -> None:
    assert TRAINING.keys() == {field.name for field in fields(TrainingSettings)}
    assert LORA.keys() == {field.name for field in fields(LoraSettings)}


@pytest.mark.parametrize("key", TRAINING)
def test_a_setting_of_the_training_cannot_change(domain: PreparedDomain, key: str) -> None:
    other = replace(domain, settings=replace(SETTINGS, **{key: TRAINING[key]}))
    said = f"cannot resume: domain 'sql' is finished and {key} changed: "
    assert refusal(domain, other).startswith(said)
    assert refusal(other, domain).startswith(said)


@pytest.mark.parametrize("key", LORA)
def test_a_setting_of_the_adapter_cannot_change(domain: PreparedDomain, key: str) -> None:
    other = replace(domain, lora=replace(LoraSettings(), **{key: LORA[key]}))
    said = f"cannot resume: domain 'sql' is finished and placement.{key} changed: "
    assert refusal(domain, other).startswith(said)
    assert refusal(other, domain).startswith(said)


def test_what_it_starts_from_cannot_change(domain: PreparedDomain) -> None:
    config = DomainConfig.model_construct(adapter=AdapterConfig(init_from="nearest"))
    assert refusal(domain, replace(domain, config=config)).startswith(
        "cannot resume: domain 'sql' is finished and init_from changed: none -> nearest"
    )
