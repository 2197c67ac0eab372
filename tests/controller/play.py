"""A controller in a process of its own, and workers and clients that a test plays message by message."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from cwd.models import profile
from cwd.models.repository import Repository
from cwd.models.spec import ProgramSpec, TensorSpec
from cwd.net.host_id import host_id
from cwd.net.notify import NotifyListener
from cwd.wire.codec import decode, encode
from cwd.wire.messages import Role, Type

PAGE_BYTES = 1 << 20
MS = 1_000_000
SECOND = 1000 * MS
#: generous: a test machine may be busy, and a cold cache compiles first
START_S = 300.0
WAIT_MS = 20_000

#: a program of one fixed input of 8 bytes, and one with a dynamic axis of 4-byte elements, classes 16 and 64
FIXED = ProgramSpec(
    inputs=(TensorSpec("x", "float32", (2,)),), outputs=(TensorSpec("y", "float32", (2,)),), batch_sizes=(1, 2, 4),
    factory="tests.none:make")
DYNAMIC = ProgramSpec(
    inputs=(TensorSpec("ids", "int32", ("length",)),), outputs=(TensorSpec("y", "int32", ("length",)),),
    batch_sizes=(1, 2), factory="tests.none:make", axes=("length",), size_classes=((16,), (64,)), padding="free")


def make_repository(root: Path, models: int = 4, dynamic: int = 1, exec_ns: int = 2 * MS, load_ns_per_page: int = MS,
                    page_bytes: int = PAGE_BYTES) -> Repository:
    """`fixed-0`.. and `dynamic-0`.., profiled for the kind `played` with pages of `page_bytes`."""
    repository = Repository(root, create=True)
    for name, spec, count in (("fixed", FIXED, models), ("dynamic", DYNAMIC, dynamic)):
        if not count:
            continue
        program = repository.add_program(spec)
        table = {pair: exec_ns * pair[0] for pair in profile.pairs(spec)}
        profile.write_table(repository, program, "played", table, load_ns_per_page=load_ns_per_page,
                            page_bytes=page_bytes)
        for number in range(count):
            repository.add(f"{name}-{number}", 1, program, {}, seed=number)
    return repository


class Controller:
    """`with Controller(tmp_path, repository="...") as controller:` starts it and waits for READY."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.run_dir, self.state_dir = root / "run", root / "state"
        self.settings = {"run_dir": str(self.run_dir), "state_dir": str(self.state_dir), "page_bytes": PAGE_BYTES,
                         "lost_ns": 15 * SECOND, **settings}
        self.process: subprocess.Popen[bytes] | None = None
        self.context = zmq.Context()

    def start(self) -> None:
        program = ("import json, sys\nimport logging\nfrom cwd.controller.config import ControllerConfig\n"
                   "from cwd.controller.daemon import serve\n"
                   "logging.basicConfig(level=logging.INFO)\n"
                   "serve(ControllerConfig(**json.loads(sys.argv[1])))\n")
        with NotifyListener() as listener:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program, json.dumps(self.settings)],
                env={**os.environ, "NOTIFY_SOCKET": listener.path})
            if not listener.wait_ready(START_S, lambda: self.process is not None and self.process.poll() is None):
                raise AssertionError(f"the controller did not become ready: {self.process.poll()}")

    def stop(self, number: int = signal.SIGTERM, wait_s: float = 30.0) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(wait_s)

    def __enter__(self) -> Controller:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.context.destroy(0)

    def peer(self, which: str, **options: Any) -> Peer:
        return Peer(self.context, f"ipc://{self.run_dir}/{which}.sock", **options)

    def client(self, name: str = "client") -> Client:
        client = Client(self.context, f"ipc://{self.run_dir}/clients.sock")
        client.hello(Role.CLIENT, name)
        return client

    def admin(self) -> Admin:
        admin = Admin(self.context, f"ipc://{self.run_dir}/admin.sock")
        admin.hello(Role.ADMIN, "admin")
        return admin

    def worker(self, name: str = "worker", **caps: Any) -> Worker:
        worker = Worker(self.context, f"ipc://{self.run_dir}/workers.sock")
        worker.join(name, **caps)
        return worker


