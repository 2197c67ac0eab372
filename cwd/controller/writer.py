"""The daemon's end of the log: it makes the ring, starts the process that empties it (carrier.py), and names models
and clients for people.

If that cannot keep up the loop counts what it had to drop (`log_lost`) and says so in the log (GAP).
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import importlib.util
import json
import logging
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cwd import __version__
from cwd.controller.carrier import HEADER
from cwd.controller.config import ControllerConfig
from cwd.controller.record import RECORD
from cwd.errors import Code, CwdError
from cwd.jit import lean_kernel
from cwd.net.sync import Ring, make_ring, ring_bytes, ring_pop, shared_block

LOG = logging.getLogger("cwd.controller")
#: without a log the loop still has a ring to work with
_NO_RING = 2
#: what the pipe of names holds where the system lets it
_NAMES_BYTES = 1 << 20


def new_epoch(state_dir: Path, wall_ns: int) -> int:
    """A boot epoch above every one that has left a log here, even if the clock was set back."""
    found = [int(path.name.split(".")[0].removeprefix("log-"), 16) for path in state_dir.glob("log-*.cwdlog")]
    return max([wall_ns, *(epoch + 1 for epoch in found)])


class LogWriter:
    """The ring, and the process that empties it; `names` go to a text file beside the log."""

    def __init__(self, config: ControllerConfig, core: Any, state_dir: Path, epoch: int) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._metrics = bool(config.metrics_bind)
        self.ring: Ring = make_ring(RECORD, _NO_RING)
        if not config.records:
            return
        listener = listen(config.metrics_bind) if config.metrics_bind else None
        if listener is not None and importlib.util.find_spec("prometheus_client") is None:
            raise CwdError("metrics need prometheus-client: pip install 'cwd[metrics]'", code=Code.BAD_ARGUMENT)
        block, fd = shared_block(ring_bytes(RECORD, config.log_ring))
        self.ring = make_ring(RECORD, config.log_ring, block)
        header = {
            "version": 1, "epoch": epoch, "record_bytes": RECORD.itemsize, "dtype": RECORD.descr,
            "config": dataclasses.asdict(config), "core": dataclasses.asdict(core), "cwd": __version__,
            "started": {"wall_ns": time.time_ns(), "monotonic_ns": time.monotonic_ns()},
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cwd.controller.carrier", str(fd), str(config.log_ring), str(state_dir),
             str(config.log_rotate_bytes), str(config.log_keep_bytes), str(listener.fileno() if listener else -1)],
            env={**os.environ, HEADER: json.dumps(header)}, stdin=subprocess.PIPE, start_new_session=True,
            pass_fds=(fd, *([listener.fileno()] if listener else [])))
        os.close(fd)
        if listener is not None:
            listener.close()
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        with contextlib.suppress(OSError):  # a leader names all its models at once, before the process has begun to read
            fcntl.fcntl(self._process.stdin.fileno(), fcntl.F_SETPIPE_SZ, _NAMES_BYTES)

    def name(self, sort: str, number: int, text: str, since_ns: int = 0) -> None:
        """Note that `number` of that sort (model, client, gpu) is called `text`; lost if the pipe is full.

        A client's number is given to others after it: `since_ns` is when it came.
        """
        if self._process is None or self._process.stdin is None:
            return
        since = f"since {number} {since_ns}\n" if since_ns else ""
        try:
            os.write(self._process.stdin.fileno(), f"{sort} {number} {text}\n{since}".encode())
        except OSError:
            LOG.debug("the log does not know the name of %s %d", sort, number)

    def stats(self, state: Any, python: dict[str, int]) -> None:
        """Have the loop's own counters among the metrics; costs microseconds, and nothing where nobody wants them."""
        if self._metrics:
            self.name("stats", 0, f"{state.tobytes().hex()} {python['python_cpu_max_ns']} {python['python_ns']}")

    def close(self) -> None:
        """Let the process write what is left, and wait for it."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.terminate()


@lean_kernel
def take(ring, rows):
    """Move up to len(rows) records out of the ring: how many. For processors that `Taker` is not for."""
    count = 0
    while count < len(rows) and ring_pop(ring, rows, count) != 0:
        count += 1
    return count


def listen(bind: str) -> socket.socket:
    """A listening TCP socket at "host:port" (no host: loopback); `CwdError` if that is no address or is taken."""
    host, colon, port = bind.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise CwdError(f"{bind!r} is no host:port for metrics", code=Code.BAD_ARGUMENT)
    try:
        return socket.create_server((host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise CwdError(f"metrics at {bind}: {error.strerror or error}", code=Code.BAD_ARGUMENT) from None


def check_state_dir(folder: Path) -> None:
    """Make the folder of the log; `CwdError` if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CwdError(f"{folder}: {error.strerror}", code=Code.BAD_ARGUMENT) from None

