"""What many adapters in one batch cost: decode and prefill against the bare base.

    python -m benchmarks.serving [--base smollm2-135m] [--batch 8] [--length 128] [--steps 24]

Every line runs in the same loop, the engine's: keys and values in a row cache, adapters through the
bank, the likeliest token of every row. "Bare base" is that loop without any adapter. PEFT's mixed
batch runs in it too, on a second copy of the base; transformers' own ``generate`` stands beside in
absolute tokens per second. All lines take turns, round by round; ratios are of medians. Seconds are
of the processor (``--wall``: of the clock; on a GPU always), which neighbours on a shared machine
disturb least: run it on one thread (OMP_NUM_THREADS=1) then.

``--graphs`` (GPU only) repeats the decode lines as CUDA graphs over a static cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import DynamicCache

from asr.adapters import AdapterBank, linear_modules
from asr.base.load import LoadedBase, load_base
from asr.base.packed import pack_linear_modules
from asr.base.quiet import quiet_libraries
from asr.base.row_cache import RowCache, states_of
from benchmarks.interleaved import machine
from benchmarks.random_adapters import write_adapters

SLOTS = 32


@dataclass
class Line:
    """One way to run a batch.

    Attributes:
        name: of the line.
        model: what is called.
        rows: makes the adapters of the rows active.
        batch: rows.
    """

    name: str
    model: Any
    rows: Callable[[], AbstractContextManager[Any]]
    batch: int
    arguments: dict[str, Any]


class Clock:
    """Seconds of the processor, or of the clock; on a GPU of the clock, once it is idle."""

    def __init__(self, wall: bool) -> None:
        self._now = time.perf_counter if wall or torch.cuda.is_available() else time.process_time

    def __call__(self) -> float:
        """The time now."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return self._now()


@torch.inference_mode()
def run(line: Line, ids: torch.Tensor, steps: int, clock: Clock) -> tuple[float, float]:
    """Seconds of the prefill, and of a decode step (the median one)."""
    device, (batch, length) = ids.device, ids.shape
    cache, own = RowCache(hidden_column=device.type == "cpu"), DynamicCache()
    with line.rows():
        began = clock()
        logits = line.model(
            input_ids=ids, past_key_values=own, use_cache=True, logits_to_keep=1, **line.arguments
        ).logits[:, -1]
        prefill = clock() - began
        for row in range(batch):
            cache.join(states_of(own, row, length, length), length)
        taken = []
        for _ in range(steps):
            began = clock()
            positions = torch.tensor([[n] for n in cache.lengths], device=device)
            mask = cache.mask(device)
            with cache.step():
                logits = line.model(
                    input_ids=logits.argmax(dim=-1)[:, None],
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                    **line.arguments,
                ).logits[:, -1]
            logits.argmax(dim=-1).tolist()
            taken.append(clock() - began)
    return prefill, statistics.median(taken)


def lines(base: LoadedBase, bank: AdapterBank, batch: int, peft: Any | None) -> list[Line]:
    """The table's lines, the bare base first."""
    eight = [f"deep{i}" for i in range(batch)]
    half = [name if i % 2 else None for i, name in enumerate(eight)]
    many = [f"deep{i}" for i in range(SLOTS)]

    def ours(name: str, names: Sequence[str | None]) -> Line:
        return Line(name, base.model, lambda: bank.rows(names), len(names), {})

    table = [
        Line("bare base", base.model, nullcontext, batch, {}),
        ours("base rows, adapters loaded", [None] * batch),
        ours("1 adapter", ["deep0"] * batch),
        ours(f"{batch} distinct", eight),
        ours(f"{batch // 2} distinct + base rows", half),
        ours("1 DomLoRA module", ["module0"] * batch),
        ours(f"{batch} distinct DomLoRA modules", [f"module{i}" for i in range(batch)]),
        Line(f"bare base, {SLOTS} rows", base.model, nullcontext, SLOTS, {}),
        ours(f"{SLOTS} distinct, {SLOTS} rows", many),
    ]
    if peft is not None:
        # PEFT calls the base of a row "__base__" and the adapters by their names
        for name, names in (
            ("PEFT, base rows", ["__base__"] * batch),
            ("PEFT, 1 adapter", ["deep0"] * batch),
            (f"PEFT, {batch} distinct", eight),
        ):
            table.append(Line(name, peft, nullcontext, batch, {"adapter_names": names}))
    return table


