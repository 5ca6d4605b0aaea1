"""Two passes through the whole model, behind the interface of the split forward.

The first pass, without adapters, yields the hidden states that enter the router layer; the second,
with them, starts again at the embedding. It serves adapters below the router layer, and
architectures whose forward cannot be split. It costs the layers below ``L`` a second time; for an
architecture that cannot be split, the whole first pass.

Shapes as in :mod:`asr.base.split`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from asr.base.forward_check import FORWARD_ERRORS, check_batch, require_token_states
from asr.base.layers import decoder_layers
from asr.base.split import PrefixState, accepts_logits_to_keep, position_ids_of
from asr.errors import BaseModelError, SplitUnsupportedError, first_line


class WholeForward:
    """Routing features and logits from two ordinary forward passes.

    Args:
        model: a Hugging Face causal LM (plain, adapters inside its layers are fine).
        layer: the router layer ``L``.
        check: run a handful of tokens through both passes and one token after them.

    Raises:
        SplitUnsupportedError: by the check, if the architecture returns no cache to go on from.
        BaseModelError: by the check, if a pass fails, or the layers hand on something else than one
            vector per token.
    """

    def __init__(self, model: nn.Module, layer: int, check: bool = False) -> None:
        self.model = model
        self.layer = layer
        self._entry = decoder_layers(model).modules[layer]
        if check:
            self._check()

    @torch.no_grad()
    def prefix(self, input_ids: Tensor, attention_mask: Tensor) -> PrefixState:
        """Run the whole model and keep what enters layer ``L``; the cache stays empty."""
        seen: list[Tensor] = []

        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append(args[0] if args else kwargs["hidden_states"])

        positions = position_ids_of(attention_mask)
        handle = self._entry.register_forward_pre_hook(record, with_kwargs=True)
        try:
            self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=positions,
                use_cache=False,
                **({"logits_to_keep": 1} if accepts_logits_to_keep(self.model) else {}),
            )
        finally:
            handle.remove()
        return PrefixState(input_ids, attention_mask, positions, seen[0], cache=None)

    @torch.no_grad()
    def suffix(self, state: PrefixState, logits_to_keep: int = 1) -> Tensor:
        """Run the whole model on the state's prompt; its own kind of cache goes into the state.

        Returns:
            (b, logits_to_keep or t, v) logits.

        Raises:
            SplitUnsupportedError: if the architecture returns no cache to go on from.
        """
        # Over a long prompt the logits of all positions are larger than everything else together.
        keep = {"logits_to_keep": logits_to_keep} if accepts_logits_to_keep(self.model) else {}
        output = self.model(
            input_ids=state.input_ids,
            attention_mask=state.attention_mask,
            position_ids=state.position_ids,
            use_cache=True,
            **keep,
        )
        state.cache = getattr(output, "past_key_values", None)
        if state.cache is None:
            raise SplitUnsupportedError(
                f"{type(self.model).__name__} returns no key-value cache to generate from; "
                "use a base with attention layers"
            )
        logits: Tensor = output.logits
        return logits if logits_to_keep == 0 else logits[:, -logits_to_keep:]

    def _check(self) -> None:
        ids, mask = check_batch(self.model)
        was_training = self.model.training
        self.model.eval()
        try:
            state = self.prefix(ids, mask)
            require_token_states(self.model, state.hidden, ids)
            self.suffix(state)
            with torch.no_grad():
                self.model(
                    input_ids=ids[:, -1:],
                    attention_mask=torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1),
                    position_ids=mask.sum(dim=1, keepdim=True),
                    past_key_values=state.cache,
                    use_cache=True,
                )
        except FORWARD_ERRORS as error:
            raise BaseModelError(
                f"{type(self.model).__name__} cannot answer in two passes: "
                f"{type(error).__name__}: {first_line(error)}; use another base"
            ) from error
        finally:
            self.model.train(was_training)
