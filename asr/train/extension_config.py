"""The config of an extension: one domain of a model as it was trained, with other data."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asr.data.hub import locate_data
from asr.errors import ConfigError, DirectoryError, unknown
from asr.model.manifest import Manifest
from asr.model.names import check_domain_name
from asr.train.config import DomainConfig, TrainConfig
from asr.train.config_file import build_config
from asr.train.overrides import apply_overrides

SETTABLE = ("training", "dev", "format", "limit", "eval", "device", "dtype")
"""What an extension may set; everything else is the domain's, or the model's, for good."""


def extension_config(
    manifest: Manifest, name: str, data: Path | str, overrides: Sequence[str] = ()
) -> TrainConfig:
    """Return the config of one domain of a model, with other data.

    Args:
        manifest: of the model.
        name: the domain.
        data: the new training file, relative to the current directory, or a data set of the hub.
        overrides: ``key=value`` arguments; :data:`SETTABLE` are allowed.

    Raises:
        ConfigError: a bad name or override, or one that an extension cannot follow.
        DirectoryError: no such domain, or the manifest holds no config.
    """
    check_domain_name(name)
    if name not in manifest.domains:
        raise DirectoryError(
            f"{unknown('domain', name, manifest.domains)}; without --extend, asr add makes a "
            "new one"
        )
    domains = manifest.config.get("domains")
    if not isinstance(domains, dict) or not isinstance(domains.get(name), dict):
        raise DirectoryError(f"this model records no config of '{name}', so it cannot be extended")
    own: list[str] = []
    for override in overrides:
        key = override.partition("=")[0].strip().removeprefix(f"domains.{name}.")
        first = key.partition(".")[0]
        if first not in SETTABLE:
            raise ConfigError(
                f"'{override}' cannot be set with --extend: a new version of '{name}' keeps "
                f"everything but {', '.join(SETTABLE)}"
            )
        rest = override.strip().removeprefix(f"domains.{name}.")
        own.append(f"domains.{name}.{rest}" if first in DomainConfig.model_fields else rest)
    raw: dict[str, Any] = copy.deepcopy(manifest.config)
    domain = raw["domains"][name]
    domain |= {"train": locate_data(str(data), Path.cwd())}
    domain |= {"dev": None, "format": None, "limit": None}  # they were about the other file
    raw["domains"] = {name: domain}
    for section in (raw, domain):
        if isinstance(section.get("adapter"), dict):
            section["adapter"] = {**section["adapter"], "init_from": "none"}
    set_by_hand = {tuple(o.partition("=")[0].split(".")) for o in own}
    return build_config(
        apply_overrides(raw, own), "config", set_by_hand={*set_by_hand, ("domains", name, "train")}
    )
