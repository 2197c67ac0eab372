"""`cwd worker`: from options to a running worker, and back down again on a signal.

READY is said when the kernels are compiled, the images staged, the programs warm, and the controller has said WELCOME.
The first SIGTERM or SIGINT ends it in order: what runs is finished, GOODBYE is said, exit 0. The second ends it at
once. SIGHUP has it read its settings again. A supervisor hears how each of that goes (supervision.py).
"""

from __future__ import annotations

import gc
import logging
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from cwd.config import endpoints
from cwd.errors import Code, CwdError, RepositoryError
from cwd.models.repository import Entry, Repository
from cwd.net.keys import peer_keys
from cwd.net.notify import notify
from cwd.net.probe import handshake_faults
from cwd.net.wake import drain, signal_pipe
from cwd.settings import on_reload, reloaded, set_log_level
from cwd.units import format_duration, format_size
from cwd.worker.options import RELOADABLE, WorkerOptions
from cwd.worker.supervision import BUILD_NS, STAGE_NS, Supervision

if TYPE_CHECKING:
    from cwd.worker.backends.base import Backend
    from cwd.worker.host import DeviceWorker
    from cwd.worker.host_store import HostStore

LOG = logging.getLogger("cwd.worker")

#: Seats bound ahead for each program; more are bound by the LOADs that need them.
_SEATS_AHEAD = 256
#: After so long without a controller a line says what is being waited for.
_PATIENCE_S = 2.0
_FDS_PER_GPU = 6


