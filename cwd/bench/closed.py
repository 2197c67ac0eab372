"""Closed loops: clients with one request in flight each, that send the next when an answer comes, or back off a little.

Compiled, and many loops to a process, since they share a core with the controller that they load. A loop that is
refused sooner than `quick_ns` after sending waits `pause_ns` before it tries again. Counted are answers that came back
here within the SLO of their sending. A loop sends, as a client with a thread of its own would, when the socket takes its
request: few wait behind one another in this process, where nobody could know that they do.

    python -m cwd.bench.closed --connect ipc:///tmp/c --inflight 16 --slo 50ms --seconds 5 --payload 49152
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

import numpy as np
import zmq

from cwd.bench.generate import _answer_heartbeat
from cwd.bench.histogram import BUCKETS, bucket_of, summary_ms
from cwd.bench.loadgen import LoadGenerator
from cwd.errors import Code, CwdError
from cwd.jit import lean_kernel
from cwd.net.clock import monotonic_ns
from cwd.net.native import address_of
from cwd.net.sockets import make_context
from cwd.net.wake import make_timerfd, timerfd_arm, timerfd_clear
from cwd.net.zmq import (
    DONTWAIT, EAGAIN, EINTR, POLLIN, POLLOUT, SNDMORE, message, message_copy, message_data, message_fill, message_size,
    message_table, poll, poll_items, receive_frames, send, send_bytes,
)
from cwd.units import NS_PER_MS, NS_PER_S, parse_duration_ns
from cwd.wire.kernel import (
    HEARTBEAT, INFER, REPLY, TYPE_HEARTBEAT, TYPE_REPLY, decode_heartbeat, decode_reply, encode_infer, peek_type,
)

_FRAMES = 2
_HEADER_BYTES = 256
_LOOP_BITS = 16
_BATCH = 64
_OK = int(Code.OK)
_CODES = 1024
#: requests that wait for the io thread
_SEND_QUEUE = 8
_SLICE_NS = 20 * NS_PER_MS

#: One closed loop. `turn` counts its requests; a request's id is turn << 16 | loop.
LOOP = np.dtype([("handle", "i8"), ("turn", "i8"), ("sent_ns", "i8"), ("due_ns", "i8"), ("flying", "i8")], align=True)

#: `head` and `count` describe the ring of loops that wait: their pauses are equal, so they are due in order.
STATE = np.dtype([
    ("slo_ns", "i8"), ("quick_ns", "i8"), ("pause_ns", "i8"), ("head", "i8"), ("count", "i8"), ("sent", "i8"),
    ("answered", "i8"), ("in_time", "i8"), ("late", "i8"), ("batch_sum", "i8"), ("strange", "i8"), ("stop", "i8"),
    ("since_ns", "i8"),
], align=True)


@lean_kernel
def drive(socket, items, timer, table, rows, loops, ring, counts, state, until_ns):
    """Run the loops until `until_ns` (monotonic) or a signal: 0, or -errno. `counts`: (i8[codes], i8[BUCKETS])."""
    while True:
        moved = _take(socket, table, rows, loops, ring, counts, state)
        now = monotonic_ns()
        sent, full = _send_due(socket, table, rows, loops, ring, state, now)
        if sent < 0:
            return sent
        if now >= until_ns:
            return 0
        if moved + sent == 0:
            wake = until_ns
            if state["count"] > 0 and state["stop"] == 0 and not full:
                wake = min(wake, loops[ring[state["head"]]]["due_ns"])
            items[0]["events"] = POLLIN | POLLOUT if full else POLLIN
            timerfd_arm(timer, wake)
            ready = poll(items, -1)
            timerfd_clear(timer)
            if ready < 0:
                return ready


@lean_kernel
def _send_due(socket, table, rows, loops, ring, state, now):
    """(requests sent, or -errno; whether the socket takes no more now)."""
    sent = 0
    while state["count"] > 0 and state["stop"] == 0 and sent < _BATCH:
        index = ring[state["head"]]
        loop = loops[index]
        if loop["due_ns"] > now:
            break
        error = _send_one(socket, table, rows, loop, index, state)
        if error == EAGAIN:
            return sent, True
        if error < 0:
            return error, False
        state["head"] = (state["head"] + 1) % ring.shape[0]
        state["count"] -= 1
        sent += 1
    return sent, False


@lean_kernel
def _send_one(socket, table, rows, loop, index, state):
    infer, header = rows[0][0], rows[3]
    now = monotonic_ns()
    infer["request"] = (loop["turn"] << _LOOP_BITS) | index
    infer["model"] = loop["handle"]
    infer["slo_ns"] = state["slo_ns"]
    infer["deadline_ns"] = now + state["slo_ns"]
    size = encode_infer(address_of(header), _HEADER_BYTES, infer)
    error = send_bytes(socket, address_of(header), size, DONTWAIT | SNDMORE)
    if error < 0:
        return error
    message_copy(message(table, _FRAMES), message(table, _FRAMES + 1))
    send(socket, message(table, _FRAMES), DONTWAIT)
    loop["sent_ns"] = now
    loop["flying"] = 1
    state["sent"] += 1
    return 0


@lean_kernel
def _take(socket, table, rows, loops, ring, counts, state):
    moved = 0
    while moved < _BATCH:
        if receive_frames(socket, table, 0, _FRAMES) <= 0:
            break
        moved += 1
        data, size = message_data(message(table, 0)), message_size(message(table, 0))
        kind = peek_type(data, size)
        if kind == TYPE_REPLY and decode_reply(data, size, rows[1][0]) == _OK:
            _answer(rows[1][0], loops, ring, counts, state)
        elif kind == TYPE_HEARTBEAT and decode_heartbeat(data, size, rows[2][0]) == _OK:
            _answer_heartbeat(socket, rows)
        else:
            state["strange"] += 1
    return moved


@lean_kernel
def _answer(reply, loops, ring, counts, state):
    index = reply["request"] & ((1 << _LOOP_BITS) - 1)
    if index >= loops.shape[0] or loops[index]["flying"] == 0 or reply["request"] >> _LOOP_BITS != loops[index]["turn"]:
        state["strange"] += 1
        return
    loop = loops[index]
    now = monotonic_ns()
    took = now - loop["sent_ns"]
    status = np.int64(reply["status"])
    loop["flying"] = 0
    loop["turn"] += 1
    loop["due_ns"] = now
    if now >= state["since_ns"]:
        state["answered"] += 1
        counts[0][min(status, _CODES - 1)] += 1
        if status == _OK:
            counts[1][bucket_of(took)] += 1
            state["batch_sum"] += reply["batch"]
            if took <= state["slo_ns"]:
                state["in_time"] += 1
            else:
                state["late"] += 1
    if status != _OK and took < state["quick_ns"]:
        loop["due_ns"] = now + state["pause_ns"]
        ring[(state["head"] + state["count"]) % ring.shape[0]] = index
    else:
        # due at once: to the front, before those that pause
        state["head"] = (state["head"] - 1) % ring.shape[0]
        ring[state["head"]] = index
    state["count"] += 1


class Loops:
    """`inflight` closed loops against each registered model, over one connection. Close it."""

    def __init__(self, endpoint: str, *, inflight: int, slo_ns: int, payload_bytes: int, quick_ns: int,
                 pause_ns: int) -> None:
        self._context = make_context()
        self._compile()
        self._client = LoadGenerator(self._context, endpoint, send_queue=_SEND_QUEUE)
        handles = [handle for handle in self._client.models().values() for _ in range(inflight)]
        if len(handles) > self._client.credits:
            raise CwdError(f"{len(handles)} in flight, and the controller gives {self._client.credits} credits")
        self._loops = np.zeros(len(handles), LOOP)
        self._loops["handle"] = handles
        # the models in turn, so that the first round does not come in blocks
        self._ring = np.ascontiguousarray(np.arange(len(handles)).reshape(-1, inflight).T.ravel(), np.int64)
        self._counts = (np.zeros(_CODES, np.int64), np.zeros(BUCKETS, np.int64))
        self._state = np.zeros(1, STATE)[0]
        self._state["slo_ns"], self._state["quick_ns"], self._state["pause_ns"] = slo_ns, quick_ns, pause_ns
        self._state["count"] = len(handles)
        message_fill(message(self._client._table, _FRAMES + 1), np.zeros(max(payload_bytes, 1), np.uint8).ctypes.data,
                     payload_bytes)

    def _compile(self) -> None:
        """Before we say HELLO: the controller gives up a client that is silent for as long as compiling may take."""
        socket, timer = self._context.socket(zmq.DEALER), make_timerfd()
        rows = (np.zeros(2, INFER), np.zeros(1, REPLY), np.zeros(2, HEARTBEAT), np.zeros(_HEADER_BYTES, np.uint8))
        counts = (np.zeros(_CODES, np.int64), np.zeros(BUCKETS, np.int64))
        drive(socket.underlying, poll_items([socket], [timer]), timer, message_table(_FRAMES + 2), rows,
              np.zeros(1, LOOP), np.zeros(1, np.int64), counts, np.zeros(1, STATE)[0], 0)
        os.close(timer)
        socket.close(0)

    def run(self, until_ns: int) -> None:
        """Keep the loops going."""
        client = self._client
        while monotonic_ns() < until_ns:
            error = drive(client.socket.underlying, client._items, client._timer, client._table, client._rows,
                          self._loops, self._ring, self._counts, self._state, min(until_ns, monotonic_ns() + _SLICE_NS))
            if error not in (0, EAGAIN, EINTR):
                raise CwdError(f"the client's socket failed: {os.strerror(-error)}")

    def measure(self, seconds: float, warm_s: float) -> dict[str, Any]:
        """Count from `warm_s` on, for `seconds`; then stop, and wait for what is in flight."""
        state, counts = self._state, self._counts
        since_ns = monotonic_ns() + round(warm_s * NS_PER_S)
        state["since_ns"] = since_ns
        self.run(since_ns)
        sent = int(state["sent"])
        self.run(since_ns + round(seconds * NS_PER_S))
        elapsed = (monotonic_ns() - since_ns) / NS_PER_S
        sent, in_time, ok = int(state["sent"]) - sent, int(state["in_time"]), int(counts[0][0])
        found = {
            "goodput_rps": in_time / elapsed, "attempts_rps": sent / elapsed, "late": int(state["late"]),
            "by_status": {int(code): int(counts[0][code]) for code in np.flatnonzero(counts[0])},
            "mean_batch": int(state["batch_sum"]) / ok if ok else 0.0, "latency_ms": summary_ms(counts[1]),
        }
        if int(state["strange"]):
            raise CwdError(f"{int(state['strange'])} messages were no answers: the connection was lost")
        state["stop"] = 1
        self.run(monotonic_ns() + int(state["slo_ns"]) + 50 * NS_PER_MS)
        return found

    def close(self) -> None:
        self._client.close()
        self._context.term()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connect", required=True, help="the controller's endpoint for clients")
    parser.add_argument("--inflight", type=int, default=16, help="loops per model")
    parser.add_argument("--slo", default="100ms")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--warm", type=float, default=2.0, help="seconds before counting begins")
    parser.add_argument("--payload", type=int, default=0, help="bytes per request")
    given = parser.parse_args(arguments)
    try:
        loops = Loops(given.connect, inflight=given.inflight, slo_ns=parse_duration_ns(given.slo),
                      payload_bytes=given.payload, quick_ns=2 * NS_PER_MS, pause_ns=NS_PER_MS)
        found = loops.measure(given.seconds, given.warm)
        loops.close()
    except CwdError as error:
        sys.exit(f"closed: {error}")
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
