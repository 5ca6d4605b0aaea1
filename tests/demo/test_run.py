"""The demo from end to end on a tiny base: what it shows, what it leaves, how it goes on."""

from __future__ import annotations

import datetime
import errno
import json
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from asr.base import chat_template
from asr.compare import finding
from asr.compare.ledger import Ledger
from asr.errors import StorageError
from asr.eval.matrix import EvalMatrix
from asr.model.directory import ModelDirectory
from asr.model.manifest import Manifest
from demo import run, story
from demo.forms import QUICK
from demo.questions import questions_for
from tests.tiny_models import save_tiny_base

SMALL = ["--train", "14", "--test", "3", "--background", "6"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def told(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished quick demo, told in a process of its own as a user starts it; its output."""
    out = tmp_path_factory.mktemp("told") / "out"
    command = [sys.executable, "-m", "demo.run", "--quick", "--base", str(base), "--out", str(out)]
    root = Path(run.__file__).parents[1]
    done = subprocess.run(
        [*command, *SMALL],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_it_trains_both_ways_and_leaves_everything(told: tuple[Path, str]) -> None:
    out, _ = told
    folder = out / "quick"
    manifest = Manifest.load(folder / "model")
    assert manifest.finished == list(QUICK.domains)
    assert ModelDirectory(folder / "model").verify(manifest) == []
    ledger = Ledger.load(folder / "one_lora")
    assert ledger is not None
    first, second = ledger.steps
    assert (first.adopted, second.adopted) == (True, False)
    entry = manifest.domains[QUICK.domains[0]].adapter
    assert entry is not None and first.adapter_sha256 == entry.sha256
    assert second.parent_sha256 == first.adapter_sha256
    assert (folder / "forgetting.png").read_bytes().startswith(b"\x89PNG")
    ours, other = (
        EvalMatrix.from_json((folder / name).read_text())
        for name in ("private.json", "one_lora.json")
    )
    assert ours.domains == other.domains == list(QUICK.domains)
    assert ours.n == other.n == [3, 3]


def test_it_tells_what_it_found_and_what_to_type_next(told: tuple[Path, str]) -> None:
    out, text = told
    folder = out / "quick"
    ours, other = (
        EvalMatrix.from_json((folder / name).read_text())
        for name in ("private.json", "one_lora.json")
    )
    assert finding(ours, other) in text
    for expected in (
        "training tokens/s here: the quick demo takes about",
        "1 of 2: dates",
        "since its domain was learned is marked with !",
        "the adapter is copied",
        "one LoRA: from where dates ended, ",
        f"figure: {folder / 'forgetting.png'}",
        f"asr chat {folder / 'model'}",
        "Done in ",
        " left)",  # progress, in a pipe too
    ):
        assert expected in text
    for question in questions_for(QUICK.domains):
        assert f"> {question.text}" in text
    assert text.count("  -> ") == len(questions_for(QUICK.domains))
    answers = text[text.index("== 4.") : text.index("== Done")].split("\n")[1:]
    assert all(line.startswith(("> ", "  ")) for line in answers if line.strip())


def test_a_second_start_does_nothing_again(
    told: tuple[Path, str], base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, first = told
    folder = out / "quick"
    kept = {
        path: path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }
    assert run.main(["--quick", "--base", str(base), "--out", str(out), *SMALL]) == 0
    text = capsys.readouterr().out
    assert text.count("there from an earlier start") == 4
    assert "step " not in text
    assert "timing" not in text
    assert {path: path.read_bytes() for path in kept} == kept
    table = "Test scores after sql"
    assert (
        text[text.index(table) :].split("figure")[0]
        == (first[first.index(table) :].split("figure")[0])
    )


def test_stopped_in_the_middle_it_says_how_to_go_on_and_goes_on(
    told: tuple[Path, str],
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ["--quick", "--base", str(base), "--out", str(tmp_path), *SMALL]
    shown = story.Narrator.step
    steps = 0

    def stop(self: story.Narrator, step: int, total: int, loss: float | None) -> None:
        nonlocal steps
        steps += 1
        shown(self, step, total, loss)
        if steps == 30:  # in the second domain's private adapter
            raise KeyboardInterrupt

    monkeypatch.setattr(story.Narrator, "step", stop)
    assert run.main(arguments) == 130
    stopped = capsys.readouterr().err
    assert "stopped: what is finished is kept; go on with: python -m demo.run --quick" in (
        " ".join(stopped.split())
    )
    monkeypatch.setattr(story.Narrator, "step", shown)
    assert run.main(arguments) == 0
    assert "private adapter: there from an earlier start" in capsys.readouterr().out
    for name in ("private.json", "one_lora.json"):
        # as if it had never been stopped
        assert (tmp_path / "quick" / name).read_text() == (told[0] / "quick" / name).read_text()


def test_a_slow_machine_gets_the_short_form_and_keeps_it_on_another_day(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_tiny_base(tmp_path / "base")
    template = base / "chat_template.jinja"
    template.write_text("{{ strftime_now('%Y-%m-%d') + ' ' }}" + template.read_text())
    out = tmp_path / "my demo"
    out.mkdir()
    out.joinpath(run.PACE_FILE).write_text(json.dumps({"training_tokens_per_second": 0.5}))
    arguments = ["--base", str(base), "--out", str(out), *SMALL]
    _set_today(monkeypatch, "2031-05-01")
    assert run.main(arguments) == 0
    text = capsys.readouterr().out
    assert "so this is the short form (2 domains instead of 4). --full runs the long one" in text
    assert f"asr chat '{out / 'quick' / 'model'}'" in text
    assert (out / "quick" / "forgetting.png").is_file()
    assert not (out / "model").exists()
    pinned = (out / "quick" / "model" / "chat_template.jinja").read_text()
    assert "2031-05-01" in pinned
    _set_today(monkeypatch, "2031-05-02")
    assert run.main(arguments) == 0
    assert capsys.readouterr().out.count("there from an earlier start") == 4
    assert (out / "quick" / "model" / "chat_template.jinja").read_text() == pinned


def _set_today(monkeypatch: pytest.MonkeyPatch, day: str) -> None:
    class Calendar(datetime.date):
        @classmethod
        def today(cls) -> datetime.date:
            return datetime.date.fromisoformat(day)

    monkeypatch.setattr(
        chat_template, "datetime", types.SimpleNamespace(date=Calendar, datetime=datetime.datetime)
    )


def test_other_sizes_in_the_same_folder_are_refused_in_one_line(
    told: tuple[Path, str], base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = told
    before = (out / "quick" / "dates.train.jsonl").read_bytes()
    arguments = ["--quick", "--base", str(base), "--out", str(out)]
    assert run.main([*arguments, *SMALL, "--train", "20"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert error.startswith("error: cannot go on with the comparison in ")
    assert "data or settings of 'dates' changed" in error
    (out / "quick" / "dates.train.jsonl").write_bytes(before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quick", "--full"], "not allowed with argument"),
        (["--train", "0"], "must be 1 or more, got 0"),
        (["--slow"], "unrecognized arguments: --slow"),
    ],
)
def test_bad_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("inside", ["", "out"])
def test_a_file_in_place_of_the_folder_is_named_before_anything_is_loaded(
    inside: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    assert run.main(["--out", str(file / inside)]) == 2
    shown = capsys.readouterr()
    assert " ".join(shown.err.split()) == f"error: '{file}' is a file; give a folder with --out"
    assert shown.out == ""


def test_a_full_disk_is_told_in_one_line(
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*arguments: object, **sizes: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run.domains, "write", full)
    out = tmp_path / "out"
    assert run.main(["--quick", "--base", str(base), "--out", str(out)]) == StorageError.exit_code
    error = " ".join(capsys.readouterr().err.split())
    assert f"error: cannot write {out / 'quick'}: " in error