def main(options: WorkerOptions) -> int:
    """Run a worker until a signal; the exit code. A fault that a user can cause is one line on stderr."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s: %(message)s")
    try:
        return run_worker(options)
    except CwdError as error:
        sys.stderr.write(f"cwd worker: {error}\n")
        return 1


def run_worker(options: WorkerOptions, load: Callable[[], WorkerOptions] | None = None) -> int:
    """As `main`, but raises `CwdError`. To be called in the main thread. `load` reads the options again, for SIGHUP."""
    if options.pin_core >= 0 and options.pin_core not in os.sched_getaffinity(0):
        raise CwdError(f"cannot pin to core {options.pin_core}: this process may use "
                       f"{', '.join(map(str, sorted(os.sched_getaffinity(0))))}")
    signals = _Signals(options, load or (lambda: options))
    try:
        return _run_emulated(options, signals) if options.kind == "emulated" else _run_device(options, signals)
    finally:
        signals.restore()


class _Signals:
    """SIGTERM and SIGINT (`stop`), and SIGHUP; `fd` becomes readable."""

    def __init__(self, options: WorkerOptions, load: Callable[[], WorkerOptions]) -> None:
        self.stop = False
        self.fd = signal_pipe()
        self._options, self._load = options, load
        self._hangup = False
        self._old = {number: signal.signal(number, self._on) for number in (signal.SIGTERM, signal.SIGINT)}
        self._old[signal.SIGHUP] = on_reload(self._on_hangup)

    def _on(self, number: int, frame: object) -> None:
        if self.stop:
            os._exit(128 + number)
        self.stop = True

    def _on_hangup(self, number: int, frame: object) -> None:
        self._hangup = True

    def taken(self, ready: bool) -> None:
        """After `fd` was readable: empty it, and reload if that was asked for."""
        drain(self.fd)
        if not self._hangup:
            return
        self._hangup = False
        if ready:
            notify(reloading=True)
        self._options = reloaded(self._options, self._load, RELOADABLE, LOG)
        set_log_level(self._options.log_level)
        if ready:
            notify(ready=True)

    def wake_every(self, period_ns: int) -> None:
        """Have `fd` become readable so often (0: not)."""
        self._old.setdefault(signal.SIGALRM, signal.signal(signal.SIGALRM, lambda *_: None))
        signal.setitimer(signal.ITIMER_REAL, period_ns / 1e9, period_ns / 1e9)

    def restore(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        os.close(self.fd)


def _run_emulated(options: WorkerOptions, signals: _Signals) -> int:
    from cwd.worker.emulated_host import EmulatedWorker
    from cwd.worker.warm import warm_emulated

    _want_files(options.gpus * _FDS_PER_GPU + 64)
    if options.pin_core >= 0:
        os.sched_setaffinity(0, {options.pin_core})
    LOG.info("%d emulated GPUs: loading kernels", options.gpus)
    notify(status="loading kernels", extend_ns=BUILD_NS)
    warm_emulated()
    worker = EmulatedWorker(options, signals.fd)
    _quiet()
    # the loop is this thread's own, so if it is stuck nobody tells the supervisor anything
    supervision = Supervision(worker.summary, worker.executed, lambda now_ns: "")
    signals.wake_every(supervision.period_ns)
    ready, begin = False, time.monotonic()
    try:
        while not signals.stop and not worker.drained:
            if not worker.step():
                signals.taken(ready)
            supervision.look()
            if not ready and worker.open_count == options.gpus:
                ready = True
                supervision.ready()
                LOG.info("ready: %d emulated GPUs at %s", options.gpus, worker.sessions[0].route.endpoint)
            elif not ready and begin and time.monotonic() - begin > _PATIENCE_S:
                begin = 0.0
                _say_waiting(options)
    finally:
        notify(stopping=True)
        worker.close()
    return 0


def _run_device(options: WorkerOptions, signals: _Signals) -> int:
    from cwd.worker.host import DeviceWorker
    from cwd.worker.host_store import HostStore
    from cwd.worker.warm import warm_device

    begin = time.monotonic()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    repository = Repository(options.repo)
    LOG.info("loading kernels and torch")
    notify(status="loading kernels and torch", extend_ns=BUILD_NS)
    warm_device()
    backend = _backend(options, repository)
    store = HostStore(repository, options.host_bytes, backend.host_memory)
    worker = DeviceWorker(options, backend, store)
    if options.preload:
        _preload(worker, store, signals)
    if signals.stop:
        return 0
    LOG.info("%d models (%s) staged and %d programs built in %s; pool of %d pages of %s", len(store.images),
             format_size(store.bytes_used), len(backend.programs()), format_duration(int((time.monotonic() - begin) * 1e9)),
             options.pages, format_size(options.page_bytes))
    _quiet()
    worker.start()
    try:
        _serve(worker, signals, options)
    finally:
        notify(stopping=True)
        if worker.failure is None:
            worker.stop()
        elif worker.failure is worker.device.lost:
            worker.stop(str(worker.failure), int(Code.DEVICE_ERROR))
    if isinstance(worker.failure, CwdError):
        raise worker.failure
    return 0 if worker.failure is None else 1


def _backend(options: WorkerOptions, repository: Repository) -> Backend:
    """What runs the programs. torch is imported here, and CUDA only where it is asked for."""
    if options.kind == "cpu":
        from cwd.worker.backends.cpu import CpuBackend

        return CpuBackend(repository)
    from cwd.worker.backends.cuda import CudaGpu
    from cwd.worker.backends.paged import PagedBackend

    return PagedBackend(repository, CudaGpu(options.index, options.host_bytes), window_bytes=options.window_bytes,
                        slot_bytes=options.slot_bytes, depth=options.copies_max,
                        mapped=options.mapped)


def _serve(worker: DeviceWorker, signals: _Signals, options: WorkerOptions) -> None:
    """Say READY when all is warm and the controller has said WELCOME; return when there is a signal, a thread has died, or
    it was drained."""
    ready, patient_until = False, time.monotonic() + _PATIENCE_S
    supervision = worker.supervision()
    while not signals.stop and worker.failure is None and not worker.session.drained:
        wait_s = supervision.wait_s
        if not ready and patient_until:
            left_s = max(patient_until - time.monotonic(), 0)
            wait_s = left_s if wait_s is None else min(wait_s, left_s)
        found, _, _ = select.select([signals.fd, worker.events_fd], [], [], wait_s)
        if worker.events_fd in found:
            drain(worker.events_fd)
        if signals.fd in found:
            signals.taken(ready)
        supervision.look()
        if worker.ready and not ready:
            ready = True
            supervision.ready()
            LOG.info("ready: %s at %s", worker.backend.device, worker.session.route.endpoint)
        elif not ready and patient_until and time.monotonic() >= patient_until:
            patient_until = 0.0
            _say_waiting(options)


def _preload(worker: DeviceWorker, store: HostStore, signals: _Signals) -> None:
    """Build every program of the repository and stage every image that it can run, as far as there is room."""
    built: dict[bytes, bool] = {}

    def usable(entry: Entry) -> bool:
        program = entry.manifest.program_hash
        if signals.stop:
            return False
        if program not in built:
            notify(status=f"building the program of {entry.manifest.key}", extend_ns=BUILD_NS)
            try:
                worker.device.adopt_program(program)
                built[program] = True
            except RepositoryError as error:
                LOG.warning("%s: %s", entry.manifest.key, error)
                built[program] = False
        return built[program]

    with worker.backend.thread():
        for fault in store.stage_all(usable, _progress("staging")):
            LOG.warning("%s", fault)
        notify(status="reserving seats", extend_ns=BUILD_NS)
        worker.device.reserve_seats(_SEATS_AHEAD)


def _progress(what: str) -> Callable[[int, int, str], None]:
    """A line in the log now and then: at most one a second, and none for what is done at once."""
    shown = time.monotonic()

    def show(done: int, total: int, name: str) -> None:
        nonlocal shown
        if time.monotonic() - shown >= 1:
            shown = time.monotonic()
            LOG.info("%s %d/%d %s", what, done, total, name)
            notify(status=f"{what} {done}/{total} {name}", extend_ns=STAGE_NS)

    return show


def _say_waiting(options: WorkerOptions) -> None:
    fault = handshake_faults(endpoints(options.endpoint), peer_keys(options.key or None, options.server_key or None))
    LOG.info("waiting for the controller at %s%s", options.endpoint, f": {fault}" * bool(fault))


def _quiet() -> None:
    """What lives now lives for ever: no garbage collection may stop an execution."""
    gc.collect()
    gc.freeze()
    gc.disable()


def _want_files(count: int) -> None:
    """Raise the soft limit of open files, or say in one line that it does not suffice."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        if hard != resource.RLIM_INFINITY and hard < count:
            raise CwdError(f"{count} open files are needed, this user may have {hard} (ulimit -n)")
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
