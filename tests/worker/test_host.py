"""A worker with a fake device against a scripted controller: lanes, io loop, pages, sessions; over a real socket."""

from __future__ import annotations

import time

import pytest
from device_rig import Rig
from fake_backend import PAGE, PROGRAM
from lone_controller import FakeController

from cwd.errors import Code
from cwd.wire.messages import Type


@pytest.fixture(params=[1, 2], ids=["one slot", "two slots"])
def rig(tmp_path, request):
    made = Rig(f"ipc://{tmp_path}/workers.sock", slots=request.param)
    yield made
    made.close()


def test_hello_tells_what_the_design_lists(rig):
    caps = rig.hello["caps"]
    assert (caps["kind"], caps["device"], caps["gpus"]) == ("cpu", "fake", 1)
    assert (caps["pages_total"], caps["page_bytes"], caps["agenda_max"]) == (5, PAGE, 4)
    assert caps["lanes"] == ["exec", "load"] and caps["prepares"] is True
    assert len(caps["images"]) == 19 * 16 and caps["resident"] == b""


def test_load_execute_unload(rig):
    assert rig.load(1) == 0 and rig.load(2) == 0
    for model in (1, 2, 1):
        fields, payload = rig.execute(model, b"abc", b"xyz")
        # as the device's own clock has it
        assert fields["status"] == 0 and fields["rows_done"] == 2 and fields["device_ns"] == 3
        assert payload == [bytes(c + model for c in b"abc"), bytes(c + model for c in b"xyz")]
        assert 0 < fields["received_ns"] <= fields["begin_ns"] <= fields["end_ns"] <= fields["sent_ns"]
    assert rig.load(3) == Code.NO_PAGES
    rig.controller.act(rig.peer, Type.UNLOAD, model=1)
    fields, _ = rig.controller.result(rig.peer)
    assert fields["status"] == 0 and fields["pages_free"] == 3
    assert rig.execute(1, b"a")[0]["status"] == Code.NOT_RESIDENT
    assert rig.load(3) == 0
    assert rig.execute(3, b"a")[1] == [b"d"]
    assert rig.backend.binds == 2  # the unloaded model's window serves the next one


def test_many_batches_in_flight_keep_their_payloads_apart(rig):
    assert rig.load(1) == 0 and rig.load(2) == 0
    for turn in range(60):
        sent = {}
        for k in range(4):
            texts = tuple(bytes([(turn + k * 7 + row) % 200]) * (1 + 100 * row) for row in range(3))
            rows = [(len(text), 0, 0, 0) for text in texts]
            action = rig.controller.act(rig.peer, Type.EXEC, texts, model=1 + k % 2, batch=4, size_class=0, rows=rows)
            sent[action] = [bytes((c + 1 + k % 2) % 256 for c in text) for text in texts]
        for action, wanted in sent.items():
            fields, payload = rig.controller.result(rig.peer)
            assert (fields["action"], fields["status"]) == (action, 0)
            assert payload == wanted


def test_refusals_have_their_codes(rig):
    assert rig.execute(1, b"a")[0]["status"] == Code.NOT_RESIDENT
    assert rig.load(1, pages=1) == Code.NO_PAGES  # too few for the image
    assert rig.load(1, image=b"?" * 16) == Code.NOT_HERE
    assert rig.load(1) == 0
    assert rig.load(1) == Code.ALREADY_RESIDENT
    rig.controller.load(rig.peer, 2, pages=2, program_index=4)
    assert rig.controller.result(rig.peer)[0]["status"] == Code.NOT_PREPARED
    assert rig.execute(1, b"a", latest_ns=1)[0]["status"] == Code.TOO_LATE
    assert rig.execute(1, b"a", epoch=5)[0]["status"] == Code.ABANDONED
    assert rig.execute(1, *[b"a"] * 9)[0]["status"] == Code.BAD_BATCH
    assert rig.execute(1, b"a", size_class=8)[0]["status"] == Code.BAD_PAYLOAD_SIZE
    assert rig.execute(1, b"a", size_class=9) [0]["status"] == Code.DEVICE_ERROR
    fields, payload = rig.execute(1, b"a")  # and it goes on
    assert fields["status"] == 0 and payload == [b"b"]
    rig.controller.act(rig.peer, Type.UNLOAD, model=7)
    assert rig.controller.result(rig.peer)[0]["status"] == Code.NOT_RESIDENT
    assert rig.prepare(name="absent", image=b"N" * 16) == Code.NOT_HERE
    assert rig.prepare(image=b"C" * 16) == Code.CORRUPT
    assert rig.prepare(program=b"X" * 16) == Code.BAD_MODEL


