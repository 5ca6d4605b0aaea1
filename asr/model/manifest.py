"""``manifest.json``: what a routed model directory holds, and the ledger that resume reads.

Written atomically after every step of a run, in the order of the domains. Everything that
determines a result stands in it; :meth:`Manifest.comparable` leaves out what does not (times,
paths), so two equal runs compare equal.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from asr.atomic import json_text, write_text
from asr.errors import DirectoryError
from asr.model.contract import FeatureContract, NumericContract
from asr.model.entries import (
    AdapterEntry,
    BackgroundEntry,
    BaseEntry,
    CommonPartEntry,
    DataEntry,
    DomainEntry,
    DomainName,
    ExtensionEntry,
    Json,
    RouterEntry,
    Status,
    Versions,
)
from asr.model.names import check_domain_name

SCHEMA_VERSION: Final = 1
"""Schema that this version writes, and the newest that it reads."""

MANIFEST_FILE = "manifest.json"

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

__all__ = [
    "MANIFEST_FILE",
    "SCHEMA_VERSION",
    "AdapterEntry",
    "BackgroundEntry",
    "BaseEntry",
    "CommonPartEntry",
    "DataEntry",
    "DomainEntry",
    "DomainName",
    "ExtensionEntry",
    "Manifest",
    "RouterEntry",
    "Status",
    "Versions",
]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class Manifest(BaseModel):
    """The whole file. ``domains`` keeps the order of training."""

    model_config = _STRICT

    schema_version: Literal[1] = SCHEMA_VERSION
    created: str = Field(default_factory=_now, description="UTC, ISO 8601.")
    versions: Versions
    base: BaseEntry
    contract: FeatureContract
    contract_hash: str = ""
    numeric: NumericContract
    router: dict[str, Json] = Field(default_factory=dict, description="Solve settings.")
    background: BackgroundEntry | None = Field(
        default=None, description="Prompts of no domain, in the router; none: without."
    )
    seed: int = 0
    keep_eval: bool = True
    two_pass: bool = Field(default=False, description="The base cannot be split, or was not.")
    config: dict[str, Json] = Field(
        default_factory=dict, description="Effective settings of the last run; paths absolute."
    )
    switching: DomainName | None = Field(
        default=None, description="Domain whose new version is being moved into place."
    )
    domains: dict[DomainName, DomainEntry] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.contract_hash not in ("", self.contract.hash):
            raise ValueError("contract_hash is not the hash of contract: one of them was edited")
        self.contract_hash = self.contract.hash
        orders = [entry.order for entry in self.domains.values()]
        if any(b <= a for a, b in itertools.pairwise(orders)):
            raise ValueError(f"domains are not in increasing order: {orders}")
        return self

    @property
    def finished(self) -> list[str]:
        """Names of the domains that are done, in training order."""
        return [name for name, entry in self.domains.items() if entry.status == "done"]

    @property
    def routed(self) -> list[str]:
        """Names of the domains that the router knows, in training order."""
        return [name for name, entry in self.domains.items() if entry.router is not None]

    def add(self, name: str, **fields: Any) -> DomainEntry:
        """Append a domain; ``order`` is the next one. Returns its entry.

        Raises:
            DirectoryError: the domain exists.
            ConfigError: not a valid name.
            pydantic.ValidationError: a field that does not fit.
        """
        check_domain_name(name)
        if name in self.domains:
            raise DirectoryError(
                f"domain '{name}' exists in this model already: choose another name"
            )
        order = 1 + max((entry.order for entry in self.domains.values()), default=-1)
        self.domains[name] = DomainEntry(order=order, **fields)
        return self.domains[name]

    def update(self, name: str, **fields: Any) -> DomainEntry:
        """Replace fields of a domain's entry, all at once and checked. Returns the new entry.

        Raises:
            KeyError: no such domain.
            pydantic.ValidationError: a field that does not exist or fit; the entry is as it was.
        """
        entry = self.domains[name]
        current = {field: getattr(entry, field) for field in type(entry).model_fields}
        self.domains[name] = DomainEntry(**(current | fields))
        return self.domains[name]

    def arrange(self, names: Sequence[str]) -> None:
        """Put the domains into the order of ``names``, which are all of them.

        A resumed run calls it before it begins, so that the ledger follows the config where
        unfinished domains were moved or new ones stand before them.

        Raises:
            ValueError: ``names`` are not the domains of this manifest, each once.
        """
        if sorted(names) != sorted(self.domains):
            raise ValueError(f"cannot arrange {list(self.domains)} as {list(names)}")
        orders = sorted(entry.order for entry in self.domains.values())
        self.domains = {
            name: self.domains[name].model_copy(update={"order": order})
            for name, order in zip(names, orders, strict=True)
        }

    def comparable(self) -> dict[str, Any]:
        """Return everything that two equal runs must share: no creation time, timings or paths."""
        tree = self.model_dump(mode="json")
        del tree["created"], tree["base"]["name"], tree["config"]
        for entry in tree["domains"].values():
            del entry["timings"], entry["tokens_per_second"], entry["test"]
            if entry["data"] is not None:
                del entry["data"]["path"]
            for extension in entry["extensions"]:
                del extension["timings"], extension["tokens_per_second"], extension["data"]["path"]
        return tree

    def save(self, directory: Path) -> None:
        """Write ``manifest.json`` into ``directory`` atomically, checked as :meth:`load` would.

        Raises:
            ValueError: a value that the file could not hold (``pydantic.ValidationError`` is one);
                the file is as it was.
            StorageError: the file system refused; the file is as it was.
        """
        text = json_text(self.model_dump())  # mode="json" would write NaN as null
        type(self).model_validate_json(text)
        write_text(Path(directory) / MANIFEST_FILE, text)

    @classmethod
    def load(cls, directory: Path) -> Manifest:
        """Read ``manifest.json`` of ``directory``.

        Raises:
            DirectoryError: no such file, not JSON, a newer schema, or not what this program
                writes; the message names the file and the first field at fault.
        """
        path = Path(directory) / MANIFEST_FILE
        tree = _read_object(path)
        schema = tree.get("schema_version")
        if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
            raise DirectoryError(
                f"{path}: not the manifest of a routed model (schema_version is {schema!r})"
            )
        if schema > SCHEMA_VERSION:
            raise DirectoryError(
                f"{path}: manifest of schema {schema}, this asr reads up to {SCHEMA_VERSION}: "
                "upgrade with pip install -U analytic-subspace-routing"
            )
        try:
            return cls.model_validate_json(json.dumps(tree))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "manifest"
            raise DirectoryError(
                f"{path}: {where}: {first['msg']}; it was edited or damaged, restore it from a copy"
            ) from error


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _read_object(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DirectoryError(
            f"no {path.name} in '{path.parent}': it is not a routed model directory"
        ) from error
    except OSError as error:
        raise DirectoryError(f"cannot read {path}: {error.strerror}") from error
    try:
        tree = json.loads(text.decode("utf-8"), parse_constant=_no_constant)
    except ValueError as error:  # a decoding error is one too
        raise DirectoryError(
            f"{path}: not JSON ({error}); it is damaged, restore it from a copy"
        ) from error
    except RecursionError as error:
        raise DirectoryError(f"{path}: not a manifest (nested too deeply)") from error
    if not isinstance(tree, dict):
        raise DirectoryError(f"{path}: not the manifest of a routed model (no JSON object)")
    return tree
