"""Send a controller what no peer should: random and mutated messages on all three sockets, while a good client asks.

    python tools/fuzz_controller.py --messages 1_000_000 --seed 1

A cluster of its own with emulated GPUs; several connections to each socket, some introduced and some not, each made anew
now and then. At the end the controller must be the same process, every request of the good client must have been
settled and nearly all answered, nothing may be left in flight, and the controller's memory must not have grown after
the first tenth. Prints one JSON object; exits with 1 if any of that does not hold. Knows the wire's table of messages
and the cluster's public face; nothing of the controller's inside.
"""

from __future__ import annotations

import argparse
import json
import random
import secrets
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zmq

import cwd
from cwd.client.admin import Admin
from cwd.errors import RemoteProtocolError
from cwd.net.host_id import host_id
from cwd.wire.codec import decode, encode
from cwd.wire.messages import BY_TYPE, Type

PAYLOAD_MAX = 256 << 10
#: so large that libzmq ends the connection
HANG_UP_BYTES = 5 << 20
PAGE_BYTES = 64 << 10
SOCKETS = ("clients", "workers", "admin")
ROLES = {"clients": 2, "workers": 1, "admin": 3}
OWN = {
    "clients": (Type.INFER, Type.INFER, Type.INFER, Type.CANCEL, Type.LOOKUP, Type.LIST, Type.HEARTBEAT),
    "workers": (Type.RESULT, Type.EXEC_RESULT, Type.HEARTBEAT),
    "admin": (Type.ADMIN, Type.HEARTBEAT),
}
PER_SOCKET = 4
#: every so many messages a connection is made anew; the peers that are left behind must find room until they are missed
RENEWED = 512
#: every so many messages we wait until the controller has caught up: what libzmq queues for it is not its own memory
PACED = 1024
#: what the controller's memory may grow by after the first tenth: the larger of a share and what allocators keep
GROWTH, GROWTH_BYTES = 0.10, 8 << 20
ANSWERED_MIN = 0.99
HOST = host_id()


class Peer:
    """One connection to one socket; `introduced` says whether it has said a HELLO that was sound."""

    def __init__(self, context: zmq.Context, endpoint: str, which: str) -> None:
        self.context, self.endpoint, self.which = context, endpoint, which
        self.said: Counter[str] = Counter()
        self.actions: list[int] = []
        self.introduced = False
        self.socket: zmq.Socket[bytes] | None = None

    def open(self, introduce: bool, hello: bytes) -> None:
        """A new connection in place of the old one."""
        self.close()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 2_000)  # what was sent before a reconnection shall arrive
        self.socket.setsockopt(zmq.SNDTIMEO, 20_000)
        self.socket.connect(self.endpoint)
        self.introduced = introduce
        if introduce:
            self.socket.send(hello)

    def send(self, frames: list[bytes]) -> None:
        """Raises `zmq.Again` if the controller has not read for 20 s."""
        assert self.socket is not None
        self.socket.send_multipart(frames, copy=True)

    def drain(self) -> None:
        """Read what came; an answer that does not decode is a fault of the controller and raises."""
        assert self.socket is not None
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            kind, fields = decode(frames[0])
            self.said[kind.name] += 1
            if "action" in fields:
                self.actions = [*self.actions[-7:], fields["action"]]

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None


