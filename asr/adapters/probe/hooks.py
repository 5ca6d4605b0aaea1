"""Hooks that read gradient energies off one forward and one backward pass.

A forward hook keeps of each module's input what the norm needs of it (once for modules that read
the very same tensor, as q, k and v do), and a hook on its output takes the gradient that arrives
there. No gradient of a weight is kept, and all parameters stay frozen: gradients flow from the
embeddings' output.

Notation used for tensor shapes:
    - n: samples of the batch (1 where the whole batch counts as one)
    - b, t: rows of the batch and their padded length
    - m: modules
    - i, o, r: input width, output width, rank
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from asr.adapters.placement import LinearModule
from asr.adapters.probe.ghost_norm import TokenInputs, Tokens, gram_is_cheaper
from asr.adapters.probe.start import Start
from asr.errors import AdapterError

ENERGY, WITHOUT_FIRST, GRADIENT = range(3)
"""Columns of what a pass yields per sample and module."""

WHAT_WORKS = (
    "load the base in float32, bfloat16 or float16, or with quantisation int8 or nf4 (bitsandbytes)"
)


@contextmanager
def frozen_in_evaluation(model: nn.Module) -> Iterator[None]:
    """Freeze every parameter and switch dropout off; both come back as they were."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True


def product_type(stored: torch.dtype, exact: bool) -> torch.dtype:
    """The type to multiply in.

    bfloat16 multiplies in bfloat16 and sums in float32, unless ``exact``. float16 does not reach
    far enough for a product of gradients and goes to float32; others stay.
    """
    if stored is torch.bfloat16 and not exact:
        return stored
    return torch.promote_types(stored, torch.float32)


class _SharedInput:
    """The input of one or several modules, until the last of their gradients has arrived.

    The form (Gram or product) is chosen when the input is closed: once the forward pass has gone on
    to another input, and so all modules that read this one are known.
    """

    def __init__(self, source: Tensor, inputs: Tensor, tokens: Tokens, dtype: torch.dtype) -> None:
        self._source = weakref.ref(source)
        self._inputs: Tensor | None = inputs
        self._version = inputs._version
        self._tokens = tokens
        self._dtype = dtype
        self._widths: list[int] = []
        self.kept: TokenInputs | None = None

    def is_of(self, source: Tensor) -> bool:
        return self._source() is source

    def join(self, out_features: int) -> None:
        self._widths.append(out_features)

    def close(self, name: str) -> None:
        inputs, self._inputs = self._inputs, None
        if inputs is None:
            return
        if inputs._version != self._version:
            raise AdapterError(
                f"the base changes the input of '{name}' in place after the module has read it; "
                "PAGE cannot read it off"
            )
        gram = gram_is_cheaper(inputs.shape[1], inputs.shape[2], self._widths)
        self.kept = TokenInputs(inputs, self._tokens, self._dtype, gram=gram)

    def leave(self) -> None:
        self._widths.pop()
        if not self._widths:
            self.kept = None  # frees the memory while the backward pass goes on


