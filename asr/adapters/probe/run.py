"""Where an adapter belongs on a base: gradient energy of every candidate module, peers beside it.

The probe measures, on a few examples of each domain, how much gradient energy a LoRA on each linear
module would receive before its first step (PAGE, :mod:`asr.adapters.probe.page`), over several
seeds, and on the same rows PLoP's alignment score, the gradient norm per parameter, and KappaTune's
rank. The base comes back as it was; nothing is trained and nothing is written.

It is a statement about the start of training. It does not know what an adapter will have learned at
the end: a large gradient may meet a large curvature, and Adam divides its scale out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
from torch import nn

from asr.adapters.lora import LoraSettings, check_variant
from asr.adapters.placement import LinearModule, Placement, linear_modules
from asr.adapters.probe.alignment import alignment_scores
from asr.adapters.probe.batch import Loss
from asr.adapters.probe.condition import condition_ranks, why_left_out
from asr.adapters.probe.generic_text import GENERIC_NAME, generic_examples
from asr.adapters.probe.page import PageSettings, Per, left_out, page_energies
from asr.adapters.probe.result import ProbedBase, ProbeResult, ProbeSettings
from asr.adapters.probe.rows import LEAST, DrawnRows, draw_rows
from asr.adapters.probe.start import scaling_problem
from asr.adapters.probe.summary import MeasuredDomain, summarise
from asr.adapters.variants import initialisation_problem
from asr.base.layers import default_router_layer
from asr.base.load import LoadedBase, load_base
from asr.base.quantisation import Quantisation
from asr.data.formats import Example
from asr.data.load import load_examples
from asr.errors import ConfigError, DataError, unknown

Data = str | Path | Sequence[Example]
Progress = Callable[[str, int, int], None]
"""What is being done, how much of it is done, and how much there is."""

_SHALLOWEST_ROUTED = 3


def _silent(message: str) -> None:
    """Say nothing."""


def probe_placement(
    base: LoadedBase | str,
    data: Mapping[str, Data] | None = None,
    *,
    samples: int = 32,
    seeds: int = 3,
    seed: int = 0,
    lora: LoraSettings = LoraSettings(),  # noqa: B008  # frozen
    per: str = "sample",
    loss: str = "answer",
    max_length: int = 512,
    batch_size: int = 8,
    kappa: bool | None = None,
    fmt: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    quantisation: Quantisation | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] = _silent,
) -> ProbeResult:
    """Measure every candidate module of a base, and rank them.

    Args:
        base: a loaded base, or what to load: folder, hub id, ``.gguf`` file or built-in name.
        data: examples by the name of their domain: a file, a hub data set (``hub:...``), or the
            examples themselves. None probes a generic text of our own, and the result says so.
        samples: rows that each seed draws from each domain; all of them where there are fewer.
        seeds: how many draws.
        seed: the first of them.
        lora: the adapter to come: its rank, scaling and initialisation enter the energies.
        per: ``sample`` (energies of single rows, averaged) or ``batch`` (of mean gradients).
        loss: on the ``answer`` tokens, or on the ``full`` row.
        max_length: tokens of a row; longer prompts are cut as in training.
        batch_size: rows together; energies per sample do not depend on it, up to rounding.
        kappa: make KappaTune's ranks (an SVD of every weight). None: up to a billion parameters.
        fmt: format of the data files; None by their keys.
        device: where to load a base that is given by name.
        dtype: of its weights.
        quantisation: of its weights.
        trust_remote_code: run code that comes with it.
        progress: called as the work goes on.
        say: receives choices, one line each.

    Raises:
        ConfigError: a setting out of range.
        DataError: data that cannot be used, or without a token to take a loss on.
        BaseModelError: the base cannot be loaded, or its layers not be found.
        AdapterError: no candidate module; an initialisation that does not fit; a loss or gradient
            that is not finite, or does not flow.
    """
    started = time.perf_counter()
    _check(samples, seeds, seed, lora, per, loss, max_length, batch_size, quantisation)
    found = _read(data, fmt)
    if isinstance(base, str):
        base = load_base(
            base,
            device=device,
            dtype=dtype,
            quantisation=quantisation,
            trust_remote_code=trust_remote_code,
            say=say,
        )
    if max_length > base.context_length:
        raise ConfigError(
            f"max_length {max_length} is longer than the context of '{base.name}', "
            f"{base.context_length}; lower it"
        )
    model = base.model
    modules = linear_modules(model)
    check_variant(model, Placement("all", tuple(modules), 0), lora)
    drawn = [
        draw_rows(
            name,
            source,
            examples,
            base.tokenizer,
            base.template,
            samples=samples,
            seeds=seeds,
            seed=seed,
            max_length=max_length,
            loss="full" if loss == "full" else "answer",
        )
        for name, (source, examples) in found.items()
    ]
    for rows in drawn:
        if rows.whole and seeds > 1:
            say(
                f"{rows.name}: all {len(rows.rows)} rows are taken, so that there is no spread "
                "over seeds"
            )
    show = progress or (lambda what, done, total: None)
    page = PageSettings(
        lora=lora,
        per="batch" if per == "batch" else "sample",
        loss="full" if loss == "full" else "answer",
    )
    pad = int(base.tokenizer.pad_token_id)
    measured = [_measure(model, rows, modules, page, pad, batch_size, show) for rows in drawn]
    outside = left_out(model)
    reason = why_left_out(model, base.quantisation, kappa)
    ranks = None
    if reason is None:
        show("condition numbers", 0, 1)
        ranks = condition_ranks(model, modules)
        show("condition numbers", 1, 1)
        if None in ranks:
            missing = sum(rank is None for rank in ranks)
            reason = f"KappaTune's rank of {missing} modules: PEFT does not rank them"
    if reason is not None:
        outside.append(reason)
    return summarise(
        modules,
        measured,
        ranks,
        base=_base(base),
        settings=ProbeSettings(
            rank=lora.rank,
            alpha=float(lora.alpha),
            use_rslora=lora.use_rslora,
            init=lora.init_lora_weights,
            per=page.per,
            loss=page.loss,
            samples=samples,
            seeds=seeds,
            max_length=max_length,
            batch_size=batch_size,
            seed=seed,
            dtype=base.dtype_name,
            quantisation=base.quantisation,
        ),
        generic_text=data is None,
        left_out=outside,
        seconds=time.perf_counter() - started,
    )


def _check(
    samples: int,
    seeds: int,
    seed: int,
    lora: LoraSettings,
    per: str,
    loss: str,
    max_length: int,
    batch_size: int,
    quantisation: str | None,
) -> None:
    if samples < LEAST:
        raise ConfigError(
            f"samples is {samples}; a probe needs at least {LEAST} to say how sure its result is"
        )
    least = (("seeds", seeds, 1), ("seed", seed, 0), ("rank", lora.rank, 1))
    for name, value, limit in (
        *least,
        ("max_length", max_length, 2),
        ("batch_size", batch_size, 1),
    ):
        if value < limit:
            raise ConfigError(f"{name} is {value}; it must be at least {limit}")
    if not 0 < lora.alpha < float("inf"):
        raise ConfigError(f"alpha is {lora.alpha:g}; it must be above 0")
    problem = scaling_problem(lora)
    if problem is not None:
        raise ConfigError(problem)
    for name, given, choices in (("per", per, get_args(Per)), ("loss", loss, get_args(Loss))):
        if given not in choices:
            raise ConfigError(unknown(name, given, choices))
    if quantisation not in (None, "int8", "nf4"):
        raise ConfigError(unknown("quantisation", quantisation, ("int8", "nf4")))
    problem = initialisation_problem(lora.init_lora_weights)
    if problem is not None:
        raise ConfigError(problem)


def _read(
    data: Mapping[str, Data] | None, fmt: str | None
) -> dict[str, tuple[str, Sequence[Example]]]:
    """Return source and examples of each domain."""
    if data is None:
        return {GENERIC_NAME: ("a text of our own", generic_examples())}
    if not data:
        raise DataError("there is no data to probe with; give a domain, or None for a generic text")
    found: dict[str, tuple[str, Sequence[Example]]] = {}
    for name, given in data.items():
        if isinstance(given, (str, Path)):
            # A file to look at may be shorter than one to train on.
            loaded = load_examples(given, name=name, fmt=fmt, minimum=0)
            found[name] = (loaded.path.name, loaded.examples)
        else:
            found[name] = ("examples given", list(given))
        if not found[name][1]:  # before a base is loaded
            raise DataError(f"{name}: there are no examples to probe with; give at least {LEAST}")
    return found


def _measure(
    model: nn.Module,
    drawn: DrawnRows,
    modules: Sequence[LinearModule],
    page: PageSettings,
    pad: int,
    batch_size: int,
    show: Progress,
) -> MeasuredDomain:
    def gradients(done: int, total: int) -> None:
        show(f"gradients of {drawn.name}", done, total)

    def alignments(done: int, total: int) -> None:
        show(f"alignment of {drawn.name}", done, total)

    # Rows by themselves are measured once, whoever draws them; batches are each seed's own.
    sets = [drawn.rows]
    if page.per == "batch":
        sets = [tuple(drawn.rows[place] for place in draw) for draw in drawn.draws]
    parts = [
        page_energies(
            model,
            rows,
            modules,
            page,
            pad_token_id=pad,
            batch_size=batch_size,
            progress=gradients,
        )
        for rows in sets
    ]
    draws = drawn.draws
    if page.per == "batch":
        ends = np.cumsum([len(part.energy) for part in parts])
        draws = tuple(
            tuple(range(int(end) - len(part.energy), int(end)))
            for part, end in zip(parts, ends, strict=True)
        )
    scores = alignment_scores(
        model, drawn.rows, modules, pad_token_id=pad, batch_size=batch_size, progress=alignments
    )
    return MeasuredDomain(
        name=drawn.name,
        source=drawn.source,
        examples=drawn.examples,
        whole=drawn.whole,
        energy=np.concatenate([part.energy for part in parts]),
        without_first=np.concatenate([part.without_first for part in parts]),
        gradient=np.concatenate([part.gradient for part in parts]),
        draws=draws,
        alignment=scores,
    )


def _base(base: LoadedBase) -> ProbedBase:
    layers = base.n_layers
    return ProbedBase(
        name=base.name,
        fingerprint=base.fingerprint,
        architecture=base.architecture,
        n_layers=layers,
        router_layer=default_router_layer(layers) if layers >= _SHALLOWEST_ROUTED else None,
    )
