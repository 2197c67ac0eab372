"""A device's connection to the controller, the rare half: sockets, HELLO, WELCOME, back-off. Python.

The frequent half is link.py, with which this shares one LINK record; where there are several endpoints, `cwd.net.route`
says which is next. It must not know what a device does: whoever owns
one gives a function that says what HELLO shall tell of it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import zmq

from cwd.config import endpoints
from cwd.errors import SENTENCES, Code, CwdError, RemoteProtocolError
from cwd.net.clock import monotonic_ns
from cwd.net.host_id import host_id
from cwd.net.keys import PeerKeys
from cwd.net.route import PAUSE_NS, Newest, Route
from cwd.net.sockets import connect_dealer
from cwd.units import NS_PER_MS
from cwd.wire import codec
from cwd.wire.messages import VERSION_MINOR, Role, Type
from cwd.worker import link as links

LOG = logging.getLogger("cwd.worker")

#: Between two tries to send HELLO while nobody answers at the endpoint.
BACKOFF_MIN_NS = 50 * NS_PER_MS
BACKOFF_MAX_NS = 500 * NS_PER_MS
#: The first of these waits where there are several endpoints: a connection there comes about soon, or not.
BACKOFF_QUICK_NS = 10 * NS_PER_MS
#: How long a HELLO may stay unanswered before another connection is made, where there is one endpoint.
WELCOME_NS = 3_000 * NS_PER_MS

#: In so long a HELLO that will not be sent is due.
NEVER_NS = 1 << 61
#: After so long without a connection our key may have been refused.
REFUSED_NS = 1_000 * NS_PER_MS

#: Random, made when this process started: tells a restarted worker from one that reconnects.
BOOT = os.urandom(16)

#: Answers after which this connection is useless and another HELLO is the cure.
_START_AGAIN = {Code.NOT_INTRODUCED, Code.STALE_EPOCH, Code.BAD_IDENTITY, Code.PEERS_FULL, Code.DRAINING}


class Session:
    """One device's connection: `link` is its LINK record, a one-element view of the host's table.

    `endpoint` may be several, separated by commas; the devices of one process share `newest`.
    """

    def __init__(self, context: zmq.Context, endpoint: str, name: str, link: np.ndarray,
                 caps: Callable[[], dict[str, Any]], keys: PeerKeys | None = None, newest: Newest | None = None) -> None:
        self.keys = keys
        self.context, self.name, self.link, self.caps = context, name, link, caps
        self.route = Route(endpoints(endpoint), newest)
        self.socket: zmq.Socket | None = None
        self._backoff_first_ns = BACKOFF_QUICK_NS if self.route.several else BACKOFF_MIN_NS
        self._backoff_ns = self._backoff_first_ns
        #: with several endpoints: until when there must be a connection; when HELLO was sent
        self._until_ns = self._greeted_ns = 0
        #: the controller has drained this device and let it go: whoever owns it may end
        self.drained = False
        self._connected_ns = 0

    @property
    def open(self) -> bool:
        return bool(self.link["state"][0] == links.OPEN)

    def connect(self, after_ns: int = 0) -> None:
        """A new socket in place of the old one; HELLO is due `after_ns` from now. The poll set needs its handle."""
        self.close()
        self.socket = connect_dealer(self.context, self.route.endpoint, keys=self.keys)
        self.link["socket"] = self.socket.underlying
        self.link["state"] = links.GREETING
        self.link["broken"] = 0
        self._connected_ns = monotonic_ns()
        self.link["greet_ns"] = self._connected_ns + after_ns
        self._until_ns = self._connected_ns + self.route.patience_ns()

    def reconnect(self, why: str, *, stay: bool = False) -> None:
        """The controller is silent or gone, or asked for it: start again, at the next endpoint unless told to `stay`."""
        lost = self.open
        if not stay:
            self.route.go_on()
        if lost:
            LOG.warning("%s: %s; connecting again to %s", self.name, why, self.route.endpoint)
        if lost or self.route.several:
            self._backoff_ns = self._backoff_first_ns
        self.connect(0 if lost else PAUSE_NS if self.route.several else self._later())

    def say_hello(self) -> None:
        """Send HELLO if the socket is connected, else try again later, from 50 ms growing to 500 ms; may reconnect.

        libzmq does not try again where a key was refused, and it may be listed by now. With several endpoints it is tried
        more often, and the next endpoint comes when this one's time is over.
        """
        if not self.socket.getsockopt(zmq.EVENTS) & zmq.POLLOUT:  # (what HELLO tells is not worth making for nothing)
            self._not_yet()
            return
        hello = codec.encode(
            Type.HELLO, minor=VERSION_MINOR, role=int(Role.WORKER), name=self.name, boot=BOOT, host=host_id(),
            now_ns=monotonic_ns(), caps=self.caps())
        try:
            self.socket.send(hello, zmq.DONTWAIT)
        except zmq.Again:
            self._not_yet()
            return
        self._greeted_ns = monotonic_ns()
        self.link["state"] = links.WAITING
        self.link["greet_ns"] = self._greeted_ns + (self.route.patience_ns() if self.route.several else WELCOME_NS)

    def _not_yet(self) -> None:
        """HELLO is due and there is no connection."""
        now_ns = monotonic_ns()
        if self.route.several:
            if now_ns >= self._until_ns:
                self.reconnect("nobody is there")
            else:
                self.link["greet_ns"] = min(now_ns + self._later(), self._until_ns)
        elif self.keys is not None and now_ns - self._connected_ns > REFUSED_NS:
            self.connect(self._later())
        else:
            self.link["greet_ns"] = now_ns + self._later()

    def welcome(self, frame: bytes) -> dict[str, Any] | None:
        """Take in a rare message. The decoded WELCOME or PREPARE to act upon, or None; may reconnect.

        Raises `CwdError` where going on is useless: the controller speaks another version.
        """
        try:
            kind, fields = codec.decode(frame)
        except RemoteProtocolError as error:
            self.link["faults"] += 1
            LOG.warning("%s: the controller sent what does not decode: %s", self.name, error)
            return None
        if kind == Type.WELCOME:
            now_ns = monotonic_ns()
            if not self.route.takes(fields["epoch"], now_ns - self._greeted_ns):
                LOG.warning("%s: the controller at %s is a former one", self.name, self.route.endpoint)
                self.link["greet_ns"] = min(int(self.link["greet_ns"][0]), now_ns + PAUSE_NS)
                return None
            self._backoff_ns = self._backoff_first_ns
            self.link["epoch"] = np.uint64(fields["epoch"]).astype(np.int64)
            self.link["session"] += 1
            self.link["heartbeat_ns"] = max(fields["heartbeat_ms"], 1) * NS_PER_MS
            self.link["lost_ns"] = max(fields["lost_ms"], 1) * NS_PER_MS
            self.link["heard_ns"] = self.link["asked_ns"] = now_ns
            self.link["state"] = links.OPEN
            return {"type": kind, **fields}
        if kind == Type.PREPARE:
            return {"type": kind, **fields}
        if kind == Type.GOODBYE and fields["code"] == Code.DRAINING:
            LOG.info("%s: the controller has no more work for it: it was drained", self.name)
            self.drained = True
            self.connect(NEVER_NS)
        elif kind == Type.GOODBYE:
            self.reconnect(f"the controller said goodbye ({fields['text'] or fields['code']})")
        elif kind == Type.ERROR:
            self._error(fields)
        return None

    def goodbye(self, text: str, code: int = 0) -> None:
        """Tell the controller that this device leaves; nothing happens if it does not listen."""
        if self.open:
            try:
                self.socket.send(codec.encode(Type.GOODBYE, code=code, text=text), zmq.DONTWAIT)
            except zmq.ZMQError:
                LOG.info("%s: the controller did not take the goodbye", self.name)

    def close(self, linger_ms: int = 0) -> None:
        if self.socket is not None:
            self.socket.close(linger_ms)
            self.socket = None

    def _later(self) -> int:
        now_ns, self._backoff_ns = self._backoff_ns, min(2 * self._backoff_ns, BACKOFF_MAX_NS)
        return now_ns

    def _error(self, fields: dict[str, Any]) -> None:
        code = fields["code"]
        text = fields["text"] or SENTENCES.get(code, f"code {code}")
        refused = self.link["state"][0] == links.WAITING and code not in _START_AGAIN
        if code == Code.UNSUPPORTED_VERSION or refused:  # another HELLO would be the same
            raise CwdError(f"the controller at {self.route.endpoint} refused this worker: {text}", code=Code(code))
        if code in _START_AGAIN:
            self.reconnect(text, stay=code == Code.NOT_INTRODUCED and self.open)  # somebody is there
        else:
            LOG.warning("%s: the controller complains (%d): %s", self.name, code, text)
