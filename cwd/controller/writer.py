"""The log writer: a process beside the controller that carries records from a shared-memory ring to files.

`LogWriter` is the daemon's end: it makes the ring, starts the process, and names models and clients for people. The
process only takes, writes, rotates, deletes the oldest files, and counts for whoever scrapes its metrics; it ends when its
stdin does, after the ring is empty. If it cannot keep up the loop counts what it had to drop (`log_lost`) and says so in
the log (GAP).
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import importlib.util
import json
import logging
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cwd import __version__
from cwd.controller.config import ControllerConfig
from cwd.controller.host import STATE
from cwd.controller.record import LOG_MAGIC, RECORD
from cwd.errors import Code, CwdError
from cwd.jit import lean_kernel
from cwd.net.journal import log_to_stderr
from cwd.net.priority import set_nice
from cwd.net.sync import Ring, attach_ring, make_ring, ring_bytes, ring_pop, shared_block

if TYPE_CHECKING:
    from cwd.observe.scrape import Scraped

LOG = logging.getLogger("cwd.controller")
#: variable for the log's first line: as an argument it would fill the page of whoever lists processes
_HEADER = "CWD_LOG_HEADER"
_BATCH = 4096
_WAIT_S = 0.02
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
            [sys.executable, "-m", "cwd.controller.writer", str(fd), str(config.log_ring), str(state_dir),
             str(config.log_rotate_bytes), str(config.log_keep_bytes), str(listener.fileno() if listener else -1)],
            env={**os.environ, _HEADER: json.dumps(header)}, stdin=subprocess.PIPE, start_new_session=True,
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
    """Move up to len(rows) records out of the ring: how many."""
    count = 0
    while count < len(rows) and ring_pop(ring, rows, count) != 0:
        count += 1
    return count


def delete_oldest(folder: Path, present: str, keep_bytes: int) -> None:
    """Delete the oldest files of the logs in `folder`, of any epoch, until the others fit `keep_bytes`; never `present`.

    The names of an epoch go with the last of its files.
    """
    found = []
    for path in folder.glob("log-*.cwdlog"):
        stem, *part = path.name.removesuffix(".cwdlog").split(".")
        if path.name != present:
            found.append((stem, int(part[0]) if part else 0, path))
    found.sort()
    sizes = [path.stat().st_size for _, _, path in found]
    excess = sum(sizes) - max(keep_bytes, 0)
    for (stem, part, path), size in zip(found, sizes, strict=True):
        if excess <= 0:
            return
        path.unlink(missing_ok=True)
        excess -= size
        LOG.info("deleted %s: the logs were larger than they may be", path.name)
        if not any(folder.glob(f"{stem}*.cwdlog")):
            (folder / f"{stem}.names").unlink(missing_ok=True)


class _Files:
    """The log's files: the part being written, what comes after it, and which old ones may stay."""

    def __init__(self, folder: Path, header: dict[str, Any], rotate_bytes: int, keep_bytes: int) -> None:
        self._folder, self._header = folder, header
        self._rotate_bytes, self._keep_bytes = rotate_bytes, keep_bytes
        self._stem = f"log-{header['epoch']:016x}"
        self._part = 0
        self._file = self._open()
        self._names = open(folder / f"{self._stem}.names", "ab", buffering=0)

    def _open(self) -> int:
        name = f"{self._stem}.cwdlog" if self._part == 0 else f"{self._stem}.{self._part}.cwdlog"
        file = os.open(self._folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        text = json.dumps({**self._header, "part": self._part}).encode()
        os.write(file, LOG_MAGIC + len(text).to_bytes(4, "little") + text)
        self._bytes = 0
        if self._keep_bytes:
            delete_oldest(self._folder, name, self._keep_bytes - self._rotate_bytes)
        return file

    def write(self, rows: np.ndarray) -> None:
        data = memoryview(rows.tobytes())
        self._bytes += len(data)
        while data:
            data = data[os.write(self._file, data):]
        if self._bytes >= self._rotate_bytes:
            os.close(self._file)
            self._part += 1
            self._file = self._open()

    def names(self, data: bytes) -> None:
        self._names.write(data)


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


def _scraped(header: dict[str, Any], listener_fd: int) -> Scraped | None:
    """What counts for the metrics, being served; None if nobody wants them."""
    if listener_fd < 0:
        return None
    from cwd.observe.scrape import Scraped, serve  # prometheus-client is only there where it is asked for

    config = header["config"]
    scraped = Scraped(header, config["metrics_models"], config["metrics_triton_aliases"])
    serve(socket.socket(fileno=listener_fd), scraped)
    return scraped


def loop_stats(line: bytes) -> dict[str, int]:
    """What `LogWriter.stats` told: the fields of the loop's state by name, and Python's times."""
    _, _, state, python_max_ns, python_ns = line.split()
    row = np.frombuffer(bytes.fromhex(state.decode()), STATE)[0]
    return {**dict(zip(STATE.names or (), row.item(), strict=True)), "python_max_ns": int(python_max_ns),
            "python_ns": int(python_ns)}


def carry(ring: Ring, files: _Files | None, scraped: Scraped | None) -> None:
    """Take records from the ring and names from stdin, until that has ended and the ring is empty."""
    rows = np.zeros(_BATCH, RECORD)
    open_input, begun = True, b""
    while True:
        count = take(ring, rows)
        if count and files is not None:
            files.write(rows[:count])
        if scraped is not None:
            scraped.take(rows[:count], time.monotonic_ns())
        if not count and not open_input:
            return
        ready = select.select([0], [], [], 0 if count else _WAIT_S)[0] if open_input else []
        if ready:
            data = os.read(0, 65536)
            open_input = bool(data)
            *lines, begun = (begun + data).split(b"\n")
            names = b"".join(line + b"\n" for line in lines if not line.startswith(b"stats "))
            if files is not None and names:
                files.names(names)
            if scraped is not None:
                scraped.names(names)
                for line in lines:
                    if line.startswith(b"stats "):
                        scraped.stats(loop_stats(line))


def main() -> int:
    set_nice(0)  # the controller's own is not for what can wait
    log_to_stderr("cwd controller log: %(message)s")
    fd, capacity, folder, rotate_bytes, keep_bytes, listener_fd = sys.argv[1:7]
    header = json.loads(os.environ[_HEADER])
    size_bytes = ring_bytes(RECORD, int(capacity))
    ring = attach_ring(RECORD, int(capacity), shared_block(size_bytes, int(fd))[0])
    try:
        files = _Files(Path(folder), header, int(rotate_bytes), int(keep_bytes)) if header["config"]["log"] else None
        carry(ring, files, _scraped(header, int(listener_fd)))
        return 0
    except OSError as error:
        LOG.error("%s: %s; nothing is logged from here on", error.filename or folder, error.strerror)
        return 1
    except CwdError as error:
        LOG.error("%s", error.text)
        return 1
    except KeyboardInterrupt:
        return 0


def check_state_dir(folder: Path) -> None:
    """Make the folder of the log; `CwdError` if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CwdError(f"{folder}: {error.strerror}", code=Code.BAD_ARGUMENT) from None


if __name__ == "__main__":
    sys.exit(main())
