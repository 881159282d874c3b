"""What the service counts, for Prometheus; each service has a registry of its own."""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from danceflow.service.live import Served

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_ROWS = (1, 2, 4, 8, 16, 32)


class Metrics:
    """The counters of one service."""

    def __init__(self, queue_length: Callable[[], int]) -> None:
        """Make them, all of them zero.

        Args:
            queue_length: tells how many pictures wait.
        """
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._requests = Counter(
            "danceflow_requests",
            "Requests by path and status.",
            ("path", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "danceflow_request_seconds",
            "From a request's head to the end of its answer.",
            ("path",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._batches = Histogram(
            "danceflow_batch_rows",
            "Pictures that were computed together.",
            buckets=_ROWS,
            registry=self._registry,
        )
        self._batch_seconds = Histogram(
            "danceflow_batch_seconds",
            "Seconds of a batch.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._dropped = Counter(
            "danceflow_dropped_pictures",
            "Pictures that were not made, as the client had gone.",
            registry=self._registry,
        )
        self._model = Gauge(
            "danceflow_model",
            "The model that answers: 1 at its name, version and digest.",
            ("name", "version", "digest"),
            registry=self._registry,
        )
        self._version = Gauge(
            "danceflow_model_version",
            "Version of the model that answers; 0: it comes from a folder.",
            registry=self._registry,
        )
        self._loads = Counter(
            "danceflow_model_loads", "Models that began to answer.", registry=self._registry
        )
        self._failures = Counter(
            "danceflow_model_failures",
            "Looks for a newer model that failed.",
            registry=self._registry,
        )
        Gauge(
            "danceflow_queue_pictures", "Pictures that wait.", registry=self._registry
        ).set_function(queue_length)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def computed(self, rows: int, seconds: float) -> None:
        """Count a batch."""
        self._batches.observe(rows)
        self._batch_seconds.observe(seconds)

    def dropped(self, rows: int) -> None:
        """Count pictures that nobody waited for."""
        self._dropped.inc(rows)

    def changed(self, served: Served) -> None:
        """Tell which model answers from now on."""
        self._model.clear()
        self._model.labels(served.name, str(served.version), served.digest[:12]).set(1)
        self._version.set(served.version)
        self._loads.inc()

    def failed(self) -> None:
        """Count a look for a newer model that failed."""
        self._failures.inc()

    def text(self) -> bytes:
        """Return all of them as Prometheus reads them."""
        return generate_latest(self._registry)
