from __future__ import annotations

from pathlib import Path

import pytest

from asr.errors import ConfigError
from asr.train.config_file import check_files, load_config

GOOD = """\
base: smollm2-135m
training:
  learning_rate: 1e-3
domains:
  no: {train: data/no.jsonl, test: /abs/test.jsonl}
  on: {train: ../on.jsonl}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "domains.yaml"
    path.write_text(text)
    return path


def test_a_file_becomes_a_config(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD))
    assert config.training.learning_rate == 0.001
    assert list(config.domains) == ["no", "on"]
    assert config.domains["no"].train == tmp_path / "data/no.jsonl"
    assert config.domains["no"].test == Path("/abs/test.jsonl")
    assert config.domains["on"].train == tmp_path / "../on.jsonl"
    assert config.base == "smollm2-135m"


def test_paths_start_at_the_file_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "configs").mkdir()
    write(tmp_path / "configs", GOOD)
    monkeypatch.chdir(tmp_path)
    config = load_config("configs/domains.yaml")
    assert config.domains["no"].train == tmp_path / "configs/data/no.jsonl"


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("smollm2-135m", "smollm2-135m"),
        ("org/model", "org/model"),
        ("here", "{folder}/here"),
        ("./gone", "{folder}/gone"),
        ("../gone", "{folder}/../gone"),
        ("gone.gguf", "{folder}/gone.gguf"),
        ("/abs/model", "/abs/model"),
    ],
)
def test_a_base_is_a_path_where_it_can_only_be_one(
    tmp_path: Path, base: str, expected: str
) -> None:
    (tmp_path / "here").mkdir()
    path = write(tmp_path, GOOD.replace("smollm2-135m", base))
    assert load_config(path).base == expected.format(folder=tmp_path)


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = write(tmp_path, "base: ~/m\ndomains: {a: {train: ~/a.jsonl}}\n")
    assert load_config(path).base == str(tmp_path / "home/m")
    assert load_config(path).domains["a"].train == tmp_path / "home/a.jsonl"


def test_one_error_is_one_line_with_its_place(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("1e-3", "fast"))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == (f"{path}:3: training.learning_rate: got 'fast', expected a number")


def test_all_errors_are_listed_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "sed: 1\n"
        "training:\n"
        "  warmup: much\n"
        "domains:\n"
        "  Legal Docs: {train: x}\n"
        "  b:\n"
        "    train: x\n"
        "    scorer: exakt\n"
        "  c: {}\n",
    )
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["training.epochs=0"])
    assert str(caught.value).splitlines() == [
        f"{path}: 7 errors",
        "  base is missing (Folder, hub id, .gguf file, or built-in: smollm2-135m)",
        "  training.epochs: got 0, expected at least 1 (set on the command line)",
        "  line 1: unknown key 'sed' (did you mean 'seed'?); the config has: base, seed, device, "
        "dtype, quantisation, keep_eval, adapter, router, training, eval, domains",
        "  line 3: training.warmup: got 'much', expected a number",
        "  line 5: domain name 'Legal Docs' is not allowed: use lower-case letters, digits, '-' "
        "and '_', starting with a letter or a digit, at most 64 characters (try 'legal-docs')",
        "  line 8: unknown scorer 'exakt' (did you mean 'exact'?); there are: choice, exact, f1, "
        "label, loss, number, python, rouge_l, sql",
        "  line 9: domains.c.train is missing (Training examples)",
    ]


def test_overrides_win_and_their_paths_start_at_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "elsewhere").mkdir()
    path = write(tmp_path / "configs", GOOD)
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = load_config(
        path, ["training.epochs=3", "domains.law.train=law.jsonl", "domains.no.adapter.rank=2"]
    )
    assert list(config.domains) == ["no", "on", "law"]
    assert config.domains["law"].train == tmp_path / "elsewhere/law.jsonl"
    assert config.domains["law"].training.epochs == 3
    assert config.domains["no"].adapter.rank == 2
    assert config.domains["no"].train == tmp_path / "configs/data/no.jsonl"


def test_missing_files_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    path = write(tmp_path, GOOD)
    config = load_config(path)
    with pytest.raises(ConfigError) as caught:
        check_files(config)
    assert str(caught.value).splitlines() == [
        "config: 3 errors",
        f"  domains.no.train: {tmp_path}/data/no.jsonl does not exist",
        "  domains.no.test: /abs/test.jsonl does not exist",
        f"  domains.on.train: {tmp_path}/../on.jsonl does not exist",
    ]
    with pytest.raises(ConfigError) as caught:
        check_files(config, ["on"])
    assert str(caught.value) == (f"config: domains.on.train: {tmp_path}/../on.jsonl does not exist")


def test_files_that_exist_pass_and_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    config = load_config(write(tmp_path, "base: x\ndomains: {a: {train: a.jsonl}}\n"))
    check_files(config)
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(ConfigError, match="a folder, not a file"):
        check_files(config)
