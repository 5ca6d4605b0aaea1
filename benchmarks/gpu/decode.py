"""What many adapters in one batch cost on a GPU, eager and as CUDA graphs, and the engine's load.

The lines of :mod:`benchmarks.serving` on the base as given (bf16), then on a base of the shape of
Llama-3.2-1B in bf16 and in nf4, with peak memory; then the serving engine over a small routed
model that is trained on the spot: its answers beside those of the routed model alone, and tokens
per second of mixed domains against the bare base.
"""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import Any

import torch

import asr
from asr.base.load import load_base
from asr.model.routed_model import RoutedModel
from asr.serve.engine import Engine, EngineSettings
from benchmarks.cuda_graphs import graph_table
from benchmarks.engine_load import EngineClient, engine_table
from benchmarks.gpu.page import LLAMA_1B, SMALL, write_base
from benchmarks.gpu.parts import Part
from benchmarks.load import closed_loop
from benchmarks.serving import decode_table

CONFIG = """
base: {base}
training: {{epochs: 1, max_length: 256}}
router: {{background: {background}}}
eval: {{max_examples: 2, max_new_tokens: 8}}
domains:
"""


def run(part: Part) -> None:
    """Measure the tables, then the engine."""
    tiny = part.options.rehearse
    figures: dict[str, Any] = {}
    sizes = {"steps": 4, "rounds": 1, "length": 16} if tiny else {"steps": 16, "rounds": 3}
    base = load_base(part.options.base, say=part.say)
    figures["base"] = _table(part, base, peft=True, **sizes)
    part.save(False, figures=figures)
    if base.device.type == "cuda":
        figures["base graphs"] = graph_table(base, batch=8, length=128)
        part.save(False, figures=figures)
    del base
    _free()
    figures["engine"] = _engine(part)
    part.save(False, figures=figures)
    _free()
    folder = part.work / "base-1b"
    write_base(folder, SMALL if tiny else LLAMA_1B, part.options.base)
    for quantisation in (None, "nf4"):
        if part.left < 20 and not tiny:
            part.say("no time left")
            return
        name = f"1B {quantisation or 'bfloat16'}"
        base = load_base(str(folder), dtype="bfloat16", quantisation=quantisation, say=part.say)
        figures[name] = _table(part, base, peft=False, **sizes)
        if base.device.type == "cuda":
            part.save(False, figures=figures)
            figures[f"{name} graphs"] = graph_table(base, batch=8, length=128)
        part.save(quantisation is not None, figures=figures)
        del base
        _free()


def _table(part: Part, base: Any, **options: Any) -> dict[str, Any]:
    if base.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    table: dict[str, Any] = dict(decode_table(base, **options))
    for name, line in table.items():
        part.say(
            f"{name}: decode {line['decode']:.2f} ms {line['decode_ratio']:.2f}x, "
            f"prefill {line['prefill']:.1f} ms {line['prefill_ratio']:.2f}x"
        )
    if base.device.type == "cuda":
        table["peak_bytes"] = torch.cuda.max_memory_allocated()
    return table


def _engine(part: Part) -> dict[str, Any]:
    """Train a small routed model, compare the engine's answers with it alone, and load it."""
    tiny = part.options.rehearse
    data = Path(part.options.data)
    domains = sorted(path.name for path in data.iterdir() if (path / "train.jsonl").is_file())
    text = CONFIG.format(base=part.options.base, background=4 if tiny else 32)
    for name in domains:
        text += f"  {name}: {{train: {data / name / 'train.jsonl'}, limit: 24, scorer: exact}}\n"
    config = part.work / "engine.yaml"
    config.write_text(text, encoding="utf-8")
    began = time.perf_counter()
    asr.train_sequence(asr.load_config(config), part.work / "engine")
    part.say(f"trained {len(domains)} small domains in {time.perf_counter() - began:.0f} s")
    model = RoutedModel.from_pretrained(part.work / "engine", base=part.options.base)
    prompts = [f"Question {i}: what is {i} times {i + 1}?" for i in range(8)]
    alone = {
        name: [model.generate([p], adapter=name, max_new_tokens=32)[0].text for p in prompts]
        for name in domains
    }
    engine = Engine(model, EngineSettings(max_batch=64, cache_memory=0)).start()
    try:
        equal = _equal_answers(engine, prompts, alone)
        part.say(f"engine: {equal} of {len(prompts) * len(domains)} answers equal to solo ones")
        out = 8 if tiny else 64
        warm = EngineClient(engine, domains, 200 if not tiny else 40, out, seed=99)
        closed_loop(4, 8, warm)
        table = engine_table(
            engine,
            (1, 4) if tiny else (1, 8, 32),
            tokens_in=warm.tokens_in,
            tokens_out=out,
            rounds=1 if tiny else 2,
        )
    finally:
        engine.close()
    return {"equal": equal, "asked": len(prompts) * len(domains), "load": table}


def _equal_answers(engine: Engine, prompts: list[str], alone: dict[str, list[str]]) -> int:
    """Ask everything at once; how many answers are what the model said to the prompt alone."""
    from asr.data.prompt import encode_prompt
    from asr.serve.request import Event, Finished, Piece, Sampling, ServeRequest

    answers: dict[tuple[str, int], list[Event]] = {}
    for name in alone:
        for index, prompt in enumerate(prompts):
            events = answers[name, index] = []
            encoded = encode_prompt(prompt, engine.tokenizer, engine.template)
            request = ServeRequest(
                encoded, name, Sampling(max_tokens=32), engine.template.answer_opening
            )
            engine.submit(request, events.append)
    while not all(events and isinstance(events[-1], Finished) for events in answers.values()):
        time.sleep(0.01)
    return sum(
        "".join(e.text for e in events if isinstance(e, Piece)) == alone[name][index]
        for (name, index), events in answers.items()
    )


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
