"""The client's side of CWDP/1 as a state machine: frames and the time go in, frames and settled calls come out.

Knows no socket, thread or clock. The shells (blocking, aio) own the socket and do, in this order, on every turn:

1. if `generation` changed, close the socket and open a new one to `endpoint` (a session never outlives its connection);
2. send everything in `outbox`; if it is then empty and `greeting` holds, call `greeted(now)`;
3. wait for a message until `next_timer()` at most; pass each to `receive(frames, now)`;
4. when nothing is left to read, call `tick(now)`. The order matters: silence counts only once the socket is empty.

States: CONNECTING (HELLO sent; no request may be sent), READY (WELCOME came), FAILED (the controller does not speak our
version; final). Where there are several endpoints, `cwd.net.route` says which is next. Whatever ends a connection settles
every call in flight with `ControllerLost`: none is ever left over. A call that was settled stays so; answers to it are
dropped.
"""

from __future__ import annotations

import enum
import heapq
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cwd import errors
from cwd.client import hot
from cwd.client.call import Call, known_code, refusal, request_error, sentence
from cwd.client.clock import ClockOffset
from cwd.client.model import Dims, Model
from cwd.errors import SENTENCES, Code, ControllerLost, CwdError, RemoteProtocolError, RequestError
from cwd.net.route import PAUSE_NS, Route
from cwd.units import NS_PER_MS, NS_PER_S, format_duration
from cwd.wire.codec import encode
from cwd.wire.messages import VERSION_MINOR, Role, Type

FOREVER_NS = 1 << 62
#: how long after its deadline a request without an answer is given up: the answer may still be under way
GRACE_NS = 20 * NS_PER_MS
#: how long one attempt to be welcomed may take, at first and at most
ATTEMPT_NS = NS_PER_S
ATTEMPT_MAX_NS = 8 * NS_PER_S


class State(enum.Enum):
    CONNECTING = "connecting"
    READY = "ready"
    FAILED = "failed"


