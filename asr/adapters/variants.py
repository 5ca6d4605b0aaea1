"""Which of PEFT's LoRA variants an adapter may be trained with, and why not the others.

Every adapter ends as plain LoRA, the only kind that a mixed batch can carry. Three sorts of
initialisation end so: those that choose the start of ``A`` and ``B`` only, those that take the
start out of the base (the base is restored after training and the adapter converted, see
:mod:`asr.adapters.conversion`), and those refused here with a reason.

Knows names only: no model, no library.
"""

from __future__ import annotations

import re

from asr.errors import did_you_mean

Initialisation = bool | str
"""PEFT's ``init_lora_weights``: ``True`` or a name."""

_PISSA_FAST = re.compile(r"pissa_niter_(\d{1,3})")

KEEP_BASE = ("gaussian", "orthogonal", "mica")
"""Initialisations beside ``True`` that leave the base as it is."""

REWRITE_BASE = ("pissa", "pissa_niter_N", "olora")
"""Initialisations that move a part of the base into the adapter; converted, the rank doubles."""

REFUSED_INITIALISATIONS = {
    "false": "starts with a random change of every answer; it is meant for debugging PEFT",
    "corda": "decomposes the base by a pass of its own over the data, which is not made here; use "
    "pissa",
    "eva": "finds its start by a pass of its own over the data, which is not made here; use pissa, "
    "or gaussian",
    "loftq": "quantises the base anew for each adapter, and no LoRA over the one frozen base "
    "equals that; use quantisation: nf4 with init_lora_weights: true",
    "lora_ga": "finds its start by gradients of the whole base, a pass of its own over the data "
    "that is not made here; use pissa",
}

_NOT_IN_A_MIXED_BATCH = "and a batch that mixes adapters can carry plain LoRA only; "

REFUSED_KEYS = {
    "alora_invocation_tokens": "aLoRA switches an adapter on in the middle of a prompt, "
    + _NOT_IN_A_MIXED_BATCH
    + "leave it out",
    "arrow_config": "Arrow is a router between adapters, and this model has its own; leave it out",
    "bias": "biases trained in the base would change it for every domain; leave it out",
    "ensure_weight_tying": "embeddings carry no adapter here; leave it out",
    "kasa_config": "KaSA cuts the base for good and has no plain LoRA form; use "
    "init_lora_weights: pissa",
    "layer_replication": "it builds another base, and the base is shared; leave it out",
    "lora_bias": "it trains a bias beside A and B, " + _NOT_IN_A_MIXED_BATCH + "leave it out",
    "modules_to_save": "it trains whole modules of the base, which all domains share; raise rank, "
    "or name the modules in placement",
    "monteclora_config": "it samples its weights, " + _NOT_IN_A_MIXED_BATCH + "use dropout",
    "target_parameters": "parameters that are no linear module (experts) have no plain LoRA form; "
    "name linear modules in placement",
    "trainable_token_indices": "it trains embeddings of the base, which all domains share; leave "
    "it out",
    "use_bdlora": "block-diagonal factors are for engines split over accelerators, "
    + _NOT_IN_A_MIXED_BATCH
    + "leave it out",
    "use_dora": "DoRA rescales whole rows of the base's weights, which no low-rank update equals, "
    + _NOT_IN_A_MIXED_BATCH
    + "use a higher rank with use_rslora: true, or init_lora_weights: pissa",
    "use_qalora": "QA-LoRA needs a GPTQ base, " + _NOT_IN_A_MIXED_BATCH + "use quantisation: nf4",
    "velora_config": "VeLoRA trains with approximate gradients; use "
    "training.gradient_checkpointing: true to save memory",
}
"""Keys of PEFT's ``LoraConfig`` that are not offered: why, and what to use instead."""

RENAMED_KEYS = {
    "r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "placement",
    "exclude_modules": "placement",
    "layers_to_transform": "placement",
    "layers_pattern": "placement",
    "corda_config": "init_lora_weights",
    "eva_config": "init_lora_weights",
    "loftq_config": "init_lora_weights",
    "lora_ga_config": "init_lora_weights",
}
"""Keys of PEFT's ``LoraConfig`` that have another name here."""


def refused_key(key: str) -> str | None:
    """Why a key of PEFT's configuration is not offered; None for keys that are not PEFT's.

    A switch that is turned off is named all the same: the key is not one of ours.
    """
    if key in REFUSED_KEYS:
        return f"{key} is not offered: {REFUSED_KEYS[key]}"
    if key in RENAMED_KEYS:
        return f"{key} is called {RENAMED_KEYS[key]} here"
    return None


def initialisation_problem(name: Initialisation) -> str | None:
    """What is wrong with an ``init_lora_weights``; None if it is offered."""
    if name is True or name in KEEP_BASE or rewrites_base(name):
        return None
    text = "false" if name is False else str(name)
    if text in REFUSED_INITIALISATIONS:
        return f"init_lora_weights {text} is refused: it {REFUSED_INITIALISATIONS[text]}"
    offered = (*KEEP_BASE, *REWRITE_BASE)
    near = did_you_mean(text, [*offered, *REFUSED_INITIALISATIONS])
    return f"no init_lora_weights '{text}'{near}; there are: true, {', '.join(offered)}"


def rewrites_base(name: Initialisation) -> bool:
    """Whether an initialisation moves a part of the base into the adapter."""
    return isinstance(name, str) and (
        name in ("pissa", "olora") or _PISSA_FAST.fullmatch(name) is not None
    )


def shape_problem(
    name: Initialisation, rank: int, *, rows: int, columns: int, transposed: bool, quantised: bool
) -> str | None:
    """What keeps an offered initialisation from a module; None if nothing does.

    Args:
        name: ``init_lora_weights``.
        rank: rank of the adapter.
        rows: output features of the module.
        columns: its input features.
        transposed: the weight is stored (in, out), as in ``Conv1D``.
        quantised: the weight is stored in 4 or 8 bits.
    """
    if name in (True, "gaussian"):
        return None
    if quantised:
        return "reads the base's weights, which are quantised; use true or gaussian"
    if name == "orthogonal":
        return None if rank % 2 == 0 else f"needs an even rank, not {rank}; use {rank + 1}"
    if name == "olora" and transposed:
        return "cannot decompose Conv1D modules; use pissa"
    if rank > min(rows, columns):
        return f"takes at most rank {min(rows, columns)} here, not {rank}; lower adapter.rank"
    return None
