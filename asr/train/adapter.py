"""Train one adapter: one domain, one LoRA, ``transformers.Trainer`` underneath.

The base is frozen and comes back unchanged. A run that was stopped goes on from its last complete
checkpoint and ends with the same tensors as one that was not.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from peft.helpers import disable_input_dtype_casting
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from asr.adapters import LoraSettings, Placement, attach_for_training, detach, load_initial
from asr.adapters.lora import TRAINING_NAME
from asr.atomic import storage_errors
from asr.base.attention import finite_gradients
from asr.base.load import LoadedBase
from asr.base.quiet import quiet_libraries
from asr.base.split import accepts_logits_to_keep
from asr.data.encode import EncodedExample
from asr.errors import AdapterError, AsrError, ConfigError
from asr.train.checkpoints import (
    TRAINER_STATE,
    MarkComplete,
    checkpoint_step,
    disk_errors,
    latest_complete,
    load_checkpoint_adapter,
)
from asr.train.interrupt import StopOnInterrupt
from asr.train.recompute import FrozenInputs, recompute_arguments, stop_recomputing
from asr.train.reporting import check_trackers, tracker_folder
from asr.train.sampling import LengthGroupingTrainer
from asr.train.supervised import SupervisedCollator, supervised_loss

Progress = Callable[[int, int, float | None], None]
"""Called with (step, steps, latest loss)."""


@dataclass(frozen=True)
class TrainingSettings:
    """Everything about the optimisation that determines the result; all values resolved.

    ``batch_size`` is over all processes. The training rows hold every example once per view of
    ``views``; an epoch shows each example once, in one of them, so that the views share the epochs.
    Recorded in the manifest as it is.
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
    views: tuple[str, ...] = ("templated",)
    group_by_length: bool = False

    @property
    def passes(self) -> float:
        """Passes over the training rows: an epoch shows one view of each example."""
        return self.epochs / len(self.views)

    def steps(self, rows: int) -> int:
        """Optimizer steps on so many training rows; the last batch of a pass may be smaller."""
        steps = math.ceil(math.ceil(rows / self.batch_size) * self.passes)
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
    initial: Path | None = None,
    report_to: Sequence[str] = (),
    logs: Path | None = None,
) -> tuple[PeftModel, TrainingResult]:
    """Train a new adapter on ``rows``, going on from a checkpoint if there is one.

    Args:
        base: the loaded base; on return its modules carry the trained adapter, until the caller
            detaches it.
        rows: encoded training rows.
        placement: where the adapter sits.
        lora: rank, alpha, dropout, variant.
        settings: optimisation.
        seed: seed of initialisation, order and dropout.
        checkpoints: folder of this domain's checkpoints.
        save_steps: steps between them.
        progress: called after every step, on the main process.
        announce: told when a Ctrl-C was heard, and of a rank that doubles.
        callbacks: further Trainer callbacks.
        initial: folder of a saved adapter of the same placement and rank, from whose tensors the
            new one starts; not read where a checkpoint is there.
        report_to: experiment trackers (:data:`asr.train.reporting.TRACKERS`).
        logs: folder for trackers that write files.

    Returns:
        The PEFT model with the trained adapter, and what was measured. Several processes share each
        batch and end, up to rounding, with the tensors of one, where the batch size divides the
        rows; else the last batch of an epoch is filled up with rows of its first, so that every
        process has some (accelerate's ``even_batches``).

    Raises:
        ConfigError: the batch does not divide over the processes; a tracker is not installed.
        StorageError: the disk is full or not writable.
        AdapterError: PEFT attached something else than asked for; ``initial`` cannot be read, or
            has another placement or rank; the variant is refused.
        KeyboardInterrupt: Ctrl-C; a checkpoint of the last step is on disk.
    """
    transformers.set_seed(seed)
    check_trackers(report_to)
    if initial is not None and lora.init_lora_weights is not True:
        raise AdapterError(
            f"an adapter starts from a saved one ({initial}) or by init_lora_weights "
            f"{lora.init_lora_weights}, not both; leave one out"
        )
    args = _arguments(base, settings, len(rows), seed, checkpoints, save_steps, report_to)
    # Without a launcher one accelerator trains, as documented: the Trainer would otherwise put the
    # model on all that it sees (DataParallel), with a batch that many times as large.
    args._n_gpu = min(args.n_gpu, 1)
    if settings.batch_size % args.world_size:
        raise ConfigError(
            f"training.batch_size {settings.batch_size} does not divide over {args.world_size} "
            f"processes; use a multiple of {args.world_size}"
        )
    args.per_device_train_batch_size = settings.batch_size // args.world_size
    if announce is not None and lora.saved_times > 1:
        saved = f"of rank {lora.saved_rank}, twice {lora.rank}"
        announce(
            f"{lora.init_lora_weights}: trains over a rewritten base, which is given back; the "
            f"adapter is saved as plain LoRA "
            + (saved if placement.ranks is None else "of twice its ranks")
        )
    with quiet_libraries():
        model = attach_for_training(base.model, placement, lora, base.name, seed)
    cached = base.model.config.use_cache
    try:
        interrupt = StopOnInterrupt(announce)
        if settings.gradient_checkpointing:
            callbacks = [FrozenInputs(), *callbacks]
        trainer = LengthGroupingTrainer if settings.group_by_length else Trainer
        with tracker_folder(logs), _no_lookups(model):
            result = _run(
                base, model, args, settings, rows, trainer, progress, interrupt, callbacks, initial
            )
    except BaseException:
        detach(model)
        raise
    finally:
        base.model.config.use_cache = cached  # the Trainer turns it off
        if settings.gradient_checkpointing:
            stop_recomputing(model)
    return model, result


