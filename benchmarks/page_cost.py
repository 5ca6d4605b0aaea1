"""What the gradient probe costs beside a backward pass that computes no energies at all.

Run as:  python -m benchmarks.page_cost [--base smollm2-135m] [--length 128 256] [--batch 8]

Three sides, interleaved in one process, on the same rows and the same loss (mean over the last
tokens of each row, logits at those positions only):

- "backward": forward and input-gradient backward on the frozen base, without any hook;
- "PAGE": energies of every linear module, per sample;
- "naive": the same backward with every linear weight trainable: their gradients are kept, and their
  norms taken at the end (of the whole batch: per sample it would be a pass per row).

Memory: one fresh process per side, which loads the base, lets Linux forget the peak of its resident
memory, runs the side twice, and reads the new peak (VmHWM). malloc is told to give back whatever is
freed, so that the peak is of what is alive. On a GPU: torch's own peak, in this process.

Energies: the largest relative deviation over modules of the mean over rows, and over all single
values, (1) of products in the base's type from products in float32, on the same activations and
gradients, and (2) from the probe of the same base loaded in float32.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from asr.adapters import PageEnergies, PageSettings, linear_modules, page_energies
from asr.adapters.probe.batch import pad_rows, sample_losses
from asr.adapters.probe.hooks import frozen_in_evaluation
from asr.base.load import LoadedBase, load_base
from asr.data.encode import IGNORED, EncodedExample
from benchmarks.interleaved import interleave, machine

SIDES = ("backward", "PAGE", "naive")


def random_rows(base: LoadedBase, batch: int, length: int, answer: int) -> list[EncodedExample]:
    """Rows of one length, the last ``answer`` tokens of each supervised."""
    vocabulary = base.model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(length)
    rows = []
    for index in range(batch):
        ids = torch.randint(5, vocabulary, (length,), generator=generator).tolist()
        labels = [IGNORED] * (length - answer) + ids[length - answer :]
        rows.append(EncodedExample(ids, labels, f"random:{index + 1}"))
    return rows


def sides(base: LoadedBase, rows: list[EncodedExample]) -> dict[str, Callable[[], object]]:
    """What is compared, ready to run."""
    model = base.model
    pad = base.tokenizer.pad_token_id or 0
    modules = linear_modules(model)
    weights = [model.get_submodule(module.name).weight for module in modules]

    def backward() -> None:
        start = model.get_input_embeddings().register_forward_hook(
            lambda module, args, output: output.requires_grad_(True)
        )
        with frozen_in_evaluation(model):
            sample_losses(model, pad_rows(rows, "answer", pad, base.device)).sum().backward()
        start.remove()

    def page(exact: bool = False) -> PageEnergies:
        return page_energies(
            model,
            rows,
            modules,
            PageSettings(),
            pad_token_id=pad,
            batch_size=len(rows),
            exact=exact,
        )

    def naive() -> list[float]:
        if not weights[0].is_floating_point():
            return []  # quantised weights have no gradient
        for weight in weights:
            weight.requires_grad_(True)
        sample_losses(model, pad_rows(rows, "answer", pad, base.device)).sum().backward()
        norms = [weight.grad.float().square().sum().item() for weight in weights]
        for weight in weights:
            weight.requires_grad_(False)
            weight.grad = None
        return norms

    return {"backward": backward, "PAGE": page, "naive": naive}


def peak(run: Callable[[], object]) -> tuple[int, int]:
    """Bytes in use before ``run``, and at its peak."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return before, torch.cuda.max_memory_allocated()
    run()  # buffers that libraries keep are there from now on
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    run()
    return before, _status("VmHWM")


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {key}: memory is measured on Linux or a GPU")


