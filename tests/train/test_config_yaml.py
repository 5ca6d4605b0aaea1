from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from asr.errors import ConfigError
from asr.train.strict_yaml import parse_value, parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("1.5e-4", 0.00015),
        (".5", 0.5),
        ("5.", 5.0),
        ("-2", -2),
        ("+3", 3),
        ("012", 12),
        ("0x1f", 31),
        ("0o17", 15),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("y", "y"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("2020-01-01", "2020-01-01"),
        (".nan", ".nan"),
        ("1e", "1e"),
        (".", "."),
        ("'1'", "1"),
        ("[a, 1, 1e2]", ["a", 1, 100.0]),
        ("{a: {b: no}}", {"a": {"b": "no"}}),
        ("x.jsonl", "x.jsonl"),
    ],
)
def test_scalars_are_yaml_1_2(text: str, value: Any) -> None:
    parsed = parse_value(text)
    assert parsed == value and type(parsed) is type(value)


def test_keys_are_text() -> None:
    text = "no: 1\non: 2\n7: 3\n1e3: 4\ntrue: 5\nnull: 6\n"
    assert parse_yaml(text).value == {"no": 1, "on": 2, "7": 3, "1e3": 4, "true": 5, "null": 6}


def test_other_users_of_pyyaml_are_untouched() -> None:
    assert yaml.safe_load("a: no\nb: 012\n") == {"a": False, "b": 10}


def test_anchors_and_merges_work_and_own_keys_win() -> None:
    text = "a: &common {x: 1, y: 2}\nb:\n  <<: *common\n  y: 3\nc: *common\n"
    assert parse_yaml(text).value["b"] == {"x": 1, "y": 3}
    assert parse_yaml(text).value["c"] == {"x": 1, "y": 2}


def test_lines_of_paths() -> None:
    text = "# comment\nbase: x\ndomains:\n  legal:\n    train: y\n  z: [1,\n    2]\n"
    assert parse_yaml(text).lines == {
        ("base",): 2,
        ("domains",): 3,
        ("domains", "legal"): 4,
        ("domains", "legal", "train"): 5,
        ("domains", "z"): 6,
        ("domains", "z", "0"): 6,
        ("domains", "z", "1"): 7,
    }


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "base: x\ndomains:\n  a: {}\n  legal:\n    train: x\n  b: {}\n  c: {}\n  d: {}\n"
            "  legal:\n    train: y\n",
            "f.yaml: domain 'legal' stands twice (lines 4 and 9); remove or rename one",
        ),
        (
            "training:\n  epochs: 1\n  epochs: 2\n",
            "f.yaml: key 'training.epochs' stands twice (lines 2 and 3); remove or rename one",
        ),
        (
            "base: x\nbase: y\n",
            "f.yaml: key 'base' stands twice (lines 1 and 2); remove or rename one",
        ),
        (
            "domains: {a: {train: x}, a: {train: y}}\n",
            "f.yaml: domain 'a' stands twice (lines 1 and 1); remove or rename one",
        ),
        ("", "f.yaml: empty; a config has at least base and domains"),
        ("# only a comment\n", "f.yaml: empty; a config has at least base and domains"),
        ("- a\n- b\n", "f.yaml: expected 'key: value' lines, got a list"),
        ("hello\n", "f.yaml: expected 'key: value' lines, got a single value ('hello')"),
        ("~\n", "f.yaml: expected 'key: value' lines, got a single value ('~')"),
        ("a: 1\nb:\n\tc: 1\n", "f.yaml:3: a tab in the indentation; YAML wants spaces"),
        ("a: 1\nb:\n  \tc: 1\n", "f.yaml:3: a tab in the indentation; YAML wants spaces"),
        (
            "a: [1,\nb: 2\n",
            "f.yaml:3: not YAML (expected ',' or ']', but got '<stream end>', column 1)",
        ),
        (
            "a: b: c\n",
            "f.yaml:1: not YAML (mapping values are not allowed here, column 5)",
        ),
        (
            "a: *nowhere\n",
            "f.yaml:1: not YAML (found undefined alias 'nowhere', column 4)",
        ),
        (
            "a: !!python/object/apply:os.system ['true']\n",
            "f.yaml:1: not YAML (could not determine a constructor for the tag "
            "'tag:yaml.org,2002:python/object/apply:os.system', column 4)",
        ),
        ("? [a]\n: 1\n", "f.yaml:1: not YAML (a key must be text, column 3)"),
        (
            "a: 1\n---\nb: 2\n",
            "f.yaml:2: not YAML (but found another document, column 1)",
        ),
        ("a: \x00\n", "f.yaml: not YAML (special characters are not allowed)"),
        (
            "a: &x {b: *x}\n",
            "f.yaml:1: an alias that contains itself cannot be a config",
        ),
        (BOMB, "f.yaml: more than 100,000 values; aliases of aliases?"),
        ("a: " + "[" * 5000, "f.yaml: nested too deeply"),
    ],
)
def test_files_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "f.yaml")
    assert str(caught.value) == message


def test_an_absurd_integer_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^f\.yaml: not YAML \(Exceeds the limit"):
        parse_yaml("a: " + "9" * 5000, "f.yaml")
    with pytest.raises(ConfigError, match=r"^not a YAML value \(Exceeds the limit"):
        parse_value("9" * 5000)


def test_reading_a_file(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_bytes(b"\xef\xbb\xbfbase: x\r\nseed: 1\r\n")
    assert read_yaml(path).value == {"base": "x", "seed": 1}
    path.write_bytes("base: é\n".encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(caught.value) == (f"{path}:1: not UTF-8 (byte 0xe9); save the file as UTF-8")
    path.write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(ConfigError, match=r"f\.yaml:2: not UTF-8 \(byte 0xff\)"):
        read_yaml(path)
    with pytest.raises(ConfigError) as caught:
        read_yaml(tmp_path / "no.yaml")
    assert str(caught.value) == f"no config file '{tmp_path / 'no.yaml'}'"
    with pytest.raises(ConfigError) as caught:
        read_yaml(tmp_path)
    assert str(caught.value) == f"'{tmp_path}' is a folder: give a YAML file"
