"""The load generator: connects as a client, offers a load through generate.py, and reports what became of it.

Used for the controller and for the bare forwarder alike (`bare=True`: no HELLO, any handles).

    python -m cwd.bench.loadgen --connect ipc:///tmp/c --bare --models 60 --rate 20000 --seconds 5
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from typing import Any

import numpy as np
import zmq

from cwd.bench.generate import CODES, FRAMES, HEADER_BYTES, STATE, generate
from cwd.bench.histogram import BUCKETS, summary_ms
from cwd.errors import SENTENCES, Code, CwdError, RemoteProtocolError
from cwd.net.clock import monotonic_ns
from cwd.net.host_id import host_id
from cwd.net.sockets import SEND_QUEUE, connect_dealer, make_context
from cwd.net.wake import make_timerfd
from cwd.net.zmq import EAGAIN, EINTR, message, message_fill, message_table, messages_close, poll_items
from cwd.units import parse_duration_ns, parse_size_bytes
from cwd.wire.codec import decode, encode
from cwd.wire.kernel import HEARTBEAT, INFER, REPLY
from cwd.wire.messages import VERSION_MINOR, Role, Type

_SLICE_NS = 20_000_000
#: How long answers may take to come in after the last request's deadline.
_GRACE_NS = 1_000_000_000


@dataclasses.dataclass(frozen=True)
class Load:
    """What to send. Rates are requests per second; rate 0 is the closed loop of `inflight_max`."""

    handles: tuple[int, ...]
    rate: float = 0.0
    count: int = 1 << 62
    seconds: float = 1.0
    poisson: bool = True
    random_models: bool = False
    seed: int = 1
    slo_ns: int = 1_000_000_000
    absolute: bool = True
    payload_bytes: int = 0
    inflight_max: int = 4096


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of a load. `seconds` runs from the first intended time to the last answer."""

    sent: int
    answered: int
    by_status: dict[int, int]
    strange: int
    stalled: int
    seconds: float
    rps: float
    ok_rps: float
    latency_ms: dict[str, float]
    mean_batch: float
    cold: int

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class LoadGenerator:
    """A connected client with everything that a run needs; one thread. Close it."""

    def __init__(self, context: zmq.Context, endpoint: str, *, bare: bool = False, timeout_s: float = 10.0,
                 send_queue: int = SEND_QUEUE) -> None:
        self.socket = connect_dealer(context, endpoint, send_queue=send_queue)
        self.credits = 1 << 20
        self.heartbeat_ns = 0
        self._beats = 0
        self._timer = make_timerfd()
        self._items = poll_items([self.socket], [self._timer])
        self._table = message_table(FRAMES + 2)
        self._rows = (np.zeros(2, INFER), np.zeros(1, REPLY), np.zeros(2, HEARTBEAT), np.zeros(HEADER_BYTES, np.uint8))
        if not bare:
            self._introduce(endpoint, timeout_s)

    def _introduce(self, endpoint: str, timeout_s: float) -> None:
        hello = encode(Type.HELLO, minor=VERSION_MINOR, role=int(Role.CLIENT), name="loadgen", boot=os.urandom(16),
                       host=host_id(), now_ns=monotonic_ns(), caps={})
        if not self.socket.poll(int(timeout_s * 1000), zmq.POLLOUT):
            raise CwdError(f"nobody listens on {endpoint}")
        self.socket.send(hello)
        welcome = self._expect(Type.WELCOME, timeout_s)
        self.credits = welcome["credits"]
        self.heartbeat_ns = welcome["heartbeat_ms"] * 1_000_000

    def _expect(self, wanted: Type, timeout_s: float) -> dict[str, Any]:
        end = time.monotonic() + timeout_s
        while self.socket.poll(max(int((end - time.monotonic()) * 1000), 0)):
            try:
                kind, fields = decode(self.socket.recv_multipart()[0])
            except RemoteProtocolError:
                continue
            if kind == wanted:
                return fields
            if kind == Type.ERROR:
                raise CwdError(fields["text"] or SENTENCES[Code(fields["code"])], code=Code(fields["code"]))
        raise CwdError(f"no {wanted.name} came within {timeout_s:g} s")

    def models(self, timeout_s: float = 10.0) -> dict[str, int]:
        """name/version -> handle of everything that the controller has registered."""
        found: dict[str, int] = {}
        after = 0
        while True:
            self.socket.send(encode(Type.LIST, request=1, after=after))
            answer = self._expect(Type.MODELS, timeout_s)
            found.update(answer["models"])
            after = answer["next"]
            if after == 0:
                return found

    def run(self, load: Load) -> Report:
        """Offer `load` for its seconds or its count, wait for what is in flight, report. Blocks."""
        limit = min(load.inflight_max, self.credits)
        slots = np.zeros((1 << max(2 * limit - 1, 1).bit_length(), 2), np.int64)
        counts = (np.zeros(CODES, np.int64), np.zeros(BUCKETS, np.int64))
        handles = np.array(load.handles, np.int64)
        message_fill(message(self._table, FRAMES + 1), np.zeros(max(load.payload_bytes, 1), np.uint8).ctypes.data,
                     load.payload_bytes)
        state = self._state(load, limit)[0]
        state["count"] = 0
        self._slice(handles, slots, counts, state, 0)  # compiles, or loads from the cache, before anything is due
        state["count"] = load.count
        begin = monotonic_ns()
        state["due_ns"], state["last_ns"] = begin, begin
        end, patience = begin + int(load.seconds * 1e9), load.slo_ns + _GRACE_NS
        while state["sent"] < load.count and monotonic_ns() < end:
            self._slice(handles, slots, counts, state, min(monotonic_ns() + _SLICE_NS, end))
        state["count"] = state["sent"]
        end = monotonic_ns() + patience
        while state["answered"] < state["sent"] and monotonic_ns() < end:
            self._slice(handles, slots, counts, state, min(monotonic_ns() + _SLICE_NS, end))
        return _report(state, counts, begin)

    def _state(self, load: Load, limit: int) -> np.ndarray:
        state = np.zeros(1, STATE)
        row = state[0]
        row["count"], row["poisson"], row["random_models"] = load.count, load.poisson, load.random_models
        row["interval_ns"] = 1e9 / load.rate if load.rate > 0 else 0.0
        row["inflight_max"], row["slo_ns"], row["absolute"] = limit, load.slo_ns, load.absolute
        row["random"] = load.seed
        return state

    def _slice(self, handles: np.ndarray, slots: np.ndarray, counts: Any, state: Any, until_ns: int) -> None:
        if self.heartbeat_ns and monotonic_ns() >= self._beats * self.heartbeat_ns:
            self._beats = monotonic_ns() // self.heartbeat_ns + 1
            self._heartbeat()
        error = generate(self.socket.underlying, self._items, self._timer, self._table, self._rows, handles, slots,
                         counts, state, until_ns)
        if error not in (0, EAGAIN, EINTR):
            raise CwdError(f"the load generator's socket failed: {os.strerror(-error)}")

    def _heartbeat(self) -> None:
        beat = encode(Type.HEARTBEAT, seq=self._beats & 0xFFFFFFFF, reply=0, sent_ns=monotonic_ns(), echo_ns=0,
                      hold_ns=0, loop_max_ns=0, queued=0)
        try:
            self.socket.send(beat, zmq.DONTWAIT)
        except zmq.Again:
            pass  # not connected: the answers will say so

    def close(self) -> None:
        messages_close(self._table)
        self.socket.close(0)
        os.close(self._timer)


