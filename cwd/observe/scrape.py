"""The metrics over HTTP, in a process that has time for it: `/metrics`, for Prometheus. Plain text, no authentication."""

from __future__ import annotations

import socket
import threading
from http.server import ThreadingHTTPServer
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import MetricsHandler

from cwd.controller.telemetry import name_lines
from cwd.observe.counts import Counts
from cwd.observe.families import Families
from cwd.observe.hottest import Hottest
from cwd.units import NS_PER_MS

#: records are kept until there are so many, or this much time has passed since the last were counted
FEED_RECORDS, FEED_NS = 16384, 200 * NS_PER_MS
#: a scraper that does not say what it wants is hung up on
TIMEOUT_S = 5


class Scraped:
    """Counts with a lock around them: one thread feeds, those of the HTTP server read."""

    def __init__(self, header: dict[str, Any], models: int, triton_aliases: bool) -> None:
        config = header["config"]
        self.counts = Counts(config["models_max"], config["gpus_max"])
        self._hottest = Hottest(self.counts, models)
        about = {"version": header.get("cwd", ""), "policy": config["policy"], "epoch": f"{header['epoch']:016x}"}
        self._families = Families(self.counts, self._hottest, about, triton_aliases)
        self._lock = threading.Lock()
        self._waiting: list[NDArray[np.void]] = []
        self._records = 0
        self._fed_ns = 0

    def take(self, rows: NDArray[np.void], now_ns: int) -> None:
        """Records of the log, in order; they are copied. Call it without any now and then: it counts what waits."""
        if len(rows):
            self._waiting.append(rows.copy())
            self._records += len(rows)
        if self._records >= FEED_RECORDS or now_ns - self._fed_ns >= FEED_NS:
            self._fed_ns = now_ns
            self._feed()

    def names(self, lines: bytes) -> None:
        """Whole lines of the names beside the log."""
        with self._lock:
            for name in name_lines(lines):
                self.counts.name(*name)

    def stats(self, values: dict[str, int]) -> None:
        """The loop's own counters, as they were just now."""
        with self._lock:
            self.counts.loop = values

    def collect(self) -> Any:
        with self._lock:
            return list(self._families.collect())

    def describe(self) -> list[Any]:
        return []

    def _feed(self) -> None:
        waiting, self._waiting, self._records = self._waiting, [], 0
        if waiting:
            with self._lock:
                self.counts.feed(np.concatenate(waiting))
                self._hottest.look()


def serve(listener: socket.socket, scraped: Scraped) -> ThreadingHTTPServer:
    """Answer scrapes on a listening socket from threads of this process, until it ends."""
    registry = CollectorRegistry()
    registry.register(scraped)  # type: ignore[arg-type]
    handler = type("Handler", (MetricsHandler.factory(registry),), {"timeout": TIMEOUT_S})
    server = ThreadingHTTPServer(listener.getsockname()[:2], handler, bind_and_activate=False)
    server.daemon_threads = True
    server.socket.close()
    server.socket = listener
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server
