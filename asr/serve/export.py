"""What another engine needs to serve a routed model: checked against its limits, as data.

Reads the manifest and the adapters' configurations alone: no weights, no torch, no vLLM. What vLLM
can adapt is known here as of :data:`VLLM_VERSION`; whether its start succeeds, only vLLM can tell.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from asr.base.resolve import resolve_base
from asr.errors import BaseModelError, ConfigError, DirectoryError
from asr.model.directory import ModelDirectory, file_sha256
from asr.model.manifest import AdapterEntry, Manifest

TARGETS: Final = ("vllm",)
"""Engines that a model can be exported to."""

VLLM_VERSION: Final = "0.32"
"""The version of vLLM whose limits these are."""

VLLM_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What ``--max-lora-rank`` takes; adapters of any rank up to it are served."""

VLLM_WITHOUT_LORA: Final = frozenset(
    {
        "BloomForCausalLM",
        "Cohere2MoeForCausalLM",
        "DbrxForCausalLM",
        "DeepseekV4ForCausalLM",
        "FalconForCausalLM",
        "FalconMambaForCausalLM",
        "GPT2LMHeadModel",
        "GPTJForCausalLM",
        "Gemma3nForCausalLM",
        "HrmTextForCausalLM",
        "KimiLinearForCausalLM",
        "Mamba2ForCausalLM",
        "MambaForCausalLM",
        "MiMoV2FlashForCausalLM",
        "StableLmForCausalLM",
        "Zamba2ForCausalLM",
    }
)
"""Architectures that vLLM runs, but not with adapters."""

# Keys of adapter_config.json that change what an adapter computes and that vLLM has no way to do.
_NOT_PLAIN: Final = (
    "alora_invocation_tokens",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "use_bdlora",
    "use_dora",
    "use_qalora",
)
_IN_A_LAYER = re.compile(r"\.\d+\.")
_HALF_PRECISION = 2


@dataclass(frozen=True)
class VllmExport:
    """How vLLM serves a routed model.

    Attributes:
        environment: variables in front of the command.
        command: program and arguments, unquoted.
        served_name: what the base is called in answers; requests may also say ``base``.
        adapters: folder of each domain's adapter, in training order.
        max_lora_rank: the smallest rank of :data:`VLLM_RANKS` that holds every adapter.
        max_loras: most adapters in one batch.
        slot_bytes: least memory that vLLM sets aside for them, in half precision.
        problems: why vLLM could not serve it, one sentence each with what to do; the command is of
            no use then.
        notes: what differs from ``asr serve``, one sentence each.
    """

    environment: dict[str, str]
    command: list[str]
    served_name: str
    adapters: dict[str, Path]
    max_lora_rank: int
    max_loras: int
    slot_bytes: int
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def shell(self) -> str:
        """The command for a shell: words quoted, each option and each adapter on its own line."""
        variables = [f"{key}={shlex.quote(value)}" for key, value in self.environment.items()]
        lines = [" ".join([*variables, self.command[0]])]
        modules = {_lora_module(name, folder) for name, folder in self.adapters.items()}
        for word in self.command[1:]:
            if word.startswith("--"):
                lines.append(f"  {shlex.quote(word)}")
            elif word in modules:
                lines.append(f"    {shlex.quote(word)}")
            else:
                lines[-1] += f" {shlex.quote(word)}"
        return " \\\n".join(lines)


