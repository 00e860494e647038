"""What a server tells Prometheus."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self):
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "dina_requests", "Requests by endpoint and HTTP status", ["endpoint", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "dina_request_seconds", "From the first byte to the answer", ["endpoint"], registry=self.registry
        )
        self.batch_samples = Histogram(
            "dina_batch_samples", "Samples in a batch", buckets=BATCH_BUCKETS, registry=self.registry
        )
        self.queued_samples = Gauge(
            "dina_queued_samples", "Samples accepted and not answered yet", registry=self.registry
        )
        self.model_faults = Counter(
            "dina_model_faults", "Good requests that the model failed on", registry=self.registry
        )

    @contextmanager
    def in_queue(self, samples: int) -> Iterator[None]:
        """So many samples wait for an answer while this context lasts."""
        self.queued_samples.inc(samples)
        try:
            yield
        finally:
            self.queued_samples.dec(samples)
