"""A tiny trained model, made once, and a way to run the command line on it."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from asr.cli.main import app
from tests.tiny_models import save_tiny_base

INSTRUCTIONS = {"red": "Say the colour of it.", "sum": "Add the numbers.", "rev": "Turn the word."}

CONFIG = """\
base: base
device: cpu
dtype: float32
training: {epochs: 1, max_length: 128}
router: {layer: 2}
eval: {max_new_tokens: 4}
domains:
  red: {train: red.jsonl, test: red.test.jsonl}
  sum: {train: sum.jsonl, test: sum.test.jsonl}
"""


Edit = Callable[[Path, Callable[[dict], None]], None]


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """What stands after ``error: ``, to the end."""
        assert "error: " in self.err, self.err
        return self.err[self.err.index("error: ") :].removeprefix("error: ").rstrip("\n")


def run_asr(*args: object, input: str | None = None) -> Outcome:
    """Run the command line in this process."""
    environment = {"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}
    result = CliRunner().invoke(app, [str(arg) for arg in args], input=input, env=environment)
    return Outcome(result.exit_code, result.stdout, result.stderr)


def refused(*args: object, input: str | None = None) -> str:
    """Run a command that must fail as a user's mistake; return its message."""
    outcome = run_asr(*args, input=input)
    assert outcome.code == 2, (outcome.code, outcome.out, outcome.err)
    assert "Traceback" not in outcome.out + outcome.err
    assert "internal error" not in outcome.err
    return outcome.error


def write_rows(path: Path, domain: str, count: int, seed: int = 0) -> Path:
    """Write rows of a made-up domain."""
    numbers = random.Random(f"{domain}{seed}")
    rows = [
        {
            "prompt": f"{INSTRUCTIONS[domain]}\n{domain} item {i} {numbers.randint(0, 99)}",
            "completion": f"{domain} {i % 3}",
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Trained:
    """A folder with base, data, config and the model ``m``, and what training printed."""

    root: Path
    outcome: Outcome

    @property
    def model(self) -> Path:
        """The routed model directory."""
        return self.root / "m"

    @property
    def config(self) -> Path:
        """The config it was trained with."""
        return self.root / "c.yaml"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The shared model; no test changes it."""
    root = tmp_path_factory.mktemp("cli")
    save_tiny_base(root / "base")
    for domain in INSTRUCTIONS:
        write_rows(root / f"{domain}.jsonl", domain, 24)
        write_rows(root / f"{domain}.test.jsonl", domain, 5, seed=1)
    config = root / "c.yaml"
    config.write_text(CONFIG, encoding="utf-8")
    outcome = run_asr("train", config, "--out", root / "m")
    assert outcome.code == 0, outcome.err
    return Trained(root, outcome)


@pytest.fixture
def own(trained: Trained, tmp_path: Path) -> Path:
    """A copy of the shared model that a test may change."""
    return Path(shutil.copytree(trained.model, tmp_path / "own"))


@pytest.fixture
def edit_manifest() -> Edit:
    """Change a model's manifest in place."""

    def edit(model: Path, change: Callable[[dict], None]) -> None:
        path = model / "manifest.json"
        tree = json.loads(path.read_text())
        change(tree)
        path.write_text(json.dumps(tree))

    return edit
