"""The watcher of the key folder: a process beside the controller that reads it twice a second.

`KeyWatch` is the daemon's end: `changes` never waits. The process says each difference as it finds it, as a msgpack
array [added, role, public key, name], and after every reading its number; a byte on its stdin has it read at once. It
starts from nothing, so that a watcher that was started again tells everything, and the daemon makes up the difference.
"""

from __future__ import annotations

import logging
import os
import select
import sys
import time
from collections.abc import Iterator
from typing import Any

import msgpack

from cwd.controller.side_process import SideProcess
from cwd.net.auth import Change, Scanner
from cwd.net.priority import set_nice

LOG = logging.getLogger("cwd.keys")

#: between two readings
SCAN_S = 0.5
_CHUNK_BYTES = 4096


class KeyWatch:
    """The daemon's end. A process that ended is started again, at most once in `SCAN_S`."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._started_s = time.monotonic()
        self._process = SideProcess("cwd.controller.keywatch", folder)

    def changes(self) -> Iterator[Change | int | None]:
        """What the process has said: a change, the number of a reading, or None: it is new, and will tell everything.

        Whoever stops in between gets the rest the next time.
        """
        yield from map(_told, self._process.unpacker)
        try:
            data = os.read(self._process.said, _CHUNK_BYTES)
        except BlockingIOError:
            return
        if not data:
            if time.monotonic() < self._started_s + SCAN_S:
                return
            LOG.error("the watcher of %s ended; another is started", self._folder)
            self._process.close()
            self._process.start()
            self._started_s = time.monotonic()
            yield None
            return
        self._process.unpacker.feed(data)
        yield from map(_told, self._process.unpacker)

    def hurry(self) -> None:
        """Have the folder read now."""
        try:
            os.write(self._process.asked, b"\n")
        except OSError:
            LOG.debug("the watcher is busy, or gone; `changes` finds out")

    def close(self) -> None:
        """End the process."""
        self._process.close()


def _told(value: int | list[Any]) -> Change | int:
    return value if isinstance(value, int) else Change(*value)


def main() -> int:
    set_nice(0)  # the controller's own is not for what can wait
    logging.basicConfig(format="cwd controller: %(message)s", level=logging.INFO)
    scanner, number = Scanner(sys.argv[1]), 0
    try:
        while True:
            number += 1
            told = [msgpack.packb([*change]) for change in scanner.changes()]
            data = memoryview(b"".join([*told, msgpack.packb(number)]))
            while data:
                data = data[os.write(1, data):]
            ready, _, _ = select.select([0], [], [], SCAN_S)
            if ready and not os.read(0, 4096):
                return 0
    except (BrokenPipeError, KeyboardInterrupt):
        return 0


if __name__ == "__main__":
    sys.exit(main())
