"""``asr export``: a script for people, JSON for programs, and what is refused."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from tests.cli.conftest import Edit, Trained, refused, run_asr


def words_of(script: str) -> list[str]:
    return shlex.split(script.replace("\\\n", " "), comments=True)


def test_a_trained_model_is_a_script(trained: Trained) -> None:
    outcome = run_asr("export", trained.model, "--to", "vllm")
    assert outcome.code == 0, outcome.err
    words = words_of(outcome.out)
    assert words[:3] == [f"ASR_MODEL={trained.model}", "vllm", "serve"]
    assert words[3] == str(trained.root / "base")
    assert f"red={trained.model}/adapters/red" in words
    assert f"sum={trained.model}/adapters/sum" in words
    assert words[-2:] == ["--middleware", "asr.serve.RouteAuto"]
    first, *_, last = outcome.out.splitlines()
    assert first.startswith("# 2 adapters to rank 8, 2 at once in at least ")
    assert last == (
        "# beside an engine that takes no --middleware: "
        f"asr serve {trained.model} --engine-url http://HOST:PORT"
    )
    assert outcome.err == ""


def test_json_says_the_same(trained: Trained) -> None:
    script = run_asr("export", trained.model, "--to", "vllm", "--max-loras", 1).out
    outcome = run_asr("export", trained.model, "--to", "vllm", "--max-loras", 1, "--json")
    record = json.loads(outcome.out)
    assert words_of(script) == [f"ASR_MODEL={trained.model}", *record["command"]]
    assert record["environment"] == {"ASR_MODEL": str(trained.model)}
    assert record["engine"] == "vllm"
    assert list(record["adapters"]) == ["red", "sum"]
    assert (record["max_lora_rank"], record["max_loras"]) == (8, 1)
    assert record["problems"] == record["notes"] == []


def test_problems_are_a_line_each_and_no_command(own: Path, edit_manifest: Edit) -> None:
    def change(tree: dict) -> None:
        tree["base"]["architecture"] = "GPT2LMHeadModel"

    edit_manifest(own, change)
    (own / "adapters" / "sum" / "adapter_model.safetensors").unlink()
    outcome = run_asr("export", own, "--to", "vllm")
    assert outcome.code == 2
    assert outcome.out == ""
    first, second = outcome.err.splitlines()
    assert first == (
        "error: vLLM 0.32 serves no adapters on GPT2LMHeadModel; use asr serve, or train on "
        "another base"
    )
    assert second.startswith("error: domain 'sum': ") and " is missing; restore it" in second
    outcome = run_asr("export", own, "--to", "vllm", "--json")
    assert outcome.code == 2
    record = json.loads(outcome.out)
    assert record["command"] is None and record["environment"] is None
    assert [f"error: {line}" for line in record["problems"]] == [first, second]


def test_other_engines(trained: Trained) -> None:
    assert refused("export", trained.model, "--to", "vlm") == (
        "unknown engine 'vlm' (did you mean 'vllm'?); there are: vllm"
    )
    assert refused("export", trained.model, "--to", "sglang") == (
        "unknown engine 'sglang'; there are: vllm"
    )
    assert "--to" in refused("export", trained.model)


def test_not_a_model(tmp_path: Path) -> None:
    assert refused("export", tmp_path / "none", "--to", "vllm") == (
        f"no folder '{tmp_path / 'none'}'; give the folder that asr train wrote (it holds "
        "manifest.json)"
    )


def test_neither_torch_nor_numpy_is_needed(trained: Trained) -> None:
    code = (
        "import sys; from asr.cli.main import main\n"
        f"code = main(['export', {str(trained.model)!r}, '--to', 'vllm'])\n"
        "heavy = {'torch', 'transformers', 'numpy', 'peft', 'fastapi'} & set(sys.modules)\n"
        "print('code', code, 'heavy', sorted(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ}
    )
    assert done.stdout.splitlines()[-1] == "code 0 heavy []", done.stderr
