"""What the router counts, in Prometheus' text format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

FIRST_BYTE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
START_BUCKETS = (0.5, 1, 2, 5, 10, 15, 20, 30, 45, 60, 90, 120, 300, 600)
LOAD_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
ERROR_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2, 5)

UNKNOWN_MODEL = "-"
"""Label for names that nobody serves: clients must not be able to invent label values."""


class Metrics:
    """One registry per router, so that several can live in one process."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "sllm_requests", "Requests answered", ["model", "route", "code"], registry=registry
        )
        self.in_flight = Gauge(
            "sllm_requests_in_flight", "Requests not answered yet", ["model"], registry=registry
        )
        self.disconnects = Counter(
            "sllm_client_disconnects", "Clients that left early", ["model"], registry=registry
        )
        self.first_byte = Histogram(
            "sllm_first_byte_seconds",
            "From request to the engine's first byte, waiting for a start included",
            ["model"],
            buckets=FIRST_BYTE_BUCKETS,
            registry=registry,
        )
        self.cold_requests = Counter(
            "sllm_cold_requests",
            "Requests that had to wait for a start",
            ["model"],
            registry=registry,
        )
        self.starts = Counter(
            "sllm_engine_starts", "Engine starts", ["model", "engine", "result"], registry=registry
        )
        self.start_seconds = Histogram(
            "sllm_engine_start_seconds",
            "From starting the process to ready",
            ["model", "engine"],
            buckets=START_BUCKETS,
            registry=registry,
        )
        self.load_seconds = Histogram(
            "sllm_load_seconds",
            "Weight loads by sllm inside engines",
            ["model", "tier"],
            buckets=LOAD_BUCKETS,
            registry=registry,
        )
        self.load_bytes = Counter(
            "sllm_load_bytes", "Bytes loaded by sllm inside engines", ["model", "tier"],
            registry=registry,
        )  # fmt: skip
        self.predicted = Gauge(
            "sllm_predicted_seconds", "The last prediction", ["kind", "model"], registry=registry
        )
        self.actual = Gauge(
            "sllm_actual_seconds", "What then happened", ["kind", "model"], registry=registry
        )
        self.prediction_error = Histogram(
            "sllm_prediction_error_ratio",
            "|predicted - actual| / actual, predictions from observations only",
            ["kind"],
            buckets=ERROR_BUCKETS,
            registry=registry,
        )
        self.stops = Counter(
            "sllm_engine_stops", "Engines that ended", ["model", "reason"], registry=registry
        )
        self.instances = Gauge(
            "sllm_instances", "Engine instances", ["model", "state"], registry=registry
        )

    def predicted_and_actual(
        self, kind: str, model: str, predicted: float, samples: int, actual: float
    ) -> None:
        """Keep one prediction beside its outcome; `samples` = 0 marks a prior."""
        self.predicted.labels(kind, model).set(predicted)
        self.actual.labels(kind, model).set(actual)
        if samples and actual > 0:
            self.prediction_error.labels(kind).observe(abs(predicted - actual) / actual)

    def render(self) -> bytes:
        """Everything, for ``/metrics``."""
        return generate_latest(self._registry)
