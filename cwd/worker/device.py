"""One real device of a worker: what LOAD, UNLOAD, EXEC, PREPARE and PROFILE do, in the threads of its two lanes.

Joins the host store, the pool of pages, the table of residents and a backend. Windows of time are the lanes' business,
messages the io thread's. The exec thread and the load thread meet in one lock, held for microseconds: `_using` is what
executes, and nothing takes its pages away before it has ended.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np

from cwd.errors import Code, RepositoryError
from cwd.net.clock import monotonic_ns
from cwd.units import NS_PER_S
from cwd.wire.messages import DIMS
from cwd.worker import entries as en
from cwd.worker import residency as rs
from cwd.worker.agenda import NEVER
from cwd.worker.backends.base import Backend
from cwd.worker.hello import image_bytes, images_resident
from cwd.worker.host_store import HostStore
from cwd.worker.pages import PagePool

LOG = logging.getLogger("cwd.worker")
OK = int(Code.OK)

#: A PROFILE runs at most so often: the exec lane is not to be lost to one message.
REPEATS_MAX = 1000


class Window(NamedTuple):
    """A range of addresses with what the backend bound to it."""

    address: int
    pages: int
    bound: Any


class Done(NamedTuple):
    """How an action ended."""

    status: int
    begin_ns: int
    end_ns: int
    device_ns: int = 0
    rows_done: int = 0


class Device:
    """See above. `rows_max` bounds a batch; `bytes_per_s` throttles LOADs where it is not 0."""

    def __init__(self, backend: Backend, store: HostStore, pool: PagePool, entries: en.Entries, *, rows_max: int,
                 bytes_per_s: int = 0) -> None:
        self.backend, self.store, self.pool, self.entries = backend, store, pool, entries
        self.residency = rs.make_residency(1, pool.pages)
        self.bytes_per_s = bytes_per_s
        #: program hashes; the index is what RESIDENT.program holds
        self.programs: list[bytes] = []
        #: (session, the controller's program_index) -> index into `programs`
        self._numbers: dict[tuple[int, int], int] = {}
        self._window_of: dict[int, Window] = {}
        self._spare: dict[bytes, list[Window]] = defaultdict(list)
        self._lock = threading.Condition()
        self._using = -1
        self._complained: set[tuple[bytes, str]] = set()
        self._payloads, self._sizes = np.zeros(rows_max, np.int64), np.zeros(rows_max, np.int64)
        self._results, self._out_sizes = np.zeros(rows_max, np.int64), np.zeros(rows_max, np.int64)
        self._pages = np.zeros(pool.pages, np.int32)

    def begin_session(self, session: int) -> None:
        """Handles and program indexes of before mean nothing from now on."""
        with self._lock:
            rs.residency_session(self.residency, 0, session)
            self._numbers = {key: number for key, number in self._numbers.items() if key[0] == session}

    def resident(self) -> list[tuple[bytes, bytes]]:
        """(image, program) of everything that could be executed or adopted."""
        with self._lock:
            return [(image, self.programs[number]) for image, number in images_resident(self.residency, 0)]

    def pages_free(self) -> int:
        return int(rs.pages_free(self.residency, 0))

    # the exec thread

    def execute(self, action: np.void) -> Done:
        """EXEC: the batch whose payloads are in the action's entry."""
        begin_ns = int(monotonic_ns())
        index = self._enter(int(action["model"]))
        if index < 0:
            return Done(-index, begin_ns, begin_ns)
        try:
            status, rows = self._execute(action, index)
        finally:
            self._leave()
        return Done(status, begin_ns, int(monotonic_ns()), rows_done=rows)

    def _execute(self, action: np.void, index: int) -> tuple[int, int]:
        n, entry = int(action["rows"]), int(action["entry"])
        program = self.programs[self.residency.residents[0, index]["program"]]
        payloads, sizes, results = self._payloads[:n], self._sizes[:n], self._results[:n]
        dims, out_sizes = self.entries.dims[entry].reshape(-1, DIMS)[:n], self._out_sizes[:n]
        en.entry_payloads(self.entries, entry, n, payloads, sizes)
        allocated = False
        try:
            self.backend.output_bytes(program, dims, out_sizes)
            allocated = bool(en.entry_outputs(self.entries, entry, n, out_sizes, results))
            if not allocated:
                return int(Code.DEVICE_ERROR), 0
            status = int(self.backend.execute(program, self._window_of[index].bound, int(action["batch"]),
                                              int(action["size_class"]), payloads, sizes, dims, results))
        except Exception as error:  # whatever a model does, it costs this action only
            self._complain(program, error)
            status = int(Code.DEVICE_ERROR)
        if status != OK and allocated:
            en.entry_drop_outputs(self.entries, entry, n)
        return status, n if status == OK else 0

    def profile(self, action: np.void) -> Done:
        """PROFILE: device_ns is the median of the executions."""
        begin_ns = int(monotonic_ns())
        index = self._enter(int(action["model"]))
        if index < 0:
            return Done(-index, begin_ns, begin_ns)
        median_ns, status = 0, OK
        program = self.programs[self.residency.residents[0, index]["program"]]
        try:
            samples = self.backend.profile(program, self._window_of[index].bound, int(action["batch"]),
                                           int(action["size_class"]), min(max(int(action["repeats"]), 1), REPEATS_MAX))
            median_ns = sorted(samples)[len(samples) // 2]
        except RepositoryError as error:
            status = int(error.code)
        except Exception as error:
            self._complain(program, error)
            status = int(Code.DEVICE_ERROR)
        finally:
            self._leave()
        return Done(status, begin_ns, int(monotonic_ns()), device_ns=median_ns)

    def prepare(self, session: int, fields: dict[str, Any]) -> Done:
        """PREPARE: build the program, stage the image, and note the controller's number for it."""
        begin_ns = int(monotonic_ns())
        program, image = fields["program"], fields["image"]
        status = OK
        try:
            if program not in self.programs or (any(image) and image not in self.store.images):
                entry = self.store.find(fields["name"], fields["version"], program, image)
                self.adopt_program(program)
                if any(image):
                    self.store.stage(entry)
        except RepositoryError as error:
            LOG.warning("PREPARE of %s/%d: %s", fields["name"], fields["version"], error)
            status = int(error.code)
        except Exception as error:
            self._complain(program, error)
            status = int(Code.DEVICE_ERROR)
        if status == OK:
            number = self.programs.index(program)
            with self._lock:
                self._numbers[session, fields["program_index"]] = number
        return Done(status, begin_ns, int(monotonic_ns()))

    def adopt_program(self, program: bytes) -> None:
        """Have the backend build a program, and give it a number. `RepositoryError` says why not."""
        self.backend.prepare(program)
        if program not in self.programs:
            self.programs.append(program)

    def _enter(self, model: int) -> int:
        """The READY resident of that handle, whose pages now stay; or minus NOT_RESIDENT."""
        with self._lock:
            index = int(rs.resident_find(self.residency, 0, model))
            if index < 0 or self.residency.residents[0, index]["state"] != rs.READY:
                return -int(Code.NOT_RESIDENT)
            self._using = index
            return index

    def _leave(self) -> None:
        with self._lock:
            self._using = -1
            self._lock.notify_all()

    def _complain(self, program: bytes, error: Exception) -> None:
        """Log a fault of a model, once for each kind."""
        text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        if (program, text) not in self._complained and len(self._complained) < 1000:
            self._complained.add((program, text))
            LOG.error("program %s failed: %s", program.hex(), text)

    # the load thread

    def load(self, action: np.void) -> Done:
        """LOAD: copy the image into free pages and map them."""
        begin_ns = int(monotonic_ns())
        return Done(self._load(action), begin_ns, int(monotonic_ns()))

    def _load(self, action: np.void) -> int:
        low, high, model, pages = (int(action[name]) for name in ("image_low", "image_high", "model", "pages"))
        number = self._numbers.get((int(action["session"]), int(action["program"])), -1)
        if number < 0:
            return int(Code.NOT_PREPARED)
        program, data = self.programs[number], self.store.images.get(image_bytes(low, high))
        needed = max(1, -(-self.backend.image_bytes(program) // self.pool.page_bytes))
        with self._lock:
            if rs.resident_adopt(self.residency, 0, model, low, high, pages) >= 0:
                return OK
        if data is None:
            return int(Code.NOT_HERE)
        if pages < needed or data.size < self.backend.image_bytes(program):
            return int(Code.NO_PAGES)
        index = self._take(model, low, high, pages)
        if index < 0:
            return -index
        rs.resident_pages(self.residency, 0, index, self._pages)
        window = self._window(program, needed)
        if not self.pool.fill(window.address, self._pages[:needed], data, self.bytes_per_s):
            self._spare[program].append(window)
            with self._lock:
                rs.resident_give(self.residency, 0, index)
            return int(Code.DEVICE_ERROR)
        with self._lock:
            self.residency.residents[0, index]["program"] = number
            self._window_of[index] = window
            rs.resident_ready(self.residency, 0, index)
        return OK

    def _take(self, model: int, low: int, high: int, pages: int) -> int:
        """Pages for the model, orphans giving way: index, or minus a code."""
        with self._lock:
            while True:
                index = int(rs.resident_take(self.residency, 0, model, low, high, pages))
                orphan = int(rs.resident_orphan_any(self.residency, 0))
                if index != -rs.NO_PAGES or pages > self.pages_free() or orphan < 0:
                    return index
                while self._using == orphan:
                    self._lock.wait()
                self._give(orphan)

    def unload(self, action: np.void) -> Done:
        """UNLOAD: when its last use has ended, its pages are free. IN_USE if that is after the window."""
        begin_ns = int(monotonic_ns())
        with self._lock:
            index = int(rs.resident_find(self.residency, 0, int(action["model"])))
            if index < 0 or self.residency.residents[0, index]["state"] != rs.READY:
                return Done(int(Code.NOT_RESIDENT), begin_ns, begin_ns)
            while self._using == index:
                left_ns = int(action["latest_ns"]) - int(monotonic_ns())
                if left_ns <= 0:
                    return Done(int(Code.IN_USE), begin_ns, int(monotonic_ns()))
                self._lock.wait(None if action["latest_ns"] == NEVER else min(left_ns / NS_PER_S, 60))
            rs.resident_drain(self.residency, 0, index)
            self._give(index)
        return Done(OK, begin_ns, int(monotonic_ns()))

    def _give(self, index: int) -> None:
        """With the lock: unmap a resident that nobody uses, keep its window for the next one, free its pages."""
        window = self._window_of.pop(index)
        self.pool.clear(window.address, window.pages)
        self._spare[self.programs[self.residency.residents[0, index]["program"]]].append(window)
        rs.resident_give(self.residency, 0, index)

    def _window(self, program: bytes, pages: int) -> Window:
        """A spare window of the program, or a new one: binding is done once for each."""
        if self._spare[program]:
            return self._spare[program].pop()
        address = self.pool.reserve(pages)
        return Window(address, pages, self.backend.bind(program, address))

    def reserve_windows(self, limit: int) -> None:
        """Bind windows ahead, at most `limit` for each program, so that no LOAD has to."""
        for program in self.programs:
            needed = max(1, -(-self.backend.image_bytes(program) // self.pool.page_bytes))
            made = [self._window(program, needed) for _ in range(min(limit, self.pool.pages // needed))]
            self._spare[program].extend(made)
