"""The loss at supervised positions only is the loss of all logits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import Trainer, TrainingArguments

from asr.base.split import accepts_logits_to_keep
from asr.data.encode import IGNORED, EncodedExample
from asr.train.supervised import SupervisedCollator, supervised_loss
from tests.tiny_models import ARCHITECTURES, VOCAB, tiny_model

# (prompt, answer) lengths in turn; several pairs are several turns
SHAPES = [[(5, 3)], [(9, 1)], [(2, 6), (4, 2)], [(1, 1), (3, 2), (2, 4)]]


def row(turns: Sequence[tuple[int, int]], seed: int) -> EncodedExample:
    source = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    labels: list[int] = []
    for prompt, answer in turns:
        new = torch.randint(5, VOCAB, (prompt + answer,), generator=source).tolist()
        ids += new
        labels += [IGNORED] * prompt + new[prompt:]
    return EncodedExample(ids, labels, "made:1")


ROWS = [row(turns, seed) for seed, turns in enumerate(SHAPES)]


def reference_inputs(rows: Sequence[EncodedExample]) -> dict[str, Tensor]:
    """Left padded, labels unshifted: what transformers' own loss takes."""
    length = max(len(r.input_ids) for r in rows)
    return {
        "input_ids": torch.tensor([[0] * (length - len(r.input_ids)) + r.input_ids for r in rows]),
        "labels": torch.tensor([[IGNORED] * (length - len(r.labels)) + r.labels for r in rows]),
        "attention_mask": torch.tensor(
            [[0] * (length - len(r.input_ids)) + [1] * len(r.input_ids) for r in rows]
        ),
        "position_ids": torch.tensor(
            [[0] * (length - len(r.input_ids)) + list(range(len(r.input_ids))) for r in rows]
        ),
    }


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
@pytest.mark.parametrize("keep", [True, False])
def test_loss_and_gradients_are_those_of_all_logits(architecture: str, keep: bool) -> None:
    model = tiny_model(architecture)
    assert accepts_logits_to_keep(model)
    expected = model(**reference_inputs(ROWS)).loss
    expected.backward()
    wanted = gradients(model)
    model.zero_grad()

    batch = SupervisedCollator(0, keep)(ROWS)
    labels = batch.pop("labels")
    output = model(**batch)
    loss = supervised_loss(output, labels)
    loss.backward()

    if keep:  # the saving itself: 14 of 16 positions have a label in some row, not all 16
        assert output.logits.shape[1] == len(batch["logits_to_keep"])
        assert output.logits.shape[1] < batch["input_ids"].shape[1] - 1
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    found = gradients(model)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        scale = float(gradient.abs().max()) + 1e-12
        assert float((found[name] - gradient).abs().max()) <= 2e-5 * scale, name


def test_rows_may_come_as_mappings() -> None:
    plain = [{"input_ids": r.input_ids, "labels": r.labels} for r in ROWS]
    one, other = SupervisedCollator(0, True)(ROWS), SupervisedCollator(0, True)(plain)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_positions_are_exactly_those_before_a_label() -> None:
    batch = SupervisedCollator(0, keep=True)([row([(3, 2)], 0), row([(4, 3)], 1)])
    # length 7; supervised tokens end both rows: positions 5, 6 and 4, 5, 6 predicted one earlier
    assert batch["logits_to_keep"].tolist() == [3, 4, 5]
    assert batch["labels"][0].tolist()[:2] == [IGNORED, IGNORED]
    assert batch["labels"].shape == (2, 4)
    assert batch["position_ids"][0].tolist() == [0, 0, 0, 1, 2, 3, 4]


def test_a_label_on_the_first_token_is_not_predicted_from_nowhere() -> None:
    first = EncodedExample([7, 8, 9], [7, 8, 9], "made:1")
    batch = SupervisedCollator(0, keep=True)([first])
    assert batch["logits_to_keep"].tolist() == [0, 1]
    assert batch["labels"].tolist() == [[IGNORED, 8, 9]]


def test_the_mean_is_over_the_tokens_it_is_told() -> None:
    model = tiny_model()
    batch = SupervisedCollator(0, True)(ROWS)
    labels = batch.pop("labels")
    output = model(**batch)
    tokens = sum(r.supervised for r in ROWS)
    alone = supervised_loss(output, labels)
    for given in (2 * tokens, torch.tensor(2 * tokens)):
        torch.testing.assert_close(supervised_loss(output, labels, given), alone / 2)


def test_half_precision_logits_are_summed_in_single() -> None:
    logits = torch.randn(1, 3000, 11, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.cat([torch.full((1, 1), IGNORED), torch.zeros(1, 3000, dtype=torch.long)], 1)
    loss = supervised_loss({"logits": logits}, labels)
    exact = -torch.log_softmax(logits.double(), -1)[..., 0].mean()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)


class Counting(Trainer):
    """Keeps what the Trainer hands to the loss, and the gradients of the first update."""

    def run(self) -> None:
        self.counts: list[int] = []
        self.first: dict[str, Tensor] = {}
        self.train()

    def _loss(self, outputs, labels, num_items_in_batch=None):  # type: ignore[no-untyped-def]
        self.counts.append(int(num_items_in_batch))
        return supervised_loss(outputs, labels, num_items_in_batch)

    def create_optimizer(self, *args):  # type: ignore[no-untyped-def]
        optimizer = super().create_optimizer(*args)
        model = self.model

        def keep(*_: object) -> None:
            if not self.first:
                self.first = gradients(model)

        optimizer.register_step_pre_hook(keep)
        return optimizer


def trainer(folder: Path, batch: int, accumulation: int) -> Counting:
    model = get_peft_model(
        tiny_model(),
        LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False),
    )
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    made = Counting(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            use_cpu=True,
            max_steps=1,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            learning_rate=1e-3,
            max_grad_norm=0.0,
            remove_unused_columns=False,
            label_names=["labels"],
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            seed=1,
        ),
        train_dataset=list(ROWS),
        data_collator=SupervisedCollator(0, keep=True),
    )
    made.compute_loss_func = made._loss
    return made


def test_the_trainer_counts_supervised_tokens_and_accumulation_changes_nothing(
    tmp_path: Path,
) -> None:
    tokens = sum(r.supervised for r in ROWS)
    whole = trainer(tmp_path / "a", batch=4, accumulation=1)
    whole.run()
    assert whole.counts == [tokens]
    split = trainer(tmp_path / "b", batch=1, accumulation=4)
    split.run()
    assert split.counts == [tokens] * 4
    assert whole.first.keys() == split.first.keys()
    assert len(whole.first) > 0
    for name, gradient in whole.first.items():
        torch.testing.assert_close(split.first[name], gradient, rtol=1e-4, atol=1e-6)


def test_models_that_return_all_logits_are_cut_to_the_labels() -> None:
    logits = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(1))
    targets = torch.randint(0, 5, (2, 5), generator=torch.Generator().manual_seed(2))
    labels = torch.cat([torch.full((2, 1), IGNORED), targets], 1)
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, 5), targets.reshape(-1))
    torch.testing.assert_close(
        supervised_loss(SimpleNamespace(logits=logits).__dict__, labels), expected
    )
