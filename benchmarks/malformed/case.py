"""One malformed input: the files it consists of, and the command that has to refuse it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        kind: what is wrong in general, for the table.
        name: what is wrong here; unique.
        files: path from the case's folder -> bytes; None makes a folder.
        command: arguments of ``asr``, run in that folder.
        blamed: what the message has to name: a file, or what stands on the command line.
        several: the message may have more than one line, because more than one thing is wrong.
    """

    kind: str
    name: str
    files: dict[str, bytes | None]
    command: tuple[str, ...]
    blamed: str
    several: bool = False
    links: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the files into an existing folder."""
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                path.mkdir()
            else:
                path.write_bytes(content)
        for name, target in self.links.items():
            (folder / name).symlink_to(target)


def checked(
    kind: str, name: str, file: str, content: bytes | None, *options: str, several: bool = False
) -> Case:
    """Return the case of one data file that ``asr check`` has to refuse."""
    return Case(kind, name, {file: content}, ("check", file, *options), file, several)
