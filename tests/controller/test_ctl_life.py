"""Admin verbs, models that come and go, restarts, signals, and the log that tells all of it again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import play
import pytest
from play import DYNAMIC, FIXED, MS, PAGE_BYTES, SECOND, Controller, make_repository, serve

from cwd.controller import telemetry
from cwd.errors import Code
from cwd.models.repository import Repository
from cwd.wire.messages import Type


def _ready(controller: Controller, name: str = "worker", programs: int = 1, **caps):
    worker = controller.worker(name, **caps)
    worker.settle(programs)
    return worker


def test_what_an_admin_asks_wrongly_is_answered_with_its_code(started):
    admin = started().admin()
    for verb, args, code in (
        ("frobnicate", {}, Code.UNKNOWN_VERB), ("model.add", {}, Code.BAD_ARGUMENT),
        ("model.add", {"name": 7}, Code.BAD_ARGUMENT), ("model.rm", {"name": "nobody"}, Code.UNKNOWN_MODEL),
        ("model.ls", {"after": -1}, Code.BAD_ARGUMENT), ("model.add", {"name": "nobody"}, Code.UNKNOWN_MODEL),
        ("model.add", {"name": "../etc"}, Code.BAD_MODEL), ("model.add", {"name": "fixed-0"}, Code.MODEL_EXISTS),
        ("model.add", {"name": "fixed-0", "version": 1}, Code.MODEL_EXISTS), ("drain", {"on": 3}, Code.BAD_ARGUMENT),
        ("status", {"nonsense": 1}, Code.BAD_ARGUMENT),
    ):
        found, result = admin.ask(verb, **args)
        assert (Code(found), list(result)) == (code, ["error"]) and "\n" not in result["error"], (verb, args, result)


def test_models_come_and_go_while_others_are_served(started, tmp_path):
    controller = started(models=2)
    repository = Repository(tmp_path / "repo")
    worker, client, admin = _ready(controller), controller.client(), controller.admin()
    first = client.lookup("fixed-0")
    assert serve(worker, client, {client.infer(first)})
    program = repository.get("fixed-0").manifest.program_hash
    repository.add("late", 1, program, {}, seed=7)
    code, result = admin.ask("model.add", name="late", version=0)
    assert code == 0 and result["ready"]
    late, name = client.lookup("late", 1), client.lookup("late")
    assert late == result["handle"]
    replies = serve(worker, client, {client.infer(late), client.infer(first)})
    assert {fields["status"] for fields in replies.values()} == {0}
    repository.add("late", 2, program, {}, seed=8)
    assert admin.ask("model.add", name="late")[0] == 0
    newest = client.lookup("late", 2)
    assert newest != late and client.lookup("late", 1) == late and client.lookup("late") == name
    assert set(admin.ask("model.ls", after=0)[1]["models"]) == {"fixed-0/1", "fixed-1/1", "late/1", "late/2"}
    status = admin.ask("status")[1]
    assert status["models"] == status["servable"] == 4
    assert admin.ask("model.rm", name="late", version=0) == (0, {"removed": 2})
    status = admin.ask("status")[1]
    assert status["models"] == status["servable"] == 2
    for handle in (late, newest, name):
        request = client.infer(handle)
        assert client.reply(request)[0]["status"] == Code.UNKNOWN_MODEL
    kind, unload, _ = worker.next_action()
    assert kind == Type.UNLOAD and unload["model"] == late, "its pages are wanted back"
    worker.done(unload)
    assert serve(worker, client, {client.infer(first)})


def _reader_of(controller: Controller) -> int:
    """The process that reads the repository for it."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == controller.process.pid and b"cwd.controller.reader" in (folder / "cmdline").read_bytes():
                return int(folder.name)
        except OSError:
            continue
    raise AssertionError("no reader")


