"""A worker with one real device: its threads, and the rare half of its connection.

Threads: the io thread (io.py, nopython for ever, except for rare messages, which are dealt with here), the exec thread
and the load thread (lanes.py); they meet at the exchange (exchange.py). Whoever constructs this keeps its own thread to itself.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import zmq

from cwd.errors import Code
from cwd.net.clock import monotonic_ns
from cwd.net.keys import peer_keys
from cwd.net.notify import watchdog_period_ns
from cwd.net.priority import set_nice
from cwd.net.sockets import make_context
from cwd.net.wake import eventfd_signal, make_eventfd, poll_fds, set_timer_slack
from cwd.net.zmq import message, message_data, message_size, messages_close
from cwd.wire.messages import Type
from cwd.worker import agenda as ag
from cwd.worker import entries as en
from cwd.worker import exchange as ex
from cwd.worker import io as io_
from cwd.worker import lanes as la
from cwd.worker.backends.base import Backend
from cwd.worker.device import Device, Done
from cwd.worker.hello import caps_of
from cwd.worker.host_store import HostStore
from cwd.worker.options import WorkerOptions
from cwd.worker.pulse import Pulse
from cwd.worker.session import Session
from cwd.worker.supervision import STATUS_NS, Supervision

LOG = logging.getLogger("cwd.worker")

TYPE_EXEC, TYPE_PROFILE, TYPE_PREPARE = int(Type.EXEC), int(Type.PROFILE), int(Type.PREPARE)
TYPE_LOAD = int(Type.LOAD)

#: Sleeping threads wake this precisely, not within the kernel's 50 us.
_TIMER_SLACK_NS = 1_000
#: The io thread, and libzmq's that it starts, go before executions on the same core.
_IO_NICE = -10


class DeviceWorker:
    """One device behind one connection. Construct, `start`, and in the end `stop`."""

    def __init__(self, options: WorkerOptions, backend: Backend, store: HostStore) -> None:
        self.options, self.backend = options, backend
        self.exchange = exchange = ex.make_exchange(options.agenda_max, options.rows_max, options.pages)
        self.exec_lane = la.make_lane(exchange, exchange.exec_queue, stages=backend.slots > 1)
        self.load_lane = la.make_lane(exchange, exchange.load_queue)
        self.io = io_.Io(exchange=exchange, items=poll_fds(-1, int(exchange.fds[0])))
        self.device = Device(backend, store, backend.make_pool(options.pages, options.page_bytes), exchange.entries,
                             rows_max=options.rows_max, bytes_per_s=options.load_bytes_per_s)
        self.context = make_context()
        #: the io thread's, with the exchange's lock: it closes and makes sockets
        self.session = Session(self.context, options.endpoint, options.name, exchange.link, self._caps,
                               peer_keys(options.key or None, options.server_key or None))
        #: PREPAREs that wait in the exec lane, by (session, action)
        self._prepares: dict[tuple[int, int], dict[str, Any]] = {}
        #: whether the controller has welcomed this worker; which lanes are warm; what ended a thread. `events_fd` says: look
        self.welcomed = False
        self._warm: list[la.Lane] = []
        self.failure: BaseException | None = None
        self.events_fd = make_eventfd()
        self._threads = [
            threading.Thread(target=self._guarded, args=(run,), name=f"cwd-{run.__name__.strip('_')}", daemon=True)
            for run in (self._io, self._exec, self._load)]

    @property
    def ready(self) -> bool:
        """Whether whatever comes now is done at once: the threads are warm and the controller knows of it."""
        return self.welcomed and len(self._warm) == 2

    def summary(self) -> str:
        """What it has, for people."""
        counts = self.exchange.counts[0]
        return (f"{self.backend.device}: {self.device.models} models in {self.options.pages - int(counts['pages_free'])} "
                f"of {self.options.pages} pages{'' if self.session.open else ', without a controller'}")

    def supervision(self) -> Supervision:
        """For the thread that constructed this, once it has started."""
        pulse = Pulse(self.exec_lane, self.load_lane, watchdog_period_ns() or STATUS_NS)
        return Supervision(self.summary, lambda: int(self.exchange.counts["executed"][0]),
                           lambda now_ns: pulse.stuck(now_ns, self.device.waits))

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, text: str = "the worker was told to stop", code: int = 0) -> None:
        """Finish what runs, end the threads, say goodbye with the reason, give everything back."""
        for lane in (self.exec_lane, self.load_lane):
            ex.queue_stop(lane.queue)
        for thread in self._threads[1:]:
            thread.join()
        ex.exchange_stop(self.exchange)
        self._threads[0].join()
        self.session.goodbye(text, code)
        self.session.close(linger_ms=200)
        messages_close(self.exchange.entries.frames)
        messages_close(self.exchange.entries.outputs)
        self.context.destroy(200)
        for fd in (self.events_fd, *ex.exchange_fds(self.exchange)):
            os.close(fd)
        self.device.pool.close()

    def _guarded(self, run: Callable[[], None]) -> None:
        """A thread that dies takes the worker with it: half a worker is worse than none."""
        try:
            run()
        except BaseException as error:
            self.failure = self.failure or error
            LOG.critical("%s ended: %s: %s", threading.current_thread().name, type(error).__name__, error)
            eventfd_signal(self.events_fd)

    # the exec and the load thread

    def _exec(self) -> None:
        if self.options.pin_core >= 0:
            os.sched_setaffinity(0, {self.options.pin_core})
        set_timer_slack(_TIMER_SLACK_NS)
        with self.backend.thread():
            self.backend.warm()
            self._work(self.exec_lane, self.options.spin_ns, self._exec_one, self.device.leave)

    def _load(self) -> None:
        set_timer_slack(_TIMER_SLACK_NS)
        with self.backend.load_thread():
            self._work(self.load_lane, 0, self._load_one, lambda: None)

    def _work(self, lane: la.Lane, spin_ns: int, one: Callable[[np.ndarray, bool], Done],
              after: Callable[[], None]) -> None:
        action, done, write, device = lane.action, lane.done, la.DONE_FIELDS.pack_into, self.device
        self._warm.append(lane)
        eventfd_signal(self.events_fd)
        while (what := la.lane_wait(lane, spin_ns)) != la.STOP:
            if what == la.STAGE:
                self._stage_ahead()
                continue
            write(done, 0, *one(action, what == la.STAGED))
            la.lane_answer(lane)
            after()
            if device.lost is not None:
                raise device.lost

    def _stage_ahead(self) -> None:
        model, _, entry, batch, size_class, rows = ag.EXEC_FIELDS.unpack_from(self.exec_lane.ahead, ag.EXEC_AT)
        self.device.stage_ahead(model, entry, batch, size_class, rows)

    def _meanwhile(self) -> None:
        """While the device executes: what has come that is next?"""
        if la.lane_ahead(self.exec_lane):
            self._stage_ahead()

    def _exec_one(self, action: np.ndarray, staged: bool) -> Done:
        model, kind, entry, batch, size_class, rows = ag.EXEC_FIELDS.unpack_from(action, ag.EXEC_AT)
        if kind == TYPE_EXEC:
            return self.device.execute(model, entry, batch, size_class, rows, staged, self._meanwhile)
        if kind == TYPE_PROFILE:
            return self.device.profile(action[0])
        session = int(action["session"][0])
        fields = self._prepares.pop((session, int(action["action"][0])), None)
        return Done(int(Code.ABANDONED), 0, 0) if fields is None else self.device.prepare(session, fields)

    def _load_one(self, action: np.ndarray, staged: bool) -> Done:
        return self.device.load(action[0]) if action["kind"][0] == TYPE_LOAD else self.device.unload(action[0])

    # the io thread, which has the exchange's lock whenever it is here

    def _io(self) -> None:
        set_nice(_IO_NICE)
        set_timer_slack(_TIMER_SLACK_NS)
        ex.exchange_lock(self.exchange)
        try:
            self._connect_again(self.session.connect)
            while (what := io_.io_run(self.io)) != io_.STOP:
                if what == io_.RARE:
                    self._rare()
                elif what == io_.GREET:
                    self._connect_again(self.session.say_hello)
                else:
                    self._connect_again(lambda: self.session.reconnect("the controller is silent or gone"))
        finally:
            ex.exchange_unlock(self.exchange)

    def _connect_again(self, connect: Callable[[], None]) -> None:
        """Run something that may change the socket; the poll set follows."""
        connect()
        self.io.items["fd"][io_.SOCKET] = self.session.socket.getsockopt(zmq.FD)

    def _rare(self) -> None:
        entries = self.exchange.entries
        entry = int(entries.counts[1])
        first = message(entries.frames, entry * (1 + self.options.rows_max))
        frame = ctypes.string_at(message_data(first), message_size(first))
        fields: dict[str, Any] | None = None

        def take_in() -> None:
            nonlocal fields
            fields = self.session.welcome(frame)

        self._connect_again(take_in)
        if self.session.drained:
            eventfd_signal(self.events_fd)
        if fields is not None and fields["type"] == Type.PREPARE and self.session.open:
            self._prepare(fields)
            return
        en.entry_close(entries, entry)
        if fields is not None and fields["type"] == Type.WELCOME:
            session = int(self.exchange.link["session"][0])
            self.device.begin_session(session)
            self._prepares = {key: value for key, value in self._prepares.items() if key[0] == session}
            self.exchange.counts["pages_free"] = self.device.pages_free()
            ex.exchange_session(self.exchange)
            self.welcomed = True
            eventfd_signal(self.events_fd)

    def _prepare(self, fields: dict[str, Any]) -> None:
        """A PREPARE waits its turn in the exec lane like any other action."""
        session = int(self.exchange.link["session"][0])
        action = ag.make_action(kind=TYPE_PREPARE, received_ns=monotonic_ns(), session=session)
        for name in ("action", "epoch"):
            action[name] = np.uint64(fields[name]).astype(np.int64)
        for name in ("earliest_ns", "latest_ns", "expected_ns"):
            action[name] = fields[name]
        while len(self._prepares) > 2 * self.options.agenda_max:  # more than can wait: the oldest were refused
            self._prepares.pop(next(iter(self._prepares)), None)
        self._prepares[session, int(action["action"][0])] = fields
        self.exchange.action[:] = action
        ex.exchange_queue(self.exchange)

    def _caps(self) -> dict[str, Any]:
        options = self.options
        return caps_of(kind=self.backend.kind, device=self.backend.device, pages=options.pages,
                       page_bytes=options.page_bytes, agenda_max=options.agenda_max, prepares=True,
                       programs=self.backend.programs(), images=list(self.device.store.images),
                       resident=self.device.resident())
