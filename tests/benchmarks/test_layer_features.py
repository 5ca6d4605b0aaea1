"""States of several layers in one pass are those of one layer at a time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from asr.base.load import LoadedBase, load_base
from asr.data.prompt import encode_prompt
from asr.model.features import embed
from asr.model.opening import make_forward
from benchmarks import near_domains, router, router_peers
from benchmarks.layer_features import embed_layers, side_by_side
from benchmarks.routing_prompts import user
from tests.tiny_models import HIDDEN, save_tiny_base

TEXTS = ["one two three", "what is the date?", "x", "Write a SQL query that answers the question"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> LoadedBase:
    return load_base(str(save_tiny_base(tmp_path_factory.mktemp("base"))), dtype="float32")


def test_layers_are_read_in_one_pass(base: LoadedBase) -> None:
    found = embed_layers(base, [3, 2], [[user(text)] for text in TEXTS])
    assert found.shape == (4, 2, HIDDEN)
    encoded = [encode_prompt([user(text)], base.tokenizer, base.template) for text in TEXTS]
    for index, layer in enumerate((3, 2)):
        alone = embed(encoded, make_forward(base, layer, False), 0, base.device)
        np.testing.assert_allclose(found[:, index], alone, rtol=1e-5, atol=1e-5)


def test_no_hook_stays_behind(base: LoadedBase) -> None:
    embed_layers(base, [2, 3], [[user("x")]])
    assert not any(layer._forward_pre_hooks for layer in base.decoder.modules)


def test_layers_side_by_side_weigh_the_same() -> None:
    states = np.random.default_rng(0).normal(size=(5, 2, 3, 8))
    states[:, :, 2] *= 100.0
    joined = side_by_side(states, [0, 2])
    assert joined.shape == (5, 2, 16)
    np.testing.assert_allclose(joined[..., :8].std(axis=-1), 1.0, rtol=1e-3)
    np.testing.assert_allclose(joined[..., 8:].std(axis=-1), 1.0, rtol=1e-3)
    np.testing.assert_array_equal(side_by_side(states, [1]), states[:, :, 1])
    assert side_by_side(states[:0], [0, 1]).shape == (0, 2, 16)


def test_the_benchmarks_run_on_a_tiny_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_tiny_base(tmp_path / "base")
    words = {"banking77": ["card", "refund", "limit"], "sums": ["add", "take", "times"]}
    for name, answers in words.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        rows = [
            {
                "messages": [
                    user(f"{name}, please: {answer} {number}"),
                    {"role": "assistant", "content": answer},
                ]
            }
            for number in range(10)
            for answer in answers
        ]
        path = tmp_path / "data" / name / "train.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    free = tmp_path / "free.jsonl"
    asked = [("banking77", "a card"), ("sums", "add one"), ("none", "hello")] * 2
    free.write_text(
        "".join(
            json.dumps({"domain": d, "prompt": f"{p} {i}"}) + "\n" for i, (d, p) in enumerate(asked)
        )
    )
    monkeypatch.setattr(
        "benchmarks.routing_prompts.sampled_prompts", lambda base, count: ["once", "upon", "a time"]
    )
    monkeypatch.setattr(near_domains, "GROUPS", 2)
    data = str(tmp_path / "data")
    common = ["--base", str(base), "--features", str(tmp_path / "rows.npz")]
    for module, arguments in (
        (router_peers, [data, str(free), "--layers", "2"]),
        (near_domains, [data, "--layers", "2"]),
        (router, [data, str(free), "--sizes", "33", "40", "--rows", "8"]),
    ):
        out = tmp_path / module.__name__
        monkeypatch.setattr("sys.argv", ["x", *arguments, *common, "--out", str(out)])
        module.main()
        assert out.exists()
    printed = capsys.readouterr().out
    assert "| ours, layer 2 |" in printed
    assert "groups: 3 domains" in printed
    assert "intents: 4 domains" in printed
    assert "| 40 | as released |" in printed
