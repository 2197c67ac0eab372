"""The measuring tools measure: the bare round trip is complete, the open loop keeps its rate, quantiles are right."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cwd.bench import echo, forwarder, histogram, loadgen
from cwd.bench.cpu import process_cpu_ns
from cwd.bench.loadgen import Load, LoadGenerator
from cwd.net import sockets


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[LoadGenerator]:
    """A load generator connected to a forwarder with two echo workers, all in threads."""
    context = sockets.make_context()
    clients = sockets.bind_router(context, f"ipc://{tmp_path}/c")
    workers = sockets.bind_router(context, f"ipc://{tmp_path}/w")
    forwarder.warm(clients, workers)
    stop = [False]
    echoes = [sockets.connect_dealer(context, f"ipc://{tmp_path}/w") for _ in range(2)]
    threads = [threading.Thread(target=forwarder.run, args=(clients, workers, stop, 5_000_000))]
    threads += [threading.Thread(target=echo.run, args=(socket, stop, 5_000_000)) for socket in echoes]
    for thread in threads:
        thread.start()
    client = LoadGenerator(context, f"ipc://{tmp_path}/c", bare=True)
    _wait_until_served(client)
    yield client
    stop[0] = True
    for thread in threads:
        thread.join(10)
    client.close()
    context.destroy(linger=0)


def _wait_until_served(client: LoadGenerator) -> None:
    """Until the echoes have said that they are here: before, what comes is dropped."""
    for _ in range(20):
        if client.run(Load(handles=(1,), count=1, seconds=1.0, slo_ns=100_000_000)).answered == 1:
            return
    raise AssertionError("nobody answers")


def test_every_request_comes_back(bare: LoadGenerator) -> None:
    report = bare.run(Load(handles=tuple(range(60)), count=2000, seconds=30, inflight_max=64, payload_bytes=700))
    assert (report.sent, report.answered, report.by_status, report.strange) == (2000, 2000, {0: 2000}, 0)
    assert 0 < report.latency_ms["p50"] <= report.latency_ms["p99"] <= report.latency_ms["max"]
    again = bare.run(Load(handles=(5,), count=100, seconds=30, inflight_max=1, random_models=True))
    assert again.answered == 100


@pytest.mark.parametrize("poisson", [False, True])
def test_open_loop_keeps_its_rate(bare: LoadGenerator, monkeypatch: pytest.MonkeyPatch, poisson: bool) -> None:
    """Whatever the machine does, the requests are due at the rate, and none is sent before it is due."""
    ends = []

    def report_of(state: Any, counts: Any, begin_ns: int) -> loadgen.Report:
        ends.append(int(state["due_ns"]) - begin_ns)
        return _report(state, counts, begin_ns)

    _report = loadgen._report
    monkeypatch.setattr(loadgen, "_report", report_of)
    report = bare.run(Load(handles=(1, 2), rate=500, count=501, seconds=60.0, poisson=poisson, seed=3))
    assert report.answered == report.sent == 501
    # `due_ns` is when the one behind the last would be due: 501 intervals of 2 ms
    spread_ns = 4 * np.sqrt(501) * 2e6 if poisson else 1
    assert ends[0] == pytest.approx(501 * 2e6, abs=spread_ns)
    interval_max_ns = 2e6 * (10 if poisson else 1)  # 10 means: one gap in 20000 is longer
    assert report.seconds * 1e9 >= ends[0] - interval_max_ns


def test_quantiles_agree_with_numpy() -> None:
    values = np.random.default_rng(1).lognormal(13, 2, 5000).astype(np.int64)
    counts = np.zeros(histogram.BUCKETS, np.int64)
    for value in values:
        counts[histogram.bucket_of(value)] += 1
    for quantile in (0.0, 0.5, 0.9, 0.99, 1.0):
        true = int(np.quantile(values, quantile, method="higher"))
        assert abs(histogram.quantile_ns(counts, quantile) - true) <= true * 0.04 + 1


def test_buckets_are_contiguous() -> None:
    for index in range(histogram.BUCKETS - 1):
        low = histogram.bucket_low_ns(index)
        assert histogram.bucket_of(low) == index
        assert histogram.bucket_of(histogram.bucket_low_ns(index + 1) - 1) == index
    assert histogram.bucket_of(-5) == 0 and histogram.bucket_of(1 << 62) == histogram.BUCKETS - 1


def test_cpu_time_of_ourselves_both_ways() -> None:
    assert process_cpu_ns() <= process_cpu_ns(os.getpid()) <= process_cpu_ns()
