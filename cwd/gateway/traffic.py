"""What came in over HTTP and what became of it: requests by route and status, and how long answers took.

It stands around the whole application, so what was refused before it reached a route is counted too; but not what the HTTP
server itself turns away: connections beyond its limit, and what is no HTTP. Routes are labels: there are as many as the
application has, whatever paths are asked for.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from typing import Any

from starlette.routing import Route

from cwd.gateway.auth import App
from cwd.observe import histogram

_now = time.monotonic_ns
#: the route of what no route is for; the status of who hung up before there was one
NO_ROUTE, NO_STATUS = "none", 0
#: as the controller's, so that one query fits both
BOUNDS_NS: list[int] = histogram.durations().bounds.tolist()


class Durations:
    """A histogram over `BOUNDS_NS`, for one value at a time."""

    __slots__ = ("counts", "sum_ns")

    def __init__(self) -> None:
        #: as many as there are bounds, and those above all of them
        self.counts = [0] * (len(BOUNDS_NS) + 1)
        self.sum_ns = 0

    def add(self, duration_ns: int) -> None:
        self.counts[bisect_left(BOUNDS_NS, duration_ns)] += 1
        self.sum_ns += duration_ns


class Traffic:
    """The counts of one gateway; `around` makes them those of an application."""

    def __init__(self) -> None:
        #: by route and status
        self.requests: Counter[tuple[str, int]] = Counter()
        #: of routes that answer predictions and feedback: by route and whether the status says success
        self.durations: dict[tuple[str, bool], Durations] = {}

    def around(self, app: App, routes: Iterable[Route], prefix: str = "") -> App:
        """`app`, with what passes counted. A route is called as its first path, after `prefix`."""
        labels: dict[Any, str] = {}
        for route in routes:
            labels.setdefault(route.endpoint, prefix + route.path)

        async def counted(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            began_ns, status = _now(), NO_STATUS

            async def noting(message: Any) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            try:
                await app(scope, receive, noting)
            finally:
                self._ended(labels.get(scope.get("endpoint"), NO_ROUTE), status, began_ns)

        return counted

    def _ended(self, route: str, status: int, began_ns: int) -> None:
        self.requests[route, status] += 1
        if status and route.endswith(("/infer", "/predict", "/feedback", "/update")):
            key = (route, 200 <= status < 300)
            found = self.durations.get(key) or self.durations.setdefault(key, Durations())
            found.add(_now() - began_ns)
