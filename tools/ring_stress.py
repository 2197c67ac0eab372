"""Stress the rings: between two threads and between two processes, every record's order and content checked.

    python tools/ring_stress.py --steps 1_000_000_000

Each side sometimes stalls for a random while, so that the ring runs full and empty, and sleeps on its eventfd when the
ring asks for it: a lost wake-up shows as a hang, which the watchdog turns into a failure. A step is one record or, for
the byte ring, one string of 0 to 200 bytes; `blocks` are records that `Taker` takes, as many at a time as there are, by
plain numpy and without a bell. Prints one line per kind; exits with 1 on the first difference.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from cwd.jit import lean_kernel
from cwd.net import sync
from cwd.net.clock import monotonic_ns
from cwd.net.native import load_u1, pause, store_u1
from cwd.net.ring_block import ORDERED, Taker
from cwd.net.sync import (
    bytes_advance,
    bytes_claim,
    bytes_peek,
    bytes_publish,
    ring_advance,
    ring_arm,
    ring_bell,
    ring_claim,
    ring_disarm,
    ring_peek,
    ring_publish,
)
from cwd.net.wake import eventfd_clear, eventfd_signal, make_eventfd, wait_fd

RECORD = np.dtype([("sequence", "i8"), ("mixed", "i8"), ("low", "u4"), ("high", "u4"), ("tail", "i8")], align=True)
CAPACITY = 1024
BYTES = 1 << 14
_MIX = -7046029254386353131
_WAIT_NS = 5_000_000_000
OK, HUNG, WRONG = 0, -1, -2
#: of all steps; blocks only on processors that `Taker` is for
SHARES = {"threads": {"records": 0.4, "bytes": 0.1}, "processes": {"records": 0.3, "bytes": 0.1, "blocks": 0.1}}


@lean_kernel
def produce(ring, event, first, count, stall):
    """Publish the records first .. first + count - 1; OK, or HUNG if the ring stayed full for 5 s."""
    for sequence in range(first, first + count):
        index = ring_claim(ring)
        patience = 0
        while index < 0:
            if patience == 0:
                patience = monotonic_ns() + _WAIT_NS
            elif monotonic_ns() > patience:
                return HUNG
            pause()
            index = ring_claim(ring)
        row = ring.records[index]
        mixed = sequence * _MIX
        row["sequence"], row["mixed"] = sequence, mixed
        row["low"], row["high"], row["tail"] = mixed & 0xFFFFFFFF, (mixed >> 32) & 0xFFFFFFFF, ~sequence
        ring_publish(ring)
        if ring_bell(ring):
            eventfd_signal(event)
        _stall(mixed, stall)
    return OK


@lean_kernel
def consume(ring, event, first, count, stall):
    """Take and check as many records; OK, HUNG (nothing came for 5 s) or WRONG (minus its sequence number beyond 2)."""
    for sequence in range(first, first + count):
        index = ring_peek(ring)
        while index < 0:
            if ring_arm(ring) and wait_fd(event, _WAIT_NS) == 0 and ring_peek(ring) < 0:
                return HUNG
            ring_disarm(ring)
            eventfd_clear(event)
            index = ring_peek(ring)
        row = ring.records[index]
        mixed = sequence * _MIX
        if (row["sequence"] != sequence or row["mixed"] != mixed or row["low"] != mixed & 0xFFFFFFFF
                or row["high"] != (mixed >> 32) & 0xFFFFFFFF or row["tail"] != ~sequence):
            return WRONG - sequence
        ring_advance(ring)
        _stall(~mixed, stall)
    return OK


@lean_kernel
def produce_bytes(ring, event, first, count, stall):
    """As `produce`, strings whose length and bytes follow from their number."""
    for sequence in range(first, first + count):
        mixed = sequence * _MIX
        size = (mixed >> 20) % 201
        to = bytes_claim(ring, size)
        patience = 0
        while to == 0:
            if patience == 0:
                patience = monotonic_ns() + _WAIT_NS
            elif monotonic_ns() > patience:
                return HUNG
            pause()
            to = bytes_claim(ring, size)
        for k in range(size):
            store_u1(to + k, sequence + k)
        bytes_publish(ring)
        if ring_bell(ring):
            eventfd_signal(event)
        _stall(mixed, stall)
    return OK


@lean_kernel
def consume_bytes(ring, event, first, count, stall):
    """As `consume`, for `produce_bytes`."""
    for sequence in range(first, first + count):
        mixed = sequence * _MIX
        data, size = bytes_peek(ring)
        while size < 0:
            if ring_arm(ring) and wait_fd(event, _WAIT_NS) == 0 and bytes_peek(ring)[1] < 0:
                return HUNG
            ring_disarm(ring)
            eventfd_clear(event)
            data, size = bytes_peek(ring)
        if size != (mixed >> 20) % 201:
            return WRONG - sequence
        for k in range(size):
            if load_u1(data + k) != (sequence + k) & 255:
                return WRONG - sequence
        bytes_advance(ring)
        _stall(~mixed, stall)
    return OK


def consume_blocks(taker: Taker, first: int, count: int) -> int:
    """As `consume`, in blocks of up to a third of the ring."""
    rows, until_ns, last = np.zeros(CAPACITY // 3, RECORD), monotonic_ns() + _WAIT_NS, first + count
    while first < last:
        taken = rows[:taker.take(rows[:last - first])]
        if len(taken):
            sequence = np.arange(first, first + len(taken))
            mixed = sequence * _MIX
            right = ((taken["sequence"] == sequence) & (taken["mixed"] == mixed) & (taken["low"] == mixed & 0xFFFFFFFF)
                     & (taken["high"] == mixed >> 32 & 0xFFFFFFFF) & (taken["tail"] == ~sequence))
            if not right.all():
                return WRONG - int(sequence[~right][0])
            first, until_ns = first + len(taken), monotonic_ns() + _WAIT_NS
        elif monotonic_ns() > until_ns:
            return HUNG
    return OK


@lean_kernel
def _stall(mixed, stall):
    """Once in about `stall` calls (0: never) spin for up to some 10 us."""
    if stall > 0 and (mixed >> 33) % stall == 0:
        for _ in range((mixed >> 12) & 255):
            pause()


def _attach(kind: str, block: np.ndarray) -> Any:
    return sync.attach_byte_ring(BYTES, block) if kind == "bytes" else sync.attach_ring(RECORD, CAPACITY, block)


def _sides(kind: str, block: np.ndarray) -> tuple[Callable[..., int], Callable[..., int]]:
    """What produces and what consumes, both called with (ring, event, first, count, stall)."""
    if kind == "bytes":
        return produce_bytes, consume_bytes
    if kind == "records":
        return produce, consume
    taker = Taker(RECORD, CAPACITY, block)
    return produce, lambda ring, event, first, count, stall: consume_blocks(taker, first, count)


def _child(kind: str, fd: int, size: int, event: int, steps: int, stall: int) -> None:
    block, _ = sync.shared_block(size, fd)
    sys.exit(0 if _sides(kind, block)[0](_attach(kind, block), event, 0, steps, stall) == OK else 1)


def stress(kind: str, how: str, steps: int, stall: int = 997, report: Callable[[int], None] = lambda done: None) -> float:
    """`kind`: records, bytes or blocks; `how`: threads or processes. Nanoseconds per step; raises AssertionError if it fails."""
    size = sync.byte_ring_bytes(BYTES) if kind == "bytes" else sync.ring_bytes(RECORD, CAPACITY)
    block, fd = sync.shared_block(size)
    ring = sync.make_byte_ring(BYTES, block) if kind == "bytes" else sync.make_ring(RECORD, CAPACITY, block)
    event = make_eventfd()
    send, take = _sides(kind, block)
    send(ring, event, 0, 0, stall)  # compile before anybody waits
    take(ring, event, 0, 0, stall)
    results: list[int] = []
    if how == "threads":
        producer: Any = threading.Thread(target=lambda: results.append(send(ring, event, 0, steps, stall)))
    else:
        producer = multiprocessing.get_context("fork").Process(target=_child, args=(kind, fd, size, event, steps, stall))
    producer.start()
    begin, done = time.monotonic_ns(), 0
    while done < steps:
        part = min(steps - done, max(steps // 50, 1))
        result = take(ring, event, done, part, stall)
        assert result == OK, "the ring hung" if result == HUNG else f"record {WRONG - result} differs"
        done += part
        report(done)
    spent = time.monotonic_ns() - begin
    producer.join(30)
    failed = results != [OK] if how == "threads" else producer.exitcode != 0
    assert not failed, "the producer failed"
    assert sync.ring_len(ring) == 0, "records are left over"
    os.close(event)
    os.close(fd)
    return spent / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=lambda text: int(text.replace("_", "")), default=1_000_000_000,
                        help="of all kinds together")
    given = parser.parse_args()
    for how, shares in SHARES.items():
        for kind, share in shares.items():
            if kind == "blocks" and not ORDERED:
                continue
            steps = max(int(given.steps * share), 1)

            def report(done: int, how: str = how, kind: str = kind, steps: int = steps) -> None:
                print(f"\r{how}, {kind}: {done:,} of {steps:,}", end="", file=sys.stderr, flush=True)

            try:
                cost_ns = stress(kind, how, steps, report=report)
            except AssertionError as error:
                sys.exit(f"\n{how}, {kind}: {error}")
            print(f"\r{how}, {kind}: {steps:,} steps, {cost_ns:.1f} ns each, all in order", flush=True)


if __name__ == "__main__":
    main()
