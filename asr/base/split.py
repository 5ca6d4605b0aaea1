"""Split forward: one prefill in two halves, with the routing decision between them.

``prefix`` runs the decoder layers below the router layer ``L`` and returns the hidden states that
enter layer ``L``; ``suffix`` goes on from there. Both are *views*: shallow copies of the modules
on the path from the model to its decoder layers, in which the layers of the other half are
replaced by pass-throughs. They run the architecture's own ``forward`` (its embedding, masks,
rotary positions, final norm, logit scaling) on the same weight tensors and one shared key-value
cache, so no architecture has code of its own here and adapters that PEFT puts into the layers are
seen by both halves.

Notation used for tensor shapes:
    - b: batch size
    - t: prompt length in tokens, padding included
    - d: hidden size
    - v: vocabulary size

What this module does not know: routing, adapters, text. What was left out on purpose: encoder-
decoder models, and models whose layers carry recurrent states; they raise
:class:`~asr.errors.SplitUnsupportedError`, and two passes serve them.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from asr.base.forward_check import FORWARD_ERRORS, check_batch, require_token_states
from asr.base.layers import decoder_layers
from asr.errors import BaseModelError, SplitUnsupportedError

_TWO_PASSES = "set router.two_pass=true to route in a pass of its own"


class SplitCache(DynamicCache):
    """One key-value cache for both halves.

    The model's own code sizes masks and positions by asking the cache how much *a* layer has seen,
    usually layer 0. While the suffix runs, the layers below ``first_layer`` already hold the tokens
    that are being processed; such questions are answered by the nearest layer of the same kind
    (full or sliding attention) in the half that runs.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self.first_layer = 0

    @contextmanager
    def starting_at(self, layer: int) -> Iterator[None]:
        """Answer questions about layers below ``layer`` from the layers above it."""
        self.first_layer = layer
        try:
            yield
        finally:
            self.first_layer = 0

    def _answering_layer(self, layer_idx: int) -> int:
        if layer_idx >= self.first_layer or self.first_layer >= len(self.layers):
            return max(layer_idx, self.first_layer)
        asked = self.layers[layer_idx]
        for index in range(self.first_layer, len(self.layers)):
            if type(self.layers[index]) is type(asked):
                return index
        return layer_idx

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens that the answering layer has seen."""
        return int(super().get_seq_length(self._answering_layer(layer_idx)))

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Length and offset of the answering layer's keys for a mask of ``query_length`` rows."""
        sizes: tuple[int, int] = super().get_mask_sizes(
            query_length, self._answering_layer(layer_idx)
        )
        return sizes

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Position of the first query token, as the answering layer counts."""
        return int(super().get_query_offset(self._answering_layer(layer_idx)))


class _PassThrough(nn.Module):
    """Stands in for a decoder layer that the running half skips.

    Records the hidden states that reach it, and hands on either those or the ones set in
    ``replacement``. Any other attribute is read from the layer it stands for, because some
    architectures look at their layers' attributes inside the loop.
    """

    def __init__(self, layer: nn.Module, returns_tuple: bool) -> None:
        super().__init__()
        object.__setattr__(self, "_stands_for", layer)
        self.returns_tuple = returns_tuple
        self.received: Tensor | None = None
        self.replacement: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_stands_for"), name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.received = hidden_states
        out = hidden_states if self.replacement is None else self.replacement
        return (out,) if self.returns_tuple else out


@dataclass
class PrefixState:
    """What a prefix leaves behind for routing and for its suffix.

    Attributes:
        input_ids: (b, t) int64.
        attention_mask: (b, t) int64, 0 at padding.
        position_ids: (b, t) int64, counted over real tokens only.
        hidden: (b, t, d), the hidden states entering layer ``L``, in the model's dtype.
        cache: shared key-value cache; its layers below ``L`` hold all t tokens. None where no cache
            is shared (two passes).
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    hidden: Tensor
    cache: Any

    def select(self, rows: Tensor) -> PrefixState:
        """Return the state of the given batch rows (int64 indices), with a cache of its own."""
        cache = copy.copy(self.cache)
        if cache is not None:
            cache.layers = [copy.copy(layer) for layer in self.cache.layers]
            cache.batch_select_indices(rows)
        return PrefixState(
            self.input_ids[rows],
            self.attention_mask[rows],
            self.position_ids[rows],
            self.hidden[rows],
            cache,
        )


def position_ids_of(attention_mask: Tensor) -> Tensor:
    """Positions counted over real tokens: (b, t) int64 from a (b, t) mask; padding gets 0."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def accepts_logits_to_keep(model: nn.Module) -> bool:
    """Whether the model's forward takes ``logits_to_keep`` (nearly all causal LMs do)."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def keeps_recurrent_states(cache: Any) -> bool:
    """Whether a layer of the cache keeps more than keys and values: states without rows to select.

    Layers that have both count; transformers selects the rows of their keys and values only.
    """
    return any(hasattr(layer, "update_recurrent_state") for layer in getattr(cache, "layers", []))