class Session:
    """One client's (or admin's) connection to a controller, over as many reconnections as it takes.

    `endpoints` are those of the controller and its standbys; what they mean is the shell's affair.
    """

    def __init__(self, *, name: str, boot: bytes, host: bytes, now_ns: int, role: Role = Role.CLIENT,
                 endpoints: Sequence[str] = ("",), grace_ns: int = GRACE_NS, attempt_ns: int = ATTEMPT_NS,
                 first_request: int = 1) -> None:
        self._hello = {"minor": VERSION_MINOR, "role": int(role), "name": name, "boot": boot, "host": host, "caps": {}}
        self._host = host
        self._grace_ns = grace_ns
        self._attempt_ns = self._attempt_first_ns = attempt_ns
        self._route = Route(endpoints)
        #: when the present attempt to be welcomed is over
        self._until_ns = 0

        self.state = State.CONNECTING
        #: counts connections; the shell opens a new socket whenever it changes
        self.generation = 0
        #: HELLO is in the outbox, or has just left it
        self.greeting = False
        #: multipart messages to send, oldest first
        self.outbox: deque[Sequence[Any]] = deque()
        #: calls in flight, by request id
        self.calls: dict[int, Call] = {}
        #: how many of them are no requests, and so cost no credit
        self._asking = 0
        #: models looked up on this connection, by (name, asked version)
        self.models: dict[tuple[str, int], Model] = {}
        self.clock = ClockOffset()
        #: the last thing that went wrong with the connection, for people; "" if nothing did
        self.trouble = ""
        self.failure: CwdError | None = None
        #: messages that were dropped: undecodable, unexpected, or answers to calls settled before
        self.strays = 0
        self.epoch = 0
        self.credits = 0
        self.payload_bytes_max = 0

        self._next_id = first_request
        self._expiry: list[tuple[int, Call]] = []
        self._seq = 0
        self._lost_ns = self._heartbeat_ns = 0
        self._heard_ns = self._sent_ns = self._asked_ns = self._hello_ns = self._greeted_ns = 0
        self._beat_ns = FOREVER_NS
        self._connect(now_ns)

    # what people ask for

    def infer(self, now_ns: int, model: Model, payload: Any, dims: Dims, slo_ns: int, app: int = 0) -> Call:
        """Send one request. Raises `Refused`/`BadRequest` for what need not be sent, `ControllerLost` unless READY.

        That, too, if it was another controller that described `model`: here its handle may be some other model's.
        """
        if self.state is not State.READY:
            raise self.lost_error()
        if model.epoch != self.epoch and model.epoch:
            raise self._lost(f"{model.name}: the controller that described it was lost")
        if len(self.calls) - self._asking >= self.credits:
            raise errors.CreditExceeded(f"{model.name}: {self.credits} requests are in flight already")
        size = memoryview(payload).nbytes
        if size > self.payload_bytes_max:
            raise errors.BadRequest(f"{model.name}: inputs of {size} bytes, and the controller takes at most "
                                    f"{self.payload_bytes_max}", code=Code.TOO_LARGE)
        number = self._next_id
        self._next_id = number + 1
        call = Call(number, Type.INFER, model.name, now_ns, now_ns + slo_ns)
        call.model = model
        call.dims = dims
        call.slo_ns = slo_ns
        # A deadline on the controller's clock counts the time in socket buffers; a loose estimate would do harm.
        clock = self.clock
        deadline_ns = call.deadline_ns + clock.offset_ns if 0 <= clock.bound_ns(now_ns) * 10 <= slo_ns else 0
        head = hot.encode_infer(number, model.handle, slo_ns, max(deadline_ns, 0), app, dims)
        self.calls[number] = call
        self._expire_later(call)
        self._sent_ns = now_ns
        self.outbox.append((head, payload))
        return call

    def cancel(self, now_ns: int, call: Call) -> None:
        """Ask that `call` be dropped; it is settled by the answer (CANCELLED, or its result if that came first)."""
        if not call.done and call.id in self.calls:
            self._send(now_ns, Type.CANCEL, request=call.id)

    def lookup(self, now_ns: int, name: str, version: int, patience_ns: int) -> Call:
        """Ask for a model; `answer` will be a `Model`, kept in `models` as well."""
        call = self._ask(now_ns, Type.LOOKUP, name, patience_ns)
        call.payload = (name, version)
        self._send(now_ns, Type.LOOKUP, request=call.id, name=name, version=version)
        return call

    def list(self, now_ns: int, after: int, patience_ns: int) -> Call:
        """Ask for a page of the registry; `answer` will be (next, {"name/version": handle})."""
        call = self._ask(now_ns, Type.LIST, "list of models", patience_ns)
        self._send(now_ns, Type.LIST, request=call.id, after=after)
        return call

    def admin(self, now_ns: int, verb: str, args: Mapping[str, Any], patience_ns: int) -> Call:
        """Send an admin command; `answer` will be the result's map. `payload` collects the results of progress."""
        call = self._ask(now_ns, Type.ADMIN, verb, patience_ns)
        call.payload = deque()
        self._send(now_ns, Type.ADMIN, request=call.id, verb=verb, args=dict(args))
        return call

    def goodbye(self, now_ns: int) -> None:
        """Take leave; the shell sends what is in `outbox` and closes."""
        if self.state is State.READY:
            self._send(now_ns, Type.GOODBYE, code=0, text="")
        self._settle_all(now_ns, lambda: ControllerLost("the client was closed"))

    def lost_error(self) -> CwdError:
        """Why nothing can be sent now."""
        if self.failure is not None:
            return self.failure
        why = f": {self.trouble}" if self.trouble else ""
        return self._lost(f"there is no connection to the controller{why}")

    @property
    def endpoint(self) -> str:
        """Where the shell's socket has to be connected to."""
        return self._route.endpoint

    @property
    def retry_ns(self) -> int:
        """After how long without a controller it helps to ask again: one will have been looked for everywhere."""
        return self._route.round_ns() if self._route.several else self._attempt_first_ns

    @property
    def mark(self) -> tuple[int, int, bool]:
        """The connection as it is now (epoch, generation, whether it is READY): what to ask `lost_since` with later."""
        return self.epoch, self.generation, self.state is State.READY

    def lost_since(self, mark: tuple[int, int, bool]) -> bool:
        """Whether a controller that we had before was away at that `mark` or has been since."""
        epoch, generation, there = mark
        return bool(epoch) and not (there and generation == self.generation)

    def wait_until(self, until_ns: int, deadline_ns: int) -> int:
        """How long something with a deadline (0: none) waits for a controller, which else has time until `until_ns`.

        The first connection gets as long as it takes; after that nobody waits beyond his own deadline.
        """
        return min(until_ns, deadline_ns) if deadline_ns and self.epoch else until_ns

    # what the shell feeds

    def receive(self, frames: Sequence[Any], now_ns: int, since_ns: int | None = None) -> None:
        """Take one multipart message: frame 0 as bytes, payloads as any buffers. Never raises for what a peer sent.

        A shell that did not look for a while passes `since_ns`, the earliest time at which the message may have come:
        an answer is late only if it must have been.
        """
        self._heard_ns = max(self._heard_ns, now_ns)
        self._asked_ns = 0
        reply = hot.decode_reply(frames[0])
        if reply is not None:
            self._on_reply(reply, frames, now_ns, now_ns if since_ns is None else since_ns)
            return
        try:
            kind, fields = hot.decode_any(frames[0])
            if isinstance(fields, hot.Reply):
                self._on_reply(fields, frames, now_ns, now_ns if since_ns is None else since_ns)
            elif kind == Type.WELCOME:
                self._on_welcome(now_ns, fields)
            elif kind == Type.HEARTBEAT:
                self._on_heartbeat(now_ns, fields)
            elif kind == Type.ERROR:
                self._on_error(now_ns, fields)
            elif kind == Type.MODEL:
                self._on_model(now_ns, fields)
            elif kind == Type.MODELS:
                self._settle_id(now_ns, Type.LIST, fields["request"], (fields["next"], fields["models"]))
            elif kind == Type.ADMIN_REPLY:
                self._on_admin_reply(now_ns, fields)
            elif kind == Type.GOODBYE:
                self._reconnect(now_ns, f"the controller took leave: {fields['text'] or SENTENCES[Code.OK]}")
            else:
                self.strays += 1
        except RemoteProtocolError as error:
            self.strays += 1
            self.trouble = str(error)

    def greeted(self, now_ns: int) -> None:
        """HELLO has been sent, so there is a connection."""
        self.greeting = False
        self._greeted_ns = now_ns
        if self._route.several:
            self._until_ns = now_ns + self._route.patience_ns()

    def disconnected(self, now_ns: int) -> None:
        """The socket has no connection to send on any more."""
        if self.state is State.READY:
            self._reconnect(now_ns, "the connection broke")

    def tick(self, now_ns: int) -> None:
        """Do what time alone causes: overdue calls, heartbeats, silence, another attempt to connect."""
        expiry = self._expiry
        while expiry and (expiry[0][1].done or expiry[0][0] <= now_ns):
            call = heapq.heappop(expiry)[1]
            if not call.done:
                self._settle(call, now_ns, error=self._overdue(call))
        if self.state is State.CONNECTING:
            if now_ns >= self._until_ns:
                self._attempt_ns = min(2 * self._attempt_ns, ATTEMPT_MAX_NS)
                self._route.go_on()
                self._connect(now_ns)
        elif self.state is State.READY:
            if self._asked_ns and now_ns - self._asked_ns > self._lost_ns:
                self._reconnect(now_ns, f"it was silent for {format_duration(now_ns - self._asked_ns)}")
            elif now_ns >= self._beat_ns:
                self._beat(now_ns)

    def next_timer(self) -> int:
        """When `tick` has something to do at the latest; our clock."""
        expiry = self._expiry
        while expiry and expiry[0][1].done:
            heapq.heappop(expiry)
        first = expiry[0][0] if expiry else FOREVER_NS
        if self.state is State.READY:
            return min(first, self._beat_ns)
        if self.state is State.CONNECTING:
            return min(first, self._until_ns)
        return first

    # the connection

    def _connect(self, now_ns: int) -> None:
        self.state = State.CONNECTING
        self.generation += 1
        self.outbox.clear()
        self.models.clear()
        self._asked_ns = 0
        self._hello_ns = self._greeted_ns = now_ns
        self._until_ns = now_ns + (self._route.patience_ns() if self._route.several else self._attempt_ns)
        self._sent_ns = now_ns
        self.outbox.append((encode(Type.HELLO, **self._hello, now_ns=now_ns),))
        self.greeting = True

    def _reconnect(self, now_ns: int, why: str, *, stay: bool = False) -> None:
        """Begin again, at the next endpoint unless there is reason to `stay`."""
        self.trouble = why
        self._settle_all(now_ns, lambda: self._lost(f"the connection to the controller was lost: {why}"))
        self._attempt_ns = self._attempt_first_ns
        if not stay:
            self._route.go_on()
        self._connect(now_ns)

    def _turned_away(self, now_ns: int, why: str) -> None:
        """Somebody answered, but will not be our controller: with several endpoints there is no point in waiting."""
        self.strays += 1
        self.trouble = why
        if self._route.several:
            self._until_ns = min(self._until_ns, now_ns + PAUSE_NS)

    def _lost(self, text: str) -> ControllerLost:
        return ControllerLost(text, earliest_ns=self.retry_ns)

    def _on_welcome(self, now_ns: int, fields: Mapping[str, Any]) -> None:
        if self.state is not State.CONNECTING:
            self.strays += 1
            return
        if not self._route.takes(fields["epoch"], now_ns - self._greeted_ns):
            self._turned_away(now_ns, "it is a former one: another has been elected since")
            return
        self.greeting = False
        self.epoch = fields["epoch"]
        self.credits = fields["credits"]
        self.payload_bytes_max = fields["payload_bytes_max"]
        self._heartbeat_ns = max(fields["heartbeat_ms"], 1) * NS_PER_MS
        self._lost_ns = max(fields["lost_ms"], 1) * NS_PER_MS
        self.clock = ClockOffset()
        if fields["host"] == self._host:
            self.clock.same_host()
        else:
            self.clock.sample(now_ns, self._hello_ns, fields["now_ns"])
        # Between two clocks the first estimate is a poor one, since HELLO may have waited for the connection.
        self._beat_ns = now_ns + (self._heartbeat_ns if self.clock.bound_ns(now_ns) == 0 else 0)
        self._attempt_ns = self._attempt_first_ns
        self.trouble = ""
        self.state = State.READY

    def _on_heartbeat(self, now_ns: int, fields: Mapping[str, Any]) -> None:
        if fields["reply"] == 0:
            self._send(now_ns, Type.HEARTBEAT, seq=self._count(), reply=1, sent_ns=now_ns, echo_ns=fields["sent_ns"],
                       hold_ns=0, loop_max_ns=0, queued=len(self.calls))
        elif not self.clock.known or self.clock.bound_ns(now_ns) > 0:
            self.clock.sample(now_ns, fields["echo_ns"], fields["sent_ns"], fields["hold_ns"])

    def _beat(self, now_ns: int) -> None:
        """Ask for a sign of life where the line was quiet, and for a clock sample where the clocks differ."""
        self._beat_ns = now_ns + self._heartbeat_ns
        quiet = now_ns - min(self._heard_ns, self._sent_ns) >= self._heartbeat_ns
        if quiet or self.clock.bound_ns(now_ns) != 0:
            self._asked_ns = self._asked_ns or now_ns
            self._send(now_ns, Type.HEARTBEAT, seq=self._count(), reply=0, sent_ns=now_ns, echo_ns=0, hold_ns=0,
                       loop_max_ns=0, queued=len(self.calls))

    def _count(self) -> int:
        self._seq = (self._seq + 1) & 0xFFFFFFFF
        return self._seq

    def _on_error(self, now_ns: int, fields: Mapping[str, Any]) -> None:
        code, text = fields["code"], fields["text"] or sentence(fields["code"])
        if code == Code.UNSUPPORTED_VERSION:
            self.failure = RemoteProtocolError(text, code=Code.UNSUPPORTED_VERSION)
            self.state = State.FAILED
            self._settle_all(now_ns, self.lost_error)
        elif code == Code.NOT_INTRODUCED:
            # A controller that does not know us: it was restarted, or gave us up. Nothing sent to it was executed.
            if self.state is State.READY:
                self._reconnect(now_ns, "the controller was restarted", stay=True)
        elif self.state is State.CONNECTING:
            self._turned_away(now_ns, text)
        elif fields["re_id"] in self.calls:
            call = self.calls[fields["re_id"]]
            said = text if text.startswith(call.what) else f"{call.what}: {text}"
            self._settle(call, now_ns, error=request_error(code, said))
        else:
            self.strays += 1
            self.trouble = text

    # answers

    def _on_reply(self, reply: hot.Reply, frames: Sequence[Any], now_ns: int, since_ns: int) -> None:
        call = self.calls.get(reply.request)
        if call is None or call.kind is not Type.INFER:
            self.strays += 1
            return
        if reply.status != 0:
            self._settle(call, now_ns, error=refusal(call, reply))
        elif len(frames) != 2:
            self._settle(call, now_ns, error=RequestError(f"{call.what}: the answer came without its outputs",
                                                          code=Code.MALFORMED))
        elif since_ns > call.deadline_ns:
            late = format_duration(since_ns - call.deadline_ns)
            self._settle(call, now_ns, error=errors.DeadlineMissed(
                f"{call.what}: the answer came {late} after the deadline of {format_duration(call.slo_ns)}"))
        else:
            call.payload = frames[1]
            self._settle(call, now_ns, answer=reply)

    def _on_model(self, now_ns: int, fields: Mapping[str, Any]) -> None:
        call = self.calls.get(fields["request"])
        if call is None or call.kind is not Type.LOOKUP:
            self.strays += 1
            return
        try:
            model = Model(fields["model"], fields["manifest"], self.epoch)
        except RemoteProtocolError as error:
            self._settle(call, now_ns, error=error)
            return
        self.models[call.payload] = model
        self._settle(call, now_ns, answer=model)

    def _on_admin_reply(self, now_ns: int, fields: Mapping[str, Any]) -> None:
        call = self.calls.get(fields["request"])
        if call is None or call.kind is not Type.ADMIN:
            self.strays += 1
        elif not fields["done"]:
            call.payload.append(fields["result"])
        elif fields["code"] != 0:
            text = fields["result"].get("error") or sentence(fields["code"])
            self._settle(call, now_ns, error=CwdError(str(text), code=known_code(fields["code"])))
        else:
            self._settle(call, now_ns, answer=fields["result"])

    # calls

    def _ask(self, now_ns: int, kind: Type, what: str, patience_ns: int) -> Call:
        if self.state is not State.READY:
            raise self.lost_error()
        call = Call(self._next_id, kind, what, now_ns, now_ns + patience_ns)
        call.slo_ns = patience_ns
        self._next_id += 1
        self.calls[call.id] = call
        self._asking += 1
        self._expire_later(call)
        return call

    def _send(self, now_ns: int, kind: Type, **fields: Any) -> None:
        self._sent_ns = now_ns
        self.outbox.append((encode(kind, **fields),))

    def _expire_later(self, call: Call) -> None:
        expiry = self._expiry
        heapq.heappush(expiry, (call.deadline_ns + self._grace_ns, call))
        # Answered calls stay in the heap until they come to its top; without this a long SLO would let it grow.
        if len(expiry) > 2 * len(self.calls) + 64:
            expiry[:] = [entry for entry in expiry if not entry[1].done]
            heapq.heapify(expiry)

    def _overdue(self, call: Call) -> CwdError:
        patience = format_duration(call.slo_ns)
        if call.kind is Type.INFER:
            return errors.DeadlineMissed(f"{call.what}: no answer came within {patience}")
        return ControllerLost(f"{call.what}: the controller did not answer within {patience}")

    def _settle_id(self, now_ns: int, kind: Type, number: int, answer: Any) -> None:
        call = self.calls.get(number)
        if call is None or call.kind is not kind:
            self.strays += 1
        else:
            self._settle(call, now_ns, answer=answer)

    def _settle(self, call: Call, now_ns: int, *, answer: Any = None, error: CwdError | None = None) -> None:
        del self.calls[call.id]
        if call.kind is not Type.INFER:
            self._asking -= 1
        call.answer = answer
        call.error = error
        call.done_ns = now_ns
        call.done = True
        for tell in tuple(call.on_done):
            tell(call)

    def _settle_all(self, now_ns: int, reason: Callable[[], CwdError]) -> None:
        for call in list(self.calls.values()):
            self._settle(call, now_ns, error=reason())
