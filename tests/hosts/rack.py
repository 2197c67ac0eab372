"""A controller, two emulated workers, a CPU worker and a gateway, each on a host and by a clock of its own, over tcp with keys.

Clients are processes on hosts too (`Visitor`): what they measure, they measure by their own clocks. The hosts' clocks
differ by whole numbers of seconds that are known here, exactly and for ever: that is the truth which estimates are held against.
"""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from cwd.client.admin import Admin
from cwd.models import profile
from cwd.models.importers import add_zoo
from cwd.models.repository import Repository
from cwd.net.keys import KeyFolder
from cwd.net.notify import NotifyListener
from cwd.units import NS_PER_S
from tools.hosts import Host, Hosts

ROOT = Path(__file__).resolve().parents[2]
PAGE_BYTES = 64 << 10
EXEC_NS = 2_000_000
CLIENTS, WORKERS, HTTP = 5570, 5571, 8000
#: a cold machine compiles first
START_S = 150.0
#: what only something broken needs
PATIENCE_S = 20.0
#: the product's defaults, which the tests wait for
HEARTBEAT_S, LOST_S = .25, 1.5
#: of each host's clock, seconds ahead of this machine's
CLOCKS_S = {"control": 86_400, "first": 1_000_000_000, "second": 0, "torch": 7_200, "front": 500_000, "visitor": 172_800,
            "lonely": 3}


