"""Trackers and callbacks see the training and change nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from asr.errors import ConfigError
from asr.train.config_file import build_config
from asr.train.reporting import TRACKERS, check_trackers, tracker_folder
from asr.train.sequence import train_sequence
from tests.train.conftest import Recorder, Workshop, published

VARIABLE = "TENSORBOARD_LOGGING_DIR"


class Board(TrainerCallback):  # type: ignore[misc]
    """Stands for transformers' TensorBoardCallback: reads the same variable, logs the same."""

    logged: list[tuple[str | None, float]]

    def __init__(self) -> None:
        self.folder = os.environ.get(VARIABLE)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kw: Any) -> None:
        if "loss" in logs:
            Board.logged.append((self.folder, logs["loss"]))
        # a tracker may draw: what it draws may not reach the training
        state.log_history[-1]["seen"] = True


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> type[Board]:
    Board.logged = []
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Board)
    monkeypatch.setattr(
        integration_utils, "get_available_reporting_integrations", lambda: ["tensorboard"]
    )
    return Board


def test_the_names_are_those_of_transformers() -> None:
    assert sorted(integration_utils.INTEGRATION_TO_CALLBACK) == list(TRACKERS)


def test_a_tracker_sees_every_domain_and_changes_nothing(
    shop: Workshop, board: type[Board]
) -> None:
    plain = shop.train("plain", ["red", "sum"])
    assert board.logged == []
    out = shop.train("m", ["red", "sum"], training__report_to=["tensorboard"])
    folders = [folder for folder, _ in board.logged]
    assert set(folders) == {str(out.logs("red")), str(out.logs("sum"))}
    assert folders.count(str(out.logs("red"))) >= 5
    assert VARIABLE not in os.environ
    one, other = published(plain), published(out)
    assert {k for k in one if one[k] != other[k]} <= {"manifest"}  # the config that it records


def test_it_may_come_and_go_between_runs(shop: Workshop, board: type[Board]) -> None:
    whole = shop.train("whole", ["red"])
    stop = Recorder(lambda domain, step: (_ for _ in ()).throw(KeyboardInterrupt)
                    if step == 3 else None)  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        shop.train("m", ["red"], watcher=stop)
    out = shop.train("m", ["red"], resume=True, training__report_to=["tensorboard"])
    assert board.logged
    assert out.adapter_weights("red").read_bytes() == whole.adapter_weights("red").read_bytes()


def test_a_missing_package_is_said_before_the_base_is_loaded(shop: Workshop) -> None:
    with pytest.raises(ConfigError) as caught:
        shop.train("m", ["red"], training__report_to=["neptune"], base="/no/such/base")
    assert str(caught.value) == (
        "training.report_to: neptune cannot run here, the package is not installed; pip install "
        "neptune, or take it out"
    )


def test_the_packages_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        integration_utils, "get_available_reporting_integrations", lambda: ["wandb"]
    )
    check_trackers([])
    check_trackers(["wandb", "flyte"])
    with pytest.raises(
        ConfigError, match=r"comet_ml, mlflow cannot .*; pip install comet-ml mlflow"
    ):
        check_trackers(["mlflow", "wandb", "comet_ml"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("wandb", "expected a list of trackers, e.g. [tensorboard]"),
        (["wanb"], "unknown tracker 'wanb' (did you mean 'wandb'?)"),
        (["wandb", "wandb"], "trackers without repetitions, not [wandb, wandb]"),
    ],
)
def test_the_config_says_what_is_wrong(value: Any, text: str) -> None:
    raw = {"base": "b", "training": {"report_to": value}, "domains": {"red": {"train": "/x"}}}
    with pytest.raises(ConfigError) as caught:
        build_config(raw)
    assert str(caught.value).startswith(f"config: training.report_to: {text}")


def test_tensorboards_own_variable_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "mine")
    with tracker_folder(Path("ours")):
        assert os.environ[VARIABLE] == "mine"
    assert os.environ[VARIABLE] == "mine"


def test_callbacks_of_the_library_are_called_for_every_domain(shop: Workshop) -> None:
    class Count(TrainerCallback):  # type: ignore[misc]
        begun = 0
        steps = 0

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.begun += 1

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.steps += 1

    plain = shop.train("plain", ["red", "sum"])
    count, watcher = Count(), Recorder()
    train_sequence(
        shop.config(["red", "sum"]), shop.folder / "m", watcher=watcher, callbacks=[count]
    )
    assert count.begun == 2
    assert count.steps == len(watcher.steps) > 0
    assert (
        published(plain)["adapters/sum"]
        == (shop.folder / "m" / "adapters" / "sum" / "adapter_model.safetensors").read_bytes()
    )
