"""A domain's statistics are those of its prompts, each counted once; the router is their sum."""

from __future__ import annotations

import numpy as np
import pytest

from asr.base.split import SplitForward
from asr.data.cut import calibration_cut
from asr.data.formats import Example
from asr.data.prompt import encode_prompt
from asr.data.views import find_common_part, make_views
from asr.errors import ContractError, DataError, RouterError
from asr.model.contract import FeatureContract, Truncation
from asr.model.directory import ModelDirectory
from asr.model.features import embed
from asr.model.routing import (
    encode_views,
    feature_map,
    fit_domain,
    fit_router,
    read_domains,
    store_domain,
    store_router,
)
from asr.router import RouterSettings, load_router
from tests.routed import tiny_base

VIEWS = ("templated", "bare")


def examples(domain, count=24):
    return [
        Example(
            (
                {"role": "user", "content": f"Say what {domain} is.\nitem {i} of {domain}"},
                {"role": "assistant", "content": "x"},
            ),
            {},
            f"{domain}.jsonl:{i + 1}",
        )
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def base():
    return tiny_base("llama")[1]


@pytest.fixture(scope="module")
def contract(base):
    return FeatureContract(
        base_fingerprint=base.fingerprint,
        layer=2,
        template_hash=base.template.hash,
        truncation=Truncation(max_length=64),
        views=VIEWS,
    )


@pytest.fixture(scope="module")
def fitted(base, contract):
    forward = SplitForward(base.model, 2)
    return {
        name: fit_domain(
            name, examples(name), find_common_part(examples(name)), base, forward, contract
        )
        for name in ("red", "sum", "rev")
    }


def test_statistics_are_sums_over_the_prompts_outside_the_calibration_cut(base, contract, fitted):
    given = examples("red")
    cut = calibration_cut(given)
    common = find_common_part(given)
    assert common.prefix == "Say what red is.\n"
    forward, mapped = SplitForward(base.model, 2), feature_map(contract, 32)
    gram, total = np.zeros((33, 33)), np.zeros(33)
    for example in cut.kept:
        views = make_views(example.prompt, common, VIEWS)
        for name in VIEWS:
            prompt = encode_prompt(views[name], base.tokenizer, base.template)
            x = mapped(embed([prompt], forward, 0, base.device))[0].astype(np.float64)
            gram += np.outer(x, x) / len(VIEWS)  # each of V views weighs 1 / V
            total += x / len(VIEWS)
    statistics = fitted["red"].statistics
    assert statistics.prompts == len(cut.kept)
    np.testing.assert_allclose(statistics.gram(), gram, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(np.ravel(statistics.feature_sums), total, rtol=1e-5, atol=1e-4)
    assert fitted["red"].calibration.prompts == len(cut.held_out) > 0


def test_a_prompt_that_stands_twice_counts_once(base, contract, fitted):
    given = examples("red")
    again = fit_domain(
        "red",
        [*given, *given[::-1]],
        find_common_part(given),
        base,
        SplitForward(base.model, 2),
        contract,
    )
    assert again.statistics.prompts == fitted["red"].statistics.prompts
    assert np.array_equal(again.statistics.gram(), fitted["red"].statistics.gram())


def test_views_of_a_prompt_stand_together(base, contract):
    given = examples("red", 3)
    encoded = encode_views(given, find_common_part(given), base, contract)
    lengths = [len(prompt.input_ids) for prompt in encoded]
    assert len(encoded) == 6
    assert all(lengths[2 * i] > lengths[2 * i + 1] for i in range(3))  # bare is shorter


def test_a_prompt_that_cannot_be_encoded_names_its_line_and_view(base, contract):
    bad = Example(
        ({"role": "user", "content": " "}, {"role": "assistant", "content": "x"}), {}, "f:7"
    )
    with pytest.raises(DataError, match=r"^f:7 \(templated view\): the prompt has no text"):
        encode_views([bad], find_common_part([bad]), base, contract)


def test_files_come_back_and_the_router_does_not_depend_on_the_order(tmp_path, contract, fitted):
    directory = ModelDirectory(tmp_path)
    directory.router_folder.mkdir()
    for domain in fitted.values():
        store_domain(directory, domain, contract)
    names = ["sum", "red", "rev"]
    read = read_domains(directory, names, contract)
    assert [domain.name for domain in read] == names
    for domain in read:
        assert np.array_equal(domain.statistics.gram(), fitted[domain.name].statistics.gram())
        assert np.array_equal(domain.calibration.pooled, fitted[domain.name].calibration.pooled)
    settings = RouterSettings()
    one = fit_router(read, settings, contract, 32)
    other = fit_router([fitted[name] for name in ("rev", "red", "sum")], settings, contract, 32)
    assert np.array_equal(one.weights, other.weights)
    canaries = np.ones((2, 32), np.float32)
    store_router(directory, one, contract, canaries)
    stored = load_router(directory.router, contract.hash)
    assert np.array_equal(stored.router.weights, one.weights)
    assert np.array_equal(stored.extra_tensors["canary_pooled"], canaries)

    with pytest.raises(ContractError):
        read_domains(directory, names, contract.model_copy(update={"layer": 3}))
    directory.router_statistics("rev").unlink()
    with pytest.raises(RouterError, match=r"rev\.safetensors"):
        read_domains(directory, names, contract)


def test_the_router_sends_the_held_out_prompts_home(contract, fitted):
    router = fit_router(list(fitted.values()), RouterSettings(), contract, 32)
    for name, domain in fitted.items():
        pooled = domain.calibration.pooled.reshape(-1, 32)
        assert {decision.domain for decision in router.decide(pooled)} == {name}
