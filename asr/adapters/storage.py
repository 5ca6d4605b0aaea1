"""Adapter folders on disk: plain PEFT files, written once, loaded strictly in both directions.

``adapters/<domain>/`` holds ``adapter_model.safetensors``, ``adapter_config.json`` and
``README.md``. PEFT and vLLM read it as it is; the fingerprint of the base stands in the safetensors
header, where they ignore it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from asr.adapters.conversion import to_plain
from asr.adapters.lora import TRAINING_NAME
from asr.base.quiet import quiet_libraries
from asr.errors import AdapterError

TENSORS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
README = "README.md"
_FINGERPRINT = "asr_base_fingerprint"
_PREFIX = "base_model.model."

_ANY_VALUE = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "fan_in_fan_out",  # PEFT sets it to what the base's module needs
        "inference_mode",
        "layers_pattern",  # these two, and exclude_modules, choose among target_modules: checked
        "layers_to_transform",  # against the tensors
        "exclude_modules",
        "lora_alpha",
        "lora_dropout",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
        "use_rslora",
        "alpha_pattern",
    }
)
"""Keys of ``adapter_config.json`` under which a plain LoRA may hold anything.

Any other key may hold only its default: otherwise it asks for a variant, or for an initialisation
that rewrites the base while the adapter is loaded (PiSSA, OLoRA, CorDA, LoftQ, ...).
"""
_PLAIN_INITIALISATIONS = (True, False, "gaussian", "eva", "mica", "orthogonal")


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter read from its folder.

    Attributes:
        config: PEFT's configuration.
        tensors: state dict in PEFT's naming, without an adapter name in the keys.
        modules: full names of the adapted modules, sorted.
        rank: LoRA rank of every module that has none of its own (:meth:`rank_of`).
        sha256: hash of the tensor file.
        base_fingerprint: fingerprint of the base it was trained on, None if foreign.
    """

    config: LoraConfig
    tensors: dict[str, Tensor]
    modules: tuple[str, ...]
    rank: int
    sha256: str
    base_fingerprint: str | None

    def rank_of(self, module: str) -> int:
        """LoRA rank of a module."""
        return rank_of(self.config, module)

    def scaling(self, module: str) -> float:
        """Factor of ``B A`` on a module: alpha over the rank, or over its root (rsLoRA)."""
        pattern, rank = self.config.alpha_pattern or {}, self.rank_of(module)
        alpha = pattern.get(get_pattern_key(list(pattern), module), self.config.lora_alpha)
        return float(alpha / (math.sqrt(rank) if self.config.use_rslora else rank))


def lora_factors(stored: StoredAdapter, module: str) -> tuple[Tensor, Tensor]:
    """``A`` (rank, in) and the transpose of ``B`` times its scaling (rank, out) of a module."""
    key = f"{_PREFIX}{module}.lora_"
    a, b = stored.tensors[f"{key}A.weight"], stored.tensors[f"{key}B.weight"]
    return a, (b.T.float() * stored.scaling(module)).to(b.dtype).contiguous()


def rank_of(config: LoraConfig, module: str) -> int:
    """LoRA rank that a configuration gives a module, by its patterns or for all."""
    pattern = config.rank_pattern or {}
    return int(pattern.get(get_pattern_key(list(pattern), module), config.r))


def adapter_sha256(folder: Path) -> str:
    """Hash of the adapter's tensor file, hex.

    Raises:
        AdapterError: if the file is missing.
    """
    path = folder / TENSORS
    if not path.is_file():
        raise AdapterError(f"{folder} holds no {TENSORS}; it is not a PEFT adapter folder")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_adapter(
    peft_model: PeftModel, folder: Path, *, domain: str, fingerprint: str, facts: dict[str, Any]
) -> str:
    """Write the trained adapter into ``folder`` (which must exist and is published by the caller).

    An adapter whose initialisation rewrote the base is converted to the plain LoRA of twice the
    rank that equals it over the base as it was (:mod:`asr.adapters.conversion`).

    Args:
        peft_model: model with the one adapter that training attached.
        folder: staging folder.
        domain: domain name, for the README.
        fingerprint: fingerprint of the base.
        facts: short facts (data, rank, scores, ...) listed in the README.

    Returns:
        The hash of the tensor file.

    Raises:
        AdapterError: if PEFT hands out other tensors than A and B of every adapted module, or a
            tensor is not finite.
    """
    # No embeddings: they carry no adapter, and to find out PEFT would ask the hub for the base.
    state = get_peft_model_state_dict(
        peft_model, adapter_name=TRAINING_NAME, save_embedding_layers=False
    )
    state, config = to_plain(peft_model, state, TRAINING_NAME)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    _require_keys(set(tensors), set(config.target_modules or ()), f"adapter '{domain}'")
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise AdapterError(
                f"adapter '{domain}': {name} is not finite; training diverged, "
                "lower training.learning_rate"
            )
    # One metadata key only: safetensors writes several in random order, and the hash of the file
    # would then differ between equal runs.
    (folder / TENSORS).write_bytes(save(tensors, {_FINGERPRINT: fingerprint}))
    config.inference_mode = True
    plain = {key: _plain(value) for key, value in config.to_dict().items()}
    text = json.dumps(plain, indent=2, sort_keys=True)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    (folder / README).write_text(_readme(domain, config, facts), encoding="utf-8")
    return adapter_sha256(folder)


