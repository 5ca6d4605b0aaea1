"""The house: what is packaged, what is only a link, and that the commands and checks exist."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("adapters", "router", "train", "eval")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, so that the build leaves nothing in the tree."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, source / name)
    shutil.copytree(ROOT / "asr", source / "asr", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests", source / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for room in ROOMS:
        shutil.copy(ROOT / room, source / room, follow_symlinks=False)
    out = tmp_path_factory.mktemp("wheel")
    # Without isolation: the build needs setuptools only, which the dev extra brings.
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", "--quiet", "--wheel-dir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


def test_the_only_top_level_package_is_asr(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        top = {name.split("/")[0] for name in archive.namelist()}
    info = {name for name in top if name.endswith(".dist-info")}
    assert len(info) == 1
    assert top - info == {"asr"}


def test_every_file_of_the_package_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = (path for path in (ROOT / "asr").rglob("*") if path.is_file())
    tree = {path.relative_to(ROOT).as_posix() for path in files if path.suffix != ".pyc"}
    assert packed == tree
    assert {"asr/router/__init__.py", "asr/py.typed"} <= packed


def test_the_wheel_carries_the_name_the_license_and_the_command(wheel: Path) -> None:
    assert wheel.name.startswith("analytic_subspace_routing-")
    with zipfile.ZipFile(wheel) as archive:
        by_end = {name.split("/")[-1]: name for name in archive.namelist() if ".dist-info/" in name}
        commands = archive.read(by_end["entry_points.txt"]).decode()
        metadata = archive.read(by_end["METADATA"]).decode()
    assert "asr = asr.cli.main:main" in commands
    assert "License-Expression: Apache-2.0" in metadata
    assert "LICENSE" in by_end


@pytest.mark.parametrize("room", ROOMS)
def test_the_rooms_at_the_top_are_relative_links(room: str) -> None:
    link = ROOT / room
    assert link.is_symlink()
    assert os.readlink(link) == f"asr/{room}"
    assert (link / "__init__.py").is_file()


def test_python_dash_m_asr_shows_help() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "asr", "--help"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_the_checks_are_configured() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["tool"]["mypy"]["strict"] is True
    kinds = [contract["type"] for contract in settings["tool"]["importlinter"]["contracts"]]
    assert kinds == ["layers", "forbidden"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in ("ruff format --check", "ruff check", "mypy", "lint-imports"):
        assert f"$(BIN)/{command}" in makefile
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_every_layer_of_the_import_contract_exists() -> None:
    """All but those in parentheses, which are rooms for later."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    named = {name.strip() for layer in layers for name in layer.split("|")}
    found = {path.stem for path in (ROOT / "asr").glob("*.py")}
    found |= {path.parent.name for path in (ROOT / "asr").glob("*/__init__.py")}
    required = {name for name in named if not name.startswith("(")}
    optional = {name.strip("()") for name in named - required}
    assert required <= found - {"__init__", "__main__"} <= required | optional


def test_every_direct_dependency_is_pinned_for_development() -> None:
    """What the tests ran with is written down, except extras that only serving needs."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = settings["dependencies"] + settings["optional-dependencies"]["dev"]
    wanted += settings["optional-dependencies"]["quant"]
    names = {requirement.split(">=")[0].lower() for requirement in wanted}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0].lower() for line in lines if "==" in line}
    assert names <= pinned
