"""Slices of the loop under load: a signal in the middle of one is acted on, and what is rare keeps its share short.

A machine that is busy with others stops the controller for milliseconds wherever it pleases (`python_max_ns`, wall
time), so the bounds are for the CPU time that the thread itself used (`python_recent_max_ns`): at the median and at p90.
"""

import signal
import time
from datetime import datetime

import pytest
from load import Load
from peers import BYTE, PAGE_BYTES, make_repository

import cwd
from cwd.errors import Code

pytest.importorskip("torch")
pytestmark = pytest.mark.e2e

#: of the longest of some six chunks
P50_MAX_NS, P90_MAX_NS = 200_000, 400_000
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_mid_slice(cluster, number):
    """Under full load the controller drains and ends with 0 at once; every request is answered or refused."""
    controller = cluster.children[0]
    with Load(cluster) as load:
        began, clock = time.monotonic(), datetime.now()
        controller.signal(number)
        code = controller.wait(15)
        seconds = time.monotonic() - began
    assert code == 0, cluster.last_lines()
    ended = {key: count for key, count in load.ended.items() if not isinstance(key, tuple)}
    assert sum(ended.values()) == load.sent and set(ended) <= ENDED, load.ended
    said = cluster.last_lines(count=30)
    acted = next(datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f") for line in said if "draining: " in line) - clock
    print(f"\nacted on {acted.total_seconds() * 1e3:.1f} ms after the signal, ended after {seconds * 1e3:.0f} ms: {load.ended}")
    # what was queued had 64 / 4 executions of half a millisecond to go; the rest is the end of the process itself
    assert acted.total_seconds() < 0.1 and seconds < 5
    assert "Traceback" not in "\n".join(said)
    assert cluster.children[1].alive


def test_a_signal_to_an_idle_controller(cluster):
    began = time.monotonic()
    assert cluster.children[0].stop(15) == 0
    assert time.monotonic() - began < 3


def test_a_second_signal_does_not_wait_for_the_queue(repository):
    """With requests queued that nobody will answer soon, the first signal drains and the second ends it."""
    with cwd.LocalCluster(repository.root, workers=1, device="emulated:1", pool=16 * PAGE_BYTES, page=PAGE_BYTES,
                          timeout=600) as cluster:
        cluster.wait_servable()
        controller, worker = cluster.children
        with cluster.client() as client:
            client.infer("same-000", BYTE, "5s")
            worker.signal(signal.SIGSTOP)
            try:
                pendings = [client.submit("same-000", BYTE, "20s") for _ in range(10)]
                time.sleep(0.1)
                controller.signal(signal.SIGTERM)
                assert controller.wait(0.3) is None, "it did not wait for what is queued"
                with pytest.raises(cwd.RequestError) as caught:
                    client.infer("same-000", BYTE, "100ms")
                assert caught.value.code in (Code.DRAINING, Code.DEADLINE_UNREACHABLE, Code.SLO_BELOW_EXECUTION)
                began = time.monotonic()
                controller.signal(signal.SIGTERM)
                assert controller.wait(10) == 0 and time.monotonic() - began < 3
            finally:
                worker.signal(signal.SIGCONT)
            for pending in pendings:
                assert isinstance(pending.exception(timeout=5), cwd.RequestError)


def test_status_under_load_keeps_pythons_share_short(cluster):
    """Many `status` and `model.ls` while requests run: how long Python has the thread between two slices.

    Each figure is the longest of the chunks of one status and one listing. In one of three rounds half of these stay below
    200 us and nine in ten below 400 us: others on the machine make a chunk longer (cold caches, page faults), never shorter.
    """
    from cwd.client.admin import Admin

    rounds = []
    with Load(cluster) as load, Admin(cluster.endpoint("admin")) as admin:
        before, sent = admin.status(), load.sent
        for _ in range(3):
            longest_ns = []
            for _ in range(60):
                admin.models()
                longest_ns.append(admin.status()["loop"]["python_recent_max_ns"])  # since the last status
            longest_ns.sort()
            rounds.append([longest_ns[len(longest_ns) * share // 100] for share in (50, 90, 99)])
        after = admin.status()
        requests = load.sent - sent
    chunks = after["loop"]["chunks"] - before["loop"]["chunks"]
    mean_ns = (after["loop"]["python_ns"] - before["loop"]["python_ns"]) / chunks
    print(f"\n{chunks} chunks, {requests} requests meanwhile; CPU time of the longest chunk of each status and listing, p50, "
          f"p90 and p99 of three rounds in us: {[[ns // 1000 for ns in found] for found in rounds]}; mean wall time of a "
          f"chunk {mean_ns / 1e3:.0f} us, the longest since the start {after['loop']['python_max_ns'] / 1e3:.0f} us")
    assert chunks > 700 and requests > 100, load.ended
    assert any(p50 < P50_MAX_NS and p90 < P90_MAX_NS for p50, p90, _ in rounds), rounds