def _plain(value: Any) -> Any:
    """JSON value of a PEFT configuration entry; sets are sorted, so that equal files are equal."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    return value


def load_adapter(folder: Path, *, base_fingerprint: str | None = None) -> StoredAdapter:
    """Read an adapter folder and check that it is complete and meant for this base.

    Args:
        folder: adapter folder.
        base_fingerprint: fingerprint of the served base; None skips the comparison.

    Raises:
        AdapterError: if a file is missing, truncated or corrupt; if the adapter is no plain LoRA;
            if tensors are missing, left over, of the wrong shape or not finite; if it belongs to
            another base.
    """
    sha256 = adapter_sha256(folder)
    config = _read_config(folder)
    try:
        with safe_open(folder / TENSORS, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterError(
            f"{folder / TENSORS} is truncated or corrupt ({error}); restore it from a copy, "
            "or remove the domain and train it again"
        ) from error
    stored = metadata.get(_FINGERPRINT)
    if base_fingerprint is not None and stored is not None and stored != base_fingerprint:
        raise AdapterError(
            f"adapter {folder} belongs to another base (fingerprint {stored[:12]}, this base is "
            f"{base_fingerprint[:12]}, '{config.base_model_name_or_path}' by name); "
            "load it with the base it was trained on"
        )
    modules = tuple(sorted(config.target_modules or ()))
    _require_keys(set(tensors), set(modules), f"adapter {folder}")
    for name, tensor in tensors.items():
        # As float32: what overflows there runs in no base, and 8-bit types cannot be asked
        if (
            tensor.ndim != 2
            or not tensor.is_floating_point()
            or not tensor.float().isfinite().all()
        ):
            raise AdapterError(
                f"adapter {folder}: {name} is no finite matrix ({tensor.dtype}, shape "
                f"{list(tensor.shape)}); restore it from a copy, or train it again"
            )
        rank = tensor.shape[0] if name.endswith("lora_A.weight") else tensor.shape[1]
        expected = rank_of(config, name.removeprefix(_PREFIX).rpartition(".lora_")[0])
        if rank != expected:
            raise AdapterError(
                f"adapter {folder}: {name} has rank {rank}, its configuration says {expected}"
            )
    return StoredAdapter(config, tensors, modules, config.r, sha256, stored)


def _read_config(folder: Path) -> LoraConfig:
    path = folder / CONFIG
    if not path.is_file():
        raise AdapterError(f"{folder} holds no {CONFIG}; it is not a PEFT adapter folder")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        kind = raw["peft_type"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise AdapterError(f"{path} is not a PEFT configuration ({error})") from error
    if kind != "LORA" or raw.get("use_dora") or raw.get("modules_to_save"):
        what = "DoRA" if raw.get("use_dora") else kind if kind != "LORA" else "modules_to_save"
        raise AdapterError(f"{path}: {what} cannot run in a mixed batch; convert it to plain LoRA")
    targets = raw.get("target_modules")
    if not isinstance(targets, list) or not all(isinstance(name, str) for name in targets):
        raise AdapterError(f"{path}: target_modules must be a list of full module names")
    _require_plain(raw, path)
    try:
        with quiet_libraries():
            config = LoraConfig.from_pretrained(str(folder))
    except (TypeError, ValueError, ImportError) as error:
        raise AdapterError(f"{path} is not a LoRA configuration ({error})") from error
    assert isinstance(config, LoraConfig)
    config.init_lora_weights = True  # the tensors are there: how they once started is over
    _require_nothing_excluded(config, path)
    return config


def _require_nothing_excluded(config: LoraConfig, path: Path) -> None:
    """PEFT would leave out the tensors of a module that ``exclude_modules`` names, silently."""
    if not config.exclude_modules:
        return
    for name in sorted(config.target_modules or ()):
        try:
            found = check_target_module_exists(config, name)
        except re.error as error:
            raise AdapterError(
                f"{path}: exclude_modules {json.dumps(_plain(config.exclude_modules))} is no "
                f"regular expression ({error})"
            ) from error
        if not found:
            raise AdapterError(
                f"{path}: exclude_modules leaves out '{name}', which target_modules names; take it "
                "out of one of them"
            )


def _require_plain(raw: dict[str, Any], path: Path) -> None:
    defaults = LoraConfig().to_dict()
    initialisation = raw.get("init_lora_weights", True)
    if initialisation not in _PLAIN_INITIALISATIONS:
        raise AdapterError(
            f"{path}: init_lora_weights '{initialisation}' rewrites the base; convert the adapter "
            "to plain LoRA (PEFT: save_pretrained with path_initial_model_for_weight_conversion)"
        )
    for key, value in raw.items():
        # Empty is as good as absent: a newer PEFT writes its new switches turned off.
        if key in _ANY_VALUE or key == "init_lora_weights" or value in (None, False, [], {}):
            continue
        if key not in defaults or value != defaults[key]:
            raise AdapterError(
                f"{path}: {key}={json.dumps(value)} is not plain LoRA, or of a PEFT newer than "
                f"{peft.__version__}; convert the adapter to plain LoRA"
            )
    rank, alpha = raw.get("r", defaults["r"]), raw.get("lora_alpha", defaults["lora_alpha"])
    if not _is_rank(rank) or not _is_number(alpha):
        raise AdapterError(
            f"{path}: r={json.dumps(rank)}, lora_alpha={json.dumps(alpha)}; both must be numbers, "
            "r a whole one, 1 or more"
        )
    dropout = raw.get("lora_dropout", 0.0)
    if not _is_number(dropout) or not 0 <= dropout <= 1:
        raise AdapterError(f"{path}: lora_dropout={json.dumps(dropout)}; it must be from 0 to 1")
    rslora = raw.get("use_rslora")
    if rslora is not None and not isinstance(rslora, bool):
        raise AdapterError(f"{path}: use_rslora={json.dumps(rslora)}; it must be true or false")
    _require_patterns(raw, path)


def _require_patterns(raw: dict[str, Any], path: Path) -> None:
    """Ranks and alphas of single modules, by regular expressions over the names' endings."""
    for key, what in (("rank_pattern", "a whole number, 1 or more"), ("alpha_pattern", "a number")):
        pattern = raw.get(key) or {}
        if not isinstance(pattern, dict):
            raise AdapterError(f"{path}: {key} must be a mapping of module names")
        for name, value in pattern.items():
            if not (_is_rank(value) if key == "rank_pattern" else _is_number(value)):
                raise AdapterError(
                    f"{path}: {key} of {json.dumps(name)} is {json.dumps(value)}; it must be {what}"
                )
            try:
                re.compile(name)
            except re.error as error:
                raise AdapterError(
                    f"{path}: {key}: {json.dumps(name)} is no regular expression ({error})"
                ) from error


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _require_keys(found: set[str], modules: set[str], what: str) -> None:
    expected = {
        f"{_PREFIX}{module}.lora_{part}.weight" for module in modules for part in ("A", "B")
    }
    if found == expected:
        return
    missing, left_over = sorted(expected - found), sorted(found - expected)
    first = f"first missing: {missing[0]}" if missing else f"first left over: {left_over[0]}"
    raise AdapterError(
        f"{what}: {len(found & expected)} of {len(expected)} tensors match its configuration, "
        f"{len(missing)} missing, {len(left_over)} left over; {first}"
    )


def _readme(domain: str, config: LoraConfig, facts: dict[str, Any]) -> str:
    lines = [
        "---",
        f"base_model: {config.base_model_name_or_path}",
        "library_name: peft",
        "tags: [lora, analytic-subspace-routing]",
        "---",
        f"# {domain}",
        "",
        "LoRA adapter of one domain of a routed model. Plain PEFT: it loads with",
        "`PeftModel.from_pretrained(base, this_folder)` and in vLLM; chosen automatically, it runs",
        "in the routed model that this folder belongs to.",
        "",
        f"- {_scale(config)}, {len(config.target_modules or ())} modules",
        *(f"- {name}: {value}" for name, value in facts.items()),
        "",
    ]
    return "\n".join(lines)


def _scale(config: LoraConfig) -> str:
    """Rank and alpha for people; where modules have ranks of their own, the smallest to largest."""
    ranks = [config.r, *(config.rank_pattern or {}).values()]
    if min(ranks) == max(ranks):
        return f"rank {config.r}, alpha {config.lora_alpha}"
    return f"ranks {min(ranks)} to {max(ranks)}, alpha {config.lora_alpha} at the largest"
