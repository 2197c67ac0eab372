"""One DEALER socket and its session, driven by whichever thread waits for an answer.

A thread that waits *leads*: it polls the socket, and settles everybody's calls. Others that wait meanwhile sleep on an
event of their own, and a leader that leaves wakes one of them to lead on. So a single thread sends and polls by itself,
without handing anything to another thread, and several threads share a client safely. While nobody waits, a caretaker
thread looks in from time to time: it answers heartbeats and notices a lost controller.

`_lock` guards the session and the socket; the leader lets go of it only inside `zmq_poll`, and while it is there nobody
else touches the socket: what others send goes to the session's outbox, and an eventfd calls the leader back.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import Any

import zmq

from cwd.client.call import Call, first_request
from cwd.client.session import FOREVER_NS, Session, State
from cwd.config import endpoints
from cwd.errors import ControllerLost
from cwd.net.host_id import host_id
from cwd.net.keys import PeerKeys
from cwd.net.probe import handshake_faults
from cwd.net.sockets import connect_dealer
from cwd.units import NS_PER_MS, NS_PER_S
from cwd.wire.messages import Role

#: after a pause this long, what is in the socket may have come at any time since
_PAUSE_NS = NS_PER_MS
#: the caretaker looks in at least this often
_LOOK_IN_NS = 250 * NS_PER_MS
#: plain integers: pyzmq's flags are enums, and joining two of them takes longer than a send
_DONTWAIT = int(zmq.DONTWAIT)
_SEND_FIRST = int(zmq.DONTWAIT | zmq.SNDMORE)
_POLL_BOTH = int(zmq.POLLIN | zmq.POLLOUT)
_BOOT = secrets.token_bytes(16)

_now = time.monotonic_ns


class Gate:
    """Collects calls as they are settled; add it to their `on_done`. Done while there is one to take."""

    def __init__(self) -> None:
        self.ready: deque[Call] = deque()
        self.event: threading.Event | None = None

    @property
    def done(self) -> bool:
        return bool(self.ready)

    def __call__(self, call: Call) -> None:
        self.ready.append(call)
        if self.event is not None:
            self.event.set()


class Connection:
    """A session and its socket, shared by any number of threads. `Client` and `Admin` are made of it.

    `endpoint` may be several, separated by commas.
    """

    _session_type = Session

    def __init__(self, endpoint: str, name: str, role: Role, context: zmq.Context | None = None,
                 keys: PeerKeys | None = None) -> None:
        self.endpoint = endpoint
        self._keys = keys
        self._context = context or zmq.Context.instance()
        self.session = self._session_type(name=name, boot=_BOOT, host=host_id(), now_ns=_now(), role=role,
                                          endpoints=endpoints(endpoint), first_request=first_request())
        self._lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._leading = False
        self._followers: list[threading.Event] = []
        self._looked_ns = _now()
        self._closed = False
        self._socket: zmq.Socket[bytes] | None = None
        self._items: list[tuple[Any, int]] = []
        self._generation = -1
        try:
            self._open()
        except BaseException:
            os.close(self._wake)
            raise
        self._enough = threading.Event()
        self._caretaker = threading.Thread(target=self._take_care, name="cwd-client", daemon=True)
        self._caretaker.start()

    def close(self) -> None:
        """Say goodbye and let go of the socket; calls in flight end with `ControllerLost`."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self.session.goodbye(_now())
            if not self._leading:
                self._shut()
        self._enough.set()
        os.eventfd_write(self._wake, 1)
        self._wake_all()
        if threading.current_thread() is not self._caretaker:
            self._caretaker.join()

    # calls

    def start(self, method: Any, *args: Any) -> Call:
        """Run `method(now, *args)` of the session, which makes a call, and send what it left in the outbox."""
        with self._lock:
            if self._closed:
                raise ControllerLost("the client is closed")
            call: Call = method(_now(), *args)
            self._push()
        return call

    def do(self, method: Any, *args: Any) -> None:
        """Run `method(now, *args)` of the session, and send what it left in the outbox."""
        with self._lock:
            if not self._closed:
                method(_now(), *args)
                self._push()

    def look(self) -> None:
        """Take what has come, without waiting."""
        with self._lock:
            if not self._closed and not self._leading:
                self._lead(0)

    def gate(self, calls: Iterable[Call]) -> Gate:
        """A gate through which each of `calls` passes once, those that are settled already at once."""
        gate = Gate()
        with self._lock:
            for call in calls:
                if call.done:
                    gate(call)
                else:
                    call.on_done.append(gate)
        return gate

    def watch(self, call: Call, gate: Gate) -> None:
        """Have `call` pass through `gate` when it is settled, at once if it is."""
        with self._lock:
            if call.done:
                gate(call)
            else:
                call.on_done.append(gate)

    def pass_through(self, gate: Gate, what: Any) -> None:
        """Put something else through a gate, so that who waits for it returns: another thread has news for it."""
        with self._lock:
            gate(what)
            if self._leading:
                os.eventfd_write(self._wake, 1)

    def wait(self, target: Call | Gate | None, until_ns: int = FOREVER_NS) -> None:
        """Return when `target` is done (None: when the session is READY or FAILED), or at `until_ns`."""
        session, lock = self.session, self._lock
        lock.acquire()
        try:
            while not (target.done if target is not None else session.state is not State.CONNECTING):
                if self._closed:
                    raise ControllerLost("the client is closed")
                patience_ns = until_ns - _now()
                if patience_ns <= 0:
                    return
                if self._leading:
                    self._follow(target, patience_ns)
                else:
                    self._lead(until_ns)
        finally:
            if self._followers and not self._leading:
                self._followers[0].set()
            lock.release()

    def ready(self, until_ns: int, deadline_ns: int = 0) -> None:
        """Return once requests can be sent; raises `ControllerLost` if that takes too long, or will never be.

        Too long is past `until_ns`, for what has a deadline (0: none) past that: see `Session.wait_until`.
        """
        if self._closed:
            raise ControllerLost("the client is closed")
        if self.session.state is State.READY:
            return
        hurry = deadline_ns and self.session.epoch
        self.wait(None, self.session.wait_until(until_ns, deadline_ns))
        if self.session.state is not State.READY:
            with self._lock:
                error = self.session.lost_error()
            if isinstance(error, ControllerLost):
                # who has a deadline does not wait for what is only said to people
                fault = "" if hurry else handshake_faults(endpoints(self.endpoint), self._keys)
                error = ControllerLost(f"{error} (at {self.endpoint}" + f": {fault}" * bool(fault) + ")",
                                       earliest_ns=error.earliest_ns)
            raise error

    # leading and following; all with the lock held

    def _follow(self, target: Call | Gate | None, patience_ns: int) -> None:
        """Sleep until `target` is done, the leader leaves, or the connection's state changes."""
        event = threading.Event()

        def tell(_call: Call) -> None:
            event.set()

        if isinstance(target, Gate):
            target.event = event
        elif target is not None:
            target.on_done.append(tell)
        self._followers.append(event)
        self._lock.release()
        try:
            event.wait(min(patience_ns / NS_PER_S, threading.TIMEOUT_MAX))
        finally:
            self._lock.acquire()
            self._followers.remove(event)
            if isinstance(target, Call):
                target.on_done.remove(tell)

    def _lead(self, until_ns: int) -> None:
        """One turn: send, wait for messages, take them all, let time pass."""
        session = self.session
        self._push()
        state, began, since = session.state, _now(), self._looked_ns
        timer = session.next_timer()
        patience_ns = (timer if timer < until_ns else until_ns) - began
        if began - since > _PAUSE_NS:
            patience_ns = 0
        items = self._items
        if session.outbox:
            items = [(self._socket, _POLL_BOTH), items[1]]
        self._leading = True
        try:
            self._lock.release()
            woken = zmq.zmq_poll(items, 0 if patience_ns <= 0 else min(patience_ns // NS_PER_MS + 1, 10_000))
        finally:
            try:
                self._regain()
            finally:
                if self._closed:
                    self._shut()
        if self._closed:
            return
        now = _now()
        if woken:
            if len(woken) > 1 or woken[0][0] is not self._socket:
                _drain(self._wake)
            self._take(since if patience_ns <= 0 else now)
        self._looked_ns = now
        if now >= session.next_timer():
            session.tick(now)
        self._push()
        if session.state is not state:
            self._wake_all()

    def _regain(self) -> None:
        """Lead no more, with the lock held again. An interrupt (SIGINT) that comes meanwhile is raised once that is so: else
        the socket would have no owner, and the process would wait for it at its end."""
        interrupt: KeyboardInterrupt | None = None
        while True:
            try:
                self._lock.acquire()
                break
            except KeyboardInterrupt as error:
                interrupt = error
        self._leading = False
        if interrupt is not None:
            raise interrupt

    def _take(self, since_ns: int) -> None:
        """Receive until the socket is empty or nothing is in flight; what is there came at `since_ns` at the earliest."""
        session, generation = self.session, self._generation
        receive, option = self._socket.recv, self._socket.getsockopt  # type: ignore[union-attr]
        try:
            while session.generation == generation:
                head: bytes = receive(_DONTWAIT)
                now_ns = _now()  # a clock sample that is dated before it came would promise too much
                if option(zmq.RCVMORE):
                    frame = receive(_DONTWAIT, copy=False)
                    frames: list[Any] = [head, frame.buffer]
                    while frame.more:
                        frame = receive(_DONTWAIT, copy=False)
                        frames.append(frame.buffer)
                    session.receive(frames, now_ns, since_ns)
                else:
                    session.receive((head,), now_ns, since_ns)
                if not session.calls:
                    break
        except zmq.Again:
            pass

    def _push(self) -> None:
        """Send the outbox, unless a leader is at the socket: then call it back to do so."""
        session = self.session
        if self._leading:
            os.eventfd_write(self._wake, 1)
            return
        if session.generation != self._generation:
            self._open()
        outbox, send = session.outbox, self._socket.send  # type: ignore[union-attr]
        try:
            while outbox:
                frames = outbox[0]
                if len(frames) == 1:
                    send(frames[0], _DONTWAIT)
                else:
                    send(frames[0], _SEND_FIRST)
                    send(frames[1], _DONTWAIT)
                outbox.popleft()
            if session.greeting:
                session.greeted(_now())
        except zmq.Again:
            # Nobody is connected. While CONNECTING that is why we wait; else it is news, and a new socket is due.
            if session.state is State.READY:
                session.disconnected(_now())
                self._open()

    def _open(self) -> None:
        if self._socket is not None:
            self._socket.close(0)
        self._socket = connect_dealer(self._context, self.session.endpoint, keys=self._keys)
        self._items = [(self._socket, zmq.POLLIN), (self._wake, zmq.POLLIN)]
        self._generation = self.session.generation

    def _shut(self) -> None:
        if self._socket is not None:
            if self._generation == self.session.generation:
                self._push()
            self._socket.close()
            self._socket = None

    def _wake_all(self) -> None:
        for event in self._followers:
            event.set()

    def _take_care(self) -> None:
        """The caretaker thread: one turn without waiting, whenever a timer is due and nobody leads."""
        pause_ns = 0
        while not self._enough.wait(pause_ns / NS_PER_S):
            with self._lock:
                if self._closed:
                    return
                if not self._leading:
                    self._lead(0)
                pause_ns = min(max(self.session.next_timer() - _now(), NS_PER_MS), _LOOK_IN_NS)


def _drain(fd: int) -> None:
    try:
        os.eventfd_read(fd)
    except BlockingIOError:
        pass
