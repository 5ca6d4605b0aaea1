from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from asr.errors import ConfigError
from asr.train.config import (
    AdapterConfig,
    DomainConfig,
    TrainConfig,
    TrainingConfig,
)
from asr.train.config_file import build_config, check_files, load_config
from asr.train.placement_config import DominantPlacement, DominantSettings, ModulePlacement


def raw(**changes: Any) -> dict[str, Any]:
    return {"base": "smollm2-135m", "domains": {"legal": {"train": "/d/legal.jsonl"}}} | changes


def sections(model: type[BaseModel]) -> Iterator[tuple[type[BaseModel], str]]:
    for name, field in model.model_fields.items():
        yield model, name
        for candidate in (field.annotation, *get_args(field.annotation)):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                yield from sections(candidate)


@pytest.mark.parametrize(("model", "name"), sorted(set(sections(TrainConfig)), key=str))
def test_every_field_says_what_it_is_in_one_line(model: type[BaseModel], name: str) -> None:
    text = model.model_fields[name].description
    assert text and "\n" not in text and len(text) <= 140 and text.endswith(".")


def test_the_sections_were_all_looked_at() -> None:
    assert {model.__name__ for model, _ in sections(TrainConfig)} == {
        "TrainConfig",
        "AdapterConfig",
        "ModulePlacement",
        "DominantPlacement",
        "DominantSettings",
        "RouterConfig",
        "TrainingConfig",
        "EvalConfig",
        "DomainConfig",
    }


ADAPTER = {
    "placement": "deep",
    "rank": 8,
    "alpha": 16.0,
    "dropout": 0.0,
    "use_rslora": False,
    "init_lora_weights": True,
    "init_from": "none",
}


def test_defaults() -> None:
    config = build_config(raw())
    assert config.plain() == {
        "base": "smollm2-135m",
        "seed": 0,
        "device": "auto",
        "dtype": "auto",
        "quantisation": None,
        "keep_eval": True,
        "adapter": ADAPTER,
        "router": {
            "layer": None,
            "two_pass": False,
            "solver": "direct",
            "ridge": None,
            "absolute_ridge": None,
            "expansion": 0,
            "abstain": 0.07,
            "views": ["templated", "bare", "fragment", "fragment2"],
            "background": 128,
        },
        "training": {
            "epochs": 2,
            "batch_size": None,
            "learning_rate": None,
            "schedule": "cosine",
            "views": ["templated", "bare"],
            "warmup": 0.03,
            "weight_decay": 0.0,
            "max_length": 1024,
            "max_grad_norm": 1.0,
            "save_steps": None,
            "gradient_checkpointing": False,
            "group_by_length": False,
            "report_to": [],
            "max_steps": None,
        },
        "eval": {"max_examples": 200, "max_new_tokens": 256, "batch_size": 16},
        "domains": {
            "legal": {
                "train": "/d/legal.jsonl",
                "dev": None,
                "test": None,
                "scorer": None,
                "format": None,
                "limit": None,
                "max_new_tokens": None,
                "adapter": ADAPTER,
                "training": config.training.model_dump(mode="json"),
            }
        },
    }


def test_a_domain_holds_its_effective_settings() -> None:
    config = build_config(
        raw(
            adapter={"rank": 4, "placement": "all"},
            training={"epochs": 5, "learning_rate": 0.01, "batch_size": 2},
            domains={
                "plain": {"train": "/d/a"},
                "own": {
                    "train": "/d/b",
                    "adapter": {"placement": {"modules": ["model.layers.3.mlp.down_proj"]}},
                    # An explicit null and an explicit default are overrides too.
                    "training": {"epochs": 2, "learning_rate": None},
                },
            },
        )
    )
    assert list(config.domains) == ["plain", "own"]
    assert config.domains["plain"].adapter == config.adapter
    assert config.domains["plain"].training == config.training
    own = config.domains["own"]
    assert own.adapter == AdapterConfig(
        rank=4, placement=ModulePlacement(modules=("model.layers.3.mlp.down_proj",))
    )
    assert own.training == TrainingConfig(epochs=2, learning_rate=None, batch_size=2)


def test_effective_settings_load_to_an_equal_config() -> None:
    config = build_config(
        raw(
            adapter={"rank": 4},
            domains={
                "a": {
                    "train": "/d/a",
                    "adapter": {"rank": 2, "placement": {"modules": ["model.x"]}},
                }
            },
        )
    )
    assert build_config(config.plain()) == config


