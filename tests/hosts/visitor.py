"""A client on a host, told what to do by lines of JSON on stdin: `visitor.py ENDPOINT`. Times are its own clock's, in ns."""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from typing import Any

import numpy as np

import cwd


class Load(threading.Thread):
    """Requests at fixed times, whatever becomes of them; `ledger` has (code, sent, deadline, settled) of each."""

    def __init__(self, client: cwd.Client, rate: float, seconds: float, slo_s: float) -> None:
        super().__init__(daemon=True)
        self.client, self.rate, self.count, self.slo_s = client, rate, round(rate * seconds), slo_s
        self.ledger: list[tuple[int, int, int, int]] = []
        #: how many had an end told to them, and how many could not be sent
        self.settled = self.unsent = 0
        self._flying: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._waiter = threading.Thread(target=self._wait, daemon=True)

    def run(self) -> None:
        self._waiter.start()
        began_s = time.monotonic()
        for number in range(self.count):
            time.sleep(max(began_s + number / self.rate - time.monotonic(), 0))
            sent_ns = time.monotonic_ns()
            try:
                pending = self.client.submit(f"same-{number % 4:03}", np.array([number % 251], np.uint8), self.slo_s)
            except cwd.RequestError as error:
                self.unsent += 1
                self.ledger.append((int(error.code), sent_ns, sent_ns + round(self.slo_s * 1e9), time.monotonic_ns()))
                continue
            with self.client._connection._lock:
                if pending._call.done:
                    self._count(pending._call)
                else:
                    pending._call.on_done.append(self._count)
            self._flying.put(pending)
        self._flying.put(None)
        self._waiter.join()

    def _wait(self) -> None:
        """Whoever waits reads for all."""
        while (pending := self._flying.get()) is not None:
            error, call = pending.exception(timeout=30), pending._call
            self.ledger.append((0 if error is None else int(error.code), call.sent_ns, call.deadline_ns, call.done_ns))

    def _count(self, call: Any) -> None:
        self.settled += 1


class Visitor:
    """The client, and what it can be told."""

    def __init__(self, endpoint: str) -> None:
        self.client = cwd.Client(endpoint, name="visitor")
        self.load: Load | None = None

    def connect(self) -> str:
        self.client.connect(20)
        return self.state()

    def state(self) -> str:
        self.client._connection.look()
        return self.client._session.state.name

    def infer(self, model: str, values: list[float], dtype: str, slo: str) -> list[float]:
        return self.client.infer(model, np.array(values, dtype), slo).output.tolist()

    def start(self, rate: float, seconds: float, slo_s: float) -> None:
        for number in range(4):  # the names are looked up beforehand
            self.client.lookup(f"same-{number:03}")
        self.load = Load(self.client, rate, seconds, slo_s)
        self.load.start()

    def finish(self) -> dict[str, Any]:
        assert self.load is not None
        self.load.join(60)
        return {"asked": self.load.count, "ledger": self.load.ledger, "settled": self.load.settled,
                "unsent": self.load.unsent}

    def clock(self) -> dict[str, int]:
        self.client._connection.look()
        clock = self.client._session.clock
        return {"offset_ns": clock.offset_ns, "bound_ns": clock.bound_ns(time.monotonic_ns())}

    def connections(self) -> int:
        return self.client._session.generation


def main() -> None:
    visitor = Visitor(sys.argv[1])
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = {"done": getattr(visitor, command.pop("do"))(**command)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
