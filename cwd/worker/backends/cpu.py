"""The cpu backend: real torch on one core. Weights are views of a window of addresses, bound once for ever.

It must not know pages, messages or time windows. Everything that could disturb an execution is switched off where it
can be: torch's thread pools, denormals, gradients; garbage collection is the daemon's to stop.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from cwd.errors import Code, CwdError, RepositoryError
from cwd.models import fit
from cwd.models.repository import Repository

try:
    import torch
except ImportError:
    raise CwdError("the cpu backend needs torch: pip install 'cwd[server]'") from None

from cwd.models.program import Binding, Buffers, Program
from cwd.worker.backends.gpu import tensor_at
from cwd.worker.pages import PagePool

LOG = logging.getLogger("cwd.worker")

#: A program's warm-up runs its shapes, the small ones first, for about so long; a big one may warm up when it is used.
WARM_NS = 1_000_000_000


class Batch(NamedTuple):
    """What is staged."""

    built: Program
    buffers: Buffers
    dims: np.ndarray


class CpuBackend:
    """Backend (see base.py) on this machine's processor."""

    kind = "cpu"
    slots = 1

    def __init__(self, repository: Repository, *, warm_ns: int = WARM_NS) -> None:
        self.device = f"{os.uname().machine}, torch {torch.__version__.partition('+')[0]}"
        self.repository, self.warm_ns = repository, warm_ns
        self._programs: dict[bytes, Program] = {}
        self._staged: Batch
        self._outputs: list[torch.Tensor] = []
        self._clock_ns = 0
        torch.set_num_threads(1)

    @contextlib.contextmanager
    def thread(self) -> Iterator[None]:
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        with torch.inference_mode():  # once for all: to enter and leave it costs an execution some microseconds
            yield

    def load_thread(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def make_pool(self, pages: int, page_bytes: int) -> PagePool:
        return PagePool(pages, page_bytes)

    def host_memory(self, size: int) -> np.ndarray:
        return np.empty(size, np.uint8)

    def programs(self) -> list[bytes]:
        return list(self._programs)

    def prepare(self, program: bytes) -> None:
        if program in self._programs:
            return
        with torch.inference_mode(False):  # a module is built as it would be anywhere
            built = Program.load(self.repository, program)
        self._warm(built)
        self._programs[program] = built
        gc.freeze()

    def warm(self) -> None:
        pass

    def image_bytes(self, program: bytes) -> int:
        return self._programs[program].layout.image_bytes

    def bind(self, program: bytes, seat: int) -> Binding:
        built = self._programs[program]
        return built.bind(tensor_at(seat, built.layout.image_bytes))

    def output_bytes(self, program: bytes, dims: np.ndarray, sizes: np.ndarray) -> None:
        fit.rows_bytes(self._programs[program].plan.outputs, dims, sizes)

    def stage(self, slot: int, program: bytes, batch: int, size_class: int, payloads: np.ndarray, sizes: np.ndarray,
              dims: np.ndarray) -> int:
        built = self._programs[program]
        if batch not in built.spec.batch_sizes or size_class >= len(built.spec.size_classes):
            return int(Code.BAD_BATCH)
        self._clock_ns = time.thread_time_ns()
        buffers = built.buffers(batch, size_class)
        self._staged = Batch(built, buffers, dims)
        return built.fit(buffers, batch, payloads, sizes, dims)

    def start(self, slot: int, bound: Binding) -> None:
        self._outputs = self._staged.built.run_in(bound, self._staged.buffers)

    def ended(self) -> bool:
        return True

    def finish(self, results: np.ndarray) -> int:
        built, buffers, dims = self._staged
        built.trim(buffers, self._outputs, dims, results)
        return time.thread_time_ns() - self._clock_ns

    def profile(self, program: bytes, bound: Binding, batch: int, size_class: int, repeats: int) -> list[int]:
        built = self._programs[program]
        if batch not in built.spec.batch_sizes or size_class >= len(built.spec.size_classes):
            raise RepositoryError(f"the program has no batch size {batch} or size class {size_class}",
                                  code=Code.BAD_BATCH)
        found = []
        for _ in range(repeats):
            begin_ns = time.monotonic_ns()
            built.run(bound, batch, size_class)
            found.append(time.monotonic_ns() - begin_ns)
        return found

    def _warm(self, built: Program) -> None:
        """Run every shape once, as far as the time allows, with weights of zeros."""
        zeros = torch.zeros(max(built.layout.image_bytes, 1), dtype=torch.uint8)
        bound = built.bind(zeros)
        begin_ns = time.monotonic_ns()
        shapes = [(batch, size_class) for batch in sorted(built.spec.batch_sizes)
                  for size_class in range(len(built.spec.size_classes))]
        for done, (batch, size_class) in enumerate(shapes):
            built.run(bound, batch, size_class)
            if time.monotonic_ns() - begin_ns > self.warm_ns and done + 1 < len(shapes):
                LOG.info("warmed %d of %d shapes; the others warm up in their first execution", done + 1, len(shapes))
                break

    def lost(self, error: Exception) -> bool:
        return False
