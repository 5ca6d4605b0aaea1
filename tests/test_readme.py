"""What README and guide tell people to type works as it stands, on a tiny base."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from asr.cli.main import app
from tests.tiny_models import save_tiny_base

ROOT = Path(__file__).parents[1]
DOCS = list((ROOT / "docs").glob("*.md"))
FAST = """
device: cpu
dtype: float32
router: {layer: 2, background: 6}
adapter: {rank: 2}
training: {epochs: 1, max_length: 128, max_steps: 2}
eval: {max_new_tokens: 3, max_examples: 3}
"""


def blocks(page: str) -> list[tuple[str, str]]:
    """Fenced blocks of a page: (language, text)."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(page: str, program: str = "asr") -> list[list[str]]:
    """Commands of a page that call ``program``, split into words, in order, each once."""
    found: list[list[str]] = []
    for language, text in blocks(page):
        if language:
            continue
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == [program] and words not in found:
                found.append(words)
    return found


def rows(name: str, count: int = 24) -> str:
    draw = random.Random(name)
    return "".join(
        json.dumps(
            {"prompt": f"Do {name}.\n{name} {i} {draw.randint(0, 99)}", "completion": f"{i}"}
        )
        + "\n"
        for i in range(count)
    )


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with the files that the pages speak of."""
    save_tiny_base(tmp_path / "base")
    for name in ("banking", "sql", "legal", "more"):
        (tmp_path / f"{name}.jsonl").write_text(rows(name))
    for name in ("banking", "sql"):
        (tmp_path / f"{name}.test.jsonl").write_text(rows(f"{name} test", 4))
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "banking 3"}\n{"prompt": "sql 4"}\n')
    (tmp_path / "questions.jsonl").write_text(
        '{"domain": "sql", "prompt": "sql 3"}\n{"domain": "none", "prompt": "a poem"}\n'
    )
    yield tmp_path


def run(words: list[str], folder: Path, given: str = "") -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        words, cwd=folder, env=environment, input=given, capture_output=True, text=True
    )
    assert result.returncode == 0, f"{shlex.join(words)}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md"])
def test_a_page_can_be_typed_from_top_to_bottom(page: str, folder: Path) -> None:
    config = next(text for language, text in blocks(page) if language == "yaml")
    assert "base: smollm2-135m" in config
    config = config.replace("base: smollm2-135m", "base: base") + FAST
    (folder / "domains.yaml").write_text(config)
    typed = [words for words in commands(page) if "configs/" not in " ".join(words)]
    assert {"train", "add", "remove", "route", "eval", "info", "chat"} <= {w[1] for w in typed}
    # more data needs a domain to be there: what is removed on the page before is added again
    for words in typed:
        if "--extend" in words and not (folder / "model" / "adapters" / "legal").exists():
            run([sys.executable, "-m", "asr", "add", "model", "legal=legal.jsonl"], folder)
        words = ["base" if word == "smollm2-135m" else word for word in words]
        run([sys.executable, "-m", *words], folder, given="hello\n")
    for language, text in blocks(page):
        if language == "python" and "from_pretrained" in text:
            printed = run([sys.executable, "-c", text], folder)
            assert len(printed.splitlines()) >= 2


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{p.name}" for p in DOCS)])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+?)(?:#[\w-]+)?\)", text):
        if "://" not in target:
            assert (ROOT / page).parent.joinpath(target).exists(), target


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{p.name}" for p in DOCS)])
def test_the_benchmarks_that_pages_name_are_there_with_these_options(page: str) -> None:
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    found = re.findall(r"python -m (benchmarks\.\w+)([^`|]*)", text)
    assert found or page != "README.md"
    shared = (ROOT / "benchmarks" / "four_domains.py").read_text(encoding="utf-8")
    for module, rest in found:
        source = (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
        for option in re.findall(r"--[a-z-]+", rest):
            assert f'"{option}"' in source + shared, f"{module} {option}"


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{p.name}" for p in DOCS)])
def test_the_commands_that_pages_name_are_there_with_these_options(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    known = {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in get_command(app).commands.items()  # type: ignore[attr-defined]
    }
    for name, rest in re.findall(r"(?:^|`| )asr ([a-z]+)([^\n`|]*)", text, re.MULTILINE):
        for option in re.findall(r"(?<!\w)--[a-z-]+", rest.partition("#")[0]):
            assert option in known[name] | {"--debug"}, f"asr {name} {option}"
