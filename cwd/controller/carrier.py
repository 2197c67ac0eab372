"""The process beside the controller that carries records from a shared-memory ring to the log's files.

It only takes, writes, rotates, deletes the oldest files, and counts for whoever scrapes its metrics; it ends when its
stdin does, after the ring is empty. It loads nothing of numba where it need not: then it starts four times as fast, and
is a quarter as large. `writer.py` is the daemon's end.
"""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cwd.controller.record import LOG_MAGIC, RECORD
from cwd.errors import CwdError
from cwd.net.journal import log_to_stderr
from cwd.net.priority import set_nice
from cwd.net.ring_block import ORDERED, Taker, ring_bytes, shared_block

if TYPE_CHECKING:
    from cwd.observe.scrape import Scraped

LOG = logging.getLogger("cwd.controller")
#: variable for the log's first line: as an argument it would fill the page of whoever lists processes
HEADER = "CWD_LOG_HEADER"
_BATCH = 4096
_WAIT_S = 0.02


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


def _scraped(header: dict[str, Any], listener_fd: int) -> Scraped | None:
    """What counts for the metrics, being served; None if nobody wants them."""
    if listener_fd < 0:
        return None
    import cwd.controller.host  # noqa: F401  for `loop_stats`: it loads numba, and the ring cannot wait for that later
    from cwd.observe.scrape import Scraped, serve  # prometheus-client is only there where it is asked for

    config = header["config"]
    scraped = Scraped(header, config["metrics_models"], config["metrics_triton_aliases"])
    serve(socket.socket(fileno=listener_fd), scraped)
    return scraped


def loop_stats(line: bytes) -> dict[str, int]:
    """What `LogWriter.stats` told: the fields of the loop's state by name, and Python's times."""
    _, _, state, python_max_ns, python_ns = line.split()
    from cwd.controller.host import STATE  # which loads numba: only where metrics are asked for

    row = np.frombuffer(bytes.fromhex(state.decode()), STATE)[0]
    return {**dict(zip(STATE.names or (), row.item(), strict=True)), "python_max_ns": int(python_max_ns),
            "python_ns": int(python_ns)}


def _taker(capacity: int, fd: int) -> Callable[[np.ndarray], int]:
    """What moves records out of the ring behind `fd`: up to so many as the rows that it is given, and says how many."""
    block = shared_block(ring_bytes(RECORD, capacity), fd)[0]
    if ORDERED:
        return Taker(RECORD, capacity, block).take
    from cwd.controller.writer import take
    from cwd.net.sync import attach_ring

    return partial(take, attach_ring(RECORD, capacity, block))


def carry(take: Callable[[np.ndarray], int], files: _Files | None, scraped: Scraped | None) -> None:
    """Take records from the ring and names from stdin, until that has ended and the ring is empty."""
    rows = np.zeros(_BATCH, RECORD)
    open_input, begun = True, b""
    while True:
        count = take(rows)
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
    header = json.loads(os.environ[HEADER])
    take = _taker(int(capacity), int(fd))
    try:
        files = _Files(Path(folder), header, int(rotate_bytes), int(keep_bytes)) if header["config"]["log"] else None
        carry(take, files, _scraped(header, int(listener_fd)))
        return 0
    except OSError as error:
        LOG.error("%s: %s; nothing is logged from here on", error.filename or folder, error.strerror)
        return 1
    except CwdError as error:
        LOG.error("%s", error.text)
        return 1
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
