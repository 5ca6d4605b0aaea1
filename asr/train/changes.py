"""What may change between two runs of one config.

Appending a domain to the config and running again with ``--resume`` is the normal way to grow.
Only changes that touch a finished domain are refused, naming what changed: its data, its settings,
the base, the feature contract, the seed, its place in the order, its absence. How the router is
solved (ridge, abstain, solver) and how domains are scored may change freely: both are derived again
each time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from asr.errors import ConfigError
from asr.model.contract import FeatureContract
from asr.model.manifest import DomainEntry, Manifest

PUBLISHED = frozenset({"trained", "routed", "done"})
"""States of a domain whose adapter is there: it is never made again, nor its placement."""


@dataclass(frozen=True)
class DomainPlan:
    """A domain as the config now asks for it.

    ``data_sha256`` is None where the training file is gone, which a finished domain survives.
    ``settings`` is what goes into the manifest: its ``placement`` (a mapping) into the entry's
    ``placement``, everything else into the entry's ``training``; JSON values only.
    """

    name: str
    data_sha256: str | None
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class RunPlan:
    """A run as the config now asks for it, everything resolved. ``domains`` in training order."""

    base_fingerprint: str
    contract: FeatureContract
    seed: int
    domains: Sequence[DomainPlan]
    quantisation: str | None = None


def holding(manifest: Manifest, plan: RunPlan) -> dict[str, DomainEntry]:
    """Entries of the ledger whose placement may be taken over; ``plan`` may lack its domains.

    A published adapter sits where it sits. What was only decided holds as long as it was decided
    with this base, seed and feature contract.
    """
    common = _common_changes(manifest, plan)
    return {
        name: entry
        for name, entry in manifest.domains.items()
        if entry.status in PUBLISHED or (entry.placement and not common)
    }


@dataclass(frozen=True)
class Resume:
    """What a resumed run does.

    ``todo``: domains not done, in training order. ``restart``: those of ``todo`` whose data or
    settings changed after their training began, with what changed: their checkpoints are of another
    run.
    ``dropped``: unfinished domains of the ledger that the config no longer has. Whoever acts on it
    takes the dropped out of the ledger, adds the new, and arranges it as the config
    (``Manifest.arrange``): the next resume compares the order again.
    """

    todo: tuple[str, ...]
    restart: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()

    def told(self) -> list[str]:
        """One line for each domain whose work so far is lost."""
        return [
            f"{name}: {', '.join(changes)}; its training begins again"
            for name, changes in self.restart.items()
        ] + [f"{name}: unfinished, and no longer in the config; left out" for name in self.dropped]


def check_resume(manifest: Manifest, plan: RunPlan) -> Resume:
    """Compare the ledger with the config and return what is left to do.

    A domain counts as finished here once its adapter is published (trained, routed, done): its
    adapter is never made again. Top-level settings that only one side knows are not compared: they
    are of another version of this program.

    Raises:
        ConfigError: something changed that a finished domain depends on. One change is one line;
            more have a first line with their number and a line each (what, old value, new value).
    """
    finished = [n for n, entry in manifest.domains.items() if entry.status in PUBLISHED]
    plans = {domain.name: domain for domain in plan.domains}
    common = _common_changes(manifest, plan)
    problems: list[str] = []
    if finished:
        problems += [f"{change}, and {_named(finished)} finished with it" for change in common]
        problems += _order_changes(manifest, list(plans), finished)
    for name in finished:
        if name in plans:
            problems += [
                f"domain '{name}' is finished and {change}"
                for change in _domain_changes(manifest.domains[name], plans[name])
            ]
    if problems:
        raise ConfigError(_message(problems))
    todo = tuple(n for n in plans if n not in manifest.domains or _open(manifest.domains[n]))
    begun = [n for n in todo if n in manifest.domains and manifest.domains[n].status == "training"]
    changed = {n: (*common, *_domain_changes(manifest.domains[n], plans[n])) for n in begun}
    restart = {name: changes for name, changes in changed.items() if changes}
    dropped = tuple(name for name in manifest.domains if name not in plans)
    return Resume(todo, restart, dropped)


def _open(entry: DomainEntry) -> bool:
    return entry.status != "done"


def _common_changes(manifest: Manifest, plan: RunPlan) -> list[str]:
    changes = []
    if manifest.base.fingerprint != plan.base_fingerprint:
        changes.append(
            _change("base fingerprint", manifest.base.fingerprint, plan.base_fingerprint)
        )
    if manifest.seed != plan.seed:
        changes.append(_change("seed", manifest.seed, plan.seed))
    if manifest.numeric.quantisation != plan.quantisation:
        changes.append(_change("quantisation", manifest.numeric.quantisation, plan.quantisation))
    found = manifest.contract.difference(plan.contract)
    # The base's fingerprint is in the contract too; said once is enough.
    if found is not None and not (found[0] == "base_fingerprint" and changes):
        changes.append(_change(f"the feature contract's {found[0]}", found[1], found[2]))
    return changes


def _order_changes(manifest: Manifest, wanted: list[str], finished: list[str]) -> list[str]:
    changes = [
        f"domain '{name}' is finished and no longer in the config: put it back, or take it out of "
        "the model with asr remove"
        for name in finished
        if name not in wanted
    ]
    kept = [name for name in finished if name in wanted]
    now = sorted(kept, key=wanted.index)
    if now != kept:
        return [*changes, f"the order of finished domains changed: {_arrow(kept, now)}"]
    recorded = list(manifest.domains)
    for name in kept:
        before = recorded[: recorded.index(name)]
        early = [other for other in wanted[: wanted.index(name)] if other not in before]
        if early:
            return [
                *changes,
                f"domain '{early[0]}' stands before the finished '{name}': append new domains at "
                "the end",
            ]
    return changes


def _domain_changes(entry: DomainEntry, plan: DomainPlan) -> list[str]:
    changes = []
    if entry.data is not None and plan.data_sha256 not in (None, entry.data.sha256):
        changes.append(_change("training data (sha256)", entry.data.sha256, plan.data_sha256))
    recorded: dict[str, Any] = {**entry.training}
    settings = dict(plan.settings)
    if entry.placement and "placement" in settings:
        recorded["placement"], settings["placement"] = _comparable(
            entry.placement, settings["placement"]
        )
    for key in recorded:
        if key not in settings:
            continue
        old = _leaves(key, recorded[key])
        new = _leaves(key, settings[key])
        changes += [
            _change(field, old.get(field, _ABSENT), new.get(field, _ABSENT))
            for field in dict.fromkeys([*old, *new])
            if old.get(field, _ABSENT) != new.get(field, _ABSENT)
        ]
    return changes


def _comparable(
    old: Mapping[str, Any], new: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two placements without what was measured, and where the kind changed, what comes with it."""
    left_out = {"found"} if old.get("kind") == new.get("kind") else {"found", "asked", "ranks"}
    return (
        {key: value for key, value in old.items() if key not in left_out},
        {key: value for key, value in new.items() if key not in left_out},
    )


