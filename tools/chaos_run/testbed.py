"""Everything that is put to the test: hosts with clocks of their own, keys for everybody, etcd, controllers, workers, a gateway.

Peers that faults may cut off reach each controller through links of their own; the others go directly.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import psutil

from cwd.client.admin import Admin
from cwd.errors import CwdError
from cwd.net.keys import KeyFolder
from tools.chaos_run import models
from tools.chaos_run.daemon import Daemon, cwd, wait_for
from tools.hosts import Host, Hosts, Link, closed_on_error

CLIENTS_PORT, WORKERS_PORT, ETCD_PORT, HTTP_PORT = 5571, 5572, 2379, 8000
CONTROLLERS = ("north", "south")
EMULATED, TORCH = ("emulated0", "emulated1"), ("torch0", "torch1")
WORKERS = (*EMULATED, *TORCH)
#: whose ways to the controllers may be slow or broken
LINKED = (*EMULATED, "torch0", "gateway", "native")
PEERS = (*WORKERS, "gateway", "native", "slow", "flood")
#: what one client may ask for: the sound ones stay below, also when a whole SLO's requests wait; the one that floods does not
CREDITS, RATE, BURST = 96, 300, 128
PAGES = 64
#: for a daemon's start; the first one on a machine compiles
READY_S = 300.0
#: seconds that each host's monotonic clock is ahead of this machine's: all differ
CLOCKS_S = {"north": 1_000, "south": 86_400, "emulated0": 5_000_000, "emulated1": 77, "torch0": 600_000, "torch1": 3_600,
            "gateway": 12, "native": 1_234_567, "http": 40, "slow": 9_999, "flood": 250_000}


class Testbed:
    """Hosts and daemons from READY to nothing; a context manager. `folder` gets logs, keys and models, and stays."""

    def __init__(self, folder: Path, seed: int, say: Callable[[str], None]) -> None:
        self.folder, self._say = folder, say
        self.token = secrets.token_hex(16)
        self.daemons: dict[str, Daemon] = {}
        self.links: dict[str, list[Link]] = {}
        self._cpu_s: dict[int, float] = {}
        self._stack = contextlib.ExitStack()
        with closed_on_error(self.close):
            self.hosts = self._stack.enter_context(Hosts(seed=seed))
            self._build()

    @property
    def controllers(self) -> list[Daemon]:
        return [self.daemons[name] for name in CONTROLLERS]

    # bringing it up

    def _build(self) -> None:
        self._say("hosts, keys and models")
        for name in ("etcd", *CONTROLLERS, *WORKERS, "gateway", "native", "http", "slow", "flood"):
            self.hosts.add(name, clock_s=CLOCKS_S.get(name, 0))
        keys = KeyFolder(self.folder / "keys")
        keys.make_server()
        for name in PEERS:
            keys.new(name, ["worker" if name in WORKERS else "client"], self._secret(name))
        keys.new("operator", ["admin"], self._secret("operator"))
        (self.folder / "tokens").write_text(self.token + "\n")
        models.build(self.folder)
        self._daemons()

    def _daemons(self) -> None:
        etcd = f"http://{self._address('etcd')}:{ETCD_PORT}"
        self._daemon("etcd", [
            shutil.which("etcd") or "etcd", "--data-dir", str(self.folder / "etcd"), "--listen-client-urls", etcd,
            "--advertise-client-urls", etcd, "--listen-peer-urls", f"http://{self._address('etcd')}:2380",
            "--logger", "zap", "--log-level", "warn", "--heartbeat-interval", "100", "--election-timeout", "500"])
        for name in CONTROLLERS:
            run = self.folder / f"run-{name}"
            run.mkdir()
            self._daemon(name, cwd(
                "controller", "--etcd", etcd, "--run-dir", str(run), "--state-dir", str(self.folder / f"state-{name}"),
                "--repository", str(self.folder / "models"), "--keys", str(self.folder / "keys"),
                "--clients-bind", f"tcp://0.0.0.0:{CLIENTS_PORT}", "--workers-bind", f"tcp://0.0.0.0:{WORKERS_PORT}",
                "--page", str(models.PAGE_BYTES), "--credits", str(CREDITS), "--client-rate", str(RATE),
                "--client-burst", str(BURST), "--name", name))
        for name in WORKERS:
            self._daemon(name, cwd(
                "worker", "--endpoint", self.endpoints(name, WORKERS_PORT), "--name", name,
                "--device", "cpu" if name in TORCH else "emulated:1", "--repo", str(self.folder / "models"),
                "--pages", str(PAGES), "--page", str(models.PAGE_BYTES)), self.keys(name))
        self._daemon("gateway", cwd(
            "gateway", "--endpoint", self.endpoints("gateway", CLIENTS_PORT), "--host", "0.0.0.0", "--port", str(HTTP_PORT),
            "--token-file", str(self.folder / "tokens")), self.keys("gateway"))

    def start(self) -> None:
        """Bring everything up; returns when all is READY, one controller leads, and every model is servable."""
        self.daemons["etcd"].start()
        first, second = self.controllers
        for daemons in ([first], [second, *(self.daemons[name] for name in WORKERS)], [self.daemons["gateway"]]):
            for daemon in daemons:
                daemon.start()
            for daemon in daemons:
                self._say(f"waiting for {daemon.name}")
                daemon.wait_ready(READY_S)
        self._say("waiting for the models")
        wait_for("not every worker and model came up", self._whole, 60)

    def _whole(self) -> bool:
        name = self.leader()
        try:
            with self._admin(name or CONTROLLERS[0]) as admin:
                found, workers = admin.models(), admin.status()["workers"]
        except CwdError:
            return False
        return len(workers) == len(WORKERS) and bool(found) and all(facts["ready"] for facts in found.values())

    # asking

    def leader(self) -> str | None:
        """The name of the controller that serves now. Whoever runs longest is asked first: a standby does not answer at all."""
        for daemon in sorted(self.controllers, key=lambda daemon: daemon.started_s):
            if daemon.alive and self.status(daemon.name):
                return daemon.name
        return None

    def status(self, name: str) -> dict[str, Any]:
        """What a controller says of itself; {} if it does not serve."""
        try:
            with self._admin(name) as admin:
                return admin.status()
        except CwdError:
            return {}

    def endpoints(self, name: str, port: int) -> str:
        """Where a peer finds the controllers: through links of its own if it has some, which this makes."""
        if name not in LINKED:
            return ",".join(f"tcp://{self._address(controller)}:{port}" for controller in CONTROLLERS)
        if name not in self.links:
            self.links[name] = [self.hosts.link(to=self.host(controller), port=port) for controller in CONTROLLERS]
        return ",".join(link.endpoint for link in self.links[name])

    def keys(self, name: str) -> dict[str, str | None]:
        return {"CWD_KEY": str(self._secret(name)), "CWD_SERVER_KEY": str(self.folder / "keys" / "server.key")}

    def host(self, name: str) -> Host:
        return self.hosts.hosts[name]

    def client(self, name: str, module: str, **options: Any) -> Daemon:
        """A client process of ours, started: `module` of this package, on the host of that name."""
        argv = [sys.executable, "-m", f"tools.chaos_run.{module}"]
        for option, value in options.items():
            argv += [f"--{option.replace('_', '-')}", str(value)]
        daemon = Daemon(f"client-{name}", self.host(name), argv, self.folder)
        self._stack.callback(daemon.close)
        daemon.start()
        return daemon

    def cpu_s(self) -> float:
        """CPU seconds that all processes of the testbed and this one have used since the start, as far as was looked."""
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                self._cpu_s[process.pid] = times.user + times.system
        return sum(self._cpu_s.values())

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        with closed_on_error(self.close):
            self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _admin(self, name: str) -> Admin:
        return Admin(f"ipc://{self.folder}/run-{name}/admin.sock", timeout=2.0, key=self._secret("operator"),
                     server_key=self.folder / "keys" / "server.key")

    def _daemon(self, name: str, argv: list[str], environment: dict[str, str | None] | None = None) -> None:
        self.daemons[name] = Daemon(name, self.host(name), argv, self.folder, environment)
        self._stack.callback(self.daemons[name].close)

    def _address(self, name: str) -> str:
        return self.host(name).address

    def _secret(self, name: str) -> Path:
        return self.folder / f"{name}.key_secret"
