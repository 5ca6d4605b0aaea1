"""One adapter: frozen base, seeds, resume from a checkpoint, odd ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments

from asr.adapters import LoraSettings, detach, resolve_placement
from asr.base.fingerprint import tensors_hash
from asr.base.load import LoadedBase, load_base
from asr.data.encode import encode_examples
from asr.data.load import load_examples
from asr.errors import AsrError, ConfigError
from asr.train.adapter import TrainingResult, TrainingSettings, domain_seed, train_adapter
from asr.train.checkpoints import MARKER, latest_complete
from tests.train.conftest import write_domain

SETTINGS: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 4,
    "learning_rate": 1e-2,
    "schedule": "cosine",
    "warmup": 0.1,
    "weight_decay": 0.0,
    "max_length": 96,
    "max_grad_norm": 1.0,
    "gradient_checkpointing": False,
    "max_steps": None,
}


class ManyDevices(TrainingArguments):  # type: ignore[misc]
    """Arguments on a machine with four accelerators."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._n_gpu = 4


class Stop(Exception):
    """What kills a run in these tests."""


@pytest.fixture
def base(tiny_base: Path) -> LoadedBase:
    return load_base(str(tiny_base), device="cpu", dtype="float32")


class Bench:
    """Trains adapters on one base and hands out their tensors."""

    def __init__(self, base: LoadedBase, folder: Path) -> None:
        self.base = base
        self.folder = folder
        data = load_examples(write_domain(folder / "red.jsonl", "red", 17), name="red")
        self.rows = encode_examples(data.examples, base.tokenizer, base.template, 96).rows

    def train(
        self,
        name: str = "a",
        dropout: float = 0.0,
        seed: int = 5,
        progress: Callable[[int, int, float | None], None] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        **changes: Any,
    ) -> tuple[dict[str, Tensor], TrainingResult]:
        model, result = train_adapter(
            self.base,
            self.rows,
            resolve_placement(self.base.model, "deep", 2),
            LoraSettings(2, 4.0, dropout),
            TrainingSettings(**{**SETTINGS, **changes}),
            seed=seed,
            checkpoints=self.folder / name,
            save_steps=3,
            progress=progress,
            callbacks=callbacks or [],
        )
        state = {k: v.detach().clone() for k, v in get_peft_model_state_dict(model).items()}
        detach(model)
        return state, result


@pytest.fixture
def bench(base: LoadedBase, tmp_path: Path) -> Bench:
    return Bench(base, tmp_path)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def stop_at(step: int) -> Callable[[int, int, float | None], None]:
    def progress(now: int, total: int, loss: float | None) -> None:
        if now == step:
            raise Stop

    return progress


def test_the_base_comes_back_as_it_was(bench: Bench) -> None:
    before, names = tensors_hash(bench.base.model), list(bench.base.model.state_dict())
    state, result = bench.train()
    assert tensors_hash(bench.base.model) == before
    assert list(bench.base.model.state_dict()) == names
    assert result.steps == 10  # 17 rows, 4 a step, the last one short, twice
    assert result.tokens == 2 * sum(len(row.input_ids) for row in bench.rows)
    assert any(bool(tensor.any()) for name, tensor in state.items() if "lora_B" in name)


def test_training_lowers_the_loss(bench: Bench) -> None:
    seen: list[float] = []
    bench.train(
        epochs=6,
        progress=lambda step, steps, loss: seen.append(loss) if loss is not None else None,
    )
    assert sum(seen[-4:]) < 0.8 * sum(seen[:4])


def test_the_base_comes_back_after_an_error_too(bench: Bench) -> None:
    before, names = tensors_hash(bench.base.model), list(bench.base.model.state_dict())
    with pytest.raises(Stop):
        bench.train(progress=stop_at(2))
    assert tensors_hash(bench.base.model) == before
    assert list(bench.base.model.state_dict()) == names


def test_seeds_decide(bench: Bench) -> None:
    one, _ = bench.train("a")
    torch.rand(7)  # the state of the generators outside plays no part
    again, _ = bench.train("b")
    other, _ = bench.train("c", seed=6)
    assert equal(one, again)
    assert not equal(one, other)


def test_seeds_of_domains_differ_and_stay() -> None:
    assert domain_seed(0, "red") == domain_seed(0, "red")
    assert len({domain_seed(seed, name) for seed in range(3) for name in ("red", "sum")}) == 6
    assert domain_seed(0, "red") == 774011719  # written into models: may never change
    assert all(0 <= domain_seed(seed, "x") < 2**31 for seed in range(50))


