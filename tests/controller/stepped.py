"""A controller in the test's own process that turns only when the test says so, and counts what Python does for it.

How much a piece of Python's work is, is counted in the bytecodes that ran for it: that depends on the code and its data
alone, never on the machine.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import zmq
from play import FIXED, MS, PAGE_BYTES, SECOND, WAIT_MS, Admin, Client, Peer, Worker

from cwd.controller.config import ControllerConfig
from cwd.controller.daemon import Controller
from cwd.controller.reader import shape_facts
from cwd.controller.warm import warm
from cwd.wire.messages import Role

PROGRAM = bytes(range(16))
_PROFILE = {"exec": [[batch, 0, 2 * MS] for batch in FIXED.batch_sizes], "load_ns_per_page": MS, "page_bytes": PAGE_BYTES}
_Peer = TypeVar("_Peer", bound=Peer)


class Stepped:
    """`with Stepped(tmp_path, chunk_ns=0) as stepped:`; its peers step the controller while they wait for a message."""

    def __init__(self, root: Path, chunk_ns: int) -> None:
        warm()
        self._wakeup = signal.set_wakeup_fd(-1)
        self.controller = Controller(ControllerConfig(
            run_dir=str(root / "run"), state_dir=str(root / "state"), page_bytes=PAGE_BYTES, log=False, nice=os.nice(0),
            heartbeat_ns=3600 * SECOND, lost_ns=3600 * SECOND, chunk_ns=chunk_ns))
        self.context: zmq.Context[Any] = zmq.Context()
        self._run_dir = root / "run"
        #: bytecodes of each piece of work since the test has emptied it
        self.pieces: list[int] = []
        self.controller._pieces = self._counted  # type: ignore[method-assign]
        self.controller.registry.add_program({
            "hash": PROGRAM, "batches": list(FIXED.batch_sizes), "profiles": {"played": _PROFILE}, "shape": shape_facts(FIXED)})

    def add_models(self, count: int) -> None:
        """Have `count` models in all."""
        for number in range(len(self.controller.registry.models), count):
            self.controller.admin.add_model({
                "name": f"fixed-{number}", "version": 1, "program": PROGRAM, "image": number.to_bytes(16, "little"),
                "image_bytes": PAGE_BYTES, "manifest": {}})

    def add_workers(self, count: int) -> None:
        """Have `count` workers in all, every one prepared."""
        for _ in range(len(self.controller.workers.by_slot), count):
            self.worker()

    def worker(self) -> Worker:
        worker = self._peer(Worker, "workers")
        worker.join("worker")
        worker.settle(1)
        programs, wanted = self.controller.world.programs, len(self.controller.workers.by_slot)
        end = time.monotonic() + WAIT_MS / 1000
        while programs[0]["prepared"] < wanted:
            assert time.monotonic() < end
            self.controller.step()
        return worker

    def admin(self) -> Admin:
        admin = self._peer(Admin, "admin")
        admin.hello(Role.ADMIN, "admin")
        return admin

    def client(self) -> Client:
        client = self._peer(Client, "clients")
        client.hello(Role.CLIENT, "client")
        return client

    def _peer(self, kind: type[_Peer], which: str) -> _Peer:
        """A peer that steps the controller until a message for it has come."""
        peer = kind(self.context, f"ipc://{self._run_dir}/{which}.sock")
        receive = peer.receive

        def stepping(timeout_ms: int = WAIT_MS) -> Any:
            end = time.monotonic() + timeout_ms / 1000
            while not peer.socket.poll(1) and time.monotonic() < end:
                self.controller.step()
            return receive(0)

        peer.receive = stepping  # type: ignore[method-assign]
        return peer

    def wait_for(self, which: int) -> None:
        """Until something has come for the controller on socket `which`, which it then finds in its next step."""
        assert self.controller._sockets[which].poll(WAIT_MS)

    def _counted(self) -> Iterator[None]:
        """The controller's pieces, each of them counted."""
        pieces = Controller._pieces(self.controller)
        while True:
            with _Opcodes() as opcodes:
                ended = next(pieces, pieces) is pieces
            if ended:
                return
            self.pieces.append(opcodes.count)
            yield

    def __enter__(self) -> Stepped:
        return self

    def __exit__(self, *_: object) -> None:
        self.controller._close()
        os.close(signal.set_wakeup_fd(self._wakeup))
        self.context.destroy(0)


class _Opcodes:
    """Counts the bytecodes that this thread runs in calls that begin, and generators that go on, inside the block."""

    def __enter__(self) -> _Opcodes:
        self.count = 0
        self._before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _call(self, frame: Any, event: str, argument: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._event

    def _event(self, frame: Any, event: str, argument: Any) -> Any:
        self.count += event == "opcode"
        return self._event
