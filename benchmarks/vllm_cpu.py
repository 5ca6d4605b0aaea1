"""What routing costs inside vLLM on a CPU: ``auto`` against the adapter called by its name.

    python -m benchmarks.vllm_cpu MODEL --python VLLM/bin/python [--requests 40]

MODEL is a routed model directory; VLLM is an environment with vLLM for CPUs and what asr needs. It
is started with the command of ``asr export``, the router inside it. Both sides ask the same prompts
by turns, for the same adapter: the one that ``asr route`` names. The prefix cache of vLLM is off:
neither side shall find the other's work. Latency is what the client sees, CPU time that of all
processes of vLLM, which spend some of it waiting; how much while nothing is asked stands beside.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import numpy as np
import psutil

from asr.model.routed_model import RoutedModel
from asr.serve.export import VllmExport, export_vllm
from benchmarks.http_load import HttpClient, words_for
from benchmarks.interleaved import machine
from benchmarks.load import Sample

ROOT = Path(__file__).parents[1]
_IDLE_SECONDS = 3.0


class VllmServer:
    """A vLLM that serves a routed model with the command of ``asr export``; a context manager.

    Args:
        python: interpreter of an environment with vLLM; asr is taken from this checkout.
        exported: the command.
        options: more of vLLM's options, at the end of the command.
        cache_gigabytes: memory for keys and values.
        start_seconds: longest wait until it answers.
    """

    def __init__(
        self,
        python: Path,
        exported: VllmExport,
        options: Sequence[str] = (),
        *,
        cache_gigabytes: int = 1,
        start_seconds: float = 600,
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        program, *arguments = exported.command
        assert program == "vllm"
        self.command = [str(python), "-m", "vllm.entrypoints.cli.main", *arguments, *options]
        self.command += ["--host", "127.0.0.1", "--port", str(port)]
        self.url = f"http://127.0.0.1:{port}"
        self.environment = {
            "PYTHONPATH": str(ROOT),
            "VLLM_CPU_KVCACHE_SPACE": str(cache_gigabytes),
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            **exported.environment,
        }
        self._start_seconds = start_seconds

    def __enter__(self) -> Self:
        """Start it and wait until it is ready.

        Raises:
            RuntimeError: it ended, or was not ready in time; with the end of its log.
        """
        self._log = tempfile.NamedTemporaryFile(prefix="vllm-", suffix=".log")
        self._process = subprocess.Popen(
            self.command,
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            self._wait()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop it and everything it started."""
        self._stop()

    @property
    def log(self) -> str:
        """What it has printed so far."""
        return Path(self._log.name).read_text(encoding="utf-8", errors="replace")

    def cpu_seconds(self) -> float:
        """CPU time of all its processes so far."""
        spent = 0.0
        root = psutil.Process(self._process.pid)
        for process in (root, *root.children(recursive=True)):
            times = process.cpu_times()
            spent += times.user + times.system
        return spent

    def _wait(self) -> None:
        ends = time.monotonic() + self._start_seconds
        while time.monotonic() < ends:
            if self._process.poll() is not None:
                raise RuntimeError(f"vLLM ended ({self._process.returncode}):\n{self.log[-3000:]}")
            try:
                if httpx.get(f"{self.url}/health", timeout=5, trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                pass  # not listening yet
            time.sleep(0.5)
        raise RuntimeError(f"vLLM was not ready in time:\n{self.log[-3000:]}")

    def _stop(self) -> None:
        # SIGTERM goes to the parent alone, which ends its workers; what is left is killed.
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            print("vLLM did not end by itself and is killed", file=sys.stderr)
        with contextlib.suppress(ProcessLookupError):  # nothing is left
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()


def names_of(routed: RoutedModel, exported: VllmExport, prompts: Sequence[str]) -> list[str]:
    """The name at vLLM of what answers each prompt, as ``asr route`` decides."""
    routes = [decision.route for decision in routed.route(prompts)]
    return [exported.served_name if route == "base" else route for route in routes]


def complete(url: str, model: str, prompt: str, tokens: int) -> tuple[str, str]:
    """Return (model, text) of a greedy answer.

    Raises:
        RuntimeError: the server refused.
    """
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "temperature": 0,
    }
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=300, trust_env=False)
    if answer.status_code != 200:
        raise RuntimeError(f"vLLM answered {answer.status_code}: {answer.text[:300]}")
    tree = answer.json()
    return str(tree["model"]), str(tree["choices"][0]["message"]["content"])


def differences(url: str, prompts: Sequence[str], names: Sequence[str], tokens: int) -> list[str]:
    """One line for each prompt where ``auto`` is not the named adapter, in name or in answer."""
    found = []
    for prompt, name in zip(prompts, names, strict=True):
        routed, named = (complete(url, model, prompt, tokens) for model in ("auto", name))
        if routed != named:
            found.append(f"{prompt[:60]!r}: auto gave {routed}, {name} {named}")
    return found


