"""Train one adapter: one domain, one LoRA, ``transformers.Trainer`` underneath.

The base is frozen and comes back unchanged. A run that was stopped goes on from its last complete
checkpoint and ends with the same tensors as one that was not.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from peft.helpers import disable_input_dtype_casting
from safetensors import SafetensorError
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from asr.adapters import LoraSettings, Placement, attach_for_training, detach
from asr.base.load import LoadedBase
from asr.base.quiet import quiet_libraries
from asr.base.split import accepts_logits_to_keep
from asr.data.encode import EncodedExample
from asr.errors import AsrError, ConfigError, StorageError
from asr.model.atomic import storage_errors
from asr.train.checkpoints import MarkComplete, latest_complete
from asr.train.interrupt import StopOnInterrupt
from asr.train.supervised import SupervisedCollator, supervised_loss

Progress = Callable[[int, int, float | None], None]
"""Called with (step, steps, latest loss)."""


@dataclass(frozen=True)
class TrainingSettings:
    """Everything about the optimisation that determines the result; all values resolved.

    ``batch_size`` is over all processes. Recorded in the manifest as it is.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    schedule: str
    warmup: float
    weight_decay: float
    max_length: int
    max_grad_norm: float | None
    gradient_checkpointing: bool
    max_steps: int | None

    def steps(self, rows: int) -> int:
        """Optimizer steps on so many training rows; the last batch of an epoch may be smaller."""
        steps = math.ceil(rows / self.batch_size) * self.epochs
        return steps if self.max_steps is None else min(steps, self.max_steps)


@dataclass(frozen=True)
class TrainingResult:
    """What a training run measured.

    Attributes:
        steps: optimizer steps in all.
        loss: mean loss over the last tenth of the logged steps, nats per supervised token.
        seconds: wall time of this process's part (a resumed run counts from its checkpoint).
        tokens: tokens that this process's part trained on, over all processes, without padding;
            by the share of the steps of an epoch, so about right where an epoch is left unfinished.
    """

    steps: int
    loss: float
    seconds: float
    tokens: int

    @property
    def tokens_per_second(self) -> float:
        """Training throughput; 0 where nothing was left to do."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


def domain_seed(seed: int, domain: str) -> int:
    """A seed of the domain's own, so that its result does not depend on its place in the order."""
    digest = hashlib.sha256(f"{seed}/{domain}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def train_adapter(
    base: LoadedBase,
    rows: Sequence[EncodedExample],
    placement: Placement,
    lora: LoraSettings,
    settings: TrainingSettings,
    *,
    seed: int,
    checkpoints: Path,
    save_steps: int,
    progress: Progress | None = None,
    announce: Callable[[str], None] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[PeftModel, TrainingResult]:
    """Train a fresh adapter on ``rows``, going on from a checkpoint if there is one.

    Args:
        base: the loaded base; on return its modules carry the trained adapter, until the caller
            detaches it.
        rows: encoded training rows.
        placement: where the adapter sits.
        lora: rank, alpha, dropout.
        settings: optimisation.
        seed: seed of initialisation, order and dropout.
        checkpoints: folder of this domain's checkpoints.
        save_steps: steps between them.
        progress: called after every step, on the main process.
        announce: told when a Ctrl-C was heard.
        callbacks: further Trainer callbacks.

    Returns:
        The PEFT model with the trained adapter, and what was measured. Several processes share each
        batch and end, up to rounding, with the tensors of one, where the batch size divides the
        rows; else the last batch of an epoch is filled up with rows of its first, so that every
        process has some (accelerate's ``even_batches``).

    Raises:
        ConfigError: the batch does not divide over the processes.
        StorageError: the disk is full or not writable.
        AdapterError: PEFT attached something else than asked for.
        KeyboardInterrupt: Ctrl-C; a checkpoint of the last step is on disk.
    """
    transformers.set_seed(seed)
    args = _arguments(base, settings, len(rows), seed, checkpoints, save_steps)
    # Without a launcher one accelerator trains, as documented: the Trainer would otherwise put the
    # model on all that it sees (DataParallel), with a batch that many times as large.
    args._n_gpu = min(args.n_gpu, 1)
    if settings.batch_size % args.world_size:
        raise ConfigError(
            f"training.batch_size {settings.batch_size} does not divide over {args.world_size} "
            f"processes; use a multiple of {args.world_size}"
        )
    args.per_device_train_batch_size = settings.batch_size // args.world_size
    with quiet_libraries():
        model = attach_for_training(base.model, placement, lora, base.name, seed)
    try:
        interrupt = StopOnInterrupt(announce)
        result = _run(base, model, args, rows, progress, interrupt, callbacks)
    except BaseException:
        detach(model)
        raise
    return model, result


def _run(
    base: LoadedBase,
    model: PeftModel,
    args: TrainingArguments,
    rows: Sequence[EncodedExample],
    progress: Progress | None,
    interrupt: StopOnInterrupt,
    callbacks: Sequence[TrainerCallback],
) -> TrainingResult:
    checkpoints = Path(str(args.output_dir))
    watch = _Watch(progress)
    with storage_errors(checkpoints):  # it makes the folder
        trainer = Trainer(
            model=model,
            args=args,
            train_dataset=list(rows),
            data_collator=SupervisedCollator(
                base.tokenizer.pad_token_id, keep=accepts_logits_to_keep(base.model)
            ),
            compute_loss_func=supervised_loss,
            callbacks=[MarkComplete(), interrupt, watch, *callbacks],
        )
    trainer.remove_callback(PrinterCallback)
    start = latest_complete(checkpoints, remove_torn=args.should_save)
    began = time.perf_counter()
    # PEFT would cast every input to float32 first, and autocast back again.
    casting = disable_input_dtype_casting(model, active=base.dtype is not torch.float32)
    with quiet_libraries(), casting, _disk_errors(checkpoints), interrupt:
        trainer.train(resume_from_checkpoint=str(start) if start else None)
    seconds = time.perf_counter() - began
    if interrupt.interrupted or interrupt.requested:  # requested alone: after the last step
        raise KeyboardInterrupt
    tokens_per_epoch = sum(len(row.input_ids) for row in rows)
    share = watch.steps_done / max(1, trainer.state.max_steps)
    tokens = round(tokens_per_epoch * trainer.state.epoch * share) if watch.steps_done else 0
    return TrainingResult(trainer.state.global_step, watch.recent_loss, seconds, tokens)


def _arguments(
    base: LoadedBase,
    settings: TrainingSettings,
    rows: int,
    seed: int,
    checkpoints: Path,
    save_steps: int,
) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(checkpoints),
        seed=seed,
        data_seed=seed,
        use_cpu=base.device.type == "cpu",
        num_train_epochs=settings.epochs,
        # the Trainer would repeat the data to reach max_steps; here it only ends a run early
        max_steps=-1 if settings.max_steps is None else settings.steps(rows),
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup,  # below 1 it is a share of all steps
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm or 0.0,
        **_checkpointing(settings.gradient_checkpointing),
        save_strategy="steps",
        save_steps=save_steps,
        save_total_limit=2,  # the one being written and the one before it
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would hide from _Watch that training diverged
        # Adapters are float32. Autocast lets their products run in the base's own type: faster, at
        # the same loss up to rounding (benchmarks/train_throughput.py).
        bf16=base.dtype is torch.bfloat16,
        fp16=base.dtype is torch.float16,
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=base.device.type == "cuda",
        label_names=["labels"],
        ddp_find_unused_parameters=False,
    )


