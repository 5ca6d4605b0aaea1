"""``asr eval MODEL --routing-only``: what the router makes of questions, without answering them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from asr.cli.output import counted, note, stdout, write_line
from asr.errors import DataError, DirectoryError

if TYPE_CHECKING:
    from asr.eval.routing.questions import Question
    from asr.eval.routing.report import RoutingReport, Share
    from asr.model.directory import ModelDirectory
    from asr.model.manifest import Manifest
    from asr.model.routed_model import RoutedModel

_CONFUSED = 5
"""Most wrong routes that are listed."""


def evaluate_routing(
    directory: ModelDirectory,
    manifest: Manifest,
    files: tuple[Path | None, Path | None],
    folder: Path,
    as_json: bool,
    loading: dict[str, Any],
) -> None:
    """Judge the router on questions of files, or on the prompts that the model keeps.

    Args:
        directory: of the model.
        manifest: of the model.
        files: labelled questions, and strangers' prompts; either may be None.
        folder: where report and figure are written.
        as_json: print the report instead of tables.
        loading: how the base is loaded.

    Raises:
        DataError: a file cannot be used, names the line.
        DirectoryError: no domain is finished, or nothing is kept and no file given.
    """
    from asr.atomic import write_bytes, write_json
    from asr.eval.routing.figures import routing_png
    from asr.model.routed_model import RoutedModel

    if not manifest.routed:
        raise DirectoryError(f"'{directory.path}' has no finished domain to route to yet")
    sets = _questions(directory, manifest, files)
    model = RoutedModel.from_pretrained(directory.path, say=note, **loading)
    try:
        reports = {name: _judge(model, questions) for name, questions in sets.items()}
    finally:
        model.close()
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, report in reports.items():
        path = folder / f"{name}.png"
        write_bytes(path, routing_png(report))
        written.append(path)
    record = {
        "sets": {name: report.to_dict() for name, report in reports.items()},
        "weak_adapters": _weak_adapters(directory),
    }
    write_json(folder / "routing.json", record)
    written.append(folder / "routing.json")
    if as_json:
        write_line(json.dumps({**record, "written": [str(p) for p in written]}, indent=1))
        return
    console = stdout()
    for name, report in reports.items():
        _show(name, report, console)
    for line in record["weak_adapters"]:
        console.print(f"[yellow]{line}[/]", soft_wrap=True)
    for path in written:
        console.print(f"wrote {path}", soft_wrap=True)


def _questions(
    directory: ModelDirectory, manifest: Manifest, files: tuple[Path | None, Path | None]
) -> dict[str, list[Question]]:
    """The sets to judge: one of the files, or the kept prompts as they are and bare."""
    from asr.eval.history import recorded_common_part
    from asr.eval.routing.questions import Question, questions_of_domains, read_questions
    from asr.model.background_prompts import own_messages
    from asr.model.kept_prompts import read_kept

    kept = {
        name: read_kept(directory.eval_prompts(name))
        for name in manifest.routed
        if directory.eval_prompts(name).is_file()
    }
    labelled, strangers = files
    found = []
    if labelled is not None:
        found += read_questions(labelled, manifest.routed)
    if strangers is not None:
        found += read_questions(strangers, manifest.routed, all_unknown=True)
    if found:
        texts = {
            name: {m["content"].strip() for e in rows for m in e.prompt if m["role"] == "user"}
            for name, rows in kept.items()
        }
        for line in questions_of_domains(found, texts):
            note(f"warning: {line}")
        if all(question.domain == "none" for question in found):
            note("warning: no question of a domain among them: what abstaining loses is not seen")
        return {"questions": found}
    if not kept:
        raise DirectoryError(
            f"'{directory.path}' keeps no prompts (keep_eval is false); give --questions FILE"
        )
    others = [
        Question(({"role": "user", "content": text},), "none", "", f"message {number}")
        for number, text in enumerate(own_messages(), start=1)
    ]
    note(
        "strangers are the project's own messages, half of which the router was fitted on:"
        " --questions FILE with prompts of yours tells more"
    )
    sets = {}
    for kind in ("templated", "bare"):
        rows = []
        for name, examples in kept.items():
            common = recorded_common_part(manifest, name)
            for number, example in enumerate(examples, start=1):
                turns = common.bare(example.prompt) if kind == "bare" else list(example.prompt)
                rows.append(Question(tuple(turns), name, "", f"{name} {number}"))
        sets[kind] = rows + others
    return sets


def _judge(model: RoutedModel, questions: list[Question]) -> RoutingReport:
    from asr.eval.routing.report import routing_report

    try:
        encoded = model.encode([list(q.messages) for q in questions], shorten=True)
    except DataError as error:
        raise DataError(f"{error} (questions are counted in the order of the files)") from error
    note(f"routing {counted(len(questions), 'question')}")
    return routing_report(
        model.router.decide_batch(model.embed(encoded)),
        [question.domain for question in questions],
        [question.group for question in questions],
        [len(question.text.split()) for question in questions],
    )


def _weak_adapters(directory: ModelDirectory) -> list[str]:
    """A line for each domain whose adapter is not better than the base on its own dev prompts."""
    from asr.eval.history import load_matrices

    lines = []
    for kind, matrix in load_matrices(directory).items():
        last = len(matrix.domains) - 1
        for place, name in enumerate(matrix.domains):
            own, base = float(matrix.oracle[last, place]), float(matrix.base[place])
            if own <= base if matrix.higher_is_better[place] else own >= base:
                lines.append(
                    f"'{name}' scores {own:.3f} with its adapter and {base:.3f} without, on its own"
                    f" {kind} dev prompts: the base does as well"
                )
    return lines


def _show(name: str, report: RoutingReport, console: Console) -> None:
    table = Table(title=name, title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("questions of", no_wrap=True)
    table.add_column("n", justify="right")
    table.add_column("best domain is theirs", no_wrap=True)
    table.add_column("answered by it", no_wrap=True)
    for domain, share in report.forced.items():
        table.add_row(domain, str(share.n), _text(share), _text(report.routed[domain]))
    console.print(table)
    for group, share in report.to_base.items():
        if share.n:
            console.print(f"{group}: {_text(share)} of {share.n} go to the base", soft_wrap=True)
    if report.auroc is not None:
        matched = "" if report.matched is None else f", {report.matched:.3f} at the same length"
        console.print(
            f"AUROC domains against strangers {report.auroc:.3f}{matched} (word count alone "
            f"{report.words:.3f})",
            soft_wrap=True,
        )
    console.print(
        f"probability that the route is right: Brier {report.brier:.3f} (the best constant "
        f"{report.constant_brier:.3f}), calibration error {report.ece:.3f}",
        soft_wrap=True,
    )
    wrong = [
        (count, report.domains[row], [*report.domains, "base"][column])
        for row, counts in enumerate(report.confusion)
        for column, count in enumerate(counts)
        if count and row != column
    ]
    for count, own, taken in sorted(wrong, key=lambda item: (-item[0], item[1:]))[:_CONFUSED]:
        console.print(f"{count} of {own} went to {taken}", soft_wrap=True)
    console.print()


def _text(share: Share) -> str:
    if share.share is None:
        return "-"
    return f"{share.share:.3f} [{share.low:.2f}, {share.high:.2f}]"
