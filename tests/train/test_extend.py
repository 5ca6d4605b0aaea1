"""More data for a domain: a new version beside the old one, and the router of both data sets."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import asr
import asr.train.extend as module
from asr.base.load import load_base
from asr.data.cut import dev_cut
from asr.data.load import load_examples
from asr.data.views import CommonPart
from asr.errors import AsrError, ConfigError, DataError, DirectoryError
from asr.eval.history import load_matrices, recorded_common_part
from asr.model.directory import ModelDirectory, file_sha256
from asr.model.kept_prompts import read_kept
from asr.model.manifest import Manifest
from asr.model.opening import open_directory
from asr.model.routed_model import make_forward
from asr.model.routing import fit_domain, fit_router, read_domains
from asr.router import RouterSettings, RoutingDomain, load_domain, load_router
from asr.train.check_data import check_data
from asr.train.domain_data import EarlierData, encode_domain
from asr.train.extend import extend_domain
from asr.train.extension_config import extension_config
from asr.train.remove import remove_domain
from tests.train.conftest import Recorder, RunServer, Workshop, published, write_domain

DOMAINS: dict[str, dict[str, Any]] = {"red": {}, "sum": {"scorer": "loss"}, "turn": {}}
MARK = "zebrafish"
"""Stands in every prompt and answer of the new data."""


class Killed(BaseException):
    """What ends a run in these tests."""


def more(path: Path, name: str, rows: int = 24, start: int = 1000) -> Path:
    """Further prompts of a domain, none of them in its first file."""
    write_domain(path, name, rows)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for i, line in enumerate(lines):
        instruction, _, rest = line["prompt"].partition("\n")
        line["prompt"] = f"{instruction}\n{MARK} {start + i} {rest.split()[-1]}"
        line["completion"] = f"{MARK} {i % 3}"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def made(
    tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Workshop, ModelDirectory, Path]:
    """A model of three domains and a file of new data for the second; no test changes them."""
    shop = Workshop(tiny_base, tmp_path_factory.mktemp("extend"))
    shop.settings["router__background"] = 0
    out = shop.train("three", DOMAINS)
    return shop, out, more(shop.folder / "more.jsonl", "sum")


@pytest.fixture(scope="module")
def extended(made: Any) -> ModelDirectory:
    """The model, extended without a disturbance, the old data being gone; no test changes it."""
    shop, out, data = made
    copy = ModelDirectory(shutil.copytree(out.path, shop.folder / "extended"))
    shop.data("sum").rename(shop.folder / "away")
    try:
        extend(copy, data)
    finally:
        (shop.folder / "away").rename(shop.folder / "sum.jsonl")
    return copy


@pytest.fixture
def model(made: Any, tmp_path: Path) -> Iterator[ModelDirectory]:
    yield ModelDirectory(shutil.copytree(made[1].path, tmp_path / "m"))


def extend(
    directory: ModelDirectory, data: Path, *overrides: str, name: str = "sum", **options: Any
) -> Manifest:
    config = extension_config(Manifest.load(directory.path), name, data, overrides)
    return extend_domain(config, directory.path, **options)


def files(directory: ModelDirectory) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory.path)): path.read_bytes()
        for path in sorted(directory.path.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def comparable(directory: ModelDirectory) -> dict[str, Any]:
    """What two equal models share: every file, the cache's lines in any order."""
    found: dict[str, Any] = dict(files(directory))
    found["adapters/sum.v2/README.md"] = b""  # it tells of the run: steps, loss
    found["manifest.json"] = Manifest.load(directory.path).comparable()
    found["eval/answers.jsonl"] = sorted(found["eval/answers.jsonl"].splitlines())
    return found


def assert_equal(one: ModelDirectory, other: ModelDirectory) -> None:
    left, right = comparable(one), comparable(other)
    assert left.keys() == right.keys()
    assert [name for name in left if left[name] != right[name]] == []


# -- what an extension makes -----------------------------------------------------------------------