def export_vllm(
    path: Path,
    *,
    base: str | None = None,
    max_loras: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> VllmExport:
    """Return the command that serves a routed model in vLLM, with the router inside.

    Args:
        path: a routed model directory.
        base: where the base is, if not where training found it.
        max_loras: most adapters in one batch; default all.
        say: takes a line about what takes long (a built-in base that is not on this machine yet).

    Raises:
        DirectoryError: not a routed model directory, damaged, or without a finished domain.
        ConfigError: ``max_loras`` is below 1.
        StorageError: the base's cache cannot be written.
    """
    if max_loras is not None and max_loras < 1:
        raise ConfigError(f"max_loras is {max_loras}; vLLM needs room for 1 adapter or more")
    # Not resolve(): a link that people move to the next model should stand in the command.
    root = Path(os.path.abspath(path))
    directory = ModelDirectory.open(root)
    manifest = Manifest.load(root)
    published = {
        name: entry.adapter
        for name, entry in manifest.domains.items()
        if entry.router is not None and entry.adapter is not None
    }
    if not published:
        raise DirectoryError(f"'{path}' has no finished domain yet; run asr train with --resume")
    problems = _architecture_problems(manifest)
    folders = {name: directory.adapter(name, made.version) for name, made in published.items()}
    ranks: list[int] = []
    for name, folder in folders.items():
        config, problem = _read_config(folder, published[name])
        found = [problem] if config is None else _config_problems(config)
        problems += [f"domain '{name}': {line}" for line in found]
        ranks.append(_largest_rank(config or {}, published[name]))
    if not directory.chat_template.is_file():
        problems.append(f"{directory.chat_template} is missing; restore it from a copy")
    served = manifest.base.name
    if served in folders:
        problems.append(
            f"the base and a domain are both called '{served}': vLLM cannot tell them apart; name "
            "the base by its folder when you train"
        )
    where, unplaced = _base_arguments(manifest, base, say)
    problems += unplaced
    # The largest where nothing holds it: that is one of the problems
    slot_rank = next((rank for rank in VLLM_RANKS if rank >= max(ranks)), VLLM_RANKS[-1])
    slots = min(max_loras or len(folders), len(folders))
    largest = max(
        made.parameters * slot_rank // rank
        for made, rank in zip(published.values(), ranks, strict=True)
    )
    # The first name is what answers carry; the second is what the base is called everywhere here.
    command = ["vllm", "serve", *where, "--served-model-name", served, "base"]
    command += ["--enable-lora", "--lora-modules"]
    command += [_lora_module(name, folder) for name, folder in folders.items()]
    command += ["--max-lora-rank", str(slot_rank)]
    command += ["--max-loras", str(slots), "--max-cpu-loras", str(len(folders))]
    command += ["--chat-template", str(directory.chat_template)]
    command += ["--middleware", "asr.serve.RouteAuto"]
    return VllmExport(
        environment={"ASR_MODEL": str(root)} | ({} if base is None else {"ASR_BASE": where[0]}),
        command=command,
        served_name=served,
        adapters=folders,
        max_lora_rank=slot_rank,
        max_loras=slots,
        slot_bytes=slots * largest * _HALF_PRECISION,
        problems=problems,
        notes=_notes(manifest),
    )


def _lora_module(name: str, folder: Path) -> str:
    """One word of ``--lora-modules``; vLLM takes what holds a comma for JSON."""
    if "," in str(folder):
        return json.dumps({"name": name, "path": str(folder)})
    return f"{name}={folder}"


def _base_arguments(
    manifest: Manifest, given: str | None, say: Callable[[str], None]
) -> tuple[list[str], list[str]]:
    """What names the base to vLLM, and why it cannot be named; a hub base is not looked up."""
    recorded = manifest.base
    if given is None and recorded.source == "hub":
        revision = [] if recorded.revision is None else ["--revision", recorded.revision]
        return [recorded.name, *revision], []
    name = given or recorded.name
    try:
        found = resolve_base(name, say, revision=recorded.revision_of(name), weights=False)
    except BaseModelError as error:
        hint = "" if given else "; say where it is with --base"
        return [name], [f"{error}{hint}"]
    if found.source == "hub":
        revision = [] if found.revision is None else ["--revision", found.revision]
        return [found.name, *revision], []
    return [str(found.path)], []


def _architecture_problems(manifest: Manifest) -> list[str]:
    architecture = manifest.base.architecture
    if architecture not in VLLM_WITHOUT_LORA:
        return []
    return [
        f"vLLM {VLLM_VERSION} serves no adapters on {architecture}; use asr serve, or train on "
        "another base"
    ]


def _read_config(folder: Path, made: AdapterEntry) -> tuple[dict[str, Any] | None, str]:
    """The adapter's configuration, or None and what is wrong with its files."""
    path = folder / "adapter_config.json"
    restore = "restore it from a copy, or remove the domain and train it again"
    if not (folder / "adapter_model.safetensors").is_file():
        return None, f"{folder / 'adapter_model.safetensors'} is missing; {restore}"
    try:
        config = json.loads(path.read_bytes())
        changed = made.config_sha256 not in (None, file_sha256(path))
    except FileNotFoundError:
        return None, f"{path} is missing; {restore}"
    except (OSError, ValueError, RecursionError) as error:
        return None, f"{path} cannot be read ({error}); {restore}"
    if changed or not isinstance(config, dict):
        return None, f"{path} was changed; {restore}"
    return config, ""


def _largest_rank(config: dict[str, Any], made: AdapterEntry) -> int:
    own = (config.get("rank_pattern") or {}).values()
    return max([made.rank, *(rank for rank in own if isinstance(rank, int))])


def _config_problems(config: dict[str, Any]) -> list[str]:
    """Why vLLM would refuse an adapter, or run it without what it cannot adapt."""
    problems = []
    ranks = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    largest = max((rank for rank in ranks if isinstance(rank, int)), default=0)
    if largest > VLLM_RANKS[-1]:
        problems.append(
            f"rank {largest}, vLLM takes up to {VLLM_RANKS[-1]}; train it again with "
            f"adapter.rank={VLLM_RANKS[-1]} or less, or use asr serve"
        )
    refused = [key for key in _NOT_PLAIN if config.get(key)]
    if config.get("bias", "none") != "none":
        refused.append("bias")
    if refused:
        problems.append(
            f"{', '.join(refused)} in adapter_config.json: vLLM serves plain LoRA only; convert "
            "the adapter to plain LoRA"
        )
    targets = config.get("target_modules") or []
    outside = [name for name in targets if not _IN_A_LAYER.search(name) or ".experts." in name]
    if outside:
        problems.append(
            f"vLLM does not adapt '{outside[0]}' ({len(outside)} of {len(targets)} modules); train "
            "it again on linear modules of the decoder layers, or use asr serve"
        )
    return problems


def _notes(manifest: Manifest) -> list[str]:
    notes = []
    quantisation = manifest.numeric.quantisation
    if quantisation is not None:
        same = "add --quantization bitsandbytes" if quantisation == "nf4" else "there is no int8"
        notes.append(
            f"trained on the base in {quantisation}, which vLLM loads in its own dtype ({same}): "
            "answers may differ"
        )
    return notes
