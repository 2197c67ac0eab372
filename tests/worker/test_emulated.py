"""A process of emulated GPUs against a scripted controller, over a real socket."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from lone_controller import FakeController

from cwd.errors import Code, CwdError
from cwd.models import profile
from cwd.models.repository import Repository
from cwd.models.spec import ProgramSpec, TensorSpec
from cwd.wire.messages import Type
from cwd.worker.emulated_host import EmulatedWorker
from cwd.worker.options import WorkerOptions


@contextmanager
def running(options: WorkerOptions) -> Iterator[EmulatedWorker]:
    """The worker in a thread of its own, stopped and joined in the end."""
    wake, stop = os.pipe()
    worker = EmulatedWorker(options, wake)
    faults: list[BaseException] = []

    def serve() -> None:
        try:
            while worker.step():
                pass
            worker.close()
        except BaseException as error:
            faults.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield worker
    finally:
        os.write(stop, b"x")
        thread.join(20)
        os.close(wake)
        os.close(stop)
    assert not thread.is_alive() and not faults, faults


@pytest.fixture
def endpoint(tmp_path) -> str:
    return f"ipc://{tmp_path}/workers.sock"


def options(endpoint: str, **more) -> WorkerOptions:
    return WorkerOptions(**{"device": "emulated:1", "endpoint": endpoint, "name": "emu", "pages": 4, **more})


def test_fifty_gpus_each_load_execute_and_unload(endpoint):
    with FakeController(endpoint) as controller, running(options(endpoint, device="emulated:50")):
        peers = {}
        for _ in range(50):
            peer, hello = controller.greet()
            peers[hello["name"]] = peer
            assert hello["caps"]["kind"] == "emulated" and hello["caps"]["images"] is True
            assert hello["caps"]["pages_total"] == 4 and hello["caps"]["resident"] == b""
        assert set(peers) == {f"emu/{g}" for g in range(50)}
        sent = {}
        for peer in peers.values():
            sent[peer] = [controller.load(peer, 5, pages=3), controller.act(peer, Type.PREPARE, name="m", version=1,
                          program=bytes(16), image=bytes(16), program_index=0)]
        for peer in peers.values():
            got = [controller.result(peer)[0] for _ in range(2)]
            assert sorted(fields["action"] for fields in got) == sent[peer]
            assert all(fields["status"] == 0 for fields in got)
            load = next(fields for fields in got if fields["action"] == sent[peer][0])
            assert load["pages_free"] == 1
        for peer in peers.values():
            sent[peer] = [controller.execute(peer, 5, (b"a", b"bc")) for _ in range(3)]
        for peer in peers.values():
            for action in sent[peer]:
                fields, payload = controller.result(peer)
                assert (fields["type"], fields["action"], fields["status"]) == (Type.EXEC_RESULT, action, 0)
                assert fields["rows_done"] == 2 and payload == [b"", b""]
                assert fields["received_ns"] <= fields["begin_ns"] <= fields["end_ns"] <= fields["sent_ns"]
        for peer in peers.values():
            controller.act(peer, Type.UNLOAD, model=5)
            assert controller.result(peer)[0]["pages_free"] == 4


def test_outputs_have_the_size_that_each_request_asks_for(endpoint, tmp_path):
    spec = ProgramSpec(
        inputs=(TensorSpec("x", "float32", ("length", "width")),), batch_sizes=(1, 2, 4), factory="a:b", axes=("length", "width"),
        outputs=(TensorSpec("y", "float32", ("length", "width")), TensorSpec("z", "int64", ("length", 3)),
                 TensorSpec("pooled", "float32", (5,))),
        size_classes=((4, 4), (16, 16)), padding="free")
    repository = Repository(tmp_path / "repo", create=True)
    program = repository.add_program(spec)
    profile.write_table(repository, program, "emulated", dict.fromkeys(profile.pairs(spec), 1000), load_ns_per_page=1000)
    with FakeController(endpoint) as controller, running(options(endpoint, repo=str(repository.root), rows_max=4)):
        peer, _ = controller.greet()
        controller.act(peer, Type.PREPARE, name="m", version=1, program=program, image=bytes(16), program_index=2)
        controller.load(peer, 1, program_index=2)
        for _ in range(2):
            assert controller.result(peer)[0]["status"] == 0
        # more rows in all than the worker keeps at once, refused ones among them
        for turn in range(150):
            dims = [(1 + (turn + i) % 16, 1 + turn % 16) for i in range(1 + turn % 4)]
            if turn % 5 == 0:
                controller.execute(peer, 1, (b"",) * 3, latest_ns=1)
                assert controller.result(peer)[0]["status"] == Code.TOO_LATE
            controller.act(peer, Type.EXEC, (b"",) * len(dims), model=1, batch=4, size_class=1,
                           rows=[(*pair, 0, 0) for pair in dims])
            fields, payload = controller.result(peer)
            assert fields["status"] == 0 and [len(frame) for frame in payload] == [spec.output_bytes(pair) for pair in dims]


def test_a_load_takes_what_its_profile_says_whatever_is_expected(endpoint, tmp_path):
    """Expectations follow the slowest that was seen: a LOAD as slow as that would be slower each time."""
    spec = ProgramSpec(inputs=(TensorSpec("x", "float32", (1,)),), outputs=(TensorSpec("y", "float32", (1,)),), factory="a:b",
                       batch_sizes=(1,))
    repository = Repository(tmp_path / "repo", create=True)
    program = repository.add_program(spec)
    profile.write_table(repository, program, "emulated", dict.fromkeys(profile.pairs(spec), 1000), load_ns_per_page=1001,
                        page_bytes=1 << 20)
    with FakeController(endpoint) as controller, running(
            options(endpoint, repo=str(repository.root), pages=8, page_bytes=4 << 20)):
        peer, _ = controller.greet()
        for known, index in ((program, 2), (bytes(16), 3)):
            controller.act(peer, Type.PREPARE, name="m", version=1, program=known, image=bytes(16), program_index=index)
            assert controller.result(peer)[0]["status"] == 0
        taken = {}
        for model, index in enumerate((2, 3)):
            controller.load(peer, model, pages=3, program_index=index, expected_ns=70_000)
            fields, _ = controller.result(peer)
            taken[index] = fields["end_ns"] - fields["begin_ns"]
        assert taken == {2: 3 * 4 * 1001, 3: 70_000}, "of the second program there is no profile"


def test_more_rows_than_can_be_kept_find_the_lane_full(endpoint):
    with FakeController(endpoint) as controller, running(options(endpoint, rows_max=2)):
        peer, _ = controller.greet()
        far_ns = time.monotonic_ns() + 3600 * 10**9
        for _ in range(32):
            controller.execute(peer, 1, (b"a", b"b"), earliest_ns=far_ns)
        refused = controller.execute(peer, 1, earliest_ns=far_ns)
        fields, _ = controller.result(peer)
        assert (fields["action"], fields["status"]) == (refused, Code.LANE_FULL)


def test_refusals_have_their_codes(endpoint):
    with FakeController(endpoint) as controller, running(options(endpoint, agenda_max=2, rows_max=4)):
        peer, _ = controller.greet()

        def status(action: int) -> int:
            fields, payload = controller.result(peer)
            assert fields["action"] == action and payload == []
            return fields["status"]

        assert status(controller.execute(peer, 1)) == Code.NOT_RESIDENT
        assert status(controller.load(peer, 1, pages=5)) == Code.NO_PAGES
        assert status(controller.load(peer, 1, pages=2)) == 0
        assert status(controller.load(peer, 1, pages=2)) == Code.ALREADY_RESIDENT
        assert status(controller.load(peer, 2, pages=3)) == Code.NO_PAGES
        assert status(controller.execute(peer, 1, (b"",) * 5)) == Code.BAD_BATCH
        assert status(controller.execute(peer, 1, (b"", b""), batch=1)) == Code.BAD_BATCH
        assert status(controller.execute(peer, 1, latest_ns=1)) == Code.TOO_LATE
        assert status(controller.execute(peer, 1, epoch=5)) == Code.ABANDONED
        assert status(controller.act(peer, Type.UNLOAD, model=2)) == Code.NOT_RESIDENT
        far_ns = time.monotonic_ns() + 3600 * 10**9
        for _ in range(2):
            controller.execute(peer, 1, earliest_ns=far_ns)
        assert status(controller.execute(peer, 1)) == Code.LANE_FULL


def test_actions_start_one_at_a_time_in_order_and_not_before_earliest(endpoint):
    with FakeController(endpoint) as controller, running(options(endpoint)):
        peer, _ = controller.greet()
        controller.load(peer, 1)
        controller.result(peer)
        first_ns = time.monotonic_ns() + 50_000_000
        sent = [controller.execute(peer, 1, earliest_ns=first_ns, expected_ns=2_000_000)]
        sent += [controller.execute(peer, 1, expected_ns=2_000_000) for _ in range(4)]
        end_ns = first_ns
        for action in sent:
            fields, _ = controller.result(peer)
            assert fields["action"] == action and fields["status"] == 0
            assert fields["begin_ns"] >= end_ns
            assert fields["end_ns"] - fields["begin_ns"] == 2_000_000
            end_ns = fields["end_ns"]


def test_an_unload_waits_for_the_last_use(endpoint):
    with FakeController(endpoint) as controller, running(options(endpoint)):
        peer, _ = controller.greet()
        controller.load(peer, 1)
        controller.result(peer)
        controller.execute(peer, 1, expected_ns=100_000_000)
        controller.act(peer, Type.UNLOAD, model=1)
        controller.execute(peer, 1)
        by_type = {}
        for _ in range(3):
            fields, _ = controller.result(peer)
            by_type.setdefault(fields["type"], []).append(fields)
        first, second = by_type[Type.EXEC_RESULT]
        assert first["status"] == 0 and second["status"] == Code.NOT_RESIDENT
        assert by_type[Type.RESULT][0]["end_ns"] >= first["end_ns"]


def test_a_new_controller_inherits_the_pages_and_old_results_are_not_sent(endpoint):
    with running(options(endpoint)):
        with FakeController(endpoint) as controller:
            peer, _ = controller.greet()
            controller.load(peer, 1, pages=2, image=b"A" * 16)
            controller.load(peer, 2, pages=1, image=b"B" * 16)
            for _ in range(2):
                assert controller.result(peer)[0]["status"] == 0
            controller.execute(peer, 1, expected_ns=10**9)
            controller.execute(peer, 1)
        with FakeController(endpoint, epoch=78, heartbeat_ms=100) as controller:
            peer, _ = controller.hello_after_stranger()
            controller.welcome(peer)
            # the old handle means nothing, the image is adopted without new pages
            assert controller.last_action == 0
            controller.execute(peer, 1)
            fields, _ = controller.result(peer)
            assert (fields["epoch"], fields["status"]) == (78, Code.NOT_RESIDENT)
            controller.load(peer, 9, pages=2, image=b"A" * 16, expected_ns=10**9)
            fields, _ = controller.result(peer)
            assert fields["status"] == 0 and fields["pages_free"] == 2
            assert fields["end_ns"] - fields["begin_ns"] < 10**9
            # the other one gives way
            controller.load(peer, 10, pages=2, image=b"C" * 16)
            fields, _ = controller.result(peer)
            assert fields["status"] == 0 and fields["pages_free"] == 0


def test_hello_tells_the_images_that_are_resident_after_a_reconnection(endpoint):
    with FakeController(endpoint) as controller, running(options(endpoint)):
        peer, _ = controller.greet()
        controller.act(peer, Type.PREPARE, name="m", version=1, program=b"P" * 16, image=bytes(16), program_index=3)
        controller.load(peer, 1, image=b"A" * 16, program_index=3)
        for _ in range(2):
            controller.result(peer)
        controller.send(peer, Type.ERROR, code=Code.NOT_INTRODUCED, re_type=0, re_id=0, text="who are you")
        peer, hello = controller.greet()
        assert hello["caps"]["resident"] in (b"A" * 16 + b"P" * 16, b"A" * 16 + bytes(16))
        assert hello["caps"]["programs"] == b"P" * 16


def test_heartbeats_are_answered_with_the_askers_clock(endpoint):
    with FakeController(endpoint, heartbeat_ms=50) as controller, running(options(endpoint)):
        peer, _ = controller.greet()
        controller.send(peer, Type.HEARTBEAT, seq=9, reply=0, sent_ns=1234, echo_ns=0, hold_ns=0, loop_max_ns=0,
                        queued=0)
        while not controller.inbox[peer]:
            assert controller.pump(5000)
        kind, fields, _ = controller.inbox[peer].popleft()
        assert kind == Type.HEARTBEAT and fields["reply"] == 1 and fields["echo_ns"] == 1234
        asked = controller.heartbeats
        while controller.heartbeats < asked + 3:  # it asks by itself where the controller is silent
            assert controller.pump(5000)


def test_a_silent_controller_is_given_up_and_greeted_again(endpoint):
    with FakeController(endpoint, heartbeat_ms=20, lost_ms=60) as controller, running(options(endpoint)):
        controller.greet()
        time.sleep(0.2)  # nothing is read, so nothing is answered
        peer, _ = controller.hello()
        controller.welcome(peer)


def test_mutated_messages_disturb_nothing(endpoint):
    with FakeController(endpoint) as controller, running(options(endpoint)):
        peer, _ = controller.greet()
        controller.load(peer, 1)
        assert controller.result(peer)[0]["status"] == 0
        for batch in range(20):
            for frames in controller.mutants(100, seed=batch):
                controller.socket.send_multipart([peer, *frames])
            controller.execute(peer, 1, (b"a",), action=10**6 + batch)
            while controller.result(peer)[0]["action"] != 10**6 + batch:
                pass
        controller.execute(peer, 1, (b"a", b"b"))
        fields, payload = controller.result(peer)
        assert fields["status"] in (0, Code.NOT_RESIDENT) and len(payload) == (0 if fields["status"] else 2)


@pytest.mark.parametrize(("code", "text"), [
    (Code.UNSUPPORTED_VERSION, "wanted CWDP/2"), (Code.MALFORMED, "pages of 4096 bytes, wanted 16777216")])
def test_a_worker_that_is_refused_says_why_and_ends(endpoint, code, text):
    wake, stop = os.pipe()
    with FakeController(endpoint) as controller:
        worker = EmulatedWorker(options(endpoint), wake)
        while not controller.hellos:
            worker.step()
            controller.pump(1000)  # (a HELLO that came only after the worker had given up would be of a dead connection)
        peer, _ = controller.hello()
        controller.send(peer, Type.ERROR, code=code, re_type=1, re_id=0, text=text)
        with pytest.raises(CwdError, match=f"refused this worker: {text}"):
            while worker.step():
                pass
        worker.close()
    os.close(wake)
    os.close(stop)
