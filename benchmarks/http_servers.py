"""Our server and vLLM on a CPU over HTTP: the same adapters, the same prompts, 1, 8 and 32 clients.

    python -m benchmarks.http_servers MODEL --python VLLM/bin/python [--clients 1 8 32]

MODEL is a routed model directory; VLLM is an environment made by ``benchmarks.vllm_environment``.
One server after the other, since both want all cores, each asked once by every model before the
clock runs. Three loads take turns on each: all requests to the base, by turns to every domain by
name, and to ``auto``, where the router decides (in vLLM it is the middleware). Prompts are random
words, so ``auto`` sends most of them to the base; it shows what routing costs, not how mixed
adapters run. Held: ahead of vLLM with mixed adapters, and mixed at 0.75 of our own base.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from asr.serve.export import export_vllm
from benchmarks.http_load import HttpClient, http_table
from benchmarks.interleaved import machine
from benchmarks.vllm_cpu import VllmServer

_START_SECONDS = 300.0


@contextmanager
def our_server(model: Path) -> Iterator[str]:
    """Run ``asr serve`` and yield its URL.

    Raises:
        RuntimeError: it ended, or was not ready in time.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "asr", "serve", str(model), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        ends = time.monotonic() + _START_SECONDS
        while not _is_ready(url):
            if process.poll() is not None or time.monotonic() > ends:
                raise RuntimeError(f"asr serve did not start: {' '.join(command)}")
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def measure(url: str, domains: Sequence[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Warm every model up, then measure the three loads."""
    loads = [["base"], list(domains), ["auto"]]
    for model in ("base", *domains, "auto"):
        HttpClient(url, [model], 20, 4)(0)
    return http_table(
        url,
        loads,
        options.clients,
        per_client=options.per_client,
        tokens_in=options.tokens_in,
        tokens_out=options.tokens_out,
        rounds=options.rounds,
    )


def main() -> None:
    """Parse the arguments, measure both, print."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--python", type=Path, help="of the vLLM environment; without, ours alone")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--per-client", type=int, default=2, help="requests of each client")
    parser.add_argument("--tokens-in", type=int, default=200)
    parser.add_argument("--tokens-out", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    exported = export_vllm(options.model)
    manifest = json.loads((options.model / "manifest.json").read_text(encoding="utf-8"))
    domains = [name for name, entry in manifest["domains"].items() if entry["status"] == "done"]
    print(f"{machine()}; {options.tokens_in} tokens in, {options.tokens_out} out", flush=True)
    tables = {}
    print("asr serve", flush=True)
    with our_server(options.model) as url:
        tables["asr"] = measure(url, domains, options)
    if options.python is not None:
        print("vLLM", flush=True)
        with VllmServer(options.python, exported) as server:
            tables["vllm"] = measure(server.url, domains, options)
    if options.json is not None:
        result = {"machine": machine(), "tables": tables}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