def test_the_library_may_build_a_config_from_parts() -> None:
    config = TrainConfig(
        base="b",
        training=TrainingConfig(epochs=7),
        domains={"a": DomainConfig(train=Path("x"), training=TrainingConfig(warmup=0.0))},
    )
    assert config.domains["a"].training == TrainingConfig(epochs=7, warmup=0.0)
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1


D = "domains.legal"
TRAINING_KEYS = (
    "epochs, batch_size, learning_rate, schedule, views, warmup, weight_decay, max_length, "
    "max_grad_norm, save_steps, gradient_checkpointing, group_by_length, report_to, max_steps"
)
PLACEMENTS = "'deep', 'all', 'dominant', {dominant: {...}} or {modules: [full module names]}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"training": {"learnig_rate": 1}},
            "unknown key 'training.learnig_rate' (did you mean 'learning_rate'?); 'training' has: "
            + TRAINING_KEYS,
        ),
        (
            {"trainin": {}},
            "unknown key 'trainin' (did you mean 'training'?); the config has: base, seed, device, "
            "dtype, quantisation, keep_eval, adapter, router, training, eval, domains",
        ),
        (
            {"domains": {"legal": {"train": "x", "training": {"zzz": 1}}}},
            f"unknown key '{D}.training.zzz'; '{D}.training' has: {TRAINING_KEYS}",
        ),
        ({"training": {"epochs": "two"}}, "training.epochs: got 'two', expected a whole number"),
        ({"training": {"epochs": 1.5}}, "training.epochs: got 1.5, expected a whole number"),
        ({"training": {"epochs": True}}, "training.epochs: got true, expected a whole number"),
        ({"training": {"epochs": 0}}, "training.epochs: got 0, expected at least 1"),
        ({"training": {"epochs": None}}, "training.epochs: got null, expected a whole number"),
        ({"training": {"max_length": 1}}, "training.max_length: got 1, expected at least 2"),
        (
            {"training": {"learning_rate": "fast"}},
            "training.learning_rate: got 'fast', expected a number",
        ),
        ({"training": {"learning_rate": 0}}, "training.learning_rate: got 0, expected more than 0"),
        (
            {"training": {"learning_rate": float("inf")}},
            "training.learning_rate: got Infinity, expected a finite number",
        ),
        (
            {"training": {"weight_decay": float("nan")}},
            "training.weight_decay: got NaN, expected a finite number",
        ),
        ({"training": {"warmup": 1.0}}, "training.warmup: got 1.0, expected less than 1"),
        (
            {"training": {"schedule": "cosin"}},
            "training.schedule: got 'cosin' (did you mean 'cosine'?), expected 'cosine', 'linear' "
            "or 'constant'",
        ),
        (
            {"training": {"gradient_checkpointing": 1}},
            "training.gradient_checkpointing: got 1, expected true or false",
        ),
        ({"training": [1]}, "training: got [1], expected a section with keys"),
        ({"training": None}, "training: got null, expected a section with keys"),
        ({"seed": -1}, "seed: got -1, expected at least 0"),
        ({"seed": 2**32}, "seed: got 4294967296, expected less than 4294967296"),
        ({"base": 7}, "base: got 7, expected text"),
        (
            {"base": ""},
            "base is empty (Folder, hub id, .gguf file, or built-in: smollm2-135m)",
        ),
        (
            {"device": "gpu"},
            "device: got 'gpu', expected auto, cpu, cuda, cuda:N, xpu, xpu:N or mps",
        ),
        (
            {"dtype": "float3"},
            "dtype: got 'float3' (did you mean 'float32'?), expected 'auto', 'float32', "
            "'bfloat16' or 'float16'",
        ),
        (
            {"adapter": {"placement": "dep"}},
            f"adapter.placement: got 'dep', expected {PLACEMENTS} (did you mean 'deep'?)",
        ),
        ({"adapter": {"placement": []}}, f"adapter.placement: got [], expected {PLACEMENTS}"),
        (
            {"adapter": {"placement": {"modules": []}}},
            f'adapter.placement: got {{"modules": []}}, expected {PLACEMENTS}',
        ),
        (
            {"adapter": {"placement": {"modules": ["a", "a"]}}},
            'adapter.placement: got {"modules": ["a", "a"]}, expected a list of modules without '
            "repetitions",
        ),
        (
            {"adapter": {"placement": {"module": ["a"]}}},
            f'adapter.placement: got {{"module": ["a"]}}, expected {PLACEMENTS}',
        ),
        (
            {"adapter": {"placement": {"dominant": {}, "modules": ["a"]}}},
            f'adapter.placement: got {{"dominant": {{}}, "modules": ["a"]}}, expected {PLACEMENTS}',
        ),
        (
            {"adapter": {"placement": {"dominant": None}}},
            'adapter.placement: got {"dominant": null}, expected dominant with keys (anywhere, '
            "top, budget, probe, samples)",
        ),
        (
            {"adapter": {"placement": {"dominant": {"tpo": 2}}}},
            "adapter.placement: unknown key of dominant 'tpo' (did you mean 'top'?); there are: "
            "anywhere, budget, probe, samples, top",
        ),
        (
            {"adapter": {"placement": {"dominant": {"top": 0}}}},
            'adapter.placement: got {"dominant": {"top": 0}}, expected dominant.top to be a whole '
            "number, at least 1",
        ),
        (
            {"adapter": {"placement": {"dominant": {"top": True}}}},
            'adapter.placement: got {"dominant": {"top": true}}, expected dominant.top to be a '
            "whole number, at least 1",
        ),
        (
            {"adapter": {"placement": {"dominant": {"budget": 1.5}}}},
            'adapter.placement: got {"dominant": {"budget": 1.5}}, expected dominant.budget to be '
            "a whole number, at least 1",
        ),
        (
            {"adapter": {"placement": {"dominant": {"samples": "all"}}}},
            'adapter.placement: got {"dominant": {"samples": "all"}}, expected dominant.samples to '
            "be a whole number, at least 1",
        ),
        (
            {"adapter": {"placement": {"dominant": {"anywhere": 1}}}},
            'adapter.placement: got {"dominant": {"anywhere": 1}}, expected dominant.anywhere to '
            "be true or false",
        ),
        (
            {"adapter": {"placement": {"dominant": {"probe": ""}}}},
            'adapter.placement: got {"dominant": {"probe": ""}}, expected dominant.probe to be a '
            "path",
        ),
        (
            {"adapter": {"placement": {"dominant": {"top": 2, "budget": 9}}}},
            'adapter.placement: got {"dominant": {"top": 2, "budget": 9}}, expected either top or '
            "budget, not both: remove one",
        ),
        (
            {"router": {"views": []}},
            "router.views: got [], expected a list of views (templated, bare, framed, framed2, "
            "framed3, fragment, fragment2)",
        ),
        (
            {"router": {"views": ["bare", "templatd"]}},
            "router.views: unknown view 'templatd' (did you mean 'templated'?); there are: bare, "
            "fragment, fragment2, framed, framed2, framed3, templated",
        ),
        (
            {"training": {"views": "bare"}},
            "training.views: got 'bare', expected a list of views (templated, bare, framed, "
            "framed2, framed3, fragment, fragment2)",
        ),
        (
            {"router": {"views": ["bare", "bare"]}},
            'router.views: got ["bare", "bare"], expected a list of views without repetitions',
        ),
        (
            {"router": {"ridge": 0.1, "absolute_ridge": 1}},
            "router: either ridge or absolute_ridge, not both: remove one",
        ),
        (
            {"router": {"ridge": 0.1, "solver": "rls"}},
            "router: solver rls keeps an absolute ridge: set absolute_ridge instead of ridge, or "
            "use solver direct",
        ),
        ({"domains": {}}, "domains is empty (Domains by name, in training order)"),
        ({"domains": ["legal"]}, 'domains: got ["legal"], expected a section with keys'),
        (
            {"domains": {"legal": "x.jsonl"}},
            "domains.legal: got 'x.jsonl', expected {train: x.jsonl}",
        ),
        ({"domains": {"legal": {}}}, "domains.legal.train is missing (Training examples)"),
        ({"domains": {"legal": {"train": 3}}}, "domains.legal.train: got 3, expected a path"),
        (
            {"domains": {"Legal": {"train": "x"}}},
            "domain name 'Legal' is not allowed: use lower-case letters, digits, '-' and '_', "
            "starting with a letter or a digit, at most 64 characters (try 'legal')",
        ),
        (
            {"domains": {"auto": {"train": "x"}}},
            "domain name 'auto' is reserved (reserved: auto, base, default, none) (try "
            "'auto-domain')",
        ),
        (
            {"domains": {"legal": {"train": "x", "scorer": "exakt"}}},
            "unknown scorer 'exakt' (did you mean 'exact'?); there are: choice, exact, f1, label, "
            "loss, number, python, rouge_l, sql",
        ),
        (
            {"domains": {"legal": {"train": "x", "limit": 0}}},
            "domains.legal.limit: got 0, expected at least 1",
        ),
    ],
)
def test_a_wrong_setting_is_told_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(raw(**changes), source="domains.yaml")
    assert str(caught.value) == f"domains.yaml: {message}"


