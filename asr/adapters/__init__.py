"""Adapters: where they sit, how they are trained onto the base, stored, and applied row by row."""

from asr.adapters.bank import AdapterBank
from asr.adapters.initial import load_initial
from asr.adapters.lora import LoraSettings, attach_for_training, check_variant, detach
from asr.adapters.placement import LinearModule, Placement, linear_modules, resolve_placement
from asr.adapters.probe.page import PageEnergies, PageSettings, page_energies
from asr.adapters.probe.result import ModuleScore, ProbeResult
from asr.adapters.storage import StoredAdapter, adapter_sha256, load_adapter, save_adapter

__all__ = [
    "AdapterBank",
    "LinearModule",
    "LoraSettings",
    "ModuleScore",
    "PageEnergies",
    "PageSettings",
    "Placement",
    "ProbeResult",
    "StoredAdapter",
    "adapter_sha256",
    "attach_for_training",
    "check_variant",
    "detach",
    "linear_modules",
    "load_adapter",
    "load_initial",
    "page_energies",
    "resolve_placement",
    "save_adapter",
]
