"""Score domains as a user would meet them: base, routed, and with the right adapter forced.

Everything that an answer depends on is immutable (adapter, prompt, settings), so answers are cached
by it, and the router after any number of domains is a function of the kept statistics. A matrix can
therefore be computed at any time: after each domain while training, or all of it afterwards on a
test file that training never read.

Notation for shapes: n prompts of a domain, d hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from asr.base.split import accepts_logits_to_keep, position_ids_of
from asr.data.encode import IGNORED, EncodedExample, encode_example
from asr.data.formats import Example
from asr.data.prompt import EncodedPrompt
from asr.data.views import CommonPart, make_views
from asr.errors import DataError
from asr.eval.cache import CachedLoss, CachedText, EvalCache, loss_key, text_key
from asr.eval.matrix import EvalMatrix, Scores
from asr.eval.registry import check_examples, get_scorer
from asr.model.features import batches_by_length, pad_left
from asr.model.routed_model import BASE, RoutedModel
from asr.router import Router

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total)."""


@dataclass(frozen=True)
class EvalSet:
    """What one domain is scored on.

    Attributes:
        domain: its name.
        examples: prompts with their answers.
        common: what the domain's prompts share; the bare kind leaves it out.
        scorer: name of the scorer.
        max_new_tokens: longest answer to generate.
    """

    domain: str
    examples: Sequence[Example]
    common: CommonPart
    scorer: str
    max_new_tokens: int


def check_set(evaluated: EvalSet) -> None:
    """Refuse a set with examples that its scorer cannot score; cheap, no model is needed.

    Raises:
        ConfigError: there is no such scorer.
        DataError: names every such example's source, what was found and what is expected.
    """
    check_examples(evaluated.scorer, evaluated.examples, evaluated.domain)


