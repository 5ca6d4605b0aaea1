"""Every row that a run will train on is read once before anything expensive starts."""

from __future__ import annotations

from collections.abc import Iterable

from asr.data.cut import dev_cut
from asr.data.load import LoadedData, load_examples
from asr.errors import DataError
from asr.eval.registry import check_examples
from asr.train.config import TrainConfig

DEFAULT_SCORER = "exact"
TEXT_SCORER = "loss"
"""The default where the examples are plain texts: they hold no answer to compare."""


def check_data(config: TrainConfig, names: Iterable[str]) -> None:
    """Read the training and dev data of the named domains; test files are not opened.

    Raises:
        DataError: files, or rows of them, that cannot be used, and dev examples that the domain's
            scorer cannot score: of all these domains at once.
    """
    errors: list[str] = []
    for name in names:
        domain = config.domains[name]
        try:
            loaded = load_examples(
                domain.train, name=name, fmt=domain.format, limit=domain.limit, seed=config.seed
            )
            held_out = dev_cut(loaded.examples).held_out
            if domain.dev is not None:
                dev = load_examples(domain.dev, name=name, fmt=domain.format, minimum=1)
                held_out = dev.examples
            check_examples(chosen_scorer(domain.scorer, loaded), held_out, name)
        except DataError as error:
            errors.append(str(error))
    if len(errors) > 1:
        raise DataError("\n".join([f"the data of {len(errors)} domains cannot be used", *errors]))
    if errors:
        raise DataError(errors[0])


def chosen_scorer(given: str | None, loaded: LoadedData) -> str:
    """Return the scorer that the user gave, else the default for such data."""
    return given or (TEXT_SCORER if loaded.format == "text" else DEFAULT_SCORER)
