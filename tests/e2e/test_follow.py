"""Two controllers, one after the other, with kill -9 between: workers, clients, the gateway and the command line follow."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter

import numpy as np
import pytest
from peers import BYTE, PAGE_BYTES, make_repository

import cwd
from cwd.cli.main import run
from cwd.cluster import Child
from cwd.errors import Code

pytest.importorskip("torch")
pytest.importorskip("uvicorn")
pytestmark = pytest.mark.e2e

GPUS = 24
MODEL = "same"
#: long enough for a controller to start in; a test's own, nobody waits for it
PATIENCE_S = 120


class Places:
    """Two clusters without workers, of which one serves at a time, and what follows them."""

    def __init__(self, folder):
        self.repository = make_repository(folder / "models", copies=1)
        self.folder = folder
        self.clusters = [cwd.LocalCluster(self.repository.root, workers=0, page=PAGE_BYTES, timeout=600) for _ in range(2)]
        self.children = []

    def endpoint(self, which):
        return ",".join(cluster.endpoint(which) for cluster in self.clusters)

    def start(self, name, *arguments):
        child = Child(name, [name, *arguments], log=self.folder / f"{name}.log", folder=self.folder)
        self.children.append(child)
        child.start()
        return child

    def close(self):
        for child in (*self.children, *self.clusters):
            child.stop(5) if isinstance(child, Child) else child.close()


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    made = Places(tmp_path_factory.mktemp("follow"))
    try:
        made.clusters[0].start()
        yield made
    finally:
        made.close()


class Asking(threading.Thread):
    """One request after the other, by `ask() -> code`; counts the codes, and the answers of the time being."""

    def __init__(self, ask):
        super().__init__(daemon=True)
        self.ask, self.codes, self.asked, self.fresh, self.done = ask, Counter(), 0, 0, False

    def run(self):
        while not self.done:
            self.asked += 1
            code = self.ask()
            self.codes[code] += 1
            self.fresh += code in (Code.OK, 200)
            time.sleep(0.005)

    def answered(self, count=20):
        """Wait until so many more requests have been answered."""
        self.fresh, until = 0, time.monotonic() + PATIENCE_S
        while self.fresh < count:
            assert self.is_alive() and time.monotonic() < until, self.codes
            time.sleep(0.01)

    def end(self):
        self.done = True
        self.join(60)
        assert not self.is_alive() and self.codes.total() == self.asked


class Gateway:
    """Plain HTTP to a gateway's process."""

    def __init__(self, child):
        child.wait_ready(60)
        self.port = int(child.status.rpartition(":")[2])
        self.refused = []

    def request(self, method, path, body=b""):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def ask(self):
        body = {"inputs": [{"name": "x", "shape": list(BYTE.shape), "datatype": "UINT8", "data": BYTE.tolist()}],
                "parameters": {"timeout": 400_000}}
        status, headers, answer = self.request("POST", f"/v2/models/{MODEL}/infer", json.dumps(body).encode())
        if status != 200:
            self.refused.append((status, json.loads(answer)["code"], headers["Retry-After"]))
        return status


def told(capfd, *arguments):
    """The facts that a command prints."""
    capfd.readouterr()
    assert run([*arguments, "--json"]) == 0, capfd.readouterr().err
    return json.loads(capfd.readouterr().out)


def code_of(ask):
    try:
        ask()
        return Code.OK
    except cwd.CwdError as error:
        return error.code


def test_everybody_follows_through_two_deaths(places, capfd):
    first, second = places.clusters
    places.start("worker", "--device", f"emulated:{GPUS}", "--name", "emu", "--endpoint", places.endpoint("workers"),
                 "--repo", str(places.repository.root), "--pages", "16", "--page-bytes", str(PAGE_BYTES)).wait_ready(300)
    first.wait_servable(MODEL)
    gateway = Gateway(places.start("gateway", "--port", "0", "--endpoint", places.endpoint("clients"),
                                   "--admin-endpoint", places.endpoint("admin")))
    epochs = [told(capfd, "status", "--admin-endpoint", places.endpoint("admin"))["epoch"]]
    with cwd.Client(places.endpoint("clients")) as client:
        native = Asking(lambda: code_of(lambda: client.infer(MODEL, BYTE, "400ms")))
        pendings = []  # of requests in flight all the time, each of which has to end
        open_loop = Asking(lambda: code_of(lambda: pendings.append(client.submit(MODEL, BYTE, "400ms"))))
        web = Asking(gateway.ask)
        asking = (native, open_loop, web)
        for each in asking:
            each.start()
        for here, there in ((first, second), (second, first)):
            for each in asking:
                each.answered()
            there_before = len(gateway.refused)
            here.kill_controller()
            wait_for(lambda: gateway.request("GET", "/v2/health/ready")[0] == 503)
            wait_for(lambda before=there_before: len(gateway.refused) > before)
            status, headers, _ = gateway.request("GET", "/v2/health/ready")
            assert status == 503 and int(headers["Retry-After"]) >= 1 and gateway.request("GET", "/v2/health/live")[0] == 200
            there.start()
            wait_for(lambda: gateway.request("GET", "/v2/health/ready")[0] == 200)
            for each in asking:
                each.answered()
            epochs.append(told(capfd, "status", "--admin-endpoint", places.endpoint("admin"))["epoch"])
            wait_for(lambda: sorted(
                worker["name"] for worker in told(capfd, "status", "--admin-endpoint", places.endpoint("admin"))["workers"].values()
            ) == sorted(f"emu/{g}" for g in range(GPUS)))
        for each in asking:
            each.end()
        outcomes = Counter(code_of(lambda pending=pending: pending.result(30)) for pending in pendings)
        assert outcomes.total() == len(pendings) == open_loop.codes[Code.OK] and outcomes[Code.OK]
        assert set(native.codes) >= {Code.OK, Code.CONTROLLER_LOST}
        assert np.array_equal(client.infer(MODEL, BYTE, "20s").output, BYTE * 0)
    assert epochs == sorted(set(epochs)), "each leader's epoch is above those before"
    # (404 is what a controller says that has just started and reads its repository: these are no standbys)
    assert {200, 503} <= set(web.codes) <= {200, 404, 503}
    lost = [after for status, code, after in gateway.refused if code == "CONTROLLER_LOST"]
    assert lost and all(after is not None and int(after) >= 1 for after in lost)


def wait_for(happens):
    until = time.monotonic() + PATIENCE_S
    while not happens():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)
