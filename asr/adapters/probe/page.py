"""PAGE, projected adapter gradient energy: what gradient an adapter would get, by module.

For module m with the adapter ``s B A`` and the weight gradient ``G(x) = dL(x)/dW_m`` of a sample x,
the energy is the squared norm of the gradient that the adapter's factors receive at initialisation,
in expectation over a random start. With the usual start (B = 0, A random with zero mean)::

    E_A ||dL(x)/dB||_F^2 = s^2 r Var(A) ||G(x)||_F^2

The loss ``L(x)`` is the mean over the answer tokens of the sample; losses are summed over the
samples of a batch, so that the gradients of samples do not mix. Dropout is off. Other starts:
:mod:`asr.adapters.probe.start`; norms without gradients: :mod:`asr.adapters.probe.ghost_norm`.

The definition is reconstructed from the abstract of DomLoRA (arXiv 2605.06183). What it leaves open
is an option here: the start, the loss, per sample or per batch, with and without the first token
(massive activations live there).

Notation used for tensor shapes:
    - n: samples (rows), or batches
    - m: modules
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from asr.adapters.lora import LoraSettings, check_variant
from asr.adapters.placement import LinearModule, Placement
from asr.adapters.probe.batch import Loss, ProbeBatch, pad_rows, require_targets, sample_losses
from asr.adapters.probe.ghost_norm import Tokens
from asr.adapters.probe.hooks import (
    ENERGY,
    GRADIENT,
    WHAT_WORKS,
    WITHOUT_FIRST,
    EnergyHooks,
    frozen_in_evaluation,
)
from asr.adapters.probe.start import scaling_problem, start_of
from asr.base.attention import finite_gradients
from asr.base.layers import decoder_layers
from asr.data.encode import EncodedExample
from asr.errors import AdapterError, did_you_mean, unknown

Per = Literal["sample", "batch"]
Progress = Callable[[int, int], None]

_LOSS_SCALES = (2.0**12, 2.0**8, 2.0**4, 1.0)
"""Tried in turn on a float16 base, whose small gradients would vanish and large ones overflow.
Powers of two: they change no digit."""


@dataclass(frozen=True)
class PageSettings:
    """What an energy means.

    Attributes:
        lora: the adapter that would be trained: its start, scaling and rank enter.
        per: ``sample``: norms of the gradients of single samples (as in an empirical Fisher
            information). ``batch``: norms of the gradient of a batch's mean loss (the mean over its
            samples), where opposite gradients cancel.
        loss: ``answer``: over the answer tokens. ``full``: over all tokens but the first.
    """

    lora: LoraSettings = field(default_factory=LoraSettings)
    per: Per = "sample"
    loss: Loss = "answer"


@dataclass(frozen=True)
class PageEnergies:
    """Energies of every module for every sample (or batch), in the order given.

    Attributes:
        modules: the m modules.
        energy: (n, m) float64.
        without_first: (n, m) float64, without what the first token of each row contributes to the
            weight gradient as an input of the module. NaN for experts: which of their tokens is the
            first is not known.
        gradient: (n, m) float64, squared Frobenius norm of the weight gradient.
    """

    modules: tuple[LinearModule, ...]
    energy: NDArray[np.float64]
    without_first: NDArray[np.float64]
    gradient: NDArray[np.float64]


def page_energies(
    model: nn.Module,
    rows: Sequence[EncodedExample],
    modules: Sequence[LinearModule],
    settings: PageSettings,
    *,
    pad_token_id: int,
    batch_size: int = 8,
    progress: Progress | None = None,
    exact: bool = False,
) -> PageEnergies:
    """Gradient energies at initialisation by one forward and one backward pass per batch.

    The model comes back as it was: frozen or not, training or not, without hooks; also after an
    exception. Results are returned whole or not at all.

    Args:
        model: the plain base; floating point, or int8 or nf4 by bitsandbytes.
        rows: samples. Batches of one length are made of them, except per batch, where
            ``batch_size`` rows in the order given are a batch.
        modules: candidates; usually :func:`asr.adapters.placement.linear_modules`. With experts
            among them (:func:`expert_modules`) one row runs at a time.
        settings: what an energy means.
        pad_token_id: id to pad with; masked.
        batch_size: rows of a batch.
        progress: called with (rows done, rows in all) after each batch.
        exact: multiply in float32 at least. Otherwise a bfloat16 base multiplies in bfloat16 and
            sums in float32.

    Raises:
        AdapterError: a variant or an initialisation that is refused; a module that is not in the
            model; a model that carries an adapter; a module through which gradients do not flow; a
            loss or a gradient that is not finite (names module and sample).
        DataError: no rows, or a row without a token to learn from.
    """
    _check(model, modules, settings, batch_size)
    require_targets(rows, settings.loss)
    if any("experts" in module.name.split(".") for module in modules):
        if settings.per == "batch" and batch_size > 1:
            raise AdapterError(
                "experts see tokens picked out of the batch; probe them per sample, or with "
                "batch_size 1"
            )
        batch_size = 1
    starts = [start_of(model, module, settings.lora) for module in modules]
    per_batch = settings.per == "batch"
    results = -(-len(rows) // batch_size) if per_batch else len(rows)
    values = np.zeros((results, len(modules), 3))
    device = _device_of(model)
    scales: Sequence[float] = _LOSS_SCALES if _is_half(model) else (1.0,)
    done = 0
    hooks = EnergyHooks(model, modules, starts, exact=exact)
    grad = torch.inference_mode(False), torch.enable_grad()
    with grad[0], grad[1], frozen_in_evaluation(model), hooks:
        for place, chosen in enumerate(_batches(rows, batch_size, sort=not per_batch)):
            batch_rows = [rows[index] for index in chosen]
            batch = pad_rows(batch_rows, settings.loss, pad_token_id, device)
            sources = [row.source for row in batch_rows]
            found, scale = _energies_of(model, hooks, batch, per_batch, scales, sources, modules)
            scales = scales[scales.index(scale) :]
            values[[place] if per_batch else chosen] = found.numpy()
            done += len(chosen)
            if progress is not None:
                progress(done, len(rows))
    return PageEnergies(
        tuple(modules), values[..., ENERGY], values[..., WITHOUT_FIRST], values[..., GRADIENT]
    )


def expert_modules(model: nn.Module) -> list[LinearModule]:
    """Experts that are linear modules; :func:`page_energies` takes them one row at a time.

    No adapter can be placed on them (:mod:`asr.adapters.placement`): this is for looking only.
    """
    found = decoder_layers(model)
    return [
        LinearModule(f"{found.path}.{index}.{name}", index, part.in_features, part.out_features)
        for index, layer in enumerate(found.modules)
        for name, part in layer.named_modules()
        if "experts" in name.split(".") and isinstance(part, nn.Linear)
    ]


def left_out(model: nn.Module) -> list[str]:
    """What of the decoder layers has weights for tokens and gets no energy: one line each."""
    counts: dict[str, int] = {}
    for layer in decoder_layers(model).modules:
        kinds: set[str] = set()
        for name, part in layer.named_modules():
            if name.rpartition(".")[2] != "experts":
                continue
            linear = any(isinstance(inner, nn.Linear) for inner in part.modules())
            reason = (
                "linear modules that see tokens picked out of the batch; no adapter can sit on them"
                if linear
                else f"3-D parameters of {type(part).__name__}; a LoRA needs linear modules"
            )
            kinds.add(f"experts: {reason}")
        for kind in kinds:
            counts[kind] = counts.get(kind, 0) + 1
    return [f"{kind} ({count} layer{'s' if count != 1 else ''})" for kind, count in counts.items()]


def _check(
    model: nn.Module, modules: Sequence[LinearModule], settings: PageSettings, batch_size: int
) -> None:
    for what, given, choices in (
        ("per", settings.per, get_args(Per)),
        ("loss", settings.loss, get_args(Loss)),
    ):
        if given not in choices:
            raise AdapterError(unknown(what, str(given), choices))
    problem = scaling_problem(settings.lora)
    if problem is not None:
        raise AdapterError(problem)
    if batch_size < 1:
        raise AdapterError(f"batch_size is {batch_size}; it must be at least 1")
    if not modules:
        raise AdapterError("there are no modules to probe; give at least one")
    if any(isinstance(module, LoraLayer) for module in model.modules()):
        raise AdapterError("the base carries an adapter; detach it before probing")
    known = {name for name, part in model.named_modules() if isinstance(part, (nn.Linear, Conv1D))}
    for module in modules:
        if module.name not in known:
            near = did_you_mean(module.name, known)
            raise AdapterError(f"no linear module '{module.name}' in the base{near}")
    check_variant(model, Placement("modules", tuple(modules), 0), settings.lora)


def _device_of(model: Any) -> torch.device:
    device: torch.device = model.get_input_embeddings().weight.device
    return device


def _is_half(model: Any) -> bool:
    return model.get_input_embeddings().weight.dtype is torch.float16


def _batches(rows: Sequence[EncodedExample], batch_size: int, *, sort: bool) -> Iterator[list[int]]:
    """Indices of rows, batch by batch; sorted by length there is little padding.

    The longest come first: what does not fit into memory shows at once.
    """
    order = list(range(len(rows)))
    if sort:
        order.sort(key=lambda index: -len(rows[index].input_ids))
    for begin in range(0, len(order), batch_size):
        yield order[begin : begin + batch_size]


def _energies_of(
    model: nn.Module,
    hooks: EnergyHooks,
    batch: ProbeBatch,
    per_batch: bool,
    scales: Sequence[float],
    sources: Sequence[str],
    modules: Sequence[LinearModule],
) -> tuple[Tensor, float]:
    """(n, m, 3) energies of one batch, and the first of the loss scales that does not overflow."""
    mask = batch.attention_mask
    tokens = Tokens.of_batch(mask) if per_batch else Tokens.of_rows(mask)
    values = torch.empty(0)
    for scale in scales:
        hooks.begin(tokens, tokens.real.shape[0])
        with finite_gradients():  # the forward pass chooses the kernel of both
            losses = sample_losses(model, batch)
        hooks.end_forward()
        finite = torch.isfinite(losses).tolist()
        if not all(finite):
            bad = finite.index(False)
            hooks.rest()
            raise AdapterError(_bad_loss(model, batch, modules, bad, sources[bad], losses[bad]))
        _backward(scale * (losses.mean() if per_batch else losses.sum()))
        values = hooks.take() / scale**2
        if torch.isfinite(values[..., [ENERGY, GRADIENT]]).all():
            return values, scale
    raise AdapterError(_bad_gradient(values, hooks, sources, modules, per_batch))


def _backward(loss: Tensor) -> None:
    try:
        loss.backward()
    except torch.OutOfMemoryError:
        raise
    except (NotImplementedError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        if "derivative" not in reason and not isinstance(error, NotImplementedError):
            raise
        raise AdapterError(
            f"gradients do not flow through the base ({reason}), and PAGE needs them; {WHAT_WORKS}"
        ) from error


def _bad_loss(
    model: nn.Module,
    batch: ProbeBatch,
    modules: Sequence[LinearModule],
    row: int,
    source: str,
    loss: Tensor,
) -> str:
    """Name the first module whose output is not finite, by running the batch once more."""
    real = batch.attention_mask[row].bool()
    first: list[str] = []

    def look(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            rows = output.reshape(len(batch.input_ids), -1, output.shape[-1])
            if not first and not torch.isfinite(rows[row][real]).all():
                first.append(name)

        return hook

    known = {module.name for module in modules if "experts" not in module.name.split(".")}
    handles = [
        part.register_forward_hook(look(name))
        for name, part in model.named_modules()
        if name in known
    ]
    try:
        with torch.no_grad():
            sample_losses(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    where = (
        f"'{first[0]}' is the first module with an output that is not finite"
        if first
        else "the outputs of all modules are finite, those of the final norm or the head are not"
    )
    return (
        f"the loss of {source} is {loss.item():g}: {where}; load the base in float32 or bfloat16, "
        "or take another copy of it"
    )


def _bad_gradient(
    values: Tensor,
    hooks: EnergyHooks,
    sources: Sequence[str],
    modules: Sequence[LinearModule],
    per_batch: bool,
) -> str:
    for index in hooks.in_backward_order():
        bad = ~torch.isfinite(values[:, index, [ENERGY, GRADIENT]]).all(dim=1)
        if bad.any():
            sample = int(bad.int().argmax())
            source = f"the batch {sources[0]} ... {sources[-1]}" if per_batch else sources[sample]
            return (
                f"the gradient at '{modules[index].name}' is not finite for {source}; load the "
                "base in float32 or bfloat16, or leave that sample out"
            )
    raise AssertionError("all energies are finite")
