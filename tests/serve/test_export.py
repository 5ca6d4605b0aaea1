from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asr.errors import ConfigError, DirectoryError
from asr.model.contract import FeatureContract, NumericContract, Truncation
from asr.model.directory import file_sha256
from asr.model.manifest import AdapterEntry, BaseEntry, Manifest, RouterEntry, Versions
from asr.serve.export import VLLM_RANKS, export_vllm
from tests.tiny_models import save_tiny_base

A, B = "a" * 64, "b" * 64
MODULE = "model.layers.3.mlp.down_proj"
RESTORE = "restore it from a copy, or remove the domain and train it again"


class Made:
    """A routed model directory as far as an export reads it."""

    def __init__(self, root: Path, name: str = "model") -> None:
        self.base = root / "base"
        self.path = root / name
        self.path.mkdir(parents=True)
        (self.path / "chat_template.jinja").write_text("{{ messages }}")
        self.manifest = Manifest(
            versions=Versions(asr="0.1.0", torch="2", transformers="5", peft="0.21", numpy="2"),
            base=BaseEntry(
                name=str(self.base),
                source="folder",
                fingerprint=A,
                n_layers=4,
                hidden_size=32,
                architecture="LlamaForCausalLM",
            ),
            contract=FeatureContract(
                base_fingerprint=A,
                layer=2,
                template_hash=B,
                truncation=Truncation(max_length=128),
                views=("templated",),
            ),
            numeric=NumericContract(dtype="float32", device="cpu"),
        )

    def add(self, name: str, *, version: int = 1, rank: int = 8, **config: Any) -> Path:
        """Add a finished domain; ``config`` goes into its adapter_config.json."""
        suffix = "" if version == 1 else f".v{version}"
        folder = self.path / "adapters" / f"{name}{suffix}"
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_bytes(b"")
        tree = {"peft_type": "LORA", "r": rank, "target_modules": [MODULE], "bias": "none"}
        (folder / "adapter_config.json").write_text(json.dumps(tree | config))
        made = AdapterEntry(
            sha256=A,
            config_sha256=file_sha256(folder / "adapter_config.json"),
            parameters=1000 * rank,
            bytes=40,
            rank=rank,
            version=version,
        )
        router = RouterEntry(sha256=B, prompts=7)
        self.manifest.add(
            name, status="done", adapter=made, router=router, adapter_versions=version
        )
        return folder

    def change_base(self, **fields: Any) -> None:
        self.manifest.base = self.manifest.base.model_copy(update=fields)

    def save(self) -> Path:
        self.manifest.save(self.path)
        return self.path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "base"
    save_tiny_base(folder)
    return folder


@pytest.fixture
def make(tmp_path: Path, base: Path) -> Callable[..., Made]:
    def made(name: str = "model") -> Made:
        shutil.copytree(base, tmp_path / "base")
        return Made(tmp_path, name)

    return made


def test_the_command_holds_every_adapter_and_the_router(make: Callable[..., Made]) -> None:
    model = make()
    for name in ("zebra", "apple"):
        model.add(name)
    model.manifest.add("unfinished")
    root = model.save()
    made = export_vllm(root)
    assert made.problems == [] and made.notes == []
    assert made.environment == {"ASR_MODEL": str(root)}
    assert made.command == [
        *("vllm", "serve", str(model.base), "--served-model-name", str(model.base), "base"),
        *("--enable-lora", "--lora-modules"),
        *(f"zebra={root}/adapters/zebra", f"apple={root}/adapters/apple"),
        *("--max-lora-rank", "8", "--max-loras", "2", "--max-cpu-loras", "2"),
        *("--chat-template", f"{root}/chat_template.jinja"),
        *("--middleware", "asr.serve.RouteAuto"),
    ]


