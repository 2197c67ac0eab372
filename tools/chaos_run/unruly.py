"""Clients that do not behave, in phases: one reads its answers late, one sends more than it may. Both keep ledgers.

They drive a session over a socket of their own, so as not to read when anybody else would, and to send what a client
knows to be above its credits. Out of their phases they keep the connection and ask nothing.
"""

from __future__ import annotations

import argparse
import time

import zmq

from cwd.client.call import Call, first_request
from cwd.client.model import Model
from cwd.client.session import Session, State
from cwd.errors import CwdError
from cwd.net.host_id import host_id
from cwd.net.keys import peer_keys
from cwd.net.sockets import connect_dealer
from cwd.wire.messages import Role
from tools.chaos_run.clock import own_ns
from tools.chaos_run.ledger import OK, Writer
from tools.chaos_run.models import Asker
from tools.chaos_run.native import parser, written_session

#: the slow one reads nothing for so long at a time: longer than its SLO, and not so long that it is taken for dead
SLEEPS_S = 1.0
#: it asks for answers of 64 KiB; the one that floods asks for the smallest
MODELS = {"slow": "big", "flood": "same-000"}
#: so many of the one that floods come at once: more than a client may have in flight, and more than its rate lets it
BURSTS = {"slow": 1, "flood": 150}
_now = time.monotonic_ns


class Shell:
    """A session and its socket; nothing is sent or read but by `push` and `take`."""

    def __init__(self, session: Session, key: str, server_key: str) -> None:
        self.session = session
        self._keys = peer_keys(key, server_key)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._socket: zmq.Socket[bytes] | None = None
        self._generation = -1

    def push(self) -> None:
        session = self.session
        if session.generation != self._generation or self._socket is None:
            if self._socket is not None:
                self._socket.close(0)
            self._socket = connect_dealer(self._context, session.endpoint, keys=self._keys)
            self._generation = session.generation
        try:
            while session.outbox:
                self._socket.send_multipart(session.outbox[0], zmq.DONTWAIT)
                session.outbox.popleft()
            if session.greeting:
                session.greeted(_now())
        except zmq.Again:
            # a full queue is not a lost connection: the session finds that out by silence
            pass

    def take(self, wait_s: float = 0.0) -> None:
        """Read what is there, after waiting for it as long as that; let time pass."""
        self.push()
        assert self._socket is not None
        self._socket.poll(round(max(wait_s, 0) * 1000))
        try:
            while self.session.generation == self._generation:
                head, *payload = self._socket.recv_multipart(zmq.DONTWAIT)
                self.session.receive([head, *payload], _now())
        except zmq.Again:
            pass
        self.session.tick(_now())
        self.push()

    def close(self) -> None:
        self.session.goodbye(_now())
        if self._socket is not None:
            self.push()
            self._socket.close(200)


class Unruly:
    """One of the two clients."""

    def __init__(self, manner: str, shell: Shell, ledger: Writer, asker: Asker, slo_ns: int) -> None:
        self._manner, self._shell, self._ledger, self._asker, self._slo_ns = manner, shell, ledger, asker, slo_ns
        self._number = 0
        self._model: Model | None = None
        self._generation = -1

    def phase(self, begin_ns: int, seconds: float, rate: float) -> None:
        """Ask at this rate for so long; every request has ended when it returns."""
        shell, first = self._shell, self._number
        flying: list[Call] = []
        self._ready()
        end_ns, read_ns = begin_ns + round(seconds * 1e9), begin_ns + round(SLEEPS_S * 1e9)
        at_ns = begin_ns
        while at_ns < end_ns:
            if (left_ns := at_ns - _now()) > 0:
                if self._manner == "slow":
                    time.sleep(left_ns / 1e9)
                else:
                    shell.take(left_ns / 1e9)
                continue
            call = self._ask(at_ns)
            if call is not None:
                flying.append(call)
            shell.push()
            if self._manner == "slow" and _now() >= read_ns:
                shell.take()
                read_ns = _now() + round(SLEEPS_S * 1e9)
            asked = self._number - first
            at_ns = begin_ns + round((asked - asked % BURSTS[self._manner]) * 1e9 / rate)
        if self._manner == "slow":
            time.sleep(SLEEPS_S)
        while not all(call.done for call in flying):
            shell.take(0.05)

    def rest(self, until_ns: int) -> None:
        """Keep the connection until then, and know the model."""
        while (left_ns := until_ns - _now()) > 0:
            self._ready()
            self._shell.take(min(left_ns / 1e9, 0.1))

    def _ready(self) -> None:
        """Look the model up again after every connection: handles are of one controller's life."""
        session, shell = self._shell.session, self._shell
        if session.state is State.READY and self._generation != session.generation:
            name = MODELS[self._manner]
            call, self._generation = session.lookup(_now(), name, 0, 2_000_000_000), session.generation
            while not call.done:
                shell.take(0.05)
            if call.error is None:
                self._model = call.answer
            else:
                self._generation = -1

    def _ask(self, at_ns: int) -> Call | None:
        session, number, name = self._shell.session, self._number, MODELS[self._manner]
        self._number += 1
        self._ledger.asked(number, at_ns, _now(), self._slo_ns, name)
        try:
            assert self._model is not None
            payload, dims = self._model.prepare(self._asker.inputs(number, name))
            session.credits = 1 << 30  # whatever the controller has told
            call = session.infer(_now(), self._model, payload, dims, max(at_ns + self._slo_ns - _now(), 1))
        except CwdError as error:
            self._ledger.told(number, error.code.name)
            return None
        call.on_done.append(lambda call: self._tell(number, name, call))
        return call

    def _tell(self, number: int, name: str, call: Call) -> None:
        if call.error is not None:
            self._ledger.told(number, call.error.code.name)
            return
        (output,) = call.model.unpack(call.payload, call.dims).values()  # type: ignore[union-attr]
        self._ledger.told(number, OK, self._asker.right(number, name, output))


def load(options: argparse.Namespace) -> None:
    """Phases, each `BEGIN:SECONDS`, with rest in between."""
    ledger = Writer(options.ledger)
    session = written_session(ledger)(
        name=options.manner, boot=bytes(16), host=host_id(), now_ns=_now(), role=Role.CLIENT,
        endpoints=options.endpoint.split(","), first_request=first_request())
    shell = Shell(session, options.key, options.server_key)
    unruly = Unruly(options.manner, shell, ledger, Asker(options.examples), round(options.slo_s * 1e9))
    begin_ns = own_ns(options.begin_wall_ns)
    for phase in filter(None, options.phases.split(",")):
        at_s, _, seconds = phase.partition(":")
        at_ns = begin_ns + round(float(at_s) * 1e9)
        unruly.rest(at_ns)
        unruly.phase(at_ns, float(seconds), options.rate)
    shell.close()
    ledger.close()


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.add_argument("--manner", choices=sorted(MODELS), required=True)
    arguments.add_argument("--phases", default="")
    load(arguments.parse_args())
