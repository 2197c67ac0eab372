"""Daemons as systemd runs them: a notify socket, a watchdog, signals; and the loop of each can be made to hang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peers import PAGE_BYTES

import cwd
from cwd.client.admin import Admin
from cwd.config import endpoint
from cwd.net.notify import NotifyListener

#: WATCHDOG_USEC; it is to come twice in that time
WATCHDOG_S = 0.8
START_S, STOP_S, DRAIN_S = 150.0, 30.0, 10.0
HERE = Path(__file__).resolve().parent


class Unit:
    """`told` is every datagram that came from it, in order."""

    def __init__(self, folder: Path, name: str, *arguments: str, hang: str = "") -> None:
        self.log = folder / f"{name}.log"
        self.hang_file = folder / f"{name}.hang"
        self.told: list[dict[str, str]] = []
        self._listener = NotifyListener(folder)
        environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "NOTIFY_SOCKET": self._listener.path,
                       "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6)), "CWD_HANG": hang, "CWD_HANG_FILE": str(self.hang_file)}
        with open(self.log, "wb") as log:
            # the process says its own number, as systemd does between fork and exec
            self.process = subprocess.Popen(
                ["/bin/sh", "-c", 'WATCHDOG_PID=$$ exec "$@"', "sh", sys.executable, str(HERE / "hanging.py"), *arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        self._ended = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while not self._ended.is_set():
            told = self._listener.receive(0.1)
            if told is not None:
                self.told.append(told)

    def count(self, variable: str) -> int:
        return sum(variable in told for told in self.told)

    def statuses(self) -> list[str]:
        return [told["STATUS"] for told in self.told if "STATUS" in told]

    def wait(self, what: Callable[[], bool], seconds: float = START_S) -> None:
        """Until `what()`; fails if the daemon ends before, or it takes too long."""
        until = time.monotonic() + seconds
        while not what():
            assert self.process.poll() is None and time.monotonic() < until, self.words()
            time.sleep(0.02)

    def wait_ready(self) -> None:
        self.wait(lambda: self.count("READY") > 0)

    def words(self) -> str:
        return f"{self.told[-5:]}\n{self.log.read_text()[-3000:]}"

    def end(self, number: int = signal.SIGTERM) -> int:
        """The exit code after a signal."""
        self.process.send_signal(number)
        return self.process.wait(STOP_S)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._ended.set()
        self._reader.join()
        self._listener.close()

    def starves(self) -> None:
        """It says nothing of the kind any more after two periods, for three more; and lives."""
        time.sleep(2 * WATCHDOG_S)
        count = self.count("WATCHDOG")
        time.sleep(3 * WATCHDOG_S)
        assert self.count("WATCHDOG") == count and self.process.poll() is None, self.words()


class Units:
    """A controller and a worker, each a unit of its own; the folder has their sockets, their log and their configuration."""

    def __init__(self, folder: Path, repository: Path, device: str, hang: bool = False) -> None:
        self.folder = folder
        self.config = folder / "cwd.toml"
        self.configure(f"{DRAIN_S:g}s")
        options = ("--config", str(self.config))
        self.controller = Unit(folder, "controller", *options, "controller", "--run-dir", str(folder), "--state-dir",
                               str(folder / "state"), "--repository", str(repository), "--page-bytes", str(PAGE_BYTES),
                               hang="controller" if hang else "")
        self.gateway: Unit | None = None
        self.worker = Unit(folder, "worker", *options, "worker", "--device", device, "--endpoint", endpoint("workers", folder),
                           "--repo", str(repository), "--pages", "16", "--page-bytes", str(PAGE_BYTES),
                           hang="exec lane" if hang else "")

    def configure(self, drain: str, more: str = "") -> None:
        self.config.write_text(f'[controller]\ndrain = "{drain}"\n{more}[worker]\nlog_level = "info"\n')

    def start_gateway(self, hang: bool = False) -> Unit:
        self.gateway = Unit(self.folder, "gateway", "--config", str(self.config), "gateway", "--port", "0", "--endpoint",
                            endpoint("clients", self.folder), hang="gateway" if hang else "")
        return self.gateway

    def client(self, **options: Any) -> cwd.Client:
        return cwd.Client(endpoint("clients", self.folder), **options)

    def status(self) -> dict[str, Any]:
        with Admin(endpoint("admin", self.folder)) as admin:
            return admin.status()

    def wait_servable(self, model: str) -> None:
        def servable() -> bool:
            with Admin(endpoint("admin", self.folder)) as admin:
                return bool(admin.models()[f"{model}/1"]["ready"])

        self.controller.wait(servable)

    def close(self) -> None:
        if self.gateway is not None:
            self.gateway.close()
        self.worker.close()
        self.controller.close()
