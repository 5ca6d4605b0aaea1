"""What a user can do wrong: the exact message, exit code 2, no traceback, nothing lost."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import CONFIG, Edit, Trained, refused, run_asr, write_rows
from tests.tiny_models import save_tiny_base


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


# -- the config ----------------------------------------------------------------------------------


def test_unknown_key_on_the_command_line(trained: Trained, out: Path) -> None:
    assert refused("train", trained.config, "training.epoch=3", "--out", out).startswith(
        "override 'training.epoch=3': unknown key 'training.epoch' (did you mean 'epochs'?); "
        "'training' has: epochs, batch_size,"
    )
    assert not out.exists()


def test_unknown_key_in_the_file(trained: Trained, out: Path) -> None:
    bad = trained.root / "bad-key.yaml"
    bad.write_text(CONFIG.replace("device: cpu", "devise: cpu"))
    assert refused("train", bad, "--out", out) == (
        f"{bad}:2: unknown key 'devise' (did you mean 'device'?); the config has: base, seed, "
        "device, dtype, quantisation, keep_eval, adapter, router, training, eval, domains"
    )


def test_unknown_base(trained: Trained, out: Path) -> None:
    assert refused("train", trained.config, "base=smollm2-135", "--out", out) == (
        "unknown base 'smollm2-135' (did you mean 'smollm2-135m'?); built-in: smollm2-135m; or "
        "pass a local folder, a .gguf file or a hub id ORGANISATION/NAME"
    )


def test_same_domain_twice_in_the_file(trained: Trained, out: Path) -> None:
    bad = trained.root / "twice.yaml"
    bad.write_text(CONFIG.replace("  sum:", "  red:"))
    assert refused("train", bad, "--out", out) == (
        f"{bad}: domain 'red' stands twice (lines 8 and 9); remove or rename one"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Rev", "domain name 'Rev' is not allowed: use lower-case letters, digits, '-' and '_', "
         "starting with a letter or a digit, at most 64 characters (try 'rev')"),
        ("base", "domain name 'base' is reserved (reserved: auto, base, default, none) "
         "(try 'base-domain')"),
        ("red", "domain 'red' exists in this model already; add --extend to train it on more "
         "data, or choose another name (taken: red, sum)"),
    ],
)  # fmt: skip
def test_names_that_add_refuses(trained: Trained, name: str, message: str) -> None:
    data = trained.root / "rev.jsonl"
    assert refused("add", trained.model, f"{name}={data}") == message


def test_add_without_a_file(trained: Trained) -> None:
    assert refused("add", trained.model, "legal") == (
        "'legal' is not NAME=DATA; write e.g. legal=legal.jsonl"
    )


def test_resume_and_overwrite_exclude_each_other(trained: Trained, out: Path) -> None:
    assert refused("train", trained.config, "--out", out, "--resume", "--overwrite") == (
        "--resume and --overwrite exclude each other; give one of them"
    )


# -- the output folder ---------------------------------------------------------------------------


def test_output_folder_holds_a_model(trained: Trained) -> None:
    before = sha256(trained.model / "manifest.json")
    assert refused("train", trained.config, "--out", trained.model) == (
        f"output folder not empty: '{trained.model}' is a routed model directory; add --resume to "
        "continue it, or --overwrite to delete it and start again"
    )
    assert sha256(trained.model / "manifest.json") == before


def test_output_folder_holds_something_else(trained: Trained, out: Path) -> None:
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    for options in ([], ["--overwrite"], ["--resume"]):
        assert refused("train", trained.config, "--out", out, *options) == (
            f"output folder not empty: '{out}' is not a routed model directory (it holds "
            "thesis.tex), so --overwrite would not delete it either; choose another folder"
        )
    assert (out / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    "override",
    [
        "base=nobody/nothing.gguf",
        "domains.red.train=none.jsonl",
        "training.max_length=600",
        "adapter.placement.modules=[q_prj]",
        "router.layer=9",
    ],
)
@pytest.mark.parametrize("option", ["--resume", "--overwrite", None])
def test_a_refused_first_run_leaves_nothing(
    trained: Trained, tmp_path: Path, override: str, option: str | None
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    options = [] if option is None else [option]
    for out in (tmp_path / "a" / "b" / "m", empty):
        refused("train", trained.config, override, "--out", out, *options)
    assert list(tmp_path.rglob("*")) == [empty]


def test_resume_with_changed_settings(trained: Trained, own: Path) -> None:
    arguments = ["train", trained.config, "domains.red.training.epochs=2", "--out", own]
    assert refused(*arguments, "--resume") == (
        "cannot resume: domain 'red' is finished and epochs changed: 1 -> 2; undo the change, or "
        "train into a new folder"
    )


def test_resume_with_changed_data(trained: Trained, own: Path, tmp_path: Path) -> None:
    other = write_rows(tmp_path / "red.jsonl", "red", 24, seed=7)
    message = refused(
        "train", trained.config, f"domains.red.train={other}", "--out", own, "--resume"
    )
    assert message.startswith(
        "cannot resume: domain 'red' is finished and training data (sha256) changed: "
    )


def test_second_writer(trained: Trained, own: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from asr.model.lock import DirectoryLock\n"
            "with DirectoryLock(Path(sys.argv[1])):\n"
            "    print('held', flush=True); sys.stdin.read()",
            str(own),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        for arguments in (
            ["train", trained.config, "--out", own, "--resume"],
            ["train", trained.config, "--out", own, "--overwrite"],
            ["add", own, f"rev={trained.root / 'rev.jsonl'}"],
            ["remove", own, "sum"],
            ["eval", own, "--split", "test"],
        ):
            message = refused(*arguments)
            assert message.startswith(f"'{own}' is being written by process {holder.pid} on host ")
            assert message.endswith(f"or stop it there with 'kill {holder.pid}'")
        assert run_asr("route", own, "red item 1").code == 0  # reading is free
    finally:
        holder.communicate("")


# -- data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "held"), [(0, "0 examples"), (1, "1 example")], ids=["none", "one"]
)
def test_too_few_rows(trained: Trained, own: Path, tmp_path: Path, rows: int, held: str) -> None:
    data = write_rows(tmp_path / "few.jsonl", "rev", rows)
    before = sha256(own / "manifest.json")
    assert refused("add", own, f"rev={data}") == (
        f"rev: few.jsonl has {held}; a domain needs at least 4 with different prompts (training, "
        f"dev cut, calibration); add rows to {data}"
    )
    assert sha256(own / "manifest.json") == before


def test_nothing_left_to_supervise(trained: Trained, own: Path) -> None:
    data = trained.root / "rev.jsonl"
    assert refused("add", own, f"rev={data}", "training.max_length=8") == (
        "rev: all labels masked: none of the 21 examples fits into max_length 8 with the answer "
        "whole (the shortest needs 26 tokens); raise max_length to at least 26, or give shorter "
        "answers"
    )


def test_dev_prompts_beyond_the_context(trained: Trained, own: Path, tmp_path: Path) -> None:
    """Told before the training, whose evaluation could not answer them."""
    data = tmp_path / "long.jsonl"
    rows = [{"prompt": f"{i} " + "red item " * 80, "completion": "x"} for i in range(8)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = sha256(own / "manifest.json")
    message = refused("add", own, f"rev={data}", "max_new_tokens=100")
    first, *listed = message.splitlines()
    count = len(listed)
    assert first == (
        f"rev: {count} of {count} dev prompts and max_new_tokens=100 exceed the base's context of "
        "512; shorten or remove them, lower max_new_tokens, or score by 'loss':"
    )
    assert count > 0 and all(line.startswith(f"{data.name}:") for line in listed), listed
    assert sha256(own / "manifest.json") == before


@pytest.mark.parametrize("plain", [True, False])
def test_what_is_scored_by_loss_may_be_longer_than_the_context(
    trained: Trained, own: Path, tmp_path: Path, plain: bool
) -> None:
    data = tmp_path / "long.jsonl"
    rows = [{"text": f"{i} " + "red item " * 90} for i in range(8)]
    if not plain:
        rows = [{"prompt": row["text"], "completion": "x"} for row in rows]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    added = run_asr("add", own, f"rev={data}", "scorer=loss", "training.max_steps=1")
    assert added.code == 0, added.err


def test_output_folder_below_a_file(trained: Trained) -> None:
    out = trained.config / "m"
    assert refused("train", trained.config, "--out", out) == (
        f"'{out}' lies below a file: name a folder for the output"
    )


def test_missing_data_file(trained: Trained, own: Path) -> None:
    data = trained.root / "rew.jsonl"
    assert refused("add", own, f"rev={data}") == (
        f"config: domains.rev.train: {data} does not exist"
    )


def test_bad_rows_are_named_by_line(trained: Trained, own: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "bad.jsonl", "rev", 5)
    data.write_text(data.read_text() + '\n{"prom\n')
    assert refused("add", own, f"rev={data}") == (
        f"{data}:7: found invalid JSON (Unterminated string starting at column 2), expected one "
        "JSON object"
    )


# -- a damaged model -----------------------------------------------------------------------------


def test_truncated_adapter(own: Path) -> None:
    weights = own / "adapters" / "red" / "adapter_model.safetensors"
    recorded = sha256(weights)
    weights.write_bytes(weights.read_bytes()[:-100])
    expected = (
        f"domain 'red': adapters/red/adapter_model.safetensors was changed (sha256 "
        f"{sha256(weights)[:12]}..., recorded {recorded[:12]}...); restore it from a copy, or "
        "remove the domain and train it again"
    )
    assert refused("generate", own, "red item 1") == expected
    shown = run_asr("info", own)
    assert shown.code == 2
    assert "1 problem:" in shown.out and expected in shown.out
    told = run_asr("info", own, "--json")
    assert told.code == 2 and json.loads(told.out)["problems"] == [expected]


def test_truncated_adapter_with_a_matching_record(own: Path, edit_manifest: Edit) -> None:
    weights = own / "adapters" / "red" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    edit_manifest(
        own, lambda tree: tree["domains"]["red"]["adapter"].update(sha256=sha256(weights))
    )
    assert refused("generate", own, "red item 1", "--adapter", "red") == (
        f"{weights} is truncated or corrupt (Error while deserializing header: incomplete "
        "metadata, file not fully covered); restore it from a copy, or remove the domain and train "
        "it again"
    )


def test_adapter_of_another_base(
    trained: Trained, own: Path, tmp_path: Path, edit_manifest: Edit
) -> None:
    save_tiny_base(tmp_path / "base2", seed=1)
    other = tmp_path / "other"
    made = run_asr("train", trained.config, f"base={tmp_path / 'base2'}", "--out", other)
    assert made.code == 0, made.err
    shutil.rmtree(own / "adapters" / "red")
    shutil.copytree(other / "adapters" / "red", own / "adapters" / "red")
    assert "adapter_model.safetensors was changed" in refused("generate", own, "red item 1")
    folder = own / "adapters" / "red"
    edit_manifest(
        own,
        lambda tree: tree["domains"]["red"]["adapter"].update(
            sha256=sha256(folder / "adapter_model.safetensors"),
            config_sha256=sha256(folder / "adapter_config.json"),
        ),
    )
    here, there = (
        json.loads((model / "manifest.json").read_text())["base"]["fingerprint"][:12]
        for model in (own, other)
    )
    assert here != there
    assert refused("generate", own, "red item 1", "--adapter", "red") == (
        f"adapter {folder} belongs to another base (fingerprint {there}, this base is {here}, "
        f"'{tmp_path / 'base2'}' by name); load it with the base it was trained on"
    )


def test_corrupted_router(own: Path) -> None:
    router = own / "router" / "router.safetensors"
    content = bytearray(router.read_bytes())
    content[-1] ^= 0xFF
    router.write_bytes(content)
    message = refused("route", own, "red item 1")
    assert message == (
        f"{router} is damaged (its content does not match its checksum); restore it from a copy, "
        "or run asr train CONFIG --out MODEL --resume to derive it again"
    )
    shown = run_asr("info", own)
    assert shown.code == 2 and message in shown.out


def test_missing_router(own: Path) -> None:
    (own / "router" / "router.safetensors").unlink()
    assert refused("route", own, "red item 1") == (
        f"{own / 'router' / 'router.safetensors'} does not exist; run asr train CONFIG --out "
        "MODEL --resume to derive it again"
    )


def test_manifest_of_a_newer_schema(own: Path, edit_manifest: Edit) -> None:
    edit_manifest(own, lambda tree: tree.update(schema_version=2))
    for command in (["info", own], ["route", own, "x"], ["chat", own], ["eval", own]):
        assert refused(*command) == (
            f"{own / 'manifest.json'}: manifest of schema 2, this asr reads up to 1: upgrade with "
            "pip install -U analytic-subspace-routing"
        )


def test_no_model_there(tmp_path: Path) -> None:
    for command in ("info", "route", "generate", "chat", "eval", "remove"):
        prompt = ["x"] if command in ("route", "generate", "remove") else []
        assert refused(command, tmp_path / "nope", *prompt) == (
            f"no folder '{tmp_path / 'nope'}'; give the folder that asr train wrote (it holds "
            "manifest.json)"
        )


# -- prompts and names ---------------------------------------------------------------------------


def test_prompt_longer_than_the_context(trained: Trained) -> None:
    long = "red item " * 300
    message = refused("route", trained.model, "red item 1", long)
    assert message == (
        "prompt 2: prompt has 2113 tokens, the base's context holds 512; shorten the prompt"
    )
    assert refused("generate", trained.model, "red item 1", long) == message


def test_answer_that_does_not_fit(trained: Trained) -> None:
    assert refused("generate", trained.model, "red item 1", "--max-new-tokens", 600) == (
        "prompt of 21 tokens and max_new_tokens=600 exceed the base's context of 512; shorten the "
        "prompt or lower max_new_tokens"
    )


@pytest.mark.parametrize("command", [["generate", "MODEL", "x"], ["chat", "MODEL"]])
def test_unknown_adapter(trained: Trained, command: list[str]) -> None:
    command = [str(trained.model) if part == "MODEL" else part for part in command]
    assert refused(*command, "--adapter", "summ") == (
        "unknown adapter 'summ' (did you mean 'sum'?); there are: auto, base, red, sum"
    )


def test_unknown_domain_of_a_test_file(trained: Trained) -> None:
    assert refused("eval", trained.model, "--data", "summ=x.jsonl") == (
        "unknown domain 'summ' (did you mean 'sum'?); there are: red, sum"
    )


def test_names_that_remove_refuses(own: Path) -> None:
    assert refused("remove", own, "summ") == (
        "unknown domain 'summ' (did you mean 'sum'?); there are: red, sum"
    )
    assert run_asr("remove", own, "sum").code == 0
    before = sha256(own / "manifest.json")
    assert refused("remove", own, "red") == (
        f"'red' is the only domain of '{own}', and a routed model needs one; nothing was removed: "
        "add another one first, or delete the folder"
    )
    assert sha256(own / "manifest.json") == before


def test_no_test_files(own: Path, edit_manifest: Edit) -> None:
    edit_manifest(own, lambda tree: tree["domains"]["red"].update(test=None))
    assert refused("eval", own, "--split", "test") == (
        "no test file for 'red'; give --data red=FILE"
    )


def test_no_prompt(trained: Trained, tmp_path: Path) -> None:
    missing = (
        "no prompt given; write one in quotes, name a file with --file, or - for standard input"
    )
    assert refused("route", trained.model) == missing
    assert refused("route", trained.model, "a", "  ") == "prompt 2 is empty; write one"
    assert refused("generate", trained.model, "-", input="") == "the prompt is empty; write one"
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "red"}\n{"question": "red"}\n')
    assert refused("route", trained.model, "--file", rows) == (
        f"{rows}:2: found the keys question; a row needs prompt (text) or messages (turns)"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperature", "-1"], "--temperature is -1; give 0 or more"),
        (["--top-p", "1.5"], "--top-p is 1.5; give more than 0 and at most 1"),
        (
            ["--temperature", "0", "--top-p", "0.5"],
            "--temperature 0 takes the likeliest token: leave --top-p out",
        ),
        (
            ["--dtype", "bf16"],
            "unknown dtype 'bf16' (did you mean 'bfloat16'?); there are: auto, bfloat16, float16, "
            "float32",
        ),
    ],
)
def test_bad_options(trained: Trained, options: list[str], message: str) -> None:
    assert refused("generate", trained.model, "x", *options) == message


def test_markup_in_a_message_is_text(trained: Trained) -> None:
    assert refused("generate", trained.model, "x", "--adapter", "[red]sum[/]").startswith(
        "unknown adapter '[red]sum[/]'"
    )


def test_generate_does_not_replace_a_file(trained: Trained, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text("precious")
    assert refused("generate", trained.model, "x", "--out", file) == (
        f"'{file}' exists; choose another name, or add --overwrite to replace it"
    )
    assert file.read_text() == "precious"


def test_eval_options_that_do_not_go_together(trained: Trained) -> None:
    assert refused("eval", trained.model, "--max-examples", 3) == (
        "--max-examples belongs to --split test; dev shows what training measured"
    )
    assert refused("eval", trained.model, "--kind", "bear").startswith(
        "unknown kind 'bear' (did you mean 'bare'?)"
    )
    assert refused("eval", trained.model, "--split", "train") == (
        "unknown split 'train'; there are: dev, test"
    )


def test_eval_without_stored_matrices(own: Path) -> None:
    for name in ("matrix.json", "matrix.bare.json", "sum.jsonl"):
        (own / "eval" / name).unlink()
    assert refused("eval", own).startswith(f"'{own}' has no stored evaluation")


def test_damaged_matrix(own: Path) -> None:
    (own / "eval" / "matrix.json").write_text(json.dumps({"schema_version": 1}))
    assert refused("eval", own).startswith(f"{own / 'eval' / 'matrix.json'} is damaged")
