from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from asr.errors import ConfigError
from asr.train.overrides import apply_overrides

RAW: dict[str, Any] = {
    "base": "x",
    "adapter": None,
    "training": {"epochs": 2},
    "domains": {"legal": {"train": "/d/legal"}},
}


def applied(*overrides: str, raw: dict[str, Any] = RAW) -> dict[str, Any]:
    return apply_overrides(raw, overrides, folder=Path("/cwd"))


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("training.epochs=3", ["training", "epochs"], 3),
        ("training.learning_rate=1e-3", ["training", "learning_rate"], 0.001),
        ("training.batch_size=null", ["training", "batch_size"], None),
        ("adapter.rank=4", ["adapter", "rank"], 4),  # the section is null in the file
        ("router.views=[bare]", ["router", "views"], ["bare"]),  # it is absent
        ("base=a=b", ["base"], "a=b"),
        ("base='1'", ["base"], "1"),
        (" seed =7", ["seed"], 7),
        ("domains.legal.training.epochs=1", ["domains", "legal", "training", "epochs"], 1),
        ("domains.law.train=law.jsonl", ["domains", "law", "train"], "/cwd/law.jsonl"),
        ("domains.law.train=/d/law.jsonl", ["domains", "law", "train"], "/d/law.jsonl"),
        ("domains.law={train: y}", ["domains", "law"], {"train": "y"}),
        ("base=./m", ["base"], "/cwd/m"),
        ("base=org/m", ["base"], "org/m"),
        (
            "adapter.placement={modules: [a.b]}",
            ["adapter", "placement"],
            {"modules": ["a.b"]},
        ),
        ("adapter.placement=dominant", ["adapter", "placement"], "dominant"),
        (
            "adapter.placement={dominant: {top: 3}}",
            ["adapter", "placement"],
            {"dominant": {"top": 3}},
        ),
        (
            "domains.legal.adapter.placement.dominant.budget=9000",
            ["domains", "legal", "adapter", "placement"],
            {"dominant": {"budget": 9000}},
        ),
        ("domains.legal.scorer=no", ["domains", "legal", "scorer"], "no"),
    ],
)
def test_values_land_where_they_should(override: str, path: list[str], value: Any) -> None:
    raw = copy.deepcopy(RAW)
    result = applied(override, raw=raw)
    assert raw == RAW
    for key in path:
        result = result[key]
    assert result == value and type(result) is type(value)


def test_the_last_one_wins_and_the_rest_stays() -> None:
    assert applied("training.epochs=3", "training.epochs=4", "training.warmup=0") == RAW | {
        "training": {"epochs": 4, "warmup": 0}
    }


def test_a_placement_by_name_gives_way_to_one_by_modules() -> None:
    result = applied(
        "adapter.placement.modules=[a]", raw={"adapter": {"placement": "deep", "rank": 2}}
    )
    assert result["adapter"] == {"placement": {"modules": ["a"]}, "rank": 2}


def test_a_new_domain_may_come_in_any_order() -> None:
    result = applied("domains.law.training.epochs=1", "domains.law.train=x")
    assert result["domains"]["law"] == {"training": {"epochs": 1}, "train": "/cwd/x"}


KEYS = (
    "base, seed, device, dtype, quantisation, keep_eval, adapter, router, training, eval, domains"
)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "training.epochs",
            "override 'training.epochs' has no '='; write key=value, e.g. training.epochs=3",
        ),
        ("=3", "override '=3' has an empty key; write key=value, e.g. training.epochs=3"),
        (
            "training..epochs=3",
            "override 'training..epochs=3' has an empty key; write key=value, e.g. "
            "training.epochs=3",
        ),
        (
            "training.epochs=",
            "override 'training.epochs=' has no value; write training.epochs=null",
        ),
        (
            "training.epochs=#3",
            "override 'training.epochs=#3' has no value; write training.epochs=null",
        ),
        (
            "trainin.epochs=3",
            "override 'trainin.epochs=3': unknown key 'trainin' (did you mean 'training'?); the "
            f"config has: {KEYS}",
        ),
        (
            "eval.max_exampels=3",
            "override 'eval.max_exampels=3': unknown key 'eval.max_exampels' (did you mean "
            "'max_examples'?); 'eval' has: max_examples, max_new_tokens, batch_size",
        ),
        ("adapter.r=3", "override 'adapter.r=3': r is called rank here"),
        (
            "domains.legal.adapter.rnk=3",
            "override 'domains.legal.adapter.rnk=3': unknown key 'domains.legal.adapter.rnk' (did "
            "you mean 'rank'?); 'domains.legal.adapter' has: placement, rank, alpha, dropout, "
            "use_rslora, init_lora_weights, init_from",
        ),
        (
            "adapter.placement.top=3",
            "override 'adapter.placement.top=3': unknown key 'adapter.placement.top'; "
            "'adapter.placement' has: modules, dominant",
        ),
        (
            "adapter.placement.dominant.bugdet=3",
            "override 'adapter.placement.dominant.bugdet=3': unknown key "
            "'adapter.placement.dominant.bugdet' (did you mean 'budget'?); "
            "'adapter.placement.dominant' has: anywhere, top, budget, probe, samples",
        ),
        (
            "domains.leagl.limit=3",
            "override 'domains.leagl.limit=3': unknown domain 'leagl' (did you mean 'legal'?); "
            "there are: legal (a new one needs domains.leagl.train=PATH)",
        ),
        (
            "seed.x=3",
            "override 'seed.x=3': 'seed' is a single value, it has no 'x'",
        ),
        (
            "router.views.0=bare",
            "override 'router.views.0=bare': 'router.views' is a single value, it has no '0'",
        ),
        (
            "base=[a",
            "override 'base=[a': not a YAML value (expected ',' or ']', but got '<stream end>'); "
            "quote the value to take it as text: base='\"...\"'",
        ),
        (
            "domains.legal.test=*.jsonl",
            "override 'domains.legal.test=*.jsonl': not a YAML value (expected alphabetic or "
            "numeric character, but found '.'); quote the value to take it as text: "
            "domains.legal.test='\"...\"'",
        ),
        (
            "domains.Legal.train=x",
            "domain name 'Legal' is not allowed: use lower-case letters, digits, '-' and '_', "
            "starting with a letter or a digit, at most 64 characters (try 'legal')",
        ),
    ],
)
def test_a_wrong_override_is_told_in_one_line(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        applied(override)
    assert str(caught.value) == message


def test_a_path_through_something_else_is_told() -> None:
    with pytest.raises(ConfigError) as caught:
        applied("training.epochs=3", raw={"training": 5})
    assert str(caught.value) == (
        "override 'training.epochs=3': 'training' is 5 in the config, not a section with keys"
    )


def test_the_current_folder_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = apply_overrides({}, ["domains.a.train=x"])
    assert result == {"domains": {"a": {"train": str(tmp_path / "x")}}}
