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
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from cwd.errors import Code, CwdError, RepositoryError
from cwd.units import NS_PER_S
from cwd.worker import entries as en
from cwd.worker import residency as rs
from cwd.worker.agenda import NEVER
from cwd.worker.backends.base import Backend, Pool
from cwd.worker.hello import image_bytes, images_resident
from cwd.worker.host_store import HostStore

LOG = logging.getLogger("cwd.worker")
OK = int(Code.OK)

_now = time.monotonic_ns

#: A PROFILE runs at most so often: the exec lane is not to be lost to one message.
REPEATS_MAX = 1000


class Seat(NamedTuple):
    """A seat of the pool with what the backend bound to it, for instances of one program."""

    number: int
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

    def __init__(self, backend: Backend, store: HostStore, pool: Pool, entries: en.Entries, *, rows_max: int,
                 bytes_per_s: int = 0) -> None:
        self.backend, self.store, self.pool, self.entries = backend, store, pool, entries
        self.residency = rs.make_residency(1, pool.pages)
        self.bytes_per_s = bytes_per_s
        #: program hashes; the index is what RESIDENT.program holds
        self.programs: list[bytes] = []
        #: (session, the controller's program_index) -> index into `programs`
        self._numbers: dict[tuple[int, int], int] = {}
        self._seat_of: dict[int, Seat] = {}
        #: seats that nobody has: by program, and the numbers of those that serve any
        self._spare: dict[bytes, list[Seat]] = defaultdict(list)
        self._shared: list[int] = []
        #: the slot that the next batch is staged in; and how that went, if it was done ahead (None: it could not be done)
        self._slot = 0
        self._ahead: int | None = None
        self._ahead_program = b""
        #: why nothing will ever work again
        self.lost: CwdError | None = None
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

    @property
    def models(self) -> int:
        """How many instances have pages and a seat."""
        return len(self._seat_of)

    def pages_free(self) -> int:
        return int(rs.pages_free(self.residency, 0))

    # the exec thread

    def stage_ahead(self, model: int, entry: int, batch: int, size_class: int, rows: int) -> None:
        """Stage the inputs of the EXEC that will be next, while another executes or nothing may start yet."""
        self._ahead = None
        with self._lock:
            index = int(rs.resident_find(self.residency, 0, model))
            program = self.programs[self.residency.residents[0, index]["program"]] if index >= 0 else None
        if program is not None:
            self._ahead_program = program
            try:
                self._ahead = self._stage(program, entry, batch, size_class, rows)
            except Exception as error:
                self._failed(program, error)

    def _stage(self, program: bytes, entry: int, batch: int, size_class: int, rows: int) -> int:
        payloads, sizes = self._arrays[rows][:2]
        en.entry_payloads(self.entries, entry, rows)
        return self.backend.stage(self._slot, program, batch, size_class, payloads, sizes, self.entries.dims[entry, :rows])

    def execute(self, model: int, entry: int, batch: int, size_class: int, rows: int, staged: bool,
                meanwhile: Callable[[], None]) -> Done:
        """EXEC: the batch whose `rows` payloads are in the entry; `staged`: `stage_ahead` was called for it last.

        `meanwhile` is called again and again while the device works.
        """
        begin_ns = _now()
        seat = self._enter(model)
        if seat is None:
            return Done(int(Code.NOT_RESIDENT), begin_ns, begin_ns)
        backend, (_, _, results, out_sizes) = self.backend, self._arrays[rows]
        opened, device_ns = False, 0
        try:
            # until its turn came the model may have left and come back as an instance of another program
            status = self._ahead if staged and self._ahead_program == seat.program else None
            if status is None:
                status = self._stage(seat.program, entry, batch, size_class, rows)
            if status == OK:
                backend.output_bytes(seat.program, self.entries.dims[entry, :rows], out_sizes)
                opened = en.entry_open(self.entries, entry, rows)
                status = OK if opened else int(Code.DEVICE_ERROR)
            if status == OK:
                slot, self._slot = self._slot, (self._slot + 1) % backend.slots
                backend.start(slot, seat.bound)
                while not backend.ended():
                    meanwhile()
                device_ns = backend.finish(results)
        except Exception as error:  # whatever a model does, it costs this action only
            status = self._failed(seat.program, error)
        if status == OK:
            return Done(OK, begin_ns, _now(), device_ns, rows)
        if opened:
            en.entry_drop_outputs(self.entries, entry, rows)
        return Done(status, begin_ns, _now())

    def profile(self, action: np.void) -> Done:
        """PROFILE: device_ns is the median of the executions."""
        begin_ns = _now()
        seat = self._enter(int(action["model"]))
        if seat is None:
            return Done(int(Code.NOT_RESIDENT), begin_ns, begin_ns)
        median_ns, status = 0, OK
        try:
            samples = self.backend.profile(seat.program, seat.bound, int(action["batch"]),
                                           int(action["size_class"]), min(max(int(action["repeats"]), 1), REPEATS_MAX))
            median_ns = sorted(samples)[len(samples) // 2]
        except RepositoryError as error:
            status = int(error.code)
        except Exception as error:
            status = self._failed(seat.program, error)
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
            status = self._failed(program, error)
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

    def _enter(self, model: int) -> Seat | None:
        """The seat of the READY resident with that handle, whose pages now stay; None if there is none."""
        with self._lock:
            index = rs.resident_usable(self.residency, 0, model)
            if index < 0:
                return None
            self._using = index
            return self._seat_of[index]

    def leave(self) -> None:
        """What executed is answered, and its pages may go: so no UNLOAD is answered before what it had to wait for."""
        with self._lock:
            self._using = -1
            if self._waiting:
                self._ended.notify_all()

    @property
    def waits(self) -> bool:
        """Whether the load thread waits for an execution to end."""
        return self._waiting > 0

    def _wait_end(self, timeout_s: float | None = None) -> None:
        """With the lock: wait until what executes has ended, or `timeout_s`."""
        self._waiting += 1
        self._ended.wait(timeout_s)
        self._waiting -= 1

    def _failed(self, program: bytes, error: Exception) -> int:
        """Note and log a fault, a model's once for each kind; the code to answer with."""
        text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        if self.backend.lost(error):
            self.lost = self.lost or CwdError(f"the device is lost: {text}", code=Code.DEVICE_ERROR)
        elif (program, text) not in self._complained and len(self._complained) < 1000:
            self._complained.add((program, text))
            LOG.error("program %s failed: %s", program.hex(), text)
        return int(Code.DEVICE_ERROR)

    # the load thread

    def load(self, action: np.void) -> Done:
        """LOAD: copy the image into free pages, and put those into a seat."""
        begin_ns = _now()
        status, device_ns = self._load(action)
        return Done(status, begin_ns, _now(), device_ns, pages_free=self.pages_free())

    def _load(self, action: np.void) -> tuple[int, int]:
        low, high, model, pages = (int(action[name]) for name in ("image_low", "image_high", "model", "pages"))
        number = self._numbers.get((int(action["session"]), int(action["program"])), -1)
        if number < 0:
            return int(Code.NOT_PREPARED), 0
        program, data = self.programs[number], self.store.images.get(image_bytes(low, high))
        needed = self._pages_of(program)
        with self._lock:
            if rs.resident_adopt(self.residency, 0, model, low, high, pages) >= 0:
                return OK, 0
        if data is None:
            return int(Code.NOT_HERE), 0
        if pages < needed or data.size < self.backend.image_bytes(program):
            return int(Code.NO_PAGES), 0
        index = self._take(model, low, high, pages, number)
        if index < 0:
            return -index, 0
        rs.resident_pages(self.residency, 0, index, self._pages)
        return self._fill(index, program, needed, data)

    def _fill(self, index: int, program: bytes, needed: int, data: np.ndarray) -> tuple[int, int]:
        """Copy an image into a resident's pages: it is READY, or gone with its pages free again."""
        seat, device_ns = None, -1
        try:
            seat = self._take_seat(program, needed)
            device_ns = self.pool.fill(seat.number, self._pages[:needed], data, self.bytes_per_s)
        except Exception as error:
            self._failed(program, error)
        with self._lock:
            if seat is None or device_ns < 0:
                if seat is not None:
                    self._keep(seat)
                rs.resident_give(self.residency, 0, index)
                return int(Code.DEVICE_ERROR), 0
            self._seat_of[index] = seat
            rs.resident_ready(self.residency, 0, index)
        return OK, device_ns

    def _take(self, model: int, low: int, high: int, pages: int, number: int) -> int:
        """Pages for an instance of the program with that number, orphans giving way: index, or minus a code."""
        while True:
            with self._lock:
                index = int(rs.resident_take(self.residency, 0, model, low, high, pages))
                if index >= 0:
                    self.residency.residents[0, index]["program"] = number
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
        """Empty the seat of a resident that nobody uses or can use, keep it for the next one, free the pages.

        Only the load thread has residents come and go, so nothing changes while it does this without the lock.
        """
        seat = self._seat_of[index]
        self.pool.clear(seat.number, seat.pages)
        with self._lock:
            del self._seat_of[index]
            self._keep(seat)
            rs.resident_give(self.residency, 0, index)

    def _pages_of(self, program: bytes) -> int:
        return max(1, -(-self.backend.image_bytes(program) // self.pool.page_bytes))

    def _take_seat(self, program: bytes, pages: int) -> Seat:
        """A spare seat, or a new one: where seats are made to size, binding is done once for each."""
        shared = pages <= self.pool.shared_pages
        if not shared and self._spare[program]:
            return self._spare[program].pop()
        number = self._shared.pop() if shared and self._shared else self.pool.reserve(pages)
        return Seat(number, pages, program, self.backend.bind(program, number))

    def _keep(self, seat: Seat) -> None:
        if seat.pages <= self.pool.shared_pages:
            self._shared.append(seat.number)
        else:
            self._spare[seat.program].append(seat)

    def reserve_seats(self, limit: int) -> None:
        """Bind seats that are made to size ahead, at most `limit` for each program, so that no LOAD has to."""
        for program in self.programs:
            needed = self._pages_of(program)
            if needed > self.pool.shared_pages:
                made = [self._take_seat(program, needed) for _ in range(min(limit, self.pool.pages // needed))]
                self._spare[program].extend(made)
