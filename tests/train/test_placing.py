"""Dominant placements: decided by a probe before the training, and never again."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asr
from asr.adapters import LoraSettings, linear_modules, load_adapter
from asr.adapters.probe.page import PageSettings, page_energies
from asr.adapters.probe.result import ProbeResult
from asr.adapters.probe.run import probe_placement
from asr.base.fingerprint import tensors_hash
from asr.base.load import LoadedBase, load_base
from asr.errors import AdapterError, ConfigError, DataError
from asr.model.directory import ModelDirectory, file_sha256
from asr.model.manifest import Manifest
from asr.train.adapter import domain_seed
from asr.train.extend import extend_domain
from asr.train.extension_config import extension_config
from asr.train.placing import Placed, Rows, place
from asr.train.prepare import PreparedDomain, prepare_domains
from asr.train.remove import remove_domain
from tests.train.conftest import Recorder, Workshop, assert_equal_runs, write_domain

ADVICE = "; undo the change, or train into a new folder"
ASKED = {"anywhere": False, "top": None, "budget": None, "probe": None, "samples": 32}


class Stop(Exception):
    """What ends a run in these tests."""


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> LoadedBase:
    return load_base(str(tiny_base), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def made(
    tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Workshop, ModelDirectory, Recorder]:
    """A model of two domains, each with its dominant module; no test changes it."""
    shop = Workshop(tiny_base, tmp_path_factory.mktemp("dominant"))
    shop.settings |= {"router__background": 0, "adapter__placement": "dominant"}
    watcher = Recorder()
    return shop, shop.train("m", ["red", "sum"], watcher=watcher), watcher


@pytest.fixture
def model(made: Any, tmp_path: Path) -> ModelDirectory:
    return ModelDirectory(shutil.copytree(made[1].path, tmp_path / "m"))


@pytest.fixture
def no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on a probe is an error."""

    def probe(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("probed again")

    monkeypatch.setattr("asr.train.placing.page_energies", probe)


def prepared(
    shop: Workshop, base: LoadedBase, placement: Any = "dominant", name: str = "red", **changes: Any
) -> tuple[PreparedDomain, list[str]]:
    said: list[str] = []
    config = shop.config([name], adapter__placement=placement, **changes)
    (domain,) = prepare_domains(config, base, 2, 1, say=said.append)
    return domain, said


def measured(domain: PreparedDomain, base: LoadedBase, samples: int = 32) -> Any:
    """Energies of (a sample of the domain's rows) x (all modules), made apart."""
    assert domain.data is not None
    rows = domain.data.encoded.rows
    order = list(range(len(rows)))
    random.Random(domain_seed(0, domain.name)).shuffle(order)
    return page_energies(
        base.model,
        [rows[i] for i in order[:samples]],
        linear_modules(base.model),
        PageSettings(lora=domain.lora),
        pad_token_id=base.tokenizer.pad_token_id,
    )


def test_the_module_of_the_largest_energy_from_the_router_layer_up(
    shop: Workshop, base: LoadedBase
) -> None:
    frozen = tensors_hash(base.model)
    domain, said = prepared(shop, base)
    probe = measured(domain, base)
    means = probe.energy.mean(axis=0)
    deep = [i for i, m in enumerate(probe.modules) if m.layer >= 2]
    first, second = sorted(deep, key=lambda i: -means[i])[:2]
    assert domain.placement.modules == (probe.modules[first],)
    assert domain.placement.passes == "one"
    assert domain.data is not None
    found = domain.placed.found
    overall = probe.modules[int(np.argmax(means))]
    assert overall.layer < 2  # so that the restriction has an effect here
    difference = probe.energy[:, first] - probe.energy[:, second]
    z = difference.mean() / (difference.std(ddof=1) / len(difference) ** 0.5)
    assert found == {
        "share": pytest.approx(means[first] / means.sum()),
        "margin": pytest.approx(means[first] / means[second]),
        "z": pytest.approx(z),
        "unrestricted": overall.name,
        "data": domain.data.sha256,
    }
    assert domain.placed.asked == ASKED
    assert domain.placement_record() == {
        "kind": "dominant",
        "modules": [probe.modules[first].name],
        "rank": 2,
        "alpha": 4.0,
        "dropout": 0.0,
        "asked": ASKED,
        "found": found,
    }
    noise = f", within noise (z {z:.1f})" if abs(z) < 2 else ""
    assert said == [
        f"red: dominant module {probe.modules[first].name}; {found['share']:.1%} of the energy (32 "
        f"training rows); {found['margin']:.2f} times the runner-up {probe.modules[second].name}"
        f"{noise}; the strongest of all layers is {overall.name} ({means.max() / means.sum():.1%}),"
        " below router layer 2: anywhere: true takes it, in two passes"
    ]
    assert domain.settings is not None and domain.settings.learning_rate == 4.2e-2  # of one module
    assert tensors_hash(base.model) == frozen


def test_only_a_clear_lead_is_no_noise(shop: Workshop, base: LoadedBase) -> None:
    seen = set()
    for samples in (2, 4, 8, 32):
        for anywhere in (False, True):
            asked = {"dominant": {"samples": samples, "anywhere": anywhere}}
            domain, (line,) = prepared(shop, base, asked)
            noise = abs(domain.placed.found["z"]) < 2
            assert ("within noise (z " in line) is noise
            assert f"({samples} training rows)" in line
            seen.add(noise)
    assert seen == {True, False}


def test_samples_are_the_first_of_a_shuffle(shop: Workshop, base: LoadedBase) -> None:
    domain, _ = prepared(shop, base, {"dominant": {"samples": 5}})
    means = measured(domain, base, 5).energy.mean(axis=0)
    modules = linear_modules(base.model)
    deep = [i for i, m in enumerate(modules) if m.layer >= 2]
    best = max(deep, key=lambda i: means[i])
    assert domain.placement.modules == (modules[best],)
    assert domain.placed.found["share"] == pytest.approx(means[best] / means.sum())


def test_the_adapters_own_settings_enter(shop: Workshop, base: LoadedBase) -> None:
    domain, _ = prepared(shop, base, adapter__init_lora_weights="pissa", adapter__rank=3)
    means = measured(domain, base).energy.mean(axis=0)
    assert domain.lora == LoraSettings(3, 4.0, init_lora_weights="pissa")
    modules = linear_modules(base.model)
    deep = [i for i, m in enumerate(modules) if m.layer >= 2]
    assert domain.placement.modules == (modules[max(deep, key=lambda i: means[i])],)


def test_anywhere_is_said_to_take_two_passes_and_answers(shop: Workshop) -> None:
    watcher = Recorder()
    out = shop.train(
        "m", ["red", "sum"], watcher=watcher, adapter__placement={"dominant": {"anywhere": True}}
    )
    manifest = Manifest.load(out.path)
    assert out.verify(manifest) == []
    for name, entry in manifest.domains.items():
        (module,) = entry.placement["modules"]
        assert module == entry.placement["found"]["unrestricted"]
        assert int(module.split(".")[2]) < 2
        assert entry.passes == "two"
        (line,) = [line for line in watcher.said if line.startswith(f"{name}: dominant module")]
        assert line.endswith("; below router layer 2: this domain takes two passes")
        assert f"{name}: dominant module {module}; " in line
        assert "anywhere: true" not in line
    routed = asr.RoutedModel.from_pretrained(out.path, device="cpu", dtype="float32")
    answers = routed.generate(["Say the colour of it.\nred 3 9", "Add the numbers.\nsum 1 2"])
    assert [answer.adapter for answer in answers] == ["red", "sum"]


def test_the_best_few(shop: Workshop, base: LoadedBase) -> None:
    domain, (line,) = prepared(shop, base, {"dominant": {"top": 3}})
    means = measured(domain, base).energy.mean(axis=0)
    modules = linear_modules(base.model)
    deep = [i for i, m in enumerate(modules) if m.layer >= 2]
    best = sorted(deep, key=lambda i: -means[i])[:3]
    assert domain.placement.modules == tuple(modules[i] for i in sorted(best))
    assert domain.placement.ranks is None
    assert line.startswith(f"red: the 3 dominant modules {', '.join(domain.placement.names)}; ")
    assert f"; {modules[best[2]].name} has " in line


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"init_lora_weights": "olora", "use_rslora": True},
        {"init_lora_weights": "orthogonal"},
    ],
    ids=str,
)
def test_a_budget_end_to_end(shop: Workshop, own: dict[str, Any]) -> None:
    watcher = Recorder()
    shop.settings |= {"router__background": 0, "keep_eval": False}
    domains: dict[str, dict[str, Any]] = {
        "red": {"adapter": {"placement": {"dominant": {"budget": 1500}}, **own}},
        "sum": {},
    }
    out = shop.train("m", domains, watcher=watcher)
    manifest = Manifest.load(out.path)
    assert out.verify(manifest) == []
    entry = manifest.domains["red"]
    ranks = entry.placement["ranks"]
    assert len(set(ranks)) > 1
    stored = load_adapter(out.adapter("red"))
    times = 2 if own.get("init_lora_weights") in ("pissa", "olora") else 1
    unit = 2 if own.get("init_lora_weights") == "orthogonal" else 1
    assert [stored.rank_of(name) for name in entry.placement["modules"]] == [
        times * rank for rank in ranks
    ]
    assert entry.adapter is not None and entry.adapter.rank == times * max(ranks) == stored.rank
    trained = entry.adapter.parameters // times
    assert sum(t.numel() for t in stored.tensors.values()) == times * trained
    # the cheapest module of the tiny base takes 48 parameters a rank, the dearest 80
    assert 1500 - 80 * unit < trained <= 1500
    (line,) = [line for line in watcher.said if line.startswith("red: ")]
    assert f"{len(ranks)} dominant modules, ranks {min(ranks)} to {max(ranks)}, the" in line
    assert f"; {trained:,} of 1,500 parameters; " in line
    if times == 2:
        assert any(line.endswith("saved as plain LoRA of twice its ranks") for line in watcher.said)
    routed = asr.RoutedModel.from_pretrained(out.path, device="cpu", dtype="float32")
    answers = routed.generate(["Say the colour of it.\nred 3 9", "Add the numbers.\nsum 1 2"])
    assert [answer.adapter for answer in answers] == ["red", "sum"]


