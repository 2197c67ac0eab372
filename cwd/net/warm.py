"""Calls every kernel of the package once, on tiny tables, so that `cwd compile` leaves them in the cache."""

from __future__ import annotations

import os

import numpy as np
import zmq

from cwd.net import clock, sockets, sync, wake
from cwd.net import zmq as nopython

_RECORD = np.dtype([("sequence", "i8"), ("value", "i8")], align=True)


def warm() -> None:
    """Compile, or load from the cache, what processes call from Python; callees inside of kernels come with them."""
    _warm_rings()
    _warm_wakes()
    _warm_clock()
    _warm_sockets()


def _warm_rings() -> None:
    ring = sync.make_ring(_RECORD, 2)
    rows = np.zeros(1, _RECORD)
    sync.ring_push(ring, rows[0])
    sync.ring_pop(ring, rows, 0)
    sync.ring_claim(ring)
    sync.ring_publish(ring)
    sync.ring_peek(ring)
    sync.ring_advance(ring)
    sync.ring_len(ring)
    sync.ring_arm(ring)
    sync.ring_bell(ring)
    sync.ring_disarm(ring)
    texts = sync.make_byte_ring(64)
    sync.bytes_fit(texts, 1)
    sync.bytes_put(texts, b"x")
    sync.bytes_get(texts)
    for function in (sync.ring_len, sync.ring_arm, sync.ring_bell, sync.ring_disarm):
        function(texts)


def _warm_wakes() -> None:
    event, timer = wake.make_eventfd(), wake.make_timerfd()
    try:
        wake.eventfd_signal(event)
        wake.wait_fd(event, 0)
        wake.eventfd_clear(event)
        wake.timerfd_arm(timer, 0)
        wake.timerfd_clear(timer)
        wake.spin_until(clock.monotonic_ns())
    finally:
        os.close(event)
        os.close(timer)


def _warm_clock() -> None:
    rows = np.zeros(1, clock.OFFSET)
    clock.offset_reset(rows[0])
    clock.offset_guess(rows[0], 1, 2)
    clock.offset_update(rows[0], 1, 1, 0, 2)
    clock.offset_error_ns(rows[0], 3)
    clock.to_peer_ns(rows[0], 1)
    clock.from_peer_ns(rows[0], 1)
    clock.offset_fix(rows[0], 1)


def _warm_sockets() -> None:
    table = nopython.message_table(4)
    first, second = nopython.message(table, 0), nopython.message(table, 1)
    nopython.message_alloc(first, 8)
    nopython.message_fill(second, nopython.message_data(first), nopython.message_size(first))
    nopython.message_copy(first, second)
    nopython.message_move(second, first)
    nopython.message_more(first)
    nopython.message_close(second)
    with sockets.make_context() as context:
        router = context.socket(zmq.ROUTER)
        nopython.poll(nopython.poll_items([router], []), 0)
        handle = router.underlying
        nopython.receive(handle, first, nopython.DONTWAIT)
        nopython.routing_key(first)
        nopython.send_routing_id(handle, 1)
        nopython.send(handle, first, nopython.DONTWAIT)
        nopython.send_bytes(handle, nopython.message_data(first), 0, nopython.DONTWAIT)
        nopython.receive_frames(handle, table, 0, 2)
        nopython.drop_rest(handle)
        nopython.send_frames(handle, table, 0, 2)
        router.close(0)
    nopython.messages_close(table)
