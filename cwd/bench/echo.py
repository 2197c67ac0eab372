"""The bare worker: a DEALER that sends every message back as it came, in nopython code. The forwarder's other half.

    python -m cwd.bench.echo --connect ipc:///tmp/w
"""

from __future__ import annotations

import argparse
import signal
from typing import Any

import zmq

from cwd.jit import lean_kernel
from cwd.net.clock import monotonic_ns
from cwd.net.notify import notify
from cwd.net.sockets import connect_dealer, make_context
from cwd.net.zmq import (
    EINTR,
    message_table,
    messages_close,
    poll,
    poll_items,
    receive_frames,
    send_frames,
)

FRAMES_MAX = 64
_BATCH = 256


@lean_kernel
def echo(socket, items, table, until_ns):
    """Send back what comes until `until_ns` (monotonic) or a signal: 0, or -errno.

    `socket`: handle of a DEALER; `items` its POLL_ITEM[1]; `table`: u1[FRAMES_MAX, 64] empty messages. Longer
    messages are cut.
    """
    while True:
        moved = 0
        for _ in range(_BATCH):
            frames = receive_frames(socket, table, 0, FRAMES_MAX)
            if frames <= 0:
                break
            send_frames(socket, table, 0, min(frames, FRAMES_MAX))
            moved += 1
        now = monotonic_ns()
        if now >= until_ns:
            return 0
        if moved == 0:
            ready = poll(items, 1 + (until_ns - now) // 1_000_000)
            if ready < 0:
                return ready


def run(socket: zmq.Socket, stop: list[bool], slice_ns: int = 50_000_000) -> None:
    """Make the worker known to the forwarder, then echo in slices until `stop[0]` becomes true."""
    table = message_table(FRAMES_MAX)
    items = poll_items([socket], [])
    echo(socket.underlying, items, table, 0)
    while not stop[0] and not socket.poll(100, zmq.POLLOUT):
        pass  # not connected yet
    if not stop[0]:
        socket.send(b"here")
        notify(ready=True)
    while not stop[0]:
        error = echo(socket.underlying, items, table, monotonic_ns() + slice_ns)
        if error not in (0, EINTR):
            break
    messages_close(table)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connect", required=True, help="the forwarder's endpoint for workers")
    given = parser.parse_args(arguments)
    stop = [False]

    def on_signal(number: int, frame: Any) -> None:
        stop[0] = True

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    context = make_context()
    socket = connect_dealer(context, given.connect)
    run(socket, stop)
    socket.close(0)
    context.term()


if __name__ == "__main__":
    main()
