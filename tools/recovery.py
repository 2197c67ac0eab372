"""How long until requests are answered again after kill -9 of the controller, an emulated worker, a torch worker.

    python tools/recovery.py --rounds 3

Each is killed under a light load and started anew at once, as a supervisor would; the time runs from its start to the
first request that is answered. A torch worker's bare imports are measured beside it, in the same run. Prints one JSON
object with, for each, the median and the longest of the rounds and the bound that it is held to; exits with 1 beyond it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import cwd
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
    """The facts of all three; `imports_s` is the median of as many rounds."""
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
    return {"controller": facts_of(controller, BOUND_S), "emulated_worker": facts_of(emulated, BOUND_S),
            "torch_worker": facts_of(torch, IMPORTS_FACTOR * imports + BOUND_S), "imports_s": round(imports, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    facts = recovery(parser.parse_args().rounds)
    print(json.dumps(facts))
    sys.exit(0 if all(value["kept"] for value in facts.values() if isinstance(value, dict)) else 1)


if __name__ == "__main__":
    main()