def _is_dead(pid):
    """Whether a process has ended with all its threads, waited for or not: while it ends it may still take questions."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state in ("Z", "X") and len(list(Path(f"/proc/{pid}/task").iterdir())) == 1
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize("asked", [True, False])
def test_a_reader_that_is_killed_fails_what_was_asked_and_is_started_again(started, tmp_path, asked):
    controller = started(models=2)
    worker, client, admin = _ready(controller), controller.client(), controller.admin()
    repository = Repository(tmp_path / "repo")
    program = repository.get("fixed-0").manifest.program_hash
    repository.add("late", 1, program, {}, seed=7)
    reader = _reader_of(controller)
    os.kill(reader, signal.SIGSTOP)  # so that a question is open when it dies
    if asked:
        for number in (1, 2):
            admin.send(Type.ADMIN, request=1000 + number, verb="model.add", args={"name": "late"})
        assert admin.ask("status")[0] == 0  # taken after both, and longer: they are asked by then
    os.kill(reader, signal.SIGKILL)
    for number in (1, 2) if asked else ():
        answer, _ = admin.until(Type.ADMIN_REPLY, request=1000 + number)
        assert answer["code"] == Code.BAD_MODEL and "reader ended" in answer["result"]["error"]
    assert serve(worker, client, {client.infer(client.lookup("fixed-0"))})
    while not _is_dead(reader):
        time.sleep(0.01)
    answer = admin.ask("model.add", name="late")
    assert answer[0] == 0, answer
    assert _reader_of(controller) != reader
    assert serve(worker, client, {client.infer(client.lookup("late"))})
    assert controller.stop() == 0


def test_a_repository_that_is_not_there_ends_the_start(tmp_path):
    with pytest.raises(AssertionError, match="did not become ready: 1"):
        Controller(tmp_path, repository=str(tmp_path / "nowhere")).start()


def test_a_program_profiled_and_added_later_is_prepared_and_served(started, tmp_path):
    controller = started(models=1)
    worker, client, admin = _ready(controller), controller.client(), controller.admin()
    make_repository(tmp_path / "repo", 0, 1)
    assert admin.ask("model.add", name="dynamic-0")[0] == 0
    worker.settle(2)
    model = client.lookup("dynamic-0")
    assert serve(worker, client, {client.infer(model, bytes(64), dims=(16,))})


def test_a_full_registry_and_a_model_too_large_are_refused_and_the_rest_is_served(started, tmp_path):
    controller = started(models=2, models_max=2)
    admin, client = controller.admin(), controller.client()
    repository = Repository(tmp_path / "repo")
    repository.add("more", 1, repository.get("fixed-0").manifest.program_hash, {}, seed=9)
    assert admin.ask("model.add", name="more")[0] == Code.REGISTRY_FULL
    worker = _ready(controller, pages=1)
    assert serve(worker, client, {client.infer(client.lookup("fixed-1"))})


@pytest.mark.parametrize("page_bytes", [16 * PAGE_BYTES, PAGE_BYTES, PAGE_BYTES // 4])
def test_load_times_are_scaled_from_the_profiles_pages_to_ours(tmp_path, page_bytes):
    """A profile may have been measured with pages of any size: a LOAD is expected to take as long as its bytes do."""
    make_repository(tmp_path / "repo", 1, 0, load_ns_per_page=80 * MS * page_bytes // PAGE_BYTES, page_bytes=page_bytes)
    with Controller(tmp_path, repository=str(tmp_path / "repo")) as controller:
        worker, client = _ready(controller), controller.client()
        client.infer(client.lookup("fixed-0"))
        kind, load, _ = worker.next_action()
    assert (kind, load["pages"], load["expected_ns"]) == (Type.LOAD, 1, 80 * MS)


def test_corrupt_entries_are_skipped_and_the_others_served(started, tmp_path):
    repository = make_repository(tmp_path / "repo", 3, 0)
    (repository.root / "fixed-1" / "1" / "model.json").write_text("{nonsense")
    (repository.root / "fixed-2" / "1" / "weights.safetensors").write_bytes(b"short")
    controller = Controller(tmp_path, repository=str(tmp_path / "repo"))
    with controller:
        admin = controller.admin()
        assert set(admin.ask("model.ls", after=0)[1]["models"]) == {"fixed-0/1"}
        assert admin.ask("model.add", name="fixed-1")[0] == Code.BAD_MODEL
        assert admin.ask("model.add", name="fixed-2")[0] in (Code.CORRUPT, Code.BAD_MODEL)


def test_after_kill_9_a_new_epoch_takes_residency_from_the_workers(started):
    controller = started()
    worker, client = _ready(controller), controller.client()
    epoch = worker.epoch
    assert serve(worker, client, {client.infer(client.lookup("fixed-1"))})
    load = next(fields for kind, fields in worker.received if kind == Type.LOAD) if worker.received else None
    program = worker.prepared[0]["program"]
    image = Repository(controller.settings["repository"]).get("fixed-1").manifest.image_hash
    assert controller.process is not None
    controller.process.kill()
    controller.process.wait()
    worker.close()
    client.close()
    controller.start()
    worker = controller.worker("again", resident=image + program, programs=program)
    client = controller.client()
    assert worker.epoch > epoch
    worker.settle(1)
    adopted, _ = worker.until(Type.LOAD)
    model = client.lookup("fixed-1", 1)
    assert adopted["model"] == model and adopted["image"] == image and adopted["pages"] == 1
    worker.done(adopted)
    request = client.infer(model)
    kind, action, _ = worker.next_action()
    assert kind == Type.EXEC, "it need not be loaded again"
    worker.executed(action, [b"answer!!"])
    fields, _ = client.reply(request)
    assert fields["status"] == 0 and fields["cold"] == 0
    assert load is None or load["epoch"] == epoch


def test_adoption_keeps_to_the_workers_agenda(started):
    """Many residents are adopted a few at a time: the core's own actions and these must fit the agenda together."""
    controller = started(models=40)
    repository = Repository(controller.settings["repository"])
    images = [entry.manifest.image_hash for entry in repository.entries()]
    program = repository.entries()[0].manifest.program_hash
    worker = controller.worker(pages=64, resident=b"".join(image + program for image in images), programs=program,
                               agenda_max=32 + 5)
    worker.settle(1)
    waiting: list[dict] = []
    seen = set()
    while len(seen) < 40:
        came = None if waiting else worker.receive()
        while came is not None or (came := worker.poll(50)) is not None:
            assert came[0] == Type.LOAD
            waiting.append(came[1])
            seen.add(came[1]["image"])
            came = None
        assert 1 <= len(waiting) <= 5, "outstanding at once"
        worker.done(waiting.pop(0))
    assert seen == set(images)
    for action in waiting:
        worker.done(action)
    client, admin = controller.client(), controller.admin()
    client.infer(client.lookup("fixed-39"))
    assert worker.next_action()[0] == Type.EXEC, "it is not loaded again"
    assert admin.ask("status")[1]["counters"]["results_stale"] == 0


