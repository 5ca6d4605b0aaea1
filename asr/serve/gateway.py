"""The router alone: decisions on prompts, for a server that generates elsewhere.

Holds the layers below the router layer, the tokenizer, the template and the router of a routed
model directory, and nothing else. Prompts that arrive together are decided in one batch, in a
thread of its own; a directory that has changed is taken over as the engine does it.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from asr.base.load import Say
from asr.base.shallow import load_shallow_base
from asr.data.prompt import EncodedPrompt, encode_prompt
from asr.errors import BaseModelError
from asr.model.canaries import TENSOR, canary_features, compare_canaries
from asr.model.features import embed
from asr.model.opening import open_directory, require_base
from asr.router import Decision
from asr.serve.request import ServedModel
from asr.serve.served import DirectoryWatch, Served

log = logging.getLogger("asr.serve")

_MOST = 64
"""Prompts decided in one batch."""


class Gateway:
    """Decides where prompts go. Thread-safe.

    Args:
        path: the routed model directory.
        base: where the base is, if not where training found it.
        device: where the lower layers run.
        dtype: ``auto`` (what the processor is good at), ``float32``, ``bfloat16``, ``float16``.
        say: receives choices and warnings, one line each.

    Raises:
        AsrError: the directory is incomplete or damaged; the base is missing or another one; its
            chat template was changed; it can only be run in two passes.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        base: str | None = None,
        device: str = "cpu",
        dtype: str = "auto",
        say: Say = log.info,
    ) -> None:
        opened = open_directory(path)
        manifest = opened.manifest
        if manifest.two_pass:
            raise BaseModelError(
                f"the base '{manifest.base.name}' is routed in two passes, which needs all of it; "
                "serve this model with asr serve"
            )
        name = base or manifest.base.name
        loaded: Any = load_shallow_base(
            name,
            manifest.contract.layer,
            revision=manifest.base.revision_of(name),
            device=device,
            dtype=dtype,
            template_text=opened.template_text,
            say=say,
        )
        require_base(loaded, manifest)
        self.base = loaded
        self._served = Served.of(opened.directory, manifest, opened.router.router, 1)
        stored = opened.router.extra_tensors.get(TENSOR)
        if stored is not None:
            now = canary_features(loaded, loaded.forward)
            report = compare_canaries(stored, now, opened.router.router)
            if report.matters:
                say(
                    f"warning: features moved by {report.relative_shift:.1%} since training "
                    f"({manifest.numeric.dtype}, {manifest.numeric.quantisation or 'no'} "
                    f"quantisation; here {loaded.note}): some prompts go elsewhere"
                )
        self._watch = DirectoryWatch(opened.directory, self._served)
        self._waiting: queue.SimpleQueue[tuple[EncodedPrompt, Future[Decision]]] = (
            queue.SimpleQueue()
        )
        for work in (self._decide_forever, self._look_forever):
            threading.Thread(target=work, daemon=True, name="asr-gateway").start()

    @property
    def served(self) -> ServedModel:
        """The domains of now."""
        return self._served.model

    def submit(self, prompt: EncodedPrompt) -> Future[Decision]:
        """Decide on an encoded prompt."""
        future: Future[Decision] = Future()
        self._waiting.put((prompt, future))
        return future

    async def decide(self, prompt: str | Sequence[Mapping[str, str]]) -> Decision:
        """Decide on a user message or a conversation; a prompt that is too long is cut for it.

        Raises:
            DataError: it cannot be rendered, or has nothing to route on.
        """
        encoded = await asyncio.to_thread(self._encode, prompt)
        return await asyncio.wrap_future(self.submit(encoded))

    # -- inside ----------------------------------------------------------------------------------

    def _encode(self, prompt: str | Sequence[Mapping[str, str]]) -> EncodedPrompt:
        turns: Any = prompt if isinstance(prompt, str) else [dict(turn) for turn in prompt]
        base = self.base
        return encode_prompt(
            turns, base.tokenizer, base.template, base.context_length, shorten=True
        )

    def _decide_forever(self) -> None:
        while True:
            batch = [self._waiting.get()]
            while len(batch) < _MOST and not self._waiting.empty():
                batch.append(self._waiting.get())
            batch = [one for one in batch if one[1].set_running_or_notify_cancel()]
            if not batch:
                continue
            try:
                base, router = self.base, self._served.router
                pad = base.tokenizer.pad_token_id
                pooled = embed([prompt for prompt, _ in batch], base.forward, pad, base.device)
                decisions = router.decide(pooled)
            except Exception as error:
                for _, future in batch:
                    future.set_exception(error)
                continue
            for (_, future), decision in zip(batch, decisions, strict=True):
                future.set_result(decision)

    def _look_forever(self) -> None:
        while True:
            time.sleep(0.2)
            try:
                found = self._watch.look()
            except Exception:
                log.exception("the model directory cannot be looked at")
                continue
            if found is not None:
                self._served = found
                log.info("routing among %s", ", ".join(found.targets) or "no domain")