def measure(
    server: VllmServer, client: HttpClient, prompts: Sequence[str], names: Sequence[str]
) -> dict[str, Any]:
    """Ask every prompt both ways by turns; return latencies in seconds and CPU time per request."""
    began, before = time.perf_counter(), server.cpu_seconds()
    time.sleep(_IDLE_SECONDS)
    idle = (server.cpu_seconds() - before) / (time.perf_counter() - began)
    samples: dict[str, list[Sample]] = {"named": [], "auto": []}
    spent = {"named": 0.0, "auto": 0.0}
    for number, (prompt, name) in enumerate(zip(prompts, names, strict=True)):
        sides = [("named", name), ("auto", "auto")]
        for side, model in sides if number % 2 else reversed(sides):
            before = server.cpu_seconds()
            samples[side].append(client.ask(model, prompt))
            spent[side] += server.cpu_seconds() - before
    figures: dict[str, Any] = {"requests": len(prompts), "idle_cpu_per_second": idle}
    for side, taken in samples.items():
        figures[side] = {"cpu_seconds": spent[side] / len(taken)}
        for what in ("first", "total"):
            seconds = [getattr(sample, what) for sample in taken]
            for q in (50, 95):
                figures[side][f"{what}_p{q}"] = float(np.percentile(seconds, q))
    # Of pairs that asked the same right after each other: the machine's drift falls out.
    pairs = zip(samples["auto"], samples["named"], strict=True)
    added = [auto.first - named.first for auto, named in pairs]
    figures["added_first"] = {f"p{q}": float(np.percentile(added, q)) for q in (50, 95)}
    return figures


def show(figures: dict[str, Any]) -> None:
    """Print the figures for people."""
    for side in ("named", "auto"):
        found = figures[side]
        print(
            f"  {side:6} first token {1e3 * found['first_p50']:7.1f} / "
            f"{1e3 * found['first_p95']:7.1f} ms   answer {1e3 * found['total_p50']:7.1f} / "
            f"{1e3 * found['total_p95']:7.1f} ms   CPU {found['cpu_seconds']:.3f} s a request"
        )
    added = figures["added_first"]
    print(
        f"  auto adds {1e3 * added['p50']:.1f} / {1e3 * added['p95']:.1f} ms (p50 / p95 of pairs)"
    )
    print(f"  while nothing is asked: {figures['idle_cpu_per_second']:.2f} CPU s a second")


def main() -> None:
    """Parse the arguments, start vLLM, check, measure, print."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("model", type=Path, help="a routed model directory")
    parser.add_argument("--python", type=Path, required=True, help="interpreter with vLLM")
    parser.add_argument("--base", help="where the base is, if not where training found it")
    parser.add_argument("--prompts", type=Path, help="JSON lines with prompt; default random words")
    parser.add_argument("--requests", type=int, default=40, help="of each side")
    parser.add_argument("--checked", type=int, default=8, help="prompts whose answers are compared")
    parser.add_argument("--tokens-in", type=int, default=200, help="of a prompt of random words")
    parser.add_argument("--tokens-out", type=int, default=16)
    parser.add_argument("--max-model-len", type=int, default=1024)
    parser.add_argument("--dtype", default="bfloat16", help="of the base, on both sides")
    parser.add_argument("--compile", action="store_true", help="without vLLM's --enforce-eager")
    parser.add_argument("--cache-gigabytes", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    exported = export_vllm(options.model, base=options.base, say=print)
    if exported.problems:
        parser.error("; ".join(exported.problems))
    more = ["--max-model-len", str(options.max_model_len), "--dtype", options.dtype]
    more += ["--no-enable-prefix-caching", *([] if options.compile else ["--enforce-eager"])]
    routed = RoutedModel.from_pretrained(
        options.model, base=options.base, device="cpu", dtype=options.dtype, say=print
    )
    server = VllmServer(options.python, exported, more, cache_gigabytes=options.cache_gigabytes)
    print(f"{machine()}\n{shlex.join(server.command)}", flush=True)
    began = time.monotonic()
    with server:
        print(f"vLLM is ready after {time.monotonic() - began:.0f} s", flush=True)
        client = HttpClient(server.url, [exported.served_name], 1, options.tokens_out)
        if options.prompts is None:
            client.words = words_for(client, options.tokens_in)
            prompts = [client.prompt(number) for number in range(options.requests)]
        else:
            lines = options.prompts.read_text(encoding="utf-8").splitlines()
            prompts = [json.loads(line)["prompt"] for line in lines if line.strip()]
            prompts = prompts[: options.requests]
        names = names_of(routed, exported, prompts)
        print(f"routes: { {name: names.count(name) for name in sorted(set(names))} }", flush=True)
        checked = prompts[: options.checked]
        differ = differences(server.url, checked, names[: len(checked)], options.tokens_out)
        for line in differ:
            print(f"  differs: {line}")
        print(
            f"answers of auto and of the adapter: {len(checked) - len(differ)}/{len(checked)} equal"
        )
        figures = measure(server, client, prompts, names)
    show(figures)
    if options.json is not None:
        figures |= {"machine": machine(), "checked": len(checked), "different": differ}
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
