"""Analytic Subspace Routing: one frozen LLM, one LoRA per domain, one closed-form router.

The library behind the ``asr`` command::

    import asr

    model = asr.RoutedModel.from_pretrained("MODEL")
    for answer in model.generate(["How do I reset my PIN?"]):
        print(answer.adapter, answer.text)

Names are loaded on first use, so that ``import asr`` costs nothing.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# PEFT imports bitsandbytes wherever it is installed, and that logs at import which optional kernels
# it lacks: no user of a full-precision base can do anything about it. Errors still come through.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

if TYPE_CHECKING:
    from asr.adapters.probe.run import probe_placement
    from asr.errors import AsrError
    from asr.model.routed_model import Generation, RoutedModel
    from asr.router.analytic import AnalyticRouter
    from asr.train.config import TrainConfig
    from asr.train.config_file import load_config
    from asr.train.remove import remove_domain
    from asr.train.sequence import train_sequence

__all__ = [
    "AnalyticRouter",
    "AsrError",
    "Generation",
    "RoutedModel",
    "TrainConfig",
    "__version__",
    "load_config",
    "probe_placement",
    "remove_domain",
    "train_sequence",
]

_LAZY = {
    "AnalyticRouter": "asr.router.analytic",
    "AsrError": "asr.errors",
    "Generation": "asr.model.routed_model",
    "RoutedModel": "asr.model.routed_model",
    "TrainConfig": "asr.train.config",
    "load_config": "asr.train.config_file",
    "probe_placement": "asr.adapters.probe.run",
    "remove_domain": "asr.train.remove",
    "train_sequence": "asr.train.sequence",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'asr' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
