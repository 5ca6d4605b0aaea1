"""Where a domain's adapter goes: the config's placement, made into modules and ranks.

``deep``, ``all`` and named modules follow from the base alone. A dominant placement follows from
gradients on the domain's own training rows, or from a ``probe.json``; it is decided once, before
anything is trained, and written into the ledger. From then on it is read from there: a probe made
again could decide otherwise, on another device or with the training file gone.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asr.adapters import (
    LoraSettings,
    Placement,
    check_variant,
    linear_modules,
    resolve_placement,
)
from asr.adapters.dominant import (
    DominantChoice,
    DominantRequest,
    check_request,
    choose_dominant,
    paired_z,
)
from asr.adapters.probe.page import PageSettings, page_energies
from asr.adapters.probe.result import NOISE_Z, ProbeResult
from asr.base.load import LoadedBase
from asr.data.encode import EncodedExample
from asr.errors import AdapterError, ConfigError
from asr.model.directory import file_sha256
from asr.model.manifest import DomainEntry
from asr.train.changes import PUBLISHED
from asr.train.config import AdapterConfig
from asr.train.placement_config import DominantPlacement, DominantSettings, ModulePlacement

_OF_PLACEMENT = frozenset({"kind", "modules", "ranks", "asked", "found"})
"""Keys of a recorded placement beside the settings of the adapter."""


@dataclass(frozen=True)
class Placed:
    """A resolved placement.

    Attributes:
        placement: modules and ranks.
        asked: of a dominant placement, what the config asked for, as JSON values; a probe by the
            hash of its file, so that the file may move. None otherwise.
        found: what was measured when it was decided: ``share`` of the energy, ``margin``, ``z``,
            the ``unrestricted`` winner, ``data`` (hash of the examples that it was decided on).
    """

    placement: Placement
    asked: dict[str, Any] | None = None
    found: dict[str, Any] = field(default_factory=dict)

    def record(self, lora: LoraSettings) -> dict[str, Any]:
        """The manifest's ``placement``."""
        record = {
            "kind": self.placement.kind,
            "modules": self.placement.names,
            **lora.to_dict(),
        }
        if self.placement.ranks is not None:
            record["ranks"] = list(self.placement.ranks)
        if self.asked is not None:
            record |= {"asked": self.asked, "found": self.found}
        return record


@dataclass(frozen=True)
class Rows:
    """What a domain is probed with.

    Attributes:
        rows: its encoded training rows.
        sha256: hash of the examples.
        seed: of the shuffle that picks some.
    """

    rows: Sequence[EncodedExample]
    sha256: str
    seed: int


def check_placement(
    base: LoadedBase, adapter: AdapterConfig, lora: LoraSettings, layer: int
) -> None:
    """Refuse what a placement can be refused for before its data is looked at.

    Raises:
        AdapterError: modules that the base does not have; an initialisation that they rule out; a
            ``top`` or ``budget`` that no data could make possible; a probe that cannot be read, or
            of another base.
    """
    asked = adapter.placement
    if not isinstance(asked, DominantPlacement):
        check_variant(base.model, _plain(base, adapter, layer), lora)
        return
    check_request(linear_modules(base.model), _request(asked.dominant, adapter), layer)
    if asked.dominant.probe is not None:
        _probe_of_file(asked.dominant.probe, base)


