"""Making and configuring ZeroMQ sockets, in Python: the only place with socket options.

It must not know messages. The controller binds ROUTERs, everybody else connects DEALERs. No identity is fixed; own
credits and heartbeats take the place of the high-water marks and of ZMTP's heartbeats, so the marks below are the last
line of defence against a peer that sends or does not read without end.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket as posix
from collections.abc import Callable
from urllib.parse import urlsplit

import zmq

from cwd.config import PATH_BYTES_MAX
from cwd.errors import CwdError
from cwd.net.auth import secure_peer
from cwd.net.keys import PeerKeys

#: zmq.h's context option; pyzmq has no name for it. On, a held 200-byte payload pins the 8 KiB that it arrived in.
_ZERO_COPY_RECV = 10

MESSAGE_BYTES_MAX = 64 << 20
#: Messages queued per peer. A peer whose queue is full (EAGAIN on send) has stopped reading.
SEND_QUEUE = 65_536
RECEIVE_QUEUE = 8_192
LINGER_MS = 200
HANDSHAKE_MS = 3_000
RECONNECT_MS = 20
RECONNECT_MAX_MS = 250


def make_context(io_threads: int = 1, *, sockets_max: int = 4096, zero_copy_receive: bool = False) -> zmq.Context:
    """A context whose received messages own their bytes (unless `zero_copy_receive`): a held one costs its size."""
    context = zmq.Context(io_threads=io_threads)
    context.set(zmq.MAX_SOCKETS, sockets_max)
    context.set(_ZERO_COPY_RECV, int(zero_copy_receive))  # type: ignore[arg-type]
    context.set(zmq.BLOCKY, 0)
    return context


def make_router(
    context: zmq.Context,
    *,
    message_bytes_max: int = MESSAGE_BYTES_MAX,
    send_queue: int = SEND_QUEUE,
    receive_queue: int = RECEIVE_QUEUE,
    secure: Callable[[zmq.Socket], None] | None = None,
) -> zmq.Socket:
    """A ROUTER that reports unreachable peers, and is not bound yet. `secure` sets what it demands of those who connect."""
    socket = context.socket(zmq.ROUTER)
    _configure(socket, message_bytes_max, send_queue, receive_queue)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.BACKLOG, 1024)
    if secure is not None:
        secure(socket)
    return socket


def bind(socket: zmq.Socket, endpoint: str) -> None:
    """Bind a socket whose endpoint has been checked (`check_endpoint`); closed if that cannot be, with a `CwdError`."""
    try:
        if endpoint.startswith("ipc://") and _answers(endpoint[6:]):
            raise zmq.ZMQError(errno.EADDRINUSE)  # libzmq would take the name away from the process that lives there
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        socket.close(0)
        raise CwdError(f"cannot listen on {endpoint}: {_reason(error)}") from None


def bind_router(
    context: zmq.Context,
    endpoint: str,
    *,
    open_bind: bool = False,
    secure: Callable[[zmq.Socket], None] | None = None,
    **options: int,
) -> zmq.Socket:
    """A bound ROUTER, with the options of `make_router`.

    Raises `CwdError`, one line naming the endpoint: in use, not allowed, malformed; and for a TCP address that others
    can reach unless it is secured or `open_bind`, since libzmq buffers endless multipart messages before anyone can
    refuse them.
    """
    check_endpoint(endpoint, open_bind=open_bind or secure is not None)
    socket = make_router(context, secure=secure, **options)
    bind(socket, endpoint)
    return socket


def connect_dealer(
    context: zmq.Context,
    endpoint: str,
    *,
    message_bytes_max: int = MESSAGE_BYTES_MAX,
    send_queue: int = SEND_QUEUE,
    receive_queue: int = RECEIVE_QUEUE,
    keys: PeerKeys | None = None,
) -> zmq.Socket:
    """A DEALER that connects, and goes on trying, to a bound ROUTER; with `keys` if that demands them.

    Without a completed connection nothing is queued: a send meets EAGAIN. After a reconnection the ROUTER sees a new
    peer, so whoever uses the socket says HELLO again. Raises `CwdError` for a malformed endpoint.
    """
    socket = context.socket(zmq.DEALER)
    _configure(socket, message_bytes_max, send_queue, receive_queue)
    socket.setsockopt(zmq.IMMEDIATE, 1)
    socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
    socket.setsockopt(zmq.CONNECT_TIMEOUT, HANDSHAKE_MS)
    if keys is not None:
        secure_peer(socket, keys)
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        socket.close(0)
        raise CwdError(f"cannot connect to {endpoint}: {_reason(error)}") from None
    return socket


def check_endpoint(endpoint: str, *, open_bind: bool = False) -> None:
    """Refuse, by `CwdError`, what must not be bound: see `bind_router`."""
    parts = urlsplit(endpoint)
    if parts.scheme == "ipc":
        path = endpoint[6:]
        if len(os.fsencode(path)) > PATH_BYTES_MAX:
            raise CwdError(f"cannot listen on {endpoint}: the path is longer than {PATH_BYTES_MAX} bytes")
    elif parts.scheme == "tcp":
        if not open_bind and not _is_loopback(parts.hostname or ""):
            raise CwdError(f"cannot listen on {endpoint}: only ipc:// and loopback addresses may be bound openly; give "
                           "--keys FOLDER (see `cwd keys`), or --insecure if you must")
    elif parts.scheme != "inproc":
        raise CwdError(f"cannot listen on {endpoint}: not an ipc:// or tcp:// endpoint")


def _configure(socket: zmq.Socket, message_bytes_max: int, send_queue: int, receive_queue: int) -> None:
    socket.setsockopt(zmq.LINGER, LINGER_MS)
    socket.setsockopt(zmq.MAXMSGSIZE, message_bytes_max)
    socket.setsockopt(zmq.SNDHWM, send_queue)
    socket.setsockopt(zmq.RCVHWM, receive_queue)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.IPV6, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 30)


def _answers(path: str) -> bool:
    """True if a process listens on the unix socket at `path`; a left-over file does not answer."""
    if path.startswith("@") or not os.path.exists(path):
        return False
    with posix.socket(posix.AF_UNIX, posix.SOCK_STREAM | posix.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except BlockingIOError:
            return True  # its backlog is full
        except OSError:
            return False
    return True


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("localhost", "lo")


def _reason(error: zmq.ZMQError) -> str:
    known = {
        errno.EADDRINUSE: "it is in use by another process",
        errno.EACCES: "permission denied",
        errno.ENOENT: "its directory does not exist",
        errno.EINVAL: "the endpoint is malformed",
        errno.EPROTONOSUPPORT: "the transport is not known",
        errno.ENODEV: "no such network interface",
        errno.EADDRNOTAVAIL: "the address is not one of this machine's",
        errno.EMFILE: "too many open files",
    }
    return known.get(error.errno or 0, os.strerror(error.errno or 0) if (error.errno or 0) < 1000 else str(error))
