"""The entries of the ledger: what stands in ``manifest.json`` about the base and each domain."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from asr.errors import ConfigError
from asr.model.contract import Sha256
from asr.model.names import check_domain_name

Status = Literal["pending", "training", "trained", "routed", "done"]
"""pending; training (checkpoints may exist); trained (adapter published); routed (statistics
published too); done (checkpoints removed)."""

Count = Annotated[int, Field(ge=0)]

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Json = Any
"""A JSON value; what is not one fails when the file is written. Not pydantic's ``JsonValue``: that
calls Python for every value it serialises, and swallows a Ctrl-C that arrives meanwhile."""


def _domain_name(value: object) -> str:
    try:
        return check_domain_name(value)
    except ConfigError as error:
        raise ValueError(str(error)) from error


DomainName = Annotated[str, BeforeValidator(_domain_name)]


class Versions(BaseModel):
    """Versions of what made the directory."""

    model_config = _STRICT

    asr: str
    torch: str
    transformers: str
    peft: str
    numpy: str


class BaseEntry(BaseModel):
    """The frozen base. ``fingerprint`` is its identity; ``name`` says where it was found."""

    model_config = _STRICT

    name: str
    source: Literal["folder", "hub", "gguf", "builtin"]
    revision: str | None = None
    fingerprint: Sha256
    n_layers: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    architecture: str

    def revision_of(self, name: str) -> str | None:
        """Return the recorded revision where ``name`` is this base's, None for another name."""
        return self.revision if name == self.name else None


class DataEntry(BaseModel):
    """Training data of a domain. Counts are None until the file was read and encoded.

    ``examples`` are all of the file; ``train``, ``dev``, ``calibration`` count the cut's sides.
    ``tokens`` and ``supervised_tokens`` are of one epoch; ``truncated`` and ``dropped`` count
    examples.
    """

    model_config = _STRICT

    path: str
    sha256: Sha256
    examples: Count | None = None
    train: Count | None = None
    dev: Count | None = None
    calibration: Count | None = None
    tokens: Count | None = None
    supervised_tokens: Count | None = None
    truncated: Count | None = None
    dropped: Count | None = None


class CommonPartEntry(BaseModel):
    """What all prompts of a domain share in their last user message, and their system message."""

    model_config = _STRICT

    prefix: str = ""
    suffix: str = ""
    system: str | None = None


class AdapterEntry(BaseModel):
    """A published adapter. ``sha256`` is of ``adapter_model.safetensors``, as ``sha256sum`` prints.

    ``config_sha256`` is of ``adapter_config.json`` (it holds the scale), checked where recorded.
    """

    model_config = _STRICT

    sha256: Sha256
    config_sha256: Sha256 | None = None
    parameters: Count
    bytes: Count
    rank: int = Field(ge=1)
    version: int = Field(default=1, ge=1)


class RouterEntry(BaseModel):
    """Published statistics of a domain; ``sha256`` is of ``router/<domain>.safetensors``."""

    model_config = _STRICT

    sha256: Sha256
    prompts: Count


class ExtensionEntry(BaseModel):
    """More data for a domain: a new version of its adapter, and more prompts for the router.

    ``status``: training (checkpoints may exist), trained (the adapter is published beside the one
    in use), switched (the new version is in use), done (scored). ``replaced`` is the adapter that
    was in use before; its files stay.
    """

    model_config = _STRICT

    status: Literal["training", "trained", "switched", "done"] = "training"
    version: int = Field(ge=2)
    data: DataEntry
    training: dict[str, Json] = Field(
        default_factory=dict, description="Everything that determines the result."
    )
    started_from: Sha256 | None = Field(
        default=None, description="Hash of the adapter it began as a copy of; null: from scratch."
    )
    adapter: AdapterEntry | None = None
    replaced: AdapterEntry | None = None
    prompts: Count | None = Field(default=None, description="Prompts added to the statistics.")
    timings: dict[str, float] = Field(default_factory=dict, description="Seconds per step.")
    tokens_per_second: float | None = None
    world_size: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _recorded(self) -> Self:
        if self.status != "training" and self.adapter is None:
            raise ValueError(f"status is '{self.status}' but no adapter is recorded")
        if self.status in {"switched", "done"} and self.replaced is None:
            raise ValueError(f"status is '{self.status}' but no replaced adapter is recorded")
        return self


class DomainEntry(BaseModel):
    """One domain of the ledger.

    ``data``, ``training`` and ``timings`` are of its first training: what a config is compared
    with. What it was trained on since stands in ``extensions``.
    """

    model_config = _STRICT

    status: Status = "pending"
    order: int = Field(ge=0, description="Position in training order; gaps where one was removed.")
    data: DataEntry | None = None
    common_part: CommonPartEntry | None = None
    test: str | None = Field(default=None, description="Path of the test file.")
    scorer: str | None = None
    max_new_tokens: int | None = Field(default=None, ge=1, description="Longest answer.")
    placement: dict[str, Json] = Field(
        default_factory=dict,
        description="kind, modules (explicit full names), rank, alpha, ...; of a dominant one also "
        "ranks (where they differ), asked (the request) and found (what a probe measured).",
    )
    passes: Literal["one", "two"] = "one"
    adapter: AdapterEntry | None = None
    router: RouterEntry | None = None
    training: dict[str, Json] = Field(
        default_factory=dict, description="Everything that determines the result."
    )
    timings: dict[str, float] = Field(default_factory=dict, description="Seconds per step.")
    tokens_per_second: float | None = None
    world_size: int = Field(default=1, ge=1)
    parent: str | None = Field(default=None, description="Domain the adapter started from.")
    parent_sha256: Sha256 | None = Field(
        default=None, description="Hash of the adapter that it started from."
    )
    adapter_versions: int = Field(default=1, ge=1, description="Adapter versions made so far.")
    extensions: list[ExtensionEntry] = Field(
        default_factory=list, description="Trainings on more data, oldest first."
    )

    @property
    def versions(self) -> list[AdapterEntry]:
        """The adapters that were ever in use, oldest first; the last one is in use."""
        earlier = [made.replaced for made in self.extensions if made.replaced is not None]
        return [*earlier, *([] if self.adapter is None else [self.adapter])]

    @property
    def unfinished_extension(self) -> ExtensionEntry | None:
        """The extension that is under way; only the last one can be."""
        last = self.extensions[-1] if self.extensions else None
        return None if last is None or last.status == "done" else last

    @model_validator(mode="after")
    def _published(self) -> Self:
        if self.extensions and self.status != "done":
            raise ValueError(f"status is '{self.status}' but extensions are recorded")
        if self.status in {"trained", "routed", "done"} and self.adapter is None:
            raise ValueError(f"status is '{self.status}' but no adapter is recorded")
        if self.status in {"routed", "done"} and self.router is None:
            raise ValueError(f"status is '{self.status}' but no router statistics are recorded")
        if self.adapter is not None and self.adapter.version > self.adapter_versions:
            raise ValueError(
                f"adapter version {self.adapter.version}, but adapter_versions is "
                f"{self.adapter_versions}"
            )
        return self


class BackgroundEntry(BaseModel):
    """The background class of the router: prompts that the base itself wrote."""

    model_config = _STRICT

    sha256: Sha256 = Field(description="Of its file.")
    samples: int = Field(ge=1, description="Prompts asked for.")
    prompts: Count = Field(description="Prompts in its statistics.")