def place(
    name: str,
    base: LoadedBase,
    adapter: AdapterConfig,
    lora: LoraSettings,
    layer: int,
    rows: Rows | None,
    recorded: DomainEntry | None = None,
    on_main: Callable[[Callable[[], Placed]], Placed] = lambda work: work(),
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Placed:
    """Resolve a domain's placement.

    Args:
        name: the domain.
        base: the loaded base; it comes back as it was.
        adapter: the domain's adapter section.
        lora: the same, as settings of the adapter.
        layer: the router layer.
        rows: what to probe with; None where the training file is gone.
        recorded: the domain's entry in the ledger, if what it holds was made with this base, seed
            and feature contract, or is published.
        on_main: runs the probe on the main process and tells all processes what it decided.
        say: told, in one line, what a probe decided.
        progress: told how far a probe is.

    Raises:
        AdapterError: see :func:`check_placement`, :func:`asr.adapters.probe.page.page_energies` and
            :func:`asr.adapters.dominant.choose_dominant`.
        ConfigError: the domain is finished, on modules that this base does not have.
    """
    if not isinstance(adapter.placement, DominantPlacement):
        return Placed(_plain(base, adapter, layer))
    settings = adapter.placement.dominant
    before = {} if recorded is None else recorded.placement
    published = recorded is not None and recorded.status in PUBLISHED
    asked = _asked(settings, before.get("asked"))
    if published or (before.get("asked") == asked and _same_work(before, lora, rows, settings)):
        return _as_recorded(name, base, before, asked, layer)
    assert rows is not None  # a domain without a published adapter has data

    def work() -> Placed:
        probed = rows if settings.probe is None else None
        return _probe(name, base, adapter, settings, lora, layer, probed, asked, say, progress)

    return on_main(work)


def _plain(base: LoadedBase, adapter: AdapterConfig, layer: int) -> Placement:
    kind = adapter.placement
    if isinstance(kind, ModulePlacement):
        return resolve_placement(base.model, {"modules": list(kind.modules)}, layer)
    assert isinstance(kind, str)
    return resolve_placement(base.model, kind, layer)


def _request(settings: DominantSettings, adapter: AdapterConfig) -> DominantRequest:
    return DominantRequest(
        settings.anywhere,
        settings.top,
        settings.budget,
        unit=2 if adapter.init_lora_weights == "orthogonal" else 1,
    )


def _asked(settings: DominantSettings, before: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is asked for, to be recorded. A probe that is gone counts as the one of the record."""
    asked = settings.model_dump(mode="json")
    if settings.probe is not None:
        there = settings.probe.is_file()
        asked["probe"] = file_sha256(settings.probe) if there else (before or {}).get("probe")
    return asked


def _same_work(
    before: Mapping[str, Any], lora: LoraSettings, rows: Rows | None, settings: DominantSettings
) -> bool:
    """Whether a recorded choice was made on these rows, with these settings of the adapter."""
    kept = {key: value for key, value in before.items() if key not in _OF_PLACEMENT}
    same_data = settings.probe is not None or (
        rows is not None and before.get("found", {}).get("data") == rows.sha256
    )
    return same_data and kept == lora.to_dict()


def _as_recorded(
    name: str, base: LoadedBase, before: Mapping[str, Any], asked: dict[str, Any], layer: int
) -> Placed:
    """The recorded modules. Whether what is asked for has changed is compared with the ledger."""
    modules = {module.name: module for module in linear_modules(base.model)}
    names = list(before.get("modules", ()))
    gone = [full for full in names if full not in modules]
    if gone:
        raise ConfigError(
            f"cannot go on: domain '{name}' has its adapter on '{gone[0]}', which '{base.name}' "
            "does not have; give back the base that it was trained on"
        )
    ranks = before.get("ranks")
    placement = Placement(
        "dominant",
        tuple(modules[full] for full in names),
        layer,
        None if ranks is None else tuple(ranks),
    )
    return Placed(placement, asked, dict(before.get("found", {})))


def _probe(
    name: str,
    base: LoadedBase,
    adapter: AdapterConfig,
    settings: DominantSettings,
    lora: LoraSettings,
    layer: int,
    rows: Rows | None,
    asked: dict[str, Any],
    say: Callable[[str], None],
    progress: Callable[[str, int, int], None],
) -> Placed:
    """Decide, say it, and return what the ledger keeps. Without ``rows`` the probe's file says."""
    modules = linear_modules(base.model)
    request = _request(settings, adapter)
    z: float | None = None
    if rows is None:
        assert settings.probe is not None
        result = _probe_of_file(settings.probe, base)
        scores = {score.name: score.energy for score in result.modules}
        energies = {module: scores[module.name] for module in modules}
        choice = choose_dominant(energies, request, layer)
        leading = [score.name for score in result.modules[:2]]
        z = result.z if leading == [choice.weakest, choice.runner_up] else None
        source = f"{settings.probe.name} of {', '.join(d.name for d in result.domains)}"
        if result.settings.init != lora.init_lora_weights:  # another order of modules, maybe
            made, own = (
                str(name).lower() for name in (result.settings.init, lora.init_lora_weights)
            )
            source += f", made for init_lora_weights {made}, not {own}"
    else:
        order = list(range(len(rows.rows)))
        random.Random(rows.seed).shuffle(order)
        sample = [rows.rows[place] for place in order[: settings.samples]]
        # (n, m): a row per sample, a column per module
        measured = page_energies(
            base.model,
            sample,
            modules,
            PageSettings(lora=lora),
            pad_token_id=base.tokenizer.pad_token_id,
            progress=lambda done, total: progress(f"{name}: placement", done, total),
        ).energy
        means = measured.mean(axis=0)
        energies = {module: float(mean) for module, mean in zip(modules, means, strict=True)}
        choice = choose_dominant(energies, request, layer)
        column = {module.name: measured[:, place] for place, module in enumerate(modules)}
        if choice.runner_up is not None:
            z = paired_z(column[choice.weakest], column[choice.runner_up])
        source = f"{len(sample)} training row{'s' if len(sample) != 1 else ''}"
    say(f"{name}: {_told(choice, request, layer, z, source)}")
    found = {
        "share": choice.share,
        "margin": choice.margin,
        "z": z,
        "unrestricted": choice.unrestricted,
        "data": None if rows is None else rows.sha256,
    }
    return Placed(choice.placement, asked, found)


def _probe_of_file(path: Path, base: LoadedBase) -> ProbeResult:
    """Read a probe; refuse that of another base, and one whose modules are not the base's."""
    result = ProbeResult.load(path)
    result.require_base(base.fingerprint, base.name)
    expected = Counter(module.name for module in linear_modules(base.model))
    found = Counter(score.name for score in result.modules)
    if found != expected:
        wrong = min((found - expected) or (expected - found))
        problem = (
            "missing"
            if wrong not in found
            else "unknown"
            if wrong not in expected
            else "there twice"
        )
        raise AdapterError(
            f"{path}: the modules are not those of '{base.name}': '{wrong}' is {problem}; it was "
            "edited or damaged, run asr probe again"
        )
    return result


def _told(
    choice: DominantChoice,
    request: DominantRequest,
    layer: int,
    z: float | None,
    source: str,
) -> str:
    """The choice for people, in one line."""
    placement = choice.placement
    names, ranks = placement.names, placement.ranks
    parts: list[str] = []
    if len(names) == 1:
        own = "" if ranks is None else f", rank {ranks[0]}"
        parts.append(f"dominant module {names[0]}{own}")
    elif ranks is None:
        parts.append(f"the {len(names)} dominant modules {', '.join(names)}")
    else:
        parts.append(
            f"{len(names)} dominant modules, ranks {min(ranks)} to {max(ranks)}, the largest on "
            f"{names[ranks.index(max(ranks))]}"
        )
    if ranks is not None:
        assert request.budget is not None
        spent = placement.parameters(0)
        parts.append(f"{spent:,} of {request.budget:,} parameters")
    parts.append(f"{choice.share:.1%} of the energy ({source})")
    if choice.margin is not None:
        lead = "" if len(names) == 1 else f"{choice.weakest} has "
        noise = "" if z is None or abs(z) >= NOISE_Z else f", within noise (z {z:.1f})"
        parts.append(f"{lead}{choice.margin:.2f} times the runner-up {choice.runner_up}{noise}")
    if choice.unrestricted not in names:
        parts.append(
            f"the strongest of all layers is {choice.unrestricted} "
            f"({choice.unrestricted_share:.1%}), below router layer {layer}: anywhere: true takes "
            "it, in two passes"
        )
    if placement.passes == "two":
        parts.append(f"below router layer {layer}: this domain takes two passes")
    return "; ".join(parts)
