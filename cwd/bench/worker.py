"""`cwd bench worker`: what the whole path costs, with a model that does nothing, beside a bare echo over as many hops.

One Python client talks to a controller and a CPU worker in processes of their own, and in turns, in the same run, to a
compiled forwarder and a compiled echo that decide nothing. Both sides are driven by the same `cwd.Client`; on the bare
one its session takes the INFER that comes back for the answer. `raw` is plain pyzmq on the bare side, without the
client's own work. On both sides the one in the middle has a core, as has the one at the end (cwd runs its daemons like
that); the client may run anywhere.
"""

from __future__ import annotations

import os
import statistics
import struct
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from cwd.bench import executor
from cwd.bench.turns import in_turns, warm_up
from cwd.client import Client, Model
from cwd.client.connection import Connection
from cwd.client.hot import Reply, encode_infer
from cwd.client.session import FOREVER_NS, Session, State
from cwd.cluster import Child, LocalCluster
from cwd.errors import ControllerLost
from cwd.net.sockets import connect_dealer

MODEL = "noop"
_SLO = "5s"
_clock = time.perf_counter_ns
#: where a canonical INFER has its request id
_REQUEST = struct.Struct(">9xQ")


class EchoSession(Session):
    """A session with an echo: nobody to say HELLO to, and each INFER is its own answer."""

    def _connect(self, now_ns: int) -> None:
        super()._connect(now_ns)
        self.outbox.clear()
        self.state = State.READY
        self.credits = self.payload_bytes_max = 1 << 20
        self.clock.same_host()
        self._beat_ns = FOREVER_NS

    def receive(self, frames: Sequence[Any], now_ns: int, since_ns: int | None = None) -> None:
        (request,) = _REQUEST.unpack_from(frames[0])
        self._on_reply(Reply(request, 0, 0, 0, 0, 0, 0, 1, 0, 0), frames, now_ns,
                       now_ns if since_ns is None else since_ns)


class EchoConnection(Connection):
    _session_type = EchoSession


class EchoClient(Client):
    """`cwd.Client` against the bare forwarder, with a model that it was told of."""

    _connection_type = EchoConnection

    def __init__(self, endpoint: str, model: Model) -> None:
        super().__init__(endpoint, name="echo")
        # it stands for the controller that described the model
        self._session.epoch, self._session.models[MODEL, 0] = model.epoch, model
        socket = self._connection._socket
        if socket is None or not socket.poll(5000, zmq.POLLOUT):
            raise ControllerLost(f"no forwarder answers at {endpoint}")


class Raw:
    """The bare echo by plain pyzmq: two frames there and back."""

    def __init__(self, endpoint: str) -> None:
        self._socket = connect_dealer(zmq.Context.instance(), endpoint)
        self._items = [(self._socket, zmq.POLLIN)]
        self._frames = (encode_infer(1, 1, 10**9, 0, 0, (0, 0, 0, 0)), b"x")
        self._socket.poll(5000, zmq.POLLOUT)

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


