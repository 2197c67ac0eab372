"""The daemons under a supervisor that does what systemd does: a notify socket, a watchdog, SIGHUP, SIGTERM, SIGABRT.

Nothing here looks at milliseconds: what counts is which datagrams came, in which order, and how many.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from http_load import HttpLoad
from load import Load
from peers import BYTE, PAGE_BYTES, make_repository
from unit import DRAIN_S, STOP_S, Unit, Units

import cwd
from cwd.controller import telemetry
from cwd.errors import Code

pytest.importorskip("torch")
pytestmark = pytest.mark.e2e

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
    _nothing_was_lost(units, ended, before=2)
    # the worker goes on without the controller, and ends as it should
    beats = worker.count("WATCHDOG")
    worker.wait(lambda: worker.count("WATCHDOG") >= beats + 4)
    assert worker.end() == 0 and worker.count("STOPPING") == 1, worker.words()
    assert worker.count("READY") == 1 + worker.count("RELOADING")


def test_a_worker_that_ends_under_load_leaves_no_request_without_an_answer(units: Units) -> None:
    units.controller.wait_ready()
    units.worker.wait_ready()
    units.wait_servable("same-000")
    with Load(units) as load:
        began = time.monotonic()
        assert units.worker.end() == 0, units.worker.words()
        assert time.monotonic() - began < DRAIN_S
        units.controller.wait(lambda: load.ended[Code.NO_WORKER] > 100, STOP_S)
    assert units.worker.count("STOPPING") == 1
    assert sum(load.ended.values()) == load.sent and load.ended[Code.OK] > 200, load.ended
    assert set(load.ended) <= {Code.OK, Code.NO_WORKER, Code.WORKER_LOST, Code.DEADLINE_EXPIRED}
    assert units.controller.end() == 0
    _nothing_was_lost(units, load.ended, before=0)


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


def _nothing_was_lost(units: Units, ended: dict[int, int], before: int) -> None:
    """Whatever the controller took it answered, by its log; and the clients have each answer that it gave, of either kind.
    `before`: single requests that came before, and were answered in time."""
    rows = telemetry.requests_frame(telemetry.read_log(units.folder / "state"))
    answered = Counter(Code(status) for status in rows["status"].tolist() if status != telemetry.OPEN)
    assert answered.total() == len(rows) > 200
    # what was lost on the way to a controller that had stopped reading it never took
    got = Counter(ended) + Counter({Code.OK: before})
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
        worker.starves()
        assert worker.statuses()[-1].startswith("stuck: the exec lane (EXEC for ")
        # its io thread still answers the controller, which would have given it up by now
        assert len(hanging.status()["workers"]) == 1
        assert isinstance(pending.exception(timeout=STOP_S), cwd.RequestError)
    controller.hang_file.touch()
    controller.starves()
    for unit, where in ((worker, "in _exec_one"), (controller, "in step")):
        assert unit.end(signal.SIGABRT) == -signal.SIGABRT
        assert "Fatal Python error: Aborted" in unit.log.read_text() and where in unit.log.read_text()


def test_a_gateways_life(units: Units) -> None:
    """READY only with a controller; a reload; under load, an end that leaves no accepted request without an answer."""
    units.controller.process.send_signal(signal.SIGSTOP)
    gateway = units.start_gateway()
    gateway.wait(lambda: any(status.startswith("waiting for the controller") for status in gateway.statuses()))
    assert gateway.count("READY") == gateway.count("WATCHDOG") == 0
    assert all(int(told["EXTEND_TIMEOUT_USEC"]) >= 30e6 for told in gateway.told)
    units.controller.process.send_signal(signal.SIGCONT)
    gateway.wait_ready()
    port = int(next(told["STATUS"] for told in gateway.told if "READY" in told).rpartition(":")[2])
    for unit in (units.controller, units.worker):
        unit.wait_ready()
    units.wait_servable("same-000")
    gateway.wait(lambda: gateway.count("WATCHDOG") >= 4, STOP_S)
    _reload_gateway(units, gateway)
    body = b'{"inputs": [{"name": "x", "datatype": "UINT8", "shape": [1], "data": [7]}], "parameters": {"timeout": 5000000}}'
    with HttpLoad(port, body, "/v2/models/same-000/infer") as load:
        gateway.wait(lambda: any("100.0% in time" in status for status in gateway.statuses()), STOP_S)
        began = time.monotonic()
        assert gateway.end() == 0, gateway.words()
        assert time.monotonic() - began < DRAIN_S
    assert gateway.count("STOPPING") == 1 and gateway.count("READY") == 1 + gateway.count("RELOADING") == 3
    assert set(load.answered) == {200} and load.torn == 0
    # what the gateway had taken in it had passed on, so the controller's log knows how many answers there have to be
    assert units.controller.end() == 0
    rows = telemetry.requests_frame(telemetry.read_log(units.folder / "state"))
    assert len(rows) == load.answered[200]


def _reload_gateway(units: Units, gateway: Unit) -> None:
    units.config.write_text('[gateway]\nslo = "3s"\nlog_level = "debug"\nport = 1\ncors = "http://a"\n')
    gateway.process.send_signal(signal.SIGHUP)
    gateway.wait(lambda: gateway.count("READY") == 2, STOP_S)
    at = next(i for i, told in enumerate(gateway.told) if "RELOADING" in told)
    assert int(gateway.told[at]["MONOTONIC_USEC"]) > 0 and any("READY" in told for told in gateway.told[at + 1:])
    said = gateway.log.read_text()
    assert "reloaded slo_ns: 100ms -> 3s" in said and "reloaded log_level: 'info' -> 'debug'" in said
    assert "cors: '' -> 'http://a' needs a restart" in said and "port" not in said.rpartition("reloaded")[2]
    units.config.write_text("[gateway")
    gateway.process.send_signal(signal.SIGHUP)
    gateway.wait(lambda: "not reloaded, all settings stay as they were" in gateway.log.read_text(), STOP_S)


def test_the_watchdog_starves_when_the_gateways_loop_hangs(units: Units) -> None:
    gateway = units.start_gateway(hang=True)
    gateway.wait_ready()
    gateway.wait(lambda: gateway.count("WATCHDOG") >= 2)
    gateway.hang_file.touch()
    gateway.starves()
    assert gateway.end(signal.SIGABRT) == -signal.SIGABRT
    said = gateway.log.read_text()
    assert "Fatal Python error: Aborted" in said and "in main_loop" in said
