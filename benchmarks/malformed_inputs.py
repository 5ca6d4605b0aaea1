"""Malformed data files and configs, by the hundred, through the command line.

Run as:  python -m benchmarks.malformed_inputs [--show KIND]

Every input is written into a folder of its own and given to ``asr check`` (or ``asr train``) in
this process, through the same entry as in a terminal. It has to end with exit code 2 and a message
that names the file or setting, in one line where one thing is wrong. The same files and the same
config without the mistake are checked first: those have to pass, or the mistakes would prove
nothing. Everything is deterministic; nothing is fetched. Exits 1 if anything is not as it must be.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from asr.cli.main import main as run_command
from benchmarks.malformed import configs, files, rows
from benchmarks.malformed.case import Case, checked

ENVIRONMENT = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200", "HF_HUB_OFFLINE": "1"}

FAULTS = ("traceback", "accepted", "exit code", "nameless", "long-winded")
"""What can be wrong with a refusal, the worst first."""


@dataclass(frozen=True)
class Outcome:
    """What the command did with a case; ``fault`` is None where it refused it as it must."""

    case: Case
    code: int
    message: str
    fault: str | None


def all_cases() -> list[Case]:
    """Return every malformed input; names are unique within a kind."""
    found = [*rows.cases(), *files.cases(), *configs.cases()]
    twice = [key for key, n in Counter((c.kind, c.name) for c in found).items() if n > 1]
    assert not twice, f"named twice: {twice}"
    return found


def good_cases() -> list[Case]:
    """Return what the malformed inputs are made from, unspoilt."""
    good = [
        checked("good", f"rows of {fmt}", "data.jsonl", rows.lines(rows.rows_of(fmt, 4)))
        for fmt in rows.GOOD
    ]
    pair = {"prompt": ["a", "b"], "completion": ["c", "d"]}
    good += [
        checked("good", "CSV", "data.csv", files.HEAD + b"a,b\n"),
        checked("good", "Parquet", "data.parquet", files.parquet(pair)),
        checked("good", "a JSON array", "data.json", b'[{"prompt": "a", "completion": "b"}]'),
        checked("good", "BOM, CRLF, blank lines", "data.jsonl",
                b"\xef\xbb\xbf" + files.GOOD_LINES.replace(b"\n", b"\r\n\r\n")),
    ]  # fmt: skip
    config = {**configs.DATA, "c.yaml": configs.GOOD.encode()}
    return [*good, Case("good", "config", config, ("check", "c.yaml"), "c.yaml")]


def run_case(case: Case, folder: Path, base: Path) -> Outcome:
    """Write a case into an empty folder and run its command there.

    Args:
        case: what to run.
        folder: exists and is empty.
        base: what BASE in configs stands for.
    """
    case.write(folder)
    for path in folder.glob("*.yaml"):
        if path.is_file():
            path.write_bytes(path.read_bytes().replace(b"base: BASE", b"base: %s" % bytes(base)))
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = run_command(list(case.command))
        except BaseException as error:  # the entry promises to return a code, whatever happens
            code = -1
            err.write(f"Traceback: {type(error).__name__}: {error}")
    message = err.getvalue().strip()
    return Outcome(case, code, message, _fault(case, code, out.getvalue(), message))


def _fault(case: Case, code: int, out: str, message: str) -> str | None:
    if "Traceback" in message + out or "internal error" in message or code == -1:
        return "traceback"
    if code == 0:
        return "accepted"
    if code != 2:
        return "exit code"
    # libraries and the usage line of a mistyped command may stand around the message
    error = message[message.find("error: ") :].partition("\nUsage:")[0]
    if "error: " not in message or case.blamed not in error:
        return "nameless"
    if not case.several and len(error.splitlines()) > 1:
        return "long-winded"
    return None


def run_all(cases: Sequence[Case], base: Path) -> Iterator[Outcome]:
    """Run cases one after the other, each in a folder of its own."""
    with tempfile.TemporaryDirectory() as root, _environment(Path(root)):
        for number, case in enumerate(cases):
            folder = Path(root) / str(number)
            folder.mkdir()
            yield run_case(case, folder, base)


@contextlib.contextmanager
def _environment(root: Path) -> Iterator[None]:
    """Set what decides about colours, widths and caches: the same on every machine."""
    wanted = {**ENVIRONMENT, "ASR_CACHE": str(root / "cache")}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def main() -> int:
    """Run everything, print the table, return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--show", metavar="KIND", help="print the messages of one kind, or of all")
    args = parser.parse_args()
    from tests.tiny_models import save_tiny_base

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        base = save_tiny_base(Path(folder) / "base")
        spoilt = [outcome for outcome in run_all(good_cases(), base) if outcome.code != 0]
        outcomes = list(run_all(all_cases(), base))
    console = Console(markup=False, highlight=False, emoji=False, width=110)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("kind", no_wrap=True)
    for title in ("inputs", "refused", *FAULTS):
        table.add_column(title, justify="right")
    for kind in dict.fromkeys(outcome.case.kind for outcome in outcomes):
        of_kind = [outcome for outcome in outcomes if outcome.case.kind == kind]
        table.add_row(kind, *_counts(of_kind))
    table.add_row("all", *_counts(outcomes), style="bold")
    console.print(table)
    console.print(f"{time.perf_counter() - started:.0f} s", style="dim")
    for outcome in [*spoilt, *(outcome for outcome in outcomes if outcome.fault)]:
        what = outcome.fault or "a good input is refused"
        console.print(f"\n{what}: {outcome.case.kind}: {outcome.case.name} (exit {outcome.code})")
        console.print(outcome.message or "(no message)", soft_wrap=True)
    for outcome in outcomes if args.show else ():
        if args.show in ("all", outcome.case.kind):
            console.print(f"\n{outcome.case.kind}: {outcome.case.name}", style="bold")
            console.print(outcome.message, soft_wrap=True)
    return 1 if spoilt or any(outcome.fault for outcome in outcomes) else 0


def _counts(outcomes: Sequence[Outcome]) -> list[str]:
    faults = Counter(outcome.fault for outcome in outcomes)
    return [str(n) for n in (len(outcomes), faults[None], *(faults[fault] for fault in FAULTS))]


if __name__ == "__main__":
    sys.exit(main())
