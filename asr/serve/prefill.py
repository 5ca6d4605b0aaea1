"""The prompts of a few requests on their way through the model, part by part.

A prefill runs the layers below the router layer on its prompts, waits while they are routed and
their adapters become resident, and runs the layers above. Each half can be run in parts of so many
tokens, between which the running batch decodes, so that one long prompt does not stop the others'
answers. A prompt that begins like an earlier conversation takes its states from the prefix cache
and runs alone.

Notation used for tensor shapes:
    - b: prompts
    - t: columns, the longest prompt's tokens (the others are padded on the left)
    - d: hidden size
    - v: vocabulary size
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asr.base.row_cache import KeysValues, states_of
from asr.base.split import PrefixState, SplitCache, SplitForward
from asr.base.whole import WholeForward
from asr.data.prompt import EncodedPrompt
from asr.model.features import Forward, pad_left, pool
from asr.serve.prefix_cache import Match, PrefixCache


class Prefill:
    """Prompts in one padded batch.

    Args:
        prompts: what is prefilled; one only, where ``match`` is given.
        forward: the split forward, or two whole passes where the base cannot be split.
        pad_token_id: id to pad with.
        device: of the model.
        match: states of the first tokens, from the prefix cache.

    Attributes:
        prompts: as given, or those that :meth:`select` kept.
        cached_tokens: first tokens whose layers from the router layer up come from the cache.
    """

    def __init__(
        self,
        prompts: Sequence[EncodedPrompt],
        forward: Forward,
        pad_token_id: int,
        device: torch.device,
        match: Match | None = None,
    ) -> None:
        self.prompts = list(prompts)
        self.forward = forward
        self.cached_tokens = 0
        ids, mask = pad_left([prompt.input_ids for prompt in prompts], pad_token_id, device)
        self._match = match
        self._done = 0
        if isinstance(forward, SplitForward):
            cache = forward.new_cache(whole=True)
            self.state = forward.begin(ids, mask, cache)
            if match is not None:
                _fill(cache, match, range(forward.layer))
                self._done = match.length
                self.state.hidden = match.entry.hidden[None, : match.length]
        else:
            self.state = PrefixState(ids, mask, mask, torch.empty(0), None)
        self._suffixed = 0

    @property
    def columns(self) -> int:
        """T."""
        return self.state.input_ids.shape[1]

    # -- below the router layer ------------------------------------------------------------------

    def advance_prefix(self, tokens: int) -> bool:
        """Run the lower layers on about so many tokens of the batch; whether all are done."""
        if not isinstance(self.forward, SplitForward):
            self.state = self.forward.prefix(self.state.input_ids, self.state.attention_mask)
            return True
        end = min(self.columns, self._done + self._width(tokens))
        self.forward.prefix_part(self.state, self._done, end)
        self._done = end
        return end == self.columns

    def pooled(self) -> NDArray[np.float32]:
        """(b, d) features of the prompts, once the prefix is done."""
        return pool(self.state.hidden, self.prompts)

    # -- from the router layer up ----------------------------------------------------------------

    def select(self, rows: Sequence[int]) -> Prefill:
        """A prefill of these prompts, in this order, that goes on from the same prefix."""
        part = Prefill.__new__(Prefill)
        part.prompts = [self.prompts[row] for row in rows]
        part.forward = self.forward
        part.cached_tokens = 0
        part._match = self._match
        part._done = self._done
        part._suffixed = 0
        same = list(rows) == list(range(len(self.prompts)))
        index = torch.tensor(list(rows), device=self.state.input_ids.device)
        part.state = self.state if same else self.state.select(index)
        return part

    def take_deep(self, cache: PrefixCache, key: str) -> None:
        """Take what an earlier conversation with the same adapter left, before the suffix runs."""
        if self._match is None or not isinstance(self.forward, SplitForward):
            return
        found = cache.deep(self.prompts[0].input_ids, key)
        if found is None:
            return
        layers = range(self.forward.layer, len(found.entry.states))
        _fill(self.state.cache, found, layers)
        self._suffixed = self.cached_tokens = found.length

    def advance_suffix(self, tokens: int, whole: WholeForward | None = None) -> Tensor | None:
        """Run the upper layers on about so many tokens of the batch, adapters being active.

        Args:
            tokens: of the batch, padding included.
            whole: run all layers in one go instead (adapters below the router layer).

        Returns:
            (b, v) logits at the end of the prompts; None while there is more to run.
        """
        if whole is not None or not isinstance(self.forward, SplitForward):
            forward = whole or self.forward
            return forward.suffix(self.state, 1)[:, -1]
        end = min(self.columns, self._suffixed + self._width(tokens))
        logits = self.forward.suffix_part(self.state, self._suffixed, end)
        self._suffixed = end
        return logits[:, -1] if end == self.columns else None

    # -- what a row takes along ------------------------------------------------------------------

    def states(self, row: int) -> list[KeysValues | None]:
        """Keys and values of a prompt per layer, once the suffix is done."""
        return states_of(self.state.cache, row, len(self.prompts[row].input_ids), self.columns)

    def hidden(self, row: int) -> Tensor:
        """(tokens, d), the hidden states of a prompt that entered the router layer."""
        return self.state.hidden[row, self.columns - len(self.prompts[row].input_ids) :]

    def _width(self, tokens: int) -> int:
        return max(1, tokens // len(self.prompts))


def _fill(cache: SplitCache, match: Match, layers: range) -> None:
    """Put the first tokens' keys and values of an entry into an empty cache's layers."""
    for index in layers:
        state = match.entry.states[index]
        if state is not None:
            keys, values = state
            cache.update(keys[None, :, : match.length], values[None, :, : match.length], index)
