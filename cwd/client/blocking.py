"""The blocking client: numpy in and out, one call or many in flight, a typed exception where there is no answer."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from typing import Any

import zmq

from cwd.client.call import Call, app_tag, slo_to_ns, too_late
from cwd.client.connection import Connection
from cwd.client.model import Inputs, Model, split_name
from cwd.client.result import Result
from cwd.client.session import FOREVER_NS
from cwd.config import client_endpoint
from cwd.errors import BadRequest, Code, ControllerLost, DeadlineMissed, RequestError, SloBelowExecution, UnknownModel
from cwd.net.keys import peer_keys
from cwd.units import NS_PER_S
from cwd.wire.messages import Role

_now = time.monotonic_ns


class Pending:
    """A request in flight. It moves forward while some thread waits on its client, and by itself 4 times a second."""

    __slots__ = ("_connection", "_call")

    def __init__(self, connection: Connection, call: Call) -> None:
        self._connection = connection
        self._call = call

    def done(self) -> bool:
        """Whether the request is settled, after a look at the socket."""
        if not self._call.done:
            self._connection.look()
        return self._call.done

    def result(self, timeout: float | None = None) -> Result:
        """The answer; waits for it. Raises what `Client.infer` raises, and `TimeoutError` after `timeout` seconds."""
        error = self.exception(timeout)
        if error is not None:
            raise error
        return Result(self._call)

    def exception(self, timeout: float | None = None) -> Exception | None:
        """Why there is no answer, None if there is one; waits until that is known, as `result` does."""
        call = self._call
        if not call.done:
            self._connection.wait(call, FOREVER_NS if timeout is None else _now() + round(timeout * NS_PER_S))
            if not call.done:
                raise TimeoutError(f"{call.what}: no answer within {timeout} s")
        return call.error

    def cancel(self) -> None:
        """Ask the controller to drop the request: `result` then raises `Cancelled`, unless it had begun to execute."""
        self._connection.do(self._connection.session.cancel, self._call)

    def __repr__(self) -> str:
        call = self._call
        return f"<request {call.id:016x} to {call.what}: {'in flight' if not call.done else call.error or 'answered'}>"


class Client:
    """A connection to a controller; any number of threads may share it.

    `slo` is for how long an answer is worth something: a text with its unit (`"100ms"`), or seconds as a number. The
    one given here is the default of every call. `app` tags an application's requests. The connection is made, and
    made again after a loss, in the background; `timeout` bounds, in seconds, what has no deadline of its own. `endpoint`
    may be a list, "tcp://a:5571,tcp://b:5571": of a controller and its standbys, the one that serves is found. Where the
    controller asks for keys, `key` and `server_key` are the files of ours and of its public one ($CWD_KEY and
    $CWD_SERVER_KEY where they are not given; "" for none).
    """

    _connection_type = Connection

    def __init__(self, endpoint: str | None = None, *, name: str = "client", app: str | None = None,
                 slo: str | float | None = None, timeout: float = 10.0, context: zmq.Context | None = None,
                 key: str | os.PathLike[str] | None = None, server_key: str | os.PathLike[str] | None = None) -> None:
        self._app = app_tag(app)
        self._slo_ns = 0 if slo is None else slo_to_ns(slo)
        self._timeout_ns = round(timeout * NS_PER_S)
        self._connection = self._connection_type(endpoint or client_endpoint(), name, Role.CLIENT, context,
                                                 peer_keys(key, server_key))
        self._session = self._connection.session

    @property
    def endpoint(self) -> str:
        return self._connection.endpoint

    def infer(self, model: str, inputs: Inputs, slo: str | float | None = None, *, app: str | None = None,
              version: int = 0) -> Result:
        """One request, answered within `slo` or not at all.

        `model` is a name, or "name/version". `inputs` maps input names to arrays (without a batch axis); for a model
        with one input, the array itself. A connection lost on the way is made again and the request repeated, within
        its SLO. Raises a `RequestError`: a `Refused`, `DeadlineMissed`, `BadRequest`, `ExecutionFailed` or
        `ControllerLost`.
        """
        slo_ns = asked_ns = self._slo(slo)
        connection, session = self._connection, self._session
        key = split_name(model, version)
        tag = self._app if app is None else app_tag(app)
        found = session.models.get(key)
        if found is None:
            found, slo_ns = self._first_lookup(key, slo_ns)
        payload, dims = found.prepare(inputs)
        call = None
        try:
            call = connection.start(session.infer, found, payload, dims, slo_ns, tag)
            connection.wait(call)
            if call.error is not None:
                raise call.error
        except SloBelowExecution:
            if slo_ns >= asked_ns:
                raise
            raise too_late(found.name) from None
        except (ControllerLost, UnknownModel) as error:
            deadline_ns = call.deadline_ns if call is not None else _now() + slo_ns
            call = self._again(key, found, inputs, deadline_ns, tag, error)
        return Result(call)

    def _again(self, key: tuple[str, int], before: Model, inputs: Inputs, deadline_ns: int, tag: int,
               error: RequestError) -> Call:
        """Repeat a request until its deadline: the connection was lost, or its model was replaced since we looked."""
        session, connection = self._session, self._connection
        while True:
            if isinstance(error, UnknownModel) and session.models.get(key) is before:
                session.models.pop(key, None)  # another thread may have done so since
            found = self._lookup(key, deadline_ns, deadline_ns)
            if isinstance(error, UnknownModel) and (found.handle, found.epoch) == (before.handle, before.epoch):
                raise error
            before = found
            payload, dims = found.prepare(inputs)
            slo_ns = deadline_ns - _now()
            if slo_ns <= 0:
                raise error
            try:
                call = connection.start(session.infer, found, payload, dims, slo_ns, tag)
                connection.wait(call)
                if call.error is None:
                    return call
                raise call.error
            except SloBelowExecution:
                if isinstance(error, UnknownModel):
                    raise
                raise error from None  # what was left of the SLO was too short, which says nothing of it
            except (ControllerLost, UnknownModel) as again:
                error = again

    def submit(self, model: str, inputs: Inputs, slo: str | float | None = None, *, app: str | None = None,
               version: int = 0) -> Pending:
        """Send a request and return at once; see `infer`. A lost connection ends it (`ControllerLost`)."""
        slo_ns = self._slo(slo)
        key = split_name(model, version)
        found = self._session.models.get(key)
        if found is None:
            found, slo_ns = self._first_lookup(key, slo_ns)
        payload, dims = found.prepare(inputs)
        tag = self._app if app is None else app_tag(app)
        call = self._connection.start(self._session.infer, found, payload, dims, slo_ns, tag)
        return Pending(self._connection, call)

    def lookup(self, model: str, version: int = 0) -> Model:
        """What the controller knows of a model: inputs, outputs, size classes. Raises `UnknownModel`."""
        return self._lookup(split_name(model, version))

    def models(self) -> dict[str, int]:
        """Every registered model: "name/version" and its handle."""
        found: dict[str, int] = {}
        after, until_ns = 0, _now() + self._timeout_ns
        while True:
            self._connection.ready(until_ns)
            after, page = self._ask(self._session.list, after, until_ns)
            found.update(page)
            if not after:
                return found

    @property
    def epoch(self) -> int:
        """The boot epoch of the controller that welcomed us last; 0 before."""
        return self._session.epoch

    def connect(self, timeout: float | None = None) -> Client:
        """Wait until the controller has welcomed us; raises `ControllerLost` after `timeout` seconds."""
        self._connection.ready(_now() + (self._timeout_ns if timeout is None else round(timeout * NS_PER_S)))
        return self

    def close(self) -> None:
        """Take leave. Requests in flight end with `ControllerLost`."""
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _slo(self, slo: str | float | None) -> int:
        if slo is not None:
            return slo_to_ns(slo)
        if not self._slo_ns:
            raise BadRequest("no SLO: give one with the call, or a default to the client", code=Code.BAD_SLO)
        return self._slo_ns

    def _first_lookup(self, key: tuple[str, int], slo_ns: int) -> tuple[Model, int]:
        """A model that this connection does not know yet, and what is then left of the SLO.

        That is all of it, unless a controller that we had before was away: it may have come back in time.
        """
        session = self._session
        deadline_ns, mark = _now() + slo_ns, session.mark
        found = self._lookup(key, 0, deadline_ns)
        if session.lost_since(mark):
            slo_ns = deadline_ns - _now()
            if slo_ns <= 0:
                raise DeadlineMissed(f"{found.name}: no controller was there before the deadline")
        return found, slo_ns

    def _lookup(self, key: tuple[str, int], until_ns: int = 0, deadline_ns: int = 0) -> Model:
        """`deadline_ns` bounds how long a controller is waited for, `until_ns` (0: the client's timeout) all of it."""
        until_ns = until_ns or _now() + self._timeout_ns
        while True:
            self._connection.ready(until_ns, deadline_ns)
            try:
                return self._ask(self._session.lookup, *key, until_ns)
            except ControllerLost:
                if _now() >= self._session.wait_until(until_ns, deadline_ns):
                    raise

    def _ask(self, method: Any, *args: Any) -> Any:
        """A call that is not a request; the last argument says until when."""
        call = self._connection.start(method, *args[:-1], max(args[-1] - _now(), 1))
        self._connection.wait(call)
        if call.error is not None:
            raise call.error
        return call.answer


def as_completed(pendings: Iterable[Pending], timeout: float | None = None) -> Iterator[Pending]:
    """Yield requests of one client as they are settled. Raises `TimeoutError` when `timeout` seconds have passed."""
    waiting: dict[Call, Pending] = {pending._call: pending for pending in pendings}
    connections = {id(pending._connection): pending._connection for pending in waiting.values()}
    if len(connections) > 1:
        raise RequestError("as_completed takes requests of one client", code=Code.BAD_ARGUMENT)
    until_ns = FOREVER_NS if timeout is None else _now() + round(timeout * NS_PER_S)
    for connection in connections.values():
        gate = connection.gate(waiting)
        try:
            while waiting:
                connection.wait(gate, until_ns)
                if not gate.ready:
                    raise TimeoutError(f"{len(waiting)} requests are not settled after {timeout} s")
                yield waiting.pop(gate.ready.popleft())
        finally:  # without the lock, since this may run wherever the generator is forgotten: one list operation each
            for call in waiting:
                if gate in call.on_done:
                    call.on_done.remove(gate)
