"""Inputs that are staged ahead: while the device works, or before it may start; and a device that is lost."""

from __future__ import annotations

import time

import pytest
from device_rig import Rig
from fake_backend import PROGRAM

from cwd.errors import Code
from cwd.wire.messages import Type


@pytest.fixture
def rig(tmp_path):
    made = Rig(f"ipc://{tmp_path}/workers.sock", slots=2)
    assert made.load(1) == 0
    yield made
    made.close()


def send(rig, text, **more) -> int:
    return rig.controller.execute(rig.peer, 1, (text,), dims=(len(text),), **more)


def wait_for(condition) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def staged(rig) -> list[bytes]:
    return sorted(rows[0].tobytes() for _, rows in list(rig.backend.staged.values()))


def test_while_one_runs_the_next_is_staged_and_only_that(rig):
    rig.backend.gate.clear()
    first = send(rig, b"a")
    assert rig.backend.running.wait(10)
    assert staged(rig) == []
    others = [send(rig, text) for text in (b"bb", b"ccc")]
    wait_for(lambda: staged(rig) == [b"bb"])
    time.sleep(0.02)
    assert staged(rig) == [b"bb"]
    rig.backend.gate.set()
    for action, text in zip([first, *others], (b"b", b"cc", b"ddd"), strict=True):
        fields, payload = rig.controller.result(rig.peer)
        assert (fields["action"], fields["status"], payload) == (action, 0, [text])


def test_what_waits_for_its_time_is_staged_before(rig):
    earliest_ns = time.monotonic_ns() + 3_000_000_000
    send(rig, b"a", earliest_ns=earliest_ns)
    wait_for(lambda: staged(rig) == [b"a"])
    assert time.monotonic_ns() < earliest_ns
    fields, payload = rig.controller.result(rig.peer)
    assert fields["status"] == 0 and payload == [b"b"] and fields["begin_ns"] >= earliest_ns


def test_what_was_staged_and_refused_leaves_no_trace(rig):
    for turn in range(4):
        rig.backend.gate.clear()
        send(rig, b"a")
        assert rig.backend.running.wait(10)
        late_ns = time.monotonic_ns() + 1_000_000_000
        send(rig, b"x" * (1 + turn), latest_ns=late_ns)
        wait_for(lambda wanted=b"x" * (1 + turn): staged(rig) == [wanted])
        send(rig, b"c")
        wait_for(lambda until=late_ns: time.monotonic_ns() > until)
        rig.backend.gate.set()
        found = [rig.controller.result(rig.peer) for _ in range(3)]
        assert [fields["status"] for fields, _ in found] == [0, Code.TOO_LATE, 0]
        assert [payload for _, payload in found] == [[b"b"], [], [b"d"]]


def test_a_fault_found_while_staging_is_answered_in_its_turn(rig):
    rig.backend.gate.clear()
    send(rig, b"a")
    assert rig.backend.running.wait(10)
    send(rig, b"b", size_class=8)
    send(rig, b"c")
    time.sleep(0.05)
    rig.backend.gate.set()
    statuses = [rig.controller.result(rig.peer)[0]["status"] for _ in range(3)]
    assert statuses == [0, Code.BAD_PAYLOAD_SIZE, 0]


def test_an_exec_behind_the_load_of_its_model_runs(rig):
    rig.backend.gate.clear()
    send(rig, b"a")
    assert rig.backend.running.wait(10)
    rig.controller.execute(rig.peer, 2, (b"a",), dims=(1,))  # not resident yet: it cannot be staged
    time.sleep(0.02)
    assert staged(rig) == []
    rig.controller.load(rig.peer, 2, pages=2, program_index=3)
    fields, _ = rig.controller.result(rig.peer)
    assert fields["status"] == 0 and fields["pages_free"] == 1
    rig.backend.gate.set()
    assert rig.controller.result(rig.peer)[1] == [b"b"]
    assert rig.controller.result(rig.peer)[1] == [b"c"]


def test_a_model_that_comes_back_as_another_program_is_staged_anew(rig):
    other = b"Q" * 16
    assert rig.prepare(program=other, index=4) == 0 and rig.load(2) == 0
    rig.backend.gate.clear()
    send(rig, b"a")
    assert rig.backend.running.wait(10)
    rig.controller.execute(rig.peer, 2, (b"bb",), dims=(2,))
    wait_for(lambda: staged(rig) == [b"bb"])
    rig.controller.act(rig.peer, Type.UNLOAD, model=2)
    assert rig.controller.result(rig.peer)[0]["status"] == 0
    rig.controller.load(rig.peer, 2, pages=2, program_index=4)
    assert rig.controller.result(rig.peer)[0]["status"] == 0
    rig.backend.gate.set()
    assert [rig.controller.result(rig.peer)[1] for _ in range(2)] == [[b"b"], [b"dd"]]
    assert rig.backend.stages == [PROGRAM, PROGRAM, other]


@pytest.mark.parametrize("slots", [1, 2])
def test_a_lost_device_answers_then_says_goodbye_with_the_reason(tmp_path, slots):
    rig = Rig(f"ipc://{tmp_path}/workers.sock", slots=slots)
    assert rig.load(1) == 0
    assert rig.execute(1, b"a", size_class=7)[0]["status"] == Code.DEVICE_ERROR
    wait_for(lambda: rig.worker.failure is not None)
    assert rig.worker.failure is rig.worker.device.lost and rig.worker.failure.code == Code.DEVICE_ERROR
    rig.worker.stop(str(rig.worker.failure), int(Code.DEVICE_ERROR))
    while rig.controller.pump(200):
        pass
    kind, fields, _ = rig.controller.inbox[rig.peer].pop()
    assert kind == Type.GOODBYE and fields["code"] == Code.DEVICE_ERROR and "sticky" in fields["text"]
    rig.controller.close()
