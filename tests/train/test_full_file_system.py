"""A file system that is truly full: a small tmpfs, mounted in a namespace of the test's own."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from asr.model.directory import ModelDirectory
from tests.train.conftest import Workshop, assert_equal_runs, write_domain

NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


def _mounting_fails(folder: Path) -> str:
    """Why no file system can be mounted here, or nothing."""
    command = [*NAMESPACE, "mount", "-t", "tmpfs", "-o", "size=64k", "asr-test", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        return str(error)
    return done.stderr.strip() if done.returncode else ""


def run(*words: str) -> tuple[int, str]:
    """``asr WORDS`` in this process: its exit status and the last line of what it says."""
    from asr.cli.main import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main(list(words))
    return code, said.getvalue().strip().splitlines()[-1]


def train_with_little_room(config: str, place: str, copies: str, sizes: str) -> None:
    """In a namespace of its own: per size a run that fails, and its resume with more room."""
    import asr.train.sequence as sequence

    sequence.require_space = lambda *args: None  # it would refuse to begin
    found = []
    for size in json.loads(sizes):
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "asr-test", place]
        subprocess.run(mount, check=True)
        command = ["train", config, "--out", f"{place}/m"]
        first = run(*command)
        subprocess.run(["mount", "-o", "remount,size=16m", place], check=True)
        again = run(*command, "--resume")
        subprocess.run(["cp", "-r", f"{place}/m", f"{copies}/m{size}"], check=True)
        found.append([size, *first, again[0]])
        subprocess.run(["umount", "-l", place], check=True)
    print(json.dumps(found))


def test_a_run_that_fills_the_disk_is_one_line_and_goes_on(shop: Workshop) -> None:
    place = shop.folder / "small"
    place.mkdir()
    reason = _mounting_fails(place)
    if reason:
        pytest.skip(f"no file system can be mounted here: {reason}")
    write_domain(shop.folder / "red.jsonl", "red", 9)
    whole = shop.train("whole", ["red"])
    config = shop.folder / "domains.yaml"
    config.write_text(yaml.safe_dump(shop.raw(["red"])))
    sizes = [8, 60, 92, 120, 160, 200]
    script = "import sys; from tests.train.test_full_file_system import *; "
    script += "train_with_little_room(*sys.argv[1:])"
    arguments = [str(config), str(place), str(shop.folder), json.dumps(sizes)]
    command = [*NAMESPACE, sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for size, code, said, resumed in json.loads(done.stdout.splitlines()[-1]):
        assert (code, resumed) == (2, 0), (size, said)
        assert said.startswith("error: cannot write ") and "--resume" in said, (size, said)
        assert "no space left on the device" in said, (size, said)
        assert_equal_runs(whole, ModelDirectory(shop.folder / f"m{size}"))
