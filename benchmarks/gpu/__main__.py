"""The command: run the parts, each in a process of its own and within its share of the time.

    python -m benchmarks.gpu --base BASE --data DATA --out OUT [--parts page quality]
    python -m benchmarks.gpu --rehearse --out OUT

A process of its own: what fails in one part, and the GPU's memory that it held, is gone with it.
``--rehearse`` takes a tiny random base and a few made-up examples instead, on a GPU or without.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu.parts import PARTS, Part
from benchmarks.gpu.quality import RATES, add_options

GRACE = 15.0
"""Seconds that a part may run beyond its time before it is ended from outside."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--base", default="smollm2-135m", help="default: smollm2-135m")
    made.add_argument("--data", help="folder of <domain>/{train,test}.jsonl")
    made.add_argument("--out", required=True, help="one JSON file a part is written here")
    made.add_argument("--work", help="for what is not kept; default: OUT/work")
    made.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    made.add_argument("--seconds", type=float, default=420.0, help="for all parts (420)")
    made.add_argument("--rehearse", action="store_true", help="tiny base and data")
    made.add_argument("--only", choices=PARTS, help=argparse.SUPPRESS)  # the part of this process
    made.add_argument("--until", type=float, help=argparse.SUPPRESS)  # its end, of time.time()
    add_options(made)
    return made


def main() -> int:
    """Run the parts; 1 where one of them failed or was ended, 0 where all finished or stopped."""
    options = parser().parse_args()
    options.work = options.work or str(Path(options.out) / "work")
    if options.rates is None:
        options.rates = list(RATES)
    Path(options.out).mkdir(parents=True, exist_ok=True)
    if options.only:
        part = Part(options.only, options, options.until - time.time())
        importlib.import_module(PARTS[options.only].module).run(part)
        return 0
    if options.rehearse:
        from benchmarks.gpu.rehearsal import write_rehearsal

        options.base, options.data = write_rehearsal(Path(options.work))
    elif options.data is None and "quality" in options.parts:
        parser().error("--data is needed, the folder of <domain>/{train,test}.jsonl")
    return run_parts(options)


def run_parts(options: argparse.Namespace) -> int:
    """Run the parts one after the other; a part that needs less leaves its time to the others."""
    # as an exception, so that the part under way is ended with this process
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    end = time.monotonic() + options.seconds
    failed = []
    waiting = [name for name in PARTS if name in options.parts]
    while waiting:
        name = waiting[0]
        weights = sum(PARTS[each].weight for each in waiting)
        share = (end - time.monotonic()) * PARTS[name].weight / weights
        print(f"== {name}: {share:.0f} s", flush=True)
        code = run_alone(name, options, share)
        report(Path(options.out) / f"{name}.json", code)
        failed += [name] if code else []
        del waiting[0]
    print(f"== failed: {', '.join(failed)}" if failed else "== done", flush=True)
    return 1 if failed else 0


def run_alone(name: str, options: argparse.Namespace, seconds: float) -> int:
    """Run a part in a process; its exit code, or 124 where it had to be ended."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--only", name]
    command += ["--until", str(time.time() + seconds)]  # what it imports counts
    for key, value in vars(options).items():
        if key in ("only", "until", "seconds", "parts") or value in (None, False):
            continue
        command.append(f"--{key.replace('_', '-')}")
        if value is not True:
            command += map(str, value if isinstance(value, list) else [value])
    # a session of its own, so that a part's own processes end with it
    process = subprocess.Popen(command, start_new_session=True)
    try:
        return process.wait(timeout=max(seconds, 0.0) + GRACE)
    except subprocess.TimeoutExpired:
        print(f"== {name}: ended, {GRACE:.0f} s beyond its time", flush=True)
        return 124
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def report(path: Path, code: int) -> None:
    """Say what a part left; a part that failed before its first figures leaves no file."""
    if not path.is_file():
        print(f"== no figures ({path}), exit code {code}", flush=True)
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    state = "complete" if found["complete"] else "stopped before its end"
    print(f"== {path}: {state}, {found['seconds']} s, exit code {code}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
