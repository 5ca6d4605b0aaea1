"""What is counted, for Prometheus.

Each adapter is a label value of its own, and there are no others than the names that were served,
``base``, and ``none`` for requests that failed before they were routed. The registry is the
application's own: two applications in one process do not mix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from asr.serve.request import EngineStatus, Finished, Route

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_MARGINS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.0)


class Metrics:
    """Counts answers, tokens and times; asks the engine for the rest when it is read.

    Args:
        status: returns the engine's status, None while there is no engine.
    """

    def __init__(self, status: Callable[[], EngineStatus | None]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(status))
        self.requests = Counter(
            "asr_requests",
            "Answers asked for, by who answered, how that was chosen, and HTTP status "
            "(499: the client went away).",
            ["adapter", "route", "status"],
            registry=self.registry,
        )
        self.tokens = Counter(
            "asr_tokens",
            "Tokens of prompts and answers; cached: prompt tokens taken from the prefix cache.",
            ["adapter", "kind"],
            registry=self.registry,
        )
        self.first_token = self._histogram(
            "asr_time_to_first_token_seconds", "From submission to the first token.", _SECONDS
        )
        self.per_token = self._histogram(
            "asr_time_per_output_token_seconds", "Between tokens after the first.", _TOKEN_SECONDS
        )
        self.whole = self._histogram(
            "asr_request_seconds", "From submission to the end of the answer.", _SECONDS
        )
        self.margin = self._histogram(
            "asr_margin", "Best minus second-best score of routed requests.", _MARGINS
        )

    def routed(self, route: Route) -> None:
        """Count a decision."""
        if route.decision is not None and route.decision.margin is not None:
            self.margin.labels(route.adapter).observe(route.decision.margin)

    def finished(self, route: Route, end: Finished) -> None:
        """Count an answer that came to its end."""
        self.requests.labels(route.adapter, route.kind, "200").inc()
        usage, timing = end.usage, end.timing
        self.tokens.labels(route.adapter, "prompt").inc(usage.prompt_tokens)
        self.tokens.labels(route.adapter, "completion").inc(usage.completion_tokens)
        self.tokens.labels(route.adapter, "cached").inc(usage.cached_tokens)
        self.first_token.labels(route.adapter).observe(timing.first_token)
        self.whole.labels(route.adapter).observe(timing.total)
        if usage.completion_tokens > 1:
            between = (timing.total - timing.first_token) / (usage.completion_tokens - 1)
            self.per_token.labels(route.adapter).observe(between)

    def failed(self, status: int, route: Route | None) -> None:
        """Count an answer that did not; ``route`` is None if it was never routed."""
        labels = (route.adapter, route.kind) if route else ("none", "none")
        self.requests.labels(*labels, str(status)).inc()

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)

    def totals(self) -> dict[str, dict[str, float]]:
        """Return requests and completion tokens by adapter."""
        requests: dict[str, float] = {}
        tokens: dict[str, float] = {}
        for counter, sums, kind in (
            (self.requests, requests, None),
            (self.tokens, tokens, "completion"),
        ):
            for sample in (s for metric in counter.collect() for s in metric.samples):
                labels = sample.labels
                if sample.name.endswith("_total") and labels.get("kind") == kind:
                    adapter = labels["adapter"]
                    sums[adapter] = sums.get(adapter, 0.0) + sample.value
        return {"requests": requests, "completion_tokens": tokens}

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, ["adapter"], registry=self.registry, buckets=buckets)


class _EngineCollector:
    """Reads the engine's status at the moment of a scrape."""

    def __init__(self, status: Callable[[], EngineStatus | None]) -> None:
        self._status = status

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry must not ask an engine that does not exist yet."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Return gauges and counters of now."""
        status = self._status()
        if status is None:
            return
        mean = status.step_rows / status.steps if status.steps else 0.0
        gauges: list[tuple[str, str, float]] = [
            ("asr_running", "Rows in the running batch.", status.running),
            ("asr_waiting", "Requests that have no row yet.", status.waiting),
            ("asr_batch_size_mean", "Rows per decode step, from the start on.", mean),
            ("asr_resident_adapters", "Adapters in memory.", len(status.resident)),
            ("asr_resident_adapter_bytes", "Their size.", status.resident_bytes),
            ("asr_adapter_budget_bytes", "Most bytes of adapters kept.", status.budget_bytes),
            ("asr_cache_bytes", "Size of the prefix caches.", status.cache_bytes),
            ("asr_ready", "Whether requests are accepted.", status.ready),
        ]
        counters: list[tuple[str, str, float]] = [
            ("asr_adapter_evictions", "Adapters dropped for others.", status.evictions),
            ("asr_adapter_loads", "Adapters read from disk.", status.loads),
            ("asr_cache_hits", "Requests that took states from a cache.", status.cache_hits),
            ("asr_steps", "Decode steps.", status.steps),
            ("asr_step_rows", "Rows summed over decode steps.", status.step_rows),
        ]
        for name, text, value in gauges:
            yield GaugeMetricFamily(name, text, value)
        for name, text, value in counters:
            yield CounterMetricFamily(name, text, value)
