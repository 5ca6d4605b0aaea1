from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from asr.errors import ConfigError, DirectoryError, LockedError
from asr.model.directory import ModelDirectory, file_sha256
from asr.model.lock import LOCK_FILE
from asr.model.manifest import AdapterEntry, Manifest, RouterEntry
from tests.model.test_manifest import manifest


def routed(path: Path) -> ModelDirectory:
    """A routed model directory with one finished domain, 'legal'."""
    directory = ModelDirectory.create(path)
    for file, data in {
        directory.adapter_weights("legal"): b"weights",
        directory.adapter_config("legal"): b"config",
        directory.router_statistics("legal"): b"statistics",
        directory.router: b"router",
        directory.chat_template: b"template",
        directory.path / "tokenizer.json": b"{}",
        directory.path / "tokenizer_config.json": b"{}",
        directory.eval_prompts("legal"): b"",
        directory.checkpoint("law") / "state": b"",
        directory.path / ".staging-x": b"",
    }.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    ledger(directory).save(path)
    return directory


def ledger(directory: ModelDirectory) -> Manifest:
    one = manifest()
    one.add(
        "legal",
        status="done",
        adapter=AdapterEntry(
            sha256=file_sha256(directory.adapter_weights("legal")),
            config_sha256=file_sha256(directory.adapter_config("legal")),
            parameters=1,
            bytes=7,
            rank=8,
        ),
        router=RouterEntry(sha256=file_sha256(directory.router_statistics("legal")), prompts=3),
    )
    return one


def everything(path: Path) -> list[str]:
    return sorted(str(p.relative_to(path)) for p in path.rglob("*"))


def test_every_path() -> None:
    directory = ModelDirectory("m")
    paths = {
        "m/manifest.json": directory.manifest,
        "m/chat_template.jinja": directory.chat_template,
        "m": directory.tokenizer,
        "m/adapters": directory.adapters,
        "m/adapters/legal": directory.adapter("legal"),
        "m/adapters/legal.v2": directory.adapter("legal", 2),
        "m/adapters/legal/adapter_model.safetensors": directory.adapter_weights("legal"),
        "m/adapters/legal.v3/adapter_config.json": directory.adapter_config("legal", 3),
        "m/router": directory.router_folder,
        "m/router/legal.safetensors": directory.router_statistics("legal"),
        "m/router/router.safetensors": directory.router,
        "m/router/router.domain.safetensors": directory.router_statistics("router"),
        "m/eval": directory.eval,
        "m/eval/legal.jsonl": directory.eval_prompts("legal"),
        "m/eval/answers.domain.jsonl": directory.eval_prompts("answers"),
        "m/eval/answers.jsonl": directory.answers,
        "m/eval/matrix.json": directory.matrix,
        "m/eval/report.html": directory.report,
        "m/checkpoints": directory.checkpoints,
        "m/checkpoints/legal": directory.checkpoint("legal"),
    }
    assert {expected: str(path) for expected, path in paths.items()} == {
        expected: expected for expected in paths
    }
    assert repr(directory) == "ModelDirectory('m')"


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "auto", "A"])
@pytest.mark.parametrize(
    "method",
    [
        "adapter",
        "adapter_weights",
        "adapter_config",
        "router_statistics",
        "eval_prompts",
        "checkpoint",
    ],
)
def test_paths_come_from_checked_names_only(name: str, method: str) -> None:
    with pytest.raises(ConfigError, match=f"domain name '{name}' is"):
        getattr(ModelDirectory("m"), method)(name)


def test_versions_count_from_one() -> None:
    with pytest.raises(ValueError, match="count from 1, got 0"):
        ModelDirectory("m").adapter("legal", 0)


def test_create_makes_missing_folders_and_takes_empty_ones(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    assert ModelDirectory.create(path).path == path
    assert path.is_dir()
    for overwrite in (False, True):
        ModelDirectory.create(path, overwrite=overwrite)
    (path / LOCK_FILE).touch()  # a writer that is about to begin
    ModelDirectory.create(path)
    assert everything(path) == [LOCK_FILE]


def test_create_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(DirectoryError) as caught:
        ModelDirectory.create(tmp_path / "x", overwrite=True)
    assert str(caught.value) == f"'{tmp_path / 'x'}' is a file: name a folder for the output"


def test_create_refuses_a_routed_model_and_says_how_to_go_on(tmp_path: Path) -> None:
    directory = routed(tmp_path / "m")
    before = everything(directory.path)
    with pytest.raises(DirectoryError) as caught:
        ModelDirectory.create(directory.path)
    assert str(caught.value) == (
        f"output folder not empty: '{directory.path}' is a routed model directory; add --resume to "
        "continue it, or --overwrite to delete it and start again"
    )
    assert everything(directory.path) == before


def test_overwrite_deletes_a_routed_model(tmp_path: Path) -> None:
    directory = routed(tmp_path / "m")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("")
    (directory.eval / "link").symlink_to(outside)
    (directory.path / "tokenizer.model").symlink_to(outside / "kept")
    ModelDirectory.create(directory.path, overwrite=True)
    assert everything(directory.path) == []
    assert (outside / "kept").exists()


def test_overwrite_works_under_the_callers_own_lock(tmp_path: Path) -> None:
    directory = routed(tmp_path / "m")
    with directory.lock() as lock:
        ModelDirectory.create(directory.path, overwrite=True, lock=lock)
        assert everything(directory.path) == [LOCK_FILE]


def test_overwrite_refuses_a_model_that_is_being_written(tmp_path: Path) -> None:
    directory = routed(tmp_path / "m")
    before = everything(directory.path)
    with directory.lock(), pytest.raises(LockedError):
        ModelDirectory.create(directory.path, overwrite=True)
    assert everything(directory.path) == sorted([*before, LOCK_FILE])


def test_a_killed_overwrite_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = routed(tmp_path / "m")

    def killed(path: Path) -> None:
        raise KeyboardInterrupt(str(path))

    monkeypatch.setattr("asr.model.directory.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        ModelDirectory.create(directory.path, overwrite=True)
    monkeypatch.undo()
    assert directory.is_routed_model
    ModelDirectory.create(directory.path, overwrite=True)
    assert everything(directory.path) == []


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({"thesis.tex": ""}, "it holds thesis.tex"),
        (
            {"a": "", "b": "", "c": "", "d": "", "e": "", "f": ""},
            "it holds a, b, c, d and 2 more",
        ),
        ({"manifest.json": '{"name": "my web app"}'}, "it holds manifest.json"),
        ({"manifest.json": "not json", "adapters": ""}, "it holds adapters, manifest.json"),
        ({"config.json": "{}", "model.safetensors": ""}, "it looks like a base model"),
        (
            {"adapter_config.json": "{}", "adapter_model.safetensors": ""},
            "it is a single PEFT adapter",
        ),
    ],
)
def test_somebodys_other_folder_is_never_deleted(
    tmp_path: Path, files: dict[str, str], what: str, overwrite: bool
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DirectoryError) as caught:
        ModelDirectory.create(tmp_path, overwrite=overwrite)
    assert str(caught.value) == (
        f"output folder not empty: '{tmp_path}' is not a routed model directory ({what}), so "
        "--overwrite would not delete it either; choose another folder"
    )
    assert everything(tmp_path) == sorted(files)


