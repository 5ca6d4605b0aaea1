"""The bank of adapters: read from disk, kept within a budget, applied to the rows of a batch.

One base, many adapters, and a batch whose rows may each want another one or none. The base's
modules stay what they are: while a batch runs, the ``forward`` of each module that one of its rows
adapts is stood in for by one that adds the rows' LoRAs to the output (:mod:`asr.adapters.stacked`),
and put back when the block ends, however it ends. Outside :meth:`AdapterBank.rows` the model *is*
the base, and rows of the base alone run its own modules untouched.

Prompts run through adapters in the base's own floating-point type, as they did under autocast in
training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asr.adapters.applied import AdaptedModule, Plan, distinct
from asr.adapters.placement import linear_modules
from asr.adapters.stacked import Factors, Stack
from asr.adapters.storage import StoredAdapter, load_adapter, lora_factors
from asr.errors import AdapterError, unknown

_PLANS = 4
"""Plans kept: a decode step between two steps of a prefill finds its own again."""


@dataclass(frozen=True)
class ReadyAdapter:
    """An adapter that was read, checked against the base and put on its device.

    Attributes:
        factors: by full module name.
        modules: the same modules of the base.
        sha256: hash of its tensor file.
        nbytes: size in memory.
    """

    factors: dict[str, Factors]
    modules: tuple[AdaptedModule, ...]
    sha256: str
    nbytes: int


class AdapterBank:
    """Adapters of one base, applied row by row.

    Args:
        model: the plain base model; nothing in it is replaced.
        base_fingerprint: adapters of another base are refused (None: not compared).
        budget: most bytes of adapters kept; beyond it the least recently used ones that no row uses
            are dropped. None: all are kept. A batch that needs more than the budget gets it.

    Not thread-safe, but for :meth:`prepare`: one worker owns the model. A decision travels as the
    argument of :meth:`rows`; there is no active adapter between calls.
    """

    def __init__(
        self, model: nn.Module, base_fingerprint: str | None = None, budget: int | None = None
    ) -> None:
        self.model = model
        self.base_fingerprint = base_fingerprint
        self.budget = budget
        self.loads = 0
        self.evictions = 0
        self._resident: dict[str, ReadyAdapter] = {}  # least recently used first
        self._pins: Counter[str] = Counter()
        self._stacks: dict[str, Stack] = {}  # by module
        self._slots: list[str] = []  # the adapters in them, in their order
        self._plans: dict[tuple[str | None, ...], Plan] = {}  # least recently used first
        self._adapted: dict[str, AdaptedModule] = {}
        self._shapes: dict[str, tuple[int, int]] | None = None
        self._open = False

    # -- what is resident ------------------------------------------------------------------------

    @property
    def in_use(self) -> bool:
        """Whether a :meth:`rows` block is open: its rows own the model until it ends."""
        return self._open

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the resident adapters, least recently used first."""
        return tuple(self._resident)

    @property
    def nbytes(self) -> int:
        """Bytes of the resident adapters."""
        return sum(ready.nbytes for ready in self._resident.values())

    def sha256(self, name: str) -> str:
        """Hash of a resident adapter's tensor file."""
        return self._resident[name].sha256

    def prepare(self, folder: Path, sha256: str | None = None) -> ReadyAdapter:
        """Read and check an adapter; the bank is not changed, so any thread may do it.

        Args:
            folder: adapter folder.
            sha256: what the hash of its tensor file must be; None: anything.

        Raises:
            AdapterError: for any reason of :func:`asr.adapters.storage.load_adapter`; the file is
                another one than ``sha256`` says; a module does not exist in the base or has another
                shape there.
        """
        stored = load_adapter(folder, base_fingerprint=self.base_fingerprint)
        if sha256 is not None and stored.sha256 != sha256:
            raise AdapterError(
                f"adapter '{folder.name}' was changed since training; restore it from a copy"
            )
        self._check_fits(stored, folder)
        dtype = getattr(self.model, "dtype", torch.float32)
        if getattr(self.model, "device", torch.device("cpu")).type == "cpu":
            dtype = torch.float32  # thin products are faster in it; see asr.adapters.stacked
        factors, modules = {}, []
        for name in stored.modules:
            adapted = self._adapted.get(name)
            if adapted is None:
                adapted = self._adapted.setdefault(
                    name, AdaptedModule(name, self.model.get_submodule(name))
                )
            weight: Any = adapted.module.weight
            a, b = lora_factors(stored, name)
            factors[name] = Factors(a.to(weight.device, dtype), b.to(weight.device, dtype))
            modules.append(adapted)
        size = sum(each.nbytes for each in factors.values())
        return ReadyAdapter(factors, tuple(modules), stored.sha256, size)

    def publish(self, name: str, ready: ReadyAdapter) -> None:
        """Make a prepared adapter resident; others leave where the budget asks for it.

        Raises:
            AdapterError: the name is taken.
        """
        if name in self._resident:
            raise AdapterError(f"adapter '{name}' is loaded already; unload it first")
        self.make_room(ready.nbytes)
        self._resident[name] = ready
        self.loads += 1

    def load(self, name: str, folder: Path, sha256: str | None = None) -> None:
        """:meth:`prepare` and :meth:`publish`; after a failure the bank is as it was.

        Raises:
            AdapterError: see both.
        """
        if name in self._resident:
            raise AdapterError(f"adapter '{name}' is loaded already; unload it first")
        self.publish(name, self.prepare(folder, sha256))

    def unload(self, name: str) -> None:
        """Drop a resident adapter.

        Raises:
            AdapterError: if there is none of that name, or a row uses it.
        """
        if name not in self._resident:
            raise AdapterError(unknown("adapter", name, self._resident))
        if self._pins[name]:
            raise AdapterError(
                f"adapter '{name}' cannot be unloaded: a batch is running with it; read its answer "
                "to the end, or close it, first"
            )
        self._drop(name)

    def close(self) -> None:
        """Drop all adapters.

        Raises:
            AdapterError: while a :meth:`rows` block is open.
        """
        if self._open:
            raise AdapterError(
                "the adapters cannot be taken off: a batch is running with them; read its answer "
                "to the end, or close it, first"
            )
        self._resident.clear()
        self._pins.clear()
        self._forget_stacks()

    # -- the budget ------------------------------------------------------------------------------

    def pin(self, name: str) -> None:
        """Keep a resident adapter until :meth:`unpin` was called as often as this.

        Raises:
            AdapterError: it is not resident.
        """
        if name not in self._resident:
            raise AdapterError(unknown("adapter", name, self._resident))
        self._pins[name] += 1
        self._resident[name] = self._resident.pop(name)  # now the most recently used

    def unpin(self, name: str) -> None:
        """Give a :meth:`pin` back.

        Raises:
            ValueError: it is not pinned.
        """
        if not self._pins[name]:
            raise ValueError(f"adapter '{name}' is not pinned")
        self._pins[name] -= 1

    def is_pinned(self, name: str) -> bool:
        """Whether a row uses an adapter."""
        return self._pins[name] > 0

    def has_room(self, nbytes: int) -> bool:
        """Whether so many bytes fit beside the pinned adapters (always, if none is pinned)."""
        pinned = [self._resident[name].nbytes for name in self._resident if self._pins[name]]
        return self.budget is None or not pinned or sum(pinned) + nbytes <= self.budget

    def make_room(self, nbytes: int) -> None:
        """Drop adapters that no row uses, least recently used first, until so many bytes fit."""
        if self.budget is None:
            return
        for name in [name for name in self._resident if not self._pins[name]]:
            if self.nbytes + nbytes <= self.budget:
                return
            self._drop(name)
            self.evictions += 1

    # -- rows ------------------------------------------------------------------------------------

    @contextmanager
    def rows(self, names: Sequence[str | None]) -> Iterator[Callable[[list[int]], None]]:
        """Within the block, row ``i`` of every batch runs with adapter ``names[i]`` (None: base).

        Yields a function to call with the rows that stay when others leave the batch: from then on
        row ``i`` is what row ``kept[i]`` was.

        A linear module that gets its batch flattened to (rows x tokens, features), as OPT's feed-
        forward does, is followed: all tokens of a row belong to it.

        Raises:
            AdapterError: if a name is not loaded, or if another block is open (even one of base
                rows only).
        """
        if self._open:
            raise AdapterError(
                "rows() cannot be nested: a batch is running with its adapters; read its answer to "
                "the end, or close it, first"
            )
        used = distinct(names)
        for name in used:
            if name not in self._resident:
                raise AdapterError(unknown("adapter", name, self._resident))
        plan = self._plan(tuple(names))
        self._open = True
        try:
            for name in used:
                self.pin(name)
            for module in {id(m): m for n in used for m in self._resident[n].modules}.values():
                module.follow(plan)
            yield plan.keep
        finally:
            for module in plan.following:
                module.leave()
            plan.following.clear()
            for name in used:
                self.unpin(name)
            self._open = False

    # -- inside ----------------------------------------------------------------------------------

    def _plan(self, names: tuple[str | None, ...]) -> Plan:
        """The plan of these rows; the last few are kept, as decoding asks for the same again."""
        plan = self._plans.pop(names, None) or Plan(self, names)
        self._plans[names] = plan
        while len(self._plans) > _PLANS:
            del self._plans[next(iter(self._plans))]
        return plan

    def factors_on(self, module: str, names: Sequence[str]) -> dict[str, Factors]:
        """Factors of the named resident adapters on a module, where they touch it."""
        found = {name: self._factors(name, module) for name in names}
        return {name: factors for name, factors in found.items() if factors is not None}

    def slots_for(self, wanted: Sequence[str]) -> tuple[str, ...]:
        """Give the adapters slots in the stacks, and return the names in all slots.

        An adapter keeps its slot until one that a row uses needs it, or until most slots are idle:
        rows that come and go with the same few adapters copy nothing.
        """
        active = [name for name in self._resident if self._pins[name] or name in wanted]
        if len(self._slots) > 2 * len(active):
            self._slots = [name for name in self._slots if name in active]
            self._plans.clear()
        missing = [name for name in wanted if name not in self._slots]
        for name in missing:
            idle = next((k for k, held in enumerate(self._slots) if held not in active), None)
            if idle is None:
                self._slots.append(name)
            else:
                self._slots[idle] = name
        if missing:
            self._plans.clear()
        return tuple(self._slots)

    def stack_on(self, module: str, slots: Sequence[str]) -> Stack:
        """The stacked factors of the adapters in these slots on a module."""
        stack = self._stacks.setdefault(module, Stack())
        stack.hold([self._factors(name, module) for name in slots])
        return stack

    def _factors(self, name: str, module: str) -> Factors | None:
        ready = self._resident.get(name)  # a slot may still name one that was dropped
        return None if ready is None else ready.factors.get(module)

    def forget_plans(self) -> None:
        """Make the plans of rows anew when they are asked for again."""
        self._plans.clear()

    def _forget_stacks(self) -> None:
        self._plans.clear()
        self._stacks.clear()
        self._slots.clear()

    def _drop(self, name: str) -> None:
        del self._resident[name]
        self._pins.pop(name, None)
        self._plans.clear()

    def _check_fits(self, stored: StoredAdapter, folder: Path) -> None:
        if self._shapes is None:
            self._shapes = {
                module.name: (module.in_features, module.out_features)
                for module in linear_modules(self.model)
            }
        for name in stored.modules:
            if name not in self._shapes:
                raise AdapterError(
                    f"adapter {folder}: the base has no linear module '{name}'; "
                    "it was trained on another architecture"
                )
            rows, columns = self._shapes[name]
            a, b = lora_factors(stored, name)
            if (a.shape[1], b.shape[1]) != (rows, columns):
                raise AdapterError(
                    f"adapter {folder}: '{name}' maps {a.shape[1]} to {b.shape[1]} features, "
                    f"the base's maps {rows} to {columns}"
                )

    def __enter__(self) -> AdapterBank:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
