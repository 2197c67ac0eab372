"""A tap on the wire: stands between peers and a controller, passes every message on and shows it.

Each peer gets a connection of its own to the controller, as a routing id belongs to one. For looking at conversations, not
for production: it is a hop in plain Python, and time in it counts against every deadline.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import zmq

from cwd.errors import Code, CwdError

#: peers at once; beyond it who was silent for longest is cut off
PEERS_MAX = 256
Show = Callable[[str, list[bytes]], None]


class Tap:
    """`listen` is bound, `to` is the controller's. `show(title, frames)` is called for every message."""

    def __init__(self, listen: str, to: str, show: Show) -> None:
        self._context = zmq.Context()
        self._to, self._show = to, show
        self._peers: OrderedDict[bytes, tuple[str, Any]] = OrderedDict()
        self._count = 0
        self._poller = zmq.Poller()
        self._front = self._socket(zmq.ROUTER)
        try:
            self._front.bind(listen)
        except zmq.ZMQError as error:
            self.close()
            raise CwdError(f"{listen}: {error.strerror}", code=Code.BAD_ARGUMENT) from None

    def turn(self, timeout_ms: int) -> int:
        """Pass on what has come, waiting for it that long at most; how many messages."""
        ready = dict(self._poller.poll(timeout_ms))
        count = 0
        if self._front in ready:
            key, *frames = self._front.recv_multipart()
            name, back = self._peer(key)
            self._show(f"{name} -> controller", frames)
            back.send_multipart(frames)
            count += 1
        for key, (name, back) in list(self._peers.items()):
            if back in ready:
                frames = back.recv_multipart()
                self._show(f"controller -> {name}", frames)
                self._front.send_multipart([key, *frames])  # a ROUTER drops what is for a peer that has gone
                count += 1
        return count

    def close(self) -> None:
        self._context.destroy(0)

    def _peer(self, key: bytes) -> tuple[str, Any]:
        if key not in self._peers:
            if len(self._peers) >= PEERS_MAX:
                _, (_, oldest) = self._peers.popitem(last=False)
                self._poller.unregister(oldest)
                oldest.close(0)
            self._count += 1
            back = self._socket(zmq.DEALER)
            back.connect(self._to)
            self._peers[key] = (f"peer {self._count}", back)
        self._peers.move_to_end(key)
        return self._peers[key]

    def _socket(self, kind: int) -> Any:
        made = self._context.socket(kind)
        made.linger = 0
        self._poller.register(made, zmq.POLLIN)
        return made
