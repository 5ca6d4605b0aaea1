"""Two things a server meets: the second turn of a long conversation, and more adapters than memory.

    python -m benchmarks.engine_scenarios turns MODEL [--tokens 1000]
    python -m benchmarks.engine_scenarios paging MODEL [--adapters 200] [--slots 8]

``turns``: time to the first token of the second turn of a conversation, with and without the prefix
caches. ``paging``: random traffic to so many adapters of which memory holds a few, against as much
traffic to those few alone; the adapters are random, written into a temporary folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from asr.adapters.storage import adapter_sha256
from asr.data.prompt import EncodedPrompt
from asr.model.routed_model import RoutedModel
from asr.serve.engine import Engine, EngineSettings
from asr.serve.served import Target
from benchmarks.engine_load import EngineClient
from benchmarks.interleaved import machine
from benchmarks.load import closed_loop
from benchmarks.random_adapters import write_adapters


class Conversation(EngineClient):
    """First turns of random tokens, and second turns that go on from them."""

    def turn(self, number: int, tokens: int) -> Any:
        """Ask with the first so many tokens of conversation ``number``."""
        generator = np.random.default_rng((self.seed, number))
        ids = generator.integers(5, len(self.engine.tokenizer), 100_000).tolist()[:tokens]
        prompt = EncodedPrompt(ids, [False] + [True] * (tokens - 1))
        return self.ask(prompt, self.models[number % len(self.models)])


def turns(engine: Engine, domains: list[str], tokens: int, rounds: int, cached: bool) -> float:
    """Median milliseconds to the first token of the second turn."""
    talk = Conversation(engine, domains, tokens, 2, seed=int(cached))
    taken = []
    for number in range(rounds):
        talk.turn(number, tokens)
        taken.append(talk.turn(number, tokens + 40).first)
    return 1e3 * statistics.median(taken)


def run_turns(options: argparse.Namespace) -> None:
    """Measure both, one after the other on one model."""
    for memory, name in ((1 << 30, "with the prefix caches"), (0, "without")):
        engine = engine_of(options, cache_memory=memory)
        try:
            domains = list(engine.served.domains)
            found = turns(engine, domains, options.tokens, options.rounds, memory > 0)
            hits = engine.status().cache_hits
        finally:
            engine.close()
        print(
            f"  second turn, {options.tokens} + 40 tokens, {name}: first token after "
            f"{found:.0f} ms ({hits} hits in {options.rounds} conversations)",
            flush=True,
        )


def run_paging(options: argparse.Namespace) -> None:
    """Measure traffic to many adapters and to as many as fit."""
    names = [f"d{i:03}" for i in range(options.adapters)]
    with tempfile.TemporaryDirectory() as place:
        engine = engine_of(options, cache_memory=0)
        base = engine._model.base
        print(f"writing {options.adapters} adapters", flush=True)
        folders = write_adapters(base, Path(place), names)
        targets = {}
        for name, folder in folders.items():
            sha256 = adapter_sha256(folder)
            targets[name] = Target(name, f"{name}@{sha256}", folder, sha256)
        engine._served = dataclasses.replace(engine._served, targets=targets)
        engine.load_adapter(names[0]).result()
        size = engine.status().resident_bytes
        engine._bank.budget = options.slots * size
        try:
            for turn in range(options.rounds):
                for title, used in (
                    (f"{options.slots} adapters, all resident", names[: options.slots]),
                    (f"{options.adapters} adapters, {options.slots} slots", names),
                ):
                    before = engine.status()
                    order = np.random.default_rng(turn).permutation(used).tolist()
                    ask = EngineClient(engine, order, 100, 32, seed=turn)
                    found = closed_loop(options.clients, 8 * options.clients, ask)
                    after = engine.status()
                    print(
                        f"  {title:28} {found.line()}   {after.loads - before.loads} loads, "
                        f"{after.evictions - before.evictions} evictions",
                        flush=True,
                    )
        finally:
            engine.close()


def engine_of(options: argparse.Namespace, **settings: Any) -> Engine:
    """A started engine over the model."""
    model = RoutedModel.from_pretrained(options.model, base=options.base, dtype=options.dtype)
    return Engine(model, EngineSettings(**settings)).start()


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("scenario", choices=("turns", "paging"))
    parser.add_argument("model", type=Path, help="a routed model directory")
    parser.add_argument("--base", help="where the base is, if not where training found it")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tokens", type=int, default=1000, help="of the first turn")
    parser.add_argument("--adapters", type=int, default=200)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(machine())
    (run_turns if options.scenario == "turns" else run_paging)(options)


if __name__ == "__main__":
    main()