def until(true: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """What `true` says as soon as that is something; AssertionError with `what` after a time."""
    end_s = time.monotonic() + patience_s
    while not (found := true()):
        assert time.monotonic() < end_s, f"it never came about: {what}"
        time.sleep(.02)
    return found


class Daemon:
    """`cwd` on a host, with the keys of `who`."""

    def __init__(self, rack: Rack, host: Host, who: str, *flags: str) -> None:
        self.name, self._rack, self._host = host.name, rack, host
        self._argv = [sys.executable, "-m", "cwd", *flags]
        self._keys = rack.keys_of(who)
        self.log = rack.folder / f"{host.name}.log"
        self._listener: NotifyListener | None = None
        self.start()

    def start(self) -> None:
        self.close()
        self._listener = NotifyListener(self._rack.folder)
        self.process = self._host.run(self._argv, stdout=self.log, cwd=ROOT,
                                      env={**self._keys, "NOTIFY_SOCKET": self._listener.path, "PYTHONPATH": str(ROOT)})

    def ready(self) -> bool:
        """Whether it has said so; a socket of this kind holds ten messages, and the eleventh is lost, so look often."""
        assert self._listener is not None
        assert self.process.poll() is None, f"{self.name} has ended:\n{self.log.read_text()[-2000:]}"
        while self._listener.receive(0.0):
            pass
        return self._listener.ready

    def close(self) -> None:
        if self._listener is not None:
            self._listener.close()


class Visitor:
    """tests/hosts/visitor.py on a host: a client that does what it is told, and reports by its own clock."""

    def __init__(self, rack: Rack, host: Host, endpoint: str) -> None:
        self.host = host
        self.process = host.run([sys.executable, str(Path(__file__).with_name("visitor.py")), endpoint],
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=rack.folder / f"{host.name}.log",
                                env={**rack.keys_of("client"), "PYTHONPATH": str(ROOT)})

    def ask(self, do: str, **arguments: Any) -> Any:
        """Have something done, and wait for what comes of it."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        self.process.stdin.flush()
        assert select.select([self.process.stdout], [], [], 2 * PATIENCE_S)[0], f"{do}: no answer"
        answer = json.loads(self.process.stdout.readline() or '{"error": "it has ended"}')
        assert "error" not in answer, answer
        return answer["done"]

    def time_s(self) -> float:
        """What its clock says now."""
        return time.monotonic() + self.host.clock_s

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class Rack:
    """All of it, READY; ways from workers and clients to the controller that can be made slow or broken."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._stack = stack
            self._make_keys()
            self._make_models()
            self.hosts = stack.enter_context(Hosts(seed=1))
            self.host = {name: self.hosts.add(name, clock_s=clock_s) for name, clock_s in CLOCKS_S.items()}
            self._start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def keys_of(self, who: str) -> dict[str, str]:
        """What the environment of a peer holds."""
        if who == "nobody":
            return {"CWD_KEY": "", "CWD_SERVER_KEY": ""}
        return {"CWD_KEY": str(self.folder / "keys" / "secret" / f"{who}.key_secret"),
                "CWD_SERVER_KEY": str(self.folder / "keys" / "server.key")}

    def _make_keys(self) -> None:
        for name, role in (("client", "client"), ("worker", "worker"), ("admin", "admin")):
            done = subprocess.run([sys.executable, "-m", "cwd", "keys", "new", name, "--role", role, "--dir",
                                   str(self.folder / "keys")], cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        assert {entry["name"] for entry in KeyFolder(self.folder / "keys").entries()} == {"client", "worker", "admin"}

    def _make_models(self) -> None:
        """`same-000`.. for the emulated workers, and `mlp` for the one that computes; each knows only its own."""
        self.repository = Repository(self.folder / "models", create=True)
        same = add_zoo(self.repository, "same", "identity", copies=4)[0]
        table = {pair: EXEC_NS for pair in profile.pairs(same.manifest.program)}
        profile.write_table(self.repository, same.manifest.program_hash, "emulated", table, load_ns_per_page=1_000_000,
                            page_bytes=PAGE_BYTES)
        self.mlp = add_zoo(self.repository, "mlp", "mlp", seed=3)[0]
        profile.measure_cpu(self.repository, self.mlp, budget_ns=100_000_000)

    def _start(self) -> None:
        control = self.host["control"]
        run_dir = self.folder / "run"
        self.admin_endpoint = f"ipc://{run_dir}/admin.sock"
        controller = self._daemon("control", "nobody", "controller", "--keys", str(self.folder / "keys"),
                                  "--clients-bind", f"tcp://{control.address}:{CLIENTS}",
                                  "--workers-bind", f"tcp://{control.address}:{WORKERS}", "--run-dir", str(run_dir),
                                  "--state-dir", str(self.folder / "state"), "--repository", str(self.repository.root),
                                  "--page-bytes", str(PAGE_BYTES))
        self.to_workers = {name: self.hosts.link(to=control, port=WORKERS) for name in ("first", "second")}
        self.to_clients = self.hosts.link(to=control, port=CLIENTS)
        self.direct = f"tcp://{control.address}:{CLIENTS}"
        self.workers = {name: self._worker(name, self.to_workers[name].endpoint, "emulated:1") for name in self.to_workers}
        self.workers["torch"] = self._worker("torch", f"tcp://{control.address}:{WORKERS}", "cpu")
        front = self.host["front"]
        (self.folder / "tokens").write_text("a-token-of-more-than-sixteen-characters\n")
        self.gateway = self._daemon("front", "client", "gateway", "--host", front.address, "--port", str(HTTP), "--endpoint",
                                    self.direct, "--token-file", str(self.folder / "tokens"), "--slo", "2s")
        daemons = (controller, *self.workers.values(), self.gateway)
        until(lambda: all([daemon.ready() for daemon in daemons]), "all daemons are ready", START_S)
        keys = self.keys_of("admin")
        self.admin = self._stack.enter_context(Admin(self.admin_endpoint, key=keys["CWD_KEY"],
                                                     server_key=keys["CWD_SERVER_KEY"]))
        until(lambda: len(self.admin.status()["workers"]) == 3, "three workers are connected")
        until(lambda: all(model["ready"] for model in self.admin.models().values()), "all models are ready")

    def _worker(self, name: str, endpoint: str, device: str) -> Daemon:
        return self._daemon(name, "worker", "worker", "--endpoint", endpoint, "--device", device, "--name", name, "--repo",
                            str(self.repository.root), "--pages", "16", "--page-bytes", str(PAGE_BYTES))

    def _daemon(self, host: str, who: str, *flags: str) -> Daemon:
        daemon = Daemon(self, self.host[host], who, *flags)
        self._stack.callback(daemon.close)
        return daemon

    # what tests do and look at

    def clear(self) -> None:
        """All ways are as they were."""
        for link in (*self.to_workers.values(), self.to_clients):
            link.clear()

    def visitor(self, endpoint: str = "", host: str = "visitor") -> Visitor:
        """A new client on a host, by the way that can be made slow or broken unless another is named."""
        return Visitor(self, self.host[host], endpoint or self.to_clients.endpoint)

    def worker_rows(self) -> dict[str, dict[str, Any]]:
        """The connected workers by name, as `cwd status` shows them."""
        return {row["name"]: row for row in self.admin.status()["workers"].values()}

    def counter(self, name: str) -> int:
        """One of the controller's counters."""
        return int(self.admin.status()["counters"][name])

    def truth_ns(self, theirs: str, ours: str) -> int:
        """By how much the clock of one host is ahead of another's."""
        return (CLOCKS_S[theirs] - CLOCKS_S[ours]) * NS_PER_S

    def expected_mlp(self, inputs: Sequence[float]) -> np.ndarray:
        """What the model says of them, computed here."""
        import torch

        from cwd.models.zoo import make_weights, mlp

        module = mlp([16, 32, 4])
        module.load_state_dict({name: torch.from_numpy(value) for name, value in make_weights(module, 3).items()})
        with torch.inference_mode():
            return module(torch.tensor([inputs], dtype=torch.float32))[0].numpy()
