"""Every shipped config is valid, opens with the command that runs it, and runs."""

from __future__ import annotations

import json
import random
import shlex
from pathlib import Path

import pytest

from asr.model.directory import ModelDirectory
from asr.model.manifest import Manifest
from asr.train.config_file import load_config
from tests.cli.conftest import run_asr
from tests.tiny_models import save_tiny_base

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def test_there_are_configs() -> None:
    assert [path.name for path in CONFIGS] == [
        "banking_sql.yaml",
        "demo.yaml",
        "eight_domains.yaml",
    ]


def opening(path: Path) -> str:
    """The comment that a config opens with, continued lines joined."""
    lines = path.read_text().splitlines()
    comment = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
    return "\n".join(comment).replace("\\\n", "")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_runs_by_the_command_that_it_opens_with(
    path: Path, tmp_path: Path
) -> None:
    config = load_config(path)
    assert len(config.domains) >= 2
    command = next(
        shlex.split(line)
        for line in opening(path).splitlines()
        if line.startswith(f"asr train configs/{path.name} --out")
    )
    given = [word for word in command[5:] if "=" in word]
    assert all(word.partition("=")[0].split(".")[1] in config.domains for word in given)
    # the same on a tiny base and data of its own: two steps each
    draw = random.Random(0)
    meta = {"tests": ["assert True"], "choices": ["0", "1"], "gold": 0}  # whatever a scorer reads
    changes = [f"base={save_tiny_base(tmp_path / 'base')}", "device=cpu", "dtype=float32"]
    changes += ["router.background=6", "training.max_steps=2", "eval.max_examples=2"]
    for name in config.domains:
        file = tmp_path / f"{name}.jsonl"
        rows = [
            {
                "prompt": f"Do {name}.\n{name} {i} {draw.randint(0, 99)}",
                "completion": f"{i}",
                "meta": meta,
            }
            for i in range(16)
        ]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        changes += [f"domains.{name}.train={file}", f"domains.{name}.test={file}"]
        changes += [f"domains.{name}.limit=12", f"domains.{name}.max_new_tokens=2"]
    out = tmp_path / "model"
    done = run_asr("train", path, "--out", out, *changes)
    assert done.code == 0, done.err
    assert Manifest.load(ModelDirectory(out).path).finished == list(config.domains)
