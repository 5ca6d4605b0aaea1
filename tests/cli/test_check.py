"""``asr check``: counts, lengths, duplicates, shared prompts, and what is learned of an example."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from asr.base.tokenizer import builtin_at_hand, load_base_tokenizer
from asr.cli.check_view import show
from asr.cli.checked import inspect_domains, plan_of_file, read_plan
from tests.cli.conftest import Outcome, Trained, refused, run_asr, write_rows
from tests.tiny_models import save_tiny_base

ROWS = [{"prompt": f"Say the colour.\nitem {i}", "completion": f"red {i}"} for i in range(20)]


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASR_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("check") / "base")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def found(*args: object) -> dict[str, Any]:
    outcome = run_asr("check", *args, "--json")
    assert outcome.code == 0, outcome.err
    return dict(json.loads(outcome.out))


def shown(*args: object) -> Outcome:
    outcome = run_asr("check", *args)
    assert outcome.code == 0, outcome.err
    return outcome


def test_a_file(tmp_path: Path, base: Path) -> None:
    path = write(tmp_path / "legal.jsonl", ROWS)
    lines = shown(path, "--base", base).out.splitlines()
    assert lines[0].split() == ["data", "format", "examples", "prompts"]
    assert lines[1].split() == ["legal", "prompt-completion", "20", "20"]
    assert "legal: prompts begin with 'Say the colour.\\n'" in lines
    assert "legal: the first one bare: 'item 0'" in lines
    start = lines.index(
        "legal, first example (legal.jsonl:1); what is learned is between [[ and ]]:"
    )
    assert lines[start + 1 :] == [
        "<|im_start|>user",
        "Say the colour.",
        "item 0<|im_end|>",
        "<|im_start|>assistant",
        "[[red 0<|im_end|>]]",
    ]


def test_the_lengths_are_those_of_training(tmp_path: Path, base: Path) -> None:
    long = {"prompt": "word " * 1000, "completion": "x"}
    endless = {"prompt": "short", "completion": "word " * 1000}
    path = write(tmp_path / "legal.jsonl", [*ROWS, long, endless])
    (domain,) = found(path, "--base", base)["domains"]
    tokenizer = load_base_tokenizer(str(base)).tokenizer
    rendered = [
        tokenizer.apply_chat_template(
            [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"]},
            ],
            tokenize=False,
        ).removesuffix("\n")
        for row in ROWS
    ]
    encoded = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    counts = sorted(len(ids) for ids in encoded)
    lengths = domain["lengths"]
    assert lengths["minimum"] == counts[0]
    assert lengths["maximum"] > 1024 == lengths["limit"]
    assert lengths["shortened"] == ["legal.jsonl:21"]
    assert lengths["dropped"] == ["legal.jsonl:22"]
    out = shown(path, "--base", base).out
    assert (
        "warning: legal: 1 example longer than max_length 1024, shown without the middle of a user "
        "message (legal.jsonl:21)"
    ) in out
    assert "cannot fit into max_length 1024 and would be left out (legal.jsonl:22)" in out


def test_duplicates_and_shared_prompts(tmp_path: Path) -> None:
    more = [ROWS[3], {**ROWS[4], "completion": "blue"}]
    path = write(tmp_path / "legal.jsonl", [*ROWS, *more])
    test = write(
        tmp_path / "test.jsonl", [{"prompt": "say  the COLOUR.\nitem 7", "completion": "x"}]
    )
    (domain,) = found(path, "--test", test)["domains"]
    assert domain["duplicates"] == {
        "repeated": [["legal.jsonl:4", "legal.jsonl:21"]],
        "contradictory": [["legal.jsonl:5", "legal.jsonl:22"]],
    }
    assert domain["shared_with_test"] == [["legal.jsonl:8", "test.jsonl:1"]]
    assert (domain["examples"], domain["prompts"], domain["test"]) == (22, 20, 1)
    lines = shown(path, "--test", test).out.splitlines()
    assert (
        "warning: legal: 1 prompt of test also in the training data, but for case and white space "
        "(test.jsonl:1 = legal.jsonl:8): scores there say nothing"
    ) in lines
    assert (
        "warning: legal: 1 prompt more than once with the same answer "
        "(legal.jsonl:4 = legal.jsonl:21)"
    ) in lines
    assert (
        "warning: legal: 1 prompt with different answers (legal.jsonl:5 = legal.jsonl:22)" in lines
    )


def test_it_says_where_nothing_would_be_left_to_train_on(tmp_path: Path, base: Path) -> None:
    endless = [{"prompt": f"q {i}", "completion": "word " * 600} for i in range(3)]
    path = write(tmp_path / ".jsonl", endless)
    assert (
        "warning: .jsonl: 3 examples cannot fit into max_length 1024 and would be left out "
        "(.jsonl:1, .jsonl:2, .jsonl:3): none is left, so asr train will refuse it"
    ) in shown(path, "--base", base).out.splitlines()


def test_control_characters_reach_no_terminal(tmp_path: Path, base: Path) -> None:
    rows = [{"prompt": f"a \x1b[31mred\x9b\r\n{i}", "completion": "bell\x07\x7f"} for i in range(4)]
    out = shown(write(tmp_path / "legal.jsonl", rows), "--base", base).out
    assert "a \\x1b[31mred\\x9b\\r\n0<|im_end|>" in out
    assert "[[bell\\x07\\x7f<|im_end|>]]" in out
    assert not {"\x1b", "\x9b", "\x07", "\x7f"} & set(out)


def test_without_a_base_it_says_what_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "legal.jsonl", ROWS)
    assert builtin_at_hand() is None
    out = shown(path).out
    assert "left out without a base: tokens, what is cut, and the first example" in out
    assert "add --base BASE" in out
    assert found(path)["domains"][0]["lengths"] is None


def test_a_config(trained: Trained) -> None:
    report = found(trained.config)
    assert report["title"] == str(trained.config)
    red, other = report["domains"]
    assert (red["name"], red["train"] + red["dev"], red["test"]) == ("red", 24, 5)
    assert red["dev"] > 0 and red["scorer"] and other["name"] == "sum"
    assert red["lengths"]["limit"] == 128
    table = shown(trained.config).out.splitlines()
    assert table[0].split() == ["domain", "format", "examples", "prompts", "train", "dev", "test",
                                "scorer"]  # fmt: skip
    assert found(trained.config, "training.max_length=64")["domains"][0]["lengths"]["limit"] == 64


def test_prompts_that_two_domains_share(trained: Trained, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "a.jsonl", "red", 12)
    config = tmp_path / "c.yaml"
    config.write_text(
        f"base: {trained.root / 'base'}\ndomains:\n  a: {{train: {data}}}\n  b: {{train: {data}}}\n"
    )
    assert len(found(config)["shared"]["a and b"]) == 12
    assert "warning: a and b share 12 prompts (a.jsonl:1 = a.jsonl:1," in shown(config).out


def test_bad_rows_of_every_file_of_a_config(trained: Trained, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": "b"}\nnope\n')
    empty = write(tmp_path / "empty.jsonl", [])
    good = write_rows(tmp_path / "good.jsonl", "red", 12)
    config = tmp_path / "c.yaml"
    config.write_text(
        f"base: nowhere\ndomains:\n  a: {{train: {good}, test: {bad}}}\n  b: {{train: {empty}}}\n"
    )
    assert refused("check", config).splitlines() == [
        f"{config}: 2 files cannot be used",
        f"{bad}:2: found invalid JSON (Expecting value at column 1), expected one JSON object",
        f"b: empty.jsonl has 0 examples; a domain needs at least 4 with different prompts "
        f"(training, dev cut, calibration); add rows to {empty}",
    ]


def test_training_refuses_all_bad_data_before_the_base(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": "b"}\nnope\n')
    texts = write(tmp_path / "texts.jsonl", [{"text": f"text {i}"} for i in range(9)])
    config = tmp_path / "c.yaml"
    config.write_text(
        f"base: nowhere\ndomains:\n  a: {{train: {bad}}}\n  b: {{train: {texts}, scorer: exact}}\n"
    )
    lines = refused("train", config, "--out", tmp_path / "m").splitlines()
    assert lines[:2] == [
        "the data of 2 domains cannot be used",
        f"{bad}:2: found invalid JSON (Expecting value at column 1), expected one JSON object",
    ]
    assert lines[2].startswith("b: scorer 'exact' cannot score ")
    assert lines[3].endswith(
        "scorer 'exact' found a plain text, expected a prompt and an answer; a plain text can be "
        "scored by 'loss'"
    )


def test_options_that_do_not_fit(trained: Trained, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "a.jsonl", "red", 5)
    assert refused("check", trained.config, "--format", "text") == (
        f"--format is for a data file; {trained.config} names its own, per domain"
    )
    assert refused("check", data, "seed=1") == (
        f"'seed=1' changes a setting, and {data} is a data file without any; settings go with a "
        "config (.yaml)"
    )
    assert refused("check", data, "--format", "alpca").startswith(
        "unknown data format 'alpca' (did you mean 'alpaca'?)"
    )
    assert refused("check", data, "--base", "smollm").startswith("unknown base 'smollm'")


def test_a_base_without_a_template_and_what_a_model_then_holds(tmp_path: Path, base: Path) -> None:
    plain = Path(shutil.copytree(base, tmp_path / "plain"))
    (plain / "chat_template.jinja").unlink()
    data = write_rows(tmp_path / "red.jsonl", "red", 8)
    outcome = shown(data, "--base", plain)
    assert (
        "template: the base has no chat template; the plain built-in one is used (### User, "
        "### Assistant, answers end with <|im_end|>) and saved with the model"
    ) in outcome.err
    assert outcome.out.endswith("\n### Assistant\n[[red 0<|im_end|>]]\n")
    config = tmp_path / "c.yaml"
    config.write_text(
        "base: plain\ndevice: cpu\ndtype: float32\ntraining: {epochs: 1, max_length: 128}\n"
        "router: {layer: 2}\neval: {max_new_tokens: 4}\ndomains: {red: {train: red.jsonl}}\n"
    )
    model = tmp_path / "m"
    trained = run_asr("train", config, "--out", model)
    assert trained.code == 0, trained.err
    assert "template: the base has no chat template; the plain built-in one" in (
        trained.out + trained.err
    )
    saved = (model / "chat_template.jinja").read_text()
    assert "'### '" in saved
    asked = run_asr("generate", model, "Say the colour of it.\nred item 3 4", "--json")
    assert asked.code == 0, asked.err


def test_texts_are_trained_and_scored_by_loss(tmp_path: Path, base: Path) -> None:
    words = ["one", "two", "three", "four", "five", "six", "seven"]
    texts = [
        {"text": " ".join(words[i % 7 :] + words[: i % 5] + words) + f" {i}"} for i in range(20)
    ]
    write(tmp_path / "texts.jsonl", texts)
    config = tmp_path / "c.yaml"
    config.write_text(
        f"base: {base}\ndevice: cpu\ndtype: float32\ntraining: {{epochs: 1, max_length: 48}}\n"
        "router: {layer: 2}\ndomains: {prose: {train: texts.jsonl, scorer: loss}}\n"
    )
    outcome = run_asr("train", config, "--out", tmp_path / "m")
    assert outcome.code == 0, outcome.err
    (kept, *_) = (tmp_path / "m" / "eval" / "prose.jsonl").read_text().splitlines()
    assert json.loads(kept)["messages"][0]["role"] == "text"
    again = run_asr("train", config, "--out", tmp_path / "m", "--resume")
    assert again.code == 0, again.err


def test_colours_stand_for_the_marks_in_a_terminal(tmp_path: Path, base: Path) -> None:
    plan = plan_of_file(str(write(tmp_path / "legal.jsonl", ROWS)), None, None)
    report = inspect_domains(plan, read_plan(plan), load_base_tokenizer(str(base)))
    console = Console(force_terminal=True, color_system="truecolor", no_color=False, width=100)
    with console.capture() as captured:
        show(report, console)
    text = captured.get()
    assert "what is learned is coloured:" in text and "[[" not in text
    assert "\x1b[1;32mred 0<|im_end|>" in text


def test_bad_rows_need_no_torch(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("nope\n")
    code = (
        "import sys; from asr.cli.main import main\n"
        f"print(main(['check', {str(path)!r}]), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["2", "False"], done.stderr
