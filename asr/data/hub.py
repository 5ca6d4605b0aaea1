"""Data sets of the Hugging Face hub, through the datasets library: rows are numbered from 1.

Written ``ORGANISATION/NAME``, with a configuration and a split where needed:
``ORGANISATION/NAME/CONFIGURATION:SPLIT``; without a split it is ``train``. What exists as a file,
or ends as data files do, is a file. Inside the program a hub data set is always called
``hub:ORGANISATION/NAME...``, so that the folder one stands in decides nothing later.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asr.data.problems import RowProblems
from asr.data.records import Record
from asr.errors import DataError, first_line, unknown

PREFIX = "hub:"
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".gz", ".zst")
"""How the names of data files end."""

ANSWER_SECONDS = 5.0

_PART = r"[A-Za-z0-9][\w.-]*"
_HUB = re.compile(rf"({_PART}/{_PART})(?:/({_PART}))?(?::([\w.-]+))?")


def locate_data(value: str, folder: Path) -> str:
    """Return where data lies: an absolute path from ``folder``, or ``hub:...``."""
    if value.startswith(PREFIX):
        return value
    place = folder / Path(value).expanduser()
    match = _HUB.fullmatch(value)
    if match is None or value.lower().endswith(SUFFIXES) or place.exists():
        return str(place)
    # a folder that is there was meant as one, unless a split says otherwise
    first = folder / value.partition("/")[0]
    return str(place) if first.is_dir() and match.group(3) is None else PREFIX + value


def is_hub(path: Path | str) -> bool:
    """Return whether :func:`locate_data` took it for a data set of the hub."""
    return str(path).startswith(PREFIX)


def is_there(path: Path | str) -> bool:
    """Return whether it is a file, or a hub data set (which is not asked for here)."""
    return is_hub(path) or Path(path).is_file()


def load_hub(path: Path | str, problems: RowProblems) -> tuple[list[Record], int, tuple[str, ...]]:
    """Return the good rows, the number of all rows, and the columns; downloads what is not cached.

    Raises:
        DataError: a name that is none; the hub does not answer, does not have it, or wants a
            login; an unknown configuration or split; files that the library cannot read.
    """
    name = str(path).removeprefix(PREFIX)
    match = _HUB.fullmatch(name)
    if match is None:
        raise DataError(
            f"'{name}' is no data set of the hub; write ORGANISATION/NAME:SPLIT, or "
            "ORGANISATION/NAME/CONFIGURATION:SPLIT"
        )
    repository, configuration, split = match.group(1), match.group(2), match.group(3) or "train"
    found = _load(repository, configuration, split)
    media = [column for column, feature in found.features.items() if _is_media(feature)]
    found = found.remove_columns(media)  # nobody reads them, and decoding them takes more libraries
    columns = tuple(found.column_names)
    records: list[Record] = []
    for row in range(len(found)):
        try:
            records.append(Record(row + 1, dict(found[row])))
        except UnicodeDecodeError:
            problems.add(row + 1, "found bytes that are not UTF-8, expected text")
    return records, len(found), columns


def _load(repository: str, configuration: str | None, split: str) -> Any:
    import datasets

    datasets.disable_progress_bars()
    try:
        with _cache_alone(datasets, _silence(repository)) as silence:
            source = f"hf://datasets/{repository}"  # never a folder of that name
            names = datasets.get_dataset_config_names(source)
            if configuration is not None and configuration not in names:
                raise DataError(f"{repository}: {unknown('configuration', configuration, names)}")
            if configuration is None and len(names) > 1 and "default" not in names:
                raise DataError(
                    f"{repository} has several configurations ({_some(names)}); write e.g. "
                    f"{repository}/{names[0]}:{split}"
                )
            splits = datasets.get_dataset_split_names(source, configuration)
            if split not in splits:
                raise DataError(f"{repository}: {unknown('split', split, splits)}")
            found: Any = datasets.load_dataset(source, configuration, split=split)
            return found
    except DataError:
        raise
    except datasets.exceptions.DatasetNotFoundError as error:
        raise DataError(
            f"there is neither a file '{repository}' nor such a data set on the hub, or it is "
            "private; check the name, or log in with: hf auth login"
        ) from error
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = silence or first_line(error)
        raise DataError(
            f"'{repository}' is no file here, and as a data set of the hub it cannot be loaded "
            f"({reason}); name a file, or try again where the hub can be reached"
        ) from error


def _is_media(feature: Any) -> bool:
    """Whether a column holds pictures, sounds or other files that the library decodes."""
    if isinstance(feature, dict):
        return any(_is_media(inner) for inner in feature.values())
    inner = getattr(feature, "feature", None)  # of a list
    if inner is not None:
        return _is_media(inner)
    return hasattr(feature, "decode") and type(feature).__name__ != "Json"


def _silence(repository: str) -> str | None:
    """Return why the hub does not answer within seconds; None where it does, even with a refusal.

    In a thread of its own: a name server that never replies is not covered by HTTP timeouts. The
    library itself would try five times, for half a minute.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.is_offline_mode():
        return "offline mode is set"
    answer: list[str | None] = []

    def ask() -> None:
        try:
            HfApi().dataset_info(repository, timeout=ANSWER_SECONDS)
            answer.append(None)
        except HfHubHTTPError:
            answer.append(None)  # it answers; what is wrong is said when the data is loaded
        except Exception as error:  # whatever the HTTP client raises means: no answer
            answer.append(f"the hub does not answer: {first_line(error)}")

    thread = threading.Thread(target=ask, daemon=True, name="asr-ask-hub")
    thread.start()
    thread.join(ANSWER_SECONDS)
    return answer[0] if answer else f"the hub does not answer within {ANSWER_SECONDS:g} s"


@contextmanager
def _cache_alone(datasets: Any, silence: str | None) -> Iterator[str | None]:
    """Let the library look into its cache only, where the hub is silent."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or silence is not None
    try:
        yield silence
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