def _checkpointing(wanted: bool) -> dict[str, Any]:
    """Trainer arguments for activation checkpointing; their names changed within transformers 5."""
    if not wanted:
        return {}
    known = {field.name for field in fields(TrainingArguments)}
    name = "activation" if "activation_checkpointing" in known else "gradient"
    return {
        f"{name}_checkpointing": True,
        f"{name}_checkpointing_kwargs": {"use_reentrant": False},
    }


class _Watch(TrainerCallback):
    """Counts steps, keeps the recent losses, and reports both."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self.steps_done = 0
        self.losses: list[float] = []
        self.total = 1

    @property
    def recent_loss(self) -> float:
        """Mean over the last tenth of the steps of the run."""
        recent = self.losses[-max(1, self.total // 10) :]
        return sum(recent) / len(recent) if recent else 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take over the losses that a resumed state carries."""
        self.total = state.max_steps
        self.losses = [entry["loss"] for entry in state.log_history if "loss" in entry]

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count the step and report it."""
        self.steps_done += 1
        if self.progress is not None and state.is_world_process_zero:
            loss = self.losses[-1] if self.losses else None
            self.progress(state.global_step, state.max_steps, loss)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep the loss; a loss that is not a number ends the run."""
        if logs is None or "loss" not in logs:
            return
        loss = logs["loss"]
        if not torch.isfinite(torch.tensor(loss)):
            raise AsrError(
                f"the loss is {loss} at step {state.global_step}: training diverged; lower "
                "training.learning_rate, or use dtype float32"
            )
        self.losses.append(loss)


class _disk_errors:
    """Turns the several ways in which libraries report a full disk into a StorageError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._inner = storage_errors(folder)

    def __enter__(self) -> None:
        self._inner.__enter__()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool | None:
        full = isinstance(error, SafetensorError | RuntimeError) and (
            "No space left" in str(error) or "file write failed" in str(error)
        )
        if full:
            raise StorageError(
                f"cannot write a checkpoint into {self._folder}: no space left on the device; free "
                "space and run the same command again with --resume"
            ) from error
        return self._inner.__exit__(kind, error, trace)
