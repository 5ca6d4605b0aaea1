"""The demo: domains learned one after the other, by private adapters with a router and by one LoRA.

Run as:  make demo          (or: python -m demo.run)
         make demo-quick    (or: python -m demo.run --quick)

It first times this machine. The full form (4 domains) takes up to ten minutes on two cores with
AVX512-BF16; where it would take longer, the short form (2 domains) runs. Everything lies in
``demo/out`` (the short form's in ``demo/out/quick``). Stopped at any moment, it goes on from there
when started again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from asr.cli.output import fail, seconds, stdout
from asr.errors import AsrError, DirectoryError
from demo import domains
from demo.questions import questions_for

if TYPE_CHECKING:
    from asr.base.load import LoadedBase
    from demo.forms import Form
    from demo.story import Narrator, Story

CONFIG = Path(__file__).parents[1] / "configs" / "demo.yaml"
OUT = Path("demo/out")
PACE_FILE = "pace.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo from the command line; return the exit status."""
    given = _parser().parse_args(arguments)
    console = stdout()
    try:
        _run(given, console)
    except AsrError as error:
        fail(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        again = shlex.join(["python", "-m", "demo.run", *(arguments or sys.argv[1:])])
        fail(f"what is finished is kept; go on with: {again}", label="stopped")
        return 130
    return 0


def _run(given: argparse.Namespace, console: Console) -> None:
    began = time.perf_counter()
    file = next((place for place in (given.out, *given.out.parents) if place.is_file()), None)
    if file is not None:
        raise DirectoryError(f"'{file}' is a file; give a folder with --out")
    console.print("Loading PyTorch ...", style="dim")
    from asr.base.quiet import quiet_libraries
    from demo.forms import FULL, QUICK, Budget, choose, stage_costs
    from demo.story import Narrator

    full, quick = (_resized(form, given) for form in (FULL, QUICK))
    asked = quick if given.quick else full if given.full else None
    out = given.out

    _headline(console, "1. This machine")
    with quiet_libraries():
        narrator = Narrator(console, Budget({}, 1.0))
        base = _load(given.base, narrator)
    form = asked or full
    story = _prepare(form, base, out, narrator)
    rate = _pace(story, out)
    costs = stage_costs(story.domains, form)
    form, why = choose(asked, costs, rate)
    form = _resized(form, given)
    console.print(Text(why, style="bold"), soft_wrap=True)
    if _folder(out, form) != story.out:
        story = _prepare(form, base, out, narrator)
        costs = stage_costs(story.domains, form)
    narrator.budget = Budget(costs, rate)

    _headline(console, f"2. {len(form.domains)} domains that the project makes itself")
    for name in form.domains:
        user, assistant = domains.make_domain(name, "test", 1)[0]["messages"]
        console.print(Text(name, style="bold"))
        console.print(Text(f"  {user['content'].splitlines()[-1]}"), soft_wrap=True)
        answer = assistant["content"].replace("\n", "\n  ")
        console.print(Text(f"  {answer}", style="cyan"), soft_wrap=True)
    console.print(f"\n{form.train} training and {form.test} test examples each, in {story.out}")

    _headline(console, "3. Learn them one after the other, in two ways")
    console.print(
        "private + router: every domain has an adapter of its own on one frozen base;\n"
        "                  a router in closed form picks the adapter for each prompt\n"
        "one LoRA:         one adapter goes on from domain to domain, as people do today\n"
        "Both get the same examples, steps, batches and learning rate. A score that has fallen by\n"
        "more than a twentieth since its domain was learned is marked with !",
        soft_wrap=True,
    )
    try:
        ours, other = story.tell()
    finally:
        narrator.display.close()
    figure, *_ = story.draw(ours, other)
    console.print(f"\nfigure: {figure}", soft_wrap=True)

    _headline(console, "4. Ask in your own words: the router picks the adapter, or none")
    story.ask(questions_for(form.domains))

    _headline(console, f"Done in {seconds(time.perf_counter() - began)}")
    console.print(_next(story.model, figure), soft_wrap=True)


def _prepare(form: Form, base: LoadedBase, out: Path, narrator: Narrator) -> Story:
    """Write the data of a form, read and check it as training does.

    Rendered with the chat template of an earlier start of that form, where there is one: a template
    may hold the date of its day.
    """
    from asr.atomic import storage_errors
    from asr.base.tokenizer import make_template
    from asr.compare import load_test_sets
    from asr.model.directory import ModelDirectory
    from asr.train.config_file import load_config
    from asr.train.prepare import feature_contract, prepare_domains
    from demo.story import Story

    folder = _folder(out, form)
    saved = ModelDirectory(folder / "model").chat_template
    if saved.is_file():
        template = make_template(base.tokenizer, saved.read_text(encoding="utf-8"))
        base = replace(base, template=template)
    with storage_errors(folder):
        domains.write(folder, form.domains, train=form.train, test=form.test)
    config = load_config(CONFIG)
    chosen = {
        name: config.domains[name].model_copy(
            update={split: (folder / f"{name}.{split}.jsonl").resolve() for split in domains.SPLITS}
        )
        for name in form.domains
    }
    router = config.router.model_copy(update={"background": form.background})
    config = config.model_copy(update={"domains": chosen, "base": base.name, "router": router})
    layer = feature_contract(config, base).layer
    prepared = prepare_domains(config, base, layer, 1)
    return Story(config, base, prepared, load_test_sets(prepared), folder, narrator)


def _load(name: str | None, narrator: Narrator) -> LoadedBase:
    """Load the base, once for whatever form is chosen."""
    from asr.base.load import load_base
    from asr.train.config_file import load_config

    config = load_config(CONFIG)
    return load_base(
        name or config.base,
        device=config.device,
        dtype=config.dtype,
        say=narrator.say,
    )


def _pace(story: Story, out: Path) -> float:
    """Training tokens/s of this machine: measured, or as an earlier start measured it.

    Kept, so that a demo that goes on takes the form that it began with.
    """
    from asr.atomic import write_json
    from demo.forms import measure

    path = out / PACE_FILE
    try:
        rate = float(json.loads(path.read_text())["training_tokens_per_second"])
        if rate > 0:
            return rate
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not measured yet, or damaged: measured now
    story.narrator.say("timing a few training steps ...")
    rate = measure(story.base, story.domains[0])
    write_json(path, {"training_tokens_per_second": rate})
    return rate


def _resized(form: Form, given: argparse.Namespace) -> Form:
    return replace(
        form,
        train=given.train or form.train,
        test=given.test or form.test,
        background=given.background or form.background,
    )


def _folder(out: Path, form: Form) -> Path:
    """The full form lies in ``out`` itself, where ``configs/demo.yaml`` looks for its data."""
    return out if form.name == "full" else out / form.name


def _headline(console: Console, text: str) -> None:
    """Print the title of a part."""
    console.print(Text(f"\n== {text} {'=' * max(0, 76 - len(text))}\n", style="bold"))


def _next(folder: Path, figure: Path) -> str:
    model = shlex.quote(str(folder))
    lines = [
        (f"asr chat {model}", "talk to it; each turn shows its route"),
        (f'asr route {model} "..."', "where a prompt goes, and how sure that is"),
        (
            f"asr serve {model}",
            "the same over HTTP, with a page; demo/ask.sh and demo/ask.py ask it",
        ),
        (f"asr add {model} mine=mine.jsonl", "a domain of your own; no other is touched"),
        (f"asr eval {model} --split test", "the whole matrix, with the instruction and without"),
        (f"asr info {model}", "what is in the model directory"),
        ("asr train configs/demo.yaml --out DIR", "what the private part of the demo did"),
    ]
    wide = max(len(command) for command, _ in lines)
    shown = "\n".join(f"  {command:{wide}}  {meaning}" for command, meaning in lines)
    return f"Look at {figure}, then type one of:\n{shown}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m demo.run",
        description="Learn domains one after the other, with private adapters and a router and "
        "with one LoRA, and see which of the two forgets.",
        epilog="Stopped at any moment, it goes on when started again. To start anew, delete DIR.",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--quick", action="store_true", help="two domains: about three minutes")
    form.add_argument("--full", action="store_true", help="four domains, however long it takes")
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="default: demo/out")
    parser.add_argument("--base", metavar="BASE", help="another base than configs/demo.yaml names")
    parser.add_argument("--train", type=_count, metavar="N", help="training examples per domain")
    parser.add_argument("--test", type=_count, metavar="N", help="test examples per domain")
    parser.add_argument(
        "--background", type=_count, metavar="N", help="prompts of the router's background class"
    )
    return parser


def _count(text: str) -> Any:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value


if __name__ == "__main__":
    sys.exit(main())