def test_a_missing_base_is_told() -> None:
    with pytest.raises(ConfigError) as caught:
        build_config({"domains": {"a": {"train": "x"}}})
    assert str(caught.value) == (
        "config: base is missing (Folder, hub id, .gguf file, or built-in: smollm2-135m)"
    )


def test_what_is_not_plain_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(raw(seed=b"0"))
    assert str(caught.value) == (
        "config: Object of type bytes is not JSON serializable; a config holds text, numbers and "
        "lists"
    )


def test_more_scorers_may_be_known() -> None:
    domains = {"a": {"train": "x", "scorer": "bleu"}}
    assert build_config(raw(domains=domains), scorers=["bleu"]).domains["a"].scorer == "bleu"


def test_long_values_are_cut() -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(raw(dtype="x" * 500))
    assert f"got '{'x' * 56}...," in str(caught.value)


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ("dominant", DominantSettings()),
        ({"dominant": {}}, DominantSettings()),
        ({"dominant": {"anywhere": True, "top": None}}, DominantSettings(anywhere=True)),
        ({"dominant": {"top": 3, "samples": 8}}, DominantSettings(top=3, samples=8)),
        ({"dominant": {"budget": 9}}, DominantSettings(budget=9)),
        ({"dominant": {"probe": "/d/probe.json"}}, DominantSettings(probe=Path("/d/probe.json"))),
    ],
)
def test_dominant_placements(given: Any, settings: DominantSettings) -> None:
    config = build_config(raw(adapter={"placement": given}))
    assert config.domains["legal"].adapter.placement == DominantPlacement(dominant=settings)
    assert build_config(config.plain()) == config


