"""Experiment trackers of transformers (``report_to``): which there are, and which can run here."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from asr.errors import ConfigError

TRACKERS = (
    "azure_ml",
    "clearml",
    "codecarbon",
    "comet_ml",
    "dagshub",
    "dvclive",
    "flyte",
    "kubeflow",
    "mlflow",
    "neptune",
    "swanlab",
    "tensorboard",
    "trackio",
    "wandb",
)
"""Names that ``training.report_to`` may hold."""

_UNDETECTED = frozenset({"flyte"})
"""transformers has no look-up for their packages; they say themselves what they miss."""

_PACKAGES = {"azure_ml": "azureml-mlflow", "comet_ml": "comet-ml"}


def check_trackers(names: Iterable[str]) -> None:
    """Refuse trackers whose package is not installed.

    Raises:
        ConfigError: names the tracker and what to install.
    """
    wanted = set(names) - _UNDETECTED
    if not wanted:
        return
    from transformers.integrations.integration_utils import get_available_reporting_integrations

    missing = sorted(wanted - set(get_available_reporting_integrations()))
    if missing:
        packages = " ".join(_PACKAGES.get(name, name) for name in missing)
        raise ConfigError(
            f"training.report_to: {', '.join(missing)} cannot run here, the package is not "
            f"installed; pip install {packages}, or take it out"
        )


@contextmanager
def tracker_folder(folder: Path | None) -> Iterator[None]:
    """Send tensorboard's files to ``folder``, unless its own variable says otherwise.

    Its default is the folder of the checkpoints, which goes when the domain is done.
    """
    name = "TENSORBOARD_LOGGING_DIR"
    if folder is None or name in os.environ:
        yield
        return
    os.environ[name] = str(folder)
    try:
        yield
    finally:
        del os.environ[name]