class Driven:
    """The client's side of the benchmark, the same for cwd and for the echo."""

    def __init__(self, client: Client, model: Model) -> None:
        self._client = client
        self._input = np.zeros(model.inputs[0].shape, np.uint8)
        self.results: list[Any] = []

    def one(self) -> None:
        """One round trip; its result is kept."""
        self.results.append(self._client.infer(MODEL, self._input, _SLO))

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
    """{"one": {p50_ms, p99_ms, p999_ms, bare_p50_ms, ratio_to_bare, stages}, "inflight64": {rps, bare_rps, ...},
    "executor": see executor.py}."""
    from cwd.models.importers import add_zoo
    from cwd.models.profile import measure_cpu
    from cwd.models.repository import Repository

    with tempfile.TemporaryDirectory(prefix="cwd-bench-") as folder:
        repository = Repository(Path(folder) / "models", create=True)
        entry = add_zoo(repository, MODEL, "identity")[0]
        measure_cpu(repository, entry, budget_ns=10**9)
        bare_folder = Path(folder)
        cores = sorted(os.sched_getaffinity(0))
        middle, end = [cores[0]], [cores[1 % len(cores)]]
        clients, workers = f"ipc://{folder}/bare-clients.sock", f"ipc://{folder}/bare-workers.sock"
        forwarder = Child("forwarder", ["--clients", clients, "--workers", workers], module="cwd.bench.forwarder",
                          log=bare_folder / "forwarder.log", folder=bare_folder, cores=middle)
        echo = Child("echo", ["--connect", workers], module="cwd.bench.echo", log=bare_folder / "echo.log",
                     folder=bare_folder, cores=end)
        try:
            for child in (forwarder, echo):
                child.start()
                child.wait_ready(180)
            with LocalCluster(repository.root, device="cpu", pool="16MiB", page="1MiB", progress=progress,
                              cores={"controller": middle, "worker": end}) as cluster:
                cluster.wait_servable(timeout=120)
                with cluster.client(name="bench") as client:
                    model = client.lookup(MODEL)
                    with EchoClient(clients, model) as echo_client:
                        sides = {"bare": Driven(echo_client, model), "ours": Driven(client, model), "raw": Raw(clients)}
                        facts = {"one": _one(sides, requests, rounds, progress),
                                 f"inflight{inflight}": _many(sides, inflight, count, rounds, progress)}
                        sides["raw"].close()
        finally:
            for child in (echo, forwarder):
                child.stop(2)
    return {**facts, "executor": executor.measure(requests // 2, rounds, progress)}


def _one(sides: dict[str, Any], requests: int, rounds: int, progress: Callable[[str], None]) -> dict[str, Any]:
    warm_up(sides)
    sides["ours"].results.clear()
    times = in_turns(sides, requests, rounds, lambda text: progress(f"one in flight: {text}"))
    ms = {name: np.array(taken) / 1e6 for name, taken in times.items()}
    points = {"p50_ms": 0.5, "p99_ms": 0.99, "p999_ms": 0.999}
    facts = {name: float(np.quantile(ms["ours"], point)) for name, point in points.items()}
    bare_ms = float(np.quantile(ms["bare"], 0.5))
    return {**facts, "bare_p50_ms": bare_ms, "ratio_to_bare": facts["p50_ms"] / bare_ms,
            "stages": _stages(sides["ours"].results), "bare_p99_ms": float(np.quantile(ms["bare"], 0.99)),
            "raw_p50_ms": float(np.quantile(ms["raw"], 0.5))}


def _stages(results: Sequence[Any]) -> dict[str, float]:
    """Where the median round trip goes: medians, which need not add up exactly."""
    def median_ms(values: Any) -> float:
        return statistics.median(values) / 1e6

    return {
        "client_to_controller_and_back_ms": median_ms(r.round_trip_ns - r.total_ns for r in results),
        "queued_ms": median_ms(r.queued_ns for r in results),
        "executed_ms": median_ms(r.exec_ns for r in results),
        "worker_to_controller_ms": median_ms(r.total_ns - r.queued_ns - r.exec_ns for r in results),
    }


def _many(sides: dict[str, Any], inflight: int, count: int, rounds: int,
          progress: Callable[[str], None]) -> dict[str, float]:
    seconds = dict.fromkeys(sides, 0.0)
    share = max(count // rounds, 2 * inflight)
    for turn in range(rounds):
        for name, side in sides.items():
            begin = _clock()
            side.many(inflight, share)
            seconds[name] += (_clock() - begin) / 1e9
        progress(f"{inflight} in flight: turn {turn + 1} of {rounds}")
    rps = {name: share * rounds / taken for name, taken in seconds.items()}
    return {"rps": rps["ours"], "bare_rps": rps["bare"], "ratio_to_bare": rps["ours"] / rps["bare"],
            "raw_rps": rps["raw"]}
