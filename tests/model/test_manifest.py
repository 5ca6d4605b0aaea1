from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from asr.errors import ConfigError, DirectoryError, StorageError
from asr.model.contract import FeatureContract, NumericContract, Truncation
from asr.model.manifest import (
    SCHEMA_VERSION,
    AdapterEntry,
    BaseEntry,
    CommonPartEntry,
    DataEntry,
    Manifest,
    RouterEntry,
    Versions,
)

A, B = "a" * 64, "b" * 64
ADAPTER = AdapterEntry(sha256=A, parameters=10, bytes=40, rank=8)
ROUTER = RouterEntry(sha256=B, prompts=7)


def manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "versions": Versions(asr="0.1.0", torch="2", transformers="5", peft="0.21", numpy="2"),
        "base": BaseEntry(
            name="smollm2-135m",
            source="builtin",
            fingerprint=A,
            n_layers=30,
            hidden_size=576,
            architecture="LlamaForCausalLM",
        ),
        "contract": FeatureContract(
            base_fingerprint=A,
            layer=4,
            template_hash=B,
            truncation=Truncation(max_length=1024),
            views=("templated", "bare"),
        ),
        "numeric": NumericContract(dtype="float32", device="cpu"),
    }
    return Manifest(**(fields | changes))


def full() -> Manifest:
    one = manifest(router={"ridge": 0.01, "solver": "direct"}, seed=3, keep_eval=False)
    one.add(
        "zebra",
        status="done",
        data=DataEntry(path="/x/zebra.jsonl", sha256=A, examples=10, train=8, dev=1, calibration=1),
        common_part=CommonPartEntry(prefix="Q: é\n", suffix="", system=None),
        test="/x/test.jsonl",
        scorer="exact",
        placement={"kind": "deep", "modules": ["model.layers.4.mlp.down_proj"], "rank": 8},
        adapter=ADAPTER,
        router=ROUTER,
        training={"epochs": 2, "learning_rate": 1e-3},
        timings={"train": 1.5},
        tokens_per_second=610,
    )
    one.add("apple")
    return one


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    one = full()
    one.save(tmp_path)
    back = Manifest.load(tmp_path)
    assert back == one
    assert list(back.domains) == ["zebra", "apple"]  # order of training, not of the alphabet
    first = (tmp_path / "manifest.json").read_bytes()
    back.save(tmp_path)
    assert (tmp_path / "manifest.json").read_bytes() == first
    assert "é" in first.decode() and first.endswith(b"}\n")


def test_the_file_opens_with_its_schema(tmp_path: Path) -> None:
    full().save(tmp_path)
    tree = json.loads((tmp_path / "manifest.json").read_text())
    assert next(iter(tree.items())) == ("schema_version", SCHEMA_VERSION)
    assert tree["contract_hash"] == full().contract.hash


