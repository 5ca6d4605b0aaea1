"""From the queue to the running batch: prefix, decision, adapter, suffix, first token.

Requests are taken in the order they came, several of similar length together. A prompt that begins
like an earlier conversation goes alone, from the prefix cache. After the decision each waits for
its adapter by itself: those that are resident go on together, sorted by adapter, so that equal ones
are neighbours.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

from asr.base.row_cache import KeysValues
from asr.errors import AsrError, unknown
from asr.model.request import AUTO, BASE
from asr.model.routed_model import RoutedModel
from asr.router import Decision
from asr.serve.answer import Answer
from asr.serve.prefill import Prefill
from asr.serve.prefix_cache import PrefixCache
from asr.serve.request import Route, RouteKind
from asr.serve.residency import Residency
from asr.serve.sampling import choose_tokens
from asr.serve.served import BASE_TARGET, Served, Target

log = logging.getLogger("asr.serve")

Joining = tuple[Answer, list[KeysValues | None]]
"""An answer with its first token, and its prompt's keys and values."""

_MOST_PADDING = 1.3
"""Columns of a batch of prompts over the tokens in it."""
_MOST_TOKENS = 8192
"""Padded tokens of a batch of prompts."""


_GRACE_SECONDS = 3.0
"""How long an adapter that cannot be read is tried again: its domain may just be being removed."""


@dataclass
class _Group:
    """Answers that are prefilled together; ``prefill`` holds them in this order.

    Attributes:
        failing_since: when an adapter could first not be read, by row.
    """

    answers: list[Answer]
    prefill: Prefill
    failing_since: dict[int, float] = field(default_factory=dict)

    @property
    def two_pass(self) -> bool:
        """Whether its adapters sit below the router layer, too."""
        return any(one.target is not None and one.target.two_pass for one in self.answers)