class Forge:
    """Makes messages, sound and broken, all from one seed."""

    def __init__(self, seed: int, epoch: int, handles: list[int]) -> None:
        self.random = random.Random(seed)
        self.epoch, self.handles = epoch, handles
        self.requests = 0
        self.made: Counter[str] = Counter()

    def hello(self, which: str) -> bytes:
        """A HELLO that is sound for this socket; of a worker that never does what it is told."""
        return encode(Type.HELLO, minor=0, role=ROLES[which], name=f"fuzz-{which}", boot=secrets.token_bytes(16),
                      host=HOST, now_ns=time.monotonic_ns(), caps=self._caps() if which == "workers" else {})

    def message(self, peer: Peer) -> list[bytes]:
        """The frames of the next message for this connection."""
        draw = self.random.random()
        if not peer.introduced and draw < 0.05:
            return self._count("hello", [encode(Type.HELLO, **self._odd_hello(peer.which))])
        if draw < 0.05:
            return self._count("random", [self.random.randbytes(self.random.choice((0, 1, 5, 30, 300, 3000)))])
        if draw < 0.12:
            kind = self.random.choice(list(BY_TYPE))
            return self._mutated([encode(kind, **self._anything(kind))])
        if draw < 0.14:
            hello = self.hello(peer.which) if draw < 0.13 else encode(Type.HELLO, **self._odd_hello(peer.which))
            return self._mutated([hello])
        return self._mutated(self._own(peer))

    def _own(self, peer: Peer) -> list[bytes]:
        """A message that this peer might well send."""
        kind = self.random.choice(OWN[peer.which])
        fields = self._anything(kind)
        payload: list[bytes] = []
        if kind == Type.INFER:
            self.requests += self.random.random() > 0.1  # else the same id again
            fields["request"], fields["model"] = self.requests, self._handle()
            fields["slo_ns"] = self.random.choice((0, 1, 50_000_000, 500_000_000, 10**10, (1 << 63) - 1))
            fields["deadline_ns"] = self.random.choice((0, 0, 1, time.monotonic_ns() + 10**8))
            # mostly a size that is refused at once: what is accepted keeps the GPUs from the good client
            fields["dims"] = (0, 0, 0, 0)
            payload = [self.random.randbytes(self.random.choice((0, 2, 3, 100, 5000) + (1,) * (draw_small(self.random))))]
        elif kind == Type.CANCEL:
            fields["request"] = max(self.requests - self.random.randrange(3), 0)
        elif kind == Type.LOOKUP:
            fields["name"] = self.random.choice(("same-000", "same-001", "nosuch", "", "x" * 4000, "same-000\n", "../x"))
        elif kind == Type.ADMIN:
            fields["verb"] = self.random.choice(("status", "model.ls", "model.add", "model.rm", "nosuch", ""))
            fields["args"] = self.random.choice(({}, {"after": 3}, {"name": "nosuch"}, {"name": 7}, {"after": -1},
                                                 {"name": "../../etc", "version": 1}, {"after": (1 << 63) - 1}))
        elif kind in (Type.RESULT, Type.EXEC_RESULT):
            known = self.random.choice(peer.actions) if peer.actions else 0
            # an id that was given to us only with another epoch: a worker that lies about its own work is a worker's fault
            stale = self.random.random() < 0.5
            fields["action"] = known if stale else self.random.getrandbits(64)
            fields["epoch"] = self.epoch ^ 0x5A5A5A5A5A5A if stale else self.epoch  # no few bits make it the right one
            if kind == Type.EXEC_RESULT:
                payload = [b"x"] * self.random.choice((0, 1, 3))
                fields["rows_done"] = len(payload)
        return [encode(kind, **fields), *payload]

    def _mutated(self, frames: list[bytes]) -> list[bytes]:
        """The message, most often with one thing wrong."""
        rng, draw = self.random, self.random.random()
        if draw < 0.30:
            return self._count("sound", frames)
        at = 0 if draw < 0.9 else rng.randrange(len(frames))
        frame = bytearray(frames[at])
        if draw < 0.55:
            for _ in range(rng.choice((1, 1, 1, 2, 8))):
                if frame:
                    frame[rng.randrange(len(frame))] ^= 1 << rng.randrange(8)
            what = "bits"
        elif draw < 0.70:
            frame, what = frame[:rng.randrange(len(frame) + 1)], "truncated"
        elif draw < 0.75:
            frame, what = frame + rng.randbytes(rng.choice((1, 8, 200))), "longer"
        elif draw < 0.80:
            frame[4:5], what = bytes([rng.randrange(256)]), "version"
        elif draw < 0.85:
            frame[5:7], what = bytes([0xCC, rng.randrange(256)]), "type"
        elif draw < 0.9990:
            more = [rng.randbytes(rng.choice((0, 1, 9))) for _ in range(rng.choice((1, 2, 5, 40)))]
            return self._count("frames", frames + more)
        elif draw < 0.9997:
            return self._count("many frames", frames + [b""] * rng.randrange(100, 900))
        else:
            return self._count("oversized", [*frames[:1], bytes(rng.choice((PAYLOAD_MAX + 1, HANG_UP_BYTES)))])
        return self._count(what, [*frames[:at], bytes(frame), *frames[at + 1:]])

    def _count(self, what: str, frames: list[bytes]) -> list[bytes]:
        self.made[what] += 1
        return frames

    def _handle(self) -> int:
        return self.random.choice((*self.handles, 0, self.handles[0] + (1 << 32), self.random.getrandbits(64)))

    def _anything(self, kind: Type) -> dict[str, Any]:
        """A value of the right type for every field of a message."""
        return {field.name: self._value(field.type, field.is_time) for field in BY_TYPE[kind].fields}

    def _value(self, kind: str, is_time: bool) -> Any:
        rng = self.random
        if kind[0] == "u":
            bits = int(kind[1:]) - is_time
            return rng.choice((0, 1, rng.getrandbits(bits), (1 << bits) - 1))
        if kind == "i64":
            return rng.getrandbits(64) - (1 << 63)
        if kind == "b16":
            return rng.randbytes(16)
        if kind == "str":
            return rng.choice(("", "a", "a\nb", "\0", "ä" * 300, "x" * 9000))
        if kind == "dims":
            return tuple(rng.getrandbits(32) for _ in range(4))
        if kind == "rows":
            return [[rng.getrandbits(32) for _ in range(4)] for _ in range(rng.choice((0, 1, 3)))]
        return rng.choice(({}, {"": None}, {"after": 1}, {"a": [1, {"b": b"c"}]}, {"x": list(range(200))}))

    def _caps(self) -> dict[str, Any]:
        return {"kind": self.random.choice(("emulated", "fuzz")), "device": "none", "gpus": 1, "page_bytes": PAGE_BYTES,
                "pages_total": 64, "lanes": ["exec", "load"], "agenda_max": 64, "programs": b"", "images": True,
                "resident": b"", "prepares": False}

    def _odd_hello(self, which: str) -> dict[str, Any]:
        """A HELLO with something in it that must not be believed."""
        rng, fields, caps = self.random, self._anything(Type.HELLO), self._caps()
        name = rng.choice(list(caps))
        caps[name] = rng.choice((None, True, -1, 0, 1 << 40, (1 << 64) - 1, "", "x" * 3000, b"", bytes(33), [], {}, 1.5))
        fields["caps"] = caps if which == "workers" else {name: caps[name]}
        fields["role"] = rng.choice((ROLES[which], ROLES[which], 0, 1, 2, 3, 255))
        return fields


