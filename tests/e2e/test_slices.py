"""Slices of the loop under load: a signal in the middle of one is acted on, and what is rare comes in small pieces."""

import signal
import threading
import time
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest
from peers import BYTE, PAGE_BYTES, make_repository

import cwd
from cwd.errors import Code

pytest.importorskip("torch")
pytestmark = pytest.mark.e2e

ENDED = {Code.OK, Code.CONTROLLER_LOST, Code.DRAINING, Code.DEADLINE_EXPIRED, Code.DEADLINE_UNREACHABLE, Code.WORKER_LOST,
         Code.DEADLINE_MISSED, Code.CREDIT_EXCEEDED}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return make_repository(tmp_path_factory.mktemp("slices") / "models", exec_ns=500_000)


@pytest.fixture
def cluster(repository):
    with cwd.LocalCluster(repository.root, device="emulated:4", pool=16 * PAGE_BYTES, page=PAGE_BYTES, timeout=600,
                          controller={"slice": "5ms"}) as cluster:
        cluster.wait_servable()
        yield cluster


class Load:
    """A closed loop of `flight` requests in a thread, so that no slice is idle; counts how each ended."""

    def __init__(self, cluster, flight=64, slo="2s"):
        self._client = cluster.client()
        self._flight, self._slo = flight, slo
        self._enough = threading.Event()
        self.ended = Counter()
        self.sent = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        flying = []
        while not self._enough.is_set():
            try:
                while len(flying) < self._flight:
                    flying.append(self._client.submit(f"same-{self.sent % 4:03}", BYTE, self._slo))
                    self.sent += 1
                first = next(cwd.as_completed(flying, timeout=20))
            except cwd.RequestError as error:
                self.ended["unsent", error.code] += 1
                if self.ended["unsent", error.code] == 3:  # the controller has ended
                    break
                continue
            self._count(first)
            flying.remove(first)
        for pending in flying:
            self._count(pending)

    def _count(self, pending):
        error = pending.exception(timeout=20)
        self.ended[Code.OK if error is None else error.code] += 1

    def __enter__(self):
        self._thread.start()
        until = time.monotonic() + 60
        while self.ended[Code.OK] < 200:
            assert time.monotonic() < until, "no load comes about"
            time.sleep(0.01)
        return self

    def __exit__(self, *exception):
        self._enough.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), "a request hangs"
        self._client.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_mid_slice(cluster, number):
    """Under full load the controller drains and ends with 0; every request is answered or refused.

    It drains before its next slice is over, and ends when the last one is answered: neither waits for the drain's end.
    """
    controller = cluster.children[0]
    with Load(cluster) as load:
        began, clock = time.monotonic(), datetime.now()
        controller.signal(number)
        code = controller.wait(25)
        seconds = time.monotonic() - began
    assert code == 0, cluster.last_lines()
    ended = {key: count for key, count in load.ended.items() if not isinstance(key, tuple)}
    assert sum(ended.values()) == load.sent and set(ended) <= ENDED, load.ended
    said = cluster.last_lines(count=30)
    acted = next(datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f") for line in said if "draining: " in line) - clock
    print(f"\nacted on {acted.total_seconds() * 1e3:.1f} ms after the signal, ended after {seconds * 1e3:.0f} ms: {load.ended}")
    # a drain may last 30 s; what was queued had 64 / 4 executions of half a millisecond to go
    assert acted.total_seconds() < 5
    assert "Traceback" not in "\n".join(said)
    assert cluster.children[1].alive


def test_a_signal_to_an_idle_controller(cluster):
    assert cluster.children[0].stop(25) == 0


def _stopped(pid):
    """Whether all threads of a process have been stopped."""
    states = [path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return set(states) == {"T"}


def test_a_second_signal_does_not_wait_for_the_queue(repository):
    """With requests queued that nobody will answer soon, the first signal drains and the second ends it.

    The controller gives up an execution without a result after half a second: so many are queued that this takes long.
    """
    with cwd.LocalCluster(repository.root, workers=1, device="emulated:1", pool=16 * PAGE_BYTES, page=PAGE_BYTES,
                          timeout=600, controller={"lost": "60s"}) as cluster:
        cluster.wait_servable()
        controller, worker = cluster.children
        with cluster.client() as client:
            client.infer("same-000", BYTE, "20s")
            worker.signal(signal.SIGSTOP)
            while not _stopped(worker.pid):
                time.sleep(0.01)
            try:
                pendings = [client.submit("same-000", BYTE, "60s") for _ in range(1000)]
                while cluster.status()["in_flight"] < 500:
                    time.sleep(0.01)
                controller.signal(signal.SIGTERM)
                assert controller.wait(0.3) is None, "it did not wait for what is queued"
                with pytest.raises(cwd.RequestError) as caught:
                    client.infer("same-000", BYTE, "20s")
                assert caught.value.code in (Code.DRAINING, Code.DEADLINE_UNREACHABLE, Code.SLO_BELOW_EXECUTION)
                controller.signal(signal.SIGTERM)
                assert controller.wait(15) == 0, "before the drain's own end, after 30 s"
            finally:
                worker.signal(signal.SIGCONT)
            for pending in pendings:
                assert isinstance(pending.exception(timeout=20), cwd.RequestError)


@pytest.fixture
def one_piece(repository):
    """A cluster whose controller gives Python no more than a piece of work at a time."""
    with cwd.LocalCluster(repository.root, device="emulated:4", pool=16 * PAGE_BYTES, page=PAGE_BYTES, timeout=600,
                          controller={"slice": "5ms", "chunk": "0ms", "lost": "60s"}) as cluster:
        cluster.wait_servable()
        yield cluster


def test_status_under_load_is_cut_into_as_many_pieces_as_without_and_the_loop_runs_between_them(one_piece):
    """Each of many `status` and `model.ls` takes the same number of pieces, idle or not, and every chunk is one of them.

    What a chunk takes is `cwd bench controller`'s to say; how much one piece may do: tests/controller/test_ctl_pieces.py.
    """
    from cwd.client.admin import Admin

    def counted(admin):
        """(pieces, chunks, slices, requests) of 60 times both; none is made by anything else meanwhile."""
        marks = []
        for _ in range(2):
            status = admin.call("status")
            loop, counters = status["loop"], status["counters"]
            marks.append((loop["tasks"] + counters["rare"], loop["chunks"], loop["slices"], counters["infer"]))
            for _ in range(60 if len(marks) == 1 else 0):
                admin.call("model.ls")
                admin.call("status")
        return tuple(late - early for early, late in zip(*marks, strict=True))

    with Admin(one_piece.endpoint("admin")) as admin:
        idle = counted(admin)
        with Load(one_piece) as load:
            under_load = counted(admin)
    print(f"\n(pieces, chunks, slices, requests) without load {idle}, under load {under_load}: {load.ended}")
    assert idle[0] == idle[1] and under_load[:2] == idle[:2], "a chunk is one piece, and there are as many"
    assert under_load[2] >= under_load[1] and under_load[3] > 0, "the loop ran before each, and requests came"
    assert load.ended[Code.OK] >= 200 and idle[3] == 0
