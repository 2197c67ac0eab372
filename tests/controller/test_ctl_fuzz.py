"""Thousands of random and mutated messages to every socket: the controller answers to a ration, and serves on."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import zmq
from play import SECOND, serve

from cwd.errors import Code
from cwd.wire.codec import encode
from cwd.wire.messages import Role, Type

SEED = int(os.environ.get("CWD_FUZZ_SEED", "20260101"))
MESSAGES = int(os.environ.get("CWD_FUZZ_MESSAGES", "4000"))


def _valid(rng: random.Random) -> bytes:
    number = rng.choice((0, 1, 5, 1 << 40, (1 << 63) - 1))
    return rng.choice((
        lambda: encode(Type.INFER, request=number, model=(1 << 32) | rng.randrange(6), slo_ns=number,
                       deadline_ns=0, app=1, dims=(rng.randrange(70),)),
        lambda: encode(Type.CANCEL, request=number),
        lambda: encode(Type.LOOKUP, request=number, name="fixed-0", version=0),
        lambda: encode(Type.LIST, request=number, after=number),
        lambda: encode(Type.ADMIN, request=number, verb="status", args={"after": 0}),
        lambda: encode(Type.HEARTBEAT, seq=1, reply=rng.randrange(2), sent_ns=number, echo_ns=number, hold_ns=number,
                       loop_max_ns=0, queued=0),
        lambda: encode(Type.RESULT, action=number, epoch=number, status=0, received_ns=1, begin_ns=number, end_ns=1,
                       device_ns=0, sent_ns=1, pages_free=number & 0xFF),
        lambda: encode(Type.EXEC_RESULT, action=number, epoch=number, status=0, received_ns=1, begin_ns=1, end_ns=1,
                       device_ns=0, sent_ns=1, rows_done=rng.randrange(3)),
        lambda: encode(Type.EXEC, action=1, epoch=1, earliest_ns=1, latest_ns=1, expected_ns=1, model=1, batch=1,
                       size_class=0, rows=[(1, 2, 3, 4)]),
        lambda: encode(Type.HELLO, minor=0, role=rng.randrange(5), name="x", boot=bytes(16), host=bytes(16), now_ns=1,
                       caps={"kind": number, "page_bytes": [1]}),
    ))()


def _message(rng: random.Random) -> list[bytes]:
    frame = bytearray(_valid(rng))
    way = rng.randrange(5)
    if way == 0:
        frame = bytearray(rng.randbytes(rng.randrange(200)))
    elif way == 1:
        for _ in range(rng.randrange(1, 4)):
            frame[rng.randrange(len(frame))] = rng.randrange(256)
    elif way == 2:
        del frame[rng.randrange(len(frame)):]
    elif way == 3:
        frame[2:5] = rng.randbytes(3)
    return [bytes(frame), *(rng.randbytes(rng.randrange(40)) for _ in range(rng.choice((0, 0, 1, 1, 2, 9))))]


def _rss_kib(pid: int) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1])


def test_random_and_mutated_messages_disturb_nobody(served):
    rng = random.Random(SEED)
    worker, client, admin = served.worker(), served.client(), served.admin()
    worker.settle(2)
    model = client.lookup("fixed-0")
    assert serve(worker, client, {client.infer(model)})
    assert served.process is not None
    before_kib = _rss_kib(served.process.pid)
    bad = [served.peer(which) for which in ("clients", "workers", "admin")]
    for peer, role in zip(bad, (Role.CLIENT, None, Role.ADMIN), strict=True):
        if role is not None:
            peer.hello(role, "bad")
    bad.append(served.peer("clients"))
    chosen = served.context.socket(zmq.DEALER)
    chosen.routing_id, chosen.linger = b"I chose this", 0
    chosen.connect(f"ipc://{served.run_dir}/clients.sock")
    for number in range(MESSAGES):
        rng.choice((*bad,)).socket.send_multipart(_message(rng))
        if number % 10 == 0:
            chosen.send_multipart(_message(rng))
        if number % 500 == 499:
            for peer in bad:
                while peer.socket.poll(0):
                    peer.socket.recv_multipart()
            request = client.infer(model, slo_ns=15 * SECOND)
            assert serve(worker, client, {request})[request]["status"] == 0, f"seed {SEED}, message {number}"
    facts = admin.ask("status")[1]
    assert facts["counters"]["malformed"] > MESSAGES // 10 and facts["counters"]["errors_withheld"] > 0
    assert facts["counters"]["bad_identity"] > 0 and facts["core"]["broken"] == 0
    assert _rss_kib(served.process.pid) - before_kib < 64 << 10, "memory is bounded"
    for peer in (*bad, worker, client, admin):
        peer.close()
    chosen.close(0)


def test_a_client_that_never_reads_does_not_grow_the_controller(served):
    assert served.process is not None
    before_kib = _rss_kib(served.process.pid)
    client = served.client()
    for number in range(3000):
        client.infer(12345, request=number + 1)
    time.sleep(0.3)
    other = served.client("other")
    request = other.infer(12345)
    assert other.reply(request)[0]["status"] == Code.UNKNOWN_MODEL
    assert _rss_kib(served.process.pid) - before_kib < 64 << 10
    client.close()
    other.close()