class EnergyHooks:
    """Reads the energies of ``modules`` off a forward and a backward pass.

    Used as a context manager; outside of it nothing is left on the model.

    Args:
        model: the base.
        modules: candidate modules.
        starts: how an adapter on each of them starts.
        exact: multiply in float32 at least.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: Sequence[LinearModule],
        starts: Sequence[Start],
        *,
        exact: bool,
    ) -> None:
        self._model: Any = model
        self._modules = modules
        self._starts = starts
        self._exact = exact
        self._undo = ExitStack()
        self._forget(None, 0)

    def __enter__(self) -> EnergyHooks:
        with ExitStack() as undo:  # what is half done is undone
            for index, module in enumerate(self._modules):
                target = self._model.get_submodule(module.name)
                hook = partial(self._on_forward, index)
                undo.callback(target.register_forward_hook(hook).remove)
            embedding = self._model.get_input_embeddings()
            undo.callback(embedding.register_forward_hook(_start_gradients).remove)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._undo.close()
        self.rest()

    def begin(self, tokens: Tokens, samples: int) -> None:
        """Expect the forward pass of a batch.

        Args:
            tokens: which of its tokens count; (n, t), or (1, b * t) for the whole batch as one.
            samples: n.
        """
        self._forget(tokens, samples)

    def end_forward(self) -> None:
        """The forward pass is over."""
        self._close()

    def rest(self) -> None:
        """Let forward passes go by until the next :meth:`begin`."""
        self._forget(None, 0)

    def take(self) -> Tensor:
        """Energies after the backward pass: (n, m, 3) float64 in main memory.

        Modules that the forward pass did not call (experts that no token was sent to) have 0.

        Raises:
            AdapterError: a module was called and no gradient came back to it.
        """
        missing = [index for index in self._called if index not in self._found]
        if missing:
            raise AdapterError(self._no_gradient(missing[0]))
        values = torch.zeros(self._samples, len(self._modules), 3, dtype=torch.float64)
        if self._found:
            found = torch.stack(list(self._found.values()), dim=1)
            # In float64: the square of a large alpha / rank leaves the range of float32.
            factors = [self._starts[index].factor for index in self._found]
            found = found.to("cpu", torch.float64)
            found[..., :GRADIENT] *= torch.tensor(factors, dtype=torch.float64).unsqueeze(1)
            values[:, list(self._found)] = found
        return values

    def in_backward_order(self) -> list[int]:
        """Indices of the modules as gradients reached them."""
        return list(self._found)

    def _forget(self, tokens: Tokens | None, samples: int) -> None:
        self._tokens = tokens
        self._samples = samples
        self._called: dict[int, None] = {}
        self._found: dict[int, Tensor] = {}  # module -> (n, 3), without the start's factor
        self._shared: dict[int, _SharedInput] = {}
        self._open: tuple[_SharedInput, str] | None = None

    def _close(self) -> None:
        if self._open is not None:
            shared, name = self._open
            self._open = None
            shared.close(name)

    def _on_forward(self, index: int, module: nn.Module, args: Any, output: Tensor) -> None:
        if self._tokens is None:
            return
        name = self._modules[index].name
        if not output.requires_grad:
            raise AdapterError(self._no_gradient(index))
        if index in self._called:
            raise AdapterError(
                f"'{name}' runs twice in one forward pass, so its energies would mix; leave it out"
            )
        self._called[index] = None
        source: Tensor = args[0]
        shared = self._shared.get(id(source))
        if shared is None or not shared.is_of(source):
            self._close()
            inputs, tokens = self._placed(index, source.detach())
            shared = _SharedInput(source, inputs, tokens, product_type(source.dtype, self._exact))
            self._shared[id(source)] = shared
            self._open = (shared, name)
        shared.join(output.shape[-1])
        start = self._starts[index]
        reduced: TokenInputs | None = None
        if start.a is not None:
            inputs, tokens = self._placed(index, source.detach())
            dtype = product_type(source.dtype, self._exact)
            through_a = inputs.to(dtype) @ start.a.to(inputs.device, dtype).mT  # (n, t, r)
            reduced = TokenInputs(through_a, tokens, dtype, gram=False)
        output.register_hook(partial(self._on_gradient, index, shared, reduced))

    def _on_gradient(
        self, index: int, shared: _SharedInput, reduced: TokenInputs | None, gradient: Tensor
    ) -> None:
        assert shared.kept is not None
        start = self._starts[index]
        outputs, _ = self._placed(index, gradient.detach())
        norms = shared.kept.squared_norms(outputs)  # (n, 2)
        energy = norms
        if start.a is not None or start.b is not None:
            energy = torch.zeros_like(norms)
        if start.b is not None:
            dtype = product_type(outputs.dtype, self._exact)
            through_b = outputs.to(dtype) @ start.b.to(outputs.device, dtype)  # (n, t, r)
            energy = energy + shared.kept.squared_norms(through_b)
        if reduced is not None:
            energy = energy + reduced.squared_norms(outputs)
        self._found[index] = torch.cat([energy, norms[:, :1]], dim=1)
        shared.leave()

    def _placed(self, index: int, tensor: Tensor) -> tuple[Tensor, Tokens]:
        """Return (n, t, width) tokens of a module's input or gradient, and which of them count.

        Raises:
            AdapterError: tokens were picked out of a batch of several samples.
        """
        assert self._tokens is not None
        samples, length = self._tokens.real.shape
        width = tensor.shape[-1]
        name = self._modules[index].name
        if "experts" not in name.split(".") and tensor.numel() == samples * length * width:
            return tensor.reshape(samples, length, width), self._tokens
        if samples == 1:
            picked = tensor.reshape(1, -1, width)
            return picked, Tokens.unplaced(picked.shape[1], tensor.device)
        raise AdapterError(
            f"'{name}' sees tokens picked out of the batch, so that nobody knows whose they are; "
            "probe with batch_size 1"
        )

    def _no_gradient(self, index: int) -> str:
        name = self._modules[index].name
        kind = type(self._model.get_submodule(name)).__name__
        return f"gradients do not flow through '{name}' ({kind}), and PAGE needs them; {WHAT_WORKS}"


def _start_gradients(module: nn.Module, args: Any, output: Tensor) -> None:
    output.requires_grad_(True)
