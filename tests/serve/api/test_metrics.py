from __future__ import annotations

import re

from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from tests.serve.api.fake_engine import FakeEngine
from tests.serve.api.serving import USER, client

PATH = "/v1/chat/completions"


def samples(caller: TestClient) -> dict[str, float]:
    response = caller.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def test_answers_are_counted_by_adapter_and_route(engine: FakeEngine) -> None:
    caller = client(engine)
    unknown = [{"role": "user", "content": "?"}]
    caller.post(PATH, json={"messages": USER})
    caller.post(PATH, json={"messages": USER, "stream": True, "n": 2})
    caller.post(PATH, json={"messages": USER, "model": "sum"})
    caller.post(PATH, json={"messages": unknown})
    caller.post(PATH, json={"messages": unknown, "model": "../nope"})
    caller.post(PATH, json={"messages": []})
    found = samples(caller)
    requests = {k: v for k, v in found.items() if k.startswith("asr_requests_total")}
    assert requests == {
        "asr_requests_total{adapter=red,route=auto,status=200}": 3.0,
        "asr_requests_total{adapter=sum,route=named,status=200}": 1.0,
        "asr_requests_total{adapter=base,route=abstained,status=200}": 1.0,
        "asr_requests_total{adapter=none,route=none,status=404}": 1.0,
        "asr_requests_total{adapter=none,route=none,status=400}": 1.0,
    }
    prompt = len(engine.requests[0].prompt.input_ids)
    assert found["asr_tokens_total{adapter=red,kind=prompt}"] == 3 * prompt
    assert found["asr_tokens_total{adapter=red,kind=completion}"] == 9.0
    assert found["asr_tokens_total{adapter=red,kind=cached}"] == 9.0
    assert found["asr_time_to_first_token_seconds_count{adapter=red}"] == 3.0
    assert found["asr_time_to_first_token_seconds_sum{adapter=red}"] == 0.06
    assert found["asr_request_seconds_sum{adapter=red}"] == 0.12
    assert round(found["asr_time_per_output_token_seconds_sum{adapter=red}"], 9) == 0.03
    assert found["asr_margin_count{adapter=red}"] == 3.0
    assert "asr_margin_count{adapter=sum}" not in found
    assert found["asr_margin_count{adapter=base}"] == 1.0


def test_the_engines_figures(engine: FakeEngine) -> None:
    engine.resident = ["red", "sum"]
    found = samples(client(engine))
    assert found == {
        "asr_running{}": 0.0,
        "asr_waiting{}": 0.0,
        "asr_batch_size_mean{}": 2.5,
        "asr_resident_adapters{}": 2.0,
        "asr_resident_adapter_bytes{}": 20.0,
        "asr_adapter_budget_bytes{}": 1000.0,
        "asr_adapter_evictions_total{}": 1.0,
        "asr_adapter_loads_total{}": 2.0,
        "asr_cache_bytes{}": 30.0,
        "asr_cache_hits_total{}": 4.0,
        "asr_steps_total{}": 10.0,
        "asr_step_rows_total{}": 25.0,
        "asr_ready{}": 1.0,
    }


def test_applications_do_not_share_figures(engine: FakeEngine) -> None:
    first, second = client(engine), client(engine)
    first.post(PATH, json={"messages": USER})
    name = "asr_requests_total{adapter=red,route=auto,status=200}"
    assert samples(first)[name] == 1.0
    assert name not in samples(second)


def test_label_values_come_from_the_engine_alone(engine: FakeEngine) -> None:
    caller = client(engine)
    for number in range(30):
        caller.post(PATH, json={"messages": USER, "model": f"made-up-{number}"})
        caller.get(f"/made-up/{number}")
    assert "made-up" not in caller.get("/metrics").text
    adapters = set(re.findall(r'adapter="([^"]*)"', caller.get("/metrics").text))
    assert adapters == {"none"}


def test_the_pages_figures(engine: FakeEngine) -> None:
    caller = client(engine)
    caller.post(PATH, json={"messages": USER})
    status = caller.get("/v1/status").json()
    assert status.pop("uptime") >= 0
    assert status == {
        "ready": True,
        "base": "tiny-base",
        "domains": ["red", "sum"],
        "generation": 1,
        "running": 0,
        "waiting": 0,
        "batch_size_mean": 2.5,
        "resident": [],
        "resident_bytes": 0,
        "budget_bytes": 1000,
        "evictions": 1,
        "loads": 2,
        "cache_bytes": 30,
        "cache_hits": 4,
        "requests": {"red": 1.0},
        "completion_tokens": {"red": 3.0},
    }
