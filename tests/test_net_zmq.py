"""libzmq from nopython code: frames, routing ids, every failure by its own number, and who owns a message when."""

import ctypes
import errno
import os
import signal
import socket as posix
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq

from cwd.bench import echo
from cwd.errors import CwdError
from cwd.net import sockets
from cwd.net import zmq as nopython
from cwd.net.clock import monotonic_ns
from cwd.net.wake import drain, make_timerfd, signal_pipe, timerfd_arm
from cwd.net.warm import warm


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """What is timed below must not be compiled meanwhile."""
    warm()


@pytest.fixture
def context() -> Iterator[zmq.Context]:
    context = sockets.make_context()
    yield context
    context.destroy(linger=0)


@pytest.fixture
def pair(context: zmq.Context, tmp_path: Path) -> tuple[zmq.Socket, zmq.Socket]:
    """A bound ROUTER and a connected DEALER."""
    router = sockets.bind_router(context, f"ipc://{tmp_path}/s")
    dealer = sockets.connect_dealer(context, f"ipc://{tmp_path}/s")
    dealer.setsockopt(zmq.RCVTIMEO, 5000)
    assert dealer.poll(5000, zmq.POLLOUT)
    return router, dealer


def text(table: np.ndarray, i: int) -> bytes:
    m = nopython.message(table, i)
    return ctypes.string_at(nopython.message_data(m), nopython.message_size(m))


def receive(socket: zmq.Socket, table: np.ndarray, first: int = 0, frames_max: int = 4, timeout_s: float = 5) -> int:
    """`receive_frames`, once there is something."""
    assert socket.poll(int(timeout_s * 1000))
    return nopython.receive_frames(socket.underlying, table, first, frames_max)


def test_frames_there_and_back(pair: tuple[zmq.Socket, zmq.Socket]) -> None:
    router, dealer = pair
    table = nopython.message_table(8)
    long = os.urandom(100_000)
    dealer.send_multipart([b"header", b"", long])
    assert receive(router, table) == 4
    assert [text(table, i) for i in range(1, 4)] == [b"header", b"", long]
    assert nopython.routing_key(nopython.message(table, 0)) > 0
    assert nopython.send_frames(router.underlying, table, 0, 4) == 0
    assert [text(table, i) for i in range(4)] == [b""] * 4
    assert dealer.recv_multipart() == [b"header", b"", long]


def test_too_many_frames_are_dropped_and_the_next_message_is_whole(pair: tuple[zmq.Socket, zmq.Socket]) -> None:
    router, dealer = pair
    table = nopython.message_table(4)
    dealer.send_multipart([b"%d" % i for i in range(300)])
    dealer.send_multipart([b"next"])
    assert receive(router, table, 0, 3) == 301
    assert [text(table, 1), text(table, 2), text(table, 3)] == [b"0", b"1", b""]
    assert receive(router, table, 0, 3) == 2
    assert text(table, 1) == b"next"


def test_nothing_there_is_eagain_and_empties_the_message(pair: tuple[zmq.Socket, zmq.Socket]) -> None:
    router, _ = pair
    table = nopython.message_table(1)
    m = nopython.message(table, 0)
    nopython.message_alloc(m, 10)
    assert nopython.receive_frames(router.underlying, table, 0, 1) == nopython.EAGAIN
    assert nopython.message_size(m) == 0
    assert nopython.receive(router.underlying, m, nopython.DONTWAIT) == nopython.EAGAIN


def test_send_by_key_and_unreachable_peers(pair: tuple[zmq.Socket, zmq.Socket]) -> None:
    router, dealer = pair
    table = nopython.message_table(3)
    dealer.send(b"hello")
    receive(router, table)
    key = nopython.routing_key(nopython.message(table, 0))
    raw = np.frombuffer(b"answer", np.uint8)
    assert nopython.send_routing_id(router.underlying, key) == 5
    assert nopython.send_bytes(router.underlying, raw.ctypes.data, 6, nopython.DONTWAIT) == 6
    assert dealer.recv_multipart() == [b"answer"]
    assert nopython.send_routing_id(router.underlying, key + 1) == nopython.EHOSTUNREACH
    dealer.close(0)
    end = time.monotonic() + 5
    while nopython.send_routing_id(router.underlying, key) == 5:  # accepted until the disconnection is noticed
        nopython.send_bytes(router.underlying, raw.ctypes.data, 6, nopython.DONTWAIT)
        assert time.monotonic() < end
        time.sleep(0.01)
    assert nopython.send_routing_id(router.underlying, key) == nopython.EHOSTUNREACH


