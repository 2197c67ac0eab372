"""libzmq called from nopython code: messages, receive, send, poll. The sockets themselves are made in `sockets`.

It knows frames and routing ids, and must not know what frames mean. The library is the one that pyzmq loaded, so a
pyzmq socket's `underlying` is a valid handle here. Everything that can fail returns a negative errno, read at once.

A message (`zmq_msg_t`) is 64 bytes in a table u1[n, 64] made by `message_table`, named by its address
`message(table, i)`. Outside of a call every row is a valid message, empty or full. A kernel that sends or closes one
leaves it empty.
"""

from __future__ import annotations

import ctypes
import errno

import numpy as np
import zmq
import zmq.backend.cython._zmq as _backend

from cwd.jit import kernel, lean_kernel
from cwd.net.native import (
    I4,
    I8,
    address_of,
    aligned_zeros,
    copy_bytes,
    external,
    load_i4,
    load_u1,
    load_u4,
    stack_words,
    store_i8,
)

MESSAGE_BYTES = 64
DONTWAIT = int(zmq.DONTWAIT)
SNDMORE = int(zmq.SNDMORE)
POLLIN = int(zmq.POLLIN)
POLLOUT = int(zmq.POLLOUT)
_RCVMORE = int(zmq.RCVMORE)
_EVENTS = int(zmq.EVENTS)

#: Results of calls below, negative as they are returned. What each means for the caller is said at the call.
EAGAIN = -errno.EAGAIN
EINTR = -errno.EINTR
EHOSTUNREACH = -errno.EHOSTUNREACH
ETERM = -int(zmq.ETERM)
ENOTSOCK = -errno.ENOTSOCK

#: A routing id that a ROUTER generated: a zero byte and a u32.
ROUTING_ID_BYTES = 5
_KEY_MARK = 1 << 32

#: zmq_pollitem_t; `socket` 0 means that `fd` is polled
POLL_ITEM = np.dtype([("socket", "i8"), ("fd", "i4"), ("events", "i2"), ("revents", "i2")], align=True)

_LIBRARY = ctypes.CDLL(_backend.__file__)
zmq_errno = external("zmq_errno", I4, library=_LIBRARY)
zmq_msg_init = external("zmq_msg_init", I4, I8, library=_LIBRARY)
zmq_msg_init_size = external("zmq_msg_init_size", I4, I8, I8, library=_LIBRARY)
zmq_msg_recv = external("zmq_msg_recv", I4, I8, I8, I4, library=_LIBRARY)
zmq_msg_send = external("zmq_msg_send", I4, I8, I8, I4, library=_LIBRARY)
zmq_msg_close = external("zmq_msg_close", I4, I8, library=_LIBRARY)
zmq_msg_copy = external("zmq_msg_copy", I4, I8, I8, library=_LIBRARY)
zmq_msg_move = external("zmq_msg_move", I4, I8, I8, library=_LIBRARY)
zmq_msg_data = external("zmq_msg_data", I8, I8, library=_LIBRARY)
zmq_msg_size = external("zmq_msg_size", I8, I8, library=_LIBRARY)
zmq_msg_more = external("zmq_msg_more", I4, I8, library=_LIBRARY)
zmq_send = external("zmq_send", I4, I8, I8, I8, I4, library=_LIBRARY)
zmq_recv = external("zmq_recv", I4, I8, I8, I8, I4, library=_LIBRARY)
zmq_getsockopt = external("zmq_getsockopt", I4, I8, I4, I8, I8, library=_LIBRARY)
zmq_poll = external("zmq_poll", I4, I8, I4, I8, library=_LIBRARY)


_gets = _LIBRARY["zmq_msg_gets"]  # an object of its own, so that the types below are nobody else's
_gets.restype, _gets.argtypes = ctypes.c_char_p, [ctypes.c_void_p, ctypes.c_char_p]


def message_user(m: int) -> bytes:
    """The user id that ZAP gave the peer whose message is at address `m`; b"" if nobody asked who it is. For Python."""
    return _gets(m, b"User-Id") or b""


