"""Messages that Python sends: rare ones, encoded by the Python codec, over the same sockets as the loop's.

A send never waits. A peer that does not take it is given up, exactly as in the loop.
"""

from __future__ import annotations

import logging
from typing import Any

import zmq

from cwd.controller.host import Host
from cwd.controller.peers import find_peer, mark_leaving, socket_of_key
from cwd.errors import LocalProtocolError
from cwd.wire.codec import encode
from cwd.wire.messages import Type

LOG = logging.getLogger("cwd.controller")


class Outgoing:
    """Sends to a connection by its key."""

    def __init__(self, host: Host, sockets: list[zmq.Socket[bytes]]) -> None:
        self._host, self._sockets = host, sockets

    def send(self, key: int, kind: Type, **fields: Any) -> bool:
        """True if the socket took it."""
        try:
            frame = encode(kind, **fields)
        except LocalProtocolError as error:
            LOG.error("%s could not be encoded: %s", kind.name, error.text)
            return False
        routing_id = b"\0" + (key & 0xFFFFFFFF).to_bytes(4, "little")
        try:
            self._sockets[int(socket_of_key(key))].send_multipart([routing_id, frame], zmq.DONTWAIT, copy=True)
        except zmq.ZMQError as error:
            LOG.debug("%s was not sent: %s", kind.name, error)
            slot = find_peer(self._host, key)
            if slot >= 0:
                mark_leaving(self._host, slot)
            return False
        return True

    def error(self, key: int, code: int, re_type: int = 0, re_id: int = 0, text: str = "") -> None:
        self.send(key, Type.ERROR, code=code, re_type=re_type, re_id=re_id, text=text)
