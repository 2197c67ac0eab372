"""What a thread sleeps on: eventfd, timerfd and poll in nopython code, and the pipe that a signal writes to.

It must not know what the wake-up is for. Every call returns -errno on failure; EINTR is the caller's to handle: a
thread that runs Python's signal handlers returns to Python.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal

import numpy as np

from cwd.jit import kernel, lean_kernel
from cwd.net.clock import monotonic_ns
from cwd.net.native import I4, I8, address_of, external, last_errno, load_i8, load_u2, pause, stack_words, store_i8

EAGAIN = -errno.EAGAIN
EINTR = -errno.EINTR
EBADF = -errno.EBADF

_NS_PER_S = 1_000_000_000
_AT_MAX_NS = 1 << 62
_TFD_TIMER_ABSTIME = 1
_TFD_NONBLOCK_CLOEXEC = 0o4000 | 0o2000000
_CLOCK_MONOTONIC = 1
_POLLIN = 1
_POLLNVAL = 32
_PR_SET_TIMERSLACK = 29

#: struct pollfd
POLL_FD = np.dtype([("fd", "i4"), ("events", "i2"), ("revents", "i2")])

_read = external("read", I8, I4, I8, I8)
_write = external("write", I8, I4, I8, I8)
_ppoll = external("ppoll", I4, I8, I8, I8, I8)
_timerfd_settime = external("timerfd_settime", I4, I4, I4, I8, I8)
_prctl = external("prctl", I4, I4, I8, I8, I8, I8)


def make_eventfd() -> int:
    """A non-blocking eventfd, counter 0, closed on exec; the caller closes it."""
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


def poll_fds(*fds: int) -> np.ndarray:
    """POLL_FD[len(fds)] that waits for input on all."""
    items = np.zeros(len(fds), POLL_FD)
    items["fd"], items["events"] = fds, _POLLIN
    return items


def make_timerfd() -> int:
    """A non-blocking timerfd on CLOCK_MONOTONIC, not armed, closed on exec; the caller closes it."""
    fd = ctypes.CDLL(None, use_errno=True).timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK_CLOEXEC)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "timerfd_create failed")
    return int(fd)


def signal_pipe() -> int:
    """A file descriptor that becomes readable when a signal with a Python handler comes; for the poll set.

    EINTR alone is not enough: a signal just before the poll begins does not interrupt it. To be called in the main
    thread; `drain(fd)` empties it.
    """
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    return reader


def drain(fd: int) -> None:
    """Read a non-blocking descriptor until it is empty."""
    try:
        while os.read(fd, 4096):
            pass
    except BlockingIOError:
        pass


@kernel
def eventfd_signal(fd):
    """Make the eventfd readable: 0, or -errno. (Only 2**64 signals that nobody reads would make it EAGAIN.)"""
    words = stack_words()
    store_i8(words, 1)
    return 0 if _write(fd, words, 8) == 8 else -last_errno()


@kernel
def eventfd_clear(fd):
    """How often it was signalled since the last clear, or -errno (EAGAIN: not at all)."""
    words = stack_words()
    return load_i8(words) if _read(fd, words, 8) == 8 else -last_errno()


@kernel
def timerfd_arm(fd, at_ns):
    """Fire once at `at_ns` on the monotonic clock (at once if that has passed; 0 or less disarms): 0, or -errno."""
    at = min(at_ns, _AT_MAX_NS)
    words = stack_words()  # struct itimerspec: interval seconds and nanoseconds, then the first expiry's
    store_i8(words, 0)
    store_i8(words + 8, 0)
    store_i8(words + 16, at // _NS_PER_S if at > 0 else 0)
    store_i8(words + 24, at % _NS_PER_S if at > 0 else 0)
    return 0 if _timerfd_settime(fd, _TFD_TIMER_ABSTIME, words, 0) == 0 else -last_errno()


@kernel
def timerfd_clear(fd):
    """How often it fired since it was armed or cleared (then it is no longer readable), or -errno (EAGAIN: not)."""
    words = stack_words()
    return load_i8(words) if _read(fd, words, 8) == 8 else -last_errno()


@kernel
def wait_fd(fd, timeout_ns):
    """Sleep until `fd` is readable: 1; 0 after `timeout_ns` (negative: for ever); -errno (EINTR: a signal)."""
    words = stack_words()  # struct pollfd in the first word, a timespec in the next two
    store_i8(words, (fd & 0xFFFFFFFF) | (_POLLIN << 32))
    wait = 0
    if timeout_ns >= 0:
        store_i8(words + 8, timeout_ns // _NS_PER_S)
        store_i8(words + 16, timeout_ns % _NS_PER_S)
        wait = words + 8
    ready = _ppoll(words, 1, wait, 0)
    if ready < 0:
        return -last_errno()
    return EBADF if load_u2(words + 6) & _POLLNVAL else ready


@lean_kernel
def wait_fds(items, timeout_ns):
    """Sleep until an item of POLL_FD[n] is ready: how many are (`revents` says which); else as `wait_fd`."""
    words = stack_words()
    wait = 0
    if timeout_ns >= 0:
        store_i8(words, timeout_ns // _NS_PER_S)
        store_i8(words + 8, timeout_ns % _NS_PER_S)
        wait = words
    ready = _ppoll(address_of(items), items.shape[0], wait, 0)
    return ready if ready >= 0 else -last_errno()


@kernel
def spin_until(at_ns):
    """Burn the processor until the monotonic clock reads `at_ns`; how late it is then. For the last microseconds."""
    now = monotonic_ns()
    while now < at_ns:
        pause()
        now = monotonic_ns()
    return now - at_ns


@kernel
def set_timer_slack(slack_ns):
    """Let this thread's timed sleeps end within `slack_ns` (the kernel's default is 50 us): 0, or -errno."""
    return 0 if _prctl(_PR_SET_TIMERSLACK, slack_ns, 0, 0, 0) == 0 else -last_errno()
