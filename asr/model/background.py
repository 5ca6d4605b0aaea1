"""The background class: what people say to a chat model, sampled from the base itself.

A router that knows only its domains has to give every prompt to one of them; how well a prompt fits
the best domain says little about whether it belongs to any. A class of *other* prompts in the same
regression says more: a request is known by how far its best domain stands above the background. A
chat model can write such prompts: it continues the bare header of a user's turn. So no data is
needed, and nothing of any user's is in it.

The class has a column and no route. It depends on the base, the template and the feature contract
alone, so it is made once per model directory and belongs to no domain.

Notation: n prompts, V views, d hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationConfig

from asr.base.load import LoadedBase
from asr.data.formats import Example
from asr.data.views import CommonPart
from asr.errors import DataError, RouterError
from asr.model.contract import FeatureContract
from asr.model.directory import ModelDirectory
from asr.model.features import Forward
from asr.model.manifest import Manifest
from asr.model.routing import fit_domain
from asr.model.stored import background_problem, contract_metadata, read_domain
from asr.router import RoutingDomain, save_domain

NAME = "_background"
"""No domain can be called so."""

SEED = 20240229
TOKENS = 48
"""Longest sampled prompt, in tokens."""

_BATCH = 64
_MARK = "\uf8ff"

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


def sample_prompts(base: LoadedBase, count: int, progress: Progress | None = None) -> list[str]:
    """Let the base write ``count`` user prompts; fewer where many come out empty or alike.

    Plain sampling at temperature 1 after the template's rendering of everything before a user's
    words, up to the end of the turn or ``TOKENS`` tokens. The random state is the function's own.

    Returns:
        Distinct prompts in the order of sampling; the same on the same machine, not across devices.
    """
    opening = base.template.render([{"role": "user", "content": _MARK}], True).partition(_MARK)[0]
    ids = base.tokenizer(opening, add_special_tokens=False, return_tensors="pt")["input_ids"]
    if ids.shape[1] == 0:  # a template that writes nothing before the user's words
        ids = torch.tensor([[base.template.end_of_turn_ids[0]]])
    ids = ids.to(torch.long).to(base.device)
    config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=TOKENS,
        eos_token_id=list(base.template.end_of_turn_ids),
        pad_token_id=base.tokenizer.pad_token_id,
    )
    generate: Any = base.model.generate
    texts: dict[str, None] = {}
    devices = [base.device] if base.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.inference_mode():
        torch.manual_seed(SEED)
        for done in range(0, count, _BATCH):
            rows = ids.repeat(min(_BATCH, count - done), 1)
            written = generate(
                rows, attention_mask=torch.ones_like(rows), generation_config=config
            )[:, ids.shape[1] :]
            decoded = base.tokenizer.batch_decode(written, skip_special_tokens=True)
            texts.update(dict.fromkeys(text.strip() for text in decoded if text.strip()))
            if progress is not None:
                progress(min(done + _BATCH, count), count)
    return list(texts)


def fit_background(
    base: LoadedBase,
    forward: Forward,
    contract: FeatureContract,
    count: int,
    progress: Progress | None = None,
) -> RoutingDomain:
    """Sample prompts and sum up their features, in the views of the contract.

    Raises:
        DataError: the base writes no prompt that has a token to pool.
        RouterError: a feature is not finite.
    """
    examples = [
        Example(({"role": "user", "content": text}, {"role": "assistant", "content": ""}))
        for text in sample_prompts(base, count, progress)
    ]
    if len(examples) < 2:
        raise DataError(
            f"'{base.name}' writes no user prompts to make the background class of; set "
            "router.background=0 to do without"
        )
    return fit_domain(NAME, examples, CommonPart(), base, forward, contract, kind="background")


def store_background(
    directory: ModelDirectory, background: RoutingDomain, contract: FeatureContract
) -> None:
    """Write ``router/_background.safetensors`` atomically.

    Raises:
        StorageError: the file system refused.
    """
    save_domain(
        directory.background,
        NAME,
        background.statistics,
        background.calibration,
        contract.hash,
        contract_metadata(contract),
    )


def read_background(directory: ModelDirectory, manifest: Manifest) -> list[RoutingDomain]:
    """Return the background class, as a list of one, or of none where the model has none.

    Raises:
        RouterError: the file is missing, or is not the one that was recorded.
        ContractError: it was made under another feature contract.
    """
    if manifest.background is None:
        return []
    problem = background_problem(directory, manifest)
    if problem is not None:
        raise RouterError(problem)
    stored = read_domain(directory.background, manifest.contract)
    return [RoutingDomain(NAME, stored.statistics, stored.calibration)]
