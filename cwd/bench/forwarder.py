"""The bare forwarder: what any controller must at least do, to compare ours with. Two ROUTERs, no decision.

Clients' messages go to the workers in turn, and come back to who sent them: three frames a hop (routing id, header,
payload), none copied. It knows one thing about headers: where a canonical INFER has its `app`, into which it writes
whom the answer is for. A worker makes itself known by sending anything.

    python -m cwd.bench.forwarder --clients ipc:///tmp/c --workers ipc:///tmp/w

runs until SIGTERM and then prints one JSON object: {"forwarded", "dropped", "cpu_s"} (all threads).
"""

from __future__ import annotations

import argparse
import json
import signal
import time
from typing import Any

import numpy as np
import zmq

from cwd.bench.cpu import process_cpu_ns
from cwd.jit import lean_kernel
from cwd.net.clock import monotonic_ns
from cwd.net.native import load_u4, store_u4
from cwd.net.notify import notify
from cwd.net.sockets import bind_router, make_context
from cwd.net.zmq import (
    DONTWAIT,
    EINTR,
    SNDMORE,
    message,
    message_close,
    message_data,
    message_size,
    message_table,
    messages_close,
    poll,
    poll_items,
    receive_frames,
    routing_key,
    send,
    send_routing_id,
)
from cwd.wire.schema import SIZE_INFER

WORKERS_MAX = 1024
FRAMES = 3
#: `app` (0xce and four bytes) stands before `dims` (21 bytes), which ends the canonical INFER.
_APP_AT = SIZE_INFER - 21 - 4
_KEY_MARK = 1 << 32
_BATCH = 64

STATE = np.dtype([
    ("forwarded", "i8"),
    ("returned", "i8"),
    ("dropped", "i8"),
    ("workers", "i8"),
    ("turn", "i8"),
    ("keys", "i8", WORKERS_MAX),
], align=True)


@lean_kernel
def forward(clients, workers, items, table, state, until_ns):
    """Forward both ways until `until_ns` (monotonic) or a signal: 0, or -errno.

    `clients`, `workers`: handles of bound ROUTERs; `items` their POLL_ITEM[2]; `table`: u1[>= 3, 64] empty messages;
    `state`: a record of STATE.
    """
    while True:
        moved = 0
        for _ in range(_BATCH):
            result = _to_worker(clients, workers, table, state)
            if result <= 0:
                break
            moved += 1
        for _ in range(_BATCH):
            result = _to_client(clients, workers, table, state)
            if result <= 0:
                break
            moved += 1
        now = monotonic_ns()
        if now >= until_ns:
            return 0
        if moved == 0:
            ready = poll(items, 1 + (until_ns - now) // 1_000_000)
            if ready < 0:
                return ready


@lean_kernel
def _to_worker(clients, workers, table, state):
    """Move one message from a client to the next worker: frames it had, 0 where there was none."""
    frames = receive_frames(clients, table, 0, FRAMES)
    if frames <= 0:
        return 0
    key = routing_key(message(table, 0))
    header = message(table, 1)
    if frames != FRAMES or key == 0 or message_size(header) != SIZE_INFER or state["workers"] == 0:
        state["dropped"] += 1
        return frames
    store_u4(message_data(header) + _APP_AT, key)
    worker = state["turn"] % state["workers"]
    state["turn"] = worker + 1
    if _send_to(workers, state["keys"][worker], table) != 0:
        state["dropped"] += 1
        return frames
    state["forwarded"] += 1
    return frames


@lean_kernel
def _to_client(clients, workers, table, state):
    """Move one answer from a worker to its client, or learn of a worker: frames it had, 0 where there was none."""
    frames = receive_frames(workers, table, 0, FRAMES)
    if frames <= 0:
        return 0
    header = message(table, 1)
    if frames != FRAMES or message_size(header) != SIZE_INFER:
        if state["workers"] < WORKERS_MAX:
            state["keys"][state["workers"]] = routing_key(message(table, 0))
            state["workers"] += 1
        return frames
    if _send_to(clients, _KEY_MARK | load_u4(message_data(header) + _APP_AT), table) != 0:
        state["dropped"] += 1
        return frames
    state["returned"] += 1
    return frames


@lean_kernel
def _send_to(socket, key, table):
    """Send the messages 1 and 2 of `table` to the peer `key`: 0, or -errno, and then they are closed."""
    sent = send_routing_id(socket, key)
    if sent >= 0:
        sent = send(socket, message(table, 1), DONTWAIT | SNDMORE)
    if sent >= 0:
        sent = send(socket, message(table, 2), DONTWAIT)
    if sent >= 0:
        return 0
    message_close(message(table, 1))
    message_close(message(table, 2))
    return sent


def run(clients: zmq.Socket, workers: zmq.Socket, stop: list[bool], slice_ns: int = 50_000_000) -> np.ndarray:
    """Forward in slices until `stop[0]` becomes true; returns the record of STATE."""
    table = message_table(FRAMES)
    state = np.zeros(1, STATE)
    items = poll_items([clients, workers], [])
    while not stop[0]:
        error = forward(clients.underlying, workers.underlying, items, table, state[0], monotonic_ns() + slice_ns)
        if error not in (0, EINTR):
            break
    messages_close(table)
    return state[0]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", required=True, help="endpoint to bind for clients")
    parser.add_argument("--workers", required=True, help="endpoint to bind for workers")
    given = parser.parse_args(arguments)
    stop = [False]

    def on_signal(number: int, frame: Any) -> None:
        stop[0] = True

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    context = make_context()
    clients, workers = bind_router(context, given.clients), bind_router(context, given.workers)
    warm(clients, workers)
    notify(ready=True)
    begin, cpu = time.monotonic(), process_cpu_ns()
    state = run(clients, workers, stop)
    print(json.dumps({
        "forwarded": int(state["forwarded"]), "returned": int(state["returned"]), "dropped": int(state["dropped"]),
        "workers": int(state["workers"]), "seconds": time.monotonic() - begin, "cpu_s": (process_cpu_ns() - cpu) / 1e9,
    }), flush=True)
    clients.close(0)
    workers.close(0)
    context.term()


def warm(clients: zmq.Socket, workers: zmq.Socket) -> None:
    """Compile, or load from the cache, before anybody counts."""
    forward(clients.underlying, workers.underlying, poll_items([clients, workers], []), message_table(FRAMES),
            np.zeros(1, STATE)[0], 0)


if __name__ == "__main__":
    main()