def draw_small(rng: random.Random) -> int:
    """How often a payload of the right size is among the choices: rarely."""
    return 5 if rng.random() < 0.1 else 0


class GoodClient(threading.Thread):
    """Asks, one request after the other, until it is told to stop; `answered + refused + failed == asked`."""

    def __init__(self, cluster: cwd.LocalCluster, model: str) -> None:
        super().__init__(name="good-client", daemon=True)
        self._cluster, self._model, self._enough = cluster, model, threading.Event()
        self.asked = self.answered = self.refused = self.failed = self.wrong = 0
        self.gap_max_s = 0.0
        self.reasons: Counter[str] = Counter()

    def run(self) -> None:
        last = time.monotonic()
        with self._cluster.client(name="good") as client:
            while not self._enough.wait(0.002):
                self.asked += 1
                try:
                    result = client.infer(self._model, np.array([self.asked & 255], np.uint8), "2s")
                    self.answered += 1
                    self.wrong += result.output.shape != (1,)
                    self.gap_max_s = max(self.gap_max_s, time.monotonic() - last)
                    last = time.monotonic()
                except cwd.Refused as error:
                    self.refused += 1
                    self.reasons[error.code.name] += 1
                except cwd.CwdError as error:
                    self.failed += 1
                    self.reasons[error.code.name] += 1

    def stop(self) -> None:
        self._enough.set()
        self.join(30)


def make_repository(root: Path) -> Path:
    """Two one-byte models whose emulated executions take 1 ms."""
    from cwd.models import profile
    from cwd.models.importers import add_zoo
    from cwd.models.repository import Repository

    repository = Repository(root, create=True)
    entry = add_zoo(repository, "same", "identity", copies=2)[0]
    times = {pair: 1_000_000 for pair in profile.pairs(entry.manifest.program)}
    profile.write_table(repository, entry.manifest.program_hash, "emulated", times, load_ns_per_page=1_000_000,
                        page_bytes=PAGE_BYTES)
    return root


def rss_bytes(pid: int) -> int:
    """What a process has in memory; 0 if it is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return 0


def fuzz(messages: int, seed: int, report: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Bring a cluster up, send it `messages` messages, and tell what became of it; `faults` is [] if all is well."""
    with tempfile.TemporaryDirectory(prefix="cwd-fuzz-") as folder:
        root = make_repository(Path(folder) / "models")
        with cwd.LocalCluster(root, device="emulated:2", pool=16 * PAGE_BYTES, page=PAGE_BYTES, timeout=600,
                              controller={"payload_max": str(PAYLOAD_MAX), "log_rotate": "64MiB"}) as cluster:
            cluster.wait_servable()
            return _fuzz(cluster, messages, seed, report)


