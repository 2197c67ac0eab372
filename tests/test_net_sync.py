"""Rings against a deque, between threads and between processes; what sleeps on descriptors, and how it wakes."""

import collections
import functools
import importlib.util
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cwd.errors import InvariantError
from cwd.jit import JIT
from cwd.net import ring_block, sync, wake
from cwd.net.clock import monotonic_ns
from cwd.net.warm import warm

RECORD = np.dtype([("a", "i8"), ("b", "u4"), ("c", "u1")], align=True)


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """What is timed below must not be compiled meanwhile."""
    warm()


@functools.cache
def _stress() -> ModuleType:
    path = Path(__file__).resolve().parent.parent / "tools" / "ring_stress.py"
    spec = importlib.util.spec_from_file_location("ring_stress", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ring_stress"] = module  # else its kernels are not cached
    spec.loader.exec_module(module)
    return module


@given(st.lists(st.booleans(), max_size=200))
@settings(max_examples=50, deadline=None)
def test_ring_is_a_bounded_queue(pushes: list[bool]) -> None:
    ring = sync.make_ring(RECORD, 8)
    model: collections.deque[int] = collections.deque()
    row, out = np.zeros(1, RECORD), np.zeros(2, RECORD)
    for number, push in enumerate(pushes):
        if push:
            row[0] = (number, number + 1, number & 255)
            assert sync.ring_push(ring, row[0]) == (len(model) < 8)
            if len(model) < 8:
                model.append(number)
        elif sync.ring_pop(ring, out, 1):
            number = model.popleft()
            assert out[1].tolist() == (number, number + 1, number & 255)
        else:
            assert not model
        assert sync.ring_len(ring) == len(model)


@pytest.mark.skipif(not ring_block.ORDERED, reason="not for this processor")
@given(st.lists(st.one_of(st.none(), st.integers(0, 11)), max_size=100))
@settings(max_examples=50, deadline=None)
def test_what_is_taken_at_once_is_what_was_pushed_one_by_one(steps: list[int | None]) -> None:
    """A taker that is not compiled, at the other end of a block: None pushes, a number takes up to so many."""
    block = ring_block.shared_block(ring_block.ring_bytes(RECORD, 8))[0]
    ring = sync.make_ring(RECORD, 8, block)
    taker, model = ring_block.Taker(RECORD, 8, block), collections.deque[int]()
    row, out = np.zeros(1, RECORD), np.zeros(11, RECORD)
    for number, step in enumerate(steps):
        if step is None:
            row[0] = (number, number + 1, number & 255)
            assert sync.ring_push(ring, row[0]) == (len(model) < 8)
            if len(model) < 8:
                model.append(number)
        else:
            count = taker.take(out[:step])
            wanted = [model.popleft() for _ in range(min(step, len(model)))]
            assert out[:count].tolist() == [(number, number + 1, number & 255) for number in wanted]
        assert sync.ring_len(ring) == len(model)
    with pytest.raises(InvariantError):
        ring_block.Taker(RECORD, 4, block)


@given(st.lists(st.one_of(st.none(), st.binary(max_size=60)), max_size=200))
@settings(max_examples=50, deadline=None)
def test_byte_ring_is_a_bounded_queue(steps: list[bytes | None]) -> None:
    ring = sync.make_byte_ring(128)
    model: collections.deque[bytes] = collections.deque()
    for step in steps:
        if step is None:
            assert sync.bytes_get(ring) == (model.popleft() if model else None)
        elif sync.bytes_put(ring, step):
            model.append(step)
        else:
            assert model or not sync.bytes_fit(ring, len(step))
    while model:
        assert sync.bytes_get(ring) == model.popleft()
    assert sync.bytes_get(ring) is None and sync.ring_len(ring) == 0


def test_every_start_takes_what_fits() -> None:
    ring = sync.make_byte_ring(128)
    largest = max(size for size in range(200) if sync.bytes_fit(ring, size))
    assert largest == 56
    for _ in range(40):
        assert sync.bytes_put(ring, b"x" * largest) and sync.bytes_get(ring) == b"x" * largest
        assert sync.bytes_put(ring, b"") and sync.bytes_get(ring) == b""
    assert not sync.bytes_put(ring, b"x" * 129)


def test_nothing_is_visible_before_publish_or_free_before_advance() -> None:
    ring = sync.make_ring(RECORD, 2)
    index = sync.ring_claim(ring)
    ring.records[index]["a"] = 7
    assert sync.ring_peek(ring) == -1
    sync.ring_publish(ring)
    assert ring.records[sync.ring_peek(ring)]["a"] == 7
    sync.ring_push(ring, ring.records[index])
    assert sync.ring_claim(ring) == -1
    sync.ring_advance(ring)
    assert sync.ring_claim(ring) == 0


def test_bell_rings_only_for_sleepers() -> None:
    ring = sync.make_ring(RECORD, 4)
    row = np.zeros(1, RECORD)[0]
    sync.ring_push(ring, row)
    assert sync.ring_bell(ring) == 0  # nobody sleeps
    assert sync.ring_arm(ring) == 0  # there is something: do not sleep
    assert sync.ring_bell(ring) == 0
    sync.ring_pop(ring, np.zeros(1, RECORD), 0)
    assert sync.ring_arm(ring) == 1
    sync.ring_push(ring, row)
    assert [sync.ring_bell(ring), sync.ring_bell(ring)] == [1, 0]  # one system call for many records
    assert sync.ring_arm(ring) == 0
    sync.ring_pop(ring, np.zeros(1, RECORD), 0)
    assert sync.ring_arm(ring) == 1
    sync.ring_disarm(ring)
    assert sync.ring_bell(ring) == 0


def test_attaching_checks_the_form() -> None:
    block, fd = sync.shared_block(sync.ring_bytes(RECORD, 8))
    with pytest.raises(InvariantError, match="no ring"):
        sync.attach_ring(RECORD, 8, block)
    ring = sync.make_ring(RECORD, 8, block)
    ring.records[0]["a"] = 5
    other, _ = sync.shared_block(sync.ring_bytes(RECORD, 8), fd)
    assert sync.attach_ring(RECORD, 8, other).records[0]["a"] == 5
    with pytest.raises(InvariantError, match="no ring"):
        sync.attach_ring(RECORD, 4, other)
    with pytest.raises(InvariantError, match="power of two"):
        sync.make_ring(RECORD, 6)
    with pytest.raises(InvariantError, match="bytes aligned"):
        sync.make_ring(RECORD, 16, block)
    os.close(fd)


@pytest.mark.skipif(not JIT, reason="its arithmetic wraps at 64 bits, and Python's does not")
@pytest.mark.parametrize("how", ["threads", "processes"])
@pytest.mark.parametrize("kind", ["records", "bytes"])
def test_short_stress(kind: str, how: str) -> None:
    _stress().stress(kind, how, 500_000)


@pytest.mark.skipif(not (JIT and ring_block.ORDERED), reason="its producer is compiled, and Taker not for this processor")
def test_short_stress_of_blocks_between_processes() -> None:
    _stress().stress("blocks", "processes", 500_000)


@pytest.mark.skipif(not JIT, reason="its arithmetic wraps at 64 bits, and Python's does not")
def test_stress_notices_a_changed_record() -> None:
    module = _stress()
    ring = sync.make_ring(module.RECORD, module.CAPACITY)
    event = wake.make_eventfd()
    assert module.produce(ring, event, 0, 10, 0) == module.OK
    ring.records[7]["high"] ^= 1
    assert module.consume(ring, event, 0, 7, 0) == module.OK
    assert module.consume(ring, event, 7, 3, 0) == module.WRONG - 7
    os.close(event)


@pytest.mark.skipif(not (JIT and ring_block.ORDERED), reason="its producer is compiled, and Taker not for this processor")
def test_stress_of_blocks_notices_a_changed_record() -> None:
    module = _stress()
    block, fd = sync.shared_block(sync.ring_bytes(module.RECORD, module.CAPACITY))
    ring, event = sync.make_ring(module.RECORD, module.CAPACITY, block), wake.make_eventfd()
    assert module.produce(ring, event, 0, 10, 0) == module.OK
    ring.records[7]["tail"] ^= 1
    taker = ring_block.Taker(module.RECORD, module.CAPACITY, block)
    assert module.consume_blocks(taker, 0, 7) == module.OK
    assert module.consume_blocks(taker, 7, 3) == module.WRONG - 7
    os.close(event)
    os.close(fd)


def test_eventfd_counts_and_clears() -> None:
    fd = wake.make_eventfd()
    assert wake.eventfd_clear(fd) == wake.EAGAIN
    assert wake.wait_fd(fd, 0) == 0
    assert [wake.eventfd_signal(fd), wake.eventfd_signal(fd)] == [0, 0]
    assert wake.wait_fd(fd, -1) == 1
    assert wake.eventfd_clear(fd) == 2
    assert wake.wait_fd(fd, 1_000_000) == 0
    os.close(fd)
    assert wake.eventfd_signal(fd) == wake.EBADF
    assert wake.wait_fd(fd, 0) == wake.EBADF


def test_eventfd_wakes_another_thread() -> None:
    fd = wake.make_eventfd()
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(wake.wait_fd(fd, 10_000_000_000)))
    wake.wait_fd(fd, 0)
    thread.start()
    time.sleep(0.05)
    wake.eventfd_signal(fd)
    thread.join(5)
    assert results == [1]
    os.close(fd)


