"""Clients with two endpoints before controllers that die and take over: over real sockets."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest
from fake_controller import FakeController, X

import cwd
from cwd.errors import Code, SloBelowExecution
from cwd.wire.messages import Type


class Pair:
    """Two controllers, of which the first serves."""

    def __init__(self, folder):
        self.first, self.second = (FakeController(folder / name, heartbeat_ms=50, lost_ms=1000) for name in ("a.sock", "b.sock"))
        self.second.stop()
        self.endpoint = f"{self.first.endpoint},{self.second.endpoint}"

    def take_over(self, epoch=2):
        self.first.stop()
        self.serve(self.second, epoch)

    def serve(self, controller, epoch):
        controller.epoch = epoch
        controller.start()


@pytest.fixture
def pair(tmp_path):
    made = Pair(tmp_path)
    yield made
    made.first.stop()
    made.second.stop()


@pytest.fixture
def probes(monkeypatch):
    """The endpoints that were probed for people."""
    made = []
    for module in (cwd.client.connection, cwd.client.aio):
        monkeypatch.setattr(module, "handshake_faults", lambda *args: made.append(args[0]) or "")
    return made


def test_a_blocking_client_moves_and_its_models_with_it(pair):
    with cwd.Client(pair.endpoint) as client:
        assert np.array_equal(client.infer("double", X, "20s").output, 2 * X)
        pair.first.on_infer = lambda fields, payload: None
        pending = client.submit("double", X, "600s")
        pair.first.sees(Type.INFER, 2)
        ends = []
        pending._call.on_done.append(ends.append)
        pair.take_over()
        with pytest.raises(cwd.ControllerLost):
            pending.result(60)
        assert np.array_equal(client.infer("double", X, "20s").output, 2 * X)
        assert np.array_equal(client.submit("double", X, "20s").result(30).output, 2 * X)
        assert len(ends) == 1 and len(client.models()) == 1
    handles = [fields["model"] >> 32 for kind, fields, _ in pair.second.seen if kind == Type.INFER]
    assert handles == [2, 2]


def test_a_call_under_way_is_made_again_within_its_deadline(pair):
    pair.first.on_infer = lambda fields, payload: pair.first.__setattr__("stop_now", True)  # it dies of it
    with cwd.Client(pair.endpoint) as client:
        pair.serve(pair.second, 2)
        assert np.array_equal(client.connect().infer("double", X, "60s").output, 2 * X)


def test_an_asyncio_client_moves_and_its_models_with_it(pair):
    async def main():
        async with cwd.AsyncClient(pair.endpoint) as client:
            assert np.array_equal((await client.infer("double", X, "20s")).output, 2 * X)
            pair.first.on_infer = lambda fields, payload: None
            waiting = asyncio.ensure_future(client.infer("double", X, "60s"))
            await asyncio.to_thread(pair.first.sees, Type.INFER, 2)
            await asyncio.to_thread(pair.take_over)
            assert np.array_equal((await waiting).output, 2 * X)
            assert np.array_equal((await client.infer("double", X, "20s")).output, 2 * X) and client.connected

    asyncio.run(main())
    assert [fields["model"] >> 32 for kind, fields, _ in pair.second.seen if kind == Type.INFER] == [2, 2]


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_what_is_left_for_a_repeated_request_says_nothing_of_its_slo(pair, kind):
    """The second controller refuses the rest of an SLO as shorter than an execution: that is not what was asked for."""
    pair.first.on_infer = lambda fields, payload: pair.first.__setattr__("stop_now", True)  # it dies of it
    pair.second.on_infer = lambda fields, payload: {"status": int(Code.SLO_BELOW_EXECUTION)}
    pair.serve(pair.second, 2)

    async def asks():
        async with cwd.AsyncClient(pair.endpoint) as client:
            with pytest.raises(cwd.ControllerLost):
                await client.infer("double", X, "20s")
            with pytest.raises(SloBelowExecution):  # nothing was lost on the way this time
                await client.infer("double", X, "20s")

    if kind == "asyncio":
        asyncio.run(asks())
    else:
        with cwd.Client(pair.endpoint) as client:
            for error in (cwd.ControllerLost, SloBelowExecution):
                with pytest.raises(error):
                    client.infer("double", X, "20s")
    assert sum(kind == Type.INFER for kind, _, _ in pair.second.seen) == 2


class EarlyLoop(asyncio.SelectorEventLoop):
    """A loop whose timers are early, as those of uvloop are, which counts milliseconds."""

    def call_later(self, delay, callback, *args, context=None):
        return super().call_later(max(delay - 0.005, 0), callback, *args, context=context)


def test_a_loop_whose_timers_are_early_goes_on_all_the_same(pair):
    async def main():
        async with cwd.AsyncClient(pair.endpoint) as client:
            await client.infer("double", X, "20s")
            await asyncio.to_thread(pair.first.stop)
            while client.connected:
                await asyncio.sleep(0.01)
            session = client._session
            before = session.generation
            while session.generation < before + 3:  # it goes on looking while nobody asks for anything
                await asyncio.sleep(0.01)
            await asyncio.to_thread(pair.serve, pair.second, 2)
            assert np.array_equal((await client.infer("double", X, "20s")).output, 2 * X)

    with asyncio.Runner(loop_factory=EarlyLoop) as runner:
        runner.run(asyncio.wait_for(main(), 60))


def test_without_a_controller_a_call_ends_with_its_deadline_and_says_when_to_come_back(pair, probes):
    with cwd.Client(pair.endpoint) as client:
        client.infer("double", X, "20s")
        pair.first.stop()
        for _ in range(2):
            with pytest.raises(cwd.ControllerLost, match="b.sock") as caught:
                client.infer("double", X, "300ms")
            assert caught.value.earliest_ns > 0
        with pytest.raises(cwd.ControllerLost):
            client.submit("double", X, "300ms")
        assert not probes, "a request waited for what is only said to people"
        with pytest.raises(cwd.ControllerLost):
            client.connect(timeout=0.1)
        assert probes == [tuple(pair.endpoint.split(","))]

    async def main():
        async with cwd.AsyncClient(pair.endpoint) as client:
            with pytest.raises(cwd.ControllerLost):
                await client.known("double", timeout=0.1)
            assert len(probes) == 1 and client.retry_ns > 0 and not client.connected

    asyncio.run(main())


def test_a_former_leader_is_not_asked(pair):
    with cwd.Client(pair.endpoint) as client:
        pair.take_over(epoch=9)
        client.infer("double", X, "20s")
        pair.second.stop()
        pair.first.seen.clear()
        pair.serve(pair.first, 8)
        with pytest.raises(cwd.ControllerLost, match="former"):
            client.infer("double", X, "3s")
        pair.first.sees(Type.HELLO)
        pair.serve(pair.second, 10)
        assert np.array_equal(client.infer("double", X, "60s").output, 2 * X)
    assert {kind for kind, _, _ in pair.first.seen} == {Type.HELLO}


def test_an_endpoint_that_is_deaf_is_passed_by(pair):
    pair.first.deaf = True
    time.sleep(0.05)
    pair.serve(pair.second, 1)
    with cwd.Client(pair.endpoint) as client:
        assert np.array_equal(client.infer("double", X, "20s").output, 2 * X)


def test_whoever_refuses_is_passed_by_but_an_unknown_version_is_final(pair):
    pair.first.hello_error = int(Code.DRAINING)
    pair.serve(pair.second, 1)
    with cwd.Client(pair.endpoint) as client:
        assert np.array_equal(client.infer("double", X, "20s").output, 2 * X)
    pair.first.hello_error = int(Code.UNSUPPORTED_VERSION)
    with cwd.Client(pair.endpoint) as client, pytest.raises(cwd.CwdError) as caught:
        client.infer("double", X, "20s")
    assert caught.value.code == Code.UNSUPPORTED_VERSION