def message_table(n: int) -> np.ndarray:
    """n empty messages: u1[n, 64], aligned."""
    table = aligned_zeros(n * MESSAGE_BYTES).reshape(n, MESSAGE_BYTES)
    messages_init(table)
    return table


def poll_items(sockets: list[zmq.Socket], fds: list[int]) -> np.ndarray:
    """POLL_ITEM[len(sockets) + len(fds)] that waits for input on all, sockets first."""
    items = np.zeros(len(sockets) + len(fds), dtype=POLL_ITEM)
    for item, socket in zip(items, sockets, strict=False):
        item["socket"], item["events"] = socket.underlying, POLLIN
    for item, fd in zip(items[len(sockets):], fds, strict=True):
        item["fd"], item["events"] = fd, POLLIN
    return items


@lean_kernel
def messages_init(table):
    """Make every row of a zeroed table an empty message."""
    for i in range(table.shape[0]):
        zmq_msg_init(address_of(table) + MESSAGE_BYTES * i)


@lean_kernel
def messages_close(table):
    """Close every message and leave it empty; for the end of a process, while the context is alive."""
    for i in range(table.shape[0]):
        message_close(address_of(table) + MESSAGE_BYTES * i)


@lean_kernel
def message(table, i):
    """Address of message i of a table u1[n, 64]."""
    return address_of(table) + MESSAGE_BYTES * i


@kernel
def message_data(m):
    """Address of the message's bytes, valid until it is closed, sent or moved. (Short ones lie inside the message.)"""
    return zmq_msg_data(m)


@kernel
def message_size(m):
    """Bytes in the message."""
    return zmq_msg_size(m)


@kernel
def message_more(m):
    """1 if more frames of the same multipart message follow the one received here, else 0."""
    return zmq_msg_more(m)


@kernel
def message_close(m):
    """Release the message's bytes; it is empty afterwards. The last holder of a copy frees them."""
    zmq_msg_close(m)
    zmq_msg_init(m)


@kernel
def message_move(to, source):
    """Hand the content over: `to`'s is released, `source` is empty afterwards. 0 or -errno."""
    return 0 if zmq_msg_move(to, source) == 0 else -zmq_errno()


@kernel
def message_copy(to, source):
    """Share the content: both refer to the same bytes, which nobody may change; `to`'s are released. 0 or -errno."""
    return 0 if zmq_msg_copy(to, source) == 0 else -zmq_errno()


@kernel
def message_alloc(m, size):
    """Give an empty message `size` bytes of its own, to be filled at `message_data(m)`. 0 or -errno (ENOMEM)."""
    return 0 if zmq_msg_init_size(m, size) == 0 else -zmq_errno()


@kernel
def message_fill(m, source, size):
    """Give an empty message a copy of the `size` bytes at address `source`. 0 or -errno (ENOMEM)."""
    if zmq_msg_init_size(m, size) != 0:
        return -zmq_errno()
    if size > 0:
        copy_bytes(zmq_msg_data(m), source, size)
    return 0


@kernel
def receive(socket, m, flags):
    """Receive one frame into message `m`: its size, or -errno, and then `m` is empty.

    EAGAIN: nothing there (DONTWAIT); EINTR: a signal, return to Python; ETERM, ENOTSOCK: the context is closing, stop.
    """
    size = zmq_msg_recv(m, socket, flags)
    return size if size >= 0 else -zmq_errno()


@kernel
def send(socket, m, flags):
    """Send message `m` as one frame: its size, or -errno; then `m` is still full and the caller's to close.

    EAGAIN: the peer does not read (its queue is full), or none is connected; EHOSTUNREACH: the peer of this routing id
    is gone; EINTR: a signal came first; ETERM, ENOTSOCK: the context is closing. A size is acceptance, not delivery.
    """
    size = zmq_msg_send(m, socket, flags)
    return size if size >= 0 else -zmq_errno()


@kernel
def send_bytes(socket, source, size, flags):
    """Send a copy of the `size` bytes at address `source` as one frame: size, or -errno as `send`."""
    sent = zmq_send(socket, source, size, flags)
    return sent if sent >= 0 else -zmq_errno()


