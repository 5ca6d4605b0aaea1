"""Two processes train one model: the same one, written once, and neither waits for a dead other.

How close is the same? Both sum the same gradients of the same batches, in another order: rounding,
provided that the batch size divides the rows (it does here). Else the last batch of an epoch is
filled up with rows that were seen already, and results differ by a percent.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from asr.data.cut import dev_cut
from asr.data.load import load_examples
from asr.errors import AsrError, DataError
from asr.model.directory import ModelDirectory
from asr.model.manifest import Manifest
from asr.train.processes import Processes
from tests.train.conftest import Workshop, published, write_domain

# Every write below the model directory is noted by the process that makes it.
SCRIPT = """
import json, os, sys
import torch
torch.set_num_threads(1)
config, out, notes, failing = sys.argv[1:5]
rank = int(os.environ.get("RANK", "0"))
def audit(event, args):
    writing = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
    if writing or event in ("os.mkdir", "os.rename", "os.remove"):
        if isinstance(args[0], (str, os.PathLike)) and str(args[0]).startswith(out):
            with open(f"{notes}.{rank}", "a") as file:
                file.write(f"{event} {args[1] if event == 'os.rename' else args[0]}\\n")
sys.addaudithook(audit)
import asr, asr.train.sequence, asr.train.domain
from asr.errors import AsrError, StorageError
def fail(*args, **kwargs):
    if failing == "error":
        raise StorageError("the disk is full")
    raise KeyError("a bug")
if failing in ("error", "bug") and rank == 0:
    asr.train.domain.store_domain = fail
def checkpoint(self, *args, **kwargs):
    if rank == 0:
        raise StorageError("the disk is full")
    self.actual_save(*args, **kwargs)
if failing == "checkpoint":
    from transformers import Trainer
    Trainer.actual_save, Trainer._save_checkpoint = Trainer._save_checkpoint, checkpoint
settings = asr.TrainConfig.model_validate_json(open(config).read())
try:
    asr.train_sequence(settings, out, resume=True)
except AsrError as error:
    with open(f"{notes}.end.{rank}", "w") as file: file.write(str(error))
    sys.exit(2)
with open(f"{notes}.end.{rank}", "w") as file: file.write("done")
"""


class Launched:
    """Two processes started as ``torchrun`` starts them."""

    def __init__(self, shop: Workshop, raw: dict[str, Any], failing: str = "no") -> None:
        script, config = shop.folder / "script.py", shop.folder / "launched.json"
        script.write_text(SCRIPT)
        config.write_text(json.dumps(raw))
        self.out = ModelDirectory(shop.folder / "two")
        self.notes = shop.folder / "notes"
        command = [
            # accelerate launch goes through this for several GPUs; with --cpu it starts one process
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            str(script), str(config), str(self.out.path), str(self.notes), failing,
        ]  # fmt: skip
        root = str(Path(__file__).parents[2])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
        process = subprocess.Popen(
            command,
            cwd=root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            self.output, _ = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            pytest.fail("the processes wait for each other")
        self.status = process.returncode

    def end(self, rank: int) -> str | None:
        path = Path(f"{self.notes}.end.{rank}")
        return path.read_text() if path.exists() else None

    def writes(self, rank: int) -> list[str]:
        path = Path(f"{self.notes}.{rank}")
        return path.read_text().splitlines() if path.exists() else []


def test_two_processes_make_the_model_of_one(shop: Workshop) -> None:
    # auto is what people leave it at; on a machine with accelerators it means those
    device = "cpu" if torch.cuda.is_available() else "auto"
    shop.settings |= {"training__learning_rate": 1e-4, "device": device}
    domains: dict[str, dict[str, Any]] = {
        "red": {},
        "sum": {"adapter": {"placement": {"dominant": {"budget": 900}}}},
    }
    for name in domains:
        path, rows = shop.folder / f"{name}.jsonl", 20
        while (
            len(dev_cut(load_examples(write_domain(path, name, rows), name=name).examples).kept) % 4
        ):
            rows += 1
    one = shop.train("one", domains)
    launched = Launched(shop, shop.raw(domains))
    assert launched.status == 0, launched.output
    assert (launched.end(0), launched.end(1)) == ("done", "done")

    mine, theirs = published(one), published(launched.out)
    assert theirs["files"] == mine["files"]
    for name in domains:
        tensors = load_file(one.adapter_weights(name))
        others = load_file(launched.out.adapter_weights(name))
        assert tensors.keys() == others.keys()
        # relative to what training changed: B starts at zero
        changed = [key for key in tensors if "lora_B" in key]
        distance = sum(float((tensors[k] - others[k]).double().square().sum()) for k in changed)
        size = sum(float(tensors[k].double().square().sum()) for k in changed)
        largest = max(float((tensors[k] - others[k]).abs().max()) for k in tensors)
        print(f"{device} {name}: relative {(distance / size) ** 0.5:.2e}, largest {largest:.2e}")
        assert (distance / size) ** 0.5 < 1e-4
        assert largest < 1e-6
        # the statistics are the main process's alone, from the base: the same bits
        assert theirs[f"router/{name}"] == mine[f"router/{name}"]
    assert theirs["router file"] == mine["router file"]
    ledger = Manifest.load(launched.out.path)
    assert ledger.domains["red"].world_size == 2
    # probed by the main process alone, and every process trained what it chose
    assert ledger.domains["sum"].placement == Manifest.load(one.path).domains["sum"].placement

    # Only the main process writes; the others leave the state of their generators in checkpoints.
    strangers = [line for line in launched.writes(1) if "/checkpoints/" not in line]
    assert strangers == []
    ledgers = [line for line in launched.writes(0) if line.endswith("/manifest.json")]
    # start; training, trained, routed, done of each; the background class
    assert len(ledgers) == 1 + 4 * len(domains) + 1


@pytest.mark.parametrize("failing", ["error", "bug", "checkpoint"])
def test_both_stop_when_the_main_process_fails(shop: Workshop, failing: str) -> None:
    began = time.monotonic()
    launched = Launched(shop, shop.raw(["red"]), failing)
    assert launched.status != 0
    assert time.monotonic() - began < 100
    if failing == "error":
        assert launched.end(0) == launched.end(1) == "the disk is full"
    elif failing == "bug":
        assert "KeyError: 'a bug'" in launched.output
        assert launched.end(0) is None
    else:
        assert launched.end(0) == "the disk is full"
        assert launched.end(1) != "done"


# -- one process -----------------------------------------------------------------------------------


def test_one_process_just_works_and_raises_what_is_raised() -> None:
    processes = Processes(cpu=True)
    assert (processes.count, processes.is_main) == (1, True)
    assert processes.on_main(lambda: 7) == 7

    def fail() -> None:
        raise DataError("row 3")

    with pytest.raises(DataError, match="row 3"):
        processes.on_main(fail)
    processes.close()


class _Main(Processes):
    """The main process of two, whose broadcasts are kept."""

    count = 2  # type: ignore[assignment]
    is_main = True  # type: ignore[assignment]

    def __init__(self) -> None:
        self.sent: list[list[Any]] = []


@pytest.mark.parametrize("error", [KeyError("x"), KeyboardInterrupt(), DataError("row 3")])
def test_the_others_are_told_of_any_error(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = _Main()
    monkeypatch.setattr(
        "asr.train.processes.broadcast_object_list",
        lambda values, from_process: processes.sent.append(list(values)),
    )

    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        processes.on_main(fail)
    ((value, told),) = processes.sent
    assert value is None
    assert isinstance(told, AsrError)
    if not isinstance(error, AsrError):
        assert str(told) == f"the main process stopped with {type(error).__name__}"