class SplitForward:
    """The forward pass of a causal LM, cut at the input of decoder layer ``layer``.

    Args:
        model: a Hugging Face causal LM (the plain model, not a PEFT wrapper; adapters inside its
            layers are fine).
        layer: the router layer ``L``, ``1 <= L < number of layers``.
        check: run a handful of random tokens through both the plain and the split forward and
            compare them bit for bit.

    Raises:
        SplitUnsupportedError: if ``layer`` is outside the model, if the architecture keeps other
            states than keys and values, if its forward cannot run on a view, or if the check finds
            a difference.
        BaseModelError: the base answers with NaN, or its layers hand on something else than one
            vector per token.
    """

    def __init__(self, model: nn.Module, layer: int, check: bool = True) -> None:
        found = decoder_layers(model)
        self.model = model
        self.layer = layer
        self.architecture = type(model).__name__
        self._path = found.path
        self._layers = found.modules
        if not 1 <= layer < len(found.modules):
            raise SplitUnsupportedError(
                f"router layer {layer} is outside {self.architecture}, which has "
                f"{len(found.modules)} decoder layers; give router.layer a value from 1 to "
                f"{len(found.modules) - 1}"
            )
        self._require_key_value_layers()
        self._build_views(returns_tuple=False)
        if check:
            self._check()

    # -- the two halves --------------------------------------------------------------------------

    def new_cache(self, whole: bool = False) -> SplitCache:
        """An empty cache laid out for this model (full and sliding layers).

        ``whole``: every layer keeps all tokens; what a sliding window hides, the mask does.
        """
        return SplitCache(config=None if whole else self.model.config)

    @torch.no_grad()
    def prefix(
        self, input_ids: Tensor, attention_mask: Tensor, chunk: int | None = None
    ) -> PrefixState:
        """Run the layers below ``L``.

        Args:
            input_ids: (b, t) int64, padded on either side.
            attention_mask: (b, t), 0 at padding.
            chunk: process at most this many tokens at once (None: all). Peak memory falls with it.
        """
        state = self.begin(input_ids, attention_mask, self.new_cache())
        length = input_ids.shape[1]
        for start in range(0, length, chunk or length):
            self.prefix_part(state, start, min(start + (chunk or length), length))
        return state

    def begin(self, input_ids: Tensor, attention_mask: Tensor, cache: SplitCache) -> PrefixState:
        """A state that no token was run for yet, to be filled by :meth:`prefix_part`.

        ``cache`` may hold the first tokens of all rows already; the parts then begin behind them,
        and ``hidden`` is theirs to be put in front.
        """
        empty = torch.empty(0)
        return PrefixState(input_ids, attention_mask, position_ids_of(attention_mask), empty, cache)

    @torch.no_grad()
    def prefix_part(self, state: PrefixState, start: int, end: int) -> None:
        """Run the layers below ``L`` on the columns from ``start`` to ``end`` of a state."""
        self._prefix_decoder(
            input_ids=state.input_ids[:, start:end],
            attention_mask=state.attention_mask[:, :end],
            position_ids=state.position_ids[:, start:end],
            past_key_values=state.cache,
            use_cache=True,
        )
        part = self._take_received()
        state.hidden = torch.cat([state.hidden, part], dim=1) if len(state.hidden) else part

    @torch.no_grad()
    def suffix(
        self, state: PrefixState, logits_to_keep: int = 1, chunk: int | None = None
    ) -> Tensor:
        """Run the layers from ``L`` up and the head; fills the deep part of ``state.cache``.

        Args:
            state: what :meth:`prefix` returned; used once (its cache is extended in place).
            logits_to_keep: number of last positions to return logits of; 0 for all of them. With
                ``chunk`` the positions must lie in the last chunk.
            chunk: as in :meth:`prefix`.

        Returns:
            (b, logits_to_keep or t, v) logits.
        """
        length = state.input_ids.shape[1]
        step = chunk or length
        if step < length and not 1 <= logits_to_keep <= (length - 1) % step + 1:
            raise ValueError(f"logits_to_keep={logits_to_keep} reaches beyond the last chunk")
        logits: Tensor | None = None
        for start in range(0, length, step):
            logits = self.suffix_part(state, start, min(start + step, length), logits_to_keep)
        if logits is None:
            raise ValueError("the prompt is empty")
        return logits if logits_to_keep == 0 else logits[:, -logits_to_keep:]

    @torch.no_grad()
    def suffix_part(
        self, state: PrefixState, start: int, end: int, logits_to_keep: int = 1
    ) -> Tensor:
        """Run the layers from ``L`` up on the columns from ``start`` to ``end`` of a state.

        Returns:
            (b, logits_to_keep or all, v) logits of the last of these columns.
        """
        try:
            with state.cache.starting_at(self.layer):
                self._entry.replacement = state.hidden[:, start:end]
                output = self._suffix_model(
                    input_ids=state.input_ids[:, start:end],
                    attention_mask=state.attention_mask[:, :end],
                    position_ids=state.position_ids[:, start:end],
                    past_key_values=state.cache,
                    use_cache=True,
                    **self._keep(logits_to_keep),
                )
        finally:
            self._release()
        logits: Tensor = output.logits
        return logits

    # -- construction ----------------------------------------------------------------------------

    def _keep(self, logits_to_keep: int) -> dict[str, int]:
        return {"logits_to_keep": logits_to_keep} if accepts_logits_to_keep(self.model) else {}

    def _require_key_value_layers(self) -> None:
        try:
            cache = self.new_cache()
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._unsupported(f"its cache cannot be laid out ({error})") from error
        if len(cache.layers) not in (0, len(self._layers)):
            raise self._unsupported(
                f"{len(cache.layers)} cache layers serve {len(self._layers)} decoder layers"
            )
        if keeps_recurrent_states(cache):
            only = all(cache.is_linear)
            raise self._unsupported(
                "its layers keep recurrent states" + (", and no keys and values" if only else ""),
                "use a base with attention layers" if only else _TWO_PASSES,
            )

    def _build_views(self, returns_tuple: bool) -> None:
        layers = list(self._layers)
        through = [_PassThrough(layer, returns_tuple) for layer in layers]
        self._exit = through[self.layer]
        self._entry = through[self.layer - 1]
        prefix_layers = nn.ModuleList([*layers[: self.layer], *through[self.layer :]])
        suffix_layers = nn.ModuleList([*through[: self.layer], *layers[self.layer :]])
        self._suffix_model = self._view(suffix_layers)
        prefix_model = self._view(prefix_layers)
        self._prefix_decoder = prefix_model.get_submodule(self._path.rpartition(".")[0])

    def _view(self, layers: nn.ModuleList) -> nn.Module:
        """A shallow copy of the model in which only the list of decoder layers is another."""
        view = _shallow_copy(self.model)
        parent = view
        *names, last = self._path.split(".")
        for name in names:
            child = _shallow_copy(parent.get_submodule(name))
            parent._modules[name] = child
            parent = child
        layers.training = False
        parent._modules[last] = layers
        return view

    def _take_received(self) -> Tensor:
        received, self._exit.received = self._exit.received, None
        if received is None:
            raise self._unsupported("its forward does not call its decoder layers one by one")
        return received

    def _release(self) -> None:
        for module in (self._entry, self._exit):
            module.received = module.replacement = None

    # -- check -----------------------------------------------------------------------------------

    def _check(self) -> None:
        """Compare the split forward with the plain one, bit for bit, on random tokens."""
        ids, mask = check_batch(self.model)
        was_training = self.model.training
        self.model.eval()
        returned: list[Any] = []
        handle = self._layers[0].register_forward_hook(
            lambda module, args, output: returned.append(output)
        )
        try:
            with torch.no_grad():
                plain = self.model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=position_ids_of(mask),
                    past_key_values=self.new_cache(),
                    use_cache=True,
                ).logits
            handle.remove()
            if returned and isinstance(returned[0], tuple):
                self._build_views(returns_tuple=True)
            state = self.prefix(ids, mask)
            require_token_states(self.model, state.hidden, ids)
            split = self.suffix(state, logits_to_keep=0)
        except FORWARD_ERRORS as error:
            first_line = str(error).partition("\n")[0]
            raise self._unsupported(f"{type(error).__name__}: {first_line}") from error
        finally:
            handle.remove()
            self.model.train(was_training)
        real = mask.bool()
        if plain[real].isnan().any():
            dtype = str(plain.dtype).removeprefix("torch.")
            raise BaseModelError(
                f"{self.architecture} answers plain tokens with NaN in {dtype}: its "
                "weights are damaged or do not fit into this dtype; load it anew, or set "
                "dtype=float32"
            )
        if split.shape != plain.shape or not torch.equal(split[real], plain[real]):
            raise self._unsupported("the split forward differs from the plain one")

    def _unsupported(self, reason: str, instead: str = _TWO_PASSES) -> SplitUnsupportedError:
        return SplitUnsupportedError(
            f"{self.architecture} cannot be split at layer {self.layer}: {reason}; {instead}"
        )


def _shallow_copy(module: nn.Module) -> nn.Module:
    """Copy a module's attributes and its table of children, sharing children and tensors."""
    duplicate = copy.copy(module)
    duplicate._modules = dict(module._modules)
    duplicate.training = False  # flags are copied once; the shared layers keep their own
    return duplicate