class Peer:
    """A DEALER that speaks the Python codec; heartbeats are answered by the way."""

    #: heartbeat questions answered
    beats = 0

    def __init__(self, context: zmq.Context[Any], endpoint: str) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(endpoint)
        self.epoch = 0
        self.seen: list[tuple[Type, dict[str, Any], list[bytes]]] = []

    def send(self, kind: Type, *payload: bytes, **fields: Any) -> None:
        self.socket.send_multipart([encode(kind, **fields), *payload])

    def receive(self, timeout_ms: int = WAIT_MS) -> tuple[Type, dict[str, Any], list[bytes]]:
        """The next message that is no heartbeat question; AssertionError after the time."""
        end = time.monotonic() + timeout_ms / 1000
        while self.socket.poll(max(0, int((end - time.monotonic()) * 1000))):
            frames = self.socket.recv_multipart()
            kind, fields = decode(frames[0])
            if kind == Type.HEARTBEAT and fields["reply"] == 0:
                now_ns = time.monotonic_ns()
                self.beats += 1
                self.send(Type.HEARTBEAT, seq=1, reply=1, sent_ns=now_ns, echo_ns=fields["sent_ns"], hold_ns=0,
                          loop_max_ns=0, queued=0)
                continue
            return Type(kind), fields, frames[1:]
        raise AssertionError("no message came")

    def poll(self, timeout_ms: int = 20) -> tuple[Type, dict[str, Any], list[bytes]] | None:
        """The next message that is no heartbeat question, or None after the time."""
        try:
            return self.receive(timeout_ms)
        except AssertionError:
            return None

    def until(self, kind: Type, timeout_ms: int = WAIT_MS, **wanted: Any) -> tuple[dict[str, Any], list[bytes]]:
        """The next message of a kind, with those field values; others are kept in `seen`."""
        while True:
            found, fields, payload = self.receive(timeout_ms)
            if found == kind and all(fields[name] == value for name, value in wanted.items()):
                return fields, payload
            self.seen.append((found, fields, payload))

    def hello(self, role: Role, name: str, **caps: Any) -> dict[str, Any]:
        self.send(Type.HELLO, minor=0, role=int(role), name=name, boot=os.urandom(16), host=host_id(),
                  now_ns=time.monotonic_ns(), caps=caps)
        fields, _ = self.until(Type.WELCOME)
        self.epoch = fields["epoch"]
        return fields

    def close(self) -> None:
        self.socket.close(0)


class Client(Peer):
    number = 0

    def lookup(self, name: str, version: int = 0) -> int:
        """The model's handle, once it is ready."""
        end = time.monotonic() + 20
        while True:
            self.number += 1
            self.send(Type.LOOKUP, request=self.number, name=name, version=version)
            kind, fields, _ = self.receive()
            if kind == Type.MODEL:
                return int(fields["model"])
            assert kind == Type.ERROR and time.monotonic() < end, (kind, fields)
            time.sleep(0.01)

    def infer(self, model: int, payload: bytes = bytes(8), slo_ns: int = 15 * SECOND, dims: tuple[int, ...] = (),
              request: int = 0, deadline_ns: int = 0) -> int:
        """Send a request; its id."""
        self.number += 1
        request = request or self.number
        self.send(Type.INFER, payload, request=request, model=model, slo_ns=slo_ns, deadline_ns=deadline_ns, app=7,
                  dims=dims)
        return request

    def reply(self, request: int, timeout_ms: int = WAIT_MS) -> tuple[dict[str, Any], list[bytes]]:
        return self.until(Type.REPLY, timeout_ms, request=request)


class Admin(Peer):
    number = 0

    def ask(self, verb: str, **args: Any) -> tuple[int, dict[str, Any]]:
        """(code, result)"""
        self.number += 1
        self.send(Type.ADMIN, request=self.number, verb=verb, args=args)
        fields, _ = self.until(Type.ADMIN_REPLY, request=self.number)
        return fields["code"], fields["result"]


