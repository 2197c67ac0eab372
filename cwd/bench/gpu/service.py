"""A worker as it serves, in this process, and the scripted controller in another; for E6 and E7.

The worker is cwd's own: its lanes, its socket, the paged backend. Only its instances are many names for few images: what
a host store would hold if the repository had so many models. While it serves, this process's main thread sleeps.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cwd.bench.gpu.models import Instances
from cwd.bench.gpu.workbench import Workbench
from cwd.worker.backends.arena import ALIGN_BYTES
from cwd.worker.backends.gpu import Gpu, torch
from cwd.worker.backends.paged import PagedBackend
from cwd.worker.host import DeviceWorker
from cwd.worker.host_store import HostStore
from cwd.worker.options import WorkerOptions
from cwd.worker.warm import warm_device

PAYLOADS = 32
_ROOT = Path(__file__).resolve().parents[3]
_ROWS_MAX = 16


def arena_bytes(instances: Instances, images: int) -> int:
    """Memory for so many images; a run spans no two pieces of the arena, so there are some to spare."""
    return (images + images // 48 + 1) * (instances.nbytes + ALIGN_BYTES)


class Driven(NamedTuple):
    """What the scripted controller noted; see driver.py."""

    rows: np.ndarray
    sampled: np.ndarray
    numbers: np.ndarray
    outputs: np.ndarray
    #: what ended it before its time: the figures are of what was done until then
    fault: str


class Service:
    """`registered` instances over `images` images, and a worker whose pool holds `pool_instances` of them."""

    def __init__(self, bench: Workbench, gpu: Gpu, instances: Instances, *, images: int, registered: int,
                 pool_instances: int) -> None:
        sizes = bench.rig.sizes
        warm_device()
        self.instances, self.folder, self.pages_each = instances, bench.folder, instances.pages(sizes.page_bytes)
        cores = sorted(os.sched_getaffinity(0))
        self.pinned, self.others = (cores[-1], cores[:-1]) if len(cores) >= 4 else (-1, cores)
        self.options = WorkerOptions(
            device=bench.rig.option, endpoint=f"ipc://{bench.folder}/worker.sock", name="gpu-check",
            repo=str(bench.repository.root), pages=pool_instances * self.pages_each, page_bytes=sizes.page_bytes,
            window_bytes=sizes.window_bytes, slot_bytes=sizes.slot_bytes, agenda_max=64, rows_max=_ROWS_MAX,
            pin_core=self.pinned)
        self.backend = PagedBackend(bench.repository, gpu, window_bytes=sizes.window_bytes,
                                    slot_bytes=sizes.slot_bytes, depth=self.options.copies_max)
        store = HostStore(bench.repository, self.options.host_bytes, self.backend.host_memory)
        self.worker = DeviceWorker(self.options, self.backend, store)
        with self.backend.thread():
            self.worker.device.adopt_program(instances.program)
        self.images = [gpu.host_memory(instances.nbytes) for _ in range(images)]
        for number, image in enumerate(self.images):
            instances.write(number, image)
        self.names = [hashlib.sha256(b"%d" % number).digest()[:16] for number in range(registered)]
        for number, name in enumerate(self.names):
            store.images[name] = self.image_of(number)
        self.payloads = [instances.payload(0, seed) for seed in range(PAYLOADS)]

    def image_of(self, model: int) -> np.ndarray:
        """The image that an instance has."""
        return self.images[model % len(self.images)]

    def drive(self, phases: list[dict[str, Any]]) -> Driven:
        """Serve until the script is done; what came of it. Called once."""
        script, found = self._script(phases), self.folder / "driven.npz"
        errors, worker, ours = self.folder / "driver.stderr", self.worker, os.sched_getaffinity(0)
        path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")]))
        os.sched_setaffinity(0, self.others)  # threads have their core from whoever starts them
        try:
            with _quiet(), open(errors, "w") as stderr:
                child = subprocess.Popen([sys.executable, "-m", "cwd.bench.gpu.driver", str(script), str(found)],
                                         stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr,
                                         env={**os.environ, "PYTHONPATH": path})
                try:
                    worker.start()
                    code = child.wait()
                finally:
                    child.kill()
                    child.wait()
                if worker.failure is None:
                    worker.stop()
        finally:
            os.sched_setaffinity(0, ours)
        faults = [] if worker.failure is None else [f"the worker: {type(worker.failure).__name__}: {worker.failure}"]
        if code != 0:
            faults.append("the scripted controller: " + " | ".join(errors.read_text().splitlines()[-4:]))
        if not found.exists():
            raise RuntimeError("; ".join(faults))
        with np.load(found) as parts:
            return Driven(*(parts[name] for name in Driven._fields[:-1]), fault="; ".join(faults))

    def _script(self, phases: list[dict[str, Any]]) -> Path:
        manifest, path = self.instances.entry.manifest, self.folder / "script.json"
        payloads, images = self.folder / "payloads.npy", self.folder / "images.npy"
        np.save(payloads, np.stack(self.payloads))
        np.save(images, np.array([np.frombuffer(name, np.uint8) for name in self.names]))
        path.write_text(json.dumps({
            "endpoint": self.options.endpoint, "name": manifest.name, "version": manifest.version,
            "program": manifest.program_hash.hex(), "payloads": str(payloads), "images": str(images),
            "pages": self.options.pages, "pages_each": self.pages_each, "rows_max": _ROWS_MAX,
            "dims": list(manifest.size_classes[0]), "cores": self.others, "phases": phases}))
        return path


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """As a worker's process is: no garbage collection, one thread for torch."""
    threads = torch.get_num_threads()
    gc.collect()
    gc.freeze()
    gc.disable()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        gc.enable()
        gc.unfreeze()