def _fuzz(cluster: cwd.LocalCluster, messages: int, seed: int, report: Callable[[str], None]) -> dict[str, Any]:
    pid, before = cluster.pid(), cluster.status()
    with cluster.client() as client:
        handles = list(client.models().values())
    forge = Forge(seed, before["epoch"], handles)
    context = zmq.Context()
    peers = [Peer(context, cluster.endpoint(which), which) for which in SOCKETS for _ in range(PER_SOCKET)]
    good = GoodClient(cluster, "same-000")
    good.start()
    admin = Admin(cluster.endpoint("admin"), name="pace", timeout=60)
    memory: list[int] = []
    faults: list[str] = []
    started = time.monotonic()
    try:
        for number, peer in enumerate(peers):
            peer.open(number % 4 != 3, forge.hello(peer.which))
        for sent in range(messages):
            peer = forge.random.choice(peers)
            if sent % 256 == 0:
                for each in peers:
                    each.drain()
            if sent % RENEWED == 0:
                peer.open(forge.random.random() < 0.7, forge.hello(peer.which))
            if sent % PACED == 0:
                admin.call("status")
            peer.send(forge.message(peer))
            if sent % max(messages // 100, 1) == 0:
                memory.append(rss_bytes(pid))
                report(f"{sent:,} of {messages:,}, controller {memory[-1] >> 20} MiB, {good.answered:,} answered")
                cluster.check()
    except zmq.Again:
        faults.append("the controller stopped reading")
    except (cwd.CwdError, RemoteProtocolError) as error:
        faults.append(str(error))
    finally:
        sent_s = time.monotonic() - started
        good_until = good.answered
        settled = _settled(cluster, peers, faults) if not faults else {}
        good.stop()
        admin.close()
        for peer in peers:
            peer.close()
        context.destroy(0)
    said = sum((peer.said for peer in peers), Counter())
    return _verdict(cluster, pid, before, settled, good, good_until, memory, faults) | {
        "messages": messages, "seed": seed, "seconds": round(sent_s, 1), "made": dict(forge.made), "said": dict(said)}


def _settled(cluster: cwd.LocalCluster, peers: list[Peer], faults: list[str]) -> dict[str, Any]:
    """The controller's status once all that was sent is dealt with, the hostile peers said goodbye and were forgotten."""
    for peer in peers:
        peer.close()
    until = time.monotonic() + 60
    while True:
        try:
            status = cluster.status()
            # the two emulated GPUs, the good client, and the two admins that ask
            if status["peers"] <= 5 and status["in_flight"] <= 1 and len(status["workers"]) == 2:
                return status
        except cwd.CwdError as error:
            faults.append(f"status: {error}")
            return {}
        if time.monotonic() > until:
            faults.append(f"left over: {status['peers']} peers, {status['in_flight']} in flight, "
                          f"{len(status['workers'])} workers")
            return status
        time.sleep(0.2)


def _verdict(cluster: cwd.LocalCluster, pid: int, before: dict[str, Any], after: dict[str, Any], good: GoodClient,
             good_until: int, memory: list[int], faults: list[str]) -> dict[str, Any]:
    """The facts, and in `faults` what must not be."""
    same = False
    try:
        same = cluster.pid() == pid and bool(after) and after["epoch"] == before["epoch"]
    except cwd.CwdError as error:
        faults.append(str(error))
    memory.append(rss_bytes(pid))
    base, top = max(memory[:max(len(memory) // 10, 1)]), max(memory)
    if not same:
        faults.append("the controller is not the same process")
    if top > base + max(GROWTH * base, GROWTH_BYTES):
        faults.append(f"memory grew from {base} to {top} bytes")
    if good.asked != good.answered + good.refused + good.failed:
        faults.append("the good client's counts do not add up")
    if good.failed or good.wrong or good.answered < ANSWERED_MIN * good.asked or good_until == 0:
        faults.append(f"the good client was not served: {dict(good.reasons)}, {good.wrong} wrong")
    if good.answered == good_until and after:
        faults.append("nothing was answered after the last message")
    loop = after.get("loop", {})
    counted = {name: after["counters"][name] for name in (
        "received", "malformed", "not_introduced", "errors_sent", "errors_withheld", "infer", "replies", "refused",
        "stale_epoch", "results_stale", "peers_lost", "peers_gone", "rare", "log_lost", "turn_max_ns")} if after else {}
    return {"ok": not faults, "faults": faults, "same_process": same, "rss_bytes": {
        "first_tenth_max": base, "max": top, "last": memory[-1]},
        "good": {"asked": good.asked, "answered": good.answered, "refused": good.refused, "failed": good.failed,
                 "gap_max_ms": round(good.gap_max_s * 1e3, 1), "reasons": dict(good.reasons)},
        "held_bytes": after.get("held_bytes"), "in_flight": after.get("in_flight"), "loop": loop, "counters": counted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=lambda text: int(text.replace("_", "")), default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    facts = fuzz(given.messages, given.seed, lambda text: print(text, file=sys.stderr, flush=True))
    print(json.dumps(facts))
    sys.exit(0 if facts["ok"] else 1)


if __name__ == "__main__":
    main()