def peak_in_a_process(args: argparse.Namespace, length: int, side: str) -> tuple[int, int]:
    """As :func:`peak`, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.page_cost", "--memory-of", side]
    command += ["--length", str(length)]
    for name in ("base", "batch", "answer", "dtype", "quantisation"):
        value = getattr(args, name)
        command += [f"--{name}", str(value)] if value is not None else []
    # from this size on memory is mapped piece by piece, and unmapped as soon as it is freed
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    before, highest = output.stdout.split()[-2:]
    return int(before), int(highest)


def deviation(found: PageEnergies, reference: PageEnergies) -> str:
    """Largest relative deviations, for people."""
    parts = []
    for name in ("energy", "without_first"):
        ours, theirs = getattr(found, name), getattr(reference, name)
        means = np.abs(ours.mean(0) / theirs.mean(0) - 1)
        single = np.abs(ours / theirs - 1)
        share = np.abs(ours.mean(0) / ours.mean(0).sum() - theirs.mean(0) / theirs.mean(0).sum())
        parts.append(
            f"{name} {means.max():.2%} (mean over modules {means.mean():.2%}; single values "
            f"{single.max():.2%}; shares of the sum {share.max():.3f})"
        )
    return "; ".join(parts)


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--length", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--answer", type=int, default=32, help="supervised tokens of a row")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantisation", choices=["int8", "nf4"])
    parser.add_argument("--memory-of", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()

    base = load_base(args.base, dtype=args.dtype, quantisation=args.quantisation)
    if args.memory_of:
        rows = random_rows(base, args.batch, args.length[0], args.answer)
        print(*peak(sides(base, rows)[args.memory_of]))
        return
    modules = linear_modules(base.model)
    print(f"{args.base}, {base.note}; {len(modules)} linear modules")
    print(f"{machine()}; batch {args.batch}, {args.rounds} rounds, medians")
    for length in args.length:
        rows = random_rows(base, args.batch, length, args.answer)
        compared = sides(base, rows)
        busy: dict[str, list[float]] = {side: [] for side in SIDES}
        timings = interleave(
            {side: on_the_cpu(compared[side], busy[side]) for side in SIDES}, args.rounds
        )
        least = timings["backward"].median
        work = np.median(busy["backward"][1:])
        print(f"length {length}, last {args.answer} tokens supervised")
        memory = {
            side: peak(compared[side])
            if torch.cuda.is_available()
            else peak_in_a_process(args, length, side)
            for side in SIDES
        }
        empty, highest = memory["backward"]
        for side in SIDES:
            before, top = memory[side]
            print(
                f"  {side:9} {timings[side].median:7.3f} s, {timings[side].median / least:.3f}x "
                f"(processor time {np.median(busy[side][1:]) / work:.3f}x); "
                f"peak {top / 2**20:6.0f} MiB, {top / highest:.3f}x; above the loaded base "
                f"{(top - before) / 2**20:6.0f} MiB, {(top - before) / (highest - empty):.3f}x",
                flush=True,
            )
        check_energies(args, base, rows)


def on_the_cpu(run: Callable[[], object], seconds: list[float]) -> Callable[[], None]:
    """``run``, noting the processor time it takes: on a machine that others use it is steadier."""

    def noted() -> None:
        began = time.process_time()
        run()
        seconds.append(time.process_time() - began)

    return noted


def check_energies(args: argparse.Namespace, base: LoadedBase, rows: list[EncodedExample]) -> None:
    """Print how far the energies are from those in float32."""
    energies: Callable[..., PageEnergies] = sides(base, rows)["PAGE"]  # type: ignore[assignment]
    found, exact = energies(), energies(exact=True)
    print(f"  products in float32: {deviation(found, exact)}")
    if base.dtype is torch.float32 and base.quantisation is None:
        return
    whole = load_base(args.base, dtype="float32", quantisation=args.quantisation)
    reference = sides(whole, rows)["PAGE"]()
    assert isinstance(reference, PageEnergies)
    print(f"  base in float32: {deviation(found, reference)}", flush=True)


if __name__ == "__main__":
    main()