def _run(
    base: LoadedBase,
    model: PeftModel,
    args: TrainingArguments,
    settings: TrainingSettings,
    rows: Sequence[EncodedExample],
    kind: type[Trainer],
    progress: Progress | None,
    interrupt: StopOnInterrupt,
    callbacks: Sequence[TrainerCallback],
    initial: Path | None,
) -> TrainingResult:
    checkpoints = Path(str(args.output_dir))
    watch = _Watch(progress)
    start = latest_complete(checkpoints, remove_torn=args.should_save)
    if initial is not None and start is None:
        load_initial(model, initial, base_fingerprint=base.fingerprint)
    with storage_errors(checkpoints):  # it makes the folder
        trainer = kind(
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
    if start is not None and checkpoint_step(start) >= settings.steps(len(rows)):
        # The Trainer would take one more step where the last pass over the rows is a part of one.
        load_checkpoint_adapter(model, start)
        watch.resume(TrainerState.load_from_json(str(start / TRAINER_STATE)))
        return TrainingResult(checkpoint_step(start), watch.recent_loss, 0.0, 0)
    began = time.perf_counter()
    # PEFT would cast every input to float32 first, and autocast back again.
    casting = disable_input_dtype_casting(model, active=base.dtype is not torch.float32)
    with quiet_libraries(), casting, finite_gradients(), disk_errors(checkpoints), interrupt:
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
    report_to: Sequence[str],
) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(checkpoints),
        seed=seed,
        data_seed=seed,
        use_cpu=base.device.type == "cpu",
        num_train_epochs=settings.passes,
        # the Trainer would repeat the data to reach max_steps; here it only ends a run early
        max_steps=-1 if settings.max_steps is None else settings.steps(rows),
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup,  # below 1 it is a share of all steps
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm or 0.0,
        **recompute_arguments(settings.gradient_checkpointing),
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
        report_to=list(report_to) or "none",
        run_name=checkpoints.name,
        remove_unused_columns=False,
        dataloader_pin_memory=base.device.type == "cuda",
        label_names=["labels"],
        ddp_find_unused_parameters=False,
    )


@contextmanager
def _no_lookups(model: PeftModel) -> Iterator[None]:
    """Keep PEFT from asking the hub for a base of that name whenever a checkpoint is saved."""
    config = model.peft_config[TRAINING_NAME]
    name = config.base_model_name_or_path
    config.base_model_name_or_path = None
    try:
        yield
    finally:
        config.base_model_name_or_path = name


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
        self.resume(state)

    def resume(self, state: TrainerState) -> None:
        """Take over the losses of ``state``."""
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
