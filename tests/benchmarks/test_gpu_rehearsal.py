"""The GPU measurements, rehearsed from end to end on a tiny base, as their command runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.quality import LIMITS, OVERHEAD, Settings, choose_limit, table
from benchmarks.gpu.queue import Workers

ROOT = Path(__file__).parents[2]


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--rehearse", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What all parts wrote."""
    out = tmp_path_factory.mktemp("gpu")
    options = ["--workers", "1", "--seeds", "1", "--rates", "3e-3", "--background", "4"]
    done = run_command("--out", str(out), "--seconds", "900", "--limit", "30", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: json.loads((out / f"{name}.json").read_text()) for name in PARTS}


def test_every_part_is_complete(measured: dict[str, Any]) -> None:
    assert {name: found["complete"] for name, found in measured.items()} == dict.fromkeys(
        PARTS, True
    )
    for found in measured.values():
        assert found["rehearsal"] is True
        assert found["machine"]["device"] == "cpu"
        assert found["machine"]["torch"]


def test_throughput_has_every_side_and_equal_losses(measured: dict[str, Any]) -> None:
    figures = measured["throughput"]["figures"]
    assert [case["batch"] for case in figures] == [4, 16, 4]
    for case in figures:
        losses = {name: side["loss"] for name, side in case["sides"].items()}
        assert set(losses) == {"plain", "plain, autocast", "ours"}
        assert losses["ours"] == pytest.approx(losses["plain"], rel=0.01)


def test_page_is_measured_in_both_types(measured: dict[str, Any]) -> None:
    figures = measured["page"]["figures"]
    cases = [(case["weights"], case["length"], "naive" in case) for case in figures]
    assert cases == [
        ("bfloat16", 256, True),
        ("bfloat16", 512, True),
        ("nf4", 256, False),
        ("nf4", 512, False),
    ]
    assert all(case["PAGE"]["seconds"] > 0 for case in figures)


def test_private_and_joint_train_on_equal_tokens(measured: dict[str, Any]) -> None:
    found = measured["quality"]
    runs = {run["method"]: run for run in found["runs"]}
    assert runs["private"]["tokens"] == runs["joint"]["tokens"] > 0
    assert runs["private"]["scores"].keys() == runs["joint"]["scores"].keys()
    for scores in runs["private"]["scores"].values():
        assert scores["n"] == 12
        assert len(scores["routed"]) == len(scores["own"]) == 3
    assert [row["domain"] for row in found["table"]] == ["arithmetic", "dates", "mean"]


def test_a_part_without_time_stops_cleanly(tmp_path: Path) -> None:
    done = run_command(
        "--out", str(tmp_path), "--parts", "quality", "--seconds", "3", "--workers", "1"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "quality.json").read_text())
    assert found["complete"] is False
    assert found["runs"] == []


def test_a_part_that_fails_leaves_the_others(tmp_path: Path) -> None:
    options = ["--parts", "page", "quality", "--domains", "dates", "--limit", "many"]
    done = run_command("--out", str(tmp_path), "--seconds", "300", *options)
    assert done.returncode == 1
    assert "== failed: quality" in done.stdout
    assert json.loads((tmp_path / "page.json").read_text())["complete"] is True


def settings(**changes: Any) -> Settings:
    sections = {name: {"max_new_tokens": 10} for name in ("a", "b")}
    plain = {"base": "", "work": "", "sections": sections, "epochs": 2, "batch": 8}
    return Settings(**{**plain, "background": 0, "two_pass": False, "pilot": True, **changes})  # type: ignore[arg-type]


def test_the_limit_is_the_largest_that_fits() -> None:
    rows = {"a": 1000, "b": 500}
    # 1000: 1500 * .85 * 2 / 8 = 319 steps and 40 / 3 of decoding, in three waves of 0.1 s a step
    plenty, exact = 1e6, 3 * (OVERHEAD + 0.1 * (1500 * 0.85 * 2 / 8 + 40 / 3))
    assert choose_limit(0.1, rows, settings(), 12, 4, plenty) == LIMITS[0]
    assert choose_limit(0.1, rows, settings(), 12, 4, exact) == 1000
    assert choose_limit(0.1, rows, settings(), 12, 4, exact - 0.1) == 800
    assert choose_limit(0.1, rows, settings(), 12, 4, 0.0) == LIMITS[-1]


def test_the_table_counts_seeds_that_have_both_methods() -> None:
    def run(method: str, seed: int, value: float) -> dict[str, Any]:
        which = ("joint",) if method == "joint" else ("routed", "own")
        scores = {"a": {name: [value, 0, 1] for name in which}}
        return {"method": method, "seed": seed, "rate": 1e-3, "scores": scores}

    runs = [run("private", 0, 0.5), run("joint", 0, 0.25), run("private", 1, 1.0)]
    runs.append({"method": "joint", "seed": 1, "rate": 1e-3, "error": "ValueError"})
    first, mean = table(runs, [1e-3, 3e-3])
    assert first["seeds"] == [0]
    assert (first["own"], first["joint"], mean["routed"]) == (0.5, 0.25, 0.5)


def begin(settings: int, wait: Callable[[], None]) -> tuple[int, int]:
    wait()
    return settings, settings


def divide(kept: int, job: int) -> float:
    return kept / job


def test_workers_report_results_and_failures() -> None:
    workers = Workers(2, begin, divide, 6)
    until = time.monotonic() + 120
    try:
        assert workers.started(until) == [6, 6]
        done = {each.job: each for each in workers.run([1, 2, 0], until)}
    finally:
        workers.close()
    assert (done[1].result, done[2].result) == (6.0, 3.0)
    assert done[0].error is not None and "ZeroDivisionError" in done[0].error
    assert [process.exitcode for process in workers.processes] == [0, 0]


def fail(settings: int, wait: Callable[[], None]) -> tuple[int, int]:
    raise OSError(f"no base {settings}")


def test_workers_that_cannot_start_say_why() -> None:
    workers = Workers(1, fail, divide, 6)
    try:
        with pytest.raises(RuntimeError, match="no base 6"):
            workers.started(time.monotonic() + 120)
    finally:
        workers.close()


def run_pack(*arguments: Path | str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu.pack", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_pieces_are_joined_and_checked(tmp_path: Path) -> None:
    whole = tmp_path / "base.bin"
    whole.write_bytes(bytes(range(256)) * 5 + b"end")
    assert run_pack("split", whole, tmp_path / "pieces", "--pieces", "3").returncode == 0
    joined = tmp_path / "there" / "base.bin"
    assert run_pack("join", tmp_path / "pieces", joined).returncode == 0
    assert joined.read_bytes() == whole.read_bytes()
    (tmp_path / "pieces" / "base.bin.2").unlink()
    done = run_pack("join", tmp_path / "pieces", joined)
    assert done.returncode == 1
    assert "the 2 pieces of base.bin" in done.stderr
    assert not joined.exists()
