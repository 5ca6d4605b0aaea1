"""A name becomes a checkpoint folder, or an error that says what it is and what is near."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model

from asr.base import resolve as resolve_module
from asr.base.hub import Prepared
from asr.base.resolve import ResolvedBase, resolve_base
from asr.errors import BaseModelError
from tests.base.tiny_gguf import write_tiny_gguf
from tests.tiny_models import save_tiny_base, tiny_model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ASR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def test_a_folder(tmp_path: Path) -> None:
    folder = save_tiny_base(tmp_path / "base")
    expected = ResolvedBase(str(folder), folder, "folder", None)
    assert resolve_base(str(folder)) == expected
    assert resolve_base("base") == ResolvedBase("base", folder, "folder", None)


def test_a_sharded_folder_and_one_that_misses_a_shard(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    tiny_model().save_pretrained(folder, max_shard_size="40KB")
    assert resolve_base("base").path == folder
    lost = sorted(folder.glob("model-*.safetensors"))[0]
    lost.unlink()
    with pytest.raises(BaseModelError, match=rf"is incomplete: .* misses {lost.name}"):
        resolve_base("base")


def test_a_local_folder_wins_over_a_built_in_name(tmp_path: Path) -> None:
    save_tiny_base(tmp_path / "smollm2-135m")
    assert resolve_base("smollm2-135m").source == "folder"


@pytest.mark.parametrize("weights", ["pytorch_model.bin", "model.pt"])
def test_pickled_weights_are_refused_with_a_way_out(tmp_path: Path, weights: str) -> None:
    folder = tmp_path / "pickled"
    tiny_model().config.save_pretrained(folder)
    torch.save(tiny_model().state_dict(), folder / weights)
    with pytest.raises(BaseModelError) as caught:
        resolve_base("pickled")
    assert f"holds pickled weights only ({weights}), which can run code" in str(caught.value)
    assert ".save_pretrained(NEW)" in str(caught.value)


def test_pickled_weights_beside_safetensors_do_not_matter(tmp_path: Path) -> None:
    folder = save_tiny_base(tmp_path / "both")
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    assert resolve_base("both").source == "folder"


def test_a_folder_with_a_gguf_only_points_at_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "g"
    tiny_model().config.save_pretrained(folder)
    write_tiny_gguf(folder / "tiny.gguf")
    with pytest.raises(BaseModelError, match=r"pass the file itself: .*tiny\.gguf"):
        resolve_base("g")


def test_a_folder_without_weights_lists_what_it_has(tmp_path: Path) -> None:
    tiny_model().config.save_pretrained(tmp_path / "bare")
    with pytest.raises(BaseModelError, match=r"no safetensors weights .* there are: config\.json"):
        resolve_base("bare")


def test_a_lora_adapter_is_named_and_points_at_its_base(tmp_path: Path) -> None:
    config = LoraConfig(target_modules=["q_proj"], base_model_name_or_path="some/base")
    get_peft_model(tiny_model(), config).save_pretrained(tmp_path / "adapter")
    settings = tmp_path / "adapter" / "adapter_config.json"
    values = json.loads(settings.read_text()) | {"base_model_name_or_path": "some/base"}
    settings.write_text(json.dumps(values))
    with pytest.raises(BaseModelError, match=r"is a LoRA adapter, not a base: .* of 'some/base'"):
        resolve_base("adapter")


def test_a_routed_model_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "routed").mkdir()
    (tmp_path / "routed" / "manifest.json").write_text("{}")
    with pytest.raises(BaseModelError, match="is a routed model directory, not a base"):
        resolve_base("routed")


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BaseModelError, match=r"has no config\.json; .*; there is: nothing"):
        resolve_base("empty")


@pytest.mark.parametrize(("content", "said"), [("{", "is not JSON"), ("[]", "not a JSON object")])
def test_a_broken_config_is_named(tmp_path: Path, content: str, said: str) -> None:
    folder = save_tiny_base(tmp_path / "base")
    (folder / "config.json").write_text(content)
    with pytest.raises(BaseModelError, match=rf"config\.json {said}|config\.json is {said}"):
        resolve_base("base")


def test_a_gguf_file_is_converted_once_by_its_content(tmp_path: Path, cache: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    said: list[str] = []
    first = resolve_base("tiny.gguf", said.append)
    assert first.source == "gguf"
    assert first.path.parent == cache / "bases"
    assert first.revision == f"gguf sha256:{first.path.name.removeprefix('gguf-')}"
    assert len(said) == 1
    shutil.move(tmp_path / "tiny.gguf", tmp_path / "renamed.gguf")
    second = resolve_base("renamed.gguf", said.append)
    assert (second.path, second.revision) == (first.path, first.revision)
    assert len(said) == 1


def test_a_file_that_only_says_gguf(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF but no more")
    with pytest.raises(BaseModelError, match="is not a readable GGUF file"):
        resolve_base("x.gguf")
    assert not list((cache / "bases").glob("gguf-*"))


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(BaseModelError, match=r"is a file but no \.gguf; pass the folder"):
        resolve_base("model.safetensors")


def test_a_built_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = Prepared(tmp_path, "wheel x")
    monkeypatch.setattr(resolve_module, "prepare_builtin", lambda *args: prepared)
    expected = ResolvedBase("smollm2-135m", tmp_path, "builtin", "wheel x")
    assert resolve_base("smollm2-135m") == expected


def test_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny_base(tmp_path / "snapshot")
    snapshot = Prepared(folder, "c0ffee")
    monkeypatch.setattr(resolve_module, "hub_snapshot", lambda *args, **options: snapshot)
    assert resolve_base("some/base") == ResolvedBase("some/base", folder, "hub", "c0ffee")
    (folder / "model.safetensors").unlink()
    with pytest.raises(BaseModelError, match="no safetensors weights"):
        resolve_base("some/base")


def test_a_hub_id_is_asked_for_although_a_folder_is_called_like_the_organisation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some" / "other").mkdir(parents=True)
    snapshot = Prepared(save_tiny_base(tmp_path / "snapshot"), "c0ffee")
    monkeypatch.setattr(resolve_module, "hub_snapshot", lambda *args, **options: snapshot)
    assert resolve_base("some/base").source == "hub"


def test_a_hub_id_out_of_reach() -> None:
    with pytest.raises(BaseModelError) as caught:
        resolve_base("some/base")
    assert str(caught.value) == (
        "HF_HUB_OFFLINE is set and 'some/base' is not in its local cache; pass a local folder, or "
        "run again with a network"
    )


@pytest.mark.parametrize("name", ["", "  "])
def test_no_name(name: str) -> None:
    with pytest.raises(BaseModelError, match="no base named; built-in: smollm2-135m"):
        resolve_base(name)


def test_a_mistyped_built_in_is_guessed() -> None:
    with pytest.raises(BaseModelError) as caught:
        resolve_base("smolm2-135m")
    assert str(caught.value) == (
        "unknown base 'smolm2-135m' (did you mean 'smollm2-135m'?); built-in: smollm2-135m; or "
        "pass a local folder, a .gguf file or a hub id ORGANISATION/NAME"
    )


@pytest.mark.parametrize("name", ["models/lama", "./models/lama", "{tmp}/models/lama"])
def test_a_path_that_does_not_exist_shows_what_is_there(tmp_path: Path, name: str) -> None:
    for entry in ("llama", "mistral", ".hidden"):
        (tmp_path / "models" / entry).mkdir(parents=True)
    given = name.format(tmp=tmp_path)
    with pytest.raises(BaseModelError) as caught:
        resolve_base(given)
    message = str(caught.value)
    assert f"base '{given}' does not exist (did you mean 'llama'?)" in message
    assert "there are: llama, mistral;" in message
    assert ".hidden" not in message


def test_a_path_far_from_anything_shows_the_nearest_folder(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"d{number:02}").mkdir()
    with pytest.raises(BaseModelError, match=rf"in '{tmp_path}' there are: .* and 4 more; or pass"):
        resolve_base(str(tmp_path / "no" / "such" / "folder"))


def test_an_address_is_shortened_to_its_hub_id() -> None:
    with pytest.raises(BaseModelError) as caught:
        resolve_base("https://hf.co/some/base/tree/main")
    assert str(caught.value) == (
        "base 'https://hf.co/some/base/tree/main' is an address; pass the hub id, some/base"
    )


@pytest.mark.parametrize("content", ["{}", '{"weight_map": ["model.safetensors"]}'])
def test_an_index_that_is_none(tmp_path: Path, content: str) -> None:
    folder = save_tiny_base(tmp_path / "base")
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(BaseModelError, match=r"index\.json has no weight_map; copy or download"):
        resolve_base("base")


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_what_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    name = str(save_tiny_base(tmp_path / "base"))
    if kind == "gguf":
        write_tiny_gguf(tmp_path / "x.gguf")
        name = str(tmp_path / "x.gguf")

    def refuse(path: Path, *args: object, **options: object) -> object:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "read_text" if kind == "folder" else "open", refuse)
    with pytest.raises(BaseModelError, match=rf"^base '{name}' cannot be read: Permission denied"):
        resolve_base(name)


def test_a_name_too_long_for_the_file_system() -> None:
    with pytest.raises(BaseModelError, match="cannot be read: File name too long; mend that"):
        resolve_base("x" * 5000)


def test_a_missing_gguf_file_is_not_taken_for_a_hub_id(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"base 'org/x\.gguf' does not exist"):
        resolve_base("org/x.gguf")
