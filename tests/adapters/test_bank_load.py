"""What loading an adapter leaves alone, and what follows when rows leave a batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from asr.adapters import AdapterBank
from tests.adapters.making import FINGERPRINT, batch, logits, make_adapter
from tests.tiny_models import tiny_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {name: make_adapter(root / name, seed=i) for i, name in enumerate(("a", "b"), start=1)}


def test_loading_draws_no_random_number(folders: dict[str, Path]) -> None:
    bank = AdapterBank(tiny_model(), FINGERPRINT)
    torch.manual_seed(3)
    expected = torch.rand(4)
    for name, folder in folders.items():  # the first wraps the base, the second joins it
        torch.manual_seed(3)
        bank.load(name, folder)
        assert torch.equal(torch.rand(4), expected), name


def test_adapters_run_in_the_type_of_the_base(folders: dict[str, Path]) -> None:
    model = tiny_model().to(torch.bfloat16)
    bank = AdapterBank(model, FINGERPRINT)
    for name, folder in folders.items():
        bank.load(name, folder)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}, name


def test_rows_that_stay_keep_their_adapters(folders: dict[str, Path]) -> None:
    model = tiny_model()
    bank = AdapterBank(model, FINGERPRINT)
    for name, folder in folders.items():
        bank.load(name, folder)
    ids, mask = batch(rows=4)
    with bank.rows(["a", None, "b", "a"]) as keep_rows:
        whole = logits(model, ids, mask)
        keep_rows([1, 2])
        torch.testing.assert_close(logits(model, ids[1:3], mask[1:3]), whole[1:3])
        keep_rows([1])
        torch.testing.assert_close(logits(model, ids[2:3], mask[2:3]), whole[2:3])
    assert not torch.allclose(whole[2], logits(model, ids, mask)[2])
