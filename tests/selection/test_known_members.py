"""What a look at the members costs an app's request: nothing of its SLO while they are looked up, and nothing more after."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest
from members import Members, X

from cwd.client import AsyncClient, Client
from cwd.selection.aio import AsyncApps
from cwd.selection.apps import App, AppStore, Member
from cwd.selection.blocking import Apps

SLO_NS = 5 * 10**9


@pytest.fixture(params=[False, True], ids=["plain", "cached"])
def world(request, tmp_path):
    """(controller, a store with an app of three members)."""
    controller = Members(tmp_path / "c.sock")
    with AppStore(tmp_path / "apps.db") as store:
        store.create(App("app", tuple(Member(f"m{i}") for i in range(3)), "exp4", combine="mean", cache=request.param,
                         slo_ns=SLO_NS))
        yield controller, store
    controller.stop()


def watched(apps):
    """The runs that are begun from now on, each with the deadline that it had then."""
    runs, begin = [], apps.desk.begin

    def begun(*args):
        run = begin(*args)
        runs.append((run, run.deadline_ns))
        return run

    apps.desk.begin = begun
    return runs


def moved(runs):
    """By how much each deadline was put off."""
    return [run.deadline_ns - deadline_ns for run, deadline_ns in runs]


def test_asyncio(world):
    controller, store = world

    async def hog(enough):
        while not enough.is_set():
            time.sleep(0.005)  # as callbacks of others do
            await asyncio.sleep(0)

    async def main():
        async with AsyncClient(controller.endpoint) as client, AsyncApps(client, store) as apps:
            runs, enough = watched(apps), asyncio.Event()
            await apps.predict("app", X)
            others = asyncio.ensure_future(hog(enough))
            for number in range(5):
                result = await apps.predict("app", X * number)
                assert result.members_answered == 3 and np.allclose(result["y"], 2 * number * X)
            enough.set()
            await others
            return moved(runs)

    first, *rest = asyncio.run(main())
    assert first > 0 and rest == [0] * 5


def test_blocking(world):
    controller, store = world
    with Client(controller.endpoint) as client, Apps(client, store) as apps:
        runs, enough = watched(apps), threading.Event()
        apps.predict("app", X)
        busy = threading.Thread(target=lambda: all(not enough.is_set() for _ in iter(int, 1)))
        busy.start()
        try:
            for number in range(5):
                assert apps.predict("app", X * number).members_answered == 3
        finally:
            enough.set()
            busy.join()
    first, *rest = moved(runs)
    assert first > 0 and rest == [0] * 5


def test_what_is_known_is_looked_up_again_on_another_connection(world):
    controller, store = world

    async def main():
        async with AsyncClient(controller.endpoint) as client, AsyncApps(client, store) as apps:
            await apps.predict("app", X)
            controller.restart()
            until = time.monotonic() + 20
            while time.monotonic() < until:
                try:
                    return (await apps.predict("app", X, 2.0)).members_answered
                except Exception:
                    await asyncio.sleep(0.05)

    assert asyncio.run(main()) == 3
