"""Counts what is served, for Prometheus."""

from __future__ import annotations

import time

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Metrics:
    """The metrics of one service."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        ProcessCollector(registry=own)
        self.requests = Counter(
            "serve_requests", "Requests, by their answers.", ("path", "status"), registry=own
        )
        self.seconds = Histogram(
            "serve_request_seconds",
            "From the head of a request to the end of its answer.",
            ("path",),
            registry=own,
        )
        self.inside = Gauge("serve_requests_inside", "Requests on their way.", registry=own)
        self.batch = Histogram(
            "serve_run_requests",
            "Requests that shared a run.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=own,
        )
        self.run = Histogram("serve_run_seconds", "How long a run took.", registry=own)
        self.taken = self.answered = 0

    def seen(self, requests: int, seconds: float) -> None:
        """Counts a run."""
        self.batch.observe(requests)
        self.run.observe(seconds)

    def summary(self) -> str:
        """Returns how many requests there were, and how many of them were answered."""
        return f"{self.taken} requests were taken, and {self.answered} answered."

    async def page(self, request: Request) -> Response:
        """Answers with the metrics as text."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)


class Counted:
    """Counts the answers of an application, and times them.

    Args:
        app: The application.
        metrics: Where they are counted.
        paths: Those that are counted by name; others are one, so that no client invents series.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self._paths else "other"
        begun, status = time.perf_counter(), 500  # of an error that nobody expected
        self._metrics.taken += 1

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            self._metrics.answered += 1
            self._metrics.requests.labels(path, status).inc()
            self._metrics.seconds.labels(path).observe(time.perf_counter() - begun)