def test_a_frame_count_that_is_not_the_rows_is_a_bad_batch(rig):
    assert rig.load(1) == 0
    rig.controller.act(rig.peer, Type.EXEC, (b"a",), model=1, batch=2, size_class=0, rows=[(1, 0, 0, 0)] * 2)
    assert rig.controller.result(rig.peer)[0]["status"] == Code.BAD_BATCH
    rig.controller.act(rig.peer, Type.EXEC, (), model=1, batch=2, size_class=0, rows=[])
    assert rig.controller.result(rig.peer)[0]["status"] == Code.BAD_BATCH


def test_prepare_stages_an_image_and_profile_measures(rig):
    assert rig.prepare(image=b"Z" * 16) == 0
    assert rig.load(30, image=b"Z" * 16) == 0
    assert rig.execute(30, b"\0")[1] == [b"Z"]
    rig.controller.act(rig.peer, Type.PROFILE, program_index=3, model=30, batch=8, size_class=0, repeats=5)
    fields, _ = rig.controller.result(rig.peer)
    assert fields["status"] == 0 and fields["device_ns"] == 102
    assert fields["end_ns"] - fields["begin_ns"] >= 1_000_000
    rig.controller.act(rig.peer, Type.PROFILE, program_index=3, model=30, batch=9, size_class=0, repeats=5)
    assert rig.controller.result(rig.peer)[0]["status"] == Code.BAD_BATCH


def test_a_full_lane_refuses_and_keeps_its_order(rig):
    assert rig.load(1) == 0
    rig.backend.gate.clear()
    sent = [rig.controller.execute(rig.peer, 1, (b"a",), dims=(1,))]
    assert rig.backend.running.wait(20)
    sent += [rig.controller.execute(rig.peer, 1, (b"a",), dims=(1,)) for _ in range(7)]
    statuses = {}
    for _ in range(3):  # one runs and four wait
        fields, _ = rig.controller.result(rig.peer)
        statuses[fields["action"]] = fields["status"]
    assert statuses == dict.fromkeys(sent[5:], int(Code.LANE_FULL))
    rig.backend.gate.set()
    for action in sent[:5]:
        fields, payload = rig.controller.result(rig.peer)
        assert (fields["action"], fields["status"], payload) == (action, 0, [b"b"])


def test_nothing_starts_before_earliest(rig):
    assert rig.load(1) == 0
    earliest_ns = time.monotonic_ns() + 30_000_000
    fields, _ = rig.execute(1, b"a", earliest_ns=earliest_ns)
    assert fields["status"] == 0 and fields["begin_ns"] >= earliest_ns
    late_ns = time.monotonic_ns() + 20_000_000
    rig.backend.gate.clear()
    rig.controller.execute(rig.peer, 1, (b"a",), dims=(1,))
    rig.controller.execute(rig.peer, 1, (b"a",), dims=(1,), latest_ns=late_ns)
    time.sleep(0.05)
    rig.backend.gate.set()
    assert rig.controller.result(rig.peer)[0]["status"] == 0
    assert rig.controller.result(rig.peer)[0]["status"] == Code.TOO_LATE