def test_the_old_version_and_the_other_domains_stay(made: Any, extended: ModelDirectory) -> None:
    before, after = files(made[1]), files(extended)
    assert sorted(set(after) - set(before)) == [
        "adapters/sum.v2/README.md",
        "adapters/sum.v2/adapter_config.json",
        "adapters/sum.v2/adapter_model.safetensors",
    ]
    assert sorted(name for name in before if before[name] != after[name]) == [
        "eval/answers.jsonl",
        "eval/matrix.bare.basis.json",
        "eval/matrix.bare.json",
        "eval/matrix.basis.json",
        "eval/matrix.json",
        "eval/sum.jsonl",
        "manifest.json",
        "router/router.safetensors",
        "router/sum.safetensors",
    ]
    assert after["eval/answers.jsonl"].startswith(before["eval/answers.jsonl"])
    assert extended.verify(Manifest.load(extended.path)) == []


def test_the_manifest_records_both_versions(made: Any, extended: ModelDirectory) -> None:
    old, new = (Manifest.load(d.path) for d in (made[1], extended))
    first, entry = old.domains["sum"], new.domains["sum"]
    assert entry.adapter is not None and first.adapter is not None
    assert [made.version for made in entry.versions] == [1, 2]
    assert entry.versions == [first.adapter, entry.adapter]
    assert entry.adapter.sha256 == file_sha256(extended.adapter_weights("sum", 2))
    assert (entry.adapter_versions, entry.unfinished_extension) == (2, None)
    [extension] = entry.extensions
    assert (extension.status, extension.started_from) == ("done", first.adapter.sha256)
    assert extension.data.path == str(made[2]) and extension.data.examples == 24
    assert (entry.data, entry.training, entry.common_part, entry.order) == (
        first.data,
        first.training,
        first.common_part,
        first.order,
    )
    unchanged = {name: new.domains[name] for name in ("red", "turn")}
    assert unchanged == {name: old.domains[name] for name in unchanged}
    assert (new.config, new.switching) == (old.config, None)


def test_it_answers_with_the_new_version(made: Any, extended: ModelDirectory) -> None:
    served = asr.RoutedModel.from_pretrained(extended.path)
    prompts = ["Add the numbers.\nsum 1 2", f"Add the numbers.\n{MARK} 1003 7"]
    try:
        assert [answer.adapter for answer in served.generate(prompts)] == ["sum", "sum"]
        in_use = Manifest.load(extended.path).domains["sum"].versions[-1]
        assert served.bank.sha256("sum") == in_use.sha256
    finally:
        served.close()


@pytest.mark.parametrize("from_scratch", [False, True])
def test_it_starts_from_the_adapter_in_use(
    made: Any, model: ModelDirectory, from_scratch: bool
) -> None:
    """With next to no learning the new version is what it started from."""
    manifest = extend(model, made[2], "training.learning_rate=1e-12", from_scratch=from_scratch)
    old, new = (load_file(model.adapter_weights("sum", version)) for version in (1, 2))
    gaps = [float(np.abs(old[name] - new[name]).max()) for name in old if "lora_B" in name]
    [extension] = manifest.domains["sum"].extensions
    if from_scratch:
        assert extension.started_from is None
        assert max(float(np.abs(new[n]).max()) for n in new if "lora_B" in n) < 1e-8
    else:
        assert max(gaps) < 1e-8
    assert max(float(np.abs(old[n]).max()) for n in old if "lora_B" in n) > 1e-4


# -- the router ------------------------------------------------------------------------------------


