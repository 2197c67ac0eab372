"""The event log's one record: what kinds there are and what each kind keeps in which column.

A log is what the core was told, in order, and what it answered. The records of the first group are the calls of
`cwd.core.engine`, with every argument; fed again in order to a world of the same configuration they leave the records
of the second group in its outbox. The third group is for people: what the host did without asking the core. One record
is 96 bytes, whatever its kind; columns `a` to `h` mean what `COLUMNS` says. This module imports numpy alone.
"""

from __future__ import annotations

import enum

import numpy as np

LOG_MAGIC = b"CWDLOG1\n"

RECORD = np.dtype(
    [
        ("now_ns", "<i8"),
        ("kind", "u1"),
        ("flag", "u1"),
        ("status", "<u2"),
        ("gpu", "<i4"),
        ("model", "<i8"),
        ("id", "<i8"),
        *[(column, "<i8") for column in "abcdefgh"],
    ],
    align=True,
)


class Kind(enum.IntEnum):
    """What a record tells. 1 to 31 are events fed to the core, 32 to 47 its outbox, 48 up the host's own."""

    ARRIVED = 1
    CANCELLED = 2
    CLIENT_GONE = 3
    DONE = 4
    JOINED = 5
    RESIDENT = 6
    LOST = 7
    DRAINING = 8
    PROGRAM = 9
    PREPARED = 10
    SEED = 11
    LOAD_SEED = 12
    MODEL_ADDED = 13
    MODEL_REMOVED = 14
    RESERVED = 15
    TICK = 16
    WANTED = 17
    CLOSING = 18

    ACTION = 32
    REPLY = 33
    RELEASE = 34

    REFUSED = 48
    GAP = 49


#: Column -> meaning, per kind; `status`, `gpu`, `model` and `now_ns` mean the same everywhere (-1 where there is none).
COLUMNS: dict[Kind, dict[str, str]] = {
    Kind.ARRIVED: {"id": "request", "a": "client", "b": "deadline_ns", "c": "slo_ns", "d": "size_class", "e": "app",
                   "f": "payload"},
    Kind.CANCELLED: {"id": "request", "a": "client"},
    Kind.CLIENT_GONE: {"a": "client"},
    #: sent_ns: when the worker sent it, on our clock (0: not known); margin_ns: what its way was thought to take at most
    Kind.DONE: {"id": "action", "flag": "stale", "a": "begin_ns", "b": "end_ns", "c": "device_ns", "d": "rows_done",
                "e": "pages_free", "f": "payload", "g": "sent_ns", "h": "margin_ns"},
    Kind.JOINED: {"a": "kind", "b": "pages_total"},
    Kind.RESIDENT: {},
    Kind.LOST: {},
    Kind.DRAINING: {},
    #: batch sizes as u16, four to a column, from `c` on
    Kind.PROGRAM: {"id": "program", "a": "n_batches", "b": "n_classes"},
    Kind.PREPARED: {"id": "program", "a": "ok"},
    Kind.SEED: {"id": "program", "a": "kind", "b": "batch_index", "c": "size_class", "d": "exec_ns"},
    Kind.LOAD_SEED: {"id": "program", "a": "kind", "b": "load_ns"},
    Kind.MODEL_ADDED: {"id": "program", "a": "pages"},
    Kind.MODEL_REMOVED: {},
    Kind.RESERVED: {"id": "action", "a": "expected_ns"},
    Kind.TICK: {},
    Kind.WANTED: {},
    Kind.CLOSING: {},
    Kind.ACTION: {"id": "action", "flag": "action_kind", "a": "program", "b": "pages", "c": "batch", "d": "size_class",
                  "e": "earliest_ns", "f": "latest_ns", "g": "expected_ns", "h": "rows"},
    Kind.REPLY: {"id": "request", "flag": "cold", "a": "client", "b": "queued_ns", "c": "load_ns", "d": "exec_ns",
                 "e": "total_ns", "f": "earliest_ns", "g": "batch", "h": "action"},
    Kind.RELEASE: {"a": "payload", "b": "result"},
    #: a request that the host answered itself; the core never saw it
    Kind.REFUSED: {"id": "request", "a": "client"},
    #: so many records were lost here because the ring was full
    Kind.GAP: {"a": "lost"},
}
