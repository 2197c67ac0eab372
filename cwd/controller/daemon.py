"""The controller's process: sets everything up, then turns between the compiled loop and Python's rare work.

One thread. `serve` calls the loop for a slice; between two slices it runs rare messages and tasks for `chunk_ns` at
most, which is measured (`python_max_ns`). SIGTERM drains and ends, a second one ends at once; SIGHUP has the settings
read again. Files, JSON and the log are other processes' (reader.py, carrier.py). A supervisor is told how it goes by this
thread, between two slices, so that it hears nothing more when either of them hangs. With an election a controller begins
as a standby (standby.py), and this here is what it becomes: a leader that stops at once when its time is over.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cwd.controller import loop
from cwd.controller.admin import Admin
from cwd.controller.candidacy import Candidacy
from cwd.controller.config import RELOADABLE, ControllerConfig, default_run_dir, default_state_dir
from cwd.controller.feed import feed_closing
from cwd.controller.gate import Gate
from cwd.controller.host import ADMINS, CLIENTS, RARE_AT, RARE_MESSAGE, SOCKETS, WORKERS, make_host, set_limits
from cwd.controller.outgoing import Outgoing
from cwd.controller.rare import Rare
from cwd.controller.reader import RepositoryReader
from cwd.controller.registry import Registry
from cwd.controller.standby import SCAN_NS, Elected, Standby
from cwd.controller.workers import Workers
from cwd.controller.writer import LogWriter, check_state_dir, new_epoch
from cwd.core.world import Config, make_world
from cwd.errors import Code, CwdError, InvariantError
from cwd.net import wake
from cwd.net.clock import monotonic_ns
from cwd.net.notify import notify, watchdog_period_ns
from cwd.net.priority import set_nice
from cwd.net.sockets import bind, check_endpoint, make_context, make_router
from cwd.net.zmq import message, message_close, message_data, message_size, message_user, messages_close, poll_items
from cwd.settings import on_reload, reloaded, set_log_level
from cwd.units import NS_PER_MS, NS_PER_S
from cwd.wire.messages import FRAME0_BYTES_MAX, Type

LOG = logging.getLogger("cwd.controller")

#: a slice without anything rare to do: only the watchdog and the status line wait for it
IDLE_SLICE_NS = 100 * NS_PER_MS
STATUS_NS = 2 * NS_PER_S
#: what a step of the start may take, beyond the supervisor's own timeout
COMPILE_NS = 900 * NS_PER_S
#: what the end of a drain takes: refusing what is still queued, and the log writer's last records
END_NS = 15 * NS_PER_S
#: how long whoever was told goodbye may take to hang up (a client that nobody waits on looks four times a second), and
#: how often that is looked for
PART_NS, PART_STEP_S = NS_PER_S, 0.005
#: models registered at an election between two beats
FILL_CHUNK = 64
#: a payload that is too large is answered with TOO_LARGE; libzmq hangs up on one that is so many times too large
HANG_UP = 2


def core_config(config: ControllerConfig) -> Config:
    """The core's capacities that follow from the controller's; also what a replay of its log must use."""
    return Config(
        policy=config.policy, objective=config.objective, models_max=config.models_max, programs_max=config.programs_max,
        requests_max=config.requests_max, gpus_max=config.gpus_max, copies_max=config.copies_max,
        actions_max=config.actions_max, clients_max=config.gpus_max + config.clients_max + config.admins_max,
        classes_max=config.classes_max, slo_max_ns=config.slo_max_ns)


class Controller:
    """Everything of one controller; `serve` runs it to its end. Raises `CwdError` for what an operator can cause.

    `elected`: what it was as a standby. Then it binds when its tables hold what the repository does.
    """

    def __init__(self, config: ControllerConfig, load: Callable[[], ControllerConfig] | None = None,
                 elected: Elected | None = None) -> None:
        self.config = config
        self._load = load or (lambda: config)
        run_dir, state_dir = Path(config.run_dir or default_run_dir()), Path(config.state_dir or default_state_dir())
        check_state_dir(run_dir)
        check_state_dir(state_dir)
        self._elected = elected
        self._candidacy = elected.candidacy if elected is not None else None
        self.epoch = _epoch(elected, state_dir)
        set_nice(config.nice)  # before libzmq makes its thread, which inherits it
        self._context = make_context()
        self._sockets: list[Any] = []
        self._gate: Gate | None = None
        self._open(bound=elected is None)
        assert (CLIENTS, WORKERS, ADMINS, SOCKETS) == (0, 1, 2, len(self._sockets))
        self._timer_fd, self._wake_fd = wake.make_timerfd(), wake.signal_pipe()
        core = core_config(config)
        self.world = make_world(core)
        self.log = LogWriter(config, core, state_dir, self.epoch)
        items = poll_items(self._sockets, [self._timer_fd, self._wake_fd])
        if self._gate is not None:
            items = np.concatenate([items, self._gate.poll_item()])
        self.host = make_host(config, self.epoch, items, self.log.ring)
        outgoing = self._outgoing = Outgoing(self.host, self._sockets)
        self.registry = Registry(self.host, self.world, core, config.page_bytes)
        self.workers = Workers(self.host, self.world, self.registry, outgoing, config.prepare_ns, core.lane_depth)
        self._reader = elected.reader if elected is not None else (
            RepositoryReader(config.repository) if config.repository else None)
        #: exported: how long Python kept the loop waiting, and how often
        self.python: dict[str, int] = {"slices": 0, "chunks": 0, "python_max_ns": 0, "python_cpu_max_ns": 0,
                                       "python_recent_max_ns": 0, "python_ns": 0, "tasks": 0}
        self.admin = Admin(self.host, self.world, self.registry, self.workers, outgoing, self._reader, self.log,
                           self.python, self.stop)
        if self._gate is not None:
            self._gate.attach(self.host, outgoing)
            self.admin.keys = self._gate.facts
        self._gate_first = False
        self._rare = Rare(config, self.host, self.registry, self.workers, self.admin, outgoing, self.log, self._gate)
        self._tasks: deque[Iterator[None]] = deque()
        self._rare_at = 0
        self._stops = 0
        self._scanned = self._reader is None or elected is not None
        self._ready = self._hangup = self._fenced = False
        self._drain_until_ns = 0
        self._status_ns = self._watchdog_ns = 0
        self._watchdog_period_ns = watchdog_period_ns()
        #: at the last status: (time, models, requests, answered in time, answered at all)
        self._before = (monotonic_ns(), 0, 0, 0, 0)
        if elected is not None:
            self.admin.election = elected.candidacy.facts
            self._fill(elected)

    def _open(self, bound: bool) -> None:
        """Make the three sockets, and bind them if that is to be now."""
        config = self.config
        try:
            if config.keys:
                self._gate = Gate(self._context, config)
            for name, role in (("clients", "client"), ("workers", "worker"), ("admin", "admin")):
                check_endpoint(config.endpoint(name), open_bind=config.insecure or self._gate is not None)
                self._sockets.append(make_router(
                    self._context, secure=partial(self._gate.secure, role=role) if self._gate is not None else None,
                    message_bytes_max=max(HANG_UP * config.payload_max_bytes, FRAME0_BYTES_MAX)))
                if bound:
                    bind(self._sockets[-1], config.endpoint(name))
        except CwdError:
            if self._gate is not None:
                self._gate.close()
            self._context.destroy(0)
            raise

    def _fill(self, elected: Elected) -> None:
        """Register what the standby knows, and only then let peers in: nobody is told that a model is not there."""
        for number, change in enumerate(elected.catalogue.entries()):
            self._take_over(*change)
            if number % FILL_CHUNK == 0:
                elected.candidacy.attend(monotonic_ns())
        self.host.state[0]["valid_until_ns"] = elected.candidacy.until_ns
        for socket, name in zip(self._sockets, ("clients", "workers", "admin"), strict=True):
            bind(socket, self.config.endpoint(name))
        if self._reader is not None:
            # what has changed since the standby's last look, while the first requests come
            if elected.asked:
                self.admin.waiting[elected.asked] = self._change_answer
            try:
                self.admin.waiting[self._reader.ask("changes")] = self._change_answer
            except CwdError as error:  # it has just ended; what is known is served, and the next question starts another
                LOG.error("the repository was not looked at again: %s", error.text)

    def _take_over(self, kind: str, value: Any) -> None:
        """One difference of the repository; what cannot be served is left out, with a line in the log."""
        try:
            if kind == "program":
                self.workers.program_changed(self.registry.add_program(value))
            elif kind == "model":
                self.admin.add_model(value)
            elif (model := self.registry.find(*value)) is not None:
                self.registry.names.use(model) if kind == "uses" else self.registry.remove_model(model)
        except CwdError as error:
            LOG.warning("skipped: %s", error.text)

    def _change_answer(self, told: dict[str, Any]) -> None:
        """One answer to the look at the repository after the election."""
        assert self._elected is not None
        if "error" in told:
            LOG.error("%s", told["error"])
        for change in self._elected.catalogue.take(told):
            self._take_over(*change)

    def stop(self, *_: Any) -> None:
        """Drain and end; called again, end at once. Also the handler of SIGTERM and SIGINT."""
        self._stops += 1

    def hang_up(self, *_: Any) -> None:
        """Read the settings again. Also the handler of SIGHUP."""
        self._hangup = True

    def serve(self) -> None:
        """Serve until stopped. Raises `InvariantError` if the core finds itself broken."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.stop)
        on_reload(self.hang_up)
        if self._elected is not None:
            self._stops += self._elected.stops()  # what came before these handlers were there
        if self.config.cpu >= 0:
            os.sched_setaffinity(0, {self.config.cpu})
        if self._reader is not None and self._elected is None:
            self.admin.waiting[self._reader.ask("scan")] = self._scan_answer
        gc.collect()
        gc.freeze()
        gc.disable()
        try:
            while not self._ended():
                self.step()
        finally:
            self._close()

    def step(self) -> None:
        """One slice of the loop and one chunk of Python."""
        state = self.host.state[0]
        now_ns = monotonic_ns()
        busy = bool(self._tasks) or self._rare_at < state["rare_used"] or (self._gate is not None and self._gate.busy)
        asking = self._reader is not None and self._reader.pending > 0
        until_ns = now_ns if busy else now_ns + (self.config.slice_ns if asking or self._stops else IDLE_SLICE_NS)
        why = loop.run(self.host, self.world, until_ns)
        begin_ns, begin_cpu_ns = monotonic_ns(), time.thread_time_ns()
        if why == loop.CLOSED:
            raise InvariantError("a socket or the poll set is closed")
        if self._candidacy is not None:
            self._lead(self._candidacy, begin_ns)
        if self.world.counters[0]["broken"] != 0:
            raise InvariantError(f"the core is broken: {self.world.counters[0]['broken']}")
        if why == loop.SIGNAL:
            wake.drain(self._wake_fd)
        worked = self._chunk(begin_ns + self.config.chunk_ns)
        if self._hangup:
            self._reload()
        self.workers.release_drained()
        self._watch(begin_ns)
        spent_ns = monotonic_ns() - begin_ns
        python = self.python
        python["slices"] += 1
        python["python_ns"] += spent_ns
        if worked:
            state["fed"] = 1
            python["chunks"] += 1
        python["python_max_ns"] = max(python["python_max_ns"], spent_ns)
        # what the thread itself used: a busy machine may have put it aside in between
        cpu_ns = time.thread_time_ns() - begin_cpu_ns
        python["python_cpu_max_ns"] = max(python["python_cpu_max_ns"], cpu_ns)
        python["python_recent_max_ns"] = max(python["python_recent_max_ns"], cpu_ns)

    def _lead(self, candidacy: Candidacy, now_ns: int) -> None:
        """Beat, and hear whether this controller still leads. Raises `CwdError` if not, or if its time is over."""
        candidacy.attend(now_ns)
        self.host.state[0]["valid_until_ns"] = candidacy.until_ns
        if monotonic_ns() >= candidacy.until_ns:
            self._fenced = True
            why = candidacy.lost or "the lease was not renewed in time" + f" ({candidacy.trouble})" * bool(candidacy.trouble)
            raise CwdError(f"no longer the leader, ends at once: {why}")

    def _chunk(self, until_ns: int) -> bool:
        """Rare work until `until_ns`, at least one piece of it if there is any: whether there was."""
        worked = False
        for _ in self._pieces():
            worked = True
            if monotonic_ns() >= until_ns:
                break
        return worked

    def _pieces(self) -> Iterator[None]:
        """Everything that waits for Python, a small piece at a time. The gate and the rest take turns in being first, so
        that neither a flood of handshakes nor one of messages keeps the other waiting."""
        if self._gate is None:
            yield from self._messages()
            return
        self._gate_first = not self._gate_first
        for pieces in (self._gate.pieces, self._messages) if self._gate_first else (self._messages, self._gate.pieces):
            yield from pieces()

    def _messages(self) -> Iterator[None]:
        """What the loop handed up: news first, then tasks, then the repository."""
        state = self.host.state[0]
        while self._rare_at < state["rare_used"]:
            self._take_rare()
            yield
        while self._tasks:
            task = self._tasks.popleft()
            self.python["tasks"] += 1
            try:
                next(task)
            except StopIteration:
                pass
            else:
                self._tasks.append(task)
            yield
        if self._reader is not None and self._reader.pending:
            for told in self._reader.answers():
                self.admin.answered(told)
                yield

    def _take_rare(self) -> None:
        state = self.host.state[0]
        at, self._rare_at = self._rare_at, self._rare_at + 1
        row = self.host.rare[at]
        task = None
        if row["kind"] == RARE_MESSAGE:
            held = message(self.host.messages, RARE_AT + at)
            frame = ctypes.string_at(message_data(held), message_size(held))
            user = message_user(held) if self._gate is not None else b""
            message_close(held)
            task = self._rare.message(row, frame, user)
        else:
            task = self._rare.news(row.copy())
        if task is not None:
            self._tasks.append(task)
        if self._rare_at == state["rare_used"]:
            self._rare_at = state["rare_used"] = 0

    def _scan_answer(self, told: dict[str, Any]) -> None:
        """One answer to the scan of the repository at the start."""
        try:
            if "program" in told:
                self.registry.add_program(told["program"])
            elif "model" in told:
                self.admin.add_model(told["model"])
            elif "bad" in told:
                LOG.warning("skipped: %s", told["bad"])
            elif "error" in told:
                LOG.error("%s", told["error"])
        except CwdError as error:
            LOG.warning("skipped: %s", error.text)
        if "gone" in told:  # whoever starts us must know: there is no repository, or reading it ends the reader
            raise CwdError(told["error"], code=Code(told["code"]))
        if "end" in told or "error" in told:
            self._scanned = True

    def _watch(self, now_ns: int) -> None:
        """READY once the repository has been read; the watchdog and the status line now and then."""
        if self._scanned and not self._ready:
            self._ready = True
            notify(ready=True, status=self._summary(now_ns))
            LOG.info("serving %d models on %s", len(self.registry.models), self.config.endpoint("clients"))
        if now_ns >= self._status_ns:
            self._status_ns = now_ns + STATUS_NS
            self.log.stats(self.host.state[0], self.python)
            if self._ready:
                notify(status=self._summary(now_ns))
            elif self._before[1] != (models := len(self.registry.models)):
                self._before = (now_ns, models, 0, 0, 0)
                notify(status=f"reading the repository: {models} models", extend_ns=SCAN_NS)
        if self._ready and self._watchdog_period_ns and now_ns >= self._watchdog_ns:
            self._watchdog_ns = now_ns + self._watchdog_period_ns
            notify(watchdog=True)

    def _reload(self) -> None:
        """Take over what the settings now say, as far as that is possible while serving."""
        self._hangup = False
        if self._ready:
            notify(reloading=True)
        config = self.config = reloaded(self.config, self._load, RELOADABLE, LOG)
        set_log_level(config.log_level)
        if self._gate is not None:
            self._gate.hurry()
        set_limits(self.host, config)
        self.workers.prepare_ns = config.prepare_ns
        if self._ready:
            notify(ready=True)

    def _summary(self, now_ns: int) -> str:
        """What there is, how much came since the last summary, and how much of that was answered in time."""
        state = self.host.state[0]
        before_ns, _, requests, in_time, answered = self._before
        models, replies = len(self.registry.models), int(state["replies"] + state["refused"])
        self._before = (now_ns, models, int(state["infer"]), int(state["replies_ok"]), replies)
        rate = (state["infer"] - requests) * NS_PER_S / max(now_ns - before_ns, 1)
        share = f", {(state['replies_ok'] - in_time) / (replies - answered):.1%} in time" if replies > answered else ""
        role = "leader: " if self._elected is not None else ""
        return (f"{role}{'draining: ' if state['draining'] else ''}{models} models, {len(self.workers.by_slot)} GPUs, "
                f"{rate:.0f} requests/s{share}, {state['in_flight']} in flight")

    def _ended(self) -> bool:
        """Whether a stop has come to its end."""
        if self._stops == 0:
            return False
        state = self.host.state[0]
        if self._drain_until_ns == 0:
            self._drain_until_ns = monotonic_ns() + self.config.drain_ns
            state["draining"] = 1
            notify(stopping=True, status="draining", extend_ns=self.config.drain_ns + END_NS)
            LOG.info("draining: %d requests in flight", state["in_flight"])
        return bool(self._stops > 1 or state["in_flight"] == 0 or monotonic_ns() > self._drain_until_ns)

    def _close(self) -> None:
        """Refuse what is still queued, say goodbye to everyone and give everything back. Who leads no longer says nothing."""
        if self.world.counters[0]["broken"] == 0 and not self._fenced:
            now_ns = monotonic_ns()
            feed_closing(self.host, self.world, now_ns)
            loop.run(self.host, self.world, now_ns)
        self._part()
        messages_close(self.host.messages)
        if self._gate is not None:
            self._gate.close()
        for socket in self._sockets:
            socket.close(0 if self._fenced else None)
        self._context.term()
        if self._candidacy is not None:
            self._candidacy.resign()
            self._candidacy.close()
        self.log.close()
        if self._reader is not None:
            self._reader.close()
        os.close(self._timer_fd)

    def _part(self) -> None:
        """Say goodbye to everyone until they have hung up, so that nobody loses an answer.

        libzmq throws away what a DEALER that waits for connections (ZMQ_IMMEDIATE) has received and not yet handed out
        when it learns that the connection has ended. Who has hung up has read all that came before the goodbye.
        """
        left = self.host.peers["key"][self.host.peers["role"] != 0].tolist()
        until_ns = monotonic_ns() + PART_NS
        if self._candidacy is not None:
            until_ns = min(until_ns, self._candidacy.until_ns)
        while not self._fenced and (left := [
                key for key in left if self._outgoing.send(key, Type.GOODBYE, code=0, text="the controller stops")]):
            if self._stops > 1 or monotonic_ns() > until_ns:
                break
            time.sleep(PART_STEP_S)


def _epoch(elected: Elected | None, state_dir: Path) -> int:
    """The boot epoch: of the election, or above every one that has left a log here."""
    if elected is None:
        return new_epoch(state_dir, time.time_ns())
    assert elected.candidacy.led is not None
    return elected.candidacy.led.epoch


def serve(config: ControllerConfig, load: Callable[[], ControllerConfig] | None = None) -> None:
    """Run a controller in this process until it is told to stop. `load` reads the settings again, for SIGHUP."""
    from cwd.controller.warm import warm

    notify(status="loading kernels", extend_ns=COMPILE_NS)
    warm()
    if not config.etcd:
        Controller(config, load).serve()
        return
    elected = Standby(config, load).run()
    if elected is None:
        return
    try:
        controller = Controller(elected.config, load, elected)
    except BaseException:
        elected.close()
        raise
    controller.serve()
