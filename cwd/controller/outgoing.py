"""Messages that Python sends: rare ones, encoded by the Python codec, over the same sockets as the loop's.

A send never waits. A peer that does not take it is given up, exactly as in the loop.
"""

from __future__ import annotations

import logging
from typing import Any

import msgpack
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
            return self._send(key, kind, encode(kind, **fields))
        except LocalProtocolError as error:
            LOG.error("%s could not be encoded: %s", kind.name, error.text)
            return False

    def send_map(self, key: int, kind: Type, last: str, value: dict[str, Any], **fields: Any) -> bool:
        """`send` of a message whose last field is a map of our own making: packed at once, where the codec would look
        at every value of it for a microsecond each, which is too long for a hundred of them."""
        return self.send_packed(key, kind, last, packed(value), **fields)

    def send_packed(self, key: int, kind: Type, last: str, value: bytes, **fields: Any) -> bool:
        """`send_map` of a map that `packed` has packed before: a large one is a piece of work of its own."""
        return self._send(key, kind, encode(kind, **fields, **{last: {}})[:-1] + value)

    def _send(self, key: int, kind: Type, frame: bytes) -> bool:
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


def packed(value: dict[str, Any]) -> bytes:
    """msgpack in the protocol's canonical form."""
    return msgpack.packb(_sorted(value), use_bin_type=True)


def _sorted(value: Any) -> Any:
    """Maps with their keys in order, as the canonical form wants them."""
    if type(value) is dict:
        return {key: _sorted(value[key]) if type(value[key]) in (dict, list) else value[key] for key in sorted(value)}
    if type(value) is list:
        return [_sorted(item) for item in value]
    return value
