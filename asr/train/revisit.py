"""How new data of a domain meets what is kept of the old: sums, kept prompts, what to say aloud."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from asr.data.formats import Example
from asr.data.views import CommonPart, find_common_part
from asr.router import RoutingDomain
from asr.train.prepare import PreparedDomain


def joined(old: RoutingDomain, added: RoutingDomain) -> RoutingDomain:
    """The domain over both sets of prompts: statistics summed, calibration prompts of both.

    Raises:
        RouterError: the two were made with other router settings or views.
    """
    calibration = old.calibration
    if calibration is not None and added.calibration is not None:
        calibration = calibration + added.calibration
    return RoutingDomain(old.name, old.statistics + added.statistics, calibration)


def merged_prompts(old: Sequence[Example], new: Sequence[Example]) -> list[Example]:
    """Kept prompts of both, in turns, so that the first few already hold both.

    A prompt of both is kept with its new answers only.
    """
    keys = {example.prompt_key for example in new}
    rest = [example for example in old if example.prompt_key not in keys]
    pairs = itertools.zip_longest(rest, new)
    return [example for pair in pairs for example in pair if example is not None]


def facts(domain: PreparedDomain, kept: Sequence[Example]) -> list[str]:
    """What a user should know of how the new data meets the old, one line each."""
    data, name = domain.data, domain.name
    assert data is not None
    lines = []
    held_out = len(data.dev) if domain.config.dev is None else 0
    left_out = len(data.loaded.examples) - held_out - len(data.train)
    if left_out:
        lines.append(
            f"{name}: {left_out} of {len(data.loaded.examples)} examples left out of training: "
            "their prompts are kept for scoring"
        )
    again = len({e.prompt_key for e in kept} & {e.prompt_key for e in data.dev})
    if again:
        lines.append(
            f"{name}: {again} kept prompts stand in the new data too; their new answers are kept"
        )
    return lines + _common_facts(name, data.common, data.train)


def _common_facts(name: str, common: CommonPart, examples: Sequence[Example]) -> list[str]:
    distinct = list({example.prompt_key: example for example in examples}.values())
    lines = []
    if common != CommonPart():
        lacking = sum(common.bare(e.prompt) == [dict(m) for m in e.prompt] for e in distinct)
        if lacking:
            shown = _cut(common.prefix or common.suffix or common.system)
            lines.append(
                f"{name}: {lacking} of {len(distinct)} new prompts lack the common part of the "
                f"first data ({shown}); their bare view is the prompt as it is"
            )
    bare = [replace(e, messages=(*common.bare(e.prompt), e.messages[-1])) for e in distinct]
    rest = find_common_part(bare)
    if rest != CommonPart():
        shown = _cut(rest.prefix or rest.suffix or rest.system)
        lines.append(
            f"{name}: the new prompts have a common part of their own ({shown}); it stays in their "
            "bare view, only that of the first data is cut"
        )
    return lines


def _cut(text: str) -> str:
    shown = " ".join(text.split())
    return f"'{shown if len(shown) <= 40 else shown[:37] + '...'}'"
