"""A daemon of ours as a child process: started, waited for until READY, killed, and never outliving its parent.

Knows what every daemon has in common (NOTIFY_SOCKET, a log, SIGTERM), and nothing of what one does. The kernel ends a
child when the *thread* that started it ends, so all children are started from one thread that stays.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cwd.errors import CwdError
from cwd.net.notify import NotifyListener

#: names the process after whose death a daemon ends itself
PARENT_VARIABLE = "CWD_PARENT_PID"
_PR_SET_PDEATHSIG = 1
_LAST_LINES = 8


class ChildDied(CwdError):
    """A daemon ended, or was not ready in time; the text has its last words."""


def die_with_parent() -> None:
    """In a daemon: ask the kernel to end us when the process named in the environment ends, if one is."""
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):
        os._exit(1)


@functools.cache
def _spawner(pid: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix=f"cwd-spawner-{pid}")


class Child:
    """`python -m MODULE ARGUMENTS` under supervision. `log` takes what it writes to stdout and stderr."""

    def __init__(self, name: str, arguments: Sequence[str], *, log: Path, folder: Path, module: str = "cwd",
                 environment: Mapping[str, str] | None = None, cores: Sequence[int] | None = None) -> None:
        self.name = name
        self.module = module
        self.arguments = list(arguments)
        self.log = log
        self._folder = folder
        self._environment = dict(environment or {})
        self._cores = set(cores) if cores is not None else None
        self._process: subprocess.Popen[bytes] | None = None
        self._listener: NotifyListener | None = None

    @property
    def pid(self) -> int:
        """Of the running process; raises `ChildDied` if there is none."""
        if self._process is None or self._process.poll() is not None:
            raise ChildDied(f"{self.name} is not running")
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def ended_well(self) -> bool:
        """Whether it has ended, and with code 0."""
        return self._process is not None and self._process.poll() == 0

    @property
    def status(self) -> str:
        """The daemon's last STATUS= line."""
        return self._listener.status if self._listener is not None else ""

    def start(self) -> None:
        """Start the process, without waiting for it."""
        assert not self.alive, f"{self.name} runs already"
        self._close_listener()
        self._listener = NotifyListener(self._folder)
        # Without the parent's PYTHONPATH entries `-m cwd` might find another cwd, or none.
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
        environment = {**os.environ, "PYTHONPATH": path, **self._environment, "NOTIFY_SOCKET": self._listener.path,
                       PARENT_VARIABLE: str(os.getpid())}
        environment.pop("WATCHDOG_USEC", None)
        with open(self.log, "ab") as log:
            self._process = _spawner(os.getpid()).submit(
                subprocess.Popen, [sys.executable, "-m", self.module, *self.arguments], stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, env=environment, start_new_session=True).result()
        if self._cores is not None:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(self._process.pid, self._cores)

    def wait_ready(self, timeout_s: float, progress: Callable[[str], None] | None = None) -> None:
        """Return once the daemon is READY; raises `ChildDied` if it ends before, or is not within `timeout_s`."""
        assert self._listener is not None
        until, said = time.monotonic() + timeout_s, ""
        while not self._listener.wait_ready(min(0.2, max(until - time.monotonic(), 0)), lambda: self.alive):
            if progress is not None and self.status != said:
                said = self.status
                progress(said)
            if not self.alive:
                raise self.died()
            if time.monotonic() >= until:
                raise ChildDied(f"{self.name} was not ready after {timeout_s:g} s{self._last_words()}")

    def died(self) -> ChildDied:
        """What to raise when it is found dead."""
        code = self._process.poll() if self._process is not None else None
        how = f"by signal {-code}" if code is not None and code < 0 else f"with code {code}"
        return ChildDied(f"{self.name} ended {how}{self._last_words()}")

    def kill(self) -> None:
        """End it at once, as kill -9 does, and wait until it is gone."""
        self._end(signal.SIGKILL, 10)

    def stop(self, timeout_s: float = 10) -> int:
        """End it in an orderly way (SIGTERM), or by force after `timeout_s`; its exit code (negative: the signal)."""
        return self._end(signal.SIGTERM, timeout_s)

    def terminate(self) -> None:
        """Ask it to end, without waiting."""
        if self._process is not None and self.alive:
            self._process.terminate()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout_s: float) -> int | None:
        """The exit code, None if it still runs after `timeout_s`."""
        if self._process is None:
            return 0
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def last_lines(self, count: int = _LAST_LINES) -> list[str]:
        """The end of its log."""
        try:
            with open(self.log, "rb") as file:
                file.seek(max(os.fstat(file.fileno()).st_size - 64_000, 0))
                return file.read().decode(errors="replace").splitlines()[-count:]
        except OSError:
            return []

    def _end(self, number: int, timeout_s: float) -> int:
        if self._process is None:
            return 0
        if self.alive:
            self._process.send_signal(number)
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._close_listener()
        return code

    def _close_listener(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _last_words(self) -> str:
        lines = [line for line in self.last_lines() if line.strip()]
        return ": " + " | ".join(lines[-3:]) if lines else f" (see {self.log})"
