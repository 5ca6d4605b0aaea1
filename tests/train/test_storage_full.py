"""A disk that fills up at any write: one line that says so, nothing half-written, resumable."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

from asr.errors import StorageError
from asr.model.directory import ModelDirectory
from asr.model.manifest import Manifest
from tests.train.conftest import Workshop, assert_equal_runs, write_domain

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Disk:
    """Counts what is written under a folder, and is full from the ``fails_at``-th write on."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.fails_at: int | None = None
        self.writes: list[str] = []

    def write(self, what: str, path: Any) -> bool:
        """Take note; return whether this write fails."""
        if self.folder is None or not isinstance(path, str | bytes | os.PathLike):
            return False
        name = os.fsdecode(path)
        if not name.startswith(self.folder) or name.endswith(".lock"):
            return False
        self.writes.append(f"{what} {os.path.relpath(name, self.folder)}")
        return self.fails_at is not None and len(self.writes) > self.fails_at

    @contextlib.contextmanager
    def looking_away(self) -> Iterator[None]:
        folder, self.folder = self.folder, None
        yield
        self.folder = folder

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        path = None
        opened = event == "open" and isinstance(args[2], int) and args[2] & _WRITING
        if opened or event == "os.mkdir":
            path = args[0]
        if path is not None and self.write(event, path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(path))


DISK = Disk()
sys.addaudithook(DISK.audit)  # cannot be taken off again; without a folder it does nothing


@contextlib.contextmanager
def disk(folder: Path, fails_at: int | None, patch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Within the block, writes under ``folder`` fail after the first ``fails_at``.

    Python's own opens and folders are seen by the audit hook. torch.save and safetensors write by
    themselves: they are made to leave half a file, and to raise what they raise on a full disk.
    """
    save, save_file, fsync = torch.save, safetensors.torch.save_file, os.fsync

    def torch_save(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
        if DISK.write("torch.save", f):
            with DISK.looking_away():
                Path(f).write_bytes(b"half")
            raise RuntimeError(
                "[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing "
                "file data/0: file write failed"
            )
        save(obj, f, *args, **kwargs)

    def tensors(tensors: Any, filename: Any, *args: Any, **kwargs: Any) -> None:
        if DISK.write("save_file", filename):
            raise SafetensorError(
                "Error while serializing: I/O error: No space left on device (os error 28)"
            )
        save_file(tensors, filename, *args, **kwargs)

    def sync(fd: int) -> None:
        if DISK.write("fsync", os.readlink(f"/proc/self/fd/{fd}")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(fd)

    with patch.context() as changed:
        changed.setattr(torch, "save", torch_save)
        for module in list(sys.modules.values()):
            name = getattr(module, "__name__", "")
            if name.startswith(("peft", "transformers", "safetensors")) and (
                vars(module).get("save_file") is save_file
            ):
                changed.setattr(module, "save_file", tensors)
            if name.startswith(("peft", "transformers", "safetensors")) and (
                vars(module).get("safe_save_file") is save_file
            ):
                changed.setattr(module, "safe_save_file", tensors)
        if Path("/proc/self/fd").exists():
            changed.setattr(os, "fsync", sync)
        DISK.folder, DISK.fails_at, DISK.writes = str(folder) + os.sep, fails_at, []
        try:
            yield DISK.writes
        finally:
            DISK.folder = None


def kind(write: str) -> str:
    """A write without what differs from run to run, so that each kind is tried once."""
    return re.sub(r"\.staging-(\S+)-[0-9a-f]{16}", r"\1", re.sub(r"checkpoint-\d+", "step", write))


def sound(out: ModelDirectory) -> None:
    """What is published is whole: the ledger reads, and no file it names is missing or torn."""
    if out.manifest.exists():
        manifest = Manifest.load(out.path)
        assert out.verify(manifest) == []


def test_a_full_disk_at_every_kind_of_write(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_domain(shop.folder / "red.jsonl", "red", 9)
    with disk(shop.folder / "whole", None, monkeypatch) as writes:
        whole = shop.train("whole", ["red"])
    first = {kind(write): position for position, write in reversed(list(enumerate(writes)))}
    assert any("save_file" in name for name in first)
    assert any("torch.save" in name for name in first)
    assert len(first) > 25
    failures = []
    for number, (name, position) in enumerate(sorted(first.items(), key=lambda item: item[1])):
        out = shop.folder / f"m{number}"
        with disk(out, position, monkeypatch):
            try:
                shop.train(out.name, ["red"])
            except StorageError as error:
                if not re.match(
                    r"cannot write .*(no space left on the device|No space left)", str(error)
                ):
                    failures.append(f"{name}: {error}")
            except Exception as error:
                failures.append(f"{name}: {error!r}")
            else:
                failures.append(f"{name}: nobody noticed")
        sound(ModelDirectory(out))
        if number % 3 == 0:  # what a resume goes on from differs little between neighbours
            assert_equal_runs(whole, shop.train(out.name, ["red"], resume=True))
    assert not failures, "\n".join(failures)


def test_the_messages_say_what_to_do(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    with disk(shop.folder / "m", 0, monkeypatch), pytest.raises(StorageError) as caught:
        shop.train("m", ["red"])
    assert re.fullmatch(
        rf"cannot write {shop.folder}/m\S*: no space left on the device \([\d,]+ bytes free\); "
        r"free some space and run the same command again; asr train goes on with "
        r"--resume \(what stood there before is intact\)",
        str(caught.value),
    )
    with disk(shop.folder / "whole", None, monkeypatch) as writes:
        shop.train("whole", ["red"])
    position = next(i for i, write in enumerate(writes) if write.startswith("torch.save"))
    with disk(shop.folder / "n", position, monkeypatch), pytest.raises(StorageError) as caught:
        shop.train("n", ["red"])
    assert str(caught.value) == (
        f"cannot write a checkpoint into {shop.folder}/n/checkpoints/red: no space left on the "
        "device; free space and run the same command again with --resume"
    )
