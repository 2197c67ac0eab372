"""What a worker's executor adds to an execution, beside a bare handoff between two threads; and how well it is predicted.

A scripted controller sends EXECs one at a time to a CPU worker in a process of its own, with pauses, so that every thread
sleeps when an action comes. The worker's own times say how long it took from the message to the start of the execution,
and from its end to the result's being sent. Two bare handoffs beside it, in turns: from one Python thread to another by a
`queue.SimpleQueue`, which is what an executor in Python would begin with; and the least that any can do with, where one
thread signals an eventfd and another that sleeps on it in compiled code wakes.
"""

from __future__ import annotations

import os
import queue
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cwd.bench.lone_controller import LoneController
from cwd.cluster import Child
from cwd.jit import lean_kernel
from cwd.net.clock import monotonic_ns
from cwd.net.native import load_acquire, store_release
from cwd.net.wake import eventfd_clear, eventfd_signal, make_eventfd, set_timer_slack, wait_fd
from cwd.wire.messages import Type

#: between two actions, so that the threads sleep
PAUSE_S = 0.001
#: the next execution is predicted by the median of so many before it
WINDOW = 10
PAGE_BYTES = 1 << 20

# words of the memory that both threads of a handoff see: when it was given, and when it was taken; 0: not yet
_GIVEN, _TAKEN, _STOP = 0, 8, 16


@lean_kernel
def _take(words, fd):
    """The thread that sleeps: note when it was woken, until it is stopped."""
    while True:
        wait_fd(fd, -1)
        now_ns = monotonic_ns()
        eventfd_clear(fd)
        if load_acquire(words, _STOP) != 0:
            return
        store_release(words, _TAKEN, now_ns)


@lean_kernel
def _give(words, fd):
    """The thread that wakes the other: when it began to."""
    store_release(words, _TAKEN, 0)
    now_ns = monotonic_ns()
    eventfd_signal(fd)
    return now_ns


def queue_handoffs(count: int) -> list[int]:
    """Latencies in ns from a Python thread that puts into a queue to one that sleeps on it."""
    given: queue.SimpleQueue[int] = queue.SimpleQueue()
    found: list[int] = []

    def sleeper() -> None:
        set_timer_slack(1_000)
        while given_ns := given.get():
            found.append(time.monotonic_ns() - given_ns)

    set_timer_slack(1_000)  # compiled before the thread asks for it
    thread = threading.Thread(target=sleeper, daemon=True)
    thread.start()
    for _ in range(count):
        time.sleep(PAUSE_S)
        given.put(time.monotonic_ns())
    given.put(0)
    thread.join()
    return found


def eventfd_handoffs(count: int) -> list[int]:
    """Latencies in ns of waking a thread that sleeps on an eventfd in compiled code."""
    words, fd = np.zeros(24, np.int64), make_eventfd()
    _take_warm(words, fd)

    def sleeper() -> None:
        set_timer_slack(1_000)
        _take(words, fd)

    thread = threading.Thread(target=sleeper, daemon=True)
    thread.start()
    found = []
    for _ in range(count):
        time.sleep(PAUSE_S)
        given_ns = _give(words, fd)
        while words[_TAKEN] == 0:
            time.sleep(0)
        found.append(int(words[_TAKEN] - given_ns))
    words[_STOP] = 1
    eventfd_signal(fd)
    thread.join()
    os.close(fd)
    return found


def _take_warm(words: np.ndarray, fd: int) -> None:
    """Compile both sides."""
    words[_STOP] = 1
    _give(words, fd)
    _take(words, fd)
    words[_STOP] = 0


