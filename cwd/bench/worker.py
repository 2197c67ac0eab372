"""`cwd bench worker`: what the whole path costs, with a model that does nothing, beside a bare echo over as many hops.

One Python client talks to a controller and a CPU worker in processes of their own, and in turns, in the same run, to a
compiled forwarder and a compiled echo that decide nothing and decode nothing. Ours goes through `cwd.Client`; the bare
side is the plain pyzmq that it is made of: the same socket type, frames and poll, so the client's own cost counts
against us.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from cwd.client import Client
from cwd.client.hot import encode_infer
from cwd.cluster import Child, LocalCluster
from cwd.net.sockets import connect_dealer

MODEL = "noop"
_SLO = "5s"
_clock = time.perf_counter_ns


class Bare:
    """The bare echo's client: pyzmq, two frames there and back."""

    def __init__(self, endpoint: str) -> None:
        self._socket = connect_dealer(zmq.Context.instance(), endpoint)
        self._items = [(self._socket, zmq.POLLIN)]
        self._frames = (encode_infer(1, 1, 10**9, 0, 0, (0, 0, 0, 0)), b"x")
        self._socket.poll(5000, zmq.POLLOUT)
        self._flying = 0

    def one(self) -> None:
        """One round trip."""
        self._socket.send_multipart(self._frames, zmq.DONTWAIT)
        zmq.zmq_poll(self._items, 5000)
        self._socket.recv_multipart(zmq.DONTWAIT)

    def many(self, inflight: int, count: int) -> None:
        """`count` round trips with `inflight` at once."""
        socket, frames = self._socket, self._frames
        for _ in range(inflight):
            socket.send_multipart(frames)
        for _ in range(count - inflight):
            socket.recv_multipart()
            socket.send_multipart(frames)
        for _ in range(inflight):
            socket.recv_multipart()

    def close(self) -> None:
        self._socket.close(0)


class Ours:
    """The same through the whole of cwd."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._input = np.zeros(client.lookup(MODEL).inputs[0].shape, np.uint8)
        self.timings: list[dict[str, Any]] = []

    def one(self) -> None:
        """One round trip; its timing is kept."""
        result = self._client.infer(MODEL, self._input, _SLO)
        self.timings.append(result.timing())

    def many(self, inflight: int, count: int) -> None:
        """`count` requests with `inflight` at once."""
        submit, x = self._client.submit, self._input
        window = deque(submit(MODEL, x, _SLO) for _ in range(inflight))
        for _ in range(count - inflight):
            window.popleft().result()
            window.append(submit(MODEL, x, _SLO))
        while window:
            window.popleft().result()


def run(requests: int = 4000, inflight: int = 64, rounds: int = 8, count: int = 16000,
        progress: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """{"one": {p50_ms, p99_ms, p999_ms, bare_p50_ms, ratio_to_bare, stages}, "inflight64": {rps, bare_rps, ...}}."""
    from cwd.models.importers import add_zoo
    from cwd.models.profile import measure_cpu
    from cwd.models.repository import Repository

    with tempfile.TemporaryDirectory(prefix="cwd-bench-") as folder:
        repository = Repository(Path(folder) / "models", create=True)
        entry = add_zoo(repository, MODEL, "identity")[0]
        measure_cpu(repository, entry, budget_ns=10**9)
        bare_folder = Path(folder)
        clients, workers = f"ipc://{folder}/bare-clients.sock", f"ipc://{folder}/bare-workers.sock"
        forwarder = Child("forwarder", ["--clients", clients, "--workers", workers], module="cwd.bench.forwarder",
                          log=bare_folder / "forwarder.log", folder=bare_folder)
        echo = Child("echo", ["--connect", workers], module="cwd.bench.echo", log=bare_folder / "echo.log",
                     folder=bare_folder)
        try:
            for child in (forwarder, echo):
                child.start()
                child.wait_ready(180)
            with LocalCluster(repository.root, device="cpu", pool="16MiB", page="1MiB", progress=progress) as cluster:
                cluster.wait_servable(timeout=120)
                with cluster.client(name="bench") as client:
                    bare, ours = Bare(clients), Ours(client)
                    facts = {"one": _one(bare, ours, requests, rounds, progress),
                             f"inflight{inflight}": _many(bare, ours, inflight, count, rounds, progress)}
                    bare.close()
        finally:
            for child in (echo, forwarder):
                child.stop(2)
    return facts


def _one(bare: Bare, ours: Ours, requests: int, rounds: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Turns of each, so that what else happens on the machine hits both."""
    times: dict[str, list[int]] = {"bare": [], "ours": []}
    for warm in (bare.one, ours.one):
        for _ in range(200):
            warm()
    ours.timings.clear()
    for turn in range(rounds):
        for name, one in (("bare", bare.one), ("ours", ours.one)):
            for _ in range(requests // rounds):
                begin = _clock()
                one()
                times[name].append(_clock() - begin)
        progress(f"one in flight: turn {turn + 1} of {rounds}")
    mine, other = np.array(times["ours"]) / 1e6, np.array(times["bare"]) / 1e6
    facts = {f"p{name}_ms": float(np.quantile(mine, q)) for name, q in (("50", 0.5), ("99", 0.99), ("999", 0.999))}
    bare_p50 = float(np.quantile(other, 0.5))
    return {**facts, "bare_p50_ms": bare_p50, "ratio_to_bare": facts["p50_ms"] / bare_p50, "stages": _stages(ours),
            "bare_p99_ms": float(np.quantile(other, 0.99))}


def _stages(ours: Ours) -> dict[str, float]:
    """Where the median round trip goes: medians, which need not add up exactly."""
    def median_ms(values: Any) -> float:
        return statistics.median(values) / 1e6

    timings = ours.timings
    return {
        "client_to_controller_and_back_ms": median_ms(t["round_trip_ns"] - t["total_ns"] for t in timings),
        "queued_ms": median_ms(t["queued_ns"] for t in timings),
        "executed_ms": median_ms(t["exec_ns"] for t in timings),
        "worker_to_controller_ms": median_ms(t["total_ns"] - t["queued_ns"] - t["exec_ns"] for t in timings),
    }


def _many(bare: Bare, ours: Ours, inflight: int, count: int, rounds: int,
          progress: Callable[[str], None]) -> dict[str, float]:
    seconds = {"bare": 0.0, "ours": 0.0}
    share = max(count // rounds, 2 * inflight)
    for turn in range(rounds):
        for name, many in (("bare", bare.many), ("ours", ours.many)):
            begin = _clock()
            many(inflight, share)
            seconds[name] += (_clock() - begin) / 1e9
        progress(f"{inflight} in flight: turn {turn + 1} of {rounds}")
    rps, bare_rps = share * rounds / seconds["ours"], share * rounds / seconds["bare"]
    return {"rps": rps, "bare_rps": bare_rps, "ratio_to_bare": rps / bare_rps}
