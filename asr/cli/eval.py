"""``asr eval``: the matrices of a routed model, on the kept dev sets or on test files."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from asr.cli.named_data import named_data
from asr.cli.options import (
    QUANTISATIONS,
    BaseOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelArgument,
    QuantisationOption,
    TrustOption,
)
from asr.cli.output import counted, note, seconds, stderr, stdout, write_line
from asr.errors import ConfigError, DirectoryError, unknown

if TYPE_CHECKING:
    from asr.eval.matrix import EvalMatrix
    from asr.eval.reporting import EvalRun
    from asr.model.directory import ModelDirectory
    from asr.model.manifest import Manifest

SPLITS = ("dev", "test")
KINDS = ("templated", "bare", "both")
_LINE_SECONDS = 30.0


def evaluate(
    model: ModelArgument,
    split: Annotated[
        str | None,
        typer.Option(
            "--split",
            metavar="SPLIT",
            help="dev: what training measured (default); test: score the test files.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="NAME=DATA",
            help="Test file or hub data set of a domain, instead of the recorded one; may be "
            "repeated.",
            show_default=False,
        ),
    ] = None,
    kind: Annotated[
        str,
        typer.Option(
            "--kind",
            metavar="KIND",
            help="Prompts: templated (as trained), bare (without what all prompts of a domain "
            "share), or both.",
        ),
    ] = "both",
    max_examples: Annotated[
        int | None,
        typer.Option(
            "--max-examples",
            metavar="N",
            min=1,
            help="Score at most N examples of each test file.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", metavar="N", min=1, help="Prompts generated together.")
    ] = 16,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Folder for matrices and figures; default: inside MODEL.",
            show_default=False,
        ),
    ] = None,
    routing_only: Annotated[
        bool,
        typer.Option(
            "--routing-only",
            help="Judge the router alone; nothing is generated.",
            show_default=False,
        ),
    ] = False,
    questions: Annotated[
        Path | None,
        typer.Option(
            "--questions",
            metavar="FILE",
            help='With --routing-only: JSON lines, {"domain": NAME or "none", "prompt": ...}.',
            show_default=False,
        ),
    ] = None,
    strangers: Annotated[
        Path | None,
        typer.Option(
            "--unknown",
            metavar="FILE",
            help="With --routing-only: prompts that belong to no domain.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
    base: BaseOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantisation: QuantisationOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    r"""Show scores after every domain: base, routed, and with the right adapter forced (oracle).

    \b
    asr eval MODEL
    asr eval MODEL --split test
    asr eval MODEL --data legal=legal.test.jsonl --data sums=org/name:test
    asr eval MODEL --routing-only --questions questions.jsonl --unknown others.txt
    """
    named = named_data(data or [], example="test.jsonl")
    files = {name: Path(file) for name, file in named.items()}
    split = split or ("test" if files else "dev")
    for what, given, choices in (("split", split, SPLITS), ("kind", kind, KINDS)):
        if given not in choices:
            raise ConfigError(unknown(what, given, choices))
    if split == "dev" and (files or max_examples is not None):
        option = "--data" if files else "--max-examples"
        raise ConfigError(f"{option} belongs to --split test; dev shows what training measured")
    if quantisation is not None and quantisation not in QUANTISATIONS:
        raise ConfigError(unknown("quantisation", quantisation, QUANTISATIONS))
    if not routing_only and (questions is not None or strangers is not None):
        option = "--questions" if questions is not None else "--unknown"
        raise ConfigError(f"{option} belongs to --routing-only; add it")
    if routing_only and (files or max_examples is not None or split == "test"):
        raise ConfigError(
            "--routing-only takes --questions and --unknown; leave out --split, --data and"
            " --max-examples"
        )
    from asr.model.directory import ModelDirectory
    from asr.model.manifest import Manifest

    directory = ModelDirectory.open(model)
    manifest = Manifest.load(directory.path)
    kinds = ["templated", "bare"] if kind == "both" else [kind]
    loading = {
        "base": base,
        "device": device,
        "dtype": dtype,
        "quantisation": quantisation,
        "trust_remote_code": trust_remote_code,
    }
    if routing_only:
        from asr.cli.eval_routing import evaluate_routing

        chosen = out or directory.eval / "routing"
        evaluate_routing(directory, manifest, (questions, strangers), chosen, as_json, loading)
        return
    if split == "dev":
        _show_dev(directory, manifest, kinds, out or directory.eval, as_json, batch_size, loading)
        return
    _score_test(
        directory,
        manifest,
        files,
        kinds,
        out or directory.eval / "test",
        as_json=as_json,
        max_examples=max_examples,
        batch_size=batch_size,
        loading=loading,
    )


def _show_dev(
    directory: ModelDirectory,
    manifest: Manifest,
    kinds: list[str],
    folder: Path,
    as_json: bool,
    batch_size: int,
    loading: dict[str, Any],
) -> None:
    from asr.eval.history import load_matrices
    from asr.eval.reporting import draw_matrices, write_matrices

    stored = load_matrices(directory)
    kept = [directory.eval_prompts(name).is_file() for name in manifest.routed]
    if not stored and manifest.keep_eval and kept and all(kept):
        stored = _score_dev(directory, manifest, batch_size, loading)
    matrices = {kind: stored[kind] for kind in kinds if kind in stored}
    if not matrices:
        raise DirectoryError(
            f"'{directory.path}' has no stored evaluation (no domain is finished, or keep_eval is "
            "false); score test files with --split test or --data NAME=DATA"
        )
    folder.mkdir(parents=True, exist_ok=True)
    written = draw_matrices(matrices, folder)
    if folder.resolve() != directory.eval.resolve():
        written = [*write_matrices(matrices, folder), *written]
    _show(matrices, written, as_json, "dev", None)


def _score_dev(
    directory: ModelDirectory, manifest: Manifest, batch_size: int, loading: dict[str, Any]
) -> Mapping[str, EvalMatrix]:
    """Make the matrices on the kept prompts again, as training does (``asr remove`` drops them)."""
    from asr.eval.cache import EvalCache
    from asr.eval.evaluate import Evaluator
    from asr.eval.history import extend_matrices
    from asr.eval.reporting import MeasuredModel
    from asr.model.manifest import Manifest
    from asr.model.switch import complete_switch
    from asr.router import RouterSettings
    from asr.train.config import EvalConfig

    recorded = manifest.config.get("eval")
    settings = EvalConfig.model_validate(recorded if recorded is not None else {})
    # In the training's type, unless another is asked for: the answers were kept under it.
    chosen = {**loading}
    if chosen["dtype"] == "auto":
        chosen["dtype"] = manifest.numeric.dtype
    if chosen["device"] == "auto":
        chosen["device"] = manifest.config.get("device", "auto")
    with directory.lock():
        complete_switch(directory, Manifest.load(directory.path))
        note("no stored matrices: scoring the kept prompts; answers that are kept are not repeated")
        routed = MeasuredModel.from_pretrained(directory.path, say=note, **chosen)
        with EvalCache(directory.answers) as cache, _Progress(stderr()) as progress:
            return extend_matrices(
                Evaluator(routed, cache, batch_size, progress),
                RouterSettings.from_dict(manifest.router),
                settings.max_examples,
                settings.max_new_tokens,
            )


def _score_test(
    directory: ModelDirectory,
    manifest: Manifest,
    files: dict[str, Path],
    kinds: list[str],
    folder: Path,
    *,
    as_json: bool,
    max_examples: int | None,
    batch_size: int,
    loading: dict[str, Any],
) -> None:
    from asr.eval.cache import EvalCache
    from asr.eval.reporting import (
        MeasuredModel,
        draw_matrices,
        evaluate_sets,
        files_to_score,
        load_sets,
        write_matrices,
    )

    if not manifest.routed:
        raise DirectoryError(f"'{directory.path}' has no finished domain to score yet")
    sets = load_sets(manifest, files_to_score(manifest, files), max_examples)
    with directory.lock():  # answers are kept in the model directory
        routed = MeasuredModel.from_pretrained(directory.path, say=note, **loading)
        directory.eval.mkdir(exist_ok=True)
        total = sum(len(evaluated.examples) for evaluated in sets)
        note(f"scoring {counted(total, 'example')} of {counted(len(sets), 'domain')}")
        with (
            EvalCache(directory.answers) as cache,
            _Progress(stderr()) as progress,
        ):
            run = evaluate_sets(routed, sets, kinds, cache, batch_size, progress)
        folder.mkdir(parents=True, exist_ok=True)
        written = write_matrices(run.matrices, folder)
        written += draw_matrices(run.matrices, folder)
    _show(run.matrices, written, as_json, "test", run)


def _show(
    matrices: Mapping[str, EvalMatrix],
    written: list[Path],
    as_json: bool,
    split: str,
    run: EvalRun | None,
) -> None:
    if as_json:
        record: dict[str, Any] = {
            "split": split,
            "matrices": {
                kind: {
                    **json.loads(matrix.to_json()),
                    "op": {which: matrix.op(which) for which in ("routed", "oracle", "base")},
                    "bwt": matrix.bwt(),
                }
                for kind, matrix in matrices.items()
            },
            "written": [str(path) for path in written],
        }
        if run is not None:
            record["generated"] = run.generated
            record["likelihoods"] = run.likelihoods
            record["tokens_per_second"] = run.tokens_per_second
            record["seconds"] = run.seconds
        write_line(json.dumps(record, ensure_ascii=False, indent=1))
        return
    from asr.cli.tables import print_matrices

    console = stdout()
    print_matrices(matrices, console)
    console.print()
    if run is not None:
        console.print(f"{_work(run)}, {seconds(run.seconds)} in all", soft_wrap=True)
    for path in written:
        console.print(f"wrote {path}", soft_wrap=True)


def _work(run: EvalRun) -> str:
    """Return what had to be made, the rest having been kept from before."""
    parts = []
    if run.tokens_per_second is not None:
        speed = f"{run.tokens_per_second:,.0f} tokens/s"
        parts.append(f"{counted(run.generated, 'answer')} generated at {speed}")
    if run.likelihoods:
        parts.append(f"{counted(run.likelihoods, 'likelihood')} computed")
    return ", ".join(parts) or "every answer was in the cache"


class _Progress:
    """Shows what is being generated: one line that changes on a terminal, lines elsewhere.

    In a file there is a line for what begins, and another whenever half a minute has passed.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = console.status("") if console.is_terminal else None
        self._what = ""
        self._said = 0.0

    def __enter__(self) -> _Progress:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._status is not None:
            self._status.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        line = f"{what}: {done}/{total}"
        if self._status is not None:
            self._status.update(line)
        elif what != self._what or time.monotonic() - self._said >= _LINE_SECONDS:
            self._console.print(line, soft_wrap=True, highlight=False)
            self._what, self._said = what, time.monotonic()
