"""Every variant that PEFT knows is offered, renamed, or refused with a reason."""

from __future__ import annotations

import dataclasses

import pytest
from peft import LoraConfig

from asr.adapters import LoraSettings
from asr.adapters.variants import (
    KEEP_BASE,
    REFUSED_INITIALISATIONS,
    REFUSED_KEYS,
    RENAMED_KEYS,
    initialisation_problem,
    refused_key,
    rewrites_base,
)

OFFERED = {"init_lora_weights", "use_rslora"}
NO_SETTINGS = {
    "auto_mapping",
    "base_model_name_or_path",
    "fan_in_fan_out",
    "inference_mode",
    "megatron_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
}
"""What PEFT's files hold beside settings of an adapter."""
LATER = {"rank_pattern", "alpha_pattern"}


def test_every_key_of_peft_is_accounted_for() -> None:
    keys = {field.name for field in dataclasses.fields(LoraConfig)}
    known = OFFERED | NO_SETTINGS | LATER | REFUSED_KEYS.keys() | RENAMED_KEYS.keys()
    assert keys - known == set()
    assert (REFUSED_KEYS.keys() | RENAMED_KEYS.keys()) - keys == set()


def test_renamed_keys_lead_to_keys_that_exist() -> None:
    ours = {field.name for field in dataclasses.fields(LoraSettings)} | {"placement"}
    assert set(RENAMED_KEYS.values()) <= ours


@pytest.mark.parametrize("name", [True, *KEEP_BASE, "pissa", "olora", "pissa_niter_0"])
def test_offered(name: bool | str) -> None:
    assert initialisation_problem(name) is None


@pytest.mark.parametrize("name", [False, *REFUSED_INITIALISATIONS])
def test_refused_by_name(name: bool | str) -> None:
    problem = initialisation_problem(name)
    word = "false" if name is False else name
    assert problem is not None
    assert problem == (
        f"init_lora_weights {word} is refused: it {REFUSED_INITIALISATIONS[str(word)]}"
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pisa", "no init_lora_weights 'pisa' (did you mean 'pissa'?); there are: true, gaussian, "
         "orthogonal, mica, pissa, pissa_niter_N, olora"),
        ("pissa_niter_", "no init_lora_weights 'pissa_niter_' (did you mean 'pissa_niter_N'?); "
         "there are: true, gaussian, orthogonal, mica, pissa, pissa_niter_N, olora"),
        ("xyz", "no init_lora_weights 'xyz'; there are: true, gaussian, orthogonal, mica, pissa, "
         "pissa_niter_N, olora"),
    ],
)  # fmt: skip
def test_unknown_names_are_told_from_refused_ones(name: str, text: str) -> None:
    assert initialisation_problem(name) == text


def test_which_rewrite_the_base() -> None:
    rewriting = ["pissa", "pissa_niter_16", "olora"]
    assert all(rewrites_base(name) for name in rewriting)
    assert not any(rewrites_base(name) for name in (True, False, *KEEP_BASE, "pissa_niter_x"))


def test_settings_name_variants_only_where_asked_for() -> None:
    assert LoraSettings(2, 4.0).to_dict() == {"rank": 2, "alpha": 4.0, "dropout": 0.0}
    assert LoraSettings(2, 4.0, use_rslora=True, init_lora_weights="pissa").to_dict() == {
        "rank": 2,
        "alpha": 4.0,
        "dropout": 0.0,
        "use_rslora": True,
        "init_lora_weights": "pissa",
    }


def test_refused_keys_say_what_to_use() -> None:
    assert refused_key("use_dora") == (
        "use_dora is not offered: DoRA rescales whole rows of the base's weights, which no "
        "low-rank update equals, and a batch that mixes adapters can carry plain LoRA only; use a "
        "higher rank with use_rslora: true, or init_lora_weights: pissa"
    )
    assert refused_key("lora_alpha") == "lora_alpha is called alpha here"
    assert refused_key("rnak") is None
