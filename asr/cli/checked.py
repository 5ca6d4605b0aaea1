"""What ``asr check`` finds out: the data of every domain read, compared and measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from asr.base.tokenizer import BaseTokenizer
from asr.data.cut import dev_cut
from asr.data.encode import encode_example
from asr.data.formats import FORMATS, Example
from asr.data.hub import is_hub, locate_data
from asr.data.load import MINIMUM_PROMPTS, LoadedData, load_examples
from asr.data.report import (
    Duplicates,
    Lengths,
    find_duplicates,
    mask_segments,
    measure_lengths,
    shared_prompts,
)
from asr.data.views import CommonPart, find_common_part
from asr.errors import DataError, unknown
from asr.eval.registry import check_examples
from asr.train.check_data import chosen_scorer
from asr.train.config import TrainingConfig
from asr.train.config_file import check_files, load_config

Shared = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class DomainPlan:
    """Where a domain's data lies, and how it is to be read; of a config, or a file by itself.

    What a file by itself leaves open is as in training by default.
    """

    train: str
    dev: str | None = None
    test: str | None = None
    format: str | None = None
    limit: int | None = None
    max_length: int = TrainingConfig().max_length
    scorer: str | None = None
    of_config: bool = True


@dataclass(frozen=True)
class Plan:
    """What to check; ``base`` is the config's."""

    title: str
    domains: Mapping[str, DomainPlan]
    base: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class DomainSets:
    """A domain's examples: of training, dev (cut off, or a file) and test."""

    loaded: LoadedData
    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    test: tuple[Example, ...]


@dataclass(frozen=True)
class DomainReport:
    """What was found out about one domain. What needs a tokenizer is None without one."""

    name: str
    path: str
    format: str | None
    examples: int
    prompts: int
    train: int
    dev: int
    test: int
    meta: dict[str, int]
    scorer: str | None
    duplicates: Duplicates
    shared_with_dev: Shared
    shared_with_test: Shared
    common: CommonPart
    bare: str
    source: str
    lengths: Lengths | None = None
    first: list[tuple[str, bool]] = field(default_factory=list)


@dataclass(frozen=True)
class CheckReport:
    """What was found out about all domains; ``shared``: pairs of domains with equal prompts."""

    title: str
    base: str | None
    context_length: int | None
    domains: list[DomainReport]
    shared: dict[str, Shared]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


def plan_of_config(path: Path, overrides: Sequence[str]) -> Plan:
    """Return what a config asks for.

    Raises:
        ConfigError: the config is refused, or names files that do not exist.
    """
    config = load_config(path, overrides)
    check_files(config)
    domains = {
        name: DomainPlan(
            train=str(domain.train),
            dev=None if domain.dev is None else str(domain.dev),
            test=None if domain.test is None else str(domain.test),
            format=domain.format,
            limit=domain.limit,
            max_length=domain.training.max_length,
            scorer=domain.scorer,
        )
        for name, domain in config.domains.items()
    }
    return Plan(str(path), domains, config.base, config.seed)


def plan_of_file(target: str, fmt: str | None, test: str | None) -> Plan:
    """Return what one file, or hub data set, asks for.

    Raises:
        DataError: an unknown format.
    """
    if fmt is not None and fmt not in FORMATS:
        raise DataError(unknown("data format", fmt, FORMATS))
    here = Path.cwd()
    located = locate_data(target, here)
    train = located if is_hub(located) else target
    where = None if test is None else locate_data(test, here)
    # a file to look at may be shorter than one to train on
    plan = DomainPlan(train, None, where, fmt, of_config=False)
    file = Path(target).name
    return Plan(target, {file.partition(".")[0] or file: plan})


