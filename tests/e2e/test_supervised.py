"""The daemons under a supervisor that does what systemd does: a notify socket, a watchdog, SIGHUP, SIGTERM, SIGABRT.

Nothing here looks at milliseconds: what counts is which datagrams came, in which order, and how many.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from load import Load
from peers import BYTE, PAGE_BYTES, make_repository

import cwd
from cwd.client.admin import Admin
from cwd.config import endpoint
from cwd.controller import telemetry
from cwd.errors import Code
from cwd.net.notify import NotifyListener

pytest.importorskip("torch")
pytestmark = pytest.mark.e2e

#: WATCHDOG_USEC; it is to come twice in that time
WATCHDOG_S = 0.8
START_S, STOP_S, DRAIN_S = 150.0, 30.0, 10.0
HERE = Path(__file__).resolve().parent


class Unit:
    """One daemon as systemd runs it: `told` is every datagram that came from it, in order."""

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
        self.worker = Unit(folder, "worker", *options, "worker", "--device", device, "--endpoint", endpoint("workers", folder),
                           "--repo", str(repository), "--pages", "16", "--page-bytes", str(PAGE_BYTES),
                           hang="exec lane" if hang else "")

    def configure(self, drain: str, more: str = "") -> None:
        self.config.write_text(f'[controller]\ndrain = "{drain}"\n{more}[worker]\nlog_level = "info"\n')

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
        self.worker.close()
        self.controller.close()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from cwd.models import profile

    repository = make_repository(tmp_path_factory.mktemp("supervised") / "models", exec_ns=500_000)
    same = next(entry for entry in repository.entries() if entry.manifest.name == "same-000")
    profile.measure_cpu(repository, same, repeats=5, page_bytes=PAGE_BYTES)
    return repository


def made(tmp_path: Path, *arguments: Any, **named: Any) -> Iterator[Units]:
    units = Units(tmp_path, *arguments, **named)
    try:
        yield units
    finally:
        units.close()


@pytest.fixture
def units(tmp_path: Path, repository: Any) -> Iterator[Units]:
    yield from made(tmp_path, repository.root, "emulated:4")


@pytest.fixture
def hanging(tmp_path: Path, repository: Any) -> Iterator[Units]:
    yield from made(tmp_path, repository.root, "cpu", hang=True)


def test_a_life_from_ready_to_stopping(units: Units) -> None:
    """READY after the warm-up, WATCHDOG and STATUS while serving, a reload, and an end under load that loses nothing."""
    controller, worker = units.controller, units.worker
    for unit in (controller, worker):
        unit.wait_ready()
        first, ready = unit.told[0], next(i for i, told in enumerate(unit.told) if "READY" in told)
        assert first["STATUS"] == "loading kernels" and int(first["EXTEND_TIMEOUT_USEC"]) >= 60e6
        assert ready > 0 and not any("WATCHDOG" in told for told in unit.told[:ready])
    # ready is ready: the first request is answered, nothing has to be compiled, read or connected any more
    units.wait_servable("same-000")
    with units.client() as client:
        assert client.infer("same-000", BYTE, "10s").output.shape == BYTE.shape
    for unit in (controller, worker):
        unit.wait(lambda unit=unit: unit.count("WATCHDOG") >= 4)
    controller.wait(lambda: controller.statuses()[-1].startswith("6 models, 4 GPUs, "), STOP_S)
    assert worker.statuses()[-1].startswith("4 of 4 emulated GPUs with a controller, ")
    _reload(units)
    with Load(units) as load:
        controller.wait(lambda: any(" in time, " in status and ", 0 requests/s" not in status
                                    for status in controller.statuses()), STOP_S)
        began = time.monotonic()
        assert controller.end() == 0, controller.words()
        assert time.monotonic() - began < DRAIN_S
    stopping = next(told for told in controller.told if "STOPPING" in told)
    assert controller.count("STOPPING") == 1 and int(stopping["EXTEND_TIMEOUT_USEC"]) > DRAIN_S / 2 * 1e6
    ended = {key: count for key, count in load.ended.items() if not isinstance(key, tuple)}
    assert sum(ended.values()) == load.sent and ended[Code.OK] > 200
    _nothing_was_lost(units, ended)
    # the worker goes on without the controller, and ends as it should
    beats = worker.count("WATCHDOG")
    worker.wait(lambda: worker.count("WATCHDOG") >= beats + 4)
    assert worker.end() == 0 and worker.count("STOPPING") == 1, worker.words()
    assert worker.count("READY") == 1 + worker.count("RELOADING")


def _reload(units: Units) -> None:
    controller = units.controller
    units.configure(f"{DRAIN_S / 2:g}s", "credits = 7\n")
    controller.process.send_signal(signal.SIGHUP)
    controller.wait(lambda: controller.count("READY") == 2, STOP_S)
    reloading = next(i for i, told in enumerate(controller.told) if "RELOADING" in told)
    assert int(controller.told[reloading]["MONOTONIC_USEC"]) > 0 and "READY" not in controller.told[reloading]
    assert any("READY" in told for told in controller.told[reloading + 1:])
    said = controller.log.read_text()
    assert "reloaded drain_ns: 10s -> 5s" in said and "credits: 1024 -> 7 needs a restart" in said
    units.config.write_text("[controller")
    for unit in (controller, units.worker):
        unit.process.send_signal(signal.SIGHUP)
        unit.wait(lambda unit=unit: "not reloaded, all settings stay as they were" in unit.log.read_text(), STOP_S)
    units.configure(f"{DRAIN_S:g}s")
    with units.client() as client:
        assert client.infer("same-001", BYTE, "10s").output.shape == BYTE.shape


def _nothing_was_lost(units: Units, ended: dict[int, int]) -> None:
    """Whatever the controller took it answered, by its log; and the clients have each answer that it gave, of either kind."""
    rows = telemetry.requests_frame(telemetry.read_log(units.folder / "state"))
    answered = Counter(Code(status) for status in rows["status"].tolist() if status != telemetry.OPEN)
    assert answered.total() == len(rows) > 200
    # two single requests came before; what was lost on the way to a controller that had stopped reading it never took
    got = Counter(ended) + Counter({Code.OK: 2})
    del got[Code.CONTROLLER_LOST]
    assert got == answered


def test_the_watchdog_starves_when_a_loop_hangs(hanging: Units) -> None:
    """First the worker's exec lane, then the controller's loop; each time the rest of the process goes on."""
    controller, worker = hanging.controller, hanging.worker
    controller.wait_ready()
    worker.wait_ready()
    hanging.wait_servable("same-000")
    for unit in (controller, worker):
        unit.wait(lambda unit=unit: unit.count("WATCHDOG") >= 2)
    worker.hang_file.touch()
    with hanging.client() as client:
        pending = client.submit("same-000", BYTE, "2s")
        _starves(worker)
        assert worker.statuses()[-1].startswith("stuck: the exec lane (EXEC for ")
        # its io thread still answers the controller, which would have given it up by now
        assert len(hanging.status()["workers"]) == 1
        assert isinstance(pending.exception(timeout=STOP_S), cwd.RequestError)
    controller.hang_file.touch()
    _starves(controller)
    for unit, where in ((worker, "in _exec_one"), (controller, "in step")):
        assert unit.end(signal.SIGABRT) == -signal.SIGABRT
        assert "Fatal Python error: Aborted" in unit.log.read_text() and where in unit.log.read_text()


def _starves(unit: Unit) -> None:
    """It says nothing of the kind any more after two periods, for three more; and lives."""
    time.sleep(2 * WATCHDOG_S)
    count = unit.count("WATCHDOG")
    time.sleep(3 * WATCHDOG_S)
    assert unit.count("WATCHDOG") == count and unit.process.poll() is None, unit.words()