def test_the_router_is_the_one_of_both_data_sets(made: Any, extended: ModelDirectory) -> None:
    """Against a direct fit on the union of the prompts, embedded again from the text."""
    shop, before, data = made
    manifest = Manifest.load(extended.path)
    common = recorded_common_part(manifest, "sum")
    base = load_base(str(shop.base), device="cpu", dtype="float32")
    forward = make_forward(base, manifest.contract.layer, False)

    def fitted(paths: list[Path]) -> RoutingDomain:
        train = [
            e for path in paths for e in dev_cut(load_examples(path, name="sum").examples).kept
        ]
        return fit_domain("sum", train, common, base, forward, manifest.contract)

    union = fitted([shop.data("sum"), data])
    others = read_domains(extended, ["red", "turn"], manifest.contract)
    settings = RouterSettings.from_dict({**manifest.router, "ridge": 1e-2})
    [stored] = read_domains(extended, ["sum"], manifest.contract)
    one, direct = (
        fit_router([d, *others], settings, manifest.contract, base.hidden_size)
        for d in (stored, union)
    )
    assert stored.statistics.prompts == union.statistics.prompts > 30
    # prompts have other batch mates here, which moves float32 features by about 1e-7
    gap = np.linalg.norm(one.weights - direct.weights) / np.linalg.norm(direct.weights)
    assert gap < 1e-4
    assert stored.calibration is not None and union.calibration is not None
    for block in (stored.calibration, union.calibration):
        pooled = block.pooled.reshape(-1, base.hidden_size)
        assert [d.route for d in one.decide(pooled)] == [d.route for d in direct.decide(pooled)]

    # and to the bit: the two shares, made apart and summed
    [old] = read_domains(before, ["sum"], manifest.contract)
    apart = old.statistics + fitted([data]).statistics
    tensors, wanted = stored.statistics.to_tensors()[0], apart.to_tensors()[0]
    assert {k: v.tobytes() for k, v in tensors.items()} == {
        k: v.tobytes() for k, v in wanted.items()
    }
    published_router = load_router(extended.router, manifest.contract.hash).router
    again = fit_router(
        [stored, *others],
        RouterSettings.from_dict(manifest.router),
        manifest.contract,
        base.hidden_size,
    )
    assert published_router.weights.tobytes() == again.weights.tobytes()
    assert load_domain(extended.router_statistics("sum"), manifest.contract.hash)


# -- prompts that are kept, and scores -------------------------------------------------------------


def test_kept_prompts_and_scores(made: Any, extended: ModelDirectory) -> None:
    _, before, data = made
    old, new = (read_kept(d.eval_prompts("sum")) for d in (before, extended))
    dev = dev_cut(load_examples(data, name="sum").examples).held_out
    assert len(dev) >= 2
    assert {e.prompt_key for e in new} == {e.prompt_key for e in [*old, *dev]}
    assert len(new) == len(old) + len(dev)
    matrices = load_matrices(before), load_matrices(extended)
    for kind in ("templated", "bare"):
        one, other = (found[kind] for found in matrices)
        red, turn = one.domains.index("red"), one.domains.index("turn")
        for column in (red, turn):  # their adapters answered before, and still do
            np.testing.assert_array_equal(one.oracle[:, column], other.oracle[:, column])
            assert one.base[column] == other.base[column]
        sum_ = one.domains.index("sum")
        assert not np.isnan(other.oracle[sum_:, sum_]).any()
        assert other.oracle[-1, sum_] != one.oracle[-1, sum_]
    added = extended.answers.read_text()[len(before.answers.read_text()) :].splitlines()
    by_new_version = [r for r in map(json.loads, added) if r["adapter"] == r["domain"] == "sum"]
    assert len(by_new_version) >= 3  # the old prompts too: no answer of the old version is taken


def test_prompts_kept_for_scoring_are_not_trained_on(made: Any, model: ModelDirectory) -> None:
    shop = made[0]
    held_out = read_kept(model.eval_prompts("sum"))
    path = shop.folder / "leaky.jsonl"
    leaked = [{"messages": list(e.messages)} for e in held_out]
    fresh = [json.loads(line) for line in made[2].read_text().splitlines()]
    fresh = [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"]},
            ]
        }
        for row in fresh
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*leaked, *fresh[2:]]))
    dev = shop.folder / "dev.jsonl"  # without one, the hash puts them into the dev cut again
    dev.write_text("".join(json.dumps(row) + "\n" for row in fresh[:2]))
    watcher = Recorder()
    manifest = extend(model, path, f"dev={dev}", watcher=watcher)
    [extension] = manifest.domains["sum"].extensions
    assert extension.data.train == len(fresh) - 2
    assert (
        f"sum: {len(leaked)} of {len(leaked) + 22} examples left out of training: their prompts "
        "are kept for scoring"
    ) in watcher.said
    assert len(read_kept(model.eval_prompts("sum"))) == len(held_out) + 2
    config = extension_config(manifest, "sum", made[2])
    base = load_base(str(shop.base), device="cpu", dtype="float32")
    all_of_it = frozenset(e.prompt_key for e in load_examples(made[2], name="sum").examples)
    with pytest.raises(DataError, match="every prompt of it is kept for scoring 'sum' already"):
        encode_domain(
            "sum",
            config.domains["sum"],
            check_data(config, ["sum"])["sum"],
            base,
            EarlierData(CommonPart(), all_of_it),
        )


