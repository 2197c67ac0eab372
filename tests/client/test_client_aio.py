"""The asyncio client over a real socket."""

import asyncio
import time

import numpy as np
import pytest
from fake_controller import FakeController, X

import cwd
from cwd.errors import Code
from cwd.wire.messages import Type


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def test_many_at_once(controller):
    async def main():
        async with cwd.AsyncClient(controller.endpoint) as client:
            results = await asyncio.gather(*(client.infer("double", X * i, "20s") for i in range(50)))
            assert all(np.array_equal(result.output, 2 * i * X) for i, result in enumerate(results))
            assert await client.models() == {"double/1": 7}
            assert (await client.lookup("double")).batch_sizes == (1, 4)

    run(main())
    controller.sees(Type.GOODBYE)


def test_known_asks_once_and_lookup_always(controller):
    async def main():
        async with cwd.AsyncClient(controller.endpoint) as client:
            assert not client.connected
            first = await client.known("double", timeout=5)
            assert client.connected and await client.known("double") is first
            assert (await client.lookup("double")).handle == first.handle
            with pytest.raises(cwd.UnknownModel):
                await client.known("nosuch")
            await asyncio.to_thread(controller.stop)
            while client.connected:
                await asyncio.sleep(0.01)
            began = time.monotonic()
            with pytest.raises(cwd.ControllerLost):
                await client.known("double", timeout=0.1)
            assert time.monotonic() - began < 5

    run(main())
    assert sum(kind == Type.LOOKUP for kind, _, _ in controller.seen) == 3


def test_deadline_refusal_and_bad_input(controller):
    async def main():
        async with cwd.AsyncClient(controller.endpoint, slo="150ms") as client:
            await client.lookup("double")
            controller.on_infer = lambda fields, payload: None
            longer = asyncio.ensure_future(client.infer("double", X, "60s"))
            began = time.monotonic()
            with pytest.raises(cwd.DeadlineMissed, match="150ms"):
                await client.infer("double", X)
            assert time.monotonic() - began >= 0.15 and not longer.done(), "at its own deadline"
            controller.on_infer = lambda fields, payload: {"status": int(Code.QUEUE_FULL)}
            with pytest.raises(cwd.QueueFull):
                await client.infer("double", X, "20s")
            with pytest.raises(cwd.BadRequest):
                await client.infer("double", X.astype("f8"), "20s")
            with pytest.raises(cwd.UnknownModel):
                await client.infer("nosuch", X, "20s")
        with pytest.raises(cwd.ControllerLost):
            await longer

    run(main())


def test_cancelled_coroutine_cancels_the_request(controller):
    async def main():
        controller.on_infer = lambda fields, payload: None
        async with cwd.AsyncClient(controller.endpoint) as client:
            request = asyncio.ensure_future(client.infer("double", X, "60s"))
            await asyncio.to_thread(controller.sees, Type.INFER)
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
            await asyncio.to_thread(controller.sees, Type.CANCEL)

    run(main())
    infer = next(fields for kind, fields, _ in controller.seen if kind == Type.INFER)
    assert [fields["request"] for kind, fields, _ in controller.seen if kind == Type.CANCEL] == [infer["request"]]


def test_idle_then_restarted_then_dead(tmp_path):
    controller = FakeController(tmp_path / "idle.sock", lost_ms=2000)

    async def main():
        async with cwd.AsyncClient(controller.endpoint) as client:
            await client.infer("double", X, "20s")
            await asyncio.sleep(2.5)
            assert sum(kind == Type.HELLO for kind, _, _ in controller.seen) == 1
            await asyncio.to_thread(controller.restart)
            assert np.array_equal((await client.infer("double", X, "20s")).output, 2 * X)
            await asyncio.to_thread(controller.stop)
            with pytest.raises(cwd.RequestError):
                await client.infer("double", X, "300ms")

    run(main())


def test_closing_ends_what_waits(controller):
    async def main():
        controller.on_infer = lambda fields, payload: None
        client = cwd.AsyncClient(controller.endpoint)
        waiting = asyncio.ensure_future(client.infer("double", X, "600s"))
        await asyncio.to_thread(controller.sees, Type.INFER)
        await client.close()
        with pytest.raises(cwd.ControllerLost):
            await waiting

    run(main())
