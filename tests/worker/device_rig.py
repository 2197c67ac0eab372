"""A started worker with a fake device, and the scripted controller that welcomed it."""

from __future__ import annotations

from fake_backend import PAGE, PROGRAM, FakeBackend, FakeStore
from lone_controller import FakeController

from cwd.wire.messages import Type
from cwd.worker import residency as rs
from cwd.worker.host import DeviceWorker
from cwd.worker.options import WorkerOptions


class Rig:
    """A started worker, a controller that welcomed it, a prepared program with index 3."""

    def __init__(self, endpoint: str, heartbeat_ms: int = 500, lost_ms: int = 60_000, slots: int = 1, **more) -> None:
        self.endpoint = endpoint
        self.backend = FakeBackend(slots)
        options = WorkerOptions(**{"device": "cpu", "repo": "unused", "endpoint": endpoint, "name": "w", "pages": 5,
                                   "page_bytes": PAGE, "agenda_max": 4, "rows_max": 8, "spin_ns": 0, **more})
        self.worker = DeviceWorker(options, self.backend, FakeStore(self.backend.weights_bytes))
        self.worker.start()
        self.controller = FakeController(endpoint, heartbeat_ms=heartbeat_ms, lost_ms=lost_ms)
        self.peer, self.hello = self.controller.greet()
        self.prepare()

    def prepare(self, name: str = "m", program: bytes = PROGRAM, image: bytes = bytes(16), index: int = 3) -> int:
        self.controller.act(self.peer, Type.PREPARE, name=name, version=1, program=program, image=image,
                            program_index=index)
        return self.controller.result(self.peer)[0]["status"]

    def load(self, model: int, pages: int = 2, **more) -> int:
        self.controller.load(self.peer, model, pages=pages, program_index=3, **more)
        return self.controller.result(self.peer)[0]["status"]

    def execute(self, model: int, *texts: bytes, **more):
        dims = (len(texts[0]),)
        self.controller.execute(self.peer, model, texts, **{"dims": dims, **more})
        return self.controller.result(self.peer)

    def close(self) -> None:
        self.backend.gate.set()
        self.worker.stop()
        assert self.worker.failure is None
        rs.check_residency(self.worker.device.residency, 0)
        self.controller.close()
