"""Load on a server: so many clients, each with one request at a time, and what they see.

Used by :mod:`benchmarks.engine_load` (the engine itself) and :mod:`benchmarks.http_load` (over
HTTP). Clients are threads; a request is whatever ``ask`` does.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Sample:
    """One request as its client saw it.

    Attributes:
        first: seconds to the first token.
        total: seconds to the last one.
        tokens: generated.
    """

    first: float
    total: float
    tokens: int

    @property
    def per_token(self) -> float:
        """Seconds from one token to the next."""
        return (self.total - self.first) / max(1, self.tokens - 1)


@dataclass(frozen=True)
class Summary:
    """What all clients saw together; seconds, medians and 95th percentiles."""

    clients: int
    requests: int
    tokens_per_second: float
    first_p50: float
    first_p95: float
    per_token_p50: float
    per_token_p95: float

    def line(self) -> str:
        """For people."""
        return (
            f"{self.clients:3} clients {self.tokens_per_second:8.1f} tokens/s   first token "
            f"{1e3 * self.first_p50:7.0f} / {1e3 * self.first_p95:7.0f} ms   per token "
            f"{1e3 * self.per_token_p50:6.1f} / {1e3 * self.per_token_p95:6.1f} ms"
        )

    def figures(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def closed_loop(clients: int, requests: int, ask: Callable[[int], Sample]) -> Summary:
    """Let ``clients`` threads send ``requests`` requests, each the next as soon as one is answered.

    Raises:
        Exception: what a request raised; the others end first.
    """
    numbers, samples = itertools.count(), []
    failures: list[BaseException] = []

    def client() -> None:
        while not failures and (number := next(numbers)) < requests:
            try:
                samples.append(ask(number))
            except BaseException as error:  # handed over to the caller
                failures.append(error)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent = time.perf_counter() - began
    if failures:
        raise failures[0]
    first = np.array([sample.first for sample in samples])
    per_token = np.array([sample.per_token for sample in samples])
    return Summary(
        clients,
        requests,
        sum(sample.tokens for sample in samples) / spent,
        *(float(np.percentile(first, q)) for q in (50, 95)),
        *(float(np.percentile(per_token, q)) for q in (50, 95)),
    )
