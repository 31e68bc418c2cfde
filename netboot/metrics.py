"""Figures for Prometheus: requests, call-home latency, and what the registry holds."""

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fleet import jobs, machines
from fleet.registry import Registry
from fleet.states import JobState

CONTENT_TYPE = "text/plain; version=1.0.0; charset=utf-8"
CALL_HOME_PATH = "/api/v1/call-home"
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """The figures of one application."""

    def __init__(self, registry: Registry) -> None:
        self._collectors = CollectorRegistry(auto_describe=False)
        self._requests = Counter(
            "muster_http_requests",
            "Requests by method, route and status.",
            ("method", "route", "status"),
            registry=self._collectors,
        )
        self._call_home = Histogram(
            "muster_call_home_seconds",
            "From the last byte of an accepted call home's headers to its answer.",
            buckets=_BUCKETS,
            registry=self._collectors,
        )
        self._collectors.register(_RegistryFigures(registry))

    def note(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        method = method if method in _METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()
        if route == CALL_HOME_PATH and status == 202:  # noqa: PLR2004
            self._call_home.observe(seconds)

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self._collectors)


class _RegistryFigures(Collector):
    """Figures that are read from the registry when they are asked for."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("muster_registry_up", "Whether the registry answers (1) or not (0).")
        try:
            with self._registry.read() as session:
                job_counts = jobs.counts(session)
                machine_counts = machines.counts(session)
        except SQLAlchemyError:
            up.add_metric((), 0)
            yield up
            return
        up.add_metric((), 1)
        yield up
        yield _by_state("muster_jobs", "Jobs by state.", job_counts)
        yield _by_state("muster_machines", "Machines by state.", machine_counts)
        depth = GaugeMetricFamily("muster_outbox_depth", "Jobs that Prefect has not been given.")
        depth.add_metric((), job_counts[JobState.QUEUED])
        yield depth


class CountRequests:
    """ASGI layer: notes route, status and duration of every request."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 500

        async def send_and_look(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_look)
        finally:
            # The template, never the path: a path is remote text without end.
            route = getattr(scope.get("route"), "path", "unmatched")
            self._metrics.note(scope["method"], route, status, time.perf_counter() - began)


def _by_state(name: str, text: str, counts: dict[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=("state",))
    for state, count in counts.items():
        family.add_metric((state,), count)
    return family
