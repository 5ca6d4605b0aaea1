"""One adapter: frozen base, seeds, resume from a checkpoint, odd ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments

from asr.adapters import LoraSettings, detach, load_adapter, resolve_placement, save_adapter
from asr.base.fingerprint import tensors_hash
from asr.base.load import LoadedBase, load_base
from asr.data.encode import encode_examples
from asr.data.load import load_examples
from asr.errors import AdapterError, AsrError, ConfigError, StorageError
from asr.train.adapter import TrainingResult, TrainingSettings, domain_seed, train_adapter
from asr.train.checkpoints import MARKER, disk_errors, latest_complete
from tests.tiny_models import save_tiny_base
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
        initial: Path | None = None,
        save_to: Path | None = None,
        start: Any = True,
        said: list[str] | None = None,
        **changes: Any,
    ) -> tuple[dict[str, Tensor], TrainingResult]:
        model, result = train_adapter(
            self.base,
            self.rows,
            resolve_placement(self.base.model, "deep", 2),
            LoraSettings(2, 4.0, dropout, init_lora_weights=start),
            TrainingSettings(**{**SETTINGS, **changes}),
            seed=seed,
            checkpoints=self.folder / name,
            save_steps=3,
            progress=progress,
            callbacks=callbacks or [],
            initial=initial,
            announce=None if said is None else said.append,
        )
        if save_to is not None:
            save_to.mkdir()
            save_adapter(model, save_to, domain="a", fingerprint=self.base.fingerprint, facts={})
        found = get_peft_model_state_dict(model, save_embedding_layers=False)
        state = {name: tensor.detach().clone() for name, tensor in found.items()}
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


def test_the_settings_reach_the_optimizer(bench: Bench) -> None:
    seen: list[tuple[float, float]] = []

    class Look(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(
            self, args: Any, state: Any, control: Any, optimizer: Any, **kw: Any
        ) -> None:
            group = optimizer.param_groups[0]
            seen.append((group["lr"], group["weight_decay"]))

    changes = {"schedule": "linear", "warmup": 0.4, "weight_decay": 0.25, "learning_rate": 0.02}
    bench.train(callbacks=[Look()], **changes)
    up = [0.02 * step / 4 for step in range(4)]
    down = [0.02 * (10 - step) / 6 for step in range(4, 10)]
    assert [rate for rate, _ in seen] == pytest.approx(up + down)
    assert {decay for _, decay in seen} == {0.25}


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


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_a_part_of_a_pass_is_not_prolonged_by_a_resume(bench: Bench, schedule: str) -> None:
    """Two views and three epochs: one pass and a half; killed after the last step, resumed."""
    settings = {"views": ("templated", "bare"), "epochs": 3, "schedule": schedule}
    whole, first = bench.train("a", **settings)
    again, second = bench.train("a", **settings)
    assert first.steps == second.steps < 3 * 5
    assert equal(whole, again)
    assert (second.loss, second.tokens) == (first.loss, 0)


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


def test_the_last_checkpoint_of_another_adapter_is_refused(bench: Bench) -> None:
    bench.train("a", max_steps=1)
    last = bench.folder / "a" / "checkpoint-1"
    file = last / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, file)
    with pytest.raises(StorageError) as caught:
        bench.train("a", max_steps=1)
    assert str(caught.value) == f"{file} holds another adapter; delete {last}"
    file.write_bytes(b"torn")
    with pytest.raises(StorageError) as caught:
        bench.train("a", max_steps=1)
    assert str(caught.value).startswith(f"cannot read {file}: ")
    assert str(caught.value).endswith(f"; delete {last}")


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


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "qwen3", "gemma3", "mixtral"])
def test_gradient_checkpointing_changes_no_result(tmp_path: Path, architecture: str) -> None:
    folder = save_tiny_base(tmp_path / "base", architecture)
    bench = Bench(load_base(str(folder), device="cpu", dtype="float32"), tmp_path)
    frozen, cached = tensors_hash(bench.base.model), bench.base.model.config.use_cache
    seen: list[tuple[bool, bool]] = []

    class Look(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any, **kw: Any) -> None:
            embeddings = bench.base.model.get_input_embeddings()
            ids = torch.tensor([[5, 6]])
            recomputing = any(getattr(m, "gradient_checkpointing", False) for m in model.modules())
            seen.append((recomputing, embeddings(ids).requires_grad))

    plain, _ = bench.train("a", dropout=0.1, callbacks=[Look()])
    recomputed, _ = bench.train("b", dropout=0.1, callbacks=[Look()], gradient_checkpointing=True)
    for name, tensor in plain.items():
        torch.testing.assert_close(recomputed[name], tensor, rtol=1e-5, atol=1e-7)
    # recomputed it was, and no gradient went below the adapters
    assert seen == [(False, False)] * 10 + [(True, False)] * 10
    # the base is shared: nothing of it stays
    model = bench.base.model
    assert not any(getattr(m, "gradient_checkpointing", False) for m in model.modules())
    assert not any(m._forward_hooks for m in model.modules())
    assert (tensors_hash(model), model.config.use_cache) == (frozen, cached)
    again, _ = bench.train("c", dropout=0.1)
    assert equal(plain, again)


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


def test_a_new_adapter_starts_from_a_saved_one(bench: Bench, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    parent, _ = bench.train("parent", save_to=saved)
    frozen, _ = bench.train("still", initial=saved, max_steps=1, learning_rate=1e-30)
    assert equal(frozen, parent)
    further, _ = bench.train("child", initial=saved)
    assert not equal(further, parent)
    assert not equal(further, bench.train("scratch")[0])
    assert equal(load_adapter(saved).tensors, parent)


def test_a_checkpoint_rules_over_the_adapter_to_start_from(bench: Bench, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    bench.train("parent", seed=8, save_to=saved)
    whole, _ = bench.train("whole", initial=saved)
    with pytest.raises(Stop):
        bench.train("cut", initial=saved, progress=stop_at(5))
    resumed, _ = bench.train("cut", initial=saved)
    assert equal(whole, resumed)
    with pytest.raises(Stop):
        bench.train("gone", initial=saved, progress=stop_at(5))
    assert equal(whole, bench.train("gone", initial=tmp_path / "not read")[0])


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_2", "olora", "mica", "orthogonal"])
def test_a_stopped_run_over_a_rewritten_base_ends_with_the_same_tensors(
    bench: Bench, tmp_path: Path, start: str
) -> None:
    frozen, names = tensors_hash(bench.base.model), list(bench.base.model.state_dict())
    whole, _ = bench.train("whole", 0.1, start=start, save_to=tmp_path / "one")
    assert tensors_hash(bench.base.model) == frozen
    for step in (2, 5):
        with pytest.raises(Stop):
            bench.train("cut", 0.1, start=start, progress=stop_at(step))
        assert tensors_hash(bench.base.model) == frozen
        assert list(bench.base.model.state_dict()) == names
    torch.rand(5)
    resumed, _ = bench.train("cut", 0.1, start=start, save_to=tmp_path / "other")
    assert equal(whole, resumed)
    one, other = load_adapter(tmp_path / "one"), load_adapter(tmp_path / "other")
    assert one.sha256 == other.sha256
    assert one.rank == (2 if start in ("mica", "orthogonal") else 4)


def test_a_rank_that_doubles_is_said(bench: Bench) -> None:
    said: list[str] = []
    bench.train("a", start="pissa", said=said, max_steps=1)
    bench.train("b", start="gaussian", said=said, max_steps=1)
    assert said == [
        "pissa: trains over a rewritten base, which is given back; the adapter is saved as plain "
        "LoRA of rank 4, twice 2"
    ]


def test_a_copy_and_an_initialisation_exclude_each_other(bench: Bench, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    bench.train("a", max_steps=1, save_to=saved)
    with pytest.raises(AdapterError) as caught:
        bench.train("b", initial=saved, start="pissa")
    assert str(caught.value) == (
        f"an adapter starts from a saved one ({saved}) or by init_lora_weights pissa, not both; "
        "leave one out"
    )


def test_grouping_by_length_pads_less_and_goes_on_where_it_stopped(bench: Bench) -> None:
    padded: dict[str, list[int]] = {"a": [], "whole": []}

    class Count(TrainerCallback):  # type: ignore[misc]
        """Counts padding, by the batches that the model is given."""

        def __init__(self, name: str) -> None:
            self.name = name

        def on_train_begin(
            self, args: Any, state: Any, control: Any, model: Any, **kw: Any
        ) -> None:
            def look(module: Any, args: Any, kwargs: Any) -> None:
                padded[self.name].append(int((kwargs["attention_mask"] == 0).sum()))

            self.handle = model.register_forward_pre_hook(look, with_kwargs=True)

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            self.handle.remove()

    data = load_examples(write_domain(bench.folder / "many.jsonl", "red", 66), name="red")
    bench.rows = encode_examples(data.examples, bench.base.tokenizer, bench.base.template, 96).rows
    plain, _ = bench.train("a", callbacks=[Count("a")])
    whole, _ = bench.train("whole", callbacks=[Count("whole")], group_by_length=True)
    assert not equal(plain, whole)
    assert sum(padded["whole"]) < 0.5 * sum(padded["a"])
    assert padded["whole"][:17] != padded["whole"][17:]  # another order in the second epoch
    for step in (5, 22):  # in the first epoch, and in the second
        with pytest.raises(Stop):
            bench.train(f"cut {step}", group_by_length=True, progress=stop_at(step))
        resumed, _ = bench.train(f"cut {step}", group_by_length=True)
        assert equal(whole, resumed)


def test_checkpoints_ask_nobody_for_the_base(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(name: str, *args: Any, **kwargs: Any) -> bool:
        raise AssertionError(f"asked the hub for {name}")

    monkeypatch.setattr(peft.utils.save_and_load, "check_file_exists_on_hf_hub", ask)
    bench.base.resolved = replace(bench.base.resolved, name="a-name-of-the-hub")
    bench.train("a", save_to=tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "a-name-of-the-hub"


@pytest.mark.parametrize("place", ["gone/x.pt", "file/x.pt"])
def test_a_checkpoint_that_cannot_be_opened_is_no_full_disk(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError) as caught, disk_errors(tmp_path):
        torch.save({"a": torch.ones(2)}, tmp_path / place)
    assert str(caught.value).startswith(f"cannot write a checkpoint into {tmp_path}: ")
    assert "no space" not in str(caught.value)
