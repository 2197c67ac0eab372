"""How long Python keeps the controller's loop waiting while an operator asks, beside a piece of Python measured here.

One admin asks for a page of `status` and a page of `model.ls` again and again, for as long as a load goes on. Each pair
gives one figure: the CPU time of the longest chunk of Python since the `status` before (`python_recent_max_ns`). After
each, the reference is timed in this process, under the same load: packing that status, the largest page there is, with
msgpack, and sending it over a socket of its own. The ratio of the two can be compared between machines.
"""

from __future__ import annotations

import statistics
import threading
import time
from pathlib import Path
from typing import Any

import msgpack
import zmq

from cwd.bench.loadgen import Load, LoadGenerator
from cwd.client.admin import Admin
from cwd.errors import CwdError

#: pairs that are not counted: what is used for the first time is slower
_FIRST = 10
_US = 1000


def chunks_under(generator: LoadGenerator, load: Load, context: zmq.Context[Any], run: Path) -> dict[str, Any]:
    """{python_asked, python_{p50,p90,p99,max}_us, python_reference_us, python_ratio} under the load, from a controller
    whose sockets are in `run`. Raises `CwdError`, also if the load was over before anything was counted."""
    loading = threading.Thread(target=generator.run, args=(load,), daemon=True)
    with Admin(f"ipc://{run}/admin.sock", name="bench") as admin, _Reference(context, run) as reference:
        admin.call("status")
        loading.start()
        longest_ns, reference_ns = [], []
        while loading.is_alive():
            admin.call("model.ls")
            status = admin.call("status")
            longest_ns.append(status["loop"]["python_recent_max_ns"])
            reference_ns.append(reference.measure_ns(status))
        loading.join()
    if len(longest_ns) <= _FIRST:
        raise CwdError(f"only {len(longest_ns)} statuses were answered under the load")
    return facts_of(longest_ns[_FIRST:], reference_ns[_FIRST:])


def facts_of(longest_ns: list[int], reference_ns: list[int]) -> dict[str, Any]:
    """What `chunks_under` gives, of the two lists of figures."""
    order = sorted(longest_ns)
    p50_ns, p90_ns, p99_ns = (order[len(order) * percent // 100] for percent in (50, 90, 99))
    middle_ns = statistics.median(reference_ns)
    return {
        "python_asked": len(order), "python_p50_us": p50_ns / _US, "python_p90_us": p90_ns / _US,
        "python_p99_us": p99_ns / _US, "python_max_us": order[-1] / _US,
        "python_reference_us": middle_ns / _US, "python_ratio": round(p50_ns / middle_ns, 3),
    }


class _Reference:
    """The reference piece: pack a map and send it, from one socket of this process to another."""

    def __init__(self, context: zmq.Context[Any], folder: Path) -> None:
        self._from, self._to = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
        self._to.bind(f"ipc://{folder}/reference.sock")
        self._from.connect(f"ipc://{folder}/reference.sock")

    def measure_ns(self, value: dict[str, Any]) -> int:
        """CPU time of the thread for one; what was sent is taken out afterwards."""
        before_ns = time.thread_time_ns()
        self._from.send(msgpack.packb(value))
        spent_ns = time.thread_time_ns() - before_ns
        self._to.recv()
        return spent_ns

    def __enter__(self) -> _Reference:
        return self

    def __exit__(self, *exception: object) -> None:
        self._from.close(0)
        self._to.close(0)
