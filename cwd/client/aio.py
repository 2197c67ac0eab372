"""The asyncio client: the same session, driven by the event loop's own readiness events.

libzmq's file descriptor tells of changes only, not of states: whoever reads or writes the socket may use one up. So
after every wake-up and every send the socket is read until it is empty.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from typing import Any

import zmq

from cwd.client.call import Call, app_tag, first_request, slo_to_ns, too_late
from cwd.client.model import Inputs, Model, split_name
from cwd.client.result import Result
from cwd.client.session import Session, State
from cwd.config import client_endpoint, endpoints
from cwd.errors import BadRequest, Code, ControllerLost, DeadlineMissed, SloBelowExecution, UnknownModel
from cwd.net.host_id import host_id
from cwd.net.keys import peer_keys
from cwd.net.probe import handshake_faults
from cwd.net.sockets import connect_dealer
from cwd.units import NS_PER_MS, NS_PER_S

_BOOT = secrets.token_bytes(16)
_now = time.monotonic_ns


class AsyncClient:
    """A connection to a controller, for the coroutines of one event loop; it opens when it is first used.

    Arguments and exceptions are those of `cwd.Client`. A cancelled `infer` is cancelled at the controller too.
    """

    _session_type = Session

    def __init__(self, endpoint: str | None = None, *, name: str = "client", app: str | None = None,
                 slo: str | float | None = None, timeout: float = 10.0, context: zmq.Context | None = None,
                 key: str | os.PathLike[str] | None = None, server_key: str | os.PathLike[str] | None = None) -> None:
        self.endpoint = endpoint or client_endpoint()
        self._endpoints = endpoints(self.endpoint)
        self._keys = peer_keys(key, server_key)
        self._name = name
        self._app = app_tag(app)
        self._slo_ns = 0 if slo is None else slo_to_ns(slo)
        self._timeout_ns = round(timeout * NS_PER_S)
        self._context = context or zmq.Context.instance()
        self._session: Session | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._generation = -1
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0
        self._welcome: list[asyncio.Future[None]] = []
        self._closed = False

    async def infer(self, model: str, inputs: Inputs, slo: str | float | None = None, *, app: str | None = None,
                    version: int = 0) -> Result:
        """One request, answered within `slo` or not at all; see `cwd.Client.infer`."""
        if slo is None and not self._slo_ns:
            raise BadRequest("no SLO: give one with the call, or a default to the client", code=Code.BAD_SLO)
        slo_ns = self._slo_ns if slo is None else slo_to_ns(slo)
        key = split_name(model, version)
        tag = self._app if app is None else app_tag(app)
        asked_ns, deadline_ns, error, before = _now(), 0, None, None
        session = self._session or self._start()
        mark = session.mark
        while True:
            found = session.models.get(key)
            if isinstance(error, UnknownModel) and found is before:
                session.models.pop(key, None)
                found = None
            if found is None:
                # A controller that is away may come back in time; the first connection gets as long as it takes.
                found = await self._lookup(key, deadline_ns, deadline_ns or asked_ns + slo_ns)
            if isinstance(error, UnknownModel) and before is not None and (
                    (found.handle, found.epoch) == (before.handle, before.epoch)):
                raise error
            before = found
            payload, dims = found.prepare(inputs)
            now = _now()
            if not deadline_ns:
                deadline_ns = (asked_ns if session.lost_since(mark) else now) + slo_ns
            if now >= deadline_ns:
                raise error or DeadlineMissed(f"{found.name}: no controller was there before the deadline")
            try:
                return Result(await self._settled(session.infer(now, found, payload, dims, deadline_ns - now, tag)))
            except SloBelowExecution:
                if deadline_ns - now >= slo_ns or isinstance(error, UnknownModel):
                    raise
                raise error or too_late(found.name) from None
            except (ControllerLost, UnknownModel) as again:
                if self._closed:
                    raise
                error = again

    async def lookup(self, model: str, version: int = 0) -> Model:
        """What the controller knows of a model. Raises `UnknownModel`."""
        return await self._lookup(split_name(model, version))

    async def known(self, model: str, version: int = 0, timeout: float | None = None) -> Model:
        """As `lookup`, but without asking again where this connection has an answer; within `timeout` seconds."""
        key = split_name(model, version)
        found = self._session.models.get(key) if self._session is not None else None
        until_ns = 0 if timeout is None else _now() + round(timeout * NS_PER_S)
        return found or await self._lookup(key, until_ns, until_ns)

    @property
    def connected(self) -> bool:
        """Whether a controller has welcomed us, and has not been lost since."""
        return self._session is not None and self._session.state is State.READY

    @property
    def retry_ns(self) -> int:
        """After how long without a controller it helps to ask again; 0 before this client was first used."""
        return self._session.retry_ns if self._session is not None else 0

    @property
    def mark(self) -> tuple[int, int, bool]:
        """What to ask `lost_since` with later."""
        return self._session.mark if self._session is not None else (0, 0, False)

    def lost_since(self, mark: tuple[int, int, bool]) -> bool:
        """Whether a controller that we had before was away at that `mark` or has been since."""
        return self._session is not None and self._session.lost_since(mark)

    @property
    def epoch(self) -> int:
        """The boot epoch of the controller that welcomed us last; 0 before."""
        return self._session.epoch if self._session is not None else 0

    async def models(self) -> dict[str, int]:
        """Every registered model: "name/version" and its handle."""
        found: dict[str, int] = {}
        after, until_ns = 0, _now() + self._timeout_ns
        while True:
            session = await self._ready(until_ns)
            call = await self._settled(session.list(_now(), after, self._timeout_ns))
            after, page = call.answer
            found.update(page)
            if not after:
                return found

    async def connect(self, timeout: float | None = None) -> AsyncClient:
        """Wait until the controller has welcomed us; raises `ControllerLost` after `timeout` seconds."""
        await self._ready(_now() + (self._timeout_ns if timeout is None else round(timeout * NS_PER_S)))
        return self

    async def close(self) -> None:
        """Take leave. Requests in flight end with `ControllerLost`."""
        self._closed = True
        if self._session is None:
            return
        self._session.goodbye(_now())
        if self._generation == self._session.generation:
            self._push()
        if self._timer is not None:
            self._timer.cancel()
        self._shut(linger_ms=200)
        self._wake_waiting()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    # the session and the loop

    def _start(self) -> Session:
        if self._closed:
            raise ControllerLost("the client is closed")
        self._loop = asyncio.get_running_loop()
        self._session = self._session_type(name=self._name, boot=_BOOT, host=host_id(), now_ns=_now(),
                                           endpoints=self._endpoints, first_request=first_request())
        self._turn()
        return self._session

    async def _ready(self, until_ns: int, deadline_ns: int = 0) -> Session:
        session = self._session or self._start()
        # whoever has a deadline does not wait for what is only said to people
        hurry = deadline_ns and (session.epoch or deadline_ns == until_ns)
        until_ns = session.wait_until(until_ns, deadline_ns)
        while session.state is State.CONNECTING and not self._closed:
            waiting: asyncio.Future[None] = self._loop.create_future()  # type: ignore[union-attr]
            self._welcome.append(waiting)
            try:
                async with asyncio.timeout(max(until_ns - _now(), 0) / NS_PER_S):
                    await waiting
            except TimeoutError:
                break
            finally:
                self._welcome.remove(waiting)
        if self._closed:
            raise ControllerLost("the client is closed")
        if session.state is not State.READY:
            error = session.lost_error()
            if isinstance(error, ControllerLost):
                fault = "" if hurry else await asyncio.to_thread(handshake_faults, self._endpoints, self._keys)
                error = ControllerLost(f"{error} (at {self.endpoint}" + f": {fault}" * bool(fault) + ")",
                                       earliest_ns=error.earliest_ns)
            raise error
        return session

    async def _lookup(self, key: tuple[str, int], until_ns: int = 0, deadline_ns: int = 0) -> Model:
        until_ns = until_ns or _now() + self._timeout_ns
        while True:
            session = await self._ready(until_ns, deadline_ns)
            try:
                call = await self._settled(session.lookup(_now(), *key, max(until_ns - _now(), 1)))
                return call.answer
            except ControllerLost:
                if _now() >= session.wait_until(until_ns, deadline_ns):
                    raise

    async def _settled(self, call: Call) -> Call:
        """Send what was asked, and wait until it is settled; raises its error."""
        future: asyncio.Future[None] = self._loop.create_future()  # type: ignore[union-attr]
        call.on_done.append(lambda _call: None if future.done() else future.set_result(None))
        self._turn()
        try:
            await future
        except asyncio.CancelledError:
            if not self._closed:
                self._session.cancel(_now(), call)  # type: ignore[union-attr]
                self._turn()
            raise
        if call.error is not None:
            raise call.error
        return call

    def _turn(self) -> None:
        """Send, take what has come, let time pass, and set the timer for the next."""
        session = self._session
        assert session is not None and self._loop is not None
        if self._closed:
            return
        ticked = False
        while True:
            if session.generation != self._generation:
                self._open()
            self._push()
            took = self._take()
            # A failed send does not notice a connection that has just come about; reading does.
            writable = session.outbox and self._socket.getsockopt(zmq.EVENTS) & zmq.POLLOUT  # type: ignore
            if took or writable or session.generation != self._generation:
                continue
            now = _now()
            if ticked or now < session.next_timer():
                break
            session.tick(now)
            ticked = True
        if session.state is not State.CONNECTING and self._welcome:
            self._wake_waiting()
        self._set_timer(session.next_timer())

    def _take(self) -> bool:
        """Receive until the socket is empty; whether there was anything."""
        session, receive, generation, some = self._session, self._socket.recv, self._generation, False  # type: ignore
        try:
            while session.generation == generation:  # type: ignore[union-attr]
                frames: list[Any] = [receive(zmq.DONTWAIT)]
                while self._socket.getsockopt(zmq.RCVMORE):  # type: ignore[union-attr]
                    frames.append(receive(zmq.DONTWAIT, copy=False).buffer)
                session.receive(frames, _now())  # type: ignore[union-attr]
                some = True
        except zmq.Again:
            pass
        return some

    def _push(self) -> None:
        session, outbox = self._session, self._session.outbox  # type: ignore[union-attr]
        try:
            while outbox:
                self._socket.send_multipart(outbox[0], zmq.DONTWAIT)  # type: ignore[union-attr]
                outbox.popleft()
            if session.greeting:  # type: ignore[union-attr]
                session.greeted(_now())  # type: ignore[union-attr]
        except zmq.Again:
            if session.state is State.READY:  # type: ignore[union-attr]
                session.disconnected(_now())  # type: ignore[union-attr]

    def _open(self) -> None:
        self._shut(linger_ms=0)
        self._socket = connect_dealer(self._context, self._session.endpoint, keys=self._keys)  # type: ignore[union-attr]
        self._generation = self._session.generation  # type: ignore[union-attr]
        self._loop.add_reader(self._socket.getsockopt(zmq.FD), self._turn)  # type: ignore

    def _shut(self, linger_ms: int) -> None:
        if self._socket is not None:
            self._loop.remove_reader(self._socket.getsockopt(zmq.FD))  # type: ignore
            self._socket.close(linger_ms)
            self._socket = None

    def _set_timer(self, at_ns: int) -> None:
        # A timer that is due too early does no harm and is kept: most calls are settled long before theirs.
        if self._timer is not None and self._timer_ns <= at_ns and self._timer_ns > _now():
            return
        if self._timer is not None:
            self._timer.cancel()
        delay_ns = min(max(at_ns - _now(), NS_PER_MS), NS_PER_S)
        self._timer_ns = _now() + delay_ns
        self._timer = self._loop.call_later(delay_ns / NS_PER_S, self._due)  # type: ignore[union-attr]

    def _due(self) -> None:
        # Not to be taken for one that is still to come: loops that count milliseconds are early now and then.
        self._timer = None
        self._turn()

    def _wake_waiting(self) -> None:
        for waiting in self._welcome:
            if not waiting.done():
                waiting.set_result(None)
