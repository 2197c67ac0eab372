"""Workers with two endpoints before scripted controllers that die and take over: over real sockets."""

from __future__ import annotations

import pytest
from fake_backend import PAGE, PROGRAM, FakeBackend, FakeStore
from lone_controller import FakeController
from test_emulated import options, running

from cwd.wire.messages import Type
from cwd.worker.host import DeviceWorker

FIRST, SECOND, THIRD = 5, 6, 7


@pytest.fixture
def places(tmp_path):
    return f"ipc://{tmp_path}/a.sock", f"ipc://{tmp_path}/b.sock"


def greet_all(controller, count, opened):
    """Welcome whoever says HELLO until `count` names have and all `opened()`; name -> (its peer, its HELLO)."""
    found = {}
    while len(found) < count or opened() < count or controller.hellos:
        controller.pump(10)
        while controller.hellos:  # of an attempt that was given up meanwhile another one follows
            peer, hello = controller.hellos.popleft()
            controller.welcome(peer)
            found[hello["name"]] = (peer, hello)
    return found


def test_a_hundred_emulated_gpus_follow(places):
    count = 100
    first = FakeController(places[0], epoch=FIRST, heartbeat_ms=100)
    with running(options(",".join(places), device=f"emulated:{count}")) as worker:
        for name, (peer, hello) in greet_all(first, count, lambda: worker.open_count).items():
            assert hello["caps"]["resident"] == b"", name
            first.act(peer, Type.PREPARE, name="m", version=1, program=bytes(16), image=bytes(16), program_index=0)
            first.load(peer, 5, pages=3)
            assert [first.result(peer)[0]["status"] for _ in range(2)] == [0, 0]
        first.close()
        with FakeController(places[1], epoch=SECOND, heartbeat_ms=500) as second:
            peers = greet_all(second, count, lambda: worker.open_count)
            assert len(peers) == count
            for peer, hello in peers.values():
                assert len(hello["caps"]["resident"]) == 32, "pages are told to the new leader"
                second.act(peer, Type.PREPARE, name="m", version=1, program=bytes(16), image=bytes(16), program_index=0)
                assert second.result(peer)[0]["status"] == 0
                second.load(peer, 9, pages=3)
                assert second.result(peer)[0]["status"] == 0
                second.execute(peer, 9, (b"a",))
                assert second.result(peer)[0]["status"] == 0


def test_a_former_leader_gets_no_gpu_back(places):
    first = FakeController(places[0], epoch=FIRST, heartbeat_ms=100)
    with running(options(",".join(places), device="emulated:2")) as worker:
        greet_all(first, 2, lambda: worker.open_count)
        first.close()
        with FakeController(places[1], epoch=SECOND, heartbeat_ms=100) as second:
            greet_all(second, 2, lambda: worker.open_count)
        with FakeController(places[0], epoch=FIRST) as former:
            while worker.open_count:  # until both have noticed the loss
                former.pump(10)
            for _ in range(6):
                former.greet()
                assert worker.open_count == 0
        with FakeController(places[1], epoch=THIRD) as third:
            greet_all(third, 2, lambda: worker.open_count)
            assert set(worker.state.links["epoch"].tolist()) == {THIRD}


def test_a_device_follows(places):
    backend = FakeBackend(1)
    worker = DeviceWorker(options(",".join(places), device="cpu", repo="unused", pages=5, page_bytes=PAGE, agenda_max=4,
                                  rows_max=8, spin_ns=0), backend, FakeStore(backend.weights_bytes))
    worker.start()
    try:
        for place, epoch in ((places[1], FIRST), (places[0], SECOND), (places[1], THIRD)):
            with FakeController(place, epoch=epoch, heartbeat_ms=100) as controller:
                before = int(worker.exchange.link["session"][0])
                (peer, hello), = greet_all(
                    controller, 1, lambda at=before: int(worker.session.open and worker.exchange.link["session"][0] > at)).values()
                assert len(hello["caps"]["resident"]) == (0 if epoch == FIRST else 32)
                controller.act(peer, Type.PREPARE, name="m", version=1, program=PROGRAM, image=bytes(16), program_index=3)
                assert controller.result(peer)[0]["status"] == 0
                controller.load(peer, epoch, pages=2, program_index=3, image=bytes([1]) * 16)
                assert controller.result(peer)[0]["status"] == 0
                controller.execute(peer, epoch, (b"a",), dims=(1,))
                assert controller.result(peer)[1] == [b"b"]
    finally:
        backend.gate.set()
        worker.stop()
    assert worker.failure is None and backend.binds == 1
