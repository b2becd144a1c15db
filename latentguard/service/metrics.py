"""What Prometheus may know of the service: counts and durations, never who or what."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from latentguard.verdict import Verdict

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The service's metrics, in a registry of their own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "latentguard_requests", "HTTP requests", ["method", "route", "status"], registry=registry
        )
        self.latency = Histogram(
            "latentguard_request_seconds", "Time to answer", ["route"], buckets=_SECONDS, registry=registry
        )
        self.in_flight = Gauge("latentguard_requests_in_flight", "Requests not yet answered", registry=registry)
        self.batch_size = Histogram(
            "latentguard_batch_prompts", "Prompts of an encoder pass", buckets=_SIZES, registry=registry
        )
        self.batch_seconds = Histogram(
            "latentguard_batch_seconds", "Time of an encoder pass", buckets=_SECONDS, registry=registry
        )
        self.waiting = Gauge("latentguard_prompts_waiting", "Prompts that wait for a batch", registry=registry)
        self.verdicts = Counter("latentguard_verdicts", "Verdicts", ["decision", "category"], registry=registry)
        self.alerts = Counter("latentguard_alerts", "Anomaly alerts", ["kind"], registry=registry)
        self.failed_sign_ins = Counter(
            "latentguard_failed_authentications", "Requests refused for their key", ["reason"], registry=registry
        )
        self.images = Counter("latentguard_images", "Sealed images made", registry=registry)

    def batch(self, size: int, seconds: float) -> None:
        """Count an encoder pass."""
        self.batch_size.observe(size)
        self.batch_seconds.observe(seconds)

    def verdict(self, verdict: Verdict) -> None:
        """Count a verdict; the category is that of the bank, so there are few."""
        self.verdicts.labels(verdict.decision, (verdict.category or "none") if verdict.blocked else "").inc()

    def watch_queue(self, waiting: Callable[[], float]) -> None:
        """Take the length of the queue from this function."""
        self.waiting.set_function(waiting)

    def exposition(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)
