"""A real vLLM with the router inside it, started as ``asr export`` says.

ASR_VLLM_PYTHON names the interpreter of an environment with vLLM and what asr needs (docs/vllm.md);
without it these tests are left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import httpx
import openai
import pytest
from transformers import LlamaConfig

import asr
from asr.model.routed_model import RoutedModel
from asr.serve.export import VllmExport, export_vllm
from benchmarks.vllm_cpu import VllmServer, complete
from tests import tiny_models
from tests.routed import CONFIG, INSTRUCTIONS, write_data
from tests.serve.api.serving import official

PYTHON = os.environ.get("ASR_VLLM_PYTHON")

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(PYTHON is None, reason="ASR_VLLM_PYTHON names no interpreter with vLLM"),
]

TOKENS = 8
PROMPTS = [
    *(
        f"{line}\n{name} item {number}"
        for number in range(4)
        for name, line in INSTRUCTIONS.items()
    ),
    "what is the date of the meeting on the third of March?",
    "city year name of the table",
]


@dataclass(frozen=True)
class Served:
    """A model, and the vLLM that serves it."""

    path: Path
    exported: VllmExport
    server: VllmServer
    routed: RoutedModel
    """In float32, as the engine."""
    router: RoutedModel
    """In the dtype that the router inside the engine takes by itself."""

    @property
    def url(self) -> str:
        return self.server.url

    def name_of(self, route: str) -> str:
        return self.exported.served_name if route == "base" else route


def wide_heads() -> LlamaConfig:
    """As wide as the kernels of vLLM for CPUs ask for."""
    return LlamaConfig(
        **tiny_models._COMMON | {"hidden_size": 64, "intermediate_size": 96}, head_dim=32
    )


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    assert PYTHON is not None
    folder = tmp_path_factory.mktemp("vllm")
    with patch.dict(tiny_models.ARCHITECTURES, {"llama": wide_heads}):
        tiny_models.save_tiny_base(folder / "base")
    for domain in INSTRUCTIONS:
        write_data(folder, domain)
    (folder / "c.yaml").write_text(CONFIG)
    asr.train_sequence(asr.load_config(folder / "c.yaml"), folder / "model")
    exported = export_vllm(folder / "model")
    assert exported.problems == []
    routed = RoutedModel.from_pretrained(folder / "model", device="cpu", dtype="float32")
    router = RoutedModel.from_pretrained(folder / "model", device="cpu")
    options = ["--dtype", "float32", "--max-model-len", "256", "--enforce-eager"]
    with VllmServer(Path(PYTHON), exported, options) as server:
        yield Served(folder / "model", exported, server, routed, router)


def test_an_adapter_answers_by_its_name_as_it_does_here(served: Served) -> None:
    differ = 0
    for name in ("base", *INSTRUCTIONS):
        for prompt in PROMPTS[:3]:
            model, text = complete(served.url, served.name_of(name), prompt, TOKENS)
            assert model == served.name_of(name)
            (own,) = served.routed.generate([prompt], adapter=name, max_new_tokens=TOKENS)
            # Half a character at the end is left out there, and shown as such here
            assert text.rstrip("\ufffd") == own.text.rstrip("\ufffd"), (name, prompt)
            differ += text != complete(served.url, served.exported.served_name, prompt, TOKENS)[1]
    assert differ >= 3  # the adapters do something


def test_auto_is_the_route_of_asr_route(served: Served) -> None:
    # One at a time, as they are asked: in half precision a batch rounds otherwise
    decisions = [served.router.route([prompt])[0] for prompt in PROMPTS]
    assert len({decision.route for decision in decisions}) >= 3
    for prompt, decision in zip(PROMPTS, decisions, strict=True):
        body = {
            "model": "auto",
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": TOKENS,
            "temperature": 0,
        }
        answer = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-asr-adapter"] == decision.route
        kind = "abstained" if decision.abstained else "auto"
        assert answer.headers["x-asr-route"] == kind
        assert float(answer.headers["x-asr-score"]) == pytest.approx(decision.score, abs=1e-6)
        text = answer.json()["choices"][0]["message"]["content"]
        assert text == complete(served.url, served.name_of(decision.route), prompt, TOKENS)[1]


def test_a_stream_is_routed_too(served: Served) -> None:
    (decision,) = served.router.route([PROMPTS[0]])
    answer = official(served.url).chat.completions.create(
        model="auto",
        messages=[{"role": "user", "content": PROMPTS[0]}],
        max_tokens=TOKENS,
        temperature=0,
        stream=True,
    )
    chunks = list(answer)
    assert {chunk.model for chunk in chunks} == {served.name_of(decision.route)}
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == complete(served.url, served.name_of(decision.route), PROMPTS[0], TOKENS)[1]


def test_base_is_the_base_and_other_names_are_unknown(served: Served) -> None:
    model, text = complete(served.url, "base", PROMPTS[0], TOKENS)
    assert model in ("base", served.exported.served_name)
    assert text == complete(served.url, served.exported.served_name, PROMPTS[0], TOKENS)[1]
    with pytest.raises(openai.NotFoundError, match="nope"):
        official(served.url).chat.completions.create(
            model="nope", messages=[{"role": "user", "content": "x"}]
        )


def test_models_are_those_of_the_routed_model(served: Served) -> None:
    listed = {model.id for model in official(served.url).models.list()}
    assert {served.exported.served_name, *INSTRUCTIONS} <= listed
