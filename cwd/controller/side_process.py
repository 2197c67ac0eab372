"""A process of ours beside the controller, for what would take its one thread too long: the daemon's end of the pipes.

It is started as `python -m MODULE ARGUMENT`, is asked on its stdin and says msgpack on its stdout. Neither end ever makes
the daemon wait. It holds no state: whoever finds it ended starts it again.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import msgpack

#: how long one that is told to end may take before it is killed: one that is stopped does not hear of it
_END_S = 1.0


class SideProcess:
    """`asked` and `said` are the descriptors of its stdin and stdout, which do not block; `unpacker` is for what it says."""

    def __init__(self, module: str, argument: str) -> None:
        self._module, self._argument = module, argument
        self.start()

    def start(self) -> None:
        """Start it, for the first time or after `close`."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", self._module, self._argument],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        assert self._process.stdin is not None and self._process.stdout is not None
        self.asked, self.said = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self.asked, False)
        os.set_blocking(self.said, False)
        self.unpacker = msgpack.Unpacker(raw=False)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