def read_plan(plan: Plan) -> dict[str, DomainSets]:
    """Read the data of every domain; what is wrong in any of it is one error.

    Raises:
        DataError: bad files or rows.
    """
    found: dict[str, DomainSets] = {}
    errors: list[str] = []

    def read(name: str, path: str | None, **options: Any) -> LoadedData | None:
        if path is None:
            return None
        try:
            return load_examples(path, name=name, fmt=plan.domains[name].format, **options)
        except DataError as error:
            errors.append(str(error))
            return None

    for name, domain in plan.domains.items():
        train = read(
            name,
            domain.train,
            limit=domain.limit,
            minimum=MINIMUM_PROMPTS if domain.of_config else 1,
            seed=plan.seed,
        )
        dev = read(name, domain.dev, minimum=1)
        test = read(name, domain.test, minimum=1)
        if train is None:
            continue
        cut = dev_cut(train.examples)
        whole = domain.dev is not None or not domain.of_config
        found[name] = DomainSets(
            loaded=train,
            train=train.examples if whole else cut.kept,
            dev=() if whole and dev is None else cut.held_out if dev is None else dev.examples,
            test=() if test is None else test.examples,
        )
        if domain.of_config:
            try:
                scored = [*found[name].dev, *found[name].test]
                check_examples(chosen_scorer(domain.scorer, train), scored, name)
            except DataError as error:
                errors.append(str(error))
    if len(errors) > 1:
        raise DataError("\n".join([f"{plan.title}: {len(errors)} files cannot be used", *errors]))
    if errors:
        raise DataError(errors[0])
    return found


def inspect_domains(
    plan: Plan, domains: Mapping[str, DomainSets], encoder: BaseTokenizer | None
) -> CheckReport:
    """Compare, and where there is a tokenizer measure, what was read.

    Raises:
        DataError: examples that the chat template or the tokenizer cannot take, of all domains.
    """
    reports: list[DomainReport] = []
    errors: list[str] = []
    for name, sets in domains.items():
        try:
            reports.append(_inspect(name, plan.domains[name], sets, encoder))
        except DataError as error:
            errors.append(str(error))
    if errors:
        raise DataError("\n".join(errors))
    shared = {
        f"{first} and {second}": tuple(
            shared_prompts(domains[first].loaded.examples, domains[second].loaded.examples)
        )
        for first, second in combinations(domains, 2)
    }
    return CheckReport(
        title=plan.title,
        base=None if encoder is None else encoder.name,
        context_length=None if encoder is None else encoder.context_length,
        domains=reports,
        shared={pair: found for pair, found in shared.items() if found},
    )


def _inspect(
    name: str, plan: DomainPlan, sets: DomainSets, encoder: BaseTokenizer | None
) -> DomainReport:
    examples = sets.loaded.examples
    common = find_common_part(sets.train)
    meta: dict[str, int] = {}
    for example in examples:
        for key in example.meta:
            meta[key] = meta.get(key, 0) + 1
    first = examples[0]
    lengths, segments = None, []
    if encoder is not None:
        tokenizer, template = encoder.tokenizer, encoder.template
        lengths = measure_lengths(
            [*sets.train, *sets.dev], tokenizer, template, plan.max_length, name
        )
        segments = mask_segments(encode_example(first, tokenizer, template)[-1], tokenizer)
    bare = common.bare(first.prompt)
    scorer = None
    if plan.of_config:
        scorer = chosen_scorer(plan.scorer, sets.loaded)
    return DomainReport(
        name=name,
        path=str(sets.loaded.path),
        format=sets.loaded.format,
        examples=len(examples),
        prompts=len({example.prompt_key for example in examples}),
        train=len(sets.train),
        dev=len(sets.dev),
        test=len(sets.test),
        meta=meta,
        scorer=scorer,
        duplicates=find_duplicates(examples),
        shared_with_dev=tuple(shared_prompts(sets.train, sets.dev)),
        shared_with_test=tuple(shared_prompts([*sets.train, *sets.dev], sets.test)),
        common=common,
        bare=bare[-1]["content"],
        source=first.source,
        lengths=lengths,
        first=segments,
    )
