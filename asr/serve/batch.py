"""The running batch: answers that decode together, each with its own adapter.

Rows join after their prefill and leave when they end, between any two steps. A step that raises is
run again row by row, so that only the row at fault ends by it.

Notation used for tensor shapes:
    - b: rows
    - v: vocabulary size
    - d: hidden size
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from asr.adapters.bank import AdapterBank
from asr.base.row_cache import KeysValues, RowCache
from asr.serve.answer import Answer
from asr.serve.prefix_cache import Entry
from asr.serve.sampling import choose_tokens

log = logging.getLogger("asr.serve")


class RunningBatch:
    """Rows of answers and their keys and values.

    Args:
        model: the causal LM.
        bank: its adapters; those of the rows are pinned by the caller.
        entry_layer: the decoder layer that the router reads the input of.
        keep_hidden: record what enters it, for the prefix cache.
    """

    def __init__(
        self, model: Any, bank: AdapterBank, entry_layer: nn.Module, keep_hidden: bool
    ) -> None:
        self.rows: list[Answer] = []
        self.steps = 0
        self.step_rows = 0
        self._model = model
        self._bank = bank
        self._entry_layer = entry_layer
        self._keep_hidden = keep_hidden
        self._cache = RowCache(hidden_column=model.device.type == "cpu")

    def __len__(self) -> int:
        return len(self.rows)

    def join(self, answer: Answer, states: list[KeysValues | None]) -> None:
        """Add an answer whose prompt was prefilled and whose first token was chosen."""
        self._cache.join(states, len(answer.token_ids))
        self.rows.append(answer)

    def step(self) -> list[Answer]:
        """Decode one token of every row; return the answers that have ended, still in their rows.

        A row whose forward pass or logits fail has ended with an error; the others go on.
        """
        self.steps += 1
        self.step_rows += len(self.rows)
        try:
            logits, hidden = self._forward(None)
        except Exception as error:
            if len(self.rows) == 1:
                self.rows[0].fail_on(error)
                return [self.rows[0]]
            log.warning("a step of %d rows failed and is run row by row", len(self.rows))
            return self._one_by_one()
        self._keep(self.rows, hidden)
        return self._choose(logits, self.rows)

    def leave(self, answer: Answer) -> Entry | None:
        """Take an ended answer out; return what it leaves for the prefix cache, if it may."""
        row = self._row(answer)
        entry = self._entry(row) if self._keep_hidden else None
        moved = self._cache.leave(row)
        self.rows[row] = self.rows[moved]
        self.rows.pop()
        return entry

    # -- inside ----------------------------------------------------------------------------------

    def _row(self, answer: Answer) -> int:
        return next(row for row, one in enumerate(self.rows) if one is answer)

    def _forward(self, only: int | None) -> tuple[Tensor, Tensor | None]:
        """(b, v) logits and (b, d) states at the router layer of all rows, or of one alone."""
        rows = self.rows if only is None else [self.rows[only]]
        device = self._model.device
        lengths = self._cache.lengths if only is None else [self._cache.lengths[only]]
        tokens = torch.tensor([[answer.last_token] for answer in rows], device=device)
        positions = torch.tensor([[length] for length in lengths], device=device)
        names = [_adapter_of(answer) for answer in rows]
        seen: list[Tensor] = []
        handle = None
        if self._keep_hidden:
            handle = self._entry_layer.register_forward_pre_hook(
                lambda module, args, kwargs: seen.append(
                    args[0] if args else kwargs["hidden_states"]
                ),
                with_kwargs=True,
            )
        try:
            mask = self._cache.mask(device, only)
            with self._bank.rows(names), self._cache.step(only):
                logits = self._model(
                    input_ids=tokens,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=self._cache,
                    use_cache=True,
                ).logits[:, -1]
        finally:
            if handle is not None:
                handle.remove()
        return logits, seen[0][:, -1] if seen else None

    def _one_by_one(self) -> list[Answer]:
        ended: list[Answer] = []
        for row, answer in enumerate(self.rows):
            try:
                logits, hidden = self._forward(row)
            except Exception as error:
                answer.fail_on(error)
                ended.append(answer)
                continue
            self._keep([answer], hidden)
            ended += self._choose(logits, [answer])
        self._cache.grow()
        return ended

    @staticmethod
    def _keep(rows: list[Answer], hidden: Tensor | None) -> None:
        if hidden is not None:
            for row, answer in enumerate(rows):
                answer.hidden.append(hidden[row : row + 1])

    @staticmethod
    def _choose(logits: Tensor, rows: list[Answer]) -> list[Answer]:
        ended = []
        chosen = choose_tokens(logits, [answer.sampler for answer in rows])
        for answer, token in zip(rows, chosen, strict=True):
            if isinstance(token, Exception):
                answer.fail_on(token)
                ended.append(answer)
            elif answer.take(token):
                ended.append(answer)
        return ended

    def _entry(self, row: int) -> Entry | None:
        """What a row leaves; None after an error, or if its lower layers are not the base's."""
        answer = self.rows[row]
        target = answer.target
        length = self._cache.lengths[row]
        tokens = [*answer.token_ids, *answer.sampler.generated][:length]
        if target is None or target.two_pass or answer.failed or len(tokens) < length:
            return None
        hidden = torch.cat(answer.hidden)[:length]
        if len(hidden) < length:
            return None
        tokens_array = np.asarray(tokens, dtype=np.int64)
        return Entry(tokens_array, hidden, self._cache.states(row), target.key)


def _adapter_of(answer: Answer) -> str | None:
    target = answer.target
    return None if target is None or target.folder is None else target.key
