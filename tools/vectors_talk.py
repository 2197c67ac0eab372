"""The transcripts among the vectors: whole conversations, message by message, with the peer's state after each."""

from __future__ import annotations

import struct
from typing import Any

from vectors_pack import TABLES, frame, plain

HOST, BOOT = bytes(range(16)), bytes(range(240, 256))
IMAGE, PROGRAM = bytes([0x11] * 16), bytes([0x22] * 16)
EMPTY: dict[str, Any] = {"b16": bytes(16), "str": "", "dims": [0] * 4, "rows": [], "map": {}}
MODEL = (1 << 32) | 3
PAYLOAD_BYTES_MAX = 64 << 20
INPUTS, OUTPUTS = struct.pack("<3f", 1.0, 2.0, 3.0), struct.pack("<3f", 2.0, 3.0, 4.0)
MANIFEST = {
    "name": "adder", "version": 1, "inputs": [{"name": "x", "dtype": "float32", "shape": ["n"]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": ["n"]}], "axes": ["n"], "exact": False,
    "size_classes": [[4], [16]], "batch_sizes": [1, 2, 4],
}
CAPS = {
    "kind": "cpu", "device": "a processor", "gpus": 1, "page_bytes": 1 << 20, "pages_total": 64,
    "lanes": ["exec", "load"], "agenda_max": 64, "prepares": True, "programs": b"", "images": b"", "resident": b"",
}
WINDOW = {"epoch": 0xE0, "earliest_ns": 2_000_000, "latest_ns": 9_000_000, "expected_ns": 500_000}
TIMES = {"epoch": 0xE0, "received_ns": 2_100_000, "begin_ns": 2_200_000, "end_ns": 2_700_000, "sent_ns": 2_750_000}
ROLES = {"worker": 1, "client": 2, "admin": 3}

Step = dict[str, Any]


def step(sender: str, receiver: str, kind: str, state: str, /, *payload: bytes, **values: Any) -> Step:
    """One message; fields not given are zero or empty; `state` is the peer's (not the controller's) after it."""
    fields = {key: values.get(key, EMPTY.get(of, 0)) for key, of in TABLES[kind][1]}
    if not set(values) <= set(fields):
        raise KeyError(f"{kind} has no {set(values) - set(fields)}")
    return {"from": sender, "to": receiver, "type": kind, "fields": plain(fields), "state": state,
            "frames": [frame(kind, fields).hex(), *(each.hex() for each in payload)]}


def tell(peer: str, kind: str, state: str, /, *payload: bytes, **values: Any) -> Step:
    """From the peer to the controller."""
    return step(peer, "controller", kind, state, *payload, **values)


def hear(peer: str, kind: str, state: str, /, *payload: bytes, **values: Any) -> Step:
    """From the controller to the peer."""
    return step("controller", peer, kind, state, *payload, **values)


def hello(peer: str, epoch: int = 0xE0, **caps: Any) -> list[Step]:
    return [
        tell(peer, "HELLO", "GREETING", role=ROLES[peer], name=f"a {peer}", boot=BOOT, host=HOST, now_ns=1_000_000,
             caps=caps),
        hear(peer, "WELCOME", "OPEN" if peer == "worker" else "READY", epoch=epoch, host=HOST, now_ns=1_200_000,
             heartbeat_ms=250, lost_ms=1500, credits=1024 if peer == "client" else 0,
             payload_bytes_max=PAYLOAD_BYTES_MAX),
    ]


def lookup() -> list[Step]:
    return [tell("client", "LOOKUP", "READY", request=1, name="adder"),
            hear("client", "MODEL", "READY", request=1, model=MODEL, manifest=MANIFEST)]


def infer() -> Step:
    return tell("client", "INFER", "READY", INPUTS, request=2, model=MODEL, slo_ns=100_000_000, deadline_ns=101_300_000,
                dims=[3, 0, 0, 0])


def prepared_and_loaded() -> list[Step]:
    return [
        hear("worker", "PREPARE", "OPEN", action=1, **WINDOW, name="adder", version=1, program=PROGRAM, image=IMAGE),
        tell("worker", "RESULT", "OPEN", action=1, **TIMES, pages_free=64),
        hear("worker", "LOAD", "OPEN", action=2, **WINDOW, model=MODEL, image=IMAGE, pages=2),
        tell("worker", "RESULT", "OPEN", action=2, **TIMES, pages_free=62),
    ]


def clients() -> list[Step]:
    return [
        {"name": "client-infer", "about": "A client looks a model up and gets an answer.", "steps": [
            *hello("client"), *lookup(), infer(),
            hear("client", "REPLY", "READY", OUTPUTS, request=2, queued_ns=300_000, exec_ns=500_000,
                 total_ns=1_100_000, batch=2),
            tell("client", "GOODBYE", "END")]},
        {"name": "client-refused", "about": "No schedule meets the deadline: refused at arrival, with a time.",
         "steps": [*hello("client"), *lookup(), infer(),
                   hear("client", "REPLY", "READY", request=2, status=101, queued_ns=40_000, total_ns=45_000,
                        earliest_ns=180_000_000, cold=1)]},
        {"name": "client-cancel", "about": "CANCEL overtakes the action; then an id and a name that do not exist.",
         "steps": [*hello("client"), *lookup(), infer(),
                   tell("client", "CANCEL", "READY", request=2),
                   hear("client", "REPLY", "READY", request=2, status=109, queued_ns=90_000, total_ns=95_000),
                   tell("client", "CANCEL", "READY", request=2),
                   tell("client", "LOOKUP", "READY", request=3, name="subtractor"),
                   hear("client", "ERROR", "READY", code=201, re_type=19, re_id=3, text="no model 'subtractor'")]},
        {"name": "client-list", "about": "The names of all models, two pages.", "steps": [
            *hello("client"),
            tell("client", "LIST", "READY", request=1),
            hear("client", "MODELS", "READY", request=1, next=MODEL, models={"adder/1": MODEL}),
            tell("client", "LIST", "READY", request=2, after=MODEL),
            hear("client", "MODELS", "READY", request=2, next=0, models={"adder/2": MODEL + 1})]},
        {"name": "client-not-introduced", "about": "A restarted controller does not know the connection.", "steps": [
            *hello("client"), *lookup(), infer(), hear("client", "ERROR", "START", code=307, re_type=16)]},
    ]


def workers() -> list[Step]:
    late = {**TIMES, "begin_ns": 0, "end_ns": 0, "received_ns": 9_500_000, "sent_ns": 9_600_000}
    held = {**CAPS, "programs": PROGRAM, "images": IMAGE, "resident": IMAGE + PROGRAM}
    batch = {**WINDOW, "model": MODEL, "batch": 2, "size_class": 0}
    return [
        {"name": "worker-join-load-exec", "about": "A worker joins, prepares, loads, runs two rows.", "steps": [
            *hello("worker", **CAPS), *prepared_and_loaded(),
            hear("worker", "EXEC", "OPEN", INPUTS, INPUTS[:8], action=3, **batch, rows=[[3, 0, 0, 0], [2, 0, 0, 0]]),
            tell("worker", "EXEC_RESULT", "OPEN", OUTPUTS, OUTPUTS[:8], action=3, **TIMES, device_ns=400_000,
                 rows_done=2),
            hear("worker", "UNLOAD", "OPEN", action=4, **WINDOW, model=MODEL),
            tell("worker", "RESULT", "OPEN", action=4, **TIMES, pages_free=64),
            tell("worker", "GOODBYE", "END", text="maintenance")]},
        {"name": "worker-profile", "about": "A prepared program is measured.", "steps": [
            *hello("worker", **CAPS), *prepared_and_loaded(),
            hear("worker", "PROFILE", "OPEN", action=3, **WINDOW, model=MODEL, batch=4, size_class=1, repeats=10),
            tell("worker", "RESULT", "OPEN", action=3, **TIMES, pages_free=62)]},
        {"name": "worker-too-late", "about": "An action whose window has passed is refused, not run.", "steps": [
            *hello("worker", **CAPS), *prepared_and_loaded(),
            hear("worker", "EXEC", "OPEN", INPUTS, action=4, **{**batch, "batch": 1}, rows=[[3, 0, 0, 0]]),
            tell("worker", "EXEC_RESULT", "OPEN", action=4, **late, status=401)]},
        {"name": "worker-epoch-change", "about": "A new controller: HELLO says what is still held, a LOAD adopts it.",
         "steps": [*hello("worker", **CAPS), *prepared_and_loaded(),
                   tell("worker", "HEARTBEAT", "OPEN", seq=1, sent_ns=5_000_000),
                   hear("worker", "ERROR", "START", code=307, re_type=3),
                   *hello("worker", 0xE1, **held),
                   hear("worker", "PREPARE", "OPEN", action=1, **{**WINDOW, "epoch": 0xE1}, name="adder", version=1,
                        program=PROGRAM, image=IMAGE),
                   tell("worker", "RESULT", "OPEN", action=1, **{**TIMES, "epoch": 0xE1}, pages_free=64),
                   hear("worker", "LOAD", "OPEN", action=2, **{**WINDOW, "epoch": 0xE1}, model=9, image=IMAGE, pages=2),
                   tell("worker", "RESULT", "OPEN", action=2, **{**TIMES, "epoch": 0xE1}, pages_free=62)]},
        {"name": "clock-sample", "about": "The controller asks, the worker answers.", "steps": [
            *hello("worker", **CAPS),
            hear("worker", "HEARTBEAT", "OPEN", seq=1, sent_ns=7_000_000),
            tell("worker", "HEARTBEAT", "OPEN", seq=1, reply=1, sent_ns=6_900_000, echo_ns=7_000_000, hold_ns=20_000,
                 loop_max_ns=80_000, queued=3)]},
    ]


def admins() -> list[Step]:
    return [{"name": "admin-progress", "about": "A command that takes a while, and one that does not exist.", "steps": [
        *hello("admin"),
        tell("admin", "ADMIN", "READY", request=1, verb="model.add", args={"name": "adder", "version": 0}),
        hear("admin", "ADMIN_REPLY", "READY", request=1, result={"done": 1, "total": 3}),
        hear("admin", "ADMIN_REPLY", "READY", request=1, done=1, result={"handle": MODEL}),
        tell("admin", "ADMIN", "READY", request=2, verb="dance"),
        hear("admin", "ADMIN_REPLY", "READY", request=2, code=508, done=1,
             result={"error": "no such admin command: dance"})]}]


def transcripts() -> list[Step]:
    return clients() + workers() + admins()