def test_timerfd_fires_at_its_time_and_not_before() -> None:
    fd = wake.make_timerfd()
    at = monotonic_ns() + 1_000_000_000
    assert wake.timerfd_arm(fd, at) == 0
    assert wake.timerfd_clear(fd) == wake.EAGAIN
    assert wake.wait_fd(fd, 20_000_000_000) == 1
    assert monotonic_ns() >= at
    assert wake.timerfd_clear(fd) == 1
    assert wake.timerfd_clear(fd) == wake.EAGAIN
    wake.timerfd_arm(fd, 1)  # long ago: at once
    assert wake.wait_fd(fd, 5_000_000_000) == 1
    for never in (0, -5, 1 << 62):  # armed anew, it is no longer readable
        assert wake.timerfd_arm(fd, never) == 0
        assert wake.wait_fd(fd, 2_000_000) == 0
    os.close(fd)


def test_wait_returns_on_a_signal() -> None:
    fd = wake.make_eventfd()
    wake.wait_fd(fd, 0)
    before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    main = threading.get_ident()
    thread = threading.Thread(target=lambda: (time.sleep(0.1), signal.pthread_kill(main, signal.SIGUSR1)))
    try:
        thread.start()
        assert wake.wait_fd(fd, 10_000_000_000) == wake.EINTR
        thread.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
        os.close(fd)


def test_spinning_ends_at_the_time() -> None:
    at = monotonic_ns() + 1_000_000
    late = wake.spin_until(at)
    assert late >= 0 and monotonic_ns() >= at
    assert wake.set_timer_slack(50_000) == 0