@pytest.mark.parametrize(
    ("step", "dropout"), [(1, 0.2), (3, 0.0), (4, 0.2), (6, 0.2), (8, 0.0), (10, 0.2)]
)
def test_a_stopped_run_ends_with_the_same_tensors(bench: Bench, step: int, dropout: float) -> None:
    whole, result = bench.train("whole", dropout)
    with pytest.raises(Stop):
        bench.train("cut", dropout, progress=stop_at(step))
    start = latest_complete(bench.folder / "cut")
    # the step's own checkpoint is written after its progress
    assert (start.name if start else None) == {0: None, 3: "checkpoint-3", 6: "checkpoint-6",
                                               9: "checkpoint-9"}[(step - 1) // 3 * 3]  # fmt: skip
    steps: list[int] = []
    resumed, second = bench.train("cut", dropout, progress=lambda s, n, loss: steps.append(s))
    assert steps == list(range((step - 1) // 3 * 3 + 1, 11))
    assert equal(whole, resumed)
    assert (second.steps, second.loss) == (result.steps, result.loss)


def test_dropout_plays_a_part(bench: Bench) -> None:
    assert not equal(bench.train("a", 0.0)[0], bench.train("b", 0.2)[0])


def test_resuming_a_finished_run_changes_nothing(bench: Bench) -> None:
    whole, first = bench.train("a")
    again, second = bench.train("a")
    assert equal(whole, again)
    assert (second.steps, second.loss, second.tokens) == (first.steps, first.loss, 0)


def test_torn_checkpoints_are_not_trusted(bench: Bench) -> None:
    whole, _ = bench.train("whole")
    with pytest.raises(Stop):
        bench.train("cut", progress=stop_at(8))
    newest = bench.folder / "cut" / "checkpoint-6"
    (newest / MARKER).unlink()
    (newest / "adapter_model.safetensors").write_bytes(b"torn")
    resumed, _ = bench.train("cut")
    assert equal(whole, resumed)


def test_latest_complete_needs_a_marker_and_counts_by_number(tmp_path: Path) -> None:
    assert latest_complete(tmp_path / "none") is None
    for step in (9, 10, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}" / MARKER).write_text("{}")
    (tmp_path / "checkpoint-x").mkdir()
    assert latest_complete(tmp_path, remove_torn=False) == tmp_path / "checkpoint-10"
    assert (tmp_path / "checkpoint-100").exists()
    assert latest_complete(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-100").exists()
    assert (tmp_path / "checkpoint-x").exists()


def test_checkpoints_are_few(bench: Bench) -> None:
    bench.train("a")
    names = sorted(path.name for path in (bench.folder / "a").glob("checkpoint-*"))
    assert names == ["checkpoint-10", "checkpoint-9"]


def test_max_steps_and_no_clipping(bench: Bench) -> None:
    clipped, _ = bench.train("a", max_grad_norm=0.01)
    free, result = bench.train("b", max_grad_norm=None, max_steps=3)
    assert result.steps == 3
    tokens = sum(len(row.input_ids) for row in bench.rows)
    assert result.tokens == pytest.approx(tokens * 12 / 17, rel=0.2)
    assert not equal(clipped, free)


def test_max_steps_ends_a_run_early_and_never_repeats_the_data(bench: Bench) -> None:
    _, whole = bench.train("a")
    _, capped = bench.train("b", max_steps=whole.steps + 50)
    assert capped.steps == whole.steps


def test_gradient_checkpointing_changes_no_result(bench: Bench) -> None:
    plain, _ = bench.train("a")
    recomputed, _ = bench.train("b", gradient_checkpointing=True)
    for name, tensor in plain.items():
        torch.testing.assert_close(recomputed[name], tensor, rtol=1e-5, atol=1e-7)


def test_a_loss_that_is_no_number_is_an_error(bench: Bench) -> None:
    class Poison(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **kw: Any) -> None:
            if state.global_step == 2:
                with torch.no_grad():
                    next(p for n, p in model.named_parameters() if "lora_B" in n).fill_(torch.nan)

    with pytest.raises(AsrError, match=r"the loss is nan at step 3: training diverged; lower "):
        bench.train(callbacks=[Poison()])


def test_a_batch_that_does_not_divide_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asr.train.adapter as module

    class Three(module.TrainingArguments):  # type: ignore[misc]
        @property
        def world_size(self) -> int:
            return 3

    monkeypatch.setattr(module, "TrainingArguments", Three)
    with pytest.raises(ConfigError) as caught:
        bench.train()
    assert str(caught.value) == (
        "training.batch_size 4 does not divide over 3 processes; use a multiple of 3"
    )


def test_several_accelerators_without_a_launcher_train_on_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asr.train.adapter.TrainingArguments", ManyDevices)
    _, result = bench.train()
    assert result.steps == 10  # four times the batch would be 4 steps
