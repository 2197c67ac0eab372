"""Entries: where the messages of actions live while a lane has them.

An entry is one row of the tables: frame 0 and the payload frames as they were received, and the messages that will be
sent in answer. Payloads are never copied. Whoever has the exchange's lock hands entries out and takes them back; one
that a lane's thread was given is that thread's alone until it answers. It must not know what an action is.
"""

from __future__ import annotations

import numpy as np

from cwd.jit import inline, inner_kernel, lean_kernel
from cwd.net.native import load_i4
from cwd.net.zmq import message, message_alloc, message_close, message_data, message_size, message_table
from cwd.tables import Tables
from cwd.wire.messages import DIMS


#: Rows of `Entries.batch`: where the payload frames lie, their bytes, where the output messages lie, their bytes.
PAYLOADS, SIZES, OUTPUTS, OUT_SIZES = range(4)


class Entries(Tables):
    """n entries of at most rows_max payload frames."""

    frames: np.ndarray  # u1 [n * (1 + rows_max), 64]: frame 0 and the payload frames of each entry
    outputs: np.ndarray  # u1 [n * rows_max, 64]: what the exec thread answers
    dims: np.ndarray  # u4 [n, rows_max, 4]
    used: np.ndarray  # i4 [n]: frames that are in use
    batch: np.ndarray  # i8 [4, rows_max]: see PAYLOADS; the first two of what is staged, the others of what runs
    free: np.ndarray  # i4 [n]: a stack
    counts: np.ndarray  # i8 [2]: depth of the stack; the entry that the next message is read into


def make_entries(n: int, rows_max: int) -> Entries:
    entries = Entries(
        frames=message_table(n * (1 + rows_max)), outputs=message_table(n * rows_max),
        dims=np.zeros((n, rows_max, DIMS), np.uint32), used=np.zeros(n, np.int32), batch=np.zeros((4, rows_max), np.int64),
        free=np.arange(n, dtype=np.int32), counts=np.zeros(2, np.int64))
    entries.counts[:] = n - 1, n - 1  # the last one is the first to read into
    return entries


@inline
def rows_max(entries):
    return entries.dims.shape[1]


@inner_kernel
def entry_take(entries):
    """Keep the entry that was read into and go on with another: its index, or -1: none left."""
    depth = entries.counts[0]
    if depth == 0:
        return np.int64(-1)
    kept = np.int64(entries.counts[1])
    entries.counts[0] = depth - 1
    entries.counts[1] = entries.free[depth - 1]
    return kept


@inner_kernel
def entry_give(entries, entry):
    """The entry's action is answered; its frames are released."""
    entry_close(entries, entry)
    entries.free[entries.counts[0]] = entry
    entries.counts[0] += 1


@lean_kernel
def entry_close(entries, entry):
    """Release an entry's frames."""
    stride = entries.frames.shape[0] // len(entries.used)
    for k in range(entries.used[entry]):
        message_close(message(entries.frames, entry * stride + k))
    entries.used[entry] = 0


@inner_kernel
def entry_dims(entries, entry, address, n):
    """Copy the dims of n rows, n x 16 bytes at `address` inside frame 0."""
    for row in range(n):
        for k in range(DIMS):
            entries.dims[entry, row, k] = load_i4(address + 16 * row + 4 * k)


@lean_kernel
def entry_payloads(entries, entry, n):
    """The exec thread: note in `batch` where the entry's n payloads lie, and how long they are."""
    batch = entries.batch
    first = entry * (entries.frames.shape[0] // len(entries.used)) + 1
    for row in range(n):
        m = message(entries.frames, first + row)
        batch[PAYLOADS, row] = message_data(m)
        batch[SIZES, row] = message_size(m)


@lean_kernel
def entry_open(entries, entry, n):
    """The exec thread: make n output messages of OUT_SIZES bytes, and note in `batch` where; False: no memory."""
    batch = entries.batch
    first_output = entry * rows_max(entries)
    for row in range(n):
        out = message(entries.outputs, first_output + row)
        if message_alloc(out, batch[OUT_SIZES, row]) != 0:
            entry_drop_outputs(entries, entry, row)
            return False
        batch[OUTPUTS, row] = message_data(out)
    return True


@lean_kernel
def entry_drop_outputs(entries, entry, n):
    """Close n output messages that will not be sent."""
    first = entry * rows_max(entries)
    for row in range(n):
        message_close(message(entries.outputs, first + row))
