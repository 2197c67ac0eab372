"""What changes under traffic: the version that a name stands for, workers that are drained, clients that vanish."""

from __future__ import annotations

import signal

import pytest
from play import DYNAMIC, SECOND, serve

from cwd.controller.replay import replay
from cwd.errors import Code
from cwd.models.repository import Repository
from cwd.wire.messages import Type


@pytest.fixture
def versions(started, tmp_path):
    """A controller of one model with versions 1 and 2, of which 1 is in use; a worker; a client with the name's handle."""
    repository = Repository(tmp_path / "repo", create=True)
    controller = started(models=1)
    first = repository.get("fixed-0")
    repository.add("fixed-0", 2, first.manifest.program_hash, {}, seed=2)
    repository.add("fixed-0", 3, repository.add_program(DYNAMIC), {}, seed=3)
    worker, client, admin = controller.worker(), controller.client(), controller.admin()
    worker.settle(1)
    code, added = admin.ask("model.add", name="fixed-0", version=2)
    assert code == 0 and added["handle"] > 0
    images = {version: repository.get("fixed-0", version).manifest.image_hash for version in (1, 2)}
    return controller, worker, client, admin, images


def test_another_version_is_taken_into_use_for_clients_that_have_the_name_and_taken_back_at_once(versions):
    controller, worker, client, admin, images = versions
    name, pinned = client.lookup("fixed-0"), client.lookup("fixed-0", version=1)
    assert name != pinned and client.lookup("fixed-0") == name
    loaded = []

    def used(handle: int) -> bytes:
        """The image that serves a request for the handle."""
        request = client.infer(handle, slo_ns=15 * SECOND)
        while True:
            kind, action, payload = worker.next_action()
            if kind == Type.LOAD:
                loaded.append((action["model"], action["image"]))
                worker.done(action)
            elif kind == Type.EXEC:
                worker.executed(action, [b"answer!!"] * len(payload))
                assert client.reply(request)[0]["status"] == 0
                return dict(loaded)[action["model"]]

    assert used(name) == images[1] and used(pinned) == images[1]
    assert admin.ask("model.use", name="fixed-0", version=2) == (0, {"version": 2, "before": 1})
    assert used(name) == images[2] and used(pinned) == images[1]
    assert admin.ask("model.use", name="fixed-0", version=1) == (0, {"version": 1, "before": 2})
    assert used(name) == images[1]
    assert [image for _, image in loaded] == [images[1], images[2]], "going back needs no LOAD"
    listed = admin.ask("model.ls", after=0)[1]["models"]
    assert {key: model["in_use"] for key, model in listed.items()} == {"fixed-0/1": True, "fixed-0/2": False}
    assert admin.ask("model.rm", name="fixed-0", version=1)[0] == 0
    assert used(name) == images[2], "what is left takes its place"
    assert admin.ask("model.rm", name="fixed-0")[0] == 0
    gone = client.infer(name)
    assert client.reply(gone)[0]["status"] == Code.UNKNOWN_MODEL


def test_a_standby_is_loaded_before_it_is_used(versions):
    controller, worker, client, admin, images = versions
    client.lookup("fixed-0")
    assert admin.ask("model.warm", name="fixed-0", version=2) == (0, {"copies": 0})
    kind, action, _ = worker.next_action()
    assert kind == Type.LOAD and action["image"] == images[2]
    worker.done(action)
    copies = 0
    for _ in range(1000):
        copies = admin.ask("model.warm", name="fixed-0", version=2)[1]["copies"]
        if copies:
            break
    assert copies == 1 and worker.poll() is None, "it is not loaded again"


def test_a_version_that_clients_could_not_tell_apart_is_not_taken_into_use(versions):
    controller, worker, client, admin, images = versions
    client.lookup("fixed-0")
    assert admin.ask("model.use", name="fixed-0", version=9)[0] == Code.UNKNOWN_MODEL
    assert admin.ask("model.use", name="fixed-0")[0] == Code.BAD_ARGUMENT
    assert admin.ask("model.add", name="fixed-0", version=3)[0] == 0
    while (found := admin.ask("model.use", name="fixed-0", version=3))[0] == Code.MODEL_NOT_READY:
        if (came := worker.poll()) is not None and came[0] == Type.PREPARE:
            worker.done(came[1])
    if found[0] == Code.NOT_PROFILED:  # its program has no profile on this kind: it could not be served either
        return
    assert found[0] == Code.BAD_MODEL and "inputs" in found[1]["error"]


def test_versions_change_under_load_and_nobody_is_lost(versions):
    controller, worker, client, admin, images = versions
    name = client.lookup("fixed-0")
    wanted = set()
    for turn in range(20):
        wanted |= {client.infer(name, slo_ns=15 * SECOND) for _ in range(10)}
        assert admin.ask("model.use", name="fixed-0", version=1 + turn % 2)[0] == 0
        wanted |= {client.infer(name, slo_ns=15 * SECOND) for _ in range(10)}
    replies = serve(worker, client, wanted)
    assert [reply["status"] for reply in replies.values()] == [0] * 400
    loads = [fields["image"] for kind, fields in worker.received if kind == Type.LOAD]
    assert len(loads) == len(set(loads))