def _report(state: Any, counts: tuple[np.ndarray, np.ndarray], begin_ns: int) -> Report:
    seconds = max((int(state["last_ns"]) - begin_ns) / 1e9, 1e-9)
    answered, ok = int(state["answered"]), int(counts[0][0])
    return Report(
        sent=int(state["sent"]), answered=answered,
        by_status={int(code): int(counts[0][code]) for code in np.flatnonzero(counts[0])},
        strange=int(state["strange"]), stalled=int(state["stalled"]), seconds=seconds, rps=answered / seconds,
        ok_rps=ok / seconds, latency_ms=summary_ms(counts[1]),
        mean_batch=int(state["batch_sum"]) / ok if ok else 0.0, cold=int(state["cold"]),
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connect", required=True, help="the clients' endpoint of a controller or a forwarder")
    parser.add_argument("--bare", action="store_true", help="it is the bare forwarder")
    parser.add_argument("--models", type=int, default=0, help="use so many handles (0: all that are registered)")
    parser.add_argument("--rate", type=float, default=0.0, help="requests per second; 0: closed loop")
    parser.add_argument("--inflight", type=int, default=4096, help="requests in flight at most")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--uniform", action="store_true", help="equal gaps instead of Poisson arrivals")
    parser.add_argument("--random", action="store_true", help="models at random instead of in turn")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--slo", default="1s")
    parser.add_argument("--payload", default="0", help="bytes per request")
    given = parser.parse_args(arguments)
    try:
        with make_context() as context:
            client = LoadGenerator(context, given.connect, bare=given.bare)
            handles = tuple(range(1, max(given.models, 1) + 1)) if given.bare else tuple(client.models().values())
            report = client.run(Load(
                handles=handles[:given.models or None], rate=given.rate, seconds=given.seconds,
                poisson=not given.uniform, random_models=given.random, seed=given.seed, inflight_max=given.inflight,
                slo_ns=parse_duration_ns(given.slo), payload_bytes=parse_size_bytes(given.payload),
            ))
            client.close()
    except CwdError as error:
        sys.exit(f"loadgen: {error}")
    print(json.dumps(report.as_json()))


if __name__ == "__main__":
    main()