class Admission:
    """Answers between the queue and the running batch.

    Args:
        model: the routed model.
        residency: makes adapters resident.
        cache: states of earlier conversations.
        tokens: of a prefill that are run in one turn while others decode.
    """

    def __init__(
        self, model: RoutedModel, residency: Residency, cache: PrefixCache, tokens: int
    ) -> None:
        self._model = model
        self._residency = residency
        self._cache = cache
        self._tokens = tokens
        self._alone: deque[Answer] = deque()  # to be prefilled again by themselves
        self._prefix: _Group | None = None  # its lower layers are running
        self._parked: list[tuple[_Group, list[int]]] = []  # routed; rows that wait for adapters
        self._suffix: deque[_Group] = deque()  # adapters pinned; the first one's layers are running

    def __len__(self) -> int:
        return len(self.answers)

    @property
    def answers(self) -> list[Answer]:
        """All answers between queue and batch."""
        found = list(self._alone)
        found += [group.answers[row] for group, rows in self._parked for row in rows]
        groups = [*self._suffix, *([] if self._prefix is None else [self._prefix])]
        return found + [answer for group in groups for answer in group.answers]

    @property
    def is_working(self) -> bool:
        """Whether a next part can be run now, and nothing need be waited for."""
        return self._prefix is not None or bool(self._suffix) or bool(self._alone)

    # -- from the queue --------------------------------------------------------------------------

    def admit(self, waiting: deque[Answer], room: int, served: Served) -> bool:
        """Begin the prefill of the next few waiting requests; whether there were any.

        Those that ask for a model that is not served end at once.
        """
        if self._prefix is not None:
            return False
        chosen = [self._alone.popleft()] if self._alone else self._take(waiting, room, served)
        if not chosen:
            return False
        match = self._cache.shallow(chosen[0].token_ids) if len(chosen) == 1 else None
        if match is not None:
            self._cache.hits += 1
        for answer in chosen:
            answer.start()
        base = self._model.base
        self._prefix = _Group(
            chosen,
            Prefill(
                [answer.request.prompt for answer in chosen],
                self._model.forward,
                base.tokenizer.pad_token_id,
                base.device,
                match,
            ),
        )
        return True

    def _take(self, waiting: deque[Answer], room: int, served: Served) -> list[Answer]:
        """The first few waiting requests that go together."""
        chosen: list[Answer] = []
        while waiting and len(chosen) < room:
            answer = waiting[0]
            if not self._is_served(answer, served):
                waiting.popleft()
                continue
            lengths = [len(one.token_ids) for one in (*chosen, answer)]
            padded = max(lengths) * len(lengths)
            if chosen and (padded > _MOST_PADDING * sum(lengths) or padded > _MOST_TOKENS):
                break
            continues = self._cache.shallow(answer.token_ids) is not None
            if continues and chosen:
                break  # it goes alone, next
            chosen.append(waiting.popleft())
            if continues:
                break
        return chosen

    # -- a turn ----------------------------------------------------------------------------------

    def advance(self, served: Served, others_decode: bool) -> list[Joining]:
        """Run one part of what is on its way; return the answers that join the running batch."""
        tokens = self._tokens if others_decode else _MOST_TOKENS
        self._unpark(served)
        if self._suffix:
            return self._advance_suffix(tokens)
        if self._prefix is not None:
            self._advance_prefix(served, tokens)
        return []

    def drop_cancelled(self) -> None:
        """End the answers that nobody waits for; a group that runs goes on without them."""
        for answer in [one for one in self._alone if one.cancelled]:
            self._alone.remove(answer)
            answer.cancel()
        for group, rows in self._parked:
            for row in [row for row in rows if group.answers[row].cancelled]:
                rows.remove(row)
                group.answers[row].cancel()
        self._parked = [(group, rows) for group, rows in self._parked if rows]
        if self._prefix is not None and all(one.cancelled for one in self._prefix.answers):
            for answer in self._prefix.answers:
                answer.cancel()
            self._prefix = None

    def drop_all(self, error: Exception) -> None:
        """End everything on its way with an error."""
        for answer in self.answers:
            answer.fail_on(error)
        for group in self._suffix:
            self._release(group.answers)
        self._prefix, self._parked = None, []
        self._suffix.clear()
        self._alone.clear()

    def release(self, answer: Answer) -> None:
        """Give the adapter of an answer that has left the running batch back."""
        if answer.target is not None:
            self._residency.release(answer.target)

    # -- below the router layer ------------------------------------------------------------------

    def _advance_prefix(self, served: Served, tokens: int) -> None:
        group, self._prefix = self._prefix, None
        assert group is not None
        try:
            if not group.prefill.advance_prefix(tokens):
                self._prefix = group
                return
            self._decide(group, range(len(group.answers)), served)
        except Exception as error:
            self._isolate(group, error)
            return
        rows = [row for row, answer in enumerate(group.answers) if not answer.over]
        if rows:
            self._parked.append((group, rows))
        self._unpark(served)

    def _decide(self, group: _Group, rows: Iterable[int], served: Served) -> None:
        """Say where rows go; those that ask for what is no longer served end."""
        rows = [row for row in rows if self._is_served(group.answers[row], served)]
        made: list[Decision] = []
        if any(group.answers[row].request.model == AUTO for row in rows):
            made = served.router.decide(group.prefill.pooled())
        for row in rows:
            answer = group.answers[row]
            decision = made[row] if answer.request.model == AUTO else None
            name = answer.request.model if decision is None else decision.route
            target = BASE_TARGET if name == BASE else served.targets[name]
            kind: RouteKind = "named"
            if decision is not None:
                kind = "abstained" if decision.abstained else "auto"
            answer.route(Route(name, kind, decision), target)

    @staticmethod
    def _is_served(answer: Answer, served: Served) -> bool:
        """Whether the model that an answer asks for exists; it ends where it does not."""
        name = answer.request.model
        if name in (AUTO, BASE) or name in served.targets:
            return True
        answer.fail("unknown_model", unknown("model", name, [AUTO, BASE, *served.targets]))
        return False

    # -- waiting for adapters --------------------------------------------------------------------

    def _unpark(self, served: Served) -> None:
        """Send on the rows whose adapters are resident now; equal adapters become neighbours."""
        for group, rows in list(self._parked):
            ready: list[int] = []
            for row in list(rows):
                if self._acquire(group, row, served):
                    ready.append(row)
                if row in ready or group.answers[row].over:
                    rows.remove(row)
            for two_pass in (False, True):
                chosen = [row for row in ready if _target(group.answers[row]).two_pass == two_pass]
                chosen.sort(key=lambda row: _target(group.answers[row]).key)
                if chosen:
                    answers = [group.answers[row] for row in chosen]
                    self._suffix.append(self._ready_group(answers, group.prefill.select(chosen)))
        self._parked = [(group, rows) for group, rows in self._parked if rows]

    def _acquire(self, group: _Group, row: int, served: Served) -> bool:
        answer = group.answers[row]
        target = _target(answer)
        if target.folder is not None and served.targets.get(target.domain) != target:
            # The directory has changed since the decision: another version, or gone.
            self._decide(group, [row], served)
            if answer.over:
                return False
            target = _target(answer)
        try:
            return self._residency.acquire(target)
        except AsrError as error:
            since = group.failing_since.setdefault(row, time.monotonic())
            if time.monotonic() - since > _GRACE_SECONDS:
                log.error("adapter of '%s' cannot be read: %s", target.domain, error)
                answer.fail("adapter", f"the adapter of '{target.domain}' cannot be read now")
        except Exception as error:
            answer.fail_on(error)
        return False

    def _ready_group(self, answers: list[Answer], prefill: Prefill) -> _Group:
        if len(answers) == 1:
            prefill.take_deep(self._cache, _target(answers[0]).key)
            answers[0].cached_tokens = prefill.cached_tokens
        return _Group(answers, prefill)

    # -- from the router layer up ----------------------------------------------------------------

    def _advance_suffix(self, tokens: int) -> list[Joining]:
        group = self._suffix[0]
        names = [
            None if target.folder is None else target.key
            for target in (_target(answer) for answer in group.answers)
        ]
        whole = self._model.whole if group.two_pass else None
        try:
            with self._residency.bank.rows(names):
                logits = group.prefill.advance_suffix(tokens, whole)
        except Exception as error:
            self._suffix.popleft()
            self._release(group.answers)
            self._isolate(group, error)
            return []
        if logits is None:
            return []
        self._suffix.popleft()
        return self._first_tokens(group, logits)

    def _first_tokens(self, group: _Group, logits: Tensor) -> list[Joining]:
        joining: list[Joining] = []
        chosen = choose_tokens(logits, [answer.sampler for answer in group.answers])
        for row, (answer, token) in enumerate(zip(group.answers, chosen, strict=True)):
            if answer.cancelled:
                answer.cancel()
            elif isinstance(token, Exception):
                answer.fail_on(token)
            else:
                answer.announce()
                if not answer.take(token):
                    answer.hidden = [group.prefill.hidden(row)]
                    joining.append((answer, group.prefill.states(row)))
                    continue
            self.release(answer)
        return joining

    # -- when a forward pass raises --------------------------------------------------------------

    def _isolate(self, group: _Group, error: Exception) -> None:
        """Prefill the answers of a group that failed again, each alone; one that was alone ends."""
        answers = [answer for answer in group.answers if not answer.over]
        if len(group.answers) == 1:
            for answer in answers:
                answer.fail_on(error)
            return
        log.warning("a prefill of %d prompts failed and is run one by one", len(group.answers))
        for answer in answers:
            answer.cached_tokens = 0
            self._alone.append(answer)

    def _release(self, answers: Iterable[Answer]) -> None:
        for answer in answers:
            self.release(answer)


def _target(answer: Answer) -> Target:
    assert answer.target is not None
    return answer.target
