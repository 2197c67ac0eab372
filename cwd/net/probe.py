"""Why nobody answers: one connection, made to see what becomes of its handshake. For people, once waiting was in vain."""

from __future__ import annotations

import time
from collections.abc import Sequence

import zmq
from zmq.utils.monitor import recv_monitor_message

from cwd.net.auth import secure_peer
from cwd.net.keys import PeerKeys

_EVENTS = (zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
           | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_CONNECT_RETRIED)


def handshake_faults(endpoints: Sequence[str], keys: PeerKeys | None, patience_ms: int = 500) -> str:
    """As `handshake_fault`, of several: the first fault that is found, with its endpoint; together they get the patience."""
    for endpoint in endpoints:
        fault = handshake_fault(endpoint, keys, patience_ms // len(endpoints))
        if fault:
            return f"{fault} ({endpoint})" if len(endpoints) > 1 else fault
    return ""


def handshake_fault(endpoint: str, keys: PeerKeys | None, patience_ms: int = 500) -> str:
    """What the controller at `endpoint` has against connections with these keys; "" if nothing, or if nobody is there.

    Takes at most `patience_ms`.
    """
    fault = ""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        if keys is not None:
            secure_peer(socket, keys)
        monitor = socket.get_monitor_socket(_EVENTS)
        end_s = time.monotonic() + patience_ms / 1000
        try:
            socket.connect(endpoint)
            while monitor.poll(max(0, int((end_s - time.monotonic()) * 1000))):
                found = recv_monitor_message(monitor)
                if found["event"] in (zmq.EVENT_HANDSHAKE_SUCCEEDED, zmq.EVENT_CONNECT_RETRIED) and not fault:
                    return ""
                if found["event"] == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                    return "it does not let this key in"
                fault = _guess(keys)
                if found["event"] == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                    break
        except zmq.ZMQError:
            return ""
        finally:
            socket.disable_monitor()
            monitor.close(0)
    return fault


def _guess(keys: PeerKeys | None) -> str:
    """The controller has hung up without saying why."""
    if keys is None:
        return "it seems to ask for a key (--key, --server-key; CWD_KEY, CWD_SERVER_KEY)"
    return "it seems to ask for no key, or --server-key is not its own"