def test_without_kept_prompts(shop: Workshop) -> None:
    out = shop.train("m", ["red", "sum"], keep_eval=False)
    manifest = extend(out, more(shop.folder / "more.jsonl", "sum"))
    assert manifest.domains["sum"].extensions[0].status == "done"
    assert not out.eval.exists() or not list(out.eval.glob("*.jsonl"))
    assert out.verify(manifest) == [] and not list(out.router_folder.glob("*.next.*"))


# -- what comes after ------------------------------------------------------------------------------


def test_a_third_version(made: Any, extended: ModelDirectory, tmp_path: Path) -> None:
    out = ModelDirectory(shutil.copytree(extended.path, tmp_path / "m"))
    manifest = extend(out, more(tmp_path / "third.jsonl", "sum", start=5000))
    entry = manifest.domains["sum"]
    assert [made.version for made in entry.versions] == [1, 2, 3]
    assert entry.extensions[1].started_from == entry.versions[1].sha256
    assert (out.adapter("sum").is_dir(), out.adapter("sum", 2).is_dir()) == (True, True)
    assert entry.router is not None
    assert (
        entry.router.prompts
        == sum(e.prompts or 0 for e in entry.extensions)
        + Manifest.load(made[1].path).domains["sum"].router.prompts
    )  # type: ignore[union-attr]


def test_the_first_config_still_resumes(
    made: Any, extended: ModelDirectory, tmp_path: Path
) -> None:
    shop = made[0]
    out = ModelDirectory(shutil.copytree(extended.path, tmp_path / "m"))
    watcher = Recorder()
    shop.train(str(out.path), DOMAINS, resume=True, watcher=watcher)
    assert watcher.started == []
    assert_equal(out, extended)
    shop.train(str(out.path), {**DOMAINS, "last": {}}, resume=True, watcher=watcher)
    assert watcher.started == ["last"]
    assert Manifest.load(out.path).domains["sum"] == Manifest.load(extended.path).domains["sum"]
    assert file_sha256(out.router_statistics("sum")) == file_sha256(
        extended.router_statistics("sum")
    )


@pytest.mark.parametrize("finished", [True, False])
def test_remove_purges_every_version(
    made: Any, extended: ModelDirectory, model: ModelDirectory, tmp_path: Path, finished: bool
) -> None:
    """The router is bit for bit that of a model that never saw the domain."""
    shop = made[0]
    if finished:
        model = ModelDirectory(shutil.copytree(extended.path, tmp_path / "x"))
    else:  # stopped right before its switch: all that it made lies there
        patch = pytest.MonkeyPatch()
        patch.setattr(module._Extension, "_record", _raising_at(2, module._Extension._record))
        with pytest.raises(Killed):
            extend(model, made[2])
        patch.undo()
        assert model.coming(model.eval_prompts("sum")).is_file()
    deleted = remove_domain(model.path, "sum")
    assert {"adapters/sum", "adapters/sum.v2", "router/sum.safetensors"} <= set(deleted)
    assert ("checkpoints/sum" in deleted) is not finished
    here = files(model)
    assert [name for name in here if "sum" in name or ".next." in name] == []
    assert [name for name, content in here.items() if MARK.encode() in content] == []
    assert '"sum"' not in model.manifest.read_text()
    if not (shop.folder / "never").exists():
        shop.train("never", ["red", "turn"])
    never = ModelDirectory(shop.folder / "never")
    one, other = (load_file(d.router) for d in (model, never))
    assert {k: v.tobytes() for k, v in one.items()} == {k: v.tobytes() for k, v in other.items()}
    shop.train(str(model.path), ["red", "turn"], resume=True)
    left, right = published(model), published(never)
    for found in (left, right):
        for entry in found["manifest"]["domains"].values():
            del entry["order"]
    assert left == right


def _raising_at(call: int, honest: Any) -> Any:
    calls = []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return honest(*args, **kwargs)

    return wrapped