def test_paths_are_absolute_and_links_stay(
    make: Callable[..., Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make()
    model.add("red")
    root = model.save()
    (root.parent / "current").symlink_to(root)
    monkeypatch.chdir(root.parent / "base")
    made = export_vllm(Path("..") / "current")
    assert made.environment["ASR_MODEL"] == str(root.parent / "current")
    assert made.adapters == {"red": root.parent / "current" / "adapters" / "red"}


def test_an_extended_domain_has_its_version_in_use(make: Callable[..., Made]) -> None:
    model = make()
    model.add("red", version=2)
    root = model.save()
    assert f"red={root}/adapters/red.v2" in export_vllm(root).command


@pytest.mark.parametrize("name", ["it's a $(model); #1", "a,b", "vllm"])
def test_a_shell_reads_back_the_very_words(make: Callable[..., Made], name: str) -> None:
    model = make(name)
    model.add("red")
    model.add("sum")
    model.change_base(name="vllm", source="hub", revision="abc")
    made = export_vllm(model.save())
    # The variable is set for the command alone: a shell in its place prints it
    script = made.shell.replace(
        " vllm serve", ' sh -c \'printf "%s\\n" "$ASR_MODEL" "$@"\' vllm serve', 1
    )
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [made.environment["ASR_MODEL"], *made.command[1:]]
    options = sum(word.startswith("--") for word in made.command)
    assert len(made.shell.splitlines()) == 1 + options + len(made.adapters)


def test_a_path_with_a_comma_is_given_as_json(make: Callable[..., Made]) -> None:
    model = make("a,b")
    model.add("red")
    root = model.save()
    word = export_vllm(root).command[8]
    assert json.loads(word) == {"name": "red", "path": f"{root}/adapters/red"}


@pytest.mark.parametrize(
    ("ranks", "wanted"), [([1], 1), ([2, 4], 8), ([8, 17], 32), ([300], 320), ([512], 512)]
)
def test_the_rank_is_the_smallest_that_holds_all(
    make: Callable[..., Made], ranks: list[int], wanted: int
) -> None:
    model = make()
    for number, rank in enumerate(ranks):
        model.add(f"d{number}", rank=rank)
    made = export_vllm(model.save())
    assert made.max_lora_rank == wanted and wanted in VLLM_RANKS
    assert made.problems == []
    assert made.slot_bytes == 2 * len(ranks) * 1000 * wanted


def test_slots_can_be_fewer_than_adapters(make: Callable[..., Made]) -> None:
    model = make()
    for number in range(5):
        model.add(f"d{number}")
    root = model.save()
    words = shlex.join(export_vllm(root, max_loras=2).command)
    assert "--max-loras 2 --max-cpu-loras 5" in words
    assert export_vllm(root, max_loras=9).max_loras == 5
    with pytest.raises(ConfigError, match=r"^max_loras is 0; vLLM needs room for 1 adapter or mor"):
        export_vllm(root, max_loras=0)


def test_a_hub_base_is_named_with_its_commit_and_not_looked_up(make: Callable[..., Made]) -> None:
    model = make()
    model.add("red")
    model.change_base(name="nobody/has-this", source="hub", revision="c0ffee")
    words = export_vllm(model.save()).command
    assert words[2:7] == [
        *("nobody/has-this", "--revision", "c0ffee", "--served-model-name", "nobody/has-this")
    ]


def test_a_base_that_moved_is_asked_for(make: Callable[..., Made]) -> None:
    model = make()
    model.add("red")
    root = model.save()
    there = model.base.rename(model.base.with_name("moved"))
    (problem,) = export_vllm(root).problems
    assert problem.startswith(f"base '{model.base}' does not exist")
    assert problem.endswith("; say where it is with --base")
    made = export_vllm(root, base=str(there))
    assert made.problems == []
    assert made.command[2:5] == [str(there), "--served-model-name", str(model.base)]
    assert made.environment == {"ASR_MODEL": str(root), "ASR_BASE": str(there)}


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (
            {"rank": 600},
            "rank 600, vLLM takes up to 512; train it again with adapter.rank=512 or less, or use "
            "asr serve",
        ),
        (
            {"rank_pattern": {"^x": 1024}},
            "rank 1024, vLLM takes up to 512; train it again with adapter.rank=512 or less, or use "
            "asr serve",
        ),
        (
            {"use_dora": True, "bias": "all", "modules_to_save": ["lm_head"]},
            "modules_to_save, use_dora, bias in adapter_config.json: vLLM serves plain LoRA only; "
            "convert the adapter to plain LoRA",
        ),
        (
            {"target_modules": [MODULE, "lm_head"]},
            "vLLM does not adapt 'lm_head' (1 of 2 modules); train it again on linear modules of "
            "the decoder layers, or use asr serve",
        ),
        (
            {"target_modules": ["model.layers.3.mlp.experts.0.w1"]},
            "vLLM does not adapt 'model.layers.3.mlp.experts.0.w1' (1 of 1 modules); train it "
            "again on linear modules of the decoder layers, or use asr serve",
        ),
    ],
)
def test_what_vllm_cannot_serve(
    make: Callable[..., Made], config: dict[str, Any], problem: str
) -> None:
    model = make()
    model.add("fine")
    model.add("odd", **config)
    assert export_vllm(model.save()).problems == [f"domain 'odd': {problem}"]