def measure(count: int, rounds: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """{"before_us", "after_us", "overhead_us", "handoff_us", "eventfd_us": {p50, p99} each; the medians'
    "ratio_to_handoff" and "ratio_to_eventfd"; "prediction"}."""
    from cwd.models.importers import add_zoo
    from cwd.models.repository import Repository

    with tempfile.TemporaryDirectory(prefix="cwd-bench-") as folder:
        repository = Repository(Path(folder) / "models", create=True)
        models = {name: add_zoo(repository, name, name, seed=1)[0] for name in ("identity", "convnet5m")}
        endpoint = f"ipc://{folder}/workers.sock"
        worker = Child("worker", ["worker", "--device", "cpu", "--repo", str(repository.root), "--endpoint", endpoint,
                                  "--pages", "64", "--page", str(PAGE_BYTES)],
                       log=Path(folder) / "worker.log", folder=Path(folder))
        with LoneController(endpoint) as controller:
            worker.start()
            try:
                driver = Driver(controller, models)
                before, after, handoffs, eventfds = [], [], [], []
                for turn in range(rounds):
                    handoffs += queue_handoffs(count // rounds)
                    eventfds += eventfd_handoffs(count // rounds)
                    for fields in driver.run("identity", count // rounds):
                        before.append(fields["begin_ns"] - fields["received_ns"])
                        after.append(fields["sent_ns"] - fields["end_ns"])
                    progress(f"executor: turn {turn + 1} of {rounds}")
                prediction = _prediction([fields["end_ns"] - fields["begin_ns"]
                                          for fields in driver.run("convnet5m", max(count // 4, 3 * WINDOW))])
            finally:
                worker.stop(10)
    whole = np.array(before) + np.array(after)
    facts = {name: _points(samples) for name, samples in (
        ("before_us", before), ("after_us", after), ("overhead_us", whole), ("handoff_us", handoffs),
        ("eventfd_us", eventfds))}
    overhead_us = facts["overhead_us"]["p50"]
    return {**facts, "ratio_to_handoff": overhead_us / facts["handoff_us"]["p50"],
            "ratio_to_eventfd": overhead_us / facts["eventfd_us"]["p50"], "prediction": prediction}


class Driver:
    """Two models on a worker, executed one at a time."""

    def __init__(self, controller: LoneController, models: dict[str, Any]) -> None:
        self._controller, self._models = controller, list(models)
        self._peer, _ = controller.greet()
        self._payloads: dict[str, bytes] = {}
        for index, (name, entry) in enumerate(models.items()):
            manifest = entry.manifest
            self._ask(Type.PREPARE, name=manifest.name, version=manifest.version, program=manifest.program_hash,
                      image=manifest.image_hash, program_index=index)
            self._ask(Type.LOAD, model=index + 1, pages=manifest.pages(PAGE_BYTES), image=manifest.image_hash,
                      program_index=index)
            self._payloads[name] = bytes(manifest.program.payload_bytes(()))

    def run(self, name: str, count: int) -> list[dict[str, Any]]:
        """The results' fields."""
        found, payload = [], self._payloads[name]
        for _ in range(count):
            time.sleep(PAUSE_S)
            found.append(self._ask(Type.EXEC, (payload,), model=self._models.index(name) + 1, batch=1, size_class=0,
                                   rows=[(0, 0, 0, 0)]))
        return found

    def _ask(self, kind: Type, payload: tuple[bytes, ...] = (), **fields: Any) -> dict[str, Any]:
        self._controller.act(self._peer, kind, payload, **fields)
        result, _ = self._controller.result(self._peer)
        assert result["status"] == 0, result
        return result


def _prediction(durations_ns: list[int]) -> dict[str, float]:
    """How far the next execution is from the median of the last ones: absolute, and as a part of the median."""
    last: deque[int] = deque(durations_ns[:WINDOW], WINDOW)
    errors = []
    for duration_ns in durations_ns[WINDOW:]:
        errors.append(abs(duration_ns - float(np.median(last))))
        last.append(duration_ns)
    median_ns = float(np.median(durations_ns))
    p50_ns, p99_ns = (float(np.quantile(errors, point)) for point in (0.5, 0.99))
    return {"median_us": median_ns / 1e3, "p50_error_us": p50_ns / 1e3, "p99_error_us": p99_ns / 1e3,
            "p50_error_share": p50_ns / median_ns, "p99_error_share": p99_ns / median_ns}


def _points(samples_ns: Any) -> dict[str, float]:
    return {name: float(np.quantile(samples_ns, point)) / 1e3 for name, point in (("p50", 0.5), ("p99", 0.99))}
