"""Rings: how threads and processes hand records to one another, one producer and one consumer each.

They must not know what a record means. A ring is a block of memory: private, or shared by `shared_block`. `Ring` holds
fixed-size structured records; `ByteRing` holds byte strings of any length, for rare messages. Positions only grow, as
int64, and are published with release and read with acquire; each side keeps its last view of the other's, so a line of
the cache moves only when a side runs out.

Waking: a consumer that finds nothing calls `ring_arm`; if that says 1 it sleeps on its eventfd, and whatever wakes it,
it calls `ring_disarm`. A producer calls `ring_bell` after publishing and signals the eventfd if that says 1: no system
call while the consumer is awake, and no wake-up is lost.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from cwd.jit import kernel, lean_kernel
from cwd.net.native import address_of, aligned_zeros, copy_bytes, fence, load_acquire, load_i8, store_i8, store_release
from cwd.net.ring_block import (
    ARMED, CLAIMED, CONTROL_BYTES, HEAD, HEAD_SEEN, TAIL, TAIL_SEEN, lay, ring_bytes, shared_block,
)
from cwd.net.wake import (
    eventfd_clear,
    eventfd_signal,
    make_eventfd,
    make_timerfd,
    set_timer_slack,
    spin_until,
    timerfd_arm,
    timerfd_clear,
    wait_fd,
)
from cwd.tables import Tables

__all__ = [
    "ByteRing", "Ring", "attach_byte_ring", "attach_ring", "byte_ring_bytes", "bytes_advance", "bytes_claim",
    "bytes_fit", "bytes_get", "bytes_peek", "bytes_publish", "bytes_push", "bytes_put", "eventfd_clear",
    "eventfd_signal", "make_byte_ring", "make_eventfd", "make_ring", "make_timerfd", "ring_advance", "ring_arm",
    "ring_bell", "ring_bytes", "ring_claim", "ring_disarm", "ring_len", "ring_peek", "ring_pop", "ring_publish",
    "ring_push", "set_timer_slack", "shared_block", "spin_until", "timerfd_arm", "timerfd_clear", "wait_fd",
]

_SKIP = -1  # a ByteRing's length word: the rest of the block is unused, go on at its beginning


class Ring(Tables):
    """Fixed-size records: `control` i8[64], `records` T[capacity], capacity a power of two."""

    control: np.ndarray
    records: np.ndarray


class ByteRing(NamedTuple):
    """Byte strings: `control` i8[64], `data` u1[capacity], capacity a power of two."""

    control: np.ndarray
    data: np.ndarray


def make_ring(record: Any, capacity: int, block: np.ndarray | None = None) -> Ring:
    """An empty ring in `block` (u1[at least ring_bytes], aligned to 64, zeroed), or in memory of its own."""
    control, data = _lay(np.dtype(record).itemsize, capacity, block, fresh=True)
    return Ring(control=control, records=data.view(record))


def attach_ring(record: Any, capacity: int, block: np.ndarray) -> Ring:
    """The ring that another process made in `block`; raises `InvariantError` if it has another form."""
    control, data = _lay(np.dtype(record).itemsize, capacity, block, fresh=False)
    return Ring(control=control, records=data.view(record))


def byte_ring_bytes(capacity: int) -> int:
    """Bytes of memory that a byte ring of `capacity` bytes (a power of two) needs."""
    return CONTROL_BYTES + capacity


def make_byte_ring(capacity: int, block: np.ndarray | None = None) -> ByteRing:
    """An empty byte ring of `capacity` bytes, as `make_ring`. A string takes 8 bytes more, and is padded to 8."""
    return ByteRing(*_lay(1, capacity, block, fresh=True))


def attach_byte_ring(capacity: int, block: np.ndarray) -> ByteRing:
    """The byte ring that another process made in `block`; raises `InvariantError` if it has another form."""
    return ByteRing(*_lay(1, capacity, block, fresh=False))


def _lay(item_bytes: int, capacity: int, block: np.ndarray | None, *, fresh: bool) -> tuple[np.ndarray, np.ndarray]:
    if block is None:
        block = aligned_zeros(CONTROL_BYTES + item_bytes * max(capacity, 0))
    return lay(item_bytes, capacity, block, fresh=fresh)


@lean_kernel
def ring_len(ring):
    """How many are published and not taken (of a ByteRing: bytes, with lengths and padding). Either side may ask."""
    head = load_acquire(ring.control, HEAD)
    return max(load_acquire(ring.control, TAIL) - head, 0)


@lean_kernel
def ring_claim(ring):
    """Producer: index of the record to fill next, or -1: full. Nothing is visible before `ring_publish`."""
    control = ring.control
    capacity = ring.records.shape[0]
    tail = control[TAIL]
    if tail - control[HEAD_SEEN] >= capacity:
        control[HEAD_SEEN] = load_acquire(control, HEAD)
        if tail - control[HEAD_SEEN] >= capacity:
            return -1
    return tail & (capacity - 1)


@lean_kernel
def ring_publish(ring):
    """Producer: hand the claimed record over."""
    store_release(ring.control, TAIL, ring.control[TAIL] + 1)


@lean_kernel
def ring_peek(ring):
    """Consumer: index of the oldest record, to be read in place, or -1: empty. It stays there until `ring_advance`."""
    control = ring.control
    head = control[HEAD]
    if head >= control[TAIL_SEEN]:
        control[TAIL_SEEN] = load_acquire(control, TAIL)
        if head >= control[TAIL_SEEN]:
            return -1
    return head & (ring.records.shape[0] - 1)


@lean_kernel
def ring_advance(ring):
    """Consumer: give the peeked record's place back."""
    store_release(ring.control, HEAD, ring.control[HEAD] + 1)


