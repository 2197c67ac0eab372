"""A tap on the wire: stands between peers and a controller, passes every message on and shows it.

Each peer gets a connection of its own to the controller, as a routing id belongs to one. For looking at conversations, not
for production: it is a hop in plain Python, and time in it counts against every deadline.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import zmq

from cwd.config import endpoints
from cwd.net.sockets import bind_router, make_context

#: peers at once; beyond it who was silent for longest is cut off
PEERS_MAX = 256
Show = Callable[[str, list[bytes]], None]


class Tap:
    """`listen` is bound, `to` is the controller's. `show(title, frames)` is called for every message.

    Of several endpoints in `to` a new peer's messages go to the one that was heard from last, or, if nobody has answered
    the peer before, to the next. Raises `CwdError` if `to` is no endpoint, or `listen` cannot be bound: it is in
    use, or reachable from other machines.
    """

    def __init__(self, listen: str, to: str, show: Show) -> None:
        self._context = make_context()
        self._to, self._show = endpoints(to), show
        self._at, self._heard = 0, True
        #: name, socket, and where that is connected to
        self._peers: OrderedDict[bytes, tuple[str, Any, int]] = OrderedDict()
        self._count = 0
        self._poller = zmq.Poller()
        self._front = bind_router(self._context, listen)
        self._poller.register(self._front, zmq.POLLIN)

    def turn(self, timeout_ms: int) -> int:
        """Pass on what has come, waiting for it that long at most; how many messages."""
        ready = dict(self._poller.poll(timeout_ms))
        count = 0
        if self._front in ready:
            key, *frames = self._front.recv_multipart()
            name, back, _ = self._peer(key)
            self._show(f"{name} -> controller", frames)
            back.send_multipart(frames)
            count += 1
        for key, (name, back, at) in list(self._peers.items()):
            if back in ready:
                frames = back.recv_multipart()
                self._at, self._heard = at, True
                self._show(f"controller -> {name}", frames)
                count += 1
                try:
                    self._front.send_multipart([key, *frames], zmq.DONTWAIT)
                except zmq.ZMQError:  # the peer has gone, or does not read
                    self._forget(key)
        return count

    def close(self) -> None:
        self._context.destroy(0)

    def _peer(self, key: bytes) -> tuple[str, Any, int]:
        if key not in self._peers:
            if len(self._peers) >= PEERS_MAX:
                self._forget(next(iter(self._peers)))
            self._count += 1
            back = self._context.socket(zmq.DEALER)
            self._at = self._at if self._heard else (self._at + 1) % len(self._to)
            self._heard = False
            back.connect(self._to[self._at])
            self._poller.register(back, zmq.POLLIN)
            self._peers[key] = (f"peer {self._count}", back, self._at)
        self._peers.move_to_end(key)
        return self._peers[key]

    def _forget(self, key: bytes) -> None:
        _, back, _ = self._peers.pop(key)
        self._poller.unregister(back)
        back.close(0)
