"""Both shells before a fake controller: whose answers, how many executions, deadlines, defaults, feedback."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time

import numpy as np
import pytest
from members import Members, X

from cwd.client import AsyncClient, Client
from cwd.errors import (
    BadRequest, Code, ControllerLost, CwdError, DeadlineMissed, DeadlineUnreachable, ExecutionFailed, UnknownModel,
)
from cwd.selection.aio import AsyncApps
from cwd.selection.apps import App, AppStore, Member
from cwd.selection.blocking import Apps
from cwd.wire.messages import Type


class Blocking:
    """Several calls at once, by threads."""

    def __init__(self, endpoint, store, settings):
        self.client = Client(endpoint, slo="5s")
        self.apps = Apps(self.client, store, *settings)

    def call(self, name, *calls):
        """The outcome of each of `calls`, (arguments, keywords), which begin at the same time."""
        ends = [None] * len(calls)

        def one(index, args, kwargs):
            try:
                ends[index] = getattr(self.apps, name)(*args, **kwargs)
            except CwdError as error:
                ends[index] = error

        threads = [threading.Thread(target=one, args=(i, *call)) for i, call in enumerate(calls)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        return ends

    def close(self):
        self.apps.close()
        self.client.close()


class Asyncio:
    """Several calls at once, by coroutines of a loop in a thread."""

    def __init__(self, endpoint, store, settings):
        self.runner = asyncio.Runner()
        self.runner.run(self.open(endpoint, store, settings))

    async def open(self, endpoint, store, settings):
        self.client = AsyncClient(endpoint, slo="5s")
        self.apps = AsyncApps(self.client, store, *settings)

    def call(self, name, *calls):
        async def one(args, kwargs):
            try:
                return await getattr(self.apps, name)(*args, **kwargs)
            except CwdError as error:
                return error

        async def main():
            return await asyncio.wait_for(asyncio.gather(*(one(*call) for call in calls)), 30)

        return self.runner.run(main())

    def close(self):
        async def main():
            await self.apps.close()
            await self.client.close()

        self.runner.run(main())
        self.runner.close()


class World:
    """A controller, a store of apps, and a shell."""

    def __init__(self, shell, folder):
        self.kind, self.folder = shell, folder
        self.controller = Members(folder / "c.sock")
        self.store = AppStore(folder / "apps.db")
        self.shell = None

    def open(self, *settings):
        if self.shell is not None:
            self.shell.close()
        self.shell = self.kind(self.controller.endpoint, self.store, settings)

    def app(self, name="app", members=1, **fields):
        self.store.create(App(name, tuple(Member(f"m{i}") for i in range(members)), **{"slo_ns": 5 * 10**9, **fields}))

    def predict(self, *args, times=1, **kwargs):
        if self.shell is None:
            self.open()
        found = self.shell.call("predict", *[(args, kwargs)] * times)
        return found if times > 1 else found[0]

    def feedback(self, *args, **kwargs):
        return self.shell.call("feedback", (args, kwargs))[0]

    def close(self):
        if self.shell is not None:
            self.shell.close()
        self.store.close()
        self.controller.release.set()
        self.controller.stop()


@pytest.fixture(params=[Blocking, Asyncio])
def world(request, tmp_path):
    world = World(request.param, tmp_path)
    yield world
    world.close()


def test_one_model(world):
    world.app()
    result = world.predict("app", X)
    assert np.array_equal(result["y"], X) and result.answered == ("m0",) and not result.cached
    assert world.predict("app", X).request_id != result.request_id and world.controller.executions[0] == 2
    assert world.predict("app", {"x": X}, "2s")["y"].tolist() == [1, 2, 3]


@pytest.mark.parametrize("fields", [{}, {"cache": True}, {"default": "0"}])
def test_errors_are_those_of_the_client(world, fields):
    world.app(**fields)
    world.controller.refusing = {0: Code.EXECUTION_FAILED}
    assert world.predict("app", np.zeros(4, "f4")).code == Code.BAD_SHAPE
    found = world.predict("app", X)
    assert isinstance(found, ExecutionFailed) if "default" not in fields else found.reason == "EXECUTION_FAILED"
    assert isinstance(world.predict("nobody", X), UnknownModel)
    world.controller.silent_members = {0}
    found = world.predict("app", X, 0.05)
    assert isinstance(found, DeadlineMissed) if "default" not in fields else found.reason == "DEADLINE_MISSED"
    world.app("none")
    world.store.change("none", members=())
    assert world.predict("none", X).code == Code.MODEL_NOT_READY


def test_an_app_whose_model_is_not_there(world):
    world.store.create(App("app", (Member("gone"),), cache=True))
    assert isinstance(world.predict("app", X), UnknownModel)
    world.store.create(App("with", (Member("gone"), Member("m1")), "exp4", combine="mean"))
    result = world.predict("with", X, "2s")
    assert result.answered == ("m1",) and result.members_asked == 2 and result["y"].tolist() == [2, 4, 6]


def test_an_ensemble_and_a_straggler(world):
    world.app(members=3, policy="exp4", combine="mean", scale=10.0)
    result = world.predict("app", X)
    assert result["y"].tolist() == [2, 4, 6] and result["y"].dtype == np.float32 and result.answered == ("m0", "m1", "m2")
    world.controller.silent_members = {1}
    began = time.monotonic()
    result = world.predict("app", X, 0.2)
    assert result.answered == ("m0", "m2") and result.members_asked == 3 and result["y"].tolist() == [2, 4, 6]
    assert result.confidence < 2 / 3 and 0.15 < time.monotonic() - began
    world.controller.silent_members = {0, 1, 2}
    assert isinstance(world.predict("app", X, 0.1), DeadlineMissed)


def test_a_thousand_equal_requests_at_once_cost_one_execution(world):
    world.app(cache=True)
    assert world.predict("app", X * 5)["y"].tolist() == [5, 10, 15]  # the model is looked up
    world.controller.release.clear()
    timer = threading.Timer(0.5, world.controller.release.set)
    timer.start()
    results = world.predict("app", X, times=200 if world.kind is Blocking else 1000)
    timer.join()
    assert all(np.array_equal(result["y"], X) for result in results), results[0]
    assert world.controller.executions[0] == 2 and len({result.request_id for result in results}) == len(results)
    assert sum(result.cached for result in results) == len(results) - 1
    assert world.predict("app", X).cached == 1 and world.controller.executions[0] == 2
    facts = world.shell.apps.desk.cache.facts()
    assert (facts["hits"] + facts["joins"], facts["misses"]) == (len(results), 2)


def test_who_joined_an_execution_that_was_refused_asks_again(world):
    world.app(cache=True)
    world.predict("app", X * 5)
    world.controller.refusing = {0: Code.DEADLINE_UNREACHABLE}
    world.controller.release.clear()
    timer = threading.Timer(0.3, world.controller.release.set)
    timer.start()
    ends = world.shell.call("predict", *[(("app", X, slo), {}) for slo in (2.0, 3.0, 4.0)])
    timer.join()
    assert all(isinstance(end, DeadlineUnreachable) for end in ends)
    assert 2 <= world.controller.executions[0] <= 4  # an error is not kept, nor more often asked than there are requests
    world.controller.refusing = {}
    assert world.predict("app", X)["y"].tolist() == [1, 2, 3]


def test_a_name_that_stands_for_another_version(world):
    world.app(cache=True)
    world.controller.versions = {"m0": 1}
    first = world.predict("app", X)
    assert first.cached == 0 and world.predict("app", X).cached == 1
    world.controller.versions = {"m0": 2}
    until = time.monotonic() + 10
    while world.predict("app", X).cached and time.monotonic() < until:
        time.sleep(0.05)
    assert world.controller.executions[0] == 2 and time.monotonic() < until
    assert len(world.shell.apps.desk.cache) == 2 and world.shell.apps.invalidate("m0", 1) == 1


def test_a_controller_that_is_restarted(world):
    world.app(members=2, policy="exp4", combine="mean", cache=True)
    world.predict("app", X)
    world.controller.restart()
    assert world.predict("app", X * 2, "4s").answered == ("m0", "m1")
    world.controller.stop()
    assert isinstance(world.predict("app", X * 3, 0.3), (ControllerLost, DeadlineMissed))


def test_a_member_that_is_silent_after_a_restart_holds_up_nobody(world):
    world.app(members=3, policy="exp4", combine="mean")
    world.predict("app", X)
    asked = sum(kind == Type.INFER for kind, _, _ in world.controller.seen)
    world.controller.silent_members = {0, 1, 2}

    def restart():
        world.controller.sees(Type.INFER, asked + 3)
        world.controller.stop()
        world.controller.silent_members = {0}
        world.controller.restart()

    other = threading.Thread(target=restart)
    other.start()
    result = world.predict("app", X, 2.0)
    other.join()
    assert not isinstance(result, CwdError), result
    assert result.answered == ("m1", "m2") and result["y"].tolist() == [2.5, 5, 7.5]


def test_changes_of_an_app_are_seen(world):
    world.app()
    assert world.predict("app", X).answered == ("m0",)
    with AppStore(world.folder / "apps.db") as other:
        other.unlink("app", [Member("m0")])
        other.link("app", [Member("m2")])
    until = time.monotonic() + 10
    while True:
        found = world.predict("app", X)
        if isinstance(found, CwdError) or found.answered == ("m2",) or time.monotonic() > until:
            break
        time.sleep(0.02)
    assert found.answered == ("m2",)


def test_what_is_changed_here_is_seen_at_once(world):
    world.app()
    for member in (1, 2, 0):
        world.predict("app", X)
        world.store.change("app", members=(Member(f"m{member}"),))
        assert world.predict("app", X)["y"].tolist() == [member + 1, 2 * member + 2, 3 * member + 3]
    world.store.remove("app")
    assert isinstance(world.predict("app", X), UnknownModel)


def test_feedback_teaches_the_policy_once_per_id(world):
    world.app(members=3, policy="exp4", parameters={"eta": 1.0, "share": 0.0}, combine="mean", loss="absolute",
              loss_parameters={"scale": 10.0}, output="y")
    result = world.predict("app", X)
    assert world.feedback(result.request_id, X) is True and world.feedback(f"{result.request_id:016x}", X) is False
    entry = world.shell.apps.desk.states().get(world.store.get("app").key, "")
    assert entry.version == 1 and entry.members == ("m0", "m1", "m2")
    assert np.allclose(entry.state.log_weights, [0, -0.2, -0.4])
    assert world.feedback(result.request_id, X, feedback_id="another") is True
    weights = np.exp([0, -0.4, -0.8])
    assert np.allclose(world.predict("app", X)["y"], X * ((weights / weights.sum()) @ [1, 2, 3]))
    assert world.feedback(result, X) is False and isinstance(world.feedback("no id", X), BadRequest)
    assert isinstance(world.feedback(12345, X), BadRequest) and isinstance(world.feedback(True, X), BadRequest)
    # what a new process finds
    world.open()
    assert np.allclose(world.predict("app", X)["y"], X * ((weights / weights.sum()) @ [1, 2, 3]))


def test_feedback_on_an_input_joins_the_cached_prediction(world):
    world.app(members=2, policy="exp4", combine="mean", loss="absolute", cache=True)
    world.predict("app", X)
    assert world.feedback(label=X, app="app", inputs=X, feedback_id="f1") is True
    assert world.feedback(label=X, app="app", inputs=X, feedback_id="f1") is False
    assert world.controller.executions == {0: 1, 1: 1}
    assert isinstance(world.feedback(label=X), BadRequest)


def test_each_user_has_a_state_of_its_own(world):
    world.app(members=2, policy="exp3", parameters={"gamma": 0.0, "eta": 5.0, "share": 0.0}, loss="absolute", context="user")
    assert world.predict("app", X).code == Code.BAD_ARGUMENT
    right = {"anna": 0, "bert": 1}
    for _ in range(8):
        for user, member in right.items():
            world.feedback(world.predict("app", X, context=user).request_id, X * (member + 1))
    for user, member in right.items():
        assert [world.predict("app", X, context=user).answered for _ in range(3)] == [(f"m{member}",)] * 3
    assert world.predict("app", X, context="carl").members_answered == 1


def test_a_default_is_marked(world):
    world.app(default="[0, 0, 7]", members=2, policy="exp4", combine="vote", confidence_min=0.9)
    world.controller.silent_members = {0, 1}
    result = world.predict("app", X, 0.1)
    assert result.default and result.reason == "DEADLINE_MISSED" and result.output.tolist() == [0, 0, 7]
    world.controller.silent_members = {0}
    result = world.predict("app", X, 0.1)
    assert result.default and result.reason == "LOW_CONFIDENCE" and result.answered == ("m1",)
    world.controller.silent_members = set()
    assert world.predict("app", X)["y"] == 2 and not world.predict("app", X).default


def test_the_first_connection_is_not_held_against_an_slo(world):
    world.app(members=2, policy="exp4", combine="mean")
    world.controller.stop()
    world.open()
    timer = threading.Timer(0.6, world.controller.start)
    timer.start()
    result = world.predict("app", X, 0.4)
    timer.join()
    assert result.members_answered == 2


def test_without_time_nobody_is_asked(world):
    world.app()
    world.app("two", members=2, policy="exp4", combine="mean")
    for name in ("app", "two"):
        assert isinstance(world.predict(name, X, 1e-9), DeadlineMissed)
    assert not world.controller.executions


def test_an_app_that_cannot_be_read_leaves_the_others_alone(world, caplog):
    world.app()
    world.app("broken")
    with sqlite3.connect(world.folder / "apps.db") as other:
        other.execute("UPDATE app SET facts = '{\"of\": \"a newer cwd\"}' WHERE name = 'broken'")
    other.close()
    for _ in range(3):
        world.open()
        assert world.predict("app", X)["y"].tolist() == [1, 2, 3]
    assert isinstance(world.predict("broken", X), UnknownModel) and "'broken' cannot be read" in caplog.text
    with pytest.raises(CwdError):
        world.store.all()


def test_closing_ends_who_waits_for_a_lookup(tmp_path):
    async def main():
        controller = Members(tmp_path / "c.sock")
        async with AsyncClient(controller.endpoint) as client:
            await client.connect()
            apps = AsyncApps(client, tmp_path / "apps.db")
            apps.store.create(App("app", ("m0",), cache=True, slo_ns=60 * 10**9))
            controller.silent = True
            waiting = [asyncio.ensure_future(apps.predict("app", X)) for _ in range(2)]
            await asyncio.to_thread(controller.sees, Type.LOOKUP)
            waiting[0].cancel()
            await asyncio.sleep(0)
            await apps.close()
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        controller.stop()
        return outcomes

    cancelled, closed = asyncio.run(asyncio.wait_for(main(), 30))
    assert isinstance(cancelled, asyncio.CancelledError)
    assert isinstance(closed, CwdError) and closed.text == "these applications are closed"


def test_closed_applications_say_so(world):
    world.app()
    result = world.predict("app", X)
    world.shell.call("close", ((), {}))
    for found in (world.predict("app", X), world.feedback(result, X)):
        assert isinstance(found, CwdError) and found.text == "these applications are closed"


class Handed(dict):
    """Inputs that call `when` as they are first read."""

    def __init__(self, inputs, when):
        super().__init__(inputs)
        self.when = when

    def __getitem__(self, name):
        when, self.when = self.when, lambda: None
        when()
        return super().__getitem__(name)


@pytest.mark.parametrize("fields", [{"default": "0"}, {"cache": True}])
def test_a_handle_of_a_former_controller_is_another_models(world, fields):
    """The controller is another one between the lookup and the execution, and numbers its models in another order."""
    world.app(**fields)
    assert world.predict("app", X)["y"].tolist() == [1, 2, 3]

    def restart():
        for old, new in ((100, 101), (101, 100)):
            name = f"m{old - 100}"
            world.controller.models[name] = (new, world.controller.models[name][1])
        world.controller.restart()
        until = time.monotonic() + 20
        while world.kind is Blocking and world.shell.client.epoch < 2 and time.monotonic() < until:
            time.sleep(0.01)

    result = world.predict("app", Handed({"x": 3 * X}, restart), "20s")
    assert result["y"].tolist() == [6, 12, 18] and world.controller.epoch == 2


def test_an_execution_that_ends_in_no_way_of_ours_blocks_nobody(world, monkeypatch):
    world.app(cache=True)
    world.predict("app", X)
    world.controller.refusing = {0: Code.UNKNOWN_MODEL}  # which makes the blocking shell look the model up again
    owner, name = (Apps, "_look_up") if world.kind is Blocking else (type(world.shell.client), "infer")
    sound = getattr(owner, name)

    def fails(*args, **kwargs):
        raise RuntimeError("a fault")

    monkeypatch.setattr(owner, name, fails)
    with pytest.raises(RuntimeError, match="a fault"):
        if world.kind is Blocking:
            world.shell.apps.predict("app", 2 * X)
        else:
            world.predict("app", 2 * X)
    monkeypatch.setattr(owner, name, sound)
    world.controller.refusing = {}
    assert world.predict("app", 2 * X)["y"].tolist() == [2, 4, 6]
    assert not world.shell.apps.desk.cache._flights


def test_nobody_waits_for_a_lookup_of_what_is_known(world, monkeypatch):
    monkeypatch.setattr("cwd.selection.versions.AGAIN_NS", 0)
    world.app(cache=True)
    world.predict("app", X)
    world.controller.silent = True
    for _ in range(3):
        result = world.predict("app", X, "1s")
        assert result.cached == 1 and result["y"].tolist() == [1, 2, 3]
    world.controller.silent = False
