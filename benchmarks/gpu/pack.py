"""Carry a large file to a machine without a network, in pieces, and join it there.

    python -m benchmarks.gpu.pack split FILE OUT [--pieces 2]      OUT/<name>.0, .1, ..., .sha256
    python -m benchmarks.gpu.pack join FOLDER FILE                 checks the sha256
    python -m benchmarks.gpu.pack thin WHEEL OUT --keep PATTERN ...

``thin`` writes a wheel without those shared libraries (``*.so``) whose names match no pattern:
bitsandbytes brings one for every version of CUDA, and a machine needs one.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import zipfile
from fnmatch import fnmatch
from pathlib import Path

from asr.base.checkpoint import file_sha256


def split(path: Path, out: Path, pieces: int) -> list[Path]:
    """Write a file in pieces of about the same size, and its sha256 beside them."""
    out.mkdir(parents=True, exist_ok=True)
    size = -(-path.stat().st_size // pieces)
    written = []
    with path.open("rb") as source:
        for index in range(pieces):
            written.append(out / f"{path.name}.{index}")
            written[-1].write_bytes(source.read(size))
    (out / f"{path.name}.sha256").write_text(file_sha256(path) + "\n", encoding="utf-8")
    return written


def join(folder: Path, path: Path) -> None:
    """Put the pieces of ``path.name`` in a folder together again.

    Raises:
        SystemExit: there are none, or they are not the file that was split.
    """
    pieces = sorted(
        (each for each in folder.glob(f"{path.name}.*") if each.suffix[1:].isdigit()),
        key=lambda each: int(each.suffix[1:]),
    )
    if not pieces:
        raise SystemExit(f"no pieces of {path.name} in {folder}; split the file first")
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with path.open("wb") as out:
        for piece in pieces:
            content = piece.read_bytes()
            digest.update(content)
            out.write(content)
    expected = (folder / f"{path.name}.sha256").read_text(encoding="utf-8").strip()
    if digest.hexdigest() != expected:
        path.unlink()
        raise SystemExit(
            f"the {len(pieces)} pieces of {path.name} in {folder} are not the file that was split: "
            f"sha256 {digest.hexdigest()}, expected {expected}; carry all of them again"
        )


def thin(wheel: Path, out: Path, keep: list[str]) -> Path:
    """Write a copy of a wheel with only those shared libraries that match a pattern."""
    out.mkdir(parents=True, exist_ok=True)
    target = out / wheel.name
    with (
        zipfile.ZipFile(wheel) as source,
        zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as written,
    ):
        left_out = {
            entry.filename
            for entry in source.infolist()
            if entry.filename.endswith(".so")
            and not any(fnmatch(Path(entry.filename).name, pattern) for pattern in keep)
        }
        for entry in source.infolist():
            if entry.filename in left_out:
                continue
            content = source.read(entry)
            if entry.filename.endswith(".dist-info/RECORD"):
                lines = content.decode("utf-8").splitlines(keepends=True)
                kept = [line for line in lines if line.split(",")[0] not in left_out]
                content = "".join(kept).encode("utf-8")
            written.writestr(entry, content)
    return target


def main() -> int:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.pack", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("split", help="a file into pieces")
    one.add_argument("file", type=Path)
    one.add_argument("out", type=Path)
    one.add_argument("--pieces", type=int, default=2)
    one = commands.add_parser("join", help="pieces into the file")
    one.add_argument("folder", type=Path)
    one.add_argument("file", type=Path)
    one = commands.add_parser("thin", help="a wheel without most of its libraries")
    one.add_argument("wheel", type=Path)
    one.add_argument("out", type=Path)
    one.add_argument("--keep", nargs="+", required=True, metavar="PATTERN")
    options = parser.parse_args()
    if options.command == "split":
        for piece in split(options.file, options.out, options.pieces):
            print(piece, piece.stat().st_size)
    elif options.command == "join":
        join(options.folder, options.file)
        print(options.file)
    else:
        target = thin(options.wheel, options.out, options.keep)
        print(target, target.stat().st_size)
    return 0


if __name__ == "__main__":
    sys.exit(main())
