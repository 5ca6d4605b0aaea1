"""``asr generate``: answer prompts, each with the adapter that the router chooses for it."""

from __future__ import annotations

import json
import math
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.text import Text

from asr.cli.boundary import StoppedError
from asr.cli.options import (
    BaseOption,
    DeviceOption,
    DtypeOption,
    FileOption,
    JsonOption,
    ModelArgument,
    PromptsArgument,
    QuantisationOption,
    TrustOption,
    load_model,
)
from asr.cli.output import counted, note, seconds, stdout, write_line
from asr.cli.prompts import Asked, described, last_words, read_prompts
from asr.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from asr.model.routed_model import Generation
    from asr.router import Decision

AdapterOption = Annotated[
    str,
    typer.Option("--adapter", metavar="NAME", help="auto (the router decides), base, or a domain."),
]
LengthOption = Annotated[
    int, typer.Option("--max-new-tokens", metavar="N", min=1, help="Longest answer.")
]
TemperatureOption = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        metavar="T",
        help="Sample at this temperature; 0 or nothing: the likeliest token.",
        show_default=False,
    ),
]
TopPOption = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        metavar="P",
        help="Sample from the likeliest tokens that make up P.",
        show_default=False,
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option("--seed", metavar="S", min=0, help="Seed of the sampling.", show_default=False),
]


def generate(
    model: ModelArgument,
    prompts: PromptsArgument = None,
    file: FileOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE.jsonl",
            help="Write the answers as JSON lines into a new file.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE.jsonl.")] = False,
    adapter: AdapterOption = "auto",
    max_new_tokens: LengthOption = 256,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    seed: SeedOption = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", metavar="N", min=1, help="Prompts generated together.")
    ] = 16,
    as_json: JsonOption = False,
    base: BaseOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantisation: QuantisationOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    r"""Answer prompts, each with the adapter that the router chooses for it.

    \b
    asr generate MODEL "How do I reset my PIN?"
    asr generate MODEL --file prompts.jsonl --out answers.jsonl
    cat letter.txt | asr generate MODEL - --adapter legal --json
    """
    sampling = sampling_fields(temperature, top_p)
    asked = read_prompts(prompts, file)
    if out is not None:
        _require_writable(out, overwrite)
    routed = load_model(
        model,
        adapter=adapter,
        base=base,
        device=device,
        dtype=dtype,
        quantisation=quantisation,
        trust_remote_code=trust_remote_code,
    )
    routed.check(asked, max_new_tokens)  # what does not fit is found before the first answer
    set_seed(seed)
    began, tokens, done = time.perf_counter(), 0, 0
    console = stdout()
    try:
        with ExitStack() as stack:
            lines = None if out is None else stack.enter_context(_opened(out))
            # A few batches at a time: long prompts find company, and answers are written as they
            # come.
            for start in range(0, len(asked), 8 * batch_size):
                part = asked[start : start + 8 * batch_size]
                answers = routed.generate(
                    part,
                    adapter=adapter,
                    max_new_tokens=max_new_tokens,
                    batch_size=batch_size,
                    **sampling,
                )
                for prompt, answer in zip(part, answers, strict=True):
                    done += 1
                    tokens += answer.new_tokens
                    line = json.dumps(_record(prompt, answer), ensure_ascii=False)
                    if lines is not None:
                        lines.write(line + "\n")
                    if as_json:
                        write_line(line)
                    elif lines is None:
                        _show(
                            console, prompt, answer, last=done == len(asked), several=len(asked) > 1
                        )
                if lines is not None:
                    lines.flush()
                    if done < len(asked):
                        note(f"{done} of {len(asked)} prompts")
    except KeyboardInterrupt:
        if out is None:
            raise
        raise StoppedError(
            f"stopped; {out} holds the first {done} of {counted(len(asked), 'answer')}"
        ) from None
    if out is not None:
        spent = time.perf_counter() - began
        speed = f"{tokens / spent:,.0f} tokens/s" if spent else ""
        note(f"wrote {out}: {counted(done, 'answer')} in {seconds(spent)}, {speed}")


def sampling_fields(temperature: float | None, top_p: float | None) -> dict[str, Any]:
    """Return the generation fields of the sampling options; none for greedy decoding.

    Raises:
        ConfigError: a temperature below 0, a share outside (0, 1].
    """
    if temperature is not None and not (math.isfinite(temperature) and temperature >= 0):
        raise ConfigError(f"--temperature is {temperature:g}; give 0 or more")
    if top_p is not None and not 0 < top_p <= 1:
        raise ConfigError(f"--top-p is {top_p:g}; give more than 0 and at most 1")
    if temperature == 0 and top_p is not None:
        raise ConfigError("--temperature 0 takes the likeliest token: leave --top-p out")
    if temperature == 0 or (temperature is None and top_p is None):
        return {}
    fields: dict[str, Any] = {"do_sample": True, "temperature": temperature or 1.0}
    if top_p is not None:
        fields["top_p"] = top_p
    return fields


def set_seed(seed: int | None) -> None:
    """Seed the sampling, if a seed is given."""
    if seed is not None:
        import torch

        torch.manual_seed(seed)


def headline(adapter: str, decision: Decision | None) -> str:
    """Return who answers and why, on one line."""
    if decision is None:
        return f"{adapter} (named, not routed)"
    margin = "" if decision.margin is None else f", margin {decision.margin:.3f}"
    if decision.abstained:
        return (
            f"base (nearest: {decision.domain}, score {decision.score:.3f} below the threshold "
            f"{decision.threshold:.3f}{margin})"
        )
    return f"{adapter} (score {decision.score:.3f}{margin})"


def _record(prompt: Asked, answer: Generation) -> dict[str, Any]:
    decision = answer.decision
    record: dict[str, Any] = {
        **described(prompt),
        "adapter": answer.adapter,
        "text": answer.text,
        "finish": answer.finish,
        "prompt_tokens": answer.prompt_tokens,
        "new_tokens": answer.new_tokens,
    }
    if decision is not None:
        record |= {
            "score": decision.score,
            "margin": decision.margin,
            "probability": decision.probability,
            "abstained": decision.abstained,
        }
    return record


def _show(
    console: Console, prompt: Asked, answer: Generation, *, last: bool, several: bool
) -> None:
    if several:
        shown = Text(f"> {last_words(prompt)}", style="dim", overflow="ellipsis", no_wrap=True)
        console.print(shown)
    console.print(Text(headline(answer.adapter, answer.decision), style="cyan"), soft_wrap=True)
    console.print(Text(answer.text), soft_wrap=True)
    if answer.finish == "length":
        note("(cut at --max-new-tokens)")
    if not last:
        console.print()


def _require_writable(path: Path, overwrite: bool) -> None:
    """Refuse a place for the answers before the model is loaded."""
    if path.is_dir():
        raise StorageError(f"--out: '{path}' is a folder; name a file")
    if path.exists() and not overwrite:
        raise StorageError(
            f"'{path}' exists; choose another name, or add --overwrite to replace it"
        )
    if not path.parent.is_dir():
        raise StorageError(f"--out: there is no folder '{path.parent}'; make it first")


def _opened(path: Path) -> TextIO:
    try:
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
