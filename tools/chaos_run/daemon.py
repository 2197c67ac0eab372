"""A daemon of cwd on a host: started, waited for until READY, killed, started again. What systemd would be to it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cwd.errors import CwdError
from cwd.net.notify import NotifyListener
from tools.hosts import Host

ROOT = Path(__file__).resolve().parents[2]


class Daemon:
    """`argv` on `host`; what it says goes to `folder`/NAME.log, and its notifications are listened to."""

    def __init__(self, name: str, host: Host, argv: Sequence[str], folder: Path,
                 environment: Mapping[str, str | None] | None = None) -> None:
        self.name, self.host, self.argv = name, host, list(argv)
        self.log = folder / f"{name}.log"
        self.killed, self.started_s = False, 0.0
        self._folder, self._environment = folder, dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._listener: NotifyListener | None = None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def ready(self) -> bool:
        """Whether it runs and has said READY."""
        while self._listener is not None and self._listener.receive(0.0) is not None:
            pass
        return self.alive and self._listener is not None and self._listener.ready

    def start(self) -> None:
        assert not self.alive
        if self._listener is not None:
            self._listener.close()
        self._listener, self.killed, self.started_s = NotifyListener(self._folder), False, time.monotonic()
        self._process = self.host.run(self.argv, cwd=ROOT, stdout=self.log, env={
            "PYTHONPATH": str(ROOT), "NOTIFY_SOCKET": self._listener.path, "WATCHDOG_USEC": None, **self._environment})

    def wait_ready(self, timeout_s: float) -> None:
        """Raises `CwdError` with its last words."""
        assert self._listener is not None
        if not self._listener.wait_ready(timeout_s, lambda: self.alive):
            raise CwdError(f"{self.name} did not get ready: {self.last_words()}")

    def kill(self) -> None:
        """As kill -9, and wait until it is gone."""
        assert self._process is not None
        self.killed = True
        self._process.kill()
        self._process.wait()

    def wait(self, until_s: float) -> int | None:
        """The exit code, None if it still runs at that time of the monotonic clock."""
        assert self._process is not None
        try:
            return self._process.wait(max(until_s - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            return None

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return " | ".join(line for line in lines[-4:] if line.strip()) or "nothing was said"

    def close(self) -> None:
        if self.alive:
            self.kill()
        if self._listener is not None:
            self._listener.close()
            self._listener = None


def cwd(*arguments: str) -> list[str]:
    """The command line of `cwd`."""
    return [sys.executable, "-m", "cwd", *arguments]


def wait_for(what: str, condition: Callable[[], bool], timeout_s: float) -> None:
    """Return when it holds; raises `CwdError` if that takes too long."""
    until_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until_s:
            raise CwdError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.02)
