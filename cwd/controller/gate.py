"""The gate: which keys may connect, asked by libzmq for every handshake, and what becomes of a key that is revoked.

It owns the socket that ZAP's questions come to, in the one thread of the controller; the loop comes back to Python when
there is one, and each is a piece of work of about 20 us. The lists follow the folder by way of `keywatch`. libzmq asks
at the handshake only, so this module also knows which connection came with which key, and has the loop forget those
whose key has gone. It must not know what peers say, but for the code that they get.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import zmq

from cwd.controller.config import ControllerConfig
from cwd.controller.host import ROLE_ADMIN, ROLE_CLIENT, ROLE_WORKER, Host
from cwd.controller.keywatch import KeyWatch
from cwd.controller.outgoing import Outgoing
from cwd.controller.peers import mark_leaving
from cwd.errors import SENTENCES, Code, CwdError
from cwd.net.auth import ZAP_ENDPOINT, Allowed, Change, Scanner, Verdict, answer, secure_server
from cwd.net.keys import ROLES, check_folder, server_pair
from cwd.net.zmq import poll_items
from cwd.wire.messages import Type

LOG = logging.getLogger("cwd.keys")

_ROLES = {ROLE_CLIENT: "client", ROLE_WORKER: "worker", ROLE_ADMIN: "admin"}
_COUNTERS = {Verdict.NO_KEY: "key_missing", Verdict.UNKNOWN: "key_unknown", Verdict.REVOKED: "key_revoked",
             Verdict.WRONG_ROLE: "key_wrong_role", Verdict.BAD_QUESTION: "handshake_failed", Verdict.ALLOWED: "key_allowed"}
#: what a monitor tells, and what is counted of it
_EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
#: a question has 7 frames behind its sender's id and an empty one
_QUESTION_AT = 2


class Gate:
    """Opens before the ROUTERs bind (`secure` each of them), and is told of the tables once they are there (`attach`)."""

    def __init__(self, context: zmq.Context, config: ControllerConfig) -> None:
        check_folder(config.keys)
        self._pair = server_pair(config.keys)
        self._connections_max = config.client_connections
        self.allowed = Allowed()
        for change in Scanner(config.keys).changes():
            self.allowed.apply(change)
        self._zap = context.socket(zmq.ROUTER)
        self._zap.setsockopt(zmq.LINGER, 0)
        self._zap.bind(ZAP_ENDPOINT)
        self._monitored: list[zmq.Socket] = []
        self.monitors: list[zmq.Socket] = []
        self._watch = KeyWatch(config.keys)
        #: what a new watcher has told so far: until its first reading is over, what it does not tell is not gone
        self._told: Allowed | None = Allowed()
        #: by peer slot: (role, public key, connection)
        self._users: dict[int, tuple[str, bytes, int]] = {}
        self._count: Counter[tuple[str, bytes]] = Counter()
        self._leaving: deque[int] = deque()
        self.readings = 0
        for role in ROLES:
            LOG.info("%d keys are listed for %ss", len(self.allowed.names[role]), role)

    def secure(self, socket: zmq.Socket, role: str) -> None:
        """To be called before `socket` binds."""
        secure_server(socket, self._pair, role)
        # A monitor that nobody reads would hold up libzmq's thread; its queue has no bound, and the loop empties it.
        self._monitored.append(socket)
        monitor = socket.context.socket(zmq.PAIR)
        monitor.setsockopt(zmq.RCVHWM, 0)
        endpoint = f"inproc://cwd-monitor-{role}"
        socket.monitor(endpoint, _EVENTS)
        monitor.connect(endpoint)
        self.monitors.append(monitor)

    def poll_item(self) -> np.ndarray:
        """POLL_ITEM[1] of the socket that questions come to."""
        return poll_items([self._zap], [])

    def attach(self, host: Host, outgoing: Outgoing) -> None:
        self._host, self._outgoing = host, outgoing
        state = host.state[0]
        state["zap"] = self._zap.underlying
        for role, monitor in zip(ROLES, self.monitors, strict=True):
            state[f"monitor_{role}"] = monitor.underlying

    def hurry(self) -> None:
        """Have the folder read now."""
        self._watch.hurry()

    def close(self) -> None:
        """Before the sockets are closed."""
        for socket in self._monitored:
            if not socket.closed:  # one that could not bind is
                socket.disable_monitor()
        for monitor in self.monitors:
            monitor.close(0)
        self._zap.close(0)
        self._watch.close()

    # what the daemon gives it to do, a piece at a time

    def pieces(self) -> Iterator[None]:
        """Everything that waits for the gate: questions, connections to be forgotten, news of the folder."""
        state = self._host.state[0]
        while state["zap_due"] != 0:
            if self._answer_one():
                yield
            else:
                state["zap_due"] = 0
        while self._leaving:
            self._forget(self._leaving.popleft())
            yield
        for told in self._watch.changes():
            self._learn(told)
            yield

    @property
    def busy(self) -> bool:
        return bool(self._leaving) or bool(self._host.state[0]["zap_due"])

    def _answer_one(self) -> bool:
        try:
            frames = self._zap.recv_multipart(zmq.DONTWAIT)
        except zmq.Again:
            return False
        reply, verdict = answer(frames[_QUESTION_AT:], self.allowed)
        self._host.state[0][_COUNTERS[verdict]] += 1
        try:
            self._zap.send_multipart([*frames[:_QUESTION_AT], *reply], zmq.DONTWAIT)
        except zmq.ZMQError as error:  # whoever asked for entrance has gone
            LOG.debug("no answer to a handshake: %s", error)
        return True

    def _learn(self, told: Change | int | None) -> None:
        """One thing that the watcher said."""
        if told is None:
            self._told = Allowed()
        elif isinstance(told, int):
            self.readings += 1
            if self._told is not None:
                known, self._told = self._told, None
                for role, names in self.allowed.names.items():
                    for public in [key for key in names if key not in known.names[role]]:
                        self._apply(Change(False, role, public, names[public]))
        else:
            if self._told is not None:
                self._told.apply(told)
            self._apply(told)

    def _apply(self, change: Change) -> None:
        news = (change.public in self.allowed.names[change.role]) != change.added
        self.allowed.apply(change)
        if change.role not in ROLES or not news:
            return
        LOG.info("key %s %s for %ss", change.name, "is listed" if change.added else "is no longer listed", change.role)
        if not change.added:
            self._leaving.extend(slot for slot, (role, public, _) in self._users.items()
                                 if (role, public) == (change.role, change.public))

    def _forget(self, slot: int) -> None:
        """Tell a peer whose key was revoked, and have the loop forget it; it cannot introduce itself again."""
        role, public, key = self._users.get(slot, ("", b"", 0))
        if not role or public in self.allowed.names[role] or self._host.peers[slot]["key"] != key:
            return
        LOG.warning("a %s is turned out: its key was revoked", role)
        self._host.state[0]["key_turned_out"] += 1
        self._outgoing.send(key, Type.GOODBYE, code=int(Code.NOT_ALLOWED), text=SENTENCES[Code.NOT_ALLOWED])
        mark_leaving(self._host, slot)

    # introductions

    def check(self, role: int, user: bytes) -> None:
        """May a connection that came with key `user` take `role` now? Raises `CwdError`: NOT_ALLOWED, PEERS_FULL."""
        name = _ROLES[role]
        if user not in self.allowed.names[name]:
            self._host.state[0]["key_revoked"] += 1
            raise CwdError(code=Code.NOT_ALLOWED)
        if role == ROLE_CLIENT and self._count[name, user] >= self._connections_max:
            raise CwdError(f"this key has {self._connections_max} connections already", code=Code.PEERS_FULL)

    def entered(self, slot: int, role: int, user: bytes) -> None:
        """The connection in that slot of the table was introduced."""
        self.left(slot)
        self._users[slot] = (_ROLES[role], user, int(self._host.peers[slot]["key"]))
        self._count[_ROLES[role], user] += 1

    def left(self, slot: int) -> None:
        """The connection in that slot is gone."""
        if (found := self._users.pop(slot, None)) is not None:
            self._count[found[:2]] -= 1
            if not self._count[found[:2]]:
                del self._count[found[:2]]

    def facts(self) -> dict[str, Any]:
        """For `status`."""
        return {**{role: len(self.allowed.names[role]) for role in ROLES}, "readings": self.readings}
