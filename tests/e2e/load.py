"""Requests without an end, for tests of what happens to a controller meanwhile."""

import threading
import time
from collections import Counter

from peers import BYTE

import cwd
from cwd.errors import Code


class Load:
    """A closed loop of `flight` requests in a thread, so that no slice is idle; counts how each ended."""

    def __init__(self, cluster, flight=64, slo="2s"):
        self._client = cluster.client()
        self._flight, self._slo = flight, slo
        self._enough = threading.Event()
        self.ended = Counter()
        self.sent = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        flying = []
        while not self._enough.is_set():
            try:
                while len(flying) < self._flight:
                    flying.append(self._client.submit(f"same-{self.sent % 4:03}", BYTE, self._slo))
                    self.sent += 1
                first = next(cwd.as_completed(flying, timeout=20))
            except cwd.RequestError as error:
                self.ended["unsent", error.code] += 1
                if self.ended["unsent", error.code] == 3:  # the controller has ended
                    break
                continue
            self._count(first)
            flying.remove(first)
        for pending in flying:
            self._count(pending)

    def _count(self, pending):
        error = pending.exception(timeout=20)
        self.ended[Code.OK if error is None else error.code] += 1

    def __enter__(self):
        self._thread.start()
        until = time.monotonic() + 60
        while self.ended[Code.OK] < 200:
            assert time.monotonic() < until, "no load comes about"
            time.sleep(0.01)
        return self

    def __exit__(self, *exception):
        self._enough.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), "a request hangs"
        self._client.close()