# -- refusals --------------------------------------------------------------------------------------


def test_refusals_change_nothing(made: Any, model: ModelDirectory, tmp_path: Path) -> None:
    shop, _, data = made
    before = files(model)
    first = shop.data("sum")
    cases: list[tuple[type[AsrError], str, dict[str, Any]]] = [
        (
            DirectoryError,
            "unknown domain 'summ' (did you mean 'sum'?); there are: red, sum, turn; without "
            "--extend, asr add makes a new one",
            {"name": "summ"},
        ),
        (
            DirectoryError,
            "no extension of 'sum' is unfinished; leave out --resume to begin one",
            {"resume": True},
        ),
        (
            DataError,
            f"{first}: 'sum' was trained on these examples already, and they would count twice; "
            "give new ones",
            {"data": first},
        ),
    ]
    for kind, message, options in cases:
        with pytest.raises(kind) as caught:
            extend(model, **{"data": data, **options})
        assert str(caught.value) == message
    for override in ("adapter.rank=4", "router.ridge=0.1", "scorer=exact", "seed=3"):
        with pytest.raises(ConfigError) as caught:
            extend(model, data, override)
        assert str(caught.value) == (
            f"'{override}' cannot be set with --extend: a new version of 'sum' keeps everything "
            "but training, dev, format, limit, eval, device, dtype"
        )
    config = extension_config(Manifest.load(model.path), "sum", data)
    own = config.domains["sum"]
    wider = own.model_copy(update={"adapter": own.adapter.model_copy(update={"rank": 4})})
    with pytest.raises(ConfigError) as caught:
        extend_domain(config.model_copy(update={"domains": {"sum": wider}}), model.path)
    assert str(caught.value) == (
        "cannot extend 'sum': its rank is 2 and would be 4; a new version keeps placement and rank"
    )
    moved = config.model_copy(update={"router": config.router.model_copy(update={"layer": 3})})
    with pytest.raises(ConfigError, match="the feature contract's layer changed: 2 -> 3"):
        extend_domain(moved, model.path)
    with pytest.raises(ConfigError, match=r"more\.jsonl.gone does not exist"):
        extend(model, data.with_suffix(".jsonl.gone"))
    assert files(model) == before


def test_an_unfinished_domain_is_not_extended(shop: Workshop) -> None:
    def stop(domain: str, step: int) -> None:
        if (domain, step) == ("sum", 2):
            raise Killed

    with pytest.raises(Killed):
        shop.train("m", ["red", "sum"], watcher=Recorder(stop))
    with pytest.raises(DirectoryError) as caught:
        extend(ModelDirectory(shop.folder / "m"), more(shop.folder / "more.jsonl", "sum"))
    assert str(caught.value) == (
        "domain 'sum' is not finished (training); go on with asr train or asr add with --resume, "
        "and extend it then"
    )


# -- kills -----------------------------------------------------------------------------------------


def stop_at(step: int) -> Recorder:
    def at(domain: str, now: int) -> None:
        if now == step:
            raise Killed

    return Recorder(at)


def state(directory: ModelDirectory) -> tuple[int, str, str]:
    """What a reader meets: adapter version, router, statistics. Raises where it cannot be used."""
    opened = open_directory(directory.path)
    manifest = opened.manifest
    adapter = manifest.domains["sum"].adapter
    assert adapter is not None
    return (
        adapter.version,
        file_sha256(directory.current(directory.router, manifest)),
        file_sha256(directory.current(directory.router_statistics("sum"), manifest)),
    )


def test_a_stopped_training_goes_on(
    made: Any, extended: ModelDirectory, model: ModelDirectory
) -> None:
    shop, before, data = made
    with pytest.raises(Killed):
        extend(model, data, watcher=stop_at(4))
    assert state(model) == state(before)
    with pytest.raises(DirectoryError) as caught:
        extend(model, data)
    assert str(caught.value) == (
        f"an extension of 'sum' with {data} is unfinished; add --resume to go on with it"
    )
    shop.train(str(model.path), DOMAINS, resume=True)  # loses nothing of it
    watcher = Recorder()
    extend(model, data, resume=True, watcher=watcher)
    assert watcher.steps[0] == ("sum", 3)
    assert_equal(model, extended)
    extend(model, data, resume=True, watcher=watcher)
    assert watcher.said[-1] == "sum: extended with this data already; nothing to do"
    assert_equal(model, extended)


