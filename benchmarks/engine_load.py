"""The serving engine under load, without HTTP: mixed domains against the bare base.

    python -m benchmarks.engine_load MODEL [--clients 1 8 32] [--tokens-in 200] [--tokens-out 64]

MODEL is a routed model directory. Clients send prompts of random tokens, by turns to every domain
("mixed") or all to the base, on the same engine; both take turns, round by round. Held: mixed at
least 0.75 of the base's tokens per second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asr.data.prompt import EncodedPrompt
from asr.model.routed_model import RoutedModel
from asr.serve.engine import Engine, EngineSettings
from asr.serve.request import Event, Failed, Finished, Piece, Sampling, ServeRequest
from benchmarks.interleaved import machine
from benchmarks.load import Sample, Summary, closed_loop


class EngineClient:
    """Asks an engine for answers of a fixed length to prompts of random tokens.

    Args:
        engine: a started engine.
        models: asked for by turns.
        tokens_in: of a prompt.
        tokens_out: of an answer; the model's end of turn does not end it.
        seed: of the prompts.
    """

    def __init__(
        self, engine: Engine, models: Sequence[str], tokens_in: int, tokens_out: int, seed: int = 0
    ) -> None:
        self.engine = engine
        self.models = list(models)
        self.tokens_in = tokens_in
        self.sampling = Sampling(max_tokens=tokens_out, ignore_end=True)
        self.seed = seed

    def __call__(self, number: int) -> Sample:
        """One request; returns when it has ended."""
        generator = np.random.default_rng((self.seed, number))
        ids = generator.integers(5, len(self.engine.tokenizer), self.tokens_in).tolist()
        prompt = EncodedPrompt(ids, [False] + [True] * (self.tokens_in - 1))
        return self.ask(prompt, self.models[number % len(self.models)])

    def ask(self, prompt: EncodedPrompt, model: str) -> Sample:
        """One request; returns when it has ended."""
        done, times = threading.Event(), []
        ends: list[Event] = []

        def deliver(event: Event) -> None:
            if isinstance(event, Piece):
                times.append(time.perf_counter())
            elif isinstance(event, Finished | Failed):
                ends.append(event)
                done.set()

        began = time.perf_counter()
        self.engine.submit(ServeRequest(prompt, model, self.sampling), deliver)
        done.wait()
        if isinstance(ends[0], Failed):
            raise RuntimeError(ends[0].message)
        return Sample(times[0] - began, times[-1] - began, len(times))


def engine_table(
    engine: Engine,
    clients: Sequence[int],
    *,
    per_client: int = 3,
    tokens_in: int = 200,
    tokens_out: int = 64,
    rounds: int = 3,
) -> list[dict[str, Any]]:
    """Measure mixed domains and the base by turns; prints and returns one entry per load."""
    domains = list(engine.served.domains)
    found = []
    for count in clients:
        sides: dict[str, list[Summary]] = {"base": [], "mixed": []}
        for turn in range(rounds):
            for name in sides:
                models = ["base"] if name == "base" else domains
                ask = EngineClient(engine, models, tokens_in, tokens_out, seed=turn)
                sides[name].append(closed_loop(count, per_client * count, ask))
        entry: dict[str, Any] = {"clients": count}
        for name, runs in sides.items():
            middle = sorted(runs, key=lambda run: run.tokens_per_second)[len(runs) // 2]
            entry[name] = middle.figures()
            print(f"  {name:6} {middle.line()}", flush=True)
        rates = [
            statistics.median(run.tokens_per_second for run in sides[name])
            for name in ("mixed", "base")
        ]
        entry["ratio"] = rates[0] / rates[1]
        print(f"  mixed / base: {entry['ratio']:.2f}x tokens/s", flush=True)
        found.append(entry)
    return found


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("model", type=Path, help="a routed model directory")
    parser.add_argument("--base", help="where the base is, if not where training found it")
    parser.add_argument("--dtype", default="auto", help="of the base; default: by capability")
    parser.add_argument("--quantisation", help="int8 or nf4")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--per-client", type=int, default=3, help="requests of each client")
    parser.add_argument("--tokens-in", type=int, default=200)
    parser.add_argument("--tokens-out", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-batch", type=int, default=32)
    parser.add_argument("--prefill-tokens", type=int, help="of a prefill between two decode steps")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    model = RoutedModel.from_pretrained(
        options.model,
        base=options.base,
        dtype=options.dtype,
        quantisation=options.quantisation,
        say=print,
    )
    settings = EngineSettings(
        max_batch=options.max_batch, prefill_tokens=options.prefill_tokens, cache_memory=0
    )
    engine = Engine(model, settings).start()
    print(f"{machine()}; {options.tokens_in} tokens in, {options.tokens_out} out")
    try:
        found = engine_table(
            engine,
            options.clients,
            per_client=options.per_client,
            tokens_in=options.tokens_in,
            tokens_out=options.tokens_out,
            rounds=options.rounds,
        )
    finally:
        engine.close()
    if options.json is not None:
        result = {"machine": machine(), "table": found}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
