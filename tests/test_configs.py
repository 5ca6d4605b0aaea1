"""Every shipped config is valid and opens with the command that runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from asr.train.config_file import load_config

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def test_there_are_configs() -> None:
    assert [path.name for path in CONFIGS] == ["banking_sql.yaml", "demo.yaml"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_is_valid_and_says_how_to_run_it(path: Path) -> None:
    config = load_config(path)
    assert len(config.domains) == 2
    opening = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"asr train configs/{path.name} --out" in line for line in opening)