@kernel
def routing_key(m):
    """A positive int64 that names the peer of this routing-id frame; 0 if it is not one that the socket generated.

    Only generated ids (a zero byte and a u32) are accepted: a peer that chose its own could take another's place.
    """
    if zmq_msg_size(m) != ROUTING_ID_BYTES:
        return 0
    data = zmq_msg_data(m)
    return _KEY_MARK | load_u4(data + 1) if load_u1(data) == 0 else 0


@kernel
def send_routing_id(socket, key):
    """Send the first frame of a message to the peer that `routing_key` named: 5, or -errno as `send`.

    Only this frame can meet EHOSTUNREACH and EAGAIN on a ROUTER. More frames must follow.
    """
    words = stack_words()
    store_i8(words, (key & 0xFFFFFFFF) << 8)
    sent = zmq_send(socket, words, ROUTING_ID_BYTES, DONTWAIT | SNDMORE)
    return sent if sent >= 0 else -zmq_errno()


@lean_kernel
def receive_frames(socket, table, first, frames_max):
    """Receive a whole multipart message without waiting, into the messages first, first+1, ... of `table`.

    Returns how many frames it had, or -errno as `receive`, and then message `first` is empty. Frames beyond
    `frames_max` (at least 1) are dropped: a greater answer says so, and the first `frames_max` frames are there.
    """
    base = address_of(table) + MESSAGE_BYTES * first
    if zmq_msg_recv(base, socket, DONTWAIT) < 0:
        return -zmq_errno()
    frames = 1
    last = base
    while zmq_msg_more(last) != 0:
        if frames >= frames_max:
            return frames + drop_rest(socket)
        last = base + MESSAGE_BYTES * frames
        while zmq_msg_recv(last, socket, DONTWAIT) < 0:
            error = zmq_errno()
            if error != -EINTR:  # never EAGAIN: a message arrives whole or not at all
                return -error
        frames += 1
    return frames


@kernel
def drop_rest(socket):
    """Receive and forget the frames left of the message that is being received; how many they were."""
    words = stack_words()
    frames = 0
    while True:
        store_i8(words, 0)
        store_i8(words + 8, 4)
        if zmq_getsockopt(socket, _RCVMORE, words, words + 8) != 0 or load_i4(words) == 0:
            return frames
        if zmq_recv(socket, words, 0, DONTWAIT) >= 0:
            frames += 1
        elif zmq_errno() != -EINTR:
            return frames


@kernel
def has_input(socket):
    """True if a message waits. All of libzmq's commands to the socket are taken: what comes later makes its descriptor
    (ZMQ_FD) readable again, and this is the only word of what came before."""
    words = stack_words()
    store_i8(words, 0)
    store_i8(words + 8, 4)
    return zmq_getsockopt(socket, _EVENTS, words, words + 8) == 0 and load_i4(words) & POLLIN != 0


@lean_kernel
def send_frames(socket, table, first, frames):
    """Send the messages first, first+1, ... of `table` as one multipart message, without waiting: 0, or -errno.

    The messages are empty afterwards, sent or not. On an error (as `send`; it can only meet the first frame, or be the
    end of the context) nothing is delivered.
    """
    base = address_of(table) + MESSAGE_BYTES * first
    for k in range(frames):
        flags = DONTWAIT | SNDMORE if k + 1 < frames else DONTWAIT
        while zmq_msg_send(base + MESSAGE_BYTES * k, socket, flags) < 0:
            error = zmq_errno()
            if k == 0 or error != -EINTR:
                for rest in range(k, frames):
                    message_close(base + MESSAGE_BYTES * rest)
                return -error
    return 0


@lean_kernel
def poll(items, timeout_ms):
    """Wait until an item of POLL_ITEM[n] is ready: how many are, or -errno; `revents` says which.

    EINTR: a signal, return to Python at once. A timeout counts milliseconds, coarsely: use -1 and a timerfd, or 0.
    """
    ready = zmq_poll(address_of(items), items.shape[0], timeout_ms)
    return ready if ready >= 0 else -zmq_errno()
