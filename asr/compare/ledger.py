"""``sequential.json``: what a folder of the one-LoRA comparison holds, and what resume reads."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from asr.atomic import json_text, write_text
from asr.errors import DirectoryError
from asr.model.contract import Sha256
from asr.train.changes import DomainPlan

LEDGER_FILE = "sequential.json"

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Plan(BaseModel):
    """Everything that determines the training of one domain, given where it starts from."""

    model_config = _STRICT

    domain: str
    data_sha256: Sha256
    settings: dict[str, JsonValue]

    @classmethod
    def of(cls, plan: DomainPlan) -> Self:
        """Return what the ledger records of a domain that is about to be trained."""
        assert plan.data_sha256 is not None
        return cls(
            domain=plan.name, data_sha256=plan.data_sha256, settings=dict(_plain(plan.settings))
        )


class Step(BaseModel):
    """One finished domain.

    ``adapter_sha256`` is of the LoRA as it was then; ``parent_sha256`` of the one that it started
    from (None: the first). ``adopted``: copied from a routed model, whose first adapter is the same
    training.
    """

    model_config = _STRICT

    plan: Plan
    adapter_sha256: Sha256
    parent_sha256: Sha256 | None
    adopted: bool = False
    seconds: float = Field(default=0.0, ge=0.0)


class Ledger(BaseModel):
    """The whole file. ``steps`` in training order; ``current``: the plan of a started domain."""

    model_config = _STRICT

    schema_version: Literal[1] = 1
    base_fingerprint: Sha256
    contract_hash: Sha256
    seed: int
    steps: list[Step] = Field(default_factory=list)
    current: Plan | None = None

    def save(self, folder: Path) -> None:
        """Write the file atomically.

        Raises:
            StorageError: the file system refused.
        """
        write_text(folder / LEDGER_FILE, json_text(self.model_dump(mode="json")))

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """Read the file; None where the folder is missing or empty.

        Raises:
            DirectoryError: the folder holds something else, or the file is damaged.
        """
        path = folder / LEDGER_FILE
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if folder.is_dir() and any(not p.name.startswith(".") for p in folder.iterdir()):
                raise DirectoryError(
                    f"'{folder}' is not empty and holds no {LEDGER_FILE}; choose another folder "
                    "for the comparison"
                ) from None
            return None
        except (OSError, ValueError, ValidationError) as error:
            raise DirectoryError(
                f"{path} is damaged ({str(error).splitlines()[0]}); delete '{folder}' to start the "
                "comparison again"
            ) from error


def _plain(value: object) -> dict[str, JsonValue]:
    """Return settings as they come back from JSON: lists for tuples."""

    def plain(item: object) -> JsonValue:
        if isinstance(item, dict):
            return {str(key): plain(below) for key, below in item.items()}
        if isinstance(item, list | tuple):
            return [plain(below) for below in item]
        assert item is None or isinstance(item, str | int | float | bool)
        return item

    found = plain(value)
    assert isinstance(found, dict)
    return found
