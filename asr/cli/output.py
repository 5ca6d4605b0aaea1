"""Where the command line writes: results on standard output, everything else on standard error.

Nothing that is printed is taken for markup: names, prompts and answers may hold brackets. Colours
follow ``NO_COLOR`` and are left out of pipes; that is rich's doing.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.text import Text


def stdout() -> Console:
    """Return a console on standard output."""
    return Console(markup=False, highlight=False, emoji=False)


def stderr() -> Console:
    """Return a console on standard error."""
    return Console(stderr=True, markup=False, highlight=False, emoji=False)


def is_main_process() -> bool:
    """Whether this process speaks: the only one, or the first of ``accelerate launch``."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def note(message: str) -> None:
    """Print a line about what happens on standard error; warnings in colour, the rest dim."""
    style = "yellow" if message.startswith("warning:") else "dim"
    stderr().print(Text(message, style=style), soft_wrap=True)


def fail(message: str, label: str = "error") -> None:
    """Print ``error: message`` on standard error."""
    text = Text(f"{label}: ", style="bold red").append(message, style="not bold default")
    stderr().print(text, soft_wrap=True)


def write_line(line: str) -> None:
    """Print a machine-readable line on standard output, as it is."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def command_line(parts: Iterable[Any]) -> str:
    """Return ``asr`` and its arguments as one can type them."""
    return shlex.join(["asr", *(str(part) for part in parts)])


def seconds(value: float) -> str:
    """Return a time for people: ``0.5 s``, ``42 s``, ``3 min 20 s``, ``1 h 05 min``."""
    if value < 9.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(value: int) -> str:
    """Return a number of bytes for people: ``812 B``, ``54.2 kB``, ``1.3 GB``."""
    amount = float(value)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


def counted(value: int, noun: str) -> str:
    """Return ``1 domain``, ``2 domains``."""
    return f"{value:,} {noun}{'' if value == 1 else 's'}"