def test_an_unload_waits_for_the_last_use_inside_its_window(rig):
    assert rig.load(1) == 0
    rig.backend.gate.clear()
    rig.controller.execute(rig.peer, 1, (b"a",), dims=(1,))
    assert rig.backend.running.wait(10)
    rig.controller.act(rig.peer, Type.UNLOAD, model=1, latest_ns=time.monotonic_ns() + 2_000_000_000)
    assert rig.controller.result(rig.peer)[0]["status"] == Code.IN_USE
    unload = rig.controller.act(rig.peer, Type.UNLOAD, model=1)
    time.sleep(0.02)
    while rig.controller.pump(0):  # its heartbeats
        pass
    assert not rig.controller.inbox[rig.peer]
    rig.backend.gate.set()
    fields, _ = rig.controller.result(rig.peer)
    assert fields["type"] == Type.EXEC_RESULT and fields["status"] == 0
    fields, _ = rig.controller.result(rig.peer)
    assert fields["action"] == unload and fields["pages_free"] == 5


def test_a_restarted_controller_inherits_the_pages(rig):
    assert rig.load(1) == 0 and rig.load(2) == 0
    rig.backend.gate.clear()
    rig.controller.execute(rig.peer, 1, (b"old",), dims=(3,))
    assert rig.backend.running.wait(10)
    rig.controller.execute(rig.peer, 1, (b"old",), dims=(3,))
    rig.controller.close()
    rig.controller = FakeController(rig.endpoint, epoch=78, heartbeat_ms=100)
    rig.peer, hello = rig.controller.hello_after_stranger()
    assert sorted([hello["caps"]["resident"][:32], hello["caps"]["resident"][32:]]) == [
        bytes([model]) * 16 + PROGRAM for model in (1, 2)]
    rig.controller.welcome(rig.peer)
    rig.controller.last_action = 1000
    assert rig.load(21, image=bytes([1]) * 16) == Code.NOT_PREPARED
    rig.controller.load(rig.peer, 99, pages=2, program_index=3)  # (an index of the old epoch)
    assert rig.controller.result(rig.peer)[0]["status"] == Code.NOT_PREPARED
    rig.backend.gate.set()
    assert rig.prepare() == 0
    assert rig.execute(1, b"a")[0]["status"] == Code.NOT_RESIDENT
    rig.controller.load(rig.peer, 21, pages=2, image=bytes([1]) * 16, program_index=3)
    fields, _ = rig.controller.result(rig.peer)
    assert fields["status"] == 0 and fields["pages_free"] == 3  # adopted
    assert rig.backend.binds == 2
    fields, payload = rig.execute(21, b"a")
    assert fields["action"] > 1000 and payload == [b"b"]
    assert rig.load(22, image=bytes([4]) * 16) == 0  # the orphan gives way
    assert rig.execute(22, b"a")[1] == [b"e"] and rig.execute(21, b"a")[1] == [b"b"]


def test_goodbye_comes_after_what_runs_has_ended(rig):
    assert rig.load(1) == 0
    fields, _ = rig.execute(1, b"a")
    rig.worker.stop()
    assert rig.controller.result(rig.peer)[0]["type"] == Type.GOODBYE
    rig.worker.stop = lambda: None


@pytest.mark.parametrize("slots", [1, 2])
def test_mutated_messages_disturb_nothing(tmp_path, slots):
    """Each is answered or counted; afterwards the worker serves as before and has lost no entry."""
    kept = 0xABCDEF  # no mutant's
    served = 0
    for batch in range(20):
        rig = Rig(f"ipc://{tmp_path}/{batch}.sock", slots=slots)
        assert rig.load(kept, image=b"\1" * 16) == 0
        for frames in rig.controller.mutants(100, seed=batch):
            rig.controller.socket.send_multipart([rig.peer, *frames])
        for marker in range(10**6, 10**6 + 40):
            rig.controller.execute(rig.peer, kept, (b"abc",), dims=(3,), action=marker)
            fields = {"action": 0}
            while fields["action"] != marker:
                fields, payload = rig.controller.result(rig.peer)
            # what came before may still be waiting, a mutant even for a far window
            assert (fields["status"], payload) == (0, [b"bcd"]) or fields["status"] == Code.LANE_FULL
            if fields["status"] == 0:
                break
            time.sleep(0.01)
        served += fields["status"] == 0
        entries = rig.worker.exchange.entries
        assert entries.counts[0] >= len(entries.free) - 1 - 2 * 5
        rig.close()
    assert served >= 10
