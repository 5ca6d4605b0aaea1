"""The bank of adapters: load, validate, apply to the rows of a batch.

One base, many adapters, and a batch whose rows may each want another one or none. The interface is
``load``, ``unload``, ``rows`` and ``close``; inside, for now, stands PEFT's mixed batch. PEFT
leaves its hooks behind when a mixed-batch call raises, and the next call then runs with the old
adapters (peft#3475), so the hooks here are the bank's own and are removed in every case.

Outside ``rows`` the model *is* the base: adapters are switched off, not merely unused.

Adapters run in the base's own floating-point type, as they did under autocast in training. (PEFT's
default keeps them in float32 over a bfloat16 base and casts every input up: slower, and neither
what was trained nor what other engines run.)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from asr.adapters.lora import detach, unwrap
from asr.adapters.placement import linear_modules
from asr.adapters.storage import StoredAdapter, load_adapter
from asr.base.quiet import quiet_libraries
from asr.errors import AdapterError, first_line, unknown

_PREFIX = "domain__"
_BASE_ROW = "__base__"


class AdapterBank:
    """Adapters of one base, applied row by row.

    Args:
        model: the plain base model; its linear modules are wrapped in place while adapters are
            loaded and come back with :meth:`close`.
        base_fingerprint: adapters of another base are refused (None: not compared).

    Not thread-safe: one worker owns the model. A decision travels as the argument of :meth:`rows`;
    there is no active adapter between calls. While a :meth:`rows` block is open, everything that
    would change what its rows run with is refused.
    """

    def __init__(self, model: nn.Module, base_fingerprint: str | None = None) -> None:
        self.model = model
        self.base_fingerprint = base_fingerprint
        self._peft: PeftModel | None = None
        self._loaded: dict[str, StoredAdapter] = {}
        self._open = False

    @property
    def in_use(self) -> bool:
        """Whether a :meth:`rows` block is open: its rows own the model until it ends."""
        return self._open

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the resident adapters, in the order of loading."""
        return tuple(self._loaded)

    def sha256(self, name: str) -> str:
        """Hash of a resident adapter's tensor file."""
        return self._loaded[name].sha256

    def load(self, name: str, folder: Path) -> None:
        """Read, check and attach the adapter in ``folder`` under ``name``.

        The adapter is read and compared with the base before the base is touched; after a failure
        the bank is as it was.

        Raises:
            AdapterError: if the name is taken, or for any reason of
                :func:`asr.adapters.storage.load_adapter`, or if a module does not exist in the base
                or has another shape there, or PEFT refuses its configuration, or while a
                :meth:`rows` block is open.
        """
        self._require_idle(f"adapter '{name}' cannot be loaded")
        if name in self._loaded:
            raise AdapterError(f"adapter '{name}' is loaded already; unload it first")
        stored = load_adapter(folder, base_fingerprint=self.base_fingerprint)
        self._check_fits(stored, folder)
        peft_name = _PREFIX + name
        try:
            self._attach(peft_name, stored, folder)
        except BaseException as error:
            self._remove(peft_name, last=not self._loaded)
            if isinstance(error, TypeError | ValueError | re.error):
                raise AdapterError(
                    f"adapter {folder} cannot be attached to the base: {first_line(error)}"
                ) from error
            raise
        self._loaded[name] = stored
        self._freeze()

    def unload(self, name: str) -> None:
        """Drop a resident adapter.

        Raises:
            AdapterError: if there is none of that name, or while a :meth:`rows` block is open.
        """
        self._require_idle(f"adapter '{name}' cannot be unloaded")
        if name not in self._loaded:
            raise AdapterError(unknown("adapter", name, self._loaded))
        del self._loaded[name]
        self._remove(_PREFIX + name, last=not self._loaded)

    def close(self) -> None:
        """Drop all adapters and give the base its own modules back.

        Raises:
            AdapterError: while a :meth:`rows` block is open.
        """
        self._require_idle("the adapters cannot be taken off")
        self._loaded.clear()
        if self._peft is not None:
            detach(self._peft)
            self._peft = None

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
        self._require_idle("rows() cannot be nested")
        for name in names:
            if name is not None and name not in self._loaded:
                raise AdapterError(unknown("adapter", name, self._loaded))
        layers = self._layers()
        peft_names = [_BASE_ROW if name is None else _PREFIX + name for name in names]

        def keep_rows(kept: list[int]) -> None:
            peft_names[:] = [peft_names[row] for row in kept]

        def inject(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            return args, {**kwargs, "adapter_names": _for_rows_of(args[0], peft_names)}

        wanted = {_PREFIX + name for name in names if name is not None}
        handles: list[RemovableHandle] = []
        touched: list[LoraLayer] = []
        self._open = True
        try:
            for layer in layers:
                if wanted.isdisjoint(layer.lora_A.keys()):
                    continue  # stays switched off: for these rows it is the base's own module
                touched.append(layer)
                layer._disable_adapters = False
                handles.append(layer.register_forward_pre_hook(inject, with_kwargs=True))
            yield keep_rows
        finally:
            for handle in handles:
                handle.remove()
            for layer in touched:
                layer._disable_adapters = True
            self._open = False

    # -- inside ----------------------------------------------------------------------------------

    def _require_idle(self, what: str) -> None:
        if self._open:
            raise AdapterError(
                f"{what}: a batch is running with its adapters; read its answer to the end, or "
                "close it, first"
            )

    def _attach(self, peft_name: str, stored: StoredAdapter, folder: Path) -> None:
        # PEFT draws a start for A that is overwritten: a request's sampling must not notice it
        with quiet_libraries(), torch.random.fork_rng(devices=[]):
            if self._peft is None:
                self._peft = PeftModel(
                    self.model,
                    stored.config,
                    adapter_name=peft_name,
                    autocast_adapter_dtype=False,
                )
            else:
                self._peft.add_adapter(peft_name, stored.config, autocast_adapter_dtype=False)
            result: Any = set_peft_model_state_dict(
                self._peft, stored.tensors, adapter_name=peft_name
            )
        # Only keys of this adapter count: the base and the other adapters are always "missing".
        missing = [key for key in result.missing_keys if f".{peft_name}." in key]
        if missing or result.unexpected_keys:
            first = (missing or result.unexpected_keys)[0]
            raise AdapterError(f"adapter {folder} does not fit the base; first key: {first}")

    def _layers(self) -> list[Any]:
        return [module for module in self.model.modules() if isinstance(module, LoraLayer)]

    def _check_fits(self, stored: StoredAdapter, folder: Path) -> None:
        shapes = self._base_shapes()
        for name in stored.modules:
            if name not in shapes:
                raise AdapterError(
                    f"adapter {folder}: the base has no linear module '{name}'; "
                    "it was trained on another architecture"
                )
            rows, columns = shapes[name]
            found = (
                stored.tensors[f"base_model.model.{name}.lora_B.weight"].shape[0],
                stored.tensors[f"base_model.model.{name}.lora_A.weight"].shape[1],
            )
            if found != (columns, rows):
                raise AdapterError(
                    f"adapter {folder}: '{name}' maps {found[1]} to {found[0]} features, "
                    f"the base's maps {rows} to {columns}"
                )

    def _base_shapes(self) -> dict[str, tuple[int, int]]:
        """(in, out) features by full name, whether or not adapters already wrap the modules."""
        return {
            module.name.removesuffix(".base_layer"): (module.in_features, module.out_features)
            for module in linear_modules(self.model)
            if ".lora_" not in module.name
        }

    def _freeze(self) -> None:
        for layer in self._layers():
            layer._disable_adapters = True
            for parameter in layer.parameters():
                parameter.requires_grad_(False)
        self.model.eval()

    def _remove(self, peft_name: str, last: bool) -> None:
        if self._peft is None:
            unwrap(self.model)  # PEFT failed half-way through the first adapter
            return
        if last:
            self.close()
            return
        with quiet_libraries():
            if peft_name in self._peft.peft_config:
                self._peft.delete_adapter(peft_name)
            else:  # where adding one fails half-way, PEFT forgets its name but not its modules
                for layer in self._layers():
                    layer.delete_adapter(peft_name)
        self._freeze()

    def __enter__(self) -> AdapterBank:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _for_rows_of(batch: Tensor, names: list[str]) -> list[str]:
    """One name per entry of a module's input: each repeated where rows were flattened to tokens."""
    if batch.ndim == 2 and len(batch) != len(names) and len(batch) % len(names) == 0:
        return [name for name in names for _ in range(len(batch) // len(names))]
    return names