def test_the_version_in_use_is_remembered_by_the_repository(started, tmp_path):
    repository = Repository(tmp_path / "repo", create=True)
    controller = started(models=1)
    program = repository.get("fixed-0").manifest.program_hash
    for version in (2, 3):
        repository.add("fixed-0", version, program, {}, seed=version)
    repository.use("fixed-0", 2)

    def in_use() -> list[str]:
        controller.stop()
        controller.start()
        listed = controller.admin().ask("model.ls", after=0)[1]["models"]
        return [key for key, model in listed.items() if model["in_use"]]

    assert in_use() == ["fixed-0/2"]
    repository.remove("fixed-0", 2)
    assert in_use() == ["fixed-0/3"], "without a choice the newest"


def _first_action(workers):
    """(the number of the worker that is given the first action, the action)"""
    for _ in range(1000):
        for number, worker in workers.items():
            if (came := worker.poll(10)) is not None:
                worker.received.append(came[:2])
                return number, came[1]
    raise AssertionError("nobody was given anything")


def test_a_drained_worker_finishes_what_it_has_and_is_let_go(started, tmp_path):
    controller = started(models=1)
    client, admin = controller.client(), controller.admin()
    workers = {"0": controller.worker("first"), "1": controller.worker("second")}
    for worker in workers.values():
        worker.settle(1)
    model = client.lookup("fixed-0")
    assert admin.ask("worker.drain", worker=7)[0] == Code.BAD_ARGUMENT
    running = client.infer(model, slo_ns=15 * SECOND)
    number, action = _first_action(workers)
    first, second = workers.pop(number), workers.popitem()[1]
    assert admin.ask("worker.drain", worker=int(number))[0] == 0
    assert admin.ask("status")[1]["workers"][number]["draining"] is True
    first.done(action)  # its LOAD: nothing is executed on it any more
    assert first.until(Type.GOODBYE)[0]["code"] == Code.DRAINING and first.received == [(Type.LOAD, action)]
    assert serve(second, client, {running})[running]["status"] == 0
    assert [worker["draining"] for worker in admin.ask("status")[1]["workers"].values()] == [False]
    assert controller.stop() == 0
    assert replay(str(tmp_path / "state")).differences == []


def test_what_is_queued_at_a_drain_cut_short_is_answered_by_the_core_and_its_log(started, tmp_path):
    controller = started(models=1)
    worker, client = controller.worker(), controller.client()
    worker.settle(1)
    model = client.lookup("fixed-0")
    queued = {client.infer(model, slo_ns=15 * SECOND) for _ in range(20)}
    worker.next_action()
    admin = controller.admin()
    while admin.ask("status")[1]["in_flight"] < 20:
        pass
    controller.process.send_signal(signal.SIGTERM)
    while not admin.ask("status")[1]["draining"]:
        pass
    refused = client.infer(model)
    assert client.reply(refused)[0]["status"] == Code.DRAINING
    assert controller.stop() == 0
    told = {}
    while (came := client.receive())[0] == Type.REPLY:
        told[came[1]["request"]] = came[1]["status"]
    assert told == dict.fromkeys(queued, Code.DRAINING)
    run = replay(str(tmp_path / "state"))
    assert run.differences == [] and run.counts["replies"] == 20


def test_cancel_and_goodbye_free_what_was_queued_at_once(started):
    controller = started(models=1, credits=4)
    worker, client, admin = controller.worker(), controller.client(), controller.admin()
    worker.settle(1)
    model = client.lookup("fixed-0")
    mine = [client.infer(model, slo_ns=15 * SECOND) for _ in range(4)]
    over = client.infer(model)
    assert client.reply(over)[0]["status"] == Code.CREDIT_EXCEEDED
    client.send(Type.CANCEL, request=mine[1])
    another = client.infer(model, slo_ns=15 * SECOND)  # right behind it, in the place that came free
    assert client.reply(mine[1])[0]["status"] == Code.CANCELLED
    assert admin.ask("status")[1]["in_flight"] == 4
    client.send(Type.GOODBYE, code=0, text="")
    other = controller.client("other")
    assert admin.ask("status")[1]["in_flight"] == 0
    rest = {other.infer(model, slo_ns=15 * SECOND)}
    assert serve(worker, other, rest).keys() == rest and another not in rest


@pytest.mark.parametrize("queued", [False, True])
def test_a_client_that_vanished_is_found_by_asking_it(started, queued):
    """Its connection is gone: the first question finds that out, within two heartbeats. `queued`: with requests waiting."""
    controller = started(models=1)
    worker, client, admin = controller.worker(), controller.client(), controller.admin()
    worker.settle(1)
    model = client.lookup("fixed-0")
    if queued:
        for _ in range(5):
            client.infer(model, slo_ns=15 * SECOND)
        kind, load, _ = worker.next_action()
        assert kind == Type.LOAD
        assert admin.ask("status")[1]["in_flight"] == 5
    peers = admin.ask("status")[1]["peers"]
    client.close()
    beats = worker.beats
    while admin.ask("status")[1]["peers"] == peers:
        worker.poll(1)
        assert worker.beats - beats <= 3, "more than two intervals have passed"  # the first may end as we begin to count
    facts = admin.ask("status")[1]
    assert facts["in_flight"] == 0 and facts["counters"]["peers_lost"] == 0 and facts["peers"] == peers - 1
