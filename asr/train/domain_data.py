"""The data of a domain: encoded to train on it, or only compared where it is finished."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from asr.base.load import LoadedBase
from asr.data.cut import calibration_cut
from asr.data.encode import EncodedSet, encode_examples, join_encoded
from asr.data.formats import Example
from asr.data.load import LoadedData
from asr.data.problems import listed
from asr.data.rendering import render_messages
from asr.data.tokens import tokenise_opening
from asr.data.views import VIEWS, CommonPart, find_common_part
from asr.errors import ConfigError, DataError
from asr.eval.registry import check_examples
from asr.train.check_data import CutData, chosen_scorer, read_domain
from asr.train.config import DomainConfig


@dataclass(frozen=True)
class DomainData:
    """A domain's data, cut and encoded.

    Attributes:
        loaded: the file.
        train: examples to train on (calibration prompts are among them; the router holds those out
            of its statistics).
        dev: examples held out for choices, and for the matrix while training.
        encoded: rows of ``train``, in every view of ``views``, one view after the other.
        views: the training views in which the domain's prompts differ.
        common: what the prompts share.
        calibration: number of distinct prompts held out from the router's statistics.
        sha256: hash of the examples of both cuts; another dev file changes it, as it changes the
            examples to train on.
    """

    loaded: LoadedData
    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    encoded: EncodedSet
    views: tuple[str, ...]
    common: CommonPart
    calibration: int
    sha256: str


@dataclass(frozen=True)
class EarlierData:
    """What is kept of data that a domain was trained on before.

    Attributes:
        common: what its prompts share.
        kept: keys of the prompts that are kept for scoring.
    """

    common: CommonPart
    kept: frozenset[str]


@dataclass(frozen=True)
class FinishedData:
    """What is compared of the data of a domain that needs it no more.

    Attributes:
        sha256: as :attr:`DomainData.sha256`.
        views: as :attr:`DomainData.views`.
    """

    sha256: str
    views: tuple[str, ...]


def encode_domain(
    name: str,
    domain: DomainConfig,
    read: CutData,
    base: LoadedBase,
    earlier: EarlierData | None = None,
) -> DomainData:
    """Encode the data of a domain in its training views.

    With ``earlier``, prompts that are kept for scoring are not trained on, and the bare view is
    made with the common part of that data.

    Raises:
        DataError: rows that cannot be encoded; nothing is left to train on.
    """
    train = read.train
    common = find_common_part(train)
    if earlier is not None:
        common = earlier.common
        train = tuple(e for e in train if e.prompt_key not in earlier.kept)
        if not train:
            raise DataError(
                f"{read.loaded.path}: every prompt of it is kept for scoring '{name}' already, and "
                "none is left to train on; give data with other prompts"
            )
    views = _distinct_views(train, common, domain.training.views)
    encoded = join_encoded(
        [
            encode_examples(
                [_shown(example, view, common) for example in train],
                base.tokenizer,
                base.template,
                domain.training.max_length,
                name=name,
            )
            for view in views
        ]
    )
    distinct = list({example.prompt_key: example for example in train}.values())
    return DomainData(
        loaded=read.loaded,
        train=train,
        dev=read.dev,
        encoded=encoded,
        views=views,
        common=common,
        calibration=len(calibration_cut(distinct).held_out),
        sha256=read.sha256,
    )


def require_room(
    name: str, examples: Sequence[Example], base: LoadedBase, max_new_tokens: int
) -> None:
    """Refuse prompts to be answered that the base's context does not hold with their answer.

    Raises:
        DataError: names all of them.
    """
    problems = []
    for example in examples:
        text = render_messages(example.prompt, base.tokenizer, base.template, True)
        tokens = len(tokenise_opening(base.tokenizer, base.template, text).ids)
        if tokens + max_new_tokens > base.context_length:
            problems.append(f"{example.source}: a prompt of {tokens} tokens")
    if problems:
        raise listed(
            f"{name}: {len(problems)} of {len(examples)} dev prompts and max_new_tokens="
            f"{max_new_tokens} exceed the base's context of {base.context_length}; shorten or "
            "remove them, lower max_new_tokens, or score by 'loss'",
            problems,
        )


def read_finished(name: str, domain: DomainConfig, seed: int) -> tuple[FinishedData, str]:
    """Read the data of a domain that is finished, to compare it.

    Returns:
        What is compared, and what the examples are scored by.

    Raises:
        ConfigError: a file, or rows of it, cannot be used.
        DataError: the scorer cannot score the dev examples.
    """
    try:
        cut = read_domain(name, domain.model_copy(update={"scorer": None}), seed)
    except DataError as error:
        raise ConfigError(
            f"domain '{name}' is finished, and its data cannot be compared with what it was "
            f"trained on: {error}\nput it back as it was, or move it away: a finished domain does "
            "not need it"
        ) from error
    scorer = chosen_scorer(domain.scorer, cut.loaded)
    check_examples(scorer, cut.dev, name)
    views = _distinct_views(cut.train, find_common_part(cut.train), domain.training.views)
    return FinishedData(cut.sha256, views), scorer


def _shown(example: Example, view: str, common: CommonPart) -> Example:
    return replace(example, messages=tuple(VIEWS[view](example.messages, common)))


def _distinct_views(
    examples: Sequence[Example], common: CommonPart, names: Sequence[str]
) -> tuple[str, ...]:
    """Leave out views that show every example as an earlier one does (no common part: no bare)."""
    kept: dict[str, list[Example]] = {}
    for name in names:
        shown = [_shown(example, name, common) for example in examples]
        if shown not in kept.values():
            kept[name] = shown
    return tuple(kept)
