"""Decode steps as CUDA graphs: what launching kernels costs, with and without adapters.

Called by ``python -m benchmarks.serving --graphs``. A graph replays kernels on fixed addresses, so
keys and values lie in transformers' static cache, and the batch's rows and adapters stay as they
were when it was captured. (An engine whose rows come and go would capture one per number of rows
and stack; it does not do so yet. The figures say what there is to gain.)
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import StaticCache

from asr.adapters import AdapterBank
from asr.base.load import LoadedBase
from benchmarks.random_adapters import write_adapters


class Step:
    """A decode step on fixed tensors: the token of every row goes in, the next one comes out."""

    def __init__(self, base: LoadedBase, ids: Tensor, steps: int) -> None:
        batch, length = ids.shape
        self.model = base.model
        self.cache = StaticCache(base.model.config, max_cache_len=length + steps)
        self.tokens = ids[:, -1:].clone()
        self.positions = torch.full((batch, 1), length, device=ids.device)
        self.mask = torch.zeros(batch, 1, 1, length + steps, dtype=torch.bool, device=ids.device)
        self.model(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.mask[..., :length] = True

    def __call__(self) -> None:
        """One token of every row."""
        self.mask.scatter_(-1, self.positions[:, None, None], True)
        logits = self.model(
            input_ids=self.tokens,
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]
        self.tokens.copy_(logits.argmax(dim=-1, keepdim=True))
        self.positions += 1


def _timed(step: Callable[[], Any], rounds: int) -> float:
    taken = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        began = time.perf_counter()
        step()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


@torch.inference_mode()
def graph_table(base: LoadedBase, *, batch: int, length: int, rounds: int = 30) -> dict[str, Any]:
    """Milliseconds of a step, eager and as a graph, of the bare base, one and ``batch`` adapters.

    Raises:
        RuntimeError: there is no CUDA device.
    """
    if base.device.type != "cuda":
        raise RuntimeError("CUDA graphs need a CUDA device")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, base.model.config.vocab_size, (batch, length), generator=generator)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        names = [f"deep{i}" for i in range(batch)]
        bank = AdapterBank(base.model, base.fingerprint)
        for name, folder in write_adapters(base, Path(place), names).items():
            bank.load(name, folder)
    rows: dict[str, list[str | None]] = {
        "bare base": [None] * batch,
        "1 adapter": ["deep0"] * batch,
        f"{batch} distinct": list(names),
    }
    for line, which in rows.items():
        with bank.rows(which):
            step = Step(base, ids.to(base.device), 3 * rounds + 16)
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # PyTorch asks for warm-up on a side stream
                for _ in range(4):
                    step()
            torch.cuda.current_stream().wait_stream(stream)
            eager = _timed(step, rounds)
            graph = torch.cuda.CUDAGraph()
            began = time.perf_counter()
            with torch.cuda.graph(graph):
                step()
            captured = time.perf_counter() - began
            replayed = _timed(graph.replay, rounds)
        result[line] = {"eager": 1e3 * eager, "graph": 1e3 * replayed, "capture": 1e3 * captured}
        bare = result["bare base"]
        print(
            f"  {line:14} eager {1e3 * eager:7.2f} ms {1e3 * eager / bare['eager']:.2f}x   "
            f"graph {1e3 * replayed:7.2f} ms {1e3 * replayed / bare['graph']:.2f}x   "
            f"captured in {1e3 * captured:.0f} ms",
            flush=True,
        )
    return result
