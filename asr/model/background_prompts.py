"""Prompts of no domain: what people write to a chat model, by us and by the base itself.

What the background class is made of decides what it catches (docs/routing.md has the figures):

- *messages*: short texts of our own, in many languages, of the kinds that people send all day;
- *sampled*: the base continues the header of a user's turn. A system prompt sets the subject, one
  of some 390 from cooking to case law, and two of three begin with an opening ("How can I", "Dear
  Sir or Madam,", "Was ist"). Without subjects a small base writes about business and sustainability
  most of the time.

Subjects, openings and messages lie in ``background_prompts.json``, written for this project; no
user's text and nothing of any data set is among them. What the base writes is a matter of base,
template and this recipe alone, so it is sampled once and kept in the cache (``background/`` in it).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from asr.atomic import write_json
from asr.base.checkpoint import cache_root
from asr.base.load import LoadedBase
from asr.data.formats import Message
from asr.errors import AsrError, StorageError
from asr.model.features import pad_left

Progress = Callable[[int, int], None]
"""Called with (done, total)."""

SEED = 20240229
TOKENS = 48
"""Most tokens that the base adds to an opening."""

RECIPE = 2
"""Goes up with any change of how prompts are sampled, so that old ones are not taken for new."""

_BATCH = 64
_TEMPERATURE, _TOP_P = 0.9, 0.95
_MARK = "\uf8ff"


def own_messages() -> list[str]:
    """Return the messages that were written for the project, in their order."""
    return list(_texts()["messages"])


def sampled_prompts(base: LoadedBase, count: int, progress: Progress | None = None) -> list[str]:
    """Return ``count`` user prompts of the base, fewer where many come out empty or alike.

    From the cache where they were sampled before; a cache that cannot be written is done without.

    Returns:
        Distinct prompts in the order of sampling; the same on the same machine, not across devices.
    """
    path = _cache_path(base, count)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(path.read_text(encoding="utf-8"))["prompts"]
        if isinstance(kept, list) and all(isinstance(text, str) for text in kept):
            if progress is not None:
                progress(count, count)
            return kept
    prompts = _sample(base, count, progress)
    with contextlib.suppress(StorageError, OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"base": base.name, "recipe": RECIPE, "prompts": prompts})
    return prompts


def _sample(base: LoadedBase, count: int, progress: Progress | None) -> list[str]:
    """Nucleus sampling up to the end of the turn. The random state is the function's own."""
    seeds = [_seed(index) for index in range(count)]
    rows = [_opening_ids(base, subject, opening) for subject, opening in seeds]
    order = sorted(range(count), key=lambda index: (len(rows[index]), index))
    config = GenerationConfig(
        do_sample=True,
        temperature=_TEMPERATURE,
        top_k=0,
        top_p=_TOP_P,
        max_new_tokens=TOKENS,
        eos_token_id=list(base.template.end_of_turn_ids),
        pad_token_id=base.tokenizer.pad_token_id,
    )
    generate: Any = base.model.generate
    written: dict[int, str] = {}
    devices = [base.device] if base.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.inference_mode():
        torch.manual_seed(SEED)
        for done in range(0, count, _BATCH):
            batch = order[done : done + _BATCH]
            ids, mask = pad_left(
                [rows[index] for index in batch], base.tokenizer.pad_token_id, base.device
            )
            out = generate(ids, attention_mask=mask, generation_config=config)[:, ids.shape[1] :]
            texts = base.tokenizer.batch_decode(out, skip_special_tokens=True)
            for index, text in zip(batch, texts, strict=True):
                written[index] = (seeds[index][1] + text).strip()
            if progress is not None:
                progress(min(done + _BATCH, count), count)
    return list(dict.fromkeys(written[index] for index in range(count) if written[index]))


def _seed(index: int) -> tuple[str, str]:
    """The subject and the opening of a sample; one of three has no opening."""
    subjects, openings = _texts()["subjects"], _texts()["openings"]
    subject = subjects[index % len(subjects)]
    opening = openings[(index - index // 3) % len(openings)] if index % 3 else ""
    return subject, opening.replace("{subject}", subject)


def _opening_ids(base: LoadedBase, subject: str, opening: str) -> list[int]:
    """Everything before what the base is to write: system prompt, header of the turn, opening."""
    user: Message = {"role": "user", "content": _MARK}
    system: Message = {"role": "system", "content": f"The user writes about {subject}."}
    try:
        rendered = base.template.render([system, user], True)
    except AsrError:  # a template without system prompts
        rendered = base.template.render([user], True)
    head = rendered.partition(_MARK)[0]
    ids: Sequence[int] = base.tokenizer(head + opening, add_special_tokens=False)["input_ids"]
    # a template that writes nothing before the user's words
    return list(ids) or [base.template.end_of_turn_ids[0]]


@cache
def _texts() -> dict[str, list[str]]:
    path = resources.files("asr.model") / "background_prompts.json"
    texts: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))
    return texts


def _cache_path(base: LoadedBase, count: int) -> Path:
    described = {
        "base": base.fingerprint,
        "template": base.template.hash,
        "dtype": base.dtype_name,
        "quantisation": base.quantisation,
        "device": base.device.type,
        "texts": hashlib.sha256(json.dumps(_texts(), sort_keys=True).encode()).hexdigest(),
        "recipe": RECIPE,
        "count": count,
    }
    key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    return cache_root() / "background" / f"{key[:32]}.json"
