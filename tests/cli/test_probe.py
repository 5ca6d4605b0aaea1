"""``asr probe``: what it prints, what it writes, what of it training takes, and what it refuses."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from rich.console import Console

from asr.adapters import placement
from asr.adapters.probe.result import ProbeResult
from asr.cli.probe_files import check_out, fragment_text, write_probe
from asr.cli.probe_view import findings, short_names, show
from asr.errors import DirectoryError
from asr.train.config_file import load_config
from tests.adapters.probe.probed import measured, modules_of, result_of
from tests.cli.conftest import refused, run_asr, write_rows
from tests.tiny_models import save_tiny_base

FILES = ["placement.yaml", "probe.json", "probe.png"]
FAST = ("--device", "cpu", "--dtype", "float32", "--samples", "4", "--seeds", "2")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe")
    save_tiny_base(folder / "base")
    for domain in ("red", "sum"):
        write_rows(folder / f"{domain}.jsonl", domain, 10)
    return folder


def shown(result: ProbeResult, width: int = 80, top: int = 12) -> list[str]:
    console = Console(file=io.StringIO(), width=width, markup=False, highlight=False)
    show(result, console, top)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def said(result: ProbeResult) -> str:
    return "\n".join(findings(result, short_names(result)))


def means(**peaks: float) -> list[float]:
    """Mean energies of the twelve modules: 1 each, but for ``m8=40.0``."""
    values = [1.0] * 12
    for name, value in peaks.items():
        values[int(name[1:])] = value
    return values


# -- the whole command -----------------------------------------------------------------------------


def test_a_probe_of_two_domains(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "probe"
    data = [f"--data=red={root / 'red.jsonl'}", f"--data=sum={root / 'sum.jsonl'}"]
    outcome = run_asr("probe", root / "base", *data, *FAST, "--out", out, "--top", "3")
    assert outcome.code == 0, outcome.err
    result = ProbeResult.load(out / "probe.json")
    lines = outcome.out.splitlines()
    assert lines[0].startswith(
        f"{root / 'base'} (LlamaForCausalLM), 28 modules, 2 domains, 4 samples x 2 seeds, rank 8, "
        "alpha / rank = 2, loss on the answer, per sample: "
    )
    rows = [line.split() for line in lines if line[:3].strip() in ("1", "2", "3")]
    names = [module.name.removeprefix("model.layers.") for module in result.modules[:3]]
    assert [row[1] for row in rows] == names * 2  # at 80 columns the peers have their own table
    assert rows[0][2] == f"{result.winner.energy:.3g}"
    assert rows[0][3] == f"{100 * result.winner.share:.1f}%"
    assert rows[3][2] == f"{result.winner.alignment:.2f}"
    assert rows[3][4] == str(result.winner.kappa_rank)
    assert all(len(line) <= 80 for line in lines[2:13])
    assert sorted(path.name for path in out.iterdir()) == FILES
    written = [out / name for name in ("probe.json", "probe.png", "placement.yaml")]
    assert lines[-3:] == [f"wrote {path}" for path in written]
    assert (out / "probe.png").read_bytes().startswith(b"\x89PNG")


def test_json_is_the_result(root: Path, tmp_path: Path) -> None:
    data = f"--data=red={root / 'red.jsonl'}"
    outcome = run_asr(
        "probe", root / "base", data, *FAST, "--json", "--no-kappa", "--out", tmp_path
    )
    assert outcome.code == 0, outcome.err
    tree = json.loads(outcome.out)
    assert tree.pop("written") == [
        str(tmp_path / name) for name in ("probe.json", "probe.png", "placement.yaml")
    ]
    assert tree == json.loads((tmp_path / "probe.json").read_text())
    assert tree["left_out"] == ["KappaTune's rank: not asked for"]


def test_options_reach_the_probe(root: Path) -> None:
    options = ["--rank", "4", "--alpha", "8", "--rslora", "--init", "gaussian", "--per", "batch"]
    options += ["--loss", "full", "--max-length", "128", "--batch-size", "3", "--seed", "5"]
    outcome = run_asr("probe", root / "base", *FAST, *options, "--json")
    assert outcome.code == 0, outcome.err
    tree = json.loads(outcome.out)
    assert tree["settings"] == {
        **{"rank": 4, "alpha": 8.0, "use_rslora": True, "init": "gaussian", "per": "batch"},
        **{"loss": "full", "samples": 4, "seeds": 2, "max_length": 128, "batch_size": 3},
        **{"seed": 5, "dtype": "float32", "quantisation": None},
    }
    assert tree["generic_text"]


def test_without_data_it_says_how_far_to_trust_it(root: Path) -> None:
    outcome = run_asr("probe", root / "base", *FAST)
    assert outcome.code == 0, outcome.err
    assert outcome.out.endswith(
        "\nnothing was written; --out DIR keeps this as probe.json, a heat map, and a config "
        "fragment for asr train\n"
    )
    assert (
        "warning: no data was given: probed on 50 short exchanges of our own. Which module leads "
        "is reported to be a matter of the architecture more than of the task; margins and shares "
        "are of this text, not of yours. Give your own with --data NAME=DATA"
    ) in outcome.out


# -- words -----------------------------------------------------------------------------------------


def test_a_wide_terminal_has_one_table() -> None:
    result = result_of()
    wide = shown(result, 120)
    header = " ".join(wide[2:4])
    assert all(word in header for word in ("energy", "alignment", "KappaTune", "parameters"))
    ranked = [line for line in wide if line[:3].strip().isdigit()]
    assert len(ranked) == 12
    assert "full names begin with model.layers.; " in "\n".join(wide)
    assert any(line.endswith("2 more rows: --top 12") for line in shown(result, 120, top=10))


def test_a_clear_winner() -> None:
    domain = measured(means=means(m8=40.0, m11=10.0), noise=0.05, alignment=[1.0] * 12)
    text = said(result_of([domain]))
    z = result_of([domain]).z
    assert (
        "winner: model.layers.2.mlp.down_proj (layer 2), 66.7% of the energy, 4.00 times the "
        f"runner-up model.layers.3.mlp.down_proj (paired over samples: z = {z:.1f})"
    ) in text.replace(f"{100 * result_of([domain]).top1_share:.1f}%", "66.7%").replace(
        f"{result_of([domain]).margin:.2f}", "4.00"
    )
    assert "within noise" not in text
    assert (
        "one pass: 2.mlp.down_proj lies at or above the default router layer 2, so that routing "
        "takes one pass with it; unrestricted it is the winner too"
    ) in text
    assert "without the first token the winner is the same" in text
    assert "the same in all" not in text  # of one domain that says nothing


def test_within_noise_is_said_with_its_reason() -> None:
    close = measured(means=means(m8=40.0, m11=39.9), noise=0.4, seeds=1)
    result = result_of([close])
    assert (
        f"warning: the top two are within noise: |z| = {abs(result.z or 0):.1f} is below 2; raise "
        "--samples or --seeds, or take either"
    ) in said(result)
    alike = measured(means=means(m8=40.0, m11=39.9))
    assert (
        "warning: the top two are within noise: the samples are all alike, so that there is "
        "nothing to judge it by; raise --samples or --seeds, or take either"
    ) in said(result_of([alike]))
    for per, what in (("sample", "samples"), ("batch", "batches")):
        single = measured(means=means(m8=40.0), samples=1, seeds=1, whole=True)
        assert (
            f"within noise: there are too few {what} to tell; give more examples, or take either"
        ) in said(result_of([single], per=per))
    changing = result_of().model_copy(
        update={
            "within_noise": True,
            "winners_by_seed": ("model.layers.2.mlp.down_proj", "model.layers.3.mlp.up_proj"),
        }
    )
    assert (
        "within noise: the winner changes between seeds (2.mlp.down_proj, 3.mlp.up_proj); raise"
    ) in said(changing)


def test_parameters_are_those_that_train() -> None:
    for init, count in (("pissa", 640), ("mica", 384)):  # MiCA trains A (8 x 48) alone
        result = result_of(init=init)
        assert result.parameters(result.winner) == count
        assert f"parameters: {count} on that module at rank 8, " in said(result)
        row = next(line.split() for line in shown(result) if line.startswith(" 1 "))
        assert row[-1] == str(count)


def test_domains_that_agree_and_that_do_not() -> None:
    first = measured("a", means=means(m8=40.0), noise=0.1)
    second = measured("b", means=means(m11=40.0), noise=0.1, seed=1)
    third = measured("c", means=means(m8=30.0), noise=0.1, seed=2)
    agreed = result_of([first, third])
    assert "the winner is the same in all 2 domains" in said(agreed)
    result = result_of([first, second, third])
    assert (
        "the winner is not the same in every domain: 2.mlp.down_proj in a, c; 3.mlp.down_proj in b"
    ) in said(result).splitlines()
    even = measured("d", means=means(m8=40.0, m11=40.01), noise=0.4, seeds=1, seed=4)
    assert said(result_of([first, second, even])).count("; within noise in d\n") == 1
    lines = shown(result)
    start = next(i for i, line in enumerate(lines) if line.startswith("domain "))
    cells = [line.split() for line in lines[start + 1 : start + 4]]
    assert [row[:2] for row in cells] == [
        ["a", "2.mlp.down_proj"],
        ["b", "3.mlp.down_proj"],
        ["c", "2.mlp.down_proj"],
    ]
    assert [row[4] for row in cells] == [f"{domain.margin:.2f}x" for domain in result.domains]


def test_a_winner_below_the_router_layer() -> None:
    domain = measured(means=means(m2=40.0, m8=20.0, m11=10.0))
    assert (
        "one pass: of layers >= 2 (the default router layer) 2.mlp.down_proj leads with 25.3%, "
        "2.00 times 3.mlp.down_proj; unrestricted 0.mlp.down_proj wins with 50.6%, which would "
        "take two passes"
    ) in said(result_of([domain]))
    deep = 8 * (64 + 80 + 80) * 2
    assert (
        f"parameters: 640 on that module at rank 8, {640 / deep:.1%} of the {deep:,} of all "
        "modules of layers >= 2"
    ) in said(result_of([domain]))


def test_the_first_token() -> None:
    plain = measured(means=means(m8=40.0, m11=20.0))
    rest = plain.energy.copy()
    rest[:, 8] *= 0.25
    domain = measured(means=means(m8=40.0, m11=20.0), without_first=rest)
    assert (
        "without the first token (massive activations live there) 3.mlp.down_proj leads: 75.0% of "
        "the winner's energy comes from that token"
    ) in said(result_of([domain]))


def test_where_the_peers_would_go() -> None:
    gradient = measured(means=means(m8=40.0)).energy.copy()
    gradient[:, 3] = 1e4
    alignment = [1.5, 0.5, 2.0] * 4
    kappa = [12, *range(1, 12)]
    domain = measured(means=means(m8=40.0), gradient=gradient, alignment=alignment)
    text = said(result_of([domain], kappa=kappa))
    assert (
        "PLoP would adapt the module types of the lowest mean alignment in every layer: up_proj "
        "0.50, q_proj 1.50; that disagrees with PAGE on the type (down_proj: 2.00)"
    ) in text
    low = measured(means=means(m8=40.0), alignment=[1.0, 1.5, 0.9] * 4)
    assert "down_proj 0.90, q_proj 1.00; that agrees with PAGE on the type\n" in said(
        result_of([low])
    )
    assert (
        "gradient norm per parameter would take the highest, 1.self_attn.q_proj: PAGE ranks it 5 "
        "of 12 (2.0%)"
    ) in text
    assert (
        "KappaTune would begin at the lowest condition number, 0.mlp.up_proj: PAGE ranks it 3 of "
        "12 (2.0%)"
    ) in text
    agreeing = result_of([measured(means=means(m8=40.0))], kappa=[*range(2, 10), 1, 10, 11, 12])
    assert "KappaTune would begin at the lowest condition number, 2.mlp.down_proj: PAGE agrees" in (
        said(agreeing)
    )


def test_what_is_left_out_is_said() -> None:
    assert "left out: experts: 3-D parameters" in said(
        result_of(left_out=["experts: 3-D parameters"])
    )
    shallow = said(result_of(router_layer=None))
    assert "the base is too shallow to route in: a router needs at least 3 layers" in shallow


# -- files -----------------------------------------------------------------------------------------


def merged(result: ProbeResult, folder: Path) -> Any:
    """The training config that has the fragment in it, through the reader of training."""
    config = folder / "c.yaml"
    config.write_text(
        "base: tiny\n" + fragment_text(result) + "domains:\n  legal: {train: legal.jsonl}\n"
    )
    return load_config(config)


def test_training_takes_the_fragment(tmp_path: Path) -> None:
    result = result_of()
    adapter = merged(result, tmp_path).domains["legal"].adapter
    assert adapter.model_dump(mode="json")["placement"] == {"modules": [result.winner.name]}
    assert (adapter.rank, adapter.alpha, adapter.use_rslora) == (8, 16, False)
    assert adapter.init_lora_weights is True
    other = result_of(rank=4, alpha=2.5, use_rslora=True, init="pissa_niter_4")
    adapter = merged(other, tmp_path).domains["legal"].adapter
    assert (adapter.rank, adapter.alpha, adapter.use_rslora) == (4, 2.5, True)
    assert adapter.init_lora_weights == "pissa_niter_4"


def test_the_fragment_keeps_to_one_pass_and_names_the_other(tmp_path: Path) -> None:
    result = result_of([measured(means=means(m2=40.0, m8=20.0), noise=0.1)])
    text = fragment_text(result)
    assert yaml.safe_load(text) == {
        "adapter": {
            "placement": {"modules": [modules_of()[8].name]},
            "rank": 8,
            "alpha": 16,
        }
    }
    assert text.splitlines()[-2:] == [
        f"# Most of all ({result.top1_share:.1%}), below the router layer, so that routing takes "
        "two passes:",
        '#  placement: {modules: ["model.layers.0.mlp.down_proj"]}',
    ]
    shallow = result_of([measured(means=means(m2=40.0))], router_layer=None)
    assert yaml.safe_load(fragment_text(shallow))["adapter"]["placement"]["modules"] == [
        modules_of()[2].name
    ]


def test_the_fragment_stays_yaml_whatever_the_base_is_called() -> None:
    result = result_of()
    named = result.base.model_copy(update={"name": "a\nbase: 'x': #"})
    tree = yaml.safe_load(fragment_text(result.model_copy(update={"base": named})))
    assert list(tree) == ["adapter"]


def test_an_earlier_probe_is_replaced_and_others_files_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    write_probe(result_of(), tmp_path)
    later = result_of([measured(means=means(m2=40.0), noise=0.1)], rank=4)
    write_probe(later, tmp_path)
    assert ProbeResult.load(tmp_path / "probe.json") == later
    assert "rank: 4" in (tmp_path / "placement.yaml").read_text()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*FILES, "notes.txt"])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "content", [b"", b"a: {rank: 2}", b'{"a": 1}', b"\x89PNG others", b"[" * 9**5]
)
def test_files_of_others_are_refused_before_anything_is_measured(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    message = refused("probe", "no such base", "--out", tmp_path)
    assert message == (
        f"{tmp_path / name} was not written by asr probe and is not replaced; move it, or choose "
        "another --out"
    )
    with pytest.raises(DirectoryError):
        write_probe(result_of(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == content


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    assert refused("probe", "no such base", "--out", tmp_path / "x" / "y" / "z") == (
        f"--out {tmp_path / 'x' / 'y' / 'z'}: {tmp_path / 'x'} is a file; name another folder"
    )
    long = tmp_path / ("a" * 300)
    message = refused("probe", "no such base", "--out", long)
    assert message == f"--out {long} cannot be made: File name too long; name another folder"
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(DirectoryError, match="cannot be made: File exists; name another folder"):
        write_probe(result_of(), tmp_path / "link")


def test_a_file_as_out(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    assert refused("probe", "no such base", "--out", tmp_path / "x") == (
        f"--out {tmp_path / 'x'} is a file; name a folder"
    )
    check_out(tmp_path)  # an empty folder is fine
    check_out(tmp_path / "none")


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--data", "red.jsonl"],
            "--data 'red.jsonl' is not NAME=DATA; write e.g. legal=legal.jsonl",
        ),
        (["--data", "red="], "--data 'red=' is not NAME=DATA; write e.g. legal=legal.jsonl"),
        (["--data", "=x"], "--data '=x' is not NAME=DATA; write e.g. legal=legal.jsonl"),
        (
            ["--data", "a=x.jsonl", "--data", "a=y.jsonl"],
            "--data names 'a' twice; give one file for it",
        ),
        (
            ["--data", "Red Tape=x.jsonl"],
            "domain name 'Red Tape' is not allowed: use lower-case letters, digits, '-' and '_', "
            "starting with a letter or a digit, at most 64 characters (try 'red-tape')",
        ),
        (
            ["--samples", "1"],
            "samples is 1; a probe needs at least 2 to say how sure its result is",
        ),
        (["--top", "0"], "--top is 0; it must be at least 1"),
        (["--per", "rows"], "unknown per 'rows'; there are: batch, sample"),
        (
            ["--dtype", "float8"],
            "unknown dtype 'float8' (did you mean 'float32'?); there are: auto, bfloat16, float16, "
            "float32",
        ),
        (
            ["--quantisation", "none"],
            "unknown quantisation 'none'; there are: int8, nf4",
        ),
        (
            ["--init", "false"],
            "init_lora_weights false is refused: it starts with a random change of every answer; "
            "it is meant for debugging PEFT",
        ),
        (
            ["--format", "csv", "--data", "a=x.jsonl"],
            "unknown data format 'csv'; there are: alpaca, messages, prompt-completion, sharegpt, "
            "text, trace",
        ),
        (["--format", "text"], "--format is for data files; name them with --data NAME=DATA"),
    ],
)
def test_mistakes_in_the_command(tmp_path: Path, arguments: list[str], message: str) -> None:
    out = tmp_path / "out"
    assert refused("probe", "no such base", *arguments, "--out", out) == message
    assert not out.exists()


def test_data_that_cannot_be_used_leaves_nothing_behind(root: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"prompt": "a", "completion": ""}\n')
    out = tmp_path / "out"
    message = refused("probe", root / "base", "--data", f"a={empty}", "--out", out)
    assert message.startswith(f"{empty}:1: ")
    one = write_rows(tmp_path / "one.jsonl", "red", 1)
    assert refused("probe", root / "base", "--data", f"a={one}", "--out", out, *FAST) == (
        "a: one.jsonl has 1 row to probe with; at least 2 are needed to say how sure the result is"
    )
    assert not out.exists()


def test_a_base_without_candidates(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What a candidate is, as the probe sees it: none of the base's modules is one.
    monkeypatch.setattr(placement, "nn", SimpleNamespace(Linear=type("NoModule", (), {})))
    message = refused("probe", root / "base", *FAST)
    assert message == (
        "LlamaForCausalLM has no linear module in its decoder layers; LoRA needs nn.Linear or "
        "Conv1D modules, choose another base"
    )