def test_failed_send_closes_its_messages(pair: tuple[zmq.Socket, zmq.Socket]) -> None:
    router, _ = pair
    table = nopython.message_table(2)
    for i in range(2):
        nopython.message_alloc(nopython.message(table, i), 5)
    assert nopython.send_frames(router.underlying, table, 0, 2) == nopython.EHOSTUNREACH
    assert [text(table, i) for i in range(2)] == [b"", b""]


@pytest.mark.parametrize("identity", [b"abc", b"abcde", b"x" * 200])
def test_chosen_identities_have_no_key(context: zmq.Context, tmp_path: Path, identity: bytes) -> None:
    router = sockets.bind_router(context, f"ipc://{tmp_path}/s")
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.ROUTING_ID, identity)
    dealer.connect(f"ipc://{tmp_path}/s")
    dealer.send(b"x")
    table = nopython.message_table(2)
    assert receive(router, table) == 2
    assert text(table, 0) == identity
    assert nopython.routing_key(nopython.message(table, 0)) == 0


def test_copies_share_and_outlive(context: zmq.Context) -> None:
    table = nopython.message_table(3)
    a, b, c = (nopython.message(table, i) for i in range(3))
    content = np.frombuffer(os.urandom(1000), np.uint8)
    assert nopython.message_fill(a, content.ctypes.data, 1000) == 0
    assert nopython.message_copy(b, a) == 0
    assert nopython.message_data(a) == nopython.message_data(b)
    nopython.message_close(a)
    assert text(table, 0) == b"" and text(table, 1) == content.tobytes()
    assert nopython.message_move(c, b) == 0
    assert text(table, 1) == b"" and text(table, 2) == content.tobytes()
    assert context.get(10) == 0  # ZMQ_ZERO_COPY_RECV


def test_peer_that_does_not_read_is_eagain(context: zmq.Context, tmp_path: Path) -> None:
    router = sockets.bind_router(context, f"ipc://{tmp_path}/s", send_queue=4)
    dealer = sockets.connect_dealer(context, f"ipc://{tmp_path}/s", receive_queue=4)
    assert dealer.poll(5000, zmq.POLLOUT)
    dealer.send(b"hello")
    table = nopython.message_table(2)
    receive(router, table)
    key = nopython.routing_key(nopython.message(table, 0))
    payload = np.zeros(1 << 16, np.uint8)
    for _ in range(10_000):
        sent = nopython.send_routing_id(router.underlying, key)
        if sent < 0:
            break
        nopython.send_bytes(router.underlying, payload.ctypes.data, payload.size, nopython.DONTWAIT)
    assert sent == nopython.EAGAIN


def test_unconnected_dealer_queues_nothing(context: zmq.Context, tmp_path: Path) -> None:
    dealer = sockets.connect_dealer(context, f"ipc://{tmp_path}/nobody")
    table = nopython.message_table(1)
    assert nopython.send_frames(dealer.underlying, table, 0, 1) == nopython.EAGAIN


def test_echo_kernel_in_a_thread(pair: tuple[zmq.Socket, zmq.Socket]) -> None:
    router, dealer = pair
    stop = [False]
    thread = threading.Thread(target=echo.run, args=(dealer, stop, 5_000_000))
    thread.start()
    sender = router.recv_multipart()[0]
    for i in range(1000):
        router.send_multipart([sender, b"%d" % i, b"payload"])
    for i in range(1000):
        assert router.poll(5000)
        assert router.recv_multipart() == [sender, b"%d" % i, b"payload"]
    stop[0] = True
    thread.join(5)
    assert not thread.is_alive()


def test_poll_says_which(pair: tuple[zmq.Socket, zmq.Socket]) -> None:
    router, dealer = pair
    timer = make_timerfd()
    items = nopython.poll_items([router], [timer])
    assert nopython.poll(items, 0) == 0
    timerfd_arm(timer, monotonic_ns() + 1_000_000)
    assert nopython.poll(items, 5000) == 1
    assert list(items["revents"]) == [0, nopython.POLLIN]
    dealer.send(b"x")
    end = time.monotonic() + 5
    while nopython.poll(items, 100) < 2 and time.monotonic() < end:
        pass
    assert list(items["revents"]) == [nopython.POLLIN, nopython.POLLIN]
    os.close(timer)