class Worker(Peer):
    """Answers PREPARE at once; everything else when the test says so."""

    def join(self, name: str, *, pages: int = 8, kind: str = "played", resident: bytes = b"", programs: bytes = b"",
             prepares: bool = False, images: Any = True, agenda_max: int = 64) -> None:
        self.hello(Role.WORKER, name, kind=kind, device="played", gpus=1, page_bytes=PAGE_BYTES, pages_total=pages,
                   lanes=["exec", "load"], agenda_max=agenda_max, programs=programs, images=images, resident=resident,
                   prepares=prepares)
        self.pages_free = pages
        self.prepared: list[dict[str, Any]] = []
        self.received: list[tuple[Type, dict[str, Any]]] = []

    def next_action(self, timeout_ms: int = WAIT_MS) -> tuple[Type, dict[str, Any], list[bytes]]:
        """The next LOAD, UNLOAD or EXEC; PREPAREs before it are answered."""
        while True:
            kind, fields, payload = self.receive(timeout_ms)
            if kind == Type.PREPARE:
                self.prepared.append(fields)
                self.done(fields)
            elif kind in (Type.LOAD, Type.UNLOAD, Type.EXEC):
                self.received.append((kind, fields))
                return kind, fields, payload

    def settle(self, wanted: int) -> None:
        """Answer that many PREPAREs."""
        while len(self.prepared) < wanted:
            fields, _ = self.until(Type.PREPARE)
            self.prepared.append(fields)
            self.done(fields)

    def done(self, action: dict[str, Any], status: int = 0, epoch: int | None = None) -> None:
        now_ns = time.monotonic_ns()
        self.send(Type.RESULT, action=action["action"], epoch=self.epoch if epoch is None else epoch, status=status,
                  received_ns=now_ns, begin_ns=now_ns, end_ns=now_ns, device_ns=0, sent_ns=now_ns,
                  pages_free=self.pages_free)

    def executed(self, action: dict[str, Any], outputs: list[bytes], status: int = 0, epoch: int | None = None) -> None:
        now_ns = time.monotonic_ns()
        self.send(Type.EXEC_RESULT, *outputs, action=action["action"], epoch=self.epoch if epoch is None else epoch,
                  status=status, received_ns=now_ns, begin_ns=now_ns, end_ns=now_ns, device_ns=0, sent_ns=now_ns,
                  rows_done=len(outputs))

    def serve_one(self, output: bytes = b"answer!!") -> tuple[list[Type], dict[str, Any], list[bytes]]:
        """Do what is asked up to the first EXEC, and answer that: (the kinds of what came, the EXEC, its payloads)."""
        kinds = []
        while True:
            kind, fields, payload = self.next_action()
            kinds.append(kind)
            if kind == Type.EXEC:
                rows = np.asarray(fields["rows"]).reshape(-1, 4)
                self.executed(fields, [output] * len(rows))
                return kinds, fields, payload
            self.pages_free -= fields["pages"] if kind == Type.LOAD else -1
            self.done(fields)


def serve(worker: Worker, client: Client, wanted: set[int], status: int = 0) -> dict[int, dict[str, Any]]:
    """Have the worker do all that it is asked until the client has the replies that it wants: those replies."""
    replies: dict[int, dict[str, Any]] = {}
    end = time.monotonic() + WAIT_MS / 1000
    while not wanted <= set(replies):
        assert time.monotonic() < end, f"no replies for {wanted - set(replies)}"
        if (came := worker.poll()) is not None:
            kind, fields, payload = came
            if kind == Type.EXEC:
                worker.executed(fields, [] if status else [b"answer!!"] * len(payload), status)
            elif kind in (Type.LOAD, Type.UNLOAD, Type.PREPARE):
                worker.done(fields)
        while (answer := client.poll(1)) is not None:
            if answer[0] == Type.REPLY:
                replies[answer[1]["request"]] = answer[1]
            else:
                client.seen.append(answer)
    return replies
