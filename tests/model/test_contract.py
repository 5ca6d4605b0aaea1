from __future__ import annotations

import hashlib
from typing import Any

import pytest
from pydantic import ValidationError

from asr.errors import ContractError
from asr.model.contract import Expansion, FeatureContract, NumericContract, Truncation

A, B = "a" * 64, "b" * 64


def contract(**changes: Any) -> FeatureContract:
    fields: dict[str, Any] = {
        "base_fingerprint": A,
        "layer": 4,
        "template_hash": A,
        "truncation": Truncation(max_length=1024),
        "views": ("templated", "bare"),
    }
    return FeatureContract(**(fields | changes))


def test_equal_contracts_pass_and_share_a_hash() -> None:
    contract().check(contract())
    assert contract().hash == contract().hash
    assert contract().difference(contract()) is None


def test_the_hash_is_sha256_of_canonical_json() -> None:
    text = (
        '{"base_fingerprint":"' + A + '","expansion":{"dimension":0,"hash":null,"seed":0},'
        '"layer":4,"normalisation":"layernorm","pooling":"user_content","template_hash":"' + A + '"'
        ',"truncation":{"max_length":1024,"rule":"middle of the longest user message"},'
        '"views":["templated","bare"]}'
    )
    assert contract().hash == hashlib.sha256(text.encode()).hexdigest()


def test_json_brings_back_the_same_contract() -> None:
    one = contract(expansion=Expansion(dimension=64, seed=3, hash=B))
    back = FeatureContract.model_validate_json(one.model_dump_json())
    assert back == one and back.hash == one.hash


HEAD = "features made under another contract: "


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"base_fingerprint": B},
            "base_fingerprint is aaaaaaaaaaaa... in this model and bbbbbbbbbbbb... there; load the "
            "base that this model was trained on",
        ),
        (
            {"layer": 6},
            "layer is 4 in this model and 6 there; the router layer is fixed before the first "
            "domain: keep it, or train a new model",
        ),
        (
            {"expansion": Expansion(dimension=2048, hash=B)},
            "expansion.dimension is 0 in this model and 2048 there; use the same router.expansion "
            "and seed, or train a new model",
        ),
        (
            {"expansion": Expansion(hash=B)},
            "expansion.hash is none in this model and bbbbbbbbbbbb... there; use the same "
            "router.expansion and seed, or train a new model",
        ),
        (
            {"template_hash": B},
            "template_hash is aaaaaaaaaaaa... in this model and bbbbbbbbbbbb... there; use the "
            "chat_template.jinja that lies in the model directory",
        ),
        (
            {"truncation": Truncation(max_length=512)},
            "truncation.max_length is 1024 in this model and 512 there; use the max_length of the "
            "first training, or train a new model",
        ),
        (
            {"views": ("templated",)},
            "views is [templated, bare] in this model and [templated] there; use the router.views "
            "of the first training, or train a new model",
        ),
        # Of several differences the first is named.
        (
            {"views": ("bare", "templated"), "layer": 5},
            "layer is 4 in this model and 5 there; the router layer is fixed before the first "
            "domain: keep it, or train a new model",
        ),
    ],
)
def test_another_contract_is_refused_by_field(changes: dict[str, Any], message: str) -> None:
    other = contract(**changes)
    assert other.hash != contract().hash
    with pytest.raises(ContractError) as caught:
        contract().check(other)
    assert str(caught.value) == HEAD + message


@pytest.mark.parametrize(
    "changes",
    [
        {"base_fingerprint": "short"},
        {"layer": "4"},
        {"layer": -1},
        {"views": ()},
        {"pooling": "all"},
        {"colour": "red"},
    ],
)
def test_what_is_not_a_contract_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        contract(**changes)


def test_a_contract_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        contract().layer = 5


def test_numeric_differences_are_told_not_refused() -> None:
    recorded = NumericContract(dtype="float32", quantisation=None, device="cpu")
    assert recorded.differences(recorded) == {}
    now = NumericContract(dtype="bfloat16", quantisation="nf4", device="cuda")
    assert recorded.differences(now) == {
        "dtype": ("float32", "bfloat16"),
        "quantisation": ("none", "nf4"),
        "device": ("cpu", "cuda"),
    }
