"""A worker's main thread finds out which of the others does not go on, and what the supervisor then hears."""

from __future__ import annotations

import time

import pytest
from device_rig import Rig

from cwd.net.notify import NotifyListener
from cwd.wire.messages import Type
from cwd.worker import exchange as ex
from cwd.worker import lanes as la
from cwd.worker.pulse import Pulse
from cwd.worker.supervision import Supervision

PATIENCE_NS = 1_000_000_000
EXPECTED_NS = 50_000_000


@pytest.fixture(params=[1, 2], ids=["one slot", "two slots"])
def rig(tmp_path, request):
    made = Rig(f"ipc://{tmp_path}/workers.sock", slots=request.param)
    yield made
    made.close()


@pytest.fixture
def pulse(rig):
    return Pulse(rig.worker.exec_lane, rig.worker.load_lane, PATIENCE_NS)


def looks(pulse, rig, count=10):
    """What so many looks find, with time in between for whoever sleeps to be woken."""
    found = []
    for _ in range(count):
        found.append(pulse.stuck(time.monotonic_ns(), rig.worker.device.waits))
        time.sleep(0.05)
    return found


def until(what, patience_s=10):
    end = time.monotonic() + patience_s
    while not what():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_who_sleeps_is_not_stuck(rig, pulse):
    assert looks(pulse, rig) == [""] * 10


def test_a_long_action_is_not_stuck_until_it_is_too_long(rig, pulse):
    assert rig.load(1) == 0
    assert pulse.stuck(time.monotonic_ns()) == ""
    rig.backend.gate.clear()
    rig.controller.execute(rig.peer, 1, (b"a",), dims=(1,), expected_ns=EXPECTED_NS)
    assert rig.backend.running.wait(10)
    until(lambda: looks(pulse, rig, 1) == [""])  # a busy machine may not have let the load lane go to sleep yet
    assert looks(pulse, rig) == [""] * 10
    began_ns = int(rig.worker.exec_lane.pulse[la.BEGAN_NS])
    may_take_ns = 10 * EXPECTED_NS + PATIENCE_NS
    assert pulse.stuck(began_ns + may_take_ns - 1) == ""
    time.sleep(0.05)
    assert pulse.stuck(began_ns + may_take_ns) == "the exec lane (EXEC for 2 s)"
    rig.backend.gate.set()
    assert rig.controller.result(rig.peer)[0]["status"] == 0
    until(lambda: rig.worker.exec_lane.pulse[la.BEGAN_NS] == 0)
    assert looks(pulse, rig) == [""] * 10


def test_an_unload_that_waits_is_the_exec_lanes_fault(rig, pulse):
    assert rig.load(1) == 0
    rig.backend.gate.clear()
    rig.controller.execute(rig.peer, 1, (b"a",), dims=(1,), expected_ns=10 * EXPECTED_NS)
    assert rig.backend.running.wait(10)
    rig.controller.act(rig.peer, Type.UNLOAD, model=1, expected_ns=1)
    until(lambda: rig.worker.device.waits)
    assert looks(pulse, rig, 2) == [""] * 2
    later_ns = time.monotonic_ns() + 2 * PATIENCE_NS
    assert pulse.stuck(later_ns, rig.worker.device.waits) == ""
    time.sleep(0.05)
    assert pulse.stuck(later_ns).startswith("the load lane (UNLOAD for ")
    rig.backend.gate.set()
    assert [rig.controller.result(rig.peer)[0]["status"] for _ in range(2)] == [0, 0]
    assert looks(pulse, rig) == [""] * 10


def test_a_prepare_may_take_minutes(rig, pulse):
    rig.worker.exec_lane.pulse[[la.BEGAN_NS, la.KIND, la.EXPECTED_NS]] = [1, int(Type.PREPARE), 1]
    assert pulse._goes_on(1, rig.worker.exec_lane, 1) and pulse._goes_on(1, rig.worker.exec_lane, 800 * PATIENCE_NS)
    assert not pulse._goes_on(1, rig.worker.exec_lane, 1000 * PATIENCE_NS)
    rig.worker.exec_lane.pulse[la.BEGAN_NS] = 0


def test_an_io_thread_that_waits_for_the_lock_for_ever(rig, pulse):
    assert looks(pulse, rig, 2) == [""] * 2
    ex.exchange_lock(rig.worker.exchange)
    try:
        time.sleep(0.05)
        pulse.stuck(time.monotonic_ns())
        time.sleep(0.05)
        assert [pulse.stuck(time.monotonic_ns()) for _ in range(3)] == ["the io thread"] * 3
    finally:
        ex.exchange_unlock(rig.worker.exchange)
    time.sleep(0.1)
    assert looks(pulse, rig) == [""] * 10


def test_what_the_supervisor_hears(tmp_path, monkeypatch):
    """READY with the first WATCHDOG; then one WATCHDOG a period; none while a thread is stuck, but a STATUS that says so."""
    stuck = ""
    with NotifyListener(tmp_path) as listener:
        monkeypatch.setenv("NOTIFY_SOCKET", listener.path)
        monkeypatch.setenv("WATCHDOG_USEC", "40000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        supervision = Supervision(lambda: "three models", lambda: 7, lambda now_ns: stuck)
        supervision.look()
        told = listener.receive(1)
        assert told is not None and "WATCHDOG" not in told and int(told["EXTEND_TIMEOUT_USEC"]) > 0
        supervision.ready()
        assert listener.receive(1) == {"READY": "1", "WATCHDOG": "1", "STATUS": "three models"}
        supervision.look()
        assert listener.receive(0) is None
        for turn in range(6):
            stuck = "the exec lane" if 2 <= turn < 4 else ""
            assert supervision.wait_s is not None and supervision.wait_s <= 0.02
            time.sleep(0.02)
            supervision.look()
            wanted = {"STATUS": "stuck: the exec lane"} if stuck else {
                "WATCHDOG": "1", "STATUS": "three models, 0 executions/s"}
            assert listener.receive(1) == wanted and listener.receive(0) is None
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert Supervision(lambda: "", lambda: 0, lambda now_ns: "").wait_s is None