class Evaluator:
    """Evaluates a routed model, remembering every answer.

    Args:
        model: the routed model.
        cache: where answers are kept.
        batch_size: prompts generated together.
        progress: told about generation.
    """

    def __init__(
        self,
        model: RoutedModel,
        cache: EvalCache,
        batch_size: int = 16,
        progress: Progress | None = None,
    ) -> None:
        self.model = model
        self.cache = cache
        self.batch_size = batch_size
        self.progress = progress
        self._seen: dict[tuple[str, str], tuple[EvalSet, Any]] = {}

    def extend(self, matrix: EvalMatrix, sets: Sequence[EvalSet], router: Router) -> None:
        """Append the row of the newest domain: every set scored under ``router``.

        Args:
            matrix: holds a row and a column for each set but the last; extended in place.
            sets: one per domain, in training order; the last one is the newest.
            router: the router right after the newest domain was trained.

        Raises:
            DataError: a prompt cannot be encoded or does not fit the context, or an example lacks
                what the scorer needs.
            AdapterError: an adapter cannot be loaded.
            StorageError: the cache cannot be written.
        """
        for evaluated in sets:
            check_set(evaluated)  # of all sets before any is scored
        newest = sets[-1]
        cells: dict[str, tuple[Scores, Scores, list[str]]] = {}
        base: Scores | None = None
        for evaluated in sets:
            prompts = self._prompts(evaluated, matrix.kind)
            everyone = range(len(prompts))
            pooled = self._embedded(evaluated, matrix.kind, prompts)
            chosen = [decision.route for decision in router.decide(pooled)]
            routed = list(zip(chosen, everyone, strict=True))
            oracle = [(evaluated.domain, i) for i in everyone]
            alone = [(BASE, i) for i in everyone] if evaluated is newest else []
            values = self._score(evaluated, prompts, {*routed, *oracle, *alone})
            cells[evaluated.domain] = _gather(values, routed), _gather(values, oracle), chosen
            if alone:
                base = _gather(values, alone)
        matrix.add_domain(newest.domain, newest.scorer, base)
        for domain, (routed_scores, oracle_scores, chosen) in cells.items():
            matrix.record(
                newest.domain,
                domain,
                routed=routed_scores,
                oracle=oracle_scores,
                routes=[None if adapter == BASE else adapter for adapter in chosen],
            )

    def forced(self, evaluated: EvalSet, kind: str, adapter: str) -> Scores:
        """Score a set with one adapter for every prompt; nothing is routed.

        Args:
            evaluated: what to score.
            kind: "templated" or "bare".
            adapter: a domain's name, or ``base``.

        Raises:
            DataError, AdapterError, StorageError: as :meth:`extend`.
        """
        check_set(evaluated)
        prompts = self._prompts(evaluated, kind)
        pairs = [(adapter, i) for i in range(len(prompts))]
        return _gather(self._score(evaluated, prompts, set(pairs)), pairs)

    # -- inside ----------------------------------------------------------------------------------

    def _prompts(self, evaluated: EvalSet, kind: str) -> list[list[dict[str, str]]]:
        if not evaluated.examples:
            raise DataError(f"{evaluated.domain}: no examples to evaluate on")
        return [
            make_views(example.prompt, evaluated.common, [kind])[kind]
            for example in evaluated.examples
        ]

    def _embedded(
        self, evaluated: EvalSet, kind: str, prompts: Sequence[list[dict[str, str]]]
    ) -> Any:
        """Pooled features (n, d) of a set: the same in every row of a matrix, so made once."""
        seen = self._seen.get((evaluated.domain, kind))
        if seen is None or seen[0] is not evaluated:
            # one beyond the context by its head and tail, as the statistics were made
            encoded = self.model.encode(prompts, shorten=True)
            seen = (evaluated, self.model.embed(encoded))
            self._seen[evaluated.domain, kind] = seen
        return seen[1]

    def _score(
        self,
        evaluated: EvalSet,
        prompts: Sequence[list[dict[str, str]]],
        wanted: set[tuple[str, int]],
    ) -> dict[tuple[str, int], tuple[float, float]]:
        """Score (adapter, prompt) pairs: value and weight of each."""
        scorer = get_scorer(evaluated.scorer)
        pairs = sorted(wanted)
        examples = evaluated.examples
        if scorer.needs == "loss":
            rows = [
                self._last_row(prompt, example)
                for prompt, example in zip(prompts, examples, strict=True)
            ]
            losses = self._losses(evaluated.domain, rows, pairs)
            return {
                pair: (scorer.score_loss(loss.sum_nll, loss.tokens), float(loss.tokens))
                for pair, loss in losses.items()
            }
        if scorer.needs == "choices":
            choices = [scorer.choices(example) for example in examples]
            likelihoods = self._choices(evaluated, prompts, choices, pairs)
            return {
                (adapter, i): (scorer.score_choices(sum_nll, examples[i]), 1.0)
                for (adapter, i), sum_nll in likelihoods.items()
            }
        texts = self._texts(evaluated, prompts, pairs)
        return {
            (adapter, i): (
                scorer.score(text, examples[i].completion, examples[i].meta),
                1.0,
            )
            for (adapter, i), text in texts.items()
        }

    def _texts(
        self,
        evaluated: EvalSet,
        prompts: Sequence[list[dict[str, str]]],
        pairs: Sequence[tuple[str, int]],
    ) -> dict[tuple[str, int], str]:
        encoded = self.model.encode(prompts)
        settings = {
            "max_new_tokens": evaluated.max_new_tokens,
            "decoding": "greedy",
            **self._numerics(),
        }
        keys = {
            (adapter, i): text_key(self._hash(adapter), encoded[i].input_ids, settings)
            for adapter, i in pairs
        }
        # By key: a prompt that stands twice is answered once.
        unknown = {
            keys[pair]: pair
            for pair in reversed(pairs)
            if not isinstance(self.cache.get(keys[pair]), CachedText)
        }
        missing = sorted(unknown.values())
        done = 0
        # One adapter at a time: the decision is known already, and a uniform batch is the fastest.
        for adapter in dict.fromkeys(adapter for adapter, _ in missing):
            rows = [i for name, i in missing if name == adapter]
            for batch in self._batches(encoded, rows):
                answers = self.model.generate(
                    [prompts[i] for i in batch],
                    adapter=adapter,
                    max_new_tokens=evaluated.max_new_tokens,
                    batch_size=self.batch_size,
                )
                for i, answer in zip(batch, answers, strict=True):
                    self.cache.put(
                        keys[(adapter, i)],
                        CachedText(answer.text, answer.finish),
                        adapter=adapter,
                        domain=evaluated.domain,
                    )
                self.cache.flush()
                done += len(batch)
                self._report(f"{evaluated.domain} with {adapter}", done, len(missing))
        texts: dict[tuple[str, int], str] = {}
        for pair in pairs:
            entry = self.cache.get(keys[pair])
            assert isinstance(entry, CachedText)  # put above, or found before
            texts[pair] = entry.text
        return texts

    def _batches(self, encoded: Sequence[EncodedPrompt], rows: Sequence[int]) -> list[list[int]]:
        lengths = [len(encoded[i].input_ids) for i in rows]
        batches = batches_by_length(lengths, tokens_per_batch=1 << 30, most=self.batch_size)
        return [[rows[position] for position in batch] for batch in batches]

    def _choices(
        self,
        evaluated: EvalSet,
        prompts: Sequence[list[dict[str, str]]],
        choices: Sequence[Sequence[str]],
        pairs: Sequence[tuple[str, int]],
    ) -> dict[tuple[str, int], list[float]]:
        """Sum the NLL of every choice of every pair's example as the answer to its prompt."""
        rows: list[EncodedExample] = []
        places: list[range] = []  # of each example's choices among the rows
        for prompt, example, answers in zip(prompts, evaluated.examples, choices, strict=True):
            places.append(range(len(rows), len(rows) + len(answers)))
            for answer in answers:
                turns = (*example.prompt, {"role": "assistant", "content": answer})
                chosen = Example(turns, example.meta, example.source)
                rows.append(_answer_alone(self._last_row(prompt, chosen)))
        each = [(adapter, row) for adapter, i in pairs for row in places[i]]
        losses = self._losses(evaluated.domain, rows, each)
        return {
            (adapter, i): [losses[(adapter, row)].sum_nll for row in places[i]]
            for adapter, i in pairs
        }

    def _losses(
        self, domain: str, rows: Sequence[EncodedExample], pairs: Sequence[tuple[str, int]]
    ) -> dict[tuple[str, int], CachedLoss]:
        """Return the loss of rows of a domain under adapters, by (adapter, place of the row)."""
        losses: dict[tuple[str, int], CachedLoss] = {}
        for adapter in dict.fromkeys(adapter for adapter, _ in pairs):
            indices = [i for name, i in pairs if name == adapter]
            keys = {
                i: loss_key(
                    self._hash(adapter), rows[i].input_ids, rows[i].labels, self._numerics()
                )
                for i in indices
            }
            unknown = {  # by key: a row that stands twice runs once
                keys[i]: i
                for i in reversed(indices)
                if not isinstance(self.cache.get(keys[i]), CachedLoss)
            }
            missing = sorted(unknown.values())
            lengths = [len(rows[i].input_ids) for i in missing]
            done = 0
            for batch in batches_by_length(lengths, most=self.batch_size):
                chosen = [missing[position] for position in batch]
                for i, loss in zip(
                    chosen, self._forward([rows[i] for i in chosen], adapter), strict=True
                ):
                    self.cache.put(keys[i], loss, adapter=adapter, domain=domain)
                self.cache.flush()
                done += len(chosen)
                self._report(f"{domain} with {adapter}", done, len(missing))
            for i in indices:
                entry = self.cache.get(keys[i])
                assert isinstance(entry, CachedLoss)
                losses[(adapter, i)] = entry
        return losses

    def _last_row(self, prompt: list[dict[str, str]], example: Example) -> EncodedExample:
        base = self.model.base
        if example.is_text:  # no prompt and answer; of one beyond the context, its beginning
            return encode_example(example, base.tokenizer, base.template, base.context_length)[0]
        turns = (*prompt, {"role": "assistant", "content": example.completion})
        seen = Example(turns, example.meta, example.source)
        return encode_example(seen, base.tokenizer, base.template, base.context_length)[-1]

    def _forward(self, rows: Sequence[EncodedExample], adapter: str) -> list[CachedLoss]:
        base = self.model.base
        ids, mask = pad_left(
            [row.input_ids for row in rows], base.tokenizer.pad_token_id, base.device
        )
        # Left padding ends all answers together: only the logits of that tail are computed.
        tail = 1 + max(len(row.labels) - _first_supervised(row) for row in rows)
        keep = {"logits_to_keep": tail} if accepts_logits_to_keep(base.model) else {}
        with self.model.applied([adapter] * len(rows)), torch.no_grad():
            logits = base.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=position_ids_of(mask),
                use_cache=False,
                **keep,
            ).logits[:, -tail:]
        losses = []
        for index, row in enumerate(rows):
            targets = torch.tensor(row.labels[1 - tail :], device=logits.device)
            nll = functional.cross_entropy(
                logits[index, -tail:-1][-len(targets) :].float(),
                targets,
                ignore_index=IGNORED,
                reduction="sum",
            )
            losses.append(CachedLoss(float(nll), row.supervised))
        return losses

    def _hash(self, adapter: str) -> str:
        if adapter == BASE:
            return self.model.base.fingerprint
        entry = self.model.manifest.domains[adapter].adapter
        assert entry is not None  # only published adapters are routed to
        return entry.sha256

    def _numerics(self) -> dict[str, Any]:
        base = self.model.base
        return {
            "dtype": base.dtype_name,
            "quantisation": base.quantisation,
            "device": base.device.type,
        }

    def _report(self, what: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(what, done, total)


def _answer_alone(row: EncodedExample) -> EncodedExample:
    """Supervise the last answer only, without the token that ends it."""
    labels = list(row.labels)
    start = len(labels)
    while start and labels[start - 1] != IGNORED:
        start -= 1
    labels[:start] = [IGNORED] * start
    labels[-1] = IGNORED
    return EncodedExample(row.input_ids, labels, row.source, row.truncated)


def _first_supervised(row: EncodedExample) -> int:
    return next(index for index, label in enumerate(row.labels) if label != IGNORED)


def _gather(
    values: Mapping[tuple[str, int], tuple[float, float]], pairs: Sequence[tuple[str, int]]
) -> Scores:
    found = [values[pair] for pair in pairs]
    weights = [weight for _, weight in found]
    uniform = all(weight == 1.0 for weight in weights)
    return Scores([value for value, _ in found], None if uniform else weights)
