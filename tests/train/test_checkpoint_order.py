"""A checkpoint is marked complete only when all of it is on the disk."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from asr.train.checkpoints import MARKER, MarkComplete, latest_complete


def test_every_file_is_flushed_before_the_marker_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    files = [folder / name for name in ("adapter_model.safetensors", "optimizer.pt", "rng.pth")]
    for file in files:
        file.write_bytes(b"x")
    flushed: list[tuple[int, bool]] = []
    fsync = os.fsync

    def watched(fd: int) -> None:
        flushed.append((os.fstat(fd).st_ino, (folder / MARKER).exists()))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", watched)
    assert latest_complete(tmp_path, remove_torn=False) is None
    args: Any = SimpleNamespace(output_dir=str(tmp_path), world_size=1)
    state: Any = SimpleNamespace(global_step=3, is_world_process_zero=True)
    control: Any = None
    MarkComplete().on_save(args, state, control)
    for file in files:
        assert (file.stat().st_ino, False) in flushed, file.name
    assert latest_complete(tmp_path) == folder
