"""How long until requests are answered again after kill -9 of the controller, an emulated worker, a torch worker; and of a
controller that has a standby, which is not started anew but followed.

    python tools/recovery.py --rounds 3

Each is killed under a light load and started anew at once, as a supervisor would; the time runs from its start to the
first request that is answered. A torch worker's bare imports are measured beside it, in the same run. With a standby the time
runs from the leader's death: of the controller alone, and of it and its elector at once, when the lease has to run out; these
need Debian's etcd-server and etcd3gw, and are left out without. Prints one JSON object with, for each, the median and the
longest of the rounds and the bound that it is held to; exits with 1 beyond it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import cwd
from cwd.cluster.child import Child
from cwd.config import endpoint
from cwd.models import profile
from cwd.models.importers import add_zoo
from cwd.models.repository import Repository

PAGE = "64KiB"
BOUND_S = 3.0
#: of a torch worker: its bare imports, times this, plus `BOUND_S`
IMPORTS_FACTOR = 1.5
#: what a torch worker cannot do without
IMPORTS = "import numpy, msgpack, zmq, click, numba, torch"
PATIENCE_S = 120.0


def answered_after(cluster: cwd.LocalCluster, client: cwd.Client, start: Callable[[], None]) -> float:
    """Seconds from `start` until the next answer, asked for again and again as a patient client would."""
    began = time.monotonic()
    start()
    while True:
        try:
            client.infer("mlp", np.zeros(16, np.float32), "1s")
            return time.monotonic() - began
        except cwd.RequestError:
            cluster.check()
            if time.monotonic() > began + PATIENCE_S:
                raise
            time.sleep(0.005)


def measure(repository: Path, device: str, rounds: int, kill: Callable[[cwd.LocalCluster], None],
            start: Callable[[cwd.LocalCluster], None]) -> list[float]:
    """Each round's seconds; a cluster of one worker on `device`."""
    with cwd.LocalCluster(repository, device=device, pool="4MiB", page=PAGE, timeout=600) as cluster:
        cluster.wait_servable()
        with cluster.client() as client:
            found = []
            for _ in range(rounds):
                for _ in range(20):
                    client.infer("mlp", np.zeros(16, np.float32), "5s")
                pendings = [client.submit("mlp", np.zeros(16, np.float32), "300ms") for _ in range(50)]
                kill(cluster)
                for pending in pendings:
                    pending.exception(timeout=5)  # TimeoutError: a request hangs
                found.append(answered_after(cluster, client, lambda: start(cluster)))
            return found


