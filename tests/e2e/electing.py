"""An etcd of the tests' own, and controllers that take part in elections on it, each under a supervisor that listens."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cwd.client.admin import Admin
from cwd.config import endpoint
from cwd.errors import CwdError
from cwd.net.notify import NotifyListener

PAGE_BYTES = 64 << 10
#: generous: a test machine may be busy, and a cold cache compiles first
START_S, WAIT_S = 150.0, 40.0
WATCHDOG_S = 0.8
ROOT = Path(__file__).resolve().parents[2]
ETCD = shutil.which("etcd")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Etcd:
    """One server, started again on the same data."""

    def __init__(self, folder: Path, *options: str, scheme: str = "http") -> None:
        self._folder, self._options = folder, options
        self._port, self._peers = free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"{scheme}://127.0.0.1:{self._port}"

    def start(self) -> Etcd:
        peers = f"http://127.0.0.1:{self._peers}"
        with open(self._folder / "etcd.log", "ab") as log:
            self._process = subprocess.Popen(
                [str(ETCD), "--data-dir", str(self._folder / "etcd"), "--listen-client-urls", self.url, "--advertise-client-urls",
                 self.url, "--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers, "--initial-cluster",
                 f"default={peers}", "--heartbeat-interval=100", "--election-timeout=500", *self._options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until = time.monotonic() + WAIT_S
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    return self
            assert self._process.poll() is None and time.monotonic() < until, (self._folder / "etcd.log").read_text()[-2000:]
            time.sleep(0.02)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


class Controller:
    """One that takes part; `told` is every datagram that its supervisor got, in order."""

    def __init__(self, folder: Path, name: str, etcd: str, repository: Path, *options: str) -> None:
        self.name, self.folder = name, folder / name
        self.folder.mkdir(exist_ok=True)
        self.log = folder / f"{name}.log"
        self._arguments = ["controller", "--name", name, "--etcd", etcd, "--run-dir", str(self.folder), "--state-dir",
                           str(self.folder / "state"), "--repository", str(repository), "--page-bytes", str(PAGE_BYTES), *options]
        self.told: list[dict[str, str]] = []
        self.process: Any = None
        self._listener: NotifyListener | None = None
        self.start()

    def start(self) -> None:
        self.told.clear()
        self._listener = NotifyListener(self.folder)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "NOTIFY_SOCKET": self._listener.path,
                       "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6))}
        with open(self.log, "ab") as log:
            # the process says its own number, as systemd does between fork and exec
            self.process = subprocess.Popen(
                ["/bin/sh", "-c", 'WATCHDOG_PID=$$ exec "$@"', "sh", sys.executable, "-m", "cwd", *self._arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)

    def listen(self) -> None:
        assert self._listener is not None
        while (told := self._listener.receive(0)) is not None:
            self.told.append(told)

    @property
    def status(self) -> str:
        """Its last STATUS."""
        self.listen()
        return next((told["STATUS"] for told in reversed(self.told) if "STATUS" in told), "")

    def count(self, variable: str) -> int:
        self.listen()
        return sum(variable in told for told in self.told)

    def wait(self, what: Callable[[], Any], seconds: float = WAIT_S) -> None:
        """Until `what()`; fails if it ends before, or it takes too long."""
        until = time.monotonic() + seconds
        while not what():
            assert self.process.poll() is None and time.monotonic() < until, self.words()
            time.sleep(0.01)

    def wait_status(self, begin: str, seconds: float = WAIT_S) -> None:
        self.wait(lambda: self.status.startswith(begin), seconds)

    def wait_end(self) -> int:
        """The exit code."""
        return int(self.process.wait(WAIT_S))

    def words(self) -> str:
        self.listen()
        return f"{self.name}: {self.told[-4:]}\n{self.log.read_text()[-3000:]}"

    def endpoint(self, which: str = "clients") -> str:
        return endpoint(which, self.folder)

    def facts(self) -> dict[str, Any]:
        with Admin(self.endpoint("admin"), timeout=10) as admin:
            return admin.status()

    def election(self) -> dict[str, Any]:
        """What its status says of the election."""
        found: dict[str, Any] = self.facts()["election"]
        return found

    def is_open(self) -> bool:
        """Whether anybody can connect to its sockets."""
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.folder / "clients.sock")) == 0

    def models(self) -> set[str]:
        with Admin(self.endpoint("admin"), timeout=10) as admin:
            return set(admin.models())

    def servable(self, model: str) -> bool:
        try:
            with Admin(self.endpoint("admin"), timeout=10) as admin:
                return bool(admin.models()[f"{model}/1"]["ready"])
        except (CwdError, KeyError):
            return False

    def elector(self) -> int:
        """The process id of its elector; 0 if there is none at the moment."""
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == self.process.pid and b"cwd.controller.elector" in (folder / "cmdline").read_bytes():
                    return int(folder.name)
            except OSError:
                continue
        return 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.kill()
        if self._listener is not None:
            self._listener.close()