def test_the_path_of_a_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "configs" / "c.yaml"
    file.parent.mkdir()
    file.write_text(
        "base: smollm2-135m\n"
        "adapter: {placement: {dominant: {probe: p/probe.json}}}\n"
        "domains:\n"
        "  a: {train: a.jsonl}\n"
        "  b: {train: b.jsonl, adapter: {placement: {dominant: {probe: ../q.json, top: 2}}}}\n"
        "  c: {train: c.jsonl, adapter: {placement: deep}}\n"
    )
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def probes(*overrides: str) -> list[Any]:
        placements = [d.adapter.placement for d in load_config(file, overrides).domains.values()]
        return [
            placement.dominant.probe if isinstance(placement, DominantPlacement) else placement
            for placement in placements
        ]

    # in the file they start at the file, on the command line where one stands
    own, common = tmp_path / "configs" / "../q.json", tmp_path / "configs/p/probe.json"
    assert probes() == [common, own, "deep"]
    here = tmp_path / "here/x.json"
    for override in (
        "adapter.placement.dominant.probe=x.json",
        "adapter.placement.dominant={probe: x.json}",
        "adapter.placement={dominant: {probe: x.json}}",
        "adapter={placement: {dominant: {probe: x.json}}}",
    ):
        assert probes(override) == [here, own, "deep"]
        assert probes(f"domains.c.{override}") == [common, own, here]
    assert probes("domains.b.adapter.placement=dominant")[1] is None
    for name in "abc":
        (file.parent / f"{name}.jsonl").touch()
    (tmp_path / "q.json").mkdir()
    with pytest.raises(ConfigError) as caught:
        check_files(load_config(file))
    assert str(caught.value) == (
        "config: 2 errors\n"
        f"  domains.a.adapter.placement.dominant.probe: {common} does not exist\n"
        f"  domains.b.adapter.placement.dominant.probe: {own} is a folder, not a file"
    )
