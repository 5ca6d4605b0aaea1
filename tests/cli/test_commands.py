"""Every command does what it says, on a tiny trained model."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from asr.eval.matrix import EvalMatrix
from tests.cli.conftest import Edit, Trained, refused, run_asr

PNG = b"\x89PNG\r\n"


def manifest(model: Path) -> dict:
    return json.loads((model / "manifest.json").read_text())


def lines_of(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


# -- train and add -------------------------------------------------------------------------------


def test_train_says_what_it_does(trained: Trained) -> None:
    lines = trained.outcome.out.splitlines()
    model = trained.model
    assert lines[0] == f"2 domains (red, sum) into {model}"
    assert lines[1].startswith(f"base: {trained.root / 'base'} on cpu")
    assert (
        lines[2]
        == "router: reads the states entering layer 2 of 4; prompts shown templated, bare, "
        "fragment, fragment2"
    )
    plan = [line.split() for line in lines]
    heading = ["domain", "train", "dev", "steps", "batch", "rate", "placement", "parameters"]
    assert heading in plan
    entry = manifest(model)["domains"]["red"]
    train, dev = entry["data"]["train"], entry["data"]["dev"]
    steps = -(-2 * train // 2) // 2  # half of the rows of two views
    parameters = f"{entry['adapter']['parameters']:,}"
    assert ["red", str(train), str(dev), str(steps), "2", "0.0053", "deep,", "rank", "8",
            parameters] in plan  # fmt: skip
    assert "batch 2: by the number of steps" in lines
    assert "prompts trained on templated and bare, an equal share of the epochs each" in lines
    assert "rate 0.0053: by placement (14 adapted modules) and batch" in lines
    assert "1/2 red" in lines and "2/2 sum" in lines
    assert any(line.startswith(f"  step {-(-steps // 5)}/{steps}, loss ") for line in lines)
    assert any(line.startswith(f"red: {steps} steps, loss ") for line in lines)
    assert any(line.startswith("  templated, routed / oracle / base: red 0.") for line in lines)
    assert "After sum, templated prompts (95% intervals)" in [line.strip() for line in lines]
    assert f"model: {model} (2 domains)" in lines
    assert any(line.startswith(f"  asr chat {model}") for line in lines)
    assert trained.outcome.err == ""


def test_train_again_with_resume_has_nothing_to_do(trained: Trained, own: Path) -> None:
    before = manifest(own)["domains"]
    outcome = run_asr("train", trained.config, "--out", own, "--resume")
    assert outcome.code == 0, outcome.err
    assert "skipped, because finished: red, sum" in outcome.out
    assert "nothing to train; the router is solved again" in outcome.out
    assert manifest(own)["domains"] == before


def test_overwrite_starts_again(trained: Trained, own: Path) -> None:
    (own / "adapters" / "red" / "README.md").write_text("changed")
    arguments = ["train", trained.config, "training.max_steps=2", "--out", own, "--overwrite"]
    outcome = run_asr(*arguments)
    assert outcome.code == 0, outcome.err
    assert "red: 2 steps" in outcome.out
    assert (own / "adapters" / "red" / "README.md").read_text() != "changed"


def test_add_appends_a_domain_and_touches_no_other(trained: Trained, own: Path) -> None:
    data = shutil.copy(trained.root / "rev.jsonl", own.parent / "rev.jsonl")
    moved = trained.root / "red.moved"
    weights = [own / "adapters" / name / "adapter_model.safetensors" for name in ("red", "sum")]
    before = [hashlib.sha256(path.read_bytes()).hexdigest() for path in weights]
    (trained.root / "red.jsonl").rename(moved)  # old training data is not needed
    try:
        outcome = run_asr(
            "add", own, f"rev={data}", "training.max_steps=3", "adapter.rank=4", "scorer=label"
        )
    finally:
        moved.rename(trained.root / "red.jsonl")
    assert outcome.code == 0, outcome.err
    assert "skipped, because finished: red, sum" in outcome.out
    assert "3/3 rev" in outcome.out and "rev: 3 steps" in outcome.out
    record = manifest(own)
    assert list(record["domains"]) == ["red", "sum", "rev"]
    entry = record["domains"]["rev"]
    assert (entry["status"], entry["scorer"], entry["adapter"]["rank"]) == ("done", "label", 4)
    assert entry["data"]["path"] == str(data)
    assert record["config"]["training"]["max_steps"] is None  # the next domain's is not changed
    assert [hashlib.sha256(path.read_bytes()).hexdigest() for path in weights] == before
    routed = run_asr("route", own, "rev item 5 6", "--json")
    assert set(lines_of(routed.out)[0]["scores"]) == {"red", "sum", "rev"}


def test_remove_takes_a_domain_out_and_says_how_to_add_it_again(
    trained: Trained, own: Path
) -> None:
    answers = len((own / "eval" / "answers.jsonl").read_text().splitlines())
    outcome = run_asr("remove", own, "sum")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0] == f"removed 'sum' from {own}; deleted:"
    assert lines[1].startswith("  eval/answers.jsonl: ") and lines[1].endswith(f"{answers} answers")
    assert lines[2:-5] == [
        "  eval/matrix.bare.basis.json",
        "  eval/matrix.basis.json",
        "  eval/matrix.bare.json",
        "  eval/matrix.json",
        "  eval/sum.jsonl",
        "  adapters/sum",
        "  router/sum.safetensors",
        "  manifest.json: its entry and settings",
    ]
    root = trained.root
    again = ["add", str(own), f"sum={root / 'sum.jsonl'}", f"test={root / 'sum.test.jsonl'}"]
    assert lines[-5:] == [
        "router: solved over red, as if 'sum' had never been there",
        f"scores: made again by asr eval {own}",
        "to add it again:",
        f"  {shlex.join(['asr', *again])}",
        f"before asr train CONFIG --out {own} --resume, take 'sum' out of CONFIG (or put it last, "
        "to train it again)",
    ]
    routed = lines_of(run_asr("route", own, "sum item 5 6", "--json").out)
    assert set(routed[0]["scores"]) == {"red"}
    assert (root / "sum.jsonl").exists()
    added = run_asr(*again)
    assert added.code == 0, added.err
    for file in ("adapters/sum/adapter_model.safetensors", "router/router.safetensors"):
        assert (own / file).read_bytes() == (trained.model / file).read_bytes()
    assert (own / "eval" / "matrix.json").read_text() == (
        trained.model / "eval" / "matrix.json"
    ).read_text()


def test_eval_scores_the_kept_prompts_where_no_matrix_is_stored(
    trained: Trained, own: Path
) -> None:
    for name in ("matrix.json", "matrix.bare.json"):
        (own / "eval" / name).unlink()
    answers = (own / "eval" / "answers.jsonl").read_bytes()
    outcome = run_asr("eval", own)
    assert outcome.code == 0, outcome.err
    assert "no stored matrices: scoring the kept prompts" in outcome.err
    assert "After sum, templated prompts" in outcome.out
    for name in ("matrix.json", "matrix.bare.json", "answers.jsonl"):
        assert (own / "eval" / name).read_bytes() == (trained.model / "eval" / name).read_bytes()
    assert (own / "eval" / "answers.jsonl").read_bytes() == answers  # nothing was generated


def test_an_interrupted_remove_says_how_to_finish(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asr.train.remove as module

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "forget_domain", interrupted)
        outcome = run_asr("remove", own, "sum")
    assert outcome.code == 130
    command = f"asr remove {own} sum"
    assert outcome.err == f"stopped; type the same command again to finish:\n  {command}\n"
    finished = run_asr("remove", own, "sum")
    assert finished.code == 0, finished.err
    assert f"  asr add {own} sum=DATA" in finished.out.splitlines()  # its settings are gone


def test_an_interrupted_generate_says_what_is_written(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from asr.model.routed_model import RoutedModel

    asked, out = tmp_path / "asked.txt", tmp_path / "answers.jsonl"
    asked.write_text("".join(f"Add the numbers. sum item {i}\n" for i in range(11)))
    answer, calls = RoutedModel.generate, []

    def interrupted(*args: Any, **settings: Any) -> Any:
        calls.append(settings)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return answer(*args, **settings)

    monkeypatch.setattr(RoutedModel, "generate", interrupted)
    options = ["--file", asked, "--out", out, "--batch-size", 1, "--max-new-tokens", 2]
    outcome = run_asr("generate", trained.model, *options)
    assert outcome.code == 130
    assert outcome.err.endswith(f"stopped; {out} holds the first 8 of 11 answers\n")
    assert len(out.read_text().splitlines()) == 8


def test_an_abstention_is_visible() -> None:
    from asr.cli.generate import headline
    from asr.cli.route import _table, explanation, plain_decision
    from asr.router import Decision

    scores = {"red": 0.31, "sum": 0.12}
    decision = Decision("red", "base", True, 0.31, 0.19, 0.4, scores, 0.9)
    assert headline("base", decision) == (
        "base (nearest: red, score 0.310 below the threshold 0.400, margin 0.190)"
    )
    assert explanation(decision)[1] == "threshold: 0.400, score 0.310 is below: to the base"
    assert plain_decision(decision)["threshold"] == 0.4
    text = io.StringIO()
    Console(file=text, width=80).print(_table(["hello [red]"], [decision], 80))
    shown = " ".join(text.getvalue().splitlines()[1].split())
    assert shown == "base (nearest: red) 0.310 0.190 0.900 hello [red]"


# -- route and generate --------------------------------------------------------------------------


def test_route_prints_a_table(trained: Trained) -> None:
    outcome = run_asr("route", trained.model, "red item 1 2", "sum item 3 4", "--explain")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["route", "score", "margin", "probability", "prompt"]
    assert lines[1].split()[0] == "red" and lines[1].strip().endswith("red item 1 2")
    assert lines[2].split()[0] == "sum"
    assert lines[3].startswith("1: scores: red ") and ", sum " in lines[3]
    assert lines[4].startswith("1: known score ") and ", made of evidence " in lines[4]
    assert lines[5] == "1: threshold: none, the router never abstains"


def test_a_long_prompt_leaves_the_numbers_whole(trained: Trained) -> None:
    outcome = run_asr("route", trained.model, "red item " * 20)
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["route", "score", "margin", "probability", "prompt"]
    assert len(lines) == 2 and len(lines[1].rstrip()) <= 80 and "…" in lines[1]


def test_route_reads_files_and_writes_json(trained: Trained, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": "sum item 1"}, {"role": "assistant", "content": "sum 1"}]
    rows.write_text('{"prompt": "red item 1"}\n' + json.dumps({"messages": turns}) + "\n")
    text = tmp_path / "rows.txt"
    text.write_text("red item 7\n\nsum item 8\n")
    from_rows = run_asr("route", trained.model, "--file", rows, "--json")
    found = lines_of(from_rows.out)
    assert [row["route"] for row in found] == ["red", "sum"]
    assert found[0]["prompt"] == "red item 1"
    assert found[1]["messages"] == turns[:1]  # the answer is not part of the prompt
    assert found[0]["threshold"] is None and found[0]["margin"] > 0
    from_text = run_asr("route", trained.model, "--file", text, "--json")
    assert [row["prompt"] for row in lines_of(from_text.out)] == ["red item 7", "sum item 8"]
    piped = run_asr("route", trained.model, "--file", "-", "--json", input=rows.read_text())
    assert piped.out == from_rows.out
    whole = run_asr("route", trained.model, "-", "--json", input="red item 1\nand 2\n")
    assert lines_of(whole.out)[0]["prompt"] == "red item 1\nand 2"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.json", '[{"prompt": "red item 1"}, {"prompt": "sum item 2"}]'),
        ("rows.csv", "prompt,completion\nred item 1,x\nsum item 2,y\n"),
        ("rows.tsv", "prompt\tcompletion\nred item 1\tx\nsum item 2\ty\n"),
    ],
)
def test_prompts_are_read_from_every_kind_of_data_file(
    trained: Trained, tmp_path: Path, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content)
    found = lines_of(run_asr("route", trained.model, "--file", tmp_path / name, "--json").out)
    assert [row["prompt"] for row in found] == ["red item 1", "sum item 2"]


def test_only_line_ends_part_the_prompts_of_a_text_file(trained: Trained, tmp_path: Path) -> None:
    text = tmp_path / "rows.txt"
    text.write_bytes("red\x0citem\r\nsum\u2028item\n".encode())
    printed = run_asr("route", trained.model, "--file", text, "--json").out.rstrip("\n")
    found = [json.loads(line) for line in printed.split("\n")]
    assert [row["prompt"] for row in found] == ["red\x0citem", "sum\u2028item"]


def test_an_empty_file_of_prompts(trained: Trained, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n")
    said = refused("generate", trained.model, "--file", rows)
    assert said == f"{rows}: the file has 0 rows; a row needs prompt or messages"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out", "gone/a.jsonl"], "--out: there is no folder 'gone'; make it first"),
        (["--out", ".", "--overwrite"], "--out: '.' is a folder; name a file"),
        (["--out", "old"], "'old' exists; choose another name, or add --overwrite to replace it"),
    ],
)
def test_a_place_that_cannot_be_written_is_found_before_the_model_is_loaded(
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old").write_text("kept")
    # no base is there: loading would say so
    asked = ["generate", trained.model, "red item 1", "--base", tmp_path / "no-base", *options]
    assert refused(*asked) == said
    assert (tmp_path / "old").read_text() == "kept"


def test_a_prompt_without_room_is_found_before_the_first_answer(
    trained: Trained, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.txt"
    rows.write_text("red item 1\n" * 20 + "red " * 100 + "\n")
    out = tmp_path / "answers.jsonl"
    said = refused(
        "generate", trained.model, "--file", rows, "--out", out, "--batch-size", 1,
        "--max-new-tokens", 450,
    )  # fmt: skip
    assert said.startswith("prompt 21 of ")
    assert "max_new_tokens=450 exceed the base's context of 512" in said
    assert not out.exists()


def test_generate_json(trained: Trained) -> None:
    arguments = ["generate", trained.model, "red item 1", "--max-new-tokens", 4, "--json"]
    outcome = run_asr(*arguments)
    assert outcome.code == 0, outcome.err
    (answer,) = lines_of(outcome.out)
    assert answer["prompt"] == "red item 1" and answer["adapter"] == "red"
    assert 1 <= answer["new_tokens"] <= 4 and answer["finish"] in ("stop", "length")
    routed = lines_of(run_asr("route", trained.model, "red item 1", "--json").out)[0]
    assert answer["score"] == pytest.approx(routed["score"])
    (named,) = lines_of(run_asr(*arguments, "--adapter", "sum").out)
    assert named["adapter"] == "sum" and "score" not in named
    (base,) = lines_of(run_asr(*arguments, "--adapter", "base").out)
    assert base["adapter"] == "base"


def test_generate_for_people(trained: Trained) -> None:
    outcome = run_asr("generate", trained.model, "red item 1", "sum item 2", "--max-new-tokens", 2)
    assert outcome.code == 0, outcome.err
    assert "> red item 1\nred (score " in outcome.out
    assert "> sum item 2\nsum (score " in outcome.out


def test_generate_into_a_file(trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    outcome = run_asr(
        "generate", trained.model, "--file", trained.root / "red.test.jsonl", "--out", out,
        "--max-new-tokens", 2, "--batch-size", 2,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert outcome.out == "" and f"wrote {out}: 5 answers in " in outcome.err
    answers = lines_of(out.read_text())
    asked = lines_of((trained.root / "red.test.jsonl").read_text())
    assert [row["prompt"] for row in answers] == [row["prompt"] for row in asked]


def test_sampling_follows_the_seed(trained: Trained) -> None:
    def texts(seed: int) -> str:
        return run_asr(
            "generate", trained.model, "red item 1", "--max-new-tokens", 12, "--json",
            "--temperature", 5, "--seed", seed,
        ).out  # fmt: skip

    assert texts(1) == texts(1)
    assert len({texts(seed) for seed in range(3)}) > 1


# -- chat ----------------------------------------------------------------------------------------


def test_chat_from_a_pipe(trained: Trained) -> None:
    spoken = (
        "red item 1\n/adapter sum\nhello\n/adapter\n/reset\n/hepl\n/adapter nope\n/help\n/quit\n"
        "never answered\n"
    )
    outcome = run_asr("chat", trained.model, "--max-new-tokens", 3, input=spoken)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("domains: red, sum; /help shows the commands, /quit leaves\n")
    assert "[red (score " in outcome.out and ", margin " in outcome.out
    assert "[sum (named, not routed)]" in outcome.out
    assert "adapter: sum; there are: auto, base, red, sum" in outcome.out
    assert "the conversation is forgotten" in outcome.out
    assert "/reset         forget the conversation" in outcome.out
    assert outcome.out.count("[") == 2  # nothing after /quit was answered
    assert "unknown command '/hepl' (did you mean '/help'?)" in outcome.err
    assert "unknown adapter 'nope'; there are: auto, base, red, sum" in outcome.err


def test_chat_routes_the_whole_conversation(trained: Trained) -> None:
    import asr
    from asr.cli.chat import Chat
    from asr.cli.output import stdout

    model = asr.RoutedModel.from_pretrained(trained.model)
    talk = Chat(model, stdout(), 3, {})
    asked = []
    stream = model.stream

    def spy(prompt, **settings):
        asked.append([dict(turn) for turn in prompt])
        return stream(prompt, **settings)

    model.stream = spy
    talk.answer("red item 1")
    talk.answer("sum item 2")
    roles = [turn["role"] for turn in asked[1]]
    assert asked[0] == [{"role": "user", "content": "red item 1"}]
    assert roles in (["user", "assistant", "user"], ["user"])  # an empty answer leaves no turn
    assert asked[1][-1]["content"] == "sum item 2"


def test_chat_goes_on_after_a_message_that_is_too_long(trained: Trained) -> None:
    spoken = "red item " * 300 + "\nred item 1\n"
    outcome = run_asr("chat", trained.model, "--max-new-tokens", 3, input=spoken)
    assert outcome.code == 0
    assert "tokens, the base's context holds 512" in outcome.err
    assert "/reset starts a new conversation" in outcome.err
    assert outcome.out.count("[red (score") == 1


def test_interrupted_answer_is_kept_and_chat_goes_on(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    from asr.cli import chat

    def pieces():
        yield "half of "
        raise KeyboardInterrupt

    class Model:
        domains = ("red",)

        def stream(self, turns, **settings):
            return None, "red", pieces()

    talk = chat.Chat(Model(), chat.stdout(), 3, {})
    lines = iter(["hello", KeyboardInterrupt, KeyboardInterrupt, "never read"])

    def read() -> str:
        line = next(lines)
        if line is KeyboardInterrupt:
            raise KeyboardInterrupt
        return line

    monkeypatch.setattr(talk, "_read", read)
    talk.run()
    assert talk.turns == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "half of "},
    ]
    # The answer's Ctrl-C was the first; the next one left.
    assert next(lines) is KeyboardInterrupt


# -- info and eval -------------------------------------------------------------------------------


def test_info(trained: Trained) -> None:
    outcome = run_asr("info", trained.model)
    assert outcome.code == 0, outcome.err
    record = manifest(trained.model)
    counts = json.loads(run_asr("info", trained.model, "--json").out)["router"]
    held = sum(counts["calibration_prompts"][name] for name in ("red", "sum"))
    text = outcome.out
    for needed in (
        record["base"]["fingerprint"],
        record["contract_hash"],
        "LlamaForCausalLM, 4 layers, hidden 32",
        "layer 2 of 4, expansion none",
        record["domains"]["sum"]["adapter"]["sha256"][:8],
        "ridge ",
        f"right on {held} held-out: ",
        "threshold: none, no prompt goes to the base",
        "warning: too few held-out prompts",
        "files: all as recorded",
    ):
        assert needed in text
    assert [line for line in text.splitlines() if len(line) > 100 and "warning" not in line] == []


@pytest.mark.parametrize(
    ("placement", "shown"),
    [
        ({"modules": ["layers.3.up"]}, "dominant, rank 2, layers.3.up, one pass"),
        ({"modules": ["a", "b"]}, "dominant, rank 2, 2 modules, one pass"),
        ({"modules": ["a", "b"], "ranks": [9, 1]}, "dominant, ranks 1 to 9, 2 modules, one pass"),
        ({"modules": ["a"], "ranks": [9]}, "dominant, rank 9, a, one pass"),
    ],
)
def test_info_of_a_dominant_placement(
    own: Path, edit_manifest: Edit, placement: dict[str, Any], shown: str
) -> None:
    asked = {"kind": "dominant", "rank": 2, **placement}
    edit_manifest(own, lambda tree: tree["domains"]["sum"].update(placement=asked))
    lines = [" ".join(line.split()) for line in run_asr("info", own).out.splitlines()]
    assert any(line.startswith("sum done") and line.endswith(shown) for line in lines)


@pytest.mark.parametrize("edited", [{"batch_size": 0}, {"batch_size": -1}, {"views": []}])
def test_info_of_edited_settings(own: Path, edit_manifest: Edit, edited: dict[str, Any]) -> None:
    edit_manifest(own, lambda tree: tree["domains"]["sum"]["training"].update(edited))
    shown = run_asr("info", own)
    assert shown.code == 0, shown.err


def test_info_names_what_the_next_solve_would_lack(own: Path, edit_manifest: Edit) -> None:
    (own / "router" / "_background.safetensors").unlink(missing_ok=True)
    entry = {"sha256": "0" * 64, "samples": 6, "prompts": 5}
    edit_manifest(own, lambda tree: tree.update(background=entry))
    [problem] = json.loads(run_asr("info", own, "--json").out)["problems"]
    assert problem == (
        f"{own}/router/_background.safetensors is missing; run asr train CONFIG --out {own} "
        "--resume to make it again"
    )


def test_info_json(trained: Trained) -> None:
    record = json.loads(run_asr("info", trained.model, "--json").out)
    assert record["manifest"] == manifest(trained.model)
    assert record["problems"] == []
    assert record["router"]["solver"] == "direct"


def test_info_of_an_unfinished_model(own: Path, edit_manifest: Edit) -> None:
    edit_manifest(
        own,
        lambda tree: tree["domains"]["sum"].update(
            status="training", adapter=None, router=None, timings={}, tokens_per_second=None
        ),
    )
    outcome = run_asr("info", own)
    assert outcome.code == 0, outcome.err
    assert f"unfinished: sum; go on with asr train CONFIG --out {own} --resume, or" in outcome.out


def test_eval_shows_and_draws_the_dev_matrices(own: Path) -> None:
    outcome = run_asr("eval", own)
    assert outcome.code == 0, outcome.err
    assert "After sum, templated prompts" in outcome.out
    assert "After sum, bare prompts" in outcome.out
    assert "routing accuracy " in outcome.out and "OP 0." in outcome.out
    for name in ("matrix.png", "matrix.bare.png"):
        assert f"wrote {own / 'eval' / name}" in outcome.out
        assert (own / "eval" / name).read_bytes().startswith(PNG)


def test_eval_on_the_recorded_test_files(own: Path) -> None:
    first = run_asr("eval", own, "--split", "test")
    assert first.code == 0, first.err
    folder = own / "eval" / "test"
    for kind in ("", ".bare"):
        path = folder / f"matrix{kind}.json"
        matrix = EvalMatrix.from_json(path.read_text())
        assert matrix.domains == ["red", "sum"] and matrix.n == [5, 5]
        assert matrix.confusion.sum() == 10
        assert f"wrote {path}" in first.out
        assert path.with_suffix(".png").read_bytes().startswith(PNG)
    assert " answers generated at " in first.out and " tokens/s, " in first.out
    stored = (folder / "matrix.json").read_text()
    again = run_asr("eval", own, "--split", "test")
    assert "every answer was in the cache" in again.out
    assert (folder / "matrix.json").read_text() == stored


def test_eval_says_what_scorers_that_generate_nothing_cost(own: Path, edit_manifest: Edit) -> None:
    def by_loss(tree: dict) -> None:
        for entry in tree["domains"].values():
            entry["scorer"] = "loss"

    edit_manifest(own, by_loss)
    first = run_asr("eval", own, "--split", "test", "--kind", "bare")
    assert first.code == 0, first.err
    assert re.search(r"\n2\d likelihoods computed, ", first.out)  # base, own adapter, few others
    again = run_asr("eval", own, "--split", "test", "--kind", "bare")
    assert "\nevery answer was in the cache, " in again.out


def test_eval_on_given_files_as_json(trained: Trained, own: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    outcome = run_asr(
        "eval", own, "--data", f"red={trained.root / 'red.jsonl'}", "--max-examples", 3,
        "--kind", "bare", "--out", out, "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    record = json.loads(outcome.out)
    assert record["split"] == "test" and list(record["matrices"]) == ["bare"]
    assert record["matrices"]["bare"]["n"] == [3, 3]
    assert set(record["matrices"]["bare"]["op"]) == {"routed", "oracle", "base"}
    assert record["written"] == [str(out / "matrix.bare.json"), str(out / "matrix.bare.png")]
    assert not (own / "eval" / "test").exists()
