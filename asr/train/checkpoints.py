"""Step checkpoints of the domain in training, and which of them can be trusted.

The Trainer writes a checkpoint file by file; a kill in between leaves a folder that looks like one.
A marker, written last, tells complete ones. They hold the program's own optimizer state and are
removed when the domain is done; nothing in them is ever loaded from elsewhere.
"""

from __future__ import annotations

import os
import re
import shutil
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from asr.atomic import storage_errors, write_json
from asr.errors import StorageError, first_line

MARKER = "asr_complete.json"
TRAINER_STATE = "trainer_state.json"
_FOLDER = re.compile(r"checkpoint-(\d+)")


class MarkComplete(TrainerCallback):
    """Writes the marker once a checkpoint is on disk."""

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Mark the checkpoint of the current step as complete."""
        if args.world_size > 1:
            torch.distributed.barrier()  # every process has written its part
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            _to_disk(folder)
            write_json(folder / MARKER, {"step": state.global_step})


def _to_disk(folder: Path) -> None:
    """Flush what the Trainer wrote: after a power cut, too, the marker must not be alone."""
    with storage_errors(folder):
        for file in sorted(folder.iterdir()):
            fd = os.open(file, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


def checkpoint_step(checkpoint: Path) -> int:
    """The optimizer step of a checkpoint folder, by its name.

    Raises:
        ValueError: another name.
    """
    match = _FOLDER.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(f"'{checkpoint.name}' is no checkpoint's folder")
    return int(match[1])


def load_checkpoint_adapter(model: PeftModel, checkpoint: Path) -> None:
    """Overwrite the adapter of ``model`` with the checkpoint's.

    Raises:
        StorageError: the file cannot be read, or does not hold the model's adapter.
    """
    path = checkpoint / SAFETENSORS_WEIGHTS_NAME
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"cannot read {path}: {error}; delete {checkpoint}") from error
    wanted = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    if set(tensors) != wanted:
        raise StorageError(f"{path} holds another adapter; delete {checkpoint}")
    set_peft_model_state_dict(model, tensors)


def latest_complete(folder: Path, remove_torn: bool = True) -> Path | None:
    """Return the newest complete checkpoint under ``folder``, or None.

    Args:
        folder: ``checkpoints/<domain>/``.
        remove_torn: delete folders without a marker, which a killed run left.
    """
    found: dict[int, Path] = {}
    for entry in sorted(folder.glob("checkpoint-*")) if folder.is_dir() else []:
        match = _FOLDER.fullmatch(entry.name)
        if match is None:
            continue
        if (entry / MARKER).is_file():
            found[int(match[1])] = entry
        elif remove_torn:
            shutil.rmtree(entry)
    return found[max(found)] if found else None


class disk_errors:
    """Turns the several ways in which libraries report a full disk into a StorageError.

    torch.save hides the reason: on a full disk it raises a RuntimeError of one of many wordings
    ("iostream error", "unexpected pos 64 vs 0"). One that could not open its file says so, and is
    no full disk: the folder is gone, or may not be written into.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._inner = storage_errors(folder)

    def __enter__(self) -> None:
        self._inner.__enter__()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool | None:
        if isinstance(error, SafetensorError | RuntimeError) and (
            "No space left" in str(error)
            or any(f.f_code is torch.save.__code__ for f, _ in traceback.walk_tb(trace))
        ):
            unopened = any(sign in str(error) for sign in ("Parent directory", "open file failed"))
            why = first_line(error) if unopened else "no space left on the device; free space"
            raise StorageError(
                f"cannot write a checkpoint into {self._folder}: {why} and run the same command "
                "again with --resume"
            ) from error
        return self._inner.__exit__(kind, error, trace)
