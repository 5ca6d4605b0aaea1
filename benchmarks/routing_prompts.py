"""Prompts for routing benchmarks: views, cuts and background of a model, without features.

The cuts are those of training: the dev cut is judged on, the calibration cut held out from the fit,
half of the background too. So every router of a comparison sees the same words.

Notation: n prompts, V views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from asr.base.load import LoadedBase
from asr.data.cut import background_cut, calibration_cut, dev_cut
from asr.data.formats import Example, Message
from asr.data.load import load_examples
from asr.data.views import CommonPart, find_common_part, make_views
from asr.model.background_prompts import own_messages, sampled_prompts
from asr.train.config import RouterConfig

VIEWS: tuple[str, ...] = tuple(RouterConfig().views)
"""The default views of a model."""

DEV_VIEWS = ("templated", "bare", "framed")
"""The views that are judged, whatever is fitted on."""

BACKGROUND = ("_messages", "_sampled")
"""Names of the parts of the background; no domain can be called so."""

Prompt = list[Message]


@dataclass(frozen=True)
class Prompts:
    """Prompts of one class, each list (n, V).

    Attributes:
        statistics: what is fitted on, in :data:`VIEWS`.
        held_out: what settings are chosen on, in the same.
        dev: what is judged on, in :data:`DEV_VIEWS`; empty for the background.
    """

    statistics: list[list[Prompt]]
    held_out: list[list[Prompt]]
    dev: list[list[Prompt]]


def read_examples(data: Path, limit: int | None) -> dict[str, list[Example]]:
    """Training examples of ``data/<domain>/train.jsonl`` by domain, in name order."""
    return {
        path.parent.name: list(load_examples(path, name=path.parent.name, limit=limit).examples)
        for path in sorted(data.glob("*/train.jsonl"))
    }


def domain_prompts(examples: Sequence[Example]) -> Prompts:
    """Cut one domain's examples as training does; equal prompts count once."""
    distinct = list({example.prompt_key: example for example in examples}.values())
    outer = dev_cut(distinct)
    common = find_common_part(outer.kept)
    inner = calibration_cut(outer.kept)
    return Prompts(
        _views(inner.kept, common),
        _views(inner.held_out, common),
        _views(outer.held_out, common, DEV_VIEWS),
    )


def background_prompts(base: LoadedBase, count: int) -> dict[str, Prompts]:
    """Both parts of the background: our messages, and ``count`` prompts that the base writes."""
    made = {}
    for name, texts in zip(BACKGROUND, (own_messages(), sampled_prompts(base, count)), strict=True):
        answer: Message = {"role": "assistant", "content": ""}
        cut = background_cut([Example((user(text), answer)) for text in texts])
        common = CommonPart()
        made[name] = Prompts(_views(cut.kept, common), _views(cut.held_out, common), [])
    return made


def words(prompt: Sequence[Message]) -> str:
    """What a router that reads text is given: the user's turns."""
    return "\n".join(turn["content"] for turn in prompt if turn["role"] == "user")


def texts(prompts: Sequence[Sequence[Prompt]]) -> list[list[str]]:
    """(n, V) texts."""
    return [[words(view) for view in views] for views in prompts]


def flat(prompts: Sequence[Sequence[Prompt]]) -> list[Prompt]:
    """(n V,) views, those of a prompt one after another."""
    return [view for views in prompts for view in views]


def user(text: str) -> Message:
    """A user's turn."""
    return {"role": "user", "content": text}


def _views(
    examples: Sequence[Example], common: CommonPart, names: Sequence[str] = VIEWS
) -> list[list[Prompt]]:
    return [list(make_views(example.prompt, common, names).values()) for example in examples]
