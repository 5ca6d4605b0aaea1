"""What a demo domain is: an instruction, and a draw of one message with its one right answer."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Draw:
    """One message in a user's words, the answer, and which rule made it (for error analysis)."""

    message: str
    answer: str
    rule: str


@dataclass(frozen=True)
class Pool:
    """Wordings by split; no wording is in both."""

    train: tuple[str, ...]
    test: tuple[str, ...]

    def pick(self, rng: random.Random, split: Split) -> str:
        """Return one wording of the split."""
        return rng.choice(self.train if split == "train" else self.test)


@dataclass(frozen=True)
class DemoDomain:
    """A domain that a generator writes.

    Attributes:
        name: of the domain and of its files.
        instruction: first line of every prompt.
        scorer: name of the scorer (``asr.eval``).
        draw: makes one example; "test" draws from wordings that "train" never uses.
        lead: what stands before the message on the second line.
    """

    name: str
    instruction: str
    scorer: str
    draw: Callable[[random.Random, Split], Draw]
    lead: str = "Message: "

    def prompt(self, message: str) -> str:
        """Return the user's turn."""
        return f"{self.instruction}\n{self.lead}{message}"
