"""Kill a training run at moments spread over the whole of it, resume, and compare.

    python benchmarks/kill_resume.py [--kills 20] [--mode each|all|both] [--keep FOLDER]
                                     [--config configs/eight_domains.yaml]

A tiny random base and three tiny domains are made here; nothing is fetched. ``--config`` takes the
domains of a config instead (their files, scorers and order; 12 examples of each).

First one run is left alone. Then, in mode ``each``, every run is killed once (SIGKILL), each at
another moment, from the start of the run to its last save, and resumed to its end; in mode ``all``
one single run takes all the kills. Each directory that comes out is compared with the undisturbed
one: adapters, router statistics, router, matrices and kept prompts byte for byte, ledger without
times and paths, and no file more or less. Prints a table and a last line "N of N equal"; exits 1 if
one differs.

The moments count from where the run begins to touch its directory, so none is lost on imports. What
a run was doing when it was killed is read from the directory that it left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

DOMAINS = {
    "red": "Say the colour of it.",
    "sum": "Add the numbers.",
    "turn": "Turn the word.",
}

RUN = """
import sys
import torch
torch.set_num_threads(1)
import asr, asr.train.sequence
config = asr.load_config(sys.argv[1])
print("ready", flush=True)
asr.train_sequence(config, sys.argv[2], resume=True)
"""

CONFIG = """\
base: base
device: cpu
dtype: float32
adapter: {rank: 2, alpha: 4, dropout: 0.1}
router: {layer: 2, background: 12}
training: {epochs: 2, batch_size: 4, max_length: 512, save_steps: 2}
eval: {max_new_tokens: 6, max_examples: 4}
domains:
"""


def make_base(folder: Path) -> None:
    """Write a random Llama of four layers and a byte-level tokenizer with a ChatML template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["user assistant " + " ".join(DOMAINS.values())], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        chat_template=(
            "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + "
            "'<|im_end|>\\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
        ),
    ).save_pretrained(folder)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            pad_token_id=0,
            eos_token_id=2,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.35)
    model.save_pretrained(folder)


def make_workplace(folder: Path, rows: int = 48) -> Path:
    """Write base, data and config into ``folder``; return the config's path."""
    make_base(folder / "base")
    source = random.Random(0)
    lines = [CONFIG]
    for name, instruction in DOMAINS.items():
        examples = [
            {
                "prompt": f"{instruction}\n{name} item {i} {source.randint(0, 99)}",
                "completion": f"{name} {i % 3}",
            }
            for i in range(rows)
        ]
        text = "".join(json.dumps(example) + "\n" for example in examples)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
        lines.append(f"  {name}: {{train: {name}.jsonl}}\n")
    config = folder / "config.yaml"
    config.write_text("".join(lines), encoding="utf-8")
    return config


def borrow_domains(folder: Path, source: Path) -> Path:
    """Write the tiny base, and a config over the domains of ``source``; return its path."""
    import asr

    make_base(folder / "base")
    lines = [CONFIG]
    for name, domain in asr.load_config(source).domains.items():
        own = {"train": str(domain.train), "scorer": domain.scorer, "limit": 12}
        lines.append(f"  {name}: {json.dumps(own)}\n")
    config = folder / "config.yaml"
    config.write_text("".join(lines), encoding="utf-8")
    return config


def start(config: Path, out: Path) -> subprocess.Popen[bytes]:
    """Start a run that resumes whatever is in ``out``; return when its imports are done."""
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(config), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    if process.stdout.readline() != b"ready\n":
        _, errors = process.communicate()
        raise SystemExit(f"the run did not start:\n{errors.decode()}")
    return process


def finish(config: Path, out: Path) -> str:
    """Run to the end; return an empty string, or the last line of what went wrong."""
    process = start(config, out)
    _, errors = process.communicate(timeout=600)
    if process.returncode == 0:
        return ""
    return (errors.decode().strip().splitlines() or [f"exit {process.returncode}"])[-1]


def kill_after(config: Path, out: Path, seconds: float) -> bool:
    """Start a run and kill it after ``seconds``; return whether it was still alive."""
    process = start(config, out)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return True
    process.communicate()
    return False


def stage_of(out: Path) -> str:
    """What the killed run was doing, as its directory tells."""
    if not (out / "manifest.json").is_file():
        return "before the ledger"
    domains = json.loads((out / "manifest.json").read_text())["domains"]
    todo = [(name, entry["status"]) for name, entry in domains.items() if entry["status"] != "done"]
    staging = [path.name for path in out.rglob(".staging-*")]
    torn = [
        path.name
        for path in out.glob("checkpoints/*/checkpoint-*")
        if not (path / "asr_complete.json").is_file()
    ]
    saving = f", writing {(torn or staging)[0][:28]}" if torn or staging else ""
    if not todo:
        return f"last clean-up{saving}"
    name, status = todo[0]
    saved = sorted(
        int(path.parent.name.split("-")[1])
        for path in out.glob(f"checkpoints/{name}/checkpoint-*/asr_complete.json")
    )
    doing = {
        "pending": f"{name}: about to train",
        "training": f"{name}: training, step {saved[-1] if saved else 0} saved",
        "trained": f"{name}: statistics",
        "routed": f"{name}: router or evaluation",
    }[status]
    return doing + saving


