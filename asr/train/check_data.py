"""Every row that a run will train on is read once before anything expensive starts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from asr.data.cut import dev_cut
from asr.data.formats import Example
from asr.data.load import LoadedData, data_hash, load_examples
from asr.errors import DataError
from asr.eval.registry import check_examples
from asr.train.config import DomainConfig, TrainConfig

DEFAULT_SCORER = "exact"
TEXT_SCORER = "loss"
"""The default where the examples are plain texts: they hold no answer to compare."""


@dataclass(frozen=True)
class CutData:
    """A domain's examples, read and cut.

    Attributes:
        loaded: the training file.
        train: examples to train on.
        dev: examples held out for choices: of a file of their own, or cut from the training file.
        sha256: hash of both; another dev file changes it, as it changes the examples to train on.
        scorer: what the examples are scored by.
    """

    loaded: LoadedData
    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    sha256: str
    scorer: str


def check_data(config: TrainConfig, names: Iterable[str]) -> dict[str, CutData]:
    """Read the training and dev data of the named domains; test files are not opened.

    Raises:
        DataError: files, or rows of them, that cannot be used, and dev examples that the domain's
            scorer cannot score: of all these domains at once.
    """
    found: dict[str, CutData] = {}
    errors: list[str] = []
    for name in names:
        try:
            found[name] = read_domain(name, config.domains[name], config.seed)
        except DataError as error:
            errors.append(str(error))
    if len(errors) > 1:
        raise DataError("\n".join([f"the data of {len(errors)} domains cannot be used", *errors]))
    if errors:
        raise DataError(errors[0])
    return found


def read_domain(name: str, domain: DomainConfig, seed: int) -> CutData:
    """Read and cut the data of one domain.

    Raises:
        DataError: files, or rows of them, that cannot be used; dev examples that the scorer cannot
            score.
    """
    loaded = load_examples(
        domain.train, name=name, fmt=domain.format, limit=domain.limit, seed=seed
    )
    if domain.dev is None:
        cut = dev_cut(loaded.examples)
        train, dev, sha256 = cut.kept, cut.held_out, loaded.sha256
    else:
        train = loaded.examples
        dev = load_examples(domain.dev, name=name, fmt=domain.format, minimum=1).examples
        sha256 = data_hash([*train, *dev])
    scorer = chosen_scorer(domain.scorer, loaded)
    check_examples(scorer, dev, name)
    return CutData(loaded, tuple(train), tuple(dev), sha256, scorer)


def chosen_scorer(given: str | None, loaded: LoadedData) -> str:
    """Return the scorer that the user gave, else the default for such data."""
    return given or (TEXT_SCORER if loaded.format == "text" else DEFAULT_SCORER)
