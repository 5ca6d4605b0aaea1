"""Training tokens per second against plain PEFT with the plain Trainer: same placement, same batch.

Run as:  python -m benchmarks.train_throughput [--base smollm2-135m] [--placement deep all one]

"Plain" is what the PEFT and Trainer documentation show: right padding, labels, logits at every
position; "plain, autocast" is the same with ``bf16=True`` where the base is bfloat16. "Ours" is
asr.train: left padding, logits at supervised positions only, and the adapters' products in the
base's own type. All train the same adapter from the same seed on the same rows (the project's own
demo data, or --data FILE) in the same order, interleaved; the losses are printed, and should agree
up to the rounding of the dtype.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from peft.helpers import disable_input_dtype_casting
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments

from asr.adapters import LoraSettings, attach_for_training, detach, resolve_placement
from asr.base.layers import default_router_layer
from asr.base.load import LoadedBase, load_base
from asr.base.quiet import quiet_libraries
from asr.data.encode import IGNORED, EncodedExample, encode_examples
from asr.data.formats import Example
from asr.data.load import load_examples
from asr.train.supervised import SupervisedCollator, supervised_loss
from benchmarks.interleaved import interleave, machine
from demo.domains import make_domain

PLACEMENTS = ["deep", "all", "one"]


def plain_collator(pad_token_id: int) -> Any:
    """Right padding, labels as they are: what DataCollatorForSeq2Seq does."""

    def collate(rows: Sequence[EncodedExample]) -> dict[str, torch.Tensor]:
        length = max(len(row.input_ids) for row in rows)
        ids = torch.full((len(rows), length), pad_token_id)
        labels = torch.full((len(rows), length), IGNORED)
        mask = torch.zeros((len(rows), length), dtype=torch.long)
        for index, row in enumerate(rows):
            size = len(row.input_ids)
            ids[index, :size] = torch.tensor(row.input_ids)
            labels[index, :size] = torch.tensor(row.labels)
            mask[index, :size] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    return collate


def arguments(
    folder: str, batch: int, steps: int, base: LoadedBase, autocast: bool
) -> TrainingArguments:
    """The same arguments for both sides, but for autocast."""
    return TrainingArguments(
        bf16=autocast and base.dtype is torch.bfloat16,
        fp16=autocast and base.dtype is torch.float16,
        output_dir=folder,
        per_device_train_batch_size=batch,
        max_steps=steps,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        save_strategy="no",
        logging_steps=steps,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=base.device.type == "cpu",
        seed=0,
        dataloader_pin_memory=False,
    )


def compare(
    base: LoadedBase, rows: Sequence[EncodedExample], kind: Any, batch: int, steps: int, rounds: int
) -> dict[str, Any]:
    """Measure one placement, print its lines and return what they say."""
    layer = default_router_layer(base.n_layers)
    placement = resolve_placement(base.model, kind, layer)
    losses: dict[str, float] = {}

    def train(
        name: str, collator: Any, autocast: bool, cast_inputs: bool = True, **options: Any
    ) -> None:
        with quiet_libraries():
            model = attach_for_training(base.model, placement, LoraSettings(), base.name, seed=0)
        casting = disable_input_dtype_casting(
            model, active=not cast_inputs and base.dtype is not torch.float32
        )
        with tempfile.TemporaryDirectory() as folder, quiet_libraries(), casting:
            trainer = Trainer(
                model=model,
                args=arguments(folder, batch, steps, base, autocast),
                train_dataset=list(rows),
                data_collator=collator,
                **options,
            )
            trainer.remove_callback(PrinterCallback)
            trainer.remove_callback(ProgressCallback)
            result = trainer.train()
        losses[name] = result.training_loss
        detach(model)

    pad = base.tokenizer.pad_token_id
    timings = interleave(
        {
            "plain": lambda: train("plain", plain_collator(pad), autocast=False),
            "plain, autocast": lambda: train("plain, autocast", plain_collator(pad), autocast=True),
            "ours": lambda: train(
                "ours",
                SupervisedCollator(pad, keep=True),
                autocast=True,
                cast_inputs=False,
                compute_loss_func=supervised_loss,
            ),
        },
        rounds,
    )
    # the same rows in the same order on both sides: the mean length is what matters for tokens/s
    tokens = sum(len(row.input_ids) for row in rows) / len(rows) * batch * steps
    ours = timings["ours"].median
    print(placement.describe())
    sides = {}
    for name, timing in timings.items():
        print(
            f"  {name:16} {tokens / timing.median:6.0f} tok/s, loss {losses[name]:.4f}, "
            f"ours is {timing.median / ours:.2f}x",
            flush=True,
        )
        sides[name] = {
            "tokens_per_second": round(tokens / timing.median, 1),
            "loss": losses[name],
            "times_ours": round(timing.median / ours, 4),
        }
    return {"placement": placement.describe(), "batch": batch, "sides": sides}


def main() -> None:
    """Parse the arguments, measure every placement, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="smollm2-135m", help="default: smollm2-135m")
    parser.add_argument("--data", help="JSONL file; default: the project's own demo data")
    parser.add_argument("--batch", type=int, nargs="+", default=[4], help="sizes; default: 4")
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps a run; default: 12")
    parser.add_argument("--rounds", type=int, default=3, help="runs a side; default: 3")
    parser.add_argument(
        "--placement",
        nargs="+",
        choices=PLACEMENTS,
        default=PLACEMENTS,
        metavar="KIND",
        help="of deep, all, one (a down-projection in the middle); default: all three",
    )
    args = parser.parse_args()

    base = load_base(args.base)
    if args.data:
        examples = load_examples(args.data, name="benchmark", limit=400).examples
    else:
        raw = make_domain("triage", "train", 400)
        examples = tuple(Example(tuple(row["messages"]), {}, "demo") for row in raw)
    rows = encode_examples(examples, base.tokenizer, base.template, 512).rows
    print(f"{args.base}, {base.note}")
    print(f"{machine()}; {args.steps} steps a run, {args.rounds} runs a side, medians")
    one = f"{base.decoder.path}.{base.n_layers * 11 // 30}.mlp.down_proj"
    for batch in args.batch:
        print(f"batch {batch}")
        for name in args.placement:
            kind = {"modules": [one]} if name == "one" else name
            compare(base, rows, kind, batch, args.steps, args.rounds)


if __name__ == "__main__":
    main()