# -- decided once ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "placement",
    [{"dominant": {"top": 2, "anywhere": True}}, {"dominant": {"budget": 700}}],
    ids=str,
)
def test_a_stopped_run_goes_on_with_what_was_decided(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch, placement: Any
) -> None:
    shop.settings |= {"adapter__placement": placement, "router__background": 0}
    whole = shop.train("whole", ["red", "sum"])

    def at(name: str, step: int) -> None:
        if (name, step) == ("red", 3):
            raise Stop

    with pytest.raises(Stop):
        shop.train("cut", ["red", "sum"], watcher=Recorder(at))
    ledger = Manifest.load(shop.folder / "cut")
    assert [entry.status for entry in ledger.domains.values()] == ["training", "pending"]
    # that of the domain whose turn is to come stands too
    ready = Manifest.load(whole.path)
    for name, entry in ledger.domains.items():
        assert entry.placement == ready.domains[name].placement
        assert entry.passes == ready.domains[name].passes

    def probe(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("probed again")

    monkeypatch.setattr("asr.train.placing.page_energies", probe)
    cut = shop.train("cut", ["red", "sum"], resume=True)
    assert_equal_runs(whole, cut)


@pytest.mark.usefixtures("no_probe")
def test_a_finished_domain_needs_neither_probe_nor_data(
    made: Any, model: ModelDirectory, tmp_path: Path
) -> None:
    shop = made[0]
    for name in ("red", "sum"):
        shop.data(name).rename(tmp_path / name)
    try:
        shop.train(str(model.path), {n: {"train": str(shop.folder / f"{n}.jsonl")} for n in
                   ("red", "sum")}, resume=True)  # fmt: skip
    finally:
        for name in ("red", "sum"):
            (tmp_path / name).rename(shop.folder / f"{name}.jsonl")
    assert_equal_runs(made[1], model)


@pytest.mark.usefixtures("no_probe")
def test_an_extension_keeps_the_modules(made: Any, model: ModelDirectory, tmp_path: Path) -> None:
    data = write_domain(tmp_path / "more.jsonl", "turn")
    before = Manifest.load(model.path)
    config = extension_config(before, "sum", data)
    after = extend_domain(config, model.path).domains["sum"]
    assert after.placement == before.domains["sum"].placement
    assert after.adapter is not None and after.adapter.version == 2
    modules = load_adapter(model.adapter("sum", 2)).modules
    assert list(modules) == after.placement["modules"]


def test_a_new_domain_is_probed_and_the_old_one_is_not(
    made: Any, model: ModelDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        probed.append(len(args[1]))
        return page_energies(*args, **kwargs)

    monkeypatch.setattr("asr.train.placing.page_energies", counted)
    before = Manifest.load(model.path)
    made[0].train(str(model.path), ["red", "sum", "turn"], resume=True)
    after = Manifest.load(model.path)
    assert probed == [32]
    assert after.domains["turn"].placement["asked"] == ASKED
    for name in before.domains:
        assert after.domains[name] == before.domains[name]
    remove_domain(model.path, "turn")
    assert list(Manifest.load(model.path).domains) == ["red", "sum"]


@pytest.mark.usefixtures("no_probe")
@pytest.mark.parametrize(
    ("placement", "message"),
    [
        (
            {"dominant": {"top": 2}},
            "cannot resume: domain 'red' is finished and placement.asked.top changed: null -> 2",
        ),
        (
            {"dominant": {"anywhere": True}},
            "cannot resume: domain 'red' is finished and placement.asked.anywhere changed: false "
            "-> true",
        ),
        (
            {"dominant": {"samples": 8}},
            "cannot resume: domain 'red' is finished and placement.asked.samples changed: 32 -> 8",
        ),
    ],
)
def test_another_request_for_a_finished_domain_is_refused(
    made: Any, model: ModelDirectory, placement: Any, message: str
) -> None:
    own = {"red": {"adapter": {"placement": placement}}, "sum": {}}
    with pytest.raises(ConfigError) as caught:
        made[0].train(str(model.path), own, resume=True)
    assert str(caught.value) == message + ADVICE


@pytest.mark.usefixtures("no_probe")
def test_another_kind_for_a_finished_domain_is_refused(made: Any, model: ModelDirectory) -> None:
    shop = made[0]
    module = Manifest.load(model.path).domains["red"].placement["modules"]
    own: dict[str, dict[str, Any]] = {"red": {"adapter": {"placement": {"modules": module}}}}
    with pytest.raises(ConfigError) as caught:
        shop.train(str(model.path), {**own, "sum": {}}, resume=True)
    assert str(caught.value) == (
        "cannot resume: domain 'red' is finished and placement.kind changed: dominant -> modules"
        + ADVICE
    )


def test_a_ledger_without_dominant_placements_refuses_one(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = made[0]
    out = str(tmp_path / "deep")
    deep = {"red": {"adapter": {"placement": "deep"}}}
    shop.train(out, deep)
    record = Manifest.load(Path(out)).domains["red"].placement
    assert set(record) == {"kind", "modules", "rank", "alpha", "dropout"}
    monkeypatch.setattr("asr.train.placing.page_energies", None)
    with pytest.raises(ConfigError) as caught:
        shop.train(out, ["red"], resume=True)
    assert str(caught.value) == (
        "cannot resume: domain 'red' is finished and placement.kind changed: deep -> dominant"
        + ADVICE
    )


def test_what_is_not_trained_yet_is_decided_anew_when_it_changes(shop: Workshop) -> None:
    shop.settings |= {"adapter__placement": "dominant", "router__background": 0}

    def at(name: str, step: int) -> None:
        if step == 3:
            raise Stop

    def stopped(**changes: Any) -> dict[str, Any]:
        watcher = Recorder(at)
        with pytest.raises(Stop):
            shop.train("m", ["red", "sum"], resume=True, watcher=watcher, **changes)
        probes = [line.partition(":")[0] for line in watcher.said if "dominant module" in line]
        placements = {
            name: entry.placement
            for name, entry in Manifest.load(shop.folder / "m").domains.items()
        }
        return {"probes": probes, "placements": placements}

    first = stopped()
    assert first["probes"] == ["red", "sum"]
    assert stopped() == first | {"probes": []}
    assert stopped(adapter__placement={"dominant": {"top": 2}})["probes"] == ["red", "sum"]
    again = stopped()
    assert again == first
    assert stopped(adapter__use_rslora=True)["probes"] == ["red", "sum"]
    assert stopped() == first
    write_domain(shop.folder / "sum.jsonl", "turn")
    changed = stopped()
    assert changed["probes"] == ["sum"]
    assert changed["placements"]["red"] == first["placements"]["red"]
    assert (
        changed["placements"]["sum"]["found"]["data"]
        != (first["placements"]["sum"]["found"]["data"])
    )
    assert stopped(seed=5)["probes"] == ["red", "sum"]
    assert stopped(adapter__placement="deep")["placements"]["sum"] == {}


@pytest.mark.usefixtures("no_probe")
def test_all_processes_take_what_the_main_process_decided(shop: Workshop, base: LoadedBase) -> None:
    modules = linear_modules(base.model)
    there = Placed(asr.adapters.Placement("dominant", (modules[-1],), 2), ASKED, {"share": 0.5})
    config = shop.config(["red"], adapter__placement="dominant")
    (domain,) = prepare_domains(config, base, 2, 2, on_main=lambda work: there)
    assert domain.placed == there


@pytest.mark.usefixtures("no_probe")
def test_recorded_modules_that_the_base_does_not_have(
    made: Any, base: LoadedBase, shop: Workshop
) -> None:
    entry = Manifest.load(made[1].path).domains["red"].model_copy(deep=True)
    entry.placement["modules"] = ["model.layers.3.mlp.gone"]
    adapter = shop.config(["red"], adapter__placement="dominant").domains["red"].adapter
    with pytest.raises(ConfigError) as caught:
        place("red", base, adapter, LoraSettings(2), 2, Rows([], "", 0), entry)
    assert str(caught.value) == (
        f"cannot go on: domain 'red' has its adapter on 'model.layers.3.mlp.gone', which "
        f"'{base.name}' does not have; give back the base that it was trained on"
    )


# -- from a probe's file ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def probe(made: Any) -> ProbeResult:
    shop = made[0]
    data = {"red": shop.data("red")}
    return probe_placement(str(shop.base), data, samples=4, seeds=2, device="cpu", kappa=False)


def probe_file(path: Path, probe: ProbeResult, best: str) -> Path:
    """The probe with ``best`` in the first place, and energies that halve from place to place."""
    ranked = sorted(probe.modules, key=lambda score: score.name != best)
    total = sum(2.0**-i for i in range(len(ranked)))
    scores = tuple(
        score.model_copy(update={"energy": 2.0**-i, "share": 2.0**-i / total})
        for i, score in enumerate(ranked)
    )
    probe.model_copy(update={"modules": scores}).save(path)
    return path


@pytest.mark.usefixtures("no_probe")
def test_a_probes_file_decides_instead(
    shop: Workshop, base: LoadedBase, probe: ProbeResult, tmp_path: Path
) -> None:
    best = "model.layers.3.self_attn.o_proj"
    path = probe_file(tmp_path / "probe.json", probe, best)
    domain, (line,) = prepared(shop, base, {"dominant": {"probe": str(path)}})
    assert domain.placement.names == [best]
    assert domain.placed.asked == ASKED | {"probe": file_sha256(path)}
    assert domain.placed.found["data"] is None
    assert domain.placed.found["share"] == pytest.approx(0.5)
    assert domain.placed.found["margin"] == pytest.approx(2 ** domain_rank(path, base))
    assert line.startswith(
        f"red: dominant module {best}; 50.0% of the energy (probe.json of red); "
    )


def domain_rank(path: Path, base: LoadedBase) -> int:
    """Places between the best and the next module from the router layer up."""
    scores = ProbeResult.load(path).modules
    deep = [i for i, score in enumerate(scores) if score.layer >= 2]
    return deep[1] - deep[0]


def test_the_file_may_move_or_vanish_once_the_domain_is_finished(
    shop: Workshop, probe: ProbeResult, tmp_path: Path
) -> None:
    shop.settings["router__background"] = 0
    path = probe_file(tmp_path / "probe.json", probe, "model.layers.3.self_attn.o_proj")
    out = shop.train("m", ["red"], adapter__placement={"dominant": {"probe": str(path)}})
    moved = path.rename(tmp_path / "moved.json")
    for there in (moved, path):
        shop.train(
            "m", ["red"], resume=True, adapter__placement={"dominant": {"probe": str(there)}}
        )
    other = probe_file(tmp_path / "other.json", probe, "model.layers.2.self_attn.o_proj")
    with pytest.raises(ConfigError, match=r"placement\.asked\.probe changed: \w{12}\.\.\. -> "):
        shop.train(
            "m", ["red"], resume=True, adapter__placement={"dominant": {"probe": str(other)}}
        )
    assert Manifest.load(out.path).domains["red"].placement["modules"] == [
        "model.layers.3.self_attn.o_proj"
    ]


def test_a_probe_of_another_base(
    shop: Workshop, base: LoadedBase, probe: ProbeResult, tmp_path: Path
) -> None:
    path = probe_file(tmp_path / "probe.json", probe, "model.layers.3.self_attn.o_proj")
    tree = json.loads(path.read_text())
    tree["base"] |= {"name": "other-1b", "fingerprint": "ef" * 32}
    path.write_text(json.dumps(tree))
    with pytest.raises(AdapterError) as caught:
        prepared(shop, base, {"dominant": {"probe": str(path)}})
    assert str(caught.value).startswith(
        f"the probe is of base 'other-1b' (fingerprint efefefefefef), not of '{base.name}' ("
    )


@pytest.mark.parametrize(
    ("change", "wrong", "problem"),
    [
        (lambda scores: scores[1:], 0, "missing"),
        (lambda scores: [*scores, scores[3]], 3, "there twice"),
        (
            lambda scores: [{**scores[0], "name": "a.layers.0.b"}, *scores[1:]],
            "a.layers.0.b",
            "unknown",
        ),
    ],
)
def test_a_probe_with_other_modules(
    shop: Workshop,
    base: LoadedBase,
    probe: ProbeResult,
    tmp_path: Path,
    change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]],
    wrong: int | str,
    problem: str,
) -> None:
    tree = json.loads(probe.to_json())
    name = wrong if isinstance(wrong, str) else tree["modules"][wrong]["name"]
    tree["modules"] = change(tree["modules"])
    path = tmp_path / "probe.json"
    path.write_text(json.dumps(tree))
    with pytest.raises(AdapterError) as caught:
        prepared(shop, base, {"dominant": {"probe": str(path)}})
    assert str(caught.value) == (
        f"{path}: the modules are not those of '{base.name}': '{name}' is {problem}; it was "
        "edited or damaged, run asr probe again"
    )


def test_a_probe_for_another_start_is_taken_and_said(
    shop: Workshop, base: LoadedBase, probe: ProbeResult, tmp_path: Path
) -> None:
    path = probe_file(tmp_path / "probe.json", probe, "model.layers.3.self_attn.o_proj")
    asked = {"dominant": {"probe": str(path)}}
    _, (line,) = prepared(shop, base, asked, adapter__init_lora_weights="gaussian")
    assert "(probe.json of red, made for init_lora_weights true, not gaussian)" in line


def test_a_probe_that_is_not_there(shop: Workshop) -> None:
    with pytest.raises(ConfigError) as caught:
        shop.train("m", ["red"], adapter__placement={"dominant": {"probe": "/nowhere/probe.json"}})
    assert str(caught.value) == (
        "config: domains.red.adapter.placement.dominant.probe: /nowhere/probe.json does not exist"
    )
    assert not (shop.folder / "m").exists() or not any((shop.folder / "m").glob("manifest*"))


def test_a_copy_needs_the_same_modules_and_ranks(
    shop: Workshop, base: LoadedBase, probe: ProbeResult
) -> None:
    probe.save(shop.folder / "probe.json")
    shop.settings |= {"router__background": 0, "keep_eval": False}

    def domains(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, dict[str, Any]]:
        file = {"probe": str(shop.folder / "probe.json")}
        return {
            "red": {"adapter": {"placement": {"dominant": file | theirs}}},
            "sum": {"adapter": {"placement": {"dominant": file | ours}, "init_from": "red"}},
        }

    advice = "give both the same, or set domains.sum.adapter.init_from to none"
    with pytest.raises(ConfigError) as caught:
        shop.train("m", domains({"top": 1}, {"top": 2}))
    assert str(caught.value) == (
        "'sum' (placement dominant, 1 module) cannot start from 'red' (placement dominant, 2 "
        f"modules): their adapters sit on other modules; {advice}"
    )
    with pytest.raises(ConfigError, match=r"'sum' has rank \d+ and cannot start from 'red', whose"):
        shop.train("m", domains({"budget": 400}, {"budget": 1500}))
    # the same modules and the same largest rank, and yet another rank somewhere
    budgets = range(600, 1500, 48)
    seen: dict[tuple[Any, ...], tuple[int, list[int]]] = {}
    pair = None
    for budget in budgets:
        config = shop.config(domains({"budget": budget}, {"budget": budget}))
        placement = prepare_domains(config, base, 2, 1)[0].placement
        assert placement.ranks is not None
        key = (tuple(placement.names), max(placement.ranks))
        if key in seen and seen[key][1] != list(placement.ranks):
            pair = (seen[key][0], budget)
            break
        seen[key] = (budget, list(placement.ranks))
    assert pair is not None
    with pytest.raises(ConfigError) as caught:
        shop.train("m", domains({"budget": pair[0]}, {"budget": pair[1]}))
    assert str(caught.value) == (
        "'sum' cannot start from 'red': their adapters have other ranks on the same modules; "
        + advice
    )
    out = shop.train("m", domains({"budget": 700}, {"budget": 700}), overwrite=True)
    manifest = Manifest.load(out.path)
    assert manifest.domains["sum"].parent == "red"
    assert manifest.domains["sum"].placement["ranks"] == manifest.domains["red"].placement["ranks"]


# -- refused before anything is probed -------------------------------------------------------------


@pytest.mark.usefixtures("no_probe")
@pytest.mark.parametrize(
    ("dominant", "message"),
    [
        (
            {"top": 15},
            "placement.dominant: top 15 is more than the 14 modules from layer 2 up; use 1 to 14",
        ),
        (
            {"top": 29, "anywhere": True},
            "placement.dominant: top 29 is more than the 28 modules of all layers; use 1 to 28",
        ),
        (
            {"budget": 20},
            "placement.dominant: budget 20 is below rank 1 of the smallest module from layer 2 up; "
            "use 48 to 26,624 parameters",
        ),
        (
            {"budget": 10**9},
            "placement.dominant: budget 1,000,000,000 is more than full rank takes from layer 2 "
            "up; use 48 to 26,624 parameters",
        ),
    ],
)
def test_what_is_impossible(
    shop: Workshop, base: LoadedBase, dominant: dict[str, Any], message: str
) -> None:
    with pytest.raises(AdapterError) as caught:
        prepared(shop, base, {"dominant": dominant})
    assert str(caught.value) == message


@pytest.mark.usefixtures("no_probe")
def test_the_data_of_all_domains_is_read_before_the_first_probe(
    shop: Workshop, base: LoadedBase
) -> None:
    shop.data("sum").write_text("{}\n")
    config = shop.config(["red", "sum"], adapter__placement="dominant")
    with pytest.raises(DataError):
        prepare_domains(config, base, 2, 1)