@lean_kernel
def ring_push(ring, row):
    """Producer: publish a copy of the record `row`; 1, or 0: full."""
    index = ring_claim(ring)
    if index < 0:
        return 0
    ring.records[index] = row
    ring_publish(ring)
    return 1


@lean_kernel
def ring_pop(ring, rows, i):
    """Consumer: move the oldest record to `rows[i]`; 1, or 0: empty."""
    index = ring_peek(ring)
    if index < 0:
        return 0
    rows[i] = ring.records[index]
    ring_advance(ring)
    return 1


@lean_kernel
def ring_arm(ring):
    """Consumer, before it sleeps: 1 if there is still nothing (then sleep), 0 if something came (then take it)."""
    control = ring.control
    store_release(control, ARMED, 1)
    fence()  # the flag must be visible before the last look; `ring_bell` has the mirror image
    if load_acquire(control, TAIL) == control[HEAD]:
        return 1
    store_release(control, ARMED, 0)
    return 0


@lean_kernel
def ring_disarm(ring):
    """Consumer, awake again: no more bells."""
    store_release(ring.control, ARMED, 0)


@lean_kernel
def ring_bell(ring):
    """Producer, after publishing (once for many): 1 if the consumer sleeps, or is about to, and must be signalled."""
    fence()
    if load_acquire(ring.control, ARMED) == 0:
        return 0
    store_release(ring.control, ARMED, 0)
    return 1


@lean_kernel
def bytes_claim(ring, size):
    """Producer: the address of `size` bytes to fill, or 0: no room now (or never: see `bytes_fit`)."""
    control = ring.control
    capacity = ring.data.shape[0]
    tail = control[TAIL]
    whole = 8 + (size + 7) // 8 * 8
    to_end = capacity - (tail & (capacity - 1))
    needed = whole if whole <= to_end else to_end + whole
    if size < 0 or whole > capacity:
        return 0
    if tail + needed - control[HEAD_SEEN] > capacity:
        control[HEAD_SEEN] = load_acquire(control, HEAD)
        if tail + needed - control[HEAD_SEEN] > capacity:
            return 0
    base = address_of(ring.data)
    start = base + (tail & (capacity - 1))
    if whole > to_end:
        store_i8(start, _SKIP)
        start = base
    store_i8(start, size)
    control[CLAIMED] = tail + needed
    return start + 8


@lean_kernel
def bytes_publish(ring):
    """Producer: hand the claimed bytes over."""
    store_release(ring.control, TAIL, ring.control[CLAIMED])


@lean_kernel
def bytes_peek(ring):
    """Consumer: (address, size) of the oldest string, valid until `bytes_advance`; (0, -1): empty."""
    control = ring.control
    if control[HEAD] >= control[TAIL_SEEN]:
        control[TAIL_SEEN] = load_acquire(control, TAIL)
        if control[HEAD] >= control[TAIL_SEEN]:
            return 0, -1
    capacity = ring.data.shape[0]
    base = address_of(ring.data)
    place = control[HEAD] & (capacity - 1)
    size = load_i8(base + place)
    if size == _SKIP:
        store_release(control, HEAD, control[HEAD] + capacity - place)
        place = 0
        size = load_i8(base)
    return base + place + 8, size


@lean_kernel
def bytes_advance(ring):
    """Consumer: give the peeked string's place back."""
    place = ring.control[HEAD] & (ring.data.shape[0] - 1)
    size = load_i8(address_of(ring.data) + place)
    store_release(ring.control, HEAD, ring.control[HEAD] + 8 + (size + 7) // 8 * 8)


@lean_kernel
def bytes_push(ring, source, size):
    """Producer: publish a copy of the `size` bytes at address `source`; 1, or 0: no room."""
    to = bytes_claim(ring, size)
    if to == 0:
        return 0
    if size > 0:
        copy_bytes(to, source, size)
    bytes_publish(ring)
    return 1


@kernel
def bytes_fit(ring, size):
    """1 if a string of `size` bytes finds room in an empty ring wherever it starts, else 0: never push such a one."""
    return 1 if 0 <= size and 2 * (8 + (size + 7) // 8 * 8) <= ring.data.shape[0] else 0


def bytes_put(ring: ByteRing, text: bytes) -> bool:
    """`bytes_push` from Python."""
    array = np.frombuffer(text or b"\0", dtype=np.uint8)
    return bool(bytes_push(ring, array.ctypes.data, len(text)))


def bytes_get(ring: ByteRing) -> bytes | None:
    """Take the oldest string, from Python; None: empty."""
    address, size = bytes_peek(ring)
    if size < 0:
        return None
    start = address - ring.data.ctypes.data
    text = ring.data[start:start + size].tobytes()
    bytes_advance(ring)
    return text
