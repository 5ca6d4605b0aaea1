"""The routed model: prefix, route, adapter, suffix, generate.

Every request is prefilled up to the router layer once; its features are pooled from that prefix,
the router decides, and the same prefix goes on with the chosen adapter. Rows of one batch may go to
different adapters or to the base.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from transformers import GenerationConfig

from asr.adapters import AdapterBank
from asr.base.load import LoadedBase, Say, load_base
from asr.base.packed import pack_linear_modules
from asr.base.quantisation import QUANTISATIONS, UseQuantisation
from asr.base.split import PrefixState
from asr.base.whole import WholeForward
from asr.data.prompt import EncodedPrompt
from asr.errors import AdapterError, ConfigError, unknown
from asr.model.canaries import TENSOR, CanaryReport, canary_features, compare_canaries
from asr.model.contract import numeric_contract
from asr.model.directory import ModelDirectory
from asr.model.features import Forward, batches_by_length, embed, pad_left, pool
from asr.model.generation import decode, end_token_ids, generation_settings
from asr.model.manifest import Manifest
from asr.model.opening import make_forward, open_directory, require_base
from asr.model.request import AUTO, BASE, Generation, Prompt, encode_prompts, require_room
from asr.model.stored import unrouted
from asr.model.streaming import stream_pieces
from asr.router import Decision, Router

__all__ = ["AUTO", "BASE", "Generation", "Prompt", "RoutedModel", "make_forward"]


def _silent(message: str) -> None:
    """Say nothing."""


class RoutedModel:
    """One base, many adapters, one router. Use :meth:`from_pretrained`.

    Not thread-safe: one worker owns the model. While an answer is being streamed, every other
    request is refused.
    """

    def __init__(
        self,
        base: LoadedBase,
        manifest: Manifest,
        directory: ModelDirectory,
        router: Router,
        forward: Forward | None = None,
    ) -> None:
        self.base = base
        self.manifest = manifest
        self.directory = directory
        self.router = router
        self.whole = WholeForward(base.model, manifest.contract.layer)
        self.forward = forward or make_forward(base, manifest.contract.layer, manifest.two_pass)
        self.bank = AdapterBank(base.model, base.fingerprint)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        base: str | Path | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        quantisation: UseQuantisation | None = None,
        trust_remote_code: bool = False,
        say: Say = _silent,
    ) -> Self:
        """Load a routed model directory.

        Args:
            path: the directory that ``asr train`` wrote.
            base: where the base is, if it is not where training found it.
            device: see :func:`asr.base.load.load_base`.
            dtype: see there.
            quantisation: ``int8``, ``nf4``, or ``none`` for the base as its checkpoint is; None: as
                the adapters were trained.
            trust_remote_code: see there.
            say: receives choices and warnings, one line each.

        Raises:
            DirectoryError: not a routed model directory, damaged, or without a finished domain.
            BaseModelError: the base is missing or is another one.
            RouterError: the router file is missing or damaged, or knows domains that are gone.
            ContractError: the router was made under another feature contract, or the directory's
                chat template was changed.
            AdapterError: a published file is missing or was changed.
            ConfigError: an unknown quantisation.
        """
        known = (*QUANTISATIONS, "none")
        if quantisation is not None and quantisation not in known:
            raise ConfigError(unknown("quantisation", str(quantisation), known))
        opened = open_directory(path)
        manifest, stored = opened.manifest, opened.router
        kind = quantisation or manifest.numeric.quantisation
        name = str(base or manifest.base.name)
        loaded = load_base(
            name,
            revision=manifest.base.revision_of(name),
            device=str(device),
            dtype=str(dtype),
            # what the checkpoint arrived in needs no asking for
            quantisation=kind if kind in QUANTISATIONS else None,
            template_text=opened.template_text,
            trust_remote_code=trust_remote_code,
            say=say,
        )
        require_base(loaded, manifest)
        pack_linear_modules(loaded.model, say)
        model = cls(loaded, manifest, opened.directory, stored.router)
        for problem in unrouted(manifest, stored.router.names):
            say(f"warning: {problem}")
        if TENSOR in stored.extra_tensors:
            report = model.canaries(stored.extra_tensors[TENSOR])
            if report.matters:
                say(report.warning(manifest.numeric, numeric_contract(loaded)))
        return model

    @property
    def domains(self) -> tuple[str, ...]:
        """Domains that can be routed to, in training order."""
        return tuple(name for name in self.manifest.domains if name in self.router.names)

    def canaries(self, stored: Any) -> CanaryReport:
        """Compare stored canary features with this process's."""
        return compare_canaries(stored, canary_features(self.base, self.forward), self.router)

    # -- routing ---------------------------------------------------------------------------------

    def encode(self, prompts: Sequence[Prompt], *, shorten: bool = False) -> list[EncodedPrompt]:
        """Render and tokenise prompts; see :func:`asr.model.request.encode_prompts`."""
        return encode_prompts(prompts, self.base, shorten=shorten)

    def embed(self, prompts: Sequence[EncodedPrompt]) -> Any:
        """Pooled features (n, d) float32 of encoded prompts.

        Raises:
            AdapterError: an answer is being streamed; its adapter would show in the features.
        """
        self._require_idle()
        return embed(prompts, self.forward, self.base.tokenizer.pad_token_id, self.base.device)

    def route(self, prompts: Sequence[Prompt]) -> list[Decision]:
        """Decide where prompts go: one prefix pass, no adapter; raises as :meth:`generate`."""
        return self.router.decide(self.embed(self.encode(prompts)))

    # -- answering -------------------------------------------------------------------------------

    def check(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[EncodedPrompt]:
        """Encode prompts, and refuse at once what :meth:`generate` would refuse part by part.

        Raises:
            DataError: see :meth:`encode`; or prompt and ``max_new_tokens`` exceed the context.
        """
        encoded = self.encode(prompts)
        require_room(encoded, max_new_tokens, self.base.context_length)
        return encoded

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        adapter: str | Sequence[str] = AUTO,
        max_new_tokens: int = 256,
        batch_size: int = 16,
        **generation: Any,
    ) -> list[Generation]:
        """Answer prompts, each with the adapter that the router chooses for it.

        Args:
            prompts: user messages or conversations.
            adapter: ``auto`` routes; a domain's name or ``base`` is used as given; or one such name
                per prompt.
            max_new_tokens: most tokens to generate per prompt.
            batch_size: most prompts in one batch.
            generation: further fields of ``GenerationConfig``, e.g. ``do_sample``,
                ``temperature``, ``top_p``, ``repetition_penalty``. The default is greedy.

        Returns:
            One :class:`Generation` per prompt, in order.

        Raises:
            DataError: see :meth:`encode`; or prompt and ``max_new_tokens`` exceed the context.
            AdapterError: an adapter's name is unknown, or its file does not fit.
            ConfigError: ``batch_size`` is no whole number from 1 up; or a generation setting that
                does not exist, is out of range, or asks for a mode that is not supported.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size!r}; it must be 1 or more")
        encoded = self.check(prompts, max_new_tokens)
        wanted = self._wanted(adapter, len(encoded))
        config = self._generation_config(max_new_tokens, generation)
        results: list[Generation | None] = [None] * len(encoded)
        lengths = [len(prompt.input_ids) for prompt in encoded]
        for batch in batches_by_length(lengths, most=batch_size, tokens_per_batch=1 << 30):
            chosen = [encoded[index] for index in batch]
            state, decisions, adapters = self._route_batch(
                chosen, [wanted[index] for index in batch]
            )
            for rows in self._groups(adapters):
                tokens = self._decode(state, rows, adapters, config)
                for row, new in zip(rows, tokens, strict=True):
                    results[batch[row]] = self._generation(
                        chosen[row], adapters[row], decisions[row], new, config
                    )
        return [result for result in results if result is not None]

    def stream(
        self,
        prompt: Prompt,
        *,
        adapter: str = AUTO,
        max_new_tokens: int = 256,
        **generation: Any,
    ) -> tuple[Decision | None, str, Iterator[str]]:
        """Answer one prompt piece by piece.

        Returns:
            The decision (None if the adapter was named), the adapter's name, and an iterator over
            pieces of text; the generation runs while it is read.

        Raises:
            As :meth:`generate`, before anything is generated.
        """
        encoded = self.check([prompt], max_new_tokens)
        wanted = self._wanted(adapter, 1)
        config = self._generation_config(max_new_tokens, generation)
        state, decisions, adapters = self._route_batch(encoded, wanted)
        self._make_resident(adapters)
        pieces = stream_pieces(
            self.base.tokenizer,
            lambda streamer: self._decode(state, [0], adapters, config, streamer),
            self.base.template.answer_opening,
        )
        return decisions[0], adapters[0], pieces

    @contextmanager
    def applied(self, adapters: Sequence[str]) -> Iterator[Callable[[list[int]], None]]:
        """Within the block, row ``i`` of every forward pass runs with ``adapters[i]``.

        Yields a function to call with the rows that stay when others leave the batch.

        Args:
            adapters: domains' names or ``base``.

        Raises:
            AdapterError: a name is unknown, or its file does not fit.
        """
        self._make_resident(adapters)
        with self.bank.rows([None if name == BASE else name for name in adapters]) as keep_rows:
            yield keep_rows

    def close(self) -> None:
        """Take all adapters off; the base's own modules are back in place.

        A request after it loads the adapters that it needs again.

        Raises:
            AdapterError: an answer is being streamed.
        """
        self.bank.close()

    # -- inside ----------------------------------------------------------------------------------

    def _require_idle(self) -> None:
        if self.bank.in_use:
            raise AdapterError(
                "the model is answering another request; read its stream to the end, or close it, "
                "first"
            )

    def _wanted(self, adapter: str | Sequence[str], count: int) -> list[str]:
        several = isinstance(adapter, Sequence) and not isinstance(adapter, str)
        names = [str(name) for name in adapter] if several else [str(adapter)] * count
        if len(names) != count:
            raise AdapterError(f"{len(names)} adapter names for {count} prompts; give one for each")
        for name in names:
            if name not in (AUTO, BASE) and name not in self.domains:
                raise AdapterError(unknown("adapter", name, [AUTO, BASE, *self.domains]))
        return names

    def _generation_config(self, max_new_tokens: int, fields: dict[str, Any]) -> GenerationConfig:
        own = end_token_ids(self.base.model.generation_config)
        defaults = {
            "max_new_tokens": max_new_tokens,
            "do_sample": False,
            "eos_token_id": sorted(own.union(self.base.template.end_of_turn_ids)),
            "pad_token_id": self.base.tokenizer.pad_token_id,
            "bos_token_id": self.base.tokenizer.bos_token_id,
        }
        return generation_settings(defaults, fields)

    def _route_batch(
        self, prompts: Sequence[EncodedPrompt], wanted: Sequence[str]
    ) -> tuple[PrefixState, list[Decision | None], list[str]]:
        self._require_idle()
        ids, mask = pad_left(
            [prompt.input_ids for prompt in prompts],
            self.base.tokenizer.pad_token_id,
            self.base.device,
        )
        state = self.forward.prefix(ids, mask)
        decisions: list[Decision | None] = [None] * len(prompts)
        if AUTO in wanted:
            made = self.router.decide(pool(state.hidden, prompts))
            decisions = [
                decision if name == AUTO else None
                for decision, name in zip(made, wanted, strict=True)
            ]
        adapters = [
            name if decision is None else decision.route
            for decision, name in zip(decisions, wanted, strict=True)
        ]
        return state, decisions, adapters

    def _groups(self, adapters: Sequence[str]) -> Iterator[list[int]]:
        """Rows that can decode together: those that go on from the prefix, and two-pass ones."""
        two_pass = {name for name, entry in self.manifest.domains.items() if entry.passes == "two"}
        for again in (False, True):
            rows = [i for i, name in enumerate(adapters) if (name in two_pass) == again]
            if rows:
                yield rows

    def _make_resident(self, adapters: Sequence[str]) -> None:
        for name in dict.fromkeys(adapters):
            if name == BASE or name in self.bank.loaded:
                continue
            entry = self.manifest.domains[name].adapter
            if entry is None:
                raise AdapterError(f"domain '{name}' has no adapter yet; finish its training")
            self.bank.load(name, self.directory.adapter(name, entry.version), entry.sha256)

    def _decode(
        self,
        state: PrefixState,
        rows: Sequence[int],
        adapters: Sequence[str],
        config: GenerationConfig,
        streamer: Any = None,
    ) -> list[list[int]]:
        names = [adapters[row] for row in rows]
        two_pass = any(self._passes(name) == "two" for name in names)
        forward: Forward = self.whole if two_pass else self.forward
        part = state
        if len(rows) < len(state.input_ids):
            part = state.select(torch.tensor(rows, device=state.input_ids.device))
        with self.applied(names) as keep_rows:
            return decode(
                self.base.model,
                part,
                lambda: forward.suffix(part, 1),
                config,
                streamer,
                keep_rows,
            )

    def _passes(self, name: str) -> str:
        return "one" if name == BASE else self.manifest.domains[name].passes

    def _generation(
        self,
        prompt: EncodedPrompt,
        adapter: str,
        decision: Decision | None,
        new: list[int],
        config: GenerationConfig,
    ) -> Generation:
        stopped = bool(new) and new[-1] in end_token_ids(config)
        return Generation(
            text=self.base.tokenizer.decode(new, skip_special_tokens=True).removeprefix(
                self.base.template.answer_opening
            ),
            adapter=adapter,
            decision=decision,
            prompt_tokens=len(prompt.input_ids),
            new_tokens=len(new),
            finish="stop" if stopped else "length",
        )
