"""500 requests from 32 clients over HTTP, while everything that can happen does.

Mixed domains and lengths, streams and whole answers, clients that go away, forward passes that
raise, a domain that is removed and one that is added. Every answer that is completed is its solo
answer; nothing is left behind.
"""

from __future__ import annotations

import gc
import json
import random
import shutil
import threading
import time

import httpx
import psutil
import pytest

from asr.cli.main import main
from asr.model.routed_model import RoutedModel
from asr.serve.engine import Engine, EngineSettings
from asr.train.remove import remove_domain
from tests.routed import INSTRUCTIONS, trained
from tests.serve.api.serving import listening
from tests.serve.serving import ask

REQUESTS, CLIENTS = 500, 32
POISON = 1
"""A token whose decode step raises; requests ask for it with a logit bias. No answer has it."""
PROMPTS = [
    f"{INSTRUCTIONS[domain]}\n{domain} item {i} " + "and more " * (i * 3 % 11)
    for i in range(2)
    for domain in INSTRUCTIONS
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("asr.serve.served._LOOK_SECONDS", 0.1)
    for path in trained().iterdir():
        copy = shutil.copytree if path.is_dir() else shutil.copy
        copy(path, tmp_path / path.name)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "model"


class Client:
    """Sends one planned request; ``outcome`` is (kind, text, adapter)."""

    def __init__(self, url: str, answers: dict, later: list) -> None:
        self.later = later
        self.http = httpx.Client(base_url=url, timeout=120)
        self.answers = answers

    def send(self, plan: dict) -> str:
        body = {
            "model": plan["model"],
            "messages": [{"role": "user", "content": plan["prompt"]}],
            "max_tokens": plan["tokens"],
            "ignore_eos": True,
            "logit_bias": {str(POISON): -100},
            "stream": plan["way"] != "whole",
        }
        if plan["way"] == "poison":
            body |= {
                "model": "base",
                "logit_bias": {str(POISON): 100},
                "max_tokens": 5,
                "stream": False,
            }
        if not body["stream"]:
            found = self.http.post("/v1/chat/completions", json=body)
            return self.judge(plan, found.status_code, found.json())
        with self.http.stream("POST", "/v1/chat/completions", json=body) as found:
            if found.status_code != 200:
                found.read()
                return self.judge(plan, found.status_code, found.json())
            text, adapter = "", found.headers["x-asr-adapter"]
            for line in found.iter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                if plan["way"] == "leave":
                    return "left"
                chunk = json.loads(line[6:])
                assert "error" not in chunk, chunk
                text += "".join(c["delta"].get("content") or "" for c in chunk["choices"])
        return self.judge(plan, 200, {"text": text, "adapter": adapter})

    def judge(self, plan: dict, status: int, body: dict) -> str:
        if status != 200:
            error = body["error"]
            if plan["way"] == "poison":
                assert status == 500 and "kernel" not in error["message"], error
                return "failed"
            assert status == 404 and plan["model"] == "rev", (plan, error)
            assert error["code"] == "model_not_found"
            return "gone"
        assert plan["way"] != "poison", body
        if "text" not in body:
            choice = body["choices"][0]
            body = {"text": choice["message"]["content"], "adapter": body["asr"]["adapter"]}
        assert plan["model"] in ("auto", body["adapter"])
        key = plan["prompt"], body["adapter"], plan["tokens"]
        if body["adapter"] == "new":  # its adapter did not exist when the answers were made
            self.later.append((key, body["text"]))
            return "completed"
        assert body["text"] == self.answers[key], (plan, body)
        return "completed"


def test_every_completed_answer_is_its_solo_answer(folder, capsys):
    numbers = random.Random(4)
    model = RoutedModel.from_pretrained(folder, base="base", device="cpu", dtype="float32")
    lengths = (12, 100)
    solo = Engine(model, EngineSettings(max_batch=1, cache_memory=0)).start()

    def alone(engine: Engine, prompt: str, adapter: str, tokens: int) -> str:
        settings = {"max_tokens": tokens, "ignore_end": True, "logit_bias": ((POISON, -100.0),)}
        return ask(engine, prompt, adapter, **settings).wait().text

    answers = {
        (prompt, adapter, tokens): alone(solo, prompt, adapter, tokens)
        for prompt in PROMPTS
        for adapter in (*INSTRUCTIONS, "base")
        for tokens in lengths
    }
    solo.close()
    ways = ["whole"] * 5 + ["stream"] * 5 + ["leave"] * 2 + ["poison"]
    plans = [
        {
            "prompt": numbers.choice(PROMPTS),
            "model": numbers.choice(["auto", "auto", "base", *INSTRUCTIONS]),
            "tokens": numbers.choice(lengths),
            "way": numbers.choice(ways),
        }
        for _ in range(REQUESTS)
    ]

    def raises(module, args, kwargs):
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        if ids.shape[1] == 1 and (ids == POISON).any():
            raise RuntimeError("a kernel failed")

    model.base.model.register_forward_pre_hook(raises, with_kwargs=True)
    hooks = sum(len(m._forward_pre_hooks) for m in model.base.model.modules())
    engine = Engine(model, EngineSettings(max_batch=CLIENTS)).start()
    outcomes: list[str] = []
    failures: list[BaseException] = []
    later: list = []

    def work(url: str, own: list[dict]) -> None:
        try:
            client = Client(url, answers, later)
            for plan in own:
                outcomes.append(client.send(plan))
        except BaseException as error:
            failures.append(error)

    memory = psutil.Process().memory_info().rss
    with listening(engine) as url:
        threads = [
            threading.Thread(target=work, args=(url, plans[k::CLIENTS])) for k in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        while len(outcomes) < 100 and not failures:
            time.sleep(0.01)
        remove_domain(folder, "rev")
        assert main(["add", "model", "new=sum.jsonl", "training.epochs=1"]) == 0
        for thread in threads:
            thread.join()
        deadline = time.monotonic() + 30
        while "new" not in engine.served.domains and time.monotonic() < deadline:
            time.sleep(0.02)
        domains = engine.served.domains
        while engine.status().running and time.monotonic() < deadline:
            time.sleep(0.01)
        status = engine.status()
    engine.close()
    assert not failures, failures[0]
    assert domains == ("red", "sum", "new")
    fresh = RoutedModel.from_pretrained(folder, base="base", device="cpu", dtype="float32")
    solo = Engine(fresh, EngineSettings(max_batch=1, cache_memory=0)).start()
    for (prompt, adapter, tokens), text in later:
        assert alone(solo, prompt, adapter, tokens) == text
    solo.close()
    counts = {kind: outcomes.count(kind) for kind in sorted(set(outcomes))}
    with capsys.disabled():
        print(f"\n{counts}, mean batch {status.step_rows / status.steps:.1f}", flush=True)
    assert status.step_rows / status.steps >= 8
    assert sum(counts.values()) == REQUESTS and counts["completed"] > 300
    assert counts["failed"] == sum(plan["way"] == "poison" for plan in plans)
    assert status.running == status.waiting == 0
    assert not any("forward" in vars(module) for module in model.base.model.modules())
    assert sum(len(m._forward_pre_hooks) for m in model.base.model.modules()) == hooks
    gc.collect()
    assert psutil.Process().memory_info().rss - memory < 300e6