def test_overwrite_spares_what_a_user_put_into_a_model(tmp_path: Path) -> None:
    directory = routed(tmp_path / "m")
    (directory.path / "domains.yaml").write_text("mine")
    (directory.path / "notes").mkdir()
    before = everything(directory.path)
    with pytest.raises(DirectoryError) as caught:
        ModelDirectory.create(directory.path, overwrite=True)
    assert str(caught.value) == (
        f"--overwrite refused, nothing deleted: '{directory.path}' also holds what asr did not "
        "write (domains.yaml, notes); move it away, or choose another folder"
    )
    assert everything(directory.path) == before


def test_open_takes_a_routed_model(tmp_path: Path) -> None:
    directory = routed(tmp_path / "m")
    assert ModelDirectory.open(str(directory.path)).path == directory.path
    # A damaged manifest is the manifest's to report, with the reason.
    directory.manifest.write_text("{")
    assert ModelDirectory.open(directory.path).path == directory.path


def test_open_says_what_is_there(tmp_path: Path) -> None:
    def message(path: Path) -> str:
        with pytest.raises(DirectoryError) as caught:
            ModelDirectory.open(path)
        return str(caught.value)

    give = "give the folder that asr train wrote (it holds manifest.json)"
    assert message(tmp_path / "no") == f"no folder '{tmp_path / 'no'}'; {give}"
    assert message(tmp_path) == (
        f"'{tmp_path}' is not a routed model directory: it is empty; {give}"
    )
    (tmp_path / "config.json").write_text("{}")
    assert message(tmp_path) == (
        f"'{tmp_path}' is not a routed model directory: it looks like a base model; {give}"
    )
    assert message(tmp_path / "config.json") == (
        f"'{tmp_path / 'config.json'}' is a file; give the routed model directory, e.g. "
        f"'{tmp_path}'"
    )


def test_verify_finds_nothing_wrong_with_what_was_written(tmp_path: Path) -> None:
    directory = routed(tmp_path / "m")
    assert directory.verify(Manifest.load(directory.path)) == []


def test_verify_names_changed_and_missing_files(tmp_path: Path) -> None:
    directory = routed(tmp_path / "m")
    one = Manifest.load(directory.path)
    directory.adapter_weights("legal").write_bytes(b"other")
    directory.adapter_config("legal").write_bytes(b"other")
    directory.router_statistics("legal").unlink()
    other = hashlib.sha256(b"other").hexdigest()[:12]
    weights = hashlib.sha256(b"weights").hexdigest()[:12]
    config = hashlib.sha256(b"config").hexdigest()[:12]
    todo = "restore it from a copy, or remove the domain and train it again"
    assert directory.verify(one) == [
        "domain 'legal': adapters/legal/adapter_model.safetensors was changed (sha256 "
        f"{other}..., recorded {weights}...); {todo}",
        "domain 'legal': adapters/legal/adapter_config.json was changed (sha256 "
        f"{other}..., recorded {config}...); {todo}",
        f"domain 'legal': router/legal.safetensors is missing; {todo}",
    ]


def test_verify_looks_at_the_version_in_use(tmp_path: Path) -> None:
    directory = routed(tmp_path / "m")
    one = Manifest.load(directory.path)
    adapter = one.domains["legal"].adapter
    assert adapter is not None
    one.update("legal", adapter_versions=2, adapter=adapter.model_copy(update={"version": 2}))
    assert [p.split(": ")[1].split(" is")[0] for p in directory.verify(one)] == [
        "adapters/legal.v2/adapter_model.safetensors",
        "adapters/legal.v2/adapter_config.json",
    ]


def test_unfinished_domains_have_nothing_to_verify(tmp_path: Path) -> None:
    directory = ModelDirectory.create(tmp_path / "m")
    one = manifest()
    one.add("legal", status="training")
    assert directory.verify(one) == []


def test_the_hash_is_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(json.dumps({"a": 1}).encode() * 100_000)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(b'{"a": 1}' * 100_000).hexdigest()