class Side:
    """A controller that takes part in an election."""

    def __init__(self, folder: Path, name: str, url: str, repository: Path) -> None:
        self.folder = folder / name
        self.folder.mkdir()
        self.controller = Child(name, [
            "controller", "--name", name, "--etcd", url, "--run-dir", str(self.folder), "--state-dir",
            str(self.folder / "state"), "--repository", str(repository), "--page", PAGE], log=folder / f"{name}.log",
            folder=self.folder)

    def start(self) -> None:
        """Returns when it leads or stands by."""
        self.controller.start()
        self.controller.wait_ready(600)

    def wait_open(self) -> None:
        """Until the controller lets anybody in."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(self.folder / "clients.sock")) == 0:
                    return
            time.sleep(0.002)

    def kill(self, and_elector: bool) -> None:
        if and_elector:
            pid = self.controller.pid
            os.kill(pid, signal.SIGSTOP)  # so that neither sees the other die
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                if b"cwd.controller.elector" in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(int(child), signal.SIGKILL)
        self.controller.kill()


def wait_answer(client: cwd.Client) -> None:
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            client.infer("mlp", np.zeros(16, np.float32), "300ms")
            return
        except cwd.RequestError:
            if time.monotonic() > until:
                raise
            time.sleep(0.005)


@contextlib.contextmanager
def etcd_at(folder: Path) -> Iterator[str]:
    """An etcd of our own, on ports of its own: its address."""
    urls = []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            urls.append(f"http://127.0.0.1:{probe.getsockname()[1]}")
    with open(folder / "etcd.log", "wb") as log:
        process = subprocess.Popen(
            ["etcd", "--data-dir", str(folder / "etcd"), "--listen-client-urls", urls[0], "--advertise-client-urls", urls[0],
             "--listen-peer-urls", urls[1], "--initial-advertise-peer-urls", urls[1], "--initial-cluster", f"default={urls[1]}"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield urls[0]
    finally:
        process.kill()
        process.wait()


def failover(repository: Path, rounds: int, and_elector: bool) -> dict[str, Any]:
    """Facts of the seconds from the leader's death to the next answer; who died stands by in the round after. The client and
    the worker know both controllers. `opened_s`: how much of that, at the median, had gone by when the standby let anybody in;
    the rest is theirs to find it."""
    with tempfile.TemporaryDirectory(prefix="cwd-standby-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        url = stack.enter_context(etcd_at(folder))
        leader, other = sides = [Side(folder, side, url, repository) for side in ("a", "b")]
        for side in sides:
            stack.callback(side.controller.kill)
            side.start()
        worker = Child("worker", [
            "worker", "--device", "emulated:1", "--endpoint", ",".join(endpoint("workers", side.folder) for side in sides),
            "--repo", str(repository), "--pages", "64", "--page", PAGE], log=folder / "worker.log", folder=folder)
        stack.callback(worker.kill)
        worker.start()
        worker.wait_ready(600)
        client = stack.enter_context(cwd.Client(",".join(endpoint("clients", side.folder) for side in sides)))
        found, opened = [], []
        for _ in range(rounds):
            wait_answer(client)
            began = time.monotonic()
            leader.kill(and_elector)
            other.wait_open()
            opened.append(time.monotonic() - began)
            wait_answer(client)
            found.append(time.monotonic() - began)
            leader.start()
            leader, other = other, leader
        return {**facts_of(found, BOUND_S), "opened_s": round(statistics.median(opened), 3),
                "opened_max_s": round(max(opened), 3)}


def imports_s() -> float:
    """What the bare imports take in a process of its own, start of the interpreter included."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    return time.monotonic() - began


def facts_of(seconds: list[float], bound_s: float) -> dict[str, Any]:
    return {"median_s": round(statistics.median(seconds), 3), "max_s": round(max(seconds), 3),
            "rounds": [round(value, 3) for value in seconds], "bound_s": round(bound_s, 3),
            "kept": statistics.median(seconds) <= bound_s}


def recovery(rounds: int) -> dict[str, Any]:
    """The facts of all; `imports_s` is the median of as many rounds."""
    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="cwd-recovery-") as folder:
        repository = Repository(Path(folder) / "models", create=True)
        entry = add_zoo(repository, "mlp", "mlp", seed=1)[0]
        profile.measure_cpu(repository, entry, repeats=5, page_bytes=64 << 10)
        times = {pair: 1_000_000 for pair in profile.pairs(entry.manifest.program)}
        profile.write_table(repository, entry.manifest.program_hash, "emulated", times, load_ns_per_page=1_000_000,
                            page_bytes=64 << 10)
        root = repository.root
        say("controller")
        controller = measure(root, "emulated:1", rounds, cwd.LocalCluster.kill_controller, cwd.LocalCluster.restart_controller)
        say("emulated worker")
        emulated = measure(root, "emulated:1", rounds, cwd.LocalCluster.kill_worker, cwd.LocalCluster.restart_worker)
        say("torch worker")
        torch = measure(root, "cpu", rounds, cwd.LocalCluster.kill_worker, cwd.LocalCluster.restart_worker)
        imports = statistics.median(imports_s() for _ in range(rounds))
        standby = {}
        if shutil.which("etcd") and importlib.util.find_spec("etcd3gw"):
            say("standby")
            standby["standby"] = failover(root, rounds, and_elector=False)
            say("standby, when the lease runs out")
            standby["standby_lease"] = failover(root, rounds, and_elector=True)
        else:
            say("no etcd, or no etcd3gw: no standby is measured")
    return {**standby, "controller": facts_of(controller, BOUND_S), "emulated_worker": facts_of(emulated, BOUND_S),
            "torch_worker": facts_of(torch, IMPORTS_FACTOR * imports + BOUND_S), "imports_s": round(imports, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    facts = recovery(parser.parse_args().rounds)
    print(json.dumps(facts))
    sys.exit(0 if all(value["kept"] for value in facts.values() if isinstance(value, dict)) else 1)


if __name__ == "__main__":
    main()
