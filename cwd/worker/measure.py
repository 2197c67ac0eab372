"""A program measured on the backend that will serve it: one instance loaded, full batches executed as a worker does.

For `cwd model profile` on a GPU; profile.py keeps the result. No thread and no socket; the caller has the device alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from cwd.errors import Code, RepositoryError
from cwd.models import profile
from cwd.models.repository import Entry, Repository
from cwd.units import NS_PER_S
from cwd.worker.backends.paged import PagedBackend

#: copies of the instance take turns, of so many bytes together: more than a device's caches hold
COPIES_BYTES, COPIES_MAX = 256 << 20, 64


class BackendSubject:
    """profile.Subject: an instance on a backend; inside its `thread`. Inputs are staged before the clock starts, as they
    are while the execution before runs."""

    def __init__(self, repository: Repository, entry: Entry, backend: PagedBackend) -> None:
        self.kind, self.device, self._backend = backend.kind, backend.device, backend
        self._program = entry.manifest.program_hash
        self.spec = repository.program(self._program)
        backend.prepare(self._program)
        self._image = backend.host_memory(max(1, entry.manifest.image_bytes))
        repository.build_image(entry, self._image)
        self._pages = -(-self._image.size // backend.pool.page_bytes)
        self._turn, copies = 0, backend.pool.pages // self._pages
        self._seats = [backend.pool.reserve(self._pages) for _ in range(copies)]
        self._loads_ns = [self._load(k) for k in range(copies)]

    def run(self, batch: int, size_class: int) -> Callable[[], int]:
        backend, full = self._backend, profile.full_batch(self.spec, batch, size_class)

        def once() -> int:
            code = backend.stage(0, self._program, batch, size_class, *full.requests[1:])
            if code != 0:
                raise RepositoryError("the program's own sizes do not fit", code=Code(code))
            backend.wait_staged(0)
            self._turn = (self._turn + 1) % len(self._seats)
            bound = backend.bind(self._program, self._seats[self._turn])
            start_ns = time.monotonic_ns()
            backend.start(0, bound)
            while not backend.ended():
                pass
            backend.finish(full.targets)
            return time.monotonic_ns() - start_ns

        return once

    def load_ns_per_page(self) -> int:
        return max(1, sorted(self._loads_ns)[len(self._loads_ns) // 2] // self._pages)

    def facts(self, batch: int, size_class: int) -> dict[str, Any]:
        return {"tier": self._backend.tier(self._program, batch, size_class)}

    def _load(self, copy: int) -> int:
        pages = np.arange(copy * self._pages, (copy + 1) * self._pages, dtype=np.int32)
        start_ns = time.monotonic_ns()
        if self._backend.pool.fill(self._seats[copy], pages, self._image) < 0:
            raise RepositoryError("the instance could not be copied to the device", code=Code.DEVICE_ERROR)
        return time.monotonic_ns() - start_ns


def measure_gpu(repository: Repository, entry: Entry, backend: PagedBackend, *, page_bytes: int = 16 << 20,
                repeats: int = profile.REPEATS, budget_ns: int = 20 * NS_PER_S,
                progress: profile.Progress | None = None) -> dict[str, Any]:
    """Measure the entry's program on a backend that has no pool yet, store and return its profile."""
    pages = max(1, -(-entry.manifest.image_bytes // page_bytes))
    copies = min(max(-(-COPIES_BYTES // (pages * page_bytes)), 2), COPIES_MAX)
    backend.make_pool(copies * pages, page_bytes)
    with backend.thread():
        subject = BackendSubject(repository, entry, backend)
        return profile.measure(repository, entry, subject, page_bytes=page_bytes, repeats=repeats, budget_ns=budget_ns,
                               progress=progress)