class _Absent:
    """A field that one side does not have; equal to nothing but itself."""


_ABSENT = _Absent()


def _leaves(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        leaves: dict[str, Any] = {}
        for key, below in value.items():
            leaves |= _leaves(f"{name}.{key}", below)
        return leaves
    # A tuple of the config is a list of the manifest.
    return {name: list(value) if isinstance(value, tuple) else value}


def _change(field: str, old: Any, new: Any) -> str:
    return f"{field} changed: {_arrow(old, new)}"


def _arrow(old: Any, new: Any) -> str:
    if isinstance(old, list) and isinstance(new, list) and max(len(old), len(new)) > 6:
        gone = [item for item in old if item not in new]
        come = [item for item in new if item not in old]
        counts = f"{len(old)} entries -> {len(new)} entries"
        return f"{counts} (gone: {_shown(gone[:3])}, new: {_shown(come[:3])})"
    return f"{_shown(old)} -> {_shown(new)}"


def _shown(value: Any) -> str:
    if isinstance(value, _Absent):
        return "not set"
    if isinstance(value, str):
        is_hash = len(value) == 64 and all(c in "0123456789abcdef" for c in value)
        return f"{value[:12]}..." if is_hash else value
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_shown(item) for item in value)}]"
    return json.dumps(value)


def _named(names: list[str]) -> str:
    listing = ", ".join(f"'{name}'" for name in names)
    return f"domain{'s' if len(names) > 1 else ''} {listing} {'are' if len(names) > 1 else 'is'}"


def _message(problems: list[str]) -> str:
    advice = "undo the change, or train into a new folder"
    if len(problems) == 1:
        return f"cannot resume: {problems[0]}; {advice}"
    first = f"cannot resume: {len(problems)} changes touch finished domains; {advice}"
    return "\n".join([first, *(f"  {problem}" for problem in problems)])