def test_a_worker_with_too_small_an_agenda_is_turned_away_with_a_clear_line(started):
    controller = started(models=1)
    worker = play.Worker(controller.context, f"ipc://{controller.run_dir}/workers.sock")
    caps = {"kind": "played", "device": "x", "gpus": 1, "page_bytes": PAGE_BYTES, "pages_total": 8, "lanes": ["exec", "load"],
            "programs": b"", "images": True, "resident": b"", "prepares": False}
    hello = {"minor": 0, "role": 1, "name": "x", "boot": bytes(16), "host": bytes(16), "now_ns": 1}
    worker.send(Type.HELLO, **hello, caps={**caps, "agenda_max": 32})
    fields, _ = worker.until(Type.ERROR)
    assert fields["code"] == Code.MALFORMED and "agenda of 32 actions" in fields["text"]
    worker.send(Type.HELLO, **hello, caps={**caps, "agenda_max": 33})
    worker.until(Type.WELCOME)


def test_draining_refuses_what_is_new_and_answers_what_is_queued(started):
    controller = started()
    worker, client, admin = _ready(controller), controller.client(), controller.admin()
    model = client.lookup("fixed-0")
    request = client.infer(model, slo_ns=25 * SECOND)
    worker_kind, action, _ = worker.next_action()
    assert worker_kind == Type.LOAD
    assert admin.ask("drain", on=True) == (0, {"queued": 1})
    refused = client.infer(model)
    assert client.reply(refused)[0]["status"] == Code.DRAINING
    assert admin.ask("drain", on=False)[0] == 0
    controller.process.send_signal(signal.SIGTERM)
    worker.done(action)
    assert serve(worker, client, {request})[request]["status"] == 0
    if not any(kind == Type.GOODBYE for kind, _, _ in client.seen):
        assert client.until(Type.GOODBYE)[0]["code"] == 0
    assert controller.process.wait(25) == 0, "before the drain's own end, after 30 s"


def test_a_signal_to_one_that_waits_for_messages_ends_it(started):
    controller = started()
    time.sleep(0.2)
    assert controller.stop() == 0


