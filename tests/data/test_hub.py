"""Data sets of the hub: names, and what the datasets library says; nothing is fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from asr.data import hub
from asr.data.hub import is_hub, is_there, locate_data
from asr.data.load import load_examples
from asr.errors import DataError

ROWS = [{"question": f"q {i}", "answer": "A", "extra": i} for i in range(6)]


@pytest.mark.parametrize(
    "value", ["org/name", "org/name:test", "org/name/config:test", "o.r-g/na_me", "hub:org/name"]
)
def test_hub_names(tmp_path: Path, value: str) -> None:
    located = locate_data(value, tmp_path)
    assert located == "hub:" + value.removeprefix("hub:")
    assert is_hub(Path(located)) and is_there(Path(located))
    assert str(Path(located)) == located  # a path keeps it as it is


@pytest.mark.parametrize(
    "value",
    ["a.jsonl", "data/a.jsonl", "a/b.csv", "a/b.json.gz", "./a/b", "../a/b", "name", "a/b/c/d",
     "folder/name", "/a/b"],
)  # fmt: skip
def test_files(tmp_path: Path, value: str) -> None:
    (tmp_path / "folder").mkdir()
    located = locate_data(value, tmp_path)
    assert located == str(tmp_path / value)
    assert not is_hub(located) and not is_there(located)


def test_what_is_there_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name").write_text("")
    assert locate_data("org/name", tmp_path) == str(tmp_path / "org" / "name")
    assert is_there(tmp_path / "org" / "name")


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A datasets library that has ``org/name``; what it was asked for."""
    asked: dict[str, Any] = {"configurations": ["default"], "splits": ["train", "test"]}

    def load(source: str, configuration: str | None, split: str) -> datasets.Dataset:
        asked.update(source=source, configuration=configuration, split=split)
        asked["offline"] = datasets.config.HF_HUB_OFFLINE
        if source != "hf://datasets/org/name":
            raise datasets.exceptions.DatasetNotFoundError(f"{source} doesn't exist")
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(hub, "_silence", lambda repository: asked.get("silence"))
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(
        datasets, "get_dataset_config_names", lambda source: asked["configurations"]
    )
    monkeypatch.setattr(
        datasets, "get_dataset_split_names", lambda source, configuration: asked["splits"]
    )
    return asked


def refused(name: str) -> str:
    with pytest.raises(DataError) as error:
        load_examples(name, name="legal")
    return str(error.value)


def test_rows_of_a_split(library: dict[str, Any]) -> None:
    loaded = load_examples(Path("hub:org/name:test"), name="legal")
    assert [example.source for example in loaded.examples][:2] == ["name:test:1", "name:test:2"]
    assert loaded.examples[3].prompt == ({"role": "user", "content": "q 3"},)
    assert library["split"] == "test" and library["configuration"] is None
    load_examples("hub:org/name", name="legal")
    assert library["split"] == "train"


def test_configurations(library: dict[str, Any]) -> None:
    library["configurations"] = ["main", "socratic"]
    assert refused("hub:org/name") == (
        "org/name has several configurations (main, socratic); write e.g. org/name/main:train"
    )
    assert refused("hub:org/name/mian:test") == (
        "org/name: unknown configuration 'mian' (did you mean 'main'?); there are: main, socratic"
    )
    load_examples("hub:org/name/main:test", name="legal")
    assert library["configuration"] == "main"


def test_unknown_split_and_data_set(library: dict[str, Any]) -> None:
    assert refused("hub:org/name:tset") == (
        "org/name: unknown split 'tset' (did you mean 'test'?); there are: test, train"
    )
    assert refused("hub:org/nome") == (
        "there is neither a file 'org/nome' nor such a data set on the hub, or it is private; "
        "check the name, or log in with: hf auth login"
    )


def test_a_silent_hub_leaves_the_cache(library: dict[str, Any]) -> None:
    before = datasets.config.HF_HUB_OFFLINE
    library["silence"] = "the hub does not answer within 5 s"
    load_examples("hub:org/name", name="legal")
    assert library["offline"] is True
    assert datasets.config.HF_HUB_OFFLINE is before


def test_a_silent_hub_without_a_cached_copy(
    library: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*arguments: object) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    library["silence"] = "the hub does not answer within 5 s"
    monkeypatch.setattr(datasets, "get_dataset_config_names", nothing)
    assert refused("hub:org/name") == (
        "'org/name' is no file here, and as a data set of the hub it cannot be loaded (the hub "
        "does not answer within 5 s); name a file, or try again where the hub can be reached"
    )


def test_bad_rows_are_numbered(library: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [*ROWS[:3], {**ROWS[3], "answer": " "}, *ROWS[4:]]
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: datasets.Dataset.from_list(rows))
    assert refused("hub:org/name:test") == (
        "hub:org/name:test:4: found an empty string in 'answer', expected a non-empty string"
    )


def test_columns_of_pictures_are_not_decoded(
    library: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    features = datasets.Features(
        {
            "question": datasets.Value("string"),
            "answer": datasets.Value("string"),
            "photo": datasets.Image(),
            "photos": datasets.List(datasets.Image()),
        }
    )
    broken = {"bytes": b"no picture", "path": None}
    rows = [{**row, "photo": broken, "photos": [broken]} for row in ROWS]
    for row in rows:
        del row["extra"]
    found = datasets.Dataset.from_list(rows, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: found)
    with pytest.raises(OSError, match="cannot identify image file"):
        found[0]
    loaded = load_examples("hub:org/name", name="legal")
    assert [example.completion for example in loaded.examples] == ["A"] * 6