def decode_table(
    base: LoadedBase,
    *,
    batch: int = 8,
    length: int = 128,
    steps: int = 24,
    rounds: int = 5,
    peft: bool = True,
    wall: bool = False,
) -> dict[str, dict[str, float]]:
    """Measure all lines in turn.

    Returns:
        By line: ``prefill`` and ``decode`` in milliseconds (medians), their ratios to the bare base
        of as many rows, and ``tokens_per_second`` of decoding.
    """
    clock = Clock(wall)
    pack_linear_modules(base.model, print)  # as a routed model does when it is loaded
    with tempfile.TemporaryDirectory() as place:
        folders = write_adapters(base, Path(place), [f"deep{i}" for i in range(SLOTS)])
        downs = [m.name for m in linear_modules(base.model) if m.name.endswith("down_proj")]
        one = {"modules": [downs[len(downs) // 3]]}
        names = [f"module{i}" for i in range(batch)]
        folders |= write_adapters(base, Path(place), names, one, rank=16)
        bank = AdapterBank(base.model, base.fingerprint)
        for name, folder in folders.items():
            bank.load(name, folder)
        theirs = _peft_model(base, folders, batch) if peft else None
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, base.model.config.vocab_size, (SLOTS, length), generator=generator)
    table = lines(base, bank, batch, theirs)
    taken: dict[str, list[tuple[float, float]]] = {line.name: [] for line in table}
    for turn in range(rounds + 1):  # the first one warms up
        for line in table:
            found = run(line, ids[: line.batch].to(base.device), steps, clock)
            taken[line.name] += [found] if turn else []
    bank.close()
    medians = {
        name: (statistics.median(p for p, _ in each), statistics.median(d for _, d in each))
        for name, each in taken.items()
    }
    result = {}
    for line in table:
        bare = medians["bare base" if line.batch == batch else f"bare base, {SLOTS} rows"]
        prefill, decode = medians[line.name]
        result[line.name] = {
            "prefill": 1e3 * prefill,
            "prefill_ratio": prefill / bare[0],
            "decode": 1e3 * decode,
            "decode_ratio": decode / bare[1],
            "tokens_per_second": line.batch / decode,
        }
    return result


def _peft_model(base: LoadedBase, folders: dict[str, Path], count: int) -> Any:
    """PEFT's model over a second copy of the base, with so many adapters, in the base's type."""
    copied = load_base(str(base.resolved.path), device=str(base.device), dtype=base.dtype_name)
    with quiet_libraries():
        names = [f"deep{i}" for i in range(count)]
        model = PeftModel.from_pretrained(
            copied.model, folders[names[0]], names[0], autocast_adapter_dtype=False
        )
        for name in names[1:]:
            model.load_adapter(folders[name], name, autocast_adapter_dtype=False)
    return model.to(base.dtype).eval()


@torch.inference_mode()
def plain_generate(base: LoadedBase, batch: int, length: int, steps: int, clock: Clock) -> float:
    """Tokens per second of transformers' ``generate``, prefill included."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, base.model.config.vocab_size, (batch, length), generator=generator)
    ids = ids.to(base.device)
    settings = {"do_sample": False, "min_new_tokens": steps, "max_new_tokens": steps}
    pad = base.tokenizer.pad_token_id
    mask = torch.ones_like(ids)
    rates = []
    for _ in range(3):
        began = clock()
        base.model.generate(input_ids=ids, attention_mask=mask, pad_token_id=pad, **settings)
        rates.append(batch * steps / (clock() - began))
    return statistics.median(rates)


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--base", default="smollm2-135m", help="default: smollm2-135m")
    parser.add_argument("--dtype", default="auto", help="of the base; default: by capability")
    parser.add_argument("--quantisation", help="int8 or nf4")
    parser.add_argument("--batch", type=int, default=8, help="rows; default: 8")
    parser.add_argument("--length", type=int, default=128, help="of a prompt; default: 128")
    parser.add_argument("--steps", type=int, default=24, help="tokens decoded; default: 24")
    parser.add_argument("--rounds", type=int, default=5, help="timed of each; default: 5")
    parser.add_argument("--no-peft", action="store_true", help="leave PEFT's mixed batch out")
    parser.add_argument("--wall", action="store_true", help="seconds of the clock")
    parser.add_argument("--graphs", action="store_true", help="decode as CUDA graphs, too")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    base = load_base(options.base, dtype=options.dtype, quantisation=options.quantisation)
    print(f"{options.base}, {base.note}; {machine()}", flush=True)
    print(f"batch {options.batch}, prompts of {options.length}, medians of {options.rounds}")
    table = decode_table(
        base,
        batch=options.batch,
        length=options.length,
        steps=options.steps,
        rounds=options.rounds,
        peft=not options.no_peft,
        wall=options.wall,
    )
    for name, found in table.items():
        print(
            f"  {name:28} decode {found['decode']:8.2f} ms {found['decode_ratio']:5.2f}x "
            f"{found['tokens_per_second']:8.1f} tokens/s   "
            f"prefill {found['prefill']:8.1f} ms {found['prefill_ratio']:5.2f}x"
        )
    plain = plain_generate(base, options.batch, options.length, options.steps, Clock(options.wall))
    print(f"  transformers' generate, bare base, prefill included: {plain:.1f} tokens/s")
    result: dict[str, Any] = {"machine": machine(), "table": table, "generate": plain}
    if options.graphs:
        from benchmarks.cuda_graphs import graph_table

        result["graphs"] = graph_table(base, batch=options.batch, length=options.length)
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
