"""The paged backend: every execution first gathers its instance's pages into one fixed window, then runs there.

A program's parameters are views of the window, bound once; its inputs and outputs lie in fixed places too. So whatever
instance runs, the device is asked for exactly the same work, at the same addresses, but for one number: the row of the
page table to gather by. That work is captured once for each (program, batch size, size class) and replayed for all
instances; the gather always happens, also when the same instance ran before, so that it is a constant part of the time.
What cannot be captured is asked for step by step at each execution (tier "eager"), which varies more. So are programs
larger than the window, where pages can be mapped (tier "mapped"): their weights are used where they lie.

Inputs are uploaded beside the running execution into one of two slots, and outputs follow the execution into pinned
memory. All of it is written against gpu.py's `Gpu`; it knows no page numbers, handles or windows of time.
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cwd.errors import Code, RepositoryError
from cwd.models import fit
from cwd.models.program import ArraySpec, Binding, Buffers, Program
from cwd.models.repository import Repository
from cwd.units import format_size
from cwd.worker.backends.gpu import Gpu, Graph, torch
from cwd.worker.backends.gpu_pool import WORD_BYTES, GpuPool

LOG = logging.getLogger("cwd.worker")

#: runs before a capture
WARM_UPS = 3
ALIGN_BYTES = 256
GRAPH, EAGER, MAPPED = "graph", "eager", "mapped"


@dataclass
class Shape:
    """One (program, batch, size class): the fixed places it reads and writes, and what to replay."""

    program: Program
    #: in the window; None if the program is larger
    binding: Binding | None
    pages: int
    buffers: Buffers
    #: of each slot: the addresses of fit_inputs; pinned memory, its copy on the device
    targets: tuple[np.ndarray, ...]
    uploads: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    inputs: torch.Tensor
    #: on the device, as the program gives them, and all of them together; the same in pinned memory
    outputs: tuple[torch.Tensor, ...]
    output: torch.Tensor
    host_outputs: tuple[torch.Tensor, ...]
    host_output: torch.Tensor
    graph: Graph | None = None


class PagedBackend:
    """Backend (see base.py) on a GPU. `window_bytes`: the largest instance; `slot_bytes`: the largest batch's inputs, and
    outputs."""

    slots = 2
    #: from `make_pool` on
    pool: GpuPool

    def __init__(self, repository: Repository, gpu: Gpu, *, window_bytes: int = 1 << 30, slot_bytes: int = 64 << 20,
                 depth: int = 2, mapped: bool = False) -> None:
        self.repository, self.gpu, self.kind, self.device = repository, gpu, gpu.kind, gpu.name
        self.window_bytes, self.slot_bytes, self.depth, self.mapped = window_bytes, slot_bytes, depth, mapped
        self._shapes: dict[bytes, dict[tuple[int, int], Shape]] = {}
        self._input, self._output = gpu.memory(slot_bytes), gpu.memory(slot_bytes)
        self._host_output = gpu.pinned(slot_bytes)
        self._slots = [(gpu.pinned(slot_bytes), gpu.memory(slot_bytes)) for _ in range(self.slots)]
        self._uploaded = [gpu.event() for _ in range(self.slots)]
        self._begin, self._end = gpu.event(), gpu.event()
        #: by slot: what is staged, and the dims of its requests; and of what was started last
        self._staged: dict[int, tuple[Shape, np.ndarray]] = {}
        self._running: tuple[Shape, np.ndarray]
        #: ranges in which pages of zeros are shown, for programs larger than the window
        self._zero_seats: dict[bytes, tuple[int, Binding]] = {}

    def thread(self) -> AbstractContextManager[None]:
        return self.gpu.thread(urgent=True)

    def load_thread(self) -> AbstractContextManager[None]:
        return self.gpu.thread(urgent=False)

    def make_pool(self, pages: int, page_bytes: int) -> GpuPool:
        row_pages = max(1, -(-self.window_bytes // page_bytes))
        self.pool = GpuPool(self.gpu, pages, page_bytes, row_pages=row_pages, depth=self.depth, mapped=self.mapped)
        self._window = self.gpu.memory(row_pages * page_bytes)
        self._window_words = self._window.view(torch.int64).view(row_pages, -1)
        #: the row to gather by, and what it holds
        self._row = self.gpu.memory(WORD_BYTES).view(torch.int64)
        self._numbers = self.gpu.memory(row_pages * WORD_BYTES).view(torch.int64).view(1, -1)
        return self.pool

    def host_memory(self, size: int) -> np.ndarray:
        return self.gpu.host_memory(size)

    def programs(self) -> list[bytes]:
        return list(self._shapes)

    def prepare(self, program: bytes) -> None:
        if program in self._shapes:
            return
        try:
            self._prepare(program)
        except RepositoryError:
            raise
        except Exception as error:  # whatever a program does, it must not cost the others
            if self.gpu.lost(error):
                raise
            raise RepositoryError(f"it does not run on {self.device}: {type(error).__name__}: "
                                  f"{str(error).strip()[:300]}") from error
        self.warm()
        gc.freeze()

    def warm(self) -> None:
        for program, shapes in self._shapes.items():
            for shape in shapes.values():
                if shape.graph is None:
                    with self._zeros(program, shape) as bound:
                        self._warm_run(shape, bound)

    def _prepare(self, program: bytes) -> None:
        with torch.inference_mode(False):
            built = Program.load(self.repository, program, device=self.gpu.device)
        large = -(-built.layout.image_bytes // self.pool.page_bytes) > self.pool.shared_pages
        if large and not self.mapped:
            raise RepositoryError(f"its weights take {format_size(built.layout.image_bytes)}, this worker's window has "
                                  f"{format_size(self.window_bytes)} (--window, or --mapped)", code=Code.BAD_MODEL)
        binding = None if large else built.bind(self._window)
        pairs = [(batch, size_class) for size_class in range(len(built.spec.size_classes))
                 for batch in built.spec.batch_sizes]
        shapes = {pair: self._make_shape(built, binding, *pair) for pair in pairs}
        # the largest first: what they leave of the memory that they share suffices the others
        for shape in sorted(shapes.values(), key=lambda shape: -len(shape.inputs)):
            with self.gpu.quiet:
                self._warm_up(program, shape)
        self._shapes[program] = shapes

    def tier(self, program: bytes, batch: int, size_class: int) -> str:
        """How a prepared shape runs: "graph", "eager" or "mapped"."""
        shape = self._shapes[program][batch, size_class]
        return MAPPED if shape.binding is None else EAGER if shape.graph is None else GRAPH

    def image_bytes(self, program: bytes) -> int:
        return self._any(program).layout.image_bytes

    def bind(self, program: bytes, seat: int) -> int | Binding:
        """The row, or views of the range of addresses."""
        return seat if seat < self.pool.pages else self._any(program).bind(self.pool.view(seat))

    def output_bytes(self, program: bytes, dims: np.ndarray, sizes: np.ndarray) -> None:
        fit.rows_bytes(self._any(program).plan.outputs, dims, sizes)

    def stage(self, slot: int, program: bytes, batch: int, size_class: int, payloads: np.ndarray, sizes: np.ndarray,
              dims: np.ndarray) -> int:
        shape = self._shapes[program].get((batch, size_class))
        if shape is None:
            return int(Code.BAD_BATCH)
        code = shape.program.fit(shape.buffers, batch, payloads, sizes, dims, shape.targets[slot])
        if code == fit.OK:
            pinned, uploaded = shape.uploads[slot]
            with self.gpu.side():
                self.gpu.copy(uploaded, pinned)
                self._uploaded[slot].record()
            self._staged[slot] = shape, dims
        return code

    def wait_staged(self, slot: int) -> None:
        """Return when the slot's inputs are on the device."""
        self._uploaded[slot].synchronize()

    def start(self, slot: int, bound: int | Binding) -> None:
        self._running = shape, _ = self._staged[slot]
        self.gpu.follow(self._uploaded[slot])
        self._run(shape, slot, bound)

    def ended(self) -> bool:
        return self._end.query()

    def finish(self, results: np.ndarray) -> int:
        shape, dims = self._running
        shape.program.trim(shape.buffers, shape.host_outputs, dims, results)
        return int(self._begin.elapsed_time(self._end) * 1e6)

    def profile(self, program: bytes, bound: int | Binding, batch: int, size_class: int, repeats: int) -> list[int]:
        shape = self._shapes[program].get((batch, size_class))
        if shape is None:
            raise RepositoryError(f"the program has no batch size {batch} or size class {size_class}", code=Code.BAD_BATCH)
        found = []
        for _ in range(repeats):
            self._warm_run(shape, bound)  # what a slot holds otherwise may be no valid input of this program
            found.append(int(self._begin.elapsed_time(self._end) * 1e6))
        return found

    def lost(self, error: Exception) -> bool:
        return self.gpu.lost(error)

    def _any(self, program: bytes) -> Program:
        return next(iter(self._shapes[program].values())).program

    def _run(self, shape: Shape, slot: int, bound: int | Binding) -> None:
        """From the slot's inputs on the device to outputs in pinned memory, between the two events."""
        self._begin.record()
        shape.inputs.copy_(shape.uploads[slot][1])
        self._launch(shape, bound)
        self.gpu.copy(shape.host_output, shape.output)
        self._end.record()

    def _launch(self, shape: Shape, bound: int | Binding) -> None:
        if isinstance(bound, Binding):
            self._forward(shape, bound)
            return
        self._row.fill_(bound)  # by a kernel: a copy of 8 bytes would wait behind the pages of a LOAD
        if shape.graph is None:
            self._gather_and_forward(shape)
        else:
            shape.graph.replay()

    def _gather_and_forward(self, shape: Shape) -> None:
        """All that the device does for an execution in the window, but to bring inputs and fetch outputs."""
        assert shape.binding is not None, "only what fits into the window is gathered"
        torch.index_select(self.pool.table, 0, self._row, out=self._numbers)
        torch.index_select(self.pool.words, 0, self._numbers[0, :shape.pages], out=self._window_words[:shape.pages])
        self._forward(shape, shape.binding)

    def _forward(self, shape: Shape, binding: Binding) -> None:
        for target, found in zip(shape.outputs, shape.program.run_in(binding, shape.buffers), strict=True):
            target.copy_(found)

    def _warm_up(self, program: bytes, shape: Shape) -> None:
        """Run with weights and inputs of zeros, and capture what can be: libraries choose what they do, take memory and load
        their kernels in the first runs, which are neither to be captured nor to be somebody's."""
        with self._zeros(program, shape) as bound:
            for _ in range(WARM_UPS):
                self._warm_run(shape, bound)
            if shape.binding is not None:
                self._capture(program, shape)
                self._warm_run(shape, bound)

    @contextlib.contextmanager
    def _zeros(self, program: bytes, shape: Shape) -> Iterator[int | Binding]:
        """What an instance is bound to whose weights are all zero."""
        if shape.binding is not None:
            yield self.pool.zeros_row
            return
        if program not in self._zero_seats:
            seat = self.pool.reserve(shape.pages)
            self._zero_seats[program] = seat, shape.program.bind(self.pool.view(seat))
        seat, binding = self._zero_seats[program]
        self.pool.show_zeros(seat, shape.pages)
        try:
            yield binding
        finally:
            self.pool.clear(seat, shape.pages)

    def _warm_run(self, shape: Shape, bound: int | Binding) -> None:
        """An execution of zeros, like any other."""
        pinned, uploaded = shape.uploads[0]
        self.wait_staged(0)  # an upload for somebody who was refused may still be under way
        pinned.zero_()
        self.gpu.copy(uploaded, pinned)
        self._run(shape, 0, bound)
        self._end.synchronize()

    def _capture(self, program: bytes, shape: Shape) -> None:
        """Capture a warm shape, or leave it eager, and say so."""
        try:
            shape.graph = self.gpu.capture(lambda: self._gather_and_forward(shape))
        except RuntimeError as error:
            if self.gpu.lost(error):
                raise
            LOG.warning("program %s cannot be captured, it runs eager and varies more: %s", program.hex(),
                        str(error).splitlines()[0][:200])

    def _make_shape(self, built: Program, binding: Binding | None, batch: int, size_class: int) -> Shape:
        wanted_in, wanted_out = built.array_specs(batch, size_class)
        bytes_in, offsets_in = _pack(wanted_in)
        bytes_out, offsets_out = _pack(wanted_out)
        if max(bytes_in, bytes_out) > self.slot_bytes:
            raise RepositoryError(
                f"a batch of {batch} takes {format_size(max(bytes_in, bytes_out))} of inputs or outputs, this worker's "
                f"slots have {format_size(self.slot_bytes)} (--slot)", code=Code.BAD_MODEL)
        arrays = _views(self._input, wanted_in, offsets_in)
        buffers = built.make_buffers(batch, size_class, arrays)
        targets = tuple(np.array([pinned.data_ptr() + offset for offset in offsets_in], np.int64)
                        for pinned, _ in self._slots)
        return Shape(
            program=built, binding=binding, pages=max(1, -(-built.layout.image_bytes // self.pool.page_bytes)),
            buffers=replace(buffers, addresses=targets[0]), targets=targets,
            uploads=tuple((pinned[:bytes_in], device[:bytes_in]) for pinned, device in self._slots),
            inputs=self._input[:bytes_in],
            outputs=_views(self._output, wanted_out, offsets_out), output=self._output[:bytes_out],
            host_outputs=_views(self._host_output, wanted_out, offsets_out), host_output=self._host_output[:bytes_out])


def _pack(wanted: list[ArraySpec]) -> tuple[int, list[int]]:
    """Bytes of the arrays one behind the other, aligned, and where each begins."""
    end, offsets = 0, []
    for shape, dtype in wanted:
        offsets.append(end)
        end += -(-shape.numel() * dtype.itemsize // ALIGN_BYTES) * ALIGN_BYTES
    return end, offsets


def _views(memory: torch.Tensor, wanted: list[ArraySpec], offsets: list[int]) -> tuple[Any, ...]:
    return tuple(memory[offset:offset + shape.numel() * dtype.itemsize].view(dtype).view(shape)
                 for (shape, dtype), offset in zip(wanted, offsets, strict=True))