def damaged(tmp_path: Path, **changes: Any) -> str:
    full().save(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(DirectoryError) as caught:
        Manifest.load(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_a_newer_schema_names_the_upgrade(tmp_path: Path) -> None:
    assert damaged(tmp_path, schema_version=2, new_field=1) == (
        "manifest of schema 2, this asr reads up to 1: upgrade with "
        "pip install -U analytic-subspace-routing"
    )


EDITED = "; it was edited or damaged, restore it from a copy"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": "1"}, "not the manifest of a routed model (schema_version is '1')"),
        ({"schema_version": None}, "not the manifest of a routed model (schema_version is None)"),
        ({"schema_version": True}, "not the manifest of a routed model (schema_version is True)"),
        ({"seed": "0"}, "seed: Input should be a valid integer" + EDITED),
        ({"colour": 1}, "colour: Extra inputs are not permitted" + EDITED),
        (
            {"contract_hash": B},
            "manifest: Value error, contract_hash is not the hash of contract: one of them was "
            "edited" + EDITED,
        ),
        (
            {"domains": {"x": {"order": 0, "status": "done"}}},
            "domains.x: Value error, status is 'done' but no adapter is recorded" + EDITED,
        ),
        (
            {"domains": {"x": {"order": 1}, "y": {"order": 1}}},
            "manifest: Value error, domains are not in increasing order: [1, 1]" + EDITED,
        ),
    ],
)
def test_a_damaged_manifest_names_the_field(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    assert damaged(tmp_path, **changes) == message


def test_a_domain_name_that_leads_outside_is_refused(tmp_path: Path) -> None:
    message = damaged(tmp_path, domains={"../x": {"order": 0}})
    assert message.startswith("domains.../x.[key]: Value error, domain name '../x' is not allowed")
    message = damaged(tmp_path, switching="../x")
    assert message.startswith("switching: Value error, domain name '../x' is not allowed")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON (Expecting value: line 1 column 1 (char 0))"),
        (b'{"schema_version": 1', "not JSON (Expecting ',' delimiter: line 1 column 21 (char 20))"),
        (b'{"seed": NaN}', "not JSON (NaN is not JSON)"),
        (b"\xff", "not JSON ('utf-8' codec can't decode byte 0xff in position 0"),
        (b"[1]", "not the manifest of a routed model (no JSON object)"),
        (b"{}", "not the manifest of a routed model (schema_version is None)"),
        (b"[" * 100_000, "not a manifest (nested too deeply)"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(data)
    with pytest.raises(DirectoryError) as caught:
        Manifest.load(tmp_path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DirectoryError) as caught:
        Manifest.load(tmp_path / "no")
    assert str(caught.value) == (
        f"no manifest.json in '{tmp_path / 'no'}': it is not a routed model directory"
    )


def test_a_manifest_that_is_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(DirectoryError) as caught:
        Manifest.load(tmp_path)
    assert str(caught.value) == f"cannot read {tmp_path / 'manifest.json'}: Is a directory"


def test_adding_counts_the_order_on_after_a_removal() -> None:
    one = full()
    del one.domains["zebra"]
    assert one.add("late").order == 2
    with pytest.raises(DirectoryError) as caught:
        one.add("apple")
    assert str(caught.value) == ("domain 'apple' exists in this model already: choose another name")
    with pytest.raises(ConfigError, match="is reserved"):
        one.add("auto")


def test_updating_is_checked_and_all_or_nothing() -> None:
    one = full()
    with pytest.raises(ValidationError, match="no adapter is recorded"):
        one.update("apple", status="trained")
    with pytest.raises(ValidationError, match="no router statistics are recorded"):
        one.update("apple", status="routed", adapter=ADAPTER)
    with pytest.raises(ValidationError, match="adapter_versions is 1"):
        one.update("apple", adapter=ADAPTER.model_copy(update={"version": 2}))
    with pytest.raises(ValidationError, match="Extra inputs"):
        one.update("apple", colour="red")
    with pytest.raises(KeyError):
        one.update("nobody", status="training")
    assert one == full().model_copy(update={"created": one.created})
    assert one.update("apple", status="trained", adapter=ADAPTER).status == "trained"
    assert one.domains["apple"].order == 1
    assert one.finished == ["zebra"]
    one.update("apple", status="done", router=ROUTER)
    assert one.finished == ["zebra", "apple"]


def test_arranging_moves_entries_and_keeps_the_numbers() -> None:
    one = full()
    one.add("new")
    del one.domains["apple"]
    one.arrange(["new", "zebra"])
    assert [(name, entry.order) for name, entry in one.domains.items()] == [
        ("new", 0),
        ("zebra", 2),
    ]
    assert one.domains["zebra"].adapter == ADAPTER
    for wrong in (["new"], ["new", "zebra", "zebra"], ["new", "apple"]):
        with pytest.raises(ValueError, match="cannot arrange"):
            one.arrange(wrong)


def test_equal_runs_compare_equal_whatever_the_time_and_place() -> None:
    one, other = full(), full()
    other.created = "2001-01-01T00:00:00+00:00"
    other.base.name = "/elsewhere/smollm2"
    zebra = other.domains["zebra"]
    zebra.timings, zebra.tokens_per_second, zebra.test = {"train": 99.0}, 1.0, None
    assert zebra.data is not None
    zebra.data.path = "/elsewhere/zebra.jsonl"
    assert one != other
    assert one.comparable() == other.comparable()


@pytest.mark.parametrize(
    "change",
    [
        {"status": "routed"},
        {"training": {"epochs": 3}},
        {"adapter": ADAPTER.model_copy(update={"sha256": B})},
        {"router": ROUTER.model_copy(update={"prompts": 8})},
        {"data": DataEntry(path="/x/zebra.jsonl", sha256=B)},
        {"world_size": 2},
    ],
)
def test_what_determines_a_result_is_compared(change: dict[str, Any]) -> None:
    other = full()
    other.update("zebra", **change)
    assert other.comparable() != full().comparable()


def test_a_value_that_json_cannot_hold_leaves_the_file(tmp_path: Path) -> None:
    one = full()
    one.save(tmp_path)
    before = (tmp_path / "manifest.json").read_bytes()
    for wrong in (float("nan"), float("inf")):
        one.domains["zebra"].training["loss"] = wrong
        with pytest.raises(ValueError, match="not JSON compliant"):
            one.save(tmp_path)
    del one.domains["zebra"].training["loss"]
    one.domains["zebra"].adapter = None  # assigned past the checks: saving finds it
    with pytest.raises(ValidationError, match="no adapter is recorded"):
        one.save(tmp_path)
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_a_full_disk_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full().save(tmp_path)
    before = (tmp_path / "manifest.json").read_bytes()

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("asr.atomic.os.fsync", refuse)
    with pytest.raises(StorageError, match=r"manifest\.json: no space left"):
        manifest().save(tmp_path)
    assert (tmp_path / "manifest.json").read_bytes() == before