def test_an_adapter_below_the_router_layer_is_fine(make: Callable[..., Made]) -> None:
    model = make()
    model.add("low", target_modules=["model.layers.0.self_attn.q_proj"])
    assert export_vllm(model.save()).problems == []


def test_an_architecture_without_adapters(make: Callable[..., Made]) -> None:
    model = make()
    model.add("red")
    model.change_base(architecture="GPT2LMHeadModel")
    assert export_vllm(model.save()).problems == [
        "vLLM 0.32 serves no adapters on GPT2LMHeadModel; use asr serve, or train on another base"
    ]


def test_files_that_are_gone_or_changed(make: Callable[..., Made]) -> None:
    model = make()
    folders = [model.add(name) for name in ("one", "two", "three", "four")]
    (folders[0] / "adapter_model.safetensors").unlink()
    (folders[1] / "adapter_config.json").unlink()
    (folders[2] / "adapter_config.json").write_text("{")
    (folders[3] / "adapter_config.json").write_text('{"r": 8, "lora_alpha": 800}')
    root = model.save()
    (root / "chat_template.jinja").unlink()
    problems = export_vllm(root).problems
    assert len(problems) == 5
    assert problems[0] == (
        f"domain 'one': {folders[0]}/adapter_model.safetensors is missing; {RESTORE}"
    )
    assert problems[1] == f"domain 'two': {folders[1]}/adapter_config.json is missing; {RESTORE}"
    assert re.fullmatch(
        r"domain 'three': .*config\.json cannot be read \(.*\); rest.*", problems[2]
    )
    assert problems[3] == f"domain 'four': {folders[3]}/adapter_config.json was changed; {RESTORE}"
    assert problems[4] == f"{root}/chat_template.jinja is missing; restore it from a copy"


def test_a_base_that_is_called_like_a_domain(make: Callable[..., Made]) -> None:
    model = make()
    model.add("red")
    model.change_base(name="red", source="hub")
    assert export_vllm(model.save()).problems == [
        "the base and a domain are both called 'red': vLLM cannot tell them apart; name the base "
        "by its folder when you train"
    ]


def test_a_quantised_base_is_noted(make: Callable[..., Made]) -> None:
    model = make()
    model.add("red")
    model.manifest.numeric = NumericContract(dtype="bfloat16", quantisation="nf4", device="cpu")
    made = export_vllm(model.save())
    assert made.problems == []
    assert made.notes == [
        "trained on the base in nf4, which vLLM loads in its own dtype (add --quantization "
        "bitsandbytes): answers may differ"
    ]


def test_a_model_without_a_finished_domain(make: Callable[..., Made]) -> None:
    model = make()
    model.manifest.add("red")
    root = model.save()
    with pytest.raises(DirectoryError) as caught:
        export_vllm(root)
    assert str(caught.value) == (
        f"'{root}' has no finished domain yet; run asr train with --resume"
    )
