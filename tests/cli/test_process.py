"""The command as a process: exit codes, usage errors, interruption, pipes."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import asr
from asr.cli.boundary import without_debug
from asr.cli.main import main
from tests.cli.conftest import Trained, refused, run_asr

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80", "NO_COLOR": "1"}

EPOCHS = 12
LONG = (f"training.epochs={EPOCHS}", "training.save_steps=50")
"""Long enough to be interrupted after the first line about steps."""


def start(*args: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "asr", *(str(arg) for arg in args)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, **environment},
    )


def test_help_and_version_import_nothing_heavy() -> None:
    code = (
        "import sys; from asr.cli.main import main\n"
        "codes = [main(['--help']), main(['--version']), main(['trian']), main(['train'])]\n"
        "heavy = {'torch', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "print('codes', codes, 'heavy', sorted(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.stdout.splitlines()[-1] == "codes [0, 0, 2, 2] heavy []", done.stderr
    assert f"asr {asr.__version__}" in done.stdout


def test_info_and_bad_names_need_no_torch(trained: Trained) -> None:
    code = (
        "import sys; from asr.cli.main import main\n"
        f"codes = [main(['info', {str(trained.model)!r}]), main(['add', {str(trained.model)!r}, "
        "'red=x']), main(['generate', 'nowhere', 'x'])]\n"
        "print('codes', codes, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.stdout.splitlines()[-1] == "codes [0, 2, 2] False", done.stderr


def test_help_has_an_example_for_each_use() -> None:
    outcome = run_asr("--help")
    assert outcome.code == 0
    for command in ("train", "add", "chat", "route", "generate", "info", "eval"):
        explained = run_asr(command, "--help")
        first = "domains.yaml" if command == "train" else "MODEL"
        assert f"\n    asr {command} {first}" in outcome.out
        assert explained.code == 0 and f"\n  asr {command} {first}" in explained.out
    assert run_asr().out == outcome.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown command 'trian' (did you mean 'train'?); there are: check, "),
        (["route", "m", "x", "--jsn"], "unknown option '--jsn' (did you mean '--json'?)"),
        (["info"], "missing argument 'MODEL'"),
        (["train", "c.yaml"], "missing option '--out'"),
    ],
)  # fmt: skip
def test_usage_errors(arguments: list[str], message: str) -> None:
    error = refused(*arguments)
    first, *rest = error.splitlines()
    assert first.startswith(message)
    assert rest[0].startswith("Usage: asr")
    assert rest[-1].endswith("--help")


def test_exit_code_of_the_module(tmp_path: Path) -> None:
    process = start("info", tmp_path)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2 and out == ""
    assert err == (
        f"error: '{tmp_path}' is not a routed model directory: it is empty; give the folder that "
        "asr train wrote (it holds manifest.json)\n"
    )


def test_debug_stands_anywhere_and_shows_the_traceback(tmp_path: Path) -> None:
    for arguments in (["--debug", "info", tmp_path], ["info", tmp_path, "--debug"]):
        outcome = run_asr(*arguments)
        assert outcome.code == 2
        assert "Traceback (most recent call last)" in outcome.err
        assert "error: " in outcome.err.splitlines()[-1]
    assert without_debug(["route", "m", "--", "--debug"]) == (
        ["route", "m", "--", "--debug"],
        False,
    )


def test_internal_errors(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    from asr.model.directory import ModelDirectory

    def broken(self: ModelDirectory, manifest: object) -> list[str]:
        raise RuntimeError("[bold]wires crossed\nand more")

    monkeypatch.setattr(ModelDirectory, "verify", broken)
    outcome = run_asr("info", trained.model)
    assert outcome.code == 1
    assert outcome.err == (
        "internal error: RuntimeError: [bold]wires crossed (run again with --debug)\n"
    )
    assert "Traceback" in run_asr("info", trained.model, "--debug").err


def test_only_the_first_process_speaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main(["info", str(tmp_path)]) == 2
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    assert main(["info", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def steps_of(model: Path, domain: str) -> int:
    """Steps of a whole run under ``LONG``: the ledger's training examples in batches."""
    entry = json.loads((model / "manifest.json").read_text())["domains"][domain]
    training = entry["training"]
    views = len(training["views"])
    rows = math.ceil(entry["data"]["train"] * views / training["batch_size"])
    return math.ceil(rows * EPOCHS / views)


def test_interrupted_training_says_how_to_go_on_and_does(trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "model with space"
    arguments = ["train", trained.config, *LONG, "domains.sum.training.max_steps=1", "--out", out]
    process = start(*arguments)
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith("  step "):
            break
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=120)
    assert process.returncode == 130, (seen, rest, err)
    assert "Traceback" not in err
    assert err.splitlines()[-2:] == [
        "stopped; finished domains and the last checkpoint are kept. Go on with:",
        f"  asr train {trained.config} {' '.join(LONG)} domains.sum.training.max_steps=1 "
        f"--out '{out}' --resume",
    ]
    resumed = run_asr(*arguments, "--resume")
    assert resumed.code == 0, resumed.err
    assert "red: goes on from its last checkpoint" in resumed.out
    assert f"red: {steps_of(out, 'red')} steps" in resumed.out


def test_interrupted_add_goes_on_with_resume(trained: Trained, own: Path) -> None:
    data = trained.root / "rev.jsonl"
    arguments = ["add", own, f"rev={data}", *LONG]
    process = start(*arguments)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("  step "):
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == (f"  asr add {own} rev={data} {' '.join(LONG)} --resume")
    assert refused(*arguments) == (
        "domain 'rev' is in this model already, unfinished; add --resume to go on with it"
    )
    resumed = run_asr(*arguments, "--resume")
    assert resumed.code == 0, resumed.err
    assert f"rev: {steps_of(own, 'rev')} steps" in resumed.out


def test_interrupted_before_training_begins(trained: Trained, tmp_path: Path) -> None:
    process = start("train", trained.config, "--out", tmp_path / "m")
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.2)  # among the imports
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in err.splitlines()[-1] and "Traceback" not in err


def test_a_closed_pipe_is_quiet(trained: Trained) -> None:
    process = start("info", trained.model, "--json")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    process.wait(timeout=60)


@pytest.mark.parametrize(
    ("words", "offered"), [("asr tr", "train"), ("asr train --pro", "--progress")]
)
def test_the_shell_completes_commands_and_options(words: str, offered: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "asr"],
        capture_output=True,
        text=True,
        timeout=60,
        env={
            **ENVIRONMENT,
            "_ASR_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        },
    )
    assert (done.returncode, done.stdout.split()) == (0, [offered]), done.stderr
