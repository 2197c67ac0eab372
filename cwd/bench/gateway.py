"""`cwd bench gateway`: what HTTP adds to a request, with a model that does nothing, on one connection.

One Python client sends the same request in turns through `cwd gateway` and by `cwd.Client` to the same controller and
CPU worker. The HTTP side is one kept-alive connection and binary tensors over a bare socket, which reads no more of an
answer than its length: so the difference is the gateway's, and not that of an HTTP library. Controller and worker have
cores of their own (on two, that is all there are); the gateway and the client run where there is room.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cwd.bench.turns import in_turns, warm_up
from cwd.client import Client
from cwd.cluster import Child, LocalCluster
from cwd.errors import ControllerLost, CwdError

MODEL = "noop"
_SLO_US = 5_000_000


class Http:
    """One connection to a gateway, and one request's bytes."""

    def __init__(self, port: int, binary: bool = True, name: str = MODEL) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = request_bytes(binary, name)

    def one(self) -> bytes:
        """One round trip; the answer's body. Raises `CwdError` for any status but 200."""
        self._socket.sendall(self._request)
        answer = self._socket.recv(65536)
        while (end := answer.find(b"\r\n\r\n")) < 0:
            answer += self._more()
        head = answer[:end].lower()
        length = int(head.partition(b"content-length:")[2].split(b"\r", 1)[0])
        while len(answer) < end + 4 + length:
            answer += self._more()
        if not head.startswith(b"http/1.1 200"):
            raise CwdError(f"the gateway answered {answer[:200]!r}")
        return answer[end + 4:]

    def _more(self) -> bytes:
        found = self._socket.recv(65536)
        if not found:
            raise ControllerLost("the gateway closed the connection")
        return found

    def close(self) -> None:
        self._socket.close()


def request_bytes(binary: bool, name: str = MODEL) -> bytes:
    """A whole request for the no-op model, or an application of it; the input is one byte."""
    tensor: dict[str, Any] = {"name": "x", "datatype": "UINT8", "shape": [1]}
    if binary:
        tensor["parameters"] = {"binary_data_size": 1}
    else:
        tensor["data"] = [7]
    parameters = {"timeout": _SLO_US, "binary_data_output": binary}
    text = json.dumps({"parameters": parameters, "inputs": [tensor]}).encode()
    body = text + b"\x07" * binary
    head = f"POST /v2/models/{name}/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    if binary:
        head += f"Inference-Header-Content-Length: {len(text)}\r\n"
    return head.encode() + b"\r\n" + body


class Native:
    """The same request by the native client."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._input = np.array([7], np.uint8)

    def one(self) -> None:
        """One round trip."""
        self._client.infer(MODEL, self._input, "5s")


def run(requests: int = 4000, rounds: int = 8, progress: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """{native_p50_ms, gateway_p50_ms, difference_ms, gateway_json_p50_ms, and the p99 of each}."""
    from cwd.models.importers import add_zoo
    from cwd.models.profile import measure_cpu
    from cwd.models.repository import Repository

    with tempfile.TemporaryDirectory(prefix="cwd-bench-") as folder:
        repository = Repository(Path(folder) / "models", create=True)
        measure_cpu(repository, add_zoo(repository, MODEL, "identity")[0], budget_ns=10**9)
        cores = sorted(os.sched_getaffinity(0))
        with LocalCluster(repository.root, device="cpu", pool="16MiB", page="1MiB", progress=progress,
                          cores={"controller": cores[:1], "worker": [cores[1 % len(cores)]]}) as cluster:
            cluster.wait_servable(timeout=120)
            gateway = gateway_of(cluster)
            try:
                gateway.start()
                gateway.wait_ready(60)
                with cluster.client(name="bench") as client:
                    port = int(gateway.status.rpartition(":")[2])
                    sides = {"native": Native(client), "gateway": Http(port), "gateway_json": Http(port, binary=False)}
                    return measured(sides, requests, rounds, progress)
            finally:
                gateway.stop(5)


def gateway_of(cluster: LocalCluster, *flags: str) -> Child:
    """A gateway of a cluster's own, on any free port, which its status line names."""
    return Child("gateway", ["gateway", "--port", "0", "--endpoint", cluster.endpoint(), "--drain", "0s", "--apps", "none",
                             *flags],
                 log=cluster.folder / "gateway.log", folder=cluster.folder)


def measured(sides: dict[str, Any], requests: int, rounds: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """The medians and tails of the sides, and what the gateway adds to the median, ms."""
    warm_up(sides)
    times = in_turns(sides, requests, rounds, progress)
    facts: dict[str, Any] = {}
    for name, taken in times.items():
        facts[f"{name}_p50_ms"], facts[f"{name}_p99_ms"] = (float(np.quantile(taken, at)) / 1e6 for at in (0.5, 0.99))
    return {"requests": requests, **facts, "difference_ms": facts["gateway_p50_ms"] - facts["native_p50_ms"]}
