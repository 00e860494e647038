"""The server's Prometheus metrics."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The metrics of one server, in a separate registry."""

    def __init__(self):
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "dina_requests", "Requests by endpoint and HTTP status", ["endpoint", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "dina_request_seconds",
            "Time from the start of a request to its response",
            ["endpoint"],
            registry=self.registry,
        )
        self.batch_samples = Histogram(
            "dina_batch_samples", "Samples in a batch", buckets=BATCH_BUCKETS, registry=self.registry
        )
        self.queued_samples = Gauge(
            "dina_queued_samples", "Samples accepted and not yet answered", registry=self.registry
        )
        self.model_faults = Counter(
            "dina_model_faults", "Valid requests on which the model failed", registry=self.registry
        )

    @contextmanager
    def in_queue(self, samples: int) -> Iterator[None]:
        """Context in which `samples` samples count as queued."""
        self.queued_samples.inc(samples)
        try:
            yield
        finally:
            self.queued_samples.dec(samples)
