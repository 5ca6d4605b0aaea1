"""What is resolved and refused before anything expensive starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from asr.base.load import LoadedBase, load_base
from asr.errors import AdapterError, ConfigError, DataError, RouterError
from asr.train.prepare import (
    PreparedDomain,
    feature_contract,
    prepare_domains,
    router_settings,
)
from tests.train.conftest import Workshop, write_domain


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> LoadedBase:
    return load_base(str(tiny_base), device="cpu", dtype="float32")


def prepared(
    shop: Workshop, base: LoadedBase, own: dict[str, Any] | None = None, **changes: Any
) -> PreparedDomain:
    config = shop.config({"red": own or {}}, **changes)
    (domain,) = prepare_domains(config, base, 2, 1)
    return domain


def test_the_cuts_share_no_prompt_and_lose_none(shop: Workshop, base: LoadedBase) -> None:
    data = prepared(shop, base).data
    assert data is not None
    train = {example.prompt_key for example in data.train}
    dev = {example.prompt_key for example in data.dev}
    assert train and dev and not train & dev
    assert len(train) + len(dev) == 24
    assert 0 < data.calibration < len(train)
    assert len(data.encoded.rows) == 2 * len(data.train)  # templated and bare


def test_every_example_is_trained_on_in_every_view_within_the_same_epochs(
    shop: Workshop, base: LoadedBase
) -> None:
    both = prepared(shop, base, training__epochs=3)
    one = prepared(shop, base, training__epochs=3, training__views=["templated"])
    assert both.data is not None and both.settings is not None
    assert one.data is not None and one.settings is not None
    count = len(both.data.train)
    assert both.data.views == ("templated", "bare")
    texts = [base.tokenizer.decode(row.input_ids) for row in both.data.encoded.rows]
    assert all("Say the colour of it." in text for text in texts[:count])
    assert not any("Say the colour of it." in text for text in texts[count:])
    answers = [[i for i in row.labels if i >= 0] for row in both.data.encoded.rows]
    assert answers[:count] == answers[count:]
    assert both.data.encoded.rows[:count] == one.data.encoded.rows
    # batches of 4: 1.5 passes over twice the rows are 3 epochs
    assert both.settings.passes == 1.5
    assert both.settings.steps(2 * count) == -(-3 * -(-2 * count // 4) // 2)
    assert one.settings.steps(count) == 3 * -(-count // 4)
    assert both.data.encoded.report.examples == count
    assert both.data.encoded.report.rows == 2 * count


def test_views_that_show_the_same_are_one(shop: Workshop, base: LoadedBase) -> None:
    path = shop.folder / "plain.jsonl"
    rows = [{"prompt": f"{i} is what", "completion": str(i)} for i in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    domain = prepared(shop, base, {"train": str(path)})
    assert domain.data is not None and domain.settings is not None
    assert domain.data.views == domain.settings.views == ("templated",)
    assert domain.settings.passes == 1
    assert domain.training_record()["views"] == ["templated"]


def test_rules_fill_what_is_open_and_only_that(shop: Workshop, base: LoadedBase) -> None:
    settings = prepared(shop, base, training__batch_size=None).settings
    assert settings is not None
    assert (settings.batch_size, settings.learning_rate) == (2, 5.3e-3)
    one = {"modules": ["model.layers.3.mlp.down_proj"]}
    domain = prepared(shop, base, adapter__placement=one)
    assert domain.settings is not None
    assert (domain.settings.batch_size, domain.settings.learning_rate) == (4, 4.2e-2)
    assert domain.placement.names == ["model.layers.3.mlp.down_proj"]
    given = prepared(shop, base, training__learning_rate=0.5).settings
    assert given is not None and given.learning_rate == 0.5


def test_own_settings_of_a_domain_hold(shop: Workshop, base: LoadedBase) -> None:
    own = {
        "max_new_tokens": 9,
        "scorer": "label",
        "adapter": {"rank": 5},
        "training": {"epochs": 7},
    }
    domain = prepared(shop, base, own)
    assert (domain.max_new_tokens, domain.scorer, domain.lora.rank) == (9, "label", 5)
    assert domain.settings is not None and domain.settings.epochs == 7
    plain = prepared(shop, base)
    assert (plain.max_new_tokens, plain.scorer, plain.lora.rank) == (3, "exact", 2)


def test_the_hash_covers_what_is_trained_on(shop: Workshop, base: LoadedBase) -> None:
    dev = str(write_domain(shop.folder / "dev.jsonl", "dev", 5))
    hashes = {
        prepared(shop, base).plan.data_sha256,
        prepared(shop, base, {"limit": 20}).plan.data_sha256,
        prepared(shop, base, {"dev": dev}).plan.data_sha256,
    }
    assert len(hashes) == 3
    assert prepared(shop, base).plan == prepared(shop, base).plan
    other = prepared(shop, base, {"dev": dev}).data
    assert other is not None and (len(other.train), len(other.dev)) == (24, 5)


def test_a_published_domain_needs_no_file(shop: Workshop, base: LoadedBase) -> None:
    config = shop.config(["red"], training__batch_size=None)
    shop.data("red").unlink()
    (domain,) = prepare_domains(config, base, 2, 1, published=["red"])
    assert domain.data is None and domain.settings is None
    assert domain.plan.data_sha256 is None
    assert not {"batch_size", "learning_rate"} & set(domain.plan.settings)  # rules made them
    assert domain.plan.settings["epochs"] == 1


def test_too_long_for_the_base(shop: Workshop, base: LoadedBase) -> None:
    with pytest.raises(ConfigError) as caught:
        prepared(shop, base, training__max_length=513)
    assert str(caught.value) == (
        f"training.max_length 513 of 'red' is longer than the context of '{base.name}', 512; "
        "lower it"
    )


def test_layers_and_modules_that_are_not_there(shop: Workshop, base: LoadedBase) -> None:
    with pytest.raises(ConfigError) as caught:
        feature_contract(shop.config(["red"], router__layer=4), base)
    assert str(caught.value) == (
        f"router.layer is 4, but '{base.name}' has 4 decoder layers; use 1 to 3"
    )
    with pytest.raises(AdapterError):
        prepared(shop, base, adapter__placement={"modules": ["model.layers.3.mlp.down"]})


def test_the_contract_holds_what_features_depend_on(shop: Workshop, base: LoadedBase) -> None:
    def contract(**changes: Any) -> str:
        return feature_contract(shop.config(["red"], **changes), base).hash

    plain = contract()
    for changes in (
        {"router__layer": 1},
        {"router__expansion": 16},
        {"router__views": ["templated"]},
        {"training__max_length": 95},
    ):
        assert contract(**changes) != plain
    for changes in ({"router__ridge": 0.1}, {"training__epochs": 3}, {"seed": 4}):
        assert contract(**changes) == plain
    default = shop.config(["red"], router__layer=None)
    assert feature_contract(default, base).layer == 2


def test_combinations_that_the_solver_cannot_follow(shop: Workshop) -> None:
    with pytest.raises(RouterError):
        router_settings(shop.config(["red"], router__absolute_ridge=0.1).router)
    settings = router_settings(
        shop.config(["red"], router__solver="rls", router__absolute_ridge=0.1).router
    )
    assert (settings.solver, settings.absolute_ridge) == ("rls", 0.1)


def test_what_a_scorer_needs_is_missed_before_training(shop: Workshop, base: LoadedBase) -> None:
    with pytest.raises(DataError) as caught:
        prepared(shop, base, {"scorer": "python"})
    summary, line, *_ = str(caught.value).splitlines()
    assert summary.startswith("red: scorer 'python' cannot score ")
    assert "scorer 'python' found no 'tests' in meta, expected meta.tests; write e.g." in line
