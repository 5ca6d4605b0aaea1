"""The engine: one worker that owns the model, and answers many requests at once.

Requests wait in a queue; a few at a time are prefilled up to the router layer in one batch,
whatever their domains, and routed there. Those whose adapters are resident go on through the layers
above and join the running batch; the others wait while their adapter is read beside. Between any
two parts of a prefill the running batch decodes one token. Everything that touches the model
happens in the worker's thread; other threads put requests in and receive events.

The order of work of one turn stands in :meth:`Engine._turn`. Shapes as in :mod:`asr.serve.prefill`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from asr.base.layers import decoder_layers
from asr.base.split import SplitForward, keeps_recurrent_states
from asr.data.prompt import EncodedPrompt
from asr.errors import AdapterError, AsrError, BaseModelError, unknown
from asr.model.generation import end_token_ids
from asr.model.request import BASE
from asr.model.routed_model import RoutedModel
from asr.router import Decision
from asr.serve.admission import Admission
from asr.serve.answer import Answer
from asr.serve.batch import RunningBatch
from asr.serve.interface import ClosingError, QueueFullError
from asr.serve.prefix_cache import PrefixCache
from asr.serve.request import EngineStatus, Event, ServedModel, ServeRequest
from asr.serve.residency import Residency
from asr.serve.served import DirectoryWatch, Served

log = logging.getLogger("asr.serve")

_GIB = 1 << 30
_IDLE_SECONDS = 0.5


@dataclass(frozen=True)
class EngineSettings:
    """Limits of an engine.

    Attributes:
        max_batch: most answers that decode together.
        adapter_memory: bytes of adapters kept in memory; more are needed only where one batch uses
            more.
        cache_memory: bytes of states kept for the next turns of conversations; 0 keeps none.
        max_waiting: most requests that wait for a row.
        prefill_tokens: tokens of a prefill that are run between two decode steps; None: 256 on a
            CPU, 4,096 on a GPU.
    """

    max_batch: int = 32
    adapter_memory: int = 2 * _GIB
    cache_memory: int = _GIB
    max_waiting: int = 1000
    prefill_tokens: int | None = None


class Engine:
    """Answers requests to a routed model; see the module.

    Args:
        model: the routed model; the engine owns it from now on.
        settings: limits.

    Raises:
        BaseModelError: the base's layers keep states that rows cannot take along.
    """

    def __init__(self, model: RoutedModel, settings: EngineSettings | None = None) -> None:
        self.settings = settings or EngineSettings()
        self.tokenizer = model.base.tokenizer
        self.template = model.base.template
        self.context_length = model.base.context_length
        self._model = model
        self._base = model.base
        self._require_rows()
        model.bank.close()
        model.bank.budget = self.settings.adapter_memory
        self._bank = model.bank
        self._ends = self._end_ids()
        self._vocabulary = int(model.base.model.get_output_embeddings().weight.shape[0])
        self._served = Served.of(model.directory, model.manifest, model.router, 1)
        self._watch = DirectoryWatch(model.directory, self._served)
        self._coming: Served | None = None
        self._residency = Residency(self._bank)
        one_pass = isinstance(model.forward, SplitForward)
        self._cache = PrefixCache(self.settings.cache_memory if one_pass else 0)
        entry = decoder_layers(model.base.model).modules[model.forward.layer]
        self._batch = RunningBatch(
            model.base.model, self._bank, entry, keep_hidden=self._cache.budget > 0
        )
        tokens = self.settings.prefill_tokens
        if tokens is None:
            tokens = 256 if model.base.device.type == "cpu" else 4096
        self._admission = Admission(model, self._residency, self._cache, tokens)
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._waiting: deque[Answer] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._state = "new"
        self._worker = threading.Thread(target=self._run, name="asr-engine", daemon=True)
        self._watcher = threading.Thread(target=self._look, name="asr-watch", daemon=True)

    # -- from other threads ----------------------------------------------------------------------

    def start(self) -> Engine:
        """Start the worker."""
        self._state = "running"
        self._worker.start()
        self._watcher.start()
        return self

    @property
    def served(self) -> ServedModel:
        """The domains of now."""
        return self._served.model

    def status(self) -> EngineStatus:
        """The engine of now."""
        names = tuple(dict.fromkeys(key.partition("@")[0] for key in self._bank.loaded))
        return EngineStatus(
            running=len(self._batch),
            waiting=len(self._waiting) + len(self._admission),
            resident=names,
            resident_bytes=self._bank.nbytes,
            budget_bytes=self.settings.adapter_memory,
            evictions=self._bank.evictions,
            loads=self._bank.loads,
            cache_bytes=self._cache.nbytes,
            cache_hits=self._cache.hits,
            steps=self._batch.steps,
            step_rows=self._batch.step_rows,
            ready=self._state == "running",
        )

    def submit(self, request: ServeRequest, deliver: Callable[[Event], None]) -> EngineTicket:
        """Queue a request; see :meth:`asr.serve.interface.ServingEngine.submit`.

        Raises:
            QueueFullError: too many requests wait.
            ClosingError: the engine is shutting down, or was not started.
            ConfigError: the sampling settings do not fit the vocabulary.
        """
        answer = Answer(
            request, deliver, self.tokenizer, self._vocabulary, self._ends, self.context_length
        )
        with self._wake:
            self._require_running()
            if len(self._waiting) >= self.settings.max_waiting:
                raise QueueFullError(len(self._waiting), self._come_again())
            self._waiting.append(answer)
            self._wake.notify_all()
        return EngineTicket(self, answer)

    def route(self, prompts: Sequence[EncodedPrompt]) -> Future[list[Decision]]:
        """Decide without generating.

        Raises:
            ClosingError: the engine is shutting down, or was not started.
        """
        return self._call(lambda: self._served.router.decide(self._model.embed(list(prompts))))

    def load_adapter(self, domain: str) -> Future[None]:
        """Make a served domain's adapter resident; the future raises AdapterError.

        Raises:
            ClosingError: the engine is shutting down, or was not started.
        """

        def load() -> None:
            target = self._target(domain)
            if target.key not in self._bank.loaded and target.folder is not None:
                self._bank.load(target.key, target.folder, target.sha256)

        return self._call(load)

    def unload_adapter(self, domain: str) -> Future[None]:
        """Drop a resident adapter; the future raises AdapterError where a row uses it.

        Raises:
            ClosingError: the engine is shutting down, or was not started.
        """

        def unload() -> None:
            target = self._target(domain)
            if target.key not in self._bank.loaded:
                resident = [key.partition("@")[0] for key in self._bank.loaded]
                raise AdapterError(unknown("resident adapter", domain, resident))
            self._bank.unload(target.key)

        return self._call(unload)

    def drain(self, seconds: float) -> bool:
        """Accept nothing new, and wait until what was accepted has ended; whether it has."""
        with self._wake:
            if self._state == "running":
                self._state = "draining"
            self._wake.notify_all()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not self._busy():
                return True
            time.sleep(0.02)
        return not self._busy()

    def close(self) -> None:
        """Stop the worker; what has not ended fails with kind ``closing``."""
        with self._wake:
            started = self._state != "new"
            self._state = "closed"
            self._wake.notify_all()
        if started:
            self._worker.join()
            self._watcher.join()
        for answer in [*self._batch.rows, *self._admission.answers, *self._waiting]:
            answer.fail("closing", "the server is shutting down; try again later")
        self._waiting.clear()
        self._residency.close()
        self._bank.close()

    def cancel(self, answer: Answer) -> None:
        """Free an answer's row at the next turn."""
        answer.cancelled = True
        with self._wake:
            self._wake.notify_all()

    # -- the worker ------------------------------------------------------------------------------

    def _run(self) -> None:
        # One mode for the worker's whole life: tensors made in it and outside do not mix in place.
        with torch.inference_mode():
            while self._state != "closed":
                try:
                    if not self._turn():
                        self._sleep()
                except Exception as error:
                    log.exception("a turn of the engine failed")
                    self._drop_everything(error)

    def _turn(self) -> bool:
        """One turn; return whether there was anything to do."""
        did = self._answer_calls()
        self._take_over()
        self._drop_cancelled()
        room = self.settings.max_batch - len(self._batch) - len(self._admission)
        with self._lock:
            did |= self._admission.admit(self._waiting, room, self._served)
        ready = self._admission.advance(self._served, others_decode=len(self._batch) > 0)
        for answer, states in ready:
            self._batch.join(answer, states)
        did |= bool(ready) or self._admission.is_working
        if len(self._batch):
            for answer in self._batch.step():
                self._leave(answer)
            did = True
        return did

    def _leave(self, answer: Answer) -> None:
        entry = self._batch.leave(answer)
        self._admission.release(answer)
        keys = self._keys()
        if answer.target is not None and answer.target.key not in keys:
            self._residency.forget(keys)
        elif entry is not None:
            self._cache.put(entry)

    def _answer_calls(self) -> bool:
        with self._lock:
            calls = list(self._calls)
            self._calls.clear()
        for call in calls:
            call()
        return bool(calls)

    def _drop_cancelled(self) -> None:
        for answer in [answer for answer in self._batch.rows if answer.cancelled]:
            answer.cancel()
            self._leave(answer)
        self._admission.drop_cancelled()
        with self._lock:
            gone = [answer for answer in self._waiting if answer.cancelled]
            for answer in gone:
                self._waiting.remove(answer)
        for answer in gone:
            answer.cancel()

    def _take_over(self) -> None:
        """Serve the directory's new state, if one was read."""
        with self._lock:
            coming, self._coming = self._coming, None
        if coming is None:
            return
        self._served = coming
        self._model.manifest, self._model.router = coming.manifest, coming.router
        keys = self._keys()
        self._cache.keep_only(sorted(keys))
        self._residency.forget(keys)
        log.info("serving the changed directory: %s", ", ".join(coming.targets) or "no domain")

    def _drop_everything(self, error: Exception) -> None:
        """After an error that no request is to blame for: all end, and the engine goes on."""
        for answer in list(self._batch.rows):
            answer.fail_on(error)
            self._leave(answer)
        self._admission.drop_all(error)

    def _sleep(self) -> None:
        with self._wake:
            if self._state == "closed" or self._waiting or self._calls or self._coming:
                return
            # An adapter that is being read, or memory that is pinned: look again soon.
            self._wake.wait(0.002 if len(self._admission) else _IDLE_SECONDS)

    def _look(self) -> None:
        """The watching thread: read the directory where it has changed."""
        while self._state != "closed":
            try:
                found = self._watch.look()
            except Exception:
                log.exception("the model directory cannot be looked at")
                found = None
            if found is not None:
                with self._wake:
                    self._coming = found
                    self._wake.notify_all()
            time.sleep(0.1)

    # -- inside ----------------------------------------------------------------------------------

    def _call(self, function: Callable[[], Any]) -> Future[Any]:
        """Run a function in the worker between two turns."""
        future: Future[Any] = Future()

        def call() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except AsrError as error:
                future.set_exception(error)
            except Exception as error:
                log.exception("a call of the engine failed")
                future.set_exception(error)

        with self._wake:
            self._require_running()
            self._calls.append(call)
            self._wake.notify_all()
        return future

    def _target(self, domain: str) -> Any:
        if domain not in self._served.targets:
            raise AdapterError(unknown("domain", domain, self._served.targets))
        return self._served.targets[domain]

    def _keys(self) -> set[str]:
        return {BASE, *(target.key for target in self._served.targets.values())}

    def _busy(self) -> bool:
        return bool(self._waiting or self._calls or len(self._admission) or len(self._batch))

    def _come_again(self) -> int:
        """Seconds after which a place in the queue is likely: a guess from its length."""
        return max(1, len(self._waiting) // max(1, self.settings.max_batch))

    def _require_running(self) -> None:
        if self._state != "running":
            raise ClosingError("the server is shutting down; try again later")

    def _require_rows(self) -> None:
        """Refuse a base whose rows cannot leave a batch."""
        try:
            cache = DynamicCache(config=self._base.model.config)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BaseModelError(f"{self._base.architecture} cannot be served: {error}") from error
        if keeps_recurrent_states(cache):
            raise BaseModelError(
                f"{self._base.architecture} cannot be served: its layers keep recurrent states, "
                "which rows cannot take into a running batch; use asr generate"
            )

    def _end_ids(self) -> tuple[int, ...]:
        own = end_token_ids(self._base.model.generation_config)
        return tuple(sorted(own.union(self._base.template.end_of_turn_ids)))


class EngineTicket:
    """A submitted request."""

    def __init__(self, engine: Engine, answer: Answer) -> None:
        self._engine = engine
        self._answer = answer

    def cancel(self) -> None:
        """Free its row; thread-safe, and nothing happens if it has ended."""
        self._engine.cancel(self._answer)
