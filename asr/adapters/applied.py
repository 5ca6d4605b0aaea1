"""An open block of rows: which modules are stood in for, and what each of them adds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from asr.adapters.stacked import ModuleAdapters, Rows

if TYPE_CHECKING:
    from asr.adapters.bank import AdapterBank


class Plan:
    """The rows of a block: what each module adds for them, made when the module is first called."""

    def __init__(self, bank: AdapterBank, names: Sequence[str | None]) -> None:
        self._bank = bank
        self._device = getattr(bank.model, "device", torch.device("cpu"))
        self.following: list[AdaptedModule] = []
        self._take(names)

    def keep(self, kept: list[int]) -> None:
        """Go on with these rows."""
        self._bank.forget_plans()  # this one is another now
        self._take([self.rows.names[row] for row in kept])

    def _take(self, names: Sequence[str | None]) -> None:
        self.rows = Rows(names, self._bank.slots_for(distinct(names)), self._device)
        self._modules: dict[str, ModuleAdapters] = {}

    def adapters(self, module: str) -> ModuleAdapters:
        """What a module adds."""
        found = self._modules.get(module)
        if found is None:
            bank, slots = self._bank, self.rows.slots
            factors = bank.factors_on(module, sorted(self.rows.used))
            found = ModuleAdapters(self.rows, factors, lambda: bank.stack_on(module, slots))
            self._modules[module] = found
        return found


def distinct(names: Sequence[str | None]) -> list[str]:
    """The adapters among the rows, each once, in order."""
    return list(dict.fromkeys(name for name in names if name is not None))


class AdaptedModule:
    """A linear module of the base that some adapter touches; its ``forward`` is stood in for."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self.module = module
        self._own: Any = None  # an instance's own forward, as accelerate sets one
        self._original: Callable[..., Tensor] = module.forward
        self._plan: Plan | None = None

    def follow(self, plan: Plan) -> None:
        """Add the plan's adapters from now on."""
        # Past nn.Module.__setattr__, which is ten times slower, at hundreds of modules a step; and
        # no hook, which would send every call through PyTorch's slow path.
        attributes = vars(self.module)
        self._own = attributes.get("forward")
        self._original = self.module.forward
        self._plan = plan
        plan.following.append(self)
        attributes["forward"] = self.forward

    def leave(self) -> None:
        """Be the base's module again."""
        if self._own is None:
            del vars(self.module)["forward"]
        else:
            vars(self.module)["forward"] = self._own
        self._plan = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The module's own output with the rows' LoRAs added."""
        assert self._plan is not None
        return self._plan.adapters(self.name).add(self._original(x, *args, **kwargs), x)
