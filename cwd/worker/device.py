"""One real device of a worker: what LOAD, UNLOAD, EXEC, PREPARE and PROFILE do, in the threads of its two lanes.

Joins the host store, the pool of pages, the table of residents and a backend. Windows of time are the lanes' business,
messages the io thread's. The exec thread and the load thread meet in one lock, held for microseconds: `_using` is what
executes, and nothing takes its pages away before `leave`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np

from cwd.errors import Code, RepositoryError
from cwd.units import NS_PER_S
from cwd.worker import entries as en
from cwd.worker import residency as rs
from cwd.worker.agenda import NEVER
from cwd.worker.backends.base import Backend
from cwd.worker.hello import image_bytes, images_resident
from cwd.worker.host_store import HostStore
from cwd.worker.pages import PagePool

LOG = logging.getLogger("cwd.worker")
OK = int(Code.OK)

_now = time.monotonic_ns

#: A PROFILE runs at most so often: the exec lane is not to be lost to one message.
REPEATS_MAX = 1000


class Window(NamedTuple):
    """A range of addresses with what the backend bound to it, for instances of one program."""

    address: int
    pages: int
    program: bytes
    bound: Any


class Done(NamedTuple):
    """How an action ended; in the order of lanes.DONE."""

    status: int
    begin_ns: int
    end_ns: int
    device_ns: int = 0
    rows_done: int = 0
    pages_free: int = -1  # -1: as before


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
        self._lock = threading.Lock()
        self._using = -1
        #: to wait for the end of what executes; and how many do
        self._ended, self._waiting = threading.Condition(self._lock), 0
        self._complained: set[tuple[bytes, str]] = set()
        #: rows of a batch -> (payloads, sizes, results, output sizes), views of the entries' `batch`
        self._arrays = [tuple(entries.batch[row, :n] for row in (en.PAYLOADS, en.SIZES, en.OUTPUTS, en.OUT_SIZES))
                        for n in range(rows_max + 1)]
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

    def execute(self, model: int, entry: int, batch: int, size_class: int, rows: int) -> Done:
        """EXEC: the batch whose `rows` payloads are in the entry."""
        begin_ns = _now()
        window = self._enter(model)
        if window is None:
            return Done(int(Code.NOT_RESIDENT), begin_ns, begin_ns)
        payloads, sizes, results, out_sizes = self._arrays[rows]
        dims = self.entries.dims[entry, :rows]
        opened, clock_ns = False, self.backend.clock_ns()
        try:
            self.backend.output_bytes(window.program, dims, out_sizes)
            opened = en.entry_open(self.entries, entry, rows)
            status = self.backend.execute(window.program, window.bound, batch, size_class, payloads, sizes, dims,
                                          results) if opened else int(Code.DEVICE_ERROR)
        except Exception as error:  # whatever a model does, it costs this action only
            self._complain(window.program, error)
            status = int(Code.DEVICE_ERROR)
        if status == OK:
            device_ns = self.backend.clock_ns() - clock_ns
            return Done(OK, begin_ns, _now(), device_ns, rows)
        if opened:
            en.entry_drop_outputs(self.entries, entry, rows)
        return Done(status, begin_ns, _now())

    def profile(self, action: np.void) -> Done:
        """PROFILE: device_ns is the median of the executions."""
        begin_ns = _now()
        window = self._enter(int(action["model"]))
        if window is None:
            return Done(int(Code.NOT_RESIDENT), begin_ns, begin_ns)
        median_ns, status = 0, OK
        try:
            samples = self.backend.profile(window.program, window.bound, int(action["batch"]),
                                           int(action["size_class"]), min(max(int(action["repeats"]), 1), REPEATS_MAX))
            median_ns = sorted(samples)[len(samples) // 2]
        except RepositoryError as error:
            status = int(error.code)
        except Exception as error:
            self._complain(window.program, error)
            status = int(Code.DEVICE_ERROR)
        return Done(status, begin_ns, _now(), median_ns)

    def prepare(self, session: int, fields: dict[str, Any]) -> Done:
        """PREPARE: build the program, stage the image, and note the controller's number for it."""
        begin_ns = _now()
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
        return Done(status, begin_ns, _now())

    def adopt_program(self, program: bytes) -> None:
        """Have the backend build a program, and give it a number. `RepositoryError` says why not."""
        self.backend.prepare(program)
        if program not in self.programs:
            self.programs.append(program)

    def _enter(self, model: int) -> Window | None:
        """The window of the READY resident with that handle, whose pages now stay; None if there is none."""
        with self._lock:
            index = rs.resident_usable(self.residency, 0, model)
            if index < 0:
                return None
            self._using = index
            return self._window_of[index]

    def leave(self) -> None:
        """What executed is answered, and its pages may go: so no UNLOAD is answered before what it had to wait for."""
        with self._lock:
            self._using = -1
            if self._waiting:
                self._ended.notify_all()

    def _wait_end(self, timeout_s: float | None = None) -> None:
        """With the lock: wait until what executes has ended, or `timeout_s`."""
        self._waiting += 1
        self._ended.wait(timeout_s)
        self._waiting -= 1

    def _complain(self, program: bytes, error: Exception) -> None:
        """Log a fault of a model, once for each kind."""
        text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        if (program, text) not in self._complained and len(self._complained) < 1000:
            self._complained.add((program, text))
            LOG.error("program %s failed: %s", program.hex(), text)

    # the load thread

    def load(self, action: np.void) -> Done:
        """LOAD: copy the image into free pages and map them."""
        begin_ns = _now()
        status = self._load(action)
        return Done(status, begin_ns, _now(), pages_free=self.pages_free())

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
                    self._wait_end()
                self._give(orphan)

    def unload(self, action: np.void) -> Done:
        """UNLOAD: when its last use has ended, its pages are free. IN_USE if that is after the window."""
        begin_ns = _now()
        status = self._unload(int(action["model"]), int(action["latest_ns"]))
        return Done(status, begin_ns, _now(), pages_free=self.pages_free())

    def _unload(self, model: int, latest_ns: int) -> int:
        with self._lock:
            index = int(rs.resident_find(self.residency, 0, model))
            if index < 0 or self.residency.residents[0, index]["state"] != rs.READY:
                return int(Code.NOT_RESIDENT)
            while self._using == index:
                left_ns = latest_ns - _now()
                if left_ns <= 0:
                    return int(Code.IN_USE)
                self._wait_end(None if latest_ns == NEVER else min(left_ns / NS_PER_S, 60))
            rs.resident_drain(self.residency, 0, index)
            self._give(index)
        return OK

    def _give(self, index: int) -> None:
        """With the lock: unmap a resident that nobody uses, keep its window for the next one, free its pages."""
        window = self._window_of.pop(index)
        self.pool.clear(window.address, window.pages)
        self._spare[window.program].append(window)
        rs.resident_give(self.residency, 0, index)

    def _window(self, program: bytes, pages: int) -> Window:
        """A spare window of the program, or a new one: binding is done once for each."""
        if self._spare[program]:
            return self._spare[program].pop()
        address = self.pool.reserve(pages)
        return Window(address, pages, program, self.backend.bind(program, address))

    def reserve_windows(self, limit: int) -> None:
        """Bind windows ahead, at most `limit` for each program, so that no LOAD has to."""
        for program in self.programs:
            needed = max(1, -(-self.backend.image_bytes(program) // self.pool.page_bytes))
            made = [self._window(program, needed) for _ in range(min(limit, self.pool.pages // needed))]
            self._spare[program].extend(made)
