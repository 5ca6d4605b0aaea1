"""What ``asr probe --out DIR`` writes: the result, its picture, and a config fragment.

Files of an earlier probe are replaced; a file of the same name that is none of ours is refused
before anything is measured. Each file is written beside its place and renamed into it.
"""

from __future__ import annotations

import json
from pathlib import Path

from asr.adapters.probe.result import PROBE_FILE, ModuleScore, ProbeResult
from asr.atomic import storage_errors, write_bytes, write_text
from asr.errors import DirectoryError

FIGURE_FILE = "probe.png"
FRAGMENT_FILE = "placement.yaml"

_FIRST_LINE = "# Made by asr probe."
_PNG_MARK = b"asr probe"
"""Stands in the title of the picture."""


def check_out(folder: Path) -> None:
    """Refuse a folder that cannot be made or that holds files of others under our names.

    Raises:
        DirectoryError: names the file and what to do.
    """
    try:
        there = folder.exists()
    except OSError as error:
        raise _cannot_make(folder, error) from error
    if not there:
        above = next(parent for parent in folder.absolute().parents if parent.exists())
        if not above.is_dir():
            raise DirectoryError(f"--out {folder}: {above} is a file; name another folder")
        return
    if not folder.is_dir():
        raise DirectoryError(f"--out {folder} is a file; name a folder")
    for name in (PROBE_FILE, FIGURE_FILE, FRAGMENT_FILE):
        path = folder / name
        if path.exists() and not _is_ours(path):
            raise DirectoryError(
                f"{path} was not written by asr probe and is not replaced; move it, or choose "
                "another --out"
            )


def write_probe(result: ProbeResult, folder: Path) -> list[Path]:
    """Write the three files; return their paths. Nothing is written unless all can be made.

    Raises:
        StorageError: the file system refuses.
        DirectoryError: see :func:`check_out`.
    """
    from asr.adapters.probe.figure import probe_png

    picture, fragment = probe_png(result), fragment_text(result)
    check_out(folder)
    try:
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # what a file system that is in order can refuse too
        raise _cannot_make(folder, error) from error
    write_bytes(folder / FIGURE_FILE, picture)
    write_text(folder / FRAGMENT_FILE, fragment)
    result.save(folder / PROBE_FILE)
    return [folder / name for name in (PROBE_FILE, FIGURE_FILE, FRAGMENT_FILE)]


def fragment_text(result: ProbeResult) -> str:
    """Return the fragment: the best module that keeps routing to one pass, and the alternatives."""
    best, why = suggested(result)
    settings = result.settings
    data = ", ".join(domain.name for domain in result.domains)
    if result.generic_text:
        data = "a generic text, not your data"
    lines = [
        _FIRST_LINE,
        "# Put the lines below into a training config, in place of its adapter section. (With",
        "# placement: dominant, asr train probes each domain by itself.)",
        f"# Base {_one_line(result.base.name)}; {_one_line(data)}; {settings.samples} samples x "
        f"{settings.seeds} seeds.",
        f"# {why}",
        f"# It receives {best.share:.1%} of the gradient energy of all {len(result.modules)} "
        "modules before the first step.",
    ]
    if result.within_noise:
        lines.append("# The first two modules are within noise of each other.")
    # YAML reads JSON strings: names with any sign in them stay text.
    lines += [
        "adapter:",
        f"  placement: {{modules: [{json.dumps(best.name, ensure_ascii=False)}]}}",
        f"  rank: {settings.rank}",
        f"  alpha: {settings.alpha:g}",
    ]
    if settings.use_rslora:
        lines.append("  use_rslora: true")
    if settings.init is not True:
        lines.append(f"  init_lora_weights: {settings.init}")
    winner = result.winner
    if winner.name != best.name:
        lines += [
            f"# Most of all ({winner.share:.1%}), below the router layer, so that routing takes "
            "two passes:",
            f"#  placement: {{modules: [{json.dumps(winner.name, ensure_ascii=False)}]}}",
        ]
    return "\n".join(lines) + "\n"


def suggested(result: ProbeResult) -> tuple[ModuleScore, str]:
    """Return the module to adapt, and why: the best one of the layers from the router layer up."""
    layer = result.base.router_layer
    if layer is None:
        return result.winner, "The module of most energy; the base is too shallow to route in."
    best = result.ranking(layer)[0]
    if best.name == result.winner.name:
        return best, f"The module of most energy; its layer is >= {layer}: routing takes one pass."
    return best, f"The module of most energy in layers >= {layer}: routing takes one pass."


def _cannot_make(folder: Path, error: OSError) -> DirectoryError:
    reason = error.strerror or str(error)
    return DirectoryError(f"--out {folder} cannot be made: {reason}; name another folder")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _is_ours(path: Path) -> bool:
    try:
        raw = path.read_bytes()
    except OSError:
        return False
    if path.name == FIGURE_FILE:
        return raw.startswith(b"\x89PNG") and _PNG_MARK in raw[:400]
    if path.name == FRAGMENT_FILE:
        return raw.startswith(_FIRST_LINE.encode())
    try:
        tree = json.loads(raw)
    except (ValueError, RecursionError):
        return False
    return isinstance(tree, dict) and {"schema_version", "base", "modules", "domains"} <= set(tree)