def contents(out: Path) -> dict[str, object]:
    """Everything that two equal runs share."""
    from asr.model.manifest import Manifest

    # The lock names its holder; the cache of answers keeps the order in which they were made.
    apart = {".lock", "manifest.json", "answers.jsonl"}
    found: dict[str, object] = {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name not in apart
    }
    found["manifest.json"] = Manifest.load(out).comparable()
    found["answers"] = sorted((out / "eval" / "answers.jsonl").read_text().splitlines())
    return found


def differences(out: Path, whole: dict[str, object]) -> list[str]:
    """Names of what differs from the undisturbed run."""
    found = contents(out)
    return sorted(
        name for name in whole.keys() | found.keys() if whole.get(name) != found.get(name)
    )


@dataclass
class Row:
    """One kill of the table."""

    moment: str
    stage: str
    resumed: str
    equal: str


def show(rows: list[Row]) -> None:
    """Print the table."""
    head = Row("killed at", "what was on", "resumed", "equal")
    width = max(len(row.stage) for row in [head, *rows])
    for row in [head, *rows]:
        print(f"{row.moment:>10}  {row.stage:<{width}}  {row.resumed:<8} {row.equal}")


def judge(config: Path, out: Path, whole: dict[str, object]) -> tuple[str, str]:
    """Resume to the end and compare: the last two columns."""
    problem = finish(config, out)
    if problem:
        return f"no: {problem}", "-"
    different = differences(out, whole)
    return "ok", f"no: {', '.join(different)}" if different else "yes"


def one_kill_each(
    config: Path, folder: Path, kills: int, length: float, whole: dict[str, object]
) -> int:
    """One run per kill; return how many came out equal."""
    rows = []
    for index in range(kills):
        out = folder / f"each-{index}"
        moment = length * (index + 0.5) / kills
        while not kill_after(config, out, moment):
            # Faster than the undisturbed run: no kill, so it does not count. Try earlier.
            shutil.rmtree(out)
            moment *= 0.8
        rows.append(Row(f"{moment:.2f} s", stage_of(out), *judge(config, out, whole)))
        if rows[-1].equal == "yes":
            shutil.rmtree(out)
    show(rows)
    equal = sum(row.equal == "yes" for row in rows)
    print(f"{equal} of {kills} equal (one kill in each of {kills} runs)\n")
    return equal


def progress_of(out: Path) -> tuple[str, ...]:
    """What a later run would not do again: the ledger, and the checkpoints that are complete."""
    try:
        ledger = (out / "manifest.json").read_text(encoding="utf-8")
        saved = sorted(str(path) for path in out.glob("checkpoints/*/*/asr_complete.json"))
    except OSError:  # renamed or removed just now: look again
        return ()
    return (ledger, *saved)


def all_kills_in_one(
    config: Path, folder: Path, kills: int, length: float, whole: dict[str, object]
) -> bool:
    """All kills in one run, each just after it got further; return whether it came out equal."""
    rows: list[Row] = []
    out = folder / "all"
    source = random.Random(kills)
    while len(rows) < kills:
        before = progress_of(out)
        process = start(config, out)
        began = time.perf_counter()
        while process.poll() is None and progress_of(out) in (before, ()):
            time.sleep(0.002)
        time.sleep(source.uniform(0.0, 0.4) * length / kills)
        alive = process.poll() is None
        process.kill()
        process.communicate()
        stage = stage_of(out) if alive else "finished before the kill"
        rows.append(Row(f"+{time.perf_counter() - began:.2f} s", stage, "ok", ""))
        if not alive:
            break
    rows[-1].resumed, rows[-1].equal = judge(config, out, whole)
    show(rows)
    equal = rows[-1].equal == "yes"
    killed = sum(row.stage != "finished before the kill" for row in rows)
    print(f"{'equal' if equal else 'NOT EQUAL'} after {killed} kills in one run\n")
    return equal


def main() -> int:
    """Run both modes; exit status 1 where a directory differs."""
    import asr

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--mode", choices=("each", "all", "both"), default="both")
    parser.add_argument("--keep", type=Path, help="work here and leave the directories")
    parser.add_argument("--config", type=Path, help="take the domains of this config")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        config = borrow_domains(folder, given.config) if given.config else make_workplace(folder)
        process = start(config, folder / "whole")
        began = time.perf_counter()
        process.communicate(timeout=600)
        length = time.perf_counter() - began
        if process.returncode:
            raise SystemExit("the undisturbed run failed")
        whole = contents(folder / "whole")
        count = len(asr.load_config(config).domains)
        print(f"undisturbed run: {length:.2f} s, {count} domains, {len(whole)} files\n")
        good = True
        if given.mode in ("each", "both"):
            good &= one_kill_each(config, folder, given.kills, length, whole) == given.kills
        if given.mode in ("all", "both"):
            good &= all_kills_in_one(config, folder, given.kills, length, whole)
        return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
