"""``asr add --extend``, ``asr info`` afterwards, and what ``asr remove`` says to type."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from asr.cli.output import command_line
from tests.cli.conftest import Edit, Trained, refused, run_asr, write_rows


@pytest.fixture
def more(tmp_path: Path) -> Path:
    """Further prompts of the domain ``sum``."""
    path = write_rows(tmp_path / "more.jsonl", "sum", 24)
    path.write_text(path.read_text().replace("sum item", "sum thing"), encoding="utf-8")
    return path


def entry(model: Path, name: str = "sum") -> dict:
    return json.loads((model / "manifest.json").read_text())["domains"][name]


@pytest.mark.parametrize("now", [None, "", "{bad", "more"])
def test_files_of_other_domains_are_not_looked_at(
    trained: Trained, own: Path, tmp_path: Path, more: Path, now: str | None
) -> None:
    """Gone, empty, damaged, grown: what became of them since is not the new domain's matter."""
    tree = json.loads((own / "manifest.json").read_text())
    red = tmp_path / "red.jsonl"
    tree["config"]["domains"]["red"]["train"] = str(red)
    (own / "manifest.json").write_text(json.dumps(tree))
    if now is not None:
        red.write_text(more.read_text() if now == "more" else now)
    before = entry(own, "red")
    added = run_asr("add", own, f"rev={trained.root / 'rev.jsonl'}", "training.max_steps=1")
    assert added.code == 0, added.err
    assert entry(own, "red") == before
    assert entry(own, "rev")["status"] == "done"


def test_resume_keeps_the_settings_that_the_domain_began_with(
    trained: Trained, own: Path, edit_manifest: Edit
) -> None:
    command = ["add", own, f"rev={trained.root / 'rev.jsonl'}"]
    assert run_asr(*command, "adapter.rank=2", "training.max_steps=1").code == 0
    made = entry(own, "rev")["adapter"]["sha256"]

    def killed(tree: dict) -> None:
        fresh = {"adapter": None, "router": None, "timings": {}, "tokens_per_second": None}
        tree["domains"]["rev"].update(status="training", **fresh)

    edit_manifest(own, killed)
    assert (
        f"unfinished: rev; go on with asr train CONFIG --out {own} --resume, or where it was added "
        f"with {command_line([*command, '--resume'])}"
    ) in run_asr("info", own).out.splitlines()
    resumed = run_asr(*command, "--resume")
    assert resumed.code == 0, resumed.err
    assert entry(own, "rev")["adapter"]["sha256"] == made
    assert "begins again" not in resumed.out

    edit_manifest(own, killed)
    other = run_asr(*command, "adapter.rank=3", "--resume")
    assert other.code == 0, other.err
    assert "rev: placement.rank changed: 2 -> 3; its training begins again" in other.out.split("\n")
    assert entry(own, "rev")["adapter"]["rank"] == 3


def test_extend_info_remove(trained: Trained, own: Path, more: Path) -> None:
    first = entry(own)["adapter"]["sha256"]
    outcome = run_asr("add", own, f"sum={more}", "--extend", "training.max_steps=3")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0] == f"more data for sum in {own}"
    assert "sum: 3 steps" in outcome.out
    record = entry(own)
    old, new = (record["router"]["prompts"] - record["extensions"][0]["prompts"]), record["router"]
    assert old == entry(trained.model)["router"]["prompts"]
    assert (
        f"sum: version 2 is in use; the router knows {new['prompts']} prompts of it, "
        f"{new['prompts'] - old} of them new"
    ) in lines
    assert record["extensions"][0]["replaced"]["sha256"] == first != record["adapter"]["sha256"]
    assert record["test"] == str(trained.root / "sum.test.jsonl")

    shown = run_asr("info", own)
    assert shown.code == 0, shown.err
    rows = [line.split() for line in shown.out.splitlines()]
    datas = [record["data"], record["extensions"][0]["data"]]
    for version, state, sha256 in (
        (1, ["kept"], first),
        (2, ["in", "use"], record["adapter"]["sha256"]),
    ):
        counts = [str(datas[version - 1][side]) for side in ("train", "dev")]
        assert ["sum", str(version), *counts, *state, sha256[:8]] in rows
    assert "files: all as recorded" in shown.out
    assert "kept" not in run_asr("info", trained.model).out

    routed = run_asr("route", own, "Add the numbers.\nsum thing 5 6", "--json")
    assert json.loads(routed.out.splitlines()[0])["route"] == "sum"

    gone = run_asr("remove", own, "sum")
    assert gone.code == 0, gone.err
    commands = [line.strip() for line in gone.out.splitlines() if line.startswith("  asr add")]
    assert commands[-1] == f"asr add {own} sum={more} --extend"
    assert not list(own.rglob("*sum*"))


def test_resume_and_how_it_is_named(own: Path, more: Path, edit_manifest) -> None:
    command = ["add", own, f"sum={more}", "--extend"]
    assert refused(*command, "--resume") == (
        "no extension of 'sum' is unfinished; leave out --resume to begin one"
    )
    assert run_asr(*command).code == 0
    again = run_asr(*command, "--resume")
    assert again.code == 0 and "extended with this data already; nothing to do" in again.out
    assert refused(*command) == (
        f"{more}: 'sum' was trained on these examples already, and they would count twice; give "
        "new ones"
    )

    def unfinished(tree: dict) -> None:  # as a kill right before the evaluation leaves it
        tree["domains"]["sum"]["extensions"][0]["status"] = "switched"

    edit_manifest(own, unfinished)
    shown = run_asr("info", own).out
    assert (
        f"unfinished: more data for sum; go on with asr add {own} sum={more} --extend --resume"
        in shown.splitlines()
    )
    assert run_asr(*command, "--resume").code == 0
    assert "unfinished" not in run_asr("info", own).out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["sum=DATA", "--from-scratch"],
            "--from-scratch goes with --extend: a new domain has nothing to start from",
        ),
        (
            ["som=DATA", "--extend"],
            "unknown domain 'som' (did you mean 'sum'?); there are: red, sum; without --extend, "
            "asr add makes a new one",
        ),
        (
            ["sum=DATA", "--extend", "adapter.init_from=red"],
            "'adapter.init_from=red' cannot be set with --extend: a new version of 'sum' keeps "
            "everything but training, dev, format, limit, eval, device, dtype",
        ),
        (
            ["sum=DATA"],
            "domain 'sum' exists in this model already; add --extend to train it on more data, or "
            "choose another name (taken: red, sum)",
        ),
        (
            ["new=DATA", "adapter.init_from=read"],
            "config: domains.new.adapter.init_from: unknown domain 'read' (did you mean 'red'?); "
            "there are: nearest, none, red, sum",
        ),
    ],
)
def test_refusals(own: Path, more: Path, arguments: list[str], message: str) -> None:
    before = (own / "manifest.json").read_bytes()
    given = [argument.replace("DATA", str(more)) for argument in arguments]
    assert refused("add", own, *given) == message
    assert (own / "manifest.json").read_bytes() == before


def test_a_new_domain_may_start_from_another(own: Path, more: Path) -> None:
    outcome = run_asr(
        "add", own, f"near={more}", "adapter.init_from=nearest", "training.max_steps=2"
    )
    assert outcome.code == 0, outcome.err
    assert "near: starts from 'sum', the nearest domain (mean scores: sum " in outcome.out
    made = entry(own, "near")
    assert (made["parent"], made["parent_sha256"]) == ("sum", entry(own)["adapter"]["sha256"])
