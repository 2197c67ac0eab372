"""Telling a supervisor that a daemon is ready, in systemd's way, and being such a supervisor.

Plain Python, no zmq, no numba. A daemon sends `READY=1` to the unix datagram socket named by `$NOTIFY_SOCKET`; systemd,
`cwd up` and `LocalCluster` all learn from it that serving has begun. What else systemd understands (man sd_notify) is
here as well: WATCHDOG, RELOADING, STOPPING, STATUS, and the extension of a timeout.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from cwd.units import NS_PER_US


def supervised() -> bool:
    """Whether somebody wants to be told."""
    return bool(os.environ.get("NOTIFY_SOCKET"))


def watchdog_period_ns() -> int:
    """How often WATCHDOG=1 is to be sent: twice as often as the supervisor asks for; 0 if it does not ask this process."""
    try:
        asked_us = int(os.environ.get("WATCHDOG_USEC", "0"))
        pid = int(os.environ.get("WATCHDOG_PID") or os.getpid())
    except ValueError:
        return 0
    return max(asked_us, 0) * NS_PER_US // 2 if pid == os.getpid() and supervised() else 0


#: (socket, its line): the last state that a full queue kept from being sent there; the next words take it along
_unsent: tuple[str, str] | None = None


def notify(*, ready: bool = False, reloading: bool = False, stopping: bool = False, watchdog: bool = False,
           status: str = "", extend_ns: int = 0) -> bool:
    """Send what holds to `$NOTIFY_SOCKET`; True if it was sent. Without a supervisor, or if it is gone or busy: False.

    `reloading` lasts until the next `ready`. `extend_ns`: a start or a stop takes longer than its timeout may allow,
    but something will be heard within that time from now. A supervisor that does not read has a full queue after ten
    messages (net.unix.max_dgram_qlen); a state that was lost so is sent by the next call, whatever that is about.
    """
    global _unsent
    path = os.environ.get("NOTIFY_SOCKET", "")
    state = "\n".join(line for line, wanted in (
        ("READY=1", ready), (f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // NS_PER_US}", reloading),
        ("STOPPING=1", stopping)) if wanted)
    if not state and _unsent is not None and _unsent[0] == path:
        state = _unsent[1]
    lines = [state] * bool(state) + [line for line, wanted in (
        ("WATCHDOG=1", watchdog), (f"STATUS={' '.join(status.split())}", bool(status)),
        (f"EXTEND_TIMEOUT_USEC={extend_ns // NS_PER_US}", extend_ns > 0),
    ) if wanted]
    if not path or not lines:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.setblocking(False)  # a daemon never waits for whoever watches it
        try:
            sender.sendto("\n".join(lines).replace("\0", "").encode(), _address(path))
        except BlockingIOError:
            _unsent = (path, state) if state else None
            return False
        except OSError:
            return False
    _unsent = None
    return True


class NotifyListener:
    """The supervisor's end: a bound socket whose `path` goes into the daemon's `NOTIFY_SOCKET`. A context manager."""

    def __init__(self, directory: Path | None = None) -> None:
        self._own = None if directory else tempfile.TemporaryDirectory(prefix="cwd-notify-")
        folder = directory or Path(self._own.name if self._own else "")
        self.path = str(folder / f"notify-{os.getpid()}-{id(self):x}.sock")
        self.status = ""
        self.ready = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.bind(self.path)

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self, timeout_s: float = 0.0) -> dict[str, str] | None:
        """The next datagram's variables, or None after `timeout_s`; keeps `ready` and `status` up to date."""
        self._socket.settimeout(timeout_s)
        try:
            text = self._socket.recv(65_536).decode(errors="replace")
        except (BlockingIOError, TimeoutError, InterruptedError):
            return None
        found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        self.ready |= found.get("READY") == "1"
        self.status = found.get("STATUS", self.status)
        return found

    def wait_ready(self, timeout_s: float, alive: Callable[[], bool] = lambda: True) -> bool:
        """True once READY=1 has come; False after `timeout_s`, or soon after `alive()` says that the daemon is gone."""
        end = time.monotonic() + timeout_s
        while not self.ready:
            left = end - time.monotonic()
            if left <= 0:
                return False
            if self.receive(min(left, 0.05)) is None and not alive():
                self.receive(0.0)  # its last words may have come meanwhile
                return self.ready
        return True

    def close(self) -> None:
        self._socket.close()
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        if self._own:
            self._own.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None,
    ) -> None:
        self.close()


def _address(path: str) -> str:
    return "\0" + path[1:] if path.startswith("@") else path