def test_signal_interrupts_poll_at_once(pair: tuple[zmq.Socket, zmq.Socket]) -> None:
    router, _ = pair
    items = nopython.poll_items([router], [])
    nopython.poll(items, 0)
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    main = threading.get_ident()
    at: list[float] = []

    def interrupt() -> None:
        time.sleep(0.1)
        at.append(time.monotonic())
        signal.pthread_kill(main, signal.SIGUSR1)

    thread = threading.Thread(target=interrupt)
    try:
        thread.start()
        result = nopython.poll(items, 60_000)
        late = time.monotonic() - at[0]
        thread.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert result == nopython.EINTR
    assert seen == [signal.SIGUSR1]
    assert late < 30


def test_signal_before_poll_is_not_missed(pair: tuple[zmq.Socket, zmq.Socket]) -> None:
    router, _ = pair
    wakeup_before = signal.set_wakeup_fd(-1)
    handler_before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    try:
        fd = signal_pipe()
        items = nopython.poll_items([router], [fd])
        signal.raise_signal(signal.SIGUSR1)
        assert nopython.poll(items, 10_000) == 1
        drain(fd)
        assert nopython.poll(items, 0) == 0
    finally:
        os.close(signal.set_wakeup_fd(wakeup_before))
        signal.signal(signal.SIGUSR1, handler_before)
        os.close(fd)


def test_terminated_context_is_eterm(tmp_path: Path) -> None:
    context = sockets.make_context()
    router = sockets.bind_router(context, f"ipc://{tmp_path}/s")
    table = nopython.message_table(1)
    thread = threading.Thread(target=context.term)
    thread.start()
    end = time.monotonic() + 5
    while (result := nopython.receive_frames(router.underlying, table, 0, 1)) == nopython.EAGAIN:
        assert time.monotonic() < end
    router.close(0)
    thread.join(5)
    assert result == nopython.ETERM


def test_living_ipc_name_is_not_taken_away(context: zmq.Context, tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/s"
    first = sockets.bind_router(context, endpoint)
    with pytest.raises(CwdError, match="in use") as caught:
        sockets.bind_router(context, endpoint)
    assert endpoint in str(caught.value) and "\n" not in str(caught.value)
    dealer = sockets.connect_dealer(context, endpoint)
    assert dealer.poll(5000, zmq.POLLOUT)
    dealer.send(b"x")
    assert first.poll(5000)


def test_left_over_ipc_file_is_replaced(context: zmq.Context, tmp_path: Path) -> None:
    with posix.socket(posix.AF_UNIX) as dead:
        dead.bind(f"{tmp_path}/s")
    assert (tmp_path / "s").exists()
    sockets.bind_router(context, f"ipc://{tmp_path}/s")


def test_tcp_port_in_use(context: zmq.Context) -> None:
    with posix.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        endpoint = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(CwdError, match=f"{endpoint}: it is in use"):
            sockets.bind_router(context, endpoint)


@pytest.mark.parametrize(("endpoint", "why"), [
    ("ipc:///nonexistent-directory/s", "does not exist"),
    ("ipc://" + "x" * 200, "longer than"),
    ("tcp://0.0.0.0:5555", "loopback"),
    ("tcp://*:5555", "loopback"),
    ("tcp://127.0.0.1", "malformed"),
    ("tcp://127.0.0.1:port", "malformed"),
    ("udp://127.0.0.1:1", "not an ipc"),
    ("nonsense", "not an ipc"),
])
def test_bad_endpoints_are_one_clear_line(context: zmq.Context, endpoint: str, why: str) -> None:
    with pytest.raises(CwdError, match=why) as caught:
        sockets.bind_router(context, endpoint)
    assert endpoint in str(caught.value) and "\n" not in str(caught.value)


def test_open_bind_on_request(context: zmq.Context) -> None:
    sockets.bind_router(context, "tcp://0.0.0.0:*", open_bind=True)


def test_constants_are_negative_errnos() -> None:
    assert (nopython.EAGAIN, nopython.EINTR, nopython.EHOSTUNREACH) == (-errno.EAGAIN, -errno.EINTR, -errno.EHOSTUNREACH)