def test_other_data_starts_again(
    made: Any, extended: ModelDirectory, model: ModelDirectory, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        extend(model, more(tmp_path / "other.jsonl", "sum", start=300), watcher=stop_at(4))
    watcher = Recorder()
    extend(model, made[2], resume=True, watcher=watcher)
    assert watcher.steps[0] == ("sum", 1)
    assert any("it starts again" in line for line in watcher.said)
    assert_equal(model, extended)


class Killer:
    """Ends the run right after its ``at``-th change of the model directory: before the next."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path, at: int) -> None:
        self.folder, self.at, self.changes = str(folder), at, 0
        for name in ("replace", "unlink"):
            patch.setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, honest: Any) -> Any:
        def changed(path: Any, *args: Any, **kwargs: Any) -> Any:
            if not os.fspath(path).startswith(self.folder) or "dir_fd" in kwargs:
                return honest(path, *args, **kwargs)
            self.changes += 1
            result = honest(path, *args, **kwargs)
            if self.changes > self.at:
                raise Killed
            return result

        return changed


def test_a_kill_at_any_write_leaves_the_old_or_the_new(
    made: Any, extended: ModelDirectory, model: ModelDirectory, tmp_path: Path
) -> None:
    """From the finished training on: every change of the disk that statistics and switch make."""
    _, before, data = made
    honest = module._Extension.finish
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module._Extension, "finish", _raising_at(1, honest))
        with pytest.raises(Killed):
            extend(model, data)
    assert Manifest.load(model.path).domains["sum"].extensions[0].status == "trained"
    old, new = state(before), state(extended)
    seen = []
    for at in itertools.count():
        out = ModelDirectory(shutil.copytree(model.path, tmp_path / f"cut{at}"))
        with pytest.MonkeyPatch.context() as patch:
            killer = Killer(patch, out.path, at)
            try:
                extend(out, data, resume=True)
            except Killed:
                pass
            else:
                assert killer.changes <= at
                break
        seen.append(state(out))
        assert seen[-1] in (old, new)
        if at % 4 == 0 or Manifest.load(out.path).switching:
            extend(out, data, resume=True)
            assert_equal(out, extended)
        shutil.rmtree(out.path)
    assert seen[0] == old and seen[-1] == new and len(seen) > 10
    assert seen == sorted(seen, key=[old, new].index)  # never back


EXTENDER = """
import os, sys
import torch
torch.set_num_threads(1)
import asr, asr.train.extend
print("ready", flush=True)
for line in sys.stdin:
    config, out = line.rstrip("\\n").split("|")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            settings = asr.TrainConfig.model_validate_json(open(config).read())
            asr.train.extend.extend_domain(settings, out)
            status = 0
        except BaseException as error:
            print(repr(error), file=sys.stderr)
        finally:
            os._exit(status)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


def test_kill_minus_nine(made: Any, extended: ModelDirectory, tmp_path: Path) -> None:
    """At moments spread over the whole run; what is left is the old model or the new one."""
    _, before, data = made
    config = tmp_path / "config.json"
    own = extension_config(Manifest.load(before.path), "sum", data)
    config.write_text(own.model_dump_json())
    old, new = state(before), state(extended)
    server = RunServer(EXTENDER)
    try:
        began = time.perf_counter()
        server.start(config, shutil.copytree(before.path, tmp_path / "whole"))
        assert server.wait() == 0
        length = time.perf_counter() - began
        assert_equal(ModelDirectory(tmp_path / "whole"), extended)
        for index in range(4):
            out = ModelDirectory(shutil.copytree(before.path, tmp_path / f"cut{index}"))
            child = server.start(config, out.path)
            time.sleep(length * (index + 0.5) / 4)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            server.wait()
            assert state(out) in (old, new)
            begun = bool(Manifest.load(out.path).domains["sum"].extensions)
            extend(out, data, resume=begun)
            assert_equal(out, extended)
    finally:
        server.close()