def test_a_second_signal_refuses_what_is_queued_and_ends(started):
    controller = started()
    worker, client = _ready(controller), controller.client()
    queued = {client.infer(client.lookup("fixed-0"), slo_ns=50 * SECOND) for _ in range(3)}
    worker.next_action()
    controller.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert controller.process.poll() is None
    assert controller.stop(wait_s=20) == 0, "before the drain's own end, after 30 s"
    told = {}
    while (came := client.receive())[0] == Type.REPLY:
        told[came[1]["request"]] = came[1]["status"]
    assert told == dict.fromkeys(queued, Code.DRAINING) and came[0] == Type.GOODBYE


def test_a_socket_in_use_is_one_clear_error(started, tmp_path):
    started()
    again = Controller(tmp_path)
    with pytest.raises(AssertionError, match="did not become ready"):
        again.start()


def test_the_log_replays_through_plain_python_to_the_same_actions(started):
    controller = started(models=6, dynamic=2)
    client = controller.client()
    first, second = _ready(controller, "a", programs=2, pages=2), _ready(controller, "b", programs=2, pages=2)
    models = [client.lookup(f"fixed-{i}") for i in range(6)]
    wanted = {client.infer(models[i % 6], slo_ns=(30 + 40 * i) * MS) for i in range(40)}
    cancelled = client.infer(models[0], slo_ns=9 * SECOND)
    client.send(Type.CANCEL, request=cancelled)
    client.infer(models[0], payload=b"short")
    answered: set[int] = set()
    end = time.monotonic() + 60
    while not wanted <= answered:
        assert time.monotonic() < end
        for worker in (first, second):
            if worker is not None and (came := worker.poll(1)) is not None:
                kind, fields, payload = came
                worker.executed(fields, [b"answer!!"] * len(payload)) if kind == Type.EXEC else worker.done(fields)
        while (answer := client.poll(1)) is not None:
            if answer[0] == Type.REPLY:
                answered.add(answer[1]["request"])
        if len(answered) > 20 and second is not None:
            second.send(Type.GOODBYE, code=0, text="")
            second = None
    assert controller.admin().ask("model.rm", name="fixed-5", version=0)[0] == 0
    assert controller.stop() == 0
    log = telemetry.read_log(controller.state_dir)
    requests = telemetry.requests_frame(log)
    assert telemetry.gaps(log) == 0 and len(requests) >= 42
    assert (requests["status"] != telemetry.OPEN).all()
    served = requests[requests["status"] == 0]
    assert (served["reply_ns"] <= served["deadline_ns"]).all() and (served["action"] >= 0).all()
    actions = telemetry.actions_frame(log)
    assert (actions["actual_ns"] >= 0).any() and set(telemetry.read_names(controller.state_dir)["gpu"]) == {0, 1}
    done = subprocess.run(
        [sys.executable, "-m", "cwd.controller.replay", str(controller.state_dir)], capture_output=True, text=True,
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"}, timeout=280, check=False)
    facts = json.loads(done.stdout)
    assert facts["differs"] == [] and facts["actions"] == len(actions) and facts["replies"] >= 41, facts


def test_images_are_staged_by_prepare_before_the_worker_gets_work(started):
    controller = started(models=2)
    worker, client = controller.worker(images=b"", prepares=True), controller.client()
    staged, _ = worker.until(Type.PREPARE)
    assert staged["name"] == "fixed-0" and staged["image"] != bytes(16)
    worker.done(staged)
    failed, _ = worker.until(Type.PREPARE)
    assert failed["name"] == "fixed-1" and failed["image"] != bytes(16)
    # the worker is not given the program before it has tried to stage its models
    client.send(Type.LOOKUP, request=1, name="fixed-0", version=0)
    assert client.until(Type.ERROR, re_id=1)[0]["code"] == Code.MODEL_NOT_READY
    worker.done(failed, status=Code.NOT_HERE)
    program, _ = worker.until(Type.PREPARE)
    assert program["image"] == bytes(16)
    worker.done(program)
    client.send(Type.LOOKUP, request=1000, name="fixed-1", version=0)
    assert client.until(Type.ERROR, re_id=1000)[0]["code"] == Code.NOT_HERE
    serve(worker, client, {client.infer(client.lookup("fixed-0"))})


def test_the_constants_of_these_tests_fit_together():
    assert FIXED.payload_bytes(()) == 8 and DYNAMIC.payload_bytes((17,)) == 68 and PAGE_BYTES == 1 << 20
