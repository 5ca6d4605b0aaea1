"""The demo domains by name: make examples, or write train and test files.

Run as: ``python -m demo.domains FOLDER`` (from the repository's root).

Everything is a function of (name, split, seed): equal on every machine and in every process. Two
things keep test apart from train: a prompt's split is fixed by a hash of its text, whatever the
seeds and counts, so no prompt can be in both; and each domain draws test messages from wordings
that train never uses, so that a test prompt is not a train prompt with a word changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asr.errors import ConfigError, unknown
from demo.arithmetic import ARITHMETIC
from demo.dates import DATES
from demo.sql import SQL
from demo.task import DemoDomain, Split
from demo.triage import TRIAGE

DOMAINS: dict[str, DemoDomain] = {
    domain.name: domain for domain in (DATES, TRIAGE, SQL, ARITHMETIC)
}
"""In the order in which the demo trains them."""

SPLITS: tuple[Split, ...] = ("train", "test")

_PATIENCE = 5_000
"""Draws in a row without a new prompt after which a domain counts as exhausted."""


def make_domain(name: str, split: Split, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return ``count`` examples with distinct prompts.

    Args:
        name: a key of :data:`DOMAINS`.
        split: "train" or "test".
        count: how many.
        seed: another seed draws other examples of the same split; a larger count with the same
            seed begins with the smaller one's examples.

    Returns:
        ``{"messages": [user, assistant], "meta": {"rule": ..., "scorer": ...}}`` each.

    Raises:
        ConfigError: if the domain or the split does not exist, ``count`` is negative, or the
            domain does not hold that many distinct prompts.
    """
    if name not in DOMAINS:
        raise ConfigError(unknown("demo domain", name, DOMAINS))
    if split not in SPLITS:
        raise ConfigError(unknown("split", split, SPLITS))
    if count < 0:
        raise ConfigError(f"count must not be negative, got {count}")
    domain = DOMAINS[name]
    # A string seeds through SHA-512: the same everywhere, unlike hash().
    rng = random.Random(f"{name}/{split}/{seed}")
    seen: set[str] = set()
    examples: list[dict[str, Any]] = []
    idle = 0
    while len(examples) < count:
        drawn = domain.draw(rng, split)
        prompt = domain.prompt(drawn.message)
        idle += 1
        if idle > _PATIENCE:
            raise ConfigError(
                f"demo domain '{name}' has only about {len(seen)} distinct {split} prompts, "
                f"{count} were asked for; ask for fewer"
            )
        if prompt in seen or split_of(prompt) != split:
            continue
        idle = 0
        seen.add(prompt)
        examples.append(
            {
                "messages": [
                    {"role": "user", "content": prompt},
                    {"role": "assistant", "content": drawn.answer},
                ],
                "meta": {"rule": drawn.rule, "scorer": domain.scorer},
            }
        )
    return examples


def split_of(prompt: str) -> Split:
    """Return the split that a prompt belongs to: a quarter of all hashes are test."""
    return "test" if hashlib.sha256(prompt.encode()).digest()[0] < 64 else "train"


def write(
    folder: str | Path,
    names: Sequence[str] | None = None,
    *,
    train: int = 300,
    test: int = 100,
    seed: int = 0,
) -> list[Path]:
    """Write ``{name}.train.jsonl`` and ``{name}.test.jsonl`` for each domain; return the paths.

    Args:
        folder: made where missing; files of these names in it are replaced.
        names: keys of :data:`DOMAINS`; None means all.
        train: examples per train file.
        test: examples per test file.
        seed: as in :func:`make_domain`.

    Raises:
        ConfigError: as in :func:`make_domain`; nothing is written then.
    """
    counts: dict[Split, int] = {"train": train, "test": test}
    files = {
        Path(folder) / f"{name}.{split}.jsonl": make_domain(name, split, counts[split], seed)
        for name in (DOMAINS if names is None else names)
        for split in SPLITS
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    for path, examples in files.items():
        lines = (json.dumps(example, ensure_ascii=False) + "\n" for example in examples)
        path.write_text("".join(lines), encoding="utf-8", newline="\n")
    return list(files)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the files from the command line and print their paths."""
    parser = argparse.ArgumentParser(prog="python -m demo.domains", description="Write demo data.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--domain", action="append", help=f"one of: {', '.join(DOMAINS)}")
    parser.add_argument("--train", type=int, default=300, help="examples per train file")
    parser.add_argument("--test", type=int, default=100, help="examples per test file")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        paths = write(
            given.folder, given.domain, train=given.train, test=given.test, seed=given.seed
        )
    except ConfigError as error:
        parser.error(str(error))
    for path in paths:
        print(path)


if __name__ == "__main__":
    main()
