"""What the server counts, in the format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "WEBSOCKET"})


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "reemote_requests", "Requests.", ["method", "route", "status"], registry=self._registry
        )
        self._latency = Histogram(
            "reemote_request_seconds", "Time to answer a request.", ["route"], registry=self._registry
        )
        self._runs = Counter("reemote_runs", "Runs of operations.", ["operation"], registry=self._registry)
        self._running = Gauge("reemote_runs_active", "Runs under way.", registry=self._registry)
        self._hosts = Counter("reemote_hosts", "Hosts, by how their part ended.", ["outcome"], registry=self._registry)
        self._connections = Gauge("reemote_open_connections", "Open SSH connections.", registry=self._registry)

    def watch(self, running: Callable[[], int], connections: Callable[[], int]) -> None:
        """Say where the numbers of the moment come from."""
        self._running.set_function(running)
        self._connections.set_function(connections)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request. *route* is the pattern, not the path, of which there are endless ones."""
        known = method if method in _METHODS else "other"  # a client may make up endless ones, too
        self._requests.labels(known, route, str(status)).inc()
        self._latency.labels(route).observe(seconds)

    def run(self, operation: str) -> None:
        """Count a run."""
        self._runs.labels(operation).inc()

    def hosts(self, outcomes: Mapping[str, int]) -> None:
        """Count the hosts of a run by outcome: ``ok``, ``changed``, or the name of the failure."""
        for outcome, count in outcomes.items():
            self._hosts.labels(outcome).inc(count)

    def text(self) -> bytes:
        """Write all of it."""
        return generate_latest(self._registry)
